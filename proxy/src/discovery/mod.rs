//! Who are the servers, and which of them serves: observing, deciding, publishing.
//!
//! One task per server asks it, one question at a time; others ask Patroni and look names up. All of them tell one
//! task, which alone decides ([`State`]), announces each [`Decision`], remembers what must survive a restart, and only then
//! publishes a new [`Topology`](crate::upstream::Topology). Readers load the snapshot; nothing on the data path ever waits for discovery.
//!
//! * **Promises:** a server has at most one question outstanding; a question is given up after 500 ms, or after
//!   `timeouts.connect` on a fresh connection. Everything stops when the [`Discovery`] is dropped.
//! * **Does not** carry traffic, promote, or open pools.

mod asker;
pub mod decide;
pub mod decision;
pub mod dns;
mod elect;
pub mod hints;
mod leader;
mod member;
pub mod observe;
pub mod patroni;
pub mod record;
mod runner;
pub mod schedule;
#[cfg(test)]
mod tests;
mod wish;

pub use decide::{Event, Memory, Rules, State};
pub use decision::{Decision, Evidence, What, Why};
pub use hints::Hints;
pub use leader::PatroniAnswer;
pub use observe::{Connection, Observe, ObserveError};
pub use record::{Record, RecordError};
pub use runner::{Announce, Discovery, Settings};
pub use schedule::Pace;
pub use wish::{Trial, Wish};
