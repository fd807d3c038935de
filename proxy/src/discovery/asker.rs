//! The task that asks one server, one question at a time.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::decide::Event;
use super::hints::Hints;
use super::observe::{Connection, Observe, ObserveError};
use super::runner::{Over, Teller};
use super::schedule::{FLOOR, Pace};
use super::wish::{Trial, Wish};
use crate::exchange::Cause;
use crate::upstream::topology::UpstreamView;
use crate::upstream::{Topology, UpstreamId};

/// How long an answer on a kept connection may take.
const ANSWER: Duration = Duration::from_millis(500);
/// How long a trial write may take.
const COMMIT: Duration = Duration::from_millis(500);

/// See the [module](self).
pub(super) struct Asker<O> {
    pub(super) id: UpstreamId,
    pub(super) topology: Arc<ArcSwap<Topology>>,
    pub(super) observe: Arc<O>,
    pub(super) connect: Duration,
    pub(super) hints: Hints,
    pub(super) wishes: watch::Receiver<Wish>,
    pub(super) tell: Teller,
}

impl<O: Observe> Asker<O> {
    /// Asks until the decider is gone.
    pub(super) async fn run(mut self) {
        let pause = Pace::first(&mut rand::rng());
        tokio::time::sleep(pause).await;
        while self.round().await.is_ok() {}
    }

    async fn round(&mut self) -> Result<(), Over> {
        let begun = Instant::now();
        let wish = *self.wishes.borrow_and_update();
        let Some(view) = self.topology.load().get(self.id).cloned() else { return Err(Over) };
        self.question(&view, wish.connection).await?;
        if wish.trial == Trial::Commit {
            self.trial(&view).await?;
        }
        self.rest(&view, begun, wish).await
    }

    async fn question(&self, view: &UpstreamView, connection: Connection) -> Result<(), Over> {
        let asked = Instant::now();
        let bound = match connection {
            Connection::Kept => ANSWER,
            Connection::Fresh => self.connect.max(ANSWER),
        };
        let result = timeout(bound, self.observe.observe(view, connection)).await;
        let result = result.unwrap_or(Err(ObserveError::Silent));
        if matches!(result, Err(ObserveError::Silent | ObserveError::Missing)) {
            // Also where others have found it out already a silence is as long as it takes to be one.
            sleep_until(asked + ANSWER).await;
        }
        if result == Err(ObserveError::NotAsked) {
            return Ok(());
        }
        self.tell.tell(Event::Observed { upstream: self.id, connection, asked, result }).await
    }

    async fn trial(&self, view: &UpstreamView) -> Result<(), Over> {
        let started = Instant::now();
        let result = timeout(COMMIT, self.observe.commit(view)).await.unwrap_or(Err(Cause::Unknown));
        self.tell.tell(Event::WriteCommitted { upstream: self.id, started, result }).await
    }

    /// Waits for the next question: a while after the last one, sooner when a hint comes or doubt begins. When the
    /// answer makes a trial wanted, it is made at once.
    async fn rest(&mut self, view: &UpstreamView, begun: Instant, mut wish: Wish) -> Result<(), Over> {
        let mut due = begun + wish.pace.next(&mut rand::rng());
        // One is enough: a storm of them must not become one of questions. The next stays for the next round.
        let mut hinted = false;
        loop {
            tokio::select! {
                () = sleep_until(due) => return Ok(()),
                () = self.hints.hinted(), if !hinted => {
                    hinted = true;
                    self.tell.tell(Event::Hint { upstream: self.id }).await?;
                    due = due.min(begun + FLOOR);
                }
                changed = self.wishes.changed() => {
                    changed.map_err(|_| Over)?;
                    let new = *self.wishes.borrow_and_update();
                    let before = std::mem::replace(&mut wish, new);
                    if new.trial == Trial::Commit && before.trial == Trial::None {
                        self.trial(view).await?;
                    }
                    if new.pace != before.pace {
                        due = due.min(begun + new.pace.next(&mut rand::rng()));
                    }
                }
            }
        }
    }
}
