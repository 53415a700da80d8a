//! Work queues: a lane for each producer, and groups of consumers that share the messages out by claims (`shm/claims`).

mod consumer;
mod delivery;
mod records;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(crate) use self::consumer::Taken;
pub use self::consumer::{Consumer, ConsumerBuilder};
pub use self::delivery::{Deliveries, Delivery};
pub(crate) use self::delivery::{Item, Share};
pub use self::records::DeadLetter;

use crate::bus::{Bus, TopicBuilder, TopicInner, escape};
use crate::durable::{SyncPoint, SyncPolicy};
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::futures::MessageSink;
use crate::message::{Any, Message, Payload, PayloadType};
use crate::presence::Presence;
use crate::pubsub::{Loan, Publisher};
use crate::shm::groups::DEFAULT;
use crate::shm::layout::{Pattern, max_len};
use crate::shm::members::Owner;
use crate::wait::WaitStrategy;

impl Bus {
    /// Opens a work queue of bytes, made if it is missing. What is pushed before the first consumer comes waits for it.
    ///
    /// # Errors
    ///
    /// As for [`topic`](Self::topic); `Mismatch` if that name is another kind of topic.
    pub fn queue(&self, name: &str) -> Result<Queue> {
        self.queue_builder(name).open()
    }

    /// Opens a work queue of `T`s, made if it is missing.
    ///
    /// # Errors
    ///
    /// As for [`queue`](Self::queue); `Mismatch` shows both types.
    pub fn typed_queue<T: Message + 'static>(&self, name: &str) -> Result<Queue<T>> {
        self.queue_builder(name).open_typed()
    }

    /// Opens a work queue otherwise than by default.
    pub fn queue_builder(&self, name: &str) -> QueueBuilder<'_> {
        QueueBuilder(self.topic_builder(name))
    }
}

/// Opens a [`Queue`] otherwise than by default. Made by [`Bus::queue_builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct QueueBuilder<'a>(TopicBuilder<'a>);

impl QueueBuilder<'_> {
    /// Bytes in each producer's lane; an existing queue must have the same. Each group takes half as much again for each
    /// lane.
    pub fn capacity(self, bytes: usize) -> Self {
        Self(self.0.capacity(bytes))
    }

    /// When what is pushed is on the disk, on a durable bus; an existing queue must be the same.
    pub fn sync(self, sync: SyncPolicy) -> Self {
        Self(self.0.sync(sync))
    }

    /// How producers and consumers made from this handle wait.
    pub fn wait(self, wait: WaitStrategy) -> Self {
        Self(self.0.wait(wait))
    }

    /// Whether a missing queue is made; if not, it is the error `NotFound`. By default it is.
    pub fn create(self, create: bool) -> Self {
        Self(self.0.create(create))
    }

    /// Opens it, of bytes.
    ///
    /// # Errors
    ///
    /// As for [`Bus::queue`], and `InvalidCapacity`.
    pub fn open(self) -> Result<Queue> {
        self.open_as()
    }

    /// Opens it, of `T`s.
    ///
    /// # Errors
    ///
    /// As for [`Bus::typed_queue`], and `InvalidCapacity`.
    pub fn open_typed<T: Message + 'static>(self) -> Result<Queue<T>> {
        self.open_as()
    }

    /// Opens it, of whatever type it carries; one that is made carries bytes.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn open_any(self) -> Result<Queue<Any>> {
        self.open_as()
    }

    fn open_as<T: ?Sized + Payload>(self) -> Result<Queue<T>> {
        Ok(Queue {
            inner: self
                .0
                .open_inner(&[Pattern::Queue], &T::describe(), [0; 3])?,
            kind: PhantomData,
        })
    }
}

/// A work queue: each message goes to one consumer of each group, until one has acknowledged it.
///
/// Consumers of a group share the work; what one of them held when it died goes to the others at once. Several groups may
/// read one queue, each gets everything from when it was made; the group `default` is there from the beginning. A message
/// stays, and takes room, until every group has acknowledged it, also when all producers and consumers have left.
///
/// Each message is delivered *at least* once: one whose consumer died just before it acknowledged comes again. First
/// deliveries of one producer's messages begin in the order they were pushed.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let queue = bus.queue("jobs")?;
/// queue.producer()?.push(b"resize 7.png")?;
/// let mut consumer = queue.consumer()?; // usually in another process
/// let job = consumer.recv()?;
/// assert_eq!(&*job, b"resize 7.png");
/// drop(job); // given back: somebody gets it again
/// let job = consumer.recv()?;
/// assert_eq!(job.attempts(), 2);
/// job.ack()?;
/// assert!(consumer.try_recv()?.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Queue<T: ?Sized = [u8]> {
    inner: Arc<TopicInner>,
    kind: PhantomData<fn() -> Box<T>>,
}

impl<T: ?Sized> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            kind: PhantomData,
        }
    }
}

impl<T: ?Sized> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.inner.files.name)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized + Payload> Queue<T> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.files.name
    }

    /// What type its messages are of.
    #[must_use]
    pub fn carries(&self) -> PayloadType {
        PayloadType::from_config(&self.inner.files.config)
    }

    /// When it was made: it tells a queue from one that had its name before.
    #[must_use]
    pub fn made_at(&self) -> SystemTime {
        self.inner.made_at()
    }

    /// Bytes in each lane made in it.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.inner.files.capacity
    }

    /// Bytes in the longest message.
    #[must_use]
    pub fn max_len(&self) -> usize {
        max_len(self.capacity() as u64) as usize
    }

    /// Who pushes into the lane with this number, as [`Delivery::lane`] tells it, or did last. `None`: the lane is gone.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn producer_of(&self, lane: u64) -> Result<Option<Owner>> {
        self.inner.writer_of(lane)
    }

    /// Watches who is there, without being counted: producers as publishers, consumers as subscribers.
    ///
    /// # Errors
    ///
    /// `Forked`, and the system's.
    pub fn presence(&self) -> Result<Presence> {
        Presence::watch(&self.inner)
    }

    /// Joins it as a producer, with a lane of its own: one that a producer has left, or a new one.
    ///
    /// # Errors
    ///
    /// `NoSpace` if the lane can't be allocated, `Mismatch` if the type is larger than a message may be, `Forked`, and
    /// the system's.
    pub fn producer(&self) -> Result<Producer<T>> {
        Producer::join(&self.inner)
    }

    /// Joins it as a producer with this name, whose lane stays when it leaves or dies; see [`Topic::named_publisher`](crate::Topic::named_publisher).
    ///
    /// # Errors
    ///
    /// As for [`producer`](Self::producer).
    pub fn named_producer(&self, name: &str) -> Result<Producer<T>> {
        Ok(Producer(Publisher::join_named(&self.inner, name)?))
    }

    /// Joins it as a consumer of the group `default`.
    ///
    /// # Errors
    ///
    /// `NoSpace` if its files can't be allocated, `Corrupt` if one is damaged, `Forked`, and the system's.
    pub fn consumer(&self) -> Result<Consumer<T>> {
        self.consumer_builder().open()
    }

    /// Joins it as a consumer otherwise than by default.
    pub fn consumer_builder(&self) -> ConsumerBuilder<T> {
        ConsumerBuilder::new(&self.inner)
    }

    /// Removes a group: nothing waits for it any more, and what it had put off to be tried again is removed, too.
    ///
    /// # Errors
    ///
    /// `NotFound`; `InUse` if a consumer of it lives, unless `force`: that one is told by `NotFound`, and what it holds is
    /// overwritten under it. `Forked`, and the system's.
    pub fn remove_group(&self, name: &str, force: bool) -> Result<()> {
        let tried = "remove the group";
        let TopicInner { files, bus, .. } = &*self.inner;
        bus.check_fork()?;
        let Some((_lock, group)) = files.lock_group(&escape(name)?)? else {
            return Err(
                Error::new(ErrorKind::NotFound, tried, name, "there is no such group")
                    .advise("list the groups (buslane inspect)"),
            );
        };
        let consumers = files.count_consumers(group.id)?;
        if consumers > 0 && !force {
            let why = format!("it has {consumers} consumers");
            return Err(Error::new(ErrorKind::InUse, tried, name, why)
                .advise("end them first, or force it (--force)"));
        }
        files.remove_group_files(&group)?;
        match bus.remove_topic(&records::retry_topic(&files.name, name), force) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// Puts messages on a work queue. There is no order between producers.
///
/// Pushing waits, or says [`Full`](ErrorKind::Full), while the oldest message that some group has not acknowledged is a
/// lane behind. What a `push` that returned has put there is delivered, whatever dies. Dropping it closes its lane.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let queue = bus.queue_builder("jobs").capacity(4096).open()?;
/// let mut producer = queue.producer()?;
/// while producer.try_push(&[0; 1000]).is_ok() {}
/// let full = producer.try_push(&[0; 1000]).unwrap_err();
/// assert_eq!(full.kind(), buslane::ErrorKind::Full);
/// let mut consumer = queue.consumer()?;
/// while let Some(job) = consumer.try_recv()? {
///     job.ack()?;
/// }
/// producer.push(&[0; 1000])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Producer<T: ?Sized = [u8]>(Publisher<T>);

impl<T: ?Sized> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Producer").field(&self.0).finish()
    }
}

impl<T: ?Sized + Payload> Producer<T> {
    pub(crate) fn join(topic: &Arc<TopicInner>) -> Result<Self> {
        Ok(Self(Publisher::join(topic)?))
    }

    /// The queue's name.
    #[must_use]
    pub fn queue_name(&self) -> &str {
        self.0.topic_name()
    }

    /// Bytes in the longest message.
    #[must_use]
    pub fn max_len(&self) -> usize {
        self.0.max_len()
    }

    /// Pushes a copy of `message` in an envelope, waiting at most so long for room.
    pub(crate) fn push_within(
        &mut self,
        envelope: &Envelope,
        message: &T,
        patience: Option<Duration>,
    ) -> Result<()> {
        self.0.send_within(envelope, message.bytes(), patience)
    }

    /// Has all that it pushed so far on the disk; see [`Publisher::sync`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn sync(&self) -> Result<()> {
        self.0.sync()
    }

    /// All that it pushed so far, to wait until it is on the disk; see [`Publisher::sync_point`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn sync_point(&self) -> Result<SyncPoint> {
        self.0.sync_point()
    }

    /// How many consumers there are now, of all groups; another may join or leave meanwhile.
    ///
    /// # Errors
    ///
    /// `Forked`, and the system's.
    pub fn consumer_count(&mut self) -> Result<usize> {
        self.0.subscriber_count()
    }
}

impl Producer<[u8]> {
    /// Pushes a copy of `message`. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// `TooLong`, `Forked`, and, while it waits, the system's.
    #[inline]
    pub fn push(&mut self, message: &[u8]) -> Result<()> {
        self.0.send(message)
    }

    /// Pushes a copy of `message` if there is room now.
    ///
    /// # Errors
    ///
    /// `Full`, and as for [`push`](Self::push).
    #[inline]
    pub fn try_push(&mut self, message: &[u8]) -> Result<()> {
        self.0.try_send(message)
    }

    /// Pushes a copy of `message`, waiting at most `timeout` for room.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and as for [`push`](Self::push).
    #[inline]
    pub fn push_timeout(&mut self, message: &[u8], timeout: Duration) -> Result<()> {
        self.0.send_timeout(message, timeout)
    }

    /// Pushes a copy of `message` in an envelope. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// As for [`Publisher::send_with`].
    pub fn push_with(&mut self, envelope: &Envelope, message: &[u8]) -> Result<()> {
        self.0.send_with(envelope, message)
    }

    /// Pushes a copy of `message` in an envelope if there is room now.
    ///
    /// # Errors
    ///
    /// `Full`, and as for [`push_with`](Self::push_with).
    pub fn try_push_with(&mut self, envelope: &Envelope, message: &[u8]) -> Result<()> {
        self.0.try_send_with(envelope, message)
    }

    /// Pushes copies of all `messages`, and says how many; they become visible in runs. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push); the messages before the one that failed are pushed.
    #[inline]
    pub fn push_batch<I>(&mut self, messages: I) -> Result<usize>
    where
        I: IntoIterator<Item: AsRef<[u8]>>,
    {
        self.0.send_batch(messages)
    }

    /// Lends `len` bytes of the lane, to be written in place and committed.
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push).
    #[inline]
    pub fn loan(&mut self, len: usize) -> Result<Loan<'_>> {
        self.0.loan(len)
    }

    /// Pushes a copy of `message`, as a future: the task sleeps while there is no room. If it is dropped before it is ready,
    /// nothing was pushed.
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push); `Unsupported` if it must wait before Linux 5.16.
    pub async fn push_async(&mut self, message: &[u8]) -> Result<()> {
        self.0.send_async(message).await
    }

    /// A sink that pushes copies of what it is given.
    pub fn into_sink<B: AsRef<[u8]>>(self) -> MessageSink<[u8], B> {
        self.0.into_sink()
    }
}

impl Producer<Any> {
    /// Pushes a copy of `message`, which must be of the size that the queue's type has, waiting at most `patience` for room; `None`: as long
    /// as it takes.
    ///
    /// # Errors
    ///
    /// As for [`Publisher::send_any`].
    pub fn push_any(
        &mut self,
        envelope: Option<&Envelope>,
        message: &[u8],
        patience: Option<Duration>,
    ) -> Result<()> {
        self.0.send_any(envelope, message, patience)
    }
}

impl<T: Message + 'static> Producer<T> {
    /// A sink that pushes copies of what it is given.
    pub fn into_sink(self) -> MessageSink<T, T> {
        self.0.into_sink()
    }

    /// Pushes a copy of `value`. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// `Forked`, and, while it waits, the system's.
    #[inline]
    pub fn push_value(&mut self, value: &T) -> Result<()> {
        self.0.send_value(value)
    }

    /// Pushes a copy of `value` in an envelope. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// As for [`Publisher::send_value_with`].
    pub fn push_value_with(&mut self, envelope: &Envelope, value: &T) -> Result<()> {
        self.0.send_value_with(envelope, value)
    }

    /// Pushes a copy of `value` if there is room now.
    ///
    /// # Errors
    ///
    /// `Full`, and as for [`push_value`](Self::push_value).
    #[inline]
    pub fn try_push_value(&mut self, value: &T) -> Result<()> {
        self.0.try_send_value(value)
    }
}
