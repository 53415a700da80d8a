//! Between a broker and one of its routes: what the route is told, and how it is.

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::metrics::State;
use crate::route::Route;

/// What both sides have of a route that runs.
#[derive(Debug, Default)]
pub struct Control {
    ending: OnceLock<()>,
    /// As what it is to go on.
    next: Mutex<Option<Box<Route>>>,
    told: Condvar,
    state: Mutex<Option<State>>,
    begun: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// Has it end.
    pub fn end(&self) {
        let _ = self.ending.set(());
        drop(lock(&self.next));
        self.told.notify_all();
    }

    pub fn is_ending(&self) -> bool {
        self.ending.get().is_some()
    }

    /// Has it go on as this one.
    pub fn change(&self, route: Route) {
        *lock(&self.next) = Some(Box::new(route));
        self.told.notify_all();
    }

    /// As what it is to go on, if that has changed.
    pub fn take_change(&self) -> Option<Box<Route>> {
        lock(&self.next).take()
    }

    /// Whether it was told something, so that it should not wait.
    pub fn is_called(&self) -> bool {
        self.is_ending() || lock(&self.next).is_some()
    }

    /// Does nothing for so long, or until it is called.
    pub fn rest(&self, time: Duration) {
        let next = lock(&self.next);
        // A poisoned lock is one of a thread that has said so itself.
        let _rested = self
            .told
            .wait_timeout_while(next, time, |next| next.is_none() && !self.is_ending());
    }

    pub fn state(&self) -> Option<State> {
        *lock(&self.state)
    }

    pub fn set_state(&self, state: State) {
        *lock(&self.state) = Some(state);
        self.begun.notify_all();
    }

    /// Waits until it takes messages, or it is known that another does, or that it can't.
    pub fn wait_until_begun(&self) {
        let _begun = self
            .begun
            .wait_while(lock(&self.state), |state| state.is_none());
    }
}

/// In a route's thread, says if it ends by a panic.
pub struct Watched<'a>(pub &'a Control);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set_state(State::Failing);
        }
    }
}
