//! One command cycle of the protocol: what a statement does, what is owed for it, how it can be refused.

pub mod cause;
pub mod facts;
pub mod ledger;
pub mod refusal;
mod remembered;

pub use cause::{Cause, Diagnosis};
pub use facts::{Change, Facts};
pub use ledger::{Ledger, Owed};
pub use refusal::Refusal;
