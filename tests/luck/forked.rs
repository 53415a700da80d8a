//! What a forked child has of its parent gives errors, and does nothing. (Of other patterns this is shown in `crash`, `queue`,
//! `request` and `waitset`.)

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use buslane::{ErrorKind, Result};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::common::{Process, private};
use crate::operations::{message, small};

mod child {
    use super::*;
    use crate::common::role;

    /// Has `op` run in a forked child, which is to be told that it is one.
    fn forked<T>(wrong: &mut Vec<String>, name: &str, op: impl FnOnce() -> Result<T>) {
        // SAFETY: the child calls nothing that another thread could hold a lock of: they all sleep.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let is_told = op().is_err_and(|e| e.kind() == ErrorKind::Forked);
                // SAFETY: ends the child without running the test harness's exit.
                unsafe { nix::libc::_exit(i32::from(!is_told)) }
            }
            ForkResult::Parent { child } => {
                let status = waitpid(child, None).unwrap();
                if status != WaitStatus::Exited(child, 0) {
                    wrong.push(format!("{name}: {status:?}"));
                }
            }
        }
    }

    #[test]
    fn forking() {
        let Some((path, _)) = role() else { return };
        let bus = small().durable(true).at(path).unwrap();
        let (topic, board) = (bus.topic("t").unwrap(), bus.state("board").unwrap());
        let (mut writer, mut reader) = (board.writer().unwrap(), board.reader().unwrap());
        let mut watch = reader.watch(None).unwrap();
        let mut publisher = topic.publisher().unwrap();
        let mut subscription = topic.subscription("s").unwrap();
        let mut task = topic.subscriber().unwrap();
        let mut selection = bus.select("t").unwrap();
        let mut wrong = Vec::new();
        let w = &mut wrong;
        let mut context = Context::from_waker(Waker::noop());
        // A task sleeps: the thread that wakes it runs.
        assert!(pin!(task.recv_async()).poll(&mut context).is_pending());
        for n in 0..10_u64 {
            publisher.send(&message(n)).unwrap();
            writer.set(b"key", &n.to_le_bytes()).unwrap();
            let point = publisher.sync_point().unwrap();
            forked(w, "set", || writer.set(b"key", b"no"));
            forked(w, "get", || reader.get(b"key").map(drop));
            forked(w, "entries", || reader.entries().map(drop));
            forked(w, "watch", || watch.try_recv().map(drop));
            forked(w, "a new watch", || reader.watch(None));
            forked(w, "send", || publisher.send(b"no"));
            forked(w, "sync", || publisher.sync());
            forked(w, "sync_point", || publisher.sync_point());
            forked(w, "wait for a sync point", || point.wait());
            forked(w, "recv", || subscription.recv().map(drop));
            forked(w, "subscription", || topic.subscription("new"));
            forked(w, "select", || selection.try_recv().map(drop));
            forked(w, "recv_async", || {
                match pin!(task.recv_async()).poll(&mut context) {
                    Poll::Ready(got) => got.map(drop),
                    Poll::Pending => Ok(()),
                }
            });
            // The parent's are as they were.
            publisher.sync().unwrap();
            assert_eq!(*subscription.recv().unwrap(), message(n));
            assert_eq!(*task.recv().unwrap(), message(n));
            assert_eq!(*selection.recv().unwrap(), message(n)[..]);
            assert_eq!(reader.get(b"key").unwrap(), Some(&n.to_le_bytes()[..]));
            assert!(watch.try_recv().unwrap().is_some());
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[test]
fn state_files_and_tasks_in_a_forked_child() {
    let private = private();
    Process::start(&private.path, "forked::child::forking", "").join();
    let bus = small().durable(true).at(&private.path).unwrap();
    assert!(bus.verify("t").unwrap().damage.is_empty());
}
