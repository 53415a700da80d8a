//! The least that carries bytes: they are copied into a shared buffer and summed out of it, with one counter each way, or with a
//! word before each message.

use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use buslane_cli::bench::link::{Link, sum};
use buslane_cli::bench::setup::{Setup, Side};
use buslane_cli::bench::{Linked, Transport};
use buslane_cli::failure::Failure;
use shared_memory::{Shmem, ShmemConf};

use super::{by_size, failed, look};

/// A buffer of the size of buslane's lanes, a counter of what is in it, and one of what was taken out.
pub const MEMCPY: Transport = Transport {
    name: "memcpy",
    is_floor: false,
    offer: |setup| {
        let segment = Segment::of(setup, "memcpy", Side::Clock)?;
        Ok(Box::new(|_| {
            Ok(Box::new(Memcpy::new(segment, Side::Clock)))
        }))
    },
    join: |setup, side| {
        let segment = Segment::of(setup, "memcpy", side)?;
        Ok(Box::new(Memcpy::new(segment, side)))
    },
};

/// As many slots as fit a buffer of the size of buslane's lanes, each a word and a message, and a counter of what was taken out.
/// A loop over them has its state in memory, as any library's has, and nothing else to do.
pub const SLOTS: Transport = Transport {
    name: "slots",
    is_floor: false,
    offer: |setup| {
        let slots = slots(setup, "slots", Side::Clock, usize::MAX)?;
        Ok(Box::new(|_| Ok(slots)))
    },
    join: |setup, side| slots(setup, "slots", side, usize::MAX),
};

/// The same with 16 of them, which are in both processors' nearest caches.
pub const FEW_SLOTS: Transport = Transport {
    name: "slots-16",
    is_floor: false,
    offer: |setup| {
        let slots = slots(setup, "slots-16", Side::Clock, 16)?;
        Ok(Box::new(|_| Ok(slots)))
    },
    join: |setup, side| slots(setup, "slots-16", side, 16),
};

fn slots(setup: &Setup, name: &str, side: Side, most: usize) -> Linked {
    Ok(Box::new(by_size!(&setup.sizes, |N| Slots::<N>::new(
        Segment::of(setup, &format!("{name}-{N}"), side)?,
        side,
        most
    ))))
}

/// Two cache lines, which are fetched in pairs.
#[repr(C, align(128))]
struct Line(AtomicU64);

#[repr(C)]
struct Counters {
    filled: Line,
    taken: Line,
}

struct Segment {
    shmem: Shmem,
    capacity: usize,
}

impl Segment {
    const HEAD: usize = 2 * size_of::<Counters>();

    fn capacity(setup: &Setup) -> usize {
        setup.capacity.unwrap_or(buslane::DEFAULT_CAPACITY)
    }

    /// Made by the side with the clock, for the other to find.
    fn of(setup: &Setup, name: &str, side: Side) -> Result<Self, Failure> {
        match side {
            Side::Clock => Self::create(setup, name),
            Side::Peer(_) => Self::open(setup, name),
        }
    }

    fn create(setup: &Setup, name: &str) -> Result<Self, Failure> {
        let capacity = Self::capacity(setup);
        let shmem = ShmemConf::new()
            .os_id(setup.name(name))
            .size(Self::HEAD + 2 * capacity)
            .create()
            .map_err(|e| failed("share memory")(&e))?;
        // SAFETY: nobody else has it yet; and so all its pages are there.
        unsafe { ptr::write_bytes(shmem.as_ptr(), 0, shmem.len()) }
        Ok(Self { shmem, capacity })
    }

    fn open(setup: &Setup, name: &str) -> Result<Self, Failure> {
        let capacity = Self::capacity(setup);
        let shmem = ShmemConf::new().os_id(setup.name(name)).open();
        let shmem = shmem.map_err(|e| failed("share memory")(&e))?;
        assert!(shmem.len() >= Self::HEAD + 2 * capacity);
        // SAFETY: mapped; and so all pages are in reach before the clock runs.
        let bytes = unsafe { std::slice::from_raw_parts(shmem.as_ptr(), shmem.len()) };
        std::hint::black_box(
            bytes
                .iter()
                .step_by(4096)
                .map(|&byte| u64::from(byte))
                .sum::<u64>(),
        );
        Ok(Self { shmem, capacity })
    }

    fn counters(&self, direction: usize) -> &Counters {
        // SAFETY: the mapping begins on a page, has room for two, and lives as long as `self`; they are atomics.
        unsafe { &*self.shmem.as_ptr().cast::<Counters>().add(direction) }
    }

    fn buffer(&self, direction: usize) -> *mut u8 {
        // SAFETY: within the mapping.
        unsafe {
            self.shmem
                .as_ptr()
                .add(Self::HEAD + direction * self.capacity)
        }
    }
}

struct Memcpy {
    segment: Segment,
    side: Side,
    /// Messages sent, and how many of them are known to be taken.
    sent: u64,
    seen_taken: u64,
    /// Messages received, and how many are known to be there.
    received: u64,
    seen_filled: u64,
}

impl Memcpy {
    fn new(segment: Segment, side: Side) -> Self {
        Self {
            segment,
            side,
            sent: 0,
            seen_taken: 0,
            received: 0,
            seen_filled: 0,
        }
    }

    /// Where message `n` lies: as many as fit the buffer, one after the other.
    #[inline]
    fn offset(&self, n: u64, size: usize) -> usize {
        // Sizes are powers of two, as the capacity is.
        (n as usize).wrapping_mul(size) & (self.segment.capacity - 1)
    }
}

impl Link for Memcpy {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        let counters = self.segment.counters(self.side.outgoing());
        let room = (self.segment.capacity / message.len()) as u64;
        if self.sent - self.seen_taken >= room {
            self.seen_taken = look(false, || {
                let taken = counters.taken.0.load(Ordering::Acquire);
                Ok((self.sent - taken < room).then_some(taken))
            })?;
        }
        let at = self.offset(self.sent, message.len());
        // SAFETY: `at` is a multiple of the size, which divides the capacity; the reader has taken what was there.
        unsafe {
            let to = self.segment.buffer(self.side.outgoing()).add(at);
            ptr::copy_nonoverlapping(message.as_ptr(), to, message.len());
        }
        self.sent += 1;
        counters.filled.0.store(self.sent, Ordering::Release);
        Ok(())
    }

    #[inline]
    fn recv(&mut self, size: usize) -> Result<u64, Failure> {
        let counters = self.segment.counters(self.side.incoming());
        if self.received == self.seen_filled {
            self.seen_filled = look(false, || {
                let filled = counters.filled.0.load(Ordering::Acquire);
                Ok((filled > self.received).then_some(filled))
            })?;
        }
        let at = self.offset(self.received, size);
        // SAFETY: filled, and not written again before it is counted as taken.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.segment.buffer(self.side.incoming()).add(at), size)
        };
        let sum = sum(bytes);
        self.received += 1;
        // Not each time: the line is the writer's to read.
        let often = (self.segment.capacity / size / 8).max(1) as u64;
        if self.received % often == 0 {
            counters.taken.0.store(self.received, Ordering::Release);
        }
        Ok(sum)
    }
}

struct Slots<const N: usize> {
    segment: Segment,
    side: Side,
    /// How many there are, less one: they are a power of two.
    mask: u64,
    sent: u64,
    seen_taken: u64,
    received: u64,
}

impl<const N: usize> Slots<N> {
    const SLOT: usize = (8 + N).next_multiple_of(16);

    fn new(segment: Segment, side: Side, most: usize) -> Self {
        let count = (segment.capacity / Self::SLOT).min(most);
        Self {
            segment,
            side,
            mask: (1 << count.ilog2()) - 1,
            sent: 0,
            seen_taken: 0,
            received: 0,
        }
    }

    /// Where message `n` lies.
    #[inline(always)]
    fn slot(&self, direction: usize, n: u64) -> *mut u8 {
        let at = (n & self.mask) as usize * Self::SLOT;
        // SAFETY: so many slots fit the buffer.
        unsafe { self.segment.buffer(direction).add(at) }
    }
}

impl<const N: usize> Link for Slots<N> {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        let direction = self.side.outgoing();
        if self.sent - self.seen_taken > self.mask {
            let taken = &self.segment.counters(direction).taken.0;
            self.seen_taken = look(false, || {
                let taken = taken.load(Ordering::Acquire);
                Ok((self.sent - taken <= self.mask).then_some(taken))
            })?;
        }
        let slot = self.slot(direction, self.sent);
        self.sent += 1;
        let message: &[u8; N] = message.try_into().expect("a message of this size");
        // SAFETY: within the buffer, aligned to 16; the reader has taken what was there.
        unsafe {
            ptr::copy_nonoverlapping(message.as_ptr(), slot.add(8), N);
            (*slot.cast::<AtomicU64>()).store(self.sent, Ordering::Release);
        }
        Ok(())
    }

    #[inline(always)]
    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        let direction = self.side.incoming();
        let slot = self.slot(direction, self.received);
        // SAFETY: within the buffer, aligned to 16; any bytes are an `AtomicU64`.
        let word = unsafe { &*slot.cast::<AtomicU64>() };
        let next = self.received + 1;
        if word.load(Ordering::Acquire) != next {
            look(false, || {
                let is_there = word.load(Ordering::Acquire) == next;
                Ok(is_there.then_some(()))
            })?;
        }
        // SAFETY: there, and not written again before it is counted as taken.
        let sum = sum(unsafe { &*slot.add(8).cast::<[u8; N]>() });
        self.received = next;
        if next & (self.mask / 8) == 0 {
            let taken = &self.segment.counters(direction).taken.0;
            taken.store(next, Ordering::Release);
        }
        Ok(sum)
    }
}
