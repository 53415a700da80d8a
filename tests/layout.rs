//! Holds `docs/layout.md` and the code together, from both sides.
//!
//! * `follow.c`, a program written from the page alone, follows lanes while they are written, and refuses what the page
//!   forbids.
//! * Golden bytes: after fixed actions, the files are compared byte by byte with what the page says, written out by
//!   hand here. Masked are only time stamps, random ids, the pid, and what the page leaves open.
//! * What words are for: who bumps `attention`, `bell` and `roster`, `want` and `parked`, locks, and names.
//!
//! A test that fails here means that another program, or another version, can't read this bus any more: either the
//! change is a mistake, or the layout gets a new version.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use buslane::{
    Bus, Envelope, ErrorKind, Kind, Message, Publisher, Start, Subscriber, WaitStrategy,
};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const PATIENCE: Duration = Duration::from_secs(20);
const PAGE: usize = 4096;
/// All bits set: no position.
const NONE: u64 = u64::MAX;

// ------------------------------------------------------------------------------------------------- files and bytes

fn bus_dir() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("bus");
    (dir, path)
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

fn word(file: &File, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset).unwrap();
    u64::from_le_bytes(bytes)
}

/// The bytes that a literal writes in hex.
fn hex(literal: &str) -> Vec<u8> {
    let digits: Vec<_> = literal.chars().filter(|c| !c.is_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap())
        .collect()
}

fn put(bytes: &mut [u8], offset: usize, value: impl AsRef<[u8]>) {
    let value = value.as_ref();
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// What a file must hold: what is `put` here, 0 elsewhere.
struct Golden {
    bytes: Vec<u8>,
    actual: Vec<u8>,
    path: PathBuf,
}

impl Golden {
    /// A file of `size` bytes with this identity; its time of creation must be one of the last minutes.
    fn new(path: &Path, size: usize, kind: u32, id: u64, capacity: u64) -> Self {
        let actual = fs::read(path).unwrap();
        assert_eq!(actual.len(), size, "the size of {}", path.display());
        let mut golden = Self {
            bytes: vec![0; size],
            actual,
            path: path.to_owned(),
        };
        golden.put(0, hex("42 55 53 4c 41 4e 45 00  01 00 00 00")); // "BUSLANE\0", version 1
        golden.put(12, kind.to_le_bytes());
        golden.word(16, size as u64);
        golden.word(24, id);
        golden.word(32, capacity);
        let created = Duration::from_nanos(golden.leave(40));
        let age = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            - created;
        assert!(age < Duration::from_secs(600), "created {age:?} ago");
        golden
    }

    fn put(&mut self, offset: usize, value: impl AsRef<[u8]>) {
        put(&mut self.bytes, offset, value);
    }

    fn word(&mut self, offset: usize, value: u64) {
        self.put(offset, value.to_le_bytes());
    }

    /// Accepts any word here, and says which it is.
    fn leave(&mut self, offset: usize) -> u64 {
        self.leave_range(offset, offset + 8);
        u64::from_le_bytes(self.actual[offset..offset + 8].try_into().unwrap())
    }

    fn leave_range(&mut self, from: usize, to: usize) {
        self.bytes[from..to].copy_from_slice(&self.actual[from..to]);
    }

    fn check(&self) {
        let differs = (0..self.bytes.len()).find(|&i| self.bytes[i] != self.actual[i]);
        if let Some(at) = differs {
            let range = at / 16 * 16..(at / 16 * 16 + 16).min(self.bytes.len());
            let (wanted, found) = (&self.bytes[range.clone()], &self.actual[range]);
            panic!(
                "{}: differs at {at}:\n wanted {wanted:02x?}\n found  {found:02x?}",
                self.path.display()
            );
        }
    }
}

/// Whether somebody holds a write lock over the whole file.
fn is_locked(file: &File) -> bool {
    is_part_locked(file, 0, 0)
}

/// The same of `len` bytes from `start` on; 0: all.
fn is_part_locked(file: &File, start: i64, len: i64) -> bool {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).unwrap();
    if lock.l_type == libc::F_UNLCK as i16 {
        return false;
    }
    // -1: it belongs to an open file description, not to a process.
    assert_eq!(
        (lock.l_type, lock.l_start, lock.l_len, lock.l_pid),
        (libc::F_WRLCK as i16, start, len, -1)
    );
    true
}

/// Processes that other tests start here hold copies of our descriptors, and so our locks, until they have begun.
fn wait_until_unlocked(file: &File) {
    wait_until("the file is unlocked", || !is_locked(file));
}

/// Waits until a file has what is asked for.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

// ----------------------------------------------------------------------------------------------------- golden bytes

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, PartialEq)]
#[repr(C)]
struct Tick {
    price: i64,
    size: u32,
    venue: u32,
}

impl Message for Tick {
    const NAME: &'static str = "market.Tick";
    const VERSION: u32 = 3;
}

/// A payload of 100 bytes, each of them another.
const COUNTING: &str = "
    00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f
    20 21 22 23 24 25 26 27 28 29 2a 2b 2c 2d 2e 2f 30 31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f
    40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f 50 51 52 53 54 55 56 57 58 59 5a 5b 5c 5d 5e 5f
    60 61 62 63";

/// Messages 0 to 7, as they lie in the ring from 0 on: 0, 1, 8, 9 and 100 bytes, and a batch of 3, 24 and 0.
fn first_frames() -> Vec<u8> {
    let mut frames = hex("
        01 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
        11 00 00 00 01 00 00 00  61 00 00 00 00 00 00 00
        81 00 00 00 02 00 00 00  31 32 33 34 35 36 37 38
        91 00 00 00 03 00 00 00  31 32 33 34 35 36 37 38  39 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
        41 06 00 00 04 00 00 00");
    frames.extend(hex(COUNTING));
    frames.extend(hex("                              00 00 00 00
        31 00 00 00 05 00 00 00  78 79 7a 00 00 00 00 00
        81 01 00 00 06 00 00 00  62 75 73 6c 61 6e 65 21  62 75 73 6c 61 6e 65 21  62 75 73 6c 61 6e 65 21
        01 00 00 00 07 00 00 00  00 00 00 00 00 00 00 00"));
    assert_eq!(frames.len(), 256);
    frames
}

/// Receives all that is there, and says so in the slot.
fn drain(subscriber: &mut Subscriber) -> usize {
    let mut count = 0;
    while subscriber.try_recv().unwrap().is_some() {
        count += 1;
    }
    count
}

/// A lane's header; `records` are position, sequence and bytes.
fn lane(
    path: &Path,
    id: u64,
    capacity: usize,
    member: u64,
    words: [u64; 4],
    records: &[[u64; 3]],
) -> Golden {
    let [mark, limit, floor, closed] = words;
    let mut golden = Golden::new(path, PAGE + capacity, 4, id, capacity as u64);
    golden.word(128, NONE); // want
    golden.word(256, mark);
    golden.word(384, limit);
    golden.word(512, floor);
    golden.word(640, member);
    golden.word(648, closed);
    assert!(golden.leave(656) <= 1); // fences: as the kernel has membarrier or not
    for i in 0..16 {
        let [position, sequence, bytes] = records.get(i).copied().unwrap_or([NONE, 0, 0]);
        golden.word(768 + 32 * i, position);
        golden.word(776 + 32 * i, sequence);
        golden.word(784 + 32 * i, bytes);
    }
    golden
}

/// A cursor with one slot in use.
fn cursor(path: &Path, id: u64, member: u64, slot: Option<(u64, u64)>) -> Golden {
    let mut golden = Golden::new(path, PAGE + 64 * 65536, 5, id, 65536);
    golden.word(384, member);
    assert!(golden.leave(392) <= 1); // fences
    golden.word(400, 1); // joined
    if let Some((lane, position)) = slot {
        golden.word(256, 1); // used
        golden.word(4096, lane);
        golden.word(4104, position);
    }
    golden
}

/// A topic. `last_id` is in the control page with counters that are only required to have counted.
fn topic(path: &Path, capacity: u64, last_id: u64) -> Golden {
    let mut golden = Golden::new(path, 8192, 3, 0, capacity);
    golden.word(64, 1); // pattern; and type_version 0
    let counts = [4096, 4224, 4352].map(|offset| golden.leave(offset));
    assert!(
        counts
            .iter()
            .all(|&count| (1..1000).contains(&count) == (last_id > 0)),
        "{counts:?}"
    );
    golden.word(4480, last_id);
    golden
}

#[test]
fn every_byte_of_every_file() {
    let (_dir, path) = bus_dir();
    let bus = Bus::at(&path).unwrap();
    assert_eq!(names(&path), ["bus", "members", "topics"]);
    Golden::new(&path.join("bus"), 8192, 1, 0, 0).check();

    // The member: its name is its id.
    let members = names(&path.join("members"));
    let [name] = &members[..] else {
        panic!("one member, not {members:?}")
    };
    assert_eq!((name.len(), name), (16, &name.to_lowercase()));
    let member = u64::from_str_radix(name, 16).unwrap();
    let mut golden = Golden::new(&path.join("members").join(name), 128, 2, member, 0);
    let command = fs::read("/proc/self/comm").unwrap();
    let command = command.trim_ascii_end();
    golden.put(64, std::process::id().to_le_bytes());
    golden.put(68, (command.len() as u32).to_le_bytes());
    golden.put(72, command);
    golden.check();

    // A topic of bytes, as it is made.
    let files = path.join("topics/orders%2Fnew");
    let orders = bus
        .topic_builder("orders/new")
        .capacity(4096)
        .open()
        .unwrap();
    let mut golden = Golden::new(&path.join("bus"), 8192, 1, 0, 0);
    golden.word(4096, 1);
    golden.check();
    assert_eq!(names(&files), ["topic"]);
    let bytes_topic = |last_id| {
        let mut golden = topic(&files.join("topic"), 4096, last_id);
        golden.word(80, 1); // type_align; type_size is 0
        golden.word(88, 5); // type_name_len
        golden.put(96, "bytes");
        golden
    };
    bytes_topic(0).check();

    // Who joins gets the next number.
    let mut subscriber = orders.subscriber().unwrap();
    cursor(&files.join("cursor.1"), 1, member, None).check();
    let mut publisher = orders.publisher().unwrap();
    assert_eq!(names(&files), ["cursor.1", "lane.2", "locks", "topic"]);
    bytes_topic(2).check();
    let lane_path = files.join("lane.2");
    let lane_2 = |words, records: &[_]| lane(&lane_path, 2, 4096, member, words, records);
    lane_2([0, 0, 0, 0], &[[0, 0, 0]]).check();

    // Small messages and a batch. The limit goes on by a sixteenth of the ring, or as far as a frame needs.
    for message in [&b""[..], b"a", b"12345678", b"123456789", &hex(COUNTING)] {
        publisher.send(message).unwrap();
    }
    publisher
        .send_batch([&b"xyz"[..], b"buslane!buslane!buslane!", b""])
        .unwrap();
    let mut golden = lane_2([240, 240 + 256, 0, 0], &[[0, 0, 0]]);
    golden.put(PAGE, first_frames());
    golden.check();
    assert_eq!(drain(&mut subscriber), 8);
    cursor(&files.join("cursor.1"), 1, member, Some((2, 256))).check();

    // Large ones, up to 80 bytes before the end of the ring.
    for (byte, len) in [(8, 1464), (9, 1464), (10, 800)] {
        publisher.send(&vec![byte; len]).unwrap();
    }
    let large = |golden: &mut Golden| {
        golden.put(PAGE + 256, hex("81 5b 00 00 08 00 00 00"));
        golden.put(PAGE + 264, [8; 1464]);
        golden.put(PAGE + 1728, hex("81 5b 00 00 09 00 00 00"));
        golden.put(PAGE + 1736, [9; 1464]);
        golden.put(PAGE + 3200, hex("01 32 00 00 0a 00 00 00"));
        golden.put(PAGE + 3208, [10; 800]);
    };
    let mut records = vec![[0, 0, 0], [256, 8, 145], [1728, 9, 1609], [3200, 10, 3073]];
    let mut golden = lane_2([3200, 3200 + 816 + 16, 0, 0], &records);
    golden.put(PAGE, first_frames());
    large(&mut golden);
    golden.check();
    assert_eq!(drain(&mut subscriber), 3);
    cursor(&files.join("cursor.1"), 1, member, Some((2, 4016))).check();

    // 112 bytes do not fit into 80: padding, and the frame at the start. What is below the floor is gone.
    publisher.send(&hex(COUNTING)).unwrap();
    records.push([4016, 11, 3873]);
    let wrapped = |golden: &mut Golden| {
        golden.put(PAGE, hex("41 06 00 00 0b 00 00 00"));
        golden.put(PAGE + 8, hex(COUNTING));
        golden.leave_range(PAGE + 108, PAGE + 112); // behind the payload
        golden.leave_range(PAGE + 120, PAGE + 256); // between the 0 behind the frame and the floor
        large(golden);
        golden.put(PAGE + 4016, hex("83 04 00 00 0b 00 00 00"));
        golden.leave_range(PAGE + 4024, PAGE + 4096); // within the padding
    };
    let mut golden = lane_2([4016, 4016 + 256, 256, 0], &records);
    wrapped(&mut golden);
    golden.check();

    // Left by its writer, and not yet drained.
    drop(publisher);
    let mut golden = lane_2([4016, 4016 + 256, 256, 1], &records);
    wrapped(&mut golden);
    golden.check();
    bytes_topic(2).check();
}

#[test]
fn every_byte_of_a_typed_topic() {
    let (_dir, path) = bus_dir();
    let bus = Bus::at(&path).unwrap();
    let ticks = bus
        .topic_builder("ticks")
        .capacity(8192)
        .open_typed::<Tick>()
        .unwrap();
    let files = path.join("topics/ticks");
    let mut publisher = ticks.publisher().unwrap();
    let mut subscriber = ticks.subscriber().unwrap();
    publisher
        .send_value(&Tick {
            price: -2,
            size: 0x0403_0201,
            venue: 7,
        })
        .unwrap();
    assert_eq!(subscriber.recv().unwrap().price, -2);

    let mut golden = topic(&files.join("topic"), 8192, 2);
    golden.put(68, 3u32.to_le_bytes()); // type_version
    golden.word(72, 16); // type_size
    golden.word(80, 8); // type_align
    golden.word(88, 11); // type_name_len
    golden.put(96, "market.Tick");
    golden.check();

    let member = u64::from_str_radix(&names(&path.join("members"))[0], 16).unwrap();
    let mut golden = lane(
        &files.join("lane.1"),
        1,
        8192,
        member,
        [0, 512, 0, 0],
        &[[0, 0, 0]],
    );
    golden.put(
        PAGE,
        hex("01 01 00 00 00 00 00 00  fe ff ff ff ff ff ff ff  01 02 03 04 07 00 00 00"),
    );
    golden.check();
    // Joined at the mark; the one message is not yet published as released.
    cursor(&files.join("cursor.2"), 2, member, Some((1, 0))).check();
    assert!(subscriber.try_recv().unwrap().is_none());
    cursor(&files.join("cursor.2"), 2, member, Some((1, 32))).check();
}

/// A group, that of the topic or a later one.
fn group(path: &Path, id: u64) -> Golden {
    let mut golden = Golden::new(path, PAGE, 6, id, 0);
    golden.word(400, 1); // joined
    golden
}

/// Claims on a lane of 4096 bytes.
fn claims(path: &Path, lane: u64, head: u64, claims: &[&str]) -> Golden {
    let mut golden = Golden::new(path, 2 * PAGE + 256 * 8, 7, lane, 256);
    golden.word(256, 1); // used
    golden.word(4096, lane);
    golden.word(4104, head);
    for (i, claim) in claims.iter().enumerate() {
        golden.put(8192 + 8 * i, hex(claim));
    }
    golden
}

#[test]
fn a_subscriber_that_nobody_waits_for_says_so() {
    let (_dir, path) = bus_dir();
    let topic = Bus::at(&path).unwrap().topic("t").unwrap();
    let _both = (
        topic.subscriber().unwrap(),
        topic.lossy_subscriber(Start::Now).unwrap(),
    );
    let lossy = ["cursor.1", "cursor.2"].map(|name| {
        let cursor = File::open(path.join("topics/t").join(name)).unwrap();
        [400, 440].map(|offset| word(&cursor, offset))
    });
    assert_eq!(lossy, [[1, 0], [1, 1]]);
}

#[test]
fn every_byte_of_a_queue() {
    let (_dir, path) = bus_dir();
    let bus = Bus::at(&path).unwrap();
    let queue = bus.queue_builder("q").capacity(4096).open().unwrap();
    let files = path.join("topics/q");
    group(&files.join("group.default"), 0).check();
    let mut producer = queue.producer().unwrap();
    for _ in 0..4 {
        producer.push(b"a message").unwrap();
    }
    let mut consumer = queue.consumer().unwrap();
    assert_eq!(
        names(&files),
        [
            "claims.0.1",
            "cursor.2",
            "group.default",
            "lane.1",
            "locks",
            "topic"
        ]
    );
    let cursor = File::open(files.join("cursor.2")).unwrap();
    assert_eq!(
        [256, 400, 408, 4096].map(|offset| word(&cursor, offset)),
        [0, 1, 0, 0]
    );
    claims(&files.join("claims.0.1"), 1, 0, &[]).check();
    consumer.recv().unwrap().ack().unwrap();
    let held = consumer.recv().unwrap();
    drop(consumer.recv().unwrap());
    // Frames of 9 bytes take 32. Sequence number; owner 2 and the lower half of 1 attempt; fate.
    let table = [
        "00 00 00 00 02 00 10 30",
        "01 00 00 00 02 00 10 20",
        "02 00 00 00 02 00 10 10",
    ];
    let mut golden = claims(&files.join("claims.0.1"), 1, 32, &table);
    golden.word(4224, 1); // again
    golden.check();
    drop(held);

    let builder = queue.consumer_builder().group("late/ones").max_attempts(5);
    let builder = builder.lease(Duration::from_secs(1)).dead_letter("lost");
    let _late = builder.open().unwrap();
    let mut golden = group(&files.join("group.late%2Fones"), 3);
    golden.word(512, 1_000_000_000);
    golden.word(520, 5);
    golden.word(528, 4);
    golden.put(536, b"lost");
    golden.check();
    claims(&files.join("claims.3.1"), 1, 128, &[]).check();
    let cursor = File::open(files.join("cursor.4")).unwrap();
    assert_eq!(word(&cursor, 408), 3);
}

#[test]
fn every_byte_of_a_table() {
    let (_dir, path) = bus_dir();
    let bus = Bus::at(&path).unwrap();
    let state = bus.state_builder("s").keys(3).max_key(12).max_value(10);
    let mut writer = state.open().unwrap().writer().unwrap();
    for n in 0..5_u8 {
        writer.set(b"a", &[n + 1; 9]).unwrap();
    }
    writer.set(b"", b"?").unwrap();
    let member = names(&path.join("members")).remove(0);
    let member = u64::from_str_radix(&member, 16).unwrap();

    let (index, slots) = (PAGE, PAGE + 512 * 8);
    let slot = 256 - 64; // 16 + 16 + 4 * 32, rounded up
    let mut table = Golden::new(&path.join("topics/s/table.1"), slots + 3 * slot, 8, 1, 3);
    table.word(128, member);
    table.word(256, 2);
    // XXH3 of "a" is e6c632b61e964e1f, of nothing 2d06800538d394c2.
    table.word(index + 0x1f * 8, 0xe6c6_32b6_0000_0001);
    table.word(index + 0xc2 * 8, 0x2d06_8005_0000_0002);

    table.word(slots, 5);
    table.word(slots + 8, 1);
    table.put(slots + 16, b"a");
    let mut last = 0;
    // Write 1 stood in cell 1, where 5 is now; nothing was written to cell 0 but write 4.
    for (cell, byte) in [(2, 2), (3, 3), (0, 4), (1, 5)] {
        let at = slots + 32 + 32 * cell;
        let time = table.leave(at);
        assert!(time > last, "{time} after {last}");
        last = time;
        table.word(at + 8, 9);
        table.put(at + 16, [byte; 9]);
    }
    let second = slots + slot;
    table.word(second, 1);
    let cell = second + 32 + 32;
    assert!(table.leave(cell) > last);
    table.word(cell + 8, 1);
    table.put(cell + 16, b"?");
    table.check();

    let lane = File::open(path.join("topics/s/lane.2")).unwrap();
    let mut news = vec![0; 16];
    for (n, slot) in [0_u64, 0, 0, 0, 0, 1].into_iter().enumerate() {
        lane.read_exact_at(&mut news, (PAGE + 32 * n + 8) as u64)
            .unwrap();
        assert_eq!(news, [1_u64.to_le_bytes(), slot.to_le_bytes()].concat());
    }
}

#[test]
fn every_byte_of_an_envelope() {
    let (_dir, path) = bus_dir();
    let (_subscriber, mut publisher, files) = pair(&path, 4096);
    let sent = SystemTime::UNIX_EPOCH + Duration::from_nanos(0x0102_0304_0506_0708);
    let envelope = Envelope::new(Kind::Command)
        .of_type("ab.Order")
        .correlated(0x1112_1314)
        .sent_at(sent);
    publisher.send_with(&envelope, b"pear").unwrap();
    publisher
        .send_with(&Envelope::new(Kind::Event), b"")
        .unwrap();
    // Two frames: each a word, 56 bytes, an extension, a payload.
    let mut expected = hex("
        c5 04 00 00 00 00 00 00  14 13 12 11 00 00 00 00  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
        08 07 06 05 04 03 02 01");
    expected.extend(Envelope::id_of_type("ab.Order").to_le_bytes());
    expected.extend(hex(
        "                             00 00 00 00 00 00 00 00  02 00 00 00 10 00 00 00
        01 00 00 00 08 00 00 00  61 62 2e 4f 72 64 65 72  70 65 61 72",
    ));
    expected.resize(96, 0);
    expected.extend(hex("
        85 03 00 00 01 00 00 00  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
        00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  01 00 00 00 00 00 00 00"));
    let mut bytes = vec![0; expected.len()];
    let lane = File::open(files.join("lane.2")).unwrap();
    lane.read_exact_at(&mut bytes, PAGE as u64).unwrap();
    assert_eq!(bytes, expected);
}

#[test]
fn capacities_and_longest_messages() {
    let (_dir, path) = bus_dir();
    let bus = Bus::at(&path).unwrap();
    // floor16(capacity × 3/8) − 64, and less than 2^28 − 127.
    for (capacity, longest) in [
        (4096, 1472),
        (8192, 3008),
        (1 << 20, 393_152),
        (1 << 30, (1 << 28) - 128),
    ] {
        let topic = bus
            .topic_builder(&format!("t{capacity}"))
            .capacity(capacity)
            .open()
            .unwrap();
        assert_eq!(topic.max_len(), longest);
    }
    for capacity in [2048, 4097, 3 << 20, 1 << 41] {
        let refused = bus
            .topic_builder("t")
            .capacity(capacity)
            .open()
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidCapacity);
    }
}

#[test]
fn names_are_escaped() {
    let (_dir, path) = bus_dir();
    let bus = Bus::at(&path).unwrap();
    for (name, escaped) in [
        ("orders/new", "orders%2Fnew"),
        ("AZaz09-_.", "AZaz09-_."),
        (".draft.x", "%2Edraft.x"),
        ("a/.b", "a%2F.b"),
        ("100% ü~", "100%25%20%C3%BC%7E"),
    ] {
        let _topic = bus.topic(name).unwrap();
        assert!(
            path.join("topics").join(escaped).join("topic").is_file(),
            "{name} as {escaped}"
        );
        assert!(bus.topics().unwrap().iter().any(|listed| listed == name));
    }
    assert_eq!(names(&path.join("topics")).len(), 5);
    bus.topic(&"x".repeat(255)).unwrap();
    for too_long in ["x".repeat(256), "ü".repeat(43)] {
        assert_eq!(
            bus.topic(&too_long).unwrap_err().kind(),
            ErrorKind::InvalidName
        );
    }
}

/// Runs itself again with `BUSLANE_DIR` set, to see where a named bus is.
#[test]
fn a_bus_by_name() {
    if std::env::var_os("BUSLANE_DIR").is_some() {
        drop(Bus::open("by-name").unwrap());
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "a_bus_by_name"])
        .env("BUSLANE_DIR", dir.path())
        .stdout(Stdio::null());
    assert!(command.status().unwrap().success());
    Golden::new(&dir.path().join("by-name/bus"), 8192, 1, 0, 0).check();
}

// ------------------------------------------------------------------------------------------- what the words are for

#[test]
fn who_bumps_what() {
    let (_dir, path) = bus_dir();
    let bus = Bus::builder()
        .capacity(4096)
        .wait(WaitStrategy::Sleep)
        .at(&path)
        .unwrap();
    let topic = bus.topic("t").unwrap();
    let control = File::open(path.join("topics/t/topic")).unwrap();
    let counts = || [4096, 4224, 4352].map(|offset| word(&control, offset)); // attention, bell, roster
    assert_eq!(counts(), [0, 0, 0]);

    // Who joins bumps all three.
    let mut subscriber = topic.subscriber().unwrap();
    let [attention, _, roster] = counts();
    assert!(attention > 0 && roster > 0);
    let mut publisher = topic.publisher().unwrap();
    assert!(counts()[2] > roster);
    publisher.send(b"first").unwrap();
    assert_eq!(drain(&mut subscriber), 1);

    // Who goes to sleep bumps the attention alone; who wakes it bumps the bell.
    let cursor = File::open(path.join("topics/t/cursor.1")).unwrap();
    assert_eq!(word(&cursor, 128), 0);
    let awake = counts();
    let sleeper = thread::spawn(move || {
        assert_eq!(&*subscriber.recv().unwrap(), b"second");
        subscriber
    });
    wait_until("the reader is parked", || {
        word(&cursor, 128) == 1 && counts()[0] > awake[0]
    });
    assert_eq!(counts()[1..], awake[1..]);
    publisher.send(b"second").unwrap();
    let mut subscriber = sleeper.join().unwrap();
    assert_eq!(word(&cursor, 128), 0);
    let woken = counts();
    assert!(
        woken[1] > awake[1] && woken[2] == awake[2],
        "{awake:?} {woken:?}"
    );

    // Who waits for room says which position it wants.
    let lane = File::open(path.join("topics/t/lane.2")).unwrap();
    while publisher.try_send(&[7; 1000]).is_ok() {}
    assert_eq!(word(&lane, 128), NONE);
    let writer = thread::spawn(move || {
        publisher.send(&[8; 1000]).unwrap();
        publisher
    });
    let mut want = NONE;
    wait_until("the writer wants room", || {
        want = word(&lane, 128);
        want != NONE
    });
    let (released, end) = (word(&cursor, 4104), word(&lane, 256));
    assert!(
        released < want && want <= end,
        "{released} < {want} <= {end}"
    );
    while subscriber.recv().unwrap()[0] == 7 {}
    let publisher = writer.join().unwrap();
    assert_eq!(word(&lane, 128), NONE);

    // Who leaves bumps the roster.
    let before = counts();
    drop(publisher);
    assert!(counts()[0] > before[0] && counts()[2] > before[2]);
    assert_eq!(word(&control, 4480), 2);
}

#[test]
fn locks_and_lives() {
    let (_dir, path) = bus_dir();
    let bus = Bus::builder().capacity(4096).at(&path).unwrap();
    let topic = bus.topic("t").unwrap();
    let files = path.join("topics/t");
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    publisher.send(b"").unwrap();
    publisher.send(b"").unwrap();
    assert_eq!(subscriber.recv().unwrap().lane(), 2);
    let member_name = names(&path.join("members")).remove(0);
    let open = |path: PathBuf| File::open(path).unwrap();
    let (cursor, lane) = (open(files.join("cursor.1")), open(files.join("lane.2")));
    let member = open(path.join("members").join(&member_name));
    for file in [&cursor, &member] {
        assert!(is_locked(file));
    }
    // A lane's writer holds the byte with its number.
    let locks = open(files.join("locks"));
    let is_written = |lane: i64| is_part_locked(&locks, lane, 1);
    assert!(!is_written(1) && is_written(2) && !is_written(3));
    for unowned in [path.join("bus"), files.join("topic"), files.join("lane.2")] {
        assert!(!is_locked(&open(unowned)));
    }

    // A lane that its writer has left stays for its readers, and the next publisher takes it over.
    drop(publisher);
    assert_eq!(word(&lane, 648), 1);
    wait_until("the lane has no writer", || !is_written(2));
    let mut publisher = topic.publisher().unwrap();
    assert_eq!(names(&files), ["cursor.1", "lane.2", "locks", "topic"]);
    assert_eq!((is_written(2), word(&lane, 648)), (true, 0));
    publisher.send(b"").unwrap();
    assert_eq!(word(&lane, 4096 + 32), 0x2_0000_0001); // it counts on

    // When a lane that is closed and drained is gone, its slot is free again. (Who removes it is not the layout's.)
    assert_eq!(drain(&mut subscriber), 2);
    drop(publisher);
    wait_until("the lane has no writer", || !is_written(2));
    let _ = fs::remove_file(files.join("lane.2"));
    assert_eq!(subscriber.try_recv().unwrap_err().kind(), ErrorKind::Ended);
    drop(topic.subscriber().unwrap()); // changes the roster, and takes the number 3
    assert!(subscriber.try_recv().unwrap().is_none());
    assert_eq!((word(&cursor, 256), word(&cursor, 4096)), (1, 0));
    let publisher = topic.publisher().unwrap();
    assert!(subscriber.try_recv().unwrap().is_none());
    assert_eq!(
        (word(&cursor, 256), word(&cursor, 4096), word(&cursor, 4104)),
        (1, 4, 0)
    );

    // A reader that leaves says so in bit 0 of its position.
    assert!(is_locked(&cursor));
    drop(subscriber);
    assert_eq!(word(&cursor, 4104), 1);
    wait_until_unlocked(&cursor);
    assert_eq!(names(&files), ["lane.4", "locks", "topic"]);

    drop((publisher, topic, bus));
    wait_until_unlocked(&member);
    assert!(names(&path.join("members")).is_empty());
}

// --------------------------------------------------------------------------------------------------------- follow.c

/// Compiles `follow.c`.
fn follow_program(dir: &Path) -> PathBuf {
    let program = dir.join("follow");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/follow.c");
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-o"])
        .arg(&program)
        .arg(source);
    assert!(cc.status().unwrap().success(), "{cc:?}");
    program
}

/// A running `follow`, and what it prints.
struct Follower {
    child: Child,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

impl Follower {
    fn start(program: &Path, topic: &Path, lane: u64, count: Option<u64>) -> Self {
        let mut command = Command::new(program);
        command
            .arg(topic)
            .arg(lane.to_string())
            .args(count.map(|count| count.to_string()));
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            stdout
                .lines()
                .try_for_each(|line| sender.send(line.unwrap()))
        });
        let stderr = child.stderr.take().unwrap();
        let errors = Some(thread::spawn(move || io::read_to_string(stderr).unwrap()));
        Self {
            child,
            lines,
            errors,
        }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("another line")
    }

    /// What it printed since, and how it ended.
    fn end(mut self) -> (Vec<String>, String, ExitStatus) {
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => lines.push(line),
                Err(e) => {
                    break assert_eq!(e.to_string(), "channel is empty and sending half is closed");
                }
            }
        }
        let errors = self.errors.take().unwrap().join().unwrap();
        (lines, errors, self.child.wait().unwrap())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // Only after a test that failed is it still there.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The message with this number: any length up to `max_len`, the longest and the empty one among them.
fn message(number: u64, max_len: usize) -> Vec<u8> {
    let len = match number % 16 {
        3 => 0,
        7 => max_len,
        _ => (number * number * 31 + number * 7) as usize % (max_len + 1),
    };
    (0..len).map(|i| (number as usize * 3 + i) as u8).collect()
}

/// What `follow` prints for it.
fn line(number: u64, max_len: usize) -> String {
    let payload = message(number, max_len);
    let sum = payload.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    let hex: String = payload
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        "{number} {} {} {sum}",
        payload.len(),
        if hex.is_empty() { "-" } else { &hex }
    )
}

/// A topic `t`, a subscriber with the cursor 1, a publisher with the lane 2.
fn pair(path: &Path, capacity: usize) -> (Subscriber, Publisher, PathBuf) {
    let bus = Bus::builder().capacity(capacity).at(path).unwrap();
    let topic = bus.topic("t").unwrap();
    (
        topic.subscriber().unwrap(),
        topic.publisher().unwrap(),
        path.join("topics/t"),
    )
}

/// Sends `count` messages of up to `max_len` bytes, while `follow`, which gates nobody, is never more than about
/// `ahead` bytes behind: it misses nothing, as the subscriber, which gates.
fn follow_live(capacity: usize, max_len: usize, ahead: usize, count: u64) {
    let (dir, path) = bus_dir();
    let (mut subscriber, mut publisher, files) = pair(&path, capacity);
    let follower = Follower::start(&follow_program(dir.path()), &files, 2, None);
    let reader = thread::spawn(move || {
        for number in 0..count {
            assert!(subscriber.recv().unwrap()[..] == message(number, max_len));
        }
        assert_eq!(subscriber.recv().unwrap_err().kind(), ErrorKind::Ended);
    });
    let (mut seen, mut unseen_bytes, mut bytes) = (0, 0, 0);
    for number in 0..count {
        let message = message(number, max_len);
        if unseen_bytes + message.len() > ahead {
            while seen < number {
                assert_eq!(follower.line(), line(seen, max_len));
                seen += 1;
            }
            unseen_bytes = 0;
        }
        if number % 3 == 0 {
            // Without an extension, so that the longest fits, too.
            publisher
                .send_with(&Envelope::new(Kind::Event), &message)
                .unwrap();
        } else {
            publisher.send(&message).unwrap();
        }
        unseen_bytes += message.len() + 64;
        bytes += message.len() + 8;
    }
    drop(publisher);
    reader.join().unwrap();
    let (lines, errors, status) = follower.end();
    let rest: Vec<_> = (seen..count).map(|number| line(number, max_len)).collect();
    assert_eq!(lines, rest);
    assert!(status.success() && errors.is_empty(), "{status} {errors}");
    assert!(
        bytes > 50 * capacity,
        "only {bytes} bytes: that is not many times around"
    );
}

#[test]
fn c_follows_a_live_lane() {
    follow_live(16384, 1500, 4096, 2000);
}

#[test]
fn c_follows_the_longest_messages_in_the_smallest_lane() {
    follow_live(4096, 1472, 0, 400);
}

/// `count` messages of up to 500 bytes went through the lane; the last one is not released, so the lane stays.
fn left_lane(path: &Path, count: u64) -> (Subscriber, PathBuf) {
    let (mut subscriber, mut publisher, files) = pair(path, 4096);
    for number in 0..count {
        publisher.send(&message(number, 500)).unwrap();
        if number + 1 < count {
            assert!(subscriber.recv().unwrap()[..] == message(number, 500));
        }
    }
    (subscriber, files)
}

#[test]
fn c_reads_what_a_lane_still_holds() {
    let (dir, path) = bus_dir();
    let follow = follow_program(dir.path());
    let (_subscriber, files) = left_lane(&path, 300);
    let (lines, errors, status) = Follower::start(&follow, &files, 2, None).end();
    assert!(status.success() && errors.is_empty(), "{status} {errors}");
    let first = 300 - lines.len() as u64;
    let held: usize = (first..300)
        .map(|number| message(number, 500).len() + 16)
        .sum();
    assert!(
        held > 4096 / 2 && held < 4096 + 16 * lines.len(),
        "{held} bytes are held"
    );
    assert_eq!(
        lines,
        (first..300)
            .map(|number| line(number, 500))
            .collect::<Vec<_>>()
    );

    let (three, _, status) = Follower::start(&follow, &files, 2, Some(3)).end();
    assert!(status.success());
    assert_eq!(three, lines[..3]);
}

#[test]
fn c_finds_out_that_it_was_overtaken() {
    let (dir, path) = bus_dir();
    let (mut subscriber, mut publisher, files) = pair(&path, 4096);
    let follower = Follower::start(&follow_program(dir.path()), &files, 2, None);
    let mut send = |range: std::ops::Range<u64>| {
        for number in range {
            publisher.send(&message(number, 500)).unwrap();
            let _ = subscriber.recv().unwrap();
        }
    };
    send(0..3);
    for number in 0..3 {
        assert_eq!(follower.line(), line(number, 500));
    }
    let pid = Pid::from_raw(follower.child.id() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    send(3..203);
    kill(pid, Signal::SIGCONT).unwrap();
    let next = follower.line();
    let first: u64 = next.split(' ').next().unwrap().parse().unwrap();
    assert!((180..203).contains(&first), "{next}");
    assert_eq!(next, line(first, 500));
    drop(publisher);
    let (lines, errors, status) = follower.end();
    assert_eq!(
        lines,
        (first + 1..203)
            .map(|number| line(number, 500))
            .collect::<Vec<_>>()
    );
    assert!(
        status.success() && errors.starts_with("follow: overtaken at position "),
        "{status} {errors}"
    );
}

/// Nobody waits for `follow` here: it is overtaken at any time, also while it copies. What it prints must be right.
#[test]
fn c_prints_nothing_torn() {
    let (dir, path) = bus_dir();
    let (subscriber, mut publisher, files) = pair(&path, 4096);
    drop(subscriber);
    let follower = Follower::start(&follow_program(dir.path()), &files, 2, None);
    publisher.send(&message(0, 500)).unwrap();
    assert_eq!(follower.line(), line(0, 500));
    for number in 1..50_000 {
        publisher.send(&message(number, 500)).unwrap();
    }
    drop(publisher);
    let (lines, errors, status) = follower.end();
    assert!(status.success(), "{status} {errors}");
    let mut next = 1;
    for printed in &lines {
        let number: u64 = printed.split(' ').next().unwrap().parse().unwrap();
        assert!(number >= next, "{number} after {next}");
        assert_eq!(*printed, line(number, 500));
        next = number + 1;
    }
    assert_eq!(next, 50_000);
}

#[test]
fn c_refuses_what_is_no_lane() {
    let (dir, path) = bus_dir();
    let follow = follow_program(dir.path());
    let (_subscriber, files) = left_lane(&path, 10);
    let good = fs::read(files.join("lane.2")).unwrap();
    let bad = dir.path().join("bad");
    fs::create_dir(&bad).unwrap();
    let run = |lane: &[u8]| {
        fs::write(bad.join("lane.2"), lane).unwrap();
        let (lines, errors, status) = Follower::start(&follow, &bad, 2, None).end();
        (lines.len(), errors, status.code().unwrap())
    };
    let (count, errors, status) = run(&good);
    assert_eq!((count, &*errors, status), (10, "", 0));

    for (len, says) in [
        (0, "identity"),
        (63, "identity"),
        (64, "size"),
        (4096, "size"),
        (8191, "size"),
    ] {
        let (_, errors, status) = run(&good[..len]);
        assert!(
            status == 1 && errors.contains(says),
            "{len} bytes: {status} {errors}"
        );
    }
    for (offset, byte, says) in [
        (0, b'b', "magic"),
        (7, 1, "magic"),
        (8, 2, "version"),
        (12, 5, "kind"),
        (17, 0, "size"),
        (24, 3, "id"),
        (32, 1, "capacity"),
        (33, 0x20, "capacity"),
    ] {
        let mut lane = good.clone();
        lane[offset] = byte;
        let (_, errors, status) = run(&lane);
        assert!(
            status == 1 && errors.contains(says),
            "{byte} at {offset}: {status} {errors}"
        );
    }
    // The ten messages begin at 0; the words below stand in place of the first one's.
    for (first_word, says) in [
        (0x0000_0000_0000_0010, "not committed"),
        (0x0000_0000_0000_0305, "envelope is longer"),
        (0x0000_0000_0000_0809, "checksum"),
        (0x0000_0001_0000_0011, "sequence"),
        (0x0000_0000_0000_ff91, "crosses the end"),
        (0x0000_0000_0000_5c11, "too long"),
        (0x0000_0000_0000_0013, "does not fill"),
        (0x0000_0000_0000_ff83, "two padding frames"), // the whole ring is padding: so is what follows it
    ] {
        let mut lane = good.clone();
        put(&mut lane, PAGE, u64::to_le_bytes(first_word));
        let (lines, errors, status) = run(&lane);
        assert!(
            lines == 0 && status == 2 && errors.contains(says),
            "{first_word:#x}: {status} {errors}"
        );
    }
    symlink("nowhere", bad.join("lane.9")).unwrap();
    assert_eq!(
        Follower::start(&follow, &bad, 9, None).end().2.code(),
        Some(1)
    );
}

// ------------------------------------------------------------------------------------------------------ durable topics

/// CRC-32C, bit by bit, continued from an earlier result.
fn crc32c(start: u32, bytes: &[u8]) -> u32 {
    let shift = |crc: u32| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
    let byte = |crc: u32, &byte: &u8| (0..8).fold(crc ^ u32::from(byte), |crc, _| shift(crc));
    !bytes.iter().fold(!start, byte)
}

/// As the page has it.
fn checksum(lane: u64, position: u64, word: u64, body: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let place = (position ^ lane.rotate_left(48)).wrapping_mul(K);
    let start = (word ^ place.rotate_left(32)).wrapping_mul(K) >> 32;
    u64::from(crc32c(start as u32, body))
}

#[test]
fn data_files() {
    assert_eq!(
        crc32c(0, b"123456789"),
        0xe306_9283,
        "the check value of CRC-32C"
    );
    let (_dir, path) = bus_dir();
    let bus = Bus::builder()
        .durable(true)
        .capacity(4096)
        .at(&path)
        .unwrap();
    let topic = bus.topic("t").unwrap();
    drop(topic.subscription("s").unwrap());
    let mut publisher = topic.publisher().unwrap();
    publisher.send(b"pears").unwrap();
    publisher
        .send_with(&Envelope::new(Kind::Event), b"apples")
        .unwrap();
    publisher.send(&[7; 1400]).unwrap();
    publisher.send(&[7; 1400]).unwrap();
    publisher.send(&[7; 1400]).unwrap();
    publisher.sync().unwrap();
    let topic = path.join("topics/t");
    let mut all = names(&topic);
    // Made ahead.
    all.retain(|name| name != "data.2.2");
    let expected = [
        "data.2.0",
        "data.2.1",
        "lane.2",
        "locks",
        "subscription.s",
        "topic",
    ];
    assert_eq!(all, expected);
    assert_eq!(fs::metadata(topic.join("lane.2")).unwrap().len(), 4096);
    let config = File::open(topic.join("topic")).unwrap();
    assert_eq!(
        [312, 320, 328, 336].map(|at| word(&config, at)),
        [1, 0, 0, 0]
    );
    assert_eq!(word(&File::open(path.join("bus")).unwrap(), 64), 1);

    let (mut bytes, mut sequence, mut payload) = (Vec::new(), 0, 0);
    for n in 0..2_u64 {
        let data = fs::read(topic.join(format!("data.2.{n}"))).unwrap();
        let at = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
        assert_eq!(data.len(), 8192);
        assert_eq!([16, 24, 32, 48].map(at), [8192, 2, 4096, n]);
        assert_eq!(at(56), u64::from(crc32c(0, &data[..56])));
        assert_eq!([64, 72, 80].map(at), [n * 4096, sequence, payload]);
        assert_eq!(at(96), checksum(2, n * 4096, sequence, &data[80..96]));
        assert!(data[104..4096].iter().all(|&byte| byte == 0));
        let mut position = n * 4096;
        loop {
            let offset = 4096 + (position % 4096) as usize;
            let frame = at(offset);
            if frame == 0 {
                assert!(data[offset..].iter().all(|&byte| byte == 0));
                break;
            }
            let len = (frame & 0xffff_ffff) >> 4;
            let size = (16 + len).next_multiple_of(16);
            let end = offset + size as usize;
            let is_padding = frame & 2 != 0;
            assert_eq!(
                (frame & 9, frame >> 32),
                (9, sequence),
                "committed, and with a checksum"
            );
            let covered = if is_padding {
                &[][..]
            } else {
                &data[offset + 8..end - 8]
            };
            assert_eq!(at(end - 8), checksum(2, position, frame, covered));
            position += size;
            if is_padding {
                assert_eq!(position, (n + 1) * 4096);
                break;
            }
            bytes.push(data[offset + 8..][..len as usize].to_vec());
            (sequence, payload) = (sequence + 1, payload + len);
        }
    }
    assert_eq!(bytes[0], b"pears");
    assert_eq!(bytes[1][56..], *b"apples");
    assert_eq!(bytes[2..], [[7; 1400], [7; 1400], [7; 1400]]);

    let lane = fs::read(topic.join("lane.2")).unwrap();
    let at = |at: usize| u64::from_le_bytes(lane[at..at + 8].try_into().unwrap());
    let synced = [1408, 1440].map(|record| [0, 8, 16, 24].map(|word| at(record + word)));
    let [position, sequence, payload, check] = *synced.iter().max().unwrap();
    assert_eq!((sequence, payload), (5, 5 + 62 + 3 * 1400));
    assert_eq!(
        check,
        checksum(2, position, sequence, &payload.to_le_bytes())
    );
    assert_eq!(
        word(&File::open(topic.join("subscription.s")).unwrap(), 432),
        1,
        "away"
    );
}
