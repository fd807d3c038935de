//! Many sessions share few backends: never more than allowed, fairly, and without traces of each other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tidegate_tests::{
    BackendKey, Frames, Incoming, Message, Replies, ScriptedApp, ScriptedBackend, ScriptedServer, Signal,
    fresh_database, wait_for, wait_until, within,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::rig::{
    PATIENT, Rig, SOON, backend_pid, backends_of, holds_for, pool_of, run, session_pool_of, sidecar, value,
};

/// Sessions that run this statement again and again until told to stop; gives how often each did.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<usize>,
}

impl Load {
    async fn start(
        address: std::net::SocketAddr,
        database: &str,
        sessions: usize,
        sql: &'static str,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..sessions {
            let (mut app, _) = ScriptedApp::session(address, "postgres", database).await;
            let stop = Arc::clone(&stop);
            tasks.spawn(async move {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    run(&mut app, sql).await;
                    count += 1;
                }
                count
            });
        }
        Self { stop, tasks }
    }

    async fn end(self) -> Vec<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_never_has_more_backends_than_its_size() {
    // Fifty sessions that always want one; the server itself counts.
    let rig = Rig::start(pool_of(5)).await;
    let load = Load::start(rig.proxy().address(), &rig.database, 50, "SELECT pg_sleep(0.002)").await;

    let mut most = 0;
    holds_for(Duration::from_secs(3), "more backends than pool.size", || {
        most = most.max(rig.backends());
        most <= 5
    })
    .await;
    let done = load.end().await;

    assert_eq!(most, 5, "the load did not fill the pool, so nothing was shown");
    assert!(done.iter().all(|count| *count > 0), "a session was starved: {done:?}");
}

#[tokio::test]
async fn idle_backends_are_closed_after_the_idle_timeout() {
    // Else one burst would hold max_connections for ever.
    let rig = Rig::start(sidecar("[pool]\nidle_timeout = \"1s\"\n")).await;
    let mut app = rig.app().await;
    run(&mut app, "SELECT 1").await;
    assert_eq!(rig.backends(), 1);

    wait_until(SOON, "no backend is left", || rig.backends() == 0).await;

    run(&mut app, "SELECT 1").await;
}

#[tokio::test]
async fn min_idle_backends_are_kept() {
    // The timeout alone would close them all.
    let config = "[pool]\nsize = 10\nmin_idle = 3\nidle_timeout = \"1s\"\n";
    let rig = Rig::start(sidecar(config)).await;
    let mut app = rig.app().await;
    run(&mut app, "SELECT 1").await;

    wait_until(SOON, "three backends", || rig.backends() == 3).await;
    // Two further timeouts. One that is being replaced may be missing for a moment.
    let mut seen = Vec::new();
    holds_for(Duration::from_millis(2500), "no backend was kept", || {
        seen.push(rig.backends());
        seen.last() != Some(&0)
    })
    .await;

    assert!(seen.iter().all(|count| (2..=4).contains(count)), "{seen:?}");
    wait_until(SOON, "three backends again", || rig.backends() == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_backends_are_replaced_under_load_without_an_error() {
    // Load::start's sessions fail on any error. The set of process ids must outgrow the pool, or none was replaced.
    let rig = Rig::start(sidecar(&format!("[pool]\nsize = 3\nmax_lifetime = \"1s\"\n{PATIENT}"))).await;
    let load = Load::start(rig.proxy().address(), &rig.database, 10, "SELECT pg_sleep(0.001)").await;
    let look = "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity \
                WHERE datname = current_database() AND pid <> pg_backend_pid()";

    let mut pids = BTreeSet::new();
    holds_for(Duration::from_secs(5), "", || {
        pids.extend(rig.sql(look).split_whitespace().map(str::to_owned));
        true
    })
    .await;
    load.end().await;

    assert!(pids.len() >= 9, "in five lifetimes of one second, 3 backends at a time, only: {pids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_databases_share_the_upstream_limit_and_neither_starves() {
    // Each pool alone could take nearly all of the limit; the one that comes second must get its part.
    let config = format!("[pool]\nsize = 5\nmax_per_upstream = 6\n{PATIENT}");
    let rig = Rig::start(sidecar(&config)).await;
    let second = fresh_database();
    let first = Load::start(rig.proxy().address(), &rig.database, 10, "SELECT pg_sleep(0.003)").await;
    wait_until(SOON, "the first pool has grown", || rig.backends() >= 3).await;
    let late = Load::start(rig.proxy().address(), &second, 10, "SELECT pg_sleep(0.003)").await;

    holds_for(Duration::from_secs(4), "more backends than max_per_upstream", || {
        backends_of(&[&rig.database, &second]) <= 6
    })
    .await;
    let (first, late) = (first.end().await, late.end().await);

    let (all_first, all_late): (usize, usize) = (first.iter().sum(), late.iter().sum());
    assert!(first.iter().chain(&late).all(|count| *count > 0), "starved: {first:?} {late:?}");
    assert!(all_late * 8 > all_first, "{all_first} against {all_late} statements");
}

fn key() -> BackendKey {
    BackendKey { pid: 7, secret: vec![1, 2, 3, 4] }
}

/// A fake server that logs in slowly and answers everything; says how many logins were open at once.
async fn slow_login(mut backend: ScriptedBackend, now: &AtomicUsize, most: &AtomicUsize) {
    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(80)).await;
    now.fetch_sub(1, Ordering::SeqCst);
    backend.welcome(&key()).await;
    while let Some(message) = backend.next().await {
        if message.body.starts_with(b"SELECT 5") {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        backend.send(answer_to(&message)).await;
    }
}

/// Probes of a fake server are not answered; an answer that makes no sense would open the breaker.
const UNANSWERED: &str = "[breaker]\nprobe_timeout = \"60s\"\n";

/// Control connections are in another database.
fn is_control(backend: &ScriptedBackend) -> bool {
    backend.parameter("database") != Some("shop")
}

async fn leave_unanswered(mut backend: ScriptedBackend) {
    backend.welcome(&key()).await;
    backend.go_silent().await;
}

/// What a fake server says that takes everything.
fn answer_to(message: &Message) -> Replies {
    let silent = Replies::new();
    match message.tag {
        b'Q' if message.body.starts_with(b"SELECT 5") => silent.one_value("5"),
        b'Q' => silent.complete("SET").ready('I'),
        b'S' => silent.ready('I'),
        b'P' => silent.message(b'1', &[]),
        b'B' => silent.message(b'2', &[]),
        b'D' => silent.message(b'n', &[]),
        b'E' => silent.complete("SET"),
        _ => silent,
    }
}

#[tokio::test]
async fn at_most_two_connects_run_at_a_time() {
    // Ten sessions want a backend at the same moment; a server that just came back would drown in logins.
    let mut server = ScriptedServer::start().await;
    let (now, most, all) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let counted = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&all));
    server.serve(move |incoming| {
        let (now, most, all) = counted.clone();
        async move {
            let Incoming::Session(backend) = incoming else { return };
            if is_control(&backend) {
                return leave_unanswered(backend).await;
            }
            all.fetch_add(1, Ordering::SeqCst);
            slow_login(backend, &now, &most).await;
        }
    });
    let config = format!("[pool]\nsize = 10\n{UNANSWERED}{PATIENT}");
    let proxy = sidecar(&config).upstream(&server.url()).start().await;

    let mut sessions = JoinSet::new();
    for _ in 0..10 {
        let address = proxy.address();
        sessions.spawn(async move {
            let (mut app, _) = ScriptedApp::session(address, "postgres", "shop").await;
            value(&mut app, "SELECT 5").await
        });
    }
    let values = within(SOON, "ten answers", sessions.join_all()).await;

    assert_eq!(values, ["5"; 10]);
    assert!(all.load(Ordering::SeqCst) > 2, "too few connects to show anything");
    assert!(most.load(Ordering::SeqCst) <= 2, "{} logins at once", most.load(Ordering::SeqCst));
}

/// One backend, kept by a transaction; the others wait in vain.
async fn exhausted(config: &str) -> (Rig, ScriptedApp) {
    let rig = Rig::start(sidecar(config)).await;
    let mut holder = rig.app().await;
    run(&mut holder, "BEGIN").await;
    run(&mut holder, "SELECT 1").await;
    (rig, holder)
}

#[tokio::test]
async fn waiting_too_long_is_refused_and_the_session_lives() {
    // The application must learn that nothing was sent, and when to come again, without losing its connection.
    let (rig, mut holder) = exhausted("[pool]\nsize = 1\n[timeouts]\nqueue = \"500ms\"\n").await;
    let mut app = rig.app().await;
    let start = Instant::now();

    let refused = app.query("SELECT 2").await;
    let waited = start.elapsed();
    let error = refused.error().expect("an error");

    assert_eq!((error.severity(), error.code()), ("ERROR", "53300"));
    assert_eq!(error.detail_of("reason"), Some("queue_timeout"));
    assert_eq!(error.detail_of("outcome"), Some("not_sent"));
    let again = error.detail_of("retry_after_ms").and_then(|text| text.parse::<u64>().ok());
    assert!(again.is_some(), "{}", error.detail());
    assert!(error.message().starts_with("tidegate: "), "{}", error.message());
    assert!(!error.field('H').is_empty(), "no hint");
    assert_eq!(refused.status(), Some('I'));
    assert!((Duration::from_millis(400)..Duration::from_millis(1500)).contains(&waited), "{waited:?}");

    run(&mut holder, "COMMIT").await;
    assert_eq!(value(&mut app, "SELECT 2").await, "2");
}

#[tokio::test]
async fn a_refused_pipeline_is_refused_once_per_sync() {
    // One error for all messages up to Sync, as PostgreSQL does; a second would desynchronise the driver.
    let (rig, mut holder) = exhausted("[pool]\nsize = 1\n[timeouts]\nqueue = \"300ms\"\n").await;
    let mut app = rig.app().await;
    let frames = Frames::new().unnamed("SELECT 1", &[]).unnamed("SELECT 2", &[]).sync();

    assert_eq!(app.exchange(frames).await.tags(), "EZ");

    run(&mut holder, "COMMIT").await;
    assert_eq!(app.exchange(Frames::new().unnamed("SELECT 3", &[]).sync()).await.tags(), "12TDCZ");
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    // Waiting for a place in a queue that is full helps nobody.
    let config = format!("[pool]\nsize = 1\n{}", PATIENT.replace("[shed]\n", "[shed]\nqueue_max = 1\n"));
    let (rig, mut holder) = exhausted(&config).await;
    let (mut waiting, mut surplus) = (rig.app().await, rig.app().await);
    waiting.send(Frames::new().query("SELECT 1")).await;
    waiting.expect_silence(Duration::from_millis(200)).await;
    let start = Instant::now();

    let refused = surplus.query("SELECT 2").await;
    let error = refused.error().expect("an error");

    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    assert_eq!((error.severity(), error.code()), ("ERROR", "53300"));
    assert_eq!(error.detail_of("reason"), Some("queue_full"));
    assert_eq!(error.detail_of("outcome"), Some("not_sent"));
    assert!(error.detail_of("retry_after_ms").is_some(), "{}", error.detail());
    run(&mut holder, "COMMIT").await;
    assert_eq!(waiting.reply().await.value().as_deref(), Some("1"));
    run(&mut surplus, "SELECT 2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_stays_on_its_backend() {
    // Ten sessions on three backends take turns after every statement, if they are allowed to.
    let rig = Rig::start(pool_of(3)).await;
    let mut sessions = JoinSet::new();
    for _ in 0..10 {
        let mut app = rig.app().await;
        sessions.spawn(async move {
            let mut all = BTreeSet::new();
            for _ in 0..10 {
                run(&mut app, "BEGIN").await;
                let pid = backend_pid(&mut app).await;
                for _ in 0..4 {
                    assert_eq!(backend_pid(&mut app).await, pid);
                    tokio::task::yield_now().await;
                }
                run(&mut app, "COMMIT").await;
                all.insert(pid);
            }
            all
        });
    }

    let pids: BTreeSet<String> = sessions.join_all().await.into_iter().flatten().collect();

    assert!((2..=3).contains(&pids.len()), "{pids:?}");
}

#[tokio::test]
async fn a_failed_transaction_stays_on_its_backend_too() {
    // On another backend the statements after the error would succeed.
    let rig = Rig::start(pool_of(2)).await;
    let (mut app, mut other) = (rig.app().await, rig.app().await);
    run(&mut app, "BEGIN").await;
    app.query("SELECT 1/0").await;

    run(&mut other, "SELECT 1").await;
    let failed = app.query("SELECT 1").await;
    let end = app.query("COMMIT").await;

    assert_eq!((failed.error_code().as_str(), failed.status()), ("25P02", Some('E')));
    assert_eq!((end.commands(), end.status()), (vec!["ROLLBACK".to_owned()], Some('I')));
}

#[tokio::test]
async fn a_portal_stays_on_its_backend_between_flushes() {
    // node-postgres reads cursors this way, outside of a transaction: Sync, not Flush, ends the exchange. In between,
    // the portal and the implicit transaction live in the backend, which nobody else may have.
    let rig = Rig::start(pool_of(2)).await;
    let (mut app, mut other) = (rig.app().await, rig.app().await);
    let open = Frames::new().parse("", "SELECT * FROM generate_series(1, 6)", &[]).bind("mine", "", &[]);
    app.send(open.describe_portal("mine").flush()).await;
    for tag in *b"12T" {
        app.expect(tag).await;
    }

    for _ in 0..3 {
        run(&mut other, "SELECT 1").await;
        app.send(Frames::new().execute("mine", 2).flush()).await;
        for tag in *b"DDs" {
            app.expect(tag).await;
        }
    }
    run(&mut other, "SELECT 1").await;

    assert_eq!(app.exchange(Frames::new().close_portal("mine").sync()).await.tags(), "3Z");
}

#[tokio::test]
async fn an_exchange_without_its_sync_keeps_its_backend() {
    // The INSERT is not committed before Sync. A statement of another session on the same backend would commit it.
    let rig = Rig::start(pool_of(1)).await;
    rig.sql("CREATE TABLE t (a int)");
    let (mut app, mut other) = (rig.app().await, rig.app().await);
    app.send(
        Frames::new().parse("", "INSERT INTO t VALUES (1)", &[]).bind("", "", &[]).execute("", 0).flush(),
    )
    .await;
    for tag in *b"12C" {
        app.expect(tag).await;
    }

    other.send(Frames::new().query("SELECT 1")).await;
    other.expect_silence(Duration::from_millis(300)).await;
    assert_eq!(rig.sql("SELECT count(*) FROM t"), "0");
    assert_eq!(app.exchange(Frames::new().sync()).await.tags(), "Z");

    assert_eq!(other.reply().await.tags(), "TDCZ");
    assert_eq!(rig.sql("SELECT count(*) FROM t"), "1");
}

#[tokio::test]
async fn a_session_stays_on_its_backend_in_session_mode() {
    // Temporary state of any kind works there because nothing moves.
    let rig = Rig::start(session_pool_of(3)).await;
    let mut apps = [rig.app().await, rig.app().await, rig.app().await];
    let mut pids = vec![BTreeSet::new(); 3];

    for _ in 0..10 {
        for (app, pids) in apps.iter_mut().zip(&mut pids) {
            pids.insert(backend_pid(app).await);
        }
    }

    assert!(pids.iter().all(|own| own.len() == 1), "{pids:?}");
    let distinct: BTreeSet<_> = pids.into_iter().flatten().collect();
    assert_eq!(distinct.len(), 3);
}

#[tokio::test]
async fn nothing_of_a_session_is_left_in_its_backend_in_session_mode() {
    // The next session gets the same process, and must find it as new.
    let rig = Rig::start(session_pool_of(1)).await;
    let mut first = rig.app().await;
    let pid = backend_pid(&mut first).await;
    for sql in [
        "CREATE TEMP TABLE mine AS SELECT 1",
        "SET work_mem = '7MB'",
        "SET search_path = pg_catalog",
        "SELECT pg_advisory_lock(5)",
        "PREPARE mine AS SELECT 1",
        "LISTEN tide",
    ] {
        run(&mut first, sql).await;
    }
    first.terminate().await;

    let mut next = rig.app().await;

    assert_eq!(backend_pid(&mut next).await, pid);
    assert_eq!(value(&mut next, "SELECT to_regclass('pg_temp.mine')").await, "");
    assert_ne!(value(&mut next, "SHOW work_mem").await, "7MB");
    assert_eq!(value(&mut next, "SHOW search_path").await, "\"$user\", public");
    assert_eq!(value(&mut next, "SELECT count(*) FROM pg_prepared_statements").await, "0");
    assert_eq!(value(&mut next, "SELECT count(*) FROM pg_listening_channels()").await, "0");
    assert_eq!(rig.sql("SELECT pg_try_advisory_lock(5)"), "t");
}

#[derive(Debug, Clone, Copy)]
enum Leaving {
    Terminate,
    Close,
    Reset,
}

async fn leave(app: ScriptedApp, how: Leaving) {
    match how {
        Leaving::Terminate => app.terminate().await,
        Leaving::Close => drop(app),
        Leaving::Reset => app.reset(),
    }
}

#[tokio::test]
async fn a_session_that_leaves_in_a_transaction_is_rolled_back() {
    // A commit, or a lock that stays, would be somebody else's fault later. The backend itself is healthy: it is kept.
    for how in [Leaving::Terminate, Leaving::Close, Leaving::Reset] {
        let rig = Rig::start(pool_of(1)).await;
        rig.sql("CREATE TABLE t (a int)");
        let mut app = rig.app().await;
        run(&mut app, "BEGIN").await;
        run(&mut app, "INSERT INTO t VALUES (1)").await;
        let pid = backend_pid(&mut app).await;

        leave(app, how).await;

        let mut next = rig.app().await;
        assert_eq!(value(&mut next, "SELECT count(*) FROM t").await, "0", "{how:?}");
        assert_eq!(backend_pid(&mut next).await, pid, "{how:?}");
        assert_eq!(next.query("COMMIT").await.status(), Some('I'), "{how:?}");
    }
}

#[tokio::test]
async fn a_session_that_leaves_during_a_statement_is_cancelled() {
    // Without the cancel the only backend sleeps for a minute.
    for (how, mode) in
        [(Leaving::Close, "transaction"), (Leaving::Reset, "transaction"), (Leaving::Close, "session")]
    {
        let config = format!("[pool]\nsize = 1\nmode = \"{mode}\"\n{PATIENT}");
        let rig = Rig::start(sidecar(&config)).await;
        let mut app = rig.app().await;
        let pid = backend_pid(&mut app).await;
        app.send(Frames::new().query("SELECT pg_sleep(60)")).await;
        rig.wait_running("SELECT pg_sleep(60)").await;
        let start = Instant::now();

        leave(app, how).await;

        let mut next = rig.app().await;
        assert_eq!(backend_pid(&mut next).await, pid, "{how:?} {mode}");
        assert!(start.elapsed() < Duration::from_secs(2), "{how:?} {mode}: {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_session_that_closes_within_copy_in_leaves_no_rows() {
    // CopyDone in place of the missing end would make half of the data durable.
    for how in [Leaving::Close, Leaving::Reset] {
        leave_within_copy_in(how).await;
    }
}

#[tokio::test]
async fn a_session_that_terminates_within_copy_in_leaves_no_rows() {
    // Terminate is no message of COPY: PostgreSQL itself fails the COPY and ends. The backend must not wait for ever.
    leave_within_copy_in(Leaving::Terminate).await;
}

async fn leave_within_copy_in(how: Leaving) {
    let rig = Rig::start(pool_of(1)).await;
    rig.sql("CREATE TABLE t (a int)");
    let mut app = rig.app().await;
    app.send(Frames::new().query("COPY t FROM STDIN")).await;
    app.expect(b'G').await;
    app.send(Frames::new().copy_data(b"1\n2\n3\n")).await;

    leave(app, how).await;

    let mut next = rig.app().await;
    let start = Instant::now();
    let count = next.query("SELECT count(*) FROM t").await;
    assert_eq!(count.value().as_deref(), Some("0"), "{how:?}: {:?}", count.error());
    assert!(start.elapsed() < Duration::from_secs(3), "{how:?}: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_session_that_leaves_before_its_rows_are_read_frees_its_backend() {
    // The server is blocked on a socket that nobody reads; only giving up frees it.
    let rig = Rig::start(pool_of(1)).await;
    let mut app = rig.app().await;
    let endless = "SELECT generate_series(1, 100000000), repeat('x', 1000)";
    app.send(Frames::new().query(endless)).await;
    app.expect(b'T').await;
    drop(app);

    let mut next = rig.app().await;

    wait_for(SOON, "the backend serves the next session", async || {
        next.query("SELECT 1").await.error().is_none().then_some(())
    })
    .await;
}

/// A fake server that takes everything; a session that is asked for the last time is handed over.
async fn answer_until_the_last(mut backend: ScriptedBackend, hand: mpsc::Sender<ScriptedBackend>) {
    if is_control(&backend) {
        return leave_unanswered(backend).await;
    }
    backend.welcome(&key()).await;
    while let Some(message) = backend.next().await {
        if message.body.starts_with(b"SELECT 'last'") {
            return hand.send(backend).await.unwrap();
        }
        backend.send(answer_to(&message)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_gets_no_backend_that_has_ended() {
    // A server that is told to end its sessions does so between two statements. The backend comes back as good, goes
    // straight to whoever waits, and the statement is lost with it.
    let mut server = ScriptedServer::start().await;
    let (hand, mut handed) = mpsc::channel(1);
    server.serve(move |incoming| {
        let hand = hand.clone();
        async move {
            let Incoming::Session(backend) = incoming else { return };
            answer_until_the_last(backend, hand).await;
        }
    });
    let config = format!("[pool]\nsize = 1\n{UNANSWERED}{PATIENT}");
    let proxy = sidecar(&config).upstream(&server.url()).start().await;
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "shop").await;
    let (mut waiting, _) = ScriptedApp::session(proxy.address(), "postgres", "shop").await;
    app.send(Frames::new().query("SELECT 'last'")).await;
    let mut backend = within(SOON, "the last statement", handed.recv()).await.unwrap();
    waiting.send(Frames::new().query("SELECT 5")).await;
    waiting.expect_silence(Duration::from_millis(200)).await;

    // The sidecar sees the answer and the end behind it at once.
    proxy.freeze();
    backend.send(Replies::new().one_value("last")).await;
    drop(backend);
    proxy.signal(Signal::CONT);

    assert_eq!(app.reply().await.value().as_deref(), Some("last"));
    let reply = waiting.reply().await;
    assert_eq!(reply.error(), None);
    assert_eq!(reply.value().as_deref(), Some("5"));
}
