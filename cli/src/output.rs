//! Stdout for commands that may be blocked by it, or lose it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::UNIX_EPOCH;

use buslane::Envelope;
use serde::Serialize;

use crate::failure::Failure;
use crate::signals::Stop;

/// What is smaller is gathered; what is larger goes to the system straight from where it lies.
const BUFFER_BYTES: usize = 16 * 1024;

/// Stdout, gathered into larger writes: flush it when there is nothing more to write for now.
pub type Output<'a> = BufWriter<Stdout<'a>>;

/// Opens stdout.
pub fn stdout(stop: &Stop) -> Result<Output<'_>, Failure> {
    let file = Stdout::open().map_err(Failure::stdout)?;
    Ok(BufWriter::with_capacity(
        BUFFER_BYTES,
        Stdout { file, stop },
    ))
}

/// Writes `value` as one line of JSON.
pub fn json_line(out: &mut impl Write, value: &impl Serialize) -> Result<(), Failure> {
    serde_json::to_writer(&mut *out, value).map_err(|error| Failure::stdout(error.into()))?;
    out.write_all(b"\n").map_err(Failure::stdout)
}

/// A message's bytes in JSON: text if they are text.
#[derive(Debug, Serialize)]
pub enum Data<'a> {
    #[serde(rename = "data")]
    Text(&'a str),
    #[serde(rename = "data_hex")]
    Bytes(String),
}

impl<'a> Data<'a> {
    /// Looks which it is.
    pub fn new(bytes: &'a [u8]) -> Self {
        match str::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(_) => Self::Bytes(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        }
    }
}

/// What goes with a message, in JSON.
#[derive(Debug, Serialize)]
pub struct EnvelopeJson {
    kind: &'static str,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    type_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    type_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<String>,
    /// 0: it is late.
    #[serde(skip_serializing_if = "Option::is_none")]
    time_left_ns: Option<u64>,
    /// The services that have passed it on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trace: Vec<String>,
}

impl EnvelopeJson {
    /// What is known of it. A type has a number where it has no name.
    pub fn new(envelope: &Envelope) -> Self {
        let type_name = envelope.type_name().map(String::from);
        let type_id = Some(envelope.type_id()).filter(|&id| id != 0 && type_name.is_none());
        let sent = envelope
            .sent()
            .and_then(|sent| sent.duration_since(UNIX_EPOCH).ok());
        Self {
            kind: envelope.kind().name(),
            type_name,
            type_id: type_id.map(|id| format!("{id:016x}")),
            sent_ns: sent.map(|since| since.as_nanos() as u64),
            correlation: Some(envelope.correlation()).filter(|&correlation| correlation != 0),
            reply_to: Some(envelope.reply_to())
                .filter(|&inbox| inbox != 0)
                .map(|inbox| format!("{inbox:016x}")),
            time_left_ns: envelope.time_left().map(|left| left.as_nanos() as u64),
            trace: envelope.trace().map(String::from).collect(),
        }
    }
}

/// Rows for people, with the columns aligned.
pub fn table(out: &mut impl Write, rows: &[Vec<String>]) -> Result<(), Failure> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<_> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    for row in rows {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        writeln!(out, "{}", cells.join("  ").trim_end()).map_err(Failure::stdout)?;
    }
    Ok(())
}

/// Stdout without a buffer; a signal ends a write that waits for a slow reader.
#[derive(Debug)]
pub struct Stdout<'a> {
    file: File,
    stop: &'a Stop,
}

impl Stdout<'_> {
    /// A pipe is opened anew, to make it non-blocking for us and not for those we share it with.
    fn open() -> io::Result<File> {
        let shared = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        if !shared.metadata()?.file_type().is_fifo() {
            return Ok(shared);
        }
        let own = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/proc/self/fd/1");
        Ok(own.unwrap_or(shared)) // another user's pipe cannot be opened: then it blocks
    }
}

impl AsFd for Stdout<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Write for Stdout<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.stop.wait_writable(self.file.as_fd())? {
                        return Err(io::Error::other("ended by a signal"));
                    }
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
