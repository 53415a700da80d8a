//! loom's ground: what `segment`, `bytes` and `futex` are to the processor, for a model. Shared memory is the heap,
//! and the kernel is a few words.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use loom::cell::UnsafeCell;

use super::sync::{AtomicU64, Ordering};

/// What every thread of a model sees: a page of a file, as it were.
pub struct View<T: ?Sized>(Arc<T>);

impl<T> View<T> {
    /// A page that holds `value`.
    pub fn new(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> View<T> {
    /// It is shared: there is nothing to be read anew.
    pub fn refresh(&self) -> bool {
        true
    }
}

impl<T> View<[T]> {
    /// Pages that hold `values`.
    pub fn all(values: Vec<T>) -> Self {
        Self(values.into())
    }
}

impl<T: ?Sized> Clone for View<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: ?Sized> Deref for View<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> fmt::Debug for View<T> {
    // Not what is in there: to load it would be a step of the model.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("View")
    }
}

/// A ring of loom's words. What `bytes` does to payloads with plain copies is done here word by word, `Relaxed`, so that
/// what is read too early or overwritten while it is read is another value, which the model's reader looks for.
///
/// Plain accesses are watched, too: one that no happens-before separates from a write is a data race, and loom panics.
/// The atomic accesses to frame words count as reads, which may meet each other, but no plain write.
#[derive(Clone)]
pub struct Ring {
    words: Arc<[AtomicU64]>,
    /// One for each word; `None` for who reads what may be overwritten meanwhile.
    watched: Option<Arc<[UnsafeCell<()>]>>,
    /// Of one that stands for data files: from how far behind the head on a message has no address.
    files: Option<u64>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("capacity", &self.capacity())
            .finish()
    }
}

impl Ring {
    /// A ring that holds these words: a power of two of them.
    pub fn new(words: impl IntoIterator<Item = u64>) -> Self {
        let words: Arc<[AtomicU64]> = words.into_iter().map(AtomicU64::new).collect();
        assert!(
            words.len().is_power_of_two(),
            "a ring's capacity is a power of two"
        );
        let watched = words.iter().map(|_| UnsafeCell::new(())).collect();
        Self {
            words,
            watched: Some(watched),
            files: None,
        }
    }

    /// One that stands for data files, in which all there is to come is written. So far behind the head, what is there has no address.
    pub fn checked(words: impl IntoIterator<Item = u64>, beyond: u64) -> Self {
        Self {
            files: Some(beyond),
            ..Self::new(words)
        }
    }

    /// The same ring, for an observer: its races are not reported, because it finds out about them itself.
    pub fn unwatched(&self) -> Self {
        Self {
            words: Arc::clone(&self.words),
            watched: None,
            files: self.files,
        }
    }

    /// Bytes in the ring.
    pub fn capacity(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    /// The same: a model's ring is not in files.
    pub fn reach(&self) -> u64 {
        self.capacity()
    }

    /// There is nothing that it is not in reach of.
    pub fn arrive(&self, _position: u64) -> bool {
        true
    }

    /// It is shared.
    pub fn is_foreign(&self) -> bool {
        false
    }

    /// Nothing goes to a disk.
    pub fn stored(&self, _position: u64, _len: usize) {}

    /// There are no files.
    pub fn lift_before(&self, _position: u64) {}

    /// The same.
    pub fn start_at(&self, _position: u64) -> Option<super::lane::Boundary> {
        None
    }

    /// Whether its frames have checksums, which nobody computes here.
    pub fn is_checked(&self) -> bool {
        self.files.is_some()
    }

    /// Whether what is at `position` has no address while what is at `held` has one.
    pub fn is_beyond(&self, position: u64, held: u64) -> bool {
        self.files
            .is_some_and(|beyond| position.saturating_sub(held) >= beyond)
    }

    /// Bytes from `position` to the end that no frame crosses.
    pub fn to_end(&self, position: u64) -> u64 {
        self.capacity() - self.offset(position)
    }

    /// Where `position` lies in the ring.
    fn offset(&self, position: u64) -> u64 {
        position & (self.capacity() - 1)
    }

    /// Whether a frame at `position` ends within the ring if `len` bytes are behind its word.
    pub fn holds(&self, position: u64, len: u64) -> bool {
        8 + len <= self.to_end(position)
    }

    /// The word of the frame at `position`, for an atomic access.
    #[track_caller]
    pub fn head(&self, position: u64) -> &AtomicU64 {
        self.word(position)
    }

    fn index(&self, position: u64) -> usize {
        (self.offset(position) / 8) as usize
    }

    #[track_caller]
    fn will_read(&self, index: usize) {
        if let Some(watched) = &self.watched {
            watched[index].with(|_| ());
        }
    }

    #[track_caller]
    fn will_write(&self, index: usize) {
        if let Some(watched) = &self.watched {
            watched[index].with_mut(|_| ());
        }
    }

    /// The word at `position`, a multiple of 8, for an atomic access.
    #[track_caller]
    pub fn word(&self, position: u64) -> &AtomicU64 {
        self.will_read(self.index(position));
        &self.words[self.index(position)]
    }

    /// Zeroes `[from, to)`, at most the ring, which may wrap.
    pub fn zero(&self, from: u64, to: u64) {
        for position in (from..to.min(from + self.capacity())).step_by(8) {
            self.will_write(self.index(position));
            self.words[self.index(position)].store(0, Ordering::Relaxed);
        }
    }

    /// Writes a payload to `position`.
    pub fn write(&self, position: u64, payload: &[u64]) {
        for (index, &value) in (self.index(position)..).zip(payload) {
            self.will_write(index);
            self.words[index].store(value, Ordering::Relaxed);
        }
    }

    /// The payload of `count` words at `position`, as it is now.
    pub fn read(&self, position: u64, count: usize) -> Vec<u64> {
        let first = self.index(position);
        let load = |index| {
            self.will_read(index);
            self.words[index].load(Ordering::Relaxed)
        };
        (first..first + count).map(load).collect()
    }

    /// Copies the `len` bytes at `position`, whole words, that may be overwritten meanwhile.
    pub fn copy_out(&self, position: u64, len: usize, to: &mut Vec<u64>) -> bool {
        to.clear();
        to.extend(self.unwatched().read(position, len / 8));
        true
    }
}

/// The kernel's part of sleeping. No wake-up comes but from [`wake`], whatever the time: one that is lost is a deadlock,
/// which loom reports.
pub mod futex {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use loom::sync::atomic::AtomicU64 as Counter;
    use loom::thread::{self, Thread};

    use super::super::sync::{AtomicU64, Ordering, begin, begin_threads, trace};

    /// Addresses that one model may sleep on.
    const ADDRESSES: usize = 6;
    /// Threads of one model: all that loom takes.
    const THREADS: usize = loom::MAX_THREADS;

    #[derive(Default)]
    struct Kernel {
        /// For each address, how often it was woken. This is the kernel's lock on its queue: who goes to sleep sees all
        /// that was stored before an earlier wake-up. It gives the waker nothing.
        wakes: [Counter; ADDRESSES],
        /// The address of each of them, as met, and who sleeps. Not loom's: it is looked at in one step with `wakes`.
        queues: Mutex<(Vec<usize>, Vec<(usize, Thread)>)>,
        /// For each thread, where its light fences meet the heavy ones of all.
        processors: [Counter; THREADS],
        /// How many threads the model has.
        threads: AtomicUsize,
    }

    loom::lazy_static! {
        static ref KERNEL: Kernel = Kernel::default();
    }

    /// Boots the kernel: to be called first in a model of so many
    /// threads, so that they don't meet in booting it.
    pub fn boot(threads: usize) {
        begin();
        begin_threads(false);
        KERNEL
            .threads
            .store(threads, std::sync::atomic::Ordering::Relaxed);
        assert!(KERNEL.queues.lock().unwrap().1.is_empty());
    }

    fn queue_of(word: &AtomicU64) -> usize {
        let address = std::ptr::from_ref(word).addr();
        let known = &mut KERNEL.queues.lock().unwrap().0;
        known
            .iter()
            .position(|&at| at == address)
            .unwrap_or_else(|| {
                known.push(address);
                known.len() - 1
            })
    }

    /// Sleeps while the low half of `word` is that of `seen`, until it is woken.
    #[track_caller]
    pub fn wait(word: &AtomicU64, seen: u64, _time: Duration) {
        let queue = queue_of(word);
        let wakes = &KERNEL.wakes[queue];
        loop {
            let before = wakes.fetch_add(0, Ordering::Acquire);
            if word.load(Ordering::Relaxed) as u32 != seen as u32 {
                return;
            }
            if wakes.fetch_add(0, Ordering::Acquire) == before {
                // From that step to the end of `park`'s there is no other.
                KERNEL
                    .queues
                    .lock()
                    .unwrap()
                    .1
                    .push((queue, thread::current()));
                trace(format_args!("sleep on {queue}"));
                thread::park();
                return trace(format_args!("awake"));
            }
        }
    }

    /// How many words [`wait_any`] takes.
    pub const WAIT_ANY_MAX: usize = 4;

    /// Sleeps while the low half of each word is that of the value beside it, until one is woken. Returns early when one is
    /// woken before all are looked at.
    #[track_caller]
    pub fn wait_any<'a>(
        words: impl Iterator<Item = (&'a AtomicU64, u64)>,
        _time: Option<Duration>,
    ) {
        let mut queued = 0;
        let mut sleeps = true;
        for (word, seen) in words {
            let queue = queue_of(word);
            let wakes = &KERNEL.wakes[queue];
            let before = wakes.fetch_add(0, Ordering::Acquire);
            sleeps = word.load(Ordering::Relaxed) as u32 == seen as u32
                && wakes.fetch_add(0, Ordering::Acquire) == before;
            if !sleeps {
                break;
            }
            // In one step with the look before it.
            let sleeper = (queue, thread::current());
            KERNEL.queues.lock().unwrap().1.push(sleeper);
            queued += 1;
        }
        if sleeps {
            trace(format_args!("sleep on {queued}"));
            thread::park();
        }
        let me = thread::current().id();
        let left = {
            let sleepers = &mut KERNEL.queues.lock().unwrap().1;
            sleepers
                .extract_if(.., |(_, thread)| thread.id() == me)
                .count()
        };
        if !sleeps && left < queued {
            // Woken meanwhile: the next park would end at once.
            thread::park();
        }
        trace(format_args!("awake"));
    }

    /// Wakes all that sleep on `word`.
    #[track_caller]
    pub fn wake(word: &AtomicU64) {
        let queue = queue_of(word);
        KERNEL.wakes[queue].fetch_add(1, Ordering::Release);
        trace(format_args!("wake {queue}"));
        let sleepers = &mut KERNEL.queues.lock().unwrap().1;
        for (_, thread) in sleepers.extract_if(.., |(asleep_on, _)| *asleep_on == queue) {
            thread.unpark();
        }
    }

    fn processor() -> usize {
        let id = format!("{:?}", thread::current().id());
        id.trim_matches(|c: char| !c.is_ascii_digit())
            .parse()
            .expect("loom numbers its threads")
    }

    /// The light half of the barrier: an order with the heavy halves of others, but none with their light ones.
    pub fn light() {
        KERNEL.processors[processor()].fetch_add(0, Ordering::AcqRel);
    }

    /// The heavy half, but for the fence of its own.
    pub fn heavy() {
        let threads = KERNEL.threads.load(std::sync::atomic::Ordering::Relaxed);
        for other in (0..threads).filter(|&other| other != processor()) {
            KERNEL.processors[other].fetch_add(0, Ordering::AcqRel);
        }
    }
}
