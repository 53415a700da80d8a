//! Operations are run in children of a process with a role, while a witness in the test looks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::common::{Process, abort_on_panic, hear, say};
use crate::operations::{Operation, PATIENCE, Scene, is_advised};
use crate::tracer::{Call, End, Fate, Which, trace};
use crate::witness::Witness;

/// How many have bad luck at the same time, each with a witness of its own: most of the time goes by in waiting for the
/// kernel, which takes some ten milliseconds to close an inotify.
pub const PARTS: usize = 8;

/// Runs an operation in a child, which calls `begin` when what counts begins, with what has its calls looked at. `None`: it
/// did all that it was to do.
pub fn run(
    operation: &Operation,
    (dir, patience): (&Path, Duration),
    begin: &dyn Fn(&dyn Fn()),
    which: Which,
    on_call: impl FnMut(Call) -> Fate,
    on_made: Option<&mut dyn FnMut()>,
) -> Result<Option<String>, String> {
    let what = |trace: &dyn Fn()| {
        abort_on_panic();
        let begin = &|| begin(trace);
        let scene = Scene {
            dir,
            patience,
            begin,
        };
        match (operation.run)(&scene) {
            Ok(()) => String::from("done"),
            Err(e) => {
                let advised = if is_advised(&e) { "advised" } else { "plain" };
                format!("{:?} {advised} {e}", e.kind())
            }
        }
    };
    match trace(which, what, on_call, on_made) {
        End::Said(said) if said == "done" => Ok(None),
        End::Said(said) if !said.is_empty() => Ok(Some(said)),
        end => Err(format!("{end:?}")),
    }
}

/// The same, without bad luck.
pub fn run_plainly(operation: &Operation, dir: &Path) {
    let begin = |_: &dyn Fn()| {};
    let at = (dir, PATIENCE);
    let ended = run(operation, at, &begin, Which::None, |_| Fate::Made, None);
    assert_eq!(ended, Ok(None), "{}", operation.name);
}

/// In a role: has the witness look after a run. What is wrong, and the directory of another witness.
pub fn look_after() -> Result<(), (PathBuf, String)> {
    say("look after");
    let heard = hear();
    match heard.split_once(' ') {
        None => Ok(()),
        Some((dir, why)) => Err((dir.into(), why.to_owned())),
    }
}

/// Starts a role, and is the witness that it asks for. What it says else.
fn attend(mut witness: Witness, role: &str, argument: &str) -> Vec<String> {
    let mut child = Process::start(&witness.dir().join("bus"), role, argument);
    let mut said = Vec::new();
    loop {
        let heard = child.hear();
        match heard.as_str() {
            "allow" => {
                witness.tidy().unwrap();
                witness.allow();
                child.tell("ok");
            }
            "look" => {
                witness.look();
                child.tell("ok");
            }
            "visit" | "visit all" => {
                witness.visit(heard == "visit all");
                child.tell("ok");
            }
            "look after" => {
                let looked = catch_unwind(AssertUnwindSafe(|| witness.look_after()));
                match looked.unwrap_or_else(|_| Err(String::from("the witness is harmed"))) {
                    Ok(()) => child.tell("ok"),
                    Err(why) => {
                        witness = witness.anew();
                        child.tell(format!("{} {why}", witness.dir().display()));
                    }
                }
            }
            "over" => break,
            _ => said.push(heard),
        }
    }
    child.join();
    said
}

/// The same, all parts of it at once. `start` gives the witness of a part, and the argument.
pub fn attend_all(role: &str, start: impl Fn(usize) -> (Witness, String) + Sync) -> Vec<String> {
    let start = &start;
    let part = |part: usize| {
        let (witness, argument) = start(part);
        attend(witness, role, &argument)
    };
    thread::scope(|scope| {
        let parts: Vec<_> = (0..PARTS).map(|i| scope.spawn(move || part(i))).collect();
        let said = parts.into_iter().map(|part| part.join().unwrap());
        said.flatten().collect()
    })
}
