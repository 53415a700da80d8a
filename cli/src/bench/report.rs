//! What is said of the rounds of a benchmark.

use std::io::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::{Plan, Transport, Turn};
use crate::failure::Failure;
use crate::output;

/// A bare round trip that takes less is between CPUs that share a cache.
const NEAR: Duration = Duration::from_nanos(200);

/// Where the two CPUs were, in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Close together.
    Near,
    /// Far from each other.
    Far,
}

impl Placement {
    /// Judged by the bare cache-line round trip.
    pub fn of(round_trip: Duration) -> Self {
        if round_trip < NEAR {
            Self::Near
        } else {
            Self::Far
        }
    }

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
        }
    }
}

/// What was measured in one turn, or the medians of that.
#[derive(Clone, Debug)]
pub struct Figures {
    names: &'static [&'static str],
    /// The first is what ratios are made of.
    values: Vec<u64>,
}

impl Figures {
    /// Percentiles of round trips.
    pub fn round_trips(times: &Histogram<u64>) -> Self {
        let values = [0.5, 0.9, 0.99, 0.999]
            .map(|quantile| times.value_at_quantile(quantile))
            .to_vec();
        Self {
            names: &["p50_ns", "p90_ns", "p99_ns", "p999_ns"],
            values,
        }
    }

    /// Messages one way; `count` is how many all senders sent.
    pub fn rate(size: usize, count: u64, elapsed: Duration) -> Self {
        let rate = count as f64 / elapsed.as_secs_f64();
        Self {
            names: &["msgs_per_s", "bytes_per_s"],
            values: vec![rate as u64, (rate * size as f64) as u64],
        }
    }

    fn medians(all: &[&Self]) -> Self {
        let column = |i: usize| all.iter().map(|figures| figures.values[i] as f64).collect();
        let Self { names, values } = all[0];
        Self {
            names,
            values: (0..values.len())
                .map(|i| Spread::of(column(i)).median as u64)
                .collect(),
        }
    }

    /// Their names, and what was measured: what matters first.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.names.iter().copied().zip(self.values.iter().copied())
    }

    /// What ratios are made of.
    pub fn score(&self) -> f64 {
        self.values[0].max(1) as f64
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.names.len()))?;
        for (name, value) in self.names.iter().zip(&self.values) {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// One round of one size.
#[derive(Debug)]
pub struct Round {
    /// How many other processes there were, if that is a question.
    pub peers: Option<usize>,
    /// Bytes in a message.
    pub size: usize,
    /// Where the CPUs were.
    pub placement: Placement,
    /// What each transport did.
    pub turns: Vec<(Transport, Turn)>,
}

impl Round {
    fn figures(&self, transport: Transport) -> Option<&Figures> {
        self.turns
            .iter()
            .find(|(name, _)| *name == transport)
            .map(|(_, turn)| &turn.figures)
    }

    fn ratio(&self, transport: Transport, to: Transport) -> Option<f64> {
        Some(self.figures(transport)?.score() / self.figures(to)?.score())
    }
}

/// Median and extremes.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Self {
            median,
            min: values[0],
            max: values[values.len() - 1],
        }
    }

    /// Three digits after the point: more would be noise.
    pub fn rounded(self) -> Self {
        let round = |value: f64| (value * 1e3).round() / 1e3;
        Self {
            median: round(self.median),
            min: round(self.min),
            max: round(self.max),
        }
    }
}

#[derive(Debug, Serialize)]
struct Ratio {
    to: &'static str,
    #[serde(flatten)]
    spread: Spread,
}

/// One transport, size and placement.
#[derive(Debug, Serialize)]
pub struct Report {
    bench: &'static str,
    transport: &'static str,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    peers: Option<usize>,
    placement: Placement,
    rounds: usize,
    #[serde(flatten)]
    figures: Figures,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<Ratio>,
}

impl Report {
    /// `p50_ns` or `msgs_per_s`, and the ratio's median.
    pub fn headline(&self) -> (u64, Option<f64>) {
        (
            self.figures.values[0],
            self.ratio.as_ref().map(|ratio| ratio.spread.median),
        )
    }

    /// Whether it is of this transport.
    pub fn is_of(&self, transport: Transport) -> bool {
        self.transport == transport.name
    }
}

/// All that the rounds say; a placement without rounds is left out.
pub fn reports(plan: &Plan, rounds: &[Round]) -> Vec<Report> {
    let mut reports = Vec::new();
    for &size in &plan.sizes {
        for peers in plan.crews() {
            for placement in [Placement::Near, Placement::Far] {
                let of: Vec<_> = rounds
                    .iter()
                    .filter(|r| (r.size, r.peers, r.placement) == (size, peers, placement))
                    .collect();
                let Some(first) = of.first() else { continue };
                for (transport, _) in &first.turns {
                    reports.push(report(plan, first, *transport, &of));
                }
            }
        }
    }
    reports
}

/// Of rounds that are like `first`.
fn report(plan: &Plan, first: &Round, transport: Transport, rounds: &[&Round]) -> Report {
    let figures: Vec<_> = rounds
        .iter()
        .filter_map(|round| round.figures(transport))
        .collect();
    let reference = plan
        .transports
        .get(1)
        .copied()
        .filter(|reference| *reference != transport);
    let ratio = reference.map(|to| {
        let ratios = rounds
            .iter()
            .filter_map(|round| round.ratio(transport, to))
            .collect();
        Ratio {
            to: to.name,
            spread: Spread::of(ratios).rounded(),
        }
    });
    Report {
        bench: plan.what.name(),
        transport: transport.name,
        size: first.size,
        peers: first.peers,
        placement: first.placement,
        rounds: rounds.len(),
        figures: Figures::medians(&figures),
        ratio,
    }
}

/// For people.
pub fn table(out: &mut impl Write, reports: &[Report]) -> Result<(), Failure> {
    let Some(first) = reports.first() else {
        return Ok(());
    };
    let mut header: Vec<_> = ["TRANSPORT", "BYTES"].map(String::from).to_vec();
    header.extend(first.peers.map(|_| "PEERS".into()));
    header.extend(["PLACEMENT", "ROUNDS"].map(String::from));
    header.extend(first.figures.names.iter().map(|name| name.to_uppercase()));
    header.push("RATIO (MIN TO MAX)".into());
    let mut rows = vec![header];
    for Report {
        transport,
        size,
        peers,
        placement,
        rounds,
        figures,
        ratio,
        ..
    } in reports
    {
        let mut row = vec![(*transport).into(), size.to_string()];
        row.extend(peers.map(|peers| peers.to_string()));
        row.extend([placement.name().into(), rounds.to_string()]);
        row.extend(figures.values.iter().map(u64::to_string));
        if let Some(Ratio {
            to,
            spread: Spread { median, min, max },
        }) = ratio
        {
            row.push(format!("{median} of {to} ({min} to {max})"));
        }
        rows.push(row);
    }
    output::table(out, &rows)
}
