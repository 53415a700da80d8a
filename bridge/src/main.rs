//! The program that `buslane bridge zenoh` starts.

use std::process::ExitCode;

fn main() -> ExitCode {
    buslane_bridge_zenoh::main()
}
