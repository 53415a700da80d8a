//! buslane beside other ways to carry messages between processes of one host. See `README.md`.

mod goal;
mod page;
mod plot;
mod result;
mod section;
mod transport;

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use buslane_cli::bench::report::Spread;
use buslane_cli::bench::{BUSLANE, PIPE, Plan, Transport, UDS, Wait, What, peer, rounds, weigh};
use buslane_cli::signals::Stop;
use clap::Parser;
use result::{Results, Row, Weighed};
use section::SECTIONS;
use transport::{ICEORYX2, MQUEUE, RINGFIRE, SEQPACKET};

/// Measures, and writes the results as JSON, plots, and a part of a page.
#[derive(Parser)]
struct Args {
    /// How often each transport has its turn
    #[arg(long, default_value_t = 21)]
    rounds: u32,
    /// Two rounds of everything: to see that it runs
    #[arg(long)]
    quick: bool,
    /// Only these sections
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these transports beside buslane
    #[arg(long, value_delimiter = ',')]
    beside: Vec<String>,
    /// Where the results go
    #[arg(long, default_value = "docs/benchmarks")]
    out: PathBuf,
    /// The page whose part between `<!-- peers -->` and `<!-- /peers -->` is made anew
    #[arg(long)]
    page: Option<PathBuf>,
    /// Bytes of a lane, and of what is like one, in place of a section's own: a power of two
    #[arg(long)]
    capacity: Option<usize>,
    /// The CPU of the process with the clock, and those of the others
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    cpus: Vec<usize>,
}

impl Args {
    fn is_beside(&self, name: &str) -> bool {
        self.beside.is_empty()
            || name == BUSLANE.name
            || self.beside.iter().any(|beside| beside == name)
    }
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(peer::NAME) {
        return match peer::run(&transport::ALL) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                failure.tell();
                ExitCode::from(failure.status())
            }
        };
    }
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "buslane-peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let stop = Stop::install().map_err(|failure| format!("{failure:?}"))?;
    let count = if args.quick { 2 } else { args.rounds };
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    if args.cpus.len() < 2 {
        return Err("--cpus takes two or more, such as 0,1".into());
    }
    let mut results = Results {
        machine: machine(),
        command: format!("just peers --rounds {count}"),
        rows: Vec::new(),
        weights: Vec::new(),
    };
    fs::create_dir_all(&args.out)?;
    for section in SECTIONS.iter().filter(|section| wanted(section.name)) {
        eprintln!("{}", section.title);
        let mut all = Vec::new();
        for mut plan in section.plans(count, &args.cpus) {
            plan.transports.retain(|it| args.is_beside(it.name));
            plan.capacity = args.capacity.or(plan.capacity);
            all.extend(rounds(&plan, &stop).map_err(|failure| format!("{failure:?}"))?);
        }
        let rows = result::rows(section, &all);
        plot::draw(
            &args.out.join(format!("{}.svg", section.name)),
            section,
            &rows.iter().collect::<Vec<&Row>>(),
        )?;
        results.rows.extend(rows);
    }
    if wanted("setup") {
        eprintln!("Set-up time and memory");
        for transport in [BUSLANE, ICEORYX2, RINGFIRE, PIPE, UDS, SEQPACKET, MQUEUE] {
            results
                .weights
                .push(weighed(transport, count, args, &stop)?);
        }
    }
    let json = args.out.join("peers.json");
    fs::write(&json, serde_json::to_string(&results)? + "\n")?;
    let page = page::page(&results, "benchmarks");
    match &args.page {
        Some(path) => replace(path, &page)?,
        None => print!("{page}"),
    }
    Ok(())
}

fn weighed(
    transport: Transport,
    count: u32,
    args: &Args,
    stop: &Stop,
) -> Result<Weighed, Box<dyn Error>> {
    let plan = Plan {
        what: What::Rate,
        sizes: vec![64],
        peers: vec![1],
        rounds: 1,
        transports: vec![transport],
        wait: Wait::Adaptive,
        cpus: args.cpus.clone(),
        capacity: None,
    };
    let weights = (0..count.min(11)).map(|_| weigh(&plan, stop));
    let weights: Vec<_> = weights
        .collect::<Result<_, _>>()
        .map_err(|failure| format!("{failure:?}"))?;
    let spread = |of: fn(u64) -> f64, value: &dyn Fn(usize) -> u64| {
        Spread::of((0..weights.len()).map(|i| of(value(i))).collect()).rounded()
    };
    Ok(Weighed {
        transport: transport.name,
        size: 64,
        setup_us: spread(|ns| ns as f64 / 1e3, &|i| weights[i].setup),
        memory_kib: spread(|bytes| bytes as f64 / 1024.0, &|i| weights[i].memory),
    })
}

/// What it ran on, as far as the system says.
fn machine() -> Vec<(String, String)> {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or("unknown".into(), |(_, value)| value.trim().to_owned())
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel
        .split('-')
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        ("processor".into(), field("/proc/cpuinfo", "model name")),
        ("CPUs".into(), cpus.to_string()),
        ("kernel".into(), format!("Linux {kernel}")),
        (
            "compared with".into(),
            "iceoryx2 0.10.0, ringfire 0.5.2".into(),
        ),
    ]
}

/// Puts the part between the marks anew.
fn replace(path: &Path, part: &str) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(path)?;
    let (open, close) = ("<!-- peers -->\n", "<!-- /peers -->");
    let (before, rest) = text
        .split_once(open)
        .ok_or("the page has no <!-- peers -->")?;
    let (_, after) = rest
        .split_once(close)
        .ok_or("the page has no <!-- /peers -->")?;
    fs::write(path, format!("{before}{open}\n{part}{close}{after}"))?;
    Ok(())
}
