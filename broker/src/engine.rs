//! What a route does with each message: takes it, lets it in, makes others of it, sends these, and is done with it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use buslane::{
    Any, Consumer, DeadLetter, Delivery, Envelope, Error, ErrorKind, Kind, Origin, PayloadType,
    Result, Subscriber,
};

use crate::control::Control;
use crate::gates::Gates;
use crate::metrics::{Counters, State};
use crate::outlets::{Load, Outlets, Unsent};
use crate::passed::{DEAD_PART, MAX_OUTPUTS, Positions, TURN_OUTPUTS};
use crate::route::{Draft, From, Incoming, Outgoing, Route, Target, guarded};
use crate::source::{Facts, Reader, Source};
use crate::worker::REST;

/// Messages taken from one source before the others are looked at, and before what was taken is said to be done with.
const TURN: u32 = 64;
/// Messages of one source that wait until they are due, at most; and bytes of them.
const MAX_HELD: usize = 65_536;
const MAX_HELD_BYTES: usize = 64 << 20;
/// About what a frame and its envelope take beside a payload.
const FRAME: usize = 256;
/// Routes and services that a message may come through: more, and it goes round.
const MAX_HOPS: u16 = 16;
/// How long after an error a route that goes on is no longer failing.
const RECOVERED: Duration = Duration::from_secs(5);

/// A source, and its messages that wait.
pub struct Inlet {
    pub source: Source,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// After an error.
    rests_until: Option<Instant>,
}

/// A message that waits until it is due.
struct Held {
    due: Instant,
    came: Came,
    body: Body,
}

/// What is known of a message beside its payload.
struct Came {
    lane: u64,
    sequence: u32,
    sender: String,
    envelope: Option<Envelope>,
    /// Somebody else may have passed it on.
    is_again: bool,
}

/// What there was to take.
enum Taken {
    Nothing,
    Done,
    Waits(Held),
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

impl Came {
    fn message<'a>(&'a self, topic: &'a str, payload: &'a [u8]) -> Incoming<'a> {
        Incoming {
            topic,
            lane: self.lane,
            sequence: self.sequence,
            sender: &self.sender,
            envelope: self.envelope.as_ref(),
            payload,
        }
    }
}

impl Inlet {
    pub fn new(source: Source) -> Self {
        Self {
            source,
            held: VecDeque::new(),
            held_bytes: 0,
            rests_until: None,
        }
    }

    /// Whether what it takes from was removed.
    pub fn is_gone(&self) -> bool {
        self.source.facts.is_gone
    }

    /// When the first that waits is due.
    pub fn due(&self) -> Option<Instant> {
        self.held.front().map(|held| held.due)
    }

    /// What waits need wait no longer than this from now on.
    pub fn hurry(&mut self, delay: Duration) {
        let latest = Instant::now() + delay;
        for held in &mut self.held {
            held.due = held.due.min(latest);
        }
    }

    fn hold(&mut self, held: Held) {
        self.held_bytes += held.body.bytes().len();
        self.held.push_back(held);
    }
}

/// The route was told something before a message was passed on.
struct Called;

/// What a route does with messages.
pub struct Engine {
    pub route: Route,
    /// In topics of which nothing is kept; None: it takes from none.
    pub positions: Option<Positions>,
    pub counters: Counters,
    control: Arc<Control>,
    outlets: Outlets,
    gates: Gates,
    out: Outgoing,
    /// Messages, and bytes of them, sent since what was taken was said to be done with.
    unsettled: (usize, usize),
    /// What was sent of a message before the route was told something: it is passed on once more.
    interrupted: HashSet<(String, Origin)>,
    /// An envelope that was used.
    spare: Option<Envelope>,
    /// What a message carries that is made by a program.
    bytes: PayloadType,
    /// When it was last told that a message was dropped.
    told: Option<Instant>,
    /// When there was an error.
    failed: Option<Instant>,
}

impl Engine {
    pub fn new(route: Route, counters: Counters, control: Arc<Control>) -> Self {
        Self {
            positions: None,
            counters,
            control,
            outlets: Outlets::new(&route),
            gates: Gates::new(&route),
            out: Outgoing::default(),
            unsettled: (0, 0),
            interrupted: HashSet::new(),
            spare: None,
            bytes: PayloadType::bytes(),
            told: None,
            failed: None,
            route,
        }
    }

    /// Goes on as this one; the one that it was.
    pub fn become_route(&mut self, route: Route) -> Route {
        let old = std::mem::replace(&mut self.route, route);
        let new = &self.route;
        if new.to_bus.path() == old.to_bus.path() {
            self.outlets.change(new);
        } else {
            self.outlets = Outlets::new(new);
        }
        self.gates = Gates::new(new);
        self.spare = None;
        old
    }

    /// Has it known how far it is in topics, if it takes from some.
    pub fn open_positions(&mut self) -> Result<()> {
        let Route {
            from,
            from_bus,
            name,
            ..
        } = &self.route;
        if matches!(from, From::Topics(_)) && self.positions.is_none() {
            let mut positions = Positions::open(from_bus, name)?;
            // That it has begun is known from now on.
            positions.say()?;
            self.positions = Some(positions);
        }
        Ok(())
    }

    /// Keeps only places in topics that are meant.
    pub fn forget_places(&mut self, is_meant: impl Fn(u64) -> bool) -> Result<()> {
        self.positions.as_mut().map_or(Ok(()), |positions| {
            positions.retain(|by, _| is_meant(by));
            positions.say()
        })
    }

    /// Leaves a source. What it has taken and not passed on comes again from a queue, and else is lost.
    pub fn leave(&mut self, inlet: Inlet) {
        let copies = inlet
            .held
            .iter()
            .filter(|held| matches!(held.body, Body::Copy(_)));
        let lost = copies.count() as u64;
        if lost > 0 {
            self.counters.lost.inc_by(lost);
            let (route, topic) = (&self.route.name, &inlet.source.facts.name);
            tracing::warn!(
                route,
                "left {topic} with {lost} messages that waited: they are lost"
            );
        }
    }

    /// Whether more is taken from there now.
    pub fn takes_from(&self, inlet: &Inlet) -> bool {
        let is_rested = inlet
            .rests_until
            .is_none_or(|until| until <= Instant::now());
        // What waited when there was a delay goes before what does not.
        let has_place = match self.route.delay.is_zero() {
            true => inlet.held.is_empty(),
            false => inlet.held.len() < MAX_HELD && inlet.held_bytes < MAX_HELD_BYTES,
        };
        is_rested && has_place && !inlet.is_gone()
    }

    /// Takes some messages of a source, if there are any, and says how many.
    pub fn take_some(&mut self, inlet: &mut Inlet) -> Result<u32> {
        let mut took = 0;
        while took < TURN
            && self.takes_from(inlet)
            && !self.control.is_ending()
            && !self.has_sent_much()
        {
            match self.take_one(inlet) {
                Ok(true) => took += 1,
                Ok(false) => break,
                Err(error) => {
                    self.source_trouble(&error, inlet);
                    break;
                }
            }
        }
        if took > 0 && !self.control.is_ending() {
            self.settle(inlet)?;
        }
        Ok(took)
    }

    /// Takes a message, if there is one.
    fn take_one(&mut self, inlet: &mut Inlet) -> Result<bool> {
        let Source { reader, facts } = &mut inlet.source;
        let taken = match reader {
            Reader::Live(subscriber) | Reader::Named(subscriber) => {
                self.take_frame(subscriber, facts)?
            }
            Reader::Queue(consumer) => self.take_delivery(consumer, facts)?,
        };
        match taken {
            Taken::Nothing => return Ok(false),
            Taken::Done => {}
            Taken::Waits(held) => inlet.hold(held),
        }
        Ok(true)
    }

    /// Takes a message of a topic.
    fn take_frame(&mut self, subscriber: &mut Subscriber<Any>, facts: &mut Facts) -> Result<Taken> {
        let Some(frame) = subscriber.try_recv()? else {
            return Ok(Taken::Nothing);
        };
        let (lane, sequence) = (frame.lane(), frame.sequence());
        if let Some(positions) = &mut self.positions
            && positions.are_past(facts.by, lane, sequence)
        {
            return Ok(Taken::Done);
        }
        let came = self.came(facts, lane, sequence, frame.envelope(), false);
        let Some(due) = self.take(facts, &came, &frame) else {
            // Those that wait are before it.
            if self.route.delay.is_zero() {
                self.is_done_with(facts, lane, sequence);
            }
            return Ok(Taken::Done);
        };
        let body = Body::Copy(frame.to_vec());
        Ok(Taken::Waits(Held { due, came, body }))
    }

    /// Takes a message of a queue.
    fn take_delivery(&mut self, consumer: &mut Consumer<Any>, facts: &mut Facts) -> Result<Taken> {
        let Some(delivery) = consumer.try_recv()? else {
            return Ok(Taken::Nothing);
        };
        let is_again = delivery.attempts() > 1;
        if is_again {
            let targets = self.route.known_targets();
            facts.remember(self.outlets.bus(), targets.as_deref())?;
        }
        let (lane, sequence) = (delivery.lane(), delivery.sequence());
        let came = self.came(facts, lane, sequence, delivery.envelope(), is_again);
        let Some(due) = self.take(facts, &came, &delivery) else {
            self.ack(delivery);
            return Ok(Taken::Done);
        };
        let body = Body::Delivery(delivery);
        Ok(Taken::Waits(Held { due, came, body }))
    }

    fn came(
        &self,
        facts: &mut Facts,
        lane: u64,
        sequence: u32,
        envelope: Option<Envelope>,
        is_again: bool,
    ) -> Came {
        let sender = match envelope.as_ref().and_then(Envelope::sender) {
            Some(said) => said.to_owned(),
            None if self.route.names_sender => facts.senders.name(lane).to_owned(),
            None => String::new(),
        };
        Came {
            lane,
            sequence,
            sender,
            envelope,
            is_again,
        }
    }

    /// Passes a message on, or says until when it waits.
    fn take(&mut self, facts: &mut Facts, came: &Came, payload: &[u8]) -> Option<Instant> {
        let name = Arc::clone(&facts.name);
        let message = came.message(&name, payload);
        self.counters.received.inc();
        if !self.is_meant(facts, &message) {
            self.counters.filtered.inc();
            return None;
        }
        if !self.route.delay.is_zero() {
            return Some(due(self.route.delay, message.envelope));
        }
        match self.pass_on(facts, &message, came.is_again) {
            Ok(()) => None,
            // First of all, when what it was told is done.
            Err(Called) => Some(Instant::now()),
        }
    }

    /// Passes on what waited until now.
    pub fn release_due(&mut self, inlet: &mut Inlet) -> Result<()> {
        let now = Instant::now();
        while inlet.due().is_some_and(|due| due <= now) && !self.control.is_called() {
            while !self.has_sent_much() && !self.control.is_called() {
                let Some(held) = inlet.held.pop_front_if(|held| held.due <= now) else {
                    break;
                };
                let facts = &mut inlet.source.facts;
                let name = Arc::clone(&facts.name);
                let message = held.came.message(&name, held.body.bytes());
                if let Err(Called) = self.pass_on(facts, &message, held.came.is_again) {
                    inlet.held.push_front(held);
                    break;
                }
                inlet.held_bytes -= held.body.bytes().len();
                match held.body {
                    Body::Copy(_) => self.is_done_with(facts, held.came.lane, held.came.sequence),
                    Body::Delivery(delivery) => self.ack(delivery),
                }
            }
            if self.control.is_ending() {
                return Ok(());
            }
            self.settle(inlet)?;
        }
        Ok(())
    }

    /// Notes that a message of a topic was passed on, or is not to be.
    fn is_done_with(&mut self, facts: &Facts, lane: u64, sequence: u32) {
        if let Some(positions) = &mut self.positions {
            positions.move_to(facts.by, lane, sequence.wrapping_add(1));
        }
    }

    /// Says that what was taken of a source, and does not wait, is done with.
    fn settle(&mut self, inlet: &mut Inlet) -> Result<()> {
        self.unsettled = (0, 0);
        match &mut inlet.source.reader {
            // All that it has received; what waits is the last of it.
            Reader::Named(_) if !inlet.held.is_empty() => Ok(()),
            Reader::Named(subscriber) => subscriber.ack(),
            Reader::Live(_) => {
                let Some(positions) = &mut self.positions else {
                    return Ok(());
                };
                if positions.are_many() {
                    let (bus, by) = (&self.route.from_bus, inlet.source.facts.by);
                    let lanes = bus.inspect(&inlet.source.facts.name)?.lanes;
                    positions.retain(|of, lane| of != by || lanes.iter().any(|l| l.id == lane));
                }
                positions.say()
            }
            Reader::Queue(_) => Ok(()),
        }
    }

    /// Whether more would overwrite what tells, after a death, what was sent.
    fn has_sent_much(&self) -> bool {
        let (messages, bytes) = self.unsettled;
        messages > 0 && (messages >= TURN_OUTPUTS || bytes >= self.outlets.room())
    }

    /// Whether a message is one that the route is for.
    fn is_meant(&self, facts: &Facts, message: &Incoming<'_>) -> bool {
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
        is_of_kind && is_of_type && is_from
    }

    /// Sends what is made of a message; what can't be sent becomes a dead letter.
    fn pass_on(
        &mut self,
        facts: &mut Facts,
        message: &Incoming<'_>,
        is_again: bool,
    ) -> Result<(), Called> {
        let hops = message.envelope.map_or(0, Envelope::hops);
        if hops >= MAX_HOPS {
            let trace = message.envelope.into_iter().flat_map(Envelope::trace);
            let trace = trace.collect::<Vec<_>>().join(", ");
            let why = format!("it came through {hops} routes, and may go round: {trace}");
            return self.give_up(facts, message, is_again, &why);
        }
        self.tap(facts, message, is_again);
        let mut out = std::mem::take(&mut self.out);
        out.drafts.clear();
        let made = match &mut self.route.program {
            Some(program) => guarded(|| program.run(message, &mut out)),
            None => {
                out.pass();
                Ok(())
            }
        };
        let passed = match made {
            Ok(()) => self.pass_through(facts, message, is_again, &out.drafts),
            Err(why) => self.give_up(facts, message, is_again, &why),
        };
        self.out = out;
        match passed {
            Ok(()) => self.interrupted.clear(),
            Err(Called) => {
                let origin = facts.origin(message.lane, message.sequence, 0);
                let tapped = self.route.taps.iter().map(|tap| (tap.name.clone(), origin));
                self.interrupted.extend(tapped);
            }
        }
        passed
    }

    /// Sends what was made of a message, if the gates let it through.
    fn pass_through(
        &mut self,
        facts: &mut Facts,
        message: &Incoming<'_>,
        is_again: bool,
        drafts: &[Draft],
    ) -> Result<(), Called> {
        if drafts.is_empty() {
            self.counters.filtered.inc();
            return Ok(());
        }
        match self.gates.look(&mut self.route, message) {
            Ok(Ok(pass)) => {
                self.send_all(facts, message, is_again, drafts)?;
                self.gates.has_passed(pass);
                Ok(())
            }
            Ok(Err(stopped)) => {
                self.counters.stopped(stopped).inc();
                Ok(())
            }
            Err(why) => self.give_up(facts, message, is_again, &why),
        }
    }

    fn send_all(
        &mut self,
        facts: &mut Facts,
        message: &Incoming<'_>,
        is_again: bool,
        drafts: &[Draft],
    ) -> Result<(), Called> {
        let sends = |draft: &Draft| draft.to.as_ref().map_or(self.route.to.len(), Vec::len);
        let count: usize = drafts.iter().map(sends).sum();
        if count > MAX_OUTPUTS {
            let why = format!("{count} messages would be sent of it, and {MAX_OUTPUTS} may be");
            return self.give_up(facts, message, is_again, &why);
        }
        let (mut refused, mut sent) = (None, Vec::new());
        for (part, draft) in (0..).zip(drafts) {
            let origin = facts.origin(message.lane, message.sequence, part);
            let envelope = self.envelope(draft, message, origin);
            let payload = draft.payload.as_deref().unwrap_or(message.payload);
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
                if self.was_interrupted(target, origin) {
                    continue;
                }
                if facts.was_sent(&target.name, origin, is_again) {
                    self.counters.repeated.inc();
                    continue;
                }
                if target.name == message.topic && self.route.is_on_one_bus() {
                    let name = &target.name;
                    refused.get_or_insert_with(|| {
                        format!("it came from {name}, and would be sent there: it would go round")
                    });
                    continue;
                }
                let load = Load {
                    // A type whose messages are all of one size is that of what is passed on as it came.
                    carries: match draft.payload {
                        None => &facts.carries,
                        Some(_) => &self.bytes,
                    },
                    envelope: &envelope,
                    payload,
                };
                let with = (&self.counters, &*self.control);
                match self.outlets.send(target, load, self.route.patience, with) {
                    Ok(()) => {
                        self.counters.sent.inc();
                        self.counters.bytes.inc_by(payload.len() as u64);
                        self.unsettled.0 += 1;
                        self.unsettled.1 += payload.len() + FRAME;
                        if count > 1 {
                            sent.push((target.name.clone(), origin));
                        }
                    }
                    Err(Unsent::Refused(why)) => {
                        refused.get_or_insert(why);
                    }
                    Err(Unsent::Called) => {
                        self.interrupted.extend(sent);
                        return Err(Called);
                    }
                }
            }
            if message.envelope.is_none() {
                self.spare = Some(envelope);
            }
        }
        if let Some(why) = refused
            && let Err(Called) = self.give_up(facts, message, is_again, &why)
        {
            self.interrupted.extend(sent);
            return Err(Called);
        }
        Ok(())
    }

    fn was_interrupted(&self, target: &Target, origin: Origin) -> bool {
        !self.interrupted.is_empty() && self.interrupted.contains(&(target.name.clone(), origin))
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

    fn tap(&mut self, facts: &mut Facts, message: &Incoming<'_>, is_again: bool) {
        for target in &self.route.taps {
            let origin = facts.origin(message.lane, message.sequence, 0);
            if self.was_interrupted(target, origin)
                || facts.was_sent(&target.name, origin, is_again)
            {
                continue;
            }
            let envelope = envelope_of(message).passed_on_by(&self.route.name);
            let load = Load {
                carries: &facts.carries,
                envelope: &envelope.made_from(origin),
                payload: message.payload,
            };
            if let Err(why) = self.outlets.send_now(target, load) {
                self.counters.untapped.inc();
                let route = &self.route.name;
                tell(&mut self.told, || {
                    tracing::warn!(route, "a tap got no copy: {why}")
                });
            }
        }
    }

    /// Makes a message a dead letter, or drops it.
    fn give_up(
        &mut self,
        facts: &mut Facts,
        message: &Incoming<'_>,
        is_again: bool,
        why: &str,
    ) -> Result<(), Called> {
        let route = &self.route;
        let Some(target) = &route.dead_letters else {
            self.counters.failed.inc();
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
        if facts.was_sent(&target.name, origin, is_again) {
            self.counters.repeated.inc();
            return Ok(());
        }
        let mut letter = DeadLetter::new(message.topic, &route.name, message.payload, why);
        (letter.lane, letter.sequence) = (message.lane, message.sequence);
        let envelope = envelope_of(message).passed_on_by(&route.name);
        let load = Load {
            carries: &self.bytes,
            envelope: &envelope.made_from(origin),
            payload: &letter.to_bytes(),
        };
        let sent = self
            .outlets
            .send(target, load, None, (&self.counters, &*self.control));
        if matches!(sent, Err(Unsent::Called)) {
            return Err(Called);
        }
        self.counters.failed.inc();
        match sent {
            Ok(()) => {
                self.counters.dead.inc();
                self.unsettled.0 += 1;
                self.unsettled.1 += message.payload.len() + 2 * FRAME;
            }
            Err(Unsent::Called) => {}
            Err(Unsent::Refused(no_letter)) => {
                tell(&mut self.told, || {
                    tracing::warn!(route = route.name, "dropped a message: {why}; {no_letter}");
                });
            }
        }
        Ok(())
    }

    fn ack(&mut self, delivery: Delivery<Any>) {
        if let Err(error) = delivery.ack() {
            // Somebody else has it now.
            self.trouble(&error);
        }
    }

    /// Says what a source said.
    fn source_trouble(&mut self, error: &Error, inlet: &mut Inlet) {
        match error.kind() {
            ErrorKind::Ended => {}
            ErrorKind::NotFound => inlet.source.facts.is_gone = true,
            ErrorKind::Lost => {
                let lost = error.lost().map_or(0, |lost| lost.messages);
                self.counters.lost.inc_by(lost);
                let route = &self.route.name;
                tell(&mut self.told, || tracing::warn!(route, "{error}"));
            }
            _ => {
                inlet.rests_until = Some(Instant::now() + REST);
                self.trouble(error);
            }
        }
    }

    /// Says what a bus said.
    pub fn trouble(&mut self, error: &Error) {
        self.counters.troubles.inc();
        self.counters.set_state(State::Failing);
        self.failed = Some(Instant::now());
        tracing::warn!(route = self.route.name, "{error}");
    }

    /// It has done something without an error.
    pub fn note_progress(&mut self) {
        if self.failed.is_some_and(|at| at.elapsed() >= RECOVERED) {
            self.failed = None;
            self.counters.set_state(State::Running);
        }
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
