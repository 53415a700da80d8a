//! How models of processes that die at any step are run: see `claims::explored` and `reclaim::explored`.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

/// Looks at every state that there is within `bounds`, or, with `BUSLANE_EXPLORE=deep`, within `deep` ones.
pub(super) fn explore<M>(what: &str, bounds: M, deep: M)
where
    M: Model + Debug + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + Send + Sync + PartialEq,
    M::Action: Clone + Debug + PartialEq,
{
    let is_deep = std::env::var_os("BUSLANE_EXPLORE").is_some_and(|how| how == "deep");
    let bounds = if is_deep { deep } else { bounds };
    println!("{what}: {bounds:?}");
    let started = Instant::now();
    // By one thread: so the first path to what does not hold is a shortest one.
    let checker = bounds.checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!(
        "{what}: {states} states, {depth} steps deep, {:.1?}",
        started.elapsed()
    );
    checker.assert_properties();
}
