//! `cargo bench -p buslane-cli --bench monitor`: what looking costs those who are looked at. A publisher and a subscriber, each a process on a processor of its own, at full
//! rate; and beside them nobody, `buslane top`, or `buslane inspect` once a second.
//!
//! All take turns in each round, nobody twice: the second time shows how much two equal ones differ. Ratios are divided round by
//! round. Where there are two processors, what the onlooker computes is taken from one of the two: that is part of its cost.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use buslane::Bus;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;

const TOPIC: &str = "ticks";
const SIZE: usize = 64;
const ROUNDS: usize = 40;
/// In each of them somebody looks once.
const WINDOW: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_secs(1);
/// How long an onlooker has been there when the window begins.
const WARM_UP: Duration = Duration::from_millis(300);

/// Who looks.
#[derive(Clone, Copy)]
enum Onlooker {
    Nobody,
    NobodyAgain,
    Top,
    Inspect,
}

use Onlooker::{Inspect, Nobody, NobodyAgain, Top};

impl Onlooker {
    const ALL: [Self; 4] = [Nobody, NobodyAgain, Top, Inspect];

    fn name(self) -> &'static str {
        match self {
            Nobody => "nobody",
            NobodyAgain => "nobody again",
            Top => "top --json --interval 1s",
            Inspect => "inspect --json, each second",
        }
    }
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [part, bus, cpu] if part == "publish" => publish(Path::new(bus), cpu.parse().unwrap()),
        [part, bus, cpu] if part == "receive" => receive(Path::new(bus), cpu.parse().unwrap()),
        _ => measure(),
    }
}

fn pin(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &only).unwrap();
}

/// Sends for ever.
fn publish(bus: &Path, cpu: usize) {
    pin(cpu);
    let mut publisher = Bus::at(bus)
        .unwrap()
        .topic(TOPIC)
        .unwrap()
        .publisher()
        .unwrap();
    loop {
        publisher.send(&[7; SIZE]).unwrap();
    }
}

/// For each line with a number of nanoseconds receives for so long, and writes how many messages came in how many nanoseconds.
fn receive(bus: &Path, cpu: usize) {
    pin(cpu);
    let topic = Bus::at(bus).unwrap().topic(TOPIC).unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    for line in std::io::stdin().lines() {
        let window = Duration::from_nanos(line.unwrap().parse().unwrap());
        let (started, mut count, mut sum) = (Instant::now(), 0_u64, 0_u64);
        while started.elapsed() < window {
            for _ in 0..10_000 {
                sum += u64::from(subscriber.recv().unwrap()[SIZE - 1]);
                count += 1;
            }
        }
        assert_eq!(sum, 7 * count);
        println!("{count} {}", started.elapsed().as_nanos());
    }
}

/// A process that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A publisher and a subscriber.
struct Busy {
    _publisher: Running,
    _subscriber: Running,
    ask: ChildStdin,
    told: BufReader<ChildStdout>,
}

impl Busy {
    fn start(bus: &Path, cpus: (usize, usize)) -> Self {
        let part = |name: &str, cpu: usize| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.arg(name).arg(bus).arg(cpu.to_string());
            command
        };
        let mut subscriber = part("receive", cpus.1)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let ask = subscriber.stdin.take().unwrap();
        let told = BufReader::new(subscriber.stdout.take().unwrap());
        Self {
            _subscriber: Running(subscriber),
            _publisher: Running(part("publish", cpus.0).spawn().unwrap()),
            ask,
            told,
        }
    }

    /// Messages in a second.
    fn rate(&mut self, window: Duration) -> f64 {
        writeln!(self.ask, "{}", window.as_nanos()).unwrap();
        let mut line = String::new();
        self.told.read_line(&mut line).unwrap();
        let (count, nanoseconds) = line.trim().split_once(' ').unwrap();
        let number = |text: &str| text.parse::<f64>().unwrap();
        number(count) * 1e9 / number(nanoseconds)
    }
}

fn command(bus: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_buslane"));
    command.arg("--bus").arg(bus).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Inspects each second until it is told to end.
fn inspect(bus: &Path, end: &Receiver<()>) {
    while end.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let status = command(bus, &["inspect", TOPIC, "--json"]).status();
        assert!(status.unwrap().success());
    }
}

/// The processor time of all processes that were waited for.
fn children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let both = usage.user_time() + usage.system_time();
    Duration::from_micros(both.num_microseconds().unsigned_abs())
}

/// Messages in a second while somebody looks, and the share of a processor that this took.
fn round(busy: &mut Busy, bus: &Path, onlooker: Onlooker) -> (f64, f64) {
    let (before, started) = (children(), Instant::now());
    let mut rate = || {
        busy.rate(WARM_UP);
        busy.rate(WINDOW)
    };
    let rate = match onlooker {
        Nobody | NobodyAgain => rate(),
        Top => {
            let mut top = Running(command(bus, &["top", "--json"]).spawn().unwrap());
            let rate = rate();
            assert!(top.0.try_wait().unwrap().is_none(), "top has ended");
            // It puts itself away: nobody has to.
            kill(Pid::from_raw(top.0.id().cast_signed()), Signal::SIGTERM).unwrap();
            top.0.wait().unwrap();
            rate
        }
        Inspect => thread::scope(|scope| {
            let (end, ended) = channel();
            scope.spawn(move || inspect(bus, &ended));
            let rate = rate();
            drop(end);
            rate
        }),
    };
    let used = (children() - before).as_secs_f64();
    (rate, used / started.elapsed().as_secs_f64())
}

fn median(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    (
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    )
}

fn measure() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    let (Some(one), Some(other)) = (cpus.next(), cpus.next()) else {
        println!("monitor: this needs two processors");
        return;
    };
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bus = &dir.path().join("bus");
    let mut busy = Busy::start(bus, (one, other));
    busy.rate(WARM_UP);
    let mut all = Vec::new();
    for n in 0..ROUNDS {
        // Each begins in turn.
        let mut turns = Onlooker::ALL.map(|onlooker| (onlooker as usize, onlooker));
        turns.rotate_left(n % Onlooker::ALL.len());
        let mut found = turns.map(|(place, onlooker)| (place, round(&mut busy, bus, onlooker)));
        found.sort_by_key(|(place, _)| *place);
        all.push(found.map(|(_, found)| found));
    }
    println!("| who looks | messages/s | to nobody's | a processor's time |");
    println!("|---|---|---|---|");
    for (place, onlooker) in Onlooker::ALL.into_iter().enumerate() {
        let (rate, ..) = median(all.iter().map(|round| round[place].0));
        let (ratio, least, most) = median(all.iter().map(|round| round[place].0 / round[0].0));
        let (used, ..) = median(all.iter().map(|round| round[place].1));
        println!(
            "| {} | {:.1} million | {ratio:.3} ({least:.3}–{most:.3}) | {:.2} % |",
            onlooker.name(),
            rate / 1e6,
            used * 100.0
        );
    }
}
