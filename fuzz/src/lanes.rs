//! A lane whose words are anything, in a process that reads it, or writes it.

use std::convert::Infallible;

use buslane::shm::adversary::{self, truly};
use buslane::shm::bytes::Ring;
use buslane::shm::lane::{self, Boundary, Outside, Reader, Trouble, Writer};
use buslane::shm::layout::{Control, CursorHeader, EnvelopeHead, LaneHeader, PAGE, Slot, max_len};
use buslane::shm::park::{self, Watch};
use buslane::shm::roster::{self, Cursor, Listed, Lowest, Readers, Role};
use buslane::shm::segment::View;

use crate::memory::{Memory, byte, call, read, short};

/// Bytes in the ring.
pub const CAPACITY: usize = 4096;
/// The number of the lane.
pub const LANE: u64 = 7;
/// Where in a lane's header its words are.
const WORDS: (usize, usize) = (128, 1472);
/// Slots in a cursor.
const SLOTS: usize = 4;

/// A lane, a topic's control page, and two cursors.
pub struct Lane {
    pub header: Memory,
    pub ring: Memory,
    pub control: Memory,
    pub cursors: [Memory; 2],
}

impl Lane {
    pub fn new() -> Self {
        Self {
            header: Memory::new(PAGE),
            ring: Memory::new(CAPACITY),
            control: Memory::new(PAGE),
            cursors: [Memory::new(2 * PAGE), Memory::new(2 * PAGE)],
        }
    }

    /// As it is before anybody was there.
    pub fn clear(&mut self) {
        self.header.bytes[..WORDS.1].fill(0);
        self.ring.bytes.fill(0);
        self.control.bytes[..768].fill(0);
        for cursor in &mut self.cursors {
            cursor.bytes[..512].fill(0);
            cursor.bytes[PAGE..PAGE + SLOTS * size_of::<Slot>()].fill(0);
        }
    }

    pub fn header(&self) -> View<LaneHeader> {
        self.header.map.view(0)
    }

    pub fn ring(&self) -> Ring {
        Ring::new(&self.ring.map, CAPACITY)
    }

    pub fn control(&self) -> View<Control> {
        self.control.map.view(0)
    }

    pub fn cursor(&self, index: usize) -> Cursor {
        let map = &self.cursors[index].map;
        Cursor {
            id: index as u64 + 1,
            role: [Role::Subscriber, Role::Group][index],
            header: map.view::<CursorHeader>(0),
            slots: map.views(PAGE, SLOTS),
        }
    }

    /// What an honest writer leaves that waits for nobody: of so many messages as the tape says.
    pub fn write_honestly(&mut self) {
        let lens: Vec<u8> = (0..byte() % 64).map(|_| byte()).collect();
        // So that positions are not always small ones.
        let origin = match byte() % 4 {
            0 => 0,
            shift => 1 << (16 * shift - 4),
        };
        truly(|| {
            let mut writer = Writer::create(self.header(), self.ring(), origin);
            for len in lens {
                let Some(at) = claim(&mut writer, 8 * usize::from(len), |_| Lowest::nobody())
                else {
                    continue;
                };
                let len = 8 * usize::from(len);
                match len >= EnvelopeHead::SIZE && len % 16 == 0 {
                    true => {
                        writer.write_head(at, &EnvelopeHead::new(1, 0));
                        writer.commit_with_envelope(len);
                    }
                    false => {
                        writer.write(at, &[len as u8; 2048][..len]);
                        writer.commit(len);
                    }
                }
            }
            lane::own(writer.header(), 1, 0, false);
        });
    }

    /// What the tape says that is there, before anyone looks.
    pub fn prepare(&mut self) {
        self.clear();
        match byte() % 4 {
            0 => self.ring.fill((0, CAPACITY)),
            _ => self.write_honestly(),
        }
        self.scribble();
    }

    /// Some words are others now.
    pub fn scribble(&mut self) {
        self.header.scribble(WORDS);
        self.ring.scribble((0, CAPACITY));
    }

    /// The same of those of readers.
    pub fn scribble_readers(&mut self) {
        self.control.scribble((0, 768));
        for cursor in &mut self.cursors {
            cursor.scribble((0, 512));
            cursor.scribble((PAGE, PAGE + SLOTS * size_of::<Slot>()));
        }
    }
}

fn claim(
    writer: &mut Writer,
    len: usize,
    mut survey: impl FnMut(Option<u64>) -> Lowest,
) -> Option<u64> {
    let full = match writer.claim(len) {
        Ok(at) => return Some(at),
        Err(full) => full,
    };
    writer.publish();
    let Ok(_) = writer.extend::<Infallible>(full.end, |unjoined| Ok(survey(unjoined)));
    writer.claim(len).ok()
}

/// A reader of whatever kind, joined as subscribers join.
fn join(lane: &Lane) -> Option<Reader> {
    let (control, cursor) = (lane.control(), lane.cursor(0));
    let (header, ring) = (lane.header(), lane.ring());
    let index = cursor
        .take_slot(|index| if index < SLOTS { Ok(()) } else { Err(()) })
        .ok()?;
    let slot = &cursor.slots[index];
    let outside = Outside {
        header: &header,
        ring: &ring,
    };
    let capacity = CAPACITY as u64;
    let kind = byte();
    let back = [0, 1, 3, u64::MAX][usize::from(byte() % 4)];
    let at = call(|| match kind % 5 {
        0 => roster::join(&control, &header, capacity, LANE, slot, |_| None)
            .and_then(|(mark, limit)| lane::walk(&ring, mark, limit, |_| {}))
            .map(Boundary::without_count),
        1 => {
            let oldest = |from| Some(outside.first_from(from)?.position);
            roster::join(&control, &header, capacity, LANE, slot, oldest)
                .and_then(|(from, _)| outside.start(back, from))
        }
        2 => {
            roster::join_from_start(&control, &header, capacity, LANE, slot);
            Ok(Boundary::default())
        }
        3 => outside.start(back, 0),
        _ => Ok(Boundary::default()),
    });
    let Ok(at) = at else {
        lane::leave(slot);
        return None;
    };
    let slots = cursor.slots.clone();
    let fences = kind & 0x40 != 0;
    let mut reader = if kind % 5 >= 3 {
        roster::enter(&control, LANE, slot, at.position);
        Reader::copying(header, ring, slots, index, at, fences)
    } else {
        Reader::gating(header, ring, slots, index, at.position, fences)
    };
    reader.track().publish();
    Some(reader)
}

/// Receives all that is there, as far as it goes on. `false`: as a subscriber, it has given the lane up.
fn receive(reader: &mut Reader, how: u8) -> bool {
    let found = match call(|| reader.next()) {
        Ok(Some(found)) => found,
        Ok(None) => {
            reader.track().settle();
            return true;
        }
        Err(Trouble::Missed(_)) => {
            reader.resume();
            return true;
        }
        Err(Trouble::Corrupt(_)) => return false,
    };
    if how & 1 == 0 {
        let Some((envelope, payload)) = reader.parts(found) else {
            return false;
        };
        read(envelope);
        read(payload);
        reader.track().release(found.end(), 0);
        return true;
    }
    let until = reader.turn(u64::from(how) * 64);
    let len = (how & 2 != 0).then_some(found.word.len());
    let is_meant = |reader: &Reader, found| reader.parts(found).is_some();
    let row = call(|| reader.row(found, (usize::from(how), until), len, is_meant));
    reader.payloads(&row).for_each(|payload| {
        read(payload);
    });
    let mut position = row.first.position;
    for _ in 0..row.messages {
        position = match call(|| reader.read_in_row(position, len)) {
            Some((payload, end)) => {
                read(payload);
                end
            }
            None => {
                let found = match position == row.first.position {
                    true => Some(row.first),
                    false => reader.ahead(position).ok().flatten(),
                };
                let Some(found) = found else { break };
                if let Some((_, payload)) = reader.parts(found) {
                    read(payload);
                }
                found.end()
            }
        };
    }
    reader.track().release_row(row.end, row.messages);
    true
}

/// All that is asked from outside.
fn look(lane: &Lane, position: u64) {
    let (header, ring) = (lane.header(), lane.ring());
    let outside = Outside {
        header: &header,
        ring: &ring,
    };
    let (end, newest) = call(|| outside.end_now());
    call(|| newest.map(|position| outside.sent_ns(position)));
    call(|| outside.at_floor());
    call(|| outside.lag(outside.held_from(position), end));
    call(|| lane::tail(&header, &ring)).ok();
    let _ = (
        lane::is_closed(&header),
        lane::cut(&header),
        lane::name(&header),
    );
    let _ = (
        lane::synced(&header, LANE),
        lane::is_waiting(&header),
        lane::owner(&header),
    );
    call(|| {
        // As a report looks back.
        let first = end.sequence.saturating_sub(3);
        let before = outside.last_before(first).or_else(|| outside.first_from(0));
        let Some(at) = before else { return };
        if let Some((found, body)) = outside.frame(at.position, true)
            && let Some((envelope, payload)) = lane::parts(found.word, &body)
        {
            read(envelope);
            read(payload);
        }
    });
}

/// A reader of a lane that lies to it.
pub fn read_lane(lane: &mut Lane) {
    lane.prepare();
    let Some(mut reader) = join(lane) else { return };
    while let Some(op) = adversary::byte() {
        match op % 8 {
            0..3 => {
                if !receive(&mut reader, op >> 3) {
                    break;
                }
            }
            3 => {
                let until = reader.turn(16 * u64::from(op));
                for _ in 0..8 {
                    let Ok(unread) = reader.plain(until, None) else {
                        break;
                    };
                    let (payload, track) = reader.read(unread);
                    read(payload);
                    track.release(unread.end, until);
                }
            }
            4 => {
                reader.track().refresh();
                reader.track().settle();
                let _ = (reader.is_closed(), reader.take_passed());
            }
            5 => look(lane, reader.position()),
            6 => lane.scribble(),
            _ => reader.track().acknowledge(),
        }
    }
    call(|| lane::leave(&lane.cursor(0).slots[0]));
}

/// The writer of a lane whose readers, and whose own words, lie to it.
pub fn write_lane(lane: &mut Lane) {
    lane.prepare();
    lane.scribble_readers();
    let mut writer = match byte() % 4 {
        0 => Writer::create(lane.header(), lane.ring(), 0),
        _ => match call(|| Writer::adopt(lane.header(), lane.ring())) {
            Ok(writer) => writer,
            Err(_) => return,
        },
    };
    let control = lane.control();
    let (mut readers, mut watch) = (Readers::default(), Watch::default());
    let most = max_len(CAPACITY as u64) as usize;
    let mut is_listed = false;
    let payload = [0x5a; CAPACITY];
    while let Some(op) = adversary::byte() {
        let len = match op & 8 {
            0 => usize::from(byte()),
            _ => usize::from(short()) % (most + 1),
        };
        let refresh = |readers: &mut Readers, is_listed: &mut bool| {
            let list = |_: &[u64]| {
                let new = match std::mem::replace(is_listed, true) {
                    true => Vec::new(),
                    false => vec![lane.cursor(0), lane.cursor(1)],
                };
                let gone = Vec::new();
                Ok::<_, Infallible>(Listed { gone, new })
            };
            let Ok(()) = readers.refresh(&control, LANE, list);
        };
        match op & 7 {
            0 => {
                if !writer.put(&payload[..len]) {
                    writer.put_unprepared(&payload[..len]);
                }
            }
            1 | 2 => call(|| {
                let survey = |unjoined| {
                    refresh(&mut readers, &mut is_listed);
                    readers.lowest(LANE, unjoined)
                };
                if let Some(at) = claim(&mut writer, len, survey) {
                    writer.write(at, &payload[..len]);
                    writer.commit(len);
                }
            }),
            3 => {
                writer.publish();
                if let Ok(at) = writer.claim(len) {
                    writer.open_loan(len);
                    writer.loan(at, len).fill(0xff);
                    match op & 0x30 {
                        0x10 => writer.abort(),
                        0x20 => {}
                        _ => writer.commit(len / 2),
                    }
                }
            }
            4 => {
                let rows = [[0x5a_u8; 24]; 40];
                if !writer.put_in_run(&payload[..len]) {
                    writer.publish();
                }
                writer.put_row(&rows[..usize::from(op >> 4)]);
                writer.publish();
            }
            5 => call(|| {
                writer.publish();
                if watch.disturbed(&control) {
                    refresh(&mut readers, &mut is_listed);
                    watch.fence_fully(readers.fences());
                    writer.expect_singly(readers.any_singly());
                }
                let _ = (
                    readers.any_parked(),
                    readers.count(),
                    readers.any_takes(1, 3),
                );
                let lowest = readers.lowest_of_all(LANE, writer.unjoined());
                let want = writer.wanted(writer.visible() + len as u64, lowest.position);
                let ticket = park::arm_room(&control, writer.header(), want, || {
                    Ok::<_, Infallible>(Some(lowest))
                });
                let Ok(ticket) = ticket;
                let _ = ticket.map(|ticket| ticket.is_due());
                park::disarm_room(writer.header());
            }),
            6 => {
                let Ok(_) =
                    call(|| Ok::<_, Infallible>(park::arm(&control, &lane.cursor(1).header)));
                let _ = roster::endings(&control);
            }
            _ => {
                // Its own readers, too, meet what it has written.
                call(|| lane::tail(writer.header(), writer.files())).ok();
            }
        }
    }
    lane::close(writer.header());
}
