//! Services: requests of the network are put to those of the bus, and requests of the bus to those of the network.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use buslane::{
    CallOptions, Client, Envelope, ErrorKind, Kind, Presence, ReplySink, Request, Server,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use zenoh::Wait;
use zenoh::bytes::Encoding;
use zenoh::qos::CongestionControl;
use zenoh::query::{ConsolidationMode, Query, Queryable, Reply};
use zenoh::sample::Locality;

use crate::bridge::{MOST_ANNOUNCED, Over, Shared};
use crate::metrics::Refused;
use crate::names::Patterns;
use crate::note::{GARBAGE, Note};
use crate::signals::SLICE;

/// Requests that may be under way at a time, each way: each has a thread.
pub const MOST_REQUESTS: usize = 64;
/// How long a request takes at most that says nothing of it: as long as a Zenoh query.
const USUAL: Duration = Duration::from_secs(10);
/// Replies to one request that wait to be passed on.
const MOST_REPLIES: usize = 1024;
/// The code of a refusal that says that no answer came from the network.
pub const NO_ANSWER: u32 = u32::MAX;

/// How many are under way.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Mutex<usize>>);

/// One that is under way, until it is dropped.
#[derive(Debug)]
pub struct Pass(Gate);

impl Gate {
    /// Lets one more in, if there is room.
    pub fn enter(&self) -> Option<Pass> {
        let mut inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (*inside < MOST_REQUESTS).then(|| {
            *inside += 1;
            Pass(self.clone())
        })
    }

    fn is_empty(&self) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) == 0
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

// ------------------------------------------------------------------------------------------------- those of the bus

/// Services of the bus that the network may ask.
pub struct Served {
    shared: Arc<Shared>,
    patterns: Patterns,
    services: HashMap<String, Serving>,
    /// Those that failed, and were told: not again while they are there.
    failed: HashSet<String>,
    gate: Gate,
}

struct Serving {
    presence: Presence,
    queryable: Option<Queryable<()>>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("patterns", &self.patterns)
            .finish_non_exhaustive()
    }
}

impl Served {
    /// None yet.
    pub fn new(shared: &Arc<Shared>, patterns: Patterns) -> Self {
        Self {
            shared: Arc::clone(shared),
            patterns,
            services: HashMap::new(),
            failed: HashSet::new(),
            gate: Gate::default(),
        }
    }

    /// Serves those of `names` that have a server here which is not the bridge itself: their names.
    pub fn look(&mut self, names: &[String], asked: &Asked) -> HashSet<String> {
        self.services.retain(|name, _| names.contains(name));
        self.failed.retain(|name| names.contains(name));
        let mut served = HashSet::new();
        for name in names {
            if !self.patterns.match_any(name) || self.failed.contains(name) {
                continue;
            }
            match self.look_at(name, asked.serves(name)) {
                Ok(true) => {
                    served.insert(name.clone());
                }
                Ok(false) => {}
                Err(e) => {
                    self.failed.insert(name.clone());
                    self.shared.metrics.refused(reason(&e), e);
                }
            }
        }
        served
    }

    fn look_at(&mut self, name: &str, ours: usize) -> buslane::Result<bool> {
        if !self.services.contains_key(name) {
            let presence = self
                .shared
                .bus
                .service_builder(name)
                .create(false)
                .open()?
                .presence()?;
            let queryable = None;
            self.services.insert(
                name.to_owned(),
                Serving {
                    presence,
                    queryable,
                },
            );
        }
        let (shared, gate) = (Arc::clone(&self.shared), self.gate.clone());
        let Some(serving) = self.services.get_mut(name) else {
            return Ok(false);
        };
        let is_served = serving.presence.subscribers()? > ours;
        if !is_served {
            serving.queryable = None;
        } else if serving.queryable.is_none() {
            let service = shared.bus.service_builder(name).create(false).open()?;
            let client = Arc::new(service.client()?);
            let of = Arc::clone(&shared);
            let queryable = shared
                .session
                .declare_queryable(shared.space.key(name))
                .allowed_origin(Locality::Remote)
                .complete(true)
                .callback(move |query| put(&of, &client, &gate, query))
                .wait();
            match queryable {
                Ok(queryable) => serving.queryable = Some(queryable),
                Err(e) => shared
                    .metrics
                    .refused(Refused::Zenoh, format!("cannot serve {name}: {e}")),
            }
        }
        Ok(serving.queryable.is_some())
    }

    /// Takes no more requests, and waits until those under way see that it ends.
    pub fn close(&mut self) {
        self.services.clear();
        while !self.gate.is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Services of a type are not carried: what is asked there is bytes.
fn reason(e: &buslane::Error) -> Refused {
    match e.kind() {
        ErrorKind::Mismatch => Refused::Type,
        _ => Refused::Bus,
    }
}

/// Puts a query to a service, in a thread of its own.
fn put(shared: &Arc<Shared>, client: &Arc<Client>, gate: &Gate, query: Query) {
    // Who asks for many things at once does not mean a service.
    if query.key_expr().is_wild() {
        return;
    }
    let Some(pass) = gate.enter() else {
        let what = format!("more than {MOST_REQUESTS} requests are under way from the network");
        shared.metrics.refused(Refused::Busy, &what);
        return refuse(shared, &query, &what, Encoding::TEXT_PLAIN);
    };
    let client = Arc::clone(client);
    shared.spawn("request", move |shared| {
        serve(&shared, &client, &query);
        drop(pass);
    });
}

fn serve(shared: &Shared, client: &Client, query: &Query) {
    let Some(note) = Note::of(query.attachment()) else {
        let what = format!("{}: {GARBAGE}", query.key_expr());
        shared.metrics.refused(Refused::Garbage, &what);
        return refuse(shared, query, &what, Encoding::TEXT_PLAIN);
    };
    shared.metrics.served.inc();
    let kind = note.envelope.as_ref().map_or(Kind::Command, Envelope::kind);
    let options = CallOptions::new()
        .kind(kind)
        .timeout(note.time_left.unwrap_or(USUAL));
    let request = query
        .payload()
        .map(|payload| payload.to_bytes())
        .unwrap_or_default();
    let mut replies = match client.stream_with(&options, &request) {
        Ok(replies) => replies,
        Err(e) => return refuse(shared, query, &e.to_string(), Encoding::TEXT_PLAIN),
    };
    loop {
        let reply = match replies.recv_timeout(SLICE) {
            Ok(None) if shared.stop.is_set() => {
                return refuse(shared, query, "the bridge ends", Encoding::TEXT_PLAIN);
            }
            Ok(None) => continue,
            Ok(Some(Ok(Some(reply)))) => reply,
            Ok(Some(Ok(None))) => return,
            Ok(Some(Err(refusal))) => {
                let code = Encoding::TEXT_PLAIN.with_schema(format!("code={}", refusal.code));
                return refuse(shared, query, &refusal.message, code);
            }
            Err(e) => return refuse(shared, query, &e.to_string(), Encoding::TEXT_PLAIN),
        };
        let note = Note {
            envelope: reply.envelope(),
            ..Note::default()
        };
        let sent = query
            .reply(query.key_expr().clone(), &reply[..])
            .attachment(note.to_bytes())
            .wait();
        if let Err(e) = sent {
            shared
                .metrics
                .refused(Refused::Zenoh, format!("cannot reply: {e}"));
            return;
        }
    }
}

/// Answers a query with why there is no answer.
pub fn refuse(shared: &Shared, query: &Query, why: &str, encoding: Encoding) {
    if let Err(e) = query.reply_err(why).encoding(encoding).wait() {
        shared
            .metrics
            .refused(Refused::Zenoh, format!("cannot reply: {e}"));
    }
}

// --------------------------------------------------------------------------------------------- those of the network

/// Services of the network that this bus may ask.
pub struct Asked {
    shared: Arc<Shared>,
    patterns: Patterns,
    /// Asked also where no bridge says that it serves them.
    by_name: BTreeSet<String>,
    services: HashMap<String, Asking>,
    /// Those that failed, and were told: not again while they are wanted.
    failed: HashSet<String>,
    gate: Gate,
}

struct Asking {
    presence: Presence,
    server: Option<(JoinHandle<()>, Over)>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked")
            .field("patterns", &self.patterns)
            .finish_non_exhaustive()
    }
}

impl Asked {
    /// None yet.
    pub fn new(shared: &Arc<Shared>, patterns: Patterns, by_name: BTreeSet<String>) -> Self {
        Self {
            shared: Arc::clone(shared),
            patterns,
            by_name,
            services: HashMap::new(),
            failed: HashSet::new(),
            gate: Gate::default(),
        }
    }

    /// How many of the servers of a service here are this bridge.
    pub fn serves(&self, name: &str) -> usize {
        self.services
            .get(name)
            .map_or(0, |asking| usize::from(asking.server.is_some()))
    }

    /// Serves those that other bridges offer, and those that were named, where nobody else serves them.
    pub fn look(&mut self, offered: &HashSet<String>) {
        let offered = offered.iter().filter(|name| self.patterns.match_any(name));
        let wanted: BTreeSet<String> = offered.chain(&self.by_name).cloned().collect();
        let over = self.services.extract_if(|name, _| !wanted.contains(name));
        for (_, asking) in over.collect::<Vec<_>>() {
            end(asking.server);
            // There may be room for one of them.
            self.failed.clear();
        }
        self.failed.retain(|name| wanted.contains(name));
        let announced = self
            .services
            .keys()
            .filter(|name| !self.by_name.contains(*name));
        let mut count = announced.count();
        for name in wanted {
            if self.failed.contains(&name) {
                continue;
            }
            if !self.by_name.contains(&name) && !self.services.contains_key(&name) {
                if count == MOST_ANNOUNCED {
                    let what = format!(
                        "{name}: the network announces more than {MOST_ANNOUNCED} services"
                    );
                    self.shared.metrics.refused(Refused::Topics, what);
                    self.failed.insert(name);
                    continue;
                }
                count += 1;
            }
            if let Err(e) = self.look_at(&name) {
                self.shared.metrics.refused(reason(&e), e);
                self.failed.insert(name);
            }
        }
    }

    fn look_at(&mut self, name: &str) -> buslane::Result<()> {
        let asking = match self.services.get_mut(name) {
            Some(asking) => asking,
            None => {
                let presence = self.shared.bus.service(name)?.presence()?;
                let server = None;
                self.services
                    .entry(name.to_owned())
                    .or_insert(Asking { presence, server })
            }
        };
        let ours = usize::from(asking.server.is_some());
        let has_others = asking.presence.subscribers()? > ours;
        if has_others {
            end(asking.server.take());
        } else if asking
            .server
            .as_ref()
            .is_none_or(|(thread, _)| thread.is_finished())
        {
            let (over, gate) = (Over::default(), self.gate.clone());
            let server = self.shared.bus.service(name)?.server()?;
            let seen = Arc::clone(&over);
            let thread = self.shared.spawn("ask", move |shared| {
                if let Err(e) = ask_all(&shared, server, &gate, &seen) {
                    shared.metrics.refused(Refused::Bus, e);
                }
            });
            asking.server = thread.map(|thread| (thread, over));
        }
        Ok(())
    }

    /// Takes no more requests, and waits until those under way see that it ends.
    pub fn close(&mut self) {
        self.services
            .drain()
            .for_each(|(_, asking)| end(asking.server));
        while !self.gate.is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn end(server: Option<(JoinHandle<()>, Over)>) {
    if let Some((thread, over)) = server {
        let _ = over.set(());
        let _ = thread.join();
    }
}

/// Puts each request to the network, in a thread of its own.
fn ask_all(
    shared: &Arc<Shared>,
    mut server: Server,
    gate: &Gate,
    over: &Over,
) -> buslane::Result<()> {
    let key = shared.space.key(server.service_name());
    while over.get().is_none() && !shared.stop.is_set() {
        let Some(request) = server.recv_timeout(SLICE)? else {
            continue;
        };
        let Some(pass) = gate.enter() else {
            let what = format!("more than {MOST_REQUESTS} requests are under way to the network");
            shared.metrics.refused(Refused::Busy, &what);
            answered(shared, request.refuse(NO_ANSWER, &what));
            continue;
        };
        let key = key.clone();
        shared.spawn("request", move |shared| {
            ask(&shared, &key, request);
            drop(pass);
        });
    }
    Ok(())
}

/// What is not wanted any more is no failure.
fn answered(shared: &Shared, result: buslane::Result<()>) {
    if let Err(e) = result
        && !matches!(e.kind(), ErrorKind::Cancelled | ErrorKind::LeaseLost)
    {
        shared.metrics.refused(Refused::Bus, e);
    }
}

fn ask(shared: &Shared, key: &str, request: Request) {
    let time_left = request.time_left().unwrap_or(USUAL);
    let note = Note {
        envelope: request.envelope(),
        from: Some(shared.home.id),
        time_left: Some(time_left),
        ..Note::default()
    };
    let (told, replies) = bounded(MOST_REPLIES);
    let lacks_some = Arc::new(OnceLock::new());
    let asked = shared
        .session
        .get(key)
        .payload(&request[..])
        .attachment(note.to_bytes())
        .congestion_control(CongestionControl::Block)
        .consolidation(ConsolidationMode::None)
        .allowed_destination(Locality::Remote)
        .timeout(time_left)
        // One for which there is no room closes the channel: the request is refused, instead of lacking one.
        .callback_mut({
            let (mut told, lacks_some) = (Some(told), Arc::clone(&lacks_some));
            move |reply| {
                if told
                    .as_ref()
                    .is_some_and(|told| told.try_send(reply).is_err())
                {
                    let _ = lacks_some.set(());
                    told = None;
                }
            }
        })
        .wait();
    if let Err(e) = asked {
        let what = format!("cannot ask {key}: {e}");
        shared.metrics.refused(Refused::Zenoh, &what);
        return answered(shared, request.refuse(NO_ANSWER, &what));
    }
    shared.metrics.asked.inc();
    let replies = Replies {
        shared,
        replies,
        lacks_some,
    };
    answered(shared, replies.pass_on(key, request));
}

/// What comes from the network for a request.
struct Replies<'a> {
    shared: &'a Shared,
    replies: Receiver<Reply>,
    /// Set when there was no room for one.
    lacks_some: Arc<OnceLock<()>>,
}

impl Replies<'_> {
    /// The next one, if there is one.
    fn next(&self) -> Option<Heard> {
        loop {
            match self.replies.recv_timeout(SLICE) {
                Ok(_) | Err(RecvTimeoutError::Timeout) if self.shared.stop.is_set() => {
                    return Some(Heard::Refusal(NO_ANSWER, String::from("the bridge ends")));
                }
                Ok(reply) => return Some(Heard::new(reply)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if self.lacks_some.get().is_some() => {
                    let why = format!("more than {MOST_REPLIES} replies waited to be passed on");
                    self.shared.metrics.refused(Refused::Flood, &why);
                    return Some(Heard::Refusal(NO_ANSWER, why));
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Passes them on: one as the reply, several as a stream of them.
    fn pass_on(&self, key: &str, request: Request) -> buslane::Result<()> {
        let first = match self.next() {
            Some(Heard::Reply(first)) => first,
            Some(Heard::Refusal(code, why)) => return request.refuse(code, &why),
            None => {
                let why = format!(
                    "no answer from the network: nobody there serves {key}, or none was in time"
                );
                return request.refuse(NO_ANSWER, &why);
            }
        };
        let Some(mut next) = self.next() else {
            return request.reply(&first);
        };
        let mut sink: ReplySink = request.stream()?;
        sink.send(&first)?;
        loop {
            match next {
                Heard::Reply(reply) => sink.send(&reply)?,
                Heard::Refusal(code, why) => return sink.refuse(code, &why),
            }
            next = match self.next() {
                Some(next) => next,
                None => return sink.finish(),
            };
        }
    }
}

/// A reply, or why there is none.
enum Heard {
    Reply(Vec<u8>),
    Refusal(u32, String),
}

impl Heard {
    fn new(reply: Reply) -> Self {
        match reply.into_result() {
            Ok(sample) => Self::Reply(sample.payload().to_bytes().into_owned()),
            Err(error) => {
                let encoding = error.encoding().to_string();
                let code = encoding.strip_prefix(&format!("{};code=", Encoding::TEXT_PLAIN));
                let code = code.and_then(|code| code.parse().ok()).unwrap_or(NO_ANSWER);
                let why = String::from_utf8_lossy(&error.payload().to_bytes()).into_owned();
                Self::Refusal(code, why)
            }
        }
    }
}
