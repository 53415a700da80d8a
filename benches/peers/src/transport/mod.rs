//! What is compared: each a row of two functions, beside those that `buslane bench` has already.

mod ice;
mod library;
mod memcpy;
mod mqueue;
mod ring;
mod seqpacket;

use std::ops::Range;
use std::time::{Duration, Instant};

use buslane_cli::bench::link::{self, Job, Link, PATIENCE, RoundTrips, gone, stamp};
use buslane_cli::bench::setup::Setup;
use buslane_cli::bench::{BUSLANE, FUTEX, PIPE, PUBSUB, RAW, Transport, UDS};
use buslane_cli::failure::Failure;

pub use ice::ICEORYX2;
pub use library::{BATCH, SLEEPING, TYPED};
pub use memcpy::{FEW_SLOTS, MEMCPY, SLOTS};
pub use mqueue::MQUEUE;
pub use ring::{RINGFIRE, RINGFIRE_BATCH};
pub use seqpacket::SEQPACKET;

/// All there are, by their names.
pub const ALL: [Transport; 17] = [
    BUSLANE,
    TYPED,
    BATCH,
    SLEEPING,
    PUBSUB,
    RAW,
    MEMCPY,
    SLOTS,
    FEW_SLOTS,
    FUTEX,
    PIPE,
    UDS,
    SEQPACKET,
    MQUEUE,
    ICEORYX2,
    RINGFIRE,
    RINGFIRE_BATCH,
];

/// Those of `size` bytes are carried by a type of that size: its link is chosen once for each job.
pub struct BySize(pub Vec<(usize, Box<dyn Link>)>);

impl BySize {
    fn of(&mut self, size: usize) -> Result<&mut dyn Link, Failure> {
        let found = self.0.iter_mut().find(|(known, _)| *known == size);
        match found {
            Some((_, link)) => Ok(&mut **link),
            None => Err(Failure::Error(format!("no type has {size} bytes here"))),
        }
    }
}

impl Link for BySize {
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        self.of(message.len())?.send(message)
    }

    fn recv(&mut self, size: usize) -> Result<u64, Failure> {
        self.of(size)?.recv(size)
    }

    fn ping(&mut self, job: &Job, batch: u64) -> Result<RoundTrips, Failure> {
        self.of(job.size)?.ping(job, batch)
    }

    fn pong(&mut self, job: &Job) -> Result<u64, Failure> {
        self.of(job.size)?.pong(job)
    }

    fn flood(&mut self, job: &Job) -> Result<(), Failure> {
        self.of(job.size)?.flood(job)
    }

    fn drain(&mut self, job: &Job) -> Result<u64, Failure> {
        self.of(job.size)?.drain(job)
    }

    fn trickle(&mut self, job: &Job) -> Result<(), Failure> {
        self.of(job.size)?.trickle(job)
    }

    fn gather(&mut self, job: &Job, senders: usize) -> Result<Vec<u64>, Failure> {
        self.of(job.size)?.gather(job, senders)
    }
}

/// Builds [`BySize`] with a `$link::<N>` for each of the sizes that have a type.
macro_rules! by_size {
    ($sizes:expr, |$size:ident| $make:expr) => {{
        let mut links: Vec<(usize, Box<dyn buslane_cli::bench::link::Link>)> = Vec::new();
        for &size in $sizes {
            let link: Box<dyn buslane_cli::bench::link::Link> = match size {
                8 => {
                    const $size: usize = 8;
                    Box::new($make)
                }
                64 => {
                    const $size: usize = 64;
                    Box::new($make)
                }
                256 => {
                    const $size: usize = 256;
                    Box::new($make)
                }
                1024 => {
                    const $size: usize = 1024;
                    Box::new($make)
                }
                65536 => {
                    const $size: usize = 65536;
                    Box::new($make)
                }
                _ => {
                    return Err(buslane_cli::failure::Failure::Usage(format!(
                        "no type has {size} bytes here; the sizes are 8, 64, 256, 1024 and 64KiB"
                    )));
                }
            };
            links.push((size, link));
        }
        $crate::transport::BySize(links)
    }};
}
use by_size;

/// A message of so many bytes, as a type.
#[derive(
    Clone,
    Copy,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::KnownLayout,
    zerocopy::Immutable,
)]
#[repr(transparent)]
pub struct Bytes<const N: usize>(pub [u8; N]);

/// The messages of a job, in batches.
struct Rows<const N: usize> {
    values: Vec<Bytes<N>>,
    numbers: Range<u64>,
}

/// Messages in a batch, and bytes, at most.
const BATCHED: usize = 64;
const BATCHED_BYTES: usize = 65536;

impl<const N: usize> Rows<N> {
    fn new(job: &Job) -> Self {
        let mut value = Bytes([0; N]);
        value.0.copy_from_slice(link::Message::new(job).bytes());
        Self {
            values: vec![value; (BATCHED_BYTES / N).clamp(1, BATCHED)],
            numbers: job.first..job.first + job.count,
        }
    }

    #[inline]
    fn next(&mut self) -> Option<&[Bytes<N>]> {
        let mut some = 0;
        for (value, number) in self.values.iter_mut().zip(&mut self.numbers) {
            stamp(&mut value.0, number);
            some += 1;
        }
        (some > 0).then(|| &self.values[..some])
    }
}

/// Looks again and again until something is there.
#[inline(always)]
fn look<T>(
    yields: bool,
    mut find: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let mut looks = 0_u64;
    let mut started = None;
    loop {
        if let Some(found) = find()? {
            return Ok(found);
        }
        looks += 1;
        if looks.is_multiple_of(1 << 16) {
            let started: &mut Instant = started.get_or_insert_with(Instant::now);
            if started.elapsed() > PATIENCE + Duration::from_secs(1) {
                return Err(gone());
            }
        }
        if yields {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Whether who only looks has to give its CPU to the one that it waits for.
fn yields(setup: &Setup) -> bool {
    let mut cpus = setup.cpus.clone();
    cpus.sort_unstable();
    cpus.dedup();
    cpus.len() < 1 + setup.peers
}

/// What another library says has failed.
fn failed(what: &'static str) -> impl Fn(&dyn std::fmt::Debug) -> Failure {
    move |error| Failure::Error(format!("{what}: {error:?}"))
}
