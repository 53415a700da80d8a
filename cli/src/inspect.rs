//! `buslane inspect`: one topic whole.

use std::io::Write;

use buslane::{CursorReport, GroupReport, LaneReport, Owner, Seen, TableReport, TopicReport};
use serde::Serialize;

use crate::Common;
use crate::failure::Failure;
use crate::ls::{Summary, open_existing};
use crate::output::{Data, EnvelopeJson, Output, json_line, stdout, table};
use crate::signals::Stop;
use crate::size;

/// Show one topic whole: its configuration, its lanes and cursors, and who owns them
///
/// A lane is what one publisher writes, a cursor is how far one subscriber has read each lane. Positions are in bytes
/// since the lane began. Looking slows nobody.
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
    let report = open_existing(common)?.inspect(&args.topic)?;
    let tail = args.tail.map(|n| report.tail(n));
    let mut out = stdout(stop)?;
    if common.json {
        json_line(&mut out, &Whole::new(&report, tail.as_deref()))?;
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
    unacked: u64,
}

#[derive(Serialize)]
struct PositionJson {
    lane: u64,
    position: u64,
    lag: u64,
    lost: u64,
}

#[derive(Serialize)]
struct OwnerJson<'a> {
    pid: u32,
    name: &'a str,
    alive: bool,
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
    fn new(report: &'a TopicReport, tail: Option<&'a [Seen]>) -> Self {
        let owner = |owner: &'a Owner| OwnerJson {
            pid: owner.pid,
            name: &owner.name,
            alive: owner.alive,
        };
        let lane = |lane: &'a LaneReport| LaneJson {
            id: lane.id,
            owner: owner(&lane.owner),
            position: lane.position,
            messages: lane.messages,
            bytes: lane.bytes,
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
            owner: owner(&cursor.owner),
            position: cursor.positions.iter().map(|at| at.position).sum(),
            sleeping: cursor.sleeping,
            positions: cursor
                .positions
                .iter()
                .map(|at| PositionJson {
                    lane: at.lane,
                    position: at.position,
                    lag: at.lag,
                    lost: at.lost,
                })
                .collect(),
        };
        let table = |table: &'a TableReport| TableJson {
            id: table.id,
            owner: owner(&table.owner),
            keys: table.keys,
            capacity: table.capacity,
        };
        let group = |group: &'a GroupReport| GroupJson {
            name: &group.name,
            consumers: group.consumers,
            unacked: group.unacked,
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
            tail: tail.map(|tail| tail.iter().map(seen).collect()),
        }
    }
}

fn people(
    out: &mut Output<'_>,
    report: &TopicReport,
    tail: Option<&[Seen]>,
) -> Result<(), Failure> {
    let owner = |owner: &Owner| match owner {
        Owner { alive: true, .. } => format!("{} {}", owner.name, owner.pid),
        Owner { pid: 0, .. } => String::from("gone"),
        _ => format!("{} {} (dead)", owner.name, owner.pid),
    };
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

    rows = vec![row(&["LANE", "OWNER", "POSITION", "MESSAGES", "BYTES", ""])];
    for lane in &report.lanes {
        rows.push(vec![
            lane.id.to_string(),
            owner(&lane.owner),
            lane.position.to_string(),
            lane.messages.to_string(),
            lane.bytes.to_string(),
            if lane.closed {
                "closed".into()
            } else {
                String::new()
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
        "CURSOR", "OWNER", "LANE", "POSITION", "LAG", "LOST", "",
    ])];
    for cursor in &report.cursors {
        let state = match (&cursor.name, cursor.away, cursor.sleeping) {
            (Some(name), true, _) => format!("subscription {name}, away"),
            (Some(name), false, true) => format!("subscription {name}, sleeping"),
            (Some(name), false, false) => format!("subscription {name}"),
            (None, _, true) => String::from("sleeping"),
            (None, ..) => String::new(),
        };
        if cursor.positions.is_empty() {
            rows.push(row(&[
                &cursor.id.to_string(),
                &owner(&cursor.owner),
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
                owner(&cursor.owner),
                at.lane.to_string(),
                at.position.to_string(),
                at.lag.to_string(),
                at.lost.to_string(),
                state.clone(),
            ]);
        }
    }
    section(out, &rows)?;

    rows = vec![row(&["TABLE", "OWNER", "KEYS", "OF"])];
    for table in &report.tables {
        rows.push(vec![
            table.id.to_string(),
            owner(&table.owner),
            table.keys.to_string(),
            table.capacity.to_string(),
        ]);
    }
    section(out, &rows)?;

    rows = vec![row(&["GROUP", "CONSUMERS", "UNACKED"])];
    for group in &report.groups {
        rows.push(vec![
            group.name.clone(),
            group.consumers.to_string(),
            group.unacked.to_string(),
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

/// A table after a blank line; without rows under its header, nothing.
fn section(out: &mut Output<'_>, rows: &[Vec<String>]) -> Result<(), Failure> {
    if rows.len() < 2 {
        return Ok(());
    }
    writeln!(out).map_err(Failure::stdout)?;
    table(out, rows)
}
