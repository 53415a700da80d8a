//! What a publisher of whatever type does: claims, commits, makes room, waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bus::{TopicInner, forked};
use crate::durable::{Keeper, SyncPoint, SyncPolicy};
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Message, Payload};
use crate::shm::fork::{self, Held};
use crate::shm::lane::{self, Writer};
use crate::shm::layout::{Control, EnvelopeHead, max_len};
use crate::shm::park::{self, Ticket, Watch};
use crate::shm::roster::{self, Lowest, Readers};
use crate::shm::{View, futex, reclaim};
use crate::wait::{Next, Waitable, Waiter};

/// Bytes of a value that a compiler may keep in registers.
const IN_REGISTERS: usize = 64;

/// How long to wait for room: `None` is for ever, zero not at all.
pub(super) type Patience = Option<Duration>;

/// A publisher of whatever type.
pub(super) struct Sender {
    pub(super) lane: Writer,
    watch: Watch,
    /// The topic's: near, as it is looked at for every message.
    control: View<Control>,
    pub(super) readers: Readers,
    pub(super) max_len: usize,
    born: u64,
    pub(super) id: u64,
    /// Of a lane in data files. Before the lock: it is at the lane, too.
    pub(super) keeper: Option<Keeper>,
    /// Why a loan that was committed is not on the disk.
    unsettled: Option<Error>,
    /// It has sent nothing yet.
    is_new: bool,
    /// Says that the lane has a writer.
    lock: Option<Held>,
    pub(super) topic: Arc<TopicInner>,
}

impl Sender {
    /// Joins with a lane that is kept under this name; 0: none.
    pub(super) fn join(topic: &Arc<TopicInner>, name: u64) -> Result<Self> {
        topic.bus.listen()?;
        let files = &topic.files;
        let lives = |member| Ok(topic.bus.owner(member)?.alive);
        let member = topic.bus.member()?;
        let (lock, id, lane) = files.lane_to_write(member, name, files.capacity, lives)?;
        // After the lane has its name, and before the cursors are listed.
        roster::changed(&files.control);
        let max_len = max_len(lane.capacity()) as usize;
        let (watch, readers, born) = (Watch::default(), Readers::default(), fork::generation());
        let control = files.control.clone();
        let keeper = match files.is_logged() {
            false => None,
            true => {
                let (header, ring, at) = (lane.header(), lane.files(), lane.boundary());
                let keeper = Keeper::start(topic, header, ring, at);
                // Nobody writes there.
                Some(keeper.inspect_err(|_| {
                    lane::close(header);
                })?)
            }
        };
        let (lock, topic) = (Some(lock), Arc::clone(topic));
        let mut sender = Self {
            lane,
            watch,
            control,
            readers,
            max_len,
            born,
            id,
            keeper,
            unsettled: None,
            is_new: true,
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
    pub(super) fn check_fork(&self) -> Result<()> {
        if self.born == fork::generation() {
            Ok(())
        } else {
            Err(forked("send on", &self.topic.files.name))
        }
    }

    /// After a message was sent: has it on the disk, if the topic says so.
    #[inline(always)]
    pub(super) fn settle(&mut self) -> Result<()> {
        match &self.keeper {
            Some(keeper) if keeper.policy() == SyncPolicy::EachMessage => {
                keeper.sync(self.lane.boundary())
            }
            _ => Ok(()),
        }
    }

    /// The same, of what can't say that it failed: the next call does.
    #[inline]
    pub(super) fn settle_later(&mut self) {
        if let Err(e) = self.settle() {
            self.unsettled = Some(e);
        }
    }

    /// Has all that was sent so far on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        self.check_fork()?;
        match &self.keeper {
            Some(keeper) => keeper.sync(self.lane.boundary()),
            None => Err(self.not_durable()),
        }
    }

    /// All that was sent so far.
    pub(super) fn sync_point(&self) -> Result<SyncPoint> {
        self.check_fork()?;
        match &self.keeper {
            Some(keeper) => Ok(SyncPoint::new(keeper, self.lane.boundary())),
            None => Err(self.not_durable()),
        }
    }

    fn not_durable(&self) -> Error {
        let why =
            "nothing of it is on a disk: the bus is not durable, or the topic is lossy or an inbox";
        Error::new(
            ErrorKind::Unsupported,
            "sync",
            Arc::clone(&self.topic.files.name),
            why,
        )
        .advise("leave that out, or use a bus that was made as durable")
    }

    /// Claims a frame for `len` bytes, and says where they go.
    #[inline(always)]
    pub(super) fn claim(&mut self, len: usize, patience: Patience) -> Result<u64> {
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
    pub(super) fn send(&mut self, payload: &[u8], patience: Patience) -> Result<()> {
        let is_sent = self.lane.put(payload);
        if is_sent && self.watch.is_quiet(&self.control) {
            return Ok(());
        }
        self.send_rest(is_sent, payload, patience)
    }

    /// The same of a value that may be in registers.
    #[inline(always)]
    pub(super) fn send_value<T: Message + 'static>(
        &mut self,
        value: &T,
        patience: Patience,
    ) -> Result<()> {
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
        self.check_removed()?;
        if !is_sent && !self.put_unprepared(payload) {
            self.send_claimed(payload, patience)?;
        }
        self.look_around();
        self.settle()
    }

    fn send_claimed(&mut self, payload: &[u8], patience: Patience) -> Result<()> {
        if self.keeper.is_some() && payload.len() <= self.max_len {
            self.check_disk()?;
            if self.lane.put_in_file(payload) {
                return Ok(());
            }
        }
        let at = self.claim(payload.len(), patience)?;
        self.lane.write(at, payload);
        self.lane.commit(payload.len());
        Ok(())
    }

    /// Makes a run visible, and begins another one, unless messages are too long for one: then they are sent singly.
    #[inline(never)]
    pub(super) fn begin_run(&mut self, first: &[u8]) -> Result<()> {
        self.lane.publish();
        self.look_around();
        if self.lane.put_in_run(first) {
            return Ok(());
        }
        if self.keeper.is_some() {
            // Settled at the end, once for all.
            return self.send_claimed(first, None);
        }
        self.send(first, None)
    }

    #[inline(always)]
    pub(super) fn commit(&mut self, len: usize) {
        self.lane.commit(len);
        self.look_around();
    }

    /// Claims a frame for an envelope and `len` bytes: where the latter go, and the bytes before them. The beginning of the
    /// envelope is written by [`commit_with`](Self::commit_with): a reader polls that line, and takes it away again if it
    /// is written long before the word.
    #[inline(always)]
    pub(super) fn claim_with(
        &mut self,
        envelope: &Envelope,
        len: usize,
        patience: Patience,
    ) -> Result<(u64, usize)> {
        // As long as it waits for room: what follows takes no time.
        #[cfg(feature = "tracing")]
        let _span = tracing::debug_span!(
            "buslane.send",
            topic = &*self.topic.files.name,
            kind = %envelope.kind(),
            r#type = envelope.type_name(),
            traceparent = envelope.trace_parent().map(tracing::field::display),
        )
        .entered();
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
    pub(super) fn commit_with(
        &mut self,
        head: &EnvelopeHead,
        (at, before): (u64, usize),
        len: usize,
    ) {
        self.lane.write_head(at - before as u64, head);
        self.lane.commit_with_envelope(before + len);
        self.look_around();
    }

    #[inline(always)]
    pub(super) fn send_with(
        &mut self,
        envelope: &Envelope,
        payload: &[u8],
        patience: Patience,
    ) -> Result<()> {
        let place = self.claim_with(envelope, payload.len(), patience)?;
        self.lane.write(place.0, payload);
        self.commit_with(envelope.head(), place, payload.len());
        self.settle()
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
        // If it was removed, what comes next says so.
        if roster::is_removed(&self.control) || !self.watch.disturbed(&self.control) {
            return;
        }
        // If the readers can't be listed now, one of them may sleep: ring in any case. The next slow path says why.
        let is_listed = self.refresh().is_ok();
        self.lane.expect_singly(self.readers.any_singly());
        if !is_listed || self.readers.any_parked() {
            park::ring(&self.topic.files.control);
        }
    }

    pub(super) fn refresh(&mut self) -> Result<()> {
        let files = &self.topic.files;
        self.readers.refresh(&files.control, self.id, |known| {
            files.list_cursors(self.id, known)
        })?;
        let fences = self.readers.fences() || !futex::has_barrier();
        self.watch.fence_fully(fences);
        Ok(())
    }

    /// The slowest reader now.
    fn survey(&mut self) -> Result<Lowest> {
        self.refresh()?;
        let unjoined = match self.topic.files.pattern.is_lossy() || self.keeper.is_some() {
            // Who was here before the lane begins at 0, however far the writer has gone.
            true => Some(0),
            false => self.lane.unjoined(),
        };
        Ok(self.readers.lowest_of_all(self.id, unjoined))
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
        self.check_removed()?;
        if self.keeper.is_some() {
            return self.claim_in_file(len);
        }
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

    /// Nobody is waited for: when a file is full, there is another one.
    #[inline(never)]
    fn claim_in_file(&mut self, len: usize) -> Result<u64> {
        self.check_disk()?;
        if let Ok(at) = self.lane.claim_in_file(len) {
            return Ok(at);
        }
        self.turn_page(len)?;
        self.lane.claim_in_file(len).map_err(|_| self.too_long(len))
    }

    /// Comes to the file in which a claim of `len` bytes has room.
    fn turn_page(&mut self, len: usize) -> Result<()> {
        let Some(keeper) = &self.keeper else {
            return Ok(());
        };
        let next = self.lane.next_boundary(len);
        keeper.turn_to(next)?;
        let capacity = self.lane.capacity();
        let file_end = (next.position / capacity + 1) * capacity;
        // Who sends little needs no other file, and has none made: at first, it is let go so far.
        let soon = self.lane.needed(len) + capacity / 8;
        if std::mem::replace(&mut self.is_new, false) && soon < file_end {
            self.lane.lengthen(soon);
        } else {
            keeper.expect_turn();
            self.lane.lengthen(file_end);
        }
        Ok(())
    }

    #[inline]
    fn check_removed(&self) -> Result<()> {
        match roster::is_removed(&self.control) {
            true => Err(self.topic.files.removed()),
            false => Ok(()),
        }
    }

    /// Whether what is sent may go to the disk.
    #[inline]
    fn check_disk(&mut self) -> Result<()> {
        if let Some(e) = self.unsettled.take() {
            return Err(e);
        }
        match (roster::is_poisoned(&self.control), &self.keeper) {
            (true, Some(keeper)) => keeper.check(),
            _ => Ok(()),
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

    pub(super) fn wait_delivered(&mut self, timeout: Option<Duration>) -> Result<()> {
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

    pub(super) fn too_long(&self, len: usize) -> Error {
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
pub(super) struct Room<'a> {
    pub(super) sender: &'a mut Sender,
    pub(super) len: usize,
    /// When it does not any more.
    pub(super) until: Option<Instant>,
}

impl<'a> Room<'a> {
    pub(super) fn new(sender: &'a mut Sender, len: usize) -> Self {
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
        if sender.keeper.is_some() {
            // There is, or else that is to be told.
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
pub(super) struct Delivered<'a> {
    pub(super) sender: &'a mut Sender,
    pub(super) target: u64,
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
        // Who leaves without having read wakes nobody by its position.
        tickets.push(park::roster(&topic.files.control));
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
        drop(self.keeper.take());
        lane::close(self.lane.header());
        drop(self.lock.take());
        let tidied = reclaim::tidy_lane(files, self.id);
        self.topic.bus.leave_to_others(tidied);
        roster::changed(&files.control);
    }
}

/// Makes what was staged visible, also if the batch's iterator panics.
pub(super) struct Run<'a> {
    pub(super) sender: &'a mut Sender,
}

impl<'a> Run<'a> {
    pub(super) fn begin(sender: &'a mut Sender) -> Result<Self> {
        sender.check_fork()?;
        Ok(Self { sender })
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if self.sender.check_fork().is_ok() {
            self.sender.lane.publish();
            self.sender.look_around();
        }
    }
}
