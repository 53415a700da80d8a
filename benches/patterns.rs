//! What the patterns cost between two processes, pinned to two processors: work queues, a busy lane among idle ones, tasks
//! that sleep, and how soon another consumer has what a killed one had in hand. `cargo bench --bench patterns`.
//!
//! The contenders take turns in short rounds; a ratio is divided round by round. Contents are checked by a sum.

mod common;

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use buslane::{Publisher, Subscriber, WaitStrategy};
use common::{Other, bus, message, pin_to, spread, sum};
use nix::sched::{sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

const ROUNDS: usize = 21;
const MESSAGES: u64 = 500_000;
const ROUND_TRIPS: u64 = 500;
const KILLS: usize = 100;
const IDLE: usize = 64;

fn expected(count: u64) -> u64 {
    (0..count).fold(0, |all, number| all.wrapping_add(sum(&message(number))))
}

/// Runs a future on this thread, which is parked meanwhile.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

fn tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}

// ----------------------------------------------------------------------------------------------------- the other side

fn send(publisher: &mut Publisher, count: u64) {
    (0..count).for_each(|number| publisher.send(&message(number)).unwrap());
}

async fn answer(pings: &mut Subscriber, pongs: &mut Publisher, count: u64) {
    for _ in 0..count {
        let ping = pings.recv_async().await.unwrap();
        pongs.send_async(&ping).await.unwrap();
    }
}

fn child(path: &Path) {
    pin_to(1);
    let (fast, sleepy) = (
        bus(path, WaitStrategy::Adaptive),
        bus(path, WaitStrategy::Sleep),
    );
    let mut producer = fast.queue("jobs").unwrap().producer().unwrap();
    let (one, many) = (fast.topic("one").unwrap(), fast.topic("many").unwrap());
    let mut one = one.publisher().unwrap();
    let mut many: Vec<_> = (0..=IDLE).map(|_| many.publisher().unwrap()).collect();
    let mut pings = sleepy.topic("ping").unwrap().subscriber().unwrap();
    let mut pongs = sleepy.topic("pong").unwrap().publisher().unwrap();
    let tokio = tokio();
    println!("@ready");
    for line in std::io::stdin().lines() {
        match &*line.unwrap() {
            "push" => (0..MESSAGES).for_each(|number| producer.push(&message(number)).unwrap()),
            "one" => send(&mut one, MESSAGES),
            "many" => send(&mut many[IDLE / 2], MESSAGES),
            "blocking" => {
                for _ in 0..ROUND_TRIPS {
                    pongs.send(&pings.recv().unwrap()).unwrap();
                }
            }
            "parked" => block_on(answer(&mut pings, &mut pongs, ROUND_TRIPS)),
            "tokio" => tokio.block_on(answer(&mut pings, &mut pongs, ROUND_TRIPS)),
            "take" => {
                let mut consumer = fast.queue("fatal").unwrap().consumer().unwrap();
                let _delivery = consumer.recv().unwrap();
                println!("@taken");
                nix::unistd::pause();
            }
            other => panic!("told {other}"),
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- this side

/// Millions a second, from the first message on.
fn rate(mut receive: impl FnMut() -> (u64, u64)) -> f64 {
    let (mut count, mut all) = receive();
    let started = Instant::now();
    while count < MESSAGES {
        let (more, sum) = receive();
        count += more;
        all = all.wrapping_add(sum);
    }
    let elapsed = started.elapsed();
    assert_eq!(all, expected(MESSAGES), "what came is not what was sent");
    MESSAGES as f64 / elapsed.as_secs_f64() / 1e6
}

fn queues(path: &Path, other: &mut Other) {
    let mut consumer = bus(path, WaitStrategy::Adaptive)
        .queue("jobs")
        .unwrap()
        .consumer()
        .unwrap();
    let (mut singly, mut batched) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        other.tell("push");
        singly.push(rate(|| {
            let delivery = consumer.recv().unwrap();
            let sum = sum(&delivery);
            delivery.ack().unwrap();
            (1, sum)
        }));
        other.tell("push");
        batched.push(rate(|| {
            let batch = consumer.recv_batch(64).unwrap();
            let taken = (
                batch.len() as u64,
                batch
                    .iter()
                    .fold(0_u64, |all, one| all.wrapping_add(sum(one))),
            );
            batch.ack_all().unwrap();
            taken
        }));
    }
    println!("queue, acked singly: {} M/s", spread(singly));
    println!(
        "queue, acked in batches of up to 64: {} M/s",
        spread(batched)
    );
}

fn lanes(path: &Path, other: &mut Other) {
    let bus = bus(path, WaitStrategy::Adaptive);
    let mut one = bus.topic("one").unwrap().subscriber().unwrap();
    let mut many = bus.topic("many").unwrap().subscriber().unwrap();
    let (mut ones, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut turn = |name, subscriber: &mut Subscriber| {
            other.tell(name);
            rate(|| (1, sum(&subscriber.recv().unwrap())))
        };
        let single = turn("one", &mut one);
        ratios.push(turn("many", &mut many) / single);
        ones.push(single);
    }
    println!("one lane: {} M/s", spread(ones));
    println!(
        "one busy lane among {IDLE} idle ones, to that: {}",
        spread(ratios)
    );
}

fn tasks(path: &Path, other: &mut Other) {
    let bus = bus(path, WaitStrategy::Sleep);
    let mut pings = bus.topic("ping").unwrap().publisher().unwrap();
    let mut pongs = bus.topic("pong").unwrap().subscriber().unwrap();
    pings.wait_for_subscribers(1, None).unwrap();
    let tokio = tokio();
    async fn ask(pings: &mut Publisher, pongs: &mut Subscriber) -> Duration {
        let started = Instant::now();
        for number in 0..ROUND_TRIPS {
            pings.send_async(&message(number)).await.unwrap();
            assert_eq!(pongs.recv_async().await.unwrap()[..], message(number));
        }
        started.elapsed() / ROUND_TRIPS as u32
    }
    let (mut times, mut parked, mut on_tokio) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        other.tell("blocking");
        let started = Instant::now();
        for number in 0..ROUND_TRIPS {
            pings.send(&message(number)).unwrap();
            assert_eq!(pongs.recv().unwrap()[..], message(number));
        }
        let blocking = (started.elapsed() / ROUND_TRIPS as u32).as_secs_f64() * 1e6;
        other.tell("parked");
        let time = block_on(ask(&mut pings, &mut pongs)).as_secs_f64() * 1e6;
        parked.push(time / blocking);
        other.tell("tokio");
        let time = tokio.block_on(ask(&mut pings, &mut pongs)).as_secs_f64() * 1e6;
        on_tokio.push(time / blocking);
        times.push(blocking);
    }
    println!("round trip of two that sleep: {} us", spread(times));
    println!(
        "the same of two tasks, threads parked, to that: {}",
        spread(parked)
    );
    println!(
        "the same of two tasks, under tokio, to that: {}",
        spread(on_tokio)
    );
}

fn deaths(path: &Path) {
    let queue = bus(path, WaitStrategy::Sleep).queue("fatal").unwrap();
    let mut producer = queue.producer().unwrap();
    let mut times = Vec::new();
    for number in 0..KILLS as u64 {
        let mut other = Other::start(path);
        producer.push(&message(number)).unwrap();
        other.tell("take");
        other.hear("@taken");
        let mut consumer = queue.consumer().unwrap();
        let survivor = thread::spawn(move || {
            let delivery = consumer.recv().unwrap();
            let seen = Instant::now();
            assert_eq!(delivery.attempts(), 2);
            delivery.ack().unwrap();
            seen
        });
        times.push(other.time_from_kill(survivor));
    }
    println!(
        "kill -9 of who has it, to its redelivery: {} ms",
        spread(times)
    );
}

fn main() {
    common::run(child, here);
}

fn here(path: &Path) {
    let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut other = Other::start(path);
    pin_to(0);
    queues(path, &mut other);
    lanes(path, &mut other);
    tasks(path, &mut other);
    drop(other);
    sched_setaffinity(Pid::from_raw(0), &before).unwrap();
    deaths(path);
}
