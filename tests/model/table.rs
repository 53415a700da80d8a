//! A state's table: values that are copied while they are written, and keys that are looked for while they come.

use buslane::shm::View;
use buslane::shm::layout::{CELLS, TableHeader};
use buslane::shm::sync::AtomicU64;
use buslane::shm::table::{self, Refused, Shape, Table, Value, Writer};

use loom::sync::atomic::Ordering::Relaxed;

use super::{content, model, spawn};

/// Words in a value.
const WORDS: usize = 2;

fn create() -> (Table, Writer) {
    let shape = Shape::new([2, 8, WORDS as u64 * 8]).unwrap();
    let words = |count| View::all((0..count).map(|_| AtomicU64::default()).collect());
    let table = Table {
        shape,
        header: View::new(TableHeader::default()),
        index: words(shape.index_words()),
        slots: words(shape.slots_words()),
    };
    let writer = Writer::own(table.clone(), 1).unwrap();
    (table, writer)
}

/// What write `n` of `key` stores.
fn value(key: u8, n: u64) -> Vec<u8> {
    (0..WORDS)
        .flat_map(|i| content(key.into(), n, i).to_le_bytes())
        .collect()
}

fn set(writer: &mut Writer, key: u8, n: u64) {
    writer.set(&[key], &value(key, n), n).unwrap();
}

/// Which write of `key` is there; it is whole.
fn get(table: &Table, key: u8) -> Option<u64> {
    let slot = table.find(&[key], table::hash(&[key]))?;
    let mut copy = Value::default();
    table
        .copy(slot, &mut copy)
        .expect("a found key has a value");
    let bytes: Vec<u8> = copy
        .words
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    assert_eq!(bytes, value(key, copy.version), "torn");
    assert!(copy.time >= copy.version, "of another write");
    Some(copy.version)
}

/// The writer comes round to the cell that is being copied. What is read is whole, and never older than what was read before.
#[test]
fn table_value_is_overwritten() {
    model(2, || {
        let (table, mut writer) = create();
        set(&mut writer, 1, 1);
        let reader = spawn({
            let table = table.clone();
            move || {
                let first = get(&table, 1).unwrap();
                assert!(get(&table, 1).unwrap() >= first, "back in time");
            }
        });
        for n in 2..=CELLS as u64 + 1 {
            set(&mut writer, 1, n);
        }
        reader.join().unwrap();
        assert_eq!(get(&table, 1), Some(CELLS as u64 + 1));
    });
}

/// A key comes while it is looked for: it is not there, or with a value. When there is no room, nothing happens.
#[test]
fn table_key_comes() {
    model(2, || {
        let (table, mut writer) = create();
        set(&mut writer, 1, 1);
        let reader = spawn({
            let table = table.clone();
            move || {
                assert_eq!(get(&table, 1), Some(1));
                assert!(matches!(get(&table, 2), None | Some(1)));
            }
        });
        set(&mut writer, 2, 1);
        assert_eq!(writer.set(&[3], &[], 1), Err(Refused::Full));
        reader.join().unwrap();
        assert_eq!((get(&table, 2), get(&table, 3)), (Some(1), None));
    });
}

/// Key `n` is in the slot before `n`; each has its first value.
fn list(table: &Table) {
    for slot in 0..table.used() {
        let (mut key, mut copy) = (Vec::new(), Value::default());
        table.key(slot, &mut key).unwrap();
        assert_eq!(key, [slot as u8 + 1]);
        table.copy(slot, &mut copy).expect("it has a value");
        assert_eq!(copy.words[0], content(key[0].into(), 1, 0));
    }
}

/// All keys are listed while one comes.
#[test]
fn table_keys_are_listed() {
    model(2, || {
        let (table, mut writer) = create();
        let reader = spawn({
            let table = table.clone();
            move || list(&table)
        });
        set(&mut writer, 1, 1);
        set(&mut writer, 2, 1);
        reader.join().unwrap();
        assert_eq!(table.used(), 2);
    });
}

/// A writer died when its key could be found and was not yet counted: the next one counts it, while a reader lists the
/// keys, and goes on behind it.
#[test]
fn table_is_taken_over() {
    model(2, || {
        let (dead, mut writer) = create();
        set(&mut writer, 1, 1);
        let (table, _) = create();
        let reader = spawn({
            let table = table.clone();
            move || list(&table)
        });
        let words = |table: &Table| [table.slots.clone(), table.index.clone()];
        for (from, to) in words(&dead).iter().zip(&words(&table)) {
            for (from, to) in from.iter().zip(to.iter()) {
                to.store(from.load(Relaxed), Relaxed);
            }
        }
        let mut heir = Writer::own(table.clone(), 2).unwrap();
        assert_eq!(table.used(), 1);
        set(&mut heir, 2, 1);
        reader.join().unwrap();
        assert_eq!((get(&table, 1), get(&table, 2)), (Some(1), Some(1)));
    });
}
