//! What the program is told.

use std::net::SocketAddr;
use std::path::PathBuf;

use buslane::{Bus, Cut};
use clap::{Parser, ValueEnum};
use zenoh::Config;

use crate::failure::{Failure, tell};

/// Carry topics, states, requests and replies to and from a Zenoh network
///
/// Topics and states whose names match a PATTERN are carried both ways: those of this bus to the network, and those of the
/// network, from other bridges and from any Zenoh program, to this bus. A topic NAME is the key expression PREFIX/NAME there.
/// Bridges find each other, and any number of hosts, as Zenoh programs do: by multicast on a local network, or by --connect.
#[derive(Parser, Debug)]
#[command(
    name = "buslane bridge zenoh",
    bin_name = "buslane bridge zenoh",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "\
Examples:
  buslane bridge zenoh '**'                        on each of several hosts of one network
  buslane bridge zenoh 'orders/**' --connect tcp/10.0.0.1:7447
  buslane bridge zenoh --out 'sensors/*' --in 'commands/*'
  buslane bridge zenoh '**' --serve prices         here a service answers; on another host:
  buslane bridge zenoh '**' --ask prices           and there: echo pears | buslane call prices

Exit status: 1 an error; 2 wrong usage; 128+N ended by signal N."
)]
pub struct Args {
    /// Topics and states to carry both ways: `orders/*`, or `**` for all
    #[arg(value_name = "PATTERN", required_unless_present_any = ["outgoing", "incoming", "serve", "ask"])]
    pub patterns: Vec<String>,
    /// The bus: a name, or the path of its directory if it contains a `/`; BUSLANE_BUS says it, too
    #[arg(
        long,
        env = "BUSLANE_BUS",
        hide_env = true,
        default_value = "default",
        value_name = "NAME|PATH"
    )]
    pub bus: String,
    /// Print, at the end, what was carried, as one JSON object
    #[arg(long, overrides_with = "json")]
    pub json: bool,
    /// Make the bus durable, if it is made now; --bus must be a PATH on a disk
    #[arg(long, overrides_with = "durable")]
    pub durable: bool,
    /// Carry these to the network alone
    #[arg(long = "out", value_name = "PATTERN")]
    pub outgoing: Vec<String>,
    /// Carry these from the network alone
    #[arg(long = "in", value_name = "PATTERN")]
    pub incoming: Vec<String>,
    /// Let the network ask these services of this bus
    #[arg(long, value_name = "PATTERN")]
    pub serve: Vec<String>,
    /// Answer requests to these services by asking the network: those that other bridges serve, and, by its whole name, any
    /// Zenoh queryable
    #[arg(long, value_name = "PATTERN")]
    pub ask: Vec<String>,
    /// What key expressions begin with; bridges of one prefix belong together
    #[arg(long, default_value = "buslane")]
    pub prefix: String,
    /// Connect to this Zenoh endpoint (tcp/10.0.0.1:7447)
    #[arg(long, value_name = "ENDPOINT")]
    pub connect: Vec<String>,
    /// Listen on this Zenoh endpoint (tcp/0.0.0.0:7447)
    #[arg(long, value_name = "ENDPOINT")]
    pub listen: Vec<String>,
    /// What it is in the Zenoh network; by default a peer, or as --config says
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// Zenoh's own configuration (JSON5); the options above go before it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Serve counters over HTTP at this address, as Prometheus reads them (127.0.0.1:9464)
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
}

/// Zenoh's roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Connects to all others of the network.
    Peer,
    /// Connects to one router or peer.
    Client,
    /// Connects others that do not reach each other.
    Router,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Client => "client",
            Self::Router => "router",
        }
    }
}

impl Args {
    /// Opens the bus.
    pub fn open(&self) -> Result<Bus, Failure> {
        let builder = Bus::builder().durable(self.durable);
        let bus = builder.open_name_or_path(&self.bus)?;
        for Cut {
            topic,
            lane,
            at,
            bytes,
            ..
        } in bus.cuts()
        {
            tell(&format!(
                "{topic}: what had not reached the disk when the machine went down was cut off lane {lane} at {at}: {bytes} bytes"
            ));
        }
        Ok(bus)
    }

    /// Zenoh's configuration.
    pub fn config(&self) -> Result<Config, Failure> {
        let mut config = match &self.config {
            Some(file) => Config::from_file(file).map_err(Failure::zenoh(&format!(
                "read the Zenoh configuration {}",
                file.display()
            )))?,
            None => Config::default(),
        };
        let endpoints = |endpoints: &[String]| {
            let listed = serde_json::to_string(endpoints);
            (!endpoints.is_empty()).then(|| listed.unwrap_or_default())
        };
        for (key, value) in [
            ("mode", self.mode.map(|mode| format!("{:?}", mode.name()))),
            ("connect/endpoints", endpoints(&self.connect)),
            ("listen/endpoints", endpoints(&self.listen)),
        ] {
            if let Some(value) = value {
                config.insert_json5(key, &value).map_err(|e| {
                    Failure::Usage(format!("cannot use {value} as Zenoh's {key}: {e}"))
                })?;
            }
        }
        Ok(config)
    }
}
