use thiserror::Error;

/// The deadline passed before the response was there.
///
/// Says nothing of what became of the request: what was sent may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("deadline exceeded")]
#[non_exhaustive]
pub struct DeadlineExceeded {
    /// How far the request had come.
    pub progress: Progress,
}

impl DeadlineExceeded {
    pub(super) const fn new(progress: Progress) -> Self {
        Self { progress }
    }
}

/// Whether the inner service ever saw a request that missed its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It was late on arrival and went no further: safe to send again.
    NotStarted,
    /// The inner service had it: what became of it is unknown.
    Started,
}
