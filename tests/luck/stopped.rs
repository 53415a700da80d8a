//! Each operation is stopped before and after every system call, while others go on; then it goes on, too.

use std::cell::Cell;

use crate::common::{hear, role, say};
use crate::operations::{OPERATIONS, PATIENCE};
use crate::runs::{PARTS, attend_all, look_after, run, run_plainly};
use crate::tracer::{Fate, Which};
use crate::witness::Witness;

/// For so many calls it is looked for the dead, then it is not: more than it takes to make a file.
const TURN: usize = 16;

/// More calls than any operation makes.
const MANY: usize = 20_000;

mod child {
    use super::*;

    /// Argument: which part this is to do.
    #[test]
    fn stopping() {
        let Some((path, part)) = role() else { return };
        let dir = path.parent().unwrap();
        let part: usize = part.parse().unwrap();
        for operation in OPERATIONS.iter().skip(part).step_by(PARTS) {
            run_plainly(operation, dir);
            say("allow");
            assert_eq!(hear(), "ok");
            let mut stops = 0;
            // Who makes a file begins anew if it is taken for one whose maker has died, so it is not always looked for the dead; and who
            // joins a lane follows it to its end, so that does not move on faster than it is followed.
            for turn in 0..2 {
                let visit = |stops: usize| {
                    let is_turn = stops / TURN % 2 == turn;
                    say(match is_turn {
                        true if stops.is_multiple_of(8) => "visit all",
                        true => "visit",
                        false => "look",
                    });
                    assert_eq!(hear(), "ok");
                };
                let stop = Cell::new(0);
                let on_call = |_| {
                    stop.set(stop.get() + 1);
                    assert!(stop.get() < MANY, "{} has no end", operation.name);
                    visit(stop.get());
                    Fate::Made
                };
                let mut on_made = || visit(stop.get());
                let begin = |begin: &dyn Fn()| begin();
                let at = (dir, PATIENCE);
                let ended = run(
                    operation,
                    at,
                    &begin,
                    Which::All,
                    on_call,
                    Some(&mut on_made),
                );
                assert_eq!(ended, Ok(None), "{}", operation.name);
                assert_eq!(look_after(), Ok(()), "{}", operation.name);
                stops += stop.get();
            }
            say(format!("{stops} {}", operation.name));
        }
        say("over");
    }
}

#[test]
fn stopped_at_every_system_call() {
    let said = attend_all("stopped::child::stopping", |part| {
        (Witness::new(), part.to_string())
    });
    assert_eq!(said.len(), OPERATIONS.len());
    let mut sum = 0;
    for line in &said {
        let (stops, name) = line.split_once(' ').unwrap();
        sum += stops.parse::<usize>().unwrap();
        println!("{name:22} stopped before and after {stops} calls");
    }
    println!("{sum} calls in all");
}
