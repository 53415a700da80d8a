//! What the processes of a round know of each other, in memory that they share. It survives each of them, so that what was noted
//! before a death is there after it. It is no part of the bus: the bus is judged by it.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

use memmap2::MmapMut;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

/// Processes in a round. (A process is known by its number in the round, from 1.)
pub const PROCESSES: usize = 4096;
/// Messages that are followed one by one, of each process.
pub const MESSAGES: usize = 1 << 15;

/// How far the round has come.
pub const GOING: u64 = 0;
/// Those that send are to finish, and to leave.
pub const STOP: u64 = 1;
/// They have left. Those that receive are to leave when they have everything.
pub const DRAIN: u64 = 2;

/// What one process says of itself, and what it is told.
#[derive(FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Card {
    /// It will be killed now, or was.
    pub is_doomed: AtomicU64,
    /// It is to leave.
    pub is_to_leave: AtomicU64,
    /// Operations that it has completed.
    pub beats: AtomicU64,
    /// Messages that it has received and checked.
    pub checked: AtomicU64,
    /// How many of its sends have begun.
    pub begun: AtomicU64,
    /// How many of them have returned.
    pub sent: AtomicU64,
    /// What its pattern notes.
    pub own: AtomicU64,
}

#[derive(FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Ledger {
    pub phase: AtomicU64,
    /// Ticks when it is asked.
    pub clock: AtomicU64,
    /// How many were killed.
    pub dooms: AtomicU64,
    /// Who is the only one, of those that may be only one.
    pub only: AtomicU64,
    cards: [Card; PROCESSES],
    rows: [[AtomicU64; MESSAGES]; PROCESSES],
}

/// An empty one. What is not used of it takes no memory.
pub fn map() -> MmapMut {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(size_of::<Ledger>() as u64).unwrap();
    // SAFETY: the file has no name, so that only this process and its children have it, and they use it by atomics alone.
    unsafe { MmapMut::map_mut(&file) }.unwrap()
}

impl Ledger {
    pub fn of(map: &mut MmapMut) -> &Self {
        Self::mut_from_bytes(map).unwrap()
    }

    pub fn card(&self, process: u64) -> &Card {
        &self.cards[process as usize]
    }

    /// A word for each message of a process, or whatever else is to be noted under its number.
    pub fn row(&self, process: u64) -> &[AtomicU64; MESSAGES] {
        &self.rows[process as usize]
    }

    pub fn phase(&self) -> u64 {
        self.phase.load(SeqCst)
    }

    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst) + 1
    }

    pub fn is_doomed(&self, process: u64) -> bool {
        self.card(process).is_doomed.load(SeqCst) != 0
    }

    /// How many sends each process has begun by now. Sends that begin later are seen by whoever did something before this.
    pub fn begun(&self) -> Vec<u64> {
        fence(SeqCst);
        self.cards
            .iter()
            .map(|card| card.begun.load(SeqCst))
            .collect()
    }

    /// Each process that has sent: its number, how many sends are known to have returned, and how many had begun.
    pub fn senders(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.cards.iter().zip(0..).filter_map(|(card, process)| {
            let (sent, begun) = (card.sent.load(SeqCst), card.begun.load(SeqCst));
            (begun > 0).then_some((process, sent, begun))
        })
    }

    pub fn checked(&self) -> u64 {
        self.cards
            .iter()
            .map(|card| card.checked.load(Relaxed))
            .sum()
    }
}
