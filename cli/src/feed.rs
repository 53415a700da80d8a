//! Stdin as messages, for who sends them on.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;

use buslane::ErrorKind;
use serde::Serialize;

use crate::failure::Failure;
use crate::framing::Framing;
use crate::progress::Progress;
use crate::signals::Stop;

/// Where messages go.
pub trait Outlet {
    /// Bytes in the longest message.
    fn max_len(&self) -> usize;

    /// Sends one.
    fn send(&mut self, message: &[u8]) -> Result<(), Failure>;

    /// Sends what `read` puts into `len` bytes; if that is nothing, sends nothing. How much it was.
    fn fill(
        &mut self,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<usize, Failure>;
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sent {
    /// How many.
    pub messages: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// Stdin, on its way to `outlet`.
pub struct Feed<'a, O> {
    /// Where it goes.
    pub outlet: O,
    /// What a message that is too long does not fit, and what to do.
    pub limit: String,
    /// So far.
    pub sent: Sent,
    stop: &'a Stop,
}

impl<'a, O: Outlet> Feed<'a, O> {
    /// Nothing has been sent yet.
    pub fn new(outlet: O, limit: String, stop: &'a Stop) -> Self {
        Self {
            outlet,
            limit,
            sent: Sent::default(),
            stop,
        }
    }

    /// Sends all of stdin.
    pub fn run(&mut self, framing: Framing) -> Result<(), Failure> {
        let input = Input::open(self.stop).map_err(Failure::system("read stdin"))?;
        let mut progress = Progress::bytes(input.regular_len);
        match framing {
            Framing::Delimited(delimiter) => self.delimited(input, delimiter, &mut progress),
            Framing::Chunk(size) => self.chunks(input, size, &mut progress),
            Framing::Len32 => self.len32(input, &mut progress),
        }
    }

    fn delimited(
        &mut self,
        input: Input<'_>,
        delimiter: u8,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let max = self.outlet.max_len();
        let mut input = BufReader::with_capacity(64 * 1024, input);
        let mut message = Vec::new();
        loop {
            message.clear();
            // One byte more than a message may have: its delimiter, or it is too long.
            let read = input
                .by_ref()
                .take(max as u64 + 1)
                .read_until(delimiter, &mut message);
            let read = read.map_err(Failure::system("read stdin"))?;
            self.stop.check()?;
            if read == 0 {
                return Ok(());
            }
            if message.last() == Some(&delimiter) {
                message.pop();
            }
            if message.len() > max {
                return Err(self.too_long(None));
            }
            self.send(&message)?;
            progress.add(read as u64);
        }
    }

    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        self.outlet.send(message)?;
        self.count(message.len());
        Ok(())
    }

    fn fill(
        &mut self,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<usize, Failure> {
        let got = self.outlet.fill(len, read)?;
        if got > 0 {
            self.count(got);
        }
        Ok(got)
    }

    fn count(&mut self, len: usize) {
        self.sent.messages += 1;
        self.sent.bytes += len as u64;
    }

    /// Each chunk is read from stdin straight to where it goes.
    fn chunks(
        &mut self,
        mut input: Input<'_>,
        size: usize,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let max = self.outlet.max_len();
        if size > max {
            return Err(self.too_long(Some(size)));
        }
        loop {
            let read = self.fill(size, |frame| input.read(frame))?;
            if read == 0 {
                return Ok(());
            }
            progress.add(read as u64);
        }
    }

    fn len32(&mut self, mut input: Input<'_>, progress: &mut Progress) -> Result<(), Failure> {
        let max = self.outlet.max_len();
        loop {
            let mut len = [0; 4];
            let read = read_full(&mut input, &mut len).map_err(Failure::system("read stdin"))?;
            self.stop.check()?;
            match read {
                0 => return Ok(()),
                4 => {}
                _ => return Err(self.truncated()),
            }
            let len = u32::from_le_bytes(len) as usize;
            if len > max {
                return Err(self.too_long(Some(len)));
            }
            if len == 0 {
                self.send(&[])?;
            } else if self.fill(len, |frame| {
                read_full(&mut input, frame).map(|n| if n < len { 0 } else { n })
            })? == 0
            {
                return Err(self.truncated());
            }
            progress.add(len as u64 + 4);
        }
    }

    fn too_long(&self, len: Option<usize>) -> Failure {
        let len = len.map(|len| format!(" ({len} bytes)")).unwrap_or_default();
        let number = self.sent.messages + 1;
        Failure::Error(format!(
            "message {number}{len} is longer than {}",
            self.limit
        ))
    }

    fn truncated(&self) -> Failure {
        Failure::Error(format!(
            "stdin ends inside message {}; check what writes it",
            self.sent.messages + 1
        ))
    }
}

/// Reads until `bytes` is full or the input ends; how much that was.
fn read_full(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match input.read(&mut bytes[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// Stdin without a buffer. A signal ends it as if nothing more came: ask [`Stop::check`] which it was.
struct Input<'a> {
    file: File,
    regular_len: Option<u64>,
    stop: &'a Stop,
}

impl<'a> Input<'a> {
    fn open(stop: &'a Stop) -> io::Result<Self> {
        let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let metadata = file.metadata()?;
        Ok(Self {
            regular_len: metadata.is_file().then_some(metadata.len()),
            file,
            stop,
        })
    }
}

impl Read for Input<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.regular_len.is_none() && !self.stop.wait_readable(self.file.as_fd())? {
            return Ok(0);
        }
        loop {
            match self.file.read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// Repeats a wait that is bounded by a slice until it succeeds or fails, or a signal comes.
pub fn in_slices<T>(
    stop: &Stop,
    mut wait: impl FnMut() -> Result<T, buslane::Error>,
) -> Result<T, Failure> {
    loop {
        stop.check()?;
        match wait() {
            Err(error) if error.kind() == ErrorKind::TimedOut => {}
            result => return Ok(result?),
        }
    }
}
