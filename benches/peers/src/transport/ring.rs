//! ringfire: slots of a fixed size, copied into and out of. Lossless, as all others here are.

use std::hint::black_box;
use std::path::PathBuf;

use buslane_cli::bench::link::{Job, Link, fold, sum};
use buslane_cli::bench::setup::{Setup, Side};
use buslane_cli::bench::{Offer, Transport, Wait};
use buslane_cli::failure::Failure;
use ringfire::{
    BusySpin, FlowControl, FutexWait, RingConsumer, RingProducer, RingProducerBuilder, YieldBackoff,
};
use zerocopy::FromBytes;

use super::{BATCHED, BySize, Bytes, Rows, by_size, failed, look, yields};

/// A ring of about the size of buslane's lanes for each direction; its readers look again and again, or, where buslane
/// sleeps, sleep at once.
pub const RINGFIRE: Transport = Transport {
    name: "ringfire",
    is_floor: false,
    offer: |setup| {
        finish(by_size!(&setup.sizes, |N| Half::<N>::make(
            "ring",
            setup,
            Side::Clock
        )?))
    },
    join: |setup, side| {
        Ok(Box::new(by_size!(&setup.sizes, |N| {
            let mut half = Half::<N>::make("ring", setup, side)?;
            half.attach()?;
            half
        })))
    },
};

/// The same with many at a time, where they go one way.
pub const RINGFIRE_BATCH: Transport = Transport {
    name: "ringfire-batch",
    is_floor: false,
    offer: |setup| {
        finish(by_size!(&setup.sizes, |N| Batch::<N>::make(
            setup,
            Side::Clock
        )?))
    },
    join: |setup, side| {
        Ok(Box::new(by_size!(&setup.sizes, |N| {
            let mut batch = Batch::<N>::make(setup, side)?;
            batch.half.attach()?;
            batch
        })))
    },
};

fn finish(made: BySize) -> Result<Offer, Failure> {
    Ok(Box::new(move |_| {
        let mut whole = made;
        for (_, link) in &mut whole.0 {
            link.send(&[])?; // the other direction's ring is there now
        }
        Ok(Box::new(whole))
    }))
}

struct Batch<const N: usize> {
    half: Half<N>,
    received: Vec<Bytes<N>>,
}

impl<const N: usize> Batch<N> {
    fn make(setup: &Setup, side: Side) -> Result<Self, Failure> {
        Ok(Self {
            half: Half::make("batch", setup, side)?,
            received: vec![Bytes([0; N]); BATCHED],
        })
    }
}

impl<const N: usize> Link for Batch<N> {
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        self.half.send(message)
    }

    fn recv(&mut self, size: usize) -> Result<u64, Failure> {
        self.half.recv(size)
    }

    fn flood(&mut self, job: &Job) -> Result<(), Failure> {
        let mut rows = Rows::new(job);
        while let Some(row) = rows.next() {
            self.half.producer.push_batch(row);
        }
        Ok(())
    }

    fn drain(&mut self, job: &Job) -> Result<u64, Failure> {
        let Self { half, received } = self;
        let (mut checksum, mut left) = (0, job.count as usize);
        while left > 0 {
            let most = left.min(received.len());
            let came = look(half.yields, || {
                let came = half.consumers[0].recv_batch(&mut received[..most]);
                Ok((came > 0).then_some(came))
            })?;
            for message in &received[..came] {
                checksum = fold(checksum, sum(&message.0));
            }
            left -= came;
        }
        Ok(checksum)
    }
}

/// Makes its own ring at once, and finds the other side's when it is told to, by an empty message.
struct Half<const N: usize> {
    producer: RingProducer<Bytes<N>>,
    incoming: Vec<PathBuf>,
    consumers: Vec<RingConsumer<Bytes<N>>>,
    /// The one that had something last.
    at: usize,
    sleeps: bool,
    yields: bool,
}

impl<const N: usize> Half<N> {
    fn make(name: &str, setup: &Setup, side: Side) -> Result<Self, Failure> {
        let path = |from: Side| match from {
            Side::Clock => setup.dir.join(format!("{name}-{N}")),
            Side::Peer(number) => setup.dir.join(format!("{name}-{N}-{number}")),
        };
        let incoming = match side {
            Side::Clock => (0..setup.peers)
                .map(|number| path(Side::Peer(number)))
                .collect(),
            Side::Peer(_) => vec![path(Side::Clock)],
        };
        let bytes = setup.capacity.unwrap_or(buslane::DEFAULT_CAPACITY);
        let producer = RingProducerBuilder::new((bytes / N).max(4) as u64)
            .flow_control(FlowControl::LosslessBackpressure)
            .build(path(side))
            .map_err(|e| failed("make a ring of ringfire")(&e))?;
        Ok(Self {
            producer,
            incoming,
            consumers: Vec::new(),
            at: 0,
            sleeps: setup.wait == Wait::Park,
            yields: yields(setup),
        })
    }

    #[cold]
    fn attach(&mut self) -> Result<(), Failure> {
        for path in &self.incoming {
            let consumer = RingConsumer::attach(path);
            self.consumers
                .push(consumer.map_err(|e| failed("attach to a ring of ringfire")(&e))?);
        }
        Ok(())
    }
}

impl<const N: usize> Link for Half<N> {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        match Bytes::<N>::ref_from_bytes(message) {
            Ok(item) => self.producer.push(item),
            Err(_) => self.attach()?, // told so by an empty one
        }
        Ok(())
    }

    #[inline]
    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        let consumer = &mut self.consumers[0];
        let item = if self.sleeps {
            consumer.recv_blocking(&mut FutexWait::new(0, None))
        } else if self.yields {
            consumer.recv_blocking(&mut YieldBackoff::default())
        } else {
            consumer.recv_blocking(&mut BusySpin::new())
        };
        // By its address: a compiler that sees through the copies takes minutes for the long ones.
        Ok(sum(&black_box(&item).0))
    }

    fn recv_from_any(&mut self, _size: usize) -> Result<(usize, u64), Failure> {
        let Self {
            consumers,
            at,
            yields,
            ..
        } = self;
        let item = look(*yields, || {
            for _ in 0..consumers.len() {
                if let Some(item) = consumers[*at].try_recv() {
                    return Ok(Some(item));
                }
                *at = (*at + 1) % consumers.len();
            }
            Ok(None)
        })?;
        Ok((*at, sum(&black_box(&item).0)))
    }
}
