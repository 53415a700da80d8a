//! One question to several services at once, and the best answer of those that come in time. Each shop is a service; one of
//! them is slow. `cargo run --release --example scatter_gather`.

use std::thread;
use std::time::{Duration, Instant};

use buslane::{Bus, CallOptions, ErrorKind, Pending, Result};

/// Quotes one price, after so long.
fn shop(bus: &Bus, name: &str, price: u32, after: Duration) -> Result<thread::JoinHandle<()>> {
    let mut server = bus.service(&format!("shops/{name}"))?.server()?;
    Ok(thread::spawn(move || {
        let Ok(request) = server.recv() else { return };
        thread::sleep(after);
        match request.reply(&price.to_le_bytes()) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Cancelled => println!("too late: {e}"),
            Err(e) => eprintln!("{e}"),
        }
    }))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let bus = Bus::at(dir.path().join("bus"))?;
    let quick = Duration::from_millis(1);
    let shops = [
        shop(&bus, "north", 120, quick)?,
        shop(&bus, "south", 110, quick)?,
        shop(&bus, "slow", 90, Duration::from_millis(200))?,
    ];

    let started = Instant::now();
    let in_time = CallOptions::new().timeout(Duration::from_millis(50));
    let mut asked: Vec<(String, Pending)> = Vec::new();
    for name in bus.topics_matching("shops/*")? {
        let pending = bus
            .service(&name)?
            .client()?
            .start_with(&in_time, b"a pear")?;
        asked.push((name, pending));
    }
    let mut offers = Vec::new();
    for (name, pending) in asked {
        match pending.wait() {
            Ok(answer) => offers.push((u32::from_le_bytes(answer?[..].try_into()?), name)),
            Err(e) if e.kind() == ErrorKind::TimedOut => println!("{name}: {e}"),
            Err(e) => return Err(e.into()),
        }
    }
    println!("{offers:?} after {:?}", started.elapsed());
    assert_eq!(
        offers.iter().min(),
        Some(&(110, String::from("shops/south")))
    );
    for shop in shops {
        shop.join().expect("it does not panic");
    }
    Ok(())
}
