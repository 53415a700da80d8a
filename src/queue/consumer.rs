//! A consumer: it walks every lane of its queue, and those of its group's retry topic, and claims what nobody has.

use std::collections::HashMap;
use std::fmt;
use std::hint;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::DEFAULT;
use super::delivery::{self, Deliveries, Delivery, Home, Item, Seat, Share};
use super::records::PutOff;
use crate::bus::{TopicInner, escape};
use crate::error::{Error, ErrorKind, Result};
use crate::futures::{MessageStream, Receive};
use crate::message::Payload;
use crate::reactor::{Ready, Sleep};
use crate::shm::claims::{self, Offer, Walk};
use crate::shm::lane::{self, Corrupt};
use crate::shm::layout::{Claim, EnvelopeHead, Fate, GroupConfig, LEFT};
use crate::shm::park::Ticket;
use crate::shm::segment::Access;
use crate::shm::topic::CURSOR;
use crate::shm::{futex, park, reclaim, roster};
use crate::wait::{Next, Waitable, Waiter};

/// Messages taken from one lane before the others are looked at.
const TURN: u32 = 64;
/// Looks at one lane before the others, the roster and the clock are looked at again.
const CLOSE_LOOKS: u32 = 32;
/// How long a consumer that can't use `membarrier` sleeps at first: far longer than a store takes to become visible.
const FIRST_SLEEP: Duration = Duration::from_millis(1);
/// When a message is looked at again that could not become a dead letter.
const AGAIN: Duration = Duration::from_secs(1);

/// Joins a [`Queue`](super::Queue) as a consumer, otherwise than by default. Made by
/// [`Queue::consumer_builder`](super::Queue::consumer_builder).
///
/// Lease, attempts and dead letters belong to the group: who says nothing takes what holds, who comes first while the
/// group has no consumer may change it, and the others must mean the same.
///
/// ```
/// use std::time::Duration;
///
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let queue = buslane::Bus::at(dir.path().join("bus"))?.queue("jobs")?;
/// let builder = queue.consumer_builder().group("thumbnails").max_attempts(3);
/// let mut consumer = builder.lease(Duration::from_secs(30)).dead_letter("failed").open()?;
/// queue.producer()?.push(b"7.png")?;
/// for _ in 0..3 {
///     consumer.recv()?.retry(Duration::ZERO)?;
/// }
/// assert!(consumer.try_recv()?.is_none());
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let mut failed = bus.queue("failed")?.consumer()?;
/// assert_eq!(buslane::DeadLetter::parse(&failed.recv()?)?.payload, b"7.png");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct ConsumerBuilder<T: ?Sized = [u8]> {
    topic: Arc<TopicInner>,
    group: String,
    lease: Option<Duration>,
    max_attempts: Option<u8>,
    dead_letter: Option<String>,
    kinds: u64,
    exclusive: bool,
    kind: PhantomData<fn() -> Box<T>>,
}

impl<T: ?Sized + Payload> ConsumerBuilder<T> {
    pub(crate) fn new(topic: &Arc<TopicInner>) -> Self {
        Self {
            topic: Arc::clone(topic),
            group: DEFAULT.to_owned(),
            lease: None,
            max_attempts: None,
            dead_letter: None,
            kinds: 0,
            exclusive: false,
            kind: PhantomData,
        }
    }

    /// The group it belongs to: by default `default`. A new one gets what is pushed from now on.
    pub fn group(mut self, name: &str) -> Self {
        name.clone_into(&mut self.group);
        self
    }

    /// After how long a delivery is taken away from who neither finishes it nor dies, and given to another; at least so
    /// long, and at most a quarter longer while another consumer is there. By default (zero) never. With a lease, payloads
    /// are copied.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// How often a message is delivered before it goes to the dead-letter topic instead. By default (0) as often as it
    /// takes. At most 254.
    pub fn max_attempts(mut self, attempts: u8) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// The dead-letter topic, a work queue of bytes: by default (the empty name) the queue's name and `.dead`. It is made
    /// when it is needed. See [`DeadLetter`](super::DeadLetter).
    pub fn dead_letter(mut self, topic: &str) -> Self {
        self.dead_letter = Some(topic.to_owned());
        self
    }

    /// Whether it joins only if the group has no consumer that lives; if it has, that is the error `InUse`. So one works and others, which
    /// try again from time to time, stand by. Who does not ask for this may join all the same.
    pub fn exclusive(mut self, exclusive: bool) -> Self {
        self.exclusive = exclusive;
        self
    }

    /// Which kinds of messages it takes, as its cursor has them; the others are left to other consumers.
    pub(crate) fn kinds(mut self, kinds: u64) -> Self {
        self.kinds = kinds;
        self
    }

    /// Joins.
    ///
    /// # Errors
    ///
    /// `Mismatch` if the group has consumers that mean otherwise, `InUse` if it is to be the only one, and is not, `InvalidName`, and as for
    /// [`Queue::consumer`](super::Queue::consumer).
    pub fn open(self) -> Result<Consumer<T>> {
        let topic = &self.topic;
        topic.bus.listen()?;
        let files = &topic.files;
        let (lock, group) = files.open_group(&escape(&self.group)?)?;
        // Under the group's lock: nobody else joins meanwhile.
        if self.exclusive && files.has_consumer(group.id)? {
            let why = format!("its group {} has a consumer", self.group);
            return Err(
                Error::new(ErrorKind::InUse, "join the queue alone", &*files.name, why)
                    .advise("try again when that one has gone"),
            );
        }
        let config = self.config(group.config)?;
        if config != group.config {
            if files.has_consumer(group.id)? {
                let why = format!(
                    "the consumers of its group {} have agreed otherwise on lease, attempts or dead letters",
                    self.group
                );
                return Err(
                    Error::new(ErrorKind::Mismatch, "join the queue", &*files.name, why).advise(
                        "leave the settings out, end those consumers, or use another group",
                    ),
                );
            }
            files.set_group_config(&lock, &config)?;
        }
        let len = (config.dead_letter_len as usize).min(config.dead_letter.len());
        let dead_letter = match &config.dead_letter[..len] {
            [] => format!("{}.dead", files.name),
            name => String::from_utf8_lossy(name).into_owned(),
        };
        let lease = Duration::from_nanos(config.lease_ns);
        let home = Arc::new(Home {
            topic: Arc::clone(topic),
            group: self.group,
            lease: (!lease.is_zero()).then_some(lease),
            max_attempts: config.max_attempts,
            dead_letter,
            kinds: self.kinds,
            outbox: Mutex::default(),
        });
        let seat = Seat::take(&home, topic, group.id)?;
        drop(lock);
        let mut desk = Desk {
            queue: Inbox::new(seat, group.name),
            retries: None,
            at: 0,
            turn: 0,
            looks: 1,
            size: T::SIZE,
            look_at_all: None,
            leases: Leases::default(),
            is_known: false,
            home,
        };
        desk.attend()?;
        Ok(Consumer {
            desk,
            sleep: Sleep::default(),
            kind: PhantomData,
        })
    }

    /// What the group is to be, that is `now`.
    fn config(&self, now: GroupConfig) -> Result<GroupConfig> {
        let mut config = now;
        if let Some(lease) = self.lease {
            config.lease_ns = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
        }
        if let Some(attempts) = self.max_attempts {
            // One less than what can be counted.
            config.max_attempts = u64::from(attempts).min(Claim::MAX_ATTEMPTS - 1);
        }
        if let Some(name) = &self.dead_letter {
            if !name.is_empty() {
                escape(name)?;
            }
            // A topic's name has at most 255 bytes.
            config.dead_letter = [0; 256];
            config.dead_letter[..name.len()].copy_from_slice(name.as_bytes());
            config.dead_letter_len = name.len() as u64;
        }
        Ok(config)
    }
}

/// Receives messages of a work queue, shared with the other consumers of its group. See [`Queue`](super::Queue).
///
/// Dropping it lets the others have what it had not taken; it stays counted as long as one of its deliveries is held.
#[must_use]
pub struct Consumer<T: ?Sized = [u8]> {
    desk: Desk,
    sleep: Sleep,
    kind: PhantomData<fn() -> Box<T>>,
}

impl<T: ?Sized> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Home { topic, group, .. } = &*self.desk.home;
        f.debug_struct("Consumer")
            .field("queue", &topic.files.name)
            .field("group", group)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized + Payload> Consumer<T> {
    /// The queue's name.
    #[must_use]
    pub fn queue_name(&self) -> &str {
        &self.desk.home.topic.files.name
    }

    /// The group's name.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.desk.home.group
    }

    /// The next message that nobody has. Waits for it as the wait strategy says.
    ///
    /// # Errors
    ///
    /// What kept a message that is due for it from the dead-letter topic (`Full`, `NoSpace`, `Mismatch`): it stays where it
    /// is, and is looked at again after a second. `Corrupt` (once for each lane) when a lane contradicts itself. `NotFound`
    /// if the group or the queue was removed; `Forked`, and the system's.
    #[inline(always)]
    pub fn recv(&mut self) -> Result<Delivery<T>> {
        loop {
            if let Some(delivery) = self.within(None)? {
                return Ok(delivery);
            }
        }
    }

    /// The next message, if there is one that nobody has.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    #[inline(always)]
    pub fn try_recv(&mut self) -> Result<Option<Delivery<T>>> {
        self.within(Some(Duration::ZERO))
    }

    /// The next message; `None` if there is none for `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    #[inline]
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<Delivery<T>>> {
        self.within(Some(timeout))
    }

    /// The next message that nobody has, as a future: the task sleeps until there is one. It may be dropped at any time.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv); `Unsupported` if it must wait before Linux 5.16.
    pub async fn recv_async(&mut self) -> Result<Delivery<T>> {
        loop {
            if let Some(delivery) = self.try_recv()? {
                return Ok(delivery);
            }
            self.wait_for_offer().await?;
        }
    }

    /// A stream of deliveries. It does not end.
    pub fn stream(&mut self) -> MessageStream<&mut Self> {
        MessageStream::new(self)
    }

    /// The same, as the consumer's owner.
    pub fn into_stream(self) -> MessageStream<Self> {
        MessageStream::new(self)
    }

    #[inline(always)]
    fn within(&mut self, patience: Option<Duration>) -> Result<Option<Delivery<T>>> {
        let deliver = |share: &Arc<Share>, item| Delivery::new(Arc::clone(share), item);
        Ok(self.take(patience, deliver)?.map(|taken| match taken {
            Taken::Common(delivery) => delivery,
            Taken::Rare(rare) => Delivery::new(rare.0, rare.1),
        }))
    }

    /// The next message, waited for at most so long: what `hand_out` makes of it, if it is as most are.
    #[inline(always)]
    pub(crate) fn take<D>(
        &mut self,
        patience: Option<Duration>,
        hand_out: impl FnOnce(&Arc<Share>, Item) -> D,
    ) -> Result<Option<Taken<D>>> {
        self.desk.next(patience, hand_out)
    }

    /// Ready when there is a message that nobody has, or damage to tell.
    pub(crate) async fn wait_for_offer(&mut self) -> Result<()> {
        Ready::new(&mut self.desk, &mut self.sleep).await
    }

    /// The next messages of one producer that nobody has, at least one and at most `max`. Waits for the first one.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    #[inline]
    pub fn recv_batch(&mut self, max: usize) -> Result<Deliveries<T>> {
        loop {
            if let Some(batch) = self.batch(None, max)? {
                return Ok(batch);
            }
        }
    }

    /// The next messages of one producer that nobody has, `max` at most, if there are any.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    #[inline]
    pub fn try_recv_batch(&mut self, max: usize) -> Result<Option<Deliveries<T>>> {
        self.batch(Some(Duration::ZERO), max)
    }

    fn batch(&mut self, patience: Option<Duration>, max: usize) -> Result<Option<Deliveries<T>>> {
        let first = self.take(patience, |share, item| (Arc::clone(share), item))?;
        let (share, item) = match first {
            Some(Taken::Common(first)) => first,
            Some(Taken::Rare(first)) => *first,
            None => return Ok(None),
        };
        let items = self.desk.more(&share, item, max);
        Ok(Some(Deliveries::new(share, items)))
    }

    /// After `Corrupt` on a durable queue: has the group go on behind the message that is damaged, in each lane where all before
    /// it is acknowledged, and says in how many. That message is given up, with what can't be told from it.
    ///
    /// # Errors
    ///
    /// `Forked`, and the system's.
    pub fn skip_damaged(&mut self) -> Result<usize> {
        self.desk.home.topic.bus.check_fork()?;
        let retries = self.desk.retries.as_mut();
        let retries = retries.map_or(Ok(0), Inbox::skip_damaged)?;
        Ok(self.desk.queue.skip_damaged()? + retries)
    }

    /// Whether its group has acknowledged all that was pushed so far, and nothing waits to be tried again.
    ///
    /// # Errors
    ///
    /// `NotFound` if the group or the queue was removed; `Forked`, and the system's.
    pub fn is_empty(&mut self) -> Result<bool> {
        self.desk.home.topic.bus.check_fork()?;
        self.desk.attend()?;
        Ok(self
            .desk
            .sources()
            .all(|source| source.share.claims.is_empty()))
    }
}

/// A lane that is walked.
struct Source {
    share: Arc<Share>,
    walk: Walk,
    /// When the first of the put-off messages is due that were passed.
    due_ns: u64,
    /// Its writer had gone when the roster was last looked at, and nobody has tried to remove it since.
    closed: bool,
    /// The number of the data file that the group has come to.
    passed: u64,
}

impl Source {
    /// The next message that nobody has. Those that are put off are passed until they are due.
    #[inline(always)]
    fn find(&mut self) -> Result<Option<Offer>, Corrupt> {
        match self.share.seat.home.kinds {
            0 if !self.share.seat.is_for_retries() => self.walk.find(),
            kinds => self.find_wanted(kinds),
        }
    }

    /// The same, passing what is of no kind that is wanted.
    #[inline(never)]
    fn find_wanted(&mut self, kinds: u64) -> Result<Option<Offer>, Corrupt> {
        let until = self.walk.until();
        while !self.walk.has_reached(until) {
            let offer = if self.share.seat.is_for_retries() {
                self.find_due(until)?
            } else {
                self.walk.find()?
            };
            match offer {
                Some(offer) if kinds != 0 && !roster::takes(kinds, self.kind_of(offer)) => {
                    self.walk.pass(offer.found);
                }
                offer => return Ok(offer),
            }
        }
        Ok(None)
    }

    /// The kind that its envelope says; 0 if it has none.
    fn kind_of(&self, offer: Offer) -> u8 {
        let (envelope, has_one) = if self.share.seat.is_for_retries() {
            let len = offset_of!(PutOff, envelope) / 8;
            (size_of::<PutOff>(), self.walk.peek(offer, len as u64) != 0)
        } else {
            (0, offer.found.word.has_envelope())
        };
        let at = envelope + offset_of!(EnvelopeHead, marks);
        match has_one && offer.found.word.len() as usize > at {
            true => EnvelopeHead {
                marks: self.walk.peek(offer, at as u64 / 8),
                ..EnvelopeHead::default()
            }
            .kind(),
            false => 0,
        }
    }

    fn find_due(&mut self, until: u64) -> Result<Option<Offer>, Corrupt> {
        let now_ns = delivery::due_clock(&self.share.seat.topic);
        if self.due_ns <= now_ns {
            self.due_ns = u64::MAX;
            self.walk.rewind();
        }
        while !self.walk.has_reached(until)
            && let Some(offer) = self.walk.find()?
        {
            let due_ns = self.walk.peek(offer, 0);
            if due_ns <= now_ns {
                return Ok(Some(offer));
            }
            self.due_ns = self.due_ns.min(due_ns);
            self.walk.pass(offer.found);
        }
        Ok(None)
    }
}

/// The lanes of one topic.
struct Inbox {
    seat: Arc<Seat>,
    /// The group's escaped name.
    group: String,
    /// In the order of their numbers.
    sources: Vec<Source>,
    seen_roster: Option<u64>,
    /// Lanes that contradicted themselves.
    abandoned: Vec<u64>,
    /// Those of them in data files, and where.
    damaged: Vec<(Arc<Share>, u64)>,
    /// The cursors that there were when the lanes were listed.
    cursors: Vec<u64>,
    /// One of them has gone since what the dead were moving was last looked for.
    has_lost: bool,
    /// What the dead were moving was looked for, since when we may be moving something.
    has_looked: bool,
}

impl Inbox {
    fn new(seat: Seat, group: String) -> Self {
        Self {
            seat: Arc::new(seat),
            group,
            sources: Vec::new(),
            seen_roster: None,
            abandoned: Vec::new(),
            damaged: Vec::new(),
            cursors: Vec::new(),
            has_lost: true,
            has_looked: false,
        }
    }

    /// What consumers were moving that have gone.
    fn orphans(&self) -> Result<Vec<(Arc<Share>, Claim)>> {
        let mut orphans = Vec::new();
        for Source { share, .. } in &self.sources {
            let moving = share.claims.with_fate(Fate::Moving);
            orphans.extend(moving.map(|claim| (Arc::clone(share), claim)));
        }
        // Listed after the claims were seen: who lives, and made one of them, is there.
        let mut living = self.seat.topic.files.dir().numbers(CURSOR)?;
        // Not ours yet: what has our number is of another, long ago, whose number was cut to the same.
        living.retain(|&id| self.has_looked || id != self.seat.cursor.id);
        orphans.retain(|(_, claim)| claims::is_orphan(*claim, &living));
        Ok(orphans)
    }

    fn has_changed(&self) -> bool {
        self.seen_roster != Some(roster::state(&self.seat.topic.files.control))
    }

    /// Lists the lanes: walks new ones, drops those that are gone.
    fn refresh(&mut self) -> Result<()> {
        let topic = Arc::clone(&self.seat.topic);
        let files = &topic.files;
        // Read before listing, so that what comes later changes it once more.
        let now = roster::state(&files.control);
        let ids = files.list_lanes()?;
        let group = files.group(&self.group, Access::Read)?;
        if group.is_none_or(|(_, group)| group.id != self.seat.group) {
            let why = format!("the group {} was removed", self.seat.home.group);
            return Err(
                Error::new(ErrorKind::NotFound, "consume from", &*files.name, why)
                    .advise("join it anew"),
            );
        }
        self.sources
            .retain(|source| ids.binary_search(&source.share.lane).is_ok());
        for &id in &ids {
            let known = self.sources.iter().any(|source| source.share.lane == id);
            if !known && !self.abandoned.contains(&id) {
                self.follow(id).inspect_err(|e| {
                    // Reported once: the next look goes on with the other lanes.
                    if e.kind() == ErrorKind::Corrupt {
                        self.abandoned.push(id);
                    }
                })?;
            }
        }
        for source in &mut self.sources {
            source.closed = lane::is_closed(&source.share.claims.lane);
        }
        let cursors = files.dir().numbers(CURSOR)?;
        self.has_lost |= self.cursors.iter().any(|id| !cursors.contains(id));
        self.cursors = cursors;
        self.seen_roster = Some(now);
        Ok(())
    }

    fn follow(&mut self, id: u64) -> Result<()> {
        let files = &self.seat.topic.files;
        let Some(lane) = files.lane_to_follow(id)? else {
            return Ok(());
        };
        let Some(claims) = files.claims(self.seat.group, &lane)? else {
            return Ok(());
        };
        // Whoever was here before may have died while it acknowledged.
        claims.repair(&self.seat.home.topic.files.control);
        self.sources.push(Source {
            walk: Walk::new(claims.clone()),
            share: Arc::new(Share::new(&self.seat, id, claims)),
            due_ns: u64::MAX,
            closed: false,
            passed: 0,
        });
        Ok(())
    }

    /// Removes data files that every group is done with, of lanes in such.
    #[inline]
    fn trim(&mut self) {
        if self.seat.topic.files.is_logged() {
            self.trim_passed();
        }
    }

    #[inline(never)]
    fn trim_passed(&mut self) {
        for source in &mut self.sources {
            let claims = &source.share.claims;
            let head = claims.head() & !LEFT;
            let file = head / claims.ring.capacity();
            if file > source.passed {
                source.passed = file;
                // What can't be removed now will be by who comes to the next file.
                let _ = reclaim::trim(&self.seat.topic.files, source.share.lane);
                claims.ring.lift_before(head);
            }
        }
    }

    /// Goes on behind what is damaged: how many lanes do.
    fn skip_damaged(&mut self) -> Result<usize> {
        let (damaged, mut failed) = (self.damaged.len(), Ok(()));
        self.damaged.retain(|(share, position)| {
            let skipped = share.claims.skip_damaged(*position).unwrap_or_else(|e| {
                failed = Err(e);
                false
            });
            share.tell(false);
            if skipped {
                self.abandoned.retain(|lane| *lane != share.lane);
            }
            !skipped
        });
        // They are listed anew.
        self.seen_roster = None;
        failed.map(|()| damaged - self.damaged.len())
    }

    /// Removes lanes whose writer has gone and that are done with.
    fn put_away(&mut self) {
        let files = &self.seat.topic.files;
        for source in &mut self.sources {
            if source.closed && source.share.claims.is_empty() {
                source.closed = false;
                // What can't be put away now will be by the next consumer, producer, or who opens the bus.
                if reclaim::tidy_lane(files, source.share.lane).unwrap_or(false) {
                    roster::changed(&files.control);
                }
            }
        }
    }

    /// Stops walking a lane that contradicts itself: it is reported once.
    #[cold]
    fn abandon(&mut self, index: usize, corrupt: Corrupt) -> Error {
        let files = &self.seat.topic.files;
        let error = files.corrupt_frame(self.sources[index].share.lane, corrupt);
        if error.kind() == ErrorKind::Corrupt {
            let share = self.sources.remove(index).share;
            self.abandoned.push(share.lane);
            if files.is_logged() {
                self.damaged.push((share, corrupt.position));
            }
        }
        error
    }

    /// Whether a lane has a message that nobody has.
    fn offers(&mut self, index: usize) -> Result<bool> {
        let found = self.sources[index].find();
        let found = found.map_err(|corrupt| self.abandon(index, corrupt))?;
        Ok(found.is_some())
    }

    /// Claims the next message of a lane, if there is one that nobody has.
    #[inline(always)]
    fn claim(&mut self, index: usize) -> Result<Option<Item>> {
        loop {
            let source = &mut self.sources[index];
            let offer = match source.find() {
                Ok(Some(offer)) => offer,
                Ok(None) => return Ok(None),
                Err(corrupt) => return Err(self.abandon(index, corrupt)),
            };
            if let Some(claim) = source.walk.take(offer, self.seat.cursor.id)
                && let Some(item) = source.share.accept(offer.found, claim)
            {
                return Ok(Some(item));
            }
        }
    }
}

/// When each claim was first seen as it is: by whether it was put off, its lane, and its number.
#[derive(Default)]
struct Leases {
    seen: HashMap<(bool, u64, u32), (Claim, Instant)>,
    next: Option<Instant>,
}

/// A message that was claimed, with what finishes it.
pub(crate) type Claimed = (Arc<Share>, Item);

/// A message that was taken.
pub(crate) enum Taken<D> {
    /// As most are.
    Common(D),
    /// With something beside it.
    Rare(Box<Claimed>),
}

/// What is found beyond the lane that is walked now.
enum Further {
    /// Nothing, in the time that there was.
    Nothing,
    /// What is worth another look.
    Look,
    /// A message of another topic.
    Rare(Box<Claimed>),
}

/// A consumer of whatever type.
struct Desk {
    queue: Inbox,
    retries: Option<Inbox>,
    /// The source that is walked now.
    at: usize,
    /// Messages from it; every [`TURN`]th, everything else is looked at.
    turn: u32,
    /// Looks at it before anything else is done: many, while messages come singly and soon.
    looks: u32,
    /// Bytes of each payload, if they are always the same.
    size: Option<u64>,
    /// When to go back to what could not become a dead letter.
    look_at_all: Option<Instant>,
    leases: Leases,
    /// It has slept once.
    is_known: bool,
    home: Arc<Home>,
}

impl Desk {
    /// The next message, waited for at most so long; `None` waits for ever, zero not at all.
    #[inline(always)]
    fn next<D>(
        &mut self,
        patience: Option<Duration>,
        hand_out: impl FnOnce(&Arc<Share>, Item) -> D,
    ) -> Result<Option<Taken<D>>> {
        self.queue.seat.check_fork()?;
        if patience == Some(Duration::ZERO) {
            self.looks = 1;
        }
        let mut waiter = None;
        loop {
            match self.look_closely()? {
                Some(Taken::Common(item)) => {
                    let share = &self.queue.sources[self.at].share;
                    return Ok(Some(Taken::Common(hand_out(share, item))));
                }
                Some(Taken::Rare(rare)) => return Ok(Some(Taken::Rare(rare))),
                None => {}
            }
            match self.look_further(patience, &mut waiter)? {
                Further::Look => {}
                Further::Rare(rare) => return Ok(Some(Taken::Rare(rare))),
                Further::Nothing => return Ok(None),
            }
        }
    }

    /// Looks at the lane that is walked now, and at nothing else.
    #[inline(always)]
    fn look_closely(&mut self) -> Result<Option<Taken<Item>>> {
        if self.turn >= TURN || self.at >= self.queue.sources.len() {
            return Ok(None);
        }
        for look in 0..self.looks {
            if look > 0 {
                hint::spin_loop();
            }
            if let Some(item) = self.queue.claim(self.at)? {
                self.turn += 1;
                let max = self.home.max_attempts;
                let is_common = item.is_plain() && (max == 0 || item.attempts() <= max);
                if is_common && self.size.is_none_or(|size| size == item.len()) {
                    return Ok(Some(Taken::Common(item)));
                }
                let share = Arc::clone(&self.queue.sources[self.at].share);
                if let Some(rare) = self.fit(share, item)? {
                    return Ok(Some(Taken::Rare(rare)));
                }
            }
        }
        Ok(None)
    }

    /// Looks at everything else, and waits if there is nothing.
    #[inline(never)]
    fn look_further(
        &mut self,
        patience: Option<Duration>,
        waiter: &mut Option<Waiter>,
    ) -> Result<Further> {
        let found = self.look_around()?;
        if !matches!(found, Further::Nothing) || patience == Some(Duration::ZERO) {
            return Ok(found);
        }
        let waiter = waiter.get_or_insert_with(|| Waiter::new(self.home.topic.wait, patience));
        self.looks = 1;
        match waiter.next(1) {
            Next::Look => self.looks = CLOSE_LOOKS,
            Next::Sleep(time) => self.sleep(time)?,
            Next::TimedOut => return Ok(Further::Nothing),
        }
        Ok(Further::Look)
    }

    /// Looks at everything once, beginning behind the lane that was walked last.
    fn look_around(&mut self) -> Result<Further> {
        self.turn = 0;
        self.attend()?;
        self.queue.trim();
        if let Some(retries) = &mut self.retries {
            retries.trim();
        }
        for _ in 0..self.queue.sources.len() {
            self.at = if self.at + 1 < self.queue.sources.len() {
                self.at + 1
            } else {
                0
            };
            if self.queue.offers(self.at)? {
                return Ok(Further::Look);
            }
        }
        let retries = self.retries.as_ref().map_or(0, |inbox| inbox.sources.len());
        for index in 0..retries {
            while let Some(inbox) = &mut self.retries
                && let Some(item) = inbox.claim(index)?
            {
                let share = Arc::clone(&inbox.sources[index].share);
                if let Some(rare) = self.fit(share, item)? {
                    return Ok(Further::Rare(rare));
                }
            }
        }
        self.queue.put_away();
        if let Some(inbox) = &mut self.retries {
            inbox.put_away();
        }
        Ok(Further::Nothing)
    }

    /// More of the same lane, `max` with the first.
    fn more(&mut self, share: &Arc<Share>, first: Item, max: usize) -> Vec<Item> {
        let mut items = vec![first];
        let (max_attempts, size) = (self.home.max_attempts, self.size);
        let is_good = |offer: &Offer| {
            (max_attempts == 0 || offer.attempts() < max_attempts)
                && !offer.found.word.has_envelope()
                && size.is_none_or(|size| size == offer.found.word.len())
        };
        let of_lane = |source: &Source| Arc::ptr_eq(&source.share, share);
        if let Some(at) = self.queue.sources.iter().position(of_lane) {
            // What can't be had now is met, and told, by the next look.
            while items.len() < max
                && let Some(source) = self.queue.sources.get_mut(at)
                && let Ok(Some(offer)) = source.walk.find()
                && is_good(&offer)
            {
                if let Some(claim) = source.walk.take(offer, self.queue.seat.cursor.id) {
                    items.extend(share.accept(offer.found, claim));
                }
            }
        }
        items
    }

    /// What was claimed, if it may be delivered; else it becomes a dead letter.
    #[inline(never)]
    fn fit(&mut self, share: Arc<Share>, item: Item) -> Result<Option<Box<Claimed>>> {
        if let Some(put_off) = item.put_off() {
            let said = self.say_moved(put_off);
            said.inspect_err(|_| share.give_back(item.claim))?;
        }
        let max = self.home.max_attempts;
        let len = share.payload(&item).len() as u64;
        let reason = if max != 0 && item.attempts() > max {
            format!("it was delivered {max} times, and never acknowledged")
        } else if self.size.is_some_and(|size| size != len) {
            format!("it has {len} bytes, which is not the size of the queue's type")
        } else if item.found.word.has_envelope() && item.envelope == 0 {
            String::from("its envelope contradicts itself")
        } else if share.seat.is_for_retries() && item.put_off().is_none() {
            String::from("it is no message that was put off")
        } else {
            return Ok(Some(Box::new((share, item))));
        };
        self.bury(&share, &item, &reason)?;
        Ok(None)
    }

    /// Before a message is handed out that was put off: who put it off may have died, or be about to, before it has said so.
    fn say_moved(&mut self, put_off: &PutOff) -> Result<()> {
        let origin = |desk: &Self| {
            let mut sources = desk.sources();
            let source = sources.find(|source| put_off.is_from(&source.share));
            source.map(|source| Arc::clone(&source.share))
        };
        let mut share = origin(self);
        if share.is_none() {
            // It may have come since the lanes were last listed; or is gone, with all that was in it.
            self.queue.refresh()?;
            self.refresh_retries()?;
            share = origin(self);
        }
        if let Some(share) = share {
            share.end_move(Claim(put_off.from_claim));
        }
        Ok(())
    }

    #[cold]
    fn bury(&mut self, share: &Share, item: &Item, reason: &str) -> Result<()> {
        let buried = share.bury(item, reason);
        if buried.is_err() {
            // Quietly: the others need not look at it again right away, nor we.
            if !share.claims.free(item.claim) {
                share.tell(false);
            }
            self.look_at_all = Instant::now().checked_add(AGAIN);
        }
        buried
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        let retries = self.retries.iter().flat_map(|inbox| &inbox.sources);
        self.queue.sources.iter().chain(retries)
    }

    /// Sees to all but messages: who is there, what is due, whose lease has run out.
    fn attend(&mut self) -> Result<()> {
        if self.queue.has_changed() {
            // First, so that a retry topic that is made now changes the roster once more.
            self.queue.refresh()?;
            self.refresh_retries()?;
        } else if self.retries.as_ref().is_some_and(Inbox::has_changed) {
            self.refresh_retries()?;
        }
        if self.inboxes().any(|inbox| inbox.has_lost) {
            self.end_moves()?;
        }
        if self.look_at_all.is_some_and(|at| at <= Instant::now()) {
            self.look_at_all = None;
            let retries = self.retries.iter_mut().flat_map(|inbox| &mut inbox.sources);
            for source in self.queue.sources.iter_mut().chain(retries) {
                source.walk.rewind();
            }
        }
        if let Some(lease) = self.home.lease {
            self.end_leases(lease);
        }
        Ok(())
    }

    /// Of what consumers were moving that have gone: what is in the retry topic is done with where it was, the rest is
    /// given back.
    #[cold]
    fn end_moves(&mut self) -> Result<()> {
        // First: who is found to have gone meanwhile is for the next time.
        self.inboxes().for_each(|inbox| inbox.has_lost = false);
        let ended = self.end_moves_of_the_dead();
        for inbox in self.inboxes() {
            inbox.has_lost |= ended.is_err();
            inbox.has_looked |= !inbox.has_lost;
        }
        ended
    }

    fn end_moves_of_the_dead(&mut self) -> Result<()> {
        let mut orphans = Vec::new();
        for inbox in self.inboxes() {
            orphans.extend(inbox.orphans()?);
        }
        if !orphans.is_empty() {
            // Their lanes must be among those that we look at.
            self.refresh_retries()?;
        }
        for (share, moving) in orphans {
            let mut copies = self.retries.iter().flat_map(|inbox| &inbox.sources);
            if copies.any(|source| source.share.has_copy_of(&share, moving)) {
                share.end_move(moving);
            } else {
                share.tell(share.claims.free(moving));
            }
        }
        Ok(())
    }

    /// Looks for the lanes of what was put off.
    fn refresh_retries(&mut self) -> Result<()> {
        if self.retries.is_none()
            && let Some(topic) = delivery::retries_of(&self.home)?
        {
            let (_lock, group) = topic.files.open_group(DEFAULT)?;
            let seat = Seat::take(&self.home, &topic, group.id)?;
            self.retries = Some(Inbox::new(seat, group.name));
        }
        match &mut self.retries {
            Some(inbox) => inbox.refresh(),
            None => Ok(()),
        }
    }

    /// Takes away what somebody has held unchanged for the time of a lease, as far as we have seen it.
    fn end_leases(&mut self, lease: Duration) {
        let now = Instant::now();
        if self.leases.next.is_some_and(|next| now < next) {
            return;
        }
        let before = std::mem::take(&mut self.leases.seen);
        let mut after = HashMap::new();
        for source in self.sources() {
            let share = &source.share;
            let mut freed = false;
            let held = |claim: &Claim| claim.is(Fate::Claimed) || claim.is(Fate::Cancelled);
            for claim in share.claims.all().filter(held) {
                let key = (share.seat.is_for_retries(), share.lane, claim.sequence());
                let since = match before.get(&key) {
                    Some(&(seen, since)) if seen == claim => since,
                    _ => now,
                };
                if now - since >= lease {
                    freed |= share.claims.take_away(claim);
                } else {
                    after.insert(key, (claim, since));
                }
            }
            share.tell(freed);
        }
        self.leases.seen = after;
        self.leases.next = now.checked_add(lease / 4);
    }

    fn sleep(&mut self, time: Duration) -> Result<()> {
        let left = self
            .due()
            .map(|due| due.saturating_duration_since(Instant::now()));
        let time = left.map_or(time, |left| left.min(time));
        // A sender that has not seen us yet does not know that it must fence for us: the first sleep is a short one.
        let knows = std::mem::replace(&mut self.is_known, true) || futex::has_barrier();
        let time = if knows { time } else { time.min(FIRST_SLEEP) };
        let seat = Arc::clone(&self.queue.seat);
        park::park(&seat.topic.files.control, &seat.cursor.header, time, || {
            Ok(self.has_changed() || self.has_offer())
        })
    }

    fn inboxes(&mut self) -> impl Iterator<Item = &mut Inbox> {
        std::iter::once(&mut self.queue).chain(&mut self.retries)
    }

    fn has_changed(&mut self) -> bool {
        self.inboxes().any(|inbox| inbox.has_changed())
    }

    /// Whether there is a message that may be claimed, or damage to tell.
    fn has_offer(&mut self) -> bool {
        let mut sources = self.inboxes().flat_map(|inbox| &mut inbox.sources);
        sources.any(|source| !matches!(source.find(), Ok(None)))
    }
}

impl Waitable for Desk {
    fn is_ready(&mut self) -> Result<bool> {
        self.queue.seat.check_fork()?;
        self.attend()?;
        if self.has_offer() {
            return Ok(true);
        }
        self.inboxes().for_each(Inbox::put_away);
        Ok(false)
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        let seat = &self.queue.seat;
        seat.check_fork()?;
        tickets.push(park::arm(&seat.topic.files.control, &seat.cursor.header));
        // Who puts away what a dead consumer had of those that were put off tells it there.
        let retries = self.retries.iter();
        tickets.extend(retries.map(|inbox| park::bell(&inbox.seat.topic.files.control)));
        if !std::mem::replace(&mut self.is_known, true) && !futex::has_barrier() {
            // Who has not seen us yet sees us then.
            thread::sleep(FIRST_SLEEP);
        }
        Ok(())
    }

    fn disarm(&mut self) {
        let seat = &self.queue.seat;
        if seat.check_fork().is_ok() {
            park::disarm(&seat.cursor.header);
        }
    }

    fn due(&self) -> Option<Instant> {
        let due_ns = self.sources().map(|source| source.due_ns).min();
        let due_ns = due_ns.filter(|&due_ns| due_ns < u64::MAX);
        let due = due_ns.and_then(|due_ns| {
            let left = due_ns.saturating_sub(delivery::due_clock(&self.home.topic));
            Instant::now().checked_add(Duration::from_nanos(left))
        });
        [self.look_at_all, self.leases.next, due]
            .into_iter()
            .flatten()
            .min()
    }
}

impl<T: ?Sized + Payload> Waitable for Consumer<T> {
    fn is_ready(&mut self) -> Result<bool> {
        self.desk.is_ready()
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        self.desk.arm(tickets)
    }

    fn disarm(&mut self) {
        self.desk.disarm();
    }

    fn due(&self) -> Option<Instant> {
        self.desk.due()
    }
}

impl<T: ?Sized + Payload> Receive for Consumer<T> {
    type Item = Delivery<T>;

    fn receive_now(&mut self) -> Result<Option<Delivery<T>>> {
        self.try_recv()
    }
}
