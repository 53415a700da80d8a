//! Many sources in one wait: asleep and awake, fair, with deadlines, beside descriptors, and in an epoll loop.
#![allow(missing_docs)]

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use buslane::{Bus, ErrorKind, Fd, Publisher, Source, Subscriber, WaitSet, WaitStrategy};
use common::{PATIENCE, Private, private};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

mod child {
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    use super::common::{abort_on_panic, role, say};
    use buslane::{Bus, ErrorKind, Fd, WaitSet, WaitStrategy};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    #[test]
    #[allow(unsafe_code)]
    fn forking() {
        let Some((path, _)) = role() else { return };
        let bus = Bus::at(&path).unwrap();
        let mut subscriber = bus.topic("t").unwrap().subscriber().unwrap();
        let mut set = WaitSet::new().unwrap();
        // The reactor runs, and the set has a signal with it.
        assert_eq!(set.poll(&mut [&mut subscriber]).unwrap(), None);
        // SAFETY: the one other thread that uses memory is the harness's, which waits.
        if let ForkResult::Parent { child } = unsafe { fork() }.unwrap() {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            return;
        }
        abort_on_panic();
        let told = set.wait(&mut [&mut subscriber], None).unwrap_err();
        assert_eq!(told.kind(), ErrorKind::Forked);
        drop((set, subscriber));
        // Its own bus, and a reactor of its own.
        let bus = Bus::at(path).unwrap();
        let mut subscriber = bus.topic("t").unwrap().subscriber().unwrap();
        let mut publisher = bus.topic("t").unwrap().publisher().unwrap();
        let (_peer, socket) = UnixStream::pair().unwrap();
        let mut set = WaitSet::waiting(WaitStrategy::Sleep).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                publisher.send(b"anew").unwrap();
            });
            let mut fd = Fd::readable(&socket);
            let ready = set.wait(&mut [&mut fd, &mut subscriber], None).unwrap();
            assert_eq!(ready, Some(1));
        });
        std::process::exit(0);
    }

    /// Argument: the topics to send to, each time when another message came in `go`.
    #[test]
    fn publisher() {
        let Some((path, topics)) = role() else { return };
        let bus = Bus::at(path).unwrap();
        let mut go = bus.topic("go").unwrap().subscriber().unwrap();
        let names = topics.split(' ');
        let mut publishers: Vec<_> = names
            .map(|name| bus.topic(name).unwrap().publisher().unwrap())
            .collect();
        say("ready");
        for publisher in &mut publishers {
            if go.recv().is_err() {
                return;
            }
            publisher
                .send(publisher.topic_name().to_owned().as_bytes())
                .unwrap();
        }
        // Stays until it is told.
        let _ = go.recv();
    }
}

fn small(private: &Private) -> Bus {
    Bus::builder().capacity(4096).at(&private.path).unwrap()
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("t{i}")).collect()
}

fn subscribe(bus: &Bus, names: &[String]) -> Vec<Subscriber> {
    let subscriber = |name: &String| bus.topic(name).unwrap().subscriber().unwrap();
    names.iter().map(subscriber).collect()
}

fn publish(bus: &Bus, names: &[String]) -> Vec<Publisher> {
    let publisher = |name: &String| bus.topic(name).unwrap().publisher().unwrap();
    names.iter().map(publisher).collect()
}

fn sources(subscribers: &mut [Subscriber]) -> Vec<&mut dyn Source> {
    subscribers
        .iter_mut()
        .map(|subscriber| subscriber as &mut dyn Source)
        .collect()
}

/// Waits for ever, and receives one message where there is one.
fn next(set: &mut WaitSet, subscribers: &mut [Subscriber]) -> (usize, Vec<u8>) {
    let ready = set.wait(&mut sources(subscribers), None).unwrap().unwrap();
    let message = subscribers[ready].try_recv().unwrap().expect("it is ready");
    (ready, message.to_vec())
}

#[test]
fn another_process_wakes() {
    for strategy in [
        WaitStrategy::Sleep,
        WaitStrategy::Adaptive,
        WaitStrategy::Spin,
    ] {
        let private = private();
        let bus = private.bus();
        let names = names(3);
        let mut subscribers = subscribe(&bus, &names);
        let mut set = WaitSet::waiting(strategy).unwrap();
        let mut child = private.child("publisher", names.join(" "));
        let mut go = bus.topic("go").unwrap().publisher().unwrap();
        assert_eq!(child.hear(), "ready");
        for (i, name) in names.iter().enumerate() {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(20));
                    go.send(b"").unwrap();
                });
                assert_eq!(
                    next(&mut set, &mut subscribers),
                    (i, name.as_bytes().to_vec())
                );
            });
        }
        drop(go);
        child.join();
    }
}

/// More topics than `futex_waitv` takes: awake, then asleep.
#[test]
fn more_than_the_kernel_takes() {
    const N: usize = 200;
    let private = private();
    let bus = small(&private);
    let names = names(N);
    let mut subscribers = subscribe(&bus, &names);
    let mut publishers = publish(&bus, &names);
    for strategy in [WaitStrategy::Adaptive, WaitStrategy::Sleep] {
        let mut set = WaitSet::waiting(strategy).unwrap();
        for publisher in &mut publishers {
            publisher.send(b"awake").unwrap();
        }
        let mut seen: Vec<_> = (0..N).map(|_| next(&mut set, &mut subscribers).0).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..N).collect::<Vec<_>>());
        thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            scope.spawn({
                let publishers = &mut publishers;
                move || {
                    for i in told {
                        let publisher: &mut Publisher = &mut publishers[i];
                        thread::sleep(Duration::from_millis(1));
                        publisher.send(b"asleep").unwrap();
                    }
                }
            });
            for i in 0..N {
                tell.send(i).unwrap();
                assert_eq!(next(&mut set, &mut subscribers), (i, b"asleep".to_vec()));
            }
            drop(tell);
        });
    }
}

#[test]
fn a_busy_source_does_not_hide_the_others() {
    let private = private();
    let bus = private.bus();
    let names = names(3);
    let mut subscribers = subscribe(&bus, &names);
    let mut publishers = publish(&bus, &names);
    let mut set = WaitSet::new().unwrap();
    for _ in 0..100 {
        publishers[0].send(b"busy").unwrap();
    }
    publishers[2].send(b"once").unwrap();
    let order: Vec<_> = (0..3).map(|_| next(&mut set, &mut subscribers).0).collect();
    assert_eq!(order, [0, 2, 0]);
}

#[test]
fn deadlines_are_kept() {
    let private = private();
    let bus = private.bus();
    let (_peer, socket) = UnixStream::pair().unwrap();
    for strategy in [
        WaitStrategy::Sleep,
        WaitStrategy::Adaptive,
        WaitStrategy::Spin,
    ] {
        let mut subscriber = bus.topic("t").unwrap().subscriber().unwrap();
        let mut set = WaitSet::waiting(strategy).unwrap();
        for time in [0, 1, 30].map(Duration::from_millis) {
            let started = Instant::now();
            assert_eq!(set.wait(&mut [&mut subscriber], Some(time)).unwrap(), None);
            assert!(started.elapsed() >= time);
            let deadline = Instant::now() + time;
            let mut fd = Fd::readable(&socket);
            let ready = set.wait_until(&mut [&mut fd, &mut subscriber], deadline);
            assert_eq!(ready.unwrap(), None);
            assert!(Instant::now() >= deadline);
        }
    }
}

#[test]
fn descriptors_beside_subscribers() {
    let private = private();
    let bus = private.bus();
    let (mut peer, mut socket) = UnixStream::pair().unwrap();
    let mut subscriber = bus.topic("t").unwrap().subscriber().unwrap();
    let mut publisher = bus.topic("t").unwrap().publisher().unwrap();
    let mut set = WaitSet::waiting(WaitStrategy::Sleep).unwrap();
    let later = || thread::sleep(Duration::from_millis(20));
    for _ in 0..3 {
        thread::scope(|scope| {
            scope.spawn(|| {
                later();
                peer.write_all(b"?").unwrap();
            });
            let mut fd = Fd::readable(&socket);
            let ready = set.wait(&mut [&mut subscriber, &mut fd], None).unwrap();
            assert_eq!(ready, Some(1));
        });
        assert_eq!(std::io::Read::read(&mut socket, &mut [0; 8]).unwrap(), 1);
        thread::scope(|scope| {
            scope.spawn(|| {
                later();
                publisher.send(b"!").unwrap();
            });
            let mut fd = Fd::readable(&socket);
            let ready = set.wait(&mut [&mut subscriber, &mut fd], None).unwrap();
            assert_eq!(ready, Some(0));
        });
        assert_eq!(&*subscriber.try_recv().unwrap().unwrap(), b"!");
    }
    let mut room = Fd::writable(&socket);
    assert_eq!(set.wait(&mut [&mut room], None).unwrap(), Some(0));
}

/// The loop of the documentation, with a publisher in another process.
#[test]
fn an_epoll_loop() {
    let private = private();
    let bus = private.bus();
    let names = names(2);
    let mut subscribers = subscribe(&bus, &names);
    let order = ["t1", "t0", "t0", "t1"];
    let mut child = private.child("publisher", order.join(" "));
    let mut go = bus.topic("go").unwrap().publisher().unwrap();
    assert_eq!(child.hear(), "ready");

    let mut set = WaitSet::new().unwrap();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    epoll
        .add(&set, EpollEvent::new(EpollFlags::EPOLLIN, 0))
        .unwrap();
    let mut seen = Vec::new();
    assert_eq!(set.poll(&mut sources(&mut subscribers)).unwrap(), None);
    go.send(b"").unwrap();
    while seen.len() < order.len() {
        let woken = epoll.wait(
            &mut [EpollEvent::empty()],
            EpollTimeout::try_from(PATIENCE).unwrap(),
        );
        assert_eq!(woken.unwrap(), 1, "lost a wake-up");
        while let Some(ready) = set.poll(&mut sources(&mut subscribers)).unwrap() {
            let message = subscribers[ready].try_recv().unwrap().unwrap();
            seen.push(String::from_utf8(message.to_vec()).unwrap());
            drop(message);
            go.send(b"").unwrap();
        }
    }
    assert_eq!(seen, order);
    child.join();
}

#[test]
fn ends_losses_and_new_publishers_are_ready_too() {
    let private = private();
    let bus = private.bus();
    let lossy = bus
        .topic_builder("l")
        .lossy(true)
        .capacity(4096)
        .open()
        .unwrap();
    let (mut losing, mut ending) = (
        lossy.subscriber().unwrap(),
        bus.topic("t").unwrap().subscriber().unwrap(),
    );
    let mut set = WaitSet::new().unwrap();
    let mut fast = lossy.publisher().unwrap();
    for _ in 0..1000 {
        fast.send(b"more than a ring").unwrap();
    }
    let ready = set.wait(&mut [&mut losing, &mut ending], None).unwrap();
    assert_eq!(ready, Some(0));
    let kind = losing.try_recv().map(drop).unwrap_err().kind();
    assert_eq!(kind, ErrorKind::Lost);
    while losing.try_recv().unwrap().is_some() {}

    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            drop(bus.topic("t").unwrap().publisher().unwrap());
        });
        let ready = set.wait(&mut [&mut losing, &mut ending], None).unwrap();
        assert_eq!(ready, Some(1));
    });
    let kind = ending.try_recv().map(drop).unwrap_err().kind();
    assert_eq!(kind, ErrorKind::Ended);
    // Said once: then it waits for the next one.
    let wait = Some(Duration::from_millis(1));
    assert_eq!(set.wait(&mut [&mut ending], wait).unwrap(), None);
}

#[test]
fn a_publisher_that_is_killed_is_an_end() {
    let private = private();
    let bus = private.bus();
    let mut subscribers = subscribe(&bus, &[String::from("t0")]);
    let mut child = private.child("publisher", "t0");
    assert_eq!(child.hear(), "ready");
    assert_eq!(subscribers[0].publisher_count().unwrap(), 1);
    // Through the reactor, which has no slices: the descriptor never is readable.
    let (_peer, socket) = UnixStream::pair().unwrap();
    let mut set = WaitSet::waiting(WaitStrategy::Sleep).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(50));
            child.kill();
        });
        let mut fd = Fd::readable(&socket);
        let ready = set.wait(&mut [&mut fd, &mut subscribers[0]], None).unwrap();
        assert_eq!(ready, Some(1));
    });
    let end = subscribers[0].try_recv().map(drop).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Ended);
}

/// 512 publishers into one subscriber: awake, and from sleep.
#[test]
fn many_publishers() {
    const N: usize = 512;
    let private = private();
    let bus = small(&private);
    let topic = bus.topic("t").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut publishers: Vec<_> = (0..N).map(|_| topic.publisher().unwrap()).collect();
    for round in 0..3_u32 {
        for (i, publisher) in publishers.iter_mut().enumerate() {
            publisher.send(&(i as u32).to_le_bytes()).unwrap();
            publisher.send(&round.to_le_bytes()).unwrap();
        }
        let mut seen = Vec::new();
        for _ in 0..N {
            let (lane, i) = {
                let frame = subscriber.recv().unwrap();
                (
                    frame.lane(),
                    u32::from_le_bytes(frame[..].try_into().unwrap()),
                )
            };
            let second = subscriber.recv().unwrap();
            assert_eq!((second.lane(), &*second), (lane, &round.to_le_bytes()[..]));
            seen.push(i);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..N as u32).collect::<Vec<_>>());
        assert!(subscriber.try_recv().unwrap().is_none());
    }
    thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let publishers = &mut publishers;
        scope.spawn(move || {
            for i in told {
                let publisher: &mut Publisher = &mut publishers[i];
                thread::sleep(Duration::from_millis(1));
                publisher.send(&(i as u32).to_le_bytes()).unwrap();
            }
        });
        for i in (0..N).step_by(5) {
            tell.send(i).unwrap();
            let frame = subscriber.recv().unwrap();
            assert_eq!(*frame, (i as u32).to_le_bytes());
        }
        drop(tell);
    });
}

#[test]
fn a_forked_child_starts_anew() {
    let private = private();
    private.bus();
    private.child("forking", "").join();
}
