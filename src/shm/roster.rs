//! Who reads a topic: joining, leaving, and the limit that the slowest reader sets.
//!
//! # Join
//!
//! A reader stores the lane's mark in its slot, bumps the roster, fences, and looks at the lane's limit: if that is at
//! most mark + capacity, nothing from the mark on has been overwritten, and every later limit will be found to respect the slot.
//! The writer does the reverse: it publishes the limit, fences, and looks at roster and slots. Either the writer sees
//! the slot, or the joiner sees the limit. There is no state between, in which one could hang.
//!
//! The order of names decides for the rest. A reader links its cursor, then lists the lanes: those it joins by the
//! mark; those that it finds later it reads from 0. A writer links its lane, then lists the cursors, then sends, and
//! holds its limit at the capacity while one of them has no slot.
//!
//! # Every shared word, its writers and its ordering
//!
//! | word | written by | ordering and its partner |
//! |---|---|---|
//! | `roster` | who joins or leaves | `Release` in [`changed`], with the `Acquire` in [`state`]: what was changed before it was bumped |
//! | `attention` | the same, sleepers, and readers | `Release` in [`changed`], `park` and [`Cursor::tell_singly`], with the `Acquire` in `park::Watch` |
//! | `singly` | the reader | a hint; what tells of it is a bump of `attention` |
//! | `bell` | the same, and senders | `Release` in [`changed`], with the heavy fence in `park::arm_room`: the slot of who has joined; else `park` |
//! | slot `position` | the reader | see `lane`; on joining it is stored before `lane` |
//! | slot `lane` | the reader | `Release` in [`join`], with the fence in [`Cursor::slot_of`] |
//! | `used` | the reader | `Release` in [`Cursor::take_slot`], with the same fence |
//! | `topics` of the bus | who makes or removes a topic | `Release` in [`topics_changed`], with the `Acquire` in [`topics`] |
//! | `ended` | servers | `Release` in [`ended`], with the `Acquire` in [`endings`] |
//! | `joined` | the reader | `Release` in [`Cursor::set_joined`], with the fence in [`Cursor::is_joined`] |

use super::lane::Corrupt;
use super::layout::{BusControl, Control, CursorHeader, LEFT, LaneHeader, Slot};
use super::sync::{Ordering, fence};
use super::{View, futex};

/// Tells all members that lanes or cursors have changed, sleepers too.
pub fn changed(control: &Control) {
    // Pairs with the `Acquire` in `state`: who sees it, or a later bump, finds the new lane, cursor or slot.
    control.roster.fetch_add(1, Ordering::Release);
    // Pairs with the `Acquire` in `Watch::disturbed`: who sees it finds the roster changed.
    control.attention.fetch_add(1, Ordering::Release);
    ring_after(control);
    futex::wake(&control.roster);
}

/// Wakes all that sleep on the bell, after what it tells of.
fn ring_after(control: &Control) {
    // Pairs with the heavy fence of a sleeper that reads the bell as rung: it sees what has changed.
    control.bell.fetch_add(1, Ordering::Release);
    futex::wake(&control.bell);
}

/// Tells the client whose inbox this is that one of its requests has ended without a reply.
pub fn ended(control: &Control) {
    // Pairs with the `Acquire` in `endings`: who sees it finds what became of the request.
    control.ended.fetch_add(1, Ordering::Release);
    ring_after(control);
}

/// How many have ended so, to compare with later.
#[inline]
pub fn endings(control: &Control) -> u64 {
    // Pairs with the bump in `ended`.
    control.ended.load(Ordering::Acquire)
}

/// The roster's state, to compare with later ones.
#[inline]
pub fn state(control: &Control) -> u64 {
    // Pairs with the bump in `changed`: what is listed after this is at least as new.
    control.roster.load(Ordering::Acquire)
}

/// Tells all members that there is another topic, or one less, those that sleep on that, too.
pub fn topics_changed(control: &BusControl) {
    // Pairs with the `Acquire` in `topics`: who sees it, or a later bump, lists what there is now.
    control.topics.fetch_add(1, Ordering::Release);
    futex::wake(&control.topics);
}

/// The state of the list of topics, to compare with later ones.
pub fn topics(control: &BusControl) -> u64 {
    // Pairs with the bump in `topics_changed`: what is listed after this is at least as new.
    control.topics.load(Ordering::Acquire)
}

/// Has numbers for new lanes and cursors begin behind this one.
#[cfg(not(loom))]
pub fn number_from(control: &Control, last: u64) {
    control.last_id.fetch_max(last, Ordering::Relaxed);
}

/// Says that what is on the disk of a topic is not known any more.
#[cfg(not(loom))]
pub fn poison(control: &Control) {
    control.poisoned.swap(1, Ordering::Relaxed);
}

/// Whether somebody said so.
#[inline]
pub fn is_poisoned(control: &Control) -> bool {
    control.poisoned.load(Ordering::Relaxed) != 0
}

/// Says that it is known again.
#[cfg(not(loom))]
pub fn cure(control: &Control) {
    control.poisoned.swap(0, Ordering::Relaxed);
}

/// Tells all members that the topic was removed.
#[cfg(not(loom))]
pub fn remove(control: &Control) {
    // No ordering of its own: `changed` tells of it.
    control.removed.swap(1, Ordering::Relaxed);
    changed(control);
}

/// Whether it was. After [`state`].
#[cfg(not(loom))]
pub fn is_removed(control: &Control) -> bool {
    control.removed.load(Ordering::Relaxed) != 0
}

/// A number for the boot of the machine in which a durable bus was last recovered.
pub fn recovered_in(control: &BusControl) -> u64 {
    control.boot.load(Ordering::Relaxed)
}

/// Says in which it was.
#[cfg(not(loom))]
pub fn set_recovered_in(control: &BusControl, boot: u64) {
    control.boot.swap(boot, Ordering::Relaxed);
}

/// The last number of a lane or cursor: a bit that none of them has is left.
const MAX_ID: u64 = (1 << 63) - 1;

/// A number for a new lane or cursor, never given before in this topic. `None`: there is none any more; no topic lives so long, so that it
/// is not what was counted here.
pub fn next_id(control: &Control) -> Option<u64> {
    // Only uniqueness counts; what is named by it becomes visible through its file's name.
    let last = control.last_id.fetch_add(1, Ordering::Relaxed);
    (last < MAX_ID).then(|| last + 1)
}

/// What a cursor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A subscriber: it gates the writers, and counts.
    Subscriber,
    /// A consumer of a queue: it counts. Its group gates.
    Consumer,
    /// A group of consumers in one lane, or one that has no claims there yet: it gates.
    Group,
}

/// A cursor, seen by its reader or by a writer.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// Its number, never reused.
    pub id: u64,
    /// What it stands for.
    pub role: Role,
    /// Its header.
    pub header: View<CursorHeader>,
    /// Its slots, one for each lane; those at `used` and behind are not to be touched.
    pub slots: View<[Slot]>,
}

impl Cursor {
    /// The reader's, before anyone else sees it: whose it is, and whether that reader can't use `membarrier`.
    pub fn own(&self, member: u64, fences: bool) {
        self.header.owner.member.store(member, Ordering::Relaxed);
        self.header.owner.away.store(0, Ordering::Relaxed);
        self.header.owner.lossy.store(0, Ordering::Relaxed);
        self.header
            .owner
            .fences
            .store(u64::from(fences), Ordering::Relaxed);
    }

    /// A consumer's, before anyone else sees it: its group, and which kinds of messages it takes.
    pub fn consume_for(&self, group: u64, kinds: u64) {
        self.header.owner.group.store(group, Ordering::Relaxed);
        self.header.owner.kinds.store(kinds, Ordering::Relaxed);
    }

    /// A consumer's: whether it takes messages of this kind.
    pub fn takes(&self, kind: u8) -> bool {
        takes(self.header.owner.kinds.load(Ordering::Relaxed), kind)
    }

    /// A consumer's group.
    pub fn group(&self) -> u64 {
        self.header.owner.group.load(Ordering::Relaxed)
    }

    /// A named one's, by the holder of its lock: nobody reads with it now.
    pub fn disown(&self) {
        self.header.parked.store(0, Ordering::Relaxed);
        self.header.owner.away.store(1, Ordering::Relaxed);
    }

    /// The member whose it is, or was.
    pub fn owner(&self) -> u64 {
        self.header.owner.member.load(Ordering::Relaxed)
    }

    /// The reader's: it has joined every lane that was there, and misses nothing from now on.
    pub fn set_joined(&self) {
        // Pairs with the fence in `is_joined`: its slots.
        self.header.owner.joined.store(1, Ordering::Release);
    }

    /// See [`set_joined`](Self::set_joined).
    pub fn is_joined(&self) -> bool {
        let joined = self.header.owner.joined.load(Ordering::Relaxed) != 0;
        // Pairs with the `Release` in `set_joined`.
        fence(Ordering::Acquire);
        joined
    }

    /// Whether it has joined, and somebody reads with it.
    pub fn is_there(&self) -> bool {
        self.is_joined() && !self.is_away()
    }

    /// Whether it is a named one that nobody reads with now.
    pub fn is_away(&self) -> bool {
        self.header.owner.away.load(Ordering::Relaxed) != 0
    }

    /// The reader's: tells writers whether messages come to it one at a time, so that it waits for each.
    pub fn tell_singly(&self, control: &Control, singly: bool) {
        let owner = &self.header.owner;
        owner.singly.store(u64::from(singly), Ordering::Relaxed);
        // Pairs with the `Acquire` in `park::Watch`: who sees it sees the hint.
        control.attention.fetch_add(1, Ordering::Release);
    }

    /// The reader's, before anyone else sees it: writers of a lossless topic do not wait for it.
    pub fn set_lossy(&self) {
        self.header.owner.lossy.store(1, Ordering::Relaxed);
    }

    /// See [`set_lossy`](Self::set_lossy).
    pub fn is_lossy(&self) -> bool {
        self.header.owner.lossy.load(Ordering::Relaxed) != 0
    }

    /// Whether its reader sleeps, or is about to.
    pub fn is_parked(&self) -> bool {
        self.header.parked.load(Ordering::Relaxed) != 0
    }

    /// Slots in use, free ones between them included.
    pub fn used(&self) -> &[Slot] {
        let used = self.header.used.load(Ordering::Relaxed);
        // Pairs with the `Release` in `take_slot`: those slots are allocated.
        fence(Ordering::Acquire);
        &self.slots[..self.slots.len().min(used as usize)]
    }

    /// Those of them that stand for a lane.
    pub fn taken(&self) -> impl Iterator<Item = &Slot> {
        let is_taken = |slot: &&Slot| slot.lane.load(Ordering::Relaxed) != 0;
        self.used().iter().filter(is_taken)
    }

    /// Which slot stands for `lane`.
    pub fn slot_of(&self, lane: u64) -> Option<usize> {
        let index = self
            .used()
            .iter()
            .position(|slot| slot.lane.load(Ordering::Relaxed) == lane);
        // Pairs with the `Release` in `join`: the position is that of this lane.
        fence(Ordering::Acquire);
        index
    }

    /// How far its reader is in `lane`, [`LEFT`] included; `None`: it has not joined that lane.
    pub fn position_in(&self, lane: u64) -> Option<u64> {
        let slot = self.slot_of(lane)?;
        Some(self.slots[slot].position.load(Ordering::Relaxed))
    }

    /// The reader's: a slot that is free. `allocate` makes sure that slot `n` may be touched.
    pub fn take_slot<E>(&self, allocate: impl FnOnce(usize) -> Result<(), E>) -> Result<usize, E> {
        let used = self.used();
        if let Some(free) = used
            .iter()
            .position(|slot| slot.lane.load(Ordering::Relaxed) == 0)
        {
            return Ok(free);
        }
        let index = used.len();
        allocate(index)?;
        // Pairs with the fence in `used`.
        self.header.used.store(index as u64 + 1, Ordering::Release);
        Ok(index)
    }

    /// The reader's: gives a slot back, when its lane exists no more.
    pub fn free_slot(&self, index: usize) {
        self.slots[index].lane.store(0, Ordering::Relaxed);
    }
}

/// Whether messages of this kind are among `kinds`, as a cursor has them.
pub fn takes(kinds: u64, kind: u8) -> bool {
    kinds == 0 || kinds & 1 << (kind % 64) != 0
}

/// How often a boundary is tried by who joins a lane. From the first time on its writer sees the slot, and waits for it: so two or three
/// are enough, unless the lane contradicts itself.
pub const TRIES: usize = 64;

/// Joins `lane` at a boundary, and says where that is, and up to where one may have to walk from there. `choose` names
/// one at or past its argument, below which bytes may have been overwritten, if it knows one; else it is the mark.
pub fn join(
    control: &Control,
    header: &LaneHeader,
    capacity: u64,
    lane: u64,
    slot: &Slot,
    choose: impl Fn(u64) -> Option<u64>,
) -> Result<(u64, u64), Corrupt> {
    let mut limit = header.limit.load(Ordering::Relaxed);
    for _ in 0..TRIES {
        let from = choose(limit.saturating_sub(capacity))
            .unwrap_or_else(|| header.mark.load(Ordering::Relaxed));
        enter(control, lane, slot, from);
        // Pairs, too, with the `Release` of the mark there, or of the record: the words from there on are visible.
        // Total order with the fence in `Writer::extend`, as said above.
        fence(Ordering::SeqCst);
        limit = header.limit.load(Ordering::Relaxed);
        if limit <= from.saturating_add(capacity) {
            return Ok((from, limit));
        }
    }
    let (position, word) = (limit, 0);
    Err(Corrupt { position, word })
}

/// Joins a lane in data files at `position`; `false` if what is there may be removed.
pub fn join_log(
    control: &Control,
    header: &LaneHeader,
    lane: u64,
    slot: &Slot,
    position: u64,
) -> bool {
    enter(control, lane, slot, position);
    // Total order with the fence in `lane::give_up`, as said there.
    fence(Ordering::SeqCst);
    header.floor.load(Ordering::Relaxed) <= position
}

/// Joins a lane at 0, that was linked after the reader's cursor; `false` if it did not wait for us, against the
/// protocol.
pub fn join_from_start(
    control: &Control,
    header: &LaneHeader,
    capacity: u64,
    lane: u64,
    slot: &Slot,
) -> bool {
    // Before the slot: once the writer sees that, its limit follows us.
    let waited = header.limit.load(Ordering::Relaxed) <= capacity;
    enter(control, lane, slot, 0);
    waited
}

/// Says in a reader's slot that it reads `lane`, from `position` on, and tells all. This alone makes no writer wait in time.
pub fn enter(control: &Control, lane: u64, slot: &Slot, position: u64) {
    occupy(lane, slot, position);
    changed(control);
}

/// The same, without telling anybody.
pub fn occupy(lane: u64, slot: &Slot, position: u64) {
    slot.position.store(position, Ordering::Relaxed);
    // Pairs with the fence in `slot_of`: who finds the lane finds this position.
    slot.lane.store(lane, Ordering::Release);
}

/// What holds the slowest position.
#[derive(Clone, Debug)]
pub enum Gate {
    /// Nobody reads.
    Open,
    /// A reader's slot.
    Slot(Cursor, usize),
    /// A reader that has not joined yet; it will tell by the bell.
    Unjoined,
}

/// The slowest reader of a lane.
#[derive(Clone, Debug)]
pub struct Lowest {
    /// All before it is released by all; `u64::MAX` if nobody reads.
    pub position: u64,
    /// What must move for this to rise.
    pub gate: Gate,
    /// No reader is without a slot.
    pub all_joined: bool,
}

impl Lowest {
    /// When nobody is waited for.
    pub fn nobody() -> Self {
        Self {
            position: u64::MAX,
            gate: Gate::Open,
            all_joined: true,
        }
    }
}

#[derive(Debug)]
struct Known {
    cursor: Cursor,
    slot: Option<usize>,
}

/// The cursors of a topic, as one writer knows them.
#[derive(Debug, Default)]
pub struct Readers {
    known: Vec<Known>,
    seen: Option<u64>,
    fences: bool,
    farthest_left: Option<u64>,
}

impl Readers {
    /// Lists the cursors anew if the roster has changed. `list` gets the numbers known and returns those that are gone and the new cursors.
    pub fn refresh<E>(
        &mut self,
        control: &Control,
        lane: u64,
        list: impl FnOnce(&[u64]) -> Result<Listed, E>,
    ) -> Result<(), E> {
        // Read before listing, so that what comes later bumps it once more.
        let now = state(control);
        if self.seen == Some(now) {
            return Ok(());
        }
        let ids: Vec<u64> = self.known.iter().map(|known| known.cursor.id).collect();
        let listed = list(&ids)?;
        let farthest = &mut self.farthest_left;
        self.known.retain(|known| {
            let gone = listed.gone.contains(&known.cursor.id);
            if gone {
                let position = known.cursor.position_in(lane).unwrap_or(0) & !LEFT;
                *farthest = (*farthest).max(Some(position));
            }
            !gone
        });
        self.known.extend(
            listed
                .new
                .into_iter()
                .map(|cursor| Known { cursor, slot: None }),
        );
        self.fences = self
            .known
            .iter()
            .any(|known| known.cursor.header.owner.fences.load(Ordering::Relaxed) != 0);
        self.seen = Some(now);
        Ok(())
    }

    /// How many subscribers there are: cursors that have joined.
    pub fn count(&self) -> usize {
        self.known
            .iter()
            .filter(|known| known.cursor.role != Role::Group && known.cursor.is_there())
            .count()
    }

    /// Whether a consumer of this group takes messages of this kind.
    pub fn any_takes(&self, group: u64, kind: u8) -> bool {
        let mut cursors = self.known.iter().map(|known| &known.cursor);
        cursors.any(|cursor| {
            cursor.role == Role::Consumer
                && cursor.group() == group
                && cursor.is_joined()
                && cursor.takes(kind)
        })
    }

    /// Whether a reader can't use `membarrier`, so that senders must fence.
    #[inline]
    pub fn fences(&self) -> bool {
        self.fences
    }

    /// The farthest position that a reader had reached when it left.
    pub fn farthest_left(&self) -> Option<u64> {
        self.farthest_left
    }

    /// Whether a reader sleeps, or is about to.
    pub fn any_parked(&self) -> bool {
        self.known.iter().any(|known| known.cursor.is_parked())
    }

    /// Whether messages come to a reader one at a time.
    pub fn any_singly(&self) -> bool {
        let singly = |known: &Known| known.cursor.header.owner.singly.load(Ordering::Relaxed);
        self.known.iter().any(|known| singly(known) != 0)
    }

    /// The slowest reader of `lane` that gates its writer. Readers without a slot stand at `unjoined`, or don't count.
    pub fn lowest(&mut self, lane: u64, unjoined: Option<u64>) -> Lowest {
        self.lowest_of(lane, unjoined, |cursor| !cursor.is_lossy())
    }

    /// The slowest reader of `lane`, those included that do not gate its writer.
    pub fn lowest_of_all(&mut self, lane: u64, unjoined: Option<u64>) -> Lowest {
        self.lowest_of(lane, unjoined, |_| true)
    }

    fn lowest_of(
        &mut self,
        lane: u64,
        unjoined: Option<u64>,
        is_meant: impl Fn(&Cursor) -> bool,
    ) -> Lowest {
        let mut lowest = Lowest::nobody();
        for known in &mut self.known {
            // Who is away is not waited for.
            if known.cursor.role == Role::Consumer
                || known.cursor.is_away()
                || !is_meant(&known.cursor)
            {
                continue;
            }
            // It begins at 0, however far the writer has gone.
            let unjoined = match known.cursor.is_lossy() {
                true => Some(0),
                false => unjoined,
            };
            known.slot = known.slot.or_else(|| known.cursor.slot_of(lane));
            match (known.slot, unjoined) {
                (Some(slot), _) => {
                    let position = known.cursor.slots[slot].position.load(Ordering::Relaxed);
                    // Pairs with the `Release` in `Track::publish` and `lane::leave`: the reader is done with what is
                    // overwritten because of this load.
                    fence(Ordering::Acquire);
                    if position & LEFT != 0 {
                        self.farthest_left = self.farthest_left.max(Some(position & !LEFT));
                    } else if position < lowest.position {
                        lowest.position = position;
                        lowest.gate = Gate::Slot(known.cursor.clone(), slot);
                    }
                }
                (None, Some(position)) => {
                    lowest.all_joined = false;
                    if position < lowest.position {
                        lowest.position = position;
                        lowest.gate = Gate::Unjoined;
                    }
                }
                (None, None) => {}
            }
        }
        lowest
    }
}

/// What listing found.
#[derive(Debug, Default)]
pub struct Listed {
    /// Numbers of known cursors that exist no more.
    pub gone: Vec<u64>,
    /// Cursors not known before.
    pub new: Vec<Cursor>,
}
