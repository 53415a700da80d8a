//! Ending on SIGINT and SIGTERM with everything put away.
//!
//! The first signal asks: it sets a number that loops look at, and makes a pipe readable that whoever blocks on a
//! file descriptor polls too. Handles are then dropped on the ordinary way out. The second signal ends at once.
#![allow(clippy::disallowed_types)] // A signal handler can set nothing but an atomic.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::time::TimeSpec;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use crate::failure::Failure;

/// How long a wait inside the library, which a signal does not interrupt, lasts before it is asked for again.
pub const SLICE: Duration = Duration::from_millis(500);

/// Whether a signal has asked this process to end.
#[derive(Debug)]
pub struct Stop {
    signal: Arc<AtomicUsize>,
    pipe: UnixStream,
}

impl Stop {
    /// Takes over SIGINT and SIGTERM.
    pub fn install() -> Result<Self, Failure> {
        Self::register().map_err(Failure::system("handle signals"))
    }

    fn register() -> io::Result<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        let second = Arc::new(AtomicBool::new(false));
        let (pipe, written) = UnixStream::pair()?;
        for number in [SIGINT, SIGTERM] {
            // In this order: the first signal finds `second` unset and sets it.
            flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&second))?;
            flag::register(number, Arc::clone(&second))?;
            flag::register_usize(number, Arc::clone(&signal), number.unsigned_abs() as usize)?;
            low_level::pipe::register(number, written.try_clone()?)?;
        }
        Ok(Self { signal, pipe })
    }

    /// An error once a signal has come.
    pub fn check(&self) -> Result<(), Failure> {
        // Relaxed: the number is all there is to see.
        match self.signal.load(Ordering::Relaxed) {
            0 => Ok(()),
            number => Err(Failure::Signal(u8::try_from(number).unwrap_or(0))),
        }
    }

    /// Whether a signal has come, for which ending is no failure: then it is forgotten.
    pub fn take(&self) -> bool {
        // Relaxed: as above.
        self.signal.swap(0, Ordering::Relaxed) != 0
    }

    /// Sleeps for `time`; false: a signal came first.
    pub fn sleep(&self, time: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(time)), None) {
            Ok(ready) => Ok(ready == 0),
            // By a signal that asks for nothing: the caller looks at the time again.
            Err(Errno::EINTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until `fd` can be read; false: a signal came first.
    pub fn wait_readable(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        self.wait(fd, PollFlags::POLLIN)
    }

    /// Waits until `fd` can be written; false: a signal came first.
    pub fn wait_writable(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        self.wait(fd, PollFlags::POLLOUT)
    }

    /// Waits until `fd` has one of these to tell, or an error, at most `time`; whether it has. A signal, of whatever kind, ends it
    /// sooner.
    pub fn wait_for(
        &self,
        fd: BorrowedFd<'_>,
        flags: PollFlags,
        time: Duration,
    ) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(fd, flags),
            PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN),
        ];
        // Rounded up: not to be awake too early.
        let time = time.saturating_add(Duration::from_millis(1));
        let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, time) {
            Ok(_) => Ok(fds[0].any().unwrap_or(true)),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn wait(&self, fd: BorrowedFd<'_>, flags: PollFlags) -> io::Result<bool> {
        // What the signal wrote is never read, so that it ends every later wait as well.
        let mut fds = [
            PollFd::new(fd, flags),
            PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => return Ok(!fds[1].any().unwrap_or(false)),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
