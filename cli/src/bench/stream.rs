//! Pipes and Unix sockets: byte streams, written a message at a time and read as much as there is.

use std::io::{self, Read, Write};

use super::link::{Link, sum};
use crate::failure::Failure;

/// Room for several of the largest messages; a pipe's own 64 KiB are less than one with its predecessor's end.
const BUFFER_BYTES: usize = 64 * 1024;

/// Two byte streams, one for each direction.
#[derive(Debug)]
pub struct StreamLink<S> {
    write: S,
    read: S,
    buffer: Vec<u8>,
    filled: usize,
    taken: usize,
}

impl<S> StreamLink<S> {
    /// From its two streams.
    pub fn new(write: S, read: S) -> Self {
        Self {
            write,
            read,
            buffer: vec![0; BUFFER_BYTES],
            filled: 0,
            taken: 0,
        }
    }
}

impl<S: Read> StreamLink<S> {
    /// Reads until the buffer holds `size` bytes that were not yet taken.
    fn fill(&mut self, size: usize) -> io::Result<()> {
        self.buffer.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
        while self.filled < size {
            match self.read.read(&mut self.buffer[self.filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.filled += n,
            }
        }
        Ok(())
    }
}

impl<S: Read + Write> Link for StreamLink<S> {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        self.write.write_all(message).map_err(gone)
    }

    #[inline]
    fn recv(&mut self, size: usize) -> Result<u64, Failure> {
        if self.filled - self.taken < size {
            self.fill(size).map_err(gone)?;
        }
        let message = &self.buffer[self.taken..self.taken + size];
        self.taken += size;
        Ok(sum(message))
    }
}

#[cold]
fn gone(error: io::Error) -> Failure {
    Failure::PeerGone(format!(
        "the other process of the benchmark has gone: {error}"
    ))
}
