//! What is measured, between which.

use buslane_cli::bench::{BUSLANE, FUTEX, PIPE, PUBSUB, Plan, RAW, Transport, UDS, Wait, What};

use crate::transport::{
    BATCH, FEW_SLOTS, ICEORYX2, MEMCPY, MQUEUE, RINGFIRE, RINGFIRE_BATCH, SEQPACKET, SLEEPING,
    SLOTS, TYPED,
};

/// One question.
#[derive(Clone, Debug)]
pub struct Section {
    /// What it is called in the results, and by `--only`.
    pub name: &'static str,
    /// As a headline.
    pub title: &'static str,
    /// How it is measured, beyond what goes for all.
    pub note: &'static str,
    pub what: What,
    pub sizes: &'static [usize],
    pub peers: &'static [usize],
    /// The first is buslane.
    pub transports: &'static [Transport],
    pub wait: Wait,
    /// All share one CPU.
    pub one_cpu: bool,
    pub capacity: Option<usize>,
}

const PLAIN: Section = Section {
    name: "",
    title: "",
    note: "",
    what: What::Rtt,
    sizes: &[64],
    peers: &[1],
    transports: &[],
    wait: Wait::Adaptive,
    one_cpu: false,
    capacity: None,
};

const SLEEPERS: &[Transport] = &[
    BUSLANE, FUTEX, PIPE, UDS, SEQPACKET, MQUEUE, ICEORYX2, RINGFIRE,
];

/// All of them.
pub const SECTIONS: [Section; 11] = [
    Section {
        name: "rtt",
        title: "Round trip",
        note: "There and back, answered at once. What carries the bytes, and does nothing else: `memcpy`, a copy into a shared buffer, a counter, a sum out of it; `slots-16`, the same with a word before each message in the place of the counter, and no more than 16 places for them.",
        sizes: &[8, 64, 256, 1024],
        transports: &[
            BUSLANE, TYPED, RAW, MEMCPY, FEW_SLOTS, ICEORYX2, RINGFIRE, PIPE,
        ],
        ..PLAIN
    },
    Section {
        name: "rate",
        title: "Rate, one way",
        note: "From the first message that is sent to the word that the last was received. What carries the bytes, and does nothing else: `memcpy`, as above; `slots`, the same with a word before each message.",
        what: What::Rate,
        sizes: &[8, 64, 1024, 65536],
        transports: &[
            BUSLANE,
            TYPED,
            BATCH,
            MEMCPY,
            SLOTS,
            ICEORYX2,
            RINGFIRE,
            RINGFIRE_BATCH,
            PIPE,
            UDS,
            SEQPACKET,
            MQUEUE,
        ],
        ..PLAIN
    },
    Section {
        name: "large",
        title: "Large messages, one way",
        note: "1 MiB each, through lanes (and a shared buffer) of 16 MiB.",
        what: What::Rate,
        sizes: &[1 << 20],
        transports: &[BUSLANE, MEMCPY, ICEORYX2, PIPE, UDS],
        capacity: Some(16 << 20),
        ..PLAIN
    },
    Section {
        name: "wake",
        title: "Sleeping round trip, two CPUs",
        note: "Both sides sleep for each message.",
        what: What::Wake,
        transports: SLEEPERS,
        wait: Wait::Park,
        ..PLAIN
    },
    Section {
        name: "wake-one-cpu",
        title: "Sleeping round trip, one CPU",
        note: "The same, both sides on one CPU.",
        what: What::Wake,
        transports: SLEEPERS,
        wait: Wait::Park,
        one_cpu: true,
        ..PLAIN
    },
    Section {
        name: "one-cpu",
        title: "Round trip where both share one CPU",
        note: "What looking before sleeping costs where the other can't run meanwhile: `buslane` waits as it does by default, `buslane-sleep` sleeps at once.",
        transports: &[BUSLANE, SLEEPING, PIPE, UDS],
        one_cpu: true,
        ..PLAIN
    },
    Section {
        name: "request",
        title: "Request and reply",
        note: "One at a time. `pubsub`: the same over two of buslane's topics.",
        what: What::Request,
        sizes: &[8, 64, 1024],
        transports: &[BUSLANE, RAW, PUBSUB, ICEORYX2, PIPE, UDS],
        ..PLAIN
    },
    Section {
        name: "requests",
        title: "Requests, 64 under way",
        note: "One client, one server.",
        what: What::Requests,
        transports: &[BUSLANE, ICEORYX2],
        ..PLAIN
    },
    Section {
        name: "fanout",
        title: "Fan-out: one to each of several",
        note: "Messages sent a second; each receiver gets all. With more processes than CPUs, those that only look yield.",
        what: What::Fanout,
        peers: &[1, 2, 4, 8],
        transports: &[BUSLANE, ICEORYX2, RINGFIRE, PIPE, UDS],
        ..PLAIN
    },
    Section {
        name: "fanin",
        title: "Fan-in: several to one",
        note: "Messages received a second, of all senders together.",
        what: What::Fanin,
        peers: &[1, 2, 4, 8],
        transports: &[BUSLANE, ICEORYX2, RINGFIRE, PIPE, UDS],
        ..PLAIN
    },
    Section {
        name: "paced",
        title: "Processor time for a message that comes seldom",
        note: "One message of 64 B a millisecond, one way; the time of both processes. Each waits as it does by default; whoever can only look takes a whole CPU.",
        what: What::Paced,
        transports: &[BUSLANE, PIPE, UDS, SEQPACKET, MQUEUE, ICEORYX2, RINGFIRE],
        ..PLAIN
    },
];

impl Section {
    /// The plans of so many rounds: one for each size, so that what is set up fits it.
    pub fn plans(&self, rounds: u32, cpus: &[usize]) -> Vec<Plan> {
        let cpus = match self.one_cpu {
            true => vec![cpus[0]; 2],
            false => cpus.to_vec(),
        };
        let plan = |&size: &usize| Plan {
            what: self.what,
            sizes: vec![size],
            peers: self.peers.to_vec(),
            rounds,
            transports: self.carriers(size),
            wait: self.wait,
            cpus: cpus.clone(),
            capacity: self.capacity,
        };
        self.sizes.iter().map(plan).collect()
    }

    /// Those that can carry messages of this size.
    fn carriers(&self, size: usize) -> Vec<Transport> {
        let can = |transport: &&Transport| **transport != MQUEUE || size <= LONGEST_QUEUED;
        self.transports.iter().filter(can).copied().collect()
    }

    /// Whether the figures are times: less is better.
    pub fn is_time(&self) -> bool {
        matches!(
            self.what,
            What::Rtt | What::Wake | What::Request | What::Paced
        )
    }
}

/// /proc/sys/fs/mqueue/msgsize_max, where nobody has changed it.
const LONGEST_QUEUED: usize = 8192;
