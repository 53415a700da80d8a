//! One way to carry messages between processes, and what each side does with it while the clock runs.

use std::collections::VecDeque;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use buslane::{Client, Pending, Publisher, Refusal, Server, Subscriber};
use hdrhistogram::Histogram;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// One turn of one transport.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Job {
    /// What to do.
    pub kind: Kind,
    /// With what: which of the transports.
    pub transport: usize,
    /// Bytes in a message.
    pub size: usize,
    /// Messages.
    pub count: u64,
    /// The number of the first; each message carries its own, and none comes twice.
    pub first: u64,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Each message is answered by one of the same size before the next is sent.
    RoundTrips,
    /// All messages go one way, from the side with the clock to each other one.
    OneWay,
    /// All messages go one way, from each other side to the one with the clock.
    FanIn,
    /// As the round trips, with [`UNDER_WAY`] requests unanswered at any time.
    Requests,
    /// As one way, at one message a millisecond.
    Paced,
    /// No message: the bytes of memory that are this process's, as far as a mapping can say.
    Weigh,
}

/// Requests that are unanswered at any time, where it is not one.
pub const UNDER_WAY: usize = 64;

/// Between two messages that do not come as fast as they can.
const PACE: Duration = Duration::from_millis(1);

/// What another side says of a job.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Done {
    /// Of what it received; or what was asked for.
    pub checksum: u64,
    /// Nanoseconds of processor time that it took.
    pub cpu: u64,
}

/// What is measured of round trips.
#[derive(Debug)]
pub struct RoundTrips {
    /// Nanoseconds of one.
    pub times: Histogram<u64>,
    /// How long the whole took.
    pub elapsed: Duration,
    /// Of what was received.
    pub checksum: u64,
}

/// A transport, seen from one of its processes. The loops stand here, so that each is compiled for each transport
/// and no indirect call stands between two messages.
pub trait Link {
    /// Sends a copy of one message.
    fn send(&mut self, message: &[u8]) -> Result<(), Failure>;

    /// Receives one message of `size` bytes, and sums it where it lies.
    fn recv(&mut self, size: usize) -> Result<u64, Failure>;

    /// Sends one message, and receives the answer, of `size` bytes.
    #[inline]
    fn ask(&mut self, message: &[u8], size: usize) -> Result<u64, Failure> {
        self.send(message)?;
        self.recv(size)
    }

    /// Receives one message of `size` bytes, and answers it.
    #[inline]
    fn answer(&mut self, size: usize, answer: &[u8]) -> Result<u64, Failure> {
        let sum = self.recv(size)?;
        self.send(answer)?;
        Ok(sum)
    }

    /// The same as [`recv`](Self::recv) from any of several senders, and which it was: they are numbered as they are met.
    fn recv_from_any(&mut self, size: usize) -> Result<(usize, u64), Failure> {
        Ok((0, self.recv(size)?))
    }

    /// Round trips, on the side that has the clock, which is read every `batch` of them.
    fn ping(&mut self, job: &Job, batch: u64) -> Result<RoundTrips, Failure> {
        let mut message = Message::new(job);
        let mut times = histogram();
        let mut checksum = 0;
        let started = Instant::now();
        for sample in 0..job.count / batch {
            let sample_started = Instant::now();
            for _ in 0..batch {
                checksum = fold(checksum, self.ask(message.bytes(), job.size)?);
                message.advance();
            }
            // The first has the other side's awakening in it.
            if sample > 0 {
                times.saturating_record(nanoseconds(sample_started.elapsed()) / batch);
            }
        }
        Ok(RoundTrips {
            times,
            elapsed: started.elapsed(),
            checksum,
        })
    }

    /// Round trips, on the side that answers. The checksum of what came.
    fn pong(&mut self, job: &Job) -> Result<u64, Failure> {
        let mut message = Message::new(job);
        let mut checksum = 0;
        for _ in 0..job.count {
            checksum = fold(checksum, self.answer(job.size, message.bytes())?);
            message.advance();
        }
        Ok(checksum)
    }

    /// All round trips, on the side with the clock, with [`UNDER_WAY`] requests unanswered. The checksum of what came.
    fn requests(&mut self, _job: &Job) -> Result<u64, Failure> {
        Err(Failure::Error("this transport has no requests".into()))
    }

    /// All messages one way, each some time after the one before it.
    fn trickle(&mut self, job: &Job) -> Result<(), Failure> {
        let mut message = Message::new(job);
        for _ in 0..job.count {
            thread::sleep(PACE);
            self.send(message.bytes())?;
            message.advance();
        }
        Ok(())
    }

    /// All messages one way, as fast as they go.
    fn flood(&mut self, job: &Job) -> Result<(), Failure> {
        let mut message = Message::new(job);
        for _ in 0..job.count {
            self.send(message.bytes())?;
            message.advance();
        }
        Ok(())
    }

    /// Receives all of them. Their checksum.
    fn drain(&mut self, job: &Job) -> Result<u64, Failure> {
        let mut checksum = 0;
        for _ in 0..job.count {
            checksum = fold(checksum, self.recv(job.size)?);
        }
        Ok(checksum)
    }

    /// Receives as many from each of several senders. A checksum for each, as there is no order between them.
    fn gather(&mut self, job: &Job, senders: usize) -> Result<Vec<u64>, Failure> {
        let mut checksums = vec![0; senders];
        for _ in 0..job.count * senders as u64 {
            let (sender, sum) = self.recv_from_any(job.size)?;
            checksums[sender] = fold(checksums[sender], sum);
        }
        Ok(checksums)
    }
}

/// How long one side waits for the others before it takes them for dead.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Whoever it is that does not answer.
#[cold]
pub fn gone() -> Failure {
    Failure::PeerGone(
        "another process of the benchmark does not answer; run it again on an idle machine".into(),
    )
}

/// Nanoseconds, with three digits; what takes longer than ten seconds counts as ten.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("these bounds are allowed")
}

/// Processor time that this process has taken so far, in nanoseconds.
pub fn cpu_time() -> Result<u64, Failure> {
    let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map_err(|e| Failure::system("ask for the processor time")(e.into()))?;
    Ok(nanoseconds(Duration::from(now)))
}

/// Bytes of memory that are this process's; of what several map, its share.
pub fn memory() -> Result<u64, Failure> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup");
    let rollup = rollup.map_err(Failure::system("ask for the memory in use"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(1024 * kib.unwrap_or(0))
}

/// A duration in the unit of the report.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The checksum that a job's messages have when they come whole and in order.
pub fn expected_checksum(job: &Job) -> u64 {
    let mut message = Message::new(job);
    if job.size < NUMBER_BYTES {
        return (0..job.count).fold(0, |checksum, _| {
            let checksum = fold(checksum, sum(message.bytes()));
            message.advance();
            checksum
        });
    }
    // The number is the first word of the sum; the rest does not change.
    let rest = sum(message.bytes()).wrapping_sub(job.first);
    (job.first..job.first + job.count).fold(0, |checksum, number| {
        fold(checksum, rest.wrapping_add(number))
    })
}

/// A checksum goes on with the sum of the next message: the order matters.
#[inline]
pub fn fold(checksum: u64, sum: u64) -> u64 {
    checksum.rotate_left(1).wrapping_add(sum)
}

/// Every byte, eight at a time.
#[inline]
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<NUMBER_BYTES>();
    let words = words.iter().fold(0u64, |sum, word| {
        sum.wrapping_add(u64::from_le_bytes(*word))
    });
    rest.iter()
        .fold(words, |sum, &byte| sum.wrapping_add(u64::from(byte)))
}

const NUMBER_BYTES: usize = size_of::<u64>();

/// A message: its number, as far as there is room, before what never changes.
#[derive(Debug)]
pub struct Message {
    /// This one, and beside it the next: a small one is made well before it is sent, so that the copy need not wait for the
    /// number to be stored.
    bytes: Vec<u8>,
    size: usize,
    /// Where this one begins.
    at: usize,
    /// Where the next one begins, if it is not here.
    other: usize,
    number: u64,
}

/// Bytes in a message that is made ahead.
const SMALL: usize = 4096;

impl Message {
    /// The first of a job.
    pub fn new(job: &Job) -> Self {
        let size = job.size;
        let other = if size <= SMALL { size } else { 0 };
        let mut message = Self {
            bytes: (0..size).map(|i| (i * 31 + 7) as u8).collect(),
            size,
            at: 0,
            other,
            number: job.first,
        };
        stamp(&mut message.bytes, job.first);
        if other > 0 {
            message.bytes.extend_from_within(..);
            stamp(&mut message.bytes[other..], job.first + 1);
        }
        message
    }

    /// All of it.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.at..][..self.size]
    }

    /// Goes on to the next one.
    #[inline]
    pub fn advance(&mut self) {
        let ahead = if self.other > 0 { 2 } else { 1 };
        stamp(&mut self.bytes[self.at..][..self.size], self.number + ahead);
        self.number += 1;
        self.at = self.other - self.at;
    }
}

/// Writes a message's number into its beginning.
#[inline]
pub fn stamp(bytes: &mut [u8], number: u64) {
    let number = number.to_le_bytes();
    match bytes.first_chunk_mut() {
        Some(place) => *place = number,
        None => bytes
            .iter_mut()
            .zip(number)
            .for_each(|(place, byte)| *place = byte),
    }
}

/// buslane itself: a topic for each direction.
#[derive(Debug)]
pub struct BusLink {
    /// To the other side.
    pub publisher: Publisher<[u8]>,
    /// From the other side.
    pub subscriber: Subscriber<[u8]>,
    /// The lanes of those met so far.
    pub senders: Vec<u64>,
}

impl Link for BusLink {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        Ok(self.publisher.send(message)?)
    }

    #[inline(always)]
    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        Ok(sum(&self.subscriber.recv()?))
    }

    #[inline]
    fn recv_from_any(&mut self, _size: usize) -> Result<(usize, u64), Failure> {
        // A sender that dies does not end the topic while there are others.
        let Some(frame) = self.subscriber.recv_timeout(PATIENCE)? else {
            return Err(gone());
        };
        let lane = frame.lane();
        let known = self.senders.iter().position(|sender| *sender == lane);
        let sender = known.unwrap_or_else(|| {
            self.senders.push(lane);
            self.senders.len() - 1
        });
        Ok((sender, sum(&frame)))
    }
}

/// Who asks a service. A reply is summed where it lies.
#[derive(Debug)]
pub struct ClientLink(pub Client);

impl Link for ClientLink {
    fn send(&mut self, _message: &[u8]) -> Result<(), Failure> {
        Err(one_way())
    }

    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        Err(one_way())
    }

    #[inline]
    fn ask(&mut self, message: &[u8], _size: usize) -> Result<u64, Failure> {
        match self.0.call(message)? {
            Ok(reply) => Ok(sum(&reply)),
            Err(refusal) => Err(refused(refusal)),
        }
    }

    fn requests(&mut self, job: &Job) -> Result<u64, Failure> {
        let mut message = Message::new(job);
        let mut under_way = VecDeque::with_capacity(UNDER_WAY);
        let mut checksum = 0;
        let mut take = |pending: Pending| match pending.wait()? {
            Ok(reply) => {
                checksum = fold(checksum, sum(&reply));
                Ok(())
            }
            Err(refusal) => Err(refused(refusal)),
        };
        for _ in 0..job.count {
            if under_way.len() == UNDER_WAY {
                under_way.pop_front().map(&mut take).transpose()?;
            }
            under_way.push_back(self.0.start(message.bytes())?);
            message.advance();
        }
        under_way.into_iter().try_for_each(take)?;
        Ok(checksum)
    }
}

#[cold]
fn refused(refusal: Refusal) -> Failure {
    Failure::Error(refusal.to_string())
}

/// Who answers for it.
#[derive(Debug)]
pub struct ServerLink(pub Server);

impl Link for ServerLink {
    fn send(&mut self, _message: &[u8]) -> Result<(), Failure> {
        Err(one_way())
    }

    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        Err(one_way())
    }

    #[inline]
    fn answer(&mut self, _size: usize, answer: &[u8]) -> Result<u64, Failure> {
        let request = self.0.recv()?;
        let sum = sum(&request);
        request.reply(answer)?;
        Ok(sum)
    }
}

#[cold]
fn one_way() -> Failure {
    Failure::Error("a request does not go one way".into())
}
