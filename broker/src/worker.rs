//! One route at work, in a thread of its own: what one route waits for holds up no other.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use buslane::{Consumer, ErrorKind, Result, WaitSet};

use crate::control::Control;
use crate::engine::{Engine, Inlet};
use crate::metrics::{Counters, State};
use crate::passed::{POSITIONS, Positions};
use crate::route::{From, Route};
use crate::source::{Source, made_at};

/// How long a wait lasts before orders and topics are looked at again.
const SLICE: Duration = Duration::from_millis(100);
/// How long to rest after an error.
pub const REST: Duration = Duration::from_secs(1);
/// The queue whose groups have the broker that runs a route as their consumer.
const TURNS: &str = "broker/turns";

/// A route at work.
pub struct Worker {
    inlets: Vec<Inlet>,
    engine: Engine,
    control: Arc<Control>,
    set: WaitSet,
    /// The list of topics when it was last looked at; None: it is to be looked at.
    version: Option<u64>,
    /// When something is tried again that could not be joined.
    retry_at: Option<Instant>,
    /// What was made after that is taken from its first message on; None: the route never ran.
    since: Option<SystemTime>,
    /// That this broker runs the route, and no other does; None: it does not, or others may.
    office: Option<Office>,
}

/// Who holds it runs a route.
struct Office {
    /// Nobody else is one while it lives.
    _consumer: Consumer,
    made_at: SystemTime,
}

impl Worker {
    pub fn new(route: Route, counters: Counters, control: Arc<Control>) -> Result<Self> {
        Ok(Self {
            inlets: Vec::new(),
            set: WaitSet::new()?,
            engine: Engine::new(route, counters, Arc::clone(&control)),
            control,
            version: None,
            retry_at: None,
            since: None,
            office: None,
        })
    }

    /// Works until it is told to end.
    pub fn run(mut self) {
        while !self.control.is_ending() {
            if let Err(error) = self.step() {
                self.engine.trouble(&error);
                self.control.rest(REST);
            }
        }
    }

    fn step(&mut self) -> Result<()> {
        if let Some(route) = self.control.take_change() {
            self.change(*route);
        }
        if !self.is_in_office()? {
            self.engine.counters.set_state(State::StandingBy);
            self.control.rest(SLICE);
            return Ok(());
        }
        self.discover()?;
        let mut took = 0;
        for inlet in &mut self.inlets {
            self.engine.release_due(inlet)?;
            took += self.engine.take_some(inlet)?;
        }
        if self.inlets.iter().any(Inlet::is_gone) {
            // There may be another one of that name by now.
            self.version = None;
        }
        self.engine.note_progress();
        if took == 0 && !self.control.is_called() {
            self.wait()?;
        }
        Ok(())
    }

    /// Waits until there is something to do.
    fn wait(&mut self) -> Result<()> {
        let now = Instant::now();
        let due = self.inlets.iter().filter_map(Inlet::due);
        let due = due.map(|due| due.saturating_duration_since(now)).min();
        let timeout = due.map_or(SLICE, |due| due.min(SLICE));
        let awake = self
            .inlets
            .iter_mut()
            .filter(|inlet| self.engine.takes_from(inlet));
        let mut sources: Vec<_> = awake.map(|inlet| inlet.source.reader.as_source()).collect();
        if sources.is_empty() {
            self.control.rest(timeout);
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

    /// Goes on otherwise, between two messages: what it takes from in both forms it goes on taking.
    fn change(&mut self, route: Route) {
        let old = self.engine.become_route(route);
        if self.engine.route.takes_otherwise(&old) {
            self.leave_all();
            self.engine.positions = None;
            self.office = None;
            self.since = None;
        }
        for inlet in &mut self.inlets {
            inlet.hurry(self.engine.route.delay);
        }
        self.version = None;
    }

    fn leave_all(&mut self) {
        for inlet in self.inlets.drain(..) {
            self.engine.leave(inlet);
        }
    }

    /// Whether this broker is the one that runs the route; those that share it all are.
    fn is_in_office(&mut self) -> Result<bool> {
        let route = &self.engine.route;
        if matches!(route.from, From::Queues { .. }) || self.office.is_some() {
            return Ok(true);
        }
        let turns = route.from_bus.queue(TURNS)?;
        let builder = turns.consumer_builder().group(&route.name);
        match builder.exclusive(true).open() {
            Ok(consumer) => {
                self.office = Some(Office {
                    _consumer: consumer,
                    made_at: turns.made_at(),
                });
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::InUse => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether what it holds its office by was removed: then another may have it.
    fn has_lost_office(&self) -> bool {
        self.office.as_ref().is_some_and(|office| {
            match made_at(&self.engine.route.from_bus, TURNS, true) {
                Ok(at) => at != office.made_at,
                Err(e) => e.kind() == ErrorKind::NotFound,
            }
        })
    }

    /// Joins what is to be taken from and is not joined, if the list of topics has changed.
    fn discover(&mut self) -> Result<()> {
        let is_retry = self.retry_at.is_some_and(|at| at <= Instant::now());
        // Read before listing, so that what comes later changes it once more.
        let version = self.engine.route.from_bus.topics_version();
        if self.version == Some(version) && !is_retry {
            return Ok(());
        }
        if self.has_lost_office() {
            self.leave_all();
            self.office = None;
            return Ok(());
        }
        let looked_at = SystemTime::now();
        self.engine.open_positions()?;
        let before = self.engine.positions.as_ref().and_then(Positions::before);
        let since = self.since.or(before);
        let names = self.names()?;
        let (stay, gone) = std::mem::take(&mut self.inlets)
            .into_iter()
            .partition(|inlet| {
                let is_meant = names.iter().any(|name| **name == *inlet.source.facts.name);
                is_meant && !inlet.is_gone() && inlet.source.is_there(&self.engine.route)
            });
        self.inlets = stay;
        Vec::into_iter(gone).for_each(|inlet| self.engine.leave(inlet));
        let mut errors = Vec::new();
        for name in names {
            if self
                .inlets
                .iter()
                .any(|inlet| *inlet.source.facts.name == *name)
            {
                continue;
            }
            let Engine {
                route, positions, ..
            } = &mut self.engine;
            match Source::join(route, &name, positions.as_mut(), since) {
                Ok(Some(source)) => self.inlets.push(Inlet::new(source)),
                Ok(None) => {}
                Err(error) => errors.push(error),
            }
        }
        // The others go on.
        errors.iter().for_each(|error| self.engine.trouble(error));
        self.retry_at = (!errors.is_empty()).then(|| Instant::now() + REST);
        if errors.is_empty() {
            let by: Vec<u64> = self
                .inlets
                .iter()
                .map(|inlet| inlet.source.facts.by)
                .collect();
            self.engine.forget_places(|of| by.contains(&of))?;
            self.engine.counters.set_state(State::Running);
        }
        self.version = Some(version);
        self.since = Some(looked_at);
        Ok(())
    }

    /// What there is to take from now.
    fn names(&self) -> Result<Vec<String>> {
        let route = &self.engine.route;
        match &route.from {
            From::Topics(patterns) => {
                let is_meant = |name: &String| {
                    name != POSITIONS && patterns.iter().any(|(_, p)| p.matches(name))
                };
                Ok(route
                    .from_bus
                    .topics()?
                    .into_iter()
                    .filter(is_meant)
                    .collect())
            }
            From::Queues { names, .. } => Ok(names.clone()),
        }
    }
}
