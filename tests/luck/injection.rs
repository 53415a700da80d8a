//! Every system call of every operation fails with every error that it may give, once, or from some time on.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use buslane::ErrorKind;
use nix::errno::Errno;

use crate::calls::{MAY_FAIL, May};
use crate::common::{hear, role, say};
use crate::operations::{OPERATIONS, Operation, PATIENCE};
use crate::runs::{PARTS, attend_all, look_after, run};
use crate::tracer::{Call, Fate, Which};
use crate::witness::Witness;

/// How many are tried in a short run.
const SAMPLE: usize = 1500;
/// A call that is to fail.
#[derive(Clone, Copy)]
struct Injection {
    operation: &'static Operation,
    may: &'static May,
    /// `None`: it does less than it was asked to.
    errno: Option<Errno>,
    /// The how manieth of its kind.
    nth: usize,
    /// All that come later, too.
    and_on: bool,
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, call, nth) = (self.operation.name, self.may.name, self.nth);
        let on = if self.and_on { "+" } else { "" };
        match self.errno {
            Some(errno) => write!(f, "{name}: {call} {nth}{on} gives {errno:?}"),
            None => write!(f, "{name}: {call} {nth}{on} is short"),
        }
    }
}

/// Which calls an operation makes, that may fail.
fn record(operation: &Operation, dir: &Path) -> Vec<Call> {
    let mut calls = Vec::new();
    let on_call = |call: Call| {
        calls.extend(May::of(&call).map(|_| call));
        Fate::Made
    };
    let end = run(
        operation,
        (dir, PATIENCE),
        &|begin| begin(),
        Which::All,
        on_call,
        None,
    );
    assert_eq!(end, Ok(None), "{}", operation.name);
    calls
}

fn injections(operation: &'static Operation, calls: &[Call]) -> Vec<Injection> {
    let mut all = Vec::new();
    for may in MAY_FAIL {
        let made: Vec<_> = calls
            .iter()
            .filter(|call| call.number == may.number)
            .collect();
        for (i, call) in made.iter().enumerate() {
            let nth = i + 1;
            for &errno in may
                .errors
                .iter()
                .filter(|errno| may.refuse(call, **errno).is_some())
            {
                let one = Injection {
                    operation,
                    may,
                    errno: Some(errno),
                    nth,
                    and_on: false,
                };
                all.push(one);
                // A signal comes once; so does what is to be tried again.
                if !matches!(errno, Errno::EINTR | Errno::EAGAIN | Errno::ETIMEDOUT) {
                    all.push(Injection {
                        and_on: true,
                        ..one
                    });
                }
            }
            if may.may_be_short() {
                all.push(Injection {
                    operation,
                    may,
                    errno: None,
                    nth,
                    and_on: false,
                });
            }
        }
    }
    all
}

/// What is wrong with how an operation ended.
fn judge(injection: &Injection, end: Result<Option<String>, String>) -> Result<(), String> {
    let Some(said) = end? else { return Ok(()) };
    let Injection { may, errno, .. } = injection;
    let Some(errno) = errno else {
        return Err(format!("is to go on, and says: {said}"));
    };
    if may.is_harmless || *errno == Errno::EINTR {
        return Err(format!("is to be harmless, and it says: {said}"));
    }
    let kinds: &[ErrorKind] = match errno {
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => &[ErrorKind::NoSpace, ErrorKind::Poisoned],
        Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM => &[ErrorKind::TooMany, ErrorKind::Poisoned],
        _ => &[],
    };
    let is_advised = said.split(' ').nth(1) == Some("advised");
    let is_of_kind = kinds
        .iter()
        .any(|kind| said.starts_with(&format!("{kind:?} ")));
    match kinds.is_empty() || (is_of_kind && is_advised) {
        true => Ok(()),
        false => Err(format!("says: {said}")),
    }
}

fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

mod child {
    use super::*;

    /// Argument: a seed, 0 for all; which part this is to do; and a part of the names of the operations, or of one and its calls.
    #[test]
    fn injecting() {
        let Some((path, argument)) = role() else {
            return;
        };
        let mut arguments = argument.splitn(3, ' ');
        let mut next = || arguments.next().unwrap();
        let mut seed: u64 = next().parse().unwrap();
        let part: usize = next().parse().unwrap();
        let only = next();
        let mut dir = path.parent().unwrap().to_owned();
        let mut all = Vec::new();
        let (name, call) = only.split_once(": ").unwrap_or((only, ""));
        for operation in OPERATIONS.iter().filter(|one| one.name.contains(name)) {
            record(operation, &dir);
            say("allow");
            assert_eq!(hear(), "ok");
            let calls = record(operation, &dir);
            say("allow");
            assert_eq!(hear(), "ok");
            all.extend(injections(operation, &calls));
        }
        all.retain(|injection| injection.to_string().contains(call));
        let there_are = all.len();
        if seed != 0 {
            for i in (1..all.len()).rev() {
                all.swap(i, (random(&mut seed) % (i as u64 + 1)) as usize);
            }
            all.truncate(SAMPLE);
        }
        let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
        for injection in all.iter().skip(part).step_by(PARTS) {
            let (mut count, mut injected) = (0, 0);
            let on_call = |call: Call| {
                let Some(may) = May::of(&call).filter(|may| may.number == injection.may.number)
                else {
                    return Fate::Made;
                };
                let fate = match injection.errno {
                    None => Some(Fate::Short),
                    Some(errno) => may.refuse(&call, errno),
                };
                count += 1;
                match fate {
                    Some(fate)
                        if count == injection.nth
                            || (injection.and_on && count > injection.nth) =>
                    {
                        injected += 1;
                        fate
                    }
                    _ => Fate::Made,
                }
            };
            let which = Which::One(injection.may.number);
            let end = run(
                injection.operation,
                (&dir, PATIENCE),
                &|begin| begin(),
                which,
                on_call,
                None,
            );
            let figures = figures.entry(injection.operation.name).or_default();
            match injected {
                0 => figures.not_come_to += 1,
                _ if end == Ok(None) => figures.went_on += 1,
                _ => figures.refused += 1,
            }
            let mut bad = judge(injection, end).err();
            if let Err((new, why)) = look_after() {
                dir = new;
                bad = Some(format!("{} {why}", bad.unwrap_or_default()));
            }
            if let Some(bad) = bad {
                figures.wrong += 1;
                eprintln!("WRONG {injection}: {bad}");
            }
        }
        for (name, it) in figures {
            say(format!(
                "{} {} {} {} {there_are} {name}",
                it.went_on, it.refused, it.not_come_to, it.wrong
            ));
        }
        say("over");
    }
}

/// What became of the injections.
#[derive(Clone, Copy, Default)]
struct Figures {
    went_on: usize,
    refused: usize,
    /// It ended before that call; or the call was another one this time, which does not give that.
    not_come_to: usize,
    wrong: usize,
}

/// All, if `BUSLANE_LUCK` says so, is 0; else it is a seed.
fn seed() -> u64 {
    match std::env::var("BUSLANE_LUCK").as_deref() {
        Ok("all") => 0,
        Ok(seed) => seed.parse().expect("all, or a seed"),
        Err(_) => SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1,
    }
}

#[test]
fn every_system_call_fails() {
    let only = std::env::var("BUSLANE_ONLY").unwrap_or_default();
    let seed = seed();
    println!("BUSLANE_LUCK={seed}");
    let said = attend_all("injection::child::injecting", |part| {
        (Witness::new(), format!("{seed} {part} {only}"))
    });
    let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
    let mut there_are = 0;
    for line in &said {
        let words: Vec<&str> = line.splitn(6, ' ').collect();
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        there_are = number(4);
        for name in [words[5], "all"] {
            let sum = figures.entry(name).or_default();
            sum.went_on += number(0);
            sum.refused += number(1);
            sum.not_come_to += number(2);
            sum.wrong += number(3);
        }
    }
    println!(
        "{:22} injected  went on  refused  not come to  wrong",
        format!("of {there_are}")
    );
    for (name, it) in &figures {
        let injected = it.went_on + it.refused;
        println!(
            "{name:22} {injected:8} {:8} {:8} {:12} {:6}",
            it.went_on, it.refused, it.not_come_to, it.wrong
        );
    }
    assert_eq!(figures["all"].wrong, 0);
}
