//! A state's table, and a group's claims, whose words are anything.

use buslane::shm::adversary;
use buslane::shm::claims::{self, Claims, Progress, Walk};
use buslane::shm::layout::{Claim, ClaimsHeader, Fate, PAGE, claims_of};
use buslane::shm::roster;
use buslane::shm::table::{self, Shape, Table, Value, hash};

use crate::lanes::{CAPACITY, Lane};
use crate::memory::{Memory, byte, call, read};

/// How large the table is.
const SHAPE: Shape = Shape {
    keys: 8,
    max_key: 12,
    max_value: 40,
};

/// A state's table.
pub struct State(Memory);

impl State {
    pub fn new() -> Self {
        Self(Memory::new(SHAPE.file_size().next_multiple_of(PAGE)))
    }

    fn table(&self) -> Table {
        let (map, slots) = (&self.0.map, PAGE + 8 * SHAPE.index_words());
        Table {
            shape: SHAPE,
            header: map.view(0),
            index: map.views(PAGE, SHAPE.index_words()),
            slots: map.views(slots, SHAPE.slots_words()),
        }
    }
}

fn key() -> [u8; 2] {
    [byte() % 16, 0]
}

/// Its readers, and its writer.
pub fn table(state: &mut State) {
    state.0.bytes.fill(0);
    let (index, slots) = (PAGE, PAGE + 8 * SHAPE.index_words());
    match byte() % 4 {
        0 => state.0.fill((index, slots)),
        1 => state.0.fill((slots, SHAPE.file_size())),
        _ => {}
    }
    let Some(mut writer) = call(|| table::Writer::own(state.table(), 1)) else {
        return;
    };
    let (mut value, mut name) = (Value::default(), Vec::new());
    while let Some(op) = adversary::byte() {
        let table = state.table();
        let len = usize::from(byte() % 48);
        match op % 6 {
            0 | 1 => call(|| writer.set(&key(), &[op; 48][..len], u64::from(op))).map_or((), drop),
            2 => {
                let key = key();
                if let Some(slot) = call(|| table.find(&key, hash(&key)))
                    && call(|| table.copy(slot, &mut value)).is_ok()
                {
                    assert!(value.len <= SHAPE.max_value);
                    assert!(value.words.len() * 8 >= value.len);
                }
            }
            3 => {
                for slot in 0..call(|| table.used()) {
                    if call(|| table.key(slot, &mut name)).is_ok() {
                        assert!(name.len() <= SHAPE.max_key);
                        call(|| table.find(&name, hash(&name)));
                    }
                    call(|| table.copy(slot, &mut value)).ok();
                    table.version(slot);
                }
            }
            4 => {
                state.0.scribble((128, 384));
                state.0.scribble((index, slots));
                state.0.scribble((slots, SHAPE.file_size()));
            }
            _ => match call(|| table::Writer::own(state.table(), 2)) {
                Some(next) => writer = next,
                None => return,
            },
        }
    }
}

/// A lane, and a group's claims on it.
pub struct Queue {
    lane: Lane,
    claims: Memory,
}

impl Queue {
    pub fn new() -> Self {
        let len = 2 * PAGE + 8 * claims_of(CAPACITY as u64);
        let claims = Memory::new(len.next_multiple_of(PAGE));
        Self {
            lane: Lane::new(),
            claims,
        }
    }

    fn claims(&self) -> Claims {
        let map = &self.claims.map;
        Claims {
            lane: self.lane.header(),
            ring: self.lane.ring(),
            slots: map.views(PAGE + std::mem::offset_of!(ClaimsHeader, head), 1),
            again: map.view(PAGE + std::mem::offset_of!(ClaimsHeader, again)),
            blocked: map.view(PAGE + std::mem::offset_of!(ClaimsHeader, blocked)),
            table: map.views(2 * PAGE, claims_of(CAPACITY as u64)),
            fences: false,
        }
    }
}

/// What a consumer holds.
type Held = Vec<(buslane::shm::lane::Found, Claim)>;

/// Consumers of a group, who puts one away, and the lane's writer, who cancels.
pub fn consume(queue: &mut Queue) {
    queue.lane.prepare();
    queue.claims.bytes.fill(0);
    match byte() % 4 {
        0 => queue.claims.fill((2 * PAGE, queue.claims.bytes.len())),
        1 => queue.claims.set(PAGE + 8, queue.lane.header.get(512)),
        _ => {}
    }
    let (claims, control) = (queue.claims(), queue.lane.control());
    call(|| claims.repair(&control));
    let mut walk = call(|| Walk::new(claims.clone()));
    let mut held = Held::new();
    while let Some(op) = adversary::byte() {
        match op % 16 {
            0..4 => {
                let offer = match call(|| walk.find()) {
                    Ok(Some(offer)) => offer,
                    Ok(None) => continue,
                    Err(_) => break,
                };
                if op & 0x10 != 0 {
                    // As who takes only some kinds.
                    if offer.found.word.len() > 8 {
                        walk.peek(offer, 0);
                    }
                    walk.pass(offer.found);
                } else if let Some(claim) = call(|| walk.take(offer, 3)) {
                    let len = offer.found.word.len() as usize;
                    read(claims.ring.place(offer.found.position, len).payload());
                    let mut copy = Vec::new();
                    claims.ring.copy_out(offer.found.body(), len, &mut copy);
                    held.push((offer.found, claim));
                }
            }
            4..8 => {
                let Some((found, claim)) = held.pop() else {
                    continue;
                };
                let len = found.word.len() as usize;
                call(|| claims.holds(claim));
                read(claims.ring.place(found.position, len).payload());
                match op >> 4 {
                    0 => call(|| claims.end(claim, Fate::Died)),
                    1 => call(|| claims.free(claim)),
                    2 => call(|| claims.begin_once(claim)).is_some(),
                    3 => call(|| {
                        claims
                            .begin_move(claim)
                            .is_some_and(|moving| claims.end_move(moving))
                    }),
                    4 => call(|| {
                        claims
                            .begin_move(claim)
                            .map(|moving| claims.give_up_move(moving));
                        true
                    }),
                    5 => call(|| claims.take_away(claim)),
                    _ => call(|| claims.ack(claim)),
                };
                call(|| claims.advance());
                call(|| claims.tell_blocked(&control));
            }
            8 => {
                if call(|| claims.free_all_of(u64::from(op >> 4))) {
                    call(|| claims.offer(&control));
                }
                call(|| claims.repair(&control));
            }
            9 => call(|| claims.cancel(u32::from(byte()), &control)),
            10 => {
                let progress = call(|| claims.progress(u32::from(byte())));
                assert!(
                    !matches!(progress, Progress::Waits { attempts } if attempts > Claim::MAX_ATTEMPTS)
                );
            }
            11 => {
                let ring = &claims.ring;
                let mut words = Vec::new();
                call(|| {
                    claims.has_unacked(|found| {
                        let len = 64.min(found.word.len() as usize);
                        ring.copy_out(found.body(), len, &mut words);
                        words.first() == Some(&7)
                    })
                });
            }
            12 => {
                call(|| claims.is_empty());
                claims::has_waited(&claims.lane, &claims.ring);
                assert!(call(|| claims.with_fate(Fate::Moving).count()) <= claims.table.len());
            }
            13 => {
                let queue = &mut *queue;
                queue.claims.scribble((PAGE, PAGE + 384));
                queue.claims.scribble((2 * PAGE, queue.claims.bytes.len()));
            }
            14 => queue.lane.scribble(),
            _ => roster::changed(&control),
        }
    }
}
