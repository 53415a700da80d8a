//! Instructions of the operations that are done for every message, counted by callgrind: they are the same on every machine
//! that compiles the same code, so that what has become dearer is seen at once. No clock.
//!
//! `cargo bench --bench instructions`, which needs valgrind, fails if an operation takes more than its budget.

#[path = "../tests/common/callgrind.rs"]
mod callgrind;

use std::env;
use std::process::ExitCode;

use buslane::{
    Bus, Client, Consumer, Delivery, Envelope, Kind, Message, Pending, Producer, Publisher,
    Request, Server, StateReader, StateWriter, Subscriber,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An operation, and how many instructions it may take, in the mean. To be lowered when it takes less.
const BUDGETS: [(&str, u32); 16] = [
    ("send_8", 76),
    ("recv_8", 146),
    ("send_64", 74),
    ("recv_64", 154),
    ("loan_64", 185),
    ("send_envelope", 253),
    ("recv_envelope", 200),
    ("push", 122),
    ("take", 234),
    ("ack", 178),
    ("start", 428),
    ("next_request", 349),
    ("reply", 546),
    ("wait", 602),
    ("set", 603),
    ("get", 311),
];

/// How often each is done.
const COUNT: u64 = 20_000;
/// Says to a process of this program that it is to be counted.
const COUNTED: &str = "BUSLANE_BENCH_COUNTED";

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Number(u64);

impl Message for Number {
    const NAME: &'static str = "bench.Number";
}

type Bytes64 = [u8; 64];

/// One of each. What they are given and give back is as small as a caller would have it.
mod counted {
    use super::*;

    #[inline(never)]
    pub fn send_8(publisher: &mut Publisher<Number>, number: u64) {
        publisher.send_value(&Number(number)).unwrap();
    }

    #[inline(never)]
    pub fn recv_8(subscriber: &mut Subscriber<Number>) -> u64 {
        subscriber.recv().unwrap().0
    }

    #[inline(never)]
    pub fn send_64(publisher: &mut Publisher, message: &Bytes64) {
        publisher.send(message).unwrap();
    }

    #[inline(never)]
    pub fn recv_64(subscriber: &mut Subscriber) -> u8 {
        subscriber.recv().unwrap()[0]
    }

    #[inline(never)]
    pub fn loan_64(publisher: &mut Publisher, message: &Bytes64) {
        let mut loan = publisher.loan(64).unwrap();
        loan.copy_from_slice(message);
        loan.commit();
    }

    #[inline(never)]
    pub fn send_envelope(publisher: &mut Publisher, envelope: &Envelope, message: &Bytes64) {
        publisher.send_with(envelope, message).unwrap();
    }

    #[inline(never)]
    pub fn recv_envelope(subscriber: &mut Subscriber) -> u8 {
        subscriber.recv().unwrap()[0]
    }

    #[inline(never)]
    pub fn push(producer: &mut Producer, message: &Bytes64) {
        producer.push(message).unwrap();
    }

    #[inline(never)]
    pub fn take(consumer: &mut Consumer) -> Delivery {
        consumer.recv().unwrap()
    }

    #[inline(never)]
    pub fn ack(delivery: Delivery) {
        delivery.ack().unwrap();
    }

    #[inline(never)]
    pub fn start(client: &Client, message: &Bytes64) -> Pending {
        client.start(message).unwrap()
    }

    #[inline(never)]
    pub fn next_request(server: &mut Server) -> Request {
        server.recv().unwrap()
    }

    #[inline(never)]
    pub fn reply(request: Request, message: &Bytes64) {
        request.reply(message).unwrap();
    }

    #[inline(never)]
    pub fn wait(pending: Pending) -> u8 {
        pending.wait().unwrap().unwrap()[0]
    }

    #[inline(never)]
    pub fn set(writer: &mut StateWriter, message: &Bytes64) {
        writer.set(b"key", message).unwrap();
    }

    #[inline(never)]
    pub fn get(reader: &mut StateReader) -> u8 {
        reader.get(b"key").unwrap().unwrap()[0]
    }
}

/// All of them, in turns.
fn run() -> buslane::Result<()> {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let bus = Bus::at(dir.path().join("bus"))?;
    let message = [7; 64];
    let envelope = Envelope::new(Kind::Event);
    let numbers = bus.typed::<Number>("numbers")?;
    let (mut number_in, mut number_out) = (numbers.publisher()?, numbers.subscriber()?);
    let topic = bus.topic("topic")?;
    let (mut publisher, mut subscriber) = (topic.publisher()?, topic.subscriber()?);
    let queue = bus.queue("queue")?;
    let (mut producer, mut consumer) = (queue.producer()?, queue.consumer()?);
    let service = bus.service("service")?;
    let (mut server, client) = (service.server()?, service.client()?);
    let state = bus.state("state")?;
    let (mut writer, mut reader) = (state.writer()?, state.reader()?);
    for number in 0..COUNT {
        counted::send_8(&mut number_in, number);
        assert_eq!(counted::recv_8(&mut number_out), number);
        counted::send_64(&mut publisher, &message);
        assert_eq!(counted::recv_64(&mut subscriber), 7);
        counted::loan_64(&mut publisher, &message);
        drop(subscriber.recv()?);
        counted::send_envelope(&mut publisher, &envelope, &message);
        assert_eq!(counted::recv_envelope(&mut subscriber), 7);
        counted::push(&mut producer, &message);
        counted::ack(counted::take(&mut consumer));
        let pending = counted::start(&client, &message);
        counted::reply(counted::next_request(&mut server), &message);
        assert_eq!(counted::wait(pending), 7);
        counted::set(&mut writer, &message);
        assert_eq!(counted::get(&mut reader), 7);
    }
    Ok(())
}

/// Instructions of a function in `counted`, with all that it calls.
fn count(name: &str) -> f64 {
    let total = callgrind::count(&format!("*counted::{name}*"), |mut valgrind| {
        valgrind
            .arg(env::current_exe().expect("this program"))
            .env(COUNTED, "1");
        valgrind
    });
    total.expect("valgrind is installed") as f64 / COUNT as f64
}

fn main() -> ExitCode {
    if env::var_os(COUNTED).is_some() {
        run().expect("each operation works");
        return ExitCode::SUCCESS;
    }
    let mut is_good = true;
    println!("{:14} {:>8} {:>8}", "operation", "counted", "budget");
    for (name, budget) in BUDGETS {
        let counted = count(name);
        println!("{name:14} {counted:8.1} {budget:8}");
        is_good &= counted <= f64::from(budget);
    }
    if is_good {
        return ExitCode::SUCCESS;
    }
    eprintln!("an operation takes more than its budget");
    ExitCode::FAILURE
}
