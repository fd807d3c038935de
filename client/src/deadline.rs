//! Deadlines that reach from the request down to the database.
//!
//! [`within`] opens a scope: everything that the pool does for the code inside (waiting, connecting, checking,
//! running, committing) shares one budget. Scopes nest; an inner one can only be tighter. Tokio's task-local
//! storage carries the scope, so it does not cross `tokio::spawn`: pass [`current`] to [`at`] there.
//!
//! A scope bounds what the *pool* does; it drops nothing of yours. Wrap code that waits for other things in
//! `tokio::time::timeout_at` as well.
//!
//! ```
//! use std::time::Duration;
//! use tidegate_client::deadline;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! deadline::within(Duration::from_millis(500), async {
//!     // Asking for more than is left changes nothing.
//!     deadline::within(Duration::from_secs(60), async {
//!         assert!(deadline::remaining().unwrap() <= Duration::from_millis(500));
//!     })
//!     .await;
//! })
//! .await;
//! assert_eq!(deadline::current(), None);
//! # }
//! ```

use std::future::Future;
use std::time::Duration;

pub use tidegate_layers::{Deadline, Priority};
use tokio::time::Instant;

tokio::task_local! {
    static SCOPE: Scope;
}

/// What a scope carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) deadline: Option<Deadline>,
    pub(crate) priority: Option<Priority>,
}

impl Scope {
    /// That of the code that runs now; without bounds outside of any.
    pub(crate) fn current() -> Self {
        SCOPE.try_with(|scope| *scope).unwrap_or_default()
    }

    /// Runs `future` in exactly this scope.
    pub(crate) fn enter<F: Future>(self, future: F) -> impl Future<Output = F::Output> + use<F> {
        SCOPE.scope(self, future)
    }

    fn tightened(self, deadline: Deadline) -> Self {
        let deadline = self.deadline.map_or(deadline, |outer| outer.min(deadline));
        Self { deadline: Some(deadline), ..self }
    }
}

/// A future in a scope of its own; unlike [`at`], it also has a name, and starts in its scope.
#[cfg(feature = "http")]
pub(crate) type Scoped<F> = tokio::task::futures::TaskLocalFuture<Scope, F>;

/// Makes a future, within the scope, that runs within the scope.
#[cfg(feature = "http")]
pub(crate) fn scoped<F: Future>(deadline: Deadline, make: impl FnOnce() -> F) -> Scoped<F> {
    let scope = Scope::current().tightened(deadline);
    let future = SCOPE.sync_scope(scope, make);
    SCOPE.scope(scope, future)
}

/// Runs `future` with a budget that starts when it is first polled. See the [module](self).
///
/// # Cancel safety
/// That of `future`.
pub async fn within<F: Future>(budget: Duration, future: F) -> F::Output {
    at(Deadline::within(budget), future).await
}

/// As [`within`], with an instant: for work that arrived earlier than now.
///
/// # Cancel safety
/// That of `future`.
pub async fn at<F: Future>(deadline: Deadline, future: F) -> F::Output {
    SCOPE.scope(Scope::current().tightened(deadline), future).await
}

/// Runs `future` with this priority: it decides who waits and who is refused when there is not enough for all.
///
/// # Cancel safety
/// That of `future`.
pub async fn with_priority<F: Future>(priority: Priority, future: F) -> F::Output {
    SCOPE.scope(Scope { priority: Some(priority), ..Scope::current() }, future).await
}

/// The deadline of the scope that we are in.
pub fn current() -> Option<Deadline> {
    Scope::current().deadline
}

/// What is left of the budget of the scope that we are in; zero once it has passed.
pub fn remaining() -> Option<Duration> {
    current().map(|deadline| deadline.remaining(Instant::now()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn an_inner_scope_never_extends_the_outer_one() {
        // A library that asks for its usual ten seconds would undo the bound of the request that called it.
        within(SHORT, within(LONG, async { assert_eq!(remaining(), Some(SHORT)) })).await;
        within(LONG, within(SHORT, async { assert_eq!(remaining(), Some(SHORT)) })).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_runs_on_inside() {
        // A scope that restarted its clock with every step would bound nothing.
        within(SHORT, async {
            tokio::time::sleep(SHORT / 2).await;
            assert_eq!(remaining(), Some(SHORT / 2));
            tokio::time::sleep(SHORT).await;
            assert_eq!(remaining(), Some(Duration::ZERO));
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn priority_and_deadline_keep_each_other() {
        // Setting one must not forget the other.
        let both = within(SHORT, with_priority(Priority::Sheddable, async { Scope::current() })).await;
        let swapped = with_priority(Priority::Sheddable, within(SHORT, async { Scope::current() })).await;

        assert_eq!(both.priority, Some(Priority::Sheddable));
        assert_eq!(swapped.priority, Some(Priority::Sheddable));
        assert!(both.deadline.is_some() && swapped.deadline.is_some());
    }
}
