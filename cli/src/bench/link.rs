//! One way to carry messages between processes, and what each side does with it while the clock runs.

use std::time::{Duration, Instant};

use buslane::{Client, Publisher, Request, Server, Subscriber};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::Transport;
use crate::failure::Failure;

/// One turn of one transport.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Job {
    /// What to do.
    pub kind: Kind,
    /// With what.
    pub transport: Transport,
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

    /// The same from any of several senders, and which it was: they are numbered as they are met.
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
                self.send(&message.bytes)?;
                message.advance();
                checksum = fold(checksum, self.recv(job.size)?);
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
            checksum = fold(checksum, self.recv(job.size)?);
            self.send(&message.bytes)?;
            message.advance();
        }
        Ok(checksum)
    }

    /// All messages one way, as fast as they go.
    fn flood(&mut self, job: &Job) -> Result<(), Failure> {
        let mut message = Message::new(job);
        for _ in 0..job.count {
            self.send(&message.bytes)?;
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

/// A duration in the unit of the report.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The checksum that a job's messages have when they come whole and in order.
pub fn expected_checksum(job: &Job) -> u64 {
    let mut message = Message::new(job);
    if job.size < NUMBER_BYTES {
        return (0..job.count).fold(0, |checksum, _| {
            let checksum = fold(checksum, sum(&message.bytes));
            message.advance();
            checksum
        });
    }
    // The number is the first word of the sum; the rest does not change.
    let rest = sum(&message.bytes).wrapping_sub(job.first);
    (job.first..job.first + job.count).fold(0, |checksum, number| {
        fold(checksum, rest.wrapping_add(number))
    })
}

/// The order matters.
#[inline]
fn fold(checksum: u64, sum: u64) -> u64 {
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
struct Message {
    bytes: Vec<u8>,
    number: u64,
}

impl Message {
    fn new(job: &Job) -> Self {
        let bytes = (0..job.size).map(|i| (i * 31 + 7) as u8).collect();
        let number = job.first;
        let mut message = Self { bytes, number };
        message.stamp();
        message
    }

    /// Makes it the next one: after sending, when there is time, so that the copy does not wait for this store.
    #[inline]
    fn advance(&mut self) {
        self.number += 1;
        self.stamp();
    }

    #[inline]
    fn stamp(&mut self) {
        let number = self.number.to_le_bytes();
        match self.bytes.first_chunk_mut() {
            Some(place) => *place = number,
            None => self
                .bytes
                .iter_mut()
                .zip(number)
                .for_each(|(place, byte)| *place = byte),
        }
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
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        Ok(self.publisher.send(message)?)
    }

    #[inline]
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

/// Who asks. The whole call is made in the place of sending, and summed where the reply lies.
#[derive(Debug)]
pub struct ClientLink {
    client: Client,
    sum: u64,
}

impl ClientLink {
    /// Of a service.
    pub fn new(client: Client) -> Self {
        Self { client, sum: 0 }
    }
}

impl Link for ClientLink {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        match self.client.call(message)? {
            Ok(reply) => {
                self.sum = sum(&reply);
                Ok(())
            }
            Err(refusal) => Err(Failure::Error(refusal.to_string())),
        }
    }

    #[inline]
    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        Ok(self.sum)
    }
}

/// Who answers. The request is held until there is an answer.
#[derive(Debug)]
pub struct ServerLink {
    server: Server,
    request: Option<Request>,
}

impl ServerLink {
    /// Of a service.
    pub fn new(server: Server) -> Self {
        let request = None;
        Self { server, request }
    }
}

impl Link for ServerLink {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        match self.request.take() {
            Some(request) => Ok(request.reply(message)?),
            None => Err(gone()),
        }
    }

    #[inline]
    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        let request = self.server.recv()?;
        let sum = sum(&request);
        self.request = Some(request);
        Ok(sum)
    }
}
