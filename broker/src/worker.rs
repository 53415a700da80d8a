//! One route at work, in a thread of its own: what one route waits for holds up no other.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use buslane::{
    Any, Consumer, DeadLetter, Delivery, Envelope, Error, ErrorKind, Kind, Origin, PayloadType,
    Result, Subscriber, WaitSet,
};

use crate::gates::Gates;
use crate::metrics::{Counters, State};
use crate::outlets::{Outlets, Unsent};
use crate::passed::{MAX_OUTPUTS, POSITIONS, Positions, TURN_OUTPUTS};
use crate::route::{Draft, From, Incoming, Outgoing, Route, Target};
use crate::source::{Facts, Reader, Source};

/// Messages taken from one source before the others are looked at, and before what was taken is acknowledged.
const TURN: u32 = 64;
/// How long a wait lasts before orders and topics are looked at again.
const SLICE: Duration = Duration::from_millis(100);
/// How long a source rests after an error.
const REST: Duration = Duration::from_secs(1);
/// Messages of one source that wait until they are due, at most; and bytes of them.
const MAX_HELD: usize = 65_536;
const MAX_HELD_BYTES: usize = 64 << 20;
/// The same of a subscription.
const MAX_GROUP: usize = 256;
/// About what a frame and its envelope take beside a payload.
const FRAME: usize = 256;
/// Routes and services that a message may come through: more, and it goes round.
const MAX_HOPS: u16 = 16;
/// The queue whose groups have the broker that runs a route as their consumer.
const TURNS: &str = "broker/turns";
/// Of a dead letter, in the place of which of several messages it is.
const DEAD_PART: u32 = u32::MAX;

/// Whether a route is to end.
#[derive(Debug, Default)]
pub struct Ending(OnceLock<()>);

impl Ending {
    pub fn is_near(&self) -> bool {
        self.0.get().is_some()
    }

    pub fn announce(&self) {
        let _ = self.0.set(());
    }
}

/// How a route is, for who waits for it.
#[derive(Debug)]
pub struct Status {
    state: Mutex<Option<State>>,
    changed: Condvar,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            state: Mutex::new(None),
            changed: Condvar::new(),
        }
    }
}

impl Status {
    pub fn now(&self) -> Option<State> {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        self.changed.notify_all();
    }

    /// Waits until it has begun: it runs, or it is known that another does.
    pub fn wait_until_begun(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A thread that panicked has said so itself.
        let _begun = self.changed.wait_while(state, |state| state.is_none());
    }
}

/// What a route that runs is told.
pub enum Order {
    /// Go on as this one.
    Become(Box<Route>),
}

/// A message that waits until it is due.
struct Held {
    due: Instant,
    lane: u64,
    sequence: u32,
    sender: String,
    envelope: Option<Envelope>,
    body: Body,
}

/// A copy, or the message itself, which is acknowledged later.
enum Body {
    Copy(Vec<u8>),
    Delivery(Delivery<Any>),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Copy(bytes) => bytes,
            Self::Delivery(delivery) => delivery,
        }
    }
}

/// A source, and its messages that wait.
struct Inlet {
    source: Source,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// After an error.
    rests_until: Option<Instant>,
    /// Of a subscription, the first that waited is due: all that wait are passed on, and acknowledged together, before more are taken.
    is_draining: bool,
}

/// A route at work.
pub struct Worker {
    inlets: Vec<Inlet>,
    engine: Engine,
    orders: Receiver<Order>,
    set: WaitSet,
    /// The list of topics when it was last looked at.
    version: Option<u64>,
    /// Whether the topics that were there when it began are joined.
    has_begun: bool,
    /// Who has it runs the route; None: nobody else may, or it is not ours.
    turn: Option<Consumer>,
}

impl Worker {
    pub fn new(
        route: Route,
        counters: Counters,
        ending: Arc<Ending>,
        orders: Receiver<Order>,
    ) -> Result<Self> {
        Ok(Self {
            inlets: Vec::new(),
            set: WaitSet::new()?,
            engine: Engine {
                outlets: Outlets::new(&route),
                positions: None,
                turn: (0, 0),
                gates: Gates::new(&route),
                out: Outgoing::default(),
                spare: None,
                bytes: PayloadType::bytes(),
                told: None,
                route,
                counters,
                ending,
            },
            orders,
            version: None,
            has_begun: false,
            turn: None,
        })
    }

    /// Works until it is told to end.
    pub fn run(mut self) {
        while !self.engine.ending.is_near() {
            if let Err(error) = self.step() {
                self.engine.trouble(&error);
                self.rest(REST);
            }
        }
    }

    fn step(&mut self) -> Result<()> {
        self.obey();
        if !self.has_turn()? {
            self.engine.counters.set_state(State::StandingBy);
            self.rest(SLICE);
            return Ok(());
        }
        self.discover()?;
        self.release_due()?;
        let mut took = 0;
        for inlet in &mut self.inlets {
            took += self.engine.take_some(inlet)?;
        }
        let count = self.inlets.len();
        self.inlets.retain(|inlet| !inlet.source.facts.is_gone);
        if self.inlets.len() < count {
            // There may be another one of that name by now.
            self.version = None;
        }
        if took == 0 && !self.engine.ending.is_near() {
            self.wait()?;
        }
        Ok(())
    }

    /// Waits until there is something to do.
    fn wait(&mut self) -> Result<()> {
        let now = Instant::now();
        let due = self.inlets.iter().filter_map(|inlet| inlet.held.front());
        let due = due
            .map(|held| held.due.saturating_duration_since(now))
            .min();
        let timeout = due.map_or(SLICE, |due| due.min(SLICE));
        let awake = self.inlets.iter_mut().filter(|inlet| inlet.is_awake(now));
        let mut sources: Vec<_> = awake.map(|inlet| inlet.source.reader.as_source()).collect();
        if sources.is_empty() {
            self.rest(timeout);
            return Ok(());
        }
        match self.set.wait(&mut sources, Some(timeout)) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // One of them was removed: it is found which.
                self.version = None;
                Ok(())
            }
            waited => waited.map(drop),
        }
    }

    /// Does nothing for so long, but obey.
    fn rest(&mut self, time: Duration) {
        match self.orders.recv_timeout(time) {
            Ok(order) => self.follow(order),
            Err(RecvTimeoutError::Timeout) => {}
            // Nobody is there to give orders: the broker ends.
            Err(RecvTimeoutError::Disconnected) => self.engine.ending.announce(),
        }
    }

    fn obey(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            self.follow(order);
        }
    }

    /// Goes on otherwise, between two messages: what it takes from in both forms it goes on taking.
    fn follow(&mut self, order: Order) {
        let Order::Become(route) = order;
        let engine = &mut self.engine;
        let old = std::mem::replace(&mut engine.route, *route);
        let new = &engine.route;
        if new.takes_otherwise(&old) {
            self.inlets.clear();
            engine.positions = None;
            self.turn = None;
            self.has_begun = false;
        }
        for inlet in &mut self.inlets {
            // The others might want to know who sends.
            inlet.source.facts.senders.forget();
        }
        self.version = None;
        if new.to_bus.path() == old.to_bus.path() {
            engine.outlets.retain(|target| new.names_target(target));
        } else {
            engine.outlets = Outlets::new(new);
        }
        engine.gates = Gates::new(new);
    }

    /// Whether this broker is the one that runs the route; those that share it all are.
    fn has_turn(&mut self) -> Result<bool> {
        let route = &self.engine.route;
        if matches!(route.from, From::Queues { .. }) || self.turn.is_some() {
            return Ok(true);
        }
        let turns = route.from_bus.queue(TURNS)?;
        match turns
            .consumer_builder()
            .group(&route.name)
            .exclusive(true)
            .open()
        {
            Ok(turn) => {
                self.turn = Some(turn);
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::InUse => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Joins what is to be taken from and is not joined, if the list of topics has changed.
    fn discover(&mut self) -> Result<()> {
        let Engine {
            route,
            counters,
            positions,
            ..
        } = &mut self.engine;
        let bus = &route.from_bus;
        // Read before listing, so that what comes later changes it once more.
        let version = bus.topics_version();
        if self.version == Some(version) {
            return Ok(());
        }
        let names = match &route.from {
            From::Topics(patterns) => {
                let is_meant = |name: &String| {
                    name != POSITIONS && patterns.iter().any(|(_, p)| p.matches(name))
                };
                bus.topics()?.into_iter().filter(is_meant).collect()
            }
            From::Queues { names, .. } => names.clone(),
        };
        self.inlets.retain(|inlet| {
            let is_meant = names.iter().any(|name| **name == *inlet.source.facts.name);
            is_meant && inlet.source.is_there(route)
        });
        for name in names {
            if self
                .inlets
                .iter()
                .any(|inlet| *inlet.source.facts.name == *name)
            {
                continue;
            }
            if let Some(source) = Source::join(route, &name, positions, self.has_begun)? {
                self.inlets.push(Inlet {
                    source,
                    held: VecDeque::new(),
                    held_bytes: 0,
                    rests_until: None,
                    is_draining: false,
                });
            }
        }
        self.version = Some(version);
        self.has_begun = true;
        counters.set_state(State::Running);
        Ok(())
    }

    /// Passes on what waited until now.
    fn release_due(&mut self) -> Result<()> {
        let now = Instant::now();
        for inlet in &mut self.inlets {
            let mut has_released = false;
            while let Some(held) = inlet.held.pop_front_if(|held| held.due <= now) {
                has_released = true;
                inlet.held_bytes -= held.body.bytes().len();
                let facts = &mut inlet.source.facts;
                let name = Arc::clone(&facts.name);
                let message = Incoming {
                    topic: &name,
                    lane: held.lane,
                    sequence: held.sequence,
                    sender: &held.sender,
                    envelope: held.envelope.as_ref(),
                    payload: held.body.bytes(),
                };
                if self.engine.pass_on(facts, &message).is_err() {
                    // It ends: what is not done with comes again.
                    return Ok(());
                }
                match held.body {
                    Body::Copy(_) => self.engine.is_done_with(facts, held.lane, held.sequence),
                    Body::Delivery(delivery) => self.engine.ack(delivery),
                }
            }
            // A subscription is acknowledged as a whole.
            inlet.is_draining |= has_released;
            inlet.is_draining &= !inlet.held.is_empty();
            let is_named = matches!(inlet.source.reader, Reader::Named(_));
            if has_released && !(is_named && inlet.is_draining) {
                self.engine.settle(&mut inlet.source)?;
            }
        }
        Ok(())
    }
}

impl Inlet {
    fn is_awake(&self, now: Instant) -> bool {
        let is_open = match self.source.reader {
            Reader::Named(_) => !self.is_draining,
            Reader::Live(_) | Reader::Queue(_) => true,
        };
        let is_rested = self.rests_until.is_none_or(|until| until <= now);
        is_open && is_rested && self.has_place()
    }

    /// Whether one more can wait.
    fn has_place(&self) -> bool {
        let most = match self.source.reader {
            // Acknowledged together: what was sent of them must be found at the end of what it was sent to.
            Reader::Named(_) => MAX_GROUP,
            Reader::Live(_) | Reader::Queue(_) => MAX_HELD,
        };
        self.held.len() < most && self.held_bytes < MAX_HELD_BYTES
    }
}

impl Reader {
    fn as_source(&mut self) -> &mut dyn buslane::Source {
        match self {
            Self::Live(subscriber) | Self::Named(subscriber) => subscriber,
            Self::Queue(consumer) => consumer,
        }
    }
}

/// The route is to end before a message was passed on.
struct Ended;

/// What becomes of a message that was taken.
enum Fate {
    Done,
    Waits(Instant),
}

/// What a route does with a message.
struct Engine {
    route: Route,
    outlets: Outlets,
    /// In topics of which nothing is kept; None: it takes from none.
    positions: Option<Positions>,
    /// Messages, and bytes of them, sent since what was taken was said to be done with.
    turn: (usize, usize),
    gates: Gates,
    out: Outgoing,
    /// An envelope that was used.
    spare: Option<Envelope>,
    /// What a message carries that is made by a program.
    bytes: PayloadType,
    counters: Counters,
    ending: Arc<Ending>,
    /// When it was last told that a message was dropped.
    told: Option<Instant>,
}

impl Engine {
    /// Takes some messages of a source, if there are any, and says how many.
    fn take_some(&mut self, inlet: &mut Inlet) -> Result<u32> {
        if !inlet.is_awake(Instant::now()) {
            return Ok(0);
        }
        let mut took = 0;
        while took < TURN && inlet.has_place() && !self.ending.is_near() && !self.has_sent_much() {
            let Source { reader, facts } = &mut inlet.source;
            let taken = match reader {
                Reader::Live(subscriber) | Reader::Named(subscriber) => {
                    self.take_frame(subscriber, facts, &mut inlet.held)
                }
                Reader::Queue(consumer) => self.take_delivery(consumer, facts, &mut inlet.held),
            };
            match taken {
                Ok(Some(bytes)) => {
                    inlet.held_bytes += bytes;
                    inlet.rests_until = None;
                    took += 1;
                }
                Ok(None) => break,
                Err(error) => {
                    if self.source_trouble(&error, facts) {
                        inlet.rests_until = Some(Instant::now() + REST);
                    }
                    break;
                }
            }
        }
        // What was not passed on because the route ends comes again.
        if took > 0 && inlet.held.is_empty() && !self.ending.is_near() {
            self.settle(&mut inlet.source)?;
        }
        Ok(took)
    }

    /// Notes that a message of a topic was passed on, or is not to be.
    fn is_done_with(&mut self, facts: &Facts, lane: u64, sequence: u32) {
        if let Some(positions) = &mut self.positions {
            positions.move_to(facts.by, lane, sequence.wrapping_add(1));
        }
    }

    /// Says that all that was taken of a source is done with.
    fn settle(&mut self, source: &mut Source) -> Result<()> {
        self.turn = (0, 0);
        match &mut source.reader {
            Reader::Named(subscriber) => subscriber.ack(),
            Reader::Live(_) => self.positions.as_mut().map_or(Ok(()), Positions::say),
            Reader::Queue(_) => Ok(()),
        }
    }

    /// Whether more would overwrite what tells, after a death, what was sent.
    fn has_sent_much(&self) -> bool {
        let (messages, bytes) = self.turn;
        messages > 0 && (messages >= TURN_OUTPUTS || bytes >= self.outlets.room())
    }

    /// Takes a message of a topic; says how many bytes of it are held.
    fn take_frame(
        &mut self,
        subscriber: &mut Subscriber<Any>,
        facts: &mut Facts,
        held: &mut VecDeque<Held>,
    ) -> Result<Option<usize>> {
        let Some(frame) = subscriber.try_recv()? else {
            return Ok(None);
        };
        let (lane, sequence, envelope) = (frame.lane(), frame.sequence(), frame.envelope());
        if let Some(positions) = &mut self.positions
            && positions.are_past(facts.by, lane, sequence)
        {
            return Ok(Some(0));
        }
        let (name, sender) = (Arc::clone(&facts.name), self.sender(facts, lane, &envelope));
        let message = Incoming {
            topic: &name,
            lane,
            sequence,
            sender: &sender,
            envelope: envelope.as_ref(),
            payload: &frame,
        };
        let bytes = frame.len();
        match self.take(facts, &message) {
            // Those that wait are before it.
            Ok(Fate::Done) if self.route.delay.is_zero() => {
                self.is_done_with(facts, lane, sequence);
            }
            Ok(Fate::Done) => {}
            Ok(Fate::Waits(due)) => {
                let body = Body::Copy(frame.to_vec());
                held.push_back(Held {
                    due,
                    lane,
                    sequence,
                    sender,
                    envelope,
                    body,
                });
                return Ok(Some(bytes));
            }
            // It is not done with, and found again.
            Err(Ended) => {}
        }
        Ok(Some(0))
    }

    /// The same, of a queue.
    fn take_delivery(
        &mut self,
        consumer: &mut Consumer<Any>,
        facts: &mut Facts,
        held: &mut VecDeque<Held>,
    ) -> Result<Option<usize>> {
        let Some(delivery) = consumer.try_recv()? else {
            return Ok(None);
        };
        if delivery.attempts() > 1 {
            let targets = self.route.known_targets();
            facts.remember(self.outlets.bus(), targets.as_deref())?;
        }
        let (lane, sequence, envelope) =
            (delivery.lane(), delivery.sequence(), delivery.envelope());
        let (name, sender) = (Arc::clone(&facts.name), self.sender(facts, lane, &envelope));
        let message = Incoming {
            topic: &name,
            lane,
            sequence,
            sender: &sender,
            envelope: envelope.as_ref(),
            payload: &delivery,
        };
        let bytes = delivery.len();
        match self.take(facts, &message) {
            Ok(Fate::Done) => self.ack(delivery),
            Ok(Fate::Waits(due)) => {
                let body = Body::Delivery(delivery);
                held.push_back(Held {
                    due,
                    lane,
                    sequence,
                    sender,
                    envelope,
                    body,
                });
                return Ok(Some(bytes));
            }
            // Another broker gets it.
            Err(Ended) => {}
        }
        Ok(Some(0))
    }

    /// Lets a message in, and passes it on, if it need not wait.
    fn take(&mut self, facts: &Facts, message: &Incoming<'_>) -> Result<Fate, Ended> {
        if !self.lets_in(facts, message)? {
            return Ok(Fate::Done);
        }
        if self.route.delay.is_zero() {
            return self.pass_on(facts, message).map(|()| Fate::Done);
        }
        Ok(Fate::Waits(due(self.route.delay, message.envelope)))
    }

    fn sender(&self, facts: &mut Facts, lane: u64, envelope: &Option<Envelope>) -> String {
        if !self.route.names_sender {
            return String::new();
        }
        let said = envelope.as_ref().and_then(Envelope::sender);
        said.map_or_else(|| facts.senders.name(lane).to_owned(), String::from)
    }

    /// Whether a message is one that the route is for.
    fn lets_in(&mut self, facts: &Facts, message: &Incoming<'_>) -> Result<bool, Ended> {
        self.counters.received.inc();
        let Route {
            kinds,
            types,
            senders,
            ..
        } = &self.route;
        let kind = message.envelope.map(Envelope::kind);
        let is_of_kind = kinds.is_empty() || kind.is_some_and(|kind| kinds.contains(&kind));
        let type_name = message.envelope.and_then(Envelope::type_name);
        let type_name = type_name.unwrap_or_else(|| facts.carries.name());
        let is_of_type = types.is_empty() || types.iter().any(|name| name == type_name);
        let is_from = senders.is_empty() || senders.iter().any(|name| name == message.sender);
        if !(is_of_kind && is_of_type && is_from) {
            self.counters.filtered.inc();
            return Ok(false);
        }
        match self.gates.let_through(&mut self.route, message) {
            Ok(None) => Ok(true),
            Ok(Some(stopped)) => {
                self.counters.stopped(stopped).inc();
                Ok(false)
            }
            Err(why) => self.give_up(facts, message, &why).map(|()| false),
        }
    }

    /// Sends what is made of a message, and what can't be sent to the dead letters.
    fn pass_on(&mut self, facts: &Facts, message: &Incoming<'_>) -> Result<(), Ended> {
        let hops = message.envelope.map_or(0, Envelope::hops);
        if hops >= MAX_HOPS {
            let trace: Vec<_> = message
                .envelope
                .into_iter()
                .flat_map(Envelope::trace)
                .collect();
            let why = format!(
                "it came through {hops} routes, and may go round: {}",
                trace.join(", ")
            );
            return self.give_up(facts, message, &why);
        }
        self.tap(facts, message);
        let mut out = std::mem::take(&mut self.out);
        out.drafts.clear();
        let made = match &mut self.route.program {
            Some(program) => program.run(message, &mut out),
            None => {
                out.pass();
                Ok(())
            }
        };
        let passed = match made {
            Ok(()) => self.send_all(facts, message, &out.drafts),
            Err(why) => self.give_up(facts, message, &why),
        };
        self.out = out;
        passed
    }

    fn send_all(
        &mut self,
        facts: &Facts,
        message: &Incoming<'_>,
        drafts: &[Draft],
    ) -> Result<(), Ended> {
        if drafts.is_empty() {
            self.counters.filtered.inc();
        }
        let mut refused = None;
        if drafts.len() > MAX_OUTPUTS {
            let why = format!(
                "{} messages would be made of it, and {MAX_OUTPUTS} may be",
                drafts.len()
            );
            return self.give_up(facts, message, &why);
        }
        for (part, draft) in (0..).zip(drafts) {
            let origin = facts.origin(message.lane, message.sequence, part);
            let envelope = self.envelope(draft, message, origin);
            let payload = draft.payload.as_deref().unwrap_or(message.payload);
            // A type whose messages are all of one size is that of what is passed on as it came.
            let carries = match draft.payload {
                None => &facts.carries,
                Some(_) => &self.bytes,
            };
            let named: Vec<Target>;
            let targets = match &draft.to {
                None => &self.route.to,
                Some(names) if !self.route.to_named && !names.is_empty() => {
                    refused.get_or_insert(String::from(
                        "its program names a topic, and the route does not say that it may (to_named)",
                    ));
                    continue;
                }
                Some(names) => {
                    named = names.iter().map(|name| Target::topic(name)).collect();
                    &named
                }
            };
            for target in targets {
                if facts.was_sent(&target.name, origin) {
                    self.counters.repeated.inc();
                    continue;
                }
                if target.name == message.topic && self.is_one_bus() {
                    refused.get_or_insert(format!("it would be sent to {} again", target.name));
                    continue;
                }
                let with = (&self.counters, &*self.ending);
                let patience = self.route.patience;
                match self
                    .outlets
                    .send(target, carries, &envelope, payload, patience, with)
                {
                    Ok(()) => {
                        self.counters.sent.inc();
                        self.counters.bytes.inc_by(payload.len() as u64);
                        self.turn.0 += 1;
                        self.turn.1 += payload.len() + FRAME;
                    }
                    Err(Unsent::Refused(why)) => {
                        refused.get_or_insert(why);
                    }
                    Err(Unsent::Ended) => return Err(Ended),
                }
            }
            if message.envelope.is_none() {
                self.spare = Some(envelope);
            }
        }
        match refused {
            None => Ok(()),
            Some(why) => self.give_up(facts, message, &why),
        }
    }

    /// What goes with a message that is made of another.
    fn envelope(&mut self, draft: &Draft, message: &Incoming<'_>, origin: Origin) -> Envelope {
        let envelope = match (message.envelope, self.spare.take()) {
            (Some(envelope), _) => envelope.clone().passed_on_by(&self.route.name),
            // Of another one that had none: all but its origin is the same, unless the route's program says otherwise.
            (None, Some(spare)) if self.route.program.is_none() => spare,
            (None, _) => Envelope::new(Kind::Event).passed_on_by(&self.route.name),
        };
        draft.envelope(envelope).made_from(origin)
    }

    fn is_one_bus(&self) -> bool {
        self.route.from_bus.path() == self.route.to_bus.path()
    }

    fn tap(&mut self, facts: &Facts, message: &Incoming<'_>) {
        for target in &self.route.taps {
            let origin = facts.origin(message.lane, message.sequence, 0);
            if facts.was_sent(&target.name, origin) {
                continue;
            }
            let envelope = envelope_of(message).passed_on_by(&self.route.name);
            let envelope = envelope.made_from(origin);
            let (carries, payload) = (&facts.carries, message.payload);
            if let Err(error) = self
                .outlets
                .try_send_now(target, carries, &envelope, payload)
            {
                self.counters.tap_full.inc();
                if !matches!(error.kind(), ErrorKind::Full | ErrorKind::TimedOut) {
                    tell(&mut self.told, || {
                        tracing::warn!("cannot copy a message: {error}")
                    });
                }
            }
        }
    }

    /// Makes a message a dead letter, or drops it.
    fn give_up(&mut self, facts: &Facts, message: &Incoming<'_>, why: &str) -> Result<(), Ended> {
        self.counters.failed.inc();
        let route = &self.route;
        let Some(target) = &route.dead_letters else {
            tell(&mut self.told, || {
                tracing::warn!(
                    route = route.name,
                    topic = message.topic,
                    "dropped a message: {why}"
                );
            });
            return Ok(());
        };
        let origin = facts.origin(message.lane, message.sequence, DEAD_PART);
        if facts.was_sent(&target.name, origin) {
            self.counters.repeated.inc();
            return Ok(());
        }
        let mut letter = DeadLetter::new(message.topic, &route.name, message.payload, why);
        (letter.lane, letter.sequence) = (message.lane, message.sequence);
        let envelope = envelope_of(message).made_from(origin);
        let with = (&self.counters, &*self.ending);
        match self.outlets.send(
            target,
            &self.bytes,
            &envelope,
            &letter.to_bytes(),
            None,
            with,
        ) {
            Ok(()) => {
                self.counters.dead.inc();
                Ok(())
            }
            Err(Unsent::Ended) => Err(Ended),
            Err(Unsent::Refused(no_letter)) => {
                tracing::warn!(route = route.name, "dropped a message: {why}; {no_letter}");
                Ok(())
            }
        }
    }

    fn ack(&self, delivery: Delivery<Any>) {
        if let Err(error) = delivery.ack() {
            // Somebody else has it now; it is looked up there what was sent.
            self.trouble(&error);
        }
    }

    /// Says what a source said; whether it is to rest.
    fn source_trouble(&mut self, error: &Error, facts: &mut Facts) -> bool {
        match error.kind() {
            ErrorKind::Ended => return false,
            ErrorKind::NotFound => {
                facts.is_gone = true;
                return false;
            }
            _ => {}
        }
        if let Some(lost) = error.lost() {
            self.counters.lost.inc_by(lost.messages);
            tell(&mut self.told, || {
                tracing::warn!(route = self.route.name, "{error}")
            });
            return false;
        }
        self.trouble(error);
        true
    }

    fn trouble(&self, error: &Error) {
        self.counters.troubles.inc();
        self.counters.set_state(State::Failing);
        tracing::warn!(route = self.route.name, "{error}");
    }
}

/// The envelope that a message has, or one that says nothing.
fn envelope_of(message: &Incoming<'_>) -> Envelope {
    message
        .envelope
        .cloned()
        .unwrap_or_else(|| Envelope::new(Kind::Event))
}

/// When a message has been under way for so long: since it was sent, if it says when that was.
fn due(delay: Duration, envelope: Option<&Envelope>) -> Instant {
    let sent = envelope.and_then(Envelope::sent);
    let age = sent.and_then(|sent| SystemTime::now().duration_since(sent).ok());
    Instant::now() + delay.saturating_sub(age.unwrap_or_default())
}

/// At most once a second.
fn tell(told: &mut Option<Instant>, how: impl FnOnce()) {
    let now = Instant::now();
    if told.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1)) {
        *told = Some(now);
        how();
    }
}
