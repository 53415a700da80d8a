//! The library's typed topics, and its batches.

use buslane::{Bus, Message, Publisher, Subscriber, WaitStrategy};
use buslane_cli::bench::link::{self, BusLink, Job, Link, fold, sum};
use buslane_cli::bench::setup::{Setup, Side};
use buslane_cli::bench::{Linked, Transport};
use buslane_cli::failure::Failure;
use zerocopy::FromBytes;

use super::{Bytes, by_size};

macro_rules! messages {
    ($($size:literal),*) => {
        $(impl Message for Bytes<$size> {
            const NAME: &'static str = concat!("peers.Bytes", $size);
        })*
    };
}
messages!(8, 64, 256, 1024, 65536);

/// Values of a type.
pub const TYPED: Transport = Transport {
    name: "buslane-typed",
    is_floor: false,
    offer: |_| Ok(Box::new(|setup| typed(setup, Side::Clock))),
    join: typed,
};

fn typed(setup: &Setup, side: Side) -> Linked {
    Ok(Box::new(by_size!(&setup.sizes, |N| Typed::<N>::new(
        setup, side
    )?)))
}

struct Typed<const N: usize>
where
    Bytes<N>: Message,
{
    publisher: Publisher<Bytes<N>>,
    subscriber: Subscriber<Bytes<N>>,
}

impl<const N: usize> Typed<N>
where
    Bytes<N>: Message,
{
    fn new(setup: &Setup, side: Side) -> Result<Self, Failure> {
        let bus = setup.bus()?;
        let topic = |direction| bus.typed(&format!("typed/{N}/{direction}"));
        let subscriber = topic(side.incoming())?.subscriber()?;
        let publisher = topic(side.outgoing())?.publisher()?;
        Ok(Self {
            publisher,
            subscriber,
        })
    }
}

impl<const N: usize> Link for Typed<N>
where
    Bytes<N>: Message,
{
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        let value = Bytes::<N>::ref_from_bytes(message);
        let value = value.map_err(|_| Failure::Error("a message of another size".into()))?;
        self.publisher.send_value(value)?;
        Ok(())
    }

    #[inline]
    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        Ok(sum(&self.subscriber.recv()?.0))
    }
}

/// Bytes, many at a time where they go one way.
pub const BATCH: Transport = Transport {
    name: "buslane-batch",
    is_floor: false,
    offer: |_| {
        Ok(Box::new(|setup| {
            Ok(Box::new(Batch::new(setup, Side::Clock)?))
        }))
    },
    join: |setup, side| Ok(Box::new(Batch::new(setup, side)?)),
};

struct Batch {
    publisher: Publisher,
    subscriber: Subscriber,
}

/// Messages in a batch.
const BATCHED: usize = 64;

impl Batch {
    fn new(setup: &Setup, side: Side) -> Result<Self, Failure> {
        let bus = setup.bus()?;
        let topic = |direction| bus.topic(&format!("batch/{direction}"));
        let subscriber = topic(side.incoming())?.subscriber()?;
        let publisher = topic(side.outgoing())?.publisher()?;
        Ok(Self {
            publisher,
            subscriber,
        })
    }

    /// In arrays, whose size is known to the compiler.
    fn flood_arrays<const N: usize>(&mut self, job: &Job) -> Result<(), Failure> {
        let mut message = link::Message::new(job);
        let mut left = job.count;
        while left > 0 {
            let some = left.min(BATCHED as u64);
            self.publisher.send_batch((0..some).map(|_| {
                let bytes: [u8; N] = message.bytes().try_into().expect("the job's size");
                message.advance();
                bytes
            }))?;
            left -= some;
        }
        Ok(())
    }
}

impl Link for Batch {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        Ok(self.publisher.send(message)?)
    }

    #[inline]
    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        Ok(sum(&self.subscriber.recv()?))
    }

    fn drain(&mut self, job: &Job) -> Result<u64, Failure> {
        let (mut checksum, mut left) = (0, job.count);
        while left > 0 {
            let batch = self.subscriber.recv_batch(BATCHED)?;
            for message in &batch {
                checksum = fold(checksum, sum(message));
            }
            left -= batch.len() as u64;
        }
        Ok(checksum)
    }

    fn flood(&mut self, job: &Job) -> Result<(), Failure> {
        match job.size {
            8 => self.flood_arrays::<8>(job),
            64 => self.flood_arrays::<64>(job),
            1024 => self.flood_arrays::<1024>(job),
            _ => {
                let mut message = link::Message::new(job);
                for _ in 0..job.count {
                    self.publisher.send_batch([message.bytes()])?;
                    message.advance();
                }
                Ok(())
            }
        }
    }
}

/// Bytes, with both sides asleep until woken whatever the others do.
pub const SLEEPING: Transport = Transport {
    name: "buslane-sleep",
    is_floor: false,
    offer: |_| Ok(Box::new(|setup| sleeping(setup, Side::Clock))),
    join: sleeping,
};

fn sleeping(setup: &Setup, side: Side) -> Linked {
    let sleep = WaitStrategy::Sleep;
    let bus = Bus::builder().wait(sleep).at(setup.dir.join("bus"))?;
    let topic = |direction| bus.topic(&format!("sleep/{direction}"));
    let subscriber = topic(side.incoming())?.subscriber()?;
    let publisher = topic(side.outgoing())?.publisher()?;
    Ok(Box::new(BusLink {
        publisher,
        subscriber,
        senders: Vec::new(),
    }))
}
