//! The bridge between a buslane bus and a Zenoh network: the program `buslane-bridge-zenoh`, which `buslane bridge zenoh`
//! starts. `docs/bridge.md` says what it carries, what it promises, and how its messages look on the network.
//!
//! To read it: [`bridge`] looks at who and what is there, and starts a thread for each thing to be carried: [`outgoing`], a
//! topic to one other bridge, or to plain Zenoh programs; [`incoming`], a topic from one of these; [`states`]; [`services`].
//! They share [`names`] (topics ↔ key expressions), [`note`] (what goes with a message), [`parcel`] (many messages between two
//! bridges), and [`metrics`].

pub mod args;
pub mod bridge;
pub mod failure;
pub mod home;
pub mod incoming;
pub mod metrics;
pub mod names;
pub mod note;
pub mod outgoing;
pub mod parcel;
pub mod services;
pub mod signals;
pub mod states;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

use args::Args;
use bridge::Bridge;
use failure::Failure;
use metrics::Metrics;
use signals::Stop;

/// The program.
pub fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            ExitCode::from(failure.status())
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let stop = Stop::install()?;
    // What Zenoh and the metrics' server have to say goes to stderr; RUST_LOG asks for more, or less.
    zenoh::init_log_from_env_or("error,buslane_metrics=warn");
    let metrics = Arc::<Metrics>::default();
    let _http = args
        .metrics
        .map(|address| metrics.serve(address))
        .transpose()?;
    let carried = Bridge::open(args, &stop, &metrics)
        .and_then(|bridge| bridge.map_or(Ok(()), |bridge| bridge.carry()));
    if args.json {
        let summary = serde_json::to_string(&metrics.summary());
        let line = summary
            .map_err(io::Error::from)
            .and_then(|line| writeln!(io::stdout(), "{line}"));
        match line {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                return Err(Failure::Error(format!("cannot write to stdout: {e}")));
            }
            _ => {}
        }
    }
    // Whatever a signal made fail, the signal is the reason.
    stop.check().and(carried)
}
