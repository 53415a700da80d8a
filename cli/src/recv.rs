//! `buslane recv`: what is sent to some topics, to stdout.

use std::io::{self, Write};

use buslane::{Bus, ErrorKind, Frame, Lost, Selected, Start, Subscriber};
use clap::ValueEnum;
use serde::Serialize;

use crate::Common;
use crate::failure::Failure;
use crate::framing::Framing;
use crate::output::{Data, EnvelopeJson, Output, json_line, stdout};
use crate::signals::{SLICE, Stop};

/// Write what is sent to topics to stdout
///
/// Like reading a FIFO, it waits for a publisher, and ends when the last one has gone and everything has been read.
/// Unlike with a FIFO, each of several `recv` gets everything.
///
/// In a name, `*` stands for any one segment, `**` for one or more; topics that are made later are received, too.
///
/// On a lossy topic, whose publishers wait for nobody, stderr says what was lost, where it is missing; with --json, an
/// object in its place does.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  buslane recv news                           until its publishers have gone
  buslane recv news weather --follow          two topics, for ever
  buslane recv 'orders/*' --json              orders/eu, orders/us, and what else will come
  buslane recv backup --frame chunk > disk    the bytes as they were sent
  buslane recv news --count 1 --json          one message, with its topic and sequence number
  buslane recv prices --strict                not one of them may be missing
  buslane recv orders --subscription billing --bus /var/lib/shop
                                              on a durable bus: also what was sent while it was away

Exit status 5: something was lost (only with --strict).")]
pub struct Args {
    /// The topics, or patterns of names; those without a `*` are made if there are none of these names
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
    /// Of one topic of a durable bus: go on where the last `recv` with this name was, with what was sent meanwhile; a message counts
    /// as received once it is written
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// With --subscription: pass what is damaged on the disk, and say what was passed
    #[arg(long, requires = "subscription")]
    skip_damaged: bool,
}

/// Where one begins to receive.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum From {
    /// With what is sent from now on
    New,
    /// With the oldest that publishers still hold
    Oldest,
}

impl From {
    /// The same for the library.
    pub fn start(self) -> Start {
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
        subscription,
        skip_damaged,
    } = args;
    let bus = common.open_or_observe(Bus::builder())?;
    let mut sink = Sink {
        out: stdout(stop)?,
        framing: (!common.json).then_some(*frame),
        strict: *strict,
    };
    if let Some(name) = subscription {
        let [topic] = &topics[..] else {
            return Err(Failure::Error(String::from(
                "cannot receive from several topics as one subscription; start one `recv` for each",
            )));
        };
        let topic = bus.topic(topic)?;
        let builder = topic
            .subscription_builder(name)
            .start(from.start())
            .by_ack(true);
        let named = Named {
            subscriber: builder.open()?,
            follow: *follow,
            skip_damaged: *skip_damaged,
        };
        return named.run(&mut sink, count.unwrap_or(u64::MAX), stop);
    }
    // As a FIFO would be there before anyone writes to it.
    for name in topics.iter().filter(|name| !name.contains('*')) {
        if !bus.is_observed() {
            bus.topic(name)?;
        }
    }
    let patterns: Vec<&str> = topics.iter().map(String::as_str).collect();
    let mut selection = bus.select_from(&patterns, from.start())?;
    let mut left = count.unwrap_or(u64::MAX);
    let mut is_idle = false;
    while left > 0 {
        stop.check()?;
        let received = match is_idle {
            true => selection.recv_timeout(SLICE),
            false => selection.try_recv(),
        };
        match received {
            Ok(None) if is_idle => {}
            Ok(None) => {
                sink.out.flush().map_err(Failure::stdout)?;
                is_idle = true;
            }
            Ok(Some(message)) => {
                sink.write(&Line::new(&message), &message)?;
                left -= 1;
                is_idle = false;
            }
            Err(error) if error.kind() == ErrorKind::Ended => {
                if !follow {
                    break;
                }
            }
            Err(error) => match error.lost() {
                Some(lost) => sink.lost(lost, error)?,
                None => return Err(error.into()),
            },
        }
    }
    sink.out.flush().map_err(Failure::stdout)
}

/// A named subscription of a durable topic.
struct Named {
    subscriber: Subscriber,
    follow: bool,
    skip_damaged: bool,
}

impl Named {
    fn run(mut self, sink: &mut Sink<'_>, mut left: u64, stop: &Stop) -> Result<(), Failure> {
        let topic = self.subscriber.topic_name().to_owned();
        let mut is_idle = false;
        while left > 0 {
            stop.check()?;
            match self.pass_on(sink, &topic, is_idle)? {
                Ok(true) => {
                    left -= 1;
                    is_idle = false;
                }
                Ok(false) if is_idle => {}
                Ok(false) => {
                    self.settle(sink)?;
                    is_idle = true;
                }
                Err(error) if error.kind() == ErrorKind::Ended && self.follow => {}
                Err(error) if error.kind() == ErrorKind::Ended => break,
                Err(error) if error.kind() == ErrorKind::Corrupt && self.skip_damaged => {
                    self.settle(sink)?;
                    let passed = self.subscriber.skip_damaged()?;
                    let _ = writeln!(
                        io::stderr(),
                        "buslane: {error}: passed {} messages ({} bytes of lane {})",
                        passed.messages,
                        passed.bytes,
                        passed.lane
                    );
                }
                Err(error) => match error.lost() {
                    Some(lost) => sink.lost(lost, error)?,
                    None => {
                        self.settle(sink)?;
                        return Err(error.into());
                    }
                },
            }
        }
        self.settle(sink)
    }

    /// Writes the next message, if there is one.
    fn pass_on(
        &mut self,
        sink: &mut Sink<'_>,
        topic: &str,
        is_idle: bool,
    ) -> Result<buslane::Result<bool>, Failure> {
        let received = match is_idle {
            true => self.subscriber.recv_timeout(SLICE),
            false => self.subscriber.try_recv(),
        };
        match received {
            Ok(Some(frame)) => {
                sink.write(&Line::of(topic, &frame), &frame)?;
                Ok(Ok(true))
            }
            Ok(None) => Ok(Ok(false)),
            Err(error) => Ok(Err(error)),
        }
    }

    /// What is written counts as received.
    fn settle(&mut self, sink: &mut Sink<'_>) -> Result<(), Failure> {
        sink.out.flush().map_err(Failure::stdout)?;
        Ok(self.subscriber.ack()?)
    }
}

/// Where messages go.
struct Sink<'a> {
    out: Output<'a>,
    /// None: JSON.
    framing: Option<Framing>,
    strict: bool,
}

impl Sink<'_> {
    /// Writes a message from where it lies.
    fn write(&mut self, line: &Line<'_>, message: &[u8]) -> Result<(), Failure> {
        match self.framing {
            Some(framing) => framing
                .write(&mut self.out, message)
                .map_err(Failure::stdout),
            None => json_line(&mut self.out, line),
        }
    }

    /// Says what is missing, where it is missing; there it ends, if nothing may be.
    fn lost(&mut self, lost: Lost, error: buslane::Error) -> Result<(), Failure> {
        if self.framing.is_none() {
            json_line(&mut self.out, &Gap::new(error.on(), lost))?;
        }
        // In its place also where both streams end in one terminal.
        self.out.flush().map_err(Failure::stdout)?;
        if self.strict {
            return Err(error.into());
        }
        if self.framing.is_some() {
            let Lost {
                messages, bytes, ..
            } = lost;
            let topic = error.on();
            // A closed stderr is no reason to end.
            let _ = writeln!(
                io::stderr(),
                "buslane: {topic}: {messages} messages ({bytes} bytes) lost here"
            );
        }
        Ok(())
    }
}

/// A message in JSON.
#[derive(Serialize)]
struct Line<'a> {
    topic: &'a str,
    lane: u64,
    sequence: u32,
    len: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    envelope: Option<EnvelopeJson>,
    #[serde(flatten)]
    data: Data<'a>,
}

impl<'a> Line<'a> {
    fn new(message: &'a Selected<'_>) -> Self {
        Self {
            topic: message.topic(),
            lane: message.lane(),
            sequence: message.sequence(),
            len: message.len(),
            envelope: message.envelope().as_ref().map(EnvelopeJson::new),
            data: Data::new(message),
        }
    }

    fn of(topic: &'a str, frame: &'a Frame<'_>) -> Self {
        Self {
            topic,
            lane: frame.lane(),
            sequence: frame.sequence(),
            len: frame.len(),
            envelope: frame.envelope().as_ref().map(EnvelopeJson::new),
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
