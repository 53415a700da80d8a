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
}

impl Default for Pace {
    fn default() -> Self {
        let between = FIRST_TRY;
        Self {
            left: between,
            between,
            paused: false,
        }
    }
}

/// Looks in vain before the first pause is tried.
const FIRST_TRY: u32 = 16;

/// The same when many were tried in vain: a try adds a microsecond or two to an answer.
const LAST_TRY: u32 = 1 << 14;

/// Messages after a pause that are a stream.
const STREAM: u32 = 3;

/// Pauses of the processor between two looks at a stream: a few microseconds.
const STREAM_PAUSES: u32 = 256;

impl Pace {
    /// After a look in vain, `came` messages after the one before it.
    #[inline(never)]
    pub(super) fn pause(&mut self, came: u32) {
        if self.paused && came < STREAM {
            self.paused = false;
            self.between = (self.between * 2).min(LAST_TRY);
            self.left = self.between;
            return;
        }
        if self.paused {
            self.between = FIRST_TRY;
        }
        self.paused = true;
        self.left = 1;
        for _ in 0..STREAM_PAUSES {
            hint::spin_loop();
        }
    }
}
