//! Topics selected by a pattern: those that are there, and those that come later, made by other processes.
#![allow(missing_docs)]

mod common;

use std::thread;
use std::time::Duration;

use buslane::{Bus, ErrorKind, Message, Selection, WaitSet, WaitStrategy};
use common::private;
use futures_util::StreamExt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

mod child {
    use super::common::{role, say};
    use buslane::Bus;

    /// Argument: a topic to make, and to send its own name to at once, three times; then it stays until it is killed.
    #[test]
    fn maker() {
        let Some((path, topic)) = role() else { return };
        let topic = Bus::at(path).unwrap().topic(&topic).unwrap();
        let mut publisher = topic.publisher().unwrap();
        for _ in 0..3 {
            publisher.send(topic.name().as_bytes()).unwrap();
        }
        say("sent");
        // What was sent before the selection had joined is held while the lane has its publisher.
        nix::unistd::pause();
    }

    /// Makes topics without pause, until it is killed.
    #[test]
    fn hasty_maker() {
        let Some((path, _)) = role() else { return };
        let bus = Bus::at(path).unwrap();
        say("ready");
        for i in 0..2000 {
            bus.topic(&format!("hasty/{i}")).unwrap();
        }
    }
}

fn take(selection: &mut Selection) -> (String, Vec<u8>) {
    let selected = selection.recv().unwrap();
    (selected.topic().to_owned(), selected.to_vec())
}

fn end<T>(received: Result<T, buslane::Error>) -> ErrorKind {
    received.map(drop).unwrap_err().kind()
}

#[test]
fn topics_of_other_processes_are_joined_from_sleep() {
    for strategy in [
        WaitStrategy::Sleep,
        WaitStrategy::Adaptive,
        WaitStrategy::Spin,
    ] {
        let private = private();
        let bus = Bus::builder()
            .wait(strategy)
            .capacity(65536)
            .at(&private.path)
            .unwrap();
        let mut selection = bus.select("orders/**").unwrap();
        for name in ["orders/eu", "orders/us/new"] {
            let mut other = private.child("maker", "other/orders");
            let mut child = thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..3 {
                        let message = take(&mut selection);
                        assert_eq!(message, (name.to_owned(), name.as_bytes().to_vec()));
                    }
                });
                thread::sleep(Duration::from_millis(20));
                // From here: a child ends with the thread that started it.
                private.child("maker", name)
            });
            assert_eq!((child.hear(), other.hear()), ("sent".into(), "sent".into()));
            assert!(selection.try_recv().unwrap().is_none());
            child.kill();
            assert_eq!(end(selection.recv()), ErrorKind::Ended);
        }
        assert_eq!(selection.topics().count(), 2);
    }
}

#[test]
fn two_hundred_topics() {
    const N: usize = 200;
    let private = private();
    let bus = Bus::builder().capacity(4096).at(&private.path).unwrap();
    let mut selection = bus.select("t/*").unwrap();
    let mut publishers: Vec<_> = (0..N)
        .map(|i| bus.topic(&format!("t/{i}")).unwrap().publisher().unwrap())
        .collect();
    // Awake.
    for publisher in &mut publishers {
        publisher.send(b"awake").unwrap();
    }
    let mut seen: Vec<_> = (0..N).map(|_| take(&mut selection).0).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), N);
    // Asleep.
    thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel::<usize>();
        let publishers = &mut publishers;
        scope.spawn(move || {
            for i in told {
                thread::sleep(Duration::from_millis(1));
                publishers[i].send(b"asleep").unwrap();
            }
        });
        for i in 0..N {
            tell.send(i).unwrap();
            assert_eq!(take(&mut selection), (format!("t/{i}"), b"asleep".to_vec()));
        }
        drop(tell);
    });
}

#[test]
fn no_topic_hides_another() {
    let private = private();
    let bus = private.bus();
    let mut selection = bus.select("*").unwrap();
    let mut busy = bus.topic("busy").unwrap().publisher().unwrap();
    let mut quiet = bus.topic("quiet").unwrap().publisher().unwrap();
    for _ in 0..500 {
        busy.send(b"busy").unwrap();
    }
    quiet.send(b"quiet").unwrap();
    let at = (0..501).position(|_| take(&mut selection).0 == "quiet");
    assert!(at.unwrap() < 100, "{at:?}");
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, PartialEq)]
#[repr(C)]
struct Tick(u64);

impl Message for Tick {
    const NAME: &'static str = "test.Tick";
}

#[test]
fn other_types_are_passed_over() {
    let private = private();
    let bus = private.bus();
    bus.typed::<Tick>("a/ticks").unwrap();
    let mut bytes = bus.select("a/*").unwrap();
    let mut ticks = bus.select_typed::<Tick>("a/*").unwrap();
    bus.topic("a/bytes")
        .unwrap()
        .publisher()
        .unwrap()
        .send(b"b")
        .unwrap();
    let mut publisher = bus.typed::<Tick>("a/ticks").unwrap().publisher().unwrap();
    publisher.send_value(&Tick(7)).unwrap();
    let tick = ticks.recv().unwrap();
    assert_eq!((tick.topic(), *tick), ("a/ticks", Tick(7)));
    drop(tick);
    assert_eq!(ticks.topics().collect::<Vec<_>>(), ["a/ticks"]);
    assert!(bytes.try_recv().is_ok());
    assert_eq!(bytes.topics().collect::<Vec<_>>(), ["a/bytes"]);
    for wrong in ["a*", "a//b", "", "../x"] {
        assert_eq!(end(bus.select(wrong)), ErrorKind::InvalidName, "{wrong}");
    }
}

#[test]
fn it_ends_when_all_publishers_have_left() {
    let private = private();
    let bus = private.bus();
    let mut selection = bus.select("t/*").unwrap();
    let wait = Duration::from_millis(1);
    assert!(selection.recv_timeout(wait).unwrap().is_none());
    let mut one = bus.topic("t/1").unwrap().publisher().unwrap();
    let mut two = bus.topic("t/2").unwrap().publisher().unwrap();
    one.send(b"1").unwrap();
    assert_eq!(take(&mut selection).1, b"1");
    drop(one);
    // There is another, who has sent nothing yet.
    assert!(selection.recv_timeout(wait).unwrap().is_none());
    two.send(b"2").unwrap();
    drop(two);
    assert_eq!(take(&mut selection).1, b"2");
    assert_eq!(end(selection.recv()), ErrorKind::Ended);
    // Said once.
    assert!(selection.recv_timeout(wait).unwrap().is_none());
    // And once more, as a stream.
    let mut three = bus.topic("t/3").unwrap().publisher().unwrap();
    three.send(b"3").unwrap();
    let mut stream = selection.stream();
    let (name, message) = block_on(stream.next()).unwrap().unwrap();
    assert_eq!((&*name, &*message), ("t/3", &b"3"[..]));
    drop(three);
    assert!(block_on(stream.next()).is_none());
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

#[test]
fn a_removed_topic_is_left() {
    let private = private();
    let bus = private.bus();
    drop(bus.topic("t/gone").unwrap());
    let mut selection = bus.select("t/*").unwrap();
    assert_eq!(selection.topics().count(), 1);
    std::fs::remove_dir_all(private.path.join("topics/t%2Fgone")).unwrap();
    drop(bus.topic("elsewhere").unwrap());
    assert!(selection.try_recv().unwrap().is_none());
    assert_eq!(selection.topics().count(), 0);
    // Made anew, it is another.
    let mut publisher = bus.topic("t/gone").unwrap().publisher().unwrap();
    publisher.send(b"back").unwrap();
    assert_eq!(take(&mut selection), ("t/gone".into(), b"back".to_vec()));
    std::fs::remove_dir_all(private.path.join("topics/t%2Fgone")).unwrap();
    let mut publisher = bus.topic("t/gone").unwrap().publisher().unwrap();
    publisher.send(b"again").unwrap();
    assert_eq!(take(&mut selection), ("t/gone".into(), b"again".to_vec()));
}

/// Whenever it is killed: what it has made is joined, told by itself or by who puts away what it left.
#[test]
fn a_maker_that_is_killed() {
    for time in [0, 3, 7, 12] {
        let private = private();
        let bus = private.bus();
        let mut selection = bus.select("hasty/*").unwrap();
        let mut child = private.child("hasty_maker", "");
        assert_eq!(child.hear(), "ready");
        thread::sleep(Duration::from_millis(time));
        child.kill();
        let made = bus.topics().unwrap();
        while selection.topics().count() < made.len() {
            // Asleep: it is woken for each, at the latest when the death is noticed.
            let _ = selection.recv_timeout(Duration::from_millis(10)).unwrap();
        }
    }
}

#[test]
fn as_a_source_beside_others() {
    let private = private();
    let bus = private.bus();
    let mut selection = bus.select("t/*").unwrap();
    let mut other = bus.topic("other").unwrap().subscriber().unwrap();
    let mut set = WaitSet::waiting(WaitStrategy::Sleep).unwrap();
    for (i, name) in ["t/1", "other"].into_iter().enumerate() {
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                let mut publisher = bus.topic(name).unwrap().publisher().unwrap();
                publisher.send(b"!").unwrap();
                std::mem::forget(publisher);
            });
            let ready = set.wait(&mut [&mut selection, &mut other], None).unwrap();
            assert_eq!(ready, Some(i));
        });
        if i == 0 {
            let selected = block_on(selection.recv_async()).unwrap();
            assert_eq!((selected.topic(), &*selected), ("t/1", &b"!"[..]));
        }
    }
}
