//! What a route sends to: publishers and producers, made when they are needed.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use buslane::{
    Any, Bus, Envelope, Error, ErrorKind, PayloadType, Producer, Publisher, Queue, Topic,
};

use crate::control::Control;
use crate::metrics::{Counters, State};
use crate::passed;
use crate::route::{Route, Target};
use crate::source::made_at;

/// How long one wait for room lasts, before it is looked whether the route is to end.
const SLICE: Duration = Duration::from_millis(50);
/// How long to rest after what is not for want of room, as a disk that is full.
const REST: Duration = Duration::from_millis(100);
/// Topics that one route has open at a time.
const MAX_OPEN: usize = 1024;
/// Topics that one route makes because messages name them: each stays.
const MAX_MADE: usize = 256;

enum Writer {
    Topic(Publisher<Any>),
    Queue(Producer<Any>),
}

struct Outlet {
    writer: Writer,
    /// Another one may have its name later.
    made_at: SystemTime,
    /// Bytes of its lane.
    capacity: usize,
}

impl Outlet {
    /// What is there with this name, be it a topic or a queue.
    fn find(bus: &Bus, Target { name, .. }: &Target, writer: &str) -> Result<Option<Self>, Error> {
        let mismatch = match bus.topic_builder(name).create(false).open_any() {
            Ok(topic) => return Self::to_topic(&topic, writer).map(Some),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == ErrorKind::Mismatch => e,
            Err(e) => return Err(e),
        };
        match bus.queue_builder(name).create(false).open_any() {
            Ok(queue) => Self::into_queue(&queue, writer).map(Some),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            // It is neither.
            Err(_) => Err(mismatch),
        }
    }

    /// Makes it, for messages as this one.
    fn make(bus: &Bus, target: &Target, load: Load<'_>, writer: &str) -> Result<Self, Error> {
        let name = &target.name;
        if !target.is_queue {
            let topic = bus.topic_builder(name).open_described(load.carries)?;
            return Self::to_topic(&topic, writer);
        }
        let queue = bus.queue_builder(name);
        // Room for the first, at least: a dead letter is longer than what it tells of.
        let needed = (4 * load.payload.len()).next_power_of_two();
        let queue = match needed > buslane::DEFAULT_CAPACITY {
            true => queue.capacity(needed).open_any(),
            false => queue.open_any(),
        };
        Self::into_queue(&queue?, writer)
    }

    fn to_topic(topic: &Topic<Any>, writer: &str) -> Result<Self, Error> {
        Ok(Self {
            writer: Writer::Topic(topic.named_publisher(writer)?),
            made_at: topic.made_at(),
            capacity: topic.capacity(),
        })
    }

    fn into_queue(queue: &Queue<Any>, writer: &str) -> Result<Self, Error> {
        Ok(Self {
            writer: Writer::Queue(queue.named_producer(writer)?),
            made_at: queue.made_at(),
            capacity: queue.capacity(),
        })
    }

    /// Whether what it sends to is still there.
    fn is_there(&self, bus: &Bus, target: &Target) -> bool {
        let is_queue = matches!(self.writer, Writer::Queue(_));
        let made_at = made_at(bus, &target.name, is_queue);
        made_at.is_ok_and(|at| at == self.made_at)
    }

    fn send(&mut self, load: Load<'_>, patience: Duration) -> Result<(), Error> {
        let Load {
            envelope, payload, ..
        } = load;
        match &mut self.writer {
            Writer::Topic(publisher) => publisher.send_any(Some(envelope), payload, Some(patience)),
            Writer::Queue(producer) => producer.push_any(Some(envelope), payload, Some(patience)),
        }
    }
}

/// A message that is to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// What a topic carries that is made for it.
    pub carries: &'a PayloadType,
    pub envelope: &'a Envelope,
    pub payload: &'a [u8],
}

/// Why a message was not sent.
#[derive(Debug)]
pub enum Unsent {
    /// The route was told something while it waited.
    Called,
    /// It can't be sent there.
    Refused(String),
}

/// What kept it from being sent now.
enum Kept {
    By(Error),
    /// There are too many topics already that were made for this route.
    TooMany,
}

impl From<Error> for Kept {
    fn from(error: Error) -> Self {
        Self::By(error)
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By(error) => write!(f, "{error}"),
            Self::TooMany => write!(f, "the route has made {MAX_MADE} topics, and makes no more"),
        }
    }
}

/// All outlets of a route.
pub struct Outlets {
    bus: Bus,
    /// The name of the lanes: they stay, and with them what was sent last.
    writer: String,
    open: Vec<(Target, Outlet)>,
    /// The one that was used last: it is used again.
    at: usize,
    /// The list of topics when it was last looked whether those that it sends to are there.
    version: u64,
    /// What the route names; others are named by messages.
    named: Vec<Target>,
    /// How many of these it has made.
    made: usize,
}

impl Outlets {
    pub fn new(route: &Route) -> Self {
        let bus = &route.to_bus;
        Self {
            bus: bus.clone(),
            writer: passed::writer(&route.name),
            open: Vec::new(),
            at: 0,
            version: bus.topics_version(),
            named: route.targets().cloned().collect(),
            made: 0,
        }
    }

    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Bytes that can be sent to any of them without overwriting what was sent before.
    pub fn room(&self) -> usize {
        let capacities = self.open.iter().map(|(_, outlet)| outlet.capacity);
        capacities.min().unwrap_or(0) / 2
    }

    /// Goes on for what the route is now.
    pub fn change(&mut self, route: &Route) {
        self.open.retain(|(target, _)| route.names_target(target));
        self.named = route.targets().cloned().collect();
    }

    /// Sends a message. Waits for room, so long at most, and for whatever else passes by itself.
    pub fn send(
        &mut self,
        target: &Target,
        load: Load<'_>,
        patience: Option<Duration>,
        (counters, control): (&Counters, &Control),
    ) -> Result<(), Unsent> {
        let mut first = None;
        let mut is_told = false;
        loop {
            let slice = first.map_or(Duration::ZERO, |_| SLICE);
            let kept = match self.try_send(target, load, slice) {
                Ok(()) => {
                    if first.is_some() {
                        counters.set_state(State::Running);
                    }
                    return Ok(());
                }
                Err(Kept::By(error)) if !is_of_the_message(error.kind()) => error,
                Err(kept) => return Err(Unsent::Refused(kept.to_string())),
            };
            let since = *first.get_or_insert_with(|| {
                counters.stalls.inc();
                counters.set_state(State::Stalled);
                Instant::now()
            });
            if patience.is_some_and(|patience| since.elapsed() >= patience) {
                counters.set_state(State::Running);
                return Err(Unsent::Refused(kept.to_string()));
            }
            if !matches!(kept.kind(), ErrorKind::Full | ErrorKind::TimedOut) {
                if !std::mem::replace(&mut is_told, true) {
                    counters.troubles.inc();
                    tracing::warn!("{kept}; tried again");
                }
                self.open.retain(|(open, _)| open != target);
                control.rest(REST);
            }
            if control.is_called() {
                return Err(Unsent::Called);
            }
        }
    }

    /// Sends a message if there is room at once, or says why not.
    pub fn send_now(&mut self, target: &Target, load: Load<'_>) -> Result<(), String> {
        let sent = self.try_send(target, load, Duration::ZERO);
        sent.map_err(|kept| kept.to_string())
    }

    fn try_send(
        &mut self,
        target: &Target,
        load: Load<'_>,
        patience: Duration,
    ) -> Result<(), Kept> {
        // Who sends to a topic that was removed learns it late, and another one may have its name.
        let version = self.bus.topics_version();
        if version != self.version {
            self.version = version;
            self.open
                .retain(|(target, outlet)| outlet.is_there(&self.bus, target));
        }
        let is_meant = |(open, _): &(Target, Outlet)| open == target;
        if !self.open.get(self.at).is_some_and(is_meant) {
            let found = self.open.iter().position(is_meant);
            self.at = found.unwrap_or(self.open.len());
        }
        if let Some((_, outlet)) = self.open.get_mut(self.at) {
            match outlet.send(load, patience) {
                // It was removed: whoever sends to it makes it anew.
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    self.open.remove(self.at);
                }
                sent => return Ok(sent?),
            }
        }
        if self.open.len() >= MAX_OPEN {
            // What is used anew is opened anew.
            self.open.clear();
        }
        let mut outlet = match Outlet::find(&self.bus, target, &self.writer)? {
            Some(outlet) => outlet,
            None => {
                if !self.named.contains(target) {
                    if self.made >= MAX_MADE {
                        return Err(Kept::TooMany);
                    }
                    self.made += 1;
                }
                Outlet::make(&self.bus, target, load, &self.writer)?
            }
        };
        let sent = outlet.send(load, patience);
        self.open.push((target.clone(), outlet));
        Ok(sent?)
    }
}

/// Whether the next message may well be sent: it is this one that can't.
fn is_of_the_message(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Mismatch | ErrorKind::TooLong | ErrorKind::InvalidName
    )
}
