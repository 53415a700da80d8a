//! What each system call may give, by its manual page, as far as it is the system's to say: not what only a wrong argument
//! gives (EBADF, EFAULT, EINVAL mostly), or what would not be true (ENOENT for what is there).

use nix::errno::Errno::{self, *};
use nix::libc::{self, c_long};

use super::tracer::{Call, Fate, is_file};

/// A call that may fail.
pub struct May {
    pub number: c_long,
    pub name: &'static str,
    pub errors: &'static [Errno],
    /// Nothing depends on it: the operation goes on as if nothing had been.
    pub is_harmless: bool,
}

const fn may(number: c_long, name: &'static str, errors: &'static [Errno]) -> May {
    May {
        number,
        name,
        errors,
        is_harmless: false,
    }
}

const fn harmless(number: c_long, name: &'static str, errors: &'static [Errno]) -> May {
    May {
        is_harmless: true,
        ..may(number, name, errors)
    }
}

#[rustfmt::skip]
pub const MAY_FAIL: &[May] = &[
    may(libc::SYS_openat, "openat", &[EINTR, EACCES, EDQUOT, EIO, EMFILE, ENFILE, ENODEV, ENOMEM, ENOSPC, EOPNOTSUPP, EPERM, EROFS]),
    // Where there is no such call, or it is not allowed, the older one does.
    may(libc::SYS_openat2, "openat2", &[EINTR, EACCES, EIO, EMFILE, ENFILE, ENODEV, ENOMEM, ENOSYS, EPERM]),
    may(libc::SYS_mkdirat, "mkdirat", &[EACCES, EDQUOT, EIO, EMLINK, ENOMEM, ENOSPC, EROFS]),
    may(libc::SYS_fchmod, "fchmod", &[EINTR, EIO, ENOMEM, EPERM, EROFS]),
    may(libc::SYS_fstat, "fstat", &[EIO, ENOMEM]),
    may(libc::SYS_newfstatat, "newfstatat", &[EACCES, EIO, ENOMEM]),
    may(libc::SYS_statx, "statx", &[EACCES, EIO, ENOMEM]),
    may(libc::SYS_fstatfs, "fstatfs", &[EINTR, EIO, ENOMEM, ENOSYS]),
    may(libc::SYS_fallocate, "fallocate", &[EINTR, EDQUOT, EFBIG, EIO, ENOSPC, ENOSYS, EOPNOTSUPP]),
    may(libc::SYS_ftruncate, "ftruncate", &[EINTR, EFBIG, EIO, EPERM]),
    may(libc::SYS_pwrite64, "pwrite64", &[EINTR, EDQUOT, EFBIG, EIO, ENOSPC]),
    may(libc::SYS_pread64, "pread64", &[EINTR, EIO]),
    may(libc::SYS_fcntl, "fcntl", &[EINTR, EMFILE, ENOLCK]),
    may(libc::SYS_linkat, "linkat", &[EACCES, EDQUOT, EIO, EMLINK, ENOMEM, ENOSPC, EPERM, EROFS]),
    may(libc::SYS_renameat2, "renameat2", &[EACCES, EDQUOT, EINVAL, EIO, ENOMEM, ENOSPC, EROFS]),
    may(libc::SYS_rename, "rename", &[EACCES, EDQUOT, EIO, ENOMEM, ENOSPC, EROFS]),
    may(libc::SYS_unlinkat, "unlinkat", &[EACCES, EBUSY, EIO, ENOMEM, EPERM, EROFS]),
    may(libc::SYS_rmdir, "rmdir", &[EACCES, EBUSY, EIO, ENOMEM, EPERM, EROFS]),
    may(libc::SYS_getdents64, "getdents64", &[EIO]),
    may(libc::SYS_mmap, "mmap", &[EACCES, EAGAIN, ENFILE, ENODEV, ENOMEM, EPERM]),
    may(libc::SYS_read, "read", &[EINTR, EIO]),
    may(libc::SYS_fdatasync, "fdatasync", &[EINTR, EDQUOT, EIO, ENOSPC, EROFS]),
    may(libc::SYS_fsync, "fsync", &[EINTR, EDQUOT, EIO, ENOSPC, EROFS]),
    may(libc::SYS_eventfd2, "eventfd2", &[EMFILE, ENFILE, ENODEV, ENOMEM]),
    may(libc::SYS_clone3, "clone3", &[EAGAIN, ENOMEM, EPERM, ENOSYS]),
    may(libc::SYS_clone, "clone", &[EAGAIN, ENOMEM, EPERM]),
    may(libc::SYS_madvise, "madvise", &[EAGAIN, EIO, ENOMEM]),
    harmless(libc::SYS_munmap, "munmap", &[ENOMEM]),
    harmless(libc::SYS_close, "close", &[EINTR, EDQUOT, EIO, ENOSPC]),
    harmless(libc::SYS_futex, "futex", &[EINTR, EAGAIN, ETIMEDOUT]),
    may(libc::SYS_futex_waitv, "futex_waitv", &[EINTR, EAGAIN, ENOMEM, ENOSYS, EPERM, ETIMEDOUT]),
    harmless(libc::SYS_membarrier, "membarrier", &[EINVAL, ENOSYS, EPERM]),
    harmless(libc::SYS_inotify_init1, "inotify_init1", &[EMFILE, ENFILE, ENOMEM, ENOSYS]),
    harmless(libc::SYS_inotify_add_watch, "inotify_add_watch", &[EACCES, ENOENT, ENOMEM, ENOSPC]),
    harmless(libc::SYS_poll, "poll", &[EINTR, EAGAIN, ENOMEM]),
    harmless(libc::SYS_write, "write", &[EINTR]),
    harmless(libc::SYS_fadvise64, "fadvise64", &[EINVAL]),
    harmless(libc::SYS_clock_nanosleep, "clock_nanosleep", &[EINTR]),
    harmless(libc::SYS_getrandom, "getrandom", &[EINTR]),
];

/// Those that can't fail as they are used here, or that are the allocator's, which ends the process if it gets no memory.
#[rustfmt::skip]
pub const NEVER_FAIL: &[c_long] = &[
    libc::SYS_brk, libc::SYS_mprotect, libc::SYS_mremap, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_geteuid,
    libc::SYS_prctl, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_lseek,
    libc::SYS_restart_syscall, libc::SYS_tgkill,
];

impl May {
    /// That of a call which may fail here. `None`: it may not. Panics if nobody has said.
    pub fn of(call: &Call) -> Option<&'static Self> {
        if NEVER_FAIL.contains(&call.number) {
            return None;
        }
        let may = MAY_FAIL.iter().find(|may| may.number == call.number);
        let may = may.unwrap_or_else(|| panic!("what may {call:?} give?"));
        let flags = call.arguments[3];
        let is_open = match call.number {
            // Threads' stacks, and spaces for mappings. The rest that is of no file is the allocator's, and stacks for signals,
            // without which Rust ends the process, too.
            libc::SYS_mmap => {
                let is_stack = call.arguments[2] == libc::PROT_NONE as u64
                    && flags & libc::MAP_STACK as u64 != 0;
                is_file(call) || is_stack || call.arguments[2] == libc::PROT_READ as u64
            }
            libc::SYS_munmap => call.is_of_file,
            // 0, 1 and 2 are the harness's.
            libc::SYS_write => call.arguments[0] > 2,
            libc::SYS_futex => is_wait(call),
            libc::SYS_fcntl => {
                let command = call.arguments[1] as i32;
                [libc::F_OFD_SETLK, libc::F_OFD_GETLK, libc::F_DUPFD_CLOEXEC].contains(&command)
            }
            _ => true,
        };
        is_open.then_some(may)
    }

    /// What is to become of this call if it is to give `errno`. `None`: it does not give that.
    pub fn refuse(&self, call: &Call, errno: Errno) -> Option<Fate> {
        let is_made_first = call.number == libc::SYS_close;
        let gives = match (call.number, errno) {
            (libc::SYS_futex, ETIMEDOUT) => call.arguments[3] != 0,
            (libc::SYS_futex_waitv, ETIMEDOUT) => call.arguments[1] > 0 && call.arguments[3] != 0,
            (libc::SYS_fcntl, ENOLCK) => !is_copy(call) && !call.is_unlock,
            (libc::SYS_fcntl, EMFILE) => is_copy(call),
            (libc::SYS_fcntl, EINTR) => !is_copy(call),
            (libc::SYS_openat, EDQUOT | ENOSPC | EOPNOTSUPP | EROFS) => is_making(call),
            // Without anything to wait for, it is asked whether there is such a call.
            (libc::SYS_futex_waitv, ENOSYS | EPERM) => call.arguments[1] == 0,
            (libc::SYS_futex_waitv, _) => call.arguments[1] > 0,
            _ => true,
        };
        gives.then_some(match is_made_first {
            true => Fate::MadeButGives(errno),
            false => Fate::Refused(errno),
        })
    }

    /// Whether it may do less than it was asked to.
    pub fn may_be_short(&self) -> bool {
        [libc::SYS_pread64, libc::SYS_pwrite64].contains(&self.number)
    }
}

/// Of a descriptor.
fn is_copy(call: &Call) -> bool {
    call.arguments[1] as i32 == libc::F_DUPFD_CLOEXEC
}

fn is_making(call: &Call) -> bool {
    let flags = call.arguments[2] as i32;
    flags & libc::O_CREAT != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE
}

fn is_wait(call: &Call) -> bool {
    let operation =
        call.arguments[1] as i32 & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    [libc::FUTEX_WAIT, libc::FUTEX_WAIT_BITSET].contains(&operation)
}
