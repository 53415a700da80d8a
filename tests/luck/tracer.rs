//! Runs something in a child of its own, and has a say in each system call that it makes.

use std::collections::{HashMap, HashSet};
use std::mem::size_of;
use std::ptr::NonNull;
use std::sync::{Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// How long a child may take: only against hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of what a child says in the end.
const SAID: usize = 4096;

/// A system call that is about to be made.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub number: c_long,
    pub arguments: [u64; 6],
    /// Of `munmap`: whether it is of a file's mapping.
    pub is_of_file: bool,
    /// Of `fcntl` for a lock: whether that is ended.
    pub is_unlock: bool,
}

/// What is to become of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is made.
    Made,
    /// It is not made, and gives this.
    Refused(Errno),
    /// It is made, and gives this all the same.
    MadeButGives(Errno),
    /// It is made, for one byte only.
    Short,
}

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It said this.
    Said(String),
    Signal(Signal),
    Hung,
}

/// Which calls [`trace`] asks about.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    None,
    All,
    /// Those with this number; and `mmap`, to know whose a `munmap` is.
    One(c_long),
}

/// In a child: from now on its tracer is asked about these calls of all its threads.
fn begin(which: Which) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let unless = |number: c_long| libc::sock_filter {
        jf: 1,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32)
    };
    let gives = |what: u32| statement(libc::BPF_RET | libc::BPF_K, what);
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    match which {
        Which::None => return,
        Which::All => program.push(gives(libc::SECCOMP_RET_TRACE)),
        Which::One(number) => {
            for number in [number, libc::SYS_mmap] {
                program.extend([unless(number), gives(libc::SECCOMP_RET_TRACE)]);
            }
            program.push(gives(libc::SECCOMP_RET_ALLOW));
        }
    }
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    nix::sys::prctl::set_no_new_privs().unwrap();
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC;
    // SAFETY: the filter points to a whole program, which the kernel copies.
    let set = unsafe {
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        libc::syscall(libc::SYS_seccomp, mode, flags, &raw const filter)
    };
    assert_eq!(set, 0, "{}", Errno::last());
}

/// Runs `what` in a child, which calls the function that it is given when what counts begins. From then on `on_call` is
/// asked about its calls, and `on_made` is told when one has been made.
pub fn trace(
    which: Which,
    what: impl FnOnce(&dyn Fn()) -> String,
    mut on_call: impl FnMut(Call) -> Fate,
    on_made: Option<&mut dyn FnMut()>,
) -> End {
    let (protection, flags) = (
        ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        MapFlags::MAP_SHARED,
    );
    let len = SAID.try_into().expect("not 0");
    // SAFETY: a new mapping, where nothing was.
    let said = unsafe { mmap_anonymous(None, len, protection, flags) }.unwrap();
    // SAFETY: no other thread of this process holds a lock: there is the harness's, which waits, and the watch's, which sleeps.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            ptrace::traceme().unwrap();
            raise(Signal::SIGSTOP).unwrap();
            let text = what(&|| begin(which));
            let text = &text.as_bytes()[..text.len().min(SAID - size_of::<u64>())];
            // SAFETY: the mapping has room for the length and that many bytes, and nobody else uses it now.
            unsafe {
                said.cast::<u64>().write(text.len() as u64);
                let bytes = said.cast::<u8>().add(size_of::<u64>());
                bytes.copy_from_nonoverlapping(NonNull::from(text).cast(), text.len());
                libc::_exit(0)
            }
        }
    };
    let status = follow(child, &mut on_call, on_made);
    // SAFETY: as above; the child has ended.
    let text = unsafe {
        let len = said.cast::<u64>().read() as usize;
        let bytes = said.cast::<u8>().add(size_of::<u64>());
        let bytes = std::slice::from_raw_parts(bytes.as_ptr(), len);
        let text = String::from_utf8_lossy(bytes).into_owned();
        nix::sys::mman::munmap(said, SAID).unwrap();
        text
    };
    match status {
        None => End::Hung,
        Some(WaitStatus::Signaled(_, signal, _)) => End::Signal(signal),
        Some(_) => End::Said(text),
    }
}

/// Its end; `None`: it had to be killed.
fn follow(
    child: Pid,
    on_call: &mut impl FnMut(Call) -> Fate,
    mut on_made: Option<&mut dyn FnMut()>,
) -> Option<WaitStatus> {
    let watch = Watch::new(child);
    waitpid(child, None).unwrap();
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACESECCOMP
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(child, options).unwrap();
    // From here on these fail only for what was killed meanwhile, whose end comes next.
    let _ = ptrace::cont(child, None);
    let mut files = HashSet::new();
    // Calls whose end is of interest.
    let mut inside: HashMap<Pid, (Call, Fate)> = HashMap::new();
    loop {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let status = waitpid(Pid::from_raw(-1), Some(flags)).unwrap();
        let thread = status.pid().expect("somebody has changed");
        let mut pass_on = None;
        match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                inside.remove(&thread);
                if thread == child {
                    return (!watch.is_up()).then_some(status);
                }
                continue;
            }
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_SECCOMP) => {
                let Ok(mut registers) = ptrace::getregs(thread) else {
                    continue;
                };
                let call = Call::new(thread, &registers, &files);
                let fate = on_call(call);
                watch.start_anew();
                match fate {
                    Fate::Made | Fate::MadeButGives(_) => {}
                    Fate::Refused(errno) => {
                        registers.orig_rax = u64::MAX;
                        registers.rax = gives(errno);
                    }
                    Fate::Short => registers.rdx = registers.rdx.min(1),
                }
                if fate != Fate::Made {
                    let _ = ptrace::setregs(thread, registers);
                }
                let is_map = call.number == libc::SYS_mmap && is_file(&call);
                if is_map || matches!(fate, Fate::MadeButGives(_)) || on_made.is_some() {
                    inside.insert(thread, (call, fate));
                    let _ = ptrace::syscall(thread, None);
                    continue;
                }
            }
            WaitStatus::PtraceSyscall(_) => {
                if let Some((call, fate)) = inside.remove(&thread)
                    && let Ok(mut registers) = ptrace::getregs(thread)
                {
                    if call.number == libc::SYS_mmap && fate == Fate::Made {
                        files.insert(registers.rax);
                    }
                    if let Fate::MadeButGives(errno) = fate {
                        registers.rax = gives(errno);
                        let _ = ptrace::setregs(thread, registers);
                    }
                    on_made.iter_mut().for_each(|on_made| on_made());
                    watch.start_anew();
                }
            }
            // A new thread's first stop is no signal to it.
            WaitStatus::Stopped(_, Signal::SIGSTOP) | WaitStatus::PtraceEvent(..) => {}
            WaitStatus::Stopped(_, signal) => pass_on = Some(signal),
            _ => {}
        }
        let _ = ptrace::cont(thread, pass_on);
    }
}

fn gives(errno: Errno) -> u64 {
    (-i64::from(errno as i32)) as u64
}

impl Call {
    fn new(thread: Pid, registers: &libc::user_regs_struct, files: &HashSet<u64>) -> Self {
        let number = registers.orig_rax as c_long;
        // The kind of a lock is in the first two bytes of what says which.
        let lock = match number {
            libc::SYS_fcntl => {
                let at = std::ptr::with_exposed_provenance_mut(registers.rdx as usize);
                ptrace::read(thread, at).map_or(-1, |word| i32::from(word as i16))
            }
            _ => -1,
        };
        Self {
            number,
            arguments: [
                registers.rdi,
                registers.rsi,
                registers.rdx,
                registers.r10,
                registers.r8,
                registers.r9,
            ],
            is_of_file: files.contains(&registers.rdi),
            is_unlock: lock == libc::F_UNLCK,
        }
    }
}

/// Whether a `mmap` is of a file.
pub fn is_file(call: &Call) -> bool {
    call.arguments[3] & libc::MAP_ANONYMOUS as u64 == 0
}

/// Kills a child that takes too long.
struct Watch;

#[derive(Debug)]
struct Watched {
    child: Pid,
    since: Instant,
    is_up: bool,
}

static WATCHED: Mutex<Option<Watched>> = Mutex::new(None);

impl Watch {
    fn new(child: Pid) -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            thread::spawn(|| {
                loop {
                    thread::sleep(PATIENCE / 100);
                    if let Some(watched) = &mut *WATCHED.lock().unwrap()
                        && watched.since.elapsed() > PATIENCE
                    {
                        watched.is_up = true;
                        let _ = kill(watched.child, Signal::SIGKILL);
                    }
                }
            });
        });
        *WATCHED.lock().unwrap() = Some(Watched {
            child,
            since: Instant::now(),
            is_up: false,
        });
        Self
    }

    /// What its tracer takes does not count.
    fn start_anew(&self) {
        let mut watched = WATCHED.lock().unwrap();
        watched
            .iter_mut()
            .for_each(|watched| watched.since = Instant::now());
    }

    fn is_up(&self) -> bool {
        let watched = WATCHED.lock().unwrap();
        watched.as_ref().is_some_and(|watched| watched.is_up)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *WATCHED.lock().unwrap() = None;
    }
}
