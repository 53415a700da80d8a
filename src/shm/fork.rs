//! What a forked child must not keep: locks. Mappings are not inherited (`segment`), and every handle compares the
//! [`generation`] it was born in with the current one before it touches its mapping.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Once, OnceLock};

use super::{files, segment};

/// How often this process's line of ancestors has forked since the library was first used. Changed only in a new child,
/// while that has a single thread, so that `Relaxed` suffices.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// A list that only grows, of the descriptors a child must close; it is walked without a lock in the child.
static FIRST: Node = Node {
    fd: AtomicI32::new(FREE),
    next: OnceLock::new(),
};
const FREE: RawFd = -1;

#[derive(Debug)]
struct Node {
    fd: AtomicI32,
    next: OnceLock<&'static Node>,
}

/// A number that differs between a process and its forked children.
#[inline]
pub fn generation() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    let mut node = Some(&FIRST);
    while let Some(this) = node {
        let fd = this.fd.swap(FREE, Ordering::Relaxed);
        if fd != FREE {
            // An error leaves nothing to do: the child is not a member either way.
            let _ = nix::unistd::close(fd);
        }
        node = this.next.get().copied();
    }
}

/// An open file that carries our lock: a forked child closes it, so that the lock ends with us.
#[derive(Debug)]
pub struct Held {
    fd: ManuallyDrop<OwnedFd>,
    node: &'static Node,
    born: u64,
}

impl Held {
    /// Notes `fd` among those that a child closes.
    pub fn new(fd: OwnedFd) -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| segment::at_fork(in_child));
        let raw = fd.as_raw_fd();
        let mut node = &FIRST;
        while node
            .fd
            .compare_exchange(FREE, raw, Ordering::Relaxed, Ordering::Relaxed)
            .is_err()
        {
            node = node.next.get_or_init(|| {
                Box::leak(Box::new(Node {
                    fd: AtomicI32::new(FREE),
                    next: OnceLock::new(),
                }))
            });
        }
        Self {
            fd: ManuallyDrop::new(fd),
            node,
            born: generation(),
        }
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.born == generation() {
            self.node.fd.store(FREE, Ordering::Relaxed);
            files::unlock(&*self.fd);
            let fd = self.fd.as_fd().as_raw_fd();
            // An error of close leaves nothing to do.
            let _ = nix::unistd::close(fd);
        }
    }
}
