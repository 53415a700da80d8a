//! What a route takes, what it does with it, and where that goes.

use std::fmt;
use std::time::Duration;

use buslane::{Bus, Envelope, Kind, NamePattern};

use crate::error::{Error, Result};

/// What a message came as.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Incoming<'a> {
    /// The topic, or queue, that it was sent to.
    pub topic: &'a str,
    /// Its lane there.
    pub lane: u64,
    /// The low 32 bits of its number in that lane.
    pub sequence: u32,
    /// Who sent it: as the envelope says, or else the name of the process that writes the lane, while that lives. Empty if it is not
    /// known, or the route does not ask for it.
    pub sender: &'a str,
    /// What goes with it, if it has an envelope.
    pub envelope: Option<&'a Envelope>,
    /// What it carries.
    pub payload: &'a [u8],
}

/// What is made of a message: none, one or several, in this order.
#[derive(Debug, Default)]
pub struct Outgoing {
    pub(crate) drafts: Vec<Draft>,
}

impl Outgoing {
    /// The message as it came.
    pub fn pass(&mut self) -> &mut Draft {
        self.push(None)
    }

    /// One with this payload.
    pub fn send(&mut self, payload: Vec<u8>) -> &mut Draft {
        self.push(Some(payload))
    }

    fn push(&mut self, payload: Option<Vec<u8>>) -> &mut Draft {
        self.drafts.push(Draft {
            payload,
            ..Draft::default()
        });
        self.drafts.last_mut().expect("it was just put there")
    }
}

/// A message that is to be sent. What is not said is as in the one that it is made from.
#[derive(Debug, Default)]
pub struct Draft {
    /// None: as it came.
    pub(crate) payload: Option<Vec<u8>>,
    /// None: to all that the route names.
    pub(crate) to: Option<Vec<String>>,
    pub(crate) kind: Option<Kind>,
    pub(crate) type_name: Option<String>,
    pub(crate) correlation: Option<u64>,
}

impl Draft {
    /// Sends it to this topic instead of those that the route names; called again, to that one, too. The route must say that this may
    /// be: [`Route::to_named`].
    pub fn to(&mut self, topic: &str) -> &mut Self {
        self.to.get_or_insert_default().push(topic.to_owned());
        self
    }

    /// Sends it to none of those that the route names.
    pub fn to_nobody(&mut self) -> &mut Self {
        self.to.get_or_insert_default();
        self
    }

    /// Says what it is for.
    pub fn kind(&mut self, kind: Kind) -> &mut Self {
        self.kind = Some(kind);
        self
    }

    /// Says what type its payload is of.
    pub fn of_type(&mut self, name: &str) -> &mut Self {
        self.type_name = Some(name.to_owned());
        self
    }

    /// Says which messages it belongs to.
    pub fn correlated(&mut self, correlation: u64) -> &mut Self {
        self.correlation = Some(correlation);
        self
    }

    /// The envelope that it had, with what was said.
    pub(crate) fn envelope(&self, mut envelope: Envelope) -> Envelope {
        if let Some(kind) = self.kind {
            envelope = envelope.with_kind(kind);
        }
        if let Some(name) = &self.type_name {
            envelope = envelope.of_type(name);
        }
        if let Some(correlation) = self.correlation {
            envelope = envelope.correlated(correlation);
        }
        envelope
    }
}

/// What a route makes of each message. Any closure of this form is one.
pub trait Program: Send {
    /// Says what is sent. A reason makes the message a dead letter.
    ///
    /// # Errors
    ///
    /// Why nothing can be made of it.
    fn run(&mut self, message: &Incoming<'_>, out: &mut Outgoing) -> Result<(), String>;
}

impl<F> Program for F
where
    F: FnMut(&Incoming<'_>, &mut Outgoing) -> Result<(), String> + Send,
{
    fn run(&mut self, message: &Incoming<'_>, out: &mut Outgoing) -> Result<(), String> {
        self(message, out)
    }
}

/// What tells messages apart. The same key within the time is the same message.
pub(crate) type Key = Box<dyn FnMut(&Incoming<'_>) -> Result<Vec<u8>, String> + Send>;

/// From where a route takes messages.
#[derive(Clone, Debug)]
pub(crate) enum From {
    /// Topics whose name matches.
    Topics(Vec<(String, NamePattern)>),
    /// Queues, as a group of consumers.
    Queues { names: Vec<String>, group: String },
}

/// To where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub name: String,
    /// What it is made as, if it is missing.
    pub is_queue: bool,
}

/// A way of messages from topics, or queues, to others. Without a [program](Self::program) they go on as they came.
///
/// ```
/// use buslane::Bus;
/// use buslane_broker::{Broker, Incoming, Outgoing, Route};
///
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// let bus = Bus::at(dir.path().join("bus"))?;
/// let mut loud = bus.topic("loud")?.subscriber()?;
/// let mut quiet = bus.topic("quiet/eu")?.publisher()?;
/// let shout = |message: &Incoming<'_>, out: &mut Outgoing| {
///     out.send(message.payload.to_ascii_uppercase());
///     Ok(())
/// };
/// let route = Route::from_topics("shout", &bus, &["quiet/*"])?.to("loud").program(shout);
///
/// let broker = Broker::start(vec![route])?;
/// broker.wait_until_running();
/// quiet.send(b"hello")?;
/// assert_eq!(&*loud.recv()?, b"HELLO");
/// broker.stop();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Route {
    pub(crate) name: String,
    pub(crate) from_bus: Bus,
    pub(crate) from: From,
    pub(crate) to_bus: Bus,
    pub(crate) to: Vec<Target>,
    /// And to what its program names.
    pub(crate) to_named: bool,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) types: Vec<String>,
    pub(crate) senders: Vec<String>,
    pub(crate) names_sender: bool,
    pub(crate) program: Option<Box<dyn Program>>,
    pub(crate) sample: u64,
    pub(crate) rate: Option<(u32, Duration)>,
    pub(crate) unique: Option<(Key, Duration)>,
    pub(crate) taps: Vec<Target>,
    pub(crate) delay: Duration,
    pub(crate) dead_letters: Option<Target>,
    pub(crate) patience: Option<Duration>,
    /// What it was read from: the same text is the same route.
    pub(crate) text: String,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("name", &self.name)
            .field("from", &self.from)
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

impl Route {
    /// A route from the topics whose name matches one of `patterns`, those that are made later, too. One broker at a time runs it, in
    /// order; others stand by.
    ///
    /// On a durable bus it is a subscription with the route's name, which begins with the oldest message that is kept: what is sent while no
    /// broker runs waits for it. Else it begins with what is sent from now on, and goes on where it was as far as publishers still hold what
    /// they sent.
    ///
    /// # Errors
    ///
    /// If a name is none.
    pub fn from_topics(name: &str, bus: &Bus, patterns: &[&str]) -> Result<Self> {
        let parse = |text: &&str| Ok((String::from(*text), NamePattern::parse(text)?));
        let patterns: Result<_, buslane::Error> = patterns.iter().map(parse).collect();
        Self::new(name, bus, From::Topics(patterns?))
    }

    /// A route from queues: it takes messages off them as their workers do, and shares them with these, and with other brokers that run it; or
    /// gets them all [as a group of its own](Self::as_group). What is pushed while no broker runs waits.
    ///
    /// # Errors
    ///
    /// If a name is none.
    pub fn from_queues(name: &str, bus: &Bus, names: &[&str]) -> Result<Self> {
        let names = names.iter().copied().map(String::from).collect();
        let group = String::from("default");
        Self::new(name, bus, From::Queues { names, group })
    }

    fn new(name: &str, bus: &Bus, from: From) -> Result<Self> {
        // It is the name of a subscription, and of a group.
        if name.contains(['/', '*']) {
            let why = "its name is to be one segment, without '/' and '*'";
            return Err(Error::route(name, why));
        }
        NamePattern::parse(name)?;
        Ok(Self {
            name: name.to_owned(),
            from_bus: bus.clone(),
            from,
            to_bus: bus.clone(),
            to: Vec::new(),
            to_named: false,
            kinds: Vec::new(),
            types: Vec::new(),
            senders: Vec::new(),
            names_sender: false,
            program: None,
            sample: 1,
            rate: None,
            unique: None,
            taps: Vec::new(),
            delay: Duration::ZERO,
            dead_letters: None,
            patience: None,
            text: String::new(),
        })
    }

    /// Of queues: takes the messages as this group instead of `default`, shared with its other consumers: a new one gets what is pushed from
    /// when it is made.
    pub fn as_group(mut self, name: &str) -> Self {
        if let From::Queues { group, .. } = &mut self.from {
            name.clone_into(group);
        }
        self
    }

    /// Sends to topics of another bus.
    pub fn on_bus(mut self, bus: &Bus) -> Self {
        self.to_bus = bus.clone();
        self
    }

    /// Sends to this topic, too, or queue, if it is one; it is made as a topic if it is missing.
    pub fn to(mut self, name: &str) -> Self {
        self.to.push(Target::new(name, false));
        self
    }

    /// Sends to the topics that its program names, too. After a death, all topics of the bus are looked through for what was sent before.
    pub fn to_named(mut self) -> Self {
        self.to_named = true;
        self
    }

    /// Pushes to this queue, too, made if it is missing.
    pub fn to_queue(mut self, name: &str) -> Self {
        self.to.push(Target::new(name, true));
        self
    }

    /// Takes only messages of these kinds; those without an envelope have none.
    pub fn kinds(mut self, kinds: &[Kind]) -> Self {
        self.kinds = kinds.to_vec();
        self
    }

    /// Takes only messages of these types: as the envelope names it, or else their topic.
    pub fn types(mut self, names: &[&str]) -> Self {
        self.types = names.iter().copied().map(String::from).collect();
        self
    }

    /// Takes only messages of senders with these names: as the envelope says, or else the process that writes the lane, while it lives.
    pub fn senders(mut self, names: &[&str]) -> Self {
        self.senders = names.iter().copied().map(String::from).collect();
        self.names_sender |= !names.is_empty();
        self
    }

    /// Says who sent each message in [`Incoming::sender`].
    pub fn with_sender(mut self) -> Self {
        self.names_sender = true;
        self
    }

    /// What it makes of each message.
    pub fn program(mut self, program: impl Program + 'static) -> Self {
        self.program = Some(Box::new(program));
        self
    }

    /// Takes one message in `n`: the first, and so on.
    pub fn sample(mut self, n: u64) -> Self {
        self.sample = n.max(1);
        self
    }

    /// Takes at most `n` messages in `per`, and drops the others.
    pub fn rate(mut self, n: u32, per: Duration) -> Self {
        self.rate = Some((n.max(1), per));
        self
    }

    /// Drops a message that has the key of one that came within `time` before it. The last 65,536 keys are known.
    pub fn unique(
        mut self,
        time: Duration,
        key: impl FnMut(&Incoming<'_>) -> Result<Vec<u8>, String> + Send + 'static,
    ) -> Self {
        self.unique = Some((Box::new(key), time));
        self
    }

    /// Copies each message that comes in to this topic, as it is; where that has no room, it is dropped there, and counted.
    pub fn tap(mut self, name: &str) -> Self {
        self.taps.push(Target::new(name, false));
        self
    }

    /// Sends each message so long after it was sent, if its envelope says when, or was received. Those that wait are held in memory, 65,536 at
    /// most; of a durable topic they are sent in groups, and may come as late again.
    pub fn delay(mut self, time: Duration) -> Self {
        self.delay = time;
        self
    }

    /// What can't be passed on goes to this queue of [`DeadLetter`](buslane::DeadLetter)s, with the reason; by default it is dropped, counted and logged.
    pub fn dead_letters(mut self, queue: &str) -> Self {
        self.dead_letters = Some(Target::new(queue, true));
        self
    }

    /// How long to wait for room in what it sends to; then the message is one that can't be passed on. By default as long as it takes.
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience = Some(time);
        self
    }

    /// All that it may send to, as far as that is known before.
    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.to.iter().chain(&self.taps)
    }

    /// All that it may send to, dead letters included. `None`: its program names others.
    pub(crate) fn known_targets(&self) -> Option<Vec<Target>> {
        let all = self.targets().chain(&self.dead_letters).cloned();
        (!self.to_named).then(|| all.collect())
    }

    /// Whether it names this, or may.
    pub(crate) fn names_target(&self, target: &Target) -> bool {
        self.known_targets().is_none_or(|all| all.contains(target))
    }

    /// Whether it takes its messages from elsewhere, or in another way.
    pub(crate) fn takes_otherwise(&self, other: &Self) -> bool {
        let is_other_way = match (&self.from, &other.from) {
            (From::Topics(_), From::Topics(_)) => false,
            (From::Queues { group, .. }, From::Queues { group: other, .. }) => group != other,
            _ => true,
        };
        is_other_way
            || self.from_bus.path() != other.from_bus.path()
            || self.names_sender != other.names_sender
    }

    /// Whether it may take what `other` sends.
    fn follows(&self, other: &Self) -> bool {
        let is_one_bus = self.from_bus.path() == other.to_bus.path();
        let takes = |target: &Target| match &self.from {
            From::Topics(patterns) => patterns.iter().any(|(_, p)| p.matches(&target.name)),
            From::Queues { names, .. } => names.contains(&target.name),
        };
        is_one_bus && other.targets().any(takes)
    }
}

impl Target {
    pub(crate) fn topic(name: &str) -> Self {
        Self::new(name, false)
    }

    fn new(name: &str, is_queue: bool) -> Self {
        let name = name.to_owned();
        Self { name, is_queue }
    }
}

/// Looks for routes that would pass messages round and round.
pub(crate) fn check_cycles(routes: &[Route]) -> Result<()> {
    match cycle(routes.len(), |next, before| {
        routes[next].follows(&routes[before])
    }) {
        None => Ok(()),
        Some(way) => {
            let why = describe(&way, |i| &routes[i].name);
            Err(Error::route(&routes[way[0]].name, why))
        }
    }
}

/// The routes of a cycle, as they follow each other; `follows`: whether the first may take what the second sends.
pub(crate) fn cycle(count: usize, follows: impl Fn(usize, usize) -> bool) -> Option<Vec<usize>> {
    // A way is extended by what follows its end until it comes to one that it has; those that lead nowhere are not tried again.
    let mut is_done = vec![false; count];
    for first in 0..count {
        let mut way = vec![(first, 0)];
        while let Some((at, next)) = way.last_mut() {
            let at = *at;
            match (*next..count).find(|&i| !is_done[i] && follows(i, at)) {
                Some(i) => {
                    *next = i + 1;
                    if let Some(begin) = way.iter().position(|&(on_way, _)| on_way == i) {
                        return Some(way[begin..].iter().map(|&(i, _)| i).collect());
                    }
                    way.push((i, 0));
                }
                None => {
                    is_done[at] = true;
                    way.pop();
                }
            }
        }
    }
    None
}

/// What is wrong with a cycle.
pub(crate) fn describe<'a>(way: &[usize], name: impl Fn(usize) -> &'a str) -> String {
    let names = way.iter().chain(way.first()).map(|&i| name(i));
    let way = names.collect::<Vec<_>>().join(" -> ");
    format!(
        "messages would go round without end: {way}; send to a topic that no route on the way takes from"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_found_and_nothing_else() {
        let find = |count, edges: &[(usize, usize)]| {
            cycle(count, |next, before| edges.contains(&(before, next)))
        };
        assert_eq!(find(3, &[(0, 1), (1, 2), (0, 2)]), None);
        assert_eq!(find(1, &[(0, 0)]), Some(vec![0]));
        assert_eq!(
            find(4, &[(0, 1), (1, 2), (2, 3), (3, 1)]),
            Some(vec![1, 2, 3])
        );
    }
}
