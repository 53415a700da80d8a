//! A request as its sender sees it: withdrawn, cancelled, answered, and given to another server when one dies.

use std::sync::Arc;

use buslane::shm::claims::Progress;
use buslane::shm::layout::{Claim, Fate};
use buslane::shm::roster;
use loom::cell::UnsafeCell;
use loom::thread;

use super::queue::{Consumer, Queue};
use super::{SMALL, model, model_of, spawn};

/// What a server has replied, in the place of an inbox: plain memory, which its client reads when the claim says that there
/// will be nothing else. Loom reports it if the two are not ordered.
type Inbox = Arc<UnsafeCell<()>>;

fn reply(inbox: &Inbox) {
    inbox.with_mut(|_| ());
}

fn read(inbox: &Inbox) {
    inbox.with(|_| ());
}

/// Whoever is first has it: its sender, and then no server sees it, or a server, and then it is told.
#[test]
fn request_is_withdrawn_or_claimed() {
    model(3, || {
        let (queue, mut sender) = Queue::new(1);
        sender.send(SMALL);
        let mut server = queue.consumer(1);
        let serving = spawn(move || {
            let claim = server.take();
            assert!(claim.is_none_or(|claim| server.finish(claim)));
            claim.is_some()
        });
        let withdrawn = queue.claims.withdraw(0);
        assert!(withdrawn.is_none_or(|attempts| attempts == 0));
        assert!(serving.join().unwrap() != withdrawn.is_some());
        assert_eq!(
            queue.claims.head(),
            sender.lane.visible(),
            "the head stays behind"
        );
    });
}

/// A request that is cancelled while a server has it is not overwritten, and its place is free when the server is done.
#[test]
fn request_is_cancelled_under_a_server() {
    model(2, || {
        let (queue, mut sender) = Queue::new(1);
        sender.send(SMALL);
        let mut server = queue.consumer(1);
        let serving = spawn(move || {
            if let Some(claim) = server.take() {
                let was_wanted = server.claims.holds(claim);
                assert!(server.finish(claim) || !was_wanted);
            }
        });
        queue.claims.cancel(0, &queue.topic.control);
        for _ in 0..4 {
            sender.try_send(SMALL);
        }
        serving.join().unwrap();
        for _ in 0..2 {
            queue.claims.cancel(0, &queue.topic.control);
        }
        assert!(queue.claims.head() > 0, "the head stays behind");
    });
}

/// A server that ends a request in any way has replied before: who sees the end sees the reply.
#[test]
fn request_is_answered_before_it_is_ended() {
    for fate in [Fate::Acked, Fate::Died, Fate::Unanswered] {
        model(3, move || {
            let (queue, mut sender) = Queue::new(1);
            sender.send(SMALL);
            let mut server = queue.consumer(1);
            let inbox = Inbox::default();
            let serving = spawn({
                let inbox = Arc::clone(&inbox);
                move || {
                    let claim = server.take().unwrap();
                    reply(&inbox);
                    assert!(server.claims.end(claim, fate));
                    server.claims.advance();
                }
            });
            match queue.claims.progress(0) {
                Progress::Waits { attempts } => assert_eq!(attempts, 0),
                Progress::Goes => {}
                Progress::Died | Progress::Unanswered => read(&inbox),
            }
            serving.join().unwrap();
            assert_eq!(
                queue.claims.progress(0) == Progress::Died,
                fate == Fate::Died
            );
            assert_eq!(queue.claims.head(), sender.lane.visible());
        });
    }
}

/// A client that sees one more end finds it.
#[test]
fn request_is_told_to_have_ended_when_it_has() {
    model(3, || {
        let (queue, mut sender) = Queue::new(1);
        sender.send(SMALL);
        let mut server = queue.consumer(1);
        let topic = Arc::clone(&queue.topic);
        let serving = spawn(move || {
            let claim = server.take().unwrap();
            assert!(server.claims.end(claim, Fate::Unanswered));
            roster::ended(&topic.control);
        });
        if roster::endings(&queue.topic.control) > 0 {
            assert_eq!(queue.claims.progress(0), Progress::Unanswered);
        }
        serving.join().unwrap();
    });
}

/// How far a server comes with a request before it dies: claimed, said *once*, replied, acknowledged.
fn serve_until(server: &mut Consumer, inbox: &Inbox, is_once: bool, steps: u32) {
    let Some(claim) = server.take().filter(|_| steps > 0) else {
        return;
    };
    let claim = match is_once {
        true => server.claims.begin_once(claim),
        false => Some(claim),
    };
    let Some(claim) = claim else { return };
    if steps > 1 {
        reply(inbox);
    }
    if steps > 2 {
        server.claims.ack(claim);
    }
    if steps > 3 {
        server.claims.advance();
    }
}

/// A server dies at any step, while its client cancels: nobody hangs, and the lane goes on. At most once, no other server
/// gets what one has been shown; at least once, another gets it, unless it was acknowledged or cancelled.
#[test]
fn request_survives_its_server() {
    for (is_once, steps) in (0..=4).flat_map(|steps| [(false, steps), (true, steps)]) {
        model_of(2, 2, move || {
            let (queue, mut sender) = Queue::new(2);
            sender.send(SMALL);
            let (mut dying, mut heir) = (queue.consumer(1), queue.consumer(2));
            let (first, second) = (Inbox::default(), Inbox::default());
            let serving = spawn({
                let first = Arc::clone(&first);
                move || {
                    serve_until(&mut dying, &first, is_once, steps);
                    dying
                }
            });
            let cancelled = steps % 2 == 0;
            if cancelled {
                queue.claims.cancel(0, &queue.topic.control);
            }
            let dead = serving.join().unwrap();
            queue.claims.put_away(dead.id(), &queue.topic.control);
            let again = heir.take();
            if let Some(claim) = again {
                assert!(!cancelled, "it was cancelled");
                assert!(!(is_once && steps > 0), "it was shown before");
                assert!(steps <= 2, "it was acknowledged");
                reply(&second);
                assert!(heir.finish(claim));
            } else if !cancelled {
                let done = queue.claims.progress(0);
                assert!(steps > 2 || (is_once && done == Progress::Died));
            }
            assert_eq!(
                queue.claims.head(),
                sender.lane.visible(),
                "the head stays behind"
            );
        });
    }
}

/// The client gives up, and so does who puts its server away, both at once.
#[test]
fn request_is_cancelled_and_put_away() {
    for is_once in [false, true] {
        model(3, move || {
            let (queue, mut sender) = Queue::new(1);
            sender.send(SMALL);
            let mut server = queue.consumer(1);
            let claim: Claim = server.take().unwrap();
            if is_once {
                server.claims.begin_once(claim).unwrap();
            }
            let (claims, topic) = (queue.claims.clone(), Arc::clone(&queue.topic));
            let sweeping = spawn(move || claims.put_away(server.id(), &topic.control));
            queue.claims.cancel(0, &queue.topic.control);
            sweeping.join().unwrap();
            thread::yield_now();
            assert_eq!(
                queue.claims.head(),
                sender.lane.visible(),
                "the head stays behind"
            );
        });
    }
}
