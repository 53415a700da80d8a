//! What lets only some messages through.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use lru::LruCache;

use crate::error::Result;
use crate::route::{Incoming, Route, guarded};

/// Keys that are remembered.
const KEYS: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not 0");

/// Why a message was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stopped {
    Duplicate,
    Sampled,
    RateLimited,
}

/// A message that may pass, with what tells it from others.
#[derive(Debug)]
pub struct Pass(Option<Vec<u8>>);

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
            let quota = Quota::with_period(per / u32::from(n))?;
            Some(RateLimiter::direct(quota.allow_burst(n)))
        });
        Self {
            came: 0,
            limiter,
            seen: LruCache::new(KEYS),
        }
    }

    /// Whether a message may pass; a reason why its key can't be told. That it [has](Self::has_passed) is another matter.
    pub fn look(
        &mut self,
        route: &mut Route,
        message: &Incoming<'_>,
    ) -> Result<Result<Pass, Stopped>, String> {
        let mut pass = Pass(None);
        if let Some((key, time)) = &mut route.unique {
            let key = guarded(|| key(message))?;
            if self.is_known(&key, *time) {
                return Ok(Err(Stopped::Duplicate));
            }
            pass = Pass(Some(key));
        }
        if !self.came.is_multiple_of(route.sample) {
            self.came += 1;
            return Ok(Err(Stopped::Sampled));
        }
        let is_over = |limiter: &DefaultDirectRateLimiter| limiter.check().is_err();
        Ok(match self.limiter.as_ref().is_some_and(is_over) {
            true => Err(Stopped::RateLimited),
            false => Ok(pass),
        })
    }

    /// It was passed on.
    pub fn has_passed(&mut self, Pass(key): Pass) {
        self.came += 1;
        if let Some(key) = key {
            self.seen.put(key, Instant::now());
        }
    }

    fn is_known(&mut self, key: &[u8], time: Duration) -> bool {
        self.seen.get(key).is_some_and(|at| at.elapsed() < time)
    }
}
