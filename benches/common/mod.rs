//! What the benchmarks between processes share.
#![allow(dead_code)]

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use buslane::{Bus, WaitStrategy};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

pub const SIZE: usize = 64;
/// Where a child finds the bus.
const PATH: &str = "BUSLANE_BENCH_BUS";

pub fn bus(path: &Path, wait: WaitStrategy) -> Bus {
    Bus::builder().wait(wait).at(path).unwrap()
}

/// The first, or the second, processor that this process may use.
pub fn pin_to(which: usize) {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    let mut only = CpuSet::new();
    only.set(cpus.nth(which).expect("two processors")).unwrap();
    sched_setaffinity(Pid::from_raw(0), &only).unwrap();
}

pub fn message(number: u64) -> [u8; SIZE] {
    let mut message = [7; SIZE];
    message[..8].copy_from_slice(&number.to_le_bytes());
    message
}

pub fn sum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks();
    words
        .iter()
        .fold(0, |sum, &word| sum.wrapping_add(u64::from_le_bytes(word)))
}

/// What a benchmark's process does: a child's part, or, in the first one, all with a bus at this path.
pub fn run(child: fn(&Path), here: fn(&Path)) {
    if let Some(path) = env::var_os(PATH) {
        return child(Path::new(&path));
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    here(&dir.path().join("bus"));
}

pub struct Other {
    pub child: Child,
    ears: ChildStdin,
    mouth: BufReader<ChildStdout>,
}

impl Other {
    pub fn start(path: &Path) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .env(PATH, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let ears = child.stdin.take().unwrap();
        let mouth = BufReader::new(child.stdout.take().unwrap());
        let mut other = Self { child, ears, mouth };
        other.hear("@ready");
        other
    }

    pub fn hear(&mut self, what: &str) {
        let mut line = String::new();
        self.mouth.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), what);
    }

    pub fn tell(&mut self, what: &str) {
        writeln!(self.ears, "{what}").unwrap();
    }

    /// Kills it once the waiting thread sleeps: milliseconds until that has noticed.
    pub fn time_from_kill(&mut self, waiting: JoinHandle<Instant>) -> f64 {
        // Until it sleeps.
        thread::sleep(Duration::from_millis(5));
        let killed = Instant::now();
        self.child.kill().unwrap();
        (waiting.join().unwrap() - killed).as_secs_f64() * 1e3
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Median, least and most.
pub fn spread(mut values: Vec<f64>) -> String {
    values.sort_unstable_by(f64::total_cmp);
    let median = values[values.len() / 2];
    format!(
        "{median:.2} ({:.2} to {:.2})",
        values[0],
        values[values.len() - 1]
    )
}
