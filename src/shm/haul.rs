//! Which way long payloads take into a ring: through the processor's caches, or past them.
//!
//! A line that another processor has in its caches must be taken away from it before it is written. Where that one is near, this
//! costs less than memory does. Where it is far (on another complex of cores, in another socket) it costs several times as much,
//! and the way past the caches, which takes nothing from anyone, is the quicker one. No system says reliably which it is, and on
//! a virtual machine it changes from one second to the next. So a writer tries the other way now and then, for as long as it
//! takes the ring to be as that way leaves it.

use std::time::Instant;

use super::bytes::{Ring, Way};
use super::sync::{Ordering, fence};

/// Laps of the ring until the first try, and from one try to the next if the last one was for the better.
const FIRST_TRY: u64 = 16;

/// The same after many in vain.
const LAST_TRY: u64 = 512;

/// Laps of a try: after the first one the ring is in the caches, or is not.
const TRIED: u64 = 2;

/// Bytes of a lap at least: of a smaller ring these are several, so that more than a few copies are compared.
const LEAST_LAP: u64 = 1 << 20;

/// The way of one ring's writer.
#[derive(Debug)]
pub struct Haul {
    way: Way,
    /// Whether that is a try.
    is_tried: bool,
    /// Bytes in a lap.
    lap: u64,
    /// Where the other way begins, if anything was timed: what is copied in the lap before is. No position, if there is no
    /// other way.
    end: u64,
    /// Laps between two tries.
    between: u64,
    /// What was timed.
    cost: Cost,
    /// The same of the way that is not a try.
    settled: Cost,
}

/// What copies took.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    nanoseconds: u64,
    bytes: u64,
}

impl Cost {
    fn is_known(self) -> bool {
        self.bytes > 0
    }

    /// Nanoseconds for a MiB.
    fn rate(self) -> u64 {
        self.nanoseconds.saturating_mul(1 << 20) / self.bytes.max(1)
    }

    /// One more. What takes longer than several usual ones was interrupted.
    fn add(&mut self, nanoseconds: u64, bytes: u64) {
        let most = match self.is_known() {
            true => self.rate().saturating_mul(4 * bytes) >> 20,
            false => u64::MAX,
        };
        self.nanoseconds += nanoseconds.min(most);
        self.bytes += bytes;
    }
}

impl Haul {
    /// Of a ring of `capacity` bytes, from `position` on.
    pub fn new(capacity: u64, position: u64) -> Self {
        let lap = capacity.max(LEAST_LAP);
        let end = match Way::HAS_OTHER {
            true => position.saturating_add(FIRST_TRY * lap),
            false => u64::MAX,
        };
        Self {
            way: Way::Through,
            is_tried: false,
            lap,
            end,
            between: FIRST_TRY,
            cost: Cost::default(),
            settled: Cost::default(),
        }
    }

    /// Copies a long payload to `position`. The lane has it writable, and no reader looks there.
    pub fn copy(&mut self, ring: &Ring, position: u64, payload: &[u8]) {
        // Where long messages are rare, the next one is timed.
        if position >= self.end && self.cost.is_known() {
            self.turn(position);
        }
        if position.saturating_add(self.lap) < self.end {
            return ring.copy_long_in(position, payload, self.way);
        }
        let started = Instant::now();
        ring.copy_long_in(position, payload, self.way);
        // Until it has its lines: the processor is done with a short one before.
        fence(Ordering::SeqCst);
        let took = started.elapsed().as_nanos() as u64;
        self.cost.add(took, payload.len() as u64);
    }

    /// Whether long payloads at `position` go through the caches, and nothing is to be found out.
    pub fn is_settled(&self, position: u64) -> bool {
        self.way == Way::Through && position < self.end.saturating_sub(self.lap)
    }

    /// Whether a long frame at `position` is written sooner if its lines were written to before. (Where copies are timed, they are
    /// to pay for the lines themselves.)
    pub fn wants_lines(&self, position: u64) -> bool {
        let is_timed = (self.end.saturating_sub(self.lap)..self.end).contains(&position);
        self.way == Way::Through && !is_timed
    }

    /// Begins a try, or ends it.
    #[cold]
    fn turn(&mut self, position: u64) {
        let is_better = self.cost.rate() < self.settled.rate() / 4 * 3;
        let laps = if !self.is_tried {
            self.settled = self.cost;
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
        self.cost = Cost::default();
        self.end = position.saturating_add(laps * self.lap);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::shm::segment::Mapping;

    const LAP: u64 = 1 << 20;

    /// One long copy at `position`, if a KiB takes so long each way. Which it took.
    fn copy(haul: &mut Haul, position: u64, through: u64, past: u64) -> Way {
        if position >= haul.end && haul.cost.is_known() {
            haul.turn(position);
        }
        if position + haul.lap >= haul.end {
            let took = if haul.way == Way::Past { past } else { through };
            haul.cost.add(took, 1024);
        }
        haul.way
    }

    /// How many of so many laps went past the caches.
    fn past(haul: &mut Haul, position: &mut u64, laps: u64, through: u64, past: u64) -> usize {
        let mut count = 0;
        for _ in 0..laps {
            count += usize::from(copy(haul, *position, through, past) == Way::Past);
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
    fn one_long_message_in_many_laps_is_timed() {
        let mut haul = Haul::new(LAP, 0);
        let ways: Vec<_> = (0..100)
            .map(|n| copy(&mut haul, n * 1000 * LAP, 400, 40))
            .collect();
        assert_eq!(ways[..2], [Way::Through; 2]);
        assert!(ways[2..].iter().filter(|way| **way == Way::Past).count() > 40);
    }

    /// Loans are not copied here.
    #[test]
    fn without_a_long_copy_places_are_cleared_as_ever() {
        let haul = Haul::new(LAP, 0);
        let laps = 10 * FIRST_TRY;
        let not = (0..laps).filter(|lap| !haul.wants_lines(lap * LAP)).count();
        assert_eq!(not, 1);
    }

    #[test]
    fn an_interruption_is_no_cost() {
        let mut cost = Cost::default();
        for took in [100, 120, 5_000_000, 80] {
            cost.add(took, 1 << 20);
        }
        assert!((100..250).contains(&cost.rate()), "{cost:?}");
    }

    /// Whichever way it went, who is told of it sees all of it: stores past the caches come before.
    #[test]
    fn a_reader_sees_what_went_either_way() {
        const LEN: usize = 1 << 16;
        const ROUNDS: u64 = 2000;
        let map = Mapping::private(LEN).unwrap();
        let (ring, read) = (Ring::new(&map, LEN), Ring::new(&map, LEN));
        let ((tell, told), (answer, seen)) = (channel(), channel());
        // Of another length, at another place in a line.
        let place = |n: u64| (8 + 16 * (n % 4), (n * 7919 % 60_000) as usize);
        let byte = |n: u64, i: usize| (n * 31 + i as u64) as u8;
        let reader = std::thread::spawn(move || {
            while let Ok(n) = told.recv() {
                let (at, len) = place(n);
                let mut payload = read.loaned(at, len).iter().enumerate();
                assert!(payload.all(|(i, is)| *is == byte(n, i)), "{n}");
                answer.send(()).unwrap();
            }
        });
        for n in 1..=ROUNDS {
            let (at, len) = place(n);
            let payload: Vec<u8> = (0..len).map(|i| byte(n, i)).collect();
            let way = if n % 3 == 0 { Way::Through } else { Way::Past };
            ring.copy_long_in(at, &payload, way);
            tell.send(n).unwrap();
            seen.recv().expect("the reader goes on");
        }
        drop(tell);
        reader.join().unwrap();
    }

    #[test]
    fn a_small_difference_is_none() {
        let (mut haul, mut position) = (Haul::new(LAP, 0), 0);
        assert!(past(&mut haul, &mut position, 10_000, 40, 36) < 100);
    }
}
