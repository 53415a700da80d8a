//! Recording and replaying: real processes, a bus of its own for each test. No test depends on the clock; the one timeout is there so
//! that a hang is a failure.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use buslane::{Any, Bus, Envelope, ErrorKind, Kind, PayloadType, Publisher, Start, Topic};
use mcap::records::{MessageHeader, Metadata};
use mcap::{MessageStream, Summary, WriteOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

const HANG: Duration = Duration::from_secs(120);

/// A private bus, another one to replay on, and files beside them.
struct Stage {
    dir: TempDir,
}

impl Stage {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir_in("/dev/shm").unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bus(&self) -> Bus {
        Bus::at(self.path("bus")).unwrap()
    }

    fn other(&self) -> Bus {
        Bus::at(self.path("other")).unwrap()
    }

    /// The command, in the directory of the files.
    fn start(&self, bus: &str, arguments: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_buslane"))
            .current_dir(self.dir.path())
            .arg("--bus")
            .arg(self.path(bus))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// A recorder, once it has subscribed to the topic.
    fn record(&self, topic: &Topic<Any>, arguments: &[&str]) -> Child {
        let child = self.start("bus", &[&["record"], arguments].concat());
        await_subscriber(topic);
        child
    }

    /// Replays a file on the other bus, to a subscriber of these topics.
    fn replay(&self, topics: &[&str], arguments: &[&str]) -> (Output, Vec<Message>) {
        let other = self.other();
        let no_wait = topics.is_empty().then_some("--no-wait");
        let arguments: Vec<_> = ["replay"]
            .into_iter()
            .chain(no_wait)
            .chain(arguments.iter().copied())
            .collect();
        let child = self.start("other", &arguments);
        // It makes them, and waits for the first one to be subscribed to; stopped, until all are.
        let begun = Instant::now();
        for topic in topics {
            while other.inspect(topic).is_err() {
                assert!(begun.elapsed() < HANG, "{topic} is not made");
                thread::yield_now();
            }
        }
        signal(&child, Signal::SIGSTOP);
        let mut all = other.select_from::<Any>(&["**"], Start::Now).unwrap();
        signal(&child, Signal::SIGCONT);
        let (send, receive) = mpsc::channel();
        thread::spawn(move || send.send(finish(child)).unwrap());
        let mut messages = Vec::new();
        loop {
            let output = receive.try_recv();
            loop {
                match all.try_recv() {
                    Ok(None) => break,
                    Ok(Some(message)) => messages.push(Message {
                        topic: message.topic().to_owned(),
                        envelope: message.envelope(),
                        payload: message.to_vec(),
                    }),
                    Err(error) if error.kind() == ErrorKind::Ended => {}
                    Err(error) => panic!("{error}"),
                }
            }
            // What it had sent was received before it ended.
            if let Ok(output) = output {
                return (output, messages);
            }
        }
    }

    /// What is in a file, by an independent reader: topic, sequence number and payload of each message.
    fn messages(&self, file: &str) -> Vec<(String, u32, Vec<u8>)> {
        let bytes = fs::read(self.path(file)).unwrap();
        let messages = MessageStream::new(&bytes).unwrap().map(Result::unwrap);
        messages
            .map(|message| {
                let topic = message.channel.topic.clone();
                (topic, message.sequence, message.data.to_vec())
            })
            .collect()
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Message {
    topic: String,
    envelope: Option<Envelope>,
    payload: Vec<u8>,
}

fn message(topic: &str, payload: impl AsRef<[u8]>) -> Message {
    Message {
        topic: topic.to_owned(),
        envelope: None,
        payload: payload.as_ref().to_vec(),
    }
}

fn await_subscriber(topic: &Topic<Any>) {
    let mut presence = topic.presence().unwrap();
    presence.wait_for_subscribers(1, Some(HANG)).unwrap();
}

fn open(bus: &Bus, name: &str) -> Topic<Any> {
    bus.topic_builder(name).open_any().unwrap()
}

fn send(publisher: &mut Publisher<Any>, payload: impl AsRef<[u8]>) {
    publisher.send_any(None, payload.as_ref(), None).unwrap();
}

fn finish(child: Child) -> Output {
    let pid = Pid::from_raw(child.id().cast_signed());
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

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Asks it to end, which is no failure.
fn end(child: Child) -> Output {
    signal(&child, Signal::SIGINT);
    let output = finish(child);
    assert!(output.status.success(), "{output:?}");
    output
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn failed(output: &Output, status: i32, why: &str) {
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    assert!(stderr(output).contains(why), "{output:?}");
}

#[test]
fn topics_come_back_as_they_were() {
    let stage = Stage::new();
    let bus = stage.bus();
    let plain = open(&bus, "orders/new");
    let sample = PayloadType::new("shop.Sample", 3, Some(8), 8);
    let typed = bus.topic_builder("samples").open_described(&sample);
    let typed = typed.unwrap();
    let lossy = bus.topic_builder("ticks").lossy(true).capacity(8192);
    let lossy = lossy.open_any().unwrap();
    let child = stage.record(&plain, &["**", "-o", "all.mcap", "--json"]);
    await_subscriber(&typed);
    await_subscriber(&lossy);

    let envelope = Envelope::new(Kind::Command)
        .of_type("shop.Order")
        .correlated(7)
        .sent_now();
    let mut sent = Vec::new();
    let mut publishers = [&plain, &typed, &lossy].map(|topic| topic.publisher().unwrap());
    for n in 0..100_u64 {
        for (publisher, topic) in publishers
            .iter_mut()
            .zip(["orders/new", "samples", "ticks"])
        {
            let envelope = (n % 3 == 0).then_some(envelope.clone());
            let payload = n.to_le_bytes().to_vec();
            publisher
                .send_any(envelope.as_ref(), &payload, None)
                .unwrap();
            // One after the other: there is no order between topics.
            publisher.wait_delivered(Some(HANG)).unwrap();
            sent.push(Message {
                topic: topic.to_owned(),
                envelope,
                payload,
            });
        }
    }
    // One that comes later, and nothing.
    let mut later = open(&bus, "later").publisher().unwrap();
    later.wait_for_subscribers(1, Some(HANG)).unwrap();
    send(&mut later, "");
    later.wait_delivered(Some(HANG)).unwrap();
    sent.push(message("later", ""));
    let summary = json(&end(child));
    assert_eq!(summary["topics"], 4);
    assert_eq!(summary["messages"], 301);
    assert_eq!(summary["bytes"], 2400);
    assert_eq!(summary["lost"], 0);

    // Others see payloads alone, and the envelope's time.
    let found = stage.messages("all.mcap");
    let expected = sent.iter().map(|sent| (&sent.topic, &sent.payload));
    assert!(
        found
            .iter()
            .map(|(topic, _, payload)| (topic, payload))
            .eq(expected)
    );
    let ticks = found.iter().filter(|(topic, ..)| topic == "ticks");
    assert!(ticks.map(|(_, sequence, _)| *sequence).eq(0..100));
    let bytes = fs::read(stage.path("all.mcap")).unwrap();
    let first = MessageStream::new(&bytes).unwrap().next().unwrap().unwrap();
    let sent_ns = envelope
        .sent()
        .unwrap()
        .duration_since(std::time::UNIX_EPOCH);
    assert_eq!(u128::from(first.publish_time), sent_ns.unwrap().as_nanos());
    let file = Summary::read(&bytes).unwrap().unwrap();
    assert_eq!(file.stats.unwrap().message_count, 301);
    assert!(
        file.schemas
            .values()
            .any(|schema| schema.name == "shop.Sample")
    );

    let (output, received) = stage.replay(
        &["orders/new", "samples", "ticks", "later"],
        &["all.mcap", "--speed", "max", "--json"],
    );
    assert!(output.status.success(), "{output:?}");
    assert_eq!(json(&output)["messages"], 301);
    assert_eq!(json(&output)["whole"], true);
    for topic in ["orders/new", "samples", "ticks", "later"] {
        let of = |messages: &[Message]| -> Vec<Message> {
            let messages = messages.iter().filter(|message| message.topic == topic);
            messages.cloned().collect()
        };
        assert_eq!(of(&received), of(&sent), "{topic}");
    }
    let other = stage.other();
    assert_eq!(open(&other, "samples").carries(), sample);
    let ticks = open(&other, "ticks");
    assert_eq!((ticks.is_lossy(), ticks.capacity()), (true, 8192));
    assert!(!open(&other, "orders/new").is_lossy());
}

#[test]
fn some_of_a_recording_under_other_names() {
    let stage = Stage::new();
    let bus = stage.bus();
    let (prices, orders) = (open(&bus, "prices/eu"), open(&bus, "orders"));
    let arguments = ["prices/*", "orders", "-o", "some.mcap", "--count", "6"];
    let child = stage.record(&prices, &arguments);
    await_subscriber(&orders);
    for topic in [&prices, &orders] {
        let mut publisher = topic.publisher().unwrap();
        for n in 0..3 {
            send(&mut publisher, [n]);
        }
        publisher.wait_delivered(Some(HANG)).unwrap();
    }
    let output = finish(child);
    assert!(output.status.success(), "{output:?}");
    assert!(
        stderr(&output).contains("recorded 6 messages"),
        "{output:?}"
    );

    let replay = |topics: &[&str], arguments: &[&str]| {
        let arguments = [&["some.mcap", "--speed", "0"], arguments].concat();
        let (output, messages) = stage.replay(topics, &arguments);
        assert!(output.status.success(), "{output:?}");
        messages
    };
    let only = ["--topics", "prices/**", "--rename", "prices=old/prices"];
    let renamed = replay(&["old/prices/eu"], &only);
    let expected = [0, 1, 2].map(|n| message("old/prices/eu", [n]));
    assert_eq!(renamed, expected);
    // Part of a segment is no name.
    let four = ["--rename", "ord=x", "--count", "4"];
    assert_eq!(replay(&["prices/eu", "orders"], &four).len(), 4);
    assert!(replay(&[], &["--topics", "nothing"]).is_empty());
}

/// A file as others make them: three channels, of which one has the name of another, each message half a second after the last.
fn foreign(path: PathBuf, chunks: bool, compression: Option<mcap::Compression>) {
    let options = WriteOptions::new()
        .profile("ros2")
        .use_chunks(chunks)
        .compression(compression)
        .chunk_size(Some(100));
    let mut writer = options.create(File::create(path).unwrap()).unwrap();
    let schema = writer
        .add_schema("std_msgs/msg/String", "ros2msg", b"string data")
        .unwrap();
    let none = BTreeMap::new();
    let channels = [("/camera/front", "cdr"), ("imu", "json"), ("/imu", "cbor")];
    let channels = channels
        .map(|(topic, encoding)| writer.add_channel(schema, topic, encoding, &none).unwrap());
    for n in 0..6_u32 {
        let header = MessageHeader {
            channel_id: channels[n as usize % 3],
            sequence: n,
            log_time: 1_767_225_600_000_000_000 + u64::from(n) * 500_000_000,
            publish_time: 0,
        };
        let payload = [b'0' + n as u8; 60];
        writer.write_to_known_channel(&header, &payload).unwrap();
        let metadata = Metadata {
            name: "note".into(),
            metadata: none.clone(),
        };
        writer.write_metadata(&metadata).unwrap();
    }
    writer.finish().unwrap();
}

const FOREIGN: [&str; 2] = ["camera/front", "imu"];

fn of_foreign(n: usize) -> Message {
    let topic = ["camera/front", "imu", "imu"][n % 3];
    message(topic, [b'0' + n as u8; 60])
}

#[test]
fn files_of_others() {
    let stage = Stage::new();
    let forms = [
        (false, None),
        (true, None),
        (true, Some(mcap::Compression::Lz4)),
        (true, Some(mcap::Compression::Zstd)),
    ];
    for (chunks, compression) in forms {
        foreign(stage.path("foreign.mcap"), chunks, compression);
        let replay = |arguments: &[&str]| {
            let (output, mut messages) =
                stage.replay(&FOREIGN, &[&["foreign.mcap"], arguments].concat());
            assert!(output.status.success(), "{output:?}");
            // There is no order between topics.
            messages.sort_by_key(|message| message.payload.clone());
            messages
        };
        let all: Vec<_> = (0..6).map(of_foreign).collect();
        assert_eq!(replay(&["--speed", "max"]), all);
        // The 1st comes at 0 s, the 4th at 1.5 s.
        let max = ["--speed", "max"];
        let of = |arguments: [&str; 4]| replay(&[&arguments[..], &max].concat());
        assert_eq!(of(["--from", "500ms", "--to", "1500ms"]), all[1..3]);
        let at = ["--from", "2026-01-01T00:00:02Z", "--to", "1h"];
        assert_eq!(of(at), all[4..]);

        let begun = Instant::now();
        assert_eq!(replay(&["--speed", "25"]), all);
        // It may be late, never early.
        assert!(begun.elapsed() >= Duration::from_millis(100));
    }
    let other = stage.other();
    assert_eq!(open(&other, "imu").carries(), PayloadType::bytes());
}

#[test]
fn original_timing() {
    let stage = Stage::new();
    foreign(stage.path("foreign.mcap"), true, None);
    let begun = Instant::now();
    let (output, messages) = stage.replay(&FOREIGN, &["foreign.mcap", "--to", "1s"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(messages.len(), 2);
    assert!(begun.elapsed() >= Duration::from_millis(500));
}

#[test]
fn it_waits_for_a_subscriber_and_for_what_that_has_not_received() {
    let stage = Stage::new();
    foreign(stage.path("foreign.mcap"), true, None);
    let child = stage.start("other", &["replay", "foreign.mcap", "--speed", "max"]);
    // Of any of its topics.
    let imu = loop {
        match stage.other().topic_builder("imu").create(false).open_any() {
            Ok(topic) => break topic,
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
        }
    };
    let mut subscriber = imu.subscriber().unwrap();
    assert_eq!(subscriber.recv().unwrap()[0], b'1');
    drop(subscriber);
    failed(&finish(child), 4, "the last subscriber left");
}

#[test]
fn a_recorder_that_is_killed_leaves_what_it_had() {
    let stage = Stage::new();
    for compression in ["none", "lz4", "zstd"] {
        // Each has a topic of its own: a subscriber that was killed may be counted for a moment.
        let topic = open(&stage.bus(), compression);
        let file = &format!("{compression}.mcap")[..];
        let arguments = [compression, "-o", file, "--compression", compression];
        let mut child = stage.record(&topic, &arguments);
        let mut publisher = topic.publisher().unwrap();
        let mut sent = 0_u64;
        let mut go_on = |count| {
            for _ in 0..count {
                send(&mut publisher, sent.to_le_bytes());
                sent += 1;
            }
            publisher.wait_delivered(Some(HANG)).unwrap();
            sent
        };
        // Until the first of it is in the file, which takes a second; killed in the midst of more.
        // What it has without messages is shorter than their index alone.
        while fs::metadata(stage.path(file)).map_or(0, |metadata| metadata.len()) < 4096 {
            go_on(100);
            thread::yield_now();
        }
        let sent = go_on(1000);
        child.kill().unwrap();
        child.wait().unwrap();
        let (output, messages) = stage.replay(&[compression], &[file, "--speed", "max", "--json"]);
        failed(&output, 1, "it was cut off at byte");
        assert_eq!(json(&output)["whole"], false);
        assert!(!messages.is_empty() && messages.len() as u64 <= sent);
        for (n, message) in messages.iter().enumerate() {
            assert_eq!(message.payload, (n as u64).to_le_bytes());
        }
    }
}

#[test]
fn what_is_no_recording_or_damaged() {
    let stage = Stage::new();
    let replay = |topics: &[&str], content: &[u8]| {
        fs::write(stage.path("bad.mcap"), content).unwrap();
        stage.replay(topics, &["bad.mcap", "--speed", "max"])
    };
    for content in [&b""[..], b"\x89MCAP", b"seq 100\n", &[0; 100]] {
        let (output, messages) = replay(&[], content);
        failed(&output, 1, "it is no MCAP file");
        assert!(messages.is_empty());
    }
    let magic = b"\x89MCAP0\r\n";
    failed(&replay(&[], magic).0, 1, "it was cut off at byte 8");
    for opcode in [3, 4, 5, 6, 0x0c, 0x80] {
        // A length that no machine has memory for.
        let mut content = magic.to_vec();
        content.push(opcode);
        content.extend((1_u64 << 60).to_le_bytes());
        content.extend([0; 100]);
        failed(&replay(&[], &content).0, 1, "it was cut off at byte 8");
    }
    let (output, _) = stage.replay(&[], &["missing.mcap"]);
    failed(&output, 1, "missing.mcap: No such file");
    failed(&stage.replay(&[], &["."]).0, 1, "no ordinary file");

    // One message less, and the rest.
    foreign(stage.path("foreign.mcap"), true, None);
    let mut content = fs::read(stage.path("foreign.mcap")).unwrap();
    let at = content.windows(8).position(|bytes| bytes == b"22222222");
    content[at.unwrap()] ^= 1;
    let (output, messages) = replay(&FOREIGN, &content);
    failed(&output, 1, "passed over");
    failed(&output, 1, "CRC");
    failed(&output, 1, "not all of bad.mcap was sent");
    assert_eq!(messages.len(), 5);
}

#[test]
fn what_does_not_fit_a_topic_is_left_out_and_said() {
    let stage = Stage::new();
    foreign(stage.path("foreign.mcap"), true, None);
    let other = stage.other();
    let _small = other
        .topic_builder("imu")
        .open_described(&PayloadType::new("t", 1, Some(8), 8));
    let (output, messages) = stage.replay(&FOREIGN, &["foreign.mcap", "--speed", "max"]);
    failed(&output, 1, "the topic carries t version 1");
    failed(&output, 1, "imu: 4 messages were left out");
    assert_eq!(messages, [of_foreign(0), of_foreign(3)]);
    // A name that none can have.
    let (output, messages) = stage.replay(
        &["camera/front"],
        &["foreign.mcap", "--rename", "imu=a/../b", "--speed", "max"],
    );
    failed(&output, 1, "a/../b");
    assert_eq!(messages.len(), 2);
}

#[test]
fn what_the_recorder_was_too_slow_for_is_told_everywhere() {
    let stage = Stage::new();
    let topic = stage.bus().topic_builder("t").capacity(65536).open_any();
    let topic = topic.unwrap();
    let lose = |arguments: &[&str]| {
        let arguments = [&["t", "--json", "-o"], arguments].concat();
        let child = stage.record(&topic, &arguments);
        let mut publisher = topic.publisher().unwrap();
        send(&mut publisher, [1; 100]);
        publisher.wait_delivered(Some(HANG)).unwrap();
        signal(&child, Signal::SIGSTOP);
        // Nobody waits for it.
        for _ in 0..2000 {
            publisher
                .send_any(None, &[1; 100], Some(Duration::ZERO))
                .unwrap();
        }
        signal(&child, Signal::SIGCONT);
        (child, publisher)
    };
    let (child, mut publisher) = lose(&["lost.mcap"]);
    publisher.wait_delivered(Some(HANG)).unwrap();
    let output = end(child);
    let summary = json(&output);
    let lost = summary["lost"].as_u64().unwrap();
    assert!(lost > 1000, "{summary}");
    assert_eq!(lost + summary["messages"].as_u64().unwrap(), 2001);
    assert_eq!(summary["lost_bytes"], 100 * lost);
    let what = format!("t: {lost} messages ({} bytes)", 100 * lost);
    assert!(stderr(&output).contains(&format!("{what} lost, for the recorder was too slow")));

    let bytes = fs::read(stage.path("lost.mcap")).unwrap();
    let file = Summary::read(&bytes).unwrap().unwrap();
    let index = file
        .metadata_indexes
        .iter()
        .find(|index| index.name == "buslane.lost");
    let metadata = mcap::read::metadata(&bytes, index.unwrap()).unwrap();
    assert_eq!(format!("t: {}", metadata.metadata["t"]), what);

    let (replayed, messages) = stage.replay(&["t"], &["lost.mcap", "--speed", "max", "--json"]);
    assert!(replayed.status.success());
    assert!(stderr(&replayed).contains(&format!("{what} lost here when it was recorded")));
    assert_eq!(json(&replayed)["lost"], lost);
    assert_eq!(messages.len() as u64, 2001 - lost);

    let (child, _publisher) = lose(&["strict.mcap", "--strict"]);
    failed(&finish(child), 5, "were overwritten before");
    // The file has its end all the same.
    assert!(!stage.messages("strict.mcap").is_empty());
}

#[test]
fn with_wait_nothing_is_lost() {
    let stage = Stage::new();
    let topic = stage.bus().topic_builder("t").capacity(65536).open_any();
    let topic = topic.unwrap();
    let child = stage.record(&topic, &["t", "--wait", "--json", "-o", "all.mcap"]);
    let mut publisher = topic.publisher().unwrap();
    signal(&child, Signal::SIGSTOP);
    let mut sent = 0;
    let full = loop {
        match publisher.send_any(None, &[1; 100], Some(Duration::ZERO)) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::Full, "{full}");
    signal(&child, Signal::SIGCONT);
    for _ in 0..1000 {
        send(&mut publisher, [1; 100]);
        sent += 1;
    }
    publisher.wait_delivered(Some(HANG)).unwrap();
    let summary = json(&end(child));
    assert_eq!(
        (&summary["messages"], &summary["lost"]),
        (&sent.into(), &0.into())
    );
}

#[test]
fn what_was_sent_before_the_signal_is_recorded() {
    let stage = Stage::new();
    let topic = open(&stage.bus(), "t");
    let child = stage.record(&topic, &["t", "--json", "-o", "all.mcap"]);
    signal(&child, Signal::SIGSTOP);
    let mut publisher = topic.publisher().unwrap();
    for _ in 0..1000 {
        send(&mut publisher, "x");
    }
    signal(&child, Signal::SIGTERM);
    signal(&child, Signal::SIGCONT);
    let output = finish(child);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(json(&output)["messages"], 1000);
}

#[test]
fn what_cannot_be_recorded() {
    let stage = Stage::new();
    let bus = stage.bus();
    bus.queue("jobs").unwrap();
    let topic = open(&bus, "t");
    failed(
        &stage_run(&stage, &["record", "jobs", "-o", "x.mcap"]),
        1,
        "it is a queue",
    );
    assert!(!stage.path("x.mcap").exists());
    let output = end(stage.record(&topic, &["**", "-o", "x.mcap"]));
    assert!(
        stderr(&output).contains("not recorded: jobs (queue)"),
        "{output:?}"
    );
    // It is there now.
    failed(
        &stage_run(&stage, &["record", "t", "-o", "x.mcap"]),
        1,
        "remove it, or name another",
    );
    failed(
        &stage_run(&stage, &["record", "t", "-o", "no/x.mcap"]),
        1,
        "cannot make no/x.mcap",
    );
    failed(
        &stage_run(&stage, &["record", "a*", "-o", "y.mcap"]),
        2,
        "stand for whole segments",
    );
    let full = ["record", "t", "-o", "/dev/full", "--duration", "1ms"];
    failed(&stage_run(&stage, &full), 1, "No space left on device");
}

#[test]
fn a_recording_for_viewers() {
    let stage = Stage::new();
    let bus = stage.bus();
    let topics = ["prices/eu", "prices/raw", "news"].map(|name| open(&bus, name));
    for topic in &topics {
        send(&mut topic.publisher().unwrap(), "{}");
    }
    let arguments = ["record", "**", "-o", "v.mcap", "--duration", "10ms"];
    let encodings = [
        "--encoding",
        "prices/raw=cbor",
        "--encoding",
        "prices/*=json",
    ];
    let output = stage_run(&stage, &[&arguments[..], &encodings].concat());
    assert!(output.status.success(), "{output:?}");
    let bytes = fs::read(stage.path("v.mcap")).unwrap();
    let file = Summary::read(&bytes).unwrap().unwrap();
    let encodings: BTreeMap<_, _> = file
        .channels
        .values()
        .map(|channel| (&channel.topic[..], &channel.message_encoding[..]))
        .collect();
    let expected = [
        ("news", "octet-stream"),
        ("prices/eu", "json"),
        ("prices/raw", "cbor"),
    ];
    assert_eq!(encodings, BTreeMap::from(expected));
}

fn stage_run(stage: &Stage, arguments: &[&str]) -> Output {
    finish(stage.start("bus", arguments))
}
