//! One round: a crowd of processes over one bus, and what is done to them. This process forks them, and never opens a bus
//! itself: it stays single-threaded, so that a child may do anything, and is there within a millisecond.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use memmap2::MmapMut;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::common::names;
use super::ledger::{self, DRAIN, Ledger, PROCESSES, STOP};
use super::process::{self, PATIENCE, Process, Setup};

/// What processes are there, and what must hold in the end.
pub struct Pattern {
    pub name: &'static str,
    pub is_durable: bool,
    /// Makes what is to be there before anyone comes.
    pub prepare: fn(&mut Process),
    pub roles: &'static [Role],
    /// When all have left: what is kept is as it should be, and the dead are put away.
    pub settle: fn(&mut Process),
    /// The only names that may be left in the topics' directories.
    pub stays: &'static [&'static str],
}

pub struct Role {
    pub name: &'static str,
    /// How many at least and at most.
    pub crowd: (usize, usize),
    /// Whether it leaves first when a round ends.
    pub sends: bool,
    pub act: fn(&mut Process),
}

#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub rounds: u64,
    pub kills: u64,
    pub stops: u64,
    pub joins: u64,
    pub leaves: u64,
    pub checked: u64,
    pub violations: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.kills += other.kills;
        self.stops += other.stops;
        self.joins += other.joins;
        self.leaves += other.leaves;
        self.checked += other.checked;
        self.violations += other.violations;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} SIGKILLs, {} stops, {} joins, {} leaves, {} messages checked, {} violations",
            self.kills, self.stops, self.joins, self.leaves, self.checked, self.violations
        )
    }
}

/// What is done to one place of the crowd, and how long after the last thing.
#[derive(Clone, Copy, Debug)]
struct Action {
    pause_us: u64,
    place: usize,
    what: What,
    /// Of the process that comes then, if one does.
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// Killed, and another one comes at once.
    Kill,
    KillAll,
    /// For so many actions.
    Stop(usize),
    Leave,
}

impl Action {
    /// A function of the random numbers alone: the same seed, the same schedule.
    fn next(random: &mut Rng, places: usize, slowness: u64) -> Self {
        let longest = random.choice([200, 1000, 4000, 12_000]).unwrap();
        let what = match random.u32(..100) {
            0 => What::KillAll,
            1..66 => What::Kill,
            66..86 => What::Stop(random.usize(1..6)),
            _ => What::Leave,
        };
        Self {
            pause_us: slowness * random.u64(..longest),
            // The first ones live shorter than the last ones.
            place: random.usize(..places).min(random.usize(..places)),
            what,
            seed: random.u64(..),
        }
    }
}

struct Place {
    role: &'static Role,
    child: Option<Child>,
}

#[derive(Clone, Copy)]
struct Child {
    pid: Pid,
    number: u64,
    /// Until which action.
    stopped_until: Option<usize>,
}

pub struct Round<'a> {
    pattern: &'static Pattern,
    setup: Setup,
    ledger: &'a Ledger,
    path: &'a Path,
    places: Vec<Place>,
    /// Killed, and not yet waited for.
    dying: Vec<(&'static Role, Child)>,
    last: u64,
    counts: Counts,
}

/// Runs one.
pub fn run(pattern: &'static Pattern, seed: u64, actions: usize, slowness: u64) -> Counts {
    let mut map: MmapMut = ledger::map();
    let dir = tempfile::Builder::new()
        .prefix("buslane-storm.")
        .tempdir_in("/dev/shm")
        .unwrap();
    let mut random = Rng::with_seed(seed);
    // The smaller it is, the more often who sends waits for who receives.
    let capacities = match pattern.is_durable {
        true => [1 << 16, 1 << 18, 1 << 20],
        false => [1 << 12, 1 << 16, 1 << 20],
    };
    let setup = Setup {
        capacity: random.choice(capacities).unwrap(),
        is_durable: pattern.is_durable,
    };
    let mut round = Round {
        pattern,
        setup,
        ledger: Ledger::of(&mut map),
        path: &dir.path().join("bus"),
        places: Vec::new(),
        dying: Vec::new(),
        last: 0,
        counts: Counts {
            rounds: 1,
            ..Counts::default()
        },
    };
    for role in pattern.roles {
        for _ in 0..random.usize(role.crowd.0..=role.crowd.1) {
            round.places.push(Place { role, child: None });
        }
    }
    round.storm(&mut random, actions, slowness);
    round.end_all();
    let mut counts = round.counts;
    counts.checked = round.ledger.checked();
    if counts.violations > 0 {
        kept(dir);
    }
    counts
}

/// For who looks into it.
fn kept(dir: TempDir) {
    eprintln!("the bus is kept: {}", dir.keep().display());
}

impl Round<'_> {
    fn storm(&mut self, random: &mut Rng, actions: usize, slowness: u64) {
        self.alone("prepares", random.u64(..), self.pattern.prepare);
        for place in 0..self.places.len() {
            self.start(place, random.u64(..));
        }
        let slowness = slowness * random.choice([1, 3]).unwrap();
        for at in 0..actions {
            let action = Action::next(random, self.places.len(), slowness);
            sleep(Duration::from_micros(action.pause_us));
            self.wake(|until| until <= at);
            self.act(at, action);
            self.reap();
            if self.counts.violations > 0 {
                return;
            }
        }
        self.wake(|_| true);
        self.calm(random);
        if self.counts.violations > 0 {
            return;
        }
        self.leave(STOP, |role| role.sends);
        self.leave(DRAIN, |_| true);
        if self.counts.violations == 0 {
            self.alone("settles", random.u64(..), self.pattern.settle);
        }
        if self.counts.violations == 0 {
            self.look_for_leftovers();
        }
    }

    fn violation(&mut self, what: std::fmt::Arguments<'_>) {
        eprintln!("VIOLATION: {what}");
        self.counts.violations += 1;
    }

    // ------------------------------------------------------------------------------------------------ what is done

    fn fork(&mut self, name: &str, seed: u64, act: fn(&mut Process)) -> (Pid, u64) {
        self.last += 1;
        assert!((self.last as usize) < PROCESSES, "fewer actions, please");
        let process = Process::new(self.last, self.ledger, self.setup, self.path, seed);
        (process::fork(process, name, act), self.last)
    }

    fn start(&mut self, place: usize, seed: u64) {
        let role = self.places[place].role;
        let (pid, number) = self.fork(role.name, seed, role.act);
        self.counts.joins += 1;
        self.places[place].child = Some(Child {
            pid,
            number,
            stopped_until: None,
        });
    }

    /// A process that is waited for, while all others have gone.
    fn alone(&mut self, name: &str, seed: u64, act: fn(&mut Process)) {
        let (pid, number) = self.fork(name, seed, act);
        let child = Child {
            pid,
            number,
            stopped_until: None,
        };
        self.wait_for_end(child, name);
    }

    fn act(&mut self, at: usize, action: Action) {
        let Action {
            place, what, seed, ..
        } = action;
        let Some(child) = &mut self.places[place].child else {
            return self.start(place, seed);
        };
        match what {
            What::Kill => {
                self.doom(place);
                self.start(place, seed);
            }
            What::KillAll => {
                for place in 0..self.places.len() {
                    self.doom(place);
                }
                let mut random = Rng::with_seed(seed);
                for place in 0..self.places.len() {
                    self.start(place, random.u64(..));
                }
            }
            What::Stop(actions) => {
                child.stopped_until = Some(at + actions);
                kill(child.pid, Signal::SIGSTOP).unwrap();
                self.counts.stops += 1;
            }
            What::Leave => {
                self.ledger.card(child.number).is_to_leave.store(1, SeqCst);
                self.counts.leaves += 1;
            }
        }
    }

    fn doom(&mut self, place: usize) {
        let Some(child) = self.places[place].child.take() else {
            return;
        };
        // Before it happens: nobody is to find somebody dead of whom this is not known.
        self.ledger.card(child.number).is_doomed.store(1, SeqCst);
        self.ledger.dooms.fetch_add(1, SeqCst);
        kill(child.pid, Signal::SIGKILL).unwrap();
        self.counts.kills += 1;
        self.dying.push((self.places[place].role, child));
    }

    fn wake(&mut self, is_time: impl Fn(usize) -> bool) {
        for child in self
            .places
            .iter_mut()
            .filter_map(|place| place.child.as_mut())
        {
            if child.stopped_until.is_some_and(&is_time) {
                child.stopped_until = None;
                kill(child.pid, Signal::SIGCONT).unwrap();
            }
        }
    }

    // --------------------------------------------------------------------------------------------------- who ended

    /// Waits for those that were killed, as far as they have ended; a place whose process has left is empty.
    fn reap(&mut self) {
        for (role, child) in std::mem::take(&mut self.dying) {
            match waitpid(child.pid, Some(WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::StillAlive => self.dying.push((role, child)),
                status => self.judge(role.name, child, status),
            }
        }
        for place in 0..self.places.len() {
            let Some(child) = self.places[place].child else {
                continue;
            };
            let status = waitpid(child.pid, Some(WaitPidFlag::WNOHANG)).unwrap();
            if status != WaitStatus::StillAlive {
                self.places[place].child = None;
                self.judge(self.places[place].role.name, child, status);
            }
        }
    }

    /// Waits for all that were killed.
    fn bury(&mut self) {
        for (role, child) in std::mem::take(&mut self.dying) {
            let status = waitpid(child.pid, None).unwrap();
            self.judge(role.name, child, status);
        }
    }

    fn judge(&mut self, name: &str, child: Child, status: WaitStatus) {
        let was_killed = matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
        let is_well = status == WaitStatus::Exited(child.pid, 0);
        if !(is_well || was_killed && self.ledger.is_doomed(child.number)) {
            self.violation(format_args!(
                "{name} (process {}) ended: {status:?}",
                child.number
            ));
        }
    }

    /// Waits for its end by itself.
    fn wait_for_end(&mut self, child: Child, name: &str) {
        let began = Instant::now();
        loop {
            let status = waitpid(child.pid, Some(WaitPidFlag::WNOHANG)).unwrap();
            if status != WaitStatus::StillAlive {
                return self.judge(name, child, status);
            }
            if began.elapsed() > PATIENCE {
                self.hangs(name, child);
                kill(child.pid, Signal::SIGKILL).unwrap();
                waitpid(child.pid, None).unwrap();
                return;
            }
            sleep(Duration::from_micros(200));
        }
    }

    fn hangs(&mut self, name: &str, child: Child) {
        let phase = ["while all go on", "while senders leave", "while all leave"];
        let phase = phase[self.ledger.phase() as usize];
        self.violation(format_args!(
            "{name} (process {}) hangs {phase}",
            child.number
        ));
        for task in names(format!("/proc/{}/task", child.pid).as_ref()) {
            for what in ["comm", "wchan", "syscall"] {
                let path = format!("/proc/{}/task/{task}/{what}", child.pid);
                eprintln!(
                    "{task} {what}: {}",
                    std::fs::read_to_string(path).unwrap_or_default().trim()
                );
            }
        }
    }

    /// Nobody is stopped, or killed: each process must get on. Those that were to leave do so, and others come.
    fn calm(&mut self, random: &mut Rng) {
        let beats = |ledger: &Ledger, child: Child| ledger.card(child.number).beats.load(Relaxed);
        // Of those that come now, there is nothing yet.
        let mut before: HashMap<u64, u64> = self
            .places
            .iter()
            .filter_map(|place| Some((place.child?.number, beats(self.ledger, place.child?))))
            .collect();
        let began = Instant::now();
        loop {
            self.reap();
            for place in 0..self.places.len() {
                if self.places[place].child.is_none() {
                    self.start(place, random.u64(..));
                }
            }
            let late = self.places.iter().find_map(|place| {
                let child = place.child?;
                let before = *before.entry(child.number).or_default();
                let is_to_leave = self.ledger.card(child.number).is_to_leave.load(Relaxed) != 0;
                (is_to_leave || beats(self.ledger, child) == before)
                    .then_some((place.role.name, child))
            });
            let Some((name, child)) = late else {
                return;
            };
            if self.counts.violations > 0 {
                return;
            }
            if began.elapsed() > PATIENCE {
                return self.hangs(name, child);
            }
            sleep(Duration::from_millis(1));
        }
    }

    /// Some leave, and all that were killed have ended.
    fn leave(&mut self, phase: u64, who: impl Fn(&Role) -> bool) {
        self.bury();
        self.ledger.phase.store(phase, SeqCst);
        for place in 0..self.places.len() {
            let role = self.places[place].role;
            if who(role)
                && let Some(child) = self.places[place].child.take()
            {
                self.wait_for_end(child, role.name);
            }
        }
    }

    /// Whoever is still there: after a violation.
    fn end_all(&mut self) {
        for place in 0..self.places.len() {
            self.doom(place);
        }
        self.bury();
    }

    fn look_for_leftovers(&mut self) {
        let mut left = names(&self.path.join("members"));
        for topic in names(&self.path.join("topics")) {
            left.extend(
                names(&self.path.join("topics").join(topic))
                    .into_iter()
                    .filter(|name| {
                        !self
                            .pattern
                            .stays
                            .iter()
                            .any(|stays| name.starts_with(stays))
                    }),
            );
        }
        if !left.is_empty() {
            self.violation(format_args!("left behind: {left:?}"));
        }
    }
}
