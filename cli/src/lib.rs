//! `buslane`: the shared-memory message bus from the shell.
//!
//! Each command is one file with its arguments and a `run`; what they share is small: [`signals`] (ending on
//! SIGINT and SIGTERM), [`output`] (a stdout that may close), [`framing`] (messages in a byte stream), and
//! [`failure`] (the exit status). They are in a library for the benchmarks beside other libraries (`benches/peers`), which have
//! other transports but the same measurements; it promises nothing to anyone else.

pub mod bench;
mod bridge;
mod broker;
mod broker_bridges;
mod call;
mod child;
mod demo;
mod doctor;
pub mod failure;
mod feed;
mod framing;
mod help;
mod inspect;
mod ls;
mod output;
pub mod private;
mod progress;
mod push;
mod record;
mod recording;
mod recv;
mod replay;
mod rm;
mod send;
mod serve;
mod short;
pub mod signals;
mod size;
mod state;
mod top;
mod work;

use std::io::Write;
use std::process::ExitCode;

use buslane::{Bus, BusBuilder, Cut, ErrorKind};
use clap::{Parser, Subcommand};

use failure::Failure;
use signals::Stop;

/// A shared-memory message bus for processes on one Linux host
///
/// A bus is a directory, by default /dev/shm/buslane-UID/default; whoever uses it first makes it. On it are topics:
/// what is sent to a topic reaches every subscriber of that topic, and nobody else.
///
/// Try it: `buslane recv news` in one terminal, `echo hello | buslane send news` in another.
#[derive(Parser)]
#[command(
    name = "buslane",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit status: 0 done; 1 an error; 2 wrong usage; 3 a deadline passed; 4 the other side died; \
                  5 something was lost (only with --strict); 128+N ended by signal N."
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(clap::Args)]
struct Common {
    /// The bus: a name, or the path of its directory if it contains a `/`; BUSLANE_BUS says it, too
    #[arg(
        long,
        global = true,
        env = "BUSLANE_BUS",
        hide_env = true,
        default_value = "default",
        value_name = "NAME|PATH"
    )]
    bus: String,
    /// Print JSON to stdout: one object, or one a line where there are several
    #[arg(long, global = true)]
    json: bool,
    /// Make the bus durable, if it is made now: what is sent stays on disk for who is away; --bus must be a PATH on a disk
    #[arg(long, global = true)]
    durable: bool,
}

impl Common {
    /// Opens the bus, as `builder` says, or only observes it, if it is another user's.
    fn open_or_observe(&self, builder: BusBuilder) -> Result<Bus, buslane::Error> {
        match self.open(builder.clone()) {
            Err(e) if e.kind() == ErrorKind::ForeignOwner && self.bus.contains('/') => {
                builder.observe(&self.bus).map_err(|_| e)
            }
            opened => opened,
        }
    }

    /// Opens the bus, as `builder` says.
    fn open(&self, builder: BusBuilder) -> Result<Bus, buslane::Error> {
        let builder = builder.durable(self.durable);
        let bus = builder.open_name_or_path(&self.bus)?;
        for Cut {
            topic,
            lane,
            at,
            bytes,
            ..
        } in bus.cuts()
        {
            // A closed stderr is no reason to end.
            let _ = writeln!(
                std::io::stderr(),
                "buslane: {topic}: what had not reached the disk when the machine went down was cut off lane {lane} at {at}: \
                 {bytes} bytes"
            );
        }
        Ok(bus)
    }
}

#[derive(Subcommand)]
enum Command {
    Send(send::Args),
    Recv(recv::Args),
    Call(call::Args),
    Serve(serve::Args),
    Push(push::Args),
    Work(work::Args),
    State(state::Args),
    Ls(ls::Args),
    Top(top::Args),
    Inspect(inspect::Args),
    Doctor(doctor::Args),
    Rm(rm::Args),
    Bridge(bridge::Args),
    Broker(broker::Args),
    Record(record::Args),
    Replay(replay::Args),
    Demo(demo::Args),
    Bench(bench::Args),
    Completions(help::CompletionsArgs),
    Man(help::ManArgs),
}

/// The command.
pub fn main() -> ExitCode {
    // The demo and the benchmarks start this very program as their other processes; that is nobody's command.
    let mut arguments = std::env::args().skip(1);
    let result = match (arguments.next().as_deref(), arguments.next()) {
        (Some(bench::peer::NAME), _) => bench::peer::run(&bench::TRANSPORTS),
        (Some(demo::actors::NAME), Some(part)) => demo::actors::run(&part),
        _ => command(Cli::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            ExitCode::from(failure.status())
        }
    }
}

fn command(cli: Cli) -> Result<(), Failure> {
    let Cli { common, command } = cli;
    let stop = Stop::install()?;
    let result = match command {
        Command::Send(args) => send::run(&common, &args, &stop),
        Command::Recv(args) => recv::run(&common, &args, &stop),
        Command::Call(args) => call::run(&common, &args, &stop),
        Command::Serve(args) => serve::run(&common, &args, &stop),
        Command::Push(args) => push::run(&common, &args, &stop),
        Command::Work(args) => work::run(&common, &args, &stop),
        Command::State(args) => state::run(&common, &args, &stop),
        Command::Ls(args) => ls::run(&common, &args, &stop),
        Command::Top(args) => top::run(&common, &args, &stop),
        Command::Inspect(args) => inspect::run(&common, &args, &stop),
        Command::Doctor(args) => doctor::run(&common, &args, &stop),
        Command::Rm(args) => rm::run(&common, &args),
        Command::Bridge(args) => bridge::run(&common, &args),
        Command::Broker(args) => broker::run(&common, &args, &stop),
        Command::Record(args) => record::run(&common, &args, &stop),
        Command::Replay(args) => replay::run(&common, &args, &stop),
        Command::Demo(_) => demo::run(&common, &stop),
        Command::Bench(args) => bench::run(&common, &args, &stop),
        Command::Completions(args) => help::completions(&args, &stop),
        Command::Man(_) => help::man(&stop),
    };
    // Whatever a signal made fail, the signal is the reason.
    stop.check().and(result)
}
