//! What a subscriber of whatever type does: looks, waits, keeps up with the lanes.

use std::collections::BTreeSet;
use std::hint;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::pace::Pace;
use super::sources::{Source, Sources};
use crate::bus::{OBSERVED_EVERY, TopicInner, escape, forked};
use crate::error::{Error, ErrorKind, Lost, Result};
use crate::shm::fork::{self, Held};
use crate::shm::lane::{self, Boundary, Found, Missed, NotPlain, Outside, Reader, Trouble, Unread};
use crate::shm::layout::Slot;
use crate::shm::park::{self, Ticket};
use crate::shm::roster::{self, Cursor};
use crate::shm::topic::{LaneFile, TopicFiles};
use crate::shm::{futex, reclaim};
use crate::wait::{Next, Waitable, Waiter};

/// Bytes of messages taken from one lane before the others are looked at; at most a quarter of it.
const TURN: u64 = 65_536;

/// Far longer than a store takes to become visible.
const INTRODUCTION: Duration = Duration::from_millis(1);

/// Looks at one source before the others, the roster and the clock are looked at again.
const CLOSE_LOOKS: u32 = 32;

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

/// What a named subscription is beside.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) name: String,
    /// What is received counts only once it is acknowledged.
    pub(super) by_ack: bool,
}

/// A subscriber of whatever type.
pub(super) struct Receiver {
    pub(super) sources: Sources,
    /// Up to which position of the source that is read now messages are taken before the roster and the other sources are looked at.
    pub(super) until: u64,
    /// The same, if that is all that is to be looked at: see [`Reader::turn`].
    pub(super) plain_until: u64,
    /// Bytes of the envelope of the message that was waited for last.
    pub(super) envelope_len: usize,
    /// Looks at the source that is read now before anything else is done.
    pub(super) looks: u32,
    /// Whether the messages are taken for a stream.
    pace: Pace,
    /// The last batch ended where there was nothing more: a look in vain.
    pub(super) was_short: bool,
    /// Lanes that contradicted themselves.
    abandoned: BTreeSet<u64>,
    /// An observer: that there are more lanes than it follows.
    has_said_enough: bool,
    /// Those of them in data files, until they are gone on with.
    damaged: Vec<Source>,
    /// It is a named subscription: it stays, with what it has not received.
    pub(super) named: Option<Named>,
    pub(super) lost: Lost,
    seen_roster: Option<u64>,
    /// A publisher was there since the end was last reported.
    pub(super) had_publisher: bool,
    /// It has slept, or was about to.
    is_known: bool,
    born: u64,
    pub(super) cursor: Cursor,
    /// Says that the cursor has a reader. `None`: it is an observer's, which nobody sees.
    lock: Option<Held>,
    pub(super) topic: Arc<TopicInner>,
}

/// Lanes that an observer follows: each takes a descriptor of its process, and another user says how many there are.
const OBSERVED_LANES: usize = 256;

impl Receiver {
    pub(super) fn join(
        topic: &Arc<TopicInner>,
        start: Start,
        named: Option<Named>,
    ) -> Result<Self> {
        Self::join_as(topic, start, named, false)
    }

    /// The same. `is_lossy`: publishers do not wait for it.
    pub(super) fn join_as(
        topic: &Arc<TopicInner>,
        start: Start,
        named: Option<Named>,
        is_lossy: bool,
    ) -> Result<Self> {
        topic.bus.listen()?;
        let files = &topic.files;
        let (lock, cursor, is_new) = match &named {
            None if files.is_observed() => (None, files.private_cursor()?, true),
            None => {
                let (lock, cursor) = files.new_cursor(topic.bus.member()?, is_lossy)?;
                (Some(lock), cursor, true)
            }
            Some(named) => {
                let (member, name) = (topic.bus.member()?, escape(&named.name)?);
                let (lock, cursor, is_new) = files.open_subscription(member, &name)?;
                (Some(lock), cursor, is_new)
            }
        };
        let mut receiver = Self {
            sources: Sources::default(),
            until: 0,
            plain_until: 0,
            envelope_len: 0,
            looks: 1,
            pace: Pace::default(),
            was_short: false,
            abandoned: BTreeSet::new(),
            has_said_enough: false,
            damaged: Vec::new(),
            named,
            lost: Lost::default(),
            seen_roster: None,
            had_publisher: false,
            is_known: false,
            born: fork::generation(),
            cursor,
            lock,
            topic: Arc::clone(topic),
        };
        receiver.tell();
        files.look_again()?;
        receiver.refresh(is_new.then_some(start))?;
        receiver.cursor.set_joined();
        if let (Some(_), Some(lock)) = (&receiver.named, &receiver.lock)
            && is_new
        {
            let synced = topic.files.sync_subscription(lock);
            if let Err(e) = synced {
                receiver.withdraw();
                return Err(e);
            }
        }
        receiver.tell();
        Ok(receiver)
    }

    /// Tells all that it is there; an observer, whom nobody is to know of, has only a copy of what would tell.
    fn tell(&self) {
        if self.lock.is_some() {
            roster::changed(&self.topic.files.control);
        }
    }

    #[inline]
    pub(super) fn check_fork(&self) -> Result<()> {
        if self.born == fork::generation() {
            Ok(())
        } else {
            Err(forked("receive from", &self.topic.files.name))
        }
    }

    /// The next message of the source that is read now, if nothing else is to be done before, and it is a plain one, of
    /// `len` bytes if that is said: nearly always, while they stream.
    #[inline(always)]
    pub(super) fn look_plain(&self, len: Option<u64>) -> Result<Unread, NotPlain> {
        match self.sources.here() {
            Some(here) => here.reader.plain(self.plain_until, len),
            None => Err(NotPlain::Other),
        }
    }

    /// The same, looked for a little longer: while messages come singly, for about as long as a round trip takes.
    #[inline(always)]
    pub(super) fn look_plain_closely(&mut self, len: Option<u64>) -> Result<Unread, NotPlain> {
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
    pub(super) fn look(&mut self) -> Option<Found> {
        let reader = &mut self.sources.here_mut()?.reader;
        match reader.position() < self.until {
            true => reader.next().ok()?,
            false => None,
        }
    }

    /// The source that something was just found in.
    #[inline(always)]
    pub(super) fn here(&mut self) -> &mut Source {
        self.sources.here_mut().expect("it was there just now")
    }

    /// Begins a turn of the source that is then read.
    fn begin_turn(&mut self) {
        if let Some(Source { reader, .. }) = self.sources.here() {
            let bytes = TURN.min(reader.capacity() / 4);
            self.until = reader.position().saturating_add(bytes);
            self.plain_until = reader.turn(bytes);
        }
    }

    /// Ends it.
    fn end_turn(&mut self) {
        (self.until, self.plain_until) = (0, 0);
    }

    /// The next message of the source that is then read, waited for as long as it takes.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Result<Found> {
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
    pub(super) fn next_within(&mut self, timeout: Duration) -> Result<Option<Found>> {
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
    pub(super) fn next_now(&mut self) -> Result<Option<Found>> {
        match self.find()? {
            None if self.take_end() => Err(self.ended()),
            found => Ok(found),
        }
    }

    /// The same, if it is there, without a word about the end.
    #[inline(always)]
    pub(super) fn find(&mut self) -> Result<Option<Found>> {
        self.check_fork()?;
        if self.pace.singly {
            // Who does not wait here does not notice when they don't any more.
            self.tell_singly(false);
        }
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
    pub(super) fn look_closely(&mut self) -> Option<Found> {
        for _ in 0..self.looks {
            if let Some(found) = self.look() {
                return Some(found);
            }
            hint::spin_loop();
        }
        None
    }

    /// After a look that found nothing, the first since a message was found; or before a look at what the last batch had
    /// found to be nothing.
    #[inline(always)]
    pub(super) fn note_vain_look(&mut self) {
        self.pace.left -= 1;
        if self.pace.left == 0 {
            self.pause();
        }
    }

    #[inline(never)]
    fn pause(&mut self) {
        let here = self.sources.here_mut();
        let came = here.map_or(0, |here| here.reader.track().take_streak());
        let singly = self.pace.pause(came);
        if singly != self.pace.singly {
            self.tell_singly(singly);
        }
    }

    /// Tells publishers whether messages come singly.
    #[cold]
    fn tell_singly(&mut self, singly: bool) {
        self.pace.singly = singly;
        self.cursor.tell_singly(&self.topic.files.control, singly);
    }

    /// Looks at the roster, then at every source once; whether a message is there, at the source that is then read.
    fn look_elsewhere(&mut self) -> Result<bool> {
        self.end_turn();
        self.keep_up()?;
        self.trim();
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
                if error.kind() == ErrorKind::Corrupt {
                    self.abandon();
                }
                Err(error)
            }
        }
    }

    /// Removes data files that all have passed, if we have passed one.
    #[inline]
    fn trim(&mut self) {
        if self.topic.files.is_logged() {
            self.trim_passed();
        }
    }

    #[inline(never)]
    fn trim_passed(&mut self) {
        for source in self.sources.iter_mut() {
            if source.reader.take_passed() {
                // What can't be removed now will be by who comes to the next file.
                let _ = reclaim::trim(&self.topic.files, source.id);
            }
        }
    }

    /// Says that all that was received is done with.
    pub(super) fn acknowledge(&mut self) -> Result<()> {
        self.check_fork()?;
        for source in self.sources.iter_mut() {
            source.reader.track().acknowledge();
        }
        for source in &mut self.damaged {
            source.reader.track().acknowledge();
        }
        self.trim();
        Ok(())
    }

    /// Goes on behind what is damaged, in lanes that were reported; what is passed.
    pub(super) fn skip_damaged(&mut self) -> Result<Lost> {
        self.check_fork()?;
        let (mut lost, mut failed) = (Lost::default(), Ok(()));
        for mut source in std::mem::take(&mut self.damaged) {
            match source.reader.skip() {
                Ok(Some(missed)) => {
                    lost.messages = lost.messages.saturating_add(missed.messages);
                    lost.bytes = lost.bytes.saturating_add(missed.bytes);
                    lost.lane = source.id;
                    self.abandoned.remove(&source.id);
                    self.sources.push(source);
                    // Its end is to be reported.
                    self.had_publisher = true;
                }
                // There is nothing behind it yet.
                Ok(None) => self.damaged.push(source),
                Err(e) => {
                    self.damaged.push(source);
                    failed = Err(e);
                }
            }
        }
        self.lost.messages = self.lost.messages.saturating_add(lost.messages);
        self.lost.bytes = self.lost.bytes.saturating_add(lost.bytes);
        self.end_turn();
        failed.map(|()| lost)
    }

    /// Lists the lanes anew if the roster has changed.
    fn keep_up(&mut self) -> Result<()> {
        if self.lock.is_none() {
            self.topic.files.look_again()?;
        }
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
            self.abandoned.insert(source.id);
            if self.topic.files.is_logged() {
                // Its publisher does not wait for us, and what we have not received is kept.
                self.damaged.push(source);
            } else {
                lane::leave(&self.cursor.slots[source.slot]);
            }
        }
        self.end_turn();
        // Its publisher may be there yet: that is no end.
        self.had_publisher &= self.sources.here().is_some();
    }

    /// Bytes of the envelope of what was found just now.
    #[inline]
    pub(super) fn envelope_len(&mut self, found: Found) -> Result<usize> {
        if !found.word.has_envelope() {
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
    pub(super) fn contradicts(&mut self, why: String) -> Error {
        let id = self.sources.here().map_or(0, |here| here.id);
        let error = self.topic.files.corrupt_lane(id, why);
        self.abandon();
        error
    }

    /// Whether the last publisher has left, and all is received.
    pub(super) fn has_ended(&self) -> bool {
        self.had_publisher && self.sources.iter().all(|source| source.ended.is_some())
    }

    /// The same; says so once.
    pub(super) fn take_end(&mut self) -> bool {
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
        if self.lock.is_none() {
            thread::sleep(time.min(OBSERVED_EVERY));
            return Ok(());
        }
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

    /// Removes a named subscription that could not be made: nothing was promised yet.
    fn withdraw(&self) {
        let Some(named) = &self.named else { return };
        let files = &self.topic.files;
        let removed =
            escape(&named.name).and_then(|name| files.remove_subscription(&name, &self.cursor));
        self.topic.bus.leave_to_others(removed);
    }

    /// Lists the lanes: joins new ones, drops those that are gone. `start`: it is the first time.
    fn refresh(&mut self, start: Option<Start>) -> Result<()> {
        // The source that is read may be another one afterwards, also after an error.
        self.end_turn();
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
        let is_known = |id: &u64| {
            self.abandoned.contains(id) || self.sources.iter().any(|source| source.id == *id)
        };
        let unknown: Vec<u64> = ids.into_iter().filter(|id| !is_known(id)).collect();
        for id in unknown {
            if self.lock.is_none() && self.sources.iter().count() >= OBSERVED_LANES {
                if std::mem::replace(&mut self.has_said_enough, true) {
                    break;
                }
                let why =
                    format!("it is one more than the {OBSERVED_LANES} that an observer follows");
                return Err(files.corrupt_lane(id, why));
            }
            self.join_lane(id, start).inspect_err(|e| {
                // Reported once: the next look goes on with the other lanes. What other users do is nobody's fault here.
                let may_pass = self.lock.is_some() || e.kind() == ErrorKind::TooMany;
                if e.kind() == ErrorKind::Corrupt || !may_pass {
                    self.abandoned.insert(id);
                }
            })?;
        }
        self.seen_roster = Some(now);
        for source in self.sources.iter_mut() {
            source.reader.track().refresh();
            source.closed = source.reader.is_closed();
            let is_empty = matches!(source.reader.next(), Ok(None));
            // Somebody may have adopted it, sent, and left again since it was last looked at, or joined.
            let went_on = source.ended.unwrap_or(source.joined) != source.reader.position();
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
        let resumed = match files.is_logged() {
            true => self.cursor.slot_of(id),
            false => None,
        };
        if let Some(slot) = resumed {
            return self.resume_lane(lane, slot);
        }
        let slot = self
            .cursor
            .take_slot(|index| files.allocate_slot(self.lock.as_ref(), index))?;
        let (control, capacity, place) = (
            &files.control,
            lane.ring.capacity(),
            &self.cursor.slots[slot],
        );
        let outside = Outside {
            header: &lane.header,
            ring: &lane.ring,
        };
        let is_lossy = files.pattern.is_lossy() || self.cursor.is_lossy();
        let at = match (is_lossy, start) {
            _ if files.is_logged() => match start {
                None => {
                    roster::enter(control, id, place, 0);
                    Ok(Boundary::default())
                }
                Some(start) => {
                    let at = join_log(files, &outside, (id, place), start);
                    Ok(at.inspect_err(|_| lane::leave(place))?)
                }
            },
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
                roster::join(control, &lane.header, capacity, id, place, |_| None)
                    .and_then(|(mark, limit)| lane::walk(&lane.ring, mark, limit, |_| {}))
                    .map(Boundary::without_count)
            }
            (_, Some(start)) => {
                let oldest = |from| Some(outside.first_from(from)?.position);
                roster::join(control, &lane.header, capacity, id, place, oldest)
                    .and_then(|(from, _)| outside.start(start.back(), from))
            }
        };
        let at = at.map_err(|corrupt| {
            // A writer is not to wait for a reader that gave up.
            lane::leave(place);
            files.corrupt_frame(id, corrupt)
        })?;
        let (slots, fences) = (self.cursor.slots.clone(), !futex::has_barrier());
        let mut reader = if files.is_logged() {
            let by_ack = self.is_by_ack();
            Reader::following(lane.header, lane.ring, slots, slot, at, (by_ack, fences))
        } else if is_lossy {
            roster::occupy(id, place, at.position);
            self.tell();
            Reader::copying(lane.header, lane.ring, slots, slot, at, fences)
        } else {
            Reader::gating(lane.header, lane.ring, slots, slot, at.position, fences)
        };
        reader.track().publish();
        // Publishers that came after us count, even if they have left already.
        self.had_publisher |= start.is_none();
        self.sources.push(Source::new(id, reader, slot));
        Ok(())
    }

    fn is_by_ack(&self) -> bool {
        self.named.as_ref().is_some_and(|named| named.by_ack)
    }

    /// Follows a lane from where a named subscription has left it.
    fn resume_lane(&mut self, lane: LaneFile, slot: usize) -> Result<()> {
        let LaneFile { id, header, ring } = lane;
        let outside = Outside {
            header: &header,
            ring: &ring,
        };
        let left = lane::left_at(&self.cursor.slots[slot]);
        if !lane::is_boundary(left.position) {
            let why = format!("it was left at {}, where nothing is", left.position);
            return Err(self.topic.files.corrupt_lane(id, why));
        }
        // What is damaged before it was received already.
        let at = outside.boundary_at(left).unwrap_or(left);
        let (slots, fences) = (self.cursor.slots.clone(), !futex::has_barrier());
        let reader = Reader::following(header, ring, slots, slot, at, (self.is_by_ack(), fences));
        self.sources.push(Source::new(id, reader, slot));
        Ok(())
    }

    pub(super) fn count_publishers(&mut self) -> Result<usize> {
        self.check_fork()?;
        self.topic.files.count_open_lanes()
    }
}

impl Receiver {
    /// Whether there is a message, or a loss or damage to tell. If not, all that was released is published.
    pub(super) fn has_news(&mut self) -> Result<bool> {
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

    fn due(&self) -> Option<Instant> {
        self.topic.bus.observed_again()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // An observer has left nothing.
        if self.born != fork::generation() || self.lock.is_none() {
            return;
        }
        for source in self.sources.iter_mut() {
            source.reader.track().settle();
        }
        let files = &self.topic.files;
        if self.named.is_some() {
            if self.cursor.is_joined() {
                self.cursor.disown();
                roster::changed(&files.control);
            } else {
                self.withdraw();
            }
            return;
        }
        // Also those that it has not come to: there may be no other reader.
        self.topic.leave(&self.cursor, |id| {
            let mut sources = self.sources.iter();
            sources.all(|source| source.id != id || source.reader.is_closed())
        });
    }
}

/// Joins a lane in data files.
fn join_log(
    files: &TopicFiles,
    outside: &Outside<'_>,
    (lane, place): (u64, &Slot),
    start: Start,
) -> Result<Boundary> {
    for _ in 0..roster::TRIES {
        let at = begin_log(files, outside, lane, start)?;
        if roster::join_log(&files.control, outside.header, lane, place, at.position) {
            return Ok(at);
        }
    }
    Err(files.corrupt_lane(lane, String::from("it says that nothing of it is kept")))
}

/// Where a new subscriber begins in a lane in data files.
fn begin_log(
    files: &TopicFiles,
    outside: &Outside<'_>,
    lane: u64,
    start: Start,
) -> Result<Boundary> {
    if start == Start::Oldest
        && let Some(log) = outside.ring.log()
    {
        // What is before the floor may go at any time.
        let floor = lane::floor(outside.header);
        let numbers = log.numbers()?;
        let first = numbers
            .into_iter()
            .find(|number| number * log.capacity() >= floor);
        if let Some(first) = first
            && let Some(start) = log.start(first)?
        {
            return Ok(start.boundary());
        }
    }
    let starts = match outside.ring.log() {
        Some(log) if start != Start::Now => log.starts()?,
        _ => Vec::new(),
    };
    let at = outside.start_with(&starts, start.back(), 0);
    at.map_err(|corrupt| files.corrupt_frame(lane, corrupt))
}

/// Puts away a lane that has ended, if all have read it.
#[cold]
fn put_away(files: &TopicFiles, id: u64) {
    // What can't be put away now will be by the next reader, publisher, or who opens the bus.
    if reclaim::tidy_lane(files, id).unwrap_or(false) {
        roster::changed(&files.control);
    }
}

#[cfg(test)]
mod tests {
    use crate::shm::roster;
    use crate::{Bus, ErrorKind};

    /// Its publisher took up a lane that was closed when this subscriber joined it, and came and went between two looks at the
    /// roster.
    #[test]
    fn the_end_of_a_publisher_whose_messages_alone_were_seen() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let topic = Bus::at(dir.path().join("bus")).unwrap().topic("t").unwrap();
        // Has the lane stay.
        let _slow = topic.subscriber().unwrap();
        topic.publisher().unwrap().send(b"before").unwrap();
        let mut subscriber = topic.subscriber().unwrap();
        let mut publisher = topic.publisher().unwrap();
        publisher.send(b"message").unwrap();
        // As if it had looked just before, and found the message then.
        let receiver = &mut subscriber.receiver;
        receiver.seen_roster = Some(roster::state(&receiver.topic.files.control));
        assert_eq!(&*subscriber.try_recv().unwrap().unwrap(), b"message");
        drop(publisher);
        let end = subscriber
            .try_recv()
            .map(|frame| frame.is_some())
            .unwrap_err();
        assert_eq!(end.kind(), ErrorKind::Ended);
    }
}
