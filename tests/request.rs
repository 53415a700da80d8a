//! Request and reply: in one process, and between real ones that are killed.

mod common;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use buslane::{
    CallOptions, Client, Envelope, ErrorKind, Kind, Request, Server, Service, Subscriber,
};
use common::{PATIENCE, Process, private, role, say};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

fn service(private: &common::Private) -> Service {
    private.bus().service("s").unwrap()
}

fn next(server: &mut Server) -> Request {
    server.recv_timeout(PATIENCE).unwrap().expect("a request")
}

fn within(timeout: Duration) -> CallOptions {
    CallOptions::new().timeout(timeout)
}

/// A server in a thread that replies with what it was asked, in capitals, until it is asked to end.
fn echo(service: &Service) -> thread::JoinHandle<()> {
    // A client that gets no processor for a while is not one that does not read.
    let builder = service.server_builder().patience(PATIENCE);
    let mut server = builder.open().unwrap();
    thread::spawn(move || {
        loop {
            let request = next(&mut server);
            let reply = request.to_ascii_uppercase();
            request.reply(&reply).unwrap();
            if reply == b"END" {
                return;
            }
        }
    })
}

fn end(client: &Client, echo: thread::JoinHandle<()>) {
    client.start(b"end").unwrap().wait().unwrap().unwrap();
    echo.join().unwrap();
}

mod child {
    use super::common::{role, say};
    use buslane::Bus;
    use nix::unistd::pause;

    /// Answers as the argument says: `echo`, or takes one request and waits to be killed, `n` of them.
    #[test]
    fn serving() {
        let Some((path, how)) = role() else { return };
        let mut server = Bus::at(path)
            .unwrap()
            .service("s")
            .unwrap()
            .server()
            .unwrap();
        say("ready");
        let mut held = Vec::new();
        loop {
            let request = server.recv().unwrap();
            match how.as_str() {
                "echo" => {
                    let reply = request.to_ascii_uppercase();
                    let _ = request.reply(&reply);
                }
                "stream" => {
                    let mut replies = request.stream().unwrap();
                    replies.send(b"one").unwrap();
                    replies.send(b"two").unwrap();
                    say("sent");
                    loop {
                        pause();
                    }
                }
                _ => {
                    say(format!("holds {}", request.attempts()));
                    held.push(request);
                }
            }
        }
    }

    /// Asks, and waits to be killed.
    #[test]
    fn asking() {
        let Some((path, n)) = role() else { return };
        let service = Bus::at(path).unwrap().service("s").unwrap();
        let client = service.client().unwrap();
        let n: u32 = n.parse().unwrap();
        let _pending: Vec<_> = (0..n).map(|_| client.start(b"?").unwrap()).collect();
        say("asked");
        loop {
            pause();
        }
    }
}

// ------------------------------------------------------------------------------------------------------ one process

#[test]
fn a_call_is_answered_and_refused() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let serving = thread::spawn(move || {
        next(&mut server).reply(b"yes").unwrap();
        next(&mut server).refuse(7, "not today").unwrap();
        let request = next(&mut server);
        assert_eq!(request.message_kind(), Some(Kind::Command));
        assert!(request.wants_reply() && !request.is_cancelled());
        assert_eq!(&*request, b"in place");
        request
            .reply_filled(3, |room| room.copy_from_slice(b"too"))
            .unwrap();
    });
    let mut client = service.client().unwrap();
    let reply = client.call(b"?").unwrap().unwrap();
    assert_eq!(&*reply, b"yes");
    assert_eq!(reply.envelope().unwrap().kind(), Kind::Reply);
    drop(reply);
    let refusal = client.call(b"?").unwrap().unwrap_err();
    assert_eq!((refusal.code, &*refusal.message), (7, "not today"));
    assert!(refusal.to_string().contains("not today"));
    let reply = client.call_filled(8, |room| room.copy_from_slice(b"in place"));
    assert_eq!(reply.unwrap().unwrap().to_owned(), b"too");
    serving.join().unwrap();
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, PartialEq)]
#[repr(C)]
struct Sum(i64, i64);

impl buslane::Message for Sum {
    const NAME: &'static str = "test.Sum";
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, PartialEq)]
#[repr(C)]
struct Total(i64);

impl buslane::Message for Total {
    const NAME: &'static str = "test.Total";
}

#[test]
fn typed_values_go_both_ways() {
    let private = private();
    let service = private.bus().typed_service::<Sum, Total>("sums").unwrap();
    let mut server = service.server().unwrap();
    let serving = thread::spawn(move || {
        for _ in 0..3 {
            let request = server.recv().unwrap();
            let envelope = request.envelope().unwrap();
            assert_eq!(envelope.type_id(), Envelope::id_of_type("test.Sum"));
            let total = Total(request.0 + request.1);
            request.reply(&total).unwrap();
        }
    });
    let mut client = service.client().unwrap();
    assert_eq!(*client.call(&Sum(1, 2)).unwrap().unwrap(), Total(3));
    let (one, two) = (
        client.start(&Sum(3, 4)).unwrap(),
        client.start(&Sum(5, 6)).unwrap(),
    );
    assert_eq!(two.wait().unwrap().unwrap(), Total(11));
    assert_eq!(one.wait().unwrap().unwrap(), Total(7));
    serving.join().unwrap();
    // Bytes in the place of a type.
    let error = private.bus().service("sums").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
}

#[test]
fn a_server_that_means_another_reply_is_an_error_on_both_sides() {
    let private = private();
    let bus = private.bus();
    let mut server = bus
        .typed_service::<Sum, Sum>("sums")
        .unwrap()
        .server()
        .unwrap();
    let client = bus
        .typed_service::<Sum, Total>("sums")
        .unwrap()
        .client()
        .unwrap();
    let pending = client.start(&Sum(1, 2)).unwrap();
    let request = server.recv().unwrap();
    let error = request.reply(&Sum(0, 0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    let error = pending.wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.to_string().contains("test.Total"), "{error}");
    assert!(server.try_recv().unwrap().is_none());
}

#[test]
fn replies_in_any_order_reach_their_own_requests() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let client = service.client().unwrap();
    let mut pending: Vec<_> = (0..100_u32)
        .map(|n| (n, client.start(&n.to_le_bytes()).unwrap()))
        .collect();
    let mut requests: Vec<_> = (0..100).map(|_| next(&mut server)).collect();
    requests.reverse();
    let answered = thread::spawn(move || {
        for request in requests {
            let reply = request.to_vec();
            request.reply(&reply).unwrap();
        }
    });
    let middle = pending.split_off(50);
    for (n, pending) in middle.into_iter().chain(pending) {
        assert_eq!(pending.wait().unwrap().unwrap(), n.to_le_bytes());
    }
    answered.join().unwrap();
}

#[test]
fn many_threads_share_a_client() {
    let private = private();
    let service = service(&private);
    let echo = echo(&service);
    let client = Arc::new(service.client().unwrap());
    let threads: Vec<_> = (0..8)
        .map(|i| {
            let client = Arc::clone(&client);
            thread::spawn(move || {
                for n in 0..500 {
                    let request = format!("thread {i} request {n}");
                    let pending = client.start(request.as_bytes()).unwrap();
                    let reply = pending.wait().unwrap().unwrap();
                    assert_eq!(reply, request.to_ascii_uppercase().into_bytes());
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    end(&client, echo);
}

#[test]
fn without_a_server_it_is_an_error_at_once_or_at_the_deadline() {
    let private = private();
    let service = service(&private);
    let mut client = service.client().unwrap();
    assert_eq!(client.call(b"?").unwrap_err().kind(), ErrorKind::NoServer);
    let unknown = CallOptions::new().kind(Kind::Other(0));
    let error = client.call_with(&unknown, b"?").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoServer);
    let patient = within(Duration::from_millis(20)).wait_for_server();
    let error = client.call_with(&patient, b"?").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    // Who comes later does not get it.
    let mut server = service.server().unwrap();
    assert!(server.try_recv().unwrap().is_none());
    drop(server);
    // Who comes in time does.
    let later = service.clone();
    let serving = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        echo(&later).join().unwrap();
    });
    let patient = CallOptions::new().wait_for_server();
    let reply = client.call_with(&patient, b"end").unwrap().unwrap();
    assert_eq!(&*reply, b"END");
    serving.join().unwrap();
}

#[test]
fn the_last_server_that_leaves_is_noticed() {
    let private = private();
    let service = service(&private);
    let server = service.server().unwrap();
    let client = service.client().unwrap();
    let pending = client.start(b"?").unwrap();
    let leaving = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        drop(server);
    });
    assert_eq!(pending.wait().unwrap_err().kind(), ErrorKind::NoServer);
    leaving.join().unwrap();
    // Nobody gets it later.
    assert!(service.server().unwrap().try_recv().unwrap().is_none());
}

#[test]
fn a_server_does_not_get_what_is_late_and_sees_what_is_left() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let client = service.client().unwrap();
    let long = client.start_with(&within(PATIENCE), b"long").unwrap();
    let request = next(&mut server);
    let left = request.time_left().unwrap();
    assert!(left <= PATIENCE && left > PATIENCE / 2);
    request.reply(b"in time").unwrap();
    assert_eq!(long.wait().unwrap().unwrap(), b"in time");
    // Past its deadline before anyone has looked: by its own word, not by that of the client.
    let _late = client
        .start_with(&within(Duration::from_millis(1)), b"late")
        .unwrap();
    thread::sleep(Duration::from_millis(5));
    let timely = client.start(b"timely").unwrap();
    let request = next(&mut server);
    assert_eq!(&*request, b"timely");
    request.reply(b"!").unwrap();
    assert_eq!(timely.wait().unwrap().unwrap(), b"!");
}

#[test]
fn a_server_that_never_answers_is_an_error_at_the_deadline() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let mut client = service.client().unwrap();
    let holding = thread::spawn(move || {
        let request = next(&mut server);
        while !request.is_cancelled() {
            thread::yield_now();
        }
        let error = request.reply(b"too late").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        server
    });
    let error = client
        .call_with(&within(Duration::from_millis(20)), b"?")
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let mut server = holding.join().unwrap();
    // And the next ones are as if nothing had been.
    let serving = thread::spawn(move || next(&mut server).reply(b"now").unwrap());
    assert_eq!(&*client.call(b"?").unwrap().unwrap(), b"now");
    serving.join().unwrap();
}

#[test]
fn a_dropped_request_is_withdrawn_or_told() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let client = service.client().unwrap();
    drop(client.start(b"nobody has seen it").unwrap());
    assert!(server.try_recv().unwrap().is_none());
    let pending = client.start(b"somebody has").unwrap();
    let request = next(&mut server);
    assert!(!request.is_cancelled());
    drop(pending);
    assert!(request.is_cancelled());
    assert_eq!(
        request.reply(b"!").unwrap_err().kind(),
        ErrorKind::Cancelled
    );
    // A later request does not get it.
    let pending = client.start(b"another").unwrap();
    next(&mut server).reply(b"its own").unwrap();
    assert_eq!(pending.wait().unwrap().unwrap(), b"its own");
}

#[test]
fn a_request_that_is_dropped_goes_to_another_server_or_is_ended() {
    let private = private();
    let service = service(&private);
    let (mut one, mut two) = (service.server().unwrap(), service.server().unwrap());
    let client = service.client().unwrap();
    let pending = client.start(b"?").unwrap();
    let request = next(&mut one);
    assert_eq!(request.attempts(), 1);
    drop(request);
    let request = next(&mut two);
    assert_eq!(request.attempts(), 2);
    request.reply(b"!").unwrap();
    assert_eq!(pending.wait().unwrap().unwrap(), b"!");

    let once = CallOptions::new().at_most_once();
    let pending = client.start_with(&once, b"?").unwrap();
    drop(next(&mut one));
    assert_eq!(pending.wait().unwrap_err().kind(), ErrorKind::ServerDied);
    assert!(two.try_recv().unwrap().is_none() && one.try_recv().unwrap().is_none());
}

#[test]
fn a_reply_longer_than_the_inbox_is_an_error_on_both_sides() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let client = service.client_builder().inbox(4096).open().unwrap();
    let (long, other) = (client.start(b"?").unwrap(), client.start(b"?").unwrap());
    let error = next(&mut server).reply(&[0; 4000]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLong);
    next(&mut server).reply(b"short").unwrap();
    let error = long.wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLong);
    assert!(error.to_string().contains("inbox"), "{error}");
    assert_eq!(other.wait().unwrap().unwrap(), b"short");
}

#[test]
fn a_reply_of_several_that_is_too_long_ends_them() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let client = service.client_builder().inbox(4096).open().unwrap();
    let mut replies = client.stream(b"?").unwrap();
    let mut sink = next(&mut server).stream().unwrap();
    let error = sink.send(&[0; 4000]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLong);
    assert_eq!(sink.send(b"?").unwrap_err().kind(), ErrorKind::Cancelled);
    drop(sink);
    assert_eq!(replies.recv().unwrap_err().kind(), ErrorKind::TooLong);
    assert!(replies.recv().unwrap().unwrap().is_none());
    assert!(server.try_recv().unwrap().is_none());
}

/// Several replies to who wants one, without a deadline, and more than there is room for.
#[tokio::test]
async fn who_waits_for_room_sees_that_it_is_not_wanted() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let mut client = service.client_builder().inbox(4096).open().unwrap();
    for is_async in [false, true] {
        let asking = thread::spawn(move || {
            let error = client.call(b"?").map(drop).unwrap_err();
            (client, error)
        });
        let mut sink = next(&mut server).stream().unwrap();
        let error = loop {
            let sent = match is_async {
                true => sink.send_async(&[7; 500]).await,
                false => sink.send(&[7; 500]),
            };
            if let Err(e) = sent {
                break e;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        let answer;
        (client, answer) = asking.join().unwrap();
        assert_eq!(answer.kind(), ErrorKind::Mismatch);
    }
}

/// Those that ended without a reply are told apart, and those that came with them.
#[tokio::test]
async fn a_task_learns_of_an_end_that_came_with_replies() {
    let private = private();
    let service = service(&private);
    let client = service.client_builder().inbox(4096).open().unwrap();
    for _ in 0..20 {
        let serving = service.clone();
        let server = thread::spawn(move || {
            let builder = serving.server_builder().patience(Duration::ZERO);
            let mut server = builder.open().unwrap();
            let requests: Vec<_> = (0..20).map(|_| next(&mut server)).collect();
            let sent = requests.into_iter().map(|request| request.reply(&[7; 500]));
            sent.filter(Result::is_ok).count()
        });
        let patient = CallOptions::new().wait_for_server();
        let pending: Vec<_> = (0..20)
            .map(|_| client.start_with(&patient, b"?").unwrap())
            .collect();
        let mut answered = 0;
        let all = futures_util::future::join_all(pending);
        for answer in tokio::time::timeout(PATIENCE, all).await.expect("all end") {
            match answer {
                Ok(answer) => {
                    assert_eq!(answer.unwrap(), [7; 500]);
                    answered += 1;
                }
                Err(e) => assert_eq!(e.kind(), ErrorKind::Full),
            }
        }
        assert_eq!(answered, server.join().unwrap());
    }
}

/// Its claim has gone to another by the time it is asked for.
#[test]
fn an_end_is_known_however_many_requests_come_after_it() {
    let private = private();
    let bus = private.bus();
    let service = bus.service_builder("s").capacity(4096).open().unwrap();
    let builder = service.server_builder().patience(Duration::ZERO);
    let mut server = builder.open().unwrap();
    let client = service.client_builder().inbox(4096).open().unwrap();
    let (mut ended, mut good) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let pending = client.start(b"?").unwrap();
        match next(&mut server).reply(&[7; 500]) {
            Ok(()) => good.push(pending),
            Err(_) => ended.push(pending),
        }
    }
    assert!(!ended.is_empty());
    for pending in good {
        pending.wait().unwrap().unwrap();
    }
    for _ in 0..2000 {
        let pending = client.start(b"?").unwrap();
        next(&mut server).reply(b"!").unwrap();
        pending.wait().unwrap().unwrap();
    }
    for mut pending in ended {
        let error = pending.wait_timeout(PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full);
    }
}

#[test]
fn a_client_that_never_reads_is_an_error_and_nobody_else_notices() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let idle = service.client_builder().inbox(4096).open().unwrap();
    let busy = service.client().unwrap();
    let mut pending: Vec<_> = (0..20).map(|_| idle.start(b"idle").unwrap()).collect();
    let others: Vec<_> = (0..20).map(|_| busy.start(b"busy").unwrap()).collect();
    let (mut full, mut waited) = (0, Duration::ZERO);
    for _ in 0..40 {
        let request = next(&mut server);
        let started = Instant::now();
        let reply = [request[0]; 500];
        match request.reply(&reply) {
            Ok(()) => {}
            Err(e) => {
                assert!(
                    matches!(e.kind(), ErrorKind::Full | ErrorKind::TimedOut),
                    "{e}"
                );
                full += 1;
                waited += started.elapsed();
            }
        }
    }
    assert!(full > 0);
    // It was waited for once.
    assert!(waited >= Duration::from_millis(100));
    for pending in others {
        assert_eq!(pending.wait().unwrap().unwrap(), [b'b'; 500]);
    }
    let last = pending.pop().unwrap().wait().unwrap_err();
    assert_eq!(last.kind(), ErrorKind::Full);
    assert!(last.to_string().contains("inbox"), "{last}");
    let answered = pending.into_iter().map(|pending| pending.wait());
    let answered = answered.filter(|answer| answer.is_ok()).count();
    assert_eq!(answered, 20 - full);
    // Once it reads again, it is answered again.
    let again = idle.start(b"idle").unwrap();
    next(&mut server).reply(b"!").unwrap();
    assert_eq!(again.wait().unwrap().unwrap(), b"!");
}

#[test]
fn many_are_started_before_one_is_waited_for() {
    let private = private();
    let service = service(&private);
    let echo = echo(&service);
    let client = service.client_builder().inbox(64 << 10).open().unwrap();
    // More than lane and inbox have room for together.
    let pending: Vec<_> = (0..20_000)
        .map(|n| client.start(format!("request {n}").as_bytes()).unwrap())
        .collect();
    for (n, pending) in pending.into_iter().enumerate() {
        let reply = pending.wait().unwrap().unwrap();
        assert_eq!(reply, format!("REQUEST {n}").into_bytes());
    }
    end(&client, echo);
}

#[test]
fn a_request_that_is_given_up_is_an_error() {
    let private = private();
    let service = service(&private);
    // The group's consumers have agreed on an end.
    let queue = private.bus().queue("s").unwrap();
    drop(queue.consumer_builder().max_attempts(2).open().unwrap());
    let mut server = service.server().unwrap();
    let mut client = service.client().unwrap();
    let asking = thread::spawn(move || client.call(b"?").unwrap_err().kind());
    drop(next(&mut server));
    drop(next(&mut server));
    assert!(server.try_recv().unwrap().is_none());
    assert_eq!(asking.join().unwrap(), ErrorKind::ServerDied);
    let mut dead = private.bus().queue("s.dead").unwrap().consumer().unwrap();
    let letter = dead.try_recv().unwrap().unwrap();
    assert_eq!(buslane::DeadLetter::parse(&letter).unwrap().payload, b"?");
}

#[test]
fn what_is_answered_twice_is_answered_once() {
    let private = private();
    let service = service(&private);
    // A lease takes the request away from the first server, which answers all the same, and late.
    let queue = private.bus().queue("s").unwrap();
    let lease = Duration::from_millis(20);
    drop(queue.consumer_builder().lease(lease).open().unwrap());
    let (mut one, mut two) = (service.server().unwrap(), service.server().unwrap());
    let client = service.client().unwrap();
    let pending = client.start(b"?").unwrap();
    let slow = next(&mut one);
    let quick = next(&mut two);
    quick.reply(b"quick").unwrap();
    assert_eq!(
        slow.reply(b"slow").unwrap_err().kind(),
        ErrorKind::LeaseLost
    );
    assert_eq!(pending.wait().unwrap().unwrap(), b"quick");
    let pending = client.start(b"?").unwrap();
    next(&mut two).reply(b"another").unwrap();
    assert_eq!(pending.wait().unwrap().unwrap(), b"another");
}

#[test]
fn a_stream_of_replies_waits_for_its_reader_and_ends() {
    let private = private();
    let service = private.bus().service_builder("s").open().unwrap();
    let mut server = service.server().unwrap();
    let client = service.client_builder().inbox(4096).open().unwrap();
    let serving = thread::spawn(move || {
        for _ in 0..2 {
            let mut replies = next(&mut server).stream().unwrap();
            for n in 0..1000_u32 {
                replies.send(&n.to_le_bytes()).unwrap();
            }
            replies.finish().unwrap();
        }
        let mut replies = next(&mut server).stream().unwrap();
        replies.send(b"one").unwrap();
        replies.refuse(3, "no more").unwrap();
        let mut replies = next(&mut server).stream().unwrap();
        replies.send(b"one").unwrap();
        drop(replies);
        // A single reply is a stream of one.
        next(&mut server).reply(b"single").unwrap();
    });
    for _ in 0..2 {
        let mut replies = client.stream(b"count").unwrap();
        thread::sleep(Duration::from_millis(5));
        for n in 0..1000_u32 {
            assert_eq!(*replies.recv().unwrap().unwrap().unwrap(), n.to_le_bytes());
        }
        assert!(replies.recv().unwrap().unwrap().is_none());
        assert!(replies.recv().unwrap().unwrap().is_none());
    }
    let mut replies = client.stream(b"?").unwrap();
    assert_eq!(&*replies.recv().unwrap().unwrap().unwrap(), b"one");
    assert_eq!(replies.recv().unwrap().unwrap_err().code, 3);
    assert!(replies.recv().unwrap().unwrap().is_none());
    let mut replies = client.stream(b"?").unwrap();
    assert_eq!(&*replies.recv().unwrap().unwrap().unwrap(), b"one");
    assert_eq!(replies.recv().unwrap_err().kind(), ErrorKind::ServerDied);
    assert!(replies.recv().unwrap().unwrap().is_none());
    let mut replies = client.stream(b"?").unwrap();
    let all: Vec<_> = replies
        .iter()
        .map(|reply| reply.unwrap().unwrap())
        .collect();
    assert_eq!(all, [b"single"]);
    serving.join().unwrap();
    // All of them went through one inbox.
    drop(replies);
    let names = private.names("topics");
    assert_eq!(
        names
            .iter()
            .filter(|name| name.starts_with("%inbox"))
            .count(),
        1,
        "{names:?}"
    );
}

#[test]
fn a_stream_that_is_dropped_is_cancelled_and_one_for_a_call_an_error() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let mut client = service.client_builder().inbox(4096).open().unwrap();
    let mut replies = client.stream(b"count").unwrap();
    let serving = thread::spawn(move || {
        let mut replies = next(&mut server).stream().unwrap();
        let error = loop {
            if let Err(e) = replies.send(&[0; 100]) {
                break e;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        drop(replies);
        // For a call, the same.
        let mut replies = next(&mut server).stream().unwrap();
        replies.send(b"one").unwrap();
        while replies.send(b"more").is_ok() {}
    });
    for _ in 0..10 {
        drop(replies.recv().unwrap().unwrap());
    }
    drop(replies);
    let error = client.call(b"?").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.to_string().contains("stream"), "{error}");
    drop(client);
    serving.join().unwrap();
}

#[test]
fn a_request_goes_through_several_services_and_is_answered_by_the_last() {
    let private = private();
    let bus = private.bus();
    let open = |name| bus.service(name).unwrap();
    let (a, b, c) = (open("a"), open("b"), open("c"));
    let forward = |from: &Service, to: &Service| {
        let (mut server, mut producer) = (from.server().unwrap(), to.producer().unwrap());
        thread::spawn(move || {
            let request = next(&mut server);
            let longer = [&request[..], b"+"].concat();
            request.forward(&mut producer, &longer).unwrap();
        })
    };
    let threads = [forward(&a, &b), forward(&b, &c)];
    let mut server = c.server().unwrap();
    let last = thread::spawn(move || {
        let request = next(&mut server);
        let envelope = request.envelope().unwrap();
        assert_eq!(envelope.hops(), 2);
        assert_eq!(envelope.trace().collect::<Vec<_>>(), ["a", "b"]);
        assert!(envelope.correlation() != 0 && envelope.reply_to() != 0);
        assert!(envelope.sent().is_some());
        assert!(request.time_left().unwrap() <= PATIENCE);
        let reply = request.to_vec();
        request.reply(&reply).unwrap();
    });
    let mut client = a.client().unwrap();
    let options = within(PATIENCE).stamped();
    let reply = client.call_with(&options, b"?").unwrap().unwrap();
    assert_eq!(&*reply, b"?++");
    let envelope = reply.envelope().unwrap();
    assert_eq!(envelope.trace().collect::<Vec<_>>(), ["a", "b"]);
    assert!(envelope.sent().is_some());
    for thread in threads.into_iter().chain([last]) {
        thread.join().unwrap();
    }
}

#[test]
fn a_server_gets_the_kinds_that_it_takes() {
    let private = private();
    let service = service(&private);
    let of = |kind| service.server_builder().kinds(&[kind]).open().unwrap();
    let (mut commands, mut documents) = (of(Kind::Command), of(Kind::Document));
    let client = service.client().unwrap();
    let start = |kind, text: &[u8]| {
        let options = CallOptions::new().kind(kind);
        client.start_with(&options, text)
    };
    let one = start(Kind::Document, b"document").unwrap();
    let two = start(Kind::Command, b"command").unwrap();
    let none = start(Kind::Event, b"event").unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NoServer);
    let request = next(&mut commands);
    assert_eq!(&*request, b"command");
    request.reply(b"done").unwrap();
    assert!(commands.try_recv().unwrap().is_none());
    let request = next(&mut documents);
    assert_eq!(&*request, b"document");
    request.reply(b"read").unwrap();
    assert_eq!(one.wait().unwrap().unwrap(), b"read");
    assert_eq!(two.wait().unwrap().unwrap(), b"done");
    // The last that takes them leaves.
    let one = start(Kind::Document, b"document").unwrap();
    drop(documents);
    assert_eq!(one.wait().unwrap_err().kind(), ErrorKind::NoServer);
}

#[test]
fn what_asks_for_no_reply_is_served_too() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let mut producer = service.producer().unwrap();
    producer.push(b"plain").unwrap();
    producer
        .push_with(&Envelope::new(Kind::Event), b"event")
        .unwrap();
    let request = next(&mut server);
    assert_eq!(
        (request.message_kind(), request.wants_reply()),
        (None, false)
    );
    request.reply(b"to nobody").unwrap();
    let request = next(&mut server);
    assert_eq!(request.message_kind(), Some(Kind::Event));
    let mut replies = request.stream().unwrap();
    replies.send(b"to nobody").unwrap();
    replies.finish().unwrap();
    assert!(server.try_recv().unwrap().is_none());
}

#[test]
fn a_client_leaves_nothing_behind() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let topics = || private.names("topics");
    let files = || {
        let mut names = private.names("topics/s");
        // It comes with the first client, and stays.
        names.retain(|name| name != "locks");
        names
    };
    let (before, files_before) = (topics(), files());
    for _ in 0..3 {
        let client = service.client().unwrap();
        let one = client.start(b"?").unwrap();
        let two = client.stream(b"?").unwrap();
        let _unanswered = client.start(b"?").unwrap();
        assert!(topics().len() > before.len());
        assert_eq!(private.bus().topics().unwrap(), ["s"]);
        next(&mut server).reply(b"!").unwrap();
        next(&mut server).reply(b"!").unwrap();
        assert_eq!(one.wait().unwrap().unwrap(), b"!");
        drop(two);
    }
    assert_eq!(topics(), before);
    // After the next look.
    assert!(server.try_recv().unwrap().is_none());
    assert_eq!(files(), files_before);
    let _pending = service.client().unwrap().start(b"?").unwrap();
    let one = service.client().unwrap();
    let _pending = one.start(b"?").unwrap();
    next(&mut server).reply(b"!").unwrap();
    assert!(format!("{server:?}").contains("clients: 1"), "{server:?}");
}

#[test]
fn a_forked_child_has_no_part_in_it() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let mut client = service.client().unwrap();
    let mut called = service.client().unwrap();
    let calling = thread::spawn(move || {
        let _ = called.call(b"?").unwrap().unwrap();
        called
    });
    next(&mut server).reply(b"!").unwrap();
    let mut called = calling.join().unwrap();
    let mut replies = client.stream(b"several").unwrap();
    let several = next(&mut server);
    let (held, pending) = (client.start(b"held").unwrap(), client.start(b"?").unwrap());
    let request = next(&mut server);
    // SAFETY: the child touches its own memory alone, and exits.
    #[allow(unsafe_code, reason = "there is no safe fork")]
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let kinds = [
                client.call(b"?").map(drop).map_err(|e| e.kind()),
                called.call(b"?").map(drop).map_err(|e| e.kind()),
                replies.recv().map(drop).map_err(|e| e.kind()),
                several.stream().map(drop).map_err(|e| e.kind()),
                client.start(b"?").map(drop).map_err(|e| e.kind()),
                pending.wait().map(drop).map_err(|e| e.kind()),
                server.try_recv().map(drop).map_err(|e| e.kind()),
                request.reply(b"?").map_err(|e| e.kind()),
            ];
            drop((client, called, replies, held, server));
            let good = kinds.iter().all(|kind| *kind == Err(ErrorKind::Forked));
            nix::unistd::write(std::io::stderr(), format!("{kinds:?}\n").as_bytes()).unwrap();
            std::process::exit(i32::from(!good));
        }
        nix::unistd::ForkResult::Parent { child } => {
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
        }
    }
    request.reply(b"!").unwrap();
    assert_eq!(held.wait().unwrap().unwrap(), b"!");
    next(&mut server).reply(b"!!").unwrap();
    assert_eq!(pending.wait().unwrap().unwrap(), b"!!");
}

// ---------------------------------------------------------------------------------------------------------- killed

#[test]
fn a_killed_server_leaves_what_it_had_to_another() {
    let private = private();
    let service = service(&private);
    let mut holding = private.child("serving", "hold");
    assert_eq!(holding.hear(), "ready");
    let client = service.client().unwrap();
    let pending: Vec<_> = (0..3).map(|_| client.start(b"end?").unwrap()).collect();
    for _ in 0..3 {
        assert_eq!(holding.hear(), "holds 1");
    }
    let mut echoing = private.child("serving", "echo");
    assert_eq!(echoing.hear(), "ready");
    holding.kill();
    for pending in pending {
        assert_eq!(pending.wait().unwrap().unwrap(), b"END?");
    }
}

#[test]
fn a_killed_server_ends_what_is_to_be_done_at_most_once() {
    let private = private();
    let service = service(&private);
    let mut holding = private.child("serving", "hold");
    assert_eq!(holding.hear(), "ready");
    let mut echoing = private.child("serving", "echo");
    assert_eq!(echoing.hear(), "ready");
    let client = service.client().unwrap();
    let once = CallOptions::new().at_most_once();
    // Until the one that holds has one.
    let mut pending = loop {
        let mut pending = client.start_with(&once, b"?").unwrap();
        match pending.wait_timeout(Duration::from_millis(100)).unwrap() {
            Some(answer) => assert_eq!(answer.unwrap(), b"?"),
            None => break pending,
        }
    };
    assert_eq!(holding.hear(), "holds 1");
    holding.kill();
    let error = pending.wait_timeout(PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ServerDied);
    // The rest goes on.
    assert_eq!(
        client
            .start_with(&once, b"x")
            .unwrap()
            .wait()
            .unwrap()
            .unwrap(),
        b"X"
    );
}

#[test]
fn the_only_server_that_is_killed_is_an_error_at_once() {
    let private = private();
    let service = service(&private);
    let mut client = service.client().unwrap();
    for _ in 0..10 {
        let mut holding = private.child("serving", "hold");
        assert_eq!(holding.hear(), "ready");
        let asking = thread::spawn(move || {
            let kind = client.call(b"?").unwrap_err().kind();
            (client, kind)
        });
        assert_eq!(holding.hear(), "holds 1");
        holding.kill();
        let (again, kind) = asking.join().unwrap();
        assert_eq!(kind, ErrorKind::ServerDied);
        client = again;
        assert_eq!(client.call(b"?").unwrap_err().kind(), ErrorKind::NoServer);
    }
}

#[test]
fn a_server_that_is_killed_in_a_stream_is_an_error() {
    let private = private();
    let service = service(&private);
    let mut streaming = private.child("serving", "stream");
    assert_eq!(streaming.hear(), "ready");
    let client = service.client().unwrap();
    let mut replies = client.stream(b"?").unwrap();
    assert_eq!(streaming.hear(), "sent");
    assert_eq!(&*replies.recv().unwrap().unwrap().unwrap(), b"one");
    // Another begins anew: that is not mixed with what has come.
    let mut other = service.server().unwrap();
    streaming.kill();
    assert_eq!(&*replies.recv().unwrap().unwrap().unwrap(), b"two");
    let request = next(&mut other);
    assert_eq!(request.attempts(), 2);
    let mut again = request.stream().unwrap();
    again.send(b"ONE").unwrap();
    assert_eq!(replies.recv().unwrap_err().kind(), ErrorKind::ServerDied);
    assert_eq!(again.send(b"TWO").unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn a_killed_client_leaves_nothing_behind() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let before = private.names("topics");
    let mut asking = private.child("asking", 3);
    assert_eq!(asking.hear(), "asked");
    assert!(private.names("topics").len() > before.len());
    next(&mut server).reply(b"!").unwrap();
    let request = next(&mut server);
    asking.kill();
    let started = Instant::now();
    while !request.is_cancelled() {
        assert!(started.elapsed() < PATIENCE);
        thread::yield_now();
    }
    assert_eq!(
        request.reply(b"!").unwrap_err().kind(),
        ErrorKind::Cancelled
    );
    // The third was seen by nobody, and is by nobody, unless its client's end is not yet told everywhere.
    if let Some(request) = server.try_recv().unwrap() {
        let error = request.reply(b"!").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
    assert_eq!(private.names("topics"), before);
    // Its own file goes last, by whoever was at it first.
    let is_listed = || {
        let members = private.bus().members().unwrap();
        members.iter().any(|member| !member.alive)
    };
    while is_listed() {
        assert!(started.elapsed() < PATIENCE);
        thread::yield_now();
    }
}

/// What a person may look at is not what programs rely on.
#[test]
fn an_inbox_is_no_topic() {
    let private = private();
    let service = service(&private);
    let _server = service.server().unwrap();
    let client = service.client().unwrap();
    let _pending = client.start(b"?").unwrap();
    let names = private.names("topics");
    let inbox = names.iter().find(|name| name.starts_with('%')).unwrap();
    let bus = private.bus();
    assert_eq!(bus.topics().unwrap(), ["s"]);
    assert_eq!(bus.topics_matching("**").unwrap(), ["s"]);
    // A topic of that name is another one.
    let mut same: Subscriber = bus.topic(inbox).unwrap().subscriber().unwrap();
    bus.topic(inbox)
        .unwrap()
        .publisher()
        .unwrap()
        .send(b"?")
        .unwrap();
    assert_eq!(&*same.recv().unwrap(), b"?");
    assert_eq!(private.names("topics").len(), 3);
}

fn _assert_shareable(
    client: Client,
    request: Request,
    server: Server,
) -> (impl Send + Sync, impl Send) {
    (client, (request, server))
}

fn _unused(_: Process) {
    let _ = (role(), say(""));
}

// ----------------------------------------------------------------------------------------------------------- tasks

/// A server in a task, with as many requests in hand as come. It answers the later ones sooner.
async fn serve_tasks(mut server: Server, count: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..count {
        let request = server.recv_async().await.unwrap();
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis((n as u64 * 7) % 20)).await;
            let reply = request.to_ascii_uppercase();
            request.reply(&reply).unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

fn in_tasks(threads: usize) {
    let private = private();
    let service = service(&private);
    let (server, client) = (service.server().unwrap(), service.client().unwrap());
    let client = Arc::new(client);
    let mut runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.enable_time().build().unwrap().block_on(async {
        let serving = tokio::spawn(serve_tasks(server, 1000));
        let mut asking = tokio::task::JoinSet::new();
        for n in 0..1000 {
            let client = Arc::clone(&client);
            asking.spawn(async move {
                let request = format!("request {n}");
                let pending = client.start(request.as_bytes()).unwrap();
                let reply = pending.await.unwrap().unwrap();
                assert_eq!(reply, request.to_ascii_uppercase().into_bytes());
            });
        }
        while let Some(done) = asking.join_next().await {
            done.unwrap();
        }
        serving.await.unwrap();
    });
}

#[test]
fn a_thousand_requests_are_under_way_in_one_thread() {
    in_tasks(1);
}

#[test]
fn a_thousand_requests_are_under_way_in_many_threads() {
    in_tasks(4);
}

#[tokio::test]
async fn a_task_sees_deadlines_deaths_and_what_is_dropped() {
    let private = private();
    let service = service(&private);
    let mut server = service.server().unwrap();
    let client = service.client().unwrap();
    // Late, in the order of the deadlines, not of the requests.
    let short = Duration::from_millis(20);
    let started = Instant::now();
    let one = client.start_with(&within(PATIENCE), b"?").unwrap();
    let two = client.start_with(&within(short), b"?").unwrap();
    let late = tokio::select! {
        _ = one => panic!("the first one has time"),
        late = two => late,
    };
    assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(started.elapsed() >= short);
    // Dropped while it is awaited.
    let pending = client.start(b"dropped").unwrap();
    let request = server.recv_async().await.unwrap();
    assert!(tokio::time::timeout(short, pending).await.is_err());
    assert!(request.is_cancelled());
    drop(request);
    // The others are not disturbed, and a refusal is an answer.
    let pending = client.start(b"?").unwrap();
    let (refused, ()) = tokio::join!(pending, async {
        server.recv_async().await.unwrap().refuse(1, "no").unwrap();
    });
    assert_eq!(refused.unwrap().unwrap_err().code, 1);
    // A stream of replies.
    let mut replies = client.stream(b"count").unwrap();
    let (all, ()) = tokio::join!(
        async {
            let mut all = 0;
            while let Some(reply) = replies.recv_async().await.unwrap().unwrap() {
                assert_eq!(reply.len(), 10_000);
                all += 1;
            }
            all
        },
        async {
            let request = server.recv_async().await.unwrap();
            let mut sink = request.stream().unwrap();
            for _ in 0..100 {
                sink.send_async(&[7; 10_000]).await.unwrap();
            }
            sink.finish_async().await.unwrap();
        }
    );
    assert_eq!(all, 100);
    // The last server leaves.
    let pending = client.start(b"?").unwrap();
    let (left, ()) = tokio::join!(pending, async {
        tokio::time::sleep(short).await;
        drop(server);
    });
    assert_eq!(left.unwrap_err().kind(), ErrorKind::NoServer);
}
