//! How to wait, look again, pause, yield, sleep; and what can be waited for.

use std::cell::Cell;
use std::hint;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::PollFd;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use crate::error::Result;
use crate::shm::park::Ticket;

/// What can be waited for, alone or with others.
///
/// Going to sleep: [`arm`](Self::arm) all, one heavy fence, [`is_ready`](Self::is_ready) of each once more, sleep while the
/// signals of all tickets are as seen, [`disarm`](Self::disarm) all.
pub trait Waitable {
    /// Whether a call would not wait: there is a message, a loss, an end, or room. Takes nothing; what has become of the
    /// publishers is noted, and what was released is published.
    fn is_ready(&mut self) -> Result<bool>;

    /// Has the other side ring from now on. Adds what to sleep on.
    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()>;

    /// It is awake. May be called without [`arm`](Self::arm), too.
    fn disarm(&mut self);

    /// When to look again if nothing rings: something is put off until then.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// What to sleep on if it is a descriptor.
    fn descriptor(&self) -> Option<PollFd<'_>> {
        None
    }
}

impl<W: Waitable + ?Sized> Waitable for &mut W {
    fn is_ready(&mut self) -> Result<bool> {
        (**self).is_ready()
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        (**self).arm(tickets)
    }

    fn disarm(&mut self) {
        (**self).disarm();
    }

    fn due(&self) -> Option<Instant> {
        (**self).due()
    }

    fn descriptor(&self) -> Option<PollFd<'_>> {
        (**self).descriptor()
    }
}

/// How a blocking call waits while there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WaitStrategy {
    /// Look again and again: the least latency, and a whole core.
    Spin,
    /// Look again for about as long as a sleep and a wake-up take, then sleep. Where others wait for the processor, let them
    /// have it between two looks.
    #[default]
    Adaptive,
    /// Sleep at once: no core is used, and every message after a pause costs a wake-up.
    Sleep,
}

/// How long [`WaitStrategy::Adaptive`] looks before it sleeps. Waking a sleeper on another core takes 20 to 50 µs:
/// looking for as long as that costs at most twice what the better choice would have.
const SPIN: Duration = Duration::from_micros(50);
/// Sleeps are cut into slices: a waker that dies between its store and its wake costs one of these.
pub(crate) const SLICE: Duration = Duration::from_millis(250);
/// Calls between two readings of the clock: a reader looks up to 32 times in each.
const LOOKS: u32 = 8;

/// What a waiter does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Look again.
    Look,
    /// Sleep, at most so long, then look again.
    Sleep(Duration),
    /// Give up.
    TimedOut,
}

/// A yield that takes longer has let somebody else run: two changes of process, at least.
const SWITCH: Duration = Duration::from_micros(2);

thread_local! {
    /// Whether the last yield let somebody else run: whoever is waited for may need this very processor.
    static CROWDED: Cell<bool> = const { Cell::new(false) };
}

/// One wait, from the first look that found nothing.
#[derive(Debug)]
pub(crate) struct Waiter {
    strategy: WaitStrategy,
    deadline: Option<Instant>,
    started: Option<Instant>,
    looks: u32,
    slept: bool,
}

impl Waiter {
    /// `timeout`: `None` waits for ever; zero gives up at once.
    pub(crate) fn new(strategy: WaitStrategy, timeout: Option<Duration>) -> Self {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Self {
            strategy,
            deadline,
            started: None,
            looks: 0,
            slept: false,
        }
    }

    /// Pauses `pauses` times while spinning, and says what to do.
    pub(crate) fn next(&mut self, pauses: u32) -> Next {
        let spins = match self.strategy {
            WaitStrategy::Sleep => false,
            WaitStrategy::Spin => true,
            WaitStrategy::Adaptive => !is_alone(),
        };
        self.looks += 1;
        let is_early = !self.looks.is_multiple_of(LOOKS) && !CROWDED.get();
        if spins && !self.slept && is_early {
            for _ in 0..pauses {
                hint::spin_loop();
            }
            return Next::Look;
        }
        self.next_by_clock(spins)
    }

    #[cold]
    fn next_by_clock(&mut self, spins: bool) -> Next {
        let now = Instant::now();
        let left = self
            .deadline
            .map(|deadline| deadline.saturating_duration_since(now));
        if left == Some(Duration::ZERO) {
            return Next::TimedOut;
        }
        let started = *self.started.get_or_insert(now);
        if spins && (self.strategy == WaitStrategy::Spin || now - started < SPIN) {
            thread::yield_now();
            CROWDED.set(now.elapsed() > SWITCH);
            return Next::Look;
        }
        // Woken for nothing, or at the end of a slice: it looks once, and sleeps on.
        self.slept = true;
        Next::Sleep(left.map_or(SLICE, |left| left.min(SLICE)))
    }
}

/// The clock that deadlines are by, and messages put off: that of the machine since it started, in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    // Fails for no clock that there is.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    now.as_nanos() as u64
}

/// Whether the machine has one processor: whoever is waited for can't run while we look. (Not this process's affinity:
/// the other side may be pinned elsewhere.)
fn is_alone() -> bool {
    static ALONE: OnceLock<bool> = OnceLock::new();
    *ALONE.get_or_init(|| matches!(sysconf(SysconfVar::_NPROCESSORS_ONLN), Ok(Some(1))))
}
