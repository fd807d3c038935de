//! The pool as a Tower service.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tidegate_layers::HasDeadline;
use tidegate_layers::shed::HasPriority;
use tower_service::Service;

use crate::connection::Connection;
use crate::deadline::{Deadline, Priority, Scope};
use crate::error::Error;
use crate::pool::Pool;
use crate::words::Lane;

/// The request of the pool as a Tower service: a connection in a lane.
///
/// Its deadline and priority are those of the scope in which it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkout {
    lane: Lane,
    scope: Scope,
}

impl Checkout {
    /// In this lane.
    pub fn of(lane: Lane) -> Self {
        Self { lane, scope: Scope::current() }
    }
}

impl HasDeadline for Checkout {
    fn deadline(&self) -> Option<Deadline> {
        self.scope.deadline
    }
}

impl HasPriority for Checkout {
    fn priority(&self) -> Priority {
        self.scope.priority.unwrap_or_default()
    }
}

/// Always ready: permits are taken in `call`, so an idle clone of the service holds nothing, and refusals come from
/// `call`, because a service that fails in `poll_ready` would be discarded.
impl Service<Checkout> for Pool {
    type Response = Connection;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Checkout) -> Self::Future {
        let pool = self.clone();
        let Checkout { lane, scope } = request;
        Box::pin(scope.enter(async move { pool.acquire(lane).await }))
    }
}
