//! Proves that a server answers.

use std::sync::Arc;

use tidegate_layers::breaker::{Probe, ProbeOutcome, Session};

use super::Control;
use super::pulse::Pulse;
use super::runner::{Question, Runner, Verdict};
use crate::backend::connection::Row;

const QUESTION: Question = Question { sql: |_| "SELECT 1".to_owned(), judge };

fn judge(rows: &[Row]) -> Verdict {
    match rows.first().and_then(|row| row.first()) {
        Some(Some(_)) => Verdict::GOOD,
        Some(None) | None => Verdict { outcome: ProbeOutcome::Failed, cause: None },
    }
}

/// A synthetic read. It touches no table, so it is blind to storage and locks. As with
/// [`WriteProbe`](super::WriteProbe) there is never more than one outstanding.
#[derive(Debug, Clone)]
pub struct ReadProbe(Arc<Runner>);

impl ReadProbe {
    /// Nothing is opened before the first probe.
    pub fn new(control: Arc<Control>) -> Self {
        Self(Arc::new(Runner::new(control, QUESTION)))
    }

    /// What it last found, and what is outstanding.
    pub fn pulse(&self) -> &Arc<Pulse> {
        self.0.pulse()
    }

    /// Closes its connection, whatever is under way there.
    pub fn hang_up(&self) {
        self.0.hang_up();
    }
}

impl Probe for ReadProbe {
    async fn probe(&self, session: Session) -> ProbeOutcome {
        self.0.probe(session).await
    }
}
