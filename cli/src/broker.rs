//! `buslane broker`: routes between topics, as a file says.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use buslane::Bus;
use buslane_broker::{Broker, Buses, Changes, Config, ConfigError, Route};
use serde::Serialize;
use signal_hook::consts::SIGHUP;
use signal_hook::low_level;
use tracing_subscriber::filter::LevelFilter;

use crate::Common;
use crate::broker_bridges::Bridges;
use crate::failure::Failure;
use crate::output::{Output, json_line, stdout};
use crate::signals::Stop;

/// Route, filter and transform messages between topics, as a file says
///
/// Processes go on talking to each other directly; a broker is one more participant, which takes what its routes name and sends what they make
/// of it. Several brokers may run one file: they share the messages of queues, and stand by for routes from topics.
///
/// It is told to read the file again by SIGHUP; what is wrong with it then is said, and changes nothing.
#[derive(clap::Args)]
#[command(after_help = "\
Example, in broker.toml:
  [[route]]
  name = \"large\"
  from = \"orders/*\"
  where = '.pieces >= 100'
  payload = '{id, pieces, seen: now}'
  to = \"large-orders\"
  dead_letter = \"large-dead\"

  buslane broker broker.toml --check          what is wrong with it, with line and column
  buslane broker broker.toml                  runs it until a signal comes
  curl http://127.0.0.1:9909/metrics          what it counts, for Prometheus; /health

docs/broker.md has every key.")]
pub struct Args {
    /// The file
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// Only look whether the file is as it should be
    #[arg(long)]
    check: bool,
}

/// What is printed with --json, when it begins and when it has read its file again.
#[derive(Serialize)]
struct Line<'a> {
    started: &'a [String],
    changed: &'a [String],
    stopped: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
}

/// Runs routes until a signal comes.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let path = &args.config;
    let config = read(path)?;
    if args.check {
        let mut out = stdout(stop)?;
        return writeln!(out, "{}: it is as it should be", path.display())
            .and_then(|()| out.flush())
            .map_err(Failure::stdout);
    }
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_max_level(LevelFilter::INFO)
        .init();
    // Before anything can be sent to it: nobody's SIGHUP ends it.
    let hangups = hangups().map_err(Failure::system("handle signals"))?;
    let bus = common.open(Bus::builder())?;
    let mut buses = Buses::new(&bus);
    let mut broker = Broker::start(Vec::new()).map_err(failed)?;
    let mut served = serve(&mut broker, &config)?;
    let mut out = common.json.then(|| stdout(stop)).transpose()?;
    let routes = routes(&config, path, &mut buses)?;
    let changes = broker.reload(routes).map_err(failed)?;
    let mut bridges = Bridges::default();
    bridges.run(&common.bus, config.bridges())?;
    broker.wait_until_running();
    tell(&mut out, &changes, served.as_ref())?;
    loop {
        if !stop
            .wait_readable(hangups.as_fd())
            .map_err(Failure::system("wait for signals"))?
        {
            drop(bridges);
            broker.stop();
            return stop.check();
        }
        drain(&hangups).map_err(Failure::system("handle signals"))?;
        match reload(&mut broker, path, &mut buses, &mut served) {
            Ok((config, changes)) => {
                if let Err(Failure::Error(why)) = bridges.run(&common.bus, config.bridges()) {
                    tracing::error!("{why}");
                }
                tell(&mut out, &changes, served.as_ref())?;
            }
            Err(Failure::Error(why)) => tracing::error!("{why}; nothing has changed"),
            Err(failure) => return Err(failure),
        }
    }
}

fn read(path: &Path) -> Result<Config, Failure> {
    Config::read(path).map_err(|error| told_at(path, &error))
}

/// As compilers say it, so that editors find the place.
fn told_at(path: &Path, error: &ConfigError) -> Failure {
    let ConfigError {
        line, column, why, ..
    } = error;
    Failure::Error(format!("{}:{line}:{column}: {why}", path.display()))
}

fn failed(error: buslane_broker::Error) -> Failure {
    match error {
        buslane_broker::Error::Bus(error) => error.into(),
        error => Failure::Error(error.to_string()),
    }
}

fn routes(config: &Config, path: &Path, buses: &mut Buses) -> Result<Vec<Route>, Failure> {
    config.routes(buses).map_err(|error| told_at(path, &error))
}

/// Does what the file says now. If it fails, nothing has changed: so the routes come last.
fn reload(
    broker: &mut Broker,
    path: &Path,
    buses: &mut Buses,
    served: &mut Option<Served>,
) -> Result<(Config, Changes), Failure> {
    let config = read(path)?;
    let routes = routes(&config, path, buses)?;
    if config.metrics() == Ok(served.as_ref().map(|served| served.asked)) {
        let changes = broker.reload(routes).map_err(failed)?;
        return Ok((config, changes));
    }
    let before = std::mem::replace(served, serve(broker, &config)?);
    let changes = broker.reload(routes).map_err(|error| {
        let back = match &before {
            Some(before) => broker.serve(before.at).map(|_| ()),
            None => {
                broker.serve_no_more();
                Ok(())
            }
        };
        match back {
            Ok(()) => *served = before,
            Err(why) => tracing::error!("{why}"),
        }
        failed(error)
    })?;
    Ok((config, changes))
}

/// Where metrics are served.
struct Served {
    asked: SocketAddr,
    at: SocketAddr,
}

/// At the usual address if none is said, or, if another broker is there, at any.
fn serve(broker: &mut Broker, config: &Config) -> Result<Option<Served>, Failure> {
    let metrics = config
        .metrics()
        .map_err(|e| Failure::Error(e.to_string()))?;
    let Some(asked) = metrics else {
        broker.serve_no_more();
        return Ok(None);
    };
    let served = match broker.serve(asked) {
        Err(_) if !config.says_metrics() => broker.serve(SocketAddr::new(asked.ip(), 0)),
        served => served,
    };
    let at = served.map_err(failed)?;
    Ok(Some(Served { asked, at }))
}

fn tell(
    out: &mut Option<Output<'_>>,
    changes: &Changes,
    served: Option<&Served>,
) -> Result<(), Failure> {
    let metrics = served.map(|served| format!("http://{}/metrics", served.at));
    let Changes {
        started,
        changed,
        stopped,
        ..
    } = changes;
    let Some(out) = out else {
        let named = |what: &str, names: &[String]| {
            if !names.is_empty() {
                tracing::info!("{what}: {}", names.join(", "));
            }
        };
        named("routes started", started);
        named("routes changed", changed);
        named(
            "routes stopped (what they are subscribed to stays: buslane rm TOPIC --subscription ROUTE)",
            stopped,
        );
        if let Some(metrics) = metrics {
            tracing::info!("metrics at {metrics}");
        }
        return Ok(());
    };
    let line = Line {
        started,
        changed,
        stopped,
        metrics,
    };
    json_line(out, &line)?;
    out.flush().map_err(Failure::stdout)
}

/// Readable when SIGHUP has come.
fn hangups() -> io::Result<UnixStream> {
    let (pipe, written) = UnixStream::pair()?;
    pipe.set_nonblocking(true)?;
    low_level::pipe::register(SIGHUP, written)?;
    Ok(pipe)
}

fn drain(mut pipe: &UnixStream) -> io::Result<()> {
    use std::io::Read;
    let mut some = [0; 64];
    loop {
        match pipe.read(&mut some) {
            Ok(n) if n == some.len() => {}
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
