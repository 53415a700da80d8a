//! Processes that die before any change of a shared word, as `SIGKILL` has them: who puts them away, and who goes on, find all
//! that they need.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use buslane::shm::lane::{self, Writer};
use buslane::shm::layout::Claim;
use buslane::shm::roster;
use buslane::shm::sync::die_after;

use super::queue::{Consumer, Queue};
use super::{CAPACITY, LARGE, LaneFile, Receiver, SMALL, Sender, Topic, joined, model, spawn};

/// When the process dies that does.
struct Death {
    /// After so many changes.
    after: usize,
    /// It came so far, in some execution.
    came: AtomicBool,
}

impl Death {
    fn cuts_short(&self, body: impl FnOnce()) {
        if die_after(self.after, body) {
            self.came.store(true, Relaxed);
        }
    }
}

/// Runs a model of two threads for each change that the one that dies may come to.
fn at_every_step(preemptions: usize, body: impl Fn(&Death) + Clone + Send + Sync + 'static) {
    for after in 0.. {
        let came = AtomicBool::new(false);
        let death = Arc::new(Death { after, came });
        let (body, this) = (body.clone(), Arc::clone(&death));
        model(preemptions, move || body(&this));
        if !death.came.load(Relaxed) {
            return println!("{after} steps");
        }
    }
}

/// A consumer dies at some step of what it does with a message, while another works: none is lost, none is done twice, and the
/// head does not stay behind.
fn consumer_dies(work: fn(&Consumer, Claim)) {
    at_every_step(2, move |death| {
        let (queue, mut sender) = Queue::new(2);
        sender.send(SMALL);
        sender.send(SMALL);
        let (mut dying, mut heir) = (queue.consumer(1), queue.consumer(2));
        let dead = dying.id();
        let mut got = Vec::new();
        let other = spawn(move || {
            let got = heir.drain();
            (heir, got)
        });
        death.cuts_short(|| {
            if let Some(claim) = dying.take() {
                work(&dying, claim);
            }
        });
        queue.claims.put_away(dead, &queue.topic.control);
        let (mut heir, first) = other.join().unwrap();
        got.extend(first);
        got.extend(heir.drain());
        got.sort_unstable();
        assert!(got.windows(2).all(|two| two[0] < two[1]), "done twice");
        let end = sender.lane.visible();
        assert_eq!(queue.claims.head(), end, "the head stays behind");
    });
}

#[test]
fn consumer_dies_as_it_acknowledges() {
    consumer_dies(|consumer, claim| {
        consumer.finish(claim);
    });
}

#[test]
fn consumer_dies_as_it_gives_back() {
    consumer_dies(Consumer::give_back);
}

#[test]
fn consumer_dies_as_it_begins_once() {
    consumer_dies(|consumer, claim| {
        let once = consumer.claims.begin_once(claim).unwrap();
        consumer.finish(once);
    });
}

/// A sender dies as it withdraws a message, while a consumer looks for it. Who looks after the lane moves the head.
#[test]
fn sender_dies_as_it_withdraws() {
    at_every_step(2, |death| {
        let (queue, mut sender) = Queue::new(1);
        sender.send(SMALL);
        let mut consumer = queue.consumer(1);
        let other = spawn(move || consumer.drain());
        death.cuts_short(|| queue.claims.cancel(0, &queue.topic.control));
        queue.claims.repair(&queue.topic.control);
        other.join().unwrap();
        if queue.claims.is_empty() {
            let end = sender.lane.visible();
            assert_eq!(queue.claims.head(), end, "the head stays behind");
        } else {
            assert_eq!(queue.consumer(1).drain(), [0], "nobody finds it");
        }
    });
}

/// A writer dies at any step of sending, over the wrap, with padding; the next one goes on behind what was visible. The reader
/// gets a whole lane.
#[test]
fn writer_dies() {
    at_every_step(1, |death| {
        let (mut sender, mut sources) = joined(1, 2 * CAPACITY);
        let mut source = sources.pop().unwrap();
        for sequence in 0..3 {
            sender.send(LARGE);
            assert_eq!(source.receive(), sequence);
        }
        let reader =
            spawn(move || (3..6).for_each(|sequence| assert_eq!(source.receive(), sequence)));
        let topic = Arc::clone(&sender.topic);
        death.cuts_short(move || {
            sender.send(SMALL);
            sender.send(LARGE);
        });
        let LaneFile { header, ring } = topic.lanes[0].clone();
        let sent = Writer::adopt(header, ring).unwrap().next_sequence();
        let mut sender = Sender::adopt(&topic, 0, sent);
        for _ in sent..6 {
            sender.send(SMALL);
        }
        reader.join().unwrap();
    });
}

/// A reader dies at any step of joining: once it is put away, nobody waits for it.
#[test]
fn reader_dies_as_it_joins() {
    at_every_step(1, |death| {
        let topic = Topic::new(1, 1, CAPACITY);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        sender.send(SMALL);
        let sender = spawn(move || {
            for _ in 0..3 {
                sender.try_send(SMALL);
            }
            sender
        });
        death.cuts_short(|| drop(Receiver::join(&topic, 0)));
        let mut sender = sender.join().unwrap();
        topic.cursors[0].used().iter().for_each(lane::leave);
        topic.cursor_names.unlink(0);
        roster::changed(&topic.control);
        for _ in 0..4 {
            sender.send(SMALL);
        }
    });
}
