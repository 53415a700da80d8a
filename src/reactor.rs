//! What tasks sleep on: one thread for each 127 signals sleeps for them, and wakes theirs. It starts when it is first
//! needed, takes no time while nothing happens, and has no timer but for what is put off until a time: who dies before it
//! has rung is noticed by its bus, which rings then. In a process with a bus that others may look at, it looks again after each
//! [`SLICE`], too: whoever can map a word for reading can take its sleepers away (`FUTEX_REQUEUE`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::shm::fork;
use crate::shm::futex;
use crate::shm::park::{self, Signal, Ticket};
use crate::shm::sync::heavy_fence;
use crate::shm::wakers::Wakers;
use crate::wait::{SLICE, Waitable};

/// A thread that sleeps for others, as they share it.
#[derive(Debug)]
struct Sleeper {
    /// Changed when there is a new entry, or one less.
    kicked: Signal,
    wakers: Mutex<Wakers<Waker>>,
}

/// The threads of this process. A forked child has none, and can't use a lock that its parent may have held: it has a list
/// of its own.
static SLEEPERS: [Mutex<Vec<Arc<Sleeper>>>; GENERATIONS] =
    [const { Mutex::new(Vec::new()) }; GENERATIONS];
/// How often a process may fork, and its child, and so on.
const GENERATIONS: usize = 64;

/// Whether there is a bus in this process that others may look at.
static IS_LOOKED_AT: OnceLock<()> = OnceLock::new();

/// Has sleeps be in slices from now on. What has been slept on before is nothing that others may look at.
pub(crate) fn sleep_in_slices() {
    IS_LOOKED_AT.get_or_init(|| ());
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sleeper {
    fn start() -> Result<Arc<Self>> {
        check_kernel("start a thread for", "futures")?;
        let sleeper = Arc::new(Self {
            kicked: Signal::own(),
            wakers: Mutex::default(),
        });
        let own = Arc::clone(&sleeper);
        thread::Builder::new()
            .name("buslane-reactor".into())
            .spawn(move || own.run())
            .map_err(|e| Error::system("start a thread for", "futures", e))?;
        Ok(sleeper)
    }

    /// Turn by turn, as `shm::wakers` says.
    fn run(&self) {
        let (mut due, mut tickets) = (Vec::<Waker>::new(), Vec::new());
        loop {
            let until = {
                let mut wakers = lock(&self.wakers);
                let signal = self.kicked.clone();
                let seen = signal.now();
                tickets.push(Ticket { signal, seen });
                wakers.take_due(&mut due, &mut tickets)
            };
            for waker in due.drain(..) {
                // A task that panics there must not stop the others from being woken; the panic was printed.
                let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
            }
            let time = until.map(|until| until.saturating_duration_since(Instant::now()));
            let slice = IS_LOOKED_AT.get().map(|()| SLICE);
            let time = time.into_iter().chain(slice).min();
            park::sleep_any(&tickets, time);
            tickets.clear();
        }
    }
}

/// A signal that is watched.
#[derive(Debug)]
struct Watched {
    signal: Signal,
    sleeper: Arc<Sleeper>,
    index: usize,
    born: u64,
}

impl Watched {
    fn new(signal: &Signal) -> Result<Self> {
        let born = fork::generation();
        let sleepers = SLEEPERS.get(born as usize).ok_or_else(|| {
            let why = format!("this process stems from {born} forks in a row");
            Error::new(ErrorKind::Unsupported, "start a thread for", "futures", why)
                .advise("start the program anew (exec)")
        })?;
        let watched = |sleeper: &Arc<Sleeper>| {
            let mut wakers = lock(&sleeper.wakers);
            let index = wakers.add(signal.clone())?;
            park::kick(sleeper.kicked.word());
            Some(Self {
                signal: signal.clone(),
                sleeper: Arc::clone(sleeper),
                index,
                born,
            })
        };
        let mut sleepers = lock(sleepers);
        if let Some(watched) = sleepers.iter().find_map(watched) {
            return Ok(watched);
        }
        let sleeper = Sleeper::start()?;
        let watched = watched(&sleeper).expect("a new one has room");
        sleepers.push(sleeper);
        Ok(watched)
    }

    /// Has `waker` woken when the signal is not as `seen` any more, or at `until`. `false`: that is so already.
    fn sleep(&self, seen: u64, until: Option<Instant>, waker: Waker) -> bool {
        if self.born != fork::generation() {
            return false;
        }
        let before = lock(&self.sleeper.wakers).sleep(self.index, seen, until, waker);
        if until.is_some() {
            park::kick(self.sleeper.kicked.word());
        }
        before.is_ok()
    }

    fn rest(&self) {
        if self.born != fork::generation() {
            return;
        }
        let before = lock(&self.sleeper.wakers).rest(self.index);
        // Not while it is locked: what the waker keeps alive may be one that is watched, too.
        drop(before);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.born != fork::generation() {
            return;
        }
        let before = lock(&self.sleeper.wakers).remove(self.index);
        // It holds what it sleeps on, until it looks again.
        park::kick(self.sleeper.kicked.word());
        drop(before);
    }
}

/// What a look at an end has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// It is ready.
    Ready,
    /// It is armed, and sleeps.
    Asleep,
    /// Something has rung meanwhile: it is to be looked at again.
    Again,
}

/// What sleeps on many signals with one waker. Signals that are the same as the last time need no word with the thread.
#[derive(Debug, Default)]
pub(crate) struct Sleep {
    tickets: Vec<Ticket>,
    watched: Vec<Watched>,
    /// The ends are armed, with these tickets.
    is_armed: bool,
}

impl Sleep {
    /// Where the tickets go that [`fall_asleep`](Self::fall_asleep) is for.
    pub(crate) fn tickets(&mut self) -> &mut Vec<Ticket> {
        &mut self.tickets
    }

    /// Has `waker` woken when one of the tickets is due, or at `until`. `false`: one is.
    pub(crate) fn fall_asleep(&mut self, until: Option<Instant>, waker: &Waker) -> Result<bool> {
        // What is not slept on any more is neither woken for, nor kept mapped.
        self.watched.truncate(self.tickets.len());
        for (i, ticket) in self.tickets.iter().enumerate() {
            match self.watched.get_mut(i) {
                Some(watched) if watched.signal.is(&ticket.signal) => {}
                Some(watched) => *watched = Watched::new(&ticket.signal)?,
                None => self.watched.push(Watched::new(&ticket.signal)?),
            }
            let until = until.filter(|_| i == 0);
            if !self.watched[i].sleep(ticket.seen, until, waker.clone()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Wakes nobody any more.
    pub(crate) fn rest(&mut self) {
        self.watched.iter().for_each(Watched::rest);
    }

    /// For a future: whether `end` is ready. If not, it is armed, and the task is woken when it may be.
    pub(crate) fn poll(
        &mut self,
        end: &mut dyn Waitable,
        context: &mut Context<'_>,
    ) -> Poll<Result<()>> {
        match self.look(end, context.waker()) {
            Ok(Look::Ready) => Poll::Ready(Ok(())),
            Ok(Look::Asleep) => Poll::Pending,
            Ok(Look::Again) => {
                // Others may want to run before we look again.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Err(e) => Poll::Ready(Err(e)),
        }
    }

    /// Whether `end` is ready. If not, it is armed, and `waker` is woken when it may be: later, by another thread.
    pub(crate) fn look(&mut self, end: &mut dyn Waitable, waker: &Waker) -> Result<Look> {
        let look = self.look_or_sleep(end, waker);
        if !matches!(look, Ok(Look::Asleep | Look::Again)) {
            self.give_up(end);
        }
        look
    }

    fn look_or_sleep(&mut self, end: &mut dyn Waitable, waker: &Waker) -> Result<Look> {
        if end.is_ready()? {
            return Ok(Look::Ready);
        }
        // Polled for another reason than a signal: still armed. (A signal after this wakes.)
        let still_holds =
            self.is_armed && !self.tickets.is_empty() && !self.tickets.iter().any(Ticket::is_due);
        if still_holds && self.fall_asleep(end.due(), waker)? {
            return Ok(Look::Asleep);
        }
        self.is_armed = true;
        self.tickets.clear();
        end.arm(&mut self.tickets)?;
        heavy_fence();
        if end.is_ready()? {
            return Ok(Look::Ready);
        }
        Ok(
            match self.tickets.is_empty() || !self.fall_asleep(end.due(), waker)? {
                true => Look::Again,
                false => Look::Asleep,
            },
        )
    }

    /// For a future that is dropped, or ready.
    pub(crate) fn give_up(&mut self, end: &mut dyn Waitable) {
        if std::mem::take(&mut self.is_armed) {
            end.disarm();
            self.rest();
        }
    }
}

/// A future that waits until `end` is ready. Nothing is taken by it.
#[derive(Debug)]
pub(crate) struct Ready<'a, W: Waitable> {
    end: W,
    sleep: &'a mut Sleep,
}

impl<'a, W: Waitable> Ready<'a, W> {
    pub(crate) fn new(end: W, sleep: &'a mut Sleep) -> Self {
        // One before it may have been forgotten, and blocking calls made since then.
        sleep.is_armed = false;
        Self { end, sleep }
    }
}

impl<W: Waitable + Unpin> Future for Ready<'_, W> {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let Self { end, sleep } = self.get_mut();
        sleep.poll(end, context)
    }
}

impl<W: Waitable> Drop for Ready<'_, W> {
    fn drop(&mut self) {
        self.sleep.give_up(&mut self.end);
    }
}

/// Says so where the kernel can't wait for many.
pub(crate) fn check_kernel(tried: &'static str, on: &str) -> Result<()> {
    if futex::has_wait_any() {
        return Ok(());
    }
    let why = "the system has no futex_waitv, or does not allow it";
    Err(Error::new(ErrorKind::Unsupported, tried, on, why)
        .advise("use Linux 5.16 or later, or wait for one thing at a time"))
}
