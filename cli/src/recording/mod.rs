//! What a recording is, for who writes and who reads it: an MCAP file, and what of ours is in there. `docs/recording.md` says the
//! same.

pub mod reader;
pub mod writer;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::time::{Duration, Instant};

use buslane::{Any, Envelope, PayloadType, Topic};

/// A record of ours before a message that it belongs to: its lane (8 bytes), and its envelope, if it has one, as
/// [`Envelope::encode_into`] has it. Without one, only where the lane is another one than that of the channel's last message in the
/// chunk.
pub const BESIDE: u8 = 0x80;
/// A record of ours in the place of messages that were lost: see [`Gap`].
pub const LOST: u8 = 0x81;
/// The name of the metadata at the beginning.
pub const ABOUT: &str = "buslane";
/// What that says of what is ours in the file.
pub const VERSION: (&str, &str) = ("version", "1");
/// The name of the metadata at the end, if something was lost: how many messages and bytes of each topic.
pub const LOST_OF: &str = "buslane.lost";
/// What a channel's messages are encoded as, if nobody says it.
pub const OPAQUE: &str = "octet-stream";
/// What a type's schema is encoded as: a line for people.
pub const TYPE: &str = "buslane";

const LOSSY: &str = "buslane.lossy";
const CAPACITY: &str = "buslane.capacity";
const TYPE_NAME: &str = "buslane.type";
const TYPE_VERSION: &str = "buslane.type.version";
const TYPE_SIZE: &str = "buslane.type.size";
const TYPE_ALIGN: &str = "buslane.type.align";

/// What a topic is, so that it can be made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Whether its publishers wait for nobody.
    pub is_lossy: bool,
    /// Bytes in its lanes. `None`: it was durable, and had none.
    pub capacity: Option<usize>,
    /// The type of its messages.
    pub carries: PayloadType,
}

impl Shape {
    /// That of a topic.
    pub fn of(topic: &Topic<Any>) -> Self {
        Self {
            is_lossy: topic.is_lossy(),
            capacity: (!topic.is_durable()).then(|| topic.capacity()),
            carries: topic.carries(),
        }
    }

    /// As a channel's metadata.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let carries = &self.carries;
        let mut metadata = BTreeMap::from([
            (LOSSY, self.is_lossy.to_string()),
            (TYPE_NAME, carries.name().to_owned()),
            (TYPE_VERSION, carries.version().to_string()),
            (TYPE_ALIGN, carries.align().to_string()),
        ]);
        metadata.extend(
            self.capacity
                .map(|capacity| (CAPACITY, capacity.to_string())),
        );
        metadata.extend(carries.size().map(|size| (TYPE_SIZE, size.to_string())));
        metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }

    /// What such metadata says; `None` if it is not ours.
    pub fn from_metadata(metadata: &BTreeMap<String, String>) -> Option<Self> {
        fn number<T: std::str::FromStr>(
            metadata: &BTreeMap<String, String>,
            key: &str,
        ) -> Option<T> {
            metadata.get(key)?.parse().ok()
        }
        let carries = PayloadType::new(
            metadata.get(TYPE_NAME)?,
            number(metadata, TYPE_VERSION)?,
            number(metadata, TYPE_SIZE),
            number(metadata, TYPE_ALIGN)?,
        );
        Some(Self {
            is_lossy: number(metadata, LOSSY)?,
            capacity: number(metadata, CAPACITY),
            carries,
        })
    }
}

/// What [`BESIDE`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// The lane that the message came through.
    pub lane: u64,
    /// What went with it.
    pub envelope: Option<Envelope>,
}

impl Beside {
    /// Appends it to `bytes`.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.lane.to_le_bytes());
        if let Some(envelope) = &self.envelope {
            envelope.encode_into(bytes);
        }
    }

    /// What was appended; `None` if it is nothing of that kind.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (lane, envelope) = bytes.split_first_chunk()?;
        let envelope = match envelope {
            [] => None,
            bytes => Some(Envelope::decode(bytes)?),
        };
        Some(Self {
            lane: u64::from_le_bytes(*lane),
            envelope,
        })
    }
}

/// What is missing in one place, of one lane of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The channel's number.
    pub channel: u16,
    /// When that was noticed, as messages' log times.
    pub log_time: u64,
    /// The lane.
    pub lane: u64,
    /// How many messages.
    pub messages: u64,
    /// Bytes in them.
    pub bytes: u64,
}

impl Gap {
    /// Appends it to `bytes`: the fields in their order, little endian.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.channel.to_le_bytes());
        for field in [self.log_time, self.lane, self.messages, self.bytes] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
    }

    /// What was appended; `None` if it is nothing of that kind.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (channel, rest) = bytes.split_first_chunk()?;
        let (fields, []) = rest.as_chunks() else {
            return None;
        };
        let [log_time, lane, messages, bytes] = <[[u8; 8]; 4]>::try_from(fields).ok()?;
        Some(Self {
            channel: u16::from_le_bytes(*channel),
            log_time: u64::from_le_bytes(log_time),
            lane: u64::from_le_bytes(lane),
            messages: u64::from_le_bytes(messages),
            bytes: u64::from_le_bytes(bytes),
        })
    }
}

/// How many messages, and bytes in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Messages.
    pub messages: u64,
    /// Bytes in them.
    pub bytes: u64,
}

impl Count {
    /// So much more.
    pub fn add(&mut self, messages: u64, bytes: u64) {
        self.messages = self.messages.saturating_add(messages);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What was lost, by topic. It is told on stderr at once, and then at most once a second for each topic, so that telling does not
/// make for more.
#[derive(Debug, Default)]
pub struct Losses {
    by_topic: HashMap<String, Loss>,
    /// What follows the numbers.
    why: &'static str,
}

#[derive(Debug, Default)]
struct Loss {
    all: Count,
    untold: Count,
    told: Option<Instant>,
}

/// Between two lines about one topic.
const BETWEEN: Duration = Duration::from_secs(1);

impl Losses {
    /// Nothing is lost yet. `why` follows the numbers where they are told.
    pub fn new(why: &'static str) -> Self {
        let by_topic = HashMap::new();
        Self { by_topic, why }
    }

    /// So much more.
    pub fn add(&mut self, topic: &str, messages: u64, bytes: u64) {
        let loss = self.by_topic.entry(topic.to_owned()).or_default();
        loss.all.add(messages, bytes);
        loss.untold.add(messages, bytes);
        if loss.told.is_none_or(|told| told.elapsed() >= BETWEEN) {
            loss.told = Some(Instant::now());
            tell(topic, std::mem::take(&mut loss.untold), self.why);
        }
    }

    /// Tells what was not told yet.
    pub fn tell_rest(&mut self) {
        for (topic, loss) in &mut self.by_topic {
            if loss.untold.messages > 0 {
                tell(topic, std::mem::take(&mut loss.untold), self.why);
            }
        }
    }

    /// Of all topics.
    pub fn total(&self) -> Count {
        let mut total = Count::default();
        for Loss { all, .. } in self.by_topic.values() {
            total.add(all.messages, all.bytes);
        }
        total
    }

    /// As metadata: of each topic.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let line = |loss: &Loss| {
            let Count { messages, bytes } = loss.all;
            format!("{messages} messages ({bytes} bytes)")
        };
        let lines = self.by_topic.iter();
        lines
            .map(|(topic, loss)| (topic.clone(), line(loss)))
            .collect()
    }
}

fn tell(topic: &str, Count { messages, bytes }: Count, why: &str) {
    note(&format!(
        "{topic}: {messages} messages ({bytes} bytes) lost{why}"
    ));
}

/// Says something on stderr. One that is closed is no reason to end.
pub fn note(what: &str) {
    let _ = writeln!(io::stderr(), "buslane: {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back() {
        let mut bytes = Vec::new();
        let gap = Gap {
            channel: 1,
            log_time: 2,
            lane: 3,
            messages: 4,
            bytes: 5,
        };
        gap.encode_into(&mut bytes);
        assert_eq!(Gap::decode(&bytes), Some(gap));
        assert_eq!(Gap::decode(&bytes[1..]), None);
        for envelope in [
            None,
            Some(Envelope::new(buslane::Kind::Command).of_type("t")),
        ] {
            let beside = Beside { lane: 7, envelope };
            bytes.clear();
            beside.encode_into(&mut bytes);
            assert_eq!(Beside::decode(&bytes), Some(beside));
        }
        for (capacity, size) in [(None, None), (Some(4096), Some(8))] {
            let shape = Shape {
                is_lossy: true,
                capacity,
                carries: PayloadType::new("a.Type", 3, size, 8),
            };
            assert_eq!(Shape::from_metadata(&shape.to_metadata()), Some(shape));
        }
        assert_eq!(Shape::from_metadata(&BTreeMap::new()), None);
    }
}
