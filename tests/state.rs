//! Latest state: whole values, the newest of each key, for readers that come late and watchers that fall behind.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::Duration;

use buslane::{Bus, ErrorKind, Message, State, StateReader, Watch};
use common::{Private, private};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const LEN: usize = 1000;

fn storm(bus: &Bus) -> State {
    bus.state_builder("storm").max_value(LEN).open().unwrap()
}

/// A value that shows its number and whether it is whole.
fn value(n: u64) -> Vec<u8> {
    let mut value = vec![n as u8; 8 + (n % (LEN as u64 - 8)) as usize];
    value[..8].copy_from_slice(&n.to_le_bytes());
    value
}

fn number(bytes: &[u8]) -> u64 {
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(bytes, value(n), "torn");
    n
}

fn get(reader: &mut StateReader, key: &[u8]) -> Option<Vec<u8>> {
    reader.get(key).unwrap().map(<[u8]>::to_vec)
}

fn entries(reader: &mut StateReader) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let all: Vec<_> = reader.entries().unwrap().map(Result::unwrap).collect();
    let count = all.len();
    let map = BTreeMap::from_iter(all);
    assert_eq!(map.len(), count, "a key came twice");
    map
}

/// All that a watch has to tell now: the last value of each key, and how many were told.
fn told(watch: &mut Watch) -> (BTreeMap<Vec<u8>, Vec<u8>>, usize) {
    let (mut map, mut count) = (BTreeMap::new(), 0);
    while let Some((key, value)) = watch.try_recv().unwrap() {
        map.insert(key.to_vec(), value.to_vec());
        count += 1;
    }
    (map, count)
}

fn tables(private: &Private, topic: &str) -> usize {
    let names = private.names(&format!("topics/{topic}"));
    names
        .iter()
        .filter(|name| name.starts_with("table."))
        .count()
}

#[test]
fn a_late_reader_has_the_value_at_once() {
    let private = private();
    let board = private.bus().state("board").unwrap();
    let mut early = board.reader().unwrap();
    assert_eq!(get(&mut early, b"a"), None);
    let mut writer = board.writer().unwrap();
    writer.set(b"a", b"1").unwrap();
    writer.set(b"", b"").unwrap();
    writer.set(b"b", b"x").unwrap();
    writer.set(b"a", b"22").unwrap();
    drop(writer);
    for mut reader in [early, board.reader().unwrap()] {
        assert_eq!(get(&mut reader, b"a").unwrap(), b"22");
        assert_eq!(get(&mut reader, b"").unwrap(), b"");
        assert_eq!(get(&mut reader, b"c"), None);
        assert_eq!(entries(&mut reader).len(), 3);
    }
}

#[test]
fn of_many_writers_the_newest_counts() {
    let private = private();
    let board = private.bus().state("board").unwrap();
    let mut reader = board.reader().unwrap();
    let mut writers: Vec<_> = (0..4).map(|_| board.writer().unwrap()).collect();
    assert_eq!(tables(&private, "board"), 4);
    for round in 0..100_u32 {
        let writer = (round as usize * 7) % 4;
        writers[writer]
            .set(b"shared", &round.to_le_bytes())
            .unwrap();
        writers[writer].set(&[writer as u8], b"own").unwrap();
        assert_eq!(get(&mut reader, b"shared").unwrap(), round.to_le_bytes());
    }
    assert_eq!(entries(&mut reader).len(), 5);
    let report = private.bus().inspect("board").unwrap();
    assert_eq!((report.pattern, report.tables.len()), ("state", 4));
    assert!(
        report
            .tables
            .iter()
            .all(|table| table.keys == 2 && table.capacity == 1024 && table.owner.alive)
    );
}

#[test]
fn a_table_whose_writer_has_gone_is_taken_over_with_what_is_in_it() {
    let private = private();
    let board = private.bus().state("board").unwrap();
    for n in 0..10_u8 {
        board.writer().unwrap().set(&[n], &[n, n]).unwrap();
    }
    assert_eq!(tables(&private, "board"), 1);
    let mut reader = board.reader().unwrap();
    for n in 0..10_u8 {
        assert_eq!(get(&mut reader, &[n]).unwrap(), [n, n]);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_lost() {
    let private = private();
    let bus = private.bus();
    let builder = || {
        bus.state_builder("small")
            .keys(2)
            .max_key(3)
            .max_value(4)
            .clone()
    };
    let board = builder().open().unwrap();
    let mut writer = board.writer().unwrap();
    let mut reader = board.reader().unwrap();
    writer.set(b"one", b"1111").unwrap();
    writer.set(b"two", b"2222").unwrap();
    let mut refused = |key: &[u8], value: &[u8], kind, number: &str| {
        let error = writer.set(key, value).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains(number), "{error}");
    };
    refused(b"four", b"", ErrorKind::TooLong, "4 bytes");
    refused(b"one", b"55555", ErrorKind::TooLong, "5 bytes");
    refused(b"six", b"6", ErrorKind::Full, "2 keys");
    assert_eq!(get(&mut reader, b"four"), None);
    assert_eq!(get(&mut reader, b"six"), None);
    assert_eq!(get(&mut reader, b"one").unwrap(), b"1111");
    writer.set(b"one", b"1").unwrap();
    assert_eq!(get(&mut reader, b"one").unwrap(), b"1");
    let error = builder().keys(3).open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    let error = bus.state_builder("large").keys(1 << 40).open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidCapacity);
    assert_eq!(bus.topic("small").unwrap_err().kind(), ErrorKind::Mismatch);
}

#[test]
fn a_hundred_thousand_keys() {
    const KEYS: u64 = 100_000;
    let private = private();
    let bus = private.bus();
    let many = bus.state_builder("many").keys(KEYS as usize).max_key(12);
    let many = many.open().unwrap();
    let mut writer = many.writer().unwrap();
    let key = |n: u64| format!("key {n}").into_bytes();
    for n in 0..KEYS {
        writer.set(&key(n), &n.to_le_bytes()).unwrap();
    }
    assert_eq!(
        writer.set(b"one more", b"").unwrap_err().kind(),
        ErrorKind::Full
    );
    let mut reader = many.reader().unwrap();
    for n in 0..KEYS {
        assert_eq!(get(&mut reader, &key(n)).unwrap(), n.to_le_bytes());
    }
    assert_eq!(get(&mut reader, &key(KEYS)), None);
    assert_eq!(entries(&mut reader).len(), KEYS as usize);
    let mut watch = reader.watch(None).unwrap();
    assert_eq!(told(&mut watch).1, KEYS as usize);
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Debug, PartialEq)]
#[repr(C)]
struct Point {
    x: u32,
    y: u16,
    z: u16,
}

impl Message for Point {
    const NAME: &'static str = "Point";
}

#[test]
fn values_of_a_type() {
    let private = private();
    let bus = private.bus();
    let points = bus.typed_state::<Point>("points").unwrap();
    let mut writer = points.writer().unwrap();
    let point = Point { x: 1, y: 2, z: 3 };
    writer.set_value(b"p", &point).unwrap();
    let mut reader = points.reader().unwrap();
    assert_eq!(reader.get(b"p").unwrap(), Some(&point));
    let error = bus.state("points").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
}

#[test]
fn a_watcher_is_told_the_last_of_every_key() {
    let private = private();
    let board = private.bus().state("board").unwrap();
    let mut writers = [board.writer().unwrap(), board.writer().unwrap()];
    writers[0].set(b"a", b"0").unwrap();
    let reader = board.reader().unwrap();
    let mut watch = reader.watch(None).unwrap();
    let mut only = reader.watch(Some(b"b")).unwrap();
    assert_eq!(told(&mut watch).0[&b"a"[..]], b"0");
    assert_eq!(told(&mut only).1, 0);
    writers[0].set(b"b", b"1").unwrap();
    writers[1].set(b"a", b"2").unwrap();
    writers[1].set(b"b", b"3").unwrap();
    let (map, count) = told(&mut watch);
    assert_eq!(
        (&map[&b"a"[..]][..], &map[&b"b"[..]][..], count),
        (&b"2"[..], &b"3"[..], 2)
    );
    assert_eq!(told(&mut only).1, 1);
    let mut late = board.writer().unwrap();
    late.set(b"c", b"4").unwrap();
    assert_eq!(watch.recv().unwrap(), (&b"c"[..], &b"4"[..]));
    assert_eq!(told(&mut watch).1, 0);
}

#[test]
fn a_watcher_that_lost_news_looks_at_everything() {
    let private = private();
    let board = private.bus().state("board").unwrap();
    let mut writer = board.writer().unwrap();
    let mut watch = board.reader().unwrap().watch(None).unwrap();
    writer.set(b"first", b"!").unwrap();
    for n in 0..50_000_u64 {
        writer.set(&[n as u8], &n.to_le_bytes()).unwrap();
    }
    let (map, count) = told(&mut watch);
    assert_eq!(count, 257);
    assert_eq!(map[&b"first"[..]], b"!");
    for (key, value) in map.iter().filter(|(key, _)| key.len() == 1) {
        let n = u64::from_le_bytes(value[..].try_into().unwrap());
        assert!(n >= 50_000 - 256 && n as u8 == key[0]);
    }
    writer.set(b"first", b"?").unwrap();
    assert_eq!(watch.recv().unwrap(), (&b"first"[..], &b"?"[..]));
}

#[test]
fn a_reader_beside_a_writer_that_never_pauses() {
    let private = private();
    let bus = private.bus();
    let mut writer = private.child("storms", "");
    assert_eq!(writer.hear(), "going");
    let mut reader = storm(&bus).reader().unwrap();
    let mut watch = reader.watch(Some(b"x")).unwrap();
    let (mut last, mut watched) = (0, 0);
    for _ in 0..200_000 {
        let n = number(reader.get(b"x").unwrap().unwrap());
        assert!(n >= last, "{n} after {last}");
        last = n;
    }
    for _ in 0..10_000 {
        let n = number(watch.recv().unwrap().1);
        assert!(n > watched, "{n} after {watched}");
        watched = n;
    }
    // Killed in the midst of a write, as likely as not: what is there is whole, and another goes on.
    writer.kill();
    let n = number(reader.get(b"x").unwrap().unwrap());
    while watched < n {
        watched = number(watch.recv().unwrap().1);
    }
    let mut heir = storm(&bus).writer().unwrap();
    heir.set(b"x", &value(n + 7)).unwrap();
    assert_eq!(number(reader.get(b"x").unwrap().unwrap()), n + 7);
    assert_eq!(number(watch.recv().unwrap().1), n + 7);
}

#[test]
fn writers_killed_again_and_again_leave_whole_values() {
    let private = private();
    let bus = private.bus();
    let mut reader = storm(&bus).reader().unwrap();
    let mut last = 0;
    for round in 0..20 {
        let mut writer = private.child("storms", last);
        assert_eq!(writer.hear(), "going");
        std::thread::sleep(Duration::from_micros(round * 37));
        writer.kill();
        let n = number(reader.get(b"x").unwrap().unwrap());
        assert!(n > last, "{n} after {last}");
        last = n;
    }
    bus.reclaim().unwrap();
    assert!(tables(&private, "storm") <= 2);
}

#[test]
fn a_watcher_sleeps_until_it_is_told() {
    let private = private();
    let bus = private.bus();
    let reader = storm(&bus).reader().unwrap();
    let mut questions = reader.watch(Some(b"question")).unwrap();
    let mut answers = storm(&bus).writer().unwrap();
    let asker = private.child("asks", "");
    for n in 1..=100 {
        assert_eq!(number(questions.recv().unwrap().1), n);
        answers.set(b"answer", &value(n)).unwrap();
    }
    asker.join();
}

/// What the children do.

#[test]
fn a_watch_in_a_wait_set_and_as_a_stream() {
    use buslane::WaitSet;
    use futures_util::{FutureExt, StreamExt};
    let private = private();
    let board = private.bus().state("board").unwrap();
    let mut writer = board.writer().unwrap();
    let mut watch = board.reader().unwrap().watch(None).unwrap();
    let mut set = WaitSet::new().unwrap();
    assert_eq!(
        set.wait(&mut [&mut watch], Some(Duration::ZERO)).unwrap(),
        None
    );
    std::thread::scope(|scope| {
        let woken = scope.spawn(|| set.wait(&mut [&mut watch], None).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        writer.set(b"a", b"1").unwrap();
        assert_eq!(woken.join().unwrap(), Some(0));
    });
    // Looking took nothing.
    assert_eq!(watch.try_recv().unwrap(), Some((&b"a"[..], &b"1"[..])));
    let mut stream = watch.into_stream();
    assert!(stream.next().now_or_never().is_none());
    writer.set(b"a", b"2").unwrap();
    let change = stream.next().now_or_never().unwrap().unwrap().unwrap();
    assert_eq!(change, (b"a".to_vec(), b"2".to_vec()));
}

mod child {
    use super::*;
    use common::{role, say};

    #[test]
    fn storms() {
        let Some((path, argument)) = role() else {
            return;
        };
        let from = argument.parse().unwrap_or(0);
        let bus = Bus::at(path).unwrap();
        let mut writer = storm(&bus).writer().unwrap();
        for n in from + 1.. {
            writer.set(b"x", &value(n)).unwrap();
            if n == from + 1 {
                say("going");
            }
        }
    }

    #[test]
    fn asks() {
        let Some((path, _)) = role() else {
            return;
        };
        let bus = Bus::at(path).unwrap();
        let mut writer = storm(&bus).writer().unwrap();
        let mut answers = storm(&bus)
            .reader()
            .unwrap()
            .watch(Some(b"answer"))
            .unwrap();
        for n in 1..=100 {
            writer.set(b"question", &value(n)).unwrap();
            while number(answers.recv().unwrap().1) < n {}
        }
    }
}

#[test]
fn a_watcher_of_one_key_does_not_wait_for_others() {
    let private = private();
    let board = private.bus().state("board").unwrap();
    let mut watch = board.reader().unwrap().watch(Some(b"a")).unwrap();
    let (stop, stopped) = mpsc::channel::<()>();
    let mut writer = board.writer().unwrap();
    let setting = thread::spawn(move || {
        while stopped.try_recv() == Err(TryRecvError::Empty) {
            writer.set(b"b", b"!").unwrap();
            thread::sleep(Duration::from_millis(1));
        }
    });
    // Else it hangs.
    assert!(
        watch
            .recv_timeout(Duration::from_millis(50))
            .unwrap()
            .is_none()
    );
    drop(stop);
    setting.join().unwrap();
}
