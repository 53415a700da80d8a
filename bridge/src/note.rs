//! What goes with a message over the network, beside its payload: an attachment. `docs/bridge.md` has its layout, for other
//! programs.

use std::time::{Duration, SystemTime};

use buslane::{Envelope, Kind};
use zenoh::bytes::ZBytes;

use crate::home::BusId;

/// What an attachment of ours begins with; the last byte is the version.
const MAGIC: [u8; 3] = *b"BL\x01";
/// What is said of an attachment that begins as ours, and goes on otherwise.
pub const GARBAGE: &str = "an attachment contradicts itself, or is of a later version";
/// More hops than this are a loop.
pub const MAX_HOPS: usize = 16;

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Tag {
    Kind = 1,
    TypeName = 2,
    Correlation = 3,
    SentNs = 4,
    TraceParent = 5,
    Hop = 6,
    From = 7,
    Copy = 8,
    TimeLeftNs = 9,
    Version = 10,
    Sizes = 11,
    Sender = 12,
}

/// What an attachment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// The message's envelope, if it has one.
    pub envelope: Option<Envelope>,
    /// The bus from which it comes.
    pub from: Option<BusId>,
    /// Bridges get this message in another way, too.
    pub is_copy: bool,
    /// How long a request is worth anything yet.
    pub time_left: Option<Duration>,
    /// Of a state's value: the larger one is the newer one.
    pub version: Option<u64>,
    /// Of a state: the most keys, bytes in a key, and bytes in a value.
    pub sizes: Option<[u64; 3]>,
}

/// What came as an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attached {
    /// Ours.
    Note(Note),
    /// Another program's, which means nothing to us.
    Foreign,
    /// It begins as ours, and goes on otherwise.
    Garbage,
}

impl Note {
    /// As an attachment.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        self.put(&mut bytes);
        bytes
    }

    /// What goes with a message: nothing, if it has no attachment, or another program's. `None`: [`GARBAGE`].
    pub fn of(attachment: Option<&ZBytes>) -> Option<Self> {
        match attachment.map(|bytes| Self::read(&bytes.to_bytes())) {
            Some(Attached::Note(note)) => Some(note),
            Some(Attached::Foreign) | None => Some(Self::default()),
            Some(Attached::Garbage) => None,
        }
    }

    /// Reads an attachment.
    pub fn read(bytes: &[u8]) -> Attached {
        match bytes.split_first_chunk() {
            Some((&MAGIC, rest)) => Self::entries(rest).map_or(Attached::Garbage, Attached::Note),
            Some(([b'B', b'L', _], _)) => Attached::Garbage,
            _ => Attached::Foreign,
        }
    }

    /// Adds its entries alone.
    pub fn put(&self, bytes: &mut Vec<u8>) {
        if let Some(envelope) = &self.envelope {
            put_envelope(envelope, bytes);
        }
        if let Some(from) = &self.from {
            put(bytes, Tag::From, &from.0);
        }
        if self.is_copy {
            put(bytes, Tag::Copy, &[]);
        }
        if let Some(left) = self.time_left {
            put(bytes, Tag::TimeLeftNs, &ns(left).to_le_bytes());
        }
        if let Some(version) = self.version {
            put(bytes, Tag::Version, &version.to_le_bytes());
        }
        if let Some(sizes) = self.sizes {
            put(
                bytes,
                Tag::Sizes,
                sizes.map(u64::to_le_bytes).as_flattened(),
            );
        }
    }

    /// Reads entries. What a later version adds is passed over. `None`: they contradict themselves.
    pub fn entries(mut bytes: &[u8]) -> Option<Self> {
        let mut note = Self::default();
        while let [tag, low, high, rest @ ..] = bytes {
            let len = usize::from(u16::from_le_bytes([*low, *high]));
            let (entry, behind) = rest.split_at_checked(len)?;
            note.take(*tag, entry)?;
            bytes = behind;
        }
        bytes.is_empty().then_some(note)
    }

    fn take(&mut self, tag: u8, entry: &[u8]) -> Option<()> {
        let number = || Some(u64::from_le_bytes(entry.try_into().ok()?));
        let text = || std::str::from_utf8(entry).ok();
        let is = |wanted: Tag| tag == wanted as u8;
        if is(Tag::Kind) {
            let &[kind] = entry else { return None };
            self.envelope = Some(Envelope::new(kind_of(kind)));
        } else if is(Tag::From) {
            self.from = Some(BusId(entry.try_into().ok()?));
        } else if is(Tag::Copy) {
            self.is_copy = true;
        } else if is(Tag::TimeLeftNs) {
            self.time_left = Some(Duration::from_nanos(number()?));
        } else if is(Tag::Version) {
            self.version = Some(number()?);
        } else if is(Tag::Sizes) {
            let (words, []) = entry.as_chunks::<8>() else {
                return None;
            };
            self.sizes = Some(
                <[[u8; 8]; 3]>::try_from(words)
                    .ok()?
                    .map(u64::from_le_bytes),
            );
        } else if is(Tag::TypeName) {
            let name = text()?;
            self.edit(|envelope| envelope.of_type(name))?;
        } else if is(Tag::Correlation) {
            let number = number()?;
            self.edit(|envelope| envelope.correlated(number))?;
        } else if is(Tag::SentNs) {
            let sent = SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(number()?))?;
            self.edit(|envelope| envelope.sent_at(sent))?;
        } else if is(Tag::TraceParent) {
            let parent = text()?.parse().ok()?;
            self.edit(|envelope| envelope.traced(parent))?;
        } else if is(Tag::Sender) {
            let name = text()?;
            self.edit(|envelope| envelope.sent_by(name))?;
        } else if is(Tag::Hop) {
            let name = text()?;
            self.edit(|envelope| envelope.passed_on_by(name))?;
        }
        Some(())
    }

    /// The kind comes first: what is said of an envelope before it is said that there is one is garbage.
    fn edit(&mut self, edit: impl FnOnce(Envelope) -> Envelope) -> Option<()> {
        self.envelope = Some(edit(self.envelope.take()?));
        Some(())
    }
}

fn put(bytes: &mut Vec<u8>, tag: Tag, entry: &[u8]) {
    // An entry that does not fit is left out: a name of 64 KiB says nothing to anybody.
    if let Ok(len) = u16::try_from(entry.len()) {
        bytes.push(tag as u8);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(entry);
    }
}

/// Adds an envelope's entries.
pub fn put_envelope(envelope: &Envelope, bytes: &mut Vec<u8>) {
    put(bytes, Tag::Kind, &[number_of(envelope.kind())]);
    if let Some(name) = envelope.type_name() {
        put(bytes, Tag::TypeName, name.as_bytes());
    }
    if envelope.correlation() != 0 {
        put(
            bytes,
            Tag::Correlation,
            &envelope.correlation().to_le_bytes(),
        );
    }
    if let Some(sent) = envelope.sent() {
        let since = sent.duration_since(SystemTime::UNIX_EPOCH);
        put(
            bytes,
            Tag::SentNs,
            &ns(since.unwrap_or_default()).to_le_bytes(),
        );
    }
    if let Some(parent) = envelope.trace_parent() {
        put(bytes, Tag::TraceParent, parent.to_string().as_bytes());
    }
    if let Some(name) = envelope.sender() {
        put(bytes, Tag::Sender, name.as_bytes());
    }
    for hop in envelope.trace() {
        put(bytes, Tag::Hop, hop.as_bytes());
    }
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The kinds' numbers on the network, which are those in a lane.
fn number_of(kind: Kind) -> u8 {
    match kind {
        Kind::Event => 1,
        Kind::Command => 2,
        Kind::Document => 3,
        Kind::Reply => 4,
        Kind::Other(number) => number,
        // A kind that this bridge does not know yet.
        _ => 0,
    }
}

fn kind_of(number: u8) -> Kind {
    match number {
        1 => Kind::Event,
        2 => Kind::Command,
        3 => Kind::Document,
        4 => Kind::Reply,
        other => Kind::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full() -> Note {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let envelope = Envelope::new(Kind::Command)
            .of_type("shop.Order")
            .correlated(7)
            .sent_now()
            .traced(parent.parse().unwrap())
            .sent_by("billing")
            .passed_on_by("route")
            .passed_on_by("zenoh/buslane/1");
        Note {
            envelope: Some(envelope),
            from: Some(BusId([7; 16])),
            is_copy: true,
            time_left: Some(Duration::from_millis(5)),
            version: Some(9),
            sizes: Some([1, 2, 3]),
        }
    }

    #[test]
    fn what_it_says_comes_back() {
        let mut other = full();
        other.envelope = Some(Envelope::new(Kind::Other(200)));
        for note in [full(), other, Note::default()] {
            assert_eq!(Note::read(&note.to_bytes()), Attached::Note(note));
        }
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        let note = full();
        let mut bytes = note.to_bytes();
        bytes.extend_from_slice(&[99, 2, 0, 1, 2]);
        assert_eq!(Note::read(&bytes), Attached::Note(note));
    }

    #[test]
    fn what_contradicts_itself_is_garbage_and_what_is_not_ours_is_foreign() {
        for bytes in [
            &b"BL\x02"[..],
            b"BL\x01\x01",
            b"BL\x01\x01\xff\xff",
            b"BL\x01\x01\x02\x00ab",
            b"BL\x01\x02\x01\x00a",
            b"BL\x01\x01\x01\x00\x01\x02\x01\x00\xff",
            b"BL\x01\x01\x01\x00\x01\x05\x02\x0000",
            b"BL\x01\x0b\x01\x001",
        ] {
            assert_eq!(Note::read(bytes), Attached::Garbage, "{bytes:?}");
        }
        for bytes in [&b""[..], b"BL", b"{}", b"anything"] {
            assert_eq!(Note::read(bytes), Attached::Foreign, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            let _ = Note::read(&bytes);
            let _ = Note::read(&[&MAGIC[..], &bytes[..]].concat());
        }
    }
}
