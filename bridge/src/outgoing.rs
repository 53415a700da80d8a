//! A topic of the bus, to the network.
//!
//! To another bridge it goes in parcels, each a query whose reply says that all of it is on the other bus. So a topic waits for
//! its own receiver alone, and what was under way when a link was cut is sent again. Of a durable topic each destination has a
//! subscription with a name, which goes on behind what was taken.
//!
//! To plain Zenoh programs, and what is lossy to all, each message goes by itself.

use std::collections::VecDeque;
use std::time::{Duration, Instant, UNIX_EPOCH};

use buslane::{Any, ErrorKind, Frame, PayloadType, Start, Subscriber, Topic};
use crossbeam_channel::{Receiver, Sender, unbounded};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;
use zenoh::Wait;
use zenoh::bytes::{Encoding, ZBytes};
use zenoh::qos::{CongestionControl, Reliability};
use zenoh::query::{ConsolidationMode, Reply};
use zenoh::sample::Locality;

use crate::bridge::{Over, Shared};
use crate::home::BusId;
use crate::metrics::{Carried, Refused};
use crate::note::Note;
use crate::parcel::{self, Answer, Header};
use crate::signals::SLICE;

/// Bytes in a parcel, but for one message that is longer.
pub const PARCEL_BYTES: usize = 512 << 10;
/// Messages in a parcel.
pub const PARCEL_MESSAGES: u32 = 8192;
/// Parcels that are under way at a time.
const UNDER_WAY: usize = 4;
/// Parcels of a durable topic until all are waited for, and the subscription goes on behind them. After a death so many come again at
/// most.
pub const UNTIL_ACK: u32 = 8;
/// How long a parcel's answer is waited for, before it is sent again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before a parcel that failed is sent again: at first, and at most.
const RETRY: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// How long a bridge that ends waits for what it has sent.
const LEAVE: Duration = Duration::from_secs(2);
/// The longest message: Zenoh takes none of more than 1 GiB, with all that goes along.
const LONGEST: usize = (1 << 30) - (2 << 20);

/// Why a thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is wanted no more.
    Over,
    /// The other bus does not want the topic.
    Unwanted,
    /// It failed, which was told.
    Failed,
}

/// Sends a topic to the bus `to`, until it is over.
pub fn to_bridge(shared: &Shared, to: BusId, topic: &str, start: Start, over: &Over) -> End {
    let opened = shared.bus.topic_builder(topic).create(false).open_any();
    let result = opened.and_then(|topic| Stream::open(shared, to, topic, start, over)?.run());
    match result {
        Ok(end) => end,
        // It was removed: no failure, and a new one has a new thread.
        Err(e) if e.kind() == ErrorKind::NotFound => End::Over,
        Err(e) => {
            shared.metrics.refused(Refused::Bus, e);
            End::Failed
        }
    }
}

/// A topic on its way to another bridge.
struct Stream<'a> {
    shared: &'a Shared,
    over: &'a Over,
    to: BusId,
    topic: Topic<Any>,
    start: Start,
    header: Header,
    key: String,
    hops: String,
    /// Which time it is that parcels are sent: answers to what was sent before are not waited for any more.
    attempt: u64,
    under_way: VecDeque<Parcel>,
    answers: (Sender<Answered>, Receiver<Answered>),
    carried: Carried,
}

/// A parcel that was not taken yet.
struct Parcel {
    number: u64,
    payload: ZBytes,
    ended: bool,
    messages: u64,
    bytes: u64,
}

/// What came back for a parcel: `None`, nothing that could be read.
struct Answered {
    attempt: u64,
    number: u64,
    answer: Option<Answer>,
}

/// What is under way for one attempt of one parcel. When Zenoh drops it, there is no (other) answer.
struct Waiting {
    told: Sender<Answered>,
    attempt: u64,
    number: u64,
    is_answered: bool,
}

impl Waiting {
    fn hear(&mut self, reply: &Reply) {
        let read = reply
            .result()
            .ok()
            .and_then(|sample| Answer::read(&sample.payload().to_bytes()));
        self.tell(read);
    }

    fn tell(&mut self, answer: Option<Answer>) {
        if !self.is_answered {
            self.is_answered = true;
            let Self {
                attempt, number, ..
            } = *self;
            // Nobody waits any more when the thread has ended.
            let _ = self.told.send(Answered {
                attempt,
                number,
                answer,
            });
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.tell(None);
    }
}

/// What to do after an answer.
enum Next {
    On,
    Again,
    End(End),
}

impl<'a> Stream<'a> {
    fn open(
        shared: &'a Shared,
        to: BusId,
        topic: Topic<Any>,
        start: Start,
        over: &'a Over,
    ) -> buslane::Result<Self> {
        let name = topic.name().to_owned();
        let source = topic.is_durable().then(|| {
            let mut hash = Xxh3::new();
            hash.update(&shared.home.id.0);
            hash.update(&shared.home.boot.to_le_bytes());
            let made = topic
                .made_at()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            hash.update(&made.as_nanos().to_le_bytes());
            hash.update(name.as_bytes());
            hash.digest()
        });
        Ok(Self {
            shared,
            over,
            to,
            start,
            header: Header {
                from: shared.home.id,
                stream: Uuid::new_v4().as_u64_pair().0,
                number: 0,
                oldest: 0,
                source,
                ended: false,
                topic: name.clone(),
                carries: topic.carries(),
            },
            topic,
            key: shared.space.own(&format!("{to}/deliver")),
            hops: shared.hops(),
            attempt: 0,
            under_way: VecDeque::new(),
            answers: unbounded(),
            carried: shared.metrics.sent(&name),
        })
    }

    fn run(mut self) -> buslane::Result<End> {
        // An empty one first: whether the topic is wanted there.
        self.send(Vec::new(), 0, 0, false);
        while !self.under_way.is_empty() {
            if self.is_over() {
                return Ok(End::Over);
            }
            if let Some(end) = self.hear() {
                return Ok(end);
            }
        }
        let mut subscriber = match self.topic.is_durable() {
            // The first time, with all that is kept.
            true => self
                .topic
                .subscription_builder(&format!("zenoh/{}/{}", self.shared.space.prefix(), self.to))
                .start(Start::Oldest)
                .by_ack(true)
                .open()?,
            false => self.topic.subscriber_from(self.start)?,
        };
        let end = self.carry(&mut subscriber)?;
        let left: u64 = self.under_way.iter().map(|parcel| parcel.messages).sum();
        self.shared.metrics.unacknowledged.dec_by(left as i64);
        if !self.topic.is_durable() {
            let what = format!(
                "the bridge of {} has gone, and what was under way to it is lost",
                self.to
            );
            self.shared.metrics.refused_many(Refused::Gone, left, what);
        }
        Ok(end)
    }

    fn carry(&mut self, subscriber: &mut Subscriber<Any>) -> buslane::Result<End> {
        let mut unacked = 0;
        loop {
            if self.is_over() {
                return self.leave(subscriber);
            }
            let is_durable = self.topic.is_durable();
            if self.under_way.is_empty() && unacked > 0 {
                if is_durable {
                    subscriber.ack()?;
                }
                unacked = 0;
            }
            let may_read =
                self.under_way.len() < UNDER_WAY && !(is_durable && unacked >= UNTIL_ACK);
            if may_read {
                let patience = if self.under_way.is_empty() {
                    SLICE
                } else {
                    Duration::ZERO
                };
                if self.read(subscriber, patience)? {
                    unacked += 1;
                    continue;
                }
            }
            if !self.under_way.is_empty()
                && let Some(end) = self.hear()
            {
                return Ok(end);
            }
        }
    }

    /// Waits a little for what is under way; what is taken by then does not come again.
    fn leave(&mut self, subscriber: &mut Subscriber<Any>) -> buslane::Result<End> {
        let until = Instant::now() + LEAVE;
        while !self.under_way.is_empty() {
            let Ok(answered) = self.answers.1.recv_deadline(until) else {
                return Ok(End::Over);
            };
            if answered.attempt != self.attempt {
                continue;
            }
            if !matches!(self.take(answered), Next::On) {
                return Ok(End::Over);
            }
        }
        subscriber.ack()?;
        Ok(End::Over)
    }

    fn is_over(&self) -> bool {
        self.shared.stop.is_set() || self.over.get().is_some()
    }

    /// Sends what there is, after waiting for the first message at most so long; whether there was anything to be acknowledged.
    fn read(
        &mut self,
        subscriber: &mut Subscriber<Any>,
        patience: Duration,
    ) -> buslane::Result<bool> {
        let mut gathered = Gathered::default();
        let mut patience = Some(patience);
        while gathered.bytes.len() < PARCEL_BYTES && gathered.looked_at < PARCEL_MESSAGES {
            let next = match patience.take() {
                Some(patience) => subscriber.recv_timeout(patience),
                None => subscriber.try_recv(),
            };
            match next {
                Ok(Some(frame)) => self.gather(&frame, &mut gathered),
                Ok(None) => break,
                Err(e) if e.kind() == ErrorKind::Ended => {
                    gathered.ended = true;
                    break;
                }
                Err(e) => self.note(e)?,
            }
        }
        let Gathered {
            bytes,
            messages,
            payload,
            looked_at,
            not_returned,
            ended,
        } = gathered;
        self.shared.metrics.not_returned.inc_by(not_returned);
        if messages > 0 || ended {
            self.send(bytes, messages, payload, ended);
        }
        Ok(looked_at > 0 || ended)
    }

    fn gather(&self, frame: &Frame<'_, Any>, gathered: &mut Gathered) {
        gathered.looked_at += 1;
        let metrics = &self.shared.metrics;
        if came_by(frame, &self.hops) {
            gathered.not_returned += 1;
            return;
        }
        if frame.len() > LONGEST {
            let (topic, len) = (self.topic.name(), frame.len());
            metrics.refused(
                Refused::Size,
                format!("{topic}: a message of {len} bytes is more than Zenoh takes"),
            );
            return;
        }
        if gathered.bytes.capacity() == 0 {
            gathered.bytes.reserve(self.room());
        }
        let envelope = frame.envelope();
        let place = self.header.source.map(|_| (frame.lane(), frame.sequence()));
        parcel::pack(&mut gathered.bytes, envelope.as_ref(), frame, place);
        gathered.messages += 1;
        gathered.payload += frame.len() as u64;
    }

    /// How much to reserve: as much as the last parcel had, if that is not known to be little.
    fn room(&self) -> usize {
        self.under_way
            .back()
            .map_or(0, |parcel| parcel.payload.len() + parcel.payload.len() / 8)
    }

    /// What went wrong on the bus: whether it can go on.
    fn note(&self, e: buslane::Error) -> buslane::Result<()> {
        note_trouble(self.shared, self.topic.name(), e)
    }

    fn send(&mut self, bytes: Vec<u8>, messages: u64, payload: u64, ended: bool) {
        let parcel = Parcel {
            number: self.header.number,
            payload: bytes.into(),
            ended,
            messages,
            bytes: payload,
        };
        self.header.number += 1;
        self.shared.metrics.unacknowledged.inc_by(messages as i64);
        self.under_way.push_back(parcel);
        self.post(self.under_way.len() - 1);
    }

    /// Sends a parcel that is under way.
    fn post(&self, at: usize) {
        let parcel = &self.under_way[at];
        let header = Header {
            number: parcel.number,
            oldest: self.under_way[0].number,
            ended: parcel.ended,
            ..self.header.clone()
        };
        let mut waiting = Waiting {
            told: self.answers.0.clone(),
            attempt: self.attempt,
            number: parcel.number,
            is_answered: false,
        };
        let sent = self
            .shared
            .session
            .get(&self.key)
            .payload(parcel.payload.clone())
            .attachment(header.to_bytes())
            .congestion_control(CongestionControl::Block)
            // What is alone does not wait for company.
            .express(self.under_way.len() == 1)
            .consolidation(ConsolidationMode::None)
            .allowed_destination(Locality::Remote)
            .timeout(PATIENCE)
            .callback_mut(move |reply| waiting.hear(&reply))
            .wait();
        if let Err(e) = sent {
            self.shared
                .metrics
                .refused(Refused::Zenoh, format!("cannot send to {}: {e}", self.to));
        }
    }

    /// Waits for an answer to what was sent last, and does what it says.
    fn hear(&mut self) -> Option<End> {
        let next = match self.answer() {
            Some(answered) => self.take(answered),
            None if self.is_over() => Next::On,
            None => Next::Again,
        };
        match next {
            Next::On => None,
            Next::Again => self.again(),
            Next::End(end) => Some(end),
        }
    }

    /// The next answer to what was sent last. `None`: there is none for longer than Zenoh waits for one, or it is over.
    fn answer(&self) -> Option<Answered> {
        // Zenoh tells when it waits no more; a little later this does not wait for that either.
        let until = Instant::now() + PATIENCE + SLICE;
        while !self.is_over() && Instant::now() < until {
            match self.answers.1.recv_timeout(SLICE) {
                Ok(answered) if answered.attempt == self.attempt => return Some(answered),
                _ => {}
            }
        }
        None
    }

    fn take(&mut self, answered: Answered) -> Next {
        let Answered { number, answer, .. } = answered;
        match answer {
            Some(Answer::Taken) => {
                self.pass(number);
                Next::On
            }
            Some(Answer::From(number)) => {
                if let Some(before) = number.checked_sub(1) {
                    self.pass(before);
                }
                Next::Again
            }
            Some(Answer::Unwanted) => Next::End(End::Unwanted),
            Some(Answer::Refused(why)) => {
                let what = format!(
                    "{}: the bridge of {} can't take it: {why}; it is kept, and sent again",
                    self.topic.name(),
                    self.to
                );
                self.shared.metrics.refused(Refused::Held, what);
                Next::Again
            }
            None => Next::Again,
        }
    }

    /// All up to this one are taken.
    fn pass(&mut self, number: u64) {
        while let Some(parcel) = self.under_way.front()
            && parcel.number <= number
        {
            self.carried.add(parcel.messages, parcel.bytes);
            self.shared
                .metrics
                .unacknowledged
                .dec_by(parcel.messages as i64);
            self.under_way.pop_front();
        }
    }

    /// Sends all that is under way once more, in its order, when it has waited a little longer than the last time.
    fn again(&mut self) -> Option<End> {
        let mut pause = RETRY[0];
        loop {
            self.attempt += 1;
            if self.shared.stop.wait(pause) || self.is_over() {
                return Some(End::Over);
            }
            let first = self.under_way.front()?.number;
            self.shared.metrics.resent.inc();
            // The first alone: when it is taken, the way is free.
            self.post(0);
            let answered = self.answer();
            if let Some(Next::End(end)) = answered.map(|answered| self.take(answered)) {
                return Some(end);
            }
            if self.under_way.front().map(|parcel| parcel.number) != Some(first) {
                break;
            }
            pause = (pause * 2).min(RETRY[1]);
        }
        for at in 0..self.under_way.len() {
            self.post(at);
        }
        None
    }
}

/// Messages for a parcel.
#[derive(Default)]
struct Gathered {
    bytes: Vec<u8>,
    messages: u64,
    /// Bytes of payload.
    payload: u64,
    /// Messages that were looked at, also those that do not go there.
    looked_at: u32,
    /// Messages that came from this network: they do not go there again.
    not_returned: u64,
    ended: bool,
}

/// Whether it came through this network; one whose prefix goes on where this one's ends is another.
fn came_by(frame: &Frame<'_, Any>, hops: &str) -> bool {
    let is_of_this = |hop: &str| hop.strip_prefix(hops).is_some_and(|bus| !bus.contains('/'));
    let envelope = frame.came_by(hops).then(|| frame.envelope()).flatten();
    envelope.is_some_and(|envelope| envelope.trace().any(is_of_this))
}

/// What went wrong with a subscriber: an error if it can't go on.
fn note_trouble(shared: &Shared, topic: &str, e: buslane::Error) -> buslane::Result<()> {
    match e.kind() {
        ErrorKind::Lost => {
            shared
                .metrics
                .lost(topic, e.lost().map_or(0, |lost| lost.messages));
            Ok(())
        }
        ErrorKind::Corrupt => {
            shared.metrics.refused(Refused::Bus, e);
            Ok(())
        }
        _ => Err(e),
    }
}

/// Sends each message of a topic by itself, until it is over.
pub fn to_plain(shared: &Shared, topic: &str, over: &Over) -> End {
    let opened = shared.bus.topic_builder(topic).create(false).open_any();
    match opened.and_then(|topic| publish(shared, &topic, over)) {
        Ok(end) => end,
        Err(e) if e.kind() == ErrorKind::NotFound => End::Over,
        Err(e) => {
            shared.metrics.refused(Refused::Bus, e);
            End::Failed
        }
    }
}

fn publish(shared: &Shared, topic: &Topic<Any>, over: &Over) -> buslane::Result<End> {
    let (hops, is_lossy) = (shared.hops(), topic.is_lossy());
    let (reliability, congestion) = match is_lossy {
        true => (Reliability::BestEffort, CongestionControl::Drop),
        false => (Reliability::Reliable, CongestionControl::Block),
    };
    let failed = |e: zenoh::Error| {
        shared.metrics.refused(
            Refused::Zenoh,
            format!("cannot publish {}: {e}", topic.name()),
        );
        Ok(End::Failed)
    };
    let publisher = shared
        .session
        .declare_publisher(shared.space.key(topic.name()))
        .reliability(reliability)
        .congestion_control(congestion)
        .encoding(encoding(&topic.carries()))
        .allowed_destination(Locality::Remote)
        .wait();
    let publisher = match publisher {
        Ok(publisher) => publisher,
        Err(e) => return failed(e),
    };
    let carried = shared.metrics.sent(topic.name());
    let mut subscriber = topic.subscriber()?;
    while !shared.stop.is_set() && over.get().is_none() {
        let frame = match subscriber.recv_timeout(SLICE) {
            Ok(Some(frame)) => frame,
            Ok(None) => continue,
            Err(e) if e.kind() == ErrorKind::Ended => continue,
            Err(e) => {
                note_trouble(shared, topic.name(), e)?;
                continue;
            }
        };
        if came_by(&frame, &hops) {
            shared.metrics.not_returned.inc();
            continue;
        }
        let len = frame.len() as u64;
        let note = Note {
            envelope: frame.envelope(),
            from: Some(shared.home.id),
            is_copy: !is_lossy,
            ..Note::default()
        };
        let sent = publisher.put(&frame[..]).attachment(note.to_bytes()).wait();
        drop(frame);
        match sent {
            Ok(()) => carried.add(1, len),
            Err(e) => return failed(e),
        }
    }
    Ok(End::Over)
}

/// The encoding of what a topic carries: bytes, or bytes of a type, whose description is the schema.
fn encoding(carries: &PayloadType) -> Encoding {
    if *carries == PayloadType::bytes() {
        return Encoding::ZENOH_BYTES;
    }
    let (version, size, align) = (
        carries.version(),
        carries.size().unwrap_or(0),
        carries.align(),
    );
    Encoding::ZENOH_BYTES.with_schema(format!("{};{version};{size};{align}", carries.name()))
}

/// What a topic carries whose messages have this encoding, if it says so.
pub fn carried_by(encoding: &Encoding) -> Option<PayloadType> {
    let text = encoding.to_string();
    let schema = text.strip_prefix(&format!("{};", Encoding::ZENOH_BYTES))?;
    let mut parts = schema.rsplitn(4, ';');
    let (align, size, version) = (parts.next()?, parts.next()?, parts.next()?);
    let (align, size) = (align.parse::<usize>().ok()?, size.parse::<usize>().ok()?);
    let carries = PayloadType::new(
        parts.next()?,
        version.parse().ok()?,
        (size != 0).then_some(size),
        align,
    );
    align.is_power_of_two().then_some(carries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoding_says_what_a_topic_carries() {
        let carries = PayloadType::new("shop;Order", 3, Some(24), 8);
        assert_eq!(carried_by(&encoding(&carries)), Some(carries));
        assert_eq!(encoding(&PayloadType::bytes()), Encoding::ZENOH_BYTES);
        for other in [
            Encoding::ZENOH_BYTES,
            Encoding::TEXT_PLAIN,
            "zenoh/bytes;x;y;z;3".into(),
        ] {
            assert_eq!(carried_by(&other), None, "{other}");
        }
    }
}
