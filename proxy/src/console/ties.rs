//! What ties the console to the other threads: the runtime that it lives on, and the orders that it passes on.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::averages::{PERIOD, Samples};
use crate::server::Shared;

/// Orders that may wait.
const ORDERS_MAX: usize = 8;

/// How long a reload may take. While the process drains nobody reloads.
const RELOAD_DEADLINE: Duration = Duration::from_secs(10);

/// What a reload came to: warnings, or why nothing was changed.
pub type Reloaded = Result<Vec<String>, Vec<String>>;

/// What only the main thread can do.
#[derive(Debug)]
pub enum Order {
    /// Read the configuration again, and say what came of it.
    Reload(oneshot::Sender<Reloaded>),
    /// Drain and end.
    Shutdown,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Ties {
    runtime: OnceLock<Handle>,
    orders: mpsc::Sender<Order>,
    received: tokio::sync::Mutex<mpsc::Receiver<Order>>,
    pub(super) samples: Samples,
}

impl Default for Ties {
    fn default() -> Self {
        let (orders, received) = mpsc::channel(ORDERS_MAX);
        Self {
            runtime: OnceLock::new(),
            orders,
            received: tokio::sync::Mutex::new(received),
            samples: Samples::default(),
        }
    }
}

impl Ties {
    /// Names the runtime that consoles live on, and begins to sample there. Once.
    pub fn start(&self, runtime: &Handle, shared: &Arc<Shared>) {
        let shared = Arc::clone(shared);
        runtime.spawn(async move {
            let mut ticks = tokio::time::interval(PERIOD);
            loop {
                ticks.tick().await;
                shared.ties.samples.take(&shared.databases);
            }
        });
        // A second call would change nothing.
        let _ = self.runtime.set(runtime.clone());
    }

    /// The runtime that consoles live on: the control plane's, so that a worker that is stuck does not matter to
    /// them.
    pub(super) fn runtime(&self) -> Option<&Handle> {
        self.runtime.get()
    }

    /// The next order, for the one who obeys. Cancel safe.
    pub async fn next_order(&self) -> Order {
        match self.received.lock().await.recv().await {
            Some(order) => order,
            // The sending half is here.
            None => std::future::pending().await,
        }
    }

    /// Has the configuration read again; `None` when nobody obeys any more.
    pub(crate) async fn reload(&self) -> Option<Reloaded> {
        let (answer, answered) = oneshot::channel();
        self.orders.try_send(Order::Reload(answer)).ok()?;
        tokio::time::timeout(RELOAD_DEADLINE, answered).await.ok()?.ok()
    }

    /// Has the process drain and end.
    pub(super) fn shut_down(&self) {
        // A full queue holds a reload in progress, and the operator tries again.
        let _ = self.orders.try_send(Order::Shutdown);
    }
}
