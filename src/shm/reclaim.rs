//! Putting away what the dead left, and what the living have finished with. A file is locked while its owner lives,
//! so whoever gets the lock knows that the owner is gone and that nobody else is putting the file away.
//!
//! Each step may be the last one before a `SIGKILL`; running it all again finishes it. A cursor first stops gating,
//! then loses its name. A lane is first closed, and loses its name only when every reader has drained it.
//!
//! Four invariants hold, whoever dies at whatever step, each named at the function that keeps it. `reclaim/explored.rs` says what they
//! mean, and looks at every state that a few processes can reach.

use std::thread;

use super::files::{self, DRAFT, Dir, skip_damaged};
use super::fork::{self, Held};
use super::lane::{self, Outside};
use super::layout::{BusControl, LEFT, Pattern, TopicConfig};
use super::members::{self, Dead};
use super::roster::{self, Role};
use super::segment::Access;
use super::topic::{CURSOR, LANE, LaneFile, TopicFiles};
use crate::error::{Error, ErrorKind, Result};

/// What was put away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reclaimed {
    /// Dead processes that were still listed.
    pub members: usize,
    /// Lanes that were closed or removed.
    pub lanes: usize,
    /// Cursors that were removed.
    pub cursors: usize,
    /// Dead processes whose locks somebody else still holds, such as a child that they were just starting, or of whom something could
    /// not be put away.
    pub lingering: usize,
}

/// If a member has died, puts away all that has no living owner, in every topic of the bus (*nothing is left*).
///
/// The kernel drops the locks of a process that ends one after the other, so some may still be held when the member's is
/// gone: they are asked for again.
pub fn sweep(members: &Dir, topics: &Dir, control: &BusControl) -> Result<Reclaimed> {
    let mut found = Reclaimed::default();
    let dead = members::dead(members)?;
    let ids: Vec<u64> = dead.iter().map(Dead::id).collect();
    tidy_drafts(members)?;
    finish_removals(members, topics, &ids)?;
    if dead.is_empty() {
        return Ok(found);
    }
    // One of them may have made or removed a topic, and died before telling.
    roster::topics_changed(control);
    let mut names = names(topics)?;
    for step in members::LOCK_LINGERS {
        thread::sleep(step);
        let mut held = Vec::new();
        for name in names {
            match sweep_topic(topics, &name, &ids, &mut found) {
                Ok(false) => {}
                Ok(true) => held.push(name),
                // Out of files or memory: somebody must look again.
                Err(e) if e.kind() == ErrorKind::TooMany => return Err(e),
                // What the system refuses now it may not refuse later.
                Err(e) if e.errno().is_some() => held.push(name),
                // What is no topic stays for a person to look at; the other topics need us.
                Err(_) => {}
            }
        }
        names = held;
        if names.is_empty() {
            // Last, so that whoever comes after a death in the midst of this does it again.
            for dead in dead {
                found.members += usize::from(dead.remove(members)?);
            }
            return Ok(found);
        }
    }
    found.lingering = dead.len();
    Ok(found)
}

/// Whether the dead still hold something here.
fn sweep_topic(topics: &Dir, name: &str, dead: &[u64], found: &mut Reclaimed) -> Result<bool> {
    let Some(dir) = topics.find_dir(name)? else {
        return Ok(false);
    };
    let Some(topic) = TopicFiles::open(dir, name)? else {
        if is_inbox(name) {
            // Its client may have died before it was one; or be about to make it one, and begins anew.
            topics.remove_empty(name)?;
        }
        return Ok(false);
    };
    if topic.pattern == Pattern::Inbox && dead.contains(&topic.config.sizes[0]) {
        // Who waits for room there is woken. What can't be put away so goes with the rest.
        let _ = tidy_all(&topic);
        remove_topic(topics, name)?;
        roster::changed(&topic.control);
        return Ok(false);
    }
    let tidied = tidy(&topic)?;
    found.lanes += tidied.lanes;
    found.cursors += tidied.cursors;
    topic.is_held_by(dead)
}

/// Puts away all of a topic that has no living owner, and tells the living: in any case, for whoever put something away
/// before may have died before telling.
pub fn tidy(topic: &TopicFiles) -> Result<Reclaimed> {
    let found = tidy_all(topic);
    roster::changed(&topic.control);
    found
}

fn tidy_all(topic: &TopicFiles) -> Result<Reclaimed> {
    let mut found = Reclaimed::default();
    for id in topic.dir().numbers(CURSOR)? {
        found.cursors += usize::from(tidy_cursor(topic, id)?);
    }
    for id in topic.dir().numbers(LANE)? {
        found.lanes += usize::from(tidy_lane(topic, id)?);
    }
    for name in topic.subscription_names()? {
        tidy_subscription(topic, &name)?;
    }
    topic.tidy_groups()?;
    topic.remove_data_without_lane()?;
    tidy_drafts(topic.dir())?;
    Ok(found)
}

fn locked<T>(topic: &TopicFiles, lock: nix::Result<T>) -> Result<T> {
    lock.map_err(|e| Error::system("lock a file of", &*topic.name, e))
}

fn tidy_cursor(topic: &TopicFiles, id: u64) -> Result<bool> {
    let staying = fork::stay();
    // What is no cursor gates nobody. It stays for a person to look at.
    let Some((file, cursor)) = skip_damaged(topic.cursor(id, Access::Write))? else {
        return Ok(false);
    };
    let Some(_lock) = locked(topic, staying.try_lock(file))? else {
        return Ok(false);
    };
    leave(topic, &cursor)
}

/// Says of a named subscription whose reader has died that nobody reads with it. It stays.
fn tidy_subscription(topic: &TopicFiles, name: &str) -> Result<()> {
    let staying = fork::stay();
    match skip_damaged(topic.subscription(name, Access::Write))? {
        // Nobody reads with it: to lock it would keep away who is about to.
        Some((_, cursor)) if cursor.is_joined() && cursor.is_away() => Ok(()),
        Some((file, cursor)) => {
            let lock = locked(topic, staying.try_lock(file))?;
            lock.map_or(Ok(()), |lock| {
                tidy_locked_subscription(topic, name, &lock, &cursor)
            })
        }
        None => Ok(()),
    }
}

fn tidy_locked_subscription(
    topic: &TopicFiles,
    name: &str,
    lock: &Held,
    cursor: &roster::Cursor,
) -> Result<()> {
    // Another one may have its name by now.
    if !locked(topic, files::is_named(lock))? {
        return Ok(());
    }
    match cursor.is_joined() {
        true => cursor.disown(),
        // Its maker has died over it. Nothing was promised yet.
        false => topic.remove_subscription(name, cursor)?,
    }
    Ok(())
}

/// Removes the data files of a lane that the topic does not keep: whether there were any.
pub fn trim(topic: &TopicFiles, id: u64) -> Result<bool> {
    let Some(lane) = skip_damaged(topic.lane_to_trim(id))? else {
        return Ok(false);
    };
    let Some(log) = lane.ring.log() else {
        return Ok(false);
    };
    let outside = Outside {
        header: &lane.header,
        ring: &lane.ring,
    };
    let numbers = log.numbers()?;
    let (Some(&first), Some((_, newest))) = (numbers.first(), outside.newest()) else {
        return Ok(false);
    };
    let file_of = |position: u64| position / log.capacity();
    let last = file_of(newest.position);
    let TopicConfig {
        keep_bytes,
        keep_ns,
        ..
    } = topic.config;
    let upto = if keep_bytes > 0 {
        file_of(newest.position.saturating_sub(keep_bytes))
    } else if keep_ns > 0 {
        let until_ns = files::now_ns().saturating_sub(keep_ns);
        // What is before a file was sent before its writer came to it. A file that does not say when is as old as the next that does.
        let begun = numbers.iter().skip(1).filter_map(|&number| {
            let start = log.start(number).ok().flatten()?;
            Some((number, start.began_ns))
        });
        let old = begun.take_while(|&(_, began_ns)| began_ns < until_ns);
        old.last().map_or(first, |(number, _)| number)
    } else {
        file_of(topic.passed_by_all(id)?)
    };
    let upto = upto.min(last);
    if upto <= first {
        return Ok(false);
    }
    let is_lossy = keep_bytes > 0 || keep_ns > 0;
    let floor = lane::give_up(&lane.header, upto * log.capacity(), || match is_lossy {
        true => Ok(u64::MAX),
        false => topic.passed_by_all(id),
    })?;
    let mut removed = false;
    for number in numbers
        .into_iter()
        .take_while(|number| *number < file_of(floor))
    {
        removed |= log.remove(number)?;
    }
    Ok(removed)
}

/// Takes a cursor away: its reader, or who found that it has died, under its lock.
pub fn leave(topic: &TopicFiles, cursor: &roster::Cursor) -> Result<bool> {
    topic.free_claims_of(cursor.id)?;
    for slot in cursor.taken() {
        lane::leave(slot);
    }
    topic.dir().remove(&format!("{CURSOR}{}", cursor.id))
}

/// Closes a lane without a writer, and removes it, unless it is kept, when every cursor has drained it (*nothing is lost*). Whether
/// anything changed.
pub fn tidy_lane(topic: &TopicFiles, id: u64) -> Result<bool> {
    let name = format!("{LANE}{id}");
    let mut changed = false;
    // What is drained once is, until somebody takes the lane up, who then sees to it.
    for _ in 0..2 {
        let Some((lock, lane)) = skip_damaged(topic.lane_to_close(id))? else {
            return Ok(changed);
        };
        changed |= lane::close(&lane.header);
        if topic.is_logged() || lane::name(&lane.header) != 0 {
            // It is kept, for its readers and for the next writer.
            return Ok(changed);
        }
        topic.repair_claims_on(&lane)?;
        let removed = is_drained(topic, &lane)? && topic.dir().remove(&name)?;
        drop(lock);
        if removed {
            // After the lane: nobody makes claims for it any more.
            topic.remove_claims_of(id)?;
            return Ok(true);
        }
        // A reader that finished while we held the lock could not remove the lane: look again without it.
        if !is_drained(topic, &lane)? {
            break;
        }
    }
    Ok(changed)
}

/// Whether every cursor has read all that is in a lane without a writer.
fn is_drained(topic: &TopicFiles, lane: &LaneFile) -> Result<bool> {
    let Ok(tail) = lane::tail(&lane.header, &lane.ring) else {
        return Ok(false);
    };
    // What is no cursor waits for nothing.
    let readers = topic.list_cursors(lane.id, &[])?.new;
    Ok(readers
        .iter()
        .all(|reader| reader.role == Role::Consumer || has_read(reader.position_in(lane.id), tail)))
}

/// Whether a reader at this position (`None`: it has not joined the lane yet) needs nothing of a lane that ends at `tail`.
fn has_read(position: Option<u64>, tail: u64) -> bool {
    position.is_some_and(|position| position & LEFT != 0 || position >= tail)
}

/// What an inbox's directory is called; no topic's is.
pub fn inbox_name(number: u64) -> String {
    format!("{INBOX}{number:016x}")
}

/// Whether a directory is that of an inbox.
pub fn is_inbox(name: &str) -> bool {
    name.starts_with(INBOX)
}

/// Before an inbox's number: no topic's name is escaped so.
const INBOX: &str = "%inbox.";

/// Removes a topic's directory, if it is there: from under its name in one step.
pub fn remove_topic(topics: &Dir, name: &str) -> Result<()> {
    match aside(topics, name, 0)? {
        Some(aside) => topics.remove_all(&aside),
        None => Ok(()),
    }
}

/// Gives a topic's directory a name under which nobody looks for it, on behalf of a member (0: of nobody who could take that back):
/// that name. `None`: it is gone.
pub fn aside(topics: &Dir, name: &str, member: u64) -> Result<Option<String>> {
    let number = files::random()
        .map_err(|e| Error::system("remove", topics.path().display().to_string(), e))?;
    let aside = format!("{DRAFT}{number:016x}.{member:016x}");
    Ok(topics.rename(name, &aside)?.then_some(aside))
}

/// The escaped names of the topics.
pub fn names(topics: &Dir) -> Result<Vec<String>> {
    let mut names = topics.names()?;
    names.retain(|name| !name.starts_with(DRAFT));
    Ok(names)
}

/// Removes what somebody had put aside to remove it, and died. We have the locks of the `dead`.
fn finish_removals(members: &Dir, topics: &Dir, dead: &[u64]) -> Result<()> {
    for name in topics
        .names()?
        .iter()
        .filter(|name| name.starts_with(DRAFT))
    {
        // Its remover, if that lives, may be about to give it back its name. Asked first: who is gone then has done so before.
        let may_return = is_remover_alive(members, name, dead)?;
        finish_removal(topics, name, may_return)?;
    }
    Ok(())
}

fn finish_removal(topics: &Dir, name: &str, may_return: bool) -> Result<()> {
    let Ok(dir) = topics.dir(name) else {
        return Ok(());
    };
    let topic = skip_damaged(TopicFiles::open(dir, name))?;
    // But not that of an inbox.
    if let Some(topic) = topic.filter(|topic| topic.pattern != Pattern::Inbox) {
        if may_return && !roster::is_removed(&topic.control) {
            return Ok(());
        }
        roster::remove(&topic.control);
    }
    topics.remove_all(name)
}

/// Whether the member lives that has put a topic aside under this name.
fn is_remover_alive(members: &Dir, aside: &str, dead: &[u64]) -> Result<bool> {
    let remover = aside.rsplit('.').next().unwrap_or_default();
    match u64::from_str_radix(remover, 16) {
        Ok(remover) if !dead.contains(&remover) => Ok(members::owner(members, remover)?.alive),
        _ => Ok(false),
    }
}

/// Removes files that their makers died over before they had their names.
fn tidy_drafts(dir: &Dir) -> Result<()> {
    for name in dir.names()?.iter().filter(|name| name.starts_with(DRAFT)) {
        // With a lock, its maker is at it. If its maker is just about to lock it, it makes another.
        if let Some(file) = dir.open_draft(name)
            && files::try_lock(&file).is_ok_and(|locked| locked)
        {
            dir.remove(name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod explored;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::shm::layout::{Identity, Kind};
    use crate::shm::log::Log;
    use crate::{Bus, Topic};

    fn durable(path: &std::path::Path) -> (Topic, TopicFiles) {
        let bus = Bus::builder().durable(true).capacity(4096).at(path);
        let topic = bus.unwrap().topic("t").unwrap();
        (topic, TopicFiles::of(path, "t"))
    }

    #[test]
    fn a_subscription_that_has_the_name_of_one_whose_maker_died_stays() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (topic, files) = durable(&dir.path().join("bus"));
        drop(files.open_subscription(1, "s").unwrap());
        // As a sweep does, that goes on when another one has it.
        let (file, cursor) = files.subscription("s", Access::Write).unwrap().unwrap();
        let subscription = topic.subscription("s").unwrap();
        let lock = fork::stay().try_lock(file).unwrap().unwrap();
        tidy_locked_subscription(&files, "s", &lock, &cursor).unwrap();
        assert_eq!(files.subscription_names().unwrap(), ["s"]);
        drop(subscription);
        tidy_subscription(&files, "s").unwrap();
        assert_eq!(files.subscription_names().unwrap(), ["s"]);
    }

    #[test]
    fn a_subscription_is_not_in_use_because_somebody_tidies_up() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (topic, files) = durable(&dir.path().join("bus"));
        drop(topic.subscription("s").unwrap());
        let (file, _) = files.subscription("s", Access::Write).unwrap().unwrap();
        let (locked, is_locked) = channel();
        let sweep = thread::spawn(move || {
            assert!(files::try_lock(&file).unwrap());
            locked.send(()).unwrap();
            thread::sleep(Duration::from_millis(5));
        });
        is_locked.recv().unwrap();
        let subscription = topic.subscription("s");
        sweep.join().unwrap();
        assert!(subscription.is_ok());
        let error = topic.subscription("s").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
    }

    #[test]
    fn a_subscription_that_could_not_be_made_is_gone() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (topic, files) = durable(&dir.path().join("bus"));
        drop(topic.publisher().unwrap());
        let lane = files.dir().path().join("lane.1");
        let lane = std::fs::OpenOptions::new().write(true).open(lane).unwrap();
        files::write_at(&lane, 32, &[0xff; 8]).unwrap();
        let error = topic.subscription("s").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(files.subscription_names().unwrap().is_empty());
    }

    #[test]
    fn a_draft_whose_maker_lives_stays() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (_topic, files) = durable(&dir.path().join("bus"));
        let plan = files::Plan {
            tried: "make",
            identity: Identity::new(Kind::Lane, 4096, 1, 0),
            allocate: 4096,
            content: &[],
            lock: false,
        };
        let mut count = 0;
        let made = files.dir().create_draft("lane.7", &plan, |_| {
            count += 1;
            tidy_drafts(files.dir())
        });
        let (file, ()) = made.unwrap().unwrap();
        assert_eq!(count, 1);
        assert!(!files::is_locked(&file).unwrap());
    }

    #[test]
    fn what_is_made_in_a_directory_that_is_being_removed_is_no_topic() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("bus");
        let (_topic, files) = durable(&path);
        let topics = Dir::open(&path.join("topics"), None).unwrap();
        assert!(files.has_name(&topics, "t").unwrap());
        let there = topics.dir("t").unwrap();
        let aside = aside(&topics, "t", 0).unwrap().unwrap();
        topics.dir(&aside).unwrap().clear().unwrap();
        let late = TopicFiles::create(there, "t", 4096, &files.config);
        assert!(!late.unwrap().unwrap().has_name(&topics, "t").unwrap());
        topics.remove_all(&aside).unwrap();
        assert!(topics.names().unwrap().is_empty());
    }

    #[test]
    fn what_was_given_back_is_not_removed() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("bus");
        let (_topic, files) = durable(&path);
        let topics = Dir::open(&path.join("topics"), None).unwrap();
        let members = Dir::open(&path.join("members"), None).unwrap();
        let [remover] = members.names().unwrap().try_into().unwrap();
        let remover = u64::from_str_radix(&remover, 16).unwrap();
        let aside = aside(&topics, "t", remover).unwrap().unwrap();
        let may_return = is_remover_alive(&members, &aside, &[]).unwrap();
        assert!(may_return);
        assert!(topics.rename(&aside, "t").unwrap());
        members.remove(&format!("{remover:016x}")).unwrap();
        finish_removal(&topics, &aside, may_return).unwrap();
        assert!(files.exists().unwrap() && !roster::is_removed(&files.control));
    }

    #[test]
    fn data_files_whose_maker_died_before_their_lane_had_a_name_go() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (topic, files) = durable(&dir.path().join("bus"));
        let _publisher = topic.publisher().unwrap();
        let log_dir = Arc::new(Dir::open(files.dir().path(), None).unwrap());
        let log = Log::new(&log_dir, &files.name, 99, 4096, Access::Write).unwrap();
        log.make(0).unwrap();
        let has = |name: &str| files.dir().names().unwrap().iter().any(|one| one == name);
        let lock = files.lock(99).unwrap().unwrap();
        tidy(&files).unwrap();
        assert!(has("data.99.0"));
        drop(lock);
        tidy(&files).unwrap();
        assert!(has("data.1.0") && !has("data.99.0"));
    }
}
