//! What a route takes from: one topic, or one queue, as it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use buslane::{
    Any, Bus, Consumer, Envelope, ErrorKind, Origin, PayloadType, Presence, Queue, Result, Start,
    Subscriber, Topic,
};

use crate::passed::{Passed, Positions};
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
    /// What was sent before a broker ended, and not said to be done with.
    passed: Passed,
    /// What messages made from its own say in [`Origin::by`].
    pub by: u64,
    /// It was removed.
    pub is_gone: bool,
}

impl Source {
    /// Joins what a name stands for; `is_late`: it was made when the route ran already. `None`: it is nothing to take from.
    pub fn join(
        route: &Route,
        name: &str,
        positions: &mut Option<Positions>,
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
        let targets = route.known_targets();
        let (reader, carries, senders, passed, made_at) = match &route.from {
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
                    false => Reader::Live(join_live(route, &topic, by, positions, is_late)?),
                };
                let passed = Passed::in_order(&route.to_bus, by, targets.as_deref())?;
                let senders = Senders::of(route, Lanes::Topic(topic.clone()))?;
                (reader, topic.carries(), senders, passed, topic.made_at())
            }
            From::Queues { group, .. } => {
                let queue = bus.queue_builder(name).open_any()?;
                let reader = Reader::Queue(queue.consumer_builder().group(group).open()?);
                let senders = Senders::of(route, Lanes::Queue(queue.clone()))?;
                (
                    reader,
                    queue.carries(),
                    senders,
                    Passed::nothing(),
                    queue.made_at(),
                )
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
                passed,
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
}

/// Joins a topic of which nothing is kept: where the route was, as far as its publishers still hold what they sent, or, if it was never
/// there, with what is sent from now on.
fn join_live(
    route: &Route,
    topic: &Topic<Any>,
    by: u64,
    positions: &mut Option<Positions>,
    is_late: bool,
) -> Result<Subscriber<Any>> {
    let positions = match positions {
        Some(positions) => positions,
        none => none.insert(Positions::open(&route.from_bus, &route.name)?),
    };
    // Before it joins: what is sent in between is taken, and not passed for done with.
    let lanes = route.from_bus.inspect(topic.name())?.lanes;
    if positions.know(by) || is_late {
        positions.retain(|of, lane| of != by || lanes.iter().any(|there| there.id == lane));
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

    /// Has it known what was sent of the messages of a queue, if one comes again: whoever had it before has sent what it sent.
    pub fn remember(&mut self, bus: &Bus, targets: Option<&[Target]>) -> Result<()> {
        self.passed = Passed::each(bus, self.by, targets)?;
        Ok(())
    }

    /// Whether that was sent before.
    pub fn was_sent(&self, target: &str, origin: Origin) -> bool {
        self.passed.has(target, origin)
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
