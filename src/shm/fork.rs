//! What a forked child must not keep: locks, and shared memory. Its locks are closed, and where a mapping was it has zeros of
//! its own: whatever it does to the handles that it got from its parent reaches nobody, and the least of it, a look at a word
//! that is never 0 otherwise, has a handle compare the [`generation`] it was born in with the current one.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Once, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{files, segment};

/// How often this process's line of ancestors has forked since the library was first used. Changed only in a new child,
/// while that has a single thread, so that `Relaxed` suffices.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// A list that only grows, of what a child must not keep; it is walked without a lock in the child.
static FIRST: Node = Node::new();
/// In place of a descriptor: nobody uses the node.
const FREE: RawFd = -1;
/// In place of a descriptor: the node's user is about to say what for.
const TAKEN: RawFd = -2;
/// In place of a descriptor: the node has a mapping, which a child does not inherit.
const MAPPED: RawFd = -3;
/// In place of a descriptor: the node has one that it does.
const INHERITED: RawFd = -4;

#[derive(Debug)]
struct Node {
    fd: AtomicI32,
    /// Address of a mapping.
    start: AtomicUsize,
    /// Bytes in it.
    len: AtomicUsize,
    next: OnceLock<&'static Node>,
}

impl Node {
    const fn new() -> Self {
        Self {
            fd: AtomicI32::new(FREE),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            next: OnceLock::new(),
        }
    }

    /// One that nobody used.
    fn take() -> &'static Self {
        watch();
        let mut node = &FIRST;
        while node
            .fd
            .compare_exchange(FREE, TAKEN, Ordering::Relaxed, Ordering::Relaxed)
            .is_err()
        {
            node = node.next.get_or_init(|| Box::leak(Box::new(Self::new())));
        }
        node
    }
}

/// A number that differs between a process and its forked children.
#[inline]
pub fn generation() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// Held for reading by who takes a lock, and for writing by who forks.
static TAKING: RwLock<()> = RwLock::new(());

thread_local! {
    /// By who forks, until it has.
    static FORKING: Cell<Option<RwLockWriteGuard<'static, ()>>> = const { Cell::new(None) };
}

/// While this lives, nobody forks: from before a file is opened until its lock is [`Held`]. A child that comes between has the lock,
/// too, and does not know of it.
#[must_use]
#[derive(Debug)]
pub struct Staying {
    _guard: RwLockReadGuard<'static, ()>,
}

/// Has nobody fork. A thread does so once at a time.
pub fn stay() -> Staying {
    watch();
    let _guard = TAKING.read().unwrap_or_else(PoisonError::into_inner);
    Staying { _guard }
}

impl Staying {
    /// Locks a file that was opened meanwhile. `None`: somebody has it.
    pub fn try_lock(self, file: OwnedFd) -> nix::Result<Option<Held>> {
        let is_ours = files::try_lock(&file)?;
        Ok(is_ours.then(|| self.hold(file)))
    }

    /// The same of one of its bytes.
    pub fn try_lock_byte(self, file: OwnedFd, number: u64) -> nix::Result<Option<Held>> {
        let is_ours = files::try_lock_byte(&file, number)?;
        Ok(is_ours.then(|| self.hold(file)))
    }

    /// Of one that is locked.
    pub fn hold(self, file: OwnedFd) -> Held {
        Held::new(file)
    }
}

fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| segment::at_fork(before_fork, in_parent, in_child));
}

extern "C" fn before_fork() {
    // A thread that is ending may have none any more.
    let _ = FORKING.try_with(|forking| {
        forking.set(Some(TAKING.write().unwrap_or_else(PoisonError::into_inner)));
    });
}

extern "C" fn in_parent() {
    let _ = FORKING.try_with(Cell::take);
}

extern "C" fn in_child() {
    in_parent();
    FORKS.fetch_add(1, Ordering::Relaxed);
    let mut node = Some(&FIRST);
    while let Some(this) = node {
        // Pairs with the `Release` in `Region::note`: start and len are the mapping's.
        match this.fd.load(Ordering::Acquire) {
            kind @ (MAPPED | INHERITED) => {
                let (start, len) = (&this.start, &this.len);
                let (start, len) = (start.load(Ordering::Relaxed), len.load(Ordering::Relaxed));
                segment::refill(start, len, kind == INHERITED);
                this.fd.store(FREE, Ordering::Relaxed);
            }
            fd if fd >= 0 => {
                this.fd.store(FREE, Ordering::Relaxed);
                // An error leaves nothing to do: the child is not a member either way.
                let _ = nix::unistd::close(fd);
            }
            _ => {}
        }
        node = this.next.get().copied();
    }
}

/// A mapping that a child does not inherit: it finds zeros there that are nobody else's. To be dropped before the mapping is.
#[derive(Debug)]
pub struct Region {
    node: &'static Node,
    born: u64,
}

impl Region {
    /// Notes a mapping that a child does not inherit among those that it finds to be zeros.
    pub fn new(start: usize, len: usize) -> Self {
        Self::note(start, len, MAPPED)
    }

    /// The same of one that it does inherit.
    pub fn inherited(start: usize, len: usize) -> Self {
        Self::note(start, len, INHERITED)
    }

    fn note(start: usize, len: usize, kind: RawFd) -> Self {
        let node = Node::take();
        node.start.store(start, Ordering::Relaxed);
        node.len.store(len, Ordering::Relaxed);
        // With the load in `in_child`.
        node.fd.store(kind, Ordering::Release);
        let born = generation();
        Self { node, born }
    }

    /// Whether this is the process that made the mapping.
    pub fn is_ours(&self) -> bool {
        self.born == generation()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.is_ours() {
            self.node.fd.store(FREE, Ordering::Relaxed);
        }
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
    fn new(fd: OwnedFd) -> Self {
        let node = Node::take();
        node.fd.store(fd.as_raw_fd(), Ordering::Relaxed);
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
