//! Reads an MCAP file, of ours or not, as far as it can be read: what is damaged is said and passed over, and nothing that the file
//! says of its sizes is believed before it is held against the file.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::Path;

use mcap::records::{self, ChunkHeader, MessageHeader, Record, op};
use mcap::sans_io::summary_reader::SummaryReaderOptions;
use mcap::sans_io::{
    LinearReadEvent, LinearReader, LinearReaderOptions, SummaryReadEvent, SummaryReader,
};
use mcap::{MAGIC, McapError, McapResult, Summary, parse_record};

use crate::failure::Failure;

/// Bytes in the largest record that is read, and in the largest compressed chunk once it is not compressed any more.
const LARGEST: u64 = 1 << 30;
/// The same of a record in the summary, which has none of messages.
const LARGEST_IN_SUMMARY: usize = 64 << 20;
/// Bytes before a record: what it is, and its length.
const BEFORE: usize = 9;
/// Bytes in a chunk's header, beside the name of its compression.
const CHUNK_HEADER: usize = 40;
/// The first of the opcodes that are for anybody's own records.
const PRIVATE: u8 = 0x80;

/// What is in a file, one after the other.
#[derive(Debug)]
pub enum Found<'a> {
    /// A topic.
    Channel(records::Channel),
    /// A message.
    Message(MessageHeader, &'a [u8]),
    /// What is said about the file.
    Metadata(records::Metadata),
    /// A record of somebody's own, as [`BESIDE`](super::BESIDE).
    Private(u8, &'a [u8]),
    /// What can't be read, and is passed over: where it begins, and why.
    Damage(u64, String),
    /// So many bytes of the file are done with.
    Passed(u64),
}

/// Whether who looks at a file has seen enough.
pub type Shown = Result<ControlFlow<()>, Failure>;

/// How far a file was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// To its end.
    Whole,
    /// It has no end: at this byte there is nothing more that is whole.
    CutOff(u64),
    /// As far as it was wanted.
    Enough,
}

/// An MCAP file.
#[derive(Debug)]
pub struct Reader {
    file: BufReader<File>,
    len: u64,
    /// Where the next record begins.
    at: u64,
    /// What stands at the end of a file that is whole.
    summary: Option<Summary>,
    /// Log times that are wanted.
    wanted: Option<Range<u64>>,
    /// The record that is read.
    body: Vec<u8>,
}

/// Why a record was not shown.
enum Trouble {
    /// The file ends in it.
    Short,
    Damage(String),
    Read(io::Error),
    /// Who was shown it can't go on.
    Shown(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Shown(failure)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Short,
            _ => Self::Read(error),
        }
    }
}

enum Step {
    Next,
    Enough,
    End,
}

impl From<ControlFlow<()>> for Step {
    fn from(flow: ControlFlow<()>) -> Self {
        match flow {
            ControlFlow::Continue(()) => Self::Next,
            ControlFlow::Break(()) => Self::Enough,
        }
    }
}

impl Reader {
    /// Opens it.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let cannot = |error: io::Error| Failure::Error(format!("cannot read {shown}: {error}"));
        let mut file = File::open(path).map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        if !metadata.is_file() {
            return Err(Failure::Error(format!(
                "cannot replay {shown}: it is no ordinary file; copy it into one"
            )));
        }
        let mut magic = [0; MAGIC.len()];
        if file.read_exact(&mut magic).is_err() || magic != *MAGIC {
            return Err(Failure::Error(format!(
                "cannot replay {shown}: it is no MCAP file, as `buslane record` makes them; check the path"
            )));
        }
        let len = metadata.len();
        // Without one, all is found on the way.
        let summary = read_summary(&mut file, len).unwrap_or(None);
        let at = MAGIC.len() as u64;
        file.seek(SeekFrom::Start(at)).map_err(cannot)?;
        Ok(Self {
            file: BufReader::with_capacity(1 << 16, file),
            len,
            at,
            summary,
            wanted: None,
            body: Vec::new(),
        })
    }

    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// What stands at its end, if it is whole so far.
    pub fn summary(&self) -> Option<&Summary> {
        self.summary.as_ref()
    }

    /// Passes over chunks without messages of these log times, and all else that is in there.
    pub fn want(&mut self, times: Range<u64>) {
        self.wanted = Some(times);
    }

    /// Shows what is in it, in its order.
    pub fn read(&mut self, show: &mut impl FnMut(Found<'_>) -> Shown) -> Result<End, Failure> {
        loop {
            let at = self.at;
            let step = match self.step(show) {
                Ok(step) => step,
                Err(Trouble::Short) => return Ok(End::CutOff(at)),
                Err(Trouble::Read(error)) => {
                    return Err(Failure::system("read the recording")(error));
                }
                Err(Trouble::Shown(failure)) => return Err(failure),
                Err(Trouble::Damage(why)) => {
                    let shown = show(Found::Damage(at, why))?;
                    let goes_on = self.at > at || self.find_chunk_behind(at)?;
                    match goes_on {
                        true => shown.into(),
                        false => return Ok(End::CutOff(at)),
                    }
                }
            };
            match step {
                Step::Next => {
                    let passed = self.at - at;
                    if show(Found::Passed(passed))?.is_break() {
                        return Ok(End::Enough);
                    }
                }
                Step::Enough => return Ok(End::Enough),
                Step::End => return Ok(End::Whole),
            }
        }
    }

    /// After a record of which not even the length is right: goes on where the summary says that a chunk begins.
    fn find_chunk_behind(&mut self, at: u64) -> Result<bool, Failure> {
        let chunks = self
            .summary
            .iter()
            .flat_map(|summary| &summary.chunk_indexes);
        let starts = chunks.map(|chunk| chunk.chunk_start_offset);
        let Some(next) = starts.filter(|&start| start > at && start < self.len).min() else {
            return Ok(false);
        };
        self.at = next;
        let sought = self.file.seek(SeekFrom::Start(next));
        sought.map_err(Failure::system("read the recording"))?;
        Ok(true)
    }

    /// Shows the next record, and is then behind it: also if that record is damaged, unless its length is.
    fn step(&mut self, show: &mut impl FnMut(Found<'_>) -> Shown) -> Result<Step, Trouble> {
        let mut before = [0; BEFORE];
        self.file.read_exact(&mut before)?;
        let [opcode, len @ ..] = before;
        let len = u64::from_le_bytes(len);
        let left = self.len.saturating_sub(self.at + BEFORE as u64);
        if opcode == 0 || len > left {
            if opcode != 0 && self.summary.is_none() {
                if opcode == op::CHUNK {
                    self.read_body(left.min(LARGEST))?;
                    self.show_beginning(self.at, len, show)?;
                }
                return Err(Trouble::Short);
            }
            let why = format!("a record of kind {opcode:#04x} and {len} bytes");
            return Err(Trouble::Damage(why));
        }
        let at = self.at;
        self.at += BEFORE as u64 + len;
        match opcode {
            op::DATA_END | op::FOOTER => return Ok(Step::End),
            op::CHUNK | op::CHANNEL | op::MESSAGE | op::METADATA | PRIVATE.. if len <= LARGEST => {}
            op::CHUNK | op::CHANNEL | op::MESSAGE | op::METADATA | PRIVATE.. => {
                self.pass(len)?;
                let why = format!("a record of {len} bytes, and {LARGEST} are the limit");
                return Err(Trouble::Damage(why));
            }
            _ => {
                self.pass(len)?;
                return Ok(Step::Next);
            }
        }
        self.read_body(len)?;
        match opcode {
            op::CHUNK => self.show_chunk(at, show),
            _ => Ok(show_record(at, opcode, &self.body, show)?.into()),
        }
    }

    fn pass(&mut self, len: u64) -> io::Result<()> {
        // No more than the file has.
        self.file.seek_relative(len.cast_signed())
    }

    fn read_body(&mut self, len: u64) -> Result<(), Trouble> {
        self.body.clear();
        let read = self.file.by_ref().take(len).read_to_end(&mut self.body)?;
        match read as u64 == len {
            true => Ok(()),
            false => Err(Trouble::Short),
        }
    }

    /// Shows what is in a chunk, if it is as it was written.
    fn show_chunk(
        &self,
        at: u64,
        show: &mut impl FnMut(Found<'_>) -> Shown,
    ) -> Result<Step, Trouble> {
        let (header, used) = chunk_header(&self.body).map_err(damage)?;
        if let Some(wanted) = &self.wanted
            && (header.message_end_time < wanted.start || header.message_start_time >= wanted.end)
        {
            return Ok(Step::Next);
        }
        let mut limit = used as u64;
        if !header.compression.is_empty() {
            limit = limit.max(header.uncompressed_size);
        }
        if limit > LARGEST {
            let why = format!("a compressed chunk of {limit} bytes, and {LARGEST} are the limit");
            return Err(Trouble::Damage(why));
        }
        let options = LinearReaderOptions::default()
            .with_prevalidate_chunk_crcs(true)
            .with_record_length_limit(limit as usize);
        // Without what is behind the messages, which belongs to none of them.
        let chunk = (used as u64, &self.body[..used]);
        match show_records(options, chunk, at, show)? {
            Ok(flow) => Ok(flow.into()),
            Err(error) => Err(damage(error)),
        }
    }

    /// Shows what is whole in a chunk of `len` bytes in which the file ends.
    fn show_beginning(
        &self,
        at: u64,
        len: u64,
        show: &mut impl FnMut(Found<'_>) -> Shown,
    ) -> Result<(), Trouble> {
        if chunk_header(&self.body).is_ok() {
            return self.show_chunk(at, show).map(drop);
        }
        let options = LinearReaderOptions::default().with_record_length_limit(LARGEST as usize);
        // That it has no end is known.
        let _ = show_records(options, (len, &self.body), at, show)?;
        Ok(())
    }
}

/// A chunk's header, and how many bytes of its record are of use.
fn chunk_header(body: &[u8]) -> McapResult<(ChunkHeader, usize)> {
    match parse_record(op::CHUNK, body)? {
        Record::Chunk { header, data } => {
            let used = CHUNK_HEADER + header.compression.len() + data.len();
            Ok((header, used))
        }
        _ => Err(McapError::UnexpectedEoc),
    }
}

/// Shows the records in a chunk that says it has so many bytes, and has these.
fn show_records(
    options: LinearReaderOptions,
    (len, bytes): (u64, &[u8]),
    at: u64,
    show: &mut impl FnMut(Found<'_>) -> Shown,
) -> Result<McapResult<ControlFlow<()>>, Trouble> {
    let options = options
        .with_skip_start_magic(true)
        .with_skip_end_magic(true);
    let mut reader = LinearReader::new_with_options(options);
    let head = [&[op::CHUNK][..], &len.to_le_bytes()].concat();
    let mut source = (&head[..]).chain(bytes);
    let mut left = BEFORE + bytes.len();
    while let Some(event) = reader.next_event() {
        match event {
            Ok(LinearReadEvent::ReadRequest(wanted)) => {
                let read = source.read(reader.insert(wanted.min(left)))?;
                reader.notify_read(read);
                left -= read;
            }
            Ok(LinearReadEvent::Record { opcode, data }) => {
                if show_record(at, opcode, data, show)?.is_break() {
                    return Ok(Ok(ControlFlow::Break(())));
                }
            }
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(ControlFlow::Continue(())))
}

/// Shows a record, if it is one that anybody wants.
fn show_record(
    at: u64,
    opcode: u8,
    data: &[u8],
    show: &mut impl FnMut(Found<'_>) -> Shown,
) -> Shown {
    match opcode {
        op::CHANNEL | op::MESSAGE | op::METADATA => match parse_record(opcode, data) {
            Ok(Record::Channel(channel)) => show(Found::Channel(channel)),
            Ok(Record::Metadata(metadata)) => show(Found::Metadata(metadata)),
            Ok(Record::Message { header, data }) => show(Found::Message(header, &data)),
            Ok(_) => Ok(ControlFlow::Continue(())),
            Err(error) => show(Found::Damage(at, error.to_string())),
        },
        PRIVATE.. => show(Found::Private(opcode, data)),
        _ => Ok(ControlFlow::Continue(())),
    }
}

fn damage(error: McapError) -> Trouble {
    Trouble::Damage(error.to_string())
}

fn read_summary(file: &mut File, len: u64) -> McapResult<Option<Summary>> {
    let options = SummaryReaderOptions::default()
        .with_file_size(len)
        .with_record_length_limit(LARGEST_IN_SUMMARY);
    let mut reader = SummaryReader::new_with_options(options);
    while let Some(event) = reader.next_event() {
        match event? {
            SummaryReadEvent::ReadRequest(want) => {
                let read = file.read(reader.insert(want))?;
                reader.notify_read(read);
            }
            SummaryReadEvent::SeekRequest(to) => reader.notify_seeked(file.seek(to)?),
        }
    }
    Ok(reader.finish())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::super::writer::{Channel, Compression, Writer};
    use super::super::{Beside, Gap, OPAQUE};
    use super::*;

    /// Messages in each of [`CHUNKS`] chunks.
    const MESSAGES: u32 = 4;
    const CHUNKS: u32 = 3;

    fn payload(sequence: u32) -> Vec<u8> {
        let len = sequence as usize * 37 % 90;
        (0..len)
            .map(|i| (sequence as usize * 31 + i) as u8)
            .collect()
    }

    fn recorded(beside: &Path, compression: Compression) -> Vec<u8> {
        let path = beside.with_extension("made");
        let mut writer = Writer::create(&path, compression, BTreeMap::new()).unwrap();
        writer.add_channel(Channel {
            id: 1,
            topic: "t".into(),
            encoding: OPAQUE.into(),
            schema: None,
            metadata: BTreeMap::new(),
        });
        for sequence in 0..CHUNKS * MESSAGES {
            let header = MessageHeader {
                channel_id: 1,
                sequence,
                log_time: 1000 + u64::from(sequence),
                publish_time: 0,
            };
            let beside = Beside {
                lane: 1,
                envelope: None,
            };
            writer.add_message(header, &beside, &payload(sequence));
            if sequence % MESSAGES == MESSAGES - 1 {
                writer.flush().unwrap();
            }
        }
        writer.add_gap(&Gap {
            channel: 1,
            log_time: 2000,
            lane: 1,
            messages: 1,
            bytes: 1,
        });
        writer.finish(BTreeMap::new()).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        bytes
    }

    /// The sequence numbers of what is found in such a file, all of them as they were written; and what is said about it.
    fn found(path: &Path, bytes: &[u8]) -> Option<(Vec<u32>, Vec<String>, End)> {
        fs::write(path, bytes).unwrap();
        let mut reader = Reader::open(path).ok()?;
        let (mut sequences, mut damage) = (Vec::new(), Vec::new());
        let end = reader.read(&mut |found| {
            match found {
                Found::Message(header, data) => {
                    assert_eq!(data, payload(header.sequence));
                    sequences.push(header.sequence);
                }
                Found::Damage(at, why) => {
                    assert!(at < bytes.len() as u64);
                    damage.push(why);
                }
                _ => {}
            }
            Ok(ControlFlow::Continue(()))
        });
        Some((sequences, damage, end.unwrap()))
    }

    const ALL: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

    #[test]
    fn what_is_whole_in_a_file_that_was_cut_off_is_found_wherever_that_was() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("recording");
        for compression in ALL {
            let bytes = recorded(&path, compression);
            let all: Vec<u32> = (0..CHUNKS * MESSAGES).collect();
            let (whole, damage, end) = found(&path, &bytes).unwrap();
            assert_eq!((whole, damage, end), (all.clone(), Vec::new(), End::Whole));
            let mut most = 0;
            for len in 0..bytes.len() {
                let Some((sequences, damage, end)) = found(&path, &bytes[..len]) else {
                    assert!(len < MAGIC.len());
                    continue;
                };
                assert_eq!(sequences, all[..sequences.len()], "{compression:?}, {len}");
                assert!(sequences.len() >= most, "{compression:?}, {len}");
                assert!(damage.is_empty(), "{compression:?}, {len}: {damage:?}");
                assert!(sequences.len() == all.len() || end != End::Whole);
                most = sequences.len();
            }
            assert_eq!(most, all.len());
        }
    }

    #[test]
    fn one_damaged_chunk_costs_that_chunk() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("recording");
        for compression in ALL {
            let mut bytes = recorded(&path, compression);
            fs::write(&path, &bytes).unwrap();
            let reader = Reader::open(&path).unwrap();
            let chunk = reader.summary().unwrap().chunk_indexes[2].clone();
            let (start, len) = (chunk.chunk_start_offset, chunk.chunk_length);
            let rest: Vec<u32> = (0..2 * MESSAGES)
                .chain(3 * MESSAGES..CHUNKS * MESSAGES)
                .collect();
            // In what it holds, then in its length: the summary says where the next one is.
            let inside = (start + len / 2) as usize;
            for (at, with) in [(inside, !bytes[inside]), (start as usize + 8, 0x7f)] {
                let before = std::mem::replace(&mut bytes[at], with);
                let (sequences, damage, end) = found(&path, &bytes).unwrap();
                assert_eq!(sequences, rest, "{compression:?}, {at}");
                assert_eq!((damage.len(), end), (1, End::Whole), "{damage:?}");
                bytes[at] = before;
            }
        }
    }

    #[test]
    fn any_damage_is_said_or_harmless() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("recording");
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as usize % below
        };
        for compression in ALL {
            let bytes = recorded(&path, compression);
            for _ in 0..1000 {
                let mut damaged = bytes.clone();
                for _ in 0..=random(3) {
                    let at = random(damaged.len());
                    match random(4) {
                        0 => damaged[at] ^= 1 << random(8),
                        1 => damaged[at] = [0, 0xff, 0x7f, 0x80][random(4)],
                        2 => {
                            let end = damaged.len().min(at + 8);
                            damaged[at..end].fill([0, 0xff][random(2)]);
                        }
                        _ => {
                            let end = damaged.len().min(at + random(40));
                            damaged.drain(at..end);
                        }
                    }
                    if damaged.is_empty() {
                        break;
                    }
                }
                // What is checked below is that nothing panics, takes memory without end, or goes on for ever.
                fs::write(&path, &damaged).unwrap();
                let Ok(mut reader) = Reader::open(&path) else {
                    continue;
                };
                let mut found = 0;
                let read = reader.read(&mut |_| {
                    found += 1;
                    Ok(ControlFlow::Continue(()))
                });
                assert!(read.is_ok() && found < 10_000);
            }
        }
    }
}
