//! An axum service whose primary's commits hang: two hundred requests at a time, before, during and after. With a
//! sidecar in the path the same is shown in `tests/e2e/client` of the workspace.

#![expect(clippy::unwrap_used, reason = "whatever is not as it should be fails the test")]

mod support;

#[path = "support/service.rs"]
mod service;

use std::sync::Arc;
use std::time::Duration;

use support::{backends, is_quiet, synchronous_cluster, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_of_writes_is_not_a_stall_of_the_service() {
    // Without the bound on writes two hundred requests would hang; without lanes the reads would, too.
    let cluster = Arc::new(synchronous_cluster());
    let pool = service::pool(&cluster.primary().url());
    let primary = Arc::clone(cluster.primary());

    let refused_within = Duration::from_millis(1600);
    service::assert_that_a_stall_of_writes_is_not_one_of_the_service(
        &pool,
        &cluster,
        refused_within,
        move || {
            // The stock, and at most three of the pool's own: two probes and a look.
            assert!(backends(&primary, "stall", "true") <= service::SIZE + 3);
        },
    )
    .await;

    wait_until("all permits are back", || is_quiet(&pool)).await;
}
