//! `buslane record`: what is sent to some topics, into an MCAP file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use buslane::{Any, Bus, ErrorKind, NamePattern, PayloadType, Selected, Selection};
use mcap::records::MessageHeader;
use serde::Serialize;

use crate::Common;
use crate::failure::Failure;
use crate::output::{json_line, stdout};
use crate::progress::Progress;
use crate::recording::writer::{Channel, Compression, Writer};
use crate::recording::{Beside, Count, Gap, Losses, OPAQUE, Shape, VERSION, note};
use crate::recv::From;
use crate::signals::{SLICE, Stop};
use crate::size;

/// What was received is in the file after at most so long.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// How long a recorder that is asked to end goes on with what is there.
const DRAIN: Duration = Duration::from_secs(1);

/// Record what is sent to topics into an MCAP file
///
/// Until SIGINT or SIGTERM asks it to end (with status 0), or --count or --duration does. Viewers of MCAP files open it; `buslane
/// replay` sends it again. Topics that are made later are recorded, too.
///
/// Nobody waits for the recorder: if it is too slow, stderr says at once what it lost, and so does the file, where it is
/// missing. With --wait, publishers of lossless topics wait for it, and only on lossy ones something can be lost.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  buslane record 'orders/**' -o orders.mcap   until Ctrl-C
  buslane record '**' -o all.mcap --duration 10m --compression zstd
  buslane record news -o news.mcap --from oldest --count 100
  buslane record 'prices/*' -o prices.mcap --encoding json
                                              so that viewers show what is in them

After a crash the file can be replayed up to there; what is received is in it within a second.

Exit status 5: something was lost (only with --strict).")]
pub struct Args {
    /// The topics, or patterns of names: in place of a segment, `*` stands for any one, `**` for one or more
    #[arg(required = true, value_name = "PATTERN")]
    patterns: Vec<String>,
    /// The file, which must not be there yet
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Where to begin
    #[arg(long, value_enum, default_value = "new")]
    from: From,
    /// End after N messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Have publishers of lossless topics wait for the recorder, so that it loses nothing of them
    #[arg(long)]
    wait: bool,
    /// End with exit status 5 when something was lost
    #[arg(long)]
    strict: bool,
    /// How to compress
    #[arg(long, value_enum, default_value = "none")]
    compression: Compression,
    /// What the messages are, for viewers: json, cbor, msgpack, or another encoding that needs no schema; of the topics that
    /// match PATTERN, or of all. Without it they are bytes
    #[arg(long = "encoding", value_name = "[PATTERN=]NAME")]
    encodings: Vec<Encoding>,
}

/// What `--encoding` says.
#[derive(Clone, Debug)]
struct Encoding {
    /// None: all.
    topics: Option<NamePattern>,
    name: String,
}

impl FromStr for Encoding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (topics, name) = match text.rsplit_once('=') {
            Some((pattern, name)) => (Some(pattern), name),
            None => (None, text),
        };
        let topics = topics.map(NamePattern::parse).transpose();
        let topics = topics.map_err(|error| error.to_string())?;
        if name.is_empty() {
            return Err("an encoding has a name: json, cbor, msgpack".into());
        }
        Ok(Self {
            topics,
            name: name.to_owned(),
        })
    }
}

/// Records until it is to end.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let bus = common.open(Bus::builder())?;
    check_topics(&bus, &args.patterns)?;
    let patterns: Vec<&str> = args.patterns.iter().map(String::as_str).collect();
    let selection = match args.wait {
        true => bus.select_from::<Any>(&patterns, args.from.start())?,
        false => bus.select_lossy::<Any>(&patterns, args.from.start())?,
    };
    let about = BTreeMap::from([
        (VERSION.0.into(), VERSION.1.into()),
        ("bus".into(), bus.path().display().to_string()),
        ("topics".into(), args.patterns.join(" ")),
        ("wait".into(), args.wait.to_string()),
    ]);
    let mut recorder = Recorder {
        writer: Writer::create(&args.output, args.compression, about)?,
        bus,
        encodings: &args.encodings,
        channels: HashMap::new(),
        last: (String::new(), 0),
        begun: Instant::now(),
        begun_at: since_1970(),
        flushed: Duration::ZERO,
        count: Count::default(),
        losses: Losses::new(", for the recorder was too slow"),
        progress: Progress::bytes(None),
        shown: 0,
    };
    let recorded = recorder.run(selection, args, stop);
    let finished = recorder.finish(common, stop);
    recorded.and(finished)
}

/// Says what can't be recorded: an error, if it is named.
fn check_topics(bus: &Bus, patterns: &[String]) -> Result<(), Failure> {
    let mut passed = Vec::new();
    for pattern in patterns {
        for topic in bus.topics_matching(pattern)? {
            let is_pattern = pattern.contains('*');
            match bus.inspect(&topic) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if is_pattern => note(&error.to_string()),
                Err(error) => return Err(error.into()),
                Ok(report) if ["lossless", "lossy"].contains(&report.pattern) => {}
                Ok(report) if is_pattern => {
                    passed.push(format!("{topic} ({})", report.pattern));
                }
                Ok(report) => {
                    return Err(Failure::Error(format!(
                        "cannot record {topic}: it is a {}; record topics that one subscribes to",
                        report.pattern
                    )));
                }
            }
        }
    }
    if !passed.is_empty() {
        note(&format!("not recorded: {}", passed.join(", ")));
    }
    Ok(())
}

struct Recorder<'a> {
    writer: Writer,
    bus: Bus,
    encodings: &'a [Encoding],
    /// By topic.
    channels: HashMap<String, u16>,
    /// The topic of the last message, and its channel.
    last: (String, u16),
    begun: Instant,
    /// Nanoseconds since 1970.
    begun_at: u64,
    /// When that was last done, since it began.
    flushed: Duration,
    count: Count,
    losses: Losses,
    progress: Progress,
    /// Bytes of which the progress is shown.
    shown: u64,
}

/// What was recorded.
#[derive(Serialize)]
struct Summary {
    topics: usize,
    messages: u64,
    bytes: u64,
    lost: u64,
    lost_bytes: u64,
    seconds: f64,
}

impl Recorder<'_> {
    fn run(
        &mut self,
        mut selection: Selection<Any>,
        args: &Args,
        stop: &Stop,
    ) -> Result<(), Failure> {
        for topic in selection.topics().map(String::from).collect::<Vec<_>>() {
            self.channel(&topic)?;
        }
        let most = args.count.unwrap_or(u64::MAX);
        let mut until = args.duration.unwrap_or(Duration::MAX);
        let (mut is_idle, mut is_ending) = (false, false);
        let mut outcome = Ok(());
        let mut told = HashSet::new();
        while self.count.messages < most {
            let elapsed = self.begun.elapsed();
            if stop.take() {
                // What was sent before is recorded; what comes meanwhile is no reason to go on for ever.
                is_ending = true;
                until = until.min(elapsed + DRAIN);
            }
            if elapsed >= until {
                if is_ending && args.duration.is_none_or(|duration| elapsed < duration) {
                    note(
                        "after a second there was still more to receive: the last messages are not in the file",
                    );
                }
                break;
            }
            if elapsed - self.flushed >= FLUSH_AFTER || self.writer.is_due() {
                self.flushed = elapsed;
                self.progress.add(self.count.bytes - self.shown);
                self.shown = self.count.bytes;
                self.writer.flush()?;
            }
            let received = match is_idle && !is_ending {
                true => {
                    let to_flush = FLUSH_AFTER - (elapsed - self.flushed).min(FLUSH_AFTER);
                    selection.recv_timeout(SLICE.min(to_flush).min(until - elapsed))
                }
                false => selection.try_recv(),
            };
            match received {
                Ok(Some(message)) => {
                    self.add(&message)?;
                    is_idle = false;
                }
                Ok(None) if is_ending => break,
                Ok(None) => is_idle = true,
                Err(error) => match (error.kind(), error.lost()) {
                    (_, Some(lost)) => {
                        let gap = Gap {
                            channel: self.channel(error.on())?,
                            log_time: self.now(),
                            lane: lost.lane,
                            messages: lost.messages,
                            bytes: lost.bytes,
                        };
                        self.writer.add_gap(&gap);
                        self.losses.add(error.on(), lost.messages, lost.bytes);
                        if args.strict {
                            return Err(error.into());
                        }
                    }
                    (ErrorKind::Ended, _) => {}
                    // Of one topic, or one lane: the others go on.
                    (ErrorKind::Corrupt | ErrorKind::NoSpace | ErrorKind::TooMany, _) => {
                        // What lasts is met at each look.
                        if told.insert(error.to_string()) {
                            note(&error.to_string());
                        } else {
                            thread::sleep(Duration::from_millis(1));
                        }
                        outcome = Err(Failure::Error("not all could be recorded".into()));
                    }
                    _ => return Err(error.into()),
                },
            }
        }
        outcome
    }

    fn add(&mut self, message: &Selected<'_, Any>) -> Result<(), Failure> {
        let channel_id = self.channel(message.topic())?;
        let envelope = message.envelope();
        let log_time = self.now();
        let sent = envelope.as_ref().and_then(|envelope| envelope.sent());
        let sent = sent.and_then(|sent| sent.duration_since(UNIX_EPOCH).ok());
        let header = MessageHeader {
            channel_id,
            sequence: message.sequence(),
            log_time,
            publish_time: sent.map_or(log_time, |sent| sent.as_nanos() as u64),
        };
        let beside = Beside {
            lane: message.lane(),
            envelope,
        };
        self.writer.add_message(header, &beside, message);
        self.count.add(1, message.len() as u64);
        Ok(())
    }

    /// Now, in nanoseconds since 1970, by a clock that is never set back.
    fn now(&self) -> u64 {
        self.begun_at + self.begun.elapsed().as_nanos() as u64
    }

    /// The channel of a topic, added if it is new.
    fn channel(&mut self, topic: &str) -> Result<u16, Failure> {
        if self.last.0 == topic {
            return Ok(self.last.1);
        }
        let id = match self.channels.get(topic) {
            Some(&id) => id,
            None => self.add_channel(topic)?,
        };
        topic.clone_into(&mut self.last.0);
        self.last.1 = id;
        Ok(id)
    }

    fn add_channel(&mut self, topic: &str) -> Result<u16, Failure> {
        let id = u16::try_from(self.channels.len() + 1).map_err(|_| {
            Failure::Error(format!(
                "cannot record {topic}: a file holds {} topics; record them in several",
                u16::MAX
            ))
        })?;
        let shape = match self.bus.topic_builder(topic).create(false).open_any() {
            Ok(opened) => Some(Shape::of(&opened)),
            // It was removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        let encoding = self.encodings.iter().find(|encoding| {
            let topics = encoding.topics.as_ref();
            topics.is_none_or(|topics| topics.matches(topic))
        });
        let carries = shape.as_ref().map(|shape| &shape.carries);
        let has_type = encoding.is_none() && carries.is_some_and(|it| *it != PayloadType::bytes());
        self.writer.add_channel(Channel {
            id,
            topic: topic.to_owned(),
            encoding: encoding.map_or(OPAQUE, |encoding| &encoding.name).into(),
            schema: carries
                .filter(|_| has_type)
                .map(|carries| (carries.name().to_owned(), carries.to_string())),
            metadata: shape.map(|shape| shape.to_metadata()).unwrap_or_default(),
        });
        self.channels.insert(topic.to_owned(), id);
        Ok(id)
    }

    /// Writes the file's end, and says what is in it.
    fn finish(mut self, common: &Common, stop: &Stop) -> Result<(), Failure> {
        drop(self.progress);
        self.losses.tell_rest();
        let lost = self.losses.total();
        let summary = Summary {
            topics: self.channels.len(),
            messages: self.count.messages,
            bytes: self.count.bytes,
            lost: lost.messages,
            lost_bytes: lost.bytes,
            seconds: self.begun.elapsed().as_secs_f64(),
        };
        self.writer.finish(self.losses.to_metadata())?;
        if common.json {
            let mut out = stdout(stop)?;
            json_line(&mut out, &summary)?;
            return out.flush().map_err(Failure::stdout);
        }
        let Summary {
            topics,
            messages,
            bytes,
            lost,
            seconds,
            ..
        } = summary;
        let bytes = size::human(bytes);
        note(&format!(
            "recorded {messages} messages ({bytes}) of {topics} topics in {seconds:.1}s; {lost} lost"
        ));
        Ok(())
    }
}

fn since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}
