//! Topics of the network, to the bus.
//!
//! What comes is put into a queue of its topic, and its sender; a thread for each puts it on the bus. So a topic that is not read
//! fast enough, or is flooded, has no other wait.

use std::cmp::Ordering;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use buslane::{Any, Envelope, ErrorKind, Kind, Origin, PayloadType, Publisher, Topic};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use zenoh::Wait;
use zenoh::key_expr::KeyExpr;
use zenoh::qos::{CongestionControl, Reliability};
use zenoh::query::Query;
use zenoh::sample::{Locality, Sample, SampleKind};

use crate::bridge::{Over, Shared};
use crate::failure::Failure;
use crate::home::BusId;
use crate::metrics::{Carried, Refused};
use crate::note::{GARBAGE, MAX_HOPS, Note};
use crate::outgoing::{PARCEL_BYTES, PARCEL_MESSAGES, UNTIL_ACK, carried_by};
use crate::parcel::{Answer, Header, unpack};
use crate::signals::SLICE;

/// Topics that the network may have this bridge put something on: each may be a new one, with memory of its own.
const MOST_TOPICS: usize = 1024;
/// Parcels of one topic that wait: more than one bridge has under way.
const MOST_PARCELS: usize = 16;
/// Messages, and bytes in them, that wait to be put on a topic one by one.
const MOST_SINGLES: usize = 8192;
const MOST_BYTES: usize = 16 << 20;
/// How long a message is held for whose sender it would wait, once: until there is room again, the next ones are not waited for.
const PATIENCE: Duration = Duration::from_millis(100);

/// The ways in.
#[derive(Debug)]
pub struct Inlets {
    shared: Arc<Shared>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Buses whose bridges are known.
    known: HashSet<BusId>,
    takers: HashMap<(BusId, String), Taking>,
    /// Threads of takers that are no more wanted, and may not have seen it.
    ending: HashMap<(BusId, String), JoinHandle<()>>,
    /// By key expression.
    singles: HashMap<String, Arc<Queue>>,
    threads: Vec<JoinHandle<()>>,
    is_closed: bool,
}

/// What puts a topic's parcels from one bus on this one.
#[derive(Debug)]
struct Taking {
    parcels: Sender<(Header, Query)>,
    over: Over,
    thread: Option<JoinHandle<()>>,
}

impl State {
    fn count(&self) -> usize {
        self.takers.len() + self.singles.len()
    }

    /// Has a taker end; the next one for the same waits for that.
    fn end(&mut self, key: (BusId, String)) {
        if let Some(taking) = self.takers.remove(&key) {
            let _ = taking.over.set(());
            self.ending
                .extend(taking.thread.map(|thread| (key, thread)));
        }
    }
}

impl Inlets {
    /// Opens them: for other bridges, and for what is published on `keys`.
    pub fn open(shared: &Arc<Shared>, keys: &[KeyExpr<'static>]) -> Result<Arc<Self>, Failure> {
        let inlets = Arc::new(Self {
            shared: Arc::clone(shared),
            state: Mutex::default(),
        });
        let ours = Arc::clone(&inlets);
        shared
            .session
            .declare_queryable(shared.space.own(&format!("{}/deliver", shared.home.id)))
            .allowed_origin(Locality::Remote)
            .complete(true)
            .callback(move |query| ours.take_parcel(query))
            .background()
            .wait()
            .map_err(Failure::zenoh("be there for other bridges"))?;
        for (at, key) in keys.iter().enumerate() {
            let ours = Arc::clone(&inlets);
            let before = keys[..at].to_vec();
            shared
                .session
                .declare_subscriber(key.clone())
                .allowed_origin(Locality::Remote)
                .callback(move |sample| {
                    // Where patterns overlap, it comes to each of them.
                    if !before.iter().any(|key| key.intersects(sample.key_expr())) {
                        ours.take_single(&sample);
                    }
                })
                .background()
                .wait()
                .map_err(Failure::zenoh("subscribe to the network"))?;
        }
        Ok(inlets)
    }

    /// These buses have bridges; what comes from others is not taken.
    pub fn know(&self, buses: HashSet<BusId>) {
        let mut state = self.lock();
        let gone = state
            .takers
            .keys()
            .filter(|(from, _)| !buses.contains(from));
        for key in gone.cloned().collect::<Vec<_>>() {
            state.end(key);
        }
        state.ending.retain(|_, thread| !thread.is_finished());
        state.threads.retain(|thread| !thread.is_finished());
        state.known = buses;
    }

    /// Takes nothing any more, and puts what has come on the bus.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.singles.drain().for_each(|(_, queue)| queue.close());
        let takers = std::mem::take(&mut state.takers);
        let mut threads = std::mem::take(&mut state.threads);
        threads.extend(takers.into_values().filter_map(|taking| taking.thread));
        threads.extend(state.ending.drain().map(|(_, thread)| thread));
        drop(state);
        for thread in threads {
            let _ = thread.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a parcel to its topic's thread. One that is dropped is sent again.
    fn take_parcel(&self, query: Query) {
        let metrics = &self.shared.metrics;
        let header = query
            .attachment()
            .and_then(|bytes| Header::read(&bytes.to_bytes()));
        let Some(header) = header else {
            metrics.refused(
                Refused::Garbage,
                "a parcel from the network has no header that can be read",
            );
            return;
        };
        if !self.shared.incoming.match_any(&header.topic) {
            return answer(&self.shared, &query, &Answer::Unwanted);
        }
        let mut state = self.lock();
        if state.is_closed {
            return;
        }
        if !state.known.contains(&header.from) {
            // It may have seen us before we have seen it.
            return metrics.count(Refused::Stranger);
        }
        let is_full = state.count() >= MOST_TOPICS;
        let State { takers, ending, .. } = &mut *state;
        let taking = match takers.entry((header.from, header.topic.clone())) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if is_full => {
                let what = format!(
                    "{}: the network sends to more than {MOST_TOPICS} topics",
                    header.topic
                );
                return metrics.refused(Refused::Topics, what);
            }
            Entry::Vacant(entry) => {
                let (parcels, received) = bounded(MOST_PARCELS);
                let (over, before) = (Over::default(), ending.remove(entry.key()));
                let ((from, topic), seen) = (entry.key().clone(), Arc::clone(&over));
                let thread = self.shared.spawn("in", move |shared| {
                    // What it puts there yet is seen when this one looks back.
                    before.map(JoinHandle::join);
                    Taker::new(&shared, from, topic, &seen).run(&received);
                });
                entry.insert(Taking {
                    parcels,
                    over,
                    thread,
                })
            }
        };
        match taking.parcels.try_send((header, query)) {
            Ok(()) => {}
            Err(TrySendError::Full((header, _))) => {
                let what = format!("{}: more comes than may be under way", header.topic);
                metrics.refused(Refused::Flood, what);
            }
            // Its thread did not start, or has died: the next parcel gets another.
            Err(TrySendError::Disconnected((header, _))) => state.end((header.from, header.topic)),
        }
    }

    /// Hands a message that came by itself to its topic's thread.
    fn take_single(&self, sample: &Sample) {
        let metrics = &self.shared.metrics;
        let key = sample.key_expr().as_str();
        let Some(note) = Note::of(sample.attachment()) else {
            return metrics.refused(Refused::Garbage, format!("{key}: {GARBAGE}"));
        };
        // Those are carried in other ways: by parcels, and as states.
        if note.is_copy || note.version.is_some() || sample.kind() == SampleKind::Delete {
            return;
        }
        let single = Single {
            payload: sample.payload().clone(),
            len: sample.payload().len(),
            note,
        };
        let Some(queue) = self.queue(key, sample) else {
            return;
        };
        // Whose sender would wait for room gets a moment.
        let waits = sample.congestion_control() == CongestionControl::Block;
        if !queue.push(single, waits) {
            metrics.refused(Refused::Flood, format!("{key}: more comes than is read"));
        }
    }

    /// The queue of a key expression.
    fn queue(&self, key: &str, sample: &Sample) -> Option<Arc<Queue>> {
        let metrics = &self.shared.metrics;
        let mut state = self.lock();
        if let Some(queue) = state.singles.get(key) {
            return Some(Arc::clone(queue));
        }
        let Some(name) = self
            .shared
            .space
            .name(key)
            .filter(|name| self.shared.incoming.match_any(name))
        else {
            metrics.refused(
                Refused::Name,
                format!("{key} is the name of no topic that is wanted"),
            );
            return None;
        };
        if state.is_closed || self.is_of_state(&name) {
            return None;
        }
        if state.count() >= MOST_TOPICS {
            let what = format!("{name}: the network sends to more than {MOST_TOPICS} topics");
            metrics.refused(Refused::Topics, what);
            return None;
        }
        let queue = Arc::new(Queue::default());
        let made = Made {
            carries: carried_by(sample.encoding()),
            is_lossy: sample.reliability() == Reliability::BestEffort,
        };
        let ours = Arc::clone(&queue);
        let thread = self.shared.spawn("in", move |shared| {
            put_singles(&shared, &name, &made, &ours);
        });
        state.threads.extend(thread);
        state.singles.insert(key.to_owned(), Arc::clone(&queue));
        Some(queue)
    }

    /// Whether it is the value of a state's key.
    fn is_of_state(&self, name: &str) -> bool {
        let Some((state, _)) = name.rsplit_once('/') else {
            return false;
        };
        let report = self.shared.bus.inspect(state);
        report.is_ok_and(|report| report.pattern == "state")
    }
}

fn answer(shared: &Shared, query: &Query, answer: &Answer) {
    let sent = query
        .reply(query.key_expr().clone(), answer.to_bytes())
        .express(true)
        .wait();
    if let Err(e) = sent {
        shared
            .metrics
            .refused(Refused::Zenoh, format!("cannot answer a bridge: {e}"));
    }
}

// ---------------------------------------------------------------------------------------------- from other bridges

/// Puts a topic's parcels from one bus on this one.
struct Taker<'a> {
    shared: &'a Shared,
    over: &'a Over,
    from: BusId,
    name: String,
    hop: String,
    /// How a message is published that has no envelope.
    plain: Envelope,
    topic: Option<Topic<Any>>,
    /// Made when there is something to publish: receivers wait for the end of every publisher that there is.
    publisher: Option<Publisher<Any>>,
    /// The stream, and the next parcel of it; and how many messages of that are on the bus already.
    stream: Option<(u64, u64)>,
    put: usize,
    /// The last message of each lane of a durable topic there; and what their numbers belong to.
    last: HashMap<u64, u32>,
    source: Option<u64>,
    carried: Carried,
}

impl<'a> Taker<'a> {
    fn new(shared: &'a Shared, from: BusId, name: String, over: &'a Over) -> Self {
        let hop = shared.hop(&from.to_string());
        Self {
            shared,
            over,
            from,
            plain: Envelope::new(Kind::Event).passed_on_by(&hop),
            hop,
            topic: None,
            publisher: None,
            stream: None,
            put: 0,
            last: HashMap::new(),
            source: None,
            carried: shared.metrics.received(&name),
            name,
        }
    }

    fn run(mut self, parcels: &Receiver<(Header, Query)>) {
        for (header, query) in parcels {
            if self.over.get().is_some() {
                return;
            }
            let said = self.take(&header, &query);
            answer(self.shared, &query, &said);
        }
    }

    fn take(&mut self, header: &Header, query: &Query) -> Answer {
        let next = match self.stream {
            Some((stream, next)) if stream == header.stream => next,
            _ if header.number == header.oldest => {
                self.stream = Some((header.stream, header.number));
                self.put = 0;
                header.number
            }
            _ => return Answer::From(header.oldest),
        };
        match header.number.cmp(&next) {
            Ordering::Less => return Answer::Taken,
            Ordering::Greater => return Answer::From(next),
            Ordering::Equal => {}
        }
        let payload = query.payload().map(|payload| payload.to_bytes());
        let payload = payload.as_deref().unwrap_or(&[]);
        let put = self
            .open(header)
            .and_then(|topic| self.put_all(header, &topic, payload));
        match put {
            Ok(()) => {
                if header.ended {
                    self.publisher = None;
                }
                self.stream = Some((header.stream, next.wrapping_add(1)));
                self.put = 0;
                Answer::Taken
            }
            Err(e) => {
                // It may be another topic by now.
                (self.topic, self.publisher) = (None, None);
                let why = match e.kind() {
                    ErrorKind::Mismatch => Refused::Type,
                    _ => Refused::Bus,
                };
                let text = e.to_string();
                self.shared.metrics.refused(why, e);
                Answer::Refused(text)
            }
        }
    }

    /// Opens the topic, if it is not.
    fn open(&mut self, header: &Header) -> buslane::Result<Topic<Any>> {
        let topic = match &self.topic {
            Some(topic) => topic.clone(),
            None => self
                .shared
                .bus
                .topic_builder(&self.name)
                .open_described(&header.carries)?,
        };
        self.topic = Some(topic.clone());
        if header.source.is_some() && header.source != self.source {
            self.source = header.source;
            self.last = self.look_back(header.source)?;
        }
        Ok(topic)
    }

    /// The last message of each lane there that this bus has: a bridge may have died after it had put them here, and before it could
    /// say so.
    fn look_back(&self, source: Option<u64>) -> buslane::Result<HashMap<u64, u32>> {
        let mut last: HashMap<u64, u32> = HashMap::new();
        let report = self.shared.bus.inspect(&self.name)?;
        // As many as can come again, if the messages are not much smaller than most.
        let (messages, bytes) = report.lanes.iter().fold((0, 0), |(messages, bytes), lane| {
            (messages + lane.messages, bytes + lane.bytes)
        });
        let usual = bytes / u64::max(messages, 1) + 1;
        let many = UNTIL_ACK as usize * PARCEL_BYTES / usual as usize * 8;
        report.look_back(
            many.clamp(256, (UNTIL_ACK * PARCEL_MESSAGES) as usize),
            |seen| {
                let origin = seen.envelope.as_ref().and_then(Envelope::origin);
                if let Some(origin) = origin.filter(|origin| Some(origin.by) == source) {
                    let newest = last.entry(origin.lane).or_insert(origin.sequence);
                    if is_behind(*newest, origin.sequence) {
                        *newest = origin.sequence;
                    }
                }
            },
        );
        Ok(last)
    }

    fn put_all(
        &mut self,
        header: &Header,
        topic: &Topic<Any>,
        payload: &[u8],
    ) -> buslane::Result<()> {
        // An empty one only asks whether the topic can be carried, or tells its end.
        if payload.is_empty() {
            return Ok(());
        }
        let mut publisher = match self.publisher.take() {
            Some(publisher) => publisher,
            None => topic.publisher()?,
        };
        let (mut messages, mut bytes) = (0, 0);
        let mut result = self.put_each(header, &mut publisher, payload, |len| {
            messages += 1;
            bytes += len;
        });
        self.carried.add(messages, bytes);
        if header.source.is_some() && topic.is_durable() {
            // Also what came before a failure: it does not come again.
            let synced = publisher.sync();
            if synced.is_err() {
                (self.put, self.source) = (0, None);
            }
            result = result.and(synced);
        }
        self.publisher = Some(publisher);
        result
    }

    fn put_each(
        &mut self,
        header: &Header,
        publisher: &mut Publisher<Any>,
        payload: &[u8],
        mut carried: impl FnMut(u64),
    ) -> buslane::Result<()> {
        let metrics = &self.shared.metrics;
        let is_over = || self.shared.stop.is_set() || self.over.get().is_some();
        let all = unpack(payload, header.source.is_some());
        for packed in all.skip(self.put) {
            let note = packed.and_then(|packed| Some((packed, Note::entries(packed.note)?)));
            let Some((packed, note)) = note else {
                let what = format!(
                    "{}: a parcel from {} contradicts itself",
                    self.name, self.from
                );
                metrics.refused(Refused::Garbage, what);
                return Ok(());
            };
            let (lane, sequence) = packed.place;
            if let Some(source) = header.source {
                let last = self.last.get(&lane);
                if last.is_some_and(|&last| !is_behind(last, sequence)) {
                    metrics.repeated.inc();
                    self.put += 1;
                    continue;
                }
                let by = Origin {
                    by: source,
                    lane,
                    sequence,
                    part: 0,
                };
                let envelope = envelope_of(note, &self.hop).made_from(by);
                if may_come(self.shared, &envelope, &self.name) {
                    send(publisher, &envelope, packed.payload, is_over)?;
                    carried(packed.payload.len() as u64);
                }
                self.last.insert(lane, sequence);
            } else {
                let passed;
                let envelope = match note.envelope {
                    None => &self.plain,
                    Some(_) => {
                        passed = envelope_of(note, &self.hop);
                        &passed
                    }
                };
                if may_come(self.shared, envelope, &self.name) {
                    match send(publisher, envelope, packed.payload, is_over) {
                        Ok(()) => carried(packed.payload.len() as u64),
                        Err(e) if is_of_message(e.kind()) => metrics.refused(Refused::Size, e),
                        Err(e) => return Err(e),
                    }
                }
            }
            self.put += 1;
        }
        Ok(())
    }
}

/// Whether `sequence` comes after `last`. They go round.
fn is_behind(last: u32, sequence: u32) -> bool {
    sequence.wrapping_sub(last).cast_signed() > 0
}

/// The envelope with which it is published here: one more hop.
fn envelope_of(note: Note, hop: &str) -> Envelope {
    let envelope = note.envelope.unwrap_or_else(|| Envelope::new(Kind::Event));
    envelope.passed_on_by(hop)
}

/// Whether it was not here before.
fn may_come(shared: &Shared, envelope: &Envelope, topic: &str) -> bool {
    let was_here = |hop: &str| hop.starts_with("zenoh/") && hop.ends_with(&shared.own);
    let is_loop = usize::from(envelope.hops()) > MAX_HOPS || envelope.trace().any(was_here);
    if is_loop {
        let what = format!(
            "{topic}: a message has been on this bus before, or has come by more than {MAX_HOPS} ways"
        );
        shared.metrics.refused(Refused::Loop, what);
    }
    !is_loop
}

/// What concerns one message, and not those behind it.
fn is_of_message(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::TooLong | ErrorKind::Mismatch)
}

/// Puts a message on the bus. Waits while there is no room, until it is over.
fn send(
    publisher: &mut Publisher<Any>,
    envelope: &Envelope,
    payload: &[u8],
    is_over: impl Fn() -> bool,
) -> buslane::Result<()> {
    loop {
        match publisher.send_any(Some(envelope), payload, Some(SLICE)) {
            Err(e) if e.kind() == ErrorKind::TimedOut && !is_over() => {}
            result => return result,
        }
    }
}

// ------------------------------------------------------------------------------------------ one by one, from anybody

/// A message that came by itself.
#[derive(Debug)]
struct Single {
    payload: zenoh::bytes::ZBytes,
    len: usize,
    note: Note,
}

/// How a topic is made, if there is none.
struct Made {
    carries: Option<PayloadType>,
    is_lossy: bool,
}

/// Messages that wait to be put on one topic.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<Waiting>,
    came: Condvar,
    left: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    singles: VecDeque<Single>,
    bytes: usize,
    /// There was no room for one that was waited for, and none since.
    is_flooded: bool,
    is_closed: bool,
}

impl Waiting {
    fn has_room(&self) -> bool {
        self.singles.len() < MOST_SINGLES && self.bytes < MOST_BYTES
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one; whether there was room.
    fn push(&self, single: Single, waits: bool) -> bool {
        let mut state = self.lock();
        if waits && !state.has_room() && !state.is_flooded && !state.is_closed {
            let waited = self.left.wait_timeout_while(state, PATIENCE, |state| {
                !state.has_room() && !state.is_closed
            });
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            state.is_flooded = !state.has_room();
        }
        let has_room = state.has_room() && !state.is_closed;
        if has_room {
            state.bytes += single.len;
            state.singles.push_back(single);
            // Who takes them takes all.
            if state.singles.len() == 1 {
                self.came.notify_one();
            }
        }
        has_room
    }

    /// Waits for some; none: it is closed.
    fn take(&self) -> VecDeque<Single> {
        let state = self.lock();
        let waited = self
            .came
            .wait_while(state, |state| state.singles.is_empty() && !state.is_closed);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        (state.bytes, state.is_flooded) = (0, false);
        let taken = std::mem::take(&mut state.singles);
        self.left.notify_all();
        taken
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.came.notify_all();
        self.left.notify_all();
    }
}

/// Puts messages that come by themselves on a topic, until its queue is closed.
fn put_singles(shared: &Shared, name: &str, made: &Made, queue: &Queue) {
    let carried = shared.metrics.received(name);
    let mut open: Option<Publisher<Any>> = None;
    loop {
        let mut singles = queue.take();
        if singles.is_empty() {
            return;
        }
        while let Some(single) = singles.pop_front() {
            let put = put_single(shared, name, made, &mut open, &single);
            match put {
                Ok(true) => carried.add(1, single.len as u64),
                Ok(false) => {}
                // There is no room, and each of those behind would wait for some as well.
                Err(e) if e.kind() == ErrorKind::TimedOut && shared.stop.is_set() => {
                    queue.close();
                    let left = 1 + singles.len() + queue.take().len();
                    let what = format!("{name}: the bridge ends before there is room");
                    let metrics = &shared.metrics;
                    return metrics.refused_many(Refused::Flood, left as u64, what);
                }
                Err(e) => {
                    let why = match e.kind() {
                        kind if is_of_message(kind) && open.is_some() => Refused::Size,
                        ErrorKind::Mismatch => Refused::Type,
                        ErrorKind::InvalidName => Refused::Name,
                        _ => Refused::Bus,
                    };
                    if why != Refused::Size {
                        open = None;
                    }
                    shared.metrics.refused(why, e);
                }
            }
        }
    }
}

/// Puts one there; `false`: it has been here before.
fn put_single(
    shared: &Shared,
    name: &str,
    made: &Made,
    open: &mut Option<Publisher<Any>>,
    single: &Single,
) -> buslane::Result<bool> {
    let publisher = match open {
        Some(publisher) => publisher,
        None => open.insert(join(shared, name, made)?),
    };
    let from = single
        .note
        .from
        .map_or_else(|| String::from("plain"), |from| from.to_string());
    let envelope = envelope_of(single.note.clone(), &shared.hop(&from));
    if !may_come(shared, &envelope, name) {
        return Ok(false);
    }
    let is_over = || shared.stop.is_set();
    send(publisher, &envelope, &single.payload.to_bytes(), is_over)?;
    Ok(true)
}

fn join(shared: &Shared, name: &str, made: &Made) -> buslane::Result<Publisher<Any>> {
    let builder = || shared.bus.topic_builder(name);
    let there = match &made.carries {
        Some(carries) => builder().create(false).open_described(carries),
        None => builder().create(false).open_any(),
    };
    let topic = match there {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let builder = builder().lossy(made.is_lossy);
            match &made.carries {
                Some(carries) => builder.open_described(carries),
                None => builder.open_any(),
            }
        }
        there => there,
    }?;
    topic.publisher()
}
