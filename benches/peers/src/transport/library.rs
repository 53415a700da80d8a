//! The library's typed topics, and its batches.

use buslane::{Bus, Message, Publisher, Subscriber, WaitStrategy};
use buslane_cli::bench::link::{BusLink, Job, Link, fold, sum};
use buslane_cli::bench::setup::{Setup, Side};
use buslane_cli::bench::{Linked, Transport};
use buslane_cli::failure::Failure;
use zerocopy::FromBytes;

use super::{BATCHED, Bytes, Rows, by_size};

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
        "typed", setup, side
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
    fn new(name: &str, setup: &Setup, side: Side) -> Result<Self, Failure> {
        let bus = setup.bus()?;
        let topic = |direction| bus.typed(&format!("{name}/{N}/{direction}"));
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

/// Values of a type, many at a time where they go one way.
pub const BATCH: Transport = Transport {
    name: "buslane-batch",
    is_floor: false,
    offer: |_| Ok(Box::new(|setup| batch(setup, Side::Clock))),
    join: batch,
};

fn batch(setup: &Setup, side: Side) -> Linked {
    Ok(Box::new(by_size!(&setup.sizes, |N| Batch(
        Typed::<N>::new("batch", setup, side)?
    ))))
}

struct Batch<const N: usize>(Typed<N>)
where
    Bytes<N>: Message;

impl<const N: usize> Link for Batch<N>
where
    Bytes<N>: Message,
{
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        self.0.send(message)
    }

    #[inline]
    fn recv(&mut self, size: usize) -> Result<u64, Failure> {
        self.0.recv(size)
    }

    fn flood(&mut self, job: &Job) -> Result<(), Failure> {
        let mut rows = Rows::new(job);
        while let Some(row) = rows.next() {
            self.0.publisher.send_values(row)?;
        }
        Ok(())
    }

    fn drain(&mut self, job: &Job) -> Result<u64, Failure> {
        let (mut checksum, mut left) = (0, job.count);
        while left > 0 {
            let batch = self.0.subscriber.recv_batch(BATCHED)?;
            for message in &batch {
                checksum = fold(checksum, sum(&message.0));
            }
            left -= batch.len() as u64;
        }
        Ok(checksum)
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
