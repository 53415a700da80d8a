//! A queue's group on one lane: consumers that race for messages, acknowledge, give back, sleep and die, and the writer
//! that waits for their head.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use buslane::shm::claims::{self, Claims, Walk};
use buslane::shm::layout::{Claim, Line};
use buslane::shm::park;
use buslane::shm::roster::Role;
use buslane::shm::sync::AtomicU64;
use buslane::shm::{Ring, View};
use loom::thread;

use super::{CAPACITY, SMALL, Sender, Topic, check, model, model_of, spawn};

/// A topic with one lane, a group that begins at its start, and consumers with cursors 2 and up.
struct Queue {
    topic: Arc<Topic>,
    claims: Claims,
    /// To check payloads with: plain reads that race are reported.
    ring: Ring,
}

impl Queue {
    fn new(consumers: usize) -> (Self, Sender) {
        let mut topic = Topic::new(1, 1 + consumers, CAPACITY);
        let cursors = &mut Arc::get_mut(&mut topic).unwrap().cursors;
        cursors[0].role = Role::Group;
        for cursor in &mut cursors[1..] {
            cursor.role = Role::Consumer;
        }
        let file = topic.lanes[0].clone();
        let claims = Claims {
            lane: file.header.clone(),
            // A consumer that was lapped reads frame words that are overwritten, and finds out.
            ring: file.ring.unwatched(),
            slots: topic.cursors[0].slots.clone(),
            again: View::new(Line::default()),
            table: View::all((0..CAPACITY / 16).map(|_| AtomicU64::new(0)).collect()),
            fences: false,
        };
        let Ok(_) = topic.cursors[0].take_slot(|_| Ok::<_, Infallible>(()));
        claims::begin_from_start(claims.slot(), 1);
        for cursor in 0..=consumers {
            topic.cursor_names.link(cursor);
        }
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        let ring = file.ring;
        (
            Self {
                topic,
                claims,
                ring,
            },
            sender,
        )
    }

    fn consumer(&self, index: usize) -> Consumer {
        Consumer {
            topic: Arc::clone(&self.topic),
            walk: Walk::new(self.claims.clone()),
            claims: self.claims.clone(),
            ring: self.ring.clone(),
            index,
            last: None,
        }
    }
}

/// `queue::Consumer`.
struct Consumer {
    topic: Arc<Topic>,
    walk: Walk,
    claims: Claims,
    ring: Ring,
    index: usize,
    /// The last message that was delivered for the first time.
    last: Option<u64>,
}

impl Consumer {
    fn id(&self) -> u64 {
        self.topic.cursors[self.index].id
    }

    /// The next message that nobody has, checked: its claim.
    fn take(&mut self) -> Option<Claim> {
        loop {
            let offer = self.walk.find().unwrap()?;
            if let Some(claim) = self.walk.take(offer, self.id()) {
                let sequence = u64::from(claim.sequence());
                check(&self.ring, 0, sequence, offer.found);
                if claim.attempts() == 1 {
                    assert!(self.last < Some(sequence), "out of order");
                    self.last = Some(sequence);
                }
                return Some(claim);
            }
        }
    }

    fn finish(&self, claim: Claim) -> bool {
        let acked = self.claims.ack(claim);
        if acked {
            self.claims.advance();
        }
        acked
    }

    fn give_back(&self, claim: Claim) {
        assert!(self.claims.free(claim));
        self.claims.offer(&self.topic.control);
    }

    /// Takes and acknowledges all that is there: their numbers.
    fn drain(&mut self) -> Vec<u32> {
        let mut got = Vec::new();
        while let Some(claim) = self.take() {
            assert!(self.finish(claim));
            got.push(claim.sequence());
        }
        got
    }

    /// The next message, slept for.
    fn receive(&mut self) -> Claim {
        loop {
            if let Some(claim) = self.take() {
                return claim;
            }
            let topic = Arc::clone(&self.topic);
            let cursor = &topic.cursors[self.index].header;
            let Ok(()) = park::park(&topic.control, cursor, Duration::MAX, || {
                Ok::<_, Infallible>(!matches!(self.walk.find(), Ok(None)))
            });
        }
    }
}

/// Each message goes to one of two consumers, and the head does not stay behind.
#[test]
fn queue_is_shared_out() {
    model(3, || {
        let (queue, mut sender) = Queue::new(2);
        sender.send(SMALL);
        sender.send(SMALL);
        let mut one = queue.consumer(1);
        let other = spawn({
            let mut two = queue.consumer(2);
            move || two.drain()
        });
        let mut got = one.drain();
        got.extend(other.join().unwrap());
        got.sort_unstable();
        assert_eq!(got, [0, 1]);
        assert_eq!(
            queue.claims.head(),
            sender.lane.visible(),
            "the head stays behind"
        );
        assert!(queue.claims.is_empty());
    });
}

/// A writer that overwrites what is acknowledged, and nothing else.
#[test]
fn queue_is_lapped() {
    model(2, || {
        let (queue, sender) = Queue::new(1);
        let mut sender = sender.warm_up(32);
        let consumer = spawn({
            let mut consumer = queue.consumer(1);
            move || {
                let mut got = 0;
                while got < 5 {
                    match consumer.take() {
                        Some(claim) => {
                            assert_eq!(claim.sequence(), got);
                            assert!(consumer.finish(claim));
                            got += 1;
                        }
                        None => thread::yield_now(),
                    }
                }
            }
        });
        for _ in 0..5 {
            sender.send(SMALL);
        }
        consumer.join().unwrap();
    });
}

/// The same with a second consumer that looks once, whenever that is, and another that has fallen behind.
#[test]
fn queue_is_lapped_under_a_slow_consumer() {
    model(2, || {
        let (queue, mut sender) = Queue::new(2);
        let mut fast = queue.consumer(1);
        sender.send(SMALL);
        sender.send(SMALL);
        let slow = spawn({
            let mut slow = queue.consumer(2);
            move || {
                slow.take().map(|claim| {
                    assert!(slow.finish(claim));
                    claim.sequence()
                })
            }
        });
        let mut got = fast.drain();
        for _ in 0..2 {
            if sender.try_send(SMALL) {
                got.extend(fast.drain());
            }
        }
        got.extend(slow.join().unwrap());
        got.extend(fast.drain());
        got.sort_unstable();
        let sent = sender.sent as u32;
        assert_eq!(got, (0..sent).collect::<Vec<_>>());
    });
}

/// A writer that sleeps for room is woken by who moves the head, whichever of two that is.
#[test]
fn queue_makes_room_for_a_sleeping_writer() {
    model_of(3, 2, || {
        let (queue, mut sender) = Queue::new(2);
        let (mut one, mut two) = (queue.consumer(1), queue.consumer(2));
        while sender.try_send(SMALL) {}
        let (first, second) = (one.take().unwrap(), two.take().unwrap());
        let one = spawn(move || assert!(one.finish(first)));
        let two = spawn(move || assert!(two.finish(second)));
        sender.send_sleeping(SMALL);
        sender.send_sleeping(SMALL);
        one.join().unwrap();
        two.join().unwrap();
    });
}

/// A consumer that sleeps is woken for what another gives back.
#[test]
fn queue_offers_what_is_given_back() {
    model(3, || {
        let (queue, mut sender) = Queue::new(2);
        sender.send(SMALL);
        let mut one = queue.consumer(1);
        let claim = one.take().unwrap();
        let two = spawn({
            let mut two = queue.consumer(2);
            move || {
                let claim = two.receive();
                assert_eq!((claim.sequence(), claim.attempts()), (0, 2));
                assert!(two.finish(claim));
            }
        });
        one.give_back(claim);
        two.join().unwrap();
        assert!(queue.claims.is_empty());
    });
}

/// The same for what is pushed.
#[test]
fn queue_wakes_for_what_is_pushed() {
    model(3, || {
        let (queue, mut sender) = Queue::new(1);
        sender.send(SMALL);
        let consumer = spawn({
            let mut consumer = queue.consumer(1);
            move || {
                for sequence in 0..2 {
                    let claim = consumer.receive();
                    assert_eq!(claim.sequence(), sequence);
                    assert!(consumer.finish(claim));
                }
            }
        });
        sender.send(SMALL);
        consumer.join().unwrap();
    });
}

/// A claim is taken away while its owner acknowledges: one of them has its way, and what was acknowledged does not come
/// back.
#[test]
fn queue_takes_a_claim_away() {
    model(3, || {
        let (queue, mut sender) = Queue::new(2);
        sender.send(SMALL);
        let mut one = queue.consumer(1);
        let mut two = queue.consumer(2);
        let owner = one.id();
        let claim = one.take().unwrap();
        let late = spawn(move || one.finish(claim));
        let freed = queue.claims.free_all_of(owner);
        if freed {
            queue.claims.offer(&queue.topic.control);
        }
        queue.claims.repair();
        let got = two.drain();
        let acked = late.join().unwrap();
        assert!(acked != freed, "both, or none");
        assert_eq!(got.len(), usize::from(freed));
        assert!(queue.claims.is_empty(), "the head stays behind");
    });
}
