//! Weakens every ordering of the library, one at a time, and wants a model to fail for each: an ordering that no model
//! needs is either a model that is missing, or an ordering too much. Those that no model can come by are listed below, with what
//! makes them right: one that is new is noticed.
//!
//! `BUSLANE_ONLY=roster.rs:4` weakens only the places whose name contains that. `BUSLANE_DROP=1` drops each store and each fence
//! instead, and reports what no model misses; [`IDLE`] says why not.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Orderings that no model comes by: file, code, and why they are right, and what sees that they are.
const OUTSIDE: &[(&str, &str, &str)] = &[
    (
        "src/shm/sync.rs",
        "",
        "the fences themselves; loom's, below them, stand for these in every model",
    ),
    (
        "src/shm/heap.rs",
        "",
        "loom's kernel, which stands for the true one",
    ),
    (
        "src/shm/fork.rs",
        "this.fd.load(Ordering::Acquire)",
        "in a child, alone, of what its parent's threads stored before they were cut off: what `Region::note` released is whole. \
         loom has no fork; tests/*.rs fork for each kind of handle",
    ),
    (
        "src/shm/fork.rs",
        "node.fd.store(kind, Ordering::Release)",
        "the same: start and len before the kind that says that they are there",
    ),
    (
        "src/shm/log.rs",
        "load(Ordering::Acquire)",
        "with the `Release` in `lay`: who sees a file's number in its place sees it mapped. In one process; the change of a mapping is \
         a system call, after which no thread sees the old one. tests/durable.rs",
    ),
    (
        "src/shm/log.rs",
        "place.store(number + 1, Ordering::Release)",
        "the same",
    ),
    (
        "src/shm/haul.rs",
        "fence(Ordering::SeqCst)",
        "orders nothing that anybody reads: it has a copy end before the clock is read",
    ),
    (
        "src/shm/bytes.rs",
        "_mm_sfence()",
        "stores past the caches, which no ordering of the language knows: behind the raised floor, before the frame's word. \
         src/shm/haul.rs has a reader beside copies of both ways",
    ),
    (
        "src/waitset.rs",
        "heavy_fence()",
        "between arming all and the last look, as in the model `waiting::two_topics`",
    ),
    (
        "src/reactor.rs",
        "heavy_fence()",
        "the same, as in `waiting::a_task_sleeps`",
    ),
    (
        "src/request/post.rs",
        "heavy_fence()",
        "the same: replies, the roster of the service, and ends are armed before it, and looked for after it",
    ),
    (
        "src/request/pending.rs",
        "heavy_fence()",
        "the same, for the threads that share a client",
    ),
];

/// Stores that may be dropped, and no model fails: code near them, and why.
const IDLE: &[(&str, &str)] = &[
    (
        "head.lane.store(lane",
        "the models' slots say so from the beginning: the worst that they could say. tests/queue.rs",
    ),
    ("word.store(sum", "how much was missed, for people"),
    ("owner.store(member", "whose it is, for people"),
    ("store(origin", "as it is in a new file: 0"),
    ("parked.store(0", "who is not parked is rung for"),
    ("want.store(NOBODY", "who does not sleep is woken"),
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
    ("fence in `roster::join`: either", "join_each_other"),
    ("bell.fetch_add", "sleep_for_a_joiner"),
    ("used.store", "join_from_start"),
    ("those slots are allocated", "join_from_start"),
    (
        "`is_hole`: who sees it sees the words",
        "files::a_frame_is_no_hole",
    ),
    ("see its `want`", "both_sleep"),
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

/// What comes of each job, in any order.
fn on_all_cores<T: Sync, R: Send>(jobs: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let some = || {
        let jobs = std::iter::from_fn(|| jobs.get(next.fetch_add(1, Ordering::Relaxed)));
        jobs.map(&work).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(some)).collect();
        let done = workers.into_iter().map(|worker| worker.join().unwrap());
        done.flatten().collect()
    })
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
    let names: Vec<_> = names.enumerate().collect();
    let mut models = on_all_cores(&names, |&(i, name)| {
        let file = format!("buslane-sites-{}-{i}", std::process::id());
        let path: PathBuf = std::env::temp_dir().join(file);
        let started = Instant::now();
        let outcome = run(name, "1", &[("BUSLANE_SITES", path.to_str().unwrap())]);
        assert!(
            matches!(outcome, Outcome::Passed),
            "{name} fails with nothing weakened"
        );
        let sites = std::fs::read_to_string(&path).unwrap_or_default();
        let _ = std::fs::remove_file(&path);
        let (name, time) = (name.to_owned(), started.elapsed());
        (Model { name, time }, sites)
    });
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

/// The library's files.
fn sources() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut dirs, mut files) = (vec![root.join("src")], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap();
                files.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

/// Orderings in the source that no model comes by, and that are not listed, and what is listed and is not there.
fn gaps(sites: &BTreeMap<String, Site>) -> Vec<String> {
    let mut gaps = Vec::new();
    let mut met = vec![false; OUTSIDE.len()];
    for file in sources() {
        let text =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&file)).unwrap();
        for (i, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            let orders = [
                "Ordering::Acquire",
                "Ordering::Release",
                "Ordering::AcqRel",
                "Ordering::SeqCst",
                "light_fence(",
                "heavy_fence(",
                "swap_fence(",
                "sfence(",
            ];
            if !orders.iter().any(|order| code.contains(order)) {
                continue;
            }
            // An operation may begin a few lines before its ordering.
            let reached = |(place, site): (&String, &Site)| {
                let (at, line) = file_and_line(place);
                at == file && site.order != "Relaxed" && (line..=line + 3).contains(&(i + 1))
            };
            if sites.iter().any(reached) {
                continue;
            }
            let listed = |(of, what, _): &(&str, &str, &str)| *of == file && code.contains(what);
            match OUTSIDE.iter().position(listed) {
                Some(entry) => met[entry] = true,
                None => gaps.push(format!(
                    "no model comes by {file}:{}: {}",
                    i + 1,
                    code.trim()
                )),
            }
        }
    }
    for ((file, what, _), _) in OUTSIDE.iter().zip(met).filter(|(_, met)| !met) {
        gaps.push(format!("{file} has no {what} that no model comes by"));
    }
    gaps
}

/// The ways to weaken an ordering, or to do without a store or a fence.
fn ways(site: &Site, drops: bool) -> &'static [&'static str] {
    match (&*site.what, &*site.order) {
        ("load" | "swap", _) if drops => &[],
        _ if drops => &["none"],
        (_, "Relaxed") => &[],
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

/// Weakens a place, and says what came of it.
fn is_caught(models: &[Model], place: &str, site: &Site, how: &str) -> bool {
    let first = said_of(place, LIKELY);
    let mut by_chance = site.models.clone();
    by_chance.sort_by_key(|&model| first != Some(&models[model].name));
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
        None => println!(
            "{what:58} NOT CAUGHT by {} models; too long: {too_long:?} ({took:.1?})",
            by_chance.len()
        ),
    }
    caught.is_some()
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
    let drops = std::env::var_os("BUSLANE_DROP").is_some();
    let kept = if drops { IDLE } else { KEPT };
    let gaps = gaps(&sites);
    gaps.iter().for_each(|gap| println!("{gap}"));
    let mut kept_all = 0;
    let mut jobs = Vec::new();
    for (place, site) in sites.iter().filter(|(place, _)| place.contains(&only)) {
        let is_ours = place.starts_with("src/") && !place.starts_with("src/shm/heap.rs");
        if ways(site, drops).is_empty() || (drops && !is_ours) {
            continue;
        }
        if let Some(why) = said_of(place, kept) {
            println!("{place} is kept: {why}");
            kept_all += 1;
            continue;
        }
        jobs.extend(ways(site, drops).iter().map(|how| (place, site, *how)));
    }
    let caught = on_all_cores(&jobs, |(place, site, how)| {
        is_caught(&models, place, site, how)
    });
    let missed = caught.iter().filter(|caught| !**caught).count();
    let caught_all = jobs.len() - missed;
    println!(
        "{caught_all} caught, {missed} not caught, {kept_all} kept, {} not accounted for, {:.0?}",
        gaps.len(),
        started.elapsed()
    );
    assert!(missed == 0 && gaps.is_empty());
}
