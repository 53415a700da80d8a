//! How often a reader looks.

use std::hint;

/// How a reader finds out that the messages are a stream: it then looks seldom, because each look at an empty word takes the
/// line away from the writer that is about to write it, which makes it the slower one, so that the next look is in vain again.
///
/// Now and then a reader that has found nothing pauses before it looks again. If several messages are there then, they are a
/// stream, and it pauses each time, until a pause brings one message, or none. Who waits for an answer pauses in vain, and tries
/// ever more seldom.
#[derive(Debug)]
pub(super) struct Pace {
    /// Looks in vain until the next pause.
    pub(super) left: u32,
    /// The same from one try to the next.
    between: u32,
    /// The last one was followed by a pause.
    paused: bool,
    /// What publishers were told: messages come one at a time.
    pub(super) singly: bool,
}

impl Default for Pace {
    fn default() -> Self {
        let between = FIRST_TRY;
        Self {
            left: between,
            between,
            paused: false,
            singly: false,
        }
    }
}

/// Looks in vain before the first pause is tried.
const FIRST_TRY: u32 = 16;

/// The same when many were tried in vain: a try adds a microsecond or two to an answer.
const LAST_TRY: u32 = 1 << 14;

/// Pauses in vain, one after the other, after which messages come singly.
const TRIES: u32 = 2;

/// Messages after a pause that are a stream.
const STREAM: u32 = 3;

/// Pauses of the processor between two looks at a stream: a few microseconds.
const STREAM_PAUSES: u32 = 256;

impl Pace {
    /// After a look in vain, `came` messages after the one before it. Whether messages come singly: several pauses in a row have
    /// brought no more.
    pub(super) fn pause(&mut self, came: u32) -> bool {
        if self.paused && came < STREAM {
            self.paused = false;
            self.between = (self.between * 2).min(LAST_TRY);
            self.left = self.between;
            return self.singly || self.between >= FIRST_TRY << TRIES;
        }
        let is_stream = self.paused;
        if is_stream {
            self.between = FIRST_TRY;
        }
        self.paused = true;
        self.left = 1;
        for _ in 0..STREAM_PAUSES {
            hint::spin_loop();
        }
        self.singly && !is_stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One pause, after which `came` messages are there: whether they come singly.
    fn pause(pace: &mut Pace, came: u32) -> bool {
        while !pace.paused {
            assert_eq!(pace.pause(1), pace.singly, "no news");
        }
        pace.singly = pace.pause(came);
        pace.singly
    }

    #[test]
    fn messages_come_singly_until_a_pause_brings_several() {
        let mut pace = Pace::default();
        let singly = [10, 1, 2, 0, 3, 3].map(|came| pause(&mut pace, came));
        // Once may be chance.
        assert_eq!(singly, [false, false, true, true, false, false]);
    }

    #[test]
    fn what_is_in_vain_is_tried_ever_more_seldom() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pause(&mut pace, 1);
        }
        assert_eq!(pace.left, LAST_TRY);
        pause(&mut pace, 5);
        pause(&mut pace, 1);
        assert_eq!(pace.left, 2 * FIRST_TRY);
    }
}
