//! Another process of a benchmark: it joins what it is told of, then does one job after the other. Between them it
//! sleeps.

use super::link::{Job, Kind};
use super::setup::{Links, Setup, Side};
use crate::failure::Failure;
use crate::private::Director;

/// How it is started; no command for people.
pub const NAME: &str = "__bench-peer";

/// What it says when a job may begin.
pub const READY: &str = "ready";

/// What it is told when a job in which it begins does.
pub const GO: &str = "go";

/// Does jobs until there are no more.
pub fn run() -> Result<(), Failure> {
    let director = Director::attach()?;
    let Some((number, setup)) = director.next::<(usize, Setup)>()? else {
        return Ok(());
    };
    setup.pin(Side::Peer(number))?;
    let mut links = Links::join(&setup, number)?;
    director.answer(&READY)?;
    while let Some(job) = director.next::<Job>()? {
        let link = links.get(job.transport);
        director.answer(&READY)?;
        let checksum = match job.kind {
            Kind::RoundTrips => link.pong(&job),
            Kind::OneWay => link.drain(&job),
            Kind::FanIn => director
                .next::<String>()
                .and_then(|_| link.flood(&job))
                .map(|()| 0), // nothing came
        }?;
        director.answer(&checksum)?;
    }
    Ok(())
}
