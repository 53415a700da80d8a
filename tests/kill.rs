//! Kill enumeration: each operation is stepped through under ptrace, and killed by `SIGKILL` behind every system call and every
//! store to shared memory, or every instruction; those who live on, and the next opener, find all that was promised. Then the
//! next opener is killed, too, at each such point of its repair.
//!
//! `cargo test --release -p buslane --test kill` looks at some of the points, `... -- --all` at all; `--seed N` at the same
//! ones again, `--point 12+3`, or `--point 12+3,7+1` for a repair, at one. Names select operations.
#![allow(unsafe_code, missing_docs)]

mod common;
#[cfg(target_arch = "x86_64")]
#[path = "kill/operations.rs"]
mod operations;
#[cfg(target_arch = "x86_64")]
#[path = "kill/report.rs"]
mod report;
#[cfg(target_arch = "x86_64")]
#[path = "kill/run.rs"]
mod run;
#[cfg(target_arch = "x86_64")]
#[path = "kill/trace.rs"]
mod trace;

#[cfg(target_arch = "x86_64")]
fn main() -> std::process::ExitCode {
    report::main()
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("skipped: it knows the instructions of x86_64 alone");
}
