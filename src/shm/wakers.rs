//! Many sleepers behind one thread: which of them the next look finds due. The thread and the sleepers take turns at it
//! under a lock.
//!
//! ```text
//! sleeper, whose ticket says `seen`           thread
//! armed, fenced, looked (as in `park`)
//! lock                                        lock
//!   changed since `seen`? don't sleep           for each entry: load its signal
//!   leave `seen` and a waker                      has a waker, and changed since its `seen`? take the waker
//! unlock                                        unlock
//!                                             wake what was taken
//!                                             sleep while all signals are as loaded
//! ```
//!
//! No wake is lost. The kernel compares each signal with what the thread loaded under the lock. If the thread's turn came
//! after the sleeper's, it either found the signal changed and took the waker, or sleeps only while the signal is as
//! `seen`. If it came before, what the thread loaded is no later than what the sleeper loaded, which was `seen` (the lock
//! orders the two loads of one word): when the signal leaves `seen`, it differs from what the thread loaded, unless
//! it had left that already; either way the thread does not sleep, and takes another turn.

use std::time::Instant;

use super::futex;
use super::park::{Signal, Ticket};

/// The sleepers of one thread. `W` is what wakes one.
#[derive(Debug)]
pub struct Wakers<W> {
    entries: Vec<Option<Entry<W>>>,
}

#[derive(Debug)]
struct Entry<W> {
    signal: Signal,
    /// `None`: nobody sleeps here.
    asleep: Option<Asleep<W>>,
}

#[derive(Debug)]
struct Asleep<W> {
    /// What it saw of the signal.
    seen: u64,
    /// When it is due without a signal.
    until: Option<Instant>,
    /// What wakes it.
    waker: W,
}

/// One signal of the thread's is the one that tells it of new entries.
const MAX: usize = futex::WAIT_ANY_MAX - 1;

impl<W> Default for Wakers<W> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
        }
    }
}

impl<W> Wakers<W> {
    /// Watches `signal` from the thread's next turn on: the entry's index. `None`: there are too many.
    pub fn add(&mut self, signal: Signal) -> Option<usize> {
        let entry = Some(Entry {
            signal,
            asleep: None,
        });
        if let Some(free) = self.entries.iter().position(Option::is_none) {
            self.entries[free] = entry;
            return Some(free);
        }
        if self.entries.len() == MAX {
            return None;
        }
        self.entries.push(entry);
        Some(self.entries.len() - 1)
    }

    /// Forgets an entry. What is returned, here and below, is to be dropped when the lock is released.
    pub fn remove(&mut self, index: usize) -> Option<W> {
        Some(self.entries[index].take()?.asleep?.waker)
    }

    /// Has `waker` taken when the entry's signal is not as `seen`, or at `until` (of which the thread must be told),
    /// instead of the one that was left before. An error: it is not so now.
    pub fn sleep(
        &mut self,
        index: usize,
        seen: u64,
        until: Option<Instant>,
        waker: W,
    ) -> Result<Option<W>, W> {
        match &mut self.entries[index] {
            Some(entry) if entry.signal.now() == seen => {
                let asleep = Asleep { seen, until, waker };
                let before = entry.asleep.replace(asleep);
                Ok(before.map(|before| before.waker))
            }
            _ => Err(waker),
        }
    }

    /// Nobody sleeps there any more.
    pub fn rest(&mut self, index: usize) -> Option<W> {
        Some(self.entries[index].as_mut()?.asleep.take()?.waker)
    }

    /// The thread's turn: takes what wakes those that are due, and says what to sleep on then, and until when.
    pub fn take_due(&mut self, due: &mut Vec<W>, tickets: &mut Vec<Ticket>) -> Option<Instant> {
        let mut first = None::<Instant>;
        for entry in self.entries.iter_mut().flatten() {
            let now = entry.signal.now();
            let is_due = |asleep: &mut Asleep<W>| {
                let is_late = asleep.until.is_some_and(|until| until <= Instant::now());
                asleep.seen != now || is_late
            };
            due.extend(entry.asleep.take_if(is_due).map(|asleep| asleep.waker));
            let until = entry.asleep.as_ref().and_then(|asleep| asleep.until);
            first = [first, until].into_iter().flatten().min();
            let signal = entry.signal.clone();
            tickets.push(Ticket { signal, seen: now });
        }
        first
    }
}
