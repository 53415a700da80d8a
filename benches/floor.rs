//! A round trip through two topics next to the least that any transport can take: one cache line passed to another
//! core and back. Both are between the same two threads, pinned to two processors; the bare line lies in a segment that
//! the `shared_memory` crate made, so that it is floor and not another use of this library.
//!
//! Between threads of one process, that is: between processes, with percentiles, `buslane bench` measures.
#![allow(unsafe_code)] // The bare segment; nothing else in the benches needs it.
#![allow(clippy::disallowed_types)] // The words in it.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use buslane::{Bus, ErrorKind, Publisher, Subscriber};
use criterion::{Criterion, criterion_group, criterion_main};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use shared_memory::{Shmem, ShmemConf};

/// What ends the bare echo.
const STOP: u64 = u64::MAX;

/// One word for each direction, with two cache lines (they are fetched in pairs) to itself.
#[repr(C, align(128))]
struct Line(AtomicU64);

#[repr(C)]
struct Lines {
    there: Line,
    back: Line,
}

fn lines(segment: &Shmem) -> &Lines {
    assert!(segment.len() >= size_of::<Lines>());
    // SAFETY: the mapping begins on a page, is zeroed when made, has room (checked above), and lives as long as
    // `segment`; `Lines` is atomics only, so that another mapping may change it at any time.
    unsafe { &*segment.as_ptr().cast::<Lines>() }
}

/// Lets this thread run on one processor; gives back where it ran before.
fn pin(cpu: usize) -> CpuSet {
    let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut only = CpuSet::new();
    only.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &only).unwrap();
    before
}

/// The first two processors that this thread may run on.
fn two_processors() -> Option<(usize, usize)> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    Some((cpus.next()?, cpus.next()?))
}

/// Waits until the word is another than `seen`.
fn changed(line: &Line, seen: u64) -> u64 {
    loop {
        // Acquire: with the store of the other side, as any transport needs it.
        let now = line.0.load(Ordering::Acquire);
        if now != seen {
            return now;
        }
        spin_loop();
    }
}

fn bare(c: &mut Criterion, cpus: (usize, usize)) {
    let ours = ShmemConf::new().size(4096).create().unwrap();
    let name = ours.get_os_id().to_owned();
    let echo = thread::spawn(move || {
        pin(cpus.1);
        let theirs = ShmemConf::new().os_id(name).open().unwrap();
        let lines = lines(&theirs);
        let mut seen = 0;
        while seen != STOP {
            seen = changed(&lines.there, seen);
            lines.back.0.store(seen, Ordering::Release);
        }
    });
    let lines = lines(&ours);
    let mut last = 0;
    let mut round_trip = || {
        lines.there.0.store(last + 1, Ordering::Release);
        last = changed(&lines.back, last);
    };
    c.benchmark_group("round_trip")
        .bench_function("bare_cache_line", |b| {
            b.iter_custom(|count| timed(count, &mut round_trip));
        });
    lines.there.0.store(STOP, Ordering::Release);
    echo.join().unwrap();
}

fn through_topics(c: &mut Criterion, cpus: (usize, usize), size: usize) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bus = Bus::at(dir.path().join("bus")).unwrap();
    let (there, back) = (bus.topic("there").unwrap(), bus.topic("back").unwrap());
    let mut answers = back.subscriber().unwrap();
    let requests = there.subscriber().unwrap();
    let echo = thread::spawn(move || {
        pin(cpus.1);
        echo(requests, back.publisher().unwrap());
    });
    let mut publisher = there.publisher().unwrap();
    let message = vec![7; size];
    let mut round_trip = || {
        publisher.send(black_box(&message)).unwrap();
        black_box(&*answers.recv().unwrap());
    };
    c.benchmark_group("round_trip")
        .bench_function(format!("buslane/{size}"), |b| {
            b.iter_custom(|count| timed(count, &mut round_trip));
        });
    drop(publisher);
    echo.join().unwrap();
}

/// Sends back what comes, until the other side has left.
fn echo(mut requests: Subscriber, mut answers: Publisher) {
    loop {
        match requests.recv() {
            Ok(message) => answers.send(&message).unwrap(),
            Err(e) if e.kind() == ErrorKind::Ended => return,
            Err(e) => panic!("{e}"),
        }
    }
}

/// The time of `count` round trips, after one that wakes the other side: it may have slept since the last time.
fn timed(count: u64, round_trip: &mut impl FnMut()) -> Duration {
    round_trip();
    let started = Instant::now();
    for _ in 0..count {
        round_trip();
    }
    started.elapsed()
}

fn floor(c: &mut Criterion) {
    let Some(cpus) = two_processors() else {
        println!("skipped: a round trip between two processors needs two of them");
        return;
    };
    let before = pin(cpus.0);
    bare(c, cpus);
    through_topics(c, cpus, 8);
    through_topics(c, cpus, 64);
    sched_setaffinity(Pid::from_raw(0), &before).unwrap();
}

criterion_group!(benches, floor);
criterion_main!(benches);
