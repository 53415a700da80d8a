//! A queue's group in one lane: whose each message is, and up to where all are done with.
//!
//! Every consumer walks the lane itself, and claims what nobody has. The *head* is the first message that is not
//! acknowledged; to the lane's writer it is a reader's position like any other, so nothing from the head on is overwritten.
//!
//! # Why a claimed message is intact
//!
//! A consumer loads a frame's word, *then* the head. If the head has passed the frame, it goes on from the head; if not,
//! the word was whole: who overwrites a frame has seen the head behind it, and has fenced since. Then it takes the claim by a
//! compare-and-swap from the very word that it found there. If anyone else has had the message meanwhile, that word is
//! another one. Once it has the claim, the head stays where it is until it acknowledges.
//!
//! # Why the head does not stay behind
//!
//! Who acknowledges then moves the head over all that is acknowledged. Of two that acknowledge neighbours at the same time,
//! at least one sees the other's: each changes its own claim, fences, and looks at the other's. A consumer that dies between
//! the two leaves a head that is behind: who puts its cursor away moves it.
//!
//! # Why a message that is put off is there once
//!
//! It is copied to another topic, and then acknowledged here; in between its claim says *moving*. A death does not free such
//! a claim. Who is handed the copy acknowledges the message here first. Who finds that the owner has gone looks for the copy:
//! if it is there, unacknowledged, the message is done with here; else it is freed. That fails if the copy was handed out
//! meanwhile.
//!
//! # What the sender of a message may do with its claim
//!
//! It may look at it, to see that nobody will answer; and cancel it. What nobody has is then acknowledged, as if somebody
//! had been faster. What somebody has stays where it is, for its bytes are being read; the owner may see that it is
//! *cancelled*, and acknowledges it in any case. Of what is to be done at most once, the owner says *once* before it shows
//! it to anyone: a death ends such a claim, and does not free it.
//!
//! # What holds, whoever dies at whatever step
//!
//! Seven invariants, each named at the function that keeps it. `claims/explored.rs` says what they mean, and looks at every state
//! that a few processes can reach.
//!
//! # Every shared word, its writers and its ordering
//!
//! | word | written by | ordering and its partner |
//! |---|---|---|
//! | claim | consumers, who puts one away, and the lane's writer, to cancel | `Release` in [`Claims::swap`], with the fence in [`Claims::claim`]: the loads of the payload come before the acknowledgement; what an earlier holder has done is seen by the next |
//! | head | the same | `Release` in [`Claims::advance`], with the `Acquire` fence in `roster::Readers::lowest`: all loads of what is then overwritten; and with the `Acquire` in [`Claims::head`]: what stands there |
//! | `blocked` | consumers, who wait for the head; who moves it takes that back | the fences in [`Claims::say_blocked`] and [`Claims::take_blocked`]: either the one sees the head, or the other sees that it waits |
//! | `again` | the same | `Release` in [`Claims::offer`], with the fence in [`Walk::find`]: the claims that were given back |
//!
//! A word that was damaged makes a message stay, or come again; no check of a claim leads anywhere but to a word of this
//! table.

use super::lane::{Corrupt, Found, frame_at, is_boundary, is_whole};
use super::layout::{Claim, Control, Fate, LEFT, LaneHeader, Line, SLOT, Slot};
use super::sync::{AtomicU64, Ordering, fence, light_fence, swap_fence};
use super::{Ring, View, futex, park};
#[cfg(not(loom))]
use crate::error::Error;

/// How often something is tried while others change it: far more often than they do, unless one of them does nothing else.
const TRIES: usize = 64;

/// The claims of a group on one lane.
#[derive(Clone, Debug)]
pub struct Claims {
    /// The lane's header.
    pub lane: View<LaneHeader>,
    /// The lane's ring.
    pub ring: Ring,
    /// One: the lane, and the group's head in it.
    pub slots: View<[Slot]>,
    /// Bumped whenever a claim was given back.
    pub again: View<Line<AtomicU64>>,
    /// Of a lane in data files: not 0 if a consumer may wait for the head to move.
    pub blocked: View<Line<AtomicU64>>,
    /// A claim for each message that the lane may hold; a power of two of them.
    pub table: View<[AtomicU64]>,
    /// This process can't use `membarrier`.
    pub fences: bool,
}

/// Sets the head of a group that joins a lane, before any consumer is there.
pub fn begin(head: &Slot, position: u64) {
    // Pairs with the fence in `roster::Readers::lowest`, as any reader's position does.
    head.position.store(position, Ordering::Release);
}

/// Sets the head of a group in a lane that came later, before anyone else sees it.
pub fn begin_from_start(head: &Slot, lane: u64) {
    head.position.store(0, Ordering::Relaxed);
    // Seen by others through the file's name.
    head.lane.store(lane, Ordering::Relaxed);
}

/// Whether the lane's writer has waited for all that were there when it came: nothing was overwritten yet, or removed.
pub fn has_waited(lane: &LaneHeader, ring: &Ring) -> bool {
    match ring.is_checked() {
        true => lane.floor.load(Ordering::Relaxed) == 0,
        false => lane.limit.load(Ordering::Relaxed) <= ring.capacity(),
    }
}

/// Whether nobody of those that live (their numbers) is moving this message, so that whoever was has gone.
pub fn is_orphan(moving: Claim, living: &[u64]) -> bool {
    !living.iter().any(|id| id & Claim::OWNERS == moving.owner())
}

impl Claims {
    #[inline]
    fn word(&self, sequence: u32) -> &AtomicU64 {
        &self.table[sequence as usize & (self.table.len() - 1)]
    }

    /// The lane, and the head in it.
    #[inline]
    pub fn slot(&self) -> &Slot {
        &self.slots[0]
    }

    /// Where the head is, [`LEFT`] included: then the group was removed.
    #[inline]
    pub fn head(&self) -> u64 {
        // Pairs with the `Release` in `advance`: the word at the head is none that an earlier lap left.
        self.slot().position.load(Ordering::Acquire)
    }

    /// The claim on a message, to change it.
    #[inline]
    fn claim(&self, sequence: u32) -> Claim {
        let claim = Claim(self.word(sequence).load(Ordering::Relaxed));
        // Pairs with the `Release` in `swap`.
        fence(Ordering::Acquire);
        claim
    }

    #[inline]
    fn swap(&self, old: Claim, sequence: u32, new: Claim) -> bool {
        // Pairs with the fence in `claim`: our loads of the payload, and what we did because of it.
        self.word(sequence)
            .compare_exchange(old.0, new.0, Ordering::Release, Ordering::Relaxed)
            .is_ok()
    }

    #[inline]
    fn is_acked(&self, sequence: u32) -> bool {
        let claim = self.claim(sequence);
        claim.is_done() && claim.sequence() == sequence
    }

    /// The same in data files, where a newer message may have its claim here, once this one was done with.
    fn was_acked(&self, sequence: u32) -> bool {
        let claim = self.claim(sequence);
        let is_newer = (claim.sequence().wrapping_sub(sequence) as i32) > 0;
        (is_newer && claim.0 != 0) || self.is_acked(sequence)
    }

    /// How often a message was delivered that may be claimed, whose claim is `claim`. `None`: somebody has it, or had it.
    #[inline]
    fn attempts_of(&self, claim: Claim, sequence: u32) -> Option<u64> {
        let before = sequence.wrapping_sub(self.table.len() as u32);
        if claim.0 == 0 || (self.is_older(claim, before) && claim.is_done()) {
            Some(0)
        } else if claim.sequence() == sequence && claim.is(Fate::Free) {
            Some(claim.attempts())
        } else {
            None
        }
    }

    /// Whether a message has to wait for the head to move: only in data files, where more may lie behind the head than there are claims.
    /// A message that has the same as this one may not be claimed yet, and would be taken for done with once this one is.
    #[inline(never)]
    fn is_before_its_turn(&self, sequence: u32) -> bool {
        for _ in 0..2 {
            match frame_at(&self.ring, self.head() & !LEFT) {
                Ok(Some(first)) if first.word.is_message() => {
                    // Less than 0 if the head has passed it by now.
                    let ahead = sequence.wrapping_sub(first.word.sequence()) as i32;
                    return ahead >= self.table.len() as i32;
                }
                // The end of a file, which nobody has to acknowledge.
                Ok(Some(_)) => self.advance(),
                _ => break,
            }
        }
        true
    }

    /// Whether a claim is that of the message one table's length before; in data files, where messages may be passed because they are
    /// damaged, or of one before that.
    #[inline]
    fn is_older(&self, claim: Claim, before: u32) -> bool {
        claim.sequence() == before
            || (self.ring.is_checked() && (before.wrapping_sub(claim.sequence()) as i32) > 0)
    }

    /// Says that a consumer waits for the head to move.
    #[cold]
    fn say_blocked(&self) {
        self.blocked.fetch_add(1, Ordering::Relaxed);
        // With the one in `take_blocked`: either we see what was acknowledged, and the head, or that consumer sees us.
        swap_fence();
    }

    /// Has consumers look again that wait for the head to move, after what may have [moved](Self::advance) it.
    #[inline]
    pub fn tell_blocked(&self, control: &Control) {
        if self.ring.is_checked() && self.take_blocked() {
            self.offer(control);
        }
    }

    #[inline(never)]
    fn take_blocked(&self) -> bool {
        // With the one in `say_blocked`. That in `advance` is before the head moves, and some wait for the head.
        swap_fence();
        self.blocked.load(Ordering::Relaxed) != 0 && self.blocked.swap(0, Ordering::Relaxed) != 0
    }

    /// Whether `claim` is still what its owner was given.
    #[inline]
    pub fn holds(&self, claim: Claim) -> bool {
        // Pairs with the `Release` of who overwrites because of a later claim: what was copied before this is whole.
        fence(Ordering::Acquire);
        self.word(claim.sequence()).load(Ordering::Relaxed) == claim.0
    }

    /// Marks a message as done with, and moves nothing: [`advance`](Self::advance) must follow, and [`tell_blocked`](Self::tell_blocked).
    /// `false`: the claim was lost.
    #[inline]
    pub fn ack(&self, claim: Claim) -> bool {
        self.end(claim, Fate::Acked)
    }

    /// Marks a message as done with in another way, unless it was cancelled; as [`ack`](Self::ack). *Done is done.*
    #[inline]
    pub fn end(&self, claim: Claim, fate: Fate) -> bool {
        let cancelled = claim.with(Fate::Cancelled);
        let acked = claim.with(Fate::Acked);
        self.swap(claim, claim.sequence(), claim.with(fate))
            || self.swap(cancelled, claim.sequence(), acked)
    }

    /// Gives a claim back, quietly: [`offer`](Self::offer) tells the others. `false`: it was lost, or cancelled and is done with, of which
    /// [`tell_blocked`](Self::tell_blocked) tells.
    pub fn free(&self, claim: Claim) -> bool {
        let freed = self.swap(claim, claim.sequence(), claim.with(Fate::Free));
        if !freed && self.ack(claim) {
            self.advance();
        }
        freed
    }

    /// Takes a message away from who had it too long, as [`free`](Self::free): it is free, or done with if it was cancelled. Whether it is
    /// free.
    pub fn take_away(&self, claim: Claim) -> bool {
        if !claim.is(Fate::Cancelled) {
            return self.free(claim);
        }
        if self.ack(claim) {
            self.advance();
        }
        false
    }

    /// Its owner's: nobody else is to get it (*at most once*). `None`: it was lost, or cancelled.
    pub fn begin_once(&self, claim: Claim) -> Option<Claim> {
        let once = claim.with(Fate::Once);
        self.swap(claim, claim.sequence(), once).then_some(once)
    }

    /// What became of a message, as its sender sees it. What its owner did before is visible.
    pub fn progress(&self, sequence: u32) -> Progress {
        let claim = self.claim(sequence);
        if let Some(attempts) = self.attempts_of_ours(claim, sequence) {
            return Progress::Waits { attempts };
        }
        match claim.sequence() == sequence {
            true if claim.is(Fate::Died) => Progress::Died,
            true if claim.is(Fate::Unanswered) => Progress::Unanswered,
            _ => Progress::Goes,
        }
    }

    /// As [`attempts_of`](Self::attempts_of), for the sender. `None` also if it is not the message's turn yet.
    fn attempts_of_ours(&self, claim: Claim, sequence: u32) -> Option<u64> {
        let attempts = self.attempts_of(claim, sequence)?;
        let has_turn = !self.ring.is_checked() || !self.is_before_its_turn(sequence);
        has_turn.then_some(attempts)
    }

    /// Its sender's: if nobody has it, nobody gets it; how often it was delivered so far. [`tell_blocked`](Self::tell_blocked) must follow.
    /// `None`: somebody has it, or it is not its turn yet.
    pub fn withdraw(&self, sequence: u32) -> Option<u64> {
        let claim = self.claim(sequence);
        let attempts = self.attempts_of_ours(claim, sequence)?;
        let acked = Claim::new(sequence, 0, attempts, Fate::Acked);
        let withdrawn = self.swap(claim, sequence, acked);
        if withdrawn {
            self.advance();
        }
        withdrawn.then_some(attempts)
    }

    /// Its sender's: if nobody has it, nobody gets it; else who has it may see that it is not wanted, and is the last (*cancelled*).
    /// Before its turn it can't be: whoever gets it does it.
    pub fn cancel(&self, sequence: u32, control: &Control) {
        for _ in 0..TRIES {
            if self.withdraw(sequence).is_some() {
                return self.tell_blocked(control);
            }
            let claim = self.claim(sequence);
            let is_held = claim.is(Fate::Claimed) || claim.is(Fate::Once);
            if claim.sequence() == sequence && is_held {
                if self.swap(claim, sequence, claim.with(Fate::Cancelled)) {
                    return;
                }
            } else if self.attempts_of_ours(claim, sequence).is_none() {
                return;
            }
        }
    }

    /// Says that its owner copies a message elsewhere, to acknowledge it then: its claim from now on. Should the owner die,
    /// nobody gets the message before it is known whether the copy is there (*put off is there once*). `None`: the claim was lost.
    pub fn begin_move(&self, claim: Claim) -> Option<Claim> {
        let moving = claim.with(Fate::Moving);
        self.swap(claim, claim.sequence(), moving).then_some(moving)
    }

    /// Says that the copy is there. Who finds it says so, too, before it gives it to anyone. `false`: the claim was lost.
    pub fn end_move(&self, moving: Claim) -> bool {
        self.ack(moving) || self.holds(moving.with(Fate::Acked))
    }

    /// Says that there is no copy, and its owner has it as before.
    pub fn give_up_move(&self, moving: Claim) {
        self.swap(moving, moving.sequence(), moving.with(Fate::Claimed));
    }

    /// Has every consumer look again at what was given back, those that sleep on the bell of `control`, too.
    pub fn offer(&self, control: &Control) {
        // Pairs with the fence in `Walk::find`: the free claims.
        self.again.fetch_add(1, Ordering::Release);
        // Pairs with the heavy fence of a sleeper that reads the bell as rung: it sees the count above.
        fence(Ordering::Release);
        park::ring(control);
    }

    /// Puts away what a consumer held that has gone, and does what it may have left undone (*nothing is stuck*): by the holder of its
    /// cursor's lock. Who dies over it leaves it to be done again.
    pub fn put_away(&self, owner: u64, control: &Control) {
        self.free_all_of(owner);
        // In any case: it may have died before it told of what it gave back.
        self.offer(control);
        self.repair(control);
    }

    /// Ends all claims of a consumer that has gone, but what it was moving; whether one is free now. What was done with by
    /// this is behind the head only after [`advance`](Self::advance).
    pub fn free_all_of(&self, owner: u64) -> bool {
        let mut freed = false;
        for held in self
            .all()
            .filter(|claim| claim.owner() == owner & Claim::OWNERS)
        {
            match Self::of_the_dead(held) {
                Some(Fate::Free) => freed |= self.free(held),
                Some(fate) => {
                    self.end(held, fate);
                }
                None => {}
            }
        }
        freed
    }

    /// What becomes of a claim whose owner has gone. `None`: it stays.
    fn of_the_dead(held: Claim) -> Option<Fate> {
        if held.is(Fate::Claimed) {
            Some(Fate::Free)
        } else if held.is(Fate::Once) {
            Some(Fate::Died)
        } else if held.is(Fate::Cancelled) {
            Some(Fate::Acked)
        } else {
            None
        }
    }

    /// What there is of claims, somebody's or not.
    pub fn all(&self) -> impl Iterator<Item = Claim> {
        let words = self.table.iter();
        words.map(|word| Claim(word.load(Ordering::Relaxed)))
    }

    /// All claims of which this became.
    pub fn with_fate(&self, fate: Fate) -> impl Iterator<Item = Claim> {
        self.all().filter(move |claim| claim.is(fate))
    }

    /// Moves the head over all that is acknowledged (*nothing is passed* that is not), after [`ack`](Self::ack), and wakes the writer
    /// if that was waited for.
    #[inline(never)]
    pub fn advance(&self) {
        // Total order with the fence of who acknowledges a neighbour: one of us sees the other's claim.
        swap_fence();
        if !self.try_advance() {
            self.advance_again();
        }
    }

    /// After others have moved the head. Who has seen it move twice may leave it: whoever moved it then has looked at the claims after we
    /// acknowledged.
    #[cold]
    fn advance_again(&self) {
        for _ in 1..TRIES {
            if self.try_advance() {
                return;
            }
        }
    }

    /// `false`: somebody moved the head meanwhile.
    #[inline(always)]
    fn try_advance(&self) -> bool {
        let head = self.head();
        if head & LEFT != 0 {
            return true;
        }
        let behind = self.acked_from(head);
        if behind == head {
            // With the fence in `Writer::raise_floor`, and with `swap`: if what stands there now is of a later lap, we
            // see that the head has moved.
            fence(Ordering::Acquire);
            return self.head() == head;
        }
        let is_moved = self.move_head(head, behind);
        if is_moved {
            self.answer(head, behind);
        }
        is_moved
    }

    /// `false`: somebody else has moved it.
    #[inline]
    fn move_head(&self, from: u64, to: u64) -> bool {
        // Pairs with the fence in `roster::Readers::lowest`: all that was read before was acknowledged, which we saw.
        self.slot()
            .position
            .compare_exchange(from, to, Ordering::Release, Ordering::Relaxed)
            .is_ok()
    }

    /// The first boundary from `head` on where the message is not acknowledged. If another moves the head meanwhile, what
    /// is found may be anything.
    #[inline(always)]
    fn acked_from(&self, head: u64) -> u64 {
        if self.ring.is_checked() {
            return self.acked_in_files(head);
        }
        let mut at = head;
        let mut next = None;
        while at.wrapping_sub(head) < self.ring.capacity() {
            // Before the frame: its line may be the one that the lane's writer is at.
            if next.is_some_and(|next| !self.is_acked(next)) {
                break;
            }
            let Ok(Some(found)) = frame_at(&self.ring, at) else {
                break;
            };
            let sequence = found.word.sequence();
            if found.word.is_message() {
                if next.is_none() && !self.is_acked(sequence) {
                    break;
                }
                next = Some(sequence.wrapping_add(1));
            }
            at = at.wrapping_add(found.word.size());
        }
        at
    }

    /// The same in data files: what is damaged is passed by nobody unasked.
    #[inline(never)]
    fn acked_in_files(&self, head: u64) -> u64 {
        let mut at = head;
        let mut next = None;
        while !self.ring.is_beyond(at, head)
            && let Ok(Some(found)) = frame_at(&self.ring, at)
        {
            let sequence = found.word.sequence();
            let is_next = next.is_none_or(|next| next == sequence);
            if !is_next || !is_whole(&self.ring, found) {
                break;
            }
            if found.word.is_message() {
                if !self.was_acked(sequence) {
                    break;
                }
                next = Some(sequence.wrapping_add(1));
            }
            at = found.end();
        }
        at
    }

    /// Wakes the writer if the head has passed what it waits for.
    #[inline]
    fn answer(&self, from: u64, to: u64) {
        // With the heavy fence in `park::arm_room`: either the writer sees the head, or we see its `want`.
        light_fence(self.fences || self.lane.owner.fences.load(Ordering::Relaxed) != 0);
        let want = self.lane.want.load(Ordering::Relaxed);
        // Once for each `want`: by whom the head is moved over it.
        if from < want && want <= to {
            futex::wake(&self.slot().position);
        }
    }

    /// Does what a consumer may have left undone that died while it acknowledged.
    pub fn repair(&self, control: &Control) {
        self.advance();
        self.answer(0, self.head() & !LEFT);
        self.tell_blocked(control);
    }

    /// Whether a message from the head on is the one that is looked for. What `is_it` is shown may be overwritten meanwhile:
    /// its answer counts if it was not.
    pub fn has_unacked(&self, mut is_it: impl FnMut(Found) -> bool) -> bool {
        let mut at = self.head();
        if !is_boundary(at) {
            return false;
        }
        // What comes later was not there when this began.
        let until = at.saturating_add(self.ring.reach());
        while at < until {
            let seen = frame_at(&self.ring, at);
            let is_it = matches!(seen, Ok(Some(found)) if found.word.is_message() && is_it(found));
            // As in `Walk::find`.
            fence(Ordering::Acquire);
            let head = self.head();
            match seen {
                _ if head > at && !is_boundary(head) => return false,
                _ if head > at => at = head,
                Ok(Some(_)) if is_it => return true,
                Ok(Some(found)) => at = at.wrapping_add(found.word.size()),
                _ => return false,
            }
        }
        false
    }

    /// Sets what may have been lost with the machine: while nobody else is there, and no consumer lives. The lane ends at
    /// `tail`.
    #[cfg(not(loom))]
    pub fn renew(&self, lane: u64, tail: super::lane::Boundary) {
        let head = self.head();
        if head & LEFT != 0 {
            return;
        }
        self.slot().lane.store(lane, Ordering::Relaxed);
        super::lane::hold_back(self.slot(), tail);
        let first = match frame_at(&self.ring, self.head()) {
            Ok(Some(found)) => found.word.sequence(),
            _ => tail.sequence as u32,
        };
        let open = (tail.sequence as u32).wrapping_sub(first);
        for word in self.table.iter() {
            let claim = Claim(word.load(Ordering::Relaxed));
            let is_open = claim.sequence().wrapping_sub(first) < open;
            let renewed = match Self::of_the_dead(claim) {
                _ if !is_open => 0,
                Some(fate) => claim.with(fate).0,
                None => claim.0,
            };
            if renewed != claim.0 {
                word.store(renewed, Ordering::Relaxed);
            }
        }
        self.advance();
    }

    /// Gives up what is damaged at `position`, and moves the head behind it if all before is acknowledged: whether it did.
    /// [`tell_blocked`](Self::tell_blocked) must follow.
    #[cfg(not(loom))]
    pub fn skip_damaged(&self, position: u64) -> Result<bool, Error> {
        let head = self.head();
        if head > position {
            // Somebody else did.
            return Ok(true);
        }
        if head < position {
            return Ok(false);
        }
        let mut search = super::log::Search::new(&self.ring);
        let next = super::lane::next_whole(&mut search, position)?;
        Ok(next.is_some_and(|next| self.move_head(head, next.position)))
    }

    /// Whether all that is there is acknowledged.
    pub fn is_empty(&self) -> bool {
        let head = self.head();
        head & LEFT != 0 || matches!(frame_at(&self.ring, head), Ok(None))
    }
}

/// What became of a message, as its sender sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nobody has it; it was delivered so often.
    Waits {
        /// Deliveries that came to nothing.
        attempts: u64,
    },
    /// Somebody has it, or has done it.
    Goes,
    /// Who had it died over it, and nobody else gets it.
    Died,
    /// It is done, and there was no room for the reply.
    Unanswered,
}

impl Progress {
    /// Whether it ended so that no reply will come.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Died | Self::Unanswered)
    }
}

impl Offer {
    /// How often it was delivered so far.
    pub fn attempts(&self) -> u64 {
        self.attempts
    }
}

/// One consumer's way through a lane. What it has passed is claimed, by it or by others, or to be looked at later.
#[derive(Debug)]
pub struct Walk {
    claims: Claims,
    position: u64,
    /// The count of what was given back that was seen last.
    again: u64,
}

/// A message that may be claimed.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Its frame.
    pub found: Found,
    old: Claim,
    attempts: u64,
}

impl Walk {
    /// One that begins at the head.
    pub fn new(claims: Claims) -> Self {
        let again = claims.again.load(Ordering::Relaxed);
        let mut walk = Self {
            claims,
            position: 0,
            again,
        };
        walk.rewind();
        walk
    }

    /// Goes back to the head, to look again at what was passed.
    pub fn rewind(&mut self) {
        let head = self.claims.head();
        // One that can't be is reported by the next look.
        self.position = if is_boundary(head) { head } else { 0 };
    }

    /// Up to where there may be messages that it has not come to. Who passes what is found ends there: a ring of which each word is that
    /// of a frame has no end.
    pub fn until(&self) -> u64 {
        let head = self.claims.head() & !LEFT;
        head.max(self.position)
            .saturating_add(self.claims.ring.reach())
    }

    /// Whether it has come to a position.
    pub fn has_reached(&self, position: u64) -> bool {
        self.position >= position
    }

    /// Passes what [`find`](Self::find) has found, unclaimed.
    #[inline]
    pub fn pass(&mut self, found: Found) {
        self.position = found.position.wrapping_add(found.word.size());
    }

    /// The next message that nobody has.
    #[inline(always)]
    pub fn find(&mut self) -> Result<Option<Offer>, Corrupt> {
        let again = self.claims.again.load(Ordering::Relaxed);
        if again != self.again {
            self.again = again;
            self.rewind();
        }
        // At most what the lane may hold, and a jump to the head each time that it has passed us.
        for _ in 0..2 * self.claims.table.len() + 2 {
            let seen = frame_at(&self.claims.ring, self.position);
            // Between word and head, as said above, with the fence in `Writer::raise_floor`: also when the word is 0. And
            // between `again` and the claims, with the `Release` in `offer`.
            fence(Ordering::Acquire);
            let head = self.claims.head();
            if head & LEFT != 0 {
                return Ok(None);
            }
            if !is_boundary(head) {
                return Err(Corrupt {
                    position: head,
                    word: 0,
                });
            }
            if head > self.position {
                self.position = head;
                continue;
            }
            let Some(found) = seen? else {
                let Claims { lane, ring, .. } = &self.claims;
                if ring.is_checked() && super::lane::is_hole(lane, ring, self.position)? {
                    let (position, word) = (self.position, 0);
                    return Err(Corrupt { position, word });
                }
                return Ok(None);
            };
            if self.claims.ring.is_checked() && !is_whole(&self.claims.ring, found) {
                let (position, word) = (found.position, found.word.0);
                return Err(Corrupt { position, word });
            }
            if self.claims.ring.is_checked() && self.claims.ring.is_beyond(found.position, head) {
                // It has no address while what is at the head has one.
                self.claims.say_blocked();
                if self.claims.head() == head {
                    return Ok(None);
                }
                continue;
            }
            if found.word.is_message() {
                let sequence = found.word.sequence();
                if self.claims.ring.is_checked()
                    && found.position.wrapping_sub(head) >= self.claims.table.len() as u64 * SLOT
                    && self.claims.is_before_its_turn(sequence)
                {
                    self.claims.say_blocked();
                    if self.claims.is_before_its_turn(sequence) {
                        return Ok(None);
                    }
                    continue;
                }
                let old = self.claims.claim(sequence);
                if let Some(attempts) = self.claims.attempts_of(old, sequence) {
                    return Ok(Some(Offer {
                        found,
                        old,
                        attempts,
                    }));
                }
            }
            self.pass(found);
        }
        Ok(None)
    }

    /// Word `index` of what was found, which must have it. It may be anything if the claim is not taken after this.
    pub fn peek(&self, offer: Offer, index: u64) -> u64 {
        let at = offer.found.body() + 8 * index;
        self.claims.ring.word(at).load(Ordering::Relaxed)
    }

    /// Claims what was found, for a consumer (*held once*). `None`: somebody was faster.
    #[inline(always)]
    pub fn take(&mut self, offer: Offer, owner: u64) -> Option<Claim> {
        let Offer {
            found,
            old,
            attempts,
        } = offer;
        let sequence = found.word.sequence();
        let claim = Claim::new(sequence, owner, attempts + 1, Fate::Claimed);
        let ours = self.claims.swap(old, sequence, claim);
        self.pass(found);
        ours.then_some(claim)
    }
}

#[cfg(all(test, not(loom)))]
mod explored;
