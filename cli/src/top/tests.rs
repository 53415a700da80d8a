//! The screen as it is drawn, of a real bus, without a terminal.

use std::path::Path;

use buslane::{Bus, Consumer, Delivery, Envelope, Kind, Producer, Publisher, Subscriber};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use tempfile::TempDir;

use super::screen::{Next, Screen};
use super::watch::Watch;

/// A bus, and what stands on a terminal of some size.
struct Stage {
    dir: TempDir,
    bus: Bus,
    watch: Watch,
    screen: Screen,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let bus = Bus::at(dir.path().join("bus")).unwrap();
        let watch = Watch::new(bus.clone(), None).unwrap();
        let screen = Screen::new();
        Self {
            dir,
            bus,
            watch,
            screen,
        }
    }

    fn look(&mut self) {
        self.watch.look().unwrap();
    }

    /// The lines, without what is blank at their ends.
    fn shown(&mut self, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal
            .draw(|frame| self.screen.draw(frame, &self.watch))
            .unwrap();
        let cells = terminal.backend().buffer().content();
        cells
            .chunks(usize::from(width))
            .map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>())
            .map(|row| row.trim_end().to_owned())
            .collect()
    }

    fn press(&mut self, keys: &[KeyCode]) -> Next {
        let mut next = Next::Stay;
        for &key in keys {
            next = self
                .screen
                .key(KeyEvent::new(key, KeyModifiers::NONE), &self.watch);
        }
        next
    }

    fn type_in(&mut self, text: &str) {
        let keys: Vec<_> = text.chars().map(KeyCode::Char).collect();
        self.press(&keys);
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Somebody on each of the topics of a shop.
struct Shop {
    _orders: (Publisher, Subscriber),
    _ticks: (Publisher, Subscriber),
    _jobs: (Producer, Consumer, Delivery),
}

fn shop(bus: &Bus) -> Shop {
    let orders = bus.topic("orders/eu/new").unwrap();
    let orders = (orders.publisher().unwrap(), orders.subscriber().unwrap());
    let ticks = bus.topic_builder("ticks").lossy(true).capacity(4096);
    let ticks = ticks.open().unwrap();
    let mut ticks = (ticks.publisher().unwrap(), ticks.subscriber().unwrap());
    let jobs = bus.queue("jobs").unwrap();
    let mut producer = jobs.producer().unwrap();
    let mut consumer = jobs.consumer().unwrap();
    for n in 0..1000_u64 {
        ticks.0.send(&n.to_le_bytes()).unwrap();
    }
    ticks.1.try_recv().unwrap_err();
    let stamped = Envelope::new(Kind::Command).sent_now();
    for job in ["pack", "send", "bill"] {
        producer.push_with(&stamped, job.as_bytes()).unwrap();
    }
    let held = consumer.recv().unwrap();
    Shop {
        _orders: orders,
        _ticks: ticks,
        _jobs: (producer, consumer, held),
    }
}

#[track_caller]
fn assert_shows(shown: &[String], wanted: &[&str]) {
    for (shown, wanted) in shown.iter().zip(wanted) {
        assert!(shown.starts_with(wanted), "{shown:?}\n{wanted:?}");
    }
}

#[test]
fn at_80_by_24() {
    let mut stage = Stage::new();
    let _shop = shop(&stage.bus);
    stage.look();
    let shown = stage.shown(80, 24);
    let title = format!("{}/bus: 3 topics", stage.path().display());
    assert_eq!(shown[0], title);
    assert_shows(
        &shown[1..],
        &[
            "TOPIC               PUB  SUB MSG/S▼  BYTES/S   LAG  LOST  SLEEP  UNACK    P99",
            "jobs                  1    1      -        -     -     -      -      3",
            "orders/eu/new         1    1      -        -     -     -      -      -      -",
            "ticks                 1    1      -        -   250   750      -      -      -",
        ],
    );
    assert!(shown[5..23].iter().all(String::is_empty), "{shown:#?}");
    assert!(shown[23].contains("? help"), "{shown:#?}");
}

#[test]
fn at_200_by_60_with_the_chosen_one_below() {
    let mut stage = Stage::new();
    let _shop = shop(&stage.bus);
    stage.look();
    stage.press(&[KeyCode::Down, KeyCode::Down]);
    let shown = stage.shown(200, 60);
    assert_shows(
        &shown[1..],
        &[
            "TOPIC               PATTERN   TYPE               PUB   SUB  MSG/S▼   BYTES/S    LAG   LOST   SLEEP   WAIT   UNACK     P50     P99",
            "jobs                queue     bytes                1     1       -         -      -      -       -      -       3",
            "orders/eu/new       lossless  bytes                1     1       -         -      -      -       -      -       -       -       -",
            "ticks               lossy     bytes                1     1       -         -    250    750       -      -       -       -       -",
            "",
            "── ticks ───",
            "lossy of bytes, 4.0 KiB a lane; publishers 1, subscribers 1",
            "- msg/s, -/s; lag 250, lost 750; so far 1.0k messages, 7.8 KiB",
            "",
            "LANE  OWNER",
        ],
    );
    assert!(shown[7].ends_with("LATENCY"), "{shown:#?}");
    assert!(shown[59].contains("? help"), "{shown:#?}");
}

#[test]
fn an_open_topic() {
    let mut stage = Stage::new();
    let shop = shop(&stage.bus);
    stage.look();
    stage.look();
    stage.press(&[KeyCode::Enter]);
    let shown = stage.shown(80, 24).join("\n");
    let us = std::process::id();
    for wanted in [
        "jobs\nqueue of bytes, 4.0 MiB a lane; publishers 1, subscribers 1\n0 msg/s",
        "\nGROUP    CONS  SLEEP  ACK/S  UNACK  OLDEST       WAITED  HELD BY\n\
         default  1     0      0      3      0 in lane 1",
        "consumer of default",
        "\nLATENCY\np50",
        "█",
        &us.to_string(),
    ] {
        assert!(shown.contains(wanted), "{shown}\n\n{wanted}");
    }
    // The rest of it.
    stage.press(&[KeyCode::End]);
    let scrolled = stage.shown(80, 24).join("\n");
    assert!(scrolled.contains("≥ 10s"), "{scrolled}");
    stage.press(&[KeyCode::Home]);
    assert!(stage.shown(80, 24).join("\n").contains("queue of bytes"));

    drop(shop);
    stage.bus.remove_topic("jobs", false).unwrap();
    stage.look();
    assert!(stage.shown(80, 24)[1].contains("was removed"));
    assert_eq!(stage.press(&[KeyCode::Esc]), Next::Stay);
    assert!(stage.shown(80, 24)[0].ends_with("bus: 2 topics"));
    assert_eq!(stage.press(&[KeyCode::Esc]), Next::Leave);
}

#[test]
fn no_topics_and_many() {
    let mut stage = Stage::new();
    stage.look();
    assert!(stage.shown(80, 24)[1].starts_with("No topics: `buslane send"));
    for n in 0..500 {
        stage.bus.topic(&format!("fleet/truck-{n:03}")).unwrap();
    }
    stage.look();
    let shown = stage.shown(80, 24);
    assert!(shown[0].ends_with("bus: 500 topics"), "{shown:#?}");
    assert!(shown[2].starts_with("fleet/truck-000 "), "{shown:#?}");
    stage.press(&[KeyCode::PageDown]);
    assert!(stage.shown(80, 24)[22].starts_with("fleet/truck-021 "));
    stage.press(&[KeyCode::End]);
    assert!(stage.shown(80, 24)[22].starts_with("fleet/truck-499 "));
    assert!(stage.shown(200, 60)[29].starts_with("fleet/truck-499 "));
    stage.press(&[KeyCode::Home, KeyCode::Up, KeyCode::Enter]);
    assert_eq!(stage.shown(80, 24)[0], "fleet/truck-000");
}

#[test]
fn a_filter() {
    let mut stage = Stage::new();
    for name in ["orders/eu/new", "orders/eu", "orders/us", "Ticks"] {
        stage.bus.topic(name).unwrap();
    }
    stage.look();
    let mut shown_by = |filter: &str| {
        stage.press(&[KeyCode::Char('/'), KeyCode::Esc, KeyCode::Char('/')]);
        stage.type_in(filter);
        assert!(stage.shown(80, 24)[23].starts_with(&format!("filter: {filter}")));
        stage.press(&[KeyCode::Enter]);
        let shown = stage.shown(80, 24);
        let names = shown[2..22].iter().filter(|row| !row.is_empty());
        let names = names.map(|row| row.split(' ').next().unwrap().to_owned());
        (names.collect::<Vec<_>>(), shown)
    };
    assert_eq!(shown_by("tick").0, ["Ticks"]);
    assert_eq!(shown_by("EU").0, ["orders/eu", "orders/eu/new"]);
    assert_eq!(shown_by("orders/*").0, ["orders/eu", "orders/us"]);
    assert_eq!(shown_by("orders/**").0.len(), 3);
    assert_eq!(shown_by("q").1[1], "No topic matches q.");
    assert!(shown_by("or*").1[1].contains("or*"));
    assert_eq!(shown_by("").0.len(), 4);
}

#[test]
fn the_order_of_the_rows() {
    let mut stage = Stage::new();
    let bus = stage.bus.clone();
    let topics = [("a", 1), ("b", 3), ("c", 2)].map(|(name, subscribers)| {
        let topic = bus.topic(name).unwrap();
        [(); 3]
            .map(|()| topic.subscriber().unwrap())
            .into_iter()
            .take(subscribers)
            .collect::<Vec<_>>()
    });
    stage.look();
    let order = |stage: &mut Stage| -> String {
        let shown = stage.shown(80, 24);
        shown[2..5].iter().map(|row| &row[..1]).collect()
    };
    assert_eq!(order(&mut stage), "abc");
    stage.press(&[KeyCode::Left]);
    assert!(stage.shown(80, 24)[1].contains(" SUB▼ "));
    assert_eq!(order(&mut stage), "bca");
    stage.press(&[KeyCode::Char('r')]);
    assert!(stage.shown(80, 24)[1].contains(" SUB▲ "));
    assert_eq!(order(&mut stage), "acb");
    stage.press(&[KeyCode::Left, KeyCode::Left, KeyCode::Left]);
    assert!(stage.shown(80, 24)[1].starts_with("TOPIC▲ "));
    stage.press(&[KeyCode::Char('r')]);
    assert_eq!(order(&mut stage), "cba");
    // The chosen one stays chosen.
    stage.press(&[KeyCode::Down, KeyCode::Right, KeyCode::Enter]);
    assert_eq!(stage.shown(80, 24)[0], "b");
    drop(topics);
}

#[test]
fn long_names_and_small_windows() {
    let mut stage = Stage::new();
    let name = format!("plants/{}/temperature", "x".repeat(100));
    stage.bus.topic(&name).unwrap();
    stage.look();
    let shown = stage.shown(80, 24);
    assert!(shown[2].starts_with("plants/xxx…emperature "), "{shown:#?}");
    assert!(
        shown[22].starts_with("plants/x") && shown[22].ends_with("/temperature"),
        "{shown:#?}"
    );
    for keys in [KeyCode::Enter, KeyCode::Char('?'), KeyCode::Esc] {
        for (width, height) in [(1, 1), (5, 2), (20, 3), (300, 2), (2, 100)] {
            stage.shown(width, height);
        }
        stage.press(&[keys]);
    }
    stage.press(&[KeyCode::Char('?')]);
    let help = stage.shown(80, 24);
    assert!(
        help[1..23]
            .iter()
            .any(|line| line.contains("than it really was.")),
        "{help:#?}"
    );
}

#[test]
fn what_cannot_be_read_is_told() {
    let mut stage = Stage::new();
    for name in ["good", "bad"] {
        stage.bus.topic(name).unwrap();
    }
    std::fs::write(stage.path().join("bus/topics/bad/topic"), "no topic").unwrap();
    stage.look();
    let shown = stage.shown(200, 24);
    assert!(shown[0].contains("1 topic; bad: cannot"), "{shown:#?}");
    assert!(shown[2].starts_with("good "), "{shown:#?}");
}

#[test]
fn rates_are_of_the_last_two_looks() {
    let mut stage = Stage::new();
    let topic = stage.bus.topic("t").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    stage.look();
    for _ in 0..1000 {
        publisher.send(b"message").unwrap();
        drop(subscriber.recv().unwrap());
    }
    assert!(subscriber.try_recv().unwrap().is_none());
    stage.look();
    let topic = &stage.watch.topics["t"];
    let (messages, bytes) = topic.rates().unwrap();
    assert!(messages > 0.0);
    assert!((bytes / messages - 7.0).abs() < 1e-9);
    let received = topic.cursor_rate(&topic.now.cursors[0]).unwrap();
    assert!(
        (received / messages - 1.0).abs() < 1e-9,
        "{received} {messages}"
    );
    let owner = &topic.now.owners()[0].owner;
    assert_eq!(topic.owner_rates(owner), Some((messages, received)));
    assert_eq!(topic.latency, None);
    stage.look();
    assert_eq!(stage.watch.topics["t"].rates(), Some((0.0, 0.0)));
}
