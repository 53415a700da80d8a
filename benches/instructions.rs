//! Instructions of the operations that are done for every message, counted by callgrind: they are the same on every machine
//! that compiles the same code, so that what has become dearer is seen at once. No clock.
//!
//! `cargo bench --bench instructions`, which needs valgrind, fails if an operation takes more than its budget.

#[path = "../tests/common/callgrind.rs"]
mod callgrind;

use std::env;
use std::hint::black_box;
use std::process::ExitCode;

use buslane::{
    Bus, Client, Consumer, Delivery, Envelope, Kind, Message, Pending, Producer, Publisher,
    Request, Server, StateReader, StateWriter, Subscriber,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Operations that are done in a row, and how many instructions each may take, in the mean, without those of the row's loop.
/// To be lowered when it takes less.
const IN_A_ROW: [(&str, u32); 4] = [
    ("send_8", 25),
    ("recv_8", 26),
    ("send_64", 57),
    ("recv_64", 57),
];

/// The others.
const BUDGETS: [(&str, u32); 12] = [
    ("loan_64", 139),
    ("send_envelope", 192),
    ("recv_envelope", 198),
    ("push", 73),
    ("take", 229),
    ("ack", 199),
    ("start", 356),
    ("next_request", 354),
    ("reply", 492),
    ("wait", 575),
    ("set", 560),
    ("get", 292),
];

/// How often each is done.
const COUNT: u64 = 20_000;
/// How many plain messages are sent, and received, in a row.
const RUN: u64 = 32;
/// Says to a process of this program that it is to be counted.
const COUNTED: &str = "BUSLANE_BENCH_COUNTED";

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Number(u64);

impl Message for Number {
    const NAME: &'static str = "bench.Number";
}

type Bytes64 = [u8; 64];

/// One of each. What they are given and give back is as small as a caller would have it. No two are compiled to the same
/// code: there would be one name for both.
mod counted {
    use super::*;
    use buslane::Result;

    /// The row's loop, with nothing in it.
    #[inline(never)]
    pub fn no_row() -> Result<()> {
        for number in 0..black_box(RUN) {
            black_box(number);
        }
        Ok(())
    }

    #[inline(never)]
    pub fn send_8(publisher: &mut Publisher<Number>) -> Result<()> {
        for number in 0..RUN {
            publisher.send_value(&Number(number))?;
        }
        Ok(())
    }

    #[inline(never)]
    pub fn recv_8(subscriber: &mut Subscriber<Number>) -> Result<u64> {
        let mut sum = 0;
        for _ in 0..RUN {
            sum += subscriber.recv()?.0;
        }
        Ok(sum)
    }

    #[inline(never)]
    pub fn send_64(publisher: &mut Publisher, message: &Bytes64) -> Result<()> {
        for _ in 0..RUN {
            publisher.send(message)?;
        }
        Ok(())
    }

    #[inline(never)]
    pub fn recv_64(subscriber: &mut Subscriber) -> Result<u64> {
        let mut sum = 0;
        for _ in 0..RUN {
            sum += u64::from(subscriber.recv()?[0]);
        }
        Ok(sum)
    }

    #[inline(never)]
    pub fn loan_64(publisher: &mut Publisher, message: &Bytes64) -> Result<()> {
        let mut loan = publisher.loan(64)?;
        loan.copy_from_slice(message);
        loan.commit();
        Ok(())
    }

    #[inline(never)]
    pub fn send_envelope(
        publisher: &mut Publisher,
        envelope: &Envelope,
        message: &Bytes64,
    ) -> Result<()> {
        publisher.send_with(envelope, message)
    }

    #[inline(never)]
    pub fn recv_envelope(subscriber: &mut Subscriber) -> Result<u8> {
        Ok(subscriber.recv()?[1])
    }

    #[inline(never)]
    pub fn push(message: &Bytes64, producer: &mut Producer) -> Result<()> {
        producer.push(message)
    }

    #[inline(never)]
    pub fn take(consumer: &mut Consumer) -> Result<Delivery> {
        consumer.recv()
    }

    #[inline(never)]
    pub fn ack(delivery: Delivery) -> Result<()> {
        delivery.ack()
    }

    #[inline(never)]
    pub fn start(client: &Client, message: &Bytes64) -> Result<Pending> {
        client.start(message)
    }

    #[inline(never)]
    pub fn next_request(server: &mut Server) -> Result<Request> {
        server.recv()
    }

    #[inline(never)]
    pub fn reply(request: Request, message: &Bytes64) -> Result<()> {
        request.reply(message)
    }

    #[inline(never)]
    pub fn wait(pending: Pending) -> Result<u8> {
        Ok(pending.wait()?.unwrap()[0])
    }

    #[inline(never)]
    pub fn set(writer: &mut StateWriter, message: &Bytes64) -> Result<()> {
        writer.set(b"key", message)
    }

    #[inline(never)]
    pub fn get(reader: &mut StateReader) -> Result<u8> {
        Ok(reader.get(b"key")?.unwrap()[0])
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
    // The first send of each looks who is there.
    number_in.send_value(&Number(0))?;
    drop(number_out.recv()?);
    publisher.send(&message)?;
    drop(subscriber.recv()?);
    for _ in 0..COUNT / RUN {
        counted::no_row()?;
        counted::send_8(&mut number_in)?;
        assert_eq!(counted::recv_8(&mut number_out)?, (0..RUN).sum());
        counted::send_64(&mut publisher, &message)?;
        assert_eq!(counted::recv_64(&mut subscriber)?, 7 * RUN);
    }
    for _ in 0..COUNT {
        counted::loan_64(&mut publisher, &message)?;
        drop(subscriber.recv()?);
        counted::send_envelope(&mut publisher, &envelope, &message)?;
        assert_eq!(counted::recv_envelope(&mut subscriber)?, 7);
        counted::push(&message, &mut producer)?;
        counted::ack(counted::take(&mut consumer)?)?;
        let pending = counted::start(&client, &message)?;
        counted::reply(counted::next_request(&mut server)?, &message)?;
        assert_eq!(counted::wait(pending)?, 7);
        counted::set(&mut writer, &message)?;
        assert_eq!(counted::get(&mut reader)?, 7);
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
    let row = count("no_row");
    println!("{:14} {:>8} {:>8}", "operation", "counted", "budget");
    let in_a_row = IN_A_ROW.map(|(name, budget)| (name, row, budget));
    let singly = BUDGETS.map(|(name, budget)| (name, 0.0, budget));
    for (name, row, budget) in in_a_row.into_iter().chain(singly) {
        let counted = count(name) - row;
        println!("{name:14} {counted:8.1} {budget:8}");
        is_good &= counted <= f64::from(budget);
    }
    if is_good {
        return ExitCode::SUCCESS;
    }
    eprintln!("an operation takes more than its budget");
    ExitCode::FAILURE
}
