//! What several looks at the topics of a bus tell: rates, and for how long messages wait.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use buslane::{Bus, CursorReport, ErrorKind, GroupReport, LaneReport, Owner, TopicReport};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::failure::Failure;
use crate::ls::Summary;

/// The topics of a bus, looked at again and again.
#[derive(Debug)]
pub struct Watch {
    bus: Bus,
    /// Which directory the bus is.
    is: (u64, u64),
    pattern: Option<String>,
    /// By name.
    pub topics: BTreeMap<String, Topic>,
    /// What can't be looked at, and why.
    pub troubles: BTreeMap<String, String>,
}

/// A topic as it was at the last two looks.
#[derive(Debug)]
pub struct Topic {
    /// At the last one.
    pub now: TopicReport,
    at: Instant,
    /// At the one before, and how many seconds lie between.
    before: Option<(TopicReport, f64)>,
    /// For how long the message had been waiting that had waited longest for each reader, at each look; in nanoseconds.
    pub latency: Option<Histogram<u32>>,
}

/// A topic's line of JSON.
#[derive(Serialize)]
pub struct Line<'a> {
    #[serde(flatten)]
    summary: Summary<'a>,
    msgs_per_s: u64,
    bytes_per_s: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Latency>,
}

/// Of the waiting times at all looks so far.
#[derive(Serialize)]
struct Latency {
    samples: u64,
    p50_ns: u64,
    p99_ns: u64,
    max_ns: u64,
}

impl Watch {
    /// Watches those topics of the bus that match a pattern.
    pub fn new(bus: Bus, pattern: Option<String>) -> Result<Self, Failure> {
        let is = identity(&bus).ok_or_else(|| gone(&bus))?;
        Ok(Self {
            bus,
            is,
            pattern,
            topics: BTreeMap::new(),
            troubles: BTreeMap::new(),
        })
    }

    /// Where the bus is.
    pub fn place(&self) -> String {
        self.bus.path().display().to_string()
    }

    /// Looks at all of them.
    pub fn look(&mut self) -> Result<(), Failure> {
        // Who looks for topics in a directory that was removed finds none.
        if identity(&self.bus) != Some(self.is) {
            return Err(gone(&self.bus));
        }
        let names = match &self.pattern {
            Some(pattern) => self.bus.topics_matching(pattern)?,
            None => self.bus.topics()?,
        };
        self.troubles.clear();
        let mut before = std::mem::take(&mut self.topics);
        for name in names {
            let at = Instant::now();
            match self.bus.inspect(&name) {
                Ok(report) => {
                    let topic = Topic::new(report.detached(), at, before.remove(&name));
                    self.topics.insert(name, topic);
                }
                // Removed since it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    self.troubles.insert(name, error.to_string());
                }
            }
        }
        Ok(())
    }
}

fn identity(bus: &Bus) -> Option<(u64, u64)> {
    let found = fs::metadata(bus.path()).ok()?;
    Some((found.dev(), found.ino()))
}

fn gone(bus: &Bus) -> Failure {
    Failure::Error(format!(
        "the bus {} was removed; the next `buslane send` or `buslane recv` makes a new one",
        bus.path().display()
    ))
}

/// Of times up to 28 hours; what is longer counts as that.
fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 100_000_000_000_000, 2).expect("these bounds are allowed")
}

impl Topic {
    fn new(now: TopicReport, at: Instant, last: Option<Self>) -> Self {
        let (before, mut latency) = match last {
            Some(last) => {
                let seconds = (at - last.at).as_secs_f64();
                (Some((last.now, seconds)), last.latency)
            }
            None => (None, None),
        };
        let is_new = |(before, _): &(TopicReport, f64)| before.messages() != now.messages();
        let has_moved = before.as_ref().is_none_or(is_new);
        for waited in now.waits() {
            // While nothing is sent and nothing waits, nothing can be late.
            if has_moved || waited > Duration::ZERO {
                latency
                    .get_or_insert_with(histogram)
                    .saturating_record(waited.as_nanos() as u64);
            }
        }
        Self {
            now,
            at,
            before,
            latency,
        }
    }

    /// Messages, and bytes of payload, sent in a second; `None` after one look.
    pub fn rates(&self) -> Option<(f64, f64)> {
        let mut rates = (0.0, 0.0);
        for lane in &self.now.lanes {
            let (messages, bytes) = self.lane_rates(lane)?;
            rates.0 += messages;
            rates.1 += bytes;
        }
        // That of a topic without lanes is known after two looks, too.
        self.before.is_some().then_some(rates)
    }

    /// The same through one lane.
    pub fn lane_rates(&self, lane: &LaneReport) -> Option<(f64, f64)> {
        let (before, seconds) = self.before.as_ref()?;
        let old = before.lanes.iter().find(|old| old.id == lane.id);
        // A lane that was not there before began at 0.
        let (messages, bytes) = old.map_or((0, 0), |old| (old.messages, old.bytes));
        let rate = |now: u64, before| now.saturating_sub(before) as f64 / seconds;
        Some((rate(lane.messages, messages), rate(lane.bytes, bytes)))
    }

    /// Messages that a reader went on by in a second, without those that it lost.
    pub fn cursor_rate(&self, cursor: &CursorReport) -> Option<f64> {
        let (before, seconds) = self.before.as_ref()?;
        let old = before.cursors.iter().find(|old| old.id == cursor.id)?;
        let received = cursor.positions.iter().filter_map(|at| {
            let old = old.positions.iter().find(|old| old.lane == at.lane)?;
            let lost = at.lost.saturating_sub(old.lost);
            Some(
                at.sequence
                    .saturating_sub(old.sequence)
                    .saturating_sub(lost),
            )
        });
        Some(received.sum::<u64>() as f64 / seconds)
    }

    /// Messages that a group acknowledged in a second: those that have none before them that is not.
    pub fn group_rate(&self, group: &GroupReport) -> Option<f64> {
        let (before, seconds) = self.before.as_ref()?;
        let old = before.groups.iter().find(|old| old.name == group.name)?;
        let acked = group.positions.iter().filter_map(|at| {
            let old = old.positions.iter().find(|old| old.lane == at.lane)?;
            Some(at.sequence.saturating_sub(old.sequence))
        });
        Some(acked.sum::<u64>() as f64 / seconds)
    }

    /// What a process sends, and what it receives, in a second. What a consumer receives is counted by its group alone.
    pub fn owner_rates(&self, owner: &Owner) -> Option<(f64, f64)> {
        self.before.as_ref()?;
        let mut rates = (0.0, 0.0);
        for lane in self.now.lanes.iter().filter(|lane| lane.owner == *owner) {
            rates.0 += self.lane_rates(lane)?.0;
        }
        let cursors = self.now.cursors.iter();
        for cursor in cursors.filter(|cursor| cursor.owner == *owner) {
            rates.1 += self.cursor_rate(cursor).unwrap_or_default();
        }
        Some(rates)
    }

    /// This quantile of the waiting times so far, in nanoseconds.
    pub fn waited_ns(&self, quantile: f64) -> Option<u64> {
        Some(self.latency.as_ref()?.value_at_quantile(quantile))
    }

    /// As it is printed in JSON.
    pub fn line(&self) -> Line<'_> {
        let (messages, bytes) = self.rates().unwrap_or_default();
        Line {
            summary: Summary::new(&self.now),
            msgs_per_s: messages.round() as u64,
            bytes_per_s: bytes.round() as u64,
            waited_ns: self
                .now
                .waits()
                .max()
                .map(|waited| waited.as_nanos() as u64),
            latency: self.latency.as_ref().map(|latency| Latency {
                samples: latency.len(),
                p50_ns: latency.value_at_quantile(0.5),
                p99_ns: latency.value_at_quantile(0.99),
                max_ns: latency.max(),
            }),
        }
    }
}
