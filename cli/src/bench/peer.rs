//! Another process of a benchmark: it joins what it is told of, then does one job after the other. Between them it
//! sleeps.

use super::Transport;
use super::link::{Done, Job, Kind, cpu_time, memory};
use super::setup::{Links, Setup, Side};
use crate::failure::Failure;
use crate::private::Director;

/// How it is started; no command for people.
pub const NAME: &str = "__bench-peer";

/// What it says when a job may begin.
pub const READY: &str = "ready";

/// What it is told when a job in which it begins does.
pub const GO: &str = "go";

/// Does jobs until there are no more, with some of these transports.
pub fn run(known: &[Transport]) -> Result<(), Failure> {
    let director = Director::attach()?;
    let Some((number, setup)) = director.next::<(usize, Setup)>()? else {
        return Ok(());
    };
    setup.pin(Side::Peer(number))?;
    let transports: Vec<_> = setup
        .transports
        .iter()
        .filter_map(|name| known.iter().find(|transport| transport.name == name))
        .copied()
        .collect();
    let mut links = Links::join(&setup, &transports, number)?;
    director.answer(&links.took)?;
    while let Some(job) = director.next::<Job>()? {
        let link = links.get(job.transport);
        let before = cpu_time()?;
        director.answer(&READY)?;
        let checksum = match job.kind {
            Kind::RoundTrips | Kind::Requests => link.pong(&job),
            Kind::OneWay | Kind::Paced => link.drain(&job),
            Kind::FanIn => director
                .next::<String>()
                .and_then(|_| link.flood(&job))
                .map(|()| 0), // nothing came
            Kind::Weigh => memory(),
        }?;
        let cpu = cpu_time()? - before;
        director.answer(&Done { checksum, cpu })?;
    }
    Ok(())
}
