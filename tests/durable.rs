//! Topics that outlive their processes: what a receiver that is away finds, and what is kept.

mod common;

use std::time::Duration;

use buslane::{Bus, ErrorKind, Keep, Start, SyncPolicy};
use common::{Private, private};

/// Bytes in a data file: few, so that there are many of them.
const FILE: usize = 4096;

fn open(private: &Private) -> Bus {
    let builder = Bus::builder().durable(true).capacity(FILE);
    builder.at(&private.path).unwrap()
}

fn numbered(n: u64) -> Vec<u8> {
    let mut message = n.to_le_bytes().to_vec();
    message.resize(8 + (n % 97) as usize, n as u8);
    message
}

fn files(private: &Private, topic: &str) -> Vec<String> {
    let mut names = private.names(&format!("topics/{topic}"));
    names.retain(|name| name.starts_with("data."));
    names
}

#[test]
fn a_subscription_finds_what_was_sent_while_it_was_away() {
    let private = private();
    let bus = open(&private);
    drop(bus.topic("t").unwrap().subscription("s").unwrap());
    for n in 0..500 {
        bus.topic("t")
            .unwrap()
            .publisher()
            .unwrap()
            .send(&numbered(n))
            .unwrap();
    }
    drop(bus);
    let bus = open(&private);
    let mut subscription = bus.topic("t").unwrap().subscription("s").unwrap();
    for n in 0..300 {
        assert_eq!(*subscription.recv().unwrap(), numbered(n));
    }
    drop((subscription, bus));
    let bus = open(&private);
    assert!(bus.cuts().is_empty());
    let mut publisher = bus.topic("t").unwrap().publisher().unwrap();
    for n in 500..700 {
        publisher.send(&numbered(n)).unwrap();
    }
    let mut subscription = bus.topic("t").unwrap().subscription("s").unwrap();
    for n in 300..700 {
        assert_eq!(*subscription.recv().unwrap(), numbered(n), "{n}");
    }
    assert!(subscription.try_recv().unwrap().is_none());
}

#[test]
fn files_go_when_all_have_passed_them() {
    let private = private();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    let mut publisher = topic.publisher().unwrap();
    let mut a = topic.subscription("a").unwrap();
    let mut b = topic.subscription("b").unwrap();
    for n in 0..1000 {
        publisher.send(&numbered(n)).unwrap();
    }
    let all = files(&private, "t").len();
    assert!(all > 15, "{all}");
    for n in 0..1000 {
        assert_eq!(*a.recv().unwrap(), numbered(n));
    }
    assert!(files(&private, "t").len() >= all);
    for n in 0..1000 {
        assert_eq!(*b.recv().unwrap(), numbered(n));
    }
    assert!(b.try_recv().unwrap().is_none());
    assert!(a.try_recv().unwrap().is_none());
    publisher.send(b"more").unwrap();
    assert_eq!(&*a.recv().unwrap(), b"more");
    assert_eq!(&*b.recv().unwrap(), b"more");
    let left = files(&private, "t").len();
    assert!(left <= 4, "{left}");
}

#[test]
fn without_a_subscription_everything_is_kept() {
    let private = private();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    let mut publisher = topic.publisher().unwrap();
    for n in 0..1000 {
        publisher.send(&numbered(n)).unwrap();
    }
    drop(publisher);
    let mut subscriber = topic.subscriber_from(Start::Oldest).unwrap();
    for n in 0..1000 {
        assert_eq!(*subscriber.recv().unwrap(), numbered(n));
    }
    assert_eq!(subscriber.recv().unwrap_err().kind(), ErrorKind::Ended);
    let mut last = topic.subscriber_from(Start::Last(300)).unwrap();
    assert_eq!(*last.recv().unwrap(), numbered(700));
}

#[test]
fn retention_by_bytes_tells_what_was_lost() {
    let private = private();
    let bus = open(&private);
    let topic = bus
        .topic_builder("t")
        .keep(Keep::Bytes(3 * FILE as u64))
        .open()
        .unwrap();
    let mut late = topic.subscription("late").unwrap();
    let mut publisher = topic.publisher().unwrap();
    publisher.send(&numbered(0)).unwrap();
    assert_eq!(*late.recv().unwrap(), numbered(0));
    for n in 1..2000 {
        publisher.send(&numbered(n)).unwrap();
    }
    publisher.sync().unwrap();
    while files(&private, "t").len() > 7 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // What it had mapped, it reads to its end.
    let (mut next, mut losses) = (1, 0);
    while next < 2000 {
        match late.recv() {
            Ok(frame) => {
                assert_eq!(*frame, numbered(next));
                next += 1;
            }
            Err(lost) => {
                assert_eq!(lost.kind(), ErrorKind::Lost, "{lost}");
                let missed = lost.lost().unwrap();
                let behind = next + missed.messages;
                let bytes: usize = (next..behind).map(|n| numbered(n).len()).sum();
                assert_eq!(missed.bytes, bytes as u64);
                (next, losses) = (behind, losses + 1);
            }
        }
    }
    assert!(losses > 0);
    let left = files(&private, "t").len();
    assert!(left <= 6, "{left}");
}

#[test]
fn by_ack_what_was_not_acknowledged_comes_again() {
    let private = private();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    let open = || topic.subscription_builder("s").by_ack(true).open();
    let mut subscription = open().unwrap();
    let mut publisher = topic.publisher().unwrap();
    for n in 0..400 {
        publisher.send(&numbered(n)).unwrap();
    }
    for n in 0..250 {
        assert_eq!(*subscription.recv().unwrap(), numbered(n));
        if n == 120 {
            subscription.ack().unwrap();
        }
    }
    drop(subscription);
    let mut subscription = open().unwrap();
    for n in 121..400 {
        assert_eq!(*subscription.recv().unwrap(), numbered(n));
    }
    assert!(subscription.try_recv().unwrap().is_none());
    drop(subscription);
    let mut subscription = open().unwrap();
    assert_eq!(*subscription.recv().unwrap(), numbered(121));
}

#[test]
fn one_at_a_time_receives_with_a_name() {
    let private = private();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    let held = topic.subscription("s").unwrap();
    assert_eq!(
        topic.subscription("s").unwrap_err().kind(),
        ErrorKind::InUse
    );
    assert_eq!(
        topic.remove_subscription("s").unwrap_err().kind(),
        ErrorKind::InUse
    );
    drop(held);
    topic.remove_subscription("s").unwrap();
    assert_eq!(
        topic.remove_subscription("s").unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn loans_envelopes_and_batches() {
    use buslane::{Envelope, Kind};
    let private = private();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    let mut subscription = topic.subscription("s").unwrap();
    let mut publisher = topic.publisher().unwrap();
    for round in 0..200_u64 {
        let mut loan = publisher.loan(700).unwrap();
        loan.fill(0xAB);
        loan[..8].copy_from_slice(&round.to_le_bytes());
        loan.commit_len(8 + (round % 50) as usize);
        publisher.loan(1000).unwrap().fill(0xCD);
        publisher
            .send_with(&Envelope::new(Kind::Event), b"event")
            .unwrap();
        publisher
            .send_batch((0..10_u8).map(|n| vec![n; n as usize]))
            .unwrap();
    }
    drop((subscription.try_recv().unwrap(), publisher));
    drop(subscription);
    let bus = open(&private);
    let mut subscription = bus.topic("t").unwrap().subscription("s").unwrap();
    for round in 0..200_u64 {
        if round > 0 {
            assert_eq!(subscription.recv().unwrap()[..8], round.to_le_bytes());
        }
        let frame = subscription.recv().unwrap();
        assert_eq!(&*frame, b"event");
        assert_eq!(frame.envelope().unwrap().kind(), Kind::Event);
        drop(frame);
        for n in 0..10_u8 {
            assert_eq!(*subscription.recv().unwrap(), vec![n; n as usize]);
        }
    }
}

#[test]
fn a_sync_point_and_each_message() {
    let private = private();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    let mut publisher = topic.publisher().unwrap();
    for n in 0..300 {
        publisher.send(&numbered(n)).unwrap();
    }
    let point = publisher.sync_point().unwrap();
    assert!(!point.is_synced());
    point.wait().unwrap();
    assert!(point.is_synced());
    let each = bus
        .topic_builder("each")
        .sync(SyncPolicy::EachMessage)
        .open()
        .unwrap();
    let mut publisher = each.publisher().unwrap();
    publisher.send(b"one").unwrap();
    assert!(publisher.sync_point().unwrap().is_synced());
    let every = SyncPolicy::Every(Duration::from_millis(5));
    let often = bus.topic_builder("often").sync(every).open().unwrap();
    let mut publisher = often.publisher().unwrap();
    publisher.send(b"one").unwrap();
    let point = publisher.sync_point().unwrap();
    while !point.is_synced() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let other = bus
        .topic_builder("often")
        .sync(SyncPolicy::WhenAsked)
        .open();
    assert_eq!(other.unwrap_err().kind(), ErrorKind::Mismatch);
}

#[test]
fn a_queue_is_drained_after_a_restart() {
    let private = private();
    let bus = open(&private);
    bus.queue("q")
        .unwrap()
        .producer()
        .unwrap()
        .push_batch((0..1000).map(numbered))
        .unwrap();
    let mut consumer = bus.queue("q").unwrap().consumer().unwrap();
    for n in 0..400 {
        let delivery = consumer.recv().unwrap();
        assert_eq!(*delivery, numbered(n));
        delivery.ack().unwrap();
    }
    drop((consumer, bus));
    let bus = open(&private);
    let mut consumer = bus.queue("q").unwrap().consumer().unwrap();
    for n in 400..1000 {
        let delivery = consumer.recv().unwrap();
        assert_eq!(*delivery, numbered(n));
        delivery.ack().unwrap();
    }
    assert!(consumer.try_recv().unwrap().is_none());
    drop(consumer);
    let left = files(&private, "q").len();
    assert!(left <= 3, "{left}");
}

#[test]
fn what_is_not_durable_says_so() {
    let private = private();
    let bus = private.bus();
    let topic = bus.topic("t").unwrap();
    assert_eq!(
        topic.subscription("s").unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(
        topic.publisher().unwrap().sync().unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    let kept = bus.topic_builder("k").keep(Keep::Bytes(1)).open();
    assert_eq!(kept.unwrap_err().kind(), ErrorKind::Unsupported);
    drop(topic);
    let durable = Bus::builder().durable(true).at(&private.path);
    assert_eq!(durable.unwrap_err().kind(), ErrorKind::Mismatch);
}
