//! The one error of the library.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

/// What kind of failure it was: what a program decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The name of a bus or topic is empty, too long, or not of the allowed form.
    InvalidName,
    /// The capacity is no power of two, or out of range.
    InvalidCapacity,
    /// The file mode lets others write, or keeps the owner out.
    InvalidMode,
    /// The message is longer than a frame of this lane may be, a reply than its inbox takes, or a key or value than a
    /// state's.
    TooLong,
    /// There is no room now: the slowest subscriber has not yet released enough, or a state has all its keys.
    Full,
    /// The time given has passed.
    TimedOut,
    /// At least one publisher was there, the last has left, and all it sent has been received.
    Ended,
    /// Messages of a lossy topic were overwritten, or those of a durable one kept no more, before this subscriber came to them; see
    /// [`Error::lost`].
    Lost,
    /// The last subscriber left, or died, before it had received everything.
    SubscribersGone,
    /// The delivery is not this consumer's any more: its lease has run out, and the message was given to another, or its
    /// group was removed.
    LeaseLost,
    /// No server was there for the request, and none has had it.
    NoServer,
    /// A server died over the request, or gave it up: it may have been done, and no reply will come.
    ServerDied,
    /// Who asked does not want the reply any more, or has gone.
    Cancelled,
    /// There is no such bus or topic, and it was not to be made.
    NotFound,
    /// Somebody who lives uses what was to be removed.
    InUse,
    /// The topic exists with another type or capacity.
    Mismatch,
    /// A file is not buslane's.
    NotBuslane,
    /// A file is of another layout version.
    Version,
    /// A file or a frame contradicts itself.
    Corrupt,
    /// A sync has failed, and what is on the disk is not known.
    Poisoned,
    /// A directory or file belongs to another user, or is open to others.
    ForeignOwner,
    /// The filesystem cannot carry shared mappings, or is not local.
    Unsupported,
    /// The filesystem has no room for what was to be made.
    NoSpace,
    /// The handle was made before a `fork`, and this is the child.
    Forked,
    /// More lanes than one cursor has slots for, or more open files, mappings or threads than the system allows.
    TooMany,
    /// Another failure of the system; see [`source`](StdError::source).
    Io,
}

/// Why an operation failed: what was tried, on what, why it failed, and what to do.
///
/// Its [`Display`](fmt::Display) form is one line.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let error = bus.topic("../escape").unwrap_err();
/// assert_eq!(error.kind(), buslane::ErrorKind::InvalidName);
/// assert!(error.to_string().contains("../escape"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Error(Box<Inner>);

/// What a subscriber of a lossy topic missed, exactly, in one publisher's messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lost {
    /// How many messages.
    pub messages: u64,
    /// The bytes in them, envelopes included.
    pub bytes: u64,
    /// The number of the publisher's lane; see [`Frame::lane`](crate::Frame::lane).
    pub lane: u64,
}

struct Inner {
    kind: ErrorKind,
    tried: &'static str,
    on: Arc<str>,
    why: Cow<'static, str>,
    todo: Cow<'static, str>,
    source: Option<io::Error>,
    lost: Option<Lost>,
}

impl Error {
    /// `cannot {tried} {on}: {why}`.
    #[cold]
    pub(crate) fn new(
        kind: ErrorKind,
        tried: &'static str,
        on: impl Into<Arc<str>>,
        why: impl Into<Cow<'static, str>>,
    ) -> Self {
        let (on, why) = (on.into(), why.into());
        Self(Box::new(Inner {
            kind,
            tried,
            on,
            why,
            todo: Cow::Borrowed(""),
            source: None,
            lost: None,
        }))
    }

    /// The system's refusal, with the advice that fits it.
    #[cold]
    pub(crate) fn system(
        tried: &'static str,
        on: impl Into<Arc<str>>,
        source: impl Into<io::Error>,
    ) -> Self {
        let source = source.into();
        let (kind, todo) = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => (
                ErrorKind::NoSpace,
                "free some, or ask for a smaller capacity",
            ),
            Some(libc::ENOENT) => (ErrorKind::NotFound, "check the path"),
            Some(libc::EMFILE | libc::ENFILE) => (
                ErrorKind::TooMany,
                "raise the limit of open files (ulimit -n)",
            ),
            Some(libc::ENOMEM) => (ErrorKind::TooMany, "free memory, or raise vm.max_map_count"),
            Some(libc::EAGAIN) => (
                ErrorKind::TooMany,
                "try again; if a thread was to be started, raise the limit of processes (ulimit -u)",
            ),
            Some(libc::EACCES | libc::EPERM) => {
                (ErrorKind::ForeignOwner, "check who owns it and its mode")
            }
            Some(libc::EOPNOTSUPP | libc::ENODEV | libc::EROFS | libc::ENOSYS) => (
                ErrorKind::Unsupported,
                "use a directory on tmpfs or a local filesystem",
            ),
            _ => (ErrorKind::Io, ""),
        };
        let why = Cow::Owned(source.to_string());
        Self(Box::new(Inner {
            kind,
            tried,
            on: on.into(),
            why,
            todo: Cow::Borrowed(todo),
            source: Some(source),
            lost: None,
        }))
    }

    /// Messages of the topic `on` were overwritten before they were received.
    #[cold]
    pub(crate) fn missed(on: impl Into<Arc<str>>, lost: Lost) -> Self {
        let Lost {
            messages, bytes, ..
        } = lost;
        let why = format!("{messages} messages ({bytes} bytes) were overwritten before");
        let mut error = Self::new(ErrorKind::Lost, "receive all of", on, why)
            .advise("receive on, faster, or make the topic with a larger capacity or lossless");
        error.0.lost = Some(lost);
        error
    }

    /// The same, with what to do about it.
    pub(crate) fn advise(mut self, todo: impl Into<Cow<'static, str>>) -> Self {
        self.0.todo = todo.into();
        self
    }

    /// The system's number for it, if it was the system that refused.
    pub(crate) fn errno(&self) -> Option<i32> {
        self.0.source.as_ref()?.raw_os_error()
    }

    /// On what it was tried: a topic's name, or a path.
    #[must_use]
    pub fn on(&self) -> &str {
        &self.0.on
    }

    /// What was missed, if it is [`ErrorKind::Lost`].
    #[must_use]
    pub fn lost(&self) -> Option<Lost> {
        self.0.lost
    }

    /// What kind of failure it was.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether there was no room, or none in time.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Full | ErrorKind::TimedOut)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            tried,
            on,
            why,
            todo,
            ..
        } = &*self.0;
        write!(f, "cannot {tried} {on}: {why}")?;
        if todo.is_empty() {
            Ok(())
        } else {
            write!(f, "; {todo}")
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::TimedOut => io::ErrorKind::TimedOut,
            ErrorKind::Full => io::ErrorKind::WouldBlock,
            ErrorKind::Ended => io::ErrorKind::UnexpectedEof,
            ErrorKind::SubscribersGone => io::ErrorKind::BrokenPipe,
            ErrorKind::NotFound => io::ErrorKind::NotFound,
            ErrorKind::NoSpace => io::ErrorKind::StorageFull,
            ErrorKind::InUse => io::ErrorKind::ResourceBusy,
            ErrorKind::ForeignOwner => io::ErrorKind::PermissionDenied,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::NotBuslane | ErrorKind::Version | ErrorKind::Corrupt | ErrorKind::Lost => {
                io::ErrorKind::InvalidData
            }
            ErrorKind::InvalidName
            | ErrorKind::InvalidCapacity
            | ErrorKind::InvalidMode
            | ErrorKind::TooLong => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// A result with buslane's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
