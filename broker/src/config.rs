//! Routes from a file: TOML, with expressions of the jq language. `docs/broker.md` has every key.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use buslane::{Bus, NamePattern};
use serde::Deserialize;
use toml::Spanned;

use crate::error::Result;
use crate::expression::{self, Expression, Expressions, Wrong};
use crate::format::Format;
use crate::route::{self, Route};

/// Where metrics are served, unless the configuration says otherwise: on loopback, at a port that Prometheus's list of exporters leaves
/// free.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9909);
/// How long a key is known, if nothing is said.
const UNIQUE_WITHIN: Duration = Duration::from_secs(60);

/// A configuration that was read: what it says is as it should be, as far as can be told without the buses.
///
/// ```
/// use buslane::Bus;
/// use buslane_broker::{Broker, Buses, Config};
///
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// let bus = Bus::at(dir.path().join("bus"))?;
/// let config = Config::parse(
///     r#"
///     [[route]]
///     name = "large"
///     from = "orders/*"
///     where = ".pieces >= 100"
///     to = "large-orders"
///     "#,
/// )?;
/// let mut large = bus.topic("large-orders")?.subscriber()?;
/// let mut orders = bus.topic("orders/eu")?.publisher()?;
///
/// let broker = Broker::start(config.routes(&mut Buses::new(&bus))?)?;
/// broker.wait_until_running();
/// orders.send(br#"{"pieces": 7}"#)?;
/// orders.send(br#"{"pieces": 700}"#)?;
/// assert_eq!(&*large.recv()?, br#"{"pieces": 700}"#);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Config {
    text: String,
    file: File,
    /// Each route again, without where it stands.
    routes: Vec<toml::Value>,
}

/// What is wrong with a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The line, from 1.
    pub line: usize,
    /// The character in that line, from 1.
    pub column: usize,
    /// What is wrong, and what to do.
    pub why: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, why } = self;
        write!(f, "line {line}, column {column}: {why}")
    }
}

impl std::error::Error for ConfigError {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    metrics: Option<Spanned<toml::Value>>,
    #[serde(default)]
    bus: HashMap<String, BusTable>,
    #[serde(default)]
    route: Vec<RouteTable>,
    #[serde(default)]
    bridge: Vec<BridgeTable>,
}

/// A bridge to a network, with the arguments of `buslane bridge zenoh`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BridgeTable {
    zenoh: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BusTable {
    path: PathBuf,
    #[serde(default)]
    durable: bool,
}

/// A route as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteTable {
    name: Spanned<String>,
    from: Option<Spanned<Names>>,
    queue: Option<Spanned<Names>>,
    group: Option<String>,
    from_bus: Option<Spanned<String>>,
    to: Option<Spanned<Names>>,
    to_queue: Option<Spanned<Names>>,
    to_bus: Option<Spanned<String>>,
    kind: Option<Spanned<Names>>,
    r#type: Option<Names>,
    sender: Option<Names>,
    r#where: Option<Spanned<String>>,
    payload: Option<Spanned<String>>,
    envelope: Option<Spanned<String>>,
    router: Option<Spanned<String>>,
    #[serde(default)]
    decode: Format,
    encode: Option<Format>,
    sample: Option<Spanned<u64>>,
    rate: Option<Spanned<String>>,
    unique: Option<Spanned<String>>,
    unique_within: Option<Spanned<String>>,
    tap: Option<Spanned<Names>>,
    delay: Option<Spanned<String>>,
    dead_letter: Option<Spanned<String>>,
    patience: Option<Spanned<String>>,
}

impl RouteTable {
    /// All that it names to send to.
    fn targets(&self) -> impl Iterator<Item = &str> {
        let dead_letter = self
            .dead_letter
            .iter()
            .map(|queue| queue.get_ref().as_str());
        names(&self.to)
            .chain(names(&self.to_queue))
            .chain(names(&self.tap))
            .chain(dead_letter)
    }
}

/// One name, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Many(Vec<String>),
}

impl Names {
    fn all(&self) -> Vec<&str> {
        match self {
            Self::One(name) => vec![name],
            Self::Many(names) => names.iter().map(String::as_str).collect(),
        }
    }
}

/// The buses of a configuration, opened when they are needed.
#[derive(Debug)]
pub struct Buses {
    main: Bus,
    open: HashMap<PathBuf, Bus>,
}

impl Buses {
    /// With the one that routes are on which name no other.
    #[must_use]
    pub fn new(main: &Bus) -> Self {
        Self {
            main: main.clone(),
            open: HashMap::new(),
        }
    }

    fn open(&mut self, table: &BusTable) -> buslane::Result<Bus> {
        if let Some(bus) = self.open.get(&table.path) {
            return Ok(bus.clone());
        }
        let builder = Bus::builder().durable(table.durable);
        let bus = match table.path.to_str() {
            Some(text) => builder.open_name_or_path(text),
            None => builder.at(&table.path),
        }?;
        self.open.insert(table.path.clone(), bus.clone());
        Ok(bus)
    }
}

impl Config {
    /// Reads a configuration, and looks for what is wrong with it.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong = |e: toml::de::Error| {
            let at = e.span().map_or(0, |span| span.start);
            error_at(text, at, e.message())
        };
        let table: toml::Table = toml::from_str(text).map_err(wrong)?;
        let routes = table.get("route").and_then(toml::Value::as_array);
        let config = Self {
            text: text.to_owned(),
            file: toml::from_str(text).map_err(wrong)?,
            routes: routes.cloned().unwrap_or_default(),
        };
        config.check()?;
        Ok(config)
    }

    /// What can be told without opening anything, on buses that stand for the true ones.
    fn check(&self) -> Result<(), ConfigError> {
        self.metrics()?;
        for (name, table) in &self.file.bus {
            let is_other =
                |other: &&BusTable| other.path == table.path && other.durable != table.durable;
            if self.file.bus.values().any(|other| is_other(&other)) {
                let why =
                    format!("the bus {name} is durable here and not there: say the same in both");
                return Err(self.error(0..0, why));
            }
        }
        for table in &self.file.route {
            self.program(table)?;
        }
        self.check_cycles()
    }

    /// Where metrics are to be served: `None`, nowhere.
    ///
    /// # Errors
    ///
    /// If that is no address.
    pub fn metrics(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let Some(said) = &self.file.metrics else {
            return Ok(Some(METRICS));
        };
        match said.get_ref() {
            toml::Value::Boolean(true) => Ok(Some(METRICS)),
            toml::Value::Boolean(false) => Ok(None),
            toml::Value::String(address) => address.parse().map(Some).map_err(|e| {
                self.error(
                    said.span(),
                    format!("metrics: {e}; give an address as 127.0.0.1:9909"),
                )
            }),
            _ => Err(self.error(said.span(), "metrics: give an address, or false")),
        }
    }

    /// The bridges that are to run beside the routes: of each the arguments of `buslane bridge zenoh`. They are processes of their own; this
    /// library does not start them.
    pub fn bridges(&self) -> impl Iterator<Item = &[String]> {
        self.file.bridge.iter().map(|bridge| &bridge.zenoh[..])
    }

    /// Whether an address was said, or is the usual one.
    #[must_use]
    pub fn says_metrics(&self) -> bool {
        self.file.metrics.is_some()
    }

    /// The routes, on their buses, which are opened, and made if they are missing.
    ///
    /// # Errors
    ///
    /// What a bus says where it is named.
    pub fn routes(&self, buses: &mut Buses) -> Result<Vec<Route>, ConfigError> {
        let tables = self.file.route.iter().zip(&self.routes);
        tables
            .map(|(table, text)| self.route(table, text, buses))
            .collect()
    }

    fn route(
        &self,
        table: &RouteTable,
        text: &toml::Value,
        buses: &mut Buses,
    ) -> Result<Route, ConfigError> {
        let from_bus = self.bus(table.from_bus.as_ref(), buses)?;
        let to_bus = self.bus(table.to_bus.as_ref(), buses)?;
        let name = table.name.get_ref();
        let made = match (&table.from, &table.queue) {
            (Some(from), None) => Route::from_topics(name, &from_bus, &from.get_ref().all()),
            (None, Some(queue)) => Route::from_queues(name, &from_bus, &queue.get_ref().all()),
            _ => return Err(self.error(table.name.span(), FROM)),
        };
        let mut route = made.map_err(|e| self.error(table.name.span(), e.to_string()))?;
        if let Some(group) = &table.group {
            route = route.as_group(group);
        }
        route = route.on_bus(&to_bus);
        for to in names(&table.to) {
            route = route.to(to);
        }
        for to in names(&table.to_queue) {
            route = route.to_queue(to);
        }
        for tap in names(&table.tap) {
            route = route.tap(tap);
        }
        let kinds: Option<Vec<_>> = names(&table.kind).map(expression::kind_of).collect();
        route = route.kinds(&kinds.unwrap_or_default());
        route = route.types(&table.r#type.iter().flat_map(Names::all).collect::<Vec<_>>());
        route = route.senders(&table.sender.iter().flat_map(Names::all).collect::<Vec<_>>());
        let program = self.program(table)?;
        if program.names_sender {
            route = route.with_sender();
        }
        if program.expressions.router.is_some() {
            route = route.to_named();
        }
        if !program.expressions.are_none() {
            route = route.program(program.expressions);
        }
        if let Some(sample) = &table.sample {
            route = route.sample(*sample.get_ref());
        }
        if let Some((n, per)) = program.rate {
            route = route.rate(n, per);
        }
        if let Some(unique) = program.unique {
            let decode = table.decode;
            let key =
                move |message: &route::Incoming<'_>| expression::key(&unique, decode, message);
            route = route.unique(program.unique_within.unwrap_or(UNIQUE_WITHIN), key);
        }
        if let Some(delay) = program.delay {
            route = route.delay(delay);
        }
        if let Some(queue) = &table.dead_letter {
            route = route.dead_letters(queue.get_ref());
        }
        if let Some(patience) = program.patience {
            route = route.patience(patience);
        }
        // Its buses belong to it as well.
        route.text = format!("{:?} {:?} {text:?}", from_bus.path(), to_bus.path());
        Ok(route)
    }

    fn bus(&self, name: Option<&Spanned<String>>, buses: &mut Buses) -> Result<Bus, ConfigError> {
        let Some(name) = name else {
            return Ok(buses.main.clone());
        };
        let opened = buses.open(self.bus_table(name)?);
        opened.map_err(|e| self.error(name.span(), e.to_string()))
    }

    fn bus_table(&self, name: &Spanned<String>) -> Result<&BusTable, ConfigError> {
        let missing = || {
            let name = name.get_ref();
            format!("there is no bus {name}; say where it is: [bus.{name}] path = …")
        };
        let table = self.file.bus.get(name.get_ref());
        table.ok_or_else(|| self.error(name.span(), missing()))
    }

    /// All that stands in the strings of a route.
    fn program(&self, table: &RouteTable) -> Result<Parsed, ConfigError> {
        let name = &table.name;
        if name.get_ref().contains(['/', '*']) {
            return Err(self.error(
                name.span(),
                "a route's name is one segment, without '/' and '*'",
            ));
        }
        self.check_names(name, false)?;
        if table.from.is_some() == table.queue.is_some() {
            return Err(self.error(name.span(), FROM));
        }
        if table.group.is_some() && table.queue.is_none() {
            return Err(self.error(name.span(), "group: only queues have groups"));
        }
        if table.to.is_none()
            && table.to_queue.is_none()
            && table.tap.is_none()
            && table.router.is_none()
        {
            let why = "it sends to nothing; say to, to_queue, router or tap";
            return Err(self.error(name.span(), why));
        }
        for bus in [&table.from_bus, &table.to_bus].into_iter().flatten() {
            self.bus_table(bus)?;
        }
        if let Some(from) = &table.from {
            self.check_each(from, true)?;
        }
        for names in [&table.queue, &table.to, &table.to_queue, &table.tap]
            .into_iter()
            .flatten()
        {
            self.check_each(names, false)?;
        }
        if let Some(queue) = &table.dead_letter {
            self.check_names(queue, false)?;
        }
        if let Some(kinds) = &table.kind
            && let Some(bad) = names(&table.kind).find(|name| expression::kind_of(name).is_none())
        {
            let why =
                format!("there is no kind {bad}; kinds are event, command, document and reply");
            return Err(self.error(kinds.span(), why));
        }
        if let Some(sample) = &table.sample
            && *sample.get_ref() == 0
        {
            return Err(self.error(
                sample.span(),
                "sample: one message in 0 is none; give 1 or more",
            ));
        }
        let expressions = Expressions {
            decode: table.decode,
            encode: table.encode.unwrap_or(table.decode),
            condition: self.expression(&table.r#where)?,
            payload: self.expression(&table.payload)?,
            envelope: self.expression(&table.envelope)?,
            router: self.expression(&table.router)?,
        };
        let texts = [
            &table.r#where,
            &table.payload,
            &table.envelope,
            &table.router,
            &table.unique,
        ];
        let names_sender = texts
            .into_iter()
            .flatten()
            .any(|text| text.get_ref().contains("$envelope"));
        let mut known = HashSet::new();
        if let Some(twice) = table.targets().find(|name| !known.insert(*name)) {
            return Err(self.error(
                name.span(),
                format!("it sends to {twice} in two ways; leave one out"),
            ));
        }
        let from_durable = table
            .from_bus
            .as_ref()
            .map(|bus| self.bus_table(bus))
            .transpose()?;
        if let Some(delay) = &table.delay
            && table.from.is_some()
            && from_durable.is_some_and(|bus| bus.durable)
        {
            return Err(self.error(delay.span(), route::NO_DELAY));
        }
        if table.unique_within.is_some() && table.unique.is_none() {
            return Err(self.error(name.span(), "unique_within: say what is unique, too"));
        }
        Ok(Parsed {
            expressions,
            unique: self.expression(&table.unique)?,
            unique_within: self.duration(&table.unique_within)?,
            rate: table
                .rate
                .as_ref()
                .map(|rate| self.rate(rate))
                .transpose()?,
            delay: self.duration(&table.delay)?,
            patience: self.duration(&table.patience)?,
            names_sender,
        })
    }

    fn check_each(&self, names: &Spanned<Names>, are_patterns: bool) -> Result<(), ConfigError> {
        let all = names.get_ref().all();
        if all.is_empty() {
            return Err(self.error(names.span(), "there is no name in it"));
        }
        let check = |name| {
            self.check_names(
                &Spanned::new(names.span(), String::from(name)),
                are_patterns,
            )
        };
        all.into_iter().try_for_each(check)
    }

    fn check_names(&self, name: &Spanned<String>, is_pattern: bool) -> Result<(), ConfigError> {
        if !is_pattern && name.get_ref().contains('*') {
            let why = format!(
                "{:?}: only what is taken from may be a pattern",
                name.get_ref()
            );
            return Err(self.error(name.span(), why));
        }
        let parsed = NamePattern::parse(name.get_ref());
        parsed
            .map(drop)
            .map_err(|e| self.error(name.span(), e.to_string()))
    }

    fn expression(
        &self,
        code: &Option<Spanned<String>>,
    ) -> Result<Option<Expression>, ConfigError> {
        let Some(code) = code else {
            return Ok(None);
        };
        let compiled = Expression::compile(code.get_ref());
        compiled.map(Some).map_err(|Wrong { at, why }| {
            let begin = self.begin_of(code);
            let at = begin.map_or(code.span().start, |begin| begin + at);
            self.error(at..at, format!("expression: {why}"))
        })
    }

    /// Where the characters of a string begin. `None`: it has escapes, so that they are not where they seem.
    fn begin_of(&self, string: &Spanned<String>) -> Option<usize> {
        let written = &self.text[string.span()];
        let at = written.find(string.get_ref().as_str())?;
        Some(string.span().start + at)
    }

    fn duration(&self, text: &Option<Spanned<String>>) -> Result<Option<Duration>, ConfigError> {
        let Some(text) = text else {
            return Ok(None);
        };
        let parsed = humantime::parse_duration(text.get_ref());
        parsed
            .map(Some)
            .map_err(|e| self.error(text.span(), format!("{e}; give a time as 100ms or 2s")))
    }

    /// As `100/s`.
    fn rate(&self, text: &Spanned<String>) -> Result<(u32, Duration), ConfigError> {
        let parsed = text.get_ref().split_once('/').and_then(|(n, per)| {
            let n: u32 = n.trim().parse().ok().filter(|&n| n > 0)?;
            let per = per.trim();
            let per = match per.starts_with(|c: char| c.is_ascii_digit()) {
                true => humantime::parse_duration(per),
                false => humantime::parse_duration(&format!("1{per}")),
            };
            // At most one each nanosecond.
            Some((n, per.ok().filter(|per| per.as_nanos() >= n.into())?))
        });
        parsed.ok_or_else(|| self.error(text.span(), "give a rate as 100/s or 5/10m"))
    }

    fn check_cycles(&self) -> Result<(), ConfigError> {
        let tables = &self.file.route;
        for (i, table) in tables.iter().enumerate() {
            if tables[..i]
                .iter()
                .any(|other| other.name.get_ref() == table.name.get_ref())
            {
                let why = format!(
                    "two routes have the name {}; rename one",
                    table.name.get_ref()
                );
                return Err(self.error(table.name.span(), why));
            }
        }
        let follows = |next: usize, before: usize| {
            let (next, before) = (&tables[next], &tables[before]);
            let path = |name: &Option<Spanned<String>>| {
                name.as_ref()
                    .and_then(|name| Some(&self.file.bus.get(name.get_ref())?.path))
            };
            path(&next.from_bus) == path(&before.to_bus)
                && before.targets().any(|sent| takes(next, sent))
        };
        match route::cycle(tables.len(), follows) {
            None => Ok(()),
            Some(way) => {
                let first = &tables[way[0]].name;
                let why = route::describe(&way, |i| tables[i].name.get_ref());
                Err(self.error(first.span(), why))
            }
        }
    }

    fn error(&self, at: Range<usize>, why: impl Into<String>) -> ConfigError {
        error_at(&self.text, at.start, &why.into())
    }
}

/// What the strings of a route say.
struct Parsed {
    expressions: Expressions,
    unique: Option<Expression>,
    unique_within: Option<Duration>,
    rate: Option<(u32, Duration)>,
    delay: Option<Duration>,
    patience: Option<Duration>,
    names_sender: bool,
}

const FROM: &str = "say what it takes from: topics (from), or queues (queue), not both";

fn names(names: &Option<Spanned<Names>>) -> impl Iterator<Item = &str> {
    names.iter().flat_map(|names| names.get_ref().all())
}

fn takes(table: &RouteTable, sent: &str) -> bool {
    let matches = |text: &str| NamePattern::parse(text).is_ok_and(|pattern| pattern.matches(sent));
    names(&table.from).any(matches) || names(&table.queue).any(|name| name == sent)
}

fn error_at(text: &str, at: usize, why: &str) -> ConfigError {
    let before = text.get(..at.min(text.len())).unwrap_or_default();
    let begin = before.rfind('\n').map_or(0, |end| end + 1);
    ConfigError {
        line: before.matches('\n').count() + 1,
        column: before[begin..].chars().count() + 1,
        why: why.to_owned(),
    }
}

impl Config {
    /// Reads the configuration in a file.
    ///
    /// # Errors
    ///
    /// The system's, or what is wrong with it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = std::fs::read_to_string(path);
        let text = read.map_err(|e| error_at("", 0, &format!("cannot read it: {e}")))?;
        Self::parse(&text)
    }
}
