//! The queue of `HAProxy` in front of the service, from its stats socket.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::history::RunClock;

use super::QueueSample;

const EVERY: Duration = Duration::from_millis(200);

/// Looks at the queue until dropped.
#[derive(Debug)]
pub struct QueueSampler {
    samples: Arc<Mutex<Vec<QueueSample>>>,
    task: JoinHandle<()>,
}

impl QueueSampler {
    /// Starts asking the socket.
    pub fn start(socket: &Path, clock: RunClock) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(look(socket.to_owned(), clock, Arc::clone(&samples)));
        Self { samples, task }
    }

    /// What was seen so far.
    pub fn samples(&self) -> Vec<QueueSample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for QueueSampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look(socket: PathBuf, clock: RunClock, samples: Arc<Mutex<Vec<QueueSample>>>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let at = clock.now();
        let Ok(Ok(text)) = timeout(EVERY, ask(&socket)).await else { continue };
        if let Some((queued, sessions)) = parse(&text) {
            let sample = QueueSample { at, queued, sessions };
            samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
        }
    }
}

async fn ask(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(b"show stat\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// `qcur` and `scur` of the backend, by the names in the first line (`HAProxy` management guide, 9.1).
fn parse(text: &str) -> Option<(u64, u64)> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next()?.trim_start_matches("# ").split(',').collect();
    let column = |wanted: &str| names.iter().position(|name| *name == wanted);
    let (kind, queued, sessions) = (column("svname")?, column("qcur")?, column("scur")?);
    let row = lines.map(|line| line.split(',').collect::<Vec<_>>());
    let row = row.into_iter().find(|row| row.get(kind) == Some(&"BACKEND"))?;
    Some((row.get(queued)?.parse().ok()?, row.get(sessions)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backends_row_counts_not_the_frontends() {
        // The frontend has no queue: its column is empty.
        let text =
            "# pxname,svname,qcur,qmax,scur\nin,FRONTEND,,,9\norders,node,1,1,2\norders,BACKEND,3,5,7\n";

        assert_eq!(parse(text), Some((3, 7)));
    }
}
