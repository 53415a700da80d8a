//! What routes do, each on a bus of its own in one process. Brokers that are killed are in `cli/tests/broker.rs`.

use std::time::{Duration, Instant};

use buslane::{Bus, DeadLetter, Delivery, Envelope, ErrorKind, Kind, Subscriber};
use buslane_broker::{Broker, Buses, Config, Incoming, Outgoing, Route};
use tempfile::TempDir;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Place {
    dir: TempDir,
    bus: Bus,
}

fn place() -> Place {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bus = Bus::at(dir.path().join("bus")).unwrap();
    Place { dir, bus }
}

impl Place {
    fn run(&self, config: &str) -> Broker {
        let config = config.replace("{dir}", self.dir.path().to_str().unwrap());
        let config = Config::parse(&config).unwrap();
        let routes = config.routes(&mut Buses::new(&self.bus)).unwrap();
        let broker = Broker::start(routes).unwrap();
        broker.wait_until_running();
        broker
    }

    fn subscriber(&self, topic: &str) -> Subscriber {
        self.bus.topic(topic).unwrap().subscriber().unwrap()
    }

    fn send(&self, topic: &str, messages: &[&str]) {
        let topic = self.bus.topic(topic).unwrap();
        let mut publisher = topic.publisher().unwrap();
        publisher.send_batch(messages).unwrap();
        publisher.wait_delivered(Some(PATIENCE)).unwrap();
    }
}

fn next(subscriber: &mut Subscriber) -> String {
    loop {
        match subscriber.recv_timeout(PATIENCE) {
            Ok(frame) => return String::from_utf8(frame.expect("a message").to_vec()).unwrap(),
            // A broker that stops leaves; another one comes.
            Err(e) if e.kind() == ErrorKind::Ended => {}
            Err(e) => panic!("{e}"),
        }
    }
}

fn take(bus: &Bus, queue: &str) -> Delivery {
    let mut consumer = bus.queue(queue).unwrap().consumer().unwrap();
    consumer
        .recv_timeout(PATIENCE)
        .unwrap()
        .expect("a delivery")
}

/// The number behind a name in the metrics.
fn count(broker: &Broker, what: &str) -> u64 {
    let metrics = broker.metrics();
    let line = metrics.lines().find(|line| line.starts_with(what));
    let line = line.unwrap_or_else(|| panic!("no {what} in {metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn until(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "it never was so");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn messages_go_on_as_they_came_and_say_by_which_way() {
    let place = place();
    let mut copies = place.subscriber("copies/all");
    let _broker = place.run(
        r#"
        [[route]]
        name = "copy"
        from = "orders/*"
        to = "copies/all"
        "#,
    );
    let mut orders = place.bus.topic("orders/eu").unwrap().publisher().unwrap();
    orders.wait_for_subscribers(1, Some(PATIENCE)).unwrap();
    orders.send(b"plain").unwrap();
    let envelope = Envelope::new(Kind::Command)
        .of_type("Order")
        .correlated(7)
        .sent_now();
    orders.send_with(&envelope, b"in an envelope").unwrap();

    assert_eq!(next(&mut copies), "plain");
    let frame = copies.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(&*frame, b"in an envelope");
    let got = frame.envelope().unwrap();
    assert_eq!(
        (got.kind(), got.type_name(), got.correlation()),
        (Kind::Command, Some("Order"), 7)
    );
    assert_eq!(got.sent(), envelope.sent());
    assert_eq!(got.trace().collect::<Vec<_>>(), ["copy"]);
}

#[test]
fn a_typed_topic_goes_on_as_one() {
    use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
    #[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Debug, PartialEq)]
    #[repr(C)]
    struct Sample(u64);
    impl buslane::Message for Sample {
        const NAME: &'static str = "Sample";
    }

    let place = place();
    let samples = place.bus.typed::<Sample>("samples").unwrap();
    let _broker = place.run("[[route]]\nname = 'r'\nfrom = 'samples'\nto = 'copies'");
    let mut publisher = samples.publisher().unwrap();
    publisher.send_value(&Sample(1)).unwrap();
    // The first has gone through a topic that the route made.
    until(|| {
        let copies = place.bus.inspect("copies");
        copies.is_ok_and(|report| report.messages() == 1)
    });
    let mut copies = place
        .bus
        .typed::<Sample>("copies")
        .unwrap()
        .subscriber()
        .unwrap();
    publisher.send_value(&Sample(2)).unwrap();
    assert_eq!(copies.recv_timeout(PATIENCE).unwrap().unwrap().0, 2);
}

#[test]
fn by_kind_type_sender_and_content() {
    let place = place();
    let mut out = place.subscriber("out");
    let broker = place.run(
        r#"
        [[route]]
        name = "r"
        from = "in"
        to = "out"
        kind = ["event", "document"]
        type = "Order"
        sender = "shop"
        where = '.pieces > 5 and $envelope.topic == "in" and $envelope.sender == "shop"'
        "#,
    );
    let mut publisher = place.bus.topic("in").unwrap().publisher().unwrap();
    publisher.wait_for_subscribers(1, Some(PATIENCE)).unwrap();
    let order = |kind| Envelope::new(kind).of_type("Order").sent_by("shop");
    let right = order(Kind::Event);
    publisher.send(br#"{"pieces": 10}"#).unwrap();
    publisher
        .send_with(&order(Kind::Command), br#"{"pieces": 11}"#)
        .unwrap();
    publisher
        .send_with(&right.clone().of_type("Else"), br#"{"pieces": 12}"#)
        .unwrap();
    publisher
        .send_with(&right.clone().sent_by("else"), br#"{"pieces": 13}"#)
        .unwrap();
    publisher.send_with(&right, br#"{"pieces": 5}"#).unwrap();
    publisher.send_with(&right, br#"{"pieces": 15}"#).unwrap();
    publisher
        .send_with(&order(Kind::Document), br#"{"pieces": 16}"#)
        .unwrap();
    assert_eq!(next(&mut out), r#"{"pieces": 15}"#);
    assert_eq!(next(&mut out), r#"{"pieces": 16}"#);
    assert_eq!(count(&broker, "buslane_route_received_total"), 7);
    let filtered = r#"buslane_route_dropped_total{route="r",reason="filtered"}"#;
    assert_eq!(count(&broker, filtered), 5);
}

#[test]
fn the_process_that_sends_is_the_sender_if_nothing_else_is_said() {
    let place = place();
    let mut out = place.subscriber("out");
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    let config = format!(
        "[[route]]\nname = 'r'\nfrom = 'in'\nto = 'out'\nsender = '{}'",
        comm.trim()
    );
    let _broker = place.run(&config);
    let mut publisher = place.bus.topic("in").unwrap().publisher().unwrap();
    publisher.wait_for_subscribers(1, Some(PATIENCE)).unwrap();
    publisher.send(b"ours").unwrap();
    assert_eq!(next(&mut out), "ours");
}

#[test]
fn one_message_becomes_many_in_other_topics_formats_and_envelopes() {
    let place = place();
    let mut eu = place.subscriber("items/eu");
    let mut us = place.subscriber("items/us");
    let _broker = place.run(
        r#"
        [[route]]
        name = "split"
        from = "orders"
        encode = "msgpack"
        payload = '.items[] | {name: .n, price: (.p * 2)}'
        envelope = '{kind: "document", type: "Item", correlation: 9}'
        router = '"items/" + (if .name == "pear" then "eu" else ("eu", "us") end)'
        "#,
    );
    let order = r#"{"items": [{"n": "pear", "p": 1.5}, {"n": "fig", "p": 2}]}"#;
    place.bus.topic("orders").unwrap();
    let mut publisher = place.bus.topic("orders").unwrap().publisher().unwrap();
    publisher.wait_for_subscribers(1, Some(PATIENCE)).unwrap();
    publisher.send(order.as_bytes()).unwrap();
    let pear = b"\x82\xa4name\xa4pear\xa5price\xcb\x40\x08\0\0\0\0\0\0";
    let frame = eu.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(&*frame, pear);
    let envelope = frame.envelope().unwrap();
    assert_eq!(
        (envelope.kind(), envelope.correlation()),
        (Kind::Document, 9)
    );
    assert_eq!(envelope.type_name(), Some("Item"));
    drop(frame);
    let fig = b"\x82\xa4name\xa3fig\xa5price\x04";
    assert_eq!(&*eu.recv_timeout(PATIENCE).unwrap().unwrap(), fig);
    assert_eq!(&*us.recv_timeout(PATIENCE).unwrap().unwrap(), fig);
}

#[test]
fn what_cannot_be_passed_on_is_a_dead_letter_and_the_rest_goes_on() {
    let place = place();
    let mut out = place.subscriber("out");
    let broker = place.run(
        r#"
        [[route]]
        name = "r"
        from = "in"
        to = "out"
        payload = '{half: (.n / 2)}'
        dead_letter = "dead"
        "#,
    );
    place.bus.topic("in").unwrap();
    until(|| place.bus.inspect("in").unwrap().subscribers() == 1);
    place.send("in", &["no json", r#"{"n": "text"}"#, r#"{"n": 4}"#]);
    assert_eq!(next(&mut out), r#"{"half":2.0}"#);
    for (payload, reason) in [
        ("no json", "not JSON"),
        (r#"{"n": "text"}"#, "payload: cannot"),
    ] {
        let delivery = take(&place.bus, "dead");
        let letter = DeadLetter::parse(&delivery).unwrap();
        assert_eq!(letter.payload, payload.as_bytes());
        assert_eq!((letter.queue, letter.group), ("in", "r"));
        assert!(letter.reason.contains(reason), "{}", letter.reason);
        delivery.ack().unwrap();
    }
    assert_eq!(count(&broker, "buslane_route_dead_letters_total"), 2);
    assert_eq!(
        count(
            &broker,
            r#"buslane_route_dropped_total{route="r",reason="failed"}"#
        ),
        2
    );
}

#[test]
fn samples_rates_and_keys_let_some_through() {
    let place = place();
    let (mut few, mut once, mut slow) = (
        place.subscriber("few"),
        place.subscriber("once"),
        place.subscriber("slow"),
    );
    let broker = place.run(
        r#"
        [[route]]
        name = "few"
        from = "in"
        to = "few"
        sample = 3
        [[route]]
        name = "once"
        from = "in"
        to = "once"
        unique = '. % 4'
        unique_within = "1h"
        [[route]]
        name = "slow"
        from = "in"
        to = "slow"
        rate = "2/1h"
        "#,
    );
    place.bus.topic("in").unwrap();
    until(|| place.bus.inspect("in").unwrap().subscribers() == 3);
    place.send("in", &["0", "1", "2", "3", "4", "5", "6"]);
    until(|| count(&broker, r#"buslane_route_received_total{route="slow"}"#) == 7);
    for n in ["0", "3", "6"] {
        assert_eq!(next(&mut few), n);
    }
    for n in ["0", "1", "2", "3"] {
        assert_eq!(next(&mut once), n);
    }
    for n in ["0", "1"] {
        assert_eq!(next(&mut slow), n);
    }
    let dropped = |route: &str, why: &str| {
        let what = format!(r#"buslane_route_dropped_total{{route="{route}",reason="{why}"}}"#);
        count(&broker, &what)
    };
    until(|| dropped("few", "sampled") == 4);
    until(|| dropped("once", "duplicate") == 3);
    until(|| dropped("slow", "rate limited") == 5);
}

#[test]
fn a_delay_keeps_the_order_and_a_queue_keeps_what_waits() {
    let place = place();
    let config = r#"
        [[route]]
        name = "later"
        queue = "in"
        to = "out"
        delay = "200ms"
        "#;
    let mut out = place.subscriber("out");
    let broker = place.run(config);
    let queue = place.bus.queue("in").unwrap();
    let pushed = Instant::now();
    queue
        .producer()
        .unwrap()
        .push_batch(["1", "2", "3"])
        .unwrap();
    for n in ["1", "2", "3"] {
        assert_eq!(next(&mut out), n);
    }
    assert!(pushed.elapsed() >= Duration::from_millis(200));
    // What waits when it ends is there for the next one.
    queue.producer().unwrap().push_batch(["4", "5"]).unwrap();
    broker.stop();
    let _broker = place.run(config);
    assert_eq!(next(&mut out), "4");
    assert_eq!(next(&mut out), "5");
}

#[test]
fn a_tap_holds_nobody_up() {
    let place = place();
    let mut out = place.subscriber("out");
    // It is never read.
    let tap = place
        .bus
        .topic_builder("tap")
        .capacity(4096)
        .open()
        .unwrap();
    let _stuck = tap.subscriber().unwrap();
    let broker = place.run("[[route]]\nname = 'r'\nfrom = 'in'\nto = 'out'\ntap = 'tap'");
    place.bus.topic("in").unwrap();
    until(|| place.bus.inspect("in").unwrap().subscribers() == 1);
    let text = "x".repeat(500);
    for _ in 0..20 {
        place.send("in", &[&text]);
        assert_eq!(next(&mut out), text);
    }
    let full = r#"buslane_route_dropped_total{route="r",reason="not tapped"}"#;
    assert!(count(&broker, full) > 0);
    assert!(!place.bus.inspect("tap").unwrap().tail(1).is_empty());
}

#[test]
fn a_target_without_room_stalls_its_route_alone_or_its_patience_ends() {
    let place = place();
    for name in ["full", "impatient"] {
        let topic = place.bus.topic_builder(name).capacity(4096).open().unwrap();
        // Stays until the bus is gone.
        std::mem::forget(topic.subscriber().unwrap());
    }
    let mut out = place.subscriber("out");
    let broker = place.run(
        r#"
        [[route]]
        name = "stuck"
        from = "a"
        to = "full"
        [[route]]
        name = "impatient"
        from = "a"
        to = "impatient"
        patience = "50ms"
        dead_letter = "dead"
        [[route]]
        name = "free"
        from = "b"
        to = "out"
        "#,
    );
    let state = |route: &str| broker.states().find(|(name, _)| *name == route).unwrap().1;
    place.bus.topic("a").unwrap();
    place.bus.topic("b").unwrap();
    until(|| place.bus.inspect("a").unwrap().subscribers() == 2);
    until(|| place.bus.inspect("b").unwrap().subscribers() == 1);
    let text = "x".repeat(1000);
    let mut publisher = place.bus.topic("a").unwrap().publisher().unwrap();
    publisher.send_batch(vec![&text; 10]).unwrap();
    until(|| state("stuck") == "stalled");
    let letter = take(&place.bus, "dead");
    assert!(
        DeadLetter::parse(&letter)
            .unwrap()
            .reason
            .contains("impatient")
    );
    place.send("b", &["goes on"]);
    assert_eq!(next(&mut out), "goes on");
    assert_eq!(state("free"), "running");
    assert!(count(&broker, r#"buslane_route_stalls_total{route="stuck"}"#) >= 1);
    // It ends all the same.
    broker.stop();
}

#[test]
fn two_brokers_share_a_queue_and_stand_by_for_topics() {
    let place = place();
    let config = r#"
        [[route]]
        name = "shared"
        queue = "jobs"
        to = "done"
        [[route]]
        name = "alone"
        from = "in"
        to = "out"
        "#;
    let (mut done, mut out) = (place.subscriber("done"), place.subscriber("out"));
    let (first, second) = (place.run(config), place.run(config));
    let state =
        |broker: &Broker, route| broker.states().find(|(name, _)| *name == route).unwrap().1;
    assert_eq!(state(&first, "alone"), "running");
    assert_eq!(state(&second, "alone"), "standing by");
    assert_eq!(state(&second, "shared"), "running");
    assert_eq!(place.bus.inspect("jobs").unwrap().groups.len(), 1);

    let mut producer = place.bus.queue("jobs").unwrap().producer().unwrap();
    for n in 0..1000 {
        producer.push(format!("{n}").as_bytes()).unwrap();
    }
    let mut all: Vec<u32> = (0..1000)
        .map(|_| next(&mut done).parse().unwrap())
        .collect();
    all.sort_unstable();
    assert_eq!(all, (0..1000).collect::<Vec<_>>());

    place.bus.topic("in").unwrap();
    until(|| place.bus.inspect("in").unwrap().subscribers() == 1);
    place.send("in", &["by the first"]);
    assert_eq!(next(&mut out), "by the first");
    first.stop();
    until(|| state(&second, "alone") == "running");
    place.send("in", &["by the second"]);
    assert_eq!(next(&mut out), "by the second");
}

#[test]
fn a_route_goes_on_where_it_was() {
    let place = place();
    let mut out = place.subscriber("out");
    let config = "[[route]]\nname = 'r'\nfrom = 'in'\nto = 'out'";
    let mut publisher = place.bus.topic("in").unwrap().publisher().unwrap();
    let broker = place.run(config);
    publisher.send_batch(["1", "2"]).unwrap();
    assert_eq!(next(&mut out), "1");
    assert_eq!(next(&mut out), "2");
    broker.stop();
    publisher.send_batch(["3", "4"]).unwrap();
    let broker = place.run(config);
    publisher.send(b"5").unwrap();
    for n in ["3", "4", "5"] {
        assert_eq!(next(&mut out), n);
    }
    assert_eq!(count(&broker, "buslane_route_received_total"), 3);
    // A new route begins with what is sent from now on.
    let mut new = place.subscriber("new");
    let _broker = place.run("[[route]]\nname = 'new'\nfrom = 'in'\nto = 'new'");
    publisher.send(b"6").unwrap();
    assert_eq!(next(&mut new), "6");
}

#[test]
fn a_reload_loses_nothing_and_leaves_alone_what_is_the_same() {
    let place = place();
    let read = |text: &str| {
        let config = Config::parse(text).unwrap();
        config.routes(&mut Buses::new(&place.bus)).unwrap()
    };
    let same = "[[route]]\nname = 'same'\nfrom = 'in'\nto = 'same'\n";
    let with = |mark: &str| {
        format!(
            "{same}[[route]]\nname = 'mark'\nfrom = 'in'\nto = 'out'\npayload = '. + \"{mark}\"'\n"
        )
    };
    let mut out = place.subscriber("out");
    let mut broker = place.run(&with("a"));
    let mut publisher = place.bus.topic("in").unwrap().publisher().unwrap();
    publisher.wait_for_subscribers(2, Some(PATIENCE)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..50_000 {
                publisher.send(format!("\"{n} \"").as_bytes()).unwrap();
            }
        });
        let mut marks = std::collections::HashSet::new();
        for n in 0..50_000 {
            let message = next(&mut out);
            let (number, mark) = message.trim_matches('"').split_once(' ').unwrap();
            assert_eq!(number, n.to_string());
            marks.insert(mark.to_owned());
            if n % 10_000 == 1 {
                let changes = broker.reload(read(&with(&format!("{n}")))).unwrap();
                assert_eq!(changes.changed, ["mark"]);
                assert!(changes.started.is_empty() && changes.stopped.is_empty());
            }
        }
        assert!(marks.len() > 1);
    });
    let changes = broker.reload(read(same)).unwrap();
    assert_eq!(changes.stopped, ["mark"]);
    assert_eq!(broker.states().count(), 1);
}

#[test]
fn from_a_volatile_to_a_durable_bus_and_back() {
    let place = place();
    let config = r#"
        [bus.archive]
        path = "{dir}/archive"
        durable = true
        [[route]]
        name = "store"
        queue = "in"
        to = "kept"
        to_bus = "archive"
        [[route]]
        name = "forward"
        from_bus = "archive"
        from = "kept"
        to_queue = "out"
        "#;
    let broker = place.run(config);
    let mut producer = place.bus.queue("in").unwrap().producer().unwrap();
    producer.push_batch(["1", "2"]).unwrap();
    for n in ["1", "2"] {
        let delivery = take(&place.bus, "out");
        assert_eq!(&*delivery, n.as_bytes());
        delivery.ack().unwrap();
    }
    broker.stop();
    producer.push(b"3").unwrap();
    let archive = Bus::at(place.dir.path().join("archive")).unwrap();
    assert!(archive.is_durable());
    archive
        .topic("kept")
        .unwrap()
        .publisher()
        .unwrap()
        .send(b"4")
        .unwrap();
    let _broker = place.run(config);
    let mut got: Vec<Vec<u8>> = (0..2)
        .map(|_| {
            let delivery = take(&place.bus, "out");
            let bytes = delivery.to_vec();
            delivery.ack().unwrap();
            bytes
        })
        .collect();
    got.sort();
    assert_eq!(got, [b"3", b"4"]);
}

#[test]
fn programs_are_closures_that_fail_name_topics_and_go_round() {
    let place = place();
    let program = |message: &Incoming<'_>, out: &mut Outgoing| match message.payload {
        b"bad" => Err(String::from("it is bad")),
        b"back" => {
            out.pass().to("in");
            Ok(())
        }
        b"no name" => {
            out.pass().to("a//b");
            Ok(())
        }
        payload => {
            out.pass();
            out.send(payload.to_ascii_uppercase())
                .to("loud")
                .kind(Kind::Document);
            Ok(())
        }
    };
    let (mut out, mut loud) = (place.subscriber("out"), place.subscriber("loud"));
    let route = Route::from_topics("r", &place.bus, &["in"]).unwrap();
    let route = route
        .to("out")
        .to_named()
        .program(program)
        .dead_letters("dead");
    place.bus.topic("in").unwrap();
    let broker = Broker::start(vec![route]).unwrap();
    broker.wait_until_running();
    place.send("in", &["bad", "back", "no name", "good"]);
    assert_eq!(next(&mut out), "good");
    assert_eq!(next(&mut loud), "GOOD");
    for why in ["it is bad", "it came from in", "segment is empty"] {
        let letter = take(&place.bus, "dead");
        let reason = DeadLetter::parse(&letter).unwrap().reason.to_owned();
        assert!(reason.contains(why), "{reason}");
        letter.ack().unwrap();
    }
}

/// Two brokers that know nothing of each other can pass a message round; it ends.
#[test]
fn what_goes_round_becomes_a_dead_letter() {
    let place = place();
    place.bus.topic("a").unwrap();
    place.bus.topic("b").unwrap();
    let _there = place.run("[[route]]\nname = 'there'\nfrom = 'a'\nto = 'b'\ndead_letter = 'dead'");
    let _back = place.run("[[route]]\nname = 'back'\nfrom = 'b'\nto = 'a'\ndead_letter = 'dead'");
    place.send("a", &["round"]);
    let letter = take(&place.bus, "dead");
    let reason = DeadLetter::parse(&letter).unwrap().reason.to_owned();
    assert!(
        reason.contains("16 routes") && reason.contains("there, back"),
        "{reason}"
    );
}

#[test]
fn a_removed_topic_is_left_and_a_removed_target_made_anew() {
    let place = place();
    let config = "[[route]]\nname = 'r'\nfrom = 'in/*'\nto = 'out'";
    let broker = place.run(config);
    for _ in 0..2 {
        let mut out = place.subscriber("out");
        let mut publisher = place.bus.topic("in/1").unwrap().publisher().unwrap();
        publisher.wait_for_subscribers(1, Some(PATIENCE)).unwrap();
        publisher.send(b"x").unwrap();
        assert_eq!(next(&mut out), "x");
        drop((publisher, out));
        place.bus.remove_topic("in/1", true).unwrap();
        place.bus.remove_topic("out", true).unwrap();
    }
    assert!(broker.states().all(|(_, state)| state == "running"));
}

#[test]
fn metrics_and_health_are_served() {
    let place = place();
    let mut broker = place.run("[[route]]\nname = 'r'\nfrom = 'in'\nto = 'out'");
    let address = broker.serve("127.0.0.1:0".parse().unwrap()).unwrap();
    place.bus.topic("in").unwrap();
    until(|| place.bus.inspect("in").unwrap().subscribers() == 1);
    place.send("in", &["one"]);
    let get = |path: &str| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    until(|| get("/metrics").contains(r#"buslane_route_sent_total{route="r"} 1"#));
    let metrics = get("/metrics");
    let path = place.bus.path().display();
    for line in [
        format!(r#"buslane_topic_messages_total{{bus="{path}",topic="in"}}"#),
        format!(r#"buslane_topic_subscribers{{bus="{path}",topic="in"}} 1"#),
        String::from(r#"buslane_route_state{route="r",reason="running"} 1"#),
    ] {
        assert!(metrics.contains(&line), "no {line} in {metrics}");
    }
    let health = get("/health");
    assert!(
        health.starts_with("HTTP/1.0 200") || health.starts_with("HTTP/1.1 200"),
        "{health}"
    );
    assert!(
        health.contains(r#"{"healthy":true,"routes":{"r":"running"}}"#),
        "{health}"
    );
    assert!(get("/").contains("404"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = broker
        .serve(taken.local_addr().unwrap())
        .unwrap_err()
        .to_string();
    assert!(taken.contains("cannot serve metrics at"), "{taken}");
}

#[test]
fn mistakes_are_told_where_they_are() {
    let route = "[[route]]\nname = \"r\"\n";
    for (text, at, why) in [
        ("[[route]\n", (1, 9), ""),
        ("[[route]]\nnaem = \"r\"\n", (2, 1), "unknown field `naem`"),
        (&format!("{route}to = \"b\"\n"), (2, 8), "not both"),
        (
            &format!("{route}from = \"a\"\n"),
            (2, 8),
            "sends to nothing",
        ),
        (
            &format!("{route}from = \"a\"\nto = \"a\"\n"),
            (2, 8),
            "go round without end: r -> r",
        ),
        (
            &format!("{route}from = \"a/*\"\nto = [\"x\", \"a/b\"]\n"),
            (2, 8),
            "r -> r",
        ),
        (
            &format!("{route}from = \"a\"\nto = \"b/*\"\n"),
            (4, 6),
            "only what is taken from",
        ),
        (
            &format!("{route}from = \"a//b\"\nto = \"b\"\n"),
            (3, 8),
            "segment is empty",
        ),
        (
            &format!("{route}from = \"a\"\nto = \"b\"\nwhere = '.a >'\n"),
            (5, 14),
            "expected",
        ),
        (
            &format!("{route}from = \"a\"\nto = \"b\"\nwhere = '''\n.a\n| foo(1)'''\n"),
            (7, 3),
            "no filter foo",
        ),
        (
            &format!("{route}from = \"a\"\nto = \"b\"\npayload = '$x'\n"),
            (5, 12),
            "no variable $x",
        ),
        (
            &format!("{route}from = \"a\"\nto = \"b\"\nrate = \"fast\"\n"),
            (5, 8),
            "100/s",
        ),
        (
            &format!("{route}from = \"a\"\nto = \"b\"\ndelay = \"soon\"\n"),
            (5, 9),
            "100ms",
        ),
        (
            &format!("{route}from = \"a\"\nto = \"b\"\nkind = \"thing\"\n"),
            (5, 8),
            "no kind thing",
        ),
        (
            &format!("{route}from = \"a\"\nto = \"b\"\nto_bus = \"x\"\n"),
            (5, 10),
            "no bus x",
        ),
        (
            &format!("{route}from = \"a\"\nto = \"b\"\nsample = 0\n"),
            (5, 10),
            "1 or more",
        ),
        (
            &format!("{route}from = \"a\"\nto = \"b\"\ndecode = \"xml\"\n"),
            (5, 10),
            "xml",
        ),
        (
            &format!("{route}from = \"a\"\nto = \"b\"\n{route}from = \"c\"\nto = \"d\"\n"),
            (6, 8),
            "two routes",
        ),
        ("metrics = \"here\"\n", (1, 11), "metrics"),
    ] {
        let error = Config::parse(text).unwrap_err();
        assert_eq!((error.line, error.column), at, "{text}: {error}");
        assert!(error.why.contains(why), "{error}");
    }
    // The same names on different buses are different topics.
    let text = format!("[bus.x]\npath = \"/x\"\n{route}from = \"a\"\nto = \"a\"\nto_bus = \"x\"\n");
    Config::parse(&text).unwrap();
}

#[test]
fn routes_that_cannot_be_are_errors() {
    let place = place();
    let route = |name: &str| Route::from_topics(name, &place.bus, &["a"]).unwrap();
    for (routes, why) in [
        (vec![route("r")], "sends to nothing"),
        (
            vec![route("r").to("b"), route("r").to("c")],
            "has that name",
        ),
        (vec![route("r").to("a")], "r -> r"),
    ] {
        let error = Broker::start(routes).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(Route::from_topics("a/b", &place.bus, &["a"]).is_err());
    let error = Route::from_topics("r", &place.bus, &["a*"]).unwrap_err();
    let buslane_broker::Error::Bus(error) = error else {
        panic!("{error}")
    };
    assert_eq!(error.kind(), ErrorKind::InvalidName);
}
