//! Where a route was when its broker ended: told by what it left on the buses.
//!
//! What a route sends says what it was made from ([`Origin`]), and its lanes stay when it ends, so that its position moves with what it
//! sends: nobody can be killed between the two. That is looked up for what it had not said to be done with: a turn's messages of a topic, one
//! message of a queue. What it is done with is told by its subscription, on a durable bus, by the queue's claims, or else by its
//! [`Positions`].

use std::collections::{HashMap, HashSet};

use buslane::{Any, Bus, Envelope, ErrorKind, Kind, Origin, Publisher, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::route::Target;

/// How many of the last messages of each lane are looked at: more than a route sends before it says that it is done with them.
const LAST: usize = 2 * (TURN_OUTPUTS + MAX_OUTPUTS);
/// Messages that a route sends before it says so, unless what it makes of one message is more.
pub const TURN_OUTPUTS: usize = 1024;
/// Messages that it makes of one.
pub const MAX_OUTPUTS: usize = 4096;
/// Where routes say how far they are in topics that keep nothing.
pub const POSITIONS: &str = "broker/positions";
/// Bytes in a lane of it: some ten thousand places fit a message.
const POSITIONS_CAPACITY: usize = 1 << 20;

/// What a route has sent of the messages of one topic, in order, as it was found; or of those of a queue, each for itself.
#[derive(Debug)]
pub enum Passed {
    /// By the name of what it was sent to and the lane that it came from: the last message, and the last made from that.
    InOrder(HashMap<(String, u64), (u32, u32)>),
    Each(HashSet<(String, Origin)>),
}

impl Passed {
    /// Looks at the end of the targets. `None`: of every topic and queue of the bus.
    pub fn in_order(bus: &Bus, by: u64, targets: Option<&[Target]>) -> Result<Self> {
        let mut found = HashMap::new();
        each_origin(bus, by, targets, |name, origin| {
            let now = (origin.sequence, origin.part);
            let last = found.entry((name.to_owned(), origin.lane)).or_insert(now);
            if is_behind(*last, now) {
                *last = now;
            }
        })?;
        Ok(Self::InOrder(found))
    }

    /// The same, where others do a part of the work.
    pub fn each(bus: &Bus, by: u64, targets: Option<&[Target]>) -> Result<Self> {
        let mut found = HashSet::new();
        each_origin(bus, by, targets, |name, origin| {
            found.insert((name.to_owned(), origin));
        })?;
        Ok(Self::Each(found))
    }

    /// Nothing.
    pub fn nothing() -> Self {
        Self::Each(HashSet::new())
    }

    /// Whether that was sent there.
    pub fn has(&self, target: &str, origin: Origin) -> bool {
        let now = (origin.sequence, origin.part);
        match self {
            Self::InOrder(found) if found.is_empty() => false,
            Self::InOrder(found) => {
                let last = found.get(&(target.to_owned(), origin.lane));
                last.is_some_and(|&last| !is_behind(last, now))
            }
            Self::Each(found) if found.is_empty() => false,
            Self::Each(found) => found.contains(&(target.to_owned(), origin)),
        }
    }
}

/// Sequence numbers go round.
fn is_behind(last: (u32, u32), now: (u32, u32)) -> bool {
    match now.0.wrapping_sub(last.0) as i32 {
        0 => now.1 > last.1,
        ahead => ahead > 0,
    }
}

fn each_origin(
    bus: &Bus,
    by: u64,
    targets: Option<&[Target]>,
    mut found: impl FnMut(&str, Origin),
) -> Result<()> {
    let names = match targets {
        Some(targets) => targets.iter().map(|target| target.name.clone()).collect(),
        None => bus.topics()?,
    };
    for name in names {
        let report = match bus.inspect(&name) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            report => report?,
        };
        report.look_back(LAST, |seen| {
            let origin = seen.envelope.and_then(|envelope| envelope.origin());
            if let Some(origin) = origin.filter(|origin| origin.by == by) {
                found(&name, origin);
            }
        });
    }
    Ok(())
}

/// A place in a lane: all before `next` is done with.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Place {
    /// [`Origin::by`] of what is made from its messages.
    by: u64,
    lane: u64,
    /// The low 32 bits of a message's number.
    next: u32,
    _unused: u32,
}

/// How far a route is in topics of which nothing is kept: in each lane, as it last said it, all in one message.
#[derive(Debug)]
pub struct Positions {
    publisher: Publisher<Any>,
    envelope: Envelope,
    places: Vec<Place>,
    /// Where the last place was that was asked for: it is asked for again.
    at: usize,
}

impl Positions {
    /// Goes on where the route with this name was.
    pub fn open(bus: &Bus, route: &str) -> Result<Self> {
        let builder = bus.topic_builder(POSITIONS).capacity(POSITIONS_CAPACITY);
        // Whoever looks at it holds up no route.
        let topic = builder.lossy(true).open_any()?;
        // First: nobody else writes that lane meanwhile.
        let publisher = topic.named_publisher(&writer(route))?;
        let mut places = Vec::new();
        bus.inspect(POSITIONS)?.look_back(1, |seen| {
            let is_ours = seen
                .envelope
                .is_some_and(|envelope| envelope.sender() == Some(route));
            if is_ours && let Ok(all) = <[Place]>::ref_from_bytes(&seen.payload) {
                places = all.to_vec();
            }
        });
        Ok(Self {
            publisher,
            envelope: Envelope::new(Kind::Document).sent_by(route),
            places,
            at: 0,
        })
    }

    /// Whether it was ever said how far it is in a topic.
    pub fn know(&self, by: u64) -> bool {
        self.places.iter().any(|place| place.by == by)
    }

    fn place(&mut self, by: u64, lane: u64) -> Option<&mut Place> {
        let is_meant = |place: &Place| (place.by, place.lane) == (by, lane);
        if !self.places.get(self.at).is_some_and(is_meant) {
            self.at = self.places.iter().position(is_meant)?;
        }
        self.places.get_mut(self.at)
    }

    /// Whether a message of a lane was done with before.
    pub fn are_past(&mut self, by: u64, lane: u64, sequence: u32) -> bool {
        let place = self.place(by, lane);
        place.is_some_and(|place| is_behind((sequence, 0), (place.next, 0)))
    }

    /// All of a lane before `next` is done with; to be [said](Self::say).
    pub fn move_to(&mut self, by: u64, lane: u64, next: u32) {
        match self.place(by, lane) {
            Some(place) => place.next = next,
            None => self.places.push(Place {
                by,
                lane,
                next,
                _unused: 0,
            }),
        }
    }

    /// Forgets lanes that are gone.
    pub fn retain(&mut self, is_there: impl Fn(u64, u64) -> bool) {
        self.places.retain(|place| is_there(place.by, place.lane));
    }

    /// Says how far it is.
    pub fn say(&mut self) -> Result<()> {
        let places = self.places.as_bytes();
        self.publisher.send_any(Some(&self.envelope), places, None)
    }
}

/// The name of what a route writes with.
pub fn writer(route: &str) -> String {
    format!("buslane broker, route {route}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round() {
        assert!(is_behind((u32::MAX, 0), (0, 0)));
        assert!(!is_behind((0, 0), (u32::MAX, 5)));
        assert!(is_behind((7, 0), (7, 1)));
        assert!(!is_behind((7, 1), (7, 1)));
    }

    #[test]
    fn a_place_is_found_by_who_has_the_routes_name() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let bus = Bus::at(dir.path().join("bus")).unwrap();
        let mut positions = Positions::open(&bus, "r").unwrap();
        assert!(!positions.know(1));
        positions.move_to(1, 2, 7);
        positions.say().unwrap();
        drop(positions);
        assert!(!Positions::open(&bus, "other").unwrap().know(1));
        let mut positions = Positions::open(&bus, "r").unwrap();
        assert!(positions.know(1) && !positions.know(2));
        assert!(positions.are_past(1, 2, 6) && !positions.are_past(1, 2, 7));
        positions.retain(|_, lane| lane != 2);
        assert!(!positions.know(1));
    }
}
