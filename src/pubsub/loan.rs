//! Part of a lane, lent to be written in place.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use super::sender::{Patience, Sender};
use crate::envelope::Envelope;
use crate::error::Result;
use crate::message::Message;
use crate::shm::layout::EnvelopeHead;

/// Part of a lane, lent to be written in place. [`commit`](Self::commit) sends it; dropping it sends nothing.
/// A forked child finds zeros in it, and what it writes there reaches nobody.
#[must_use = "a loan that is dropped sends nothing"]
pub struct Loan<'a, T: ?Sized = [u8]> {
    sender: &'a mut Sender,
    at: u64,
    len: usize,
    /// The beginning of the envelope before it, and how many bytes that has.
    envelope: Option<(EnvelopeHead, usize)>,
    committed: bool,
    kind: PhantomData<fn(&T)>,
}

impl<'a, T: ?Sized> Loan<'a, T> {
    #[inline]
    pub(super) fn open(sender: &'a mut Sender, len: usize, patience: Patience) -> Result<Self> {
        let at = sender.claim(len, patience)?;
        Ok(Self::lend(sender, at, len, None))
    }

    pub(super) fn open_with(
        sender: &'a mut Sender,
        envelope: &Envelope,
        len: usize,
        patience: Patience,
    ) -> Result<Self> {
        let (at, before) = sender.claim_with(envelope, len, patience)?;
        Ok(Self::lend(
            sender,
            at,
            len,
            Some((*envelope.head(), before)),
        ))
    }

    #[inline]
    fn lend(
        sender: &'a mut Sender,
        at: u64,
        len: usize,
        envelope: Option<(EnvelopeHead, usize)>,
    ) -> Self {
        let before = envelope.map_or(0, |(_, before)| before);
        sender.lane.open_loan(before + len);
        Self {
            sender,
            at,
            len,
            envelope,
            committed: false,
            kind: PhantomData,
        }
    }

    /// Sends it. In a forked child, which has no part in the lane, this does nothing. Where each message is synced, this waits
    /// for that; should it fail, the next call on the publisher says so.
    #[inline]
    pub fn commit(mut self) {
        if self.sender.check_fork().is_ok() {
            match self.envelope {
                None => self.sender.commit(self.len),
                Some((head, before)) => {
                    self.sender.commit_with(&head, (self.at, before), self.len);
                }
            }
            self.sender.settle_later();
        }
        self.committed = true;
    }
}

impl Loan<'_> {
    /// Sends the first `len` bytes of it.
    ///
    /// # Panics
    ///
    /// If it has less.
    #[inline]
    pub fn commit_len(mut self, len: usize) {
        assert!(
            len <= self.len,
            "a loan of {} bytes can't be committed with {len}",
            self.len
        );
        self.len = len;
        self.commit();
    }
}

impl<T: ?Sized> Drop for Loan<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if !self.committed {
            self.sender.lane.abort();
        }
    }
}

impl<T: ?Sized> fmt::Debug for Loan<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Deref for Loan<'_> {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        self.sender.lane.loaned(self.at, self.len)
    }
}

impl DerefMut for Loan<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.sender.lane.loan(self.at, self.len)
    }
}

impl<T: Message> Deref for Loan<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        T::ref_from_bytes(self.sender.lane.loaned(self.at, self.len))
            .expect("as many bytes as the type has, aligned")
    }
}

impl<T: Message> DerefMut for Loan<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        T::mut_from_bytes(self.sender.lane.loan(self.at, self.len))
            .expect("as many bytes as the type has, aligned")
    }
}
