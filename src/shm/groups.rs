//! The files of a queue's groups of consumers: the group's own, and its claims on each lane. To a lane's writer the first
//! is a reader that has no slot yet, and the second one that has.
//!
//! The order of names decides as it does for subscribers. A group links its file, then lists the lanes: those it joins by
//! the mark, those that are found later begin at 0, for their writers have listed the groups since and wait. Its claims on
//! a lane that came later are made by the first consumer that looks. They are removed after the lane, never before, so that
//! nobody makes them anew.

use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::claims::{self, Claims};
use super::files::{self, Dir, Plan, skip_damaged};
use super::fork::{self, Held, Staying};
use super::futex;
use super::lane::{self, Corrupt, Outside};
use super::layout::{
    Claim, ClaimsHeader, Fate, GROUP_CONFIG, GroupConfig, Identity, Kind, LEFT, PAGE, Pattern,
    Slot, claims_of,
};
use super::roster::{self, Cursor, Role};
use super::segment::{Access, Mapping};
use super::topic::{CURSOR, LANE, LaneFile, TopicFiles, lock_named, map};
use crate::error::{Error, ErrorKind, Result};

/// What groups are called, before their escaped name.
pub const GROUP: &str = "group.";
/// What claims are called, before their group's number, a dot, and their lane's.
const CLAIMS: &str = "claims.";
/// The group that is made with the topic.
pub const DEFAULT: &str = "default";
/// Its number, which is given to nothing else.
pub const DEFAULT_ID: u64 = 0;
/// Marks the number of a group's claims among the readers of a lane.
const IS_CLAIMS: u64 = 1 << 63;
/// How often, a millisecond apart, the lock of a group is asked for, which is held for moments only.
const LOCK_TRIES: u32 = 2000;

/// A group of consumers.
#[derive(Debug)]
pub struct Group {
    /// Its number, never reused.
    pub id: u64,
    /// Its escaped name.
    pub name: String,
    /// What its consumers agree on.
    pub config: GroupConfig,
    cursor: Cursor,
}

/// Where a group is in a lane, as it is seen from outside.
#[derive(Debug, Default)]
pub struct Head {
    /// The first message that is not acknowledged.
    pub position: u64,
    /// The file of claims, and how many it has.
    claims: Option<(OwnedFd, u64)>,
}

impl Head {
    /// The claim of whoever has the message with this sequence number now.
    pub fn held(&self, sequence: u32) -> Option<Claim> {
        let (file, claims) = self.claims.as_ref()?;
        let index = u64::from(sequence).checked_rem(*claims)?;
        let mut word = [0; size_of::<Claim>()];
        let at = 2 * PAGE as u64 + index * size_of::<Claim>() as u64;
        // What can't be read is nobody's.
        files::read_at(file, at, &mut word).ok()?;
        let claim = Claim(u64::from_le_bytes(word));
        let is_held = [Fate::Claimed, Fate::Once, Fate::Cancelled, Fate::Moving]
            .into_iter()
            .any(|fate| claim.is(fate));
        (is_held && claim.sequence() == sequence).then_some(claim)
    }
}

/// Makes the group that is there from the beginning, before its topic has a name.
pub fn make_default(dir: &Dir, topic: &str) -> Result<()> {
    let plan = plan(DEFAULT_ID, false);
    let name = format!("{GROUP}{DEFAULT}");
    dir.create(&name, &plan, |file| {
        let map = map(topic, file, 0, PAGE, Access::Write)?;
        cursor(&map, DEFAULT_ID).set_joined();
        files::sync(file).map_err(|e| Error::system("sync a group of", topic, e))
    })?;
    Ok(())
}

fn plan(id: u64, lock: bool) -> Plan<'static> {
    let size = PAGE as u64;
    Plan {
        tried: "make a group",
        identity: Identity::new(Kind::Group, size, id, 0),
        allocate: size,
        content: &[],
        lock,
    }
}

fn cursor(map: &Arc<Mapping>, id: u64) -> Cursor {
    Cursor {
        id,
        role: Role::Group,
        header: map.view(0),
        slots: map.views(PAGE, 0),
    }
}

/// A file of claims, as its lane's writer sees it.
fn as_reader(map: &Arc<Mapping>, group: u64) -> Cursor {
    Cursor {
        id: group | IS_CLAIMS,
        role: Role::Group,
        header: map.view(0),
        slots: map.views::<Slot>(PAGE, 1),
    }
}

fn claims_name(group: u64, lane: u64) -> String {
    format!("{CLAIMS}{group}.{lane}")
}

impl TopicFiles {
    /// The escaped names of the groups.
    pub fn group_names(&self) -> Result<Vec<String>> {
        let names = self.dir.names()?;
        let groups = names.iter().filter_map(|name| name.strip_prefix(GROUP));
        let mut groups: Vec<String> = groups.map(str::to_owned).collect();
        groups.sort_unstable();
        Ok(groups)
    }

    /// The group with this escaped name. `None`: there is none.
    pub fn group(&self, name: &str, access: Access) -> Result<Option<(OwnedFd, Group)>> {
        let file = self.dir.open_file(
            &format!("{GROUP}{name}"),
            Kind::Group,
            access == Access::Write,
        )?;
        let Some((file, identity)) = file else {
            return Ok(None);
        };
        if identity.size != PAGE as u64 || identity.id & IS_CLAIMS != 0 {
            let why = format!(
                "group {name} says {} bytes, number {}",
                identity.size, identity.id
            );
            return Err(self.damaged(why));
        }
        let map = map(&self.name, &file, 0, PAGE, access)?;
        let mut group = Group {
            id: identity.id,
            name: name.to_owned(),
            config: GroupConfig::new_zeroed(),
            cursor: cursor(&map, identity.id),
        };
        group.config = self.group_config(&file)?;
        Ok(Some((file, group)))
    }

    fn group_config(&self, file: &impl AsFd) -> Result<GroupConfig> {
        let mut bytes = [0; size_of::<GroupConfig>()];
        files::read_at(file, GROUP_CONFIG as u64, &mut bytes)
            .map_err(|e| Error::system("read a group of", &*self.name, e))?;
        Ok(GroupConfig::read_from_bytes(&bytes).expect("as many bytes as a configuration has"))
    }

    /// Writes what a group's consumers agree on, by the holder of its lock.
    pub fn set_group_config(&self, lock: &Held, config: &GroupConfig) -> Result<()> {
        files::write_at(lock, GROUP_CONFIG as u64, config.as_bytes())
            .map_err(|e| Error::system("configure a group of", &*self.name, e))
    }

    /// Opens a group, made from now on if it is missing, with its lock: nobody joins, leaves or removes it meanwhile.
    pub fn open_group(&self, name: &str) -> Result<(Held, Group)> {
        loop {
            let Some((lock, mut group)) = self.lock_group(name)? else {
                if let Some(made) = self.make_group(name)? {
                    return Ok(made);
                }
                continue;
            };
            if group.cursor.is_joined() {
                group.config = self.group_config(&lock)?;
                return Ok((lock, group));
            }
            // Its maker has died over it. Nothing was promised yet.
            self.remove_group_files(&group)?;
        }
    }

    /// A group that is there, with its lock. `None`: there is none.
    pub fn lock_group(&self, name: &str) -> Result<Option<(Held, Group)>> {
        let failed = |e: nix::Error| Error::system("lock a group of", &*self.name, e);
        let open = || self.group(name, Access::Write);
        lock_named(LOCK_TRIES, open, failed, || {
            let why = format!("somebody who joins or removes the group {name} does not go on");
            Error::new(ErrorKind::TimedOut, "join", &*self.name, why)
                .advise("look for a stopped process (buslane inspect)")
        })
    }

    /// A new group, that joins every lane from now on. `None`: somebody was faster.
    fn make_group(&self, name: &str) -> Result<Option<(Held, Group)>> {
        let id = self.next_id()?;
        let staying = fork::stay();
        let made = self
            .dir
            .create(&format!("{GROUP}{name}"), &plan(id, true), |file| {
                let map = map(&self.name, file, 0, PAGE, Access::Write)?;
                Ok(cursor(&map, id))
            })?;
        let Some((file, cursor)) = made else {
            return Ok(None);
        };
        let lock = staying.hold(file);
        roster::changed(&self.control);
        let group = Group {
            id,
            name: name.to_owned(),
            config: GroupConfig::new_zeroed(),
            cursor,
        };
        let joined = self.join_all(&group);
        if joined.is_err() {
            // Nobody else could join with it.
            self.remove_group_files(&group)?;
        }
        joined?;
        group.cursor.set_joined();
        if self.is_logged() {
            let failed = |e| Error::system("sync a group of", &*self.name, e);
            let synced = files::sync(&lock).map_err(failed);
            if let Err(e) = synced.and_then(|()| self.dir.sync()) {
                self.remove_group_files(&group)?;
                return Err(e);
            }
        }
        roster::changed(&self.control);
        Ok(Some((lock, group)))
    }

    fn join_all(&self, group: &Group) -> Result<()> {
        for id in self.dir.numbers(LANE)? {
            let Some(lane) = skip_damaged(self.lane_to_follow(id))? else {
                continue;
            };
            let Some(claims) = self.make_claims(group.id, &lane, |_| {})? else {
                continue;
            };
            let head = claims.slot();
            let end = match self.is_logged() {
                true => self.join_log(&lane, head),
                false => {
                    let capacity = lane.ring.capacity();
                    roster::join(&self.control, &lane.header, capacity, id, head, |_| None)
                        .and_then(|(mark, limit)| lane::walk(&lane.ring, mark, limit, |_| {}))
                }
            };
            match end {
                Ok(end) => claims::begin(head, end),
                // Whoever follows it will say so; its writer does not wait for us.
                Err(_) => lane::leave(head),
            }
        }
        Ok(())
    }

    /// Joins a lane in data files at its end.
    fn join_log(&self, lane: &LaneFile, head: &Slot) -> Result<u64, Corrupt> {
        let LaneFile { id, header, ring } = lane;
        for _ in 0..roster::TRIES {
            let at = Outside { header, ring }.start(0, 0)?.position;
            if roster::join_log(&self.control, header, *id, head, at) {
                return Ok(at);
            }
        }
        let (position, word) = (lane::floor(header), 0);
        Err(Corrupt { position, word })
    }

    /// The claims on a lane of all groups that have joined it.
    pub(super) fn claims_on(&self, lane: &LaneFile) -> Result<Vec<Claims>> {
        let mut claims = Vec::new();
        for (group, _) in self
            .all_claims()?
            .into_iter()
            .filter(|(_, of)| *of == lane.id)
        {
            let name = claims_name(group, lane.id);
            let file = skip_damaged(self.dir.open_file(&name, Kind::Claims, true))?;
            if let Some((file, identity)) = file
                && identity.size == claims_size(lane.ring.capacity())
            {
                let map = map(&self.name, &file, 0, 2 * PAGE, Access::Write)?;
                let reader = as_reader(&map, group);
                if reader.used().is_empty() {
                    // Lost with the machine.
                    reader.take_slot(|_| Ok::<_, Error>(()))?;
                }
                claims.push(self.map_claims(lane, &file)?);
            }
        }
        Ok(claims)
    }

    /// Removes a group, by the holder of its lock: nobody waits for it any more.
    pub fn remove_group_files(&self, group: &Group) -> Result<()> {
        // First the group: who looks now makes no claims for it.
        self.dir.remove(&format!("{GROUP}{}", group.name))?;
        self.remove_claims(|of, _| of == group.id)?;
        roster::changed(&self.control);
        Ok(())
    }

    /// Whether a consumer of a group lives.
    pub fn has_consumer(&self, group: u64) -> Result<bool> {
        Ok(self.count_consumers(group)? > 0)
    }

    /// How many consumers of a group live.
    pub fn count_consumers(&self, group: u64) -> Result<usize> {
        let mut count = 0;
        for id in self.dir.numbers(CURSOR)? {
            if let Some((file, cursor)) = skip_damaged(self.cursor(id, Access::Read))?
                && cursor.group() == group
            {
                let locked = files::is_locked(&file)
                    .map_err(|e| Error::system("look at a lock of", &*self.name, e))?;
                count += usize::from(locked);
            }
        }
        Ok(count)
    }

    /// A cursor for a new consumer of a group, whose number no other consumer shares as far as claims have room for it.
    pub fn new_consumer(&self, member: u64, group: u64, kinds: u64) -> Result<(Held, Cursor)> {
        // Each of those that are there, and of those that come at the same time, may have the number that is tried.
        for _ in 0..roster::TRIES + self.dir.numbers(CURSOR)?.len() {
            let (lock, cursor) =
                self.new_cursor_with(member, |cursor| cursor.consume_for(group, kinds))?;
            let cut = |id: u64| id & Claim::OWNERS;
            // After it has its name: of two that come at once, at least one sees the other.
            let shared = |&id: &u64| id != cursor.id && cut(id) == cut(cursor.id);
            let is_shared = self.dir.numbers(CURSOR).map(|ids| ids.iter().any(shared));
            if is_shared.as_ref().is_ok_and(|is_shared| !is_shared) {
                return Ok((lock, cursor));
            }
            self.dir.remove(&format!("{CURSOR}{}", cursor.id))?;
            is_shared?;
        }
        Err(self.damaged(String::from(
            "it gives each consumer a number that another one has",
        )))
    }

    // ----------------------------------------------------------------------------------------------------- claims

    /// The groups as readers of a lane.
    pub(super) fn list_groups(&self, lane: u64) -> Result<Vec<Cursor>> {
        let mut groups = Vec::new();
        if self.pattern != Pattern::Queue {
            return Ok(groups);
        }
        for name in self.group_names()? {
            let Some((_, group)) = skip_damaged(self.group(&name, Access::Read))? else {
                continue;
            };
            let name = claims_name(group.id, lane);
            let file = skip_damaged(self.dir.open_file(&name, Kind::Claims, false))?;
            groups.push(match file {
                Some((file, identity)) if identity.size >= 2 * PAGE as u64 => {
                    let map = map(&self.name, &file, 0, 2 * PAGE, Access::Read)?;
                    as_reader(&map, group.id)
                }
                _ => group.cursor,
            });
        }
        Ok(groups)
    }

    /// A group's claims on a lane, made if they are missing: then the lane came after the group. `None`: the lane is gone.
    pub fn claims(&self, group: u64, lane: &LaneFile) -> Result<Option<Claims>> {
        let name = claims_name(group, lane.id);
        loop {
            if let Some((file, identity)) = self.dir.open_file(&name, Kind::Claims, true)? {
                let size = claims_size(lane.ring.capacity());
                if identity.size != size || identity.id != lane.id {
                    let why = format!("{name} says {} bytes, lane {}", identity.size, identity.id);
                    return Err(self.damaged(why));
                }
                let claims = self.map_claims(lane, &file)?;
                return Ok(Some(claims));
            }
            if !claims::has_waited(&lane.header, &lane.ring) {
                // Another consumer was faster, and the writer went on for that one.
                if self.all_claims()?.contains(&(group, lane.id)) {
                    continue;
                }
                // Removed with its lane, and after it; else it would be there.
                return if self.has_lane(lane.id)? {
                    let why = String::from("its writer went on before a group had joined");
                    Err(self.corrupt_lane(lane.id, why))
                } else {
                    Ok(None)
                };
            }
            let made = self.make_claims(group, lane, |claims| {
                claims::begin_from_start(claims.slot(), lane.id);
            })?;
            if made.is_some() {
                if !self.has_lane(lane.id)? {
                    self.dir.remove(&name)?;
                    return Ok(None);
                }
                roster::changed(&self.control);
                return Ok(made);
            }
        }
    }

    /// Where a group is in a lane, to look at. `None`: it reads that lane no more.
    pub fn head(&self, group: u64, lane: u64) -> Result<Option<Head>> {
        let name = claims_name(group, lane);
        let file = skip_damaged(self.dir.open_file(&name, Kind::Claims, false))?;
        let file = file.filter(|(_, identity)| identity.size >= 2 * PAGE as u64);
        let Some((file, identity)) = file else {
            // It will begin at the beginning.
            return Ok(Some(Head::default()));
        };
        let map = map(&self.name, &file, 0, 2 * PAGE, Access::Read)?;
        let position = as_reader(&map, group).position_in(lane).unwrap_or(0);
        let head = Head {
            position,
            claims: Some((file, identity.capacity)),
        };
        Ok((position & LEFT == 0).then_some(head))
    }

    fn has_lane(&self, id: u64) -> Result<bool> {
        Ok(self.dir.numbers(LANE)?.binary_search(&id).is_ok())
    }

    /// `None`: they are there already.
    fn make_claims(
        &self,
        group: u64,
        lane: &LaneFile,
        init: impl Fn(&Claims),
    ) -> Result<Option<Claims>> {
        let capacity = lane.ring.capacity();
        let size = claims_size(capacity);
        let plan = Plan {
            tried: "make claims",
            identity: Identity::new(Kind::Claims, size, lane.id, claims_of(capacity) as u64),
            allocate: size,
            content: &[],
            lock: false,
        };
        let made = self
            .dir
            .create(&claims_name(group, lane.id), &plan, |file| {
                let claims = self.map_claims(lane, file)?;
                let map = map(&self.name, file, 0, 2 * PAGE, Access::Write)?;
                as_reader(&map, group).take_slot(|_| Ok::<_, Error>(()))?;
                init(&claims);
                if self.is_logged() {
                    files::sync(file)
                        .map_err(|e| Error::system("sync claims of", &*self.name, e))?;
                }
                Ok(claims)
            })?;
        if self.is_logged() {
            self.dir.sync()?;
        }
        Ok(made.map(|(_, claims)| claims))
    }

    fn map_claims(&self, lane: &LaneFile, file: &OwnedFd) -> Result<Claims> {
        let capacity = lane.ring.capacity();
        let map = map(
            &self.name,
            file,
            0,
            claims_size(capacity) as usize,
            Access::Write,
        )?;
        Ok(Claims {
            lane: lane.header.clone(),
            ring: lane.ring.clone(),
            slots: map.views(PAGE + offset_of!(ClaimsHeader, head), 1),
            again: map.view(PAGE + offset_of!(ClaimsHeader, again)),
            blocked: map.view(PAGE + offset_of!(ClaimsHeader, blocked)),
            table: map.views(2 * PAGE, claims_of(capacity)),
            fences: !futex::has_barrier(),
        })
    }

    /// The numbers of group and lane of all claims.
    fn all_claims(&self) -> Result<Vec<(u64, u64)>> {
        let names = self.dir.names()?;
        let claims = names.iter().filter_map(|name| {
            let (group, lane) = name.strip_prefix(CLAIMS)?.split_once('.')?;
            let (group, lane) = (group.parse().ok()?, lane.parse().ok()?);
            (claims_name(group, lane) == **name).then_some((group, lane))
        });
        Ok(claims.collect())
    }

    fn remove_claims(&self, which: impl Fn(u64, u64) -> bool) -> Result<()> {
        for (group, lane) in self.all_claims()? {
            if !which(group, lane) {
                continue;
            }
            let name = claims_name(group, lane);
            let file = skip_damaged(self.dir.open_file(&name, Kind::Claims, true))?;
            if let Some((file, identity)) = file
                && identity.size >= 2 * PAGE as u64
            {
                let map = map(&self.name, &file, 0, 2 * PAGE, Access::Write)?;
                lane::leave(&map.view::<ClaimsHeader>(PAGE).head);
            }
            self.dir.remove(&name)?;
        }
        Ok(())
    }

    /// Removes all claims on a lane that was removed.
    pub(super) fn remove_claims_of(&self, lane: u64) -> Result<()> {
        match self.pattern {
            Pattern::Queue => self.remove_claims(|_, of| of == lane),
            _ => Ok(()),
        }
    }

    /// Gives back what a consumer held, that has left or died, by the holder of its cursor's lock; and does what it may
    /// have left undone.
    pub(super) fn free_claims_of(&self, consumer: u64) -> Result<()> {
        if self.pattern != Pattern::Queue {
            return Ok(());
        }
        for (group, lane) in self.all_claims()? {
            let Some(lane) = skip_damaged(self.lane_to_follow(lane))? else {
                continue;
            };
            let Some(claims) = skip_damaged(self.claims(group, &lane))? else {
                continue;
            };
            claims.put_away(consumer, &self.control);
        }
        Ok(())
    }

    /// Does what the writer of a lane may have left undone that has gone, as it withdrew a message.
    pub(super) fn repair_claims_on(&self, lane: &LaneFile) -> Result<()> {
        if self.pattern == Pattern::Queue {
            for claims in self.claims_on(lane)? {
                claims.repair(&self.control);
            }
        }
        Ok(())
    }

    /// Removes groups that their makers died over, and claims whose lane or group is gone.
    pub(super) fn tidy_groups(&self) -> Result<()> {
        if self.pattern != Pattern::Queue {
            return Ok(());
        }
        // Before what they belong to: a lane or group that is then not there never will be.
        let claims = self.all_claims()?;
        let mut groups = Vec::new();
        for name in self.group_names()? {
            let staying = fork::stay();
            let Some((file, group)) = skip_damaged(self.group(&name, Access::Write))? else {
                // Damaged: its claims stay with it.
                return Ok(());
            };
            groups.push(group.id);
            if !group.cursor.is_joined() {
                self.remove_unjoined(staying, file, &group)?;
            }
        }
        let lanes = self.dir.numbers(LANE)?;
        let is_left = |group, lane| !groups.contains(&group) || lanes.binary_search(&lane).is_err();
        self.remove_claims(|group, lane| claims.contains(&(group, lane)) && is_left(group, lane))
    }

    /// Removes a group that its maker died over, if it did.
    fn remove_unjoined(&self, staying: Staying, file: OwnedFd, group: &Group) -> Result<()> {
        let failed = |e: nix::Error| Error::system("lock a group of", &*self.name, e);
        let Some(lock) = staying.try_lock(file).map_err(failed)? else {
            return Ok(());
        };
        // Another one may have its name by now.
        if group.cursor.is_joined() || !files::is_named(&lock).map_err(failed)? {
            return Ok(());
        }
        self.remove_group_files(group)
    }

    fn damaged(&self, why: String) -> Error {
        Error::new(ErrorKind::Corrupt, "read the queue", &*self.name, why)
            .advise("remove the topic when nobody uses it")
    }
}

fn claims_size(capacity: u64) -> u64 {
    (2 * PAGE + claims_of(capacity) * size_of::<u64>()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bus;

    #[test]
    fn a_group_that_has_the_name_of_one_whose_maker_died_stays() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("bus");
        let _queue = Bus::at(&path).unwrap().queue("q").unwrap();
        let files = TopicFiles::of(&path, "q");
        let unjoined = |_: &OwnedFd| Ok(());
        drop(
            files
                .dir
                .create(&format!("{GROUP}g"), &plan(77, false), unjoined),
        );
        // As a sweep does, that goes on when another one has it.
        let (file, group) = files.group("g", Access::Write).unwrap().unwrap();
        drop(files.open_group("g").unwrap());
        files.remove_unjoined(fork::stay(), file, &group).unwrap();
        assert!(files.group_names().unwrap().contains(&String::from("g")));
    }
}
