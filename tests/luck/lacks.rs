//! No space, no more files, no descriptors: for each operation a little more of it is left each time, until there is enough.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::statvfs::statvfs;

use crate::common::{hear, names, role, say};
use crate::operations::OPERATIONS;
use crate::runs::{PARTS, attend_all, look_after, run, run_plainly};
use crate::tracer::{Fate, Which};
use crate::witness::Witness;

/// How long to wait for an answer.
const MOMENT: Duration = Duration::from_millis(300);

/// What is missing.
#[derive(Clone, Copy, Debug)]
enum Lack {
    Pages,
    Files,
    Descriptors,
}

impl Lack {
    /// Leaves this process, or the filesystem that `dir` is on, so much.
    fn leave(self, dir: &Path, left: u64) {
        let ballast = dir.join("ballast");
        match self {
            Self::Pages => {
                let file = fs::File::create(ballast.join("pages")).unwrap();
                // Until a thread of the operation's takes none meanwhile.
                loop {
                    let free = statvfs(dir).unwrap().blocks_free();
                    let len = free.saturating_sub(left) * 4096;
                    let mode = nix::fcntl::FallocateFlags::empty();
                    if len == 0 || nix::fcntl::fallocate(&file, mode, 0, len as i64).is_ok() {
                        break;
                    }
                }
            }
            Self::Files => {
                // A thread of the operation's may be about to make some, too.
                for n in 0.. {
                    let is_enough = statvfs(dir).unwrap().files_free() <= left;
                    if is_enough || fs::File::create(ballast.join(n.to_string())).is_err() {
                        break;
                    }
                }
            }
            Self::Descriptors => {
                let next = fs::File::open("/dev/null").unwrap().as_raw_fd() as u64;
                setrlimit(Resource::RLIMIT_NOFILE, next + left, next + left).unwrap();
            }
        }
    }

    /// How it is refused.
    fn kind(self) -> &'static str {
        match self {
            Self::Pages | Self::Files => "NoSpace advised ",
            Self::Descriptors => "TooMany advised ",
        }
    }
}

mod child {
    use super::*;

    /// Argument: which part this is to do.
    #[test]
    fn lacking() {
        let Some((path, part)) = role() else { return };
        let dir = path.parent().unwrap();
        let part: usize = part.parse().unwrap();
        let ballast = dir.join("ballast");
        for operation in OPERATIONS.iter().skip(part).step_by(PARTS) {
            run_plainly(operation, dir);
            say("allow");
            assert_eq!(hear(), "ok");
            for lack in [Lack::Pages, Lack::Files, Lack::Descriptors] {
                let (mut refused, mut left) = (0, 0);
                loop {
                    fs::create_dir(&ballast).unwrap();
                    let leave = |_: &dyn Fn()| lack.leave(dir, left);
                    let at = (dir, MOMENT);
                    let ended = run(operation, at, &leave, Which::None, |_| Fate::Made, None);
                    fs::remove_dir_all(&ballast).unwrap();
                    let on = format!("{} with {left} {lack:?}: {ended:?}", operation.name);
                    assert_eq!(look_after(), Ok(()), "{on}");
                    match ended.expect(&on) {
                        // With no more than that it is possible.
                        None if left > 0 || refused == 0 => break,
                        None => {}
                        Some(said) => {
                            // Who is to answer may have no room for it.
                            let is_late = operation.name == "call" && said.starts_with("TimedOut ");
                            assert!(said.starts_with(lack.kind()) || is_late, "{on}");
                            refused += 1;
                        }
                    }
                    left += 1;
                }
                say(format!(
                    "{:22} {lack:?}: refused {refused} times",
                    operation.name
                ));
            }
        }
        say("over");
    }
}

/// A filesystem of its own for a witness, and who it starts: 256 pages, and as many files. `false`: that is not allowed here.
fn mount_small(at: &Path) -> bool {
    let mounted = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| {
            let all = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, all, None::<&str>)
        })
        .and_then(|()| {
            let options = "size=1m,nr_inodes=256,mode=700";
            mount(
                Some("none"),
                at,
                Some("tmpfs"),
                MsFlags::empty(),
                Some(options),
            )
        });
    mounted.is_ok()
}

#[test]
fn too_little_of_everything() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    // In a thread of its own, whose namespace ends with it.
    let is_allowed =
        std::thread::scope(|scope| scope.spawn(|| mount_small(dir.path())).join().unwrap());
    if !is_allowed {
        return crate::common::skipped("mount is not allowed here");
    }
    let said = attend_all("lacks::child::lacking", |part| {
        assert!(mount_small(dir.path()));
        (Witness::within(dir.path()), part.to_string())
    });
    said.iter().for_each(|line| println!("{line}"));
    assert_eq!(said.len(), 3 * OPERATIONS.len());
    assert!(names(dir.path()).is_empty());
}
