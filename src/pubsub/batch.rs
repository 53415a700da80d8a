//! Messages in place, released together.

use std::fmt;
use std::marker::PhantomData;

use crate::message::Payload;
use crate::shm::lane::{Found, Payloads, Reader, Row};

/// Messages of one publisher, in place. They are released together when it is dropped.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let topic = buslane::Bus::at(dir.path().join("bus"))?.topic("t")?;
/// # let mut subscriber = topic.subscriber()?;
/// # topic.publisher()?.send_batch(["one", "two"])?;
/// let batch = subscriber.recv_batch(100)?;
/// assert_eq!(batch.len(), 2);
/// assert_eq!(batch.iter().map(<[u8]>::len).sum::<usize>(), 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Batch<'a, T: ?Sized = [u8]> {
    pub(super) reader: &'a mut Reader,
    pub(super) row: Row,
    pub(super) payload: PhantomData<&'a T>,
}

impl<T: ?Sized + Payload> Batch<'_, T> {
    /// How many messages: at least one.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.row.messages
    }

    /// The messages.
    #[inline]
    pub fn iter(&self) -> BatchIter<'_, T> {
        let alike = self.reader.payloads(&self.row);
        let left = match self.row.len {
            Some(_) => 0,
            None => self.row.messages,
        };
        BatchIter {
            alike,
            left,
            reader: self.reader,
            first: self.row.first,
            position: self.row.first.position,
            payload: PhantomData,
        }
    }
}

impl<T: ?Sized> Drop for Batch<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let Row { end, messages, .. } = self.row;
        self.reader.track().release_row(end, messages);
    }
}

impl<T: ?Sized + Payload + fmt::Debug> fmt::Debug for Batch<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl<'b, T: ?Sized + Payload> IntoIterator for &'b Batch<'_, T> {
    type Item = &'b T;
    type IntoIter = BatchIter<'b, T>;

    #[inline]
    fn into_iter(self) -> BatchIter<'b, T> {
        self.iter()
    }
}

/// The messages of a [`Batch`].
#[derive(Debug)]
#[must_use]
pub struct BatchIter<'b, T: ?Sized = [u8]> {
    /// Of those that are all plain, and as long as the type says.
    alike: Payloads<'b>,
    /// Or else how many there are, of any kind, and where the next one starts.
    left: usize,
    position: u64,
    first: Found,
    reader: &'b Reader,
    payload: PhantomData<&'b T>,
}

impl<'b, T: ?Sized + Payload> Iterator for BatchIter<'b, T> {
    type Item = &'b T;

    #[inline]
    fn next(&mut self) -> Option<&'b T> {
        if let Some(payload) = self.alike.next() {
            return Some(T::in_frame(payload));
        }
        self.left = self.left.checked_sub(1)?;
        let (payload, end) = next_of_any_kind::<T>(self.reader, self.first, self.position)?;
        self.position = end;
        Some(payload)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (alike, _) = self.alike.size_hint();
        // One of any kind may have been changed since by a writer that does not keep the protocol: it is left out then.
        (alike, Some(alike + self.left))
    }
}

/// The message at `position`, and where it ends. (An iterator that is given away by its address is in memory from its beginning
/// on.)
#[inline]
fn next_of_any_kind<T: ?Sized + Payload>(
    reader: &Reader,
    first: Found,
    position: u64,
) -> Option<(&T, u64)> {
    if let Some((payload, end)) = reader.read_in_row(position, T::SIZE) {
        return Some((T::in_frame(payload), end));
    }
    let found = match position == first.position {
        true => first,
        false => reader.ahead(position).ok().flatten()?,
    };
    // Looked at when the batch was made; a writer that does not keep the protocol may have changed it.
    Some((T::in_frame(payload::<T>(reader, found)?), found.end()))
}

/// The payload of a message that was found, if it is whole, and has the type's size.
pub(super) fn payload<T: ?Sized + Payload>(reader: &Reader, found: Found) -> Option<&[u8]> {
    let (_, payload) = reader.parts(found)?;
    let is_whole = T::SIZE.is_none_or(|size| payload.len() as u64 == size);
    is_whole.then_some(payload)
}
