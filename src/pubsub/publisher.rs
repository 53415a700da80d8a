//! Sends messages of a topic.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::loan::Loan;
use super::sender::{Delivered, Patience, Room, Run, Sender};
use crate::bus::TopicInner;
use crate::durable::SyncPoint;
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::futures::MessageSink;
use crate::message::{Any, Message, Payload, PayloadType};
use crate::presence;
use crate::reactor::{Ready, Sleep};
use crate::shm::roster;
use crate::wait::Waitable;

/// Sends messages of a topic. Its messages reach every subscriber in the order they were sent; there is no order
/// between publishers.
///
/// Sending waits, or says [`Full`](crate::ErrorKind::Full), while the slowest subscriber has no room. Without subscribers, and on
/// a lossy topic, it never waits. Dropping it closes its lane; subscribers still receive what is in there.
#[must_use]
pub struct Publisher<T: ?Sized = [u8]> {
    sender: Sender,
    sleep: Sleep,
    kind: PhantomData<fn(&T)>,
}

impl<T: ?Sized> fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sender { topic, id, .. } = &self.sender;
        f.debug_struct("Publisher")
            .field("topic", &topic.files.name)
            .field("lane", id)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized + Payload> Publisher<T> {
    pub(crate) fn join(topic: &Arc<TopicInner>) -> Result<Self> {
        Self::with(Sender::join(topic, 0)?)
    }

    pub(crate) fn join_named(topic: &Arc<TopicInner>, name: &str) -> Result<Self> {
        // 0 is that of nobody.
        let name = Envelope::id_of_type(name).max(1);
        Self::with(Sender::join(topic, name)?)
    }

    fn with(sender: Sender) -> Result<Self> {
        let size = PayloadType::from_config(&sender.topic.files.config).size();
        if let Some(size) = size.filter(|&size| size > sender.max_len) {
            return Err(sender.too_long(size));
        }
        Ok(Self {
            sender,
            sleep: Sleep::default(),
            kind: PhantomData,
        })
    }

    /// The topic's name.
    #[must_use]
    pub fn topic_name(&self) -> &str {
        &self.sender.topic.files.name
    }

    /// Bytes in the longest message.
    #[must_use]
    pub fn max_len(&self) -> usize {
        self.sender.max_len
    }

    /// How many subscribers there are now; another may join or leave meanwhile. No system call, unless one just did.
    ///
    /// # Errors
    ///
    /// `Forked`, and the system's.
    pub fn subscriber_count(&mut self) -> Result<usize> {
        self.sender.check_fork()?;
        self.sender.refresh()?;
        Ok(self.sender.readers.count())
    }

    /// Waits until there are `n` subscribers, or more. Sleeps.
    ///
    /// # Errors
    ///
    /// `TimedOut`, `Forked`, and the system's.
    pub fn wait_for_subscribers(&mut self, n: usize, timeout: Option<Duration>) -> Result<()> {
        let topic = Arc::clone(&self.sender.topic);
        presence::until(&topic, "wait for subscribers of", timeout, || {
            Ok(self.subscriber_count()? >= n)
        })
    }

    /// Waits until every subscriber has received all that was sent so far: released it, and looked for more.
    ///
    /// # Errors
    ///
    /// `SubscribersGone` if the last of them left or died before; `TimedOut`, `Forked`, and the system's.
    pub fn wait_delivered(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.sender.wait_delivered(timeout)
    }

    /// The same, as a future that may be dropped at any time.
    ///
    /// # Errors
    ///
    /// As for [`wait_delivered`](Self::wait_delivered).
    pub async fn wait_delivered_async(&mut self) -> Result<()> {
        let Self { sender, sleep, .. } = self;
        let target = sender.lane.visible();
        Ready::new(Delivered { sender, target }, sleep).await
    }

    /// Has all that it sent so far on the disk: when this returns, that survives the loss of power. Blocks the thread, as long as
    /// the disk takes. Only on a durable bus.
    ///
    /// # Errors
    ///
    /// `Poisoned` if a sync of the topic has failed: then nothing is sent any more until the bus is opened anew.
    /// `Unsupported` if nothing of the topic is on a disk; `Forked`, and the system's, if a file can't be opened.
    pub fn sync(&self) -> Result<()> {
        self.sender.sync()
    }

    /// All that it sent so far, to wait, in any thread, until it is on the disk.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let bus = buslane::Bus::builder().durable(true).capacity(65536).at(dir.path().join("bus"))?;
    /// let mut publisher = bus.topic("orders")?.publisher()?;
    /// publisher.send(b"100 pears")?;
    /// let sent = publisher.sync_point()?;
    /// std::thread::spawn(move || sent.wait()).join().unwrap()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `Unsupported` if nothing of the topic is on a disk; `Forked`.
    pub fn sync_point(&self) -> Result<SyncPoint> {
        self.sender.sync_point()
    }

    /// Who is there, to compare with later.
    #[inline]
    pub(crate) fn roster_state(&self) -> u64 {
        roster::state(&self.sender.topic.files.control)
    }

    /// The number of its lane.
    pub(crate) fn lane(&self) -> u64 {
        self.sender.id
    }

    /// The low 32 bits of the number that the next message gets.
    pub(crate) fn next_sequence(&self) -> u32 {
        self.sender.lane.next_sequence() as u32
    }

    /// Whether a consumer of the group takes messages of this kind.
    pub(crate) fn any_takes(&mut self, group: u64, kind: u8) -> Result<bool> {
        self.sender.check_fork()?;
        self.sender.refresh()?;
        Ok(self.sender.readers.any_takes(group, kind))
    }

    /// Sends a copy of `bytes` in an envelope, waiting at most so long for room.
    #[inline(always)]
    pub(crate) fn send_within(
        &mut self,
        envelope: &Envelope,
        bytes: &[u8],
        patience: Patience,
    ) -> Result<()> {
        self.sender.send_with(envelope, bytes, patience)
    }

    /// Waits until there is room for an envelope and `len` bytes, or for so long.
    pub(crate) async fn wait_for_room(
        &mut self,
        envelope: &Envelope,
        len: usize,
        patience: Duration,
    ) -> Result<()> {
        let Self { sender, sleep, .. } = self;
        let len = envelope.len() + len;
        let until = Instant::now().checked_add(patience);
        Ready::new(
            Room {
                until,
                ..Room::new(sender, len)
            },
            sleep,
        )
        .await
    }

    /// Tells the client whose inbox its topic is that a request has ended without a reply.
    pub(crate) fn tell_end(&self) {
        roster::ended(&self.sender.topic.files.control);
    }

    /// Sends what `fill` writes into `len` bytes behind an envelope, waiting at most so long for room.
    #[inline(always)]
    pub(crate) fn send_filled(
        &mut self,
        envelope: &Envelope,
        len: usize,
        patience: Patience,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        let mut loan = Loan::<[u8]>::open_with(&mut self.sender, envelope, len, patience)?;
        fill(&mut loan);
        loan.commit();
        Ok(())
    }

    /// Sends a copy of `bytes`, once there is room.
    pub(crate) async fn send_bytes_async(&mut self, bytes: &[u8]) -> Result<()> {
        let Self { sender, sleep, .. } = self;
        let len = bytes.len();
        Ready::new(Room::new(sender, len), sleep).await?;
        sender.send(bytes, Some(Duration::ZERO))
    }

    /// Sends a copy of `bytes` if there is room now.
    pub(crate) fn send_now(&mut self, bytes: &[u8]) -> Result<bool> {
        let Self { sender, .. } = self;
        let len = bytes.len();
        let has_room = Room::new(sender, len).is_ready()?;
        if has_room {
            self.sender.send(bytes, Some(Duration::ZERO))?;
        }
        Ok(has_room)
    }

    /// The same, for a sink: `Ready` when `bytes` are sent.
    pub(crate) fn poll_send(
        &mut self,
        bytes: &[u8],
        context: &mut Context<'_>,
    ) -> Poll<Result<()>> {
        let Self { sender, sleep, .. } = self;
        let len = bytes.len();
        ready!(sleep.poll(&mut Room::new(sender, len), context))?;
        Poll::Ready(sender.send(bytes, Some(Duration::ZERO)))
    }

    /// A sink that waits for room no more.
    pub(crate) fn give_up(&mut self) {
        let Self { sender, sleep, .. } = self;
        sleep.give_up(&mut Room::new(sender, 0));
    }
}

impl Publisher<[u8]> {
    /// Sends a copy of `message`. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// `TooLong`, `Forked`, and, while it waits, the system's. On a durable bus it waits for nobody, and says `NoSpace` if another data
    /// file has no room on the disk, `Poisoned` if a sync has failed, `Corrupt` if a file is damaged.
    #[inline(always)]
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        self.sender.send(message, None)
    }

    /// Sends a copy of `message` if there is room now.
    ///
    /// # Errors
    ///
    /// `Full`, and as for [`send`](Self::send).
    #[inline(always)]
    pub fn try_send(&mut self, message: &[u8]) -> Result<()> {
        self.sender.send(message, Some(Duration::ZERO))
    }

    /// Sends a copy of `message`, waiting at most `timeout` for room.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and as for [`send`](Self::send).
    #[inline]
    pub fn send_timeout(&mut self, message: &[u8], timeout: Duration) -> Result<()> {
        self.sender.send(message, Some(timeout))
    }

    /// Sends a copy of `message`, as a future: the task sleeps while there is no room. If it is dropped before it is ready,
    /// nothing was sent.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send); `Unsupported` if it must wait before Linux 5.16.
    pub async fn send_async(&mut self, message: &[u8]) -> Result<()> {
        self.send_bytes_async(message).await
    }

    /// Sends a copy of `message` in an envelope. Waits while there is no room.
    ///
    /// ```
    /// use buslane::{Envelope, Kind};
    ///
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let topic = buslane::Bus::at(dir.path().join("bus"))?.topic("orders/new")?;
    /// # let mut subscriber = topic.subscriber()?;
    /// # let mut publisher = topic.publisher()?;
    /// publisher.send_with(&Envelope::new(Kind::Event).sent_now(), b"100 pears")?;
    /// let frame = subscriber.recv()?;
    /// assert_eq!(&*frame, b"100 pears");
    /// assert_eq!(frame.envelope().unwrap().kind(), Kind::Event);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send). The longest message is shorter by what the envelope holds beyond its 56 bytes.
    pub fn send_with(&mut self, envelope: &Envelope, message: &[u8]) -> Result<()> {
        self.sender.send_with(envelope, message, None)
    }

    /// Sends a copy of `message` in an envelope if there is room now.
    ///
    /// # Errors
    ///
    /// `Full`, and as for [`send_with`](Self::send_with).
    pub fn try_send_with(&mut self, envelope: &Envelope, message: &[u8]) -> Result<()> {
        self.sender
            .send_with(envelope, message, Some(Duration::ZERO))
    }

    /// Lends `len` bytes behind an envelope, to be written in place and committed.
    ///
    /// # Errors
    ///
    /// As for [`send_with`](Self::send_with).
    pub fn loan_with(&mut self, envelope: &Envelope, len: usize) -> Result<Loan<'_>> {
        Loan::open_with(&mut self.sender, envelope, len, None)
    }

    /// A sink that sends copies of what it is given.
    pub fn into_sink<B: AsRef<[u8]>>(self) -> MessageSink<[u8], B> {
        MessageSink::new(self, B::as_ref)
    }

    /// Lends `len` bytes of the lane, to be written in place and committed. They hold what was there before.
    ///
    /// ```
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
    /// # let topic = bus.topic("t")?;
    /// # let mut subscriber = topic.subscriber()?;
    /// # let mut publisher = topic.publisher()?;
    /// let mut loan = publisher.loan(1024)?;
    /// loan[..5].copy_from_slice(b"hello");
    /// loan.commit_len(5);
    /// drop(publisher.loan(10)?); // sends nothing
    /// assert_eq!(&*subscriber.recv()?, b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    #[inline]
    pub fn loan(&mut self, len: usize) -> Result<Loan<'_>> {
        Loan::open(&mut self.sender, len, None)
    }

    /// Lends `len` bytes if there is room now.
    ///
    /// # Errors
    ///
    /// As for [`try_send`](Self::try_send).
    #[inline]
    pub fn try_loan(&mut self, len: usize) -> Result<Loan<'_>> {
        Loan::open(&mut self.sender, len, Some(Duration::ZERO))
    }

    /// Lends `len` bytes, waiting at most `timeout` for room.
    ///
    /// # Errors
    ///
    /// As for [`send_timeout`](Self::send_timeout).
    #[inline]
    pub fn loan_timeout(&mut self, len: usize, timeout: Duration) -> Result<Loan<'_>> {
        Loan::open(&mut self.sender, len, Some(timeout))
    }

    /// Sends copies of all `messages`, and says how many. They become visible in runs of up to some kilobytes, each
    /// run with one store; readers may start on the first while the rest is written. Waits while there is no room.
    ///
    /// The iterator is asked for more while a run is incomplete: it must not wait for somebody to receive what it gave
    /// before.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send); the messages before the one that failed are sent.
    #[inline]
    pub fn send_batch<I>(&mut self, messages: I) -> Result<usize>
    where
        I: IntoIterator<Item: AsRef<[u8]>>,
    {
        let run = Run::begin(&mut self.sender)?;
        let mut sent = 0;
        for message in messages {
            let message = message.as_ref();
            if !run.sender.lane.put_in_run(message) {
                run.sender.begin_run(message)?;
            }
            sent += 1;
        }
        // The iterator may have forked: what the child had in its run reaches nobody.
        run.sender.check_fork()?;
        run.sender.settle()?;
        Ok(sent)
    }
}

impl Publisher<Any> {
    /// Sends a copy of `message`, which must be of the size that the topic's type has, waiting at most `patience` for room; `None`: as long
    /// as it takes.
    ///
    /// # Errors
    ///
    /// `Mismatch` if it has another size, `Full` or `TimedOut` if there is no room, and as for [`Publisher::send`].
    pub fn send_any(
        &mut self,
        envelope: Option<&Envelope>,
        message: &[u8],
        patience: Option<Duration>,
    ) -> Result<()> {
        let size = self.sender.topic.files.config.type_size;
        if size != 0 && size != message.len() as u64 {
            return Err(self.wrong_size(message.len()));
        }
        match envelope {
            Some(envelope) => self.sender.send_with(envelope, message, patience),
            None => self.sender.send(message, patience),
        }
    }

    #[cold]
    fn wrong_size(&self, len: usize) -> Error {
        let topic = &self.sender.topic.files;
        let carries = PayloadType::from_config(&topic.config);
        let why = format!("the message has {len} bytes, and the topic carries {carries}");
        Error::new(ErrorKind::Mismatch, "send to", &*topic.name, why)
            .advise("send what the topic carries, or use another topic")
    }
}

impl<T: Message + 'static> Publisher<T> {
    /// Sends a copy of `value`. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// `Forked`, and, while it waits, the system's.
    #[inline(always)]
    pub fn send_value(&mut self, value: &T) -> Result<()> {
        self.sender.send_value(value, None)
    }

    /// Sends copies of many values, one message each, with fewer steps than one by one. They become visible in runs of up to
    /// some kilobytes, each run with one store. Waits while there is no room.
    ///
    /// ```
    /// # use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
    /// # #[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
    /// # #[repr(C)]
    /// # struct Sample(u64);
    /// # impl buslane::Message for Sample {
    /// #     const NAME: &'static str = "Sample";
    /// # }
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
    /// let topic = bus.typed::<Sample>("samples")?;
    /// let (mut subscriber, mut publisher) = (topic.subscriber()?, topic.publisher()?);
    /// publisher.send_values(&[Sample(1), Sample(2), Sample(3)])?;
    /// let batch = subscriber.recv_batch(100)?;
    /// assert_eq!(batch.iter().map(|sample| sample.0).sum::<u64>(), 6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send_value`](Self::send_value); values before the one that failed are sent, and how many is not said.
    pub fn send_values(&mut self, values: &[T]) -> Result<()> {
        let run = Run::begin(&mut self.sender)?;
        let mut left = values;
        loop {
            left = &left[run.sender.lane.put_row(left)..];
            match left {
                [] => return run.sender.settle(),
                [first, rest @ ..] => {
                    run.sender.begin_run(first.as_bytes())?;
                    left = rest;
                }
            }
        }
    }

    /// Sends a copy of `value` in an envelope. Waits while there is no room.
    ///
    /// # Errors
    ///
    /// As for [`send_value`](Self::send_value); `TooLong` if what the envelope holds beyond its 56 bytes is.
    pub fn send_value_with(&mut self, envelope: &Envelope, value: &T) -> Result<()> {
        self.sender.send_with(envelope, value.as_bytes(), None)
    }

    /// Sends a copy of `value` if there is room now.
    ///
    /// # Errors
    ///
    /// `Full`, and as for [`send_value`](Self::send_value).
    #[inline(always)]
    pub fn try_send_value(&mut self, value: &T) -> Result<()> {
        self.sender.send_value(value, Some(Duration::ZERO))
    }

    /// Sends a copy of `value`, waiting at most `timeout` for room.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and as for [`send_value`](Self::send_value).
    #[inline]
    pub fn send_value_timeout(&mut self, value: &T, timeout: Duration) -> Result<()> {
        self.sender.send(value.as_bytes(), Some(timeout))
    }

    /// Sends a copy of `value`, as a future: the task sleeps while there is no room. If it is dropped before it is ready,
    /// nothing was sent.
    ///
    /// # Errors
    ///
    /// As for [`send_value`](Self::send_value); `Unsupported` if it must wait before Linux 5.16.
    pub async fn send_value_async(&mut self, value: &T) -> Result<()> {
        self.send_bytes_async(value.as_bytes()).await
    }

    /// A sink that sends copies of what it is given.
    pub fn into_sink(self) -> MessageSink<T, T> {
        MessageSink::new(self, T::as_bytes)
    }

    /// Lends room for one value, to be written in place and committed. It holds what was there before: some value.
    ///
    /// # Errors
    ///
    /// As for [`send_value`](Self::send_value).
    #[inline]
    pub fn loan_value(&mut self) -> Result<Loan<'_, T>> {
        Loan::open(&mut self.sender, size_of::<T>(), None)
    }
}
