//! What is counted, and what a look at the buses adds when somebody asks.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use buslane::Bus;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::control::Control;
use crate::gates::Stopped;

/// Which route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    route: String,
}

/// Which route, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    route: String,
    reason: &'static str,
}

/// All that a broker counts.
pub struct Metrics {
    registry: Registry,
    received: Family<ByRoute, Counter>,
    sent: Family<ByRoute, Counter>,
    bytes: Family<ByRoute, Counter>,
    repeated: Family<ByRoute, Counter>,
    lost: Family<ByRoute, Counter>,
    dropped: Family<ByReason, Counter>,
    dead: Family<ByRoute, Counter>,
    troubles: Family<ByRoute, Counter>,
    stalls: Family<ByRoute, Counter>,
    state: Family<ByReason, Gauge>,
    buses: Arc<Mutex<Vec<Bus>>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// How a route is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Another broker runs it.
    StandingBy,
    /// It takes messages.
    Running,
    /// It waits for room in what it sends to.
    Stalled,
    /// A bus says an error.
    Failing,
}

impl State {
    const ALL: [(Self, &'static str); 4] = [
        (Self::StandingBy, "standing by"),
        (Self::Running, "running"),
        (Self::Stalled, "stalled"),
        (Self::Failing, "failing"),
    ];

    pub fn name(self) -> &'static str {
        let named = Self::ALL.iter().find(|(state, _)| *state == self);
        named.map_or("", |(_, name)| name)
    }
}

/// What one route counts.
#[derive(Debug)]
pub struct Counters {
    pub received: Counter,
    pub sent: Counter,
    pub bytes: Counter,
    /// Not sent again, after a death.
    pub repeated: Counter,
    pub lost: Counter,
    pub filtered: Counter,
    pub duplicates: Counter,
    pub sampled: Counter,
    pub rate_limited: Counter,
    pub failed: Counter,
    pub untapped: Counter,
    pub dead: Counter,
    pub troubles: Counter,
    pub stalls: Counter,
    states: Vec<(State, Gauge)>,
    control: Arc<Control>,
}

impl Counters {
    pub fn stopped(&self, why: Stopped) -> &Counter {
        match why {
            Stopped::Duplicate => &self.duplicates,
            Stopped::Sampled => &self.sampled,
            Stopped::RateLimited => &self.rate_limited,
        }
    }

    pub fn set_state(&self, now: State) {
        self.control.set_state(now);
        for (state, gauge) in &self.states {
            gauge.set(i64::from(*state == now));
        }
    }
}

impl Metrics {
    pub fn new() -> Self {
        let buses = Arc::new(Mutex::new(Vec::new()));
        let mut all = Self {
            registry: Registry::with_prefix("buslane"),
            received: Family::default(),
            sent: Family::default(),
            bytes: Family::default(),
            repeated: Family::default(),
            lost: Family::default(),
            dropped: Family::default(),
            dead: Family::default(),
            troubles: Family::default(),
            stalls: Family::default(),
            state: Family::default(),
            buses: Arc::clone(&buses),
        };
        let mut add = |name: &str, help: &str, family: &Family<ByRoute, Counter>| {
            all.registry.register(name, help, family.clone());
        };
        add(
            "route_received",
            "Messages taken from topics and queues",
            &all.received,
        );
        add(
            "route_sent",
            "Messages sent, for each topic that they were sent to",
            &all.sent,
        );
        add(
            "route_not_repeated",
            "Messages not sent again, because they had been sent before a broker ended",
            &all.repeated,
        );
        add(
            "route_lost",
            "Messages overwritten before they were taken",
            &all.lost,
        );
        add(
            "route_dead_letters",
            "Messages that could not be passed on, kept with the reason",
            &all.dead,
        );
        add("route_errors", "Errors that a bus said", &all.troubles);
        add(
            "route_stalls",
            "Times that what a route sends to had no room",
            &all.stalls,
        );
        all.registry.register_with_unit(
            "route_sent",
            "Payload of messages sent",
            Unit::Bytes,
            all.bytes.clone(),
        );
        all.registry.register(
            "route_dropped",
            "Messages not passed on, by why",
            all.dropped.clone(),
        );
        all.registry.register(
            "route_state",
            "1 for the state that a route is in",
            all.state.clone(),
        );
        all.registry.register_collector(Box::new(Topics(buses)));
        all
    }

    /// What is counted of a route.
    pub fn counters(&self, route: &str, control: Arc<Control>) -> Counters {
        let by = ByRoute {
            route: route.to_owned(),
        };
        let get = |family: &Family<ByRoute, Counter>| family.get_or_create_owned(&by);
        let reason = |reason| ByReason {
            route: route.to_owned(),
            reason,
        };
        let dropped = |why| self.dropped.get_or_create_owned(&reason(why));
        let states = State::ALL.iter();
        Counters {
            received: get(&self.received),
            sent: get(&self.sent),
            bytes: get(&self.bytes),
            repeated: get(&self.repeated),
            lost: get(&self.lost),
            filtered: dropped("filtered"),
            duplicates: dropped("duplicate"),
            sampled: dropped("sampled"),
            rate_limited: dropped("rate limited"),
            failed: dropped("failed"),
            untapped: dropped("not tapped"),
            dead: get(&self.dead),
            troubles: get(&self.troubles),
            stalls: get(&self.stalls),
            control,
            states: states
                .map(|&(state, name)| (state, self.state.get_or_create_owned(&reason(name))))
                .collect(),
        }
    }

    /// A route is gone.
    pub fn forget_state(&self, route: &str) {
        for (_, reason) in State::ALL {
            self.state.remove(&ByReason {
                route: route.to_owned(),
                reason,
            });
        }
    }

    /// Which buses are looked at.
    pub fn watch(&self, buses: Vec<Bus>) {
        *self.buses.lock().unwrap_or_else(PoisonError::into_inner) = buses;
    }

    /// As Prometheus reads it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        match text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(fmt::Error) => String::new(),
        }
    }
}

/// The topics of some buses, as they are when somebody asks.
#[derive(Debug)]
struct Topics(Arc<Mutex<Vec<Bus>>>);

impl Collector for Topics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let buses = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut rows = Vec::new();
        for bus in buses {
            let path = bus.path().display().to_string();
            // One that is removed meanwhile, or is damaged, has nothing to say.
            for topic in bus.topics().unwrap_or_default() {
                if let Ok(report) = bus.inspect(&topic) {
                    rows.push(([("bus", path.clone()), ("topic", topic)], report));
                }
            }
        }
        type Count = fn(&buslane::TopicReport) -> u64;
        let counts: [(&str, &str, Count); 3] = [
            (
                "topic_messages",
                "Messages sent through the lanes that there are",
                |r| r.messages(),
            ),
            (
                "topic_payload_bytes",
                "Payload sent through the lanes that there are",
                |r| r.bytes(),
            ),
            (
                "topic_lost",
                "Messages that the subscribers that there are have lost",
                |r| r.lost(),
            ),
        ];
        for (name, help, count) in counts {
            let one = ConstCounter::new(0_u64);
            let mut metric = encoder.encode_descriptor(name, help, None, one.metric_type())?;
            for (labels, report) in &rows {
                ConstCounter::new(count(report)).encode(metric.encode_family(labels)?)?;
            }
        }
        let gauges: [(&str, &str, Count); 5] = [
            ("topic_publishers", "Publishers that live", |r| {
                r.publishers() as u64
            }),
            ("topic_subscribers", "Subscribers that live", |r| {
                r.subscribers() as u64
            }),
            (
                "topic_lag",
                "Messages that the slowest subscriber has not released",
                |r| r.lag(),
            ),
            ("topic_sleepers", "Readers that sleep", |r| {
                r.sleepers() as u64
            }),
            (
                "topic_unacked",
                "Messages that the groups of a queue have not acknowledged",
                |r| r.unacked(),
            ),
        ];
        for (name, help, gauge) in gauges {
            let one = ConstGauge::new(0_u64);
            let mut metric = encoder.encode_descriptor(name, help, None, one.metric_type())?;
            for (labels, report) in &rows {
                ConstGauge::new(gauge(report)).encode(metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}
