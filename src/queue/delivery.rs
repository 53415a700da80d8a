//! A message in a consumer's hands, and what may become of it.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use zerocopy::{FromBytes, IntoBytes};

use super::records::{self, DeadLetter, PutOff};
use crate::bus::{TopicInner, forked};
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Payload;
use crate::pubsub::Publisher;
use crate::shm::claims::Claims;
use crate::shm::fork::{self, Held};
use crate::shm::lane::{self, Found};
use crate::shm::layout::{Claim, Control, EnvelopeHead, Fate, Pattern};
use crate::shm::roster::{self, Cursor};
use crate::shm::{files, park};
use crate::wait::now_ns;

/// The clock by which messages are put off: on a durable bus one that goes on when the machine is started anew.
pub(super) fn due_clock(topic: &TopicInner) -> u64 {
    match topic.files.is_logged() {
        true => files::now_ns(),
        false => now_ns(),
    }
}

/// What all that a consumer has is for: a group of a queue.
#[derive(Debug)]
pub(crate) struct Home {
    pub topic: Arc<TopicInner>,
    /// The group's name.
    pub group: String,
    /// After this time a delivery is taken away.
    pub lease: Option<Duration>,
    /// Deliveries before a message is a dead letter; 0: as many as it takes.
    pub max_attempts: u64,
    /// Where dead letters go.
    pub dead_letter: String,
    /// Which kinds of messages are taken, as a cursor has them.
    pub kinds: u64,
    pub outbox: Mutex<Outbox>,
}

/// The group's own lanes, once they are needed.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    dead: Option<Publisher>,
    put_off: Option<Publisher>,
}

/// A consumer's place in a topic. It is kept, with its claims, as long as a delivery is held.
#[derive(Debug)]
pub(crate) struct Seat {
    pub home: Arc<Home>,
    /// The queue, or its group's retry topic.
    pub topic: Arc<TopicInner>,
    /// The number of the group in this topic.
    pub group: u64,
    pub cursor: Cursor,
    /// Says that the cursor has a consumer.
    _lock: Held,
    born: u64,
}

impl Seat {
    /// Takes a place in the group with this number, whose lock is held.
    pub fn take(home: &Arc<Home>, topic: &Arc<TopicInner>, group: u64) -> Result<Self> {
        let (lock, cursor) = topic
            .files
            .new_consumer(topic.bus.member()?, group, home.kinds)?;
        cursor.set_joined();
        roster::changed(&topic.files.control);
        Ok(Self {
            home: Arc::clone(home),
            topic: Arc::clone(topic),
            group,
            cursor,
            _lock: lock,
            born: fork::generation(),
        })
    }

    /// Whether it is that of put-off messages.
    pub fn is_for_retries(&self) -> bool {
        !Arc::ptr_eq(&self.topic, &self.home.topic)
    }

    #[inline]
    pub fn check_fork(&self) -> Result<()> {
        if self.born == fork::generation() {
            Ok(())
        } else {
            Err(forked("consume from", &self.home.topic.files.name))
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.check_fork().is_err() {
            return;
        }
        self.topic.leave(&self.cursor, |_| true);
    }
}

/// What a consumer has of one lane.
#[derive(Debug)]
pub(crate) struct Share {
    pub seat: Arc<Seat>,
    pub lane: u64,
    pub claims: Claims,
    /// Its items have nothing [`Beside`] them.
    is_plain: bool,
}

/// A message that was claimed, to be finished by its [`Share`].
#[derive(Debug)]
pub(crate) struct Item {
    pub found: Found,
    pub claim: Claim,
    /// Bytes of its envelope, unless that contradicts itself.
    pub envelope: usize,
    beside: Option<Box<Beside>>,
}

/// What few have: in a box, as items are moved often.
#[derive(Debug, Default)]
struct Beside {
    /// Its bytes, where a lease may end while they are read.
    copy: Option<Vec<u64>>,
    /// If it was put off before.
    put_off: Option<PutOff>,
}

impl Item {
    /// It is done with: whoever drops it does nothing more.
    #[inline(always)]
    pub fn set_done(&mut self) {
        self.claim = DONE;
    }

    #[inline(always)]
    pub fn is_done(&self) -> bool {
        self.claim == DONE
    }

    /// Whether it has nothing beside it, and no envelope that contradicts itself.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.beside.is_none() && (!self.found.word.has_envelope() || self.envelope != 0)
    }

    /// Bytes in its payload, if it is plain.
    #[inline]
    pub fn len(&self) -> u64 {
        self.found.word.len() - self.envelope as u64
    }

    #[inline(always)]
    pub(super) fn put_off(&self) -> Option<&PutOff> {
        self.beside.as_ref()?.put_off.as_ref()
    }

    #[inline]
    pub fn attempts(&self) -> u64 {
        let before = self.put_off().map_or(0, |put_off| put_off.attempts);
        before.saturating_add(self.claim.attempts())
    }
}

impl Share {
    pub fn new(seat: &Arc<Seat>, lane: u64, claims: Claims) -> Self {
        Self {
            is_plain: seat.home.lease.is_none() && !seat.is_for_retries(),
            seat: Arc::clone(seat),
            lane,
            claims,
        }
    }

    /// Whether one that was put off, and is not done with, was put off from there.
    pub fn has_copy_of(&self, from: &Self, moving: Claim) -> bool {
        let mut words = Vec::new();
        self.claims.has_unacked(|found| {
            let len = size_of::<PutOff>().min(found.word.len() as usize);
            self.claims.ring.copy_out(found.body(), len, &mut words);
            PutOff::read_from_bytes(&words.as_bytes()[..len])
                .is_ok_and(|put_off| put_off.is_from(from) && put_off.from_claim == moving.0)
        })
    }

    /// Says of a message that was put off from here that its copy is there.
    pub fn end_move(&self, moving: Claim) {
        if moving.is(Fate::Moving) && self.claims.end_move(moving) {
            self.advance();
        }
    }

    /// What was claimed, fit to be handed out. `None`: its lease has ended already.
    #[inline(always)]
    pub fn accept(&self, found: Found, claim: Claim) -> Option<Item> {
        let mut item = Item {
            found,
            claim,
            envelope: 0,
            beside: None,
        };
        if !self.is_plain {
            item.beside = Some(self.beside(found, claim)?);
        }
        let is_put_off = item.put_off().is_some();
        if found.word.has_envelope() && !is_put_off {
            let parts = lane::parts(found.word, self.bytes(&item));
            item.envelope = parts.map_or(0, |(envelope, _)| envelope.len());
        }
        Some(item)
    }

    #[inline(never)]
    fn beside(&self, found: Found, claim: Claim) -> Option<Box<Beside>> {
        let mut beside = Beside::default();
        let len = found.word.len() as usize;
        if self.seat.home.lease.is_some() {
            let mut words = Vec::new();
            self.claims.ring.copy_out(found.body(), len, &mut words);
            if !self.claims.holds(claim) {
                return None;
            }
            beside.copy = Some(words);
        }
        if self.seat.is_for_retries() {
            let bytes = match &beside.copy {
                Some(words) => &words.as_bytes()[..len],
                None => self.lent(found),
            };
            beside.put_off = PutOff::split(bytes).map(|(put_off, ..)| put_off);
        }
        Some(Box::new(beside))
    }

    /// What it carries, where it lies.
    #[inline(always)]
    fn lent(&self, found: Found) -> &[u8] {
        // Not overwritten while the claim is ours: the head can't pass it, and without a lease nobody takes it away.
        let len = found.word.len() as usize;
        self.claims.ring.place(found.position, len).payload()
    }

    #[inline(always)]
    fn bytes<'a>(&'a self, item: &'a Item) -> &'a [u8] {
        let copy = item.beside.as_ref().and_then(|beside| beside.copy.as_ref());
        match copy {
            Some(words) => &words.as_bytes()[..item.found.word.len() as usize],
            None => self.lent(item.found),
        }
    }

    /// Its envelope, and its payload.
    #[inline(always)]
    fn parts<'a>(&'a self, item: &'a Item) -> (&'a [u8], &'a [u8]) {
        let bytes = self.bytes(item);
        match item.put_off() {
            Some(put_off) => bytes[size_of::<PutOff>()..].split_at(put_off.envelope as usize),
            None => bytes.split_at(item.envelope),
        }
    }

    #[inline(always)]
    pub fn payload<'a>(&'a self, item: &'a Item) -> &'a [u8] {
        self.parts(item).1
    }

    #[cold]
    fn lost(&self, claim: Claim, tried: &'static str) -> Error {
        let why = format!(
            "message {} of lane {} was taken away from this consumer: its lease had run out, or its group was removed",
            claim.sequence(),
            self.lane
        );
        let on = Arc::clone(&self.seat.home.topic.files.name);
        Error::new(ErrorKind::LeaseLost, tried, on, why).advise(
            "take it that another has done it again; use a longer lease if the work takes longer",
        )
    }

    pub fn envelope(&self, item: &Item) -> Option<Envelope> {
        Envelope::read(self.parts(item).0)
    }

    /// The beginning of its envelope.
    #[inline(always)]
    pub fn head<'a>(&'a self, item: &'a Item) -> &'a EnvelopeHead {
        let (envelope, _) = self.parts(item);
        match EnvelopeHead::ref_from_prefix(envelope) {
            Ok((head, _)) => head,
            Err(_) => &EnvelopeHead::NONE,
        }
    }

    /// Whether it is still this consumer's, and wanted.
    #[inline(always)]
    pub fn is_wanted(&self, claim: Claim) -> Result<bool> {
        self.seat.check_fork()?;
        Ok(claim != DONE && self.claims.holds(claim))
    }

    /// Before it is shown to anyone: nobody else is to get it, whatever happens. `None`: it is not wanted any more, or was
    /// taken away.
    pub fn begin_once(&self, claim: Claim) -> Option<Claim> {
        self.claims.begin_once(claim)
    }

    pub fn queue_name(&self) -> &str {
        &self.seat.home.topic.files.name
    }

    /// The queue's: consumers sleep on its bell, also for what was put off.
    pub fn control(&self) -> &Control {
        &self.seat.home.topic.files.control
    }

    #[inline(always)]
    pub fn ack(&self, claim: Claim) -> Result<()> {
        self.end(claim, Fate::Acked)
    }

    /// It is done with, in this way.
    #[inline(always)]
    pub fn end(&self, claim: Claim, fate: Fate) -> Result<()> {
        self.seat.check_fork()?;
        if claim == DONE {
            // That of nobody would be taken for the first message's, before anyone has that.
            return Ok(());
        }
        if !self.claims.end(claim, fate) {
            return Err(self.lost(claim, "acknowledge a message of"));
        }
        self.advance();
        Ok(())
    }

    /// Moves the group's head, and wakes who waits for that.
    #[inline]
    fn advance(&self) {
        self.claims.advance();
        self.claims.tell_blocked(self.control());
    }

    /// Gives it back to the group, if it is still ours and not done with.
    #[inline]
    pub fn give_back(&self, claim: Claim) {
        if claim != DONE && self.seat.check_fork().is_ok() {
            let freed = self.claims.free(claim);
            self.tell(freed);
        }
    }

    /// Has the group look again at what was given back, if some was, or for what waited for the head.
    pub fn tell(&self, freed: bool) {
        match freed {
            true => self.claims.offer(self.control()),
            false => self.claims.tell_blocked(self.control()),
        }
    }

    /// Makes it a dead letter. If that can't be written it is still ours.
    pub fn bury(&self, item: &Item, reason: &str) -> Result<()> {
        self.seat.check_fork()?;
        let home = &self.seat.home;
        let (lane, sequence) = self.origin(item);
        let (envelope, payload) = self.parts(item);
        let letter = DeadLetter {
            payload,
            queue: &home.topic.files.name,
            group: &home.group,
            reason,
            attempts: item.attempts(),
            lane,
            sequence,
            died: SystemTime::now(),
        };
        let letter = letter.to_bytes();
        if !self.claims.holds(item.claim) {
            return Err(self.lost(item.claim, "give up a message of"));
        }
        let envelope = Envelope::read(envelope);
        self.copy_to(&home.dead_letter, envelope, &letter, |outbox| {
            &mut outbox.dead
        })?;
        self.end(item.claim, Fate::Died)?;
        // If it was a request, its client looks what has become of it.
        roster::changed(&home.topic.files.control);
        Ok(())
    }

    /// Puts it off. If that can't be done it is still ours.
    fn put_off(&self, item: &Item, after: Duration) -> Result<()> {
        self.seat.check_fork()?;
        let Some(moving) = self.claims.begin_move(item.claim) else {
            return Err(self.lost(item.claim, "put off a message of"));
        };
        let home = &self.seat.home;
        let (lane, sequence) = self.origin(item);
        let (envelope, payload) = self.parts(item);
        let after_ns = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        let head = PutOff {
            due_ns: due_clock(&home.topic).saturating_add(after_ns),
            attempts: item.attempts(),
            lane,
            sequence: u64::from(sequence),
            from_lane: self.lane,
            from_retries: self.seat.is_for_retries().into(),
            from_claim: moving.0,
            envelope: envelope.len() as u64,
        };
        let record = [head.as_bytes(), envelope, payload].concat();
        let topic = records::retry_topic(&home.topic.files.name, &home.group);
        self.copy_to(&topic, None, &record, |outbox| &mut outbox.put_off)
            .inspect_err(|_| self.claims.give_up_move(moving))?;
        // Nobody takes it away: not from the living, as a lease does not end it.
        self.end_move(moving);
        // As above.
        park::ring(&home.topic.files.control);
        Ok(())
    }

    /// Writes `record` to a topic of the group's.
    fn copy_to(
        &self,
        topic: &str,
        envelope: Option<Envelope>,
        record: &[u8],
        which: impl FnOnce(&mut Outbox) -> &mut Option<Publisher>,
    ) -> Result<()> {
        let home = &self.seat.home;
        let mut outbox = home.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = which(&mut outbox);
        let send = |slot: &mut Option<Publisher>| {
            let publisher = match slot {
                Some(publisher) => publisher,
                none => {
                    let joined = Publisher::join(&beside(&home.topic, topic)?)?;
                    // Consumers open their retry topic when they see that something has changed.
                    roster::changed(&home.topic.files.control);
                    none.insert(joined)
                }
            };
            match &envelope {
                Some(envelope) => publisher.try_send_with(envelope, record),
                None => publisher.try_send(record),
            }?;
            match self.seat.topic.files.is_logged() {
                // Before the message is acknowledged here: that may reach the disk first.
                true => publisher.sync(),
                false => Ok(()),
            }
        };
        match send(slot) {
            // Somebody has removed it, with all that was in it: there is to be another.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                *slot = None;
                send(slot)
            }
            sent => sent,
        }
    }

    /// The lane it was pushed to, and its number there.
    fn origin(&self, item: &Item) -> (u64, u32) {
        match item.put_off() {
            Some(put_off) => (put_off.lane, put_off.sequence as u32),
            None => (self.lane, item.claim.sequence()),
        }
    }
}

/// Opens a queue of bytes beside another one, made if it is missing, with longer lanes.
fn beside(queue: &Arc<TopicInner>, name: &str) -> Result<Arc<TopicInner>> {
    let longer = records::capacity_beside(queue.files.capacity);
    let builder = queue.bus.topic_builder(name).made_with(longer);
    builder.open_inner(&[Pattern::Queue], &<[u8]>::describe(), [0; 3])
}

/// The group's retry topic, if there is one.
pub(super) fn retries_of(home: &Home) -> Result<Option<Arc<TopicInner>>> {
    let name = records::retry_topic(&home.topic.files.name, &home.group);
    let builder = home.topic.bus.topic_builder(&name).create(false);
    match builder.open_inner(&[Pattern::Queue], &<[u8]>::describe(), [0; 3]) {
        // A name that no topic can have has none.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidName) => Ok(None),
        opened => opened.map(Some),
    }
}

/// A message that this consumer has, until it is acknowledged, put off, rejected or given back. It derefs to the payload,
/// where it lies, or to a copy if its group has a lease. Several may be held at a time, moved to other threads, and finished
/// in any order; dropping one gives it back.
///
/// It is not to be read in a forked child, where it does nothing when dropped.
#[must_use = "a delivery that is dropped is given back"]
pub struct Delivery<T: ?Sized = [u8]> {
    share: Arc<Share>,
    /// With [`DONE`], it is done with. (A word beside words: a flag behind them makes moving a delivery thrice as dear.)
    item: Item,
    kind: PhantomData<fn() -> Box<T>>,
}

/// The claim on what is done with: that of nobody.
const DONE: Claim = Claim(0);

impl<T: ?Sized + Payload> Delivery<T> {
    pub(super) fn new(share: Arc<Share>, item: Item) -> Self {
        Self {
            share,
            item,
            kind: PhantomData,
        }
    }

    /// How often it was delivered, this time included: 1, unless a consumer died over it, gave it back, or lost its lease.
    /// Counting ends at 255.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.item.attempts()
    }

    /// What goes with it, if it has an envelope.
    #[must_use]
    pub fn envelope(&self) -> Option<Envelope> {
        self.share.envelope(&self.item)
    }

    /// The number of the lane it was pushed to: one for each producer at a time.
    #[must_use]
    pub fn lane(&self) -> u64 {
        self.share.origin(&self.item).0
    }

    /// The low 32 bits of its number in that lane.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        self.share.origin(&self.item).1
    }

    /// It is done: this group never gets it again.
    ///
    /// # Errors
    ///
    /// `LeaseLost` if it was taken away before: then another has it, or has done it. `Forked`.
    #[inline(always)]
    pub fn ack(mut self) -> Result<()> {
        let acked = self.share.ack(self.item.claim);
        self.item.set_done();
        acked
    }

    /// Another try later: after at least `after` it goes to any consumer of the group, who counts the attempts so far. Zero
    /// gives it back at once. Meanwhile it waits in the group's retry topic, and holds up nothing (of a durable queue: not before there are as many behind it as
    /// may be under way); its order is lost.
    ///
    /// # Errors
    ///
    /// `Full`, `NoSpace` and the like if it can't be put off: it is given back at once. `LeaseLost`, `Forked`.
    pub fn retry(self, after: Duration) -> Result<()> {
        if after.is_zero() {
            return self.share.seat.check_fork();
        }
        self.finish(|share, item| share.put_off(item, after))
    }

    /// Gives it up: it goes to the dead-letter topic, with `reason` (its first 512 bytes).
    ///
    /// # Errors
    ///
    /// `Full`, `NoSpace`, `Mismatch` and the like if that topic can't be written: it is given back. `LeaseLost`, `Forked`.
    pub fn reject(self, reason: &str) -> Result<()> {
        self.finish(|share, item| share.bury(item, reason))
    }

    fn finish(mut self, how: impl FnOnce(&Share, &Item) -> Result<()>) -> Result<()> {
        let done = how(&self.share, &self.item);
        if done.is_ok() {
            self.item.set_done();
        }
        done
    }
}

impl<T: ?Sized + Payload> Deref for Delivery<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        T::in_frame(self.share.payload(&self.item))
    }
}

impl<T: ?Sized> Drop for Delivery<T> {
    #[inline]
    fn drop(&mut self) {
        self.share.give_back(self.item.claim);
    }
}

impl<T: ?Sized> fmt::Debug for Delivery<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("lane", &self.share.lane)
            .field("sequence", &self.item.claim.sequence())
            .field("attempts", &self.item.attempts())
            .finish_non_exhaustive()
    }
}

/// Deliveries of one producer's messages, to be acknowledged together. Those that are not are given back when it is
/// dropped.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let queue = buslane::Bus::at(dir.path().join("bus"))?.queue("jobs")?;
/// queue.producer()?.push_batch(["one", "two"])?;
/// let mut consumer = queue.consumer()?;
/// let jobs = consumer.recv_batch(100)?;
/// assert_eq!(jobs.iter().collect::<Vec<_>>(), [b"one", b"two"]);
/// jobs.ack_all()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "deliveries that are dropped are given back"]
pub struct Deliveries<T: ?Sized = [u8]> {
    share: Arc<Share>,
    items: Vec<Item>,
    kind: PhantomData<fn() -> Box<T>>,
}

impl<T: ?Sized + Payload> Deliveries<T> {
    pub(super) fn new(share: Arc<Share>, items: Vec<Item>) -> Self {
        Self {
            share,
            items,
            kind: PhantomData,
        }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The payloads.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.items
            .iter()
            .map(|item| T::in_frame(self.share.payload(item)))
    }

    /// All are done.
    ///
    /// # Errors
    ///
    /// `LeaseLost` if one or more were taken away before; the others are acknowledged. `Forked`.
    pub fn ack_all(mut self) -> Result<()> {
        self.share.seat.check_fork()?;
        let items = std::mem::take(&mut self.items);
        let mut lost = None;
        for item in &items {
            if !self.share.claims.ack(item.claim) {
                lost = Some(self.share.lost(item.claim, "acknowledge a message of"));
            }
        }
        self.share.advance();
        lost.map_or(Ok(()), Err)
    }

    /// One by one.
    pub fn into_each(mut self) -> impl Iterator<Item = Delivery<T>> {
        let share = Arc::clone(&self.share);
        let mut items = std::mem::take(&mut self.items);
        items.reverse();
        let mut rest = Self::new(Arc::clone(&share), items);
        std::iter::from_fn(move || {
            let item = rest.items.pop()?;
            Some(Delivery::new(Arc::clone(&share), item))
        })
    }
}

impl<T: ?Sized> Drop for Deliveries<T> {
    fn drop(&mut self) {
        for item in &self.items {
            self.share.give_back(item.claim);
        }
    }
}

impl<T: ?Sized> fmt::Debug for Deliveries<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deliveries")
            .field("lane", &self.share.lane)
            .field("len", &self.items.len())
            .finish_non_exhaustive()
    }
}
