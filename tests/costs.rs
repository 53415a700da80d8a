//! What the bus costs, measured without a clock: instructions, bytes, processor time, wake-ups, and files.
//!
//! - A message costs its sender the same number of instructions for one awake subscriber as for eight (callgrind).
//! - A publisher takes its capacity and two pages, a subscriber two pages and one more for each 64 lanes.
//! - Who waits uses less than a thousandth of a processor.
//! - Publishers that come and go leave nothing behind.
//!
//! Set-up times are printed, and not judged. `--nocapture` shows the numbers.

#[path = "common/callgrind.rs"]
mod callgrind;

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use buslane::{Bus, DEFAULT_CAPACITY, ErrorKind, Publisher, Subscriber, WaitStrategy};
use tempfile::TempDir;

const PAGE: u64 = 4096;

/// A directory that is removed at the end, and a bus in it.
fn bus(capacity: usize) -> (TempDir, Bus) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("bus");
    (dir, Bus::builder().capacity(capacity).at(path).unwrap())
}

/// The files in `dir` whose names begin with `prefix`.
fn files(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(prefix)
        })
        .collect()
}

/// One test at a time: each would be part of what another one measures.
fn alone() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) {
        "with debug assertions"
    } else {
        "release"
    }
}

// ---------------------------------------------------------------------------------------------------- child processes

/// What a child process is to do; it is this very program, told to run [`child`] alone.
const ROLE: &str = "BUSLANE_COSTS_ROLE";
/// The path that its role works on.
const PLACE: &str = "BUSLANE_COSTS_PLACE";

/// Turns `command`, which runs a program with these arguments, into a child with this role.
fn with_role(mut command: Command, role: &str, place: &Path) -> Command {
    command
        .arg(env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(PLACE, place);
    command
}

/// No test: what a child process does.
#[test]
fn child() {
    let (Ok(role), Some(place)) = (env::var(ROLE), env::var_os(PLACE)) else {
        return;
    };
    let place = Path::new(&place);
    match role.split(' ').collect::<Vec<_>>()[..] {
        ["send", subscribers, size] => {
            send_and_drain(place, subscribers.parse().unwrap(), size.parse().unwrap());
        }
        ["wait_for_message", strategy] => wait_for_message(place, by_name(strategy)),
        ["wait_for_room", strategy] => wait_for_room(place, by_name(strategy)),
        _ => panic!("no such role: {role}"),
    }
}

// ------------------------------------------------------------------------------------------------------- instructions

/// Messages sent before the counting: a subscriber's arrival is noticed with the first one.
const WARM_UP: usize = 1000;
/// Messages sent between two drainings; less than a ring holds, so that no sending waits.
const BURST: usize = 10_000;
const BURSTS: usize = 10;

/// What is counted: callgrind collects in here, and in what this calls.
#[inline(never)]
fn sends_counted(publisher: &mut Publisher, message: &[u8], count: usize) {
    for _ in 0..count {
        publisher.send(message).unwrap();
    }
}

/// A name of its own for what is not counted.
fn drain_all(subscribers: &mut [Subscriber], count: usize) {
    for subscriber in subscribers {
        for _ in 0..count {
            assert!(subscriber.try_recv().unwrap().is_some());
        }
        assert!(subscriber.try_recv().unwrap().is_none());
    }
}

fn send_and_drain(place: &Path, subscribers: usize, size: usize) {
    let bus = Bus::builder().capacity(1 << 20).at(place).unwrap();
    let topic = bus.topic("t").unwrap();
    let mut subscribers: Vec<_> = (0..subscribers)
        .map(|_| topic.subscriber().unwrap())
        .collect();
    let mut publisher = topic.publisher().unwrap();
    let message = vec![7; size];
    for _ in 0..WARM_UP {
        publisher.send(&message).unwrap();
    }
    drain_all(&mut subscribers, WARM_UP);
    for _ in 0..BURSTS {
        sends_counted(&mut publisher, &message, BURST);
        drain_all(&mut subscribers, BURST);
    }
}

/// Instructions of the sender for each message. `None`: there is no valgrind here.
fn instructions(subscribers: usize, size: usize) -> Option<f64> {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let role = format!("send {subscribers} {size}");
    let total = callgrind::count("*sends_counted*", |valgrind| {
        with_role(valgrind, &role, &dir.path().join("bus"))
    })?;
    Some(total as f64 / (BURST * BURSTS) as f64)
}

#[test]
fn sending_costs_the_same_for_eight_subscribers() {
    let _alone = alone();
    for size in [8, 64] {
        let (Some(one), Some(eight)) = (instructions(1, size), instructions(8, size)) else {
            println!("SKIPPED: no valgrind here, so instructions can't be counted (CI has it)");
            return;
        };
        let ratio = eight / one;
        println!(
            "send of {size} B ({}): {one:.1} instructions with 1 awake subscriber, {eight:.1} with 8, ratio {ratio:.4}",
            profile()
        );
        assert!(ratio <= 1.05, "{one} and {eight} instructions");
    }
}

// -------------------------------------------------------------------------------------------------------------- memory

/// Bytes that a file seems to have, and those that it takes.
fn size_and_allocated(path: &Path) -> (u64, u64) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.len(), metadata.blocks() * 512)
}

fn only(mut paths: Vec<PathBuf>) -> PathBuf {
    assert_eq!(paths.len(), 1, "{paths:?}");
    paths.remove(0)
}

#[test]
fn a_lane_takes_its_capacity_and_two_pages_at_most() {
    let _alone = alone();
    for capacity in [4 << 10, 1 << 20, 4 << 20] {
        let (_dir, bus) = bus(capacity);
        let topic = bus.topic("t").unwrap();
        let mut subscriber = topic.subscriber().unwrap();
        let mut publisher = topic.publisher().unwrap();
        // Once around, so that all that is ever touched is.
        for _ in 0..capacity / 512 {
            publisher.send(&[7; 1000]).unwrap();
            assert_eq!(subscriber.recv().unwrap().len(), 1000);
        }
        let place = bus.path().join("topics/t");
        let (lane, lane_takes) = size_and_allocated(&only(files(&place, "lane.")));
        let (cursor, cursor_takes) = size_and_allocated(&only(files(&place, "cursor.")));
        println!(
            "capacity {capacity}: the lane has {lane} B and takes {lane_takes} B, \
             the cursor has {cursor} B and takes {cursor_takes} B"
        );
        let limit = capacity as u64 + 2 * PAGE;
        assert!(lane <= limit && lane_takes <= limit);
        assert!(cursor_takes <= 2 * PAGE);
    }
}

#[test]
fn a_cursor_takes_a_page_more_for_each_64_lanes() {
    let _alone = alone();
    let (_dir, bus) = bus(4096);
    let topic = bus.topic("t").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut publishers = Vec::new();
    for lanes in [0, 1, 64, 65, 128, 200] {
        publishers.resize_with(lanes, || topic.publisher().unwrap());
        assert!(subscriber.try_recv().unwrap().is_none());
        let cursor = only(files(&bus.path().join("topics/t"), "cursor."));
        let (_, takes) = size_and_allocated(&cursor);
        println!("the cursor of a subscriber to {lanes} lanes takes {takes} B");
        assert!(takes <= 2 * PAGE + (lanes as u64).div_ceil(64) * PAGE);
    }
}

// ------------------------------------------------------------------------------------------------------------- waiting

/// How long the waiting is watched.
const WATCHED: Duration = Duration::from_secs(10);
/// A thousandth of that.
const CPU_MAX: Duration = Duration::from_millis(10);
/// A look each 100 ms at most (slices are 250 ms), for wakers that died, and a fifth more for whatever else wakes a thread.
const SWITCHES_MAX: u64 = 120;

fn by_name(strategy: &str) -> WaitStrategy {
    match strategy {
        "adaptive" => WaitStrategy::Adaptive,
        "sleep" => WaitStrategy::Sleep,
        _ => panic!("no such strategy: {strategy}"),
    }
}

/// Says that the waiting begins now.
fn report_ready(place: &Path) {
    fs::write(place.join("ready"), "").unwrap();
}

fn bus_in(place: &Path) -> Bus {
    Bus::builder().capacity(4096).at(place.join("bus")).unwrap()
}

fn wait_for_message(place: &Path, strategy: WaitStrategy) {
    let bus = bus_in(place);
    let topic = bus.topic_builder("t").wait(strategy).open().unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    report_ready(place);
    assert_eq!(&*subscriber.recv().unwrap(), b"at last");
}

fn wait_for_room(place: &Path, strategy: WaitStrategy) {
    let bus = bus_in(place);
    let topic = bus.topic_builder("t").wait(strategy).open().unwrap();
    let mut publisher = topic.publisher().unwrap();
    while publisher.try_send(b"for now").is_ok() {}
    report_ready(place);
    publisher.send(b"at last").unwrap();
}

/// Processor time of all threads of a process so far, and how often they gave up their processor.
fn time_and_switches(pid: u32) -> (Duration, u64) {
    let (mut time_ns, mut switches) = (0, 0);
    for task in files(Path::new(&format!("/proc/{pid}/task")), "") {
        // The first number: nanoseconds on a processor. /proc/<pid>/stat only has hundredths of a second.
        let times = fs::read_to_string(task.join("schedstat")).unwrap();
        time_ns += number(times.split(' ').next());
        let status = fs::read_to_string(task.join("status")).unwrap();
        switches += number(
            status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:").map(str::trim)),
        );
    }
    (Duration::from_nanos(time_ns), switches)
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap()
}

/// Clock ticks (hundredths of a second) of a process so far, as `top` counts them.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name in parentheses, which may contain anything.
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<_> = rest.split(' ').collect();
    number(fields.get(11).copied()) + number(fields.get(12).copied())
}

/// One process that waits, and this one, which lets it.
struct Waiting {
    role: String,
    process: Child,
    _bus: Bus,
    publisher: Option<Publisher>,
    subscriber: Option<Subscriber>,
    _dir: TempDir,
}

impl Waiting {
    fn start(role: String) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let bus = bus_in(dir.path());
        let topic = bus.topic("t").unwrap();
        let (mut publisher, mut subscriber) = (None, None);
        if role.starts_with("wait_for_message") {
            publisher = Some(topic.publisher().unwrap());
        } else {
            subscriber = Some(topic.subscriber().unwrap());
        }
        // `env` becomes what it is to run: its process is ours.
        let mut process = with_role(Command::new("env"), &role, dir.path())
            .spawn()
            .unwrap();
        while !dir.path().join("ready").exists() {
            assert!(process.try_wait().unwrap().is_none(), "{role} has ended");
            thread::sleep(Duration::from_millis(10));
        }
        Self {
            role,
            process,
            _bus: bus,
            publisher,
            subscriber,
            _dir: dir,
        }
    }

    /// Gives it what it waits for; it ends, and well.
    fn end(&mut self) {
        if let Some(publisher) = &mut self.publisher {
            publisher.send(b"at last").unwrap();
        }
        if let Some(subscriber) = &mut self.subscriber {
            while &*subscriber.recv().unwrap() != b"at last" {}
        }
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Of a test that has failed; one that has ended can't be killed any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn waiting_takes_less_than_a_thousandth_of_a_processor() {
    let _alone = alone();
    let roles = ["wait_for_message", "wait_for_room"]
        .into_iter()
        .flat_map(|what| ["adaptive", "sleep"].map(|how| format!("{what} {how}")));
    let mut waiting: Vec<_> = roles.map(Waiting::start).collect();
    // They look about before they sleep.
    thread::sleep(Duration::from_millis(500));
    let read = || -> Vec<_> {
        let pids = waiting.iter().map(|one| one.process.id());
        pids.map(|pid| (time_and_switches(pid), ticks(pid)))
            .collect()
    };
    let before = read();
    thread::sleep(WATCHED);
    let after = read();
    let changes: Vec<_> = before
        .into_iter()
        .zip(after)
        .map(
            |(((time_0, switches_0), ticks_0), ((time_1, switches_1), ticks_1))| {
                (time_1 - time_0, switches_1 - switches_0, ticks_1 - ticks_0)
            },
        )
        .collect();
    for (one, (time, switches, ticks)) in waiting.iter().zip(&changes) {
        println!(
            "{} in {WATCHED:?}: {time:?} of processor time ({ticks} ticks), {switches} switches",
            one.role
        );
    }
    waiting.iter_mut().for_each(Waiting::end);
    for (time, switches, _) in changes {
        assert!(time <= CPU_MAX, "{time:?} of processor time");
        assert!(switches <= SWITCHES_MAX, "{switches} switches");
    }
}

// ----------------------------------------------------------------------------------------------------------- leftovers

#[test]
fn a_thousand_short_lived_publishers_leave_nothing() {
    let _alone = alone();
    const PUBLISHERS: u64 = 1000;
    let (_dir, bus) = bus(1 << 16);
    let path = bus.path().to_owned();
    let place = path.join("topics/t");
    let mut subscriber = bus.topic("t").unwrap().subscriber().unwrap();
    let mut received = 0;
    let mut lanes_max = 0;
    let mut drain = |subscriber: &mut Subscriber| {
        loop {
            match subscriber.try_recv() {
                Ok(Some(message)) => assert_eq!(*message, u64::to_le_bytes(received)),
                Ok(None) => return received,
                Err(e) if e.kind() == ErrorKind::Ended => return received,
                Err(e) => panic!("{e}"),
            }
            received += 1;
        }
    };
    for number in 0..PUBLISHERS {
        // All anew, as a process that is started for one message does.
        let bus = Bus::at(&path).unwrap();
        let mut publisher = bus.topic("t").unwrap().publisher().unwrap();
        publisher.send(&number.to_le_bytes()).unwrap();
        drop((publisher, bus));
        lanes_max = lanes_max.max(files(&place, "lane.").len());
        if number % 37 == 0 {
            assert_eq!(drain(&mut subscriber), number + 1);
        }
    }
    assert_eq!(drain(&mut subscriber), PUBLISHERS);
    println!("{PUBLISHERS} short-lived publishers: at most {lanes_max} lanes at once");
    assert!(lanes_max <= 3);
    assert_eq!(files(&place, "lane."), Vec::<PathBuf>::new());
    assert_eq!(files(&path.join("members"), "").len(), 1);
    drop((subscriber, bus));
    assert_eq!(
        files(&place, ""),
        [place.join("locks"), place.join("topic")]
    );
    assert_eq!(files(&path.join("members"), ""), Vec::<PathBuf>::new());
}

// -------------------------------------------------------------------------------------------------------------- set-up

/// The median time that `make` takes; what it makes is dropped each time, uncounted.
fn median<T>(mut make: impl FnMut() -> T) -> Duration {
    let mut times: Vec<_> = (0..101)
        .map(|_| {
            let started = Instant::now();
            let made = make();
            let time = started.elapsed();
            drop(made);
            time
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// For people; a clock is nothing to judge by.
#[test]
fn set_up_times() {
    let _alone = alone();
    for capacity in [1 << 20, DEFAULT_CAPACITY] {
        let (_dir, bus) = bus(capacity);
        let topic = bus.topic("t").unwrap();
        let opening = median(|| Bus::at(bus.path()).unwrap());
        let publisher = median(|| topic.publisher().unwrap());
        let _publisher = topic.publisher().unwrap();
        let subscriber = median(|| topic.subscriber().unwrap());
        println!(
            "medians at a capacity of {capacity} ({}): bus {opening:?}, publisher {publisher:?}, subscriber {subscriber:?}",
            profile()
        );
    }
}
