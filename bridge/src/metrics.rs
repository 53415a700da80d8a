//! What was carried, and what was not, counted: for Prometheus, and for the summary at the end.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use buslane_metrics::{Http, Page};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Serialize;

use crate::failure::{Failure, tell};

/// Why something was not carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelValue, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    /// An attachment, a parcel, a reply or a token that contradicts itself.
    Garbage,
    /// A key expression that is no topic's name.
    Name,
    /// A topic or state that carries something else here, or is not of that kind.
    Type,
    /// A message that is not of the size that its topic's type has, or is longer than the topic takes.
    Size,
    /// A message that has been on this bus before.
    Loop,
    /// More than there is room for, on a topic that is not read fast enough.
    Flood,
    /// A topic, state or service beyond the number of those that the network may make.
    Topics,
    /// A state that has all its keys.
    Full,
    /// A request beyond those that may be under way.
    Busy,
    /// A parcel from a bridge that is not known (yet).
    Stranger,
    /// A parcel that the other bridge can not take now: it is kept, and sent again.
    Held,
    /// What was under way to a bridge that has gone.
    Gone,
    /// A failure of the bus.
    Bus,
    /// A failure of Zenoh.
    Zenoh,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabel {
    topic: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: Refused,
}

type ByTopic = Family<TopicLabel, Counter>;

/// The counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sent: ByTopic,
    sent_bytes: ByTopic,
    received: ByTopic,
    received_bytes: ByTopic,
    lost: ByTopic,
    refused: Family<ReasonLabel, Counter>,
    /// Bridges that are known now.
    pub bridges: Gauge,
    /// Messages that are sent to bridges, and not taken yet.
    pub unacknowledged: Gauge,
    /// Parcels that were sent once more.
    pub resent: Counter,
    /// Messages that were there already when they came once more.
    pub repeated: Counter,
    /// Messages from the network that were not sent back to it.
    pub not_returned: Counter,
    /// Requests of the network that were put to services of the bus.
    pub served: Counter,
    /// Requests of the bus that were put to the network.
    pub asked: Counter,
    /// Messages and bytes, for the summary.
    sent_in_all: [Counter; 2],
    received_in_all: [Counter; 2],
    lost_in_all: Counter,
    told: Mutex<HashSet<Refused>>,
}

/// What was carried of one topic. Counting costs no look-up.
#[derive(Clone, Debug)]
pub struct Carried {
    of_topic: [Counter; 2],
    in_all: [Counter; 2],
}

impl Carried {
    /// So many messages, with so many bytes of payload.
    pub fn add(&self, messages: u64, bytes: u64) {
        for [counted, weighed] in [&self.of_topic, &self.in_all] {
            counted.inc_by(messages);
            weighed.inc_by(bytes);
        }
    }
}

/// The summary at the end.
#[derive(Debug, Serialize)]
pub struct Summary {
    sent: u64,
    sent_bytes: u64,
    received: u64,
    received_bytes: u64,
    lost: u64,
    resent_parcels: u64,
    repeated: u64,
    not_returned: u64,
    requests_served: u64,
    requests_asked: u64,
    refused: BTreeMap<Refused, u64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("buslane_bridge");
        let mut metrics = Self {
            registry: Registry::default(),
            sent: Family::default(),
            sent_bytes: Family::default(),
            received: Family::default(),
            received_bytes: Family::default(),
            lost: Family::default(),
            refused: Family::default(),
            bridges: Gauge::default(),
            unacknowledged: Gauge::default(),
            resent: Counter::default(),
            repeated: Counter::default(),
            not_returned: Counter::default(),
            served: Counter::default(),
            asked: Counter::default(),
            sent_in_all: Default::default(),
            received_in_all: Default::default(),
            lost_in_all: Counter::default(),
            told: Mutex::default(),
        };
        for (name, help, family) in [
            (
                "sent_messages",
                "Messages and values sent to the network, once for each bridge",
                &metrics.sent,
            ),
            (
                "sent_bytes",
                "Bytes of payload in them",
                &metrics.sent_bytes,
            ),
            (
                "received_messages",
                "Messages and values from the network, put on the bus",
                &metrics.received,
            ),
            (
                "received_bytes",
                "Bytes of payload in them",
                &metrics.received_bytes,
            ),
            (
                "lost_messages",
                "Messages of the bus that were overwritten, or kept no more, before they were sent",
                &metrics.lost,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        registry.register(
            "refused",
            "What was not carried, by reason",
            metrics.refused.clone(),
        );
        for (name, help, counter) in [
            ("resent_parcels", "Parcels sent once more", &metrics.resent),
            (
                "repeated_messages",
                "Messages that came once more, and were there already",
                &metrics.repeated,
            ),
            (
                "not_returned_messages",
                "Messages from the network that were not sent back to it",
                &metrics.not_returned,
            ),
            (
                "requests_served",
                "Requests of the network, put to services of the bus",
                &metrics.served,
            ),
            (
                "requests_asked",
                "Requests of the bus, put to the network",
                &metrics.asked,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "bridges",
            "Bridges that are known now",
            metrics.bridges.clone(),
        );
        registry.register(
            "unacknowledged_messages",
            "Messages sent to bridges, and not taken yet",
            metrics.unacknowledged.clone(),
        );
        metrics.registry = registry;
        metrics
    }
}

impl Metrics {
    /// What is sent of a topic.
    pub fn sent(&self, topic: &str) -> Carried {
        carried([&self.sent, &self.sent_bytes], &self.sent_in_all, topic)
    }

    /// What is received of a topic.
    pub fn received(&self, topic: &str) -> Carried {
        carried(
            [&self.received, &self.received_bytes],
            &self.received_in_all,
            topic,
        )
    }

    /// Messages that this bridge came too late for.
    pub fn lost(&self, topic: &str, messages: u64) {
        self.lost.get_or_create(&label(topic)).inc_by(messages);
        self.lost_in_all.inc_by(messages);
    }

    /// Something was not carried. The first of each kind is told.
    pub fn refused(&self, why: Refused, what: impl fmt::Display) {
        self.refused_many(why, 1, what);
    }

    /// One was not carried, as may well be.
    pub fn count(&self, why: Refused) {
        self.refused
            .get_or_create(&ReasonLabel { reason: why })
            .inc();
    }

    /// So many were not carried.
    pub fn refused_many(&self, why: Refused, count: u64, what: impl fmt::Display) {
        if count == 0 {
            return;
        }
        self.refused
            .get_or_create(&ReasonLabel { reason: why })
            .inc_by(count);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(why) {
            tell(&format!(
                "{what} (the next ones of this kind are only counted)"
            ));
        }
    }

    /// All so far.
    pub fn summary(&self) -> Summary {
        let refused = REASONS.map(|reason| {
            let count = self.refused.get(&ReasonLabel { reason });
            (reason, count.map_or(0, |count| count.get()))
        });
        let [sent, sent_bytes] = self.sent_in_all.each_ref().map(Counter::get);
        let [received, received_bytes] = self.received_in_all.each_ref().map(Counter::get);
        Summary {
            sent,
            sent_bytes,
            received,
            received_bytes,
            lost: self.lost_in_all.get(),
            resent_parcels: self.resent.get(),
            repeated: self.repeated.get(),
            not_returned: self.not_returned.get(),
            requests_served: self.served.get(),
            requests_asked: self.asked.get(),
            refused: refused
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }

    /// Serves them over HTTP, until what it returns is dropped.
    pub fn serve(self: &Arc<Self>, address: SocketAddr) -> Result<Http, Failure> {
        let metrics = Arc::clone(self);
        let pages = move |path: &str| match path {
            "/metrics" => {
                let mut text = String::new();
                // Writing to a string does not fail.
                let _ = encode(&mut text, &metrics.registry);
                Page::metrics(text)
            }
            _ => Page::missing("There is /metrics.\n"),
        };
        Http::serve(address, pages).map_err(|e| {
            Failure::Error(format!(
                "cannot serve metrics at {address}: {e}; give another --metrics ADDRESS"
            ))
        })
    }
}

const REASONS: [Refused; 14] = [
    Refused::Garbage,
    Refused::Name,
    Refused::Type,
    Refused::Size,
    Refused::Loop,
    Refused::Flood,
    Refused::Topics,
    Refused::Full,
    Refused::Busy,
    Refused::Stranger,
    Refused::Held,
    Refused::Gone,
    Refused::Bus,
    Refused::Zenoh,
];

fn label(topic: &str) -> TopicLabel {
    TopicLabel {
        topic: topic.to_owned(),
    }
}

fn carried(families: [&ByTopic; 2], in_all: &[Counter; 2], topic: &str) -> Carried {
    Carried {
        of_topic: families.map(|family| family.get_or_create(&label(topic)).clone()),
        in_all: in_all.clone(),
    }
}
