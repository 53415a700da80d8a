//! A process under ptrace, of which one thread is stepped: up to a named point, or to the end while all points are noted.

use std::collections::HashMap;
use std::fs;
use std::mem::offset_of;

use crate::common::names;
use iced_x86::{
    Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, Register, UsedMemory,
};
use nix::errno::Errno;
use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Where a thread is killed: behind so many system calls, so many stores to shared memory since the last one, and so many other
/// instructions since those.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    pub calls: u32,
    pub stores: u32,
    pub steps: u32,
    /// The quick way there, in processes forked from this one.
    arrival: Option<Arrival>,
}

/// An instruction, the how manieth arrival there since the last system call, and how often it has been repeated since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arrival {
    rip: u64,
    nth: u32,
    repeated: u32,
}

impl Point {
    /// The same, to be come to step by step.
    pub fn counted(self) -> Self {
        let arrival = None;
        Self { arrival, ..self }
    }

    /// As it is displayed.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('+').map(|number| number.parse().ok());
        let (calls, stores, steps) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let arrival = None;
        Some(Self {
            calls,
            stores,
            steps,
            arrival,
        })
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}+{}", self.calls, self.stores, self.steps)
    }
}

/// What an instruction is to us.
enum Meaning {
    Call,
    /// The traced process says that the operation is over.
    Over,
    /// It may store there.
    Stores(Vec<UsedMemory>),
}

/// The instructions that were met. All processes are forked from this one: they have the same code at the same place.
#[derive(Default)]
pub struct Code(HashMap<u64, Meaning>);

impl Code {
    fn at(&mut self, process: Pid, rip: u64) -> &Meaning {
        self.0.entry(rip).or_insert_with(|| {
            let mut bytes = [0; 15];
            let remote = RemoteIoVec {
                base: rip as usize,
                len: bytes.len(),
            };
            let len = process_vm_readv(
                process,
                &mut [std::io::IoSliceMut::new(&mut bytes)],
                &[remote],
            )
            .unwrap();
            let instruction =
                Decoder::with_ip(64, &bytes[..len], rip, DecoderOptions::NONE).decode();
            match instruction.mnemonic() {
                Mnemonic::Syscall => return Meaning::Call,
                Mnemonic::Int3 => return Meaning::Over,
                // A failed decode must not pass for an instruction that stores nothing.
                Mnemonic::INVALID => panic!("no instruction at {rip:#x}: {bytes:x?}"),
                _ => {}
            }
            let mut factory = InstructionInfoFactory::new();
            let stores = factory
                .info(&instruction)
                .used_memory()
                .iter()
                .filter(|memory| {
                    let access = memory.access();
                    let reads = matches!(
                        access,
                        OpAccess::None
                            | OpAccess::Read
                            | OpAccess::CondRead
                            | OpAccess::NoMemAccess
                    );
                    !reads && memory.base() != Register::RSP
                });
            Meaning::Stores(stores.copied().collect())
        })
    }
}

const OPTIONS: Options = Options::PTRACE_O_TRACESYSGOOD.union(Options::PTRACE_O_EXITKILL);

/// Stops a thread when it sleeps.
fn seize_asleep(process: Pid, name: &str) -> Pid {
    let task = format!("/proc/{process}/task");
    let read = |tid: &str, what: &str| {
        fs::read_to_string(format!("{task}/{tid}/{what}")).unwrap_or_default()
    };
    // The kernel keeps 15 bytes of a name.
    let is_it = |tid: &String| read(tid, "comm").trim_end() == &name[..name.len().min(15)];
    let is_asleep = |tid: &String| {
        let call = read(tid, "syscall")
            .split(' ')
            .next()
            .and_then(|call| call.parse().ok());
        call.is_some_and(|call| SLEEPS.contains(&call))
    };
    let tid = loop {
        if let Some(tid) = names(task.as_ref())
            .into_iter()
            .find(|tid| is_it(tid) && is_asleep(tid))
        {
            break tid;
        }
        std::thread::yield_now();
    };
    let thread = Pid::from_raw(tid.parse().unwrap());
    ptrace::seize(thread, OPTIONS).unwrap();
    ptrace::interrupt(thread).unwrap();
    let status = waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    assert!(matches!(status, WaitStatus::PtraceEvent(..)), "{status:?}");
    thread
}

/// System calls in which a thread waits for others; one of them may be gone on with after the tracer has stopped it.
const SLEEPS: [i64; 5] = [
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
];

/// Waits for the trap that says where the operation begins, or is over.
fn await_trap(process: Pid) {
    let status = waitpid(process, None).unwrap();
    assert_eq!(
        status,
        WaitStatus::Stopped(process, Signal::SIGTRAP),
        "the operation never came to its place"
    );
}

pub struct Traced<'a> {
    process: Pid,
    /// The one that is stepped.
    thread: Pid,
    code: &'a mut Code,
    /// Where memory is shared with others.
    shared: Vec<(u64, u64)>,
    /// One that is stopped meanwhile.
    still: Option<Pid>,
    /// Another thread than the main one has woken to do its part: when it sleeps again, that is done.
    has_woken: bool,
}

/// Says to the tracer, which is there: the operation begins here, or is over.
pub fn here() {
    // SAFETY: a trap, which the tracer takes for itself.
    unsafe { std::arch::asm!("int3") };
}

/// Has this process's parent trace it, from its stop here on.
pub fn trace_me() {
    ptrace::traceme().unwrap();
    nix::sys::signal::raise(Signal::SIGSTOP).unwrap();
}

impl<'a> Traced<'a> {
    /// A child that has called [`trace_me`], where its operation begins. `stepped` and `still`: what threads are called, one that
    /// is stepped in place of the main one, after that is done, and one that is stopped until the process is killed.
    pub fn begin(
        process: Pid,
        code: &'a mut Code,
        stepped: Option<&str>,
        still: Option<&str>,
    ) -> Self {
        assert_eq!(
            waitpid(process, None),
            Ok(WaitStatus::Stopped(process, Signal::SIGSTOP))
        );
        ptrace::setoptions(process, OPTIONS).unwrap();
        ptrace::cont(process, None).unwrap();
        await_trap(process);
        let thread = stepped.map_or(process, |name| seize_asleep(process, name));
        let still = still.map(|name| seize_asleep(process, name));
        let mut traced = Self {
            process,
            thread,
            code,
            shared: Vec::new(),
            still,
            has_woken: false,
        };
        traced.look_for_shared();
        traced
    }

    /// If it is not the main thread that is stepped: has that one do its part, and the other wake.
    fn set_off(&mut self, nudge: &mut dyn FnMut()) {
        if self.thread != self.process {
            ptrace::cont(self.process, None).unwrap();
            await_trap(self.process);
            self.pass_call(nudge).expect("it sleeps");
            self.has_woken = true;
        }
    }

    fn look_for_shared(&mut self) {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.process)).unwrap();
        let range = |line: &str| {
            let mut parts = line.split(' ');
            let (range, rights) = (parts.next()?, parts.next()?);
            let (start, end) = range.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            rights
                .ends_with('s')
                .then_some((number(start)?, number(end)?))
        };
        self.shared = maps.lines().filter_map(range).collect();
    }

    fn wait(&self) -> WaitStatus {
        waitpid(self.thread, Some(WaitPidFlag::__WALL)).unwrap()
    }

    /// Goes on to behind the next system call, `nudge`d before it sleeps for others. `None`: the operation is over before that.
    fn pass_call(&mut self, nudge: &mut dyn FnMut()) -> Option<()> {
        ptrace::syscall(self.thread, None).unwrap();
        let status = self.wait();
        let WaitStatus::PtraceSyscall(_) = status else {
            assert_eq!(status, WaitStatus::Stopped(self.thread, Signal::SIGTRAP));
            return None;
        };
        let regs = self.regs();
        let call = regs.orig_rax as i64;
        let futex = regs.rsi as i32;
        let is_wait = matches!(futex & 0x7f, libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET);
        let is_sleep = match call {
            libc::SYS_futex => is_wait && futex & libc::FUTEX_PRIVATE_FLAG == 0,
            _ => SLEEPS.contains(&call),
        };
        if is_sleep {
            nudge();
        }
        let is_endless = match call {
            libc::SYS_futex => is_wait && regs.r10 == 0,
            libc::SYS_poll => regs.rdx as i32 == -1,
            _ => false,
        };
        if self.thread != self.process && is_endless && self.has_woken {
            return None;
        }
        ptrace::syscall(self.thread, None).unwrap();
        let status = self.wait();
        assert!(
            matches!(status, WaitStatus::PtraceSyscall(_)),
            "{status:?} in a system call"
        );
        if matches!(call, libc::SYS_mmap | libc::SYS_munmap | libc::SYS_mremap) {
            self.look_for_shared();
        }
        Some(())
    }

    fn step(&mut self) {
        ptrace::step(self.thread, None).unwrap();
        let stepped = WaitStatus::Stopped(self.thread, Signal::SIGTRAP);
        assert_eq!(self.wait(), stepped);
    }

    fn regs(&self) -> user_regs_struct {
        ptrace::getregs(self.thread).unwrap()
    }

    /// What comes next, and where.
    fn next(&mut self) -> (u64, Next) {
        let regs = self.regs();
        let next = match self.code.at(self.process, regs.rip) {
            Meaning::Call => Next::Call,
            Meaning::Over => Next::Over,
            Meaning::Stores(stores) => {
                let is_shared = |memory: &UsedMemory| {
                    let address =
                        memory.virtual_address(0, |register, _, _| value(&regs, register));
                    let address = address
                        .unwrap_or_else(|| panic!("the address of a store at {:#x}", regs.rip));
                    self.shared
                        .iter()
                        .any(|&(start, end)| (start..end).contains(&address))
                };
                match stores.iter().any(is_shared) {
                    true => Next::Store,
                    false => Next::Other,
                }
            }
        };
        (regs.rip, next)
    }

    /// Goes to the end, and notes every point behind every `share`th system call, from the `first` on; `every_step`: also those between two stores.
    pub fn record(
        &mut self,
        every_step: bool,
        (share, first): (u32, u32),
        nudge: &mut dyn FnMut(),
    ) -> Vec<Point> {
        let mut point = Point::default();
        let mut points = Vec::new();
        self.set_off(nudge);
        let mut arrivals = HashMap::new();
        let mut arrival = Arrival {
            rip: 0,
            nth: 0,
            repeated: 0,
        };
        loop {
            if point.calls % share != first {
                if self.pass_call(nudge).is_none() {
                    return points;
                }
                point.calls += 1;
                continue;
            }
            if point.stores + point.steps == 0 {
                points.push(point);
            }
            let (rip, next) = self.next();
            if rip == arrival.rip {
                arrival.repeated += 1;
            } else {
                let nth = arrivals.entry(rip).or_insert(0);
                *nth += 1;
                arrival = Arrival {
                    rip,
                    nth: *nth,
                    repeated: 0,
                };
            }
            if let Some(last) = points.last_mut().filter(|last| last.arrival.is_none()) {
                last.arrival = Some(arrival);
            }
            match next {
                Next::Over => return points,
                Next::Call => {
                    if self.pass_call(nudge).is_none() {
                        return points;
                    }
                    point = Point {
                        calls: point.calls + 1,
                        ..Point::default()
                    };
                    arrivals.clear();
                    arrival.rip = 0;
                    continue;
                }
                Next::Store => {
                    self.step();
                    point = Point {
                        stores: point.stores + 1,
                        steps: 0,
                        ..point
                    };
                }
                Next::Other => {
                    self.step();
                    point.steps += 1;
                    if !every_step {
                        continue;
                    }
                }
            }
            points.push(point);
        }
    }

    /// Goes to a point. `false`: it did not come by there.
    pub fn go_to(&mut self, point: Point, nudge: &mut dyn FnMut()) -> bool {
        self.set_off(nudge);
        for _ in 0..point.calls {
            if self.pass_call(nudge).is_none() {
                return false;
            }
        }
        match point.arrival {
            _ if point.stores + point.steps == 0 => true,
            Some(arrival) => self.arrive(arrival),
            None => self.step_to(point),
        }
    }

    fn step_to(&mut self, point: Point) -> bool {
        let (mut stores, mut steps) = (0, 0);
        while (stores, steps) < (point.stores, point.steps) {
            match self.next().1 {
                Next::Store if stores == point.stores => return false,
                Next::Store => (stores, steps) = (stores + 1, 0),
                Next::Other => steps += 1,
                Next::Call | Next::Over => return false,
            }
            self.step();
        }
        true
    }

    /// The same, by a breakpoint of the processor's.
    fn arrive(&mut self, Arrival { rip, nth, repeated }: Arrival) -> bool {
        let register =
            |n: usize| (offset_of!(libc::user, u_debugreg) + 8 * n) as ptrace::AddressType;
        let set = |n, value| ptrace::write_user(self.thread, register(n), value).unwrap();
        set(0, rip as i64);
        // The first register's address, when it is executed.
        set(7, 1);
        for _ in 0..nth {
            ptrace::syscall(self.thread, None).unwrap();
            let stopped = WaitStatus::Stopped(self.thread, Signal::SIGTRAP);
            // Else at a system call, or at the end.
            if self.wait() != stopped || self.regs().rip != rip {
                return false;
            }
        }
        ptrace::write_user(self.thread, register(7), 0).unwrap();
        for _ in 0..repeated {
            self.step();
        }
        self.regs().rip == rip
    }

    /// Ends the process by `SIGKILL`.
    pub fn kill(self) {
        nix::sys::signal::kill(self.process, Signal::SIGKILL).unwrap();
        for pid in self.still.into_iter().chain([self.thread, self.process]) {
            loop {
                match waitpid(pid, Some(WaitPidFlag::__WALL)) {
                    Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _)) | Err(Errno::ECHILD) => break,
                    // A stop from just before.
                    Ok(
                        WaitStatus::Stopped(..)
                        | WaitStatus::PtraceSyscall(_)
                        | WaitStatus::PtraceEvent(..),
                    ) => {}
                    status => panic!("{status:?}"),
                }
            }
        }
    }
}

enum Next {
    Call,
    Over,
    /// A store to shared memory.
    Store,
    Other,
}

fn value(regs: &user_regs_struct, register: Register) -> Option<u64> {
    Some(match register {
        Register::RAX => regs.rax,
        Register::RBX => regs.rbx,
        Register::RCX => regs.rcx,
        Register::RDX => regs.rdx,
        Register::RSI => regs.rsi,
        Register::RDI => regs.rdi,
        Register::RBP => regs.rbp,
        Register::RSP => regs.rsp,
        Register::R8 => regs.r8,
        Register::R9 => regs.r9,
        Register::R10 => regs.r10,
        Register::R11 => regs.r11,
        Register::R12 => regs.r12,
        Register::R13 => regs.r13,
        Register::R14 => regs.r14,
        Register::R15 => regs.r15,
        Register::FS => regs.fs_base,
        Register::GS => regs.gs_base,
        Register::CS | Register::DS | Register::ES | Register::SS => 0,
        _ => return None,
    })
}
