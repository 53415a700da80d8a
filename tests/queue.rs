//! Work queues: in one process, and between real ones that are killed.

mod common;

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use buslane::{Bus, Consumer, DeadLetter, Delivery, ErrorKind, Producer, Queue};
use common::{PATIENCE, block_on, private, role, say};

fn queue(private: &common::Private) -> Queue {
    private.bus().queue("jobs").unwrap()
}

fn next(consumer: &mut Consumer) -> Delivery {
    consumer
        .recv_timeout(PATIENCE)
        .unwrap()
        .expect("a delivery")
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

fn push(producer: &mut Producer, n: u64) {
    producer.push(&n.to_le_bytes()).unwrap();
}

// ------------------------------------------------------------------------------------------------------ one process

#[test]
fn a_queue_has_fewer_claims_than_sequence_numbers() {
    let private = private();
    let bus = private.bus();
    let error = bus.queue_builder("q").capacity(1 << 36).open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidCapacity, "{error}");
    assert!(bus.topics().unwrap().is_empty());
}

#[test]
fn what_is_pushed_before_the_first_consumer_waits_for_it() {
    let private = private();
    let queue = queue(&private);
    for producer in 0..3 {
        let mut producer_of = queue.producer().unwrap();
        for n in 0..100 {
            push(&mut producer_of, producer * 100 + n);
        }
    }
    let mut consumer = queue.consumer().unwrap();
    let got: Vec<u64> = (0..300)
        .map(|_| {
            let delivery = next(&mut consumer);
            let n = number(&delivery);
            assert_eq!(delivery.attempts(), 1);
            delivery.ack().unwrap();
            n
        })
        .collect();
    assert_eq!(got, (0..300).collect::<Vec<_>>());
    assert!(consumer.try_recv().unwrap().is_none());
    assert!(consumer.is_empty().unwrap());
    // Nothing is left but what belongs to the queue.
    assert_eq!(
        consumer
            .recv_timeout(Duration::from_millis(1))
            .unwrap()
            .map(|_| ()),
        None
    );
    drop(consumer);
    assert_eq!(
        private.names("topics/jobs"),
        ["group.default", "locks", "topic"]
    );
}

#[test]
fn each_message_goes_to_one_consumer() {
    const N: u64 = 20_000;
    let private = private();
    let queue = queue(&private);
    let consumers: Vec<_> = (0..3).map(|_| queue.consumer().unwrap()).collect();
    let threads: Vec<_> = consumers
        .into_iter()
        .map(|mut consumer| {
            thread::spawn(move || {
                let mut got = Vec::new();
                loop {
                    let delivery = next(&mut consumer);
                    let n = number(&delivery);
                    delivery.ack().unwrap();
                    if n == u64::MAX {
                        return got;
                    }
                    got.push(n);
                }
            })
        })
        .collect();
    let producers: Vec<_> = (0..2)
        .map(|p| {
            let mut producer = queue.producer().unwrap();
            thread::spawn(move || {
                for n in 0..N {
                    push(&mut producer, p * N + n);
                }
            })
        })
        .collect();
    for producer in producers {
        producer.join().unwrap();
    }
    let mut producer = queue.producer().unwrap();
    for _ in 0..3 {
        push(&mut producer, u64::MAX);
    }
    let mut all: Vec<u64> = threads
        .into_iter()
        .flat_map(|t| t.join().unwrap())
        .collect();
    // There is no order between producers: the last one's messages may have ended all three before the others' were through.
    let mut rest = queue.consumer().unwrap();
    while let Some(delivery) = rest.try_recv().unwrap() {
        all.push(number(&delivery));
        delivery.ack().unwrap();
    }
    all.sort_unstable();
    assert!(all.into_iter().eq(0..2 * N), "lost, or delivered twice");
}

#[test]
fn deliveries_are_acknowledged_in_any_order_from_other_threads() {
    let private = private();
    let queue = queue(&private);
    let mut consumer = queue.consumer().unwrap();
    let mut producer = queue.producer().unwrap();
    for round in 0..200 {
        for n in 0..10 {
            push(&mut producer, round * 10 + n);
        }
        let held: Vec<Delivery> = (0..10).map(|_| next(&mut consumer)).collect();
        assert!(consumer.try_recv().unwrap().is_none());
        let numbers: Vec<u64> = held.iter().map(|held| number(held)).collect();
        assert_eq!(numbers, (round * 10..round * 10 + 10).collect::<Vec<_>>());
        let (odd, even): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|held| number(held) % 2 == 1);
        let other = thread::spawn(move || {
            for held in odd.into_iter().rev() {
                held.ack().unwrap();
            }
        });
        for held in even {
            held.ack().unwrap();
        }
        other.join().unwrap();
        assert!(consumer.is_empty().unwrap());
    }
}

#[test]
fn a_dropped_delivery_goes_to_another() {
    let private = private();
    let queue = queue(&private);
    let mut one = queue.consumer().unwrap();
    let mut two = queue.consumer().unwrap();
    let mut producer = queue.producer().unwrap();
    push(&mut producer, 7);
    let delivery = next(&mut one);
    assert!(two.try_recv().unwrap().is_none());
    // Wakes a sleeper.
    let other = thread::spawn(move || {
        let delivery = next(&mut two);
        assert_eq!((number(&delivery), delivery.attempts()), (7, 2));
        delivery.ack().unwrap();
    });
    thread::sleep(Duration::from_millis(20));
    drop(delivery);
    other.join().unwrap();
    assert!(one.is_empty().unwrap());
}

#[test]
fn a_consumer_that_leaves_keeps_what_it_holds() {
    let private = private();
    let queue = queue(&private);
    let mut one = queue.consumer().unwrap();
    let mut two = queue.consumer().unwrap();
    push(&mut queue.producer().unwrap(), 7);
    let delivery = next(&mut one);
    drop(one);
    assert!(two.try_recv().unwrap().is_none());
    assert_eq!(number(&delivery), 7);
    delivery.ack().unwrap();
    assert!(two.is_empty().unwrap());
}

#[test]
fn groups_get_everything_from_when_they_are_made() {
    let private = private();
    let queue = queue(&private);
    let mut producer = queue.producer().unwrap();
    let mut first = queue.consumer().unwrap();
    for n in 0..1000 {
        push(&mut producer, n);
        next(&mut first).ack().unwrap();
    }
    push(&mut producer, 1000);
    let mut late = queue.consumer_builder().group("late/ones").open().unwrap();
    push(&mut producer, 1001);
    let mut newer = queue.producer().unwrap();
    push(&mut newer, 1002);
    for n in 1000..1003 {
        let delivery = next(&mut first);
        assert_eq!(number(&delivery), n);
        delivery.ack().unwrap();
    }
    for n in 1001..1003 {
        let delivery = next(&mut late);
        assert_eq!(number(&delivery), n);
        delivery.ack().unwrap();
    }
    assert!(late.try_recv().unwrap().is_none());
}

#[test]
fn a_group_holds_the_producer_back_until_it_is_removed() {
    let private = private();
    let bus = private.bus();
    let queue = bus.queue_builder("jobs").capacity(4096).open().unwrap();
    drop(queue.consumer_builder().group("idle").open().unwrap());
    let mut busy = queue.consumer().unwrap();
    let mut producer = queue.producer().unwrap();
    while producer.try_push(&[1; 100]).is_ok() {}
    while let Some(delivery) = busy.try_recv().unwrap() {
        delivery.ack().unwrap();
    }
    let full = producer.try_push(&[1; 100]).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Full);
    let waiting = thread::spawn(move || producer.push_timeout(&[2; 100], PATIENCE));
    thread::sleep(Duration::from_millis(20));
    queue.remove_group("idle", false).unwrap();
    waiting.join().unwrap().unwrap();
    assert_eq!(next(&mut busy)[..], [2; 100]);
    let in_use = queue.remove_group("default", false).unwrap_err();
    assert_eq!(in_use.kind(), ErrorKind::InUse);
    assert_eq!(
        queue.remove_group("idle", false).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    queue.remove_group("default", true).unwrap();
    assert_eq!(busy.recv().unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_full_queue_waits_for_its_oldest_message() {
    let private = private();
    let bus = private.bus();
    let queue = bus.queue_builder("jobs").capacity(4096).open().unwrap();
    let mut producer = queue.producer().unwrap();
    let mut pushed = 0;
    while producer.try_push(&[0; 1000]).is_ok() {
        pushed += 1;
    }
    let late = producer
        .push_timeout(&[0; 1000], Duration::from_millis(10))
        .unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    assert_eq!(
        producer.push(&[0; 4000]).unwrap_err().kind(),
        ErrorKind::TooLong
    );
    let mut consumer = queue.consumer().unwrap();
    let oldest = next(&mut consumer);
    for _ in 1..pushed {
        next(&mut consumer).ack().unwrap();
    }
    // Only the oldest holds it up.
    assert_eq!(
        producer.try_push(&[0; 1000]).unwrap_err().kind(),
        ErrorKind::Full
    );
    let waiting = thread::spawn(move || producer.push(&[9; 1000]));
    thread::sleep(Duration::from_millis(20));
    assert_eq!(oldest[..], [0; 1000]);
    oldest.ack().unwrap();
    waiting.join().unwrap().unwrap();
    assert_eq!(next(&mut consumer)[..], [9; 1000]);
}

#[test]
fn batches_are_acknowledged_together_or_given_back() {
    let private = private();
    let queue = queue(&private);
    let mut consumer = queue.consumer().unwrap();
    let mut producer = queue.producer().unwrap();
    producer
        .push_batch((0..100_u64).map(u64::to_le_bytes))
        .unwrap();
    let batch = consumer.recv_batch(60).unwrap();
    assert_eq!(batch.len(), 60);
    batch.ack_all().unwrap();
    let mut rest = consumer.recv_batch(60).unwrap().into_each();
    let delivery = rest.next().unwrap();
    assert_eq!(number(&delivery), 60);
    delivery.ack().unwrap();
    drop(rest);
    let again = consumer.try_recv_batch(60).unwrap().unwrap();
    assert_eq!(
        again.iter().map(number).collect::<Vec<_>>(),
        (61..100).collect::<Vec<_>>()
    );
    again.ack_all().unwrap();
    assert!(consumer.try_recv_batch(60).unwrap().is_none());
    assert!(consumer.is_empty().unwrap());
}

/// A request that was cancelled, in the hands of one that hangs, does not hold up the rest.
#[test]
fn a_lease_ends_what_was_cancelled() {
    let private = private();
    let bus = private.bus();
    let client = bus.service("s").unwrap().client().unwrap();
    let queue = bus
        .queue_builder("s")
        .capacity(buslane::DEFAULT_SERVICE_CAPACITY);
    let queue = queue.open().unwrap();
    let open = || {
        let builder = queue.consumer_builder().lease(Duration::from_millis(30));
        builder.open().unwrap()
    };
    let (mut hanging, mut other) = (open(), open());
    let pending = client.start(b"?").unwrap();
    let held = hanging.recv().unwrap();
    drop(pending);
    assert!(!other.is_empty().unwrap());
    let until = Instant::now() + PATIENCE;
    while !other.is_empty().unwrap() {
        assert!(Instant::now() < until, "it still holds it");
        let next = other.recv_timeout(Duration::from_millis(10)).unwrap();
        assert!(next.is_none());
    }
    assert_eq!(held.ack().unwrap_err().kind(), ErrorKind::LeaseLost);
}

#[test]
fn a_lease_that_runs_out_gives_the_message_to_another() {
    let private = private();
    let queue = queue(&private);
    let lease = Duration::from_millis(30);
    let open = || queue.consumer_builder().lease(lease).open().unwrap();
    let (mut slow, mut other) = (open(), open());
    let mut producer = queue.producer().unwrap();
    push(&mut producer, 7);
    let began = Instant::now();
    let held = next(&mut slow);
    let again = next(&mut other);
    assert!(began.elapsed() >= lease);
    assert_eq!((number(&again), again.attempts()), (7, 2));
    again.ack().unwrap();
    // It is a copy: nothing tears it, whatever is pushed meanwhile.
    for n in 0..10_000 {
        push(&mut producer, n);
        next(&mut other).ack().unwrap();
    }
    assert_eq!(number(&held), 7);
    assert_eq!(held.ack().unwrap_err().kind(), ErrorKind::LeaseLost);
    assert!(other.is_empty().unwrap());
    // Too late to be rejected, put off or given back, either.
    push(&mut producer, 8);
    let held = next(&mut slow);
    next(&mut other).ack().unwrap();
    assert_eq!(
        held.reject("late").unwrap_err().kind(),
        ErrorKind::LeaseLost
    );
    assert!(other.is_empty().unwrap());
    assert_eq!(private.bus().topics().unwrap(), ["jobs"]);
}

#[test]
fn a_message_that_is_never_acknowledged_becomes_a_dead_letter() {
    let private = private();
    let queue = queue(&private);
    let mut consumer = queue.consumer_builder().max_attempts(3).open().unwrap();
    let mut producer = queue.producer().unwrap();
    push(&mut producer, 7);
    for attempt in 1..=3 {
        let delivery = next(&mut consumer);
        assert_eq!(delivery.attempts(), attempt);
        drop(delivery);
    }
    push(&mut producer, 8);
    let delivery = next(&mut consumer);
    assert_eq!(number(&delivery), 8);
    delivery.reject("no").unwrap();
    assert!(consumer.try_recv().unwrap().is_none());
    assert!(consumer.is_empty().unwrap());
    let mut dead = private
        .bus()
        .queue("jobs.dead")
        .unwrap()
        .consumer()
        .unwrap();
    for (n, attempts, reason) in [(7, 3, "delivered 3 times"), (8, 1, "no")] {
        let bytes = next(&mut dead);
        let letter = DeadLetter::parse(&bytes).unwrap();
        assert_eq!(number(letter.payload), n);
        assert!(letter.reason.contains(reason), "{letter:?}");
        assert_eq!((letter.queue, letter.group), ("jobs", "default"));
        assert!(letter.attempts.abs_diff(attempts) <= 1, "{letter:?}");
        for cut in 0..bytes.len() {
            assert_eq!(
                DeadLetter::parse(&bytes[..cut]).unwrap_err().kind(),
                ErrorKind::Corrupt
            );
        }
        bytes.ack().unwrap();
    }
}

#[test]
fn dead_letters_that_were_removed_begin_anew() {
    let private = private();
    let queue = queue(&private);
    let mut consumer = queue.consumer().unwrap();
    let mut producer = queue.producer().unwrap();
    for n in 0..2 {
        push(&mut producer, n);
        next(&mut consumer).reject("no").unwrap();
        let letters = private.bus().queue("jobs.dead").unwrap();
        let mut dead = letters.consumer().unwrap();
        let letter = next(&mut dead);
        assert_eq!(number(DeadLetter::parse(&letter).unwrap().payload), n);
        letter.ack().unwrap();
        private.bus().remove_topic("jobs.dead", true).unwrap();
    }
}

#[test]
fn a_dead_letter_that_cannot_be_written_stays_where_it_is() {
    let private = private();
    let queue = queue(&private);
    // Of another kind: it can't be written as a queue.
    let topic = private.bus().topic("events").unwrap();
    let builder = || queue.consumer_builder().max_attempts(1);
    let mut consumer = builder().dead_letter("events").open().unwrap();
    let mut producer = queue.producer().unwrap();
    push(&mut producer, 7);
    push(&mut producer, 8);
    let delivery = next(&mut consumer);
    assert_eq!(
        delivery.reject("no").unwrap_err().kind(),
        ErrorKind::Mismatch
    );
    // It is due for it anyway, now; the others come meanwhile.
    assert_eq!(consumer.try_recv().unwrap_err().kind(), ErrorKind::Mismatch);
    let other = next(&mut consumer);
    assert_eq!(number(&other), 8);
    other.ack().unwrap();
    assert!(!consumer.is_empty().unwrap());
    // Once it can be written, it is.
    private.bus().remove_topic("events", false).unwrap();
    drop(topic);
    assert!(
        consumer
            .recv_timeout(Duration::from_millis(1500))
            .unwrap()
            .is_none()
    );
    assert!(consumer.is_empty().unwrap());
    let mut dead = private.bus().queue("events").unwrap().consumer().unwrap();
    assert_eq!(
        number(DeadLetter::parse(&next(&mut dead)).unwrap().payload),
        7
    );
}

#[test]
fn a_message_that_is_put_off_comes_again_when_it_is_due() {
    let private = private();
    let queue = queue(&private);
    let mut consumer = queue.consumer().unwrap();
    let mut other = queue.consumer().unwrap();
    let mut producer = queue.producer().unwrap();
    for n in 0..3 {
        push(&mut producer, n);
    }
    let began = Instant::now();
    let waits = [200, 50, 100].map(Duration::from_millis);
    for wait in waits {
        next(&mut consumer).retry(wait).unwrap();
    }
    assert!(other.try_recv().unwrap().is_none());
    assert!(!other.is_empty().unwrap());
    for n in [1, 2, 0] {
        let delivery = next(&mut other);
        assert_eq!((number(&delivery), delivery.attempts()), (n, 2));
        assert!(
            began.elapsed() >= waits[n as usize],
            "{n} after {:?}",
            began.elapsed()
        );
        if n == 0 {
            // Again, and it counts on.
            delivery.retry(Duration::from_millis(1)).unwrap();
        } else {
            delivery.ack().unwrap();
        }
    }
    let last = next(&mut consumer);
    assert_eq!((number(&last), last.attempts()), (0, 3));
    last.ack().unwrap();
    assert!(consumer.is_empty().unwrap());
    assert_eq!(
        private.bus().topics().unwrap(),
        ["jobs", "jobs.default.retry"]
    );
}

#[test]
fn settings_belong_to_the_group() {
    let private = private();
    let queue = queue(&private);
    let one = queue.consumer_builder().max_attempts(3).open().unwrap();
    let other = queue.consumer_builder().max_attempts(4).open().unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Mismatch);
    drop(queue.consumer_builder().max_attempts(3).open().unwrap());
    drop(queue.consumer().unwrap());
    drop(one);
    let _one = queue.consumer_builder().max_attempts(4).open().unwrap();
    assert_eq!(
        queue
            .consumer_builder()
            .max_attempts(3)
            .open()
            .unwrap_err()
            .kind(),
        ErrorKind::Mismatch
    );
    let bad = queue.consumer_builder().group("../x").open().unwrap_err();
    assert_eq!(bad.kind(), ErrorKind::InvalidName);
    assert_eq!(
        private.bus().topic("jobs").unwrap_err().kind(),
        ErrorKind::Mismatch
    );
}

#[test]
fn one_that_is_to_be_alone_waits_for_the_other_to_leave() {
    let private = private();
    let queue = queue(&private);
    let alone = || queue.consumer_builder().exclusive(true).open();
    let first = alone().unwrap();
    assert_eq!(alone().unwrap_err().kind(), ErrorKind::InUse);
    // Another group is another matter; and who does not ask joins.
    let other = queue.consumer_builder().group("other").exclusive(true);
    drop(other.open().unwrap());
    let second = queue.consumer().unwrap();
    drop(first);
    assert_eq!(alone().unwrap_err().kind(), ErrorKind::InUse);
    drop(second);
    drop(alone().unwrap());
}

#[test]
fn unacknowledged_messages_survive_everyone() {
    let private = private();
    {
        let queue = queue(&private);
        let mut producer = queue.producer().unwrap();
        for n in 0..10 {
            push(&mut producer, n);
        }
        let mut consumer = queue.consumer().unwrap();
        next(&mut consumer).ack().unwrap();
        let _held = next(&mut consumer);
        next(&mut consumer).ack().unwrap();
        next(&mut consumer).retry(Duration::from_millis(1)).unwrap();
    }
    let queue = queue(&private);
    let mut consumer = queue.consumer().unwrap();
    let mut got = HashMap::new();
    for _ in 0..8 {
        let delivery = next(&mut consumer);
        got.insert(number(&delivery), delivery.attempts());
        delivery.ack().unwrap();
    }
    assert_eq!(got.remove(&1), Some(2));
    assert_eq!(got.remove(&3), Some(2));
    assert_eq!(got, (4..10).map(|n| (n, 1)).collect());
    assert!(consumer.is_empty().unwrap());
}

// ------------------------------------------------------------------------------------------------------- processes

mod child {
    use super::*;

    /// Takes one message, and holds it.
    #[test]
    fn holder() {
        let Some((path, _)) = role() else { return };
        let mut consumer = Bus::at(path)
            .unwrap()
            .queue("jobs")
            .unwrap()
            .consumer()
            .unwrap();
        let delivery = next(&mut consumer);
        say(number(&delivery));
        thread::sleep(PATIENCE);
    }

    /// Says who it is, takes one message, and acknowledges it.
    #[test]
    fn late() {
        let Some((path, said)) = role() else { return };
        let queue = Bus::at(path).unwrap().queue("jobs").unwrap();
        let mut consumer = queue.consumer().unwrap();
        let draft = format!("{said}.draft");
        std::fs::write(&draft, std::process::id().to_string()).unwrap();
        std::fs::rename(draft, said).unwrap();
        let delivery = next(&mut consumer);
        assert_eq!(number(&delivery), 1000);
        delivery.ack().unwrap();
    }

    /// What a forked child has of its parent does nothing.
    #[test]
    #[allow(unsafe_code)]
    fn forking() {
        use nix::sys::wait::{WaitStatus, waitpid};
        use nix::unistd::{ForkResult, fork};
        let Some((path, _)) = role() else { return };
        let bus = Bus::at(path).unwrap();
        let queue = bus.queue("jobs").unwrap();
        let mut producer = queue.producer().unwrap();
        let mut consumer = queue.consumer().unwrap();
        let board = bus.state("board").unwrap();
        let (mut writer, mut reader) = (board.writer().unwrap(), board.reader().unwrap());
        writer.set(b"key", b"parent's").unwrap();
        assert!(reader.get(b"key").unwrap().is_some());
        push(&mut producer, 7);
        let held = next(&mut consumer);
        // SAFETY: the one other thread that uses memory is the harness's, which waits.
        if let ForkResult::Parent { child } = unsafe { fork() }.unwrap() {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            assert_eq!(number(&held), 7);
            held.ack().unwrap();
            assert!(consumer.is_empty().unwrap());
            assert_eq!(reader.get(b"key").unwrap(), Some(&b"parent's"[..]));
            return;
        }
        common::abort_on_panic();
        let forked = [
            producer.try_push(b"child's").unwrap_err(),
            consumer.try_recv().map(drop).unwrap_err(),
            consumer.is_empty().unwrap_err(),
            held.ack().unwrap_err(),
            writer.set(b"key", b"child's").unwrap_err(),
            reader.get(b"key").map(drop).unwrap_err(),
        ];
        for error in forked {
            assert_eq!(error.kind(), ErrorKind::Forked, "{error}");
        }
        drop((producer, consumer, writer, reader));
        std::process::exit(0);
    }
}

#[test]
fn what_a_killed_consumer_held_goes_to_another() {
    let private = private();
    let queue = queue(&private);
    let mut producer = queue.producer().unwrap();
    let mut consumer = queue.consumer().unwrap();
    let mut waits = Vec::new();
    for n in 0..20 {
        let mut holder = private.child("holder", "");
        push(&mut producer, n);
        // Whoever was faster: the holder is to have it.
        while let Some(delivery) = consumer.try_recv().unwrap() {
            drop(delivery);
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(holder.hear(), n.to_string());
        let killed = Instant::now();
        holder.kill();
        let delivery = next(&mut consumer);
        waits.push(killed.elapsed());
        assert_eq!(number(&delivery), n);
        assert!(delivery.attempts() >= 2);
        delivery.ack().unwrap();
    }
    waits.sort_unstable();
    println!(
        "seen again after {:?} in the median, {:?} at most",
        waits[10], waits[19]
    );
    assert!(consumer.is_empty().unwrap());
}

/// Stopped where it has not found the group's claims on a new lane, and goes on when another consumer has made them, and the
/// producer a lap of its ring.
#[test]
fn a_consumer_that_is_late_for_a_new_lane() {
    use std::process::{Command, Stdio};
    let strace = || Command::new("strace");
    if strace().arg("-V").stdout(Stdio::null()).status().is_err() {
        common::skipped("there is no strace here");
        return;
    }
    let private = private();
    let bus = private.bus();
    let queue = bus.queue_builder("jobs").capacity(4096).open().unwrap();
    let (said, log) = (
        private.path.with_file_name("said"),
        private.path.with_file_name("log"),
    );
    let mut late = strace()
        .args([
            "-f",
            "-qq",
            "-P",
            "claims.0.2",
            "-e",
            "inject=openat2:signal=STOP:when=1",
            "-o",
        ])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child::late", "--nocapture"])
        .env("BUSLANE_TEST_BUS", &private.path)
        .env("BUSLANE_TEST_ARGUMENT", &said)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let until = |done: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < PATIENCE);
            thread::sleep(Duration::from_millis(1));
        }
    };
    until(&|| said.exists());
    let mut producer = queue.producer().unwrap();
    let text = |path| std::fs::read_to_string(path).unwrap();
    until(&|| text(&log).contains("stopped by SIGSTOP"));
    let mut consumer = queue.consumer().unwrap();
    for n in 0..1000 {
        push(&mut producer, n);
        next(&mut consumer).ack().unwrap();
    }
    push(&mut producer, 1000);
    drop(consumer);
    let pid = nix::unistd::Pid::from_raw(text(&said).parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert!(late.wait().unwrap().success());
}

#[test]
fn a_forked_child_touches_nothing() {
    let private = private();
    private.child("forking", "").join();
    assert_eq!(
        private.names("topics/jobs"),
        ["group.default", "locks", "topic"]
    );
}

// ------------------------------------------------------------------------------------------- beside others, as tasks

#[test]
fn a_consumer_in_a_wait_set_and_as_a_stream() {
    use buslane::WaitSet;
    use futures_util::{FutureExt, StreamExt};
    let private = private();
    let bus = private.bus();
    let queue = bus.queue("q").unwrap();
    let mut consumer = queue.consumer().unwrap();
    let mut other = queue.consumer_builder().group("other").open().unwrap();
    let mut producer = queue.producer().unwrap();
    let mut set = WaitSet::new().unwrap();
    let none = set
        .wait(&mut [&mut consumer], Some(Duration::ZERO))
        .unwrap();
    assert_eq!(none, None);

    // From sleep.
    std::thread::scope(|scope| {
        let woken = scope.spawn(|| set.wait(&mut [&mut consumer], None).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        producer.push(b"1").unwrap();
        assert_eq!(woken.join().unwrap(), Some(0));
    });
    // One that is put off is due without anybody ringing.
    consumer
        .recv()
        .unwrap()
        .retry(Duration::from_millis(30))
        .unwrap();
    let mut stream = consumer.into_stream();
    let delivery = block_on(stream.next()).unwrap().unwrap();
    assert_eq!((&*delivery, delivery.attempts()), (&b"1"[..], 2));
    delivery.ack().unwrap();

    assert!(other.recv_async().now_or_never().unwrap().is_ok());
}
