//! Latest state: a table for each writer, which readers look into, and a lossy lane in which it says what it has set, for those
//! who watch.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use zerocopy::IntoBytes;

use crate::bus::{Bus, TopicBuilder, TopicInner, forked};
use crate::error::{Error, ErrorKind, Result};
use crate::futures::{MessageStream, Receive};
use crate::message::{Message, Payload};
use crate::pubsub::{Publisher, Start, Subscriber};
use crate::reactor::{Ready, Sleep};
use crate::shm::files::skip_damaged;
use crate::shm::fork::{self, Held};
use crate::shm::layout::Pattern;
use crate::shm::park::Ticket;
use crate::shm::roster;
use crate::shm::table::{self, Refused, Shape, Table, Value};
use crate::wait::{WaitStrategy, Waitable};

/// Keys, bytes in a key, bytes in a value, unless it is said otherwise: 1.2 MiB for each writer.
const DEFAULT_SIZES: [u64; 3] = [1024, 64, 256];
/// Bytes in a lane that says what was set: where it does not reach, all values are looked at.
const NEWS_CAPACITY: usize = 64 << 10;
/// A watcher looks this often whether a writer has died before it could say what it had set.
const SLICE: Duration = Duration::from_millis(250);
/// So often a watch looks at all because news were lost, and finds nothing, before it says that there is nothing yet.
const LOSSES: usize = 16;
/// So many changes of other keys a watch of one passes, once its time is over, before it says that there is nothing yet.
const OTHERS: usize = 1 << 16;

// ---------------------------------------------------------------------------------------------------------- opening

/// A state: the latest value of each key, kept whether its writer lives or not. Writers and readers of it are made here.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let board = bus.state("board")?;
/// let mut writer = board.writer()?; // usually in another process
/// writer.set(b"kitchen", b"21.5")?;
/// writer.set(b"kitchen", b"21.6")?;
/// let mut reader = board.reader()?;
/// assert_eq!(reader.get(b"kitchen")?, Some(&b"21.6"[..]));
/// assert_eq!(reader.get(b"cellar")?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct State<T: ?Sized = [u8]> {
    inner: Arc<TopicInner>,
    kind: PhantomData<fn() -> Box<T>>,
}

impl<T: ?Sized> Clone for State<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            kind: PhantomData,
        }
    }
}

impl<T: ?Sized> fmt::Debug for State<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("name", &self.inner.files.name)
            .finish_non_exhaustive()
    }
}

impl Bus {
    /// Opens a state of bytes, made if it is missing: up to 1024 keys of up to 64 bytes, with values of up to 256.
    ///
    /// # Errors
    ///
    /// As for [`topic`](Self::topic).
    pub fn state(&self, name: &str) -> Result<State> {
        self.state_builder(name).open()
    }

    /// Opens a state of `T`s, made if it is missing: up to 1024 keys of up to 64 bytes.
    ///
    /// # Errors
    ///
    /// As for [`typed`](Self::typed).
    pub fn typed_state<T: Message + 'static>(&self, name: &str) -> Result<State<T>> {
        self.state_builder(name).open_typed()
    }

    /// Opens a state otherwise than by default.
    pub fn state_builder(&self, name: &str) -> StateBuilder<'_> {
        StateBuilder {
            topic: self.topic_builder(name).capacity(NEWS_CAPACITY),
            sizes: [None; 3],
        }
    }
}

/// Opens a [`State`] otherwise than by default. Made by [`Bus::state_builder`].
///
/// Sizes that are not said are those of an existing state. Each writer takes, for each key, the key's
/// bytes, four times those of a value, and 96 to 192 bytes more, by default 1.2 MiB; and 68 KiB to say what it sets.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let prices = bus.state_builder("prices").keys(100_000).max_key(12).max_value(256).open()?;
/// assert_eq!(prices.keys(), 100_000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct StateBuilder<'a> {
    topic: TopicBuilder<'a>,
    sizes: [Option<u64>; 3],
}

impl StateBuilder<'_> {
    /// How many keys each writer may set, at most 2²⁴; an existing state must have the same.
    pub fn keys(mut self, keys: usize) -> Self {
        self.sizes[0] = Some(keys as u64);
        self
    }

    /// Bytes in the longest key, at most 4096; an existing state must have the same.
    pub fn max_key(mut self, bytes: usize) -> Self {
        self.sizes[1] = Some(bytes as u64);
        self
    }

    /// Bytes in the longest value; an existing state must have the same. With a type, it is the type's size.
    pub fn max_value(mut self, bytes: usize) -> Self {
        self.sizes[2] = Some(bytes as u64);
        self
    }

    /// How those who watch wait.
    pub fn wait(mut self, wait: WaitStrategy) -> Self {
        self.topic = self.topic.wait(wait);
        self
    }

    /// Whether a missing state is made; if not, it is the error `NotFound`. By default it is.
    pub fn create(mut self, create: bool) -> Self {
        self.topic = self.topic.create(create);
        self
    }

    /// Opens it, of bytes.
    ///
    /// # Errors
    ///
    /// As for [`Bus::state`], and `InvalidCapacity`.
    pub fn open(self) -> Result<State> {
        self.open_as()
    }

    /// Opens it, of `T`s.
    ///
    /// # Errors
    ///
    /// As for [`Bus::typed_state`], and `InvalidCapacity`.
    pub fn open_typed<T: Message + 'static>(mut self) -> Result<State<T>> {
        self.sizes[2] = T::SIZE;
        self.open_as()
    }

    fn open_as<T: ?Sized + Payload>(self) -> Result<State<T>> {
        let Self { topic, sizes } = self;
        let tried = "open the state";
        let name = topic.name().to_owned();
        let mut made = DEFAULT_SIZES;
        for (made, asked) in made.iter_mut().zip(sizes) {
            *made = asked.unwrap_or(*made);
        }
        Shape::new(made).map_err(|why| {
            Error::new(ErrorKind::InvalidCapacity, tried, &*name, why).advise("ask for other sizes")
        })?;
        let inner = topic.open_inner(&[Pattern::State], &T::describe(), made)?;
        let theirs = inner.files.config.sizes;
        let differs = |(asked, size): (Option<u64>, u64)| asked.is_some_and(|asked| asked != size);
        if sizes.into_iter().zip(theirs).any(differs) {
            let [keys, max_key, max_value] = theirs;
            let why = format!(
                "it has {keys} keys of {max_key} bytes with values of {max_value}, and other sizes were asked for"
            );
            return Err(Error::new(ErrorKind::Mismatch, tried, name, why)
                .advise("leave the sizes out, or use another state"));
        }
        // What is in the configuration is somebody else's word.
        inner.files.shape()?;
        Ok(State {
            inner,
            kind: PhantomData,
        })
    }
}

impl<T: ?Sized + Payload> State<T> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.files.name
    }

    /// How many keys each writer may set.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.inner.files.config.sizes[0] as usize
    }

    /// Bytes in the longest key.
    #[must_use]
    pub fn max_key(&self) -> usize {
        self.inner.files.config.sizes[1] as usize
    }

    /// Bytes in the longest value.
    #[must_use]
    pub fn max_value(&self) -> usize {
        self.inner.files.config.sizes[2] as usize
    }

    /// Joins it as a writer, with a table of its own: one that a writer has left, with the keys in it, or a new one.
    ///
    /// # Errors
    ///
    /// `NoSpace` if the table can't be allocated, `Forked`, and the system's.
    pub fn writer(&self) -> Result<StateWriter<T>> {
        StateWriter::join(&self.inner)
    }

    /// Reads it. Readers are not counted, and hold up nobody.
    ///
    /// # Errors
    ///
    /// `Forked`, and the system's.
    pub fn reader(&self) -> Result<StateReader<T>> {
        Ok(StateReader {
            tables: Tables::open(&self.inner)?,
            kind: PhantomData,
        })
    }
}

// ---------------------------------------------------------------------------------------------------------- writing

/// Sets values of a [`State`]. It never waits. Of several writers of one key, the newest value counts, by the monotonic
/// clock. What it has set stays when it has gone.
#[must_use]
pub struct StateWriter<T: ?Sized = [u8]> {
    table: table::Writer,
    id: u64,
    /// Says what was set.
    news: Publisher,
    /// Says that the table has a writer.
    _lock: Held,
    topic: Arc<TopicInner>,
    born: u64,
    kind: PhantomData<fn(&T)>,
}

impl<T: ?Sized> fmt::Debug for StateWriter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateWriter")
            .field("state", &self.topic.files.name)
            .field("table", &self.id)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized + Payload> StateWriter<T> {
    fn join(topic: &Arc<TopicInner>) -> Result<Self> {
        topic.bus.listen()?;
        let (lock, id, table) = topic.files.table_to_write(topic.bus.member()?)?;
        Ok(Self {
            table,
            id,
            // This tells the readers of the table, too.
            news: Publisher::join(topic)?,
            _lock: lock,
            topic: Arc::clone(topic),
            born: fork::generation(),
            kind: PhantomData,
        })
    }

    #[inline]
    fn set_bytes(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.born != fork::generation() {
            return Err(forked("set in", &self.topic.files.name));
        }
        match self.table.set(key, value, now_ns()) {
            Ok(slot) => self.news.send([self.id, slot as u64].as_bytes()),
            Err(refused) => Err(self.refused(refused)),
        }
    }

    #[cold]
    fn refused(&self, refused: Refused) -> Error {
        let [keys, max_key, max_value] = self.topic.files.config.sizes;
        let (kind, why, todo) = match refused {
            Refused::KeyTooLong(len) => (
                ErrorKind::TooLong,
                format!("the key has {len} bytes, and {max_key} are the limit"),
                "shorten it, or make the state with longer keys",
            ),
            Refused::ValueTooLong(len) => (
                ErrorKind::TooLong,
                format!("the value has {len} bytes, and {max_value} are the limit"),
                "shorten it, or make the state with longer values",
            ),
            Refused::Full => (
                ErrorKind::Full,
                format!("this writer's table has its {keys} keys, and this is none of them"),
                "set one of those, or make the state with more keys",
            ),
        };
        Error::new(kind, "set in", Arc::clone(&self.topic.files.name), why).advise(todo)
    }
}

impl StateWriter<[u8]> {
    /// Sets the value of `key`. Both may be empty.
    ///
    /// # Errors
    ///
    /// `TooLong` if key or value is, `Full` if the key is new and the table has no room for it: nothing has changed then.
    /// `NotFound` if the state was removed: nobody sees the value. `Forked`.
    #[inline]
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.set_bytes(key, value)
    }
}

impl<T: Message + 'static> StateWriter<T> {
    /// Sets the value of `key`.
    ///
    /// # Errors
    ///
    /// `TooLong` if the key is, `Full` if it is new and the table has no room for it: nothing has changed then. `NotFound` if
    /// the state was removed: nobody sees the value. `Forked`.
    #[inline]
    pub fn set_value(&mut self, key: &[u8], value: &T) -> Result<()> {
        self.set_bytes(key, value.as_bytes())
    }
}

/// The same clock for all writers.
fn now_ns() -> u64 {
    // It can't fail: Linux has that clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| Duration::from(now).as_nanos() as u64)
}

// ---------------------------------------------------------------------------------------------------------- reading

/// The tables of all writers, and the value that was read last.
struct Tables {
    topic: Arc<TopicInner>,
    /// In the order of their numbers.
    opened: Vec<Opened>,
    seen_roster: Option<u64>,
    value: Value,
    /// For the next one, until it is known whether it is newer.
    other: Value,
    born: u64,
}

struct Opened {
    id: u64,
    table: Table,
    /// For a watcher: the versions that it knows, by slot; 0: none.
    known: Vec<u64>,
}

/// A slot of the table at an index.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    table: usize,
    slot: usize,
}

impl Tables {
    fn open(topic: &Arc<TopicInner>) -> Result<Self> {
        topic.bus.check_fork()?;
        let mut tables = Self {
            topic: Arc::clone(topic),
            opened: Vec::new(),
            seen_roster: None,
            value: Value::default(),
            other: Value::default(),
            born: fork::generation(),
        };
        tables.refresh()?;
        Ok(tables)
    }

    /// Looks whether somebody has joined or left.
    #[inline]
    fn refresh(&mut self) -> Result<bool> {
        if self.born != fork::generation() {
            return Err(forked("read", &self.topic.files.name));
        }
        let state = Some(roster::state(&self.topic.files.control));
        if self.seen_roster == state {
            return Ok(false);
        }
        self.list()?;
        self.seen_roster = state;
        Ok(true)
    }

    #[cold]
    fn list(&mut self) -> Result<()> {
        let files = &self.topic.files;
        let there = files.list_tables()?;
        self.opened
            .retain(|opened| there.binary_search(&opened.id).is_ok());
        for id in there {
            if let Err(at) = self.opened.binary_search_by_key(&id, |opened| opened.id)
                && let Some(table) = skip_damaged(files.table(id))?
            {
                let known = Vec::new();
                self.opened.insert(at, Opened { id, table, known });
            }
        }
        Ok(())
    }

    /// Copies the newest value of `key` to `self.value`. `None`: it has none.
    #[inline]
    fn get(&mut self, key: &[u8]) -> Result<Option<()>> {
        let hash = table::hash(key);
        let mut found = None;
        for Opened { id, table, .. } in &self.opened {
            if let Some(slot) = table.find(key, hash) {
                let copied = table.copy(slot, &mut self.other);
                copied.map_err(|at| self.topic.files.corrupt_table(*id, at))?;
                // The later table is that with the higher number.
                if found.is_none() || self.other.time >= self.value.time {
                    mem::swap(&mut self.value, &mut self.other);
                    found = Some(());
                }
            }
        }
        Ok(found)
    }

    /// Gets the newest value of `key` if a watcher does not know it; then it does.
    fn get_unknown(&mut self, key: &[u8]) -> Result<Option<()>> {
        let hash = table::hash(key);
        let (mut found, mut is_known) = (false, true);
        for Opened { id, table, known } in &mut self.opened {
            let Some(slot) = table.find(key, hash) else {
                continue;
            };
            let copied = table.copy(slot, &mut self.other);
            copied.map_err(|at| self.topic.files.corrupt_table(*id, at))?;
            if known.len() <= slot {
                known.resize(slot + 1, 0);
            }
            let before = mem::replace(&mut known[slot], self.other.version);
            if !found || self.other.time >= self.value.time {
                is_known = before == self.other.version;
                mem::swap(&mut self.value, &mut self.other);
                found = true;
            }
        }
        Ok((found && !is_known).then_some(()))
    }

    /// Whether a watcher knows what is in a slot.
    fn is_known(&self, place: Place) -> bool {
        let Opened { table, known, .. } = &self.opened[place.table];
        known.get(place.slot) == Some(&table.version(place.slot))
    }

    /// Copies the key of a slot that has one.
    fn key(&self, place: Place, to: &mut Vec<u8>) -> Result<()> {
        let Opened { id, table, .. } = &self.opened[place.table];
        let copied = table.key(place.slot, to);
        copied.map_err(|at| self.topic.files.corrupt_table(*id, at))
    }

    /// The slot at `place` or the next one that has a key, and moves behind it.
    fn next(&self, place: &mut Place) -> Option<Place> {
        while let Some(opened) = self.opened.get(place.table) {
            if place.slot < opened.table.used() {
                let next = *place;
                place.slot += 1;
                return Some(next);
            }
            *place = Place {
                table: place.table + 1,
                slot: 0,
            };
        }
        None
    }

    /// The value that was read last.
    #[inline]
    fn value<T: ?Sized + Payload>(&self) -> Result<&T> {
        let len = self.value.len;
        if len as u64 != T::SIZE.unwrap_or(len as u64) {
            return Err(self.wrong_size(&T::describe()));
        }
        Ok(T::in_frame(&self.value.words.as_bytes()[..len]))
    }

    #[cold]
    fn wrong_size(&self, ours: &impl fmt::Display) -> Error {
        let why = format!(
            "a value has {} bytes, and it carries {ours}",
            self.value.len
        );
        let on = Arc::clone(&self.topic.files.name);
        Error::new(ErrorKind::Corrupt, "read", on, why).advise(Cow::Borrowed(
            "stop its writers, and remove the topic when nobody uses it",
        ))
    }
}

/// Reads the values of a [`State`]. It holds up nobody, and nobody holds it up.
#[must_use]
pub struct StateReader<T: ?Sized = [u8]> {
    tables: Tables,
    kind: PhantomData<fn() -> Box<T>>,
}

impl<T: ?Sized> fmt::Debug for StateReader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateReader")
            .field("state", &self.tables.topic.files.name)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized + Payload> StateReader<T> {
    /// The latest value of `key`, copied whole; `None` if it was never set.
    ///
    /// # Errors
    ///
    /// `NotFound` if the topic was removed, `Corrupt` if a table contradicts itself, `Forked`, and, when somebody has joined
    /// or left, the system's.
    #[inline]
    pub fn get(&mut self, key: &[u8]) -> Result<Option<&T>> {
        self.tables.refresh()?;
        match self.tables.get(key)? {
            Some(()) => self.tables.value().map(Some),
            None => Ok(None),
        }
    }

    /// Copies of all keys and their values. Values that are set meanwhile may be among them or not.
    ///
    /// ```
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let board = buslane::Bus::at(dir.path().join("bus"))?.state("board")?;
    /// # let mut writer = board.writer()?;
    /// writer.set(b"kitchen", b"21.5")?;
    /// writer.set(b"cellar", b"12.1")?;
    /// let mut all = board.reader()?.entries()?.collect::<Result<Vec<_>, _>>()?;
    /// all.sort();
    /// assert_eq!(all[0], (b"cellar".to_vec(), b"12.1".to_vec()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get).
    pub fn entries(&mut self) -> Result<Entries<'_, T>> {
        self.tables.refresh()?;
        Ok(Entries {
            reader: self,
            at: Place::default(),
        })
    }

    /// Watches all keys, or one: first the values that there are, then each change.
    ///
    /// # Errors
    ///
    /// As for [`Topic::subscriber`](crate::Topic::subscriber).
    pub fn watch(&self, key: Option<&[u8]>) -> Result<Watch<T>> {
        let topic = &self.tables.topic;
        Ok(Watch {
            // Before the tables are looked at: what is set later is told.
            news: Subscriber::join(topic, Start::Now)?,
            tables: Tables::open(topic)?,
            only: key.map(<[u8]>::to_vec),
            key: Vec::new(),
            scan: Some(Place::default()),
            found: false,
            sleep: Sleep::default(),
            kind: PhantomData,
        })
    }
}

/// All keys and values of a [`StateReader`].
#[must_use]
pub struct Entries<'a, T: ?Sized = [u8]> {
    reader: &'a mut StateReader<T>,
    at: Place,
}

impl<T: ?Sized> fmt::Debug for Entries<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries")
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized + Payload> Entries<'_, T> {
    fn advance(&mut self) -> Result<Option<(Vec<u8>, T::Owned)>> {
        let tables = &mut self.reader.tables;
        if tables.born != fork::generation() {
            return Err(forked("read", &tables.topic.files.name));
        }
        let mut key = Vec::new();
        while let Some(place) = tables.next(&mut self.at) {
            tables.key(place, &mut key)?;
            let hash = table::hash(&key);
            let mut before = tables.opened[..place.table].iter();
            // A key of several writers is told where it is met first.
            let was_told = before.any(|opened| opened.table.find(&key, hash).is_some());
            if !was_told && tables.get(&key)?.is_some() {
                let value = tables.value::<T>()?.copied();
                return Ok(Some((key, value)));
            }
        }
        Ok(None)
    }
}

impl<T: ?Sized + Payload> Iterator for Entries<'_, T> {
    type Item = Result<(Vec<u8>, T::Owned)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

// --------------------------------------------------------------------------------------------------------- watching

/// Tells the keys and values that there are, then each key that changes, with its latest value: of several
/// changes of a key, those between may be left out, the last one never is. Made by [`StateReader::watch`].
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let board = buslane::Bus::at(dir.path().join("bus"))?.state("board")?;
/// # let mut writer = board.writer()?;
/// writer.set(b"kitchen", b"21.5")?;
/// let mut watch = board.reader()?.watch(None)?;
/// assert_eq!(watch.recv()?, (&b"kitchen"[..], &b"21.5"[..]));
/// writer.set(b"kitchen", b"21.6")?;
/// assert_eq!(watch.recv()?, (&b"kitchen"[..], &b"21.6"[..]));
/// assert_eq!(watch.try_recv()?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Watch<T: ?Sized = [u8]> {
    tables: Tables,
    news: Subscriber,
    only: Option<Vec<u8>>,
    key: Vec<u8>,
    /// Slots from here on are to be looked at, whatever the news say.
    scan: Option<Place>,
    /// A change was found that was not told yet.
    found: bool,
    sleep: Sleep,
    kind: PhantomData<fn() -> Box<T>>,
}

impl<T: ?Sized> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("state", &self.tables.topic.files.name)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized + Payload> Watch<T> {
    /// The next key and its value. Waits for a change.
    ///
    /// # Errors
    ///
    /// As for [`StateReader::get`].
    pub fn recv(&mut self) -> Result<(&[u8], &T)> {
        while !self.advance(SLICE)? {}
        self.take()
    }

    /// The next key and its value, as a future: the task sleeps until there is a change. It may be dropped at any time.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv); `Unsupported` if it must wait before Linux 5.16.
    pub async fn recv_async(&mut self) -> Result<(&[u8], &T)> {
        let mut sleep = mem::take(&mut self.sleep);
        let ready = Ready::new(&mut *self, &mut sleep).await;
        self.sleep = sleep;
        ready?;
        self.take()
    }

    /// A stream of copies of the keys and values. It does not end.
    pub fn stream(&mut self) -> MessageStream<&mut Self> {
        MessageStream::new(self)
    }

    /// The same, as the watch's owner.
    pub fn into_stream(self) -> MessageStream<Self> {
        MessageStream::new(self)
    }

    /// The next key and its value, if there is a change that was not told.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> Result<Option<(&[u8], &T)>> {
        self.recv_timeout(Duration::ZERO)
    }

    /// The next key and its value; `None` if nothing changes for `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<(&[u8], &T)>> {
        let deadline = Instant::now().checked_add(timeout);
        let mut left = timeout;
        loop {
            if self.advance(left.min(SLICE))? {
                return self.take().map(Some);
            }
            left = deadline.map_or(SLICE, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(None);
            }
        }
    }

    fn take(&mut self) -> Result<(&[u8], &T)> {
        self.found = false;
        Ok((&self.key, self.tables.value()?))
    }

    /// Goes to the next change, if the last one was told; `false`: there is none for `time`.
    fn advance(&mut self, time: Duration) -> Result<bool> {
        if !self.found {
            self.found = self.find(time)?;
        }
        Ok(self.found)
    }

    fn find(&mut self, time: Duration) -> Result<bool> {
        let (deadline, mut left) = (Instant::now() + time, time);
        let (mut losses, mut others) = (0, 0);
        loop {
            if self.tables.refresh()? {
                // A writer that died may not have told the last that it had set.
                self.scan = Some(Place::default());
            }
            if self.scan()? {
                return Ok(true);
            }
            let news = match self.news.recv_timeout(left) {
                Ok(Some(frame)) => <[u8; 16]>::try_from(&*frame).ok(),
                Ok(None) => return Ok(false),
                Err(e) if matches!(e.kind(), ErrorKind::Lost | ErrorKind::Ended) => {
                    self.scan = Some(Place::default());
                    losses += 1;
                    if losses == LOSSES {
                        return Ok(false);
                    }
                    continue;
                }
                Err(e) => return Err(e),
            };
            if let Some(news) = news
                && self.look(u128::from_le_bytes(news))?
            {
                return Ok(true);
            }
            left = deadline.saturating_duration_since(Instant::now());
            others += usize::from(left.is_zero());
            if others == OTHERS {
                return Ok(false);
            }
        }
    }

    /// Looks at all that the news did not say.
    fn scan(&mut self) -> Result<bool> {
        let Some(mut at) = self.scan else {
            return Ok(false);
        };
        if let Some(only) = &self.only {
            self.scan = None;
            self.key.clone_from(only);
            return Ok(self.tables.get_unknown(only)?.is_some());
        }
        while let Some(place) = self.tables.next(&mut at) {
            self.scan = Some(at);
            if self.look_at(place)? {
                return Ok(true);
            }
        }
        self.scan = None;
        Ok(false)
    }

    /// Looks at what a writer says that it has set.
    fn look(&mut self, news: u128) -> Result<bool> {
        let (id, slot) = (news as u64, (news >> 64) as u64);
        // A new writer's table has its name before its lane.
        if self.tables.refresh()? {
            self.scan = Some(Place::default());
        }
        let opened = &self.tables.opened;
        match opened.binary_search_by_key(&id, |opened| opened.id) {
            Ok(table) if slot < opened[table].table.used() as u64 => self.look_at(Place {
                table,
                slot: slot as usize,
            }),
            _ => Ok(false),
        }
    }

    fn look_at(&mut self, place: Place) -> Result<bool> {
        if self.tables.is_known(place) {
            return Ok(false);
        }
        self.tables.key(place, &mut self.key)?;
        if self.only.as_ref().is_some_and(|only| *only != self.key) {
            return Ok(false);
        }
        Ok(self.tables.get_unknown(&self.key)?.is_some())
    }
}

impl<T: ?Sized + Payload> Waitable for Watch<T> {
    fn is_ready(&mut self) -> Result<bool> {
        self.advance(Duration::ZERO)
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        // Who joins or leaves rings there, too.
        self.news.arm(tickets)
    }

    fn disarm(&mut self) {
        self.news.disarm();
    }

    fn due(&self) -> Option<Instant> {
        self.news.due()
    }
}

impl<T: ?Sized + Payload> Receive for Watch<T> {
    type Item = (Vec<u8>, T::Owned);

    fn receive_now(&mut self) -> Result<Option<Self::Item>> {
        let changed = self.try_recv()?;
        Ok(changed.map(|(key, value)| (key.to_vec(), value.copied())))
    }
}
