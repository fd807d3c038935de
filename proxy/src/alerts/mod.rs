//! Who is told when something is wrong: [`Alerts`].
//!
//! [`Alerts::fire`] and [`Alerts::resolve`] may be called by any thread at any time, again and again: an incident
//! is announced once when it begins and once when it ends, to each webhook, also when the process is killed and
//! started again in between. They change memory under a short lock and wait for nothing. A thread with a runtime of
//! its own puts messages on disk, sends them at once, and repeats what is not accepted.
//!
//! A crash between a receiver's answer and the note of it on disk repeats that message; it has the same `id`.

mod engine;
mod format;
pub mod heartbeat;
mod incident;
mod outbox;
mod store;
mod webhook;

use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::Rng as _;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use incident::{Alert, Incident, Key, Message, Receiver, Status};

use self::engine::Engine;
use self::heartbeat::LastWrite;
use self::outbox::Outbox;
use self::store::Store;
use self::webhook::{Endpoint, Http};
use crate::config::{self, Password};
use crate::state_dir::StateDir;
use crate::telemetry::metrics;
use crate::timestamp::Timestamp;
use crate::tls::TlsError;
use crate::watchdog::Watchdog;

/// The handle; clones are the same.
#[derive(Debug, Clone)]
pub struct Alerts(Arc<Inner>);

/// How something fares that there may be an incident about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The condition does not hold.
    Healthy,
    /// It holds.
    Unhealthy,
}

/// Figures for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Incidents that are firing.
    pub open: usize,
    /// Messages that wait to be sent.
    pub pending: usize,
}

/// What handle and thread share.
#[derive(Debug)]
struct Inner {
    outbox: Mutex<Outbox>,
    wake: Notify,
    settings: ArcSwap<Settings>,
    last_write: LastWrite,
    watchdog: Arc<Watchdog>,
    /// The version of the outbox that is on disk.
    stored: AtomicU64,
}

/// What is on disk is not known yet.
const UNREAD: u64 = u64::MAX;

#[derive(Debug)]
struct Settings {
    endpoints: Vec<Arc<Endpoint>>,
    heartbeat_url: Option<Password>,
    heartbeat_interval: Duration,
}

impl Settings {
    fn new(config: &config::Alerts) -> Self {
        Self {
            endpoints: config.webhooks.iter().map(|webhook| Arc::new(Endpoint::new(webhook))).collect(),
            heartbeat_url: config.heartbeat_url.clone(),
            heartbeat_interval: config.heartbeat_interval,
        }
    }

    fn receivers(&self) -> Vec<Receiver> {
        let mut receivers: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.receiver.clone()).collect();
        // The same webhook twice is one receiver.
        receivers.sort();
        receivers.dedup();
        receivers
    }
}

impl Alerts {
    /// Starts the thread that sends. `port` is one that no other sidecar of this machine has.
    ///
    /// # Errors
    /// When there can be no thread, no runtime, or no TLS. A folder that cannot be used is not an error: it is
    /// logged, and tried again.
    pub fn start(
        config: &config::Alerts,
        port: u16,
        folder: Arc<StateDir>,
        watchdog: Arc<Watchdog>,
    ) -> Result<Self, StartError> {
        let alerts = Self::new(config, watchdog);
        let engine = Engine {
            inner: Arc::clone(&alerts.0),
            http: Http::new()?,
            store: Store::new(folder),
            instance: instance(port).into(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || runtime.block_on(engine.run());
        std::thread::Builder::new().name("tidegate-alerts".to_owned()).spawn(run)?;
        Ok(alerts)
    }

    /// Alerts that nobody sends; for tests of those who call.
    pub fn unsent(watchdog: Arc<Watchdog>) -> Self {
        Self::new(&config::Alerts::default(), watchdog)
    }

    fn new(config: &config::Alerts, watchdog: Arc<Watchdog>) -> Self {
        let settings = Settings::new(config);
        Self(Arc::new(Inner {
            outbox: Mutex::new(Outbox::new(settings.receivers())),
            wake: Notify::new(),
            settings: ArcSwap::from_pointee(settings),
            last_write: LastWrite::default(),
            watchdog,
            stored: AtomicU64::new(UNREAD),
        }))
    }

    /// Something is wrong. Tells all webhooks, unless this incident is open already.
    pub fn fire(&self, alert: Alert) {
        let alert = alert.bounded();
        self.0.change(|outbox| outbox.fire(alert, new_id(), Timestamp::now(), Instant::now()));
    }

    /// It is over. Tells the webhooks that were told that it began; nothing when it was not open.
    pub fn resolve(&self, key: &Key) {
        self.0.change(|outbox| outbox.resolve(key, Timestamp::now(), Instant::now()));
    }

    /// What its owner found out about a condition after a start, when an incident about it may have been open:
    /// a healthy one is resolved. One that is not healthy is the matter of [`fire`](Self::fire).
    pub fn reconcile(&self, key: &Key, health: Health) {
        match health {
            Health::Healthy => self.resolve(key),
            Health::Unhealthy => {}
        }
    }

    /// Takes over new webhooks and a new heartbeat. Open incidents stay with those that were told of them.
    pub fn reload(&self, config: &config::Alerts) {
        let settings = Settings::new(config);
        let receivers = settings.receivers();
        self.0.settings.store(Arc::new(settings));
        self.0.change(|outbox| outbox.set_receivers(receivers));
    }

    /// The servers that are asked from now on, by name. Incidents about others are over, and there are no new ones.
    pub fn set_upstreams(&self, names: impl IntoIterator<Item = Box<str>>) {
        let names = names.into_iter().collect();
        self.0.change(|outbox| outbox.set_upstreams(names, Timestamp::now(), Instant::now()));
    }

    /// Incidents that are open.
    pub fn open(&self) -> Vec<Incident> {
        self.0.outbox().open()
    }

    /// Figures for metrics.
    pub fn counts(&self) -> Counts {
        let outbox = self.0.outbox();
        Counts { open: outbox.open_count(), pending: outbox.pending() }
    }

    /// When a write committed last; the heartbeat depends on it.
    pub fn last_write(&self) -> &LastWrite {
        &self.0.last_write
    }

    /// Waits until nothing is to be sent any more and the disk says so too, for at most this long: what it says is
    /// sent at the next start.
    ///
    /// # Cancel safety
    /// Has no effect of its own.
    pub async fn settle(&self, limit: Duration) {
        const STEP: Duration = Duration::from_millis(10);
        let end = Instant::now() + limit;
        while !self.0.is_settled() && Instant::now() < end {
            tokio::time::sleep(STEP).await;
        }
    }
}

/// Why alerts cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No thread or runtime.
    #[error("cannot start the thread that sends alerts")]
    Thread(#[from] io::Error),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Inner {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        // A message too many or too few is better than none at all.
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Outbox)) {
        let mut outbox = self.outbox();
        let before = (outbox.version, outbox.dropped);
        change(&mut outbox);
        let dropped = outbox.dropped - before.1;
        let changed = outbox.version != before.0;
        drop(outbox);
        metrics::get().alerts_dropped.increment(dropped);
        if changed {
            self.wake.notify_one();
        }
    }

    fn is_settled(&self) -> bool {
        let outbox = self.outbox();
        let stored = !self.has_receivers() || self.stored.load(Ordering::Acquire) == outbox.version;
        stored && outbox.pending() == 0
    }

    fn has_receivers(&self) -> bool {
        !self.settings.load().endpoints.is_empty()
    }

    fn endpoint(&self, receiver: &Receiver) -> Option<Arc<Endpoint>> {
        self.settings.load().endpoints.iter().find(|endpoint| endpoint.receiver == *receiver).cloned()
    }

    fn heartbeat(&self) -> (Option<Password>, Duration) {
        let settings = self.settings.load();
        (settings.heartbeat_url.clone(), settings.heartbeat_interval)
    }
}

/// 128 random bits.
fn new_id() -> Arc<str> {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    let mut id = String::with_capacity(32);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    id.into()
}

/// The name of this machine, so that a page says where; and the port, since an alert is known by its instance: one
/// sidecar would end the alerts of another.
fn instance(port: u16) -> String {
    format!("{}:{port}", rustix::system::uname().nodename().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Webhook, WebhookKind};

    const LIMIT: Duration = Duration::from_millis(500);

    #[test]
    fn two_sidecars_of_one_machine_are_two_instances() {
        // The labels of their alerts would be the same, and the first to recover would end the alert of the other.
        assert_ne!(instance(6433), instance(6434));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clean_end_waits_for_the_disk_to_know_what_was_sent() {
        // The file would still have the message when the process ends, and the next one would send it again.
        let url = Password::new("http://x/".to_owned());
        let webhook = Webhook { url, kind: WebhookKind::Json, routing_key: None, authorization: None };
        let config = config::Alerts { webhooks: vec![webhook], ..config::Alerts::default() };
        let alerts = Alerts::new(&config, Watchdog::new(1, config::Config::defaults().watchdog));
        let took = async || {
            let begin = Instant::now();
            alerts.settle(LIMIT).await;
            begin.elapsed()
        };
        assert_eq!(alerts.counts().pending, 0);

        alerts.0.stored.store(alerts.0.outbox().version, Ordering::Release);
        assert_eq!(took().await, Duration::ZERO);

        alerts.0.outbox().version += 1;
        assert_eq!(took().await, LIMIT);
        let disk = Arc::clone(&alerts.0);
        tokio::spawn(async move {
            tokio::time::sleep(LIMIT / 2).await;
            disk.stored.store(disk.outbox().version, Ordering::Release);
        });
        assert!(took().await < LIMIT);
    }
}
