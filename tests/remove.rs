//! Removing topics and buses: not from under those who use them.
#![allow(missing_docs)]

mod common;

use buslane::{Bus, Envelope, Error, ErrorKind, Kind};
use common::private;

#[test]
fn a_topic_goes_with_all_that_it_holds() {
    let private = private();
    let bus = private.bus();
    drop(bus.topic("a").unwrap().publisher().unwrap());
    bus.topic("b/c").unwrap();
    bus.remove_topic("a", false).unwrap();
    assert_eq!(bus.topics().unwrap(), ["b/c"]);
    assert_eq!(private.names("topics"), ["b%2Fc"]);
    let error = bus.remove_topic("a", false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_topic_in_use_stays_unless_it_is_forced() {
    let private = private();
    let bus = private.bus();
    let topic = bus.topic("t").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let error = bus.remove_topic("t", false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    let mut publisher = topic.publisher().unwrap();
    bus.remove_topic("t", true).unwrap();
    assert!(bus.topics().unwrap().is_empty());

    // They never meet who comes later, and are told.
    let mut later = bus.topic("t").unwrap().subscriber().unwrap();
    let error = subscriber.recv().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = (0..100_000).find_map(|_| publisher.send(b"old").err());
    assert_eq!(error.unwrap().kind(), ErrorKind::NotFound);
    drop((publisher, subscriber));
    assert!(later.try_recv().unwrap().is_none());
}

/// Also those who wait for nobody.
#[test]
fn who_sends_is_told_that_the_topic_was_removed() {
    let private = private();
    let bus = private.bus();
    let told = |mut send: Box<dyn FnMut() -> Result<(), Error>>| {
        let error = (0..100_000).find_map(|_| send().err());
        assert_eq!(error.expect("an error").kind(), ErrorKind::NotFound);
        assert_eq!(send().unwrap_err().kind(), ErrorKind::NotFound);
    };
    let lossy = bus.topic_builder("t").lossy(true).open().unwrap();
    let (mut one, mut two) = (lossy.publisher().unwrap(), lossy.publisher().unwrap());
    let mut writer = bus.state("s").unwrap().writer().unwrap();
    one.send(b"first").unwrap();
    bus.remove_topic("t", true).unwrap();
    bus.remove_topic("s", true).unwrap();
    told(Box::new(move || one.send(b"more")));
    told(Box::new(move || {
        let mut loan = two.loan(100)?;
        loan.fill(1);
        loan.commit();
        Ok(())
    }));
    told(Box::new(move || writer.set(b"key", b"value")));

    let dir = tempfile::tempdir().unwrap();
    let durable = Bus::builder().durable(true).capacity(4096);
    let durable = durable.at(dir.path().join("bus")).unwrap();
    let topic = durable.topic("t").unwrap();
    let (mut one, mut two) = (topic.publisher().unwrap(), topic.publisher().unwrap());
    durable.remove_topic("t", true).unwrap();
    told(Box::new(move || one.send(b"more")));
    told(Box::new(move || {
        two.send_with(&Envelope::new(Kind::Event), &[1; 100])
    }));
}

#[test]
fn a_dead_user_does_not_count() {
    let private = private();
    let mut child = private.child("holds", "");
    assert_eq!(child.hear(), "holds");
    let bus = private.bus();
    let error = bus.remove_topic("t", false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    child.kill();
    bus.remove_topic("t", false).unwrap();
}

#[test]
fn what_a_dead_remover_had_put_aside_is_finished() {
    let private = private();
    let bus = private.bus();
    bus.topic("t").unwrap();
    let topics = private.path.join("topics");
    std::fs::rename(topics.join("t"), topics.join(".draft.00000000000000ff")).unwrap();
    assert!(bus.topics().unwrap().is_empty());
    private.bus();
    assert!(private.names("topics").is_empty());
}

/// It may be about to give it back its name.
#[test]
fn what_a_living_remover_has_put_aside_is_left() {
    let private = private();
    let bus = private.bus();
    bus.topic("t").unwrap();
    let [remover] = &private.names("members")[..] else {
        panic!("there is one member");
    };
    let (topics, aside) = (
        private.path.join("topics"),
        format!(".draft.00000000000000ff.{remover}"),
    );
    std::fs::rename(topics.join("t"), topics.join(&aside)).unwrap();
    private.bus();
    assert_eq!(private.names("topics"), std::slice::from_ref(&aside));
    std::fs::rename(topics.join(&aside), topics.join("t")).unwrap();
    bus.topic("t")
        .unwrap()
        .publisher()
        .unwrap()
        .send(b"")
        .unwrap();
    std::fs::rename(topics.join("t"), topics.join(&aside)).unwrap();
    drop(bus);
    private.bus();
    assert!(private.names("topics").is_empty());
}

#[test]
fn a_bus_is_removed_by_its_last_user() {
    let private = private();
    let (first, second) = (private.bus(), private.bus());
    first.topic("t").unwrap();
    assert_eq!(first.members().unwrap().len(), 2);
    let error = first.remove(false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(private.path.exists());
    second.remove(false).unwrap();
    assert!(common::names(private.path.parent().unwrap()).is_empty());
    // Its name is free.
    private.bus().remove(true).unwrap();
}

#[test]
fn the_dead_can_be_looked_at_before_they_are_put_away() {
    let private = private();
    let mut child = private.child("holds", "");
    child.hear();
    child.kill();
    let bus = Bus::builder().reclaim(false).at(&private.path).unwrap();
    let alive: Vec<bool> = bus.members().unwrap().iter().map(|m| m.alive).collect();
    assert_eq!(alive.iter().filter(|&&alive| !alive).count(), 1);
    assert_eq!(bus.reclaim().unwrap().members, 1);
    assert!(bus.members().unwrap().iter().all(|owner| owner.alive));
}

#[test]
fn who_sleeps_on_a_topic_that_is_removed_is_told() {
    let private = private();
    let bus = private.bus();
    let mut subscriber = bus.topic("t").unwrap().subscriber().unwrap();
    let sleeper = std::thread::spawn(move || subscriber.recv().map(drop).unwrap_err().kind());
    while !bus.inspect("t").unwrap().cursors[0].sleeping {
        std::thread::yield_now();
    }
    bus.remove_topic("t", true).unwrap();
    assert_eq!(sleeper.join().unwrap(), ErrorKind::NotFound);
}

mod child {
    use super::common::{role, say};
    use buslane::Bus;

    #[test]
    fn holds() {
        let Some((path, _)) = role() else {
            return;
        };
        let topic = Bus::at(path).unwrap().topic("t").unwrap();
        let _held = (topic.publisher().unwrap(), topic.subscriber().unwrap());
        say("holds");
        loop {
            std::thread::park();
        }
    }
}
