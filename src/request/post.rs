//! A lane of requests, an inbox for the replies to them, and what a client can see of what becomes of them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::client::CallOptions;
use crate::bus::TopicInner;
use crate::envelope::{self, Envelope, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::message::PayloadType;
use crate::pubsub::{Frame, Publisher, Start, Subscriber};
use crate::shm::claims::{Claims, Progress};
use crate::shm::groups::DEFAULT_ID;
use crate::shm::lane::Found;
use crate::shm::layout::{EnvelopeHead, LEFT};
use crate::shm::park::{self, Ticket};
use crate::shm::sync::heavy_fence;
use crate::shm::{futex, roster};
use crate::wait::{Next, Waitable, Waiter, now_ns};

/// Looks at the inbox before anything else is looked at.
pub(super) const CLOSE_LOOKS: u32 = 32;
/// How often a client that does not sleep looks whether its request will be answered at all: the word that says so is one
/// that its server works with.
const LOOKS_BETWEEN_CHECKS: u32 = 256;
/// How long to wait for room before the servers are counted again.
const SLICE: Duration = Duration::from_millis(250);
/// How long to sleep where the kernel can't wait for inbox and servers at once.
const BLIND_SLEEP: Duration = Duration::from_millis(50);

/// Beside the kind that there must be a server for.
const NEEDS: u64 = 1 << 8;

/// One request that was sent. (Whole words: with smaller fields, moving it costs as much as sending.)
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    /// 0: none.
    pub correlation: u64,
    /// See [`EnvelopeHead::deadline_ns`].
    pub deadline_ns: u64,
    /// The low 32 bits of its number in the lane.
    pub sequence: u64,
    /// There must be a server for this kind, and [`NEEDS`] is set; 0: it waits for one.
    needs: u64,
}

impl Ask {
    pub fn sequence(&self) -> u32 {
        self.sequence as u32
    }

    pub fn is_late(&self) -> bool {
        self.time_left() == Some(Duration::ZERO)
    }

    pub fn time_left(&self) -> Option<Duration> {
        envelope::time_left(self.deadline_ns)
    }
}

/// A request that is to be sent.
#[derive(Clone)]
pub(super) struct Draft {
    envelope: Envelope,
    pub ask: Ask,
}

/// A reply that is next in the inbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    found: Found,
    /// Bytes of its envelope.
    envelope: usize,
}

impl Arrived {
    /// In place.
    #[inline(always)]
    pub fn frame(self, inbox: &mut Subscriber) -> Frame<'_> {
        inbox.frame_behind(self.found, self.envelope)
    }

    /// Bytes in its payload.
    pub fn len(&self) -> u64 {
        self.found.word.len() - self.envelope as u64
    }
}

/// What stands behind an envelope, in a request or a reply.
pub(super) trait Body {
    fn len(&self) -> usize;

    /// Sends it, waiting at most so long for room.
    fn send(
        &mut self,
        publisher: &mut Publisher,
        envelope: &Envelope,
        patience: Option<Duration>,
    ) -> Result<()>;
}

/// A copy of these.
pub(super) struct Bytes<'a>(pub &'a [u8]);

/// So many, written in place.
pub(super) struct Filled<F>(pub usize, pub F);

impl Body for Bytes<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.0.len()
    }

    #[inline(always)]
    fn send(
        &mut self,
        publisher: &mut Publisher,
        envelope: &Envelope,
        patience: Option<Duration>,
    ) -> Result<()> {
        publisher.send_within(envelope, self.0, patience)
    }
}

impl<F: FnMut(&mut [u8])> Body for Filled<F> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.0
    }

    #[inline(always)]
    fn send(
        &mut self,
        publisher: &mut Publisher,
        envelope: &Envelope,
        patience: Option<Duration>,
    ) -> Result<()> {
        publisher.send_filled(envelope, self.0, patience, &mut self.1)
    }
}

/// One sender of requests. Dropping it removes its inbox.
#[derive(Debug)]
pub(super) struct Post {
    pub service: Arc<TopicInner>,
    requests: Publisher,
    pub claims: Claims,
    pub inbox: Subscriber,
    /// The inbox's.
    number: u64,
    /// The last one.
    pub correlation: u64,
    /// The requests' type.
    type_id: u64,
    /// The roster with which there was a server, and for which kind.
    served: Option<(u64, u64)>,
    tickets: Vec<Ticket>,
}

impl Post {
    /// Joins `service` to send it requests of the type with this id, and makes an inbox.
    pub fn open(
        service: &Arc<TopicInner>,
        type_id: u64,
        replies: &PayloadType,
        inbox_capacity: usize,
    ) -> Result<Self> {
        let requests = Publisher::join(service)?;
        let files = &service.files;
        let gone = || {
            let why = "the service was removed";
            Error::new(ErrorKind::NotFound, "call", Arc::clone(&files.name), why)
                .advise("open it anew")
        };
        let lane = files.lane_to_follow(requests.lane())?.ok_or_else(gone)?;
        let claims = files.claims(DEFAULT_ID, &lane)?.ok_or_else(gone)?;
        let (number, inbox) = service
            .bus
            .make_inbox(replies, inbox_capacity, service.wait)?;
        let inbox = Subscriber::join(&inbox, Start::Now).inspect_err(|_| {
            let bus = &service.bus;
            bus.leave_to_others(bus.remove_inbox(number));
        })?;
        Ok(Self {
            service: Arc::clone(service),
            requests,
            claims,
            inbox,
            number,
            correlation: 0,
            type_id,
            served: None,
            tickets: Vec::new(),
        })
    }

    fn failed(&self, kind: ErrorKind, why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::new(kind, "call", Arc::clone(&self.service.files.name), why)
    }

    /// Whether it needs a server, and nobody serves its kind.
    #[inline(always)]
    fn lacks_server(&mut self, ask: Ask) -> Result<bool> {
        let now = Some((self.roster_state(), ask.needs));
        if ask.needs == 0 || self.served == now {
            return Ok(false);
        }
        let has_server = self.requests.any_takes(DEFAULT_ID, ask.needs as u8)?;
        self.served = now.filter(|_| has_server);
        Ok(!has_server)
    }

    /// Whether its requests wait on a disk for who is away.
    #[inline(always)]
    fn is_kept(&self) -> bool {
        let is_kept = self.claims.ring.is_checked();
        if is_kept {
            self.lift();
        }
        is_kept
    }

    /// Lets go of data files that have been passed, now and then.
    #[inline(never)]
    fn lift(&self) {
        if self.correlation.is_multiple_of(1024) {
            let head = self.claims.head();
            if head & LEFT == 0 {
                self.claims.ring.lift_before(head);
            }
        }
    }

    /// A request, with a number that is higher than the last one.
    #[inline(always)]
    pub fn draft(&mut self, correlation: u64, options: &CallOptions) -> Draft {
        self.correlation = correlation;
        let deadline_ns = options.timeout.map_or(0, |timeout| {
            let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
            now_ns().saturating_add(timeout_ns).max(1)
        });
        let kind = options.kind.number();
        let flags = if options.once { EnvelopeHead::ONCE } else { 0 };
        let sent_ns = match options.stamped {
            true => envelope::since_1970(SystemTime::now()),
            false => 0,
        };
        Draft {
            envelope: Envelope::bare(EnvelopeHead {
                correlation,
                reply_to: self.number,
                deadline_ns,
                sent_ns,
                type_id: self.type_id,
                ..EnvelopeHead::new(kind, flags)
            }),
            ask: Ask {
                correlation,
                deadline_ns,
                sequence: 0,
                // On a durable bus it waits for who is away.
                needs: match options.waits_for_server || self.is_kept() {
                    true => 0,
                    false => NEEDS | u64::from(kind),
                },
            },
        }
    }

    /// Sends a request, if there is room for it within `patience`: its number in the lane.
    #[inline(always)]
    pub fn send(
        &mut self,
        draft: &Draft,
        body: &mut impl Body,
        patience: Duration,
    ) -> Result<Option<u64>> {
        let ask = draft.ask;
        if self.lacks_server(ask)? {
            return Err(self.no_server());
        }
        let sequence = self.requests.next_sequence().into();
        match body.send(&mut self.requests, &draft.envelope, Some(patience)) {
            Ok(()) => Ok(Some(sequence)),
            Err(e) if !e.is_full() => Err(e),
            Err(_) if ask.is_late() => {
                let why = "its lane is full of requests that are not done with";
                let late = self.failed(ErrorKind::TimedOut, why);
                Err(late.advise("start more servers, or wait longer"))
            }
            Err(_) => Ok(None),
        }
    }

    /// Sends a request, once there is room for it.
    #[inline(always)]
    pub fn ask(&mut self, options: &CallOptions, mut body: impl Body) -> Result<Ask> {
        self.service.bus.check_fork()?;
        let draft = self.draft(self.correlation + 1, options);
        let sequence = match self.send(&draft, &mut body, Duration::ZERO)? {
            Some(sequence) => sequence,
            None => self.send_slowly(&draft.clone(), body)?,
        };
        Ok(Ask {
            sequence,
            ..draft.ask
        })
    }

    #[cold]
    fn send_slowly(&mut self, draft: &Draft, mut body: impl Body) -> Result<u64> {
        loop {
            let patience = draft.ask.time_left().unwrap_or(SLICE).min(SLICE);
            if let Some(sequence) = self.send(draft, &mut body, patience)? {
                return Ok(sequence);
            }
        }
    }

    /// The reply to `ask`, if it is next in the inbox; the replies before it go to `others`.
    #[inline(always)]
    pub fn find(
        &mut self,
        ask: Ask,
        mut others: impl FnMut(u64, &Frame<'_>),
    ) -> Result<Option<Arrived>> {
        while let Some(found) = self.inbox.find()? {
            match self.answered_by(found) {
                Some((correlation, arrived)) if correlation == ask.correlation => {
                    return Ok(Some(arrived));
                }
                Some((correlation, arrived)) => {
                    others(correlation, &arrived.frame(&mut self.inbox))
                }
                // What is no reply is for nobody.
                None => drop(self.inbox.frame(found)?),
            }
        }
        Ok(None)
    }

    /// Which request it answers. `None`: it is no reply.
    #[inline(always)]
    fn answered_by(&self, found: Found) -> Option<(u64, Arrived)> {
        let (head, envelope) = self.inbox.envelope_of(found)?;
        let arrived = Arrived { found, envelope };
        // No request has the number 0.
        let is_reply = head.kind() == Kind::Reply.number() && head.correlation != 0;
        is_reply.then_some((head.correlation, arrived))
    }

    /// The beginning of its envelope.
    pub fn head(&self, arrived: Arrived) -> EnvelopeHead {
        let envelope = self.inbox.envelope_of(arrived.found);
        envelope.map_or_else(EnvelopeHead::default, |(head, _)| *head)
    }

    /// Takes what is next in the inbox: replies go to `others`.
    pub fn take_all(&mut self, others: impl FnMut(u64, &Frame<'_>)) -> Result<()> {
        // No request has this number.
        let nobody = Ask {
            correlation: 0,
            deadline_ns: 0,
            sequence: 0,
            needs: 0,
        };
        self.find(nobody, others).map(drop)
    }

    /// The reply to `ask`, waited for as long as that may take; `None` if that is longer than `patience`.
    #[inline(always)]
    pub fn wait(&mut self, ask: Ask, patience: Option<Duration>) -> Result<Option<Arrived>> {
        self.service.bus.check_fork()?;
        let mut waiter = None;
        let mut checks = Checks::default();
        loop {
            if let Some(found) = self.inbox.look_closely(CLOSE_LOOKS)
                && let Some((correlation, arrived)) = self.answered_by(found)
                && correlation == ask.correlation
            {
                return Ok(Some(arrived));
            }
            if let Some(reply) = self.find(ask, |_, _| {})? {
                return Ok(Some(reply));
            }
            if checks.are_due(self)
                && let Some(reply) = self.poll(ask)?
            {
                return Ok(Some(reply));
            }
            let waiter = waiter.get_or_insert_with(|| {
                let patience = patience.into_iter().chain(ask.time_left()).min();
                Waiter::new(self.service.wait, patience)
            });
            match waiter.next(1) {
                Next::Look => {}
                Next::Sleep(time) => {
                    self.sleep(ask, time)?;
                    checks.force();
                }
                Next::TimedOut => return self.poll(ask),
            }
        }
    }

    fn sleep(&mut self, ask: Ask, time: Duration) -> Result<()> {
        let mut tickets = std::mem::take(&mut self.tickets);
        tickets.clear();
        let mut awaited = Awaited { post: self, ask };
        awaited.arm(&mut tickets)?;
        heavy_fence();
        let ready = awaited.is_ready();
        if let Ok(false) = ready {
            sleep(&tickets, time);
        }
        awaited.disarm();
        self.tickets = tickets;
        ready.map(drop)
    }

    /// The reply to `ask`, if it is there; an error, if it won't come. After one, [`cancel`](Self::cancel) is to follow.
    pub fn poll(&mut self, ask: Ask) -> Result<Option<Arrived>> {
        if let Some(reply) = self.find(ask, |_, _| {})? {
            return Ok(Some(reply));
        }
        let progress = self.progress(ask.sequence());
        if let Some(error) = self.trouble(ask, progress)? {
            // It may have come before that.
            return self.find(ask, |_, _| {})?.ok_or(error).map(Some);
        }
        if ask.is_late() {
            return Err(self.timed_out());
        }
        Ok(None)
    }

    /// Has servers ring from now on.
    pub fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        tickets.push(park::roster(&self.service.files.control));
        self.inbox.arm(tickets)
    }

    #[inline]
    pub fn roster_state(&self) -> u64 {
        roster::state(&self.service.files.control)
    }

    /// How many requests have ended without the reply that was to come here.
    #[inline]
    pub fn endings(&self) -> u64 {
        roster::endings(&self.inbox.topic().files.control)
    }

    /// Whether so many were sent that the claims of those before must be looked at: each is at least once, from when it has
    /// ended until another takes its place.
    #[inline]
    pub fn is_half_way(&self, sequence: u64) -> bool {
        sequence.is_multiple_of(self.claims.table.len() as u64 / 2)
    }

    /// What became of a request so far.
    pub fn progress(&self, sequence: u32) -> Progress {
        self.claims.progress(sequence)
    }

    /// Whether there is [`trouble`](Self::trouble).
    fn is_in_trouble(&mut self, ask: Ask) -> Result<bool> {
        Ok(match self.progress(ask.sequence()) {
            Progress::Waits { .. } => self.lacks_server(ask)?,
            progress => progress.is_end(),
        })
    }

    /// Why no reply will come, to a request of which this became. One that has come before that was seen is in the inbox.
    pub fn trouble(&mut self, ask: Ask, progress: Progress) -> Result<Option<Error>> {
        Ok(match progress {
            Progress::Goes => None,
            Progress::Waits { .. } if !self.lacks_server(ask)? => None,
            Progress::Waits { .. } => {
                let withdrawn = self.claims.withdraw(ask.sequence());
                self.claims.tell_blocked(&self.service.files.control);
                withdrawn.map(|attempts| match attempts {
                    0 => self.no_server(),
                    _ => self.server_died("the server that had it died, and there is no other"),
                })
            }
            Progress::Died => Some(self.server_died("the server that had it died")),
            Progress::Unanswered => {
                let why = "there was no room for the reply in this client's inbox";
                let full = self.failed(ErrorKind::Full, why);
                Some(full.advise("take replies sooner, or open the client with a larger inbox"))
            }
        })
    }

    #[cold]
    fn no_server(&self) -> Error {
        self.failed(ErrorKind::NoServer, "no server is there that takes it")
            .advise("start one, or wait for one (CallOptions::wait_for_server)")
    }

    #[cold]
    fn server_died(&self, why: &'static str) -> Error {
        self.failed(ErrorKind::ServerDied, why)
            .advise("look whether it was done, before you ask again")
    }

    #[cold]
    pub fn timed_out(&self) -> Error {
        self.failed(ErrorKind::TimedOut, "no reply came in time")
            .advise("look at the service with `buslane inspect`, or wait longer")
    }

    /// Nobody waits for the reply any more: nobody gets the request, or who has it may see it.
    pub fn cancel(&self, ask: Ask) {
        if self.service.bus.check_fork().is_ok() {
            self.claims
                .cancel(ask.sequence(), &self.service.files.control);
        }
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        let bus = &self.service.bus;
        bus.leave_to_others(bus.remove_inbox(self.number));
    }
}

/// A reply that is waited for.
pub(super) struct Awaited<'a> {
    pub post: &'a mut Post,
    pub ask: Ask,
}

impl Waitable for Awaited<'_> {
    fn is_ready(&mut self) -> Result<bool> {
        let Self { post, ask } = self;
        Ok(post.inbox.has_news()? || post.is_in_trouble(*ask)? || ask.is_late())
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        self.post.arm(tickets)
    }

    fn disarm(&mut self) {
        self.post.inbox.disarm();
    }

    fn due(&self) -> Option<Instant> {
        Instant::now().checked_add(self.ask.time_left()?)
    }
}

/// When to look whether a request will be answered at all.
#[derive(Default)]
pub(super) struct Checks {
    looks: u32,
    seen: Option<u64>,
}

impl Checks {
    /// Has the next look be followed by one.
    pub fn force(&mut self) {
        self.looks = LOOKS_BETWEEN_CHECKS - 1;
    }

    pub fn are_due(&mut self, post: &Post) -> bool {
        self.looks += 1;
        let now = Some(post.roster_state());
        let changed = std::mem::replace(&mut self.seen, now) != now;
        // Not at the first look: what was sent just now may be answered before anything is amiss.
        (changed || self.looks.is_multiple_of(LOOKS_BETWEEN_CHECKS)) && self.looks > 1
    }
}

/// Sleeps while nothing has rung, at most `time`.
pub(super) fn sleep(tickets: &[Ticket], time: Duration) {
    if futex::has_wait_any() {
        park::sleep_any(tickets, Some(time));
    } else if let Some(ticket) = tickets.last() {
        ticket.sleep(time.min(BLIND_SLEEP));
    }
}
