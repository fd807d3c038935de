//! The side of the breaker that decides: one task that looks, probes and switches.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use super::config::BreakerConfig;
use super::decide::{Asked, Decider, Diagnosis, Woken};
use super::event::{Diagnose, Events, Probe, ProbeOutcome, Session};
use super::handle::{Handle, Report};

/// What a watchdog needs from outside.
#[derive(Debug)]
pub struct Senses<P, D, E, R> {
    /// Asks the service.
    pub probe: P,
    /// Finds the cause.
    pub diagnose: D,
    /// Is told of changes.
    pub events: E,
    /// For jitter.
    pub random: R,
}

/// The only writer of a breaker's state. Nothing trips or recovers unless [`run`](Self::run) is polled.
#[derive(Debug)]
#[must_use = "a breaker without its watchdog never trips"]
pub struct Watchdog<C, P, D, E, R> {
    config: BreakerConfig,
    reports: mpsc::Receiver<Report<C>>,
    decider: Decider<C, E, R>,
    probe: P,
    diagnose: D,
}

impl<C, P, D, E, R> Watchdog<C, P, D, E, R>
where
    C: Clone,
    P: Probe,
    D: Diagnose<C>,
    E: Events<C>,
    R: Rng,
{
    /// A closed breaker: the handle for those who call, and the watchdog, to be spawned. `slots` calls can be
    /// watched at the same time.
    pub fn new(config: BreakerConfig, slots: usize, senses: Senses<P, D, E, R>) -> (Handle<C>, Self) {
        let (handle, reports) = Handle::new(slots);
        let Senses { probe, diagnose, events, random } = senses;
        let decider = Decider::new(config, handle.clone(), events, random, Instant::now());
        (handle, Self { config, reports, decider, probe, diagnose })
    }

    /// Looks each tick, keeps at most one probe and one diagnosis under way, and tells of each change. Never
    /// ends by itself.
    ///
    /// # Cancel safety
    /// Dropping it leaves the breaker in its last phase for ever.
    pub async fn run(self) {
        let Self { config, mut reports, mut decider, probe, diagnose } = self;
        let mut ticks = interval(config.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = None;
        let mut probing = None;
        let mut diagnosing = None;
        loop {
            let woken = poll_fn(|cx| {
                if let Poll::Ready(outcome) = poll_slot(&mut probing, cx)
                    && let Some(asked) = asked.take()
                {
                    return Poll::Ready(Woken::Probed(asked, outcome));
                }
                if let Poll::Ready(cause) = poll_slot(&mut diagnosing, cx) {
                    return Poll::Ready(Woken::Diagnosed(cause));
                }
                poll_others(&mut reports, &mut ticks, cx)
            })
            .await;
            let now = Instant::now();
            // One that is under way has been asked about the same trouble.
            let diagnosis = decider.take(woken, now);
            decider.put_in_force().await;
            if diagnosis == Diagnosis::Wanted && diagnosing.is_none() {
                diagnosing = Some(Box::pin(diagnose_within(&diagnose, decider.config())));
            }
            if probing.is_none()
                && let Some(session) = decider.probe_due(now)
            {
                asked = Some(Asked { started: now, session });
                probing = Some(Box::pin(probe_within(&probe, session, decider.config())));
            }
        }
    }
}

async fn probe_within<P: Probe>(probe: &P, session: Session, config: BreakerConfig) -> ProbeOutcome {
    timeout(config.probe_timeout, probe.probe(session)).await.unwrap_or(ProbeOutcome::Timeout)
}

async fn diagnose_within<C, D: Diagnose<C>>(diagnose: &D, config: BreakerConfig) -> Option<C> {
    timeout(config.diagnosis_max, diagnose.diagnose()).await.ok().flatten()
}

/// Polls what is under way, if anything, and clears it when it is done.
fn poll_slot<F: Future>(slot: &mut Option<Pin<Box<F>>>, cx: &mut Context<'_>) -> Poll<F::Output> {
    let Some(future) = slot else { return Poll::Pending };
    let poll = future.as_mut().poll(cx);
    if poll.is_ready() {
        *slot = None;
    }
    poll
}

fn poll_others<C>(
    reports: &mut mpsc::Receiver<Report<C>>,
    ticks: &mut Interval,
    cx: &mut Context<'_>,
) -> Poll<Woken<C>> {
    // The decider holds a handle, so the channel never closes.
    if let Poll::Ready(Some(report)) = reports.poll_recv(cx) {
        return Poll::Ready(Woken::Report(report));
    }
    ticks.poll_tick(cx).map(|_| Woken::Tick)
}
