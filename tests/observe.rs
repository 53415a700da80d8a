//! Looking at a bus without taking part in it, as another user if this runs as root; and what another user may try who is let in
//! to look. Each attack must fail.
#![allow(unsafe_code, missing_docs, clippy::disallowed_types)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use buslane::{Bus, ErrorKind, Publisher, Start, Subscriber, WaitSet};
use common::{PATIENCE, Private, check, fill, length, private};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// What strangers do.
mod child {
    use super::common::{check, hear, role, say};
    use super::{lane_of, path_of, send};
    use buslane::{Bus, ErrorKind};
    use nix::libc;
    use std::fs::{File, OpenOptions};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Follows a topic, and says how far it came.
    #[test]
    fn observing() {
        let Some((path, n)) = role() else { return };
        let topic = Bus::observe(path).unwrap().topic("t").unwrap();
        let mut subscriber = topic.subscriber().unwrap();
        say("ready");
        let (mut next, n) = (0, n.parse().unwrap());
        while next < n {
            match subscriber.recv() {
                Ok(frame) => {
                    assert_eq!(check(&frame), (1, next));
                    next += 1;
                }
                Err(e) if e.kind() == ErrorKind::Lost => next += e.lost().unwrap().messages,
                Err(e) => assert_eq!(e.kind(), ErrorKind::Ended, "{e}"),
            }
        }
        say("done");
    }

    /// Sends `n` messages, and waits to be killed.
    #[test]
    fn publishing() {
        let Some((path, n)) = role() else { return };
        let topic = Bus::at(path).unwrap().topic("t").unwrap();
        let mut publisher = topic.publisher().unwrap();
        for i in 0..n.parse().unwrap() {
            super::send(&mut publisher, i);
        }
        say("ready");
        loop {
            nix::unistd::pause();
        }
    }

    /// Opens what it should not.
    #[test]
    fn opening() {
        let Some((path, _)) = role() else { return };
        for error in [
            Bus::at(&path).unwrap_err(),
            Bus::observe(&path).unwrap_err(),
        ] {
            say(error);
        }
    }

    /// Makes a bus for all to look at, and publishes on it, with a umask that lets in nobody.
    #[test]
    fn publishing_unasked() {
        let Some((path, _)) = role() else { return };
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
        let bus = Bus::builder().mode(0o755).at(&path).unwrap();
        let mut publisher = bus.topic("t").unwrap().publisher().unwrap();
        send(&mut publisher, 0);
        say("sent");
        hear();
    }

    /// Tries all ways to write to the lane that it may read.
    #[test]
    fn writing() {
        let Some((path, _)) = role() else { return };
        let lane = lane_of(&path);
        let file = File::open(&lane).unwrap();
        let reopened = format!("/proc/self/fd/{}", file.as_raw_fd());
        for path in [&lane, &path_of(&path, "topic"), &reopened.into()] {
            let open = OpenOptions::new().write(true).open(path);
            assert_eq!(open.unwrap_err().raw_os_error(), Some(libc::EACCES));
        }
        for access in [libc::PROT_WRITE, libc::PROT_READ] {
            // SAFETY: a new mapping of a whole page of a file; it is not touched if it can be written.
            let (map, changed) = unsafe {
                let fd = file.as_raw_fd();
                let map = libc::mmap(std::ptr::null_mut(), 4096, access, libc::MAP_SHARED, fd, 0);
                let changed = match map {
                    libc::MAP_FAILED => -1,
                    map => libc::mprotect(map, 4096, libc::PROT_READ | libc::PROT_WRITE),
                };
                (map, changed)
            };
            assert_eq!(map == libc::MAP_FAILED, access == libc::PROT_WRITE);
            assert_eq!(changed, -1);
        }
        // SAFETY: plain system calls on a descriptor of ours.
        let shrunk = unsafe {
            let fd = file.as_raw_fd();
            [
                libc::ftruncate(fd, 0),
                libc::fallocate(
                    fd,
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    0,
                    4096,
                ),
                libc::fchmod(fd, 0o666),
            ]
        };
        assert_eq!(shrunk, [-1, -1, -1]);
        let name = path_of(&path, "lane.999");
        assert!(File::create(&name).is_err());
        assert!(std::os::unix::fs::symlink("/etc/passwd", &name).is_err());
        assert!(std::fs::hard_link(&lane, &name).is_err());
        assert!(std::fs::rename(&lane, &name).is_err());
        assert!(std::fs::remove_file(&lane).is_err());
        say("done");
    }

    /// Whoever can read a file can hold a lock on it: takes all that it can get, as soon as it can.
    #[test]
    fn locking() {
        let Some((path, _)) = role() else { return };
        let mut held = Vec::new();
        let mut walk = vec![path];
        while let Some(next) = walk.pop() {
            if next.is_dir() {
                let Ok(inner) = std::fs::read_dir(next) else {
                    continue;
                };
                walk.extend(inner.map(|entry| entry.unwrap().path()));
            } else if let Ok(file) = File::open(next) {
                held.push(file);
            }
        }
        say(held.len());
        for file in held {
            let thread = std::thread::spawn(move || {
                let lock = libc::flock {
                    l_type: libc::F_RDLCK as i16,
                    l_whence: libc::SEEK_SET as i16,
                    l_start: 0,
                    l_len: 0,
                    l_pid: 0,
                };
                // SAFETY: the lock outlives the call.
                unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &raw const lock) };
                std::mem::forget(file);
            });
            drop(thread);
        }
        loop {
            nix::unistd::pause();
        }
    }

    /// One of our own, who says without end that somebody has joined.
    #[test]
    fn bumping() {
        let Some((path, _)) = role() else { return };
        let mut open = OpenOptions::new();
        let file = open.read(true).write(true).open(path_of(&path, "topic"));
        let mut page = memmap2::MmapOptions::new();
        let map = page.offset(4096).len(4096).map_raw(&file.unwrap()).unwrap();
        // SAFETY: the page is mapped, writable, for as long as this process lives; both words are aligned, and atomics to all.
        let word = |at| unsafe { AtomicU64::from_ptr(map.as_mut_ptr().add(at).cast()) };
        let (attention, roster) = (word(0), word(256));
        say("ready");
        loop {
            roster.fetch_add(1, Ordering::Release);
            attention.fetch_add(1, Ordering::Release);
        }
    }

    /// Wakes those that sleep on the topic's bell, again and again.
    #[test]
    fn waking() {
        let Some((path, _)) = role() else { return };
        let file = File::open(path_of(&path, "topic")).unwrap();
        let mut woken = 0;
        // SAFETY: a new mapping of a whole page of a file; the kernel wakes who sleeps on a word in it.
        let wake = unsafe {
            let (fd, access) = (file.as_raw_fd(), libc::PROT_READ);
            let map = libc::mmap(
                std::ptr::null_mut(),
                4096,
                access,
                libc::MAP_SHARED,
                fd,
                4096,
            );
            assert!(map != libc::MAP_FAILED);
            move || {
                libc::syscall(
                    libc::SYS_futex,
                    map.byte_add(128),
                    libc::FUTEX_WAKE,
                    i32::MAX,
                )
            }
        };
        while woken < 1000 {
            woken += wake();
        }
        say("woken");
        loop {
            wake();
        }
    }

    /// Takes those that sleep on the topic's bell away to a word of its own, again and again.
    #[test]
    fn requeueing() {
        let Some((path, _)) = role() else { return };
        let file = File::open(path_of(&path, "topic")).unwrap();
        // SAFETY: a new mapping of a whole page of a file, and a new file.
        let (control, own) = unsafe {
            let (fd, memory) = (file.as_raw_fd(), libc::memfd_create(c"own".as_ptr(), 0));
            assert_eq!(libc::ftruncate(memory, 4096), 0);
            let own = OwnedFd::from_raw_fd(memory);
            let map = |fd| {
                let (access, kind) = (libc::PROT_READ, libc::MAP_SHARED);
                let offset = if fd == own.as_raw_fd() { 0 } else { 4096 };
                libc::mmap(std::ptr::null_mut(), 4096, access, kind, fd, offset)
            };
            (map(fd), map(own.as_raw_fd()))
        };
        assert!(control != libc::MAP_FAILED && own != libc::MAP_FAILED);
        let mut stolen = 0;
        say("ready");
        // It sleeps anew after each theft.
        while stolen < 3 {
            // SAFETY: both words are mapped; the kernel moves who sleeps on the one to the other.
            let moved = unsafe {
                let bell = control.byte_add(128);
                libc::syscall(
                    libc::SYS_futex,
                    bell,
                    libc::FUTEX_REQUEUE,
                    0,
                    i32::MAX as usize,
                    own,
                    0,
                )
            };
            stolen += moved;
        }
        say("stolen");
        loop {
            nix::unistd::pause();
        }
    }
}

fn path_of(bus: &Path, file: &str) -> PathBuf {
    bus.join("topics/t").join(file)
}

fn lane_of(bus: &Path) -> PathBuf {
    let names = common::names(&bus.join("topics/t"));
    let lane = names.iter().find(|name| name.starts_with("lane."));
    path_of(bus, lane.expect("a lane"))
}

/// A bus that all may look at.
fn open_to_all(private: &Private) -> Bus {
    let builder = Bus::builder().capacity(65536).mode(0o755);
    builder.at(&private.path).unwrap()
}

fn send(publisher: &mut Publisher, i: u64) {
    let mut message = vec![0; length(i)];
    fill(&mut message, 1, i);
    publisher.send_timeout(&message, PATIENCE).unwrap();
}

fn next(subscriber: &mut Subscriber) -> (u64, u64) {
    check(
        &subscriber
            .recv_timeout(PATIENCE)
            .unwrap()
            .expect("a message"),
    )
}

#[test]
fn an_observer_sees_what_is_sent_and_holds_up_nobody() {
    let private = private();
    let topic = open_to_all(&private).topic("t").unwrap();
    let mut publisher = topic.publisher().unwrap();
    for i in 0..10 {
        send(&mut publisher, i);
    }
    let observed = Bus::observe(&private.path).unwrap();
    assert!(observed.is_observed());
    assert_eq!(observed.topics().unwrap(), ["t"]);
    let observed = observed.topic("t").unwrap();
    let mut now = observed.subscriber().unwrap();
    let mut oldest = observed.subscriber_from(Start::Oldest).unwrap();
    let mut last = observed.subscriber_from(Start::Last(3)).unwrap();
    assert_eq!(now.try_recv().unwrap().map(|frame| frame.to_vec()), None);
    assert_eq!(publisher.subscriber_count().unwrap(), 0);
    for i in 10..20 {
        send(&mut publisher, i);
    }
    for i in 0..20 {
        assert_eq!(next(&mut oldest), (1, i));
        if i >= 7 {
            assert_eq!(next(&mut last), (1, i));
        }
        if i >= 10 {
            assert_eq!(next(&mut now), (1, i));
        }
    }
    // Many rings more: nobody waits.
    for i in 20..2000 {
        send(&mut publisher, i);
    }
    let gap = now.recv().unwrap_err();
    assert_eq!(gap.kind(), ErrorKind::Lost);
    let first = 20 + gap.lost().unwrap().messages;
    for i in first..2000 {
        assert_eq!(next(&mut now), (1, i));
    }
    drop(publisher);
    assert_eq!(now.recv().unwrap_err().kind(), ErrorKind::Ended);
    let mut later = topic.publisher().unwrap();
    send(&mut later, 2000);
    assert_eq!(next(&mut now), (1, 2000));
}

#[tokio::test]
async fn an_observer_waits_in_a_task_too() {
    let private = private();
    let mut publisher = open_to_all(&private)
        .topic("t")
        .unwrap()
        .publisher()
        .unwrap();
    let observed = Bus::observe(&private.path).unwrap().topic("t").unwrap();
    let mut subscriber = observed.subscriber().unwrap();
    let sending = std::thread::spawn(move || {
        for i in 0..100 {
            std::thread::sleep(Duration::from_micros(i * 40));
            send(&mut publisher, i);
        }
    });
    for i in 0..100 {
        assert_eq!(check(&subscriber.recv_async().await.unwrap()), (1, i));
    }
    sending.join().unwrap();
}

#[test]
fn an_observer_changes_nothing() {
    let private = private();
    let bus = open_to_all(&private);
    let mut publisher = bus.topic("t").unwrap().publisher().unwrap();
    drop((bus.queue("q").unwrap(), bus.state("s").unwrap()));
    let files = || {
        let names = |under| private.names(under);
        (
            names(""),
            names("members"),
            names("topics"),
            names("topics/t"),
        )
    };
    let before = files();
    let observed = Bus::observe(&private.path).unwrap();
    let mut errors = Vec::new();
    let topic = observed.topic("t").unwrap();
    errors.extend(topic.publisher().map(drop).err());
    errors.extend(
        observed
            .queue("q")
            .and_then(|q| q.consumer().map(drop))
            .err(),
    );
    errors.extend(
        observed
            .queue("q")
            .and_then(|q| q.producer().map(drop))
            .err(),
    );
    errors.extend(observed.state("s").and_then(|s| s.writer().map(drop)).err());
    errors.extend(observed.service("v").map(drop).err());
    errors.extend(observed.reclaim().map(drop).err());
    errors.extend(observed.members().map(drop).err());
    errors.extend(observed.remove_topic("t", true).err());
    errors.extend(topic.subscription("n").map(drop).err());
    errors.extend(Bus::observe(&private.path).unwrap().remove(true).err());
    errors.extend(observed.topic("missing").map(drop).err());
    let kinds: Vec<_> = errors.iter().map(buslane::Error::kind).collect();
    let (missing, others) = kinds.split_last().unwrap();
    assert_eq!(*missing, ErrorKind::NotFound);
    assert_eq!(others.len(), 10, "{errors:#?}");
    for error in &errors[..10] {
        assert!(
            matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::NotFound),
            "{error}"
        );
    }
    let mut subscriber = topic.subscriber().unwrap();
    send(&mut publisher, 0);
    assert_eq!(next(&mut subscriber), (1, 0));
    let report = observed.inspect("t").unwrap();
    assert_eq!((report.messages(), report.publishers()), (1, 1));
    drop((subscriber, topic, observed));
    assert_eq!(files(), before);
}

#[test]
fn only_what_is_said_may_be_read_by_others() {
    let private = private();
    let bus = open_to_all(&private);
    let topic = bus.topic("t").unwrap();
    let _ends = (topic.publisher().unwrap(), topic.subscriber().unwrap());
    let _queue = bus.queue("q").unwrap().consumer().unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(private.path.join("members")), 0o700);
    for dir in ["topics/t", "topics/q"] {
        assert_eq!(mode(private.path.join(dir)), 0o755);
        for name in private.names(dir) {
            let is_said = name == "topic" || name.starts_with("lane.");
            let wanted = if is_said { 0o644 } else { 0o600 };
            assert_eq!(mode(private.path.join(dir).join(&name)), wanted, "{name}");
        }
    }
}

#[test]
fn another_user_is_let_in_only_to_look() {
    let private = private();
    drop(private.bus());
    let Some(mut stranger) = private.stranger("opening", "") else {
        return;
    };
    // The bus is its owner's alone.
    for _ in 0..2 {
        assert!(stranger.hear().contains("Permission denied"));
    }
    // Its owner opens its directory: it is somebody else's. What was made before stays as it was.
    fs::set_permissions(&private.path, fs::Permissions::from_mode(0o755)).unwrap();
    let mut stranger = private.stranger("opening", "").unwrap();
    assert!(stranger.hear().contains("belongs to user 0"));
    assert!(stranger.hear().contains("Permission denied"));
}

#[test]
fn another_user_observes() {
    let private = private();
    let topic = open_to_all(&private).topic("t").unwrap();
    let mut publisher = topic.publisher().unwrap();
    let Some(mut stranger) = private.stranger("observing", 20_000) else {
        return;
    };
    assert_eq!(stranger.hear(), "ready");
    for i in 0..20_000 {
        send(&mut publisher, i);
    }
    assert_eq!(stranger.hear(), "done");
}

// ------------------------------------------------------------------------------------- attacks by who is let in to look

#[test]
fn a_stranger_can_write_to_nothing() {
    let private = private();
    let topic = open_to_all(&private).topic("t").unwrap();
    let mut publisher = topic.publisher().unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let Some(mut stranger) = private.stranger("writing", "") else {
        return;
    };
    assert_eq!(stranger.hear(), "done");
    stranger.join();
    send(&mut publisher, 0);
    assert_eq!(next(&mut subscriber), (1, 0));
}

/// A stranger's locks on all that it can read keep nobody seeming alive, and no lane from its next writer.
#[test]
fn a_strangers_locks_mean_nothing() {
    let private = private();
    let topic = open_to_all(&private).topic("t").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut dying = private.child("publishing", 3);
    dying.hear();
    let Some(mut stranger) = private.stranger("locking", "") else {
        return;
    };
    assert_eq!(stranger.hear(), "3"); // bus, topic, lane
    dying.kill();
    for i in 0..3 {
        assert_eq!(next(&mut subscriber), (1, i));
    }
    let end = subscriber
        .recv_timeout(PATIENCE)
        .map(|frame| frame.is_some());
    assert_eq!(end.unwrap_err().kind(), ErrorKind::Ended);
    for i in 0..20 {
        let mut publisher = topic.publisher().unwrap();
        send(&mut publisher, i);
        assert_eq!(next(&mut subscriber), (1, i));
        drop(publisher);
        let lanes = private.names("topics/t");
        let lanes = lanes.iter().filter(|name| name.starts_with("lane."));
        assert!(lanes.count() <= 2);
    }
    drop((subscriber, topic));
    drop(Bus::at(&private.path).unwrap());
    assert_eq!(private.names("topics/t"), ["locks", "topic"]);
    assert!(private.names("members").is_empty());
}

/// The next message, by one of the ways to wait for it.
type Wait = fn(&mut Subscriber) -> (u64, u64);

fn blocked(subscriber: &mut Subscriber) -> (u64, u64) {
    check(&subscriber.recv().unwrap())
}

fn in_a_task(subscriber: &mut Subscriber) -> (u64, u64) {
    check(&common::block_on(subscriber.recv_async()).unwrap())
}

fn in_a_loop(subscriber: &mut Subscriber) -> (u64, u64) {
    let mut set = WaitSet::new().unwrap();
    while set.poll(&mut [subscriber]).unwrap().is_none() {
        let mut fds = [PollFd::new(set.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).unwrap();
    }
    check(&subscriber.try_recv().unwrap().expect("it is ready"))
}

/// A sleeper that a stranger took to another word wakes at the end of its slice, and goes on. None of these waits has an end of
/// its own.
#[test]
fn a_stolen_sleeper_is_late_but_not_lost() {
    let ways: [(&str, Wait); 3] = [
        ("blocked", blocked),
        ("in a task", in_a_task),
        ("in a loop", in_a_loop),
    ];
    for (name, wait) in ways {
        let private = private();
        let topic = open_to_all(&private).topic("t").unwrap();
        let mut publisher = topic.publisher().unwrap();
        let mut subscriber = topic.subscriber().unwrap();
        let Some(mut stranger) = private.stranger("requeueing", "") else {
            return;
        };
        assert_eq!(stranger.hear(), "ready");
        let (got, said) = mpsc::channel();
        std::thread::spawn(move || {
            for i in 0..20 {
                assert_eq!(wait(&mut subscriber), (1, i));
                got.send(Instant::now()).unwrap();
            }
        });
        assert_eq!(stranger.hear(), "stolen");
        let mut late = Duration::ZERO;
        for i in 0..20 {
            let sent = Instant::now();
            send(&mut publisher, i);
            let got = said.recv_timeout(PATIENCE).expect(name);
            late = late.max(got - sent);
        }
        println!("{name}: at most {late:?} late");
    }
}

/// Who is woken for nothing looks, and sleeps on.
#[test]
fn a_sleeper_that_is_woken_for_nothing_misses_nothing() {
    let private = private();
    let topic = open_to_all(&private).topic("t").unwrap();
    let mut publisher = topic.publisher().unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let Some(mut stranger) = private.stranger("waking", "") else {
        return;
    };
    let reading = std::thread::spawn(move || {
        for i in 0..200 {
            assert_eq!(next(&mut subscriber), (1, i));
        }
    });
    assert_eq!(stranger.hear(), "woken");
    for i in 0..200 {
        send(&mut publisher, i);
    }
    reading.join().unwrap();
}

/// A process of our own user can make all others look who is there, before each message. They do, and lose nothing.
#[test]
fn a_roster_that_is_bumped_without_end_slows_but_loses_nothing() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    let (mut publisher, mut subscriber) = (topic.publisher().unwrap(), topic.subscriber().unwrap());
    let mut round = || {
        let began = Instant::now();
        for i in 0..2000 {
            send(&mut publisher, i);
            assert_eq!(next(&mut subscriber), (1, i));
        }
        began.elapsed() / 2000
    };
    let before = round();
    let mut bumping = private.child("bumping", "");
    bumping.hear();
    let meanwhile = round();
    bumping.kill();
    println!("a message takes {before:?}, and {meanwhile:?} while the roster is bumped");
}

// ------------------------------------------------------------------------------ attacks by the owner of what is observed

/// Each of them on the lane, and the topic, that an observer reads: it gets an error, or what was there; never a signal, and
/// never a wait that has no end.
#[test]
fn what_is_observed_is_taken_away() {
    type Attack = fn(&Path, &File);
    let shrink: [(&str, Attack); 5] = [
        ("truncated", |_, file| file.set_len(0).unwrap()),
        ("cut in the ring", |_, file| {
            file.set_len(4096 + 64).unwrap()
        }),
        ("hole", |_, file| punch(file, 0, 4096 + 65536)),
        ("hole in the ring", |_, file| punch(file, 4096, 65536)),
        ("garbage", |_, file| {
            file.write_all_at(&[0xa5; 4096 + 65536], 0).unwrap()
        }),
    ];
    let swap: [(&str, Attack); 5] = [
        ("removed", |path, _| fs::remove_file(path).unwrap()),
        ("symlink", |path, _| {
            // To what it was: all but the link is right.
            fs::rename(path, path.with_file_name("aside")).unwrap();
            symlink("aside", path).unwrap();
        }),
        ("hard link", |path, _| {
            fs::hard_link(path, path.with_file_name("another")).unwrap()
        }),
        ("fifo", |path, _| {
            fs::remove_file(path).unwrap();
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
        ("directory", |path, _| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ];
    for (how, attack) in shrink.into_iter().chain(swap) {
        for what in ["lane.1", "topic"] {
            let private = private();
            let topic = open_to_all(&private).topic("t").unwrap();
            let mut publisher = topic.publisher().unwrap();
            for i in 0..50 {
                send(&mut publisher, i);
            }
            let observed = Bus::observe(&private.path).unwrap();
            let mut subscriber = observed
                .topic("t")
                .unwrap()
                .subscriber_from(Start::Oldest)
                .unwrap();
            for i in 0..10 {
                assert_eq!(next(&mut subscriber), (1, i));
            }
            let path = path_of(&private.path, what);
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            attack(&path, &file);
            // What is mapped by its owner's own processes is not to be touched any more.
            std::mem::forget((publisher, topic));
            let mut failed = None;
            for i in 10..50 {
                match subscriber.recv_timeout(Duration::from_millis(20)) {
                    Ok(Some(frame)) => assert_eq!(check(&frame), (1, i), "{how} {what}"),
                    Ok(None) => break,
                    Err(e) => {
                        failed = Some(e);
                        break;
                    }
                }
            }
            println!("{how} {what}: {failed:?}");
            let is_noticed = shrink_is_noticed(how, what);
            assert!(
                failed.is_some() || !is_noticed,
                "{how} {what}: nobody noticed"
            );
            // Who comes later is told, or there is nothing (or what is left); it does not wait.
            let topic = Bus::observe(&private.path).unwrap().topic("t");
            let later = topic.and_then(|topic| topic.subscriber_from(Start::Oldest));
            let later = later.and_then(|mut later| {
                let frame = later.recv_timeout(Duration::from_millis(20))?;
                Ok(frame.map(|frame| check(&frame)))
            });
            println!("{how} {what}, later: {later:?}");
            match how {
                "removed" if what == "lane.1" => assert_eq!(later.unwrap(), None),
                "hole in the ring" | "hole" | "garbage" | "cut in the ring" if what == "topic" => {}
                _ => assert!(later.is_err(), "{how} {what}: {later:?}"),
            }
            let _ = observed.inspect("t");
        }
    }
}

/// What is only given another name is read on.
fn shrink_is_noticed(how: &str, what: &str) -> bool {
    match what {
        "topic" => how == "truncated",
        _ => matches!(
            how,
            "truncated" | "cut in the ring" | "hole" | "hole in the ring" | "garbage"
        ),
    }
}

fn punch(file: &File, from: i64, len: i64) {
    use nix::fcntl::{FallocateFlags, fallocate};
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, from, len).unwrap();
}

/// Another filesystem in a lane's place may be served by who answers never: it is not looked at. (Here it is that of `/dev/null`: what
/// matters is that it is another one.)
#[test]
fn another_filesystem_in_a_lanes_place_is_not_entered() {
    let private = private();
    let topic = open_to_all(&private).topic("t").unwrap();
    let mut publisher = topic.publisher().unwrap();
    let place = path_of(&private.path, "lane.77");
    File::create(&place).unwrap();
    let other = private.path.join("other");
    fs::copy(lane_of(&private.path), &other).unwrap();
    let mounted = Command::new("mount")
        .arg("--bind")
        .args(["/dev/null".as_ref(), place.as_path()])
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return common::skipped("mount is not allowed here");
    }
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let observed = Bus::observe(&private.path).unwrap().topic("t").unwrap();
        let error = observed.subscriber().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotBuslane);
        assert!(error.to_string().contains("another filesystem"), "{error}");
        // Its owner's own processes go by it.
        let mut subscriber = topic.subscriber();
        if let Ok(subscriber) = &mut subscriber {
            send(&mut publisher, 0);
            assert_eq!(next(subscriber), (1, 0));
        }
    }));
    let unmounted = Command::new("umount").arg(&place).status().unwrap();
    assert!(unmounted.success());
    result.unwrap();
}

/// A device on the bus's own filesystem, in place of a lane, and of the topic.
#[test]
fn a_device_is_not_read() {
    for what in ["lane.1", "topic"] {
        let private = private();
        let topic = open_to_all(&private).topic("t").unwrap();
        let publisher = topic.publisher().unwrap();
        let path = path_of(&private.path, what);
        fs::remove_file(&path).unwrap();
        let zero = makedev(1, 5);
        if mknod(&path, SFlag::S_IFCHR, Mode::S_IRWXU, zero).is_err() {
            return common::skipped("mknod is not allowed here");
        }
        let observed = Bus::observe(&private.path).unwrap().topic("t");
        let error = observed.and_then(|topic| topic.subscriber()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotBuslane);
        assert!(error.to_string().contains("no regular file"), "{error}");
        std::mem::forget((publisher, topic));
    }
}

#[test]
fn a_strangers_locks_keep_nobody_from_a_durable_bus() {
    let private = private();
    let open = || {
        let builder = Bus::builder().capacity(4096).mode(0o755).durable(true);
        builder.at(&private.path).unwrap()
    };
    let topic = open().topic("t").unwrap();
    drop(topic.subscription("s").unwrap());
    send(&mut topic.publisher().unwrap(), 0);
    drop(topic);
    let Some(mut stranger) = private.stranger("locking", "") else {
        return;
    };
    assert_eq!(stranger.hear(), "3"); // bus, topic, lane
    let topic = open().topic("t").unwrap();
    send(&mut topic.publisher().unwrap(), 1);
    let mut subscription = topic.subscription("s").unwrap();
    assert_eq!([0, 1].map(|_| next(&mut subscription)), [(1, 0), (1, 1)]);
}

/// Who comes between the first look and the first message is one change, as is the observer itself to its own copy.
#[test]
fn an_observer_learns_who_comes_and_goes() {
    let private = private();
    let topic = open_to_all(&private).topic("t").unwrap();
    let observed = Bus::observe(&private.path).unwrap().topic("t").unwrap();
    let mut observer = observed.subscriber().unwrap();
    let other = observed.subscriber().unwrap();
    let mut presence = observed.presence().unwrap();
    let mut publisher = topic.publisher().unwrap();
    send(&mut publisher, 0);
    assert_eq!(next(&mut observer), (1, 0));
    assert!(presence.changed(Some(PATIENCE)).unwrap());
    observer.wait_for_publishers(1, Some(PATIENCE)).unwrap();
    assert_eq!(presence.publishers().unwrap(), 1);
    let error = presence.subscribers().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    drop((publisher, other));
    let end = observer.recv_timeout(PATIENCE).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Ended);
}

#[test]
fn a_bus_lets_in_whom_it_says_whatever_the_umask() {
    let private = private();
    let mut publishing = private.child("publishing_unasked", "");
    publishing.hear();
    let rights = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for dir in ["", "topics", "topics/t"] {
        assert_eq!(rights(&private.path.join(dir)), 0o755, "{dir}");
    }
    for file in [
        private.path.join("bus"),
        lane_of(&private.path),
        path_of(&private.path, "topic"),
    ] {
        assert_eq!(rights(&file), 0o644, "{file:?}");
    }
    assert_eq!(rights(&private.path.join("members")), 0o700);
    assert_eq!(rights(&path_of(&private.path, "locks")), 0o600);
    publishing.tell("ok");
    publishing.join();
}

/// Names cost nothing: with more of them than an observer looks through it says so, and when they are gone it goes on.
#[test]
fn a_directory_full_of_names_is_not_looked_through() {
    let private = private();
    let topic = open_to_all(&private).topic("t").unwrap();
    let observed = Bus::observe(&private.path).unwrap().topic("t").unwrap();
    let mut subscriber = observed.subscriber().unwrap();
    let names = || (100_000..170_000).map(|n| path_of(&private.path, &format!("lane.{n}")));
    for name in names() {
        File::create(name).unwrap();
    }
    let mut publisher = topic.publisher().unwrap();
    send(&mut publisher, 0);
    let error = subscriber.recv_timeout(PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("65536 names"), "{error}");
    for name in names() {
        fs::remove_file(name).unwrap();
    }
    assert_eq!(next(&mut subscriber), (1, 0));
}

/// A lane of somebody else's, and more of them than are followed: said once, and the others go on.
#[test]
fn what_an_observer_cannot_follow_is_said_and_passed_over() {
    let private = private();
    let topic = open_to_all(&private).topic("t").unwrap();
    let observed = Bus::observe(&private.path).unwrap().topic("t").unwrap();
    let mut subscriber = observed.subscriber().unwrap();
    let (mut publisher, lost) = (topic.publisher().unwrap(), topic.publisher().unwrap());
    let lanes = private.names("topics/t");
    let lanes: Vec<_> = lanes
        .iter()
        .filter(|name| name.starts_with("lane."))
        .collect();
    if std::os::unix::fs::chown(path_of(&private.path, lanes[1]), Some(12345), None).is_ok() {
        let error = subscriber.recv_timeout(PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ForeignOwner);
    }
    send(&mut publisher, 0);
    assert_eq!(next(&mut subscriber), (1, 0));
    let mut lane = std::fs::read(path_of(&private.path, lanes[0])).unwrap();
    for id in 1000_u64..1300 {
        lane[24..32].copy_from_slice(&id.to_le_bytes());
        let copy = path_of(&private.path, &format!("lane.{id}"));
        std::fs::write(&copy, &lane).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    drop(lost);
    let mut received = 0;
    let error = loop {
        match subscriber.recv_timeout(PATIENCE) {
            Ok(frame) => received += usize::from(frame.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind(), received), (ErrorKind::Corrupt, 0));
    send(&mut publisher, 1);
    // Behind what is in the copies.
    while next(&mut subscriber) != (1, 1) {}
}
