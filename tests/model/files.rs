//! What is so only of lanes in data files: a table of claims that is shorter than the lane, and holes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use buslane::shm::claims::{Claims, Walk};
use buslane::shm::lane;
use buslane::shm::layout::{Claim, Line, SLOT, Word};
use buslane::shm::park;
use buslane::shm::sync::AtomicU64;
use buslane::shm::{Ring, View};

use super::{CAPACITY, SMALL, Sender, Topic, model, spawn};

/// Frames of 8 bytes and a checksum take two slots.
const FRAME: u64 = 2 * SLOT;

/// The next message of a walk, claimed.
fn take(walk: &mut Walk, consumer: u64) -> Option<Claim> {
    let offer = walk.find().unwrap()?;
    walk.take(offer, consumer)
}

/// A consumer finds a message whose place in the table is still that of an older one: it sleeps until that is acknowledged, and
/// is woken then.
#[test]
fn a_message_waits_for_the_place_of_its_claim() {
    third_waits_for_first(2, u64::MAX);
}

/// The same of a message that is so far behind the head that it has no address.
#[test]
fn a_message_waits_for_its_file_to_be_in_reach() {
    third_waits_for_first(4, 2 * FRAME);
}

/// The claims on a lane of three messages.
fn claims_on(topic: &Topic, claims: usize, beyond: u64) -> Claims {
    let words = (0..16).map(|i| match i % 4 {
        0 if i < 12 => Word::message(8, i / 4).with_checksum().0,
        _ => 0,
    });
    let claims = Claims {
        lane: topic.lanes[0].header.clone(),
        ring: Ring::checked(words, beyond),
        slots: topic.cursors[0].slots.clone(),
        again: View::new(Line::default()),
        blocked: View::new(Line::default()),
        table: View::all((0..claims).map(|_| AtomicU64::new(0)).collect()),
        fences: false,
    };
    buslane::shm::claims::begin_from_start(claims.slot(), 1);
    claims
}

fn third_waits_for_first(claims: usize, beyond: u64) {
    model(3, move || {
        let topic = Topic::new(1, 1, CAPACITY);
        let claims = claims_on(&topic, claims, beyond);
        let mut one = Walk::new(claims.clone());
        let first = take(&mut one, 1).unwrap();
        let second = take(&mut one, 1).unwrap();
        assert!(claims.ack(second));
        let waits = spawn({
            let (topic, claims) = (Arc::clone(&topic), claims.clone());
            move || {
                let mut walk = Walk::new(claims);
                loop {
                    // What it said when it looked before was taken back by an acknowledgement that did not move the head.
                    let header = &topic.cursors[0].header;
                    let Ok(()) = park::park(&topic.control, header, Duration::MAX, || {
                        Ok::<_, Infallible>(walk.find().unwrap().is_some())
                    });
                    if let Some(claim) = take(&mut walk, 2) {
                        return claim;
                    }
                }
            }
        });
        assert!(claims.ack(first));
        claims.advance();
        claims.tell_blocked(&topic.control);
        assert_eq!(waits.join().unwrap().sequence(), 2);
        assert_eq!(claims.head(), 2 * FRAME);
    });
}

/// Who takes only some kinds passes the first message, and does not come to the third, whose claim would be in its place, before
/// somebody else has taken the first.
#[test]
fn what_was_passed_unclaimed_is_not_overtaken() {
    model(3, || {
        let topic = Topic::new(1, 1, CAPACITY);
        let claims = claims_on(&topic, 2, u64::MAX);
        let mut choosy = Walk::new(claims.clone());
        let first = choosy.find().unwrap().unwrap();
        choosy.pass(first.found);
        let second = take(&mut choosy, 1).unwrap();
        assert!(claims.ack(second));
        let takes = spawn({
            let claims = claims.clone();
            move || {
                let first = take(&mut Walk::new(claims.clone()), 2).unwrap();
                assert_eq!(first.sequence(), 0);
                assert!(claims.ack(first));
                claims.advance();
            }
        });
        if let Some(third) = take(&mut choosy, 1) {
            assert_eq!(third.sequence(), 2);
            assert!(claims.head() >= FRAME);
        }
        takes.join().unwrap();
    });
}

/// Where a frame is, or is yet to be, there is no hole.
#[test]
fn a_frame_is_no_hole() {
    model(3, || {
        let topic = Topic::new(1, 0, CAPACITY);
        let mut sender = Sender::create(&topic, 0);
        sender.enter();
        let reader = spawn({
            let topic = Arc::clone(&topic);
            move || {
                let file = &topic.lanes[0];
                for position in [0, SLOT] {
                    assert!(
                        !lane::is_hole(&file.header, &file.ring.unwatched(), position).unwrap()
                    );
                }
            }
        });
        for _ in 0..3 {
            sender.send(SMALL);
        }
        reader.join().unwrap();
    });
}
