//! What everybody does with a bus, on one whose files lie: each call ends, with whatever result.

use std::time::Duration;

use buslane::shm::adversary;
use buslane::{
    Bus, CallOptions, Consumer, DeadLetter, Delivery, Envelope, Error, ErrorKind, Keep, Kind,
    Origin, Producer, Publisher, Result, Start, StateReader, StateWriter, Subscriber, SyncPolicy,
    Watch,
};

use crate::files::{Files, LOADS};
use crate::memory::{byte, read};

/// Bytes in a lane.
const CAPACITY: usize = 4096;
const PAYLOAD: [u8; CAPACITY] = [0x5a; CAPACITY];
/// As many are received in one go, at most.
const MANY: usize = 300;

/// Calls the library, which ends; what went wrong says so.
fn call<T>(call: impl FnOnce() -> Result<T>) -> Option<T> {
    adversary::limit(LOADS);
    let result = call();
    adversary::limit(u64::MAX);
    result.map_err(|e| said(&e)).ok()
}

fn said(e: &Error) {
    assert!(!e.to_string().is_empty());
}

fn is_over(e: &Error) -> bool {
    said(e);
    !matches!(e.kind(), ErrorKind::Lost | ErrorKind::Ended)
}

/// An envelope in which everything is said.
fn full() -> Envelope {
    let origin = Origin {
        by: 1,
        lane: 2,
        sequence: 3,
        part: 4,
    };
    Envelope::new(Kind::Event)
        .of_type("a.Type")
        .sent_now()
        .sent_by("sender")
        .passed_on_by("one")
        .passed_on_by("two")
        .made_from(origin)
}

/// All that an envelope says.
pub fn look_at(envelope: &Envelope) {
    let _ = (
        envelope.kind(),
        envelope.type_name(),
        envelope.sent(),
        envelope.time_left(),
    );
    let _ = (
        envelope.sender(),
        envelope.origin(),
        envelope.trace_parent(),
    );
    let _ = (
        envelope.trace().count(),
        envelope.hops(),
        envelope.reply_to(),
    );
    let mut bytes = Vec::new();
    let passed_on = envelope
        .clone()
        .passed_on_by("x")
        .sent_by("other")
        .of_type("other");
    passed_on.encode_into(&mut bytes);
    let _ = Envelope::decode(&bytes);
}

fn inspect(bus: &Bus, name: &str) {
    let Some(report) = call(|| bus.inspect(name)) else {
        return;
    };
    adversary::limit(LOADS);
    let seen = report.tail(usize::from(byte()));
    adversary::limit(u64::MAX);
    for message in &seen {
        read(&message.payload);
        message.envelope.iter().for_each(look_at);
    }
    assert!(format!("{report:?}").len() < 1 << 20);
    let _ = (
        report.messages(),
        report.lag(),
        report.owners(),
        report.waits().count(),
    );
    let _ = (
        report.unacked(),
        report.lost(),
        report.sleepers(),
        report.waiting(),
    );
}

/// Receives what is there.
fn receive(subscriber: &mut Subscriber) {
    for _ in 0..MANY {
        adversary::limit(LOADS);
        match subscriber.try_recv() {
            Ok(Some(frame)) => {
                read(&frame);
                frame.envelope().iter().for_each(look_at);
                let _ = frame.came_by("one");
            }
            Ok(None) => break,
            Err(e) if is_over(&e) => break,
            Err(_) => {}
        }
    }
    adversary::limit(u64::MAX);
}

fn receive_batch(subscriber: &mut Subscriber) {
    call(|| {
        if let Some(batch) = subscriber.try_recv_batch(MANY)? {
            batch.iter().for_each(read);
        }
        Ok(())
    });
}

fn start() -> Start {
    match byte() % 4 {
        0 | 1 => Start::Now,
        2 => Start::Oldest,
        _ => Start::Last(3),
    }
}

fn send(publisher: &mut Publisher, how: u8) {
    let len = usize::from(byte()) * [1, 6][usize::from(how & 1)];
    call(|| match how & 6 {
        0 => publisher.try_send(&PAYLOAD[..len]),
        2 => publisher.try_send_with(&full(), &PAYLOAD[..len]),
        4 => {
            let mut loan = publisher.try_loan(len)?;
            loan.fill(1);
            match len {
                7 => std::mem::forget(loan),
                8 => drop(loan),
                _ => loan.commit(),
            }
            Ok(())
        }
        _ => publisher.wait_delivered(Some(Duration::ZERO)),
    });
}

// ---------------------------------------------------------------------------------------------- publish, subscribe

/// A lossless topic `t`, and a lossy one `l`.
pub struct Topics(Files);

impl Topics {
    pub fn new() -> Self {
        Self(Files::new(Bus::builder(), |bus| {
            ["t", "l"].map(|name| {
                let topic = bus
                    .topic_builder(name)
                    .capacity(CAPACITY)
                    .lossy(name == "l");
                let topic = topic.open().unwrap();
                let mut publisher = topic.publisher().unwrap();
                let mut subscribers = [(); 2].map(|()| topic.subscriber().unwrap());
                for n in 0..30 {
                    let len = n * 7 % 90;
                    match n % 5 {
                        0 => publisher.try_send_with(&full(), &PAYLOAD[..len]).unwrap(),
                        _ => publisher.try_send(&PAYLOAD[..len]).unwrap(),
                    }
                    if n % 2 == 0 {
                        drop(subscribers[0].try_recv());
                    }
                }
                (publisher, subscribers)
            })
        }))
    }
}

/// Publishes and subscribes.
pub fn topic(topics: &mut Topics) {
    topics.0.restore();
    let bus = topics.0.bus();
    let name = ["t", "l"][usize::from(byte() & 1)];
    topics.0.cut();
    let opened = call(|| bus.topic_builder(name).create(false).open());
    let (mut subscriber, mut publisher) = (None, None);
    while let Some(op) = adversary::byte() {
        match (op % 10, &opened) {
            (0, Some(topic)) => subscriber = call(|| topic.subscriber_from(start())),
            (1, Some(topic)) => subscriber = call(|| topic.lossy_subscriber(start())),
            (2, Some(topic)) => publisher = call(|| topic.publisher()),
            (3 | 4, _) => subscriber.as_mut().map_or((), receive),
            (5, _) => subscriber.as_mut().map_or((), receive_batch),
            (6 | 7, _) => {
                if let Some(publisher) = &mut publisher {
                    send(publisher, op / 10);
                }
            }
            (8, _) => match op / 10 {
                0 => inspect(&bus, name),
                1 => call(|| bus.reclaim()).map_or((), drop),
                2 => (subscriber, publisher) = (None, None),
                3 => {
                    let presence = opened.as_ref().map(|topic| topic.presence());
                    if let Some(Ok(mut presence)) = presence {
                        call(|| presence.subscribers());
                        call(|| presence.publishers());
                    }
                }
                4 => call(|| bus.topics()).map_or((), drop),
                _ => call(|| subscriber.as_mut().map_or(Ok(0), |s| s.publisher_count()))
                    .map_or((), drop),
            },
            _ => topics.0.scribble(),
        }
    }
    end(move || drop((subscriber, publisher)));
}

/// Observes, while all is taken away and written over that is observed.
pub fn observed(topics: &mut Topics) {
    topics.0.restore();
    topics.0.cut();
    let name = ["t", "l"][usize::from(byte() & 1)];
    let Some(bus) = call(|| Bus::observe(topics.0.path())) else {
        return;
    };
    let opened = call(|| bus.topic(name));
    let mut subscriber = None;
    while let Some(op) = adversary::byte() {
        match (op % 8, &opened) {
            (0, Some(topic)) => subscriber = call(|| topic.subscriber_from(start())),
            (1..=4, _) => subscriber.as_mut().map_or((), receive),
            (5, _) => subscriber.as_mut().map_or((), receive_batch),
            (6, _) => inspect(&bus, name),
            _ => topics.0.cut(),
        }
    }
    end(move || drop(subscriber));
}

/// What is dropped is put away.
fn end(drop: impl FnOnce()) {
    adversary::limit(LOADS);
    drop();
    adversary::limit(u64::MAX);
}

// ----------------------------------------------------------------------------------------------------- all headers

/// A bus with a topic, a queue and a state, which is opened each time.
pub struct Buses(Files);

impl Buses {
    pub fn new() -> Self {
        Self(Files::new(Bus::builder(), |bus| {
            let topic = bus.topic_builder("t").capacity(CAPACITY).open().unwrap();
            let queue = bus.queue_builder("q").capacity(CAPACITY).open().unwrap();
            let state = bus.state_builder("s").keys(4).max_value(32).open().unwrap();
            let mut all = (
                topic.publisher().unwrap(),
                topic.subscriber().unwrap(),
                queue.producer().unwrap(),
                queue.consumer().unwrap(),
                state.writer().unwrap(),
            );
            all.0.send(b"message").unwrap();
            all.2.push(b"message").unwrap();
            all.4.set(b"key", b"value").unwrap();
            all
        }))
    }
}

/// Opens it, and everything in it.
pub fn bus(buses: &mut Buses) {
    buses.0.restore();
    buses.0.cut();
    let path = buses.0.path();
    let reclaims = byte() & 1 == 0;
    // What was removed is made anew.
    let builder = Bus::builder().capacity(CAPACITY).reclaim(reclaims);
    let Some(bus) = call(|| builder.at(&path)) else {
        return;
    };
    while let Some(op) = adversary::byte() {
        match op % 10 {
            0 => call(|| bus.members()).map_or((), drop),
            1 => call(|| bus.reclaim()).map_or((), drop),
            2 => ["t", "q", "s"]
                .into_iter()
                .for_each(|name| inspect(&bus, name)),
            3 => {
                call(|| {
                    let topic = bus.topic_builder("t").open_any()?;
                    let mut subscriber = topic.subscriber_from(start())?;
                    let _ = subscriber.try_recv()?.map(|frame| read(&frame));
                    topic.publisher().map(drop)
                });
            }
            4 => {
                call(|| {
                    let queue = bus.queue_builder("q").open()?;
                    queue.producer()?.try_push(b"more")?;
                    queue.consumer()?.try_recv()?.map_or(Ok(()), Delivery::ack)
                });
            }
            5 => {
                call(|| {
                    let state = bus.state("s")?;
                    state.writer()?.set(b"key", b"1")?;
                    state.reader()?.get(b"key").map(drop)
                });
            }
            6 => call(|| bus.topics()).map_or((), drop),
            7 => {
                call(|| bus.remove_topic(["t", "q", "s"][usize::from(byte() % 3)], true));
            }
            8 => {
                call(|| bus.queue("q")?.remove_group("default", true));
            }
            _ => buses.0.scribble(),
        }
    }
    end(move || drop(bus));
}

// ---------------------------------------------------------------------------------------------------------- queues

/// A queue `q`, with what was put off, and what is dead.
pub struct Queues(Files);

impl Queues {
    pub fn new() -> Self {
        Self(Files::new(Bus::builder(), |bus| {
            bus.topic("t").unwrap();
            let queue = bus.queue_builder("q").capacity(CAPACITY).open().unwrap();
            let mut producer = queue.producer().unwrap();
            let mut consumers = ["default", "other"]
                .map(|group| queue.consumer_builder().group(group).open().unwrap());
            for n in 0..30_usize {
                match n % 5 {
                    0 => producer.try_push_with(&full(), &PAYLOAD[..n]).unwrap(),
                    _ => producer.try_push(&PAYLOAD[..n * 3]).unwrap(),
                }
            }
            let mut held = Vec::new();
            for consumer in &mut consumers {
                consumer.recv().unwrap().retry(Duration::ZERO).unwrap();
                let later = Duration::from_secs(1 << 30);
                consumer.recv().unwrap().retry(later).unwrap();
                consumer.recv().unwrap().reject("no").unwrap();
                consumer.recv().unwrap().ack().unwrap();
                held.push(consumer.recv().unwrap());
            }
            (producer, consumers, held)
        }))
    }
}

fn finish(delivery: Delivery, how: u8) {
    read(&delivery);
    delivery.envelope().iter().for_each(look_at);
    if let Ok(letter) = DeadLetter::parse(&delivery) {
        read(letter.payload);
        let _ = DeadLetter::parse(&letter.to_bytes());
    }
    call(|| match how % 5 {
        0 | 1 => delivery.ack(),
        2 => delivery.retry(Duration::ZERO),
        3 => delivery.reject("no"),
        _ => {
            drop(delivery);
            Ok(())
        }
    });
}

/// Pushes and consumes.
pub fn queue(queues: &mut Queues) {
    queues.0.restore();
    let bus = queues.0.bus();
    queues.0.cut();
    let name = ["q", "q", "q.default.retry", "q.dead"][usize::from(byte() % 4)];
    let queue = call(|| bus.queue_builder(name).create(false).open());
    let mut consumer: Option<Consumer> = None;
    let mut producer: Option<Producer> = None;
    let mut held: Vec<Delivery> = Vec::new();
    while let Some(op) = adversary::byte() {
        match (op % 10, &queue) {
            (0 | 1, Some(queue)) => {
                let group = ["default", "other", "new"][usize::from(byte() % 3)];
                let mut builder = queue.consumer_builder().group(group);
                if op & 0x40 != 0 {
                    builder = builder.lease(Duration::from_nanos(1)).max_attempts(2);
                }
                consumer = call(|| builder.open());
            }
            (2, Some(queue)) => producer = call(|| queue.producer()),
            (3 | 4, _) => {
                for _ in 0..MANY {
                    let Some(taken) =
                        call(|| consumer.as_mut().map_or(Ok(None), Consumer::try_recv)).flatten()
                    else {
                        break;
                    };
                    match op & 0x10 {
                        0 => finish(taken, op >> 5),
                        _ => held.push(taken),
                    }
                }
            }
            (5, _) => {
                if let Some(batch) = call(|| {
                    consumer
                        .as_mut()
                        .map_or(Ok(None), |c| c.try_recv_batch(MANY))
                })
                .flatten()
                {
                    batch.iter().for_each(read);
                    call(|| batch.ack_all());
                }
            }
            (6, _) => {
                let len = usize::from(byte());
                if let Some(producer) = &mut producer {
                    call(|| match op & 0x10 {
                        0 => producer.try_push(&PAYLOAD[..len]),
                        _ => producer.try_push_with(&full(), &PAYLOAD[..len]),
                    });
                    call(|| producer.consumer_count());
                }
            }
            (7, _) => held.pop().map_or((), |delivery| finish(delivery, op / 10)),
            (8, _) => match op / 10 {
                0 => inspect(&bus, name),
                1 => call(|| bus.reclaim()).map_or((), drop),
                2 => consumer = None,
                3 => {
                    call(|| consumer.as_mut().map_or(Ok(true), Consumer::is_empty)).map_or((), drop)
                }
                4 => call(|| {
                    queue
                        .as_ref()
                        .map_or(Ok(()), |q| q.remove_group("other", true))
                })
                .map_or((), drop),
                _ => producer = None,
            },
            _ => queues.0.scribble(),
        }
    }
    end(move || drop((held, consumer, producer)));
}

// ---------------------------------------------------------------------------------------------------------- states

/// A state `s` with two writers.
pub struct States(Files);

impl States {
    pub fn new() -> Self {
        Self(Files::new(Bus::builder(), |bus| {
            bus.topic("t").unwrap();
            let state = bus.state_builder("s").keys(8).max_key(12).max_value(40);
            let state = state.open().unwrap();
            [1_u8, 2].map(|n| {
                let mut writer = state.writer().unwrap();
                for key in 0..3 {
                    writer
                        .set(&[b'k', key * n], &PAYLOAD[..usize::from(n) * 10])
                        .unwrap();
                }
                writer
            })
        }))
    }
}

/// Sets, gets and watches.
pub fn state(states: &mut States) {
    states.0.restore();
    let bus = states.0.bus();
    states.0.cut();
    let Some(state) = call(|| bus.state_builder("s").create(false).open()) else {
        return;
    };
    let mut writer: Option<StateWriter> = None;
    let mut reader: Option<StateReader> = None;
    let mut watch: Option<Watch> = None;
    while let Some(op) = adversary::byte() {
        let key = [b'k', op >> 4];
        match op % 10 {
            0 => writer = call(|| state.writer()),
            1 => reader = call(|| state.reader()),
            2 => {
                let only = [None, Some(&key[..])][usize::from(byte() & 1)];
                watch = reader
                    .as_ref()
                    .and_then(|reader| call(|| reader.watch(only)));
            }
            3 | 4 => {
                let len = usize::from(byte() % 44);
                if let Some(writer) = &mut writer {
                    call(|| writer.set(&key, &PAYLOAD[..len]));
                }
            }
            5 => {
                if let Some(reader) = &mut reader {
                    call(|| reader.get(&key).map(|value| value.map_or((), read)));
                }
            }
            6 => {
                if let Some(reader) = &mut reader {
                    call(|| {
                        let entries = reader.entries()?;
                        assert!(entries.take(1000).count() < 100);
                        Ok(())
                    });
                }
            }
            7 => {
                if let Some(watch) = &mut watch {
                    for _ in 0..MANY {
                        if call(|| Ok(watch.try_recv()?.map(|(_, value)| read(value))))
                            .flatten()
                            .is_none()
                        {
                            break;
                        }
                    }
                }
            }
            8 => match op / 10 {
                0 => inspect(&bus, "s"),
                1 => call(|| bus.reclaim()).map_or((), drop),
                2 => writer = None,
                _ => watch = None,
            },
            _ => states.0.scribble(),
        }
    }
    end(move || drop((writer, watch, reader)));
}

// --------------------------------------------------------------------------------------------------------- durable

/// A durable bus with a topic `t` and a queue `q`, of several files each.
pub struct Durables(Files);

impl Durables {
    pub fn new() -> Self {
        Self(Files::new(Bus::builder().durable(true), |bus| {
            let topic = bus.topic_builder("t").capacity(CAPACITY).open().unwrap();
            let named = topic.subscription("n").unwrap();
            let mut publisher = topic.publisher().unwrap();
            let kept = bus.topic_builder("k").capacity(CAPACITY);
            let kept = kept
                .keep(Keep::Bytes(CAPACITY as u64))
                .sync(SyncPolicy::EachMessage);
            let mut kept = kept.open().unwrap().publisher().unwrap();
            let queue = bus.queue_builder("q").capacity(CAPACITY).open().unwrap();
            let mut producer = queue.producer().unwrap();
            let mut consumer = queue.consumer().unwrap();
            for n in 0..60 {
                let len = n * 7 % 300;
                match n % 5 {
                    0 => publisher.send_with(&full(), &PAYLOAD[..len]).unwrap(),
                    _ => publisher.send(&PAYLOAD[..len]).unwrap(),
                }
                kept.send(&PAYLOAD[..len]).unwrap();
                producer.push(&PAYLOAD[..len]).unwrap();
            }
            publisher.sync().unwrap();
            let held: Vec<Delivery> = (0..3).map(|_| consumer.recv().unwrap()).collect();
            (named, publisher, kept, producer, consumer, held)
        }))
    }
}

/// Recovers, and goes on.
pub fn durable(durables: &mut Durables) {
    durables.0.restore();
    durables.0.cut();
    let path = durables.0.path();
    let Some(bus) = call(|| Bus::builder().durable(true).at(&path)) else {
        return;
    };
    let name = ["t", "k"][usize::from(byte() & 1)];
    let topic = call(|| bus.topic_builder(name).create(false).open());
    let queue = call(|| bus.queue_builder("q").create(false).open());
    let (mut subscriber, mut publisher, mut consumer) = (None, None, None);
    while let Some(op) = adversary::byte() {
        match (op % 12, &topic, &queue) {
            (0, Some(topic), _) => {
                let builder = topic.subscription_builder(["n", "new"][usize::from(byte() & 1)]);
                let builder = builder.by_ack(op & 0x40 != 0).start(start());
                subscriber = call(|| builder.open());
            }
            (1, Some(topic), _) => subscriber = call(|| topic.subscriber_from(start())),
            (2, Some(topic), _) => publisher = call(|| topic.publisher()),
            (3, ..) => subscriber.as_mut().map_or((), receive),
            (4, ..) => {
                if let Some(subscriber) = &mut subscriber {
                    receive_batch(subscriber);
                    call(|| subscriber.ack());
                    call(|| subscriber.skip_damaged());
                }
            }
            (5, ..) => {
                if let Some(publisher) = &mut publisher {
                    send(publisher, op / 12);
                }
            }
            (6, ..) => call(|| publisher.as_ref().map_or(Ok(()), Publisher::sync)).map_or((), drop),
            (7, _, Some(queue)) => consumer = call(|| queue.consumer()),
            (8, ..) => {
                for _ in 0..MANY {
                    let Some(taken) =
                        call(|| consumer.as_mut().map_or(Ok(None), Consumer::try_recv)).flatten()
                    else {
                        break;
                    };
                    finish(taken, op / 12);
                }
                call(|| consumer.as_mut().map_or(Ok(0), Consumer::skip_damaged));
            }
            (9, ..) => match op / 12 {
                0 => inspect(&bus, name),
                1 => inspect(&bus, "q"),
                2 => call(|| bus.verify(name)).map_or((), drop),
                3 => call(|| bus.verify("q")).map_or((), drop),
                4 => call(|| bus.reclaim()).map_or((), drop),
                5 => (subscriber, publisher, consumer) = (None, None, None),
                _ => call(|| {
                    topic
                        .as_ref()
                        .map_or(Ok(()), |t| t.remove_subscription("n"))
                })
                .map_or((), drop),
            },
            (10, _, Some(queue)) => {
                call(|| queue.producer()?.try_push(&PAYLOAD[..usize::from(op)]));
            }
            _ => durables.0.scribble(),
        }
    }
    end(move || drop((subscriber, publisher, consumer, bus)));
}

// -------------------------------------------------------------------------------------------------------- requests

/// A service `r`, with requests that wait.
pub struct Services(Files);

impl Services {
    pub fn new() -> Self {
        Self(Files::new(Bus::builder(), |bus| {
            bus.topic("t").unwrap();
            let service = bus.service_builder("r").capacity(CAPACITY).open().unwrap();
            let mut server = service.server().unwrap();
            let client = service.client().unwrap();
            let pending: Vec<_> = (0..6)
                .map(|n| client.start(&PAYLOAD[..n * 20]).unwrap())
                .collect();
            server.recv().unwrap().reply(b"answer").unwrap();
            let held = server.recv().unwrap();
            (server, client, pending, held)
        }))
    }
}

/// Asks and answers.
pub fn service(services: &mut Services) {
    services.0.restore();
    let bus = services.0.bus();
    services.0.cut();
    let Some(service) = call(|| bus.service_builder("r").create(false).open()) else {
        return;
    };
    let (mut server, mut client) = (None, None);
    let mut pending = Vec::new();
    let mut requests = Vec::new();
    while let Some(op) = adversary::byte() {
        match op % 10 {
            0 => server = call(|| service.server_builder().patience(Duration::ZERO).open()),
            1 => client = call(|| service.client()),
            2 | 3 => {
                if let Some(client) = &client {
                    // It waits for room as long as an answer is worth anything.
                    let options = CallOptions::new().timeout(Duration::from_millis(1));
                    pending.extend(call(|| {
                        client.start_with(&options, &PAYLOAD[..usize::from(op)])
                    }));
                }
            }
            4 | 5 => {
                if let Some(server) = &mut server {
                    requests.extend(call(|| server.try_recv()).flatten());
                }
            }
            6 => {
                if let Some(request) = requests.pop() {
                    read(&request);
                    request.envelope().iter().for_each(look_at);
                    let _ = request.is_cancelled();
                    call(|| match op / 10 % 4 {
                        0 | 1 => request.reply(&PAYLOAD[..usize::from(op)]),
                        2 => request.refuse(7, "no"),
                        _ => {
                            drop(request);
                            Ok(())
                        }
                    });
                }
            }
            7 => {
                // An answer, or an error, can be had once.
                if let Some(mut one) = pending.pop()
                    && let Some(None) = call(|| one.try_wait())
                {
                    pending.push(one);
                }
            }
            8 => match op / 10 {
                0 => inspect(&bus, "r"),
                1 => call(|| bus.reclaim()).map_or((), drop),
                2 => server = None,
                3 => client = None,
                _ => pending.clear(),
            },
            _ => services.0.scribble(),
        }
    }
    end(move || drop((requests, pending, server, client)));
}

// --------------------------------------------------------------------------------------------------------- records

/// What a message carries that others read: an envelope, a dead letter.
pub fn records(data: &[u8]) {
    if let Some(envelope) = Envelope::decode(data) {
        look_at(&envelope);
        let mut again = Vec::new();
        envelope.encode_into(&mut again);
        assert!(again.len() == data.len());
    }
    if let Ok(letter) = DeadLetter::parse(data) {
        read(letter.payload);
        assert!(DeadLetter::parse(&letter.to_bytes()).is_ok());
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<buslane::TraceParent>();
    }
}
