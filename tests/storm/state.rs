//! Latest state: values are whole, never go back, and the last one stays.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use buslane::{State, StateReader, Watch};

use super::process::Process;
use super::pubsub::settle;
use super::round::{Pattern, Role};

const KEYS: u64 = 8;
/// The ledger's row of this number, which no process has: for each key, when the newest write began that has returned.
const NEWEST: u64 = 0;

pub const STATE: Pattern = Pattern {
    name: "state",
    is_durable: false,
    prepare: |process| drop(state(process)),
    roles: &[
        Role {
            name: "writer",
            crowd: (1, 2),
            sends: true,
            act: write,
        },
        Role {
            name: "reader",
            crowd: (1, 2),
            sends: false,
            act: read,
        },
        Role {
            name: "watcher",
            crowd: (1, 2),
            sends: false,
            act: watch,
        },
    ],
    settle: settle_state,
    stays: &["topic", "locks", "table."],
};

fn state(process: &mut Process) -> State {
    let bus = process.bus();
    bus.state_builder("t")
        .keys(16)
        .max_value(1000)
        .open()
        .unwrap()
}

fn key(k: u64) -> Vec<u8> {
    format!("key {k}").into_bytes()
}

/// A value: by whom, the how manieth of that one, when it began to be written, and a pattern that shows whether it is whole.
#[derive(Clone, Copy, Debug)]
struct Value {
    writer: u64,
    n: u64,
    began: u64,
    key: u64,
}

impl Value {
    fn bytes(self) -> Vec<u8> {
        let Self {
            writer,
            n,
            began,
            key,
        } = self;
        let mut bytes: Vec<u8> = [writer, n, began, key]
            .into_iter()
            .flat_map(u64::to_le_bytes)
            .collect();
        bytes.resize(self.len(), (n ^ writer) as u8);
        bytes
    }

    fn of(bytes: &[u8]) -> Self {
        let word = |at: usize| u64::from_le_bytes(bytes[8 * at..8 * at + 8].try_into().unwrap());
        let value = Self {
            writer: word(0),
            n: word(1),
            began: word(2),
            key: word(3),
        };
        assert_eq!(bytes.len(), value.len(), "length of {value:?}");
        let pattern = (value.n ^ value.writer) as u8;
        assert!(
            bytes[32..].iter().all(|&byte| byte == pattern),
            "{value:?} is torn"
        );
        value
    }

    fn len(self) -> usize {
        32 + (self.n * 37 % 900) as usize
    }
}

// ----------------------------------------------------------------------------------------------------------- writing

fn write(process: &mut Process) {
    let mut writer = state(process).writer().unwrap();
    let mut n = 0;
    while !process.is_over() {
        n += 1;
        let k = process.random.u64(..KEYS);
        let began = process.ledger.tick();
        let value = Value {
            writer: process.number,
            n,
            began,
            key: k,
        };
        process.begins(1);
        writer.set(&key(k), &value.bytes()).unwrap();
        process.has_sent(1);
        // When it had returned, for who looks whether another one came before it; not valid meanwhile.
        let row = process.ledger.row(process.number);
        row[2 * k as usize].store(0, SeqCst);
        row[2 * k as usize + 1].store(process.ledger.tick(), SeqCst);
        row[2 * k as usize].store(n, SeqCst);
        process.ledger.row(NEWEST)[k as usize].fetch_max(began, SeqCst);
        process.dawdle(16);
    }
}

// ----------------------------------------------------------------------------------------------------------- reading

/// What one reader has seen of each key.
#[derive(Default)]
struct Seen {
    /// The latest beginning of a write that it has seen.
    latest: [u64; KEYS as usize],
    /// Of each writer, the last number.
    last: std::collections::HashMap<(u64, u64), u64>,
}

impl Seen {
    /// A value that is not older than any that was there when `newest` was looked at, nor than one that was seen before.
    fn see(&mut self, process: &Process, k: u64, newest: u64, bytes: &[u8]) {
        let value = Value::of(bytes);
        assert_eq!(value.key, k, "{value:?} is another key's");
        let last = self.last.entry((k, value.writer)).or_default();
        assert!(value.n >= *last, "{value:?} comes after {last}");
        let is_news = std::mem::replace(last, value.n) != value.n;
        let latest = &mut self.latest[k as usize];
        not_before(process, value, newest.max(*latest));
        *latest = value.began.max(*latest);
        if is_news {
            process.has_checked();
        }
    }
}

fn newest(process: &Process, k: u64) -> u64 {
    process.ledger.row(NEWEST)[k as usize].load(SeqCst)
}

/// Its write had not returned before the one of the same key began that began then; as far as that was noted.
fn not_before(process: &Process, value: Value, began: u64) {
    if value.began >= began {
        return;
    }
    let row = process.ledger.row(value.writer);
    let [n, ended] = [0, 1].map(|word| row[2 * value.key as usize + word].load(SeqCst));
    let again = row[2 * value.key as usize].load(SeqCst);
    assert!(
        (n, again) != (value.n, value.n) || ended >= began,
        "{value:?} was there at {ended}, and another one since {began}"
    );
}

fn read(process: &mut Process) {
    let mut reader = state(process).reader().unwrap();
    let mut seen = Seen::default();
    while !process.is_to_leave() {
        let is_last = process.is_to_drain();
        if process.random.u32(..16) == 0 || is_last {
            read_all(process, &mut reader, &mut seen);
        }
        for _ in 0..100 {
            let k = process.random.u64(..KEYS);
            let newest = newest(process, k);
            match reader.get(&key(k)).unwrap() {
                Some(value) => seen.see(process, k, newest, value),
                None => assert_eq!(newest, 0, "there is no {k}"),
            }
        }
        process.beat();
        if is_last {
            break;
        }
        process.dawdle(16);
    }
}

fn read_all(process: &Process, reader: &mut StateReader, seen: &mut Seen) {
    let newest = [0, 1, 2, 3, 4, 5, 6, 7].map(|k| newest(process, k));
    let mut met = [false; KEYS as usize];
    for entry in reader.entries().unwrap() {
        let (name, value) = entry.unwrap();
        let k = Value::of(&value).key;
        assert_eq!(name, key(k));
        assert!(
            !std::mem::replace(&mut met[k as usize], true),
            "{k} comes twice"
        );
        seen.see(process, k, newest[k as usize], &value);
    }
    for (k, met) in met.into_iter().enumerate() {
        assert!(met || newest[k] == 0, "{k} is missing");
    }
}

fn watch(process: &mut Process) {
    let only = process.random.bool().then(|| process.random.u64(..KEYS));
    let mut watch: Watch = {
        let name = only.map(key);
        state(process)
            .reader()
            .unwrap()
            .watch(name.as_deref())
            .unwrap()
    };
    let mut seen = Seen::default();
    while !process.is_to_leave() {
        let is_last = process.is_to_drain();
        let patience = Duration::from_micros(process.random.u64(..5000));
        while let Some((name, value)) = watch.recv_timeout(patience).unwrap() {
            let k = Value::of(value).key;
            assert_eq!(name, key(k));
            assert!(only.is_none_or(|only| only == k));
            seen.see(process, k, 0, value);
            if process.is_to_leave() {
                return;
            }
        }
        process.beat();
        if is_last {
            break;
        }
    }
    if process.is_to_drain() {
        // Of each key the last one was told.
        let mut reader = state(process).reader().unwrap();
        for k in (0..KEYS).filter(|k| only.is_none_or(|only| only == *k)) {
            let last = reader.get(&key(k)).unwrap().map(Value::of);
            if let Some(last) = last {
                let told = seen.last.get(&(k, last.writer));
                assert_eq!(told, Some(&last.n), "{last:?} was not told");
            }
        }
    }
}

/// The last value that was set is there, for who comes last.
fn settle_state(process: &mut Process) {
    settle(process);
    let mut reader = state(process).reader().unwrap();
    read_all(process, &mut reader, &mut Seen::default());
}
