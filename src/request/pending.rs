//! Requests that are under way beside each other: one inbox, and a table of who waits for what.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::hint;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use super::Answer;
use super::client::{CallOptions, judge, judge_parts};
use super::post::{self, Ask, Awaited, Body, CLOSE_LOOKS, Checks, Draft, Post};
use crate::bus::forked;
use crate::error::{Error, Result};
use crate::message::Payload;
use crate::pubsub::Frame;
use crate::reactor::{Look, Sleep};
use crate::shm::claims::Progress;
use crate::shm::fork;
use crate::shm::layout::EnvelopeHead;
use crate::shm::park::Ticket;
use crate::shm::sync::heavy_fence;
use crate::wait::{Next, WaitStrategy, Waitable, Waiter, now_ns};

/// From how many requests under way on replies are taken out of the inbox also while more are started.
const MANY: usize = 256;
/// How long to wait for room while the table is locked.
const TURN: Duration = Duration::from_millis(1);

/// What all requests share that one client has started.
#[derive(Debug)]
pub(super) struct Shared {
    table: Mutex<Table>,
    service: Arc<str>,
    wait: WaitStrategy,
    born: u64,
}

#[derive(Debug)]
struct Table {
    desk: Desk,
    /// What the tasks sleep on, all together: [`Shared`] is woken, and wakes those whose replies have come.
    sleep: Sleep,
}

#[derive(Debug)]
struct Desk {
    post: Post,
    book: Book,
    /// What the reactor's thread met, for whoever looks next.
    failed: Option<Error>,
    /// How many threads sleep on the inbox, or are about to; and whether the reactor does, for the tasks.
    threads: usize,
    has_reactor: bool,
    /// The roster of servers, and the count of what has ended without a reply, when they were last looked at for the tasks.
    seen_roster: u64,
    seen_endings: u64,
}

/// Who waits for what.
#[derive(Debug, Default)]
struct Book {
    /// Each request at its correlation modulo their number, which is a power of two.
    places: Vec<Waiting>,
    /// How many are taken.
    taken: usize,
    /// How many of them have their reply.
    arrived: usize,
    /// How many of them have a task.
    tasks: usize,
    /// When those are late, and which.
    deadlines: BTreeSet<(u64, u64)>,
    /// Tasks to be woken when the table is unlocked.
    woken: Vec<Waker>,
    /// What is to be dropped then: a task may go with it, and take another of this table's requests along.
    spent: Vec<Waker>,
}

/// A request whose reply somebody will want.
#[derive(Debug, Default)]
struct Waiting {
    /// 0: none.
    correlation: u64,
    /// The low 32 bits of its number in the lane; `None`: it is not sent yet.
    sequence: Option<u32>,
    /// Its flags, and what it carries.
    reply: Option<(u8, Vec<u8>)>,
    /// How it ended without one, if that was kept.
    end: Option<Progress>,
    task: Option<Waker>,
}

impl Waiting {
    /// How it ended without a reply, if it did.
    fn end_now(&self, post: &Post) -> Option<Progress> {
        let now = || Some(post.progress(self.sequence?)).filter(|now| now.is_end());
        self.end.or_else(now)
    }
}

impl Shared {
    pub fn new(post: Post) -> Arc<Self> {
        let (service, wait) = (Arc::clone(&post.service.files.name), post.service.wait);
        let desk = Desk {
            seen_roster: post.roster_state(),
            seen_endings: post.endings(),
            post,
            book: Book::default(),
            failed: None,
            threads: 0,
            has_reactor: false,
        };
        let sleep = Sleep::default();
        Arc::new(Self {
            table: Mutex::new(Table { desk, sleep }),
            service,
            wait,
            born: fork::generation(),
        })
    }

    /// Works on the table, then wakes the tasks whose replies have come.
    #[inline(always)]
    fn with<T>(&self, work: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let done = work(&mut table);
        let woken = std::mem::take(&mut table.desk.book.woken);
        let spent = std::mem::take(&mut table.desk.book.spent);
        drop(table);
        for waker in woken {
            // A task that panics there must not keep the others asleep; the panic was printed.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
        drop(spent);
        done
    }

    /// A forked child has no part in it, nor may it touch a lock that its parent may have held.
    #[inline]
    fn check_fork(&self) -> Result<()> {
        if self.born == fork::generation() {
            Ok(())
        } else {
            Err(forked("call", &self.service))
        }
    }

    /// Sleeps until the reply may be there, at most `time`.
    fn sleep(&self, ask: Ask, time: Duration) -> Result<()> {
        let mut tickets = Vec::new();
        let ready = self.with(|Table { desk, .. }| {
            desk.threads += 1;
            desk.post.arm(&mut tickets)?;
            heavy_fence();
            desk.is_ready_for(ask)
        });
        if let Ok(false) = ready {
            post::sleep(&tickets, time);
        }
        self.with(|Table { desk, .. }| {
            desk.threads -= 1;
            desk.quiet();
        });
        ready.map(drop)
    }

    /// Looks at the inbox for the tasks, and has the reactor do it again when something comes.
    fn look_for_tasks(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        self.with(|Table { desk, sleep }| {
            loop {
                desk.attend();
                if desk.book.tasks == 0 {
                    return sleep.give_up(desk);
                }
                // A waker that is woken here would wait for the lock that we hold.
                match sleep.look(desk, &waker) {
                    Ok(Look::Asleep) => return,
                    Ok(Look::Ready | Look::Again) => {}
                    Err(e) => desk.failed = Some(e),
                }
            }
        });
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.check_fork().is_ok() {
            self.look_for_tasks();
        }
    }
}

impl Desk {
    /// The reply to `ask`, if it is there.
    #[inline(always)]
    fn look<R: ?Sized + Payload>(&mut self, ask: Ask) -> Result<Option<Answer<R::Owned>>> {
        let Self { post, book, .. } = self;
        if let Some((flags, payload)) = book.take_reply(ask) {
            let answer = judge_parts::<R>(&post.service.files.name, flags, &payload, false)?;
            return Ok(Some(answer.map(|()| R::read(&payload))));
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let found = post.find(ask, |correlation, reply| book.file(correlation, reply))?;
        let Some(arrived) = found else {
            return Ok(None);
        };
        let Post { service, inbox, .. } = post;
        let frame = arrived.frame(inbox);
        let answer = judge::<R>(&service.files.name, &frame, false)?;
        Ok(Some(answer.map(|()| R::read(&frame))))
    }

    /// The same; an error, if it won't come.
    fn look_hard<R: ?Sized + Payload>(&mut self, ask: Ask) -> Result<Option<Answer<R::Owned>>> {
        if let Some(answer) = self.look::<R>(ask)? {
            return Ok(Some(answer));
        }
        let kept = self
            .book
            .of(ask.correlation)
            .and_then(|waiting| waiting.end);
        let progress = kept.unwrap_or_else(|| self.post.progress(ask.sequence()));
        if let Some(error) = self.post.trouble(ask, progress)? {
            // It may have come before that.
            return self.look::<R>(ask)?.ok_or(error).map(Some);
        }
        if ask.is_late() {
            return Err(self.post.timed_out());
        }
        Ok(None)
    }

    /// A request, with a place for its reply.
    #[inline(always)]
    fn draft(&mut self, options: &CallOptions) -> Draft {
        let correlation = self.book.take_place(self.post.correlation);
        if self.book.taken >= MANY && correlation.is_multiple_of(MANY as u64 / 2) {
            // Who starts many before it waits for one must not keep servers waiting for room.
            self.file_all();
        }
        self.post.draft(correlation, options)
    }

    /// Sends it, if there is room within `patience`. After an error its place is free.
    #[inline(always)]
    fn send(
        &mut self,
        draft: &Draft,
        body: &mut impl Body,
        patience: Duration,
    ) -> Result<Option<u64>> {
        let sent = self.post.send(draft, body, patience);
        match sent {
            Ok(Some(sequence)) => {
                self.book.place(draft.ask.correlation).sequence = Some(sequence as u32);
                if self.post.is_half_way(sequence) {
                    self.keep_ends();
                }
            }
            Ok(None) => {}
            Err(_) => self.book.forget(draft.ask.correlation, 0),
        }
        sent
    }

    /// Takes what is in the inbox, and wakes the tasks that it is for.
    fn file_all(&mut self) {
        let Self { post, book, .. } = self;
        let taken = post.take_all(|correlation, reply| book.file(correlation, reply));
        self.failed = self.failed.take().or(taken.err());
    }

    /// The same, and wakes those that have to look for themselves.
    fn attend(&mut self) {
        // Before their replies are filed: one that comes later counts once more.
        let (roster, endings) = (self.post.roster_state(), self.post.endings());
        self.file_all();
        let Self { post, book, .. } = self;
        let changed = std::mem::replace(&mut self.seen_roster, roster) != roster;
        let ended = std::mem::replace(&mut self.seen_endings, endings) != endings;
        if changed || self.failed.is_some() {
            book.wake(|_| true);
        } else if ended {
            book.wake(|waiting| waiting.end_now(post).is_some());
        }
        book.wake_late();
    }

    /// Keeps what became of requests that nobody has asked for since, before later ones take their claims.
    #[cold]
    fn keep_ends(&mut self) {
        let Self { post, book, .. } = self;
        for waiting in &mut book.places {
            waiting.end = waiting.end_now(post);
        }
    }

    fn is_ready_for(&mut self, ask: Ask) -> Result<bool> {
        let waiting = self.book.of(ask.correlation);
        let has_reply =
            waiting.is_some_and(|waiting| waiting.reply.is_some() || waiting.end.is_some());
        let mut awaited = Awaited {
            post: &mut self.post,
            ask,
        };
        Ok(has_reply || self.failed.is_some() || awaited.is_ready()?)
    }

    /// Nobody sleeps on the inbox any more, if so.
    fn quiet(&mut self) {
        if self.threads == 0 && !self.has_reactor {
            self.post.inbox.disarm();
        }
    }
}

impl Book {
    /// A place for a request with a higher number than this one: its number.
    #[inline(always)]
    fn take_place(&mut self, after: u64) -> u64 {
        if 2 * self.taken >= self.places.len() {
            self.grow();
        }
        let mut correlation = after + 1;
        // Who waits for long is gone around.
        while self.place(correlation).correlation != 0 {
            correlation += 1;
        }
        self.place(correlation).correlation = correlation;
        self.taken += 1;
        correlation
    }

    #[cold]
    fn grow(&mut self) {
        let len = (2 * self.places.len()).max(64);
        let before = std::mem::take(&mut self.places);
        self.places.resize_with(len, Waiting::default);
        // Numbers that differ modulo the old length do so modulo the new one.
        for waiting in before
            .into_iter()
            .filter(|waiting| waiting.correlation != 0)
        {
            let correlation = waiting.correlation;
            *self.place(correlation) = waiting;
        }
    }

    #[inline(always)]
    fn place(&mut self, correlation: u64) -> &mut Waiting {
        let mask = self.places.len() - 1;
        &mut self.places[correlation as usize & mask]
    }

    /// The request with this number, while somebody will want its reply.
    #[inline(always)]
    fn of(&mut self, correlation: u64) -> Option<&mut Waiting> {
        let at = correlation as usize & self.places.len().wrapping_sub(1);
        let waiting = self.places.get_mut(at)?;
        (waiting.correlation == correlation).then_some(waiting)
    }

    /// Keeps a reply for who waits for it.
    fn file(&mut self, correlation: u64, reply: &Frame<'_>) {
        // Who does not wait has cancelled it, or has had the answer of another server.
        let Some(waiting) = self
            .of(correlation)
            .filter(|waiting| waiting.reply.is_none())
        else {
            return;
        };
        let flags = reply.head().map_or(0, EnvelopeHead::flags);
        waiting.reply = Some((flags, reply.to_vec()));
        let task = waiting.task.take();
        self.arrived += 1;
        if let Some(task) = task {
            self.tasks -= 1;
            self.woken.push(task);
        }
    }

    #[inline(always)]
    fn take_reply(&mut self, ask: Ask) -> Option<(u8, Vec<u8>)> {
        if self.arrived == 0 {
            return None;
        }
        let reply = self.of(ask.correlation)?.reply.take()?;
        self.arrived -= 1;
        Some(reply)
    }

    /// Has `task` woken when the reply may be there. Whether no other is late before it.
    fn wait_for(&mut self, ask: Ask, task: &Waker) -> bool {
        let Some(waiting) = self.of(ask.correlation) else {
            return false;
        };
        let is_known = waiting
            .task
            .as_ref()
            .is_some_and(|known| known.will_wake(task));
        if !is_known {
            let before = waiting.task.replace(task.clone());
            self.tasks += usize::from(before.is_none());
            self.spent.extend(before);
        }
        let late = (ask.deadline_ns, ask.correlation);
        let is_new = ask.deadline_ns != 0 && self.deadlines.insert(late);
        is_new && self.deadlines.first() == Some(&late)
    }

    /// Nobody wants the reply any more, or has it.
    #[inline(always)]
    fn forget(&mut self, correlation: u64, deadline_ns: u64) {
        if let Some(waiting) = self.of(correlation) {
            let (reply, task) = (waiting.reply.take(), waiting.task.take());
            waiting.correlation = 0;
            (waiting.sequence, waiting.end) = (None, None);
            self.taken -= 1;
            self.arrived -= usize::from(reply.is_some());
            self.tasks -= usize::from(task.is_some());
            self.spent.extend(task);
        }
        if !self.deadlines.is_empty() {
            self.deadlines.remove(&(deadline_ns, correlation));
        }
    }

    /// Wakes the tasks of those that are so.
    fn wake(&mut self, which: impl Fn(&Waiting) -> bool) {
        for waiting in &mut self.places {
            if waiting.task.is_some() && which(waiting) {
                self.woken.extend(waiting.task.take());
                self.tasks -= 1;
            }
        }
    }

    fn wake_late(&mut self) {
        while let Some(&(deadline_ns, correlation)) = self.deadlines.first()
            && deadline_ns <= now_ns()
        {
            self.deadlines.pop_first();
            let waiting = self.of(correlation);
            if let Some(task) = waiting.and_then(|waiting| waiting.task.take()) {
                self.tasks -= 1;
                self.woken.push(task);
            }
        }
    }
}

/// For the tasks.
impl Waitable for Desk {
    fn is_ready(&mut self) -> Result<bool> {
        let is_late = |&(deadline_ns, _): &(u64, u64)| deadline_ns <= now_ns();
        Ok(self.post.inbox.has_news()?
            || self.post.roster_state() != self.seen_roster
            || self.post.endings() != self.seen_endings
            || self.book.deadlines.first().is_some_and(is_late))
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        self.has_reactor = true;
        self.post.arm(tickets)
    }

    fn disarm(&mut self) {
        self.has_reactor = false;
        self.quiet();
    }

    fn due(&self) -> Option<Instant> {
        let (deadline_ns, _) = self.book.deadlines.first()?;
        let left = deadline_ns.saturating_sub(now_ns());
        Instant::now().checked_add(Duration::from_nanos(left))
    }
}

/// A request that is under way. Its reply is waited for, polled for, or awaited, as a copy. Dropping it cancels the request.
#[must_use = "dropping it cancels the request"]
pub struct Pending<R: ?Sized = [u8]> {
    shared: Arc<Shared>,
    /// Its correlation is 0 when it is done.
    ask: Ask,
    kind: PhantomData<fn() -> Box<R>>,
}

impl<R: ?Sized> fmt::Debug for Pending<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("service", &self.shared.service)
            .field("correlation", &self.ask.correlation)
            .finish_non_exhaustive()
    }
}

impl<R: ?Sized + Payload> Pending<R> {
    #[inline(always)]
    pub(super) fn start(
        shared: &Arc<Shared>,
        options: &CallOptions,
        mut body: impl Body,
    ) -> Result<Self> {
        shared.check_fork()?;
        let (mut ask, sent) = shared.with(|Table { desk, .. }| {
            let draft = desk.draft(options);
            let sent = desk.send(&draft, &mut body, Duration::ZERO)?;
            Ok((draft.ask, sent.ok_or_else(|| Box::new(draft.clone()))))
        })?;
        ask.sequence = match sent {
            Ok(sequence) => sequence,
            Err(draft) => Self::send_slowly(shared, &draft, body)?,
        };
        Ok(Self {
            shared: Arc::clone(shared),
            ask,
            kind: PhantomData,
        })
    }

    #[cold]
    fn send_slowly(shared: &Arc<Shared>, draft: &Draft, mut body: impl Body) -> Result<u64> {
        loop {
            // Not for long while it is locked: others look for replies, and servers wait for room for them.
            let sent = shared.with(|Table { desk, .. }| {
                desk.file_all();
                desk.send(draft, &mut body, TURN)
            })?;
            if let Some(sequence) = sent {
                return Ok(sequence);
            }
        }
    }

    /// Waits for the reply.
    ///
    /// # Errors
    ///
    /// As for [`Client::call`](super::Client::call).
    #[inline(always)]
    pub fn wait(mut self) -> Result<Answer<R::Owned>> {
        if let Some(answer) = self.look(false)? {
            return Ok(answer);
        }
        loop {
            if let Some(answer) = self.settle(None)? {
                return Ok(answer);
            }
        }
    }

    /// The reply, if it comes within `timeout`; else it is still pending.
    ///
    /// # Errors
    ///
    /// As for [`Client::call`](super::Client::call).
    ///
    /// # Panics
    ///
    /// If it was had already.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<Answer<R::Owned>>> {
        self.settle(Some(timeout))
    }

    /// The reply, if it is there.
    ///
    /// # Errors
    ///
    /// As for [`Client::call`](super::Client::call).
    ///
    /// # Panics
    ///
    /// If it was had already.
    pub fn try_wait(&mut self) -> Result<Option<Answer<R::Owned>>> {
        self.look(true)
    }

    /// Looks for the reply; `hard`: and whether it will come at all. After an answer, and after an error, it is done.
    #[inline(always)]
    fn look(&mut self, hard: bool) -> Result<Option<Answer<R::Owned>>> {
        self.look_or(hard, |_| {})
    }

    /// The same; and what else to do with the table, before it is unlocked, if there is nothing.
    #[inline(always)]
    fn look_or(
        &mut self,
        hard: bool,
        or: impl FnOnce(&mut Desk),
    ) -> Result<Option<Answer<R::Owned>>> {
        assert!(
            self.ask.correlation != 0,
            "the answer to a request can be had once"
        );
        self.shared.check_fork()?;
        let ask = self.ask;
        let looked = self.shared.with(|table| {
            let looked = match hard {
                true => table.desk.look_hard::<R>(ask),
                false => table.desk.look::<R>(ask),
            };
            match looked {
                Ok(None) => or(&mut table.desk),
                _ => table.forget(ask, looked.is_err()),
            }
            looked
        });
        if !matches!(looked, Ok(None)) {
            self.ask.correlation = 0;
        }
        looked
    }

    /// Waits for the reply, at most `patience`.
    #[inline(never)]
    fn settle(&mut self, patience: Option<Duration>) -> Result<Option<Answer<R::Owned>>> {
        let mut waiter = None;
        let mut checks = Checks::default();
        loop {
            for _ in 0..CLOSE_LOOKS {
                if let Some(answer) = self.look(false)? {
                    return Ok(Some(answer));
                }
                hint::spin_loop();
            }
            if self.shared.with(|table| checks.are_due(&table.desk.post))
                && let Some(answer) = self.look(true)?
            {
                return Ok(Some(answer));
            }
            let left = self.ask.time_left();
            let waiter = waiter.get_or_insert_with(|| {
                let patience = patience.into_iter().chain(left).min();
                Waiter::new(self.shared.wait, patience)
            });
            match waiter.next(1) {
                Next::Look => {}
                Next::Sleep(time) => {
                    self.shared.sleep(self.ask, time)?;
                    checks.force();
                }
                Next::TimedOut => return self.look(true),
            }
        }
    }
}

impl Table {
    /// Nobody wants the reply any more, or has it.
    #[inline(always)]
    fn forget(&mut self, ask: Ask, cancel: bool) {
        let Self { desk, sleep } = self;
        desk.book.forget(ask.correlation, ask.deadline_ns);
        if cancel {
            desk.post.cancel(ask);
        }
        if desk.book.tasks == 0 && desk.has_reactor {
            sleep.give_up(desk);
        }
    }
}

impl<R: ?Sized + Payload> Future for Pending<R> {
    type Output = Result<Answer<R::Owned>>;

    /// # Panics
    ///
    /// If it was ready already.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let pending = self.get_mut();
        let (ask, mut is_new) = (pending.ask, false);
        let looked = pending.look_or(true, |desk| {
            let is_first = desk.book.wait_for(ask, context.waker());
            is_new = is_first || !desk.has_reactor;
        });
        if let Some(done) = looked.transpose() {
            return Poll::Ready(done);
        }
        if is_new {
            pending.shared.look_for_tasks();
        }
        Poll::Pending
    }
}

impl<R: ?Sized> Drop for Pending<R> {
    fn drop(&mut self) {
        if self.ask.correlation != 0 && self.shared.check_fork().is_ok() {
            self.shared.with(|table| table.forget(self.ask, true));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Whoever waits, and however long, is found, and nobody else.
        #[test]
        fn a_book_finds_who_waits(turns: Vec<(bool, u8)>, first in 0..1_000_000_u64) {
            let (mut book, mut last) = (Book::default(), first);
            let mut waiting = Vec::new();
            for (takes, which) in turns.into_iter().cycle().take(1000) {
                if takes || waiting.is_empty() {
                    let taken = book.take_place(last);
                    assert!(taken > last);
                    last = taken;
                    waiting.push(taken);
                } else {
                    let gone = waiting.swap_remove(usize::from(which) % waiting.len());
                    book.forget(gone, 0);
                    assert!(book.of(gone).is_none());
                }
                assert_eq!(book.taken, waiting.len());
            }
            assert!(waiting.iter().all(|&correlation| book.of(correlation).is_some()));
            assert!(book.of(last + 1).is_none());
        }
    }
}
