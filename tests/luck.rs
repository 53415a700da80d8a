//! Bad luck: no space, no descriptors, no memory, system calls that fail, clocks that jump, processes that are stopped. What is
//! refused is an error that says what to do, or goes on when there is room again; nobody else is harmed, and nothing is left behind.
//!
//! `BUSLANE_LUCK=all` tries every system call with every error; without it, a sample is tried.
#![allow(unsafe_code, missing_docs)]

mod common;

#[cfg(target_arch = "x86_64")]
#[path = "luck/calls.rs"]
mod calls;
#[path = "luck/elsewhere.rs"]
mod elsewhere;
#[path = "luck/forked.rs"]
mod forked;
#[cfg(target_arch = "x86_64")]
#[path = "luck/injection.rs"]
mod injection;
#[cfg(target_arch = "x86_64")]
#[path = "luck/lacks.rs"]
mod lacks;
#[path = "luck/operations.rs"]
mod operations;
#[cfg(target_arch = "x86_64")]
#[path = "luck/runs.rs"]
mod runs;
#[cfg(target_arch = "x86_64")]
#[path = "luck/stopped.rs"]
mod stopped;
#[cfg(target_arch = "x86_64")]
#[path = "luck/tracer.rs"]
mod tracer;
#[path = "luck/versions.rs"]
mod versions;
#[path = "luck/witness.rs"]
mod witness;
