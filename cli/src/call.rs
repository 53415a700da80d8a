//! `buslane call`: one request, and what a service replies.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use buslane::{Answer, Bus, CallOptions, ErrorKind, Kind, Service};
use clap::ValueEnum;
use serde::Serialize;

use crate::Common;
use crate::failure::Failure;
use crate::output::{Data, Output, json_line, stdout};
use crate::signals::{SLICE, Stop};

/// Ask a service, and write its reply
///
/// The request is stdin, all of it, or --data. It waits until a server is there. If the servers die over it, that is said
/// at once.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  buslane serve upper -- tr a-z A-Z                in one terminal, or several, which share the requests
  echo hello | buslane call upper                  in another
  buslane call upper --data hello --deadline 100ms
  buslane call list --data / --stream              from a service that replies more than once: a line each

Exit status 1 if the service refuses, 3 if the deadline passes, 4 if the servers die over it.")]
pub struct Args {
    /// The service; it is made if there is none of this name
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The request, in the place of stdin
    #[arg(long, value_name = "TEXT")]
    data: Option<String>,
    /// How long to wait for all of it (100ms, 2s); 0 waits for ever
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    deadline: Duration,
    /// What kind of message it is: a server may take one and not the other
    #[arg(long, value_enum, default_value = "command")]
    kind: RequestKind,
    /// Write all replies of a service that replies more than once, each with a newline behind it
    #[arg(long)]
    stream: bool,
}

/// What is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RequestKind {
    /// Do this
    Command,
    /// Here is data
    Document,
}

fn time(text: &str) -> Result<Duration, String> {
    match text {
        "0" => Ok(Duration::ZERO),
        _ => humantime::parse_duration(text)
            .map_err(|_| "give a number and a unit, such as 100ms, 2s or 1m; or 0".into()),
    }
}

/// Asks, and writes what comes.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let request = match &args.data {
        Some(text) => text.clone().into_bytes(),
        None => read_stdin(stop)?,
    };
    let bus = common.open(Bus::builder())?;
    let service = bus.service(&args.service)?;
    let until = (!args.deadline.is_zero()).then(|| Instant::now() + args.deadline);
    wait_for_server(&service, until, stop)?;
    let kind = match args.kind {
        RequestKind::Command => Kind::Command,
        RequestKind::Document => Kind::Document,
    };
    let mut options = CallOptions::new().kind(kind);
    if let Some(until) = until {
        options = options.timeout(until.saturating_duration_since(Instant::now()));
    }
    let client = service.client()?;
    let mut sink = Sink {
        out: stdout(stop)?,
        is_json: common.json,
        is_stream: args.stream,
    };
    if args.stream {
        let mut replies = client.stream_with(&options, &request)?;
        loop {
            stop.check()?;
            let Some(next) = replies.recv_timeout(SLICE)? else {
                continue;
            };
            match accepted(next)? {
                Some(reply) => sink.write(&reply)?,
                None => return Ok(()),
            }
        }
    }
    let mut pending = client.start_with(&options, &request)?;
    loop {
        stop.check()?;
        if let Some(answer) = pending.wait_timeout(SLICE)? {
            return sink.write(&accepted(answer)?);
        }
    }
}

fn read_stdin(stop: &Stop) -> Result<Vec<u8>, Failure> {
    let failed = Failure::system("read stdin");
    let read = || -> io::Result<Vec<u8>> {
        let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let (mut request, mut part) = (Vec::new(), vec![0; 64 * 1024]);
        while stop.wait_readable(stdin.as_fd())? {
            match stdin.read(&mut part)? {
                0 => break,
                len => request.extend_from_slice(&part[..len]),
            }
        }
        Ok(request)
    };
    let request = read().map_err(failed)?;
    stop.check()?;
    Ok(request)
}

/// So that it makes no difference who is started first.
fn wait_for_server(service: &Service, until: Option<Instant>, stop: &Stop) -> Result<(), Failure> {
    let mut presence = service.presence()?;
    loop {
        stop.check()?;
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match presence.wait_for_subscribers(1, Some(left.unwrap_or(SLICE).min(SLICE))) {
            Err(e) if e.kind() == ErrorKind::TimedOut => {}
            waited => return Ok(waited?),
        }
        if left == Some(Duration::ZERO) {
            return Err(Failure::Deadline(format!(
                "cannot call {}: no server came in time; start one (buslane serve), or wait longer (--deadline)",
                service.name()
            )));
        }
    }
}

/// What a service answers, unless it refuses.
fn accepted<T>(answer: Answer<T>) -> Result<T, Failure> {
    answer.map_err(|refusal| Failure::Error(refusal.to_string()))
}

/// Where replies go.
struct Sink<'a> {
    out: Output<'a>,
    is_json: bool,
    is_stream: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    len: usize,
    #[serde(flatten)]
    data: Data<'a>,
}

impl Sink<'_> {
    fn write(&mut self, reply: &[u8]) -> Result<(), Failure> {
        if self.is_json {
            let (len, data) = (reply.len(), Data::new(reply));
            json_line(&mut self.out, &Line { len, data })?;
        } else {
            self.out.write_all(reply).map_err(Failure::stdout)?;
            if self.is_stream {
                self.out.write_all(b"\n").map_err(Failure::stdout)?;
            }
        }
        self.out.flush().map_err(Failure::stdout)
    }
}
