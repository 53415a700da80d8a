//! Looking at a topic from outside: nobody is gated, slowed down, or waited for.

use std::collections::HashMap;

use crate::bus::unescape;
use crate::durable::{Keep, SyncPolicy};
use crate::envelope::Envelope;
use crate::error::Result;
use crate::message::PayloadType;
use crate::shm::files::{Dir, skip_damaged};
use crate::shm::fork;
use crate::shm::lane::{self, Boundary, Outside};
use crate::shm::layout::{LEFT, Pattern};
use crate::shm::log;
use crate::shm::members::{self, Owner};
use crate::shm::roster;
use crate::shm::segment::Access;
use crate::shm::topic::{CURSOR, LANE, LaneFile, TABLE, TopicFiles};

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
    /// How many bytes of payload.
    pub bytes: u64,
    /// Whether its publisher has left.
    pub closed: bool,
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
    /// Whether the reader sleeps.
    pub sleeping: bool,
    /// How far it is in each lane that it has joined.
    pub positions: Vec<CursorPosition>,
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
    /// Messages in all lanes from the first one on that it has not acknowledged. Those that were put off, or given up, are in
    /// other topics.
    pub unacked: u64,
}

/// How far a cursor is in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CursorPosition {
    /// The lane's number.
    pub lane: u64,
    /// All before it is released, as far as the reader has said; it says so from time to time, and when idle.
    pub position: u64,
    /// Messages from there to the lane's end; on a lossy topic, those of them that are still held.
    pub lag: u64,
    /// Messages that it lost, on a lossy topic.
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
    pub(crate) fn look(topic: &TopicFiles, members: &Dir) -> Result<Self> {
        let mut lanes = Vec::new();
        let mut files = Vec::new();
        for id in topic.dir().numbers(LANE)? {
            let Some(lane) = topic.lane(id)? else {
                continue;
            };
            let owner = members::owner(members, lane::owner(&lane.header))?;
            let Boundary {
                position,
                sequence,
                bytes,
            } = end(&lane);
            let closed = lane::is_closed(&lane.header);
            let kept = look_at_files(&lane, position)?;
            lanes.push(LaneReport {
                id,
                owner,
                position,
                messages: sequence,
                bytes,
                closed,
                kept,
            });
            files.push(lane);
        }
        let mut all = Vec::new();
        for id in topic.dir().numbers(CURSOR)? {
            all.extend(
                topic
                    .cursor(id, Access::Read)?
                    .map(|(_, cursor)| (None, cursor)),
            );
        }
        for escaped in topic.subscription_names()? {
            let cursor = topic.subscription(&escaped, Access::Read)?;
            let name = unescape(&escaped).unwrap_or(escaped);
            all.extend(cursor.map(|(_, cursor)| (Some(name), cursor)));
        }
        let mut cursors = Vec::new();
        for (name, cursor) in all {
            let owner = members::owner(members, cursor.owner())?;
            let mut positions = Vec::new();
            for (lane, file) in lanes.iter().zip(&files) {
                let (position, lost) = match cursor.slot_of(lane.id) {
                    Some(slot) => lane::progress(&cursor.slots[slot]),
                    // The lane came while it was away: it begins at its beginning.
                    None if name.is_some() => (0, 0),
                    None => continue,
                };
                if position & LEFT != 0 {
                    continue;
                }
                let (position_end, sequence, bytes) = (lane.position, lane.messages, lane.bytes);
                let outside = Outside {
                    header: &file.header,
                    ring: &file.ring,
                };
                let held_from = match topic.pattern == Pattern::Lossy || topic.is_logged() {
                    true => outside.held_from(position),
                    false => position,
                };
                let lag = outside.lag(
                    held_from,
                    Boundary {
                        position: position_end,
                        sequence,
                        bytes,
                    },
                );
                positions.push(CursorPosition {
                    lane: lane.id,
                    position,
                    lag,
                    lost,
                });
            }
            cursors.push(CursorReport {
                id: cursor.id,
                name,
                owner,
                away: cursor.is_away(),
                sleeping: cursor.is_parked(),
                positions,
            });
        }
        let groups = look_at_groups(topic, &lanes, &files)?;
        let mut tables = Vec::new();
        for id in topic.dir().numbers(TABLE)? {
            if let Some(table) = topic.table(id)? {
                tables.push(TableReport {
                    id,
                    owner: members::owner(members, table.owner())?,
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
        self.lanes
            .iter()
            .map(|lane| lane.messages)
            .fold(0, u64::saturating_add)
    }

    /// Payload bytes sent through the lanes that there are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lanes
            .iter()
            .map(|lane| lane.bytes)
            .fold(0, u64::saturating_add)
    }

    /// Messages that the subscriber with the most of them has not released.
    #[must_use]
    pub fn lag(&self) -> u64 {
        let lags = self
            .cursors
            .iter()
            .map(|cursor| cursor.positions.iter().map(|position| position.lag).sum());
        lags.max().unwrap_or(0)
    }

    /// Messages of a lossy topic that the subscribers that there are have lost, all together.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let positions = self.cursors.iter().flat_map(|cursor| &cursor.positions);
        positions
            .map(|position| position.lost)
            .fold(0, u64::saturating_add)
    }

    /// The last `n` messages of each lane that are still held, oldest first. None in a forked child.
    #[must_use]
    pub fn tail(&self, n: usize) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.look_back(n, |message| seen.push(message));
        seen
    }

    /// Shows `visit` the last `n` messages of each lane that are still held, oldest first, one at a time. None in a forked child.
    pub fn look_back(&self, n: usize, mut visit: impl FnMut(Seen)) {
        if self.born != fork::generation() {
            return;
        }
        for (report, lane) in self.lanes.iter().zip(&self.files) {
            let outside = Outside {
                header: &lane.header,
                ring: &lane.ring,
            };
            let Some(mut at) = outside.first_from(0) else {
                continue;
            };
            let first = report.messages.saturating_sub(n as u64);
            while at.position < report.position {
                let wanted = at.sequence >= first;
                let Some((found, body)) = outside.frame(at.position, wanted) else {
                    break;
                };
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

fn look_at_groups(
    topic: &TopicFiles,
    lanes: &[LaneReport],
    files: &[LaneFile],
) -> Result<Vec<GroupReport>> {
    let mut unacked = HashMap::<u64, u64>::new();
    for (lane, file) in lanes.iter().zip(files) {
        let outside = Outside {
            header: &file.header,
            ring: &file.ring,
        };
        let end = Boundary {
            position: lane.position,
            sequence: lane.messages,
            bytes: lane.bytes,
        };
        for (group, head) in topic.heads(lane.id)? {
            *unacked.entry(group).or_default() += outside.lag(head, end);
        }
    }
    let mut groups = Vec::new();
    for escaped in topic.group_names()? {
        let Some((_, group)) = skip_damaged(topic.group(&escaped, Access::Read))? else {
            continue;
        };
        groups.push(GroupReport {
            name: unescape(&escaped).unwrap_or(escaped),
            consumers: topic.count_consumers(group.id)?,
            unacked: unacked.get(&group.id).copied().unwrap_or(0),
        });
    }
    Ok(groups)
}

/// The end of a lane that may be written meanwhile: at most a ring's worth is walked.
fn end(lane: &LaneFile) -> Boundary {
    let outside = Outside {
        header: &lane.header,
        ring: &lane.ring,
    };
    let Some((_, mut at)) = outside.newest() else {
        return Boundary {
            position: 0,
            sequence: 0,
            bytes: 0,
        };
    };
    let until = at.position.saturating_add(lane.ring.reach());
    while at.position < until
        && let Some((found, _)) = outside.frame(at.position, false)
    {
        at.pass(found);
    }
    at
}
