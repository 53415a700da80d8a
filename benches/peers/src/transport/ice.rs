//! iceoryx2: samples in a pool, lent and handed over.

use std::collections::VecDeque;

use buslane_cli::bench::link::{self, Job, Link, UNDER_WAY, fold, sum};
use buslane_cli::bench::setup::{Setup, Side};
use buslane_cli::bench::{Linked, Transport, Wait};
use buslane_cli::failure::Failure;
use iceoryx2::node::Node;
use iceoryx2::pending_response::PendingResponse;
use iceoryx2::port::client::Client;
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::server::Server;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;

use super::{failed, look, yields};

/// A service for each direction, or one of requests. Its ports can't wait: they are looked at again and again, or, where
/// buslane sleeps, events go with the messages.
pub const ICEORYX2: Transport = Transport {
    name: "iceoryx2",
    is_floor: false,
    offer: |setup| {
        // Services are made by who comes first; there must be ports before the other side sends.
        let link = open(setup, Side::Clock)?;
        Ok(Box::new(|_| Ok(link)))
    },
    join: open,
};

fn open(setup: &Setup, side: Side) -> Linked {
    let node = node(setup)?;
    Ok(match (setup.requests, side) {
        (false, _) => Box::new(Ports::new(node, setup, side)?),
        (true, Side::Clock) => Box::new(Asks::new(node, setup)?),
        (true, Side::Peer(_)) => Box::new(Answers::new(node, setup)?),
    })
}

/// What begins the name of everything that it makes in shared memory.
fn prefix(setup: &Setup) -> String {
    format!("{}_", setup.name("ice"))
}

/// Removes what is left of iceoryx2 when its nodes have gone.
struct Leftover(Option<String>);

impl Leftover {
    fn of(setup: &Setup, side: Side) -> Self {
        Self((side == Side::Clock).then(|| prefix(setup)))
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        let Some(prefix) = &self.0 else { return };
        for file in std::fs::read_dir("/dev/shm")
            .into_iter()
            .flatten()
            .flatten()
        {
            if file.file_name().to_string_lossy().starts_with(prefix) {
                // What is not removed is a few bytes of a benchmark.
                let _ = std::fs::remove_file(file.path());
            }
        }
    }
}

/// Everything that it makes is in the benchmark's directory, or has its name.
fn node(setup: &Setup) -> Result<Node<ipc::Service>, Failure> {
    let e = failed("make a node of iceoryx2");
    let mut config = Config::default();
    let root = setup.dir.join("iceoryx2");
    let root = root.to_string_lossy();
    config
        .global
        .set_root_path(&Path::new(root.as_bytes()).map_err(|error| e(&error))?);
    config.global.prefix = FileName::new(prefix(setup).as_bytes()).map_err(|error| e(&error))?;
    NodeBuilder::new()
        .config(&config)
        .create()
        .map_err(|error| e(&error))
}

/// As many of the largest as buslane's lane has room for, within reason.
fn buffered(setup: &Setup) -> usize {
    let bytes = setup.capacity.unwrap_or(buslane::DEFAULT_CAPACITY);
    (bytes / longest(setup)).clamp(4, 4096)
}

fn longest(setup: &Setup) -> usize {
    setup.sizes.iter().copied().max().unwrap_or(8)
}

fn service_name(name: &str) -> Result<ServiceName, Failure> {
    ServiceName::new(name).map_err(|error| failed("name a service of iceoryx2")(&error))
}

struct Ports {
    publisher: Publisher<ipc::Service, [u8], ()>,
    subscriber: Subscriber<ipc::Service, [u8], ()>,
    /// Of this side's messages, and the other's.
    events: Option<(Notifier<ipc::Service>, Listener<ipc::Service>)>,
    /// The senders met so far.
    senders: Vec<u128>,
    yields: bool,
    _node: Node<ipc::Service>,
    _leftover: Leftover,
}

impl Ports {
    fn new(node: Node<ipc::Service>, setup: &Setup, side: Side) -> Result<Self, Failure> {
        let e = failed("make a port of iceoryx2");
        let names = ["ping", "pong"];
        let service = |direction: usize| {
            node.service_builder(&service_name(names[direction])?)
                .publish_subscribe::<[u8]>()
                .enable_safe_overflow(false)
                .subscriber_max_buffer_size(buffered(setup))
                .max_publishers(16)
                .max_subscribers(16)
                .open_or_create()
                .map_err(|error| e(&error))
        };
        let subscriber = service(side.incoming())?.subscriber_builder().create();
        let publisher = service(side.outgoing())?
            .publisher_builder()
            .initial_max_slice_len(longest(setup))
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create();
        let event = |direction: usize| {
            node.service_builder(&service_name(names[direction])?)
                .event()
                .open_or_create()
                .map_err(|error| e(&error))
        };
        let events = match setup.wait {
            Wait::Park => Some((
                event(side.outgoing())?
                    .notifier_builder()
                    .create()
                    .map_err(|error| e(&error))?,
                event(side.incoming())?
                    .listener_builder()
                    .create()
                    .map_err(|error| e(&error))?,
            )),
            _ => None,
        };
        Ok(Self {
            publisher: publisher.map_err(|error| e(&error))?,
            subscriber: subscriber.map_err(|error| e(&error))?,
            events,
            senders: Vec::new(),
            yields: yields(setup),
            _node: node,
            _leftover: Leftover::of(setup, side),
        })
    }
}

impl Link for Ports {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        let sample = self.publisher.loan_slice_uninit(message.len());
        let sample = sample.map_err(|e| failed("loan from iceoryx2")(&e))?;
        let sent = sample.write_from_slice(message).send();
        sent.map_err(|e| failed("send by iceoryx2")(&e))?;
        if let Some((notifier, _)) = &self.events {
            notifier
                .notify()
                .map_err(|e| failed("notify by iceoryx2")(&e))?;
        }
        Ok(())
    }

    fn recv_from_any(&mut self, _size: usize) -> Result<(usize, u64), Failure> {
        let subscriber = &self.subscriber;
        let sample = look(self.yields, || {
            subscriber
                .receive()
                .map_err(|e| failed("receive by iceoryx2")(&e))
        })?;
        let sender = sample.header().publisher_id().value();
        let known = self.senders.iter().position(|known| *known == sender);
        let sender = known.unwrap_or_else(|| {
            self.senders.push(sender);
            self.senders.len() - 1
        });
        Ok((sender, sum(sample.payload())))
    }

    #[inline]
    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        let Self {
            subscriber, events, ..
        } = self;
        look(self.yields, || {
            let sample = subscriber
                .receive()
                .map_err(|e| failed("receive by iceoryx2")(&e))?;
            if let (None, Some((_, listener))) = (&sample, &*events) {
                listener
                    .blocking_wait(|_| {})
                    .map_err(|e| failed("wait by iceoryx2")(&e))?;
            }
            Ok(sample.map(|sample| sum(sample.payload())))
        })
    }
}

macro_rules! requests {
    ($node:expr, $setup:expr) => {
        $node
            .service_builder(&service_name("service")?)
            .request_response::<[u8], [u8]>()
            .enable_safe_overflow_for_requests(false)
            .enable_safe_overflow_for_responses(false)
            .max_active_requests_per_client(UNDER_WAY + 1)
            .max_loaned_requests(4)
            .max_response_buffer_size(2)
            .open_or_create()
            .map_err(|error| failed("make a service of iceoryx2")(&error))?
    };
}

type Unanswered = PendingResponse<ipc::Service, [u8], (), [u8], ()>;

struct Asks {
    client: Client<ipc::Service, [u8], (), [u8], ()>,
    _node: Node<ipc::Service>,
    _leftover: Leftover,
}

impl Asks {
    fn new(node: Node<ipc::Service>, setup: &Setup) -> Result<Self, Failure> {
        let client = requests!(node, setup)
            .client_builder()
            .initial_max_slice_len(longest(setup))
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()
            .map_err(|error| failed("make a client of iceoryx2")(&error))?;
        Ok(Self {
            client,
            _node: node,
            _leftover: Leftover::of(setup, Side::Clock),
        })
    }

    #[inline]
    fn start(&self, message: &[u8]) -> Result<Unanswered, Failure> {
        let request = self.client.loan_slice_uninit(message.len());
        let request = request.map_err(|e| failed("loan from iceoryx2")(&e))?;
        let sent = request.write_from_slice(message).send();
        sent.map_err(|e| failed("send by iceoryx2")(&e))
    }

    #[inline]
    fn wait(pending: &Unanswered) -> Result<u64, Failure> {
        look(false, || {
            let reply = pending
                .receive()
                .map_err(|e| failed("receive by iceoryx2")(&e))?;
            Ok(reply.map(|reply| sum(reply.payload())))
        })
    }
}

impl Link for Asks {
    fn send(&mut self, _message: &[u8]) -> Result<(), Failure> {
        Err(one_way())
    }

    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        Err(one_way())
    }

    #[inline]
    fn ask(&mut self, message: &[u8], _size: usize) -> Result<u64, Failure> {
        Self::wait(&self.start(message)?)
    }

    fn requests(&mut self, job: &Job) -> Result<u64, Failure> {
        let mut message = link::Message::new(job);
        let mut under_way = VecDeque::with_capacity(UNDER_WAY);
        let mut checksum = 0;
        for _ in 0..job.count {
            if under_way.len() == UNDER_WAY
                && let Some(oldest) = under_way.pop_front()
            {
                checksum = fold(checksum, Self::wait(&oldest)?);
            }
            under_way.push_back(self.start(message.bytes())?);
            message.advance();
        }
        for pending in under_way {
            checksum = fold(checksum, Self::wait(&pending)?);
        }
        Ok(checksum)
    }
}

struct Answers {
    server: Server<ipc::Service, [u8], (), [u8], ()>,
    _node: Node<ipc::Service>,
}

impl Answers {
    fn new(node: Node<ipc::Service>, setup: &Setup) -> Result<Self, Failure> {
        let server = requests!(node, setup)
            .server_builder()
            .initial_max_slice_len(longest(setup))
            .create()
            .map_err(|error| failed("make a server of iceoryx2")(&error))?;
        Ok(Self {
            server,
            _node: node,
        })
    }
}

impl Link for Answers {
    fn send(&mut self, _message: &[u8]) -> Result<(), Failure> {
        Err(one_way())
    }

    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        Err(one_way())
    }

    #[inline]
    fn answer(&mut self, _size: usize, answer: &[u8]) -> Result<u64, Failure> {
        let request = look(false, || {
            let request = self.server.receive();
            request.map_err(|e| failed("receive by iceoryx2")(&e))
        })?;
        let sum = sum(request.payload());
        let reply = request.loan_slice_uninit(answer.len());
        let reply = reply.map_err(|e| failed("loan from iceoryx2")(&e))?;
        let sent = reply.write_from_slice(answer).send();
        sent.map_err(|e| failed("send by iceoryx2")(&e))?;
        Ok(sum)
    }
}

#[cold]
fn one_way() -> Failure {
    Failure::Error("a request does not go one way".into())
}
