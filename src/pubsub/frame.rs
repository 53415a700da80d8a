//! A message in place.

use std::fmt;
use std::ops::Deref;

use zerocopy::FromBytes;

use crate::envelope::Envelope;
use crate::shm::lane::Track;
use crate::shm::layout::{EnvelopeHead, Word};

/// A message in place. It derefs to the payload, and is released when dropped. A forked child finds
/// zeros in it.
#[must_use]
pub struct Frame<'a, T: ?Sized = [u8]> {
    pub(super) payload: &'a T,
    /// Empty if it has none.
    pub(super) envelope: &'a [u8],
    pub(super) track: &'a mut Track,
    pub(super) word: Word,
    /// Where the next one starts.
    pub(super) end: u64,
    pub(super) lane: u64,
    /// See [`Reader::turn`].
    pub(super) until: u64,
}

impl<T: ?Sized> Frame<'_, T> {
    /// The number of the lane it came through: one for each publisher at a time.
    #[must_use]
    pub fn lane(&self) -> u64 {
        self.lane
    }

    /// What goes with it, if it has an envelope.
    #[must_use]
    pub fn envelope(&self) -> Option<Envelope> {
        Envelope::read(self.envelope)
    }

    /// Whether a service or route whose name begins so has passed it on: what [`Envelope::trace`] would say, without a copy of the
    /// envelope.
    #[must_use]
    pub fn came_by(&self, beginning: &str) -> bool {
        Envelope::came_by(self.envelope, beginning)
    }

    /// The beginning of its envelope.
    #[inline]
    pub(crate) fn head(&self) -> Option<&EnvelopeHead> {
        let (head, _) = EnvelopeHead::ref_from_prefix(self.envelope).ok()?;
        Some(head)
    }

    /// The low 32 bits of its sequence number in its lane.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        self.word.sequence()
    }
}

impl<T: ?Sized> Deref for Frame<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        self.payload
    }
}

impl<T: ?Sized> Drop for Frame<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.track.release(self.end, self.until);
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Frame<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Frame").field(&self.payload).finish()
    }
}
