//! `buslane work`: a command for each message of a work queue.

use std::io::Write;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use buslane::{Bus, Consumer, ErrorKind, Queue};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde::Serialize;

use crate::Common;
use crate::child;
use crate::failure::Failure;
use crate::output::{Output, json_line, stdout};
use crate::signals::{SLICE, Stop};

/// Run a command for each message of a work queue
///
/// The message is the command's stdin. When it exits with 0, the message is done; if not, another worker gets it, or this
/// one again. A worker that is killed gives what it had to the others at once.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  buslane work thumbnails -- ./make-thumbnail
  buslane work thumbnails --jobs 4 --max-attempts 3 -- ./make-thumbnail
  buslane work jobs --drain -- sh                  each message is a script; end when all are done
  buslane work jobs --group audit -- tee -a log    another group gets all messages, too

What was tried --max-attempts times goes to the queue QUEUE.dead, or that of --dead-letter, with the reason.")]
pub struct Args {
    /// The queue; it is made if there is none of this name
    #[arg(value_name = "QUEUE")]
    queue: String,
    /// The group of workers that share the messages; each group gets them all
    #[arg(long, value_name = "GROUP", default_value = "default")]
    group: String,
    /// How many messages are worked on at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// How often a message is tried before it goes to the dead-letter queue; by default as often as it takes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=254))]
    max_attempts: Option<u8>,
    /// The queue for messages that were tried too often [default: QUEUE.dead]
    #[arg(long, value_name = "TOPIC")]
    dead_letter: Option<String>,
    /// End when the group has done all messages
    #[arg(long)]
    drain: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// How long a worker rests after a command failed, so that one that always does takes no whole processor.
const REST: Duration = Duration::from_millis(100);

/// Works until the queue is empty, with `--drain`, or for ever.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let bus = common.open(Bus::builder())?;
    let queue = bus.queue(&args.queue)?;
    let shop = Shop {
        args,
        stop,
        out: common
            .json
            .then(|| stdout(stop))
            .transpose()?
            .map(Mutex::new),
        running: Mutex::new(Vec::new()),
        is_over: Mutex::new(false),
    };
    let consumers = (0..args.jobs)
        .map(|_| shop.consumer(&queue))
        .collect::<Result<Vec<_>, _>>()?;
    let shop = &shop;
    let (ended, ends) = channel();
    thread::scope(|scope| {
        for consumer in consumers {
            let ended = ended.clone();
            scope.spawn(move || ended.send(shop.work(consumer)));
        }
        drop(ended);
        let mut result = Ok(());
        loop {
            match ends.recv_timeout(SLICE) {
                Ok(one) => {
                    *lock(&shop.is_over) |= one.is_err();
                    result = result.and(one);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return result,
            }
            if stop.check().is_err() {
                shop.end_all();
            }
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the workers share.
struct Shop<'a> {
    args: &'a Args,
    stop: &'a Stop,
    /// With --json.
    out: Option<Mutex<Output<'a>>>,
    /// The commands that run, none of them reaped.
    running: Mutex<Vec<Pid>>,
    /// One has failed: the others finish what they have in hand.
    is_over: Mutex<bool>,
}

#[derive(Serialize)]
struct Line {
    lane: u64,
    sequence: u32,
    attempts: u64,
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<i32>,
}

impl Shop<'_> {
    fn consumer(&self, queue: &Queue) -> Result<Consumer, Failure> {
        let mut builder = queue.consumer_builder().group(&self.args.group);
        if let Some(attempts) = self.args.max_attempts {
            builder = builder.max_attempts(attempts);
        }
        if let Some(topic) = &self.args.dead_letter {
            builder = builder.dead_letter(topic);
        }
        Ok(builder.open()?)
    }

    fn work(&self, mut consumer: Consumer) -> Result<(), Failure> {
        loop {
            self.stop.check()?;
            if *lock(&self.is_over) {
                return Ok(());
            }
            let delivery = match consumer.recv_timeout(SLICE.min(REST)) {
                Ok(Some(delivery)) => delivery,
                Ok(None) if self.args.drain && consumer.is_empty()? => return Ok(()),
                Ok(None) => continue,
                Err(error) => return Err(error.into()),
            };
            let status = self.execute(&delivery)?;
            // A signal may have ended the command, and not the message.
            self.stop.check()?;
            let line = Line {
                lane: delivery.lane(),
                sequence: delivery.sequence(),
                attempts: delivery.attempts(),
                done: status.success(),
                status: status.code(),
            };
            if status.success() {
                match delivery.ack() {
                    Err(e) if e.kind() != ErrorKind::LeaseLost => return Err(e.into()),
                    _ => {}
                }
            } else {
                drop(delivery);
            }
            if let Some(out) = &self.out {
                let out = &mut *lock(out);
                json_line(out, &line)?;
                out.flush().map_err(Failure::stdout)?;
            }
            if !line.done {
                thread::sleep(REST);
            }
        }
    }

    /// Runs the command with `message` on its stdin.
    fn execute(&self, message: &[u8]) -> Result<ExitStatus, Failure> {
        let stdout = if self.out.is_some() {
            // Ours is for JSON.
            Stdio::from(std::io::stderr())
        } else {
            Stdio::inherit()
        };
        let mut child = child::spawn(&self.args.command, stdout)?;
        let pid = Pid::from_raw(child.id() as i32);
        lock(&self.running).push(pid);
        let status = feed(&mut child, message).and_then(|()| {
            // It stays what its number says until it is reaped, which is not done while somebody may send it a signal.
            loop {
                match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                    Err(nix::errno::Errno::EINTR) => {}
                    waited => break waited.map(drop).map_err(Into::into),
                }
            }
        });
        let mut running = lock(&self.running);
        running.retain(|&other| other != pid);
        let reaped = child.wait();
        drop(running);
        status
            .and(reaped)
            .map_err(|e| child::failed(&self.args.command, e))
    }

    fn end_all(&self) {
        for &pid in &*lock(&self.running) {
            // It may have ended by itself.
            let _ = kill(pid, Signal::SIGTERM);
        }
    }
}

/// All that the command wants to read.
fn feed(child: &mut Child, message: &[u8]) -> std::io::Result<()> {
    let Some(mut stdin) = child.stdin.take() else {
        return Ok(());
    };
    match stdin.write_all(message) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e),
        _ => Ok(()),
    }
}
