//! What a bridge keeps in the directory of its bus: the number by which the network knows the bus, and a lock.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process;

use buslane::Bus;
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use crate::failure::{Failure, tell};
use crate::names;
use crate::signals::Stop;

/// The directory, in that of the bus.
const DIRECTORY: &str = "zenoh";

/// The number of a bus: random, made by the first bridge on it, and never changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusId(pub [u8; 16]);

impl fmt::Display for BusId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BusId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl BusId {
    /// As it is written.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text)
            .ok()
            .filter(|_| text.len() == 32)
            .map(|id| Self(id.into_bytes()))
    }
}

/// The place of this bridge on its bus.
#[derive(Debug)]
pub struct Home {
    /// The bus's number.
    pub id: BusId,
    /// A hash of the time for which this machine has been up: another one each time it starts.
    pub boot: u64,
    /// Locked while this bridge carries.
    _lock: File,
}

impl Home {
    /// Waits until no other bridge carries this bus under this prefix: two would send everything twice. The other one's end, or
    /// death, is this one's turn. `None`: a signal came first.
    pub fn enter(bus: &Bus, prefix: &str, stop: &Stop) -> Result<Option<Self>, Failure> {
        let directory = bus.path().join(DIRECTORY);
        let failed = |path: &Path, e: io::Error| {
            Failure::Error(format!(
                "cannot use {} for the bridge: {e}; check who owns it and its mode",
                path.display()
            ))
        };
        match fs::create_dir(&directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(&directory, e));
            }
            _ => {}
        }
        let path = directory.join(format!("{}.lock", names::chunk(prefix.as_bytes())));
        let Some(mut lock) = lock(&path, prefix, stop).map_err(|e| failed(&path, e))? else {
            return Ok(None);
        };
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", process::id()))
            .map_err(|e| failed(&path, e))?;
        let path = directory.join("id");
        let id = read_id(&path).map_err(|e| failed(&path, e))?;
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let mut boot = Xxh3::new();
        boot.update(&fs::read(path).map_err(|e| failed(path, e))?);
        Ok(Some(Self {
            id,
            boot: boot.digest(),
            _lock: lock,
        }))
    }
}

fn lock(path: &PathBuf, prefix: &str, stop: &Stop) -> io::Result<Option<File>> {
    let mut told = false;
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {
                file.rewind()?;
                return Ok(Some(file));
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => return Err(e),
        }
        if !told {
            told = true;
            let mut pid = String::new();
            file.read_to_string(&mut pid)?;
            tell(&format!(
                "stands by: process {pid} carries this bus under the prefix {prefix} already"
            ));
        }
        if stop.wait_slice() {
            return Ok(None);
        }
    }
}

/// The bus's number, made if there is none: whole, or not there.
fn read_id(path: &Path) -> io::Result<BusId> {
    loop {
        match fs::read_to_string(path) {
            Ok(text) => {
                return BusId::parse(text.trim()).ok_or_else(|| {
                    io::Error::other(
                        "it holds no number of a bus; remove it, and a new one is made",
                    )
                });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let made = path.with_extension(process::id().to_string());
        let mut file = File::create(&made)?;
        writeln!(file, "{}", BusId(Uuid::new_v4().into_bytes()))?;
        file.sync_all()?;
        // Another bridge, of another prefix, may have been faster.
        match fs::hard_link(&made, path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => fs::remove_file(&made)?,
        }
    }
}
