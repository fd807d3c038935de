//! How many files the process may have open: with the limit that most shells set, a thousand sessions.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// Files of our own: listeners, control connections, journal, log.
const OURS: u64 = 128;

/// Every session needs a file descriptor, and every backend one. Says so where the system does not give as many.
pub fn raise_for(config: &Config) {
    let backends = config.pool.max_per_upstream.saturating_mul(config.cluster.upstreams.len());
    let files = config.listen.max_sessions.saturating_add(backends);
    let needed = u64::try_from(files).unwrap_or(u64::MAX).saturating_add(OURS);
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    // With the right to do so even the hard limit is raised.
    let maximum = limit.maximum.map(|maximum| maximum.max(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum });
    let raised = raised.or_else(|_| setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }));
    let reached = getrlimit(Resource::Nofile).current;
    if raised.is_err() || reached.is_some_and(|reached| reached < needed) {
        tracing::warn!(
            limit = reached,
            needed,
            "not enough file descriptors for listen.max_sessions; raise the limit (ulimit -n, LimitNOFILE=)"
        );
    }
}
