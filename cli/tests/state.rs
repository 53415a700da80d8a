//! `buslane state`, as a shell uses it.
#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn buslane(bus: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_buslane"));
    command.arg("--bus").arg(bus).arg("state").args(arguments);
    command
}

fn run(bus: &Path, arguments: &[&str]) -> Output {
    buslane(bus, arguments).output().unwrap()
}

fn said(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn set_get_and_list() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bus = &dir.path().join("bus");
    assert_eq!(said(&run(bus, &["set", "board", "kitchen", "21.5"])), "");
    assert_eq!(said(&run(bus, &["set", "board", "cellar", "12"])), "");
    let mut piped = buslane(bus, &["set", "board", "kitchen"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(b"21.6\n").unwrap();
    assert!(piped.wait().unwrap().success());
    assert_eq!(said(&run(bus, &["get", "board", "kitchen"])), "21.6\n");
    let all = run(bus, &["get", "board"]);
    assert_eq!(said(&all), "cellar\t12\nkitchen\t21.6\n");
    let json = run(bus, &["get", "board", "cellar", "--json"]);
    assert_eq!(
        said(&json),
        "{\"key\":\"cellar\",\"len\":2,\"data\":\"12\"}\n"
    );
}

#[test]
fn what_is_not_there_or_does_not_fit() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bus = &dir.path().join("bus");
    said(&run(bus, &["set", "board", "kitchen", "21.5"]));
    let refused = |arguments: &[&str], why: &str| {
        let output = run(bus, arguments);
        assert_eq!(output.status.code(), Some(1));
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.contains(why) && line.lines().count() == 1, "{line}");
    };
    refused(
        &["get", "board", "attic"],
        "\"attic\" of board: it was never set",
    );
    refused(&["get", "bord"], "there is no such topic");
    refused(
        &["set", "board", &"k".repeat(65), "1"],
        "the key has 65 bytes",
    );
    refused(
        &["set", "board", "k", &"v".repeat(257)],
        "the value has 257 bytes",
    );
}

#[test]
fn watch_tells_what_there_is_and_what_changes() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bus = &dir.path().join("bus");
    said(&run(bus, &["set", "board", "kitchen", "21.5"]));
    let mut watch = buslane(bus, &["watch", "board"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), "kitchen\t21.5");
    for value in ["1", "2", "3"] {
        said(&run(bus, &["set", "board", "kitchen", value]));
        assert_eq!(next(), format!("kitchen\t{value}"));
    }
    let pid = nix::unistd::Pid::from_raw(watch.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(watch.wait().unwrap().code(), Some(128 + 15));
}
