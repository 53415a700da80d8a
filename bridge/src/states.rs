//! A state, both ways: each key of it is a key expression, its value what was put there last.
//!
//! Every value has a version, a time: of two that meet, the newer one holds on all buses, whatever way they came.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use buslane::{ErrorKind, State, StateWriter};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use xxhash_rust::xxh3::xxh3_64;
use zenoh::Wait;
use zenoh::bytes::Encoding;
use zenoh::pubsub::Subscriber;
use zenoh::qos::CongestionControl;
use zenoh::query::{ConsolidationMode, Query, Queryable};
use zenoh::sample::{Locality, Sample, SampleKind};

use crate::bridge::{Over, Shared};
use crate::home::BusId;
use crate::metrics::{Carried, Refused};
use crate::names;
use crate::note::{GARBAGE, Note};
use crate::services::{Gate, MOST_REQUESTS, refuse};
use crate::signals::SLICE;

/// Values that wait to be set.
const MOST_VALUES: usize = 4096;
/// How long Zenoh waits for a thread that sets values.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the values of another bus are waited for.
const FETCH: Duration = Duration::from_secs(10);

/// A state that is carried.
pub struct Board {
    inner: Arc<Inner>,
    /// Whether it was not here when the network announced it.
    pub is_announced: bool,
    /// The buses whose values were asked for.
    fetched: HashSet<BusId>,
    /// What sets values from the network; and what tells it of them.
    setter: Option<JoinHandle<()>>,
    values: Option<Sender<Value>>,
    subscriber: Option<Subscriber<()>>,
    watcher: Option<JoinHandle<()>>,
    queryables: Vec<Queryable<()>>,
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board")
            .field("name", &self.inner.name)
            .finish_non_exhaustive()
    }
}

struct Inner {
    shared: Arc<Shared>,
    name: String,
    over: Over,
    gate: Gate,
    known: Mutex<Known>,
    sent: Carried,
    received: Carried,
}

/// Newer ones are larger. Of two of the same time, it is that of one bus.
type Version = (u64, BusId);

#[derive(Default)]
struct Known {
    /// By key, with a hash of the value.
    keys: HashMap<Vec<u8>, (Version, u64)>,
    /// The newest of all.
    newest: u64,
    /// Buses that did not give their values when they were asked.
    refused: HashSet<BusId>,
}

impl Known {
    /// A version that is newer than all that are known.
    fn next(&mut self) -> u64 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.newest = self.newest.saturating_add(1).max(now.as_nanos() as u64);
        self.newest
    }
}

/// A value from the network.
struct Value {
    key: Vec<u8>,
    value: Vec<u8>,
    version: Option<Version>,
    sizes: Option<[u64; 3]>,
}

impl Board {
    /// Carries the state with this name from now on, as far as the patterns say. Queries for its values go through `gate`.
    pub fn new(shared: &Arc<Shared>, name: &str, is_announced: bool, gate: &Gate) -> Self {
        let inner = Arc::new(Inner {
            shared: Arc::clone(shared),
            name: name.to_owned(),
            over: Over::default(),
            gate: gate.clone(),
            known: Mutex::default(),
            sent: shared.metrics.sent(name),
            received: shared.metrics.received(name),
        });
        let mut board = Self {
            inner,
            is_announced,
            fetched: HashSet::new(),
            setter: None,
            values: None,
            subscriber: None,
            watcher: None,
            queryables: Vec::new(),
        };
        if shared.incoming.match_any(name) {
            board.listen();
        }
        board
    }

    /// Sets what is put in the network.
    fn listen(&mut self) {
        let (values, received) = bounded(MOST_VALUES);
        let (shared, name) = (&self.inner.shared, &self.inner.name);
        let inner = Arc::clone(&self.inner);
        self.setter = shared.spawn("in", move |_| inner.set_all(&received));
        self.values = Some(values.clone());
        let inner = Arc::clone(&self.inner);
        let subscriber = shared
            .session
            .declare_subscriber(format!("{}/*", shared.space.key(name)))
            .allowed_origin(Locality::Remote)
            .callback(move |sample| inner.hear(&sample, &values))
            .wait();
        self.subscriber = note(shared, subscriber);
    }

    /// Whether its state is gone, or could not be read.
    pub fn has_ended(&self) -> bool {
        self.watcher.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Sends what changes here, if the state is here; asks those for its values that have it and were not asked.
    pub fn look(&mut self, is_here: bool, there: HashSet<BusId>) {
        let shared = Arc::clone(&self.inner.shared);
        if is_here && self.watcher.is_none() && shared.outgoing.match_any(&self.inner.name) {
            let inner = Arc::clone(&self.inner);
            self.watcher = shared.spawn("out", move |_| inner.watch());
            let own = shared.space.own(&format!("{}/values", shared.own));
            let name = shared.space.key(&self.inner.name);
            let below = name.strip_prefix(shared.space.prefix()).unwrap_or_default();
            for base in [format!("{own}{below}"), name.clone()] {
                let inner = Arc::clone(&self.inner);
                let key = format!("{base}/*");
                let queryable = shared
                    .session
                    .declare_queryable(key)
                    .allowed_origin(Locality::Remote)
                    .callback(move |query| inner.answer(query, &base))
                    .wait();
                self.queryables.extend(note(&shared, queryable));
            }
        }
        if let Some(values) = &self.values {
            let refused = std::mem::take(&mut self.inner.lock().refused);
            self.fetched.retain(|bus| !refused.contains(bus));
            for bus in there.difference(&self.fetched) {
                self.inner.fetch(*bus, values);
            }
        }
        self.fetched = there;
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = self.inner.over.set(());
        self.queryables.clear();
        self.subscriber = None;
        self.values = None;
        for thread in [self.setter.take(), self.watcher.take()]
            .into_iter()
            .flatten()
        {
            let _ = thread.join();
        }
    }
}

fn note<T>(shared: &Shared, declared: zenoh::Result<T>) -> Option<T> {
    declared
        .inspect_err(|e| {
            shared
                .metrics
                .refused(Refused::Zenoh, format!("cannot carry a state: {e}"))
        })
        .ok()
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> buslane::Result<State> {
        self.shared
            .bus
            .state_builder(&self.name)
            .create(false)
            .open()
    }

    // -------------------------------------------------------------------------------------------------- to the network

    fn watch(&self) {
        match self.watch_all() {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) if e.kind() == ErrorKind::Mismatch => {
                self.shared.metrics.refused(
                    Refused::Type,
                    format!("{e}; states of a type are not carried"),
                );
                // Until it is gone: it will be no other one.
                while self.over.get().is_none() && !self.shared.stop.wait_slice() && self.is_there()
                {
                }
            }
            Err(e) => self.shared.metrics.refused(Refused::Bus, e),
        }
    }

    fn is_there(&self) -> bool {
        self.shared.bus.inspect(&self.name).is_ok()
    }

    fn watch_all(&self) -> buslane::Result<()> {
        let state = self.open()?;
        let (mut reader, mut watch) = (state.reader()?, state.reader()?.watch(None)?);
        let sizes = [state.keys(), state.max_key(), state.max_value()].map(|size| size as u64);
        // What is there at first may be old: it counts as older than all that was seen being set.
        let mut is_old = true;
        while self.over.get().is_none() && !self.shared.stop.is_set() {
            let patience = if is_old { Duration::ZERO } else { SLICE };
            let Some((key, _)) = watch.recv_timeout(patience)? else {
                if !is_old && !self.is_there() {
                    return Ok(());
                }
                is_old = false;
                continue;
            };
            let mut known = self.lock();
            // Under the lock: not older than what the network has set.
            let Some(value) = reader.get(key)? else {
                continue;
            };
            let hash = xxh3_64(value);
            if known.keys.get(key).is_some_and(|(_, known)| *known == hash) {
                continue;
            }
            let number = if is_old { 0 } else { known.next() };
            known
                .keys
                .insert(key.to_vec(), ((number, self.shared.home.id), hash));
            drop(known);
            let put = self
                .shared
                .session
                .put(self.shared.space.state_key(&self.name, key), value)
                .attachment(self.note(number, self.shared.home.id, sizes))
                .congestion_control(CongestionControl::Block)
                .allowed_destination(Locality::Remote)
                .wait();
            match put {
                Ok(()) => self.sent.add(1, value.len() as u64),
                Err(e) => self
                    .shared
                    .metrics
                    .refused(Refused::Zenoh, format!("cannot put {}: {e}", self.name)),
            }
        }
        Ok(())
    }

    fn note(&self, number: u64, from: BusId, sizes: [u64; 3]) -> Vec<u8> {
        let note = Note {
            from: Some(from),
            version: Some(number),
            sizes: Some(sizes),
            ..Note::default()
        };
        note.to_bytes()
    }

    /// Answers a query for values.
    fn answer(self: &Arc<Self>, query: Query, base: &str) {
        let Some(pass) = self.gate.enter() else {
            let what = format!("more than {MOST_REQUESTS} queries for states are under way");
            self.shared.metrics.refused(Refused::Busy, &what);
            return refuse(&self.shared, &query, &what, Encoding::TEXT_PLAIN);
        };
        let (inner, base) = (Arc::clone(self), base.to_owned());
        // Replies may wait for the network.
        self.shared.spawn("get", move |shared| {
            if let Err(e) = inner.reply_all(&query, &base) {
                shared.metrics.refused(Refused::Bus, e);
            }
            drop(pass);
        });
    }

    fn reply_all(&self, query: &Query, base: &str) -> buslane::Result<()> {
        let state = self.open()?;
        let sizes = [state.keys(), state.max_key(), state.max_value()].map(|size| size as u64);
        let mut reader = state.reader()?;
        for entry in reader.entries()? {
            let (key, value) = entry?;
            let at = format!("{base}/{}", names::chunk(&key));
            let is_asked =
                zenoh::key_expr::keyexpr::new(&at).is_ok_and(|at| query.key_expr().intersects(at));
            if !is_asked {
                continue;
            }
            let (version, by) = self
                .lock()
                .keys
                .get(&key)
                .map_or((0, self.shared.home.id), |(version, _)| *version);
            let reply = query
                .reply(at, value)
                .attachment(self.note(version, by, sizes))
                .wait();
            if let Err(e) = reply {
                self.shared.metrics.refused(
                    Refused::Zenoh,
                    format!("cannot answer a query for {}: {e}", self.name),
                );
                return Ok(());
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------ from the network

    /// Asks another bus for its values.
    fn fetch(self: &Arc<Self>, bus: BusId, values: &Sender<Value>) {
        let name = self.shared.space.key(&self.name);
        let below = name
            .strip_prefix(self.shared.space.prefix())
            .unwrap_or_default();
        let key = self.shared.space.own(&format!("{bus}/values{below}/*"));
        let (inner, values) = (Arc::clone(self), values.clone());
        let asked = self
            .shared
            .session
            .get(key)
            .consolidation(ConsolidationMode::None)
            .allowed_destination(Locality::Remote)
            .timeout(FETCH)
            .callback(move |reply| {
                match reply.result() {
                    Ok(sample) => inner.hear(sample, &values),
                    // It has too much to do, or was not in time: it is asked again.
                    Err(_) => {
                        inner.lock().refused.insert(bus);
                    }
                }
            })
            .wait();
        if let Err(e) = asked {
            self.shared
                .metrics
                .refused(Refused::Zenoh, format!("cannot ask for {}: {e}", self.name));
        }
    }

    /// Hands a value of the network to the thread that sets it.
    fn hear(&self, sample: &Sample, values: &Sender<Value>) {
        let key = sample.key_expr().as_str();
        if sample.kind() == SampleKind::Delete {
            return;
        }
        let Some(note) = Note::of(sample.attachment()) else {
            let what = format!("{key}: {GARBAGE}");
            return self.shared.metrics.refused(Refused::Garbage, what);
        };
        // No other would ever be newer.
        if note.version == Some(u64::MAX) {
            let what = format!("{key}: a value is of no time");
            return self.shared.metrics.refused(Refused::Garbage, what);
        }
        let Some((_, chunk)) = key.rsplit_once('/') else {
            return;
        };
        let value = Value {
            key: names::unchunk(chunk),
            value: sample.payload().to_bytes().into_owned(),
            version: note.version.zip(note.from),
            sizes: note.sizes,
        };
        if values.send_timeout(value, PATIENCE).is_err() && self.over.get().is_none() {
            self.shared
                .metrics
                .refused(Refused::Flood, format!("{key}: more comes than can be set"));
        }
    }

    fn set_all(&self, values: &Receiver<Value>) {
        let mut writer = None;
        loop {
            let value = match values.recv_timeout(SLICE) {
                Ok(value) => value,
                // Who was asked for values may still be waited for.
                Err(RecvTimeoutError::Timeout) if self.over.get().is_none() => continue,
                Err(_) => return,
            };
            if let Err(e) = self.set(&mut writer, &value) {
                let why = match e.kind() {
                    ErrorKind::Full => Refused::Full,
                    ErrorKind::TooLong => Refused::Size,
                    ErrorKind::Mismatch => Refused::Type,
                    _ => Refused::Bus,
                };
                if !matches!(why, Refused::Full | Refused::Size) {
                    writer = None;
                }
                self.shared.metrics.refused(why, e);
            }
        }
    }

    fn set(&self, writer: &mut Option<StateWriter>, value: &Value) -> buslane::Result<()> {
        let writer = match writer {
            Some(writer) => writer,
            None => writer.insert(self.join(value.sizes)?),
        };
        let mut known = self.lock();
        let version = value
            .version
            .unwrap_or_else(|| (known.next(), BusId([0; 16])));
        known.newest = known.newest.max(version.0);
        if known
            .keys
            .get(&value.key)
            .is_some_and(|(known, _)| *known >= version)
        {
            return Ok(());
        }
        writer.set(&value.key, &value.value)?;
        known
            .keys
            .insert(value.key.clone(), (version, xxh3_64(&value.value)));
        drop(known);
        self.received.add(1, value.value.len() as u64);
        Ok(())
    }

    fn join(&self, sizes: Option<[u64; 3]>) -> buslane::Result<StateWriter> {
        let state = match (self.open(), sizes) {
            (Err(e), Some([keys, max_key, max_value])) if e.kind() == ErrorKind::NotFound => self
                .shared
                .bus
                .state_builder(&self.name)
                .keys(keys as usize)
                .max_key(max_key as usize)
                .max_value(max_value as usize)
                .open(),
            (opened, _) => opened,
        }?;
        state.writer()
    }
}
