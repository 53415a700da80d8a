//! Looking at a topic from outside: nobody is gated, slowed down, or waited for.

use std::collections::HashMap;
use std::time::Duration;

use crate::bus::unescape;
use crate::durable::{Keep, SyncPolicy};
use crate::envelope::Envelope;
use crate::error::Result;
use crate::message::PayloadType;
use crate::shm::files::{self, numbers_among, skip_damaged};
use crate::shm::fork;
use crate::shm::groups::GROUP;
use crate::shm::lane::{self, Boundary, Outside};
use crate::shm::layout::{Claim, LEFT, Pattern};
use crate::shm::log;
use crate::shm::members::Owner;
use crate::shm::roster::{self, Cursor};
use crate::shm::segment::Access;
use crate::shm::topic::{CURSOR, LANE, LaneFile, SUBSCRIPTION, TABLE, TopicFiles};

/// A topic as it was when it was looked at. Made by [`Bus::inspect`](crate::Bus::inspect).
#[derive(Debug)]
#[non_exhaustive]
pub struct TopicReport {
    /// Its name.
    pub name: String,
    /// `lossless`, `lossy`, `queue` or `state`.
    pub pattern: &'static str,
    /// What it carries: `bytes`, or the type's name.
    pub type_name: String,
    /// Bytes in each lane made in it; in each data file, if it is durable.
    pub capacity: u64,
    /// How it is kept, if it is durable.
    pub durable: Option<Durability>,
    /// Its lanes, by number.
    pub lanes: Vec<LaneReport>,
    /// Its cursors, by number.
    pub cursors: Vec<CursorReport>,
    /// The tables of a state, by number.
    pub tables: Vec<TableReport>,
    /// The groups of a queue, by name.
    pub groups: Vec<GroupReport>,
    files: Vec<LaneFile>,
    born: u64,
}

/// What a look at every byte of a durable topic found. Made by [`Bus::verify`](crate::Bus::verify).
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Verified {
    /// Messages that are whole.
    pub messages: u64,
    /// Bytes in them, with their envelopes.
    pub bytes: u64,
    /// What is not as it was written.
    pub damage: Vec<Damage>,
}

/// Something in a durable topic that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The lane's number.
    pub lane: u64,
    /// Where in the lane, in bytes since it was made.
    pub position: u64,
    /// What.
    pub why: String,
}

impl Verified {
    pub(crate) fn look(topic: &TopicFiles) -> Result<Self> {
        let mut verified = Self::default();
        for id in topic.dir().numbers(LANE)? {
            let has_writer = topic.has_writer(id)?;
            let lane = match topic.lane(id) {
                Ok(Some(lane)) => lane,
                Ok(None) => continue,
                // What can't be looked at now may be as it was written.
                Err(e) if e.errno().is_some() => return Err(e),
                Err(e) => {
                    let (lane, position, why) = (id, 0, e.to_string());
                    verified.damage.push(Damage {
                        lane,
                        position,
                        why,
                    });
                    continue;
                }
            };
            let checked = log::check_all(&lane.ring, has_writer)?;
            verified.messages += checked.messages;
            verified.bytes += checked.bytes;
            let damage = checked.damage.into_iter().map(|(position, why)| Damage {
                lane: id,
                position,
                why,
            });
            verified.damage.extend(damage);
        }
        Ok(verified)
    }
}

/// A lane as it was when it was looked at.
#[derive(Debug)]
#[non_exhaustive]
pub struct LaneReport {
    /// Its number.
    pub id: u64,
    /// Who writes it, or wrote it last.
    pub owner: Owner,
    /// Where its next frame will start, in bytes since it was made.
    pub position: u64,
    /// How many messages were sent through it.
    pub messages: u64,
    /// How many bytes of payload, and of envelopes.
    pub bytes: u64,
    /// Whether its publisher has left.
    pub closed: bool,
    /// Whether its publisher sleeps until a reader has moved on: for room, or until all has been received.
    pub waiting: bool,
    /// How long ago its newest message was sent, if that has an envelope that says so.
    pub newest_age: Option<Duration>,
    /// What is kept of it, if it is durable.
    pub kept: Option<Kept>,
}

/// How a durable topic is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Durability {
    /// When what is sent is on the disk.
    pub sync: SyncPolicy,
    /// How long it is kept.
    pub keep: Keep,
    /// A sync has failed.
    pub is_poisoned: bool,
}

/// What is kept of a durable lane.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kept {
    /// The numbers of its data files; the last one may be made ahead. File `n` begins at position `n * capacity`.
    pub files: Vec<u64>,
    /// The oldest position that is kept.
    pub oldest: u64,
    /// Up to here it is known to be on the disk.
    pub synced: u64,
    /// Bytes from there to its end.
    pub unsynced: u64,
    /// Where it was cut, and how many bytes something was found behind that, when it was last recovered with a loss.
    pub cut: Option<(u64, u64)>,
}

/// A cursor as it was when it was looked at.
#[derive(Debug)]
#[non_exhaustive]
pub struct CursorReport {
    /// Its number.
    pub id: u64,
    /// The name of a named subscription.
    pub name: Option<String>,
    /// Who reads with it, or did.
    pub owner: Owner,
    /// Whether nobody reads with it now: it is a named subscription, and kept.
    pub away: bool,
    /// Whether the reader sleeps: it has nothing to do.
    pub sleeping: bool,
    /// Whether publishers don't wait for it.
    pub lossy: bool,
    /// The group of a queue whose consumer it is; how far that is stands in its [`GroupReport`].
    pub group: Option<String>,
    /// How far it is in each lane that it has joined.
    pub positions: Vec<CursorPosition>,
}

impl CursorReport {
    /// Messages that it has not released.
    #[must_use]
    pub fn lag(&self) -> u64 {
        sum(self.positions.iter().map(|at| at.lag))
    }

    /// Messages that it lost, on a lossy topic.
    #[must_use]
    pub fn lost(&self) -> u64 {
        sum(self.positions.iter().map(|at| at.lost))
    }

    /// How long the oldest message that it has not released has been waiting for it; see [`CursorPosition::waited`].
    #[must_use]
    pub fn waited(&self) -> Option<Duration> {
        self.positions.iter().filter_map(|at| at.waited).max()
    }
}

/// A state writer's table as it was when it was looked at.
#[derive(Debug)]
#[non_exhaustive]
pub struct TableReport {
    /// Its number.
    pub id: u64,
    /// Who writes it, or wrote it last.
    pub owner: Owner,
    /// How many keys it has.
    pub keys: u64,
    /// How many it has room for.
    pub capacity: u64,
}

/// A queue's group as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupReport {
    /// Its name.
    pub name: String,
    /// How many consumers it has.
    pub consumers: usize,
    /// How many of them sleep, waiting for a message.
    pub sleeping: usize,
    /// Messages in all lanes from the first one on that it has not acknowledged. Those that were put off, or given up, are in
    /// other topics.
    pub unacked: u64,
    /// How far it is in each lane.
    pub positions: Vec<GroupPosition>,
}

impl GroupReport {
    /// Where its oldest message is that is not acknowledged: of the first ones of all lanes the one that has waited longest, as
    /// far as they say when they were sent; of those that don't, the one with the most behind it.
    #[must_use]
    pub fn oldest(&self) -> Option<&GroupPosition> {
        let unacked = self.positions.iter().filter(|at| at.unacked > 0);
        unacked.max_by_key(|at| (at.waited, at.unacked))
    }

    /// How long the oldest message that it has not acknowledged has been waiting; see [`GroupPosition::waited`].
    #[must_use]
    pub fn waited(&self) -> Option<Duration> {
        self.positions.iter().filter_map(|at| at.waited).max()
    }
}

/// How far a queue's group is in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupPosition {
    /// The lane's number.
    pub lane: u64,
    /// All before it is acknowledged.
    pub position: u64,
    /// The number of the first message that is not.
    pub sequence: u64,
    /// Messages from there to the lane's end.
    pub unacked: u64,
    /// How long that first message has been waiting, since it was sent: zero if there is none. `None` if the messages of the lane
    /// don't say when they were sent.
    pub waited: Option<Duration>,
    /// The cursor of the consumer that has it now.
    pub holder: Option<u64>,
    /// How often it was delivered, if somebody has it.
    pub attempts: u64,
}

/// How far a cursor is in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CursorPosition {
    /// The lane's number.
    pub lane: u64,
    /// All before it is released, as far as the reader has said; it says so from time to time, and when idle.
    pub position: u64,
    /// The number of the next message for it in the lane.
    pub sequence: u64,
    /// Messages from there to the lane's end; on a lossy topic, those of them that are still held.
    pub lag: u64,
    /// Messages that it lost, on a lossy topic.
    pub lost: u64,
    /// How long the first of those that it has not released has been waiting, since it was sent: zero if it has released all.
    /// `None` if the messages of the lane don't say when they were sent.
    pub waited: Option<Duration>,
}

/// What a process does on a topic. Made by [`TopicReport::owners`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerReport {
    /// Who it is.
    pub owner: Owner,
    /// Lanes that it writes.
    pub lanes: usize,
    /// Messages sent through them, by who had them before, too.
    pub messages: u64,
    /// Bytes of payload, and of envelopes.
    pub bytes: u64,
    /// How many of its publishers sleep until a reader has moved on.
    pub waiting: usize,
    /// Cursors that it reads with.
    pub cursors: usize,
    /// How many of its readers sleep.
    pub sleeping: usize,
    /// Messages that they have not released, all together.
    pub lag: u64,
    /// Messages that they lost, on a lossy topic.
    pub lost: u64,
}

/// A message that is still held.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seen {
    /// The number of its lane.
    pub lane: u64,
    /// Its number in that lane.
    pub sequence: u64,
    /// What goes with it, if it has an envelope.
    pub envelope: Option<Envelope>,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl TopicReport {
    pub(crate) fn look(topic: &TopicFiles, owner: impl Fn(u64) -> Result<Owner>) -> Result<Self> {
        // Listed once: there may be many data files.
        let mut names = topic.dir().names()?;
        if topic.is_observed() {
            // The others are not for us.
            names.retain(|name| name.starts_with(LANE));
        }
        let mut owners = Owners {
            find: &owner,
            known: HashMap::new(),
        };
        let (lanes, files) = look_at_lanes(topic, &names, &mut owners)?;
        let mut groups = name_groups(topic, &names)?;
        let cursors = Lanes(&lanes, &files).cursors(topic, &names, &groups, &mut owners)?;
        for (id, group) in &mut groups {
            Lanes(&lanes, &files).fill_in(topic, *id, group, &cursors)?;
        }
        let groups = groups.into_iter().map(|(_, group)| group).collect();
        let mut tables = Vec::new();
        for id in numbers_among(&names, TABLE) {
            if let Some(table) = topic.table(id)? {
                tables.push(TableReport {
                    id,
                    owner: owners.get(table.owner())?,
                    keys: table.used() as u64,
                    capacity: table.shape.keys as u64,
                });
            }
        }
        let type_name = PayloadType::from_config(&topic.config).name().to_owned();
        let (name, capacity) = (topic.name.to_string(), topic.capacity as u64);
        let durable = topic.is_logged().then(|| Durability {
            sync: SyncPolicy::from_ns(topic.config.sync_ns),
            keep: Keep::of(&topic.config),
            is_poisoned: roster::is_poisoned(&topic.control),
        });
        Ok(Self {
            name,
            pattern: topic.pattern.name(),
            type_name,
            capacity,
            durable,
            lanes,
            cursors,
            tables,
            groups,
            files,
            born: fork::generation(),
        })
    }

    /// How many publishers there are.
    #[must_use]
    pub fn publishers(&self) -> usize {
        self.lanes
            .iter()
            .filter(|lane| !lane.closed && lane.owner.alive)
            .count()
    }

    /// How many subscribers there are.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.cursors
            .iter()
            .filter(|cursor| cursor.owner.alive && !cursor.away)
            .count()
    }

    /// Messages sent through the lanes that there are.
    #[must_use]
    pub fn messages(&self) -> u64 {
        sum(self.lanes.iter().map(|lane| lane.messages))
    }

    /// Bytes of payload and of envelopes sent through the lanes that there are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        sum(self.lanes.iter().map(|lane| lane.bytes))
    }

    /// Messages that the subscriber with the most of them has not released.
    #[must_use]
    pub fn lag(&self) -> u64 {
        let lags = self.cursors.iter().map(CursorReport::lag);
        lags.max().unwrap_or(0)
    }

    /// Messages of a lossy topic that the subscribers that there are have lost, all together.
    #[must_use]
    pub fn lost(&self) -> u64 {
        sum(self.cursors.iter().map(CursorReport::lost))
    }

    /// How many subscribers sleep: they have nothing to do.
    #[must_use]
    pub fn sleepers(&self) -> usize {
        self.cursors.iter().filter(|cursor| cursor.sleeping).count()
    }

    /// How many publishers sleep until a reader has moved on: for room, or until all has been received.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.waiting).count()
    }

    /// Messages that the groups of a queue have not acknowledged; what two of them have not counts twice.
    #[must_use]
    pub fn unacked(&self) -> u64 {
        sum(self.groups.iter().map(|group| group.unacked))
    }

    /// For each who reads, how long the oldest message that it has not released, or acknowledged, has been waiting: each subscriber,
    /// those that are away, too, and each group of a queue. Who reads messages that don't say when they were sent is left out.
    pub fn waits(&self) -> impl Iterator<Item = Duration> {
        let cursors = self.cursors.iter().filter_map(CursorReport::waited);
        cursors.chain(self.groups.iter().filter_map(GroupReport::waited))
    }

    /// Who has the oldest message of a group now, if somebody has.
    #[must_use]
    pub fn holder(&self, at: &GroupPosition) -> Option<&Owner> {
        let id = at.holder?;
        let holder = self.cursors.iter().find(|cursor| cursor.id == id)?;
        Some(&holder.owner)
    }

    /// What each process does here, in the order in which they came.
    #[must_use]
    pub fn owners(&self) -> Vec<OwnerReport> {
        let mut owners = Vec::new();
        for lane in self.lanes.iter().filter(|lane| !lane.closed) {
            let of = entry(&mut owners, &lane.owner);
            of.lanes += 1;
            of.messages = of.messages.saturating_add(lane.messages);
            of.bytes = of.bytes.saturating_add(lane.bytes);
            of.waiting += usize::from(lane.waiting);
        }
        for cursor in self.cursors.iter().filter(|cursor| !cursor.away) {
            let of = entry(&mut owners, &cursor.owner);
            of.cursors += 1;
            of.sleeping += usize::from(cursor.sleeping);
            of.lag = of.lag.saturating_add(cursor.lag());
            of.lost = of.lost.saturating_add(cursor.lost());
        }
        owners
    }

    /// Lets go of the lanes. What it says stays, but [`tail`](Self::tail) and [`look_back`](Self::look_back) find nothing. While a
    /// report has them, the memory of those that are removed is not free.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.files.clear();
        self
    }

    /// The last `n` messages of each lane that are still held, oldest first; of a durable topic, up to one that is damaged. None in a
    /// forked child.
    #[must_use]
    pub fn tail(&self, n: usize) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.look_back(n, |message| seen.push(message));
        seen
    }

    /// Shows `visit` the last `n` messages of each lane that are still held, oldest first, one at a time. None in a forked child.
    pub fn look_back(&self, n: usize, visit: impl FnMut(Seen)) {
        self.look_back_in(|_| n, visit);
    }

    /// The same, of each lane as many as `n` says.
    pub fn look_back_in(&self, n: impl Fn(&LaneReport) -> usize, mut visit: impl FnMut(Seen)) {
        if self.born != fork::generation() {
            return;
        }
        for (report, lane) in self.lanes.iter().zip(&self.files) {
            let n = n(report);
            if n == 0 {
                continue;
            }
            let outside = outside(lane);
            let first = report.messages.saturating_sub(n as u64);
            let before = outside.last_before(first).or_else(|| outside.first_from(0));
            let Some(mut at) = before else {
                continue;
            };
            // No more than there is room for, whatever is said of where it ends.
            let until = at.position.saturating_add(lane.ring.reach());
            while at.position < report.position.min(until) {
                let wanted = at.sequence >= first;
                let Some((found, body)) = outside.frame(at.position, wanted) else {
                    break;
                };
                if lane.ring.is_checked() && found.word.sequence() != at.sequence as u32 {
                    break;
                }
                if wanted && found.word.is_message() {
                    let Some((envelope, payload)) = lane::parts(found.word, &body) else {
                        break;
                    };
                    visit(Seen {
                        lane: lane.id,
                        sequence: at.sequence,
                        envelope: Envelope::read(envelope),
                        payload: payload.to_vec(),
                    });
                }
                at.pass(found);
            }
        }
    }
}

/// What is kept of a lane that ends at `position`.
fn look_at_files(lane: &LaneFile, position: u64) -> Result<Option<Kept>> {
    let Some(log) = lane.ring.log() else {
        return Ok(None);
    };
    let synced = lane::synced(&lane.header, lane.id).map_or(0, |synced| synced.position);
    Ok(Some(Kept {
        files: log.numbers()?,
        oldest: lane::floor(&lane.header),
        synced,
        unsynced: position.saturating_sub(synced),
        cut: lane::cut(&lane.header).map(|(at, to)| (at, to.saturating_sub(at))),
    }))
}

fn sum(counts: impl Iterator<Item = u64>) -> u64 {
    // They come from other processes.
    counts.fold(0, u64::saturating_add)
}

/// What `owner` does, among `owners`.
fn entry<'a>(owners: &'a mut Vec<OwnerReport>, owner: &Owner) -> &'a mut OwnerReport {
    let index = owners.iter().position(|of| of.owner == *owner);
    let index = index.unwrap_or_else(|| {
        owners.push(OwnerReport {
            owner: owner.clone(),
            lanes: 0,
            messages: 0,
            bytes: 0,
            waiting: 0,
            cursors: 0,
            sleeping: 0,
            lag: 0,
            lost: 0,
        });
        owners.len() - 1
    });
    &mut owners[index]
}

/// The members, each looked up once.
struct Owners<'a> {
    find: &'a dyn Fn(u64) -> Result<Owner>,
    known: HashMap<u64, Owner>,
}

impl Owners<'_> {
    fn get(&mut self, id: u64) -> Result<Owner> {
        if let Some(owner) = self.known.get(&id) {
            return Ok(owner.clone());
        }
        let owner = (self.find)(id)?;
        self.known.insert(id, owner.clone());
        Ok(owner)
    }
}

fn look_at_lanes(
    topic: &TopicFiles,
    names: &[String],
    owners: &mut Owners<'_>,
) -> Result<(Vec<LaneReport>, Vec<LaneFile>)> {
    let mut lanes = Vec::new();
    let mut files = Vec::new();
    for id in numbers_among(names, LANE) {
        let Some(lane) = topic.lane(id)? else {
            continue;
        };
        let owner = owners.get(lane::owner(&lane.header))?;
        let outside = outside(&lane);
        let (end, newest) = outside.end_now();
        let closed = lane::is_closed(&lane.header);
        lanes.push(LaneReport {
            id,
            position: end.position,
            messages: end.sequence,
            bytes: end.bytes,
            closed,
            // Who was killed while it waited said so last.
            waiting: lane::is_waiting(&lane.header) && !closed && owner.alive,
            newest_age: newest.and_then(|position| age(outside.sent_ns(position)?)),
            kept: look_at_files(&lane, end.position)?,
            owner,
        });
        files.push(lane);
    }
    Ok((lanes, files))
}

fn outside(lane: &LaneFile) -> Outside<'_> {
    Outside {
        header: &lane.header,
        ring: &lane.ring,
    }
}

/// How long ago that was, in nanoseconds since 1970; 0 says nothing.
fn age(sent_ns: u64) -> Option<Duration> {
    // By clocks that may be set: what is sent later than now was sent now.
    let age = files::now_ns().saturating_sub(sent_ns);
    (sent_ns != 0).then(|| Duration::from_nanos(age))
}

/// The groups of a queue, with their numbers, of which nothing is known but the name.
fn name_groups(topic: &TopicFiles, names: &[String]) -> Result<Vec<(u64, GroupReport)>> {
    let mut groups = Vec::new();
    for escaped in names.iter().filter_map(|name| name.strip_prefix(GROUP)) {
        let Some((_, group)) = skip_damaged(topic.group(escaped, Access::Read))? else {
            continue;
        };
        let group = (
            group.id,
            GroupReport {
                name: unescape(escaped).unwrap_or_else(|| escaped.to_owned()),
                consumers: 0,
                sleeping: 0,
                unacked: 0,
                positions: Vec::new(),
            },
        );
        groups.push(group);
    }
    groups.sort_unstable_by(|(_, one), (_, other)| one.name.cmp(&other.name));
    Ok(groups)
}

/// The lanes of a topic, as they were found, and their files.
struct Lanes<'a>(&'a [LaneReport], &'a [LaneFile]);

impl Lanes<'_> {
    fn cursors(
        &self,
        topic: &TopicFiles,
        names: &[String],
        groups: &[(u64, GroupReport)],
        owners: &mut Owners<'_>,
    ) -> Result<Vec<CursorReport>> {
        let mut all = Vec::new();
        for id in numbers_among(names, CURSOR) {
            let cursor = topic.cursor(id, Access::Read)?;
            all.extend(cursor.map(|(_, cursor)| (None, cursor)));
        }
        let mut subscriptions: Vec<_> = names
            .iter()
            .filter_map(|name| name.strip_prefix(SUBSCRIPTION))
            .collect();
        subscriptions.sort_unstable();
        for escaped in subscriptions {
            let cursor = topic.subscription(escaped, Access::Read)?;
            let name = unescape(escaped).unwrap_or_else(|| escaped.to_owned());
            all.extend(cursor.map(|(_, cursor)| (Some(name), cursor)));
        }
        let mut cursors = Vec::new();
        for (name, cursor) in all {
            let owner = owners.get(cursor.owner())?;
            let group = groups.iter().find(|(id, _)| *id == cursor.group());
            let positions = match topic.pattern {
                Pattern::Queue => Vec::new(),
                _ => self.positions(topic, &cursor, name.is_some()),
            };
            cursors.push(CursorReport {
                id: cursor.id,
                away: cursor.is_away(),
                // As for a lane's writer.
                sleeping: cursor.is_parked() && owner.alive && !cursor.is_away(),
                lossy: topic.pattern.is_lossy() || cursor.is_lossy(),
                group: group.map(|(_, group)| group.name.clone()),
                positions,
                name,
                owner,
            });
        }
        Ok(cursors)
    }

    fn positions(
        &self,
        topic: &TopicFiles,
        cursor: &Cursor,
        is_named: bool,
    ) -> Vec<CursorPosition> {
        let Self(lanes, files) = self;
        let is_lossy = topic.pattern.is_lossy() || cursor.is_lossy();
        let mut positions = Vec::new();
        for (lane, file) in lanes.iter().zip(*files) {
            let (position, lost) = match cursor.slot_of(lane.id) {
                Some(slot) => lane::progress(&cursor.slots[slot]),
                // The lane came later, and it has not looked since: it begins at its beginning.
                None if is_named || (lane.id > cursor.id && cursor.is_joined()) => (0, 0),
                None => continue,
            };
            if position & LEFT != 0 {
                continue;
            }
            let held_from = match is_lossy || topic.is_logged() {
                true => outside(file).held_from(position),
                false => position,
            };
            let (lag, waited) = behind(lane, file, held_from);
            positions.push(CursorPosition {
                lane: lane.id,
                position,
                sequence: lane.messages.saturating_sub(lag),
                lag,
                lost,
                waited,
            });
        }
        positions
    }

    /// What there is to say of a group beside its name.
    fn fill_in(
        &self,
        topic: &TopicFiles,
        id: u64,
        group: &mut GroupReport,
        cursors: &[CursorReport],
    ) -> Result<()> {
        let consumers = cursors
            .iter()
            .filter(|cursor| cursor.group.as_ref() == Some(&group.name) && cursor.owner.alive);
        group.consumers = consumers.clone().count();
        group.sleeping = consumers.filter(|consumer| consumer.sleeping).count();
        let Self(lanes, files) = self;
        for (lane, file) in lanes.iter().zip(*files) {
            let Some(head) = topic.head(id, lane.id)? else {
                continue;
            };
            let (unacked, waited) = behind(lane, file, head.position);
            let sequence = lane.messages.saturating_sub(unacked);
            let held = head.held(sequence as u32).filter(|_| unacked > 0);
            let is_holders =
                |cursor: &&CursorReport| Some(cursor.id & Claim::OWNERS) == held.map(Claim::owner);
            group.positions.push(GroupPosition {
                lane: lane.id,
                position: head.position,
                sequence,
                unacked,
                waited,
                holder: cursors.iter().find(is_holders).map(|cursor| cursor.id),
                attempts: held.map_or(0, Claim::attempts),
            });
        }
        group.unacked = sum(group.positions.iter().map(|at| at.unacked));
        Ok(())
    }
}

/// Messages between a reader at `position` and the end of a lane, and how long the first of them has been waiting.
fn behind(lane: &LaneReport, file: &LaneFile, position: u64) -> (u64, Option<Duration>) {
    let end = Boundary {
        position: lane.position,
        sequence: lane.messages,
        bytes: lane.bytes,
    };
    let outside = outside(file);
    let waited = || outside.sent_ns(position).and_then(age);
    match outside.lag(position, end) {
        0 => (0, lane.newest_age.map(|_| Duration::ZERO)),
        lag => (lag, waited()),
    }
}
