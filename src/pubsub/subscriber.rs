//! Receives messages of a topic.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::FromBytes;

use super::batch::{self, Batch};
use super::frame::Frame;
use super::receiver::{Named, Receiver, Start};
use crate::bus::TopicInner;
use crate::error::{Error, ErrorKind, Lost, Result};
use crate::futures::{MessageStream, Receive};
use crate::message::Payload;
use crate::presence;
use crate::reactor::{Ready, Sleep};
use crate::shm::lane::{Found, NotPlain, Reader, Unread};
use crate::shm::layout::{EnvelopeHead, Word};
use crate::shm::park::Ticket;
use crate::wait::Waitable;

/// Receives the messages of a topic, from all its publishers. They wait for it: what it has not released stays.
///
/// On a lossy topic they don't: a subscriber that is a ring behind loses the oldest messages, and is told exactly how
/// many, and how many bytes, by an error [`Lost`](ErrorKind::Lost) in their place. It then goes on with the oldest that is
/// held. A message that it was given is whole, and stays until it is released: it is a copy.
///
/// ```
/// use buslane::ErrorKind;
///
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let topic = bus.topic_builder("ticks").lossy(true).capacity(4096).open()?;
/// let (mut subscriber, mut publisher) = (topic.subscriber()?, topic.publisher()?);
/// for tick in 0..1000_u64 {
///     publisher.send(&tick.to_le_bytes())?; // never waits
/// }
/// let gap = subscriber.recv().unwrap_err();
/// assert_eq!(gap.kind(), ErrorKind::Lost);
/// let lost = gap.lost().unwrap();
/// assert_eq!(subscriber.recv()?[..], lost.messages.to_le_bytes());
/// assert_eq!(lost.bytes, lost.messages * 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Subscriber<T: ?Sized = [u8]> {
    pub(super) receiver: Receiver,
    sleep: Sleep,
    kind: PhantomData<fn() -> Box<T>>,
}

impl<T: ?Sized> fmt::Debug for Subscriber<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Receiver { topic, cursor, .. } = &self.receiver;
        f.debug_struct("Subscriber")
            .field("topic", &topic.files.name)
            .field("cursor", &cursor.id)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized> Waitable for Subscriber<T> {
    fn is_ready(&mut self) -> Result<bool> {
        self.receiver.is_ready()
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        self.receiver.arm(tickets)
    }

    fn disarm(&mut self) {
        self.receiver.disarm();
    }

    fn due(&self) -> Option<Instant> {
        self.receiver.due()
    }
}

impl<T: ?Sized + Payload> Subscriber<T> {
    pub(crate) fn join(topic: &Arc<TopicInner>, start: Start) -> Result<Self> {
        Ok(Self::with(Receiver::join(topic, start, None)?))
    }

    /// Joins without any publisher waiting for it.
    pub(crate) fn join_lossy(topic: &Arc<TopicInner>, start: Start) -> Result<Self> {
        Ok(Self::with(Receiver::join_as(topic, start, None, true)?))
    }

    fn with(receiver: Receiver) -> Self {
        Self {
            receiver,
            sleep: Sleep::default(),
            kind: PhantomData,
        }
    }

    /// The name that it goes on with after a restart, if it is a named subscription of a durable topic.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.receiver
            .named
            .as_ref()
            .map(|named| named.name.as_str())
    }

    /// Says that all that it has received is done with: a named subscription goes on behind that after a restart. Only of use if
    /// it was opened [by ack](SubscriptionBuilder::by_ack); else each message counts as received when its [`Frame`] is dropped.
    ///
    /// # Errors
    ///
    /// `Forked`.
    pub fn ack(&mut self) -> Result<()> {
        self.receiver.acknowledge()
    }

    /// After `Corrupt` on a durable topic: goes on at the next message that is whole. What was passed is counted in
    /// [`lost`](Self::lost), too; its bytes are those of the lane, with what is around messages. Nothing is passed if there is
    /// no damage, or nothing whole behind it yet.
    ///
    /// # Errors
    ///
    /// `Forked`, and the system's.
    pub fn skip_damaged(&mut self) -> Result<Lost> {
        self.receiver.skip_damaged()
    }

    /// The topic's name.
    #[must_use]
    pub fn topic_name(&self) -> &str {
        &self.receiver.topic.files.name
    }

    pub(crate) fn topic(&self) -> &TopicInner {
        &self.receiver.topic
    }

    #[inline]
    pub(crate) fn find(&mut self) -> Result<Option<Found>> {
        self.receiver.find()
    }

    /// Looks at the source that is read now, and at nothing else, so often.
    #[inline]
    pub(crate) fn look_closely(&mut self, looks: u32) -> Option<Found> {
        self.receiver.looks = looks;
        self.receiver.look_closely()
    }

    /// The envelope of what was found just now: its beginning, and how many bytes it has. `None`: it has none, or
    /// contradicts itself, which is told when it is taken.
    #[inline]
    pub(crate) fn envelope_of(&self, found: Found) -> Option<(&EnvelopeHead, usize)> {
        let source = self.receiver.sources.here()?;
        let (envelope, _) = source.reader.parts(found)?;
        let (head, _) = EnvelopeHead::ref_from_prefix(envelope).ok()?;
        Some((head, envelope.len()))
    }

    pub(crate) fn has_news(&mut self) -> Result<bool> {
        self.receiver.has_news()
    }

    /// Whether the last publisher has left, and all is received; `None`: none was there since that was said.
    pub(crate) fn has_ended(&self) -> Option<bool> {
        self.receiver
            .had_publisher
            .then(|| self.receiver.has_ended())
    }

    /// Says that it has ended.
    pub(crate) fn take_end(&mut self) -> bool {
        self.receiver.take_end()
    }

    /// The next message, in place. Waits for it as the wait strategy says.
    ///
    /// # Errors
    ///
    /// `Ended` when at least one publisher was there, the last has left, and all is received; called again, it waits
    /// for the next publisher. `Lost` where messages of a lossy topic are missing; called again, it goes on behind them.
    /// `Corrupt` (once for each lane) when a lane contradicts itself. `Forked`, and the system's.
    #[inline(always)]
    pub fn recv(&mut self) -> Result<Frame<'_, T>> {
        match self.receiver.look_plain(T::SIZE) {
            Ok(unread) => return Ok(self.plain_frame(unread)),
            Err(NotPlain::Nothing) => {
                if let Ok(unread) = self.receiver.look_plain_closely(T::SIZE) {
                    return Ok(self.plain_frame(unread));
                }
            }
            Err(NotPlain::Other) => {}
        }
        let word = self.next_checked()?;
        Ok(self.frame_here(word, self.receiver.envelope_len))
    }

    /// The next message, if it is there: in place.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    #[inline(always)]
    pub fn try_recv(&mut self) -> Result<Option<Frame<'_, T>>> {
        if let Ok(unread) = self.receiver.look_plain(T::SIZE) {
            return Ok(Some(self.plain_frame(unread)));
        }
        let found = self.receiver.next_now()?;
        found.map(|found| self.frame(found)).transpose()
    }

    /// The next message, in place; `None` if there is none for `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    #[inline]
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<Frame<'_, T>>> {
        let found = self.receiver.next_within(timeout)?;
        found.map(|found| self.frame(found)).transpose()
    }

    /// The next message, in place, as a future: the task sleeps while there is none. It is taken only when the future is
    /// ready: one that is dropped before, as `select!` does, loses nothing.
    ///
    /// While there are messages, it is ready at once, every time: a task that receives without end lets others run where it
    /// says so itself.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv); `Unsupported` if it must wait before Linux 5.16.
    pub async fn recv_async(&mut self) -> Result<Frame<'_, T>> {
        let Self {
            receiver, sleep, ..
        } = self;
        let found = loop {
            Ready::new(&mut *receiver, sleep).await?;
            if let Some(found) = receiver.next_now()? {
                break found;
            }
        };
        self.frame(found)
    }

    /// The next messages of one publisher, at least one, in place: `max` at most, and no more than some 64 KiB, or a quarter
    /// of the lane, so that the other publishers have their turn. Waits for the first one. On a lossy or durable topic it is always one.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    #[inline]
    pub fn recv_batch(&mut self, max: usize) -> Result<Batch<'_, T>> {
        if self.receiver.was_short {
            self.receiver.note_vain_look();
        }
        let found = match self.receiver.look() {
            Some(found) => found,
            None => self.receiver.next()?,
        };
        self.batch(found, max)
    }

    /// The same, if there are any now.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    #[inline]
    pub fn try_recv_batch(&mut self, max: usize) -> Result<Option<Batch<'_, T>>> {
        let found = self.receiver.next_now()?;
        found.map(|found| self.batch(found, max)).transpose()
    }

    #[inline]
    fn batch(&mut self, first: Found, max: usize) -> Result<Batch<'_, T>> {
        self.check(first)?;
        let up_to = (max, self.receiver.until);
        let reader = &self.receiver.here().reader;
        let is_meant = |reader: &Reader, found| batch::payload::<T>(reader, found).is_some();
        let row = reader.row(first, up_to, T::SIZE, is_meant);
        self.receiver.was_short = row.is_last;
        Ok(Batch {
            reader: &mut self.receiver.here().reader,
            row,
            payload: PhantomData,
        })
    }

    /// What [`Receiver::look_plain`] found just now.
    #[inline(always)]
    fn plain_frame(&mut self, unread: Unread) -> Frame<'_, T> {
        let until = self.receiver.plain_until;
        let source = self.receiver.here();
        let lane = source.id;
        let (payload, track) = source.reader.read(unread);
        Frame {
            payload: T::in_frame(payload),
            envelope: &[],
            track,
            word: unread.word,
            end: unread.end,
            lane,
            until,
        }
    }

    /// What was found just now.
    #[inline(always)]
    pub(crate) fn frame(&mut self, found: Found) -> Result<Frame<'_, T>> {
        let before = self.check(found)?;
        Ok(self.frame_behind(found, before))
    }

    /// Bytes of the envelope of what was found just now, if it is as it should be.
    #[inline(always)]
    fn check(&mut self, found: Found) -> Result<usize> {
        let before = self.receiver.envelope_len(found)?;
        let len = found.word.len() - before as u64;
        if len != T::SIZE.unwrap_or(len) {
            return Err(self.wrong_size(len));
        }
        Ok(before)
    }

    /// Waits for the next message, and says its word: what is not inlined gives back what fits registers. The rest is in
    /// `receiver`.
    #[inline(never)]
    fn next_checked(&mut self) -> Result<Word> {
        let found = self.receiver.next()?;
        self.receiver.envelope_len = self.check(found)?;
        Ok(found.word)
    }

    /// The message at the reader's position, which was looked at.
    #[inline(always)]
    fn frame_here(&mut self, word: Word, before: usize) -> Frame<'_, T> {
        let position = self.receiver.here().reader.position();
        self.frame_behind(Found { position, word }, before)
    }

    /// The same, with so many bytes of an envelope, of a size that was looked at.
    #[inline(always)]
    pub(crate) fn frame_behind(&mut self, found: Found, before: usize) -> Frame<'_, T> {
        let until = self.receiver.plain_until;
        let source = self.receiver.here();
        let (body, track) = source.reader.take(found);
        let (envelope, payload) = body.split_at(before);
        Frame {
            payload: T::in_frame(payload),
            envelope,
            track,
            word: found.word,
            end: found.end(),
            lane: source.id,
            until,
        }
    }

    #[cold]
    fn wrong_size(&mut self, len: u64) -> Error {
        let carries = T::describe();
        let why = format!("a message has {len} bytes, and the topic carries {carries}");
        self.receiver.contradicts(why)
    }

    /// Copies of the messages, until the last publisher has left.
    ///
    /// ```
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let topic = buslane::Bus::at(dir.path().join("bus"))?.topic("t")?;
    /// let mut subscriber = topic.subscriber()?;
    /// topic.publisher()?.send_batch(["one", "two"])?;
    /// let all: Result<Vec<_>, _> = subscriber.iter().collect();
    /// assert_eq!(all?, [b"one", b"two"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn iter(&mut self) -> Messages<'_, T> {
        Messages { subscriber: self }
    }

    /// What was lost so far, of all publishers; `lane` is 0. Nothing on a lossless topic, unless it is durable and keeps its messages for a
    /// time, or so many bytes, only.
    #[must_use]
    pub fn lost(&self) -> Lost {
        self.receiver.lost
    }

    /// A stream of copies of the messages. It ends when the last publisher has left; may go on after that, when another one
    /// comes. To read in place, see [`recv_async`](Self::recv_async).
    pub fn stream(&mut self) -> MessageStream<&mut Self> {
        MessageStream::new(self)
    }

    /// The same, as the subscriber's owner.
    pub fn into_stream(self) -> MessageStream<Self> {
        MessageStream::new(self)
    }

    /// How many publishers there are now; another may join or leave meanwhile.
    ///
    /// # Errors
    ///
    /// `Forked`, and the system's.
    pub fn publisher_count(&mut self) -> Result<usize> {
        self.receiver.count_publishers()
    }

    /// Waits until there are `n` publishers, or more. Sleeps.
    ///
    /// # Errors
    ///
    /// `TimedOut`, `Forked`, and the system's.
    pub fn wait_for_publishers(&mut self, n: usize, timeout: Option<Duration>) -> Result<()> {
        let topic = Arc::clone(&self.receiver.topic);
        presence::until(&topic, "wait for publishers of", timeout, || {
            Ok(self.publisher_count()? >= n)
        })
    }
}

impl<T: ?Sized + Payload> Receive for Subscriber<T> {
    type Item = T::Owned;

    fn receive_now(&mut self) -> Result<Option<T::Owned>> {
        Ok(self.try_recv()?.map(|frame| frame.copied()))
    }
}

/// For streams of bytes: a message that is kept unreleased between calls, without a borrow. Nothing else is called on the
/// subscriber in between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    found: Found,
    /// Bytes of its envelope, as they were when it was kept.
    envelope: usize,
}

impl Subscriber<[u8]> {
    /// Waits for the next message.
    pub(crate) fn keep(&mut self) -> Result<Kept> {
        let found = self.receiver.next()?;
        self.kept_of(found)
    }

    /// The next message, if it is there; none, too, after the last publisher has left.
    pub(crate) fn keep_now(&mut self) -> Result<Option<Kept>> {
        match self.receiver.next_now() {
            Ok(found) => found.map(|found| self.kept_of(found)).transpose(),
            Err(e) if e.kind() == ErrorKind::Ended => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn kept_of(&mut self, found: Found) -> Result<Kept> {
        let envelope = self.receiver.envelope_len(found)?;
        Ok(Kept { found, envelope })
    }

    /// Whether a publisher is there whose end was not yet reported.
    pub(crate) fn has_publisher(&self) -> bool {
        self.receiver.had_publisher
    }

    pub(crate) fn kept(&self, kept: Kept) -> Result<&[u8]> {
        self.receiver.check_fork()?;
        let here = self.receiver.sources.here();
        Ok(here.map_or(&[], |here| &here.reader.body(kept.found)[kept.envelope..]))
    }

    pub(crate) fn release(&mut self, kept: Kept) {
        if self.receiver.check_fork().is_ok() {
            let track = self.receiver.here().reader.track();
            track.release(kept.found.end(), 0);
        }
    }
}

/// Joins a topic of a durable bus as a named subscriber, otherwise than by default. Made by
/// [`Topic::subscription_builder`](crate::Topic::subscription_builder).
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use buslane::{Bus, Start};
///
/// let bus = Bus::builder().durable(true).capacity(65536).at(dir.path().join("bus"))?;
/// let topic = bus.topic("orders")?;
/// topic.publisher()?.send(b"100 pears")?;
/// let open = || topic.subscription_builder("billing").start(Start::Oldest).by_ack(true).open();
/// let mut billing = open()?;
/// assert_eq!(&*billing.recv()?, b"100 pears");
/// drop(billing); // it died before it had billed them
///
/// let mut billing = open()?;
/// assert_eq!(&*billing.recv()?, b"100 pears");
/// billing.ack()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct SubscriptionBuilder<T: ?Sized = [u8]> {
    topic: Arc<TopicInner>,
    name: String,
    start: Start,
    by_ack: bool,
    kind: PhantomData<fn() -> Box<T>>,
}

impl<T: ?Sized + Payload> SubscriptionBuilder<T> {
    pub(crate) fn new(topic: &Arc<TopicInner>, name: &str) -> Self {
        Self {
            topic: Arc::clone(topic),
            name: name.to_owned(),
            start: Start::Now,
            by_ack: false,
            kind: PhantomData,
        }
    }

    /// With which messages it begins, if it is new.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Whether what it receives counts as received only when it says so by [`Subscriber::ack`]; if not, when each
    /// [`Frame`] is dropped.
    pub fn by_ack(mut self, by_ack: bool) -> Self {
        self.by_ack = by_ack;
        self
    }

    /// Joins.
    ///
    /// # Errors
    ///
    /// As for [`Topic::subscription`](crate::Topic::subscription).
    pub fn open(self) -> Result<Subscriber<T>> {
        let files = &self.topic.files;
        if !files.is_logged() {
            let why = "nothing of it is kept: the bus is not durable, or the topic is lossy";
            return Err(Error::new(
                ErrorKind::Unsupported,
                "receive by name from",
                &*files.name,
                why,
            )
            .advise("subscribe without a name, or use a bus that was made as durable"));
        }
        let named = Named {
            name: self.name,
            by_ack: self.by_ack,
        };
        let receiver = Receiver::join(&self.topic, self.start, Some(named))?;
        Ok(Subscriber::with(receiver))
    }
}

/// Copies of the messages of a [`Subscriber`]. Ends when the last publisher has left; may go on after that, when another one comes.
#[must_use]
pub struct Messages<'a, T: ?Sized> {
    subscriber: &'a mut Subscriber<T>,
}

impl<T: ?Sized> fmt::Debug for Messages<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages")
            .field("subscriber", &self.subscriber)
            .finish()
    }
}

impl<T: ?Sized + Payload> Iterator for Messages<'_, T> {
    type Item = Result<T::Owned>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.subscriber.recv() {
            Ok(frame) => Some(Ok(frame.copied())),
            Err(e) if e.kind() == ErrorKind::Ended => None,
            Err(e) => Some(Err(e)),
        }
    }
}
