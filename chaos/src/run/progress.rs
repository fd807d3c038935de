//! A line on the terminal while a run goes on.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::interval;

use crate::history::Recorder;

/// Prints until dropped.
#[derive(Debug)]
pub(super) struct Progress(JoinHandle<()>);

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.abort();
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

/// Starts printing on standard error: once a second over the same line of a terminal, every five seconds
/// elsewhere.
pub(super) fn start(recorder: Arc<Recorder>, end: Duration) -> Progress {
    let terminal = std::io::stderr().is_terminal();
    let every = if terminal { 1 } else { 5 };
    Progress(tokio::spawn(async move {
        let mut ticks = interval(Duration::from_secs(every));
        loop {
            ticks.tick().await;
            let (now, pulse) = (recorder.clock().now(), recorder.pulse());
            let line = format!(
                "  {:>3} of {:>3} s   reads {:>3}/s   writes {:>3}/s   errors {:>3}/s   waiting {:>4}",
                now.as_secs().min(end.as_secs()),
                end.as_secs(),
                pulse.reads,
                pulse.writes,
                pulse.errors,
                pulse.waiting
            );
            if terminal {
                eprint!("\r{line}\x1b[K");
                // The line is only decoration.
                let _ = std::io::stderr().flush();
            } else {
                eprintln!("{line}");
            }
        }
    }))
}
