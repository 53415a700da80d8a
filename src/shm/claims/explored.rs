//! Every state of a group's claims on one lane that some consumers, the sender, and who sweeps up behind the dead can reach
//! together, when each of them may die at any step, sweepers too.
//!
//! A step is one change of a shared word, or the loads that it goes by, and is made by the code that it stands for: the
//! words of a state are put into memory, and [`Claims`] and [`Walk`] work on them. What is written down here is where the verbs
//! of [`Claims`] may be interrupted; each time that one begins, the verb itself is called, too, and must come to what the
//! uninterrupted steps come to. Orderings are loom's (`tests/model/queue.rs`): here every load sees the last store.
//!
//! | invariant | |
//! |---|---|
//! | *held once* | of two that live, and without a lease, one at most has a message ([`Walk::take`]) |
//! | *done is done* | nobody is given a message that is done with ([`Claims::end`], [`Claims::withdraw`]) |
//! | *at most once* | nobody is given a message that another began once ([`Claims::begin_once`]) |
//! | *cancelled* | nobody is given a message after its sender has cancelled it ([`Claims::cancel`]) |
//! | *put off is there once* | nobody is given a message of which a copy was made ([`Claims::begin_move`]) |
//! | *nothing is passed* | the head passes no message that is not done with ([`Claims::advance`]) |
//! | *nothing is stuck* | when nobody is in the midst of anything and the dead are put away, the head is at the first message that is not done with, and every consumer finds the first that nobody has ([`Claims::put_away`], [`Claims::offer`]) |
//!
//! The numbers of consumers are used again as soon as the file of whose it was is gone, as they are when they are cut.
//! `BUSLANE_EXPLORE=deep` looks further.

use std::cell::RefCell;
use std::hash::Hash;

use stateright::{Model, Property};

use super::super::explored::explore;
use super::super::layout::{NOBODY, PAGE, SLOT, Word, claims_of};
use super::super::segment::Mapping;
use super::*;

/// Bytes in the ring: of four messages, three are kept.
const CAPACITY: usize = 64;
const PLACES: usize = claims_of(CAPACITY as u64);
/// Messages that were done with before it begins: a lap of them.
const FIRST: u32 = PLACES as u32;

/// How often something was given back: what a walk has seen is that, or not.
const AGAIN: u64 = 1;

/// What may happen, and how often.
#[derive(Clone, Copy, Debug, Default)]
struct Bounds {
    consumers: usize,
    messages: usize,
    /// Deliveries of a message.
    attempts: u64,
    /// Consumers and sweepers that die.
    deaths: u8,
    /// Consumers that come, with the number of one that has gone.
    births: u8,
    /// Each may take away what another has.
    leases: bool,
    /// Each may begin a message that only it is to get.
    once: bool,
    /// The sender cancels the first message, and may die over it.
    cancels: bool,
    /// Each may put a message off.
    moves: bool,
}

/// What comes after a verb.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Then {
    /// Nothing.
    Rest,
    /// The message that was put off is handed out.
    HandOut(usize),
    /// The next place of the table.
    Sweep(usize),
    /// [`Claims::repair`].
    Repair,
    /// The consumer's file is removed.
    Unlink,
    /// What is left of what the dead were moving.
    Orphans(Vec<u64>),
    /// The sender looks again at what it cancels.
    Cancel,
}

/// What a process does next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Next {
    /// It is at nothing.
    Rest,
    /// [`Walk::take`] of what it found, with this claim.
    Take { old: u64, position: u64 },
    /// It was given a message, and may do with it what it likes.
    Has(Claimed),
    /// The first half of [`Claims::end`]; whether the head is to be moved.
    End(Claimed, Ended, bool, Then),
    /// The second: it was cancelled.
    EndCancelled(Claimed, bool, Then),
    /// The first half of [`Claims::free`].
    Free(Claimed, Then),
    /// [`Claims::offer`].
    Offer(Then),
    /// [`Claims::advance`]: looks how far the head may go.
    Scan(Then),
    /// Moves it.
    Move(u64, u64, Then),
    /// [`Claims::begin_once`].
    BeginOnce(Claimed),
    /// [`Claims::begin_move`].
    BeginMove(Claimed),
    /// Copies it elsewhere, or can't.
    Copy(Claimed),
    /// [`Claims::give_up_move`].
    GiveUpMove(Claimed),
    /// It has the copy.
    HasCopy(usize),
    /// [`Claims::put_away`]: looks at the next place.
    Sweep(usize),
    /// Removes the consumer's file.
    Unlink,
    /// `Inbox::orphans`: lists who lives, after these claims were seen.
    ListLiving(Vec<u64>),
    /// `Desk::end_moves`: looks for the copy of the first.
    LookForCopy(Vec<u64>),
    /// [`Claims::withdraw`] of the first message, from this claim.
    Withdraw(u64),
    /// [`Claims::cancel`]: looks at whose it is.
    LookAtHeld,
    /// Cancels it, from this claim.
    Cancel(u64),
}

/// A claim's word.
type Claimed = u64;
/// A [`Fate`].
type Ended = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Lives,
    /// Dead, with its file.
    Dead,
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Consumer {
    life: Life,
    next: Next,
    /// Its walk; whether something was given back that it has not seen.
    position: u64,
    is_behind: bool,
    /// Who sweeps up behind it, if somebody does.
    sweeper: Option<Next>,
    has_lost: bool,
    /// It has not looked yet for what the dead were moving.
    is_new: bool,
}

impl Consumer {
    fn is_done(&mut self, life: Life) {
        *self = Self {
            life,
            next: Next::Rest,
            position: 0,
            is_behind: false,
            sweeper: None,
            has_lost: false,
            is_new: false,
        };
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Copied {
    No,
    /// In the retry topic, from the claim that it says.
    Waits(u64),
    Held(u64),
    Done,
}

/// What is known of a message, whatever the words say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Known {
    done: bool,
    once: bool,
    cancelled: bool,
    copied: Copied,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    table: [u64; PLACES],
    head: u64,
    /// The number of the next message.
    sent: u32,
    consumers: Vec<Consumer>,
    sender: Next,
    cancels: u8,
    /// The sender is dead, and nobody has looked after its lane yet.
    is_left: bool,
    is_closed: bool,
    deaths: u8,
    births: u8,
    known: Vec<Known>,
    /// The invariant that does not hold.
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Push,
    /// The sender begins to cancel, goes on, or dies.
    Cancel,
    Send,
    LeaveLane,
    /// Its lane is looked after: closed, or gone on with.
    TidyLane,
    AdoptLane,
    /// A consumer looks for a message, or goes on.
    Find(usize),
    Go(usize),
    Ack(usize),
    GiveBack(usize),
    Once(usize),
    PutOff(usize),
    /// It can't copy what it is moving.
    Fail(usize),
    TakeCopy(usize, usize),
    TakeAway(usize, usize),
    EndMoves(usize),
    Leave(usize),
    Die(usize),
    Sweep(usize),
    SweeperDies(usize),
    Birth(usize),
}

thread_local! {
    static MEMORY: RefCell<Option<(Claims, View<Control>)>> = const { RefCell::new(None) };
}

/// Runs `work` on the claims and the control page in this thread's memory.
fn with_memory<T>(work: impl FnOnce(&Claims, &Control) -> T) -> T {
    MEMORY.with_borrow_mut(|memory| {
        let (claims, control) = memory.get_or_insert_with(|| {
            let private = |len| Mapping::private(len).unwrap();
            let map = private(5 * PAGE);
            let claims = Claims {
                lane: map.view(0),
                ring: Ring::new(&private(CAPACITY), CAPACITY),
                slots: map.views(PAGE, 1),
                again: map.view(2 * PAGE),
                blocked: map.view(2 * PAGE + 128),
                table: map.views(3 * PAGE, PLACES),
                fences: false,
            };
            claims.lane.want.store(NOBODY, Ordering::Relaxed);
            (claims, map.view(4 * PAGE))
        });
        work(claims, control)
    })
}

fn number_of(consumer: usize) -> u64 {
    consumer as u64 + 1
}

fn position_of(sequence: u32) -> u64 {
    u64::from(sequence) * SLOT
}

impl State {
    fn new(bounds: &Bounds) -> Self {
        let head = position_of(FIRST);
        let consumer = Consumer {
            life: Life::Lives,
            next: Next::Rest,
            position: head,
            is_behind: false,
            sweeper: None,
            has_lost: false,
            is_new: false,
        };
        let known = Known {
            done: false,
            once: false,
            cancelled: false,
            copied: Copied::No,
        };
        let earlier = |n| Claim::new(n as u32, 9, 1, Fate::Acked).0;
        Self {
            table: std::array::from_fn(earlier),
            head,
            sent: FIRST,
            consumers: vec![consumer; bounds.consumers],
            sender: Next::Rest,
            cancels: 0,
            is_left: false,
            is_closed: false,
            deaths: 0,
            births: 0,
            known: vec![known; bounds.messages],
            broken: None,
        }
    }

    /// Puts the words into memory, works on them there, and takes them back.
    fn work<T>(&mut self, work: impl FnOnce(&Claims, &Control) -> T) -> T {
        with_memory(|claims, control| {
            for (word, value) in claims.table.iter().zip(self.table) {
                word.store(value, Ordering::Relaxed);
            }
            claims.slot().position.store(self.head, Ordering::Relaxed);
            claims.again.store(AGAIN, Ordering::Relaxed);
            let kept = self.sent - (PLACES as u32 - 1)..self.sent;
            for sequence in kept {
                let word = Word::message(8, sequence.into());
                let head = claims.ring.head(position_of(sequence));
                head.store(word.0, Ordering::Relaxed);
            }
            let tail = claims.ring.head(position_of(self.sent));
            tail.store(0, Ordering::Relaxed);
            let done = work(claims, control);
            for (value, word) in self.table.iter_mut().zip(claims.table.iter()) {
                *value = word.load(Ordering::Relaxed);
            }
            self.head = claims.slot().position.load(Ordering::Relaxed);
            let is_again = claims.again.load(Ordering::Relaxed) != AGAIN;
            for consumer in &mut self.consumers {
                consumer.is_behind |= is_again && consumer.life == Life::Lives;
            }
            done
        })
    }

    fn walk<T>(&mut self, who: usize, work: impl FnOnce(&mut Walk) -> T) -> T {
        let Consumer {
            position,
            is_behind,
            ..
        } = self.consumers[who];
        let again = AGAIN - u64::from(is_behind);
        let (done, position, is_behind) = self.work(|claims, _| {
            let mut walk = Walk {
                claims: claims.clone(),
                position,
                again,
            };
            (work(&mut walk), walk.position, walk.again != AGAIN)
        });
        let consumer = &mut self.consumers[who];
        (consumer.position, consumer.is_behind) = (position, is_behind);
        done
    }

    fn known(&mut self, sequence: u32) -> &mut Known {
        &mut self.known[(sequence - FIRST) as usize]
    }

    fn break_if(&mut self, broken: bool, what: &'static str) {
        if broken && self.broken.is_none() {
            self.broken = Some(what);
        }
    }

    /// A consumer was given a message.
    fn give(&mut self, bounds: &Bounds, who: usize, claim: Claim) {
        let sequence = claim.sequence();
        let Known {
            done,
            once,
            cancelled,
            ref copied,
        } = *self.known(sequence);
        let has_copy = *copied != Copied::No;
        self.break_if(done && !has_copy, "done is done");
        self.break_if(once, "at most once");
        self.break_if(cancelled, "cancelled");
        self.break_if(has_copy, "put off is there once");
        let others = self.consumers.iter().enumerate();
        let mut held = others.filter_map(|(other, consumer)| match consumer.next {
            Next::Has(claim) if other != who && consumer.life == Life::Lives => Some(Claim(claim)),
            _ => None,
        });
        let is_held = held.any(|held| held.sequence() == sequence);
        self.break_if(is_held && !bounds.leases, "held once");
    }

    /// What is known of the messages by their words.
    fn note(&mut self) {
        for sequence in FIRST..self.sent {
            let claim = Claim(self.table[sequence as usize % PLACES]);
            let known = &mut self.known[(sequence - FIRST) as usize];
            known.done |= claim.is_done() && claim.sequence() == sequence;
            let is_passed = position_of(sequence) < self.head && !known.done;
            self.break_if(is_passed, "nothing is passed");
        }
    }

    /// Whether nobody is at anything that ends by itself: who lives rests, or has a message.
    fn is_settled(&self) -> bool {
        let rests = |consumer: &Consumer| match consumer.life {
            Life::Lives => match consumer.next {
                Next::Rest => !consumer.has_lost,
                Next::Has(_) | Next::HasCopy(_) => true,
                _ => false,
            },
            Life::Dead => false,
            Life::Gone => true,
        };
        self.consumers.iter().all(rests) && self.sender == Next::Rest && !self.is_left
    }

    /// Whether somebody lives who has this message.
    fn is_had(&self, sequence: u32) -> bool {
        self.consumers.iter().any(|consumer| {
            let held = match consumer.next {
                Next::Has(claim) => Some(Claim(claim).sequence()),
                _ => None,
            };
            let word = Claim(self.table[sequence as usize % PLACES]);
            held == Some(sequence) && !word.is(Fate::Free)
        })
    }

    fn is_stuck(&self) -> bool {
        if !self.is_settled() {
            return false;
        }
        let is_open = |sequence: &u32| !self.known[(sequence - FIRST) as usize].done;
        let mut open = (FIRST..self.sent).filter(is_open);
        let first = open.clone().next();
        if self.head != position_of(first.unwrap_or(self.sent)) {
            return true;
        }
        let free = open.find(|&sequence| !self.is_had(sequence));
        let rests = |who: &usize| {
            let consumer = &self.consumers[*who];
            consumer.life == Life::Lives && consumer.next == Next::Rest
        };
        let mut copy = self.clone();
        (0..self.consumers.len()).filter(rests).any(|who| {
            let found = copy.walk(who, |walk| walk.find().unwrap());
            found.map(|offer| offer.found.word.sequence()) != free
        })
    }
}

fn fate_of(number: Ended) -> Fate {
    match number {
        3 => Fate::Acked,
        7 => Fate::Died,
        _ => unreachable!("no end"),
    }
}

impl Bounds {
    /// Begins a verb: what its steps come to, uninterrupted, is what the verb itself does.
    fn begin(
        &self,
        state: &State,
        who: Option<usize>,
        first: Next,
        verb: impl FnOnce(&Claims, &Control),
    ) -> Next {
        let (mut by_steps, mut by_verb) = (state.clone(), state.clone());
        by_verb.work(verb);
        let mut next = first.clone();
        while !matches!(
            next,
            Next::Rest | Next::Has(_) | Next::Copy(_) | Next::HasCopy(_) | Next::Unlink
        ) {
            next = self.step(&mut by_steps, who, next);
        }
        let words = |state: &State| {
            let behind: Vec<bool> = state
                .consumers
                .iter()
                .map(|consumer| consumer.is_behind)
                .collect();
            (state.table, state.head, behind)
        };
        assert_eq!(words(&by_steps), words(&by_verb), "{first:?} of {state:?}");
        first
    }

    /// Carries out what a process does next; `who` is the consumer, or the one that is swept up behind.
    fn step(&self, state: &mut State, who: Option<usize>, next: Next) -> Next {
        let owner = who.map_or(0, number_of);
        let next = match next {
            Next::Rest | Next::Has(_) | Next::HasCopy(_) => unreachable!("nothing is next"),
            Next::Take { old, position } => {
                let who = who.expect("a consumer");
                let offer = |claims: &Claims| {
                    let found = frame_at(&claims.ring, position).unwrap().unwrap();
                    let attempts = claims
                        .attempts_of(Claim(old), found.word.sequence())
                        .unwrap();
                    let old = Claim(old);
                    Offer {
                        found,
                        old,
                        attempts,
                    }
                };
                let claim = state.walk(who, |walk| {
                    let offer = offer(&walk.claims);
                    walk.take(offer, owner)
                });
                match claim {
                    Some(claim) => {
                        state.give(self, who, claim);
                        Next::Has(claim.0)
                    }
                    None => Next::Rest,
                }
            }
            Next::End(claim, fate, advances, then) => {
                let ended = Claim(claim).with(fate_of(fate));
                match self.swap(state, claim, ended) {
                    true => self.ended(advances, then),
                    false => Next::EndCancelled(claim, advances, then),
                }
            }
            Next::EndCancelled(claim, advances, then) => {
                let (cancelled, acked) = (
                    Claim(claim).with(Fate::Cancelled),
                    Claim(claim).with(Fate::Acked),
                );
                match self.swap(state, cancelled.0, acked) {
                    true => self.ended(advances, then),
                    // `Claims::end_move`: somebody else has said so.
                    false
                        if Claim(claim).is(Fate::Moving)
                            && state.work(|claims, _| claims.holds(acked)) =>
                    {
                        Next::Scan(then)
                    }
                    false => self.follow(then),
                }
            }
            Next::Free(claim, then) => {
                let freed = Claim(claim).with(Fate::Free);
                match (self.swap(state, claim, freed), then) {
                    (true, Then::Sweep(place)) => Next::Sweep(place),
                    (true, then) => Next::Offer(then),
                    (false, then) => Next::End(claim, Fate::Acked as u64, true, then),
                }
            }
            Next::Offer(then) => {
                state.work(|claims, control| claims.offer(control));
                self.follow(then)
            }
            Next::Scan(then) => {
                let (head, behind) =
                    state.work(|claims, _| (claims.head(), claims.acked_from(claims.head())));
                match head == behind {
                    true => self.follow(then),
                    false => Next::Move(head, behind, then),
                }
            }
            Next::Move(from, to, then) => {
                match state.work(|claims, _| claims.move_head(from, to)) {
                    true => self.follow(then),
                    false => Next::Scan(then),
                }
            }
            Next::BeginOnce(claim) => match state.work(|claims, _| claims.begin_once(Claim(claim)))
            {
                Some(once) => {
                    state.known(once.sequence()).once = true;
                    Next::Has(once.0)
                }
                None => Next::End(claim, Fate::Acked as u64, true, Then::Rest),
            },
            Next::BeginMove(claim) => match state.work(|claims, _| claims.begin_move(Claim(claim)))
            {
                Some(moving) => Next::Copy(moving.0),
                // It is dropped: given back, if it can be.
                None => Next::Free(claim, Then::Rest),
            },
            Next::Copy(moving) => {
                state.known(Claim(moving).sequence()).copied = Copied::Waits(moving);
                Next::End(moving, Fate::Acked as u64, true, Then::Rest)
            }
            Next::GiveUpMove(moving) => {
                state.work(|claims, _| claims.give_up_move(Claim(moving)));
                Next::Free(Claim(moving).with(Fate::Claimed).0, Then::Rest)
            }
            Next::Sweep(place) => {
                let is_its =
                    |claim: &Claim| claim.owner() == owner && Claims::of_the_dead(*claim).is_some();
                let mut places = (place..PLACES).map(|place| (place, Claim(state.table[place])));
                match places.find(|(_, claim)| is_its(claim)) {
                    Some((place, held)) => match Claims::of_the_dead(held) {
                        Some(Fate::Free) => Next::Free(held.0, Then::Sweep(place + 1)),
                        Some(fate) => Next::End(held.0, fate as u64, false, Then::Sweep(place + 1)),
                        None => unreachable!("looked at"),
                    },
                    None => Next::Offer(Then::Repair),
                }
            }
            Next::Unlink => {
                let who = who.expect("a consumer");
                state.consumers[who].is_done(Life::Gone);
                for other in &mut state.consumers {
                    other.has_lost |= self.moves && other.life == Life::Lives;
                }
                Next::Rest
            }
            Next::ListLiving(mut moving) => {
                let is_new =
                    who.is_some_and(|who| std::mem::take(&mut state.consumers[who].is_new));
                let numbers = (0..state.consumers.len()).filter(|&other| {
                    let is_own = Some(other) == who;
                    state.consumers[other].life != Life::Gone && !(is_own && is_new)
                });
                let living: Vec<u64> = numbers.map(number_of).collect();
                moving.retain(|&claim| is_orphan(Claim(claim), &living));
                self.follow(Then::Orphans(moving))
            }
            Next::LookForCopy(mut orphans) => {
                let moving = orphans.remove(0);
                let copied = &state.known(Claim(moving).sequence()).copied;
                let has_copy = *copied == Copied::Waits(moving) || *copied == Copied::Held(moving);
                match has_copy {
                    true => Next::End(moving, Fate::Acked as u64, true, Then::Orphans(orphans)),
                    false => Next::Free(moving, Then::Orphans(orphans)),
                }
            }
            Next::Withdraw(seen) => {
                let seen = Claim(seen);
                let attempts = state.work(|claims, _| claims.attempts_of(seen, FIRST));
                let Some(attempts) = attempts else {
                    return Next::LookAtHeld;
                };
                let acked = Claim::new(FIRST, 0, attempts, Fate::Acked);
                match self.swap(state, seen.0, acked) {
                    true => Next::Scan(Then::Rest),
                    false => Next::LookAtHeld,
                }
            }
            Next::LookAtHeld => {
                let claim = state.work(|claims, _| claims.claim(FIRST));
                let is_held = claim.is(Fate::Claimed) || claim.is(Fate::Once);
                if claim.sequence() == FIRST && is_held {
                    Next::Cancel(claim.0)
                } else if state
                    .work(|claims, _| claims.attempts_of(claim, FIRST))
                    .is_none()
                {
                    Next::Rest
                } else {
                    self.follow(Then::Cancel)
                }
            }
            Next::Cancel(claim) => {
                match self.swap(state, claim, Claim(claim).with(Fate::Cancelled)) {
                    true => Next::Rest,
                    false => self.follow(Then::Cancel),
                }
            }
        };
        state.note();
        // A look at the claim that is to be withdrawn is no change: it is part of what comes after.
        match next {
            Next::Withdraw(_) => Next::Withdraw(state.table[FIRST as usize % PLACES]),
            next => next,
        }
    }

    fn swap(&self, state: &mut State, old: u64, new: Claim) -> bool {
        state.work(|claims, _| claims.swap(Claim(old), new.sequence(), new))
    }

    fn ended(&self, advances: bool, then: Then) -> Next {
        match advances {
            true => Next::Scan(then),
            false => self.follow(then),
        }
    }

    fn follow(&self, then: Then) -> Next {
        match then {
            Then::Rest => Next::Rest,
            Then::HandOut(message) => Next::HasCopy(message),
            Then::Sweep(place) => Next::Sweep(place),
            Then::Repair => Next::Scan(Then::Unlink),
            Then::Unlink => Next::Unlink,
            Then::Orphans(orphans) if orphans.is_empty() => Next::Rest,
            Then::Orphans(orphans) => Next::LookForCopy(orphans),
            Then::Cancel => Next::Withdraw(0),
        }
    }
}

impl Bounds {
    /// What a consumer that lives may do.
    fn actions_of(&self, state: &State, who: usize, actions: &mut Vec<Action>) {
        match &state.consumers[who].next {
            Next::Rest if state.consumers[who].is_new => actions.push(Action::EndMoves(who)),
            Next::Rest => {
                actions.extend([Action::Find(who), Action::Leave(who)]);
                if state.consumers[who].has_lost {
                    actions.push(Action::EndMoves(who));
                }
                for (message, known) in state.known.iter().enumerate() {
                    if matches!(known.copied, Copied::Waits(_)) {
                        actions.push(Action::TakeCopy(who, message));
                    }
                }
                let is_held = |claim: Claim| claim.is(Fate::Claimed) || claim.is(Fate::Cancelled);
                let held = (0..PLACES).filter(|&place| is_held(Claim(state.table[place])));
                actions.extend(
                    held.filter(|_| self.leases)
                        .map(|place| Action::TakeAway(who, place)),
                );
            }
            Next::Has(claim) => {
                actions.push(Action::Ack(who));
                if Claim(*claim).is(Fate::Claimed) {
                    actions.push(Action::GiveBack(who));
                    actions.extend(self.once.then_some(Action::Once(who)));
                    actions.extend(self.moves.then_some(Action::PutOff(who)));
                }
            }
            Next::HasCopy(_) => actions.push(Action::Ack(who)),
            Next::Copy(_) => actions.extend([Action::Go(who), Action::Fail(who)]),
            _ => actions.push(Action::Go(who)),
        }
    }

    /// Carries out what a process has begun.
    fn go(&self, state: &mut State, who: usize) {
        let next = std::mem::replace(&mut state.consumers[who].next, Next::Rest);
        let next = self.step(state, Some(who), next);
        state.consumers[who].next = next;
    }

    fn begin_at(
        &self,
        state: &mut State,
        who: usize,
        first: Next,
        verb: impl FnOnce(&Claims, &Control),
    ) {
        state.consumers[who].next = self.begin(state, Some(who), first, verb);
    }

    fn sweep(&self, state: &State, who: usize) -> Next {
        self.begin(state, Some(who), Next::Sweep(0), |claims, control| {
            claims.put_away(number_of(who), control);
        })
    }

    fn has_room(&self, state: &State) -> bool {
        position_of(state.sent) + 2 * SLOT <= state.head + CAPACITY as u64
    }
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let may_die = state.deaths < self.deaths;
        if state.sender == Next::Rest && !state.is_left && !state.is_closed {
            let is_one_more = state.sent < FIRST + self.messages as u32;
            actions.extend((is_one_more && self.has_room(state)).then_some(Action::Push));
            let may_cancel = self.cancels && state.cancels == 0 && state.sent > FIRST;
            actions.extend(may_cancel.then_some(Action::Cancel));
        }
        if state.sender != Next::Rest {
            actions.push(Action::Send);
            actions.extend(may_die.then_some(Action::LeaveLane));
        }
        if state.is_left {
            actions.extend([Action::TidyLane, Action::AdoptLane]);
        }
        for (who, consumer) in state.consumers.iter().enumerate() {
            match consumer.life {
                Life::Lives => {
                    self.actions_of(state, who, actions);
                    actions.extend(may_die.then_some(Action::Die(who)));
                }
                Life::Dead => {
                    actions.push(Action::Sweep(who));
                    let dies = consumer.sweeper.is_some() && may_die;
                    actions.extend(dies.then_some(Action::SweeperDies(who)));
                }
                Life::Gone => {
                    actions.extend((state.births < self.births).then_some(Action::Birth(who)))
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let has = |who: usize| match last.consumers[who].next {
            Next::Has(claim) => Claim(claim),
            _ => unreachable!("it has a message"),
        };
        match action {
            Action::Push => state.sent += 1,
            Action::Cancel => {
                state.cancels = 1;
                let first = Next::Withdraw(state.table[FIRST as usize % PLACES]);
                state.sender = self.begin(&state, None, first, |claims, control| {
                    claims.cancel(FIRST, control)
                });
            }
            Action::Send => {
                let next = std::mem::replace(&mut state.sender, Next::Rest);
                state.sender = self.step(&mut state, None, next);
                state.known(FIRST).cancelled = state.sender == Next::Rest;
            }
            Action::LeaveLane => {
                state.sender = Next::Rest;
                state.deaths += 1;
                state.is_left = true;
            }
            Action::TidyLane | Action::AdoptLane => {
                state.work(|claims, control| claims.repair(control));
                state.is_left = false;
                state.is_closed = action == Action::TidyLane;
            }
            Action::Find(who) => {
                let found = state.walk(who, |walk| walk.find().unwrap());
                if let Some(offer) = found.filter(|offer| offer.attempts() < self.attempts) {
                    let (old, position) = (offer.old.0, offer.found.position);
                    state.consumers[who].next = Next::Take { old, position };
                }
            }
            Action::Go(who) => self.go(&mut state, who),
            Action::Ack(who) => {
                if let Next::HasCopy(message) = last.consumers[who].next {
                    state.known[message].copied = Copied::Done;
                    state.consumers[who].next = Next::Rest;
                } else {
                    let claim = has(who);
                    let first = Next::End(claim.0, Fate::Acked as u64, true, Then::Rest);
                    self.begin_at(&mut state, who, first, |claims, _| {
                        if claims.ack(claim) {
                            claims.advance();
                        }
                    });
                }
            }
            Action::GiveBack(who) => {
                let claim = has(who);
                self.begin_at(
                    &mut state,
                    who,
                    Next::Free(claim.0, Then::Rest),
                    |claims, control| {
                        if claims.free(claim) {
                            claims.offer(control);
                        }
                    },
                );
            }
            Action::Once(who) => state.consumers[who].next = Next::BeginOnce(has(who).0),
            Action::PutOff(who) => state.consumers[who].next = Next::BeginMove(has(who).0),
            Action::Fail(who) => match state.consumers[who].next {
                Next::Copy(moving) => state.consumers[who].next = Next::GiveUpMove(moving),
                _ => unreachable!("it copies"),
            },
            Action::TakeCopy(who, message) => {
                let Copied::Waits(moving) = state.known[message].copied else {
                    return None;
                };
                state.known[message].copied = Copied::Held(moving);
                let first = Next::End(moving, Fate::Acked as u64, true, Then::HandOut(message));
                self.begin_at(&mut state, who, first, |claims, _| {
                    if claims.end_move(Claim(moving)) {
                        claims.advance();
                    }
                });
            }
            Action::TakeAway(who, place) => {
                let claim = Claim(state.table[place]);
                let first = match claim.is(Fate::Cancelled) {
                    true => Next::End(claim.0, Fate::Acked as u64, true, Then::Rest),
                    false => Next::Free(claim.0, Then::Rest),
                };
                self.begin_at(&mut state, who, first, |claims, control| {
                    if claims.take_away(claim) {
                        claims.offer(control);
                    }
                });
            }
            Action::EndMoves(who) => {
                let is_moving = |claim: &u64| Claim(*claim).is(Fate::Moving);
                let moving = state.table.into_iter().filter(is_moving).collect();
                state.consumers[who].has_lost = false;
                state.consumers[who].next = Next::ListLiving(moving);
            }
            Action::Leave(who) => state.consumers[who].next = self.sweep(&state, who),
            Action::Die(who) => {
                state.deaths += 1;
                if let Next::HasCopy(message) | Next::End(.., Then::HandOut(message)) =
                    last.consumers[who].next
                    && let Copied::Held(moving) = state.known[message].copied
                {
                    state.known[message].copied = Copied::Waits(moving);
                }
                state.consumers[who].is_done(Life::Dead);
            }
            Action::Sweep(who) => {
                let next = match state.consumers[who].sweeper.take() {
                    None => self.sweep(&state, who),
                    Some(next) => self.step(&mut state, Some(who), next),
                };
                if next != Next::Rest {
                    state.consumers[who].sweeper = Some(next);
                }
            }
            Action::SweeperDies(who) => {
                state.deaths += 1;
                state.consumers[who].sweeper = None;
            }
            Action::Birth(who) => {
                state.births += 1;
                let walk = state.work(|claims, control| {
                    claims.repair(control);
                    Walk::new(claims.clone())
                });
                state.consumers[who] = Consumer {
                    life: Life::Lives,
                    next: Next::Rest,
                    position: walk.position,
                    is_behind: false,
                    sweeper: None,
                    has_lost: self.moves,
                    is_new: self.moves,
                };
            }
        }
        state.note();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            // Which of them it is, the state says.
            Property::always("nothing is broken", |_, state: &State| {
                state.broken.is_none()
            }),
            Property::always("nothing is stuck", |_, state: &State| !state.is_stuck()),
            Property::sometimes("all is done", |model, state: &State| {
                state.sent == FIRST + model.messages as u32
                    && state.known.iter().all(|known| known.done)
            }),
        ]
    }
}

const SOME: Bounds = Bounds {
    consumers: 2,
    messages: 2,
    attempts: 2,
    deaths: 1,
    births: 0,
    leases: false,
    once: false,
    cancels: false,
    moves: false,
};

#[test]
fn consumers_die() {
    let deep = Bounds {
        messages: 3,
        deaths: 2,
        births: 1,
        ..SOME
    };
    explore("consumers die", Bounds { births: 1, ..SOME }, deep);
}

#[test]
fn leases_end() {
    let some = Bounds {
        leases: true,
        ..SOME
    };
    let deep = Bounds {
        messages: 3,
        deaths: 2,
        ..some
    };
    explore("leases end", some, deep);
}

#[test]
fn requests_are_cancelled() {
    let some = Bounds {
        once: true,
        cancels: true,
        leases: true,
        messages: 1,
        ..SOME
    };
    explore(
        "requests are cancelled",
        some,
        Bounds {
            messages: 2,
            ..some
        },
    );
}

#[test]
fn messages_are_put_off() {
    let some = Bounds {
        moves: true,
        births: 1,
        messages: 1,
        ..SOME
    };
    explore("messages are put off", some, Bounds { deaths: 2, ..some });
}
