//! The system calls that put a thread to sleep, wake one, and fence other processes. `unsafe`, and no algorithm.

use std::io;
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

/// How many words [`wait_any`] takes.
pub const WAIT_ANY_MAX: usize = 128;

/// One word of the kernel's `futex_waitv`.
#[repr(C)]
struct Waiting {
    seen: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}
/// The word has 32 bits, and is known by its file, not by its address (as it would be with `FUTEX2_PRIVATE`).
const FUTEX2_SIZE_U32: u32 = 2;

/// Sleeps while the low half of each word is that of the value beside it, at most `time`; [`WAIT_ANY_MAX`] words at most.
/// Returns early as [`wait`] does.
pub fn wait_any<'a>(words: impl Iterator<Item = (&'a AtomicU64, u64)>, time: Option<Duration>) {
    let mut waiting: [Waiting; WAIT_ANY_MAX] = std::array::from_fn(|_| Waiting {
        seen: 0,
        address: 0,
        flags: FUTEX2_SIZE_U32,
        reserved: 0,
    });
    let mut count = 0;
    for (one, (word, seen)) in waiting.iter_mut().zip(words) {
        one.seen = u64::from(seen as u32);
        one.address = low_half(word).addr() as u64;
        count += 1;
    }
    let deadline = time.map(from_now);
    let deadline = deadline
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the first `count` are filled in with the addresses of live, aligned words, which the kernel only reads;
    // `waiting` and `deadline` outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            waiting.as_ptr(),
            count,
            0,
            deadline,
            libc::CLOCK_MONOTONIC,
        );
    }
}

/// The time on the monotonic clock when `time` will have passed.
fn from_now(time: Duration) -> libc::timespec {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes the time to `now`, and this clock always exists.
    unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now);
    }
    let nanos = now.tv_nsec as u64 + u64::from(time.subsec_nanos());
    let carry = nanos / 1_000_000_000;
    now.tv_sec = now
        .tv_sec
        .saturating_add_unsigned(time.as_secs().saturating_add(carry).min(i32::MAX as u64));
    now.tv_nsec = (nanos % 1_000_000_000) as libc::c_long;
    now
}

/// Whether the kernel has `futex_waitv` (Linux 5.16 and later), and lets us call it.
pub fn has_wait_any() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        // SAFETY: without words there is nothing to read: the kernel says that this is invalid.
        let answer = unsafe { libc::syscall(libc::SYS_futex_waitv, 0, 0, 0, 0, 0) };
        answer == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
    })
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
