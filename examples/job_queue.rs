//! A work queue whose workers crash: what one had in hand, another gets. In two terminals, in any order:
//! `cargo run --release --example job_queue -- recv` (as often as you like; kill one), and `-- send`.
//! Without arguments it starts workers that kill themselves, and checks that every job was done.

use buslane::{Bus, Queue};
use std::error::Error;
use std::process::{Command, abort};
use std::time::Duration;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;
const JOBS: u32 = 1000;

fn send(queue: &Queue) -> Result {
    let mut producer = queue.producer()?;
    for job in 0..JOBS {
        producer.push(&job.to_le_bytes())?;
    }
    Ok(())
}

/// Does jobs until there are none; crashes over the one that is called `fatal`, the first time that anybody tries it.
fn receive(queue: &Queue, fatal: Option<u32>) -> Result<u32> {
    let mut consumer = queue.consumer_builder().max_attempts(3).open()?;
    let mut done = 0;
    while !consumer.is_empty()? {
        let Some(delivery) = consumer.recv_timeout(Duration::from_millis(100))? else {
            continue;
        };
        let job = u32::from_le_bytes(delivery[..].try_into()?);
        if fatal == Some(job) && delivery.attempts() == 1 {
            abort();
        }
        if delivery.attempts() > 1 {
            println!("job {job} is done at the second try");
        }
        delivery.ack()?;
        done += 1;
    }
    Ok(done)
}

fn main() -> Result {
    let shared = || Bus::open("examples")?.queue("jobs");
    match std::env::args().nth(1).as_deref() {
        Some("send") => return send(&shared()?),
        Some("recv") => return receive(&shared()?, None).map(|done| println!("{done} jobs done")),
        Some(path) => return receive(&Bus::at(path)?.queue("jobs")?, Some(500)).map(drop),
        None => {}
    }
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let path = dir.path().join("bus");
    let queue = Bus::at(&path)?.queue("jobs")?;
    send(&queue)?;
    let worker = Command::new(std::env::current_exe()?).arg(&path).status()?;
    assert!(!worker.success(), "it crashed");
    assert_eq!(
        receive(&queue, None)?,
        JOBS - 500,
        "the rest, with the job it crashed over"
    );
    Ok(())
}
