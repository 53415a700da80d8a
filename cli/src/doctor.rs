//! `buslane doctor`: what is wrong with a bus and this machine, and what to do.

use std::fs;
use std::io::Write;

use buslane::{Bus, DEFAULT_CAPACITY, Keep, LaneReport, Owner, TopicReport};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use serde::Serialize;

use crate::Common;
use crate::failure::Failure;
use crate::ls::open_to_look;
use crate::output::{json_line, stdout};
use crate::signals::Stop;
use crate::size;

/// Say what is wrong with the bus and this machine, and what to do
///
/// Looks for what dead processes have left, for files that are damaged, for who holds others up, and for what will soon
/// run out. Changes nothing without --fix. Ends with status 1 if something is wrong that stays.
#[derive(clap::Args)]
pub struct Args {
    /// Put away what dead processes have left
    #[arg(long)]
    fix: bool,
    /// Read every byte that a durable bus keeps, and compare it with its checksum
    #[arg(long)]
    deep: bool,
}

/// Something that is wrong.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    todo: &'static str,
    /// By --fix, just now.
    fixed: bool,
}

#[derive(Serialize)]
struct Json<'a> {
    bus: String,
    findings: &'a [Finding],
}

/// Looks, and prints what it found.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let bus = open_to_look(common)?;
    let mut findings = leftovers(&bus, args.fix)?;
    topics(&bus, &mut findings)?;
    if args.deep {
        deep(&bus, &mut findings, stop)?;
    }
    machine(&bus, &mut findings);
    let mut out = stdout(stop)?;
    if common.json {
        let bus = bus.path().display().to_string();
        let findings = &findings;
        json_line(&mut out, &Json { bus, findings })?;
    } else {
        people(&mut out, &bus, &findings).map_err(Failure::stdout)?;
    }
    out.flush().map_err(Failure::stdout)?;
    match findings.iter().filter(|finding| !finding.fixed).count() {
        0 => Ok(()),
        wrong => Err(Failure::Error(format!(
            "{wrong} found wrong; what to do stands beside each"
        ))),
    }
}

fn people(out: &mut impl Write, bus: &Bus, findings: &[Finding]) -> std::io::Result<()> {
    if findings.is_empty() {
        return writeln!(out, "{}: all is well", bus.path().display());
    }
    for Finding { what, todo, fixed } in findings {
        match fixed {
            true => writeln!(out, "fixed: {what}")?,
            false => writeln!(out, "{what}\n    {todo}")?,
        }
    }
    Ok(())
}

fn wrong(what: impl Into<String>, todo: &'static str) -> Finding {
    Finding {
        what: what.into(),
        todo,
        fixed: false,
    }
}

/// What the dead have left.
fn leftovers(bus: &Bus, fix: bool) -> Result<Vec<Finding>, Failure> {
    let todo = "buslane doctor --fix puts it away; so does the next process that opens the bus";
    let dead = |bus: &Bus| -> Result<Vec<_>, Failure> {
        let mut members = bus.members()?;
        members.retain(|owner| !owner.alive);
        Ok(members)
    };
    let before = dead(bus)?;
    if fix {
        bus.reclaim()?;
    }
    let after = if fix { dead(bus)? } else { before.clone() };
    Ok(before
        .into_iter()
        .map(|owner| Finding {
            what: format!(
                "{} (pid {}) died, and has left its files",
                owner.name, owner.pid
            ),
            todo,
            fixed: !after.contains(&owner),
        })
        .collect())
}

fn topics(bus: &Bus, findings: &mut Vec<Finding>) -> Result<(), Failure> {
    for name in bus.topics()? {
        match bus.inspect(&name) {
            Ok(report) => topic(&report, findings),
            Err(error) => findings.push(wrong(
                error.to_string(),
                "stop who uses the topic, then remove it with buslane rm",
            )),
        }
    }
    Ok(())
}

/// What is not as it was written.
fn deep(bus: &Bus, findings: &mut Vec<Finding>, stop: &Stop) -> Result<(), Failure> {
    for name in bus.topics()? {
        stop.check()?;
        // What can't be opened was told already.
        let Ok(verified) = bus.verify(&name) else {
            continue;
        };
        for damage in verified.damage {
            findings.push(wrong(
                format!("{name}: lane {} at {}: {}", damage.lane, damage.position, damage.why),
                "restore it from a copy; or go on without it (buslane recv TOPIC --subscription NAME --skip-damaged)",
            ));
        }
    }
    Ok(())
}

/// Subscriptions that nobody receives with, and what happened to the disk.
fn durable(report: &TopicReport, findings: &mut Vec<Finding>) {
    let Some(durable) = report.durable else {
        return;
    };
    if durable.is_poisoned {
        findings.push(wrong(
            format!(
                "a sync of {} has failed: what is on the disk is not known",
                report.name
            ),
            "look at the disk (dmesg); end all processes of the bus: who opens it then finds out",
        ));
    }
    for lane in &report.lanes {
        if let Some((at, bytes)) = lane.kept.as_ref().and_then(|kept| kept.cut) {
            findings.push(wrong(
                format!(
                    "{}: lane {} was cut at {at} when the machine went down: {bytes} bytes had not reached the disk",
                    report.name, lane.id
                ),
                "nothing: none of it was said to be synced; sync more often if that is too much",
            ));
        }
    }
    for cursor in report.cursors.iter().filter(|cursor| cursor.away) {
        let lag: u64 = cursor.positions.iter().map(|at| at.lag).sum();
        let bytes: u64 = cursor
            .positions
            .iter()
            .filter_map(|at| {
                let lane = report.lanes.iter().find(|lane| lane.id == at.lane)?;
                Some(lane.position.saturating_sub(at.position))
            })
            .sum();
        if bytes > report.capacity {
            findings.push(wrong(
                format!(
                    "nobody receives as {} from {}: {lag} messages wait for it, in {}",
                    cursor.name.as_deref().unwrap_or("?"),
                    report.name,
                    size::human(bytes)
                ),
                "start it (buslane recv TOPIC --subscription NAME), or remove it (buslane rm TOPIC --subscription NAME)",
            ));
        }
    }
    let is_kept_for_nobody = report.pattern == "lossless"
        && durable.keep == Keep::UntilPassed
        && !report.cursors.iter().any(|cursor| cursor.name.is_some());
    let kept: usize = report
        .lanes
        .iter()
        .filter_map(|lane| Some(lane.kept.as_ref()?.files.len()))
        .sum();
    if is_kept_for_nobody && kept > 8 {
        findings.push(wrong(
            format!(
                "{} has no named subscription, and keeps everything: {kept} files of {}",
                report.name,
                size::human(report.capacity)
            ),
            "receive with a name (buslane recv TOPIC --subscription NAME), or make the topic with a limit (Keep::Bytes)",
        ));
    }
}

/// Groups that nobody works for, and who is so far behind that publishers wait, or will soon.
fn topic(report: &TopicReport, findings: &mut Vec<Finding>) {
    durable(report, findings);
    for group in &report.groups {
        if group.unacked > 0 && group.consumers == 0 {
            findings.push(wrong(
                format!(
                    "group {} of the queue {} has {} messages waiting, and no consumer",
                    group.name, report.name, group.unacked
                ),
                "start one (buslane work QUEUE --group GROUP), or remove it (buslane rm QUEUE --group GROUP)",
            ));
        }
    }
    if report.durable.is_none() {
        unacknowledged(report, findings);
    }
    if report.pattern != "lossless" || report.durable.is_some() {
        return;
    }
    for cursor in &report.cursors {
        let behind = cursor.positions.iter().any(|position| {
            let lane = report.lanes.iter().find(|lane| lane.id == position.lane);
            lane.is_some_and(|lane| {
                lane.position.saturating_sub(position.position) >= report.capacity / 4 * 3
            })
        });
        if behind && cursor.owner.alive && !cursor.lossy {
            let (name, pid) = (&cursor.owner.name, cursor.owner.pid);
            findings.push(wrong(
                format!(
                    "{name} (pid {pid}) is most of a lane behind on {}: its publishers wait, or will soon",
                    report.name
                ),
                "see whether it is stopped or stuck; end it, and they go on",
            ));
        }
    }
}

/// Groups with consumers, that are so far behind that producers wait, or will soon.
fn unacknowledged(report: &TopicReport, findings: &mut Vec<Finding>) {
    for group in report.groups.iter().filter(|group| group.consumers > 0) {
        for at in &group.positions {
            let lane = report.lanes.iter().find(|lane| lane.id == at.lane);
            let is_near = |lane: &LaneReport| {
                lane.position.saturating_sub(at.position) < report.capacity / 4 * 3
            };
            if lane.is_none_or(is_near) {
                continue;
            }
            let held = match report.holder(at) {
                Some(Owner { name, pid, .. }) => format!("{name} (pid {pid}) has"),
                None => String::from("nobody has"),
            };
            findings.push(wrong(
                format!(
                    "{held} message {} of lane {} of the queue {}, which group {} has not acknowledged: {} wait behind it, and the \
                     producer waits, or will soon",
                    at.sequence,
                    at.lane,
                    report.name,
                    group.name,
                    at.unacked.saturating_sub(1),
                ),
                "see whether its worker is stopped or stuck; end it, and another gets the message. If none is, start more",
            ));
        }
    }
}

/// Space and limits.
fn machine(bus: &Bus, findings: &mut Vec<Finding>) {
    if bus.is_durable()
        && let Ok(kind) = statfs(bus.path())
        && kind.filesystem_type() == TMPFS_MAGIC
    {
        findings.push(wrong(
            "the bus is durable, and in memory (tmpfs): it is lost with the machine",
            "use a path on a disk",
        ));
    }
    if let Ok(space) = statvfs(bus.path()) {
        let free = space.blocks_available() * space.fragment_size();
        if free < 4 * DEFAULT_CAPACITY as u64 {
            findings.push(wrong(
                format!("{} are free where the bus is", size::human(free)),
                "free some: each publisher takes a lane of it",
            ));
        }
        if space.files() > 0 && space.files_available() < 64 {
            findings.push(wrong(
                "hardly any file can be made where the bus is",
                "remove some files there (df -i)",
            ));
        }
    }
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < 256
    {
        findings.push(wrong(
            format!("a process may have {soft} files open here (at most {hard})"),
            "raise it (ulimit -n): each lane, cursor and topic takes some",
        ));
    }
    for (path, least, what) in [
        ("/proc/sys/vm/max_map_count", 8192, "mappings a process"),
        (
            "/proc/sys/fs/inotify/max_user_instances",
            64,
            "inotify instances a user",
        ),
    ] {
        let text = fs::read_to_string(path).unwrap_or_default();
        if let Ok(limit) = text.trim().parse::<u64>()
            && limit < least
        {
            findings.push(wrong(
                format!("{path} allows {limit} {what}"),
                "raise it (sysctl): without them a death is noticed later, or a lane can't be mapped",
            ));
        }
    }
}
