//! Streams and sinks: the ends as tasks use them. What they sleep on is in `reactor`.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_sink::Sink;

use crate::error::{Error, ErrorKind, Result};
use crate::message::Payload;
use crate::pubsub::Publisher;
use crate::reactor::Sleep;
use crate::wait::Waitable;

/// An end that messages are received from, as a [`MessageStream`] sees it.
pub trait Receive: Waitable {
    /// What the stream yields: it outlives the end.
    type Item;

    /// The next one, if it is there.
    #[doc(hidden)]
    fn receive_now(&mut self) -> Result<Option<Self::Item>>;
}

impl<R: Receive> Receive for &mut R {
    type Item = R::Item;

    fn receive_now(&mut self) -> Result<Option<R::Item>> {
        (**self).receive_now()
    }
}

/// Copies of the messages of an end, as a [`Stream`]. It takes a message only to yield it: a future on it that is dropped
/// loses nothing.
///
/// It works under any executor, or none: a thread of the library wakes the task. While there are messages, it is ready at
/// once, every time: a task that goes on without end lets others run where it says so itself.
///
/// ```
/// use futures_util::{SinkExt, StreamExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let topic = buslane::Bus::at(dir.path().join("bus"))?.topic("t")?;
/// let mut stream = topic.subscriber()?.into_stream();
/// let mut sink = topic.publisher()?.into_sink();
/// sink.send("one").await?;
/// sink.send("two").await?;
/// assert_eq!(stream.next().await.transpose()?, Some(b"one".to_vec()));
/// drop(sink);
/// assert_eq!(stream.next().await.transpose()?, Some(b"two".to_vec()));
/// assert!(stream.next().await.is_none()); // the last publisher has left
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct MessageStream<R: Receive> {
    end: R,
    sleep: Sleep,
}

impl<R: Receive> MessageStream<R> {
    pub(crate) fn new(end: R) -> Self {
        let sleep = Sleep::default();
        Self { end, sleep }
    }
}

impl<R: Receive + fmt::Debug> fmt::Debug for MessageStream<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageStream")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl<R: Receive + Unpin> Stream for MessageStream<R> {
    type Item = Result<R::Item>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<R::Item>>> {
        let Self { end, sleep } = self.get_mut();
        loop {
            ready!(sleep.poll(end, context))?;
            match end.receive_now() {
                Ok(None) => {}
                Err(e) if e.kind() == ErrorKind::Ended => return Poll::Ready(None),
                received => return Poll::Ready(received.transpose()),
            }
        }
    }
}

impl<R: Receive> Drop for MessageStream<R> {
    fn drop(&mut self) {
        self.sleep.give_up(&mut self.end);
    }
}

/// A publisher as a [`Sink`]. It keeps one item while there is no room; `flush` waits until that is sent (not until it is
/// received). See [`MessageStream`] for an example.
#[must_use]
pub struct MessageSink<T: ?Sized + Payload, I> {
    publisher: Publisher<T>,
    kept: Option<I>,
    bytes: fn(&I) -> &[u8],
}

impl<T: ?Sized + Payload, I> MessageSink<T, I> {
    pub(crate) fn new(publisher: Publisher<T>, bytes: fn(&I) -> &[u8]) -> Self {
        let kept = None;
        Self {
            publisher,
            kept,
            bytes,
        }
    }

    fn poll_kept(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        if let Some(item) = &self.kept {
            let sent = ready!(self.publisher.poll_send((self.bytes)(item), context));
            self.kept = None;
            sent?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: ?Sized + Payload, I> fmt::Debug for MessageSink<T, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageSink")
            .field("publisher", &self.publisher)
            .field("keeps_one", &self.kept.is_some())
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized + Payload, I: Unpin> Sink<I> for MessageSink<T, I> {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().poll_kept(context)
    }

    /// # Panics
    ///
    /// If it was not ready, as the trait lets it.
    fn start_send(self: Pin<&mut Self>, item: I) -> Result<()> {
        let Self {
            publisher,
            kept,
            bytes,
        } = self.get_mut();
        assert!(kept.is_none(), "a sink must be ready to take an item");
        if !publisher.send_now(bytes(&item))? {
            *kept = Some(item);
        }
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().poll_kept(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().poll_kept(context)
    }
}

impl<T: ?Sized + Payload, I> Drop for MessageSink<T, I> {
    fn drop(&mut self) {
        self.publisher.give_up();
    }
}
