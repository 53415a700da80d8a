//! `buslane push`: stdin, message by message, to a work queue.

use std::io::{self, Write};

use buslane::{Bus, Producer};

use crate::Common;
use crate::failure::Failure;
use crate::feed::{Feed, Outlet, in_slices};
use crate::framing::Framing;
use crate::output::{json_line, stdout};
use crate::signals::{SLICE, Stop};
use crate::size;

/// Put stdin's messages on a work queue
///
/// It waits for nobody but for room: messages stay on the queue until a worker of each group has acknowledged them. On a durable
/// bus it ends when everything is on the disk.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  echo 7.png | buslane push thumbnails             one line, one job
  find . -print0 | buslane push files --frame null
  buslane work thumbnails -- ./make-thumbnail      somewhere else, before or after")]
pub struct Args {
    /// The queue; it is made if there is none of this name
    #[arg(value_name = "QUEUE")]
    queue: String,
    /// Where one message ends: after a `line`, at a `null` byte, after what one read gives (`chunk`, at most SIZE
    /// bytes, by default 64KiB), or as its length says, which precedes it (`len32`, 4 bytes, little endian)
    #[arg(long, default_value = "line", value_name = Framing::FORMS)]
    frame: Framing,
    /// Room for what is not yet acknowledged, in bytes (64KiB, 1MiB; a power of two), if the queue is made now; a
    /// message takes at most three eighths of it
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    capacity: Option<usize>,
}

/// Pushes all of stdin.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let bus = common.open(Bus::builder())?;
    let builder = bus.queue_builder(&args.queue);
    let queue = match args.capacity {
        Some(bytes) => builder.capacity(bytes),
        None => builder,
    }
    .open()?;
    let limit = format!(
        "the {} bytes that a message of queue {} may have; use a new queue with a larger --capacity, or push bytes in \
         smaller pieces with --frame chunk=SIZE",
        queue.max_len(),
        queue.name(),
    );
    let pushes = Pushes {
        producer: queue.producer()?,
        stop,
        buffer: Vec::new(),
    };
    let mut feed = Feed::new(pushes, limit, stop);
    feed.run(args.frame)?;
    if bus.is_durable() {
        feed.outlet.producer.sync()?;
    }
    if common.json {
        let mut out = stdout(stop)?;
        json_line(&mut out, &feed.sent)?;
        out.flush().map_err(Failure::stdout)?;
    }
    Ok(())
}

struct Pushes<'a> {
    producer: Producer,
    stop: &'a Stop,
    buffer: Vec<u8>,
}

impl Outlet for Pushes<'_> {
    fn max_len(&self) -> usize {
        self.producer.max_len()
    }

    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        in_slices(self.stop, || self.producer.push_timeout(message, SLICE))
    }

    fn fill(
        &mut self,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<usize, Failure> {
        self.buffer.resize(len, 0);
        let got = read(&mut self.buffer).map_err(Failure::system("read stdin"))?;
        self.stop.check()?;
        if got > 0 {
            let message = &self.buffer[..got];
            in_slices(self.stop, || self.producer.push_timeout(message, SLICE))?;
        }
        Ok(got)
    }
}
