//! Every shared structure. `docs/layout.md` describes each byte; `tests/layout.rs` holds the two together.

use super::sync::AtomicU64;
#[cfg(not(loom))]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(not(target_endian = "little"))]
compile_error!("buslane's layout is little endian, and its futexes sit on the low half of a word");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("buslane addresses a lane by 64-bit positions");

/// The first eight bytes of every file.
pub const MAGIC: [u8; 8] = *b"BUSLANE\0";
/// The layout that this version writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// Every header, and every control page, is this many bytes.
pub const PAGE: usize = 4096;
/// Frames start on multiples of this many bytes.
pub const SLOT: u64 = 16;
/// Boundary records in a lane's header.
pub const RECORDS: usize = if cfg!(loom) { 4 } else { 16 };
/// Lanes that one cursor has room for. Pages that are not used are not allocated. (Where all slots are looked at a million times, and
/// made to lie, few do.)
pub const CURSOR_SLOTS: usize = if cfg!(loom) {
    2
} else if cfg!(adversary) {
    64
} else {
    65536
};
/// Smallest and largest lane, in bytes; both powers of two.
pub const MIN_CAPACITY: usize = 4096;
/// See [`MIN_CAPACITY`].
pub const MAX_CAPACITY: usize = 1 << 40;
/// Largest lane of a queue, in bytes: its claims are told apart by the 32 bits of a sequence number.
pub const MAX_QUEUE_CAPACITY: usize = 1 << 35;
/// `want` when no writer waits: no position reaches it.
pub const NOBODY: u64 = u64::MAX;
/// Bit 0 of a cursor position: the reader has left, and gates nobody.
pub const LEFT: u64 = 1;

/// Values of one key that a table holds: while one is written, those of the writes before it but one stay whole.
pub const CELLS: usize = if cfg!(loom) { 3 } else { 4 };
/// Keys in a table, at most.
pub const MAX_KEYS: u64 = 1 << 24;
/// Bytes in a key, at most.
pub const MAX_KEY: u64 = 4096;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// `bus`
    Bus = 1,
    /// `members/<id>`
    Member = 2,
    /// `topics/<name>/topic`
    Topic = 3,
    /// `topics/<name>/lane.<n>`
    Lane = 4,
    /// `topics/<name>/cursor.<n>`
    Cursor = 5,
    /// `topics/<name>/group.<name>`
    Group = 6,
    /// `topics/<name>/claims.<group>.<n>`
    Claims = 7,
    /// `topics/<name>/table.<n>`
    Table = 8,
    /// `topics/<name>/data.<lane>.<n>`
    Data = 9,
    /// `topics/<name>/subscription.<name>`
    Subscription = 10,
    /// `topics/<name>/locks`
    Locks = 11,
}

/// How a topic's messages are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Pattern {
    /// To every subscriber; publishers wait for the slowest.
    Lossless = 1,
    /// To every subscriber that keeps up; the others are told what they lost.
    Lossy = 2,
    /// To one consumer of each group, until one has acknowledged it.
    Queue = 3,
    /// The latest value of each key.
    State = 4,
    /// Replies to one client.
    Inbox = 5,
}

impl Pattern {
    /// The one with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        let all = [
            Self::Lossless,
            Self::Lossy,
            Self::Queue,
            Self::State,
            Self::Inbox,
        ];
        all.into_iter().find(|&pattern| pattern as u32 == number)
    }

    /// Whether writers overwrite what slow readers have not read.
    pub fn is_lossy(self) -> bool {
        matches!(self, Self::Lossy | Self::State)
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lossless => "lossless",
            Self::Lossy => "lossy",
            Self::Queue => "queue",
            Self::State => "state",
            Self::Inbox => "inbox",
        }
    }
}

/// The first 64 bytes of every file: read with `pread` and checked before anything is mapped, never changed.
#[cfg_attr(not(loom), derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Identity {
    /// [`MAGIC`]
    pub magic: [u8; 8],
    /// [`VERSION`]
    pub version: u32,
    /// [`Kind`]
    pub kind: u32,
    /// Of the whole file, in bytes.
    pub size: u64,
    /// Number of the lane, cursor or group; of claims that of their lane; random id of a member, 0 of the rest.
    pub id: u64,
    /// Bytes in the ring of a lane, or in each of its data files; in a topic, those of the lanes to be made; slots in a
    /// cursor; claims in a table of them; keys in a state's table; else 0.
    pub capacity: u64,
    /// When it was made, nanoseconds since 1970. For people; and for how long data is kept.
    pub created_ns: u64,
    /// Of a data file: its number in its lane; else 0.
    pub number: u64,
    /// Of a data file: the checksum of all before this; else 0.
    pub check: u64,
}

/// What a bus is, behind its identity; never changed.
#[cfg(not(loom))]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
pub struct BusConfig {
    /// 1: its topics outlive their processes, and the machine.
    pub durable: u64,
}

/// What is before a data file's first frame, at [`DATA_START`] in it. Written by its lane's writer, with one `pwrite`, when it
/// comes to that file.
#[cfg(not(loom))]
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default, PartialEq, Eq,
)]
#[repr(C)]
pub struct DataStart {
    /// Where the file starts.
    pub position: u64,
    /// The number of its first message.
    pub sequence: u64,
    /// Payload bytes in all messages before it.
    pub bytes: u64,
    /// When the writer came to it, in nanoseconds since 1970: what is before it was sent earlier.
    pub began_ns: u64,
    /// The checksum of all before this, and of the lane's number.
    pub check: u64,
}

/// Where a data file says what is before it.
pub const DATA_START: usize = 64;

/// What a topic is, behind its identity; never changed.
#[cfg(not(loom))]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
pub struct TopicConfig {
    /// [`Pattern`]
    pub pattern: u32,
    /// Version of the type.
    pub type_version: u32,
    /// Bytes of one value; 0 for plain bytes.
    pub type_size: u64,
    /// Alignment of the type; 1 for plain bytes.
    pub type_align: u64,
    /// Bytes used of `type_name`.
    pub type_name_len: u64,
    /// UTF-8; `bytes` for plain bytes.
    pub type_name: [u8; 192],
    /// What the pattern needs to know beside: of a state, how many keys a table has, and the most bytes in a key and in a
    /// value; of an inbox, whose it is: a member's id. Else 0.
    pub sizes: [u64; 3],
    /// 1: its lanes are kept in data files.
    pub logged: u64,
    /// Of such a topic: how often what was sent is synced, in nanoseconds; 0: when asked; all ones: before each `send` returns.
    pub sync_ns: u64,
    /// Of such a topic: how many bytes of each lane are kept; 0: it does not say.
    pub keep_bytes: u64,
    /// Of such a topic: for how many nanoseconds messages are kept; 0: it does not say. If neither is said, until all have
    /// passed them.
    pub keep_ns: u64,
}

/// Who a member is, behind its identity. For people.
#[cfg(not(loom))]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
pub struct MemberInfo {
    /// As the process sees itself; another PID namespace knows it by another number.
    pub pid: u32,
    /// Bytes used of `name`.
    pub name_len: u32,
    /// The process's command name, UTF-8.
    pub name: [u8; 56],
}

/// A word, or a group of words of one writer and one reading rhythm, that shares no cache line (nor the pair of lines
/// that a prefetcher takes together) with any other.
#[cfg_attr(not(loom), derive(FromBytes))]
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct Line<T>(pub T);

impl<T> std::ops::Deref for Line<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// A topic's control page: the one page that every member maps writable. All its words change by read-modify-write.
#[cfg_attr(not(loom), derive(FromBytes))]
#[derive(Debug, Default)]
#[repr(C)]
pub struct Control {
    /// Bumped by whoever joins, leaves, or goes to sleep; loaded by a sender after each send.
    pub attention: Line<AtomicU64>,
    /// Bumped by whoever wakes; sleepers wait on its low half.
    pub bell: Line<AtomicU64>,
    /// Bumped after each change of lanes or cursors; who waits for that alone sleeps on its low half.
    pub roster: Line<AtomicU64>,
    /// The last number given to a lane or a cursor.
    pub last_id: Line<AtomicU64>,
    /// Of an inbox: bumped after a request whose reply was to go there has ended without one.
    pub ended: Line<AtomicU64>,
    /// 1: a sync has failed, and what is on the disk is not known: nothing is sent until the topic is recovered.
    pub poisoned: Line<AtomicU64>,
    /// 1: the topic was removed. Nobody comes to it by its name any more, and who is in it is told.
    pub removed: Line<AtomicU64>,
}

/// A bus's control page, behind its identity: every member maps it writable. Its word changes by read-modify-write.
#[cfg_attr(not(loom), derive(FromBytes))]
#[derive(Debug, Default)]
#[repr(C)]
pub struct BusControl {
    /// Bumped after a topic was made or removed; who waits for topics sleeps on its low half.
    pub topics: Line<AtomicU64>,
    /// Of a durable bus: a number for the boot of the machine in which it was last recovered. In the same one, what was stored
    /// is there.
    pub boot: Line<AtomicU64>,
}

/// A lane's header page. Written by the holder of the file's lock alone: its writer, or who puts it away.
#[cfg_attr(not(loom), derive(FromBytes))]
#[derive(Debug, Default)]
#[repr(C)]
pub struct LaneHeader {
    /// [`Identity`]; not touched through the mapping.
    pub identity: Line<[AtomicU64; 16]>,
    /// The cursor position that a waiting writer wants, or [`NOBODY`]. Readers load it at each release.
    pub want: Line<AtomicU64>,
    /// A frame boundary from which a joiner may start.
    pub mark: Line<AtomicU64>,
    /// The end that the writer wishes to write up to; at most `mark` + capacity, never lowered.
    pub limit: Line<AtomicU64>,
    /// What lies below may have been overwritten. Always a record's position.
    pub floor: Line<AtomicU64>,
    /// Whose it is.
    pub owner: Line<LaneOwner>,
    /// Frame boundaries, about a sixteenth of the ring apart; the newest at the highest position.
    pub records: [Record; RECORDS],
    /// Of a lane in data files.
    pub log: Line<LogWords>,
    /// Of a lane in data files: up to where it is known to be on the disk, each with a checksum; the higher one that is whole
    /// counts.
    pub synced: [Record; 2],
}

/// What a lane in data files has beside.
#[cfg_attr(not(loom), derive(FromBytes))]
#[derive(Debug, Default)]
#[repr(C)]
pub struct LogWords {
    /// Where it was last cut, because what lay behind had not reached the disk.
    pub cut_at: AtomicU64,
    /// Up to where something was found behind that; 0: it never was.
    pub cut_to: AtomicU64,
}

/// Whose a lane is.
#[cfg_attr(not(loom), derive(FromBytes))]
#[derive(Debug, Default)]
#[repr(C)]
pub struct LaneOwner {
    /// Member id.
    pub member: AtomicU64,
    /// 1: there is no writer, and none of its messages will follow; an adopter sets it back to 0.
    pub closed: AtomicU64,
    /// 1: the writer can't run `membarrier`; readers fence before they load `want`.
    pub fences: AtomicU64,
    /// Not 0: only a writer with this name takes it up, and it stays until one does.
    pub name: AtomicU64,
}

/// A frame boundary, and what came before it.
#[cfg_attr(not(loom), derive(FromBytes))]
#[derive(Debug, Default)]
#[repr(C)]
pub struct Record {
    /// Where a frame starts. Stored last.
    pub position: AtomicU64,
    /// Its sequence number.
    pub sequence: AtomicU64,
    /// Payload bytes in all frames before it.
    pub bytes: AtomicU64,
    /// Of `synced`: the checksum of the others, and of the lane's number. Else 0.
    pub check: AtomicU64,
}

/// A cursor's header page. Written by the holder of the file's lock alone: its reader, or who puts it away.
#[cfg_attr(not(loom), derive(FromBytes))]
#[derive(Debug, Default)]
#[repr(C)]
pub struct CursorHeader {
    /// [`Identity`]; not touched through the mapping.
    pub identity: Line<[AtomicU64; 16]>,
    /// 1 while the reader sleeps or is about to.
    pub parked: Line<AtomicU64>,
    /// How many slots were ever used; those behind are not allocated.
    pub used: Line<AtomicU64>,
    /// Whose it is.
    pub owner: Line<CursorOwner>,
}

/// Whose a cursor is.
#[cfg_attr(not(loom), derive(FromBytes))]
#[derive(Debug, Default)]
#[repr(C)]
pub struct CursorOwner {
    /// Member id.
    pub member: AtomicU64,
    /// 1: the reader can't run `membarrier`; senders fence before they load `attention`.
    pub fences: AtomicU64,
    /// 1: it has joined every lane that was there when it came, and counts as a subscriber.
    pub joined: AtomicU64,
    /// Of a consumer of a queue: the number of its group.
    pub group: AtomicU64,
    /// Of a consumer of a queue: bit n says that it takes messages of kind n, bit 0 those without an envelope. 0: all.
    pub kinds: AtomicU64,
    /// 1: messages come to it one at a time, and it waits for each. A hint for writers.
    pub singly: AtomicU64,
    /// Of a named subscription, 1: nobody reads with it now.
    pub away: AtomicU64,
    /// 1: on a lossless topic, writers do not wait for it.
    pub lossy: AtomicU64,
}

/// What a group's consumers agree on, in its file's page at [`GROUP_CONFIG`]. Written by the holder of the file's lock, with
/// one `pwrite`, while the group has no consumer.
#[cfg(not(loom))]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct GroupConfig {
    /// After how many nanoseconds a delivery is taken away from who holds it; 0: never.
    pub lease_ns: u64,
    /// How often a message is delivered before it is a dead letter; 0: as often as it takes.
    pub max_attempts: u64,
    /// Bytes used of `dead_letter`; 0: the queue's name and `.dead`.
    pub dead_letter_len: u64,
    /// The dead-letter topic's name, UTF-8.
    pub dead_letter: [u8; 256],
}

/// Where a group's configuration is in its file.
pub const GROUP_CONFIG: usize = 512;

/// The second page of a file of claims.
#[cfg_attr(not(loom), derive(FromBytes))]
#[derive(Debug, Default)]
#[repr(C)]
pub struct ClaimsHeader {
    /// The lane, and the group's head in it: all before it is acknowledged.
    pub head: Line<Slot>,
    /// Bumped whenever a claim was given back.
    pub again: Line<AtomicU64>,
    /// Of a lane in data files: not 0 if a consumer may wait for the head to move.
    pub blocked: Line<AtomicU64>,
}

/// How many claims a lane of `capacity` bytes needs: one for each frame that it may hold.
pub const fn claims_of(capacity: u64) -> usize {
    (capacity / SLOT) as usize
}

/// Whose a message of a queue is: one word for each, at its sequence number modulo the table's length. 0: nobody had
/// one here yet. Every change is one compare-and-swap from the exact old word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim(pub u64);

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nobody has it; it was given back, or taken away.
    Free = 1,
    /// Its owner works on it.
    Claimed = 2,
    /// It is done with.
    Acked = 3,
    /// Its owner copies it elsewhere: the copy may be there already.
    Moving = 4,
    /// Its owner works on it, and nobody else is to get it.
    Once = 5,
    /// Its owner works on it, and its sender does not want it any more.
    Cancelled = 6,
    /// It is done with: its owner died over it, or gave it up, and nobody else is to get it.
    Died = 7,
    /// It is done with, and there was no room for the reply to it.
    Unanswered = 8,
}

impl Claim {
    const OWNER_SHIFT: u32 = 32;
    const ATTEMPTS_SHIFT: u32 = 52;
    const FATE_SHIFT: u32 = 60;
    /// What the number of a consumer is cut to.
    pub const OWNERS: u64 = (1 << (Self::ATTEMPTS_SHIFT - Self::OWNER_SHIFT)) - 1;
    /// Where counting attempts ends.
    pub const MAX_ATTEMPTS: u64 = (1 << (Self::FATE_SHIFT - Self::ATTEMPTS_SHIFT)) - 1;

    /// `owner` is cut to [`OWNERS`](Self::OWNERS), `attempts` ends at [`MAX_ATTEMPTS`](Self::MAX_ATTEMPTS).
    #[inline]
    pub fn new(sequence: u32, owner: u64, attempts: u64, fate: Fate) -> Self {
        Self(
            u64::from(sequence)
                | (owner & Self::OWNERS) << Self::OWNER_SHIFT
                | attempts.min(Self::MAX_ATTEMPTS) << Self::ATTEMPTS_SHIFT
                | (fate as u64) << Self::FATE_SHIFT,
        )
    }

    /// Low 32 bits of the message's sequence number.
    #[inline]
    pub const fn sequence(self) -> u32 {
        self.0 as u32
    }

    /// The consumer, cut to [`OWNERS`](Self::OWNERS).
    #[inline]
    pub const fn owner(self) -> u64 {
        self.0 >> Self::OWNER_SHIFT & Self::OWNERS
    }

    /// How often it was delivered.
    #[inline]
    pub const fn attempts(self) -> u64 {
        self.0 >> Self::ATTEMPTS_SHIFT & Self::MAX_ATTEMPTS
    }

    /// Whether this became of it.
    #[inline]
    pub const fn is(self, fate: Fate) -> bool {
        self.0 >> Self::FATE_SHIFT == fate as u64
    }

    /// Whether it is done with.
    #[inline]
    pub const fn is_done(self) -> bool {
        self.is(Fate::Acked) || self.is(Fate::Died) || self.is(Fate::Unanswered)
    }

    /// The same message with another fate.
    #[inline]
    pub fn with(self, fate: Fate) -> Self {
        Self::new(self.sequence(), self.owner(), self.attempts(), fate)
    }
}

/// How far a reader is in one lane. A line of its own: its lane's writer polls it.
#[cfg_attr(not(loom), derive(FromBytes))]
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Slot {
    /// Number of the lane; 0: free.
    pub lane: AtomicU64,
    /// All before it is released. With [`LEFT`], the reader has gone. Writers that wait for room sleep on its low half.
    pub position: AtomicU64,
    /// Messages that were overwritten before this reader came to them; only on a lossy topic.
    pub missed: AtomicU64,
    /// The bytes in them: payloads, and envelopes.
    pub missed_bytes: AtomicU64,
    /// In a lane in data files: the number of the message at the position.
    pub sequence: AtomicU64,
    /// The same: bytes in all messages before it.
    pub bytes: AtomicU64,
}

/// A table's header page. Written by the holder of the file's lock alone: its writer. Behind it come the index and the slots,
/// all words.
#[cfg_attr(not(loom), derive(FromBytes))]
#[derive(Debug, Default)]
#[repr(C)]
pub struct TableHeader {
    /// [`Identity`]; not touched through the mapping.
    pub identity: Line<[AtomicU64; 16]>,
    /// Member id of whose it is, or was.
    pub owner: Line<AtomicU64>,
    /// Slots that have a key.
    pub used: Line<AtomicU64>,
}

/// The 64 bits at the start of each frame: all that a reader needs. 0: nothing committed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(pub u64);

impl Word {
    const COMMITTED: u64 = 1;
    const PADDING: u64 = 1 << 1;
    /// The message has an envelope: an [`EnvelopeHead`] behind the word, its extension, and then the payload.
    const ENVELOPE: u64 = 1 << 2;
    /// The frame ends with a checksum, as all do of a lane in data files.
    const CHECKSUM: u64 = 1 << 3;
    const LENGTH_SHIFT: u32 = 4;
    /// Bytes behind the word, at most.
    pub const MAX_LENGTH: u64 = (1 << 28) - 1;
    const FLAGS: u64 = (1 << Self::LENGTH_SHIFT) - 1;

    /// A committed frame of `len` payload bytes.
    #[inline]
    pub const fn message(len: u64, sequence: u64) -> Self {
        Self((sequence << 32) | (len << Self::LENGTH_SHIFT) | Self::COMMITTED)
    }

    /// The same with an envelope, which is among the `len` bytes.
    #[inline]
    pub const fn with_envelope(self) -> Self {
        Self(self.0 | Self::ENVELOPE)
    }

    /// A committed frame of `size` bytes without a message; `sequence` is that of the next message.
    #[inline]
    pub const fn padding(size: u64, sequence: u64) -> Self {
        Self(Self::message(size - 8, sequence).0 | Self::PADDING)
    }

    /// Bytes behind the word.
    #[inline]
    pub const fn len(self) -> u64 {
        (self.0 & 0xffff_ffff) >> Self::LENGTH_SHIFT
    }

    /// The same with a checksum in its last 8 bytes, which are not among the `len` bytes.
    #[inline]
    pub const fn with_checksum(self) -> Self {
        Self(self.0 | Self::CHECKSUM)
    }

    /// Whether it ends with a checksum.
    #[inline]
    pub const fn has_checksum(self) -> bool {
        self.0 & Self::CHECKSUM != 0
    }

    /// Bytes from this word to the next.
    #[inline]
    pub const fn size(self) -> u64 {
        // The flag is as much as the checksum takes.
        frame_size(self.len() + (self.0 & Self::CHECKSUM))
    }

    /// Low 32 bits of the sequence number.
    #[inline]
    pub const fn sequence(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether it is a message, with or without an envelope, and a checksum.
    #[inline]
    pub const fn is_message(self) -> bool {
        self.0 & (Self::COMMITTED | Self::PADDING) == Self::COMMITTED
    }

    /// Whether it is a message, with or without an envelope, and has no checksum.
    #[inline(always)]
    pub const fn is_message_without_checksum(self) -> bool {
        self.0 & (Self::FLAGS & !Self::ENVELOPE) == Self::COMMITTED
    }

    /// Whether it is a message or padding, without a checksum.
    #[inline(always)]
    pub const fn is_frame_without_checksum(self) -> bool {
        // Padding has no envelope.
        let is_padding = self.0 & Self::FLAGS == Self::COMMITTED | Self::PADDING;
        self.is_message_without_checksum() || is_padding
    }

    /// The same with one.
    pub const fn is_frame_with_checksum(self) -> bool {
        self.has_checksum() && Self(self.0 & !Self::CHECKSUM).is_frame_without_checksum()
    }

    /// Whether an envelope stands before its payload.
    #[inline]
    pub const fn has_envelope(self) -> bool {
        self.0 & Self::ENVELOPE != 0
    }

    /// Whether it is a message without an envelope.
    #[inline]
    pub const fn is_plain(self) -> bool {
        self.0 & Self::FLAGS == Self::COMMITTED
    }

    /// Whether it is a message of `len` bytes without an envelope.
    #[inline(always)]
    pub const fn is_plain_of(self, len: u64) -> bool {
        self.0 as u32 == Self::message(len, 0).0 as u32
    }

    /// Whether it only fills the end of the ring, or of the file.
    #[inline]
    pub const fn is_padding(self) -> bool {
        self.0 & (Self::FLAGS & !Self::CHECKSUM) == Self::COMMITTED | Self::PADDING
    }
}

/// What stands between a frame's word and its payload, if the word says so: with the word, 64 bytes. Then comes the
/// extension. Written with the payload, and as it.
#[cfg_attr(not(loom), derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EnvelopeHead {
    /// What a reply says to tell which request it is for.
    pub correlation: u64,
    /// The inbox that a reply goes to; 0: none.
    pub reply_to: u64,
    /// When the message is worth nothing any more, in nanoseconds of the clock that runs since the machine started; 0: never.
    pub deadline_ns: u64,
    /// When it was sent, in nanoseconds since 1970; 0: it does not say.
    pub sent_ns: u64,
    /// A hash of its type's name; 0: it does not say.
    pub type_id: u64,
    /// Which part of a reply this is, from 0.
    pub part: u64,
    /// From the lowest byte up: what kind of message, flags, how many services it has come through (2 bytes), and bytes of the
    /// extension (4), a multiple of 8. One word: what was written as several can't be copied as one before it has left the
    /// processor's store buffer.
    pub marks: u64,
}

impl EnvelopeHead {
    /// Of a reply: one of several, not the last.
    pub const MORE: u8 = 1;
    /// Of a reply: there are no more of several, and this one has no payload.
    pub const END: u8 = 1 << 1;
    /// Of a reply: the service refuses, for a reason that is the payload.
    pub const REFUSED: u8 = 1 << 2;
    /// Of a reply: the true one could not be sent, for a reason that is the payload.
    pub const UNDELIVERED: u8 = 1 << 3;
    /// Of a request: if a server dies over it, no other gets it.
    pub const ONCE: u8 = 1 << 4;

    /// Bytes in it.
    #[cfg(not(loom))]
    pub const SIZE: usize = size_of::<Self>();

    /// What a message says that has none.
    pub const NONE: Self = Self::new(0, 0);

    /// One that says nothing but this.
    #[inline]
    pub const fn new(kind: u8, flags: u8) -> Self {
        Self {
            correlation: 0,
            reply_to: 0,
            deadline_ns: 0,
            sent_ns: 0,
            type_id: 0,
            part: 0,
            marks: kind as u64 | (flags as u64) << 8,
        }
    }

    /// What kind of message.
    #[inline]
    pub const fn kind(&self) -> u8 {
        self.marks as u8
    }

    /// [`EnvelopeHead::MORE`] and the like.
    #[inline]
    pub const fn flags(&self) -> u8 {
        (self.marks >> 8) as u8
    }

    /// Whether one of these is set.
    #[inline]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags() & flags != 0
    }

    /// How many services it has come through.
    #[inline]
    pub const fn hops(&self) -> u16 {
        (self.marks >> 16) as u16
    }

    /// Bytes of the extension.
    #[inline]
    pub const fn extension_len(&self) -> u32 {
        (self.marks >> 32) as u32
    }

    /// Of another kind.
    pub const fn with_kind(self, kind: u8) -> Self {
        let marks = self.marks & !0xff | kind as u64;
        Self { marks, ..self }
    }

    /// With so many services that it has come through, and bytes of the extension.
    pub const fn with(self, hops: u16, extension_len: u32) -> Self {
        let marks = self.marks & 0xffff | (hops as u64) << 16 | (extension_len as u64) << 32;
        Self { marks, ..self }
    }

    /// Bytes before the payload in `body`, which begins with an envelope. `None`: it contradicts itself.
    #[cfg(not(loom))]
    #[inline]
    pub fn total(body: &[u8]) -> Option<usize> {
        let (head, behind) = body.split_at_checked(Self::SIZE)?;
        // Alone: it is all that is needed here, and a copy of the rest costs as much as receiving.
        let (_, extension) = u32::read_from_suffix(head).ok()?;
        let extension = extension as usize;
        let fits = extension <= behind.len() && extension.is_multiple_of(8);
        fits.then_some(Self::SIZE + extension)
    }
}

/// Bytes of a frame with `len` bytes behind its word.
#[inline]
pub const fn frame_size(len: u64) -> u64 {
    (8 + len + (SLOT - 1)) & !(SLOT - 1)
}

/// Bytes of a frame with `len` bytes behind its word, and a checksum in its last 8.
#[inline]
pub const fn checked_size(len: u64) -> u64 {
    frame_size(len + Word::CHECKSUM)
}

/// The largest payload in a ring of `capacity` bytes: with an envelope, a frame takes at most 3/8 of the ring, so that
/// it fits beside padding of nearly its size and a quarter that a reader has not yet published.
#[inline]
pub const fn max_len(capacity: u64) -> u64 {
    let by_ring = (capacity / 8 * 3) / SLOT * SLOT - 64;
    let by_word = Word::MAX_LENGTH - 127;
    if by_ring < by_word { by_ring } else { by_word }
}

#[cfg(not(loom))]
const _: () = {
    use std::mem::{align_of, offset_of, size_of};
    assert!(size_of::<Identity>() == 64);
    assert!(size_of::<TopicConfig>() == 32 + 192 + 24 + 32);
    assert!(size_of::<Identity>() == DATA_START && offset_of!(Identity, check) == 56);
    assert!(size_of::<DataStart>() == 40);
    assert!(size_of::<MemberInfo>() == 64);
    assert!(offset_of!(Control, attention) == 0);
    assert!(offset_of!(Control, bell) == 128);
    assert!(offset_of!(Control, roster) == 256);
    assert!(offset_of!(Control, last_id) == 384);
    assert!(offset_of!(Control, ended) == 512);
    assert!(offset_of!(Control, poisoned) == 640);
    assert!(offset_of!(Control, removed) == 768);
    assert!(offset_of!(BusControl, topics) == 0);
    assert!(offset_of!(BusControl, boot) == 128);
    assert!(offset_of!(LaneHeader, want) == 128);
    assert!(offset_of!(LaneHeader, mark) == 256);
    assert!(offset_of!(LaneHeader, limit) == 384);
    assert!(offset_of!(LaneHeader, floor) == 512);
    assert!(offset_of!(LaneHeader, owner) == 640);
    assert!(offset_of!(LaneHeader, records) == 768);
    assert!(offset_of!(LaneHeader, log) == 1280);
    assert!(offset_of!(LaneHeader, synced) == 1408);
    assert!(size_of::<Record>() == 32);
    assert!(size_of::<LaneHeader>() <= PAGE && size_of::<Control>() <= PAGE);
    assert!(offset_of!(CursorHeader, parked) == 128);
    assert!(offset_of!(CursorHeader, used) == 256);
    assert!(offset_of!(CursorHeader, owner) == 384);
    assert!(size_of::<CursorHeader>() <= GROUP_CONFIG);
    assert!(size_of::<GroupConfig>() == 280);
    assert!(offset_of!(ClaimsHeader, head) == 0);
    assert!(offset_of!(ClaimsHeader, again) == 128);
    assert!(offset_of!(ClaimsHeader, blocked) == 256);
    assert!(size_of::<ClaimsHeader>() <= PAGE);
    assert!(offset_of!(TableHeader, owner) == 128);
    assert!(offset_of!(TableHeader, used) == 256);
    assert!(size_of::<TableHeader>() <= PAGE);
    assert!(offset_of!(EnvelopeHead, marks) + 8 == EnvelopeHead::SIZE);
    assert!(size_of::<Slot>() == 64 && offset_of!(Slot, position) == 8);
    assert!(align_of::<LaneHeader>() <= PAGE);
};
