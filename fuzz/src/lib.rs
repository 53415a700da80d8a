//! What is fuzzed: one function for each target. `fuzz_targets/any.rs` gives them to libFuzzer; `tests/replay.rs` plays all that was ever
//! found on a stable toolchain. `run` builds and runs both.
//!
//! Those of [`lanes`] and [`tables`] drive the core in memory in which each load answers what the fuzzer says
//! (`src/shm/adversary.rs` of the library). Those of [`patterns`] write what it says into the files of a bus, and use the library as
//! everybody does, its loads answered by the fuzzer, too. Nothing may panic, read out of bounds, or take more than [`memory::LOADS`]
//! (or [`files::LOADS`]) loads for one call, or [`MOST`] bytes at once; libFuzzer sees to time, and to all of the memory.

pub mod files;
pub mod lanes;
pub mod memory;
pub mod patterns;
pub mod tables;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::RefCell;
use std::sync::OnceLock;

use buslane::shm::adversary;

/// A target: its name, and what it does with some bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("lane", lane),
    ("writer", writer),
    ("claims", claims),
    ("table", table),
    ("records", patterns::records),
    ("bus", bus),
    ("topic", topic),
    ("observed", observed),
    ("queue", queue),
    ("state", state),
    ("durable", durable),
    ("service", service),
];

/// Bytes that are asked for at once, at most.
pub const MOST: usize = 16 << 20;

/// Ends the process if more is asked for.
struct Bounded;

#[global_allocator]
static BOUNDED: Bounded = Bounded;

impl Bounded {
    fn check(size: usize) {
        if size > MOST {
            eprintln!("{size} bytes are asked for at once");
            std::process::abort();
        }
    }
}

// SAFETY: it is the system's.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::check(layout.size());
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::check(layout.size());
        // SAFETY: as the caller says.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::check(size);
        // SAFETY: as the caller says.
        unsafe { System.realloc(at, layout, size) }
    }
}

static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();

/// Chooses the target that the variable `TARGET` names.
pub fn choose() {
    let name = std::env::var("TARGET").expect("TARGET names one");
    let (_, target) = TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .expect("a target");
    CHOSEN.set(*target).expect("chosen once");
}

/// The one that was chosen.
pub fn chosen(data: &[u8]) {
    CHOSEN.get().expect("one was chosen")(data);
}

/// Runs a target's body with memory that was made once, and a tape: the first byte says whether it lies for ever.
macro_rules! targets {
    ($($(#[$what:meta])* $name:ident: $memory:ty, $body:path;)*) => {$(
        $(#[$what])*
        pub fn $name(data: &[u8]) {
            thread_local! {
                static MEMORY: RefCell<$memory> = RefCell::new(<$memory>::new());
            }
            let Some((&how, tape)) = data.split_first() else { return };
            MEMORY.with_borrow_mut(|memory| {
                adversary::begin(tape, how & 1 != 0);
                $body(memory);
                adversary::end();
            });
        }
    )*};
}

targets! {
    /// Who reads a lane.
    lane: lanes::Lane, lanes::read_lane;
    /// Who writes one.
    writer: lanes::Lane, lanes::write_lane;
    /// A queue's group.
    claims: tables::Queue, tables::consume;
    /// A state.
    table: tables::State, tables::table;
    /// A bus, and all files in it.
    bus: patterns::Buses, patterns::bus;
    /// Publishers and subscribers.
    topic: patterns::Topics, patterns::topic;
    /// Who looks on as another user may.
    observed: patterns::Topics, patterns::observed;
    /// A queue's producers and consumers.
    queue: patterns::Queues, patterns::queue;
    /// A state's writers and readers.
    state: patterns::States, patterns::state;
    /// What outlives its processes.
    durable: patterns::Durables, patterns::durable;
    /// Clients and servers.
    service: patterns::Services, patterns::service;
}
