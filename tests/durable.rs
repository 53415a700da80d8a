//! Topics that outlive their processes: what a receiver that is away finds, and what is kept.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use buslane::{Bus, CallOptions, ErrorKind, Keep, Kind, Server, Service, Start, SyncPolicy};
use common::{PATIENCE, Private, private, set_boot};

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

/// Put back by what leaves out directories that are empty.
#[test]
fn a_bus_without_its_empty_directories() {
    let private = private();
    drop(open(&private).topic("t").unwrap());
    std::fs::remove_dir(private.path.join("members")).unwrap();
    assert_eq!(open(&private).topics().unwrap(), ["t"]);
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

// ------------------------------------------------------------------------------------------- what a reader had found

#[test]
fn the_head_passes_messages_whose_claims_newer_ones_have() {
    let private = private();
    let queue = open(&private).queue("q").unwrap();
    let mut producer = queue.producer().unwrap();
    let (mut a, mut b) = (queue.consumer().unwrap(), queue.consumer().unwrap());
    for n in 0..400 {
        producer.push(&numbered(n)).unwrap();
    }
    let held = a.recv_batch(20).unwrap();
    let drain = |b: &mut buslane::Consumer| {
        let mut count = 0;
        while let Some(delivery) = b.try_recv().unwrap() {
            delivery.ack().unwrap();
            count += 1;
        }
        count
    };
    // There is a claim for each 16 bytes of a file: more may not be under way.
    let count = held.len();
    assert_eq!(count + drain(&mut b), FILE / 16);
    held.ack_all().unwrap();
    assert_eq!(drain(&mut b), 400 - FILE / 16);
    assert!(a.is_empty().unwrap());
    assert!(files(&private, "q").len() < 4);
}

#[test]
fn who_waits_for_the_oldest_is_woken() {
    let private = private();
    let queue = open(&private).queue("q").unwrap();
    queue
        .producer()
        .unwrap()
        .push_batch((0..300).map(numbered))
        .unwrap();
    let mut a = queue.consumer().unwrap();
    let held = a.recv().unwrap();
    let (said, heard) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        let mut b = queue.consumer().unwrap();
        for n in 1..300 {
            b.recv().unwrap().ack().unwrap();
            said.send(n).unwrap();
        }
    });
    while heard.recv().unwrap() < FILE / 16 - 1 {}
    held.ack().unwrap();
    waiting.join().unwrap();
}

#[test]
fn what_others_wait_for_is_no_acknowledgement() {
    let private = private();
    let topic = open(&private).topic("t").unwrap();
    let open = || topic.subscription_builder("s").by_ack(true).open().unwrap();
    let mut subscription = open();
    let mut publisher = topic.publisher().unwrap();
    for n in 0..10 {
        publisher.send(&numbered(n)).unwrap();
    }
    let waiting =
        std::thread::spawn(move || publisher.wait_delivered(Some(Duration::from_millis(300))));
    for n in 0..10 {
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(*subscription.recv().unwrap(), numbered(n));
    }
    assert_eq!(
        waiting.join().unwrap().unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    drop(subscription);
    assert_eq!(*open().recv().unwrap(), numbered(0));
}

#[test]
fn loans_that_were_forgotten_or_given_back_at_the_end_of_a_file() {
    let private = private();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    let mut subscription = topic.subscription("s").unwrap();
    let mut publisher = topic.publisher().unwrap();
    for round in 0..60 {
        publisher.send(&numbered(3 * round)).unwrap();
        let mut loan = publisher.loan(1000).unwrap();
        loan.fill(0xee);
        match round % 2 {
            0 => std::mem::forget(loan),
            _ => drop(loan),
        }
        publisher.send(&numbered(3 * round + 1)).unwrap();
        publisher.sync().unwrap();
        publisher.send(&numbered(3 * round + 2)).unwrap();
    }
    for n in 0..90 {
        assert_eq!(*subscription.recv().unwrap(), numbered(n));
    }
    drop((subscription, publisher, topic, bus));
    set_boot(&private.path);
    let bus = open(&private);
    assert!(bus.cuts().is_empty(), "{:?}", bus.cuts());
    let mut subscription = bus.topic("t").unwrap().subscription("s").unwrap();
    for n in 90..180 {
        assert_eq!(*subscription.recv().unwrap(), numbered(n));
    }
    assert!(bus.verify("t").unwrap().damage.is_empty());
}

/// Killed after the first word in the next file, and before that of the padding that leads there.
#[test]
fn killed_between_two_files() {
    let private = private();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    drop(topic.subscription("s").unwrap());
    let mut publisher = topic.publisher().unwrap();
    for _ in 0..3 {
        publisher.send(&[7; 1200]).unwrap();
    }
    let padding = 3 * 1216;
    publisher.send(&[7; 1200]).unwrap();
    drop((publisher, topic, bus));
    let name = files(&private, "t")
        .into_iter()
        .find(|name| name.ends_with(".0"))
        .unwrap();
    let path = private.path.join("topics/t").join(name);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0; 8], 4096 + padding).unwrap();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    topic.publisher().unwrap().send(b"after").unwrap();
    let mut subscription = topic.subscription("s").unwrap();
    for _ in 0..3 {
        assert_eq!(*subscription.recv().unwrap(), [7; 1200]);
    }
    assert_eq!(&*subscription.recv().unwrap(), b"after");
}

#[test]
fn the_last_messages_of_more_files_than_have_a_place() {
    let private = private();
    let topic = open(&private).topic("t").unwrap();
    let mut publisher = topic.publisher().unwrap();
    let all = 3 * 4200_u64;
    for n in 0..all {
        publisher.send(&n.to_le_bytes().repeat(125)).unwrap();
    }
    for back in [1, 3 * 4096 - 1, 3 * 4096, 3 * 4096 + 2, all] {
        let mut subscriber = topic.subscriber_from(Start::Last(back)).unwrap();
        for n in all - back..(all - back + 7).min(all) {
            assert_eq!(subscriber.recv().unwrap()[..8], n.to_le_bytes());
        }
    }
}

#[test]
fn what_was_synced_is_found_by_who_had_a_name() {
    let private = private();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    drop(topic.subscription("s").unwrap());
    let mut publisher = topic.publisher().unwrap();
    for n in 0..10 {
        publisher.send(&numbered(n)).unwrap();
    }
    publisher.sync().unwrap();
    drop((publisher, topic, bus));
    set_boot(&private.path);
    // Its places never reached the disk.
    let path = private.path.join("topics/t/subscription.s");
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0; 4096], 4096).unwrap();
    let mut subscription = open(&private)
        .topic("t")
        .unwrap()
        .subscription("s")
        .unwrap();
    for n in 0..10 {
        assert_eq!(*subscription.recv().unwrap(), numbered(n));
    }
}

#[test]
fn a_request_waits_for_a_server_that_is_away() {
    let private = private();
    let bus = open(&private);
    let service = bus.service("prices").unwrap();
    let mut client = service.client().unwrap();
    let late = buslane::CallOptions::new().timeout(Duration::from_millis(50));
    let error = client.call_with(&late, b"pears").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let pending = client.start(b"apples").unwrap();
    let mut server = service.server().unwrap();
    let request = server.recv().unwrap();
    assert_eq!(&*request, b"apples");
    request.reply(b"1.20").unwrap();
    assert_eq!(pending.wait().unwrap().unwrap(), b"1.20");
}

#[test]
fn a_named_subscription_is_found_wanting_by_inspection() {
    let private = private();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    drop(topic.subscription("s").unwrap());
    let mut publisher = topic.publisher().unwrap();
    for n in 0..200 {
        publisher.send(&numbered(n)).unwrap();
    }
    let report = bus.inspect("t").unwrap();
    let durable = report.durable.unwrap();
    assert_eq!(
        (durable.sync, durable.keep),
        (SyncPolicy::WhenAsked, Keep::UntilPassed)
    );
    let cursor = &report.cursors[0];
    assert_eq!((cursor.name.as_deref(), cursor.away), (Some("s"), true));
    let kept = report.lanes[0].kept.as_ref().unwrap();
    assert!(kept.files.len() > 3 && kept.oldest == 0 && kept.cut.is_none());
    assert_eq!(kept.unsynced, report.lanes[0].position - kept.synced);
    publisher.sync().unwrap();
    let report = bus.inspect("t").unwrap();
    assert_eq!(report.lanes[0].kept.as_ref().unwrap().unsynced, 0);
    assert_eq!(report.lag(), 200);
    assert_eq!(bus.verify("t").unwrap().messages, 200);
}

#[test]
fn what_is_put_off_for_long_is_not_passed_by_many_that_are_not() {
    let private = private();
    let queue = open(&private).queue("q").unwrap();
    // A claim for each 16 bytes of a file of what is put off, and more messages than that.
    let count = 2 * FILE as u64 / 16 + 88;
    let mut producer = queue.producer().unwrap();
    let mut consumer = queue.consumer().unwrap();
    for n in 0..count {
        producer.push(&n.to_le_bytes()).unwrap();
        let after = Duration::from_millis(if n == 0 { 1000 } else { 1 });
        consumer.recv().unwrap().retry(after).unwrap();
    }
    let mut seen = vec![false; count as usize];
    for _ in 0..count {
        let delivery = consumer.recv_timeout(PATIENCE).unwrap().expect("another");
        let n = u64::from_le_bytes((*delivery).try_into().unwrap());
        assert!(!std::mem::replace(&mut seen[n as usize], true), "{n} twice");
        delivery.ack().unwrap();
    }
    assert!(consumer.is_empty().unwrap());
}

fn service(private: &Private) -> Service {
    let bus = open(private);
    bus.service_builder("s").capacity(FILE).open().unwrap()
}

/// Answers all that there is: how much.
fn answer(server: &mut Server) -> usize {
    let mut count = 0;
    while let Some(request) = server.try_recv().unwrap() {
        let body = request.to_vec();
        request.reply(&body).unwrap();
        count += 1;
    }
    count
}

#[test]
fn an_event_that_waits_for_its_server_is_not_passed_by_many_commands() {
    let private = private();
    let service = service(&private);
    let client = service.client().unwrap();
    let of = |kind| service.server_builder().kinds(&[kind]).open().unwrap();
    let mut commands = of(Kind::Command);
    let start = |n: u64, kind| {
        let options = CallOptions::new().kind(kind).wait_for_server();
        client.start_with(&options, &n.to_le_bytes()).unwrap()
    };
    let mut pending = vec![start(0, Kind::Event)];
    pending.extend((1..300).map(|n| start(n, Kind::Command)));
    // As many as there are claims, with that of the event.
    assert_eq!(answer(&mut commands), FILE / 16 - 1);
    assert_eq!(answer(&mut of(Kind::Event)), 1);
    assert_eq!(answer(&mut commands), 300 - FILE / 16);
    for (n, pending) in (0..300_u64).zip(pending) {
        assert_eq!(pending.wait().unwrap().unwrap(), n.to_le_bytes());
    }
}

#[test]
fn a_request_that_is_not_wanted_does_not_take_another_along() {
    let private = private();
    let service = service(&private);
    let client = service.client().unwrap();
    let options = CallOptions::new().wait_for_server();
    let start = |n: u64| client.start_with(&options, &n.to_le_bytes()).unwrap();
    let mut pending: Vec<_> = (0..300).map(start).collect();
    drop(pending.pop());
    assert!(answer(&mut service.server().unwrap()) >= 299);
    for (n, pending) in (0..299_u64).zip(pending) {
        assert_eq!(pending.wait().unwrap().unwrap(), n.to_le_bytes());
    }
}

#[test]
fn a_lane_that_could_not_be_taken_up_has_no_publisher() {
    let private = private();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    for n in 0..60 {
        publisher.send(&numbered(n)).unwrap();
        let _ = subscriber.recv().unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while files(&private, "t").len() < 2 {
        assert!(Instant::now() < deadline, "no file is made ahead");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(publisher);
    assert_eq!(subscriber.recv().unwrap_err().kind(), ErrorKind::Ended);
    let next = files(&private, "t").into_iter().max().unwrap();
    let next = private.path.join("topics/t").join(next);
    let next = OpenOptions::new().write(true).open(next).unwrap();
    next.write_all_at(&[0xff; 64], 0).unwrap();
    let _publisher = topic.publisher().unwrap();
    assert_eq!(subscriber.publisher_count().unwrap(), 1);
}

#[test]
fn what_is_damaged_is_not_seen_from_outside_either() {
    let private = private();
    let bus = open(&private);
    let topic = bus.topic("t").unwrap();
    let _subscription = topic.subscription("s").unwrap();
    let mut publisher = topic.publisher().unwrap();
    for message in [b"one", b"two"] {
        publisher.send(message).unwrap();
    }
    let seen = || {
        let seen = bus.inspect("t").unwrap().tail(2).into_iter();
        seen.map(|seen| seen.payload).collect::<Vec<_>>()
    };
    assert_eq!(seen(), [b"one", b"two"]);
    let file = private.path.join("topics/t").join(&files(&private, "t")[0]);
    let at = std::fs::read(&file)
        .unwrap()
        .windows(3)
        .position(|bytes| bytes == b"two");
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(b"2", at.unwrap() as u64).unwrap();
    assert_eq!(seen(), [b"one"]);
}
