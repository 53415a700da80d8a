//! Who and what is there: bridges and plain programs in the network, topics, states and services on the bus; and a thread for
//! each thing to be carried.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use buslane::{Bus, Start};
use crossbeam_channel::{Receiver, Sender, bounded, select, tick, unbounded};
use zenoh::liveliness::LivelinessToken;
use zenoh::sample::SampleKind;
use zenoh::{Config, Session, Wait};

use crate::args::{Args, Mode};
use crate::failure::{Failure, tell};
use crate::home::{BusId, Home};
use crate::incoming::Inlets;
use crate::metrics::{Metrics, Refused};
use crate::names::{Patterns, Said, Space};
use crate::outgoing::{self, End};
use crate::services::{Asked, Gate, Served};
use crate::signals::Stop;
use crate::states::Board;

/// How often it looks which topics there are, and who is connected.
const LOOK: Duration = Duration::from_millis(100);
/// How long it leaves what has failed alone.
const PAUSE: Duration = Duration::from_secs(1);
/// States, and services, that are carried because the network announces them: each has threads, and memory on the bus.
pub const MOST_ANNOUNCED: usize = 256;

/// What all threads of a bridge share.
#[derive(Debug)]
pub struct Shared {
    /// The bus.
    pub bus: Bus,
    /// The network.
    pub session: Session,
    /// Its key expressions.
    pub space: Space,
    /// The bus's number there.
    pub home: Home,
    /// The same, as it is written.
    pub own: String,
    /// What is carried to the network.
    pub outgoing: Patterns,
    /// What is carried from there.
    pub incoming: Patterns,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Whether to end.
    pub stop: Stop,
}

impl Shared {
    /// How a message says that it came through this network: a hop that begins so does not go there again.
    pub fn hops(&self) -> String {
        format!("zenoh/{}/", self.space.prefix())
    }

    /// How a message says that it came through this network from the bus `from`.
    pub fn hop(&self, from: &str) -> String {
        format!("{}{from}", self.hops())
    }

    /// Starts a thread that carries something.
    pub fn spawn<T: Send + 'static>(
        self: &Arc<Self>,
        name: &'static str,
        run: impl FnOnce(Arc<Self>) -> T + Send + 'static,
    ) -> Option<JoinHandle<T>> {
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(shared));
        spawned
            .inspect_err(|e| {
                self.metrics.refused(
                    Refused::Bus,
                    format!("cannot start a thread for {name}: {e}"),
                )
            })
            .ok()
    }
}

/// What is known of another bus of the network.
#[derive(Debug)]
struct Known {
    /// When it was met: topics that are made later are sent from their beginning.
    met: Instant,
    /// Topics that it does not want.
    unwanted: HashSet<String>,
    /// The tokens of its bridge, with the number of its session. (While one takes over from another, there are two.)
    tokens: BTreeSet<(String, Said)>,
}

/// A token that came or went.
#[derive(Debug)]
struct Event {
    bus: BusId,
    session: String,
    said: Said,
    is_there: bool,
}

/// Set when a thread's work is wanted no more.
pub type Over = Arc<OnceLock<()>>;

/// Where a topic goes: to another bus, or to plain Zenoh programs.
type Destination = Option<BusId>;

/// A topic that goes to one destination.
#[derive(Debug)]
enum Outlet {
    Running(JoinHandle<End>, Over),
    /// It has failed: not again before that.
    Pausing(Instant),
}

/// What a name of the bus stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Topic {
        is_lossy: bool,
    },
    State,
    /// A work queue, or a service.
    Queue,
}

/// A bridge that carries.
#[derive(Debug)]
pub struct Bridge {
    shared: Arc<Shared>,
    events: Receiver<Event>,
    inlets: Arc<Inlets>,
    buses: BTreeMap<BusId, Known>,
    /// With when they were met; those that were there at first have none.
    roles: HashMap<String, (Role, Option<Instant>)>,
    has_looked: bool,
    /// The topics, and the number that says whether there are others by now.
    names: (u64, Vec<String>),
    outlets: HashMap<(String, Destination), Outlet>,
    boards: HashMap<String, Board>,
    /// States beyond the most that are announced.
    beyond: HashSet<String>,
    /// Queries for values of states.
    gets: Gate,
    served: Served,
    asked: Asked,
    /// Whether others than bridges were connected when it looked last, and the time before.
    strangers: [bool; 2],
    tokens: HashMap<Said, LivelinessToken>,
}

impl Bridge {
    /// Opens bus and network. `None`: a signal came before this bridge's turn.
    pub fn open(args: &Args, stop: &Stop, metrics: &Arc<Metrics>) -> Result<Option<Self>, Failure> {
        let space = Space::new(&args.prefix)?;
        let patterns = |more| Patterns::parse(args.patterns.iter().chain(more));
        let (outgoing, incoming) = (patterns(&args.outgoing)?, patterns(&args.incoming)?);
        let listened = args.patterns.iter().chain(&args.incoming);
        let keys = listened
            .map(|pattern| space.keys(pattern))
            .collect::<Result<Vec<_>, _>>()?;
        let (serve, ask) = (Patterns::parse(&args.serve)?, Patterns::parse(&args.ask)?);
        let config = args.config()?;
        let bus = args.open()?;
        let Some(home) = Home::enter(&bus, &args.prefix, stop)? else {
            return Ok(None);
        };
        let Some(session) = connect(&config, args.mode == Some(Mode::Client), stop)? else {
            return Ok(None);
        };
        let shared = Arc::new(Shared {
            bus,
            session,
            space,
            own: home.id.to_string(),
            home,
            outgoing,
            incoming,
            metrics: Arc::clone(metrics),
            stop: stop.clone(),
        });
        let inlets = Inlets::open(&shared, &keys)?;
        let (told, events) = unbounded();
        listen(&shared, told)?;
        let asked_by_name = args.ask.iter().filter(|name| !name.contains('*'));
        let mut bridge = Self {
            served: Served::new(&shared, serve),
            asked: Asked::new(&shared, ask, asked_by_name.cloned().collect()),
            shared,
            events,
            inlets,
            buses: BTreeMap::new(),
            roles: HashMap::new(),
            has_looked: false,
            names: (0, Vec::new()),
            outlets: HashMap::new(),
            boards: HashMap::new(),
            beyond: HashSet::new(),
            gets: Gate::default(),
            strangers: [false; 2],
            tokens: HashMap::new(),
        };
        // Last: who sees it may send.
        bridge.say(Said::Here, true)?;
        Ok(Some(bridge))
    }

    /// Carries until a signal comes.
    pub fn carry(mut self) -> Result<(), Failure> {
        tell(&format!(
            "bridges {} with the Zenoh network, as {}, under the prefix {}",
            self.shared.bus.path().display(),
            self.shared.session.zid(),
            self.shared.space.prefix(),
        ));
        let result = self.carry_on();
        self.leave();
        result
    }

    fn carry_on(&mut self) -> Result<(), Failure> {
        let (events, look) = (self.events.clone(), tick(LOOK));
        let came = self.shared.stop.came().clone();
        while !self.shared.stop.is_set() {
            select! {
                recv(events) -> event => if let Ok(event) = event {
                    self.note(event);
                    while let Ok(event) = events.try_recv() {
                        self.note(event);
                    }
                },
                recv(look) -> _ => {}
                recv(came) -> _ => break,
            }
            self.look()?;
        }
        Ok(())
    }

    /// Has every thread end, and what it has in hand arrive.
    fn leave(&mut self) {
        self.shared.stop.end();
        // Nobody sends to us from here on.
        self.tokens.clear();
        self.inlets.close();
        for outlet in std::mem::take(&mut self.outlets).into_values() {
            if let Outlet::Running(thread, _) = outlet {
                let _ = thread.join();
            }
        }
        self.boards.clear();
        self.served.close();
        self.asked.close();
        if let Err(e) = self.shared.session.close().wait() {
            self.shared.metrics.refused(
                Refused::Zenoh,
                format!("cannot close the Zenoh session: {e}"),
            );
        }
    }

    /// Says something to the other bridges, or says it no more.
    fn say(&mut self, said: Said, is_so: bool) -> Result<(), Failure> {
        if is_so == self.tokens.contains_key(&said) {
            return Ok(());
        }
        if !is_so {
            self.tokens.remove(&said);
            return Ok(());
        }
        let Shared {
            session,
            space,
            own,
            ..
        } = &*self.shared;
        let key = space.token(own, &session.zid().to_string(), &said);
        let token = session.liveliness().declare_token(key).wait();
        self.tokens
            .insert(said, token.map_err(Failure::zenoh("declare a token"))?);
        Ok(())
    }

    fn note(&mut self, event: Event) {
        let Event {
            bus,
            session,
            said,
            is_there,
        } = event;
        if bus == self.shared.home.id {
            return;
        }
        if is_there {
            let known = self.buses.entry(bus).or_insert_with(|| Known {
                met: Instant::now(),
                unwanted: HashSet::new(),
                tokens: BTreeSet::new(),
            });
            if said == Said::Here {
                // Another bridge of that bus may want what the last one did not.
                known.unwanted.clear();
            }
            known.tokens.insert((session, said));
        } else if let Some(known) = self.buses.get_mut(&bus) {
            known.tokens.remove(&(session, said));
        }
        self.buses.retain(|_, known| !known.tokens.is_empty());
        self.inlets.know(self.buses.keys().copied().collect());
        self.shared.metrics.bridges.set(self.buses.len() as i64);
    }

    /// What the other bridges say.
    fn are_said(&self) -> impl Iterator<Item = (BusId, &Said)> {
        self.buses
            .iter()
            .flat_map(|(bus, known)| known.tokens.iter().map(|(_, said)| (*bus, said)))
    }

    /// Looks at all that there is, and carries it.
    fn look(&mut self) -> Result<(), Failure> {
        let version = self.shared.bus.topics_version();
        if !self.has_looked || version != self.names.0 {
            match self.shared.bus.topics() {
                Ok(names) => self.names = (version, names),
                // One may just have been removed: the next look sees.
                Err(e) => {
                    self.shared.metrics.refused(Refused::Bus, e);
                    return Ok(());
                }
            }
        }
        self.learn_roles();
        let has_plain = self.has_plain()?;
        self.look_at_topics(has_plain);
        self.look_at_states()?;
        let queues = self
            .roles
            .iter()
            .filter(|(_, (role, _))| *role == Role::Queue);
        let queues: Vec<String> = queues.map(|(name, _)| name.clone()).collect();
        let said = self.are_said().filter_map(|(_, said)| match said {
            Said::Serves(name) => Some(name.clone()),
            _ => None,
        });
        let offered = said.collect();
        self.asked.look(&offered);
        let served = self.served.look(&queues, &self.asked);
        for name in &queues {
            self.say(Said::Serves(name.clone()), served.contains(name))?;
        }
        Ok(())
    }

    /// What the names stand for: looked at once.
    fn learn_roles(&mut self) {
        let (_, names) = &self.names;
        self.roles
            .retain(|name, _| names.binary_search(name).is_ok());
        for name in names {
            if self.roles.contains_key(name) {
                continue;
            }
            // What is gone, or can't be looked at, is looked at again next time.
            let Ok(report) = self.shared.bus.inspect(name) else {
                continue;
            };
            let role = match report.pattern {
                "lossless" => Role::Topic { is_lossy: false },
                "lossy" => Role::Topic { is_lossy: true },
                "state" => Role::State,
                _ => Role::Queue,
            };
            let since = self.has_looked.then(Instant::now);
            self.roles.insert(name.clone(), (role, since));
        }
        self.has_looked = true;
    }

    /// Whether there may be others than bridges in the network: they get each message by itself.
    fn has_plain(&mut self) -> Result<bool, Failure> {
        let bridges: HashSet<&str> = self
            .buses
            .values()
            .flat_map(|known| known.tokens.iter().map(|(session, _)| session.as_str()))
            .collect();
        let info = self.shared.session.info();
        let is_stranger = info
            .transports()
            .wait()
            .any(|transport| !bridges.contains(transport.zid().to_string().as_str()));
        // A bridge is connected a moment before its token is known.
        let has_strangers = is_stranger && self.strangers[0];
        self.strangers = [is_stranger, self.strangers[0]];
        self.say(Said::Plain, has_strangers)?;
        Ok(has_strangers || self.are_said().any(|(_, said)| *said == Said::Plain))
    }

    fn look_at_topics(&mut self, has_plain: bool) {
        let mut wanted: HashMap<(String, Destination), Start> = HashMap::new();
        for (name, &(role, since)) in &self.roles {
            let Role::Topic { is_lossy } = role else {
                continue;
            };
            if !self.shared.outgoing.match_any(name) {
                continue;
            }
            if has_plain || (is_lossy && !self.buses.is_empty()) {
                wanted.insert((name.clone(), None), Start::Now);
            }
            for (&bus, known) in self.buses.iter().filter(|_| !is_lossy) {
                if !known.unwanted.contains(name) {
                    let is_younger = since.is_some_and(|since| since > known.met);
                    let start = if is_younger {
                        Start::Oldest
                    } else {
                        Start::Now
                    };
                    wanted.insert((name.clone(), Some(bus)), start);
                }
            }
        }
        self.reap();
        for (key, outlet) in &self.outlets {
            if let Outlet::Running(_, over) = outlet
                && !wanted.contains_key(key)
            {
                let _ = over.set(());
            }
        }
        for ((topic, to), start) in wanted {
            match self.outlets.get(&(topic.clone(), to)) {
                Some(Outlet::Running(..)) => continue,
                Some(Outlet::Pausing(until)) if *until > Instant::now() => continue,
                _ => {}
            }
            let over = Over::default();
            let (seen, of) = (Arc::clone(&over), topic.clone());
            let thread = self.shared.spawn("out", move |shared| match to {
                Some(bus) => outgoing::to_bridge(&shared, bus, &of, start, &seen),
                None => outgoing::to_plain(&shared, &of, &seen),
            });
            let outlet = match thread {
                Some(thread) => Outlet::Running(thread, over),
                None => Outlet::Pausing(Instant::now() + PAUSE),
            };
            self.outlets.insert((topic, to), outlet);
        }
    }

    /// Looks which threads have ended, and why.
    fn reap(&mut self) {
        let ended = self.outlets.extract_if(|_, outlet| match outlet {
            Outlet::Running(thread, _) => thread.is_finished(),
            Outlet::Pausing(_) => false,
        });
        for ((topic, to), outlet) in ended.collect::<Vec<_>>() {
            let Outlet::Running(thread, _) = outlet else {
                continue;
            };
            match thread.join() {
                Ok(End::Over) => {}
                Ok(End::Unwanted) => {
                    if let Some(known) = to.and_then(|to| self.buses.get_mut(&to)) {
                        known.unwanted.insert(topic);
                    }
                }
                Ok(End::Failed) | Err(_) => {
                    self.outlets
                        .insert((topic, to), Outlet::Pausing(Instant::now() + PAUSE));
                }
            }
        }
    }

    /// Carries the states that are here, and makes those that are elsewhere.
    fn look_at_states(&mut self) -> Result<(), Failure> {
        let here = self
            .roles
            .iter()
            .filter(|(_, (role, _))| *role == Role::State);
        let here: HashSet<String> = here.map(|(name, _)| name.clone()).collect();
        let said = self.are_said().filter_map(|(bus, said)| match said {
            Said::State(name) => Some((bus, name.clone())),
            _ => None,
        });
        let elsewhere: Vec<(BusId, String)> = said.collect();
        let announced: HashSet<&String> = elsewhere.iter().map(|(_, name)| name).collect();
        self.beyond.retain(|name| announced.contains(name));
        self.boards.retain(|name, board| {
            !board.has_ended() && (here.contains(name) || announced.contains(name))
        });
        let mut count = self
            .boards
            .values()
            .filter(|board| board.is_announced)
            .count();
        for name in here.iter().chain(announced) {
            let is_wanted = match here.contains(name) {
                true => {
                    self.shared.outgoing.match_any(name) || self.shared.incoming.match_any(name)
                }
                false => self.shared.incoming.match_any(name),
            };
            if !is_wanted || self.boards.contains_key(name) {
                continue;
            }
            let is_announced = !here.contains(name);
            if is_announced && count == MOST_ANNOUNCED {
                if self.beyond.insert(name.clone()) {
                    let what =
                        format!("{name}: the network announces more than {MOST_ANNOUNCED} states");
                    self.shared.metrics.refused(Refused::Topics, what);
                }
                continue;
            }
            count += usize::from(is_announced);
            let board = Board::new(&self.shared, name, is_announced, &self.gets);
            self.boards.insert(name.clone(), board);
        }
        for (name, board) in &mut self.boards {
            let there = elsewhere.iter().filter(|(_, said)| said == name);
            board.look(here.contains(name), there.map(|(bus, _)| *bus).collect());
        }
        let shared = Arc::clone(&self.shared);
        for name in &here {
            self.say(Said::State(name.clone()), shared.outgoing.match_any(name))?;
        }
        Ok(())
    }
}

/// Opens the session. A client's router may come later. `None`: a signal came first.
fn connect(config: &Config, is_client: bool, stop: &Stop) -> Result<Option<Session>, Failure> {
    let mut has_told = false;
    while !stop.is_set() {
        let (opened, session) = bounded(1);
        let config = config.clone();
        // Zenoh may wait for others as long as it takes, and knows nothing of signals.
        thread::spawn(move || opened.send(zenoh::open(config).wait()));
        let session = select! {
            recv(session) -> session => session,
            recv(stop.came()) -> _ => return Ok(None),
        };
        match session {
            Ok(Ok(session)) => return Ok(Some(session)),
            Ok(Err(e)) if is_client => {
                if !has_told {
                    tell(&format!("waits for a router: {e}"));
                }
                has_told = true;
                stop.wait(PAUSE);
            }
            Ok(Err(e)) => return Err(Failure::zenoh("open the Zenoh session")(e)),
            Err(_) => {
                let why = "Zenoh gave up; look at what it says with RUST_LOG=zenoh=debug";
                return Err(Failure::Error(format!(
                    "cannot open the Zenoh session: {why}"
                )));
            }
        }
    }
    Ok(None)
}

/// Hears the tokens of all bridges.
fn listen(shared: &Arc<Shared>, told: Sender<Event>) -> Result<(), Failure> {
    let space = shared.space.clone();
    let metrics = Arc::clone(&shared.metrics);
    shared
        .session
        .liveliness()
        .declare_subscriber(space.own("**"))
        .history(true)
        .callback(move |sample| {
            let key = sample.key_expr().as_str();
            let token = space.read_token(key);
            let token =
                token.and_then(|(bus, session, said)| Some((BusId::parse(bus)?, session, said)));
            match token {
                Some((bus, session, said)) => {
                    let event = Event {
                        bus,
                        session: session.to_owned(),
                        said,
                        is_there: sample.kind() == SampleKind::Put,
                    };
                    // Nobody listens any more when the bridge ends.
                    let _ = told.send(event);
                }
                None => metrics.refused(Refused::Garbage, format!("{key} is no token of a bridge")),
            }
        })
        .background()
        .wait()
        .map_err(Failure::zenoh("listen for other bridges"))
}
