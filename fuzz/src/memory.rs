//! Shared memory of one process's own, for who is to read it where it lies, and calls that may not take for ever.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use buslane::shm::adversary;
use buslane::shm::segment::{Access, Mapping};
use memmap2::MmapMut;

/// Loads in one call, at most: of whatever shared words, however they contradict each other. A lane of 4 KiB has 256 slots and 16
/// records, and who looks for a place in it tries 64 times while it changes.
pub const LOADS: u64 = 1 << 18;

/// Some shared memory, in which the library has one mapping, and the fuzzer another one. Behind the first is a page that nobody may
/// touch.
pub struct Memory {
    pub map: Arc<Mapping>,
    pub bytes: MmapMut,
}

impl Memory {
    /// Of so many bytes, whole pages.
    pub fn new(len: usize) -> Self {
        // SAFETY: a plain call; the name is a string that lives for ever, and the descriptor is nobody else's.
        let file = unsafe {
            let fd = libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0, "a file in memory");
            OwnedFd::from_raw_fd(fd)
        };
        let file = std::fs::File::from(file);
        file.set_len(len as u64).unwrap();
        let map = Mapping::space(len + PAGE).unwrap();
        map.lay(0, &file, 0, len, Access::Write).unwrap();
        let behind = std::ptr::from_ref(&*map.view::<[u8; 1]>(len));
        // SAFETY: the last page of that space, which nobody uses, is not to be touched any more.
        let result = unsafe { libc::mprotect(behind.cast_mut().cast(), PAGE, libc::PROT_NONE) };
        assert_eq!(result, 0);
        // SAFETY: the file is this process's own, and is not truncated. Its bytes change only between the library's calls,
        // on the one thread that has it.
        let bytes = unsafe { MmapMut::map_mut(&file).unwrap() };
        Self { map, bytes }
    }

    /// Has a few of the words in `[from, to)` overwritten by what the tape says.
    pub fn scribble(&mut self, (from, to): (usize, usize)) {
        for _ in 0..byte() % 8 {
            let at = from + (short() as usize * 8) % (to - from);
            self.set(at, adversary::word(self.get(at)));
        }
    }

    /// The word at an offset.
    pub fn get(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    /// Stores it.
    pub fn set(&mut self, at: usize, word: u64) {
        self.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }

    /// Has one word, or two, everywhere in `[from, to)`.
    pub fn fill(&mut self, (from, to): (usize, usize)) {
        let words = [adversary::word(0), adversary::word(0)];
        for (at, word) in (from..to).step_by(8).zip(words.into_iter().cycle()) {
            self.set(at, word);
        }
    }
}

const PAGE: usize = 4096;

/// The next byte of the tape, 0 behind its end.
pub fn byte() -> u8 {
    adversary::byte().unwrap_or(0)
}

/// The next two.
pub fn short() -> u16 {
    u16::from_le_bytes([byte(), byte()])
}

/// Calls the library: as often as its loads may be answered.
pub fn call<T>(call: impl FnOnce() -> T) -> T {
    adversary::limit(LOADS);
    let result = call();
    adversary::limit(u64::MAX);
    result
}

/// Reads all of what was lent.
pub fn read(bytes: &[u8]) {
    let mut copy = [0_u8; 4096];
    for piece in bytes.chunks(copy.len()) {
        copy[..piece.len()].copy_from_slice(piece);
        std::hint::black_box(&copy);
    }
}
