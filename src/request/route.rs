//! A server's way to one client's inbox.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::post::Body;
use super::{Refusal, Undelivered};
use crate::bus::{Bus, TopicInner};
use crate::envelope::{Envelope, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::message::PayloadType;
use crate::pubsub::Publisher;
use crate::queue::Share;
use crate::shm::layout::EnvelopeHead;
use crate::shm::roster;
use crate::wait::WaitStrategy;

/// The way from a lane of requests to one inbox. That is opened when the first reply goes there.
#[derive(Debug)]
pub(super) struct Route {
    /// What the server has of the lane.
    pub share: Arc<Share>,
    /// 0: nobody waits for replies.
    inbox: u64,
    bus: Bus,
    wait: WaitStrategy,
    /// What this server replies.
    replies: PayloadType,
    /// How long to wait for room, once.
    patience: Duration,
    door: Mutex<Door>,
}

#[derive(Debug)]
enum Door {
    Closed,
    Open(Box<Lane>),
    /// The client has left.
    Gone,
}

impl Door {
    /// Notes if the client has left.
    #[inline(always)]
    fn look(&mut self) {
        if let Self::Open(lane) = self
            && lane.is_gone()
        {
            *self = Self::Gone;
        }
    }
}

/// A lane in the inbox.
#[derive(Debug)]
pub(super) struct Lane {
    inbox: u64,
    publisher: Publisher,
    /// Why the client can't read what this server replies.
    mismatch: Option<String>,
    /// The last reply found no room in time: the next ones are not waited for.
    is_stuck: bool,
    /// The inbox's roster when its client was last seen there.
    seen_roster: Option<u64>,
}

impl Route {
    /// `None`: there is no such inbox.
    pub fn new(
        topic: &TopicInner,
        share: &Arc<Share>,
        inbox: u64,
        replies: PayloadType,
        patience: Duration,
    ) -> Option<Self> {
        let is_there = inbox == 0 || topic.bus.has_inbox(inbox);
        is_there.then(|| Self {
            share: Arc::clone(share),
            inbox,
            bus: topic.bus.clone(),
            wait: topic.wait,
            replies,
            patience,
            door: Mutex::new(Door::Closed),
        })
    }

    #[inline(always)]
    pub fn has_inbox(&self) -> bool {
        self.inbox != 0
    }

    /// Whether it is this one.
    #[inline(always)]
    pub fn is_for(&self, share: &Arc<Share>, inbox: u64) -> bool {
        Arc::ptr_eq(&self.share, share) && self.inbox == inbox
    }

    #[inline]
    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client is known to have left. Not while another thread is replying to it, which sees for itself.
    pub fn is_gone(&self) -> bool {
        self.door.try_lock().is_ok_and(|mut door| {
            door.look();
            matches!(*door, Door::Gone)
        })
    }

    /// Whether nothing goes there now.
    pub fn is_closed(&self) -> bool {
        self.door
            .try_lock()
            .is_ok_and(|door| matches!(*door, Door::Closed))
    }

    /// Sends a reply that is wanted for so long.
    #[inline(always)]
    pub fn send(&self, envelope: &Envelope, body: impl Body, time_left: Duration) -> Result<()> {
        let mut door = self.door();
        let lane = self.open(&mut door)?;
        lane.send(envelope, body, self.patience.min(time_left))
    }

    /// A lane for a stream of replies alone: that of single ones, if it is free.
    pub fn take(&self) -> Result<Box<Lane>> {
        let mut door = self.door();
        self.open(&mut door)?;
        match std::mem::replace(&mut *door, Door::Closed) {
            Door::Open(lane) => Ok(lane),
            _ => Err(self.gone()),
        }
    }

    /// Tells the client why it does not get the reply with this head, if there is room.
    pub fn tell(&self, reply: EnvelopeHead, what: Undelivered, why: &str) -> Result<()> {
        let mut door = self.door();
        self.open(&mut door)?.tell(reply, what, why)
    }

    /// Gives it back.
    pub fn give_back(&self, lane: Box<Lane>) {
        let mut door = self.door();
        if let Door::Closed = *door {
            *door = Door::Open(lane);
        }
    }

    /// Tells the client that one of its requests has ended without a reply.
    pub fn tell_end(&self) {
        match &*self.door() {
            Door::Open(lane) => lane.publisher.tell_end(),
            // All clients of the service, as there is no way to this one alone.
            Door::Closed if self.has_inbox() => roster::changed(self.share.control()),
            _ => {}
        }
    }

    #[inline(always)]
    fn open<'a>(&self, door: &'a mut Door) -> Result<&'a mut Lane> {
        if let Door::Closed = door {
            *door = self.open_closed()?;
        }
        door.look();
        match door {
            Door::Open(lane) => Ok(lane),
            _ => Err(self.gone()),
        }
    }

    #[cold]
    fn open_closed(&self) -> Result<Door> {
        let lane = match self.bus.open_inbox(self.inbox, self.wait)? {
            Some(topic) => Lane::open(self.inbox, &topic, &self.replies).map(Some),
            None => Ok(None),
        };
        match lane {
            Ok(Some(lane)) => Ok(Door::Open(Box::new(lane))),
            Ok(None) => Ok(Door::Gone),
            // Removed in the midst.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Door::Gone),
            Err(e) => Err(e),
        }
    }

    #[cold]
    fn gone(&self) -> Error {
        cancelled(self.inbox, "the client that asked has gone")
    }
}

/// The reply is not wanted any more.
#[cold]
pub(super) fn cancelled(inbox: u64, why: &'static str) -> Error {
    let on = format!("a request of the inbox {inbox:016x}");
    Error::new(ErrorKind::Cancelled, "reply to", on, why).advise("go on with the next request")
}

impl Lane {
    fn open(inbox: u64, topic: &Arc<TopicInner>, replies: &PayloadType) -> Result<Self> {
        let theirs = PayloadType::from_config(&topic.files.config);
        let mismatch = (!replies.admits(&theirs))
            .then(|| format!("the server replies {replies}, and the client means {theirs}"));
        Ok(Self {
            inbox,
            publisher: Publisher::join(topic)?,
            mismatch,
            is_stuck: false,
            seen_roster: None,
        })
    }

    /// Whether nobody reads it.
    #[inline(always)]
    pub fn is_gone(&mut self) -> bool {
        let now = Some(self.publisher.roster_state());
        if self.seen_roster == now {
            return false;
        }
        match self.publisher.subscriber_count() {
            Ok(0) => true,
            Ok(_) => {
                self.seen_roster = now;
                false
            }
            // Removed. What can't be looked at otherwise is told by who sends.
            Err(e) => e.kind() == ErrorKind::NotFound,
        }
    }

    /// Sends a reply, waiting at most so long for room, once: until one finds room again, the next ones are not waited for. If
    /// the client can't have it, it is told why.
    #[inline(always)]
    pub fn send(&mut self, envelope: &Envelope, body: impl Body, patience: Duration) -> Result<()> {
        let patience = match self.is_stuck {
            true => Duration::ZERO,
            false => patience,
        };
        let sent = self.send_within(envelope, body, patience);
        self.is_stuck = sent.as_ref().is_err_and(Error::is_full);
        sent
    }

    /// The same, waiting each time.
    #[inline(always)]
    pub fn send_within(
        &mut self,
        envelope: &Envelope,
        mut body: impl Body,
        patience: Duration,
    ) -> Result<()> {
        if self.mismatch.is_some() && !envelope.head().has(EnvelopeHead::REFUSED) {
            return Err(self.tell_mismatch(*envelope.head()));
        }
        match body.send(&mut self.publisher, envelope, Some(patience)) {
            Ok(()) => Ok(()),
            Err(e) => Err(self.failed(e, *envelope.head(), body.len())),
        }
    }

    #[cold]
    fn tell_mismatch(&mut self, reply: EnvelopeHead) -> Error {
        let why = self.mismatch.clone().unwrap_or_default();
        if let Err(e) = self.tell(reply, Undelivered::Mismatch, &why) {
            return e;
        }
        let on = self.publisher.topic_name().to_owned();
        Error::new(ErrorKind::Mismatch, "reply to", on, why)
            .advise("let client and server use the same types")
    }

    /// What became of a reply that could not be sent.
    #[cold]
    fn failed(&mut self, failed: Error, reply: EnvelopeHead, len: usize) -> Error {
        match failed.kind() {
            ErrorKind::TooLong => {
                let max_len = self.publisher.max_len();
                let why = format!("the reply has {len} bytes, and the inbox takes {max_len}");
                if let Err(e) = self.tell(reply, Undelivered::TooLong, &why) {
                    return e;
                }
            }
            // Removed in the midst.
            ErrorKind::NotFound => {
                return cancelled(self.inbox, "the client that asked has gone");
            }
            _ => {}
        }
        failed
    }

    /// Waits for room for a reply, at most so long.
    pub async fn wait_for_room(
        &mut self,
        envelope: &Envelope,
        len: usize,
        patience: Duration,
    ) -> Result<()> {
        let waited = self.publisher.wait_for_room(envelope, len, patience).await;
        waited.map_err(|e| self.failed(e, *envelope.head(), len))
    }

    /// Tells the client why it does not get the reply with this head, if there is room.
    pub fn tell(&mut self, reply: EnvelopeHead, what: Undelivered, why: &str) -> Result<()> {
        let envelope = Envelope::bare(EnvelopeHead {
            correlation: reply.correlation,
            part: reply.part,
            ..EnvelopeHead::new(Kind::Reply.number(), EnvelopeHead::UNDELIVERED)
        });
        let payload = Refusal::to_bytes(what as u32, why);
        self.publisher
            .send_within(&envelope, &payload, Some(Duration::ZERO))
    }
}
