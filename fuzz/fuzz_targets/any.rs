//! The target that `TARGET` names, for libFuzzer. One program for all: linking takes longer than compiling.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(
    init: buslane_fuzz::choose(),
    |data: &[u8]| buslane_fuzz::chosen(data)
);

#[cfg(not(fuzzing))]
fn main() {}
