//! Instructions, counted.

use std::fs;
use std::io;
use std::process::Command;

/// Instructions in the functions whose names match `function`, and in what they call, in the process that `program` makes of
/// a command to be completed. `None`: there is no valgrind here.
pub fn count(function: &str, program: impl FnOnce(Command) -> Command) -> Option<u64> {
    let dir = tempfile::tempdir().unwrap();
    let counts = dir.path().join("callgrind.out");
    let mut valgrind = Command::new("valgrind");
    valgrind
        .arg("--tool=callgrind")
        .arg(format!("--toggle-collect={function}"))
        .arg(format!("--callgrind-out-file={}", counts.display()));
    let output = match program(valgrind).output() {
        Ok(output) => output,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => panic!("valgrind: {e}"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let counts = fs::read_to_string(counts).unwrap();
    let total: u64 = counts
        .lines()
        .find_map(|line| line.strip_prefix("totals:"))
        .expect("callgrind writes the totals")
        .trim()
        .parse()
        .unwrap();
    assert!(total > 0, "callgrind has not met {function}: {said}");
    Some(total)
}
