//! A shared-memory message bus for processes on one Linux host.
//!
//! A *lane* is a ring that only one writer may write. Each publisher of a topic has a lane, each subscriber a cursor;
//! a message is written once, in place, and read where it lies by every subscriber. No daemon, no heartbeat, no
//! system call while the peer is awake.
//!
//! ```
//! # let dir = tempfile::tempdir_in("/dev/shm")?;
//! # let path = dir.path().join("bus");
//! let bus = buslane::Bus::at(&path)?; // Bus::open("name") for /dev/shm/buslane-<uid>/name
//! let topic = bus.topic("orders/new")?;
//! let mut subscriber = topic.subscriber()?; // usually in another process
//! let mut publisher = topic.publisher()?;
//! publisher.send(b"100 pears")?;
//! assert_eq!(&*subscriber.recv()?, b"100 pears");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The life of one message
//!
//! [`Publisher::send`] claims room in its lane, copies the bytes in, and stores the frame's first word, which says all
//! that a reader needs. Then it loads one control word: if nobody joined, left or went to sleep since the last time,
//! that was all. [`Subscriber::recv`] looks at the word where the next frame will be; when it is there, a [`Frame`]
//! lends the payload in place, and releases it when dropped. Whoever finds nothing to do looks again for a while, then
//! tells the other side and sleeps on a futex.
//!
//! To read the code in that order: [`Publisher`] and [`Subscriber`] (`pubsub`), the lane (`shm/lane`), the bytes
//! (`shm/bytes`), sleeping and waking (`shm/park`), joining and leaving (`shm/roster`), who is alive (`shm/members`),
//! and what the dead leave (`shm/reclaim`). On that stand the queues (`queue`, `shm/claims`), on
//! these requests and replies (`request`), and the latest state (`state`, `shm/table`). What outlives its processes: `durable`, the files (`shm/log`), and what is left of them (`shm/recover`). Waiting for more than one thing, or in a task: `waitset`, `futures`, and the `reactor` behind both. `docs/design.md` says why it is so, `docs/layout.md` what each byte means.
//!
//! # Features
//!
//! `tracing`: a span for each message, request and reply that is sent in an envelope (`buslane.send`, as long as it waits for room), and one for who handles it (`Envelope::span`), with the
//! trace that the envelope names, as a W3C traceparent. Messages without an envelope are not looked at.
//!
//! # Limits
//!
//! Linux, 64-bit, little endian; processes of one user; one host. A message takes at most 3/8 of its lane.
//! A lossless topic waits for its slowest subscriber, also for one that is stopped, unless that one is a lossy one; a lossy topic waits for nobody.
#![cfg_attr(loom, allow(missing_docs, missing_debug_implementations, dead_code))]
#![cfg_attr(adversary, allow(missing_docs, missing_debug_implementations))]

#[cfg(not(loom))]
mod bus;
#[cfg(not(loom))]
mod durable;
#[cfg(not(loom))]
mod envelope;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod futures;
#[cfg(not(loom))]
mod inspect;
#[cfg(not(loom))]
mod message;
#[cfg(not(loom))]
mod presence;
#[cfg(not(loom))]
mod pubsub;
#[cfg(not(loom))]
mod queue;
#[cfg(not(loom))]
mod reactor;
#[cfg(not(loom))]
mod request;
#[cfg(not(loom))]
mod select;
#[cfg(not(any(loom, adversary)))]
mod shm;
#[cfg(not(loom))]
mod state;
#[cfg(not(loom))]
mod stream;
#[cfg(not(loom))]
mod wait;
#[cfg(not(loom))]
mod waitset;

/// The core: alone, for the models in `tests/model.rs`; or over memory that lies, for `fuzz/`.
#[cfg(any(loom, adversary))]
pub mod shm;

#[cfg(not(loom))]
pub use self::{
    bus::{Bus, BusBuilder, DEFAULT_CAPACITY, Topic, TopicBuilder},
    durable::{DEFAULT_FILE, Keep, SyncPoint, SyncPolicy},
    envelope::{Envelope, Kind, Origin, TraceParent},
    error::{Error, ErrorKind, Lost, Result},
    futures::{MessageSink, MessageStream, Receive},
    inspect::{
        CursorPosition, CursorReport, Damage, Durability, GroupPosition, GroupReport, Kept,
        LaneReport, OwnerReport, Seen, TableReport, TopicReport, Verified,
    },
    message::{Any, Message, Payload, PayloadType},
    presence::Presence,
    pubsub::{
        Batch, BatchIter, Frame, Loan, Messages, Publisher, Start, Subscriber, SubscriptionBuilder,
    },
    queue::{
        Consumer, ConsumerBuilder, DeadLetter, Deliveries, Delivery, Producer, Queue, QueueBuilder,
    },
    request::{
        Answer, CallOptions, Client, ClientBuilder, DEFAULT_SERVICE_CAPACITY, Pending, Refusal,
        Reply, ReplySink, ReplyStream, Request, Server, ServerBuilder, Service, ServiceBuilder,
    },
    select::{NamePattern, Selected, Selection},
    shm::members::Owner,
    shm::reclaim::Reclaimed,
    shm::recover::Cut,
    state::{Entries, State, StateBuilder, StateReader, StateWriter, Watch},
    stream::{ByteReader, ByteWriter},
    wait::WaitStrategy,
    waitset::{Fd, Source, WaitSet},
};
