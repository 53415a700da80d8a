//! What a disk, a full filesystem, and `kill -9` do to durable topics: it is found, told, and nothing wrong is handed out.

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use buslane::{Bus, Envelope, ErrorKind, Keep, Kind, Publisher, Start, Subscriber};
use common::{Private, private, role, say, set_boot};

/// Bytes in a data file: few, so that there are many of them.
const FILE: usize = 4096;

fn open(path: &Path) -> Bus {
    let builder = Bus::builder().durable(true).capacity(FILE);
    builder.at(path).unwrap()
}

/// A small log of two files: what it holds.
fn small_log(private: &Private) -> Vec<Vec<u8>> {
    let bus = open(&private.path);
    let mut publisher = bus.topic("t").unwrap().publisher().unwrap();
    let mut sent: Vec<Vec<u8>> = Vec::new();
    for len in [0, 1, 8, 100, 1400, 1400, 300, 33, 900, 7] {
        sent.push((0..len).map(|i| (i * 7 + len) as u8).collect());
        let message = sent.last().unwrap();
        match len {
            33 => publisher
                .send_with(&Envelope::new(Kind::Event), message)
                .unwrap(),
            _ => publisher.send(message).unwrap(),
        }
    }
    sent
}

fn data_file(private: &Private, number: u64) -> PathBuf {
    let names = private.names("topics/t");
    let name = names
        .iter()
        .find(|name| name.starts_with("data.") && name.ends_with(&format!(".{number}")));
    private.path.join("topics/t").join(name.unwrap())
}

/// Receives all, past what is damaged: the messages, and how many errors there were.
fn receive(bus: &Bus) -> (Vec<Vec<u8>>, usize) {
    let topic = bus.topic("t").unwrap();
    let (mut got, mut errors) = (Vec::new(), 0);
    let Ok(mut subscriber) = topic.subscriber_from(Start::Oldest) else {
        return (got, 1);
    };
    loop {
        let received = subscriber
            .try_recv()
            .map(|frame| frame.map(|frame| frame.to_vec()));
        match received {
            Ok(Some(message)) => got.push(message),
            Ok(None) => return (got, errors),
            Err(e) if e.kind() == ErrorKind::Ended => return (got, errors),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
                errors += 1;
                if subscriber.skip_damaged().unwrap().bytes == 0 {
                    return (got, errors);
                }
            }
        }
    }
}

fn is_part_of(got: &[Vec<u8>], sent: &[Vec<u8>]) -> bool {
    let mut sent = sent.iter();
    got.iter().all(|got| sent.any(|sent| sent == got))
}

#[test]
fn every_bit_of_a_small_log() {
    let private = private();
    let sent = small_log(&private);
    let bus = open(&private.path);
    assert!(bus.verify("t").unwrap().damage.is_empty());
    assert_eq!(bus.verify("t").unwrap().messages, sent.len() as u64);
    let is_long = std::env::var_os("BUSLANE_EVERY_BIT").is_some();
    let (step, mut flipped, mut read) = (if is_long { 1 } else { 13 }, 0, 0);
    for number in 0..2 {
        let path = data_file(&private, number);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let mut byte = [0];
        for bit in (0..8 * (4096 + FILE as u64)).step_by(step) {
            file.read_exact_at(&mut byte, bit / 8).unwrap();
            let was = byte;
            byte[0] ^= 1 << (bit % 8);
            file.write_all_at(&byte, bit / 8).unwrap();
            let verified = bus.verify("t").unwrap();
            assert!(
                !verified.damage.is_empty(),
                "bit {bit} of file {number} is not noticed"
            );
            flipped += 1;
            if flipped % 37 == 0 {
                let (got, errors) = receive(&bus);
                assert!(
                    is_part_of(&got, &sent),
                    "bit {bit} of file {number}: a wrong message"
                );
                assert!(
                    errors > 0 || got == sent,
                    "bit {bit} of file {number}: a message is missing"
                );
                read += 1;
            }
            file.write_all_at(&was, bit / 8).unwrap();
        }
    }
    println!(
        "{flipped} bits flipped, one at a time: each was found; {read} times all was received"
    );
    assert_eq!(receive(&bus), (sent, 0));
}

#[test]
fn a_file_that_is_cut_off_or_missing() {
    let private = private();
    let sent = small_log(&private);
    let bus = open(&private.path);
    let path = data_file(&private, 0);
    let whole = fs::read(&path).unwrap();
    for len in [0, 100, 4096, 6000] {
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(len)
            .unwrap();
        let mut subscriber = match bus.topic("t").unwrap().subscriber_from(Start::Oldest) {
            Ok(_) => panic!("a file of {len} bytes is not noticed"),
            Err(e) => {
                assert!(
                    matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotBuslane),
                    "{e}"
                );
                bus.topic("t").unwrap().subscriber().unwrap()
            }
        };
        assert!(!matches!(subscriber.try_recv(), Ok(Some(_))));
        let damage = bus.verify("t").unwrap().damage;
        assert!(
            damage.iter().any(|damage| damage.position == 0),
            "{damage:?}"
        );
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(receive(&bus), (sent.clone(), 0));
    let second = data_file(&private, 1);
    let aside = private.path.join("aside");
    fs::rename(&second, &aside).unwrap();
    fs::rename(&path, &second).unwrap();
    let (got, errors) = receive(&bus);
    assert!(got.is_empty() && errors > 0, "one file in place of another");
    fs::rename(&second, &path).unwrap();
    fs::rename(&aside, &second).unwrap();
    assert_eq!(receive(&bus), (sent, 0));
}

fn write(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn more_files_behind_a_hole_than_have_a_place() {
    let private = private();
    let bus = open(&private.path);
    let topic = bus.topic("t").unwrap();
    drop(topic.subscription("s").unwrap());
    let mut publisher = topic.publisher().unwrap();
    publisher.send(b"synced").unwrap();
    publisher.sync().unwrap();
    let files = 4100;
    (0..2 * files).for_each(|_| publisher.send(&[1; FILE / 3]).unwrap());
    drop((publisher, topic, bus));
    write(&data_file(&private, 1), 4096, &[0; 8]);
    set_boot(&private.path);
    let bus = open(&private.path);
    let [cut] = bus.cuts() else {
        panic!("there is a hole: {:?}", bus.cuts());
    };
    assert_eq!(cut.at, FILE as u64);
    assert!(cut.at + cut.bytes > FILE as u64 * (files - 2), "{cut:?}");
}

#[test]
fn a_bus_with_a_damaged_file_can_be_opened() {
    for (number, is_other_boot) in [(0, false), (1, false), (0, true), (1, true)] {
        let private = private();
        let sent = small_log(&private);
        let path = data_file(&private, number);
        write(&path, 20, &[1]);
        if is_other_boot {
            set_boot(&private.path);
        }
        let bus = open(&private.path);
        assert!(!bus.verify("t").unwrap().damage.is_empty());
        let (got, errors) = receive(&bus);
        assert!(errors > 0 && is_part_of(&got, &sent));
        bus.topic("t")
            .unwrap()
            .publisher()
            .unwrap()
            .send(b"after")
            .unwrap();
    }
}

/// Files that all had passed are gone, and the places that said so never reached the disk.
#[test]
fn places_that_are_older_than_the_disk() {
    let private = private();
    let bus = open(&private.path);
    let (topic, queue) = (bus.topic("t").unwrap(), bus.queue("q").unwrap());
    let mut subscription = topic.subscription("s").unwrap();
    let (mut publisher, mut producer) = (topic.publisher().unwrap(), queue.producer().unwrap());
    let mut consumer = queue.consumer().unwrap();
    let count = 40_u64;
    for n in 0..count {
        publisher.send(&n.to_le_bytes().repeat(125)).unwrap();
        producer.push(&n.to_le_bytes().repeat(125)).unwrap();
    }
    for n in 0..count - 2 {
        assert_eq!(subscription.recv().unwrap()[..8], n.to_le_bytes());
        let delivery = consumer.recv().unwrap();
        assert_eq!(delivery[..8], n.to_le_bytes());
        delivery.ack().unwrap();
    }
    publisher.sync().unwrap();
    producer.sync().unwrap();
    subscription.ack().unwrap();
    drop((
        subscription,
        consumer,
        publisher,
        producer,
        topic,
        queue,
        bus,
    ));
    let names = private.names("topics/t");
    assert!(
        !names
            .iter()
            .any(|name| name.ends_with(".0") && name.starts_with("data."))
    );
    // The position in the first slot, and the head.
    write(
        &private.path.join("topics/t/subscription.s"),
        4096 + 8,
        &[0; 8],
    );
    let claims = private
        .names("topics/q")
        .into_iter()
        .find(|name| name.starts_with("claims."));
    let claims = private.path.join("topics/q").join(claims.unwrap());
    write(&claims, 4096 + 8, &[0; 8]);
    write(&claims, 8192, &[0; 2048]);
    set_boot(&private.path);

    let bus = open(&private.path);
    let mut subscription = bus.topic("t").unwrap().subscription("s").unwrap();
    let mut consumer = bus.queue("q").unwrap().consumer().unwrap();
    let last = (count - 1).to_le_bytes();
    // Some come again; none is said to be lost.
    while subscription.recv().unwrap()[..8] != last {}
    loop {
        let delivery = consumer.recv().unwrap();
        let is_last = delivery[..8] == last;
        delivery.ack().unwrap();
        if is_last {
            break;
        }
    }
    assert!(consumer.is_empty().unwrap());
}

/// Sends until only so many files are left.
fn send_until_files_are_left(publisher: &mut Publisher, private: &Private, left: usize) {
    let is_data = |name: &String| name.starts_with("data.");
    for _ in 0..2000 {
        if private
            .names("topics/t")
            .iter()
            .filter(|name| is_data(name))
            .count()
            <= left
        {
            return;
        }
        publisher.send(b"more").unwrap();
        publisher.sync().unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{:?}", private.names("topics/t"));
}

/// What a file says of what is before it did not reach the disk, and its frames did.
#[test]
fn a_file_whose_beginning_was_lost_with_the_power() {
    for lost in [[0; 64], [0xa5; 64]] {
        let private = private();
        let bus = open(&private.path);
        let topic = bus.topic("t").unwrap();
        drop(topic.subscription("s").unwrap());
        let mut publisher = topic.publisher().unwrap();
        for n in 0..12_u64 {
            publisher.send(&n.to_le_bytes().repeat(150)).unwrap();
        }
        drop((publisher, topic, bus));
        let start = data_file(&private, 1);
        let was = fs::read(&start).unwrap()[64..64 + 24].to_vec();
        write(&start, 64, &lost);
        // Nothing was said to be synced.
        let lane = private
            .names("topics/t")
            .into_iter()
            .find(|name| name.starts_with("lane."));
        write(
            &private.path.join("topics/t").join(lane.unwrap()),
            1408,
            &[0; 64],
        );
        set_boot(&private.path);
        let bus = open(&private.path);
        assert!(bus.cuts().is_empty(), "{:?}", bus.cuts());
        assert_eq!(fs::read(&start).unwrap()[64..64 + 24], was);
        let topic = bus.topic("t").unwrap();
        let mut subscription = topic.subscription("s").unwrap();
        let mut publisher = topic.publisher().unwrap();
        for n in 0..4_u64 {
            assert_eq!(subscription.recv().unwrap()[..8], n.to_le_bytes());
        }
        subscription.ack().unwrap();
        publisher.send(b"more").unwrap();
        while private
            .names("topics/t")
            .iter()
            .any(|name| name.ends_with(".0") && name.starts_with("data."))
        {
            publisher.sync().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut oldest = topic.subscriber_from(Start::Oldest).unwrap();
        assert_eq!(oldest.recv().unwrap()[..8], 3_u64.to_le_bytes());
    }
}

/// A file that does not say when it was begun holds up neither those before it nor those behind it.
#[test]
fn files_go_by_time_past_one_that_is_damaged() {
    let private = private();
    let bus = open(&private.path);
    let age = Duration::from_secs(1);
    let topic = bus.topic_builder("t").keep(Keep::For(age)).open().unwrap();
    let mut publisher = topic.publisher().unwrap();
    for _ in 0..30 {
        publisher.send(&[1; 1200]).unwrap();
    }
    write(&data_file(&private, 3), 64, &[0xa5; 64]);
    std::thread::sleep(age);
    send_until_files_are_left(&mut publisher, &private, 4);
}

#[test]
fn bits_of_a_queue() {
    let private = private();
    let bus = open(&private.path);
    let queue = bus.queue("q").unwrap();
    let mut producer = queue.producer().unwrap();
    let sent: Vec<Vec<u8>> = (0..12_u8).map(|n| vec![n; 40 + usize::from(n)]).collect();
    producer.push_batch(&sent).unwrap();
    let mut consumer = queue.consumer().unwrap();
    for _ in 0..4 {
        consumer.recv().unwrap().ack().unwrap();
    }
    drop((consumer, producer, queue, bus));
    let copy = private.path.with_file_name("copy");
    let name = private
        .names("topics/q")
        .into_iter()
        .find(|name| name.starts_with("data."));
    let name = name.unwrap();
    let whole = fs::read(private.path.join("topics/q").join(&name)).unwrap();
    let mut damaged = 0;
    for bit in (8 * 4096..8 * (4096 + 800)).step_by(53) {
        let _ = fs::remove_dir_all(&copy);
        let copied = Command::new("cp")
            .arg("-a")
            .arg(&private.path)
            .arg(&copy)
            .status()
            .unwrap();
        assert!(copied.success());
        let byte = whole[bit / 8] ^ 1 << (bit % 8);
        write(&copy.join("topics/q").join(&name), bit as u64 / 8, &[byte]);
        let bus = open(&copy);
        let mut consumer = bus.queue("q").unwrap().consumer().unwrap();
        let mut got = Vec::new();
        let mut is_told = false;
        loop {
            match consumer.try_recv() {
                Ok(Some(delivery)) => {
                    got.push(delivery.to_vec());
                    delivery.ack().unwrap();
                }
                Ok(None) => break,
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
                    is_told = true;
                    consumer.skip_damaged().unwrap();
                }
            }
        }
        assert!(is_part_of(&got, &sent[4..]), "bit {bit}: a wrong message");
        assert!(
            is_told || got == sent[4..],
            "bit {bit}: {} of 8, and nothing told",
            got.len()
        );
        damaged += usize::from(is_told);
    }
    assert!(damaged > 20, "{damaged}");
}

/// Mounts a small filesystem; `None`: that is not allowed here.
fn mount(at: &Path) -> Option<Mounted> {
    fs::create_dir(at).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k,mode=700", "none"])
        .arg(at)
        .status();
    mounted
        .is_ok_and(|status| status.success())
        .then(|| Mounted(at.to_owned()))
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Removes a file, and waits until what it took is free: another test may be about to start a process, which has it open for a moment.
fn make_room(ballast: &Path) {
    let free = || {
        nix::sys::statvfs::statvfs(ballast.parent().unwrap())
            .unwrap()
            .blocks_free()
    };
    let wanted = free() + fs::metadata(ballast).unwrap().len() / 4096;
    fs::remove_file(ballast).unwrap();
    // Or until it is clear that something else has taken it meanwhile.
    for _ in 0..1000 {
        if free() >= wanted {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_full_disk_at_every_write() {
    let private = private();
    let Some(mounted) = mount(&private.path) else {
        common::skipped("mount is not allowed here");
        return;
    };
    let (at, ballast) = (mounted.0.join("bus"), mounted.0.join("ballast"));
    let mut failures = 0;
    for pages in 0..=64 {
        let _ = fs::remove_dir_all(&at);
        let _ = fs::write(&ballast, vec![1; pages * 4096]);
        let (mut sent, mut is_full) = (0_u64, false);
        // Until there is no room at all, at whatever step that is; then there is room again.
        let all = |sent: &mut u64, is_full: &mut bool| -> Result<(), buslane::Error> {
            let bus = Bus::builder().durable(true).capacity(FILE).at(&at)?;
            let topic = bus.topic("t")?;
            let mut subscription = topic.subscription("s")?;
            let mut publisher = topic.publisher()?;
            while *sent < 100 {
                match publisher.send(&sent.to_le_bytes().repeat(100)) {
                    Ok(()) => *sent += 1,
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                        assert!(!*is_full, "there is room again: {e}");
                        *is_full = true;
                        make_room(&ballast);
                        // Who was away for a while makes room, too.
                        for n in 0..*sent {
                            assert_eq!(subscription.recv()?[..8], n.to_le_bytes());
                        }
                        assert!(subscription.try_recv()?.is_none());
                    }
                }
            }
            let first = if *is_full {
                *sent - remaining(&mut subscription)?
            } else {
                0
            };
            for n in first..*sent {
                assert_eq!(subscription.recv()?[..8], n.to_le_bytes());
            }
            Ok(())
        };
        match all(&mut sent, &mut is_full) {
            Ok(()) => {}
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                failures += 1;
                make_room(&ballast);
                let (mut sent, mut is_full) = (0, true);
                let _ = fs::remove_dir_all(&at);
                all(&mut sent, &mut is_full).unwrap();
            }
        }
    }
    assert!(failures > 3, "nothing was ever full while it was made");
}

/// How many messages wait.
fn remaining(subscription: &mut Subscriber) -> Result<u64, buslane::Error> {
    let first = u64::from_le_bytes(subscription.recv()?[..8].try_into().unwrap());
    Ok(99 - first)
}

#[test]
fn a_sync_that_fails_poisons_the_topic() {
    if Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        common::skipped("there is no strace here");
        return;
    }
    let private = private();
    let mut nth = 1;
    loop {
        let _ = fs::remove_dir_all(&private.path);
        // The nth `fdatasync` and all that come later fail.
        let inject = format!("inject=fdatasync:error=EIO:when={nth}+");
        let output = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=fdatasync",
                "-e",
                &inject,
            ])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "child::syncs", "--nocapture"])
            .env("BUSLANE_TEST_BUS", &private.path)
            .env("BUSLANE_TEST_ARGUMENT", "")
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        let said: Vec<&str> = said
            .lines()
            .filter_map(|line| Some(line.split_once('@')?.1))
            .collect();
        let synced = said.iter().filter(|said| **said == "synced").count();
        if let Ok(bus) = Bus::builder().create(false).at(&private.path)
            && bus.topics().unwrap().contains(&String::from("t"))
            && synced > 0
        {
            assert!(!bus.inspect("t").unwrap().durable.unwrap().is_poisoned);
            let (got, errors) = receive(&bus);
            assert!(
                got.len() >= synced && errors == 0,
                "{} of {synced} at {nth}",
                got.len()
            );
            bus.topic("t")
                .unwrap()
                .publisher()
                .unwrap()
                .send(b"again")
                .unwrap();
        }
        if synced == 20 {
            break;
        }
        assert!(
            said.contains(&"poisoned") || said.contains(&"not made"),
            "{nth}: {said:?}"
        );
        nth += 1;
    }
    assert!(nth > 20, "{nth}");
    println!("{} syncs failed, each in turn", nth - 1);
}

mod child {
    use super::*;

    /// Sends and syncs, one after the other, until that fails.
    #[test]
    fn syncs() {
        let Some((path, _)) = role() else { return };
        let topic = || -> Result<_, buslane::Error> {
            let bus = Bus::builder().durable(true).capacity(FILE).at(&path)?;
            bus.topic("t")?.publisher()
        };
        let mut publisher = match topic() {
            Ok(publisher) => publisher,
            Err(e) => {
                assert!(!e.to_string().is_empty());
                return say("not made");
            }
        };
        for _ in 0..20 {
            let sent = publisher.send(&[7; 500]);
            let synced = sent.and_then(|()| publisher.sync());
            match synced {
                Ok(()) => say("synced"),
                // Another file could not be made.
                Err(e) if e.kind() == ErrorKind::Io => return say("not made"),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Poisoned, "{e}");
                    let then = publisher.send(&[7; 500]).unwrap_err();
                    assert_eq!(then.kind(), ErrorKind::Poisoned, "{then}");
                    return say("poisoned");
                }
            }
        }
    }
}
