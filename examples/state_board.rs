//! A board of sensors: the latest value of each, for whoever looks, whenever they come. In two terminals, in any order:
//! `cargo run --release --example state_board -- recv`, and `-- send`. Without arguments it does both, and checks.

use buslane::{Bus, Message, State};
use std::error::Error;
use std::thread;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;
const ROUNDS: u64 = 100_000;
const SENSORS: [&str; 3] = ["kitchen", "cellar", "roof"];

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
struct Reading {
    round: u64,
    millidegrees: i64,
}

impl Message for Reading {
    const NAME: &'static str = "example.Reading";
}

/// Never waits, whoever watches.
fn send(board: &State<Reading>) -> Result {
    let mut writer = board.writer()?;
    for round in 1..=ROUNDS {
        for (sensor, millidegrees) in SENSORS.iter().zip([21_500, 12_100, 4_000]) {
            let reading = Reading {
                round,
                millidegrees,
            };
            writer.set_value(sensor.as_bytes(), &reading)?;
        }
    }
    Ok(())
}

/// Sees some of the readings, and the last one of each sensor.
fn receive(board: &State<Reading>) -> Result<u64> {
    let mut watch = board.reader()?.watch(None)?;
    let (mut finished, mut seen) = (0, 0);
    while finished < SENSORS.len() {
        let (_, reading) = watch.recv()?;
        seen += 1;
        finished += usize::from(reading.round == ROUNDS);
    }
    Ok(seen)
}

fn main() -> Result {
    let shared = || Bus::open("examples")?.typed_state("board");
    match std::env::args().nth(1).as_deref() {
        Some("send") => return send(&shared()?),
        Some("recv") => return receive(&shared()?).map(|seen| println!("{seen} readings seen")),
        _ => {}
    }
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let board = Bus::at(dir.path().join("bus"))?.typed_state("board")?;
    let at = board.clone();
    let sender = thread::spawn(move || send(&at));
    assert!(receive(&board)? >= SENSORS.len() as u64);
    sender.join().expect("the sender does not panic")
}
