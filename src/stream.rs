//! Streams of bytes in the place of a pipe's ends.

use std::io::{self, BufRead, Read, Write};

use crate::error::ErrorKind;
use crate::pubsub::{Kept, Publisher, Subscriber};

impl Publisher<[u8]> {
    /// The writing end of a stream of bytes: each `write` is one message, or as much of it as fits one.
    pub fn into_writer(self) -> ByteWriter {
        ByteWriter { publisher: self }
    }
}

impl Subscriber<[u8]> {
    /// The reading end of a stream of bytes: the payloads of all messages, one after the other. It ends when the last
    /// publisher has left; read again, it goes on with the next one, if there is one by then.
    pub fn into_reader(self) -> ByteReader {
        ByteReader {
            subscriber: self,
            kept: None,
            consumed: 0,
            ended: false,
        }
    }
}

/// Writes a stream of bytes to a topic. Nothing is buffered: what `write` has taken is visible.
///
/// ```
/// use std::io::{Read, Write};
///
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let topic = buslane::Bus::at(dir.path().join("bus"))?.topic("t")?;
/// let mut reader = topic.subscriber()?.into_reader();
/// let mut writer = topic.publisher()?.into_writer();
/// writer.write_all(b"like a pipe")?;
/// drop(writer);
/// let mut text = String::new();
/// reader.read_to_string(&mut text)?;
/// assert_eq!(text, "like a pipe");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct ByteWriter {
    publisher: Publisher,
}

impl ByteWriter {
    /// The publisher.
    pub fn into_inner(self) -> Publisher {
        self.publisher
    }
}

impl Write for ByteWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.publisher.max_len());
        if taken > 0 {
            self.publisher.send(&bytes[..taken])?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a stream of bytes from a topic. With [`BufRead`] they are seen in place, without a copy.
#[derive(Debug)]
#[must_use]
pub struct ByteReader {
    subscriber: Subscriber,
    kept: Option<Kept>,
    /// Bytes of the kept message that were read.
    consumed: usize,
    /// The last publisher had left when it was last looked.
    ended: bool,
}

impl ByteReader {
    /// The subscriber. What is left of a message that was begun is passed over.
    pub fn into_inner(mut self) -> Subscriber {
        if let Some(kept) = self.kept.take() {
            self.subscriber.release(kept);
        }
        self.subscriber
    }
}

impl ByteReader {
    /// The next message. `None`: there is no publisher, as when a FIFO has no writer.
    fn next(&mut self) -> io::Result<Option<Kept>> {
        if self.ended {
            let kept = self.subscriber.keep_now()?;
            if kept.is_some() || !self.subscriber.has_publisher() {
                return Ok(kept);
            }
        }
        match self.subscriber.keep() {
            Ok(kept) => {
                self.ended = false;
                Ok(Some(kept))
            }
            Err(e) if e.kind() == ErrorKind::Ended => {
                self.ended = true;
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }
}

impl BufRead for ByteReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        loop {
            let kept = match self.kept {
                Some(kept) => kept,
                None => match self.next()? {
                    Some(kept) => *self.kept.insert(kept),
                    None => return Ok(&[]),
                },
            };
            if self.consumed < self.subscriber.kept(kept)?.len() {
                return Ok(&self.subscriber.kept(kept)?[self.consumed..]);
            }
            self.subscriber.release(kept);
            self.kept = None;
            self.consumed = 0;
        }
    }

    fn consume(&mut self, amount: usize) {
        self.consumed += amount;
    }
}

impl Read for ByteReader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let there = self.fill_buf()?;
        let taken = there.len().min(bytes.len());
        bytes[..taken].copy_from_slice(&there[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}
