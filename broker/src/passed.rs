//! Where a route was when its broker ended: told by what it left on the buses.
//!
//! What a route sends says what it was made from ([`Origin`]), and its lanes stay when it ends, so that its position moves with what it
//! sends: nobody can be killed between the two. That is looked up for what it had not said to be done with: a turn's messages of a topic, one
//! message of a queue. What it is done with is told by its subscription, on a durable bus, by the queue's claims, or else by its
//! [`Positions`].

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use buslane::{Any, Bus, Envelope, ErrorKind, Kind, Origin, Publisher, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::route::Target;

/// How many of the last messages of each lane are looked at: more than a route sends in one turn.
const LAST: usize = 2 * (TURN_OUTPUTS + MAX_OUTPUTS);
/// After so many messages sent, a route says that it is done with what they were made from.
pub const TURN_OUTPUTS: usize = 1024;
/// Messages that are sent of one, to all targets.
pub const MAX_OUTPUTS: usize = 4096;
/// Of a dead letter, in the place of which of several messages it is.
pub const DEAD_PART: u32 = u32::MAX;
/// Origins that are remembered of a queue's messages before all is looked through anew.
const MAX_REMEMBERED: usize = 65_536;
/// Where routes say how far they are in topics that keep nothing.
pub const POSITIONS: &str = "broker/positions";
/// Bytes in a lane of it: some ten thousand places fit a message.
const POSITIONS_CAPACITY: usize = 1 << 20;

/// What a route has sent of the messages of a topic, in order, when it was looked for.
#[derive(Debug, Default)]
pub struct InOrder {
    /// By the name of what it was sent to, and the lane that it came from: the last message, and the last made from that.
    last: HashMap<String, HashMap<u64, (u32, u32)>>,
    /// Dead letters do not come in the order of the rest.
    dead: HashSet<Origin>,
}

impl InOrder {
    /// Looks at the end of the targets. `None`: of every topic and queue of the bus.
    pub fn look(bus: &Bus, by: u64, targets: Option<&[Target]>) -> Result<Self> {
        let mut found = Self::default();
        each_origin(bus, by, targets, &mut HashMap::new(), |name, origin| {
            if origin.part == DEAD_PART {
                found.dead.insert(origin);
                return;
            }
            let now = (origin.sequence, origin.part);
            let lanes = found.last.entry(name.to_owned()).or_default();
            let last = lanes.entry(origin.lane).or_insert(now);
            if is_behind(*last, now) {
                *last = now;
            }
        })?;
        Ok(found)
    }

    /// Whether that was sent there.
    pub fn has(&mut self, target: &str, origin: Origin) -> bool {
        if origin.part == DEAD_PART {
            return self.dead.contains(&origin);
        }
        let Some(lanes) = self.last.get_mut(target) else {
            return false;
        };
        let now = (origin.sequence, origin.part);
        let has = lanes
            .get(&origin.lane)
            .is_some_and(|&last| !is_behind(last, now));
        if !has {
            // All that follows in that lane is new; numbers go round.
            lanes.remove(&origin.lane);
        }
        has
    }
}

/// What a route, here or in another broker, has sent of the messages of a queue, which come in no order. Looked up when one comes again.
#[derive(Debug, Default)]
pub struct Each {
    sent: HashSet<(String, Origin)>,
    /// By topic and lane, how many messages it had when it was looked at.
    seen: HashMap<(String, u64), u64>,
}

impl Each {
    /// Looks at what has come to the end of the targets since it was done before. `None`: of every topic and queue of the bus.
    pub fn look_again(&mut self, bus: &Bus, by: u64, targets: Option<&[Target]>) -> Result<()> {
        if self.sent.len() > MAX_REMEMBERED {
            *self = Self::default();
        }
        let Self { sent, seen } = self;
        each_origin(bus, by, targets, seen, |name, origin| {
            sent.insert((name.to_owned(), origin));
        })
    }

    /// Whether that was sent there.
    pub fn has(&self, target: &str, origin: Origin) -> bool {
        self.sent.contains(&(target.to_owned(), origin))
    }
}

/// Sequence numbers go round.
fn is_behind(last: (u32, u32), now: (u32, u32)) -> bool {
    match now.0.wrapping_sub(last.0) as i32 {
        0 => now.1 > last.1,
        ahead => ahead > 0,
    }
}

/// Shows what was made by a route, of what is not `seen`.
fn each_origin(
    bus: &Bus,
    by: u64,
    targets: Option<&[Target]>,
    seen: &mut HashMap<(String, u64), u64>,
    mut found: impl FnMut(&str, Origin),
) -> Result<()> {
    let names = match targets {
        Some(targets) => targets.iter().map(|target| target.name.clone()).collect(),
        None => bus.topics()?,
    };
    for name in names {
        let report = match bus.inspect(&name) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            // Of all topics, one may be damaged that has nothing to do with it.
            Err(e) if e.kind() == ErrorKind::Corrupt && targets.is_none() => continue,
            report => report?,
        };
        let new = |lane: &buslane::LaneReport| {
            let before = seen.get(&(name.clone(), lane.id)).copied().unwrap_or(0);
            usize::try_from(lane.messages.saturating_sub(before))
                .unwrap_or(LAST)
                .min(LAST)
        };
        report.look_back_in(new, |message| {
            let origin = message.envelope.and_then(|envelope| envelope.origin());
            if let Some(origin) = origin.filter(|origin| origin.by == by) {
                found(&name, origin);
            }
        });
        for lane in &report.lanes {
            seen.insert((name.clone(), lane.id), lane.messages);
        }
    }
    Ok(())
}

/// Places, at first, before it is looked whether their lanes are there.
const PRUNE_AT: usize = 256;

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
    /// When it was last said before this was opened; `None`: it never was.
    before: Option<SystemTime>,
    /// With so many places it is looked whether all lanes are there.
    prune_at: usize,
}

impl Positions {
    /// Goes on where the route with this name was.
    pub fn open(bus: &Bus, route: &str) -> Result<Self> {
        let builder = bus.topic_builder(POSITIONS).capacity(POSITIONS_CAPACITY);
        // Whoever looks at it holds up no route.
        let topic = builder.lossy(true).open_any()?;
        // First: nobody else writes that lane meanwhile.
        let publisher = topic.named_publisher(&writer(route))?;
        let mut last: Option<(SystemTime, Vec<Place>)> = None;
        bus.inspect(POSITIONS)?.look_back(1, |seen| {
            let Some(envelope) = seen.envelope.filter(|e| e.sender() == Some(route)) else {
                return;
            };
            // There may be several lanes, if several have tried at a time.
            let sent = envelope.sent().unwrap_or(SystemTime::UNIX_EPOCH);
            let is_newer = last.as_ref().is_none_or(|(before, _)| *before < sent);
            if is_newer && let Ok(all) = <[Place]>::ref_from_bytes(&seen.payload) {
                last = Some((sent, all.to_vec()));
            }
        });
        let (before, places) = last.unzip();
        Ok(Self {
            publisher,
            envelope: Envelope::new(Kind::Document).sent_by(route),
            places: places.unwrap_or_default(),
            at: 0,
            before,
            prune_at: PRUNE_AT,
        })
    }

    /// When the route last said how far it was, before it ended; `None`: it never ran.
    pub fn before(&self) -> Option<SystemTime> {
        self.before
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

    /// Whether there are so many places that some may be of lanes that are gone.
    pub fn are_many(&self) -> bool {
        self.places.len() >= self.prune_at
    }

    /// Forgets lanes that are gone.
    pub fn retain(&mut self, is_there: impl Fn(u64, u64) -> bool) {
        self.places.retain(|place| is_there(place.by, place.lane));
        self.prune_at = 2 * self.places.len() + PRUNE_AT;
    }

    /// Says how far it is.
    pub fn say(&mut self) -> Result<()> {
        let envelope = std::mem::replace(&mut self.envelope, Envelope::new(Kind::Document));
        self.envelope = envelope.sent_now();
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
    fn what_was_found_is_forgotten_when_it_is_passed() {
        let origin = |sequence| Origin {
            by: 1,
            lane: 2,
            sequence,
            part: 0,
        };
        let mut found = InOrder::default();
        found
            .last
            .insert(String::from("out"), HashMap::from([(2, (10, 0))]));
        assert!(found.has("out", origin(9)) && found.has("out", origin(10)));
        assert!(!found.has("out", origin(11)));
        // Half way round, and further.
        assert!(!found.has("out", origin(10 + (1 << 31) + 5)) && !found.has("out", origin(5)));
    }

    #[test]
    fn a_place_is_found_by_who_has_the_routes_name() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let bus = Bus::at(dir.path().join("bus")).unwrap();
        let mut positions = Positions::open(&bus, "r").unwrap();
        assert!(!positions.know(1) && positions.before().is_none());
        positions.move_to(1, 2, 7);
        positions.say().unwrap();
        drop(positions);
        assert!(!Positions::open(&bus, "other").unwrap().know(1));
        let mut positions = Positions::open(&bus, "r").unwrap();
        assert!(positions.know(1) && !positions.know(2) && positions.before().is_some());
        assert!(positions.are_past(1, 2, 6) && !positions.are_past(1, 2, 7));
        positions.retain(|_, lane| lane != 2);
        assert!(!positions.know(1));
    }
}
