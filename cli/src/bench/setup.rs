//! What connects the processes of a benchmark.

use std::fs::{File, OpenOptions};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use buslane::{Bus, WaitStrategy};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde::{Deserialize, Serialize};

use super::floor::{FutexLink, RawLink, Segment};
use super::link::{BusLink, ClientLink, Link, ServerLink, nanoseconds};
use super::stream::StreamLink;
use super::{Linked, Offer, Transport, Wait};
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
    /// The names of the transports.
    pub transports: Vec<String>,
    /// Bytes in the messages that are sent at some time.
    pub sizes: Vec<usize>,
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

    /// A name that no other benchmark has: the directory's is unique.
    pub fn name(&self, transport: &str) -> String {
        let dir = self.dir.file_name().unwrap_or_default().to_string_lossy();
        format!("{dir}-{transport}")
    }

    /// Whether both sides run on one CPU.
    pub fn shares_cpu(&self) -> bool {
        self.cpu(Side::Clock) == self.cpu(Side::Peer(0))
    }

    /// buslane, as it is to wait.
    pub fn bus(&self) -> Result<Bus, Failure> {
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

    fn bus_link(&self, bus: &Bus, side: Side) -> Linked {
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

/// The links of one side, in the order of the transports; those that are between two are not on every side.
pub(crate) struct Links {
    links: Vec<Option<Box<dyn Link>>>,
    /// How long each took to make, in nanoseconds.
    pub took: Vec<u64>,
}

impl Links {
    /// On the side of this peer, of what the one with the clock offers.
    pub fn join(setup: &Setup, transports: &[Transport], number: usize) -> Result<Self, Failure> {
        Self::timed(transports.iter(), |transport| {
            let joins = number == 0 || !transport.is_floor;
            joins
                .then(|| (transport.join)(setup, Side::Peer(number)))
                .transpose()
        })
    }

    /// On the side with the clock, once the others have joined what it offered.
    pub fn accept(setup: &Setup, offers: Vec<Offer>) -> Result<Self, Failure> {
        Self::timed(offers.into_iter(), |offer| offer(setup).map(Some))
    }

    fn timed<T>(
        all: impl Iterator<Item = T>,
        mut make: impl FnMut(T) -> Result<Option<Box<dyn Link>>, Failure>,
    ) -> Result<Self, Failure> {
        let (mut links, mut took) = (Vec::new(), Vec::new());
        for one in all {
            let started = Instant::now();
            links.push(make(one)?);
            took.push(nanoseconds(started.elapsed()));
        }
        Ok(Self { links, took })
    }

    /// The link of this transport.
    pub fn get(&mut self, transport: usize) -> &mut dyn Link {
        let link = self.links[transport].as_mut();
        &mut **link.expect("only what was set up is measured")
    }
}

/// The library.
pub const BUSLANE: Transport = Transport {
    name: "buslane",
    is_floor: false,
    offer: |setup| {
        let bus = setup.bus()?;
        Ok(Box::new(move |setup| setup.bus_link(&bus, Side::Clock)))
    },
    join: |setup, side| setup.bus_link(&setup.bus()?, side),
};

/// Its topics, where it is something else of it that is measured.
pub const PUBSUB: Transport = Transport {
    name: "pubsub",
    is_floor: false,
    offer: |setup| {
        let bus = setup.bus()?;
        Ok(Box::new(move |_| {
            Ok(Box::new(topics_link(&bus, Side::Clock)?))
        }))
    },
    join: |setup, side| Ok(Box::new(topics_link(&setup.bus()?, side)?)),
};

/// A cache line.
pub const RAW: Transport = Transport {
    name: "raw",
    is_floor: true,
    offer: |setup| {
        let segment = Segment::create(&setup.name("raw"))?;
        Ok(Box::new(move |setup| {
            Ok(Box::new(RawLink::new(
                segment,
                Side::Clock,
                setup.shares_cpu(),
            )))
        }))
    },
    join: |setup, side| {
        let segment = Segment::open(&setup.name("raw"))?;
        Ok(Box::new(RawLink::new(segment, side, setup.shares_cpu())))
    },
};

/// A cache line and a wake-up.
pub const FUTEX: Transport = Transport {
    name: "futex",
    is_floor: true,
    offer: |setup| {
        let segment = Segment::create(&setup.name("futex"))?;
        Ok(Box::new(move |_| {
            Ok(Box::new(FutexLink::new(segment, Side::Clock)))
        }))
    },
    join: |setup, side| {
        let segment = Segment::open(&setup.name("futex"))?;
        Ok(Box::new(FutexLink::new(segment, side)))
    },
};

/// Two pipes.
pub const PIPE: Transport = Transport {
    name: "pipe",
    is_floor: false,
    offer: |setup| {
        // All of them, open at both ends, so that neither side waits for the other to open them.
        let pipes = (0..2 * setup.peers).map(|n| make_pipe(&setup.pipe(n % 2, n / 2)));
        let held = pipes.collect::<Result<Vec<_>, _>>()?;
        Ok(Box::new(move |setup| {
            let link = setup.pipe_link(Side::Clock)?;
            drop(held); // from here on the end of one side is seen by the other
            Ok(Box::new(link))
        }))
    },
    join: |setup, side| Ok(Box::new(setup.pipe_link(side)?)),
};

/// A Unix socket.
pub const UDS: Transport = Transport {
    name: "uds",
    is_floor: false,
    offer: |setup| {
        let listener = UnixListener::bind(setup.socket()).map_err(connect)?;
        Ok(Box::new(move |setup| {
            let accept = |_| listener.accept().map(|(stream, _)| stream);
            let streams = (0..setup.peers).map(accept).collect::<Result<_, _>>();
            Ok(Box::new(socket_link(streams.map_err(connect)?)?))
        }))
    },
    join: |setup, _| {
        let stream = UnixStream::connect(setup.socket()).map_err(connect)?;
        Ok(Box::new(socket_link(vec![stream])?))
    },
};

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

/// What failed before anything was measured.
pub fn connect(error: std::io::Error) -> Failure {
    Failure::system("connect the processes")(error)
}
