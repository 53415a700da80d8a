//! The bytes of a ring: words, copies in, and payloads lent out. `unsafe`, and no algorithm.
//!
//! Every function checks its range against the ring. That nobody writes what is lent out, and nobody reads what is
//! being written, is the protocol of those that call: `lane` (and `haul` for it), `log`, and a queue's `delivery`. Only who has the
//! lane's lock has its ring mapped writable, and asks for loans.
//!
//! One race is part of that protocol: on a lossy lane the writer stores plainly over what a reader that was lapped loads word by word
//! ([`Ring::copy_out`]). The reader finds out afterwards, and discards it. See `docs/safety.md`.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::files;
use super::lane::Boundary;
use super::layout::{PAGE, SLOT, frame_size};
use super::log::Log;
use super::segment::Mapping;
use super::sync::{AtomicU64, Ordering};

/// The ring of a lane: a power of two of bytes, addressed by positions that only grow. Of a lane in data files it is far
/// larger than a file, and has each of them in its place, once somebody comes there: until then there are zeros.
#[derive(Clone)]
pub struct Ring {
    start: NonNull<u8>,
    /// The offset of the last slot: what of a frame's position says where in the ring it is.
    slots: u64,
    /// The same in the part of it that no frame crosses the end of: the ring, or a file.
    part: u64,
    /// Keeps `start` mapped.
    map: Arc<Mapping>,
    log: Option<Arc<Log>>,
    /// Of a lane that another user may truncate: its file. Nothing is read in place, which holds zeros.
    foreign: Option<Arc<OwnedFd>>,
}

// SAFETY: the mapping lives as long as the ring and is tied to no thread; who may touch which bytes when is the lane's
// protocol, which holds between processes and so between threads.
unsafe impl Send for Ring {}

// SAFETY: as above; what it offers by `&self` is no more than another thread could do by a clone that was sent to it.
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
            slots: capacity as u64 - SLOT,
            part: capacity as u64 - SLOT,
            map: Arc::clone(map),
            log: None,
            foreign: None,
        }
    }

    /// That of another user's lane, whose ring begins at [`PAGE`] in its file: each look reads it there.
    pub fn of_another(file: Arc<OwnedFd>, capacity: usize) -> io::Result<Self> {
        Ok(Self {
            foreign: Some(file),
            ..Self::new(&Mapping::space(capacity)?, capacity)
        })
    }

    /// Whether it is another user's.
    #[inline(always)]
    pub fn is_foreign(&self) -> bool {
        self.foreign.is_some()
    }

    /// That of a lane in data files.
    pub fn of_log(log: Log) -> Self {
        let map = log.space();
        let reach = log.reach();
        Self {
            start: map.at(0, reach as usize, 64),
            slots: reach - SLOT,
            part: log.capacity() - SLOT,
            map: Arc::clone(map),
            log: Some(Arc::new(log)),
            foreign: None,
        }
    }

    /// Its data files, if it is in such.
    #[inline(always)]
    pub fn log(&self) -> Option<&Arc<Log>> {
        self.log.as_ref()
    }

    /// Has its pages in reach: for who will use all of them.
    pub fn touch(&self) {
        match &self.log {
            None => self.map.touch(),
            Some(log) => log.follow(),
        }
    }

    /// Bytes in the ring, or in each of its files.
    #[inline]
    pub fn capacity(&self) -> u64 {
        self.part + SLOT
    }

    /// How far apart the first and the last position may be that are in it at one time.
    #[inline]
    pub fn reach(&self) -> u64 {
        self.slots + SLOT
    }

    /// Whether, of a lane in data files, what is at `position` can have no address while what is at `held` has one.
    #[inline]
    pub fn is_beyond(&self, position: u64, held: u64) -> bool {
        position.saturating_sub(held) >= self.reach() - self.capacity()
    }

    /// Bytes from `position`, a multiple of 16, to the next end that no frame crosses.
    #[inline]
    pub fn to_end(&self, position: u64) -> u64 {
        self.capacity() - (position & self.part)
    }

    /// Where `position`, a multiple of 8, lies in the ring.
    #[inline]
    fn offset(&self, position: u64) -> u64 {
        position & (self.slots | 8)
    }

    /// Whether a frame at `position`, a multiple of 16, crosses no end if `len` bytes are behind its word: a slot has
    /// room for 8 in any case.
    #[inline]
    pub fn holds(&self, position: u64, len: u64) -> bool {
        len <= 8 || 8 + len <= self.to_end(position)
    }

    /// The place of the frame at `position`, a multiple of 16, with `len` bytes behind its word.
    #[inline(always)]
    pub fn place(&self, position: u64, len: usize) -> Place<'_> {
        assert!(
            self.holds(position, len as u64),
            "a payload lies within the ring"
        );
        // SAFETY: the offset is that of a slot, of 16 bytes, in the `capacity` bytes that are mapped from `start`.
        let at = unsafe { self.start.add((position & self.slots) as usize) };
        // SAFETY: `start` is aligned to 64, and slots are 16 bytes apart. (So no type's alignment is looked at.)
        unsafe { std::hint::assert_unchecked(at.cast::<u128>().is_aligned()) };
        Place {
            at,
            len,
            ring: PhantomData,
        }
    }

    /// The places of `count` frames with `len` bytes each that lie one behind the other, from `position` on, a multiple of 16.
    #[inline]
    pub fn places(&self, position: u64, len: usize, count: usize) -> Places<'_> {
        let size = frame_size(len as u64);
        assert!(
            count as u64 <= self.to_end(position) / size,
            "a row lies within the ring"
        );
        Places {
            next: self.place(position, if count > 0 { len } else { 0 }),
            size: size as usize,
            left: count,
        }
    }

    /// The word of the frame at `position`, a multiple of 16.
    #[inline(always)]
    pub fn head(&self, position: u64) -> &AtomicU64 {
        self.place(position, 0).head()
    }

    /// The word at `position`, a multiple of 8.
    #[inline]
    pub fn word(&self, position: u64) -> &AtomicU64 {
        // SAFETY: the offset is at most capacity - 8 and a multiple of 8, the mapping holds `capacity` bytes from
        // `start`, which is aligned to 64; any bytes are an `AtomicU64`; frame words are only accessed as atomics while
        // a reader may look at them, but for one that was lapped (see above).
        unsafe {
            self.start
                .add(self.offset(position) as usize)
                .cast()
                .as_ref()
        }
    }

    #[inline]
    fn range(&self, position: u64, len: usize) -> NonNull<u8> {
        let offset = self.offset(position);
        assert!(
            len as u64 <= self.reach() - offset,
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
        // borrowed as one while writable; until the frame's word is stored, nobody else touches it but a lapped reader (see above).
        unsafe { std::ptr::copy_nonoverlapping(payload.as_ptr(), to.as_ptr(), payload.len()) }
        self.stored(position, payload.len());
    }

    /// The same of a long one, which takes either way.
    pub fn copy_long_in(&self, position: u64, payload: &[u8], way: Way) {
        if way == Way::Past {
            let to = self.range(position, payload.len());
            // SAFETY: as in `copy_in`.
            return unsafe { wide::copy_past(payload.as_ptr(), to.as_ptr(), payload.len()) };
        }
        for (at, piece) in (position..).step_by(PIECE).zip(payload.chunks(PIECE)) {
            self.copy_in(at, piece);
        }
    }

    /// Zeroes `[from, to)`, at most the ring, which may wrap. The lane has it writable, and no reader looks there.
    #[inline]
    pub fn zero(&self, from: u64, to: u64) {
        let (len, to_end) = (to - from, self.reach() - self.offset(from));
        if len > to_end {
            return self.zero_over_the_end(from, to_end, len);
        }
        self.zero_range(from, len);
    }

    #[cold]
    fn zero_over_the_end(&self, from: u64, to_end: u64, len: u64) {
        let behind = len.min(self.reach()) - to_end;
        self.zero_range(from, to_end);
        self.zero_range(from + to_end, behind);
    }

    #[inline(always)]
    fn zero_range(&self, position: u64, len: u64) {
        let at = self.range(position, len as usize);
        // SAFETY: `range` checked the bounds; as for the rest, as in `copy_in`.
        unsafe { std::ptr::write_bytes(at.as_ptr(), 0, len as usize) }
        self.stored(position, len as usize);
    }

    /// The `len` bytes at `position`, which the lane has claimed and not yet committed. The bytes are what was there.
    #[inline]
    pub fn loaned(&self, position: u64, len: usize) -> &[u8] {
        let at = self.range(position, len);
        // SAFETY: `range` checked the bounds; only the lane's writer changes them, and it is borrowed.
        unsafe { NonNull::slice_from_raw_parts(at, len).as_ref() }
    }

    /// The same, to be written.
    #[inline]
    pub fn loan(&mut self, position: u64, len: usize) -> &mut [u8] {
        let at = self.range(position, len);
        // SAFETY: `range` checked the bounds; the lane's only writer holds this ring mutably, and readers do not look
        // behind a word that is 0. Only a writer's ring, mapped writable, is asked for loans.
        unsafe { NonNull::slice_from_raw_parts(at, len).as_mut() }
    }

    /// Has zeros behind the `len` bytes of the frame at `position`, a multiple of 16, up to `total`. As for `copy_in`.
    #[inline]
    pub fn fill_up(&self, position: u64, len: usize, total: usize) {
        let place = self.place(position, total);
        let rest = total.checked_sub(len).expect("a payload fits its place");
        // SAFETY: `place` checked that `total` bytes behind the word are in the ring; as for the rest, as in `copy_in`.
        unsafe { std::ptr::write_bytes(place.at.add(8 + len).as_ptr(), 0, rest) }
        // With what a loan, or a copy in place, has put before them.
        self.stored(position + 8, total);
    }

    /// Has what `position` is in in reach, if it is there. (What is not in files always is.) `false`: it can't be looked at; who asks for
    /// its file is told why.
    #[inline]
    pub fn arrive(&self, position: u64) -> bool {
        match &self.log {
            // Not where another file is in its place, and there is none to take it.
            Some(log) if !log.is_here(position) => {
                let arrived = log.arrive(position).is_ok();
                arrived && (log.is_here(position) || !log.is_taken(position))
            }
            _ => true,
        }
    }

    /// Says that nobody here uses what lies before the file that `position` is in any more.
    pub fn lift_before(&self, position: u64) {
        if let Some(log) = &self.log {
            log.lift_before(position);
        }
    }

    /// What is before the file that begins at `position`, if that is known.
    pub fn start_at(&self, position: u64) -> Option<Boundary> {
        let log = self.log.as_ref()?;
        let start = log.start(position / log.capacity()).ok()??;
        Some(start.boundary())
    }

    /// `len` bytes were stored at `position`, of what may go to a disk: for tests that play back what that may have kept.
    #[inline(always)]
    pub fn stored(&self, _position: u64, _len: usize) {
        #[cfg(test)]
        if let Some(log) = &self.log {
            log.note(_position, self.loaned(_position, _len));
        }
    }

    /// Whether each frame ends with a checksum.
    #[inline(always)]
    pub fn is_checked(&self) -> bool {
        self.log.is_some()
    }

    /// Copies the words that hold the `len` bytes at `position`, a multiple of 8, which may be overwritten meanwhile: the
    /// caller finds out afterwards whether they were. `false`: another user has taken them away.
    #[inline]
    pub fn copy_out(&self, position: u64, len: usize, to: &mut Vec<u64>) -> bool {
        let count = len.div_ceil(8);
        let words = self.range(position & !7, count * 8).cast::<AtomicU64>();
        to.clear();
        if let Some(file) = &self.foreign {
            to.resize(count, 0);
            let at = PAGE as u64 + self.offset(position & !7);
            return files::read_whole_at(file, at, to.as_mut_bytes()).is_ok();
        }
        to.extend((0..count).map(|i| {
            // SAFETY: `range` checked the bounds, `start` and the position are aligned to 8, and any bytes are an
            // `AtomicU64`. The writer's plain store may race with this load (see above); the value is discarded then.
            let word = unsafe { words.add(i).as_ref() };
            word.load(Ordering::Relaxed)
        }));
        true
    }
}

/// Which way bytes take into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through the processor's caches.
    Through,
    /// Past them, to memory.
    Past,
}

/// Bytes that `memcpy` copies by the widest moves that the processor has. Of twice as many glibc makes one instruction
/// (`rep movsb`), which is up to a fifth slower where both lie unluckily in their pages.
const PIECE: usize = 2048;

/// What more than a word at a time can do.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m128i, _mm_loadu_si128, _mm_set_epi64x, _mm_sfence, _mm_store_si128, _mm_stream_si128,
    };
    use std::ptr::{NonNull, copy_nonoverlapping};

    /// Whether there is a way past the caches.
    pub const HAS_PAST: bool = true;

    /// Whether two words may be stored by one store.
    pub const HAS_PAIRS: bool = true;

    /// Bytes of a cache line.
    const LINE: usize = 64;

    /// Copies `len` bytes past the caches, but for the lines that are not written as a whole.
    ///
    /// # Safety
    ///
    /// As of [`copy_nonoverlapping`] of `len` bytes.
    pub unsafe fn copy_past(from: *const u8, to: *mut u8, len: usize) {
        let before = to.align_offset(LINE).min(len);
        let behind = before + (len - before) / LINE * LINE;
        // SAFETY: the three pieces are the `len` bytes, as the caller says; what is streamed to is aligned to a line. Stores
        // past the caches have no order with any others: they are not to come before a raised floor, nor behind the frame's
        // word.
        unsafe {
            _mm_sfence();
            copy_nonoverlapping(from, to, before);
            for at in (before..behind).step_by(size_of::<__m128i>()) {
                _mm_stream_si128(to.add(at).cast(), _mm_loadu_si128(from.add(at).cast()));
            }
            copy_nonoverlapping(from.add(behind), to.add(behind), len - behind);
            _mm_sfence();
        }
    }

    /// Writes two words by one store. How many lines a processor fetches at a time to write them depends on how many stores may
    /// wait: so half as many stores are twice as many lines.
    ///
    /// # Safety
    ///
    /// `at` is aligned to 16, and may be written to.
    #[inline(always)]
    pub unsafe fn store_pair(at: NonNull<u8>, first: u64, second: u64) {
        // SAFETY: as the caller says.
        unsafe {
            _mm_store_si128(
                at.as_ptr().cast(),
                _mm_set_epi64x(second as i64, first as i64),
            )
        }
    }
}

/// Where there is nothing of the kind, or no stable name for it.
#[cfg(not(target_arch = "x86_64"))]
mod wide {
    use std::ptr::NonNull;
    pub use std::ptr::copy_nonoverlapping as copy_past;

    pub const HAS_PAST: bool = false;
    pub const HAS_PAIRS: bool = false;

    /// # Safety
    ///
    /// None is needed: it does nothing, and nobody comes here (`HAS_PAIRS`).
    pub unsafe fn store_pair(_at: NonNull<u8>, _first: u64, _second: u64) {}
}

impl Way {
    /// Whether this processor has the other one.
    pub const HAS_OTHER: bool = wide::HAS_PAST;

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Through => Self::Past,
            Self::Past => Self::Through,
        }
    }
}

/// Where one frame lies, found once: it is within the ring.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    at: NonNull<u8>,
    len: usize,
    ring: PhantomData<&'a Ring>,
}

// SAFETY: as of a `Ring`, which it borrows.
unsafe impl Send for Place<'_> {}

// SAFETY: as above.
unsafe impl Sync for Place<'_> {}

impl<'a> Place<'a> {
    /// Its word.
    #[inline(always)]
    pub fn head(self) -> &'a AtomicU64 {
        // SAFETY: `place` found the slot in the mapping, which the ring keeps; it is aligned to 16; any bytes are an
        // `AtomicU64`; for the rest, as in `Ring::word`.
        unsafe { self.at.cast().as_ref() }
    }

    /// Copies `payload` behind the word. The lane has it writable, and no reader looks there.
    #[inline(always)]
    pub fn fill(self, payload: &[u8]) {
        assert!(payload.len() <= self.len, "a payload fits its place");
        let (from, len) = (payload.as_ptr(), payload.len());
        // SAFETY: `place` checked that `len` bytes behind the word are in the ring; for the rest, as in `copy_in`. Each copy
        // below is of `len` bytes: of n to 2n, the first n and the last n are all.
        unsafe {
            let to = self.at.add(8).as_ptr();
            match len {
                8..=16 => copy_ends::<8>(from, to, len),
                17..=32 => copy_ends::<16>(from, to, len),
                33..=64 => copy_ends::<32>(from, to, len),
                _ => std::ptr::copy_nonoverlapping(from, to, len),
            }
        }
    }

    /// The same, with the word: of a frame that nobody sees yet, because one before it is not there.
    #[inline(always)]
    pub fn fill_unseen(self, word: u64, payload: &[u8]) {
        assert!(payload.len() <= self.len, "a payload fits its place");
        if let (Ok(bytes), true) = (<[u8; 8]>::try_from(payload), wide::HAS_PAIRS) {
            // SAFETY: `place` found the 16 bytes of the slot in the ring, and aligned; for the rest, as in `copy_in`. Who looks
            // from outside, or was lapped, may load the word meanwhile; it discards what it loaded.
            unsafe { wide::store_pair(self.at, word, u64::from_ne_bytes(bytes)) }
        } else {
            self.fill(payload);
            // Nobody sees it: what orders it is the word that is not there.
            self.head().store(word, Ordering::Relaxed);
        }
    }

    /// The bytes behind the word, which the lane has found committed and not yet released.
    #[inline(always)]
    pub fn payload(self) -> &'a [u8] {
        // SAFETY: `place` checked that they are in the ring; a committed frame is not written again until its reader, whose
        // lane the returned borrow is of, has released it.
        unsafe { NonNull::slice_from_raw_parts(self.at.add(8), self.len).as_ref() }
    }
}

/// Where several frames lie that have the same length, one behind the other: all of them within the ring.
#[derive(Clone, Debug)]
pub struct Places<'a> {
    next: Place<'a>,
    /// Bytes from one to the next.
    size: usize,
    left: usize,
}

impl<'a> Iterator for Places<'a> {
    type Item = Place<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<Place<'a>> {
        self.left = self.left.checked_sub(1)?;
        let place = self.next;
        // SAFETY: `Ring::places` found all of them in the mapping; this is at most its end.
        self.next.at = unsafe { place.at.add(self.size) };
        // SAFETY: the first is aligned to 16, and their size is a multiple of it.
        unsafe { std::hint::assert_unchecked(place.at.cast::<u128>().is_aligned()) };
        Some(place)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Copies the first and the last `N` of `len` bytes. For the compiler these are a few moves, where `memcpy` of a length that it
/// does not know is a call that takes longer.
///
/// # Safety
///
/// As of [`copy_nonoverlapping`](std::ptr::copy_nonoverlapping) of `len` bytes, which are `N` at least.
#[inline(always)]
unsafe fn copy_ends<const N: usize>(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: both lie within the `len` bytes, as the caller says.
    unsafe {
        let last = len - N;
        std::ptr::copy_nonoverlapping(from, to, N);
        std::ptr::copy_nonoverlapping(from.add(last), to.add(last), N);
    }
}
