//! The data files of a lane that outlives its processes, and the machine: `data.<lane>.<n>` has the positions from
//! `n * capacity` on. Each is mapped where somebody comes to it, in a space in which all have their places: to who reads or
//! writes the lane, it is one long ring, and what is not there yet is 0.
//!
//! Bytes of a file that belong to no frame are 0, but behind the tail while a writer is at it: who takes the lane up
//! [scrubs](scrub) what the last one left.

use std::fmt;
use std::os::fd::OwnedFd;
// Of this process's own: not the shared ones.
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::{FromBytes, IntoBytes};

use super::bytes::Ring;
use super::files::{self, Dir, Plan, skip_damaged};
use super::lane::{self, Boundary, Found};
use super::layout::{DATA_START, DataStart, Identity, Kind, PAGE, SLOT, Word};
use super::segment::{Access, Mapping};
use super::sync::Ordering;
use crate::error::{Error, ErrorKind, Result};

/// What data files are called, before their lane's number, a dot, and their own.
pub const DATA: &str = "data.";
/// Files that have a place in the space at one time, at most.
const PLACES: u64 = 4096;
/// Bytes of addresses for a lane, unless its files are so large that these are too few.
const SPACE: u64 = 1 << 36;
/// Bytes that are brought in reach at once.
const TOUCHED: usize = 1 << 20;
/// Places, at least.
const LEAST_PLACES: u64 = 4;

/// The checksum of what a frame, or a record, of a lane carries: CRC-32C, begun with a number made of the lane, the position and
/// the word, so that a short message takes one call. One bit more or less in the word is another number: it changes the
/// product by more than 2^32, and by less than 2^64 - 2^32. Another place is one but for a chance of 2^-32.
#[inline]
pub fn checksum(lane: u64, position: u64, word: u64, body: &[u8]) -> u64 {
    u64::from(crc32c::crc32c_append(start(lane, position, word), body))
}

/// The number that it begins with.
#[inline]
fn start(lane: u64, position: u64, word: u64) -> u32 {
    let place = (position ^ lane.rotate_left(48)).wrapping_mul(SPREAD);
    let head = (word ^ place.rotate_left(32)).wrapping_mul(SPREAD);
    (head >> 32) as u32
}

/// 2^64 divided by the golden ratio, as in D. Knuth, The Art of Computer Programming, volume 3, 6.4: odd, and its bits are
/// spread.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl DataStart {
    /// That of a file of `lane` that begins with this boundary.
    fn new(lane: u64, at: Boundary, began_ns: u64) -> Self {
        let Boundary {
            position,
            sequence,
            bytes,
        } = at;
        let behind = [bytes, began_ns];
        let check = checksum(lane, position, sequence, behind.as_bytes());
        Self {
            position,
            sequence,
            bytes,
            began_ns,
            check,
        }
    }

    /// The boundary.
    pub fn boundary(&self) -> Boundary {
        Boundary {
            position: self.position,
            sequence: self.sequence,
            bytes: self.bytes,
        }
    }

    /// Whether it is as it was written.
    fn is_whole(&self, lane: u64) -> bool {
        Self::new(lane, self.boundary(), self.began_ns) == *self
    }
}

/// The data files of one lane, as one process has them mapped.
pub struct Log {
    dir: Arc<Dir>,
    topic: Arc<str>,
    lane: u64,
    capacity: u64,
    access: Access,
    space: Arc<Mapping>,
    /// The number of the file that is mapped in each place, plus 1; 0: none. Changed under `lock`.
    places: Box<[AtomicU64]>,
    lock: Mutex<()>,
    /// 1: whoever comes to a file will read all of it.
    follows: AtomicU64,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("topic", &self.topic)
            .field("lane", &self.lane)
            .finish_non_exhaustive()
    }
}

impl Log {
    /// The files of `capacity` bytes of a lane in the topic whose directory this is, to be mapped so.
    pub fn new(
        dir: &Arc<Dir>,
        topic: &Arc<str>,
        lane: u64,
        capacity: u64,
        access: Access,
    ) -> Result<Self> {
        let places = (SPACE / capacity).clamp(LEAST_PLACES, PLACES);
        let space = Mapping::space((places * capacity) as usize)
            .map_err(|e| Error::system("find addresses for the files of", Arc::clone(topic), e))?;
        Ok(Self {
            dir: Arc::clone(dir),
            topic: Arc::clone(topic),
            lane,
            capacity,
            access,
            space,
            places: (0..places).map(|_| AtomicU64::new(0)).collect(),
            lock: Mutex::new(()),
            follows: AtomicU64::new(0),
        })
    }

    /// Has the pages of each file in reach, from now on, when somebody comes to it: for a reader of all.
    pub fn follow(&self) {
        self.follows.store(1, Ordering::Relaxed);
    }

    /// Where they are mapped.
    pub fn space(&self) -> &Arc<Mapping> {
        &self.space
    }

    /// Bytes in the space.
    pub fn reach(&self) -> u64 {
        self.places.len() as u64 * self.capacity
    }

    /// Bytes of frames in a file.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Their lane's number.
    #[inline]
    pub fn lane(&self) -> u64 {
        self.lane
    }

    fn place(&self, number: u64) -> (&AtomicU64, usize) {
        let index = number % self.places.len() as u64;
        let offset = index * self.capacity;
        (&self.places[index as usize], offset as usize)
    }

    /// Whether the file that `position` is in is mapped.
    #[inline]
    pub fn is_here(&self, position: u64) -> bool {
        let number = position / self.capacity;
        // Pairs with the `Release` in `lay`: it is mapped.
        self.place(number).0.load(Ordering::Acquire) == number + 1
    }

    /// Whether another one is in its place.
    pub fn is_taken(&self, position: u64) -> bool {
        let number = position / self.capacity;
        let there = self.place(number).0.load(Ordering::Acquire);
        there != 0 && there != number + 1
    }

    /// Has the file mapped that `position` is in, if there is one.
    #[cold]
    pub fn arrive(&self, position: u64) -> Result<()> {
        let number = position / self.capacity;
        if self.is_here(position) {
            return Ok(());
        }
        match self.file(number)? {
            Some(file) => self.lay(number, &file),
            // Files are made, and removed, one after the other.
            None if position.is_multiple_of(self.capacity) && self.file(number + 1)?.is_some() => {
                match self.numbers()?.first() {
                    Some(&first) if first < number => Err(self.damaged(number, "it is missing")),
                    _ => Ok(()),
                }
            }
            None => Ok(()),
        }
    }

    /// Whether what is at `position` can be looked at, once its file is mapped: not if that is damaged, or missing.
    pub fn comes_to(&self, position: u64) -> Result<bool> {
        let arrived = skip_damaged(self.arrive(position).map(Some))?;
        Ok(arrived.is_some() && self.is_here(position))
    }

    /// Maps a file in its place.
    pub fn lay(&self, number: u64, file: &OwnedFd) -> Result<()> {
        let _lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let (place, offset) = self.place(number);
        let there = place.load(Ordering::Relaxed);
        if there == number + 1 {
            return Ok(());
        }
        if there != 0 {
            // It may be in use: only who has said that it is not makes room.
            let why = "a process has no addresses for it beside those that it still uses";
            let on = Arc::clone(&self.topic);
            return Err(Error::new(ErrorKind::TooMany, "read the topic", on, why)
                .advise("acknowledge what is oldest, or make the topic with a larger capacity"));
        }
        let len = self.capacity as usize;
        self.space
            .lay(offset, file, PAGE as u64, len, self.access)
            .map_err(|e| self.failed("map a data file of", e))?;
        // Pairs with the load in `arrive`.
        place.store(number + 1, Ordering::Release);
        if self.access == Access::Read && self.follows.load(Ordering::Relaxed) != 0 {
            self.space.touch_part(offset, len, Access::Read);
        }
        Ok(())
    }

    /// Has the pages of a mapped file in reach of a writer, piece by piece, as long as `goes_on` says.
    pub fn touch(&self, number: u64, goes_on: impl Fn() -> bool) {
        let (place, offset) = self.place(number);
        let pieces = (0..self.capacity as usize).step_by(TOUCHED);
        for piece in pieces.take_while(|_| goes_on()) {
            if place.load(Ordering::Relaxed) == number + 1 {
                let len = TOUCHED.min(self.capacity as usize - piece);
                self.space.touch_part(offset + piece, len, Access::Write);
            }
        }
    }

    /// Unmaps the files before the one that `position` is in. Nobody in this process uses them any more.
    pub fn lift_before(&self, position: u64) {
        let first = position / self.capacity;
        let _lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, place) in self.places.iter().enumerate() {
            let there = place.load(Ordering::Relaxed);
            if (1..=first).contains(&there) {
                let (offset, len) = (index * self.capacity as usize, self.capacity as usize);
                // If that fails, it stays mapped until another one takes its place.
                if self.space.lift(offset, len).is_ok() {
                    place.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    // ------------------------------------------------------------------------------------------------------ files

    fn name(&self, number: u64) -> String {
        format!("{DATA}{}.{number}", self.lane)
    }

    fn failed(&self, tried: &'static str, e: impl Into<std::io::Error>) -> Error {
        Error::system(tried, Arc::clone(&self.topic), e)
    }

    fn damaged(&self, number: u64, why: impl fmt::Display) -> Error {
        let why = format!("data file {} is damaged: {why}", self.name(number));
        Error::new(
            ErrorKind::Corrupt,
            "read the topic",
            Arc::clone(&self.topic),
            why,
        )
        .advise("restore it from a copy, or go on behind it (Subscriber::skip_damaged)")
    }

    /// The numbers of the files that there are, ascending.
    pub fn numbers(&self) -> Result<Vec<u64>> {
        let mut numbers = self.dir.numbers(&format!("{DATA}{}.", self.lane))?;
        // What is called otherwise is none of them.
        let most = lane::MAX_POSITION / self.capacity;
        numbers.retain(|number| *number < most);
        Ok(numbers)
    }

    /// Opens a file, and checks it. `None`: it is not there.
    pub fn file(&self, number: u64) -> Result<Option<OwnedFd>> {
        let write = self.access == Access::Write;
        let opened = self.dir.open_file(&self.name(number), Kind::Data, write);
        let opened = opened.map_err(|e| match e.kind() {
            // It has the name of a data file: so it was one.
            ErrorKind::NotBuslane | ErrorKind::Version => self.damaged(number, e),
            _ => e,
        });
        let Some((file, identity)) = opened? else {
            return Ok(None);
        };
        let meant = Identity {
            size: PAGE as u64 + self.capacity,
            id: self.lane,
            capacity: self.capacity,
            number,
            ..identity
        };
        let is_meant = meant.as_bytes() == identity.as_bytes();
        if !is_meant || check(&identity) != identity.check {
            return Err(self.damaged(number, "its header contradicts itself"));
        }
        Ok(Some(file))
    }

    /// Makes a file, if it is not there, and opens it; and whether it did. It is there after the loss of power, too.
    pub fn make(&self, number: u64) -> Result<(OwnedFd, bool)> {
        loop {
            if let Some(file) = self.file(number)? {
                // Who made it may have died before its name was on the disk.
                self.dir.sync()?;
                return Ok((file, false));
            }
            let size = PAGE as u64 + self.capacity;
            let mut identity = Identity::new(Kind::Data, size, self.lane, self.capacity);
            identity.number = number;
            identity.check = check(&identity);
            let plan = Plan {
                tried: "make a data file of",
                identity,
                allocate: size,
                content: &[],
                lock: false,
            };
            let made = self.dir.create(&self.name(number), &plan, |file| {
                files::sync(file).map_err(|e| self.failed("sync a data file of", e))
            })?;
            if let Some((file, ())) = made {
                self.dir.sync()?;
                return Ok((file, true));
            }
        }
    }

    /// Says in a file what is before it: by the lane's writer, before its first frame.
    pub fn begin(&self, number: u64, at: Boundary) -> Result<()> {
        let failed = |e: nix::Error| self.failed("begin a data file of", e);
        match self.file(number)? {
            Some(file) => {
                let start = DataStart::new(self.lane, at, files::now_ns());
                files::write_at(&file, DATA_START as u64, start.as_bytes()).map_err(failed)
            }
            None => Err(self.damaged(number, "it is missing")),
        }
    }

    /// What is before a file. `None`: it is not there, or no writer has come to it.
    pub fn start(&self, number: u64) -> Result<Option<DataStart>> {
        let Some(file) = self.file(number)? else {
            return Ok(None);
        };
        let mut bytes = [0; size_of::<DataStart>()];
        files::read_at(&file, DATA_START as u64, &mut bytes)
            .map_err(|e| self.failed("read a data file of", e))?;
        let start = DataStart::read_from_bytes(&bytes).expect("as many bytes as a start has");
        if start == DataStart::default() {
            return Ok(None);
        }
        match start.is_whole(self.lane) && start.position == number * self.capacity {
            true => Ok(Some(start)),
            false => Err(self.damaged(number, "it contradicts itself about what is before it")),
        }
    }

    /// What is before all files that say so and are whole, ascending.
    pub fn starts(&self) -> Result<Vec<Boundary>> {
        let mut starts = Vec::new();
        for number in self.numbers()? {
            starts.extend(skip_damaged(self.start(number))?.map(|start| start.boundary()));
        }
        Ok(starts)
    }

    /// Whether the rest of a file's first page is as it was made.
    pub fn is_head_clean(&self, number: u64) -> Result<bool> {
        let Some(file) = self.file(number)? else {
            return Ok(true);
        };
        let mut bytes = [0; PAGE];
        files::read_at(&file, 0, &mut bytes).map_err(|e| self.failed("read a data file of", e))?;
        let behind = DATA_START + size_of::<DataStart>();
        Ok(bytes[behind..].iter().all(|&byte| byte == 0))
    }

    /// Whether a writer has put anything into a file.
    pub fn is_begun(&self, number: u64) -> Result<bool> {
        let Some(file) = self.file(number)? else {
            return Ok(false);
        };
        let mut word = [0; 8];
        files::read_at(&file, PAGE as u64, &mut word)
            .map_err(|e| self.failed("read a data file of", e))?;
        Ok(word != [0; 8])
    }

    /// Has what is read from now on come from the disk, as far as the kernel has it not to write.
    pub fn forget(&self) -> Result<()> {
        for number in self.numbers()? {
            if let Some(file) = skip_damaged(self.file(number))? {
                files::forget(&file);
            }
        }
        Ok(())
    }

    /// Has zeros behind the tail of a lane, whose writer has gone: what it was about to write, which nobody has seen.
    pub fn scrub_behind(&self, ring: &Ring, tail: u64) -> Result<()> {
        let next = tail + ring.to_end(tail);
        for (from, to) in [(tail, next), (next, next + self.capacity)] {
            self.arrive(from)?;
            let (place, _) = self.place(from / self.capacity);
            if place.load(Ordering::Relaxed) == from / self.capacity + 1 {
                scrub(ring, from, to);
            }
        }
        Ok(())
    }

    /// Notes for tests what was stored at a position.
    #[cfg(test)]
    pub fn note(&self, position: u64, bytes: &[u8]) {
        let name = self.name(position / self.capacity);
        let offset = PAGE as u64 + position % self.capacity;
        super::tape::store(|| self.dir.path().join(name), offset, bytes);
    }

    /// Removes a file that is not mapped by who still needs it; whether it was there.
    pub fn remove(&self, number: u64) -> Result<bool> {
        self.dir.remove(&self.name(number))
    }

    /// Has the removals, and new names, on the disk.
    pub fn sync_names(&self) -> Result<()> {
        self.dir.sync()
    }
}

fn check(identity: &Identity) -> u64 {
    let before = std::mem::offset_of!(Identity, check);
    u64::from(crc32c::crc32c(&identity.as_bytes()[..before]))
}

/// Whether a frame of a lane in data files is as it was written.
#[inline(never)]
pub fn is_whole(ring: &Ring, found: Found) -> bool {
    sum_of(ring, found) == sum_in(ring, found)
}

/// A look for frames that are as they were written, wherever in data files they may begin. Also where each word looks like that of a long
/// one: the checksum of what that carries is found by those of two beginnings of its file, of which `KEPT` are kept. From these it
/// goes on to each of the two: over less than `capacity / KEPT` bytes, however long the frame is. Up to files of 4 GiB that is no
/// more than a short frame takes.
#[derive(Debug)]
pub struct Search<'a> {
    ring: &'a Ring,
    /// Where the file begins that was looked into last.
    begin: u64,
    /// CRC-32C of its bytes from the 8th on, up to the 8th of every so many bytes, as far as that was needed.
    sums: Vec<u32>,
    /// So many: a slot, or more in a file of more than `KEPT` slots.
    step: u64,
}

/// Checksums of beginnings of a file that are kept, at most: 4 MiB of them.
const KEPT: u64 = 1 << 20;

/// Bytes of the shortest frame whose checksum is found so: it takes as long as that of some thousand bytes.
const LONG: u64 = 4096;

impl<'a> Search<'a> {
    /// A look at the files of this ring.
    pub fn new(ring: &'a Ring) -> Self {
        Self {
            ring,
            begin: 0,
            sums: Vec::new(),
            step: (ring.capacity() / KEPT).max(SLOT),
        }
    }

    /// The ring.
    pub fn ring(&self) -> &'a Ring {
        self.ring
    }

    /// The frame at `position`, in a file that is mapped, if there is one that is as it was written.
    pub fn whole_at(&mut self, position: u64) -> Option<Found> {
        let found = lane::frame_at(self.ring, position).ok().flatten()?;
        let is_whole = match self.ring.is_checked() && found.word.size() >= LONG {
            true => self.sum_of(found) == sum_in(self.ring, found),
            false => lane::is_whole(self.ring, found),
        };
        is_whole.then_some(found)
    }

    /// The checksum of a frame.
    fn sum_of(&mut self, found: Found) -> u64 {
        let Found { position, word } = found;
        let lane = self.ring.log().map_or(0, |log| log.lane());
        let start = start(lane, position, word.0);
        if word.is_padding() {
            return u64::from(start);
        }
        let begin = position / self.ring.capacity() * self.ring.capacity();
        if begin != self.begin || self.sums.is_empty() {
            (self.begin, self.sums) = (begin, vec![0]);
        }
        let (first, last) = (position - begin, found.end() - SLOT - begin);
        let len = (last - first) as usize;
        u64::from(before(start ^ self.sum_up_to(first), len) ^ self.sum_up_to(last))
    }

    /// That of the beginning of the file up to the 8th byte behind `end`, a multiple of 16.
    fn sum_up_to(&mut self, end: u64) -> u32 {
        let Self {
            ring, begin, step, ..
        } = *self;
        let append = |sum, from, len| {
            let bytes = ring.place(begin + from, len as usize).payload();
            crc32c::crc32c_append(sum, bytes)
        };
        let kept = end / step;
        for index in self.sums.len() - 1..kept as usize {
            let sum = append(self.sums[index], index as u64 * step, step);
            self.sums.push(sum);
        }
        append(self.sums[kept as usize], kept * step, end % step)
    }
}

/// What a CRC-32C is after so many zeros more; `crc32c::crc32c_combine` takes fifty times as long.
fn before(crc: u32, len: usize) -> u32 {
    let powers = POWERS.iter().enumerate();
    let of_len = powers.filter(|(bit, _)| len >> bit & 1 != 0);
    of_len.fold(crc, |crc, (_, power)| product(crc, *power))
}

/// By what it is multiplied for 1, 2, 4, 8 … zeros: polynomials over two elements, the bit for x to the 0 the highest.
const POWERS: [u32; 32] = {
    let mut powers = [1 << (31 - 8); 32];
    let mut bit = 1;
    while bit < powers.len() {
        powers[bit] = product(powers[bit - 1], powers[bit - 1]);
        bit += 1;
    }
    powers
};

/// The product of two such, modulo that of CRC-32C.
const fn product(one: u32, mut other: u32) -> u32 {
    let (mut product, mut bit) = (0, 1 << 31);
    while bit != 0 {
        if one & bit != 0 {
            product ^= other;
        }
        other = (other >> 1) ^ ((other & 1) * 0x82f6_3b78);
        bit >>= 1;
    }
    product
}

fn sum_of(ring: &Ring, Found { position, word }: Found) -> u64 {
    let lane = ring.log().map_or(0, |log| log.lane());
    // Of padding, what it carries is not looked at.
    let covered = match word.is_padding() {
        true => 0,
        false => word.size() as usize - 16,
    };
    checksum(
        lane,
        position,
        word.0,
        ring.place(position, covered).payload(),
    )
}

fn sum_in(ring: &Ring, found: Found) -> u64 {
    // Visible with the frame's word, behind which it was found.
    ring.word(found.end() - 8).load(Ordering::Relaxed)
}

/// Fills up a frame that nobody sees yet, with `len` bytes in it, in a lane in data files: its word with a checksum.
#[inline]
pub fn seal(ring: &Ring, position: u64, word: Word) -> Word {
    let word = word.with_checksum();
    let found = Found { position, word };
    if word.is_message() {
        ring.fill_up(position, word.len() as usize, word.size() as usize - 16);
    }
    let sum = sum_of(ring, found);
    // Becomes visible with the frame's word.
    ring.word(found.end() - 8).store(sum, Ordering::Relaxed);
    ring.stored(found.end() - 8, 8);
    word
}

/// A number for this boot of the machine: in the same one, what was stored is there. 0: it is not known.
pub fn boot() -> u64 {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id");
    id.map_or(0, |id| xxhash_rust::xxh3::xxh3_64(&id))
}

/// What a look at all of a lane found.
#[derive(Debug, Default)]
pub struct Checked {
    /// Messages that are whole.
    pub messages: u64,
    /// Payload bytes in them, with their envelopes.
    pub bytes: u64,
    /// Where something is not as it was written, and what.
    pub damage: Vec<(u64, String)>,
}

/// Looks at every byte of a lane in data files, from the oldest on. `has_writer`: what lies behind its tail may be about to become
/// a message.
pub fn check_all(ring: &Ring, has_writer: bool) -> Result<Checked> {
    let mut checked = Checked::default();
    let Some(log) = ring.log() else {
        return Ok(checked);
    };
    let mut say = |position: u64, why: String| checked.damage.push((position, why));
    let capacity = log.capacity();
    let numbers = log.numbers()?;
    let mut at = None;
    let mut search = Search::new(ring);
    // Behind damage it is not known how many bytes were before.
    let mut is_exact = true;
    for (i, &number) in numbers.iter().enumerate() {
        let begin = number * capacity;
        if i > 0 && numbers[i - 1] + 1 != number {
            say(begin, format!("the data file before {number} is missing"));
            at = None;
        }
        match log.start(number) {
            // All have passed it meanwhile.
            Ok(None) if log.file(number)?.is_none() => {
                at = None;
                continue;
            }
            // A writer has not come to it yet.
            Ok(None) if i > 0 => {}
            Ok(None) => say(
                begin,
                format!("data file {number} does not say what is before it"),
            ),
            Ok(Some(start)) => {
                let is_next = at.is_none_or(|at: Boundary| {
                    let is_same = at.bytes == start.bytes || !is_exact;
                    at.position != begin || (at.sequence == start.sequence && is_same)
                });
                if !is_next {
                    say(
                        begin,
                        format!("data file {number} begins with another message"),
                    );
                }
                if at.is_none_or(|at| !is_exact && at.position == begin) {
                    (at, is_exact) = (Some(start.boundary()), true);
                }
            }
            Err(e) if e.errno().is_some() => return Err(e),
            Err(e) => {
                say(begin, e.to_string());
                continue;
            }
        }
        if !log.is_head_clean(number)? {
            say(
                begin,
                format!("data file {number} has something behind its header"),
            );
        }
        log.arrive(begin)?;
        let end = begin + capacity;
        while let Some(mut boundary) = at.filter(|at| (begin..end).contains(&at.position)) {
            let position = boundary.position;
            let whole = lane::whole_at(ring, position);
            match whole {
                Ok(Some(found)) if found.word.sequence() == boundary.sequence as u32 => {
                    if found.word.is_padding() && !is_zero(ring, position + 8, found.end() - 8) {
                        say(position, String::from("the padding there holds something"));
                    }
                    if found.word.is_message() {
                        checked.messages += 1;
                        checked.bytes += found.word.len();
                    }
                    if found.word.is_padding() {
                        ring.lift_before(position);
                    }
                    boundary.pass(found);
                    at = Some(boundary);
                }
                Ok(None) => break,
                _ => {
                    say(
                        position,
                        String::from("the frame there is not as it was written, by its checksum"),
                    );
                    is_exact = false;
                    at = lane::next_whole(&mut search, position)?.map(|next| Boundary {
                        position: next.position,
                        sequence: u64::from(next.word.sequence()),
                        bytes: boundary.bytes,
                    });
                }
            }
        }
        let rest = at.map_or(begin, |at| at.position).clamp(begin, end);
        if !has_writer && !is_zero(ring, rest, end) {
            say(
                rest,
                String::from("there is something behind the last frame"),
            );
        }
    }
    Ok(checked)
}

fn is_zero(ring: &Ring, from: u64, to: u64) -> bool {
    let word = |at| ring.word(at).load(Ordering::Relaxed);
    (from..to).step_by(8).all(|at| word(at) == 0)
}

/// Has zeros in `[from, to)`, multiples of 16 in one file, and says where the last byte was that was none: by the lane's
/// writer, or who recovers it.
pub fn scrub(ring: &Ring, from: u64, to: u64) -> Option<u64> {
    let mut last = None;
    for piece in (from..to).step_by(PAGE) {
        let end = (piece + PAGE as u64).min(to);
        let is_set = |at: &u64| ring.word(*at).load(Ordering::Relaxed) != 0;
        if let Some(at) = (piece..end).step_by(8).filter(is_set).last() {
            last = Some(at);
            ring.zero(piece, end);
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_found_by_those_of_two_beginnings() {
        let bytes: Vec<u8> = (0..9000_u32).map(|i| ((i * i) >> 3) as u8).collect();
        for (first, last) in [(0, 9000), (0, 4096), (7, 8192), (4097, 8999)] {
            let [before, all] = [first, last].map(|end| crc32c::crc32c(&bytes[..end]));
            let start = start(7, 4096, u64::MAX);
            let combined = super::before(start ^ before, last - first) ^ all;
            let direct = checksum(7, 4096, u64::MAX, &bytes[first..last]);
            assert_eq!(u64::from(combined), direct);
        }
    }

    #[test]
    fn a_search_keeps_few_checksums_of_a_large_file() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let mode = Some(nix::sys::stat::Mode::S_IRWXU);
        let dir = Arc::new(Dir::open(&dir.path().join("d"), mode).unwrap());
        let capacity = 4 * KEPT * SLOT;
        let log = Log::new(&dir, &Arc::from("t"), 7, capacity, Access::Write).unwrap();
        log.make(1).unwrap();
        log.arrive(capacity).unwrap();
        let ring = Ring::of_log(log);
        let piece: Vec<u8> = (0..PAGE as u64).map(|i| ((i * i) >> 3) as u8).collect();
        for at in (capacity..2 * capacity).step_by(PAGE) {
            ring.copy_in(at, &piece);
            ring.copy_in(at, &at.to_le_bytes());
        }
        let mut search = Search::new(&ring);
        let end = 2 * capacity - LONG;
        for (from, to) in [(0, LONG), (16, 8224), (48, 70_000), (32, 48), (64, 1 << 22)] {
            for position in [capacity + from, end - to + from] {
                let word = Word::message(to - from - 16, 3).with_checksum();
                let found = Found { position, word };
                assert_eq!(search.sum_of(found), sum_of(&ring, found));
            }
        }
        assert!(search.sums.len() as u64 <= KEPT + 1);
    }

    #[test]
    fn each_bit_of_a_word_counts() {
        for word in [0, 1, u64::MAX, 0x1234_5678_9abc_def1] {
            for bit in 0..64 {
                let (was, is) = (
                    checksum(7, 4096, word, &[]),
                    checksum(7, 4096, word ^ 1 << bit, &[]),
                );
                assert_ne!(was, is, "bit {bit} of {word:#x}");
            }
        }
    }
}
