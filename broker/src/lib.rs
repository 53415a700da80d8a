//! Routes messages between the topics and queues of buslane buses: by name, kind, type, sender or content, filtered, split,
//! transformed, delayed, recorded as dead letters.
//!
//! A broker is a participant like any other: what it takes it receives as a subscriber or a consumer, what it sends it publishes. No message
//! between two processes passes it unless a [`Route`] says so. `docs/broker.md` says what it promises.
//!
//! Routes are made [here](Route), with closures, or read from a [configuration](Config), with expressions of the jq language.
//!
//! # How it works
//!
//! Each route has a thread (`worker`), which takes from its sources (`source`), runs its program, lets through what its gates let through (`gates`),
//! and sends (`outlets`): `engine` is the life of a message. What it sends says what it was made from; after a death that is looked up (`passed`), so that
//! nothing is missing and nothing comes twice.

mod broker;
mod config;
mod control;
mod engine;
mod error;
mod expression;
mod format;
mod gates;
mod metrics;
mod outlets;
mod passed;
mod route;
mod source;
mod worker;

pub use self::{
    broker::{Broker, Changes},
    config::{Buses, Config, ConfigError},
    error::{Error, Result},
    route::{Draft, Incoming, Outgoing, Program, Route},
};
