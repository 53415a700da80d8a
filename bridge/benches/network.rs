//! What the bridge carries beside what Zenoh alone carries, between the same two network namespaces, in turns:
//!
//! ```sh
//! cargo bench -p buslane-bridge-zenoh --bench network      # needs root
//! ```
//!
//! Bare: a publisher and a subscriber, each with a Zenoh session. Bridged: a publisher and a subscriber, each on the bus of its
//! namespace, and a bridge in each. Messages are counted where they are received.

#[path = "../tests/common/mod.rs"]
mod common;

use std::env;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use buslane::{Bus, Start};
use zenoh::bytes::ZBytes;
use zenoh::qos::CongestionControl;
use zenoh::{Config, Session, Wait};

use common::{Net, Process, can_have_hosts};

const SIZES: [usize; 3] = [64, 1024, 65536];
const ROUNDS: usize = 7;
const TIME: Duration = Duration::from_millis(1500);
const PINGS: usize = 2000;

fn main() {
    let args: Vec<String> = env::args().collect();
    let number = |at: usize| args.get(at).and_then(|text| text.parse().ok()).unwrap_or(0);
    match args.get(1).map(String::as_str) {
        Some("bare-pub") => bare_pub(number(2)),
        Some("bare-sub") => bare_sub(),
        Some("bare-ping") => bare_ping(),
        Some("bare-echo") => bare_echo(),
        Some("bus-pub") => bus_pub(&args[2], number(3)),
        Some("bus-sub") => bus_sub(&args[2]),
        Some("bus-ping") => bus_ping(&args[2]),
        Some("bus-echo") => bus_echo(&args[2]),
        _ if can_have_hosts() => compare(),
        _ => {}
    }
}

fn compare() {
    let net = Net::new(2);
    let bridges = [1, 2].map(|host| net.bridge(host, &["**"]));
    let actor = |host: usize, args: &[&str]| {
        let mut command: Command = net.command(host, env::current_exe().unwrap());
        command.args(args).stdout(Stdio::piped());
        Process::spawn(command)
    };
    let buses = [1, 2].map(|host| net.path(host).display().to_string());
    for size in SIZES {
        let text = size.to_string();
        let mut ratios = Vec::new();
        for round in 0..ROUNDS {
            let bare = {
                let receiver = actor(2, &["bare-sub"]);
                let sender = actor(1, &["bare-pub", &text]);
                result(sender, receiver)
            };
            let before = bridges.each_ref().map(Process::cpu);
            let bridged = {
                let receiver = actor(2, &["bus-sub", &buses[1]]);
                let sender = actor(1, &["bus-pub", &buses[0], &text]);
                result(sender, receiver)
            };
            let used = [0, 1].map(|at| (bridges[at].cpu() - before[at]).as_secs_f64());
            let ratio = bridged.rate / bare.rate;
            println!(
                "{size:>6} B round {round}: bare {:.0}/s ({:.0} MB/s; cpu pub {:.2} s, sub {:.2} s), bridged {:.0}/s (cpu pub {:.2} s, \
                 bridges {:.2} s, {:.2} s, sub {:.2} s), ratio {ratio:.2}",
                bare.rate,
                bare.rate * size as f64 / 1e6,
                bare.cpu[0],
                bare.cpu[1],
                bridged.rate,
                bridged.cpu[0],
                used[0],
                used[1],
                bridged.cpu[1],
            );
            ratios.push(ratio);
        }
        ratios.sort_by(f64::total_cmp);
        println!(
            "{size:>6} B: bridged to bare {:.2} ({:.2}-{:.2})",
            ratios[ROUNDS / 2],
            ratios[0],
            ratios[ROUNDS - 1]
        );
    }
    for round in 0..3 {
        let bare = {
            let _echo = actor(2, &["bare-echo"]);
            last_line(actor(1, &["bare-ping"]))
        };
        let bridged = {
            let _echo = actor(2, &["bus-echo", &buses[1]]);
            last_line(actor(1, &["bus-ping", &buses[0]]))
        };
        println!("round trip of 64 B, round {round}: bare {bare}; bridged {bridged}");
    }
}

struct Measured {
    rate: f64,
    /// Seconds of the sender, and of the receiver.
    cpu: [f64; 2],
}

/// The receiver says how many it received in how many nanoseconds; each its processor time.
fn result(sender: Process, receiver: Process) -> Measured {
    let numbers = |line: String| -> Vec<f64> {
        line.split_whitespace()
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    let sent = numbers(last_line(sender));
    let received = numbers(last_line(receiver));
    Measured {
        rate: received[0] / received[1] * 1e9,
        cpu: [sent[0], received[2]],
    }
}

fn last_line(process: Process) -> String {
    let output = process.output();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().last().unwrap_or_default().to_owned()
}

/// The processor time of this process so far.
fn cpu() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
        .sum()
}

fn session(listens: bool) -> Session {
    let mut config = Config::default();
    let (key, endpoint) = match listens {
        true => ("listen/endpoints", r#"["tcp/10.9.0.2:7448"]"#),
        false => ("connect/endpoints", r#"["tcp/10.9.0.2:7448"]"#),
    };
    config.insert_json5(key, endpoint).unwrap();
    // The bridges are not to be found: nothing of this goes to them.
    config
        .insert_json5("scouting/multicast/enabled", "false")
        .unwrap();
    zenoh::open(config).wait().unwrap()
}

fn bare_pub(size: usize) {
    let session = session(false);
    let publisher = session
        .declare_publisher("bare/there")
        .congestion_control(CongestionControl::Block)
        .wait()
        .unwrap();
    while !publisher.matching_status().wait().unwrap().matching() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let payload = ZBytes::from(vec![7; size]);
    let started = Instant::now();
    while started.elapsed() < TIME {
        for _ in 0..10 {
            publisher.put(payload.clone()).wait().unwrap();
        }
    }
    publisher.put(b"end").wait().unwrap();
    publisher.undeclare().wait().unwrap();
    session.close().wait().unwrap();
    println!("{}", cpu());
}

fn bare_sub() {
    let session = session(true);
    let (told, end) = mpsc::channel();
    let (mut count, mut first) = (0_u64, None);
    let _subscriber = session
        .declare_subscriber("bare/there")
        .callback_mut(move |sample| {
            let first = *first.get_or_insert_with(Instant::now);
            if sample.payload().len() == 3 {
                let _ = told.send((count, first.elapsed()));
            }
            count += 1;
        })
        .wait()
        .unwrap();
    let (count, time) = end.recv().unwrap();
    println!("{count} {} {}", time.as_nanos(), cpu());
}

fn bare_ping() {
    let session = session(false);
    let (told, pongs) = mpsc::channel();
    let _subscriber = session
        .declare_subscriber("bare/back")
        .callback(move |_| told.send(()).unwrap())
        .wait()
        .unwrap();
    let publisher = session
        .declare_publisher("bare/there")
        .express(true)
        .wait()
        .unwrap();
    while !publisher.matching_status().wait().unwrap().matching() {
        std::thread::sleep(Duration::from_millis(5));
    }
    // The way back may not be known yet.
    publisher.put([0; 64]).wait().unwrap();
    while pongs.recv_timeout(Duration::from_millis(50)).is_err() {
        publisher.put([0; 64]).wait().unwrap();
    }
    while pongs.recv_timeout(Duration::from_millis(50)).is_ok() {}
    pings(|| {
        publisher.put([0; 64]).wait().unwrap();
        pongs.recv().unwrap();
    });
}

fn bare_echo() {
    let session = session(true);
    let publisher = session
        .declare_publisher("bare/back")
        .express(true)
        .wait()
        .unwrap();
    let _subscriber = session
        .declare_subscriber("bare/there")
        .callback(move |sample| publisher.put(sample.payload().clone()).wait().unwrap())
        .wait()
        .unwrap();
    std::thread::park();
}

fn bus_pub(path: &str, size: usize) {
    let topic = Bus::at(path)
        .unwrap()
        .topic(&format!("there/{size}"))
        .unwrap();
    let mut publisher = topic.publisher().unwrap();
    publisher.wait_for_subscribers(1, None).unwrap();
    let payload = vec![7; size];
    let started = Instant::now();
    while started.elapsed() < TIME {
        for _ in 0..10 {
            publisher.send(&payload).unwrap();
        }
    }
    publisher.send(b"end").unwrap();
    publisher.wait_delivered(None).unwrap();
    println!("{}", cpu());
}

fn bus_sub(path: &str) {
    let bus = Bus::at(path).unwrap();
    let mut subscriber = bus.select_from::<[u8]>(&["there/*"], Start::Now).unwrap();
    let (mut count, mut first) = (0_u64, None);
    loop {
        let message = match subscriber.recv() {
            Ok(message) => message,
            Err(e) if e.kind() == buslane::ErrorKind::Ended => continue,
            Err(e) => panic!("{e}"),
        };
        let first = *first.get_or_insert_with(Instant::now);
        if message.len() == 3 {
            println!("{count} {} {}", first.elapsed().as_nanos(), cpu());
            return;
        }
        count += 1;
    }
}

fn bus_ping(path: &str) {
    let bus = Bus::at(path).unwrap();
    let mut pongs = bus.topic("back").unwrap().subscriber().unwrap();
    let mut publisher = bus.topic("ping").unwrap().publisher().unwrap();
    publisher.wait_for_subscribers(1, None).unwrap();
    publisher.send(&[0; 64]).unwrap();
    while pongs
        .recv_timeout(Duration::from_millis(50))
        .unwrap()
        .is_none()
    {
        publisher.send(&[0; 64]).unwrap();
    }
    while pongs
        .recv_timeout(Duration::from_millis(50))
        .unwrap()
        .is_some()
    {}
    pings(|| {
        publisher.send(&[0; 64]).unwrap();
        drop(pongs.recv().unwrap());
    });
}

fn bus_echo(path: &str) {
    let bus = Bus::at(path).unwrap();
    let mut pings = bus.topic("ping").unwrap().subscriber().unwrap();
    let mut publisher = bus.topic("back").unwrap().publisher().unwrap();
    while let Ok(ping) = pings.recv() {
        publisher.send(&ping).unwrap();
    }
}

fn pings(mut once: impl FnMut()) {
    let mut times: Vec<Duration> = (0..PINGS)
        .map(|_| {
            let started = Instant::now();
            once();
            started.elapsed()
        })
        .collect();
    times.sort();
    println!(
        "p50 {:?}, p99 {:?}",
        times[PINGS / 2],
        times[PINGS * 99 / 100]
    );
}
