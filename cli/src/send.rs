//! `buslane send`: stdin, message by message, to a topic.

use std::io;

use buslane::{Bus, ErrorKind, Publisher};

use crate::Common;
use crate::failure::Failure;
use crate::feed::{Feed, Outlet, in_slices};
use crate::framing::Framing;
use crate::output::{json_line, stdout};
use crate::signals::{SLICE, Stop};
use crate::size;

/// Publish stdin to a topic
///
/// Like opening a FIFO, it waits for a subscriber first. It ends when every subscriber has received everything; on a
/// lossy topic, everything but what it was told that it lost. On a durable bus it waits for nobody, and ends when everything is
/// on the disk, and received by those that are there.
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
        is_kept: topic.is_durable(),
    };
    if !args.no_wait && !sender.is_kept {
        in_slices(stop, || {
            sender.publisher.wait_for_subscribers(1, Some(SLICE))
        })?;
    }
    sender.check_subscribers()?;

    let limit = format!(
        "the {} bytes that a frame of topic {} holds; use a new topic with a larger --capacity, or send bytes in smaller \
         pieces with --frame chunk=SIZE",
        sender.publisher.max_len(),
        sender.publisher.topic_name(),
    );
    let mut feed = Feed::new(sender, limit, stop);
    feed.run(args.frame)?;
    if feed.outlet.is_kept {
        feed.outlet.publisher.sync()?;
    }
    match in_slices(stop, || feed.outlet.publisher.wait_delivered(Some(SLICE))) {
        // It finds the rest when it comes back.
        Err(_) if feed.outlet.is_kept => stop.check()?,
        delivered => delivered?,
    }
    if common.json {
        let mut out = stdout(stop)?;
        json_line(&mut out, &feed.sent)?;
        io::Write::flush(&mut out).map_err(Failure::stdout)?;
    }
    Ok(())
}

struct Sender<'a> {
    publisher: Publisher<[u8]>,
    stop: &'a Stop,
    had_subscriber: bool,
    /// What is sent stays for who is away.
    is_kept: bool,
}

impl Sender<'_> {
    /// An error if the last subscriber has gone without all that was sent so far: the rest would reach nobody.
    fn check_subscribers(&mut self) -> Result<(), Failure> {
        if self.is_kept {
            return Ok(());
        }
        if self.publisher.subscriber_count()? > 0 {
            self.had_subscriber = true;
        } else if self.had_subscriber {
            in_slices(self.stop, || self.publisher.wait_delivered(Some(SLICE)))?;
        }
        Ok(())
    }
}

impl Outlet for Sender<'_> {
    fn max_len(&self) -> usize {
        self.publisher.max_len()
    }

    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        in_slices(self.stop, || self.publisher.send_timeout(message, SLICE))?;
        self.check_subscribers()
    }

    /// Straight into the frame that subscribers will see.
    fn fill(
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
            self.check_subscribers()?;
        }
        Ok(got)
    }
}
