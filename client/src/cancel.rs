//! Cancel requests: few at a time, each under one bound, each waited for to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// A cancel request must have been sent, and its connection closed by the server, within this time.
const CANCEL_MAX: Duration = Duration::from_millis(500);

/// Requests under way at a time, in the whole process: after a stall they must not become the next herd.
const AT_A_TIME: usize = 4;

static TURNS: Semaphore = Semaphore::const_new(AT_A_TIME);

/// After this many in a row that nobody acted on, a server is not asked any more while its lane is shut.
const FUTILE: u32 = 2;

/// What is known of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The server has acted on it: it cannot hit what runs later.
    Over,
    /// There was no turn for it in time.
    NotSent,
    /// It may have been sent, and may hit any later statement.
    Unseen,
}

/// How the requests to a pool's servers fared lately. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record(Arc<AtomicU32>);

impl Record {
    /// Makes one request, when its turn comes.
    ///
    /// # Cancel safety
    /// That of `request`, which may have been sent.
    pub(crate) async fn make<E>(&self, request: impl Future<Output = Result<(), E>>) -> Effect {
        let until = Instant::now() + CANCEL_MAX;
        // The semaphore is never closed.
        let Ok(Ok(_turn)) = timeout_at(until, TURNS.acquire()).await else { return Effect::NotSent };
        if let Ok(Ok(())) = timeout_at(until, request).await {
            self.0.store(0, Ordering::Relaxed);
            Effect::Over
        } else {
            self.0.fetch_add(1, Ordering::Relaxed);
            Effect::Unseen
        }
    }

    /// Whether the next one would most likely be ignored, too.
    pub(crate) fn is_bad(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= FUTILE
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::pending;
    use std::sync::atomic::AtomicUsize;

    use futures_util::future::join_all;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_ignores_cancels_is_known_and_forgiven() {
        // Each request to a frozen server costs a connection of its backlog and half a second of a recovery.
        let record = Record::default();
        let ignored = || record.make(pending::<Result<(), Infallible>>());

        assert_eq!(ignored().await, Effect::Unseen);
        assert!(!record.is_bad());
        assert_eq!(ignored().await, Effect::Unseen);
        assert!(record.is_bad());

        assert_eq!(record.make(async { Ok::<_, Infallible>(()) }).await, Effect::Over);
        assert!(!record.is_bad());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_few_at_a_time_and_those_without_a_turn_are_not_sent() {
        // A hundred stuck statements reach their deadlines together: a hundred connections would come at once.
        let (record, now, most) = (Record::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let slow = || {
            record.make(async {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(CANCEL_MAX / 5 * 2).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Infallible>(())
            })
        };

        let effects = join_all((0..100).map(|_| slow())).await;

        assert_eq!(most.into_inner(), AT_A_TIME);
        let count = |effect| effects.iter().filter(|one| **one == effect).count();
        // Two rounds are done, the third is cut off.
        assert_eq!((count(Effect::Over), count(Effect::Unseen)), (AT_A_TIME * 2, AT_A_TIME));
        assert_eq!(count(Effect::NotSent), 100 - AT_A_TIME * 3);
    }
}
