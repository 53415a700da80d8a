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
    /// Messages come one at a time: several pauses in a row have brought no more.
    singly: bool,
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
    /// After a look in vain, `came` messages after the one before it. Whether messages come singly from now on, if that is news.
    pub(super) fn pause(&mut self, came: u32) -> Option<bool> {
        if self.paused && came < STREAM {
            self.paused = false;
            self.between = (self.between * 2).min(LAST_TRY);
            self.left = self.between;
            let are_many = self.between >= FIRST_TRY << TRIES;
            return (are_many && !std::mem::replace(&mut self.singly, true)).then_some(true);
        }
        let mut news = None;
        if self.paused {
            self.between = FIRST_TRY;
            news = std::mem::take(&mut self.singly).then_some(false);
        }
        self.paused = true;
        self.left = 1;
        for _ in 0..STREAM_PAUSES {
            hint::spin_loop();
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One pause, after which `came` messages are there.
    fn pause(pace: &mut Pace, came: u32) -> Option<bool> {
        while !pace.paused {
            assert_eq!(pace.pause(1), None);
        }
        pace.pause(came)
    }

    #[test]
    fn messages_come_singly_until_a_pause_brings_several() {
        let mut pace = Pace::default();
        assert_eq!(pause(&mut pace, 10), None, "it was taken for a stream");
        assert_eq!(pause(&mut pace, 1), None, "once may be chance");
        assert_eq!(pause(&mut pace, 2), Some(true));
        assert_eq!(pause(&mut pace, 0), None, "no news");
        assert_eq!(pause(&mut pace, 3), Some(false));
        assert_eq!(pause(&mut pace, 3), None);
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
