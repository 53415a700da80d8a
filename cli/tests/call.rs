//! `buslane call` and `buslane serve`, as a shell uses them.
#![allow(missing_docs)]

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn buslane(bus: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_buslane"));
    command.arg("--bus").arg(bus).args(arguments);
    command.stdin(Stdio::null());
    command
}

fn call(bus: &Path, arguments: &[&str]) -> Output {
    let arguments = [&["call"], arguments].concat();
    buslane(bus, &arguments).output().unwrap()
}

fn said(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    str::from_utf8(&output.stdout).unwrap()
}

/// A server that ends with its test.
struct Serving(Child);

impl Serving {
    fn start(bus: &Path, arguments: &[&str]) -> Self {
        let arguments = [&["serve"], arguments].concat();
        Self(buslane(bus, &arguments).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_request_is_answered() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bus = &dir.path().join("bus");
    let _servers = [0, 1].map(|_| Serving::start(bus, &["upper", "--", "tr", "a-z", "A-Z"]));
    // It waits for one.
    assert_eq!(said(&call(bus, &["upper", "--data", "hello"])), "HELLO");
    let json = call(bus, &["upper", "--data", "hello", "--json"]);
    assert_eq!(said(&json), "{\"len\":5,\"data\":\"HELLO\"}\n");
    let document = [
        "upper",
        "--data",
        "a",
        "--kind",
        "document",
        "--deadline",
        "0",
    ];
    assert_eq!(said(&call(bus, &document)), "A");
    assert_eq!(
        said(&call(bus, &["upper", "--data", "a", "--stream"])),
        "A\n"
    );
    // All of stdin, byte by byte.
    let mut piped = buslane(bus, &["call", "upper"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = b"line\n\0line".repeat(5000);
    piped.stdin.take().unwrap().write_all(&text).unwrap();
    let output = piped.wait_with_output().unwrap();
    assert!(output.stdout == text.to_ascii_uppercase());
}

/// What waits for a server can be looked at, and where its reply goes.
#[test]
fn a_request_is_inspected() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("bus");
    let bus = buslane::Bus::at(&path).unwrap();
    let client = bus.service("a").unwrap().client().unwrap();
    let options = buslane::CallOptions::new().wait_for_server();
    let options = options
        .timeout(std::time::Duration::from_secs(60))
        .stamped();
    let _pending = client.start_with(&options, b"pears").unwrap();
    let mut server = bus.service("a").unwrap().server().unwrap();
    let mut next = bus.service("b").unwrap().producer().unwrap();
    server.recv().unwrap().forward(&mut next, b"pears").unwrap();
    let arguments = ["inspect", "b", "--tail", "1", "--json"];
    let output = buslane(&path, &arguments).output().unwrap();
    let shown: serde_json::Value = serde_json::from_str(said(&output)).unwrap();
    let envelope = &shown["tail"][0]["envelope"];
    assert_eq!(envelope["kind"], "command", "{shown}");
    assert_eq!(envelope["trace"], serde_json::json!(["a"]));
    assert_eq!(envelope["reply_to"].as_str().unwrap().len(), 16);
    assert!(envelope["time_left_ns"].as_u64().unwrap() > 0);
    assert!(envelope["sent_ns"].is_u64() && envelope["correlation"] == 1);
}

#[test]
fn what_is_not_answered() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bus = &dir.path().join("bus");
    let fails = |arguments: &[&str], status: i32, why: &str| {
        let output = call(bus, arguments);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.contains(why) && line.lines().count() == 1, "{line}");
        assert_eq!(output.stdout, b"");
    };
    fails(
        &["nobody", "--data", "?", "--deadline", "50ms"],
        3,
        "no server came",
    );
    let _refusing = Serving::start(bus, &["bad", "--", "sh", "-c", "exit 7"]);
    fails(&["bad", "--data", "?"], 1, "(code 7)");
    let slow = Serving::start(bus, &["slow", "--", "sleep", "30"]);
    fails(
        &["slow", "--data", "?", "--deadline", "500ms"],
        3,
        "in time",
    );
    let asking = buslane(bus, &["call", "slow", "--data", "?", "--deadline", "1m"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    slow.signal(Signal::SIGKILL);
    let output = asking.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let status = call(bus, &["slow", "--data", "?", "--deadline", "soon"]).status;
    assert_eq!(status.code(), Some(2));
}

#[test]
fn a_server_ends_with_a_signal_and_leaves_nothing() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bus = &dir.path().join("bus");
    let mut serving = Serving::start(bus, &["upper", "--", "tr", "a-z", "A-Z"]);
    assert_eq!(said(&call(bus, &["upper", "--data", "hello"])), "HELLO");
    serving.signal(Signal::SIGTERM);
    assert_eq!(serving.0.wait().unwrap().code(), Some(143));
    let names = |under: &str| {
        let entries = std::fs::read_dir(bus.join(under)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names("topics"), ["upper"]);
    assert_eq!(names("topics/upper"), ["group.default", "locks", "topic"]);
    assert!(names("members").is_empty());
}
