//! Publish and subscribe: lossless, lossy, and with named publishers.

use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use buslane::{Envelope, Error, ErrorKind, Kind, Lost, Publisher, Start, Subscriber, Topic};

use super::common::{check, fill, length};
use super::ledger::PROCESSES;
use super::process::Process;
use super::round::{Pattern, Role};

pub const LOSSLESS: Pattern = Pattern {
    name: "pubsub",
    is_durable: false,
    prepare: |process| drop(topic(process)),
    roles: &[
        Role {
            name: "publisher",
            crowd: (1, 3),
            sends: true,
            act: publish,
        },
        Role {
            name: "subscriber",
            crowd: (1, 3),
            sends: false,
            act: subscribe,
        },
        Role {
            name: "lossy subscriber",
            crowd: (0, 1),
            sends: false,
            act: subscribe_lossy,
        },
    ],
    settle,
    stays: &["topic", "locks"],
};

pub const LOSSY: Pattern = Pattern {
    name: "lossy",
    is_durable: false,
    prepare: |process| {
        let bus = process.bus();
        drop(bus.topic_builder("t").lossy(true).open().unwrap());
    },
    roles: &[
        Role {
            name: "publisher",
            crowd: (1, 2),
            sends: true,
            act: publish,
        },
        Role {
            name: "lossy subscriber",
            crowd: (1, 3),
            sends: false,
            act: subscribe_lossy,
        },
    ],
    settle,
    stays: &["topic", "locks"],
};

pub const NAMED: Pattern = Pattern {
    name: "named",
    is_durable: false,
    prepare: |process| drop(topic(process)),
    roles: &[
        Role {
            name: "publisher a",
            crowd: (1, 2),
            sends: true,
            act: |process| publish_as(process, "a"),
        },
        Role {
            name: "publisher b",
            crowd: (0, 1),
            sends: true,
            act: |process| publish_as(process, "b"),
        },
        Role {
            name: "subscriber",
            crowd: (1, 3),
            sends: false,
            act: subscribe,
        },
    ],
    settle: settle_named,
    stays: &["topic", "locks", "lane."],
};

fn topic(process: &mut Process) -> Topic {
    process.bus().topic("t").unwrap()
}

// --------------------------------------------------------------------------------------------------------- publishing

fn publish(process: &mut Process) {
    let publisher = topic(process).publisher().unwrap();
    publish_with(process, publisher);
}

fn publish_as(process: &mut Process, name: &str) {
    let publisher = topic(process).named_publisher(name).unwrap();
    publish_with(process, publisher);
}

/// Sends numbered messages, in all ways, until it is to leave.
pub fn publish_with(process: &mut Process, mut publisher: Publisher) {
    let way = process.random.u32(..6);
    if way == ENVELOPED {
        process.card().own.store(ENVELOPE, SeqCst);
    }
    let mut bytes = vec![0; 1000];
    let mut n = 0;
    while !process.is_over() {
        for _ in 0..process.random.u64(1..64) {
            n += send(process, &mut publisher, way, &mut bytes, n);
        }
        if process.setup.is_durable && process.random.u32(..4) == 0 {
            publisher.sync().unwrap();
        }
        process.dawdle(16);
    }
}

/// The way of sending that puts each message in an envelope, and its bytes, which count as lost, too.
const ENVELOPED: u32 = 3;
const ENVELOPE: u64 = 56;

/// Sends number `n`, or a few from it on; how many.
fn send(
    process: &mut Process,
    publisher: &mut Publisher,
    way: u32,
    bytes: &mut [u8],
    n: u64,
) -> u64 {
    let message = &mut bytes[..length(n)];
    fill(message, process.number, n);
    if way == 1 && process.random.u32(..8) == 0 {
        // One that is given back, with what is no message in it.
        publisher.loan(message.len()).unwrap().fill(0xff);
    }
    let count = if way == 2 { 1 + n % 7 } else { 1 };
    process.begins(count);
    match way {
        1 => {
            let mut loan = publisher.loan(message.len()).unwrap();
            loan.copy_from_slice(message);
            loan.commit();
        }
        2 => {
            let batch = (n..n + count).map(|n| {
                let mut message = vec![0; length(n)];
                fill(&mut message, process.number, n);
                message
            });
            publisher.send_batch(batch).unwrap();
        }
        ENVELOPED => publisher
            .send_with(&Envelope::new(Kind::Event).correlated(n), message)
            .unwrap(),
        4 => block_on(publisher.send_async(message)).unwrap(),
        _ => publisher.send(message).unwrap(),
    }
    process.has_sent(count);
    count
}

/// Runs a future in this thread, which sleeps meanwhile.
pub fn block_on<F: Future>(future: F) -> F::Output {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

// -------------------------------------------------------------------------------------------------------- subscribing

fn subscribe(process: &mut Process) {
    let topic = topic(process);
    let subscriber = match process.random.u32(..4) {
        0 => topic.subscriber_from(Start::Oldest),
        1 => topic.subscriber_from(Start::Last(10)),
        _ => topic.subscriber(),
    };
    let history = History::begin(process, false);
    follow(process, subscriber.unwrap(), history);
}

fn subscribe_lossy(process: &mut Process) {
    let topic = topic(process);
    let start = process
        .random
        .choice([Start::Now, Start::Oldest, Start::Last(10)])
        .unwrap();
    let subscriber = match topic.is_lossy() {
        true => topic.subscriber_from(start),
        false => topic.lossy_subscriber(start),
    };
    let history = History::begin(process, true);
    follow(process, subscriber.unwrap(), history);
}

/// Receives, in one way, until it is to leave, or has everything.
pub fn follow(process: &mut Process, mut subscriber: Subscriber, mut history: History) {
    // A batch does not say where it lies.
    let ways = if history.is_lossy { 4 } else { 5 };
    let way = process.random.u32(..ways);
    while !process.is_to_leave() {
        if process.is_to_drain() {
            return history.finish(process, &mut subscriber);
        }
        let sleepy = Duration::from_micros(process.random.u64(..5000));
        // The last publisher may have left before it fell asleep.
        let way = if process.is_over() { 1 } else { way };
        let received = match way {
            0 => subscriber.recv().map(Some),
            1 => subscriber.recv_timeout(sleepy),
            2 => subscriber.try_recv(),
            3 => block_on(subscriber.recv_async()).map(Some),
            _ => {
                match subscriber.recv_batch(process.random.usize(1..100)) {
                    Ok(batch) => {
                        for message in batch.iter() {
                            history.receive(process, None, message);
                        }
                    }
                    Err(e) => history.hear(process, &e),
                }
                continue;
            }
        };
        match received {
            Ok(Some(frame)) => {
                history.receive(process, Some((frame.lane(), frame.sequence())), &frame);
                if process.random.u32(..1024) == 0 {
                    // In hand, while others go on, and still whole.
                    std::thread::sleep(sleepy);
                    check(&frame);
                }
            }
            Ok(None) if way == 2 => std::thread::yield_now(),
            Ok(None) => {}
            Err(e) => history.hear(process, &e),
        }
    }
}

/// What a subscriber has received, and what it must.
pub struct History {
    is_lossy: bool,
    /// How many sends of each process had begun when it joined: what began later is for it.
    joined: Vec<u64>,
    /// The next number of each publisher that was met.
    next: Vec<Option<u64>>,
    lanes: HashMap<u64, Lane>,
    /// Messages that were told as lost, and are of nobody whose messages on both sides were met.
    unaccounted: u64,
}

#[derive(Default)]
struct Lane {
    /// The number in the lane that comes next.
    sequence: Option<u32>,
    /// Told as lost since then.
    lost: Lost,
}

impl History {
    /// Just after it has joined.
    pub fn begin(process: &Process, is_lossy: bool) -> Self {
        process.beat();
        Self {
            is_lossy,
            joined: process.ledger.begun(),
            next: vec![None; PROCESSES],
            lanes: HashMap::new(),
            unaccounted: 0,
        }
    }

    /// One message: it is whole, and the next one of its publisher, but for those that were told as lost just before. Of a publisher that
    /// is met for the first time, it must not be later than what was sent after joining.
    pub fn receive(&mut self, process: &Process, at: Option<(u64, u32)>, message: &[u8]) {
        let (publisher, n) = check(message);
        let met = self.next[publisher as usize].replace(n + 1);
        let lost = at.map(|at| self.pass(at)).unwrap_or_default();
        match met {
            Some(next) => {
                assert_eq!(
                    n,
                    next + lost.messages,
                    "{publisher}: {next} was to come, after {lost:?}"
                );
                let envelope = process.ledger.card(publisher).own.load(SeqCst);
                let bytes: u64 = (next..n).map(|n| length(n) as u64 + envelope).sum();
                assert_eq!(lost.bytes, bytes, "bytes of {next} to {n} of {publisher}");
            }
            None => {
                let first = self.joined[publisher as usize];
                assert!(
                    n <= first + lost.messages,
                    "{publisher}: {n} comes first, and should be {first}, after {lost:?}"
                );
                self.unaccounted += lost.messages - n.saturating_sub(first).min(lost.messages);
            }
        }
        process.has_checked();
    }

    /// What was lost in the lane just before this message, which follows what came before it there.
    fn pass(&mut self, (lane, sequence): (u64, u32)) -> Lost {
        let lane = self.lanes.entry(lane).or_default();
        let lost = std::mem::take(&mut lane.lost);
        if let Some(next) = lane.sequence {
            assert_eq!(
                sequence,
                next.wrapping_add(lost.messages as u32),
                "after {lost:?}"
            );
        }
        lane.sequence = Some(sequence.wrapping_add(1));
        lost
    }

    /// What came in the place of a message.
    pub fn hear(&mut self, process: &Process, error: &Error) {
        process.beat();
        match error.kind() {
            ErrorKind::Ended => {}
            ErrorKind::Lost if self.is_lossy => {
                let lost = error.lost().unwrap();
                assert!(lost.messages > 0);
                let lane = self.lanes.entry(lost.lane).or_default();
                lane.lost.messages += lost.messages;
                lane.lost.bytes += lost.bytes;
            }
            _ => panic!("{error}"),
        }
    }

    /// All have left who sent: takes what is there, and all that was sent after joining has come, or was told as lost.
    pub fn finish(mut self, process: &Process, subscriber: &mut Subscriber) {
        loop {
            match subscriber.recv_timeout(Duration::from_millis(20)) {
                Ok(Some(frame)) => {
                    let at = (frame.lane(), frame.sequence());
                    self.receive(process, Some(at), &frame);
                }
                Ok(None) => break,
                Err(e) => self.hear(process, &e),
            }
        }
        let told = self.unaccounted
            + self
                .lanes
                .values()
                .map(|lane| lane.lost.messages)
                .sum::<u64>();
        let (mut least, mut most) = (0, 0);
        for (publisher, sent, begun) in process.ledger.senders() {
            let joined = self.joined[publisher as usize];
            let next = self.next[publisher as usize];
            let missed = sent.saturating_sub(next.unwrap_or(0).max(joined));
            assert!(
                self.is_lossy || missed == 0,
                "{next:?} was to come of {publisher}, which had sent {joined} before, and {sent} in all"
            );
            assert!(next.unwrap_or(0) <= begun);
            least += missed;
            most += begun - next.unwrap_or(0);
        }
        assert!(
            least <= told && told <= most,
            "{told} told as lost, of {least} to {most} that were missed"
        );
    }
}

// --------------------------------------------------------------------------------------------------------- in the end

/// Whoever comes last puts away what the dead have left.
pub fn settle(process: &mut Process) {
    process.bus().reclaim().unwrap();
}

/// The last message of each named publisher's lane is still there.
fn settle_named(process: &mut Process) {
    settle(process);
    let report = process.bus().inspect("t").unwrap();
    let mut lasts: HashMap<u64, u64> = HashMap::new();
    report.look_back(1, |seen| {
        let (publisher, n) = check(&seen.payload);
        lasts.insert(publisher, n);
    });
    for (publisher, sent, begun) in process.ledger.senders() {
        if let Some(n) = lasts.get(&publisher) {
            assert!(
                *n + 1 >= sent && *n < begun,
                "{n} is the last of {publisher}, which has sent {sent} to {begun}"
            );
        }
    }
    // Who was the last to send in its lane has left it there.
    let lanes = report.lanes.iter().filter(|lane| lane.messages > 0).count();
    assert_eq!(lasts.len(), lanes, "the last message of a lane is gone");
}
