//! What a route takes from: one topic, or one queue, as it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use buslane::{
    Any, Bus, Consumer, Envelope, ErrorKind, Origin, PayloadType, Presence, Queue, Result, Start,
    Subscriber, Topic,
};

use crate::passed::{Passed, Sent};
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
    pub memory: Memory,
    /// What messages made from its own say in [`Origin::by`].
    by: u64,
    /// It was removed.
    pub is_gone: bool,
}

/// What was sent before a broker ended.
pub enum Memory {
    InOrder(Passed),
    /// Looked up when a message comes again.
    Shared {
        sent: Option<Sent>,
    },
}

impl Source {
    /// Joins what a name stands for; `is_late`: it was made when the route ran already. `None`: it is nothing to take from.
    pub fn join(
        route: &Route,
        name: &str,
        targets: Option<&[Target]>,
        is_late: bool,
    ) -> Result<Option<Self>> {
        let bus = &route.from_bus;
        let by = |made_at: SystemTime| {
            let since = made_at
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            let (path, since) = (bus.path().display(), since.as_nanos());
            Envelope::id_of_type(&format!("{}\0{path}\0{name}\0{since}", route.name))
        };
        let (reader, carries, senders, memory, made_at) = match &route.from {
            From::Topics(_) => {
                let topic = match bus.topic_builder(name).create(false).open_any() {
                    Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Mismatch) => {
                        return Ok(None);
                    }
                    topic => topic?,
                };
                let passed = Passed::look(&route.to_bus, by(topic.made_at()), targets)?;
                // It goes on where it was, if it was there before.
                let start = match passed.is_empty() && !is_late {
                    true => Start::Now,
                    false => Start::Oldest,
                };
                let reader = match topic.is_durable() {
                    true => {
                        let builder = topic.subscription_builder(&route.name).start(start);
                        Reader::Named(builder.by_ack(true).open()?)
                    }
                    false => Reader::Live(topic.subscriber_from(start)?),
                };
                let senders = Senders::of(route, Lanes::Topic(topic.clone()))?;
                let memory = Memory::InOrder(passed);
                (reader, topic.carries(), senders, memory, topic.made_at())
            }
            From::Queues { group, .. } => {
                let queue = bus.queue_builder(name).open_any()?;
                let consumer = queue.consumer_builder().group(group).open()?;
                let senders = Senders::of(route, Lanes::Queue(queue.clone()))?;
                let memory = Memory::Shared { sent: None };
                let reader = Reader::Queue(consumer);
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
        let (bus, name) = (&route.from_bus, &*self.facts.name);
        let made_at = match &self.reader {
            Reader::Live(_) | Reader::Named(_) => {
                let topic = bus.topic_builder(name).create(false).open_any();
                topic.map(|topic| topic.made_at())
            }
            Reader::Queue(_) => {
                let queue = bus.queue_builder(name).create(false).open_any();
                queue.map(|queue| queue.made_at())
            }
        };
        // What can't be looked at now may be there.
        made_at.map_or_else(
            |e| e.kind() != ErrorKind::NotFound,
            |at| at == self.facts.made_at,
        )
    }

    /// All that it has taken is done with.
    pub fn ack(&mut self) -> Result<()> {
        match &mut self.reader {
            Reader::Named(subscriber) => subscriber.ack(),
            Reader::Live(_) | Reader::Queue(_) => Ok(()),
        }
    }
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

    /// Has it known what was sent of the messages of a queue, if one comes again: whoever had it before has sent what it sent.
    pub fn remember(&mut self, bus: &Bus, targets: Option<&[Target]>) -> Result<()> {
        if let Memory::Shared { sent } = &mut self.memory {
            *sent = Some(Sent::look(bus, self.by, targets)?);
        }
        Ok(())
    }

    /// Whether that was sent before.
    pub fn was_sent(&self, target: &str, origin: Origin) -> bool {
        match &self.memory {
            Memory::InOrder(passed) => passed.has(target, origin),
            Memory::Shared { sent } => sent.as_ref().is_some_and(|sent| sent.has(target, origin)),
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
    /// None: nobody asks.
    watched: Option<(Lanes, Presence)>,
    names: HashMap<u64, String>,
}

impl Senders {
    fn of(route: &Route, lanes: Lanes) -> Result<Self> {
        let watched = match (route.names_sender, lanes) {
            (false, _) => None,
            (true, Lanes::Topic(topic)) => {
                topic.presence().map(|p| Some((Lanes::Topic(topic), p)))?
            }
            (true, Lanes::Queue(queue)) => {
                queue.presence().map(|p| Some((Lanes::Queue(queue), p)))?
            }
        };
        Ok(Self {
            watched,
            names: HashMap::new(),
        })
    }

    /// Has all names looked up anew.
    pub fn forget(&mut self) {
        self.names.clear();
    }

    /// Of a lane; empty if it is not known: it may have left.
    pub fn name(&mut self, lane: u64) -> &str {
        let Some((lanes, presence)) = &mut self.watched else {
            return "";
        };
        // Lanes are taken over: what was known before somebody came or went is looked up anew.
        if presence.changed(Some(Duration::ZERO)).unwrap_or(true) {
            self.names.clear();
        }
        self.names.entry(lane).or_insert_with(|| {
            let owner = match lanes {
                Lanes::Topic(topic) => topic.publisher_of(lane),
                Lanes::Queue(queue) => queue.producer_of(lane),
            };
            let owner = owner.ok().flatten().filter(|owner| owner.alive);
            owner.map(|owner| owner.name).unwrap_or_default()
        })
    }
}
