//! What outlives its processes, and the machine: how long it is kept, and when it is on the disk.

mod keeper;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::keeper::Keeper;
use self::keeper::Shared;
use crate::error::Result;
use crate::shm::lane::Boundary;
use crate::shm::layout::TopicConfig;

/// Bytes in a data file of a topic that was made without saying how many: 16 MiB.
pub const DEFAULT_FILE: usize = 16 << 20;

/// When what is sent on a topic of a durable bus is on the disk. Whatever it says, messages survive the death of any process
/// from the moment `send` returns; and `sync` has all that was sent so far on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SyncPolicy {
    /// When [`sync`](crate::Publisher::sync) is called. If the kernel crashes or power is lost, what was sent after the last
    /// `sync` may be gone.
    #[default]
    WhenAsked,
    /// From time to time. If the kernel crashes or power is lost, what was sent in about the last such time may be gone.
    Every(Duration),
    /// Before `send` returns: what was sent survives the loss of power. Those that send at the same time share what that costs,
    /// as far as the filesystem lets them.
    EachMessage,
}

impl SyncPolicy {
    const EACH: u64 = u64::MAX;

    pub(crate) fn to_ns(self) -> u64 {
        match self {
            Self::WhenAsked => 0,
            Self::Every(time) => u64::try_from(time.as_nanos())
                .map_or(Self::EACH - 1, |ns| ns.clamp(1, Self::EACH - 1)),
            Self::EachMessage => Self::EACH,
        }
    }

    pub(crate) fn from_ns(ns: u64) -> Self {
        match ns {
            0 => Self::WhenAsked,
            Self::EACH => Self::EachMessage,
            ns => Self::Every(Duration::from_nanos(ns)),
        }
    }
}

impl fmt::Display for SyncPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WhenAsked => f.write_str("when asked"),
            Self::Every(time) => write!(f, "every {time:?}"),
            Self::EachMessage => f.write_str("each message"),
        }
    }
}

/// How long messages of a topic of a durable bus are kept. They go by whole data files; the one that is written now, and the one
/// before it, always stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Keep {
    /// Until every named subscription, and every subscriber that is there, has passed them; while there is no named
    /// subscription, for ever. Nothing is lost to a receiver that is away, and the disk may fill.
    #[default]
    UntilPassed,
    /// At least the last so many bytes of each publisher, and not much more. A subscription that is farther behind is told what
    /// it lost.
    Bytes(u64),
    /// At least for so long, and not much longer. A subscription that is farther behind is told what it lost.
    For(Duration),
}

impl Keep {
    pub(crate) fn to_sizes(self) -> (u64, u64) {
        match self {
            Self::UntilPassed => (0, 0),
            Self::Bytes(bytes) => (bytes.max(1), 0),
            Self::For(time) => (
                0,
                u64::try_from(time.as_nanos()).map_or(u64::MAX, |ns| ns.max(1)),
            ),
        }
    }

    pub(crate) fn of(config: &TopicConfig) -> Self {
        match (config.keep_bytes, config.keep_ns) {
            (0, 0) => Self::UntilPassed,
            (0, ns) => Self::For(Duration::from_nanos(ns)),
            (bytes, _) => Self::Bytes(bytes),
        }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UntilPassed => f.write_str("until passed"),
            Self::Bytes(bytes) => write!(f, "{bytes} bytes"),
            Self::For(time) => write!(f, "for {time:?}"),
        }
    }
}

/// All that a publisher had sent when this was taken: to wait, in any thread, until it is on the disk. Several that wait at the
/// same time share one `fdatasync`. Made by [`Publisher::sync_point`](crate::Publisher::sync_point).
#[derive(Clone)]
#[must_use]
pub struct SyncPoint {
    shared: Arc<Shared>,
    at: Boundary,
}

impl fmt::Debug for SyncPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncPoint")
            .field("position", &self.at.position)
            .finish_non_exhaustive()
    }
}

impl SyncPoint {
    pub(crate) fn new(keeper: &Keeper, at: Boundary) -> Self {
        let shared = Arc::clone(keeper.shared());
        Self { shared, at }
    }

    /// Waits until it is on the disk. Blocks the thread, as long as the disk takes.
    ///
    /// # Errors
    ///
    /// `Poisoned` if a sync of the topic has failed: what is on the disk is not known until it is opened anew. `Forked`, and the
    /// system's, if a file can't be opened.
    pub fn wait(&self) -> Result<()> {
        self.shared.sync(self.at)
    }

    /// Whether it is on the disk already.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.shared.is_synced(self.at)
    }
}
