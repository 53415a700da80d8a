//! What goes with a message, beside its payload.

use std::time::{Duration, SystemTime};

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::{FromBytes, IntoBytes};

use crate::shm::layout::EnvelopeHead;
use crate::wait::now_ns;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Something happened.
    Event,
    /// Do this.
    Command,
    /// Here is data.
    Document,
    /// The answer to a message.
    Reply,
    /// A kind that a later version knows.
    Other(u8),
}

impl Kind {
    const NAMES: [(Self, &'static str); 4] = [
        (Self::Event, "event"),
        (Self::Command, "command"),
        (Self::Document, "document"),
        (Self::Reply, "reply"),
    ];

    /// As it is written: `event`, `command`, `document`, `reply`, or `other`.
    #[must_use]
    pub fn name(self) -> &'static str {
        let named = Self::NAMES.iter().find(|(kind, _)| *kind == self);
        named.map_or("other", |(_, name)| name)
    }

    #[inline]
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Event => 1,
            Self::Command => 2,
            Self::Document => 3,
            Self::Reply => 4,
            Self::Other(number) => number,
        }
    }

    pub(crate) fn from_number(number: u8) -> Self {
        let named = Self::NAMES.iter().map(|&(kind, _)| kind);
        let mut named = named.filter(|kind| kind.number() == number);
        named.next().unwrap_or(Self::Other(number))
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Other(number) => write!(f, "kind {number}"),
            kind => f.write_str(kind.name()),
        }
    }
}

/// What goes with a message: what it is for, its type, when it was sent, and, for requests and replies, which belongs to
/// which. It stands before the payload, in 56 bytes; names go into an extension behind those. Messages sent without
/// one have none, and pay nothing for it.
///
/// ```
/// use buslane::{Envelope, Kind};
///
/// let envelope = Envelope::new(Kind::Document).of_type("shop.Order").sent_now();
/// assert_eq!((envelope.kind(), envelope.type_name()), (Kind::Document, Some("shop.Order")));
/// assert_eq!(envelope.type_id(), Envelope::id_of_type("shop.Order"));
/// assert!(envelope.sent().is_some());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    head: EnvelopeHead,
    /// Entries, each of a [`Tag`], a length, and as many bytes, filled up with zeros to a multiple of 8.
    extension: Vec<u8>,
}

/// What an entry of the extension says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Tag {
    TypeName = 1,
    /// The name of a service that has passed it on.
    Hop = 2,
}

impl Envelope {
    /// An envelope of a message of a kind, which says nothing else.
    pub fn new(kind: Kind) -> Self {
        Self::bare(EnvelopeHead::new(kind.number(), 0))
    }

    /// An envelope of this alone, which tells of no extension.
    #[inline]
    pub(crate) fn bare(head: EnvelopeHead) -> Self {
        Self {
            head,
            extension: Vec::new(),
        }
    }

    /// Says what type the payload is of, by its name.
    pub fn of_type(mut self, name: &str) -> Self {
        self.head.type_id = Self::id_of_type(name);
        self.extend(Tag::TypeName, name.as_bytes());
        self
    }

    /// Says when it was sent.
    pub fn sent_at(mut self, time: SystemTime) -> Self {
        self.head.sent_ns = since_1970(time);
        self
    }

    /// Says that it is sent now.
    pub fn sent_now(self) -> Self {
        self.sent_at(SystemTime::now())
    }

    /// Says which messages belong together: a reply has that of its request.
    pub fn correlated(mut self, correlation: u64) -> Self {
        self.head.correlation = correlation;
        self
    }

    /// What the message is for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::from_number(self.head.kind())
    }

    /// The name of the payload's type, if it says it.
    #[must_use]
    pub fn type_name(&self) -> Option<&str> {
        std::str::from_utf8(self.entry(Tag::TypeName)?).ok()
    }

    /// A hash of the type's name; 0: it does not say.
    #[must_use]
    pub fn type_id(&self) -> u64 {
        self.head.type_id
    }

    /// The hash of a type's name: XXH3, 64 bits.
    #[must_use]
    pub fn id_of_type(name: &str) -> u64 {
        xxh3_64(name.as_bytes())
    }

    /// When it was sent, if it says so.
    #[must_use]
    pub fn sent(&self) -> Option<SystemTime> {
        let since = Some(self.head.sent_ns).filter(|&ns| ns != 0)?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(since))
    }

    /// Which messages belong together; 0: it does not say.
    #[must_use]
    pub fn correlation(&self) -> u64 {
        self.head.correlation
    }

    /// Where a reply to it goes: the number of an inbox, which is the same on the whole way of a request; 0: nowhere.
    #[must_use]
    pub fn reply_to(&self) -> u64 {
        self.head.reply_to
    }

    /// How long it is worth anything yet: zero if that time has passed, `None` if it always is.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        time_left(self.head.deadline_ns)
    }

    /// How many services have passed it on.
    #[must_use]
    pub fn hops(&self) -> u16 {
        self.head.hops()
    }

    /// The services that have passed it on, the first one first.
    pub fn trace(&self) -> impl Iterator<Item = &str> {
        let hops = self.entries().filter(|(tag, _)| *tag == Tag::Hop as u32);
        hops.filter_map(|(_, name)| std::str::from_utf8(name).ok())
    }

    /// Passes it on: one more service that it came through.
    pub(crate) fn passed_on_by(mut self, service: &str) -> Self {
        let hops = self.head.hops().saturating_add(1);
        self.head = self.head.with(hops, self.head.extension_len());
        self.extend(Tag::Hop, service.as_bytes());
        self
    }

    /// Of a type with this number.
    pub(crate) fn of_type_id(mut self, id: u64) -> Self {
        self.head.type_id = id;
        self
    }

    #[inline]
    pub(crate) fn head(&self) -> &EnvelopeHead {
        &self.head
    }

    /// What stands between the head and a payload.
    #[inline]
    pub(crate) fn extension(&self) -> &[u8] {
        &self.extension
    }

    /// Bytes in it.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        EnvelopeHead::SIZE + self.extension.len()
    }

    /// What was read before a payload; `None` if that is nothing.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (head, extension) = EnvelopeHead::read_from_prefix(bytes).ok()?;
        Some(Self {
            head,
            extension: extension.to_vec(),
        })
    }

    fn extend(&mut self, tag: Tag, bytes: &[u8]) {
        let head = [tag as u32, bytes.len() as u32];
        self.extension.extend_from_slice(head.as_bytes());
        self.extension.extend_from_slice(bytes);
        let len = self.extension.len().next_multiple_of(8);
        self.extension.resize(len, 0);
        self.head = self.head.with(self.head.hops(), len as u32);
    }

    /// The first entry of that tag.
    fn entry(&self, tag: Tag) -> Option<&[u8]> {
        let mut entries = self.entries();
        Some(entries.find(|(found, _)| *found == tag as u32)?.1)
    }

    /// The entries of the extension. One that contradicts itself ends where it does.
    fn entries(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let mut rest = &self.extension[..];
        std::iter::from_fn(move || {
            let ([tag, len], behind) = <[u32; 2]>::read_from_prefix(rest).ok()?;
            let entry = behind.get(..len as usize)?;
            rest = behind
                .get((len as usize).next_multiple_of(8)..)
                .unwrap_or_default();
            Some((tag, entry))
        })
    }
}

/// Nanoseconds.
pub(crate) fn since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos() as u64
}

/// How long a message with this deadline is worth anything yet; `None`: always.
#[inline]
pub(crate) fn time_left(deadline_ns: u64) -> Option<Duration> {
    (deadline_ns != 0).then(|| Duration::from_nanos(deadline_ns.saturating_sub(now_ns())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_comes_back_as_it_was() {
        let full = Envelope::new(Kind::Command)
            .of_type("a name of 23 bytes ....")
            .correlated(7)
            .sent_now();
        for envelope in [Envelope::new(Kind::Other(200)), full] {
            let head = envelope.head().as_bytes();
            assert_eq!(head.len(), 56);
            assert!(envelope.extension().len().is_multiple_of(8));
            let read = Envelope::read(&[head, envelope.extension()].concat()).unwrap();
            assert_eq!(read, envelope);
            assert_eq!(read.type_name(), envelope.type_name());
        }
        assert_eq!(Envelope::read(&[]), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            if let Some(envelope) = Envelope::read(&bytes) {
                let _ = (envelope.kind().to_string(), envelope.type_name(), envelope.sent());
            }
        }
    }
}
