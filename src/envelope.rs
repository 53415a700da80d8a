//! What goes with a message, beside its payload.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::{Error, ErrorKind, Result};
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

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    /// The name of a service, or of a route, that has passed it on.
    Hop = 2,
    /// A [`TraceParent`]: the trace's number (the high half first), the span's, and the flags, 64 bits each.
    Trace = 3,
    /// An [`Origin`]: as many bytes as it has, in its order.
    Origin = 4,
    /// The name of who sent it.
    Sender = 5,
}

/// Which trace a message belongs to, and which span of it sent the message: a traceparent as the W3C has it
/// (<https://www.w3.org/TR/trace-context/>), version 00, which is also how it is written and parsed.
///
/// ```
/// let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// let parent: buslane::TraceParent = text.parse()?;
/// assert_eq!((parent.span, parent.flags), (0xb7ad_6b71_6920_3331, 1));
/// assert_eq!(parent.to_string(), text);
/// # Ok::<(), buslane::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// The trace's number, not 0.
    pub trace: u128,
    /// The span's, not 0.
    pub span: u64,
    /// 1: it is sampled.
    pub flags: u8,
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, flags } = self;
        write!(f, "00-{trace:032x}-{span:016x}-{flags:02x}")
    }
}

impl FromStr for TraceParent {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Option<Vec<&str>> = text
            .is_ascii()
            .then(|| text.split('-').collect::<Vec<_>>())
            .filter(|parts| parts.iter().map(|part| part.len()).eq([2, 32, 16, 2]))
            .filter(|parts| parts[0] == "00");
        let hex = |part: &str| match part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            true => u128::from_str_radix(part, 16).ok(),
            false => None,
        };
        let parsed = parts.and_then(|parts| {
            Some(Self {
                trace: hex(parts[1])?,
                span: hex(parts[2])? as u64,
                flags: hex(parts[3])? as u8,
            })
        });
        parsed
            .filter(|parent| parent.trace != 0 && parent.span != 0)
            .ok_or_else(|| {
                let why = "it is not 00, 32, 16 and 2 hexadecimal digits with '-' between, or all of some are 0";
                Error::new(ErrorKind::Corrupt, "read the traceparent", format!("{text:?}"), why)
                    .advise("give one as the W3C has it")
            })
    }
}

/// What a message was made from, by somebody who passes messages on: so that who goes on after a death can tell what was passed
/// on already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Origin {
    /// Who made it, as a number: such as the hash of a route and the topic that it takes messages from.
    pub by: u64,
    /// The lane of the message that it was made from.
    pub lane: u64,
    /// The low 32 bits of that message's number there.
    pub sequence: u32,
    /// Which of several that were made from it: 0, 1, …
    pub part: u32,
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
        self.replace(Tag::TypeName, name.as_bytes());
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

    /// Who sent it, if it says so.
    #[must_use]
    pub fn sender(&self) -> Option<&str> {
        std::str::from_utf8(self.entry(Tag::Sender)?).ok()
    }

    /// Which trace it belongs to, if it says so.
    #[must_use]
    pub fn trace_parent(&self) -> Option<TraceParent> {
        let words = <[u64; 4]>::read_from_bytes(self.entry(Tag::Trace)?).ok()?;
        let [high, low, span, flags] = words;
        Some(TraceParent {
            trace: u128::from(high) << 64 | u128::from(low),
            span,
            flags: flags as u8,
        })
    }

    /// What it was made from, if somebody passed it on and says so.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        Origin::read_from_bytes(self.entry(Tag::Origin)?).ok()
    }

    /// How many services and routes have passed it on.
    #[must_use]
    pub fn hops(&self) -> u16 {
        self.head.hops()
    }

    /// The services and routes that have passed it on, the first one first.
    pub fn trace(&self) -> impl Iterator<Item = &str> {
        let hops = entries(&self.extension).filter(|(tag, _)| *tag == Tag::Hop as u32);
        hops.filter_map(|(_, name)| std::str::from_utf8(name).ok())
    }

    /// Whether the envelope in these bytes has a hop whose name begins so. They may lie where another process could change them, so
    /// they are compared as bytes.
    pub(crate) fn came_by(bytes: &[u8], beginning: &str) -> bool {
        let parts = EnvelopeHead::ref_from_prefix(bytes);
        parts.is_ok_and(|(_, extension)| {
            let mut hops = entries(extension).filter(|(tag, _)| *tag == Tag::Hop as u32);
            hops.any(|(_, name)| name.starts_with(beginning.as_bytes()))
        })
    }

    /// Says who sends it, by a name that outlives the process.
    pub fn sent_by(mut self, name: &str) -> Self {
        self.replace(Tag::Sender, name.as_bytes());
        self
    }

    /// Says that it was passed on: by one more service, or route, with this name.
    pub fn passed_on_by(mut self, name: &str) -> Self {
        let hops = self.head.hops().saturating_add(1);
        self.head = self.head.with(hops, self.head.extension_len());
        self.extend(Tag::Hop as u32, name.as_bytes());
        self
    }

    /// Says which trace it belongs to, in place of what it said before.
    pub fn traced(mut self, parent: TraceParent) -> Self {
        let TraceParent { trace, span, flags } = parent;
        let words = [(trace >> 64) as u64, trace as u64, span, flags.into()];
        self.replace(Tag::Trace, words.as_bytes());
        self
    }

    /// Says what it was made from, in place of what it said before.
    pub fn made_from(mut self, origin: Origin) -> Self {
        self.replace(Tag::Origin, origin.as_bytes());
        self
    }

    /// The same message, of another kind.
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.head = self.head.with_kind(kind.number());
        self
    }

    /// Of a type with this number.
    pub(crate) fn of_type_id(mut self, id: u64) -> Self {
        self.head.type_id = id;
        self
    }

    /// A span for who handles the message that came with it, on this topic: `buslane.handle`, with the kind, the type, and the trace that it
    /// belongs to, as fields.
    ///
    /// ```
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # use buslane::{Bus, Envelope, Kind};
    /// # let topic = Bus::at(dir.path().join("bus"))?.topic("orders")?;
    /// # let (mut subscriber, mut publisher) = (topic.subscriber()?, topic.publisher()?);
    /// # publisher.send_with(&Envelope::new(Kind::Event), b"7 pears")?;
    /// let order = subscriber.recv()?;
    /// let span = order.envelope().map(|envelope| envelope.span("orders"));
    /// let _handling = span.as_ref().map(|span| span.enter());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "tracing")]
    #[must_use]
    pub fn span(&self, topic: &str) -> tracing::Span {
        tracing::info_span!(
            "buslane.handle",
            topic,
            kind = %self.kind(),
            r#type = self.type_name(),
            traceparent = self.trace_parent().map(tracing::field::display),
        )
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

    /// Appends it to `bytes` as it stands before a payload (`docs/layout.md`), for who keeps it elsewhere. Its deadline is left out: that
    /// is by the clock since this machine was started.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        let head = EnvelopeHead {
            deadline_ns: 0,
            ..self.head
        };
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(&self.extension);
    }

    /// What [`encode_into`](Self::encode_into) has appended; `None` if these bytes are no envelope.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let envelope = Self::read(bytes)?;
        let said = envelope.head.extension_len() as usize;
        let is_whole = said == envelope.extension.len() && said.is_multiple_of(8);
        is_whole.then_some(envelope)
    }

    fn extend(&mut self, tag: u32, bytes: &[u8]) {
        let head = [tag, bytes.len() as u32];
        self.extension.extend_from_slice(head.as_bytes());
        self.extension.extend_from_slice(bytes);
        let len = self.extension.len().next_multiple_of(8);
        self.extension.resize(len, 0);
        self.head = self.head.with(self.head.hops(), len as u32);
    }

    /// One entry of that tag, in place of the one that is there.
    fn replace(&mut self, tag: Tag, bytes: &[u8]) {
        let mut at = 0;
        let there = entries(&self.extension).find_map(|(found, entry)| {
            let begin = at + ENTRY_HEAD;
            at = begin + entry.len().next_multiple_of(8);
            (found == tag as u32).then_some((begin, entry.len()))
        });
        match there {
            Some((begin, len)) if len == bytes.len() => {
                self.extension[begin..begin + len].copy_from_slice(bytes);
            }
            Some((begin, len)) => {
                let end = (begin + len.next_multiple_of(8)).min(self.extension.len());
                self.extension.drain(begin - ENTRY_HEAD..end);
                self.extend(tag as u32, bytes);
            }
            None => self.extend(tag as u32, bytes),
        }
    }

    /// The first entry of that tag.
    fn entry(&self, tag: Tag) -> Option<&[u8]> {
        Some(
            entries(&self.extension)
                .find(|(found, _)| *found == tag as u32)?
                .1,
        )
    }
}

/// Bytes before an entry's own: its tag, and how many they are.
const ENTRY_HEAD: usize = 8;

/// The entries of an extension. One that contradicts itself ends where it does.
fn entries(extension: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let mut rest = extension;
    std::iter::from_fn(move || {
        let ([tag, len], behind) = <[u32; 2]>::read_from_prefix(rest).ok()?;
        let entry = behind.get(..len as usize)?;
        rest = behind
            .get((len as usize).next_multiple_of(8)..)
            .unwrap_or_default();
        Some((tag, entry))
    })
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
            let mut bytes = Vec::new();
            envelope.encode_into(&mut bytes);
            assert_eq!(Envelope::decode(&bytes), Some(envelope));
            bytes.pop();
            assert_eq!(Envelope::decode(&bytes), None);
        }
        assert_eq!(Envelope::read(&[]), None);
    }

    #[test]
    fn what_is_said_again_replaces_what_was_said() {
        let origin = |sequence| Origin {
            by: 1,
            lane: 2,
            sequence,
            part: 0,
        };
        let parent = |span| TraceParent {
            trace: 1 << 100 | 7,
            span,
            flags: 1,
        };
        let first = Envelope::new(Kind::Event)
            .of_type("first")
            .sent_by("billing")
            .traced(parent(1))
            .made_from(origin(1))
            .passed_on_by("route");
        let len = first.len();
        let second = first
            .of_type("other")
            .traced(parent(2))
            .made_from(origin(2));
        assert_eq!(second.len(), len);
        assert_eq!(second.sender(), Some("billing"));
        assert_eq!(second.type_name(), Some("other"));
        assert_eq!(second.trace_parent(), Some(parent(2)));
        assert_eq!(second.origin(), Some(origin(2)));
        assert_eq!(second.trace().collect::<Vec<_>>(), ["route"]);
        assert_eq!(second.with_kind(Kind::Command).kind(), Kind::Command);
    }

    #[test]
    fn a_traceparent_is_as_the_w3c_has_it_or_an_error() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(good.parse::<TraceParent>().unwrap().to_string(), good);
        for bad in [
            "",
            "00",
            &good.replace("00-", "ff-"),
            &good.to_uppercase(),
            &good.replace("b7ad6b7169203331", "0000000000000000"),
            &good.replace('b', "\u{e9}"),
            &format!("{good}-"),
        ] {
            assert!(bad.parse::<TraceParent>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            if let Some(envelope) = Envelope::read(&bytes) {
                let _ = (envelope.origin(), envelope.trace_parent(), envelope.trace().count());
                let _ = (envelope.kind().to_string(), envelope.type_name(), envelope.sent());
            }
        }
    }
}
