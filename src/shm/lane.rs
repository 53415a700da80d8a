//! One lane: a ring of frames with one writer and any number of readers. Writing half, invariant, reading half.
//!
//! # The invariant that both halves share
//!
//! *When the `Release` that makes position `e` reachable executes, the word at `e` is 0.* So a reader that has
//! followed the words up to `e` finds 0 until the frame there is committed, never what an earlier lap left.
//!
//! The writer keeps it with `cleared`: the first word of every slot in `[tail, cleared)` is 0, except under an open
//! loan, and `tail + 16 <= cleared` but while a run is held back. What is written ends at least one slot before `limit`, and nothing at or past
//! `limit` is touched, because `limit - capacity` is where the slowest reader still reads.
//!
//! ```text
//!  slowest reader        tail        cleared                  limit
//!        |  frames ...    | 0 0 0 0 0 0 |  what the last lap left |  frames of the last lap, still read
//! ```
//!
//! # Every shared word, its writer and its ordering
//!
//! | word | written by | ordering and its partner |
//! |---|---|---|
//! | frame word | the writer | `Release` in [`show`], with the `Acquire` fence in [`see_what_is_behind`]: the payload, and the 0 behind the frame |
//! | `mark` | the writer | `Release` in [`Writer::extend`], with the `SeqCst` fence in `roster::join`: the words from there on |
//! | `limit` | the writer | before the `SeqCst` fence of `extend`; with the `SeqCst` fence of `roster::join`, either the writer sees the slot or the joiner the limit |
//! | `floor` | the writer | a `Release` fence before what lies below is overwritten, with the `Acquire` fence in [`Outside::holds`] |
//! | `records` | the writer | `position` last, `Release`, with the `Acquire` fence in [`Outside::records`] |
//! | `closed` | the lock's holder | `Release` in [`close`], with the `Acquire` fence in [`is_closed`]: the last frames |
//! | slot position | the reader | `Release` in [`Track::publish`], with the `Acquire` fence in `roster::Readers::lowest`: the reader's loads of what is then overwritten |
//! | `want` | the writer | `park` has both sides |

#[cfg(not(loom))]
use std::mem::offset_of;

#[cfg(not(loom))]
use super::bytes::Places;
#[cfg(not(loom))]
use super::haul::Haul;
#[cfg(not(loom))]
use super::layout::{EnvelopeHead, max_len};
use super::layout::{
    LEFT, LaneHeader, NOBODY, RECORDS, SLOT, Slot, Word, checked_size, frame_size,
};
#[cfg(not(loom))]
use super::log::{self, Search};
use super::roster::Lowest;
use super::sync::{AtomicU64, Ordering, fence, light_fence};
use super::{Ring, View, futex};
#[cfg(not(loom))]
use crate::error::Error;
#[cfg(not(loom))]
use zerocopy::Immutable;
use zerocopy::IntoBytes;

/// How far behind the place of the next frame slots are cleared, in bytes.
#[derive(Clone, Copy, Debug)]
struct Ahead {
    /// While frames are small: a reader passes many before it comes to what was cleared.
    small: u64,
    /// While they are not.
    other: u64,
    /// Bytes of the shortest payload that takes either way of [`Haul`]: shorter ones have too many lines that are written only in
    /// part.
    hauled: u64,
}

/// While many come.
const MANY: Ahead = Ahead {
    small: 2048,
    other: 384,
    hauled: LONG,
};
/// While they come singly: what was cleared just now is still in the nearest cache, and is the sooner written (small ones: up to
/// the end of the line), and read.
const SINGLY: Ahead = Ahead {
    small: 0,
    other: 192,
    hauled: MAX_CLEARED,
};
/// Bytes of a small frame.
const SMALL: u64 = 2 * SLOT;
/// Bytes of a run of frames that become visible together; at most a quarter of the ring.
const RUN: u64 = 4096;
/// Bytes of the longest frame whose place is cleared beforehand. Of a longer one only the word behind it is, at its commit.
const MAX_CLEARED: u64 = 8192;
/// Bytes of the shortest payload that is long: its frame has more than a KiB.
const LONG: u64 = 1017;

/// No lane comes this far; a position from another process that does is no position. Behind it there is room for a few laps of any
/// lane, in files or not.
pub(super) const MAX_POSITION: u64 = u64::MAX - 16 * super::layout::MAX_CAPACITY as u64;
/// The position of a boundary record that was not made yet.
const UNUSED: u64 = u64::MAX;

/// A frame that contradicts its ring: the writer did not keep the protocol, or the memory was damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// Where it starts.
    pub position: u64,
    /// Its word.
    pub word: u64,
}

/// Messages that were overwritten before their reader came to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// How many.
    pub messages: u64,
    /// Payload bytes in them.
    pub bytes: u64,
}

/// Why a reader can't simply go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The lane contradicts itself.
    Corrupt(Corrupt),
    /// The writer of a lossy lane was faster.
    Missed(Missed),
}

impl From<Corrupt> for Trouble {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}

/// The claim does not end before the limit in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// The limit that it needs.
    pub end: u64,
}

/// A frame found at a position; `word` was loaded once and checked.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Where the frame starts.
    pub position: u64,
    /// Its word.
    pub word: Word,
}

/// A message found at a reader's position, of which nothing but the word was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Its word.
    pub word: Word,
    /// Bytes in it.
    len: u64,
    /// Where the next frame starts.
    pub end: u64,
}

/// Messages that lie one behind the other, and of which nothing but the words was loaded, and envelopes where that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The first one.
    pub first: Found,
    /// Where the next frame starts.
    pub end: u64,
    /// How many: at least one.
    pub messages: usize,
    /// Bytes in each, if that was asked for, and all are plain ones.
    pub len: Option<u64>,
    /// Nothing was behind them.
    pub is_last: bool,
}

/// The payloads of messages that lie one behind the other, and are alike.
#[cfg(not(loom))]
#[derive(Clone, Debug)]
pub struct Payloads<'a>(Places<'a>);

#[cfg(not(loom))]
impl<'a> Iterator for Payloads<'a> {
    type Item = &'a [u8];

    #[inline(always)]
    fn next(&mut self) -> Option<&'a [u8]> {
        // Committed, and not released: the batch that borrows their reader releases them.
        Some(self.0.next()?.payload())
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

/// Why there is no plain message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotPlain {
    /// There is nothing yet.
    Nothing,
    /// There may be something: that is for [`Reader::next`].
    Other,
}

impl Found {
    /// Where the next frame starts.
    #[inline]
    pub fn end(&self) -> u64 {
        self.position.wrapping_add(self.word.size())
    }

    /// Where what it carries starts: its payload, with the envelope before it.
    #[inline]
    pub fn body(&self) -> u64 {
        self.position + 8
    }
}

/// The word at a frame boundary, 0 while there is no frame: the only place where one is loaded by who does not write it.
/// Before anything behind it is read comes [`see_what_is_behind`].
#[inline(always)]
fn load_word(ring: &Ring, position: u64) -> Word {
    // `Relaxed` and a fence, not `Acquire`: a reader's mapping is read-only.
    Word(ring.head(position).load(Ordering::Relaxed))
}

/// After a word was loaded that is not 0, or a record.
#[inline(always)]
fn see_what_is_behind() {
    // Pairs with the `Release` store of this word, or of the first word of its run: payload and next 0 are visible.
    fence(Ordering::Acquire);
}

/// The frame at `position`, padding or message; `None` while there is none.
#[inline]
pub(super) fn frame_at(ring: &Ring, position: u64) -> Result<Option<Found>, Corrupt> {
    let word = load_word(ring, position);
    if word.is_message_without_checksum() && ring.holds(position, word.len()) {
        see_what_is_behind();
        return Ok(Some(Found { position, word }));
    }
    frame_rarely(ring, position)
}

/// The same of what is nothing yet, padding, in data files, or no frame.
#[inline(never)]
fn frame_rarely(ring: &Ring, position: u64) -> Result<Option<Found>, Corrupt> {
    // Its file may be there, and not in reach yet; or another one may be in its place.
    if !ring.arrive(position) {
        return Err(Corrupt { position, word: 0 });
    }
    check_frame(ring, position, load_word(ring, position))
}

/// The frame at `position` for who looks from outside, perhaps at another user's lane.
fn frame_outside(ring: &Ring, position: u64) -> Result<Option<Found>, Corrupt> {
    if !ring.is_foreign() {
        return frame_at(ring, position);
    }
    let mut word = Vec::with_capacity(1);
    match ring.copy_out(position, 8, &mut word) {
        true => check_frame(ring, position, Word(word[0])),
        false => Err(Corrupt { position, word: 0 }),
    }
}

fn check_frame(ring: &Ring, position: u64, word: Word) -> Result<Option<Found>, Corrupt> {
    if word.0 == 0 {
        return Ok(None);
    }
    see_what_is_behind();
    let is_frame = word.is_frame_without_checksum() || word.is_frame_with_checksum();
    let fits = word.size() <= ring.to_end(position);
    match is_frame && fits && word.has_checksum() == ring.is_checked() {
        true => Ok(Some(Found { position, word })),
        false => Err(Corrupt {
            position,
            word: word.0,
        }),
    }
}

/// Whether a frame is as it was written, as far as there is a checksum to say so.
#[cfg(not(loom))]
#[inline(always)]
pub(super) fn is_whole(ring: &Ring, found: Found) -> bool {
    !ring.is_checked() || log::is_whole(ring, found)
}

#[cfg(loom)]
pub(super) fn is_whole(_ring: &Ring, _found: Found) -> bool {
    true
}

/// Whether a frame may begin at a position.
#[inline]
pub fn is_boundary(position: u64) -> bool {
    position < MAX_POSITION && position.is_multiple_of(SLOT)
}

/// Walks from a frame boundary to the first empty word, or the first boundary at or past `until`.
pub fn walk(
    ring: &Ring,
    from: u64,
    until: u64,
    mut visit: impl FnMut(Found),
) -> Result<u64, Corrupt> {
    if !is_boundary(from) {
        let (position, word) = (from, 0);
        return Err(Corrupt { position, word });
    }
    let mut position = from;
    while position < until {
        let Some(found) = frame_at(ring, position)? else {
            break;
        };
        visit(found);
        position = found.end();
    }
    Ok(position)
}

// ---------------------------------------------------------------------------------------------------- writing half

/// The one writer of a lane.
#[derive(Debug)]
pub struct Writer {
    header: View<LaneHeader>,
    ring: Ring,
    /// Where the next frame starts. Behind [`Self::visible`] while a run is held back.
    tail: u64,
    /// The end of what may be written; never above what was published, never lowered.
    limit: u64,
    /// The nearer of `limit` and the end of the ring; at or before it when they have moved.
    bound: u64,
    /// See the invariant.
    cleared: u64,
    /// Bytes of the longest frame that is prepared for now, and of the slot behind it.
    longest: u64,
    /// Up to where only the message itself has to be written: at most `bound`, `cleared`, and the end of the longest such
    /// frame; 0 while a run is held back.
    prepared: u64,
    /// Up to where frames may be added to the run that is held back.
    run_end: u64,
    sent: Sent,
    /// Where the last loan ends, and up to where slots behind it were cleared then: they are still.
    lent: (u64, u64),
    /// First frame of a run of frames that become visible together, and its word; 0: there is none.
    first: (u64, Word),
    ahead: Ahead,
    /// How many boundary records were made.
    recorded: usize,
    #[cfg(not(loom))]
    haul: Haul,
}

/// What was sent, with what is staged.
#[derive(Debug)]
struct Sent {
    /// Number of the next message.
    sequence: u64,
    /// Bytes that are neither payload nor the word before one. (That changes less often than the bytes that are.)
    slack: u64,
}

impl Sent {
    fn before(tail: Boundary) -> Self {
        let Boundary {
            position,
            sequence,
            bytes,
        } = tail;
        // Boundaries come from the lane's header: they may be anything.
        let words = sequence.wrapping_mul(8);
        let slack = position.wrapping_sub(words).wrapping_sub(bytes);
        Self { sequence, slack }
    }

    /// A message of `len` bytes, in a frame of `size`.
    #[inline(always)]
    fn count(&mut self, len: u64, size: u64) {
        self.count_many(1, len, size);
    }

    /// So many of them.
    #[inline(always)]
    fn count_many(&mut self, messages: u64, len: u64, size: u64) {
        self.sequence = self.sequence.wrapping_add(messages);
        let slack = messages * (size - 8 - len);
        self.slack = self.slack.wrapping_add(slack);
    }

    /// Payload bytes up to the tail.
    fn bytes(&self, tail: u64) -> u64 {
        tail.wrapping_sub(self.sequence.wrapping_mul(8))
            .wrapping_sub(self.slack)
    }
}

impl Writer {
    /// The writer of a lane that nobody has seen yet, whose positions begin at `origin` (0, but in tests).
    pub fn create(header: View<LaneHeader>, ring: Ring, origin: u64) -> Self {
        header.want.store(NOBODY, Ordering::Relaxed);
        header.mark.store(origin, Ordering::Relaxed);
        header.limit.store(origin, Ordering::Relaxed);
        header.floor.store(origin, Ordering::Relaxed);
        for record in &header.records {
            record.position.store(UNUSED, Ordering::Relaxed);
        }
        header.records[0].sequence.store(0, Ordering::Relaxed);
        header.records[0].bytes.store(0, Ordering::Relaxed);
        header.records[0].position.store(origin, Ordering::Relaxed);
        ring.head(origin).store(0, Ordering::Relaxed);
        Self::at(
            header,
            ring,
            Boundary {
                position: origin,
                sequence: 0,
                bytes: 0,
            },
            1,
        )
    }

    /// Goes on where the lane's last writer, who has gone, stopped: at the first word that is 0. Frames that it had
    /// not made visible never were.
    pub fn adopt(header: View<LaneHeader>, ring: Ring) -> Result<Self, Corrupt> {
        let (index, tail) = find_tail(&header, &ring)?;
        header.want.store(NOBODY, Ordering::Relaxed);
        header.owner.closed.store(0, Ordering::Relaxed);
        Ok(Self::at(header, ring, tail, index + 1))
    }

    fn at(header: View<LaneHeader>, ring: Ring, tail: Boundary, recorded: usize) -> Self {
        let Boundary { position, .. } = tail;
        let first_slot = position + SLOT;
        let first = (position, Word(0));
        // A model's ring is too small for the rule.
        #[cfg(loom)]
        let longest = ring.capacity();
        #[cfg(not(loom))]
        let longest = longest(ring.capacity(), LONG - 1);
        Self {
            #[cfg(not(loom))]
            haul: Haul::new(ring.capacity(), position),
            header,
            ring,
            tail: position,
            limit: first_slot,
            bound: 0,
            cleared: first_slot,
            longest,
            prepared: 0,
            run_end: 0,
            sent: Sent::before(tail),
            lent: (0, 0),
            first,
            ahead: MANY,
            recorded,
        }
    }

    /// The lane's header.
    pub fn header(&self) -> &View<LaneHeader> {
        &self.header
    }

    /// Bytes in the ring.
    pub fn capacity(&self) -> u64 {
        self.ring.capacity()
    }

    /// The number that the next message gets.
    pub fn next_sequence(&self) -> u64 {
        self.sent.sequence
    }

    /// The end of what readers can see.
    pub fn visible(&self) -> u64 {
        if self.has_run() {
            self.first.0
        } else {
            self.tail
        }
    }

    #[inline]
    fn has_run(&self) -> bool {
        self.first.1.0 != 0
    }

    /// Sends a message, if it is all that has to be written: nearly always, if it is short and like the one before it.
    #[cfg(not(loom))]
    #[inline(always)]
    pub fn put(&mut self, payload: &[u8]) -> bool {
        let len = payload.len() as u64;
        let (size, prepared) = (frame_size(len), self.prepared);
        let end = self.tail + size;
        // So many small ones are prepared for at once, in a stream, that not to look afterwards is worth it.
        let next = if size <= SMALL { size } else { 0 };
        if end + next + SLOT > prepared {
            return false;
        }
        let place = self.ring.place(self.tail, payload.len());
        // As in `write`.
        place.fill(payload);
        let word = self.next_word(payload.len());
        self.sent.count(len, size);
        self.tail = end;
        show(place.head(), word);
        if end + size + SLOT > prepared {
            self.prepare(size);
        }
        true
    }

    /// The same, if there is room before the end of the ring and the limit in use.
    #[cfg(not(loom))]
    pub fn put_unprepared(&mut self, payload: &[u8]) -> bool {
        let size = frame_size(payload.len() as u64);
        if self.has_run() || self.tail + size + SLOT > self.bound {
            return false;
        }
        self.write(self.tail + 8, payload);
        self.commit_unprepared(self.next_word(payload.len()));
        true
    }

    /// The word of the next message, of `len` bytes.
    #[inline(always)]
    fn next_word(&self, len: usize) -> Word {
        Word::message(len as u64, self.sent.sequence)
    }

    /// Claims the next frame for `len` bytes (at most [`max_len`](super::layout::max_len)) and says where its payload goes. Claims nothing if it is full.
    #[inline(always)]
    pub fn claim(&mut self, len: usize) -> Result<u64, Full> {
        let size = frame_size(len as u64);
        if !self.is_prepared(size) && self.tail + size + SLOT > self.bound {
            self.claim_past_bound(len)?;
        }
        Ok(self.tail + 8)
    }

    /// Whether frames of this size together are all that has to be written: there is room, what is behind them is cleared,
    /// and there is no run.
    #[inline(always)]
    fn is_prepared(&self, size: u64) -> bool {
        self.tail + size + SLOT <= self.prepared
    }

    /// Behind the end of the ring, or of the limit: pads up to the former, and says if the latter is too near.
    fn claim_past_bound(&mut self, len: usize) -> Result<(), Full> {
        if self.ring.is_checked() {
            return Err(Full { end: self.tail });
        }
        let (padding, end) = self.measure(len);
        if end > self.limit {
            return Err(Full { end });
        }
        if padding > 0 {
            self.sent.slack = self.sent.slack.wrapping_add(padding);
            self.hold(Word::padding(padding, self.sent.sequence));
        }
        self.set_bound();
        Ok(())
    }

    /// Claims the next frame for `len` bytes in data files; as [`claim`](Self::claim), which claims nothing there.
    #[cfg(not(loom))]
    pub fn claim_in_file(&mut self, len: usize) -> Result<u64, Full> {
        if self.has_run() || self.lent.0 != 0 {
            // A loan that was forgotten.
            self.abort();
        }
        let (padding, end) = self.measure(len);
        if end > self.limit {
            return Err(Full { end });
        }
        if padding > 0 {
            let word = self.seal(Word::padding(padding - 8, self.sent.sequence));
            self.sent.slack = self.sent.slack.wrapping_add(padding);
            self.hold(word);
        }
        Ok(self.tail + 8)
    }

    /// A frame that is written but for its word, of a lane with checksums: its word.
    #[cfg(not(loom))]
    #[inline(never)]
    fn seal(&mut self, word: Word) -> Word {
        // As in `write`.
        let word = log::seal(&self.ring, self.tail, word);
        let end = self.tail + word.size();
        self.clear_lent(end);
        word
    }

    #[cfg(loom)]
    fn seal(&mut self, word: Word) -> Word {
        word
    }

    /// The padding before a frame for `len` bytes, and the limit that it needs.
    fn measure(&self, len: usize) -> (u64, u64) {
        let to_end = self.ring.to_end(self.tail);
        let (size, needed) = match self.ring.is_checked() {
            false => (frame_size(len as u64), frame_size(len as u64)),
            // A file always ends with padding: so it is known what is before the next one when a writer comes to it.
            true => (checked_size(len as u64), checked_size(len as u64) + SLOT),
        };
        let padding = if needed > to_end { to_end } else { 0 };
        (padding, self.tail + padding + size + SLOT)
    }

    /// The limit that a claim for `len` bytes needs.
    #[cfg(not(loom))]
    pub fn needed(&self, len: usize) -> u64 {
        self.measure(len).1
    }

    /// Where the frame begins that a claim for `len` bytes would claim.
    #[cfg(not(loom))]
    pub fn next_boundary(&self, len: usize) -> Boundary {
        let (padding, _) = self.measure(len);
        Boundary {
            position: self.tail + padding,
            sequence: self.sent.sequence,
            bytes: self.sent.bytes(self.tail),
        }
    }

    /// The end of what readers can see, and what is before it.
    #[cfg(not(loom))]
    pub fn boundary(&self) -> Boundary {
        Boundary {
            position: self.visible(),
            sequence: self.sent.sequence,
            bytes: self.sent.bytes(self.tail),
        }
    }

    /// Whether a claim for `len` bytes would find room.
    pub fn has_room(&self, len: usize) -> Result<(), Full> {
        match self.measure(len) {
            (_, end) if end > self.limit => Err(Full { end }),
            _ => Ok(()),
        }
    }

    /// Up to where a claim needs neither padding nor a look at the limit.
    fn set_bound(&mut self) {
        let ring_end = self.tail + self.ring.to_end(self.tail);
        self.bound = self.limit.min(ring_end + SLOT);
    }

    /// Writes `payload` where [`claim`](Self::claim) said.
    #[cfg(not(loom))]
    #[inline]
    pub fn write(&mut self, at: u64, payload: &[u8]) {
        // Readers stop at the 0 at `tail`, and the claim ends before `limit`.
        match (payload.len() as u64) < LONG {
            true => self.ring.copy_in(at, payload),
            false => self.write_long(at, payload),
        }
    }

    #[cfg(not(loom))]
    #[inline(never)]
    fn write_long(&mut self, at: u64, payload: &[u8]) {
        // As in `write`.
        match (payload.len() as u64) < self.ahead.hauled {
            true => self.ring.copy_in(at, payload),
            false => self.haul.copy(&self.ring, at, payload),
        }
    }

    /// Writes the beginning of an envelope: word by word, as it was made just now.
    #[cfg(not(loom))]
    #[inline(always)]
    pub fn write_head(&self, at: u64, head: &EnvelopeHead) {
        let words: [u64; EnvelopeHead::SIZE / 8] = zerocopy::transmute!(*head);
        for (at, word) in (at..).step_by(8).zip(words) {
            // As in `write`.
            self.ring.word(at).store(word, Ordering::Relaxed);
        }
    }

    /// Lets a claim be written in place with [`loan`](Self::loan): also if it is never given back, the words there are
    /// not taken for cleared any more.
    #[inline]
    pub fn open_loan(&mut self, len: usize) {
        self.lent = (self.tail + frame_size(len as u64), self.cleared);
        self.expose();
    }

    /// The claimed bytes, to be written in place. They hold what was there before.
    #[cfg(not(loom))]
    #[inline]
    pub fn loan(&mut self, at: u64, len: usize) -> &mut [u8] {
        // Readers stop at the 0 at `tail`, and the claim ends before `limit`.
        self.ring.loan(at, len)
    }

    /// The same, to be read.
    #[cfg(not(loom))]
    #[inline]
    pub fn loaned(&self, at: u64, len: usize) -> &[u8] {
        self.ring.loaned(at, len)
    }

    /// Its data files.
    #[cfg(not(loom))]
    pub fn files(&self) -> &Ring {
        &self.ring
    }

    /// A model's ring, to write a claimed payload to.
    #[cfg(loom)]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Adds a message to the run that [`publish`](Self::publish) makes visible, if it is short, and there is room before the end
    /// of the ring and the limit in use.
    #[cfg(not(loom))]
    #[inline(always)]
    pub fn put_in_run(&mut self, payload: &[u8]) -> bool {
        let size = frame_size(payload.len() as u64);
        // One alone is no run: it would wait for the one behind it.
        let (run_end, needed) = match self.has_run() {
            true => (self.run_end, size),
            false => (self.end_of_run(), 2 * size),
        };
        let fits = self.tail + needed + SLOT <= run_end;
        if fits {
            // As in `write`.
            self.ring.place(self.tail, payload.len()).fill(payload);
            self.add_to_run(self.next_word(payload.len()));
            self.run_end = run_end;
        }
        fits
    }

    /// The same of many messages, as far as they fit: how many.
    #[cfg(not(loom))]
    #[inline]
    pub fn put_row<T: IntoBytes + Immutable>(&mut self, messages: &[T]) -> usize {
        let Some((first, rest)) = messages.split_first() else {
            return 0;
        };
        if !self.put_in_run(first.as_bytes()) {
            return 0;
        }
        let len = size_of::<T>();
        let size = frame_size(len as u64);
        let room = self.run_end.saturating_sub(self.tail + SLOT) / size;
        let row = &rest[..rest.len().min(room as usize)];
        let mut places = self.ring.places(self.tail, len, row.len());
        let mut sequence = self.sent.sequence;
        for message in row {
            let Some(place) = places.next() else { break };
            // As in `write`, and in `hold`.
            let word = Word::message(len as u64, sequence);
            place.fill_unseen(word.0, message.as_bytes());
            sequence = sequence.wrapping_add(1);
        }
        self.sent.count_many(row.len() as u64, len as u64, size);
        self.tail += row.len() as u64 * size;
        1 + row.len()
    }

    /// Where a run ends that begins at the tail, at the latest.
    #[cfg(not(loom))]
    #[inline(always)]
    fn end_of_run(&self) -> u64 {
        let bytes = RUN.min(self.ring.capacity() / 4);
        self.bound.min(self.tail + bytes)
    }

    /// Makes the claimed frame visible, with `len` bytes (at most those claimed), and any run before it.
    #[inline]
    pub fn commit(&mut self, len: usize) {
        self.commit_word(self.next_word(len));
    }

    /// The same of a frame whose `len` bytes begin with an envelope.
    #[cfg(not(loom))]
    #[inline]
    pub fn commit_with_envelope(&mut self, len: usize) {
        self.commit_word(self.next_word(len).with_envelope());
    }

    #[inline(always)]
    fn commit_word(&mut self, word: Word) {
        let size = word.size();
        if !self.is_prepared(size) {
            return self.commit_unprepared(word);
        }
        let at = self.tail;
        self.sent.count(word.len(), size);
        self.tail += size;
        show(self.ring.head(at), word);
        if !self.is_prepared(size) {
            self.prepare(size);
        }
    }

    #[inline(never)]
    fn commit_unprepared(&mut self, word: Word) {
        let word = match self.ring.is_checked() {
            false => word,
            true => self.seal(word),
        };
        self.add_to_run(word);
        let (end, cleared) = self.lent;
        if self.tail == end {
            self.cleared = self.cleared.max(cleared);
        }
        self.show_run();
        self.prepare(word.size());
    }

    /// Adds the claimed frame to the run that [`publish`](Self::publish) makes visible.
    #[cfg(loom)]
    pub fn stage(&mut self, len: usize) {
        self.add_to_run(self.next_word(len));
    }

    #[inline(always)]
    fn add_to_run(&mut self, word: Word) {
        self.sent.count(word.len(), word.size());
        self.hold(word);
    }

    /// Puts a frame's word in its place, and moves the tail behind it. The first of a run is held back, the rest is invisible
    /// behind it: what lies between them need not be cleared.
    #[inline(always)]
    fn hold(&mut self, word: Word) {
        if self.has_run() {
            let head = self.ring.head(self.tail);
            head.store(word.0, Ordering::Relaxed);
            self.ring.stored(self.tail, 8);
        } else {
            self.first = (self.tail, word);
            (self.prepared, self.run_end) = (0, 0);
        }
        self.tail += word.size();
    }

    /// Makes all frames of the run visible with one store.
    #[inline]
    pub fn publish(&mut self) {
        if self.has_run() {
            self.show_run();
            self.set_prepared();
        }
    }

    #[inline(always)]
    fn set_prepared(&mut self) {
        let longest = self.tail + self.longest;
        self.prepared = self.bound.min(self.cleared).min(longest);
    }

    #[inline(always)]
    fn show_run(&mut self) {
        if self.cleared < self.tail + SLOT {
            self.ring.head(self.tail).store(0, Ordering::Relaxed);
            self.ring.stored(self.tail, 8);
            self.cleared = self.tail + SLOT;
        }
        let (position, word) = self.first;
        show(self.ring.head(position), word);
        self.ring.stored(position, 8);
        self.first.1 = Word(0);
    }

    /// Clears the place of the next frame, if it is no longer than the last one of `size` bytes, off the latency path. Not much
    /// farther: lines that are cleared long before they are written are taken away again by the reader's prefetcher.
    #[inline(never)]
    fn prepare(&mut self, size: u64) {
        #[cfg(not(loom))]
        if size > 8 + LONG {
            // Those that take either way are not prepared for where that matters.
            let is_hauled = size > 8 + self.ahead.hauled && !self.haul.is_settled(self.tail);
            let len = if is_hauled { LONG - 1 } else { u64::MAX };
            self.longest = longest(self.ring.capacity(), len);
        }
        let next = self.tail + size;
        let cleared = self.cleared;
        if cleared < next + SLOT && self.is_to_clear(size) {
            let Ahead { small, other, .. } = self.ahead;
            let ahead = if size <= SMALL { small } else { other };
            let to = ((next + ahead + 63) & !63).min(self.limit);
            self.cleared = to.max(cleared);
        }
        self.set_prepared();
        if self.cleared > cleared {
            self.ring.zero(cleared, self.cleared);
        }
    }

    /// Whether the place of the next frame, of `size` bytes, is cleared. (So its lines are there when it comes.)
    fn is_to_clear(&self, size: u64) -> bool {
        // A file is made of zeros.
        if self.ring.is_checked() {
            return false;
        }
        #[cfg(not(loom))]
        if size > 8 + self.ahead.hauled && !self.haul.wants_lines(self.tail) {
            return false;
        }
        size <= MAX_CLEARED
    }

    /// Whether a reader waits for each message from now on: then it matters how soon the next one is written, and not how many
    /// are.
    pub fn expect_singly(&mut self, singly: bool) {
        if !self.ring.is_checked() {
            self.ahead = if singly { SINGLY } else { MANY };
        }
    }

    /// Sends a message in data files, if there is room before the limit, and in its file.
    #[cfg(not(loom))]
    #[inline(always)]
    pub fn put_in_file(&mut self, payload: &[u8]) -> bool {
        let len = payload.len() as u64;
        let size = checked_size(len);
        let at = self.tail;
        // As in `measure`. The limit may be that of the next file, which a claim had come to that was given up.
        let room = (self.limit - at).min(self.ring.to_end(at));
        if size + SLOT > room || self.has_run() {
            return false;
        }
        if self.lent.0 != 0 {
            // One that was forgotten.
            self.clear_lent(at);
        }
        // As in `write`.
        let place = self.ring.place(at, payload.len());
        place.fill(payload);
        let word = log::seal(&self.ring, at, self.next_word(payload.len()));
        self.sent.count(len, size);
        self.tail = at + size;
        show(place.head(), word);
        self.ring.stored(at, 8);
        true
    }

    /// Gives up a claimed frame, and the padding before it: nothing of them was ever visible.
    pub fn abort(&mut self) {
        let visible = self.visible();
        if self.ring.is_checked() {
            self.clear_aborted(visible);
        }
        self.sent.slack = self.sent.slack.wrapping_sub(self.tail - visible);
        self.tail = visible;
        self.first.1 = Word(0);
        self.bound = 0;
        self.expose();
    }

    /// In files, what belongs to no frame is 0.
    #[cold]
    fn clear_aborted(&mut self, visible: u64) {
        // If it was to be in the next file, that is begun anew.
        self.limit = self.limit.min(visible + self.ring.to_end(visible));
        self.clear_lent(self.tail);
        if visible < self.tail {
            // The checksum of the padding.
            self.ring.zero(self.tail - SLOT / 2, self.tail);
        }
    }

    /// Clears what is left from `end` on of the last loan.
    fn clear_lent(&mut self, end: u64) {
        let (lent, _) = std::mem::take(&mut self.lent);
        if lent > end {
            self.ring.zero(end, lent);
        }
    }

    /// Forgets what is cleared behind the tail: anything may be written there.
    fn expose(&mut self) {
        let behind_tail = if self.has_run() { 0 } else { SLOT };
        self.cleared = self.tail + behind_tail;
        (self.prepared, self.run_end) = (0, 0);
    }

    /// Where readers that have not joined this lane yet stand: they will start at 0, unless what is there may have
    /// been overwritten; after that they can only join by the mark.
    pub fn unjoined(&self) -> Option<u64> {
        (self.header.limit.load(Ordering::Relaxed) <= self.ring.capacity()).then_some(0)
    }

    /// The slow way to room: moves the limit up to `end`, or by a sixteenth of the ring, whichever is further, as far
    /// as the slowest reader lets it. `survey` looks at the readers; those without a slot stand where its argument
    /// says.
    ///
    /// There must be no staged run: what is published here are visible boundaries.
    pub fn extend<E>(
        &mut self,
        end: u64,
        mut survey: impl FnMut(Option<u64>) -> Result<Lowest, E>,
    ) -> Result<Lowest, E> {
        debug_assert!(
            !self.has_run(),
            "a run is published before its writer waits"
        );
        let capacity = self.ring.capacity();
        let step = self.step();
        let unjoined = self.unjoined();
        let mut all_joined = unjoined.is_none() || survey(unjoined)?.all_joined;
        // No more than what is used if no reader is slow, so that what lies behind can be read for as long as it is held.
        let wished = self.header.limit.load(Ordering::Relaxed);
        let wish = end.max(self.tail + step).max(wished);
        let (wish, lowest) = loop {
            let wish = wish.min(if all_joined {
                self.tail + capacity
            } else {
                capacity
            });
            self.set_mark();
            self.header.limit.store(wish, Ordering::Relaxed);
            // Total order with the fence in `roster::join`: either `survey` sees the joiner's slot, or the joiner sees
            // this limit and takes a newer mark.
            fence(Ordering::SeqCst);
            let lowest = survey(self.unjoined())?;
            if all_joined || !lowest.all_joined {
                break (wish, lowest);
            }
            // The last one has joined meanwhile. It may have read everything already, and would not move again: wish
            // for more before anyone waits for it.
            all_joined = true;
        };
        let grant = lowest.position.saturating_add(capacity).min(wish);
        if grant > self.limit {
            self.raise_floor(grant);
            self.limit = grant;
            self.set_bound();
        }
        Ok(lowest)
    }

    fn set_mark(&self) {
        // Pairs with the `SeqCst` fence in `roster::join`: who starts here sees the words from here on. And with the fence in
        // `is_hole`: who sees it sees the words before it.
        self.header.mark.store(self.tail, Ordering::Release);
    }

    /// Moves the limit up to the end of a file that is there, in a lane that nobody waits for.
    #[cfg(not(loom))]
    pub fn lengthen(&mut self, limit: u64) {
        self.keep_boundary();
        self.set_mark();
        // For who looks from outside: no order with anything.
        self.header.limit.store(limit, Ordering::Relaxed);
        self.limit = limit;
    }

    /// Whether a frame that needs a limit of `end` has room.
    pub fn reaches(&self, end: u64) -> bool {
        end <= self.limit
    }

    /// How far the limit moves at a time, and how far apart boundary records are, at least.
    fn step(&self) -> u64 {
        (self.ring.capacity() / RECORDS as u64).max(SLOT)
    }

    /// The positions of the records that were made.
    fn records(&self) -> impl Iterator<Item = u64> {
        let records = self.header.records.iter();
        let all = records.map(|record| record.position.load(Ordering::Relaxed));
        // They may be anything, if the last writer was.
        all.filter(|&position| position <= self.tail)
    }

    /// Keeps a record of the tail.
    fn keep_boundary(&mut self) {
        // The record that this replaces is a ring behind, and so below the floor already: who reads half of each does
        // not believe it. (In files, where a lane has no laps, it is many files behind.)
        let record = &self.header.records[self.recorded % RECORDS];
        record.sequence.store(self.sent.sequence, Ordering::Relaxed);
        record
            .bytes
            .store(self.sent.bytes(self.tail), Ordering::Relaxed);
        // Pairs with the fence in `Outside::record`: sequence and bytes belong to this position.
        record.position.store(self.tail, Ordering::Release);
        self.recorded += 1;
    }

    /// Says that all below `grant - capacity` may be overwritten, and keeps a record of where the frames are that are not.
    fn raise_floor(&mut self, grant: u64) {
        let overwritten = grant.saturating_sub(self.ring.capacity());
        let newest = self.records().max();
        if newest.is_none_or(|newest| self.tail - newest >= self.step()) {
            self.keep_boundary();
        }
        let held = self
            .records()
            .filter(|&position| position >= overwritten)
            .min();
        // Never down: a writer that adopts a lane does not know how far the last one had gone.
        let floor = held
            .unwrap_or(self.tail)
            .max(self.header.floor.load(Ordering::Relaxed));
        self.header.floor.store(floor, Ordering::Relaxed);
        // Pairs with the fence before the load of `floor` in `Outside::holds`: who copied a byte, or a record, that is
        // written after this sees the floor above it.
        fence(Ordering::Release);
    }

    /// The cursor position to wait for when a frame needs a limit of `end` and the slowest cursor is at `lowest`: not
    /// the least that suffices, but a quarter of the ring more, so that a writer is not woken for every frame.
    pub fn wanted(&self, end: u64, lowest: u64) -> u64 {
        let least = end.saturating_sub(self.ring.capacity());
        least
            .max(lowest.saturating_add(self.ring.capacity() / 4))
            .min(self.tail)
    }
}

/// Bytes of the longest frame with at most `len` bytes, and of the slot behind it.
#[cfg(not(loom))]
fn longest(capacity: u64, len: u64) -> u64 {
    frame_size(max_len(capacity).min(len)) + SLOT
}

/// Stores the word that makes a frame, or a run of them, visible.
#[inline(always)]
fn show(head: &AtomicU64, word: Word) {
    // Pairs with the fence in `see_what_is_behind`: payloads, later words of a run and the 0 at its end come first.
    head.store(word.0, Ordering::Release);
}

/// The end of a lane without a writer, and the index of its newest boundary record.
fn find_tail(header: &View<LaneHeader>, ring: &Ring) -> Result<(usize, Boundary), Corrupt> {
    let newest = Outside { header, ring }.newest();
    let (index, mut tail) = newest.ok_or(Corrupt {
        position: 0,
        word: 0,
    })?;
    walk(
        ring,
        tail.position,
        tail.position.saturating_add(ring.reach()),
        |found| tail.pass(found),
    )?;
    Ok((index, tail))
}

/// The end of a lane without a writer.
pub fn tail(header: &View<LaneHeader>, ring: &Ring) -> Result<u64, Corrupt> {
    find_tail(header, ring).map(|(_, tail)| tail.position)
}

/// Says whose the lane is, its writer's name (0: none), and whether that writer can't use `membarrier`. By the holder of its lock.
pub fn own(header: &LaneHeader, member: u64, name: u64, fences: bool) {
    header.owner.member.store(member, Ordering::Relaxed);
    header.owner.name.store(name, Ordering::Relaxed);
    header
        .owner
        .fences
        .store(u64::from(fences), Ordering::Relaxed);
}

/// Says that what lies below `floor` is kept no more, in a lane in data files. `again` looks at the slowest reader once more:
/// up to where it may be removed.
pub fn give_up<E>(
    header: &LaneHeader,
    floor: u64,
    again: impl FnOnce() -> Result<u64, E>,
) -> Result<u64, E> {
    // By whoever finds it first. Never down.
    header.floor.fetch_max(floor, Ordering::Relaxed);
    // Total order with the fence in `roster::join_log`: either `again` sees the joiner's slot, or the joiner the floor.
    fence(Ordering::SeqCst);
    Ok(floor.min(again()?))
}

/// Sets the header of a lane without a writer, in data files, by what was found in these: it begins at `floor` and ends at
/// `tail`. By the holder of its lock, while nobody else is there.
pub fn renew(header: &LaneHeader, floor: u64, tail: Boundary) {
    for record in &header.records {
        record.position.store(UNUSED, Ordering::Relaxed);
    }
    let record = &header.records[0];
    record.sequence.store(tail.sequence, Ordering::Relaxed);
    record.bytes.store(tail.bytes, Ordering::Relaxed);
    record.position.store(tail.position, Ordering::Relaxed);
    header.floor.store(floor, Ordering::Relaxed);
    header.mark.store(tail.position, Ordering::Relaxed);
    header.limit.store(tail.position, Ordering::Relaxed);
    header.want.store(NOBODY, Ordering::Relaxed);
    close(header);
}

/// Says that a lane was cut at a position, and up to where something was behind it.
pub fn set_cut(header: &LaneHeader, at: u64, to: u64) {
    header.log.cut_at.store(at, Ordering::Relaxed);
    header.log.cut_to.store(to, Ordering::Relaxed);
}

/// Where a lane was last cut, and up to where something was behind it.
pub fn cut(header: &LaneHeader) -> Option<(u64, u64)> {
    let to = header.log.cut_to.load(Ordering::Relaxed);
    (to != 0).then(|| (header.log.cut_at.load(Ordering::Relaxed), to))
}

/// Takes a reader's slot back to the tail, if it says that it is behind it.
pub fn hold_back(slot: &Slot, tail: Boundary) {
    if slot.position.load(Ordering::Relaxed) > tail.position {
        set_slot(slot, tail);
    }
}

/// Takes a reader's slot on to the oldest boundary that is kept, if it says that it is before it: it had passed what is gone.
pub fn hold_up(slot: &Slot, oldest: Boundary) {
    if slot.position.load(Ordering::Relaxed) < oldest.position {
        set_slot(slot, oldest);
    }
}

fn set_slot(slot: &Slot, at: Boundary) {
    slot.sequence.store(at.sequence, Ordering::Relaxed);
    slot.bytes.store(at.bytes, Ordering::Relaxed);
    slot.position.store(at.position, Ordering::Relaxed);
}

/// Whether what is at a position in data files, where nothing is to be seen, has been there: a hole. After the word was loaded.
pub fn is_hole(header: &LaneHeader, ring: &Ring, position: u64) -> Result<bool, Corrupt> {
    if header.mark.load(Ordering::Relaxed) <= position {
        return Ok(false);
    }
    // Pairs with the `Release` in `set_mark`: what was there before is to be seen now.
    see_what_is_behind();
    Ok(frame_at(ring, position)?.is_none())
}

/// How far a lane in data files, without a writer, was written whole.
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    /// Behind the last frame that is as it was written.
    pub tail: Boundary,
    /// What is there is a frame, but not as one is written; else there is nothing.
    pub is_damaged: bool,
}

/// Follows a lane in data files from a boundary on, as far as its frames are as they were written. `turn` is called with what is
/// before each file that it comes to.
#[cfg(not(loom))]
pub fn follow_whole(ring: &Ring, from: Boundary, mut turn: impl FnMut(Boundary)) -> Whole {
    let mut tail = from;
    loop {
        let is_next =
            |found: &Found| found.word.sequence() == tail.sequence as u32 && is_whole(ring, *found);
        match frame_at(ring, tail.position) {
            Ok(Some(found)) if is_next(&found) => {
                tail.pass(found);
                if found.word.is_padding() {
                    // There may be more files than have a place.
                    ring.lift_before(tail.position);
                    turn(tail);
                }
            }
            Ok(None) => {
                let is_damaged = false;
                return Whole { tail, is_damaged };
            }
            _ => {
                let is_damaged = true;
                return Whole { tail, is_damaged };
            }
        }
    }
}

/// The frame at a position in data files, if there is one; damaged if it is not as it was written.
#[cfg(not(loom))]
pub fn whole_at(ring: &Ring, position: u64) -> Result<Option<Found>, Corrupt> {
    match frame_at(ring, position)? {
        Some(found) if !is_whole(ring, found) => Err(Corrupt {
            position,
            word: found.word.0,
        }),
        found => Ok(found),
    }
}

/// The first frame behind a damaged one, in data files, that is as it was written. What can't be looked at just now is not
/// passed: it may not be damaged.
#[cfg(not(loom))]
pub fn next_whole(search: &mut Search<'_>, damaged: u64) -> Result<Option<Found>, Error> {
    let ring = search.ring();
    let Some(log) = ring.log().filter(|_| is_boundary(damaged)) else {
        return Ok(None);
    };
    // If its word is not what was damaged.
    if log.comes_to(damaged)?
        && let Ok(Some(frame)) = frame_at(ring, damaged)
        && log.comes_to(frame.end())?
        && let Some(found) = search.whole_at(frame.end())
    {
        return Ok(Some(found));
    }
    // Else anywhere in its file, or a later one.
    let from = damaged + SLOT;
    for number in log.numbers()? {
        let (start, end) = (number * ring.capacity(), (number + 1) * ring.capacity());
        let mut places = (from.max(start)..end).step_by(SLOT as usize);
        if from < end
            && log.comes_to(start)?
            && let Some(found) = places.find_map(|position| search.whole_at(position))
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The end of the last frame in `[from, to)`, in one data file, that is as it was written, wherever it may begin.
#[cfg(not(loom))]
pub fn last_whole(ring: &Ring, from: u64, to: u64) -> Result<Option<u64>, Error> {
    let log = ring.log().filter(|_| from < to);
    if !log.map_or(Ok(false), |log| log.comes_to(from))? {
        return Ok(None);
    }
    let mut search = Search::new(ring);
    let places = (from..to).step_by(SLOT as usize);
    let whole = |position| Some(search.whole_at(position)?.end());
    Ok(places.filter_map(whole).last())
}

/// The oldest position that is kept.
pub fn floor(header: &LaneHeader) -> u64 {
    header.floor.load(Ordering::Relaxed)
}

/// Where a lane in data files was last known to be on the disk, and a checksum of that, twice: the newer one that is whole counts.
#[cfg(not(loom))]
pub fn synced(header: &LaneHeader, lane: u64) -> Option<Boundary> {
    let whole = header.synced.iter().filter_map(|record| {
        let at = Boundary {
            position: record.position.load(Ordering::Relaxed),
            sequence: record.sequence.load(Ordering::Relaxed),
            bytes: record.bytes.load(Ordering::Relaxed),
        };
        (record.check.load(Ordering::Relaxed) == check_of(lane, at)).then_some(at)
    });
    whole.max_by_key(|at| at.position)
}

/// Says that it is. By the process whose lane it is, one thread at a time.
#[cfg(not(loom))]
pub fn set_synced(header: &LaneHeader, lane: u64, at: Boundary) {
    // In place of the older one, or of one that is damaged.
    let newer = synced(header, lane).map(|at| at.position);
    let is_newer =
        |record: &super::layout::Record| Some(record.position.load(Ordering::Relaxed)) == newer;
    let record = match is_newer(&header.synced[0]) {
        true => &header.synced[1],
        false => &header.synced[0],
    };
    record.check.store(0, Ordering::Relaxed);
    record.sequence.store(at.sequence, Ordering::Relaxed);
    record.bytes.store(at.bytes, Ordering::Relaxed);
    record.position.store(at.position, Ordering::Relaxed);
    record.check.store(check_of(lane, at), Ordering::Relaxed);
}

#[cfg(not(loom))]
fn check_of(lane: u64, at: Boundary) -> u64 {
    log::checksum(lane, at.position, at.sequence, at.bytes.as_bytes())
}

/// The member whose the lane is, or was.
pub fn owner(header: &LaneHeader) -> u64 {
    header.owner.member.load(Ordering::Relaxed)
}

/// Whether its writer sleeps until a reader has moved on: for room, or until all is received.
#[cfg(not(loom))]
pub fn is_waiting(header: &LaneHeader) -> bool {
    header.want.load(Ordering::Relaxed) != NOBODY
}

/// The name of a writer whose lane is kept for it; 0: it has none.
pub fn name(header: &LaneHeader) -> u64 {
    header.owner.name.load(Ordering::Relaxed)
}

/// Says that no frame will follow until somebody adopts the lane; whether that is news. By the holder of its lock.
pub fn close(header: &LaneHeader) -> bool {
    let news = header.owner.closed.load(Ordering::Relaxed) == 0;
    // Pairs with the fence in `is_closed`: who sees this sees all frames.
    header.owner.closed.store(1, Ordering::Release);
    news
}

/// Whether the writer has gone; if so, a message that is not found *after* this will not come from it.
pub fn is_closed(header: &LaneHeader) -> bool {
    let closed = header.owner.closed.load(Ordering::Relaxed) != 0;
    // Pairs with the `Release` in `close`.
    fence(Ordering::Acquire);
    closed
}

// ---------------------------------------------------------------------------------------------------- reading half

/// One reader of a lane. A gating one, so that what it has not released stays as it is; or one of a lossy lane, which
/// copies a message before it believes it.
#[derive(Debug)]
pub struct Reader {
    ring: Ring,
    track: Track,
    /// Of a lossy lane. Apart: who looks at many lanes comes by less memory.
    copied: Option<Box<Copied>>,
}

/// What a reader of a lossy lane has copied, and where it is.
#[derive(Debug)]
struct Copied {
    /// The boundary at the reader's position, or before the message in `found`.
    at: Boundary,
    /// The message in `words`.
    found: Option<Found>,
    /// Its payload.
    words: Vec<u64>,
    /// What was missed, and not told yet.
    missed: Option<Missed>,
}

/// How often a reader of a lossy lane tries to catch up with a writer that is faster, in one look.
/// A model may see the same stale values in each try.
const CATCH_UPS: usize = if cfg!(loom) { 2 } else { 64 };

/// How far a [`Reader`] is, and who must be told.
#[derive(Debug)]
pub struct Track {
    header: View<LaneHeader>,
    slots: View<[Slot]>,
    index: usize,
    /// Where the next frame starts.
    position: u64,
    /// What the slot says.
    published: u64,
    /// How much may stay unpublished.
    batch: u64,
    /// The `want` that was answered last.
    answered: u64,
    /// The number of the file that it had come to when that was last asked.
    passed: u64,
    /// How often something was released since that was last asked.
    streak: u32,
    /// The writer or this process can't use `membarrier`.
    fences: bool,
    /// Of a lane in data files.
    follow: Option<Box<Follow>>,
}

/// How far the reader of a lane in data files is.
#[derive(Debug)]
struct Follow {
    /// The boundary at the reader's position, or before the message in `found`.
    at: Boundary,
    /// What was found there: it is as it was written.
    found: Option<Found>,
    /// What was missed, and not told yet.
    missed: Option<Missed>,
    /// What is released counts only once it is acknowledged.
    by_ack: bool,
}

impl Follow {
    /// Goes on to `position`.
    fn go_to(&mut self, position: u64) {
        if let Some(found) = self.found.take_if(|found| found.end() == position) {
            self.at.pass(found);
        }
    }
}

impl Reader {
    /// The reader of a lane whose slot (`slots[index]`) already stands at `position`.
    pub fn gating(
        header: View<LaneHeader>,
        ring: Ring,
        slots: View<[Slot]>,
        index: usize,
        position: u64,
        fences: bool,
    ) -> Self {
        let batch = ring.capacity() / 4;
        let fences = fences || header.owner.fences.load(Ordering::Relaxed) != 0;
        let track = Track {
            header,
            slots,
            index,
            position,
            published: position,
            batch,
            answered: NOBODY,
            passed: 0,
            streak: 0,
            fences,
            follow: None,
        };
        Self {
            ring,
            track,
            copied: None,
        }
    }

    /// The reader of a lossy lane, at `at`: its writer does not wait for it.
    pub fn copying(
        header: View<LaneHeader>,
        ring: Ring,
        slots: View<[Slot]>,
        index: usize,
        at: Boundary,
        fences: bool,
    ) -> Self {
        let mut reader = Self::gating(header, ring, slots, index, at.position, fences);
        reader.copied = Some(Box::new(Copied {
            at,
            found: None,
            words: Vec::new(),
            missed: None,
        }));
        reader
    }

    /// The reader of a lane in data files, at `at`. `by_ack`: its slot moves only by [`Track::acknowledge`].
    pub fn following(
        header: View<LaneHeader>,
        ring: Ring,
        slots: View<[Slot]>,
        index: usize,
        at: Boundary,
        (by_ack, fences): (bool, bool),
    ) -> Self {
        let mut reader = Self::gating(header, ring, slots, index, at.position, fences);
        reader.track.batch = if by_ack { u64::MAX } else { 0 };
        reader.track.follow = Some(Box::new(Follow {
            at,
            found: None,
            missed: None,
            by_ack,
        }));
        reader
    }

    /// Up to where [`plain`](Self::plain) may be asked before anything else is to be done: at most `bytes` on.
    pub fn turn(&self, bytes: u64) -> u64 {
        let Track {
            position,
            published,
            batch,
            fences,
            ..
        } = self.track;
        match fences || self.copied.is_some() || self.ring.is_checked() {
            true => 0,
            false => (position + bytes).min(published + batch),
        }
    }

    /// The next message, if it begins before `until`, which [`turn`](Self::turn) gave, and is a plain one, of `len` bytes if
    /// that is said.
    #[inline(always)]
    pub fn plain(&self, until: u64, len: Option<u64>) -> Result<Unread, NotPlain> {
        match self.track.position < until {
            true => self.plain_at(self.track.position, len),
            false => Err(NotPlain::Other),
        }
    }

    /// The message at a frame boundary, if it is a plain one.
    #[inline(always)]
    fn plain_at(&self, position: u64, len: Option<u64>) -> Result<Unread, NotPlain> {
        let word = load_word(&self.ring, position);
        let is_meant = match len {
            Some(len) => word.is_plain_of(len),
            None => word.is_plain(),
        };
        let len = len.unwrap_or(word.len());
        let end = position.wrapping_add(frame_size(len));
        if is_meant && self.ring.holds(position, len) {
            return Ok(Unread { word, len, end });
        }
        Err(match word.0 {
            0 => NotPlain::Nothing,
            _ => NotPlain::Other,
        })
    }

    /// The row of at most `max` messages that begins with one that was found, and of others that begin before `until`: plain
    /// ones, of `len` bytes if that is said, and others of which `is_meant` says so. The end of the ring ends it, and
    /// a damaged frame, or one that is not meant: the next look reports it.
    #[inline]
    pub fn row(
        &self,
        first: Found,
        (max, until): (usize, u64),
        len: Option<u64>,
        is_meant: impl Fn(&Self, Found) -> bool,
    ) -> Row {
        let is_single = self.copied.is_some() || self.ring.is_checked();
        let until = until.min(first.position + self.ring.to_end(first.position));
        let mut row = Row {
            first,
            end: first.end(),
            messages: 1,
            len: len.filter(|_| first.word.is_plain() && !is_single),
            is_last: false,
        };
        while row.messages < max && row.end < until && !is_single {
            row.end = match self.plain_at(row.end, len) {
                Ok(unread) => {
                    // Behind each of them: what follows may have become visible later.
                    see_what_is_behind();
                    unread.end
                }
                Err(NotPlain::Nothing) => {
                    row.is_last = true;
                    break;
                }
                Err(NotPlain::Other) => match self.ahead(row.end) {
                    Ok(Some(next)) if is_meant(self, next) => {
                        row.len = None;
                        next.end()
                    }
                    _ => break,
                },
            };
            row.messages += 1;
        }
        row
    }

    /// The payloads of such a row, if they are all plain, and of the length that was asked for; or else none.
    #[cfg(not(loom))]
    #[inline]
    pub fn payloads(&self, row: &Row) -> Payloads<'_> {
        let (len, count) = row.len.map_or((0, 0), |len| (len, row.messages));
        Payloads(self.ring.places(row.first.position, len as usize, count))
    }

    /// What the message of such a row at a frame boundary carries, and where it ends, if it is a plain one, of `len` bytes if
    /// that is said.
    #[cfg(not(loom))]
    #[inline(always)]
    pub fn read_in_row(&self, position: u64, len: Option<u64>) -> Option<(&[u8], u64)> {
        if self.copied.is_some() {
            return None;
        }
        let unread = self.plain_at(position, len).ok()?;
        let place = self.ring.place(position, unread.len as usize);
        see_what_is_behind();
        // Committed, and not released: the batch that borrows this reader releases it.
        Some((place.payload(), unread.end))
    }

    /// From now on what is behind its word may be read.
    #[inline(always)]
    pub fn see(&self, unread: Unread) -> Found {
        let (position, word) = (self.track.position, unread.word);
        see_what_is_behind();
        Found { position, word }
    }

    /// What that carries, with what releases it.
    #[cfg(not(loom))]
    #[inline(always)]
    pub fn read(&mut self, unread: Unread) -> (&[u8], &mut Track) {
        let place = self.ring.place(self.track.position, unread.len as usize);
        self.see(unread);
        // As in `body`: `turn` permits nothing to who copies.
        (place.payload(), &mut self.track)
    }

    /// The next message, which stays until it is released; `None` while there is none.
    #[inline(always)]
    pub fn next(&mut self) -> Result<Option<Found>, Trouble> {
        if self.copied.is_none() && self.track.follow.is_none() {
            let position = self.track.position;
            let word = load_word(&self.ring, position);
            if word.0 == 0 {
                return Ok(None);
            }
            if word.is_message_without_checksum() && self.ring.holds(position, word.len()) {
                see_what_is_behind();
                return Ok(Some(Found { position, word }));
            }
        }
        self.next_rarely()
    }

    /// The same of a lossy lane, or one in data files, whose messages are counted; behind padding, and where there is damage.
    #[inline(never)]
    fn next_rarely(&mut self) -> Result<Option<Found>, Trouble> {
        if self.copied.is_some() {
            return self.next_copied();
        }
        if self.track.follow.is_some() {
            return self.next_followed();
        }
        match frame_at(&self.ring, self.track.position)? {
            Some(found) if found.word.is_padding() => Ok(self.next_after(found)?),
            found => Ok(found),
        }
    }

    fn next_copied(&mut self) -> Result<Option<Found>, Trouble> {
        let Self {
            ring,
            track,
            copied: Some(copied),
        } = self
        else {
            return Ok(None);
        };
        if let Some(missed) = copied.missed {
            return Err(Trouble::Missed(missed));
        }
        if let Some(found) = copied.found {
            if track.position == copied.at.position {
                return Ok(Some(found));
            }
            copied.at.pass(found);
            copied.found = None;
        }
        let mut contradictions = 0;
        for _ in 0..CATCH_UPS {
            let at = copied.at;
            let outside = Outside {
                header: &track.header,
                ring,
            };
            let seen = frame_outside(ring, at.position);
            let is_next = |found: &Found| found.word.sequence() == at.sequence as u32;
            let mut is_there = true;
            if let Ok(Some(found)) = seen
                && is_next(&found)
                && found.word.is_message()
            {
                let len = found.word.len() as usize;
                is_there = ring.copy_out(found.body(), len, &mut copied.words);
            }
            if outside.holds(at.position) {
                let seen = seen?;
                let is_gone = !is_there
                    || (ring.is_foreign() && seen.is_none() && outside.has_hole(at.position)?);
                match seen {
                    _ if is_gone => Err(Corrupt {
                        position: at.position,
                        word: 0,
                    })?,
                    Some(found) if !is_next(&found) => Err(Corrupt {
                        position: at.position,
                        word: found.word.0,
                    })?,
                    Some(found) if found.word.is_padding() => {
                        copied.at.pass(found);
                        track.position = copied.at.position;
                    }
                    found => {
                        copied.found = found;
                        return Ok(found);
                    }
                }
            } else if let Some(floor) = outside.at_floor() {
                let missed = Missed {
                    messages: floor.sequence.wrapping_sub(at.sequence),
                    bytes: floor.bytes.wrapping_sub(at.bytes),
                };
                copied.at = floor;
                track.miss(floor.position, missed);
                if missed.messages > 0 {
                    copied.missed = Some(missed);
                    return Err(Trouble::Missed(missed));
                }
            } else if ring.is_foreign() && !outside.has_floor() {
                contradictions += 1;
            }
        }
        match contradictions {
            CATCH_UPS => Err(Corrupt {
                position: copied.at.position,
                word: 0,
            })?,
            _ => Ok(None),
        }
    }

    fn next_followed(&mut self) -> Result<Option<Found>, Trouble> {
        let Self { ring, track, .. } = self;
        let position = track.position;
        let Some(follow) = &mut track.follow else {
            return Ok(None);
        };
        if let Some(missed) = follow.missed {
            return Err(Trouble::Missed(missed));
        }
        if let Some(found) = follow.found {
            if position == found.position {
                return Ok(Some(found));
            }
            follow.go_to(position);
        }
        for _ in 0..CATCH_UPS {
            let Some(follow) = &mut track.follow else {
                break;
            };
            loop {
                let at = follow.at.position;
                let Some(found) = frame_at(ring, at)? else {
                    break;
                };
                let is_next = found.word.sequence() == follow.at.sequence as u32;
                if !is_next || !is_whole(ring, found) {
                    let word = found.word.0;
                    Err(Corrupt { position: at, word })?;
                }
                if found.word.is_message() {
                    follow.found = Some(found);
                    return Ok(Some(found));
                }
                follow.at.pass(found);
                track.position = follow.at.position;
                ring.lift_before(track.position);
            }
            let position = follow.at.position;
            let floor = track.header.floor.load(Ordering::Relaxed);
            if floor <= position {
                return match is_hole(&track.header, ring, position)? {
                    true => Err(Corrupt { position, word: 0 })?,
                    false => Ok(None),
                };
            }
            let Some(start) = ring.start_at(floor) else {
                if floor == track.header.floor.load(Ordering::Relaxed) {
                    let (position, word) = (floor, 0);
                    Err(Corrupt { position, word })?;
                }
                // That file is gone already.
                continue;
            };
            if start.position <= position {
                // The floor is damaged.
                Err(Corrupt { position, word: 0 })?;
            }
            let missed = Missed {
                messages: start.sequence.wrapping_sub(follow.at.sequence),
                bytes: start.bytes.wrapping_sub(follow.at.bytes),
            };
            follow.at = start;
            follow.missed = (missed.messages > 0).then_some(missed);
            track.miss(start.position, missed);
            ring.lift_before(start.position);
            if missed.messages > 0 {
                return Err(Trouble::Missed(missed));
            }
        }
        Ok(None)
    }

    /// Goes on behind what was missed, once that was told.
    pub fn resume(&mut self) {
        if let Some(copied) = &mut self.copied {
            copied.missed = None;
        }
        if let Some(follow) = &mut self.track.follow {
            follow.missed = None;
        }
    }

    /// Goes on at the next frame that is as it was written, of a lane in data files in which one was not. What was passed by
    /// this: messages, and bytes of frames. `None`: there is none.
    #[cfg(not(loom))]
    pub fn skip(&mut self) -> Result<Option<Missed>, Error> {
        let Self { ring, track, .. } = self;
        let Some(follow) = &mut track.follow else {
            return Ok(None);
        };
        let at = follow.at;
        let Some(found) = next_whole(&mut Search::new(ring), at.position)? else {
            return Ok(None);
        };
        let messages = found.word.sequence().wrapping_sub(at.sequence as u32);
        let missed = Missed {
            messages: u64::from(messages),
            bytes: found.position - at.position,
        };
        follow.at = Boundary {
            position: found.position,
            sequence: at.sequence.wrapping_add(missed.messages),
            bytes: at.bytes.wrapping_add(missed.bytes),
        };
        follow.found = None;
        track.miss(found.position, missed);
        Ok(Some(missed))
    }

    /// Whether what is published has come to another file since this was last asked.
    pub fn take_passed(&mut self) -> bool {
        let file = self.track.published / self.ring.capacity();
        let passed = self.ring.is_checked() && file > self.track.passed;
        self.track.passed = file.max(self.track.passed);
        passed
    }

    #[cold]
    fn next_after(&mut self, padding: Found) -> Result<Option<Found>, Corrupt> {
        let behind = self.track.position + padding.word.size();
        match frame_at(&self.ring, behind)? {
            // A writer pads only before a frame, once.
            Some(found) if found.word.is_padding() => Err(Corrupt {
                position: found.position,
                word: found.word.0,
            }),
            found => {
                self.track.position = behind;
                Ok(found)
            }
        }
    }

    /// The message at a frame boundary behind the reader's position, if it is there: to read ahead without releasing.
    #[inline]
    pub fn ahead(&self, position: u64) -> Result<Option<Found>, Corrupt> {
        if self.copied.is_some() {
            // One is copied at a time.
            return Ok(None);
        }
        match frame_at(&self.ring, position)? {
            Some(next) if next.word.is_padding() => Ok(None),
            next => Ok(next),
        }
    }

    /// What a message that [`next`](Self::next) found carries, with what releases it.
    #[cfg(not(loom))]
    #[inline]
    pub fn take(&mut self, found: Found) -> (&[u8], &mut Track) {
        let body = body(&self.ring, self.copied.as_deref(), found);
        (body, &mut self.track)
    }

    /// The envelope, and the payload, of a message that was found and not released. `None`: the envelope contradicts
    /// itself.
    #[cfg(not(loom))]
    #[inline]
    pub fn parts(&self, found: Found) -> Option<(&[u8], &[u8])> {
        parts(found.word, self.body(found))
    }

    /// Both of what was [found](Self::next) and not released.
    #[cfg(not(loom))]
    #[inline]
    pub fn body(&self, found: Found) -> &[u8] {
        body(&self.ring, self.copied.as_deref(), found)
    }

    /// A model's ring, to read a payload from.
    #[cfg(loom)]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The words of the message that was copied last, for a model.
    #[cfg(loom)]
    pub fn copied(&self) -> &[u64] {
        self.copied.as_ref().map_or(&[], |copied| &copied.words)
    }

    /// What releases.
    #[inline]
    pub fn track(&mut self) -> &mut Track {
        &mut self.track
    }

    /// Where the next frame starts.
    pub fn position(&self) -> u64 {
        self.track.position
    }

    /// Bytes in the ring.
    pub fn capacity(&self) -> u64 {
        self.ring.capacity()
    }

    /// See [`is_closed`].
    pub fn is_closed(&self) -> bool {
        self.track.header.refresh();
        is_closed(&self.track.header)
    }
}

/// The envelope, and the payload, in what a message carries. `None`: the envelope contradicts itself.
#[cfg(not(loom))]
#[inline]
pub fn parts(word: Word, body: &[u8]) -> Option<(&[u8], &[u8])> {
    if !word.has_envelope() {
        return Some((&[], body));
    }
    Some(body.split_at(EnvelopeHead::total(body)?))
}

/// What a message carries that was found and not released.
#[cfg(not(loom))]
#[inline]
fn body<'a>(ring: &'a Ring, copied: Option<&'a Copied>, found: Found) -> &'a [u8] {
    let len = found.word.len() as usize;
    match copied {
        Some(copied) => &copied.words.as_bytes()[..len],
        // Committed, as `next` found; not overwritten, because our slot's position gates the writer until `release`.
        None => ring.place(found.position, len).payload(),
    }
}

impl Track {
    /// Goes on at `position`: what lies before was overwritten.
    fn miss(&mut self, position: u64, missed: Missed) {
        let slot = &self.slots[self.index];
        // Our own words, for people: no order with anything.
        let add = |word: &AtomicU64, more: u64| {
            let sum = word.load(Ordering::Relaxed).wrapping_add(more);
            word.store(sum, Ordering::Relaxed);
        };
        add(&slot.missed, missed.messages);
        add(&slot.missed_bytes, missed.bytes);
        self.position = position;
        let by_ack = self.follow.as_ref().is_some_and(|follow| follow.by_ack);
        if !by_ack {
            self.publish();
        }
    }

    /// Releases all before `end`, where the next frame starts: the writer may overwrite it from now on. `until`: what
    /// [`Reader::turn`] gave, or 0.
    #[inline(always)]
    pub fn release(&mut self, end: u64, until: u64) {
        self.streak = self.streak.wrapping_add(1);
        self.position = end;
        if end >= until || end >= self.want(false) {
            self.release_slowly();
        }
    }

    #[inline(never)]
    fn release_slowly(&mut self) {
        if let Some(follow) = &mut self.follow {
            follow.go_to(self.position);
            if follow.by_ack {
                return;
            }
        }
        if self.position - self.published >= self.batch {
            self.publish();
        }
        self.answer();
    }

    /// As [`release`](Self::release), of so many messages.
    pub fn release_row(&mut self, end: u64, messages: usize) {
        let others = messages.saturating_sub(1) as u32;
        self.streak = self.streak.wrapping_add(others);
        self.release(end, 0);
    }

    /// How often something was released since this was last asked.
    pub fn take_streak(&mut self) -> u32 {
        std::mem::take(&mut self.streak)
    }

    /// Looks again at whether the lane's writer, which may be another one now, can use `membarrier`.
    pub fn refresh(&mut self) {
        self.fences |= self.header.owner.fences.load(Ordering::Relaxed) != 0;
    }

    /// Publishes all that is released: before sleeping, when idle, before leaving.
    #[inline]
    pub fn settle(&mut self) {
        let by_ack = self.follow.as_ref().is_some_and(|follow| follow.by_ack);
        if self.published != self.position && !by_ack {
            self.publish();
            self.answer();
        }
    }

    /// Publishes all that is released, of a lane whose messages are acknowledged.
    pub fn acknowledge(&mut self) {
        if self.published != self.position {
            self.publish();
            self.answer();
        }
    }

    /// Says in the slot how far we are.
    pub fn publish(&mut self) {
        self.published = self.position;
        if let Some(Follow { at, .. }) = self.follow.as_deref() {
            // To count what is missed if the file there is gone when a reader comes back: no order with anything.
            let slot = &self.slots[self.index];
            slot.sequence.store(at.sequence, Ordering::Relaxed);
            slot.bytes.store(at.bytes, Ordering::Relaxed);
        }
        // Pairs with the fence in `Readers::lowest`: our loads of the payload come before its being overwritten.
        self.slots[self.index]
            .position
            .store(self.position, Ordering::Release);
    }

    /// The position that the writer waits for.
    #[inline(always)]
    fn want(&self, fences: bool) -> u64 {
        // With the heavy fence in `park::wait_for_room`: either the writer sees the position that we have stored, or we
        // see its `want`.
        light_fence(fences);
        self.header.want.load(Ordering::Relaxed)
    }

    /// Wakes the writer if it waits for a position that we have passed.
    fn answer(&mut self) {
        let want = self.want(self.fences);
        if self.position >= want && want != self.answered {
            // Once for each `want`: a writer that waits anew waits for more than a cursor that it has seen.
            self.answered = want;
            self.publish();
            futex::wake(&self.slots[self.index].position);
        }
    }
}

/// How far a reader had come that may have been away since.
pub fn left_at(slot: &Slot) -> Boundary {
    Boundary {
        position: slot.position.load(Ordering::Relaxed) & !LEFT,
        sequence: slot.sequence.load(Ordering::Relaxed),
        bytes: slot.bytes.load(Ordering::Relaxed),
    }
}

/// A reader's position, and how many messages it has missed.
pub fn progress(slot: &Slot) -> (u64, u64) {
    // For people: no order with anything.
    (
        slot.position.load(Ordering::Relaxed),
        slot.missed.load(Ordering::Relaxed),
    )
}

/// Takes a reader's slot out of the writer's reckoning, keeping how far it came, and wakes a writer that waits for it.
/// By the holder of the cursor's lock.
pub fn leave(slot: &Slot) {
    let position = slot.position.load(Ordering::Relaxed);
    // Pairs with the fence in `Readers::lowest`.
    slot.position.store(position | LEFT, Ordering::Release);
    futex::wake(&slot.position);
}

// ------------------------------------------------------------------------------------------------ from the outside

/// A frame boundary, and what came before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    /// Where a frame starts.
    pub position: u64,
    /// Its sequence number.
    pub sequence: u64,
    /// Payload bytes in all frames before it.
    pub bytes: u64,
}

impl Boundary {
    /// One of which nobody asks what came before.
    pub fn without_count(position: u64) -> Self {
        Self {
            position,
            ..Self::default()
        }
    }

    /// Moves behind `found`.
    pub fn pass(&mut self, found: Found) {
        self.position = found.end();
        if found.word.is_message() {
            self.sequence = self.sequence.wrapping_add(1);
            self.bytes = self.bytes.wrapping_add(found.word.len());
        }
    }
}

fn first_from(boundaries: impl Iterator<Item = Boundary>, position: u64) -> Option<Boundary> {
    boundaries
        .filter(|boundary| boundary.position >= position)
        .min_by_key(|boundary| boundary.position)
}

fn last_before(boundaries: impl Iterator<Item = Boundary>, sequence: u64) -> Option<Boundary> {
    boundaries
        .filter(|boundary| boundary.sequence <= sequence)
        .max_by_key(|boundary| boundary.position)
}

/// A look at a lane by somebody who gates nobody: what it reads may be overwritten meanwhile, and is believed only if
/// the floor has not passed it.
#[derive(Debug)]
pub struct Outside<'a> {
    /// The lane's header. (That of another user's is a copy, which is read anew before, or instead of, each fence.)
    pub header: &'a View<LaneHeader>,
    /// Its ring.
    pub ring: &'a Ring,
}

impl Outside<'_> {
    /// Whether what was read at `position` was still intact.
    pub fn holds(&self, position: u64) -> bool {
        // Pairs with the fence in `Writer::raise_floor`.
        fence(Ordering::Acquire);
        self.header.refresh() && position >= self.floor()
    }

    fn limit(&self) -> u64 {
        self.header.limit.load(Ordering::Relaxed)
    }

    fn floor(&self) -> u64 {
        self.header.floor.load(Ordering::Relaxed)
    }

    /// Whether there is a header, and the floor can be one.
    fn has_floor(&self) -> bool {
        let (is_there, floor) = (self.header.refresh(), self.floor());
        is_there && floor.is_multiple_of(SLOT) && floor <= self.limit()
    }

    /// Whether there is nothing at `position` although frames behind it were: another user has punched a hole. As the header was
    /// read just now.
    fn has_hole(&self, position: u64) -> Result<bool, Corrupt> {
        let records = self.header.records.iter();
        let mut records = records.map(|record| record.position.load(Ordering::Relaxed));
        // Of a writer who keeps the protocol, no record comes before the words that it is behind.
        let was_more = self.limit() < position
            || records.any(|record| (position + 1..MAX_POSITION).contains(&record));
        see_what_is_behind();
        Ok(was_more && frame_outside(self.ring, position)?.is_none() && self.holds(position))
    }

    /// The boundary record at `index`, if it holds.
    pub fn record(&self, index: usize) -> Option<Boundary> {
        let record = &self.header.records[index];
        self.header.refresh();
        let position = record.position.load(Ordering::Relaxed);
        // Pairs with the `Release` of the position.
        fence(Ordering::Acquire);
        self.header.refresh();
        let sequence = record.sequence.load(Ordering::Relaxed);
        let bytes = record.bytes.load(Ordering::Relaxed);
        // In files, one that is replaced may be above the floor.
        let is_same =
            !self.ring.is_checked() || position == record.position.load(Ordering::Relaxed);
        let holds = is_same && is_boundary(position) && self.holds(position);
        holds.then_some(Boundary {
            position,
            sequence,
            bytes,
        })
    }

    /// All boundary records that hold, and the starts of files up to them, as far as they can be read.
    fn boundaries(&self) -> impl Iterator<Item = Boundary> {
        #[cfg(not(loom))]
        let starts = match self.ring.log() {
            Some(log) => log.starts().unwrap_or_default(),
            None => Vec::new(),
        };
        #[cfg(loom)]
        let starts = Vec::new();
        self.boundaries_with(starts)
    }

    /// The same, with these starts.
    fn boundaries_with(&self, mut starts: Vec<Boundary>) -> impl Iterator<Item = Boundary> {
        if !starts.is_empty() {
            let newest = self.newest().map_or(0, |(_, newest)| newest.position);
            starts.retain(|start| start.position <= newest && self.holds(start.position));
        }
        let records = (0..RECORDS).filter_map(|index| self.record(index));
        records.chain(starts)
    }

    /// The first boundary at or past `position`.
    pub fn first_from(&self, position: u64) -> Option<Boundary> {
        first_from(self.boundaries(), position)
    }

    /// The last boundary with at most this sequence number.
    pub fn last_before(&self, sequence: u64) -> Option<Boundary> {
        last_before(self.boundaries(), sequence)
    }

    /// Moves `at` on to the message with this sequence number, or the first empty word before. `None`: the writer was
    /// faster.
    fn seek(&self, mut at: Boundary, sequence: u64) -> Result<Option<Boundary>, Corrupt> {
        let until = at.position.saturating_add(self.ring.reach());
        while at.sequence < sequence && at.position < until {
            let seen = frame_outside(self.ring, at.position);
            if !self.holds(at.position) {
                return Ok(None);
            }
            let Some(found) = seen? else { break };
            at.pass(found);
            if found.word.is_padding() {
                // Files that were passed are not needed here.
                self.ring.lift_before(at.position);
            }
        }
        Ok(Some(at))
    }

    /// The message `back` messages before the end, or the oldest that is held at or past `from`.
    pub fn start(&self, back: u64, from: u64) -> Result<Boundary, Corrupt> {
        self.start_with(&[], back, from)
    }

    /// The same, with the starts of a lane's data files: of what is farther back than its records.
    pub fn start_with(
        &self,
        starts: &[Boundary],
        back: u64,
        from: u64,
    ) -> Result<Boundary, Corrupt> {
        for _ in 0..CATCH_UPS {
            if let Some(start) = self.back(starts, back, from)? {
                return Ok(start);
            }
        }
        let newest = self.newest().map(|(_, newest)| newest);
        newest.ok_or(Corrupt {
            position: from,
            word: 0,
        })
    }

    /// The same. `None`: the writer went on while we looked.
    fn back(&self, starts: &[Boundary], back: u64, from: u64) -> Result<Option<Boundary>, Corrupt> {
        let Some((_, newest)) = self.newest() else {
            return Ok(None);
        };
        let Some(end) = self.seek(newest, u64::MAX)? else {
            return Ok(None);
        };
        // What is far behind may be in the same place.
        self.ring.lift_before(MAX_POSITION);
        let target = end.sequence.saturating_sub(back);
        let boundaries = || self.boundaries_with(starts.to_vec());
        let start = last_before(boundaries(), target)
            .filter(|boundary| boundary.position >= from)
            .or_else(|| first_from(boundaries(), from));
        match start {
            Some(start) => self.seek(start, target),
            None => Ok(None),
        }
    }

    /// The newest boundary record, and its index. There is always one that holds, unless the writer laps us while we
    /// look, or the header lies.
    pub fn newest(&self) -> Option<(usize, Boundary)> {
        (0..RECORDS)
            .filter_map(|i| Some((i, self.record(i)?)))
            .max_by_key(|(_, boundary)| boundary.position)
    }

    /// The boundary at the floor: the oldest message that is held. `None`: the writer went on while we looked.
    pub fn at_floor(&self) -> Option<Boundary> {
        // Its record, once it is found, brings the words behind it.
        self.header.refresh();
        let floor = self.floor();
        self.boundaries()
            .find(|boundary| boundary.position == floor)
    }

    /// Where a reader at `position` whom nobody waits for can go on: what lies before may be overwritten.
    pub fn held_from(&self, position: u64) -> u64 {
        position.max(self.floor())
    }

    /// The end of a lane in data files, as it is written: from a boundary on, or from a newer one that is known.
    #[cfg(not(loom))]
    pub fn end(&self, from: Boundary) -> Boundary {
        let newest = self.newest().map(|(_, newest)| newest);
        let newer = newest.filter(|newest| newest.position > from.position);
        let mut at = newer.unwrap_or(from);
        while let Ok(Some(found)) = frame_at(self.ring, at.position) {
            at.pass(found);
        }
        at
    }

    /// The boundary at a reader's position in a lane in data files; the last one before it if it is none.
    #[cfg(not(loom))]
    pub fn boundary_at(&self, left: Boundary) -> Result<Boundary, Corrupt> {
        let from = self
            .boundaries()
            .filter(|from| from.position <= left.position);
        let Some(mut at) = from.max_by_key(|from| from.position) else {
            // Its file is gone.
            return Ok(left);
        };
        while at.position < left.position
            && let Some(found) = frame_at(self.ring, at.position)?
            && found.end() <= left.position
        {
            at.pass(found);
        }
        Ok(at)
    }

    /// How many messages lie between a reader at `position`, which is held, and `end`. If the reader goes on meanwhile,
    /// the frame there may be overwritten, and what is said is at most what fits the ring.
    pub fn lag(&self, position: u64, end: Boundary) -> u64 {
        match frame_outside(self.ring, position) {
            Ok(Some(found)) if position < end.position => {
                let lag = (end.sequence as u32).wrapping_sub(found.word.sequence());
                u64::from(lag).min(self.ring.reach() / SLOT)
            }
            _ => 0,
        }
    }

    /// The end of the lane as it was when this was asked, or a little later; and where its newest message is, if it was come by.
    #[cfg(not(loom))]
    pub fn end_now(&self) -> (Boundary, Option<u64>) {
        // No writer is farther than it wished to come. Without this, one that goes on would be followed, and held up.
        self.header.refresh();
        let limit = self.limit();
        let mut at = self.newest().map_or_else(Boundary::default, |(_, at)| at);
        let until = limit.min(at.position.saturating_add(self.ring.reach()));
        let mut message = None;
        while at.position < until
            && let Some((found, _)) = self.frame(at.position, false)
        {
            if found.word.is_message() {
                message = Some(found.position);
            }
            at.pass(found);
        }
        (at, message)
    }

    /// When the first message at or behind `position` was sent, in nanoseconds since 1970; 0: it does not say. `None`: there is
    /// none, or it is held no more.
    #[cfg(not(loom))]
    pub fn sent_ns(&self, position: u64) -> Option<u64> {
        let (mut found, _) = self.frame(position, false)?;
        if found.word.is_padding() {
            (found, _) = self.frame(found.end(), false)?;
        }
        let has_envelope =
            found.word.has_envelope() && found.word.len() as usize >= EnvelopeHead::SIZE;
        let sent_ns = match has_envelope {
            true => {
                let at = found.body() + offset_of!(EnvelopeHead, sent_ns) as u64;
                let mut word = Vec::with_capacity(1);
                self.ring.copy_out(at, 8, &mut word);
                word[0]
            }
            false => 0,
        };
        self.holds(found.position).then_some(sent_ns)
    }

    /// The frame at `position`, with a copy of what it carries if wanted; `None` where there is none yet, it does not hold any more,
    /// or what it carries is not what was written.
    pub fn frame(&self, position: u64, with_body: bool) -> Option<(Found, Vec<u8>)> {
        let found = frame_outside(self.ring, position).ok()??;
        if !with_body || !found.word.is_message() {
            return self.holds(position).then(|| (found, Vec::new()));
        }
        let len = found.word.len() as usize;
        let mut words = Vec::new();
        let is_there =
            self.ring.copy_out(found.body(), len, &mut words) && is_whole(self.ring, found);
        let body = words.as_bytes()[..len].to_vec();
        (is_there && self.holds(position)).then_some((found, body))
    }
}
