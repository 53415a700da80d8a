//! Real bridges between real network namespaces: two and three hosts, plain Zenoh programs beside them, links that are cut, and
//! processes that are killed.

mod common;

use std::collections::{HashMap, HashSet};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use buslane::{Bus, CallOptions, Envelope, ErrorKind, Kind, PayloadType, Subscriber, TraceParent};
use buslane_bridge_zenoh::home::BusId;
use buslane_bridge_zenoh::parcel::{self, Answer, Header};
use common::{LONG, Net, Process, can_have_hosts, until};
use zenoh::qos::CongestionControl;
use zenoh::{Config, Session, Wait};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Sample(u64);

impl buslane::Message for Sample {
    const NAME: &'static str = "test.Sample";
    const VERSION: u32 = 2;
}

/// Waits until the bridge on each of the hosts knows so many others.
fn met(net: &Net, hosts: usize, others: u64) {
    for host in 1..=hosts {
        until("the bridges meet", || {
            net.metric(host, "bridges ") == others
        });
    }
}

/// Waits until a topic has a subscriber, which is the bridge.
fn is_carried(bus: &Bus, topic: &str) {
    let mut publisher = bus.topic(topic).unwrap().publisher().unwrap();
    publisher.wait_for_subscribers(1, Some(LONG)).unwrap();
}

fn numbers(subscriber: &mut Subscriber, count: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    while (numbers.len() as u64) < count {
        match subscriber.recv_timeout(LONG) {
            Ok(Some(frame)) => numbers.push(u64::from_le_bytes(frame[..].try_into().unwrap())),
            Ok(None) => panic!("{} of {count} have come", numbers.len()),
            Err(e) if e.kind() == ErrorKind::Ended => {}
            Err(e) => panic!("{e}"),
        }
    }
    numbers
}

/// Nothing more comes, for as long as a message that is sent after it takes.
fn nothing_more(subscriber: &mut Subscriber, mut probe: impl FnMut()) {
    probe();
    let frame = subscriber.recv_timeout(LONG).unwrap().expect("the probe");
    assert_eq!(&*frame, b"probe");
}

#[test]
fn topics_go_both_ways_with_their_envelopes() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let (a, b) = (net.bus(1), net.bus(2));
    let bridges = [net.bridge(1, &["**"]), net.bridge(2, &["**"])];
    met(&net, 2, 1);
    for (from, to) in [(&a, &b), (&b, &a)] {
        let mut subscriber = to.topic("orders/new").unwrap().subscriber().unwrap();
        let mut publisher = from.topic("orders/new").unwrap().publisher().unwrap();
        // The test's own, and the bridge.
        let others = usize::from(from.inspect("orders/new").unwrap().cursors.len() > 1);
        publisher
            .wait_for_subscribers(1 + others, Some(LONG))
            .unwrap();
        let parent: TraceParent = PARENT.parse().unwrap();
        let envelope = Envelope::new(Kind::Command)
            .of_type("shop.Order")
            .correlated(7)
            .traced(parent)
            .sent_now();
        publisher.send_with(&envelope, b"100 pears").unwrap();
        publisher.send(b"plain").unwrap();
        let frame = subscriber.recv_timeout(LONG).unwrap().unwrap();
        assert_eq!(&*frame, b"100 pears");
        let came = frame.envelope().unwrap();
        assert_eq!(
            (came.kind(), came.type_name(), came.correlation()),
            (Kind::Command, Some("shop.Order"), 7)
        );
        assert_eq!(
            (came.sent(), came.trace_parent()),
            (envelope.sent(), Some(parent))
        );
        assert_eq!(came.hops(), 1);
        assert!(frame.came_by("zenoh/buslane/"));
        drop(frame);
        assert_eq!(&*subscriber.recv_timeout(LONG).unwrap().unwrap(), b"plain");
    }
    for bridge in bridges {
        let summary = bridge.end();
        assert!(summary.contains(r#""sent":2,"#), "{summary}");
    }
}

#[test]
fn typed_and_lossy_topics_are_what_they_were() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let (a, b) = (net.bus(1), net.bus(2));
    let _bridges = [net.bridge(1, &["**"]), net.bridge(2, &["**"])];
    met(&net, 2, 1);
    let mut samples = a.typed::<Sample>("samples").unwrap().publisher().unwrap();
    samples.wait_for_subscribers(1, Some(LONG)).unwrap();
    let mut came = b.typed::<Sample>("samples").unwrap().subscriber().unwrap();
    samples.send_value(&Sample(7)).unwrap();
    assert_eq!(came.recv_timeout(LONG).unwrap().unwrap().0, 7);

    let lossy = a
        .topic_builder("ticks")
        .lossy(true)
        .open_typed::<Sample>()
        .unwrap();
    let mut ticks = lossy.publisher().unwrap();
    ticks.wait_for_subscribers(1, Some(LONG)).unwrap();
    // What is lossy makes no topic before something comes.
    until("a tick comes", || {
        ticks.send_value(&Sample(8)).unwrap();
        b.topics().unwrap().contains(&String::from("ticks"))
    });
    let there = b
        .topic_builder("ticks")
        .lossy(true)
        .open_typed::<Sample>()
        .unwrap();
    let mut came = there.subscriber().unwrap();
    until("a tick comes", || {
        ticks.send_value(&Sample(9)).unwrap();
        came.recv_timeout(Duration::from_millis(50))
            .unwrap()
            .is_some_and(|tick| tick.0 >= 8)
    });
}

/// A topic that carries something else on the other bus is told, and held, and the others go on.
#[test]
fn topics_of_two_types_are_held() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let (a, b) = (net.bus(1), net.bus(2));
    let (plain, typed) = (a.topic("t").unwrap(), b.typed::<Sample>("t").unwrap());
    let _bridges = [net.bridge(1, &["**"]), net.bridge(2, &["**"])];
    met(&net, 2, 1);
    until("it is told", || {
        net.metric(2, "refused_total{reason=\"Type\"}") > 0
    });
    is_carried(&a, "fine");
    let mut subscriber = b.topic("fine").unwrap().subscriber().unwrap();
    a.topic("fine")
        .unwrap()
        .publisher()
        .unwrap()
        .send(b"it is")
        .unwrap();
    assert_eq!(&*subscriber.recv_timeout(LONG).unwrap().unwrap(), b"it is");
    drop((plain, typed));
}

#[test]
fn patterns_say_what_is_carried_and_which_way() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let (a, b) = (net.bus(1), net.bus(2));
    let _bridges = [
        net.bridge(1, &["both/*", "--out", "out/*", "--in", "in/*"]),
        net.bridge(2, &["**"]),
    ];
    met(&net, 2, 1);
    let names = ["both/x", "out/x", "in/x", "neither/x"];
    let ours: Vec<_> = names
        .map(|name| (a.topic(name).unwrap(), b.topic(name).unwrap()))
        .into();
    let mut subscribers: Vec<_> = ours
        .iter()
        .map(|(here, there)| [here.subscriber().unwrap(), there.subscriber().unwrap()])
        .collect();
    let mut publishers: Vec<_> = ours
        .iter()
        .map(|(here, there)| [here.publisher().unwrap(), there.publisher().unwrap()])
        .collect();
    for (at, here, there) in [(0, 2, 2), (1, 2, 1), (2, 1, 2)] {
        publishers[at][0]
            .wait_for_subscribers(here, Some(LONG))
            .unwrap();
        publishers[at][1]
            .wait_for_subscribers(there, Some(LONG))
            .unwrap();
    }
    for publisher in publishers.iter_mut().flatten() {
        publisher.send(b"hello").unwrap();
    }
    let want = [[2, 2], [1, 2], [2, 1], [1, 1]];
    for (pair, want) in subscribers.iter_mut().zip(want) {
        for (subscriber, want) in pair.iter_mut().zip(want) {
            for _ in 0..want {
                drop(subscriber.recv_timeout(LONG).unwrap().unwrap());
            }
        }
    }
    // What went both ways was the last to be looked at: all else would have come.
    for subscriber in subscribers.iter_mut().flatten() {
        assert!(subscriber.try_recv().unwrap().is_none());
    }
}

/// Three hosts that each hear both others: nothing comes twice, or back.
#[test]
fn three_hosts_in_a_ring() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(3);
    let buses = [1, 2, 3].map(|host| net.bus(host));
    let _bridges = [1, 2, 3].map(|host| net.bridge(host, &["**"]));
    met(&net, 3, 2);
    let mut publishers = buses
        .each_ref()
        .map(|bus| bus.topic("t").unwrap().publisher().unwrap());
    for publisher in &mut publishers {
        publisher.wait_for_subscribers(2, Some(LONG)).unwrap();
    }
    let mut subscribers = buses
        .each_ref()
        .map(|bus| bus.topic("t").unwrap().subscriber().unwrap());
    const EACH: u64 = 10_000;
    thread::scope(|scope| {
        for (at, publisher) in publishers.iter_mut().enumerate() {
            scope.spawn(move || {
                for number in 0..EACH {
                    publisher
                        .send(&(at as u64 * EACH + number).to_le_bytes())
                        .unwrap();
                }
            });
        }
        for subscriber in &mut subscribers {
            scope.spawn(move || {
                let mut last: HashMap<u64, u64> = HashMap::new();
                for number in numbers(subscriber, 3 * EACH) {
                    // In the order of each publisher, each once.
                    let before = last.insert(number / EACH, number % EACH);
                    assert_eq!(before.map_or(0, |before| before + 1), number % EACH);
                }
            });
        }
    });
    publishers[0].send(b"probe").unwrap();
    for subscriber in &mut subscribers {
        nothing_more(subscriber, || {});
    }
    for host in 1..=3 {
        // Twice what came from the two others: to each of these it was not sent back.
        until("it is counted", || {
            net.metric(host, "not_returned") >= 4 * EACH
        });
        assert_eq!(net.metric(host, "refused"), 0);
    }
}

/// Two networks that are joined on two hosts, so that a message could go round: it ends where it began.
#[test]
fn a_ring_of_networks() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(3);
    let buses = [1, 2, 3].map(|host| net.bus(host));
    let _bridges: Vec<Process> = [
        (1, "ab"),
        (2, "ab"),
        (2, "bc"),
        (3, "bc"),
        (3, "ca"),
        (1, "ca"),
    ]
    .into_iter()
    .map(|(host, prefix)| {
        let mut command = net.command(host, env!("CARGO_BIN_EXE_buslane-bridge-zenoh"));
        command
            .arg("--bus")
            .arg(net.path(host))
            .args(["**", "--prefix", prefix]);
        Process::spawn(command)
    })
    .collect();
    let mut publisher = buses[0].topic("t").unwrap().publisher().unwrap();
    for bus in &buses {
        // Each bridge sends to that of its prefix, and, as those of other prefixes are strangers to it, to plain programs.
        let mut others = bus.topic("t").unwrap().publisher().unwrap();
        others.wait_for_subscribers(4, Some(LONG)).unwrap();
    }
    let mut subscribers = buses
        .each_ref()
        .map(|bus| bus.topic("t").unwrap().subscriber().unwrap());
    publisher.send(b"round").unwrap();
    for (subscriber, times) in subscribers.iter_mut().zip([1, 2, 2]) {
        for _ in 0..times {
            assert_eq!(&*subscriber.recv_timeout(LONG).unwrap().unwrap(), b"round");
        }
    }
    publisher.send(b"again").unwrap();
    for (subscriber, times) in subscribers.iter_mut().zip([1, 2, 2]) {
        for _ in 0..times {
            assert_eq!(&*subscriber.recv_timeout(LONG).unwrap().unwrap(), b"again");
        }
    }
}

/// What came through the network `buslane/north` goes to the network `buslane`, and what came through that does not.
#[test]
fn a_prefix_that_begins_another_is_another_network() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let (a, b) = (net.bus(1), net.bus(2));
    let _bridges = [net.bridge(1, &["**"]), net.bridge(2, &["**"])];
    met(&net, 2, 1);
    is_carried(&a, "t");
    let mut publisher = a.topic("t").unwrap().publisher().unwrap();
    let mut subscriber = b.topic("t").unwrap().subscriber().unwrap();
    let bus = BusId([7; 16]);
    for hop in [
        format!("zenoh/buslane/{bus}"),
        format!("zenoh/buslane/north/{bus}"),
    ] {
        let envelope = Envelope::new(Kind::Event).passed_on_by(&hop);
        publisher.send_with(&envelope, hop.as_bytes()).unwrap();
    }
    let frame = subscriber.recv_timeout(LONG).unwrap().unwrap();
    assert_eq!(&*frame, format!("zenoh/buslane/north/{bus}").as_bytes());
}

/// A second bridge of the same bus and prefix stands by, and takes over when the first is killed.
#[test]
fn two_bridges_on_one_bus() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let (a, b) = (net.bus(1), net.bus(2));
    let first = net.bridge(1, &["**"]);
    let other = net.bridge(2, &["**"]);
    met(&net, 2, 1);
    let mut command = net.command(1, env!("CARGO_BIN_EXE_buslane-bridge-zenoh"));
    command.arg("--bus").arg(net.path(1)).arg("**");
    let _second = Process::spawn(command);
    is_carried(&a, "t");
    let mut subscriber = b.topic("t").unwrap().subscriber().unwrap();
    let mut publisher = a.topic("t").unwrap().publisher().unwrap();
    for number in 0..1000_u64 {
        publisher.send(&number.to_le_bytes()).unwrap();
    }
    assert_eq!(
        numbers(&mut subscriber, 1000),
        (0..1000).collect::<Vec<_>>()
    );
    publisher.send(b"probe").unwrap();
    nothing_more(&mut subscriber, || {});
    drop(first); // killed
    until("the other one takes over", || {
        publisher.send(b"over").unwrap();
        match subscriber.recv_timeout(Duration::from_millis(50)) {
            Ok(frame) => frame.is_some(),
            Err(e) => e.kind() != ErrorKind::Ended,
        }
    });
    drop(other);
}

/// Hosts that reach a router alone.
#[test]
fn hosts_meet_through_a_router() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(3);
    let buses = [1, 2, 3].map(|host| net.bus(host));
    let to = ["**", "--mode", "client", "--connect", "tcp/10.9.0.3:7447"];
    let _bridges = [
        net.bridge(
            3,
            &["**", "--mode", "router", "--listen", "tcp/0.0.0.0:7447"],
        ),
        net.bridge(1, &to),
        net.bridge(2, &to),
    ];
    met(&net, 3, 2);
    let mut subscribers =
        [&buses[1], &buses[2]].map(|bus| bus.topic("t").unwrap().subscriber().unwrap());
    let mut publisher = buses[0].topic("t").unwrap().publisher().unwrap();
    publisher.wait_for_subscribers(2, Some(LONG)).unwrap();
    for number in 0..5000_u64 {
        publisher.send(&number.to_le_bytes()).unwrap();
    }
    for subscriber in &mut subscribers {
        assert_eq!(numbers(subscriber, 5000), (0..5000).collect::<Vec<_>>());
    }
}

#[test]
fn requests_and_replies() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let (a, b) = (net.bus(1), net.bus(2));
    let _bridges = [
        net.bridge(1, &["--serve", "calc/*", "--ask", "calc/*"]),
        net.bridge(2, &["--serve", "calc/*", "--ask", "calc/*"]),
    ];
    let mut server = a.service("calc/upper").unwrap().server().unwrap();
    let answering = thread::spawn(move || {
        loop {
            let request = server.recv().unwrap();
            match &request[..] {
                b"end" => return request.reply(b"bye").unwrap(),
                b"no" => request.refuse(7, "no such number").unwrap(),
                b"slow" => drop(thread::spawn(move || {
                    thread::sleep(Duration::from_millis(300));
                    request.reply(b"late")
                })),
                b"many" => {
                    let mut sink = request.stream().unwrap();
                    for part in [b"1", b"2", b"3"] {
                        sink.send(part).unwrap();
                    }
                    sink.finish().unwrap();
                }
                b"kind" => {
                    let kind = request.message_kind().map(|kind| kind.to_string());
                    request.reply(kind.unwrap_or_default().as_bytes()).unwrap();
                }
                other => {
                    let reply = other.to_ascii_uppercase();
                    request.reply(&reply).unwrap();
                }
            }
        }
    });
    // The bridge makes the service here when it has heard of it there.
    let service = b.service("calc/upper").unwrap();
    let mut client = service.client().unwrap();
    let options = CallOptions::new().timeout(LONG).wait_for_server();
    assert_eq!(
        &*client.call_with(&options, b"pears").unwrap().unwrap(),
        b"PEARS"
    );
    let document = options.clone().kind(Kind::Document);
    assert_eq!(
        &*client.call_with(&document, b"kind").unwrap().unwrap(),
        b"document"
    );
    let refusal = client.call_with(&options, b"no").unwrap().unwrap_err();
    assert_eq!((refusal.code, &*refusal.message), (7, "no such number"));
    let parts: Vec<_> = client
        .stream_with(&options, b"many")
        .unwrap()
        .iter()
        .map(|part| part.unwrap().unwrap())
        .collect();
    assert_eq!(parts, [b"1", b"2", b"3"]);
    // Many at a time, and each gets its own.
    let pending: Vec<_> = (0..32)
        .map(|number| {
            client
                .start_with(&options, format!("n{number}").as_bytes())
                .unwrap()
        })
        .collect();
    for (number, pending) in pending.into_iter().enumerate() {
        assert_eq!(
            pending.wait().unwrap().unwrap(),
            format!("N{number}").as_bytes()
        );
    }
    // A deadline goes along.
    let short = options.clone().timeout(Duration::from_millis(100));
    assert_eq!(
        client.call_with(&short, b"slow").unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    // When the service has a server here, too, the network is not asked; and neither is the bridge's own.
    let mut local = b.service("calc/upper").unwrap().server().unwrap();
    until("the bridge leaves it to the one here", || {
        net.metric(2, "requests_asked");
        service.presence().unwrap().subscribers().unwrap() == 1
    });
    let pending = client.start_with(&options, b"x").unwrap();
    local.recv().unwrap().reply(b"from here").unwrap();
    assert_eq!(pending.wait().unwrap().unwrap(), b"from here");
    drop(local);
    assert_eq!(
        &*client.call_with(&options, b"end").unwrap().unwrap(),
        b"bye"
    );
    answering.join().unwrap();
}

#[test]
fn states_meet_and_late_comers_have_them() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(3);
    let (a, b) = (net.bus(1), net.bus(2));
    let board = a
        .state_builder("board/x")
        .keys(16)
        .max_value(64)
        .open()
        .unwrap();
    let mut writer = board.writer().unwrap();
    writer.set(b"before", b"1").unwrap();
    let _bridges = [net.bridge(1, &["board/*"]), net.bridge(2, &["**"])];
    let is = |bus: &Bus, key: &[u8], value: &[u8]| {
        until("a value comes", || {
            let state = bus.state_builder("board/x").create(false).open();
            let reader = state.and_then(|state| state.reader());
            reader.is_ok_and(|mut reader| reader.get(key).unwrap() == Some(value))
        });
    };
    is(&b, b"before", b"1");
    assert_eq!(b.state("board/x").unwrap().keys(), 16);
    writer.set(b"kitchen/\xff *", b"21.5").unwrap();
    is(&b, b"kitchen/\xff *", b"21.5");
    let mut other = b.state("board/x").unwrap().writer().unwrap();
    for number in 0..100 {
        other
            .set(b"cellar", format!("{number}").as_bytes())
            .unwrap();
    }
    is(&a, b"cellar", b"99");
    // Set at both ends at the same time: one of them holds, on both.
    for number in 0..20 {
        writer
            .set(b"race", format!("a{number}").as_bytes())
            .unwrap();
        other.set(b"race", format!("b{number}").as_bytes()).unwrap();
    }
    until("both hold the same", || {
        let get = |bus: &Bus| {
            let mut reader = bus.state("board/x").unwrap().reader().unwrap();
            reader.get(b"race").unwrap().map(<[u8]>::to_vec)
        };
        get(&a) == get(&b)
    });
    let c = net.bus(3);
    let _late = net.bridge(3, &["**"]);
    is(&c, b"before", b"1");
    is(&c, b"cellar", b"99");
    is(&c, b"kitchen/\xff *", b"21.5");
}

/// A durable bus, on a disk.
fn durable(dir: &Path, host: usize) -> (PathBuf, Bus) {
    let path = dir.join(format!("bus{host}"));
    let bus = Bus::builder()
        .durable(true)
        .capacity(1 << 20)
        .at(&path)
        .unwrap();
    (path, bus)
}

/// The first `count` numbers all come; how many came again. In order in each lane: a bridge that was killed leaves one, and the next one may
/// take another.
fn all_come(subscriber: &mut Subscriber, count: u64) -> u64 {
    let mut last: HashMap<u64, u64> = HashMap::new();
    let (mut seen, mut again) = (HashSet::new(), 0);
    while (seen.len() as u64) < count {
        let frame = match subscriber.recv_timeout(LONG) {
            Ok(frame) => frame.unwrap_or_else(|| panic!("{} of {count} have come", seen.len())),
            Err(e) if e.kind() == ErrorKind::Ended => continue,
            Err(e) => panic!("{e}"),
        };
        let number = u64::from_le_bytes(frame[..].try_into().unwrap());
        let before = last.insert(frame.lane(), number);
        if !seen.insert(number) {
            again += 1;
        } else if let Some(before) = before {
            assert!(before < number, "{number} after {before}");
        }
    }
    again
}

#[test]
fn a_link_that_is_cut_loses_nothing_of_a_durable_topic() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let dir = tempfile::tempdir().unwrap();
    let ((path_a, a), (path_b, b)) = (durable(dir.path(), 1), durable(dir.path(), 2));
    let mut subscriber = b.topic("t").unwrap().subscription("reader").unwrap();
    let mut publisher = a.topic("t").unwrap().publisher().unwrap();
    // A short lease, so that a cut is noticed soon.
    let config = dir.path().join("zenoh.json5");
    std::fs::write(&config, "{ transport: { link: { tx: { lease: 1000 } } } }").unwrap();
    let config = config.to_str().unwrap();
    let start = |host: usize| {
        let path = if host == 1 { &path_a } else { &path_b };
        net.bridge_of(host, path, &["t", "--config", config])
    };
    let mut bridges = [Some(start(1)), Some(start(2))];
    const STEP: u64 = 3000;
    let mut sent = 0;
    let mut send = || {
        for _ in 0..STEP {
            publisher.send(&next_of(&mut sent)).unwrap();
        }
    };
    met(&net, 2, 1);
    send();
    until("some have come", || net.metric(2, "received_messages") > 0);
    // Cut while it sends, until it is noticed, and restored.
    net.link(2, false);
    send();
    until("the cut is noticed", || net.metric(1, "bridges ") == 0);
    send();
    net.link(2, true);
    met(&net, 2, 1);
    // Cut and restored at once.
    net.link(1, false);
    send();
    net.link(1, true);
    // Ended and started anew, in turn.
    for host in [1, 2] {
        send();
        bridges[host - 1].take().unwrap().end();
        send();
        bridges[host - 1] = Some(start(host));
    }
    let again = all_come(&mut subscriber, 8 * STEP);
    assert_eq!(
        again, 0,
        "of links that were cut, and bridges that ended in order"
    );
}

fn next_of(sent: &mut u64) -> [u8; 8] {
    *sent += 1;
    (*sent - 1).to_le_bytes()
}

#[test]
fn bridges_that_are_killed_lose_nothing_of_a_durable_topic() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let dir = tempfile::tempdir().unwrap();
    let ((path_a, a), (path_b, b)) = (durable(dir.path(), 1), durable(dir.path(), 2));
    let mut subscriber = b.topic("t").unwrap().subscription("reader").unwrap();
    let mut publisher = a.topic("t").unwrap().publisher().unwrap();
    let start = |host: usize| {
        let path = if host == 1 { &path_a } else { &path_b };
        net.bridge_of(host, path, &["t"])
    };
    let mut bridges = [Some(start(1)), Some(start(2))];
    met(&net, 2, 1);
    let (done, ended) = mpsc::channel::<()>();
    let sending = thread::spawn(move || {
        let mut sent = 0;
        while ended.try_recv().is_err() {
            publisher.send(&next_of(&mut sent)).unwrap();
            if sent.is_multiple_of(100) {
                thread::sleep(Duration::from_millis(1));
            }
        }
        sent
    });
    for round in 0..6 {
        let before = net.metric(2, "received_messages");
        until("more comes", || {
            net.metric(2, "received_messages") > before + 500
        });
        let killed = round % 2;
        drop(bridges[killed].take());
        bridges[killed] = Some(start(killed + 1));
        until("it comes again", || net.metric(2, "received_messages") > 0);
    }
    done.send(()).unwrap();
    let count = sending.join().unwrap();
    // What a bridge had put on the bus before it was killed is found there: nothing comes twice either.
    assert_eq!(all_come(&mut subscriber, count), 0);
}

// ------------------------------------------------------------------------------------------------------ plain Zenoh

/// What this file's program does as another one: a plain Zenoh program, which knows nothing of bridges.
const ROLE: &str = "BRIDGE_TEST_ROLE";

/// That program, on a host.
fn plain(net: &Net, host: usize, role: &str) -> Process {
    let mut command = net.command(host, env::current_exe().unwrap());
    command.args(["plain_program", "--exact", "--nocapture"]);
    command.env(ROLE, role).stdout(Stdio::piped());
    Process::spawn(command)
}

/// What it said.
fn said(process: Process) -> Vec<String> {
    let output = process.output();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let lines = text
        .lines()
        .filter_map(|line| Some(line.split_once("> ")?.1));
    lines.map(String::from).collect()
}

#[test]
fn plain_program() {
    let Ok(role) = env::var(ROLE) else {
        return;
    };
    let session = zenoh::open(Config::default()).wait().unwrap();
    let (role, key) = role.split_once(' ').unwrap();
    match role {
        "put" => plain_put(&session, key),
        "hear" => plain_hear(&session, key),
        "get" => plain_get(&session, key),
        "serve" => plain_serve(&session, key),
        "garbage" => plain_garbage(&session),
        "flood" => plain_flood(&session, key),
        other => panic!("{other}"),
    }
    session.close().wait().unwrap();
}

/// Puts 2000 numbers.
fn plain_put(session: &Session, key: &str) {
    let publisher = session
        .declare_publisher(key)
        .congestion_control(CongestionControl::Block)
        .wait()
        .unwrap();
    while !publisher.matching_status().wait().unwrap().matching() {
        thread::sleep(Duration::from_millis(10));
    }
    for number in 0..2000_u64 {
        publisher.put(number.to_le_bytes()).wait().unwrap();
    }
}

/// Says what it hears, up to "end".
fn plain_hear(session: &Session, key: &str) {
    let subscriber = session.declare_subscriber(key).wait().unwrap();
    loop {
        let sample = subscriber.recv().unwrap();
        let text = sample.payload().try_to_string().unwrap().into_owned();
        if text == "hello" {
            continue;
        }
        let attached = sample.attachment().map_or(0, |bytes| bytes.len());
        println!("> {} {text} {}", sample.key_expr(), attached > 0);
        if text == "end" {
            return;
        }
    }
}

/// Asks until there is an answer, and says it.
fn plain_get(session: &Session, selector: &str) {
    let (selector, payload) = selector.split_once(' ').unwrap_or((selector, ""));
    loop {
        let replies = session.get(selector).payload(payload).wait().unwrap();
        let mut lines = Vec::new();
        while let Ok(reply) = replies.recv() {
            lines.push(match reply.result() {
                Ok(sample) => {
                    let text = sample.payload().try_to_string().unwrap();
                    format!("> {} {text}", sample.key_expr())
                }
                Err(error) => {
                    let text = error.payload().try_to_string().unwrap().into_owned();
                    format!("> error {text} {}", error.encoding())
                }
            });
        }
        if !lines.is_empty() {
            lines.sort();
            return lines.iter().for_each(|line| println!("{line}"));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Answers queries with what they ask, turned round; "none" not at all, "bad" by an error. Until "end".
fn plain_serve(session: &Session, key: &str) {
    let queryable = session
        .declare_queryable(key)
        .complete(true)
        .wait()
        .unwrap();
    loop {
        let query = queryable.recv().unwrap();
        let asked = query
            .payload()
            .map(|bytes| bytes.try_to_string().unwrap().into_owned())
            .unwrap_or_default();
        let turned: String = asked.chars().rev().collect();
        match &asked[..] {
            "none" => {}
            "bad" => query.reply_err("bad it is").wait().unwrap(),
            _ => query
                .reply(query.key_expr().clone(), turned)
                .wait()
                .unwrap(),
        }
        if asked == "end" {
            return;
        }
    }
}

/// Sends what no bridge would.
fn plain_garbage(session: &Session) {
    let publisher = session.declare_publisher("buslane/t").wait().unwrap();
    while !publisher.matching_status().wait().unwrap().matching() {
        thread::sleep(Duration::from_millis(10));
    }
    let put = |key: &str, payload: &[u8], attachment: &[u8]| {
        let put = session
            .put(key, payload)
            .attachment(attachment)
            .congestion_control(CongestionControl::Block);
        put.wait().unwrap();
    };
    put("buslane/t", b"x", b"BL\x02");
    put("buslane/t", b"x", b"BL\x01\x01\xff\xff");
    put("buslane/a/../b", b"x", b"");
    put("buslane/a%00b", b"x", b"");
    put("buslane/typed", b"of another size", b"");
    // Its attachment is its own affair.
    put("buslane/t", b"with another attachment", b"{}");
    let tokens = session
        .liveliness()
        .get("buslane/@buslane/*/*")
        .wait()
        .unwrap();
    let bridge = tokens.recv().unwrap().into_result().unwrap();
    let bus = bridge
        .key_expr()
        .as_str()
        .split('/')
        .nth(2)
        .unwrap()
        .to_owned();
    for attachment in [&b""[..], b"nonsense", &[1; 200]] {
        let deliver = format!("buslane/@buslane/{bus}/deliver");
        let replies = session
            .get(deliver)
            .attachment(attachment)
            .payload([7; 100])
            .wait()
            .unwrap();
        while replies.recv().is_ok() {}
    }
    let forged = forge(session, &bus);
    let token = session
        .liveliness()
        .declare_token("buslane/@buslane/no/bridge/at/all")
        .wait()
        .unwrap();
    let replies = session
        .get("buslane/prices")
        .attachment(b"BL\x07")
        .wait()
        .unwrap();
    while let Ok(reply) = replies.recv() {
        println!("> {}", reply.result().is_err());
    }
    put("buslane/t", b"end", b"");
    drop((token, forged));
}

/// A bridge that is one as far as its token says, and whose parcels contradict themselves.
fn forge(session: &Session, bus: &str) -> zenoh::liveliness::LivelinessToken {
    let header = Header {
        from: BusId([0xab; 16]),
        stream: 1,
        number: 0,
        oldest: 0,
        source: None,
        ended: false,
        topic: String::from("t"),
        carries: PayloadType::bytes(),
    };
    let token = format!("buslane/@buslane/{}/forged", header.from);
    let token = session.liveliness().declare_token(token).wait().unwrap();
    let mut whole = Vec::new();
    parcel::pack(&mut whole, None, b"from a parcel", None);
    let contradicts = [&whole[..], &[0xff; 20]].concat();
    let deliver = |number: u64, payload: &[u8]| {
        let header = Header {
            number,
            ..header.clone()
        };
        let replies = session
            .get(format!("buslane/@buslane/{bus}/deliver"))
            .attachment(header.to_bytes())
            .payload(payload)
            .wait()
            .unwrap();
        let reply = replies.recv().ok()?.into_result().ok()?;
        Answer::read(&reply.payload().to_bytes())
    };
    // The token may not be known yet.
    until("it is answered", || {
        deliver(0, &contradicts) == Some(Answer::Taken)
    });
    assert_eq!(deliver(9, &whole), Some(Answer::From(1)));
    assert_eq!(
        deliver(0, &whole),
        Some(Answer::Taken),
        "it was there already"
    );
    token
}

/// Puts so much that nobody reads, and then one message on another topic.
fn plain_flood(session: &Session, key: &str) {
    let publisher = session
        .declare_publisher(key)
        .congestion_control(CongestionControl::Block)
        .wait()
        .unwrap();
    while !publisher.matching_status().wait().unwrap().matching() {
        thread::sleep(Duration::from_millis(10));
    }
    for _ in 0..1000 {
        publisher.put(vec![7; 64 << 10]).wait().unwrap();
    }
    session
        .put("buslane/calm", "calm")
        .congestion_control(CongestionControl::Block)
        .wait()
        .unwrap();
}

#[test]
fn a_plain_zenoh_program_publishes_and_subscribes() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let a = net.bus(1);
    let _bridge = net.bridge(1, &["**"]);
    let mut subscriber = a.topic("from/plain").unwrap().subscriber().unwrap();
    let putting = plain(&net, 2, "put buslane/from/plain");
    assert_eq!(
        numbers(&mut subscriber, 2000),
        (0..2000).collect::<Vec<_>>()
    );
    said(putting);
    let hearing = plain(&net, 2, "hear buslane/to/*");
    let mut publisher = a.topic("to/plain").unwrap().publisher().unwrap();
    publisher.wait_for_subscribers(1, Some(LONG)).unwrap();
    // Who has come may not hear yet.
    for _ in 0..20 {
        publisher.send(b"hello").unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    let all: Vec<String> = (0..500).map(|number| format!("message {number}")).collect();
    publisher.send_batch(&all).unwrap();
    publisher.send(b"end").unwrap();
    let heard = said(hearing);
    let wanted = all.iter().map(String::as_str).chain(["end"]);
    let wanted: Vec<_> = wanted
        .map(|text| format!("buslane/to/plain {text} true"))
        .collect();
    assert_eq!(heard, wanted);
}

#[test]
fn a_plain_zenoh_program_asks_and_answers() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let a = net.bus(1);
    let args = ["board", "--serve", "upper", "--ask", "turn"];
    let _bridge = net.bridge(1, &args);
    let mut server = a.service("upper").unwrap().server().unwrap();
    let answering = thread::spawn(move || {
        server.recv().unwrap().reply(b"PEARS").unwrap();
        server.recv().unwrap().refuse(7, "none left").unwrap();
    });
    let get = |selector: &str| said(plain(&net, 2, &format!("get {selector}")));
    assert_eq!(get("buslane/upper pears"), ["buslane/upper PEARS"]);
    assert_eq!(
        get("buslane/upper apples"),
        ["error none left text/plain;code=7"]
    );
    answering.join().unwrap();

    let mut board = a.state("board").unwrap().writer().unwrap();
    board.set(b"kitchen", b"21.5").unwrap();
    board.set(b"cellar/left", b"12").unwrap();
    let both = [
        "buslane/board/cellar%2Fleft 12",
        "buslane/board/kitchen 21.5",
    ];
    assert_eq!(get("buslane/board/**"), both);
    assert_eq!(get("buslane/board/kitchen"), &both[1..]);

    let serving = plain(&net, 2, "serve buslane/turn");
    let mut client = a.service("turn").unwrap().client().unwrap();
    let options = CallOptions::new().timeout(LONG).wait_for_server();
    until("the queryable is there", || {
        let answer = client.call_with(&options, b"abc").unwrap();
        answer.is_ok_and(|reply| &*reply == b"cba")
    });
    let bad = client.call_with(&options, b"bad").unwrap().unwrap_err();
    assert_eq!(&*bad.message, "bad it is");
    let none = client.call_with(&options, b"none").unwrap().unwrap_err();
    assert!(
        none.message.contains("no answer from the network"),
        "{none}"
    );
    assert_eq!(
        &*client.call_with(&options, b"end").unwrap().unwrap(),
        b"dne"
    );
    said(serving);
}

#[test]
fn garbage_is_counted_and_the_rest_goes_on() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let a = net.bus(1);
    let typed = a.typed::<Sample>("typed").unwrap();
    let mut subscriber = a.topic("t").unwrap().subscriber().unwrap();
    let mut server = a.service("prices").unwrap().server().unwrap();
    let bridge = net.bridge(1, &["**", "--serve", "prices"]);
    let garbage = plain(&net, 2, "garbage x");
    let mut came = [(); 3].map(|()| subscriber.recv_timeout(LONG).unwrap().unwrap().to_vec());
    came.sort();
    assert_eq!(
        came,
        [&b"end"[..], b"from a parcel", b"with another attachment"]
    );
    assert_eq!(said(garbage), ["true"]);
    // Two attachments, three headers, a parcel, a token, and a request.
    for (reason, least) in [("Garbage", 8), ("Name", 2), ("Size", 1)] {
        let wanted = format!("refused_total{{reason=\"{reason}\"}}");
        until("it is counted", || net.metric(1, &wanted) >= least);
    }
    assert!(server.try_recv().unwrap().is_none());
    let summary = bridge.end();
    assert!(summary.contains(r#""garbage":"#), "{summary}");
    drop(typed);
}

#[test]
fn a_flood_on_one_topic_does_not_stop_the_others() {
    if !can_have_hosts() {
        return;
    }
    let net = Net::new(2);
    let a = net.bus(1);
    let _bridge = net.bridge(1, &["**"]);
    // It does not read.
    let mut stopped = a.topic("flooded").unwrap().subscriber().unwrap();
    let mut calm = a.topic("calm").unwrap().subscriber().unwrap();
    let flood = plain(&net, 2, "flood buslane/flooded");
    assert_eq!(&*calm.recv_timeout(LONG).unwrap().unwrap(), b"calm");
    said(flood);
    let flooded = net.metric(1, "refused_total{reason=\"Flood\"}");
    assert!(flooded > 0);
    let mut came = 0;
    while (came as u64) < 1000 - flooded {
        drop(stopped.recv_timeout(LONG).unwrap().unwrap());
        came += 1;
    }
    assert!(stopped.try_recv().unwrap().is_none());
}
