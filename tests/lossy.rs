//! Lossy topics: nobody is waited for, and what is lost is told exactly. And where a subscriber begins.
#![allow(missing_docs)]

mod common;

use std::time::{Duration, Instant};

use buslane::{Bus, ErrorKind, Lost, Start, Subscriber, Topic};
use common::{PATIENCE, Private, private};

const CAPACITY: usize = 4096;

fn lossy(private: &Private) -> Topic {
    let bus = private.bus();
    let topic = bus.topic_builder("ticks").lossy(true).capacity(CAPACITY);
    topic.open().unwrap()
}

/// Message `sequence`: its length and every byte follow from its number.
fn content(sequence: u64) -> impl Iterator<Item = u8> {
    let seed = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let len = len(sequence);
    (0..len as u64).map(move |i| (seed >> (i % 8 * 8)) as u8 ^ i as u8)
}

fn len(sequence: u64) -> usize {
    (sequence % 61) as usize
}

/// What a subscriber has, of one publisher's messages: received, or told as lost.
#[derive(Debug, Default)]
struct Account {
    next: u64,
    lost: Lost,
    received: u64,
}

impl Account {
    /// Receives one message, or news of a gap; `false`: neither was there in time.
    fn receive(&mut self, subscriber: &mut Subscriber) -> bool {
        match subscriber.recv_timeout(Duration::ZERO) {
            Ok(None) => return false,
            Ok(Some(frame)) => {
                assert_eq!(frame.sequence(), self.next as u32);
                assert!(frame.iter().copied().eq(content(self.next)), "torn");
                self.next += 1;
                self.received += 1;
            }
            Err(e) if e.kind() == ErrorKind::Lost => {
                let lost = e.lost().unwrap();
                assert!(lost.messages > 0);
                let bytes: usize = (self.next..self.next + lost.messages).map(len).sum();
                assert_eq!(lost.bytes, bytes as u64);
                self.next += lost.messages;
                self.lost.messages += lost.messages;
                self.lost.bytes += lost.bytes;
            }
            Err(e) if e.kind() == ErrorKind::Ended => return false,
            Err(e) => panic!("{e}"),
        }
        true
    }
}

#[test]
fn a_slow_subscriber_is_told_what_it_lost_where_it_lost_it() {
    let private = private();
    let topic = lossy(&private);
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    let (mut account, mut sent) = (Account::default(), 0);
    for round in [3, 1000, 0, 5, 77, 300] {
        for _ in 0..round {
            let message: Vec<u8> = content(sent).collect();
            publisher.try_send(&message).unwrap();
            sent += 1;
        }
        while account.receive(&mut subscriber) {}
        assert_eq!(account.next, sent);
    }
    assert!(account.lost.messages > 1000 && account.received > 100);
    let Lost {
        messages, bytes, ..
    } = subscriber.lost();
    assert_eq!(
        (messages, bytes),
        (account.lost.messages, account.lost.bytes)
    );
}

#[test]
fn a_stopped_subscriber_holds_nobody_up_and_a_frame_stays_whole() {
    let private = private();
    let topic = lossy(&private);
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    publisher.send(b"kept").unwrap();
    let frame = subscriber.recv().unwrap();
    for _ in 0..10_000 {
        publisher.send(&[0xff; 40]).unwrap();
    }
    assert_eq!(&*frame, b"kept");
}

#[test]
fn two_publishers_are_told_apart() {
    let private = private();
    let topic = lossy(&private);
    let mut subscriber = topic.subscriber().unwrap();
    let mut busy = topic.publisher().unwrap();
    let mut quiet = topic.publisher().unwrap();
    quiet.send(b"quiet").unwrap();
    for _ in 0..1000 {
        busy.send(b"busy!!").unwrap();
    }
    let (mut quiet, mut busy, mut lost) = (0, 0, Lost::default());
    let mut lanes = Vec::new();
    loop {
        match subscriber.try_recv() {
            Ok(Some(frame)) if &*frame == b"quiet" => quiet += 1,
            Ok(Some(frame)) => {
                busy += 1;
                lanes.push(frame.lane());
            }
            Ok(None) => break,
            Err(e) => lost = e.lost().unwrap(),
        }
    }
    assert_eq!((quiet, busy + lost.messages), (1, 1000));
    assert_eq!(lost.bytes, lost.messages * 6);
    assert!(lanes.iter().all(|&lane| lane == lost.lane));
}

#[test]
fn a_topic_is_what_it_was_made() {
    let private = private();
    let bus = private.bus();
    lossy(&private);
    let error = bus.topic_builder("ticks").lossy(false).open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.to_string().contains("lossy"), "{error}");
    // Who does not say which takes it as it is.
    let topic = bus.topic("ticks").unwrap();
    let mut publisher = topic.publisher().unwrap();
    let _stopped = topic.subscriber().unwrap();
    for _ in 0..1000 {
        publisher.try_send(&[0; 40]).unwrap();
    }
    assert_eq!(bus.inspect("ticks").unwrap().pattern, "lossy");
}

#[test]
fn the_report_says_what_was_lost() {
    let private = private();
    let topic = lossy(&private);
    let mut publisher = topic.publisher().unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    for _ in 0..1000 {
        publisher.send(&[0; 8]).unwrap();
    }
    let held = private.bus().inspect("ticks").unwrap();
    // A frame of 8 bytes takes a slot of 16.
    assert!(held.lag() > 200 && held.lag() <= CAPACITY as u64 / 16);
    assert_eq!(held.lost(), 0);
    while let Ok(Some(_)) | Err(_) = subscriber.try_recv().map(|frame| frame.map(drop)) {}
    let report = private.bus().inspect("ticks").unwrap();
    assert_eq!(
        (report.lag(), report.lost()),
        (0, subscriber.lost().messages)
    );
    assert!(report.lost() > 700);
}

#[test]
fn wait_delivered_counts_what_was_passed_over() {
    let private = private();
    let topic = lossy(&private);
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    for _ in 0..1000 {
        publisher.send(&[0; 8]).unwrap();
    }
    let error = publisher.wait_delivered(Some(Duration::ZERO)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    while let Ok(Some(_)) | Err(_) = subscriber.try_recv().map(|frame| frame.map(drop)) {}
    publisher.wait_delivered(Some(PATIENCE)).unwrap();
}

#[test]
fn a_stream_of_bytes_fails_at_a_gap_and_goes_on() {
    use std::io::Read;
    let private = private();
    let topic = lossy(&private);
    let mut reader = topic.subscriber().unwrap().into_reader();
    let mut publisher = topic.publisher().unwrap();
    for _ in 0..1000 {
        publisher.send(b"x").unwrap();
    }
    drop(publisher);
    let mut rest = Vec::new();
    let error = reader.read_to_end(&mut rest).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest.len() > 200 && rest.iter().all(|&byte| byte == b'x'));
}

// ------------------------------------------------------------------------------------------------------------ start

fn numbers(subscriber: &mut Subscriber) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(frame) = subscriber.try_recv().unwrap() {
        numbers.push(u64::from_le_bytes(frame[..].try_into().unwrap()));
    }
    numbers
}

/// `count` messages, then subscribers that begin in different places.
fn starts(topic: &Topic, count: u64) {
    let mut publisher = topic.publisher().unwrap();
    let mut send = |n: u64| publisher.send(&n.to_le_bytes()).unwrap();
    (0..count).for_each(&mut send);
    // As many fit the ring; but the oldest sixteenth may be given up already.
    let held = count.min(topic.capacity() as u64 / 16 * 7 / 8);
    let starts = [0, 1, 2, 17, 1 << 40].map(|last| (Start::Last(last), last));
    let starts = starts
        .into_iter()
        .chain([(Start::Now, 0), (Start::Oldest, u64::MAX)]);
    for (sent, (start, last)) in (count..).zip(starts) {
        let mut subscriber = topic.subscriber_from(start).unwrap();
        let got = numbers(&mut subscriber);
        assert!(got.len() as u64 >= last.min(held) && got.len() as u64 <= last);
        assert!(got.iter().copied().eq(sent - got.len() as u64..sent));
        send(sent);
        assert_eq!(numbers(&mut subscriber), [sent]);
    }
}

#[test]
fn a_subscriber_begins_with_what_is_held() {
    for is_lossy in [false, true] {
        for count in [0, 1, 20, 255, 256, 1000, 12_345] {
            let private = private();
            let bus = private.bus();
            let topic = bus
                .topic_builder("t")
                .lossy(is_lossy)
                .capacity(CAPACITY)
                .open()
                .unwrap();
            starts(&topic, count);
        }
    }
}

#[test]
fn what_comes_later_is_read_from_its_beginning_whatever_the_start() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    for start in [Start::Now, Start::Oldest, Start::Last(1)] {
        let mut subscriber = topic.subscriber_from(start).unwrap();
        let mut publisher = topic.publisher().unwrap();
        for n in 0..3_u64 {
            publisher.send(&n.to_le_bytes()).unwrap();
        }
        assert_eq!(numbers(&mut subscriber), [0, 1, 2]);
    }
}

#[test]
fn who_begins_with_the_oldest_is_waited_for_from_there() {
    let private = private();
    let topic = private
        .bus()
        .topic_builder("t")
        .capacity(CAPACITY)
        .open()
        .unwrap();
    let mut publisher = topic.publisher().unwrap();
    for n in 0..1000_u64 {
        publisher.send(&n.to_le_bytes()).unwrap();
    }
    let mut subscriber = topic.subscriber_from(Start::Oldest).unwrap();
    let mut sent = 1000_u64;
    while publisher.try_send(&sent.to_le_bytes()).is_ok() {
        sent += 1;
    }
    assert!(sent < 1000 + CAPACITY as u64 / 16);
    let all = numbers(&mut subscriber);
    assert_eq!(all.last(), Some(&(sent - 1)));
    assert!(all.is_sorted() && all.len() as u64 == sent - all[0]);
}

#[test]
fn a_lossy_subscriber_of_a_lossless_topic_is_not_waited_for() {
    let private = private();
    let bus = private.bus();
    let topic = bus.topic_builder("t").capacity(CAPACITY).open().unwrap();
    let mut lossy = topic.lossy_subscriber(Start::Now).unwrap();
    let mut publisher = topic.publisher().unwrap();
    assert_eq!(publisher.subscriber_count().unwrap(), 1);
    let (mut account, mut sent) = (Account::default(), 0);
    // At first alone, then beside one that is waited for.
    let mut send = |publisher: &mut buslane::Publisher, count| {
        for _ in 0..count {
            let message: Vec<u8> = content(sent).collect();
            publisher.try_send(&message)?;
            sent += 1;
        }
        Ok::<_, buslane::Error>(sent)
    };
    send(&mut publisher, 1000).unwrap();
    let mut gating = topic.subscriber().unwrap();
    let full = send(&mut publisher, 1000).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Full);
    while gating.try_recv().unwrap().is_some() {}
    let until = send(&mut publisher, 10).unwrap();
    while account.receive(&mut lossy) {}
    assert_eq!(account.next, until);
    assert!(account.lost.messages > 0 && account.received > 10);
    assert_eq!(lossy.lost().messages, account.lost.messages);

    // What it has not received is not delivered.
    while gating.try_recv().unwrap().is_some() {}
    publisher.wait_delivered(Some(PATIENCE)).unwrap();
    send(&mut publisher, 1).unwrap();
    drop(gating);
    let error = publisher.wait_delivered(Some(Duration::ZERO)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[test]
fn a_lossy_subscriber_that_is_there_first_sees_a_publisher_from_its_first_message() {
    let private = private();
    let bus = private.bus();
    let mut selection = bus.select_lossy::<[u8]>(&["**"], Start::Now).unwrap();
    let topic = bus.topic_builder("t").capacity(CAPACITY).open().unwrap();
    let mut publisher = topic.publisher().unwrap();
    publisher.send(b"first").unwrap();
    assert_eq!(&*selection.recv().unwrap(), b"first");
    for _ in 0..1000 {
        publisher.try_send(b"passed over").unwrap();
    }
    let lost = selection.recv().unwrap_err().lost().unwrap();
    assert!(lost.messages > 0 && lost.bytes == 11 * lost.messages);
    let mut rest = 0;
    while selection.try_recv().unwrap().is_some() {
        rest += 1;
    }
    assert_eq!(lost.messages + rest, 1000);
}

// --------------------------------------------------------------------------------------------------- real processes

/// A publisher process that laps a subscriber without pause; every message is checked byte by byte.
fn storm(messages: u64, is_lossy: bool) -> Account {
    let private = private();
    let bus = private.bus();
    let builder = bus.topic_builder("ticks").lossy(is_lossy);
    let topic = builder.capacity(CAPACITY).open().unwrap();
    let mut subscriber = topic.lossy_subscriber(Start::Now).unwrap();
    let child = private.child("lap", messages);
    let mut account = Account::default();
    let began = Instant::now();
    while account.next < messages {
        if !account.receive(&mut subscriber) {
            std::thread::yield_now();
        }
    }
    println!(
        "{messages} sent, {} received, {} lost, {:.1?}",
        account.received,
        account.lost.messages,
        began.elapsed()
    );
    child.join();
    assert_eq!(account.next, account.received + account.lost.messages);
    account
}

#[test]
fn a_writer_that_laps_tears_nothing() {
    for is_lossy in [true, false] {
        let account = storm(2_000_000, is_lossy);
        assert!(account.received > 0);
    }
}

/// The long run: `cargo test --release --test lossy -- --ignored --nocapture`.
#[test]
#[ignore = "a thousand million messages: some minutes"]
fn a_writer_that_laps_a_thousand_million_times_tears_nothing() {
    let mut sent = 0;
    let mut received = 0;
    while sent < 1_000_000_000 {
        // The guard against hanging is for one storm.
        received += storm(100_000_000, true).received;
        sent += 100_000_000;
    }
    println!("{sent} sent, {received} received whole");
}

mod child {
    use super::*;

    #[test]
    fn lap() {
        let Some((path, messages)) = common::role() else {
            return;
        };
        let messages: u64 = messages.parse().unwrap();
        let topic = Bus::at(path).unwrap().topic("ticks").unwrap();
        let mut publisher = topic.publisher().unwrap();
        let mut message = Vec::new();
        for sequence in 0..messages {
            message.clear();
            message.extend(content(sequence));
            publisher.send(&message).unwrap();
        }
    }
}
