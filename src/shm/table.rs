//! One writer's table: the latest value of each key that it has set. The writing half, the invariant, the reading half.
//!
//! # The invariant
//!
//! A key's bytes are written once, and the index word that leads to them is stored after them, and after its first
//! value; neither ever changes again. So a key that is found has a value.
//!
//! A slot counts its completed writes in `version`. Write `v` goes to cell `v` modulo [`CELLS`], and is complete when
//! the version says `v`: the cells of the [`CELLS`]` - 1` writes before it stay whole meanwhile. So a writer that dies while it
//! writes leaves the value before, and a reader that copies cell `v` has it whole if the version has not passed
//! `v + CELLS - 2` by then: the writer may be at one cell more, and that is still another one.
//!
//! # Every shared word, its writer and its ordering
//!
//! | word | written by | ordering and its partner |
//! |---|---|---|
//! | index word | the writer, once | `Release` in [`Writer::set`], with the fence in [`Table::probe`]: key and first value |
//! | key words | the writer, before the index word | `Relaxed`; the index word brings them, or `used` |
//! | `used` | the writer | `Release` in [`Writer::set`], with the fence in [`Table::used`] |
//! | `version` | the writer | `Release` in `Writer::store`, with the first fence in [`Table::copy`]: the cell |
//! | cell words | the writer | `Relaxed`, behind the `Release` fence in `Writer::store`, with the second fence in [`Table::copy`]: the version before |
//! | `owner.member` | the writer | for people |

use xxhash_rust::xxh3::xxh3_64;

use super::View;
use super::layout::{CELLS, MAX_CAPACITY, MAX_KEY, MAX_KEYS, PAGE, TableHeader};
use super::sync::{AtomicU64, Ordering, fence};

/// Words of a slot before its key: version and length of the key.
const KEY: usize = 2;
/// Words of a cell before its value: time and length of the value.
const VALUE: usize = 2;
/// Words in a cache line: slots start on one.
const LINE: usize = 8;
/// Copies in a row that may be spoiled. Each of them takes as many writes of one key, while it lasts, as there are cells
/// but one.
const TRIES: usize = 10_000;
/// The half of a hash that an index word keeps; the other half holds the number of its slot, plus 1.
const TAG: u64 = !0 << 32;

/// How large a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Keys, at most.
    pub keys: usize,
    /// Bytes in a key, at most.
    pub max_key: usize,
    /// Bytes in a value, at most.
    pub max_value: usize,
}

impl Shape {
    /// The one of these `sizes`, as a topic keeps them; else why there is none.
    pub fn new(sizes: [u64; 3]) -> Result<Self, String> {
        let [keys, max_key, max_value] = sizes;
        let limits = [
            (keys, MAX_KEYS, "keys in a table"),
            (max_key, MAX_KEY, "bytes in a key"),
            (max_value, MAX_CAPACITY as u64, "bytes in a value"),
        ];
        for (size, limit, what) in limits {
            if !(1..=limit).contains(&size) {
                return Err(format!("{size} {what} are not between 1 and {limit}"));
            }
        }
        let shape = Self {
            keys: keys as usize,
            max_key: max_key as usize,
            max_value: max_value as usize,
        };
        let bytes = (shape.slot_words() as u128 * 8).saturating_mul(u128::from(keys));
        if bytes > MAX_CAPACITY as u128 {
            return Err(format!(
                "{keys} keys with values of {max_value} bytes take {bytes} bytes, more than {MAX_CAPACITY}"
            ));
        }
        Ok(shape)
    }

    /// Words in the index: a power of two, at least two for each key, and whole pages.
    pub fn index_words(self) -> usize {
        let least = if cfg!(loom) { 2 } else { PAGE / 8 };
        (2 * self.keys).next_power_of_two().max(least)
    }

    fn key_words(self) -> usize {
        self.max_key.div_ceil(8)
    }

    fn cell_words(self) -> usize {
        VALUE + self.max_value.div_ceil(8)
    }

    fn slot_words(self) -> usize {
        (KEY + self.key_words() + CELLS * self.cell_words()).next_multiple_of(LINE)
    }

    /// Words in all slots.
    pub fn slots_words(self) -> usize {
        self.keys * self.slot_words()
    }

    /// Bytes in the file.
    pub fn file_size(self) -> usize {
        PAGE + 8 * (self.index_words() + self.slots_words())
    }
}

/// A table, as its writer or as a reader maps it.
#[derive(Clone, Debug)]
pub struct Table {
    /// How large it is.
    pub shape: Shape,
    /// Its header.
    pub header: View<TableHeader>,
    /// [`Shape::index_words`]
    pub index: View<[AtomicU64]>,
    /// [`Shape::slots_words`]
    pub slots: View<[AtomicU64]>,
}

// ------------------------------------------------------------------------------------------------- the writing half

/// Why a value was refused; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Bytes in the key.
    KeyTooLong(usize),
    /// Bytes in the value.
    ValueTooLong(usize),
    /// It has all the keys that it has room for, and this is none of them.
    Full,
}

/// The table's only writer.
#[derive(Debug)]
pub struct Writer {
    table: Table,
    /// Slots that the index leads to.
    used: usize,
    /// Of the last value that was stored.
    time: u64,
}

impl Writer {
    /// Writes a table that is new, or whose writer has gone: the holder of the file's lock. `None`: its index is
    /// damaged.
    pub fn own(table: Table, member: u64) -> Option<Self> {
        table.header.owner.store(member, Ordering::Relaxed);
        // The writer before may have died before it counted its last key.
        let slots = table
            .index
            .iter()
            .map(|word| word.load(Ordering::Relaxed) & !TAG);
        let used = slots.max().unwrap_or(0) as usize;
        if used > table.shape.keys {
            return None;
        }
        // Pairs with the fence in `Table::used`. A new table's is 0 already.
        table.header.used.store(used as u64, Ordering::Release);
        Some(Self {
            table,
            used,
            time: 0,
        })
    }

    /// Stores the value of `key`, written at `time`, and says in which slot.
    pub fn set(&mut self, key: &[u8], value: &[u8], time: u64) -> Result<usize, Refused> {
        let shape = self.table.shape;
        if key.len() > shape.max_key {
            return Err(Refused::KeyTooLong(key.len()));
        }
        if value.len() > shape.max_value {
            return Err(Refused::ValueTooLong(value.len()));
        }
        match self.table.probe(key, hash(key)) {
            Probe::Slot(slot) => {
                self.store(slot, value, time);
                Ok(slot)
            }
            Probe::Free(at, tag) if self.used < shape.keys => {
                let slot = self.used;
                let words = self.table.slot(slot);
                words[KEY - 1].store(key.len() as u64, Ordering::Relaxed);
                write(&words[KEY..], key);
                self.store(slot, value, time);
                self.used += 1;
                // Pairs with the fence in `Table::probe`: the key, and its value.
                self.table.index[at].store(tag | self.used as u64, Ordering::Release);
                // Pairs with the fence in `Table::used`: the same.
                let used = &self.table.header.used;
                used.store(self.used as u64, Ordering::Release);
                Ok(slot)
            }
            Probe::Free(..) | Probe::Nowhere => Err(Refused::Full),
        }
    }

    fn store(&mut self, slot: usize, value: &[u8], time: u64) {
        self.time = time.max(self.time + 1);
        let words = self.table.slot(slot);
        let version = words[0].load(Ordering::Relaxed).wrapping_add(1);
        let cell = self.table.cell(words, version);
        // Pairs with the second fence in `Table::copy`: who sees a word of this write sees the version before it.
        fence(Ordering::Release);
        cell[0].store(self.time, Ordering::Relaxed);
        cell[1].store(value.len() as u64, Ordering::Relaxed);
        write(&cell[VALUE..], value);
        // Pairs with the first fence in `Table::copy`: the whole cell.
        words[0].store(version, Ordering::Release);
    }
}

/// Stores `bytes` in `words`, the last one filled up with zeros.
#[inline]
fn write(words: &[AtomicU64], bytes: &[u8]) {
    for (word, bytes) in words.iter().zip(bytes.chunks(8)) {
        word.store(word_of(bytes), Ordering::Relaxed);
    }
}

/// Up to 8 bytes as a word.
#[inline]
fn word_of(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    match bytes.first_chunk() {
        Some(whole) => word = *whole,
        None => word[..bytes.len()].copy_from_slice(bytes),
    }
    u64::from_le_bytes(word)
}

// ------------------------------------------------------------------------------------------------- the reading half

/// Where a key is in the index.
enum Probe {
    /// Its slot.
    Slot(usize),
    /// Nowhere: here it would go, with this tag.
    Free(usize, u64),
    /// Nowhere, and there is no room.
    Nowhere,
}

/// A table that contradicts itself: whose writer does not keep the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// In this slot.
    pub slot: usize,
}

/// A copy of a value.
#[derive(Debug, Default)]
pub struct Value {
    /// Which write of its slot it was.
    pub version: u64,
    /// When it was written, in its writer's monotonic clock.
    pub time: u64,
    /// Bytes in it.
    pub len: usize,
    /// The bytes, the last word filled up.
    pub words: Vec<u64>,
}

impl Table {
    /// The member who writes it, or wrote it last.
    pub fn owner(&self) -> u64 {
        self.header.owner.load(Ordering::Relaxed)
    }

    #[inline]
    fn slot(&self, slot: usize) -> &[AtomicU64] {
        let len = self.shape.slot_words();
        &self.slots[slot * len..][..len]
    }

    #[inline]
    fn cell<'a>(&self, slot: &'a [AtomicU64], version: u64) -> &'a [AtomicU64] {
        let len = self.shape.cell_words();
        let at = KEY + self.shape.key_words() + version as usize % CELLS * len;
        &slot[at..][..len]
    }

    /// Follows the index from where the hash of `key` leads.
    #[inline]
    fn probe(&self, key: &[u8], hash: u64) -> Probe {
        let mask = self.index.len() - 1;
        let tag = hash & TAG;
        for step in 0..self.index.len() {
            let at = (hash as usize + step) & mask;
            let word = self.index[at].load(Ordering::Relaxed);
            // Pairs with the `Release` in `Writer::set`: the key, and its first value.
            fence(Ordering::Acquire);
            if word == 0 {
                return Probe::Free(at, tag);
            }
            let slot = (word & !TAG).wrapping_sub(1) as usize;
            if word & TAG == tag && slot < self.shape.keys && self.has_key(slot, key) {
                return Probe::Slot(slot);
            }
        }
        Probe::Nowhere
    }

    #[inline]
    fn has_key(&self, slot: usize, key: &[u8]) -> bool {
        let words = self.slot(slot);
        words[KEY - 1].load(Ordering::Relaxed) == key.len() as u64
            && key.len() <= self.shape.max_key
            && words[KEY..]
                .iter()
                .zip(key.chunks(8))
                .all(|(word, bytes)| word.load(Ordering::Relaxed) == word_of(bytes))
    }

    /// The slot of `key`, whose [`hash`] is this.
    #[inline]
    pub fn find(&self, key: &[u8], hash: u64) -> Option<usize> {
        match self.probe(key, hash) {
            Probe::Slot(slot) => Some(slot),
            Probe::Free(..) | Probe::Nowhere => None,
        }
    }

    /// Slots that have a key: those before this one.
    pub fn used(&self) -> usize {
        let used = self.header.used.load(Ordering::Relaxed);
        // Pairs with the `Release` in `Writer::set`: their keys, and first values.
        fence(Ordering::Acquire);
        (used as usize).min(self.shape.keys)
    }

    /// Copies the key of a slot that has one.
    pub fn key(&self, slot: usize, to: &mut Vec<u8>) -> Result<(), Damaged> {
        let words = self.slot(slot);
        let len = words[KEY - 1].load(Ordering::Relaxed);
        to.clear();
        if len > self.shape.max_key as u64 {
            return Err(Damaged { slot });
        }
        let len = len as usize;
        for word in &words[KEY..][..len.div_ceil(8)] {
            to.extend(word.load(Ordering::Relaxed).to_le_bytes());
        }
        to.truncate(len);
        Ok(())
    }

    /// The version of a slot now: whether its value is still the one that was copied.
    pub fn version(&self, slot: usize) -> u64 {
        // Only a hint; `copy` looks again.
        self.slot(slot)[0].load(Ordering::Relaxed)
    }

    /// Copies the value of a slot that has a key: a whole one, never older than one that was copied before.
    #[inline]
    pub fn copy(&self, slot: usize, to: &mut Value) -> Result<(), Damaged> {
        let words = self.slot(slot);
        for _ in 0..TRIES {
            to.version = words[0].load(Ordering::Relaxed);
            // Pairs with the `Release` in `Writer::store`: the cell of that version.
            fence(Ordering::Acquire);
            let cell = self.cell(words, to.version);
            to.time = cell[0].load(Ordering::Relaxed);
            let len = cell[1].load(Ordering::Relaxed);
            let count = len.div_ceil(8).min((cell.len() - VALUE) as u64) as usize;
            to.words.clear();
            let value = cell[VALUE..][..count].iter();
            to.words
                .extend(value.map(|word| word.load(Ordering::Relaxed)));
            // Pairs with the fence in `Writer::store`: of what overwrote a word that we saw, the version before it.
            fence(Ordering::Acquire);
            let passed = words[0].load(Ordering::Relaxed).wrapping_sub(to.version);
            if passed <= CELLS as u64 - 2 {
                to.len = len as usize;
                let is_value = to.version > 0 && len <= self.shape.max_value as u64;
                return if is_value {
                    Ok(())
                } else {
                    Err(Damaged { slot })
                };
            }
        }
        Err(Damaged { slot })
    }
}

/// What a key is found by: XXH3, 64 bits, without a seed.
#[inline]
pub fn hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}
