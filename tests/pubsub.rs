//! Publish and subscribe, lossless: what is promised to publishers and subscribers, across processes where the promise
//! is about processes.
#![allow(missing_docs)]

mod common;

use std::io::{BufRead, Read, Write};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use buslane::{
    Bus, Envelope, ErrorKind, Kind, Message, Publisher, Subscriber, Topic, WaitStrategy,
};
use common::{PATIENCE, check, fill, length, private};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

mod child {
    use super::common::{fill, length, role, say};
    use super::strategy;
    use buslane::{Bus, ErrorKind};
    use std::io::Write;

    /// Argument: own number, and how many messages.
    #[test]
    fn publisher() {
        let Some((path, argument)) = role() else {
            return;
        };
        let (number, n) = argument.split_once(' ').unwrap();
        let mut publisher = Bus::at(path)
            .unwrap()
            .topic("t")
            .unwrap()
            .publisher()
            .unwrap();
        say("ready");
        for i in 0..n.parse().unwrap() {
            let mut loan = publisher.loan(length(i)).unwrap();
            fill(&mut loan, number.parse().unwrap(), i);
            loan.commit();
        }
    }

    /// Argument: how many publishers, and how many messages of each.
    #[test]
    fn subscriber() {
        let Some((path, argument)) = role() else {
            return;
        };
        let (publishers, n) = argument.split_once(' ').unwrap();
        let (publishers, n): (usize, u64) = (publishers.parse().unwrap(), n.parse().unwrap());
        let mut subscriber = Bus::at(path)
            .unwrap()
            .topic("t")
            .unwrap()
            .subscriber()
            .unwrap();
        say("ready");
        let mut next = vec![0; publishers];
        while next.iter().any(|&next| next < n) {
            match subscriber.recv() {
                Ok(frame) => {
                    let (publisher, i) = super::check(&frame);
                    assert_eq!(i, next[publisher as usize]);
                    next[publisher as usize] += 1;
                }
                Err(e) => assert_eq!(e.kind(), ErrorKind::Ended),
            }
        }
    }

    #[test]
    fn echo() {
        let Some((path, wait)) = role() else { return };
        let bus = Bus::builder().wait(strategy(&wait)).at(path).unwrap();
        let mut there = bus.topic("there").unwrap().subscriber().unwrap();
        let mut back = bus.topic("back").unwrap().publisher().unwrap();
        say("ready");
        while let Ok(frame) = there.recv() {
            back.send(&frame).unwrap();
        }
    }

    #[test]
    fn writer() {
        let Some((path, _)) = role() else { return };
        let topic = Bus::at(path).unwrap().topic("t").unwrap();
        let mut writer = topic.publisher().unwrap().into_writer();
        writer.write_all(&super::large()).unwrap();
    }

    /// Sleeps for 3 s with nothing to receive, and says what that cost.
    #[test]
    fn sleeper() {
        let Some((path, _)) = role() else { return };
        let mut subscriber = Bus::at(path)
            .unwrap()
            .topic("t")
            .unwrap()
            .subscriber()
            .unwrap();
        let (switches, ticks) = super::cost();
        assert!(
            subscriber
                .recv_timeout(std::time::Duration::from_secs(3))
                .unwrap()
                .is_none()
        );
        let (switches_after, ticks_after) = super::cost();
        say(format!(
            "{} {}",
            switches_after - switches,
            ticks_after - ticks
        ));
    }
}

/// Voluntary context switches of this thread, and ticks of the process.
fn cost() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("voluntary_ctxt"))
        .unwrap();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = |i: usize| fields[i].parse::<u64>().unwrap();
    (
        line.split_whitespace().last().unwrap().parse().unwrap(),
        ticks(11) + ticks(12),
    )
}

fn strategy(name: &str) -> WaitStrategy {
    match name {
        "Spin" => WaitStrategy::Spin,
        "Sleep" => WaitStrategy::Sleep,
        _ => WaitStrategy::Adaptive,
    }
}

fn large() -> Vec<u8> {
    (0..3_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn kind<T: std::fmt::Debug>(result: Result<T, buslane::Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn every_message_in_order_from_several_processes_to_several() {
    let private = private();
    private.bus();
    let n = 5000;
    let mut subscribers: Vec<_> = (0..3)
        .map(|_| private.child("subscriber", format!("3 {n}")))
        .collect();
    subscribers.iter_mut().for_each(|child| drop(child.hear()));
    let publishers: Vec<_> = (0..3)
        .map(|i| private.child("publisher", format!("{i} {n}")))
        .collect();
    publishers
        .into_iter()
        .chain(subscribers)
        .for_each(common::Process::join);
}

#[test]
fn a_late_subscriber_misses_only_what_was_before() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    let mut early = topic.publisher().unwrap();
    early.send(b"before").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    early.send(b"after").unwrap();
    topic
        .publisher()
        .unwrap()
        .send(b"a later publisher")
        .unwrap();
    let mut all: Vec<_> = (0..2)
        .map(|_| subscriber.recv().unwrap().to_vec())
        .collect();
    all.sort();
    assert_eq!(all, [b"a later publisher".to_vec(), b"after".to_vec()]);
    assert!(subscriber.recv_timeout(Duration::ZERO).unwrap().is_none());
}

#[test]
fn wraps_many_times_between_threads() {
    let private = private();
    let topic = private
        .bus()
        .topic_builder("small")
        .capacity(4096)
        .open()
        .unwrap();
    let mut subscribers: Vec<_> = (0..3).map(|_| topic.subscriber().unwrap()).collect();
    let n = 50_000;
    std::thread::scope(|scope| {
        for subscriber in &mut subscribers {
            scope.spawn(move || {
                for i in 0..n {
                    assert_eq!(check(&subscriber.recv().unwrap()), (0, i));
                }
                assert_eq!(kind(subscriber.recv()), ErrorKind::Ended);
            });
        }
        let mut publisher = topic.publisher().unwrap();
        for i in 0..n {
            let mut loan = publisher.loan(length(i)).unwrap();
            fill(&mut loan, 0, i);
            loan.commit();
        }
        publisher.wait_delivered(None).unwrap();
    });
}

/// Long ones are copied through the caches or past them, and a writer tries both: whichever way, and wherever in its lines it
/// begins and ends, a message is whole.
#[test]
fn long_messages_for_many_laps() {
    const CAPACITY: u64 = 65_536;
    for lossy in [false, true] {
        let private = private();
        let topic = private.bus();
        let topic = topic
            .topic_builder("t")
            .lossy(lossy)
            .capacity(CAPACITY as usize);
        let topic = topic.open().unwrap();
        let (mut s, mut p) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
        let receiving = std::thread::spawn(move || {
            let (mut bytes, mut lost) = (0, 0);
            loop {
                match s.recv() {
                    Ok(message) => {
                        let words = message.as_chunks::<8>().0;
                        assert!(words.iter().all(|word| *word == words[0]), "torn");
                        bytes += message.len() as u64;
                    }
                    Err(e) if e.kind() == ErrorKind::Lost => lost += e.lost().unwrap().bytes,
                    Err(e) if e.kind() == ErrorKind::Ended => return (bytes, lost),
                    Err(e) => panic!("{e}"),
                }
            }
        });
        let (mut sent, mut number) = (0, 0_u64);
        while sent < 300 * CAPACITY {
            number += 1;
            let len = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
            let message = number.to_le_bytes().repeat(len as usize / 8 + 1);
            p.send(&message).unwrap();
            sent += message.len() as u64;
        }
        drop(p);
        let (bytes, lost) = receiving.join().unwrap();
        assert_eq!(bytes + lost, sent);
        assert!(lossy || lost == 0);
    }
}

#[test]
fn loans_are_sent_when_committed_only() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    let (mut s, mut p) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    for i in 0..2000u32 {
        let mut loan = p.loan(700).unwrap();
        loan.fill(0xff);
        drop(loan);
        let mut loan = p.loan(700).unwrap();
        loan[..4].copy_from_slice(&i.to_le_bytes());
        loan.commit_len(4);
        assert_eq!(*s.recv().unwrap(), i.to_le_bytes());
        assert!(s.try_recv().unwrap().is_none());
    }
}

#[test]
fn limits_and_refusals() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    let (mut s, mut p) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    let max = p.max_len();
    for len in [0, 1, max, 0, max] {
        p.send(&vec![9; len]).unwrap();
        assert_eq!(s.recv().unwrap().len(), len);
    }
    let error = p.send(&vec![0; max + 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLong);
    assert!(error.to_string().contains(&max.to_string()), "{error}");
    while p.try_send(&[0; 1000]).is_ok() {}
    assert_eq!(kind(p.try_send(&[0; 1000])), ErrorKind::Full);
    assert_eq!(
        kind(p.send_timeout(&[0; 1000], Duration::from_millis(5))),
        ErrorKind::TimedOut
    );
    assert_eq!(
        kind(p.wait_delivered(Some(Duration::from_millis(5)))),
        ErrorKind::TimedOut
    );
    drop(s);
    assert_eq!(kind(p.wait_delivered(None)), ErrorKind::SubscribersGone);
    p.send(&[0; 1000]).unwrap();
}

/// Wherever the message before it ended, and whatever of its length a frame's word could hold.
#[test]
fn too_long_is_too_long() {
    let private = private();
    let bus = private.bus();
    let longer_than_a_word = vec![0; (1 << 28) + 8];
    for (name, capacity) in [("small", 4096), ("large", 1 << 20)] {
        let topic = bus.topic_builder(name).capacity(capacity).open().unwrap();
        let (mut s, mut p) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
        let max = p.max_len();
        for len in (max + 1..max + 600).step_by(7) {
            drop(p.loan(max).unwrap());
            p.send(&[1; 8]).unwrap();
            assert_eq!(kind(p.send(&vec![5; len])), ErrorKind::TooLong, "{len}");
            assert_eq!(s.recv().unwrap().len(), 8);
        }
        p.send(&[1; 8]).unwrap();
        assert_eq!(kind(p.send(&longer_than_a_word)), ErrorKind::TooLong);
        let batch = [&[2; 8], &longer_than_a_word[..], &[3; 8]];
        assert_eq!(kind(p.send_batch(batch)), ErrorKind::TooLong);
        let got: Vec<_> = s.recv_batch(10).unwrap().iter().map(|m| m[0]).collect();
        assert_eq!(got, [1, 2], "what came before it was sent");
        assert!(s.try_recv().unwrap().is_none());
    }
}

#[test]
fn batches_are_released_when_dropped() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    let (mut s, mut p) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    for round in 0..300u32 {
        let messages: Vec<_> = (0..40u32)
            .map(|i| vec![(i + round) as u8; 500 + i as usize])
            .collect();
        assert_eq!(p.send_batch(&messages).unwrap(), 40);
        let mut got = Vec::new();
        while got.len() < 40 {
            let batch = s.recv_batch(7).unwrap();
            assert!(batch.len() <= 7 && batch.iter().count() == batch.len());
            got.extend(batch.iter().map(<[u8]>::to_vec));
        }
        assert_eq!(got, messages);
        assert!(s.try_recv_batch(7).unwrap().is_none());
    }
    p.send_batch(["a", "b"]).unwrap();
    drop(p);
    let owned: Result<Vec<_>, _> = s.iter().collect();
    assert_eq!(owned.unwrap(), [b"a", b"b"]);
}

#[test]
fn odd_batches() {
    let private = private();
    let bus = private.bus();
    let topic = bus.topic("t").unwrap();
    let (mut s, mut p) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    assert_eq!(p.send_batch(Vec::<&[u8]>::new()).unwrap(), 0);
    p.send_batch(["a", "b", "c"]).unwrap();
    assert_eq!(s.recv_batch(0).unwrap().len(), 1, "at least one");
    assert_eq!(s.try_recv_batch(usize::MAX).unwrap().unwrap().len(), 2);
    // One that is half sent.
    let broken = (0..3_u8).map(|i| match i {
        2 => panic!("on purpose"),
        _ => [i],
    });
    catch_unwind(AssertUnwindSafe(|| p.send_batch(broken))).unwrap_err();
    assert_eq!(s.recv_batch(10).unwrap().len(), 2);

    let lossy = bus.topic_builder("lossy").lossy(true).open().unwrap();
    let (mut s, mut p) = (lossy.subscriber().unwrap(), lossy.publisher().unwrap());
    p.send_batch(["a", "b"]).unwrap();
    for message in ["a", "b"] {
        let batch = s.recv_batch(10).unwrap();
        assert_eq!(batch.iter().collect::<Vec<_>>(), [message.as_bytes()]);
    }
}

#[test]
fn a_batch_wakes_a_sleeper() {
    let private = private();
    let bus = Bus::builder().wait(WaitStrategy::Sleep);
    let topic = bus.at(&private.path).unwrap().topic("t").unwrap();
    let (mut s, mut p) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    let receiving = std::thread::spawn(move || {
        let mut left = 400;
        while left > 0 {
            left -= s.recv_batch(64).unwrap().len();
        }
    });
    let started = Instant::now();
    for _ in 0..200 {
        // About as long as it takes to fall asleep.
        std::thread::sleep(Duration::from_micros(100));
        p.send_batch(["a", "b"]).unwrap();
        p.wait_delivered(None).unwrap();
    }
    receiving.join().unwrap();
    // Sleeps end by themselves after a quarter of a second: all of them would take 50 s.
    assert!(started.elapsed() < Duration::from_secs(25));
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
struct Price {
    cents: u64,
    size: u64,
}
impl Message for Price {
    const NAME: &'static str = "test.Price";
}

#[test]
fn values_come_in_batches() {
    const MESSAGES: u64 = 20_000;
    let private = private();
    let bus = private.bus();
    let builder = bus.topic_builder("prices").capacity(4096);
    let topic = builder.open_typed::<Price>().unwrap();
    let (mut s, mut p) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    let price = |cents| Price {
        cents,
        size: !cents,
    };
    let sending = std::thread::spawn(move || {
        let mut next = 0;
        for len in (0..400).cycle() {
            let until = (next + len).min(MESSAGES);
            let values: Vec<_> = (next..until).map(price).collect();
            p.send_values(&values).unwrap();
            next = until;
            if next == MESSAGES {
                break;
            }
            // Batches go around an envelope.
            let envelope = Envelope::new(Kind::Event);
            p.send_value_with(&envelope, &price(next)).unwrap();
            next += 1;
        }
    });
    let mut next = 0;
    loop {
        let batch = match s.recv_batch(100) {
            Ok(batch) => batch,
            Err(e) => break assert_eq!(e.kind(), ErrorKind::Ended),
        };
        assert!((1..=100).contains(&batch.len()));
        let mut len = 0;
        for price in &batch {
            assert_eq!((price.cents, price.size), (next, !next));
            (next, len) = (next + 1, len + 1);
        }
        assert_eq!(len, batch.len());
    }
    assert_eq!(next, MESSAGES);
    sending.join().unwrap();
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
struct NewPrice {
    cents: u32,
}
impl Message for NewPrice {
    const NAME: &'static str = "test.NewPrice";
    const VERSION: u32 = 7;
}

#[test]
fn types_and_their_mismatch() {
    let private = private();
    let bus = private.bus();
    let topic = bus.typed::<Price>("prices").unwrap();
    let (mut s, mut p) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    p.send_value(&Price { cents: 5, size: 6 }).unwrap();
    assert_eq!(s.recv().unwrap().size, 6);
    let error = bus.typed::<NewPrice>("prices").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    println!("{error}");
    for part in ["test.Price", "test.NewPrice", "16", "8", "4", "7"] {
        assert!(error.to_string().contains(part), "no {part} in: {error}");
    }
    assert_eq!(kind(bus.topic("prices")), ErrorKind::Mismatch);
    assert_eq!(
        kind(
            bus.topic_builder("prices")
                .capacity(4096)
                .open_typed::<Price>()
        ),
        ErrorKind::Mismatch
    );
    assert_eq!(
        kind(bus.topic_builder("none").create(false).open()),
        ErrorKind::NotFound
    );
}

#[test]
fn the_end_is_said_once_for_each_time_all_have_left() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    let mut s = topic.subscriber().unwrap();
    for _ in 0..3 {
        for text in ["one", "two"] {
            topic.publisher().unwrap().send(text.as_bytes()).unwrap();
        }
        let mut got: Vec<_> = (0..2).map(|_| s.recv().unwrap().to_vec()).collect();
        got.sort();
        assert_eq!(got, [b"one", b"two"]);
        assert_eq!(kind(s.recv()), ErrorKind::Ended);
        assert!(s.recv_timeout(Duration::from_millis(1)).unwrap().is_none());
    }
    let sleeper = std::thread::spawn(move || {
        drop(s.recv().unwrap());
        kind(s.recv())
    });
    let mut publisher = private.child("publisher", "0 1");
    publisher.hear();
    publisher.join();
    assert_eq!(sleeper.join().unwrap(), ErrorKind::Ended);
}

#[test]
fn presence_counts_and_tells() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    let mut presence = topic.presence().unwrap();
    assert!(!presence.changed(Some(Duration::from_millis(1))).unwrap());
    let mut p = topic.publisher().unwrap();
    assert!(presence.changed(Some(PATIENCE)).unwrap());
    assert_eq!(
        kind(p.wait_for_subscribers(1, Some(Duration::from_millis(1)))),
        ErrorKind::TimedOut
    );
    let waiting = std::thread::spawn(move || {
        p.wait_for_subscribers(2, Some(PATIENCE)).unwrap();
        p.subscriber_count().unwrap()
    });
    let (mut a, b) = (topic.subscriber().unwrap(), topic.subscriber().unwrap());
    assert_eq!(waiting.join().unwrap(), 2);
    assert_eq!(
        (
            presence.publishers().unwrap(),
            presence.subscribers().unwrap()
        ),
        (0, 2)
    );
    drop(b);
    assert_eq!(
        (
            a.publisher_count().unwrap(),
            presence.subscribers().unwrap()
        ),
        (0, 1)
    );
}

#[test]
fn ping_pong_between_processes_with_each_strategy() {
    for wait in ["Spin", "Adaptive", "Sleep"] {
        let private = private();
        let bus = Bus::builder()
            .wait(strategy(wait))
            .capacity(4096)
            .at(&private.path)
            .unwrap();
        let mut back = bus.topic("back").unwrap().subscriber().unwrap();
        let mut echo = private.child("echo", wait);
        echo.hear();
        let mut there = bus.topic("there").unwrap().publisher().unwrap();
        for i in 0..2000u32 {
            there.send(&i.to_le_bytes()).unwrap();
            assert_eq!(
                *back.recv_timeout(PATIENCE).unwrap().unwrap(),
                i.to_le_bytes()
            );
        }
        drop(there);
        echo.join();
    }
}

/// Its writers then clear less at a time; who gets them in a stream says that.
#[test]
fn who_waits_for_each_message_says_so() {
    let private = private();
    let bus = private.bus();
    let (ping, pong) = (bus.topic("ping").unwrap(), bus.topic("pong").unwrap());
    let (mut asks, mut asked) = (ping.publisher().unwrap(), ping.subscriber().unwrap());
    let (mut answers, mut answered) = (pong.publisher().unwrap(), pong.subscriber().unwrap());
    let says_singly = || {
        let name = private.names("topics/ping").into_iter();
        let cursor = name.rev().find(|name| name.starts_with("cursor.")).unwrap();
        let file = std::fs::File::open(private.path.join("topics/ping").join(cursor)).unwrap();
        let mut word = [0; 8];
        file.read_exact_at(&mut word, 424).unwrap();
        u64::from_le_bytes(word) == 1
    };
    let answering = std::thread::spawn(move || {
        while let Ok(message) = asked.recv() {
            let is_question = message[0] == 1;
            drop(message);
            if is_question {
                answers.send(&[0]).unwrap();
            }
        }
    });
    let until = |wanted, step: &mut dyn FnMut()| {
        let started = Instant::now();
        while says_singly() != wanted {
            assert!(started.elapsed() < PATIENCE);
            (0..100).for_each(|_| step());
        }
    };
    assert!(!says_singly());
    for _ in 0..2 {
        until(true, &mut || {
            asks.send(&[1]).unwrap();
            drop(answered.recv().unwrap());
        });
        until(false, &mut || {
            asks.send_batch([[0]; 64]).unwrap();
            // So that the next ones are waited for.
            asks.wait_delivered(None).unwrap();
        });
    }
    drop(asks);
    answering.join().unwrap();
}

#[test]
fn bytes_like_through_a_pipe() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    let mut reader = topic.subscriber().unwrap().into_reader();
    let child = private.child("writer", "");
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert!(all == large(), "{} bytes, or other ones", all.len());
    child.join();
    let mut writer = topic.publisher().unwrap().into_writer();
    writer.write_all(b"one\ntw").unwrap();
    writer.write_all(b"o\nthree").unwrap();
    drop(writer);
    let lines: Result<Vec<_>, _> = reader.lines().collect();
    assert_eq!(lines.unwrap(), ["one", "two", "three"]);
}

#[test]
fn many_publishers_and_subscribers() {
    let private = private();
    let topic = private
        .bus()
        .topic_builder("many")
        .capacity(4096)
        .open()
        .unwrap();
    let mut subscribers: Vec<_> = (0..32).map(|_| topic.subscriber().unwrap()).collect();
    let mut publishers: Vec<_> = (0..64).map(|_| topic.publisher().unwrap()).collect();
    for (i, publisher) in publishers.iter_mut().enumerate() {
        publisher.send(&[i as u8]).unwrap();
    }
    drop(publishers);
    for subscriber in &mut subscribers {
        let mut got: Vec<_> = subscriber
            .iter()
            .map(|message| message.unwrap()[0])
            .collect();
        got.sort_unstable();
        assert!(got.into_iter().eq(0..64));
    }
}

#[test]
fn two_openings_in_one_process_and_sending_to_other_threads() {
    fn assert_send<T: Send>() {}
    assert_send::<Publisher>();
    assert_send::<Subscriber>();
    assert_send::<Bus>();
    assert_send::<Topic>();
    assert_send::<buslane::Frame<'_>>();
    assert_send::<buslane::Batch<'_>>();
    assert_send::<buslane::BatchIter<'_>>();
    let private = private();
    let (a, b) = (private.bus(), private.bus());
    let mut s = a.topic("t").unwrap().subscriber().unwrap();
    let mut p = b.topic("t").unwrap().publisher().unwrap();
    drop((a, b));
    p.send(b"x").unwrap();
    assert_eq!(&*s.recv().unwrap(), b"x");
}

#[test]
fn a_sleeping_subscriber_uses_no_processor() {
    let private = private();
    let cost = private.child("sleeper", "").hear();
    println!("3 s asleep: context switches and ticks: {cost}");
    let switches: u64 = cost.split_once(' ').unwrap().0.parse().unwrap();
    assert!(switches < 60, "{cost}");
}

#[test]
fn the_end_is_said_again_for_a_publisher_that_took_up_a_lane_and_left() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    let mut quick = topic.subscriber().unwrap();
    // Keeps the lane from being put away.
    let mut slow = topic.subscriber().unwrap();
    for message in [b"first", b"other"] {
        topic.publisher().unwrap().send(message).unwrap();
        assert_eq!(&*quick.recv().unwrap(), message);
        assert_eq!(quick.recv().unwrap_err().kind(), ErrorKind::Ended);
    }
    let all: Result<Vec<_>, _> = slow.iter().collect();
    assert_eq!(all.unwrap(), [b"first", b"other"]);
    drop((quick, slow));
    assert_eq!(private.names("topics/t"), ["locks", "topic"]);
}

#[test]
fn one_bad_file_does_not_stop_the_others() {
    let private = private();
    let bus = private.bus();
    let topic = bus.topic("t").unwrap();
    for name in ["lane.77", "cursor.78", "lane.+5", "stray"] {
        std::fs::write(private.path.join("topics/t").join(name), b"not ours").unwrap();
    }
    std::fs::write(private.path.join("topics/stray"), b"not ours").unwrap();
    let mut publisher = topic.publisher().unwrap();
    publisher.send(b"goes on").unwrap();
    assert_eq!(publisher.subscriber_count().unwrap(), 0);
    assert_eq!(bus.reclaim().unwrap(), buslane::Reclaimed::default());
    assert_eq!(
        topic.subscriber().unwrap_err().kind(),
        ErrorKind::NotBuslane
    );
    std::fs::remove_file(private.path.join("topics/t/lane.77")).unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    publisher.send(b"to both").unwrap();
    assert_eq!(&*subscriber.recv().unwrap(), b"to both");
}

/// Who goes on for somebody who died finds what that one sent last, though everybody has received it.
#[test]
fn a_named_publishers_lane_stays_for_who_has_its_name() {
    let private = private();
    let bus = private.bus();
    let topic = bus.topic("t").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut first = topic.named_publisher("route").unwrap();
    first.send(b"1").unwrap();
    assert_eq!(&*subscriber.recv().unwrap(), b"1");
    drop(first);
    assert_eq!(subscriber.recv().unwrap_err().kind(), ErrorKind::Ended);
    let lanes = || {
        bus.inspect("t")
            .unwrap()
            .lanes
            .iter()
            .map(|lane| (lane.id, lane.closed))
            .collect::<Vec<_>>()
    };
    let [(lane, true)] = lanes()[..] else {
        panic!("{:?}", lanes())
    };
    assert_eq!(bus.inspect("t").unwrap().tail(1)[0].payload, b"1");

    // Nobody else takes it.
    let mut other = topic.publisher().unwrap();
    other.send(b"2").unwrap();
    assert_eq!(&*subscriber.recv().unwrap(), b"2");
    let third = topic.named_publisher("another route").unwrap();
    assert_eq!(lanes().len(), 3);
    drop((other, third));
    let mut second = topic.named_publisher("route").unwrap();
    second.send(b"3").unwrap();
    let frame = subscriber.recv().unwrap();
    assert_eq!(
        (&*frame, frame.lane(), frame.sequence()),
        (&b"3"[..], lane, 1)
    );
    drop(frame);
    // Two of one name have a lane each.
    let beside = topic.named_publisher("route").unwrap();
    assert!(lanes().iter().filter(|(_, closed)| !closed).count() == 2);
    drop((second, beside, subscriber));
    // The unnamed one is gone.
    assert_eq!(lanes().len(), 3);
}
