//! Pipes and Unix sockets: byte streams, written a message at a time and read as much as there is.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::link::{Link, PATIENCE, gone, sum};
use crate::failure::Failure;

/// Room for several of the largest messages; a pipe's own 64 KiB are less than one with its predecessor's end.
const BUFFER_BYTES: usize = 64 * 1024;

/// Byte streams to and from each other side.
#[derive(Debug)]
pub struct StreamLink<S> {
    writes: Vec<S>,
    reads: Vec<Incoming<S>>,
    /// Which of `reads` the last message came from.
    at: usize,
}

/// What comes from one side.
#[derive(Debug)]
struct Incoming<S> {
    stream: S,
    buffer: Vec<u8>,
    filled: usize,
    taken: usize,
}

impl<S> StreamLink<S> {
    /// From its streams: one each way for each other side.
    pub fn new(writes: Vec<S>, reads: Vec<S>) -> Self {
        let incoming = |stream| Incoming {
            stream,
            buffer: vec![0; BUFFER_BYTES],
            filled: 0,
            taken: 0,
        };
        Self {
            writes,
            reads: reads.into_iter().map(incoming).collect(),
            at: 0,
        }
    }
}

impl<S: Read> Incoming<S> {
    #[inline]
    fn holds(&self, size: usize) -> bool {
        self.filled - self.taken >= size
    }

    /// Reads once, for a message of `size` bytes that it does not yet hold.
    fn read(&mut self, size: usize) -> io::Result<()> {
        self.buffer.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
        match self.stream.read(&mut self.buffer[self.filled..])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.filled += n;
                Ok(())
            }
        }
    }

    /// The sum of the next message, which it holds.
    #[inline]
    fn take(&mut self, size: usize) -> u64 {
        let message = &self.buffer[self.taken..self.taken + size];
        self.taken += size;
        sum(message)
    }
}

impl<S: Read + AsFd> StreamLink<S> {
    /// Moves `at` to a stream that holds a message: one that has been read already, or else whichever has more to read.
    fn find(&mut self, size: usize) -> Result<(), Failure> {
        loop {
            if let Some(at) = self.reads.iter().position(|read| read.holds(size)) {
                self.at = at;
                return Ok(());
            }
            for at in readable(&self.reads)? {
                self.reads[at].read(size).map_err(lost)?;
            }
        }
    }
}

/// Waits until some of them can be read.
fn readable<S: AsFd>(reads: &[Incoming<S>]) -> Result<Vec<usize>, Failure> {
    let timeout = PollTimeout::try_from(PATIENCE).expect("some seconds");
    let poll_for = |read| PollFd::new(AsFd::as_fd(read), PollFlags::POLLIN);
    let mut fds: Vec<_> = reads.iter().map(|read| poll_for(&read.stream)).collect();
    match poll(&mut fds, timeout) {
        Ok(0) => return Err(gone()),
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(lost(error.into())),
    }
    let ready = |(at, fd): (usize, &PollFd<'_>)| fd.any().unwrap_or(false).then_some(at);
    Ok(fds.iter().enumerate().filter_map(ready).collect())
}

impl<S: Read + Write + AsFd> Link for StreamLink<S> {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        for stream in &mut self.writes {
            stream.write_all(message).map_err(lost)?;
        }
        Ok(())
    }

    #[inline]
    fn recv(&mut self, size: usize) -> Result<u64, Failure> {
        let read = &mut self.reads[0];
        while !read.holds(size) {
            read.read(size).map_err(lost)?;
        }
        Ok(read.take(size))
    }

    #[inline]
    fn recv_from_any(&mut self, size: usize) -> Result<(usize, u64), Failure> {
        if self.reads.len() == 1 {
            return Ok((0, self.recv(size)?));
        }
        if !self.reads[self.at].holds(size) {
            self.find(size)?;
        }
        Ok((self.at, self.reads[self.at].take(size)))
    }
}

#[cold]
fn lost(error: io::Error) -> Failure {
    Failure::PeerGone(format!(
        "another process of the benchmark has gone: {error}"
    ))
}
