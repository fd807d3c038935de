//! Host names are looked up again: every 30 s, and every second while their server is in doubt.
//!
//! PgBouncer's `dns_max_ttl` is 15 s and pgjdbc relies on the JVM's 30 s; resolvers cache as well, so asking more often
//! gains little. A name that cannot be resolved keeps what it led to.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::decide::Event;
use super::hints::Hints;
use super::runner::{Over, Teller};
use super::schedule::Pace;
use super::wish::Wish;
use crate::upstream::UpstreamId;

/// Between two look-ups while all is well.
const EVERY: Duration = Duration::from_secs(30);
/// Between two look-ups while the server cannot be used.
const IN_DOUBT: Duration = Duration::from_secs(1);
/// A look-up that takes longer has failed.
const BOUND: Duration = Duration::from_secs(2);

/// Looks names up.
pub trait Resolve: Send + Sync + 'static {
    /// All addresses of a name.
    ///
    /// # Errors
    /// Those of the resolver.
    fn resolve(&self, host: &str, port: u16) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;
}

/// The system's resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(lookup_host((host, port)).await?.collect())
    }
}

/// Whether a change of addresses leaves connections that must be drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Nothing that was there is gone.
    Harmless,
    /// Some address is gone.
    Moved,
}

/// An added address disturbs nobody; a removed one may be that of connections in use.
fn compare(old: Option<&BTreeSet<SocketAddr>>, new: &BTreeSet<SocketAddr>) -> Change {
    match old {
        Some(old) if !old.is_subset(new) => Change::Moved,
        Some(_) | None => Change::Harmless,
    }
}

/// Looks one name up again and again, and tells of changes.
pub(super) async fn watch_name<R: Resolve>(
    id: UpstreamId,
    host: String,
    port: u16,
    resolve: Arc<R>,
    mut wishes: watch::Receiver<Wish>,
    hints: Hints,
    tell: Teller,
) {
    let mut known: Option<BTreeSet<SocketAddr>> = None;
    loop {
        let asked = Instant::now();
        if let Ok(Ok(addresses)) = timeout(BOUND, resolve.resolve(&host, port)).await
            && !addresses.is_empty()
        {
            let new: BTreeSet<_> = addresses.into_iter().collect();
            if compare(known.as_ref(), &new) == Change::Moved {
                if tell.tell(Event::Moved { upstream: id }).await.is_err() {
                    return;
                }
                hints.trouble();
            }
            known = Some(new);
        }
        if rest(asked, &mut wishes).await.is_err() {
            return;
        }
    }
}

async fn rest(asked: Instant, wishes: &mut watch::Receiver<Wish>) -> Result<(), Over> {
    loop {
        let calm = wishes.borrow_and_update().pace == Pace::Quiet;
        let due = asked + if calm { EVERY } else { IN_DOUBT };
        tokio::select! {
            () = sleep_until(due) => return Ok(()),
            changed = wishes.changed() => changed.map_err(|_| Over)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(last: &[u8]) -> BTreeSet<SocketAddr> {
        last.iter().map(|last| SocketAddr::from(([10, 0, 0, *last], 5432))).collect()
    }

    #[test]
    fn only_an_address_that_is_gone_is_a_move() {
        // Taking any difference for a move would drain a healthy server when a second address is added, and the
        // order of answers changes with every look-up.
        assert_eq!(compare(None, &set(&[1])), Change::Harmless);
        assert_eq!(compare(Some(&set(&[1, 2])), &set(&[2, 1])), Change::Harmless);
        assert_eq!(compare(Some(&set(&[1])), &set(&[1, 2])), Change::Harmless);
        assert_eq!(compare(Some(&set(&[1, 2])), &set(&[2])), Change::Moved);
        assert_eq!(compare(Some(&set(&[1])), &set(&[2])), Change::Moved);
    }
}
