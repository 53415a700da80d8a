//! Why the bridge ended otherwise than well, and the exit status that says so: those of the `buslane` command.

use std::io::{self, Write as _};

use buslane::ErrorKind;

/// Each variant is one exit status.
#[derive(Debug)]
pub enum Failure {
    /// An error, told in one line that says what to do.
    Error(String),
    /// Wrong usage.
    Usage(String),
    /// SIGINT or SIGTERM asked to end.
    Signal(u8),
}

impl Failure {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Error(_) => 1,
            Self::Usage(_) => 2,
            Self::Signal(number) => 128 + number,
        }
    }

    /// Says why on stderr, if there is anything to say.
    pub fn tell(&self) {
        if let Self::Error(why) | Self::Usage(why) = self {
            tell(why);
        }
    }

    /// What Zenoh refuses, with what was tried.
    pub fn zenoh(tried: &str) -> impl Fn(zenoh::Error) -> Self {
        move |error| Self::Error(format!("cannot {tried}: {error}"))
    }
}

impl From<buslane::Error> for Failure {
    fn from(error: buslane::Error) -> Self {
        let why = error.to_string();
        match error.kind() {
            ErrorKind::InvalidName | ErrorKind::InvalidCapacity => Self::Usage(why),
            _ => Self::Error(why),
        }
    }
}

/// Says something on stderr.
pub fn tell(what: &str) {
    // A closed stderr is no reason to end.
    let _ = writeln!(io::stderr(), "buslane: {what}");
}
