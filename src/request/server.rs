//! Servers: a consumer of requests, and a way to each inbox that it has answered.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::post::{Body, Bytes, Filled};
use super::route::{self, Lane, Route};
use super::{Refusal, Undelivered};
use crate::bus::TopicInner;
use crate::envelope::{self, Envelope, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::futures::{MessageStream, Receive};
use crate::message::{Payload, PayloadType};
use crate::queue::{Consumer, ConsumerBuilder, Item, Producer, Share, Taken};
use crate::shm::layout::{Claim, EnvelopeHead, Fate};
use crate::shm::park::Ticket;
use crate::shm::roster;
use crate::wait::Waitable;

/// How many ways are kept without a look at whether they still lead anywhere; then twice as many as there were.
const ENOUGH: usize = 64;
/// How long a server that may wait long for room does so before it looks whether that still makes sense.
const TURN: Duration = Duration::from_millis(100);
/// How long a server waits for room in an inbox, once: after that, replies there are not waited for until one has found room.
const PATIENCE: Duration = Duration::from_millis(100);

/// Joins a service as a server, otherwise than by default. Made by
/// [`Service::server_builder`](super::Service::server_builder).
///
/// ```
/// use buslane::{CallOptions, ErrorKind, Kind};
///
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let service = buslane::Bus::at(dir.path().join("bus"))?.service("s")?;
/// let mut server = service.server_builder().kinds(&[Kind::Document]).open()?;
/// let client = service.client()?;
/// assert_eq!(client.start(b"a command").unwrap_err().kind(), ErrorKind::NoServer);
/// let document = client.start_with(&CallOptions::new().kind(Kind::Document), b"data")?;
/// server.recv()?.reply(b"read")?;
/// assert_eq!(document.wait()??, b"read");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct ServerBuilder<Q: ?Sized = [u8], R: ?Sized = [u8]> {
    service: Arc<TopicInner>,
    consumer: ConsumerBuilder<Q>,
    patience: Duration,
    kind: PhantomData<fn(&R)>,
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> ServerBuilder<Q, R> {
    pub(super) fn new(service: &Arc<TopicInner>) -> Self {
        Self {
            service: Arc::clone(service),
            consumer: ConsumerBuilder::new(service),
            patience: PATIENCE,
            kind: PhantomData,
        }
    }

    /// The kinds of messages that it takes; the others are left to other servers. By default, and if none is given, all, and
    /// those without an envelope.
    pub fn kinds(mut self, kinds: &[Kind]) -> Self {
        let bits = kinds.iter().map(|kind| 1 << (kind.number() % 64));
        self.consumer = self.consumer.kinds(bits.fold(0, |all, bit| all | bit));
        self
    }

    /// How long to wait for room in the inbox of a client that does not read, once: until a reply finds room there again,
    /// the next ones are not waited for. By default 100 ms.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Joins.
    ///
    /// # Errors
    ///
    /// As for [`Queue::consumer`](crate::Queue::consumer).
    pub fn open(self) -> Result<Server<Q, R>> {
        let consumer = self.consumer.open()?;
        let routes = Routes {
            all: HashMap::new(),
            last: None,
            seen_roster: roster::state(&self.service.files.control),
            enough: ENOUGH,
            service: self.service,
            replies: R::describe(),
            patience: self.patience,
        };
        Ok(Server {
            consumer,
            routes,
            kind: PhantomData,
        })
    }
}

/// Gets requests of a service, and replies to them. See [`Service`](super::Service).
///
/// A request whose deadline has passed is not given to it, nor one whose client is known to have left.
#[must_use]
pub struct Server<Q: ?Sized = [u8], R: ?Sized = [u8]> {
    consumer: Consumer<Q>,
    routes: Routes,
    kind: PhantomData<fn(&R)>,
}

/// The ways that requests come, and replies go.
struct Routes {
    /// By the number of the lane, and that of the inbox.
    all: HashMap<(u64, u64), Arc<Route>>,
    /// That of the last request.
    last: Option<Arc<Route>>,
    /// The roster of clients when they were last thinned out.
    seen_roster: u64,
    /// When there are so many they are thinned out in any case.
    enough: usize,
    service: Arc<TopicInner>,
    /// What is replied.
    replies: PayloadType,
    patience: Duration,
}

impl<Q: ?Sized, R: ?Sized> fmt::Debug for Server<Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("service", &self.routes.service.files.name)
            .field("clients", &self.routes.all.len())
            .finish_non_exhaustive()
    }
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> Server<Q, R> {
    /// The service's name.
    #[must_use]
    pub fn service_name(&self) -> &str {
        &self.routes.service.files.name
    }

    /// The next request. Waits for it as the wait strategy says.
    ///
    /// # Errors
    ///
    /// As for [`Consumer::recv`].
    #[inline(always)]
    pub fn recv(&mut self) -> Result<Request<Q, R>> {
        loop {
            if let Some(request) = self.within(None)? {
                return Ok(request);
            }
        }
    }

    /// The next request, if it is there.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    #[inline(always)]
    pub fn try_recv(&mut self) -> Result<Option<Request<Q, R>>> {
        self.within(Some(Duration::ZERO))
    }

    /// The next request; `None` if there is none for `timeout` (longer, if requests come that are late already).
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<Request<Q, R>>> {
        self.within(Some(timeout))
    }

    /// The next request, as a future: the task sleeps until there is one. It may be dropped at any time.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv); `Unsupported` if it must wait before Linux 5.16.
    pub async fn recv_async(&mut self) -> Result<Request<Q, R>> {
        loop {
            if let Some(request) = self.try_recv()? {
                return Ok(request);
            }
            self.consumer.wait_for_offer().await?;
        }
    }

    /// A stream of requests. It does not end.
    pub fn stream(&mut self) -> MessageStream<&mut Self> {
        MessageStream::new(self)
    }

    /// The same, as the server's owner.
    pub fn into_stream(self) -> MessageStream<Self> {
        MessageStream::new(self)
    }

    /// The next one that is worth anything yet.
    #[inline(always)]
    fn within(&mut self, patience: Option<Duration>) -> Result<Option<Request<Q, R>>> {
        let Self {
            consumer, routes, ..
        } = self;
        loop {
            let judge = |share: &Arc<Share>, item: Item| (routes.admit(share, &item), item);
            let (admitted, mut item) = match consumer.take(patience, judge)? {
                Some(Taken::Common(judged)) => judged,
                Some(Taken::Rare(rare)) => (routes.admit(&rare.0, &rare.1), rare.1),
                None => return Ok(None),
            };
            if let Some((route, claim)) = admitted? {
                item.claim = claim;
                return Ok(Some(Request {
                    route,
                    item,
                    kind: PhantomData,
                }));
            }
        }
    }
}

impl Routes {
    /// Its way, and the claim on it from now on, if what was received is still worth anything.
    #[inline(always)]
    fn admit(&mut self, share: &Arc<Share>, item: &Item) -> Result<Option<(Arc<Route>, Claim)>> {
        if self.seen_roster != roster::state(&self.service.files.control) {
            self.thin_out();
        }
        let head = share.head(item);
        let is_late = envelope::time_left(head.deadline_ns) == Some(Duration::ZERO);
        let is_once = head.has(EnvelopeHead::ONCE);
        let route = match &self.last {
            Some(last) if last.is_for(share, head.reply_to) => Some(Arc::clone(last)),
            _ => self.find(share, head.reply_to),
        };
        let Some(route) = route.filter(|_| !is_late) else {
            return discard(share, item.claim);
        };
        match is_once {
            false => Ok(Some((route, item.claim))),
            true => match share.begin_once(item.claim) {
                Some(claim) => Ok(Some((route, claim))),
                None => discard(share, item.claim),
            },
        }
    }

    /// The way from a lane to an inbox. `None`: that is gone.
    #[cold]
    fn find(&mut self, share: &Arc<Share>, inbox: u64) -> Option<Arc<Route>> {
        let key = (share.lane, inbox);
        let known = self
            .all
            .get(&key)
            .filter(|known| known.is_for(share, inbox));
        let route = match known {
            Some(known) => Arc::clone(known),
            None => {
                let replies = self.replies.clone();
                let route = Route::new(&self.service, share, inbox, replies, self.patience)?;
                if self.all.len() >= self.enough {
                    // Of those that others have passed on, the roster does not tell when they leave.
                    self.thin_out();
                }
                let route = Arc::new(route);
                self.all.insert(key, Arc::clone(&route));
                route
            }
        };
        self.last = Some(Arc::clone(&route));
        Some(route)
    }

    /// Forgets the clients that have left, and those that were never answered.
    #[cold]
    fn thin_out(&mut self) {
        self.seen_roster = roster::state(&self.service.files.control);
        self.last = None;
        self.all.retain(|_, route| {
            let is_idle = route.is_closed() && Arc::strong_count(route) == 1;
            !is_idle && !route.is_gone()
        });
        self.enough = 2 * self.all.len() + ENOUGH;
    }
}

impl<Q: ?Sized + Payload, R: ?Sized> Waitable for Server<Q, R> {
    fn is_ready(&mut self) -> Result<bool> {
        self.consumer.is_ready()
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        self.consumer.arm(tickets)
    }

    fn disarm(&mut self) {
        self.consumer.disarm();
    }

    fn due(&self) -> Option<std::time::Instant> {
        self.consumer.due()
    }
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> Receive for Server<Q, R> {
    type Item = Request<Q, R>;

    fn receive_now(&mut self) -> Result<Option<Request<Q, R>>> {
        self.try_recv()
    }
}

/// Ends what is worth nothing any more.
#[cold]
fn discard<T>(share: &Share, claim: Claim) -> Result<Option<T>> {
    match share.ack(claim) {
        // It may have been taken away meanwhile.
        Err(e) if e.kind() != ErrorKind::LeaseLost => Err(e),
        _ => Ok(None),
    }
}

/// The beginning of the envelope of an `R` that replies to a request with this one.
#[inline(always)]
fn reply_to<R: ?Sized + Payload>(head: &EnvelopeHead, flags: u8, part: u64) -> EnvelopeHead {
    EnvelopeHead {
        correlation: head.correlation,
        sent_ns: match head.sent_ns {
            0 => 0,
            _ => envelope::since_1970(SystemTime::now()),
        },
        type_id: R::TYPE_ID,
        part,
        ..EnvelopeHead::new(Kind::Reply.number(), flags)
    }
}

/// A request that this server has. It derefs to the payload, where it lies. Several may be held at a time, moved to other
/// threads, and answered in any order.
///
/// It is acknowledged after the reply was sent. Dropped unanswered, it goes to any server of the service, this one included;
/// one that is to be done at most once is ended, and its client told.
#[must_use = "a request that is dropped is given back"]
pub struct Request<Q: ?Sized + Payload = [u8], R: ?Sized + Payload = [u8]> {
    route: Arc<Route>,
    item: Item,
    kind: PhantomData<fn(&R) -> Box<Q>>,
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> fmt::Debug for Request<Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("service", &self.route.share.queue_name())
            .field("kind", &self.message_kind())
            .field("attempts", &self.attempts())
            .finish_non_exhaustive()
    }
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> Deref for Request<Q, R> {
    type Target = Q;
    #[inline]
    fn deref(&self) -> &Q {
        Q::in_frame(self.route.share.payload(&self.item))
    }
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> Request<Q, R> {
    #[inline(always)]
    fn head(&self) -> &EnvelopeHead {
        self.route.share.head(&self.item)
    }

    /// What kind of message it is; `None`: it has no envelope.
    #[must_use]
    pub fn message_kind(&self) -> Option<Kind> {
        let kind = self.head().kind();
        (kind != 0).then(|| Kind::from_number(kind))
    }

    /// All that goes with it, if it has an envelope.
    #[must_use]
    pub fn envelope(&self) -> Option<Envelope> {
        self.route.share.envelope(&self.item)
    }

    /// Whether somebody waits for a reply. If not, replying only says that it is done.
    #[must_use]
    pub fn wants_reply(&self) -> bool {
        self.route.has_inbox()
    }

    /// How often a server has got it, this time included.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.item.attempts()
    }

    /// How long the reply is worth anything yet; `None`: as long as it takes.
    #[must_use]
    #[inline]
    pub fn time_left(&self) -> Option<Duration> {
        envelope::time_left(self.head().deadline_ns)
    }

    /// Whether the reply is not wanted any more: its client has cancelled the request or has left, or the time has passed. A
    /// load or two.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.while_wanted().is_err() || self.route.is_gone()
    }

    /// Replies with a copy of `reply`.
    ///
    /// # Errors
    ///
    /// `Cancelled` if it is not wanted any more. `TooLong` if it is longer than the client's inbox takes, `Mismatch` if the
    /// client means another type: the client is told. `Full` if there was no room in the inbox in time: the client is told
    /// when it looks. After these, the request is done with. `LeaseLost` if it was taken away. `NoSpace` and the like if the
    /// lane in the inbox can't be made: the request is given back. `Forked`, and the system's.
    #[inline(always)]
    pub fn reply(self, reply: &R) -> Result<()> {
        self.answer(0, Bytes(reply.bytes()))
    }

    /// Refuses: an answer of the service's own, with a code for programs and a text for people.
    ///
    /// # Errors
    ///
    /// As for [`reply`](Self::reply).
    pub fn refuse(self, code: u32, message: &str) -> Result<()> {
        let payload = Refusal::to_bytes(code, message);
        self.answer(EnvelopeHead::REFUSED, Bytes(&payload))
    }

    #[inline(always)]
    fn answer(mut self, flags: u8, body: impl Body) -> Result<()> {
        let (head, time_left) = self.check_wanted()?;
        if self.route.has_inbox() {
            let reply = Envelope::bare(reply_to::<R>(&head, flags, 0));
            let sent = match head.hops() {
                0 => self.route.send(&reply, body, time_left),
                _ => self.send_traced(flags, body, time_left),
            };
            sent.map_err(|e| self.conclude(e))?;
        }
        self.ack()
    }

    /// Ends it as it must be if a reply could not be sent.
    #[cold]
    fn conclude(&mut self, failed: Error) -> Error {
        // That it was taken away beside is no news to who has failed already.
        let _ = match failed.kind() {
            _ if failed.is_full() => self.end_as(Fate::Unanswered),
            ErrorKind::TooLong | ErrorKind::Mismatch | ErrorKind::Cancelled => self.ack(),
            // To be given back, or ended, as it is dropped.
            _ => Ok(()),
        };
        failed
    }

    #[inline(always)]
    fn ack(&mut self) -> Result<()> {
        let acked = self.route.share.ack(self.item.claim);
        self.item.set_done();
        acked
    }

    /// Ends it without a reply: the client sees why when it looks.
    fn end_as(&mut self, fate: Fate) -> Result<()> {
        let ended = self.route.share.end(self.item.claim, fate);
        self.item.set_done();
        self.route.tell_end();
        ended
    }

    /// Whether it is still to be finished here.
    fn is_ours(&self) -> bool {
        !self.item.is_done() && self.route.share.is_wanted(self.item.claim).is_ok()
    }

    /// Ends one that nobody else may get, and tells its client.
    #[cold]
    fn give_up(&mut self) {
        let why = "the server that had it gave it up";
        let reply = reply_to::<R>(self.head(), 0, 0);
        let told =
            self.route.has_inbox() && self.route.tell(reply, Undelivered::GivenUp, why).is_ok();
        // What can't be told here is when the client looks.
        let _ = match told {
            true => self.ack(),
            false => self.end_as(Fate::Died),
        };
    }

    /// Before a reply: an error, and it is done with, if that is not wanted.
    #[inline(always)]
    fn check_wanted(&mut self) -> Result<(EnvelopeHead, Duration)> {
        let wanted = self.while_wanted();
        if wanted.is_err() {
            // Says so if it was taken away instead.
            self.ack()?;
        }
        wanted
    }

    /// The beginning of its envelope, and how long a reply is wanted yet; an error, if it is not.
    #[inline(always)]
    fn while_wanted(&self) -> Result<(EnvelopeHead, Duration)> {
        let is_wanted = self.route.share.is_wanted(self.item.claim)?;
        let head = *self.head();
        match envelope::time_left(head.deadline_ns) {
            Some(Duration::ZERO) => {}
            time_left if is_wanted => return Ok((head, time_left.unwrap_or(Duration::MAX))),
            _ => {}
        }
        let why = "the client has cancelled it, or its deadline has passed";
        Err(route::cancelled(head.reply_to, why))
    }

    /// The envelope of a reply, with the way that the request has come.
    fn envelope_of(&self, flags: u8, part: u64) -> Envelope {
        let envelope = Envelope::bare(reply_to::<R>(self.head(), flags, part));
        if self.head().hops() == 0 {
            return envelope;
        }
        match self.envelope() {
            Some(ours) => ours.trace().fold(envelope, Envelope::passed_on_by),
            None => envelope,
        }
    }

    #[cold]
    fn send_traced(&self, flags: u8, body: impl Body, time_left: Duration) -> Result<()> {
        let reply = self.envelope_of(flags, 0);
        self.route.send(&reply, body, time_left)
    }

    /// Replies with any number of replies, one after the other.
    ///
    /// # Errors
    ///
    /// As for [`reply`](Self::reply).
    pub fn stream(mut self) -> Result<ReplySink<Q, R>> {
        self.check_wanted()?;
        let lane = self.route.has_inbox().then(|| self.route.take());
        let lane = lane.transpose().map_err(|e| self.conclude(e))?;
        Ok(ReplySink {
            request: self,
            lane,
            part: 0,
        })
    }

    /// Passes it on to another service, with another message, which answers this one's client; and is done with it. How long
    /// that waits, and for which of its requests, goes along, and so does the way that it has come
    /// ([`Envelope::trace`]).
    ///
    /// The client learns of the death of the servers of its own service alone: set a deadline.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `LeaseLost`, and as for [`Producer::push`]: then it is given back, or ended, as when it is dropped.
    pub fn forward<P: ?Sized + Payload>(mut self, to: &mut Producer<P>, message: &P) -> Result<()> {
        let (_, mut time_left) = self.check_wanted()?;
        let ours = self
            .envelope()
            .unwrap_or_else(|| Envelope::new(Kind::Command));
        let envelope = ours
            .of_type_id(P::TYPE_ID)
            .passed_on_by(self.route.share.queue_name());
        loop {
            match to.push_within(&envelope, message, Some(time_left.min(TURN))) {
                Ok(()) => return self.ack(),
                Err(e) if e.is_full() => {}
                Err(e) => return Err(e),
            }
            (_, time_left) = self.check_wanted()?;
        }
    }
}

impl<Q: ?Sized + Payload> Request<Q, [u8]> {
    /// Replies with `len` bytes that `fill` writes in place. Other replies to the same client wait for it meanwhile: it must
    /// not make one itself.
    ///
    /// # Errors
    ///
    /// As for [`reply`](Self::reply).
    pub fn reply_filled(self, len: usize, fill: impl FnMut(&mut [u8])) -> Result<()> {
        self.answer(0, Filled(len, fill))
    }
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> Drop for Request<Q, R> {
    fn drop(&mut self) {
        if self.is_ours() && self.head().has(EnvelopeHead::ONCE) {
            self.give_up();
        }
        self.route.share.give_back(self.item.claim);
    }
}

/// Several replies to one request, one after the other. While the client's inbox has no room, sending waits, until the
/// request's deadline. Dropped before [`finish`](Self::finish), it tells the client that there was an end in the midst.
#[must_use = "the client waits for the end"]
pub struct ReplySink<Q: ?Sized + Payload = [u8], R: ?Sized + Payload = [u8]> {
    request: Request<Q, R>,
    /// `None`: nobody waits for replies, or there are no more.
    lane: Option<Box<Lane>>,
    /// The next one.
    part: u64,
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> fmt::Debug for ReplySink<Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplySink")
            .field("request", &self.request)
            .field("part", &self.part)
            .finish_non_exhaustive()
    }
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> ReplySink<Q, R> {
    /// The request.
    pub fn request(&self) -> &Request<Q, R> {
        &self.request
    }

    /// Sends a copy of one more reply. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// `Cancelled` if they are not wanted any more: also when the deadline passes while it waits. Else as for
    /// [`Request::reply`].
    pub fn send(&mut self, reply: &R) -> Result<()> {
        self.send_part(EnvelopeHead::MORE, reply.bytes())
    }

    /// The same, as a future: the task sleeps while there is no room. If it is dropped before it is ready, nothing was sent.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send); `Unsupported` if it must wait before Linux 5.16.
    pub async fn send_async(&mut self, reply: &R) -> Result<()> {
        self.send_part_async(EnvelopeHead::MORE, reply.bytes())
            .await
    }

    /// There are no more.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn finish(mut self) -> Result<()> {
        self.send_part(EnvelopeHead::END, &[])?;
        self.request.ack()
    }

    /// The same, as a future: the task sleeps while there is no room.
    ///
    /// # Errors
    ///
    /// As for [`finish`](Self::finish); `Unsupported` if it must wait before Linux 5.16.
    pub async fn finish_async(mut self) -> Result<()> {
        self.send_part_async(EnvelopeHead::END, &[]).await?;
        self.request.ack()
    }

    /// There are no more, and not all that there should be.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn refuse(mut self, code: u32, message: &str) -> Result<()> {
        let payload = Refusal::to_bytes(code, message);
        self.send_part(EnvelopeHead::REFUSED, &payload)?;
        self.request.ack()
    }

    fn send_part(&mut self, flags: u8, payload: &[u8]) -> Result<()> {
        loop {
            // Who waits for room looks now and then whether it still makes sense.
            let (_, time_left) = self.request.check_wanted()?;
            if self.try_part(flags, payload, time_left.min(TURN))? {
                return Ok(());
            }
        }
    }

    async fn send_part_async(&mut self, flags: u8, payload: &[u8]) -> Result<()> {
        loop {
            let (_, time_left) = self.request.check_wanted()?;
            let envelope = self.request.envelope_of(flags, self.part);
            if let Some(lane) = &mut self.lane {
                let patience = time_left.min(TURN);
                let waited = lane.wait_for_room(&envelope, payload.len(), patience).await;
                waited.map_err(|e| self.request.conclude(e))?;
            }
            if self.try_part(flags, payload, Duration::ZERO)? {
                return Ok(());
            }
        }
    }

    /// Sends one, if there is room in time. After an error, the request is done with, or will be given back.
    fn try_part(&mut self, flags: u8, payload: &[u8], patience: Duration) -> Result<bool> {
        let envelope = self.request.envelope_of(flags, self.part);
        if let Some(lane) = &mut self.lane {
            match lane.send_within(&envelope, Bytes(payload), patience) {
                Ok(()) => {}
                Err(e) if e.is_full() => return Ok(false),
                Err(e) => return Err(self.request.conclude(e)),
            }
        }
        self.part += 1;
        Ok(true)
    }
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> Drop for ReplySink<Q, R> {
    fn drop(&mut self) {
        let Self {
            request,
            lane,
            part,
        } = self;
        if let Some(lane) = lane
            && request.is_ours()
            && *part > 0
        {
            let why = "the server ended in the midst of its replies";
            let told = lane.tell(
                reply_to::<R>(request.head(), 0, *part),
                Undelivered::GivenUp,
                why,
            );
            // What can't be told here is when the client looks.
            let _ = match told {
                Ok(()) => request.ack(),
                Err(_) => request.end_as(Fate::Died),
            };
        }
        if let Some(lane) = lane.take() {
            request.route.give_back(lane);
        }
    }
}
