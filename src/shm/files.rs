//! Making, checking, locking and listing files. No file is ever seen half made: it is created without a name,
//! allocated, initialised, locked if its maker wants to own it, and only then named.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, AtFlags, FallocateFlags, FcntlArg, OFlag, OpenHow, RenameFlags, ResolveFlag,
    fallocate, fcntl, openat2, renameat2,
};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, mkdirat};
use nix::sys::statfs::fstatfs;
use nix::unistd::{Uid, UnlinkatFlags, linkat, unlinkat};
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{Identity, Kind, MAGIC, VERSION};
use crate::error::{Error, ErrorKind, Result};

/// How often something is tried that others, who are at the same, may have undone.
const TRIES: u32 = 100;

/// A directory, opened without following links: ours, or one that is only observed, whoever owns it.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
    mode: Mode,
    /// Who owns all that is in it.
    owner: u32,
    /// Nothing in it is changed, or trusted to stay as it is.
    is_observed: bool,
}

/// What a new file shall be.
#[derive(Debug)]
pub struct Plan<'a> {
    /// What it is called in messages: "create the lane".
    pub tried: &'static str,
    /// Its identity; the size is the file's.
    pub identity: Identity,
    /// Bytes that are allocated at once; the rest, up to the identity's size, is a hole.
    pub allocate: u64,
    /// What follows the identity.
    pub content: &'a [u8],
    /// Whether the maker keeps a lock on it.
    pub lock: bool,
}

impl Identity {
    /// That of a new file.
    pub fn new(kind: Kind, size: u64, id: u64, capacity: u64) -> Self {
        let created_ns = now_ns();
        Self {
            magic: MAGIC,
            version: VERSION,
            kind: kind as u32,
            size,
            id,
            capacity,
            created_ns,
            number: 0,
            check: 0,
        }
    }
}

impl Dir {
    /// Opens `path`, which is ours, made first if it is missing and `create` says with which mode.
    pub fn open(path: &Path, create: Option<Mode>) -> Result<Self> {
        Self::open_path(path, create, false)
    }

    /// Opens `path`, whoever owns it, to look at what is in it.
    pub fn observe(path: &Path) -> Result<Self> {
        Self::open_path(path, None, true)
    }

    fn open_path(path: &Path, create: Option<Mode>, is_observed: bool) -> Result<Self> {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let name = path.file_name().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidName,
                "open the directory",
                shown(path),
                "the path has no last component",
            )
            .advise("name a directory")
        })?;
        let parent = openat(
            AT_FDCWD,
            parent,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| {
            Error::system("open the directory above", shown(path), e)
                .advise("make that directory first")
        })?;
        if let Some(mode) = create {
            make_dir(parent.as_fd(), name.as_ref(), path, mode)?;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(parent, name, flags, Mode::empty()).map_err(|e| {
            let error = Error::system("open the directory", shown(path), e);
            match e {
                Errno::ENOTDIR => error.advise("name a directory, not a link to one"),
                _ => error,
            }
        })?;
        Self::checked(fd, path, None, is_observed)
    }

    /// Has it let in whom `mode` does, whatever the umask of who made it: for a directory in which nothing is finished yet, as
    /// whoever made it may have died before it came to this.
    pub fn let_in(self, mode: Mode) -> Result<Self> {
        let failed = |e| Error::system("make the directory", shown(&self.path), e);
        let mode = self.mode | mode;
        if mode != self.mode {
            let_in(&self.fd, mode).map_err(failed)?;
        }
        Ok(Self { mode, ..self })
    }

    /// Whether nobody but its owner can open what is in it, as it is now.
    pub fn is_private(&self) -> Result<bool> {
        let stat = fstat(&self.fd)
            .map_err(|e| Error::system("look at the directory", shown(&self.path), e))?;
        Ok(!lets_others_in(Mode::from_bits_truncate(stat.st_mode)))
    }

    /// Opens `name` in this directory.
    pub fn dir(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let fd = self
            .open_in(name, flags)
            .map_err(|e| Error::system("open the directory", shown(&path), e))?;
        Self::checked(fd, &path, Some(self.owner), self.is_observed)
    }

    /// The same. `None`: there is none, or what is called so is no directory, or one of another filesystem.
    pub fn find_dir(&self, name: &str) -> Result<Option<Self>> {
        let nones = [libc::ENOENT, libc::ENOTDIR, libc::ELOOP, libc::EXDEV];
        match self.dir(name) {
            Err(e) if e.errno().is_some_and(|errno| nones.contains(&errno)) => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Opens `name` in this directory, made first if it is missing: for who may come into this one, or for its owner alone.
    pub fn make_dir(&self, name: &str, for_whom: Whom) -> Result<Self> {
        self.check_ours("make the directory", name)?;
        let mode = match for_whom {
            Whom::All => self.mode & (Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO),
            Whom::Owner => self.mode & Mode::S_IRWXU,
        };
        let path = self.path.join(name);
        make_dir(self.fd.as_fd(), Path::new(name), &path, mode)?;
        self.dir(name)?.let_in(mode)
    }

    /// Opens a name in here, without following links, and without waiting for who serves another filesystem.
    fn open_in(&self, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let how = OpenHow::new().flags(flags).resolve(resolve);
        match retry(|| openat2(&self.fd, name, how)) {
            // Before Linux 5.6, or not allowed where this runs.
            Err(Errno::ENOSYS | Errno::EPERM) => openat(&self.fd, name, flags, Mode::empty()),
            opened => opened,
        }
    }

    /// Whether it is only looked at.
    pub fn is_observed(&self) -> bool {
        self.is_observed
    }

    fn check_ours(&self, tried: &'static str, name: &str) -> Result<()> {
        match self.is_observed {
            false => Ok(()),
            true => Err(observed(tried, &self.shown(name))),
        }
    }

    fn checked(fd: OwnedFd, path: &Path, owner: Option<u32>, is_observed: bool) -> Result<Self> {
        let tried = "open the directory";
        let stat = fstat(&fd).map_err(|e| Error::system(tried, shown(path), e))?;
        let owner = match is_observed {
            true => owner.unwrap_or(stat.st_uid),
            false => Uid::effective().as_raw(),
        };
        check_whose(&stat, owner, tried, path)?;
        let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
        Ok(Self {
            fd,
            path: path.to_owned(),
            mode,
            owner,
            is_observed,
        })
    }

    /// Whether it is the same directory as another one.
    pub fn is_same(&self, other: &Self) -> Result<bool> {
        let stat = |dir: &Self| {
            let stat = fstat(&dir.fd);
            stat.map_err(|e| Error::system("look at the directory", shown(&dir.path), e))
        };
        let (one, two) = (stat(self)?, stat(other)?);
        Ok((one.st_dev, one.st_ino) == (two.st_dev, two.st_ino))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses filesystems on which shared mappings or locks of other processes are not what they are on a local one.
    pub fn check_filesystem(&self) -> Result<()> {
        let tried = "use the directory";
        let stat =
            retry(|| fstatfs(&self.fd)).map_err(|e| Error::system(tried, shown(&self.path), e))?;
        let kind = stat.filesystem_type().0;
        match REFUSED.iter().find(|(magic, _)| *magic == kind) {
            None => Ok(()),
            Some((_, name)) => {
                let why =
                    format!("its filesystem is {name}, where memory can't be shared reliably");
                Err(
                    Error::new(ErrorKind::Unsupported, tried, shown(&self.path), why)
                        .advise("use a directory on tmpfs (/dev/shm) or a local disk"),
                )
            }
        }
    }

    fn shown(&self, name: &str) -> Arc<str> {
        shown(&self.path.join(name))
    }

    /// Makes a file that has its name only when it is whole, `init` included. `None`: that name is taken.
    pub fn create<T>(
        &self,
        name: &str,
        plan: &Plan<'_>,
        init: impl FnMut(&OwnedFd) -> Result<T>,
    ) -> Result<Option<(OwnedFd, T)>> {
        self.check_ours(plan.tried, name)?;
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_TMPFILE;
        match openat(&self.fd, ".", flags, self.rights(plan)) {
            Ok(fd) => self.finish(fd, None, name, plan, init),
            // The filesystem knows no files without a name.
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {
                self.create_draft(name, plan, init)
            }
            Err(e) => Err(Error::system(plan.tried, self.shown(name), e)),
        }
    }

    /// The same, by way of another name: inotify goes on calling a file that was made without one by its first name.
    pub fn create_draft<T>(
        &self,
        name: &str,
        plan: &Plan<'_>,
        mut init: impl FnMut(&OwnedFd) -> Result<T>,
    ) -> Result<Option<(OwnedFd, T)>> {
        let mut tries = 0;
        loop {
            tries += 1;
            let failed = |e: io::Error| Error::system(plan.tried, self.shown(name), e);
            let draft = format!("{DRAFT}{:016x}", random().map_err(failed)?);
            let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_CREAT | OFlag::O_EXCL;
            let fd = openat(&self.fd, draft.as_str(), flags, self.rights(plan))
                .map_err(|e| failed(e.into()))?;
            let made = self.finish(fd, Some(&draft), name, plan, &mut init);
            if let Ok(Some(_)) = made {
                return made;
            }
            self.remove(&draft)?;
            match made {
                // Somebody took it for one that its maker had died over.
                Err(e) if e.errno() == Some(libc::EAGAIN) && tries < TRIES => {}
                made => return made,
            }
        }
    }

    /// A draft, whatever is in it. `None`: it is gone, or no file of ours.
    pub fn open_draft(&self, name: &str) -> Option<OwnedFd> {
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty()).ok()?;
        let stat = fstat(&fd).ok()?;
        let is_file = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        (is_file && stat.st_uid == Uid::effective().as_raw()).then_some(fd)
    }

    fn finish<T>(
        &self,
        fd: OwnedFd,
        draft: Option<&str>,
        name: &str,
        plan: &Plan<'_>,
        mut init: impl FnMut(&OwnedFd) -> Result<T>,
    ) -> Result<Option<(OwnedFd, T)>> {
        let failed = |e: Errno| Error::system(plan.tried, self.shown(name), e);
        match self.fill(&fd, draft.is_some(), plan) {
            Err(e @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) => {
                let why = format!("{e} ({} bytes are needed)", plan.allocate);
                return Err(
                    Error::new(ErrorKind::NoSpace, plan.tried, self.shown(name), why)
                        .advise("free some space, or ask for a smaller capacity"),
                );
            }
            filled => filled.map_err(failed)?,
        }
        let init = init(&fd)?;
        let named = match draft {
            None => {
                let own = format!("/proc/self/fd/{}", fd.as_raw_fd());
                linkat(
                    AT_FDCWD,
                    own.as_str(),
                    &self.fd,
                    name,
                    AtFlags::AT_SYMLINK_FOLLOW,
                )
            }
            Some(draft) => renameat2(
                &self.fd,
                draft,
                &self.fd,
                name,
                RenameFlags::RENAME_NOREPLACE,
            ),
        };
        match named {
            Ok(()) => {
                if draft.is_some() && !plan.lock {
                    unlock(&fd);
                }
                Ok(Some((fd, init)))
            }
            Err(Errno::EEXIST) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// Who may come into the directory may read what says something; what processes agree by is its owner's alone.
    fn rights(&self, plan: &Plan<'_>) -> Mode {
        let is_said = SAID.iter().any(|kind| *kind as u32 == plan.identity.kind);
        let rights = if is_said { 0o666 } else { 0o600 };
        Mode::from_bits_truncate(self.mode.bits() & rights)
    }

    fn fill(&self, fd: &OwnedFd, is_draft: bool, plan: &Plan<'_>) -> nix::Result<()> {
        let is_locked = match plan.lock {
            true => try_lock(fd)?,
            // A draft without a lock is one that its maker has died over. Of a file of locks this is nobody's.
            false => !is_draft || try_lock_byte(fd, MAX_NUMBER)?,
        };
        if !is_locked || is_draft && !is_named(fd)? {
            return Err(Errno::EAGAIN);
        }
        retry(|| fallocate(fd, FallocateFlags::empty(), 0, plan.allocate as i64))?;
        if plan.identity.size > plan.allocate {
            retry(|| nix::unistd::ftruncate(fd, plan.identity.size as i64))?;
        }
        let_in(fd, self.rights(plan))?;
        write_at(fd, 0, plan.identity.as_bytes())?;
        write_at(fd, size_of::<Identity>() as u64, plan.content)
    }

    /// Opens `name` and checks what it is. `None`: there is no such file, or it is just being removed.
    pub fn open_file(
        &self,
        name: &str,
        kind: Kind,
        write: bool,
    ) -> Result<Option<(OwnedFd, Identity)>> {
        let path = self.path.join(name);
        let Some((fd, size)) = self.open_any(name, write)? else {
            return Ok(None);
        };
        let mut bytes = [0; size_of::<Identity>()];
        read_at(&fd, 0, &mut bytes).map_err(|e| Error::system("read the file", shown(&path), e))?;
        let identity = Identity::read_from_bytes(&bytes).expect("as many bytes as an identity has");
        check_identity(&identity, kind, size, &path)?;
        Ok(Some((fd, identity)))
    }

    /// Opens the file `name`, whatever is in it: it, and its size.
    pub fn open_any(&self, name: &str, write: bool) -> Result<Option<(OwnedFd, u64)>> {
        let tried = "open the file";
        let path = self.path.join(name);
        let access = if write {
            OFlag::O_RDWR
        } else {
            OFlag::O_RDONLY
        };
        if write {
            self.check_ours(tried, name)?;
        }
        let fd = match self.open_in(name, access) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => return Err(not_buslane(&path, "it is a symbolic link")),
            Err(Errno::EXDEV) => {
                return Err(not_buslane(&path, "another filesystem is mounted there"));
            }
            Err(e) => return Err(Error::system(tried, shown(&path), e)),
        };
        let stat = fstat(&fd).map_err(|e| Error::system(tried, shown(&path), e))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(not_buslane(&path, "it is no regular file"));
        }
        check_whose(&stat, self.owner, tried, &path)?;
        match stat.st_nlink {
            0 => return Ok(None),
            1 => {}
            _ => return Err(not_buslane(&path, "it has several names (hard links)")),
        }
        Ok(Some((fd, stat.st_size as u64)))
    }

    /// The file of locks. Whoever can read a file can hold a lock on it, and so seem to live, or keep others from locking it: what
    /// other users may read has its locks here, in a file that they may not. `None`: none was needed yet.
    pub fn locks(&self, write: bool) -> Result<Option<OwnedFd>> {
        let opened = self.open_file(LOCKS, Kind::Locks, write)?;
        Ok(opened.map(|(file, _)| file))
    }

    /// The same, made if it is missing.
    pub fn make_locks(&self) -> Result<OwnedFd> {
        loop {
            if let Some(locks) = self.locks(true)? {
                return Ok(locks);
            }
            let size = size_of::<Identity>() as u64;
            let plan = Plan {
                tried: "make the file of locks",
                identity: Identity::new(Kind::Locks, size, 0, 0),
                allocate: size,
                content: &[],
                lock: false,
            };
            let failed = |e: Errno| Error::system("sync the file of locks", self.shown(LOCKS), e);
            if let Some((locks, ())) =
                self.create(LOCKS, &plan, |file| sync(file).map_err(failed))?
            {
                return Ok(locks);
            }
        }
    }

    /// The names in this directory.
    pub fn names(&self) -> Result<Vec<String>> {
        let failed = |e: Errno| Error::system("list the directory", shown(&self.path), e);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, ".", flags, Mode::empty()).map_err(failed)?;
        let mut dir = nix::dir::Dir::from_fd(fd).map_err(failed)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            if self.is_observed && names.len() == OBSERVED_NAMES {
                let why = format!(
                    "it has more than the {OBSERVED_NAMES} names that an observer looks through"
                );
                let tried = "list the directory";
                return Err(
                    Error::new(ErrorKind::Corrupt, tried, shown(&self.path), why)
                        .advise("ask its owner what they are"),
                );
            }
            let name: CString = entry.map_err(failed)?.file_name().to_owned();
            if let Ok(name) = name.into_string()
                && name != "."
                && name != ".."
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The numbers `n` of the files `{prefix}n` in this directory, ascending.
    pub fn numbers(&self, prefix: &str) -> Result<Vec<u64>> {
        Ok(numbers_among(&self.names()?, prefix))
    }

    /// Removes `name`; whether it was there.
    pub fn remove(&self, name: &str) -> Result<bool> {
        self.check_ours("remove", name)?;
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(e) => Err(Error::system("remove", self.shown(name), e)),
        }
    }
}

impl Dir {
    /// Gives `name` in here another name, that nothing has. `false`: there is no such name, or the other is taken.
    pub fn rename(&self, name: &str, to: &str) -> Result<bool> {
        self.check_ours("rename", name)?;
        match renameat2(&self.fd, name, &self.fd, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT | Errno::EEXIST) => Ok(false),
            Err(e) => Err(Error::system("rename", self.shown(name), e)),
        }
    }

    /// Removes the directory `name` in here, if it is empty.
    pub fn remove_empty(&self, name: &str) -> Result<bool> {
        self.check_ours("remove", name)?;
        match unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(true),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
            Err(e) => Err(Error::system("remove", self.shown(name), e)),
        }
    }

    /// Removes the directory `name` in here, and all that is in it.
    pub fn remove_all(&self, name: &str) -> Result<()> {
        self.check_ours("remove", name)?;
        let dir = match self.dir(name) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            dir => dir?,
        };
        for _ in 0..TRIES {
            dir.clear()?;
            // Who had it open may have made something since.
            if self.remove_empty(name)? {
                return Ok(());
            }
        }
        Err(Error::system("remove", self.shown(name), Errno::ENOTEMPTY))
    }

    /// Removes all that is in this directory.
    pub fn clear(&self) -> Result<()> {
        for name in self.names()? {
            match unlinkat(&self.fd, name.as_str(), UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR) => self.remove_all(&name)?,
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(e) => return Err(Error::system("remove", self.shown(&name), e)),
            }
        }
        Ok(())
    }
}

impl Dir {
    /// Has this directory's own name on the disk.
    pub fn sync_above(&self) -> Result<()> {
        let failed = |e: Errno| Error::system("sync the directory above", shown(&self.path), e);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let above = openat(&self.fd, "..", flags, Mode::empty()).map_err(failed)?;
        sync_all(&above).map_err(failed)
    }

    /// Has the names in here on the disk.
    pub fn sync(&self) -> Result<()> {
        sync_all(&self.fd).map_err(|e| Error::system("sync the directory", shown(&self.path), e))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What others may read, if they are let in.
const SAID: [Kind; 3] = [Kind::Bus, Kind::Topic, Kind::Lane];

/// Names in a directory that an observer looks through: another user says how many there are.
const OBSERVED_NAMES: usize = 1 << 16;

/// For whom a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Who may come into the one that it is in.
    All,
    /// Its owner alone.
    Owner,
}

/// What the file of locks is called.
const LOCKS: &str = "locks";

/// What a file is called until it is whole, where it can't be without a name.
pub const DRAFT: &str = ".draft.";

/// Network and userspace filesystems, and those that are no files at all: `statfs` magic and name.
const REFUSED: [(i64, &str); 13] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFE53_4D42, "SMB2"),
    (0xFF53_4D42, "CIFS"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9p"),
    (0x00C3_6400, "Ceph"),
    (0x5346_414F, "AFS"),
    (0x7461_636F, "OCFS2"),
    (0x9FA0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_E0EB, "cgroup"),
    (0x6367_7270, "cgroup2"),
];

/// The largest number in a name: that of the last byte of a file that can be locked.
const MAX_NUMBER: u64 = i64::MAX as u64;

/// The numbers `n` of the names `{prefix}n` among these, ascending.
pub fn numbers_among(names: &[String], prefix: &str) -> Vec<u64> {
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| {
            let digits = name.strip_prefix(prefix)?;
            let number: u64 = digits.parse().ok()?;
            // One name for each number.
            (number <= MAX_NUMBER && number.to_string() == digits).then_some(number)
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

/// What is damaged, or no file of ours, counts as not there.
pub fn skip_damaged<T>(opened: Result<Option<T>>) -> Result<Option<T>> {
    let damaged = |e: &Error| {
        matches!(
            e.kind(),
            ErrorKind::NotBuslane | ErrorKind::Corrupt | ErrorKind::Version
        )
    };
    match opened {
        Err(e) if damaged(&e) => Ok(None),
        opened => opened,
    }
}

fn shown(path: &Path) -> Arc<str> {
    path.display().to_string().into()
}

fn not_buslane(path: &Path, why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::NotBuslane, "open the file", shown(path), why)
        .advise("if nobody needs it, remove it; buslane makes its own")
}

/// Only its owner, who is the bus's, may write to it.
fn check_whose(stat: &FileStat, owner: u32, tried: &'static str, path: &Path) -> Result<()> {
    if stat.st_uid == owner {
        if stat.st_mode & 0o022 == 0 {
            return Ok(());
        }
        let why = "others may write to it";
        return Err(Error::new(ErrorKind::ForeignOwner, tried, shown(path), why)
            .advise("take that permission away (chmod go-w), or use another bus"));
    }
    let why = match owner == Uid::effective().as_raw() {
        true => format!(
            "it belongs to user {}, and this process runs as user {owner}",
            stat.st_uid
        ),
        false => format!(
            "it belongs to user {}, and the bus to user {owner}",
            stat.st_uid
        ),
    };
    Err(
        Error::new(ErrorKind::ForeignOwner, tried, shown(path), why).advise(
            "run as its owner, only look at it (Bus::observe), or use another bus (BUSLANE_DIR sets where buses are)",
        ),
    )
}

/// What to say to who would change something on a bus that is only observed.
pub fn observed(tried: &'static str, on: &str) -> Error {
    let why = "the bus is only observed: nothing on it is changed, and nobody's cursors are seen";
    Error::new(ErrorKind::Unsupported, tried, on, why)
        .advise("open it as its owner (Bus::at); to answer, publish on a bus of your own")
}

fn make_dir(at: BorrowedFd<'_>, name: &Path, path: &Path, mode: Mode) -> Result<()> {
    match mkdirat(at, name, mode) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(e) => Err(Error::system("make the directory", shown(path), e)),
    }
}

fn lets_others_in(mode: Mode) -> bool {
    mode.intersects(Mode::S_IRWXG | Mode::S_IRWXO)
}

/// Has others get what `mode` gives them: who made this, under whatever umask, meant it.
fn let_in(fd: &OwnedFd, mode: Mode) -> nix::Result<()> {
    match lets_others_in(mode) {
        true => retry(|| fchmod(fd, mode)),
        false => Ok(()),
    }
}

fn check_identity(identity: &Identity, kind: Kind, file_size: u64, path: &Path) -> Result<()> {
    if identity.magic != MAGIC {
        return Err(not_buslane(path, "it does not begin with buslane's magic"));
    }
    if identity.version != VERSION {
        let why = format!(
            "its layout version is {}, and this library's is {VERSION}",
            identity.version
        );
        return Err(Error::new(ErrorKind::Version, "open the file", shown(path), why)
            .advise("let all processes of a bus use the same version, or remove the bus when nobody uses it"));
    }
    let why = if identity.kind != kind as u32 {
        format!(
            "its header says kind {} where {} ({kind:?}) belongs",
            identity.kind, kind as u32
        )
    } else if identity.size != file_size {
        format!(
            "its header says {} bytes, and it has {file_size}",
            identity.size
        )
    } else {
        return Ok(());
    };
    Err(
        Error::new(ErrorKind::Corrupt, "open the file", shown(path), why).advise(
            "it was truncated or written by something else: remove it when nobody uses the bus",
        ),
    )
}

/// As the system's, but for signals.
fn openat(
    at: impl AsFd,
    path: &(impl NixPath + ?Sized),
    flags: OFlag,
    mode: Mode,
) -> nix::Result<OwnedFd> {
    retry(|| nix::fcntl::openat(at.as_fd(), path, flags, mode))
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Writes all of `bytes` at `offset`.
pub fn write_at(fd: &impl AsFd, mut offset: u64, mut bytes: &[u8]) -> nix::Result<()> {
    #[cfg(test)]
    super::tape::store_by(fd, offset, bytes);
    while !bytes.is_empty() {
        let written = retry(|| nix::sys::uio::pwrite(fd, bytes, offset as i64))?;
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}

/// Fills `bytes` from `offset` on, as far as the file goes: how many of them.
fn read_upto(fd: &impl AsFd, offset: u64, bytes: &mut [u8]) -> nix::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        let at = (offset + done as u64) as i64;
        match retry(|| nix::sys::uio::pread(fd, &mut bytes[done..], at))? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}

/// Fills `bytes` from `offset` on. An error if they are not all there.
pub fn read_whole_at(fd: &impl AsFd, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    match read_upto(fd, offset, bytes)? == bytes.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Fills `bytes` from `offset` on, with zeros behind the end of the file: what is missing fails its check.
pub fn read_at(fd: &impl AsFd, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    let read = read_upto(fd, offset, bytes)?;
    bytes[read..].fill(0);
    Ok(())
}

/// Has a file's bytes on the disk, with what is needed to find them.
pub fn sync(fd: &impl AsFd) -> nix::Result<()> {
    retry(|| nix::unistd::fdatasync(fd.as_fd()))?;
    #[cfg(test)]
    super::tape::sync(fd);
    Ok(())
}

/// Gives up what is kept in memory of a file, where that is only a copy.
pub fn forget(fd: &impl AsFd) {
    // Advice: what stays is what could not be given up.
    let _ = nix::fcntl::posix_fadvise(
        fd.as_fd(),
        0,
        0,
        nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    );
}

fn sync_all(fd: &impl AsFd) -> nix::Result<()> {
    retry(|| nix::unistd::fsync(fd.as_fd()))
}

/// Allocates `len` bytes at `offset`, so that touching them can't fail.
pub fn allocate(fd: &impl AsFd, offset: u64, len: u64) -> nix::Result<()> {
    retry(|| {
        fallocate(
            fd.as_fd(),
            FallocateFlags::FALLOC_FL_KEEP_SIZE,
            offset as i64,
            len as i64,
        )
    })
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// One byte of a file; there may be none.
fn byte(number: u64, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_start: number as libc::off_t,
        l_len: 1,
        ..whole_file(kind)
    }
}

/// Locks the file for this open descriptor, until it is closed in every process that inherited it. `false`: somebody
/// else holds it.
pub fn try_lock(fd: &impl AsFd) -> nix::Result<bool> {
    set_lock(fd, &whole_file(libc::F_WRLCK))
}

/// The same of one byte, with a number up to [`MAX_NUMBER`].
pub fn try_lock_byte(fd: &impl AsFd, number: u64) -> nix::Result<bool> {
    set_lock(fd, &byte(number, libc::F_WRLCK))
}

fn set_lock(fd: &impl AsFd, lock: &libc::flock) -> nix::Result<bool> {
    match retry(|| fcntl(fd.as_fd(), FcntlArg::F_OFD_SETLK(lock))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Ends a lock now. Closing the file would not: what is mapped of it keeps it open, and with it the lock.
pub fn unlock(fd: &impl AsFd) {
    let unlocked = whole_file(libc::F_UNLCK);
    // Fails only for what is no file of ours.
    let _ = retry(|| fcntl(fd.as_fd(), FcntlArg::F_OFD_SETLK(&unlocked)));
}

/// Whether somebody holds the file's lock.
pub fn is_locked(fd: &impl AsFd) -> nix::Result<bool> {
    has_lock(fd, whole_file(libc::F_WRLCK))
}

/// The same of one byte.
pub fn is_byte_locked(fd: &impl AsFd, number: u64) -> nix::Result<bool> {
    has_lock(fd, byte(number, libc::F_WRLCK))
}

fn has_lock(fd: &impl AsFd, mut lock: libc::flock) -> nix::Result<bool> {
    retry(|| fcntl(fd.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock)))?;
    Ok(lock.l_type != libc::F_UNLCK as i16)
}

/// Whether a file that was opened still has its name.
pub fn is_named(fd: &impl AsFd) -> nix::Result<bool> {
    Ok(fstat(fd.as_fd())?.st_nlink > 0)
}

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_nanos() as u64
}

/// Eight random bytes.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
