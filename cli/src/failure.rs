//! Why a command ended otherwise than well, and the exit status that says so.

use std::io;

use buslane::ErrorKind;

/// Each variant is one exit status of the contract.
#[derive(Debug)]
pub enum Failure {
    /// An error, told in one line that says what to do.
    Error(String),
    /// Wrong usage.
    Usage(String),
    /// A deadline passed.
    Deadline(String),
    /// The other side died, or left before it had everything.
    PeerGone(String),
    /// Something was lost, and nothing was to be.
    Lost(String),
    /// SIGINT or SIGTERM asked to end.
    Signal(u8),
    /// Whoever read our stdout has gone: as for `cat`, no reason to complain.
    StdoutClosed,
}

impl Failure {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Error(_) => 1,
            Self::Usage(_) => 2,
            Self::Deadline(_) => 3,
            Self::PeerGone(_) => 4,
            Self::Lost(_) => 5,
            Self::Signal(number) => 128 + number,
            Self::StdoutClosed => 0,
        }
    }

    /// Says why on stderr, if there is anything to say.
    pub fn tell(&self) {
        use std::io::Write as _;
        if let Self::Error(why)
        | Self::Usage(why)
        | Self::Deadline(why)
        | Self::PeerGone(why)
        | Self::Lost(why) = self
        {
            // A closed stderr leaves the status, which says enough.
            let _ = writeln!(io::stderr(), "buslane: {why}");
        }
    }

    /// An error of the system, with what was tried.
    pub fn system(tried: &str) -> impl Fn(io::Error) -> Self {
        move |error| Self::Error(format!("cannot {tried}: {error}"))
    }

    /// A failed write to stdout.
    pub fn stdout(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::StdoutClosed,
            _ => Self::Error(format!("cannot write to stdout: {error}")),
        }
    }
}

impl From<buslane::Error> for Failure {
    fn from(error: buslane::Error) -> Self {
        let why = error.to_string();
        match error.kind() {
            ErrorKind::InvalidName | ErrorKind::InvalidCapacity => Self::Usage(why),
            ErrorKind::TimedOut => Self::Deadline(why),
            ErrorKind::Lost => Self::Lost(why),
            ErrorKind::SubscribersGone | ErrorKind::NoServer | ErrorKind::ServerDied => {
                Self::PeerGone(why)
            }
            _ => Self::Error(why),
        }
    }
}
