//! `buslane bridge`: starts the program that carries a bus to a network. It is one of its own, as Zenoh is a large build.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Subcommand;

use crate::Common;
use crate::failure::Failure;

/// Carry topics, states, requests and replies to and from a network
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    network: Network,
}

#[derive(Subcommand)]
enum Network {
    /// A Zenoh network; `buslane bridge zenoh --help` says more. It is the program buslane-bridge-zenoh, beside this one or
    /// in PATH
    #[command(disable_help_flag = true)]
    Zenoh {
        /// What it is to carry, and how
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGUMENTS"
        )]
        arguments: Vec<OsString>,
    },
}

/// Becomes that program.
pub fn run(common: &Common, args: &Args) -> Result<(), Failure> {
    let Network::Zenoh { arguments } = &args.network;
    let (program, mut command) = command(&common.bus);
    if common.json {
        command.arg("--json");
    }
    if common.durable {
        command.arg("--durable");
    }
    Err(failed(&program, command.args(arguments).exec()))
}

/// That program, beside this one or in PATH, for this bus.
pub fn command(bus: &str) -> (PathBuf, Command) {
    let name = "buslane-bridge-zenoh";
    let beside = env::current_exe()
        .ok()
        .map(|ours| ours.with_file_name(name));
    let program = beside.filter(|beside| beside.exists());
    let program = program.unwrap_or_else(|| PathBuf::from(name));
    let mut command = Command::new(&program);
    // So that an option among the arguments goes before it.
    command.env("BUSLANE_BUS", bus);
    (program, command)
}

/// It could not be started.
pub fn failed(program: &Path, error: io::Error) -> Failure {
    let program = program.display();
    Failure::Error(match error.kind() {
        io::ErrorKind::NotFound => format!(
            "cannot find the program {program}, beside this one or in PATH; build it with: cargo install --path bridge"
        ),
        _ => format!("cannot start {program}: {error}"),
    })
}
