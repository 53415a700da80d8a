//! `buslane broker` as a process: its file, its signals, and what is left when it is killed.
#![allow(missing_docs, clippy::disallowed_types)] // Flags between threads of a test.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use buslane::{Bus, ErrorKind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// So often a broker is killed in a test.
const KILLS: u64 = 60;

struct Stage {
    dir: TempDir,
}

/// A broker that is killed when it is dropped.
struct Broker {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Stage {
    fn new(config: &str) -> Self {
        let stage = Self {
            dir: tempfile::tempdir_in("/dev/shm").unwrap(),
        };
        stage.write(config);
        stage
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("broker.toml")
    }

    fn write(&self, config: &str) {
        let config = config.replace("{dir}", self.dir.path().to_str().unwrap());
        fs::write(self.file(), format!("metrics = false\n{config}")).unwrap();
    }

    fn bus(&self) -> Bus {
        Bus::at(self.dir.path().join("bus")).unwrap()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_buslane"));
        command
            .arg("--bus")
            .arg(self.dir.path().join("bus"))
            .arg("broker")
            .arg(self.file())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }

    fn check(&self) -> Output {
        self.command()
            .arg("--check")
            .stderr(Stdio::piped())
            .output()
            .unwrap()
    }

    /// Returns when its routes have begun.
    fn start(&self) -> Broker {
        self.start_with(Stdio::inherit())
    }

    fn start_with(&self, stderr: Stdio) -> Broker {
        let mut child = self.command().arg("--json").stderr(stderr).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut broker = Broker { child, out };
        broker.line();
        broker
    }
}

impl Broker {
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_check_says_where_something_is_wrong() {
    let stage = Stage::new("[[route]]\nname = \"r\"\nfrom = \"a\"\nto = \"b\"\nwhere = '.n >'\n");
    let why = complaint(&stage.check());
    assert!(
        why.contains("broker.toml:6:14: expression: expected"),
        "{why}"
    );
    stage.write("[[route]]\nname = \"r\"\nfrom = \"a\"\nto = \"b\"\nwhere = '.n > 1'\n");
    let good = stage.check();
    assert!(good.status.success(), "{good:?}");
    // Nothing was made.
    assert!(!stage.dir.path().join("bus").exists());
    let missing = stage
        .command()
        .arg("--check")
        .arg("--bus")
        .arg("x")
        .output()
        .unwrap();
    assert!(missing.status.success());
    fs::remove_file(stage.file()).unwrap();
    assert!(complaint(&stage.check()).contains("cannot read it"));
}

#[test]
fn a_signal_has_it_read_its_file_again_and_another_ends_it() {
    let stage = Stage::new("[[route]]\nname = \"r\"\nfrom = \"in\"\nto = \"out\"\n");
    let bus = stage.bus();
    let mut out = bus.topic("out").unwrap().subscriber().unwrap();
    let mut publisher = bus.topic("in").unwrap().publisher().unwrap();
    let mut broker = stage.start_with(Stdio::piped());
    publisher.send(b"1").unwrap();
    assert_eq!(&*out.recv().unwrap(), b"1");

    stage.write("[[route]]\nname = \"r\"\nfrom = \"in\"\nto = \"out\"\npayload = '. + 10'\n[[route]]\nname = \"s\"\nfrom = \"x\"\nto = \"y\"\n");
    broker.signal(Signal::SIGHUP);
    let line = broker.line();
    assert_eq!(
        (&line["changed"][0], &line["started"][0]),
        (&"r".into(), &"s".into())
    );
    let sent = Instant::now();
    loop {
        // Until it has come to the new form, between two messages.
        publisher.send(b"2").unwrap();
        match &*out.recv().unwrap() {
            b"12" => break,
            other => assert_eq!(other, b"2"),
        }
        assert!(sent.elapsed() < PATIENCE);
    }

    stage.write("[[route]]\nname = \"r\"\n");
    broker.signal(Signal::SIGHUP);
    let mut told = String::new();
    let mut stderr = BufReader::new(broker.child.stderr.take().unwrap());
    while !told.contains("nothing has changed") {
        assert_ne!(stderr.read_line(&mut told).unwrap(), 0, "{told}");
    }
    assert!(told.contains("broker.toml:3:8"), "{told}");
    publisher.send(b"3").unwrap();
    assert_eq!(&*out.recv().unwrap(), b"13");

    broker.signal(Signal::SIGTERM);
    assert_eq!(broker.child.wait().unwrap().code(), Some(128 + 15));
    drop((out, publisher));
    assert_eq!(bus.members().unwrap().len(), 1);
}

/// Kills it at another place each time.
fn kill_often(stage: &Stage, at_once: usize, is_over: &AtomicBool) {
    let mut brokers: Vec<Broker> = (0..at_once).map(|_| stage.start()).collect();
    for kills in 0..KILLS {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(Duration::from_micros(1000 + 7919 * kills % 30_000));
        drop(brokers.remove(0));
        brokers.push(stage.start());
    }
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Takes `count` numbers, each once, from a queue.
fn take_all(bus: &Bus, queue: &str, count: u64) {
    let mut consumer = bus.queue(queue).unwrap().consumer().unwrap();
    let mut seen = HashMap::new();
    while (seen.len() as u64) < count {
        let Some(delivery) = consumer.recv_timeout(PATIENCE).unwrap() else {
            let missing = (0..count).find(|n| !seen.contains_key(n));
            panic!(
                "{} of {count} came; the first that is missing is {missing:?}",
                seen.len()
            );
        };
        let n: u64 = str::from_utf8(&delivery).unwrap().parse().unwrap();
        let before = seen.insert(n, delivery.envelope().unwrap().origin());
        assert_eq!(
            before,
            None,
            "{n} came twice, now from {:?}",
            delivery.envelope()
        );
        delivery.ack().unwrap();
    }
    assert!(
        consumer
            .recv_timeout(Duration::from_millis(200))
            .unwrap()
            .is_none()
    );
}

const STORE_AND_FORWARD: &str = r#"
    [bus.archive]
    path = "{dir}/archive"
    durable = true
    [[route]]
    name = "store"
    queue = "in"
    to = "kept"
    to_bus = "archive"
    [[route]]
    name = "forward"
    from_bus = "archive"
    from = "kept"
    to_queue = "out"
    "#;

/// From a volatile bus to a durable one and back, while brokers are killed: each message once.
fn store_and_forward(at_once: usize, count: u64) {
    let stage = Stage::new(STORE_AND_FORWARD);
    let bus = stage.bus();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| kill_often(&stage, at_once, &is_over));
        scope.spawn(|| {
            let mut producer = bus.queue("in").unwrap().producer().unwrap();
            for n in 0..count {
                producer.push(n.to_string().as_bytes()).unwrap();
                if n % 64 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let taken = scope.spawn(|| take_all(&bus, "out", count)).join();
        is_over.store(true, Ordering::Relaxed);
        taken.unwrap();
    });
}

#[test]
fn nothing_is_missing_and_nothing_comes_twice_when_a_broker_is_killed() {
    store_and_forward(1, 20_000);
}

#[test]
fn nor_when_two_share_the_work() {
    store_and_forward(2, 20_000);
}

/// A topic that is not durable: as far as its publisher still holds what it sent.
#[test]
fn a_topic_goes_on_where_it_was_when_a_broker_is_killed() {
    let stage = Stage::new("[[route]]\nname = \"r\"\nfrom = \"in\"\nto_queue = \"out\"\n");
    let bus = stage.bus();
    let count = 20_000_u64;
    let mut publisher = bus.topic("in").unwrap().publisher().unwrap();
    let broker = stage.start();
    publisher.send(b"0").unwrap();
    let mut consumer = bus
        .queue("out")
        .unwrap()
        .consumer_builder()
        .group("first")
        .open()
        .unwrap();
    // From here on the route has a place to go on from.
    let first = Instant::now();
    while bus.inspect("out").unwrap().messages() == 0 {
        assert!(first.elapsed() < PATIENCE);
    }
    assert!(consumer.try_recv().is_ok());
    drop(consumer);
    bus.queue("out")
        .unwrap()
        .remove_group("first", false)
        .unwrap();
    drop(broker);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| kill_often(&stage, 1, &is_over));
        scope.spawn(|| {
            for n in 1..count {
                publisher.send(n.to_string().as_bytes()).unwrap();
                if n % 16 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let taken = scope.spawn(|| take_all(&bus, "out", count)).join();
        is_over.store(true, Ordering::Relaxed);
        taken.unwrap();
    });
}

#[test]
fn another_stands_by_and_goes_on_at_once() {
    let stage = Stage::new("[[route]]\nname = \"r\"\nfrom = \"in\"\nto = \"out\"\n");
    let bus = stage.bus();
    let mut out = bus.topic("out").unwrap().subscriber().unwrap();
    let mut publisher = bus.topic("in").unwrap().publisher().unwrap();
    let (first, _second) = (stage.start(), stage.start());
    publisher.send(b"1").unwrap();
    assert_eq!(&*out.recv().unwrap(), b"1");
    drop(first);
    publisher.send(b"2").unwrap();
    let next = loop {
        match out.recv_timeout(PATIENCE) {
            Err(e) if e.kind() == ErrorKind::Ended => {}
            frame => break frame.unwrap().unwrap(),
        }
    };
    assert_eq!(&*next, b"2");
}

/// The bridge is a program of its own: here one that says what it was started as.
#[test]
fn a_bridge_runs_beside_it_and_ends_with_it() {
    use std::os::unix::fs::PermissionsExt;
    let stage = Stage::new("[[bridge]]\nzenoh = [\"orders/**\", \"--prefix\", \"p\"]\n");
    let dir = stage.dir.path();
    let program = dir.join("buslane-bridge-zenoh");
    let said = dir.join("said");
    // The first one ends by itself, and another is started.
    let script = format!(
        "#!/bin/sh\necho \"$BUSLANE_BUS\" \"$@\" >> {0}\n[ $(wc -l < {0}) = 1 ] && exit 7\necho $$ > {0}.pid\nexec sleep 1000\n",
        said.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let ours = dir.join("buslane");
    fs::copy(env!("CARGO_BIN_EXE_buslane"), &ours).unwrap();
    let mut child = Command::new(&ours)
        .arg("--bus")
        .arg(dir.join("bus"))
        .args(["broker".as_ref(), stage.file().as_os_str()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let pid = loop {
        assert!(begun.elapsed() < PATIENCE);
        let pid = fs::read_to_string(dir.join("said.pid")).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse() {
            break Pid::from_raw(pid);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let line = format!("{} orders/** --prefix p\n", dir.join("bus").display());
    assert_eq!(fs::read_to_string(&said).unwrap(), line.repeat(2));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(kill(pid, None).is_err(), "the bridge is still there");

    fs::remove_file(&program).unwrap();
    let output = Command::new(&ours)
        .arg("--bus")
        .arg(dir.join("bus"))
        .args(["broker".as_ref(), stage.file().as_os_str()])
        .env("PATH", dir)
        .output()
        .unwrap();
    assert!(complaint(&output).contains("cargo install --path bridge"));
}
