//! Processes that end by SIGKILL, and by fork: the others go on, learn of it, and nothing stays behind.
#![allow(unsafe_code, missing_docs)]

mod common;

use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use buslane::{Bus, ErrorKind};
use common::{PATIENCE, check, fill, length, private};
use nix::libc;

mod child {
    use super::common::{fill, length, role, say};
    use buslane::{Bus, ErrorKind};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork, pause};

    /// Sends `n` messages, leaves garbage in a loan, and waits to be killed.
    #[test]
    fn in_a_loan() {
        let Some((path, n)) = role() else { return };
        let topic = Bus::at(path).unwrap().topic("t").unwrap();
        let mut publisher = topic.publisher().unwrap();
        for i in 0..n.parse().unwrap() {
            let mut loan = publisher.loan(length(i)).unwrap();
            fill(&mut loan, 1, i);
            loan.commit();
        }
        let mut loan = publisher.loan(5000).unwrap();
        loan.fill(0xff);
        say("ready");
        loop {
            pause();
        }
    }

    #[test]
    fn holding_a_frame() {
        let Some((path, _)) = role() else { return };
        let mut subscriber = Bus::at(path)
            .unwrap()
            .topic("t")
            .unwrap()
            .subscriber()
            .unwrap();
        say("ready");
        let _frame = subscriber.recv().unwrap();
        say("holds");
        loop {
            pause();
        }
    }

    #[test]
    fn joining_again_and_again() {
        let Some((path, _)) = role() else { return };
        say("ready");
        loop {
            let topic = Bus::at(&path).unwrap().topic("t").unwrap();
            let _publisher = topic.publisher().unwrap();
            let _subscriber = topic.subscriber().unwrap();
        }
    }

    #[test]
    fn opening_again_and_again() {
        let Some((path, _)) = role() else { return };
        say("ready");
        loop {
            drop(Bus::at(&path).unwrap());
        }
    }

    #[test]
    fn sending_one() {
        let Some((path, n)) = role() else { return };
        let mut publisher = Bus::at(path)
            .unwrap()
            .topic("t")
            .unwrap()
            .publisher()
            .unwrap();
        publisher.send(n.as_bytes()).unwrap();
    }

    #[test]
    fn forking() {
        let Some((path, _)) = role() else { return };
        let bus = Bus::at(&path).unwrap();
        let topic = bus.topic("t").unwrap();
        let _publisher = topic.publisher().unwrap();
        // SAFETY: the child calls nothing that another thread could hold a lock of: the doorbell sleeps in poll.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => loop {
                pause();
            },
            ForkResult::Parent { child } => {
                say(child);
                loop {
                    pause();
                }
            }
        }
    }

    /// Forks again and again while another thread takes locks.
    #[test]
    fn forking_beside() {
        let Some((path, _)) = role() else { return };
        let (go_on, stopped) = std::sync::mpsc::channel::<()>();
        let joining = std::thread::spawn(move || {
            let bus = Bus::at(&path).unwrap();
            let (topic, queue) = (bus.topic("t").unwrap(), bus.queue("q").unwrap());
            // Who lets go of a lock takes it from a child, too.
            let mut kept = Vec::new();
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                if kept.len() < 100 {
                    kept.push((topic.subscriber().unwrap(), queue.consumer().unwrap()));
                }
            }
            kept
        });
        let fork_one = |_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            // SAFETY: the child only waits.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    let killed = nix::sys::signal::SIGKILL;
                    let _ = nix::sys::prctl::set_pdeathsig(killed);
                    loop {
                        pause();
                    }
                }
                ForkResult::Parent { child } => child,
            }
        };
        let children: Vec<_> = (0..200).map(fork_one).collect();
        drop(go_on);
        let _kept = joining.join().unwrap();
        let mut locks = Vec::new();
        for child in children {
            for open in std::fs::read_dir(format!("/proc/{child}/fdinfo")).unwrap() {
                let info = std::fs::read_to_string(open.unwrap().path()).unwrap();
                let held = info.lines().filter(|line| line.starts_with("lock:"));
                locks.extend(held.map(str::to_owned));
            }
            nix::sys::signal::kill(child, nix::sys::signal::SIGKILL).unwrap();
            waitpid(child, None).unwrap();
        }
        assert!(locks.is_empty(), "{} locks: {locks:?}", locks.len());
    }

    /// Runs `op` in a forked child, and notes how that ended if not well.
    fn forked(wrong: &mut Vec<String>, name: &str, op: impl FnOnce() -> bool) {
        // SAFETY: the child calls nothing that another thread could hold a lock of: the doorbell sleeps in poll.
        match unsafe { fork() }.unwrap() {
            // SAFETY: ends the child without running the test harness's exit.
            ForkResult::Child => unsafe { nix::libc::_exit(i32::from(!op())) },
            ForkResult::Parent { child } => {
                let status = waitpid(child, None).unwrap();
                if status != WaitStatus::Exited(child, 0) {
                    wrong.push(format!("{name}: {status:?}"));
                }
            }
        }
    }

    #[test]
    fn forking_often() {
        let Some((path, _)) = role() else { return };
        let says = |e: buslane::Error| e.kind() == ErrorKind::Forked;
        let bus = Bus::at(&path).unwrap();
        let topic = bus.topic("t").unwrap();
        let mut p = topic.publisher().unwrap();
        let mut s = topic.subscriber().unwrap();
        let mut presence = topic.presence().unwrap();
        let mut reader = topic.subscriber().unwrap().into_reader();
        let mut wrong = Vec::new();
        let w = &mut wrong;
        forked(w, "send", || p.send(b"no").is_err_and(says));
        // From now on nothing is to be looked at before a send, or a receive.
        for _ in 0..3 {
            p.send(b"on").unwrap();
            assert_eq!(&*s.recv().unwrap(), b"on");
        }
        forked(w, "another send", || p.send(b"no").is_err_and(says));
        forked(w, "another recv", || s.recv().map(drop).is_err_and(says));
        forked(w, "loan", || p.loan(1).map(drop).is_err_and(says));
        forked(w, "send_batch", || p.send_batch(["no"]).is_err_and(says));
        forked(w, "subscriber_count", || {
            p.subscriber_count().is_err_and(says)
        });
        forked(w, "wait_delivered", || {
            p.wait_delivered(None).is_err_and(says)
        });
        forked(w, "wait_for_subscribers", || {
            p.wait_for_subscribers(1, None).is_err_and(says)
        });
        forked(w, "recv", || s.recv().map(drop).is_err_and(says));
        forked(w, "try_recv", || s.try_recv().map(drop).is_err_and(says));
        forked(w, "publisher_count", || {
            s.publisher_count().is_err_and(says)
        });
        forked(w, "wait_for_publishers", || {
            s.wait_for_publishers(1, None).is_err_and(says)
        });
        forked(w, "publishers", || presence.publishers().is_err_and(says));
        forked(w, "changed", || presence.changed(None).is_err_and(says));
        forked(w, "topic", || bus.topic("u").map(drop).is_err_and(says));
        forked(w, "reclaim", || bus.reclaim().is_err_and(says));
        forked(w, "publisher", || {
            topic.publisher().map(drop).is_err_and(says)
        });
        forked(w, "subscriber", || {
            topic.subscriber().map(drop).is_err_and(says)
        });
        forked(w, "presence", || {
            topic.presence().map(drop).is_err_and(says)
        });
        forked(w, "inspect (opens anew)", || bus.inspect("t").is_ok());
        forked(w, "read", || {
            std::io::Read::read(&mut reader, &mut [0]).is_err()
        });
        let loan = p.loan(9).unwrap();
        forked(w, "drop of a loan", || {
            drop(loan);
            true
        });
        let loan = p.loan(9).unwrap();
        forked(w, "commit of a loan", || {
            loan.commit();
            true
        });
        // The parent's closure was not run: what it held was dropped there, and sent nothing.
        p.send(b"on").unwrap();
        let frame = s.recv().unwrap();
        assert_eq!(&*frame, b"on");
        forked(w, "drop of a frame", || {
            drop(frame);
            true
        });
        p.send(b"again").unwrap();
        forked(w, "drop of all", || {
            drop((p, s, presence, reader, topic, bus));
            true
        });
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[test]
fn a_publisher_killed_in_a_loan_loses_nothing_and_tears_nothing() {
    let private = private();
    let mut subscriber = private.bus().topic("t").unwrap().subscriber().unwrap();
    for n in [0, 1, 50] {
        let mut publisher = private.child("in_a_loan", n);
        publisher.hear();
        publisher.kill();
        for i in 0..n {
            assert_eq!(check(&subscriber.recv().unwrap()), (1, i));
        }
        assert_eq!(subscriber.recv().unwrap_err().kind(), ErrorKind::Ended);
    }
}

#[test]
fn a_subscriber_killed_with_a_frame_in_hand_stops_gating() {
    let private = private();
    let mut publisher = private.bus().topic("t").unwrap().publisher().unwrap();
    let mut subscriber = private.child("holding_a_frame", "");
    subscriber.hear();
    publisher.send(&[1; 1000]).unwrap();
    assert_eq!(subscriber.hear(), "holds");
    while publisher.try_send(&[2; 1000]).is_ok() {}
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        subscriber.kill();
    });
    for _ in 0..200 {
        publisher.send_timeout(&[3; 1000], PATIENCE).unwrap();
    }
    killer.join().unwrap();
}

#[test]
fn killed_while_joining_a_hundred_times() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    let mut publisher = topic.publisher().unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    for i in 0..100u64 {
        let mut child = private.child("joining_again_and_again", "");
        child.hear();
        std::thread::sleep(Duration::from_micros(i * 7919 % 5000));
        child.kill();
        for k in 0..100 {
            let n = i * 100 + k;
            let mut message = vec![0; length(n)];
            fill(&mut message, 1, n);
            publisher.send_timeout(&message, PATIENCE).unwrap();
            let frame = subscriber.recv_timeout(PATIENCE).unwrap().unwrap();
            assert_eq!(check(&frame), (1, n));
        }
    }
    drop((publisher, subscriber, topic));
    private.bus();
    let left: Vec<_> = private
        .names("topics/t")
        .into_iter()
        .filter(|name| name != "topic" && name != "locks")
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert!(private.names("members").is_empty());
}

/// By whoever is there: nobody has to open the bus for it.
#[test]
fn what_was_killed_while_it_joined_is_put_away() {
    let private = private();
    let topic = private.bus().topic("t").unwrap();
    let _publisher = topic.publisher().unwrap();
    let mut delay = 0;
    for _ in 0..100 {
        let mut child = private.child("joining_again_and_again", "");
        child.hear();
        delay += 7919;
        std::thread::sleep(Duration::from_micros(delay % 5000));
        child.kill();
        let killed = Instant::now();
        // Ours stays.
        let members = || {
            let names = private.names("members");
            names.iter().filter(|name| !name.starts_with('.')).count()
        };
        while members() > 1 {
            assert!(killed.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

#[test]
fn what_a_lonely_death_leaves_the_next_opener_reclaims() {
    let private = private();
    let mut child = private.child("in_a_loan", 3);
    child.hear();
    child.kill();
    assert_eq!(private.names("members").len(), 1);
    drop(private.bus());
    assert!(private.names("members").is_empty());
    assert_eq!(private.names("topics/t"), ["locks", "topic"]);
}

/// In the directory of topics: neither the sweep nor a recovery can do anything about it.
#[test]
fn what_is_no_topic_keeps_nobody_from_anything() {
    for durable in [false, true] {
        let private = private();
        let open = || Bus::builder().durable(durable).at(&private.path).unwrap();
        drop(open());
        let topics = private.path.join("topics");
        std::fs::write(topics.join("file"), "no directory").unwrap();
        std::os::unix::fs::symlink("/", topics.join("link")).unwrap();
        std::fs::create_dir(topics.join("empty")).unwrap();
        let mut child = private.child("in_a_loan", 3);
        child.hear();
        child.kill();
        let bus = open();
        assert_eq!(private.names("members").len(), 1);
        assert_eq!(bus.topics().unwrap(), ["t"]);
        assert_eq!(bus.reclaim().unwrap().lingering, 0);
    }
}

#[test]
fn short_lived_senders_do_not_pile_up_lanes() {
    let private = private();
    let mut subscriber = private.bus().topic("t").unwrap().subscriber().unwrap();
    for i in 0..200 {
        private.child("sending_one", i).join();
        let lanes = private
            .names("topics/t")
            .iter()
            .filter(|name| name.starts_with("lane."))
            .count();
        assert!(lanes <= 3, "{lanes} lanes");
        if i % 2 == 1 {
            for n in [i - 1, i] {
                let got = loop {
                    match subscriber.recv() {
                        Ok(frame) => break frame.to_vec(),
                        Err(e) => assert_eq!(e.kind(), ErrorKind::Ended),
                    }
                };
                assert_eq!(got, n.to_string().as_bytes());
            }
        }
    }
}

#[test]
fn the_reclaimer_may_be_killed_too() {
    let private = private();
    let mut subscriber = private.bus().topic("t").unwrap().subscriber().unwrap();
    for i in 0..50u64 {
        let mut dying = private.child("in_a_loan", 3);
        let mut reclaimer = private.child("opening_again_and_again", "");
        dying.hear();
        reclaimer.hear();
        dying.kill();
        std::thread::sleep(Duration::from_micros(i * 7919 % 500));
        reclaimer.kill();
        for n in 0..3 {
            assert_eq!(
                check(&subscriber.recv_timeout(PATIENCE).unwrap().unwrap()),
                (1, n)
            );
        }
        assert_eq!(subscriber.recv().unwrap_err().kind(), ErrorKind::Ended);
    }
}

#[test]
fn a_forked_child_gets_errors_and_harms_nobody() {
    let private = private();
    private.bus();
    private.child("forking_often", "").join();
}

#[test]
fn a_child_that_comes_while_a_lock_is_taken_does_not_have_it() {
    let private = private();
    private.bus();
    private.child("forking_beside", "").join();
}

#[test]
fn a_lock_ends_with_the_parent_not_with_its_forked_child() {
    let private = private();
    let mut subscriber = private.bus().topic("t").unwrap().subscriber().unwrap();
    let mut parent = private.child("forking", "live on");
    let grandchild: i32 = parent.hear().parse().unwrap();
    parent.kill();
    let ended = subscriber
        .recv_timeout(PATIENCE)
        .map(|frame| frame.is_some());
    // SAFETY: a plain system call; this test's own grandchild, which waits for ever.
    unsafe { libc::kill(grandchild, libc::SIGKILL) };
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Ended);
}

/// The kernel drops the locks of a dead process one after the other. Here the lane's is dropped late, by a second
/// descriptor that the test takes from the publisher.
#[test]
fn a_lane_lock_that_outlives_the_member_lock() {
    let private = private();
    let bus = private.bus();
    let mut subscriber = bus.topic("t").unwrap().subscriber().unwrap();
    let mut child = private.child("in_a_loan", 1);
    child.hear();
    let dir = format!("/proc/{}/fd", child.pid());
    let fd = common::names(dir.as_ref()).into_iter().find(|fd| {
        let target = std::fs::read_link(format!("{dir}/{fd}"));
        // A file made without a name is shown as deleted for ever, by its inode: compare that.
        use std::os::unix::fs::MetadataExt;
        let inode = |path: String| {
            let meta = std::fs::metadata(path);
            meta.map(|meta| (meta.dev(), meta.ino())).ok()
        };
        let locks = format!("{}/topics/t/locks", private.path.display());
        target.is_ok() && inode(format!("{dir}/{fd}")) == inode(locks)
    });
    let fd: i32 = fd.expect("the publisher's lock").parse().unwrap();
    // SAFETY: plain system calls, which return new descriptors that nobody else owns.
    let late = unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, child.pid(), 0) as i32;
        let late = libc::syscall(libc::SYS_pidfd_getfd, pidfd, fd, 0) as i32;
        libc::close(pidfd);
        if late < 0 {
            common::skipped("pidfd_getfd is not allowed here");
            return;
        }
        OwnedFd::from_raw_fd(late)
    };
    child.kill();
    std::thread::sleep(Duration::from_millis(20));
    let _ = Bus::at(&private.path).unwrap();
    drop(late);
    assert_eq!(
        check(&subscriber.recv_timeout(PATIENCE).unwrap().unwrap()),
        (1, 0)
    );
    match subscriber.recv_timeout(Duration::from_secs(10)) {
        Err(e) => assert_eq!(e.kind(), ErrorKind::Ended),
        Ok(frame) => panic!("the end was never noticed: {frame:?}"),
    }
}
