//! `buslane send`: stdin, message by message, to a topic.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;

use buslane::{Bus, ErrorKind, Publisher};
use serde::Serialize;

use crate::Common;
use crate::failure::Failure;
use crate::framing::Framing;
use crate::output::{json_line, stdout};
use crate::progress::Progress;
use crate::signals::{SLICE, Stop};
use crate::size;

/// Publish stdin to a topic
///
/// Like opening a FIFO, it waits for a subscriber first. It ends when every subscriber has received everything; on a
/// lossy topic, everything but what it was told that it lost.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  echo hello | buslane send news             one line, one message
  buslane send backup --frame chunk < disk   bytes, in messages of at most 64KiB
  find . -print0 | buslane send files --frame null

Exit status 4: the last subscriber left, or died, before it had received everything.")]
pub struct Args {
    /// The topic; it is made if there is none of this name
    #[arg(value_name = "TOPIC")]
    topic: String,
    /// Where one message ends: after a `line`, at a `null` byte, after what one read gives (`chunk`, at most SIZE
    /// bytes, by default 64KiB), or as its length says, which precedes it (`len32`, 4 bytes, little endian)
    #[arg(long, default_value = "line", value_name = Framing::FORMS)]
    frame: Framing,
    /// Send at once, without waiting for a subscriber
    #[arg(long)]
    no_wait: bool,
    /// Room for what subscribers have not yet received, in bytes (64KiB, 1MiB; a power of two), if the topic is made
    /// now; a message takes at most three eighths of it
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    capacity: Option<usize>,
}

/// Sends all of stdin, and waits until it has been received.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let bus = common.open(Bus::builder())?;
    let builder = bus.topic_builder(&args.topic);
    let topic = match args.capacity {
        Some(bytes) => builder.capacity(bytes),
        None => builder,
    }
    .open()?;
    let mut sender = Sender {
        publisher: topic.publisher()?,
        stop,
        had_subscriber: false,
        sent: Sent::default(),
    };
    if !args.no_wait {
        in_slices(stop, || {
            sender.publisher.wait_for_subscribers(1, Some(SLICE))
        })?;
    }
    sender.check_subscribers()?;

    let input = Input::open(stop).map_err(Failure::system("read stdin"))?;
    let mut progress = Progress::bytes(input.regular_len);
    match args.frame {
        Framing::Delimited(delimiter) => sender.delimited(input, delimiter, &mut progress),
        Framing::Chunk(size) => sender.chunks(input, size, &mut progress),
        Framing::Len32 => sender.len32(input, &mut progress),
    }?;

    in_slices(stop, || sender.publisher.wait_delivered(Some(SLICE)))?;
    if common.json {
        let mut out = stdout(stop)?;
        json_line(&mut out, &sender.sent)?;
        io::Write::flush(&mut out).map_err(Failure::stdout)?;
    }
    Ok(())
}

/// Repeats a wait that is bounded by [`SLICE`] until it succeeds or fails, or a signal comes.
fn in_slices<T>(
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

#[derive(Debug, Default, Serialize)]
struct Sent {
    messages: u64,
    bytes: u64,
}

struct Sender<'a> {
    publisher: Publisher<[u8]>,
    stop: &'a Stop,
    had_subscriber: bool,
    sent: Sent,
}

impl Sender<'_> {
    /// An error if the last subscriber has gone without all that was sent so far: the rest would reach nobody.
    fn check_subscribers(&mut self) -> Result<(), Failure> {
        if self.publisher.subscriber_count()? > 0 {
            self.had_subscriber = true;
        } else if self.had_subscriber {
            in_slices(self.stop, || self.publisher.wait_delivered(Some(SLICE)))?;
        }
        Ok(())
    }

    fn delimited(
        &mut self,
        input: Input<'_>,
        delimiter: u8,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let max = self.publisher.max_len();
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
        in_slices(self.stop, || self.publisher.send_timeout(message, SLICE))?;
        self.count(message.len())
    }

    /// Each chunk is read from stdin straight into the frame that subscribers will see.
    fn chunks(
        &mut self,
        mut input: Input<'_>,
        size: usize,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let max = self.publisher.max_len();
        if size > max {
            return Err(self.too_long(Some(size)));
        }
        loop {
            let read = self.loaned(size, |frame| input.read(frame))?;
            if read == 0 {
                return Ok(());
            }
            progress.add(read as u64);
        }
    }

    fn len32(&mut self, mut input: Input<'_>, progress: &mut Progress) -> Result<(), Failure> {
        let max = self.publisher.max_len();
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
            } else if self.loaned(len, |frame| {
                read_full(&mut input, frame).map(|n| if n < len { 0 } else { n })
            })? == 0
            {
                return Err(self.truncated());
            }
            progress.add(len as u64 + 4);
        }
    }

    /// Sends what `read` puts into a loan of `len` bytes; if that is nothing, sends nothing.
    fn loaned(
        &mut self,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<usize, Failure> {
        // The loan borrows the publisher, so this cannot be `in_slices`.
        let got = loop {
            self.stop.check()?;
            match self.publisher.loan_timeout(len, SLICE) {
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                Err(error) => return Err(error.into()),
                Ok(mut loan) => {
                    let got = read(&mut loan).map_err(Failure::system("read stdin"))?;
                    self.stop.check()?;
                    if got > 0 {
                        loan.commit_len(got);
                    }
                    break got;
                }
            }
        };
        if got > 0 {
            self.count(got)?;
        }
        Ok(got)
    }

    fn count(&mut self, len: usize) -> Result<(), Failure> {
        self.sent.messages += 1;
        self.sent.bytes += len as u64;
        self.check_subscribers()
    }

    fn too_long(&self, len: Option<usize>) -> Failure {
        let len = len.map(|len| format!(" ({len} bytes)")).unwrap_or_default();
        Failure::Error(format!(
            "message {}{len} is longer than the {} bytes that a frame of topic {} holds; use a new topic with a larger \
             --capacity, or send bytes in smaller pieces with --frame chunk=SIZE",
            self.sent.messages + 1,
            self.publisher.max_len(),
            self.publisher.topic_name(),
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
