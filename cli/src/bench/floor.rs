//! The floor under any transport, made without the library: a word in shared memory for each direction, waited for by
//! looking (`raw`) or by sleeping (`futex`). Whatever the size asked for, what crosses is one cache line.
#![allow(unsafe_code)] // Shared memory and the futex call; nothing else in this program needs it.
#![allow(clippy::disallowed_types)] // The words that two processes share.

use std::hint;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use shared_memory::{Shmem, ShmemConf};

use super::Side;
use super::link::{Link, PATIENCE, gone};
use crate::failure::Failure;

/// One word of each kind and direction, each with two cache lines (they are fetched in pairs) to itself.
#[repr(C, align(128))]
#[derive(Debug, Default)]
struct Line<T>(T);

#[repr(C)]
#[derive(Debug, Default)]
struct Words {
    raw: [Line<AtomicU64>; 2],
    futex: [Line<AtomicU32>; 2],
}

/// The segment, mapped by both processes.
pub struct Segment(Shmem);

impl Segment {
    /// Makes it; removed when this is dropped.
    pub fn create(name: &str) -> Result<Self, Failure> {
        Self::check(
            ShmemConf::new()
                .os_id(name)
                .size(size_of::<Words>())
                .create(),
        )
    }

    /// Opens the other process's.
    pub fn open(name: &str) -> Result<Self, Failure> {
        Self::check(ShmemConf::new().os_id(name).open())
    }

    fn check(segment: Result<Shmem, shared_memory::ShmemError>) -> Result<Self, Failure> {
        match segment {
            Ok(shmem) if shmem.len() >= size_of::<Words>() => Ok(Self(shmem)),
            Ok(shmem) => Err(Failure::Error(format!(
                "the shared segment has only {} bytes",
                shmem.len()
            ))),
            Err(error) => Err(Failure::Error(format!(
                "cannot share memory for the bare round trip: {error}"
            ))),
        }
    }

    fn words(&self) -> &Words {
        // SAFETY: a mapping is aligned to a page, at least as long as `Words` (checked above), zeroed when made, and
        // lives as long as `self`; `Words` holds atomics only, so other processes may write it at any time.
        unsafe { &*self.0.as_ptr().cast::<Words>() }
    }
}

/// The bare cache-line round trip: both sides look until the word changes.
pub struct RawLink {
    segment: Segment,
    side: Side,
    seen: u64,
    /// Both sides share one CPU, so that looking keeps the other from answering.
    yields: bool,
}

impl RawLink {
    /// From the shared segment, in which nothing was sent yet.
    pub fn new(segment: Segment, side: Side, yields: bool) -> Self {
        Self {
            segment,
            side,
            seen: 0,
            yields,
        }
    }

    #[cold]
    fn pause(&self, looks: u64, started: &mut Option<Instant>) -> Result<(), Failure> {
        if self.yields {
            thread::yield_now();
        }
        if looks.is_multiple_of(1 << 16)
            && started.get_or_insert_with(Instant::now).elapsed() > PATIENCE
        {
            return Err(gone());
        }
        Ok(())
    }
}

impl Link for RawLink {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        // Release: as any transport must, for what was written before to be seen.
        self.segment.words().raw[self.side.outgoing()]
            .0
            .store(word(message), Ordering::Release);
        Ok(())
    }

    #[inline]
    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        let mut looks = 0;
        let mut started = None;
        loop {
            // Acquire: the partner of the store above.
            let value = self.segment.words().raw[self.side.incoming()]
                .0
                .load(Ordering::Acquire);
            if value != self.seen {
                self.seen = value;
                return Ok(value);
            }
            looks += 1;
            if self.yields || looks % (1 << 16) == 0 {
                self.pause(looks, &mut started)?;
            } else {
                hint::spin_loop();
            }
        }
    }
}

/// The bare wake-up: both sides sleep in the kernel until the word changes.
pub struct FutexLink {
    segment: Segment,
    side: Side,
    seen: u32,
}

impl FutexLink {
    /// From the shared segment, in which nothing was sent yet.
    pub fn new(segment: Segment, side: Side) -> Self {
        Self {
            segment,
            side,
            seen: 0,
        }
    }
}

impl Link for FutexLink {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        let futex = &self.segment.words().futex[self.side.outgoing()].0;
        // Message numbers are far from 2^32: the word tells all.
        futex.store(word(message) as u32, Ordering::Release);
        // SAFETY: FUTEX_WAKE takes the address, which is valid, as a name; it reads and writes no memory.
        unsafe { libc::syscall(libc::SYS_futex, futex.as_ptr(), libc::FUTEX_WAKE, 1) };
        Ok(())
    }

    #[inline]
    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        let futex = &self.segment.words().futex[self.side.incoming()].0;
        loop {
            let value = futex.load(Ordering::Acquire);
            if value != self.seen {
                self.seen = value;
                return Ok(u64::from(value));
            }
            let timeout = libc::timespec {
                tv_sec: PATIENCE.as_secs() as libc::time_t,
                tv_nsec: 0,
            };
            // SAFETY: the futex lives in the mapping that `self` holds, and `timeout` on this stack: both outlive the
            // call, which only reads them.
            let slept = unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    futex.as_ptr(),
                    libc::FUTEX_WAIT,
                    value,
                    &raw const timeout,
                )
            };
            // Any other result is a reason to look again.
            if slept == -1
                && std::io::Error::last_os_error().raw_os_error() == Some(libc::ETIMEDOUT)
            {
                return Err(gone());
            }
        }
    }
}

/// The message's number, or as much of it as there is.
#[inline]
fn word(message: &[u8]) -> u64 {
    message
        .first_chunk()
        .map_or(0, |number| u64::from_le_bytes(*number))
}
