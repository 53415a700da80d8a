//! Finding out, when a durable bus is opened and nobody else is on it, how far each lane reached the disk.
//!
//! While the machine runs, what was stored is there, whoever has died: then only the end of each lane is looked for. After the
//! machine went down, each 512 bytes of a file may be older or newer than their neighbours. So the frames are followed from
//! where they were last known to be on the disk, and the first that is not as it was written ends its lane: what lies behind
//! is cut off, and said. That is synced before anyone goes on, lest the next loss of power brings it back.
//!
//! Each step may be the last one: running it all again does the same. What is not as it was written *before* that place, or
//! while the machine ran, is damage: it is left where it is, and its readers report it.

use super::files::{self, Dir, skip_damaged};
use super::lane::{self, Boundary, Whole};
use super::layout::{BusControl, Pattern};
use super::log::{self, Log, boot, scrub};
use super::reclaim;
use super::roster;
use super::segment::Access;
use super::topic::{CURSOR, LANE, LaneFile, TABLE, TopicFiles};
use crate::error::{Error, Result};

/// What was cut off a publisher's lane when a durable bus was opened: it had not reached the disk whole when the machine went
/// down, and none of it was said to be synced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cut {
    /// The topic's name; that of its directory, if it is no name.
    pub topic: String,
    /// The lane's number.
    pub lane: u64,
    /// Where the lane ends now, in bytes since it was made.
    pub at: u64,
    /// Bytes from there to the end of the last thing that was found behind it. Whole messages may have been among them.
    pub bytes: u64,
}

/// Recovers all topics. By who holds the lock of the bus, while it has no member.
pub fn recover(topics: &Dir, control: &BusControl) -> Result<Vec<Cut>> {
    let now = boot();
    let is_same_boot = now != 0 && roster::recovered_in(control) == now;
    let mut cuts = Vec::new();
    for name in reclaim::names(topics)? {
        if let Some(dir) = topics.find_dir(&name)?
            && let Some(topic) = skip_damaged(TopicFiles::open(dir, &name))?
        {
            recover_topic(&topic, is_same_boot, &mut cuts)?;
        }
    }
    roster::set_recovered_in(control, now);
    Ok(cuts)
}

fn recover_topic(topic: &TopicFiles, is_same_boot: bool, cuts: &mut Vec<Cut>) -> Result<()> {
    roster::number_from(&topic.control, topic.last_number()?);
    if topic.pattern == Pattern::State && !is_same_boot {
        // Its values have no checksums.
        for id in topic.dir().numbers(TABLE)? {
            topic.dir().remove(&format!("{TABLE}{id}"))?;
        }
    }
    if !topic.is_logged() {
        return Ok(());
    }
    let is_known = is_same_boot && !roster::is_poisoned(&topic.control);
    let mut is_whole = true;
    for id in topic.dir().numbers(LANE)? {
        let opened = skip_damaged(topic.lane_to_close(id).map(Some))?;
        if matches!(opened, Some(None)) {
            // Somebody has its lock, though nobody is on the bus: it is as little known as before.
            roster::poison(&topic.control);
        }
        if let Some((_lock, lane)) = opened.flatten()
            && let Some(log) = lane.ring.log()
        {
            let cut = recover_lane(topic, &lane, log, is_known)?;
            cuts.extend(cut.map(|(at, to)| Cut {
                topic: topic.name.to_string(),
                lane: id,
                at,
                bytes: to - at,
            }));
        } else {
            is_whole = false;
        }
    }
    topic.remove_data_without_lane()?;
    if is_whole {
        roster::cure(&topic.control);
    }
    Ok(())
}

/// Where it was cut, and up to where something was behind that.
fn recover_lane(
    topic: &TopicFiles,
    lane: &LaneFile,
    log: &Log,
    is_known: bool,
) -> Result<Option<(u64, u64)>> {
    let failed = |e: nix::Error| Error::system("sync a lane of", topic.name.clone(), e);
    if !is_known {
        // What could not be written may be in memory, as if it had been.
        log.forget()?;
    }
    let Some(from) = begin(lane, log, is_known)? else {
        // No file says what is before it.
        return match is_known {
            // That is damage: whoever comes there reports it.
            true => Ok(None),
            false => retire(topic, lane, log).map(Some),
        };
    };
    let mut turns = Vec::new();
    let Whole { tail, is_damaged } = follow(lane, log, from, |at| turns.push(at))?;
    let file_end = tail.position + lane.ring.to_end(tail.position);
    let numbers = log.numbers()?;
    let behind = numbers
        .iter()
        .filter(|number| *number * log.capacity() >= file_end);
    if is_damaged && is_known {
        return Ok(None);
    }
    let mut found_to = is_damaged.then_some(tail.position + 16);
    for &number in behind.clone() {
        let start = number * log.capacity();
        let end = start + log.capacity();
        found_to = found_to.max(lane::last_whole(&lane.ring, start, end)?);
        // There may be more files than have a place.
        lane.ring.lift_before(end);
    }
    // Its file can't be used: its readers are told why.
    if skip_damaged(log.arrive(tail.position).map(Some))?.is_none() {
        return Ok(None);
    }
    found_to = found_to.max(lane::last_whole(&lane.ring, tail.position + 16, file_end)?);
    if is_known && found_to.is_some() {
        // Nothing that was stored while the machine ran is behind a hole.
        return Ok(None);
    }
    for &number in behind {
        log.remove(number)?;
    }
    scrub(&lane.ring, tail.position, file_end);
    let first = numbers.first().map_or(0, |number| number * log.capacity());
    lane::renew(&lane.header, first, tail);
    if !is_known {
        for at in turns {
            begin_anew(topic, log, at)?;
        }
        if let Some(file) = log.file(tail.position / log.capacity())? {
            files::sync(&file).map_err(failed)?;
        }
        log.sync_names()?;
        lane::set_synced(&lane.header, lane.id, tail);
    }
    if let Some(to) = found_to {
        lane::set_cut(&lane.header, tail.position, to);
    }
    let oldest = skip_damaged(log.start(first / log.capacity()))?.map(|start| start.boundary());
    hold_readers(topic, lane, oldest, tail)?;
    Ok(found_to.map(|to| (tail.position, to)))
}

/// Has a file say what is before it, if it does not: it may not have reached the disk, or may be that of a message that was given up.
fn begin_anew(topic: &TopicFiles, log: &Log, at: Boundary) -> Result<()> {
    let number = at.position / log.capacity();
    let said = skip_damaged(log.start(number))?.map(|start| start.boundary());
    if said != Some(at)
        && let Some(file) = skip_damaged(log.file(number))?
    {
        log.begin(number, at)?;
        files::sync(&file).map_err(|e| Error::system("sync a lane of", topic.name.clone(), e))?;
    }
    Ok(())
}

/// Follows the frames as far as they are whole: `turn` is called with what is before each file that they go on in.
fn follow(
    lane: &LaneFile,
    log: &Log,
    mut from: Boundary,
    mut turn: impl FnMut(Boundary),
) -> Result<Whole> {
    loop {
        let whole = lane::follow_whole(&lane.ring, from, &mut turn);
        let at = whole.tail.position;
        // What could not be opened is not damaged.
        let is_away = whole.is_damaged && !log.is_here(at);
        if !is_away || !log.comes_to(at)? {
            return Ok(whole);
        }
        from = whole.tail;
    }
}

/// From where on the frames are followed.
fn begin(lane: &LaneFile, log: &Log, is_known: bool) -> Result<Option<Boundary>> {
    let numbers = log.numbers()?;
    // One whose file is gone says nothing.
    let is_there = |at: &Boundary| numbers.contains(&(at.position / log.capacity()));
    let synced = lane::synced(&lane.header, lane.id).filter(is_there);
    if !is_known && synced.is_some() {
        return Ok(synced);
    }
    let in_order: Vec<u64> = match is_known {
        true => numbers.iter().rev().copied().collect(),
        false => numbers.clone(),
    };
    let mut is_behind = !is_known;
    for number in in_order {
        // A writer may have come to it, and died before it wrote anything there; or before it had finished the one before it.
        let is_begun = number == 0 || is_behind;
        is_behind |= skip_damaged(log.is_begun(number).map(Some))?.unwrap_or(true);
        if is_begun && let Some(start) = skip_damaged(log.start(number))? {
            let newer = synced.filter(|synced| synced.position > start.position);
            return Ok(Some(newer.unwrap_or(start.boundary())));
        }
    }
    Ok(synced)
}

/// Removes a lane of which not even a beginning has reached the disk: what was synced of it all have passed, else its file would
/// be there. Where it was, and up to where it went.
fn retire(topic: &TopicFiles, lane: &LaneFile, log: &Log) -> Result<(u64, u64)> {
    let numbers = log.numbers()?;
    for claims in topic.claims_on(lane)? {
        lane::leave(claims.slot());
    }
    topic.forget_lane(lane.id)?;
    // From the last one: what is left if this is the last step has no beginning either.
    for &number in numbers.iter().rev() {
        log.remove(number)?;
    }
    topic.dir().remove(&format!("{LANE}{}", lane.id))?;
    topic.remove_claims_of(lane.id)?;
    log.sync_names()?;
    let ends = (numbers.first(), numbers.last());
    let (first, last) = (ends.0.copied().unwrap_or(0), ends.1.copied().unwrap_or(0));
    Ok((first * log.capacity(), (last + 1) * log.capacity()))
}

/// Nobody has read what is not there; and where files go once all have passed them, all have passed those that are gone, also if
/// their places that said so did not reach the disk.
fn hold_readers(
    topic: &TopicFiles,
    lane: &LaneFile,
    oldest: Option<Boundary>,
    tail: Boundary,
) -> Result<()> {
    let is_passed = topic.config.keep_bytes == 0 && topic.config.keep_ns == 0;
    let oldest = oldest.filter(|oldest| is_passed && oldest.position > 0);
    for name in topic.subscription_names()? {
        let subscription = skip_damaged(topic.subscription(&name, Access::Write))?;
        if let Some((file, cursor)) = subscription {
            if cursor.slot_of(lane.id).is_none() && oldest.is_some() {
                topic.take_slot(&file, &cursor, lane.id)?;
            }
            if let Some(slot) = cursor.slot_of(lane.id) {
                oldest
                    .iter()
                    .for_each(|at| lane::hold_up(&cursor.slots[slot], *at));
                lane::hold_back(&cursor.slots[slot], tail);
            }
        }
    }
    for claims in topic.claims_on(lane)? {
        oldest
            .iter()
            .for_each(|at| lane::hold_up(claims.slot(), *at));
        claims.renew(lane.id, tail);
    }
    Ok(())
}

impl TopicFiles {
    /// The highest number that something here has.
    fn last_number(&self) -> Result<u64> {
        let mut last = 0;
        for prefix in [LANE, CURSOR, TABLE] {
            last = last.max(self.dir().numbers(prefix)?.last().copied().unwrap_or(0));
        }
        for cursor in self.subscriptions()? {
            last = last.max(cursor.id);
        }
        for name in self.group_names()? {
            let group = skip_damaged(self.group(&name, Access::Read))?;
            last = last.max(group.map_or(0, |(_, group)| group.id));
        }
        Ok(last)
    }

    /// Takes the places in a lane that is gone from those who are away.
    fn forget_lane(&self, lane: u64) -> Result<()> {
        for name in self.subscription_names()? {
            let subscription = skip_damaged(self.subscription(&name, Access::Write))?;
            if let Some((_, cursor)) = subscription
                && let Some(slot) = cursor.slot_of(lane)
            {
                cursor.free_slot(slot);
            }
        }
        Ok(())
    }

    /// Removes data files whose maker died before their lane had a name.
    pub(super) fn remove_data_without_lane(&self) -> Result<()> {
        if !self.is_logged() {
            return Ok(());
        }
        let names = self.dir().names()?;
        let first = |name: &String| Some(name.strip_suffix(".0")?.to_owned());
        let begun: Vec<String> = names.iter().filter_map(first).collect();
        for lane in files::numbers_among(&begun, log::DATA) {
            // Its maker has that until the lane has its name.
            if !names.contains(&format!("{LANE}{lane}"))
                && let Some(_lock) = self.lock(lane)?
            {
                self.remove_data_without(lane)?;
            }
        }
        Ok(())
    }

    /// Removes the first data file of a lane, by the holder of its lock, if the lane has no name.
    pub(super) fn remove_data_without(&self, lane: u64) -> Result<()> {
        if self.is_logged() && !self.dir().numbers(LANE)?.contains(&lane) {
            self.dir().remove(&format!("{}{lane}.0", log::DATA))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bus;

    #[test]
    fn what_somebody_has_locked_is_recovered_by_the_next() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("bus");
        let open = || Bus::builder().durable(true).capacity(4096).at(&path);
        let topic = open().unwrap().topic("t").unwrap();
        let mut publisher = topic.publisher().unwrap();
        publisher.send(b"message").unwrap();
        drop((publisher, topic));
        let topic = TopicFiles::of(&path, "t");
        let bus = open().unwrap();
        let control = bus.control().clone();
        drop(bus);
        roster::set_recovered_in(&control, 9);
        let held = topic.lock(1).unwrap();
        drop(open().unwrap());
        assert!(roster::is_poisoned(&topic.control));
        drop(held);
        drop(open().unwrap());
        assert!(!roster::is_poisoned(&topic.control));
    }

    #[test]
    fn following_ends_where_a_file_is_missing_and_its_place_is_taken() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("bus");
        let bus = Bus::builder().durable(true).capacity(4096).at(&path);
        let topic = bus.unwrap().topic("t").unwrap();
        drop(topic.subscription("s").unwrap());
        topic.publisher().unwrap().send(b"message").unwrap();
        let topic = TopicFiles::of(&path, "t");
        let id = topic.dir().numbers(LANE).unwrap()[0];
        let (_lock, lane) = topic.lane_to_close(id).unwrap().unwrap();
        let log = lane.ring.log().unwrap();
        log.arrive(0).unwrap();
        // Where the first file is, too.
        let missing = log.reach();
        let whole = follow(&lane, log, Boundary::without_count(missing), |_| {}).unwrap();
        assert!(whole.is_damaged);
        assert_eq!(whole.tail.position, missing);
    }
}
