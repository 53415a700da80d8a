//! Waiting for many things at once.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

use crate::bus::forked;
use crate::error::{Error, Result};
use crate::reactor::{self, Sleep};
use crate::shm::sync::heavy_fence;
use crate::shm::{fork, futex, park};
use crate::wait::{Next, WaitStrategy, Waitable, Waiter};

/// What a [`WaitSet`] can wait for: a [`Subscriber`](crate::Subscriber), a descriptor ([`Fd`]). It is ready when the next
/// call would not wait: also for an end, a loss, or an error.
pub trait Source: Waitable {}

impl<W: Waitable + ?Sized> Source for W {}

/// A file descriptor in a [`WaitSet`]. It is ready, too, on an error or a hang-up.
#[derive(Clone, Copy, Debug)]
pub struct Fd<'a> {
    fd: BorrowedFd<'a>,
    events: PollFlags,
}

impl<'a> Fd<'a> {
    /// Ready when there is something to read.
    pub fn readable(fd: &'a impl AsFd) -> Self {
        Self::new(fd, PollFlags::POLLIN)
    }

    /// Ready when there is room to write.
    pub fn writable(fd: &'a impl AsFd) -> Self {
        Self::new(fd, PollFlags::POLLOUT)
    }

    fn new(fd: &'a impl AsFd, events: PollFlags) -> Self {
        let fd = fd.as_fd();
        Self { fd, events }
    }
}

impl Waitable for Fd<'_> {
    fn is_ready(&mut self) -> Result<bool> {
        let mut fds = [PollFd::new(self.fd, self.events)];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(e) => Err(waiting(e)),
        }
    }

    fn arm(&mut self, _: &mut Vec<park::Ticket>) -> Result<()> {
        Ok(())
    }

    fn disarm(&mut self) {}

    fn descriptor(&self) -> Option<PollFd<'_>> {
        Some(PollFd::new(self.fd, self.events))
    }
}

fn waiting(e: Errno) -> Error {
    Error::system(TRIED, ON, e)
}
const TRIED: &str = "wait for";
const ON: &str = "many";

/// Waits for many things at once: subscribers of any topics and buses, and descriptors.
///
/// It owns nothing of what it waits for, which is named in each call, as with `poll(2)`. Of those that are ready it says one,
/// and looks first behind that one the next time, so that none is passed over for ever. The caller should take one message
/// there, or a few, not wait there for more.
///
/// ```
/// use buslane::{Fd, WaitSet};
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
///
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// # let (mut peer, socket) = UnixStream::pair()?;
/// let (mut orders, mut fills) = (bus.topic("orders")?.subscriber()?, bus.topic("fills")?.subscriber()?);
/// bus.topic("fills")?.publisher()?.send(b"7 pears")?;
/// peer.write_all(b"?")?;
///
/// let mut set = WaitSet::new()?;
/// for _ in 0..2 {
///     match set.wait(&mut [&mut orders, &mut fills, &mut Fd::readable(&socket)], None)? {
///         Some(0) => println!("ordered: {:?}", &*orders.recv()?),
///         Some(1) => assert_eq!(&*fills.recv()?, b"7 pears"),
///         Some(_) => println!("somebody asks"),
///         None => unreachable!("there is no timeout"),
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # In an epoll loop
///
/// [`poll`](Self::poll) does not wait. When it finds nothing, it has the set's own descriptor (`AsFd`) become readable as
/// soon as something may be there. So: poll until it says `None`, then wait for that descriptor, beside others, then poll
/// again.
///
/// ```
/// # use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// # let mut orders = bus.topic("orders")?.subscriber()?;
/// # let mut fills = bus.topic("fills")?.subscriber()?;
/// # bus.topic("fills")?.publisher()?.send(b"7 pears")?;
/// let mut set = buslane::WaitSet::new()?;
/// let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
/// epoll.add(&set, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
/// 'all: loop {
///     while let Some(ready) = set.poll(&mut [&mut orders, &mut fills])? {
///         match ready {
///             0 => drop(orders.recv()?),
///             _ => { assert_eq!(&*fills.recv()?, b"7 pears"); break 'all }
///         }
///     }
///     epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE)?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct WaitSet {
    /// Which source is looked at first.
    next: usize,
    wait: WaitStrategy,
    sleep: Sleep,
    /// What the reactor wakes, where the kernel can't be asked for all at once.
    alarm: Arc<Alarm>,
    born: u64,
}

/// Readable when it has rung.
struct Alarm(EventFd);

impl Alarm {
    fn silence(&self) {
        // An error says that it has not rung.
        let _ = self.0.read();
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // A counter at its maximum is an error, and readable all the same.
        let _ = self.0.write(1);
    }
}

impl fmt::Debug for WaitSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitSet")
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

impl WaitSet {
    /// One that looks for a while before it sleeps.
    ///
    /// # Errors
    ///
    /// `Unsupported` before Linux 5.16; `TooMany` without descriptors left.
    pub fn new() -> Result<Self> {
        Self::waiting(WaitStrategy::default())
    }

    /// One that waits otherwise. (How its sources wait by themselves makes no difference.)
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn waiting(wait: WaitStrategy) -> Result<Self> {
        reactor::check_kernel(TRIED, ON)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let alarm = EventFd::from_flags(flags).map_err(waiting)?;
        Ok(Self {
            next: 0,
            wait,
            sleep: Sleep::default(),
            alarm: Arc::new(Alarm(alarm)),
            born: fork::generation(),
        })
    }

    /// Waits until one of `sources` is ready, and says which; `None`: none was for `timeout`, which may also be for ever
    /// (`None`) or not at all (zero).
    ///
    /// # Errors
    ///
    /// What looking at one of them gives, `Forked`, and the system's.
    pub fn wait(
        &mut self,
        sources: &mut [&mut dyn Source],
        timeout: Option<Duration>,
    ) -> Result<Option<usize>> {
        self.check_fork()?;
        let mut waiter = Waiter::new(self.wait, timeout);
        loop {
            if let Some(ready) = self.look(sources)? {
                return Ok(Some(ready));
            }
            match waiter.next(1) {
                Next::Look => {}
                Next::Sleep(time) => self.sleep(sources, time)?,
                Next::TimedOut => return Ok(None),
            }
        }
    }

    /// The same, until `deadline`.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub fn wait_until(
        &mut self,
        sources: &mut [&mut dyn Source],
        deadline: Instant,
    ) -> Result<Option<usize>> {
        let timeout = deadline.saturating_duration_since(Instant::now());
        self.wait(sources, Some(timeout))
    }

    /// Says which of `sources` is ready. `None`: none is, and the set's descriptor becomes readable when one may be (not for a
    /// descriptor among them: your own loop waits for those). It stays readable until this is called again.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub fn poll(&mut self, sources: &mut [&mut dyn Source]) -> Result<Option<usize>> {
        self.check_fork()?;
        self.alarm.silence();
        let ready = self.look_or_fall_asleep(sources);
        if !matches!(ready, Ok(None)) {
            self.disarm(sources);
        }
        ready
    }

    fn look_or_fall_asleep(&mut self, sources: &mut [&mut dyn Source]) -> Result<Option<usize>> {
        if let Some(ready) = self.look(sources)? {
            return Ok(Some(ready));
        }
        if let Some(ready) = self.arm(sources)? {
            return Ok(Some(ready));
        }
        let waker = Waker::from(Arc::clone(&self.alarm));
        let due = sources.iter().filter_map(|source| source.due()).min();
        if !self.sleep.fall_asleep(due, &waker)? {
            waker.wake();
        }
        Ok(None)
    }

    fn check_fork(&self) -> Result<()> {
        if self.born == fork::generation() {
            Ok(())
        } else {
            Err(forked(TRIED, ON))
        }
    }

    /// Looks at each source once, beginning behind the one that was ready last.
    fn look(&mut self, sources: &mut [&mut dyn Source]) -> Result<Option<usize>> {
        let first = self.next.min(sources.len());
        for i in (first..sources.len()).chain(0..first) {
            if sources[i].is_ready()? {
                self.next = i + 1;
                return Ok(Some(i));
            }
        }
        Ok(None)
    }

    /// Has all sources ring, and looks for the last time.
    fn arm(&mut self, sources: &mut [&mut dyn Source]) -> Result<Option<usize>> {
        let tickets = self.sleep.tickets();
        tickets.clear();
        for source in &mut *sources {
            source.arm(tickets)?;
        }
        heavy_fence();
        self.look(sources)
    }

    fn disarm(&self, sources: &mut [&mut dyn Source]) {
        for source in sources {
            source.disarm();
        }
    }

    fn sleep(&mut self, sources: &mut [&mut dyn Source], time: Duration) -> Result<()> {
        let next = self.next;
        let slept = match self.arm(sources) {
            Ok(None) => self.sleep_armed(sources, time),
            Ok(Some(_)) => {
                // To be found once more, by who asks which it is.
                self.next = next;
                Ok(())
            }
            Err(e) => Err(e),
        };
        self.disarm(sources);
        slept
    }

    fn sleep_armed(&mut self, sources: &[&mut dyn Source], time: Duration) -> Result<()> {
        let mut fds: Vec<_> = sources.iter().filter_map(|one| one.descriptor()).collect();
        let due = sources.iter().filter_map(|source| source.due()).min();
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let time = left.map_or(time, |left| left.min(time));
        let tickets = self.sleep.tickets();
        if fds.is_empty() && tickets.len() <= futex::WAIT_ANY_MAX {
            park::sleep_any(tickets, Some(time));
            return Ok(());
        }
        self.alarm.silence();
        let waker = Waker::from(Arc::clone(&self.alarm));
        if self.sleep.fall_asleep(None, &waker)? {
            fds.push(PollFd::new(self.alarm.0.as_fd(), PollFlags::POLLIN));
            match ppoll(&mut fds, Some(TimeSpec::from_duration(time)), None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(waiting(e)),
            }
        }
        self.sleep.rest();
        Ok(())
    }
}

impl AsFd for WaitSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.alarm.0.as_fd()
    }
}
