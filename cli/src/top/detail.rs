//! One topic: its lanes, its readers, who does what, and for how long messages wait.

use std::time::Duration;

use buslane::{CursorReport, GroupReport, LaneReport, OwnerReport};
use hdrhistogram::Histogram;
use ratatui::style::Style;
use ratatui::text::Line;

use super::watch::Topic;
use crate::output::table;
use crate::short;
use crate::size;

/// What there is to say of a topic but for how long messages wait.
pub fn facts(topic: &Topic) -> Vec<Line<'static>> {
    let report = &topic.now;
    let rates = topic.rates();
    let mut lines = vec![
        Line::from(format!(
            "{} of {}, {} a lane; publishers {}, subscribers {}",
            report.pattern,
            report.type_name,
            size::human(report.capacity),
            report.publishers(),
            report.subscribers(),
        )),
        Line::from(format!(
            "{} msg/s, {}/s; lag {}, lost {}; so far {} messages, {}",
            rate(rates.map(|(messages, _)| messages)),
            byte_rate(rates),
            short::count(report.lag() as f64),
            short::count(report.lost() as f64),
            short::count(report.messages() as f64),
            size::human(report.bytes()),
        )),
    ];
    if let Some(durable) = report.durable {
        let poisoned = match durable.is_poisoned {
            true => "; a sync has failed",
            false => "",
        };
        lines.push(Line::from(format!(
            "durable, synced {}{poisoned}; kept {}",
            durable.sync, durable.keep
        )));
    }
    section(
        &mut lines,
        &[
            "LANE", "OWNER", "MSG/S", "BYTES/S", "MESSAGES", "NEWEST", "",
        ],
        report.lanes.iter().map(|lane| of_lane(topic, lane)),
    );
    section(
        &mut lines,
        &[
            "GROUP", "CONS", "SLEEP", "ACK/S", "UNACK", "OLDEST", "WAITED", "HELD BY",
        ],
        report.groups.iter().map(|group| of_group(topic, group)),
    );
    section(
        &mut lines,
        &["CURSOR", "OWNER", "MSG/S", "LAG", "LOST", "WAITED", ""],
        report.cursors.iter().map(|cursor| of_cursor(topic, cursor)),
    );
    section(
        &mut lines,
        &[
            "OWNER",
            "LANES",
            "SENDS/S",
            "CURSORS",
            "RECEIVES/S",
            "LAG",
            "LOST",
        ],
        report.owners().iter().map(|of| of_owner(topic, of)),
    );
    lines
}

fn section(
    lines: &mut Vec<Line<'static>>,
    header: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) {
    let mut all = vec![header.iter().copied().map(String::from).collect()];
    all.extend(rows);
    if all.len() == 1 {
        return;
    }
    let mut text = Vec::new();
    // Fails only for what can't be written to.
    let _ = table(&mut text, &all);
    lines.push(Line::default());
    let text = String::from_utf8_lossy(&text);
    let mut rows = text.lines().map(|row| Line::from(row.to_owned()));
    lines.extend(rows.next().map(|header| header.style(Style::new().bold())));
    lines.extend(rows);
}

fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".into(), short::count)
}

fn byte_rate(rates: Option<(f64, f64)>) -> String {
    rates.map_or_else(|| "-".into(), |(_, bytes)| short::bytes(bytes))
}

fn time(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".into(), short::span)
}

fn of_lane(topic: &Topic, lane: &LaneReport) -> Vec<String> {
    let rates = topic.lane_rates(lane);
    let state = match lane {
        LaneReport { waiting: true, .. } => "waits",
        LaneReport { closed: true, .. } => "closed",
        _ => "",
    };
    vec![
        lane.id.to_string(),
        short::owner(&lane.owner),
        rate(rates.map(|(messages, _)| messages)),
        byte_rate(rates),
        short::count(lane.messages as f64),
        match lane.newest_age {
            Some(age) => short::span(age) + " ago",
            None => String::from("-"),
        },
        state.into(),
    ]
}

fn of_group(topic: &Topic, group: &GroupReport) -> Vec<String> {
    let oldest = group.oldest();
    vec![
        group.name.clone(),
        group.consumers.to_string(),
        group.sleeping.to_string(),
        rate(topic.group_rate(group)),
        short::count(group.unacked as f64),
        oldest.map_or_else(
            || "-".into(),
            |at| format!("{} in lane {}", at.sequence, at.lane),
        ),
        time(group.waited()),
        oldest.map_or_else(String::new, |at| match topic.now.holder(at) {
            Some(owner) => format!("{}, try {}", short::owner(owner), at.attempts),
            None => String::from("nobody"),
        }),
    ]
}

fn of_cursor(topic: &Topic, cursor: &CursorReport) -> Vec<String> {
    let mut state = Vec::new();
    if let Some(group) = &cursor.group {
        state.push(format!("consumer of {group}"));
    }
    if let Some(name) = &cursor.name {
        state.push(format!("subscription {name}"));
    }
    if cursor.away {
        state.push("away".into());
    }
    if cursor.sleeping {
        state.push("sleeps".into());
    }
    let is_consumer = cursor.group.is_some();
    let some = |shown: String| if is_consumer { "-".into() } else { shown };
    vec![
        cursor.id.to_string(),
        short::owner(&cursor.owner),
        some(rate(topic.cursor_rate(cursor))),
        some(short::count(cursor.lag() as f64)),
        some(short::count(cursor.lost() as f64)),
        time(cursor.waited()),
        state.join(", "),
    ]
}

fn of_owner(topic: &Topic, of: &OwnerReport) -> Vec<String> {
    let rates = topic.owner_rates(&of.owner);
    vec![
        short::owner(&of.owner),
        of.lanes.to_string(),
        rate(rates.map(|(sends, _)| sends)),
        of.cursors.to_string(),
        rate(rates.map(|(_, receives)| receives)),
        short::count(of.lag as f64),
        short::count(of.lost as f64),
    ]
}

/// The ends of the bars of the histogram, in nanoseconds.
const ENDS: [u64; 8] = {
    let mut ends = [1; 8];
    let mut i = 0;
    while i < ends.len() {
        ends[i] = 1000 * 10_u64.pow(i as u32);
        i += 1;
    }
    ends
};

/// For how long messages wait, as bars in so many columns.
pub fn latency(topic: &Topic, width: u16) -> Vec<Line<'static>> {
    let Some(latency) = &topic.latency else {
        return vec![
            Line::from("LATENCY").style(Style::new().bold()),
            Line::from("no message says when it was sent"),
        ];
    };
    let quantile =
        |quantile| short::span(Duration::from_nanos(latency.value_at_quantile(quantile)));
    let mut lines = vec![
        Line::from("LATENCY").style(Style::new().bold()),
        Line::from(format!(
            "p50 {}, p90 {}, p99 {}, most {}, of {}",
            quantile(0.5),
            quantile(0.9),
            quantile(0.99),
            quantile(1.0),
            latency.len(),
        )),
    ];
    let counts = counts(latency);
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let room = u64::from(width.saturating_sub(18));
    for (title, count) in counts {
        let full = if most == 0 {
            0
        } else {
            (count * room).div_ceil(most)
        };
        let bar = "█".repeat(full as usize);
        lines.push(Line::from(format!(
            "{title:>8} {:>6} {bar}",
            short::count(count as f64)
        )));
    }
    lines
}

/// How many fall below each end, and not below the one before.
fn counts(latency: &Histogram<u32>) -> Vec<(String, u64)> {
    let label = |ns| short::span(Duration::from_nanos(ns)).replace(".0", "");
    let mut counts = vec![(String::from("0"), u64::from(latency.count_at(0)))];
    let mut from = 1;
    for end in ENDS {
        let count = latency.count_between(from, end - 1);
        counts.push((format!("< {}", label(end)), count));
        // Values that share a place in the histogram are counted once, with the lower ones.
        from = latency.next_non_equivalent(end - 1);
    }
    let count = latency.count_between(from, u64::MAX);
    counts.push((format!("≥ {}", label(ENDS[ENDS.len() - 1])), count));
    counts
}
