//! Who is there, and a notice when that changes.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::bus::{OBSERVED_EVERY, TopicInner, forked};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::{fork, park, roster};
use crate::wait::{Next, WaitStrategy, Waiter};

/// Watches who publishes and who subscribes to a topic, without being counted. Waiting here sleeps.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let topic = buslane::Bus::at(dir.path().join("bus"))?.topic("t")?;
/// let mut presence = topic.presence()?;
/// assert_eq!(presence.subscribers()?, 0);
/// let subscriber = topic.subscriber()?;
/// assert!(presence.changed(None)?);
/// assert_eq!(presence.subscribers()?, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Presence {
    topic: Arc<TopicInner>,
    seen: u64,
    born: u64,
}

impl Presence {
    pub(crate) fn watch(topic: &Arc<TopicInner>) -> Result<Self> {
        topic.bus.listen()?;
        let seen = roster::state(&topic.files.control);
        Ok(Self {
            topic: Arc::clone(topic),
            seen,
            born: fork::generation(),
        })
    }

    fn check_fork(&self) -> Result<()> {
        if self.born == fork::generation() {
            Ok(())
        } else {
            Err(forked("watch", &self.topic.files.name))
        }
    }

    /// How many publishers there are; may have changed by the time it returns.
    ///
    /// # Errors
    ///
    /// `Forked`, and the system's.
    pub fn publishers(&mut self) -> Result<usize> {
        self.check_fork()?;
        self.topic.files.count_open_lanes()
    }

    /// How many subscribers there are; may have changed by the time it returns.
    ///
    /// # Errors
    ///
    /// `Forked`, `Unsupported` if the bus is only observed, and the system's.
    pub fn subscribers(&mut self) -> Result<usize> {
        self.check_fork()?;
        self.topic.files.count_cursors()
    }

    /// Waits until there are `n` publishers, or more.
    ///
    /// # Errors
    ///
    /// `TimedOut`, `Forked`, and the system's.
    pub fn wait_for_publishers(&mut self, n: usize, timeout: Option<Duration>) -> Result<()> {
        let topic = Arc::clone(&self.topic);
        until(&topic, "wait for publishers of", timeout, || {
            Ok(self.publishers()? >= n)
        })
    }

    /// Waits until there are `n` subscribers, or more.
    ///
    /// # Errors
    ///
    /// `TimedOut`, `Forked`, and the system's.
    pub fn wait_for_subscribers(&mut self, n: usize, timeout: Option<Duration>) -> Result<()> {
        let topic = Arc::clone(&self.topic);
        until(&topic, "wait for subscribers of", timeout, || {
            Ok(self.subscribers()? >= n)
        })
    }

    /// Waits until somebody has joined or left since the last call (or since this was made); `false` if nobody did for `timeout`.
    ///
    /// # Errors
    ///
    /// `Forked`, and the system's.
    pub fn changed(&mut self, timeout: Option<Duration>) -> Result<bool> {
        let topic = Arc::clone(&self.topic);
        let seen = self.seen;
        match until(&topic, "watch", timeout, || {
            self.check_fork()?;
            self.seen = roster::state(&topic.files.control);
            Ok(self.seen != seen)
        }) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::TimedOut => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Sleeps from change to change of the roster until `done`.
pub(crate) fn until(
    topic: &TopicInner,
    tried: &'static str,
    timeout: Option<Duration>,
    mut done: impl FnMut() -> Result<bool>,
) -> Result<()> {
    topic.bus.check_fork()?;
    let mut waiter = Waiter::new(WaitStrategy::Sleep, timeout);
    let observed = topic.files.is_observed();
    loop {
        topic.files.look_again()?;
        // Read before looking, so that a change after it is not slept over.
        let seen = roster::state(&topic.files.control);
        if done()? {
            return Ok(());
        }
        match waiter.next(0) {
            Next::Look => {}
            Next::Sleep(time) if observed => thread::sleep(time.min(OBSERVED_EVERY)),
            Next::Sleep(time) => park::await_change(&topic.files.control, seen, time),
            Next::TimedOut => {
                let on = Arc::clone(&topic.files.name);
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    tried,
                    on,
                    "they did not come in time",
                )
                .advise("start them, or wait longer"));
            }
        }
    }
}
