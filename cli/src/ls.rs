//! `buslane ls`: the topics of a bus.

use std::collections::HashMap;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use buslane::{Bus, BusBuilder, ErrorKind, TopicReport};
use serde::Serialize;

use crate::Common;
use crate::failure::Failure;
use crate::output::{json_line, stdout, table};
use crate::signals::Stop;
use crate::size;

/// Between the two looks that a rate takes.
const RATE_OVER: Duration = Duration::from_millis(200);

/// List topics
///
/// Rates are in messages a second, over the last 200ms; LAG is how many messages the slowest subscriber has not yet
/// received. Looking slows nobody. `buslane top` goes on looking.
#[derive(clap::Args)]
pub struct Args {
    /// Only the topic of this name, or those that match: `orders/*` one more segment, `orders/**` any
    #[arg(value_name = "PATTERN")]
    pattern: Option<String>,
    /// Also capacity, bytes and messages so far, messages lost, subscribers that sleep, publishers that wait for one, and
    /// messages of a queue that are not acknowledged
    #[arg(long)]
    long: bool,
}

/// A topic in numbers, as `ls` and `inspect` print it in JSON.
#[derive(Debug, Serialize)]
pub struct Summary<'a> {
    topic: &'a str,
    pattern: &'a str,
    r#type: &'a str,
    publishers: usize,
    subscribers: usize,
    bytes: u64,
    messages: u64,
    lag: u64,
    lost: u64,
    /// Subscribers that sleep.
    sleepers: usize,
    /// Publishers that sleep until a subscriber has moved on.
    waiting: usize,
    /// By all groups of a queue.
    unacked: u64,
}

impl<'a> Summary<'a> {
    /// From what the library saw.
    pub fn new(report: &'a TopicReport) -> Self {
        Self {
            topic: &report.name,
            pattern: report.pattern,
            r#type: &report.type_name,
            publishers: report.publishers(),
            subscribers: report.subscribers(),
            bytes: report.bytes(),
            messages: report.messages(),
            lag: report.lag(),
            lost: report.lost(),
            sleepers: report.sleepers(),
            waiting: report.waiting(),
            unacked: report.unacked(),
        }
    }
}

/// Prints the list.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let bus = open_to_look(common)?;
    let names = match &args.pattern {
        Some(pattern) if pattern.contains('*') => bus.topics_matching(pattern)?,
        Some(name) => vec![name.clone()],
        None => bus.topics()?,
    };
    let must_exist = args
        .pattern
        .as_ref()
        .is_some_and(|name| !name.contains('*'));
    let mut out = stdout(stop)?;
    let before = Instant::now();
    let reports = look(&bus, &names, must_exist)?;
    if common.json {
        for report in &reports {
            json_line(&mut out, &Summary::new(report))?;
        }
    } else if reports.is_empty() {
        writeln!(
            out,
            "no topics yet: `buslane send TOPIC` and `buslane recv TOPIC` make them"
        )
        .map_err(Failure::stdout)?;
    } else {
        thread::sleep(RATE_OVER);
        let seconds = before.elapsed().as_secs_f64();
        let later = look(&bus, &names, false)?;
        let rates = rates(&reports, &later, seconds);
        table(&mut out, &rows(&reports, &rates, args.long))?;
    }
    out.flush().map_err(Failure::stdout)
}

/// Opens the bus for a look at it, which makes none, and changes nothing: what the dead have left is to be seen.
pub fn open_to_look(common: &Common) -> Result<Bus, Failure> {
    let builder = Bus::builder().create(false).reclaim(false);
    explained(common, common.open_or_observe(builder))
}

/// Opens a bus that is there.
pub fn open_existing(common: &Common) -> Result<Bus, Failure> {
    open(common, Bus::builder().create(false))
}

/// The same, as `builder` says.
pub fn open(common: &Common, builder: BusBuilder) -> Result<Bus, Failure> {
    explained(common, common.open(builder))
}

fn explained(common: &Common, opened: buslane::Result<Bus>) -> Result<Bus, Failure> {
    opened.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::Error(format!(
            "there is no bus {}; the first `buslane send` or `buslane recv` makes it, or name another with --bus",
            common.bus
        )),
        _ => error.into(),
    })
}

/// One report a topic. One that has been removed since it was listed is left out, unless it `must_exist`.
fn look(bus: &Bus, names: &[String], must_exist: bool) -> Result<Vec<TopicReport>, Failure> {
    let mut reports = Vec::new();
    for name in names {
        match bus.inspect(name) {
            Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => {}
            // Of another user's bus, messages alone can be seen.
            Err(error) if error.kind() == ErrorKind::Unsupported && !must_exist => {}
            report => reports.push(report?),
        }
    }
    Ok(reports)
}

/// Messages a second, by topic.
fn rates<'a>(
    before: &[TopicReport],
    after: &'a [TopicReport],
    seconds: f64,
) -> HashMap<&'a str, f64> {
    let before: HashMap<_, _> = before
        .iter()
        .map(|report| (report.name.as_str(), report.messages()))
        .collect();
    let rate = |report: &'a TopicReport| {
        let sent = report
            .messages()
            .saturating_sub(*before.get(report.name.as_str())?);
        Some((report.name.as_str(), sent as f64 / seconds))
    };
    after.iter().filter_map(rate).collect()
}

fn rows(reports: &[TopicReport], rates: &HashMap<&str, f64>, long: bool) -> Vec<Vec<String>> {
    let mut header = vec![
        "TOPIC",
        "PATTERN",
        "TYPE",
        "PUBLISHERS",
        "SUBSCRIBERS",
        "RATE",
        "LAG",
    ];
    if long {
        header.extend([
            "CAPACITY", "BYTES", "MESSAGES", "LOST", "SLEEPING", "WAITING", "UNACKED",
        ]);
    }
    let mut rows = vec![header.into_iter().map(String::from).collect()];
    for report in reports {
        let summary = Summary::new(report);
        let rate = rates
            .get(summary.topic)
            .map_or_else(|| "-".into(), |rate| format!("{rate:.0}/s"));
        let mut row = vec![
            summary.topic.into(),
            summary.pattern.into(),
            summary.r#type.into(),
            summary.publishers.to_string(),
            summary.subscribers.to_string(),
            rate,
            summary.lag.to_string(),
        ];
        if long {
            row.push(size::human(report.capacity));
            row.push(size::human(summary.bytes));
            row.push(summary.messages.to_string());
            row.push(summary.lost.to_string());
            row.push(summary.sleepers.to_string());
            row.push(summary.waiting.to_string());
            row.push(summary.unacked.to_string());
        }
        rows.push(row);
    }
    rows
}
