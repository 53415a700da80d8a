//! What a route costs: messages a second through one, and the round trip through one beside that of a hop without it.
//!
//! `cargo bench -p buslane-broker --bench routes`: two processes, each on a processor of its own. This one sends and receives; the other runs
//! the routes, and, to compare with, a relay and an echo written by hand. They take turns in short rounds; ratios are round by round.
//! `BUSLANE_ROUNDS` says how many.
#![allow(missing_docs)]

#[path = "../../benches/common/mod.rs"]
mod common;

use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;
use std::time::{Duration, Instant};

use buslane::{ErrorKind, Publisher, Subscriber, WaitStrategy};
use buslane_broker::{Broker, Buses, Config};
use common::{Other, SIZE, bus, message, pin_to, spread};

const CONFIG: &str = r#"
    metrics = false
    [[route]]
    name = "forward"
    from = "forward/in"
    to = "forward/out"
    [[route]]
    name = "queue"
    queue = "queue/in"
    to = "queue/out"
    [[route]]
    name = "filter"
    from = "filter/in"
    to = "filter/out"
    where = '.pieces > 5'
    [[route]]
    name = "change"
    from = "change/in"
    to = "change/out"
    payload = '{id, total: (.pieces * .price)}'
    "#;
/// How long each measures in one round.
const TURN: Duration = Duration::from_millis(300);

fn main() {
    common::run(there, here);
}

/// The other process.
fn there(path: &Path) {
    pin_to(1);
    let bus = bus(path, WaitStrategy::default());
    for name in ["forward", "queue", "filter", "change"] {
        bus.topic(&format!("{name}/out")).unwrap();
    }
    for name in ["forward", "filter", "change"] {
        bus.topic(&format!("{name}/in")).unwrap();
    }
    for name in ["relay", "echo"] {
        let mut from = bus
            .topic(&format!("{name}/in"))
            .unwrap()
            .subscriber()
            .unwrap();
        let mut to = bus
            .topic(&format!("{name}/out"))
            .unwrap()
            .publisher()
            .unwrap();
        std::thread::spawn(move || {
            loop {
                match from.recv() {
                    Ok(frame) => to.send(&frame).unwrap(),
                    Err(e) if e.kind() == ErrorKind::Ended => {}
                    Err(e) => panic!("{e}"),
                }
            }
        });
    }
    let config = Config::parse(CONFIG).unwrap();
    let broker = Broker::start(config.routes(&mut Buses::new(&bus)).unwrap()).unwrap();
    broker.wait_until_running();
    println!("@ready");
    stdout().flush().unwrap();
    let mut line = String::new();
    stdin().lock().read_line(&mut line).unwrap();
    std::process::exit(0);
}

fn here(path: &Path) {
    let rounds = std::env::var("BUSLANE_ROUNDS").map_or(11, |n| n.parse().unwrap());
    let there = Other::start(path);
    pin_to(0);
    let bus = bus(path, WaitStrategy::default());
    let order = |n: u64| {
        let text = format!(
            r#"{{"id":{n},"pieces":{},"price":1.25,"note":""}}"#,
            6 + n % 4
        );
        format!("{text:<SIZE$}")
    };
    let orders: Vec<Vec<u8>> = (0..1024).map(|n| order(n).into_bytes()).collect();
    let plain: Vec<Vec<u8>> = (0..1024).map(|n| message(n).to_vec()).collect();
    assert!(
        orders
            .iter()
            .chain(&plain)
            .all(|message| message.len() == SIZE)
    );
    let mut rates = Vec::new();
    for (name, messages) in [
        ("relay", &plain),
        ("forward", &plain),
        ("filter", &orders),
        ("change", &orders),
    ] {
        let from = bus
            .topic(&format!("{name}/out"))
            .unwrap()
            .subscriber()
            .unwrap();
        let to = bus
            .topic(&format!("{name}/in"))
            .unwrap()
            .publisher()
            .unwrap();
        rates.push((name, to, from, messages, Vec::new()));
    }
    let mut ping = bus.topic("echo/in").unwrap().publisher().unwrap();
    let mut pong = bus.topic("echo/out").unwrap().subscriber().unwrap();
    let mut queue = bus.queue("queue/in").unwrap().producer().unwrap();
    let mut queued = bus.topic("queue/out").unwrap().subscriber().unwrap();
    let (mut hops, mut routed, mut queue_rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (_, to, from, messages, found) in &mut rates {
            found.push(rate(messages, from, |message| to.try_send(message)));
        }
        queue_rates.push(rate(&plain, &mut queued, |message| queue.try_push(message)));
        hops.push(round_trip(&mut ping, &mut pong));
        let (_, to, from, ..) = &mut rates[1];
        routed.push(round_trip(to, from));
    }
    println!("messages of {SIZE} bytes, {rounds} rounds: median (minimum to maximum)");
    let relay = rates[0].4.clone();
    let queue = ("queue", queue_rates);
    let others = rates.into_iter().map(|(name, .., found)| (name, found));
    for (name, found) in others.chain([queue]) {
        let ratios = found
            .iter()
            .zip(&relay)
            .map(|(one, relay)| one / relay)
            .collect();
        let found = found.iter().map(|rate| rate / 1e6).collect();
        println!(
            "{name:<8} {} million a second; to the relay {}",
            spread(found),
            spread(ratios)
        );
    }
    let ratios = routed
        .iter()
        .zip(&hops)
        .map(|(routed, hop)| routed / hop)
        .collect();
    println!(
        "round trip: without a route {} ns; through one {} ns; ratio {}",
        spread(hops),
        spread(routed),
        spread(ratios)
    );
    drop(there);
}

/// Messages a second that come through.
fn rate(
    messages: &[Vec<u8>],
    from: &mut Subscriber,
    mut send: impl FnMut(&[u8]) -> buslane::Result<()>,
) -> f64 {
    let (mut sent, mut received) = (0, 0);
    let begun = Instant::now();
    while begun.elapsed() < TURN || received < sent {
        let is_over = begun.elapsed() >= TURN;
        for _ in 0..if is_over { 0 } else { 256 } {
            match send(&messages[sent % messages.len()]) {
                Ok(()) => sent += 1,
                Err(e) if e.kind() == ErrorKind::Full => break,
                Err(e) => panic!("{e}"),
            }
        }
        loop {
            match from.try_recv() {
                Ok(Some(frame)) => {
                    std::hint::black_box(common::sum(&frame));
                    received += 1;
                }
                Ok(None) => break,
                Err(e) => panic!("{e}"),
            }
        }
    }
    received as f64 / begun.elapsed().as_secs_f64()
}

/// The median of some round trips, in nanoseconds.
fn round_trip(to: &mut Publisher, from: &mut Subscriber) -> f64 {
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < TURN {
        let sent = Instant::now();
        to.send(&message(0)).unwrap();
        std::hint::black_box(common::sum(&from.recv().unwrap()));
        times.push(sent.elapsed().as_nanos() as f64);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
