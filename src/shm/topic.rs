//! The files of one topic: opened, made, listed and mapped.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use super::bytes::Ring;
use super::files::{self, Dir, Plan, skip_damaged};
use super::fork::{self, Held};
use super::futex;
use super::lane::{self, Boundary, Corrupt, Writer};
use super::layout::{
    BusControl, CURSOR_SLOTS, Control, Identity, Kind, LEFT, LaneHeader, MAX_CAPACITY,
    MAX_QUEUE_CAPACITY, MIN_CAPACITY, PAGE, Pattern, Slot, TopicConfig,
};
use super::log::Log;
use super::roster::{self, Cursor, Listed, Role};
use super::segment::{Access, Mapping, View};
use super::table::{self, Damaged, Shape, Table};
use crate::error::{Error, ErrorKind, Result};

/// What lanes are called, before their number.
pub const LANE: &str = "lane.";
/// What cursors are called, before their number.
pub const CURSOR: &str = "cursor.";
/// What named subscriptions are called, before their escaped name.
pub const SUBSCRIPTION: &str = "subscription.";
/// What tables are called, before their number.
pub const TABLE: &str = "table.";
const TOPIC: &str = "topic";
/// How often a named writer tries to take up the lane that is kept for it, a millisecond apart.
const ADOPTIONS: u32 = 100;
/// Bytes in the file of a cursor.
const CURSOR_SIZE: usize = PAGE + CURSOR_SLOTS * size_of::<Slot>();
/// Bytes in the file of a bus: identity, and control page.
pub const BUS_SIZE: u64 = 2 * PAGE as u64;

/// A topic's directory and control page.
#[derive(Debug)]
pub struct TopicFiles {
    pub(super) dir: Arc<Dir>,
    /// The page that all members write.
    pub control: View<Control>,
    /// Its name, for messages.
    pub name: Arc<str>,
    /// Of the lanes to be made.
    pub capacity: usize,
    /// How it delivers.
    pub pattern: Pattern,
    /// What it carries.
    pub config: TopicConfig,
    /// When it was made, nanoseconds since 1970.
    pub created_ns: u64,
}

/// A lane as everyone but its writer maps it.
#[derive(Debug)]
pub struct LaneFile {
    /// Its number.
    pub id: u64,
    /// Its header.
    pub header: View<LaneHeader>,
    /// Its bytes.
    pub ring: Ring,
}

impl TopicFiles {
    /// Opens the topic in `dir`. `None`: there is none.
    pub fn open(dir: Dir, name: &str) -> Result<Option<Self>> {
        let write = !dir.is_observed();
        let Some((file, identity)) = dir.open_file(TOPIC, Kind::Topic, write)? else {
            return Ok(None);
        };
        let corrupt = |why: String| {
            Error::new(ErrorKind::Corrupt, "open the topic", name, why)
                .advise("remove the topic when nobody uses it")
        };
        if identity.size != 2 * PAGE as u64 {
            return Err(corrupt(format!(
                "its file says {} bytes, not {}",
                identity.size,
                2 * PAGE
            )));
        }
        let mut bytes = [0; size_of::<TopicConfig>()];
        files::read_at(&file, size_of::<Identity>() as u64, &mut bytes)
            .map_err(|e| Error::system("read the topic", name, e))?;
        let config =
            TopicConfig::read_from_bytes(&bytes).expect("as many bytes as a configuration has");
        let pattern = Pattern::from_number(config.pattern).ok_or_else(|| {
            corrupt(format!(
                "its pattern is {}, which this version does not know",
                config.pattern
            ))
        })?;
        let capacity = check_capacity_for(pattern, identity.capacity).map_err(&corrupt)?;
        let is_observable =
            matches!(pattern, Pattern::Lossless | Pattern::Lossy) && config.logged == 0;
        if dir.is_observed() && !is_observable {
            let why = "messages of a topic that is not durable can be observed, and nothing else";
            return Err(Error::new(ErrorKind::Unsupported, "observe", name, why)
                .advise("have its owner publish there what others may know"));
        }
        let map = match dir.is_observed() {
            true => copy(name, Arc::new(file), PAGE as u64, PAGE)?,
            false => map(name, &file, PAGE as u64, PAGE, Access::Write)?,
        };
        Ok(Some(Self {
            dir: Arc::new(dir),
            control: map.view(0),
            name: name.into(),
            capacity,
            pattern,
            config,
            created_ns: identity.created_ns,
        }))
    }

    /// Makes the topic in `dir`, unless somebody was faster; then opens it.
    pub fn create(
        dir: Dir,
        name: &str,
        capacity: usize,
        config: &TopicConfig,
    ) -> Result<Option<Self>> {
        let size = 2 * PAGE as u64;
        let identity = Identity::new(Kind::Topic, size, 0, capacity as u64);
        let content = config.as_bytes();
        let plan = Plan {
            tried: "make the topic",
            identity,
            allocate: size,
            content,
            lock: false,
        };
        dir.create(TOPIC, &plan, |file| {
            if config.pattern == Pattern::Queue as u32 {
                // Before the topic has its name: what is pushed first waits for it.
                super::groups::make_default(&dir, name)?;
            }
            // Where it is in memory that takes no time; else it is not left without content by a crash of the machine.
            files::sync(file).map_err(|e| Error::system("sync the topic", name, e))
        })?;
        if config.logged != 0 {
            dir.sync()?;
        }
        Self::open(dir, name)
    }

    /// The topic of this name in the bus at `path`, beside the handle that a test has of it.
    #[cfg(test)]
    pub fn of(path: &std::path::Path, name: &str) -> Self {
        let topics = Dir::open(&path.join("topics"), None).unwrap();
        Self::open(topics.dir(name).unwrap(), name)
            .unwrap()
            .unwrap()
    }

    /// Where its files are.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Whether it is only looked at: what is mapped of it are copies.
    pub fn is_observed(&self) -> bool {
        self.dir.is_observed()
    }

    /// Whether it was not removed meanwhile.
    pub fn exists(&self) -> Result<bool> {
        if roster::is_removed(&self.control) {
            return Ok(false);
        }
        files::is_named(&self.dir).map_err(|e| Error::system("look at the topic", &*self.name, e))
    }

    // ------------------------------------------------------------------------------------------------------ locks

    /// The lock of the writer of the lane or table with this number: of that byte of the file of locks. `None`: somebody has it.
    pub(super) fn lock(&self, number: u64) -> Result<Option<Held>> {
        let failed = |e: nix::Error| Error::system("lock a file of", &*self.name, e);
        let staying = fork::stay();
        let locks = self.dir.make_locks()?;
        staying.try_lock_byte(locks, number).map_err(failed)
    }

    /// Whether a lane or a table has a writer who lives.
    pub fn has_writer(&self, number: u64) -> Result<bool> {
        let failed = |e: nix::Error| Error::system("look at a lock of", &*self.name, e);
        let locks = skip_damaged(self.dir.locks(false))?;
        locks.map_or(Ok(false), |locks| {
            files::is_byte_locked(&locks, number).map_err(failed)
        })
    }

    /// A number for a new lane or table, and its lock.
    fn new_number(&self, what: &str) -> Result<(u64, Held)> {
        let id = self.next_id()?;
        let lock = self.lock(id)?.ok_or_else(|| self.taken(what, id))?;
        Ok((id, lock))
    }

    // ------------------------------------------------------------------------------------------------------ lanes

    /// A lane to write: one whose writer, of the same name, has gone, if there is one of that capacity, else a new one, so that
    /// what has a name is *kept for its name*. `lives` says whether a member does.
    pub fn lane_to_write(
        &self,
        member: u64,
        name: u64,
        capacity: usize,
        lives: impl Fn(u64) -> Result<bool>,
    ) -> Result<(Held, u64, Writer)> {
        let mut damaged = Vec::new();
        for _ in 0..ADOPTIONS {
            for id in self.dir.numbers(LANE)? {
                if let Some((lock, writer)) =
                    self.adopt(id, member, name, capacity, &mut damaged)?
                {
                    return Ok((lock, id, writer));
                }
            }
            if name == 0 || !self.has_lane_left(name, &damaged, &lives)? {
                break;
            }
            // Somebody who tidies up has it for a moment.
            thread::sleep(Duration::from_millis(1));
        }
        let (id, lock) = self.new_number("lane")?;
        let size = self.lane_size(capacity) as u64;
        let identity = Identity::new(Kind::Lane, size, id, capacity as u64);
        let plan = Plan {
            tried: "make a lane",
            identity,
            allocate: size,
            content: &[],
            lock: false,
        };
        let made = self.dir.create(&format!("{LANE}{id}"), &plan, |file| {
            let (header, ring) =
                self.map_lane(id, file, capacity, (Access::Write, Access::Write))?;
            lane::own(&header, member, name, !futex::has_barrier());
            if let Some(log) = ring.log() {
                // Before its lane has a name: a lane has a first file.
                let (first, is_new) = log.make(0)?;
                if !is_new {
                    return Err(self.taken("lane", id));
                }
                log.lay(0, &first)?;
                log.begin(0, Boundary::default())?;
                files::sync(&first)
                    .map_err(|e| Error::system("sync a lane of", Arc::clone(&self.name), e))?;
            }
            ring.touch();
            let writer = Writer::create(header, ring, 0);
            if self.is_logged() {
                files::sync(file)
                    .map_err(|e| Error::system("sync a lane of", Arc::clone(&self.name), e))?;
            }
            Ok(writer)
        });
        let made = made.and_then(|made| made.ok_or_else(|| self.taken("lane", id)));
        let (_, writer) = made.inspect_err(|_| {
            // What can't be removed goes when somebody tidies up.
            let _ = self.remove_data_without(id);
        })?;
        if self.is_logged() {
            self.dir.sync()?;
        }
        Ok((lock, id, writer))
    }

    /// Whether there is a lane that is kept for a writer of this name, and has none.
    fn has_lane_left(
        &self,
        name: u64,
        damaged: &[u64],
        lives: impl Fn(u64) -> Result<bool>,
    ) -> Result<bool> {
        let mut lanes = self.dir.numbers(LANE)?;
        lanes.retain(|id| !damaged.contains(id));
        for id in lanes {
            let Some(LaneFile { header, .. }) = skip_damaged(self.lane(id))? else {
                continue;
            };
            if lane::name(&header) == name
                && is_left(lane::is_closed(&header), lives(lane::owner(&header))?)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether its lanes are kept in data files.
    pub fn is_logged(&self) -> bool {
        self.config.logged != 0
    }

    /// Bytes in the file of a lane.
    fn lane_size(&self, capacity: usize) -> usize {
        match self.is_logged() {
            true => PAGE,
            false => PAGE + capacity,
        }
    }

    fn adopt(
        &self,
        id: u64,
        member: u64,
        name: u64,
        capacity: usize,
        damaged: &mut Vec<u64>,
    ) -> Result<Option<(Held, Writer)>> {
        // Before it is locked: whom it is kept for finds it free.
        let is_ours = |lane: &LaneFile| {
            lane::name(&lane.header) == name && lane.ring.capacity() == capacity as u64
        };
        if !skip_damaged(self.lane(id))?.is_some_and(|lane| is_ours(&lane)) {
            return Ok(None);
        }
        let Some((lock, lane)) = skip_damaged(self.lane_to_close(id))? else {
            return Ok(None);
        };
        // Somebody may have had it meanwhile.
        if !is_ours(&lane) {
            return Ok(None);
        }
        self.repair_claims_on(&lane)?;
        let LaneFile { header, ring, .. } = lane;
        lane::own(&header, member, name, !futex::has_barrier());
        ring.touch();
        let adopted = skip_damaged(Self::take_up(&header, &ring));
        if !matches!(adopted, Ok(Some(_))) {
            // It has an owner who lives, and no writer.
            lane::close(&header);
            damaged.push(id);
        }
        Ok(adopted?.map(|writer| (lock, writer)))
    }

    /// `None`: it can't be followed to its end, and is left to its readers, who will say so.
    fn take_up(header: &View<LaneHeader>, ring: &Ring) -> Result<Option<Writer>> {
        let Ok(writer) = Writer::adopt(header.clone(), ring.clone()) else {
            return Ok(None);
        };
        if let Some(log) = ring.log() {
            log.scrub_behind(ring, writer.visible())?;
        }
        Ok(Some(writer))
    }

    /// A lane whose writer has gone, with its lock (*one writer*). `None`: there is none, or it has a writer.
    pub fn lane_to_close(&self, id: u64) -> Result<Option<(Held, LaneFile)>> {
        let failed = |e: nix::Error| Error::system("lock a lane of", &*self.name, e);
        let Some((file, lane)) = self.open_lane(id, Access::Write, Access::Write)? else {
            return Ok(None);
        };
        // Named still, once we hold the lock: whoever removes it holds it, too.
        let lock = self.lock(id)?;
        let is_named = lock.is_some() && files::is_named(&file).map_err(failed)?;
        Ok(lock.filter(|_| is_named).map(|lock| (lock, lane)))
    }

    /// The lane with this number, to be read. `None`: there is none any more.
    pub fn lane(&self, id: u64) -> Result<Option<LaneFile>> {
        Ok(self
            .open_lane(id, Access::Read, Access::Read)?
            .map(|(_, lane)| lane))
    }

    /// The same, to be followed by a subscriber. Its ring is mapped writable although nobody writes there: some
    /// processors (AMD's of the Zen 4 kind, as measured) hand a line over in 0.6 of the time if its page is.
    pub fn lane_to_follow(&self, id: u64) -> Result<Option<LaneFile>> {
        let ring = match self.is_logged() || self.is_observed() {
            true => Access::Read,
            false => Access::Write,
        };
        let opened = self.open_lane(id, Access::Read, ring)?;
        Ok(opened.map(|(_, lane)| {
            lane.ring.touch();
            lane
        }))
    }

    /// The lane with this number, of which whoever puts away what it has too much of may change how far that goes.
    pub fn lane_to_trim(&self, id: u64) -> Result<Option<LaneFile>> {
        let opened = self.open_lane(id, Access::Write, Access::Read)?;
        Ok(opened.map(|(_, lane)| lane))
    }

    fn open_lane(
        &self,
        id: u64,
        header: Access,
        ring: Access,
    ) -> Result<Option<(OwnedFd, LaneFile)>> {
        let name = format!("{LANE}{id}");
        let is_write = header == Access::Write || ring == Access::Write;
        let Some((file, identity)) = self.dir.open_file(&name, Kind::Lane, is_write)? else {
            return Ok(None);
        };
        let capacity = check_capacity_for(self.pattern, identity.capacity)
            .and_then(|capacity| {
                match identity.size == self.lane_size(capacity) as u64 && identity.id == id {
                    true => Ok(capacity),
                    false => Err(format!(
                        "its header says lane {}, {} bytes",
                        identity.id, identity.size
                    )),
                }
            })
            .map_err(|why| self.corrupt_lane(id, why))?;
        let (header, ring) = self.map_lane(id, &file, capacity, (header, ring))?;
        Ok(Some((file, LaneFile { id, header, ring })))
    }

    fn map_lane(
        &self,
        id: u64,
        file: &OwnedFd,
        capacity: usize,
        (header, ring): (Access, Access),
    ) -> Result<(View<LaneHeader>, Ring)> {
        if self.is_observed() {
            if capacity > MAX_OBSERVED {
                let why = format!("its {capacity} bytes are more than an observer takes");
                return Err(self.corrupt_lane(id, why));
            }
            let failed = |e: std::io::Error| Error::system("read a lane of", &*self.name, e);
            let file = Arc::new(file.try_clone().map_err(failed)?);
            let header = copy(&self.name, Arc::clone(&file), 0, PAGE)?.view(0);
            let ring = Ring::of_another(file, capacity).map_err(failed)?;
            return Ok((header, ring));
        }
        let header = map(&self.name, file, 0, PAGE, header)?.view(0);
        if self.is_logged() {
            let log = Log::new(&self.dir, &self.name, id, capacity as u64, ring)?;
            return Ok((header, Ring::of_log(log)));
        }
        let ring = map(&self.name, file, PAGE as u64, capacity, ring)?;
        Ok((header, Ring::new(&ring, capacity)))
    }

    /// What to say of a lane that is not one.
    pub fn corrupt_lane(&self, id: u64, why: String) -> Error {
        Error::new(
            ErrorKind::Corrupt,
            "read the topic",
            &*self.name,
            format!("lane {id} is damaged: {why}"),
        )
        .advise(match self.is_logged() {
            true => "restore it from a copy, or go on behind it (Subscriber::skip_damaged)",
            false => "stop its publisher, and remove that file if it stays; lanes that are followed already go on",
        })
    }

    /// The same of a frame.
    pub fn corrupt_frame(&self, id: u64, at: Corrupt) -> Error {
        let Corrupt { position, word } = at;
        if self.is_logged() {
            let log = Log::new(
                &self.dir,
                &self.name,
                id,
                self.capacity as u64,
                Access::Read,
            );
            let ring = match log.and_then(|log| log.arrive(position).map(|()| log)) {
                Ok(log) => Ring::of_log(log),
                Err(e) => return e,
            };
            if word == 0 && matches!(lane::whole_at(&ring, position), Ok(Some(_))) {
                let why = format!("lane {id} could not be followed at {position}");
                return Error::new(ErrorKind::TooMany, "read the topic", &*self.name, why).advise(
                    "acknowledge what is oldest, or raise the limit of open files and mappings",
                );
            }
            let why = format!("the frame at {position} is not as it was written, by its checksum");
            return self.corrupt_lane(id, why);
        }
        self.corrupt_lane(
            id,
            format!("the frame at {position} has the word {word:#018x}"),
        )
    }

    // ---------------------------------------------------------------------------------------------------- cursors

    /// A new cursor, without slots yet.
    pub fn new_cursor(&self, member: u64, is_lossy: bool) -> Result<(Held, Cursor)> {
        self.new_cursor_with(member, |cursor| {
            if is_lossy {
                cursor.set_lossy();
            }
        })
    }

    /// The same, with more to be said in it before anyone else sees it.
    pub(super) fn new_cursor_with(
        &self,
        member: u64,
        mut init: impl FnMut(&Cursor),
    ) -> Result<(Held, Cursor)> {
        let id = self.next_id()?;
        let size = CURSOR_SIZE as u64;
        let identity = Identity::new(Kind::Cursor, size, id, CURSOR_SLOTS as u64);
        let plan = Plan {
            tried: "make a cursor",
            identity,
            allocate: PAGE as u64,
            content: &[],
            lock: true,
        };
        let name = format!("{CURSOR}{id}");
        let staying = fork::stay();
        let made = self.dir.create(&name, &plan, |file| {
            let cursor = self.map_cursor(id, file, Access::Write)?;
            cursor.own(member, !futex::has_barrier());
            init(&cursor);
            Ok(cursor)
        })?;
        let (file, cursor) = made.ok_or_else(|| self.taken("cursor", id))?;
        Ok((staying.hold(file), cursor))
    }

    /// The cursor of an observer: nobody sees it, or waits for it.
    pub fn private_cursor(&self) -> Result<Cursor> {
        let map = Mapping::private(CURSOR_SIZE)
            .map_err(|e| Error::system("make a cursor for", &*self.name, e))?;
        let cursor = self.cursor_in(0, &map);
        cursor.set_lossy();
        Ok(cursor)
    }

    /// Its control page, read anew where it is copied.
    pub fn look_again(&self) -> Result<()> {
        if self.control.refresh() {
            return Ok(());
        }
        let why = "its file was truncated";
        Err(
            Error::new(ErrorKind::Corrupt, "observe the topic", &*self.name, why)
                .advise("ask who runs the bus"),
        )
    }

    /// Makes sure that slot `index` of a cursor of ours may be touched, whose file this is; that of an observer has none.
    pub fn allocate_slot(&self, file: Option<&impl AsFd>, index: usize) -> Result<()> {
        if index >= CURSOR_SLOTS {
            let why = format!("it has more than {CURSOR_SLOTS} publishers");
            return Err(
                Error::new(ErrorKind::TooMany, "join the topic", &*self.name, why)
                    .advise("use several topics"),
            );
        }
        let Some(file) = file else {
            return Ok(());
        };
        let offset = PAGE + index * size_of::<Slot>() / PAGE * PAGE;
        files::allocate(file, offset as u64, PAGE as u64)
            .map_err(|e| Error::system("make room in a cursor of", &*self.name, e))
    }

    /// The cursor with this number, as `write` (by the holder of its lock) or as its lanes' writers see it. `None`: it
    /// is gone.
    pub fn cursor(&self, id: u64, access: Access) -> Result<Option<(OwnedFd, Cursor)>> {
        let name = format!("{CURSOR}{id}");
        let Some((file, identity)) =
            self.dir
                .open_file(&name, Kind::Cursor, access == Access::Write)?
        else {
            return Ok(None);
        };
        if identity.id != id || identity.size != CURSOR_SIZE as u64 {
            let why = format!(
                "cursor {id} says that it is {}, {} bytes",
                identity.id, identity.size
            );
            return Err(
                Error::new(ErrorKind::Corrupt, "read the topic", &*self.name, why)
                    .advise("remove the topic when nobody uses it"),
            );
        }
        let cursor = self.map_cursor(id, &file, access)?;
        Ok(Some((file, cursor)))
    }

    // ---------------------------------------------------------------------------------------------- subscriptions

    /// Opens a named subscription, made if it is missing, with its lock; and whether it was made now.
    pub fn open_subscription(&self, member: u64, name: &str) -> Result<(Held, Cursor, bool)> {
        let file_name = format!("{SUBSCRIPTION}{name}");
        loop {
            if let Some((lock, cursor)) = self.lock_subscription(name)? {
                if cursor.is_joined() {
                    cursor.own(member, !futex::has_barrier());
                    return Ok((lock, cursor, false));
                }
                // Its maker has died over it. Nothing was promised yet.
                self.dir.remove(&file_name)?;
                continue;
            }
            let id = self.next_id()?;
            let size = CURSOR_SIZE as u64;
            let plan = Plan {
                tried: "make a subscription",
                identity: Identity::new(Kind::Subscription, size, id, CURSOR_SLOTS as u64),
                allocate: PAGE as u64,
                content: &[],
                lock: true,
            };
            let staying = fork::stay();
            let made = self.dir.create(&file_name, &plan, |file| {
                let cursor = self.map_cursor(id, file, Access::Write)?;
                cursor.own(member, !futex::has_barrier());
                Ok(cursor)
            })?;
            if let Some((file, cursor)) = made {
                let lock = staying.hold(file);
                if let Err(e) = self.dir.sync() {
                    self.remove_subscription(name, &cursor)?;
                    return Err(e);
                }
                return Ok((lock, cursor, true));
            }
        }
    }

    /// A named subscription that is there, with its lock. `None`: there is none.
    pub fn lock_subscription(&self, name: &str) -> Result<Option<(Held, Cursor)>> {
        let failed = |e: nix::Error| Error::system("lock a subscription of", &*self.name, e);
        let open = || self.subscription(name, Access::Write);
        // Somebody who tidies up has it for a moment.
        lock_named(ADOPTIONS, open, failed, || {
            let why = format!("somebody receives as {name} already");
            let tried = "use a subscription of";
            Error::new(ErrorKind::InUse, tried, &*self.name, why)
                .advise("end that one first, or take another name; to share the work, use a queue")
        })
    }

    /// The named subscription with this escaped name.
    pub fn subscription(&self, name: &str, access: Access) -> Result<Option<(OwnedFd, Cursor)>> {
        let file_name = format!("{SUBSCRIPTION}{name}");
        let file = self
            .dir
            .open_file(&file_name, Kind::Subscription, access == Access::Write)?;
        let Some((file, identity)) = file else {
            return Ok(None);
        };
        if identity.size != CURSOR_SIZE as u64 {
            let why = format!("subscription {name} says {} bytes", identity.size);
            return Err(
                Error::new(ErrorKind::Corrupt, "read the topic", &*self.name, why).advise(
                    "remove it (buslane rm TOPIC --subscription NAME --force), and begin anew",
                ),
            );
        }
        let cursor = self.map_cursor(identity.id, &file, access)?;
        Ok(Some((file, cursor)))
    }

    /// A place in a lane for a subscription that has none, at its beginning.
    pub(super) fn take_slot(&self, file: &OwnedFd, cursor: &Cursor, lane: u64) -> Result<()> {
        let slot = cursor.take_slot(|index| self.allocate_slot(Some(file), index))?;
        roster::enter(&self.control, lane, &cursor.slots[slot], 0);
        Ok(())
    }

    /// Has a subscription on the disk, by the holder of its lock.
    pub fn sync_subscription(&self, lock: &Held) -> Result<()> {
        files::sync(lock).map_err(|e| Error::system("sync a subscription of", &*self.name, e))
    }

    /// Removes a named subscription, by the holder of its lock: nobody waits for it any more.
    pub fn remove_subscription(&self, name: &str, cursor: &Cursor) -> Result<()> {
        self.dir.remove(&format!("{SUBSCRIPTION}{name}"))?;
        for slot in cursor.taken() {
            lane::leave(slot);
        }
        roster::changed(&self.control);
        Ok(())
    }

    /// The escaped names of the subscriptions.
    pub fn subscription_names(&self) -> Result<Vec<String>> {
        let names = self.dir.names()?;
        let names = names
            .iter()
            .filter_map(|name| name.strip_prefix(SUBSCRIPTION));
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Up to where every named subscription, every subscriber, and every group has passed a lane; 0 if there is nobody who may
    /// be away.
    pub fn passed_by_all(&self, lane: u64) -> Result<u64> {
        // Who can't be read may need everything.
        let is_damaged = |e: &Error| {
            matches!(
                e.kind(),
                ErrorKind::Corrupt | ErrorKind::NotBuslane | ErrorKind::Version
            )
        };
        let mut readers = Vec::new();
        let mut is_awaited = false;
        // Listed once: there may be many data files.
        for name in self.dir.names()? {
            let reader = if let Some(name) = name.strip_prefix(SUBSCRIPTION) {
                let named = self.subscription(name, Access::Read);
                is_awaited |= matches!(&named, Ok(Some((_, cursor))) if cursor.is_joined());
                named
            } else if let Some(id) = name.strip_prefix(CURSOR)
                && self.pattern != Pattern::Queue
            {
                let cursor = id.parse().map(|id| self.cursor(id, Access::Read));
                skip_damaged(cursor.unwrap_or(Ok(None)))
            } else {
                continue;
            };
            match reader {
                Ok(reader) => readers.extend(reader.map(|(_, cursor)| cursor)),
                Err(e) if is_damaged(&e) => return Ok(0),
                Err(e) => return Err(e),
            }
        }
        if self.pattern == Pattern::Queue {
            let listed = self.list_groups(lane)?;
            if listed.len() < self.group_names()?.len() {
                return Ok(0);
            }
            is_awaited |= !listed.is_empty();
            readers.extend(listed);
        }
        if !is_awaited {
            return Ok(0);
        }
        let position = |reader: Cursor| match reader.position_in(lane) {
            // Who has no place in it yet begins at its beginning.
            None => Some(0),
            Some(position) => (position & LEFT == 0).then_some(position),
        };
        Ok(readers
            .into_iter()
            .filter_map(position)
            .min()
            .unwrap_or(u64::MAX))
    }

    /// All subscriptions.
    pub fn subscriptions(&self) -> Result<Vec<Cursor>> {
        let mut all = Vec::new();
        for name in self.subscription_names()? {
            let subscription = skip_damaged(self.subscription(&name, Access::Read))?;
            all.extend(subscription.map(|(_, cursor)| cursor));
        }
        Ok(all)
    }

    fn map_cursor(&self, id: u64, file: &OwnedFd, access: Access) -> Result<Cursor> {
        let map = map(&self.name, file, 0, CURSOR_SIZE, access)?;
        Ok(self.cursor_in(id, &map))
    }

    fn cursor_in(&self, id: u64, map: &Arc<Mapping>) -> Cursor {
        let role = match self.pattern {
            Pattern::Queue => Role::Consumer,
            _ => Role::Subscriber,
        };
        Cursor {
            id,
            role,
            header: map.view(0),
            slots: map.views(PAGE, CURSOR_SLOTS),
        }
    }

    // ----------------------------------------------------------------------------------------------------- tables

    /// How large the tables of this state are.
    pub fn shape(&self) -> Result<Shape> {
        Shape::new(self.config.sizes).map_err(|why| {
            Error::new(ErrorKind::Corrupt, "open the topic", &*self.name, why)
                .advise("remove the topic when nobody uses it")
        })
    }

    /// A table to write: one whose writer has gone, with its values, else a new one.
    pub fn table_to_write(&self, member: u64) -> Result<(Held, u64, table::Writer)> {
        for id in self.dir.numbers(TABLE)? {
            if let Some(table) = skip_damaged(self.open_table(id, Access::Write))?
                && let Some(lock) = self.lock(id)?
                && let Some(writer) = table::Writer::own(table, member)
            {
                return Ok((lock, id, writer));
            }
        }
        let shape = self.shape()?;
        let (id, lock) = self.new_number("table")?;
        let size = shape.file_size() as u64;
        let plan = Plan {
            tried: "make a table",
            identity: Identity::new(Kind::Table, size, id, shape.keys as u64),
            allocate: size,
            content: &[],
            lock: false,
        };
        let made = self.dir.create(&format!("{TABLE}{id}"), &plan, |file| {
            let table = self.map_table(file, shape, Access::Write)?;
            Ok(table::Writer::own(table, member))
        })?;
        match made {
            Some((_, Some(writer))) => Ok((lock, id, writer)),
            _ => Err(self.taken("table", id)),
        }
    }

    /// The table with this number, to be read. `None`: there is none.
    pub fn table(&self, id: u64) -> Result<Option<Table>> {
        self.open_table(id, Access::Read)
    }

    fn open_table(&self, id: u64, access: Access) -> Result<Option<Table>> {
        let name = format!("{TABLE}{id}");
        let Some((file, identity)) =
            self.dir
                .open_file(&name, Kind::Table, access == Access::Write)?
        else {
            return Ok(None);
        };
        let shape = self.shape()?;
        if identity.id != id || identity.size != shape.file_size() as u64 {
            let why = format!(
                "table {id} says that it is {}, {} bytes",
                identity.id, identity.size
            );
            return Err(
                Error::new(ErrorKind::Corrupt, "read the topic", &*self.name, why)
                    .advise("remove the topic when nobody uses it"),
            );
        }
        self.map_table(&file, shape, access).map(Some)
    }

    fn map_table(&self, file: &OwnedFd, shape: Shape, access: Access) -> Result<Table> {
        let map = map(&self.name, file, 0, shape.file_size(), access)?;
        let slots = PAGE + 8 * shape.index_words();
        Ok(Table {
            shape,
            header: map.view(0),
            index: map.views(PAGE, shape.index_words()),
            slots: map.views(slots, shape.slots_words()),
        })
    }

    /// The numbers of the tables that there are, ascending.
    pub fn list_tables(&self) -> Result<Vec<u64>> {
        self.check_named()?;
        self.dir.numbers(TABLE)
    }

    /// What to say of a table that is not one.
    pub fn corrupt_table(&self, id: u64, at: Damaged) -> Error {
        let why = format!("table {id} is damaged: slot {} holds no value", at.slot);
        Error::new(ErrorKind::Corrupt, "read the topic", &*self.name, why)
            .advise("stop its writer, and remove that file")
    }

    /// The numbers of the lanes that there are, ascending.
    pub fn list_lanes(&self) -> Result<Vec<u64>> {
        self.check_named()?;
        self.dir.numbers(LANE)
    }

    fn check_named(&self) -> Result<()> {
        if self.exists()? {
            return Ok(());
        }
        Err(self.removed())
    }

    /// Whether it is what has this (escaped) name among the topics.
    pub fn has_name(&self, topics: &Dir, escaped: &str) -> Result<bool> {
        let named = topics.find_dir(escaped)?;
        named.map_or(Ok(false), |named| named.is_same(&self.dir))
    }

    /// What is said to who was in it when it was removed.
    pub fn removed(&self) -> Error {
        let why = "the topic was removed";
        Error::new(ErrorKind::NotFound, "go on with", &*self.name, why).advise("open it anew")
    }

    /// Compares the cursors that there are, and the groups of a queue as they stand in `lane`, with those `known`.
    pub fn list_cursors(&self, lane: u64, known: &[u64]) -> Result<Listed> {
        self.check_named()?;
        let there = self.dir.numbers(CURSOR)?;
        let mut new = Vec::new();
        for &id in there.iter().filter(|id| !known.contains(id)) {
            new.extend(skip_damaged(self.cursor(id, Access::Read))?.map(|(_, cursor)| cursor));
        }
        let mut named = self.list_groups(lane)?;
        named.extend(self.subscriptions()?);
        let gone = known.iter().copied().filter(|id| {
            there.binary_search(id).is_err() && !named.iter().any(|named| named.id == *id)
        });
        let gone = gone.collect();
        new.extend(named.into_iter().filter(|named| !known.contains(&named.id)));
        Ok(Listed { gone, new })
    }

    /// How many cursors there are that have joined.
    pub fn count_cursors(&self) -> Result<usize> {
        if self.is_observed() {
            return Err(files::observed("count the subscribers of", &self.name));
        }
        let mut count = 0;
        for id in self.dir.numbers(CURSOR)? {
            count += usize::from(
                skip_damaged(self.cursor(id, Access::Read))?
                    .is_some_and(|(_, cursor)| cursor.is_joined()),
            );
        }
        let named = self.subscriptions()?;
        Ok(count + named.iter().filter(|cursor| cursor.is_there()).count())
    }

    /// How many lanes there are that have a writer.
    pub fn count_open_lanes(&self) -> Result<usize> {
        let mut count = 0;
        for id in self.dir.numbers(LANE)? {
            count += usize::from(
                skip_damaged(self.lane(id))?.is_some_and(|lane| !lane::is_closed(&lane.header)),
            );
        }
        Ok(count)
    }

    /// Whether somebody who lives reads or writes here: holds the lock of a cursor or a lane.
    pub fn is_used(&self) -> Result<bool> {
        for id in self.dir.numbers(CURSOR)? {
            let name = format!("{CURSOR}{id}");
            let file = skip_damaged(self.dir.open_file(&name, Kind::Cursor, false))?;
            if let Some((file, _)) = file
                && files::is_locked(&file)
                    .map_err(|e| Error::system("look at a lock of", &*self.name, e))?
            {
                return Ok(true);
            }
        }
        for id in self.dir.numbers(LANE)? {
            if self.has_writer(id)? {
                return Ok(true);
            }
        }
        for name in self.subscription_names()? {
            let subscription = skip_damaged(self.subscription(&name, Access::Read))?;
            if let Some((file, _)) = subscription
                && files::is_locked(&file)
                    .map_err(|e| Error::system("look at a lock of", &*self.name, e))?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether there is a cursor, or a lane that is not closed, of one of these members.
    pub fn is_held_by(&self, members: &[u64]) -> Result<bool> {
        for id in self.dir.numbers(CURSOR)? {
            let cursor = skip_damaged(self.cursor(id, Access::Read))?;
            if cursor.is_some_and(|(_, cursor)| members.contains(&cursor.owner())) {
                return Ok(true);
            }
        }
        let holds = |named: &Cursor| !named.is_away() && members.contains(&named.owner());
        if self.subscriptions()?.iter().any(holds) {
            return Ok(true);
        }
        for id in self.dir.numbers(LANE)? {
            let lane = skip_damaged(self.lane(id))?;
            let held = |lane: LaneFile| {
                !lane::is_closed(&lane.header) && members.contains(&lane::owner(&lane.header))
            };
            if lane.is_some_and(held) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A number for a new lane, cursor, table or group.
    pub(super) fn next_id(&self) -> Result<u64> {
        roster::next_id(&self.control).ok_or_else(|| {
            let why = "it says that it has had as many lanes and cursors as there are numbers";
            Error::new(ErrorKind::Corrupt, "join the topic", &*self.name, why)
                .advise("remove the topic when nobody uses it")
        })
    }

    pub(super) fn taken(&self, what: &str, id: u64) -> Error {
        let why = format!("there is a {what} {id} already, which was not given that number here");
        Error::new(ErrorKind::Corrupt, "join the topic", &*self.name, why)
            .advise("remove the topic when nobody uses it")
    }
}

/// Bytes of the largest lane that is observed: addresses for it are taken, and another user says how many lanes there are.
const MAX_OBSERVED: usize = 1 << 33;

/// Whether a lane has no writer, also while somebody else has its lock to close it.
pub(super) fn is_left(is_closed: bool, owner_lives: bool) -> bool {
    is_closed || !owner_lives
}

/// Whether a capacity is one that a ring may have; else why not.
pub fn check_capacity(capacity: u64) -> Result<usize, String> {
    let range = MIN_CAPACITY as u64..=MAX_CAPACITY as u64;
    if !capacity.is_power_of_two() {
        Err(format!("the capacity {capacity} is no power of two"))
    } else if !range.contains(&capacity) {
        Err(format!(
            "the capacity {capacity} is not between {MIN_CAPACITY} and {MAX_CAPACITY}"
        ))
    } else {
        Ok(capacity as usize)
    }
}

/// Opens a file, with what is in it, and locks it, while it has the name that it was opened by; asked for so often, a millisecond
/// apart. `None`: there is none.
pub(super) fn lock_named<T>(
    tries: u32,
    open: impl Fn() -> Result<Option<(OwnedFd, T)>>,
    failed: impl Fn(nix::Error) -> Error,
    is_held: impl FnOnce() -> Error,
) -> Result<Option<(Held, T)>> {
    let mut tried = 0;
    loop {
        let staying = fork::stay();
        let Some((file, content)) = open()? else {
            return Ok(None);
        };
        if let Some(lock) = staying.try_lock(file).map_err(&failed)? {
            if files::is_named(&lock).map_err(&failed)? {
                return Ok(Some((lock, content)));
            }
            continue;
        }
        tried += 1;
        if tried == tries {
            return Err(is_held());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The largest capacity for a topic of this pattern.
pub fn most_for(pattern: Pattern) -> usize {
    match pattern {
        Pattern::Queue => MAX_QUEUE_CAPACITY,
        _ => MAX_CAPACITY,
    }
}

/// Whether a capacity is one for a topic of this pattern; else why not.
pub fn check_capacity_for(pattern: Pattern, capacity: u64) -> Result<usize, String> {
    let most = most_for(pattern);
    match check_capacity(capacity)? {
        capacity if capacity > most => {
            let name = pattern.name();
            Err(format!(
                "the capacity {capacity} is more than {most}, the most for a {name}"
            ))
        }
        capacity => Ok(capacity),
    }
}

/// The control page of the bus whose file this is; a copy of it, if it is only looked at.
pub fn map_bus(
    name: &str,
    file: &OwnedFd,
    identity: &Identity,
    is_observed: bool,
) -> Result<View<BusControl>> {
    let size = BUS_SIZE;
    if identity.size != size {
        let why = format!("its file says {} bytes, not {size}", identity.size);
        return Err(Error::new(ErrorKind::Corrupt, "open the bus", name, why)
            .advise("remove the bus when nobody uses it"));
    }
    let map = match is_observed {
        true => {
            let copy = |file| Mapping::copy(Arc::new(file), PAGE as u64, PAGE);
            file.try_clone().and_then(copy)
        }
        false => Mapping::new(file, PAGE as u64, PAGE, Access::Write),
    };
    let map = map.map_err(|e| Error::system("map the file of the bus", name, e))?;
    Ok(map.view(0))
}

pub(super) fn map(
    name: &str,
    file: &OwnedFd,
    offset: u64,
    len: usize,
    access: Access,
) -> Result<Arc<Mapping>> {
    Mapping::new(file, offset, len, access)
        .map_err(|e| Error::system("map a file of the topic", name, e))
}

fn copy(name: &str, file: Arc<OwnedFd>, offset: u64, len: usize) -> Result<Arc<Mapping>> {
    Mapping::copy(file, offset, len).map_err(|e| Error::system("read a file of the topic", name, e))
}
