//! What lets only some messages through.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use lru::LruCache;

use crate::error::Result;
use crate::route::{Incoming, Route};

/// Keys that are remembered.
const KEYS: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not 0");

/// Why a message was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stopped {
    Duplicate,
    Sampled,
    RateLimited,
}

/// A route's gates, and what they remember.
pub struct Gates {
    came: u64,
    limiter: Option<DefaultDirectRateLimiter>,
    seen: LruCache<Vec<u8>, Instant>,
}

impl Gates {
    pub fn new(route: &Route) -> Self {
        let limiter = route.rate.and_then(|(n, per)| {
            let n = n.try_into().ok()?;
            Some(RateLimiter::direct(
                Quota::with_period(per / u32::from(n))?.allow_burst(n),
            ))
        });
        Self {
            came: 0,
            limiter,
            seen: LruCache::new(KEYS),
        }
    }

    /// Whether a message is let through; a reason why its key can't be told.
    pub fn let_through(
        &mut self,
        route: &mut Route,
        message: &Incoming<'_>,
    ) -> Result<Option<Stopped>, String> {
        if let Some((key, time)) = &mut route.unique
            && self.is_known(key(message)?, *time)
        {
            return Ok(Some(Stopped::Duplicate));
        }
        self.came += 1;
        if !(self.came - 1).is_multiple_of(route.sample) {
            return Ok(Some(Stopped::Sampled));
        }
        let is_over = |limiter: &DefaultDirectRateLimiter| limiter.check().is_err();
        Ok(self
            .limiter
            .as_ref()
            .is_some_and(is_over)
            .then_some(Stopped::RateLimited))
    }

    fn is_known(&mut self, key: Vec<u8>, time: Duration) -> bool {
        let now = Instant::now();
        match self.seen.get(&key) {
            Some(&at) if now.duration_since(at) < time => true,
            _ => {
                self.seen.put(key, now);
                false
            }
        }
    }
}
