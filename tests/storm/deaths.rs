//! How soon a death is learnt of: from SIGKILL until somebody who waits for the dead goes on.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::sleep;
use std::time::Duration;

use buslane::ErrorKind;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::pause;

use super::ledger::{self, Ledger};
use super::process::{self, Process, Setup};

/// Somebody dies, and somebody else waits.
struct Case {
    what: &'static str,
    /// Does what the other one waits for the end of, and says when.
    victim: fn(&mut Process),
    /// Waits so often.
    witness: fn(&mut Process),
}

const CASES: [Case; 4] = [
    Case {
        what: "a waiting subscriber is told that the last publisher has ended",
        victim: |process| {
            let mut publisher = process.bus().topic("t").unwrap().publisher().unwrap();
            publisher.send(b"here").unwrap();
            process.say_ready();
            wait_for_death();
        },
        witness: |process| {
            let mut subscriber = process.bus().topic("t").unwrap().subscriber().unwrap();
            process.witness(|_, _| {
                assert_eq!(&*subscriber.recv().unwrap(), b"here");
                assert_eq!(subscriber.recv().unwrap_err().kind(), ErrorKind::Ended);
            });
        },
    },
    Case {
        what: "a publisher that waits for room goes on",
        victim: |process| {
            let mut subscriber = process.bus().topic("t").unwrap().subscriber().unwrap();
            process.beat();
            let _frame = subscriber.recv().unwrap();
            process.beat();
            wait_for_death();
        },
        witness: |process| {
            let mut publisher = process.bus().topic("t").unwrap().publisher().unwrap();
            process.witness(|process, turn| {
                process.wait_for_victim(2 * turn - 1);
                publisher.send(b"held").unwrap();
                process.wait_for_victim(2 * turn);
                while publisher.try_send(&[0; 1000]).is_ok() {}
                process.say_ready();
                publisher.send(&[0; 1000]).unwrap();
            });
        },
    },
    Case {
        what: "a client is told that its server has died",
        victim: |process| {
            let mut server = process.bus().service("t").unwrap().server().unwrap();
            process.beat();
            let _request = server.recv().unwrap();
            process.say_ready();
            wait_for_death();
        },
        witness: |process| {
            let service = process.bus().service("t").unwrap();
            let mut client = service.client().unwrap();
            process.witness(|process, turn| {
                process.wait_for_victim(turn);
                let error = client.call(b"?").unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ServerDied);
            });
        },
    },
    Case {
        what: "a consumer is given what a dead one held",
        victim: |process| {
            let mut consumer = process.bus().queue("t").unwrap().consumer().unwrap();
            let _delivery = consumer.recv().unwrap();
            process.say_ready();
            wait_for_death();
        },
        witness: |process| {
            let queue = process.bus().queue("t").unwrap();
            let mut producer = queue.producer().unwrap();
            let mut consumer = queue.consumer().unwrap();
            process.witness(|process, _| {
                producer.push(b"job").unwrap();
                process.wait_until_ready();
                consumer.recv().unwrap().ack().unwrap();
            });
        },
    },
];

fn wait_for_death() {
    loop {
        pause();
    }
}

/// The ledger's row of this number, which no process has.
const NOTES: u64 = 0;
const WITNESS: u64 = 1;
const VICTIM: u64 = 2;
/// The last turn in which all is ready for the death.
const READY: usize = 0;
/// The turn that is on.
const TURN: usize = 1;
/// The last turn whose death was learnt of.
const LEARNT: usize = 2;
/// When that was, in nanoseconds.
const LEARNT_NS: usize = 3;

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    Duration::from(now).as_nanos() as u64
}

/// Waits without a wake-up, which would be part of what is measured.
fn until(word: &AtomicU64, turn: u64) {
    while word.load(SeqCst) < turn {
        sleep(Duration::from_micros(100));
    }
}

impl Process<'_> {
    fn note(&self, which: usize) -> &AtomicU64 {
        &self.ledger.row(NOTES)[which]
    }

    fn say_ready(&self) {
        self.note(READY).store(self.note(TURN).load(SeqCst), SeqCst);
    }

    /// How far the victims have come, all together. (What the bus says of who is there may still be true of the last one.)
    fn wait_for_victim(&self, beats: u64) {
        until(&self.ledger.card(VICTIM).beats, beats);
    }

    fn wait_until_ready(&self) {
        until(self.note(READY), self.note(TURN).load(SeqCst));
    }

    /// Waits for one death after the other.
    fn witness(&self, mut learn: impl FnMut(&Self, u64)) {
        // It has joined.
        self.beat();
        for turn in 1.. {
            until(self.note(TURN), turn);
            learn(self, turn);
            self.note(LEARNT_NS).store(now_ns(), SeqCst);
            self.note(LEARNT).store(turn, SeqCst);
        }
    }
}

/// Measures each case so often.
pub fn measure(times: u64) {
    for case in CASES {
        let mut map = ledger::map();
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut took_us = measure_one(&case, Ledger::of(&mut map), &dir.path().join("bus"), times);
        took_us.sort_unstable();
        println!(
            "{}: median {} us, p99 {} us, most {} us, of {times}",
            case.what,
            took_us[took_us.len() / 2],
            took_us[took_us.len() * 99 / 100],
            took_us[took_us.len() - 1]
        );
    }
}

fn measure_one(case: &Case, ledger: &Ledger, path: &Path, times: u64) -> Vec<u64> {
    let setup = Setup {
        capacity: 4096,
        is_durable: false,
    };
    let fork = |number, name, act| {
        process::fork(Process::new(number, ledger, setup, path, number), name, act)
    };
    let notes = ledger.row(NOTES);
    let witness = fork(WITNESS, "witness", case.witness);
    until(&ledger.card(WITNESS).beats, 1);
    let took_us = (1..=times).map(|turn| {
        notes[TURN].store(turn, SeqCst);
        let victim = fork(VICTIM, "victim", case.victim);
        until(&notes[READY], turn);
        // The one that waits falls asleep.
        sleep(Duration::from_millis(5));
        let killed_ns = now_ns();
        kill(victim, Signal::SIGKILL).unwrap();
        until(&notes[LEARNT], turn);
        waitpid(victim, None).unwrap();
        (notes[LEARNT_NS].load(SeqCst) - killed_ns) / 1000
    });
    let took_us = took_us.collect();
    kill(witness, Signal::SIGKILL).unwrap();
    waitpid(witness, None).unwrap();
    took_us
}
