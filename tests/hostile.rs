//! Bad names, damaged and foreign files, lying lanes: an error that says what is wrong, or no notice
//! at all; never a panic, a hang or a signal.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use buslane::{Bus, Envelope, Error, ErrorKind, Kind, Message, Start};
use common::{Private, names, private};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn bad_names() {
    let private = private();
    let bus = private.bus();
    let long = "x".repeat(256);
    for name in [
        "", "..", ".", "a//b", "/a", "a/", "a/../b", "*", "a/*", "a\nb", "a\0", &long,
    ] {
        let error = bus.topic(name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName, "{error}");
        assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
    }
    for name in [".hidden", "ü/%41", "%", "a b", &long[..255]] {
        assert_eq!(bus.topic(name).unwrap().name(), name);
    }
    let mut all = bus.topics().unwrap();
    all.sort();
    assert_eq!(all.len(), 5, "{all:?}");
    assert!(all.contains(&String::from(".hidden")));
    for name in ["", ".", "..", "a/b", "a\0b", &long] {
        assert_eq!(kind(Bus::open(name)), ErrorKind::InvalidName, "{name:?}");
    }
}

#[test]
fn bad_capacities_and_modes() {
    let private = private();
    let bus = private.bus();
    for capacity in [0, 1, 2048, 4095, 5000, 1 << 41] {
        assert_eq!(
            kind(bus.topic_builder("t").capacity(capacity).open()),
            ErrorKind::InvalidCapacity
        );
        assert_eq!(
            kind(Bus::builder().capacity(capacity).at(&private.path)),
            ErrorKind::InvalidCapacity
        );
    }
    for mode in [0, 0o600, 0o770, 0o777, 0o1700, 0o702] {
        assert_eq!(
            kind(Bus::builder().mode(mode).at(&private.path)),
            ErrorKind::InvalidMode
        );
    }
    assert!(bus.topics().unwrap().is_empty());
}

#[test]
fn a_ring_larger_than_the_machine_is_no_space() {
    let private = private();
    let topic = private
        .bus()
        .topic_builder("huge")
        .capacity(1 << 40)
        .open()
        .unwrap();
    assert_eq!(kind(topic.publisher()), ErrorKind::NoSpace);
    assert_eq!(private.names("topics/huge"), ["locks", "topic"]);
}

/// What [`replace`] puts there.
const HOWS: [&str; 10] = [
    "empty",
    "garbage",
    "version",
    "kind",
    "size",
    "truncated",
    "symlink",
    "hard link",
    "fifo",
    "dir",
];

/// Puts something else where `path` was.
fn replace(path: &Path, how: &str) {
    let whole = fs::read(path).unwrap();
    let put = |bytes: &[u8]| fs::write(path, bytes).unwrap();
    let patched = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    fs::remove_file(path).unwrap();
    match how {
        "empty" => put(&[]),
        "garbage" => put(&[0xa5; 9000]),
        "version" => put(&patched(8)),
        "kind" => put(&patched(12)),
        "size" => put(&patched(16)),
        "truncated" => put(&whole[..whole.len() / 2]),
        "symlink" => symlink("/etc/passwd", path).unwrap(),
        "hard link" => {
            put(&whole);
            fs::hard_link(path, path.with_file_name("another name")).unwrap();
        }
        "fifo" => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        _ => fs::create_dir(path).unwrap(),
    }
}

#[test]
fn every_file_replaced_by_something_else() {
    for what in ["bus", "topic", "lane.", "cursor.", "members"] {
        for how in HOWS {
            let private = private();
            let bus = private.bus();
            let mut publisher = bus.topic("t").unwrap().publisher().unwrap();
            let mut subscriber = bus.topic("t").unwrap().subscriber().unwrap();
            let dir = match what {
                "bus" => private.path.clone(),
                "members" => private.path.join("members"),
                _ => private.path.join("topics/t"),
            };
            let prefix = if what == "members" { "" } else { what };
            let name = names(&dir)
                .into_iter()
                .find(|name| name.starts_with(prefix))
                .unwrap();
            replace(&dir.join(&name), how);
            let mut errors = Vec::new();
            let mut note = |error: Option<Error>| errors.extend(error);
            note(publisher.try_send(b"x").err());
            note(subscriber.recv_timeout(Duration::ZERO).err());
            match Bus::at(&private.path) {
                Err(e) => note(Some(e)),
                Ok(bus) => {
                    note(bus.inspect("t").err());
                    match bus.topic("t") {
                        Err(e) => note(Some(e)),
                        Ok(topic) => {
                            note(topic.publisher().err());
                            note(topic.subscriber().err());
                            note(topic.presence().unwrap().subscribers().err());
                        }
                    }
                }
            }
            if matches!(what, "bus" | "topic") {
                assert!(!errors.is_empty(), "{what} {how}: nobody noticed");
            }
            for e in errors {
                assert!(
                    e.to_string().contains(&name),
                    "{what} {how}: does not name {name}: {e}"
                );
            }
        }
    }
}

#[test]
fn what_others_own_or_may_write_to_is_refused() {
    let private = private();
    drop(private.bus().topic("t").unwrap());
    for (name, right, wrong) in [
        ("", 0o700, 0o777),
        ("bus", 0o600, 0o602),
        ("topics/t/topic", 0o600, 0o660),
    ] {
        let set = |mode| {
            fs::set_permissions(private.path.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        let open = || Bus::at(&private.path).and_then(|bus| bus.topic("t"));
        set(wrong);
        assert_eq!(kind(open()), ErrorKind::ForeignOwner, "{name:?}");
        set(right);
        open().unwrap();
    }
    if std::os::unix::fs::chown(&private.path, Some(12345), None).is_err() {
        return common::skipped("chown is not allowed here");
    }
    let error = Bus::at(&private.path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ForeignOwner);
    assert!(error.to_string().contains("12345"), "{error}");
}

#[test]
fn a_link_in_the_place_of_a_bus_is_not_followed() {
    let private = private();
    let other = private.path.with_extension("other");
    drop(Bus::at(&other).unwrap());
    symlink(&other, &private.path).unwrap();
    for opened in [Bus::at(&private.path), Bus::observe(&private.path)] {
        let error = opened.unwrap_err();
        assert!(error.to_string().contains("not a link"), "{error}");
    }
}

#[test]
fn places_that_are_no_filesystem() {
    for path in [
        "/proc/self/bus",
        "/proc/self",
        "/sys/bus-of-ours",
        "/sys/kernel",
        "/",
        "",
        "/no/such/bus",
    ] {
        println!("{}", Bus::at(path).unwrap_err());
    }
}

#[test]
fn the_mode_is_kept() {
    let private = private();
    let bus = Bus::builder().mode(0o755).at(&private.path).unwrap();
    bus.topic("t").unwrap();
    let mode = |name: &str| {
        fs::metadata(private.path.join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    println!("bus {:o}, topic {:o}", mode(""), mode("topics/t/topic"));
    assert_eq!(mode("") & 0o022, 0);
    assert_eq!(mode("topics/t/topic") & 0o133, 0);
}

#[test]
fn frame_words_overwritten_at_random() {
    let private = private();
    let topic = private
        .bus()
        .topic_builder("t")
        .capacity(4096)
        .open()
        .unwrap();
    let mut good = topic.publisher().unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    println!("seed {seed:#x}");
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let (mut corrupt, mut lanes) = (0, 0);
    for round in 0..3000u64 {
        let mut subscriber = topic.subscriber().unwrap();
        let mut bad = topic.publisher().unwrap();
        let name = private
            .names("topics/t")
            .into_iter()
            .rfind(|name| name.starts_with("lane."))
            .unwrap();
        lanes = lanes.max(private.names("topics/t").len());
        let file = fs::OpenOptions::new()
            .write(true)
            .open(private.path.join("topics/t").join(&name))
            .unwrap();
        // Often a word that is nearly right: committed, and with a length that could be.
        let word = if round % 2 == 0 {
            random()
        } else {
            random() & 0x0fff_ffff_0000_0fff | 1
        };
        for slot in 0..256 {
            file.write_all_at(&word.to_le_bytes(), 4096 + slot * 16)
                .unwrap();
        }
        good.try_send(b"good").unwrap();
        let (mut got, mut errors) = (false, 0);
        for _ in 0..1000 {
            let is_good = |message: &[u8]| message == b"good";
            let received = match round % 4 < 2 {
                true => subscriber
                    .try_recv()
                    .map(|frame| frame.map(|frame| is_good(&frame))),
                false => subscriber
                    .try_recv_batch(usize::MAX)
                    .map(|batch| batch.map(|batch| batch.iter().any(is_good))),
            };
            match received {
                Ok(Some(is_good)) => got |= is_good,
                Ok(None) => break,
                Err(e) => {
                    assert!(
                        matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Ended),
                        "{e}"
                    );
                    errors += u32::from(e.kind() == ErrorKind::Corrupt);
                }
            }
        }
        assert!(got, "round {round}, word {word:#x}: the other lane stopped");
        assert!(
            errors <= 1,
            "round {round}, word {word:#x}: reported {errors} times"
        );
        corrupt += errors;
        drop((bad.try_send(b"x"), subscriber, bad));
        let _ = fs::remove_file(private.path.join("topics/t").join(&name));
    }
    println!("{corrupt} of 3000 reported, at most {lanes} files");
}

/// The newest lane of a topic, to be written into.
fn newest_lane(private: &Private) -> fs::File {
    let names = private.names("topics/t").into_iter();
    let name = names.rev().find(|name| name.starts_with("lane.")).unwrap();
    let path = private.path.join("topics/t").join(name);
    fs::OpenOptions::new().write(true).open(path).unwrap()
}

/// A ring has no end if all of its words are good ones.
#[test]
fn a_batch_ends_also_in_a_ring_that_has_no_end() {
    let private = private();
    let bus = private.bus();
    let topic = bus.topic_builder("t").capacity(4096).open().unwrap();
    let (mut subscriber, _publisher) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    let lane = newest_lane(&private);
    for slot in 0..256 {
        let word = (8_u64 << 4) | 1;
        lane.write_all_at(&word.to_le_bytes(), 4096 + slot * 16)
            .unwrap();
    }
    assert!(subscriber.recv_batch(usize::MAX).unwrap().len() <= 64);
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
struct Two([u64; 2]);

impl Message for Two {
    const NAME: &'static str = "test.Two";
}

/// A batch of values is looked at when it is made; what changes then is not handed out.
#[test]
fn a_word_that_changes_within_a_batch() {
    let private = private();
    let bus = private.bus();
    let topic = bus.typed::<Two>("t").unwrap();
    let (mut subscriber, mut publisher) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    let envelope = Envelope::new(Kind::Event);
    publisher.send_value_with(&envelope, &Two([1, 2])).unwrap();
    publisher.send_value(&Two([3, 4])).unwrap();
    let batch = subscriber.recv_batch(10).unwrap();
    assert_eq!(batch.len(), 2);
    // Behind the first one: a word, an envelope of 56 bytes, and 16 more.
    let word = (1_u64 << 32) | (8 << 4) | 1;
    let lane = newest_lane(&private);
    lane.write_all_at(&word.to_le_bytes(), 4096 + 80).unwrap();
    assert_eq!(batch.iter().count(), 1);
}

/// Numbers in a lane's header that no lane reaches: who joins, or takes it up, does not count on with them.
#[test]
fn a_header_far_beyond_what_can_be() {
    let far = [u64::MAX, u64::MAX - 1, u64::MAX - 15, 1 << 63, 1 << 62];
    // The mark, the limit, the floor, and position, sequence number and bytes of two of the records.
    let words = [256, 384, 512, 768, 776, 784, 928, 936, 944];
    for (value, at) in far.into_iter().flat_map(|far| words.map(|at| (far, at))) {
        let private = private();
        let bus = private.bus();
        let topic = bus.topic_builder("t").capacity(4096).open().unwrap();
        let mut first = topic.subscriber().unwrap();
        topic.publisher().unwrap().send(b"first").unwrap();
        let write = || {
            let lane = newest_lane(&private);
            lane.write_all_at(&value.to_le_bytes(), at).unwrap();
        };
        write();
        for start in [Start::Now, Start::Oldest, Start::Last(1)] {
            if let Ok(mut second) = topic.subscriber_from(start) {
                let _ = second.try_recv();
            }
        }
        write();
        let _ = bus.inspect("t").map(|report| report.tail(3));
        write();
        if let Ok(mut publisher) = topic.publisher() {
            for _ in 0..600 {
                let _ = publisher.try_send(&[0; 20]);
                while let Ok(Some(_)) = first.try_recv() {}
            }
        }
    }
}

/// Has one word in each slot of a lane's ring, and behind it another one: a ring that has no end.
fn fill_ring(lane: &fs::File, word: u64, behind: u64) {
    for slot in 0..256 {
        for (at, word) in [(0, word), (8, behind)] {
            lane.write_all_at(&word.to_le_bytes(), 4096 + slot * 16 + at)
                .unwrap();
        }
    }
}

/// The word of a message of 8 bytes.
const EIGHT_BYTES: u64 = (8 << 4) | 1;

/// Who looks back goes by what the lane's records say, and comes to an end.
#[test]
fn records_that_are_farther_apart_than_the_ring_is_long() {
    let private = private();
    let bus = private.bus();
    let topic = bus.topic_builder("t").capacity(4096).open().unwrap();
    let _publisher = topic.publisher().unwrap();
    let lane = newest_lane(&private);
    fill_ring(&lane, EIGHT_BYTES, 0);
    // The second record, and the sequence number there.
    for (word, at) in [(1_u64 << 50, 800), (1 << 20, 808)] {
        lane.write_all_at(&word.to_le_bytes(), at).unwrap();
    }
    assert!(bus.inspect("t").unwrap().tail(usize::MAX).len() <= 256);
}

/// The number that was given last is a word that every member may write.
#[test]
fn numbers_that_have_run_out() {
    let private = private();
    let bus = private.bus();
    let queue = bus.queue("t").unwrap();
    let control = private.path.join("topics/t/topic");
    let control = fs::OpenOptions::new().write(true).open(control).unwrap();
    for last in [u64::MAX, 1 << 63] {
        let run_out = || {
            control
                .write_all_at(&last.to_le_bytes(), 4096 + 384)
                .unwrap();
        };
        run_out();
        assert_eq!(kind(queue.producer()), ErrorKind::Corrupt);
        run_out();
        assert_eq!(kind(queue.consumer()), ErrorKind::Corrupt);
        run_out();
        let builder = queue.consumer_builder().group("new");
        assert_eq!(kind(builder.open()), ErrorKind::Corrupt);
    }
}

/// Who takes only some messages, or not yet, passes the others; in a ring that has no end, too, it comes to an end.
#[test]
fn a_ring_without_end_of_messages_that_nobody_wants() {
    let private = private();
    let bus = private.bus();
    let service = bus.service_builder("t").capacity(4096).open().unwrap();
    let _producer = service.producer().unwrap();
    let builder = service.server_builder().kinds(&[Kind::Command]);
    let mut server = builder.open().unwrap();
    fill_ring(&newest_lane(&private), EIGHT_BYTES, 0);
    assert!(server.try_recv().unwrap().is_none());

    let queue = bus.queue_builder("q").capacity(4096).open().unwrap();
    queue.producer().unwrap().push(b"later").unwrap();
    let mut consumer = queue.consumer().unwrap();
    let hour = Duration::from_secs(3600);
    consumer.recv().unwrap().retry(hour).unwrap();
    let retries = private.path.join("topics/q.default.retry");
    let names = names(&retries).into_iter();
    let name = names.rev().find(|name| name.starts_with("lane.")).unwrap();
    let lane = fs::OpenOptions::new().write(true).open(retries.join(name));
    // Each of them is due when nobody is there any more.
    let lane = lane.unwrap();
    for slot in 0..512 {
        for (at, word) in [(0, EIGHT_BYTES), (8, u64::MAX - 1)] {
            lane.write_all_at(&word.to_le_bytes(), 4096 + slot * 16 + at)
                .unwrap();
        }
    }
    assert!(consumer.try_recv().unwrap().is_none());
}

/// Places in a durable lane that no lane reaches: where it is kept from, where a subscription was, what a file is called.
#[test]
fn durable_places_far_beyond_what_can_be() {
    for far in [u64::MAX, u64::MAX - 15, u64::MAX - 1, 1 << 63, 8] {
        let private = private();
        let bus = Bus::builder().durable(true).at(&private.path).unwrap();
        let topic = bus.topic_builder("t").capacity(4096).open().unwrap();
        let mut named = topic.subscription("n").unwrap();
        topic.publisher().unwrap().send(b"message").unwrap();
        drop(named.try_recv().unwrap());
        drop(named);
        let dir = private.path.join("topics/t");
        let open = |name: &str| {
            fs::OpenOptions::new()
                .write(true)
                .open(dir.join(name))
                .unwrap()
        };
        open("subscription.n")
            .write_all_at(&far.to_le_bytes(), 4096 + 8)
            .unwrap();
        if let Ok(mut named) = topic.subscription("n") {
            let _ = named.try_recv().map(drop);
            let _ = named.skip_damaged();
        }
        for name in names(&dir) {
            if let Some(lane) = name.strip_suffix(".0") {
                fs::copy(dir.join(&name), dir.join(format!("{lane}.{far}"))).unwrap();
            } else if name.starts_with("lane.") {
                open(&name).write_all_at(&far.to_le_bytes(), 512).unwrap();
            }
        }
        for start in [Start::Now, Start::Oldest, Start::Last(1)] {
            if let Ok(mut subscriber) = topic.subscriber_from(start) {
                let _ = subscriber.try_recv().map(drop);
            }
        }
        println!("{:?}", bus.inspect("t").map(|report| report.tail(3).len()));
        println!("{:?}", bus.verify("t").map(drop));
        drop((topic, bus));
        if let Ok(bus) = Bus::builder().durable(true).at(&private.path) {
            let _ = bus
                .topic("t")
                .and_then(|topic| topic.publisher()?.send(b"x"));
        }
    }
}

/// Who takes up a durable lane that says that it is far on syncs the files that there are, and not all that there could be.
#[test]
fn a_durable_lane_that_says_it_is_far_on() {
    let private = private();
    let bus = Bus::builder().durable(true).at(&private.path).unwrap();
    let topic = bus.topic_builder("t").capacity(4096).open().unwrap();
    let _named = topic.subscription("n").unwrap();
    topic.publisher().unwrap().send(b"message").unwrap();
    newest_lane(&private)
        .write_all_at(&(1_u64 << 50).to_le_bytes(), 800)
        .unwrap();
    let mut publisher = topic.publisher().unwrap();
    let _ = publisher.send(b"far on");
    let _ = publisher.sync();
    newest_lane(&private).write_all_at(&[0; 64], 1408).unwrap();
    drop(publisher);
    let mut publisher = topic.publisher().unwrap();
    let _ = publisher.send(b"far on");
    let _ = publisher.sync();
}

/// What a message carries may look like frames all over. Who looks for the next message behind damage looks at each of them.
#[test]
fn a_damaged_message_full_of_words_of_long_frames() {
    let private = private();
    let bus = Bus::builder().durable(true).at(&private.path).unwrap();
    let topic = bus.topic_builder("t").capacity(16 << 20).open().unwrap();
    let mut publisher = topic.publisher().unwrap();
    // With a checksum, of 4 MiB.
    let word: u64 = (1 << 32) | (4 << 24) | 1 << 3 | 1;
    publisher.send(&word.to_le_bytes().repeat(700_000)).unwrap();
    publisher.send(b"behind").unwrap();
    let dir = private.path.join("topics/t");
    let mut names = names(&dir).into_iter();
    let name = names.find(|name| name.ends_with(".0")).unwrap();
    let file = fs::OpenOptions::new().write(true).open(dir.join(name));
    file.unwrap().write_all_at(&[0xff; 8], 4096).unwrap();
    let mut subscriber = topic.subscriber_from(Start::Oldest).unwrap();
    assert_eq!(kind(subscriber.try_recv().map(drop)), ErrorKind::Corrupt);
    subscriber.skip_damaged().unwrap();
    assert_eq!(&*subscriber.recv().unwrap(), b"behind");
}

/// What a queue and a state have beside lanes and cursors.
#[test]
fn every_file_of_a_pattern_replaced_by_something_else() {
    for what in ["q/group.", "q/claims.", "q/cursor.", "s/table.", "s/lane."] {
        for how in HOWS {
            let private = private();
            let bus = private.bus();
            let queue = bus.queue("q").unwrap();
            let mut producer = queue.producer().unwrap();
            let mut consumer = queue.consumer().unwrap();
            producer.push(b"before").unwrap();
            let held = consumer.recv().unwrap();
            let board = bus.state("s").unwrap();
            let mut writer = board.writer().unwrap();
            writer.set(b"key", b"value").unwrap();
            let mut reader = board.reader().unwrap();
            assert_eq!(reader.get(b"key").unwrap(), Some(&b"value"[..]));
            let (topic, prefix) = what.split_once('/').unwrap();
            let dir = private.path.join("topics").join(topic);
            let name = names(&dir)
                .into_iter()
                .find(|name| name.starts_with(prefix))
                .unwrap();
            replace(&dir.join(&name), how);
            // Whatever these say: nothing panics, hangs, or is killed by a signal.
            let mut said = Vec::new();
            let mut note = |error: Option<Error>| said.extend(error);
            note(producer.try_push(b"after").err());
            note(consumer.try_recv().err());
            note(held.ack().err());
            note(writer.set(b"key", b"other").err());
            note(reader.get(b"key").err());
            let bus = Bus::at(&private.path).unwrap();
            for name in ["q", "s"] {
                note(bus.inspect(name).err());
            }
            match bus.queue("q") {
                Err(e) => note(Some(e)),
                Ok(queue) => {
                    note(queue.producer().and_then(|mut p| p.try_push(b"x")).err());
                    for group in ["default", "late"] {
                        let consumer = queue.consumer_builder().group(group).open();
                        note(consumer.and_then(|mut c| c.try_recv().map(drop)).err());
                        note(queue.remove_group(group, true).err());
                    }
                }
            }
            match bus.state("s") {
                Err(e) => note(Some(e)),
                Ok(board) => {
                    note(board.writer().and_then(|mut w| w.set(b"new", b"1")).err());
                    let reader = board.reader();
                    note(reader.and_then(|mut r| r.get(b"new").map(drop)).err());
                    let reader = board.reader().unwrap();
                    note(
                        reader
                            .watch(None)
                            .and_then(|mut w| w.try_recv().map(drop))
                            .err(),
                    );
                }
            }
            note(bus.reclaim().err());
            drop((producer, consumer, writer, reader));
            for name in ["q", "s"] {
                note(bus.remove_topic(name, true).err());
            }
            for e in said {
                assert!(!e.to_string().is_empty());
                println!("{what} {how}: {e}");
            }
        }
    }
}

/// Words of a file overwritten from `from` on, each round others.
fn overwrite(path: &Path, from: u64, random: &mut impl FnMut() -> u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let words = (file.metadata().unwrap().len() - from) / 8;
    for _ in 0..words.min(200) {
        let at = from + random() % words * 8;
        // Small ones, too, that could be.
        let word = random() >> (random() % 64);
        file.write_all_at(&word.to_le_bytes(), at).unwrap();
    }
}

#[test]
fn claims_and_tables_overwritten_at_random() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..300 {
        let private = private();
        let bus = private.bus();
        let queue = bus.queue_builder("q").capacity(4096).open().unwrap();
        let mut producer = queue.producer().unwrap();
        let mut consumer = queue.consumer().unwrap();
        let mut late = queue.consumer().unwrap();
        let board = bus.state_builder("s").keys(64).open().unwrap();
        let mut writer = board.writer().unwrap();
        let mut reader = board.reader().unwrap();
        let mut watch = reader.watch(None).unwrap();
        for n in 0..10_u8 {
            producer.push(&[n; 20]).unwrap();
            writer.set(&[n], &[n; 20]).unwrap();
        }
        let held = consumer.recv().unwrap();
        let path = |topic: &str, prefix: &str| {
            let dir = private.path.join("topics").join(topic);
            let mut names = names(&dir).into_iter();
            dir.join(names.find(|name| name.starts_with(prefix)).unwrap())
        };
        for _ in 0..3 {
            overwrite(&path("q", "claims."), 4096, &mut random);
            overwrite(&path("s", "table."), 128, &mut random);
            for consumer in [&mut consumer, &mut late] {
                for _ in 0..1000 {
                    match consumer.try_recv() {
                        Ok(Some(delivery)) => drop(delivery.ack()),
                        Ok(None) => break,
                        Err(e) => assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}"),
                    }
                }
            }
            let _ = producer.try_push(b"more");
            for n in 0..20_u8 {
                let _ = reader.get(&[n]).map(drop);
                let _ = writer.set(&[n], b"again");
            }
            assert!(reader.entries().unwrap().take(1000).count() <= 64);
            for _ in 0..1000 {
                if !matches!(watch.try_recv(), Ok(Some(_))) {
                    break;
                }
            }
            let _ = bus.inspect("q").map(|report| report.tail(5));
        }
        let _ = held.ack();
        drop((consumer, late, producer, writer));
        let _ = bus.reclaim();
    }
}
