//! Buses and topics: names, configuration, type fingerprints, and how they are opened.

use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::stat::Mode;
use nix::unistd::Uid;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use zerocopy::{FromBytes, IntoBytes};

use crate::durable::{DEFAULT_FILE, Keep, SyncPolicy};
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::{TopicReport, Verified};
use crate::message::{Any, Message, Payload, PayloadType};
use crate::presence::Presence;
use crate::pubsub::{Publisher, Start, Subscriber, SubscriptionBuilder};
use crate::reactor;
use crate::select::{Names, Selection};
use crate::shm::files::{self, Dir, Plan, Whom, skip_damaged};
use crate::shm::fork::{self, Held};
use crate::shm::layout::{BusConfig, BusControl, Identity, Kind, Pattern, TopicConfig, max_len};
use crate::shm::members::{self, Doorbell, Member, Owner};
use crate::shm::reclaim::{self, Reclaimed};
use crate::shm::recover::{Cut, recover};
use crate::shm::roster::Cursor;
use crate::shm::topic::{
    BUS_SIZE, LANE, TopicFiles, check_capacity, check_capacity_for, map_bus, most_for,
};
use crate::shm::{View, futex, lane, roster};
use crate::wait::WaitStrategy;

/// Bytes in a lane whose topic was made without saying how many: 4 MiB. Chosen by measurement: a ring that is larger
/// than the second-level cache streams small messages faster than one that fits it (see `docs/design.md`).
pub const DEFAULT_CAPACITY: usize = 4 << 20;
/// Where buses are, unless `BUSLANE_DIR` says otherwise: `buslane-<uid>` in here.
const ROOT: &str = "/dev/shm";
/// How often an observer looks, whom nobody wakes.
pub(crate) const OBSERVED_EVERY: Duration = Duration::from_millis(1);
/// How often a topic or inbox is made whose directory is taken away before it is one.
const TRIES: u32 = 100;
/// What a file name holds.
const NAME_MAX: usize = 255;
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// A bus: a directory that processes of one user share. Cheap to clone; the process leaves when the last clone, and all
/// that was made from it, is dropped.
///
/// Whoever opens a bus first makes it; whoever comes next puts away what the dead have left.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let path = dir.path().join("bus");
/// let bus = buslane::Bus::at(&path)?; // or Bus::open("name")
/// let mut subscriber = bus.topic("greetings")?.subscriber()?;
/// let mut publisher = bus.topic("greetings")?.publisher()?;
/// publisher.send(b"hello")?;
/// assert_eq!(&*subscriber.recv()?, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Bus(Arc<BusInner>);

struct BusInner {
    path: PathBuf,
    options: BusBuilder,
    control: View<BusControl>,
    topics: Arc<Dir>,
    /// `None`: it is only observed.
    joined: Option<Joined>,
    born: u64,
    is_durable: bool,
    /// What was cut off when this handle recovered it.
    cuts: Vec<Cut>,
}

/// What it is to be a member.
struct Joined {
    members: Arc<Dir>,
    // Before the member: it listens while there is something to listen for.
    doorbell: Mutex<Option<Doorbell>>,
    member: Member,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("path", &self.0.path)
            .finish_non_exhaustive()
    }
}

impl Bus {
    /// Opens the bus `name`, made if it is missing: `/dev/shm/buslane-<uid>/<name>`, or `$BUSLANE_DIR/<name>`.
    ///
    /// # Errors
    ///
    /// `InvalidName`, `ForeignOwner`, `Unsupported`, `NoSpace`, `NotBuslane`, `Version`, `Corrupt`, and the system's. Of a durable bus
    /// `TimedOut`, too, if another process that opens it does not go on.
    pub fn open(name: &str) -> Result<Self> {
        Self::builder().open(name)
    }

    /// Opens the bus in the directory `path`, which is made if it is missing (the one above it must exist). Unless it is durable, it
    /// should be in memory (`/dev/shm`): what a bus on a disk finds there when the machine was down may be torn.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn at(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().at(path)
    }

    /// Looks at the bus in this directory, whoever's it is, without taking part in it: for processes of other users, who may read
    /// the directory because the bus was made with such a [`mode`](BusBuilder::mode), and for whoever is to change nothing.
    ///
    /// Topics are listed, inspected and subscribed to as ever, but:
    ///
    /// - nobody waits for an observer, or knows of it: a subscriber that is too slow is told what it lost, as on a lossy topic;
    /// - nobody wakes it: once it sleeps, it looks once in a millisecond;
    /// - its owner is not trusted. Each message is read from the file, checked, and handed out as a copy (which takes about a
    ///   microsecond); a file that is truncated meanwhile, or overwritten, is an error;
    /// - it follows the first 256 publishers' lanes of a topic, of at most 8 GiB each; a lane that it can't follow is an error once, and then
    ///   passed over;
    /// - it does not see who lives: a publisher that died has left when one of its own user's processes has noticed;
    /// - it sees no members and no cursors, and what is in queues, states and durable topics it can't read.
    ///
    /// What would change something is the error [`Unsupported`](ErrorKind::Unsupported). Two users who both have something to say
    /// have a bus each, which the other one observes.
    ///
    /// ```
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let path = dir.path().join("bus");
    /// use buslane::Bus;
    ///
    /// let bus = Bus::builder().mode(0o755).at(&path)?; // all may look
    /// let mut publisher = bus.topic("prices")?.publisher()?;
    ///
    /// let mut watching = Bus::observe(&path)?.topic("prices")?.subscriber()?; // perhaps another user
    /// publisher.send(b"pears 3.20")?;
    /// assert_eq!(&*watching.recv()?, b"pears 3.20");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `NotFound`, `ForeignOwner` if others than its owner may write to it, `Unsupported`, `NotBuslane`, `Version`, `Corrupt`, and
    /// the system's.
    pub fn observe(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().observe(path)
    }

    /// Opens a bus otherwise than by default.
    pub fn builder() -> BusBuilder {
        BusBuilder::default()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether what is sent on it outlives its processes.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.0.is_durable
    }

    /// What was cut off when this handle opened a durable bus that nobody was on: what had not reached the disk when the machine
    /// went down. Nothing of what was synced is.
    #[must_use]
    pub fn cuts(&self) -> &[Cut] {
        &self.0.cuts
    }

    /// Opens a topic of bytes, made if it is missing. A name is one or more segments separated by `/`.
    ///
    /// # Errors
    ///
    /// `InvalidName`, `Mismatch` if it carries a type, and those of [`open`](Self::open).
    pub fn topic(&self, name: &str) -> Result<Topic> {
        self.topic_builder(name).open()
    }

    /// Opens a topic of `T`s, made if it is missing.
    ///
    /// # Errors
    ///
    /// As for [`topic`](Self::topic); `Mismatch` shows both types.
    pub fn typed<T: Message + 'static>(&self, name: &str) -> Result<Topic<T>> {
        self.topic_builder(name).open_typed()
    }

    /// Opens a topic otherwise than by default.
    pub fn topic_builder(&self, name: &str) -> TopicBuilder<'_> {
        let BusBuilder { wait, .. } = self.0.options;
        TopicBuilder {
            bus: self,
            name: name.to_owned(),
            capacity: None,
            made_with: self.0.options.capacity.unwrap_or(match self.0.is_durable {
                true => DEFAULT_FILE,
                false => DEFAULT_CAPACITY,
            }),
            lossy: None,
            sync: None,
            keep: None,
            carrying: None,
            wait,
            create: true,
        }
    }

    /// The names of its topics, sorted.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn topics(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (escaped, name) in self.topic_dirs()? {
            let Some(dir) = self.0.topics.find_dir(&escaped)? else {
                continue;
            };
            if dir.names()?.iter().any(|name| name == "topic") {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The directories in which there may be topics, and their names.
    pub(crate) fn topic_dirs(&self) -> Result<Vec<(String, String)>> {
        let name = |escaped: String| unescape(&escaped).map(|name| (escaped, name));
        let names = reclaim::names(&self.0.topics)?;
        Ok(names.into_iter().filter_map(name).collect())
    }

    /// Receives from all topics of bytes whose name matches `pattern`, those that come later, too. A `*` in place of a
    /// segment is any one segment, `**` any one or more: `orders/*` matches `orders/eu`, and not `orders` or
    /// `orders/eu/new`, which `orders/**` does match.
    ///
    /// # Errors
    ///
    /// `InvalidName`, `Unsupported` before Linux 5.16, and as for [`Topic::subscriber`].
    pub fn select(&self, pattern: &str) -> Result<Selection> {
        self.select_from(&[pattern], Start::Now)
    }

    /// The same, of topics of `T`s.
    ///
    /// # Errors
    ///
    /// As for [`select`](Self::select).
    pub fn select_typed<T: Message + 'static>(&self, pattern: &str) -> Result<Selection<T>> {
        self.select_from(&[pattern], Start::Now)
    }

    /// The same, of topics whose name matches one of `patterns`; of those that are there, from `start` on.
    ///
    /// # Errors
    ///
    /// As for [`select`](Self::select).
    pub fn select_from<T: ?Sized + Payload>(
        &self,
        patterns: &[&str],
        start: Start,
    ) -> Result<Selection<T>> {
        Selection::join(self, patterns, start, false)
    }

    /// The same, without any publisher waiting for it; see [`Topic::lossy_subscriber`].
    ///
    /// # Errors
    ///
    /// As for [`select`](Self::select).
    pub fn select_lossy<T: ?Sized + Payload>(
        &self,
        patterns: &[&str],
        start: Start,
    ) -> Result<Selection<T>> {
        Selection::join(self, patterns, start, true)
    }

    /// The names of the topics that match `pattern`, as [`select`](Self::select) has it, sorted.
    ///
    /// # Errors
    ///
    /// `InvalidName`, and the system's.
    pub fn topics_matching(&self, pattern: &str) -> Result<Vec<String>> {
        let wanted = Names::parse(&[pattern])?;
        let mut names = self.topics()?;
        names.retain(|name| wanted.match_any(name));
        Ok(names)
    }

    /// A number that has changed when a topic was made, or removed, since it was read before. No system call, unless the bus is only
    /// observed.
    #[must_use]
    pub fn topics_version(&self) -> u64 {
        // What is observed and was truncated is as it was.
        self.0.control.refresh();
        roster::topics(&self.0.control)
    }

    /// Looks at a topic from outside: nobody is slowed down, and nothing is made.
    ///
    /// # Errors
    ///
    /// `NotFound`, and those of [`open`](Self::open).
    pub fn inspect(&self, topic: &str) -> Result<TopicReport> {
        TopicReport::look(&self.files(topic)?.ok_or_else(|| not_found(topic))?, |id| {
            self.owner(id)
        })
    }

    /// Looks at every byte that a durable topic keeps, from outside: whether it is as it was written. Of what is not durable nothing
    /// is kept.
    ///
    /// # Errors
    ///
    /// `NotFound`, and those of [`open`](Self::open). What is damaged is no error.
    pub fn verify(&self, topic: &str) -> Result<Verified> {
        Verified::look(&self.files(topic)?.ok_or_else(|| not_found(topic))?)
    }

    /// The processes that are on this bus, this one included, and those that died and were not put away yet. May have
    /// changed by the time it returns.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn members(&self) -> Result<Vec<Owner>> {
        let all = members::all(&self.joined("look at the members of")?.members)?;
        Ok(all.into_iter().map(|(_, owner)| owner).collect())
    }

    /// Who a member is. An observer takes all for living whom it can't see.
    pub(crate) fn owner(&self, member: u64) -> Result<Owner> {
        match &self.0.joined {
            Some(joined) => members::owner(&joined.members, member),
            None => Ok(Owner::unseen(true)),
        }
    }

    /// Removes a topic, and all that is in it.
    ///
    /// # Errors
    ///
    /// `InUse` if somebody who lives publishes to it or receives from it, unless `force`: they are told so by `NotFound`,
    /// when they next look who is there. `NotFound`, `Forked`, and the system's.
    pub fn remove_topic(&self, name: &str, force: bool) -> Result<()> {
        self.check_fork()?;
        let escaped = escape(name)?;
        let files = self.files(name)?.ok_or_else(|| not_found(name))?;
        let in_use = || {
            Error::new(
                ErrorKind::InUse,
                "remove the topic",
                name,
                "somebody publishes to it, or receives from it",
            )
            .advise("end them first (buslane inspect shows who), or force it (--force)")
        };
        if !force && files.is_used()? {
            return Err(in_use());
        }
        // Away from under its name in one step: whoever comes later makes a new one.
        let topics = &self.0.topics;
        let aside = reclaim::aside(topics, &escaped, self.member()?)?;
        let aside = aside.ok_or_else(|| not_found(name))?;
        let give_back = || -> Result<bool> {
            let is_back = topics.rename(&aside, &escaped)?;
            if is_back {
                // Who has listed the topics meanwhile has not seen it.
                roster::topics_changed(self.control());
            }
            Ok(is_back)
        };
        // Another one may have come by the name since it was opened.
        let opened = topics.dir(&aside);
        let opened = skip_damaged(opened.and_then(|dir| TopicFiles::open(dir, name)));
        let files = opened.or_else(|e| give_back().and(Err(e)))?;
        // Somebody who had found it just before may have joined meanwhile.
        let is_used = match &files {
            Some(files) if !force => files.is_used(),
            _ => Ok(false),
        };
        let why = is_used.map_or_else(Some, |is_used| is_used.then(in_use));
        if let Some(why) = why
            && give_back()?
        {
            if let Some(files) = &files {
                // Who has put away meanwhile what the dead had left has not seen it either.
                self.leave_to_others(reclaim::tidy(files));
            }
            return Err(why);
        }
        // Before what may fail: its name is free already, and who is in it is not to go on.
        if let Some(files) = &files {
            roster::remove(&files.control);
        }
        roster::topics_changed(self.control());
        topics.remove_all(&aside)
    }

    /// Removes the whole bus: its directory, and all that is in it.
    ///
    /// # Errors
    ///
    /// `InUse` if another process is on it (or another handle of this one), unless `force`: they never meet those who open a
    /// bus of this name later. `Forked`, and the system's.
    pub fn remove(self, force: bool) -> Result<()> {
        self.check_fork()?;
        let path = &self.0.path;
        let shown = path.display().to_string();
        let failed = |e: std::io::Error| Error::system("remove the bus", &*shown, e);
        let Joined {
            members, member, ..
        } = self.joined("remove the bus")?;
        let others = || -> Result<usize> {
            let all = members::all(members)?;
            let alive = all.into_iter().filter(|(_, owner)| owner.alive);
            Ok(alive.filter(|(id, _)| *id != member.id()).count())
        };
        let in_use = |others: usize| {
            let why = format!("{others} others are on it");
            Error::new(ErrorKind::InUse, "remove the bus", &*shown, why)
                .advise("end them first (buslane doctor shows who), or force it (--force)")
        };
        let early = others()?;
        if early > 0 && !force {
            return Err(in_use(early));
        }
        // Away from under its name in one step: whoever comes later makes a new one.
        let number = files::random().map_err(failed)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!(".{name}.removed-{number:016x}"));
        std::fs::rename(path, &aside).map_err(failed)?;
        let remove = || {
            // Somebody who had found it just before may have joined meanwhile.
            let late = if force { 0 } else { others()? };
            if late > 0 && std::fs::rename(&aside, path).is_ok() {
                return Err(in_use(late));
            }
            Dir::open(&aside, None)?.clear()?;
            std::fs::remove_dir(&aside).map_err(failed)
        };
        // What is left of it is a bus again, unless there is a new one: to be used, or removed again.
        remove().inspect_err(|_| drop(std::fs::rename(&aside, path)))
    }

    /// Puts away what dead processes have left. This is done without being asked, too: when a bus is opened, and soon
    /// after a death while somebody listens.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn reclaim(&self) -> Result<Reclaimed> {
        self.check_fork()?;
        let members = &self.joined("reclaim what the dead left on")?.members;
        reclaim::sweep(members, &self.0.topics, &self.0.control)
    }

    pub(crate) fn control(&self) -> &View<BusControl> {
        &self.0.control
    }

    pub(crate) fn wait(&self) -> WaitStrategy {
        self.0.options.wait
    }

    fn joined(&self, tried: &'static str) -> Result<&Joined> {
        let shown = || self.0.path.display().to_string();
        let joined = self.0.joined.as_ref();
        joined.ok_or_else(|| files::observed(tried, &shown()))
    }

    /// Whether nothing is changed on it by this handle, and what is read is not trusted to stay: see [`Bus::observe`].
    #[must_use]
    pub fn is_observed(&self) -> bool {
        self.0.joined.is_none()
    }

    /// When an observer, whom nobody wakes, is to look again.
    pub(crate) fn observed_again(&self) -> Option<Instant> {
        self.is_observed().then(|| Instant::now() + OBSERVED_EVERY)
    }

    pub(crate) fn member(&self) -> Result<u64> {
        Ok(self.joined("take part in")?.member.id())
    }

    /// Has this process learn of deaths from now on.
    pub(crate) fn listen(&self) -> Result<()> {
        self.check_fork()?;
        if cfg!(adversary) {
            // Another thread would look at files that a fuzzer is about to write, and not at the same ones each time.
            return Ok(());
        }
        let Some(joined) = &self.0.joined else {
            return Ok(());
        };
        let mut doorbell = joined
            .doorbell
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if doorbell.is_none() {
            // In a process with a second thread, the doorbell's, registering takes milliseconds.
            futex::has_barrier();
            let (members, topics) = (Arc::clone(&joined.members), Arc::clone(&self.0.topics));
            let control = self.0.control.clone();
            let name = self.0.path.display().to_string();
            *doorbell = Some(Doorbell::listen(
                Arc::clone(&joined.members),
                &name,
                move || {
                    // What can't be put away now is tried again, and told to the next one who opens the bus.
                    reclaim::sweep(&members, &topics, &control)
                        .is_ok_and(|found| found.lingering == 0)
                },
            )?);
            // Who has died since the bus was opened has rung for nobody here.
            reclaim::sweep(&joined.members, &self.0.topics, &self.0.control)?;
        }
        Ok(())
    }

    /// What of ours could not be put away, others put away when this process has left, as if it had died.
    pub(crate) fn leave_to_others<T>(&self, put_away: Result<T>) {
        // What is gone need not be.
        if let Some(joined) = &self.0.joined
            && put_away.is_err_and(|e| e.kind() != ErrorKind::NotFound)
        {
            joined.member.owe();
        }
    }

    pub(crate) fn check_fork(&self) -> Result<()> {
        if self.0.born == fork::generation() {
            Ok(())
        } else {
            Err(forked("use the bus", &self.0.path.display().to_string()))
        }
    }

    /// Makes a topic, unless somebody was faster, and opens it.
    fn make_topic(
        &self,
        escaped: &str,
        name: &str,
        capacity: usize,
        config: &TopicConfig,
    ) -> Result<Option<TopicFiles>> {
        let mut tries = 0;
        loop {
            tries += 1;
            let dir = self.0.topics.make_dir(escaped, Whom::All);
            match dir.and_then(|dir| TopicFiles::create(dir, name, capacity, config)) {
                // Another one that could not make it has taken the directory away.
                Err(e) if e.kind() == ErrorKind::NotFound && tries < TRIES => {}
                Err(e) => {
                    // It is empty, unless another one is at it.
                    let _ = self.0.topics.remove_empty(escaped);
                    return Err(e);
                }
                // Another one has put the directory aside, to remove it, before there was a topic in it again.
                Ok(Some(files)) if !files.has_name(&self.0.topics, escaped)? && tries < TRIES => {}
                made => return made,
            }
        }
    }

    /// Makes an inbox for replies: its number, which is not used again.
    pub(crate) fn make_inbox(
        &self,
        carries: &PayloadType,
        capacity: usize,
        wait: WaitStrategy,
    ) -> Result<(u64, Arc<TopicInner>)> {
        self.check_fork()?;
        let sizes = [self.member()?, 0, 0];
        let config = carries.to_config(Pattern::Inbox, sizes).ok_or_else(|| {
            let why = format!("the type's name has {} bytes", carries.name().len());
            Error::new(ErrorKind::InvalidName, "make an inbox", carries.name(), why)
                .advise("use at most 192")
        })?;
        capacity_or_error("make an inbox", carries.name(), capacity)?;
        let make = || -> Result<_> {
            let random = files::random();
            let number = random.map_err(|e| Error::system("make", "an inbox", e))?;
            let name = reclaim::inbox_name(number);
            let dir = self.0.topics.make_dir(&name, Whom::All);
            let made = dir.and_then(|dir| TopicFiles::create(dir, &name, capacity, &config));
            let files = made.inspect_err(|_| {
                self.leave_to_others(self.remove_inbox(number));
            })?;
            Ok(files.map(|files| (number, self.inner(files, wait))))
        };
        let mut tries = 0;
        loop {
            tries += 1;
            match make() {
                // 0 is that of nobody.
                Ok(Some((number, inbox))) if number != 0 => return Ok((number, inbox)),
                Ok(_) => {}
                // Who puts away what the dead have left may have taken it for that, while it was empty.
                Err(e) if e.kind() == ErrorKind::NotFound && tries < TRIES => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The inbox with this number. `None`: it is gone.
    pub(crate) fn open_inbox(
        &self,
        number: u64,
        wait: WaitStrategy,
    ) -> Result<Option<Arc<TopicInner>>> {
        self.check_fork()?;
        let name = reclaim::inbox_name(number);
        let files = self.open_files(&name, &name)?;
        let files = files.filter(|files| files.pattern == Pattern::Inbox);
        Ok(files.map(|files| self.inner(files, wait)))
    }

    /// Whether there is an inbox with this number. What can't be looked at may be there.
    pub(crate) fn has_inbox(&self, number: u64) -> bool {
        let dir = self.0.topics.dir(&reclaim::inbox_name(number));
        dir.map_or_else(|e| e.kind() != ErrorKind::NotFound, |_| true)
    }

    /// Removes an inbox of ours.
    pub(crate) fn remove_inbox(&self, number: u64) -> Result<()> {
        self.check_fork()?;
        reclaim::remove_topic(&self.0.topics, &reclaim::inbox_name(number))
    }

    fn inner(&self, files: TopicFiles, wait: WaitStrategy) -> Arc<TopicInner> {
        let bus = self.clone();
        Arc::new(TopicInner { files, bus, wait })
    }

    fn files(&self, name: &str) -> Result<Option<TopicFiles>> {
        self.open_files(&escape(name)?, name)
    }

    fn open_files(&self, escaped: &str, name: &str) -> Result<Option<TopicFiles>> {
        match self.0.topics.dir(escaped) {
            Ok(dir) => TopicFiles::open(dir, name),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// What is said in a forked child.
pub(crate) fn forked(tried: &'static str, on: &str) -> Error {
    Error::new(
        ErrorKind::Forked,
        tried,
        on,
        "this process was forked from the one that opened it",
    )
    .advise("open the bus anew in the child")
}

fn not_found(topic: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        "open the topic",
        topic,
        "there is no such topic",
    )
    .advise("list the topics (buslane ls), or publish to it first")
}

/// Opens a [`Bus`] otherwise than by default.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// use buslane::{Bus, WaitStrategy};
///
/// let bus = Bus::builder().capacity(1 << 20).wait(WaitStrategy::Sleep).at(dir.path().join("bus"))?;
/// assert_eq!(bus.topic("t")?.capacity(), 1 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct BusBuilder {
    capacity: Option<usize>,
    mode: u32,
    durable: bool,
    wait: WaitStrategy,
    create: bool,
    reclaim: bool,
}

impl Default for BusBuilder {
    fn default() -> Self {
        Self {
            capacity: None,
            mode: 0o700,
            durable: false,
            wait: WaitStrategy::default(),
            create: true,
            reclaim: true,
        }
    }
}

impl BusBuilder {
    /// Bytes in the lanes of topics that are made through this bus: a power of two from 4 KiB up. A publisher takes
    /// that and 4 KiB of memory. By default [`DEFAULT_CAPACITY`]. On a durable bus it is the bytes in each data file, of which a
    /// publisher takes two, and the default is [`DEFAULT_FILE`].
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = Some(bytes);
        self
    }

    /// Whether the bus, if this makes it, is durable: what is sent stays, on disk, for who is away, also when all processes
    /// have ended. One that is there is what it was made as; if this says that it is durable, and it is not, that is the error
    /// `Mismatch`. It has to be on a disk: see [`at`](Self::at), or set `BUSLANE_DIR`.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("bus");
    /// use buslane::Bus;
    ///
    /// let bus = Bus::builder().durable(true).capacity(65536).at(&path)?;
    /// bus.topic("orders")?.subscription("billing")?; // it is away from here on
    /// bus.topic("orders")?.publisher()?.send(b"100 pears")?;
    /// drop(bus);
    ///
    /// let bus = Bus::at(&path)?; // in another process, after a restart
    /// let mut billing = bus.topic("orders")?.subscription("billing")?;
    /// assert_eq!(&*billing.recv()?, b"100 pears");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// The mode of the bus directory, if this makes the bus: by default `0o700`, nobody else. Others may be let in to look
    /// ([`Bus::observe`]), never to write: by `0o750` the directory's group, by `0o755` all, whatever the umask. A directory that
    /// is there already lets in those, too, then. The files of topics and lanes get the same without the execute bits; what
    /// processes agree by is the owner's alone in any case.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// How publishers and subscribers of this bus wait, unless their topic says otherwise.
    pub fn wait(mut self, wait: WaitStrategy) -> Self {
        self.wait = wait;
        self
    }

    /// Whether a missing bus is made; if not, it is the error `NotFound`. By default it is.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Whether to put away, on opening, what dead processes have left; if not, one may look at it first. By default it is
    /// done.
    pub fn reclaim(mut self, reclaim: bool) -> Self {
        self.reclaim = reclaim;
        self
    }

    /// Opens the bus with this name; see [`Bus::open`].
    ///
    /// # Errors
    ///
    /// As there, and `InvalidCapacity`, `InvalidMode`.
    pub fn open(self, name: &str) -> Result<Bus> {
        let why = match name {
            "" => "the name is empty",
            "." | ".." => "the name would lead out of the directory of buses",
            _ if name.contains(['/', '\0']) => "a bus name has no '/'",
            _ if name.len() > NAME_MAX => "the name is longer than 255 bytes",
            _ => {
                let root = match std::env::var_os("BUSLANE_DIR") {
                    Some(root) => PathBuf::from(root),
                    None if self.durable => {
                        let why = "buses without a path are in memory (/dev/shm), which is lost with the machine";
                        return Err(Error::new(
                            ErrorKind::Unsupported,
                            "open the durable bus",
                            name,
                            why,
                        )
                        .advise(
                            "give a path on a disk (Bus::at, --bus PATH), or set BUSLANE_DIR",
                        ));
                    }
                    None => {
                        let root = Path::new(ROOT).join(format!("buslane-{}", Uid::effective()));
                        Dir::open(&root, self.create.then_some(Mode::S_IRWXU))?;
                        root
                    }
                };
                return self.at(root.join(name));
            }
        };
        Err(Error::new(
            ErrorKind::InvalidName,
            "open the bus",
            format!("{name:?}"),
            why,
        )
        .advise("give a name, or a path to Bus::at (--bus PATH)"))
    }

    /// Opens the bus that a person, or a file, names: by the path of its directory if that contains a `/`, else by its name.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn open_name_or_path(self, text: &str) -> Result<Bus> {
        match text.contains('/') {
            true => self.at(text),
            false => self.open(text),
        }
    }

    /// Opens the bus in this directory; see [`Bus::at`].
    ///
    /// # Errors
    ///
    /// As there, and `InvalidCapacity`, `InvalidMode`.
    pub fn at(self, path: impl AsRef<Path>) -> Result<Bus> {
        let path = path.as_ref();
        let shown = path.display().to_string();
        if let Some(capacity) = self.capacity {
            capacity_or_error("open the bus", &shown, capacity)?;
        }
        if self.mode & !0o777 != 0 || self.mode & 0o700 != 0o700 || self.mode & 0o022 != 0 {
            let why = format!(
                "the mode {:#o} keeps the owner out, or lets others write",
                self.mode
            );
            return Err(
                Error::new(ErrorKind::InvalidMode, "open the bus", shown, why)
                    .advise("use 0o700, or 0o750 or 0o755 to let others read"),
            );
        }
        let mode = self.create.then_some(Mode::from_bits_truncate(self.mode));
        let mut root = Dir::open(path, mode)?;
        root.check_filesystem()?;
        let mut found = open_bus_file(&root, &shown)?;
        if let Some(mode) = mode
            && found.is_none()
        {
            // Before the file that makes it a bus.
            root = root.let_in(mode)?;
            root.make_dir("members", Whom::Owner)?;
            root.make_dir("topics", Whom::All)?;
            let identity = Identity::new(Kind::Bus, BUS_SIZE, 0, 0);
            let config = BusConfig {
                durable: self.durable.into(),
            };
            let plan = Plan {
                tried: "make the bus",
                identity,
                allocate: identity.size,
                content: config.as_bytes(),
                lock: false,
            };
            let made = root.create("bus", &plan, |file| {
                files::sync(file).map_err(|e| Error::system("sync the bus", &*shown, e))
            })?;
            if made.is_some() && self.durable {
                root.sync()?;
                root.sync_above()?;
            }
            found = open_bus_file(&root, &shown)?;
        }
        let (control, is_durable) = found.ok_or_else(|| no_bus(shown.clone()))?;
        if !root.is_private()? {
            reactor::sleep_in_slices();
        }
        if self.durable && !is_durable {
            let why = "it was made, and not as a durable one";
            return Err(Error::new(ErrorKind::Mismatch, "open the durable bus", shown, why)
                .advise("use another path, or remove the bus (buslane rm --whole-bus) when nobody uses it"));
        }
        // A copy of a bus that was put back may lack what was empty.
        let inner = |name, for_whom| match root.find_dir(name)? {
            Some(dir) => Ok(Arc::new(dir)),
            None if self.create => root.make_dir(name, for_whom).map(Arc::new),
            None => root.dir(name).map(Arc::new),
        };
        let (members, topics) = (inner("members", Whom::Owner)?, inner("topics", Whom::All)?);
        let mut cuts = Vec::new();
        let mut opening = None;
        if is_durable {
            // Held until we are a member: one at a time finds out whether it is the first.
            opening = Some(lock_bus(&shown, &root)?);
            let others = members::all(&members)?;
            if !others.iter().any(|(_, owner)| owner.alive) {
                cuts = recover(&topics, &control)?;
            }
        }
        if self.reclaim {
            reclaim::sweep(&members, &topics, &control)?;
        }
        let member = Member::join(Arc::clone(&members), &shown)?;
        drop(opening);
        let joined = Joined {
            members,
            doorbell: Mutex::new(None),
            member,
        };
        Ok(Bus(Arc::new(BusInner {
            path: path.to_owned(),
            options: self,
            control,
            topics,
            joined: Some(joined),
            born: fork::generation(),
            is_durable,
            cuts,
        })))
    }

    /// Looks at the bus in this directory; see [`Bus::observe`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn observe(self, path: impl AsRef<Path>) -> Result<Bus> {
        let path = path.as_ref();
        let shown = path.display().to_string();
        let root = Dir::observe(path)?;
        root.check_filesystem()?;
        let found = open_bus_file(&root, &shown)?;
        let (control, is_durable) = found.ok_or_else(|| no_bus(shown))?;
        Ok(Bus(Arc::new(BusInner {
            path: path.to_owned(),
            options: self,
            control,
            topics: Arc::new(root.dir("topics")?),
            joined: None,
            born: fork::generation(),
            is_durable,
            cuts: Vec::new(),
        })))
    }
}

fn no_bus(shown: String) -> Error {
    let why = "there is no bus in this directory";
    Error::new(ErrorKind::NotFound, "open the bus", shown, why)
        .advise("check the path, or start a publisher or subscriber first")
}

/// The control page of the file that says that a directory is a bus, and whether it is durable.
fn open_bus_file(root: &Dir, shown: &str) -> Result<Option<(View<BusControl>, bool)>> {
    let write = !root.is_observed();
    let Some((file, identity)) = root.open_file("bus", Kind::Bus, write)? else {
        return Ok(None);
    };
    let control = map_bus(shown, &file, &identity, root.is_observed())?;
    let mut config = [0; size_of::<BusConfig>()];
    files::read_at(&file, size_of::<Identity>() as u64, &mut config)
        .map_err(|e| Error::system("read the bus", shown, e))?;
    let config = BusConfig::read_from_bytes(&config).expect("as many bytes as it has");
    Ok(Some((control, config.durable != 0)))
}

/// How long to wait for who recovers a bus.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(60);

/// The lock of a durable bus, for who opens it.
fn lock_bus(shown: &str, root: &Dir) -> Result<Held> {
    let started = Instant::now();
    loop {
        let staying = fork::stay();
        let locked = staying.try_lock(root.make_locks()?);
        if let Some(held) = locked.map_err(|e| Error::system("lock the bus", shown, e))? {
            return Ok(held);
        }
        if started.elapsed() > RECOVERY_PATIENCE {
            let why = "another process is opening it, and does not go on";
            return Err(Error::new(ErrorKind::TimedOut, "open the bus", shown, why)
                .advise("look for a stopped process, or wait: much to recover may take long"));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn capacity_or_error(tried: &'static str, on: &str, capacity: usize) -> Result<()> {
    check_capacity(capacity as u64)
        .map(drop)
        .map_err(|why| invalid_capacity(tried, on, why))
}

fn invalid_capacity(tried: &'static str, on: &str, why: String) -> Error {
    Error::new(ErrorKind::InvalidCapacity, tried, on, why)
        .advise("use a power of two, 4 KiB or more, and for a queue 32 GiB at most")
}

/// Opens a [`Topic`] otherwise than by default. Made by [`Bus::topic_builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct TopicBuilder<'a> {
    bus: &'a Bus,
    name: String,
    capacity: Option<usize>,
    /// The capacity of one that is made without saying it.
    made_with: usize,
    lossy: Option<bool>,
    sync: Option<SyncPolicy>,
    keep: Option<Keep>,
    /// What one that is made carries, if that is not the type it is opened as.
    carrying: Option<PayloadType>,
    wait: WaitStrategy,
    create: bool,
}

impl TopicBuilder<'_> {
    /// When what is sent is on the disk, on a durable bus; an existing topic must be the same.
    pub fn sync(mut self, sync: SyncPolicy) -> Self {
        self.sync = Some(sync);
        self
    }

    /// How long messages are kept, on a durable bus; an existing topic must be the same.
    pub fn keep(mut self, keep: Keep) -> Self {
        self.keep = Some(keep);
        self
    }

    /// Bytes in each lane of this topic, in each data file if it is durable; an existing topic must have the same.
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = Some(bytes);
        self
    }

    /// Whether publishers overwrite what slow subscribers have not read, who are told what they lost, instead of waiting
    /// for them; an existing topic must be the same. If this is not said, a topic is opened as it is, and made lossless.
    pub fn lossy(mut self, lossy: bool) -> Self {
        self.lossy = Some(lossy);
        self
    }

    /// How publishers and subscribers made from this handle wait.
    pub fn wait(mut self, wait: WaitStrategy) -> Self {
        self.wait = wait;
        self
    }

    /// Whether a missing topic is made; if not, it is the error `NotFound`. By default it is.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Opens it, of bytes.
    ///
    /// # Errors
    ///
    /// As for [`Bus::topic`], and `InvalidCapacity`; `Unsupported` if it is to be synced or kept on a bus that is not durable.
    pub fn open(self) -> Result<Topic> {
        self.open_as()
    }

    /// Opens it, of `T`s.
    ///
    /// # Errors
    ///
    /// As for [`Bus::typed`], and `InvalidCapacity`.
    pub fn open_typed<T: Message + 'static>(self) -> Result<Topic<T>> {
        self.open_as()
    }

    /// Opens it, of whatever type it carries; one that is made carries bytes.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn open_any(self) -> Result<Topic<Any>> {
        self.open_as()
    }

    /// Opens it, of a type that is known by its description; one that is made carries that.
    ///
    /// # Errors
    ///
    /// As for [`Bus::typed`], and `InvalidName` if the type's name is too long.
    pub fn open_described(mut self, carries: &PayloadType) -> Result<Topic<Any>> {
        self.carrying = Some(carries.clone());
        self.open_as()
    }

    pub(crate) fn open_as<T: ?Sized + Payload>(self) -> Result<Topic<T>> {
        let patterns = match self.lossy {
            None => &[Pattern::Lossless, Pattern::Lossy][..],
            Some(false) => &[Pattern::Lossless],
            Some(true) => &[Pattern::Lossy],
        };
        Ok(Topic {
            inner: self.open_inner(patterns, &T::describe(), [0; 3])?,
            kind: PhantomData,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes in each lane of this topic, if it is made now and nothing else is said.
    pub(crate) fn made_with(mut self, bytes: usize) -> Self {
        self.made_with = bytes;
        self
    }

    /// Opens a topic of one of these `patterns`, that carries `ours`; one that is missing is made of the first, with these
    /// `sizes`.
    pub(crate) fn open_inner(
        self,
        patterns: &[Pattern],
        ours: &PayloadType,
        sizes: [u64; 3],
    ) -> Result<Arc<TopicInner>> {
        let Self {
            bus,
            name,
            capacity,
            made_with,
            lossy: _,
            sync,
            keep,
            carrying,
            wait,
            create,
        } = self;
        let ours = carrying.as_ref().unwrap_or(ours);
        let tried = "open the topic";
        bus.check_fork()?;
        let escaped = escape(&name)?;
        if let Some(capacity) = capacity {
            capacity_or_error(tried, &name, capacity)?;
        }
        if !bus.is_durable() && (sync.is_some() || keep.is_some()) {
            let why = "the bus is not durable: nothing is kept, or synced";
            return Err(Error::new(ErrorKind::Unsupported, tried, &*name, why)
                .advise("leave that out, or use a bus that was made as durable"));
        }
        let files = match bus.files(&name)? {
            Some(files) => Some(files),
            None if create && !bus.is_observed() => {
                let mut config = ours.to_config(patterns[0], sizes).ok_or_else(|| {
                    let why = format!("the type's name has {} bytes", ours.name().len());
                    Error::new(ErrorKind::InvalidName, tried, &*name, why).advise("use at most 192")
                })?;
                let is_logged = matches!(patterns[0], Pattern::Lossless | Pattern::Queue);
                config.logged = u64::from(bus.is_durable() && is_logged);
                config.sync_ns = sync.unwrap_or_default().to_ns();
                (config.keep_bytes, config.keep_ns) = keep.unwrap_or_default().to_sizes();
                let capacity = capacity.unwrap_or(made_with.min(most_for(patterns[0])));
                check_capacity_for(patterns[0], capacity as u64)
                    .map_err(|why| invalid_capacity(tried, &name, why))?;
                let files = bus.make_topic(&escaped, &name, capacity, &config)?;
                if bus.is_durable() {
                    bus.0.topics.sync()?;
                }
                roster::topics_changed(&bus.0.control);
                files
            }
            None => None,
        };
        let files = files.ok_or_else(|| not_found(&name))?;
        let mismatch = |why: String, todo: &'static str| {
            Err(Error::new(ErrorKind::Mismatch, tried, &*name, why).advise(todo))
        };
        if !patterns.contains(&files.pattern) {
            let why = format!(
                "its pattern is {}, and this program means {}",
                files.pattern.name(),
                patterns[0].name()
            );
            return mismatch(why, "open it as what it is, or use another topic");
        }
        let theirs = PayloadType::from_config(&files.config);
        if !ours.admits(&theirs) {
            let why = format!("it carries {theirs}, and this program means {ours}");
            return mismatch(why, "let both use the same type, or another topic");
        }
        let is_synced = SyncPolicy::from_ns(files.config.sync_ns);
        if let Some(sync) = sync.filter(|sync| sync.to_ns() != is_synced.to_ns()) {
            let why = format!("it is synced {is_synced}, and this program means {sync}");
            return mismatch(why, "leave that out, or use another topic");
        }
        let is_kept = Keep::of(&files.config);
        if let Some(keep) = keep.filter(|keep| keep.to_sizes() != is_kept.to_sizes()) {
            let why = format!("it is kept {is_kept}, and this program means {keep}");
            return mismatch(why, "leave that out, or use another topic");
        }
        if let Some(capacity) = capacity.filter(|&capacity| capacity != files.capacity) {
            let why = format!(
                "its lanes have {} bytes, and {capacity} were asked for",
                files.capacity
            );
            return mismatch(why, "leave the capacity out, or use another topic");
        }
        Ok(bus.inner(files, wait))
    }
}

/// A topic: publishers and subscribers of it are made here.
pub struct Topic<T: ?Sized = [u8]> {
    inner: Arc<TopicInner>,
    kind: PhantomData<fn() -> Box<T>>,
}

/// A topic's files, and the bus that must outlive what is made from it.
#[derive(Debug)]
pub(crate) struct TopicInner {
    pub(crate) files: TopicFiles,
    pub(crate) bus: Bus,
    pub(crate) wait: WaitStrategy,
}

impl TopicInner {
    /// When it was made.
    pub(crate) fn made_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.files.created_ns)
    }

    /// Takes away a cursor that is done with, and then those lanes whose last reader it may have been.
    pub(crate) fn leave(&self, cursor: &Cursor, may_have_ended: impl Fn(u64) -> bool) {
        let Self { files, bus, .. } = self;
        bus.leave_to_others(reclaim::leave(files, cursor));
        let lanes = files.dir().numbers(LANE);
        for &lane in lanes.iter().flatten() {
            if may_have_ended(lane) {
                bus.leave_to_others(reclaim::tidy_lane(files, lane));
            }
        }
        bus.leave_to_others(lanes);
        roster::changed(&files.control);
    }

    /// Who writes a lane, or did last. `None`: it is gone.
    pub(crate) fn writer_of(&self, lane: u64) -> Result<Option<Owner>> {
        let Some(lane) = self.files.lane(lane)? else {
            return Ok(None);
        };
        self.bus.owner(lane::owner(&lane.header)).map(Some)
    }
}

impl<T: ?Sized> Clone for Topic<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            kind: PhantomData,
        }
    }
}

impl<T: ?Sized> fmt::Debug for Topic<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic")
            .field("name", &self.inner.files.name)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized + Payload> Topic<T> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.files.name
    }

    /// Bytes in each lane made in it; in each data file, if it is durable.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.inner.files.capacity
    }

    /// Bytes in the longest message.
    #[must_use]
    pub fn max_len(&self) -> usize {
        max_len(self.capacity() as u64) as usize
    }

    /// Whether what is sent on it outlives its processes: on a durable bus, unless it is lossy.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.inner.files.is_logged()
    }

    /// Whether its publishers overwrite what slow subscribers have not read.
    #[must_use]
    pub fn is_lossy(&self) -> bool {
        self.inner.files.pattern == Pattern::Lossy
    }

    /// When it was made: it tells a topic from one that had its name before.
    #[must_use]
    pub fn made_at(&self) -> SystemTime {
        self.inner.made_at()
    }

    /// What type its messages are of.
    #[must_use]
    pub fn carries(&self) -> PayloadType {
        PayloadType::from_config(&self.inner.files.config)
    }

    /// Who publishes into the lane with this number, as [`Frame::lane`](crate::Frame::lane) tells it, or did last. `None`: the lane is
    /// gone.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn publisher_of(&self, lane: u64) -> Result<Option<Owner>> {
        self.inner.writer_of(lane)
    }

    /// Joins it as a publisher, with a lane of its own: one that a publisher has left, or a new one.
    ///
    /// What it sends is delivered to every subscriber that [`subscriber`](Self::subscriber) had returned before the
    /// sending began.
    ///
    /// # Errors
    ///
    /// `NoSpace` if the lane can't be allocated, `Mismatch` if the type is larger than a message may be, `Forked`, and
    /// the system's.
    pub fn publisher(&self) -> Result<Publisher<T>> {
        Publisher::join(&self.inner)
    }

    /// Joins it as a publisher with this name, with a lane that one of that name has left, or a new one. That lane stays when the publisher
    /// leaves or dies, with the last that it sent, until another one of that name takes it up: so who goes on for somebody who died can
    /// look what that one sent ([`Bus::inspect`], [`TopicReport::look_back`]). Several may have one name at a time, each a lane.
    ///
    /// # Errors
    ///
    /// As for [`publisher`](Self::publisher).
    pub fn named_publisher(&self, name: &str) -> Result<Publisher<T>> {
        Publisher::join_named(&self.inner, name)
    }

    /// Joins it as a subscriber: all that is sent from now on reaches it, and waits for it.
    ///
    /// # Errors
    ///
    /// `NoSpace` if the cursor can't be allocated, `Corrupt` if a lane is damaged, `Forked`, and the system's.
    pub fn subscriber(&self) -> Result<Subscriber<T>> {
        self.subscriber_from(Start::Now)
    }

    /// Joins it as a subscriber that begins with messages that were sent before.
    ///
    /// ```
    /// use buslane::Start;
    ///
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let topic = buslane::Bus::at(dir.path().join("bus"))?.topic("t")?;
    /// let mut publisher = topic.publisher()?;
    /// publisher.send_batch(["one", "two", "three"])?;
    /// assert_eq!(&*topic.subscriber_from(Start::Last(2))?.recv()?, b"two");
    /// assert_eq!(&*topic.subscriber_from(Start::Oldest)?.recv()?, b"one");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`subscriber`](Self::subscriber).
    pub fn subscriber_from(&self, start: Start) -> Result<Subscriber<T>> {
        Subscriber::join(&self.inner, start)
    }

    /// Joins it as a subscriber that no publisher waits for, also on a lossless topic: if it is too slow, it is told what it lost, as
    /// on a lossy one. It counts as a subscriber, and [`Publisher::wait_delivered`] waits for it. On a durable topic, whose publishers
    /// wait for nobody, it is as any other, and loses nothing.
    ///
    /// ```
    /// use buslane::{ErrorKind, Start};
    ///
    /// # let dir = tempfile::tempdir_in("/dev/shm")?;
    /// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
    /// let topic = bus.topic_builder("t").capacity(4096).open()?;
    /// let (mut watcher, mut publisher) = (topic.lossy_subscriber(Start::Now)?, topic.publisher()?);
    /// for message in 0..1000_u64 {
    ///     publisher.send(&message.to_le_bytes())?; // does not wait for it
    /// }
    /// assert_eq!(watcher.recv().unwrap_err().kind(), ErrorKind::Lost);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`subscriber`](Self::subscriber).
    pub fn lossy_subscriber(&self, start: Start) -> Result<Subscriber<T>> {
        Subscriber::join_lossy(&self.inner, start)
    }

    /// Joins it, on a durable bus, as the subscriber with this name, and goes on where that one was: what was sent meanwhile
    /// waits for it. A new one begins with what is sent from now on. Each message counts as received when its
    /// [`Frame`](crate::Frame) is dropped; if the process dies before, it comes again.
    ///
    /// # Errors
    ///
    /// `InUse` if somebody who lives receives with that name, `Unsupported` if the bus is not durable, `InvalidName`, and as for
    /// [`subscriber`](Self::subscriber).
    pub fn subscription(&self, name: &str) -> Result<Subscriber<T>> {
        self.subscription_builder(name).open()
    }

    /// The same, otherwise than by default.
    pub fn subscription_builder(&self, name: &str) -> SubscriptionBuilder<T> {
        SubscriptionBuilder::new(&self.inner, name)
    }

    /// Removes a named subscription: what only it had not received is kept no more.
    ///
    /// # Errors
    ///
    /// `NotFound`; `InUse` if somebody receives with that name, `Forked`, and the system's.
    pub fn remove_subscription(&self, name: &str) -> Result<()> {
        let TopicInner { files, bus, .. } = &*self.inner;
        bus.check_fork()?;
        let escaped = escape(name)?;
        let Some((_lock, cursor)) = files.lock_subscription(&escaped)? else {
            let why = "there is no such subscription";
            return Err(
                Error::new(ErrorKind::NotFound, "remove the subscription", name, why)
                    .advise("list them (buslane inspect TOPIC)"),
            );
        };
        files.remove_subscription(&escaped, &cursor)?;
        for lane in files.list_lanes()? {
            reclaim::trim(files, lane)?;
        }
        Ok(())
    }

    /// Watches who is there, without being counted.
    ///
    /// # Errors
    ///
    /// `Forked`, and the system's.
    pub fn presence(&self) -> Result<Presence> {
        Presence::watch(&self.inner)
    }
}

/// The name that was escaped. `None`: it is none, as that of an inbox.
pub(crate) fn unescape(escaped: &str) -> Option<String> {
    let name = percent_decode_str(escaped).decode_utf8().ok()?;
    (!reclaim::is_inbox(escaped)).then(|| name.into_owned())
}

/// A topic's name as a directory's: one name, whatever it contains.
pub(crate) fn escape(name: &str) -> Result<String> {
    let invalid = |why: String| {
        Error::new(
            ErrorKind::InvalidName,
            "open the topic",
            format!("{name:?}"),
            why,
        )
        .advise("use segments of letters, digits, '-', '_' and '.', separated by '/'")
    };
    for segment in name.split('/') {
        match segment {
            "" => return Err(invalid(String::from("a segment is empty"))),
            "." | ".." => {
                return Err(invalid(format!(
                    "the segment {segment:?} would lead elsewhere"
                )));
            }
            _ if segment.contains('*') => {
                return Err(invalid(String::from("'*' is for selecting topics")));
            }
            _ if segment.contains(char::is_control) => {
                return Err(invalid(String::from("it has a control character")));
            }
            _ => {}
        }
    }
    let escaped = utf8_percent_encode(name, PLAIN).to_string();
    // A name that begins with a dot would look hidden, or be a draft.
    let escaped = escaped
        .strip_prefix('.')
        .map_or(escaped.clone(), |rest| format!("%2E{rest}"));
    if escaped.len() > NAME_MAX {
        let why = format!(
            "it is too long: {} bytes of {NAME_MAX}, where '/' and special characters count 3",
            escaped.len()
        );
        return Err(invalid(why));
    }
    Ok(escaped)
}
