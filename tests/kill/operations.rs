//! The operations: what the witness sets up, what the victim does when it is killed, and what must hold then.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use buslane::{
    Bus, BusBuilder, CallOptions, Client, Consumer, ErrorKind, Lost, Publisher, Queue, Request,
    Server, Service, Start, State, Subscriber, Topic, WaitStrategy,
};
use nix::sys::stat::{Mode, umask};

use crate::common::{PATIENCE, check, fill, length, names};
use crate::run::doomed;

/// What the witness is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The victim is about to begin.
    Here,
    /// The victim is about to sleep for others.
    Nudge,
    /// The victim has died. The answer is how far its operation had come, as far as that shows: a later death never shows less.
    Check,
}

/// Holds what the witness has, and answers. Whatever does not hold is a panic.
pub type Witness = Box<dyn FnMut(Ask) -> u64>;
/// Holds what the victim has, and does what it is killed in.
pub type Deed = Box<dyn FnMut()>;

pub struct Operation {
    pub name: &'static str,
    /// Killed after every instruction; else after each system call and each store to shared memory.
    pub every_step: bool,
    /// What the thread is called that does it, if it is not the one that asks for it, after that.
    pub thread: Option<&'static str>,
    /// What a thread is called that does nothing meanwhile.
    pub still: Option<&'static str>,
    /// Runs before the victim begins.
    pub witness: fn(&Path) -> Witness,
    pub victim: fn(&Path) -> Deed,
    /// What the next process does that comes after the death: it puts away, and may be killed over that.
    pub repair: fn(&Path),
    /// What is left in `topics/` when all have gone, of numbers a `#`.
    pub leaves: &'static [&'static str],
}

// ---------------------------------------------------------------------------------------------------------- in common

/// Small lanes, and nobody spins.
fn builder() -> BusBuilder {
    Bus::builder().capacity(4096).wait(WaitStrategy::Sleep)
}

fn bus(path: &Path) -> Bus {
    builder().at(path).unwrap()
}

/// While the umask is one that lets in nobody.
fn bus_for_all(path: &Path) -> Bus {
    umask(Mode::from_bits_truncate(0o077));
    builder().mode(0o755).at(path).unwrap()
}

fn topic(path: &Path) -> Topic {
    bus(path).topic("t").unwrap()
}

fn queue(path: &Path) -> Queue {
    bus(path).queue("q").unwrap()
}

fn service(path: &Path) -> Service {
    bus(path)
        .service_builder("s")
        .capacity(4096)
        .open()
        .unwrap()
}

fn state(path: &Path) -> State {
    bus(path)
        .state_builder("v")
        .keys(8)
        .max_key(16)
        .max_value(64)
        .open()
        .unwrap()
}

fn durable(path: &Path) -> Bus {
    builder().durable(true).at(path).unwrap()
}

fn message(who: u64, n: u64) -> Vec<u8> {
    let mut message = vec![0; length(n)];
    fill(&mut message, who, n);
    message
}

fn send(publisher: &mut Publisher, who: u64, numbers: std::ops::Range<u64>) {
    for n in numbers {
        publisher.send_timeout(&message(who, n), PATIENCE).unwrap();
    }
}

/// Receives what `who` sent, whole and in order, from number `next` on, until nobody publishes any more: the next number.
fn receive(subscriber: &mut Subscriber, who: u64, mut next: u64) -> u64 {
    loop {
        match subscriber.recv_timeout(PATIENCE) {
            Ok(frame) => {
                assert_eq!(check(&frame.expect("a message, or the end")), (who, next));
                next += 1;
            }
            Err(e) if e.kind() == ErrorKind::Ended => return next,
            Err(e) => panic!("{e}"),
        }
    }
}

/// The numbers of what is there of publisher 1.
fn receive_held(subscriber: &mut Subscriber) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        match subscriber.try_recv() {
            Ok(Some(frame)) => {
                let (who, n) = check(&frame);
                assert_eq!(who, 1);
                numbers.push(n);
            }
            Ok(None) => return numbers,
            Err(e) if e.kind() == ErrorKind::Ended => return numbers,
            Err(e) => panic!("{e}"),
        }
    }
}

fn receive_one(subscriber: &mut Subscriber, who: u64, n: u64) {
    assert_eq!(
        check(
            &subscriber
                .recv_timeout(PATIENCE)
                .unwrap()
                .expect("a message")
        ),
        (who, n)
    );
}

/// Enough to go several times round a lane.
const MANY: u64 = 30;

/// Messages of a new publisher reach this subscriber, and a new one.
fn go_on(topic: &Topic, subscriber: &mut Subscriber) {
    let mut publisher = topic.publisher().unwrap();
    let mut other = topic.subscriber().unwrap();
    for n in 0..MANY {
        send(&mut publisher, 99, n..n + 1);
        receive_one(subscriber, 99, n);
        receive_one(&mut other, 99, n);
    }
}

/// A publisher is not held up by who has died, and loses nothing.
fn publish_on(publisher: &mut Publisher, subscriber: &mut Subscriber, first: u64) {
    for n in first..first + MANY {
        send(publisher, 1, n..n + 1);
        receive_one(subscriber, 1, n);
    }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// Takes and acknowledges all that is left in a queue: the numbers, ascending.
fn work_off(consumer: &mut Consumer) -> Vec<u64> {
    let mut done = Vec::new();
    while !consumer.is_empty().unwrap() {
        let delivery = consumer
            .recv_timeout(PATIENCE)
            .unwrap()
            .expect("a delivery");
        done.push(number(&delivery));
        delivery.ack().unwrap();
    }
    done.sort_unstable();
    done
}

/// Answers what is asked, until nothing is: how many there were.
fn serve(server: &mut Server, reply: &[u8]) -> u64 {
    let mut served = 0;
    while let Some(request) = server.try_recv().unwrap() {
        // Who asked may have died.
        let _ = request.reply(reply);
        served += 1;
    }
    served
}

/// A client that comes now is served.
fn call_on(service: &Service, server: &mut Server) {
    let client = service.client().unwrap();
    for _ in 0..3 {
        let pending = client.start(b"later").unwrap();
        let request = server.recv_timeout(PATIENCE).unwrap().expect("a request");
        assert_eq!(&*request, b"later");
        request.reply(b"served").unwrap();
        assert_eq!(pending.wait().unwrap().unwrap(), b"served");
    }
}

/// What is left when all have gone: nobody, nothing half made, and of topics what stays.
pub fn look_over(path: &Path, leaves: &[&str]) {
    let bus = builder().create(false).at(path).unwrap();
    for topic in bus.topics().unwrap() {
        let damage = bus.is_durable().then(|| bus.verify(&topic).unwrap().damage);
        assert!(
            damage.is_none_or(|damage| damage.is_empty()),
            "{topic} is damaged"
        );
    }
    let all: &[&str] = match bus.is_durable() {
        true => &["bus", "locks", "members", "topics"],
        false => &["bus", "members", "topics"],
    };
    drop(bus);
    assert_eq!(names(path), all);
    assert_eq!(names(&path.join("members")), [""; 0]);
    let numberless = |name: &str| {
        let parts = name.split('.').map(|part| {
            if part.parse::<u64>().is_ok() {
                "#"
            } else {
                part
            }
        });
        parts.collect::<Vec<_>>().join(".")
    };
    let mut left = names(&path.join("topics"));
    left.retain(|topic| {
        !leaves
            .iter()
            .any(|name| name.starts_with(&format!("{topic}/")))
    });
    for topic in names(&path.join("topics")) {
        let mut files = names(&path.join("topics").join(&topic));
        // It comes with the first lane, and stays with the topic.
        files.retain(|file| file != "locks");
        let all = files.into_iter().map(|file| format!("{topic}/{file}"));
        left.extend(all.filter(|name| !leaves.contains(&&*numberless(name))));
    }
    assert_eq!(left, [""; 0]);
}

/// Does it, and holds what comes of it.
fn keep<T>(mut make: impl FnMut() -> T + 'static) -> Deed {
    Box::new(move || std::mem::forget(make()))
}

/// Lets the one go, and holds the other.
fn let_go<T: 'static>(one: T, other: impl Sized + 'static) -> Deed {
    let mut both = (Some(one), other);
    Box::new(move || drop(both.0.take()))
}

const OPERATION: Operation = Operation {
    name: "",
    every_step: false,
    thread: None,
    still: None,
    witness: |_| Box::new(|_| 0),
    victim: |_| Box::new(|| {}),
    repair: |path| drop(bus(path)),
    leaves: &["t/topic"],
};

const QUEUE: Operation = Operation {
    leaves: &["q/topic", "q/group.default"],
    ..OPERATION
};
const SERVICE: Operation = Operation {
    leaves: &["s/topic", "s/group.default"],
    ..OPERATION
};
const STATE: Operation = Operation {
    leaves: &["v/topic", "v/table.#"],
    ..OPERATION
};
const DURABLE: Operation = Operation {
    repair: |path| drop(durable(path)),
    leaves: &["t/topic", "t/lane.#", "t/data.#.#", "t/subscription.s"],
    ..OPERATION
};

/// A witness with a subscriber, and a victim that has sent three messages to it.
fn subscribed(path: &Path) -> Witness {
    let topic = topic(path);
    let mut subscriber = topic.subscriber().unwrap();
    Box::new(move |ask| {
        if ask != Ask::Check {
            return 0;
        }
        let sent = receive(&mut subscriber, 1, 0);
        go_on(&topic, &mut subscriber);
        sent
    })
}

fn publishing(path: &Path, sent: u64) -> Publisher {
    let mut publisher = topic(path).publisher().unwrap();
    send(&mut publisher, 1, 0..sent);
    publisher
}

/// Opens the bus, and takes up the lane that the dead left.
fn adopt(path: &Path) {
    let mut publisher = topic(path).publisher().unwrap();
    drop(publisher.try_loan(64).map(|loan| loan.len()));
}

/// A witness with a publisher that has sent three messages, and a subscriber of its own.
fn published(path: &Path) -> Witness {
    let topic = topic(path);
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    send(&mut publisher, 1, 0..3);
    let mut sent = 3;
    Box::new(move |ask| {
        match ask {
            Ask::Here => {}
            Ask::Nudge => {
                send(&mut publisher, 1, sent..sent + 1);
                sent += 1;
            }
            Ask::Check => {
                for n in 0..sent {
                    receive_one(&mut subscriber, 1, n);
                }
                publish_on(&mut publisher, &mut subscriber, sent);
            }
        }
        0
    })
}

/// A witness with a producer that has pushed three messages, and no consumer yet. It says how many were not to be done again.
fn pushed(path: &Path) -> Witness {
    let queue = queue(path);
    let mut producer = queue.producer().unwrap();
    (0..3_u64).for_each(|n| producer.push(&n.to_le_bytes()).unwrap());
    Box::new(move |ask| {
        if ask != Ask::Check {
            return 0;
        }
        let mut consumer = queue.consumer().unwrap();
        let done = work_off(&mut consumer);
        assert!(done == [0, 1, 2] || done == [1, 2], "{done:?}");
        producer.push(&7_u64.to_le_bytes()).unwrap();
        assert_eq!(work_off(&mut consumer), [7]);
        3 - done.len() as u64
    })
}

/// A witness with a server.
fn serving(path: &Path) -> Witness {
    let service = service(path);
    let mut server = service.server().unwrap();
    let mut served = 0;
    Box::new(move |ask| {
        match ask {
            Ask::Here => {}
            Ask::Nudge => served += serve(&mut server, b"reply"),
            Ask::Check => {
                served += serve(&mut server, b"reply");
                assert!(served <= 1, "{served} requests");
                call_on(&service, &mut server);
            }
        }
        0
    })
}

/// A witness whose request the victim has, served again by itself if that dies. It says whether the victim's reply came.
fn asking(path: &Path, options: &CallOptions) -> Witness {
    let bus = bus(path);
    let service = bus.service_builder("s").capacity(4096).open().unwrap();
    let client = service.client().unwrap();
    let is_once = format!("{options:?}").contains("once: true");
    let mut pending = Some(
        client
            .start_with(&options.clone().wait_for_server(), b"request")
            .unwrap(),
    );
    Box::new(move |ask| {
        if ask != Ask::Check {
            return 0;
        }
        let mut pending = pending.take().unwrap();
        let mut server = service.server().unwrap();
        let answer = loop {
            serve(&mut server, b"second");
            match pending.wait_timeout(Duration::from_millis(1)) {
                Ok(None) => {}
                Ok(Some(answer)) => break Some(answer.unwrap()),
                Err(e) => {
                    assert!(is_once && e.kind() == ErrorKind::ServerDied, "{e}");
                    break None;
                }
            }
        };
        // It comes again if the victim had not acknowledged it, also after its reply.
        wait_for_reclaim(&bus);
        serve(&mut server, b"second");
        call_on(&service, &mut server);
        match answer.as_deref() {
            Some(b"first") => 1,
            Some(b"second") if !is_once => 0,
            None => 0,
            other => panic!("answered by {other:?}"),
        }
    })
}

fn replying(path: &Path) -> Deed {
    let mut server = service(path).server().unwrap();
    let mut request = Some(server.recv_timeout(PATIENCE).unwrap().expect("a request"));
    Box::new(move || {
        let _ = &server;
        request.take().unwrap().reply(b"first").unwrap();
    })
}

/// A witness that has gone, and looks at a durable topic after all have died: it says how many messages were sent.
fn recovering(path: &Path) -> Witness {
    recovering_from(path, 0)
}

/// The same, if so many were received before.
fn recovering_from(path: &Path, received: u64) -> Witness {
    let topic = durable(path).topic("t").unwrap();
    drop(topic.subscription("s").unwrap());
    drop(topic);
    let path = path.to_owned();
    Box::new(move |ask| {
        if ask != Ask::Check {
            return 0;
        }
        let bus = durable(&path);
        assert_eq!(bus.cuts(), []);
        let topic = bus.topic("t").unwrap();
        let mut subscription = topic.subscription("s").unwrap();
        let numbers = receive_held(&mut subscription);
        let first = numbers.first().copied().unwrap_or(received);
        let sent = first + numbers.len() as u64;
        assert!(first <= received, "{first} comes after {received}");
        assert_eq!(numbers, Vec::from_iter(first..sent));
        let mut publisher = topic.publisher().unwrap();
        for n in 0..MANY {
            send(&mut publisher, 99, n..n + 1);
            receive_one(&mut subscription, 99, n);
        }
        sent
    })
}

fn logging(path: &Path, sent: u64) -> Publisher {
    let mut publisher = durable(path).topic("t").unwrap().publisher().unwrap();
    send(&mut publisher, 1, 0..sent);
    publisher
}

/// How many of these messages fill a durable lane's first file, so that the next one goes to another.
const FILE_FULL: u64 = 14;
/// The same of two files.
const TWO_FULL: u64 = 20;

// ---------------------------------------------------------------------------------------------------------- the table

pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "create a bus",
        witness: |path| {
            let path = path.to_owned();
            Box::new(move |ask| {
                if ask == Ask::Check {
                    let topic = topic(&path);
                    go_on(&topic, &mut topic.subscriber().unwrap());
                }
                0
            })
        },
        victim: |path| {
            let path = path.to_owned();
            keep(move || bus(&path))
        },
        ..OPERATION
    },
    Operation {
        name: "create a bus for all to look at",
        witness: |path| {
            let path = path.to_owned();
            Box::new(move |ask| {
                if ask == Ask::Check {
                    let bus = bus_for_all(&path);
                    let topic = bus.topic("t").unwrap();
                    go_on(&topic, &mut topic.subscriber().unwrap());
                    for dir in ["", "topics", "topics/t"] {
                        let rights = std::fs::metadata(path.join(dir)).unwrap().permissions();
                        assert_eq!(rights.mode() & 0o777, 0o755, "{dir}");
                    }
                }
                0
            })
        },
        victim: |path| {
            let path = path.to_owned();
            keep(move || bus_for_all(&path).topic("t").unwrap())
        },
        repair: |path| drop(bus_for_all(path)),
        ..OPERATION
    },
    Operation {
        name: "create a topic",
        witness: |path| {
            let bus = bus(path);
            Box::new(move |ask| {
                if ask == Ask::Check {
                    let topic = bus.topic("t").unwrap();
                    go_on(&topic, &mut topic.subscriber().unwrap());
                }
                0
            })
        },
        victim: |path| {
            let bus = bus(path);
            keep(move || bus.topic("t").unwrap())
        },
        ..OPERATION
    },
    Operation {
        name: "create a queue",
        witness: |path| {
            let bus = bus(path);
            Box::new(move |ask| {
                if ask == Ask::Check {
                    let queue = bus.queue("q").unwrap();
                    queue
                        .producer()
                        .unwrap()
                        .push(&1_u64.to_le_bytes())
                        .unwrap();
                    assert_eq!(work_off(&mut queue.consumer().unwrap()), [1]);
                }
                0
            })
        },
        victim: |path| {
            let bus = bus(path);
            keep(move || bus.queue("q").unwrap())
        },
        ..QUEUE
    },
    Operation {
        name: "join as a publisher",
        witness: |path| {
            let topic = topic(path);
            let mut subscriber = topic.subscriber().unwrap();
            Box::new(move |ask| {
                if ask == Ask::Check {
                    go_on(&topic, &mut subscriber);
                }
                0
            })
        },
        victim: |path| {
            let topic = topic(path);
            keep(move || topic.publisher().unwrap())
        },
        ..OPERATION
    },
    Operation {
        name: "join as a subscriber",
        witness: published,
        victim: |path| {
            let topic = topic(path);
            keep(move || topic.subscriber().unwrap())
        },
        ..OPERATION
    },
    Operation {
        name: "join as a consumer",
        witness: pushed,
        victim: |path| {
            let queue = queue(path);
            keep(move || queue.consumer().unwrap())
        },
        ..QUEUE
    },
    Operation {
        name: "join as a new group",
        witness: pushed,
        victim: |path| {
            let queue = queue(path);
            keep(move || queue.consumer_builder().group("new").open().unwrap())
        },
        leaves: &[
            "q/topic",
            "q/group.default",
            "q/group.new",
            "q/claims.#.#",
            "q/lane.#",
        ],
        ..QUEUE
    },
    Operation {
        name: "send, the first message",
        every_step: true,
        witness: subscribed,
        victim: |path| {
            let (mut publisher, message) = (publishing(path, 0), message(1, 0));
            Box::new(move || publisher.send(&message).unwrap())
        },
        repair: adopt,
        ..OPERATION
    },
    Operation {
        name: "send",
        every_step: true,
        witness: subscribed,
        victim: |path| {
            let (mut publisher, message) = (publishing(path, 3), message(1, 3));
            Box::new(move || publisher.send(&message).unwrap())
        },
        repair: adopt,
        ..OPERATION
    },
    Operation {
        name: "send, round the end of the ring",
        every_step: true,
        witness: |path| {
            let topic = topic(path);
            let mut subscriber = topic.subscriber().unwrap();
            let mut seen = 0;
            Box::new(move |ask| {
                match ask {
                    // Frees the ring, of which the message needs the end.
                    Ask::Here => (0..8).for_each(|n| receive_one(&mut subscriber, 1, n)),
                    Ask::Nudge => {}
                    Ask::Check => {
                        seen = receive(&mut subscriber, 1, 8);
                        go_on(&topic, &mut subscriber);
                    }
                }
                seen
            })
        },
        victim: |path| {
            let (mut publisher, message) = (publishing(path, 8), message(1, 8));
            Box::new(move || {
                let mut loan = publisher.loan(1400).unwrap();
                loan[..message.len()].copy_from_slice(&message);
                loan.commit_len(message.len());
            })
        },
        repair: adopt,
        ..OPERATION
    },
    Operation {
        name: "send a batch",
        every_step: true,
        witness: subscribed,
        victim: |path| {
            let mut publisher = publishing(path, 3);
            let batch: Vec<_> = (3..6).map(|n| message(1, n)).collect();
            Box::new(move || assert_eq!(publisher.send_batch(&batch).unwrap(), 3))
        },
        repair: adopt,
        ..OPERATION
    },
    Operation {
        name: "send on a lossy topic, overwriting",
        every_step: true,
        witness: |path| {
            let topic = bus(path).topic_builder("t").lossy(true).open().unwrap();
            let mut subscriber = topic.subscriber().unwrap();
            Box::new(move |ask| {
                if ask != Ask::Check {
                    return 0;
                }
                let mut next = 0;
                loop {
                    match subscriber.recv_timeout(PATIENCE) {
                        Ok(frame) => {
                            assert_eq!(check(&frame.expect("a message, or the end")), (1, next));
                            next += 1;
                        }
                        Err(e) => match e.lost() {
                            Some(Lost { messages, .. }) => next += messages,
                            None if e.kind() == ErrorKind::Ended => break,
                            None => panic!("{e}"),
                        },
                    }
                }
                go_on(&topic, &mut subscriber);
                next
            })
        },
        victim: |path| {
            let mut publisher = publishing(path, 40);
            let messages: Vec<_> = (40..43).map(|n| message(1, n)).collect();
            Box::new(move || {
                messages
                    .iter()
                    .for_each(|message| publisher.send(message).unwrap())
            })
        },
        repair: adopt,
        ..OPERATION
    },
    Operation {
        name: "loan and commit",
        every_step: true,
        witness: subscribed,
        victim: |path| {
            let (mut publisher, message) = (publishing(path, 3), message(1, 3));
            Box::new(move || {
                let mut loan = publisher.loan(message.len() + 200).unwrap();
                loan[..message.len()].copy_from_slice(&message);
                loan.commit_len(message.len());
            })
        },
        repair: adopt,
        ..OPERATION
    },
    Operation {
        name: "receive and release",
        every_step: true,
        witness: published,
        victim: |path| {
            let mut subscriber = topic(path).subscriber_from(Start::Oldest).unwrap();
            Box::new(move || {
                (0..3).for_each(|n| receive_one(&mut subscriber, 1, n));
                // Tells how far it has come.
                assert!(subscriber.try_recv().unwrap().is_none());
            })
        },
        ..OPERATION
    },
    Operation {
        name: "release, while the writer waits for room",
        witness: |path| {
            let bus = bus(path);
            let topic = bus.topic("t").unwrap();
            let mut publisher = Some(topic.publisher().unwrap());
            let mut waiting = None;
            Box::new(move |ask| {
                match ask {
                    Ask::Here => {
                        let mut publisher = publisher.take().unwrap();
                        let mut n = 0;
                        while publisher.try_send(&message(1, n)).is_ok() {
                            n += 1;
                        }
                        waiting = Some(thread::spawn(move || send(&mut publisher, 1, n..n + MANY)));
                        while bus.inspect("t").unwrap().waiting() == 0 {
                            thread::yield_now();
                        }
                    }
                    Ask::Nudge => {}
                    Ask::Check => {
                        waiting.take().unwrap().join().unwrap();
                        go_on(&topic, &mut topic.subscriber().unwrap());
                    }
                }
                0
            })
        },
        victim: |path| {
            let mut subscriber = topic(path).subscriber().unwrap();
            Box::new(move || (0..4).for_each(|n| receive_one(&mut subscriber, 1, n)))
        },
        ..OPERATION
    },
    Operation {
        name: "park, woken by a message",
        every_step: true,
        witness: published,
        victim: |path| {
            let mut subscriber = topic(path).subscriber().unwrap();
            Box::new(move || receive_one(&mut subscriber, 1, 3))
        },
        ..OPERATION
    },
    Operation {
        name: "send, and wake the reader",
        every_step: true,
        witness: |path| {
            let bus = bus(path);
            let topic = bus.topic("t").unwrap();
            let mut subscriber = Some(topic.subscriber().unwrap());
            let mut sleeping = None;
            Box::new(move |ask| match ask {
                Ask::Here => {
                    let mut subscriber = subscriber.take().unwrap();
                    (0..3).for_each(|n| receive_one(&mut subscriber, 1, n));
                    sleeping = Some(thread::spawn(move || {
                        let sent = receive(&mut subscriber, 1, 3);
                        (sent, subscriber)
                    }));
                    while bus.inspect("t").unwrap().sleepers() == 0 {
                        thread::yield_now();
                    }
                    0
                }
                Ask::Nudge => 0,
                Ask::Check => {
                    let (sent, mut subscriber) = sleeping.take().unwrap().join().unwrap();
                    go_on(&topic, &mut subscriber);
                    sent
                }
            })
        },
        victim: |path| {
            let (mut publisher, message) = (publishing(path, 3), message(1, 3));
            Box::new(move || publisher.send(&message).unwrap())
        },
        repair: adopt,
        ..OPERATION
    },
    Operation {
        name: "wait for room",
        witness: |path| {
            let topic = topic(path);
            let mut subscriber = topic.subscriber().unwrap();
            let mut next = 0;
            Box::new(move |ask| {
                match ask {
                    Ask::Here => {}
                    Ask::Nudge => {
                        let frame = subscriber.try_recv().unwrap();
                        if let Some(frame) = frame {
                            assert_eq!(check(&frame), (1, next));
                            next += 1;
                        }
                    }
                    Ask::Check => {
                        next = receive(&mut subscriber, 1, next);
                        go_on(&topic, &mut subscriber);
                    }
                }
                next
            })
        },
        victim: |path| {
            let mut publisher = publishing(path, 0);
            let mut n = 0;
            while publisher.try_send(&message(1, n)).is_ok() {
                n += 1;
            }
            Box::new(move || publisher.send(&message(1, n)).unwrap())
        },
        repair: adopt,
        ..OPERATION
    },
    Operation {
        name: "push",
        witness: |path| {
            let queue = queue(path);
            let mut consumer = queue.consumer().unwrap();
            Box::new(move |ask| {
                if ask != Ask::Check {
                    return 0;
                }
                let done = work_off(&mut consumer);
                assert!(done == [0] || done == [0, 1], "{done:?}");
                queue
                    .producer()
                    .unwrap()
                    .push(&7_u64.to_le_bytes())
                    .unwrap();
                assert_eq!(work_off(&mut consumer), [7]);
                done.len() as u64
            })
        },
        victim: |path| {
            let mut producer = queue(path).producer().unwrap();
            producer.push(&0_u64.to_le_bytes()).unwrap();
            Box::new(move || producer.push(&1_u64.to_le_bytes()).unwrap())
        },
        ..QUEUE
    },
    Operation {
        name: "claim",
        witness: pushed,
        victim: |path| {
            let mut consumer = queue(path).consumer().unwrap();
            keep(move || consumer.recv().unwrap())
        },
        ..QUEUE
    },
    Operation {
        name: "ack",
        witness: pushed,
        victim: |path| {
            let mut consumer = queue(path).consumer().unwrap();
            let mut held = Some(consumer.recv().unwrap());
            Box::new(move || {
                let _ = &consumer;
                held.take().unwrap().ack().unwrap();
            })
        },
        ..QUEUE
    },
    Operation {
        name: "redeliver: give back",
        witness: pushed,
        victim: |path| {
            let mut consumer = queue(path).consumer().unwrap();
            let held = consumer.recv().unwrap();
            let_go(held, consumer)
        },
        ..QUEUE
    },
    Operation {
        name: "redeliver: put off",
        witness: pushed,
        victim: |path| {
            let mut consumer = queue(path).consumer().unwrap();
            let mut held = Some(consumer.recv().unwrap());
            Box::new(move || {
                let _ = &consumer;
                held.take()
                    .unwrap()
                    .retry(Duration::from_millis(1))
                    .unwrap();
            })
        },
        leaves: &[
            "q/topic",
            "q/group.default",
            "q.default.retry/topic",
            "q.default.retry/group.default",
        ],
        ..QUEUE
    },
    Operation {
        name: "redeliver: reject",
        witness: |path| {
            let (mut witness, path) = (pushed(path), path.to_owned());
            Box::new(move |ask| {
                let rejected = witness(ask);
                if ask == Ask::Check {
                    // If it is done with, it is a dead letter. It may be both.
                    let dead = work_off_letters(&path);
                    assert!(
                        dead >= rejected && dead <= 1,
                        "{rejected} done with, {dead} letters"
                    );
                }
                rejected
            })
        },
        victim: |path| {
            let mut consumer = queue(path).consumer().unwrap();
            let mut held = Some(consumer.recv().unwrap());
            Box::new(move || {
                let _ = &consumer;
                held.take().unwrap().reject("why").unwrap();
            })
        },
        leaves: &[
            "q/topic",
            "q/group.default",
            "q.dead/topic",
            "q.dead/group.default",
        ],
        ..QUEUE
    },
    Operation {
        name: "call",
        witness: serving,
        victim: |path| {
            let mut client = service(path).client().unwrap();
            Box::new(move || assert_eq!(client.call(b"request").unwrap().unwrap()[..], *b"reply"))
        },
        ..SERVICE
    },
    Operation {
        name: "reply",
        witness: |path| asking(path, &CallOptions::new()),
        victim: replying,
        ..SERVICE
    },
    Operation {
        name: "reply, at most once",
        witness: |path| asking(path, &CallOptions::new().at_most_once()),
        victim: replying,
        ..SERVICE
    },
    Operation {
        name: "cancel, a request that nobody has",
        witness: serving,
        victim: |path| {
            let client: Client = service(path).client().unwrap();
            let pending = client.start(b"request").unwrap();
            let_go(pending, client)
        },
        ..SERVICE
    },
    Operation {
        name: "cancel, a request that a server has",
        witness: |path| {
            let service = service(path);
            let mut server = service.server().unwrap();
            let mut held: Option<Request> = None;
            Box::new(move |ask| {
                match ask {
                    Ask::Here => held = server.try_recv().unwrap(),
                    Ask::Nudge => {}
                    Ask::Check => {
                        // It is not wanted any more, by one or the other; or that is not known yet.
                        let _ = held.take().unwrap().reply(b"reply");
                        assert_eq!(serve(&mut server, b"reply"), 0);
                        call_on(&service, &mut server);
                    }
                }
                0
            })
        },
        victim: |path| {
            let client: Client = service(path).client().unwrap();
            let pending = client.start(b"request").unwrap();
            let_go(pending, client)
        },
        ..SERVICE
    },
    Operation {
        name: "state set, a key that is there",
        every_step: true,
        witness: |path| {
            let state = state(path);
            Box::new(move |ask| {
                if ask != Ask::Check {
                    return 0;
                }
                let mut reader = state.reader().unwrap();
                let seen = number(reader.get(b"key").unwrap().expect("a value"));
                state
                    .writer()
                    .unwrap()
                    .set(b"key", &7_u64.to_le_bytes())
                    .unwrap();
                assert_eq!(number(reader.get(b"key").unwrap().expect("a value")), 7);
                seen
            })
        },
        victim: |path| {
            let mut writer = state(path).writer().unwrap();
            writer.set(b"key", &0_u64.to_le_bytes()).unwrap();
            Box::new(move || writer.set(b"key", &1_u64.to_le_bytes()).unwrap())
        },
        ..STATE
    },
    Operation {
        name: "state set, a new key",
        every_step: true,
        witness: |path| {
            let state = state(path);
            Box::new(move |ask| {
                if ask != Ask::Check {
                    return 0;
                }
                let mut reader = state.reader().unwrap();
                let seen = reader.get(b"key").unwrap().map_or(0, number);
                let mut writer = state.writer().unwrap();
                for n in 0..7_u64 {
                    writer.set(&n.to_le_bytes(), &n.to_le_bytes()).unwrap();
                }
                writer.set(b"key", &7_u64.to_le_bytes()).unwrap();
                assert_eq!(number(reader.get(b"key").unwrap().expect("a value")), 7);
                assert_eq!(reader.entries().unwrap().count(), 8);
                seen
            })
        },
        victim: |path| {
            let mut writer = state(path).writer().unwrap();
            Box::new(move || writer.set(b"key", &1_u64.to_le_bytes()).unwrap())
        },
        ..STATE
    },
    Operation {
        name: "create a durable bus, and a topic",
        witness: |path| {
            let path = path.to_owned();
            Box::new(move |ask| {
                if ask == Ask::Check {
                    return recovering(&path)(Ask::Check);
                }
                0
            })
        },
        victim: |path| {
            let path = path.to_owned();
            keep(move || durable(&path).topic("t").unwrap())
        },
        ..DURABLE
    },
    Operation {
        name: "join as a durable publisher",
        witness: recovering,
        victim: |path| {
            let topic = durable(path).topic("t").unwrap();
            keep(move || topic.publisher().unwrap())
        },
        ..DURABLE
    },
    Operation {
        name: "join as a named subscription",
        witness: recovering,
        victim: |path| {
            let topic = durable(path).topic("t").unwrap();
            keep(move || topic.subscription("new").unwrap())
        },
        leaves: &[
            "t/topic",
            "t/lane.#",
            "t/data.#.#",
            "t/subscription.s",
            "t/subscription.new",
        ],
        ..DURABLE
    },
    Operation {
        name: "durable send",
        still: Some("buslane-files"),
        witness: recovering,
        victim: |path| {
            let mut publisher = logging(path, 3);
            Box::new(move || publisher.send(&message(1, 3)).unwrap())
        },
        ..DURABLE
    },
    Operation {
        name: "roll, who sends",
        still: Some("buslane-files"),
        witness: recovering,
        victim: |path| {
            let mut publisher = logging(path, FILE_FULL);
            Box::new(move || publisher.send(&message(1, FILE_FULL)).unwrap())
        },
        ..DURABLE
    },
    Operation {
        name: "roll, who makes the file",
        thread: Some("buslane-files"),
        witness: recovering,
        victim: |path| {
            let mut publisher = logging(path, FILE_FULL);
            Box::new(move || send(&mut publisher, 1, FILE_FULL..FILE_FULL + 2))
        },
        ..DURABLE
    },
    Operation {
        name: "roll, and remove a file that all have passed",
        thread: Some("buslane-files"),
        witness: |path| recovering_from(path, TWO_FULL),
        victim: |path| {
            let mut subscription = durable(path).topic("t").unwrap().subscription("s").unwrap();
            let mut publisher = logging(path, TWO_FULL);
            (0..TWO_FULL).for_each(|n| receive_one(&mut subscription, 1, n));
            assert!(subscription.try_recv().unwrap().is_none());
            Box::new(move || {
                let _ = &subscription;
                send(&mut publisher, 1, TWO_FULL..TWO_FULL + 2);
            })
        },
        ..DURABLE
    },
    Operation {
        name: "sync",
        still: Some("buslane-files"),
        witness: recovering,
        victim: |path| {
            let publisher = logging(path, 12);
            Box::new(move || publisher.sync().unwrap())
        },
        ..DURABLE
    },
    Operation {
        name: "named subscription, receive and ack",
        witness: |path| {
            let bus = durable(path);
            let topic = bus.topic("t").unwrap();
            drop(topic.subscription("s").unwrap());
            send(&mut topic.publisher().unwrap(), 1, 0..4);
            let path = path.to_owned();
            Box::new(move |ask| {
                if ask != Ask::Check {
                    return 0;
                }
                let topic = durable(&path).topic("t").unwrap();
                let mut subscription = topic.subscription("s").unwrap();
                let numbers = receive_held(&mut subscription);
                let acked = numbers.first().copied().unwrap_or(4);
                assert!([0, 2].contains(&acked), "{numbers:?}");
                assert_eq!(numbers, Vec::from_iter(acked..4));
                acked
            })
        },
        victim: |path| {
            let topic = durable(path).topic("t").unwrap();
            let mut subscription = topic.subscription_builder("s").by_ack(true).open().unwrap();
            Box::new(move || {
                (0..2).for_each(|n| receive_one(&mut subscription, 1, n));
                subscription.ack().unwrap();
            })
        },
        ..DURABLE
    },
    Operation {
        name: "recover, after the machine went down",
        witness: |path| {
            let mut witness = recovering(path);
            doomed(|| {
                let mut publisher = logging(path, 12);
                publisher.sync().unwrap();
                send(&mut publisher, 1, 12..14);
                publisher.loan(64).unwrap().fill(0xff);
            });
            // As if it had been another time that the machine ran.
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(path.join("bus"))
                .unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[1; 8], 4224).unwrap();
            Box::new(move |ask| {
                let seen = witness(ask);
                assert!(ask != Ask::Check || seen == 14, "{seen} of 14");
                seen
            })
        },
        victim: |path| {
            let path = path.to_owned();
            keep(move || durable(&path))
        },
        ..DURABLE
    },
    Operation {
        name: "adopt a lane",
        witness: |path| {
            let bus = bus(path);
            let topic = bus.topic("t").unwrap();
            let mut subscriber = topic.subscriber().unwrap();
            died_in_a_loan(path);
            wait_for_reclaim(&bus);
            Box::new(move |ask| {
                if ask != Ask::Check {
                    return 0;
                }
                let sent = receive(&mut subscriber, 1, 0);
                go_on(&topic, &mut subscriber);
                sent
            })
        },
        victim: |path| {
            let (topic, mut joined) = (topic(path), None);
            Box::new(move || {
                let publisher = joined.insert(topic.publisher().unwrap());
                publisher.send(&message(1, 3)).unwrap();
            })
        },
        repair: adopt,
        ..OPERATION
    },
    Operation {
        name: "leave, a publisher",
        witness: subscribed,
        victim: |path| {
            let publisher = publishing(path, 3);
            let_go(publisher, ())
        },
        repair: adopt,
        ..OPERATION
    },
    Operation {
        name: "leave, a subscriber",
        witness: published,
        victim: |path| {
            let mut subscriber = topic(path).subscriber_from(Start::Oldest).unwrap();
            receive_one(&mut subscriber, 1, 0);
            let_go(subscriber, ())
        },
        ..OPERATION
    },
    Operation {
        name: "leave, a consumer that holds a message",
        witness: pushed,
        victim: |path| {
            let mut consumer = queue(path).consumer().unwrap();
            let held = consumer.recv().unwrap();
            let both = (held, consumer);
            let_go(both, ())
        },
        ..QUEUE
    },
    Operation {
        name: "leave, a client",
        witness: serving,
        victim: |path| {
            let client: Client = service(path).client().unwrap();
            let pending = client.start(b"request").unwrap();
            let both = (pending, client);
            let_go(both, ())
        },
        ..SERVICE
    },
    Operation {
        name: "reclaim, by the next opener",
        witness: |path| {
            drop(topic(path));
            died_with_everything(path);
            everything_goes_on(path)
        },
        victim: |path| {
            let path = path.to_owned();
            keep(move || bus(&path))
        },
        leaves: EVERYTHING,
        ..OPERATION
    },
    Operation {
        name: "reclaim, by the doorbell",
        thread: Some("buslane-doorbell"),
        witness: |path| {
            let (mut witness, path) = (everything_goes_on(path), path.to_owned());
            Box::new(move |ask| {
                if ask == Ask::Here {
                    died_with_everything(&path);
                }
                witness(ask)
            })
        },
        victim: |path| {
            let bus = bus(path);
            let listening = bus.topic("other").unwrap().subscriber().unwrap();
            // The witness has let somebody die.
            Box::new(move || {
                let _ = (&bus, &listening);
            })
        },
        leaves: EVERYTHING,
        ..OPERATION
    },
    Operation {
        name: "remove a topic",
        witness: |path| {
            drop(topic(path));
            let path = path.to_owned();
            Box::new(move |ask| {
                if ask != Ask::Check {
                    return 0;
                }
                let bus = bus(&path);
                let removed = u64::from(bus.topics().unwrap().is_empty());
                let topic = bus.topic("t").unwrap();
                go_on(&topic, &mut topic.subscriber().unwrap());
                removed
            })
        },
        victim: |path| {
            let bus = bus(path);
            Box::new(move || bus.remove_topic("t", false).unwrap())
        },
        ..OPERATION
    },
    Operation {
        name: "remove a topic from under its users",
        witness: |path| {
            let topic = topic(path);
            let mut publisher = topic.publisher().unwrap();
            let mut subscriber = topic.subscriber().unwrap();
            let path = path.to_owned();
            Box::new(move |ask| {
                if ask != Ask::Check {
                    return 0;
                }
                let bus = bus(&path);
                let removed = bus.topics().unwrap().is_empty();
                if removed {
                    // They never meet who comes later, and are told.
                    let error = subscriber.recv_timeout(PATIENCE).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                    let error = publisher.send(&message(1, 0)).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                } else {
                    publish_on(&mut publisher, &mut subscriber, 0);
                }
                drop(bus.topic("t").unwrap());
                u64::from(removed)
            })
        },
        victim: |path| {
            let bus = bus(path);
            Box::new(move || bus.remove_topic("t", true).unwrap())
        },
        ..OPERATION
    },
];

const EVERYTHING: &[&str] = &[
    "t/topic",
    "other/topic",
    "q/topic",
    "q/group.default",
    "s/topic",
    "s/group.default",
    "v/topic",
    "v/table.#",
];

/// Waits until the doorbell has put away the dead, if nobody else lives. (Who is just put away looks alive: its file is locked.)
fn wait_for_reclaim(bus: &Bus) {
    while bus.members().unwrap().len() > 1 {
        thread::sleep(Duration::from_millis(1));
    }
}

/// A publisher has sent three messages, and died over a loan.
fn died_in_a_loan(path: &Path) {
    doomed(|| {
        let mut publisher = publishing(path, 3);
        publisher.loan(700).unwrap().fill(0xff);
        std::mem::forget(publisher);
    });
}

/// A process was publisher, subscriber, producer, consumer, client, server, and writer of a state, and died.
fn died_with_everything(path: &Path) {
    doomed(|| {
        let mut publisher = publishing(path, 3);
        let subscriber = topic(path).subscriber_from(Start::Oldest).unwrap();
        let mut producer = queue(path).producer().unwrap();
        producer.push(&1_u64.to_le_bytes()).unwrap();
        let mut consumer = queue(path).consumer().unwrap();
        let delivery = consumer.recv().unwrap();
        let mut server = service(path).server().unwrap();
        let client: Client = service(path).client().unwrap();
        let pending = client.start(b"request").unwrap();
        let request = server.recv().unwrap();
        let mut writer = state(path).writer().unwrap();
        writer.set(b"key", &1_u64.to_le_bytes()).unwrap();
        let mut loan = publisher.loan(700).unwrap();
        loan.fill(0xff);
        std::mem::forget((
            loan, subscriber, producer, consumer, delivery, server, client, pending, request,
            writer,
        ));
    });
}

/// A witness that comes after a process died that did all of that.
fn everything_goes_on(path: &Path) -> Witness {
    let path = path.to_owned();
    Box::new(move |ask| {
        if ask != Ask::Check {
            return 0;
        }
        let topic = topic(&path);
        go_on(&topic, &mut topic.subscriber().unwrap());
        assert!([vec![], vec![1]].contains(&work_off(&mut queue(&path).consumer().unwrap())));
        let service = service(&path);
        let mut server = service.server().unwrap();
        serve(&mut server, b"reply");
        call_on(&service, &mut server);
        state(&path)
            .writer()
            .unwrap()
            .set(b"key", &7_u64.to_le_bytes())
            .unwrap();
        assert_eq!(
            number(state(&path).reader().unwrap().get(b"key").unwrap().unwrap()),
            7
        );
        0
    })
}

/// The dead letters of the queue.
fn work_off_letters(path: &Path) -> u64 {
    let letters = bus(path).queue("q.dead").unwrap();
    let mut consumer = letters.consumer().unwrap();
    let mut count = 0;
    while !consumer.is_empty().unwrap() {
        consumer
            .recv_timeout(PATIENCE)
            .unwrap()
            .expect("a letter")
            .ack()
            .unwrap();
        count += 1;
    }
    count
}
