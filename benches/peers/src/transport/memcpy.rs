//! The least that carries bytes: they are copied into a shared buffer and summed out of it, with one counter each way.

use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use buslane_cli::bench::Transport;
use buslane_cli::bench::link::{Link, sum};
use buslane_cli::bench::setup::{Setup, Side};
use buslane_cli::failure::Failure;
use shared_memory::{Shmem, ShmemConf};

use super::{failed, look};

/// A buffer of the size of buslane's lanes, a counter of what is in it, and one of what was taken out.
pub const MEMCPY: Transport = Transport {
    name: "memcpy",
    is_floor: false,
    offer: |setup| {
        let segment = Segment::create(setup)?;
        Ok(Box::new(|_| {
            Ok(Box::new(Memcpy::new(segment, Side::Clock)))
        }))
    },
    join: |setup, side| Ok(Box::new(Memcpy::new(Segment::open(setup)?, side))),
};

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

    fn create(setup: &Setup) -> Result<Self, Failure> {
        let capacity = Self::capacity(setup);
        let shmem = ShmemConf::new()
            .os_id(setup.name("memcpy"))
            .size(Self::HEAD + 2 * capacity)
            .create()
            .map_err(|e| failed("share memory")(&e))?;
        // SAFETY: nobody else has it yet; and so all its pages are there.
        unsafe { ptr::write_bytes(shmem.as_ptr(), 0, shmem.len()) }
        Ok(Self { shmem, capacity })
    }

    fn open(setup: &Setup) -> Result<Self, Failure> {
        let capacity = Self::capacity(setup);
        let shmem = ShmemConf::new().os_id(setup.name("memcpy")).open();
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
