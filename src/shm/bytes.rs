//! The bytes of a ring: words, copies in, and payloads lent out. `unsafe`, and no algorithm.
//!
//! Every function checks its range against the ring. That nobody writes what is lent out, and nobody reads what is
//! being written, is the lane's protocol: `lane` is the only caller, and says at each call why it holds.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::segment::Mapping;
use super::sync::{AtomicU64, Ordering};

/// The ring of a lane: a power of two of bytes, addressed by positions that only grow.
#[derive(Clone)]
pub struct Ring {
    start: NonNull<u8>,
    mask: u64,
    /// Keeps `start` mapped.
    _map: Arc<Mapping>,
}

// SAFETY: the mapping lives as long as the ring and is tied to no thread; who may touch which bytes when is the lane's
// protocol, which holds between processes and so between threads.
unsafe impl Send for Ring {}

// SAFETY: as above; a ring may be cloned, so that `&Ring` gives no more than another `Ring` would.
unsafe impl Sync for Ring {}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// The ring of `capacity` bytes, a power of two, at the start of a mapping.
    pub fn new(map: &Arc<Mapping>, capacity: usize) -> Self {
        assert!(
            capacity.is_power_of_two(),
            "a ring's capacity is a power of two"
        );
        Self {
            start: map.at(0, capacity, 64),
            mask: capacity as u64 - 1,
            _map: Arc::clone(map),
        }
    }

    /// Bytes in the ring.
    #[inline]
    pub fn capacity(&self) -> u64 {
        self.mask + 1
    }

    /// Where `position` lies in the ring.
    #[inline]
    pub fn offset(&self, position: u64) -> u64 {
        position & self.mask
    }

    /// The frame word at `position`, a multiple of 16.
    #[inline]
    pub fn word(&self, position: u64) -> &AtomicU64 {
        // SAFETY: the offset is at most capacity - 8 and a multiple of 8, the mapping holds `capacity` bytes from
        // `start`, which is aligned to 64; any bytes are an `AtomicU64`; frame words are only accessed as atomics while
        // a reader may look at them.
        unsafe {
            self.start
                .add((position & self.mask & !7) as usize)
                .cast()
                .as_ref()
        }
    }

    #[inline]
    fn range(&self, position: u64, len: usize) -> NonNull<u8> {
        let offset = self.offset(position);
        assert!(
            len as u64 <= self.capacity() - offset,
            "a payload lies within the ring"
        );
        // SAFETY: offset + len <= capacity, just checked, and the mapping holds `capacity` bytes from `start`.
        unsafe { self.start.add(offset as usize) }
    }

    /// Copies `payload` to `position`. The lane has it writable, and no reader looks there.
    #[inline]
    pub fn copy_in(&self, position: u64, payload: &[u8]) {
        let to = self.range(position, payload.len());
        // SAFETY: `range` checked the bounds; the source is an ordinary slice that cannot overlap memory which is never
        // borrowed as one while writable; nobody else touches it until the frame's word is stored.
        unsafe { std::ptr::copy_nonoverlapping(payload.as_ptr(), to.as_ptr(), payload.len()) }
    }

    /// Zeroes `[from, to)`, at most the ring, which may wrap. The lane has it writable, and no reader looks there.
    pub fn zero(&self, from: u64, to: u64) {
        let len = (to - from).min(self.capacity());
        let first = len.min(self.capacity() - self.offset(from));
        for (position, len) in [(from, first), (from + first, len - first)] {
            let at = self.range(position, len as usize);
            // SAFETY: `range` checked the bounds; nobody else touches these bytes until a word makes them reachable.
            unsafe { std::ptr::write_bytes(at.as_ptr(), 0, len as usize) }
        }
    }

    /// The `len` bytes at `position`, which the lane has found committed and not yet released.
    #[inline]
    pub fn payload(&self, position: u64, len: usize) -> &[u8] {
        let at = self.range(position, len);
        // SAFETY: `range` checked the bounds; a committed frame is not written again until its reader, which the
        // returned borrow keeps from releasing it, has released it.
        unsafe { NonNull::slice_from_raw_parts(at, len).as_ref() }
    }

    /// The `len` bytes at `position`, which the lane has claimed and not yet committed. The bytes are what was there.
    #[inline]
    pub fn loan(&mut self, position: u64, len: usize) -> &mut [u8] {
        let at = self.range(position, len);
        // SAFETY: `range` checked the bounds; the lane's only writer holds this ring mutably, and readers do not look
        // behind a word that is 0. Only a writer's ring, mapped writable, is asked for loans.
        unsafe { NonNull::slice_from_raw_parts(at, len).as_mut() }
    }

    /// Copies the words that hold the `len` bytes at `position`, a multiple of 8, which may be overwritten meanwhile: the
    /// caller finds out afterwards whether they were.
    #[inline]
    pub fn copy_out(&self, position: u64, len: usize, to: &mut Vec<u64>) {
        let count = len.div_ceil(8);
        let words = self.range(position & !7, count * 8).cast::<AtomicU64>();
        to.clear();
        to.extend((0..count).map(|i| {
            // SAFETY: `range` checked the bounds, `start` and the position are aligned to 8, and any bytes are an
            // `AtomicU64`. The writer's plain store may race with this load; the value is discarded then.
            let word = unsafe { words.add(i).as_ref() };
            word.load(Ordering::Relaxed)
        }));
    }
}
