//! Ending on SIGINT and SIGTERM with everything put away. The second signal ends at once.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::exit;

use crate::failure::Failure;

/// How long a wait that a signal does not interrupt lasts before it is asked for again.
pub const SLICE: Duration = Duration::from_millis(250);

/// Whether a signal has asked this process to end, or it ends by itself.
#[derive(Clone, Debug)]
pub struct Stop {
    signal: Arc<OnceLock<u8>>,
    ended: Arc<OnceLock<()>>,
    /// Nothing is sent; it is disconnected when a signal has come.
    came: Receiver<()>,
}

impl Stop {
    /// Takes over SIGINT and SIGTERM.
    pub fn install() -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::Error(format!("cannot handle signals: {e}"));
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
        let signal = Arc::new(OnceLock::new());
        let (held, came) = bounded(0);
        let first = Arc::clone(&signal);
        thread::Builder::new()
            .name(String::from("signals"))
            .spawn(move || {
                let mut held = Some(held);
                for number in signals.forever() {
                    if first.set(u8::try_from(number).unwrap_or(0)).is_err() {
                        exit(128 + number);
                    }
                    held = None;
                }
                drop(held);
            })
            .map_err(failed)?;
        let ended = Arc::default();
        Ok(Self {
            signal,
            ended,
            came,
        })
    }

    /// Whether one has come, or it ends by itself.
    pub fn is_set(&self) -> bool {
        self.signal.get().is_some() || self.ended.get().is_some()
    }

    /// Has all end that look here, as a signal would.
    pub fn end(&self) {
        let _ = self.ended.set(());
    }

    /// An error once a signal has come.
    pub fn check(&self) -> Result<(), Failure> {
        self.signal
            .get()
            .map_or(Ok(()), |&number| Err(Failure::Signal(number)))
    }

    /// Ready when a signal has come.
    pub fn came(&self) -> &Receiver<()> {
        &self.came
    }

    /// Waits, but not beyond a signal: whether to end.
    pub fn wait(&self, time: Duration) -> bool {
        let _ = self.came.recv_timeout(time);
        self.is_set()
    }

    /// Waits a little, but not beyond a signal: whether to end.
    pub fn wait_slice(&self) -> bool {
        self.wait(SLICE)
    }
}
