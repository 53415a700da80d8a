//! Futures: under tokio and under no runtime, woken from sleep by other processes, dropped at any time.
#![allow(missing_docs)]

mod common;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use buslane::{Bus, ErrorKind, Message, Publisher, Subscriber};
use common::{PATIENCE, Private, block_on, private};
use futures_util::{SinkExt, StreamExt};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

mod child {
    use super::block_on;
    use super::common::{role, say};
    use buslane::Bus;

    /// Sends back what it receives, blocking; the argument `async` has it do so in a task.
    #[test]
    fn echo() {
        let Some((path, how)) = role() else { return };
        let bus = Bus::at(path).unwrap();
        let mut there = bus.topic("there").unwrap().subscriber().unwrap();
        let mut back = bus.topic("back").unwrap().publisher().unwrap();
        say("ready");
        if how == "async" {
            block_on(async {
                while let Ok(frame) = there.recv_async().await {
                    back.send_async(&frame).await.unwrap();
                }
            });
        } else {
            while let Ok(frame) = there.recv() {
                back.send(&frame).unwrap();
            }
        }
    }

    /// Receives so many messages when told, and then ends without a word.
    #[test]
    fn subscriber() {
        let Some((path, n)) = role() else { return };
        let bus = Bus::at(path).unwrap();
        let mut subscriber = bus.topic("t").unwrap().subscriber().unwrap();
        let mut go = bus.topic("go").unwrap().subscriber().unwrap();
        say("ready");
        let _ = go.recv();
        for _ in 0..n.parse().unwrap() {
            drop(subscriber.recv().unwrap());
        }
        if n == "0" {
            std::process::exit(0);
        }
    }
}

fn current_thread<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

fn multi_thread<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

fn ends(bus: &Bus, name: &str) -> (Subscriber, Publisher) {
    let topic = bus.topic(name).unwrap();
    (topic.subscriber().unwrap(), topic.publisher().unwrap())
}

/// Whether a subscriber of the topic is said to sleep.
fn sleeps(bus: &Bus, topic: &str) -> bool {
    let report = bus.inspect(topic).unwrap();
    report.cursors.iter().any(|cursor| cursor.sleeping)
}

/// Polls once, with a waker that does nothing.
fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

async fn converse(private: &Private, how: &str) {
    let bus = private.bus();
    let mut child = private.child("echo", how);
    let mut back = bus
        .topic("back")
        .unwrap()
        .subscriber()
        .unwrap()
        .into_stream();
    let mut there = bus.topic("there").unwrap().publisher().unwrap();
    assert_eq!(child.hear(), "ready");
    for i in 0..500_u64 {
        if i % 50 == 0 {
            // Long enough for both to sleep.
            thread::sleep(Duration::from_millis(2));
        }
        there.send_async(&i.to_le_bytes()).await.unwrap();
        assert_eq!(back.next().await.unwrap().unwrap(), i.to_le_bytes());
    }
    drop(there);
    assert!(back.next().await.is_none());
    child.join();
}

#[test]
fn with_another_process_under_no_runtime() {
    block_on(converse(&private(), "async"));
    block_on(converse(&private(), "blocking"));
}

#[test]
fn with_another_process_under_tokio() {
    current_thread(converse(&private(), "async"));
    multi_thread(converse(&private(), "async"));
}

#[test]
fn tasks_may_move_between_threads() {
    fn is_send<T: Send>(_: &T) {}
    let private = private();
    let (mut subscriber, mut publisher) = ends(&private.bus(), "t");
    is_send(&subscriber.recv_async());
    is_send(&subscriber.stream());
    is_send(&publisher.send_async(b""));
    is_send(&publisher.wait_delivered_async());
    is_send(&publisher.into_sink::<Vec<u8>>());
}

/// More subscribers than one thread of the reactor takes, each a task that sleeps before each message.
#[test]
fn many_subscribers() {
    const N: usize = 200;
    let private = private();
    let bus = Bus::builder().capacity(4096).at(&private.path).unwrap();
    multi_thread(async {
        let mut tasks = Vec::new();
        let mut publishers = Vec::new();
        for i in 0..N {
            let (subscriber, publisher) = ends(&bus, &format!("t{i}"));
            publishers.push(publisher);
            tasks.push(tokio::spawn(async move {
                let messages: Vec<_> = subscriber.into_stream().collect().await;
                messages.into_iter().map(|m| m.unwrap()).collect::<Vec<_>>()
            }));
        }
        for round in 0..3_u8 {
            for publisher in &mut publishers {
                publisher.send_async(&[round]).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(publishers);
        for task in tasks {
            assert_eq!(task.await.unwrap(), [[0], [1], [2]]);
        }
    });
}

/// Futures that are dropped again and again, at any point: each message is received once.
#[test]
fn a_busy_publisher_does_not_hide_another() {
    let private = private();
    let bus = private.bus();
    let topic = bus.topic("t").unwrap();
    let mut stream = topic.subscriber().unwrap().into_stream();
    let mut publishers = [b"a", b"b"].map(|name| (topic.publisher().unwrap(), name));
    for (publisher, name) in &mut publishers {
        for _ in 0..2000 {
            publisher.send(name.as_slice()).unwrap();
        }
    }
    // A turn is a quarter of the lane: 1024 messages of a byte.
    let first: Vec<_> = block_on(async { stream.by_ref().take(2200).collect().await });
    let from = |name: &[u8]| {
        first
            .iter()
            .filter(|one| matches!(one, Ok(one) if one == name))
            .count()
    };
    assert!(
        from(b"a").min(from(b"b")) >= 1000,
        "{} of one, {} of the other",
        from(b"a"),
        from(b"b")
    );
}

#[test]
fn what_is_removed_is_let_go() {
    let private = private();
    let bus = private.bus();
    let names: Vec<_> = (0..20).map(|i| format!("t/{i}")).collect();
    let topics = names.iter().map(|name| bus.topic(name).unwrap());
    drop(topics.collect::<Vec<_>>());
    let mut selection = bus.select("t/*").unwrap().into_stream();
    assert!(poll_once(selection.next()).is_pending());
    for name in &names[1..] {
        bus.remove_topic(name, true).unwrap();
    }
    assert!(poll_once(selection.next()).is_pending());
    let path = private.path.to_str().unwrap();
    let removed = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let ours = maps.lines().filter(|line| line.contains(path));
        ours.filter(|line| !line.contains("t%2F0"))
            .filter(|line| line.ends_with("(deleted)"))
            .count()
    };
    // The reactor lets go a moment later.
    let patient = Instant::now() + PATIENCE;
    while removed() > 0 && Instant::now() < patient {
        thread::yield_now();
    }
    assert_eq!(removed(), 0);
}

#[test]
fn a_dropped_future_loses_nothing() {
    const N: u64 = 2000;
    let private = private();
    let bus = private.bus();
    let (mut subscriber, mut publisher) = ends(&bus, "t");
    let sender = thread::spawn(move || {
        for i in 0..N {
            if i % 7 == 0 {
                thread::sleep(Duration::from_micros(i % 300));
            }
            publisher.send(&i.to_le_bytes()).unwrap();
        }
    });
    let mut dropped = 0;
    current_thread(async {
        for i in 0..N {
            loop {
                tokio::select! {
                    biased;
                    frame = subscriber.recv_async() => {
                        assert_eq!(*frame.unwrap(), i.to_le_bytes());
                        break;
                    }
                    // Ready at the second poll.
                    () = tokio::task::yield_now() => dropped += 1,
                }
            }
        }
    });
    sender.join().unwrap();
    assert!(dropped > 0);
    assert!(!sleeps(&bus, "t"));
}

#[test]
fn a_dropped_future_sleeps_no_more() {
    let private = private();
    let bus = private.bus();
    let (mut subscriber, _publisher) = ends(&bus, "t");
    let mut future = Box::pin(subscriber.recv_async());
    assert!(poll_once(future.as_mut()).is_pending());
    assert!(sleeps(&bus, "t"));
    drop(future);
    assert!(!sleeps(&bus, "t"));

    let mut stream = subscriber.stream();
    assert!(poll_once(stream.next()).is_pending());
    assert!(sleeps(&bus, "t"));
    drop(stream);
    assert!(!sleeps(&bus, "t"));

    // Forgotten, it can't say so; the next one does.
    let mut forgotten = Box::pin(subscriber.recv_async());
    assert!(poll_once(forgotten.as_mut()).is_pending());
    std::mem::forget(forgotten);
    let none = subscriber.recv_timeout(Duration::from_millis(50));
    assert!(none.unwrap().is_none());
    assert!(!sleeps(&bus, "t"));
}

/// A future that was forgotten, and a blocking sleep after it: the next future is woken all the same.
#[test]
fn a_forgotten_future_does_no_harm() {
    let private = private();
    let (mut subscriber, mut publisher) = ends(&private.bus(), "t");
    let mut forgotten = Box::pin(subscriber.recv_async());
    assert!(poll_once(forgotten.as_mut()).is_pending());
    std::mem::forget(forgotten);
    assert!(
        subscriber
            .recv_timeout(Duration::from_millis(50))
            .unwrap()
            .is_none()
    );
    let sender = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        publisher.send(b"awake").unwrap();
    });
    assert_eq!(&*block_on(subscriber.recv_async()).unwrap(), b"awake");
    sender.join().unwrap();
}

/// Polled for other reasons than a message, a task that sleeps goes on sleeping, and is woken.
#[test]
fn a_task_that_is_polled_in_between_is_woken() {
    let private = private();
    let (mut subscriber, mut publisher) = ends(&private.bus(), "t");
    current_thread(async {
        let mut future = pin!(subscriber.recv_async());
        for _ in 0..100 {
            assert!(poll_once(future.as_mut()).is_pending());
        }
        let sender = tokio::task::spawn_blocking(move || {
            thread::sleep(Duration::from_millis(20));
            publisher.send(b"awake").unwrap();
        });
        assert_eq!(&*future.await.unwrap(), b"awake");
        sender.await.unwrap();
    });
}

#[test]
fn sending_waits_for_room() {
    let private = private();
    let bus = Bus::builder().capacity(4096).at(&private.path).unwrap();
    let (mut subscriber, mut publisher) = ends(&bus, "t");
    let message = [7; 500];
    while publisher.try_send(&message).is_ok() {}
    assert!(poll_once(publisher.send_async(&message)).is_pending());
    // It was dropped: nothing of it was sent.
    let mut count = 0;
    while subscriber.try_recv().unwrap().is_some() {
        count += 1;
    }
    assert!(publisher.try_send(&message).is_ok());
    assert_eq!(subscriber.iter().take(1).count(), 1);
    assert!(count > 4);

    // A slow reader in another thread, and one message after the other.
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        for message in subscriber.iter() {
            received.extend(message.unwrap()[..4].try_into().map(u32::from_le_bytes));
            if received.len().is_multiple_of(5) {
                thread::sleep(Duration::from_millis(2));
            }
        }
        received
    });
    block_on(async {
        for i in 0..100_u32 {
            let mut message = [0; 500];
            message[..4].copy_from_slice(&i.to_le_bytes());
            publisher.send_async(&message).await.unwrap();
        }
        publisher.wait_delivered_async().await.unwrap();
    });
    drop(publisher);
    assert_eq!(reader.join().unwrap(), (0..100).collect::<Vec<_>>());
    let private = common::private();
    let (_subscriber, mut publisher) = ends(&private.bus(), "t");
    let error = block_on(publisher.send_async(&[0; 1 << 20])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLong);
}

#[test]
fn a_sink_keeps_one_while_there_is_no_room() {
    let private = private();
    let bus = Bus::builder().capacity(4096).at(&private.path).unwrap();
    let (subscriber, publisher) = ends(&bus, "t");
    let mut sink = publisher.into_sink();
    let mut sent = 0;
    while poll_once(sink.send(vec![sent; 500])).is_ready() {
        sent += 1;
    }
    // The last one is kept.
    let mut stream = subscriber.into_stream();
    current_thread(async {
        let flushed = tokio::spawn(async move { sink.flush().await.map(|()| sink) });
        for i in 0..=sent {
            assert_eq!(stream.next().await.unwrap().unwrap(), vec![i; 500]);
        }
        let mut sink = flushed.await.unwrap().unwrap();
        let error = sink.send(vec![0; 5000]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLong);
        sink.send(vec![1]).await.unwrap();
        sink.close().await.unwrap();
        drop(sink);
        assert_eq!(stream.next().await.unwrap().unwrap(), [1]);
        assert!(stream.next().await.is_none());
    });
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, PartialEq)]
#[repr(C)]
struct Tick(u64);

impl Message for Tick {
    const NAME: &'static str = "test.Tick";
}

#[test]
fn values() {
    let private = private();
    let topic = private.bus().typed::<Tick>("ticks").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    block_on(async {
        publisher.send_value_async(&Tick(1)).await.unwrap();
        let mut sink = publisher.into_sink();
        sink.send(Tick(2)).await.unwrap();
        assert_eq!(*subscriber.recv_async().await.unwrap(), Tick(1));
        assert_eq!(subscriber.stream().next().await.unwrap().unwrap(), Tick(2));
    });
}

#[test]
fn deaths_are_heard() {
    let private = private();
    let bus = private.bus();
    // A publisher that is killed ends the stream.
    let mut child = private.child("echo", "blocking");
    let mut stream = bus
        .topic("back")
        .unwrap()
        .subscriber()
        .unwrap()
        .into_stream();
    assert_eq!(child.hear(), "ready");
    block_on(async {
        assert!(poll_once(stream.next()).is_pending());
        let killer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            child.kill();
        });
        assert!(stream.next().await.is_none());
        killer.join().unwrap();
    });
    // A subscriber that is killed makes room, and is missed.
    let mut child = private.child("subscriber", "1000000");
    assert_eq!(child.hear(), "ready");
    let mut publisher = bus.topic("t").unwrap().publisher().unwrap();
    while publisher.try_send(&[0; 1000]).is_ok() {}
    block_on(async {
        let killer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            child.kill();
        });
        publisher.send_async(&[0; 1000]).await.unwrap();
        let error = publisher.wait_delivered_async().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SubscribersGone);
        killer.join().unwrap();
    });
}

/// While all tasks sleep, the reactor does, too: its threads do not run.
#[test]
fn an_idle_reactor_does_nothing() {
    fn runs() -> u64 {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let statuses = tasks
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
        let reactors = statuses.filter(|status| status.starts_with("Name:\tbuslane-reactor"));
        let switches = reactors.flat_map(|status| {
            let counts = status.lines().filter_map(|line| {
                line.contains("ctxt_switches")
                    .then(|| line.rsplit('\t').next())?
            });
            counts
                .map(|n| n.parse::<u64>().unwrap())
                .collect::<Vec<_>>()
        });
        switches.sum()
    }
    if common::role().is_none() {
        // Alone in a process: other tests have their own sleepers.
        private().child_test("an_idle_reactor_does_nothing").join();
        return;
    }
    let private = private();
    let (mut subscriber, mut publisher) = ends(&private.bus(), "t");
    let mut future = Box::pin(subscriber.recv_async());
    assert!(poll_once(future.as_mut()).is_pending());
    thread::sleep(Duration::from_millis(100));
    let before = runs();
    assert!(before > 0, "there is no reactor");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(runs(), before);
    publisher.send(b"").unwrap();
    assert!(block_on(future).is_ok());
}

/// Who waits for a reader is not left waiting when that goes away without reading.
#[test]
fn a_sender_does_not_wait_for_who_has_left() {
    let private = private();
    let bus = Bus::builder().durable(true).capacity(4096);
    let bus = bus.at(&private.path).unwrap();
    let topic = bus.topic("t").unwrap();
    let mut subscription = topic.subscription("s").unwrap();
    let mut publisher = topic.publisher().unwrap();
    publisher.send(b"read").unwrap();
    publisher.send(b"unread").unwrap();
    assert_eq!(*subscription.recv().unwrap(), *b"read");
    let waiting = thread::spawn(move || block_on(publisher.wait_delivered_async()));
    thread::sleep(Duration::from_millis(50));
    drop(subscription);
    waiting.join().unwrap().unwrap();

    let private = common::private();
    let bus = Bus::builder().capacity(4096).at(&private.path).unwrap();
    let (mut subscriber, mut publisher) = ends(&bus, "t");
    publisher.send(&[0; 500]).unwrap();
    assert_eq!(*subscriber.recv().unwrap(), [0; 500]);
    while publisher.try_send(&[0; 500]).is_ok() {}
    let waiting = thread::spawn(move || block_on(publisher.send_async(&[0; 500])));
    thread::sleep(Duration::from_millis(50));
    bus.remove_topic("t", true).unwrap();
    let error = waiting.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
