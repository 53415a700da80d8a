//! Publish and subscribe: a lane for each publisher, a cursor for each subscriber. The model for the other patterns.

mod sources;

use std::fmt;
use std::hint;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant};

use zerocopy::FromBytes;

use crate::bus::{TopicInner, forked};
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Lost, Result};
use crate::futures::{MessageSink, MessageStream, Receive};
use crate::message::{Message, Payload};
use crate::presence;
use crate::reactor::{Ready, Sleep};
use crate::shm::fork::{self, Held};
use crate::shm::lane::{
    self, Boundary, Found, Missed, NotPlain, Outside, Reader, Row, Track, Trouble, Unread, Writer,
};
use crate::shm::layout::{Control, EnvelopeHead, Word, max_len};
use crate::shm::park::{self, Ticket, Watch};
use crate::shm::roster::{self, Cursor, Lowest, Readers};
use crate::shm::topic::TopicFiles;
use crate::shm::{View, futex, reclaim};
use crate::wait::{Next, Waitable, Waiter};
use sources::{Source, Sources};

// ------------------------------------------------------------------------------------------------------ publishing

/// Sends messages of a topic. Its messages reach every subscriber in the order they were sent; there is no order
/// between publishers.
///
/// Sending waits, or says [`Full`](ErrorKind::Full), while the slowest subscriber has no room. Without subscribers, and on
/// a lossy topic, it never waits. Dropping it closes its lane; subscribers still receive what is in there.
#[must_use]
pub struct Publisher<T: ?Sized = [u8]> {
    sender: Sender,
    sleep: Sleep,
    kind: PhantomData<fn(&T)>,
}

/// A publisher of whatever type.
struct Sender {
    lane: Writer,
    watch: Watch,
    /// The topic's: near, as it is looked at for every message.
    control: View<Control>,
    readers: Readers,
    /// A reader, or this process, can't use `membarrier`.
    fences: bool,
    max_len: usize,
    born: u64,
    id: u64,
    /// Says that the lane has a writer.
    lock: Option<Held>,
    topic: Arc<TopicInner>,
}

impl<T: ?Sized> fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sender { topic, id, .. } = &self.sender;
        f.debug_struct("Publisher")
            .field("topic", &topic.files.name)
            .field("lane", id)
            .finish_non_exhaustive()
    }
}

/// Bytes of a value that a compiler may keep in registers.
const IN_REGISTERS: usize = 64;

/// How long to wait for room: `None` is for ever, zero not at all.
type Patience = Option<Duration>;

impl Sender {
    fn join(topic: &Arc<TopicInner>) -> Result<Self> {
        topic.bus.listen()?;
        let files = &topic.files;
        let (lock, id, lane) = files.lane_to_write(topic.bus.member(), files.capacity)?;
        // After the lane has its name, and before the cursors are listed.
        roster::changed(&files.control);
        let max_len = max_len(lane.capacity()) as usize;
        let (watch, readers, born) = (Watch::default(), Readers::default(), fork::generation());
        let control = files.control.clone();
        let (lock, topic) = (Some(lock), Arc::clone(topic));
        let mut sender = Self {
            lane,
            watch,
            control,
            readers,
            fences: false,
            max_len,
            born,
            id,
            lock,
            topic,
        };
        sender.refresh()?;
        Ok(sender)
    }

    fn failed(&self, kind: ErrorKind, why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::new(kind, "send on", Arc::clone(&self.topic.files.name), why)
    }

    #[inline]
    fn check_fork(&self) -> Result<()> {
        if self.born == fork::generation() {
            Ok(())
        } else {
            Err(forked("send on", &self.topic.files.name))
        }
    }

    /// Claims a frame for `len` bytes, and says where they go.
    #[inline(always)]
    fn claim(&mut self, len: usize, patience: Patience) -> Result<u64> {
        self.check_fork()?;
        if len > self.max_len {
            return Err(self.too_long(len));
        }
        match self.lane.claim(len) {
            Ok(at) => Ok(at),
            Err(_) => self.claim_slowly(len, patience),
        }
    }

    #[inline(always)]
    fn send(&mut self, payload: &[u8], patience: Patience) -> Result<()> {
        let is_sent = self.lane.put(payload);
        if is_sent && self.watch.is_quiet(&self.control) {
            return Ok(());
        }
        self.send_rest(is_sent, payload, patience)
    }

    /// The same of a value that may be in registers.
    #[inline(always)]
    fn send_value<T: Message + 'static>(&mut self, value: &T, patience: Patience) -> Result<()> {
        let payload = value.as_bytes();
        if payload.len() > IN_REGISTERS {
            return self.send(payload, patience);
        }
        let is_sent = self.lane.put(payload);
        if is_sent && self.watch.is_quiet(&self.control) {
            return Ok(());
        }
        // Of a copy: what is given away by its address is in memory from the beginning.
        self.send_rest(is_sent, T::read(payload).as_bytes(), patience)
    }

    /// Sends it if there is room already.
    fn put_unprepared(&mut self, payload: &[u8]) -> bool {
        // What nothing is prepared for may be anything.
        payload.len() <= self.max_len && self.lane.put_unprepared(payload)
    }

    /// What is rarely to be done: all, if it is not sent, and to look around.
    #[inline(never)]
    fn send_rest(&mut self, is_sent: bool, payload: &[u8], patience: Patience) -> Result<()> {
        // A forked child has zeros in place of the lane and of `attention`, which is not 0: it comes here.
        self.check_fork()?;
        if !is_sent && !self.put_unprepared(payload) {
            let at = self.claim(payload.len(), patience)?;
            self.lane.write(at, payload);
            self.lane.commit(payload.len());
        }
        self.look_around();
        Ok(())
    }

    /// Makes a run visible, and begins another one, unless messages are too long for one: then they are sent singly.
    #[inline(never)]
    fn begin_run(&mut self, first: &[u8]) -> Result<()> {
        self.lane.publish();
        self.look_around();
        if self.lane.put_in_run(first) {
            return Ok(());
        }
        self.send(first, None)
    }

    #[inline(always)]
    fn commit(&mut self, len: usize) {
        self.lane.commit(len);
        self.look_around();
    }

    /// Claims a frame for an envelope and `len` bytes: where the latter go, and the bytes before them. The beginning of the
    /// envelope is written by [`commit_with`](Self::commit_with): a reader polls that line, and takes it away again if it
    /// is written long before the word.
    #[inline(always)]
    fn claim_with(
        &mut self,
        envelope: &Envelope,
        len: usize,
        patience: Patience,
    ) -> Result<(u64, usize)> {
        let before = envelope.len();
        // There is room for the head beside the longest message.
        let counted = len.saturating_add(before - EnvelopeHead::SIZE);
        if counted > self.max_len {
            return Err(self.too_long(counted));
        }
        self.check_fork()?;
        let at = match self.lane.claim(before + len) {
            Ok(at) => at,
            Err(_) => self.claim_slowly(before + len, patience)?,
        };
        if before > EnvelopeHead::SIZE {
            let behind = at + EnvelopeHead::SIZE as u64;
            self.lane.write(behind, envelope.extension());
        }
        Ok((at + before as u64, before))
    }

    /// Commits a frame with an envelope of `before` bytes, which begins with `head`, and `len` bytes at `at`.
    #[inline(always)]
    fn commit_with(&mut self, head: &EnvelopeHead, (at, before): (u64, usize), len: usize) {
        self.lane.write_head(at - before as u64, head);
        self.lane.commit_with_envelope(before + len);
        self.look_around();
    }

    #[inline(always)]
    fn send_with(&mut self, envelope: &Envelope, payload: &[u8], patience: Patience) -> Result<()> {
        let place = self.claim_with(envelope, payload.len(), patience)?;
        self.lane.write(place.0, payload);
        self.commit_with(envelope.head(), place, payload.len());
        Ok(())
    }

    /// After a commit: one load, unless somebody joined, left, or went to sleep.
    #[inline(always)]
    fn look_around(&mut self) {
        if !self.watch.is_quiet(&self.control) {
            self.attend();
        }
    }

    #[cold]
    fn attend(&mut self) {
        if !self.watch.disturbed(&self.control, self.fences) {
            return;
        }
        // If the readers can't be listed now, one of them may sleep: ring in any case. The next slow path says why.
        if self.refresh().is_err() || self.readers.any_parked() {
            park::ring(&self.topic.files.control);
        }
    }

    fn refresh(&mut self) -> Result<()> {
        let files = &self.topic.files;
        self.readers.refresh(&files.control, self.id, |known| {
            files.list_cursors(self.id, known)
        })?;
        self.fences = self.readers.fences() || !futex::has_barrier();
        Ok(())
    }

    /// The slowest reader now.
    fn survey(&mut self) -> Result<Lowest> {
        self.refresh()?;
        let unjoined = match self.topic.files.pattern.is_lossy() {
            // Who was here before the lane begins at 0, however far the writer has gone.
            true => Some(0),
            false => self.lane.unjoined(),
        };
        Ok(self.readers.lowest(self.id, unjoined))
    }

    /// Moves the limit towards `end`; the slowest reader.
    fn make_room(&mut self, end: u64) -> Result<Lowest> {
        let Self {
            lane,
            readers,
            topic,
            id,
            ..
        } = self;
        let files = &topic.files;
        if files.pattern.is_lossy() {
            return lane.extend(end, |_| Ok(Lowest::nobody()));
        }
        lane.extend(end, |unjoined| {
            readers.refresh(&files.control, *id, |known| files.list_cursors(*id, known))?;
            Ok(readers.lowest(*id, unjoined))
        })
    }

    #[cold]
    fn claim_slowly(&mut self, len: usize, patience: Patience) -> Result<u64> {
        // A run must be visible before anyone can make room for more of it.
        self.lane.publish();
        self.look_around();
        let mut waiter = Waiter::new(self.topic.wait, patience);
        loop {
            let end = match self.lane.claim(len) {
                Ok(at) => return Ok(at),
                Err(full) => full.end,
            };
            self.make_room(end)?;
            if let Ok(at) = self.lane.claim(len) {
                return Ok(at);
            }
            if patience == Some(Duration::ZERO) {
                return Err(self
                    .failed(
                        ErrorKind::Full,
                        "there is no room: the slowest subscriber is a ring behind",
                    )
                    .advise("wait (send), send less, or make the topic with a larger capacity"));
            }
            match waiter.next(1) {
                Next::Look => {}
                Next::Sleep(time) => self.sleep_until(end, time)?,
                Next::TimedOut => {
                    return Err(self
                        .failed(
                            ErrorKind::TimedOut,
                            "the slowest subscriber made no room in time",
                        )
                        .advise("look for it with `buslane inspect`, or wait longer"));
                }
            }
        }
    }

    fn sleep_until(&mut self, end: u64, time: Duration) -> Result<()> {
        let lowest = self.survey()?;
        let want = self.lane.wanted(end, lowest.position);
        let topic = Arc::clone(&self.topic);
        let header = self.lane.header().clone();
        park::wait_for_room(&topic.files.control, &header, want, time, || {
            self.look_for_room(end)
        })
    }

    /// The slowest reader, if it leaves no room for what needs a limit of `end`.
    fn look_for_room(&mut self, end: u64) -> Result<Option<Lowest>> {
        let lowest = self.make_room(end)?;
        Ok((!self.lane.reaches(end)).then_some(lowest))
    }

    /// The slowest reader, if it has not reached `target`.
    fn look_for_delivery(&mut self, target: u64) -> Result<Option<Lowest>> {
        let lowest = self.survey()?;
        Ok((lowest.position < target).then_some(lowest))
    }

    fn wait_delivered(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.check_fork()?;
        let target = self.lane.visible();
        let mut waiter = Waiter::new(self.topic.wait, timeout);
        loop {
            if self.is_delivered(target)? {
                return Ok(());
            }
            match waiter.next(1) {
                Next::Look => {}
                Next::Sleep(time) => {
                    let topic = Arc::clone(&self.topic);
                    let header = self.lane.header().clone();
                    park::wait_for_room(&topic.files.control, &header, target, time, || {
                        self.look_for_delivery(target)
                    })?;
                }
                Next::TimedOut => {
                    return Err(self
                        .failed(
                            ErrorKind::TimedOut,
                            "a subscriber has not received everything in time",
                        )
                        .advise("look for it with `buslane inspect`, or wait longer"));
                }
            }
        }
    }

    fn is_delivered(&mut self, target: u64) -> Result<bool> {
        let lowest = self.survey()?;
        if lowest.position < u64::MAX {
            return Ok(lowest.position >= target);
        }
        match self.readers.farthest_left() {
            Some(left) if left < target => Err(self
                .failed(
                    ErrorKind::SubscribersGone,
                    "the last subscriber left or died before it had everything",
                )
                .advise("start one, and send again")),
            _ => Ok(true),
        }
    }

    fn too_long(&self, len: usize) -> Error {
        let capacity = self.lane.capacity();
        let why = format!(
            "the message has {len} bytes, and {} are the limit with a capacity of {capacity}",
            self.max_len
        );
        self.failed(ErrorKind::TooLong, why)
            .advise("split the message, or make the topic with a larger capacity")
    }
}

/// A sender that waits for room for so many bytes.
struct Room<'a> {
    sender: &'a mut Sender,
    len: usize,
    /// When it does not any more.
    until: Option<Instant>,
}

impl<'a> Room<'a> {
    fn new(sender: &'a mut Sender, len: usize) -> Self {
        let until = None;
        Self { sender, len, until }
    }
}

impl Waitable for Room<'_> {
    fn is_ready(&mut self) -> Result<bool> {
        let Self { sender, len, until } = self;
        sender.check_fork()?;
        let is_over = until.is_some_and(|until| until <= Instant::now());
        if is_over || *len > sender.max_len + EnvelopeHead::SIZE {
            // To be told.
            return Ok(true);
        }
        if sender.lane.has_room(*len).is_ok() {
            return Ok(true);
        }
        // As in `claim_slowly`.
        sender.lane.publish();
        sender.look_around();
        match sender.lane.has_room(*len) {
            Ok(()) => Ok(true),
            Err(full) => Ok(sender.look_for_room(full.end)?.is_none()),
        }
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        let Self { sender, len, .. } = self;
        let Err(full) = sender.lane.has_room(*len) else {
            return Ok(());
        };
        let lowest = sender.survey()?;
        let want = sender.lane.wanted(full.end, lowest.position);
        sender.arm(tickets, want, |sender| sender.look_for_room(full.end))
    }

    fn disarm(&mut self) {
        self.sender.disarm();
    }

    fn due(&self) -> Option<Instant> {
        self.until
    }
}

/// A sender that waits until all is received up to a position.
struct Delivered<'a> {
    sender: &'a mut Sender,
    target: u64,
}

impl Waitable for Delivered<'_> {
    fn is_ready(&mut self) -> Result<bool> {
        self.sender.check_fork()?;
        self.sender.is_delivered(self.target)
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        let target = self.target;
        self.sender
            .arm(tickets, target, |sender| sender.look_for_delivery(target))
    }

    fn disarm(&mut self) {
        self.sender.disarm();
    }
}

impl Sender {
    fn arm(
        &mut self,
        tickets: &mut Vec<Ticket>,
        want: u64,
        look: impl FnOnce(&mut Self) -> Result<Option<Lowest>>,
    ) -> Result<()> {
        let topic = Arc::clone(&self.topic);
        let header = self.lane.header().clone();
        let ticket = park::arm_room(&topic.files.control, &header, want, || look(self))?;
        tickets.extend(ticket);
        Ok(())
    }

    fn disarm(&self) {
        if self.check_fork().is_ok() {
            park::disarm_room(self.lane.header());
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if self.born != fork::generation() {
            return;
        }
        let files = &self.topic.files;
        lane::close(self.lane.header());
        drop(self.lock.take());
        // What can't be put away here will be by its last reader, or the next one who opens the bus.
        let _ = reclaim::tidy_lane(files, self.id);
        roster::changed(&files.control);
    }
}

impl<T: ?Sized + Payload> Publisher<T> {
    pub(crate) fn join(topic: &Arc<TopicInner>) -> Result<Self> {
        let sender = Sender::join(topic)?;
        let size = T::describe().size();
        if size > sender.max_len {
            return Err(sender.too_long(size));
        }
        Ok(Self {
            sender,
            sleep: Sleep::default(),
            kind: PhantomData,
        })
    }

    /// The topic's name.
    #[must_use]
    pub fn topic_name(&self) -> &str {
        &self.sender.topic.files.name
    }

    /// Bytes in the longest message.
    #[must_use]
    pub fn max_len(&self) -> usize {
        self.sender.max_len
    }

    /// How many subscribers there are now; another may join or leave meanwhile. No system call, unless one just did.
    ///
    /// # Errors
    ///
    /// `Forked`, and the system's.
    pub fn subscriber_count(&mut self) -> Result<usize> {
        self.sender.check_fork()?;
        self.sender.refresh()?;
        Ok(self.sender.readers.count())
    }

    /// Waits until there are `n` subscribers, or more. Sleeps.
    ///
    /// # Errors
    ///
    /// `TimedOut`, `Forked`, and the system's.
    pub fn wait_for_subscribers(&mut self, n: usize, timeout: Option<Duration>) -> Result<()> {
        let topic = Arc::clone(&self.sender.topic);
        presence::until(&topic, "wait for subscribers of", timeout, || {
            Ok(self.subscriber_count()? >= n)
        })
    }

    /// Waits until every subscriber has received all that was sent so far: released it, and looked for more.
    ///
    /// # Errors
    ///
    /// `SubscribersGone` if the last of them left or died before; `TimedOut`, `Forked`, and the system's.
    pub fn wait_delivered(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.sender.wait_delivered(timeout)
    }

    /// The same, as a future that may be dropped at any time.
    ///
    /// # Errors
    ///
    /// As for [`wait_delivered`](Self::wait_delivered).
    pub async fn wait_delivered_async(&mut self) -> Result<()> {
        let Self { sender, sleep, .. } = self;
        let target = sender.lane.visible();
        Ready::new(Delivered { sender, target }, sleep).await
    }

    /// Who is there, to compare with later.
    #[inline]
    pub(crate) fn roster_state(&self) -> u64 {
        roster::state(&self.sender.topic.files.control)
    }

    /// The number of its lane.
    pub(crate) fn lane(&self) -> u64 {
        self.sender.id
    }

    /// The low 32 bits of the number that the next message gets.
    pub(crate) fn next_sequence(&self) -> u32 {
        self.sender.lane.next_sequence() as u32
    }

    /// Whether a consumer of the group takes messages of this kind.
    pub(crate) fn any_takes(&mut self, group: u64, kind: u8) -> Result<bool> {
        self.sender.check_fork()?;
        self.sender.refresh()?;
        Ok(self.sender.readers.any_takes(group, kind))
    }

    /// Sends a copy of `bytes` in an envelope, waiting at most so long for room.
    #[inline(always)]
    pub(crate) fn send_within(
        &mut self,
        envelope: &Envelope,
        bytes: &[u8],
        patience: Patience,
    ) -> Result<()> {
        self.sender.send_with(envelope, bytes, patience)
    }

    /// Waits until there is room for an envelope and `len` bytes, or for so long.
    pub(crate) async fn wait_for_room(
        &mut self,
        envelope: &Envelope,
        len: usize,
        patience: Duration,
    ) -> Result<()> {
        let Self { sender, sleep, .. } = self;
        let len = envelope.len() + len;
        let until = Instant::now().checked_add(patience);
        Ready::new(
            Room {
                until,
                ..Room::new(sender, len)
            },
            sleep,
        )
        .await
    }

    /// Tells the client whose inbox its topic is that a request has ended without a reply.
    pub(crate) fn tell_end(&self) {
        roster::ended(&self.sender.topic.files.control);
    }

    /// Sends what `fill` writes into `len` bytes behind an envelope, waiting at most so long for room.
    #[inline(always)]
    pub(crate) fn send_filled(
        &mut self,
        envelope: &Envelope,
        len: usize,
        patience: Patience,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        let mut loan = Loan::<[u8]>::open_with(&mut self.sender, envelope, len, patience)?;
        fill(&mut loan);
        loan.commit();
        Ok(())
    }

    /// Sends a copy of `bytes`, once there is room.
    pub(crate) async fn send_bytes_async(&mut self, bytes: &[u8]) -> Result<()> {
        let Self { sender, sleep, .. } = self;
        let len = bytes.len();
        Ready::new(Room::new(sender, len), sleep).await?;
        sender.send(bytes, Some(Duration::ZERO))
    }

    /// Sends a copy of `bytes` if there is room now.
    pub(crate) fn send_now(&mut self, bytes: &[u8]) -> Result<bool> {
        let Self { sender, .. } = self;
        let len = bytes.len();
        let has_room = Room::new(sender, len).is_ready()?;
        if has_room {
            self.sender.send(bytes, Some(Duration::ZERO))?;
        }
        Ok(has_room)
    }

    /// The same, for a sink: `Ready` when `bytes` are sent.
    pub(crate) fn poll_send(
        &mut self,
        bytes: &[u8],
        context: &mut Context<'_>,
    ) -> Poll<Result<()>> {
        let Self { sender, sleep, .. } = self;
        let len = bytes.len();
        ready!(sleep.poll(&mut Room::new(sender, len), context))?;
        Poll::Ready(sender.send(bytes, Some(Duration::ZERO)))
    }

    /// A sink that waits for room no more.
    pub(crate) fn give_up(&mut self) {
        let Self { sender, sleep, .. } = self;
        sleep.give_up(&mut Room::new(sender, 0));
    }
}

impl Publisher<[u8]> {
    /// Sends a copy of `message`. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// `TooLong`, `Forked`, and, while it waits, the system's.
    #[inline(always)]
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        self.sender.send(message, None)
    }

    /// Sends a copy of `message` if there is room now.
    ///
    /// # Errors
    ///
    /// `Full`, and as for [`send`](Self::send).
    #[inline(always)]
    pub fn try_send(&mut self, message: &[u8]) -> Result<()> {
        self.sender.send(message, Some(Duration::ZERO))
    }

    /// Sends a copy of `message`, waiting at most `timeout` for room.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and as for [`send`](Self::send).
    #[inline]
    pub fn send_timeout(&mut self, message: &[u8], timeout: Duration) -> Result<()> {
        self.sender.send(message, Some(timeout))
    }

    /// Sends a copy of `message`, as a future: the task sleeps while there is no room. If it is dropped before it is ready,
    /// nothing was sent.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send); `Unsupported` if it must wait before Linux 5.16.
    pub async fn send_async(&mut self, message: &[u8]) -> Result<()> {
        self.send_bytes_async(message).await
    }

    /// Sends a copy of `message` in an envelope. Waits while there is no room.
    ///
    /// ```
    /// use buslane::{Envelope, Kind};
    ///
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let topic = buslane::Bus::at(dir.path().join("bus"))?.topic("orders/new")?;
    /// # let mut subscriber = topic.subscriber()?;
    /// # let mut publisher = topic.publisher()?;
    /// publisher.send_with(&Envelope::new(Kind::Event).sent_now(), b"100 pears")?;
    /// let frame = subscriber.recv()?;
    /// assert_eq!(&*frame, b"100 pears");
    /// assert_eq!(frame.envelope().unwrap().kind(), Kind::Event);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send). The longest message is shorter by what the envelope holds beyond its 56 bytes.
    pub fn send_with(&mut self, envelope: &Envelope, message: &[u8]) -> Result<()> {
        self.sender.send_with(envelope, message, None)
    }

    /// Sends a copy of `message` in an envelope if there is room now.
    ///
    /// # Errors
    ///
    /// `Full`, and as for [`send_with`](Self::send_with).
    pub fn try_send_with(&mut self, envelope: &Envelope, message: &[u8]) -> Result<()> {
        self.sender
            .send_with(envelope, message, Some(Duration::ZERO))
    }

    /// Lends `len` bytes behind an envelope, to be written in place and committed.
    ///
    /// # Errors
    ///
    /// As for [`send_with`](Self::send_with).
    pub fn loan_with(&mut self, envelope: &Envelope, len: usize) -> Result<Loan<'_>> {
        Loan::open_with(&mut self.sender, envelope, len, None)
    }

    /// A sink that sends copies of what it is given.
    pub fn into_sink<B: AsRef<[u8]>>(self) -> MessageSink<[u8], B> {
        MessageSink::new(self, B::as_ref)
    }

    /// Lends `len` bytes of the lane, to be written in place and committed. They hold what was there before.
    ///
    /// ```
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
    /// # let topic = bus.topic("t")?;
    /// # let mut subscriber = topic.subscriber()?;
    /// # let mut publisher = topic.publisher()?;
    /// let mut loan = publisher.loan(1024)?;
    /// loan[..5].copy_from_slice(b"hello");
    /// loan.commit_len(5);
    /// drop(publisher.loan(10)?); // sends nothing
    /// assert_eq!(&*subscriber.recv()?, b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    #[inline]
    pub fn loan(&mut self, len: usize) -> Result<Loan<'_>> {
        Loan::open(&mut self.sender, len, None)
    }

    /// Lends `len` bytes if there is room now.
    ///
    /// # Errors
    ///
    /// As for [`try_send`](Self::try_send).
    #[inline]
    pub fn try_loan(&mut self, len: usize) -> Result<Loan<'_>> {
        Loan::open(&mut self.sender, len, Some(Duration::ZERO))
    }

    /// Lends `len` bytes, waiting at most `timeout` for room.
    ///
    /// # Errors
    ///
    /// As for [`send_timeout`](Self::send_timeout).
    #[inline]
    pub fn loan_timeout(&mut self, len: usize, timeout: Duration) -> Result<Loan<'_>> {
        Loan::open(&mut self.sender, len, Some(timeout))
    }

    /// Sends copies of all `messages`, and says how many. They become visible in runs of up to some kilobytes, each
    /// run with one store; readers may start on the first while the rest is written. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send); the messages before the one that failed are sent.
    #[inline]
    pub fn send_batch<I>(&mut self, messages: I) -> Result<usize>
    where
        I: IntoIterator<Item: AsRef<[u8]>>,
    {
        let run = Run::begin(&mut self.sender)?;
        let mut sent = 0;
        for message in messages {
            let message = message.as_ref();
            if !run.0.lane.put_in_run(message) {
                run.0.begin_run(message)?;
            }
            sent += 1;
        }
        Ok(sent)
    }
}

/// Makes what was staged visible, also if the batch's iterator panics.
struct Run<'a>(&'a mut Sender);

impl<'a> Run<'a> {
    fn begin(sender: &'a mut Sender) -> Result<Self> {
        sender.check_fork()?;
        Ok(Self(sender))
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if self.0.check_fork().is_ok() {
            self.0.lane.publish();
            self.0.look_around();
        }
    }
}

impl<T: Message + 'static> Publisher<T> {
    /// Sends a copy of `value`. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// `Forked`, and, while it waits, the system's.
    #[inline(always)]
    pub fn send_value(&mut self, value: &T) -> Result<()> {
        self.sender.send_value(value, None)
    }

    /// Sends copies of many values, one message each, with fewer steps than one by one. Those sent so far become visible
    /// together, at the latest when this returns. Waits while there is no room.
    ///
    /// ```
    /// # use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
    /// # #[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
    /// # #[repr(C)]
    /// # struct Sample(u64);
    /// # impl buslane::Message for Sample {
    /// #     const NAME: &'static str = "Sample";
    /// # }
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
    /// let topic = bus.typed::<Sample>("samples")?;
    /// let (mut subscriber, mut publisher) = (topic.subscriber()?, topic.publisher()?);
    /// publisher.send_values(&[Sample(1), Sample(2), Sample(3)])?;
    /// let batch = subscriber.recv_batch(100)?;
    /// assert_eq!(batch.iter().map(|sample| sample.0).sum::<u64>(), 6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send_value`](Self::send_value); what was sent before stays sent.
    pub fn send_values(&mut self, values: &[T]) -> Result<()> {
        let run = Run::begin(&mut self.sender)?;
        let mut left = values;
        loop {
            left = &left[run.0.lane.put_row(left)..];
            match left {
                [] => return Ok(()),
                [first, rest @ ..] => {
                    run.0.begin_run(first.as_bytes())?;
                    left = rest;
                }
            }
        }
    }

    /// Sends a copy of `value` in an envelope. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// As for [`send_value`](Self::send_value); `TooLong` if what the envelope holds beyond its 56 bytes is.
    pub fn send_value_with(&mut self, envelope: &Envelope, value: &T) -> Result<()> {
        self.sender.send_with(envelope, value.as_bytes(), None)
    }

    /// Sends a copy of `value` if there is room now.
    ///
    /// # Errors
    ///
    /// `Full`, and as for [`send_value`](Self::send_value).
    #[inline(always)]
    pub fn try_send_value(&mut self, value: &T) -> Result<()> {
        self.sender.send_value(value, Some(Duration::ZERO))
    }

    /// Sends a copy of `value`, waiting at most `timeout` for room.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and as for [`send_value`](Self::send_value).
    #[inline]
    pub fn send_value_timeout(&mut self, value: &T, timeout: Duration) -> Result<()> {
        self.sender.send(value.as_bytes(), Some(timeout))
    }

    /// Sends a copy of `value`, as a future: the task sleeps while there is no room. If it is dropped before it is ready,
    /// nothing was sent.
    ///
    /// # Errors
    ///
    /// As for [`send_value`](Self::send_value); `Unsupported` if it must wait before Linux 5.16.
    pub async fn send_value_async(&mut self, value: &T) -> Result<()> {
        self.send_bytes_async(value.as_bytes()).await
    }

    /// A sink that sends copies of what it is given.
    pub fn into_sink(self) -> MessageSink<T, T> {
        MessageSink::new(self, T::as_bytes)
    }

    /// Lends room for one value, to be written in place and committed. It holds what was there before: some value.
    ///
    /// # Errors
    ///
    /// As for [`send_value`](Self::send_value).
    #[inline]
    pub fn loan_value(&mut self) -> Result<Loan<'_, T>> {
        Loan::open(&mut self.sender, size_of::<T>(), None)
    }
}

/// Part of a lane, lent to be written in place. [`commit`](Self::commit) sends it; dropping it sends nothing.
/// A forked child finds zeros in it, and what it writes there reaches nobody.
#[must_use = "a loan that is dropped sends nothing"]
pub struct Loan<'a, T: ?Sized = [u8]> {
    sender: &'a mut Sender,
    at: u64,
    len: usize,
    /// The beginning of the envelope before it, and how many bytes that has.
    envelope: Option<(EnvelopeHead, usize)>,
    committed: bool,
    kind: PhantomData<fn(&T)>,
}

impl<'a, T: ?Sized> Loan<'a, T> {
    #[inline]
    fn open(sender: &'a mut Sender, len: usize, patience: Patience) -> Result<Self> {
        let at = sender.claim(len, patience)?;
        Ok(Self::lend(sender, at, len, None))
    }

    fn open_with(
        sender: &'a mut Sender,
        envelope: &Envelope,
        len: usize,
        patience: Patience,
    ) -> Result<Self> {
        let (at, before) = sender.claim_with(envelope, len, patience)?;
        Ok(Self::lend(
            sender,
            at,
            len,
            Some((*envelope.head(), before)),
        ))
    }

    #[inline]
    fn lend(
        sender: &'a mut Sender,
        at: u64,
        len: usize,
        envelope: Option<(EnvelopeHead, usize)>,
    ) -> Self {
        let before = envelope.map_or(0, |(_, before)| before);
        sender.lane.open_loan(before + len);
        Self {
            sender,
            at,
            len,
            envelope,
            committed: false,
            kind: PhantomData,
        }
    }

    /// Sends it. In a forked child, which has no part in the lane, this does nothing.
    #[inline]
    pub fn commit(mut self) {
        if self.sender.check_fork().is_ok() {
            match self.envelope {
                None => self.sender.commit(self.len),
                Some((head, before)) => {
                    self.sender.commit_with(&head, (self.at, before), self.len);
                }
            }
        }
        self.committed = true;
    }
}

impl Loan<'_> {
    /// Sends the first `len` bytes of it.
    ///
    /// # Panics
    ///
    /// If it has less.
    #[inline]
    pub fn commit_len(mut self, len: usize) {
        assert!(
            len <= self.len,
            "a loan of {} bytes can't be committed with {len}",
            self.len
        );
        self.len = len;
        self.commit();
    }
}

impl<T: ?Sized> Drop for Loan<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if !self.committed {
            self.sender.lane.abort();
        }
    }
}

impl<T: ?Sized> fmt::Debug for Loan<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Deref for Loan<'_> {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        self.sender.lane.loaned(self.at, self.len)
    }
}

impl DerefMut for Loan<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.sender.lane.loan(self.at, self.len)
    }
}

impl<T: Message> Deref for Loan<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        T::ref_from_bytes(self.sender.lane.loaned(self.at, self.len))
            .expect("as many bytes as the type has, aligned")
    }
}

impl<T: Message> DerefMut for Loan<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        T::mut_from_bytes(self.sender.lane.loan(self.at, self.len))
            .expect("as many bytes as the type has, aligned")
    }
}

// ------------------------------------------------------------------------------------------------------- receiving

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
    receiver: Receiver,
    sleep: Sleep,
    kind: PhantomData<fn() -> Box<T>>,
}

/// A subscriber of whatever type.
struct Receiver {
    sources: Sources,
    /// Up to which position of the source that is read now messages are taken before the roster and the other sources are looked at.
    until: u64,
    /// The same, if that is all that is to be looked at: see [`Reader::turn`].
    plain_until: u64,
    /// Bytes of the envelope of the message that was waited for last.
    envelope_len: usize,
    /// Looks at the source that is read now before anything else is done.
    looks: u32,
    /// Whether the messages are taken for a stream.
    pace: Pace,
    /// The last batch ended where there was nothing more: a look in vain.
    was_short: bool,
    /// Lanes that contradicted themselves.
    abandoned: Vec<u64>,
    lost: Lost,
    seen_roster: Option<u64>,
    /// A publisher was there since the end was last reported.
    had_publisher: bool,
    /// It has slept, or was about to.
    is_known: bool,
    born: u64,
    cursor: Cursor,
    /// Says that the cursor has a reader.
    lock: Held,
    topic: Arc<TopicInner>,
}

/// Which messages of the publishers that are there a new subscriber begins with. What publishers send that come later, it
/// receives from the first message on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Start {
    /// With what is sent from now on.
    #[default]
    Now,
    /// With the oldest that is still held: about as much as a lane has room for.
    Oldest,
    /// With the last so many of each publisher, as far as they are still held.
    Last(u64),
}

impl Start {
    /// How many messages to go back.
    fn back(self) -> u64 {
        match self {
            Self::Now => 0,
            Self::Oldest => u64::MAX,
            Self::Last(messages) => messages,
        }
    }
}

/// Bytes of messages taken from one lane before the others are looked at; at most a quarter of it.
const TURN: u64 = 65_536;
/// How a reader finds out that the messages are a stream: it then looks seldom, because each look at an empty word takes the
/// line away from the writer that is about to write it, which makes it the slower one, so that the next look is in vain again.
///
/// Now and then a reader that has found nothing pauses before it looks again. If several messages are there then, they are a
/// stream, and it pauses each time, until a pause brings one message, or none. Who waits for an answer pauses in vain, and tries
/// ever more seldom.
#[derive(Debug)]
struct Pace {
    /// Looks in vain until the next pause.
    left: u32,
    /// The same from one try to the next.
    between: u32,
    /// The last one was followed by a pause.
    paused: bool,
}

impl Default for Pace {
    fn default() -> Self {
        let between = FIRST_TRY;
        Self {
            left: between,
            between,
            paused: false,
        }
    }
}

/// Looks in vain before the first pause is tried.
const FIRST_TRY: u32 = 16;
/// The same when many were tried in vain: a try adds a microsecond or two to an answer.
const LAST_TRY: u32 = 1 << 14;
/// Messages after a pause that are a stream.
const STREAM: u32 = 3;
/// Pauses of the processor between two looks at a stream: a few microseconds.
const STREAM_PAUSES: u32 = 256;

impl Pace {
    /// After a look in vain, `came` messages after the one before it.
    #[inline(never)]
    fn pause(&mut self, came: u32) {
        if self.paused && came < STREAM {
            self.paused = false;
            self.between = (self.between * 2).min(LAST_TRY);
            self.left = self.between;
            return;
        }
        if self.paused {
            self.between = FIRST_TRY;
        }
        self.paused = true;
        self.left = 1;
        for _ in 0..STREAM_PAUSES {
            hint::spin_loop();
        }
    }
}

/// Far longer than a store takes to become visible.
const INTRODUCTION: Duration = Duration::from_millis(1);
/// Looks at one source before the others, the roster and the clock are looked at again.
const CLOSE_LOOKS: u32 = 32;

/// Puts away a lane that has ended, if all have read it.
#[cold]
fn put_away(files: &TopicFiles, id: u64) {
    // What can't be put away now will be by the next reader, publisher, or who opens the bus.
    if reclaim::tidy_lane(files, id).unwrap_or(false) {
        roster::changed(&files.control);
    }
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

impl Receiver {
    fn join(topic: &Arc<TopicInner>, start: Start) -> Result<Self> {
        topic.bus.listen()?;
        let (lock, cursor) = topic.files.new_cursor(topic.bus.member())?;
        let mut receiver = Self {
            sources: Sources::default(),
            until: 0,
            plain_until: 0,
            envelope_len: 0,
            looks: 1,
            pace: Pace::default(),
            was_short: false,
            abandoned: Vec::new(),
            lost: Lost::default(),
            seen_roster: None,
            had_publisher: false,
            is_known: false,
            born: fork::generation(),
            cursor,
            lock,
            topic: Arc::clone(topic),
        };
        roster::changed(&topic.files.control);
        receiver.refresh(Some(start))?;
        receiver.cursor.set_joined();
        roster::changed(&topic.files.control);
        Ok(receiver)
    }

    #[inline]
    fn check_fork(&self) -> Result<()> {
        if self.born == fork::generation() {
            Ok(())
        } else {
            Err(forked("receive from", &self.topic.files.name))
        }
    }

    /// The next message of the source that is read now, if nothing else is to be done before, and it is a plain one, of
    /// `len` bytes if that is said: nearly always, while they stream.
    #[inline(always)]
    fn look_plain(&self, len: Option<u64>) -> Result<Unread, NotPlain> {
        match self.sources.here() {
            Some(here) => here.reader.plain(self.plain_until, len),
            None => Err(NotPlain::Other),
        }
    }

    /// The same, looked for a little longer: while messages come singly, for about as long as a round trip takes.
    #[inline(always)]
    fn look_plain_closely(&mut self, len: Option<u64>) -> Result<Unread, NotPlain> {
        self.note_vain_look();
        for _ in 0..self.looks {
            hint::spin_loop();
            let look = self.look_plain(len);
            if look != Err(NotPlain::Nothing) {
                return look;
            }
        }
        Err(NotPlain::Nothing)
    }

    /// The next message of the source that is read now, if it is there and its turn.
    #[inline(always)]
    fn look(&mut self) -> Option<Found> {
        let reader = &mut self.sources.here_mut()?.reader;
        match reader.position() < self.until {
            true => reader.next().ok()?,
            false => None,
        }
    }

    /// The source that something was just found in.
    #[inline(always)]
    fn here(&mut self) -> &mut Source {
        self.sources.here_mut().expect("it was there just now")
    }

    /// Begins a turn of the source that is then read.
    fn begin_turn(&mut self) {
        if let Some(Source { reader, .. }) = self.sources.here() {
            let bytes = TURN.min(reader.capacity() / 4);
            self.until = reader.position() + bytes;
            self.plain_until = reader.turn(bytes);
        }
    }

    /// Ends it.
    fn end_turn(&mut self) {
        (self.until, self.plain_until) = (0, 0);
    }

    /// The next message of the source that is then read, waited for as long as it takes.
    #[inline(always)]
    fn next(&mut self) -> Result<Found> {
        self.check_fork()?;
        let mut waiter = None;
        loop {
            if let Some(found) = self.look_closely() {
                return Ok(found);
            }
            self.wait(&mut waiter, None)?;
        }
    }

    /// The same, waited for at most `timeout`.
    #[inline]
    fn next_within(&mut self, timeout: Duration) -> Result<Option<Found>> {
        self.check_fork()?;
        let mut waiter = None;
        loop {
            if let Some(found) = self.look_closely() {
                return Ok(Some(found));
            }
            if !self.wait(&mut waiter, Some(timeout))? {
                return Ok(None);
            }
        }
    }

    /// The same, if it is there.
    #[inline(always)]
    fn next_now(&mut self) -> Result<Option<Found>> {
        match self.find()? {
            None if self.take_end() => Err(self.ended()),
            found => Ok(found),
        }
    }

    /// The same, if it is there, without a word about the end.
    #[inline(always)]
    fn find(&mut self) -> Result<Option<Found>> {
        self.check_fork()?;
        if let Some(found) = self.look() {
            return Ok(Some(found));
        }
        if self.look_elsewhere()? {
            return Ok(self.look());
        }
        Ok(None)
    }

    /// Looks at the source that is read now, and at nothing else: while messages come singly, for about as long as a
    /// round trip takes.
    #[inline(always)]
    fn look_closely(&mut self) -> Option<Found> {
        for _ in 0..self.looks {
            if let Some(found) = self.look() {
                return Some(found);
            }
            hint::spin_loop();
        }
        None
    }

    /// After a look that found nothing, the first since a message was found.
    #[inline(always)]
    fn note_vain_look(&mut self) {
        self.pace.left -= 1;
        if self.pace.left == 0 {
            let here = self.sources.here_mut();
            let came = here.map_or(0, |here| here.reader.track().take_streak());
            self.pace.pause(came);
        }
    }

    /// Looks at the roster, then at every source once; whether a message is there, at the source that is then read.
    fn look_elsewhere(&mut self) -> Result<bool> {
        self.end_turn();
        self.keep_up()?;
        let found = self.search();
        self.begin_turn();
        let Some(here) = self.sources.here_mut().filter(|_| found) else {
            return Ok(false);
        };
        match here.reader.next() {
            Ok(found) => Ok(found.is_some()),
            Err(Trouble::Missed(missed)) => Err(self.missed(missed)),
            Err(Trouble::Corrupt(corrupt)) => {
                let error = self.topic.files.corrupt_frame(here.id, corrupt);
                self.abandon();
                Err(error)
            }
        }
    }

    /// Lists the lanes anew if the roster has changed.
    fn keep_up(&mut self) -> Result<()> {
        if self.seen_roster == Some(roster::state(&self.topic.files.control)) {
            return Ok(());
        }
        self.refresh(None)
    }

    /// Looks at every source once, beginning behind the one that was read last, up to one that has something: that is then
    /// read. Publishes what was released of those that have nothing, and puts away those that have ended.
    fn search(&mut self) -> bool {
        let files = &self.topic.files;
        self.sources.search(|source| {
            if !matches!(source.reader.next(), Ok(None)) {
                return true;
            }
            source.reader.track().settle();
            // Its writer had gone before we looked.
            if source.closed && source.ended.is_none() {
                source.ended = Some(source.reader.position());
                put_away(files, source.id);
            }
            false
        })
    }

    /// Tells what the source that is read now has lost: once.
    #[cold]
    fn missed(&mut self, missed: Missed) -> Error {
        let source = self.sources.here_mut();
        let lane = source.map_or(0, |source| {
            source.reader.resume();
            source.id
        });
        let lost = Lost {
            messages: missed.messages,
            bytes: missed.bytes,
            lane,
        };
        self.lost.messages = self.lost.messages.saturating_add(lost.messages);
        self.lost.bytes = self.lost.bytes.saturating_add(lost.bytes);
        Error::missed(Arc::clone(&self.topic.files.name), lost)
    }

    /// Stops reading the source that is read now, which contradicts itself: it is reported once, and not waited for any more.
    #[cold]
    fn abandon(&mut self) {
        if let Some(source) = self.sources.remove_here() {
            lane::leave(&self.cursor.slots[source.slot]);
            self.abandoned.push(source.id);
        }
        self.end_turn();
        // Its publisher may be there yet: that is no end.
        self.had_publisher &= self.sources.here().is_some();
    }

    /// Bytes of the envelope of what was found just now.
    #[inline]
    fn envelope_len(&mut self, found: Found) -> Result<usize> {
        if found.word.is_plain() {
            return Ok(0);
        }
        self.look_at_envelope(found)
    }

    #[inline(never)]
    fn look_at_envelope(&mut self, found: Found) -> Result<usize> {
        let here = self.sources.here();
        let parts = here.and_then(|here| here.reader.parts(found));
        let len = parts.map(|(envelope, _)| envelope.len());
        len.ok_or_else(|| self.contradicts(String::from("an envelope is longer than its message")))
    }

    /// Gives up the source that is read now.
    #[cold]
    fn contradicts(&mut self, why: String) -> Error {
        let id = self.sources.here().map_or(0, |here| here.id);
        let error = self.topic.files.corrupt_lane(id, why);
        self.abandon();
        error
    }

    /// Whether the last publisher has left, and all is received.
    fn has_ended(&self) -> bool {
        self.had_publisher && self.sources.iter().all(|source| source.ended.is_some())
    }

    /// The same; says so once.
    fn take_end(&mut self) -> bool {
        let ended = self.has_ended();
        if ended {
            self.had_publisher = false;
        }
        ended
    }

    fn ended(&self) -> Error {
        let on = Arc::clone(&self.topic.files.name);
        let why = "the last publisher has left, and all it sent was received";
        Error::new(ErrorKind::Ended, "receive from", on, why)
            .advise("receive again to wait for the next one")
    }

    /// Nothing was there: looks elsewhere, pauses, or sleeps. `false`: the time has passed.
    #[cold]
    #[inline(never)]
    fn wait(&mut self, waiter: &mut Option<Waiter>, timeout: Option<Duration>) -> Result<bool> {
        if self.look_elsewhere()? {
            return Ok(true);
        }
        if self.take_end() {
            return Err(self.ended());
        }
        let waiter = match waiter {
            Some(waiter) => waiter,
            None => {
                self.note_vain_look();
                waiter.insert(Waiter::new(self.topic.wait, timeout))
            }
        };
        self.looks = 1;
        match waiter.next(1) {
            Next::Look => self.looks = CLOSE_LOOKS,
            Next::Sleep(time) => self.sleep(time)?,
            Next::TimedOut => return Ok(false),
        }
        Ok(true)
    }

    fn sleep(&mut self, time: Duration) -> Result<()> {
        let topic = Arc::clone(&self.topic);
        let cursor = self.cursor.clone();
        park::park(&topic.files.control, &cursor.header, time, || {
            self.introduce();
            self.is_ready()
        })
    }

    /// A sender that has not seen us yet does not know that it must fence for us: before the last look for the first time,
    /// its store is waited for.
    fn introduce(&mut self) {
        if !std::mem::replace(&mut self.is_known, true) && !futex::has_barrier() {
            thread::sleep(INTRODUCTION);
        }
    }

    /// Lists the lanes: joins new ones, drops those that are gone. `start`: it is the first time.
    fn refresh(&mut self, start: Option<Start>) -> Result<()> {
        let topic = Arc::clone(&self.topic);
        let files = &topic.files;
        // Read before listing, so that what comes later changes it once more.
        let now = roster::state(&files.control);
        let ids = files.list_lanes()?;
        let cursor = &self.cursor;
        self.sources.retain(|source| {
            // A lane is removed when all have drained it; one that was removed by force is read to its end.
            let stays = source.ended.is_none() || ids.binary_search(&source.id).is_ok();
            if !stays {
                cursor.free_slot(source.slot);
            }
            stays
        });
        for &id in &ids {
            let known =
                self.abandoned.contains(&id) || self.sources.iter().any(|source| source.id == id);
            if !known {
                self.join_lane(id, start).inspect_err(|e| {
                    // Reported once: the next look goes on with the other lanes.
                    if e.kind() == ErrorKind::Corrupt {
                        self.abandoned.push(id);
                    }
                })?;
            }
        }
        self.end_turn();
        self.seen_roster = Some(now);
        for source in self.sources.iter_mut() {
            source.reader.track().refresh();
            source.closed = source.reader.is_closed();
            let is_empty = matches!(source.reader.next(), Ok(None));
            // Somebody may have adopted it, sent, and left again since it was last looked at.
            let went_on = source
                .ended
                .is_some_and(|at| at != source.reader.position());
            if went_on || !source.closed {
                source.ended = None;
            }
            self.had_publisher |= went_on || !(source.closed && is_empty);
        }
        Ok(())
    }

    /// Follows a lane: from `start` on, or from its first message, if it came after us.
    fn join_lane(&mut self, id: u64, start: Option<Start>) -> Result<()> {
        let topic = Arc::clone(&self.topic);
        let files = &topic.files;
        let Some(lane) = files.lane_to_follow(id)? else {
            return Ok(());
        };
        let slot = self
            .cursor
            .take_slot(|index| files.allocate_slot(&self.lock, index))?;
        let (control, capacity, place) = (
            &files.control,
            lane.ring.capacity(),
            &self.cursor.slots[slot],
        );
        let outside = Outside {
            header: &lane.header,
            ring: &lane.ring,
        };
        let is_lossy = files.pattern.is_lossy();
        let at = match (is_lossy, start) {
            (true, None) => Ok(Boundary::default()),
            (true, Some(start)) => outside.start(start.back(), 0),
            (_, None) => {
                if !roster::join_from_start(control, &lane.header, capacity, id, place) {
                    lane::leave(place);
                    let why = String::from("its writer went on before this subscriber had joined");
                    return Err(files.corrupt_lane(id, why));
                }
                Ok(Boundary::default())
            }
            (_, Some(Start::Now)) => {
                let (mark, limit) =
                    roster::join(control, &lane.header, capacity, id, place, |_| None);
                lane::walk(&lane.ring, mark, limit, |_| {}).map(Boundary::without_count)
            }
            (_, Some(start)) => {
                let oldest = |from| Some(outside.first_from(from)?.position);
                let (from, _) = roster::join(control, &lane.header, capacity, id, place, oldest);
                outside.start(start.back(), from)
            }
        };
        let at = at.map_err(|corrupt| {
            // A writer is not to wait for a reader that gave up.
            lane::leave(place);
            files.corrupt_frame(id, corrupt)
        })?;
        let (slots, fences) = (self.cursor.slots.clone(), !futex::has_barrier());
        let mut reader = if is_lossy {
            roster::enter(control, id, place, at.position);
            Reader::copying(lane.header, lane.ring, slots, slot, at, fences)
        } else {
            Reader::gating(lane.header, lane.ring, slots, slot, at.position, fences)
        };
        reader.track().publish();
        // Publishers that came after us count, even if they have left already.
        self.had_publisher |= start.is_none();
        self.sources.push(Source {
            id,
            reader,
            slot,
            closed: false,
            ended: None,
        });
        Ok(())
    }

    fn count_publishers(&mut self) -> Result<usize> {
        self.check_fork()?;
        self.topic.files.count_open_lanes()
    }
}

impl Receiver {
    /// Whether there is a message, or a loss or damage to tell. If not, all that was released is published.
    fn has_news(&mut self) -> Result<bool> {
        self.check_fork()?;
        self.keep_up()?;
        if self.has_next() {
            return Ok(true);
        }
        let found = self.search();
        // Only looked: who takes it is to find the same one, not the one behind it.
        self.begin_turn();
        Ok(found)
    }

    /// Whether a look at the source that is read now finds something, in its turn.
    fn has_next(&mut self) -> bool {
        let until = self.until;
        self.sources
            .here_mut()
            .is_some_and(|Source { reader, .. }| {
                reader.position() < until && !matches!(reader.next(), Ok(None))
            })
    }
}

impl Waitable for Receiver {
    fn is_ready(&mut self) -> Result<bool> {
        Ok(self.has_news()? || self.has_ended())
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        self.check_fork()?;
        tickets.push(park::arm(&self.topic.files.control, &self.cursor.header));
        self.introduce();
        Ok(())
    }

    fn disarm(&mut self) {
        if self.check_fork().is_ok() {
            park::disarm(&self.cursor.header);
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if self.born != fork::generation() {
            return;
        }
        for source in self.sources.iter_mut() {
            source.reader.track().settle();
        }
        let files = &self.topic.files;
        // What can't be put away here will be by the next one who opens the bus.
        let _ = reclaim::leave(files, &self.cursor);
        for source in self.sources.iter() {
            if source.reader.is_closed() {
                let _ = reclaim::tidy_lane(files, source.id);
            }
        }
        roster::changed(&files.control);
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
}

impl<T: ?Sized + Payload> Subscriber<T> {
    pub(crate) fn join(topic: &Arc<TopicInner>, start: Start) -> Result<Self> {
        Ok(Self {
            receiver: Receiver::join(topic, start)?,
            sleep: Sleep::default(),
            kind: PhantomData,
        })
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

    /// The next messages of one publisher, at least one and at most `max`, in place. Waits for the first one.
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

    /// The next messages of one publisher, `max` at most, in place, if there are any.
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
        let row = self.receiver.here().reader.row(first, max, T::SIZE);
        self.receiver.was_short = row.messages < max;
        Ok(Batch {
            reader: &mut self.receiver.here().reader,
            first,
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

    /// What was lost so far, of all publishers; `lane` is 0. Nothing on a lossless topic.
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
pub(crate) struct Kept(Found);

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
        self.receiver.envelope_len(found)?;
        Ok(Kept(found))
    }

    /// Whether a publisher is there whose end was not yet reported.
    pub(crate) fn has_publisher(&self) -> bool {
        self.receiver.had_publisher
    }

    pub(crate) fn kept(&self, kept: Kept) -> Result<&[u8]> {
        self.receiver.check_fork()?;
        let here = self.receiver.sources.here();
        let parts = here.and_then(|here| here.reader.parts(kept.0));
        // Looked at when it was kept.
        Ok(parts.map_or(&[], |(_, payload)| payload))
    }

    pub(crate) fn release(&mut self, kept: Kept) {
        if self.receiver.check_fork().is_ok() {
            let track = self.receiver.here().reader.track();
            track.release(kept.0.end(), 0);
        }
    }
}

/// A message in place. It derefs to the payload, and is released when dropped. A forked child finds
/// zeros in it.
#[must_use]
pub struct Frame<'a, T: ?Sized = [u8]> {
    payload: &'a T,
    /// Empty if it has none.
    envelope: &'a [u8],
    track: &'a mut Track,
    word: Word,
    /// Where the next one starts.
    end: u64,
    lane: u64,
    /// See [`Reader::turn`].
    until: u64,
}

impl<T: ?Sized> Frame<'_, T> {
    /// The number of the lane it came through: one for each publisher at a time.
    #[must_use]
    pub fn lane(&self) -> u64 {
        self.lane
    }

    /// What goes with it, if it has an envelope.
    #[must_use]
    pub fn envelope(&self) -> Option<Envelope> {
        Envelope::read(self.envelope)
    }

    /// The beginning of its envelope.
    #[inline]
    pub(crate) fn head(&self) -> Option<&EnvelopeHead> {
        let (head, _) = EnvelopeHead::ref_from_prefix(self.envelope).ok()?;
        Some(head)
    }

    /// The low 32 bits of its sequence number in its lane.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        self.word.sequence()
    }
}

impl<T: ?Sized> Deref for Frame<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        self.payload
    }
}

impl<T: ?Sized> Drop for Frame<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.track.release(self.end, self.until);
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Frame<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Frame").field(&self.payload).finish()
    }
}

/// Messages of one publisher, in place. They are released together when it is dropped.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let topic = buslane::Bus::at(dir.path().join("bus"))?.topic("t")?;
/// # let mut subscriber = topic.subscriber()?;
/// # topic.publisher()?.send_batch(["one", "two"])?;
/// let batch = subscriber.recv_batch(100)?;
/// assert_eq!(batch.len(), 2);
/// assert_eq!(batch.iter().map(<[u8]>::len).sum::<usize>(), 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Batch<'a, T: ?Sized = [u8]> {
    reader: &'a mut Reader,
    first: Found,
    row: Row,
    payload: PhantomData<&'a T>,
}

impl<T: ?Sized + Payload> Batch<'_, T> {
    /// How many messages: at least one.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.row.messages
    }

    /// The messages.
    #[inline]
    pub fn iter(&self) -> BatchIter<'_, T> {
        BatchIter {
            reader: self.reader,
            first: self.first,
            position: self.row.start,
            left: self.row.messages,
            each: self.row.len,
            payload: PhantomData,
        }
    }
}

impl<T: ?Sized> Drop for Batch<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let Row { end, messages, .. } = self.row;
        self.reader.track().release_row(end, messages);
    }
}

impl<T: ?Sized + Payload + fmt::Debug> fmt::Debug for Batch<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl<'b, T: ?Sized + Payload> IntoIterator for &'b Batch<'_, T> {
    type Item = &'b T;
    type IntoIter = BatchIter<'b, T>;

    #[inline]
    fn into_iter(self) -> BatchIter<'b, T> {
        self.iter()
    }
}

/// The messages of a [`Batch`].
#[derive(Debug)]
#[must_use]
pub struct BatchIter<'b, T: ?Sized = [u8]> {
    reader: &'b Reader,
    first: Found,
    position: u64,
    left: usize,
    /// Bytes in each, if that is known.
    each: Option<u64>,
    payload: PhantomData<&'b T>,
}

impl<'b, T: ?Sized + Payload> Iterator for BatchIter<'b, T> {
    type Item = &'b T;

    #[inline]
    fn next(&mut self) -> Option<&'b T> {
        self.left = self.left.checked_sub(1)?;
        let each = self.each.and(T::SIZE);
        if let Some((payload, end)) = self.reader.read_in_row(self.position, each) {
            self.position = end;
            return Some(T::in_frame(payload));
        }
        self.next_of_any_kind()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left))
    }
}

impl<'b, T: ?Sized + Payload> BatchIter<'b, T> {
    #[inline(never)]
    fn next_of_any_kind(&mut self) -> Option<&'b T> {
        let found = match self.position == self.first.position {
            true => self.first,
            false => self.reader.ahead(self.position).ok().flatten()?,
        };
        self.position = found.end();
        let (_, payload) = self.reader.parts(found)?;
        // Looked at when the batch was made; a writer that does not keep the protocol may have changed it.
        let is_whole = T::SIZE.is_none_or(|size| payload.len() as u64 == size);
        is_whole.then(|| T::in_frame(payload))
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
