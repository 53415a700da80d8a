//! What a publisher of a durable topic has done for it: data files made ahead, synced, and put away when nobody needs them.
//! A thread of its own does what may take long.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::SyncPolicy;
use crate::bus::{TopicInner, forked};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::bytes::Ring;
use crate::shm::lane::{self, Boundary, Outside};
use crate::shm::layout::LaneHeader;
use crate::shm::log::Log;
use crate::shm::{View, files, fork, reclaim, roster};

/// Files that are kept open until they are synced: an error of writing them back is told to who had them open then.
const OPEN_FILES: usize = 64;
/// How often it is looked whether messages have been kept long enough.
const LOOK: Duration = Duration::from_secs(1);

/// Of one lane, while it has a publisher.
#[derive(Debug)]
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What its threads share.
#[derive(Debug)]
pub(super) struct Shared {
    topic: Arc<TopicInner>,
    header: View<LaneHeader>,
    ring: Ring,
    policy: SyncPolicy,
    state: Mutex<State>,
    /// There is something to do for the thread, or it has done it.
    changed: Condvar,
    /// A sync has ended.
    synced: Condvar,
    born: u64,
}

#[derive(Debug)]
struct State {
    /// The number of the file that is written now.
    current: u64,
    /// That of the last one that is to be there.
    wanted_file: u64,
    /// That of the last one that is there, and mapped.
    made: u64,
    /// The next one could not be made.
    is_stuck: bool,
    /// Those that are not synced, the first ones first.
    unsynced: VecDeque<(u64, Arc<OwnedFd>)>,
    /// Up to here it is on the disk.
    synced: Boundary,
    /// What somebody waits for.
    wanted: Boundary,
    /// Somebody is at it.
    is_syncing: bool,
    /// How many wait for the next sync.
    waiting: usize,
    /// How many the last sync was for, and how long it took.
    last: (usize, Duration),
    /// The writer has come to another file since what nobody needs was last put away.
    has_turned: bool,
    is_over: bool,
}

impl Keeper {
    /// Of a lane whose writer stands at `at`.
    pub fn start(
        topic: &Arc<TopicInner>,
        header: &View<LaneHeader>,
        ring: &Ring,
        at: Boundary,
    ) -> Result<Self> {
        let log = ring.log().expect("a lane of a durable topic is in files");
        let current = at.position / log.capacity();
        let (file, _) = log.make(current)?;
        log.lay(current, &file)?;
        let lane = log.lane();
        // Of a lane that was taken up, what was not synced is not known: from the last place that was.
        let first = lane::synced(header, lane).unwrap_or_default();
        let state = State {
            current,
            wanted_file: current,
            made: current,
            is_stuck: false,
            unsynced: VecDeque::from([(current, Arc::new(file))]),
            synced: first,
            wanted: first,
            is_syncing: false,
            waiting: 0,
            last: (1, Duration::ZERO),
            has_turned: true,
            is_over: false,
        };
        let shared = Arc::new(Shared {
            topic: Arc::clone(topic),
            header: header.clone(),
            ring: ring.clone(),
            policy: SyncPolicy::from_ns(topic.files.config.sync_ns),
            state: Mutex::new(state),
            changed: Condvar::new(),
            synced: Condvar::new(),
            born: fork::generation(),
        });
        let ours = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("buslane-files".into())
            .spawn(move || ours.run())
            .map_err(|e| Error::system("start a thread for", Arc::clone(&topic.files.name), e))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    #[inline]
    pub fn check(&self) -> Result<()> {
        self.shared.check()
    }

    pub fn policy(&self) -> SyncPolicy {
        self.shared.policy
    }

    /// Has the next file made, which the writer comes to soon.
    pub fn expect_turn(&self) {
        let mut state = self.shared.lock();
        if state.wanted_file <= state.current {
            state.wanted_file = state.current + 1;
            self.shared.changed.notify_all();
        }
    }

    /// Has the file mapped, and begun, that the writer comes to with its next frame, at `next`.
    pub fn turn_to(&self, next: Boundary) -> Result<()> {
        let shared = &self.shared;
        let log = shared.log();
        let number = next.position / log.capacity();
        let mut state = shared.lock();
        if number == state.current {
            if number > 0 && next.position.is_multiple_of(log.capacity()) {
                // It was begun for a claim that was given up.
                drop(state);
                log.begin(number, next)?;
            }
            return Ok(());
        }
        if state.wanted_file < number {
            state.wanted_file = number;
            shared.changed.notify_all();
        }
        while state.made < number && !state.is_stuck {
            // The thread is at it.
            state = shared.wait(&shared.changed, state);
        }
        if state.made < number {
            // It could not. There may be room by now.
            state.is_stuck = false;
            drop(state);
            let made = shared.make(number);
            state = shared.lock();
            if let Err(e) = shared.note_made(&mut state, number, made) {
                state.is_stuck = true;
                return Err(e);
            }
        }
        drop(state);
        log.begin(number, next)?;
        let mut state = shared.lock();
        state.current = number;
        state.wanted_file = number + 1;
        state.has_turned = true;
        shared.changed.notify_all();
        Ok(())
    }

    /// Has all that was sent so far on the disk.
    pub fn sync(&self, at: Boundary) -> Result<()> {
        self.shared.sync(at)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.shared.born != fork::generation() {
            // The thread was not inherited: its number may be another's by now.
            std::mem::forget(self.thread.take());
            return;
        }
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, on: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        on.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> &Log {
        self.ring
            .log()
            .expect("a lane of a durable topic is in files")
    }

    /// Makes a file, and maps it.
    fn make(&self, number: u64) -> Result<(OwnedFd, bool)> {
        let log = self.log();
        let (file, is_new) = log.make(number)?;
        log.lay(number, &file)?;
        Ok((file, is_new))
    }

    /// Whether it is new.
    fn note_made(
        &self,
        state: &mut State,
        number: u64,
        made: Result<(OwnedFd, bool)>,
    ) -> Result<bool> {
        let (file, is_new) = made?;
        state.made = state.made.max(number);
        if state.unsynced.len() == OPEN_FILES {
            state.unsynced.pop_front();
        }
        if !state.unsynced.iter().any(|(there, _)| *there == number) {
            state.unsynced.push_back((number, Arc::new(file)));
        }
        Ok(is_new)
    }

    // ----------------------------------------------------------------------------------------------------- syncing

    pub fn is_synced(&self, at: Boundary) -> bool {
        // In a forked child the lock may be held by who is not there.
        self.born == fork::generation() && self.lock().synced.position >= at.position
    }

    /// Has all before `at` on the disk: does it, or waits for who does.
    pub fn sync(&self, at: Boundary) -> Result<()> {
        if self.born != fork::generation() {
            return Err(forked("sync", &self.topic.files.name));
        }
        let mut state = self.lock();
        if at.position > state.wanted.position {
            state.wanted = at;
        }
        if state.synced.position < at.position {
            state.waiting += 1;
        }
        loop {
            self.check()?;
            if state.synced.position >= at.position {
                return Ok(());
            }
            state = if state.is_syncing {
                self.wait(&self.synced, state)
            } else {
                self.sync_now(state)?
            };
        }
    }

    /// Syncs up to what is wanted, for all who wait.
    fn sync_now<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>> {
        let log = self.log();
        state.is_syncing = true;
        // Those that the last one was for are about to send again: one sync for all of them takes as long as one for the first.
        let (group, took) = state.last;
        let started = Instant::now();
        while state.waiting < group && started.elapsed() < took {
            drop(state);
            thread::yield_now();
            state = self.lock();
        }
        // What all of them want is synced.
        let (group, started) = (std::mem::take(&mut state.waiting), Instant::now());
        let (from, to) = (state.synced, state.wanted);
        let (first, last) = (from.position / log.capacity(), to.position / log.capacity());
        let open: Vec<_> = state.unsynced.iter().cloned().collect();
        drop(state);
        let mut failed = false;
        let mut sync = |number: u64| -> Result<()> {
            let open = open.iter().find(|(there, _)| *there == number);
            let done = match open {
                Some((_, file)) => files::sync(&**file),
                None => match log.file(number)? {
                    Some(file) => files::sync(&file),
                    // All have passed it.
                    None => Ok(()),
                },
            };
            failed = done.is_err();
            done.map_err(|e| Error::system("sync", Arc::clone(&self.topic.files.name), e))
        };
        // Those that are there: where a lane says that it is, and was synced up to, is not believed.
        let numbers = match last.saturating_sub(first) {
            0..8 => Ok((first..=last).collect()),
            _ => log.numbers().map(|mut numbers| {
                numbers.retain(|number| (first..=last).contains(number));
                numbers
            }),
        };
        let done = numbers.and_then(|numbers| numbers.into_iter().try_for_each(&mut sync));
        let mut state = self.lock();
        state.is_syncing = false;
        state.last = (group, started.elapsed());
        match &done {
            Ok(()) => {
                state.synced = to;
                state.unsynced.retain(|(number, _)| *number >= last);
                lane::set_synced(&self.header, log.lane(), to);
            }
            // What could not be opened is as it was.
            Err(_) if failed => roster::poison(&self.topic.files.control),
            Err(_) => {}
        }
        self.synced.notify_all();
        match done {
            Err(e) if !failed => Err(e),
            _ => Ok(state),
        }
    }

    /// Whether a sync of the topic has failed.
    pub fn check(&self) -> Result<()> {
        let files = &self.topic.files;
        if !roster::is_poisoned(&files.control) {
            return Ok(());
        }
        let why = "a sync has failed: what was sent since the last one that did not may not be on the disk";
        Err(Error::new(
            ErrorKind::Poisoned,
            "go on with",
            Arc::clone(&files.name),
            why,
        )
        .advise("look at the disk (dmesg); end all processes of the bus, and open it anew"))
    }

    // --------------------------------------------------------------------------------------------------- the thread

    fn run(&self) {
        let keeps_by_time = self.topic.files.config.keep_ns != 0;
        let every = match self.policy {
            SyncPolicy::Every(time) => Some(time),
            _ => None,
        };
        let mut next_sync = every.map(|every| Instant::now() + every);
        let mut state = self.lock();
        while !state.is_over {
            if state.made < state.wanted_file && !state.is_stuck {
                let number = state.made + 1;
                drop(state);
                let made = self.make(number);
                state = self.lock();
                let noted = self.note_made(&mut state, number, made);
                // Told to the writer, when it comes there.
                state.is_stuck = noted.is_err();
                self.changed.notify_all();
                // Where it is to be synced soon, that would write all of it.
                if noted.is_ok_and(|is_new| is_new) && self.policy == SyncPolicy::WhenAsked {
                    drop(state);
                    // Who writes there already does it as well.
                    self.log().touch(number, || {
                        let state = self.lock();
                        state.current <= number && !state.is_over
                    });
                    state = self.lock();
                }
                continue;
            }
            if std::mem::take(&mut state.has_turned) {
                // The writer may be about to fill up the file before this one.
                let last = state.current.saturating_sub(1);
                drop(state);
                self.log().lift_before(last * self.log().capacity());
                self.put_away();
                state = self.lock();
                continue;
            }
            if next_sync.is_some_and(|next| next <= Instant::now()) {
                drop(state);
                // Told by the poison.
                let _ = self.sync(self.end());
                next_sync = every.map(|every| Instant::now() + every);
                state = self.lock();
                continue;
            }
            let look = keeps_by_time.then(|| Instant::now() + LOOK);
            let until = next_sync.into_iter().chain(look).min();
            state = match until {
                None => self.wait(&self.changed, state),
                Some(until) => {
                    let time = until.saturating_duration_since(Instant::now());
                    let waited = self.changed.wait_timeout(state, time);
                    let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                    state.has_turned |= waited.timed_out() && keeps_by_time;
                    state
                }
            };
        }
        if every.is_some() {
            drop(state);
            let _ = self.sync(self.end());
        }
    }

    /// Where the lane ends now.
    fn end(&self) -> Boundary {
        let from = self.lock().synced;
        let outside = Outside {
            header: &self.header,
            ring: &self.ring,
        };
        outside.end(from)
    }

    /// Removes the files that nobody needs.
    fn put_away(&self) {
        let files = &self.topic.files;
        // What can't be removed now will be by who comes to the next file.
        let _ = reclaim::trim(files, self.log().lane());
    }
}
