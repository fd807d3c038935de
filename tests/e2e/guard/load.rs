//! An open load of sessions that write and sessions that read, with all answers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidegate_tests::{Problem, ScriptedApp, wait_for};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, NoTls, Statement};

use super::{ANSWER_SLACK, NOISE, kinds, timed};

/// How a writer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// A simple query.
    Simple,
    /// BEGIN; SELECT; INSERT; COMMIT.
    Transaction,
    /// A prepared statement of a driver.
    Prepared,
}

/// One operation of the load.
#[derive(Debug, Clone)]
pub(super) struct Op {
    pub(super) id: u64,
    pub(super) begin: Instant,
    pub(super) end: Instant,
    pub(super) problem: Option<Problem>,
}

impl Op {
    pub(super) fn took(&self) -> Duration {
        self.end - self.begin
    }

    pub(super) fn ok(&self) -> bool {
        self.problem.is_none()
    }

    pub(super) fn is(&self, code: &str) -> bool {
        self.problem.as_ref().is_some_and(|problem| problem.code() == code)
    }
}

/// Sessions that write unique ids and sessions that read, each at a rate of its own whatever the others do.
struct Load {
    writes: Mutex<Vec<Op>>,
    reads: Mutex<Vec<Op>>,
    next_id: AtomicU64,
    stop: AtomicBool,
}

/// A load under way.
pub(super) struct Running {
    load: Arc<Load>,
    tasks: JoinSet<()>,
}

impl Running {
    /// Logs all sessions in, then starts. Rates are per second, of all sessions together.
    pub(super) async fn start(
        address: SocketAddr,
        how: How,
        writers: (u32, u32),
        readers: (u32, u32),
    ) -> Self {
        let load = Arc::new(Load {
            writes: Mutex::default(),
            reads: Mutex::default(),
            next_id: AtomicU64::new(1),
            stop: AtomicBool::new(false),
        });
        let mut tasks = JoinSet::new();
        let mut sessions = Vec::new();
        for _ in 0..writers.0 {
            sessions.push(Writer::new(address, how).await);
        }
        let mut apps = Vec::new();
        for _ in 0..readers.0 {
            apps.push(ScriptedApp::session(address, "postgres", "postgres").await.0);
        }
        for (writer, number) in sessions.into_iter().zip(0..) {
            tasks.spawn(Arc::clone(&load).write(writer, Pace::new(number, writers)));
        }
        for (app, number) in apps.into_iter().zip(0..) {
            tasks.spawn(Arc::clone(&load).read(app, Pace::new(number, readers)));
        }
        Self { load, tasks }
    }

    pub(super) fn writes(&self) -> Vec<Op> {
        self.load.writes.lock().unwrap().clone()
    }

    fn reads(&self) -> Vec<Op> {
        self.load.reads.lock().unwrap().clone()
    }

    /// Waits until a write has this SQLSTATE.
    pub(super) async fn wait_write(&self, limit: Duration, code: &str) -> Op {
        let what = format!("a write is told {code}");
        wait_for(limit, &what, async || self.writes().into_iter().find(|op| op.is(code))).await
    }

    /// Waits until this many writes that began after an instant have succeeded; gives the first.
    pub(super) async fn wait_written(&self, limit: Duration, since: Instant, count: usize) -> Op {
        let start = Instant::now();
        loop {
            let writes = self.writes();
            let since: Vec<&Op> = writes.iter().filter(|op| op.begin >= since).collect();
            let good: Vec<&Op> = since.iter().copied().filter(|op| op.ok()).collect();
            if good.len() >= count {
                return good[0].clone();
            }
            assert!(start.elapsed() < limit, "{count} writes do not succeed: {:?}", kinds(since));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a whole second has passed without an error; gives the end of the last one since an instant.
    pub(super) async fn wait_calm(&self, limit: Duration, since: Instant) -> Instant {
        wait_for(limit, "no more errors", async || {
            let (writes, reads) = (self.writes(), self.reads());
            let failed = writes.iter().chain(&reads).filter(|op| !op.ok()).map(|op| op.end);
            let last = failed.max().unwrap_or(since).max(since);
            (last.elapsed() > Duration::from_secs(1)).then_some(last)
        })
        .await
    }

    /// Stops and gives all writes and reads. A session that ended makes this panic.
    pub(super) async fn finish(self) -> (Vec<Op>, Vec<Op>) {
        self.load.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        let writes = std::mem::take(&mut *self.load.writes.lock().unwrap());
        let reads = std::mem::take(&mut *self.load.reads.lock().unwrap());
        (writes, reads)
    }
}

/// When one session of many has its turns.
struct Pace {
    delay: Duration,
    period: Duration,
}

impl Pace {
    fn new(number: u32, (sessions, rate): (u32, u32)) -> Self {
        let step = Duration::from_secs(1) / rate;
        Self { delay: step * number, period: step * sessions }
    }

    async fn ticks(&self) -> tokio::time::Interval {
        tokio::time::sleep(self.delay).await;
        let mut ticks = tokio::time::interval(self.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks
    }
}

impl Load {
    async fn write(self: Arc<Self>, mut writer: Writer, pace: Pace) {
        let mut ticks = pace.ticks().await;
        while !self.stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let op = writer.write(id, &self.reads).await;
            self.writes.lock().unwrap().push(op);
        }
    }

    async fn read(self: Arc<Self>, mut app: ScriptedApp, pace: Pace) {
        let mut ticks = pace.ticks().await;
        while !self.stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            let begin = Instant::now();
            let problem = app.query("SELECT count(*) FROM ledger WHERE id < 10").await.error();
            self.reads.lock().unwrap().push(Op { id: 0, begin, end: Instant::now(), problem });
        }
    }
}

/// One session that writes.
enum Writer {
    Raw(Box<ScriptedApp>, How),
    Driver(Client, Statement),
}

impl Writer {
    async fn new(address: SocketAddr, how: How) -> Self {
        if how == How::Prepared {
            let url = format!("postgres://postgres@{address}/postgres");
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
            tokio::spawn(connection);
            let statement = client.prepare("INSERT INTO ledger VALUES ($1)").await.unwrap();
            return Self::Driver(client, statement);
        }
        let (app, _) = ScriptedApp::session(address, "postgres", "postgres").await;
        Self::Raw(Box::new(app), how)
    }

    async fn write(&mut self, id: u64, reads: &Mutex<Vec<Op>>) -> Op {
        let begin = Instant::now();
        let problem = match self {
            Self::Raw(app, How::Transaction) => return transaction(app, id, reads).await,
            Self::Raw(app, _) => app.query(&format!("INSERT INTO ledger VALUES ({id})")).await.error(),
            Self::Driver(client, statement) => {
                let id = i64::try_from(id).unwrap();
                client.execute(&*statement, &[&id]).await.err().map(|error| of_driver(&error))
            }
        };
        Op { id, begin, end: Instant::now(), problem }
    }
}

/// A transaction of four exchanges; after an error it is rolled back, and the session must be as new. Gives what
/// became of the write; its time is that of the last of its exchanges. The SELECT is one of the reads.
async fn transaction(app: &mut ScriptedApp, id: u64, reads: &Mutex<Vec<Op>>) -> Op {
    let insert = format!("INSERT INTO ledger VALUES ({id})");
    let mut op = Op { id, begin: Instant::now(), end: Instant::now(), problem: None };
    for sql in ["BEGIN", "SELECT 1", &insert, "COMMIT"] {
        let begin = Instant::now();
        let reply = app.query(sql).await;
        op = Op { id, begin, end: Instant::now(), problem: reply.error() };
        if sql == "SELECT 1" {
            reads.lock().unwrap().push(op.clone());
        }
        let Some(problem) = &op.problem else { continue };
        if sql == insert {
            assert_eq!(reply.status(), Some('E'), "a statement failed, and so its transaction: {problem:?}");
        }
        let (rolled_back, took) = timed(app, "ROLLBACK").await;
        assert_eq!((rolled_back.error(), rolled_back.status()), (None, Some('I')), "after {problem:?}");
        assert!(took < ANSWER_SLACK * NOISE, "ROLLBACK took {took:?} after {problem:?}");
        break;
    }
    op
}

/// A driver's error as it came over the wire.
fn of_driver(error: &tokio_postgres::Error) -> Problem {
    let error = error.as_db_error().unwrap_or_else(|| panic!("the session is lost: {error:?}"));
    let fields = [
        ('V', error.severity()),
        ('S', error.severity()),
        ('C', error.code().code()),
        ('M', error.message()),
        ('D', error.detail().unwrap_or_default()),
    ];
    Problem(fields.map(|(letter, text)| (letter, text.to_owned())).into())
}
