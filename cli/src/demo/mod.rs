//! `buslane demo`: the main things at once, between real processes, each verified.

pub mod actors;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use buslane::{Bus, CallOptions, Client, ErrorKind};
use serde::Serialize;

use crate::Common;
use crate::bench::{self, Plan, Report, What};
use crate::failure::Failure;
use crate::output::{Output, json_line, stdout};
use crate::private::{self, Actor, Running};
use crate::signals::Stop;
use crate::size;
use actors::{Scene, Seen, event};

/// Show the main things at once, between real processes on a bus of their own, and verify them
///
/// A file is sent through; events reach several subscribers; requests are answered; a publisher is killed, and its
/// subscriber learns of it; a subscriber is killed, and its publisher goes on; a worker is killed, and another has its job;
/// a server is killed, and its client learns of it; rate and round trip are measured beside a pipe. It takes some seconds,
/// and leaves nothing behind.
#[derive(clap::Args)]
pub struct Args {}

const FILE_BYTES: usize = 64 << 20;
const SUBSCRIBERS: usize = 3;
const EVENTS: u64 = 100_000;
const REQUESTS: u64 = 10_000;
const EVENTS_BEFORE_DEATH: u64 = 2_000;
const MESSAGE_BYTES: usize = 64;
const ROUNDS: u32 = 5;

/// Nothing here takes that long: who waits longer has found a fault.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was shown.
#[derive(Serialize)]
struct Shown {
    file: FileShown,
    events: EventsShown,
    requests: RequestsShown,
    killed_publisher: KilledPublisher,
    killed_subscriber: KilledSubscriber,
    killed_worker: KilledWorker,
    killed_server: KilledServer,
    rate: Vec<Report>,
    rtt: Vec<Report>,
    ok: bool,
}

#[derive(Serialize)]
struct RequestsShown {
    requests: u64,
    seconds: f64,
    all_answered: bool,
}

#[derive(Serialize)]
struct KilledWorker {
    attempts: u64,
    noticed_us: f64,
}

#[derive(Serialize)]
struct KilledServer {
    noticed_us: f64,
}

#[derive(Serialize)]
struct FileShown {
    bytes: usize,
    seconds: f64,
    identical: bool,
}

#[derive(Serialize)]
struct EventsShown {
    subscribers: usize,
    events: u64,
    seconds: f64,
    all_in_order: bool,
}

#[derive(Serialize)]
struct KilledPublisher {
    events: u64,
    in_order: bool,
    noticed_us: f64,
}

#[derive(Serialize)]
struct KilledSubscriber {
    unread: u64,
    went_on_us: f64,
}

/// Shows everything.
pub fn run(common: &Common, stop: &Stop) -> Result<(), Failure> {
    let dir = private::directory()?;
    let stage = Stage {
        bus: Bus::at(dir.path().join("bus"))?,
        stop,
    };
    let mut program = Program {
        out: stdout(stop)?,
        quiet: common.json,
    };

    // Made first: to measure binds this thread to one of the CPUs that are chosen here.
    let rate_plan = Plan::new(What::Rate, MESSAGE_BYTES, ROUNDS, bench::PIPE)?;
    let rtt_plan = Plan::new(What::Rtt, MESSAGE_BYTES, ROUNDS, bench::PIPE)?;

    let file = stage.file()?;
    program.line("file", &file.describe())?;
    let events = stage.events()?;
    program.line("events", &events.describe())?;
    let (requests, server) = stage.requests()?;
    program.line("requests", &requests.describe())?;
    let killed_publisher = stage.killed_publisher()?;
    program.line("death", &killed_publisher.describe())?;
    let killed_subscriber = stage.killed_subscriber()?;
    program.line("death", &killed_subscriber.describe())?;
    let killed_worker = stage.killed_worker()?;
    program.line("death", &killed_worker.describe())?;
    let killed_server = stage.killed_server(server)?;
    program.line("death", &killed_server.describe())?;
    let rate = bench::measure(&rate_plan, stop)?;
    program.line("rate", &describe_rate(&rate))?;
    let rtt = bench::measure(&rtt_plan, stop)?;
    program.line("round trip", &describe_rtt(&rtt))?;

    let ok = file.identical
        && events.all_in_order
        && requests.all_answered
        && killed_publisher.in_order
        && killed_worker.attempts == 2;
    if common.json {
        let shown = Shown {
            file,
            events,
            requests,
            killed_publisher,
            killed_subscriber,
            killed_worker,
            killed_server,
            rate,
            rtt,
            ok,
        };
        json_line(&mut program.out, &shown)?;
    }
    program.out.flush().map_err(Failure::stdout)?;
    if ok {
        Ok(())
    } else {
        Err(Failure::Error(
            "what was received is not what was sent; please report it".into(),
        ))
    }
}

/// What is printed while it goes on.
struct Program<'a> {
    out: Output<'a>,
    quiet: bool,
}

impl Program<'_> {
    fn line(&mut self, what: &str, text: &str) -> Result<(), Failure> {
        if self.quiet {
            return Ok(());
        }
        writeln!(self.out, "{what:10}  {text}")
            .and_then(|()| self.out.flush())
            .map_err(Failure::stdout)
    }
}

/// Where it is shown.
struct Stage<'a> {
    bus: Bus,
    stop: &'a Stop,
}

impl Stage<'_> {
    fn scene(&self, topic: &str) -> Scene {
        Scene {
            bus: PathBuf::from(self.bus.path()),
            topic: topic.into(),
        }
    }

    /// `buslane send` and `buslane recv` as anyone may start them, and a file between them.
    fn file(&self) -> Result<FileShown, Failure> {
        let failed = Failure::system("use a temporary file");
        let mut sent = noise().map_err(&failed)?;
        let mut received = tempfile::tempfile().map_err(&failed)?;
        let started = Instant::now();
        let mut recv = self.command("recv")?;
        recv.stdout(received.try_clone().map_err(&failed)?);
        let mut send = self.command("send")?;
        send.stdin(sent.try_clone().map_err(&failed)?);
        let recv = Running::start(&mut recv)?;
        let send = Running::start(&mut send)?;
        send.finish(self.stop)?;
        recv.finish(self.stop)?;
        let seconds = started.elapsed().as_secs_f64();
        let identical = is_same(&mut sent, &mut received).map_err(&failed)?;
        Ok(FileShown {
            bytes: FILE_BYTES,
            seconds,
            identical,
        })
    }

    fn command(&self, name: &str) -> Result<Command, Failure> {
        let mut command = private::this_program()?;
        command
            .args([name, "file", "--frame", "chunk", "--bus"])
            .arg(self.bus.path());
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        Ok(command)
    }

    fn events(&self) -> Result<EventsShown, Failure> {
        let scene = self.scene("events");
        let mut subscribers = Vec::new();
        for _ in 0..SUBSCRIBERS {
            subscribers.push(actors::start(actors::SUBSCRIBER, &scene, self.stop)?);
        }
        let mut publisher = self.bus.topic(&scene.topic)?.publisher()?;
        let started = Instant::now();
        for number in 0..EVENTS {
            publisher.send_timeout(&event(number), PATIENCE)?;
        }
        publisher.wait_delivered(Some(PATIENCE))?;
        let seconds = started.elapsed().as_secs_f64();
        drop(publisher);
        let mut all_in_order = true;
        for mut subscriber in subscribers {
            let seen: Seen = subscriber.answer(self.stop)?;
            all_in_order &= seen.in_order && seen.events == EVENTS;
        }
        Ok(EventsShown {
            subscribers: SUBSCRIBERS,
            events: EVENTS,
            seconds,
            all_in_order,
        })
    }

    fn killed_publisher(&self) -> Result<KilledPublisher, Failure> {
        let scene = self.scene("killed/publisher");
        let mut subscriber = self.bus.topic(&scene.topic)?.subscriber()?;
        let mut publisher = actors::start(actors::PUBLISHER, &scene, self.stop)?;
        let mut seen = Seen::nothing();
        let mut killed = None;
        loop {
            match subscriber.recv_timeout(PATIENCE) {
                Ok(Some(frame)) => seen.take(&frame),
                Ok(None) => {
                    return Err(Failure::Deadline(
                        "nobody noticed that the publisher was killed".into(),
                    ));
                }
                Err(error) if error.kind() == ErrorKind::Ended => break,
                Err(error) => return Err(error.into()),
            }
            if seen.events == EVENTS_BEFORE_DEATH {
                killed = Some(Instant::now());
                publisher.kill();
            }
        }
        let Some(killed) = killed else {
            return Err(Failure::PeerGone(
                "the publisher ended before it was killed".into(),
            ));
        };
        Ok(KilledPublisher {
            noticed_us: microseconds(killed),
            events: seen.events,
            in_order: seen.in_order,
        })
    }

    fn killed_subscriber(&self) -> Result<KilledSubscriber, Failure> {
        let scene = self.scene("killed/subscriber");
        let mut subscriber = actors::start(actors::IDLER, &scene, self.stop)?;
        let mut publisher = self.bus.topic(&scene.topic)?.publisher()?;
        let mut unread = 0;
        loop {
            match publisher.try_send(&event(unread)) {
                Ok(()) => unread += 1,
                Err(error) if error.kind() == ErrorKind::Full => break,
                Err(error) => return Err(error.into()),
            }
        }
        let killed = Instant::now();
        subscriber.kill();
        publisher.send_timeout(&event(unread), PATIENCE)?;
        Ok(KilledSubscriber {
            unread,
            went_on_us: microseconds(killed),
        })
    }
}

/// A client, and the server that it has.
type Served = (Client, Actor);

impl Stage<'_> {
    fn requests(&self) -> Result<(RequestsShown, Served), Failure> {
        let scene = self.scene("requests");
        let server = actors::start(actors::SERVER, &scene, self.stop)?;
        let mut client = self.bus.service(&scene.topic)?.client()?;
        let options = CallOptions::new().timeout(PATIENCE);
        let mut all_answered = true;
        let started = Instant::now();
        for number in 0..REQUESTS {
            let answer = client.call_with(&options, &event(number))?;
            all_answered &= answer.is_ok_and(|reply| *reply == event(number));
        }
        let shown = RequestsShown {
            requests: REQUESTS,
            seconds: started.elapsed().as_secs_f64(),
            all_answered,
        };
        Ok((shown, (client, server)))
    }

    fn killed_worker(&self) -> Result<KilledWorker, Failure> {
        let scene = self.scene("jobs");
        let mut worker = actors::start(actors::WORKER, &scene, self.stop)?;
        let queue = self.bus.queue(&scene.topic)?;
        queue.producer()?.push(&event(0))?;
        worker.answer::<String>(self.stop)?;
        let mut consumer = queue.consumer()?;
        let killed = Instant::now();
        worker.kill();
        match consumer.recv_timeout(PATIENCE)? {
            Some(job) => {
                let noticed_us = microseconds(killed);
                let attempts = job.attempts();
                job.ack()?;
                Ok(KilledWorker {
                    attempts,
                    noticed_us,
                })
            }
            None => Err(Failure::Deadline(
                "nobody noticed that the worker was killed".into(),
            )),
        }
    }

    fn killed_server(&self, (client, mut server): Served) -> Result<KilledServer, Failure> {
        let options = CallOptions::new().timeout(PATIENCE);
        let pending = client.start_with(&options, &event(actors::UNANSWERED))?;
        server.answer::<String>(self.stop)?;
        let killed = Instant::now();
        server.kill();
        match pending.wait() {
            Err(e) if e.kind() == ErrorKind::ServerDied => Ok(KilledServer {
                noticed_us: microseconds(killed),
            }),
            Err(e) => Err(e.into()),
            Ok(_) => Err(Failure::Error("a killed server has answered".into())),
        }
    }
}

/// A file of bytes that no two places have in common.
fn noise() -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut block = vec![0; 1 << 20];
    for _ in 0..FILE_BYTES / block.len() {
        for word in block.as_chunks_mut::<8>().0 {
            // Marsaglia's xorshift.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        file.write_all(&block)?;
    }
    file.rewind()?;
    Ok(file)
}

/// Whether two files have the same bytes, from their beginnings.
fn is_same(one: &mut File, other: &mut File) -> io::Result<bool> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    one.rewind()?;
    other.rewind()?;
    loop {
        ours.clear();
        theirs.clear();
        Read::take(&mut *one, 1 << 20).read_to_end(&mut ours)?;
        Read::take(&mut *other, 1 << 20).read_to_end(&mut theirs)?;
        if ours != theirs || ours.is_empty() {
            return Ok(ours == theirs);
        }
    }
}

fn microseconds(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 1e7).round() / 10.0
}

impl FileShown {
    fn describe(&self) -> String {
        let Self {
            bytes,
            seconds,
            identical,
        } = *self;
        let rate = size::human((bytes as f64 / seconds) as u64);
        let verdict = if identical {
            "identical"
        } else {
            "NOT IDENTICAL"
        };
        format!(
            "{} through `buslane send` and `buslane recv`: {verdict}, {rate}/s with both starts",
            size::human(bytes as u64)
        )
    }
}

impl EventsShown {
    fn describe(&self) -> String {
        let Self {
            subscribers,
            events,
            seconds,
            all_in_order,
        } = *self;
        let verdict = if all_in_order {
            "each got all, in order"
        } else {
            "NOT ALL RECEIVED IN ORDER"
        };
        format!(
            "{events} to {subscribers} subscribers: {verdict}, {:.1} million a second",
            events as f64 / seconds / 1e6
        )
    }
}

impl KilledPublisher {
    fn describe(&self) -> String {
        let Self {
            events,
            in_order,
            noticed_us,
        } = *self;
        let verdict = if in_order {
            "whole and in order"
        } else {
            "NOT WHOLE OR NOT IN ORDER"
        };
        format!(
            "a publisher was killed (SIGKILL) after {events} events, {verdict}: its subscriber knew after {noticed_us} µs"
        )
    }
}

impl KilledSubscriber {
    fn describe(&self) -> String {
        let Self { unread, went_on_us } = *self;
        format!(
            "a subscriber that held up its publisher, {unread} events behind, was killed: it went on after {went_on_us} µs"
        )
    }
}

impl RequestsShown {
    fn describe(&self) -> String {
        let Self {
            requests,
            seconds,
            all_answered,
        } = *self;
        let verdict = if all_answered {
            "each got its own reply"
        } else {
            "NOT EACH GOT ITS OWN REPLY"
        };
        let each = seconds / requests as f64 * 1e6;
        format!("{requests}, one after the other: {verdict}, {each:.2} µs each")
    }
}

impl KilledWorker {
    fn describe(&self) -> String {
        let Self { noticed_us, .. } = *self;
        format!("a worker was killed with a job in hand: another had it after {noticed_us} µs")
    }
}

impl KilledServer {
    fn describe(&self) -> String {
        let Self { noticed_us } = *self;
        format!(
            "the only server was killed with a request in hand: its client knew after {noticed_us} µs"
        )
    }
}

fn describe_rate(reports: &[Report]) -> String {
    let describe = |rate: u64, ratio: Option<f64>| {
        let ratio = ratio
            .map(|ratio| format!(", {ratio:.1} times the pipe"))
            .unwrap_or_default();
        format!(
            "{:.1} million messages of {MESSAGE_BYTES} bytes a second{ratio}",
            rate as f64 / 1e6
        )
    };
    describe_each(reports, describe)
}

fn describe_rtt(reports: &[Report]) -> String {
    let describe = |p50: u64, ratio: Option<f64>| {
        let ratio = ratio
            .map(|ratio| format!(", {:.1} times as fast as the pipe", 1.0 / ratio))
            .unwrap_or_default();
        format!("{p50} ns with {MESSAGE_BYTES} bytes each way{ratio}")
    };
    describe_each(reports, describe)
}

/// One for each place that the CPUs were in.
fn describe_each(reports: &[Report], describe: impl Fn(u64, Option<f64>) -> String) -> String {
    let ours = reports.iter().filter(|report| report.is_of(bench::BUSLANE));
    let texts: Vec<_> = ours
        .map(|report| report.headline())
        .map(|(value, ratio)| describe(value, ratio))
        .collect();
    texts.join("; ")
}
