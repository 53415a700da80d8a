//! POSIX message queues.

use buslane_cli::bench::link::{Link, sum};
use buslane_cli::bench::setup::{Setup, Side, connect};
use buslane_cli::bench::{Linked, Transport};
use buslane_cli::failure::Failure;
use nix::mqueue::{MQ_OFlag, MqAttr, MqdT, mq_open, mq_receive, mq_send, mq_unlink};
use nix::sys::stat::Mode;

/// One for each direction, as long as the system lets everybody have it.
pub const MQUEUE: Transport = Transport {
    name: "mqueue",
    is_floor: false,
    offer: |setup| {
        let queues = Queues::open(setup, Side::Clock)?;
        Ok(Box::new(|_| Ok(Box::new(queues))))
    },
    join: |setup, side| -> Linked {
        let queues = Queues::open(setup, side)?;
        for direction in 0..2 {
            // Both sides have them now.
            let _ = mq_unlink(name(setup, direction).as_str());
        }
        Ok(Box::new(queues))
    },
};

/// Messages in a queue (/proc/sys/fs/mqueue/msg_max, where nobody has changed it).
const MESSAGES: i64 = 10;

fn name(setup: &Setup, direction: usize) -> String {
    format!("/{}", setup.name(&format!("mq{direction}")))
}

struct Queues {
    outgoing: MqdT,
    incoming: MqdT,
    buffer: Vec<u8>,
}

impl Queues {
    fn open(setup: &Setup, side: Side) -> Result<Self, Failure> {
        let longest = setup.sizes.iter().copied().max().unwrap_or(0).max(8);
        let attributes = MqAttr::new(0, MESSAGES, longest as i64, 0);
        let open = |direction| {
            let flags = MQ_OFlag::O_RDWR | MQ_OFlag::O_CREAT | MQ_OFlag::O_CLOEXEC;
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            mq_open(
                name(setup, direction).as_str(),
                flags,
                mode,
                Some(&attributes),
            )
            .map_err(|e| connect(e.into()))
        };
        Ok(Self {
            outgoing: open(side.outgoing())?,
            incoming: open(side.incoming())?,
            buffer: vec![0; longest],
        })
    }
}

impl Link for Queues {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        mq_send(&self.outgoing, message, 0).map_err(|e| connect(e.into()))
    }

    #[inline]
    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        let len = mq_receive(&self.incoming, &mut self.buffer, &mut 0);
        Ok(sum(&self.buffer[..len.map_err(|e| connect(e.into()))?]))
    }
}
