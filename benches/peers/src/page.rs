//! The results as a part of a page.

use std::fmt::Write as _;

use buslane_cli::bench::report::Placement;

use crate::goal::{self, show};
use crate::result::{OTHERS, Results, Row};
use crate::section::{SECTIONS, Section};

/// A number of bytes.
pub fn bytes(size: usize) -> String {
    match size {
        0x10_0000.. => format!("{} MiB", size >> 20),
        1024.. => format!("{} KiB", size >> 10),
        _ => format!("{size} B"),
    }
}

/// All of it.
pub fn page(results: &Results, plots: &str) -> String {
    let mut page = String::new();
    machine(&mut page, results);
    ahead(&mut page, results);
    goals(&mut page, results);
    for section in &SECTIONS {
        let rows: Vec<_> = results
            .rows
            .iter()
            .filter(|row| row.section == section.name)
            .collect();
        if !rows.is_empty() {
            chapter(&mut page, section, &rows, plots);
        }
    }
    weights(&mut page, results);
    page
}

macro_rules! say {
    ($page:expr, $($text:tt)*) => {
        // A string takes whatever it is given.
        let _ = writeln!($page, $($text)*);
    };
}

fn table(page: &mut String, heads: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    say!(page, "| {} |", heads.join(" | "));
    say!(page, "|{}", "---|".repeat(heads.len()));
    for row in rows {
        say!(page, "| {} |", row.join(" | "));
    }
    say!(page, "");
}

fn machine(page: &mut String, results: &Results) {
    say!(page, "Made by `{}`.\n", results.command);
    let rows = results
        .machine
        .iter()
        .map(|(what, which)| vec![what.clone(), which.clone()]);
    table(page, &["", ""], rows);
}

/// Where another is better: before anything else.
fn ahead(page: &mut String, results: &Results) {
    say!(page, "### Where a peer is ahead\n");
    let is_ahead = |row: &&Row| {
        let section = SECTIONS.iter().find(|section| section.name == row.section);
        let less = section.is_some_and(Section::is_time);
        OTHERS.contains(&row.transport)
            && (row.buslane.median > 1.0) == less
            && row.buslane.median != 1.0
    };
    let rows: Vec<_> = results.rows.iter().filter(is_ahead).collect();
    if rows.is_empty() {
        say!(
            page,
            "Nowhere in this run, in the median of any size, number of peers, and placement.\n"
        );
        return;
    }
    table(
        page,
        &[
            "what",
            "who",
            "size",
            "peers",
            "placement",
            "rounds",
            "buslane's figure divided by theirs",
        ],
        rows.iter().map(|row| {
            vec![
                row.section.into(),
                row.transport.into(),
                bytes(row.size),
                row.peers.map_or(String::new(), |peers| peers.to_string()),
                row.placement.name().into(),
                row.rounds.to_string(),
                show(row.buslane),
            ]
        }),
    );
}

fn goals(page: &mut String, results: &Results) {
    say!(page, "### What was wanted\n");
    say!(
        page,
        "Ratios, divided round by round: the median of the rounds (the least – the greatest).\n"
    );
    table(
        page,
        &["", "size", "wanted", "near", "far", "reached"],
        goal::lines(results).into_iter().map(|line| line.to_vec()),
    );
}

fn chapter(page: &mut String, section: &Section, rows: &[&Row], plots: &str) {
    say!(page, "### {}\n", section.title);
    say!(page, "{}\n", section.note);
    if rows.iter().any(|row| row.placement == Placement::Near) && section.name != "paced" {
        say!(
            page,
            "![{}, near]({plots}/{}.svg)\n",
            section.title,
            section.name
        );
    }
    let names: Vec<_> = match section.name {
        "paced" => Vec::new(),
        _ => rows[0].figures.iter().map(|(name, _)| *name).collect(),
    };
    let peers = rows.iter().any(|row| row.peers.is_some());
    let mut heads = vec!["size", "transport"];
    if peers {
        heads.insert(1, "peers");
    }
    heads.extend(["placement", "rounds"]);
    heads.extend(names.iter().map(|name| match *name {
        "p50_ns" => "p50",
        "p90_ns" => "p90",
        "p99_ns" => "p99",
        "p999_ns" => "p99.9",
        "msgs_per_s" => "messages/s",
        "bytes_per_s" => "bytes/s",
        other => other,
    }));
    heads.push("CPU time a message");
    heads.push("buslane's divided by this");
    table(
        page,
        &heads,
        rows.iter().map(|row| {
            let mut cells = vec![bytes(row.size), row.transport.into()];
            if peers {
                cells.insert(
                    1,
                    row.peers.map_or(String::new(), |peers| peers.to_string()),
                );
            }
            cells.extend([row.placement.name().into(), row.rounds.to_string()]);
            if !names.is_empty() {
                cells.extend(
                    row.figures
                        .iter()
                        .map(|(name, spread)| figure(name, spread.median)),
                );
            }
            cells.push(format!("{:.0} ns", row.cpu_ns.median));
            cells.push(match row.transport {
                "buslane" => String::new(),
                _ => show(row.buslane),
            });
            cells
        }),
    );
}

fn figure(name: &str, value: f64) -> String {
    match name {
        "msgs_per_s" if value >= 1e6 => format!("{:.1} M", value / 1e6),
        "msgs_per_s" => format!("{:.0} k", value / 1e3),
        "bytes_per_s" if value >= 1e9 => format!("{:.1} G", value / 1e9),
        "bytes_per_s" => format!("{:.0} M", value / 1e6),
        _ if value >= 10_000.0 => format!("{:.1} µs", value / 1e3),
        _ => format!("{value:.0} ns"),
    }
}

fn weights(page: &mut String, results: &Results) {
    if results.weights.is_empty() {
        return;
    }
    say!(page, "### Set-up time and memory\n");
    say!(
        page,
        "Of two processes that send to each other: how long both took, together, to make and find all that they need; and how much more memory is mapped in both together after as many messages as fill some milliseconds. Buffers in the kernel (pipes, sockets, message queues) are in no mapping, and not counted.\n"
    );
    table(
        page,
        &["transport", "set-up", "memory"],
        results.weights.iter().map(|weighed| {
            vec![
                weighed.transport.into(),
                format!("{} µs", show(weighed.setup_us)),
                format!("{} KiB", show(weighed.memory_kib)),
            ]
        }),
    );
}
