//! The watchdog's thread: a round every 250 ms. It never waits for anything but the time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::systemd::Keepalive;
use super::{PERIOD, Watchdog, Who};
use crate::alerts::{Alert, Alerts, Health, Key};
use crate::clock::millis;
use crate::journal::{Decision, Journal, Kind};

/// How long the log may take before the process ends without it.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Groups of threads that are one incident each.
const GROUPS: [Group; 3] = [
    Group { alert: "worker_stalled", name: "data workers", has: |who| matches!(who, Who::Worker(_)) },
    Group { alert: "control_stalled", name: "the control plane", has: |who| who == Who::Control },
    Group {
        alert: "main_stalled",
        name: "the main thread",
        has: |who| matches!(who, Who::Main | Who::Sweep),
    },
];

#[derive(Debug, Clone, Copy)]
struct Group {
    alert: &'static str,
    name: &'static str,
    has: fn(Who) -> bool,
}

/// What was seen of a group in the last round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Nothing yet: an incident of an earlier process may be open.
    Nothing,
    Progress,
    Stall,
}

#[derive(Debug)]
pub(super) struct Rounds {
    watchdog: Arc<Watchdog>,
    alerts: Alerts,
    journal: Arc<Journal>,
    keepalive: Option<Keepalive>,
    stalls: Vec<Stall>,
    seen: [Seen; GROUPS.len()],
}

impl Rounds {
    pub(super) fn new(watchdog: Arc<Watchdog>, alerts: Alerts, journal: Arc<Journal>) -> Self {
        let stalls = vec![Stall::default(); watchdog.watched.len()];
        let keepalive = Keepalive::from_environment();
        Self { watchdog, alerts, journal, keepalive, stalls, seen: [Seen::Nothing; GROUPS.len()] }
    }

    pub(super) fn run(mut self) {
        let mut last = Instant::now();
        loop {
            std::thread::sleep(PERIOD);
            let now = Instant::now();
            // A longer one means that the whole process did not run.
            self.measure((now - last).min(PERIOD));
            last = now;
            self.watchdog.poke_all();
            self.judge();
            if self.watchdog.liveness().is_ok()
                && let Some(keepalive) = &mut self.keepalive
            {
                keepalive.alive(now);
            }
            self.end_if_hopeless();
        }
    }

    fn measure(&mut self, elapsed: Duration) {
        for (watched, stall) in self.watchdog.watched.iter().zip(&mut self.stalls) {
            let length = stall.observe(watched.ticks.load(Ordering::Relaxed), elapsed);
            watched.stalled_ms.store(millis(length), Ordering::Relaxed);
        }
        let now = millis(self.watchdog.origin.elapsed());
        self.watchdog.round_ms.store(now, Ordering::Relaxed);
    }

    fn judge(&mut self) {
        let limit = self.watchdog.stall();
        for (group, seen) in GROUPS.iter().zip(&mut self.seen) {
            let members = self.watchdog.stalls().filter(|(who, _)| (group.has)(*who));
            let stalled: Vec<(Who, Duration)> =
                members.filter(|(_, stalled_for)| *stalled_for >= limit).collect();
            let now = if stalled.is_empty() { Seen::Progress } else { Seen::Stall };
            match (std::mem::replace(seen, now), now) {
                (Seen::Nothing, Seen::Progress) => {
                    self.alerts.reconcile(&Key::process(group.alert), Health::Healthy);
                }
                (Seen::Nothing | Seen::Progress, Seen::Stall) => {
                    begin(*group, &stalled, &self.alerts, &self.journal);
                }
                (Seen::Stall, Seen::Progress) => end(*group, &self.alerts, &self.journal),
                (Seen::Progress, Seen::Progress) | (Seen::Stall, Seen::Stall) | (_, Seen::Nothing) => {}
            }
        }
    }

    fn end_if_hopeless(&self) {
        let Some(limit) = self.watchdog.exit_after() else { return };
        let watched = self.watchdog.stalls().filter(|(who, _)| *who != Who::Watchdog);
        let Some((who, stalled_for)) = watched.max_by_key(|(_, stalled_for)| *stalled_for) else { return };
        if stalled_for < limit {
            return;
        }
        let evidence = format!("{who} has made no progress for {stalled_for:.1?}");
        self.journal
            .record(Decision::new(Kind::Process).change("stalled", "ended").evidence(&evidence))
            .forget();
        tracing::error!(thread = %who, ?stalled_for, "ending, so that the supervisor starts us anew");
        std::thread::sleep(LAST_WORDS);
        std::process::exit(1);
    }
}

/// The alert goes first, and the log last.
fn begin(group: Group, stalled: &[(Who, Duration)], alerts: &Alerts, journal: &Journal) {
    let names: Vec<String> = stalled.iter().map(|(who, _)| who.to_string()).collect();
    let names = names.join(", ");
    let longest = stalled.iter().map(|(_, stalled_for)| *stalled_for).max().unwrap_or_default();
    let summary = format!("{} stalled: {names} made no progress for {longest:.1?}", group.name);
    alerts.fire(Alert::new(group.alert, summary.as_str()));
    journal.record(Decision::new(Kind::Watchdog).change("alive", "stalled").evidence(&summary)).forget();
    tracing::error!(threads = names, "no progress");
}

fn end(group: Group, alerts: &Alerts, journal: &Journal) {
    alerts.resolve(&Key::process(group.alert));
    let evidence = format!("{} make progress again", group.name);
    journal.record(Decision::new(Kind::Watchdog).change("stalled", "alive").evidence(&evidence)).forget();
    tracing::info!(threads = group.name, "progress again");
}

/// One thread's count, and for how long it has been the same.
#[derive(Debug, Clone, Copy, Default)]
struct Stall {
    ticks: u64,
    length: Duration,
}

impl Stall {
    fn observe(&mut self, ticks: u64, elapsed: Duration) -> Duration {
        self.length = if ticks == self.ticks { self.length + elapsed } else { Duration::ZERO };
        self.ticks = ticks;
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn rounds() -> Rounds {
        let config = config::Watchdog { stall: Duration::from_secs(2), exit_after: Duration::ZERO };
        let watchdog = Watchdog::new(2, config);
        Rounds::new(Arc::clone(&watchdog), Alerts::unsent(watchdog), Journal::in_memory())
    }

    impl Rounds {
        /// Rounds in which all but this one count up.
        fn pass(&mut self, rounds: usize, stuck: Option<Who>) {
            for _ in 0..rounds {
                for watched in self.watchdog.watched.iter().filter(|watched| Some(watched.who) != stuck) {
                    watched.ticks.fetch_add(1, Ordering::Relaxed);
                }
                self.measure(PERIOD);
                self.judge();
            }
        }

        fn firing(&self) -> Vec<String> {
            self.alerts.open().iter().map(|incident| incident.alert.alert.to_string()).collect()
        }
    }

    #[test]
    fn a_thread_that_stops_counting_is_stalled_after_the_limit_and_not_before() {
        // Earlier would page for a busy second; later would miss the five seconds that operators count on.
        let mut rounds = rounds();
        rounds.pass(1, None);

        rounds.pass(7, Some(Who::Worker(1)));
        assert_eq!(rounds.watchdog.liveness(), Ok(()));
        rounds.pass(1, Some(Who::Worker(1)));

        let stalled = Stalled { who: Who::Worker(1), stalled_for: Duration::from_secs(2) };
        assert_eq!(rounds.watchdog.liveness(), Err(stalled));
        assert_eq!(rounds.firing(), ["worker_stalled"]);
    }

    #[test]
    fn progress_ends_the_stall() {
        // An alarm that stays on is switched off by hand, and then misses the next one.
        let mut rounds = rounds();
        rounds.pass(12, Some(Who::Control));
        assert_eq!(rounds.firing(), ["control_stalled"]);

        rounds.pass(1, None);

        assert_eq!(rounds.watchdog.liveness(), Ok(()));
        assert!(rounds.firing().is_empty());
        let states: Vec<_> = rounds.journal.recent().iter().map(|e| e.decision.to.to_string()).collect();
        assert_eq!(states, ["stalled", "alive"]);
    }

    #[test]
    fn a_pause_of_the_whole_process_is_no_stall() {
        // After an hour of SIGSTOP nothing has counted for an hour, and nothing is wrong.
        let mut rounds = rounds();
        rounds.pass(1, None);

        rounds.measure(Duration::from_hours(1).min(PERIOD));
        rounds.judge();

        assert_eq!(rounds.watchdog.liveness(), Ok(()));
    }

    #[test]
    fn a_watchdog_that_makes_no_rounds_is_stalled_itself() {
        // Else its death would be the quietest of all: everything would look alive for ever.
        let config = config::Watchdog { stall: Duration::from_millis(1), exit_after: Duration::ZERO };
        let watchdog = Watchdog::new(1, config);
        std::thread::sleep(PERIOD + Duration::from_millis(50));

        assert_eq!(watchdog.liveness().unwrap_err().who, Who::Watchdog);
    }

    use super::super::Stalled;
}
