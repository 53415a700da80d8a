//! What the developers had set themselves, beside what came out.

use buslane_cli::bench::report::{Placement, Spread};

use crate::result::{BEST, Results, Row};

/// A ratio that is to be so large, or so small.
pub struct Goal {
    what: &'static str,
    section: &'static str,
    of: &'static str,
    to: &'static str,
    bounds: &'static [(usize, Bound)],
    /// The rounds that it is meant for.
    placement: Placement,
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}
use Bound::{AtLeast, AtMost};

const EVERYWHERE: &[(usize, Bound)] = &[
    (8, AtLeast(1.3)),
    (64, AtLeast(1.3)),
    (1024, AtLeast(1.3)),
    (65536, AtLeast(1.3)),
];

const GOALS: [Goal; 20] = [
    goal(
        "round trip to the bare cache line",
        "rtt",
        "buslane",
        "raw",
        &[
            (8, AtMost(1.15)),
            (64, AtMost(1.4)),
            (256, AtMost(1.75)),
            (1024, AtMost(2.2)),
        ],
    ),
    goal(
        "the same, typed",
        "rtt",
        "buslane-typed",
        "raw",
        &[
            (8, AtMost(1.15)),
            (64, AtMost(1.4)),
            (256, AtMost(1.75)),
            (1024, AtMost(2.2)),
        ],
    ),
    goal(
        "the same, of bare slots",
        "rtt",
        "slots-16",
        "raw",
        &[
            (8, AtMost(1.15)),
            (64, AtMost(1.4)),
            (256, AtMost(1.75)),
            (1024, AtMost(2.2)),
        ],
    ),
    goal(
        "rate to the best peer's",
        "rate",
        "buslane",
        BEST,
        &[
            (8, AtLeast(1.8)),
            (64, AtLeast(3.0)),
            (1024, AtLeast(2.0)),
            (65536, AtLeast(4.0)),
        ],
    ),
    goal(
        "the same, typed",
        "rate",
        "buslane-typed",
        BEST,
        &[
            (8, AtLeast(1.8)),
            (64, AtLeast(3.0)),
            (1024, AtLeast(2.0)),
            (65536, AtLeast(4.0)),
        ],
    ),
    goal(
        "the same, of bare slots",
        "rate",
        "slots",
        BEST,
        &[
            (8, AtLeast(1.8)),
            (64, AtLeast(3.0)),
            (1024, AtLeast(2.0)),
            (65536, AtLeast(4.0)),
        ],
    ),
    goal(
        "the same, in batches",
        "rate",
        "buslane-batch",
        BEST,
        &[(8, AtLeast(3.0))],
    ),
    goal(
        "the same, in batches, to ringfire's batches",
        "rate",
        "buslane-batch",
        "ringfire-batch",
        &[(8, AtLeast(3.0))],
    ),
    far(goal(
        "rate to the best peer's, in far rounds",
        "rate",
        "buslane",
        BEST,
        EVERYWHERE,
    )),
    far(goal(
        "the same, typed",
        "rate",
        "buslane-typed",
        BEST,
        EVERYWHERE,
    )),
    far(goal(
        "the same, in batches",
        "rate",
        "buslane-batch",
        BEST,
        EVERYWHERE,
    )),
    far(goal(
        "the same, of the bare copy",
        "rate",
        "memcpy",
        BEST,
        EVERYWHERE,
    )),
    goal(
        "bandwidth to that of the bare copy",
        "rate",
        "buslane",
        "memcpy",
        &[(65536, AtLeast(0.9))],
    ),
    goal(
        "rate to a pipe's",
        "rate",
        "buslane",
        "pipe",
        &[
            (64, AtLeast(25.0)),
            (1024, AtLeast(9.0)),
            (65536, AtLeast(8.0)),
        ],
    ),
    goal(
        "1 MiB messages to the bare copy",
        "large",
        "buslane",
        "memcpy",
        &[(1 << 20, AtLeast(0.8))],
    ),
    goal(
        "request and reply to iceoryx2's, time",
        "request",
        "buslane",
        "iceoryx2",
        &[(8, AtMost(0.3)), (64, AtMost(0.3)), (1024, AtMost(0.3))],
    ),
    goal(
        "64 requests under way to iceoryx2's, rate",
        "requests",
        "buslane",
        "iceoryx2",
        &[(64, AtLeast(4.0))],
    ),
    goal(
        "sleeping round trip to the bare futex, two CPUs",
        "wake",
        "buslane",
        "futex",
        &[(64, AtMost(1.08))],
    ),
    far(goal(
        "sleeping round trip to the bare futex, one CPU",
        "wake-one-cpu",
        "buslane",
        "futex",
        &[(64, AtMost(1.3))],
    )),
    far(goal(
        "adaptive waiting to sleeping, one CPU",
        "one-cpu",
        "buslane",
        "buslane-sleep",
        &[(64, AtMost(1.3))],
    )),
];

const fn goal(
    what: &'static str,
    section: &'static str,
    of: &'static str,
    to: &'static str,
    bounds: &'static [(usize, Bound)],
) -> Goal {
    Goal {
        what,
        section,
        of,
        to,
        bounds,
        placement: Placement::Near,
    }
}

/// The same in far rounds; on one CPU all are.
const fn far(goal: Goal) -> Goal {
    Goal {
        placement: Placement::Far,
        ..goal
    }
}

/// One line of the table: what, bytes, what was wanted, near, far, and whether it is met.
pub fn lines(results: &Results) -> Vec<[String; 6]> {
    let mut lines = Vec::new();
    for goal in &GOALS {
        for (size, bound) in goal.bounds {
            let ratio = |placement| {
                let is = |row: &&Row| {
                    (row.section, row.transport, row.size, row.placement)
                        == (goal.section, goal.of, *size, placement)
                };
                results.rows.iter().find(is)?.to(goal.to)
            };
            let (near, far) = (ratio(Placement::Near), ratio(Placement::Far));
            if near.is_none() && far.is_none() {
                continue;
            }
            let meant = match goal.placement {
                Placement::Near => near,
                Placement::Far => far,
            };
            let (wanted, is_met) = match *bound {
                AtLeast(least) => (format!("≥ {least}"), meant.map(|it| it.median >= least)),
                AtMost(most) => (format!("≤ {most}"), meant.map(|it| it.median <= most)),
            };
            lines.push([
                goal.what.into(),
                crate::page::bytes(*size),
                wanted,
                near.map_or("–".into(), show),
                far.map_or("–".into(), show),
                match is_met {
                    Some(true) => "yes".into(),
                    Some(false) => "**no**".into(),
                    None => "–".into(),
                },
            ]);
        }
    }
    lines
}

/// Median, and from where to where.
pub fn show(spread: Spread) -> String {
    let digits = |value: f64| match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    let Spread { median, min, max } = spread;
    format!("{} ({}–{})", digits(median), digits(min), digits(max))
}
