//! The system calls that put a thread to sleep, wake one, and fence other processes. `unsafe`, and no algorithm.

use std::sync::OnceLock;
use std::time::Duration;

use super::sync::AtomicU64;

/// The low half of `word`: a futex has 32 bits.
fn low_half(word: &AtomicU64) -> *const u32 {
    std::ptr::from_ref(word).cast()
}

/// Sleeps while the low half of `word` is that of `seen`, at most `time`. Returns early, too, on a signal or a stray
/// wake-up: the caller looks again at what it waits for.
pub fn wait(word: &AtomicU64, seen: u64, time: Duration) {
    let time = libc::timespec {
        tv_sec: time.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: libc::c_long::from(time.subsec_nanos() as i32),
    };
    // SAFETY: the address is that of a live, aligned word, and the kernel only reads it; `time` outlives the call. The
    // operation is the shared one: the word is known by its file, not by its address.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            low_half(word),
            libc::FUTEX_WAIT,
            seen as u32,
            &raw const time,
        );
    }
}

/// Wakes all that sleep on `word`.
pub fn wake(word: &AtomicU64) {
    // SAFETY: as for `wait`; nothing is read or written.
    unsafe {
        libc::syscall(libc::SYS_futex, low_half(word), libc::FUTEX_WAKE, i32::MAX);
    }
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: membarrier touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Whether this process takes part in [`barrier`], asked and registered for once.
pub fn has_barrier() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| membarrier(libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED))
}

/// A full memory barrier on every processor that runs a registered process now.
pub fn barrier() {
    if has_barrier() {
        membarrier(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED);
    }
}
