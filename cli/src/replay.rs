//! `buslane replay`: what an MCAP file holds, to its topics again.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use buslane::{Any, Bus, Envelope, ErrorKind, NamePattern, Publisher, Topic};
use mcap::records::{self, MessageHeader};
use serde::Serialize;

use crate::Common;
use crate::failure::Failure;
use crate::feed::in_slices;
use crate::output::{json_line, stdout};
use crate::progress::Progress;
use crate::recording::reader::{End, Found, Reader, Shown};
use crate::recording::{ABOUT, BESIDE, Beside, Count, Gap, LOST, Losses, Shape, VERSION, note};
use crate::signals::{SLICE, Stop};

/// Send what an MCAP file holds
///
/// Each message goes to the topic that it was recorded from, at the time it was, relative to the first one. Topics that are not there
/// are made as they were. Like `send`, it waits for a subscriber of one of them first, and ends when every subscriber has
/// received everything.
///
/// Files of others are sent, too: each channel to a topic of bytes, without the `/` that its name may begin with. What can't be
/// read in a file is said and passed over; of one that was cut off, all that is whole is sent.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  buslane replay orders.mcap                  as it was recorded
  buslane replay orders.mcap --speed 10       ten times as fast; `max` waits for nothing but room
  buslane replay all.mcap --topics 'prices/*' --from 1m --to 2m30s
  buslane replay all.mcap --rename prices=old/prices --no-wait

Exit status 1: it was sent as far as it could be read or sent, which was not all; 4: the last subscriber of a topic left, or died,
before it had received everything.")]
pub struct Args {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How many times as fast as it was recorded; `max`, or 0: as fast as subscribers are
    #[arg(long, default_value = "1", value_name = "X|max")]
    speed: Speed,
    /// Begin this long after its first message, or at this time (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME")]
    from: Option<Moment>,
    /// End this long after its first message, or at this time
    #[arg(long, value_name = "TIME")]
    to: Option<Moment>,
    /// Only topics of this name, or those that match: in place of a segment, `*` stands for any one, `**` for one or more; may be given
    /// several times
    #[arg(long, value_name = "PATTERN", value_parser = NamePattern::parse)]
    topics: Vec<NamePattern>,
    /// Send to NEW what was recorded from OLD, and to NEW/… what was from OLD/…; may be given several times
    #[arg(long = "rename", value_name = "OLD=NEW")]
    renames: Vec<Rename>,
    /// End after N messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Send at once, without waiting for a subscriber
    #[arg(long)]
    no_wait: bool,
}

/// What `--speed` says; `None`: do not wait.
#[derive(Clone, Copy, Debug)]
struct Speed(Option<f64>);

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self(None));
        }
        match text.parse::<f64>() {
            Ok(0.0) => Ok(Self(None)),
            Ok(speed) if speed.is_normal() && speed > 0.0 => Ok(Self(Some(speed))),
            _ => Err("a speed is a number above 0, or `max`".into()),
        }
    }
}

/// What `--from` and `--to` say.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// After the first message.
    After(Duration),
    At(SystemTime),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(after) = humantime::parse_duration(text) {
            return Ok(Self::After(after));
        }
        humantime::parse_rfc3339_weak(text)
            .map(Self::At)
            .map_err(|_| {
                "a time is as `10s` after the first message, or 2026-01-31T12:00:00Z".into()
            })
    }
}

impl Moment {
    /// As log times have it, in a file whose first message has this one.
    fn log_time(self, first: u64) -> u64 {
        match self {
            Self::After(after) => {
                first.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
            }
            Self::At(time) => time
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_nanos() as u64),
        }
    }
}

/// What `--rename` says.
#[derive(Clone, Debug)]
struct Rename {
    old: String,
    new: String,
}

impl FromStr for Rename {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok(Self {
                old: old.trim_start_matches('/').to_owned(),
                new: new.to_owned(),
            }),
            _ => Err("say OLD=NEW".into()),
        }
    }
}

impl Rename {
    /// The new name, if this one is meant.
    fn apply(&self, topic: &str) -> Option<String> {
        match topic.strip_prefix(&self.old)? {
            "" => Some(self.new.clone()),
            rest if rest.starts_with('/') => Some(format!("{}{rest}", self.new)),
            _ => None,
        }
    }
}

/// Sends what is in the file.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let mut reader = Reader::open(&args.file)?;
    let mut replay = Replay {
        bus: common.open(Bus::builder())?,
        args,
        stop,
        outlets: Vec::new(),
        channels: HashMap::new(),
        times: None,
        clock: None,
        is_ours: false,
        beside: None,
        seen: 0,
        sent: Count::default(),
        losses: Losses::new(" here when it was recorded"),
        problems: 0,
        begun: Instant::now(),
    };
    replay.prepare(&mut reader);
    let mut progress = Progress::bytes(Some(reader.len()));
    let end = reader.read(&mut |found| match found {
        Found::Passed(bytes) => {
            progress.add(bytes);
            Ok(ControlFlow::Continue(()))
        }
        found => replay.show(found),
    })?;
    drop(progress);
    if let End::CutOff(at) = end {
        replay.problem(&format!(
            "{}: it was cut off at byte {at}, or is being recorded yet; all that is whole was sent",
            args.file.display()
        ));
    }
    let said = reader.summary().and_then(|summary| summary.stats.as_ref());
    let said = said.map_or(replay.seen, |stats| stats.message_count);
    let is_all_read = args.from.is_none() && args.to.is_none();
    if end == End::Whole && is_all_read && said != replay.seen {
        replay.problem(&format!(
            "{}: it says that it has {said} messages, and {} were found",
            args.file.display(),
            replay.seen
        ));
    }
    replay.finish(common)
}

/// Where messages go.
struct Outlet {
    name: String,
    topic: Topic<Any>,
    /// From its first message on.
    publisher: Option<Publisher<Any>>,
    sent: u64,
    refused: u64,
}

struct Replay<'a> {
    bus: Bus,
    args: &'a Args,
    stop: &'a Stop,
    outlets: Vec<Outlet>,
    /// The topic of each channel, and which of the outlets that is; `None`: none is.
    channels: HashMap<u16, (String, Option<usize>)>,
    /// Log times of messages that are sent; `None`: the first one is not known yet.
    times: Option<Range<u64>>,
    /// When the first message was sent, and its log time.
    clock: Option<(Instant, u64)>,
    /// The file is one of buslane's, so that its private records are, too.
    is_ours: bool,
    /// What goes with the next message.
    beside: Option<Envelope>,
    /// Messages in the file, so far.
    seen: u64,
    sent: Count,
    losses: Losses,
    /// What could not be read, or sent.
    problems: u64,
    begun: Instant,
}

/// What was sent.
#[derive(Serialize)]
struct Summary {
    topics: usize,
    messages: u64,
    bytes: u64,
    /// When it was recorded, as far as the file was read.
    lost: u64,
    lost_bytes: u64,
    /// All of it could be read, and sent.
    whole: bool,
    seconds: f64,
}

impl Replay<'_> {
    /// Takes from the summary what is known beforehand.
    fn prepare(&mut self, reader: &mut Reader) {
        let Some(summary) = reader.summary() else {
            return;
        };
        let mut channels: Vec<_> = summary.channels.values().cloned().collect();
        channels.sort_unstable_by_key(|channel| channel.id);
        let stats = summary.stats.as_ref();
        let first = stats.map(|stats| stats.message_start_time);
        // If not, they are in any of the chunks.
        let has_all = stats.is_some_and(|stats| stats.channel_count as usize == channels.len());
        for channel in channels {
            self.add_channel(channel.id, &channel.topic, &channel.metadata);
        }
        if let Some(first) = first {
            let times = self.times(first).clone();
            if has_all {
                reader.want(times);
            }
        }
    }

    /// Log times of messages that are sent, of a file whose first one has this.
    fn times(&mut self, first: u64) -> &Range<u64> {
        let Args { from, to, .. } = self.args;
        self.times.get_or_insert_with(|| {
            let log_time = |moment: &Moment| moment.log_time(first);
            from.as_ref().map_or(0, log_time)..to.as_ref().map_or(u64::MAX, log_time)
        })
    }

    /// Says what is not as it should be.
    fn problem(&mut self, what: &str) {
        self.problems += 1;
        note(what);
    }

    fn show(&mut self, found: Found<'_>) -> Shown {
        self.stop.check()?;
        match found {
            Found::Channel(channel) => {
                let records::Channel {
                    id,
                    topic,
                    metadata,
                    ..
                } = channel;
                if !self.channels.contains_key(&id) {
                    self.add_channel(id, &topic, &metadata);
                }
            }
            Found::Message(header, payload) => return self.send(&header, payload),
            Found::Metadata(metadata) if metadata.name == ABOUT => {
                self.is_ours =
                    metadata.metadata.get(VERSION.0).map(String::as_str) == Some(VERSION.1);
                if !self.is_ours {
                    let what = "it was recorded by another version of buslane, whose envelopes are left out";
                    self.problem(&format!("{}: {what}", self.args.file.display()));
                }
            }
            Found::Private(BESIDE, bytes) if self.is_ours => match Beside::decode(bytes) {
                Some(beside) => self.beside = beside.envelope,
                None => self.problem("a message's envelope can't be read, and was left out"),
            },
            Found::Private(LOST, bytes) if self.is_ours => {
                if let Some(gap) = Gap::decode(bytes)
                    && let Some((topic, Some(_))) = self.channels.get(&gap.channel)
                    && self
                        .times
                        .as_ref()
                        .is_none_or(|times| times.contains(&gap.log_time))
                {
                    self.losses.add(topic, gap.messages, gap.bytes);
                }
            }
            Found::Damage(at, why) => {
                let file = self.args.file.display();
                self.problem(&format!("{file}: at byte {at}: {why}; passed over"));
            }
            Found::Metadata(_) | Found::Private(..) | Found::Passed(_) => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A channel of the file, and where its messages go.
    fn add_channel(&mut self, id: u16, recorded: &str, metadata: &BTreeMap<String, String>) {
        let recorded = recorded.trim_start_matches('/');
        let Args {
            topics, renames, ..
        } = self.args;
        let is_meant = topics.is_empty() || topics.iter().any(|pattern| pattern.matches(recorded));
        let outlet = is_meant.then(|| {
            let renamed = renames.iter().find_map(|rename| rename.apply(recorded));
            let name = renamed.unwrap_or_else(|| recorded.to_owned());
            self.outlet(name, Shape::from_metadata(metadata))
        });
        let outlet = outlet.flatten();
        self.channels.insert(id, (recorded.to_owned(), outlet));
    }

    fn outlet(&mut self, name: String, shape: Option<Shape>) -> Option<usize> {
        if let Some(at) = self.outlets.iter().position(|outlet| outlet.name == name) {
            return Some(at);
        }
        match self.open(&name, shape) {
            Ok(topic) => {
                self.outlets.push(Outlet {
                    name,
                    topic,
                    publisher: None,
                    sent: 0,
                    refused: 0,
                });
                Some(self.outlets.len() - 1)
            }
            Err(error) => {
                self.problem(&format!("{error}; its messages are left out"));
                None
            }
        }
    }

    /// Opens a topic; one that is not there is made as it was.
    fn open(&self, name: &str, shape: Option<Shape>) -> buslane::Result<Topic<Any>> {
        let builder = self.bus.topic_builder(name);
        let Some(shape) = shape else {
            return builder.open_any();
        };
        match builder.clone().create(false).open_described(&shape.carries) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => return opened,
        }
        let builder = builder.lossy(shape.is_lossy);
        match shape.capacity.filter(|_| !self.bus.is_durable()) {
            Some(capacity) => builder.capacity(capacity),
            None => builder,
        }
        .open_described(&shape.carries)
    }

    /// Sends a message when it is due.
    fn send(&mut self, header: &MessageHeader, payload: &[u8]) -> Shown {
        self.seen += 1;
        let envelope = self.beside.take();
        let is_meant = self.times(header.log_time).contains(&header.log_time);
        let Some((_, outlet)) = self.channels.get(&header.channel_id) else {
            let id = header.channel_id;
            self.problem(&format!(
                "the file does not say which topic channel {id} is; its messages are left out"
            ));
            self.channels.insert(id, (String::new(), None));
            return Ok(ControlFlow::Continue(()));
        };
        let (Some(outlet), true) = (*outlet, is_meant) else {
            return Ok(ControlFlow::Continue(()));
        };
        if self.args.count == Some(0) {
            return Ok(ControlFlow::Break(()));
        }
        self.wait_until_due(header.log_time)?;
        let outlet = &mut self.outlets[outlet];
        if outlet.publisher.is_none() {
            match outlet.topic.publisher() {
                Ok(publisher) => outlet.publisher = Some(publisher),
                // The others may be as they should.
                Err(error) => {
                    if let Some((_, outlet)) = self.channels.get_mut(&header.channel_id) {
                        *outlet = None;
                    }
                    self.problem(&format!("{error}; its messages are left out"));
                    return Ok(ControlFlow::Continue(()));
                }
            }
        }
        let Some(publisher) = &mut outlet.publisher else {
            return Ok(ControlFlow::Continue(()));
        };
        let sent = in_slices(self.stop, || {
            let sent = publisher.send_any(envelope.as_ref(), payload, Some(SLICE));
            match sent {
                // The others may be as they should.
                Err(error) if matches!(error.kind(), ErrorKind::TooLong | ErrorKind::Mismatch) => {
                    Ok(Err(error))
                }
                sent => sent.map(Ok),
            }
        })?;
        match sent {
            Ok(()) => {
                outlet.sent += 1;
                self.sent.add(1, payload.len() as u64);
            }
            Err(error) => {
                outlet.refused += 1;
                if outlet.refused == 1 {
                    self.problem(&error.to_string());
                }
            }
        }
        match self.args.count {
            Some(count) if self.sent.messages >= count => Ok(ControlFlow::Break(())),
            _ => Ok(ControlFlow::Continue(())),
        }
    }

    /// Waits for the time of a message; before the first one, for a subscriber.
    fn wait_until_due(&mut self, log_time: u64) -> Result<(), Failure> {
        let Some((begun, first)) = self.clock else {
            if !self.args.no_wait {
                self.wait_for_subscriber()?;
            }
            self.clock = Some((Instant::now(), log_time));
            return Ok(());
        };
        let Speed(Some(speed)) = self.args.speed else {
            return Ok(());
        };
        // One that was recorded before the first is late already.
        let after = Duration::from_nanos(log_time.saturating_sub(first));
        let after = Duration::try_from_secs_f64(after.as_secs_f64() / speed);
        let due = after.ok().and_then(|after| begun.checked_add(after));
        loop {
            self.stop.check()?;
            let left = due.map_or(SLICE, |due| due.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(());
            }
            let slept = self.stop.sleep(left.min(SLICE));
            slept.map_err(Failure::system("wait"))?;
        }
    }

    /// Waits until one of the topics has a subscriber, as far as they are known. What is durable waits for nobody.
    fn wait_for_subscriber(&mut self) -> Result<(), Failure> {
        if self.outlets.iter().any(|outlet| outlet.topic.is_durable()) {
            return Ok(());
        }
        let watched = self.outlets.iter().map(|outlet| outlet.topic.presence());
        let mut watched = watched.collect::<Result<Vec<_>, _>>()?;
        let count = watched.len();
        let slice = match count {
            1 => SLICE,
            // There is no wait for many of them.
            _ => LOOK_AGAIN / count as u32,
        };
        loop {
            self.stop.check()?;
            for presence in &mut watched {
                match presence.wait_for_subscribers(1, Some(slice)) {
                    Err(error) if error.kind() == ErrorKind::TimedOut => continue,
                    there => there?,
                }
                if count > 1 {
                    let slept = self.stop.sleep(JOINING);
                    slept.map_err(Failure::system("wait"))?;
                }
                return Ok(());
            }
        }
    }

    /// Waits until everything is received, and says what it was.
    fn finish(mut self, common: &Common) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for outlet in &mut self.outlets {
            let Some(publisher) = &mut outlet.publisher else {
                continue;
            };
            if outlet.topic.is_durable() {
                publisher.sync()?;
            }
            match in_slices(self.stop, || publisher.wait_delivered(Some(SLICE))) {
                // It finds the rest when it comes back.
                Err(_) if outlet.topic.is_durable() => self.stop.check()?,
                delivered => outcome = outcome.and(delivered),
            }
            if outlet.refused > 0 {
                let Outlet { name, refused, .. } = outlet;
                note(&format!("{name}: {refused} messages were left out"));
            }
        }
        self.stop.check()?;
        self.losses.tell_rest();
        let lost = self.losses.total();
        if common.json {
            let mut out = stdout(self.stop)?;
            let summary = Summary {
                topics: self.outlets.iter().filter(|outlet| outlet.sent > 0).count(),
                messages: self.sent.messages,
                bytes: self.sent.bytes,
                lost: lost.messages,
                lost_bytes: lost.bytes,
                whole: self.problems == 0,
                seconds: self.begun.elapsed().as_secs_f64(),
            };
            json_line(&mut out, &summary)?;
            out.flush().map_err(Failure::stdout)?;
        }
        match self.problems {
            0 => outcome,
            _ => outcome.and(Err(Failure::Error(format!(
                "not all of {} was sent",
                self.args.file.display()
            )))),
        }
    }
}

/// How long who subscribes by a pattern may take from the first topic to the last: topics are joined one after the other.
const JOINING: Duration = Duration::from_millis(100);
/// How long looking at all of many topics takes.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
