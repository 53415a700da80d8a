//! Market data on a lossy topic: the publisher waits for nobody, and who is slow is told what was lost. In three
//! terminals: `cargo run --release --example market_data -- recv`, `-- slow`, `-- send`. Without arguments, all of them.

use buslane::{Bus, Message, Topic};
use std::{env, io, thread, time::Duration};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
const TICKS: u64 = 200_000;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Tick(u64, u64); // its number, and a price

impl Message for Tick {
    const NAME: &'static str = "example.Tick";
}

fn send(topic: &Topic<Tick>) -> io::Result<()> {
    let mut publisher = topic.publisher()?;
    publisher.wait_for_subscribers(2, None)?;
    for number in 0..TICKS {
        publisher.send_value(&Tick(number, 9_900 + number % 200))?; // over the oldest, read or not
        thread::yield_now(); // a market is not that fast
    }
    Ok(())
}

fn receive(topic: &Topic<Tick>, pause_us: u64) -> io::Result<()> {
    let (mut subscriber, mut received) = (topic.subscriber()?, 0);
    for tick in subscriber.iter() {
        match tick {
            Ok(_) => received += 1,
            Err(gap) if gap.lost().is_some() => println!("{gap}"),
            Err(error) => return Err(error.into()),
        }
        thread::sleep(Duration::from_micros(pause_us));
    }
    assert_eq!(received + subscriber.lost().messages, TICKS); // it knows of each
    println!("{received} of {TICKS} ticks received");
    Ok(())
}

fn main() -> io::Result<()> {
    let ticks = |bus: Bus| {
        let lossy = bus.topic_builder("ticks").lossy(true);
        lossy.capacity(1 << 18).open_typed() // room for 8000
    };
    let shared = || ticks(Bus::open("examples")?);
    match env::args().nth(1).as_deref() {
        Some("send") => return send(&shared()?),
        Some(part) => return receive(&shared()?, if part == "slow" { 10 } else { 0 }),
        None => {}
    }
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let topic = ticks(Bus::at(dir.path().join("bus"))?)?;
    thread::scope(|scope| {
        scope.spawn(|| receive(&topic, 0).expect("all is well"));
        scope.spawn(|| receive(&topic, 10).expect("all is well"));
        send(&topic)
    })
}
