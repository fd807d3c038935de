//! A timeout-aware `PostgreSQL` pool: a database that hangs must not hang the application.
//!
//! Built on bb8 and tokio-postgres, with the breaker, the load shedding and the deadlines of the tidegate sidecar
//! (`tidegate-layers`). Works in front of a sidecar or straight at one or several `PostgreSQL` hosts.
//!
//! ```no_run
//! use std::time::Duration;
//! use tidegate_client::{Error, Outcome, Pool, TxOptions, TxOutcome, deadline};
//!
//! # #[tokio::main] async fn main() -> Result<(), Error> {
//! let pool = Pool::connect("postgres://app@db1,db2/orders?target_session_attrs=read-write")?;
//!
//! // One budget for waiting, connecting, checking and running.
//! let name: String = deadline::within(Duration::from_millis(500), async {
//!     let mut connection = pool.read().await?;
//!     Ok::<_, Error>(connection.query_one("SELECT name FROM item WHERE id = $1", &[&7_i64]).await?.get(0))
//! })
//! .await?;
//!
//! let outcome: TxOutcome<u64, Error> = pool
//!     .transaction(TxOptions::write(), async |mut tx| {
//!         tx.execute("INSERT INTO visit (name) VALUES ($1)", &[&name]).await
//!     })
//!     .await;
//! if let TxOutcome::Unknown { error, .. } = outcome {
//!     assert!(matches!(error.outcome(), Outcome::Unknown | Outcome::CommittedUnreplicated));
//! }
//! # Ok(()) }
//! ```
//!
//! # What it promises
//!
//! * **Every wait has a bound** ([`Timeouts`]), and one budget ([`deadline`]) spans them all. A caller is answered at its
//!   deadline, whatever the server, the network or the pool does.
//! * **A connection goes back only when it is provably idle.** What its user left midway is cancelled (and the end of
//!   the cancel awaited), rolled back, or discarded with its socket and task. Any future may be dropped anywhere.
//! * **Stuck writes do not take the readers down.** The lanes have permits of their own; a zombie stays charged to its
//!   lane until its backend is seen to be gone.
//! * **A lane that hangs is refused at once**, within 1.5 s of the first stuck statement, and comes back by itself.
//! * **Errors say what happened** ([`Error::outcome`]), whether to try again ([`Error::is_safe_to_retry`]) and when
//!   ([`Error::retry_after`]). A COMMIT is never called failed or done without proof ([`TxOutcome`]).
//!
//! What it does not do: it does not find out what became of a COMMIT whose answer was lost (the sidecar does), route
//! statements by their text (the lane is yours to choose), or cache prepared statements.
//!
//! # How it is built
//!
//! `acquire` goes outermost first: breaker (a refusal must cost nothing), permit of the lane (bounded queue, `CoDel`,
//! priorities), connection (bb8's stock; a connect is bounded, raced over the hosts, and two at a time), check (only
//! after half a second of idleness). [`Pool`] is a [`tower_service::Service`]; `http` (with the feature
//! of that name) has a layer for HTTP servers. Metrics and tracing are listed in [`names`].

mod acquire;
mod cancel;
mod classify;
mod config;
mod connection;
mod connector;
mod control;
pub mod deadline;
mod detail;
mod error;
mod frames;
#[cfg(feature = "http")]
pub mod http;
mod lanes;
mod login;
mod manager;
pub mod names;
mod pool;
mod probe;
mod recover;
mod retry;
mod run;
mod service;
mod session;
mod socket;
mod transaction;
mod warm;
mod watch;
mod wire;
mod words;

pub use config::{Builder, Sidecar, SyncWait, Timeouts};
pub use connection::Connection;
pub use deadline::{Deadline, Priority};
pub use error::{Error, ErrorKind};
pub use pool::{LaneStatus, Pool, PoolStatus};
pub use retry::Retry;
pub use service::Checkout;
pub use tidegate_layers::breaker::{BreakerConfig, Force, Phase};
pub use tidegate_layers::shed::QueueConfig;
pub use tokio_postgres;
pub use tokio_postgres::IsolationLevel;
pub use transaction::{Transaction, TxOptions, TxOutcome};
pub use words::{Cause, Lane, Outcome};

/// The code in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
