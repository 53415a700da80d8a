//! Values of one type, sent as they lie in memory and read in place. In two terminals, in any order:
//! `cargo run --release --example typed -- recv`, and `-- send`. Without arguments it does both, and checks.

use buslane::{Bus, Message, Topic};
use std::error::Error;
use std::thread;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;
const POSES: u64 = 100_000;

/// zerocopy proves that it has no padding, and that any bytes are a value of it.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
struct Pose {
    at_ns: u64,
    position_mm: [i32; 3],
    robot: u32,
}

impl Message for Pose {
    // Kept by the topic with version, size and alignment: a program that means another type is refused.
    const NAME: &'static str = "example.Pose";
}

fn send(topic: &Topic<Pose>) -> Result {
    let mut publisher = topic.publisher()?;
    publisher.wait_for_subscribers(1, None)?;
    for at_ns in 0..POSES {
        let mut pose = publisher.loan_value()?; // room in the lane itself
        (pose.at_ns, pose.position_mm, pose.robot) = (at_ns, [at_ns as i32, 2, 3], 7);
        pose.commit();
    }
    Ok(publisher.wait_delivered(None)?)
}

fn receive(topic: &Topic<Pose>) -> Result<u64> {
    let mut received = 0;
    for pose in topic.subscriber()?.iter() {
        let Pose { at_ns, robot, .. } = pose?;
        assert_eq!((at_ns, robot), (received, 7));
        received += 1;
    }
    Ok(received)
}

fn main() -> Result {
    let shared = || Bus::open("examples")?.typed::<Pose>("poses");
    match std::env::args().nth(1).as_deref() {
        Some("send") => return send(&shared()?),
        Some("recv") => return receive(&shared()?).map(|received| println!("{received} poses")),
        _ => {}
    }
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let topic = Bus::at(dir.path().join("bus"))?.typed::<Pose>("poses")?;
    let at = topic.clone();
    let sender = thread::spawn(move || send(&at));
    assert_eq!(receive(&topic)?, POSES);
    sender.join().expect("the sender does not panic")
}
