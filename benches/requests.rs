//! What requests cost between processes: many under way at a time, many clients, many servers, a client's first call, and
//! how soon one learns that its server was killed. `cargo bench --bench requests`. (Round trips, looked for and slept for:
//! `buslane bench request`.)
//!
//! The contenders take turns in short rounds; a ratio is divided round by round. Every reply is checked.

mod common;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use buslane::{CallOptions, Client, Pending, WaitStrategy};
use common::{Other, bus, message, pin_to, spread, sum};
use nix::sched::{sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

const ROUNDS: usize = 21;
const REQUESTS: u64 = 200_000;
const UNDER_WAY: usize = 64;
const CALLS: u64 = 20_000;
const IDLE: usize = 100;
const CLIENTS: usize = 100;
const SERVERS: usize = 8;
const TURN: Duration = Duration::from_secs(2);
const KILLS: usize = 100;

// ----------------------------------------------------------------------------------------------------- the other side

/// Replies with what it is asked, until it is killed.
fn echo(path: &Path, name: &str, wait: WaitStrategy) {
    let mut server = bus(path, wait).service(name).unwrap().server().unwrap();
    println!("@serving");
    let mut reply = message(0);
    loop {
        let request = server.recv().unwrap();
        reply[..8].copy_from_slice(&request[..8]);
        let _ = request.reply(&reply);
    }
}

fn child(path: &Path) {
    println!("@ready");
    for line in std::io::stdin().lines() {
        match &*line.unwrap() {
            "spin" => {
                pin_to(1);
                echo(path, "one", WaitStrategy::Spin);
            }
            "serve" => echo(path, "many", WaitStrategy::Adaptive),
            "hold" => {
                let wait = WaitStrategy::Sleep;
                let mut server = bus(path, wait).service("fatal").unwrap().server().unwrap();
                println!("@serving");
                let _request = server.recv().unwrap();
                println!("@taken");
                nix::unistd::pause();
            }
            other => panic!("told {other}"),
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- this side

fn call(client: &mut Client, number: u64) {
    let reply = client.call(&message(number)).unwrap().unwrap();
    assert_eq!(*reply, message(number));
}

/// Millions of requests a second, with so many under way.
fn pipelined(path: &Path) {
    let service = bus(path, WaitStrategy::Spin).service("one").unwrap();
    let client = service.client().unwrap();
    let settle = |under_way: &mut VecDeque<Pending>| {
        let pending = under_way.pop_front().unwrap();
        sum(&pending.wait().unwrap().unwrap())
    };
    let numbers = 0..REQUESTS;
    let expected = numbers.fold(0_u64, |all, n| all.wrapping_add(sum(&message(n))));
    let mut request = message(0);
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let mut under_way = VecDeque::new();
        let mut all = 0_u64;
        for number in 0..REQUESTS {
            if under_way.len() == UNDER_WAY {
                all = all.wrapping_add(settle(&mut under_way));
            }
            request[..8].copy_from_slice(&number.to_le_bytes());
            under_way.push_back(client.start(&request).unwrap());
        }
        while !under_way.is_empty() {
            all = all.wrapping_add(settle(&mut under_way));
        }
        assert_eq!(all, expected);
        rates.push(REQUESTS as f64 / started.elapsed().as_secs_f64() / 1e6);
    }
    println!("{UNDER_WAY} requests under way: {} M/s", spread(rates));
}

/// What a round trip costs more, for each client that has asked once.
fn idle(path: &Path) {
    let service = bus(path, WaitStrategy::Spin).service("one").unwrap();
    let mut client = service.client().unwrap();
    let turn = |client: &mut Client| {
        let started = Instant::now();
        (0..CALLS).for_each(|number| call(client, number));
        started.elapsed().as_secs_f64() * 1e9 / CALLS as f64
    };
    let mut more = Vec::new();
    for _ in 0..ROUNDS / 2 {
        turn(&mut client);
        let alone = turn(&mut client);
        let mut others: Vec<_> = (0..IDLE).map(|_| service.client().unwrap()).collect();
        others.iter_mut().for_each(|client| call(client, 0));
        turn(&mut client);
        more.push((turn(&mut client) - alone) / IDLE as f64);
    }
    println!(
        "a call, for each of {IDLE} idle clients: {} ns more",
        spread(more)
    );
}

/// Clients that each have a request under way at any time: the slowest to the mean.
fn fair(path: &Path) {
    let service = bus(path, WaitStrategy::Adaptive).service("many").unwrap();
    let clients: Vec<_> = (0..CLIENTS).map(|_| service.client().unwrap()).collect();
    let start = |client: &Client| client.start(&message(7)).unwrap();
    let mut under_way: Vec<_> = clients.iter().map(start).collect();
    let mut counts = [0_u64; CLIENTS];
    let started = Instant::now();
    while started.elapsed() < TURN {
        for (i, pending) in under_way.iter_mut().enumerate() {
            if let Some(answer) = pending.try_wait().unwrap() {
                assert_eq!(answer.unwrap(), message(7));
                *pending = start(&clients[i]);
                counts[i] += 1;
            }
        }
    }
    report_shares("one thread for all", &counts);
}

/// Clients that each ask again and again, each in a thread of its own, which all want the processor.
fn crowded(path: &Path) {
    let service = bus(path, WaitStrategy::Sleep).service("many").unwrap();
    let barrier = Barrier::new(CLIENTS);
    let counts: Vec<u64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = service.client().unwrap();
                    call(&mut client, 0);
                    barrier.wait();
                    let (started, mut count) = (Instant::now(), 0);
                    while started.elapsed() < TURN {
                        call(&mut client, count);
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let counts = threads.into_iter().map(|thread| thread.join().unwrap());
        counts.collect()
    });
    report_shares("a thread for each", &counts);
}

fn report_shares(how: &str, counts: &[u64]) {
    let all = counts.iter().sum::<u64>() as f64;
    let share = |count: Option<&u64>| *count.unwrap() as f64 * counts.len() as f64 / all;
    println!(
        "{} clients on one server, {how}: {:.0} calls a second in all, the slowest client {:.2} of the mean, the fastest {:.2}",
        counts.len(),
        all / TURN.as_secs_f64(),
        share(counts.iter().min()),
        share(counts.iter().max())
    );
}

/// From nothing to the first reply, the bus opened anew.
fn first_call(path: &Path) {
    let mut times = Vec::new();
    for number in 0..KILLS as u64 {
        let started = Instant::now();
        let service = bus(path, WaitStrategy::Adaptive).service("many").unwrap();
        let mut client = service.client().unwrap();
        call(&mut client, number);
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    println!("a new client's first call: {} ms", spread(times));
}

fn servers(path: &Path) {
    let service = bus(path, WaitStrategy::Adaptive).service("many").unwrap();
    let mut client = service.client().unwrap();
    let (started, mut count) = (Instant::now(), 0);
    let mut longest = Duration::ZERO;
    while started.elapsed() < TURN {
        let asked = Instant::now();
        call(&mut client, count);
        longest = longest.max(asked.elapsed());
        count += 1;
    }
    println!(
        "{SERVERS} servers for one client: {:.0} calls a second, the longest {:.1} ms",
        count as f64 / TURN.as_secs_f64(),
        longest.as_secs_f64() * 1e3
    );
}

/// `kill -9` of the only server, which has the request.
fn deaths(path: &Path, options: &CallOptions, name: &str) {
    let service = bus(path, WaitStrategy::Sleep).service("fatal").unwrap();
    let mut times = Vec::new();
    for number in 0..KILLS as u64 {
        let mut other = Other::start(path);
        other.tell("hold");
        other.hear("@serving");
        let mut client = service.client().unwrap();
        let options = options.clone();
        let asking = thread::spawn(move || {
            let error = client.call_with(&options, &message(number)).unwrap_err();
            let seen = Instant::now();
            assert_eq!(error.kind(), buslane::ErrorKind::ServerDied);
            seen
        });
        other.hear("@taken");
        times.push(other.time_from_kill(asking));
    }
    println!(
        "kill -9 of the only server, to ServerDied ({name}): {} ms",
        spread(times)
    );
}

fn main() {
    common::run(child, here);
}

fn here(path: &Path) {
    let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let serve = |how: &str| {
        let mut other = Other::start(path);
        other.tell(how);
        other.hear("@serving");
        other
    };
    let other = serve("spin");
    pin_to(0);
    pipelined(path);
    idle(path);
    drop(other);
    sched_setaffinity(Pid::from_raw(0), &before).unwrap();
    let other = serve("serve");
    first_call(path);
    fair(path);
    crowded(path);
    let others: Vec<_> = (1..SERVERS).map(|_| serve("serve")).collect();
    servers(path);
    drop((other, others));
    deaths(path, &CallOptions::new(), "at least once");
    deaths(path, &CallOptions::new().at_most_once(), "at most once");
}
