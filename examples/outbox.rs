//! An outbox: what a shop has written into it reaches the billing, whichever of the two is away, or dies, meanwhile.
//! In two terminals, as often as you like, in any order: `cargo run --release --example outbox -- shop`, and `-- billing`.
//! Without arguments both are killed and started again at the worst moments, and all that was ordered is billed, once.

use buslane::{Bus, ErrorKind, Start, SyncPolicy};
use std::collections::BTreeSet;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio, abort};
use std::time::Duration;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;
/// How many orders a shop takes before it crashes.
const ORDERS: u64 = 100;

/// Takes orders: each is on the disk before the customer is told.
fn shop(path: &Path, first: u64) -> Result {
    let bus = Bus::builder().durable(true).capacity(1 << 20).at(path)?;
    let outbox = bus
        .topic_builder("outbox")
        .sync(SyncPolicy::EachMessage)
        .open()?;
    let mut publisher = outbox.publisher()?;
    for order in first..first + ORDERS {
        publisher.send(&order.to_le_bytes())?;
        println!("{order}");
    }
    abort()
}

/// Bills what was ordered; crashes after so many orders, over the next one.
fn billing(path: &Path, crash_after: usize) -> Result {
    let bus = Bus::builder().durable(true).capacity(1 << 20).at(path)?;
    let outbox = bus
        .topic_builder("outbox")
        .sync(SyncPolicy::EachMessage)
        .open()?;
    // Orders that were taken before there was any billing are billed, too.
    let mut orders = outbox
        .subscription_builder("billing")
        .start(Start::Oldest)
        .by_ack(true)
        .open()?;
    for billed in 0.. {
        let order = match orders.recv_timeout(Duration::from_secs(1)) {
            Ok(Some(order)) => u64::from_le_bytes(order[..].try_into()?),
            Ok(None) => break,
            // The shop has closed; that is no reason to stop when it opens again.
            Err(e) if e.kind() == ErrorKind::Ended => break,
            Err(e) => return Err(e.into()),
        };
        if billed == crash_after {
            abort();
        }
        println!("{order}");
        orders.ack()?;
    }
    Ok(())
}

fn start(role: &str, path: &Path, number: u64) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).arg(path).arg(number.to_string());
    Ok(command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?)
}

/// The orders that a process has printed, once it has ended.
fn printed(mut child: Child) -> Result<Vec<u64>> {
    let out = BufReader::new(child.stdout.take().ok_or("no output")?);
    let orders = out.lines().map(|line| Ok(line?.parse()?)).collect();
    child.wait()?;
    orders
}

fn main() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let at = std::env::temp_dir().join("buslane-outbox");
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["shop"] => return shop(&at, 0),
        ["billing"] => return billing(&at, usize::MAX),
        ["shop", path, first] => return shop(Path::new(path), first.parse()?),
        ["billing", path, crash] => return billing(Path::new(path), crash.parse()?),
        _ => {}
    }
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("bus");
    let (mut ordered, mut billed) = (Vec::new(), Vec::new());
    for round in 0..3 {
        // One after the other, both crash: each finds what the other has left.
        ordered.extend(printed(start("shop", &path, round * ORDERS)?)?);
        billed.extend(printed(start("billing", &path, 70)?)?);
    }
    billed.extend(printed(start("billing", &path, 1000)?)?);
    assert_eq!(ordered.len() as u64, 3 * ORDERS);
    assert_eq!(billed, ordered, "all, in order, once");
    assert_eq!(billed.iter().collect::<BTreeSet<_>>().len(), billed.len());
    Ok(())
}
