//! The thread that sends. It has a runtime of its own, so that a stuck data worker or control plane is no reason
//! why nobody is told of it.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::incident::Message;
use super::outbox::{Delivery, Due};
use super::store::Store;
use super::webhook::{Endpoint, Http};
use super::{Inner, heartbeat};
use crate::telemetry::metrics;

/// What the thread owns.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) inner: Arc<Inner>,
    pub(super) http: Http,
    pub(super) store: Store,
    /// Which sidecar of which machine.
    pub(super) instance: Arc<str>,
}

impl Engine {
    /// Runs for ever: begins the heartbeat, and sends what is due.
    pub(super) async fn run(mut self) {
        tokio::spawn(heartbeat::run(Arc::clone(&self.inner), self.http.clone()));
        let mut attempts: JoinSet<(u64, Delivery)> = JoinSet::new();
        loop {
            // First on disk, then out: what is sent and forgotten would be sent again after a crash.
            if self.inner.has_receivers() {
                self.store.settle(&self.inner).await;
            }
            let now = Instant::now();
            let due = self.inner.outbox().take_due(now);
            for due in due {
                attempts.spawn(self.attempt(due));
            }
            let wake = self.inner.outbox().next_due(now).into_iter().chain(self.store.next()).min();
            tokio::select! {
                () = self.inner.wake.notified() => {}
                () = until(wake) => {}
                // An attempt that panicked stays one, and keeps its message from being sent again: it would panic again.
                Some(Ok((number, delivery))) = attempts.join_next() => self.finish(number, delivery),
            }
        }
    }

    fn attempt(&self, due: Due) -> impl Future<Output = (u64, Delivery)> + use<> {
        let endpoint = self.inner.endpoint(&due.message.to);
        let (http, instance) = (self.http.clone(), Arc::clone(&self.instance));
        async move {
            let delivery = match endpoint {
                Some(endpoint) => send(&endpoint, &http, &instance, &due.message).await,
                None => Delivery::Gone,
            };
            (due.number, delivery)
        }
    }

    fn finish(&self, number: u64, delivery: Delivery) {
        self.inner.outbox().finish(number, delivery, Instant::now(), &mut rand::rng());
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn send(endpoint: &Endpoint, http: &Http, instance: &str, message: &Message) -> Delivery {
    let (host, alert, status) = (endpoint.host(), &*message.alert.alert, message.status.word());
    match endpoint.deliver(http, instance, message).await {
        Ok(()) => {
            metrics::alert_sent(endpoint.kind(), status);
            tracing::info!(host, alert, status, id = &*message.id, "alert sent");
            Delivery::Accepted
        }
        Err(error) => {
            metrics::alert_failed(endpoint.kind());
            let reason = crate::server::describe(&error);
            tracing::warn!(host, alert, status, id = &*message.id, reason, "alert not sent, to be repeated");
            error.delivery()
        }
    }
}
