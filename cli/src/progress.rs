//! A progress bar on stderr, for a person who has waited a second.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const PATIENCE: Duration = Duration::from_secs(1);

/// Counts; draws nothing unless stderr is a terminal and a second has passed.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    done: u64,
}

impl Progress {
    /// Bytes and their rate, of `total` if that is known.
    pub fn bytes(total: Option<u64>) -> Self {
        let template = match total {
            Some(_) => {
                "{bar:40} {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left"
            }
            None => "{spinner} {binary_bytes}  {binary_bytes_per_sec}",
        };
        Self::new(total, template)
    }

    /// Rounds of a measurement.
    pub fn rounds(total: usize) -> Self {
        Self::new(
            Some(total as u64),
            "{bar:40} {pos} of {len} rounds  {eta} left",
        )
    }

    fn new(total: Option<u64>, template: &str) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden()).with_style(style)
        });
        Self {
            bar,
            started: Instant::now(),
            done: 0,
        }
    }

    /// So much more is done.
    pub fn add(&mut self, amount: u64) {
        let Some(bar) = &self.bar else { return };
        self.done += amount;
        if bar.is_hidden() && self.started.elapsed() > PATIENCE {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        bar.set_position(self.done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
