//! What became of a COMMIT whose answer never came.
//!
//! While a transaction writes, the server is asked for a [`Token`] of it (`token`). When its COMMIT breaks or takes too
//! long, the server that takes writes by then is asked about that token (`resolver`), and `verdict` says what the
//! answer proves. It promises never to call committed what may be lost, nor rolled back what may be durable; what it
//! cannot prove in time stays unknown.
//!
//! Transaction ids alone prove nothing: after a crash, or the promotion of a standby that lacked the last WAL, PostgreSQL
//! gives the lost ids to others, and `txid_status` then speaks of those. So a token has a position too: what lies
//! behind the end of the WAL that the server recovered never happened there.

pub mod resolver;
pub mod token;
pub mod verdict;

pub use resolver::Resolver;
pub use token::Token;
pub use verdict::Verdict;
