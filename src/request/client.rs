//! Clients: one request at a time, answered in place, or several replies to one.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::pending::{Pending, Shared};
use super::post::{Arrived, Ask, Awaited, Body, Bytes, Filled, Post};
use super::{Answer, DEFAULT_SERVICE_CAPACITY, Refusal, Undelivered};
use crate::bus::TopicInner;
use crate::envelope::{Envelope, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Payload;
use crate::pubsub::Frame;
use crate::reactor::{Ready, Sleep};
use crate::shm::layout::EnvelopeHead;

/// How a request is to be treated. By default: waited for as long as it takes, at least once, an error if no server is
/// there, a command.
///
/// ```
/// use std::time::Duration;
/// use buslane::{CallOptions, ErrorKind};
///
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let mut client = bus.service("s")?.client()?;
/// assert_eq!(client.call(b"?").unwrap_err().kind(), ErrorKind::NoServer);
/// let patient = CallOptions::new().wait_for_server().timeout(Duration::from_millis(1));
/// assert_eq!(client.call_with(&patient, b"?").unwrap_err().kind(), ErrorKind::TimedOut);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct CallOptions {
    pub(super) timeout: Option<Duration>,
    pub(super) once: bool,
    pub(super) waits_for_server: bool,
    pub(super) kind: Kind,
    pub(super) stamped: bool,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            timeout: None,
            once: false,
            waits_for_server: false,
            kind: Kind::Command,
            stamped: false,
        }
    }
}

impl CallOptions {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long to wait for the reply. The request carries when that ends: no server gets it after that.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// If a server dies over it, no other server gets it, and the error is `ServerDied`.
    pub fn at_most_once(mut self) -> Self {
        self.once = true;
        self
    }

    /// Waits for a server to come, while there is none.
    pub fn wait_for_server(mut self) -> Self {
        self.waits_for_server = true;
        self
    }

    /// What kind of message it is. A server may take some kinds only.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Request and reply say when they were sent ([`Envelope::sent`]).
    pub fn stamped(mut self) -> Self {
        self.stamped = true;
        self
    }
}

/// Makes a [`Client`] otherwise than by default. Made by [`Service::client_builder`](super::Service::client_builder).
#[derive(Debug)]
#[must_use]
pub struct ClientBuilder<Q: ?Sized = [u8], R: ?Sized = [u8]> {
    service: Arc<TopicInner>,
    inbox: usize,
    options: CallOptions,
    kind: PhantomData<fn(&Q) -> Box<R>>,
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> ClientBuilder<Q, R> {
    pub(super) fn new(service: &Arc<TopicInner>) -> Self {
        Self {
            service: Arc::clone(service),
            inbox: DEFAULT_SERVICE_CAPACITY,
            options: CallOptions::default(),
            kind: PhantomData,
        }
    }

    /// Bytes in each server's lane of its inbox, a power of two from 4 KiB up: a reply takes at most 3/8 of that. By default
    /// [`DEFAULT_SERVICE_CAPACITY`].
    pub fn inbox(mut self, bytes: usize) -> Self {
        self.inbox = bytes;
        self
    }

    /// How its requests are treated, unless a call says otherwise.
    pub fn options(mut self, options: CallOptions) -> Self {
        self.options = options;
        self
    }

    /// Makes it.
    ///
    /// # Errors
    ///
    /// `InvalidCapacity`, `Forked`.
    pub fn open(self) -> Result<Client<Q, R>> {
        let Self {
            service,
            inbox,
            options,
            ..
        } = self;
        crate::bus::capacity_or_error("make a client of", &service.files.name, inbox)?;
        service.bus.check_fork()?;
        Ok(Client {
            desk: Desk {
                service,
                inbox,
                spare: Arc::default(),
            },
            options,
            own: None,
            shared: OnceLock::new(),
            kind: PhantomData,
        })
    }
}

/// Sends requests to a service, and gets the replies.
///
/// [`call`](Self::call) asks and waits, and lends the reply where it lies. [`start`](Self::start) asks and goes on: any
/// number of requests may be under way, also from several threads and tasks (share the client by reference, or in an
/// `Arc`), and each gets its own reply. [`stream`](Self::stream) asks for several replies.
///
/// It takes a lane of the service and an inbox when they are first needed: one of each for `call`, one for `start`, and
/// one for each stream at a time.
#[must_use]
pub struct Client<Q: ?Sized = [u8], R: ?Sized = [u8]> {
    desk: Desk,
    options: CallOptions,
    /// For calls.
    own: Option<Post>,
    /// For all that was started.
    shared: OnceLock<Arc<Shared>>,
    kind: PhantomData<fn(&Q) -> Box<R>>,
}

/// Where a client's posts come from.
struct Desk {
    service: Arc<TopicInner>,
    inbox: usize,
    /// Those that a stream has ended on.
    spare: Spare,
}

type Spare = Arc<Mutex<Vec<Post>>>;

impl Desk {
    fn open<Q: ?Sized + Payload, R: ?Sized + Payload>(&self) -> Result<Post> {
        Post::open(&self.service, Q::TYPE_ID, &R::describe(), self.inbox)
    }
}

impl<Q: ?Sized, R: ?Sized> fmt::Debug for Client<Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("service", &self.desk.service.files.name)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> Client<Q, R> {
    /// The service's name.
    #[must_use]
    pub fn service_name(&self) -> &str {
        &self.desk.service.files.name
    }

    /// Asks, and waits for the reply, which is lent where it lies.
    ///
    /// # Errors
    ///
    /// `NoServer`: nobody has seen the request. `ServerDied`: somebody may have done it. `TimedOut`: nobody gets it any
    /// more, but somebody may have it. `TooLong` if the request is, or the reply for this client's inbox. `Full` if there
    /// was no room for the reply. `Mismatch` if the server means another type of reply, or answers with several. `NoSpace`
    /// and the like when lane and inbox are made, `Corrupt`, `Forked`, and the system's.
    #[inline(always)]
    pub fn call(&mut self, request: &Q) -> Result<Answer<Reply<'_, R>>> {
        self.call_body(None, Bytes(request.bytes()))
    }

    /// The same, treated otherwise than by default.
    ///
    /// # Errors
    ///
    /// As for [`call`](Self::call).
    #[inline(always)]
    pub fn call_with(
        &mut self,
        options: &CallOptions,
        request: &Q,
    ) -> Result<Answer<Reply<'_, R>>> {
        self.call_body(Some(options), Bytes(request.bytes()))
    }

    #[inline(always)]
    fn call_body(
        &mut self,
        options: Option<&CallOptions>,
        body: impl Body,
    ) -> Result<Answer<Reply<'_, R>>> {
        let Self { desk, own, .. } = self;
        let post = match own {
            Some(post) => post,
            none => none.insert(desk.open::<Q, R>()?),
        };
        let ask = post.ask(options.unwrap_or(&self.options), body)?;
        let arrived = loop {
            match post.wait(ask, None) {
                Ok(Some(arrived)) => break arrived,
                Ok(None) => {}
                Err(e) => {
                    post.cancel(ask);
                    return Err(e);
                }
            }
        };
        let Post {
            service,
            inbox,
            claims,
            ..
        } = post;
        let frame = arrived.frame(inbox);
        // Answered, it can't be cancelled; where there are more replies, the rest is not wanted.
        let answer = judge::<R>(&service.files.name, &frame, false)
            .inspect_err(|_| claims.cancel(ask.sequence(), &service.files.control))?;
        Ok(answer.map(|()| Reply::new(frame)))
    }

    /// Asks, and goes on: the reply is waited for, or polled for, when it is wanted. Dropping what this returns cancels the
    /// request. It waits while the lane is full of requests that no server has taken, also in a task.
    ///
    /// ```
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
    /// # let service = bus.service("s")?;
    /// # let mut server = service.server()?;
    /// let client = service.client()?;
    /// let (one, two) = (client.start(b"1")?, client.start(b"2")?);
    /// # for _ in 0..2 { let request = server.recv()?; let reply = request.to_vec(); request.reply(&reply)?; }
    /// assert_eq!(two.wait()??, b"2");
    /// assert_eq!(one.wait()??, b"1");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`call`](Self::call), as far as the request goes: the rest comes when the reply is waited for.
    #[inline(always)]
    pub fn start(&self, request: &Q) -> Result<Pending<R>> {
        self.start_with(&self.options, request)
    }

    /// The same, treated otherwise than by default.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    #[inline(always)]
    pub fn start_with(&self, options: &CallOptions, request: &Q) -> Result<Pending<R>> {
        let shared = match self.shared.get() {
            Some(shared) => shared,
            None => {
                let ours = Shared::new(self.desk.open::<Q, R>()?);
                // Of two that come at once, one is dropped.
                self.shared.get_or_init(|| ours)
            }
        };
        Pending::start(shared, options, Bytes(request.bytes()))
    }

    /// Asks for several replies.
    ///
    /// The server waits while the inbox has no room: it goes on as this client reads.
    ///
    /// ```
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
    /// # let service = bus.service("s")?;
    /// # let mut server = service.server()?;
    /// # let client = service.client()?;
    /// # let serving = std::thread::spawn(move || -> buslane::Result<()> {
    /// let mut replies = server.recv()?.stream()?; // in another process
    /// for line in ["one", "two"] {
    ///     replies.send(line.as_bytes())?;
    /// }
    /// replies.finish()
    /// # });
    /// # ;
    /// let mut replies = client.stream(b"all")?;
    /// assert_eq!(&*replies.recv()??.unwrap(), b"one");
    /// assert_eq!(&*replies.recv()??.unwrap(), b"two");
    /// assert!(replies.recv()??.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub fn stream(&self, request: &Q) -> Result<ReplyStream<R>> {
        self.stream_with(&self.options, request)
    }

    /// The same, treated otherwise than by default; a timeout is for all replies together.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub fn stream_with(&self, options: &CallOptions, request: &Q) -> Result<ReplyStream<R>> {
        let spare = lock(&self.desk.spare).pop();
        let mut post = match spare {
            Some(post) => post,
            None => self.desk.open::<Q, R>()?,
        };
        let asked = post.ask(options, Bytes(request.bytes()));
        let ask = match asked {
            Ok(ask) => ask,
            Err(e) => {
                lock(&self.desk.spare).push(post);
                return Err(e);
            }
        };
        Ok(ReplyStream {
            service: Arc::clone(&post.service.files.name),
            post: Some(post),
            spare: Arc::clone(&self.desk.spare),
            ask,
            part: 0,
            is_last: false,
            sleep: Sleep::default(),
            kind: PhantomData,
        })
    }
}

fn lock(spare: &Spare) -> MutexGuard<'_, Vec<Post>> {
    spare.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: ?Sized + Payload> Client<[u8], R> {
    /// Asks with `len` bytes that `fill` writes in place, and waits for the reply.
    ///
    /// # Errors
    ///
    /// As for [`call`](Self::call).
    #[inline(always)]
    pub fn call_filled(
        &mut self,
        len: usize,
        fill: impl FnMut(&mut [u8]),
    ) -> Result<Answer<Reply<'_, R>>> {
        self.call_body(None, Filled(len, fill))
    }
}

/// A reply in place. It derefs to the payload, and is released when dropped.
#[must_use]
pub struct Reply<'a, R: ?Sized = [u8]> {
    frame: Frame<'a>,
    kind: PhantomData<fn() -> Box<R>>,
}

impl<'a, R: ?Sized + Payload> Reply<'a, R> {
    fn new(frame: Frame<'a>) -> Self {
        let kind = PhantomData;
        Self { frame, kind }
    }

    /// What goes with it: which services have passed the request on, when it was sent.
    #[must_use]
    pub fn envelope(&self) -> Option<Envelope> {
        self.frame.envelope()
    }

    /// A copy.
    #[must_use]
    pub fn to_owned(&self) -> R::Owned {
        self.copied()
    }
}

/// Whether a reply has a payload for this client. That at the end of several has none, and is not judged so.
#[inline]
pub(super) fn judge<R: ?Sized + Payload>(
    service: &Arc<str>,
    reply: &Frame<'_>,
    several: bool,
) -> Result<Answer<()>> {
    let flags = reply.head().map_or(0, EnvelopeHead::flags);
    judge_parts::<R>(service, flags, reply, several)
}

/// The same of a copy.
#[inline]
pub(super) fn judge_parts<R: ?Sized + Payload>(
    service: &Arc<str>,
    flags: u8,
    payload: &[u8],
    several: bool,
) -> Result<Answer<()>> {
    let has = |flag: u8| flags & flag != 0;
    if has(EnvelopeHead::UNDELIVERED) {
        return Err(Undelivered::error(payload, service));
    }
    if has(EnvelopeHead::REFUSED) {
        return Ok(Err(Refusal::read(payload)));
    }
    if has(EnvelopeHead::MORE | EnvelopeHead::END) && !several {
        let why = "the service answers with several replies";
        let on = Arc::clone(service);
        return Err(Error::new(ErrorKind::Mismatch, "call", on, why)
            .advise("ask for all of them (Client::stream)"));
    }
    check_size::<R>(service, payload.len() as u64)?;
    Ok(Ok(()))
}

fn check_size<R: ?Sized + Payload>(service: &Arc<str>, len: u64) -> Result<()> {
    if R::SIZE.is_none_or(|size| size == len) {
        return Ok(());
    }
    let why = format!(
        "the reply has {len} bytes, and this client means {}",
        R::describe()
    );
    let on = Arc::clone(service);
    Err(Error::new(ErrorKind::Mismatch, "call", on, why)
        .advise("let client and server use the same types"))
}

impl<R: ?Sized + Payload> Deref for Reply<'_, R> {
    type Target = R;
    #[inline]
    fn deref(&self) -> &R {
        R::in_frame(&self.frame)
    }
}

impl<R: ?Sized> fmt::Debug for Reply<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reply").field(&self.frame).finish()
    }
}

/// The replies to one request. Dropping it before the end cancels the request.
#[must_use]
pub struct ReplyStream<R: ?Sized = [u8]> {
    /// `None`: it has ended.
    post: Option<Post>,
    spare: Spare,
    service: Arc<str>,
    ask: Ask,
    /// The next one.
    part: u64,
    /// There is none after the one that was lent last.
    is_last: bool,
    sleep: Sleep,
    kind: PhantomData<fn() -> Box<R>>,
}

impl<R: ?Sized> fmt::Debug for ReplyStream<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyStream")
            .field("part", &self.part)
            .field("has_ended", &self.post.is_none())
            .finish_non_exhaustive()
    }
}

impl<R: ?Sized + Payload> ReplyStream<R> {
    /// The next reply, in place; `None` after the last one. Waits for it.
    ///
    /// # Errors
    ///
    /// As for [`Client::call`]. `ServerDied`, too, if the server died in the midst: what another one sends is not mixed
    /// with what has come. After an error, and after a refusal, the stream has ended.
    pub fn recv(&mut self) -> Result<Answer<Option<Reply<'_, R>>>> {
        let ask = self.ask;
        loop {
            match self.going_on().map(|post| post.wait(ask, None)) {
                None => return Ok(Ok(None)),
                Some(Ok(None)) => {}
                Some(Ok(Some(next))) => return self.take(Ok(next)),
                Some(Err(e)) => return self.take(Err(e)),
            }
        }
    }

    /// The same, if it comes within `timeout`; else it may still come.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    pub fn recv_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<Option<Answer<Option<Reply<'_, R>>>>> {
        let ask = self.ask;
        match self.going_on().map(|post| post.wait(ask, Some(timeout))) {
            None => Ok(Some(Ok(None))),
            Some(Ok(None)) => Ok(None),
            Some(Ok(Some(next))) => self.take(Ok(next)).map(Some),
            Some(Err(e)) => self.take(Err(e)).map(Some),
        }
    }

    /// The same, as a future: the task sleeps. It may be dropped at any time.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv); `Unsupported` before Linux 5.16.
    pub async fn recv_async(&mut self) -> Result<Answer<Option<Reply<'_, R>>>> {
        if self.going_on().is_none() {
            return Ok(Ok(None));
        }
        let Self {
            post: Some(post),
            ask,
            sleep,
            ..
        } = self
        else {
            return Ok(Ok(None));
        };
        let next = loop {
            match post.poll(*ask) {
                Ok(None) => Ready::new(Awaited { post, ask: *ask }, sleep).await?,
                Ok(Some(found)) => break Ok(found),
                Err(e) => break Err(e),
            }
        };
        self.take(next)
    }

    /// Copies of the replies, until the end.
    pub fn iter(&mut self) -> impl Iterator<Item = Result<Answer<R::Owned>>> {
        std::iter::from_fn(|| {
            Some(match self.recv() {
                Ok(Ok(reply)) => Ok(Ok(reply?.copied())),
                Ok(Err(refusal)) => Ok(Err(refusal)),
                Err(e) => Err(e),
            })
        })
    }

    fn take(&mut self, next: Result<Arrived>) -> Result<Answer<Option<Reply<'_, R>>>> {
        let arrived = next.inspect_err(|_| self.give_up())?;
        let head = self.post.as_ref().map(|post| post.head(arrived));
        let head = head.unwrap_or_default();
        let is_end = head.has(EnvelopeHead::END);
        let is_undelivered = head.has(EnvelopeHead::UNDELIVERED);
        let has_payload = !is_undelivered && !is_end && !head.has(EnvelopeHead::REFUSED);
        if !is_undelivered && head.part != self.part {
            self.give_up();
            let why = "the server died in the midst, and another began anew";
            let on = Arc::clone(&self.service);
            return Err(Error::new(ErrorKind::ServerDied, "call", on, why)
                .advise("ask again, if it may be done twice"));
        }
        if has_payload {
            check_size::<R>(&self.service, arrived.len()).inspect_err(|_| self.give_up())?;
        }
        self.part += 1;
        self.is_last = !head.has(EnvelopeHead::MORE);
        let Some(post) = &mut self.post else {
            return Ok(Ok(None));
        };
        if is_end {
            drop(arrived.frame(&mut post.inbox));
            return Ok(Ok(None));
        }
        let frame = arrived.frame(&mut post.inbox);
        let answer = judge::<R>(&self.service, &frame, true)?;
        Ok(answer.map(|()| Some(Reply::new(frame))))
    }

    /// The post, while there may be another reply.
    fn going_on(&mut self) -> Option<&mut Post> {
        if self.is_last {
            self.end();
        }
        self.post.as_mut()
    }

    /// It has ended well: the post can be used again.
    fn end(&mut self) {
        if let Some(post) = self.post.take() {
            lock(&self.spare).push(post);
        }
    }

    /// The server is told, and does not wait for room any more: the inbox goes.
    fn give_up(&mut self) {
        if let Some(post) = self.post.take() {
            post.cancel(self.ask);
        }
    }
}

impl<R: ?Sized> Drop for ReplyStream<R> {
    fn drop(&mut self) {
        if let Some(post) = self.post.take() {
            match self.is_last {
                true => lock(&self.spare).push(post),
                false => post.cancel(self.ask),
            }
        }
    }
}
