//! Parcels: many messages of one topic, in order, from one bridge to another, in one query. The reply says that they are taken.

use buslane::{Envelope, PayloadType};

use crate::home::BusId;
use crate::note;

/// The version of what is in here.
const VERSION: u8 = 1;
/// Messages are numbered: each says its lane and its number there.
const NUMBERED: u8 = 1;
/// The last publisher has left.
const ENDED: u8 = 2;
/// In front of a message: the lengths of its note and of its payload.
const HEAD: usize = 8;
/// Behind that, if it is numbered: its lane and number.
const PLACE: usize = 12;

/// What goes with a parcel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The bus from which it comes.
    pub from: BusId,
    /// A random number for each time that a bridge begins to send a topic to another.
    pub stream: u64,
    /// Which parcel of the stream it is: 0, 1, …
    pub number: u64,
    /// The oldest one that was not taken when this was sent: a bridge that knows nothing of the stream begins with that one.
    pub oldest: u64,
    /// Of a durable topic, what the messages' numbers belong to: another one if the topic, or the machine, has begun anew.
    pub source: Option<u64>,
    /// The last publisher has left, and this is all.
    pub ended: bool,
    /// The topic's name.
    pub topic: String,
    /// What it carries.
    pub carries: PayloadType,
}

impl Header {
    /// As an attachment.
    pub fn to_bytes(&self) -> Vec<u8> {
        let flags = u8::from(self.source.is_some()) * NUMBERED + u8::from(self.ended) * ENDED;
        let mut bytes = vec![VERSION, flags];
        bytes.extend_from_slice(&self.from.0);
        for number in [
            self.stream,
            self.number,
            self.oldest,
            self.source.unwrap_or(0),
            self.carries.size().unwrap_or(0) as u64,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.carries.version(), self.carries.align() as u32] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for text in [&self.topic[..], self.carries.name()] {
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }

    /// Reads an attachment. `None`: it is none of these.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        let [VERSION, flags] = rest.array()? else {
            return None;
        };
        let from = BusId(rest.array()?);
        let (stream, number, oldest, source, size) = (
            rest.long()?,
            rest.long()?,
            rest.long()?,
            rest.long()?,
            rest.long()?,
        );
        let (version, align) = (rest.word()?, rest.word()?);
        let topic = rest.text()?.to_owned();
        let name = rest.text()?;
        let size = usize::try_from(size).ok()?;
        if !align.is_power_of_two() || !rest.0.is_empty() {
            return None;
        }
        Some(Self {
            from,
            stream,
            number,
            oldest,
            source: (flags & NUMBERED != 0).then_some(source),
            ended: flags & ENDED != 0,
            topic,
            carries: PayloadType::new(name, version, (size != 0).then_some(size), align as usize),
        })
    }
}

/// A message in a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed<'a> {
    /// The entries of its note.
    pub note: &'a [u8],
    /// Its bytes.
    pub payload: &'a [u8],
    /// Its lane and number, if they are numbered.
    pub place: (u64, u32),
}

/// Adds a message.
pub fn pack(
    bytes: &mut Vec<u8>,
    envelope: Option<&Envelope>,
    payload: &[u8],
    place: Option<(u64, u32)>,
) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; HEAD]);
    if let Some((lane, sequence)) = place {
        bytes.extend_from_slice(&lane.to_le_bytes());
        bytes.extend_from_slice(&sequence.to_le_bytes());
    }
    let before = bytes.len();
    if let Some(envelope) = envelope {
        note::put_envelope(envelope, bytes);
    }
    let lens = [bytes.len() - before, payload.len()].map(|len| (len as u32).to_le_bytes());
    bytes[start..start + HEAD].copy_from_slice(lens.as_flattened());
    bytes.extend_from_slice(payload);
}

/// The messages of a parcel; an item is `None` where it contradicts itself, which ends it.
pub fn unpack(bytes: &[u8], is_numbered: bool) -> impl Iterator<Item = Option<Packed<'_>>> {
    let mut rest = Rest(bytes);
    std::iter::from_fn(move || {
        if rest.0.is_empty() {
            return None;
        }
        let next = rest.message(is_numbered);
        if next.is_none() {
            rest.0 = &[];
        }
        Some(next)
    })
}

/// What a parcel of these messages takes at most, beside notes and payloads.
pub const OVERHEAD: usize = HEAD + PLACE;

/// What is said to a parcel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// All is on the other bus; if that is durable, on its disk.
    Taken,
    /// Not this one: send from that number on.
    From(u64),
    /// The topic is not wanted there.
    Unwanted,
    /// It can't be taken now, and why.
    Refused(String),
}

impl Answer {
    /// As the payload of a reply.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Taken => vec![0],
            Self::From(number) => [&[1], &number.to_le_bytes()[..]].concat(),
            Self::Unwanted => vec![2],
            Self::Refused(why) => [&[3], why.as_bytes()].concat(),
        }
    }

    /// Reads a reply. `None`: it is none of these.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0] => Some(Self::Taken),
            [1, number @ ..] => Some(Self::From(u64::from_le_bytes(number.try_into().ok()?))),
            [2] => Some(Self::Unwanted),
            [3, why @ ..] => Some(Self::Refused(String::from_utf8_lossy(why).into_owned())),
            _ => None,
        }
    }
}

/// What is still to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn long(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn word(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = self.word()? as usize;
        std::str::from_utf8(self.bytes(len)?).ok()
    }

    fn message(&mut self, is_numbered: bool) -> Option<Packed<'a>> {
        let (note, payload) = (self.word()? as usize, self.word()? as usize);
        let place = match is_numbered {
            true => (self.long()?, self.word()?),
            false => (0, 0),
        };
        Some(Packed {
            note: self.bytes(note)?,
            payload: self.bytes(payload)?,
            place,
        })
    }
}

#[cfg(test)]
mod tests {
    use buslane::Kind;
    use proptest::prelude::*;

    use super::*;
    use crate::note::Note;

    fn header() -> Header {
        Header {
            from: BusId([3; 16]),
            stream: 1,
            number: 2,
            oldest: 1,
            source: Some(9),
            ended: true,
            topic: String::from("orders/new"),
            carries: PayloadType::new("Order", 3, Some(24), 8),
        }
    }

    #[test]
    fn a_header_comes_back() {
        let mut plain = header();
        (plain.source, plain.ended, plain.carries) = (None, false, PayloadType::bytes());
        for header in [header(), plain] {
            let bytes = header.to_bytes();
            assert_eq!(Header::read(&bytes), Some(header));
            for len in 0..bytes.len() {
                assert_eq!(Header::read(&bytes[..len]), None);
            }
        }
    }

    #[test]
    fn an_answer_comes_back() {
        let why = String::from("no room");
        for answer in [
            Answer::Taken,
            Answer::From(7),
            Answer::Unwanted,
            Answer::Refused(why),
        ] {
            assert_eq!(Answer::read(&answer.to_bytes()), Some(answer));
        }
        for garbage in [&b""[..], b"\x00\x00", b"\x01\x02", b"\x09"] {
            assert_eq!(Answer::read(garbage), None);
        }
    }

    proptest! {
        #[test]
        fn messages_come_back(payloads: Vec<(Vec<u8>, bool)>, is_numbered: bool) {
            let envelope = Envelope::new(Kind::Document).of_type("T");
            let mut bytes = Vec::new();
            for (at, (payload, has_envelope)) in payloads.iter().enumerate() {
                let place = is_numbered.then_some((5, at as u32));
                pack(&mut bytes, has_envelope.then_some(&envelope), payload, place);
            }
            let back: Vec<_> = unpack(&bytes, is_numbered).map(Option::unwrap).collect();
            prop_assert_eq!(back.len(), payloads.len());
            for (at, (packed, (payload, has_envelope))) in back.iter().zip(&payloads).enumerate() {
                prop_assert_eq!(packed.payload, &payload[..]);
                let note = Note::entries(packed.note).unwrap();
                prop_assert_eq!(note.envelope.as_ref(), has_envelope.then_some(&envelope));
                let place = if is_numbered { (5, at as u32) } else { (0, 0) };
                prop_assert_eq!(packed.place, place);
            }
        }

        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>, is_numbered: bool) {
            let _ = Header::read(&bytes);
            let _ = Answer::read(&bytes);
            let mut ended = false;
            for message in unpack(&bytes, is_numbered) {
                prop_assert!(!ended);
                ended = message.is_none();
            }
        }
    }
}
