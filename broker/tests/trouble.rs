//! What is asked of routes at bad times: changes while something waits, topics that come and go, damage, and messages made to do harm.

use std::fs::OpenOptions;
use std::io::{Seek, Write};
use std::time::{Duration, Instant};

use buslane::{Bus, Delivery, Envelope, ErrorKind, Kind, Publisher, Subscriber};
use buslane_broker::{Broker, Buses, Config, Incoming, Outgoing, Route};
use tempfile::TempDir;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const FORWARD: &str = "[[route]]\nname='r'\nfrom='in'\nto='out'\n";

struct Place {
    _dir: TempDir,
    bus: Bus,
}

fn place() -> Place {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bus = Bus::at(dir.path().join("bus")).unwrap();
    Place { _dir: dir, bus }
}

impl Place {
    fn read(&self, config: &str) -> Vec<Route> {
        let config = Config::parse(config).unwrap();
        config.routes(&mut Buses::new(&self.bus)).unwrap()
    }

    fn run(&self, config: &str) -> Broker {
        let broker = Broker::start(self.read(config)).unwrap();
        broker.wait_until_running();
        broker
    }

    fn subscriber(&self, topic: &str) -> Subscriber {
        self.bus.topic(topic).unwrap().subscriber().unwrap()
    }

    fn publisher(&self, topic: &str) -> Publisher {
        self.bus.topic(topic).unwrap().publisher().unwrap()
    }

    fn letter(&self, queue: &str) -> Delivery {
        let mut consumer = self.bus.queue(queue).unwrap().consumer().unwrap();
        consumer
            .recv_timeout(PATIENCE)
            .unwrap()
            .expect("a dead letter")
    }
}

fn next(subscriber: &mut Subscriber) -> String {
    loop {
        match subscriber.recv_timeout(PATIENCE) {
            Ok(frame) => return String::from_utf8(frame.expect("a message").to_vec()).unwrap(),
            Err(e) if e.kind() == ErrorKind::Ended => {}
            Err(e) => panic!("{e}"),
        }
    }
}

fn until(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "it never was so");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn state(broker: &Broker, route: &str) -> &'static str {
    broker.states().find(|(name, _)| *name == route).unwrap().1
}

fn count(broker: &Broker, what: &str) -> u64 {
    let metrics = broker.metrics();
    let line = metrics.lines().find(|line| line.starts_with(what));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn what_waits_goes_first_when_there_is_no_delay_any_more() {
    let place = place();
    let mut out = place.subscriber("out");
    let mut publisher = place.publisher("in");
    let mut broker = place.run(&format!("{FORWARD}delay='1h'"));
    publisher.send_batch(["1", "2", "3"]).unwrap();
    until(|| count(&broker, "buslane_route_received_total") == 3);
    publisher.send(b"4").unwrap();
    broker.reload(place.read(FORWARD)).unwrap();
    for n in ["1", "2", "3", "4"] {
        assert_eq!(next(&mut out), n);
    }
}

/// Makes the topic `full`, which has room for little, and gives its subscriber, which takes nothing.
fn fill_soon(place: &Place) -> Subscriber {
    let full = place.bus.topic_builder("full").capacity(4096);
    full.open().unwrap().subscriber().unwrap()
}

#[test]
fn a_route_that_waits_for_room_can_be_told_otherwise() {
    let place = place();
    let _stuck = fill_soon(&place);
    let mut out = place.subscriber("out");
    let mut publisher = place.publisher("in");
    let mut broker = place.run("[[route]]\nname='r'\nfrom='in'\nto=['full', 'out']");
    let texts: Vec<String> = (0..20).map(|n| format!("{n:01000}")).collect();
    publisher.send_batch(&texts).unwrap();
    until(|| state(&broker, "r") == "stalled");
    broker.reload(place.read(FORWARD)).unwrap();
    // Those that had room in both came before.
    for text in &texts {
        assert_eq!(&next(&mut out), text);
    }
}

#[test]
fn what_was_copied_is_not_copied_again_when_it_is_told_otherwise() {
    let place = place();
    let _stuck = fill_soon(&place);
    let (mut out, mut tap) = (place.subscriber("out"), place.subscriber("tap"));
    let mut publisher = place.publisher("in");
    let mut broker = place.run("[[route]]\nname='r'\nfrom='in'\nto='full'\ntap='tap'");
    let texts: Vec<String> = (0..20).map(|n| format!("{n:01000}")).collect();
    publisher.send_batch(&texts).unwrap();
    until(|| state(&broker, "r") == "stalled");
    broker
        .reload(place.read(&format!("{FORWARD}tap='tap'")))
        .unwrap();
    assert_eq!(next(&mut out).len(), 1000);
    for text in &texts {
        assert_eq!(&next(&mut tap), text);
    }
}

#[test]
fn a_reload_that_asks_who_sends_keeps_what_is_taken_from() {
    let place = place();
    let narrow = place
        .bus
        .topic_builder("out")
        .capacity(4096)
        .open()
        .unwrap();
    let mut out = narrow.subscriber().unwrap();
    let mut publisher = place.publisher("in");
    let mut broker = place.run(FORWARD);
    for n in 0..200 {
        publisher.send(n.to_string().as_bytes()).unwrap();
    }
    // Nobody else holds what it sent.
    drop(publisher);
    let asks = format!("{FORWARD}where='$envelope.sender != \"nobody\"'");
    broker.reload(place.read(&asks)).unwrap();
    for n in 0..200 {
        assert_eq!(next(&mut out), n.to_string());
    }
}

#[test]
fn what_a_program_said_before_is_forgotten_with_it() {
    let place = place();
    let mut out = place.subscriber("out");
    let mut publisher = place.publisher("in");
    let says = format!("{FORWARD}envelope='{{type: \"Item\", correlation: 9}}'");
    let mut broker = place.run(&says);
    publisher.send(b"1").unwrap();
    assert_eq!(next(&mut out), "1");
    broker.reload(place.read(FORWARD)).unwrap();
    until(|| {
        publisher.send(b"2").unwrap();
        let frame = out.recv().unwrap();
        frame.envelope().unwrap().type_name().is_none()
    });
}

#[test]
fn topics_that_were_made_meanwhile_are_taken_from_their_first_message_on() {
    let place = place();
    let mut out = place.subscriber("out");
    let config = "[[route]]\nname='r'\nfrom='in/*'\nto='out'";
    let mut first = place.publisher("in/1");
    let broker = place.run(config);
    first.send(b"1").unwrap();
    assert_eq!(next(&mut out), "1");
    broker.stop();
    let mut second = place.publisher("in/2");
    first.send(b"2").unwrap();
    second.send(b"3").unwrap();
    let _broker = place.run(config);
    let mut got = [next(&mut out), next(&mut out)];
    got.sort();
    assert_eq!(got, ["2", "3"]);
}

#[test]
fn keys_are_those_of_what_was_passed_on() {
    let place = place();
    let mut out = place.subscriber("out");
    let mut publisher = place.publisher("in");
    let _broker = place.run(&format!("{FORWARD}unique='.id'\nwhere='.done'"));
    for text in [
        r#"{"id":1,"done":false}"#,
        r#"{"id":1,"done":true}"#,
        r#"{"id":1,"done":true}"#,
        r#"{"id":2,"done":true}"#,
    ] {
        publisher.send(text.as_bytes()).unwrap();
    }
    assert_eq!(next(&mut out), r#"{"id":1,"done":true}"#);
    assert_eq!(next(&mut out), r#"{"id":2,"done":true}"#);
}

#[test]
fn one_that_is_damaged_stops_no_other() {
    let place = place();
    let mut out = place.subscriber("out");
    let mut publisher = place.publisher("in/good");
    place.bus.topic("in/bad").unwrap();
    let topic = place.bus.path().join("topics/in%2Fbad/topic");
    let mut file = OpenOptions::new().write(true).open(topic).unwrap();
    file.rewind().unwrap();
    file.write_all(b"no topic").unwrap();
    let broker = place.run("[[route]]\nname='r'\nfrom='in/*'\nto='out'");
    publisher.send(b"1").unwrap();
    assert_eq!(next(&mut out), "1");
    assert_eq!(state(&broker, "r"), "failing");
    assert!(count(&broker, "buslane_route_errors_total") > 0);
    // Once it is gone, all is well.
    place.bus.remove_topic("in/bad", true).unwrap_or_else(|_| {
        std::fs::remove_dir_all(place.bus.path().join("topics/in%2Fbad")).unwrap();
    });
    until(|| state(&broker, "r") == "running");
}

#[test]
fn what_says_who_runs_a_route_may_be_removed() {
    let place = place();
    let mut out = place.subscriber("out");
    let mut publisher = place.publisher("in");
    let (first, second) = (place.run(FORWARD), place.run(FORWARD));
    place.bus.remove_topic("broker/turns", true).unwrap();
    // One of them runs it again, and one only.
    until(|| {
        let states = [state(&first, "r"), state(&second, "r")];
        place
            .bus
            .topics()
            .unwrap()
            .contains(&String::from("broker/turns"))
            && states.contains(&"running")
            && states.contains(&"standing by")
    });
    publisher.wait_for_subscribers(1, Some(PATIENCE)).unwrap();
    publisher.send(b"1").unwrap();
    assert_eq!(next(&mut out), "1");
    let sent = || [&first, &second].map(|broker| count(broker, "buslane_route_sent_total"));
    // It is counted after it has come.
    until(|| sent().iter().sum::<u64>() > 0);
    assert_eq!(sent().iter().sum::<u64>(), 1);
}

#[test]
fn each_route_has_one_lane_however_often_it_begins() {
    let place = place();
    let names: Vec<String> = (0..8).map(|i| format!("in{i}")).collect();
    let route = |name: &String| format!("[[route]]\nname='{name}'\nfrom='{name}'\nto='out'\n");
    let config: String = names.iter().map(route).collect();
    let mut publishers: Vec<_> = names.iter().map(|name| place.publisher(name)).collect();
    let mut out = place.subscriber("out");
    for _ in 0..10 {
        let broker = place.run(&config);
        for publisher in &mut publishers {
            publisher.send(b"x").unwrap();
        }
        for _ in 0..8 {
            next(&mut out);
        }
        broker.stop();
    }
    let lanes = |topic: &str| place.bus.inspect(topic).unwrap().lanes.len();
    assert_eq!((lanes("broker/positions"), lanes("out")), (8, 8));
}

#[test]
fn a_message_made_to_do_harm_costs_itself_alone() {
    let place = place();
    let mut out = place.subscriber("out");
    let mut publisher = place.publisher("in");
    let config = format!(
        "{FORWARD}dead_letter='dead'\npayload='if .text then .text | fromjson elif .n then reduce range(.n) as $i (0; [.]) elif .t then .t | gmtime else . end'"
    );
    let _broker = place.run(&config);
    let deep = format!(r#"{{"text": "{}"}}"#, "[".repeat(500_000));
    for text in [
        &deep,
        r#"{"n": 10000}"#,
        r#"{"t": 9e18}"#,
        r#"{"text": "[1]"}"#,
    ] {
        publisher.send(text.as_bytes()).unwrap();
    }
    assert_eq!(next(&mut out), "[1]");
    for _ in 0..3 {
        place.letter("dead").ack().unwrap();
    }
}

#[test]
fn a_program_that_panics_costs_a_message() {
    let place = place();
    let mut out = place.subscriber("out");
    let mut publisher = place.publisher("in");
    let program = |message: &Incoming<'_>, out: &mut Outgoing| {
        assert_ne!(
            message.payload, b"bad",
            "this is to be seen in the output of the test"
        );
        out.pass();
        Ok(())
    };
    let route = Route::from_topics("r", &place.bus, &["in"])
        .unwrap()
        .to("out");
    let broker = Broker::start(vec![route.program(program).dead_letters("dead")]).unwrap();
    broker.wait_until_running();
    publisher.send_batch(["bad", "good"]).unwrap();
    assert_eq!(next(&mut out), "good");
    place.letter("dead").ack().unwrap();
    assert_eq!(state(&broker, "r"), "running");
}

#[test]
fn what_is_too_long_for_the_target_has_room_among_the_dead() {
    let place = place();
    place
        .bus
        .topic_builder("out")
        .capacity(4096)
        .open()
        .unwrap();
    let mut publisher = place.publisher("in");
    let _broker = place.run(&format!("{FORWARD}dead_letter='dead'"));
    publisher.send(&vec![b'x'; publisher.max_len()]).unwrap();
    // It is made with room enough.
    until(|| place.bus.topics().unwrap().contains(&String::from("dead")));
    let letter = place.letter("dead");
    assert!(letter.len() > publisher.max_len());
}

#[test]
fn a_router_makes_so_many_topics_and_no_more() {
    let place = place();
    let mut publisher = place.publisher("in");
    // Small ones, for the test's sake.
    let bus = Bus::builder().capacity(4096).at(place.bus.path()).unwrap();
    let config = "[[route]]\nname='r'\nfrom='in'\nrouter='\"out/\\(.)\"'\ndead_letter='dead'\n";
    let config = Config::parse(config).unwrap();
    let broker = Broker::start(config.routes(&mut Buses::new(&bus)).unwrap()).unwrap();
    broker.wait_until_running();
    for n in 0..300 {
        publisher.send(n.to_string().as_bytes()).unwrap();
    }
    let letter = place.letter("dead");
    let reason = buslane::DeadLetter::parse(&letter)
        .unwrap()
        .reason
        .to_owned();
    assert!(reason.contains("makes no more"), "{reason}");
    assert_eq!(place.bus.topics_matching("out/*").unwrap().len(), 256);
}

#[test]
fn a_dead_letter_does_not_come_back_to_its_route() {
    let config = "[[route]]\nname='r'\nqueue='jobs'\nto='out'\ndead_letter='jobs'";
    let error = Config::parse(config).unwrap_err();
    assert!(error.why.contains("go round"), "{error}");
    let twice = "[[route]]\nname='r'\nfrom='in'\nto=['out', 'out']";
    assert!(
        Config::parse(twice)
            .unwrap_err()
            .why
            .contains("in two ways")
    );
    let place = place();
    let route = Route::from_queues("r", &place.bus, &["jobs"]).unwrap();
    let error = Broker::start(vec![route.to("out").dead_letters("jobs")]).unwrap_err();
    assert!(error.to_string().contains("go round"), "{error}");
}

#[test]
fn an_envelope_is_seen_as_a_whole() {
    let place = place();
    let mut out = place.subscriber("out");
    let mut publisher = place.publisher("in");
    let _broker = place.run(&format!(
        "{FORWARD}payload='$envelope | {{sender, kind, topic}}'"
    ));
    let envelope = Envelope::new(Kind::Command).sent_by("shop");
    publisher.send_with(&envelope, b"1").unwrap();
    assert_eq!(
        next(&mut out),
        r#"{"sender":"shop","kind":"command","topic":"in"}"#
    );
}
