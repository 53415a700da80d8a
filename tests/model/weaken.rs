//! Weakens every ordering of the core, one at a time, and wants a model to fail for each: an ordering that no model
//! needs is either a model that is missing, or an ordering too much.
//!
//! `BUSLANE_ONLY=roster.rs:4` weakens only the places whose name contains that.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The files with atomics.
const FILES: [&str; 5] = [
    "src/shm/claims.rs",
    "src/shm/lane.rs",
    "src/shm/park.rs",
    "src/shm/roster.rs",
    "src/shm/table.rs",
];
/// No model takes as long as this, unless the machine is busy.
const GUARD: Duration = Duration::from_secs(60);

/// What is likely to catch a place in the source whose line, or one of the two before it, contains this.
const LIKELY: &[(&str, &str)] = &[
    (
        "store(word.0, Ordering::Release)",
        "closed_after_the_last_frame",
    ),
    ("mark.store", "join_by_mark"),
    ("lowest = survey", "lossy::join_from_the_oldest"),
    ("closed.store", "closed_after_the_last_frame"),
    ("owner.closed.load", "closed_after_the_last_frame"),
    ("position | LEFT", "reader_leaves"),
    ("fn light", "one_sleeper"),
    ("header.mark.load", "join_by_mark"),
    ("want.store", "sleep_for_room_in_batches"),
    ("want.load", "sleep_for_room_in_batches"),
    ("fence in `Writer::extend`", "lossy::join_from_the_oldest"),
    ("slot.lane.load", "position_in_a_used_slot"),
    ("roster.fetch_add", "await_a_change"),
    ("attention.fetch_add", "attention_tells_of_the_roster"),
];

/// Orderings that no model can miss, and why they stand.
const KEPT: &[(&str, &str)] = &[(
    "owner.joined.store",
    "keeps loads before it; loom never lets a load see what is stored after it",
)];

struct Model {
    name: String,
    time: Duration,
}

/// A place with an ordering, and the models that come by, the quickest first.
#[derive(Default)]
struct Site {
    what: String,
    order: String,
    models: Vec<usize>,
}

enum Outcome {
    Passed,
    Caught(&'static str),
    TooLong,
}

fn run(model: &str, preemptions: &str, envs: &[(&str, &str)]) -> Outcome {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([model, "--exact", "--nocapture", "--test-threads=1"])
        .envs(envs.iter().copied())
        .env("LOOM_MAX_PREEMPTIONS", preemptions)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let said = std::thread::spawn(move || {
        let mut said = Vec::new();
        stderr.read_to_end(&mut said).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    });
    let started = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if started.elapsed() > GUARD => {
                child.kill().unwrap();
                child.wait().unwrap();
                return Outcome::TooLong;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let said = said.join().unwrap();
    if status.success() {
        Outcome::Passed
    } else if said.contains("deadlock") {
        Outcome::Caught("nobody wakes")
    } else if said.contains("Causality violation") {
        Outcome::Caught("a data race")
    } else if said.contains("maximum number of branches") {
        Outcome::Caught("no end")
    } else {
        Outcome::Caught("a wrong value")
    }
}

/// Every model, by its name, with the time it takes, and every place that they come by.
fn record() -> (Vec<Model>, BTreeMap<String, Site>) {
    let list = Command::new(std::env::current_exe().unwrap())
        .arg("--list")
        .output()
        .unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let names = list
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| !name.contains("weaken"));
    let path: PathBuf = std::env::temp_dir().join(format!("buslane-sites-{}", std::process::id()));
    let mut models: Vec<(Model, String)> = Vec::new();
    for name in names {
        let started = Instant::now();
        let outcome = run(name, "1", &[("BUSLANE_SITES", path.to_str().unwrap())]);
        assert!(
            matches!(outcome, Outcome::Passed),
            "{name} fails with nothing weakened"
        );
        let sites = std::fs::read_to_string(&path).unwrap_or_default();
        let _ = std::fs::remove_file(&path);
        models.push((
            Model {
                name: name.to_owned(),
                time: started.elapsed(),
            },
            sites,
        ));
    }
    models.sort_by_key(|(model, _)| model.time);
    let mut all: BTreeMap<String, Site> = BTreeMap::new();
    for (i, (_, sites)) in models.iter().enumerate() {
        for line in sites.lines() {
            let [place, what, order] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let site = all.entry(place.to_owned()).or_default();
            (site.what, site.order) = (what.to_owned(), order.to_owned());
            site.models.push(i);
        }
    }
    (models.into_iter().map(|(model, _)| model).collect(), all)
}

fn file_and_line(place: &str) -> (&str, usize) {
    let mut parts = place.split(':');
    (
        parts.next().unwrap(),
        parts.next().unwrap().parse().unwrap(),
    )
}

/// Orderings in the source that no model comes by.
fn gaps(sites: &BTreeMap<String, Site>) -> Vec<String> {
    let mut gaps = Vec::new();
    for file in FILES {
        let text =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        for (i, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            let orders = [
                "::Acquire",
                "::Release",
                "::AcqRel",
                "::SeqCst",
                "light_fence(",
                "heavy_fence(",
            ];
            if !orders.iter().any(|order| code.contains(order)) {
                continue;
            }
            // An operation may begin a few lines before its ordering.
            let reached = |place: &String| {
                let (at, line) = file_and_line(place);
                at == file && (line..=line + 3).contains(&(i + 1))
            };
            if !sites.keys().any(reached) {
                gaps.push(format!("{file}:{}: {}", i + 1, code.trim()));
            }
        }
    }
    gaps
}

/// The ways to weaken an ordering.
fn ways(site: &Site) -> &'static [&'static str] {
    match (&*site.what, &*site.order) {
        ("fence", "SeqCst") => &["acqrel"],
        ("fence", _) => &["none"],
        (_, "AcqRel") => &["acquire", "release"],
        _ => &["relaxed"],
    }
}

/// What `table` says of the place.
fn said_of(place: &str, table: &[(&str, &'static str)]) -> Option<&'static str> {
    let (file, line) = file_and_line(place);
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let lines: Vec<&str> = text.lines().take(line).collect();
    let near = lines[line.saturating_sub(3)..].join("\n");
    let found = table.iter().find(|(code, _)| near.contains(code));
    found.map(|&(_, said)| said)
}

#[test]
#[ignore = "takes minutes: see the head of model.rs"]
fn weaken() {
    let started = Instant::now();
    let only = std::env::var("BUSLANE_ONLY").unwrap_or_default();
    let (models, sites) = record();
    println!(
        "{} models, {} places, {:.0?}",
        models.len(),
        sites.len(),
        started.elapsed()
    );
    let gaps = gaps(&sites);
    gaps.iter()
        .for_each(|gap| println!("no model comes by {gap}"));
    let mut missed = 0;
    for (place, site) in sites.iter().filter(|(place, _)| place.contains(&only)) {
        if let Some(why) = said_of(place, KEPT) {
            println!("{place} is kept: {why}");
            continue;
        }
        let first = said_of(place, LIKELY);
        let mut by_chance = site.models.clone();
        by_chance.sort_by_key(|&model| first != Some(&models[model].name));
        for how in ways(site) {
            let began = Instant::now();
            let mut too_long = Vec::new();
            let wish = format!("{place}={how}");
            let caught = by_chance.iter().find_map(|&model| {
                match run(&models[model].name, "2", &[("BUSLANE_WEAKEN", &wish)]) {
                    Outcome::Passed => None,
                    Outcome::Caught(by) => Some((&models[model].name, by)),
                    Outcome::TooLong => {
                        too_long.push(&models[model].name);
                        None
                    }
                }
            });
            let what = format!("{place} {} {} -> {how}", site.what, site.order);
            let took = began.elapsed();
            match caught {
                Some((model, by)) => println!("{what:58} {model}: {by} ({took:.1?})"),
                None => {
                    missed += 1;
                    println!(
                        "{what:58} NOT CAUGHT by {} models; too long: {too_long:?} ({took:.1?})",
                        by_chance.len()
                    );
                }
            }
        }
    }
    println!(
        "{missed} not caught, {} not reached, {:.0?}",
        gaps.len(),
        started.elapsed()
    );
    assert!(missed == 0 && gaps.is_empty());
}
