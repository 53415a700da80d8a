//! What the demo and the benchmarks run in: a directory of their own, and other processes of this program that end
//! with it.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::failure::Failure;
use crate::signals::Stop;

/// Makes a directory that is removed when dropped; in memory, if the machine has such a place.
pub fn directory() -> Result<TempDir, Failure> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("buslane-");
    builder
        .tempdir_in("/dev/shm")
        .or_else(|_| builder.tempdir())
        .map_err(Failure::system("make a private directory"))
}

/// This program, to be started again.
pub fn this_program() -> Result<Command, Failure> {
    Ok(Command::new(
        env::current_exe().map_err(Failure::system("find this program"))?,
    ))
}

/// Another process of ours, seen from the one that started it. It is told things on its stdin and answers on its
/// stdout, each a line of JSON; while it is told nothing it sleeps. When dropped it is told that there is nothing more, and
/// ends; soon, or it is killed.
#[derive(Debug)]
pub struct Actor {
    process: Running,
    ears: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Actor {
    /// Starts it.
    pub fn start(arguments: &[&str]) -> Result<Self, Failure> {
        let mut command = this_program()?;
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Running::start(&mut command)?;
        let (Some(ears), Some(answers)) = (process.0.stdin.take(), process.0.stdout.take()) else {
            unreachable!("both were asked for");
        };
        Ok(Self {
            process,
            ears: Some(ears),
            answers: BufReader::new(answers),
        })
    }

    /// Tells it something.
    pub fn tell(&mut self, what: &impl Serialize) -> Result<(), Failure> {
        let ears = self.ears.as_mut().ok_or_else(Self::gone)?;
        write_line(ears, what).map_err(|_| Self::gone())
    }

    /// Waits for its answer.
    pub fn answer<T: DeserializeOwned>(&mut self, stop: &Stop) -> Result<T, Failure> {
        // It writes each line at once, so that what is readable is all of it.
        if self.answers.buffer().is_empty() {
            stop.wait_readable(self.answers.get_ref().as_fd())
                .map_err(Failure::system("wait for the other process"))?;
        }
        stop.check()?;
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .map_err(Failure::system("read from the other process"))?;
        serde_json::from_str(&line).map_err(|_| Self::gone())
    }

    /// Kills it, as `kill -9` would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    fn gone() -> Failure {
        Failure::PeerGone("the other process ended early; see what it says above".into())
    }
}

/// How long a process that is told nothing more may take to put its things away.
const FAREWELL: Duration = Duration::from_secs(1);

impl Drop for Actor {
    fn drop(&mut self) {
        drop(self.ears.take());
        let told = Instant::now();
        while told.elapsed() < FAREWELL && matches!(self.process.0.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A process that is killed, if it still runs, when this is dropped.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> Result<Self, Failure> {
        command
            .spawn()
            .map(Self)
            .map_err(Failure::system("start another process"))
    }

    /// Waits until it has ended, and well. Its stderr must be piped.
    pub fn finish(mut self, stop: &Stop) -> Result<(), Failure> {
        let wait = Failure::system("wait for another process");
        let mut said = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            // A signal must end this wait; and the stream ends when the process does.
            while stop.wait_readable(stderr.as_fd()).map_err(&wait)? {
                let mut some = [0; 1024];
                match stderr.read(&mut some).map_err(&wait)? {
                    0 => break,
                    n => said.push_str(&String::from_utf8_lossy(&some[..n])),
                }
            }
        }
        stop.check()?;
        let status = self.0.wait().map_err(&wait)?;
        if status.success() {
            Ok(())
        } else {
            Err(Failure::Error(format!(
                "another process ended with {status}: {}",
                said.trim()
            )))
        }
    }

    fn kill(&mut self) {
        // Either fails only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The same conversation from the other end.
#[derive(Debug)]
pub struct Director;

impl Director {
    /// Has this process die with the one that started it.
    pub fn attach() -> Result<Self, Failure> {
        set_pdeathsig(Signal::SIGKILL)
            .map_err(|e| Failure::system("follow the other process")(e.into()))?;
        Ok(Self)
    }

    /// What it is told next; `None`: nothing more.
    pub fn next<T: DeserializeOwned>(&self) -> Result<Option<T>, Failure> {
        let mut line = String::new();
        match io::stdin().lock().read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => serde_json::from_str(&line)
                .map(Some)
                .map_err(|e| Failure::Error(format!("told nonsense: {e}"))),
            Err(error) => Err(Failure::system("read stdin")(error)),
        }
    }

    /// Answers.
    pub fn answer(&self, what: &impl Serialize) -> Result<(), Failure> {
        write_line(&mut io::stdout().lock(), what).map_err(Failure::stdout)
    }
}

fn write_line(out: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}
