//! Commands that are run for a message.

use std::io;
use std::process::{Child, Command, Stdio};

use crate::failure::Failure;

/// Starts a command, with a pipe to its stdin.
pub fn spawn(command: &[String], stdout: Stdio) -> Result<Child, Failure> {
    let [program, arguments @ ..] = command else {
        return Err(Failure::Usage("there is no command".into()));
    };
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .spawn()
        .map_err(|e| failed(command, e))
}

/// An error of the system, with that command.
pub fn failed(command: &[String], error: io::Error) -> Failure {
    let program = command.first().map_or("", String::as_str);
    Failure::system(&format!("run {program}"))(error)
}
