//! Processes in other namespaces around one bus, in the place of others (`exec`), and with other clocks.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use buslane::{Bus, CallOptions, ErrorKind, WaitStrategy};

use crate::common::{PATIENCE, Process, hear, names, private, role, say};
use crate::operations::{OPERATIONS, Scene};
use crate::witness::Witness;

mod child {
    use super::*;
    use std::os::unix::process::CommandExt;

    /// Sends back what it receives, asleep in between.
    #[test]
    fn echoing() {
        let Some((path, _)) = role() else { return };
        let bus = Bus::builder().wait(WaitStrategy::Sleep).at(path).unwrap();
        let mut there = bus.topic("there").unwrap().subscriber().unwrap();
        let mut back = bus.topic("back").unwrap().publisher().unwrap();
        say("ready");
        loop {
            match there.recv() {
                Ok(frame) => back.send(&frame).unwrap(),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Ended);
                    back.send(b"ended").unwrap();
                }
            }
        }
    }

    #[test]
    fn serving() {
        let Some((path, _)) = role() else { return };
        let mut server = Bus::at(path)
            .unwrap()
            .service("s")
            .unwrap()
            .server()
            .unwrap();
        say("ready");
        loop {
            let request = server.recv().unwrap();
            let _ = request.reply(b"!");
        }
    }

    #[test]
    fn setting() {
        let Some((path, _)) = role() else { return };
        let board = Bus::at(path).unwrap().state("s.state").unwrap();
        let mut writer = board.writer().unwrap();
        writer.set(b"key", b"theirs").unwrap();
        writer.set(b"another", b"theirs").unwrap();
        say("set");
        let _ = hear();
    }

    /// Joins, then has another program run by a child, or in its place.
    #[test]
    fn executing() {
        let Some((path, how)) = role() else { return };
        let topic = Bus::at(path).unwrap().topic("t").unwrap();
        let mut publisher = topic.publisher().unwrap();
        let _subscriber = topic.subscriber().unwrap();
        publisher.send(b"before").unwrap();
        let mut program = Command::new("sleep");
        program
            .arg("1000")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if how == "in its place" {
            say(std::process::id());
            panic!("{}", program.exec());
        }
        say(program.spawn().unwrap().id());
        let _ = hear();
    }

    /// Sends once, and waits to be killed.
    #[test]
    fn sending_once() {
        let Some((path, _)) = role() else { return };
        let topic = Bus::at(path).unwrap().topic("there").unwrap();
        let mut publisher = topic.publisher().unwrap();
        publisher.send(b"once").unwrap();
        say("sent");
        let _ = hear();
    }

    /// Does one operation, whose name is the argument.
    #[test]
    fn doing() {
        let Some((path, name)) = role() else { return };
        let scene = Scene {
            dir: path.parent().unwrap(),
            patience: PATIENCE,
            begin: &|| {},
        };
        let now = || {
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap()
        };
        let jumps = (0..100).map(|_| now()).is_sorted();
        assert!(!jumps, "the clock does not jump");
        let operation = OPERATIONS.iter().find(|one| one.name == name).unwrap();
        (operation.run)(&scene).unwrap();
    }
}

/// Starts a role by a program that is given these arguments. `None`: it can't, and a person is told.
fn start_by(program: &[&str], path: &Path, test: &str) -> Option<Process> {
    let mut command = Command::new(program[0]);
    command
        .args(&program[1..])
        .arg(std::env::current_exe().unwrap());
    let test = format!("elsewhere::child::{test}");
    let mut process = Process::start_by(&mut command, path, &test, "");
    match process.try_hear() {
        Some(_) => Some(process),
        None => {
            crate::common::skipped(&format!("{} is not allowed here", program.join(" ")));
            None
        }
    }
}

/// Sends and receives by way of an echo, each asleep until the other has sent; then one dies here, and one there.
fn send_and_die(path: &Path, mut echo: Process) {
    let bus = Bus::builder().wait(WaitStrategy::Sleep).at(path).unwrap();
    let mut there = bus.topic("there").unwrap().publisher().unwrap();
    let mut back = bus.topic("back").unwrap().subscriber().unwrap();
    let mut comes_back = |what: &[u8]| {
        let frame = back.recv_timeout(PATIENCE).unwrap();
        assert_eq!(&*frame.expect("it comes back"), what);
    };
    for n in 0..200_u32 {
        there.send(&n.to_le_bytes()).unwrap();
        comes_back(&n.to_le_bytes());
    }
    drop(there);
    comes_back(b"ended");
    let mut dying = Process::start(path, "elsewhere::child::sending_once", "");
    dying.hear();
    comes_back(b"once");
    dying.kill();
    comes_back(b"ended");
    echo.kill();
    let ended = back.recv_timeout(PATIENCE).map(|frame| frame.is_some());
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Ended);
    drop((back, bus));
    // Who comes next finds nothing of it.
    drop(Bus::at(path).unwrap());
    assert!(names(&path.join("members")).is_empty());
    for topic in ["there", "back"] {
        assert_eq!(names(&path.join("topics").join(topic)), ["locks", "topic"]);
    }
}

/// In a shell: mounts the bus elsewhere, too, and runs the rest.
const ELSEWHERE: &str = r#"mount --bind "$0" "$1" && shift && exec "$@""#;

fn in_namespaces(which: &str) {
    let private = private();
    drop(private.bus());
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    let (from, to) = (
        private.path.to_str().unwrap(),
        other.path().to_str().unwrap(),
    );
    let program = [
        "unshare",
        which,
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        ELSEWHERE,
        from,
        to,
    ];
    if let Some(echo) = start_by(&program, other.path(), "echoing") {
        send_and_die(&private.path, echo);
    }
}

#[test]
fn in_namespaces_of_processes_and_mounts() {
    in_namespaces("-pm");
}

#[test]
fn in_a_namespace_of_users() {
    in_namespaces("-Urpm");
}

/// In a shell: has no inotify any more, and runs the rest.
const DEAF: &str = r#"echo 0 >/proc/sys/user/max_inotify_instances && exec "$0" "$@""#;

#[test]
fn without_inotify() {
    let private = private();
    drop(private.bus());
    let program = ["unshare", "-Ur", "--fork", "--kill-child", "sh", "-c", DEAF];
    if let Some(echo) = start_by(&program, &private.path, "echoing") {
        send_and_die(&private.path, echo);
    }
}

/// Deadlines, and which of two values is newer, are by the monotonic clock, which a container may have another of.
#[test]
fn with_another_monotonic_clock() {
    let private = private();
    let bus = private.bus();
    let ahead = [
        "unshare",
        "--time",
        "--monotonic",
        "100000",
        "--fork",
        "--kill-child",
    ];
    let behind = [
        "unshare",
        "--time",
        "--monotonic",
        "-100",
        "--fork",
        "--kill-child",
    ];
    for clock in [ahead, behind] {
        let Some(server) = start_by(&clock, &private.path, "serving") else {
            return;
        };
        let mut client = bus.service("s").unwrap().client().unwrap();
        // Without a deadline, all is as ever.
        assert_eq!(client.call(b"?").unwrap().unwrap().to_vec(), b"!");
        // With one, it may be over before the server looks. It is no hang, and no reply comes later.
        let options = CallOptions::new().timeout(Duration::from_millis(200));
        match client.call_with(&options, b"?") {
            Ok(reply) => assert_eq!(reply.unwrap().to_vec(), b"!"),
            Err(e) => assert_eq!(e.kind(), ErrorKind::TimedOut),
        }
        assert_eq!(client.call(b"?").unwrap().unwrap().to_vec(), b"!");
        drop(server);
        let board = bus.state("s.state").unwrap();
        let setter = start_by(&clock, &private.path, "setting").unwrap();
        let (mut writer, mut reader) = (board.writer().unwrap(), board.reader().unwrap());
        writer.set(b"key", b"ours").unwrap();
        // That of the clock that is ahead counts.
        let counts: &[u8] = if clock == ahead { b"theirs" } else { b"ours" };
        assert_eq!(reader.get(b"key").unwrap(), Some(counts));
        assert_eq!(reader.get(b"another").unwrap(), Some(&b"theirs"[..]));
        drop((setter, writer, reader));
        bus.remove_topic("s.state", true).unwrap();
    }
    drop(bus);
    private.bus();
    if let Some(echo) = start_by(&ahead, &private.path, "echoing") {
        send_and_die(&private.path, echo);
    }
}

#[test]
fn what_others_execute_keeps_nothing() {
    for how in ["by a child", "in its place"] {
        let private = private();
        let topic = private.bus().topic("t").unwrap();
        let mut subscriber = topic.subscriber().unwrap();
        let role = "elsewhere::child::executing";
        let mut process = Process::start(&private.path, role, how);
        let pid: i32 = process.hear().parse().unwrap();
        assert_eq!(
            &*subscriber.recv_timeout(PATIENCE).unwrap().unwrap(),
            b"before"
        );
        if how == "by a child" {
            let descriptors = format!("/proc/{pid}/fd");
            for fd in names(descriptors.as_ref()) {
                let target = std::fs::read_link(format!("{descriptors}/{fd}"));
                let is_ours = target.is_ok_and(|target| target.starts_with(&private.path));
                assert!(!is_ours, "{fd}");
            }
            process.kill();
        }
        let ended = subscriber
            .recv_timeout(PATIENCE)
            .map(|frame| frame.is_some());
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Ended, "{how}");
        drop((subscriber, topic));
        private.bus();
        assert!(private.names("members").is_empty());
        assert_eq!(private.names("topics/t"), ["locks", "topic"]);
        // SAFETY: a plain system call; what this test has had started, which sleeps.
        unsafe { nix::libc::kill(pid, nix::libc::SIGKILL) };
    }
}

/// The wall clock as somebody sets it again and again: at each look it is another year.
const JUMPING: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    static __thread unsigned seed = 7;
    long done = syscall(SYS_clock_gettime, clock, time);
    if (clock == CLOCK_REALTIME && done == 0)
        time->tv_sec += (rand_r(&seed) % 5 - 2) * 365L * 86400;
    return done;
}
"#;

#[test]
fn while_the_wall_clock_jumps() {
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("jump.c"), dir.path().join("jump.so"));
    std::fs::write(&source, JUMPING).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .status();
    if !compiled.is_ok_and(|status| status.success()) {
        return crate::common::skipped("there is no C compiler here");
    }
    for operation in OPERATIONS {
        let mut witness = Witness::new();
        let mut own = Command::new(std::env::current_exe().unwrap());
        own.env("LD_PRELOAD", &library);
        let (at, role) = (witness.dir().join("bus"), "elsewhere::child::doing");
        Process::start_by(&mut own, &at, role, operation.name).join();
        witness.tidy().unwrap();
    }
}
