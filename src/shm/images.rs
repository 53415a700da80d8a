//! What a disk may have kept when power is lost, built from what a run has stored and synced: each 512 bytes on their own have any
//! prefix of the stores to them since the last sync. Every such image is opened: all that was synced is there, whole, in order,
//! once, and what else is there is what was sent behind it.
//!
//! Of tiny logs these are all images, of larger ones as many as `BUSLANE_IMAGES` says, by seeds that are printed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use super::tape::{self, Event};
use crate::{Bus, Publisher, Start};

const SECTOR: u64 = 512;
/// Bytes in a data file.
const FILE: usize = 4096;
/// Where the boot is in the file of a bus: another one is told by another number.
const BOOT: usize = 4096 + 128;
/// Every so many images, what was recovered is recovered once more.
const AGAIN: usize = 5;
/// Images of larger logs, unless the environment says otherwise.
const IMAGES: usize = 400;

#[derive(Clone, Copy, Debug)]
enum Step {
    Send(usize),
    /// Lends so much, commits so much of it.
    Loan(usize, usize),
    /// Lends, and gives back.
    Abort(usize),
    Sync,
}

fn message(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (number * 31 + i) as u8 | 1).collect()
}

/// What a run has left, and what it did.
struct Run {
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// The lane's header after each step, and how many events there had been.
    headers: Vec<(usize, Vec<u8>)>,
    sent: Vec<Vec<u8>>,
    /// From this event on so many messages are known to be synced.
    synced: Vec<(usize, usize)>,
    events: Vec<Event>,
    /// The numbers of the data files' inodes.
    inodes: BTreeMap<u64, PathBuf>,
}

/// Has a bus be in this boot of the machine, as far as it can tell.
fn set_boot(bus: &Path, boot: u64) {
    let mut content = fs::read(bus.join("bus")).unwrap();
    content[BOOT..BOOT + 8].copy_from_slice(&boot.to_le_bytes());
    fs::write(bus.join("bus"), content).unwrap();
}

fn is_data(path: &Path) -> bool {
    path.file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .starts_with("data.")
}

fn act(publisher: &mut Publisher, step: Step, sent: &mut Vec<Vec<u8>>) {
    let mut lend = |len: usize, part: usize| {
        let message = message(sent.len(), len);
        let mut loan = publisher.loan(len).unwrap();
        loan.copy_from_slice(&message);
        loan.commit_len(part);
        sent.push(message[..part].to_vec());
    };
    match step {
        Step::Send(len) => {
            sent.push(message(sent.len(), len));
            publisher.send(sent.last().unwrap()).unwrap();
        }
        Step::Loan(len, part) => lend(len, part),
        Step::Abort(len) => publisher.loan(len).unwrap().fill(0xee),
        Step::Sync => publisher.sync().unwrap(),
    }
}

impl Run {
    fn of(steps: &[Step]) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("bus");
        tape::start();
        let bus = Bus::builder()
            .durable(true)
            .capacity(FILE)
            .at(&path)
            .unwrap();
        let mut publisher = bus.topic("t").unwrap().publisher().unwrap();
        let header = path.join(format!("topics/t/lane.{}", publisher.lane()));
        let (mut sent, mut synced) = (Vec::new(), vec![(0, 0)]);
        let mut headers = vec![(tape::events().len(), fs::read(&header).unwrap())];
        for &step in steps {
            act(&mut publisher, step, &mut sent);
            headers.push((tape::events().len(), fs::read(&header).unwrap()));
            if let Step::Sync = step {
                synced.push((tape::events().len(), sent.len()));
            }
        }
        drop((publisher, bus));
        let (events, mut files, mut inodes) = (tape::events(), BTreeMap::new(), BTreeMap::new());
        for name in ["bus", "topics/t"] {
            let found = path.join(name);
            let names = match found.is_dir() {
                true => fs::read_dir(&found)
                    .unwrap()
                    .map(|entry| entry.unwrap().path())
                    .collect(),
                false => vec![found],
            };
            for name in names {
                inodes.insert(fs::metadata(&name).unwrap().ino(), name.clone());
                files.insert(
                    name.strip_prefix(&path).unwrap().to_owned(),
                    fs::read(&name).unwrap(),
                );
            }
        }
        let events = events.into_iter().filter(|event| match event {
            Event::Store(at, ..) => at.starts_with(&path) && is_data(at),
            Event::Sync(inode) => inodes.get(inode).is_some_and(|path| is_data(path)),
        });
        let is_ours: Vec<Event> = events.collect();
        // What is counted are events of all files: again, of ours alone.
        let all = tape::events();
        let before = |upto: usize| {
            let ours = |event: &&Event| match event {
                Event::Store(at, ..) => at.starts_with(&path) && is_data(at),
                Event::Sync(inode) => inodes.get(inode).is_some_and(|path| is_data(path)),
            };
            all[..upto].iter().filter(ours).count()
        };
        let synced = synced
            .into_iter()
            .map(|(upto, count)| (before(upto), count))
            .collect();
        let headers = headers
            .into_iter()
            .map(|(upto, header)| (before(upto), header))
            .collect();
        let name = |path: &PathBuf| PathBuf::from("topics/t").join(path.file_name().unwrap());
        let inodes = inodes
            .iter()
            .map(|(inode, path)| (*inode, name(path)))
            .collect();
        Self {
            files,
            headers,
            sent,
            synced,
            events: is_ours,
            inodes,
        }
    }

    /// The times between two syncs: what is on the disk then of each file, and what was stored since, of each sector, in words.
    fn epochs(&self) -> Vec<Epoch> {
        let mut kept: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        for (path, content) in self.files.iter().filter(|(path, _)| is_data(path)) {
            // As it was made: its name was synced with that.
            let mut made = vec![0; content.len()];
            made[..64].copy_from_slice(&content[..64]);
            kept.insert(path.clone(), made);
        }
        let mut pending: BTreeMap<(PathBuf, u64), Vec<(usize, u64)>> = BTreeMap::new();
        let mut epochs = Vec::new();
        let mut began = 0;
        let known = |at: usize| {
            let known = self.synced.iter().rev().find(|(from, _)| *from <= at);
            known.map_or(0, |(_, count)| *count)
        };
        // What the header says was stored after it was so.
        let headers = |at: usize| {
            let until = self.headers.iter().take_while(|(upto, _)| *upto <= at);
            until.count().max(1)
        };
        for (at, event) in self.events.iter().enumerate() {
            match event {
                Event::Store(path, offset, bytes) => {
                    let path = PathBuf::from("topics/t").join(path.file_name().unwrap());
                    let mut bytes = bytes.clone();
                    // A payload may end within a word; what is behind it is stored later.
                    bytes.resize(bytes.len().next_multiple_of(8), 0);
                    let (words, _) = bytes.as_chunks();
                    for (i, &word) in words.iter().enumerate() {
                        let offset = offset + 8 * i as u64;
                        let sector = (path.clone(), offset / SECTOR);
                        let word = u64::from_le_bytes(word);
                        pending
                            .entry(sector)
                            .or_default()
                            .push((offset as usize, word));
                    }
                }
                Event::Sync(inode) => {
                    epochs.push(Epoch {
                        kept: kept.clone(),
                        pending: pending.clone(),
                        known: known(began),
                        headers: headers(at),
                    });
                    let path = &self.inodes[inode];
                    let synced = pending.extract_if(.., |(of, _), _| of == path);
                    for ((path, _), stores) in synced.collect::<Vec<_>>() {
                        play(kept.get_mut(&path).unwrap(), &stores);
                    }
                    began = at + 1;
                }
            }
        }
        epochs.push(Epoch {
            kept,
            pending,
            known: known(began),
            headers: headers(usize::MAX),
        });
        epochs
    }
}

struct Epoch {
    kept: BTreeMap<PathBuf, Vec<u8>>,
    pending: BTreeMap<(PathBuf, u64), Vec<(usize, u64)>>,
    /// How many messages were known to be synced when it began.
    known: usize,
    /// How many of the lane's headers there had been when it ended.
    headers: usize,
}

fn play(content: &mut [u8], stores: &[(usize, u64)]) {
    for (offset, word) in stores {
        content[*offset..offset + 8].copy_from_slice(&word.to_le_bytes());
    }
}

/// Where images are opened, one after the other.
struct Bench {
    dir: TempDir,
    images: usize,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        Self { dir, images: 0 }
    }

    /// Opens what is left if of each sector's stores so many were kept, and the lane's header is that one.
    fn check(&mut self, run: &Run, epoch: &Epoch, kept: &[usize], header: &[u8]) {
        self.images += 1;
        let path = self.dir.path().join("bus");
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("topics/t")).unwrap();
        fs::create_dir(path.join("members")).unwrap();
        let mut files = epoch.kept.clone();
        for (((of, _), stores), &kept) in epoch.pending.iter().zip(kept) {
            play(files.get_mut(of).unwrap(), &stores[..kept]);
        }
        for (name, content) in &run.files {
            let mut content = content.clone();
            let file_name = name.file_name().unwrap().to_str().unwrap();
            if file_name == "bus" {
                content[BOOT..BOOT + 8].copy_from_slice(&12345_u64.to_le_bytes());
            } else if file_name.starts_with("lane.") {
                content.copy_from_slice(header);
            }
            fs::write(path.join(name), files.get(name).unwrap_or(&content)).unwrap();
        }
        for dir in ["", "topics", "topics/t", "members"] {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(path.join(dir), fs::Permissions::from_mode(0o700)).unwrap();
        }
        let context = || {
            format!(
                "kept {kept:?} of {:?}",
                epoch.pending.keys().collect::<Vec<_>>()
            )
        };
        let bus = Bus::at(&path).unwrap();
        let topic = bus.topic("t").unwrap();
        let read = |topic: &crate::Topic| {
            let mut subscriber = topic.subscriber_from(Start::Oldest).unwrap();
            let mut got = Vec::new();
            loop {
                match subscriber.try_recv() {
                    Ok(Some(frame)) => got.push(frame.to_vec()),
                    Ok(None) => return got,
                    Err(e) if e.kind() == crate::ErrorKind::Ended => return got,
                    Err(e) => panic!("{e}: {}", context()),
                }
            }
        };
        let mut got = read(&topic);
        assert!(
            got.len() >= epoch.known,
            "{} of {} synced: {}",
            got.len(),
            epoch.known,
            context()
        );
        assert!(
            got.len() <= run.sent.len() && got[..] == run.sent[..got.len()],
            "{}",
            context()
        );
        topic.publisher().unwrap().send(b"after").unwrap();
        got.push(b"after".to_vec());
        let again = read(&topic);
        let cuts = bus.cuts();
        assert!(
            again == got,
            "{} of {} after {cuts:?}: {}",
            again.len(),
            got.len(),
            context()
        );
        drop((topic, bus));
        if !self.images.is_multiple_of(AGAIN) {
            return;
        }
        set_boot(&path, 54321);
        let bus = Bus::at(&path).unwrap();
        assert!(
            bus.cuts().is_empty(),
            "{:?} again: {}",
            bus.cuts(),
            context()
        );
        let again = read(&bus.topic("t").unwrap());
        let names: Vec<_> = fs::read_dir(path.join("topics/t"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert!(
            again == got,
            "{} of {}: {names:?} {:?} {}",
            again.len(),
            got.len(),
            bus.cuts(),
            context()
        );
    }
}

/// All images of a run.
fn check_all(steps: &[Step]) -> usize {
    let run = Run::of(steps);
    let mut bench = Bench::new();
    for epoch in run.epochs() {
        let headers = [0, epoch.headers - 1].map(|at| &run.headers[at].1);
        let most: Vec<usize> = epoch.pending.values().map(Vec::len).collect();
        let all: usize = most.iter().map(|most| most + 1).product();
        assert!(all < 20_000, "that is not tiny: {all}");
        let mut kept = vec![0; most.len()];
        loop {
            for header in headers {
                bench.check(&run, &epoch, &kept, header);
            }
            let Some(next) = (0..kept.len()).find(|&i| kept[i] < most[i]) else {
                break;
            };
            kept[next] += 1;
            kept[..next].fill(0);
        }
    }
    bench.images
}

/// A row of numbers that are no pattern: `splitmix64`, by S. Vigna.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) as usize % n
    }
}

/// Some images of a larger run; each sector of the header may be older or newer, too.
fn check_some(steps: &[Step], seed: u64, images: usize) {
    let run = Run::of(steps);
    let mut random = Random(seed);
    let mut bench = Bench::new();
    let epochs = run.epochs();
    for _ in 0..images {
        let epoch = &epochs[random.below(epochs.len())];
        let all = [0, 1, 2][random.below(3)];
        let pick = |stores: &Vec<_>| match all {
            // Most sectors whole or untouched: then single ones decide.
            0 => stores.len() * random.below(2),
            _ => random.below(stores.len() + 1),
        };
        let kept: Vec<usize> = epoch.pending.values().map(pick).collect();
        let mut header = run.headers[0].1.clone();
        for sector in header.chunks_mut(SECTOR as usize).enumerate() {
            let (i, sector) = sector;
            let version = &run.headers[random.below(epoch.headers)].1;
            sector.copy_from_slice(&version[i * SECTOR as usize..][..SECTOR as usize]);
        }
        bench.check(&run, epoch, &kept, &header);
    }
}

/// The tape is one.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn all_images_of_tiny_logs() {
    use Step::{Abort, Loan, Send, Sync};
    let _one = one_at_a_time();
    let logs: [&[Step]; 6] = [
        &[Send(8), Send(8), Send(8)],
        &[Send(8), Sync, Send(20), Send(1), Sync, Send(8)],
        &[Send(100), Loan(40, 3), Send(8), Sync, Abort(60), Send(8)],
        // A sector's end is within a message.
        &[Send(440), Sync, Send(60), Send(8)],
        &[Send(400), Sync, Send(72), Sync, Send(8)],
        &[],
    ];
    let count = |steps: &&[Step]| {
        let images = check_all(steps);
        println!("{images} images of {steps:?}");
        images
    };
    let images: Vec<usize> = logs.iter().map(count).collect();
    println!("{} images: {images:?}", images.iter().sum::<usize>());
}

#[test]
fn some_images_of_larger_logs() {
    let _one = one_at_a_time();
    let images = std::env::var("BUSLANE_IMAGES").map_or(IMAGES, |images| images.parse().unwrap());
    // From one file to the next, at all distances from its end.
    for len in 0..8 {
        let (big, last) = (Step::Send(1300), Step::Send(1150 + 16 * len));
        let steps = [
            big,
            big,
            Step::Sync,
            last,
            Step::Sync,
            Step::Send(24),
            Step::Send(40),
            Step::Sync,
            big,
        ];
        check_some(&steps, len as u64, images / 16);
    }
    let seeds = 10;
    for seed in 0..seeds {
        let mut random = Random(seed);
        let steps: Vec<Step> = (0..40 + random.below(60))
            .map(|_| match random.below(10) {
                0 => Step::Sync,
                1 => Step::Loan(600, random.below(600)),
                2 => Step::Abort(random.below(1000)),
                3 => Step::Send(random.below(1400)),
                _ => Step::Send(random.below(200)),
            })
            .collect();
        println!(
            "seed {seed}: {} steps, {} images",
            steps.len(),
            images / seeds as usize
        );
        check_some(&steps, seed, images / seeds as usize);
    }
}

/// Copies a tree; of the files that were never synced, the name with so many zeros, or with as many as it had bytes. What a
/// topic counts is as it was made.
fn copy_as_kept(from: &Path, to: &Path, synced: &[u64], zeros: Option<usize>) -> Vec<String> {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    let mut blank = Vec::new();
    for entry in fs::read_dir(from).unwrap() {
        let from = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        let about = fs::metadata(&from).unwrap();
        if about.is_dir() {
            blank.extend(copy_as_kept(&from, &to, synced, zeros));
            continue;
        }
        fs::copy(&from, &to).unwrap();
        if from.ends_with("topic") {
            let file = fs::File::options().write(true).open(&to).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 4096).unwrap();
        }
        if !synced.contains(&about.ino()) {
            let len = zeros.map_or(about.len(), |zeros| zeros as u64);
            let file = fs::File::options().write(true).open(&to).unwrap();
            file.set_len(0).unwrap();
            file.set_len(len).unwrap();
            blank.push(to.display().to_string());
        }
    }
    blank
}

/// A name may reach the disk before what it names, unless that was synced before.
#[test]
fn what_was_never_synced_has_a_name_and_no_content() {
    let _one = one_at_a_time();
    for zeros in [None, Some(0), Some(4096)] {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (path, kept) = (dir.path().join("bus"), dir.path().join("kept"));
        tape::start();
        let bus = Bus::builder().durable(true).at(&path).unwrap();
        let topic = bus.topic("t").unwrap();
        let named = topic.subscription("s").unwrap();
        let subscriber = topic.subscriber().unwrap();
        let mut publisher = topic.publisher().unwrap();
        let queue = bus.queue("q").unwrap();
        let group = queue.consumer_builder().group("g").open().unwrap();
        let mut producer = queue.producer().unwrap();
        publisher.send(b"sent").unwrap();
        publisher.sync().unwrap();
        producer.push(b"pushed").unwrap();
        producer.sync().unwrap();
        let state = bus.state("board").unwrap();
        let mut writer = state.writer().unwrap();
        writer.set(b"key", b"value").unwrap();
        let service = bus.service("s").unwrap();
        let roles = (service.server().unwrap(), service.client().unwrap());
        let synced: Vec<u64> = tape::events()
            .iter()
            .filter_map(|event| match event {
                Event::Sync(inode) => Some(*inode),
                Event::Store(..) => None,
            })
            .collect();
        let blank = copy_as_kept(&path, &kept, &synced, zeros);
        drop((named, subscriber, publisher, group, producer, writer, roles));
        set_boot(&kept, 12345);
        println!("{blank:#?}");
        let bus = Bus::at(&kept).unwrap();
        assert!(bus.cuts().is_empty(), "{:?}", bus.cuts());
        let mut named = bus.topic("t").unwrap().subscription("s").unwrap();
        assert_eq!(&*named.recv().unwrap(), b"sent");
        let queue = bus.queue("q").unwrap();
        for group in ["g", "default"] {
            let mut consumer = queue.consumer_builder().group(group).open().unwrap();
            assert_eq!(&*consumer.recv().unwrap(), b"pushed");
        }
        let topic = bus.topic("t").unwrap();
        let publishers: Vec<_> = (0..8).map(|_| topic.publisher().unwrap()).collect();
        let subscribers: Vec<_> = (0..8).map(|_| topic.subscriber().unwrap()).collect();
        drop((publishers, subscribers));
        queue.producer().unwrap().push(b"again").unwrap();
        drop(bus.state("board").unwrap().writer().unwrap());
        drop(bus.service("s").unwrap().server().unwrap());
        bus.reclaim().unwrap();
        assert!(bus.members().unwrap().iter().all(|member| member.alive));
    }
}
