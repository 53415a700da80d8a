//! `buslane state`: the latest value of each key.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use buslane::Bus;
use clap::Subcommand;
use serde::Serialize;

use crate::Common;
use crate::failure::Failure;
use crate::ls::open_existing;
use crate::output::{Data, Output, json_line, stdout};
use crate::signals::{SLICE, Stop};

/// Get, set, and watch the latest value of each key
///
/// A value stays when its writer has gone, and who comes late has it at once.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  buslane state set board kitchen 21.5
  sensors | tail -1 | buslane state set board cellar
  buslane state get board kitchen
  buslane state get board                all keys: KEY, a tab, VALUE, sorted
  buslane state watch board              what there is, then each change")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Print the value of a key, or all keys and values
    Get {
        /// The topic
        topic: String,
        /// The key; without it, all
        key: Option<String>,
    },
    /// Set the value of a key
    Set {
        /// The topic; it is made if there is none of this name
        topic: String,
        /// The key
        key: String,
        /// The value; without it, stdin, less one newline at its end
        value: Option<String>,
    },
    /// Print the values that there are, then each change, until it is ended
    Watch {
        /// The topic; it is made if there is none of this name
        topic: String,
        /// The key; without it, all
        key: Option<String>,
    },
}

/// Does it.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    match &args.action {
        Action::Get { topic, key } => get(common, topic, key.as_deref(), stop),
        Action::Set { topic, key, value } => set(common, topic, key, value.as_deref(), stop),
        Action::Watch { topic, key } => watch(common, topic, key.as_deref(), stop),
    }
}

fn get(common: &Common, topic: &str, key: Option<&str>, stop: &Stop) -> Result<(), Failure> {
    let bus = open_existing(common)?;
    let mut reader = bus.state_builder(topic).create(false).open()?.reader()?;
    let mut out = stdout(stop)?;
    match key {
        Some(key) => {
            let value = reader.get(key.as_bytes())?.ok_or_else(|| {
                Failure::Error(format!(
                    "cannot get {key:?} of {topic}: it was never set; list the keys (buslane state get {topic})"
                ))
            })?;
            if common.json {
                json_line(&mut out, &Line::new(key.as_bytes(), value))?;
            } else {
                out.write_all(value).map_err(Failure::stdout)?;
                out.write_all(b"\n").map_err(Failure::stdout)?;
            }
        }
        None => {
            let mut all = reader.entries()?.collect::<Result<Vec<_>, _>>()?;
            all.sort();
            for (key, value) in &all {
                print(&mut out, common.json, key, value)?;
            }
        }
    }
    out.flush().map_err(Failure::stdout)
}

fn set(
    common: &Common,
    topic: &str,
    key: &str,
    value: Option<&str>,
    stop: &Stop,
) -> Result<(), Failure> {
    let state = common.open(Bus::builder())?.state(topic)?;
    let value = match value {
        Some(value) => value.as_bytes().to_vec(),
        // One byte more than fits, and the newline: enough to be refused.
        None => stdin(state.max_value() + 2, stop)?,
    };
    Ok(state.writer()?.set(key.as_bytes(), &value)?)
}

/// Stdin, but at most so many bytes, less one newline at its end.
fn stdin(most: usize, stop: &Stop) -> Result<Vec<u8>, Failure> {
    let failed = Failure::system("read stdin");
    let mut stdin = io::stdin().lock();
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while bytes.len() < most {
        if !stop.wait_readable(stdin.as_fd()).map_err(&failed)? {
            stop.check()?;
        }
        match stdin.read(&mut buffer).map_err(&failed)? {
            0 => break,
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(bytes)
}

fn watch(common: &Common, topic: &str, key: Option<&str>, stop: &Stop) -> Result<(), Failure> {
    let state = common.open(Bus::builder())?.state(topic)?;
    let mut watch = state.reader()?.watch(key.map(str::as_bytes))?;
    let mut out = stdout(stop)?;
    loop {
        stop.check()?;
        if let Some((key, value)) = watch.try_recv()? {
            print(&mut out, common.json, key, value)?;
            continue;
        }
        out.flush().map_err(Failure::stdout)?;
        if let Some((key, value)) = watch.recv_timeout(SLICE)? {
            print(&mut out, common.json, key, value)?;
        }
    }
}

fn print(out: &mut Output<'_>, json: bool, key: &[u8], value: &[u8]) -> Result<(), Failure> {
    if json {
        return json_line(out, &Line::new(key, value));
    }
    let parts = [key, b"\t", value, b"\n"];
    parts
        .iter()
        .try_for_each(|part| out.write_all(part))
        .map_err(Failure::stdout)
}

/// A key and its value in JSON.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    key: Key<'a>,
    len: usize,
    #[serde(flatten)]
    data: Data<'a>,
}

/// A key in JSON: text if it is text.
#[derive(Serialize)]
enum Key<'a> {
    #[serde(rename = "key")]
    Text(&'a str),
    #[serde(rename = "key_hex")]
    Bytes(String),
}

impl<'a> Line<'a> {
    fn new(key: &'a [u8], value: &'a [u8]) -> Self {
        let key = match Data::new(key) {
            Data::Text(text) => Key::Text(text),
            Data::Bytes(hex) => Key::Bytes(hex),
        };
        Self {
            key,
            len: value.len(),
            data: Data::new(value),
        }
    }
}
