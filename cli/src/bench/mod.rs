//! `buslane bench`: what messages cost between real processes, beside what else there is.
//!
//! Figures from different seconds cannot be compared where a machine's cores move; so all transports take turns in
//! short rounds, and what counts is the ratio within a round.

mod floor;
pub mod link;
pub mod peer;
pub mod report;
pub mod setup;
pub mod stream;

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
use link::{Done, Job, Kind, Link, RoundTrips, expected_checksum};
pub use report::Report;
use report::{Figures, Placement, Round};
pub use setup::{BUSLANE, FUTEX, PIPE, PUBSUB, RAW, UDS};
use setup::{Links, Setup, Side};

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
/// just then, else `far`; one in which that changes is repeated, three times at most.
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
pub(crate) struct Args {
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
    /// Requests a second, with several unanswered
    #[value(skip)]
    Requests,
    /// Messages that come seldom: what they cost
    #[value(skip)]
    Paced,
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
            Self::Requests => "requests",
            Self::Paced => "paced",
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
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    /// What it is called; no other is.
    pub name: &'static str,
    /// One word in shared memory between two processes, whatever was asked for.
    pub is_floor: bool,
    /// On the side with the clock: makes what the others need to find.
    pub offer: fn(&Setup) -> Result<Offer, Failure>,
    /// On the other sides: finds it.
    pub join: fn(&Setup, Side) -> Linked,
}

/// A link, or why there is none.
pub type Linked = Result<Box<dyn Link>, Failure>;

/// What becomes a link once the others have joined.
pub type Offer = Box<dyn FnOnce(&Setup) -> Linked>;

impl PartialEq for Transport {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// Those of `buslane bench`.
pub const TRANSPORTS: [Transport; 6] = [BUSLANE, PUBSUB, RAW, PIPE, UDS, FUTEX];

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
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is measured.
    pub what: What,
    /// Bytes in a message.
    pub sizes: Vec<usize>,
    /// How many other processes, one time after the other.
    pub peers: Vec<usize>,
    /// How often each transport has its turn.
    pub rounds: u32,
    /// The library, and what it is compared with.
    pub transports: Vec<Transport>,
    /// How buslane waits.
    pub wait: Wait,
    /// The CPU of the process with the clock, then those of the others.
    pub cpus: Vec<usize>,
    /// Bytes in a lane of buslane.
    pub capacity: Option<usize>,
}

/// Measures and prints.
pub(crate) fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
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
        Ok(Self {
            what,
            sizes: vec![size],
            peers: vec![1],
            rounds,
            transports: vec![BUSLANE, against],
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
            transports: [BUSLANE].into_iter().chain(against(args)?).collect(),
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
            What::Rtt => vec![RAW, PIPE],
            What::Request => vec![RAW, PUBSUB, PIPE],
            What::Wake => vec![FUTEX],
            _ => vec![PIPE],
        });
    }
    let mut against = Vec::new();
    for choice in &args.against {
        let transport = match choice {
            Against::Raw => RAW,
            Against::Pubsub => PUBSUB,
            Against::Pipe => PIPE,
            Against::Uds => UDS,
            Against::Futex => FUTEX,
            Against::None => continue,
        };
        if transport == PUBSUB && args.what != What::Request {
            return Err(Failure::Usage(
                "pubsub is what buslane is here; compare it with `bench request`".into(),
            ));
        }
        let carries_words = matches!(args.what, What::Rtt | What::Wake | What::Request);
        if !carries_words && transport.is_floor {
            let (name, what) = (transport.name, args.what.name());
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
    Ok(report::reports(plan, &rounds(plan, stop)?))
}

/// What it takes to have the plan's first transport between two processes.
pub fn weigh(plan: &Plan, stop: &Stop) -> Result<Weight, Failure> {
    let bare = Plan {
        transports: Vec::new(),
        ..plan.clone()
    };
    let nothing = Crew::start(&bare, 1, stop)?.memory()?;
    let mut crew = Crew::start(plan, 1, stop)?;
    let setup = crew.setup[0];
    for &size in &plan.sizes {
        crew.round(size)?;
    }
    let memory = crew.memory()?.saturating_sub(nothing);
    Ok(Weight { setup, memory })
}

/// All rounds of a plan.
pub fn rounds(plan: &Plan, stop: &Stop) -> Result<Vec<Round>, Failure> {
    let mut rounds = Vec::new();
    let mut progress = Progress::rounds(plan.rounds as usize * plan.peers.len());
    for &peers in &plan.peers {
        let mut left = plan.rounds;
        while left > 0 {
            let some = left.min(ROUNDS_TOGETHER);
            let mut crew = Crew::start(plan, peers, stop)?;
            for _ in 0..some {
                for &size in &plan.sizes {
                    rounds.push(crew.round(size)?);
                }
                progress.add(1);
            }
            left -= some;
        }
    }
    Ok(rounds)
}

/// Round trips that sleep, in a turn.
const WAKES: u64 = 200;
/// Bare round trips that tell where the two CPUs are.
const PLACING: u64 = 4096;
/// Rounds of the same processes. Where their memory lies decides up to a fifth of what they do, for as long as they run: so
/// others follow them.
const ROUNDS_TOGETHER: u32 = 5;
/// How often a round is repeated in which the CPUs have moved.
const REPEATED: u32 = 3;
/// Messages at most in a turn.
const MESSAGES_MAX: u64 = 1 << 23;

/// The processes, connected.
struct Crew<'a> {
    plan: &'a Plan,
    stop: &'a Stop,
    transports: Vec<Transport>,
    /// Which of them places each round.
    raw: usize,
    peers: Vec<Actor>,
    links: Links,
    /// How many messages fill a turn.
    counts: HashMap<(usize, usize), u64>,
    next_number: u64,
    /// Rounds begun.
    begun: usize,
    /// How long each transport took to set up, in nanoseconds of all processes together.
    setup: Vec<u64>,
    _dir: TempDir,
}

/// What was found out of one transport in one turn.
#[derive(Clone, Debug)]
pub struct Turn {
    elapsed: Duration,
    /// The figures.
    pub figures: Figures,
    /// Nanoseconds of processor time for each message, of all processes together.
    pub cpu: f64,
}

/// What it takes to have a transport between two processes.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Nanoseconds, of both together, until it can be used.
    pub setup: u64,
    /// Bytes of memory that are mapped for it in both, after messages of each size went through.
    pub memory: u64,
}

impl<'a> Crew<'a> {
    fn start(plan: &'a Plan, peers: usize, stop: &'a Stop) -> Result<Self, Failure> {
        let dir = private::directory()?;
        let mut transports = plan.transports.clone();
        let raw = transports.iter().position(|known| *known == RAW);
        let raw = raw.unwrap_or_else(|| {
            transports.push(RAW);
            transports.len() - 1
        });
        let setup = Setup {
            dir: dir.path().into(),
            cpus: plan.cpus.clone(),
            peers,
            transports: transports.iter().map(|known| known.name.into()).collect(),
            sizes: plan.sizes.clone(),
            capacity: plan.capacity,
            wait: plan.wait,
            requests: matches!(plan.what, What::Request | What::Requests),
        };
        let (mut offers, mut took) = (Vec::new(), Vec::new());
        for transport in &transports {
            let started = Instant::now();
            offers.push((transport.offer)(&setup)?);
            took.push(link::nanoseconds(started.elapsed()));
        }
        let mut peers = Vec::new();
        for number in 0..setup.peers {
            let mut peer = Actor::start(&[peer::NAME])?;
            peer.tell(&(number, &setup))?;
            peers.push(peer);
        }
        let mut add = |theirs: &[u64]| took.iter_mut().zip(theirs).for_each(|(sum, ns)| *sum += ns);
        for peer in &mut peers {
            add(&peer.answer::<Vec<u64>>(stop)?);
        }
        setup.pin(Side::Clock)?;
        let links = Links::accept(&setup, offers)?;
        add(&links.took);
        let mut crew = Self {
            plan,
            stop,
            transports,
            raw,
            peers,
            links,
            counts: HashMap::new(),
            next_number: 1,
            begun: 0,
            setup: took,
            _dir: dir,
        };
        for &size in &plan.sizes {
            crew.calibrate(size)?;
        }
        Ok(crew)
    }

    /// Finds how many messages fill a turn.
    fn calibrate(&mut self, size: usize) -> Result<(), Failure> {
        for transport in 0..self.plan.transports.len() {
            let mut count = WAKES;
            while !matches!(self.plan.what, What::Wake | What::Paced) {
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

    /// One turn for each transport, and where the CPUs were just then. If they moved meanwhile it is repeated, a few times.
    fn round(&mut self, size: usize) -> Result<Round, Failure> {
        let mut placement = self.placement(size)?;
        let mut turns = self.turns(size)?;
        for _ in 0..REPEATED {
            let after = self.placement(size)?;
            if after == placement {
                break;
            }
            placement = after;
            turns = self.turns(size)?;
        }
        self.begun += 1;
        Ok(Round {
            peers: self.plan.what.fans().then_some(self.peers.len()),
            size,
            placement,
            turns,
        })
    }

    fn placement(&mut self, size: usize) -> Result<Placement, Failure> {
        let (bare, _) = self.round_trips(self.raw, size, PLACING, 16)?;
        let median = bare.times.value_at_quantile(0.5);
        Ok(Placement::of(Duration::from_nanos(median)))
    }

    fn turns(&mut self, size: usize) -> Result<Vec<(Transport, Turn)>, Failure> {
        let mut turns = Vec::new();
        let all = self.plan.transports.len();
        for turn in 0..all {
            // Each is the first in its turn, too: what the one before it has left in the caches is not the same for all.
            let transport = (self.begun + turn) % all;
            let count = self.counts[&(transport, size)];
            turns.push((transport, self.turn(transport, size, count)?));
        }
        turns.sort_by_key(|(transport, _)| *transport);
        let named = turns.into_iter();
        Ok(named
            .map(|(transport, turn)| (self.plan.transports[transport], turn))
            .collect())
    }

    fn turn(&mut self, transport: usize, size: usize, count: u64) -> Result<Turn, Failure> {
        let what = self.plan.what;
        let before = link::cpu_time()?;
        // The clock's side, and what the others took.
        let (elapsed, figures, messages, theirs) = match what {
            What::Rtt | What::Wake | What::Request => {
                let (result, cpu) = self.round_trips(transport, size, count, self.plan.batch())?;
                let figures = Figures::round_trips(&result.times);
                (result.elapsed, figures, 2 * count, cpu)
            }
            What::Fanin => {
                let (elapsed, cpu) = self.fan_in(transport, size, count)?;
                let sent = count * self.peers.len() as u64;
                (elapsed, Figures::rate(size, sent, elapsed), sent, cpu)
            }
            What::Rate | What::Fanout | What::Requests | What::Paced => {
                let kind = match what {
                    What::Requests => Kind::Requests,
                    What::Paced => Kind::Paced,
                    _ => Kind::OneWay,
                };
                let (elapsed, cpu) = self.one_way(kind, transport, size, count)?;
                (elapsed, Figures::rate(size, count, elapsed), count, cpu)
            }
        };
        let cpu = (link::cpu_time()? - before + theirs) as f64 / messages as f64;
        Ok(Turn {
            elapsed,
            figures,
            cpu,
        })
    }

    /// What was measured, and the processor time of the other side.
    fn round_trips(
        &mut self,
        transport: usize,
        size: usize,
        count: u64,
        batch: u64,
    ) -> Result<(RoundTrips, u64), Failure> {
        // Full batches.
        let count = count / batch * batch;
        let job = self.new_job(Kind::RoundTrips, transport, size, count, 1);
        self.begin(0, &job)?;
        self.ready(0)?;
        let result = self.links.get(transport).ping(&job, batch)?;
        self.check(&job, result.checksum)?;
        let theirs = self.peers[0].answer::<Done>(self.stop)?;
        self.check(&job, theirs.checksum)?;
        Ok((result, theirs.cpu))
    }

    /// From the first message to the end of the last, and the processor time of the other sides.
    fn one_way(
        &mut self,
        kind: Kind,
        transport: usize,
        size: usize,
        count: u64,
    ) -> Result<(Duration, u64), Failure> {
        let job = self.new_job(kind, transport, size, count, 1);
        for peer in 0..self.peers.len() {
            self.begin(peer, &job)?;
        }
        for peer in 0..self.peers.len() {
            self.ready(peer)?;
        }
        let started = Instant::now();
        let link = self.links.get(transport);
        let mut checksums = Vec::new();
        match kind {
            Kind::Requests => checksums.push(link.requests(&job)?),
            Kind::Paced => link.trickle(&job)?,
            _ => link.flood(&job)?,
        }
        let mut cpu = 0;
        for peer in &mut self.peers {
            let done = peer.answer::<Done>(self.stop)?;
            checksums.push(done.checksum);
            cpu += done.cpu;
        }
        let elapsed = started.elapsed();
        checksums
            .into_iter()
            .try_for_each(|checksum| self.check(&job, checksum))?;
        Ok((elapsed, cpu))
    }

    /// Bytes of memory in both processes together.
    fn memory(&mut self) -> Result<u64, Failure> {
        let job = self.new_job(Kind::Weigh, self.raw, 8, 0, 1);
        self.begin(0, &job)?;
        self.ready(0)?;
        let theirs = self.peers[0].answer::<Done>(self.stop)?.checksum;
        Ok(theirs + link::memory()?)
    }

    /// From the word to go.
    fn fan_in(
        &mut self,
        transport: usize,
        size: usize,
        count: u64,
    ) -> Result<(Duration, u64), Failure> {
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
        let mut cpu = 0;
        for peer in &mut self.peers {
            cpu += peer.answer::<Done>(self.stop)?.cpu;
        }
        // The senders are numbered as they were met.
        let mut expected: Vec<_> = jobs.iter().map(expected_checksum).collect();
        expected.sort_unstable();
        checksums.sort_unstable();
        if checksums == expected {
            Ok((elapsed, cpu))
        } else {
            Err(self.wrong_bytes(&job))
        }
    }

    /// A job for so many senders, whose messages nobody has sent before.
    fn new_job(
        &mut self,
        kind: Kind,
        transport: usize,
        size: usize,
        count: u64,
        senders: u64,
    ) -> Job {
        // The floor carries a word, whatever the size.
        let size = if self.transports[transport].is_floor {
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

    /// Off the clock: whether what was received is what was sent.
    fn check(&self, job: &Job, checksum: u64) -> Result<(), Failure> {
        if checksum == expected_checksum(job) {
            Ok(())
        } else {
            Err(self.wrong_bytes(job))
        }
    }

    fn wrong_bytes(&self, job: &Job) -> Failure {
        let (name, size) = (self.transports[job.transport].name, job.size);
        Failure::Error(format!(
            "{name} delivered wrong bytes in messages of {size}; please report it"
        ))
    }
}
