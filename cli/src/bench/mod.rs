//! `buslane bench`: what messages cost between real processes, beside what else there is.
//!
//! Figures from different seconds cannot be compared where a machine's cores move; so all transports take turns in
//! short rounds, and what counts is the ratio within a round.

mod floor;
mod link;
pub mod peer;
mod report;
mod setup;
mod stream;

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::Common;
use crate::failure::Failure;
use crate::output::{json_line, stdout};
use crate::private::{self, Actor};
use crate::progress::Progress;
use crate::signals::Stop;
use crate::size;
use link::{Job, Kind, RoundTrips, expected_checksum};
pub use report::Report;
use report::{Figures, Placement, Round};
use setup::{Links, Offer, Setup, Side};

/// Measure what messages cost between processes
///
/// rtt is the time of a round trip; every byte is copied in and read on both sides. Its clock is read every 16 round
/// trips, so that percentiles are those of means of 16.
/// rate is how many messages a second go one way, from the first that is sent to the acknowledgement of the last.
/// wake is the time of a round trip for which both sides sleep; its clock is read at each.
/// request is the time of a request and its reply, through a service; its clock is read as that of rtt.
/// fanout is the rate of one process that sends to several, each of which gets everything; fanin that of several
/// together that send to one.
///
/// Transports take turns in short rounds; figures are medians over the rounds, and `ratio` is to the first of
/// --against, divided round by round. A round is `near` if a bare cache line takes less than 200 ns there and back
/// just then, else `far`.
#[derive(clap::Args)]
#[command(after_help = "\
Transports:
  buslane  the library, each message copied in and summed where it lies
  pubsub   the same over two topics, beside request: what a bare round trip of the library costs
  raw      one 8-byte word in shared memory each way, whatever the size: the floor of a round trip
  futex    the same, with both sides asleep until woken: the floor of wake
  pipe     two pipes of 1MiB, one write a message, reads as large as they come
  uds      a connected pair of Unix stream sockets, used like the pipes
With fanout and fanin there is a pair of pipes or sockets for each peer: written one after the other, polled for reading.")]
pub struct Args {
    /// What to measure
    #[arg(value_enum)]
    what: What,
    /// Message sizes (bytes, or 64KiB, 1MiB) [default: 8,64,1024; for wake 64]
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = message_size)]
    size: Vec<usize>,
    /// How many other processes, for fanout and fanin; one measurement for each [default: 1,2,4,8]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=64))]
    peers: Vec<u8>,
    /// How many rounds, each of some 20 ms a transport and size (and for fanout and fanin, 50 ms)
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// What to compare with; the first is what ratios refer to [default: rtt raw,pipe; request raw,pubsub,pipe; wake futex; else pipe]
    #[arg(long, value_enum, value_name = "TRANSPORT", value_delimiter = ',')]
    against: Vec<Against>,
    /// How buslane waits: looking, looking and then sleeping, or sleeping at once; wake always parks
    #[arg(long, value_enum, default_value = "adaptive")]
    wait: Wait,
    /// The CPU of the process with the clock, and that of the other, which may be the same; with fanout and fanin, those
    /// that the others have in turn [default: the first two that this process may use; with fanout and fanin, all]
    #[arg(long, value_name = "CPU,CPU", value_delimiter = ',')]
    cpus: Vec<usize>,
    /// Bytes in a lane of buslane (64KiB, 1MiB; a power of two) [default: the library's]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    capacity: Option<usize>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Round trips between two processes that wait as --wait says
    Rtt,
    /// Messages a second, one way
    Rate,
    /// Round trips between two processes that sleep
    Wake,
    /// Messages a second from one process to each of several
    Fanout,
    /// Messages a second from several processes to one
    Fanin,
    /// Requests and their replies between two processes that wait as --wait says
    Request,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Rtt => "rtt",
            Self::Rate => "rate",
            Self::Wake => "wake",
            Self::Fanout => "fanout",
            Self::Fanin => "fanin",
            Self::Request => "request",
        }
    }

    /// Whether there may be more than two processes.
    fn fans(self) -> bool {
        matches!(self, Self::Fanout | Self::Fanin)
    }

    /// How long a turn lasts, about. Processes that share a CPU have it in turns of some milliseconds.
    fn turn(self) -> Duration {
        Duration::from_millis(if self.fans() { 50 } else { 20 })
    }
}

/// A way to carry messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// The library.
    Buslane,
    /// Its topics, where it is something else of it that is measured.
    Pubsub,
    /// A cache line.
    Raw,
    /// Two pipes.
    Pipe,
    /// A Unix socket.
    Uds,
    /// A cache line and a wake-up.
    Futex,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Buslane => "buslane",
            Self::Pubsub => "pubsub",
            Self::Raw => "raw",
            Self::Pipe => "pipe",
            Self::Uds => "uds",
            Self::Futex => "futex",
        }
    }

    /// One word in shared memory between two processes, whatever was asked for.
    fn is_floor(self) -> bool {
        matches!(self, Self::Raw | Self::Futex)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Against {
    Raw,
    Pubsub,
    Pipe,
    Uds,
    Futex,
    None,
}

/// How buslane waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Wait {
    /// Looks again and again
    Spin,
    /// Looks for some microseconds, then sleeps
    Adaptive,
    /// Sleeps at once
    Park,
}

/// What to measure, and how.
#[derive(Debug)]
pub struct Plan {
    what: What,
    sizes: Vec<usize>,
    peers: Vec<usize>,
    rounds: u32,
    against: Vec<Transport>,
    wait: Wait,
    cpus: Vec<usize>,
    capacity: Option<usize>,
}

/// Measures and prints.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let reports = measure(&Plan::from_args(args)?, stop)?;
    let mut out = stdout(stop)?;
    if common.json {
        reports
            .iter()
            .try_for_each(|report| json_line(&mut out, report))?;
    } else {
        report::table(&mut out, &reports)?;
    }
    out.flush().map_err(Failure::stdout)
}

impl Plan {
    /// A plan with nothing but defaults.
    pub fn new(what: What, size: usize, rounds: u32, against: Transport) -> Result<Self, Failure> {
        let (sizes, against) = (vec![size], vec![against]);
        Ok(Self {
            what,
            sizes,
            peers: vec![1],
            rounds,
            against,
            wait: Wait::Adaptive,
            cpus: some_cpus(what)?,
            capacity: None,
        })
    }

    fn from_args(args: &Args) -> Result<Self, Failure> {
        let what = args.what;
        let sizes = match (what, args.size.is_empty()) {
            (_, false) => args.size.clone(),
            (What::Wake, true) => vec![64],
            (_, true) => vec![8, 64, 1024],
        };
        let peers = match (what.fans(), &*args.peers) {
            (true, []) => vec![1, 2, 4, 8],
            (true, given) => given.iter().copied().map(usize::from).collect(),
            (false, []) => vec![1],
            (false, _) => {
                let name = what.name();
                return Err(Failure::Usage(format!(
                    "bench {name} is between two processes; use --peers with fanout or fanin"
                )));
            }
        };
        let cpus = chosen_cpus(args)?;
        let wait = if what == What::Wake {
            Wait::Park
        } else {
            args.wait
        };
        Ok(Self {
            what,
            sizes,
            peers,
            rounds: args.rounds,
            against: against(args)?,
            wait,
            cpus,
            capacity: args.capacity,
        })
    }

    /// Of round trips, how many stand between two readings of the clock, which costs some 25 ns.
    fn batch(&self) -> u64 {
        if self.what == What::Wake { 1 } else { 16 }
    }

    /// How many other processes there are, one time after the other; `None` where it goes without saying.
    fn crews(&self) -> impl Iterator<Item = Option<usize>> {
        let fans = self.what.fans();
        self.peers.iter().map(move |&peers| fans.then_some(peers))
    }
}

fn against(args: &Args) -> Result<Vec<Transport>, Failure> {
    if args.against.is_empty() {
        return Ok(match args.what {
            What::Rtt => vec![Transport::Raw, Transport::Pipe],
            What::Request => vec![Transport::Raw, Transport::Pubsub, Transport::Pipe],
            What::Rate | What::Fanout | What::Fanin => vec![Transport::Pipe],
            What::Wake => vec![Transport::Futex],
        });
    }
    let mut against = Vec::new();
    for choice in &args.against {
        let transport = match choice {
            Against::Raw => Transport::Raw,
            Against::Pubsub => Transport::Pubsub,
            Against::Pipe => Transport::Pipe,
            Against::Uds => Transport::Uds,
            Against::Futex => Transport::Futex,
            Against::None => continue,
        };
        if transport == Transport::Pubsub && args.what != What::Request {
            return Err(Failure::Usage(
                "pubsub is what buslane is here; compare it with `bench request`".into(),
            ));
        }
        let carries_words = matches!(args.what, What::Rtt | What::Wake | What::Request);
        if !carries_words && transport.is_floor() {
            let (name, what) = (transport.name(), args.what.name());
            return Err(Failure::Usage(format!(
                "{name} has room for one word and no rate; use --against pipe, uds or none with `bench {what}`"
            )));
        }
        if !against.contains(&transport) {
            against.push(transport);
        }
    }
    Ok(against)
}

fn message_size(text: &str) -> Result<usize, String> {
    match size::parse(text)? {
        0 => Err("a message must have at least one byte to be checked".into()),
        size => Ok(size),
    }
}

/// The CPUs that this process may use; at least one.
fn allowed_cpus() -> Result<Vec<usize>, Failure> {
    let allowed = sched_getaffinity(Pid::from_raw(0))
        .map_err(|e| Failure::system("ask for the CPUs")(e.into()))?;
    Ok((0..CpuSet::count())
        .filter(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .collect())
}

/// As many as there are uses for; with one, that one twice.
fn some_cpus(what: What) -> Result<Vec<usize>, Failure> {
    let mut cpus = allowed_cpus()?;
    if cpus.len() == 1 {
        cpus.push(cpus[0]);
    }
    if !what.fans() {
        cpus.truncate(2);
    }
    Ok(cpus)
}

fn chosen_cpus(args: &Args) -> Result<Vec<usize>, Failure> {
    match args.cpus.len() {
        0 => return some_cpus(args.what),
        2 => {}
        3.. if args.what.fans() => {}
        _ => {
            let more = if args.what.fans() { " or more" } else { "" };
            return Err(Failure::Usage(format!(
                "--cpus takes two CPU numbers{more}, such as 0,1 (or 0,0)"
            )));
        }
    }
    let allowed = allowed_cpus()?;
    match args.cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        None => Ok(args.cpus.clone()),
        Some(cpu) => Err(Failure::Usage(format!(
            "CPU {cpu} is none that this process may use; with --cpus give some of {allowed:?}"
        ))),
    }
}

/// Does the whole plan.
pub fn measure(plan: &Plan, stop: &Stop) -> Result<Vec<Report>, Failure> {
    let mut rounds = Vec::new();
    let mut progress = Progress::rounds(plan.rounds as usize * plan.peers.len());
    for &peers in &plan.peers {
        let mut crew = Crew::start(plan, peers, stop)?;
        for _ in 0..plan.rounds {
            for &size in &plan.sizes {
                rounds.push(crew.round(size)?);
            }
            progress.add(1);
        }
    }
    Ok(report::reports(plan, &rounds))
}

/// Round trips that sleep, in a turn.
const WAKES: u64 = 200;
/// Bare round trips that tell where the two CPUs are.
const PLACING: u64 = 4096;
/// Messages at most in a turn.
const MESSAGES_MAX: u64 = 1 << 23;

/// The processes, connected.
struct Crew<'a> {
    plan: &'a Plan,
    stop: &'a Stop,
    transports: Vec<Transport>,
    peers: Vec<Actor>,
    links: Links,
    /// How many messages fill a turn.
    counts: HashMap<(Transport, usize), u64>,
    next_number: u64,
    _dir: TempDir,
}

/// What came of one turn.
struct Turn {
    elapsed: Duration,
    figures: Figures,
}

impl<'a> Crew<'a> {
    fn start(plan: &'a Plan, peers: usize, stop: &'a Stop) -> Result<Self, Failure> {
        let dir = private::directory()?;
        let transports: Vec<_> = [Transport::Buslane]
            .into_iter()
            .chain(plan.against.iter().copied())
            .collect();
        let mut connected = transports.clone();
        if !connected.contains(&Transport::Raw) {
            connected.push(Transport::Raw); // it places each round
        }
        let setup = Setup {
            dir: dir.path().into(),
            cpus: plan.cpus.clone(),
            peers,
            transports: connected,
            capacity: plan.capacity,
            wait: plan.wait,
            requests: plan.what == What::Request,
        };
        let offer = Offer::new(&setup)?;
        let mut peers = Vec::new();
        for number in 0..setup.peers {
            let mut peer = Actor::start(&[peer::NAME])?;
            peer.tell(&(number, &setup))?;
            peers.push(peer);
        }
        for peer in &mut peers {
            peer.answer::<String>(stop)?;
        }
        setup.pin(Side::Clock)?;
        let links = offer.accept(&setup)?;
        let mut crew = Self {
            plan,
            stop,
            transports,
            peers,
            links,
            counts: HashMap::new(),
            next_number: 1,
            _dir: dir,
        };
        for &size in &plan.sizes {
            crew.calibrate(size)?;
        }
        Ok(crew)
    }

    /// Finds how many messages fill a turn.
    fn calibrate(&mut self, size: usize) -> Result<(), Failure> {
        for transport in self.transports.clone() {
            let mut count = WAKES;
            while self.plan.what != What::Wake {
                let elapsed = self.turn(transport, size, count)?.elapsed;
                let scale = self.plan.what.turn().as_secs_f64() / elapsed.as_secs_f64().max(1e-6);
                // A short try says little: only approach.
                count = (count as f64 * scale.min(8.0)) as u64;
                count = count.clamp(4 * self.plan.batch(), MESSAGES_MAX);
                if scale < 4.0 || count == MESSAGES_MAX {
                    break;
                }
            }
            self.counts.insert((transport, size), count);
        }
        Ok(())
    }

    /// One turn for each transport, and where the CPUs were just then.
    fn round(&mut self, size: usize) -> Result<Round, Failure> {
        let bare = self.round_trips(Transport::Raw, size, PLACING, 16)?;
        let placement = Placement::of(Duration::from_nanos(bare.times.value_at_quantile(0.5)));
        let mut turns = Vec::new();
        for transport in self.transports.clone() {
            turns.push((
                transport,
                self.turn(transport, size, self.counts[&(transport, size)])?
                    .figures,
            ));
        }
        Ok(Round {
            peers: self.plan.what.fans().then_some(self.peers.len()),
            size,
            placement,
            turns,
        })
    }

    fn turn(&mut self, transport: Transport, size: usize, count: u64) -> Result<Turn, Failure> {
        match self.plan.what {
            What::Rtt | What::Wake | What::Request => {
                let result = self.round_trips(transport, size, count, self.plan.batch())?;
                Ok(Turn {
                    elapsed: result.elapsed,
                    figures: Figures::round_trips(&result.times),
                })
            }
            What::Rate | What::Fanout => {
                let elapsed = self.one_way(transport, size, count)?;
                Ok(Turn {
                    elapsed,
                    figures: Figures::rate(size, count, elapsed),
                })
            }
            What::Fanin => {
                let elapsed = self.fan_in(transport, size, count)?;
                let sent = count * self.peers.len() as u64;
                Ok(Turn {
                    elapsed,
                    figures: Figures::rate(size, sent, elapsed),
                })
            }
        }
    }

    fn round_trips(
        &mut self,
        transport: Transport,
        size: usize,
        count: u64,
        batch: u64,
    ) -> Result<RoundTrips, Failure> {
        // Full batches.
        let count = count / batch * batch;
        let job = self.new_job(Kind::RoundTrips, transport, size, count, 1);
        self.begin(0, &job)?;
        self.ready(0)?;
        let result = self.links.get(transport).ping(&job, batch)?;
        check(&job, result.checksum)?;
        let theirs = self.peers[0].answer(self.stop)?;
        check(&job, theirs)?;
        Ok(result)
    }

    fn one_way(
        &mut self,
        transport: Transport,
        size: usize,
        count: u64,
    ) -> Result<Duration, Failure> {
        let job = self.new_job(Kind::OneWay, transport, size, count, 1);
        for peer in 0..self.peers.len() {
            self.begin(peer, &job)?;
        }
        for peer in 0..self.peers.len() {
            self.ready(peer)?;
        }
        let started = Instant::now();
        self.links.get(transport).flood(&job)?;
        let mut checksums = Vec::new();
        for peer in &mut self.peers {
            checksums.push(peer.answer(self.stop)?);
        }
        let elapsed = started.elapsed();
        checksums
            .into_iter()
            .try_for_each(|checksum| check(&job, checksum))?;
        Ok(elapsed)
    }

    /// From the word to go.
    fn fan_in(
        &mut self,
        transport: Transport,
        size: usize,
        count: u64,
    ) -> Result<Duration, Failure> {
        let senders = self.peers.len();
        let job = self.new_job(Kind::FanIn, transport, size, count, senders as u64);
        // Each sends messages of its own.
        let jobs: Vec<_> = (0..senders as u64)
            .map(|sender| Job {
                first: job.first + sender * count,
                ..job
            })
            .collect();
        for (peer, job) in jobs.iter().enumerate() {
            self.begin(peer, job)?;
        }
        for peer in 0..senders {
            self.ready(peer)?;
        }
        let started = Instant::now();
        for peer in &mut self.peers {
            peer.tell(&peer::GO)?;
        }
        let mut checksums = self.links.get(transport).gather(&job, senders)?;
        let elapsed = started.elapsed();
        for peer in &mut self.peers {
            peer.answer::<u64>(self.stop)?;
        }
        // The senders are numbered as they were met.
        let mut expected: Vec<_> = jobs.iter().map(expected_checksum).collect();
        expected.sort_unstable();
        checksums.sort_unstable();
        if checksums == expected {
            Ok(elapsed)
        } else {
            Err(wrong_bytes(&job))
        }
    }

    /// A job for so many senders, whose messages nobody has sent before.
    fn new_job(
        &mut self,
        kind: Kind,
        transport: Transport,
        size: usize,
        count: u64,
        senders: u64,
    ) -> Job {
        // The floor carries a word, whatever the size.
        let size = if transport.is_floor() {
            size_of::<u64>()
        } else {
            size
        };
        let job = Job {
            kind,
            transport,
            size,
            count,
            first: self.next_number,
        };
        self.next_number += count * senders;
        job
    }

    /// Tells a peer what to do.
    fn begin(&mut self, peer: usize, job: &Job) -> Result<(), Failure> {
        self.stop.check()?;
        self.peers[peer].tell(job)
    }

    /// Returns when it is about to begin.
    fn ready(&mut self, peer: usize) -> Result<(), Failure> {
        self.peers[peer].answer::<String>(self.stop).map(drop)
    }
}

/// Off the clock: whether what was received is what was sent.
fn check(job: &Job, checksum: u64) -> Result<(), Failure> {
    if checksum == expected_checksum(job) {
        Ok(())
    } else {
        Err(wrong_bytes(job))
    }
}

fn wrong_bytes(job: &Job) -> Failure {
    let Job {
        transport, size, ..
    } = job;
    Failure::Error(format!(
        "{} delivered wrong bytes in messages of {size}; please report it",
        transport.name()
    ))
}
