//! Request and reply: a work queue of requests, and an inbox for each client, to which servers reply.

mod client;
mod pending;
mod post;
mod route;
mod server;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use zerocopy::{FromBytes, IntoBytes};

pub use self::client::{CallOptions, Client, ClientBuilder, Reply, ReplyStream};
pub use self::pending::Pending;
pub use self::server::{ReplySink, Request, Server, ServerBuilder};

use crate::bus::{Bus, TopicBuilder, TopicInner};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Message, Payload};
use crate::presence::Presence;
use crate::queue::Producer;
use crate::shm::layout::{Pattern, max_len};
use crate::wait::WaitStrategy;

/// Bytes in the lanes of a service, and of an inbox, if nothing else is said. Less than of a topic: each client has one of
/// both, and each server one in each inbox.
pub const DEFAULT_SERVICE_CAPACITY: usize = 256 << 10;

impl Bus {
    /// Opens a service of bytes, answered by bytes, made if it is missing.
    ///
    /// # Errors
    ///
    /// As for [`queue`](Self::queue).
    pub fn service(&self, name: &str) -> Result<Service> {
        self.service_builder(name).open()
    }

    /// Opens a service that answers `Q`s by `R`s, made if it is missing.
    ///
    /// # Errors
    ///
    /// As for [`typed_queue`](Self::typed_queue). Whether client and server mean the same `R` shows at the first reply.
    pub fn typed_service<Q: Message + 'static, R: Message + 'static>(
        &self,
        name: &str,
    ) -> Result<Service<Q, R>> {
        self.service_builder(name).open_as()
    }

    /// Opens a service otherwise than by default.
    pub fn service_builder(&self, name: &str) -> ServiceBuilder<'_> {
        ServiceBuilder(self.topic_builder(name).made_with(DEFAULT_SERVICE_CAPACITY))
    }
}

/// Opens a [`Service`] otherwise than by default. Made by [`Bus::service_builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ServiceBuilder<'a>(TopicBuilder<'a>);

impl ServiceBuilder<'_> {
    /// Bytes in each client's lane of requests; an existing service must have the same. By default
    /// [`DEFAULT_SERVICE_CAPACITY`].
    pub fn capacity(self, bytes: usize) -> Self {
        Self(self.0.capacity(bytes))
    }

    /// How clients and servers made from this handle wait.
    pub fn wait(self, wait: WaitStrategy) -> Self {
        Self(self.0.wait(wait))
    }

    /// Whether a missing service is made; if not, it is the error `NotFound`. By default it is.
    pub fn create(self, create: bool) -> Self {
        Self(self.0.create(create))
    }

    /// Opens it, of bytes.
    ///
    /// # Errors
    ///
    /// As for [`Bus::service`], and `InvalidCapacity`.
    pub fn open(self) -> Result<Service> {
        self.open_as()
    }

    /// Opens it, of `Q`s answered by `R`s.
    ///
    /// # Errors
    ///
    /// As for [`Bus::typed_service`], and `InvalidCapacity`.
    pub fn open_typed<Q: Message + 'static, R: Message + 'static>(self) -> Result<Service<Q, R>> {
        self.open_as()
    }

    fn open_as<Q: ?Sized + Payload, R: ?Sized + Payload>(self) -> Result<Service<Q, R>> {
        Ok(Service {
            inner: self
                .0
                .open_inner(&[Pattern::Queue], &Q::describe(), [0; 3])?,
            kind: PhantomData,
        })
    }
}

/// A service: clients send it requests, each goes to one of its servers, and the reply comes back to who asked.
///
/// It is a work queue ([`Bus::queue`] opens it as one), whose messages say where the reply goes. A server that dies leaves
/// what it had to another one (*at least once*), unless the client asked for *at most once*. A client learns at once when
/// there is no server, or the last one dies. A reply reaches its own request, or nobody.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let service = bus.service("upper")?;
/// let mut server = service.server()?; // usually in another process
/// std::thread::spawn(move || -> buslane::Result<()> {
///     loop {
///         let request = server.recv()?;
///         let reply = request.to_ascii_uppercase();
///         request.reply(&reply)?;
///     }
/// });
/// let mut client = service.client()?;
/// assert_eq!(&*client.call(b"hello")??, b"HELLO");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Service<Q: ?Sized = [u8], R: ?Sized = [u8]> {
    inner: Arc<TopicInner>,
    kind: PhantomData<fn(&Q) -> Box<R>>,
}

impl<Q: ?Sized, R: ?Sized> Clone for Service<Q, R> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            kind: PhantomData,
        }
    }
}

impl<Q: ?Sized, R: ?Sized> fmt::Debug for Service<Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.inner.files.name)
            .finish_non_exhaustive()
    }
}

impl<Q: ?Sized + Payload, R: ?Sized + Payload> Service<Q, R> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.files.name
    }

    /// Bytes in the longest request.
    #[must_use]
    pub fn max_len(&self) -> usize {
        max_len(self.inner.files.capacity as u64) as usize
    }

    /// A client, with a lane and an inbox of its own from its first request on.
    ///
    /// # Errors
    ///
    /// `Forked`.
    pub fn client(&self) -> Result<Client<Q, R>> {
        self.client_builder().open()
    }

    /// A client otherwise than by default.
    pub fn client_builder(&self) -> ClientBuilder<Q, R> {
        ClientBuilder::new(&self.inner)
    }

    /// Joins as a server.
    ///
    /// # Errors
    ///
    /// As for [`Queue::consumer`](crate::Queue::consumer).
    pub fn server(&self) -> Result<Server<Q, R>> {
        self.server_builder().open()
    }

    /// Joins as a server otherwise than by default.
    pub fn server_builder(&self) -> ServerBuilder<Q, R> {
        ServerBuilder::new(&self.inner)
    }

    /// Watches who asks and who serves, without being counted: clients are its publishers, servers its subscribers.
    ///
    /// # Errors
    ///
    /// `Forked`, and the system's.
    pub fn presence(&self) -> Result<Presence> {
        Presence::watch(&self.inner)
    }

    /// What puts messages to this service that ask for no reply, or passes requests on to it
    /// ([`Request::forward`]).
    ///
    /// # Errors
    ///
    /// As for [`Queue::producer`](crate::Queue::producer).
    pub fn producer(&self) -> Result<Producer<Q>> {
        Producer::join(&self.inner)
    }
}

/// Why a service does not do what it was asked: its own answer, not a failure of the transport. Made by
/// [`Request::refuse`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// What a program decides by; its meaning is the service's.
    pub code: u32,
    /// What a person reads.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the service refuses: {} (code {})",
            self.message, self.code
        )
    }
}

impl std::error::Error for Refusal {}

/// What a service answers: `T`, or that it refuses.
pub type Answer<T> = std::result::Result<T, Refusal>;

impl Refusal {
    /// As the payload of a reply.
    fn to_bytes(code: u32, message: &str) -> Vec<u8> {
        [code.as_bytes(), message.as_bytes()].concat()
    }

    fn read(payload: &[u8]) -> Self {
        // A copy first: it may lie where another process could change it between a check and a use.
        let payload = payload.to_vec();
        let (code, message) = u32::read_from_prefix(&payload).unwrap_or((0, &payload));
        let message = String::from_utf8_lossy(message).into_owned();
        Self { code, message }
    }
}

/// Why a reply could not be sent, as its payload says it to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Undelivered {
    /// It is longer than the inbox takes.
    TooLong = 1,
    /// It is of another type than the client means.
    Mismatch = 2,
    /// The server gave the request up, and no other is to get it.
    GivenUp = 3,
}

impl Undelivered {
    fn error(payload: &[u8], service: &Arc<str>) -> Error {
        let Refusal { code, message } = Refusal::read(payload);
        let (kind, advice) = match code {
            code if code == Self::TooLong as u32 => (
                ErrorKind::TooLong,
                "open the client with a larger inbox (client_builder().inbox(..))",
            ),
            code if code == Self::Mismatch as u32 => (
                ErrorKind::Mismatch,
                "let client and server use the same types",
            ),
            _ => (
                ErrorKind::ServerDied,
                "look whether it was done, before you ask again",
            ),
        };
        Error::new(kind, "call", Arc::clone(service), message).advise(advice)
    }
}
