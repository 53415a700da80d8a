//! Going to sleep and waking: the barrier that both sides would need is paid by the one that goes to sleep.
//!
//! # A reader sleeps on the topic's bell, a sender wakes it
//!
//! ```text
//! sleeper                                   sender
//! seen = bell                               store the frame's word (Release)
//! parked = 1                                light fence (compiler only)
//! attention += 1                            attention as last seen? done
//! heavy fence (membarrier)                  any parked? bell += 1, wake
//! a frame, or another roster? don't sleep
//! sleep while bell == seen
//! parked = 0
//! ```
//!
//! The heavy fence makes the light one a whole one: either the sender sees the bumped `attention`, and so `parked`, or
//! the sleeper sees the frame. `attention` tells a sender that anything at all has changed with one load; it takes the
//! very value it loaded as seen, so that a later bump is never missed.
//!
//! | parked | bell | the sleeper | who changes it |
//! |---|---|---|---|
//! | 0 | any | awake, or woken | the sleeper, before it looks |
//! | 1 | as seen | about to look, or asleep | a sender rings |
//! | 1 | rung | about to wake, or does not fall asleep | the sleeper clears `parked` |
//!
//! # A writer without room sleeps on the slowest cursor's position, its reader wakes it
//!
//! ```text
//! writer                                    reader
//! want = position to reach                  store position, if a batch is due (Release)
//! heavy fence                               light fence
//! look at the cursors again                 position < want? done
//! sleep while the position is as seen       store position, wake
//! want = nobody
//! ```
//!
//! All sleeps are bounded by the caller, so that a waker that dies between its store and its wake costs a delay, not a
//! hang.

use std::sync::Arc;
use std::time::Duration;

use super::layout::{BusControl, Control, CursorHeader, LaneHeader, Line, NOBODY, Slot};
use super::roster::{self, Gate, Lowest};
use super::sync::{AtomicU64, Ordering, heavy_fence, light_fence};
use super::{View, futex};

/// A sender's view of `attention`.
#[derive(Debug)]
pub struct Watch {
    seen: u64,
    /// The same, unless fences must be whole ones.
    quiet: u64,
    /// The others can't use `membarrier`.
    full: bool,
}

/// No value that `attention` reaches.
const UNSEEN: u64 = u64::MAX;

impl Default for Watch {
    fn default() -> Self {
        // The first send looks around.
        Self {
            seen: UNSEEN,
            quiet: UNSEEN,
            full: false,
        }
    }
}

impl Watch {
    /// After a commit: whether nobody joined, left, or went to sleep since the last look. If not, what follows is
    /// [`disturbed`](Self::disturbed).
    #[inline(always)]
    pub fn is_quiet(&self, control: &Control) -> bool {
        attention(control, false) == self.quiet
    }

    /// Whether somebody joined, left, or went to sleep since the last look.
    pub fn disturbed(&mut self, control: &Control) -> bool {
        let now = attention(control, self.full);
        let disturbed = now != self.seen;
        self.seen = now;
        self.fence_fully(self.full);
        disturbed
    }

    /// Whether the fence after each commit must be a whole one: somebody can't use `membarrier`.
    pub fn fence_fully(&mut self, full: bool) {
        self.full = full;
        self.quiet = if full { UNSEEN } else { self.seen };
    }
}

/// What a sender compares after a commit.
#[inline(always)]
fn attention(control: &Control, full: bool) -> u64 {
    // Between the frame's word and `attention`; with the heavy fence in `park`, as drawn above.
    light_fence(full);
    // Pairs with the bumps in `park` and `roster::changed`: `parked` and the roster are at least as new.
    control.attention.load(Ordering::Acquire)
}

/// Wakes all that sleep on the topic's bell.
pub fn ring(control: &Control) {
    // No ordering: a sleeper that sees it looks at everything again behind a fence of its own.
    control.bell.fetch_add(1, Ordering::Relaxed);
    futex::wake(&control.bell);
}

/// A word that changes when a sleeper is to look again.
#[derive(Clone, Debug)]
pub enum Signal {
    /// A topic's bell.
    Bell(View<Control>),
    /// A topic's roster.
    Roster(View<Control>),
    /// How far a reader is.
    Slot(View<[Slot]>, usize),
    /// The list of a bus's topics.
    Topics(View<BusControl>),
    /// A word of this process's own.
    Own(Arc<Line<AtomicU64>>),
}

impl Signal {
    /// A new word of this process's own.
    pub fn own() -> Self {
        Self::Own(Arc::default())
    }

    /// The word.
    pub fn word(&self) -> &AtomicU64 {
        match self {
            Self::Bell(control) => &control.bell,
            Self::Roster(control) => &control.roster,
            Self::Slot(slots, index) => &slots[*index].position,
            Self::Topics(control) => &control.topics,
            Self::Own(word) => word,
        }
    }

    /// Its value now. `Relaxed`: who finds it changed looks again at what it waits for, behind a fence of its own.
    pub fn now(&self) -> u64 {
        self.word().load(Ordering::Relaxed)
    }

    /// Whether both are the same word.
    pub fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self.word(), other.word())
    }
}

/// Changes a word of this process's own, and wakes who sleeps on it.
pub fn kick(own: &AtomicU64) {
    // No ordering: what it tells of is behind a lock.
    own.fetch_add(1, Ordering::Relaxed);
    futex::wake(own);
}

/// Leave to sleep while a signal is as it was seen.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The signal.
    pub signal: Signal,
    /// Its value, seen before anything was looked at.
    pub seen: u64,
}

impl Ticket {
    /// Sleeps, at most `time`, while the signal is as it was seen.
    pub fn sleep(&self, time: Duration) {
        futex::wait(self.signal.word(), self.seen, time);
    }

    /// Whether the signal has changed since.
    pub fn is_due(&self) -> bool {
        self.signal.now() != self.seen
    }
}

/// Sleeps while all signals are as they were seen, at most `time`. As many as `futex::WAIT_ANY_MAX`.
pub fn sleep_any(tickets: &[Ticket], time: Option<Duration>) {
    let words = tickets
        .iter()
        .map(|ticket| (ticket.signal.word(), ticket.seen));
    futex::wait_any(words, time);
}

/// A reader's: says that it is about to sleep on the bell. What must follow: a heavy fence, a last look, and, after the
/// sleep, [`disarm`].
pub fn arm(control: &View<Control>, cursor: &CursorHeader) -> Ticket {
    // Before the flag: who finds the flag set rings later than this.
    let ticket = bell(control);
    cursor.parked.store(1, Ordering::Relaxed);
    // Pairs with the load in `Watch::disturbed`: who sees the bump sees the flag, and rings after the load above.
    control.attention.fetch_add(1, Ordering::Release);
    ticket
}

/// What wakes who sleeps on the bell, once it rings after this.
pub fn bell(control: &View<Control>) -> Ticket {
    Ticket {
        signal: Signal::Bell(control.clone()),
        seen: control.bell.load(Ordering::Relaxed),
    }
}

/// What wakes who sleeps on the roster, once it changes after this.
pub fn roster(control: &View<Control>) -> Ticket {
    Ticket {
        signal: Signal::Roster(control.clone()),
        seen: roster::state(control),
    }
}

/// A reader's: it is awake.
pub fn disarm(cursor: &CursorHeader) {
    cursor.parked.store(0, Ordering::Relaxed);
}

/// Sleeps until the bell rings, at most `time`, unless `ready` finds something to do.
pub fn park<E>(
    control: &View<Control>,
    cursor: &CursorHeader,
    time: Duration,
    ready: impl FnOnce() -> Result<bool, E>,
) -> Result<(), E> {
    let ticket = arm(control, cursor);
    heavy_fence();
    let ready = ready();
    if let Ok(false) = ready {
        ticket.sleep(time);
    }
    disarm(cursor);
    ready.map(drop)
}

/// A writer's: says which reader position it waits for. `look` finds the slowest reader, or `None` if there is no need;
/// the ticket is for its next move. What must follow the sleep is [`disarm_room`].
pub fn arm_room<E>(
    control: &View<Control>,
    lane: &LaneHeader,
    want: u64,
    look: impl FnOnce() -> Result<Option<Lowest>, E>,
) -> Result<Option<Ticket>, E> {
    // Before the readers are looked at: one that has not joined yet will tell by the bell.
    let bell = bell(control);
    lane.want.store(want, Ordering::Relaxed);
    heavy_fence();
    let Some(lowest) = look()? else {
        return Ok(None);
    };
    Ok(match lowest.gate {
        Gate::Slot(cursor, slot) => Some(Ticket {
            signal: Signal::Slot(cursor.slots, slot),
            seen: lowest.position,
        }),
        Gate::Unjoined => Some(bell),
        Gate::Open => None,
    })
}

/// A writer's: it waits no more.
pub fn disarm_room(lane: &LaneHeader) {
    lane.want.store(NOBODY, Ordering::Relaxed);
}

/// Sleeps, at most `time`, until the slowest reader that `look` finds has moved. `look` gives `None` if there is no need.
pub fn wait_for_room<E>(
    control: &View<Control>,
    lane: &LaneHeader,
    want: u64,
    time: Duration,
    look: impl FnOnce() -> Result<Option<Lowest>, E>,
) -> Result<(), E> {
    let ticket = arm_room(control, lane, want, look);
    if let Ok(Some(ticket)) = &ticket {
        ticket.sleep(time);
    }
    disarm_room(lane);
    ticket.map(drop)
}

/// Sleeps, at most `time`, while the roster is as `seen`.
pub fn await_change(control: &Control, seen: u64, time: Duration) {
    futex::wait(&control.roster, seen, time);
}
