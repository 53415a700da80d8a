//! The command as a person or a script meets it: real processes, a bus of its own for each test.
//!
//! No test depends on the clock; the one timeout is there so that a hang is a failure.

#[path = "../../tests/common/skipped.rs"]
mod skipped;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use buslane::{Bus, Envelope, ErrorKind, Kind, Topic};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use self::skipped::skipped;

const HANG: Duration = Duration::from_secs(60);

/// A private bus, and the command on it.
struct Stage {
    dir: TempDir,
}

impl Stage {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir_in("/dev/shm").unwrap(),
        }
    }

    fn bus(&self) -> PathBuf {
        self.dir.path().join("bus")
    }

    fn start(&self, arguments: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_buslane"))
            .env("BUSLANE_BUS", self.bus())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs it with this stdin.
    fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        finish(self.start(arguments), input)
    }

    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.run(arguments, b"");
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        text(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// A lossy topic with room for some hundred short messages, which no command makes.
    fn lossy(&self, name: &str) -> Topic {
        let bus = Bus::at(self.bus()).unwrap();
        let builder = bus.topic_builder(name).lossy(true).capacity(16 << 10);
        builder.open().unwrap()
    }

    /// Returns when a topic has so many subscribers, or publishers.
    fn wait_for(&self, topic: &str, who: &str, count: u64) {
        while self.run(&["ls", topic, "--json"], b"").stdout.is_empty()
            || self.json(&["ls", topic, "--json"])[0][who] != count
        {
            thread::yield_now();
        }
    }

    /// Names of the files that processes make for themselves.
    fn leftovers(&self) -> Vec<String> {
        let names = |path: PathBuf| -> Vec<String> {
            fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        };
        let mut left = names(self.bus().join("members"));
        for topic in names(self.bus().join("topics")) {
            left.extend(
                names(self.bus().join("topics").join(topic))
                    .into_iter()
                    // What a topic, and a queue, is made with, or keeps.
                    .filter(|name| !["topic", "locks", "group.default"].contains(&&**name)),
            );
        }
        left
    }
}

/// Gives it its stdin and waits for its end.
fn finish(mut child: Child, input: &[u8]) -> Output {
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A command that ends early does not read all.
    thread::spawn(move || drop(stdin.write_all(&input)));
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(child.wait_with_output().unwrap()));
    receive.recv_timeout(HANG).unwrap_or_else(|_| {
        kill(pid, Signal::SIGKILL).unwrap();
        panic!("the command hangs");
    })
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// Returns when it has stopped.
fn stop(child: &Child) {
    signal(child, Signal::SIGSTOP);
    let pid = Pid::from_raw(child.id().cast_signed());
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn stderr(output: &Output) -> &str {
    text(&output.stderr)
}

fn assert_status(output: &Output, status: i32) {
    assert_eq!(output.status.code(), Some(status), "{}", stderr(output));
    if matches!(status, 0 | 128..) {
        assert_eq!(stderr(output), "");
    } else {
        assert!(
            stderr(output).starts_with("buslane: "),
            "{}",
            stderr(output)
        );
        assert_eq!(stderr(output).lines().count(), 1, "{}", stderr(output));
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn len32(messages: &[&[u8]]) -> Vec<u8> {
    let frame = |message: &&[u8]| [&(message.len() as u32).to_le_bytes()[..], message].concat();
    messages.iter().flat_map(frame).collect()
}

/// Sends `input` and expects `output` from one `recv`.
#[track_caller]
fn passes(send: &[&str], recv: &[&str], input: &[u8], output: &[u8]) {
    let stage = Stage::new();
    let receiver = stage.start(&[&["recv", "t"], recv].concat());
    let received = thread::spawn(move || finish(receiver, b""));
    assert_status(&stage.run(&[&["send", "t"], send].concat(), input), 0);
    let received = received.join().unwrap();
    assert_status(&received, 0);
    assert!(
        received.stdout == output,
        "{} bytes of {}",
        received.stdout.len(),
        output.len()
    );
    assert_eq!(stage.leftovers(), Vec::<String>::new());
}

#[test]
fn lines() {
    passes(&[], &[], b"one\n\nthree", b"one\n\nthree\n");
    passes(&[], &["--frame", "null"], b"one\ntwo\n", b"one\0two\0");
    passes(&[], &[], b"", b"");
}

#[test]
fn null() {
    let frame = ["--frame", "null"];
    passes(&frame, &frame, b"one\nline\0\0two", b"one\nline\0\0two\0");
}

#[test]
fn chunks_are_byte_exact() {
    let input = noise(20 << 20);
    passes(&["--frame", "chunk"], &["--frame", "chunk"], &input, &input);
    passes(
        &["--frame", "chunk=1000"],
        &["--frame", "chunk"],
        &input[..100_001],
        &input[..100_001],
    );
}

#[test]
fn len32_frames_hold_anything() {
    let large = noise(1 << 20);
    let input = len32(&[b"", b"a\0b\n", &large, b""]);
    passes(&["--frame", "len32"], &["--frame", "len32"], &input, &input);
    passes(
        &["--frame", "len32"],
        &["--frame", "chunk"],
        &input,
        &[b"a\0b\n", &large[..]].concat(),
    );
}

#[test]
fn a_cut_len32_stream_is_an_error() {
    let stage = Stage::new();
    for input in [&[1, 0][..], &[5, 0, 0, 0, b'a']] {
        let output = stage.run(&["send", "t", "--no-wait", "--frame", "len32"], input);
        assert_status(&output, 1);
    }
}

#[test]
fn many_small_messages() {
    let input: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    passes(&[], &[], input.as_bytes(), input.as_bytes());
}

#[test]
fn each_receiver_gets_all() {
    let stage = Stage::new();
    let receivers: Vec<_> = (0..3).map(|_| stage.start(&["recv", "t"])).collect();
    stage.wait_for("t", "subscribers", 3);
    assert_status(&stage.run(&["send", "t"], b"a\nb\nc\n"), 0);
    for receiver in receivers {
        let output = finish(receiver, b"");
        assert_status(&output, 0);
        assert_eq!(text(&output.stdout), "a\nb\nc\n");
    }
}

#[test]
fn several_topics_at_once() {
    let stage = Stage::new();
    let receiver = stage.start(&["recv", "a", "b", "never/used"]);
    stage.wait_for("never/used", "subscribers", 1);
    // While one of them is there, it stays.
    let publisher = stage.start(&["send", "a"]);
    stage.wait_for("a", "publishers", 1);
    assert_status(&stage.run(&["send", "b"], b"1\n"), 0);
    assert_status(&finish(publisher, b"2\n"), 0);
    let output = finish(receiver, b"");
    assert_status(&output, 0);
    assert_eq!(text(&output.stdout), "1\n2\n");
}

#[test]
fn follow_stays() {
    let stage = Stage::new();
    let receiver = stage.start(&["recv", "t", "--follow", "--count", "2"]);
    assert_status(&stage.run(&["send", "t"], b"1\n"), 0);
    assert_status(&stage.run(&["send", "t"], b"2\n"), 0);
    let output = finish(receiver, b"");
    assert_status(&output, 0);
    assert_eq!(text(&output.stdout), "1\n2\n");
}

#[test]
fn envelopes_in_json() {
    let stage = Stage::new();
    let topic = Bus::at(stage.bus()).unwrap().topic("t").unwrap();
    let receiver = stage.start(&["recv", "t", "--json", "--count", "2"]);
    let mut publisher = topic.publisher().unwrap();
    publisher.wait_for_subscribers(1, None).unwrap();
    let envelope = Envelope::new(Kind::Document).of_type("shop.Order");
    let envelope = envelope.correlated(7).sent_now();
    publisher.send_with(&envelope, b"pears").unwrap();
    publisher.send(b"plain").unwrap();
    let whole = &stage.json(&["inspect", "t", "--tail", "2", "--json"])[0];
    let received = finish(receiver, b"");
    let lines: Vec<Value> = text(&received.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for seen in [&whole["tail"][0], &lines[0]] {
        assert_eq!((&seen["data"], &seen["len"]), (&"pears".into(), &5.into()));
        let envelope = &seen["envelope"];
        assert_eq!(
            (&envelope["kind"], &envelope["type"]),
            (&"document".into(), &"shop.Order".into())
        );
        assert_eq!(envelope["correlation"], 7);
        assert!(envelope["sent_ns"].is_u64());
    }
    assert_eq!(lines[1]["envelope"], Value::Null);
    let people = stage.run(&["inspect", "t", "--tail", "2"], b"");
    assert!(text(&people.stdout).contains("document"));
}

#[test]
fn json_lines() {
    let stage = Stage::new();
    let receiver = stage.start(&["recv", "t", "--json"]);
    let sent = stage.start(&["send", "t", "--frame", "len32", "--json"]);
    let sent = finish(sent, &len32(&["grün".as_bytes(), b"\xff\x00"]));
    assert_status(&sent, 0);
    assert_eq!(text(&sent.stdout), "{\"messages\":2,\"bytes\":7}\n");
    let output = finish(receiver, b"");
    let lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[0]["topic"], &lines[0]["sequence"], &lines[0]["len"]),
        (&"t".into(), &0.into(), &5.into())
    );
    assert_eq!(
        (&lines[0]["data"], &lines[0]["data_hex"]),
        (&"grün".into(), &Value::Null)
    );
    assert_eq!(
        (&lines[1]["data"], &lines[1]["data_hex"]),
        (&Value::Null, &"ff00".into())
    );
    assert!(lines[0]["lane"].is_u64());
}

#[test]
fn a_receiver_that_has_enough() {
    let stage = Stage::new();
    let receiver = stage.start(&["recv", "t", "--count", "2"]);
    let sent = stage.run(&["send", "t"], b"1\n2\n");
    assert_status(&sent, 0); // it left with everything
    assert_eq!(text(&finish(receiver, b"").stdout), "1\n2\n");

    let receiver = stage.start(&["recv", "t", "--count", "2"]);
    let sent = stage.run(&["send", "t"], b"1\n2\n3\n");
    assert_status(&sent, 4);
    assert_eq!(text(&finish(receiver, b"").stdout), "1\n2\n");
    assert_eq!(stage.leftovers(), Vec::<String>::new());
}

#[test]
fn a_killed_receiver() {
    let stage = Stage::new();
    let mut receiver = stage.start(&["recv", "t", "--frame", "chunk"]);
    let sender = stage.start(&["send", "t", "--frame", "chunk"]);
    let sent = thread::spawn(move || finish(sender, &noise(32 << 20)));
    // Mid-way: it has begun, and nobody takes what it writes.
    receiver
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 100_000])
        .unwrap();
    signal(&receiver, Signal::SIGKILL);
    receiver.wait().unwrap();
    assert_status(&sent.join().unwrap(), 4);
}

#[test]
fn a_killed_sender() {
    let stage = Stage::new();
    let mut receiver = stage.start(&["recv", "t"]);
    let mut sender = stage.start(&["send", "t"]);
    sender
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"before\n")
        .unwrap();
    receiver
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 7])
        .unwrap();
    signal(&sender, Signal::SIGKILL);
    sender.wait().unwrap();
    // All that is left is that it ends; and nothing is in the way of the next.
    assert_status(&finish(receiver, b""), 0);
    let receiver = stage.start(&["recv", "t"]);
    assert_status(&stage.run(&["send", "t"], b"after\n"), 0);
    assert_eq!(text(&finish(receiver, b"").stdout), "after\n");
    assert_eq!(stage.leftovers(), Vec::<String>::new());
}

#[test]
fn a_closed_stdout_is_no_error() {
    for arguments in [
        &["recv", "t"][..],
        &["recv", "t", "--frame", "chunk"],
        &["recv", "t", "--json"],
    ] {
        let stage = Stage::new();
        let mut receiver = stage.start(arguments);
        let sender = stage.start(&["send", "t", "--frame", "chunk"]);
        let sent = thread::spawn(move || finish(sender, &noise(8 << 20)));
        receiver
            .stdout
            .take()
            .unwrap()
            .read_exact(&mut [0; 10])
            .unwrap();
        assert_status(&finish(receiver, b""), 0);
        assert_status(&sent.join().unwrap(), 4);
        assert_eq!(stage.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn signals_leave_nothing_behind() {
    for number in [Signal::SIGTERM, Signal::SIGINT] {
        let stage = Stage::new();
        let ended = |child: Child| {
            signal(&child, number);
            assert_status(&finish(child, b""), 128 + number as i32);
        };

        let receiver = stage.start(&["recv", "t"]);
        stage.wait_for("t", "subscribers", 1);
        ended(receiver); // waiting for a publisher
        assert_eq!(stage.leftovers(), Vec::<String>::new());

        let sender = stage.start(&["send", "t"]);
        stage.wait_for("t", "publishers", 1);
        ended(sender); // waiting for a subscriber
        let sender = stage.start(&["send", "t", "--no-wait"]);
        stage.wait_for("t", "publishers", 1);
        ended(sender); // waiting for stdin
        assert_eq!(stage.leftovers(), Vec::<String>::new());

        let mut receiver = stage.start(&["recv", "t", "--frame", "chunk"]);
        let mut sender = stage.start(&["send", "t", "--frame", "chunk"]);
        let mut stdin = sender.stdin.take().unwrap();
        let writer = thread::spawn(move || drop(stdin.write_all(&noise(32 << 20))));
        receiver
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut [0; 10])
            .unwrap();
        while stage.json(&["ls", "t", "--json"])[0]["bytes"]
            .as_u64()
            .unwrap()
            < 1 << 20
        {
            thread::yield_now();
        }
        signal(&sender, number); // waiting for room, or about to
        assert_eq!(sender.wait().unwrap().code(), Some(128 + number as i32));
        writer.join().unwrap();
        signal(&receiver, number); // waiting for its stdout
        assert_eq!(receiver.wait().unwrap().code(), Some(128 + number as i32));
        assert_eq!(stage.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn a_message_that_is_too_long() {
    let stage = Stage::new();
    let long = noise(5000)
        .into_iter()
        .map(|byte| byte | 128)
        .collect::<Vec<_>>();
    let sender = stage.start(&["send", "t", "--capacity", "4KiB"]);
    stage.wait_for("t", "publishers", 1);
    let receiver = stage.start(&["recv", "t"]);
    let sent = finish(sender, &[b"short\n", &long[..], b"\nnever\n"].concat());
    assert_status(&sent, 1);
    assert!(
        stderr(&sent).contains("longer than the 1472 bytes"),
        "{}",
        stderr(&sent)
    );
    assert_eq!(text(&finish(receiver, b"").stdout), "short\n");

    for (frame, input) in [("chunk", &b"a"[..]), ("len32", &[0, 0, 1, 0])] {
        let sent = stage.run(&["send", "t", "--no-wait", "--frame", frame], input);
        assert_status(&sent, 1);
        assert!(
            stderr(&sent).contains("longer than the 1472 bytes"),
            "{}",
            stderr(&sent)
        );
    }
}

#[test]
fn wrong_usage() {
    let stage = Stage::new();
    for arguments in [
        &["send", "t", "--nonsense"][..],
        &["recv"],
        &["nonsense"],
        &[],
        &["send", "t", "--frame", "chunk=0"],
        &["send", "t", "--frame", "words"],
        &["send", "t", "--capacity", "much"],
        &["send", "a//b"],
        &["bench", "rate", "--against", "raw"],
        &["bench", "rtt", "--cpus", "0"],
        &["bench", "rtt", "--cpus", "0,1023"],
        &["bench", "rtt", "--capacity", "1000"],
        &["bench", "rtt", "--size", "0"],
        &["bench", "rtt", "--cpus", "0,0,0"],
        &["bench", "rate", "--peers", "2"],
        &["bench", "fanout", "--peers", "0"],
        &["bench", "fanin", "--against", "raw"],
        &["recv", "t", "--from", "tomorrow"],
    ] {
        let output = stage.run(arguments, b"");
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn looking_makes_nothing() {
    let stage = Stage::new();
    for arguments in [&["ls"][..], &["inspect", "t"]] {
        let output = stage.run(arguments, b"");
        assert_status(&output, 1);
        assert!(stderr(&output).contains("--bus"), "{}", stderr(&output));
    }
    assert!(!stage.bus().exists());
    assert_status(&stage.run(&["send", "t", "--no-wait"], b""), 0);
    assert_status(&stage.run(&["inspect", "nosuch"], b""), 1);
    assert_status(&stage.run(&["ls", "nosuch"], b""), 1);
}

const MANY: u64 = 20_000;

/// What `recv` and `send` say when the numbers up to `MANY` are sent on a lossy topic, all but the first of them
/// while `recv` is stopped.
fn past_a_stopped_receiver(recv: &[&str]) -> (Output, Output) {
    let stage = Stage::new();
    stage.lossy("t");
    let receiver = stage.start(&[&["recv", "t"], recv].concat());
    let mut sender = stage.start(&["send", "t"]);
    let first = sender.stdin.as_mut().unwrap().write_all(b"0\n");
    first.unwrap();
    let received_it = || {
        let report = &stage.json(&["inspect", "t", "--json"])[0];
        report["messages"] == 1 && report["cursors"][0]["positions"][0]["lag"] == 0
    };
    while !received_it() {
        thread::yield_now();
    }
    stop(&receiver);

    let rest: String = (1..MANY).map(|number| format!("{number}\n")).collect();
    let sender = thread::spawn(move || finish(sender, rest.as_bytes()));
    while stage.json(&["ls", "t", "--json"])[0]["messages"] != MANY {
        assert!(!sender.is_finished());
    }
    signal(&receiver, Signal::SIGCONT);
    let (received, sent) = (finish(receiver, b""), sender.join().unwrap());
    assert_eq!(stage.leftovers(), Vec::<String>::new());
    (received, sent)
}

#[test]
fn what_was_lost_is_told() {
    let (received, sent) = past_a_stopped_receiver(&[]);
    assert_status(&sent, 0);
    assert_eq!(received.status.code(), Some(0));
    let numbers: Vec<u64> = text(&received.stdout)
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert!(numbers.len() > 2 && numbers[0] == 0);
    assert!(numbers[1..].iter().copied().eq(numbers[1]..MANY));
    let lost = numbers[1] - 1;
    let bytes: usize = (1..numbers[1]).map(|lost| lost.to_string().len()).sum();
    assert_eq!(
        stderr(&received),
        format!("buslane: t: {lost} messages ({bytes} bytes) lost here\n")
    );
}

#[test]
fn what_was_lost_is_told_in_its_place() {
    let (received, sent) = past_a_stopped_receiver(&["--json"]);
    assert_status(&sent, 0);
    assert_status(&received, 0);
    let lines: Vec<Value> = text(&received.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["data"], "0");
    let gap = &lines[1];
    assert_eq!(
        keys(gap),
        BTreeSet::from(["topic", "lane", "lost", "lost_bytes"])
    );
    assert_eq!(
        (&gap["topic"], &gap["lane"]),
        (&"t".into(), &lines[0]["lane"])
    );
    let next = 1 + gap["lost"].as_u64().unwrap();
    assert_eq!(
        (&lines[2]["data"], &lines[2]["sequence"]),
        (&next.to_string().into(), &next.into())
    );
}

#[test]
fn where_nothing_may_be_lost() {
    for (arguments, lines) in [(&["--strict"][..], 1), (&["--strict", "--json"], 2)] {
        let (received, sent) = past_a_stopped_receiver(arguments);
        assert_status(&received, 5);
        assert!(
            stderr(&received).contains("larger capacity"),
            "{}",
            stderr(&received)
        );
        assert_eq!(text(&received.stdout).lines().count(), lines);
        assert_status(&sent, 4);
    }
}

#[test]
fn only_messages_count() {
    let (received, _) = past_a_stopped_receiver(&["--count", "3"]);
    assert_eq!(received.status.code(), Some(0));
    assert_eq!(text(&received.stdout).lines().count(), 3);
}

#[test]
fn from_the_oldest() {
    let stage = Stage::new();
    let mut sender = stage.start(&["send", "t", "--no-wait"]);
    let sent = sender.stdin.as_mut().unwrap().write_all(b"1\n2\n");
    sent.unwrap();
    stage.wait_for("t", "messages", 2);
    let late = stage.start(&["recv", "t", "--count", "1"]);
    stage.wait_for("t", "subscribers", 1);
    let output = stage.run(&["recv", "t", "--from", "oldest", "--count", "2"], b"");
    assert_status(&output, 0);
    assert_eq!(text(&output.stdout), "1\n2\n");
    assert_status(&finish(sender, b"3\n"), 0);
    assert_eq!(text(&finish(late, b"").stdout), "3\n");
}

#[test]
fn what_was_lost_is_shown() {
    let stage = Stage::new();
    let topic = stage.lossy("t");
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    for _ in 0..MANY {
        publisher.send(b"message").unwrap();
    }
    let error = subscriber.try_recv().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    let lost = error.lost().unwrap().messages;

    let listed = &stage.json(&["ls", "--json"])[0];
    assert_eq!(
        (&listed["pattern"], &listed["lost"]),
        (&"lossy".into(), &lost.into())
    );
    let report = &stage.json(&["inspect", "t", "--json"])[0];
    assert_eq!(report["lost"], lost);
    assert_eq!(report["cursors"][0]["positions"][0]["lost"], lost);
    for arguments in [&["ls", "--long"][..], &["inspect", "t"]] {
        let shown = stage.run(arguments, b"");
        assert!(
            text(&shown.stdout).contains(&lost.to_string()),
            "{}",
            text(&shown.stdout)
        );
    }
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

const SUMMARY: [&str; 12] = [
    "topic",
    "pattern",
    "type",
    "publishers",
    "subscribers",
    "bytes",
    "messages",
    "lag",
    "lost",
    "sleepers",
    "waiting",
    "unacked",
];

#[test]
fn ls_and_inspect() {
    let stage = Stage::new();
    let receiver = stage.start(&["recv", "some/topic"]);
    stage.wait_for("some/topic", "subscribers", 1);
    let mut sender = stage.start(&["send", "some/topic"]);
    sender
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"first\nsecond\nthird\n")
        .unwrap();
    while stage.json(&["ls", "--json"])[0]["messages"] != 3 {
        thread::yield_now();
    }

    let topics = stage.json(&["ls", "--long", "--json"]);
    assert_eq!(topics.len(), 1);
    assert_eq!(keys(&topics[0]), BTreeSet::from(SUMMARY));
    assert_eq!(topics[0]["topic"], "some/topic");
    assert_eq!(topics[0]["publishers"], 1);
    assert_eq!(topics[0]["bytes"], 16);

    let reports = stage.json(&["inspect", "some/topic", "--json", "--tail", "2"]);
    let report = &reports[0];
    assert!(
        keys(report).is_superset(&BTreeSet::from(SUMMARY)),
        "{report}"
    );
    for (part, owner) in [("lanes", &sender), ("cursors", &receiver)] {
        let part = &report[part][0];
        assert!(part["id"].is_u64() && part["position"].is_u64(), "{report}");
        assert_eq!(part["owner"]["pid"], owner.id(), "{report}");
        assert_eq!(part["owner"]["name"], "buslane");
        assert_eq!(part["owner"]["alive"], true);
    }
    let tail: Vec<_> = report["tail"]
        .as_array()
        .unwrap()
        .iter()
        .map(|seen| &seen["data"])
        .collect();
    assert_eq!(tail, ["second", "third"]);

    let table = stage.run(&["ls", "--long"], b"");
    assert!(text(&table.stdout).contains("some/topic"));
    let whole = stage.run(&["inspect", "some/topic", "--tail", "1"], b"");
    assert!(text(&whole.stdout).contains("third") && !text(&whole.stdout).contains("second"));

    assert_status(&finish(sender, b""), 0);
    assert_status(&finish(receiver, b""), 0);
}

#[test]
fn help_in_all_its_forms() {
    let stage = Stage::new();
    for arguments in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["man"],
        &["help"],
        &["send", "--help"],
    ] {
        let output = stage.run(arguments, b"");
        assert_status(&output, 0);
        assert!(text(&output.stdout).contains("send"), "{arguments:?}");
        assert!(
            !text(&output.stdout).contains("demo-actor")
                && !text(&output.stdout).contains("bench-peer"),
            "{arguments:?}: our other processes are nobody's command"
        );
    }
    assert!(!stage.bus().exists());
}

/// One round of a benchmark, on any machine.
fn bench(arguments: &[&str]) -> Vec<Value> {
    let stage = Stage::new();
    let reports = stage.json(
        &[
            &["bench", "--json", "--rounds", "1", "--size", "64"],
            arguments,
        ]
        .concat(),
    );
    assert!(!stage.bus().exists());
    reports
}

fn assert_reports(reports: &[Value], bench: &str, figures: &[&str], transports: &[&str]) {
    assert_eq!(
        reports
            .iter()
            .map(|report| report["transport"].as_str().unwrap())
            .collect::<Vec<_>>(),
        transports
    );
    let common = ["bench", "transport", "size", "placement", "rounds"];
    let mut expected: BTreeSet<_> = common.iter().chain(figures).copied().collect();
    let reference = transports.get(1);
    for report in reports {
        assert_eq!(
            (&report["bench"], &report["size"], &report["rounds"]),
            (&bench.into(), &64.into(), &1.into())
        );
        assert!(
            ["near", "far"].contains(&report["placement"].as_str().unwrap()),
            "{report}"
        );
        for figure in figures {
            assert!(report[figure].as_u64().unwrap() > 0, "{report}");
        }
        if reference.is_none_or(|reference| report["transport"] == *reference) {
            expected.remove("ratio");
        } else {
            expected.insert("ratio");
            assert_eq!(
                keys(&report["ratio"]),
                BTreeSet::from(["to", "median", "min", "max"])
            );
            assert_eq!(report["ratio"]["to"], reference.copied().unwrap());
        }
        assert_eq!(keys(report), expected, "{report}");
    }
}

const PERCENTILES: [&str; 4] = ["p50_ns", "p90_ns", "p99_ns", "p999_ns"];

#[test]
fn bench_rtt() {
    let reports = bench(&["rtt", "--against", "raw,pipe,uds,futex"]);
    assert_reports(
        &reports,
        "rtt",
        &PERCENTILES,
        &["buslane", "raw", "pipe", "uds", "futex"],
    );
    assert_reports(
        &bench(&["rtt", "--against", "none"]),
        "rtt",
        &PERCENTILES,
        &["buslane"],
    );
}

#[test]
fn bench_rate() {
    let reports = bench(&["rate", "--against", "pipe,uds", "--capacity", "64KiB"]);
    assert_reports(
        &reports,
        "rate",
        &["msgs_per_s", "bytes_per_s"],
        &["buslane", "pipe", "uds"],
    );
}

#[test]
fn bench_fans() {
    for what in ["fanout", "fanin"] {
        let mut reports = bench(&[what, "--peers", "1,3", "--against", "pipe,uds"]);
        assert_eq!(reports.len(), 6);
        for (reports, peers) in reports.chunks_mut(3).zip([1, 3]) {
            for report in &mut *reports {
                let removed = report.as_object_mut().unwrap().remove("peers");
                assert_eq!(removed, Some(peers.into()));
            }
            assert_reports(
                reports,
                what,
                &["msgs_per_s", "bytes_per_s"],
                &["buslane", "pipe", "uds"],
            );
        }
    }
}

#[test]
fn bench_wake() {
    assert_reports(
        &bench(&["wake"]),
        "wake",
        &PERCENTILES,
        &["buslane", "futex"],
    );
}

#[test]
fn bench_on_one_cpu() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpu = (0..CpuSet::count())
        .find(|&cpu| allowed.is_set(cpu).unwrap())
        .unwrap();
    let cpus = format!("{cpu},{cpu}");
    assert_reports(
        &bench(&["wake", "--cpus", &cpus]),
        "wake",
        &PERCENTILES,
        &["buslane", "futex"],
    );
    let reports = bench(&["rtt", "--cpus", &cpus, "--wait", "spin"]);
    assert_reports(&reports, "rtt", &PERCENTILES, &["buslane", "raw", "pipe"]);
}

#[test]
fn demo() {
    let stage = Stage::new();
    let shown = stage.json(&["demo", "--json"]);
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0]["ok"], true, "{}", shown[0]);
    assert_eq!(shown[0]["file"]["identical"], true);
    assert_eq!(shown[0]["events"]["subscribers"], 3);
    assert_eq!(shown[0]["requests"]["all_answered"], true);
    assert_eq!(shown[0]["killed_worker"]["attempts"], 2);
    assert!(shown[0]["killed_server"]["noticed_us"].is_number());
    assert!(!stage.bus().exists());
}

#[test]
fn rm_refuses_what_is_in_use() {
    let stage = Stage::new();
    let mut recv = stage.start(&["recv", "news"]);
    stage.wait_for("news", "subscribers", 1);
    let refused = stage.run(&["rm", "news"], b"");
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("--force"), "{}", stderr(&refused));
    let refused = stage.run(&["rm", "--whole-bus"], b"");
    assert_eq!(refused.status.code(), Some(1));
    recv.kill().unwrap();
    recv.wait().unwrap();
    assert!(stage.run(&["rm", "news"], b"").status.success());
    assert!(stage.json(&["ls", "--json"]).is_empty());
    assert!(stage.run(&["rm", "--whole-bus"], b"").status.success());
    assert!(!stage.bus().exists());
    assert_eq!(stage.run(&["rm"], b"").status.code(), Some(2));
}

#[test]
fn doctor_shows_what_the_dead_left_and_fixes_it() {
    let stage = Stage::new();
    let mut recv = stage.start(&["recv", "news"]);
    stage.wait_for("news", "subscribers", 1);
    assert!(stage.run(&["doctor"], b"").status.success());
    recv.kill().unwrap();
    recv.wait().unwrap();

    let ill = stage.run(&["doctor", "--json"], b"");
    assert_eq!(ill.status.code(), Some(1));
    let found: Value = serde_json::from_str(text(&ill.stdout)).unwrap();
    assert_eq!(found["findings"].as_array().unwrap().len(), 1, "{found}");
    let fixed = stage.run(&["doctor", "--fix"], b"");
    assert!(fixed.status.success(), "{}", stderr(&fixed));
    assert!(text(&fixed.stdout).starts_with("fixed: buslane (pid "));
    let well = stage.run(&["doctor"], b"");
    assert!(text(&well.stdout).contains("all is well"));

    // A file that is none of ours.
    let topic = stage.bus().join("topics/news/topic");
    fs::write(topic, "scribble").unwrap();
    let ill = stage.run(&["doctor"], b"");
    assert_eq!(ill.status.code(), Some(1));
    assert!(
        text(&ill.stdout).contains("buslane rm"),
        "{}",
        text(&ill.stdout)
    );
}

#[test]
fn recv_and_ls_by_pattern() {
    let stage = Stage::new();
    assert!(stage.run(&["ls", "orders/*"], b"").status.code() == Some(1)); // no bus yet
    let mut one = stage.start(&["recv", "orders/*", "--json", "--count", "2"]);
    let any = stage.start(&["recv", "orders/**", "--count", "3"]);
    let eu = stage.start(&["send", "orders/eu"]);
    stage.wait_for("orders/eu", "subscribers", 2);
    // Made while they wait.
    let new = stage.start(&["send", "orders/us/new"]);
    stage.wait_for("orders/us/new", "subscribers", 1);
    assert!(finish(new, b"deep\n").status.success());
    assert!(finish(eu, b"a\nb\n").status.success());

    let mut said = String::new();
    one.stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    one.wait().unwrap();
    let topics: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["topic"].clone())
        .collect();
    assert_eq!(topics, ["orders/eu", "orders/eu"]);
    let any = finish(any, b"");
    let lines: BTreeSet<&str> = text(&any.stdout).lines().collect();
    assert_eq!(lines, BTreeSet::from(["a", "b", "deep"]));

    let listed = |pattern| -> Vec<Value> {
        let topics = stage.json(&["ls", pattern, "--json"]);
        topics.iter().map(|topic| topic["topic"].clone()).collect()
    };
    assert_eq!(listed("orders/*"), ["orders/eu"]);
    assert_eq!(listed("orders/**"), ["orders/eu", "orders/us/new"]);
    assert!(listed("other/*").is_empty());
    assert_eq!(stage.run(&["recv", "a*b"], b"").status.code(), Some(2));
}

#[test]
fn push_and_work() {
    let stage = Stage::new();
    assert_status(&stage.run(&["push", "jobs"], b"a\nb\nc\n"), 0);
    // Kept, with nobody there: the doctor says so.
    let report = &stage.json(&["inspect", "jobs", "--json"])[0];
    assert_eq!(report["pattern"], "queue");
    assert_eq!(report["groups"][0]["name"], "default");
    assert_eq!(report["groups"][0]["unacked"], 3);
    let doctor = stage.run(&["doctor"], b"");
    assert_eq!(doctor.status.code(), Some(1));
    assert!(text(&doctor.stdout).contains("no consumer"));

    let worked = stage.run(&["work", "jobs", "--drain", "--", "cat"], b"");
    assert_status(&worked, 0);
    assert_eq!(text(&worked.stdout), "abc");
    assert_status(&stage.run(&["doctor"], b""), 0);
    assert!(stage.leftovers().is_empty());
}

#[test]
fn what_fails_is_tried_again_then_given_up() {
    let stage = Stage::new();
    assert_status(&stage.run(&["push", "jobs"], b"bad\ngood\n"), 0);
    let worked = stage.json(&[
        "work",
        "jobs",
        "--drain",
        "--json",
        "--max-attempts",
        "2",
        "--dead-letter",
        "failed",
        "--",
        "grep",
        "-q",
        "good",
    ]);
    let done: Vec<bool> = worked.iter().map(|line| line["done"] == true).collect();
    assert_eq!(done.iter().filter(|&&done| done).count(), 1);
    assert_eq!(done.len(), 3, "{worked:?}");
    assert_eq!(
        worked
            .iter()
            .map(|line| line["attempts"].as_u64().unwrap())
            .max(),
        Some(2)
    );
    let dead = stage.run(&["work", "failed", "--drain", "--", "cat"], b"");
    let holds = |what: &[u8]| dead.stdout.windows(what.len()).any(|part| part == what);
    assert!(
        holds(b"bad") && holds(b"delivered 2 times"),
        "{:?}",
        dead.stdout
    );
}

#[test]
fn a_worker_that_is_killed_gives_back_what_it_had() {
    let stage = Stage::new();
    assert_status(&stage.run(&["push", "jobs"], b"x\n"), 0);
    let mut stuck = stage.start(&[
        "work",
        "jobs",
        "--",
        "sh",
        "-c",
        "echo got it; exec sleep 60",
    ]);
    let mut said = [0; 7];
    stuck
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    stuck.kill().unwrap();
    stuck.wait().unwrap();
    let other = stage.json(&["work", "jobs", "--drain", "--json", "--", "true"]);
    assert_eq!(other[0]["attempts"], 2);
}

#[test]
fn work_ends_on_a_signal_and_gives_back_what_it_had() {
    let stage = Stage::new();
    assert_status(&stage.run(&["push", "jobs"], b"x\n"), 0);
    let mut worker = stage.start(&[
        "work",
        "jobs",
        "--jobs",
        "2",
        "--",
        "sh",
        "-c",
        "echo got it; exec sleep 60",
    ]);
    let mut said = [0; 7];
    worker
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    kill(Pid::from_raw(worker.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(worker.wait().unwrap().code(), Some(128 + 15));
    assert_eq!(
        stage.json(&["inspect", "jobs", "--json"])[0]["groups"][0]["unacked"],
        1
    );
}

#[test]
fn groups_get_all_and_are_removed_when_abandoned() {
    let stage = Stage::new();
    assert_status(&stage.run(&["push", "jobs"], b""), 0);
    // The group is there from when its first worker comes.
    assert_status(
        &stage.run(
            &["work", "jobs", "--group", "audit", "--drain", "--", "true"],
            b"",
        ),
        0,
    );
    assert_status(&stage.run(&["push", "jobs"], b"1\n2\n"), 0);
    for group in ["default", "audit"] {
        let worked = stage.run(
            &["work", "jobs", "--group", group, "--drain", "--", "cat"],
            b"",
        );
        assert_eq!(text(&worked.stdout), "12");
    }
    assert_status(&stage.run(&["push", "jobs"], b"3\n"), 0);
    assert_status(
        &stage.run(&["work", "jobs", "--drain", "--", "true"], b""),
        0,
    );
    let doctor = stage.run(&["doctor", "--json"], b"");
    assert!(text(&doctor.stdout).contains("audit"));
    assert_status(&stage.run(&["rm", "jobs", "--group", "audit"], b""), 0);
    assert_status(&stage.run(&["doctor"], b""), 0);
    assert_eq!(
        stage
            .run(&["rm", "jobs", "--group", "audit"], b"")
            .status
            .code(),
        Some(1)
    );
}

#[test]
fn another_users_bus_is_looked_at() {
    let stage = Stage::new();
    let bus = Bus::builder().mode(0o755).at(stage.bus()).unwrap();
    let mut publisher = bus.topic("t").unwrap().publisher().unwrap();
    drop(bus.queue("q").unwrap());
    publisher.send(b"one").unwrap();
    publisher.send(b"two").unwrap();
    // From now on it is not ours.
    let given = Command::new("chown")
        .args(["-R", "12345"])
        .arg(stage.bus())
        .status();
    if !given.unwrap().success() {
        return skipped("chown is not allowed here");
    }
    assert_eq!(stage.json(&["ls", "--json"]).len(), 1);
    assert_eq!(stage.json(&["inspect", "t", "--json"])[0]["messages"], 2);
    let arguments = ["recv", "t", "--from", "oldest", "--count", "2"];
    let received = stage.run(&arguments, b"");
    assert_eq!(text(&received.stdout), "one\ntwo\n");
    let sent = stage.run(&["send", "t", "--no-wait"], b"three\n");
    assert_eq!(sent.status.code(), Some(1));
    assert!(
        stderr(&sent).contains("belongs to user 12345"),
        "{}",
        stderr(&sent)
    );
}
