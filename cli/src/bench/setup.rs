//! What connects the processes of a benchmark.

use std::fs::{File, OpenOptions};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use buslane::{Bus, WaitStrategy};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde::{Deserialize, Serialize};

use super::floor::{FutexLink, RawLink, Segment};
use super::link::{BusLink, ClientLink, Link, ServerLink};
use super::stream::StreamLink;
use super::{Transport, Wait};
use crate::failure::Failure;

/// What all sides must know.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Where bus, pipes and sockets are.
    pub dir: PathBuf,
    /// The CPU of the side with the clock, and those that the others have in turn.
    pub cpus: Vec<usize>,
    /// How many others there are.
    pub peers: usize,
    /// What is measured.
    pub transports: Vec<Transport>,
    /// Bytes in a lane.
    pub capacity: Option<usize>,
    /// How buslane waits.
    pub wait: Wait,
    /// buslane is measured with requests.
    pub requests: bool,
}

/// Which of the processes this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It has the clock.
    Clock,
    /// It does what it is told; its number.
    Peer(usize),
}

impl Side {
    /// Of the two directions, the one that this side sends in.
    pub fn outgoing(self) -> usize {
        match self {
            Self::Clock => 0,
            Self::Peer(_) => 1,
        }
    }

    /// The one that it receives in.
    pub fn incoming(self) -> usize {
        1 - self.outgoing()
    }
}

impl Setup {
    fn cpu(&self, side: Side) -> usize {
        let (clock, others) = self.cpus.split_first().expect("there are two at least");
        match side {
            Side::Clock => *clock,
            Side::Peer(number) => others[number % others.len()],
        }
    }

    /// Binds this thread to its CPU.
    pub fn pin(&self, side: Side) -> Result<(), Failure> {
        let cpu = self.cpu(side);
        let mut set = CpuSet::new();
        set.set(cpu)
            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
            .map_err(|error| {
                Failure::Error(format!(
                    "cannot run on CPU {cpu}: {error}; give another with --cpus"
                ))
            })
    }

    /// The pipe to a peer, or from it.
    fn pipe(&self, direction: usize, peer: usize) -> PathBuf {
        self.dir.join(format!("pipe-{direction}-{peer}"))
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// Shared memory has one place for names; the directory's is unique.
    fn segment(&self, transport: Transport) -> String {
        let dir = self.dir.file_name().unwrap_or_default().to_string_lossy();
        format!("{dir}-{}", transport.name())
    }

    fn bus(&self) -> Result<Bus, Failure> {
        let wait = match self.wait {
            Wait::Spin => WaitStrategy::Spin,
            Wait::Adaptive => WaitStrategy::Adaptive,
            Wait::Park => WaitStrategy::Sleep,
        };
        let mut builder = Bus::builder().wait(wait);
        if let Some(bytes) = self.capacity {
            builder = builder.capacity(bytes);
        }
        Ok(builder.at(self.dir.join("bus"))?)
    }

    fn bus_link(&self, bus: &Bus, side: Side) -> Result<Box<dyn Link>, Failure> {
        if !self.requests {
            return Ok(Box::new(topics_link(bus, side)?));
        }
        let mut service = bus.service_builder("service");
        let mut inbox = buslane::DEFAULT_SERVICE_CAPACITY;
        if let Some(bytes) = self.capacity {
            (service, inbox) = (service.capacity(bytes), bytes);
        }
        let service = service.open()?;
        Ok(match side {
            Side::Clock => Box::new(ClientLink(service.client_builder().inbox(inbox).open()?)),
            Side::Peer(_) => Box::new(ServerLink(service.server()?)),
        })
    }

    fn floor_link(&self, transport: Transport, side: Side, segment: Segment) -> Box<dyn Link> {
        match transport {
            Transport::Futex => Box::new(FutexLink::new(segment, side)),
            _ => {
                let yields = self.cpu(Side::Clock) == self.cpu(Side::Peer(0));
                Box::new(RawLink::new(segment, side, yields))
            }
        }
    }

    fn pipe_link(&self, side: Side) -> Result<StreamLink<File>, Failure> {
        let open = |options: &mut OpenOptions, direction, peer| {
            let file = options.open(self.pipe(direction, peer))?;
            // 64 KiB by default, which one large message fills; a system that allows less is measured as it is.
            let _ = fcntl(&file, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
            Ok(file)
        };
        let others = match side {
            Side::Clock => 0..self.peers,
            Side::Peer(number) => number..number + 1,
        };
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        for peer in others {
            let write = open(OpenOptions::new().write(true), side.outgoing(), peer);
            writes.push(write.map_err(connect)?);
            let read = open(OpenOptions::new().read(true), side.incoming(), peer);
            reads.push(read.map_err(connect)?);
        }
        Ok(StreamLink::new(writes, reads))
    }
}

/// Each pipe's size.
const PIPE_BYTES: i32 = 1 << 20;

/// The links of one side.
pub struct Links(Vec<(Transport, Box<dyn Link>)>);

impl Links {
    /// On the side of this peer, of what the one with the clock offers.
    pub fn join(setup: &Setup, number: usize) -> Result<Self, Failure> {
        let side = Side::Peer(number);
        let join = |transport| -> Result<Box<dyn Link>, Failure> {
            Ok(match transport {
                Transport::Buslane => setup.bus_link(&setup.bus()?, side)?,
                Transport::Pubsub => Box::new(topics_link(&setup.bus()?, side)?),
                Transport::Raw | Transport::Futex => {
                    setup.floor_link(transport, side, Segment::open(&setup.segment(transport))?)
                }
                Transport::Pipe => Box::new(setup.pipe_link(side)?),
                Transport::Uds => {
                    let stream = UnixStream::connect(setup.socket()).map_err(connect)?;
                    Box::new(socket_link(vec![stream])?)
                }
            })
        };
        setup
            .transports
            .iter()
            .filter(|transport| number == 0 || !transport.is_floor()) // which is between two
            .map(|&transport| Ok((transport, join(transport)?)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The link of this transport.
    pub fn get(&mut self, transport: Transport) -> &mut dyn Link {
        let found = self.0.iter_mut().find(|(name, _)| *name == transport);
        &mut *found.expect("only what was set up is measured").1
    }
}

/// What the side with the clock makes first, for the others to find.
pub struct Offer(Vec<Offered>);

enum Offered {
    Bus(Transport, Bus),
    Floor(Transport, Segment),
    /// All pipes, open at both ends, so that neither side waits for the other to open them.
    Pipes(Vec<File>),
    Socket(UnixListener),
}

impl Offer {
    /// Makes it.
    pub fn new(setup: &Setup) -> Result<Self, Failure> {
        let offer = |transport: &Transport| {
            Ok(match *transport {
                Transport::Buslane | Transport::Pubsub => Offered::Bus(*transport, setup.bus()?),
                Transport::Raw | Transport::Futex => {
                    Offered::Floor(*transport, Segment::create(&setup.segment(*transport))?)
                }
                Transport::Pipe => {
                    let pipes = (0..2 * setup.peers).map(|n| make_pipe(&setup.pipe(n % 2, n / 2)));
                    Offered::Pipes(pipes.collect::<Result<_, _>>()?)
                }
                Transport::Uds => {
                    Offered::Socket(UnixListener::bind(setup.socket()).map_err(connect)?)
                }
            })
        };
        setup
            .transports
            .iter()
            .map(offer)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Once the others have joined.
    pub fn accept(self, setup: &Setup) -> Result<Links, Failure> {
        let side = Side::Clock;
        let accept = |offered| -> Result<(Transport, Box<dyn Link>), Failure> {
            Ok(match offered {
                Offered::Bus(Transport::Pubsub, bus) => {
                    (Transport::Pubsub, Box::new(topics_link(&bus, side)?))
                }
                Offered::Bus(transport, bus) => (transport, setup.bus_link(&bus, side)?),
                Offered::Floor(transport, segment) => {
                    (transport, setup.floor_link(transport, side, segment))
                }
                Offered::Pipes(held) => {
                    let link = setup.pipe_link(side)?;
                    drop(held); // from here on the end of one side is seen by the other
                    (Transport::Pipe, Box::new(link))
                }
                Offered::Socket(listener) => {
                    let accept = |_| listener.accept().map(|(stream, _)| stream);
                    let streams = (0..setup.peers).map(accept).collect::<Result<_, _>>();
                    (
                        Transport::Uds,
                        Box::new(socket_link(streams.map_err(connect)?)?),
                    )
                }
            })
        };
        self.0
            .into_iter()
            .map(accept)
            .collect::<Result<_, _>>()
            .map(Links)
    }
}

fn topics_link(bus: &Bus, side: Side) -> Result<BusLink, Failure> {
    let topic = |direction| bus.topic(["ping", "pong"][direction]);
    let subscriber = topic(side.incoming())?.subscriber()?;
    let publisher = topic(side.outgoing())?.publisher()?;
    Ok(BusLink {
        publisher,
        subscriber,
        senders: Vec::new(),
    })
}

fn make_pipe(path: &Path) -> Result<File, Failure> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|error| connect(error.into()))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(connect)
}

fn socket_link(streams: Vec<UnixStream>) -> Result<StreamLink<UnixStream>, Failure> {
    let reads = streams.iter().map(UnixStream::try_clone);
    let reads = reads.collect::<Result<_, _>>().map_err(connect)?;
    Ok(StreamLink::new(streams, reads))
}

fn connect(error: std::io::Error) -> Failure {
    Failure::system("connect the processes")(error)
}
