//! Cancels of applications, deadlines, sessions that leave, and a small pool, all at once: only those statements fail
//! that somebody meant.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidegate_tests::{Frames, Greeting, Reply, ScriptedApp};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::sleep;

use super::{Watch, guarded};
use crate::rig::own_postgres;

const SESSIONS: u64 = 12;
const STATEMENTS: u64 = 10_000;
const SEED: u64 = 20_241;
/// The deadline counts from the first byte: what has waited for as long as the queue allows must still have time to
/// run, on a busy machine too, or it would be late through nobody's fault.
const SECTIONS: &str = "[pool]\nsize = 4\n[timeouts]\nread = \"4s\"\nqueue = \"1s\"\n\
                        [shed]\ncodel_target = \"1s\"\n";

/// What is to become of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Plan {
    /// It must succeed, or be refused unsent because all backends are busy.
    Innocent,
    /// The same within a transaction.
    InnocentTransaction,
    /// The application cancels it, sooner or later.
    Cancelled,
    /// It sleeps beyond its deadline.
    Late,
    /// The session leaves in the middle of it.
    Abandoned,
}

fn plan(random: &mut StdRng) -> Plan {
    match random.random_range(0..1000) {
        0..620 => Plan::Innocent,
        620..720 => Plan::InnocentTransaction,
        720..950 => Plan::Cancelled,
        950..953 => Plan::Late,
        _ => Plan::Abandoned,
    }
}

#[derive(Default)]
struct Tally {
    next: AtomicU64,
    kinds: Mutex<BTreeMap<(Plan, String), u64>>,
}

struct Session {
    app: ScriptedApp,
    greeting: Greeting,
    address: SocketAddr,
    random: StdRng,
    tally: Arc<Tally>,
    /// The statement before this one, for whoever reads a failure.
    last: Option<(Plan, String)>,
}

impl Session {
    async fn new(address: SocketAddr, seed: u64, tally: Arc<Tally>) -> Self {
        let (app, greeting) = ScriptedApp::session(address, "postgres", "postgres").await;
        Self { app, greeting, address, random: StdRng::seed_from_u64(seed), tally, last: None }
    }

    async fn work(mut self) {
        loop {
            let number = self.tally.next.fetch_add(1, Ordering::Relaxed);
            if number >= STATEMENTS {
                return;
            }
            let plan = plan(&mut self.random);
            let reply = match plan {
                Plan::Innocent => self.innocent(number).await,
                Plan::InnocentTransaction => self.transaction(number).await,
                Plan::Cancelled => self.cancelled(number).await,
                Plan::Late => Some(self.app.query(&sql(number, 30)).await),
                Plan::Abandoned => self.abandoned(number).await,
            };
            if let Some(reply) = reply {
                self.judge(plan, number, &reply);
            }
        }
    }

    async fn innocent(&mut self, number: u64) -> Option<Reply> {
        let sql = if self.random.random_bool(0.5) { sql(number, 0) } else { format!("SELECT '{number}'") };
        let frames = if self.random.random_bool(0.5) {
            Frames::new().query(&sql)
        } else {
            Frames::new().unnamed(&sql, &[]).sync()
        };
        Some(self.app.exchange(frames).await)
    }

    async fn transaction(&mut self, number: u64) -> Option<Reply> {
        let begun = self.app.query("BEGIN").await.error();
        assert_eq!(begun, None, "BEGIN costs no backend; before it {:?}", self.last);
        let reply = self.app.query(&format!("SELECT '{number}'")).await;
        if reply.error().is_none() {
            for sql in [format!("SELECT '{number}'"), "COMMIT".to_owned()] {
                let further = self.app.query(&sql).await;
                assert_eq!(further.error(), None, "a later statement of an innocent transaction");
            }
        } else {
            assert_eq!(self.app.query("ROLLBACK").await.error(), None);
        }
        Some(reply)
    }

    /// The cancel may come before the statement has a backend, while it runs, or when it is over.
    async fn cancelled(&mut self, number: u64) -> Option<Reply> {
        let long = self.random.random_bool(0.6);
        let pause = Duration::from_micros(self.random.random_range(0..20_000));
        self.app.send(Frames::new().query(&sql(number, u32::from(long)))).await;
        sleep(pause).await;
        ScriptedApp::cancel(self.address, &self.greeting.key).await;
        Some(self.app.reply().await)
    }

    async fn abandoned(&mut self, number: u64) -> Option<Reply> {
        self.app.send(Frames::new().query(&sql(number, 1))).await;
        sleep(Duration::from_micros(self.random.random_range(0..5_000))).await;
        self.last = None;
        (self.app, self.greeting) = ScriptedApp::session(self.address, "postgres", "postgres").await;
        None
    }

    fn judge(&mut self, plan: Plan, number: u64, reply: &Reply) {
        let problem = reply.error();
        let code = problem.as_ref().map_or("ok", |problem| problem.code()).to_owned();
        *self.tally.kinds.lock().unwrap().entry((plan, code.clone())).or_default() += 1;
        assert!(plan == Plan::InnocentTransaction || reply.status() == Some('I'), "{plan:?} {problem:?}");
        self.last = Some((plan, code.clone()));
        let shed = code == "53300" && problem.as_ref().unwrap().detail_of("outcome") == Some("not_sent");
        match (plan, code.as_str()) {
            (Plan::Late, "ok") => panic!("statement {number} slept beyond its deadline"),
            (_, "ok") => {
                assert_eq!(reply.value().as_deref(), Some(number.to_string().as_str()), "another's answer");
            }
            (Plan::Cancelled | Plan::Late, "57014") => {}
            _ => assert!(shed, "nobody meant statement {number} ({plan:?}): {problem:?}"),
        }
    }
}

/// A statement that answers with its number after some seconds; without seconds it takes ten milliseconds.
fn sql(number: u64, seconds: u32) -> String {
    let sleep = if seconds == 0 { "0.01".to_owned() } else { seconds.to_string() };
    format!("SELECT '{number}' FROM pg_sleep({sleep})")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mix_of_cancels_deadlines_and_reuse_ends_an_innocent_statement() {
    // A cancel names a backend, not a statement: one that is late by a moment hits whoever has the backend next.
    let node = block_in_place(|| own_postgres(&[]));
    let proxy = guarded(&node, SECTIONS).await;
    println!("seed {SEED}");
    let tally = Arc::new(Tally::default());
    let begin = Instant::now();

    let mut sessions = JoinSet::new();
    for number in 0..SESSIONS {
        let session = Session::new(proxy.address(), SEED + number, Arc::clone(&tally)).await;
        sessions.spawn(session.work());
    }
    sessions.join_all().await;

    let kinds = tally.kinds.lock().unwrap().clone();
    println!("{:?}: {kinds:?}", begin.elapsed());
    let of = |plan: Plan, code: &str| kinds.get(&(plan, code.to_owned())).copied().unwrap_or(0);
    assert!(of(Plan::Innocent, "ok") > 3000, "most must have been served");
    assert!(of(Plan::Cancelled, "57014") > 500, "cancels must have hit");
    assert!(of(Plan::Late, "57014") > 10, "deadlines must have passed");
    let left = "SELECT count(*) = 0 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep%' \
                AND pid <> pg_backend_pid()";
    Watch::new(&node).await.wait("nothing is left running", left).await;
}
