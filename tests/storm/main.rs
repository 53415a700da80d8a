//! Storms: processes of every pattern that join, leave, stop, go on, and are killed at random, while each message is followed.
//!
//! `cargo test --release -p buslane --test storm` is one round of each pattern; `-- --minutes 60 queue` an hour over those whose names
//! have *queue* in them. What is done, to whom, and after which pause is a function of the seed, which is printed: `-- --seed 7 queue`
//! does that again. What the kernel makes of it differs from time to time.
//!
//! `-- --deaths 1000` measures how soon a death is learnt of.
//!
//! A violation is a message that is lost, comes twice, out of order or torn, where that is promised not to be; a process that ends by
//! itself, or does not get on while nobody is stopped; a file that is left behind.
#![allow(clippy::disallowed_types, unsafe_code, missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod deaths;
mod durable;
mod ledger;
mod process;
mod pubsub;
mod queue;
mod request;
mod round;
mod state;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use round::{Counts, Pattern};

const PATTERNS: [&Pattern; 10] = [
    &pubsub::LOSSLESS,
    &pubsub::LOSSY,
    &pubsub::NAMED,
    &queue::QUEUE,
    &queue::LEASED,
    &queue::EXCLUSIVE,
    &request::REQUEST,
    &state::STATE,
    &durable::DURABLE,
    &queue::DURABLE,
];

#[derive(Parser)]
struct Options {
    /// Storms only over patterns whose names contain one of these.
    patterns: Vec<String>,
    /// Goes on for so long; by default, one round of each pattern.
    #[arg(long)]
    minutes: Option<f64>,
    /// The seed of the first round; the next rounds have the next ones. By default, another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// What is done in a round.
    #[arg(long, default_value_t = 300)]
    actions: usize,
    /// Pauses between what is done are so many times as long: longer lives, and more messages.
    #[arg(long, default_value_t = 1)]
    slowness: u64,
    /// Measures, so often each, how soon a death is learnt of, instead.
    #[arg(long)]
    deaths: Option<u64>,
    /// As the other tests have it; without effect.
    #[arg(long, hide = true)]
    nocapture: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(times) = options.deaths {
        deaths::measure(times);
        return ExitCode::SUCCESS;
    }
    let chosen: Vec<_> = PATTERNS
        .into_iter()
        .filter(|pattern| {
            let is_in = |word: &String| pattern.name.contains(word.as_str());
            options.patterns.is_empty() || options.patterns.iter().any(is_in)
        })
        .collect();
    let time = options
        .minutes
        .map(|minutes| Duration::from_secs_f64(60.0 * minutes));
    let mut seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let began = Instant::now();
    let mut total = Counts::default();
    while !chosen.is_empty() && total.violations == 0 {
        for pattern in &chosen {
            let began = Instant::now();
            let counts = round::run(pattern, seed, options.actions, options.slowness);
            println!(
                "{} --seed {seed}: {counts}, {:.1?}",
                pattern.name,
                began.elapsed()
            );
            total += counts;
        }
        seed += 1;
        if time.is_none_or(|time| began.elapsed() > time) {
            break;
        }
    }
    println!("{} rounds: {total}, {:.1?}", total.rounds, began.elapsed());
    ExitCode::from(u8::from(total.violations > 0))
}
