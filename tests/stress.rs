//! Processes that join, leave, stop, go on and are killed at random: no subscriber that lives sees a gap, a message
//! twice, or a torn one. `BUSLANE_STRESS_SECONDS` for longer, `BUSLANE_STRESS_SEED` for the same again.
#![allow(missing_docs)]

mod common;

use std::time::{Duration, Instant};

use buslane::{Bus, ErrorKind};
use common::{PATIENCE, check, private};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

mod child {
    use super::common::{check, fill, length, role, say};
    use buslane::{Bus, ErrorKind};
    use std::collections::HashMap;

    #[test]
    fn publisher() {
        let Some((path, number)) = role() else { return };
        let mut publisher = Bus::at(path)
            .unwrap()
            .topic("t")
            .unwrap()
            .publisher()
            .unwrap();
        say("ready");
        for i in 0.. {
            let mut loan = publisher.loan(length(i)).unwrap();
            fill(&mut loan, number.parse().unwrap(), i);
            loan.commit();
        }
    }

    #[test]
    fn subscriber() {
        let Some((path, _)) = role() else { return };
        let mut subscriber = Bus::at(path)
            .unwrap()
            .topic("t")
            .unwrap()
            .subscriber()
            .unwrap();
        say("ready");
        let mut next = HashMap::new();
        loop {
            match subscriber.recv() {
                Ok(frame) => {
                    let (publisher, i) = check(&frame);
                    let wanted = next.insert(publisher, i + 1).unwrap_or(i);
                    assert_eq!(i, wanted, "publisher {publisher}");
                }
                Err(e) => assert_eq!(e.kind(), ErrorKind::Ended, "{e}"),
            }
        }
    }
}

#[test]
fn random_joins_leaves_stops_and_kills() {
    let number =
        |name: &str, otherwise| std::env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let seconds = Duration::from_secs(number("BUSLANE_STRESS_SECONDS", 10)).min(PATIENCE);
    let mut seed = number(
        "BUSLANE_STRESS_SEED",
        u64::from(std::process::id()) | 1 << 40,
    );
    println!("BUSLANE_STRESS_SEED={seed}");
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let private = private();
    let mut own = private.bus().topic("t").unwrap().subscriber().unwrap();
    let (mut publishers, mut subscribers) = (Vec::new(), Vec::new());
    let mut next = std::collections::HashMap::new();
    let (mut made, mut got, mut kills) = (0, 0u64, 0);
    let end = Instant::now() + seconds;
    while Instant::now() < end {
        let crowd = if random(2) == 0 {
            &mut publishers
        } else {
            &mut subscribers
        };
        if crowd.len() < 3 {
            made += 1;
            let role = if random(2) == 0 {
                "publisher"
            } else {
                "subscriber"
            };
            crowd.push(private.child(role, made));
        } else {
            let at = random(3) as usize;
            let child: &mut common::Process = &mut crowd[at];
            if let Some(status) = child.child.try_wait().unwrap() {
                panic!("a child ended by itself: {status}");
            }
            if random(3) == 0 {
                let pid = Pid::from_raw(child.pid());
                kill(pid, Signal::SIGSTOP).unwrap();
                std::thread::sleep(Duration::from_millis(random(5)));
                kill(pid, Signal::SIGCONT).unwrap();
            } else {
                kills += 1;
                crowd.remove(at).kill();
            }
        }
        for _ in 0..random(500) {
            match own.recv_timeout(Duration::from_millis(1)) {
                Ok(Some(frame)) => {
                    let (publisher, i) = check(&frame);
                    let wanted = next.insert(publisher, i + 1).unwrap_or(0);
                    assert_eq!(i, wanted, "publisher {publisher}");
                    got += 1;
                }
                Ok(None) => break,
                Err(e) => assert_eq!(e.kind(), ErrorKind::Ended, "{e}"),
            }
        }
    }
    drop((publishers, subscribers, own));
    // Another process, or thread, may be just at putting something away.
    let started = Instant::now();
    while {
        Bus::at(&private.path).unwrap().reclaim().unwrap();
        private.names("topics/t").len() > 1 && started.elapsed() < PATIENCE / 2
    } {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!(
        "{made} processes, {kills} killed, {got} messages; left: {:?}",
        private.names("topics/t")
    );
    assert_eq!(private.names("topics/t"), ["locks", "topic"]);
    assert!(private.names("members").is_empty());
}
