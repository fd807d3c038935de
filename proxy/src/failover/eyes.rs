//! Asks servers who they are, on the control connections that each upstream has anyway.

use std::sync::Arc;
use std::time::Duration;

use tidegate_layers::breaker::{Phase, Probe as _, ProbeOutcome, Session};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::discovery::{Connection, Observe, ObserveError};
use crate::exchange::Cause;
use crate::pool::{Routes, Upstream};
use crate::probe::{ControlError, Identity, Standing};
use crate::sql::Lane;
use crate::upstream::{Lsn, Observation, UpstreamView};

/// The asker's own bound is shorter, or the connect timeout.
const DEADLINE: Duration = Duration::from_secs(5);

/// How often an upstream alone is asked.
const ALONE: Duration = Duration::from_secs(2);
/// How long its answer may take: the connection is wanted by those who look for causes.
const ALONE_DEADLINE: Duration = Duration::from_millis(500);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Eyes {
    routes: Arc<Routes>,
}

impl Eyes {
    pub(super) const fn new(routes: Arc<Routes>) -> Self {
        Self { routes }
    }

    /// `None` for one that is being added or removed, and for one alone.
    fn upstream(&self, view: &UpstreamView) -> Option<Arc<Upstream>> {
        let mut all = self.routes.upstreams();
        let index = all.iter().position(|upstream| upstream.name == view.name)?;
        (all.len() > 1).then(|| all.swap_remove(index))
    }
}

/// Asks an upstream that is alone who it is, while all is well with it: for those who look, and nothing follows from it.
/// When all is not well its name is looked up more often.
pub(super) async fn look_at_one_alone(routes: Arc<Routes>) {
    let mut ticks = interval(ALONE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let all = routes.upstreams();
        let [alone] = all.as_slice() else { continue };
        if Lane::ALL.into_iter().any(|lane| alone.guard.phase(lane) != Phase::Closed) {
            alone.trouble();
            continue;
        }
        match Identity::ask(&alone.guard.control, Instant::now() + ALONE_DEADLINE).await {
            Ok(identity) => alone.see(observation(&identity)),
            Err(ControlError::NoLogin) => {}
            Err(_) => alone.trouble(),
        }
    }
}

async fn ask(upstream: &Upstream, connection: Connection) -> Result<Identity, ControlError> {
    let control = &upstream.guard.control;
    if connection == Connection::Fresh {
        control.hang_up().await;
    }
    Identity::ask(control, Instant::now() + DEADLINE).await
}

impl Observe for Eyes {
    async fn observe(
        &self,
        view: &UpstreamView,
        connection: Connection,
    ) -> Result<Observation, ObserveError> {
        let upstream = self.upstream(view).ok_or(ObserveError::NotAsked)?;
        ask(&upstream, connection)
            .await
            .map(|identity| observation(&identity))
            .map_err(|error| refusal(&error))
    }

    /// The guard's own probe: it never has more than one statement outstanding, however often it is asked.
    async fn commit(&self, view: &UpstreamView) -> Result<Lsn, Cause> {
        let upstream = self.upstream(view).ok_or(Cause::Unknown)?;
        let probe = &upstream.guard.write_probe;
        proof(probe.probe(Session::Kept).await, probe.pulse().finding())?;
        // Asked afterwards: it is behind the commit.
        let identity = ask(&upstream, Connection::Kept).await;
        let identity = identity.map_err(|error| error.cause().unwrap_or(Cause::Unknown))?;
        if identity.is_in_recovery() { Err(Cause::InRecovery) } else { Ok(identity.lsn()) }
    }
}

/// Whether a probe leaves writes open to a server, and else what it found there.
///
/// A role that may not write says nothing of the server, and finds nothing: then the server's word is all there is to
/// go by. One that was not let in has found something.
fn proof(outcome: ProbeOutcome, finding: Option<Cause>) -> Result<(), Cause> {
    match (outcome, finding) {
        (ProbeOutcome::Ok, _) | (ProbeOutcome::Inconclusive, None) => Ok(()),
        (
            ProbeOutcome::Inconclusive
            | ProbeOutcome::Timeout
            | ProbeOutcome::Failed
            | ProbeOutcome::Unasked
            | ProbeOutcome::Unwanted,
            finding,
        ) => Err(finding.unwrap_or(Cause::Unknown)),
    }
}

fn observation(identity: &Identity) -> Observation {
    let lag = match identity.standing {
        Standing::Standby { lag, .. } => lag,
        Standing::Primary { .. } => None,
    };
    Observation {
        system: identity.system,
        timeline: identity.timeline,
        in_recovery: identity.is_in_recovery(),
        lsn: identity.lsn(),
        lag,
        version_num: identity.version,
        // The role that asks may be read-only by its own settings. The write probe tells the two apart.
        read_only: false,
    }
}

fn refusal(error: &ControlError) -> ObserveError {
    match error {
        ControlError::NoLogin => ObserveError::NotAsked,
        ControlError::Unreachable => ObserveError::Unreachable,
        ControlError::Missing => ObserveError::Missing,
        ControlError::Busy | ControlError::Silent | ControlError::Late => ObserveError::Silent,
        ControlError::Auth => ObserveError::Denied,
        ControlError::Overload => ObserveError::Overloaded,
        ControlError::Refused(error) if error.code.class() == *b"57" => ObserveError::NotReady,
        ControlError::Refused(_) | ControlError::Protocol => ObserveError::Unintelligible,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_that_may_not_write_is_no_obstacle_and_a_server_that_lets_nobody_in_is() {
        // The first would keep a cluster closed for ever that is well; the second was called a commit.
        assert_eq!(proof(ProbeOutcome::Ok, None), Ok(()));
        assert_eq!(proof(ProbeOutcome::Inconclusive, None), Ok(()));

        for cause in [Cause::Overload, Cause::Auth, Cause::Unknown] {
            assert_eq!(proof(ProbeOutcome::Inconclusive, Some(cause)), Err(cause));
        }
        assert_eq!(proof(ProbeOutcome::Unasked, None), Err(Cause::Unknown));
        assert_eq!(proof(ProbeOutcome::Timeout, None), Err(Cause::Unknown));
    }
}
