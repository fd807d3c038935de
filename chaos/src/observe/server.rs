//! `pg_stat_activity` over time, by a connection that does not pass the subject.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::{Client, Config, NoTls};

use crate::history::{Lane, RunClock};

use super::{ServerSample, Waits};

/// Name under which the harness's own sessions are left out.
pub(crate) const OWN_NAME: &str = "tidegate-chaos";

const EVERY: Duration = Duration::from_millis(200);

/// A server that takes longer is taken for silent.
const LIMIT: Duration = Duration::from_millis(500);

/// How often a question is waited for so long before it is asked again on a new connection: a server that is frozen forks
/// for each that it finds when it goes on, which disturbs what is measured then.
const PATIENCE: usize = 6;

const QUERY: &str = "
SELECT coalesce(query ~* '^(insert|with|begin|commit)', false),
       coalesce(wait_event_type || '/' || wait_event, 'CPU'),
       count(*)::int
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND application_name NOT IN ('tidegate-chaos', 'psql')
GROUP BY 1, 2";

/// Looks at one server until dropped.
#[derive(Debug)]
pub struct ServerSampler {
    samples: Arc<Mutex<Vec<ServerSample>>>,
    task: JoinHandle<()>,
}

impl ServerSampler {
    /// Starts looking at the server on this port.
    pub fn start(node: &str, port: u16, clock: RunClock) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(look(node.to_owned(), port, clock, Arc::clone(&samples)));
        Self { samples, task }
    }

    /// What was seen so far.
    pub fn samples(&self) -> Vec<ServerSample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ServerSampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look(node: String, port: u16, clock: RunClock, samples: Arc<Mutex<Vec<ServerSample>>>) {
    let note = |at, waits| {
        let sample = ServerSample { at, node: node.clone(), waits };
        samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
    };
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut connection = None;
    loop {
        ticks.tick().await;
        if !hear(ask(&mut connection, port), clock, &note).await {
            connection = None;
        }
    }
}

/// Notes what is answered, and each [`LIMIT`] that passes without. Whether there was an answer.
async fn hear(
    asking: impl Future<Output = Option<Vec<Waits>>>,
    clock: RunClock,
    note: &impl Fn(Duration, Option<Vec<Waits>>),
) -> bool {
    let mut asking = pin!(asking);
    for _ in 0..PATIENCE {
        let at = clock.now();
        match timeout(LIMIT, asking.as_mut()).await {
            Err(_) => note(at, None),
            Ok(answer) => {
                let answered = answer.is_some();
                note(at, answer);
                return answered;
            }
        }
    }
    false
}

async fn ask(connection: &mut Option<Client>, port: u16) -> Option<Vec<Waits>> {
    let client = match connection {
        Some(client) => client,
        None => connection.insert(connect(port).await?),
    };
    let rows = client.query_typed(QUERY, &[]).await.ok()?;
    let waits = rows.iter().map(|row| {
        let lane = if row.get(0) { Lane::Write } else { Lane::Read };
        let backends = u32::try_from(row.get::<_, i32>(2)).unwrap_or(0);
        Waits { lane, event: row.get(1), backends }
    });
    Some(waits.collect())
}

async fn connect(port: u16) -> Option<Client> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user("postgres").dbname("postgres").application_name(OWN_NAME);
    let (client, connection) = config.connect(NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}
