//! The bridges that a broker's file names: each the program that `buslane bridge` starts, started again while the broker runs.

use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::bridge;
use crate::failure::Failure;

/// How long one that has ended is not started again.
const REST: Duration = Duration::from_secs(1);

/// The bridges that run, until this is dropped.
#[derive(Debug, Default)]
pub struct Bridges(Vec<Bridge>);

#[derive(Debug)]
struct Bridge {
    arguments: Vec<String>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ending: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_ending: bool,
    /// It is not reaped while this says who it is.
    pid: Option<Pid>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bridges {
    /// Runs these, each with its arguments, on this bus: those that run already go on, the others end.
    pub fn run<'a>(
        &mut self,
        bus: &str,
        all: impl Iterator<Item = &'a [String]>,
    ) -> Result<(), Failure> {
        let all: Vec<&[String]> = all.collect();
        self.0.retain(|bridge| all.contains(&&bridge.arguments[..]));
        for arguments in all {
            if self.0.iter().any(|bridge| bridge.arguments == arguments) {
                continue;
            }
            self.0.push(Bridge::start(bus, arguments)?);
        }
        Ok(())
    }
}

impl Bridge {
    /// That it can't be started the first time is an error; from then on it is told and tried again.
    fn start(bus: &str, arguments: &[String]) -> Result<Self, Failure> {
        let shared = Arc::new(Shared::default());
        let first = spawn(bus, arguments)?;
        let run = {
            let (shared, bus, arguments) =
                (Arc::clone(&shared), bus.to_owned(), arguments.to_vec());
            move || keep(&shared, &bus, &arguments, first)
        };
        let thread = thread::Builder::new()
            .name(String::from("bridge"))
            .spawn(run);
        let thread = thread.map_err(Failure::system("start a thread"))?;
        Ok(Self {
            arguments: arguments.to_vec(),
            shared,
            thread: Some(thread),
        })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_ending = true;
        if let Some(pid) = state.pid {
            // It may be about to end by itself.
            let _ = kill(pid, Signal::SIGTERM);
        }
        drop(state);
        self.shared.ending.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn spawn(bus: &str, arguments: &[String]) -> Result<Child, Failure> {
    let (program, mut command) = bridge::command(bus);
    // Stdout is the broker's.
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command.spawn().map_err(|e| bridge::failed(&program, e))
}

/// Has one running until it is to end.
fn keep(shared: &Shared, bus: &str, arguments: &[String], first: Child) {
    let mut next = Ok(first);
    loop {
        match next {
            Ok(child) => wait(shared, child),
            Err(failure) => {
                let Failure::Error(why) = failure else { return };
                tracing::warn!("{why}");
            }
        }
        let state = shared.lock();
        let rested = shared
            .ending
            .wait_timeout_while(state, REST, |state| !state.is_ending);
        if rested.is_ok_and(|(state, _)| state.is_ending) {
            return;
        }
        next = spawn(bus, arguments);
    }
}

/// Waits until it has ended.
fn wait(shared: &Shared, mut child: Child) {
    let pid = Pid::from_raw(child.id() as i32);
    let mut state = shared.lock();
    state.pid = Some(pid);
    if state.is_ending {
        let _ = kill(pid, Signal::SIGTERM);
    }
    drop(state);
    // It stays who its number says until it is reaped, which is not done while somebody may send it a signal.
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    while waitid(Id::Pid(pid), flags) == Err(Errno::EINTR) {}
    let mut state = shared.lock();
    state.pid = None;
    let status = child.wait();
    if !state.is_ending
        && let Ok(status) = status
    {
        tracing::warn!("a bridge ended with {status}; it is started again");
    }
}
