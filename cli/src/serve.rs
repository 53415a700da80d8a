//! `buslane serve`: a command that answers requests.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ExitStatus, Stdio};
use std::thread;

use buslane::{Bus, ErrorKind, Request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::Common;
use crate::child;
use crate::failure::Failure;
use crate::output::{json_line, stdout};
use crate::signals::{SLICE, Stop};
use crate::size;

/// Answer each request of a service with what a command writes
///
/// The request is the command's stdin, its stdout the reply. If it exits otherwise than with 0, the service refuses, with
/// that as the code. Several may serve one name: each request goes to one of them, and to another if that is killed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  buslane serve upper -- tr a-z A-Z
  buslane serve calc -- bc -l                      echo '4*a(1)' | buslane call calc
  buslane serve run -- sh                          each request is a script

With --json a line for each request is printed.")]
pub struct Args {
    /// The service; it is made if there is none of this name
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Room for requests that nobody has taken, in bytes (64KiB, 1MiB; a power of two), if the service is made now; a
    /// request takes at most three eighths of it
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    capacity: Option<usize>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Serialize)]
struct Line {
    request_len: usize,
    attempts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<i32>,
    reply_len: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Serves until a signal comes.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let bus = common.open(Bus::builder())?;
    let builder = bus.service_builder(&args.service);
    let service = match args.capacity {
        Some(bytes) => builder.capacity(bytes),
        None => builder,
    }
    .open()?;
    let mut server = service.server()?;
    let mut out = common.json.then(|| stdout(stop)).transpose()?;
    loop {
        stop.check()?;
        let Some(request) = server.recv_timeout(SLICE)? else {
            continue;
        };
        let (request_len, attempts) = (request.len(), request.attempts());
        let (status, reply) = execute(&args.command, &request, stop)?;
        // A signal may have ended the command, and not the request: it goes to another server.
        stop.check()?;
        let answered = answer(request, &args.command[0], status, &reply);
        let error = match answered {
            Ok(()) => None,
            Err(e) if is_of_the_client(e.kind()) => Some(e.to_string()),
            Err(e) => return Err(e.into()),
        };
        match (&mut out, &error) {
            (Some(out), _) => {
                let (status, reply_len) = (status.code(), reply.len());
                let line = Line {
                    request_len,
                    attempts,
                    status,
                    reply_len,
                    error,
                };
                json_line(out, &line)?;
                out.flush().map_err(Failure::stdout)?;
            }
            (None, Some(error)) => {
                // A closed stderr is no reason to end.
                let _ = writeln!(io::stderr(), "buslane: {error}");
            }
            (None, None) => {}
        }
    }
}

/// What concerns one client, and not the service.
fn is_of_the_client(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Cancelled
            | ErrorKind::TooLong
            | ErrorKind::Mismatch
            | ErrorKind::Full
            | ErrorKind::TimedOut
            | ErrorKind::LeaseLost
    )
}

fn answer(
    request: Request,
    program: &str,
    status: ExitStatus,
    reply: &[u8],
) -> Result<(), buslane::Error> {
    if status.success() {
        return request.reply(reply);
    }
    let code = status.code().and_then(|code| u32::try_from(code).ok());
    request.refuse(code.unwrap_or(0), &format!("{program} ended with {status}"))
}

/// Runs the command with `request` on its stdin; what it wrote.
fn execute(
    command: &[String],
    request: &[u8],
    stop: &Stop,
) -> Result<(ExitStatus, Vec<u8>), Failure> {
    let failed = |e| child::failed(command, e);
    let mut child = child::spawn(command, Stdio::piped())?;
    let mut stdin = child.stdin.take();
    let reply = thread::scope(|scope| {
        // Beside reading, as the command may write before it has read all.
        scope.spawn(move || {
            // One that does not want all of it says so by its status, or does not mind.
            let _ = stdin.as_mut().map(|stdin| stdin.write_all(request));
        });
        read_all(&mut child, stop)
    });
    let status = child.wait().map_err(failed)?;
    Ok((status, reply.map_err(failed)?))
}

fn read_all(child: &mut Child, stop: &Stop) -> io::Result<Vec<u8>> {
    let (mut reply, mut part) = (Vec::new(), vec![0; 64 * 1024]);
    let Some(mut stdout) = child.stdout.take() else {
        return Ok(reply);
    };
    while stop.wait_readable(stdout.as_fd())? {
        match stdout.read(&mut part)? {
            0 => break,
            len => reply.extend_from_slice(&part[..len]),
        }
    }
    if stop.check().is_err() {
        // It may have ended by itself; it is not reaped yet.
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    }
    Ok(reply)
}
