//! What it costs to keep messages on a disk: sending beside a bare copy into files that were prepared in the same way, syncs
//! that several wait for, opening after a crash, reading from the oldest message, and sending while many messages wait.
//!
//! `cargo bench --bench durable -- [DIRECTORY] [GIB]`: on which filesystem (by default that of temporary files), and how much is sent
//! for each figure (10 GiB). The contenders take turns in short rounds; a ratio is divided round by round.
#![allow(unsafe_code)] // The bare files.
#![allow(clippy::disallowed_types)] // When the threads are to end, and what they have done.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use buslane::{Bus, DEFAULT_FILE, Keep, Publisher, Start, SyncPolicy, Topic};
use memmap2::{Advice, MmapMut, MmapOptions};
use nix::fcntl::{FallocateFlags, fallocate};

/// Where a child that is to be killed finds the bus, and how much it sends.
const KILLED: &str = "BUSLANE_BENCH_KILLED";
const GIB: u64 = 1 << 30;
/// Rounds in which the contenders send.
const ROUNDS: u64 = 20;
/// What is timed at once, to find stalls.
const PIECE: u64 = 64 << 10;
const STALL: Duration = Duration::from_millis(50);
/// How long each contender syncs in a round.
const SYNCS: Duration = Duration::from_millis(500);

fn open(path: &Path) -> Bus {
    Bus::builder().durable(true).at(path).unwrap()
}

// --------------------------------------------------------------------------------------------------- the bare contender

/// Files of the same size, made one ahead by another thread in the same way, and a copy of each message into them.
struct Bare {
    next: Receiver<MmapMut>,
    file: MmapMut,
    at: usize,
    maker: Option<JoinHandle<()>>,
}

impl Bare {
    fn new(dir: &Path) -> Self {
        fs::create_dir(dir).unwrap();
        let (maker, next) = sync_channel(0);
        let dir = dir.to_owned();
        let maker = thread::spawn(move || {
            for number in 0_u64.. {
                if maker.send(prepare(&dir.join(number.to_string()))).is_err() {
                    return;
                }
                if let Some(old) = number.checked_sub(6) {
                    fs::remove_file(dir.join(old.to_string())).unwrap();
                }
            }
        });
        let file = next.recv().unwrap();
        let (at, maker) = (0, Some(maker));
        Self {
            next,
            file,
            at,
            maker,
        }
    }

    #[inline]
    fn send(&mut self, message: &[u8]) {
        if self.at + message.len() > self.file.len() {
            (self.file, self.at) = (self.next.recv().unwrap(), 0);
        }
        self.file[self.at..self.at + message.len()].copy_from_slice(message);
        self.at += message.len();
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let (_, closed) = sync_channel(0);
        self.next = closed;
        self.maker.take().unwrap().join().unwrap();
    }
}

fn prepare(path: &Path) -> MmapMut {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, DEFAULT_FILE as i64).unwrap();
    // SAFETY: nobody else uses the file.
    let map = unsafe { MmapOptions::new().len(DEFAULT_FILE).map_mut(&file) }.unwrap();
    map.advise(Advice::PopulateWrite).unwrap();
    map
}

// -------------------------------------------------------------------------------------------------------------- sending

#[derive(Default)]
struct Times {
    rounds: Vec<f64>,
    worst: Duration,
    stalls: u64,
}

impl Times {
    /// Sends so many bytes in messages of this size.
    fn round(&mut self, size: u64, bytes: u64, mut send: impl FnMut()) {
        let started = Instant::now();
        let mut last = started;
        for _ in 0..bytes / PIECE {
            (0..PIECE / size).for_each(|_| send());
            let now = Instant::now();
            self.worst = self.worst.max(now - last);
            self.stalls += u64::from(now - last > STALL);
            last = now;
        }
        self.rounds.push(started.elapsed().as_secs_f64());
    }

    fn rate(&self, bytes: u64) -> f64 {
        bytes as f64 / median(&self.rounds)
    }

    fn stalls(&self) -> String {
        format!(
            "{} stalls over 50 ms, longest {:?}",
            self.stalls, self.worst
        )
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ratio(of: &[f64], to: &[f64]) -> String {
    let ratios: Vec<f64> = of.iter().zip(to).map(|(of, to)| of / to).collect();
    let (least, most) = ratios
        .iter()
        .fold((f64::MAX, 0.0_f64), |(least, most), &ratio| {
            (least.min(ratio), most.max(ratio))
        });
    format!("{:.2} ({least:.2}–{most:.2})", median(&ratios))
}

fn publish(dir: &Path, size: u64, gib: u64) {
    let bus = open(&dir.join("bus"));
    let topic = bus
        .topic_builder("t")
        .keep(Keep::Bytes(DEFAULT_FILE as u64))
        .open()
        .unwrap();
    let mut publisher = topic.publisher().unwrap();
    let mut bare = Bare::new(&dir.join("bare"));
    let message = vec![7; size as usize];
    let bytes = gib * GIB / ROUNDS;
    let (mut ours, mut theirs) = (Times::default(), Times::default());
    // Both have made their first files.
    thread::sleep(Duration::from_millis(200));
    for round in 0..ROUNDS {
        for turn in 0..2 {
            match (round + turn) % 2 {
                0 => ours.round(size, bytes, || publisher.send(&message).unwrap()),
                _ => theirs.round(size, bytes, || bare.send(&message)),
            }
        }
    }
    println!(
        "publish {size:4} B: {:.2} GB/s, bare copy {:.2} GB/s, ratio {}; {}; bare {}",
        ours.rate(bytes) / 1e9,
        theirs.rate(bytes) / 1e9,
        ratio(&theirs.rounds, &ours.rounds),
        ours.stalls(),
        theirs.stalls(),
    );
    drop((publisher, topic));
    bus.remove(true).unwrap();
    drop(bare);
    fs::remove_dir_all(dir.join("bare")).unwrap();
}

// -------------------------------------------------------------------------------------------------------------- syncing

/// How many a second, of what so many threads do for a while, each with its own.
fn rate_of<T: Send>(each: Vec<T>, act: impl Fn(&mut T) + Sync) -> f64 {
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let started = Instant::now();
    thread::scope(|scope| {
        for mut one in each {
            let (over, done, act) = (&over, &done, &act);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    act(&mut one);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(SYNCS);
        over.store(true, Ordering::Relaxed);
    });
    done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}

fn publishers(topic: &Topic, count: usize) -> Vec<Publisher> {
    (0..count).map(|_| topic.publisher().unwrap()).collect()
}

fn group_commit(dir: &Path) {
    let bus = open(&dir.join("bus"));
    let topic = bus
        .topic_builder("t")
        .sync(SyncPolicy::EachMessage)
        .keep(Keep::Bytes(1))
        .open()
        .unwrap();
    let asked = bus
        .topic_builder("asked")
        .keep(Keep::Bytes(1))
        .open()
        .unwrap();
    let bare = |count: usize| -> Vec<(File, MmapMut, usize)> {
        let file = |n: usize| {
            let path = dir.join(format!("bare{n}"));
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)
                .unwrap();
            fallocate(&file, FallocateFlags::empty(), 0, DEFAULT_FILE as i64).unwrap();
            file.sync_all().unwrap();
            // SAFETY: nobody else uses the file.
            let map = unsafe { MmapOptions::new().len(DEFAULT_FILE).map_mut(&file) }.unwrap();
            (file, map, 0)
        };
        (0..count).map(file).collect()
    };
    let touch = |(file, map, at): &mut (File, MmapMut, usize)| {
        map[*at..*at + 80].fill(7);
        *at = (*at + 80) % (DEFAULT_FILE - 80);
        file.sync_data().unwrap();
    };
    let send = |publisher: &mut Publisher| publisher.send(&[7; 64]).unwrap();
    let [mut one, mut eight, mut shared, mut bare_one, mut bare_eight] = [const { Vec::new() }; 5];
    for _ in 0..9 {
        one.push(rate_of(publishers(&topic, 1), send));
        eight.push(rate_of(publishers(&topic, 8), send));
        let publisher = Mutex::new(asked.publisher().unwrap());
        shared.push(rate_of(vec![(); 8], |()| {
            let sent = {
                let mut publisher = publisher.lock().unwrap();
                publisher.send(&[7; 64]).unwrap();
                publisher.sync_point().unwrap()
            };
            sent.wait().unwrap();
        }));
        bare_one.push(rate_of(bare(1), touch));
        bare_eight.push(rate_of(bare(8), touch));
    }
    println!(
        "each message synced: one publisher {:.0}/s; eight, each with a lane, {:.0}/s, ratio {}; \
         eight threads of one publisher {:.0}/s, ratio {}; bare fdatasync: one {:.0}/s, eight files {:.0}/s, ratio {}",
        median(&one),
        median(&eight),
        ratio(&eight, &one),
        median(&shared),
        ratio(&shared, &one),
        median(&bare_one),
        median(&bare_eight),
        ratio(&bare_eight, &bare_one),
    );
    drop((topic, asked));
    bus.remove(true).unwrap();
}

// ------------------------------------------------------------------------------------------------------- after a crash

fn be_killed(path: &Path, gib: u64) {
    let bus = open(path);
    let topic = bus.topic("t").unwrap();
    drop(topic.subscription("s").unwrap());
    let mut publisher = topic.publisher().unwrap();
    let mut message = [0; 1024];
    for number in 0..gib * GIB / 1024 {
        message[..8].copy_from_slice(&number.to_le_bytes());
        publisher.send(&message).unwrap();
    }
    println!("sent");
    thread::sleep(Duration::from_secs(600));
}

fn reopen(dir: &Path, gib: u64) {
    let path = dir.join("bus");
    let mut child = Command::new(env::current_exe().unwrap())
        .env(KILLED, format!("{} {gib}", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    BufReader::new(child.stdout.take().unwrap())
        .lines()
        .next()
        .unwrap()
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();

    let started = Instant::now();
    let bus = open(&path);
    let topic = bus.topic("t").unwrap();
    let mut publisher = topic.publisher().unwrap();
    publisher.send(b"again").unwrap();
    let mut subscription = topic.subscription("s").unwrap();
    assert_eq!(subscription.recv().unwrap()[..8], 0_u64.to_le_bytes());
    println!("reopened with {gib} GiB behind: {:?}", started.elapsed());

    for turn in ["first", "second"] {
        let started = Instant::now();
        let mut reader = topic.subscriber_from(Start::Oldest).unwrap();
        let mut sum = 0_u64;
        let count = gib * GIB / 1024;
        for _ in 0..count {
            let frame = reader.recv().unwrap();
            let (words, _) = frame.as_chunks();
            sum = words
                .iter()
                .fold(sum, |sum, &word| sum.wrapping_add(u64::from_le_bytes(word)));
        }
        assert_eq!(sum, count * (count - 1) / 2);
        let rate = (count * 1024) as f64 / started.elapsed().as_secs_f64() / 1e9;
        println!("read from the oldest, 1 KiB, {turn} time: {rate:.2} GB/s");
    }
    drop((publisher, subscription, topic));
    bus.remove(true).unwrap();
}

// ------------------------------------------------------------------------------------------------------- many that wait

fn backlog(dir: &Path) {
    let bus = open(&dir.join("bus"));
    let [few, many] = ["few", "many"].map(|name| bus.topic(name).unwrap());
    let mut reader = few.subscription("s").unwrap();
    drop(many.subscription("s").unwrap());
    let [mut to_few, mut to_many] = [&few, &many].map(|topic| topic.publisher().unwrap());
    for _ in 0..1_000_000 {
        to_many.send(&[7; 64]).unwrap();
    }
    const BATCH: u32 = 1000;
    let [mut with_few, mut with_many] = [const { Vec::new() }; 2];
    let time = |publisher: &mut Publisher| {
        let started = Instant::now();
        for _ in 0..BATCH {
            publisher.send(&[7; 64]).unwrap();
        }
        started.elapsed().as_nanos() as f64 / f64::from(BATCH)
    };
    for _ in 0..500 {
        with_few.push(time(&mut to_few));
        with_many.push(time(&mut to_many));
        for _ in 0..BATCH {
            drop(reader.recv().unwrap());
        }
    }
    println!(
        "publish 64 B, nanoseconds: with at most 1,000 waiting {:.1}, with 1,000,000 {:.1}, ratio {}",
        median(&with_few),
        median(&with_many),
        ratio(&with_many, &with_few),
    );
    drop((reader, to_few, to_many, few, many));
    bus.remove(true).unwrap();
}

fn main() {
    if let Ok(killed) = env::var(KILLED) {
        let (path, gib) = killed.rsplit_once(' ').unwrap();
        return be_killed(Path::new(path), gib.parse().unwrap());
    }
    let mut words = env::args().skip(1).filter(|word| !word.starts_with("--"));
    let under = words.next().map_or_else(env::temp_dir, PathBuf::from);
    let gib = words.next().map_or(10, |gib| gib.parse().unwrap());
    let dir = tempfile::tempdir_in(under).unwrap();
    if gib == 0 {
        // The syncs alone.
        return group_commit(dir.path());
    }
    for size in [64, 1024] {
        publish(dir.path(), size, gib);
    }
    group_commit(dir.path());
    backlog(dir.path());
    reopen(dir.path(), gib);
}
