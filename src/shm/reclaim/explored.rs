//! Every state of a topic's files that publishers, a subscriber, and who sweeps up behind the dead can reach together, when each
//! of them may die at any step, sweepers too.
//!
//! A step is one system call on a file that others see, or one store to it; each of [`Next`] names the code that it stands
//! for, and goes by the code's own answers where it has some (`has_read`, `lane::name`). What lies in the lanes is counted only:
//! how a reader and a writer meet in one is loom's (`tests/model.rs`).
//!
//! | invariant | |
//! |---|---|
//! | *one writer* | a lane has one writer that lives, and its name as long as that one writes ([`TopicFiles::lane_to_close`](super::TopicFiles::lane_to_close)) |
//! | *nothing is lost* | who has joined receives all that is sent from then on ([`tidy_lane`](super::tidy_lane)) |
//! | *kept for its name* | a lane with a name stays, and a publisher of that name who finds it left makes no other ([`TopicFiles::lane_to_write`](super::TopicFiles::lane_to_write)) |
//! | *nothing is left* | when nobody is at anything, there is no file of the dead but lanes that are kept, or that somebody has yet to read; and these are closed ([`sweep`](super::sweep)) |
//!
//! `BUSLANE_EXPLORE=deep` looks further.

use std::cell::Cell;

use stateright::{Model, Property};

use super::super::claims::Walk;
use super::super::explored::explore;
use super::super::files::Dir;
use super::super::groups::DEFAULT_ID;
use super::super::lane::{self, Writer};
use super::super::layout::LEFT;
use super::super::topic::{LaneFile, TopicFiles, is_left};
use super::has_read;
use crate::Bus;

/// What may happen, and how often.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    publishers: usize,
    subscribers: usize,
    /// Messages of each publisher.
    messages: u8,
    deaths: u8,
    /// The publishers have one name.
    named: bool,
    /// Not all stay until they die.
    ends: bool,
}

/// Lanes that are yet to be looked after.
type Lanes = Vec<usize>;
/// Cursors that are.
type Cursors = Vec<usize>;

/// What comes after lanes were looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Then {
    /// `Sender::drop`, `Receiver::drop` and `receiver::put_away` tell of it, and that is all.
    Tell,
    /// So does `tidy`, and goes on.
    Sweep,
}

/// What a process does next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Next {
    /// It is at nothing.
    Rest,
    // `TopicFiles::lane_to_write`, and `adopt` of the first of them.
    ListToWrite,
    LookIfOurs(Lanes),
    LockToWrite(Lanes),
    LookAgain(Lanes),
    Own(Lanes),
    Adopt(usize),
    LookIfLeft,
    Create,
    // `Sender::join`.
    TellOfLane,
    // `Sender::drop`.
    Close,
    Unlock,
    // `Receiver::join` and `refresh`.
    CreateCursor,
    TellOfCursor,
    ListToRead,
    JoinLanes(Lanes),
    SetJoined,
    // `tidy_cursor` of the first of them, and `leave`.
    LockCursor(Cursors),
    LeaveSlots(usize, Cursors),
    Unlink(usize, Cursors),
    // `tidy_lane` of the first of them.
    Lock(Lanes, Then),
    IsNamed(Lanes, Then),
    CloseLeft(Lanes, Then),
    IsDrained(Lanes, Then),
    UnlinkLane(Lanes, Then),
    Release(Lanes, bool, Then),
    IsDrainedNow(Lanes, Then),
    Tell(Then),
    // `sweep`.
    LockDead,
    ListCursors,
    ListLanes,
    IsHeld,
    RemoveDead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    /// Not yet there.
    Before,
    Lives,
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    life: Life,
    next: Next,
    /// Its file among the members is there.
    is_member: bool,
    /// Who has the lock of that, once it is dead.
    swept_by: Option<usize>,
    /// It closes, or has left.
    has_ended: bool,
    /// A publisher's lane.
    lane: Option<usize>,
    /// A lane that was left when it began to look for one, and that nobody has taken up since.
    awaits: Option<usize>,
    sent: u8,
    /// A subscriber's: it has listed the lanes once, and has told of it.
    has_listed: bool,
    has_joined: bool,
    /// The roster has changed since it was last looked at.
    is_behind: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lane {
    is_there: bool,
    lock: Option<usize>,
    closed: bool,
    owner: usize,
    sent: u8,
    /// For each subscriber, how far it is; and where it was when it tried to remove the lane.
    slots: Vec<Option<u8>>,
    tried: Vec<Option<u8>>,
    /// Whether something was sent that it is to receive.
    due: Vec<bool>,
}

/// A subscriber's, of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Cursor {
    is_there: bool,
    lock: Option<usize>,
    has_left: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// The publishers, then the subscribers.
    processes: Vec<Process>,
    lanes: Vec<Lane>,
    cursors: Vec<Cursor>,
    deaths: u8,
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Begin(usize),
    Go(usize),
    Send(usize),
    /// A publisher closes, or a subscriber leaves.
    End(usize),
    Refresh(usize),
    Receive(usize, usize),
    /// A subscriber has read all of a lane that is closed.
    PutAway(usize, usize),
    Sweep(usize),
    Die(usize),
}

impl State {
    fn new(bounds: &Bounds) -> Self {
        let process = Process {
            life: Life::Before,
            next: Next::Rest,
            is_member: false,
            swept_by: None,
            has_ended: false,
            lane: None,
            awaits: None,
            sent: 0,
            has_listed: false,
            has_joined: false,
            is_behind: false,
        };
        let cursor = Cursor {
            is_there: false,
            lock: None,
            has_left: false,
        };
        Self {
            processes: vec![process; bounds.publishers + bounds.subscribers],
            lanes: Vec::new(),
            cursors: vec![cursor; bounds.subscribers],
            deaths: 0,
            broken: None,
        }
    }

    fn break_if(&mut self, broken: bool, what: &'static str) {
        if broken && self.broken.is_none() {
            self.broken = Some(what);
        }
    }

    /// `roster::changed`.
    fn tell(&mut self) {
        for process in &mut self.processes {
            process.is_behind = process.life == Life::Lives;
        }
    }

    fn linked(&self) -> Lanes {
        let lanes = self.lanes.iter().enumerate();
        lanes
            .filter(|(_, lane)| lane.is_there)
            .map(|(lane, _)| lane)
            .collect()
    }

    fn is_drained(&self, lane: usize) -> bool {
        let Lane { sent, slots, .. } = &self.lanes[lane];
        let mut readers = self
            .cursors
            .iter()
            .zip(slots)
            .filter(|(cursor, _)| cursor.is_there);
        readers.all(|(cursor, slot)| {
            let left = if cursor.has_left { LEFT } else { 0 };
            has_read(
                slot.map(|position| u64::from(position) | left),
                u64::from(*sent),
            )
        })
    }

    fn lives(&self, who: usize) -> bool {
        self.processes[who].life == Life::Lives
    }

    /// The living who writes a lane, or is about to adopt it.
    fn has_writer(&self, lane: usize) -> bool {
        let Some(who) = self.lanes[lane].lock else {
            return false;
        };
        let Process {
            next, lane: own, ..
        } = &self.processes[who];
        *own == Some(lane) || matches!(next, Next::LookAgain(_) | Next::Own(_) | Next::Adopt(_))
    }
}

impl Bounds {
    fn subscriber(&self, who: usize) -> Option<usize> {
        who.checked_sub(self.publishers)
    }

    /// What a process that lives, and is at nothing, may begin.
    fn begin(&self, state: &State, who: usize, actions: &mut Vec<Action>) {
        let process = &state.processes[who];
        let is_to_sweep =
            |dead: &Process| dead.life == Life::Dead && dead.is_member && dead.swept_by.is_none();
        if state.processes.iter().any(is_to_sweep) {
            actions.push(Action::Sweep(who));
        }
        if process.has_ended {
            return;
        }
        actions.extend(self.ends.then_some(Action::End(who)));
        let Some(subscriber) = self.subscriber(who) else {
            actions.extend((process.sent < self.messages).then_some(Action::Send(who)));
            return;
        };
        actions.extend(process.is_behind.then_some(Action::Refresh(who)));
        for (lane, file) in state.lanes.iter().enumerate() {
            let at = file.slots[subscriber];
            if at.is_some_and(|at| at < file.sent) {
                actions.push(Action::Receive(who, lane));
            } else if at.is_some()
                && file.closed
                && file.tried[subscriber] != at
                && !process.is_behind
            {
                actions.push(Action::PutAway(who, lane));
            }
        }
    }

    /// Whether nobody is at anything that ends by itself, or is about to begin it, and there is somebody.
    fn is_settled(&self, state: &State) -> bool {
        let rests = |(who, process): (usize, &Process)| match process.life {
            Life::Before => true,
            Life::Dead => !process.is_member,
            Life::Lives => {
                let mut actions = Vec::new();
                self.begin(state, who, &mut actions);
                let ends_by_itself =
                    |action: &Action| !matches!(action, Action::Send(_) | Action::End(_));
                process.next == Next::Rest && !actions.iter().any(ends_by_itself)
            }
        };
        state.processes.iter().enumerate().all(rests)
            && (0..state.processes.len()).any(|who| state.lives(who))
    }

    fn is_lost(&self, state: &State) -> bool {
        let is_lost = |subscriber: usize| {
            let process = &state.processes[self.publishers + subscriber];
            let is_there = process.life == Life::Lives && !process.has_ended;
            let is_missed = |lane: &Lane| lane.due[subscriber] && lane.slots[subscriber].is_none();
            is_there && state.lanes.iter().any(is_missed)
        };
        self.is_settled(state) && (0..self.subscribers).any(is_lost)
    }

    fn is_left(&self, state: &State) -> bool {
        let lane_is_left = |lane: &usize| {
            let file = &state.lanes[*lane];
            let is_kept = file.closed && (self.named || !state.is_drained(*lane));
            file.is_there && !state.has_writer(*lane) && (file.lock.is_some() || !is_kept)
        };
        let cursor_is_left = |(subscriber, cursor): (usize, &Cursor)| {
            cursor.is_there && !state.lives(self.publishers + subscriber)
        };
        self.is_settled(state)
            && ((0..state.lanes.len()).any(|lane| lane_is_left(&lane))
                || state.cursors.iter().enumerate().any(cursor_is_left))
    }

    fn lanes(&self, lanes: Lanes, then: Then) -> Next {
        match lanes.is_empty() {
            true => Next::Tell(then),
            false => Next::Lock(lanes, then),
        }
    }

    fn cursors(&self, state: &State, who: usize, cursors: Cursors) -> Next {
        if !cursors.is_empty() {
            Next::LockCursor(cursors)
        } else if state.processes[who].has_ended && self.subscriber(who).is_some() {
            // `Receiver::drop`.
            let closed = state
                .lanes
                .iter()
                .enumerate()
                .filter(|(_, lane)| lane.is_there && lane.closed);
            self.lanes(closed.map(|(lane, _)| lane).collect(), Then::Tell)
        } else {
            Next::ListLanes
        }
    }

    /// Carries out what a process does next.
    fn step(&self, state: &mut State, who: usize, next: Next) -> Next {
        let rest = |mut lanes: Lanes| {
            lanes.remove(0);
            lanes
        };
        match next {
            Next::Rest => unreachable!("nothing is next"),
            Next::ListToWrite => self.look_on(state.linked()),
            Next::LookIfOurs(lanes) => match state.lanes[lanes[0]].is_there {
                true => Next::LockToWrite(lanes),
                false => self.look_on(rest(lanes)),
            },
            Next::LockToWrite(lanes) => match state.lanes[lanes[0]].lock {
                None => {
                    state.lanes[lanes[0]].lock = Some(who);
                    Next::LookAgain(lanes)
                }
                Some(_) => self.look_on(rest(lanes)),
            },
            Next::LookAgain(lanes) => match state.lanes[lanes[0]].is_there {
                true => Next::Own(lanes),
                false => {
                    state.lanes[lanes[0]].lock = None;
                    self.look_on(rest(lanes))
                }
            },
            Next::Own(lanes) => {
                state.lanes[lanes[0]].owner = who;
                Next::Adopt(lanes[0])
            }
            Next::Adopt(lane) => {
                state.lanes[lane].closed = false;
                state.processes[who].lane = Some(lane);
                for process in &mut state.processes {
                    process.awaits.take_if(|awaited| *awaited == lane);
                }
                Next::TellOfLane
            }
            Next::LookIfLeft => {
                let is_left =
                    |lane: &Lane| lane.is_there && is_left(lane.closed, state.lives(lane.owner));
                match self.named && state.lanes.iter().any(is_left) {
                    true => Next::ListToWrite,
                    false => Next::Create,
                }
            }
            Next::Create => {
                let awaited = state.processes[who].awaits.take();
                let is_free = awaited.is_some_and(|lane| !state.has_writer(lane));
                state.break_if(is_free, "kept for its name");
                state.processes[who].lane = Some(state.lanes.len());
                state.lanes.push(Lane {
                    is_there: true,
                    lock: Some(who),
                    closed: false,
                    owner: who,
                    sent: 0,
                    slots: vec![None; self.subscribers],
                    tried: vec![None; self.subscribers],
                    due: vec![false; self.subscribers],
                });
                Next::TellOfLane
            }
            Next::TellOfLane | Next::TellOfCursor | Next::Tell(_) => {
                state.tell();
                match next {
                    Next::TellOfCursor => Next::ListToRead,
                    Next::Tell(Then::Sweep) => Next::IsHeld,
                    _ => Next::Rest,
                }
            }
            Next::Close => {
                let lane = state.processes[who].lane.expect("a publisher");
                state.lanes[lane].closed = true;
                Next::Unlock
            }
            Next::Unlock => {
                let lane = state.processes[who].lane.take().expect("a publisher");
                state.lanes[lane].lock = None;
                Next::Lock(vec![lane], Then::Tell)
            }
            Next::CreateCursor => {
                let cursor = &mut state.cursors[who - self.publishers];
                (cursor.is_there, cursor.lock) = (true, Some(who));
                Next::TellOfCursor
            }
            Next::ListToRead => {
                state.processes[who].is_behind = false;
                Next::JoinLanes(state.linked())
            }
            Next::JoinLanes(lanes) => {
                let subscriber = who - self.publishers;
                let is_first = !state.processes[who].has_listed;
                for lane in lanes {
                    let file = &mut state.lanes[lane];
                    if file.slots[subscriber].is_none() && file.is_there {
                        file.slots[subscriber] = Some(if is_first { file.sent } else { 0 });
                    }
                }
                for lane in &mut state.lanes {
                    lane.tried[subscriber].take_if(|_| !lane.closed);
                }
                state.processes[who].has_listed = true;
                match is_first {
                    true => Next::SetJoined,
                    false => Next::Rest,
                }
            }
            Next::SetJoined => {
                state.processes[who].has_joined = true;
                Next::Tell(Then::Tell)
            }
            Next::LockCursor(cursors) => {
                let (subscriber, rest) = (cursors[0], rest(cursors));
                let cursor = &mut state.cursors[subscriber];
                if cursor.is_there && cursor.lock.is_none() {
                    cursor.lock = Some(who);
                    Next::LeaveSlots(subscriber, rest)
                } else {
                    self.cursors(state, who, rest)
                }
            }
            Next::LeaveSlots(subscriber, rest) => {
                state.cursors[subscriber].has_left = true;
                Next::Unlink(subscriber, rest)
            }
            Next::Unlink(subscriber, rest) => {
                let cursor = &mut state.cursors[subscriber];
                (cursor.is_there, cursor.lock) = (false, None);
                self.cursors(state, who, rest)
            }
            Next::Lock(lanes, then) => {
                let file = &mut state.lanes[lanes[0]];
                match file.is_there && file.lock.is_none() {
                    true => {
                        file.lock = Some(who);
                        Next::IsNamed(lanes, then)
                    }
                    false => self.lanes(rest(lanes), then),
                }
            }
            Next::IsNamed(lanes, then) => match state.lanes[lanes[0]].is_there {
                true => Next::CloseLeft(lanes, then),
                false => Next::Release(lanes, true, then),
            },
            Next::CloseLeft(lanes, then) => {
                state.lanes[lanes[0]].closed = true;
                match self.named {
                    true => Next::Release(lanes, true, then),
                    false => Next::IsDrained(lanes, then),
                }
            }
            Next::IsDrained(lanes, then) => match state.is_drained(lanes[0]) {
                true => Next::UnlinkLane(lanes, then),
                false => Next::Release(lanes, false, then),
            },
            Next::UnlinkLane(lanes, then) => {
                state.lanes[lanes[0]].is_there = false;
                Next::Release(lanes, true, then)
            }
            Next::Release(lanes, is_done, then) => {
                state.lanes[lanes[0]].lock = None;
                match is_done {
                    true => self.lanes(rest(lanes), then),
                    false => Next::IsDrainedNow(lanes, then),
                }
            }
            Next::IsDrainedNow(lanes, then) => match state.is_drained(lanes[0]) {
                true => Next::Lock(lanes, then),
                false => self.lanes(rest(lanes), then),
            },
            Next::LockDead => {
                for dead in &mut state.processes {
                    if dead.life == Life::Dead && dead.is_member {
                        dead.swept_by.get_or_insert(who);
                    }
                }
                Next::ListCursors
            }
            Next::ListCursors => {
                let cursors = (0..self.subscribers).filter(|&one| state.cursors[one].is_there);
                match cursors.collect::<Cursors>() {
                    none if none.is_empty() => Next::ListLanes,
                    cursors => Next::LockCursor(cursors),
                }
            }
            Next::ListLanes => self.lanes(state.linked(), Then::Sweep),
            Next::IsHeld => {
                let is_mine = |dead: usize| state.processes[dead].swept_by == Some(who);
                let holds_cursor = (0..self.subscribers)
                    .any(|one| state.cursors[one].is_there && is_mine(self.publishers + one));
                let holds_lane = |lane: &Lane| lane.is_there && !lane.closed && is_mine(lane.owner);
                if !holds_cursor && !state.lanes.iter().any(holds_lane) {
                    return Next::RemoveDead;
                }
                for dead in &mut state.processes {
                    dead.swept_by.take_if(|by| *by == who);
                }
                Next::Rest
            }
            Next::RemoveDead => {
                for dead in &mut state.processes {
                    if dead.swept_by.take_if(|by| *by == who).is_some() {
                        dead.is_member = false;
                    }
                }
                Next::Rest
            }
        }
    }

    fn look_on(&self, lanes: Lanes) -> Next {
        match lanes.is_empty() {
            true => Next::LookIfLeft,
            false => Next::LookIfOurs(lanes),
        }
    }
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (who, process) in state.processes.iter().enumerate() {
            match process.life {
                Life::Before => actions.push(Action::Begin(who)),
                Life::Dead => {}
                Life::Lives => {
                    match process.next {
                        Next::Rest => self.begin(state, who, actions),
                        _ => actions.push(Action::Go(who)),
                    }
                    actions.extend((state.deaths < self.deaths).then_some(Action::Die(who)));
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Begin(who) => {
                let is_left = |lane: &usize| {
                    let file = &last.lanes[*lane];
                    let is_left = file.closed || !last.lives(file.owner);
                    file.is_there && is_left && !last.has_writer(*lane)
                };
                let process = &mut state.processes[who];
                (process.life, process.is_member) = (Life::Lives, true);
                process.next = match self.subscriber(who) {
                    Some(_) => Next::CreateCursor,
                    None => Next::ListToWrite,
                };
                let left = (0..last.lanes.len()).find(is_left);
                process.awaits = left.filter(|_| self.named && self.subscriber(who).is_none());
            }
            Action::Go(who) => {
                let next = std::mem::replace(&mut state.processes[who].next, Next::Rest);
                let next = self.step(&mut state, who, next);
                state.processes[who].next = next;
            }
            Action::Send(who) => {
                let lane = last.processes[who].lane.expect("a publisher");
                let mut others = last.processes.iter().enumerate();
                let is_shared = others.any(|(other, process)| {
                    other != who && process.life == Life::Lives && process.lane == Some(lane)
                });
                let file = &mut state.lanes[lane];
                let is_ours = file.lock == Some(who) && file.is_there && !file.closed;
                file.sent += 1;
                for (due, process) in file.due.iter_mut().zip(&last.processes[self.publishers..]) {
                    *due |= process.has_joined;
                }
                state.processes[who].sent += 1;
                state.break_if(is_shared || !is_ours, "one writer");
            }
            Action::End(who) => {
                state.processes[who].has_ended = true;
                state.processes[who].next = match self.subscriber(who) {
                    Some(subscriber) => Next::LeaveSlots(subscriber, Vec::new()),
                    None => Next::Close,
                };
            }
            Action::Refresh(who) => state.processes[who].next = Next::ListToRead,
            Action::Receive(who, lane) => {
                let file = &mut state.lanes[lane];
                file.slots[who - self.publishers] = Some(file.sent);
            }
            Action::PutAway(who, lane) => {
                let (subscriber, file) = (who - self.publishers, &mut state.lanes[lane]);
                file.tried[subscriber] = file.slots[subscriber];
                state.processes[who].next = Next::Lock(vec![lane], Then::Tell);
            }
            Action::Sweep(who) => state.processes[who].next = Next::LockDead,
            Action::Die(who) => {
                state.deaths += 1;
                let process = &mut state.processes[who];
                (process.life, process.next) = (Life::Dead, Next::Rest);
                (process.lane, process.awaits, process.is_behind) = (None, None, false);
                let cursors = state.cursors.iter_mut().map(|cursor| &mut cursor.lock);
                let locks = state
                    .lanes
                    .iter_mut()
                    .map(|lane| &mut lane.lock)
                    .chain(cursors);
                let members = state
                    .processes
                    .iter_mut()
                    .map(|process| &mut process.swept_by);
                for lock in locks.chain(members) {
                    lock.take_if(|holder| *holder == who);
                }
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            // Which of them it is, the state says.
            Property::always("nothing is broken", |_, state: &State| {
                state.broken.is_none()
            }),
            Property::always("nothing is lost", |model: &Self, state| {
                !model.is_lost(state)
            }),
            Property::always("nothing is left", |model: &Self, state| {
                !model.is_left(state)
            }),
            Property::sometimes("a lane is adopted", |model: &Self, state: &State| {
                let adopted = |(who, process): (usize, &Process)| {
                    process
                        .lane
                        .is_some_and(|lane| lane < who && process.sent > 0)
                };
                model.publishers < 2 || state.processes.iter().enumerate().any(adopted)
            }),
            Property::sometimes("the dead are put away", |model: &Self, state| {
                let is_dead = |process: &Process| process.life == Life::Dead;
                model.is_settled(state) && state.processes.iter().any(is_dead)
            }),
        ]
    }
}

const SOME: Bounds = Bounds {
    publishers: 2,
    subscribers: 1,
    messages: 1,
    deaths: 1,
    named: false,
    ends: false,
};

#[test]
fn publishers_come_and_go() {
    explore("publishers come and go", SOME, Bounds { deaths: 2, ..SOME });
}

#[test]
fn named_publishers_come_and_go() {
    let some = Bounds {
        named: true,
        ..SOME
    };
    explore(
        "named publishers come and go",
        some,
        Bounds { deaths: 2, ..some },
    );
}

#[test]
fn named_publishers_leave() {
    let some = Bounds {
        subscribers: 0,
        named: true,
        ends: true,
        ..SOME
    };
    explore("named publishers leave", some, Bounds { deaths: 2, ..some });
}

#[test]
fn one_of_each_leaves() {
    let some = Bounds {
        publishers: 1,
        ends: true,
        ..SOME
    };
    explore(
        "one of each leaves",
        some,
        Bounds {
            publishers: 2,
            ..some
        },
    );
}

// ------------------------------------------------------------------------- what the models found, on the files themselves

/// The files of a topic that was made through the front door.
fn files_of(bus: &Bus, topic: &str) -> TopicFiles {
    let dir = Dir::open(&bus.path().join("topics").join(topic), None).unwrap();
    TopicFiles::open(dir, topic).unwrap().unwrap()
}

/// The only lane.
fn lane_of(files: &TopicFiles) -> LaneFile {
    let lanes = files.list_lanes().unwrap();
    files.lane(lanes[0]).unwrap().unwrap()
}

/// Has the first message that is left done with, and dies before it moves the head.
fn withdraw_and_die(files: &TopicFiles) {
    let claims = files.claims(DEFAULT_ID, &lane_of(files)).unwrap().unwrap();
    let mut walk = Walk::new(claims.clone());
    let offer = walk.find().unwrap().unwrap();
    let claim = walk.take(offer, 7).unwrap();
    assert!(claims.ack(claim));
}

#[test]
fn a_lane_is_removed_whose_writer_died_as_it_withdrew() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::at(dir.path().join("bus")).unwrap();
    let producer = bus.queue("jobs").unwrap().producer().unwrap();
    let files = files_of(&bus, "jobs");
    let mut producer = producer;
    producer.push(b"one").unwrap();
    withdraw_and_die(&files);
    drop(producer);
    assert!(files.list_lanes().unwrap().is_empty());
}

#[test]
fn a_lane_is_adopted_whose_writer_died_as_it_withdrew() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::at(dir.path().join("bus")).unwrap();
    let queue = bus.queue("jobs").unwrap();
    let mut producer = queue.producer().unwrap();
    producer.push_batch(["one", "two"]).unwrap();
    let files = files_of(&bus, "jobs");
    withdraw_and_die(&files);
    drop(producer);
    withdraw_and_die(&files);
    let lane = lane_of(&files);
    let _next = queue.producer().unwrap();
    let claims = files.claims(DEFAULT_ID, &lane).unwrap().unwrap();
    assert!(
        claims.is_empty(),
        "its next writer would wait for what is done with"
    );
}

#[test]
fn a_named_lane_is_not_passed_over_that_somebody_is_about_to_close() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::at(dir.path().join("bus")).unwrap();
    let topic = bus.topic("news").unwrap();
    drop(topic.named_publisher("desk").unwrap());
    let files = files_of(&bus, "news");
    let (id, name) = (lane_of(&files).id, lane::name(&lane_of(&files).header));
    let (lock, lane) = files.lane_to_close(id).unwrap().unwrap();
    // As if its writer had died, and who has its lock has not come to close it.
    drop(Writer::adopt(lane.header, lane.ring).unwrap());
    let lock = Cell::new(Some(lock));
    let lives = |_| {
        lock.take();
        Ok(false)
    };
    let (_lock, adopted, _) = files.lane_to_write(7, name, files.capacity, lives).unwrap();
    assert_eq!(adopted, id);
}
