//! `buslane recv`: what is sent to some topics, to stdout.

use std::io::{self, Write};
use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use buslane::{Bus, ErrorKind, Frame, Lost, Start, Subscriber};
use clap::ValueEnum;
use serde::Serialize;

use crate::Common;
use crate::failure::Failure;
use crate::framing::Framing;
use crate::output::{Data, Output, json_line, stdout};
use crate::signals::{SLICE, Stop};

/// Write what is sent to topics to stdout
///
/// Like reading a FIFO, it waits for a publisher, and ends when the last one has gone and everything has been read.
/// Unlike with a FIFO, each of several `recv` gets everything.
///
/// On a lossy topic, whose publishers wait for nobody, stderr says what was lost, where it is missing; with --json, an
/// object in its place does.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  buslane recv news                           until its publishers have gone
  buslane recv news weather --follow          two topics, for ever
  buslane recv backup --frame chunk > disk    the bytes as they were sent
  buslane recv news --count 1 --json          one message, with its topic and sequence number
  buslane recv prices --strict                not one of them may be missing

Exit status 5: something was lost (only with --strict).")]
pub struct Args {
    /// The topics; they are made if there are none of these names
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<String>,
    /// What to write: each message followed by a newline (`line`) or a zero byte (`null`), nothing but its bytes
    /// (`chunk`), or its length before it (`len32`, 4 bytes, little endian)
    #[arg(long, default_value = "line", value_name = Framing::FORMS)]
    frame: Framing,
    /// Stay when the last publisher has gone, and wait for the next
    #[arg(long)]
    follow: bool,
    /// End after N messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Where to begin
    #[arg(long, value_enum, default_value = "new")]
    from: From,
    /// End with exit status 5 where messages of a lossy topic were lost
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    /// With what is sent from now on
    New,
    /// With the oldest that publishers still hold
    Oldest,
}

impl From {
    fn start(self) -> Start {
        match self {
            Self::New => Start::Now,
            Self::Oldest => Start::Oldest,
        }
    }
}

/// Receives until the publishers have gone.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let Args {
        topics,
        frame,
        follow,
        count,
        from,
        strict,
    } = args;
    let bus = common.open(Bus::builder())?;
    let mut sources = Vec::new();
    for name in topics {
        sources.push(Source {
            name,
            subscriber: bus.topic(name)?.subscriber_from(from.start())?,
        });
    }
    let framing = if common.json { None } else { Some(*frame) };
    let sink = Sink {
        out: stdout(stop)?,
        framing,
        left: count.unwrap_or(u64::MAX),
        all_gone: false,
    };
    let receiver = Receiver {
        sink: Mutex::new(sink),
        follow: *follow,
        strict: *strict,
        topics,
        bus,
        stop,
    };
    let receiver = &receiver;

    // One thread a topic: what it holds up by a slow stdout, it holds up on its own topic.
    thread::scope(|scope| {
        let threads: Vec<_> = sources
            .into_iter()
            .map(|mut source| scope.spawn(move || receiver.receive(&mut source)))
            .collect();
        let results = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        results.fold(Ok(()), Result::and)
    })
}

/// One topic.
struct Source<'a> {
    name: &'a str,
    subscriber: Subscriber<[u8]>,
}

/// What the threads share.
struct Receiver<'a> {
    sink: Mutex<Sink<'a>>,
    follow: bool,
    strict: bool,
    topics: &'a [String],
    bus: Bus,
    stop: &'a Stop,
}

/// Where whole messages go, one at a time.
struct Sink<'a> {
    out: Output<'a>,
    /// None: JSON.
    framing: Option<Framing>,
    /// How many more messages are wanted.
    left: u64,
    /// The last publisher of all topics has gone: what is still unread is the rest.
    all_gone: bool,
}

/// What came of looking for a message.
enum Next {
    /// A message, or that some are missing.
    Written,
    Nothing,
    Ended,
}

impl<'a> Receiver<'a> {
    fn receive(&self, source: &mut Source<'_>) -> Result<(), Failure> {
        let result = self
            .pump(source)
            .and_then(|()| self.sink().out.flush().map_err(Failure::stdout));
        if result.is_err() {
            self.sink().left = 0; // the other threads shall end, too
        }
        result
    }

    fn pump(&self, Source { name, subscriber }: &mut Source<'_>) -> Result<(), Failure> {
        loop {
            self.stop.check()?;
            let mut next = self.write(name, subscriber.try_recv())?;
            if let Next::Nothing = next {
                let mut sink = self.sink();
                if sink.all_gone || sink.left == 0 {
                    return Ok(());
                }
                sink.out.flush().map_err(Failure::stdout)?;
                drop(sink);
                next = self.write(name, subscriber.recv_timeout(SLICE))?;
            }
            if let Next::Ended = next
                && !self.follow
                && (self.sink().all_gone || self.others_gone(name)?)
            {
                self.sink().all_gone = true;
                return Ok(());
            }
            if self.sink().left == 0 {
                return Ok(());
            }
        }
    }

    /// Writes a message from where it lies.
    fn write(
        &self,
        topic: &str,
        found: Result<Option<Frame<'_>>, buslane::Error>,
    ) -> Result<Next, Failure> {
        let frame = match found {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(Next::Nothing),
            Err(error) if error.kind() == ErrorKind::Ended => return Ok(Next::Ended),
            Err(error) => {
                return match error.lost() {
                    Some(lost) => self.lost(topic, lost, error),
                    None => Err(error.into()),
                };
            }
        };
        let sink = &mut *self.sink();
        if sink.left > 0 {
            match sink.framing {
                Some(framing) => framing
                    .write(&mut sink.out, &frame)
                    .map_err(Failure::stdout)?,
                None => json_line(&mut sink.out, &Line::new(topic, &frame))?,
            }
            sink.left -= 1;
        }
        Ok(Next::Written)
    }

    /// Says what is missing, where it is missing; there it ends, if nothing may be.
    fn lost(&self, topic: &str, lost: Lost, error: buslane::Error) -> Result<Next, Failure> {
        let sink = &mut *self.sink();
        if sink.left == 0 {
            return Ok(Next::Written);
        }
        if sink.framing.is_none() {
            json_line(&mut sink.out, &Gap::new(topic, lost))?;
        }
        if self.strict {
            sink.left = 0; // what other topics have comes after the gap
            sink.out.flush().map_err(Failure::stdout)?;
            return Err(error.into());
        }
        if sink.framing.is_some() {
            let Lost {
                messages, bytes, ..
            } = lost;
            // In its place also where both streams end in one terminal. A closed stderr is no reason to end.
            sink.out.flush().map_err(Failure::stdout)?;
            let _ = writeln!(
                io::stderr(),
                "buslane: {topic}: {messages} messages ({bytes} bytes) lost here"
            );
        }
        Ok(Next::Written)
    }

    /// Whether no other topic has a publisher.
    fn others_gone(&self, name: &str) -> Result<bool, Failure> {
        for other in self.topics.iter().filter(|other| *other != name) {
            if self.bus.inspect(other)?.publishers() > 0 {
                return Ok(false); // its thread will find that it ended, and ask in turn
            }
        }
        Ok(true)
    }

    fn sink(&self) -> MutexGuard<'_, Sink<'a>> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message in JSON.
#[derive(Serialize)]
struct Line<'a> {
    topic: &'a str,
    lane: u64,
    sequence: u32,
    len: usize,
    #[serde(flatten)]
    data: Data<'a>,
}

impl<'a> Line<'a> {
    fn new(topic: &'a str, frame: &'a Frame<'_>) -> Self {
        Self {
            topic,
            lane: frame.lane(),
            sequence: frame.sequence(),
            len: frame.len(),
            data: Data::new(frame),
        }
    }
}

/// What is missing, in JSON.
#[derive(Serialize)]
struct Gap<'a> {
    topic: &'a str,
    lane: u64,
    lost: u64,
    lost_bytes: u64,
}

impl<'a> Gap<'a> {
    fn new(topic: &'a str, lost: Lost) -> Self {
        Self {
            topic,
            lane: lost.lane,
            lost: lost.messages,
            lost_bytes: lost.bytes,
        }
    }
}
