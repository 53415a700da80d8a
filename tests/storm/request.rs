//! Request and reply: each reply answers its own request, each request is answered or an error, and what is to be done once is
//! done once at most.

use std::sync::atomic::Ordering::SeqCst;
use std::thread::sleep;
use std::time::{Duration, Instant};

use buslane::{Answer, CallOptions, Client, Error, ErrorKind, Kind, Request};

use super::ledger::MESSAGES;
use super::process::{PATIENCE, Process};
use super::pubsub::{block_on, settle};
use super::round::{Pattern, Role};

pub const REQUEST: Pattern = Pattern {
    name: "request",
    is_durable: false,
    prepare: |process| drop(process.bus().service("t").unwrap()),
    roles: &[
        Role {
            name: "client",
            crowd: (1, 5),
            sends: true,
            act: call,
        },
        Role {
            name: "server",
            crowd: (1, 3),
            sends: false,
            act: serve,
        },
    ],
    settle: settle_inboxes,
    stays: &["topic", "locks", "group."],
};

/// In a request's word: it is to be done once at most. Below, how often a server got it.
const ONCE: u64 = 1 << 63;

/// The only right reply to a request, as long as that tells.
fn reply_to(request: &[u8]) -> Vec<u8> {
    let len = 20 + 97 * request.iter().map(|&byte| usize::from(byte)).sum::<usize>() % 3000;
    request.iter().copied().cycle().take(len).collect()
}

/// How many parts the reply has.
const PARTS: u64 = 5;

fn part_of(whole: &[u8], part: u64) -> Vec<u8> {
    reply_to(&[whole, &[part as u8]].concat())
}

// ------------------------------------------------------------------------------------------------------------ serving

/// Answers in any order; gives some back, refuses some, and takes its time.
fn serve(process: &mut Process) {
    let mut server = process.bus().service("t").unwrap().server().unwrap();
    let way = process.random.u32(..3);
    let mut held: Vec<Request> = Vec::new();
    while !process.is_to_leave() {
        let patience = Duration::from_micros(process.random.u64(..5000));
        let received = match way {
            0 => server.try_recv(),
            _ => server.recv_timeout(patience),
        };
        // What a client had asked that was killed is there until it is done.
        let drains = process.is_to_drain();
        match received.unwrap() {
            Some(request) => {
                note(process, &request);
                held.push(request);
            }
            None if drains && held.is_empty() => return,
            None => {}
        }
        process.beat();
        while held.len() > process.random.usize(..if drains { 1 } else { 6 }) {
            let request = held.swap_remove(process.random.usize(..held.len()));
            answer(process, request);
        }
    }
}

/// A server has got it: not a second one, if it is to be done once.
fn note(process: &Process, request: &Request) {
    let text = std::str::from_utf8(request).unwrap();
    let (client, n) = text.split_once('/').unwrap();
    let (client, n): (u64, usize) = (client.parse().unwrap(), n.parse().unwrap());
    let before = process.ledger.row(client)[n].fetch_add(1, SeqCst);
    assert!(
        before & ONCE == 0 || before == ONCE,
        "{text} was to be done once"
    );
    process.has_checked();
}

fn answer(process: &mut Process, request: Request) {
    let kind = request.message_kind();
    let reply = reply_to(&request);
    let done = match process.random.u32(..32) {
        0 => return,
        1 => {
            let text = String::from_utf8(request.to_vec()).unwrap();
            request.refuse(9, &text)
        }
        2 => {
            sleep(Duration::from_millis(process.random.u64(..8)));
            request.reply(&reply)
        }
        // By the kind the client says that it wants several.
        _ if kind == Some(Kind::Document) => request.stream().and_then(|mut sink| {
            for part in 0..PARTS {
                sink.send(&part_of(&reply, part))?;
            }
            sink.finish()
        }),
        _ => request.reply(&reply),
    };
    if let Err(e) = done {
        let kinds = [ErrorKind::Cancelled, ErrorKind::TimedOut, ErrorKind::Full];
        assert!(kinds.contains(&e.kind()), "{e}");
    }
}

// ------------------------------------------------------------------------------------------------------------- asking

/// Asks in all ways.
fn call(process: &mut Process) {
    let service = process.bus().service("t").unwrap();
    let mut next = 0;
    while !process.is_over() && next < MESSAGES - 100 {
        let mut client = service.client().unwrap();
        for _ in 0..process.random.u32(1..200) {
            if process.is_over() || next >= MESSAGES - 100 {
                break;
            }
            ask(process, &mut client, &mut next);
            process.dawdle(16);
        }
    }
}

/// How requests are asked, and what may come of it.
struct Asked {
    options: CallOptions,
    began: Instant,
    timeout: Duration,
}

impl Asked {
    fn new(process: &mut Process) -> Self {
        let mut options = CallOptions::new();
        // The longer one only against hangs.
        let timeout = match process.random.u32(..4) {
            0 => Duration::from_micros(process.random.u64(200..20_000)),
            _ => PATIENCE / 2,
        };
        options = options.timeout(timeout);
        if process.random.u32(..3) == 0 {
            options = options.at_most_once();
        }
        if process.random.bool() {
            options = options.wait_for_server();
        }
        Self {
            options,
            began: Instant::now(),
            timeout,
        }
    }

    /// The next request, and its number.
    fn next(&self, process: &Process, next: &mut usize, is_once: bool) -> (usize, Vec<u8>) {
        let n = *next;
        *next += 1;
        if is_once {
            process.ledger.row(process.number)[n].store(ONCE, SeqCst);
        }
        (n, format!("{}/{n}", process.number).into_bytes())
    }

    /// An error in the place of an answer.
    fn accepts(&self, process: &Process, n: usize, error: &Error) {
        match error.kind() {
            ErrorKind::ServerDied => {}
            // Nobody has seen it, and nobody will.
            ErrorKind::NoServer => {
                let seen = process.ledger.row(process.number)[n].load(SeqCst) & !ONCE;
                assert_eq!(seen, 0, "{n} was seen: {error}");
            }
            ErrorKind::TimedOut => {
                assert!(self.began.elapsed() >= self.timeout, "{error}");
                assert!(self.timeout < PATIENCE / 2, "{n} was not answered");
            }
            _ => panic!("{error} ({:?})", self.options),
        }
        process.beat();
    }

    /// Its own answer.
    fn judge(&self, process: &Process, n: usize, request: &[u8], answer: Answer<Vec<u8>>) {
        match answer {
            Ok(reply) => assert!(reply == reply_to(request), "not the reply to {n}"),
            Err(refusal) => assert_eq!(refusal.message.as_bytes(), request),
        }
        let seen = process.ledger.row(process.number)[n].load(SeqCst) & !ONCE;
        assert!(seen > 0, "nobody has seen {n}, and it is answered");
        process.has_checked();
    }
}

fn ask(process: &mut Process, client: &mut Client, next: &mut usize) {
    let asked = Asked::new(process);
    let is_once = format!("{:?}", asked.options).contains("once: true");
    match process.random.u32(..4) {
        0 => {
            let (n, request) = asked.next(process, next, is_once);
            match client.call_with(&asked.options, &request) {
                Ok(answer) => {
                    asked.judge(process, n, &request, answer.map(|reply| reply.to_owned()))
                }
                Err(e) => asked.accepts(process, n, &e),
            }
        }
        1 => {
            let (n, request) = asked.next(process, next, is_once);
            ask_for_several(process, client, &asked, n, &request);
        }
        way => {
            let mut pending = Vec::new();
            for _ in 0..process.random.u32(1..20) {
                let (n, request) = asked.next(process, next, is_once);
                match client.start_with(&asked.options, &request) {
                    Ok(one) => pending.push((n, request, one)),
                    Err(e) => asked.accepts(process, n, &e),
                }
            }
            while !pending.is_empty() {
                let at = process.random.usize(..pending.len());
                let (n, request, one) = pending.swap_remove(at);
                if process.random.u32(..8) == 0 {
                    // Cancelled.
                    continue;
                }
                let answer = if way == 2 { one.wait() } else { block_on(one) };
                match answer {
                    Ok(answer) => asked.judge(process, n, &request, answer),
                    Err(e) => asked.accepts(process, n, &e),
                }
            }
        }
    }
}

fn ask_for_several(
    process: &mut Process,
    client: &Client,
    asked: &Asked,
    n: usize,
    request: &[u8],
) {
    let options = asked.options.clone().kind(Kind::Document);
    let mut replies = match client.stream_with(&options, request) {
        Ok(replies) => replies,
        Err(e) => return asked.accepts(process, n, &e),
    };
    let whole = reply_to(request);
    for part in 0..=PARTS {
        match replies.recv() {
            Ok(Err(refusal)) => {
                assert_eq!(refusal.message.as_bytes(), request);
                return process.has_checked();
            }
            // A single one comes from a server that took its time.
            Ok(Ok(None)) => {
                assert!(part == PARTS || part == 1, "{n} ended after {part} parts");
                return;
            }
            Ok(Ok(Some(reply))) => {
                let is_right = *reply == part_of(&whole, part) || (part == 0 && *reply == whole);
                assert!(is_right, "not part {part} of the reply to {n}");
                process.has_checked();
            }
            Err(e) => return asked.accepts(process, n, &e),
        }
        if process.random.u32(..16) == 0 {
            return;
        }
    }
    panic!("more than {PARTS} parts");
}

/// The inboxes of the dead are gone.
fn settle_inboxes(process: &mut Process) {
    settle(process);
    let topics = super::common::names(&process.path.join("topics"));
    assert_eq!(topics, ["t"]);
}
