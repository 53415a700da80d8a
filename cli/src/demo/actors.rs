//! The demo's other processes.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use buslane::{Bus, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::private::{Actor, Director};
use crate::signals::Stop;

/// How they are started, before their part; no command for people.
pub const NAME: &str = "__demo-actor";

/// Subscribes, and checks each event until there are no more.
pub const SUBSCRIBER: &str = "subscriber";
/// Publishes events, one after the other, until it is killed.
pub const PUBLISHER: &str = "publisher";
/// Subscribes, and never reads.
pub const IDLER: &str = "idler";

/// Takes the first message of a work queue, and keeps it.
pub const WORKER: &str = "worker";
/// Serves: replies with what it is asked, and keeps [`UNANSWERED`].
pub const SERVER: &str = "server";

/// What no server answers.
pub const UNANSWERED: u64 = u64::MAX;

/// Between two events of the publisher, so that its subscriber keeps up and a death is not behind a backlog.
const PACE: Duration = Duration::from_micros(20);

/// Where an actor finds the others.
#[derive(Debug, Serialize, Deserialize)]
pub struct Scene {
    /// The bus directory.
    pub bus: PathBuf,
    /// The topic.
    pub topic: String,
}

/// What a subscriber found.
#[derive(Debug, Serialize, Deserialize)]
pub struct Seen {
    /// How many events.
    pub events: u64,
    /// Whether they came unharmed, in order, and none was missing.
    pub in_order: bool,
}

impl Seen {
    /// Before the first event.
    pub fn nothing() -> Self {
        Self {
            events: 0,
            in_order: true,
        }
    }

    /// Takes down one event.
    pub fn take(&mut self, bytes: &[u8]) {
        self.in_order &= bytes == event(self.events);
        self.events += 1;
    }
}

/// The event with this number: the number, and its complement to tell it from garbage.
pub fn event(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&(!number).to_le_bytes());
    bytes
}

/// Starts an actor, and returns when it has joined.
pub fn start(part: &str, scene: &Scene, stop: &Stop) -> Result<Actor, Failure> {
    let mut actor = Actor::start(&[NAME, part])?;
    actor.tell(scene)?;
    actor.answer::<String>(stop)?;
    Ok(actor)
}

/// Plays a part.
pub fn run(part: &str) -> Result<(), Failure> {
    let director = Director::attach()?;
    let Some(Scene { bus, topic }) = director.next()? else {
        return Ok(());
    };
    let bus = Bus::at(bus)?;
    if part == WORKER {
        let mut consumer = bus.queue(&topic)?.consumer()?;
        director.answer(&"joined")?;
        let _kept = consumer.recv()?;
        director.answer(&"has it")?;
        return director.next::<()>().map(drop);
    }
    if part == SERVER {
        let mut server = bus.service(&topic)?.server()?;
        director.answer(&"joined")?;
        loop {
            let request = server.recv()?;
            if *request == event(UNANSWERED) {
                director.answer(&"has it")?;
                return director.next::<()>().map(drop);
            }
            let reply = request.to_vec();
            request.reply(&reply)?;
        }
    }
    let topic = bus.topic(&topic)?;
    if part == PUBLISHER {
        let mut publisher = topic.publisher()?;
        director.answer(&"joined")?;
        for number in 0.. {
            publisher.send(&event(number))?;
            thread::sleep(PACE);
        }
        return Ok(());
    }

    let mut subscriber = topic.subscriber()?;
    director.answer(&"joined")?;
    if part == IDLER {
        return director.next::<()>().map(drop);
    }
    let mut seen = Seen::nothing();
    loop {
        match subscriber.recv() {
            Ok(frame) => seen.take(&frame),
            Err(error) if error.kind() == ErrorKind::Ended => return director.answer(&seen),
            Err(error) => return Err(error.into()),
        }
    }
}
