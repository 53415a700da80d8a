//! `buslane bridge`: how it finds the program, and what it hands to it.
#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// A command in a directory of its own: what is beside it is known.
fn run(dir: &Path, path: &Path, arguments: &[&str]) -> Output {
    let program = dir.join("buslane");
    if !program.exists() {
        // By another process: a descriptor of ours that can write to it may be in a child that is just being started.
        let copied = Command::new("cp")
            .args([env!("CARGO_BIN_EXE_buslane").as_ref(), program.as_path()])
            .status();
        assert!(copied.unwrap().success());
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", path)
        .env_remove("BUSLANE_BUS");
    command.output().unwrap()
}

/// Says which one it is, its bus, and its arguments.
fn install(dir: &Path, name: &str) {
    let program = dir.join("buslane-bridge-zenoh");
    let script = format!("#!/bin/sh\necho {name} \"$BUSLANE_BUS\" \"$@\"\nexit 7\n");
    let draft = dir.join("draft");
    fs::write(&draft, script).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    // As in `run`.
    let copied = Command::new("cp").args([&draft, &program]).status();
    assert!(copied.unwrap().success());
}

#[test]
fn without_the_program_it_says_how_to_build_it() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), dir.path(), &["bridge", "zenoh", "**"]);
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.contains("cargo install --path bridge"), "{line}");
    assert_eq!(line.lines().count(), 1);
}

#[test]
fn it_becomes_the_program_beside_it_or_in_the_path() {
    let (dir, path) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, path) = (dir.path(), path.path());
    install(path, "found");
    let arguments = [
        "--bus", "x", "--json", "bridge", "zenoh", "--help", "a/*", "--bus", "y",
    ];
    let output = run(dir, path, &arguments);
    assert_eq!(output.status.code(), Some(7));
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "found x --json --help a/* --bus y\n");
    install(dir, "beside");
    let output = run(dir, path, &["--durable", "bridge", "zenoh"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "beside default --durable\n");
}
