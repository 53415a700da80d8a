//! Which points are run, by several processes at a time, and what is printed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use crate::operations::{OPERATIONS, Operation};
use crate::run::{Outcome, Until, run};
use crate::trace::{Code, Point};

/// Processes that run points side by side. A run waits for the kernel much of the time: for what it closes.
const WORKERS: usize = 24;
/// A run that did not come by its point is tried so often.
const TRIES: usize = 24;
/// So many points of one repair are run at most, if not all are asked for.
const MOST: usize = 64;

/// Every so manieth is run: of the victim's points (or of its system calls, with the points behind them; 0: all behind a system
/// call or a store), of the states that it leaves, of the system calls of a repair.
#[derive(Clone, Copy, Default)]
struct Shares {
    points: usize,
    states: usize,
    repairs: usize,
}

const ALL: Shares = Shares {
    points: 1,
    states: 1,
    repairs: 1,
};
/// What a minute is enough for.
const SOME: Shares = Shares {
    points: 64,
    states: 64,
    repairs: 32,
};

/// What is asked for.
#[derive(Default)]
struct Asked {
    shares: Shares,
    seed: u64,
    point: Option<(Point, Option<Point>)>,
    names: Vec<String>,
}

impl Asked {
    fn parse() -> Option<Self> {
        let mut asked = Self {
            shares: SOME,
            seed: std::process::id().into(),
            ..Self::default()
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match &*argument {
                "--all" => asked.shares = ALL,
                "--shares" => {
                    let text = arguments.next()?;
                    let mut shares = text.split(',').map(|share| share.parse().ok());
                    let (points, states, repairs) =
                        (shares.next()??, shares.next()??, shares.next()??);
                    asked.shares = Shares {
                        points,
                        states,
                        repairs,
                    };
                }
                "--seed" => asked.seed = arguments.next()?.parse().ok()?,
                "--point" => {
                    let text = arguments.next()?;
                    let (first, second) = text
                        .split_once(',')
                        .map_or((&*text, None), |(a, b)| (a, Some(b)));
                    let second = second
                        .map(|second| Point::parse(second).ok_or(()))
                        .transpose()
                        .ok()?;
                    asked.point = Some((Point::parse(first)?, second));
                }
                name if name.starts_with('-') => return None,
                name => asked.names.push(name.to_owned()),
            }
        }
        Some(asked)
    }

    /// Every so manieth call, the first one by the seed and `turn`.
    fn calls(&self, share: usize, turn: usize) -> (u32, u32) {
        let share = share.max(1);
        (share as u32, ((self.seed as usize + turn) % share) as u32)
    }

    /// Every so manieth of these, the first one by the seed and `turn`.
    fn some<T: Copy>(&self, all: &[T], share: usize, turn: usize) -> Vec<T> {
        let first = (self.seed as usize + turn) % share.clamp(1, all.len().max(1));
        all.iter()
            .copied()
            .skip(first)
            .step_by(share.max(1))
            .collect()
    }
}

/// What became of one run, or of many.
#[derive(Clone, Debug, Default)]
struct Tally {
    points: u64,
    recovered: u64,
    /// Runs that did not come by their point.
    missed: Vec<String>,
    /// What the victim had left, and how far the operation had come.
    left: u64,
    seen: u64,
    failures: Vec<String>,
}

impl Tally {
    fn to_line(&self) -> String {
        let Self {
            points,
            recovered,
            left,
            seen,
            missed,
            failures,
        } = self;
        let (missed, failures) = (missed.join("\r"), failures.join("\r"));
        format!("{points}\t{recovered}\t{left}\t{seen}\t{missed}\t{failures}")
    }

    fn from_line(line: &str) -> Self {
        let mut fields = line.split('\t');
        let mut number = || fields.next().unwrap().parse().unwrap();
        let (points, recovered, left, seen) = (number(), number(), number(), number());
        let mut texts = || {
            let texts = fields
                .next()
                .unwrap()
                .split('\r')
                .filter(|text| !text.is_empty());
            texts.map(str::to_owned).collect()
        };
        let (missed, failures) = (texts(), texts());
        Self {
            points,
            recovered,
            left,
            seen,
            missed,
            failures,
        }
    }

    fn add(&mut self, other: &Self) {
        self.points += other.points;
        self.recovered += other.recovered;
        self.missed.extend_from_slice(&other.missed);
        self.failures.extend_from_slice(&other.failures);
    }
}

/// Runs each of these in one of several processes; the results in the same order.
fn spread<T>(jobs: &[T], work: impl Fn(&mut Code, &T) -> Tally) -> Vec<Tally> {
    let mut workers = Vec::new();
    for worker in 0..WORKERS.min(jobs.len()) {
        let (from, to) = nix::unistd::pipe().unwrap();
        // SAFETY: this process has one thread.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => workers.push((child, std::fs::File::from(from))),
            ForkResult::Child => {
                nix::sys::prctl::set_pdeathsig(Some(nix::sys::signal::Signal::SIGKILL)).unwrap();
                let (mut to, mut code) = (std::fs::File::from(to), Code::default());
                for (i, job) in jobs
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| i % WORKERS == worker)
                {
                    writeln!(to, "{i}\t{}", work(&mut code, job).to_line()).unwrap();
                }
                std::process::exit(0);
            }
        }
    }
    let mut tallies = vec![None; jobs.len()];
    for (child, mut from) in workers {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        waitpid(child, None).unwrap();
        for line in text.lines() {
            let (i, tally) = line.split_once('\t').unwrap();
            tallies[i.parse::<usize>().unwrap()] = Some(Tally::from_line(tally));
        }
    }
    tallies
        .into_iter()
        .map(|tally| tally.expect("a worker ended too early; what it said is above"))
        .collect()
}

/// Runs one point, again if it was not come by.
fn try_point(
    operation: &Operation,
    code: &mut Code,
    dir: &Path,
    first: Point,
    second: Option<Point>,
) -> Tally {
    let found = (0..TRIES).find_map(|tried| {
        // What the allocator does differs at times: then by counting steps.
        let way = |point: Point| {
            if tried < TRIES / 2 {
                point
            } else {
                point.counted()
            }
        };
        let second = second.map(|second| Until::Point(way(second)));
        run(operation, code, dir, Until::Point(way(first)), second)
    });
    let second = second.map_or(String::new(), |second| format!(",{second}"));
    let name = format!("{} --point {first}{second}", operation.name);
    let mut tally = Tally {
        points: 1,
        ..Tally::default()
    };
    match found {
        None => tally.missed.push(name),
        Some(Outcome { left, seen, .. }) => {
            tally.left = left;
            match seen {
                Ok(seen) => (tally.recovered, tally.seen) = (1, seen),
                Err(why) => tally.failures.push(format!("{name}: {why}")),
            }
        }
    }
    tally
}

pub fn main() -> ExitCode {
    let Some(asked) = Asked::parse() else {
        eprintln!(
            "kill [--all | --shares POINTS,STATES,REPAIRS] [--seed N] [--point CALLS+STORES+STEPS[,...]] [NAME...]"
        );
        return ExitCode::FAILURE;
    };
    let dir = tempfile::Builder::new()
        .prefix("buslane-kill.")
        .tempdir_in("/dev/shm")
        .unwrap();
    let is_meant = |operation: &&Operation| {
        asked.names.is_empty()
            || asked
                .names
                .iter()
                .any(|name| operation.name.starts_with(name.as_str()))
    };
    // From here on all processes have the same keys for their hash maps, and take the same steps.
    let _ = std::hash::RandomState::new();
    if let Some((first, second)) = asked.point {
        for operation in OPERATIONS.iter().filter(is_meant) {
            println!(
                "{:?}",
                try_point(operation, &mut Code::default(), dir.path(), first, second)
            );
        }
        return ExitCode::SUCCESS;
    }
    println!("--seed {}", asked.seed);
    println!(
        "{:<42} {:>6} {:>13} {:>9} | {:>7} {:>7} {:>17} {:>7} {:>6}",
        "operation",
        "points",
        "recovered",
        "unreached",
        "states",
        "points",
        "recovered",
        "unreach",
        "time"
    );
    let (mut firsts, mut seconds) = (Tally::default(), Tally::default());
    for operation in OPERATIONS.iter().filter(is_meant) {
        let started = Instant::now();
        let (first, states, second) = enumerate(operation, &asked, dir.path());
        println!(
            "{:<42} {:>6} {:>6} of {:<4} {:>8} | {:>7} {:>7} {:>7} of {:<7} {:>6} {:>5.1}s",
            operation.name,
            first.points,
            first.recovered,
            first.points,
            first.missed.len(),
            states,
            second.points,
            second.recovered,
            second.points,
            second.missed.len(),
            started.elapsed().as_secs_f64()
        );
        for failure in first.failures.iter().chain(&second.failures).take(10) {
            println!("    {failure}");
        }
        for missed in first.missed.iter().chain(&second.missed).take(10) {
            println!("    {missed}: not come by");
        }
        firsts.add(&first);
        seconds.add(&second);
    }
    println!(
        "{} of {} recovered, and {} of {} when the repair died, too",
        firsts.recovered, firsts.points, seconds.recovered, seconds.points
    );
    let count = |of: fn(&Tally) -> usize| of(&firsts) + of(&seconds);
    let (points, failures) = (
        count(|tally| tally.points as usize),
        count(|tally| tally.failures.len()),
    );
    // Not a failure of what is tested, if it is rare.
    let is_well = failures == 0 && 100 * count(|tally| tally.missed.len()) <= points;
    if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What is recorded twice in a row, if it is at all: what happens by chance (a clock's second, the allocator's) is nothing to come by again.
fn twice_the_same(mut record: impl FnMut() -> Option<Outcome>) -> Option<Outcome> {
    let mut recorded = record()?;
    for _ in 0..TRIES {
        let again = record()?;
        if again.points == recorded.points {
            break;
        }
        recorded = again;
    }
    Some(recorded)
}

/// What became of the victim's deaths, how many different states they left, and what became of deaths over their repair.
fn enumerate(operation: &Operation, asked: &Asked, dir: &Path) -> (Tally, usize, Tally) {
    let Operation { every_step, .. } = *operation;
    let record = |share| {
        let until = Until::End { every_step, share };
        twice_the_same(|| run(operation, &mut Code::default(), dir, until, None))
            .expect("to the end")
    };
    let share = asked.shares.points;
    let mut recorded = record(if every_step {
        (1, 0)
    } else {
        asked.calls(share, 0)
    });
    if recorded.points.is_empty() {
        // It makes few.
        recorded = record((1, 0));
    }
    let points: Vec<Point> = match share {
        0 => recorded
            .points
            .into_iter()
            .filter(|point| point.steps == 0)
            .collect(),
        _ if every_step => asked.some(&recorded.points, share, 0),
        _ => recorded.points,
    };
    let tallies = spread(&points, |code, point| {
        try_point(operation, code, dir, *point, None)
    });
    let mut first = Tally::default();
    let mut states = BTreeMap::new();
    let mut seen = 0;
    for (point, tally) in points.iter().zip(&tallies) {
        first.add(tally);
        if tally.missed.is_empty() {
            states.entry((tally.left, tally.seen)).or_insert(*point);
        }
        if tally.recovered == 1 {
            if tally.seen < seen {
                first.failures.push(format!(
                    "{} --point {point}: what was done before is undone",
                    operation.name
                ));
                first.recovered -= 1;
            }
            seen = tally.seen.max(seen);
        }
    }
    match recorded.seen {
        Ok(last) if last >= seen => {}
        end => first.failures.push(format!(
            "{}: at its end {end:?} is seen, {seen} before",
            operation.name
        )),
    }
    let all: Vec<Point> = states.values().copied().collect();
    let carried = asked.some(&all, asked.shares.states, 0);
    let carried: Vec<(usize, Point)> = carried.into_iter().enumerate().collect();
    let tallies = spread(&carried, |code, &(turn, state)| {
        let share = asked.calls(asked.shares.repairs, turn);
        let second = Some(Until::End {
            every_step: false,
            share,
        });
        let recorded = twice_the_same(|| {
            (0..TRIES).find_map(|_| run(operation, code, dir, Until::Point(state), second))
        });
        let Some(Outcome { points, seen, .. }) = recorded else {
            return Tally {
                points: 1,
                missed: vec![format!("{} --point {state}, repaired", operation.name)],
                ..Tally::default()
            };
        };
        let mut tally = Tally::default();
        tally.failures.extend(
            seen.err()
                .map(|why| format!("{} --point {state}, repaired: {why}", operation.name)),
        );
        // Where a page is cleared, they are many behind one call.
        let share = match asked.shares.repairs {
            1 => 1,
            _ => points.len().div_ceil(MOST),
        };
        for point in asked.some(&points, share, turn) {
            tally.add(&try_point(operation, code, dir, state, Some(point)));
        }
        tally
    });
    let mut second = Tally::default();
    tallies.iter().for_each(|tally| second.add(tally));
    (first, carried.len(), second)
}
