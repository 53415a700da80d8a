//! The atomics of the core: the processor's, loom's when a model runs, or those of memory that lies.
//!
//! Under `--cfg loom` every operation also asks whether it is the one that the mutation run wants weakened: the run
//! names a place in the source and a way, and the operation there is carried out with the weaker ordering, or not at all. And
//! a model may have a thread [die](die_after) before any of its stores, as a process may.

#[cfg(adversary)]
pub use super::adversary::AtomicU64;
#[cfg(not(any(loom, adversary)))]
pub use std::sync::atomic::AtomicU64;
#[cfg(not(loom))]
pub use std::sync::atomic::{Ordering, fence};

/// The cheap half of the barrier whose dear half is [`heavy_fence`]: it only keeps the compiler from moving a load
/// before a store. Where the other side could not run `membarrier` (`full`), it is a whole fence.
#[cfg(not(loom))]
#[inline]
pub fn light_fence(full: bool) {
    if full {
        fence(Ordering::SeqCst);
    } else {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }
}

/// Between a read-modify-write and the loads behind it: neither of two that do this can miss both the other's change.
/// On x86-64 every read-modify-write is a whole fence already.
#[cfg(not(loom))]
#[inline]
pub fn swap_fence() {
    if cfg!(target_arch = "x86_64") {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// The dear half: after it, every process that is registered for it has either made its earlier stores visible here,
/// or will see our earlier stores in its later loads.
#[cfg(not(loom))]
pub fn heavy_fence() {
    fence(Ordering::SeqCst);
    super::futex::barrier();
}

#[cfg(loom)]
pub use std::sync::atomic::Ordering;
#[cfg(loom)]
pub use weakened::{
    AtomicU64, begin, begin_threads, die_after, fence, heavy_fence, light_fence, swap_fence, trace,
};

#[cfg(loom)]
mod weakened {
    use std::collections::BTreeSet;
    use std::io::Write;
    use std::panic::Location;
    use std::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release, SeqCst};
    use std::sync::{LazyLock, Mutex};

    use loom::sync::atomic::AtomicU64 as Word;

    /// A place in the source, and how the operation there is weakened.
    struct Wish {
        file: String,
        line: u32,
        column: u32,
        how: How,
    }

    #[derive(Clone, Copy)]
    enum How {
        With(Ordering),
        /// A fence or a store that is not there.
        Drop,
    }

    /// `BUSLANE_WEAKEN=file:line:column=how`: the one operation to weaken, and how (`relaxed`, `acquire`, `release`,
    /// `acqrel`, `none`).
    static WISH: LazyLock<Option<Wish>> = LazyLock::new(|| {
        let wish = std::env::var("BUSLANE_WEAKEN").ok()?;
        let (place, how) = wish.split_once('=').expect("a place and a way");
        let [file, line, column] = place.split(':').collect::<Vec<_>>()[..] else {
            panic!("file:line:column")
        };
        let how = match how {
            "relaxed" => How::With(Relaxed),
            "acquire" => How::With(Acquire),
            "release" => How::With(Release),
            "acqrel" => How::With(AcqRel),
            "none" => How::Drop,
            _ => panic!("no such way: {how}"),
        };
        Some(Wish {
            file: file.to_owned(),
            line: line.parse().unwrap(),
            column: column.parse().unwrap(),
            how,
        })
    });

    /// `BUSLANE_SITES=FILE`: where each place that was met with an ordering that could be weakened is appended, and each store.
    static SITES: LazyLock<Option<(std::fs::File, Mutex<BTreeSet<String>>)>> =
        LazyLock::new(|| {
            let path = std::env::var_os("BUSLANE_SITES")?;
            let file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .unwrap();
            Some((file, Mutex::default()))
        });

    /// The ordering to use here in place of `order`; `None`: the operation is not to be carried out.
    #[track_caller]
    fn chosen(what: &str, order: Ordering) -> Option<Ordering> {
        let at = Location::caller();
        if let Some((file, seen)) = &*SITES
            && (order != Relaxed || what != "load")
        {
            let line = format!(
                "{}:{}:{} {what} {order:?}\n",
                at.file(),
                at.line(),
                at.column()
            );
            if seen.lock().unwrap().insert(line.clone()) {
                let mut file: &std::fs::File = file;
                file.write_all(line.as_bytes()).unwrap();
            }
        }
        match &*WISH {
            Some(wish)
                if wish.line == at.line()
                    && wish.column == at.column()
                    && wish.file == at.file() =>
            {
                match wish.how {
                    How::With(order) => Some(order),
                    How::Drop => None,
                }
            }
            _ => Some(order),
        }
    }

    thread_local! {
        /// Which thread of the model dies, and after how many more changes. (They are all in one thread of the system.)
        static DIES: std::cell::Cell<Option<(loom::thread::ThreadId, usize)>> = const { std::cell::Cell::new(None) };
    }

    /// What a thread that dies unwinds with.
    struct Died;

    /// Runs `body`, which stands for a process that is killed when it comes to one more than so many changes of shared words, if it
    /// does: whether it was. One at a time.
    pub fn die_after(changes: usize, body: impl FnOnce()) -> bool {
        DIES.set(Some((loom::thread::current().id(), changes)));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        DIES.set(None);
        match done {
            Ok(()) => false,
            Err(panic) if panic.is::<Died>() => true,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A shared word is about to be changed.
    fn live_or_die() {
        let Some((who, left)) = DIES.get() else {
            return;
        };
        if who != loom::thread::current().id() || std::thread::panicking() {
            return;
        }
        if left == 0 {
            trace(format_args!("dies"));
            std::panic::resume_unwind(Box::new(Died));
        }
        DIES.set(Some((who, left - 1)));
    }

    static STEPS: Mutex<Vec<String>> = Mutex::new(Vec::new());

    /// `BUSLANE_TRACE=1`: every step of the execution that fails is printed. For one model at a time.
    static TRACED: LazyLock<bool> = LazyLock::new(|| {
        let wanted = std::env::var_os("BUSLANE_TRACE").is_some();
        if wanted {
            std::panic::set_hook(Box::new(|panic| {
                eprintln!("{}{panic}", STEPS.lock().unwrap().join("\n"));
            }));
        }
        wanted
    });

    /// An execution begins.
    pub fn begin() {
        if *TRACED {
            STEPS.lock().unwrap().clear();
        }
    }

    #[track_caller]
    pub fn trace(what: std::fmt::Arguments<'_>) {
        if *TRACED {
            let at = Location::caller();
            let step = format!(
                "{:?} {}:{} {what}",
                loom::thread::current().id(),
                at.file(),
                at.line()
            );
            STEPS.lock().unwrap().push(step);
        }
    }

    thread_local! {
        /// Whether the execution has other threads yet: who stores before that only prepares the words for their owners.
        static HAS_BEGUN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }

    /// See `HAS_BEGUN`.
    pub fn begin_threads(begin: bool) {
        HAS_BEGUN.set(begin);
    }

    /// loom's word, with the operations that the core uses.
    #[derive(Debug, Default)]
    pub struct AtomicU64 {
        word: Word,
        /// Who stored last, and what: for the loads of a word by its only writer, which are no steps of the model. loom
        /// compares a step with the last one on the same word alone, so that a load by who stores next would hide the
        /// loads of others before it: it would not try the store before them.
        own: Mutex<Option<(loom::thread::ThreadId, u64)>>,
    }

    impl AtomicU64 {
        pub fn new(value: u64) -> Self {
            Self {
                word: Word::new(value),
                own: Mutex::default(),
            }
        }
        #[track_caller]
        pub fn load(&self, order: Ordering) -> u64 {
            match *self.own.lock().unwrap() {
                Some((by, value)) if by == loom::thread::current().id() => return value,
                _ => {}
            }
            let value = self.word.load(chosen("load", order).unwrap_or(order));
            trace(format_args!("load {value}"));
            value
        }
        #[track_caller]
        pub fn store(&self, value: u64, order: Ordering) {
            live_or_die();
            let Some(order) = chosen("store", order) else {
                return;
            };
            self.word.store(value, order);
            let has_begun = HAS_BEGUN.get();
            *self.own.lock().unwrap() = has_begun.then(|| (loom::thread::current().id(), value));
            trace(format_args!("store {value}"));
        }
        #[track_caller]
        pub fn fetch_add(&self, by: u64, order: Ordering) -> u64 {
            self.change(Word::fetch_add, by, order)
        }
        #[track_caller]
        pub fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
            self.change(Word::fetch_max, value, order)
        }
        #[track_caller]
        pub fn swap(&self, value: u64, order: Ordering) -> u64 {
            self.change(Word::swap, value, order)
        }
        #[track_caller]
        fn change(
            &self,
            change: fn(&Word, u64, Ordering) -> u64,
            value: u64,
            order: Ordering,
        ) -> u64 {
            live_or_die();
            let Some(order) = chosen("rmw", order) else {
                return self.word.load(Relaxed);
            };
            let old = change(&self.word, value, order);
            *self.own.lock().unwrap() = None;
            trace(format_args!("{old} changed by {value}"));
            old
        }
        /// One that fails is a `Relaxed` load.
        #[track_caller]
        pub fn compare_exchange(
            &self,
            old: u64,
            new: u64,
            order: Ordering,
            _: Ordering,
        ) -> Result<u64, u64> {
            live_or_die();
            let order = chosen("swap", order).unwrap_or(order);
            let swapped = self.word.compare_exchange(old, new, order, Relaxed);
            *self.own.lock().unwrap() = None;
            trace(format_args!("{old} -> {new}: {swapped:?}"));
            swapped
        }
    }

    /// See above.
    #[track_caller]
    pub fn swap_fence() {
        fence(SeqCst);
    }

    #[track_caller]
    pub fn fence(order: Ordering) {
        if let Some(order) = chosen("fence", order) {
            loom::sync::atomic::fence(order);
            trace(format_args!("fence"));
        }
    }

    /// An order with the heavy fences of others only; `full`: also with the light ones.
    #[track_caller]
    pub fn light_fence(full: bool) {
        match chosen("fence", SeqCst) {
            Some(SeqCst) if full => loom::sync::atomic::fence(SeqCst),
            Some(SeqCst) => super::super::heap::futex::light(),
            _ => {}
        }
        trace(format_args!("light fence"));
    }

    #[track_caller]
    pub fn heavy_fence() {
        if let Some(order) = chosen("fence", SeqCst) {
            loom::sync::atomic::fence(order);
            if order == SeqCst {
                super::super::heap::futex::heavy();
                loom::sync::atomic::fence(order);
            }
        }
        trace(format_args!("heavy fence"));
    }
}
