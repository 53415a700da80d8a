//! What clients and servers may do to each other, and to who shares a service with them.

mod common;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use buslane::{CallOptions, Client, ErrorKind, Kind, Message, Pending, Server};
use common::{PATIENCE, Private, private};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Does what may hang if it is wrong.
fn in_time<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (told, done) = mpsc::channel();
    thread::spawn(move || told.send(what()));
    done.recv_timeout(PATIENCE).expect("it ends, and well")
}

mod child {
    use super::common::{role, say};
    use buslane::Bus;

    /// Asks for several replies, takes one, and reads no more.
    #[test]
    fn reading_once() {
        let Some((path, _)) = role() else { return };
        let service = Bus::at(path).unwrap().service("s").unwrap();
        let client = service.client_builder().inbox(4096).open().unwrap();
        let mut replies = client.stream(b"?").unwrap();
        say("asked");
        drop(replies.recv().unwrap());
        loop {
            nix::unistd::pause();
        }
    }
}

/// A client that waits for a server.
fn patient(private: &Private) -> Client {
    let service = private.bus().service("s").unwrap();
    let builder = service.client_builder();
    let patient = CallOptions::new().wait_for_server();
    builder.options(patient).open().unwrap()
}

/// Has another service reply to the request that a client makes next, with the number 0, which no request has.
fn misdirect(private: &Private, client: &Client) -> Pending {
    let bus = private.bus();
    let mut taking = bus.queue("s").unwrap().consumer().unwrap();
    let other = bus.service("other").unwrap();
    let mut server = other.server().unwrap();
    let pending = client.start(b"?").unwrap();
    let delivery = taking.recv().unwrap();
    let envelope = delivery.envelope().unwrap().correlated(0);
    delivery.ack().unwrap();
    let mut passing_on = bus.queue("other").unwrap().producer().unwrap();
    passing_on.push_with(&envelope, b"?").unwrap();
    server.recv().unwrap().reply(b"of nobody").unwrap();
    pending
}

#[test]
fn a_reply_to_nobody_is_given_to_nobody() {
    let private = private();
    let client = patient(&private);
    let mut first = misdirect(&private, &client);
    assert_eq!(first.try_wait().unwrap(), None);
    // One of them has the place that a request with that number would have.
    for _ in 0..200 {
        let mut later = client.start(b"?").unwrap();
        assert_eq!(later.try_wait().unwrap(), None);
    }
}

#[test]
fn a_reply_to_nobody_keeps_no_task_waiting() {
    let private = private();
    let client = patient(&private);
    let mut before = client.start(b"?").unwrap();
    let mut context = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut before).poll(&mut context).is_pending());
    let misdirected = misdirect(&private, &client);
    in_time(move || {
        drop((before, misdirected));
        drop(client.start(b"?").unwrap());
    });
}

#[tokio::test]
async fn a_task_that_streams_learns_of_its_clients_death() {
    let private = private();
    let mut server = private.bus().service("s").unwrap().server().unwrap();
    let mut client = private.child("reading_once", "");
    assert_eq!(client.hear(), "asked");
    let mut replies = server.recv_async().await.unwrap().stream().unwrap();
    // More than there is room for, and what is read.
    let (told, is_full) = mpsc::channel();
    let killing = thread::spawn(move || {
        is_full.recv().unwrap();
        client.kill();
    });
    let mut sent = 0;
    let error = loop {
        let sending = replies.send_async(&[7; 1000]);
        match tokio::time::timeout(PATIENCE, sending)
            .await
            .expect("it ends")
        {
            Ok(()) => sent += 1,
            Err(e) => break e,
        }
        if sent == 3 {
            told.send(()).unwrap();
        }
    };
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    killing.join().unwrap();
}

/// The first server is slow; the other has nothing to say, and is not taken for the end of what the first has said.
#[test]
fn the_end_of_another_servers_replies_is_no_end_of_these() {
    let private = private();
    let service = private.bus().service("s").unwrap();
    let queue = private.bus().queue("s").unwrap();
    let lease = Duration::from_millis(20);
    drop(queue.consumer_builder().lease(lease).open().unwrap());
    let (mut slow, mut other) = (service.server().unwrap(), service.server().unwrap());
    let client = service.client().unwrap();
    let mut replies = client.stream(b"?").unwrap();
    let mut first = slow.recv().unwrap().stream().unwrap();
    first.send(b"one of many").unwrap();
    assert_eq!(&*replies.recv().unwrap().unwrap().unwrap(), b"one of many");
    other.recv().unwrap().stream().unwrap().finish().unwrap();
    let end = replies.recv().map(drop).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ServerDied);
}

#[test]
fn filling_a_reply_may_look_at_another_request() {
    let private = private();
    let service = private.bus().service("s").unwrap();
    let mut server = service.server().unwrap();
    let client = service.client().unwrap();
    let pending = [client.start(b"?").unwrap(), client.start(b"?").unwrap()];
    let (one, two) = (server.recv().unwrap(), server.recv().unwrap());
    in_time(move || {
        let fill = |bytes: &mut [u8]| bytes[0] = u8::from(two.is_cancelled());
        one.reply_filled(1, fill).unwrap();
    });
    drop(pending);
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
struct Number(u64);

impl Message for Number {
    const NAME: &'static str = "test.Number";
}

/// The record says that four bytes of an envelope stand before the payload.
#[test]
fn a_record_that_is_not_aligned_is_no_panic() {
    let private = private();
    let bus = private.bus();
    let service = bus.typed_service::<Number, Number>("s").unwrap();
    let mut record = [0_u64, 1, 99, 0, 99, 0, 0, 4].as_bytes().to_vec();
    record.extend([0; 12]);
    let retries = bus.queue("s.default.retry").unwrap();
    retries.producer().unwrap().push(&record).unwrap();
    let mut server = service.server().unwrap();
    // It becomes a dead letter.
    let mut dead = bus.queue("s.dead").unwrap().consumer().unwrap();
    for _ in 0..1000 {
        assert!(server.try_recv().unwrap().is_none());
        if dead.try_recv().unwrap().is_some() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("it is nowhere");
}

/// A task that holds another request of the same client.
struct Task(#[allow(dead_code)] Mutex<Option<Pending>>);

impl Wake for Task {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn a_task_may_take_another_request_along() {
    let private = private();
    let service = private.bus().service("s").unwrap();
    let _server = service.server().unwrap();
    in_time(move || {
        let client = service.client().unwrap();
        let (mut one, two) = (client.start(b"1").unwrap(), client.start(b"2").unwrap());
        let task = Waker::from(Arc::new(Task(Mutex::new(Some(two)))));
        let mut context = Context::from_waker(&task);
        assert!(Pin::new(&mut one).poll(&mut context).is_pending());
        drop(task);
        drop(one);
    });
}

/// A request has the place in the client's table that one had before it which was never answered.
#[test]
fn an_end_is_not_inherited() {
    let private = private();
    let bus = private.bus();
    let service = bus.service_builder("s").capacity(4096).open().unwrap();
    let server = service.server_builder().patience(Duration::ZERO);
    let mut server = server.open().unwrap();
    let client = service.client_builder().inbox(4096).open().unwrap();
    let ask = |server: &mut Server| {
        let mut pending = client.start(b"?").unwrap();
        assert_eq!(pending.try_wait().unwrap(), None);
        server.recv().unwrap().reply(b"!").unwrap();
        pending.wait().unwrap().unwrap();
    };
    for _ in 0..64 {
        ask(&mut server);
    }
    // The first of four ends unanswered, as the others fill the inbox before.
    let mut pending: Vec<_> = (0..4).map(|_| client.start(b"?").unwrap()).collect();
    let mut held: Vec<_> = (0..4).map(|_| server.recv().unwrap()).collect();
    while let Some(request) = held.pop() {
        let _ = request.reply(&[0; 1000]);
    }
    let first = pending.remove(0).wait().unwrap_err();
    assert_eq!(first.kind(), ErrorKind::Full);
    drop(pending);
    for _ in 0..300 {
        ask(&mut server);
    }
}

/// What is done with is nobody's: also where the claim of nobody stands, that of a message which nobody has had yet.
#[test]
fn a_sink_that_has_failed_ends_nothing_else() {
    let private = private();
    let service = private.bus().service("s").unwrap();
    let server = service.server_builder().kinds(&[Kind::Document]);
    let mut server = server.open().unwrap();
    let client = service.client_builder().inbox(4096).open().unwrap();
    let patient = CallOptions::new().wait_for_server();
    let _first = client.start_with(&patient, b"a command").unwrap();
    let document = CallOptions::new().kind(Kind::Document);
    let _second = client.start_with(&document, b"a document").unwrap();
    let mut sink = server.recv().unwrap().stream().unwrap();
    let too_long = sink.send(&[0; 4000]).unwrap_err();
    assert_eq!(too_long.kind(), ErrorKind::TooLong);
    for _ in 0..2 {
        assert_eq!(sink.send(b"?").unwrap_err().kind(), ErrorKind::Cancelled);
    }
    drop(sink);
    let mut other = service.server().unwrap();
    let command = other.recv_timeout(PATIENCE).unwrap();
    assert_eq!(&*command.expect("it is still there"), b"a command");
}
