//! `buslane inspect`: one topic whole.

use std::io::Write;
use std::time::Duration;

use buslane::{
    CursorReport, GroupPosition, GroupReport, LaneReport, Owner, OwnerReport, Seen, TableReport,
    TopicReport,
};
use serde::Serialize;

use crate::Common;
use crate::failure::Failure;
use crate::ls::{Summary, open_to_look};
use crate::output::{Data, EnvelopeJson, Output, json_line, stdout, table};
use crate::short;
use crate::signals::Stop;
use crate::size;

/// Show one topic whole: its configuration, its lanes and cursors, and who owns them
///
/// A lane is what one publisher writes, a cursor is how far one subscriber has read each lane. Positions are in bytes
/// since the lane began. Looking slows nobody.
///
/// WAITED is how long the oldest message that a reader has not released, or acknowledged, has been waiting, where messages
/// carry the time when they were sent. Readers say from time to time, and when idle, what they have released.
#[derive(clap::Args)]
pub struct Args {
    /// The topic
    #[arg(value_name = "TOPIC")]
    topic: String,
    /// Also show its last N messages, as far as they are still held
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
}

/// Prints the report.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let report = open_to_look(common)?.inspect(&args.topic)?;
    let tail = args.tail.map(|n| report.tail(n));
    let mut out = stdout(stop)?;
    if common.json {
        let owners = report.owners();
        json_line(&mut out, &Whole::new(&report, &owners, tail.as_deref()))?;
    } else {
        people(&mut out, &report, tail.as_deref())?;
    }
    out.flush().map_err(Failure::stdout)
}

#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    summary: Summary<'a>,
    capacity: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    durable: Option<DurableJson>,
    lanes: Vec<LaneJson<'a>>,
    cursors: Vec<CursorJson<'a>>,
    /// Of a state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tables: Vec<TableJson<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<GroupJson<'a>>,
    owners: Vec<OwnerReportJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tail: Option<Vec<SeenJson<'a>>>,
}

#[derive(Serialize)]
struct LaneJson<'a> {
    id: u64,
    owner: OwnerJson<'a>,
    position: u64,
    messages: u64,
    bytes: u64,
    waiting: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    newest_age_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<KeptJson<'a>>,
}

#[derive(Serialize)]
struct DurableJson {
    sync: String,
    keep: String,
    poisoned: bool,
}

#[derive(Serialize)]
struct KeptJson<'a> {
    files: &'a [u64],
    oldest: u64,
    synced: u64,
    unsynced: u64,
}

#[derive(Serialize)]
struct CursorJson<'a> {
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription: Option<&'a str>,
    owner: OwnerJson<'a>,
    /// Over all lanes.
    position: u64,
    sleeping: bool,
    /// Of a consumer.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_ns: Option<u64>,
    positions: Vec<PositionJson>,
}

#[derive(Serialize)]
struct TableJson<'a> {
    id: u64,
    owner: OwnerJson<'a>,
    keys: u64,
    capacity: u64,
}

#[derive(Serialize)]
struct GroupJson<'a> {
    name: &'a str,
    consumers: usize,
    /// Consumers that wait for a message.
    sleeping: usize,
    unacked: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest: Option<OldestJson<'a>>,
}

/// The oldest message that is not acknowledged.
#[derive(Serialize)]
struct OldestJson<'a> {
    lane: u64,
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<OwnerJson<'a>>,
    attempts: u64,
}

#[derive(Serialize)]
struct OwnerReportJson<'a> {
    #[serde(flatten)]
    owner: OwnerJson<'a>,
    lanes: usize,
    messages: u64,
    bytes: u64,
    waiting: usize,
    cursors: usize,
    sleeping: usize,
    lag: u64,
    lost: u64,
}

#[derive(Serialize)]
struct PositionJson {
    lane: u64,
    position: u64,
    sequence: u64,
    lag: u64,
    lost: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_ns: Option<u64>,
}

#[derive(Serialize)]
struct OwnerJson<'a> {
    pid: u32,
    name: &'a str,
    alive: bool,
}

impl<'a> OwnerJson<'a> {
    fn new(owner: &'a Owner) -> Self {
        Self {
            pid: owner.pid,
            name: &owner.name,
            alive: owner.alive,
        }
    }
}

fn nanoseconds(time: Option<Duration>) -> Option<u64> {
    time.map(|time| time.as_nanos() as u64)
}

#[derive(Serialize)]
struct SeenJson<'a> {
    lane: u64,
    sequence: u64,
    len: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    envelope: Option<EnvelopeJson>,
    #[serde(flatten)]
    data: Data<'a>,
}

impl<'a> Whole<'a> {
    fn new(report: &'a TopicReport, owners: &'a [OwnerReport], tail: Option<&'a [Seen]>) -> Self {
        let lane = |lane: &'a LaneReport| LaneJson {
            id: lane.id,
            owner: OwnerJson::new(&lane.owner),
            position: lane.position,
            messages: lane.messages,
            bytes: lane.bytes,
            waiting: lane.waiting,
            newest_age_ns: nanoseconds(lane.newest_age),
            kept: lane.kept.as_ref().map(|kept| KeptJson {
                files: &kept.files,
                oldest: kept.oldest,
                synced: kept.synced,
                unsynced: kept.unsynced,
            }),
        };
        let cursor = |cursor: &'a CursorReport| CursorJson {
            id: cursor.id,
            subscription: cursor.name.as_deref(),
            owner: OwnerJson::new(&cursor.owner),
            position: cursor.positions.iter().map(|at| at.position).sum(),
            sleeping: cursor.sleeping,
            group: cursor.group.as_deref(),
            waited_ns: nanoseconds(cursor.waited()),
            positions: cursor
                .positions
                .iter()
                .map(|at| PositionJson {
                    lane: at.lane,
                    position: at.position,
                    sequence: at.sequence,
                    lag: at.lag,
                    lost: at.lost,
                    waited_ns: nanoseconds(at.waited),
                })
                .collect(),
        };
        let table = |table: &'a TableReport| TableJson {
            id: table.id,
            owner: OwnerJson::new(&table.owner),
            keys: table.keys,
            capacity: table.capacity,
        };
        let oldest = |at: &GroupPosition| OldestJson {
            lane: at.lane,
            sequence: at.sequence,
            waited_ns: nanoseconds(at.waited),
            holder: report.holder(at).map(OwnerJson::new),
            attempts: at.attempts,
        };
        let group = |group: &'a GroupReport| GroupJson {
            name: &group.name,
            consumers: group.consumers,
            sleeping: group.sleeping,
            unacked: group.unacked,
            oldest: group.oldest().map(oldest),
        };
        let of_owner = |of: &'a OwnerReport| OwnerReportJson {
            owner: OwnerJson::new(&of.owner),
            lanes: of.lanes,
            messages: of.messages,
            bytes: of.bytes,
            waiting: of.waiting,
            cursors: of.cursors,
            sleeping: of.sleeping,
            lag: of.lag,
            lost: of.lost,
        };
        let seen = |seen: &'a Seen| SeenJson {
            lane: seen.lane,
            sequence: seen.sequence,
            len: seen.payload.len(),
            envelope: seen.envelope.as_ref().map(EnvelopeJson::new),
            data: Data::new(&seen.payload),
        };
        Self {
            summary: Summary::new(report),
            capacity: report.capacity,
            durable: report.durable.map(|durable| DurableJson {
                sync: durable.sync.to_string(),
                keep: durable.keep.to_string(),
                poisoned: durable.is_poisoned,
            }),
            lanes: report.lanes.iter().map(lane).collect(),
            cursors: report.cursors.iter().map(cursor).collect(),
            tables: report.tables.iter().map(table).collect(),
            groups: report.groups.iter().map(group).collect(),
            owners: owners.iter().map(of_owner).collect(),
            tail: tail.map(|tail| tail.iter().map(seen).collect()),
        }
    }
}

fn people(
    out: &mut Output<'_>,
    report: &TopicReport,
    tail: Option<&[Seen]>,
) -> Result<(), Failure> {
    let row = |cells: &[&str]| {
        cells
            .iter()
            .map(|cell| String::from(*cell))
            .collect::<Vec<_>>()
    };

    let mut rows = vec![
        vec!["topic".into(), report.name.clone()],
        vec!["pattern".into(), report.pattern.into()],
        vec!["type".into(), report.type_name.clone()],
        vec![
            "capacity".into(),
            format!("{} a lane", size::human(report.capacity)),
        ],
        vec![
            "messages".into(),
            format!("{}, {}", report.messages(), size::human(report.bytes())),
        ],
        vec!["lag".into(), format!("{} messages", report.lag())],
        vec!["lost".into(), format!("{} messages", report.lost())],
    ];
    if let Some(durable) = report.durable {
        let poisoned = if durable.is_poisoned {
            "; a sync has failed"
        } else {
            ""
        };
        rows.push(vec!["synced".into(), format!("{}{poisoned}", durable.sync)]);
        rows.push(vec!["kept".into(), durable.keep.to_string()]);
    }
    table(out, &rows)?;

    rows = vec![row(&[
        "LANE", "OWNER", "POSITION", "MESSAGES", "BYTES", "NEWEST", "",
    ])];
    for lane in &report.lanes {
        rows.push(vec![
            lane.id.to_string(),
            short::owner(&lane.owner),
            lane.position.to_string(),
            lane.messages.to_string(),
            lane.bytes.to_string(),
            time(lane.newest_age.map(|age| (age, " ago"))),
            match lane {
                LaneReport { closed: true, .. } => "closed".into(),
                LaneReport { waiting: true, .. } => "waiting for a reader".into(),
                _ => String::new(),
            },
        ]);
    }
    section(out, &rows)?;

    rows = vec![row(&["LANE", "FILES", "OLDEST", "SYNCED", "UNSYNCED"])];
    for lane in &report.lanes {
        if let Some(kept) = &lane.kept {
            rows.push(vec![
                lane.id.to_string(),
                match &kept.files[..] {
                    [] => String::from("none"),
                    [one] => one.to_string(),
                    [first, .., last] => format!("{first}–{last}"),
                },
                kept.oldest.to_string(),
                kept.synced.to_string(),
                size::human(kept.unsynced),
            ]);
        }
    }
    section(out, &rows)?;

    rows = vec![row(&[
        "CURSOR", "OWNER", "LANE", "POSITION", "LAG", "LOST", "WAITED", "",
    ])];
    for cursor in &report.cursors {
        let mut state = Vec::new();
        state.extend(
            cursor
                .name
                .iter()
                .map(|name| format!("subscription {name}")),
        );
        state.extend(
            cursor
                .group
                .iter()
                .map(|group| format!("consumer of {group}")),
        );
        state.extend(cursor.away.then(|| String::from("away")));
        state.extend(cursor.sleeping.then(|| String::from("sleeping")));
        let state = state.join(", ");
        if cursor.positions.is_empty() {
            rows.push(row(&[
                &cursor.id.to_string(),
                &short::owner(&cursor.owner),
                "-",
                "-",
                "-",
                "-",
                "-",
                &state,
            ]));
        }
        for at in &cursor.positions {
            rows.push(vec![
                cursor.id.to_string(),
                short::owner(&cursor.owner),
                at.lane.to_string(),
                at.position.to_string(),
                at.lag.to_string(),
                at.lost.to_string(),
                time(at.waited.map(|waited| (waited, ""))),
                state.clone(),
            ]);
        }
    }
    section(out, &rows)?;

    rows = vec![row(&["TABLE", "OWNER", "KEYS", "OF"])];
    for table in &report.tables {
        rows.push(vec![
            table.id.to_string(),
            short::owner(&table.owner),
            table.keys.to_string(),
            table.capacity.to_string(),
        ]);
    }
    section(out, &rows)?;

    rows = vec![row(&[
        "GROUP",
        "CONSUMERS",
        "SLEEPING",
        "UNACKED",
        "OLDEST",
        "WAITED",
        "HELD BY",
    ])];
    for group in &report.groups {
        let oldest = group.oldest();
        let holder = oldest.and_then(|at| Some((report.holder(at)?, at.attempts)));
        rows.push(vec![
            group.name.clone(),
            group.consumers.to_string(),
            group.sleeping.to_string(),
            group.unacked.to_string(),
            oldest.map_or_else(dash, |at| format!("{} in lane {}", at.sequence, at.lane)),
            time(group.waited().map(|waited| (waited, ""))),
            holder.map_or_else(dash, |(holder, attempts)| {
                format!("{}, try {attempts}", short::owner(holder))
            }),
        ]);
    }
    section(out, &rows)?;

    rows = vec![row(&[
        "OWNER", "LANES", "MESSAGES", "BYTES", "WAITING", "CURSORS", "SLEEPING", "LAG", "LOST",
    ])];
    for of in report.owners() {
        rows.push(vec![
            short::owner(&of.owner),
            of.lanes.to_string(),
            of.messages.to_string(),
            of.bytes.to_string(),
            of.waiting.to_string(),
            of.cursors.to_string(),
            of.sleeping.to_string(),
            of.lag.to_string(),
            of.lost.to_string(),
        ]);
    }
    section(out, &rows)?;

    if let Some(tail) = tail {
        rows = vec![row(&["LANE", "SEQUENCE", "KIND", "LENGTH", "MESSAGE"])];
        for seen in tail {
            // Escaped: a message must not be able to command the terminal.
            let text = seen.payload.escape_ascii().to_string();
            let kind = seen
                .envelope
                .as_ref()
                .map_or("-", |envelope| envelope.kind().name());
            rows.push(vec![
                seen.lane.to_string(),
                seen.sequence.to_string(),
                kind.into(),
                seen.payload.len().to_string(),
                text,
            ]);
        }
        section(out, &rows)?;
    }
    Ok(())
}

fn dash() -> String {
    String::from("-")
}

/// A time, if it is known, and what stands behind it.
fn time(time: Option<(Duration, &str)>) -> String {
    time.map_or_else(dash, |(time, behind)| short::span(time) + behind)
}

/// A table after a blank line; without rows under its header, nothing.
fn section(out: &mut Output<'_>, rows: &[Vec<String>]) -> Result<(), Failure> {
    if rows.len() < 2 {
        return Ok(());
    }
    writeln!(out).map_err(Failure::stdout)?;
    table(out, rows)
}
