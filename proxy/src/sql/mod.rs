//! What a statement means to the sidecar, from its text alone.
//!
//! [`analyze`] answers in one pass over the bytes: which lane the text belongs to ([`Verdict`]), what it does to the
//! transaction ([`TransactionControl`]) and to the session ([`Effect`]), and what its hints ask for ([`Hints`]).
//! Nothing is rewritten, no text is ever an error, and plain statements cost no allocation.
//!
//! It is not a parser: it knows the lexical rules exactly and as much of the grammar as the answers need. Where
//! the grammar leaves it in doubt, a statement is a write and a name before a parenthesis is a function.
//!
//! # Bounds
//! Time is linear in the text. The lists in an [`Analysis`] are bounded: what would not fit is answered
//! conservatively ([`Verdict::Write`], [`PinReason::Untracked`]).
//!
//! # What it does not do
//! The bodies of DO blocks and functions are opaque. Identifiers and strings written with `U&` are not decoded: as
//! a function they are a write, as the name of a setting they stand there raw.

mod analysis;
mod analyzer;
mod body;
mod builtins;
mod commands;
mod effects;
mod fingerprint;
mod hints;
mod keywords;
mod lane;
mod lexer;
mod name;
mod session;
mod settings;
mod statements;
pub mod terms;
mod token;
mod transaction;

#[cfg(test)]
mod tests;

pub use analysis::{Analysis, StatementKind, analyze, has_two_readings};
pub use commands::{commands, may_be_commands};
pub use effects::{Effect, PinReason, Scope, Value};
pub use fingerprint::{FingerprintKey, fingerprint};
pub use hints::{Hints, Priority};
pub use lane::{FunctionName, Lane, Placement, Verdict};
pub use lexer::PlainStrings;
pub use name::Name;
pub use transaction::{Access, Deferral, Isolation, TransactionControl, TransactionOptions};
