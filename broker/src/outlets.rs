//! What a route sends to: publishers and producers, made when they are needed.

use std::time::{Duration, Instant, SystemTime};

use buslane::{Any, Bus, Envelope, ErrorKind, PayloadType, Producer, Publisher, Queue, Result};

use crate::metrics::{Counters, State};
use crate::passed;
use crate::route::{Route, Target};
use crate::worker::Ending;

/// How long one wait for room lasts, before it is looked whether the route is to end.
const SLICE: Duration = Duration::from_millis(50);
/// How long to rest after what is not for want of room, as a disk that is full.
const REST: Duration = Duration::from_millis(100);
/// Topics that one route sends to, at most: names may come from what messages say.
const MAX: usize = 1024;

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
    fn open(bus: &Bus, target: &Target, carries: &PayloadType, writer: &str) -> Result<Self> {
        let Target { name, is_queue } = target;
        let topic = || bus.topic_builder(name);
        let queue = || bus.queue_builder(name);
        // What it is made as, unless it is there as the other.
        let topic = match is_queue {
            true => return Self::into_queue(&queue().open_any()?, writer),
            false => match topic().create(false).open_any() {
                Err(e) if e.kind() == ErrorKind::NotFound => topic().open_described(carries)?,
                Err(e) if e.kind() == ErrorKind::Mismatch => {
                    let queue = queue().create(false).open_any().map_err(|_| e)?;
                    return Self::into_queue(&queue, writer);
                }
                topic => topic?,
            },
        };
        Ok(Self {
            writer: Writer::Topic(topic.named_publisher(writer)?),
            made_at: topic.made_at(),
            capacity: topic.capacity(),
        })
    }

    fn into_queue(queue: &Queue<Any>, writer: &str) -> Result<Self> {
        Ok(Self {
            writer: Writer::Queue(queue.named_producer(writer)?),
            made_at: queue.made_at(),
            capacity: queue.capacity(),
        })
    }

    /// Whether what it sends to is still there.
    fn is_there(&self, bus: &Bus, target: &Target) -> bool {
        let (topic, queue) = (
            bus.topic_builder(&target.name),
            bus.queue_builder(&target.name),
        );
        let made_at = match &self.writer {
            Writer::Topic(_) => topic.create(false).open_any().map(|topic| topic.made_at()),
            Writer::Queue(_) => queue.create(false).open_any().map(|queue| queue.made_at()),
        };
        made_at.is_ok_and(|at| at == self.made_at)
    }

    fn send(&mut self, envelope: &Envelope, payload: &[u8], patience: Duration) -> Result<()> {
        match &mut self.writer {
            Writer::Topic(publisher) => publisher.send_any(Some(envelope), payload, Some(patience)),
            Writer::Queue(producer) => producer.push_any(Some(envelope), payload, Some(patience)),
        }
    }
}

/// Why a message was not sent.
#[derive(Debug)]
pub enum Unsent {
    /// The route is to end.
    Ended,
    /// It can't be sent there.
    Refused(String),
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

    /// Keeps only those that are meant.
    pub fn retain(&mut self, is_meant: impl Fn(&Target) -> bool) {
        self.open.retain(|(target, _)| is_meant(target));
    }

    /// Sends a message, made as `carries` if the topic is missing. Waits for room, so long at most, and for whatever else passes by itself.
    pub fn send(
        &mut self,
        target: &Target,
        carries: &PayloadType,
        envelope: &Envelope,
        payload: &[u8],
        patience: Option<Duration>,
        (counters, ending): (&Counters, &Ending),
    ) -> Result<(), Unsent> {
        let mut first = None;
        let mut is_told = false;
        loop {
            let slice = first.map_or(Duration::ZERO, |_| SLICE);
            let Err(error) = self.try_send(target, carries, envelope, payload, slice) else {
                if first.is_some() {
                    counters.set_state(State::Running);
                }
                return Ok(());
            };
            let is_for_room = matches!(error.kind(), ErrorKind::Full | ErrorKind::TimedOut);
            if is_of_the_message(error.kind()) {
                return Err(Unsent::Refused(error.to_string()));
            }
            let since = *first.get_or_insert_with(|| {
                counters.stalls.inc();
                counters.set_state(State::Stalled);
                Instant::now()
            });
            if patience.is_some_and(|patience| since.elapsed() >= patience) {
                counters.set_state(State::Running);
                return Err(Unsent::Refused(error.to_string()));
            }
            if !is_for_room {
                if !std::mem::replace(&mut is_told, true) {
                    counters.troubles.inc();
                    tracing::warn!("{error}; tried again");
                }
                self.open.retain(|(open, _)| open != target);
                std::thread::sleep(REST);
            }
            if ending.is_near() {
                return Err(Unsent::Ended);
            }
        }
    }

    /// Sends a message if there is room at once.
    pub fn try_send_now(
        &mut self,
        target: &Target,
        carries: &PayloadType,
        envelope: &Envelope,
        payload: &[u8],
    ) -> Result<()> {
        self.try_send(target, carries, envelope, payload, Duration::ZERO)
    }

    fn try_send(
        &mut self,
        target: &Target,
        carries: &PayloadType,
        envelope: &Envelope,
        payload: &[u8],
        patience: Duration,
    ) -> Result<()> {
        // Who sends to a topic that was removed learns it late, and another one may have its name.
        let version = self.bus.topics_version();
        if version != self.version {
            self.version = version;
            self.open
                .retain(|(target, outlet)| outlet.is_there(&self.bus, target));
        }
        if !self
            .open
            .get(self.at)
            .is_some_and(|(open, _)| open == target)
        {
            let found = self.open.iter().position(|(open, _)| open == target);
            self.at = found.unwrap_or(self.open.len());
        }
        if let Some((_, outlet)) = self.open.get_mut(self.at) {
            match outlet.send(envelope, payload, patience) {
                // It was removed: whoever sends to it makes it anew.
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    self.open.remove(self.at);
                }
                sent => return sent,
            }
        }
        if self.open.len() >= MAX {
            // What is used anew is opened anew.
            self.open.clear();
        }
        let mut outlet = Outlet::open(&self.bus, target, carries, &self.writer)?;
        let sent = outlet.send(envelope, payload, patience);
        self.open.push((target.clone(), outlet));
        sent
    }
}

/// Whether the next message may well be sent: it is this one that can't.
fn is_of_the_message(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Mismatch | ErrorKind::TooLong | ErrorKind::InvalidName
    )
}
