//! Files of another layout version, while everything is in use: they are refused, or passed over, and neither changed nor removed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use buslane::{Bus, Error, ErrorKind, Result, Start};

use crate::common::{PATIENCE, Process, names, private};
use crate::operations::{dying, message, small};

/// Where each kind of file is: a directory of the bus, and how its name begins.
const KINDS: [(&str, &str); 11] = [
    ("", "bus"),
    ("members", ""),
    ("topics/t", "topic"),
    ("topics/t", "lane."),
    ("topics/t", "cursor."),
    ("topics/q", "group."),
    ("topics/q", "claims."),
    ("topics/q", "lane."),
    ("topics/board", "table."),
    ("topics/t", "data."),
    ("topics/t", "subscription."),
];

mod child {
    use super::*;
    use crate::common::role;

    /// Dies with one of everything in hand.
    #[test]
    fn leaving_one_of_everything() {
        let Some((path, argument)) = role() else {
            return;
        };
        let (durable, name) = argument.split_once(' ').unwrap();
        dying(|| use_all(&path, durable == "true", name).unwrap());
    }
}

/// Joins everything, and keeps it.
fn use_all(path: &Path, durable: bool, name: &str) -> Result<impl Sized + use<>> {
    let bus = small().durable(durable).at(path)?;
    let (topic, queue, board) = (bus.topic("t")?, bus.queue("q")?, bus.state("board")?);
    let subscription = match durable {
        true => Some(topic.subscription(name)?),
        false => None,
    };
    let (mut publisher, subscriber) = (topic.publisher()?, topic.subscriber()?);
    publisher.send(&message(0))?;
    let (mut producer, mut consumer) = (queue.producer()?, queue.consumer()?);
    producer.push(&message(0))?;
    let held = consumer.recv()?;
    let (mut writer, reader) = (board.writer()?, board.reader()?);
    writer.set(b"key", b"value")?;
    Ok((
        (bus, publisher, subscriber, subscription),
        (producer, consumer, held),
        (writer, reader),
    ))
}

/// Does with a bus all that may come upon any of its files. What it was refused.
fn come_upon_all(path: &Path) -> Vec<Error> {
    let mut refused = Vec::new();
    let mut note = |error: Option<Error>| refused.extend(error);
    let bus = match Bus::at(path) {
        Ok(bus) => bus,
        Err(e) => return vec![e],
    };
    note(bus.reclaim().err());
    for name in ["t", "q", "board"] {
        note(bus.inspect(name).err());
    }
    match bus.topic("t") {
        Err(e) => note(Some(e)),
        Ok(topic) => {
            note(topic.publisher().and_then(|mut p| p.try_send(b"x")).err());
            note(topic.subscriber_from(Start::Oldest).map(drop).err());
            if bus.is_durable() {
                note(
                    topic
                        .subscription("s")
                        .and_then(|mut s| s.try_recv().map(drop))
                        .err(),
                );
            }
        }
    }
    match bus.queue("q") {
        Err(e) => note(Some(e)),
        Ok(queue) => {
            note(queue.producer().and_then(|mut p| p.try_push(b"x")).err());
            note(
                queue
                    .consumer()
                    .and_then(|mut c| c.try_recv().map(drop))
                    .err(),
            );
        }
    }
    match bus.state("board") {
        Err(e) => note(Some(e)),
        Ok(board) => {
            note(board.writer().and_then(|mut w| w.set(b"a", b"b")).err());
            note(
                board
                    .reader()
                    .and_then(|mut r| r.get(b"key").map(drop))
                    .err(),
            );
        }
    }
    note(bus.reclaim().err());
    refused
}

/// Has a file of that kind say that it is of version 2.
fn make_newer(path: &Path, (dir, prefix): (&str, &str)) -> Option<PathBuf> {
    let dir = path.join(dir);
    let name = names(&dir)
        .into_iter()
        .find(|name| name.starts_with(prefix))?;
    let at = dir.join(name);
    let file = fs::OpenOptions::new().write(true).open(&at).unwrap();
    file.write_all_at(&2_u32.to_le_bytes(), 8).unwrap();
    Some(at)
}

/// Whether there is such a file, which is then passed over, or refused.
fn is_left_alone(kind: (&str, &str), durable: bool, is_in_use: bool) -> bool {
    let private = private();
    let path = &private.path;
    let used = is_in_use.then(|| use_all(path, durable, "s").unwrap());
    let role = "versions::child::leaving_one_of_everything";
    Process::start(path, role, &format!("{durable} another")).join();
    if is_in_use {
        // Who uses it puts away the dead soon: not while a file that it has found to be of this version becomes another's.
        let began = Instant::now();
        while names(&path.join("members")).len() > 1 {
            assert!(began.elapsed() < PATIENCE, "the dead stay");
            thread::sleep(Duration::from_millis(1));
        }
    }
    let Some(at) = make_newer(path, kind) else {
        return false;
    };
    let before = fs::read(&at).unwrap();
    let refused = come_upon_all(path);
    let what = format!("{kind:?}, durable: {durable}, in use: {is_in_use}: {refused:?}");
    assert_eq!(fs::read(&at).ok(), Some(before), "{what}");
    for e in refused.iter().filter(|e| e.kind() == ErrorKind::Version) {
        let text = e.to_string();
        assert!(
            text.contains("version is 2") && text.contains("is 1"),
            "{text}"
        );
    }
    if ["bus", "topic"].contains(&kind.1) {
        let is_said = refused.iter().any(|e| e.kind() == ErrorKind::Version);
        assert!(is_said, "{what}");
    }
    drop(used);
    true
}

#[test]
fn files_of_another_version_are_left_alone() {
    let seen = thread::scope(|scope| {
        let mut all = Vec::new();
        for kind in KINDS {
            for (durable, in_use) in [(false, false), (false, true), (true, false), (true, true)] {
                all.push(scope.spawn(move || is_left_alone(kind, durable, in_use)));
            }
        }
        let seen = all
            .into_iter()
            .filter_map(|one| one.join().unwrap().then_some(()));
        seen.count()
    });
    assert_eq!(seen, 40);
}
