//! The lane against a queue, with random operations: sizes, capacities, wraps, loans, batches, adoption, positions
//! around 2^32 and 2^63, and garbage in all memory that the invariant does not speak of.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use proptest::prelude::*;

use super::bytes::Ring;
use super::lane::{Boundary, Found, Full, Outside, Reader, Trouble, Writer};
use super::layout::{Control, LaneHeader, PAGE, SLOT, Slot, max_len};
use super::park::Watch;
use super::roster::{self, Cursor, Listed, Lowest, Readers, Role};
use super::segment::{Access, Mapping};

#[derive(Clone, Debug)]
enum Step {
    /// Sends by claim, write and commit.
    Send(usize),
    /// Sends so many of one length, each if it is not too long and has room without a look at the reader.
    Put(usize, usize),
    /// Opens a loan, fills all of it, and commits so much of it; `None` drops it.
    Loan(usize, Option<usize>),
    /// Opens a loan and forgets it.
    Leak(usize),
    /// Stages all, then publishes.
    Batch(Vec<usize>),
    /// The same of so many of one length: 8 bytes, or 20.
    Row(usize, bool),
    /// Receives up to so many.
    Receive(usize),
    /// The same at once, perhaps only those that are as long as the first one.
    ReceiveRow(usize, bool),
    /// The writer dies and another one adopts the lane.
    Adopt,
}

fn sizes(capacity: usize) -> impl Strategy<Value = usize> {
    let max = max_len(capacity as u64) as usize;
    prop_oneof![4 => 0..=64_usize, 2 => 0..=max, 1 => Just(max), 1 => (max - 40)..=max]
}

fn steps(capacity: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => sizes(capacity).prop_map(Step::Send),
        4 => (prop_oneof![4 => sizes(capacity), 1 => 0..=2 * capacity], 1..=16_usize)
            .prop_map(|(len, count)| Step::Put(len, count)),
        2 => (sizes(capacity), prop::option::of(0.0..=1.0_f64))
            .prop_map(|(len, part)| Step::Loan(len, part.map(|part| (len as f64 * part) as usize))),
        1 => sizes(capacity).prop_map(Step::Leak),
        2 => prop::collection::vec(prop_oneof![4 => 0..=100_usize, 1 => sizes(capacity)], 0..8).prop_map(Step::Batch),
        2 => (prop_oneof![0..=20_usize, 0..=300_usize], any::<bool>()).prop_map(|(count, words)| Step::Row(count, words)),
        6 => (1..=8_usize).prop_map(Step::Receive),
        3 => (prop_oneof![1..=20_usize, 1..=300_usize], any::<bool>()).prop_map(|(count, alike)| Step::ReceiveRow(count, alike)),
        1 => Just(Step::Adopt),
    ];
    prop::collection::vec(step, 1..200)
}

/// A lane and a cursor in memory that is shared with nobody.
struct Rig {
    lane: Arc<Mapping>,
    ring: Arc<Mapping>,
    control: Arc<Mapping>,
    cursor: Cursor,
    capacity: usize,
}

fn mapping(len: usize, garbage: bool) -> Arc<Mapping> {
    let file = tempfile::tempfile().unwrap();
    let byte = if garbage { 0xa5 } else { 0 };
    std::io::Write::write_all(&mut &file, &vec![byte; len]).unwrap();
    Mapping::new(&file, 0, len, Access::Write).unwrap()
}

impl Rig {
    fn new(capacity: usize) -> Self {
        let header = mapping(PAGE, false);
        let slots = mapping(PAGE, false);
        let cursor = Cursor {
            id: 1,
            role: Role::Subscriber,
            header: header.view(0),
            slots: slots.views::<Slot>(0, 4),
        };
        Self {
            lane: mapping(PAGE, true),
            ring: mapping(capacity, true),
            control: mapping(PAGE, false),
            cursor,
            capacity,
        }
    }

    fn ring(&self) -> Ring {
        Ring::new(&self.ring, self.capacity)
    }

    fn readers(&self) -> Readers {
        let mut readers = Readers::default();
        let control = self.control.view::<Control>(0);
        let listed = Listed {
            gone: Vec::new(),
            new: vec![self.cursor.clone()],
        };
        readers
            .refresh::<Infallible>(&control, 1, |_| Ok(listed))
            .unwrap();
        readers
    }
}

fn payload(sequence: u64, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (sequence as u8).wrapping_mul(31).wrapping_add(i as u8))
        .collect()
}

/// Claims, making room as far as the reader allows; `None`: it has no say.
fn claim(writer: &mut Writer, readers: &mut Option<Readers>, len: usize) -> Result<u64, Full> {
    writer.claim(len).or_else(|full| {
        writer.publish();
        writer
            .extend::<Infallible>(full.end, |unjoined| {
                Ok(match readers {
                    Some(readers) => readers.lowest(1, unjoined),
                    None => Lowest::nobody(),
                })
            })
            .unwrap();
        writer.claim(len)
    })
}

/// So many of them, each of `N` bytes.
fn values<const N: usize>(first: u64, count: usize) -> Vec<[u8; N]> {
    (first..first + count as u64)
        .map(|sequence| payload(sequence, N).try_into().unwrap())
        .collect()
}

/// The next message; what was missed before it is what is taken from `expected`.
fn next(reader: &mut Reader, expected: &mut VecDeque<(u64, usize)>) -> Option<Found> {
    loop {
        match reader.next() {
            Ok(found) => return found,
            Err(Trouble::Corrupt(corrupt)) => panic!("{corrupt:?}"),
            Err(Trouble::Missed(missed)) => {
                let bytes: usize = expected
                    .drain(..missed.messages as usize)
                    .map(|(_, len)| len)
                    .sum();
                assert_eq!(bytes as u64, missed.bytes);
                reader.resume();
            }
        }
    }
}

fn run(capacity: usize, origin: u64, lossy: bool, steps: &[Step]) {
    let rig = Rig::new(capacity);
    let mut writer = Writer::create(rig.lane.view(0), rig.ring(), origin);
    let control = rig.control.view::<Control>(0);
    rig.cursor.take_slot::<Infallible>(|_| Ok(())).unwrap();
    let (mark, _) = roster::join(
        &control,
        writer.header(),
        capacity as u64,
        1,
        &rig.cursor.slots[0],
        |_| None,
    )
    .unwrap();
    assert_eq!(mark, origin);
    let (header, slots) = (rig.lane.view(0), rig.cursor.slots.clone());
    let mut reader = if lossy {
        let at = Boundary::without_count(origin);
        Reader::copying(header, rig.ring(), slots, 0, at, false)
    } else {
        Reader::gating(header, rig.ring(), slots, 0, origin, false)
    };
    let mut readers = (!lossy).then(|| rig.readers());
    let mut expected = VecDeque::new();
    let mut total = Boundary::default();
    let mut sent = |expected: &mut VecDeque<(u64, usize)>, len: usize| {
        expected.push_back((total.sequence, len));
        total.sequence += 1;
        total.bytes += len as u64;
        total
    };
    let mut next = 0;
    for step in steps {
        match *step {
            Step::Put(len, count) => {
                for _ in 0..count {
                    let payload = payload(next, len);
                    let is_meant = len as u64 <= max_len(capacity as u64);
                    let is_put = writer.put(&payload);
                    assert!(is_meant || !is_put, "{len} bytes are too long");
                    if is_put || is_meant && writer.put_unprepared(&payload) {
                        next = sent(&mut expected, len).sequence;
                    }
                }
            }
            Step::Send(len) => match claim(&mut writer, &mut readers, len) {
                Ok(at) => {
                    writer.write(at, &payload(next, len));
                    writer.commit(len);
                    next = sent(&mut expected, len).sequence;
                }
                Err(_) => assert!(
                    !lossy && !expected.is_empty(),
                    "an empty ring has room for {len}"
                ),
            },
            Step::Loan(len, commit) => {
                if let Ok(at) = claim(&mut writer, &mut readers, len) {
                    writer.open_loan(len);
                    writer.loan(at, len).fill(0xff);
                    match commit {
                        Some(part) => {
                            writer.loan(at, len)[..part].copy_from_slice(&payload(next, part));
                            writer.commit(part);
                            next = sent(&mut expected, part).sequence;
                        }
                        None => writer.abort(),
                    }
                }
            }
            Step::Leak(len) => {
                if let Ok(at) = claim(&mut writer, &mut readers, len) {
                    writer.open_loan(len);
                    writer.loan(at, len).fill(0xff);
                }
            }
            Step::Batch(ref lens) => {
                for &len in lens {
                    if writer.put_in_run(&payload(next, len)) {
                        next = sent(&mut expected, len).sequence;
                        continue;
                    }
                    writer.publish();
                    if let Ok(at) = claim(&mut writer, &mut readers, len) {
                        writer.write(at, &payload(next, len));
                        writer.commit(len);
                        next = sent(&mut expected, len).sequence;
                    }
                }
                writer.publish();
            }
            Step::Row(count, words) => {
                let len = if words { 8 } else { 20 };
                let mut left = count;
                while left > 0 {
                    let put = match words {
                        true => writer.put_row(&values::<8>(next, left)),
                        false => writer.put_row(&values::<20>(next, left)),
                    };
                    for _ in 0..put {
                        next = sent(&mut expected, len).sequence;
                    }
                    left -= put;
                    if left == 0 {
                        break;
                    }
                    writer.publish();
                    let Ok(at) = claim(&mut writer, &mut readers, len) else {
                        break;
                    };
                    writer.write(at, &payload(next, len));
                    writer.commit(len);
                    next = sent(&mut expected, len).sequence;
                    left -= 1;
                }
                writer.publish();
            }
            Step::ReceiveRow(max, alike) => {
                let found = self::next(&mut reader, &mut expected);
                assert_eq!(found.is_some(), !expected.is_empty());
                let Some(found) = found else { continue };
                let alike = alike.then_some(found.word.len());
                let until = reader.position() + capacity as u64 / 4;
                let row = reader.row(found, (max, until), alike, |_, _| false);
                let (mut payloads, mut position) = (reader.payloads(&row), row.first.position);
                for nth in 0..row.messages {
                    let (sequence, len) = expected.pop_front().unwrap();
                    let read = match (payloads.next(), reader.read_in_row(position, alike)) {
                        (Some(read), _) => read,
                        (None, Some((read, end))) => {
                            position = end;
                            read
                        }
                        (None, None) => {
                            assert!(lossy && nth == 0, "only what is copied is not in the ring");
                            reader.parts(found).unwrap().1
                        }
                    };
                    assert_eq!(read, payload(sequence, len));
                }
                assert!(row.is_last <= expected.is_empty(), "the rest is there");
                reader.track().release_row(row.end, row.messages);
            }
            Step::Receive(count) => {
                for _ in 0..count {
                    let until = reader.turn(capacity as u64);
                    if let Ok(unread) = reader.plain(until, None) {
                        let (sequence, len) = expected.pop_front().unwrap();
                        assert_eq!(unread.word.sequence(), sequence as u32);
                        let (read, track) = reader.read(unread);
                        assert_eq!(read, payload(sequence, len));
                        track.release(unread.end, until);
                        continue;
                    }
                    let found = self::next(&mut reader, &mut expected);
                    assert_eq!(found.is_some(), !expected.is_empty());
                    let (Some(found), Some((sequence, len))) = (found, expected.pop_front()) else {
                        break;
                    };
                    assert_eq!(found.word.sequence(), sequence as u32);
                    assert_eq!(reader.parts(found).unwrap().1, payload(sequence, len));
                    reader.track().release(found.end(), 0);
                }
                if expected.is_empty() {
                    reader.track().settle();
                }
            }
            Step::Adopt => {
                drop(writer);
                writer = Writer::adopt(rig.lane.view(0), rig.ring()).unwrap();
                readers = (!lossy).then(|| rig.readers());
            }
        }
        check_outside(&rig, (!lossy).then(|| (reader.position(), expected.len())));
    }
    while let Some(found) = self::next(&mut reader, &mut expected) {
        let (sequence, len) = expected.pop_front().unwrap();
        assert_eq!(reader.parts(found).unwrap().1, payload(sequence, len));
        reader.track().release(found.end(), 0);
    }
    assert!(expected.is_empty());
}

/// Who gates nobody finds boundaries that lead to the end, and how far the reader is from it.
fn check_outside(rig: &Rig, reader: Option<(u64, usize)>) {
    let (header, ring) = (rig.lane.view::<LaneHeader>(0), rig.ring());
    let outside = Outside {
        header: &header,
        ring: &ring,
    };
    let oldest = outside.first_from(0).unwrap();
    assert_eq!(outside.at_floor(), Some(oldest));
    let mut at = oldest;
    while let Some((found, _)) = outside.frame(at.position, false) {
        at.pass(found);
    }
    let (_, mut newest) = outside.newest().unwrap();
    while let Some((found, _)) = outside.frame(newest.position, false) {
        newest.pass(found);
    }
    assert_eq!(at, newest);
    for back in [0, 1, 7, 100, u64::MAX] {
        let start = outside.start(back, 0).unwrap();
        let sequence = at.sequence.saturating_sub(back).max(oldest.sequence);
        assert_eq!(start.sequence, sequence);
    }
    if let Some((position, unreceived)) = reader {
        assert_eq!(outside.lag(position, at), unreceived as u64);
    }
}

proptest! {
    // A failure is told, however long it could still be made shorter.
    #![proptest_config(ProptestConfig { max_shrink_time: 30_000, ..ProptestConfig::default() })]

    #[test]
    fn a_lane_is_a_queue(
        (capacity, steps) in prop::sample::select(vec![4096_usize, 8192, 65536]).prop_flat_map(|c| (Just(c), steps(c))),
        start in prop::sample::select(vec![1_u64 << 17, 1 << 32, 1 << 63]),
        below in 0..600_u64,
    ) {
        for lossy in [false, true] {
            run(capacity, start - below * SLOT, lossy, &steps);
            run(capacity, 0, lossy, &steps);
        }
    }
}

#[test]
fn words_keep_their_fields() {
    use super::layout::Word;
    let word = Word::message(Word::MAX_LENGTH, 0x1_2345_6789);
    assert_eq!(
        (word.len(), word.sequence(), word.is_message()),
        (Word::MAX_LENGTH, 0x2345_6789, true)
    );
    let padding = Word::padding(64, 7);
    assert_eq!(
        (padding.size(), padding.sequence(), padding.is_padding()),
        (64, 7, true)
    );
    assert_ne!(Word::message(0, 0).0, 0);
}

/// It may have looked around before it knew: from then on it looks each time.
#[test]
fn a_sender_that_must_fence_is_never_quiet() {
    let rig = Rig::new(4096);
    let control = rig.control.view::<Control>(0);
    let mut watch = Watch::default();
    watch.disturbed(&control);
    assert!(watch.is_quiet(&control));
    watch.fence_fully(true);
    assert!(!watch.is_quiet(&control));
    assert!(!watch.disturbed(&control) && !watch.is_quiet(&control));
    watch.fence_fully(false);
    assert!(watch.is_quiet(&control));
}
