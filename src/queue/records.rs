//! What stands before a message that was put off, or is a dead letter.

use std::time::{Duration, SystemTime};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::delivery::Share;
use crate::error::{Error, ErrorKind, Result};
use crate::shm::layout::MAX_QUEUE_CAPACITY;

/// Before a message that was put off, in its group's retry topic; its envelope, if it has one, and the payload follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct PutOff {
    /// When it may be delivered again: by [`due_clock`](super::delivery::due_clock). The first word: it is looked at before the message is claimed.
    pub due_ns: u64,
    /// How often it was delivered before.
    pub attempts: u64,
    /// The lane it was pushed to, and its number there.
    pub lane: u64,
    pub sequence: u64,
    /// Where it was put off: the lane, whether that is one of the retry topic, and the claim that the consumer had there.
    pub from_lane: u64,
    pub from_retries: u64,
    pub from_claim: u64,
    /// Bytes of its envelope, before the payload.
    pub envelope: u64,
}

impl PutOff {
    /// Whether it was put off from this lane.
    pub fn is_from(&self, share: &Share) -> bool {
        self.from_lane == share.lane && (self.from_retries != 0) == share.seat.is_for_retries()
    }

    /// The head, the message's envelope, and its payload. `None`: it is no message that was put off.
    pub fn split(bytes: &[u8]) -> Option<(Self, &[u8], &[u8])> {
        let (head, rest) = Self::read_from_prefix(bytes).ok()?;
        let (envelope, payload) = rest.split_at_checked(head.envelope as usize)?;
        // The payload is as aligned as it was.
        (head.envelope % 8 == 0).then_some((head, envelope, payload))
    }
}

/// Where a group's messages are that were put off.
pub(super) fn retry_topic(queue: &str, group: &str) -> String {
    format!("{queue}.{group}.retry")
}

/// Before a dead letter. Behind it come the payload, and then the names of queue and group and the reason.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
struct Head {
    attempts: u64,
    lane: u64,
    sequence: u64,
    /// Nanoseconds since 1970.
    died_ns: u64,
    payload_len: u32,
    queue_len: u32,
    group_len: u32,
    reason_len: u32,
}

/// Bytes of a reason that are kept.
const MAX_REASON: usize = 512;

/// A message that a group of consumers has given up, as a message of its dead-letter topic: a work queue of bytes.
///
/// A process that is killed just after it has written one leaves the message where it was: it may come twice.
///
/// The bytes, little endian: attempts, lane and sequence number (64 bits each), nanoseconds since 1970 (64 bits), then the
/// lengths of payload, queue name, group name and reason (32 bits each), and then these four in that order.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let queue = bus.queue("jobs")?;
/// queue.producer()?.push(b"divide by 0")?;
/// queue.consumer()?.recv()?.reject("can't be done")?;
/// let mut dead = bus.queue("jobs.dead")?.consumer()?;
/// let letter = dead.recv()?;
/// let letter = buslane::DeadLetter::parse(&letter)?;
/// assert_eq!((letter.payload, letter.reason), (&b"divide by 0"[..], "can't be done"));
/// assert_eq!((letter.queue, letter.group, letter.attempts), ("jobs", "default", 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter<'a> {
    /// The message.
    pub payload: &'a [u8],
    /// The queue it was pushed to.
    pub queue: &'a str,
    /// The group that gave it up.
    pub group: &'a str,
    /// Why.
    pub reason: &'a str,
    /// How often it was delivered.
    pub attempts: u64,
    /// The lane it was pushed to.
    pub lane: u64,
    /// The low 32 bits of its number in that lane.
    pub sequence: u32,
    /// When it was given up.
    pub died: SystemTime,
}

impl<'a> DeadLetter<'a> {
    /// A message that somebody else than a queue's consumer gives up, at its first attempt: its `queue` is where it was sent to, its
    /// `group` who gives it up.
    #[must_use]
    pub fn new(queue: &'a str, group: &'a str, payload: &'a [u8], reason: &'a str) -> Self {
        Self {
            payload,
            queue,
            group,
            reason,
            attempts: 1,
            lane: 0,
            sequence: 0,
            died: SystemTime::now(),
        }
    }

    /// What a message of a dead-letter topic says.
    ///
    /// # Errors
    ///
    /// `Corrupt` if it is no dead letter.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::split(bytes).ok_or_else(|| {
            let why = "its lengths do not fit, or its texts are no UTF-8";
            Error::new(ErrorKind::Corrupt, "read", "the dead letter", why)
                .advise("receive from a dead-letter topic")
        })
    }

    fn split(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = Head::read_from_prefix(bytes).ok()?;
        let (payload, rest) = rest.split_at_checked(head.payload_len as usize)?;
        let (queue, rest) = rest.split_at_checked(head.queue_len as usize)?;
        let (group, reason) = rest.split_at_checked(head.group_len as usize)?;
        let text = |bytes: &'a [u8]| std::str::from_utf8(bytes).ok();
        (reason.len() == head.reason_len as usize).then_some(Self {
            payload,
            queue: text(queue)?,
            group: text(group)?,
            reason: text(reason)?,
            attempts: head.attempts,
            lane: head.lane,
            sequence: head.sequence as u32,
            died: SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(head.died_ns))?,
        })
    }

    /// As a message of a dead-letter topic, with the first 512 bytes of the reason.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let reason = &self.reason[..self.reason.floor_char_boundary(MAX_REASON)];
        let died = self.died.duration_since(SystemTime::UNIX_EPOCH);
        let head = Head {
            attempts: self.attempts,
            lane: self.lane,
            sequence: u64::from(self.sequence),
            died_ns: died.unwrap_or_default().as_nanos() as u64,
            payload_len: self.payload.len() as u32,
            queue_len: self.queue.len() as u32,
            group_len: self.group.len() as u32,
            reason_len: reason.len() as u32,
        };
        [
            head.as_bytes(),
            self.payload,
            self.queue.as_bytes(),
            self.group.as_bytes(),
            reason.as_bytes(),
        ]
        .concat()
    }
}

/// Bytes in the lanes of a group's topics: what was the longest message of the queue fits, with all that stands before it.
pub(super) fn capacity_beside(capacity: usize) -> usize {
    (2 * capacity).min(MAX_QUEUE_CAPACITY)
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    /// The payload would not be as aligned as its type.
    #[test]
    fn what_was_put_off_has_an_envelope_of_whole_words() {
        let record = |envelope| {
            let head = PutOff {
                envelope,
                ..PutOff::new_zeroed()
            };
            [head.as_bytes(), &[0; 64]].concat()
        };
        assert!(PutOff::split(&record(56)).is_some());
        assert!(PutOff::split(&record(4)).is_none());
        assert!(PutOff::split(&record(72)).is_none());
    }
}
