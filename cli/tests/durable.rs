//! Durable buses, as a shell uses them.
#![allow(missing_docs)]

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn run(bus: &Path, arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_buslane"))
        .arg("--bus")
        .arg(bus)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without reading it.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    str::from_utf8(&output.stdout).unwrap()
}

fn complained(output: &Output, why: &str) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    let all = String::from_utf8(all).unwrap();
    assert!(all.contains(why), "{all}");
}

#[test]
fn what_is_sent_waits_for_who_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let bus = &dir.path().join("bus");
    said(&run(bus, &["send", "orders", "--durable"], "one\ntwo\n"));
    let recv = [
        "recv",
        "orders",
        "--subscription",
        "billing",
        "--from",
        "oldest",
    ];
    assert_eq!(said(&run(bus, &recv, "")), "one\ntwo\n");
    said(&run(bus, &["send", "orders"], "three\n"));
    assert_eq!(said(&run(bus, &recv, "")), "three\n");
    said(&run(bus, &["push", "jobs"], "7.png\n"));
    assert_eq!(
        said(&run(bus, &["work", "jobs", "--drain", "--", "cat"], "")),
        "7.png"
    );
    let inspected = run(bus, &["inspect", "orders"], "");
    assert!(
        said(&inspected).contains("subscription billing, away"),
        "{inspected:?}"
    );
    let json = run(bus, &["inspect", "orders", "--json"], "");
    for part in [
        "\"durable\":{\"sync\":\"when asked\"",
        "\"unsynced\":0",
        "\"subscription\":\"billing\"",
    ] {
        assert!(said(&json).contains(part), "{json:?}");
    }
    said(&run(bus, &["doctor", "--deep"], ""));
    said(&run(
        bus,
        &["rm", "orders", "--subscription", "billing"],
        "",
    ));
    complained(
        &run(bus, &["rm", "orders", "--subscription", "billing"], ""),
        "there is no such subscription",
    );
}

#[test]
fn the_abandoned_and_the_damaged_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let bus = &dir.path().join("bus");
    let send = ["send", "orders", "--durable", "--capacity", "4KiB"];
    said(&run(bus, &send, "the first\n"));
    let recv = [
        "recv",
        "orders",
        "--subscription",
        "billing",
        "--from",
        "oldest",
    ];
    assert_eq!(said(&run(bus, &recv, "")), "the first\n");
    let lines: String = (0..1000).map(|n| format!("order {n}\n")).collect();
    said(&run(bus, &send, &lines));
    complained(
        &run(bus, &["doctor"], ""),
        "nobody receives as billing from orders: 1000 messages wait for it",
    );
    let names = std::fs::read_dir(bus.join("topics/orders")).unwrap();
    let second = names
        .map(|name| name.unwrap().path())
        .find(|path| path.to_str().unwrap().ends_with(".1"));
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(second.unwrap())
        .unwrap();
    file.write_all_at(b"X", 4096 + 12).unwrap();
    complained(
        &run(bus, &["doctor", "--deep"], ""),
        "is not as it was written",
    );
    let recv = ["recv", "orders", "--subscription", "billing"];
    complained(&run(bus, &recv, ""), "is not as it was written");
    let skipped = run(
        bus,
        &[
            "recv",
            "orders",
            "--subscription",
            "billing",
            "--skip-damaged",
        ],
        "",
    );
    assert!(said(&skipped).ends_with("order 999\n"));
    let told = String::from_utf8(skipped.stderr).unwrap();
    assert!(told.contains("passed 1 messages"), "{told}");
}

#[test]
fn mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let bus = &dir.path().join("bus");
    said(&run(bus, &["send", "t", "--no-wait"], "one\n"));
    complained(
        &run(bus, &["send", "t", "--durable"], "one\n"),
        "not as a durable one",
    );
    complained(
        &run(bus, &["recv", "t", "--subscription", "s"], ""),
        "the bus is not durable",
    );
    complained(
        &run(bus, &["recv", "t", "u", "--subscription", "s"], ""),
        "several topics",
    );
    let output = Command::new(env!("CARGO_BIN_EXE_buslane"))
        .args(["send", "t", "--durable", "--bus", "name"])
        .env_remove("BUSLANE_DIR")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    complained(&output, "which is lost with the machine");
}
