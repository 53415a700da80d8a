//! Messages in envelopes: through every pattern whole, beside messages that have none, and damaged.
#![allow(missing_docs)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use buslane::{Bus, DeadLetter, Envelope, ErrorKind, Kind, Message, Publisher, Subscriber};
use common::private;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, PartialEq)]
#[repr(C)]
struct Order(u64, u64);

impl Message for Order {
    const NAME: &'static str = "test.Order";
}

fn full() -> Envelope {
    Envelope::new(Kind::Command)
        .of_type("test.Order")
        .correlated(7)
        .sent_now()
}

/// Sends what [`check`] wants: with and without envelopes, so often that the lane wraps.
fn send(publisher: &mut Publisher, round: u8) {
    publisher.send(&[round; 30]).unwrap();
    publisher
        .send_with(&Envelope::new(Kind::Event), &[round; 31])
        .unwrap();
    publisher.try_send_with(&full(), b"").unwrap();
    let mut loan = publisher.loan_with(&full(), 40).unwrap();
    loan[..33].fill(round);
    loan.commit_len(33);
    drop(publisher.loan_with(&full(), 40).unwrap());
}

fn check(subscriber: &mut Subscriber, round: u8) {
    let frame = subscriber.recv().unwrap();
    assert_eq!((&*frame, frame.envelope()), (&[round; 30][..], None));
    drop(frame);
    let frame = subscriber.recv().unwrap();
    assert_eq!(&*frame, [round; 31]);
    assert_eq!(frame.envelope(), Some(Envelope::new(Kind::Event)));
    drop(frame);
    let frame = subscriber.recv().unwrap();
    let envelope = frame.envelope().unwrap();
    assert_eq!(&*frame, b"");
    assert_eq!(
        (envelope.kind(), envelope.correlation()),
        (Kind::Command, 7)
    );
    assert_eq!(envelope.type_name(), Some("test.Order"));
    assert!(envelope.sent().unwrap().elapsed().unwrap() < Duration::from_secs(3600));
    drop(frame);
    let frame = subscriber.recv().unwrap();
    assert_eq!(&*frame, [round; 33]);
    assert_eq!(frame.envelope().unwrap().kind(), Kind::Command);
}

#[test]
fn with_and_without() {
    let private = private();
    for lossy in [false, true] {
        let name = if lossy { "lossy" } else { "lossless" };
        let bus = private.bus();
        let topic = bus.topic_builder(name).lossy(lossy).capacity(4096);
        let topic = topic.open().unwrap();
        let mut subscriber = topic.subscriber().unwrap();
        let mut publisher = topic.publisher().unwrap();
        for round in 0..=255 {
            send(&mut publisher, round);
            check(&mut subscriber, round);
        }
    }
}

#[test]
fn in_batches_and_selections_and_streams_of_bytes() {
    let private = private();
    let bus = private.bus();
    let topic = bus.topic("t").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut selection = bus.select("*").unwrap();
    let mut reader = topic.subscriber().unwrap().into_reader();
    let mut publisher = topic.publisher().unwrap();
    publisher.send(b"one ").unwrap();
    publisher.send_with(&full(), b"two ").unwrap();
    publisher.send(b"three").unwrap();
    drop(publisher);
    let batch = subscriber.recv_batch(10).unwrap();
    assert_eq!(batch.iter().collect::<Vec<_>>().concat(), b"one two three");
    drop(batch);
    let kinds: Vec<_> = (0..3)
        .map(|_| {
            selection
                .recv()
                .unwrap()
                .envelope()
                .map(|envelope| envelope.kind())
        })
        .collect();
    assert_eq!(kinds, [None, Some(Kind::Command), None]);
    assert_eq!(
        std::io::read_to_string(&mut reader).unwrap(),
        "one two three"
    );
}

#[test]
fn around_values() {
    let private = private();
    let topic = private.bus().typed::<Order>("t").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    publisher.send_value_with(&full(), &Order(1, 2)).unwrap();
    publisher.send_value(&Order(3, 4)).unwrap();
    let frame = subscriber.recv().unwrap();
    assert_eq!(
        (*frame, frame.envelope().unwrap().type_name()),
        (Order(1, 2), Some("test.Order"))
    );
    drop(frame);
    assert_eq!(*subscriber.recv().unwrap(), Order(3, 4));
}

#[test]
fn the_longest() {
    let private = private();
    let topic = private
        .bus()
        .topic_builder("t")
        .capacity(4096)
        .open()
        .unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    let longest = publisher.max_len();
    for _ in 0..10 {
        publisher
            .send_with(&Envelope::new(Kind::Event), &vec![1; longest])
            .unwrap();
        assert_eq!(subscriber.recv().unwrap().len(), longest);
    }
    let error = publisher.send_with(&full(), &vec![1; longest]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLong);
    let endless = Envelope::new(Kind::Event).of_type(&"x".repeat(5000));
    let error = publisher.send_with(&endless, b"").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLong);
}

/// It stays with a job that is tried again later, and with what becomes a dead letter.
#[test]
fn through_a_queue() {
    let private = private();
    let bus = private.bus();
    let queue = bus.queue("jobs").unwrap();
    let mut producer = queue.producer().unwrap();
    for lease in [None, Some(Duration::from_secs(60))] {
        let mut builder = queue.consumer_builder();
        if let Some(lease) = lease {
            builder = builder.lease(lease);
        }
        let mut consumer = builder.open().unwrap();
        producer.push_with(&full(), b"pack").unwrap();
        producer.push(b"plain").unwrap();
        let job = consumer.recv().unwrap();
        assert_eq!(
            (&*job, job.envelope().unwrap().correlation()),
            (&b"pack"[..], 7)
        );
        let plain = consumer.recv().unwrap();
        assert_eq!((&*plain, plain.envelope()), (&b"plain"[..], None));
        plain.ack().unwrap();
        job.retry(Duration::from_millis(1)).unwrap();
        let job = consumer.recv().unwrap();
        assert_eq!((&*job, job.attempts()), (&b"pack"[..], 2));
        assert_eq!(job.envelope().unwrap().type_name(), Some("test.Order"));
        job.reject("no box").unwrap();
        let mut dead = bus.queue("jobs.dead").unwrap().consumer().unwrap();
        let letter = dead.recv().unwrap();
        assert_eq!(letter.envelope().unwrap().correlation(), 7);
        assert_eq!(DeadLetter::parse(&letter).unwrap().payload, b"pack");
        letter.ack().unwrap();
    }
}

#[test]
fn what_it_came_by_is_seen_in_place() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    let (mut subscriber, mut publisher) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    let passed = full().passed_on_by("route/a").passed_on_by("route/b");
    publisher.send_with(&passed, b"passed").unwrap();
    publisher.send_with(&full(), b"full").unwrap();
    publisher.send(b"plain").unwrap();
    let frame = subscriber.recv().unwrap();
    let begins = ["route/a", "route/b", "route/", ""].map(|beginning| frame.came_by(beginning));
    assert_eq!(begins, [true; 4]);
    assert!(!frame.came_by("oute"));
    drop(frame);
    for _ in 0..2 {
        assert!(!subscriber.recv().unwrap().came_by(""));
    }
}

#[test]
fn seen_from_outside() {
    let private = private();
    let bus = private.bus();
    let mut publisher = bus.topic("t").unwrap().publisher().unwrap();
    publisher.send_with(&full(), b"order").unwrap();
    publisher.send(b"plain").unwrap();
    let tail = bus.inspect("t").unwrap().tail(10);
    let kinds: Vec<_> = tail
        .iter()
        .map(|seen| {
            (
                &seen.payload[..],
                seen.envelope.as_ref().map(Envelope::kind),
            )
        })
        .collect();
    assert_eq!(
        kinds,
        [(&b"order"[..], Some(Kind::Command)), (b"plain", None)]
    );
}

fn lane_file(dir: &Path) -> PathBuf {
    let names = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut lanes = names.filter(|path| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("lane.")
    });
    lanes.next().unwrap()
}

/// What a writer that breaks the protocol says of the length of its envelope is an error, and leads nowhere.
#[test]
fn damaged() {
    let damage = |bus: &Bus, name: &str, len: u32| {
        // Behind the header's page and the first frame's word: the last word of the envelope.
        let lane = File::options()
            .write(true)
            .open(lane_file(&bus.path().join("topics").join(name)));
        lane.unwrap()
            .write_all_at(&len.to_le_bytes(), 4096 + 8 + 52)
            .unwrap();
    };
    for len in [1, 7, 8, 64, u32::MAX, u32::MAX - 7] {
        let private = private();
        let bus = private.bus();
        for (name, lossy) in [("plain", false), ("lossy", true)] {
            let topic = bus.topic_builder(name).lossy(lossy).open().unwrap();
            let mut subscriber = topic.subscriber().unwrap();
            let mut publisher = topic.publisher().unwrap();
            publisher
                .send_with(&Envelope::new(Kind::Event), b"1234567")
                .unwrap();
            damage(&bus, name, len);
            assert!(bus.inspect(name).unwrap().tail(1).is_empty());
            let error = subscriber.recv().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
        let queue = bus.queue("queue").unwrap();
        let mut producer = queue.producer().unwrap();
        producer
            .push_with(&Envelope::new(Kind::Event), b"1234567")
            .unwrap();
        producer.push(b"next").unwrap();
        damage(&bus, "queue", len);
        let mut consumer = queue.consumer().unwrap();
        assert_eq!(&*consumer.recv().unwrap(), b"next");
        let mut dead = bus.queue("queue.dead").unwrap().consumer().unwrap();
        let letter = dead.recv().unwrap();
        let letter = DeadLetter::parse(&letter).unwrap();
        assert!(letter.reason.contains("envelope"), "{letter:?}");
        assert_eq!(letter.payload.len(), 63);
    }
}
