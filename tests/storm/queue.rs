//! Work queues: each message is followed one by one, from its push to its acknowledgement.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use buslane::{
    Consumer, ConsumerBuilder, DeadLetter, Deliveries, Delivery, Envelope, Error, ErrorKind, Kind,
};

use super::common::{check, fill, length};
use super::ledger::MESSAGES;
use super::process::Process;
use super::pubsub::{block_on, settle};
use super::round::{Pattern, Role};

/// Far shorter than what a consumer now and then takes.
const LEASE: Duration = Duration::from_millis(20);
const ATTEMPTS: u8 = 5;

const PRODUCER: Role = Role {
    name: "producer",
    crowd: (1, 2),
    sends: true,
    act: produce,
};

pub const QUEUE: Pattern = Pattern {
    name: "queue",
    is_durable: false,
    prepare,
    roles: &[
        PRODUCER,
        Role {
            name: "consumer",
            crowd: (1, 3),
            sends: false,
            act: |process| consume(process, Manner::Plain),
        },
    ],
    settle: settle_queue,
    stays: &["topic", "locks", "group."],
};

pub const LEASED: Pattern = Pattern {
    name: "leased queue",
    roles: &[
        PRODUCER,
        Role {
            name: "consumer",
            crowd: (2, 3),
            sends: false,
            act: |process| consume(process, Manner::Leased),
        },
        Role {
            name: "undertaker",
            crowd: (1, 1),
            sends: false,
            act: bury,
        },
    ],
    ..QUEUE
};

pub const EXCLUSIVE: Pattern = Pattern {
    name: "exclusive queue",
    roles: &[
        PRODUCER,
        Role {
            name: "consumer",
            crowd: (2, 3),
            sends: false,
            act: |process| consume(process, Manner::Exclusive),
        },
    ],
    ..QUEUE
};

pub const DURABLE: Pattern = Pattern {
    name: "durable queue",
    is_durable: true,
    stays: &["topic", "locks", "group.", "claims.", "lane.", "data."],
    ..QUEUE
};

/// Made before the storm, so that the group is there.
fn prepare(process: &mut Process) {
    drop(process.bus().queue("t").unwrap());
}

// ------------------------------------------------------------------------------------------------- what a message's word says

/// What is known of one message, in one word of the ledger.
struct Known(u64);

impl Known {
    const ACKED: u64 = 1 << 63;
    /// It has become a dead letter.
    const BURIED: u64 = 1 << 62;

    fn of(word: &AtomicU64) -> Self {
        Self(word.load(SeqCst))
    }
    fn has(&self, flag: u64) -> bool {
        self.0 & flag != 0
    }
    /// Who has it; 0: nobody.
    fn holder(&self) -> u64 {
        self.0 & 0xfff
    }
    /// Who began to acknowledge it.
    fn acker(&self) -> u64 {
        self.0 >> 12 & 0xfff
    }
    /// How often it was delivered to somebody who noted that.
    fn deliveries(&self) -> u64 {
        self.0 >> 24 & 0xffff
    }
    /// How often it was given back or put off by somebody who lived.
    fn returns(&self) -> u64 {
        self.0 >> 40 & 0xffff
    }
    fn held_by(self, holder: u64) -> Self {
        Self(self.0 & !0xfff | holder)
    }
    fn acked_by(self, acker: u64) -> Self {
        Self(self.0 & !0xfff_000 | acker << 12)
    }
}

/// Changes a word; what it was.
fn change(word: &AtomicU64, to: impl Fn(Known) -> Known) -> Known {
    Known(
        word.fetch_update(SeqCst, SeqCst, |now| Some(to(Known(now)).0))
            .unwrap(),
    )
}

// --------------------------------------------------------------------------------------------------------- producing

fn produce(process: &mut Process) {
    let mut producer = process.bus().queue("t").unwrap().producer().unwrap();
    let way = process.random.u32(..4);
    let mut bytes = vec![0; 1000];
    for n in 0..MESSAGES as u64 {
        if process.is_over() {
            break;
        }
        let message = &mut bytes[..length(n)];
        fill(message, process.number, n);
        process.begins(1);
        match way {
            0 => producer.push_batch([&message]).map(drop),
            1 => producer.push_with(&Envelope::new(Kind::Command), message),
            2 => block_on(producer.push_async(message)),
            _ => producer.push(message),
        }
        .unwrap();
        process.has_sent(1);
        if process.setup.is_durable && process.random.u32(..64) == 0 {
            producer.sync().unwrap();
        }
        process.dawdle(128);
    }
}

// --------------------------------------------------------------------------------------------------------- consuming

/// Of each producer, the number of the message that this consumer was the first to get last.
type Firsts = HashMap<u64, u64>;

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Plain,
    /// With a lease, and an end to the attempts.
    Leased,
    Exclusive,
}

impl Manner {
    fn builder(self, process: &mut Process) -> ConsumerBuilder {
        let builder = process.bus().queue("t").unwrap().consumer_builder();
        match self {
            Self::Plain => builder,
            Self::Leased => builder.lease(LEASE).max_attempts(ATTEMPTS),
            Self::Exclusive => builder.exclusive(true),
        }
    }
}

fn consume(process: &mut Process, manner: Manner) {
    let Some(mut consumer) = join(process, manner) else {
        return;
    };
    process.beat();
    let mut held = Vec::new();
    let way = process.random.u32(..4);
    let mut firsts = HashMap::new();
    // Some put everything off a few times.
    let puts_off = process.random.u32(..4) == 0;
    while !process.is_to_leave() {
        if process.is_to_drain() {
            finish(process, manner, &mut consumer, held, firsts);
            return leave(process, manner);
        }
        let began = Instant::now();
        let patience = Duration::from_micros(process.random.u64(..5000));
        let received = match way {
            0 => consumer.try_recv(),
            // Given up, if it takes too long.
            1 => {
                let received =
                    async { tokio::time::timeout(patience, consumer.recv_async()).await };
                block_on(received).ok().transpose()
            }
            2 => consumer
                .try_recv_batch(process.random.usize(1..20))
                .map(|batch| {
                    for delivery in batch.into_iter().flat_map(Deliveries::into_each) {
                        process.begin_delivery(&delivery, manner, began, &mut firsts);
                        held.push(delivery);
                    }
                    yield_now();
                    None
                }),
            _ => consumer.recv_timeout(patience),
        };
        match received {
            Ok(Some(delivery)) => {
                process.begin_delivery(&delivery, manner, began, &mut firsts);
                held.push(delivery);
            }
            Ok(None) => process.beat(),
            Err(e) => manner.accepts(&e),
        }
        while held.len() > process.random.usize(..4) {
            let delivery = held.swap_remove(process.random.usize(..held.len()));
            process.end_delivery(delivery, manner, puts_off);
        }
        if manner == Manner::Leased && process.random.u32(..64) == 0 {
            sleep(2 * LEASE);
        }
    }
    for delivery in held {
        process.give_back(delivery);
    }
    leave(process, manner);
}

/// As soon as it may; `None`: it is over before.
fn join(process: &mut Process, manner: Manner) -> Option<Consumer> {
    loop {
        match manner.builder(process).open() {
            Ok(consumer) => {
                if manner == Manner::Exclusive {
                    let before = process.ledger.only.swap(process.number, SeqCst);
                    assert!(
                        before == 0 || process.ledger.is_doomed(before),
                        "{before} is there, too"
                    );
                }
                return Some(consumer);
            }
            Err(e) => assert!(
                manner == Manner::Exclusive && e.kind() == ErrorKind::InUse,
                "{e}"
            ),
        }
        process.beat();
        if process.is_to_leave() || process.is_to_drain() {
            return None;
        }
        sleep(Duration::from_millis(1));
    }
}

/// Just before its consumer is dropped.
fn leave(process: &Process, manner: Manner) {
    if manner == Manner::Exclusive {
        process.ledger.only.store(0, SeqCst);
    }
}

/// Acknowledges all that comes, until nothing is left of it.
fn finish(
    process: &Process,
    manner: Manner,
    consumer: &mut Consumer,
    held: Vec<Delivery>,
    mut firsts: Firsts,
) {
    for delivery in held {
        process.ack(delivery, manner);
    }
    while !consumer.is_empty().unwrap() {
        let began = Instant::now();
        match consumer.recv_timeout(Duration::from_millis(5)) {
            Ok(Some(delivery)) => {
                process.begin_delivery(&delivery, manner, began, &mut firsts);
                process.ack(delivery, manner);
            }
            Ok(None) => {}
            Err(e) => manner.accepts(&e),
        }
    }
}

impl Manner {
    /// What may keep a message from being buried, or put off: it stays where it is.
    fn accepts(self, error: &Error) {
        let may = match self {
            Self::Plain | Self::Exclusive => {
                [ErrorKind::Full, ErrorKind::NoSpace].contains(&error.kind())
            }
            Self::Leased => {
                [ErrorKind::Full, ErrorKind::NoSpace, ErrorKind::LeaseLost].contains(&error.kind())
            }
        };
        assert!(may, "{error}");
    }
}

impl Process<'_> {
    fn word(&self, message: &[u8]) -> &AtomicU64 {
        let (producer, n) = check(message);
        &self.ledger.row(producer)[n as usize]
    }

    /// It was waited for from `began` on. Nobody else has it, or has done it.
    fn begin_delivery(
        &self,
        delivery: &Delivery,
        manner: Manner,
        began: Instant,
        firsts: &mut Firsts,
    ) {
        let which = check(delivery);
        let attempts = delivery.attempts();
        if attempts == 1 {
            let before = firsts.insert(which.0, which.1);
            assert!(before < Some(which.1), "{which:?} comes after {before:?}");
        }
        let dooms = self.ledger.dooms.load(SeqCst);
        let before = change(self.word(delivery), |known| {
            Known(known.0 + (1 << 24)).held_by(self.number)
        });
        // Whose lease has run out since may find anything.
        if manner != Manner::Leased || began.elapsed() < LEASE {
            assert!(
                !before.has(Known::ACKED),
                "{which:?} comes after it was acknowledged"
            );
        }
        if manner != Manner::Leased {
            let holder = before.holder();
            assert!(
                holder == 0 || self.ledger.is_doomed(holder),
                "{which:?} is with {holder}, too"
            );
            // Each attempt was given back, or ended with a death. (Some that died had not noted what they were given.)
            assert!(
                before.deliveries() < attempts,
                "{which:?} comes again as attempt {attempts}"
            );
            assert!(
                attempts <= 1 + before.returns() + dooms.max(self.ledger.dooms.load(SeqCst)),
                "{which:?} comes as attempt {attempts}"
            );
        }
        self.has_checked();
    }

    /// Finishes it, in some way.
    fn end_delivery(&mut self, delivery: Delivery, manner: Manner, puts_off: bool) {
        match self.random.u32(..16) {
            0 => self.give_back(delivery),
            1 => self.put_off(delivery, manner),
            _ if puts_off && delivery.attempts() < 5 => self.put_off(delivery, manner),
            2 if manner == Manner::Leased => {
                self.lets_go(&delivery);
                delivery
                    .reject("it is as it is")
                    .unwrap_or_else(|e| manner.accepts(&e));
            }
            _ => self.ack(delivery, manner),
        }
    }

    fn put_off(&mut self, delivery: Delivery, manner: Manner) {
        self.lets_go(&delivery);
        let longest = self.random.choice([2, 5000]).unwrap();
        let after = Duration::from_micros(self.random.u64(1..longest));
        delivery.retry(after).unwrap_or_else(|e| manner.accepts(&e));
    }

    /// It will give it back, or put it off.
    fn lets_go(&self, delivery: &Delivery) {
        change(self.word(delivery), |known| {
            let is_ours = known.holder() == self.number;
            let known = Known(known.0 + (1 << 40));
            if is_ours { known.held_by(0) } else { known }
        });
    }

    fn give_back(&self, delivery: Delivery) {
        self.lets_go(&delivery);
        drop(delivery);
    }

    fn ack(&self, delivery: Delivery, manner: Manner) {
        let which = check(&delivery);
        let word = self.word(&delivery);
        change(word, |known| known.acked_by(self.number));
        match delivery.ack() {
            Ok(()) => {
                let before = change(word, |known| Known(known.0 | Known::ACKED).held_by(0));
                assert!(!before.has(Known::ACKED), "{which:?} is acknowledged twice");
            }
            Err(e) => {
                manner.accepts(&e);
                change(word, |known| match known.acker() == self.number {
                    true => known.acked_by(0),
                    false => known,
                });
            }
        }
    }
}

/// Takes the dead letters, as long as somebody may write one.
fn bury(process: &mut Process) {
    let bus = process.bus();
    let mut consumers = bus.queue("t").unwrap().presence().unwrap();
    let mut letters = bus.queue("t.dead").unwrap().consumer().unwrap();
    while !process.is_to_leave() {
        let is_last = process.is_to_drain() && consumers.subscribers().unwrap() == 0;
        while let Some(letter) = letters.recv_timeout(Duration::from_millis(5)).unwrap() {
            let message = DeadLetter::parse(&letter).unwrap().payload;
            change(process.word(message), |known| {
                Known(known.0 | Known::BURIED)
            });
            letter.ack().unwrap();
            process.has_checked();
        }
        process.beat();
        if is_last {
            break;
        }
    }
}

// --------------------------------------------------------------------------------------------------------- in the end

/// Each message was acknowledged, or is a dead letter; what a dying one was about to acknowledge may have been.
fn settle_queue(process: &mut Process) {
    settle(process);
    let bus = process.bus();
    assert!(
        bus.queue("t")
            .unwrap()
            .consumer()
            .unwrap()
            .is_empty()
            .unwrap()
    );
    for (producer, sent, begun) in process.ledger.senders() {
        for (n, word) in process.ledger.row(producer).iter().enumerate() {
            let (known, n) = (Known::of(word), n as u64);
            assert!(known.0 == 0 || n < begun, "{producer}/{n} was never pushed");
            let is_done =
                known.has(Known::ACKED | Known::BURIED) || process.ledger.is_doomed(known.acker());
            assert!(is_done || n >= sent, "{producer}/{n} is lost");
        }
    }
}
