//! Hosts that are network namespaces, and processes on them; all is taken away when it is dropped.
#![allow(dead_code)] // Each test uses some of it.

#[path = "../../../tests/common/skipped.rs"]
mod skipped;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use buslane::Bus;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use self::skipped::skipped;

/// As long as a condition may take on a machine that is busy.
pub const LONG: Duration = Duration::from_secs(60);

/// Hosts at one switch: host `n` (from 1) is 10.9.0.n, and has a bus.
pub struct Net {
    name: String,
    hosts: usize,
    dir: TempDir,
}

/// Whether there can be any; if not, says why.
pub fn can_have_hosts() -> bool {
    let why = match Command::new("ip").args(["netns", "list"]).output() {
        Err(e) => format!("no `ip` command: {e}"),
        Ok(_) if !nix::unistd::geteuid().is_root() => String::from("network namespaces need root"),
        Ok(output) if !output.status.success() => String::from("no network namespaces here"),
        Ok(_) => return true,
    };
    skipped(&why);
    false
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {why}");
}

impl Net {
    /// So many hosts.
    pub fn new(hosts: usize) -> Self {
        static NEXT: Mutex<u32> = Mutex::new(0);
        let number = {
            let mut next = NEXT.lock().unwrap();
            *next += 1;
            *next
        };
        // First, so that it is taken away if anything fails.
        let net = Self {
            name: format!("blz{}n{number}", std::process::id()),
            hosts,
            dir: tempfile::tempdir_in("/dev/shm").unwrap(),
        };
        let switch = net.namespace(0);
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add br0 type bridge"));
        ip(&format!("-n {switch} link set br0 up"));
        for host in 1..=hosts {
            let at = net.namespace(host);
            ip(&format!("netns add {at}"));
            ip(&format!(
                "link add v{host} netns {switch} type veth peer name eth0 netns {at}"
            ));
            ip(&format!("-n {switch} link set v{host} master br0 up"));
            ip(&format!("-n {at} link set lo up"));
            ip(&format!("-n {at} addr add 10.9.0.{host}/24 dev eth0"));
            ip(&format!("-n {at} link set eth0 up"));
        }
        // Who starts before its link is there does not look for others on it.
        for host in 1..=hosts {
            let at = net.namespace(host);
            let show = ["-n", &at, "link", "show", "eth0"];
            until("the link is there", || {
                let shown = Command::new("ip").args(show).output().unwrap();
                String::from_utf8_lossy(&shown.stdout).contains("state UP")
            });
        }
        net
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}h{host}", self.name)
    }

    /// Cuts a host's link, or restores it.
    pub fn link(&self, host: usize, is_up: bool) {
        let to = if is_up { "up" } else { "down" };
        ip(&format!("-n {} link set v{host} {to}", self.namespace(0)));
    }

    /// A command on a host.
    pub fn command(&self, host: usize, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        let namespace = self.namespace(host);
        command.args(["netns", "exec", &namespace]).arg(program);
        command
    }

    /// Where a host's bus is.
    pub fn path(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("bus{host}"))
    }

    /// A host's bus.
    pub fn bus(&self, host: usize) -> Bus {
        Bus::at(self.path(host)).unwrap()
    }

    /// A bridge on a host.
    pub fn bridge(&self, host: usize, args: &[&str]) -> Process {
        self.bridge_of(host, &self.path(host), args)
    }

    /// A bridge of any bus on a host.
    pub fn bridge_of(&self, host: usize, bus: &Path, args: &[&str]) -> Process {
        let mut command = self.command(host, env!("CARGO_BIN_EXE_buslane-bridge-zenoh"));
        command
            .arg("--bus")
            .arg(bus)
            .args(["--json", "--metrics", "127.0.0.1:9464"])
            .args(args)
            .stdout(Stdio::piped());
        Process::spawn(command)
    }

    /// What a bridge on a host counts: the sum over all labels that `wanted` begins.
    pub fn metric(&self, host: usize, wanted: &str) -> u64 {
        let get = "exec 3<>/dev/tcp/127.0.0.1/9464; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        let output = self
            .command(host, "bash")
            .args(["-c", get])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let wanted = format!("buslane_bridge_{wanted}");
        let lines = text.lines().filter(|line| line.starts_with(&wanted));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in 0..=self.hosts {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(host)])
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// A process, killed when it is dropped.
pub struct Process(Option<Child>);

impl Process {
    /// Starts it.
    pub fn spawn(mut command: Command) -> Self {
        Self(Some(command.spawn().unwrap()))
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    /// What it wrote, when it has ended by itself.
    pub fn output(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }

    /// Asks it to end, and waits until it has; what it wrote.
    pub fn end(self) -> String {
        let pid = Pid::from_raw(self.id() as i32);
        kill(pid, Signal::SIGTERM).unwrap();
        let output = self.output();
        assert_eq!(output.status.code(), Some(128 + 15));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The processor time that it has used.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap_or_default();
        let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let ticks: u64 = fields
            .skip(11)
            .take(2)
            .filter_map(|ticks| ticks.parse::<u64>().ok())
            .sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < LONG, "{what}: not in {LONG:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
