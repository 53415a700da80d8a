//! Why a route can't be.

use std::fmt;

/// Why a route can't be run, or what a bus said.
#[derive(Debug)]
pub enum Error {
    /// The route contradicts itself, or the others.
    Route {
        /// Its name.
        name: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// What a bus said.
    Bus(buslane::Error),
    /// What the system said of the metrics' address.
    Listen {
        /// The address.
        at: String,
        /// What the system said.
        why: String,
    },
}

/// What may be an [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn route(name: &str, why: impl Into<String>) -> Self {
        Self::Route {
            name: name.to_owned(),
            why: why.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route { name, why } => write!(f, "cannot run the route {name}: {why}"),
            Self::Bus(error) => write!(f, "{error}"),
            Self::Listen { at, why } => write!(
                f,
                "cannot serve metrics at {at}: {why}; give another address, or none (metrics = false)"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bus(error) => Some(error),
            Self::Route { .. } | Self::Listen { .. } => None,
        }
    }
}

impl From<buslane::Error> for Error {
    fn from(error: buslane::Error) -> Self {
        Self::Bus(error)
    }
}
