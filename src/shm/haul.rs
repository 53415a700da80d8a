//! Which way long payloads take into a ring: through the processor's caches, or past them.
//!
//! A line that another processor has in its caches must be taken away from it before it is written. Where that one is near, this
//! costs less than memory does. Where it is far (on another complex of cores, in another socket) it costs several times as much,
//! and the way past the caches, which takes nothing from anyone, is the quicker one. No system says reliably which it is, and on
//! a virtual machine it changes from one second to the next. So a writer tries the other way now and then, for as long as it
//! takes the ring to be as that way leaves it.

use std::time::Instant;

use super::bytes::{Ring, Way};

/// Bytes of a payload that is long: shorter ones have too many lines that are written only in part.
pub const LONG: usize = 1024;

/// Laps of the ring until the first try, and from one try to the next if the last one was for the better.
const FIRST_TRY: u64 = 16;

/// The same after many in vain.
const LAST_TRY: u64 = 512;

/// Laps of a try: after the first one the ring is in the caches, or is not.
const TRIED: u64 = 2;

/// The way of one ring's writer.
#[derive(Debug)]
pub struct Haul {
    way: Way,
    /// Whether that is a try.
    is_tried: bool,
    /// Bytes in a lap.
    lap: u64,
    /// Where the other way begins: what is copied in the lap before is timed.
    end: u64,
    /// Laps between two tries.
    between: u64,
    /// The least time that a KiB took, in nanoseconds.
    least: u64,
    /// The same of the way that is not a try.
    settled: u64,
}

impl Haul {
    /// Of a ring of `lap` bytes, from `position` on.
    pub fn new(lap: u64, position: u64) -> Self {
        Self {
            way: Way::Through,
            is_tried: false,
            lap,
            end: position.saturating_add(FIRST_TRY * lap),
            between: FIRST_TRY,
            least: u64::MAX,
            settled: u64::MAX,
        }
    }

    /// Copies a long payload to `position`. The lane has it writable, and no reader looks there.
    pub fn copy(&mut self, ring: &Ring, position: u64, payload: &[u8]) {
        if position >= self.end && Way::HAS_OTHER {
            self.turn(position);
        }
        if !self.is_timed(position) {
            return ring.copy_long_in(position, payload, self.way);
        }
        let started = Instant::now();
        ring.copy_long_in(position, payload, self.way);
        let took = started.elapsed().as_nanos() as u64;
        self.note(took.saturating_mul(1024) / payload.len() as u64);
    }

    fn is_timed(&self, position: u64) -> bool {
        position.saturating_add(self.lap) >= self.end
    }

    /// Whether a long payload at `position` is copied sooner if its lines were written to before. (Where that is timed, it is to
    /// pay for them itself.)
    pub fn wants_lines(&self, position: u64) -> bool {
        self.way == Way::Through && !self.is_timed(position)
    }

    fn note(&mut self, took: u64) {
        self.least = self.least.min(took);
    }

    /// Begins a try, or ends it.
    #[cold]
    fn turn(&mut self, position: u64) {
        // Long messages may be rare: if there was none to compare with, nothing is known.
        let is_better = self.settled < u64::MAX && self.least < self.settled / 4 * 3;
        let laps = if !self.is_tried {
            self.settled = self.least;
            self.way = self.way.other();
            TRIED
        } else if is_better {
            self.between = FIRST_TRY;
            self.between
        } else {
            self.way = self.way.other();
            self.between = (2 * self.between).min(LAST_TRY);
            self.between
        };
        self.is_tried = !self.is_tried;
        self.least = u64::MAX;
        self.end = position.saturating_add(laps * self.lap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAP: u64 = 1 << 20;

    /// How many of so many laps went past the caches, if a KiB takes so long each way.
    fn past(haul: &mut Haul, position: &mut u64, laps: u64, through: u64, past: u64) -> u64 {
        let mut count = 0;
        for _ in 0..laps {
            if *position >= haul.end {
                haul.turn(*position);
            }
            count += u64::from(haul.way == Way::Past);
            if *position + LAP >= haul.end {
                haul.note(if haul.way == Way::Past { past } else { through });
            }
            *position += LAP;
        }
        count
    }

    #[test]
    fn the_quicker_way_is_taken_and_the_other_one_tried_ever_more_seldom() {
        let (mut haul, mut position) = (Haul::new(LAP, 0), 0);
        assert!(past(&mut haul, &mut position, 10_000, 20, 40) < 100);
        // The processors have moved.
        past(&mut haul, &mut position, LAST_TRY + TRIED, 400, 40);
        assert!(past(&mut haul, &mut position, 10_000, 400, 40) > 9_900);
        // And back.
        past(&mut haul, &mut position, LAST_TRY + TRIED, 20, 40);
        assert!(past(&mut haul, &mut position, 10_000, 20, 40) < 100);
    }

    #[test]
    fn what_is_not_known_is_not_better() {
        let mut haul = Haul::new(LAP, 0);
        haul.turn(haul.end);
        assert_eq!(haul.way, Way::Past);
        haul.note(1);
        haul.turn(haul.end);
        assert_eq!(haul.way, Way::Through);
    }

    #[test]
    fn a_small_difference_is_none() {
        let (mut haul, mut position) = (Haul::new(LAP, 0), 0);
        assert!(past(&mut haul, &mut position, 10_000, 40, 36) < 100);
    }
}
