//! A queue's group on one lane: consumers that race for messages, acknowledge, give back, sleep and die, and the writer
//! that waits for their head.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use buslane::shm::claims::{self, Claims, Walk};
use buslane::shm::layout::{Claim, Line};
use buslane::shm::roster::{self, Role};
use buslane::shm::sync::AtomicU64;
use buslane::shm::{Ring, View};
use buslane::shm::{lane, park};
use loom::cell::UnsafeCell;
use loom::thread;

use super::{CAPACITY, LARGE, SMALL, Sender, Topic, check, content, model, model_of, spawn};

/// A topic with one lane, a group that begins at its start, and consumers with cursors 2 and up.
pub(super) struct Queue {
    pub topic: Arc<Topic>,
    pub(super) claims: Claims,
    /// To check payloads with: plain reads that race are reported.
    ring: Ring,
}

impl Queue {
    pub(super) fn new(consumers: usize) -> (Self, Sender) {
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
            blocked: View::new(Line::default()),
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

    pub(super) fn consumer(&self, index: usize) -> Consumer {
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
pub(super) struct Consumer {
    topic: Arc<Topic>,
    walk: Walk,
    pub(super) claims: Claims,
    ring: Ring,
    index: usize,
    /// The last message that was delivered for the first time.
    last: Option<u64>,
}

impl Consumer {
    pub(super) fn id(&self) -> u64 {
        self.topic.cursors[self.index].id
    }

    /// The next message that nobody has, checked: its claim.
    pub(super) fn take(&mut self) -> Option<Claim> {
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

    pub(super) fn finish(&self, claim: Claim) -> bool {
        let acked = self.claims.ack(claim);
        if acked {
            self.claims.advance();
        }
        acked
    }

    pub(super) fn give_back(&self, claim: Claim) {
        assert!(self.claims.free(claim));
        self.claims.offer(&self.topic.control);
    }

    /// Takes and acknowledges all that is there: their numbers.
    pub(super) fn drain(&mut self) -> Vec<u32> {
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

/// The same with a second consumer that looks once, whenever that is, and goes on after the other has lapped it.
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
                let claim = slow.take();
                assert!(claim.is_none_or(|claim| slow.finish(claim)));
                (slow, claim.map(|claim| claim.sequence()))
            }
        });
        let mut got = fast.drain();
        for _ in 0..2 {
            if sender.try_send(SMALL) {
                got.extend(fast.drain());
            }
        }
        let (mut slow, taken) = slow.join().unwrap();
        got.extend(taken);
        got.extend(fast.drain());
        sender.send(SMALL);
        let at = sender.lane.visible() - 16;
        if let Some(offer) = slow.walk.find().unwrap() {
            assert_eq!(offer.found.position, at, "a lap ahead");
        }
        got.extend(slow.drain());
        got.sort_unstable();
        let sent = sender.sent as u32;
        assert_eq!(got, (0..sent).collect::<Vec<_>>());
    });
}

/// What either of two consumers has read is not overwritten before, whichever moves the head; one dies before it does.
#[test]
fn queue_is_read_before_it_is_overwritten() {
    model_of(3, 2, || {
        let (queue, mut sender) = Queue::new(2);
        sender.send(SMALL);
        sender.send(SMALL);
        let (mut one, mut two) = (queue.consumer(1), queue.consumer(2));
        let one = spawn(move || {
            let claim = one.take().unwrap();
            assert!(one.claims.ack(claim));
        });
        let two = spawn(move || {
            let claim = two.take().unwrap();
            assert!(two.finish(claim));
        });
        thread::yield_now();
        for _ in 0..4 {
            sender.try_send(SMALL);
        }
        one.join().unwrap();
        two.join().unwrap();
    });
}

/// What a consumer did before it gave a message back is seen by the next that has it.
#[test]
fn queue_hands_over() {
    model(2, || {
        let (queue, mut sender) = Queue::new(2);
        sender.send(SMALL);
        let (mut one, mut two) = (queue.consumer(1), queue.consumer(2));
        let done = Arc::new(UnsafeCell::new(0));
        let claim = one.take().unwrap();
        let next = spawn({
            let done = Arc::clone(&done);
            move || {
                if let Some(claim) = two.take() {
                    assert_eq!(claim.attempts(), 2);
                    done.with(|_| ());
                    assert!(two.finish(claim));
                }
            }
        });
        done.with_mut(|_| ());
        assert!(one.claims.free(claim));
        next.join().unwrap();
    });
}

/// A message is copied while its claim is taken away and the writer goes over it: the copy is whole, or known to be void.
#[test]
fn queue_copies_under_a_lease() {
    model(2, || {
        let (queue, mut sender) = Queue::new(2);
        sender.send(SMALL);
        let mut one = queue.consumer(1);
        let mut two = queue.consumer(2);
        let owner = one.id();
        let claim = one.take().unwrap();
        let late = spawn(move || {
            let copy = one.claims.ring.read(8, SMALL);
            if one.claims.holds(claim) {
                assert_eq!(copy, [content(0, 0, 0)], "a torn message");
            }
        });
        assert!(queue.claims.free_all_of(owner));
        queue.claims.offer(&queue.topic.control);
        assert_eq!(two.drain(), [0]);
        for _ in 0..4 {
            sender.send(SMALL);
            two.drain();
        }
        late.join().unwrap();
    });
}

/// A group joins while the writer, whom nobody holds up before, goes round: from where it begins, nothing is overwritten.
#[test]
fn queue_group_joins() {
    model(2, || {
        let (queue, mut sender) = Queue::new(1);
        roster::enter(&queue.topic.control, 0, queue.claims.slot(), 0);
        for _ in 0..3 {
            sender.send(SMALL);
        }
        let mut consumer = queue.consumer(1);
        let ring = queue.ring.clone();
        let group = spawn(move || {
            let Claims { lane, slots, .. } = &consumer.claims;
            let (control, capacity) = (&consumer.topic.control, ring.capacity());
            let (mark, limit) =
                roster::join(control, lane, capacity, 1, &slots[0], |_| None).unwrap();
            let end = lane::walk(&ring, mark, limit, |_| {}).unwrap();
            claims::begin(&slots[0], end);
            consumer.walk.rewind();
            consumer
        });
        for _ in 0..2 {
            thread::yield_now();
            sender.try_send(SMALL);
        }
        thread::yield_now();
        // Over a word that the group may have looked at.
        sender.try_send(LARGE);
        let got = group.join().unwrap().drain();
        let sent = sender.sent as u32;
        assert!(got.iter().all(|&sequence| sequence >= 3), "sent before");
        assert!(
            got.iter().copied().eq(sent - got.len() as u32..sent),
            "{got:?}"
        );
    });
}

/// A message that nobody has acknowledged is found, though those before it are acknowledged and overwritten meanwhile.
#[test]
fn queue_looks_for_what_is_held() {
    model(2, || {
        let (queue, mut sender) = Queue::new(1);
        (0..3).for_each(|_| sender.send(SMALL));
        let mut consumer = queue.consumer(1);
        let claims = queue.claims.clone();
        let looks = spawn(move || {
            assert!(claims.has_unacked(|found| found.word.sequence() == 2));
            assert!(!claims.has_unacked(|found| found.word.sequence() == 9));
        });
        for _ in 0..2 {
            let claim = consumer.take().unwrap();
            assert!(consumer.finish(claim));
        }
        sender.try_send(SMALL);
        sender.try_send(SMALL);
        looks.join().unwrap();
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
        queue.claims.repair(&queue.topic.control);
        let got = two.drain();
        let acked = late.join().unwrap();
        assert!(acked != freed, "both, or none");
        assert_eq!(got.len(), usize::from(freed));
        assert!(queue.claims.is_empty(), "the head stays behind");
    });
}
