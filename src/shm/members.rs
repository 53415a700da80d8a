//! Who is alive. Each open bus is a member: a file in `members/`, locked while its process lives. The kernel drops the
//! lock however the process ends, and closes the file, which rings the doorbell: an inotify watch in each process.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use zerocopy::{FromBytes, IntoBytes};

use super::files::{self, Dir, Plan, skip_damaged};
use super::fork::{self, Held};
use super::layout::{Identity, Kind, MemberInfo};
use crate::error::{Error, ErrorKind, Result};

/// How often the members are looked through where inotify has run out, or somebody holds what a dead one left.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How often they are looked through when it is not clear what became of one.
const TRIES: u32 = 4;
/// The kernel closes a file, and rings, just before it drops the lock: how long that may take, and the steps.
pub const LOCK_LINGERS: [Duration; 8] = {
    let mut steps = [Duration::ZERO; 8];
    let mut i = 1;
    while i < steps.len() {
        steps[i] = Duration::from_micros(25 << i);
        i += 1;
    }
    steps
};

/// A member has the lock of its whole file: of this byte, by which it is seen to live,
const LIFE: u64 = 0;
/// and of this one, which is that of who puts away what it has left.
const SWEEP: u64 = 1;

fn file_name(id: u64) -> String {
    format!("{id:016x}")
}

/// This process's file in `members/`.
#[derive(Debug)]
pub struct Member {
    dir: Arc<Dir>,
    id: u64,
    /// Says that we live.
    _lock: Held,
    /// Something of ours could not be put away: our file stays, for others to do it as if we had died.
    owes: OnceLock<()>,
    born: u64,
}

impl Member {
    /// Joins the bus whose `members/` this is.
    pub fn join(dir: Arc<Dir>, bus: &str) -> Result<Self> {
        let mut name = [0; 56];
        let own = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
        let own = own.trim_end().as_bytes();
        let name_len = own.len().min(name.len());
        name[..name_len].copy_from_slice(&own[..name_len]);
        let info = MemberInfo {
            pid: std::process::id(),
            name_len: name_len as u32,
            name,
        };
        loop {
            let id = files::random().map_err(|e| Error::system("join the bus", bus, e))?;
            let size = (size_of::<Identity>() + size_of::<MemberInfo>()) as u64;
            let identity = Identity::new(Kind::Member, size, id, 0);
            let content = info.as_bytes();
            let plan = Plan {
                tried: "join the bus",
                identity,
                allocate: size,
                content,
                lock: true,
            };
            let staying = fork::stay();
            if let Some((file, ())) = dir.create_draft(&file_name(id), &plan, |_| Ok(()))? {
                return Ok(Self {
                    dir,
                    id,
                    _lock: staying.hold(file),
                    owes: OnceLock::new(),
                    born: fork::generation(),
                });
            }
        }
    }

    /// Random, never reused.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Leaves something of ours for others to put away when we have left.
    pub fn owe(&self) {
        self.owes.get_or_init(|| ());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.born == fork::generation() && self.owes.get().is_none() {
            // Best effort: a file without a lock is removed by the next one who looks.
            let _ = self.dir.remove(&file_name(self.id));
        }
    }
}

/// Who owns a lane or a cursor. May have changed by the time it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Owner {
    /// As that process sees itself.
    pub pid: u32,
    /// Its command name.
    pub name: String,
    /// Whether it still runs.
    pub alive: bool,
}

impl Owner {
    /// One of whom nothing is to be seen.
    pub(crate) fn unseen(alive: bool) -> Self {
        let name = String::from("?");
        Self {
            pid: 0,
            name,
            alive,
        }
    }
}

/// A member's file, and whether it is whole. After a crash of the machine it may have no content: its lock counts all the same.
fn open(dir: &Dir, id: u64, write: bool) -> Result<Option<(OwnedFd, bool)>> {
    let name = file_name(id);
    match dir.open_file(&name, Kind::Member, write) {
        Err(e) if matches!(e.kind(), ErrorKind::NotBuslane | ErrorKind::Corrupt) => {
            let opened = skip_damaged(dir.open_any(&name, write))?;
            Ok(opened.map(|(file, _)| (file, false)))
        }
        opened => Ok(opened?.map(|(file, _)| (file, true))),
    }
}

/// Looks a member up.
pub fn owner(dir: &Dir, id: u64) -> Result<Owner> {
    let Some((file, is_whole)) = open(dir, id, false)? else {
        return Ok(Owner::unseen(false));
    };
    let path = || dir.path().display().to_string();
    let alive = files::is_byte_locked(&file, LIFE)
        .map_err(|e| Error::system("look at a member of", path(), e))?;
    if !is_whole {
        return Ok(Owner::unseen(alive));
    }
    let mut bytes = [0; size_of::<MemberInfo>()];
    files::read_at(&file, size_of::<Identity>() as u64, &mut bytes)
        .map_err(|e| Error::system("read a member of", path(), e))?;
    let info = MemberInfo::read_from_bytes(&bytes).expect("as many bytes as a member has");
    let name = &info.name[..info.name.len().min(info.name_len as usize)];
    Ok(Owner {
        pid: info.pid,
        name: String::from_utf8_lossy(name).into_owned(),
        alive,
    })
}

/// All that are listed.
pub fn all(dir: &Dir) -> Result<Vec<(u64, Owner)>> {
    let names = dir.names()?;
    let ids = names
        .iter()
        .filter_map(|name| u64::from_str_radix(name, 16).ok());
    ids.map(|id| Ok((id, owner(dir, id)?))).collect()
}

/// The members that have died and were not put away, each with its lock, so that one process at a time does that.
pub fn dead(dir: &Dir) -> Result<Vec<Dead>> {
    let names = dir.names()?;
    let ids = names
        .iter()
        .filter_map(|name| u64::from_str_radix(name, 16).ok());
    ids.filter_map(|id| lock_if_dead(dir, id).transpose())
        .collect()
}

/// A dead member, locked.
#[derive(Debug)]
pub struct Dead {
    id: u64,
    _lock: Held,
}

impl Dead {
    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Removes its file, once all else that it left is put away.
    pub fn remove(self, dir: &Dir) -> Result<bool> {
        dir.remove(&file_name(self.id))
    }
}

fn lock_if_dead(dir: &Dir, id: u64) -> Result<Option<Dead>> {
    let failed =
        |e: Errno| Error::system("look at a member of", dir.path().display().to_string(), e);
    // Asked before it is opened for writing: closing that would ring the doorbell.
    let Some((file, _)) = skip_damaged(open(dir, id, false))? else {
        return Ok(None);
    };
    if files::is_locked(&file).map_err(failed)? {
        return Ok(None);
    }
    let staying = fork::stay();
    let Some((file, _)) = skip_damaged(open(dir, id, true))? else {
        return Ok(None);
    };
    let lock = staying.try_lock_byte(file, SWEEP).map_err(failed)?;
    Ok(lock.map(|lock| Dead { id, _lock: lock }))
}

/// A thread that runs `on_death` soon after a member has died, and again after a while if it says `false`.
#[derive(Debug)]
pub struct Doorbell {
    thread: Option<JoinHandle<()>>,
    stop: Arc<EventFd>,
    born: u64,
}

impl Doorbell {
    /// Listens at `members/`.
    pub fn listen(
        dir: Arc<Dir>,
        bus: &str,
        on_death: impl Fn() -> bool + Send + 'static,
    ) -> Result<Self> {
        let failed = |e: Errno| Error::system("listen for deaths on the bus", bus, e);
        let stop =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed)?;
        let stop = Arc::new(stop);
        // None: inotify has run out, and the members are looked through from time to time.
        let inotify = watch(&dir);
        let until = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("buslane-doorbell".into())
            .spawn(move || {
                let mut again = 0;
                while let Some(rung) = wait(inotify.as_ref(), &until, again > 0) {
                    again = match look(&dir, &rung) {
                        Look::Left => again.min(1),
                        Look::Unsure => TRIES,
                        Look::Died if on_death() => again.saturating_sub(1),
                        Look::Died => {
                            // It has rung itself, as it closed the files of the dead: not at once again.
                            if stop_within(&until, LOOK_AGAIN) {
                                return;
                            }
                            again.max(1)
                        }
                    };
                }
            })
            .map_err(|e| Error::system("start a thread for the bus", bus, e))?;
        Ok(Self {
            thread: Some(thread),
            stop,
            born: fork::generation(),
        })
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        if self.born != fork::generation() {
            // The thread was not inherited.
            return;
        }
        // A counter at its maximum would be an error, and would be read all the same.
        while self.stop.write(1) == Err(Errno::EINTR) {}
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}

fn watch(dir: &Dir) -> Option<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
    // By the open directory, not by its path: that may lead elsewhere by now.
    let open = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
    let flags = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(open.as_str(), flags).ok()?;
    Some(inotify)
}

/// Waits for the end, at most so long: whether it has come.
fn stop_within(stop: &EventFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    let polled = poll(&mut fds, PollTimeout::from(time.as_millis() as u16));
    polled.is_ok_and(|ready| ready > 0)
}

/// What rang.
enum Rung {
    /// These files were closed by somebody who could write them.
    Names(BTreeSet<String>),
    /// Something, or it was only time to look.
    Unknown,
}

/// Waits until something rings; `None`: it is to end.
fn wait(inotify: Option<&Inotify>, stop: &EventFd, again: bool) -> Option<Rung> {
    let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    fds.extend(inotify.map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)));
    let time = if inotify.is_some() && !again {
        PollTimeout::NONE
    } else {
        PollTimeout::from(LOOK_AGAIN.as_millis() as u16)
    };
    match poll(&mut fds, time) {
        Err(Errno::EINTR) => return Some(Rung::Names(BTreeSet::new())),
        // Out of memory: for a while it is looked from time to time.
        Err(_) if stop.read().is_err() => {
            thread::sleep(LOOK_AGAIN);
            return Some(Rung::Unknown);
        }
        Err(_) => return None,
        Ok(_) => {}
    }
    if fds[0].any().unwrap_or(true) {
        return None;
    }
    let Some(Ok(events)) = inotify.map(Inotify::read_events) else {
        return Some(Rung::Unknown);
    };
    if events
        .iter()
        .any(|event| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW))
    {
        return Some(Rung::Unknown);
    }
    Some(Rung::Names(
        events
            .into_iter()
            .filter_map(|event| event.name?.into_string().ok())
            .collect(),
    ))
}

/// What became of who rang.
enum Look {
    /// It has left by itself, or somebody was faster.
    Left,
    /// Its lock is still held, or can't be asked for.
    Unsure,
    /// It has died; or nobody knows who it was.
    Died,
}

fn look(dir: &Dir, rung: &Rung) -> Look {
    let Rung::Names(names) = rung else {
        return Look::Died;
    };
    let ids = names
        .iter()
        .filter_map(|name| u64::from_str_radix(name, 16).ok());
    let mut look = Look::Left;
    for id in ids {
        match look_at(dir, id) {
            Look::Died => return Look::Died,
            Look::Unsure => look = Look::Unsure,
            Look::Left => {}
        }
    }
    look
}

fn look_at(dir: &Dir, id: u64) -> Look {
    for step in LOCK_LINGERS {
        thread::sleep(step);
        match skip_damaged(dir.open_file(&file_name(id), Kind::Member, false)) {
            Ok(None) => return Look::Left,
            Ok(Some((file, _))) if files::is_locked(&file) == Ok(false) => return Look::Died,
            Ok(Some(_)) | Err(_) => {}
        }
    }
    Look::Unsure
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use super::*;

    fn with_a_dead_one() -> (tempfile::TempDir, Arc<Dir>, u64) {
        let temporary = tempfile::tempdir_in("/dev/shm").unwrap();
        let dir = Arc::new(Dir::open(temporary.path(), None).unwrap());
        let member = Member::join(Arc::clone(&dir), "bus").unwrap();
        member.owe();
        let id = member.id();
        (temporary, dir, id)
    }

    #[test]
    fn who_is_being_put_away_does_not_live() {
        let (_temporary, dir, id) = with_a_dead_one();
        let dead = dead(&dir).unwrap();
        assert_eq!(dead[0].id(), id);
        assert!(!owner(&dir, id).unwrap().alive);
        assert!(super::dead(&dir).unwrap().is_empty());
    }

    #[test]
    fn who_can_not_put_away_the_dead_does_not_ring_for_itself() {
        let (_temporary, dir, _) = with_a_dead_one();
        let (rings, rung) = channel();
        let doorbell = Doorbell::listen(Arc::clone(&dir), "bus", {
            let dir = Arc::clone(&dir);
            move || {
                rings.send(Instant::now()).unwrap();
                drop(dead(&dir).unwrap());
                false
            }
        });
        drop(dead(&dir).unwrap());
        let first = rung.recv().unwrap();
        let second = rung.recv().unwrap();
        assert!(second - first >= LOOK_AGAIN);
        drop(doorbell);
    }
}
