//! What the control plane keeps of its own: orders, the history, and who listens to it.
//!
//! [`watch`] runs on the control runtime. Once a second it takes a sample; when the journal has something new the page
//! gets it at once. Listeners get the latest update and no queue of old ones: a slow one misses some instead of
//! holding memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::watch;

use super::controls::Orders;
use super::history::{History, Sample};
use super::{Rates, Status};
use crate::server::Shared;
use crate::sql::Lane;
use crate::telemetry::histogram::Snapshot;
use crate::telemetry::lanes;

/// Time between two samples.
const SAMPLE: Duration = Duration::from_secs(1);
/// Time between two updates when much happens at once.
const PAUSE: Duration = Duration::from_millis(50);
/// Seconds that the figures of a lane are taken over: long enough for a 99th percentile of a slow trickle, short
/// enough to follow an incident.
const WINDOW: usize = 10;

/// Milliseconds of the Unix epoch.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, crate::clock::millis)
}

/// See the module documentation.
#[derive(Debug)]
pub struct Board {
    /// What an operator ordered.
    pub orders: Orders,
    /// When the sidecar was started.
    pub started: Instant,
    /// The same, by the clock on the wall.
    pub started_at: SystemTime,
    /// Name of the machine.
    pub host: String,
    rates: ArcSwap<[Rates; 2]>,
    history: Mutex<History>,
    updates: watch::Sender<Update>,
}

/// What listeners are told.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// The document, as JSON.
    pub status: Arc<str>,
    /// The sample of the second that just ended, as JSON; absent when something was decided in between.
    pub sample: Option<Arc<str>>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            orders: Orders::default(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            rates: ArcSwap::default(),
            history: Mutex::default(),
            updates: watch::Sender::default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// The last ten minutes.
    pub fn history(&self) -> Vec<Sample> {
        lock(&self.history).to_vec()
    }

    /// Figures of the last seconds, read and write lane.
    pub fn rates(&self) -> [Rates; 2] {
        **self.rates.load()
    }

    /// The updates from now on.
    pub fn subscribe(&self) -> watch::Receiver<Update> {
        self.updates.subscribe()
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.updates.receiver_count()
    }

    fn publish(&self, status: &Status, sample: Option<&Sample>) {
        if self.updates.receiver_count() == 0 {
            return;
        }
        let update = Update { status: json(status), sample: sample.map(json) };
        self.updates.send_replace(update);
    }
}

/// As JSON; the types of this module always have one.
pub fn json(value: &impl serde::Serialize) -> Arc<str> {
    serde_json::to_string(value).unwrap_or_default().into()
}

/// Samples and publishes, until it is dropped.
///
/// # Cancel safety
/// A drop loses the second in progress.
pub async fn watch(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(SAMPLE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sampler = Sampler::new();
    let mut decisions = shared.journal.subscribe();
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let second = sampler.second(&shared.board);
                let status = Status::collect(&shared);
                let sample = Sample::of(&status, second);
                lock(&shared.board.history).push(sample);
                shared.board.publish(&status, Some(&sample));
            }
            // Some were missed: the document has the latest.
            Ok(_) | Err(RecvError::Lagged(_)) = decisions.recv() => {
                // What is decided together is told together, and a journal that runs hot costs no more than this.
                tokio::time::sleep(PAUSE).await;
                while !matches!(decisions.try_recv(), Err(TryRecvError::Empty | TryRecvError::Closed)) {}
                if shared.board.listeners() > 0 {
                    shared.board.publish(&Status::collect(&shared), None);
                }
            }
        }
    }
}

/// Counts of one moment.
#[derive(Debug, Clone)]
struct Mark {
    at: Instant,
    lanes: [LaneMark; 2],
}

#[derive(Debug, Clone)]
struct LaneMark {
    service: Snapshot,
    wait: Snapshot,
    refused: u64,
}

impl Mark {
    fn now() -> Self {
        let lane = |lane| LaneMark {
            service: lanes::service(lane),
            wait: lanes::queue_wait(lane),
            refused: lanes::refused_total(lane),
        };
        Self { at: Instant::now(), lanes: Lane::ALL.map(lane) }
    }

    fn rates_since(&self, earlier: &Self) -> [Rates; 2] {
        let seconds = self.at.duration_since(earlier.at).as_secs_f64();
        let rates = |index: usize| Self::lane_rates(&self.lanes[index], &earlier.lanes[index], seconds);
        [rates(0), rates(1)]
    }

    fn lane_rates(now: &LaneMark, then: &LaneMark, seconds: f64) -> Rates {
        #[expect(clippy::cast_precision_loss, reason = "good to one in 2^52")]
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let service = now.service.since(&then.service);
        let ms = |window: &Snapshot, quantile| {
            window.quantile(quantile).map(|took| round(took.as_secs_f64() * 1e3))
        };
        Rates {
            throughput: round(per_second(service.count())),
            refusals: round(per_second(now.refused.saturating_sub(then.refused))),
            p50_ms: ms(&service, 0.50),
            p95_ms: ms(&service, 0.95),
            p99_ms: ms(&service, 0.99),
            wait_p99_ms: ms(&now.wait.since(&then.wait), 0.99),
        }
    }
}

/// Three digits after the point: the rest is noise, and each listener gets six hundred samples of it.
fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Turns counts that only grow into figures of the last second and the last seconds.
#[derive(Debug)]
struct Sampler {
    marks: VecDeque<Mark>,
}

impl Sampler {
    fn new() -> Self {
        Self { marks: VecDeque::from([Mark::now()]) }
    }

    /// The figures since the last call; those of the whole window go to the board.
    fn second(&mut self, board: &Board) -> [Rates; 2] {
        let now = Mark::now();
        let of = |mark: Option<&Mark>| mark.map(|mark| now.rates_since(mark)).unwrap_or_default();
        let second = of(self.marks.back());
        board.rates.store(Arc::new(of(self.marks.front())));
        if self.marks.len() == WINDOW {
            self.marks.pop_front();
        }
        self.marks.push_back(now);
        second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_counts_over_time() {
        // Counts of the whole run, or of a second that took two, would draw a wrong line.
        let mut then = Mark::now();
        then.at -= Duration::from_secs(2);
        lanes::served(crate::sql::Lane::Write, Duration::from_millis(10));
        let mut now = Mark::now();
        now.at = then.at + Duration::from_secs(2);
        now.lanes[1].refused = then.lanes[1].refused + 10;

        let [_, write] = now.rates_since(&then);

        // Other tests of the process may count, too.
        assert!(write.throughput >= 0.5, "{write:?}");
        assert!((write.refusals - 5.0).abs() < 1e-9, "{write:?}");
        assert!(write.p99_ms.is_some());
    }
}
