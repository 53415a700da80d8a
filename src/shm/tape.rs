//! What reaches the files of durable lanes, in the order in which it was stored, for tests that play back what a disk may have
//! kept of it: the storage seam. Without tests there is nothing of it.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::sys::stat::fstat;

/// Something that was done to a file.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes were stored at an offset in the file with this path.
    Store(PathBuf, u64, Vec<u8>),
    /// What was stored in the file with this number, before, is on the disk.
    Sync(u64),
}

static TAPE: Mutex<Option<Vec<Event>>> = Mutex::new(None);

fn push(event: impl FnOnce() -> Option<Event>) {
    let mut tape = TAPE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(tape) = &mut *tape {
        tape.extend(event());
    }
}

/// Records from now on.
pub fn start() {
    *TAPE.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
}

/// What was recorded so far.
pub fn events() -> Vec<Event> {
    let tape = TAPE.lock().unwrap_or_else(PoisonError::into_inner);
    tape.clone().unwrap_or_default()
}

/// Bytes are stored in a file.
pub fn store(path: impl FnOnce() -> PathBuf, offset: u64, bytes: &[u8]) {
    push(|| Some(Event::Store(path(), offset, bytes.to_vec())));
}

/// The same by its open descriptor.
pub fn store_by(fd: &impl AsFd, offset: u64, bytes: &[u8]) {
    use std::os::fd::AsRawFd;
    push(|| {
        let own = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
        Some(Event::Store(
            std::fs::read_link(own).ok()?,
            offset,
            bytes.to_vec(),
        ))
    });
}

/// A file is synced.
pub fn sync(fd: &impl AsFd) {
    push(|| Some(Event::Sync(fstat(fd.as_fd()).ok()?.st_ino)));
}
