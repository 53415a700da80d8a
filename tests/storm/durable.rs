//! Durable topics: named subscriptions go on where the dead ones were.

use std::sync::atomic::Ordering::SeqCst;
use std::thread::sleep;
use std::time::Duration;

use buslane::{ErrorKind, Start, Subscriber, SubscriptionBuilder, Topic};

use super::common::check;
use super::ledger::PROCESSES;
use super::process::Process;
use super::pubsub::{History, follow, publish_with, settle};
use super::round::{Pattern, Role};

pub const DURABLE: Pattern = Pattern {
    name: "durable",
    is_durable: true,
    prepare: |process| {
        let topic = topic(process);
        for name in NAMES {
            drop(builder(&topic, name).open().unwrap());
        }
    },
    roles: &[
        Role {
            name: "publisher",
            crowd: (1, 2),
            sends: true,
            act: publish,
        },
        Role {
            name: "subscription by frame",
            crowd: (1, 1),
            sends: false,
            act: |process| receive(process, FRAME),
        },
        Role {
            name: "subscription by ack",
            crowd: (1, 1),
            sends: false,
            act: |process| receive(process, ACK),
        },
        Role {
            name: "subscriber",
            crowd: (0, 1),
            sends: false,
            act: subscribe,
        },
    ],
    settle,
    stays: &["topic", "locks", "subscription.", "lane.", "data."],
};

/// One whose messages are done with when their frames are dropped, and one that says so.
const NAMES: [&str; 2] = ["frame", "ack"];
const FRAME: usize = 0;
const ACK: usize = 1;

fn topic(process: &mut Process) -> Topic {
    process.bus().topic("t").unwrap()
}

fn builder(topic: &Topic, name: &str) -> SubscriptionBuilder {
    let builder = topic.subscription_builder(name).start(Start::Oldest);
    builder.by_ack(name == "ack")
}

fn publish(process: &mut Process) {
    let publisher = topic(process).publisher().unwrap();
    publish_with(process, publisher);
}

fn subscribe(process: &mut Process) {
    let subscriber = topic(process).subscriber().unwrap();
    let history = History::begin(process, false);
    follow(process, subscriber, history);
}

/// Up to where each publisher's messages may be done with, and are: in the ledger's rows of these numbers, which no process has.
fn rows(subscription: usize) -> [u64; 2] {
    let last = PROCESSES as u64 - 1;
    [
        last - 2 * subscription as u64,
        last - 1 - 2 * subscription as u64,
    ]
}

/// Receives for a subscription, whose earlier receivers may have been killed.
fn receive(process: &mut Process, subscription: usize) {
    let topic = topic(process);
    let mut subscriber = loop {
        match builder(&topic, NAMES[subscription]).open() {
            Ok(subscriber) => break subscriber,
            // The one that was killed is just going.
            Err(e) => assert_eq!(e.kind(), ErrorKind::InUse, "{e}"),
        }
        sleep(Duration::from_micros(100));
    };
    process.beat();
    // What follows what this one received.
    let mut next = vec![None; PROCESSES];
    let mut unacked = 0;
    while !process.is_to_leave() {
        let patience =
            Duration::from_micros(process.random.u64(..5000)).max(match process.is_to_drain() {
                true => Duration::from_millis(20),
                false => Duration::ZERO,
            });
        match subscriber.recv_timeout(patience) {
            Ok(Some(frame)) => {
                let (publisher, n) = check(&frame);
                note(process, subscription, &mut next, (publisher, n));
                unacked += 1;
                if subscription == FRAME {
                    done(process, subscription, false, (publisher, n + 1));
                    drop(frame);
                    done(process, subscription, true, (publisher, n + 1));
                }
            }
            Ok(None) if process.is_to_drain() => break,
            Ok(None) => process.beat(),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Ended, "{e}"),
        }
        if subscription == ACK && unacked > process.random.u32(..64) {
            acknowledge(process, &mut subscriber, &next);
            unacked = 0;
        }
    }
    if subscription == ACK {
        acknowledge(process, &mut subscriber, &next);
    }
    if process.is_to_drain() {
        let [done, _] = rows(subscription).map(|row| process.ledger.row(row));
        for (publisher, sent, begun) in process.ledger.senders() {
            let done = done[publisher as usize].load(SeqCst);
            assert!(
                done >= sent && done <= begun,
                "{done} received of {publisher}, which has sent {sent} to {begun}"
            );
        }
    }
}

/// It follows what was received before; the first one after a restart what was acknowledged.
fn note(
    process: &Process,
    subscription: usize,
    next: &mut [Option<u64>],
    (publisher, n): (u64, u64),
) {
    match &mut next[publisher as usize] {
        Some(next) => assert_eq!(n, *next, "{publisher}: {next} was to come"),
        none => {
            let [most, least] = rows(subscription)
                .map(|row| process.ledger.row(row)[publisher as usize].load(SeqCst));
            assert!(
                n >= least && n <= most,
                "{publisher}: {n} comes first after a restart; {least} to {most} were acknowledged"
            );
            *none = Some(n);
        }
    }
    next[publisher as usize] = Some(n + 1);
    process.has_checked();
}

/// Before and after it is said to be done with.
fn done(process: &Process, subscription: usize, is_after: bool, (publisher, next): (u64, u64)) {
    let row = rows(subscription)[usize::from(is_after)];
    process.ledger.row(row)[publisher as usize].fetch_max(next, SeqCst);
}

fn acknowledge(process: &Process, subscriber: &mut Subscriber, next: &[Option<u64>]) {
    let received = || {
        let met = next.iter().zip(0..);
        met.filter_map(|(next, publisher)| Some((publisher, (*next)?)))
    };
    received().for_each(|upto| done(process, ACK, false, upto));
    subscriber.ack().unwrap();
    received().for_each(|upto| done(process, ACK, true, upto));
}
