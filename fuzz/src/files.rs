//! The files of a bus, as processes leave them that were killed, and then with anything in them.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use buslane::shm::adversary;
use buslane::{Bus, BusBuilder};
use tempfile::TempDir;

use crate::memory::{byte, short};

const PAGE: usize = 4096;
/// Bytes of a file that are overwritten here and there: all that is used of those in here.
const REACHED: u64 = 5 * PAGE as u64;
/// Bytes in the longest file that one is made to be.
const LONGEST: u64 = 32 << 20;
/// Loads in one call: it may look at all files of a topic, and in each of its lanes.
pub const LOADS: u64 = 1 << 20;

/// A bus whose files can be had again as they were.
pub struct Files {
    dir: TempDir,
    files: Vec<Image>,
    /// Held from one run to the next, where opening it is not what is looked at.
    bus: Option<Bus>,
}

/// A file as it was.
struct Image {
    path: PathBuf,
    len: u64,
    /// What is in its pages that are not all zeros.
    pages: Vec<(u64, Vec<u8>)>,
}

impl Files {
    /// A bus in which `fill` has been, and was killed.
    pub fn new<T>(builder: BusBuilder, fill: impl FnOnce(&Bus) -> T) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("bus");
        let bus = builder.at(&path).unwrap();
        let alive = fill(&bus);
        let mut files = Vec::new();
        read_all(&path, &mut files);
        // The number of a member is another one each time.
        let member = fs::read_dir(path.join("members")).unwrap().next().unwrap();
        let name = member.unwrap().file_name().into_string().unwrap();
        let id = u64::from_str_radix(&name, 16).unwrap().to_le_bytes();
        for image in &mut files {
            let words = image
                .pages
                .iter_mut()
                .flat_map(|(_, page)| page.chunks_mut(8));
            words
                .filter(|word| **word == id)
                .for_each(|word| word.fill(0x11));
            if image.path.ends_with(&name) {
                image.path.set_file_name("1111111111111111");
            }
        }
        drop((alive, bus));
        Self {
            dir,
            files,
            bus: None,
        }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("bus")
    }

    /// A process that is on it from one run to the next.
    pub fn bus(&mut self) -> Bus {
        let path = self.path();
        let open = || Bus::builder().reclaim(false).at(path).unwrap();
        self.bus.get_or_insert_with(open).clone()
    }

    /// Has all files as they were.
    pub fn restore(&mut self) {
        // What lives on is kept.
        let kept = match self.bus {
            Some(_) => self.path().join("members"),
            None => PathBuf::new(),
        };
        let known: BTreeSet<&Path> = self.files.iter().map(|image| &*image.path).collect();
        remove_others(&self.path(), &known, &kept);
        for image in &self.files {
            image.restore();
        }
    }

    /// Has files of other lengths, and the like, while nobody has them mapped. (Who truncates a mapped one is this user, and as well
    /// could end the process.)
    pub fn cut(&self) {
        for _ in 0..byte() % 4 {
            let image = &self.files[usize::from(byte()) % self.files.len()];
            let is_held = self.bus.is_some() && image.path.ends_with("bus/bus");
            let len = adversary::word(image.len).min(LONGEST);
            if !is_held && let Ok(file) = OpenOptions::new().write(true).open(&image.path) {
                file.set_len(len).unwrap();
            }
        }
        self.scribble();
    }

    /// Has a few words of a few files overwritten by what the tape says; or all of one, with a few of the tape's, again and again.
    pub fn scribble(&self) {
        let how = byte();
        for _ in 0..how % 4 {
            let image = &self.files[usize::from(byte()) % self.files.len()];
            let Ok(file) = OpenOptions::new().read(true).write(true).open(&image.path) else {
                continue;
            };
            if how == u8::MAX {
                fill(&file, image.len.min(REACHED));
                continue;
            }
            for _ in 0..byte() % 8 {
                // Half of them where headers are.
                let place = short();
                let at = match place & 1 {
                    0 => u64::from(place >> 1) * 8 % 1536,
                    _ => u64::from(place >> 1) * 8 % image.len.min(REACHED),
                };
                overwrite(&file, at);
            }
        }
    }
}

/// Has a file be words of the tape's, from its beginning, or from behind its header, on.
fn fill(file: &File, len: u64) {
    let how = byte();
    let words: Vec<u64> = (0..1 + how % 8).map(|_| adversary::word(0)).collect();
    let from = if how & 0x80 == 0 { 0 } else { PAGE as u64 };
    let bytes = words.iter().cycle().flat_map(|word| word.to_le_bytes());
    let bytes: Vec<u8> = bytes.take(len.saturating_sub(from) as usize).collect();
    file.write_all_at(&bytes, from).unwrap();
}

fn overwrite(file: &File, at: u64) {
    let mut bytes = [0; 8];
    if file.read_exact_at(&mut bytes, at).is_ok() {
        let word = adversary::word(u64::from_le_bytes(bytes));
        file.write_all_at(&word.to_le_bytes(), at).unwrap();
    }
}

impl Image {
    fn restore(&self) {
        let options = OpenOptions::new().write(true).create(true).clone();
        let file = options.open(&self.path).or_else(|_| {
            fs::create_dir_all(self.path.parent().unwrap())?;
            options.open(&self.path)
        });
        let file = file.unwrap();
        // What is mapped stays so: it is not cut.
        file.set_len(self.len).unwrap();
        let kind = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a plain call, with a descriptor of ours.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), kind, 0, self.len as i64) };
        assert_eq!(result, 0);
        for (at, page) in &self.pages {
            file.write_all_at(page, *at).unwrap();
        }
    }
}

fn read_all(path: &Path, files: &mut Vec<Image>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read_all(&path, files);
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let pages = bytes.chunks(PAGE).enumerate();
        let used = pages.filter(|(_, page)| page.iter().any(|&byte| byte != 0));
        files.push(Image {
            len: bytes.len() as u64,
            pages: used
                .map(|(i, page)| ((i * PAGE) as u64, page.to_vec()))
                .collect(),
            path,
        });
    }
}

fn remove_others(path: &Path, known: &BTreeSet<&Path>, kept: &Path) {
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if path == kept {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            match known.iter().any(|known| known.starts_with(&path)) {
                true => remove_others(&path, known, kept),
                false => fs::remove_dir_all(&path).unwrap(),
            }
        } else if !known.contains(&*path) {
            fs::remove_file(&path).unwrap();
        }
    }
}
