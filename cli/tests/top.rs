//! Looking from outside: `top`, and what `ls`, `inspect` and `doctor` tell of who sleeps, who waits and what is not done.
//!
//! Real processes, a bus of its own for each test. No test depends on the clock: where something takes a moment, the test
//! looks until it is so.
#![allow(missing_docs)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;

use buslane::{Bus, Envelope, Kind};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

struct Stage(TempDir);

impl Stage {
    fn new() -> Self {
        Self(tempfile::tempdir_in("/dev/shm").unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("bus")
    }

    fn bus(&self) -> Bus {
        Bus::at(self.path()).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_buslane"));
        command
            .env("BUSLANE_BUS", self.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, arguments: &[&str]) -> Running {
        Running(self.command(arguments).spawn().unwrap())
    }

    /// The status, and what it wrote to stdout and stderr.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = self.command(arguments).stdin(Stdio::null()).output();
        let output = output.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    }

    /// What `inspect --json` says of a topic, once it is as wanted.
    fn inspect_until(&self, topic: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let (_, report, _) = self.run(&["inspect", topic, "--json"]);
            // It may not be there yet.
            let report = serde_json::from_str(&report).unwrap_or(Value::Null);
            if is_wanted(&report) {
                return report;
            }
            thread::yield_now();
        }
    }
}

/// A process that ends with the test.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }

    fn end(mut self) -> (Option<i32>, String) {
        drop(self.0.stdin.take());
        let mut said = String::new();
        let mut stderr = self.0.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        (self.0.wait().unwrap().code(), said)
    }

    fn lines(&mut self) -> Lines {
        Lines(BufReader::new(self.0.stdout.take().unwrap()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What it prints, in JSON.
struct Lines(BufReader<ChildStdout>);

impl Lines {
    fn until(&mut self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "it has ended");
            let line = serde_json::from_str(&line).unwrap();
            if is_wanted(&line) {
                return line;
            }
        }
    }
}

const LIVE: [&str; 4] = ["top", "--json", "--interval", "20ms"];

#[test]
fn a_subscriber_that_sleeps() {
    let stage = Stage::new();
    let receiver = stage.start(&["recv", "t"]);
    let report = stage.inspect_until("t", |report| report["sleepers"] == 1);
    assert_eq!(report["cursors"][0]["sleeping"], true);
    let owner = &report["owners"][0];
    assert_eq!(owner["pid"], receiver.0.id());
    assert_eq!((&owner["cursors"], &owner["lanes"]), (&1.into(), &0.into()));
    let mut live = stage.start(&LIVE);
    live.lines().until(|topic| topic["sleepers"] == 1);
    // Dead, it does not sleep; nobody has put it away: looking does not.
    receiver.signal(Signal::SIGKILL);
    let report = stage.inspect_until("t", |report| report["sleepers"] == 0);
    assert_eq!(report["cursors"][0]["owner"]["alive"], false, "{report}");
}

#[test]
fn a_publisher_that_waits() {
    let stage = Stage::new();
    let bus = stage.bus();
    let topic = bus.topic_builder("t").capacity(4096).open().unwrap();
    let subscriber = topic.subscriber().unwrap();
    let mut sender = stage.start(&["send", "t"]);
    let mut stdin = sender.0.stdin.take().unwrap();
    let feeder = thread::spawn(move || {
        // Ends when the command does.
        while stdin.write_all(b"a message of some bytes\n").is_ok() {}
    });
    let report = stage.inspect_until("t", |report| report["waiting"] == 1);
    assert_eq!(report["lanes"][0]["waiting"], true);
    // It has not looked at that lane yet, and holds it up all the same.
    let lag = report["lag"].as_u64().unwrap();
    assert!(lag > 0, "{report}");
    assert_eq!(report["cursors"][0]["positions"][0]["sequence"], 0);
    let (status, found, _) = stage.run(&["doctor"]);
    assert_eq!(status, Some(1));
    assert!(found.contains("is most of a lane behind on t"), "{found}");
    let (_, shown, _) = stage.run(&["inspect", "t"]);
    assert!(shown.contains("waiting for a reader"), "{shown}");
    drop(subscriber);
    stage.inspect_until("t", |report| report["waiting"] == 0);
    drop(sender);
    feeder.join().unwrap();
}

#[test]
fn a_queue_of_which_nothing_is_acknowledged() {
    let stage = Stage::new();
    let queue = stage.bus().queue("jobs").unwrap();
    let mut producer = queue.producer().unwrap();
    let stamped = Envelope::new(Kind::Command).sent_now();
    for job in ["one", "two", "three"] {
        producer.push_with(&stamped, job.as_bytes()).unwrap();
    }
    let report = stage.inspect_until("jobs", |report| report["unacked"] == 3);
    assert_eq!(report["groups"][0]["oldest"]["holder"], Value::Null);

    // It never acknowledges: its command does not end.
    let worker = stage.start(&["work", "jobs", "--", "sleep", "1000000"]);
    let is_held = |report: &Value| !report["groups"][0]["oldest"]["holder"].is_null();
    let report = stage.inspect_until("jobs", is_held);
    let group = &report["groups"][0];
    let oldest = &group["oldest"];
    assert_eq!(
        (&group["name"], &group["unacked"]),
        (&"default".into(), &3.into())
    );
    assert_eq!(
        (&group["consumers"], &group["sleeping"]),
        (&1.into(), &0.into())
    );
    assert_eq!(oldest["holder"]["pid"], worker.0.id());
    assert_eq!(
        (&oldest["sequence"], &oldest["attempts"]),
        (&0.into(), &1.into())
    );
    assert!(oldest["waited_ns"].as_u64().unwrap() > 0);

    let mut live = stage.start(&LIVE);
    let mut lines = live.lines();
    let first = lines.until(|topic| topic["unacked"] == 3);
    // The longer it is watched, the longer they wait.
    let longest = |topic: &Value| topic["latency"]["max_ns"].as_u64();
    lines.until(|topic| longest(topic) > longest(&first));

    worker.signal(Signal::SIGTERM);
    assert_eq!(worker.end().0, Some(143));
    let mut consumer = queue.consumer().unwrap();
    while let Some(delivery) = consumer.try_recv().unwrap() {
        delivery.ack().unwrap();
    }
    let report = stage.inspect_until("jobs", |report| report["unacked"] == 0);
    assert_eq!(report["groups"][0]["oldest"], Value::Null);
    lines.until(|topic| topic["unacked"] == 0 && topic["waited_ns"] == 0);
}

#[test]
fn a_worker_that_holds_a_queue_up_is_named() {
    let stage = Stage::new();
    let queue = stage.bus().queue_builder("jobs").capacity(4096).open();
    let queue = queue.unwrap();
    let mut producer = queue.producer().unwrap();
    producer.push(b"a job").unwrap();
    let worker = stage.start(&["work", "jobs", "--", "sleep", "1000000"]);
    let is_held = |report: &Value| !report["groups"][0]["oldest"]["holder"].is_null();
    stage.inspect_until("jobs", is_held);
    while producer.try_push(b"another job").is_ok() {}
    let (status, found, _) = stage.run(&["doctor"]);
    assert_eq!(status, Some(1));
    let wanted = format!("buslane (pid {}) has message 0 of lane", worker.0.id());
    assert!(found.contains(&wanted), "{found}");
}

#[test]
fn what_is_lost_and_sent_is_seen_live() {
    let stage = Stage::new();
    let bus = stage.bus();
    let topic = bus.topic_builder("t").lossy(true).capacity(4096);
    let topic = topic.open().unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    let mut live = stage.start(&LIVE);
    let mut lines = live.lines();
    let first = lines.until(|topic| topic["topic"] == "t");
    assert_eq!(
        (&first["lost"], &first["msgs_per_s"]),
        (&0.into(), &0.into())
    );
    for _ in 0..1000 {
        publisher.send(b"message").unwrap();
    }
    let lost = subscriber.try_recv().unwrap_err().lost().unwrap().messages;
    lines.until(|topic| topic["msgs_per_s"].as_u64() > Some(0));
    let last = lines.until(|topic| topic["lost"] == lost);
    assert_eq!(last["messages"], 1000);
    // No message says when it was sent.
    assert_eq!(last.get("latency"), None);
}

#[test]
fn in_a_pipeline() {
    let stage = Stage::new();
    let bus = stage.bus();
    let topics = ["orders/eu", "orders/us", "ticks"].map(|name| bus.topic(name).unwrap());
    // Without --json, too: stdout is no terminal.
    let mut live = stage.start(&["top", "--interval", "20ms", "orders/*"]);
    let mut lines = live.lines();
    let seen = [
        lines.until(|_| true),
        lines.until(|_| true),
        lines.until(|_| true),
    ];
    let seen = seen.map(|line| line["topic"].clone());
    assert_eq!(seen, ["orders/eu", "orders/us", "orders/eu"]);
    bus.topic("orders/new").unwrap();
    lines.until(|topic| topic["topic"] == "orders/new");
    std::fs::write(stage.path().join("topics/orders%2Fus/topic"), "damaged").unwrap();
    let trouble = lines.until(|line| line["error"].is_string());
    assert_eq!(trouble["topic"], "orders/us");
    // Its reader goes, and so does it.
    drop(lines);
    assert_eq!(live.end(), (Some(0), String::new()));

    // The same if there was nothing to write.
    let mut silent = stage.start(&["top", "nothing/*"]);
    drop(silent.lines());
    assert_eq!(silent.end(), (Some(0), String::new()));

    let mut live = stage.start(&LIVE);
    let mut lines = live.lines();
    lines.until(|_| true);
    live.signal(Signal::SIGTERM);
    assert_eq!(live.end().0, Some(143));
    drop(topics);
}

#[test]
fn a_bus_that_vanishes() {
    let stage = Stage::new();
    let (status, _, said) = stage.run(&["top"]);
    assert_eq!(status, Some(1));
    assert!(said.starts_with("buslane: there is no bus"), "{said}");
    stage.bus().topic("t").unwrap();
    let mut live = stage.start(&LIVE);
    let mut lines = live.lines();
    lines.until(|topic| topic["topic"] == "t");
    stage.bus().remove(true).unwrap();
    let (status, said) = live.end();
    assert_eq!(status, Some(1));
    assert!(said.contains("was removed"), "{said}");
}

#[test]
fn wrong_usage() {
    let stage = Stage::new();
    stage.bus();
    for arguments in [
        &["top", "--interval", "0"][..],
        &["top", "--interval", "1ms"],
        &["top", "--interval", "soon"],
        &["top", "orders/a*"],
    ] {
        let (status, out, said) = stage.run(arguments);
        assert_eq!((status, out.as_str()), (Some(2), ""), "{said}");
    }
}

/// `top` on a terminal of its own.
struct OnTerminal {
    running: Running,
    /// Our end of the terminal; its end, and how that was before.
    ours: File,
    theirs: OwnedFd,
    before: Termios,
    shown: Vec<u8>,
}

impl OnTerminal {
    fn start(stage: &Stage) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(&size, None).unwrap();
        let end = || Stdio::from(pair.slave.try_clone().unwrap());
        let before = tcgetattr(&pair.slave).unwrap();
        let mut command = stage.command(&["top", "--interval", "20ms"]);
        let command = command.env("TERM", "xterm").stdin(end()).stdout(end());
        let running = Running(command.spawn().unwrap());
        Self {
            running,
            ours: File::from(pair.master),
            theirs: pair.slave,
            before,
            shown: Vec::new(),
        }
    }

    /// Reads until it has shown this word since the last time. (Blanks that are there already are not written again.)
    fn until(&mut self, wanted: &str) {
        let has = |shown: &[u8]| String::from_utf8_lossy(shown).contains(wanted);
        while !has(&self.shown) {
            let mut some = [0; 4096];
            let len = self.ours.read(&mut some).unwrap();
            self.shown.extend_from_slice(&some[..len]);
        }
        self.shown.clear();
    }

    fn press(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).unwrap();
    }

    /// Returns when it has ended, and the terminal is as it was: the first screen, the cursor, its settings.
    fn ends(mut self, status: i32, says: &str) {
        self.until("\x1b[?1049l");
        let (ended, said) = self.running.end();
        assert_eq!(ended, Some(status), "{said}");
        assert!(said.contains(says), "{said}");
        assert!(tcgetattr(self.theirs.as_fd()).unwrap() == self.before);
    }
}

#[test]
fn on_a_terminal() {
    let stage = Stage::new();
    let bus = stage.bus();
    let topic = bus.topic("orders/new").unwrap();
    let mut publisher = topic.publisher().unwrap();
    let mut top = OnTerminal::start(&stage);
    top.until("orders/new");
    publisher.send(b"one").unwrap();
    top.press("\r");
    top.until("LANE");
    top.press("\x1b");
    top.until("TOPIC");
    top.press("?");
    top.until("P50,");
    top.press("q");
    top.ends(0, "");

    // Ctrl-C is a key there.
    let mut top = OnTerminal::start(&stage);
    top.until("orders/new");
    top.press("\x03");
    top.ends(0, "");
}

#[test]
fn a_terminal_is_as_it_was_also_after_a_signal_and_an_error() {
    let stage = Stage::new();
    stage.bus().topic("orders/new").unwrap();
    let mut top = OnTerminal::start(&stage);
    top.until("orders/new");
    top.running.signal(Signal::SIGTERM);
    top.ends(143, "");

    let mut top = OnTerminal::start(&stage);
    top.until("orders/new");
    stage.bus().remove(true).unwrap();
    top.ends(1, "was removed");
}
