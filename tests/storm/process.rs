//! A process of a storm, as it sees itself.

use std::path::Path;
use std::process::abort;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use buslane::{Bus, WaitStrategy};
use fastrand::Rng;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, getpid, getppid};

use super::ledger::{Card, DRAIN, GOING, Ledger};

/// Only against hangs: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// How a process of a storm ends when it has seen what must not be.
pub const VIOLATION: i32 = 101;

pub struct Process<'a> {
    pub number: u64,
    pub ledger: &'a Ledger,
    /// Its own.
    pub random: Rng,
    /// What holds for the whole round.
    pub setup: Setup,
    pub path: &'a Path,
}

/// What the processes of a round agree on.
#[derive(Clone, Copy)]
pub struct Setup {
    pub capacity: usize,
    pub is_durable: bool,
}

/// Runs one in a child. (This process must have one thread, and no bus.)
pub fn fork(mut process: Process, name: &str, act: fn(&mut Process)) -> Pid {
    let parent = getpid();
    // SAFETY: this process has one thread, so that the child may do whatever it likes.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            process.begin(name, parent);
            act(&mut process);
            // SAFETY: ends the process without what its parent has left to do.
            unsafe { nix::libc::_exit(0) }
        }
    }
}

impl<'a> Process<'a> {
    pub fn new(number: u64, ledger: &'a Ledger, setup: Setup, path: &'a Path, seed: u64) -> Self {
        Self {
            number,
            ledger,
            random: Rng::with_seed(seed),
            setup,
            path,
        }
    }

    /// Dies with its parent, and tells a panic of whatever thread.
    fn begin(&self, name: &str, parent: Pid) {
        set_pdeathsig(Some(Signal::SIGKILL)).unwrap();
        if getppid() != parent {
            abort();
        }
        let who = format!("{name} (process {})", self.number);
        std::panic::set_hook(Box::new(move |panic| {
            eprintln!("VIOLATION: {who}: {panic}");
            // SAFETY: ends the process; it says nothing to anybody.
            unsafe { nix::libc::_exit(VIOLATION) }
        }));
    }

    pub fn card(&self) -> &Card {
        self.ledger.card(self.number)
    }

    pub fn bus(&mut self) -> Bus {
        let waits = [
            WaitStrategy::Adaptive,
            WaitStrategy::Sleep,
            WaitStrategy::Adaptive,
        ];
        Bus::builder()
            .durable(self.setup.is_durable)
            .capacity(self.setup.capacity)
            .wait(self.random.choice(waits).unwrap())
            .at(self.path)
            .unwrap()
    }

    /// It has completed something.
    pub fn beat(&self) {
        self.card().beats.fetch_add(1, Relaxed);
    }

    /// A message was received, and was as it should be.
    pub fn has_checked(&self) {
        self.card().checked.fetch_add(1, Relaxed);
        self.beat();
    }

    pub fn is_to_leave(&self) -> bool {
        self.card().is_to_leave.load(Relaxed) != 0
    }

    /// Who sends is to leave when the round ends, too.
    pub fn is_over(&self) -> bool {
        self.is_to_leave() || self.ledger.phase() != GOING
    }

    pub fn is_to_drain(&self) -> bool {
        self.ledger.phase() == DRAIN
    }

    /// A pause, one time in so many, so that others fall asleep.
    pub fn dawdle(&mut self, one_in: u32) {
        if self.random.u32(..one_in) == 0 {
            std::thread::sleep(Duration::from_micros(self.random.u64(..1000)));
        }
    }

    /// A send begins. What is sent after this was not yet visible to who looked at [`Ledger::begun`] before.
    pub fn begins(&self, messages: u64) {
        self.card().begun.fetch_add(messages, SeqCst);
    }

    pub fn has_sent(&self, messages: u64) {
        self.card().sent.fetch_add(messages, SeqCst);
        self.beat();
    }
}
