//! The atomics of the core: the processor's, or loom's when a model runs.
//!
//! Under `--cfg loom` every operation also asks whether it is the one that the mutation run wants weakened: the run
//! names a place in the source and a way, and the operation there is carried out with the weaker ordering.

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU64, Ordering, fence};

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

/// The dear half: after it, every process that is registered for it has either made its earlier stores visible here,
/// or will see our earlier stores in its later loads.
#[cfg(not(loom))]
pub fn heavy_fence() {
    fence(Ordering::SeqCst);
    super::futex::barrier();
}

#[cfg(loom)]
pub use weakened::{AtomicU64, fence, heavy_fence, light_fence};
#[cfg(loom)]
pub use std::sync::atomic::Ordering;

#[cfg(loom)]
mod weakened {
    use std::panic::Location;
    use std::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release, SeqCst};
    use std::sync::{Mutex, OnceLock};

    /// `BUSLANE_WEAKEN=file:line:column=how`: the one operation to weaken, and how (`relaxed`, `acquire`, `release`,
    /// `acqrel`, `none`).
    fn weakened(at: &Location<'_>) -> Option<&'static str> {
        static WISH: OnceLock<Option<(String, String)>> = OnceLock::new();
        let wish = WISH.get_or_init(|| {
            let wish = std::env::var("BUSLANE_WEAKEN").ok()?;
            let (place, how) = wish.split_once('=')?;
            Some((place.to_owned(), how.to_owned()))
        });
        let (place, how) = wish.as_ref()?;
        (*place == place_of(at)).then_some(how.as_str())
    }

    fn place_of(at: &Location<'_>) -> String {
        format!("{}:{}:{}", at.file(), at.line(), at.column())
    }

    /// `BUSLANE_SITES=FILE`: append each place that was met with an ordering that could be weakened.
    fn note(at: &Location<'_>, what: &str, order: Ordering) {
        static SEEN: OnceLock<Option<(String, Mutex<std::collections::BTreeSet<String>>)>> = OnceLock::new();
        let Some((path, seen)) = SEEN
            .get_or_init(|| Some((std::env::var("BUSLANE_SITES").ok()?, Mutex::default())))
            .as_ref()
        else {
            return;
        };
        let line = format!("{} {what} {order:?}\n", place_of(at));
        if order != Relaxed && seen.lock().unwrap().insert(line.clone()) {
            use std::io::Write;
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
            file.write_all(line.as_bytes()).unwrap();
        }
    }

    #[track_caller]
    fn chosen(what: &str, order: Ordering) -> Option<Ordering> {
        let at = Location::caller();
        note(at, what, order);
        match weakened(at) {
            None => Some(order),
            Some("relaxed") => Some(Relaxed),
            Some("acquire") => Some(Acquire),
            Some("release") => Some(Release),
            Some("acqrel") => Some(AcqRel),
            Some(_) => None,
        }
    }

    /// loom's word, with the operations that the core uses.
    #[derive(Debug, Default)]
    pub struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }
        #[track_caller]
        pub fn load(&self, order: Ordering) -> u64 {
            self.0.load(chosen("load", order).unwrap_or(Relaxed))
        }
        #[track_caller]
        pub fn store(&self, value: u64, order: Ordering) {
            self.0.store(value, chosen("store", order).unwrap_or(Relaxed));
        }
        #[track_caller]
        pub fn fetch_add(&self, by: u64, order: Ordering) -> u64 {
            self.0.fetch_add(by, chosen("rmw", order).unwrap_or(Relaxed))
        }
        #[track_caller]
        pub fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
            self.0.fetch_or(bits, chosen("rmw", order).unwrap_or(Relaxed))
        }
    }

    #[track_caller]
    pub fn fence(order: Ordering) {
        if let Some(order) = chosen("fence", order) {
            loom::sync::atomic::fence(order);
        }
    }

    /// loom has no `membarrier`; both halves are whole fences in a model.
    #[track_caller]
    pub fn light_fence(_full: bool) {
        fence(SeqCst);
    }

    #[track_caller]
    pub fn heavy_fence() {
        fence(SeqCst);
    }
}
