//! The core. This page is the map of what each file may do.
//!
//! | file | what it is | atomics | unsafe |
//! |---|---|---|---|
//! | `layout` | every shared structure, with its offsets; no behaviour | types only | |
//! | `lane` | the writing half, its invariant, the reading half | yes | |
//! | `haul` | which way long payloads take into a ring | | |
//! | `roster` | who reads: join, leave, limits | yes | |
//! | `table` | the latest values of a writer's keys | yes | |
//! | `claims` | a queue's group: whose each message is | yes | |
//! | `park` | the sleep and wake handshake | yes | |
//! | `wakers` | many sleepers behind one thread | | |
//! | `fork` | what a forked child must not keep: locks and mappings | yes | |
//! | `sync` | the atomics: the processor's, loom's, or the adversary's | types only | |
//! | `adversary` | memory in which each load answers what a fuzzer says | types only | |
//! | `files` | making, checking, locking and listing files | | |
//! | `members` | who is alive, and the doorbell that rings when somebody dies | | |
//! | `topic` | the files of one topic: opened, made, listed, mapped | | |
//! | `groups` | the files of a queue's groups | | |
//! | `log` | the data files of a lane that outlives its processes | yes | |
//! | `reclaim` | putting away what the dead left | | |
//! | `recover` | how far the lanes of a durable bus reached the disk | | |
//! | `segment` | mappings and typed views of them | | yes |
//! | `bytes` | ring memory: words, copies, loans | types only | yes |
//! | `futex` | wait, wake, membarrier | types only | yes |
//!
//! A file with atomics has no `unsafe`; a file with `unsafe` has no algorithm. The lints below enforce it:
//! `unsafe_code` is denied and atomic types are disallowed in the whole library but for the files named here (beside it, the command's floor
//! of its bench has both, and its signals an atomic).

#[cfg(adversary)]
#[allow(clippy::disallowed_types)]
pub mod adversary;
#[allow(clippy::disallowed_types)]
pub mod claims;
#[allow(clippy::disallowed_types)]
pub mod lane;
#[allow(clippy::disallowed_types)]
pub mod layout;
#[allow(clippy::disallowed_types)]
pub mod park;
#[allow(clippy::disallowed_types)]
pub mod roster;
#[allow(clippy::disallowed_types)]
pub mod sync;
#[allow(clippy::disallowed_types)]
pub mod table;
pub mod wakers;

#[cfg(not(loom))]
#[allow(clippy::disallowed_types, unsafe_code)]
pub mod bytes;
#[cfg(not(loom))]
pub mod files;
#[cfg(not(loom))]
#[allow(clippy::disallowed_types)]
pub mod fork;
#[cfg(not(loom))]
#[allow(clippy::disallowed_types, unsafe_code)]
pub mod futex;
#[cfg(not(loom))]
pub mod groups;
#[cfg(not(loom))]
pub mod haul;
#[cfg(not(loom))]
#[allow(clippy::disallowed_types)]
pub mod log;
#[cfg(not(loom))]
pub mod members;
#[cfg(not(loom))]
pub mod reclaim;
#[cfg(not(loom))]
pub mod recover;
#[cfg(not(loom))]
#[allow(unsafe_code)]
pub mod segment;
#[cfg(not(loom))]
pub mod topic;

#[cfg(all(test, not(loom)))]
mod explored;
#[cfg(all(test, not(loom)))]
mod images;
#[cfg(all(test, not(loom)))]
mod props;
#[cfg(all(test, not(loom)))]
pub mod tape;

#[cfg(not(loom))]
pub use {bytes::Ring, segment::View};

#[cfg(loom)]
#[allow(clippy::disallowed_types)]
pub mod heap;
#[cfg(loom)]
pub use heap::{Ring, View, futex};
