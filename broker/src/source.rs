//! What a route takes from: one topic, or one queue, as it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use buslane::{
    Any, Bus, Consumer, Envelope, ErrorKind, Origin, PayloadType, Presence, Queue, Result, Start,
    Subscriber, Topic,
};

use crate::passed::{Each, InOrder, Positions};
use crate::route::{From, Route, Target};

/// How the messages of a source are taken.
pub enum Reader {
    /// A subscriber, whom publishers wait for while it lives.
    Live(Subscriber<Any>),
    /// A subscription that is kept.
    Named(Subscriber<Any>),
    /// A consumer of a group.
    Queue(Consumer<Any>),
}

impl Reader {
    pub fn as_source(&mut self) -> &mut dyn buslane::Source {
        match self {
            Self::Live(subscriber) | Self::Named(subscriber) => subscriber,
            Self::Queue(consumer) => consumer,
        }
    }
}

/// One topic or queue.
pub struct Source {
    pub reader: Reader,
    pub facts: Facts,
}

/// What is known of a source beside what it reads with.
pub struct Facts {
    pub name: Arc<str>,
    /// Another one may have its name later.
    made_at: SystemTime,
    pub carries: PayloadType,
    pub senders: Senders,
    /// What was sent before a broker ended, and not said to be done with.
    memory: Memory,
    /// What messages made from its own say in [`Origin::by`].
    pub by: u64,
    /// It was removed.
    pub is_gone: bool,
}

/// What was sent before a broker ended.
enum Memory {
    Topic(InOrder),
    Queue(Each),
}

impl Source {
    /// Joins what a name stands for; what was made after `since` from its first message on. `None`: it is nothing to take from.
    pub fn join(
        route: &Route,
        name: &str,
        positions: Option<&mut Positions>,
        since: Option<SystemTime>,
    ) -> Result<Option<Self>> {
        let bus = &route.from_bus;
        let by = |made_at: SystemTime| {
            let since = made_at
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            let (path, since) = (bus.path().display(), since.as_nanos());
            Envelope::id_of_type(&format!("{}\0{path}\0{name}\0{since}", route.name))
        };
        let targets = route.known_targets();
        let (reader, carries, senders, memory, made_at) = match &route.from {
            From::Topics(_) => {
                let topic = match bus.topic_builder(name).create(false).open_any() {
                    Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Mismatch) => {
                        return Ok(None);
                    }
                    topic => topic?,
                };
                let by = by(topic.made_at());
                let reader = match topic.is_durable() {
                    true => {
                        // What was sent to it waits for who comes first.
                        let builder = topic.subscription_builder(&route.name).start(Start::Oldest);
                        Reader::Named(builder.by_ack(true).open()?)
                    }
                    false => Reader::Live(join_live(route, &topic, by, positions, since)?),
                };
                let memory = InOrder::look(&route.to_bus, by, targets.as_deref())?;
                let senders = Senders::of(Lanes::Topic(topic.clone()));
                (
                    reader,
                    topic.carries(),
                    senders,
                    Memory::Topic(memory),
                    topic.made_at(),
                )
            }
            From::Queues { group, .. } => {
                let queue = bus.queue_builder(name).open_any()?;
                let reader = Reader::Queue(queue.consumer_builder().group(group).open()?);
                let senders = Senders::of(Lanes::Queue(queue.clone()));
                let memory = Memory::Queue(Each::default());
                (reader, queue.carries(), senders, memory, queue.made_at())
            }
        };
        Ok(Some(Self {
            reader,
            facts: Facts {
                name: name.into(),
                made_at,
                by: by(made_at),
                carries,
                senders,
                memory,
                is_gone: false,
            },
        }))
    }
}

impl Source {
    /// Whether what it takes from is still there.
    pub fn is_there(&self, route: &Route) -> bool {
        let is_queue = matches!(self.reader, Reader::Queue(_));
        let made_at = made_at(&route.from_bus, &self.facts.name, is_queue);
        // What can't be looked at now may be there.
        made_at.map_or_else(
            |e| e.kind() != ErrorKind::NotFound,
            |at| at == self.facts.made_at,
        )
    }
}

/// When a topic, or a queue, was made, that is there.
pub fn made_at(bus: &Bus, name: &str, is_queue: bool) -> Result<SystemTime> {
    match is_queue {
        true => Ok(bus.queue_builder(name).create(false).open_any()?.made_at()),
        false => Ok(bus.topic_builder(name).create(false).open_any()?.made_at()),
    }
}

/// Joins a topic of which nothing is kept: where the route was, as far as its publishers still hold what they sent; from its first message
/// on, if it was made after `since`, when the route ran; else with what is sent from now on.
fn join_live(
    route: &Route,
    topic: &Topic<Any>,
    by: u64,
    positions: Option<&mut Positions>,
    since: Option<SystemTime>,
) -> Result<Subscriber<Any>> {
    let Some(positions) = positions else {
        return topic.subscriber_from(Start::Oldest);
    };
    // Before it joins: what is sent in between is taken, and not passed for done with.
    let lanes = route.from_bus.inspect(topic.name())?.lanes;
    if positions.know(by) || since.is_some_and(|since| topic.made_at() > since) {
        return topic.subscriber_from(Start::Oldest);
    }
    for lane in lanes {
        positions.move_to(by, lane.id, lane.messages as u32);
    }
    let subscriber = topic.subscriber_from(Start::Now)?;
    positions.say()?;
    Ok(subscriber)
}

impl Facts {
    pub fn origin(&self, lane: u64, sequence: u32, part: u32) -> Origin {
        Origin {
            by: self.by,
            lane,
            sequence,
            part,
        }
    }

    /// Has it known what was sent of the messages of a queue, as one comes again: whoever had it before has sent what it sent.
    pub fn remember(&mut self, bus: &Bus, targets: Option<&[Target]>) -> Result<()> {
        match &mut self.memory {
            Memory::Queue(each) => each.look_again(bus, self.by, targets),
            Memory::Topic(_) => Ok(()),
        }
    }

    /// Whether that was sent before; `is_again`: it comes again from a queue.
    pub fn was_sent(&mut self, target: &str, origin: Origin, is_again: bool) -> bool {
        match &mut self.memory {
            Memory::Topic(found) => found.has(target, origin),
            Memory::Queue(each) => is_again && each.has(target, origin),
        }
    }
}

/// Who writes the lanes of a topic or a queue.
enum Lanes {
    Topic(Topic<Any>),
    Queue(Queue<Any>),
}

/// The names of the processes that write them.
pub struct Senders {
    lanes: Lanes,
    /// From when somebody first asks.
    presence: Option<Presence>,
    names: HashMap<u64, String>,
}

impl Senders {
    fn of(lanes: Lanes) -> Self {
        Self {
            lanes,
            presence: None,
            names: HashMap::new(),
        }
    }

    /// Of a lane; empty if it is not known: it may have left.
    pub fn name(&mut self, lane: u64) -> &str {
        // Lanes are taken over: what was known before somebody came or went is looked up anew.
        let has_changed = match &mut self.presence {
            Some(presence) => presence.changed(Some(Duration::ZERO)).unwrap_or(true),
            None => {
                self.presence = match &self.lanes {
                    Lanes::Topic(topic) => topic.presence().ok(),
                    Lanes::Queue(queue) => queue.presence().ok(),
                };
                true
            }
        };
        if has_changed {
            self.names.clear();
        }
        self.names.entry(lane).or_insert_with(|| {
            let owner = match &self.lanes {
                Lanes::Topic(topic) => topic.publisher_of(lane),
                Lanes::Queue(queue) => queue.producer_of(lane),
            };
            let owner = owner.ok().flatten().filter(|owner| owner.alive);
            owner.map(|owner| owner.name).unwrap_or_default()
        })
    }
}
