//! Tower layers for services that may *hang*, not only fail.
//!
//! A service that fails is easy: its errors come back and can be counted. One that hangs gives nothing to count;
//! what waits for it piles up until everything before it hangs, too. These layers bound that pile.
//!
//! | layer | promises | height in the stack |
//! |---|---|---|
//! | [`breaker`] | a service that hangs is found out within 1.5 s, by the calls that do *not* finish, and refused in no time | outermost: a refusal must cost nothing, above all no place in a queue |
//! | [`shed`] | a bounded number in flight and in the queue; who waits too long, or matters least, is refused | below the breaker, around everything that uses a permit |
//! | [`deadline`] | an answer by an instant that nobody extends | around what it bounds; the instant itself is made once, on arrival |
//! | [`backoff`] | attempts that spread out, and never wait longer than a cap | not a layer: for loops that try again |
//!
//! The crate knows nothing of any protocol. What counts as a failure, what a probe does, what a cause is called and who
//! is told are passed in ([`breaker::Classify`], [`breaker::Probe`], [`breaker::Diagnose`], [`breaker::Events`]).
//! Decisions are made by pure machines ([`breaker::Machine`], [`shed::AdmitQueue`], [`shed::Limit`]) with time
//! and randomness as arguments; the services around them have named futures, box nothing, hold no lock across an
//! await and reserve nothing in `poll_ready`. Clocks are tokio's, so tests can pause them.
//!
//! ```
//! use std::time::Duration;
//! use tidegate_layers::breaker::{
//!     BreakerConfig, Change, ErrorsAreFailures, NoDiagnosis, Probe, ProbeOutcome, Senses, Session, Watchdog,
//! };
//! use tidegate_layers::shed::{LaneConfig, QueueConfig};
//! use tidegate_layers::{BreakerLayer, EnforceDeadlineLayer, ShedLayer};
//! use tower_layer::Layer;
//!
//! struct Ping;
//! impl Probe for Ping {
//!     async fn probe(&self, _session: Session) -> ProbeOutcome {
//!         ProbeOutcome::Ok // Do here what the calls do.
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let shed = ShedLayer::new(LaneConfig { ceiling: 50, queue: QueueConfig::default() });
//! let permits = shed.permits().clone();
//! let senses = Senses {
//!     probe: Ping,
//!     diagnose: NoDiagnosis,
//!     events: move |change: &Change<&'static str>| permits.set_ramp(0, change.to.ramp_limit(50)),
//!     random: rand::rngs::SmallRng::from_rng(&mut rand::rng()),
//! };
//! let (breaker, watchdog) = Watchdog::new(BreakerConfig::default(), 64, senses);
//! tokio::spawn(watchdog.run());
//!
//! # use rand::SeedableRng;
//! # let service = ();
//! let service = EnforceDeadlineLayer.layer(service);
//! let service = shed.layer(service);
//! let service = BreakerLayer::new(breaker, ErrorsAreFailures).layer(service);
//! # drop(service);
//! # });
//! ```

pub mod backoff;
pub mod breaker;
pub mod deadline;
pub mod shed;

pub use backoff::Backoff;
pub use breaker::{Breaker, BreakerConfig, BreakerLayer, CircuitOpen};
pub use deadline::{Deadline, DeadlineExceeded, EnforceDeadline, EnforceDeadlineLayer, HasDeadline};
pub use shed::{Overloaded, Priority, Shed, ShedLayer};
