//! Whether `buslane record` keeps up: this process sends messages of 1 KiB, paced or as fast as it can, to a recorder of its own, and says
//! how much of it came into the file, and how much the recorder said it lost.
//!
//! `cargo bench -p buslane-cli --bench record [-- DIRECTORY…]`: each round records into each directory (by default one in /dev/shm and
//! one in the system's for temporary files), in turns. `BUSLANE_ROUNDS` and `BUSLANE_SECONDS` say how many, and how long each takes.
#![allow(missing_docs)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use buslane::{Bus, Topic};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LEN: usize = 1024;
const DIFFERENT: usize = 8192;
const PATIENCE: Duration = Duration::from_secs(120);

/// How the messages come, and how they are recorded.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    /// Bytes a second; `None`: as fast as they can be sent.
    rate: Option<f64>,
    capacity: usize,
    options: &'static [&'static str],
}

const CASES: [Case; 8] = [
    Case {
        name: "500 MB/s",
        rate: Some(500e6),
        capacity: buslane::DEFAULT_CAPACITY,
        options: &[],
    },
    Case {
        name: "500 MB/s, lanes of 64 MiB",
        rate: Some(500e6),
        capacity: 64 << 20,
        options: &[],
    },
    Case {
        name: "500 MB/s, lz4",
        rate: Some(500e6),
        capacity: 64 << 20,
        options: &["--compression", "lz4"],
    },
    Case {
        name: "500 MB/s, zstd",
        rate: Some(500e6),
        capacity: 64 << 20,
        options: &["--compression", "zstd"],
    },
    Case {
        name: "all it can, lanes of 64 MiB",
        rate: None,
        capacity: 64 << 20,
        options: &[],
    },
    Case {
        name: "all it can, --wait",
        rate: None,
        capacity: buslane::DEFAULT_CAPACITY,
        options: &["--wait"],
    },
    Case {
        name: "all it can, --wait, lz4",
        rate: None,
        capacity: buslane::DEFAULT_CAPACITY,
        options: &["--wait", "--compression", "lz4"],
    },
    Case {
        name: "all it can, --wait, zstd",
        rate: None,
        capacity: buslane::DEFAULT_CAPACITY,
        options: &["--wait", "--compression", "zstd"],
    },
];

/// What came of one round.
struct Outcome {
    /// Until the recorder had all, or had said what it lost.
    mb_s: f64,
    lost_percent: f64,
    /// From then on until all was in the file.
    rest_s: f64,
    /// Its size for each byte of payload.
    size: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let number = |name: &str, default: u64| -> Result<u64, Box<dyn Error>> {
        Ok(env::var(name).map_or(Ok(default), |text| text.parse())?)
    };
    let (rounds, seconds) = (number("BUSLANE_ROUNDS", 3)?, number("BUSLANE_SECONDS", 4)?);
    let mut places: Vec<PathBuf> = env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .map(PathBuf::from)
        .collect();
    if places.is_empty() {
        places = vec!["/dev/shm".into(), env::temp_dir()];
    }
    println!("| messages of 1 KiB | into | MB/s | lost, % | then, s | bytes a byte |");
    println!("|---|---|---|---|---|---|");
    let payloads = payloads();
    let mut outcomes: Vec<Vec<Outcome>> = Vec::new();
    outcomes.resize_with(places.len() * CASES.len(), Vec::new);
    for _ in 0..rounds {
        for (i, case) in CASES.iter().enumerate() {
            for (j, place) in places.iter().enumerate() {
                let outcome = round(case, place, &payloads, Duration::from_secs(seconds))?;
                outcomes[i * places.len() + j].push(outcome);
            }
        }
    }
    for (i, case) in CASES.iter().enumerate() {
        for (j, place) in places.iter().enumerate() {
            let all = &outcomes[i * places.len() + j];
            let shown = |value: fn(&Outcome) -> f64, digits: usize| {
                let mut values: Vec<f64> = all.iter().map(value).collect();
                values.sort_by(f64::total_cmp);
                let (median, least, most) = (
                    values[values.len() / 2],
                    values[0],
                    values[values.len() - 1],
                );
                format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
            };
            println!(
                "| {} | {} | {} | {} | {} | {} |",
                case.name,
                place.display(),
                shown(|outcome| outcome.mb_s, 0),
                shown(|outcome| outcome.lost_percent, 2),
                shown(|outcome| outcome.rest_s, 1),
                shown(|outcome| outcome.size, 2),
            );
        }
    }
    Ok(())
}

fn round(
    case: &Case,
    place: &Path,
    payloads: &[Vec<u8>],
    time: Duration,
) -> Result<Outcome, Box<dyn Error>> {
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let place = tempfile::tempdir_in(place)?;
    let file = place.path().join("bench.mcap");
    let bus = Bus::at(memory.path().join("bus"))?;
    let builder = bus.topic_builder("bench").capacity(case.capacity);
    let topic = builder.open()?;
    let recorder = Command::new(env!("CARGO_BIN_EXE_buslane"))
        .arg("--bus")
        .arg(bus.path())
        .args(["record", "bench", "--json", "-o"])
        .arg(&file)
        .args(case.options)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = Pid::from_raw(recorder.id().cast_signed());
    let begun = Instant::now();
    let sent = send(&topic, payloads, case.rate, time);
    let seconds = begun.elapsed().as_secs_f64();
    kill(pid, Signal::SIGINT)?;
    let output = recorder.wait_with_output()?;
    let rest_s = begun.elapsed().as_secs_f64() - seconds;
    let sent = sent?;
    let summary: Value = serde_json::from_slice(&output.stdout)?;
    let of = |key: &str| summary[key].as_u64().unwrap_or(0);
    assert_eq!(of("messages") + of("lost"), sent, "{summary}");
    Ok(Outcome {
        mb_s: (sent * LEN as u64) as f64 / 1e6 / seconds,
        lost_percent: 100.0 * of("lost") as f64 / sent as f64,
        rest_s,
        size: fs::metadata(&file)?.len() as f64 / of("bytes") as f64,
    })
}

/// Sends for so long, and until all is received, or told as lost; how many messages.
fn send(
    topic: &Topic,
    payloads: &[Vec<u8>],
    rate: Option<f64>,
    time: Duration,
) -> Result<u64, Box<dyn Error>> {
    let mut publisher = topic.publisher()?;
    publisher.wait_for_subscribers(1, Some(PATIENCE))?;
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < time {
        for _ in 0..16 {
            publisher.send(&payloads[sent as usize % DIFFERENT])?;
            sent += 1;
        }
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(sent as f64 * LEN as f64 / rate);
            if let Some(early) = due.checked_sub(begun.elapsed()) {
                thread::sleep(early);
            }
        }
    }
    publisher.wait_delivered(Some(PATIENCE))?;
    Ok(sent)
}

/// Lines of measured values, as they may be sent; no two in a chunk are the same.
fn payloads() -> Vec<Vec<u8>> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut value = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % 100_000
    };
    let mut payload = || {
        let mut line = String::from("{");
        while line.len() < LEN {
            let (sensor, value) = (value() % 1000, value());
            line.push_str(&format!("\"sensor-{sensor:03}\":{value:05},"));
        }
        line.truncate(LEN);
        line.into_bytes()
    };
    (0..DIFFERENT).map(|_| payload()).collect()
}
