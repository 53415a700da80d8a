//! `buslane top`: the topics of a bus, live.

mod detail;
mod list;
mod screen;
mod watch;

#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use serde::Serialize;

use self::screen::{Next, Screen};
use self::watch::Watch;
use crate::Common;
use crate::failure::Failure;
use crate::ls::open_to_look;
use crate::output::{json_line, stdout};
use crate::signals::Stop;

/// Watch topics, live
///
/// A table of the topics: rate, lag, losses, sleepers, latency; `?` says what the columns are, and what the keys do.
/// Where stdout or stdin is no terminal, and with --json, it prints a line of JSON for each topic and interval instead, until
/// it is ended or nobody reads it. Looking slows nobody.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  buslane top
  buslane top 'orders/**' --interval 5s
  buslane top --json | jq -c 'select(.lag > 1000) | {topic, lag, msgs_per_s}'

`latency`, in JSON, and P50 and P99 are there where messages carry the time when they were sent. At each look, for each
reader, it is how long the oldest message that it has not released had been waiting, and 0 if it had released all; looks
while nothing is sent and nothing waits don't count. Readers say from time to time, and when idle, what they have
released: while they are busy, this is more than it really was. `waited_ns` is the longest of them at the last look.")]
pub struct Args {
    /// Only the topic of this name, or those that match: `orders/*` one more segment, `orders/**` any
    #[arg(value_name = "PATTERN")]
    pattern: Option<String>,
    /// How long from one look to the next (500ms, 5s)
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
}

/// Between the first two looks on a terminal: nobody wants to wait longer for the first rates.
const FIRST: Duration = Duration::from_millis(200);

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text)
        .map_err(|error| format!("`{text}` is no time: {error}; write 500ms or 5s"))?;
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    match interval {
        _ if interval < Duration::from_millis(10) => {
            Err(String::from("less than 10ms would slow others"))
        }
        _ if interval > YEAR => Err(String::from("a year is the longest")),
        _ => Ok(interval),
    }
}

/// A topic that can't be looked at, in JSON.
#[derive(Serialize)]
struct Trouble<'a> {
    topic: &'a str,
    error: &'a str,
}

/// Watches until it is told to end.
pub fn run(common: &Common, args: &Args, stop: &Stop) -> Result<(), Failure> {
    let mut watch = Watch::new(open_to_look(common)?, args.pattern.clone())?;
    watch.look()?;
    if common.json || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return lines(&mut watch, args.interval, stop);
    }
    let mut terminal = Restored::init()?;
    live(&mut terminal.0, &mut watch, args.interval, stop)
}

/// A line for each topic and interval.
fn lines(watch: &mut Watch, interval: Duration, stop: &Stop) -> Result<(), Failure> {
    let mut out = stdout(stop)?;
    let mut due = Instant::now() + interval;
    loop {
        while let Some(left) = left_until(due) {
            // Nothing is asked for: only an error is told.
            let is_closed = stop
                .wait_for(out.get_ref().as_fd(), PollFlags::empty(), left)
                .map_err(Failure::stdout)?;
            stop.check()?;
            if is_closed {
                return Err(Failure::StdoutClosed);
            }
        }
        due = Instant::now() + interval;
        watch.look()?;
        for topic in watch.topics.values() {
            json_line(&mut out, &topic.line())?;
        }
        for (topic, error) in &watch.troubles {
            json_line(&mut out, &Trouble { topic, error })?;
        }
        out.flush().map_err(Failure::stdout)?;
    }
}

fn left_until(due: Instant) -> Option<Duration> {
    let left = due.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}

/// The terminal, as it was before once this is dropped; also if there is a panic.
struct Restored(DefaultTerminal);

impl Restored {
    fn init() -> Result<Self, Failure> {
        let terminal = ratatui::try_init();
        if terminal.is_err() {
            ratatui::restore();
        }
        terminal
            .map(Self)
            .map_err(Failure::system("use the terminal"))
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn live(
    terminal: &mut DefaultTerminal,
    watch: &mut Watch,
    interval: Duration,
    stop: &Stop,
) -> Result<(), Failure> {
    let failed = Failure::system("use the terminal");
    let stdin = io::stdin();
    let mut screen = Screen::new();
    let mut due = Instant::now() + interval.min(FIRST);
    // From here on a window that changes its size interrupts the wait.
    event::poll(Duration::ZERO).map_err(&failed)?;
    loop {
        terminal
            .draw(|frame| screen.draw(frame, watch))
            .map_err(&failed)?;
        match left_until(due) {
            Some(left) => {
                stop.wait_for(stdin.as_fd(), PollFlags::POLLIN, left)
                    .map_err(&failed)?;
            }
            None => {
                due = Instant::now() + interval;
                watch.look()?;
            }
        }
        stop.check()?;
        // All of them: what was read with an earlier one shows on no descriptor.
        while event::poll(Duration::ZERO).map_err(&failed)? {
            let event = event::read().map_err(&failed)?;
            if let Event::Key(key) = event
                && key.kind == KeyEventKind::Press
                && screen.key(key, watch) == Next::Leave
            {
                return Ok(());
            }
        }
    }
}
