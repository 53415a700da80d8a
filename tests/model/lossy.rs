//! Readers of a lossy lane, whom the writer does not wait for; and readers of a lossless one that begin with what was sent
//! before they came.

use std::convert::Infallible;
use std::sync::Arc;

use buslane::shm::View;
use buslane::shm::lane::{Boundary, Outside, Reader, Trouble, Writer};
use buslane::shm::layout::Slot;
use buslane::shm::roster::{self, Lowest};
use buslane::shm::sync::Ordering;

use super::{CAPACITY, LARGE, LaneFile, SMALL, Sender, Topic, content, model, spawn};

/// The writer of a lossy lane.
struct Lossy {
    lane: Writer,
    sent: u64,
}

impl Lossy {
    fn create(file: &LaneFile) -> Self {
        Self {
            lane: Writer::create(file.header.clone(), file.ring.clone(), 0),
            sent: 0,
        }
    }

    fn send(&mut self, words: usize) {
        let at = self.lane.claim(words * 8).unwrap_or_else(|full| {
            let Ok(_) = self
                .lane
                .extend(full.end, |_| Ok::<_, Infallible>(Lowest::nobody()));
            self.lane.claim(words * 8).unwrap()
        });
        let payload: Vec<u64> = (0..words).map(|i| content(0, self.sent, i)).collect();
        self.lane.ring().write(at, &payload);
        self.lane.commit(words * 8);
        self.sent += 1;
    }
}

/// A reader that counts what it was given and what it was told that it missed.
struct Counting {
    reader: Reader,
    next: u64,
    bytes: u64,
}

impl Counting {
    fn new(file: &LaneFile, at: Boundary) -> Self {
        Self::with(file, View::all(vec![Slot::default()]), at)
    }

    /// `pubsub::Receiver` of a lossy subscriber, joining a lossless lane that came after it.
    fn join(topic: &Topic) -> Self {
        let (cursor, file) = (&topic.cursors[0], &topic.lanes[0]);
        let Ok(slot) = cursor.take_slot(|_| Ok::<_, Infallible>(()));
        let at = Boundary::default();
        roster::enter(&topic.control, 1, &cursor.slots[slot], at.position);
        let mut counting = Self::with(file, cursor.slots.clone(), at);
        counting.reader.track().publish();
        cursor.set_joined();
        roster::changed(&topic.control);
        counting
    }

    fn with(file: &LaneFile, slots: View<[Slot]>, at: Boundary) -> Self {
        let ring = file.ring.unwatched();
        Self {
            reader: Reader::copying(file.header.clone(), ring, slots, 0, at, false),
            next: at.sequence,
            bytes: at.bytes,
        }
    }

    /// One look; whether anything was there.
    fn look(&mut self) -> bool {
        match self.reader.next() {
            Ok(None) => return false,
            Ok(Some(found)) => {
                assert_eq!(u64::from(found.word.sequence()), self.next, "a wrong frame");
                let words = found.word.len() / 8;
                let expected: Vec<u64> = (0..words as usize)
                    .map(|i| content(0, self.next, i))
                    .collect();
                assert_eq!(self.reader.copied(), expected, "a torn message");
                self.reader.track().release(found.end(), 0);
                self.next += 1;
                self.bytes += found.word.len();
            }
            Err(Trouble::Missed(missed)) => {
                self.next += missed.messages;
                self.bytes += missed.bytes;
                self.reader.resume();
            }
            Err(Trouble::Corrupt(corrupt)) => panic!("{corrupt:?}"),
        }
        true
    }

    /// Reads to the end: together with what was missed, that is all that was sent.
    fn drain(mut self, sent: u64, bytes: u64) {
        while self.look() {}
        assert_eq!((self.next, self.bytes), (sent, bytes));
    }
}

/// Messages of so many words before the reader begins and then while it reads.
fn lapped(before: &'static [usize], meanwhile: &'static [usize], looks: usize) {
    let topic = Topic::new(1, 0, CAPACITY);
    let mut writer = Lossy::create(&topic.lanes[0]);
    before.iter().for_each(|&words| writer.send(words));
    let reader = spawn({
        let topic = Arc::clone(&topic);
        move || {
            let mut reader = Counting::new(&topic.lanes[0], Boundary::default());
            for _ in 0..looks {
                reader.look();
            }
            reader
        }
    });
    meanwhile.iter().for_each(|&words| writer.send(words));
    let words: usize = before.iter().chain(meanwhile).sum();
    reader.join().unwrap().drain(writer.sent, words as u64 * 8);
}

/// The reader is in the midst of a message when the writer comes round.
#[test]
fn lossy_reader_is_lapped() {
    model(2, || lapped(&[SMALL; 3], &[SMALL; 2], 1));
}

/// It had been lapped before it began, and is again: it goes on at the floor, twice.
#[test]
fn lossy_reader_is_lapped_again() {
    model(1, || lapped(&[SMALL; 6], &[SMALL; 2], 2));
}

/// Frames of both sizes, with padding.
#[test]
fn lossy_reader_meets_padding() {
    model(2, || lapped(&[SMALL, LARGE], &[LARGE], 2));
}

/// It begins with the last message but one, while the writer goes on.
#[test]
fn lossy_reader_joins() {
    model(1, || {
        let topic = Topic::new(1, 0, CAPACITY);
        let mut writer = Lossy::create(&topic.lanes[0]);
        (0..3).for_each(|_| writer.send(SMALL));
        let reader = spawn({
            let topic = Arc::clone(&topic);
            move || {
                let LaneFile { header, ring } = &topic.lanes[0];
                let ring = &ring.unwatched();
                let at = Outside { header, ring }.start(1, 0).unwrap();
                assert!(at.sequence >= 2, "older than was asked for");
                let mut reader = Counting::new(&topic.lanes[0], at);
                reader.look();
                reader
            }
        });
        (0..2).for_each(|_| writer.send(SMALL));
        reader.join().unwrap().drain(writer.sent, writer.sent * 8);
    });
}

/// A reader that is waited for begins with the oldest message that is held, while the writer, whom nobody held up before,
/// goes on: from there on it receives everything, and nothing of it is overwritten.
#[test]
fn join_from_the_oldest() {
    model(1, || {
        let topic = Topic::new(1, 1, CAPACITY);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        for _ in 0..4 {
            sender.send(SMALL);
        }
        let reader = spawn({
            let topic = Arc::clone(&topic);
            move || {
                let mut source = super::Receiver::join_from(&topic, 0, |outside, from| {
                    Some(outside.first_from(from)?.position)
                })
                .only();
                source.look(1);
                source
            }
        });
        for _ in 0..2 {
            sender.try_send(SMALL);
        }
        let first = reader.join().unwrap().drain(sender.sent);
        assert!(first < sender.sent, "nothing of what was held");
    });
}

/// A subscriber of a lossless topic that asks nobody to wait for it, and a lane that came later: the writer waits until it has
/// joined, and no longer; with what it is told that it missed, it gets all from the beginning. (Who joins by what is held does that
/// as of a lossy lane: see `lossy_reader_joins`.)
#[test]
fn lossy_subscriber_joins_a_lane() {
    model(1, || {
        let topic = Topic::new(1, 1, CAPACITY);
        topic.cursors[0].set_lossy();
        topic.cursors[0].header.used.store(0, Ordering::Relaxed);
        topic.cursor_names.link(0);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        let reader = spawn({
            let topic = Arc::clone(&topic);
            move || {
                let mut reader = Counting::join(&topic);
                reader.look();
                reader
            }
        });
        for _ in 0..4 {
            sender.try_send(SMALL);
        }
        let reader = reader.join().unwrap();
        for _ in 0..4 {
            assert!(sender.try_send(SMALL), "it is waited for");
        }
        reader.drain(sender.sent, sender.sent * 8);
    });
}
