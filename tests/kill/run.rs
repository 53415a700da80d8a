//! One run: a witness, a victim that is killed at a point, perhaps a repairer that is killed at one, too; and what the witness
//! finds then. Each is a forked child of a process that has one thread, and has never opened a bus.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::common::PATIENCE;
use crate::operations::{Ask, Operation, look_over};
use crate::trace::{Code, Point, Traced, here, trace_me};

/// How far a process is let go on.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// To its end, while its points are noted; of `every_step` also those at which what is shared is as at the one before.
    /// Behind every so manieth system call only, from the second number on.
    End {
        every_step: bool,
        share: (u32, u32),
    },
    Point(Point),
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// All points, of the victim or of the repairer, whichever went on to its end.
    pub points: Vec<Point>,
    /// What the victim left, but for what differs from run to run.
    pub left: u64,
    /// How far the operation had come, as the witness saw it; or what it found.
    pub seen: Result<u64, String>,
}

/// A child that runs `body`, and ends with this process.
fn child(body: impl FnOnce()) -> Pid {
    // SAFETY: this process has one thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            nix::sys::prctl::set_pdeathsig(Some(Signal::SIGKILL)).unwrap();
            // Apart: the kernel hangs up on stopped processes when their session's leader ends.
            nix::unistd::setsid().unwrap();
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            // SAFETY: ends the child, without what the parent's exit would run.
            unsafe { libc::_exit(i32::from(ended.is_err())) }
        }
    }
}

/// A process that dies by `SIGKILL` when it has done something.
pub fn doomed(body: impl FnOnce()) {
    let pid = child(|| {
        body();
        nix::sys::signal::raise(Signal::SIGKILL).unwrap();
    });
    let status = waitpid(pid, None);
    assert!(
        matches!(status, Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _))),
        "{status:?}"
    );
}

/// The process that sees what became of the victim's deeds.
struct Witness {
    pid: Pid,
    to: File,
    from: BufReader<File>,
}

impl Witness {
    fn start(operation: &Operation, path: &Path) -> Self {
        let (asks, to) = nix::unistd::pipe().unwrap();
        let (from, says) = nix::unistd::pipe().unwrap();
        let pid = child(|| Self::run(operation, path, asks.into(), says));
        Self {
            pid,
            to: to.into(),
            from: BufReader::new(from.into()),
        }
    }

    fn run(operation: &Operation, path: &Path, mut asks: File, says: OwnedFd) {
        let says = std::sync::Arc::new(Mutex::new(File::from(says)));
        let panicked = std::sync::Arc::clone(&says);
        std::panic::set_hook(Box::new(move |panic| {
            let told = panic.to_string().replace(['\n', '\t'], " ");
            let _ = writeln!(panicked.lock().unwrap(), "failed {told}");
        }));
        let say = |what: String| writeln!(says.lock().unwrap(), "{what}").unwrap();
        let mut witness = (operation.witness)(path);
        say("ready".into());
        let mut ask = [0];
        loop {
            asks.read_exact(&mut ask).unwrap();
            let ask = match ask[0] {
                b'h' => Ask::Here,
                b'n' => Ask::Nudge,
                _ => Ask::Check,
            };
            let seen = witness(ask);
            if ask == Ask::Check {
                drop(witness);
                look_over(path, operation.leaves);
                return say(format!("seen {seen}"));
            }
            say("done".into());
        }
    }

    /// What it says next.
    fn hear(&mut self) -> Result<String, String> {
        if self.from.buffer().is_empty() {
            let mut fds = [PollFd::new(self.from.get_ref().as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::try_from(2 * PATIENCE).unwrap()) == Ok(0) {
                return Err("the witness hangs".into());
            }
        }
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        match line.trim_end().split_once(' ') {
            Some(("failed", why)) => Err(why.to_owned()),
            None if line.is_empty() => Err("the witness ended without a word".into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    fn ask(&mut self, ask: u8) -> Result<String, String> {
        // If it has ended, it says so.
        let _ = self.to.write_all(&[ask]);
        self.hear()
    }

    /// It does nothing from now on.
    fn stop(&self) {
        kill(self.pid, Signal::SIGSTOP).unwrap();
        // Or it has ended, and says why.
        let _ = waitpid(self.pid, Some(WaitPidFlag::WUNTRACED));
    }

    fn check(&mut self) -> Result<u64, String> {
        let _ = kill(self.pid, Signal::SIGCONT);
        let said = self.ask(b'c')?;
        let seen = said
            .strip_prefix("seen ")
            .and_then(|seen| seen.parse().ok());
        seen.ok_or_else(|| format!("the witness says {said}"))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// Runs an operation. `None`: a process did not come by its point.
pub fn run(
    operation: &Operation,
    code: &mut Code,
    dir: &Path,
    first: Until,
    second: Option<Until>,
) -> Option<Outcome> {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let path = dir.path().join("bus");
    let mut witness = Witness::start(operation, &path);
    let mut outcome = Outcome {
        points: Vec::new(),
        left: 0,
        seen: Ok(0),
    };
    let mut failed = None;
    if let Err(why) = witness.hear() {
        panic!("{}: the witness could not begin: {why}", operation.name);
    }
    let victim = child(|| {
        let mut deed = (operation.victim)(&path);
        trace_me();
        here();
        deed();
        here();
    });
    let mut ask = |what: u8, failed: &mut Option<String>| {
        if let Err(why) = witness.ask(what) {
            failed.get_or_insert(why);
        }
    };
    let mut traced = Traced::begin(victim, code, operation.thread, operation.still);
    ask(b'h', &mut failed);
    let mut reached = go(&mut traced, first, &mut outcome, &mut || {
        ask(b'n', &mut failed)
    });
    witness.stop();
    traced.kill();
    outcome.left = fingerprint(&path);
    if let (true, Some(second)) = (reached, second) {
        let repairer = child(|| {
            trace_me();
            here();
            (operation.repair)(&path);
            here();
        });
        let mut traced = Traced::begin(repairer, code, None, None);
        reached = go(&mut traced, second, &mut outcome, &mut || {});
        traced.kill();
    }
    outcome.seen = witness.check();
    if let Some(why) = failed {
        outcome.seen = Err(why);
    }
    reached.then_some(outcome)
}

fn go(
    traced: &mut Traced<'_>,
    until: Until,
    outcome: &mut Outcome,
    nudge: &mut dyn FnMut(),
) -> bool {
    match until {
        Until::Point(point) => traced.go_to(point, nudge),
        Until::End { every_step, share } => {
            outcome.points = traced.record(every_step, share, nudge);
            true
        }
    }
}

/// Where tables, cursors and lanes say whose they are or were; a member's number is random.
const OWNERS: [usize; 3] = [128, 384, 640];
/// Where a file says when it was made.
const MADE: usize = 40;
/// In nanoseconds.
const HOUR: u64 = 3_600_000_000_000;

/// A number for all that is in a directory and a repair could go by: names, sizes, bytes; but for ids, times, process ids, words
/// that are only ever bumped, and what is in a ring, of which the witness says how much is visible.
fn fingerprint(dir: &Path) -> u64 {
    let mut files = BTreeMap::new();
    collect(dir, dir, &mut files);
    // Of the clock that runs since the machine started, as states have them.
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    let now = Duration::from(now).as_nanos() as u64;
    let is_time = |word: u64| (now.saturating_sub(HOUR)..now).contains(&word);
    let is_id = |part: &str| part.len() == 16 && part.bytes().all(|b| b.is_ascii_hexdigit());
    // Whose file was made first is the first one.
    let mut made: BTreeMap<u64, u64> = BTreeMap::new();
    for (name, bytes) in &files {
        let at = bytes.get(MADE..MADE + 8).map_or(u64::MAX, |word| {
            u64::from_le_bytes(word.try_into().unwrap())
        });
        for id in name.split(['/', '.']).filter(|part| is_id(part)) {
            let first = made
                .entry(u64::from_str_radix(id, 16).unwrap())
                .or_insert(at);
            *first = at.min(*first);
        }
    }
    let mut by_age: Vec<(u64, u64)> = made.into_iter().map(|(id, at)| (at, id)).collect();
    by_age.sort_unstable();
    let ids: BTreeMap<u64, u64> = (by_age.iter().map(|&(_, id)| id)).zip(0..).collect();
    let mut state = DefaultHasher::new();
    let mut hashes: Vec<u64> = Vec::new();
    for (name, bytes) in &files {
        let mut state = DefaultHasher::new();
        for part in name.split(['/', '.']) {
            if is_id(part) {
                "id".hash(&mut state)
            } else {
                part.hash(&mut state)
            }
        }
        for (i, word) in bytes.chunks(8).enumerate() {
            let is_control = name == "bus" || name.ends_with("/topic");
            let is_bumped = is_control && [4096, 4224, 4352].contains(&(8 * i));
            let is_ring = name.contains("/lane.") && 8 * i >= 4096;
            // When it was made; whose process.
            if 8 * i == MADE || (i == 8 && name.starts_with("members")) || is_bumped || is_ring {
                continue;
            }
            let mut word = <[u8; 8]>::try_from(word).map_or(0, u64::from_le_bytes);
            // With its time, and a checksum of that; of the rest its name says it.
            if name.contains("/data.") && 8 * i < 4096 {
                word = word.min(1);
            }
            // One that is not there any more is as good as another.
            let is_gone = OWNERS.contains(&(8 * i)) && word >> 48 != 0 && !ids.contains_key(&word);
            if word != 0 && !is_time(word) && !is_gone {
                (i, ids.get(&word).map_or(word, |id| u64::MAX - id)).hash(&mut state);
            }
        }
        bytes.len().hash(&mut state);
        hashes.push(state.finish());
    }
    hashes.sort_unstable();
    hashes.hash(&mut state);
    state.finish()
}

fn collect(root: &Path, dir: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path: PathBuf = entry.unwrap().path();
        let name = path
            .strip_prefix(root)
            .unwrap()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            files.insert(format!("{name}/"), Vec::new());
            collect(root, &path, files);
        } else {
            // Of a cursor, which is long and sparse, the first slots.
            let mut bytes = Vec::new();
            File::open(&path)
                .unwrap()
                .take(1 << 16)
                .read_to_end(&mut bytes)
                .unwrap();
            files.insert(name, bytes);
        }
    }
}
