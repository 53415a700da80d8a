//! loom models of the core: every interleaving of a few threads, with every stale value that the orderings permit, up to
//! a number of preemptions. The protocol is the real one in `src/shm`; `Sender` and `Receiver` here are the loops of
//! `src/pubsub.rs` without their errors and clocks.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --test model` runs the models;
//! `... --test model -- --ignored weaken --nocapture` weakens every ordering, one at a time, and wants some model to fail.
//!
//! Rings have four slots, begin full of what looks like frames, and are written with garbage wherever a loan allows it.
//! A futex never returns but when woken: a lost wake-up is a deadlock. Directories order nothing.
#![cfg(loom)]
#![allow(clippy::arc_with_non_send_sync)] // loom runs threads of its own, one at a time.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, missing_docs)]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use buslane::shm::heap::futex;
use buslane::shm::lane::{self, Boundary, Found, NotPlain, Outside, Reader, Writer};
use buslane::shm::layout::{CURSOR_SLOTS, Control, CursorHeader, LaneHeader, Slot, Word};
use buslane::shm::park::{self, Watch};
use buslane::shm::roster::{self, Cursor, Listed, Lowest, Readers, Role};
use buslane::shm::sync::begin_threads;
use buslane::shm::{Ring, View};
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::thread;

#[path = "model/deaths.rs"]
mod deaths;
#[path = "model/files.rs"]
mod files;
#[path = "model/lossy.rs"]
mod lossy;
#[path = "model/queue.rs"]
mod queue;
#[path = "model/request.rs"]
mod request;
#[path = "model/table.rs"]
mod table;
#[path = "model/trim.rs"]
mod trim;
#[path = "model/waiting.rs"]
mod waiting;
#[path = "model/weaken.rs"]
mod weaken;

// ------------------------------------------------------------------------------------------------------ the fixture

/// Runs a model of two threads with so many preemptions.
fn model(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    model_of(2, preemptions, body);
}

fn model_of(threads: usize, preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_threads = threads;
    builder.max_branches = 20_000;
    let runs = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = Arc::clone(&runs);
    builder.check(move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        futex::boot(threads);
        body();
    });
    println!(
        "{} executions",
        runs.load(std::sync::atomic::Ordering::Relaxed)
    );
}

/// Starts a thread, when all that it needs is prepared.
fn spawn<T: 'static>(body: impl FnOnce() -> T + 'static) -> thread::JoinHandle<T> {
    begin_threads(true);
    thread::spawn(body)
}

/// The word of a frame that nobody sent.
const GARBAGE: Word = Word::message(8, 0xbad);
/// Bytes in a ring, unless said otherwise.
const CAPACITY: usize = 64;
/// Payloads: one word makes a frame of one slot, three make one of two.
const SMALL: usize = 1;
const LARGE: usize = 3;

/// Word `i` of message `sequence` of `lane`.
fn content(lane: usize, sequence: u64, i: usize) -> u64 {
    ((lane as u64 + 1) << 32) | (sequence << 8) | (i as u64 + 1)
}

fn check(ring: &Ring, lane: usize, sequence: u64, found: Found) {
    assert!(found.word.is_message());
    assert_eq!(u64::from(found.word.sequence()), sequence, "a wrong frame");
    for (i, word) in ring
        .read(found.body(), found.word.len() as usize / 8)
        .into_iter()
        .enumerate()
    {
        assert_eq!(
            word,
            content(lane, sequence, i),
            "message {sequence} is torn"
        );
    }
}

/// Which files have names. A listing may be old, and orders nothing: the protocol must not lean on it.
#[derive(Default)]
struct Directory(AtomicU64);

impl Directory {
    fn link(&self, n: usize) {
        self.0.fetch_or(1 << n, Relaxed);
    }
    fn unlink(&self, n: usize) {
        self.0.fetch_and(!(1 << n), Relaxed);
    }
    fn list(&self) -> impl Iterator<Item = usize> {
        let bits = self.0.load(Relaxed);
        (0..8).filter(move |n| bits & (1 << n) != 0)
    }
}

#[derive(Clone)]
struct LaneFile {
    header: View<LaneHeader>,
    ring: Ring,
}

/// A topic's files: all made in advance, linked later. Lane `n` has the number `n + 1`, as has cursor `n`.
struct Topic {
    control: View<Control>,
    lanes: Vec<LaneFile>,
    lane_names: Directory,
    cursors: Vec<Cursor>,
    cursor_names: Directory,
}

impl Topic {
    fn new(lanes: usize, cursors: usize, capacity: usize) -> Arc<Self> {
        let lane = |_| LaneFile {
            header: View::new(LaneHeader::default()),
            ring: Ring::new(
                (0..capacity as u64 / 8).map(|i| if i % 2 == 0 { GARBAGE.0 } else { 0xdead }),
            ),
        };
        let cursor = |n| Cursor {
            id: n as u64 + 1,
            role: Role::Subscriber,
            header: View::new(CursorHeader::default()),
            slots: View::all((0..CURSOR_SLOTS).map(|_| unallocated()).collect()),
        };
        Arc::new(Self {
            control: View::new(Control::default()),
            lanes: (0..lanes).map(lane).collect(),
            lane_names: Directory::default(),
            cursors: (0..cursors).map(cursor).collect(),
            cursor_names: Directory::default(),
        })
    }

    fn list_cursors(&self, known: &[u64]) -> Listed {
        let names: Vec<usize> = self.cursor_names.list().collect();
        let gone = known
            .iter()
            .copied()
            .filter(|&id| !names.contains(&(id as usize - 1)))
            .collect();
        let new = names
            .into_iter()
            .filter(|&n| !known.contains(&(n as u64 + 1)));
        Listed {
            gone,
            new: new.map(|n| self.cursors[n].clone()).collect(),
        }
    }
}

/// A slot that does not exist yet. It says the worst that memory could say: that a reader has joined the first lane,
/// and has read everything.
fn unallocated() -> Slot {
    let slot = Slot::default();
    slot.lane.store(1, Relaxed);
    slot.position.store(1 << 40, Relaxed);
    slot
}

/// `pubsub::Sender`.
struct Sender {
    topic: Arc<Topic>,
    lane: Writer,
    index: usize,
    watch: Watch,
    readers: Readers,
    sent: u64,
}

impl Sender {
    /// The sender of a new lane, which has no name yet.
    fn create(topic: &Arc<Topic>, index: usize) -> Self {
        let LaneFile { header, ring } = topic.lanes[index].clone();
        Self::with(topic, index, Writer::create(header, ring, 0), 0)
    }

    /// The sender of a lane whose last one has gone after `sent` messages.
    fn adopt(topic: &Arc<Topic>, index: usize, sent: u64) -> Self {
        let LaneFile { header, ring } = topic.lanes[index].clone();
        let mut sender = Self::with(topic, index, Writer::adopt(header, ring).unwrap(), sent);
        sender.enter();
        sender
    }

    fn with(topic: &Arc<Topic>, index: usize, lane: Writer, sent: u64) -> Self {
        let (watch, readers) = (Watch::default(), Readers::default());
        Self {
            topic: Arc::clone(topic),
            lane,
            index,
            watch,
            readers,
            sent,
        }
    }

    /// The rest of `Sender::join`, once the lane exists.
    fn enter(&mut self) {
        self.topic.lane_names.link(self.index);
        roster::changed(&self.topic.control);
        self.refresh();
    }

    /// All that a first send does once: so that a model can begin after it.
    fn warm_up(mut self, limit: u64) -> Self {
        self.make_room(limit);
        assert!(self.lane.reaches(limit));
        self.lane.publish();
        self.look_around();
        self
    }

    fn id(&self) -> u64 {
        self.index as u64 + 1
    }

    fn refresh(&mut self) {
        let Self {
            topic,
            readers,
            index,
            ..
        } = self;
        let Ok(()) = readers.refresh(&topic.control, *index as u64 + 1, |known| {
            Ok::<_, Infallible>(topic.list_cursors(known))
        });
    }

    fn survey(&mut self) -> Lowest {
        self.refresh();
        self.readers.lowest(self.id(), self.lane.unjoined())
    }

    fn make_room(&mut self, end: u64) -> Lowest {
        let Self {
            topic,
            lane,
            readers,
            index,
            ..
        } = self;
        let id = *index as u64 + 1;
        let Ok(lowest) = lane.extend(end, |unjoined| {
            readers.refresh(&topic.control, id, |known| {
                Ok::<_, Infallible>(topic.list_cursors(known))
            })?;
            Ok::<_, Infallible>(readers.lowest(id, unjoined))
        });
        lowest
    }

    fn look_around(&mut self) {
        if self.watch.is_quiet(&self.topic.control) {
            return;
        }
        if self.watch.disturbed(&self.topic.control) {
            self.refresh();
            if self.readers.any_parked() {
                park::ring(&self.topic.control);
            }
        }
    }

    /// Waits for room as `claim_slowly` does: looking again, or (`sleeps`) asleep.
    fn claim(&mut self, words: usize, sleeps: bool) -> u64 {
        if let Ok(at) = self.lane.claim(words * 8) {
            return at;
        }
        self.lane.publish();
        self.look_around();
        loop {
            let end = match self.lane.claim(words * 8) {
                Ok(at) => return at,
                Err(full) => full.end,
            };
            self.make_room(end);
            if let Ok(at) = self.lane.claim(words * 8) {
                return at;
            }
            if sleeps {
                self.sleep_until(end)
            } else {
                thread::yield_now()
            }
        }
    }

    fn sleep_until(&mut self, end: u64) {
        let lowest = self.survey();
        let want = self.lane.wanted(end, lowest.position);
        let topic = Arc::clone(&self.topic);
        let header = self.lane.header().clone();
        let Ok(()) = park::wait_for_room(&topic.control, &header, want, Duration::MAX, || {
            let lowest = self.make_room(end);
            Ok::<_, Infallible>((!self.lane.reaches(end)).then_some(lowest))
        });
    }

    fn write(&mut self, at: u64, words: usize) {
        let payload: Vec<u64> = (0..words)
            .map(|i| content(self.index, self.sent, i))
            .collect();
        self.lane.ring().write(at, &payload);
        self.sent += 1;
    }

    fn send(&mut self, words: usize) {
        let at = self.claim(words, false);
        self.write(at, words);
        self.lane.commit(words * 8);
        self.look_around();
    }

    /// Sends if there is room now.
    fn try_send(&mut self, words: usize) -> bool {
        if let Err(full) = self.lane.claim(words * 8) {
            self.make_room(full.end);
            if self.lane.claim(words * 8).is_err() {
                return false;
            }
        }
        self.send(words);
        true
    }

    fn send_sleeping(&mut self, words: usize) {
        let at = self.claim(words, true);
        self.write(at, words);
        self.lane.commit(words * 8);
        self.look_around();
    }

    /// As `send_batch`: visible with one store, unless room must be waited for in between.
    fn send_batch(&mut self, frames: &[usize]) {
        for &words in frames {
            let at = self.claim(words, false);
            self.write(at, words);
            self.lane.stage(words * 8);
        }
        self.lane.publish();
        self.look_around();
    }

    /// A loan with garbage in all its words, those that will be frame words not excepted.
    fn loan(&mut self, words: usize) -> u64 {
        let at = self.claim(words, false);
        self.lane.open_loan(words * 8);
        // The payload ends where the next frame's word is.
        let garbage: Vec<u64> = (0..words)
            .map(|i| if i % 2 == 1 { GARBAGE.0 } else { 0xdead })
            .collect();
        self.lane.ring().write(at, &garbage);
        at
    }

    fn drop_loan(&mut self, words: usize) {
        self.loan(words);
        self.lane.abort();
    }

    /// A loan of `words` that is committed with `kept` of them.
    fn commit_loan(&mut self, words: usize, kept: usize) {
        let at = self.loan(words);
        self.write(at, kept);
        self.lane.commit(kept * 8);
        self.look_around();
    }

    /// `Sender::drop`.
    fn close(self) {
        lane::close(self.lane.header());
        roster::changed(&self.topic.control);
    }
}

/// A lane that is read, and what comes next.
struct Source {
    index: usize,
    reader: Reader,
    /// Numbers of the first message and the next one; `None` until the first.
    first: Option<u64>,
    next: Option<u64>,
    closed: bool,
    ended: bool,
}

impl Source {
    /// This is the number of the next message.
    fn from(self, next: u64) -> Self {
        Self {
            next: Some(next),
            ..self
        }
    }

    /// The next message, if it is there.
    fn next(&mut self) -> Option<Found> {
        let until = self.reader.turn(u64::MAX / 2);
        match self.reader.plain(until, None) {
            Ok(unread) => Some(self.reader.see(unread)),
            Err(NotPlain::Nothing) => None,
            Err(NotPlain::Other) => self.reader.next().unwrap(),
        }
    }

    /// Checks the message that was found, and releases it. Its number.
    fn take(&mut self, found: Found) -> u64 {
        let sequence = self.next.unwrap_or(u64::from(found.word.sequence()));
        check(self.reader.ring(), self.index, sequence, found);
        let until = self.reader.turn(u64::MAX / 2);
        self.reader.track().release(found.end(), until);
        self.first = self.first.or(Some(sequence));
        self.next = Some(sequence + 1);
        sequence
    }

    /// The next message, looked for again and again.
    fn receive(&mut self) -> u64 {
        loop {
            if let Some(found) = self.next() {
                return self.take(found);
            }
            self.reader.track().settle();
            thread::yield_now();
        }
    }
}

impl Source {
    /// What is found in so many looks.
    fn look(&mut self, times: usize) {
        for _ in 0..times {
            if let Some(found) = self.next() {
                self.take(found);
            }
        }
    }

    /// Receives all that is left, when `sent` messages were sent. With which one it began.
    fn drain(&mut self, sent: u64) -> u64 {
        while let Some(found) = self.reader.next().unwrap() {
            self.take(found);
        }
        assert_eq!(
            self.next.unwrap_or(sent),
            sent,
            "not everything was received"
        );
        self.first.unwrap_or(sent)
    }
}

/// `pubsub::Receiver`.
struct Receiver {
    topic: Arc<Topic>,
    cursor: Cursor,
    sources: Vec<Source>,
    seen_roster: Option<u64>,
    choose: Option<Choose>,
}

/// Where to begin: at or past the position, if anything is known there. `None`: at the mark's end.
type Choose = fn(&Outside, u64) -> Option<u64>;

impl Receiver {
    fn join(topic: &Arc<Topic>, index: usize) -> Self {
        Self::begin(topic, index, None)
    }

    fn join_from(topic: &Arc<Topic>, index: usize, choose: Choose) -> Self {
        Self::begin(topic, index, Some(choose))
    }

    fn begin(topic: &Arc<Topic>, index: usize, choose: Option<Choose>) -> Self {
        let cursor = topic.cursors[index].clone();
        cursor.header.used.store(0, Relaxed);
        topic.cursor_names.link(index);
        roster::changed(&topic.control);
        let mut receiver = Self {
            topic: Arc::clone(topic),
            cursor,
            sources: Vec::new(),
            seen_roster: None,
            choose,
        };
        receiver.refresh();
        receiver.cursor.set_joined();
        roster::changed(&topic.control);
        receiver
    }

    fn poll(&mut self) -> Option<(usize, Found)> {
        if self.seen_roster != Some(roster::state(&self.topic.control)) {
            self.refresh();
        }
        for (i, source) in self.sources.iter_mut().enumerate() {
            if let Some(found) = source.next() {
                return Some((i, found));
            }
        }
        for source in &mut self.sources {
            source.reader.track().settle();
            if source.closed && !source.ended && source.reader.next().unwrap().is_none() {
                source.ended = true;
            }
        }
        None
    }

    fn refresh(&mut self) {
        let now = roster::state(&self.topic.control);
        let is_first = self.seen_roster.is_none();
        let topic = Arc::clone(&self.topic);
        for index in topic.lane_names.list() {
            if !self.sources.iter().any(|source| source.index == index) {
                self.join_lane(index, is_first);
            }
        }
        self.seen_roster = Some(now);
        for source in &mut self.sources {
            source.reader.track().refresh();
            source.closed = source.reader.is_closed();
            source.ended = source.closed && source.reader.next().unwrap().is_none();
        }
    }

    fn join_lane(&mut self, index: usize, by_mark: bool) {
        let LaneFile { header, ring } = self.topic.lanes[index].clone();
        let (control, capacity, id) = (&self.topic.control, ring.capacity(), index as u64 + 1);
        let Ok(slot) = self.cursor.take_slot(|slot| {
            self.cursor.slots[slot].lane.store(0, Relaxed);
            self.cursor.slots[slot].position.store(0, Relaxed);
            Ok::<_, Infallible>(())
        });
        let place = &self.cursor.slots[slot];
        let position = if let Some(choose) = self.choose {
            let outside = Outside {
                header: &header,
                ring: &ring,
            };
            let choose = |from| choose(&outside, from);
            roster::join(control, &header, capacity, id, place, choose)
                .unwrap()
                .0
        } else if by_mark {
            let (mark, limit) =
                roster::join(control, &header, capacity, id, place, |_| None).unwrap();
            lane::walk(&ring, mark, limit, |_| {}).unwrap()
        } else {
            assert!(
                roster::join_from_start(control, &header, capacity, id, place),
                "the writer did not wait for us"
            );
            0
        };
        let mut reader = Reader::gating(
            header,
            ring,
            self.cursor.slots.clone(),
            slot,
            position,
            false,
        );
        reader.track().publish();
        let (first, next) = (None, (!by_mark).then_some(0));
        self.sources.push(Source {
            index,
            reader,
            first,
            next,
            closed: false,
            ended: false,
        });
    }

    fn sleep(&mut self) {
        let topic = Arc::clone(&self.topic);
        let cursor = self.cursor.clone();
        let Ok(()) = park::park(&topic.control, &cursor.header, Duration::MAX, || {
            let changed = self.seen_roster != Some(roster::state(&topic.control));
            Ok::<_, Infallible>(
                changed
                    || self
                        .sources
                        .iter_mut()
                        .any(|source| source.reader.next().unwrap().is_some()),
            )
        });
    }

    /// The next message, its source and number. Sleeps at once.
    fn receive(&mut self) -> (usize, u64) {
        loop {
            if let Some((i, found)) = self.poll() {
                return (i, self.sources[i].take(found));
            }
            self.sleep();
        }
    }

    /// The first slot was another lane's, in which we had come further, and is free again.
    fn use_a_slot(&self) {
        self.cursor.slots[0].position.store(1 << 40, Relaxed);
        self.cursor.free_slot(0);
        self.cursor.header.used.store(1, Relaxed);
    }

    /// One look at everything: the messages that are there.
    fn look(&mut self) {
        while let Some((i, found)) = self.poll() {
            self.sources[i].take(found);
        }
    }

    /// The only source.
    fn only(mut self) -> Source {
        self.sources.pop().unwrap()
    }

    /// As `reclaim::leave`.
    fn leave(mut self) {
        for source in &mut self.sources {
            source.reader.track().settle();
        }
        for slot in self.cursor.used() {
            lane::leave(slot);
        }
        self.topic.cursor_names.unlink(self.cursor.id as usize - 1);
        roster::changed(&self.topic.control);
    }
}

/// A lane and its readers, all joined before the model's threads begin.
fn joined(readers: usize, capacity: usize) -> (Sender, Vec<Source>) {
    let topic = Topic::new(1, readers, capacity);
    let mut sender = Sender::create(&topic, 0);
    sender.enter();
    let sources = (0..readers)
        .map(|n| Receiver::join(&topic, n).only().from(0))
        .collect();
    sender.look_around();
    (sender, sources)
}

/// A thread that receives `count` messages.
fn receive(mut source: Source, count: u64) -> thread::JoinHandle<()> {
    spawn(move || {
        for sequence in 0..count {
            assert_eq!(source.receive(), sequence);
        }
    })
}

// -------------------------------------------------------------------------------- send, receive, and room for more

/// Frames of one slot, more than a lap: what is received is what was sent, in order; what is held is not overwritten.
#[test]
fn small_frames_lap() {
    model(3, || {
        let (mut sender, mut sources) = joined(1, CAPACITY);
        let reader = receive(sources.pop().unwrap(), 5);
        for _ in 0..5 {
            sender.send(SMALL);
        }
        reader.join().unwrap();
    });
}

/// Frames of both sizes, the third one with padding before it.
#[test]
fn padding_at_the_wrap() {
    model(3, || {
        let (mut sender, mut sources) = joined(1, CAPACITY);
        let reader = receive(sources.pop().unwrap(), 4);
        for words in [SMALL, LARGE, LARGE, SMALL] {
            sender.send(words);
        }
        reader.join().unwrap();
    });
}

/// Two readers: room is what the slowest leaves.
#[test]
fn two_readers() {
    model_of(3, 2, || {
        let (mut sender, sources) = joined(2, CAPACITY);
        let look = |mut source: Source| {
            spawn(move || {
                source.look(2);
                source
            })
        };
        let readers: Vec<_> = sources.into_iter().map(look).collect();
        for _ in 0..5 {
            sender.try_send(SMALL);
        }
        for reader in readers {
            reader.join().unwrap().drain(sender.sent);
        }
    });
}

/// Runs of frames, one of them over the wrap with padding in its midst.
#[test]
fn batches() {
    model(3, || {
        let (mut sender, mut sources) = joined(1, CAPACITY);
        let reader = receive(sources.pop().unwrap(), 5);
        sender.send_batch(&[SMALL, SMALL]);
        sender.send_batch(&[SMALL, LARGE, SMALL]);
        reader.join().unwrap();
    });
}

/// A reader takes several at once, of any size or of one: each of them as its writer wrote it.
fn rows(len: Option<u64>) {
    model(3, move || {
        let (mut sender, mut sources) = joined(1, 2 * CAPACITY);
        let mut source = sources.pop().unwrap();
        let reader = spawn(move || {
            while source.next.unwrap_or(0) < 3 {
                let Some(first) = source.reader.next().unwrap() else {
                    source.reader.track().settle();
                    thread::yield_now();
                    continue;
                };
                let row = source.reader.row(first, (4, u64::MAX), len, |_, _| true);
                let mut position = first.position;
                for _ in 0..row.messages {
                    let sequence = source.next.unwrap_or(0);
                    let word = Word(source.reader.ring().head(position).load(Relaxed));
                    let found = Found { position, word };
                    check(source.reader.ring(), source.index, sequence, found);
                    source.next = Some(sequence + 1);
                    position = found.end();
                }
                source.reader.track().release_row(row.end, row.messages);
            }
        });
        sender.send(SMALL);
        sender.send_batch(&[SMALL, SMALL]);
        reader.join().unwrap();
    });
}

#[test]
fn rows_of_any_size() {
    rows(None);
}

#[test]
fn rows_of_one_size() {
    rows(Some(SMALL as u64 * 8));
}

/// Loans full of garbage, dropped or committed short: nothing of it is ever taken for a frame.
#[test]
fn loans() {
    model(3, || {
        let (mut sender, mut sources) = joined(1, CAPACITY);
        let reader = receive(sources.pop().unwrap(), 4);
        sender.drop_loan(LARGE);
        sender.send(SMALL);
        sender.commit_loan(LARGE, SMALL);
        sender.send(SMALL);
        // At the wrap: behind padding.
        sender.drop_loan(LARGE);
        sender.commit_loan(LARGE, SMALL);
        reader.join().unwrap();
    });
}

// ------------------------------------------------------------------------------------------------------------- join

/// Sends up to `count` messages, while there is room; how many of them before `until` was set.
fn send_until(sender: &mut Sender, count: u64, until: &AtomicU64) -> u64 {
    let mut before = sender.sent;
    for _ in 0..count {
        if until.load(Acquire) == 0 {
            before = sender.sent + 1;
        }
        if !sender.try_send(SMALL) {
            break;
        }
    }
    before.min(sender.sent)
}

/// A reader joins by the mark while the writer, whom nobody holds up before, laps the ring: from where it begins it
/// receives everything, and it begins no later than with the first message that was sent after it had joined.
#[test]
fn join_by_mark() {
    model(2, || {
        let topic = Topic::new(1, 1, CAPACITY);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        for _ in 0..3 {
            sender.send(SMALL);
        }
        let has_joined = Arc::new(AtomicU64::new(0));
        let reader = spawn({
            let (topic, has_joined) = (Arc::clone(&topic), Arc::clone(&has_joined));
            move || {
                let mut source = Receiver::join(&topic, 0).only();
                has_joined.store(1, Release);
                source.look(1);
                source
            }
        });
        let before = send_until(&mut sender, 4, &has_joined);
        let first = reader.join().unwrap().drain(sender.sent);
        assert!(
            first <= before,
            "message {before} was sent after joining, and is lost"
        );
    });
}

/// Sends up to 5 messages through a lane that is new to the reader, who joins it from the start at some time: none is
/// lost.
fn join_late(mut receiver: Receiver, in_a_used_slot: bool) {
    let topic = Arc::clone(&receiver.topic);
    let mut sender = Sender::create(&topic, 0);
    sender.enter();
    for _ in 0..3 {
        sender.send(SMALL);
    }
    let reader = spawn(move || {
        if in_a_used_slot {
            receiver.use_a_slot();
        } else {
            receiver.cursor.header.used.store(0, Relaxed);
        }
        receiver.refresh();
        receiver.sources[0].look(1);
        receiver
    });
    for _ in 0..2 {
        sender.try_send(SMALL);
    }
    let mut receiver = reader.join().unwrap();
    receiver.look();
    assert_eq!(receiver.only().drain(sender.sent), 0);
}

/// A reader whose cursor is older than the lane: nothing is lost, from the first message on, though the writer begins
/// before the reader has joined.
#[test]
fn join_from_start() {
    model(2, || {
        join_late(Receiver::join(&Topic::new(1, 1, CAPACITY), 0), false)
    });
}

/// The same in a slot that was another lane's before, in which the reader had come much further.
#[test]
fn join_in_a_used_slot() {
    model(2, || {
        let receiver = Receiver::join(&Topic::new(1, 1, CAPACITY), 0);
        receiver
            .cursor
            .header
            .used
            .store(1, buslane::shm::sync::Ordering::Relaxed);
        receiver.cursor.free_slot(0);
        join_late(receiver, true);
    });
}

/// Cursor and lane are made at the same time: the reader finds the lane at first and joins by the mark, or the writer
/// finds the reader and waits for it to join from the start.
#[test]
fn join_each_other() {
    model(2, || {
        let topic = Topic::new(1, 1, CAPACITY / 2);
        let mut sender = Sender::create(&topic, 0);
        let reader = spawn({
            let topic = Arc::clone(&topic);
            move || {
                let mut receiver = Receiver::join(&topic, 0);
                receiver
                    .sources
                    .iter_mut()
                    .for_each(|source| source.look(1));
                receiver
            }
        });
        sender.enter();
        for _ in 0..2 {
            sender.try_send(SMALL);
        }
        let mut receiver = reader.join().unwrap();
        receiver.look();
        receiver.only().drain(sender.sent);
    });
}

/// Who finds a slot that stands for its lane finds the position in that lane, not what another lane had left there.
#[test]
fn position_in_a_used_slot() {
    model(3, || {
        let topic = Topic::new(2, 1, CAPACITY);
        let mut receiver = Receiver::join(&topic, 0);
        receiver
            .cursor
            .header
            .used
            .store(1, buslane::shm::sync::Ordering::Relaxed);
        receiver.cursor.free_slot(0);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        let reader = spawn(move || {
            receiver.use_a_slot();
            receiver.refresh();
        });
        let position = topic.cursors[0].position_in(sender.id());
        assert!(position.is_none_or(|position| position == 0));
        assert_eq!(sender.survey().position, 0);
        reader.join().unwrap();
    });
}

/// A reader that counts as joined has its slot: from now on it holds the writer up.
#[test]
fn counted_means_joined() {
    model(2, || {
        let topic = Topic::new(1, 1, CAPACITY);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        let reader = spawn({
            let topic = Arc::clone(&topic);
            move || drop(Receiver::join(&topic, 0))
        });
        sender.refresh();
        if sender.readers.count() == 1 {
            assert_eq!(sender.readers.lowest(1, None).position, 0);
        }
        reader.join().unwrap();
        sender.refresh();
        assert_eq!(sender.readers.count(), 1);
    });
}

/// A sender that sees `attention` bumped finds the reader that joined; it has to know whether that one can't use
/// `membarrier`, before it sleeps.
#[test]
fn attention_tells_of_the_roster() {
    model(3, || {
        let topic = Topic::new(1, 1, CAPACITY);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        let mut sender = sender.warm_up(CAPACITY as u64);
        let reader = spawn({
            let topic = Arc::clone(&topic);
            move || {
                topic.cursor_names.link(0);
                roster::changed(&topic.control);
            }
        });
        if sender.watch.disturbed(&topic.control) {
            sender.refresh();
            assert!(
                sender.readers.lowest(1, Some(0)).position == 0,
                "the reader is not listed"
            );
        }
        reader.join().unwrap();
    });
}

/// A sender that sees `attention` bumped for a hint finds the hint.
#[test]
fn attention_tells_of_a_hint() {
    model(3, || {
        let topic = Topic::new(1, 1, CAPACITY);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        let reader = Receiver::join(&topic, 0);
        sender.look_around();
        let reader = spawn({
            let topic = Arc::clone(&topic);
            move || reader.cursor.tell_singly(&topic.control, true)
        });
        let first = sender.watch.disturbed(&topic.control);
        if first {
            assert!(sender.readers.any_singly(), "the hint is not seen");
        }
        reader.join().unwrap();
        assert!(first || sender.watch.disturbed(&topic.control));
    });
}

// --------------------------------------------------------------------------------------------------- sleep and wake

/// `senders` and `sleepers` on one bell, each sender with `count` messages; all are joined. Room for them is there, so
/// that sending has no fence but the light one.
fn sleep_and_wake(senders: usize, sleepers: usize, count: usize) {
    let topic = Topic::new(senders, sleepers, CAPACITY);
    let mut lanes: Vec<Sender> = (0..senders).map(|n| Sender::create(&topic, n)).collect();
    lanes.iter_mut().for_each(Sender::enter);
    let receivers: Vec<Receiver> = (0..sleepers).map(|n| Receiver::join(&topic, n)).collect();
    let lanes: Vec<Sender> = lanes
        .into_iter()
        .map(|lane| lane.warm_up(CAPACITY as u64))
        .collect();
    let receive = |mut receiver: Receiver| {
        move || {
            for _ in 0..count * senders {
                receiver.receive();
            }
        }
    };
    let send = |mut sender: Sender| move || (0..count).for_each(|_| sender.send(SMALL));
    let mut threads: Vec<Box<dyn FnOnce()>> = Vec::new();
    threads.extend(
        receivers
            .into_iter()
            .map(|receiver| Box::new(receive(receiver)) as Box<dyn FnOnce()>),
    );
    threads.extend(
        lanes
            .into_iter()
            .map(|sender| Box::new(send(sender)) as Box<dyn FnOnce()>),
    );
    let mine = threads.pop().unwrap();
    let others: Vec<_> = threads.into_iter().map(spawn).collect();
    mine();
    others.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A reader that sleeps again and again gets every message.
#[test]
fn one_sleeper() {
    model(3, || sleep_and_wake(1, 1, 2));
}

/// Two readers sleep on the same bell, and both are woken.
#[test]
fn two_sleepers() {
    model_of(3, 3, || sleep_and_wake(1, 2, 1));
}

/// Either of two senders wakes.
#[test]
fn two_senders() {
    model_of(3, 3, || sleep_and_wake(2, 1, 1));
}

/// Both together.
#[test]
fn two_of_each() {
    model_of(4, 1, || sleep_and_wake(2, 2, 1));
}

/// A sleeping reader wakes for a new lane, joins it, and receives what is sent there.
#[test]
fn sleep_until_a_lane_comes() {
    model(2, || {
        let topic = Topic::new(1, 1, CAPACITY);
        let mut receiver = Receiver::join(&topic, 0);
        let mut sender = Sender::create(&topic, 0);
        let reader = spawn(move || assert_eq!(receiver.receive(), (0, 0)));
        sender.enter();
        sender.send(SMALL);
        reader.join().unwrap();
    });
}

/// Who waits for a change of the roster sees it, and what was changed.
#[test]
fn await_a_change() {
    model(3, || {
        let topic = Topic::new(0, 2, CAPACITY);
        let waiter = spawn({
            let topic = Arc::clone(&topic);
            move || {
                loop {
                    let seen = roster::state(&topic.control);
                    if topic.cursor_names.list().count() == 2 {
                        return;
                    }
                    park::await_change(&topic.control, seen, Duration::MAX);
                }
            }
        });
        for n in 0..2 {
            topic.cursor_names.link(n);
            roster::changed(&topic.control);
        }
        waiter.join().unwrap();
    });
}

// --------------------------------------------------------------------------------------------------- waiting for room

/// A writer sleeps until its reader, which looks again and again, has made room.
#[test]
fn sleep_for_room() {
    model(2, || {
        let (sender, mut sources) = joined(1, CAPACITY);
        let mut sender = sender.warm_up(CAPACITY as u64);
        let reader = receive(sources.pop().unwrap(), 5);
        for _ in 0..5 {
            sender.send_sleeping(SMALL);
        }
        reader.join().unwrap();
    });
}

/// In a larger ring, where readers publish in batches, with larger frames and padding.
#[test]
fn sleep_for_room_in_batches() {
    model(2, || {
        let (sender, mut sources) = joined(1, 2 * CAPACITY);
        let mut sender = sender.warm_up(2 * CAPACITY as u64);
        let frames = [LARGE, LARGE, LARGE, SMALL, LARGE, LARGE];
        let reader = receive(sources.pop().unwrap(), frames.len() as u64);
        for words in frames {
            sender.send_sleeping(words);
        }
        reader.join().unwrap();
    });
}

/// Writer and reader both sleep.
#[test]
fn both_sleep() {
    model(2, || {
        let topic = Topic::new(1, 1, CAPACITY);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        let mut receiver = Receiver::join(&topic, 0);
        let mut sender = sender.warm_up(CAPACITY as u64);
        let reader = spawn(move || {
            for sequence in 0..5 {
                assert_eq!(receiver.receive(), (0, sequence));
            }
        });
        for _ in 0..5 {
            sender.send_sleeping(SMALL);
        }
        reader.join().unwrap();
    });
}

/// A writer sleeps for a reader that leaves instead of receiving all.
#[test]
fn reader_leaves() {
    model(2, || {
        let topic = Topic::new(1, 1, CAPACITY);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        let mut receiver = Receiver::join(&topic, 0);
        let mut sender = sender.warm_up(CAPACITY as u64);
        let reader = spawn(move || {
            if let Some((i, found)) = receiver.poll() {
                receiver.sources[i].take(found);
            }
            receiver.leave();
        });
        for _ in 0..6 {
            sender.send_sleeping(SMALL);
        }
        reader.join().unwrap();
    });
}

/// A writer sleeps for a reader that has not joined its lane yet: that one tells by the bell.
#[test]
fn sleep_for_a_joiner() {
    model(2, || {
        let topic = Topic::new(1, 1, CAPACITY);
        let mut receiver = Receiver::join(&topic, 0);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        for _ in 0..3 {
            sender.send(SMALL);
        }
        let reader = spawn(move || {
            for sequence in 0..4 {
                assert_eq!(receiver.receive(), (0, sequence));
            }
        });
        sender.send_sleeping(SMALL);
        reader.join().unwrap();
    });
}

// ---------------------------------------------------------------------------------------------------- closing, adopting

/// Who sees that a lane is closed sees all its frames.
#[test]
fn closed_after_the_last_frame() {
    model(3, || {
        let (sender, mut sources) = joined(1, CAPACITY);
        let mut sender = sender.warm_up(CAPACITY as u64);
        let mut source = sources.pop().unwrap();
        let reader = spawn(move || {
            loop {
                let closed = source.reader.is_closed();
                while let Some(found) = source.reader.next().unwrap() {
                    source.take(found);
                }
                if closed {
                    return assert_eq!(source.next, Some(2));
                }
                thread::yield_now();
            }
        });
        sender.lane.header().owner.closed.store(0, Relaxed);
        sender.send(SMALL);
        sender.send(SMALL);
        sender.close();
        reader.join().unwrap();
    });
}

/// A writer that dies at some point, in a ring that has lapped, and another one that goes on, while a reader reads.
fn adopt_after(death: impl Fn(&mut Sender) + Send + Sync + Copy + 'static) {
    model(2, move || {
        let (mut sender, mut sources) = joined(1, CAPACITY);
        let reader = receive(sources.pop().unwrap(), 5);
        for _ in 0..3 {
            sender.send(SMALL);
        }
        death(&mut sender);
        let Sender { topic, .. } = sender;
        // The lock that the dead one held is what the next one takes: all it did happened before.
        let mut sender = Sender::adopt(&topic, 0, 3);
        sender.send(SMALL);
        sender.send(SMALL);
        reader.join().unwrap();
    });
}

/// Nothing is lost of what was visible, and nothing is seen of what was not.
#[test]
fn adopted_between_messages() {
    adopt_after(|_| {});
}

/// It had a loan open, and had written garbage to it, over the wrap, where padding is held for it.
#[test]
fn adopted_with_an_open_loan() {
    adopt_after(|sender| {
        sender.loan(LARGE);
    });
}

/// It had staged a run, but not published it.
#[test]
fn adopted_with_a_staged_run() {
    adopt_after(|sender| {
        while let Ok(at) = sender.lane.claim(SMALL * 8) {
            sender.lane.ring().write(at, &[0xdead]);
            sender.lane.stage(SMALL * 8);
        }
    });
}

/// It had a loan, cut short, then another one dropped, then one left open.
#[test]
fn adopted_after_dropped_loans() {
    adopt_after(|sender| {
        sender.drop_loan(LARGE);
        sender.drop_loan(SMALL);
        sender.loan(SMALL);
    });
}

// -------------------------------------------------------------------------------------------------- from the outside

/// Looks from the outside: goes on for some frames from a boundary record that holds. What is believed must be right.
fn observe(topic: &Topic, record: impl Fn(&Outside) -> Option<Boundary>, frames: usize) {
    let LaneFile { header, ring } = &topic.lanes[0];
    let ring = &ring.unwatched();
    let outside = Outside { header, ring };
    let Some(mut boundary) = record(&outside) else {
        return;
    };
    assert_eq!(boundary.bytes, boundary.sequence * 8, "a record is torn");
    assert_eq!(
        boundary.position,
        boundary.sequence * 16,
        "a record is torn"
    );
    for _ in 0..frames {
        let Some((found, payload)) = outside.frame(boundary.position, true) else {
            return;
        };
        let words: Vec<u64> = payload
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(
            u64::from(found.word.sequence()),
            boundary.sequence,
            "a wrong frame"
        );
        assert_eq!(
            words,
            [content(0, boundary.sequence, 0)],
            "message {} is torn",
            boundary.sequence
        );
        boundary.pass(found);
    }
}

/// Three messages, then some more while an observer, which holds nobody up, looks.
fn observed(
    more: &[usize],
    record: impl Fn(&Outside) -> Option<Boundary> + Copy + 'static,
    frames: usize,
) {
    let topic = Topic::new(1, 0, CAPACITY);
    let mut sender = Sender::create(&topic, 0);
    sender.enter();
    for _ in 0..3 {
        sender.send(SMALL);
    }
    let observer = spawn({
        let topic = Arc::clone(&topic);
        move || observe(&topic, record, frames)
    });
    for &words in more {
        sender.send(words);
    }
    observer.join().unwrap();
}

/// An observer at the newest boundary.
#[test]
fn observer_of_the_newest() {
    model(2, || {
        observed(&[SMALL; 3], |outside| Some(outside.newest()?.1), 2)
    });
}

/// An observer at an older boundary, which the writer laps: it believes nothing that is overwritten.
#[test]
fn observer_is_lapped() {
    model(2, || {
        observed(&[SMALL, LARGE], |outside| outside.record(1), 1)
    });
}

/// The same when the writer dies, and another one goes on.
#[test]
fn observer_of_an_adopted_lane() {
    model(2, || {
        let topic = Topic::new(1, 0, CAPACITY);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        for _ in 0..3 {
            sender.send(SMALL);
        }
        let observer = spawn({
            let topic = Arc::clone(&topic);
            move || observe(&topic, |outside| Some(outside.newest()?.1), 1)
        });
        sender.send(SMALL);
        let at = sender.loan(SMALL);
        drop((sender, at));
        let mut sender = Sender::adopt(&topic, 0, 4);
        sender.send(SMALL);
        sender.send(SMALL);
        observer.join().unwrap();
    });
}
