//! End-to-end tests: the real binary, real PostgreSQL servers, real drivers. One module per claim.

#[cfg(test)]
mod rig;

/// PostgreSQL dies in part or as a whole, and no session hangs, lies or is lost for good.
#[cfg(test)]
mod backend_loss;
/// A cancel ends the statement that it is for, and never another one.
#[cfg(test)]
mod cancel;
/// Drivers cannot tell the sidecar from PostgreSQL.
#[cfg(test)]
mod drivers;
/// Sessions that idle too long are told so, and hold nothing.
#[cfg(test)]
mod idle;
/// Memory is bounded, whatever passes through.
#[cfg(test)]
mod memory;
/// State that cannot move keeps its backend.
#[cfg(test)]
mod pinning;
/// tokio-postgres pipelines through few backends.
#[cfg(test)]
mod pipelined_tokio;
/// Many sessions share few backends, fairly and without traces.
#[cfg(test)]
mod pooling;
/// Settings belong to their session, whatever backend runs it.
#[cfg(test)]
mod settings;
