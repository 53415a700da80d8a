//! What was passed on before a broker ended: told by the messages that it sent, which say what they were made from.
//!
//! So a route's position needs no file: it moves with what is sent. Who takes messages in order goes by the last one of each lane
//! that is found; who shares them with others, by each.

use std::collections::{HashMap, HashSet};

use buslane::{Bus, Origin, Result};

use crate::route::Target;

/// The last message, and the last of those made from it.
type Last = (u32, u32);

/// What a route has passed on of one topic, in order, as it was found.
#[derive(Debug, Default)]
pub struct Passed {
    /// By the name of what it was sent to, and the lane that it came from.
    last: HashMap<String, HashMap<u64, Last>>,
}

impl Passed {
    /// Looks through what is still held of the targets. `None`: of every topic and queue.
    pub fn look(bus: &Bus, by: u64, targets: Option<&[Target]>) -> Result<Self> {
        let mut found = Self::default();
        each_origin(bus, by, targets, |name, origin| {
            let lanes = found.last.entry(name.to_owned()).or_default();
            let now = (origin.sequence, origin.part);
            let last = lanes.entry(origin.lane).or_insert(now);
            if is_behind(*last, now) {
                *last = now;
            }
        })?;
        Ok(found)
    }

    pub fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    /// Whether what was made from that message, or from one behind it, was sent there.
    pub fn has(&self, target: &str, origin: Origin) -> bool {
        let last = self
            .last
            .get(target)
            .and_then(|lanes| lanes.get(&origin.lane));
        last.is_some_and(|&last| !is_behind(last, (origin.sequence, origin.part)))
    }
}

/// Sequence numbers go round.
fn is_behind(last: Last, now: Last) -> bool {
    match now.0.wrapping_sub(last.0) as i32 {
        0 => now.1 > last.1,
        ahead => ahead > 0,
    }
}

/// What a route has sent of the messages of one queue, each for itself.
#[derive(Debug, Default)]
pub struct Sent(HashSet<(String, Origin)>);

impl Sent {
    /// Looks through what is still held of the targets. `None`: of every topic and queue.
    pub fn look(bus: &Bus, by: u64, targets: Option<&[Target]>) -> Result<Self> {
        let mut sent = HashSet::new();
        each_origin(bus, by, targets, |name, origin| {
            sent.insert((name.to_owned(), origin));
        })?;
        Ok(Self(sent))
    }

    pub fn has(&self, target: &str, origin: Origin) -> bool {
        self.0.contains(&(target.to_owned(), origin))
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
            Err(e) if e.kind() == buslane::ErrorKind::NotFound => continue,
            report => report?,
        };
        report.look_back(usize::MAX, |seen| {
            let origin = seen.envelope.and_then(|envelope| envelope.origin());
            if let Some(origin) = origin.filter(|origin| origin.by == by) {
                found(&name, origin);
            }
        });
    }
    Ok(())
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
}
