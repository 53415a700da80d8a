//! Private buses, and real child processes: the test binary runs itself again with one role.
#![allow(dead_code)]

mod skipped;

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

#[allow(unused_imports)]
pub use self::skipped::skipped;

/// Only against hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Another user's number.
const STRANGER: u32 = 12345;
const BUS: &str = "BUSLANE_TEST_BUS";
const ARGUMENT: &str = "BUSLANE_TEST_ARGUMENT";

/// A bus of one test's own, and a guard against hanging.
pub struct Private {
    pub path: PathBuf,
    dir: TempDir,
    _guard: Sender<()>,
}

pub fn private() -> Private {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (guard, ended) = channel::<()>();
    let name = thread::current().name().unwrap_or("?").to_owned();
    thread::spawn(move || {
        if ended.recv_timeout(2 * PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{name} hangs");
            std::process::abort();
        }
    });
    Private {
        path: dir.path().join("bus"),
        dir,
        _guard: guard,
    }
}

impl Private {
    pub fn bus(&self) -> buslane::Bus {
        buslane::Bus::builder()
            .capacity(65536)
            .at(&self.path)
            .unwrap()
    }
    /// The names in a directory of the bus, sorted.
    pub fn names(&self, under: &str) -> Vec<String> {
        names(&self.path.join(under))
    }
    pub fn child(&self, role: &str, argument: impl ToString) -> Process {
        Process::start(&self.path, &format!("child::{role}"), &argument.to_string())
    }
    /// The same as another user, who may come as far as the bus, if it lets him in. `None`: only root can.
    pub fn stranger(&self, role: &str, argument: impl ToString) -> Option<Process> {
        if !nix::unistd::geteuid().is_root() {
            skipped("only root can be another user");
            return None;
        }
        std::fs::set_permissions(self.dir.path(), Permissions::from_mode(0o755)).unwrap();
        // Where this is built, he may not come.
        let program = self.dir.path().join("program");
        if !program.exists() {
            // By another process: a descriptor of ours that can write to it may be in a child that is just being started.
            let mut copy = Command::new("cp");
            let copied = copy.args([&std::env::current_exe().unwrap(), &program]);
            assert!(copied.status().unwrap().success());
        }
        let mut command = Command::new(program);
        command.uid(STRANGER).gid(STRANGER).current_dir("/");
        let test = format!("child::{role}");
        let argument = argument.to_string();
        Some(Process::start_by(
            &mut command,
            &self.path,
            &test,
            &argument,
        ))
    }
    /// A test of this binary, alone in a process, where it has a role.
    pub fn child_test(&self, test: &str) -> Process {
        Process::start(&self.path, test, "")
    }
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The least that runs a future: on this thread, which is parked meanwhile.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// In another boot of the machine, as far as a durable bus can tell.
pub fn set_boot(bus: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(bus.join("bus"))
        .unwrap();
    file.write_all_at(&[9; 8], 4096 + 128).unwrap();
}

pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

/// A child that ends with its test.
pub struct Process {
    pub child: Child,
    out: BufReader<ChildStdout>,
}

impl Process {
    /// A test of this binary, alone in a process, where it has a role.
    pub fn start(path: &Path, test: &str, argument: &str) -> Self {
        let own = std::env::current_exe().unwrap();
        Self::start_by(&mut Command::new(own), path, test, argument)
    }

    /// The same, by a program that runs this binary, to which it passes what is added to its arguments.
    pub fn start_by(program: &mut Command, path: &Path, test: &str, argument: &str) -> Self {
        let mut child = program
            .args(["--exact", test, "--nocapture"])
            .env(BUS, path)
            .env(ARGUMENT, argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// A child whose words somebody else hears.
    pub fn of(mut child: Child) -> Self {
        let (out, _) = std::io::pipe().unwrap();
        child.stdout = None;
        let out = ChildStdout::from(std::os::fd::OwnedFd::from(out));
        let out = BufReader::new(out);
        Self { child, out }
    }

    /// What the child said next.
    pub fn hear(&mut self) -> String {
        self.try_hear().expect("the child ended without a word")
    }

    /// The same; `None`: it has ended.
    pub fn try_hear(&mut self) -> Option<String> {
        let mut line = String::new();
        while self.out.read_line(&mut line).unwrap() > 0 {
            if let Some(at) = line.find('@') {
                return Some(line[at + 1..].trim().to_owned());
            }
            line.clear();
        }
        None
    }

    /// Says something to the child, which hears it with [`hear`].
    pub fn tell(&mut self, what: impl std::fmt::Display) {
        use std::io::Write;
        let mut to = self.child.stdin.as_ref().unwrap();
        writeln!(to, "{what}").unwrap();
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for a good end.
    pub fn join(mut self) {
        let mut rest = String::new();
        let _ = std::io::Read::read_to_string(&mut self.out, &mut rest);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {rest}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For a forked child, whose harness has no thread any more that would tell of a panic.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::abort();
    }));
}

/// In a child: the bus's path and the argument. `None` in an ordinary run, where roles do nothing.
pub fn role() -> Option<(PathBuf, String)> {
    let path = std::env::var_os(BUS)?;
    nix::sys::prctl::set_pdeathsig(Some(Signal::SIGKILL)).unwrap();
    Some((path.into(), std::env::var(ARGUMENT).unwrap()))
}

/// In a child: says it to the test.
pub fn say(what: impl std::fmt::Display) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{what}").unwrap();
    out.flush().unwrap();
}

/// In a child: what the test says next.
pub fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// A message that shows whether it is whole: publisher, number, then a pattern.
pub fn fill(bytes: &mut [u8], publisher: u64, n: u64) {
    bytes[..8].copy_from_slice(&publisher.to_le_bytes());
    bytes[8..16].copy_from_slice(&n.to_le_bytes());
    bytes[16..].fill((n ^ publisher) as u8);
}

pub fn length(n: u64) -> usize {
    16 + (n * 37 % 900) as usize
}

/// Its publisher and number.
pub fn check(bytes: &[u8]) -> (u64, u64) {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let (publisher, n) = (word(0), word(8));
    assert_eq!(bytes.len(), length(n), "length of {publisher}/{n}");
    // All of it, several at a time.
    let wrong = bytes[16..]
        .iter()
        .fold(0, |wrong, &b| wrong | (b ^ (n ^ publisher) as u8));
    assert_eq!(wrong, 0, "{publisher}/{n} is torn");
    (publisher, n)
}
