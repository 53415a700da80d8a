//! Writes a recording: gathers what comes into chunks, in memory, and has another thread put them into the file, so that who
//! receives does not wait for the disk.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use clap::ValueEnum;
use mcap::records::{MessageHeader, Metadata};
use mcap::write::{NoSeek, PrivateRecordOptions};
use mcap::{McapError, McapResult, WriteOptions};

use super::{BESIDE, Beside, Gap, LOST, TYPE};
use crate::failure::Failure;

/// Bytes in a chunk, from which on it goes into the file. All of it is read to find one message.
const CHUNK: usize = 1 << 20;
/// Bytes that wait for the disk before who receives waits, too.
const BUFFER: usize = 256 << 20;

/// How chunks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// Not at all: the fastest, at the size of what was sent
    None,
    /// Fast
    Lz4,
    /// Smaller, and slower
    Zstd,
}

/// A topic, as the file has it.
#[derive(Clone, Debug)]
pub struct Channel {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub topic: String,
    /// How its messages are encoded.
    pub encoding: String,
    /// The name of the type of its messages, and a line about it.
    pub schema: Option<(String, String)>,
    /// What else is known.
    pub metadata: BTreeMap<String, String>,
}

/// What goes into the file as one chunk.
#[derive(Debug, Default)]
struct Batch {
    channels: Vec<Channel>,
    /// In the order in which they came; what they carry follows each other in `bytes`.
    entries: Vec<(Entry, usize)>,
    bytes: Vec<u8>,
}

#[derive(Debug)]
enum Entry {
    Message(MessageHeader),
    /// A record of ours, with this opcode.
    Private(u8),
}

type Sink = mcap::Writer<NoSeek<BufWriter<File>>>;

/// A recording that is being written.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    batch: Batch,
    /// The lane of each channel's last message in the batch; 0: there is none yet.
    lanes: Vec<u64>,
    /// Bytes that are on their way to the file.
    under_way: usize,
    full: Sender<Batch>,
    empty: Receiver<Batch>,
    /// None: it has ended, and that was told.
    thread: Option<JoinHandle<McapResult<Sink>>>,
}

impl Writer {
    /// Makes the file, which must not be there yet (or be no ordinary file: a FIFO).
    pub fn create(
        path: &Path,
        compression: Compression,
        about: BTreeMap<String, String>,
    ) -> Result<Self, Failure> {
        let file = open(path).map_err(|error| {
            let todo = match error.kind() {
                io::ErrorKind::AlreadyExists => "; remove it, or name another",
                _ => "",
            };
            Failure::Error(format!("cannot make {}: {error}{todo}", path.display()))
        })?;
        let options = WriteOptions::new()
            .library(concat!("buslane ", env!("CARGO_PKG_VERSION")))
            .compression(match compression {
                Compression::None => None,
                Compression::Lz4 => Some(mcap::Compression::Lz4),
                Compression::Zstd => Some(mcap::Compression::Zstd),
            })
            // The other processors are for who sends and receives.
            .compression_threads(0)
            // A chunk is one batch, and comes into the file in one piece.
            .chunk_size(None)
            .disable_seeking(true)
            // Each chunk has one.
            .calculate_data_section_crc(false);
        let about = Metadata {
            name: super::ABOUT.into(),
            metadata: about,
        };
        let begun = options
            .create(NoSeek::new(BufWriter::new(file)))
            .and_then(|mut sink| {
                sink.write_metadata(&about)?;
                sink.flush()?;
                Ok(sink)
            });
        let sink = begun.map_err(cannot_write(path))?;
        let ((full, to_write), (written, empty)) = (channel(), channel());
        let thread = thread::Builder::new()
            .name("recording".into())
            .spawn(move || write_all(sink, &to_write, &written))
            .map_err(Failure::system("start a thread"))?;
        Ok(Self {
            path: path.to_owned(),
            batch: Batch::default(),
            lanes: Vec::new(),
            under_way: 0,
            full,
            empty,
            thread: Some(thread),
        })
    }

    /// A topic that comes into the file.
    pub fn add_channel(&mut self, channel: Channel) {
        self.lanes.resize(usize::from(channel.id) + 1, 0);
        self.batch.channels.push(channel);
    }

    /// A message of a channel that was added.
    pub fn add_message(&mut self, header: MessageHeader, beside: &Beside, payload: &[u8]) {
        let lane = &mut self.lanes[usize::from(header.channel_id)];
        if beside.envelope.is_some() || *lane != beside.lane {
            *lane = beside.lane;
            self.batch
                .add_private(BESIDE, |bytes| beside.encode_into(bytes));
        }
        self.batch.bytes.extend_from_slice(payload);
        let entry = (Entry::Message(header), payload.len());
        self.batch.entries.push(entry);
    }

    /// Messages that are missing here.
    pub fn add_gap(&mut self, gap: &Gap) {
        self.batch.add_private(LOST, |bytes| gap.encode_into(bytes));
    }

    /// Whether there is enough for a chunk.
    pub fn is_due(&self) -> bool {
        self.batch.size() >= CHUNK
    }

    /// Has what was added go into the file. Waits while too much is on its way there.
    pub fn flush(&mut self) -> Result<(), Failure> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut next = None;
        loop {
            let must_wait = self.under_way > BUFFER;
            let written = match must_wait {
                true => self.empty.recv().ok(),
                false if next.is_none() => self.empty.try_recv().ok(),
                false => None,
            };
            match written {
                Some(batch) => {
                    self.under_way -= batch.size();
                    next = Some(batch);
                }
                None if must_wait => return Err(self.failure()),
                None => break,
            }
        }
        let mut next = next.unwrap_or_default();
        next.clear();
        let full = std::mem::replace(&mut self.batch, next);
        self.under_way += full.size();
        self.lanes.fill(0);
        self.full.send(full).map_err(|_| self.failure())
    }

    /// Why the thread has ended before it should.
    fn failure(&mut self) -> Failure {
        let joined = self.thread.take().map(JoinHandle::join);
        match joined {
            Some(Ok(Err(error))) => cannot_write(&self.path)(error),
            _ => ended(&self.path),
        }
    }

    /// Writes what is left, what was `lost`, and all that makes the file whole.
    pub fn finish(mut self, lost: BTreeMap<String, String>) -> Result<(), Failure> {
        self.flush()?;
        let Self {
            path, full, thread, ..
        } = self;
        drop(full);
        let Some(thread) = thread else {
            return Ok(()); // why, was told before
        };
        let written = thread.join().map_err(|_| ended(&path))?;
        let end = || {
            let mut sink = written?;
            if !lost.is_empty() {
                sink.write_metadata(&Metadata {
                    name: super::LOST_OF.into(),
                    metadata: lost,
                })?;
            }
            sink.finish()?;
            Ok(sink.into_inner().into_inner().flush()?)
        };
        end().map_err(cannot_write(&path))
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.channels.is_empty()
    }

    fn add_private(&mut self, opcode: u8, encode: impl FnOnce(&mut Vec<u8>)) {
        let before = self.bytes.len();
        encode(&mut self.bytes);
        let len = self.bytes.len() - before;
        self.entries.push((Entry::Private(opcode), len));
    }

    /// To be filled again.
    fn clear(&mut self) {
        self.channels.clear();
        self.entries.clear();
        self.bytes.clear();
        // A message that was large is no reason to keep so much.
        self.bytes.shrink_to(2 * CHUNK);
    }

    /// Bytes in it: also messages without any take some.
    fn size(&self) -> usize {
        self.bytes.len() + size_of_val(&self.entries[..])
    }

    /// Writes it as a chunk.
    fn write(&self, sink: &mut Sink) -> McapResult<()> {
        for channel in &self.channels {
            let schema = match &channel.schema {
                Some((name, text)) => sink.add_schema(name, TYPE, text.as_bytes())?,
                None => 0,
            };
            let Channel {
                id,
                topic,
                encoding,
                metadata,
                ..
            } = channel;
            sink.add_channel_with_id(*id, schema, topic, encoding, metadata)?;
        }
        let mut rest = &self.bytes[..];
        for (entry, len) in &self.entries {
            let (bytes, behind) = rest.split_at(*len);
            rest = behind;
            match entry {
                Entry::Message(header) => sink.write_to_known_channel(header, bytes)?,
                Entry::Private(opcode) => {
                    let place = PrivateRecordOptions::IncludeInChunks.into();
                    sink.write_private_record(*opcode, bytes, place)?;
                }
            }
        }
        sink.flush()
    }
}

/// What the thread does.
fn write_all(mut sink: Sink, full: &Receiver<Batch>, written: &Sender<Batch>) -> McapResult<Sink> {
    for batch in full {
        batch.write(&mut sink)?;
        // Who has no use for it any more is at its end.
        let _ = written.send(batch);
    }
    Ok(sink)
}

fn open(path: &Path) -> io::Result<File> {
    let is_special = fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    OpenOptions::new()
        .write(true)
        .create_new(!is_special)
        .open(path)
}

/// The thread ended, and does not say why.
fn ended(path: &Path) -> Failure {
    Failure::Error(format!("cannot write {}: its writer ended", path.display()))
}

fn cannot_write(path: &Path) -> impl Fn(McapError) -> Failure {
    move |error| {
        let path = path.display();
        match error {
            McapError::Io(error) => Failure::Error(format!(
                "cannot write {path}: {error}; what is in it can be replayed up to there"
            )),
            error => Failure::Error(format!("cannot write {path}: {error}")),
        }
    }
}
