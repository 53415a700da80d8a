//! What came of the rounds: medians, and ratios divided round by round.

use std::collections::BTreeMap;

use buslane_cli::bench::Transport;
use buslane_cli::bench::report::{Placement, Round, Spread};
use serde::Serialize;

use crate::section::Section;

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Results {
    pub machine: Vec<(String, String)>,
    pub command: String,
    pub rows: Vec<Row>,
    pub weights: Vec<Weighed>,
}

/// One transport, size, number of peers and placement.
#[derive(Debug, Serialize)]
pub struct Row {
    pub section: &'static str,
    pub transport: &'static str,
    pub size: usize,
    pub peers: Option<usize>,
    pub placement: Placement,
    pub rounds: usize,
    /// Of the rounds' figures.
    pub figures: Vec<(&'static str, Spread)>,
    /// Nanoseconds of processor time of all processes, for each message.
    pub cpu_ns: Spread,
    /// buslane's figure in the same round, divided by this one.
    pub buslane: Spread,
    /// This figure, divided by that of another transport in the same round.
    pub to: Vec<(&'static str, Spread)>,
}

/// What a transport takes before anything is sent, and while it is there.
#[derive(Debug, Serialize)]
pub struct Weighed {
    pub transport: &'static str,
    pub size: usize,
    pub setup_us: Spread,
    pub memory_kib: Spread,
}

/// What others have made, as against buslane and the floors.
pub const OTHERS: [&str; 6] = ["iceoryx2", "ringfire", "pipe", "uds", "seqpacket", "mqueue"];
/// The best of them in a round, as if it was one.
pub const BEST: &str = "best peer";

/// A figure by which it is compared.
fn score(section: &Section, transport: Transport, round: &Round) -> Option<f64> {
    let (_, turn) = round.turns.iter().find(|(of, _)| *of == transport)?;
    Some(match section.name {
        "paced" => turn.cpu,
        _ => turn.figures.score(),
    })
}

/// The rows of a section.
pub fn rows(section: &Section, rounds: &[Round]) -> Vec<Row> {
    let mut groups: BTreeMap<(usize, Option<usize>, Placement), Vec<&Round>> = BTreeMap::new();
    for round in rounds {
        let key = (round.size, round.peers, round.placement);
        groups.entry(key).or_default().push(round);
    }
    let mut rows = Vec::new();
    for ((size, peers, placement), rounds) in groups {
        for (transport, _) in &rounds[0].turns {
            let of = |other: Transport| -> Vec<f64> {
                let ratio = |round: &&Round| {
                    Some(score(section, *transport, round)? / score(section, other, round)?)
                };
                rounds.iter().filter_map(ratio).collect()
            };
            let to_best = |round: &&Round| {
                let others = round.turns.iter().map(|(other, _)| *other);
                let scores = others
                    .filter(|other| OTHERS.contains(&other.name) && other != transport)
                    .filter_map(|other| score(section, other, round));
                let best = scores.reduce(|a, b| {
                    if section.is_time() {
                        a.min(b)
                    } else {
                        a.max(b)
                    }
                })?;
                Some(score(section, *transport, round)? / best)
            };
            let turns: Vec<_> = rounds
                .iter()
                .filter_map(|round| round.turns.iter().find(|(of, _)| of == transport))
                .map(|(_, turn)| turn)
                .collect();
            let names = turns[0].figures.iter().enumerate();
            let figures = names.map(|(i, (name, _))| {
                let values = turns.iter().filter_map(|turn| turn.figures.iter().nth(i));
                (
                    name,
                    Spread::of(values.map(|(_, value)| value as f64).collect()).rounded(),
                )
            });
            let mut to: Vec<_> = rounds[0]
                .turns
                .iter()
                .filter(|(other, _)| other != transport)
                .map(|(other, _)| (other.name, Spread::of(of(*other)).rounded()))
                .collect();
            let best: Vec<f64> = rounds.iter().filter_map(to_best).collect();
            if !best.is_empty() {
                to.push((BEST, Spread::of(best).rounded()));
            }
            let inverse = of(rounds[0].turns[0].0)
                .into_iter()
                .map(|ratio| 1.0 / ratio);
            rows.push(Row {
                section: section.name,
                transport: transport.name,
                size,
                peers,
                placement,
                rounds: rounds.len(),
                figures: figures.collect(),
                cpu_ns: Spread::of(turns.iter().map(|turn| turn.cpu).collect()).rounded(),
                buslane: Spread::of(inverse.collect()).rounded(),
                to,
            });
        }
    }
    rows
}

impl Row {
    /// The ratio to another transport.
    pub fn to(&self, other: &str) -> Option<Spread> {
        let found = self.to.iter().find(|(name, _)| *name == other);
        found.map(|(_, spread)| *spread)
    }
}
