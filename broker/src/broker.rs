//! Routes at work, together.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use buslane::Bus;
use buslane_metrics::{Http, Page};

use crate::control::{Control, Watched};
use crate::error::{Error, Result};
use crate::metrics::{Metrics, State};
use crate::route::{self, Route};
use crate::worker::Worker;

/// Routes that run, each in a thread of its own, until this is dropped. See [`Route`].
pub struct Broker {
    metrics: Arc<Metrics>,
    running: BTreeMap<String, Running>,
    states: Arc<Mutex<States>>,
    // Last: it answers from the others.
    http: Option<Http>,
}

/// Bytes of a route's stack: an expression may build what is nested deeply, step by step.
const STACK: usize = 64 << 20;

/// How each route is.
type States = BTreeMap<String, Arc<Control>>;

struct Running {
    text: String,
    buses: [Bus; 2],
    control: Arc<Control>,
    thread: JoinHandle<()>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes: Vec<_> = self.running.keys().collect();
        f.debug_struct("Broker")
            .field("routes", &routes)
            .finish_non_exhaustive()
    }
}

/// What [`Broker::reload`] has done, by the routes' names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// They are new.
    pub started: Vec<String>,
    /// They go on otherwise.
    pub changed: Vec<String>,
    /// They run no more. What they are subscribed to on a durable bus, and their groups of queues, stay, and keep messages.
    pub stopped: Vec<String>,
}

impl Broker {
    /// Starts routes. Returns before they have joined what they take from: see [`wait_until_running`](Self::wait_until_running).
    ///
    /// # Errors
    ///
    /// If two have one name, or messages would go round.
    pub fn start(routes: Vec<Route>) -> Result<Self> {
        let mut broker = Self {
            metrics: Arc::new(Metrics::new()),
            running: BTreeMap::new(),
            states: Arc::default(),
            http: None,
        };
        broker.reload(routes)?;
        Ok(broker)
    }

    /// Runs these routes instead. Those that were read from the same text go on untouched; one that has changed goes on with what it takes from,
    /// between two messages, so that none is lost; those that are missing end.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start): then nothing has changed; or if there is no thread for a new route.
    pub fn reload(&mut self, routes: Vec<Route>) -> Result<Changes> {
        let mut changes = Changes::default();
        check(&routes)?;
        let is_meant = |name: &str| routes.iter().any(|route| route.name == name);
        let missing = self.running.keys().filter(|name| !is_meant(name));
        let missing: Vec<String> = missing.cloned().collect();
        for name in &missing {
            if let Some(running) = self.running.remove(name) {
                end(running);
                self.metrics.forget_state(name);
            }
        }
        changes.stopped = missing;
        for route in routes {
            let name = route.name.clone();
            match self.running.get_mut(&name) {
                Some(running) if running.thread.is_finished() => {
                    // It ended by a panic, which was told then.
                    let running = self.run(route)?;
                    self.running.insert(name.clone(), running);
                    changes.changed.push(name);
                }
                Some(running) if !route.text.is_empty() && running.text == route.text => {}
                Some(running) => {
                    running.text.clone_from(&route.text);
                    running.buses = [route.from_bus.clone(), route.to_bus.clone()];
                    running.control.change(route);
                    changes.changed.push(name);
                }
                None => {
                    let running = self.run(route)?;
                    self.running.insert(name.clone(), running);
                    changes.started.push(name);
                }
            }
        }
        let mut buses: Vec<Bus> = Vec::new();
        for bus in self.running.values().flat_map(|running| &running.buses) {
            if !buses.iter().any(|known| known.path() == bus.path()) {
                buses.push(bus.clone());
            }
        }
        self.metrics.watch(buses);
        let states = self
            .running
            .iter()
            .map(|(name, running)| (name.clone(), Arc::clone(&running.control)));
        *self.states.lock().unwrap_or_else(PoisonError::into_inner) = states.collect();
        Ok(changes)
    }

    fn run(&self, route: Route) -> Result<Running> {
        let control = Arc::new(Control::default());
        let name = route.name.clone();
        let text = route.text.clone();
        let buses = [route.from_bus.clone(), route.to_bus.clone()];
        let counters = self.metrics.counters(&name, Arc::clone(&control));
        let worker = Worker::new(route, counters, Arc::clone(&control))?;
        let watched = Arc::clone(&control);
        let thread = thread::Builder::new()
            .name(name.clone())
            .stack_size(STACK)
            .spawn(move || {
                let _watched = Watched(&watched);
                worker.run();
            })
            .map_err(|e| Error::route(&name, format!("there is no thread for it: {e}")))?;
        Ok(Running {
            text,
            buses,
            control,
            thread,
        })
    }

    /// Waits until each route takes messages, or has found that another broker does.
    pub fn wait_until_running(&self) {
        for running in self.running.values() {
            running.control.wait_until_begun();
        }
    }

    /// How each route is: `running`, `standing by`, `stalled` or `failing`.
    pub fn states(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let state = |running: &Running| match running.thread.is_finished() {
            true => State::Failing,
            false => running.control.state().unwrap_or(State::StandingBy),
        };
        let named = move |(name, running)| (String::as_str(name), state(running).name());
        self.running.iter().map(named)
    }

    /// All that was counted, and a look at the topics of its buses, as Prometheus reads it.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.metrics.text()
    }

    /// Serves `/metrics` for Prometheus, and `/health` (status 200, or 503 if a route is failing), at this address, until the broker is
    /// dropped, or this is called again; says at which, as port 0 stands for any.
    ///
    /// Called again, it listens at the new address before it leaves the old one, so that one of the two is always served. The two may
    /// therefore not share a port (as `127.0.0.1:9909` and `0.0.0.0:9909` do), unless they are the same: then it goes on as it is.
    ///
    /// # Errors
    ///
    /// If it can't listen there: then it goes on where it was.
    pub fn serve(&mut self, address: SocketAddr) -> Result<SocketAddr> {
        if self.http.as_ref().map(Http::address) == Some(address) {
            return Ok(address);
        }
        let metrics = Arc::clone(&self.metrics);
        let states = Arc::clone(&self.states);
        let pages = move |path: &str| match path {
            "/metrics" => Page::metrics(metrics.text()),
            "/health" => {
                let states = states.lock().unwrap_or_else(PoisonError::into_inner);
                let states = states.iter().map(|(name, status)| (name, status.state()));
                let is_failing = states
                    .clone()
                    .any(|(_, state)| state == Some(State::Failing));
                let names: BTreeMap<_, _> = states
                    .map(|(name, state)| (name, state.map_or("starting", State::name)))
                    .collect();
                let text = serde_json::json!({ "healthy": !is_failing, "routes": names });
                Page {
                    status: if is_failing { 503 } else { 200 },
                    kind: "application/json",
                    text: format!("{text}\n"),
                }
            }
            _ => Page::missing("There is /metrics and /health.\n"),
        };
        let http = Http::serve(address, pages).map_err(|e| Error::Listen {
            at: address.to_string(),
            why: e.to_string(),
        })?;
        Ok(self.http.insert(http).address())
    }

    /// Serves nothing any more.
    pub fn serve_no_more(&mut self) {
        self.http = None;
    }

    /// Ends all routes, each between two messages: what they have not passed on stays where it is, for who comes next.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.control.end();
        }
        std::mem::take(&mut self.running)
            .into_values()
            .for_each(end);
    }
}

fn end(running: Running) {
    running.control.end();
    // A panic was told when it happened.
    let _ = running.thread.join();
}

fn check(routes: &[Route]) -> Result<()> {
    for (i, route) in routes.iter().enumerate() {
        if routes[..i].iter().any(|other| other.name == route.name) {
            return Err(Error::route(
                &route.name,
                "another one has that name, too; rename one",
            ));
        }
        if route.to.is_empty() && route.taps.is_empty() && !route.to_named {
            let why = "it sends to nothing; say where to";
            return Err(Error::route(&route.name, why));
        }
        let mut names = HashSet::new();
        if let Some(twice) = route.targets().find(|target| !names.insert(&target.name)) {
            let why = format!("it sends to {} in two ways; leave one out", twice.name);
            return Err(Error::route(&route.name, why));
        }
        if !route.delay.is_zero() && route.takes_from_subscription() {
            return Err(Error::route(&route.name, route::NO_DELAY));
        }
    }
    route::check_cycles(routes)
}
