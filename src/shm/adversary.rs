//! Memory that lies: under `--cfg adversary` each load of a shared word answers what a tape says, and another thing each time
//! if the tape says so. The tapes come from `fuzz/`. A thread without one is told the truth.
//!
//! What is stored is stored; a read-modify-write is carried out, and what it answers is a load. So a lie is as if another
//! process had changed the word before the load, and back behind it.
//!
//! The tape is read byte by byte, for each load (see [`Tape::answer`]); who drives the fuzzing takes bytes from the same tape between
//! the loads. Behind its end all is true; or it begins anew, if it is to lie for ever.

use std::cell::{Cell, RefCell};

use zerocopy::FromBytes;

use super::layout::Word;
use super::sync::Ordering;

/// Loads that are answered truly behind the end of a tape, before they are looked at again.
const REST: u64 = 1024;
/// Answers that are kept, to be given again.
const KEPT: usize = 8;
/// Where an overflow would be near, and what means something.
const MARKED: [u64; 8] = [
    0,
    1,
    u64::MAX,
    u64::MAX - 1,
    u64::MAX - 15,
    super::lane::MAX_POSITION,
    super::lane::MAX_POSITION - 16,
    1 << 32,
];

/// What one thread's loads are answered by.
#[derive(Debug, Default)]
struct Tape {
    bytes: Vec<u8>,
    at: usize,
    /// It has been read to its end.
    is_over: bool,
    /// It begins anew for loads, each time that it ends.
    repeats: bool,
    kept: [u64; KEPT],
    /// Loads since [`limit`] was called, those included that are still to be answered truly.
    loads: u64,
    most: u64,
}

thread_local! {
    /// Loads that are answered truly before the tape is asked.
    static TRUTHS: Cell<u64> = const { Cell::new(u64::MAX) };
    static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// Has this thread's loads answered by these bytes; those of a call are limited by [`limit`].
pub fn begin(bytes: &[u8], repeats: bool) {
    TRUTHS.set(0);
    TAPE.with_borrow_mut(|tape| {
        let mut kept = tape.take().unwrap_or_default().bytes;
        kept.clear();
        kept.extend_from_slice(bytes);
        *tape = Some(Tape {
            bytes: kept,
            repeats,
            most: u64::MAX,
            ..Tape::default()
        });
    });
}

/// Has this thread told the truth again.
pub fn end() {
    TRUTHS.set(u64::MAX);
}

/// Tells the truth while `honest` runs.
pub fn truly<T>(honest: impl FnOnce() -> T) -> T {
    let truths = TRUTHS.replace(u64::MAX);
    let result = honest();
    TRUTHS.set(truths);
    result
}

/// The next byte of the tape; `None` if it has been read to its end.
pub fn byte() -> Option<u8> {
    TAPE.with_borrow_mut(|tape| tape.as_mut()?.byte())
}

/// A word of the tape, as a load would be answered that is to find `truth`.
pub fn word(truth: u64) -> u64 {
    TAPE.with_borrow_mut(|tape| match tape {
        Some(tape) if !tape.is_over => tape.answer(truth).0,
        _ => truth,
    })
}

/// From now on until this is called again: more loads than this are a panic, for whoever makes them does not end.
pub fn limit(loads: u64) {
    TAPE.with_borrow_mut(|tape| {
        if let Some(tape) = tape {
            (tape.loads, tape.most) = (TRUTHS.get(), loads);
        }
    });
}

impl Tape {
    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied().filter(|_| !self.is_over);
        self.at += 1;
        self.is_over |= byte.is_none();
        byte
    }

    /// The next byte for a load.
    fn next(&mut self) -> Option<u8> {
        if self.at >= self.bytes.len() {
            self.is_over = true;
            if !self.repeats || self.bytes.is_empty() {
                return None;
            }
            self.at = 0;
        }
        self.at += 1;
        Some(self.bytes[self.at - 1])
    }

    fn number<const N: usize>(&mut self) -> u64 {
        let mut bytes = [0; 8];
        for byte in &mut bytes[..N] {
            *byte = self.next().unwrap_or(0);
        }
        u64::from_le_bytes(bytes)
    }

    /// What a load is answered, and how many behind it are answered truly.
    fn load(&mut self, truth: u64) -> (u64, u64) {
        let (answer, truths) = self.answer(truth);
        self.loads += 1 + truths;
        assert!(
            self.loads <= self.most,
            "more than {} loads in one call",
            self.most
        );
        (answer, truths)
    }

    fn answer(&mut self, truth: u64) -> (u64, u64) {
        let Some(byte) = self.next() else {
            return (truth, REST);
        };
        let low = u64::from(byte & 0xf);
        let answer = match byte {
            0..=0x9f => return (truth, u64::from(byte)),
            // A few slots on, or back.
            0xa0..=0xbf => truth
                .wrapping_add(u64::from(byte & 0x1f) * 8)
                .wrapping_sub(128),
            0xc0..=0xc7 => MARKED[usize::from(byte & 7)],
            // What was answered before.
            0xc8..=0xcf => return (self.kept[usize::from(byte & 7)], 0),
            // The word of a frame, with these flags.
            0xd0..=0xdf => {
                let len = self.number::<2>();
                let sequence = (truth >> 32).wrapping_add(self.number::<1>());
                Word::message(len, sequence).0 & !0xf | low
            }
            // Of whatever magnitude.
            0xe0..=0xef => self.number::<2>() << (4 * low),
            0xf0.. => self.number::<8>(),
        };
        self.kept.rotate_right(1);
        self.kept[0] = answer;
        (answer, 0)
    }
}

/// What a load answers that finds `truth`.
#[inline]
fn told(truth: u64) -> u64 {
    match TRUTHS.get() {
        0 => asked(truth),
        truths => {
            TRUTHS.set(truths - 1);
            truth
        }
    }
}

#[inline(never)]
fn asked(truth: u64) -> u64 {
    TAPE.with_borrow_mut(|tape| {
        let (answer, truths) = match tape {
            Some(tape) => tape.load(truth),
            None => (truth, u64::MAX),
        };
        TRUTHS.set(truths);
        answer
    })
}

/// A word in memory that lies.
#[derive(Debug, Default, FromBytes)]
#[repr(transparent)]
pub struct AtomicU64(std::sync::atomic::AtomicU64);

impl AtomicU64 {
    #[inline]
    pub fn load(&self, order: Ordering) -> u64 {
        told(self.0.load(order))
    }

    #[inline]
    pub fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
    }

    #[inline]
    pub fn swap(&self, value: u64, order: Ordering) -> u64 {
        told(self.0.swap(value, order))
    }

    #[inline]
    pub fn fetch_add(&self, more: u64, order: Ordering) -> u64 {
        told(self.0.fetch_add(more, order))
    }

    #[inline]
    pub fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        told(self.0.fetch_max(value, order))
    }

    /// Whether it was done is a lie, too.
    #[inline]
    pub fn compare_exchange(
        &self,
        old: u64,
        new: u64,
        done: Ordering,
        failed: Ordering,
    ) -> Result<u64, u64> {
        let (Ok(found) | Err(found)) = self.0.compare_exchange(old, new, done, failed);
        let found = told(found);
        if found == old { Ok(found) } else { Err(found) }
    }
}
