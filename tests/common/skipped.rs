//! What is not run here. The tests of all packages take this file by its path.

use std::fs::OpenOptions;
use std::io::Write;
use std::thread;

/// Says that a test, or a part of it, is not run here; in CI, at the end of the run, too, which has what passing tests say nowhere.
pub fn skipped(why: &str) {
    println!("skipped: {why}");
    if let Some(list) = std::env::var_os("BUSLANE_SKIPPED") {
        let test = thread::current().name().unwrap_or("?").to_owned();
        let mut options = OpenOptions::new();
        let mut list = options.create(true).append(true).open(list).unwrap();
        list.write_all(format!("{test}: {why}\n").as_bytes())
            .unwrap();
    }
}
