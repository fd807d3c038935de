//! What our own questions find out about real servers, healthy and not.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::auth::Credential;
use tidegate::auth::scram::KeyCache;
use tidegate::backend::{Connector, Login};
use tidegate::config::{Password, SslMode, UpstreamAddress};
use tidegate::exchange::{Cause, Diagnosis};
use tidegate::probe::{
    Control, Diagnoser, Identity, Look, Looks, Lsn, ReadProbe, Standing, TimelineId, Wait, WriteProbe,
};
use tidegate_chaos::cluster::{
    Cluster, ClusterOptions, Node, NodeOptions, PortLease, Programs, Replication, SecretKind,
};
use tidegate_layers::breaker::{Diagnose, Probe, ProbeOutcome, Session};
use tidegate_tests::{wait_for, wait_until, within};
use tokio::time::{Instant, timeout};

/// As the breaker does.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// What should take milliseconds must be seen within this time, also on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// From the heal of a fault to the first good probe, with a probe each half second.
const RECOVERED: Duration = Duration::from_millis(1500);

/// Everything that asks one server.
struct Rig {
    control: Arc<Control>,
    write: WriteProbe,
    read: ReadProbe,
    looks: Arc<Looks>,
    diagnoser: Diagnoser,
    /// What the diagnosis is told of stuck backends.
    stuck: Arc<Mutex<Vec<u32>>>,
}

impl Rig {
    /// Before the server, as a role without any rights.
    fn before(node: &Node) -> Self {
        node.sql("CREATE ROLE prober LOGIN").unwrap();
        Self::at(node.port(), Some(prober()))
    }

    fn at(port: u16, login: Option<Login>) -> Self {
        let connector = Arc::new(Connector {
            address: UpstreamAddress::Tcp { host: "127.0.0.1".to_owned(), port },
            ssl_mode: SslMode::Disable,
            tls: None,
            keys: Arc::new(KeyCache::new(4).unwrap()),
        });
        let connector = Box::new(move || Arc::clone(&connector));
        let control = Arc::new(Control::new(connector, Box::new(move || login.clone())));
        let write = WriteProbe::new(Arc::clone(&control));
        let looks = Arc::<Looks>::default();
        let stuck = Arc::<Mutex<Vec<u32>>>::default();
        let pids = Arc::clone(&stuck);
        let diagnoser = Diagnoser::new(
            Arc::clone(&control),
            Arc::clone(&looks),
            Arc::clone(write.pulse()),
            Box::new(move || pids.lock().unwrap().clone()),
        );
        Self { read: ReadProbe::new(Arc::clone(&control)), control, write, looks, diagnoser, stuck }
    }

    /// A write probe that must end by itself.
    async fn answer(&self, session: Session) -> ProbeOutcome {
        within(SOON, "the probe ends", self.write.probe(session)).await
    }

    /// A write probe that is dropped when its time is over.
    async fn probe(&self, session: Session) -> ProbeOutcome {
        timeout(PROBE_TIMEOUT, self.write.probe(session)).await.unwrap_or(ProbeOutcome::Timeout)
    }

    /// Probes each half second until one is good.
    async fn recovery(&self) -> Duration {
        let start = Instant::now();
        let mut next = start;
        let mut session = Session::Fresh;
        while self.probe(session).await != ProbeOutcome::Ok {
            assert!(start.elapsed() < SOON, "no recovery");
            next += PROBE_TIMEOUT;
            tokio::time::sleep_until(next).await;
            session = if session == Session::Fresh { Session::Kept } else { Session::Fresh };
        }
        start.elapsed()
    }

    /// The diagnosis, which may take a second.
    async fn diagnosis(&self) -> Option<Diagnosis> {
        let asked = timeout(Duration::from_secs(1), self.diagnoser.diagnose()).await;
        asked.unwrap().map(|diagnosis| (*diagnosis).clone())
    }

    async fn cause(&self) -> Option<Cause> {
        self.diagnosis().await.map(|diagnosis| diagnosis.cause)
    }

    async fn identity(&self) -> Identity {
        Identity::ask(&self.control, Instant::now() + SOON).await.unwrap()
    }
}

fn prober() -> Login {
    Login {
        user: "prober".to_owned(),
        database: "postgres".to_owned(),
        replication: None,
        application_name: None,
        credential: Credential::None,
    }
}

fn server() -> Node {
    Node::start(&NodeOptions::new(Programs::find().unwrap())).unwrap()
}

fn cluster(replication: Replication) -> Cluster {
    let node = NodeOptions::new(Programs::find().unwrap());
    Cluster::start(&ClusterOptions { node, standbys: 1, replication }).unwrap()
}

/// An application's session, as the role that probes.
async fn app(node: &Node) -> (tokio_postgres::Client, u32) {
    let url = node.url_of("prober", "postgres");
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    (client, u32::try_from(pid).unwrap())
}

const CONTROL_CONNECTIONS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE usename = 'prober' AND backend_type = 'client backend'";

#[tokio::test]
async fn a_write_on_a_healthy_server_is_good_on_kept_and_on_fresh_connections() {
    // Also the padded one among eight, and also for a role without any grant.
    let node = server();
    let rig = Rig::before(&node);

    for _ in 0..5 {
        assert_eq!(rig.answer(Session::Kept).await, ProbeOutcome::Ok);
        assert_eq!(rig.answer(Session::Fresh).await, ProbeOutcome::Ok);
    }

    let good = rig.write.pulse().last_good().unwrap();
    assert!(good.at.elapsed() < SOON && good.latency < SOON, "{good:?}");
    assert_eq!((rig.write.pulse().finding(), rig.write.pulse().outstanding()), (None, None));
    assert_eq!(node.sql(CONTROL_CONNECTIONS).unwrap(), "1");
}

#[tokio::test]
async fn a_write_probe_leaves_a_commit_record_behind() {
    // A probe without one would be good while no commit gets through.
    let node = server();
    let rig = Rig::before(&node);
    let next = || node.sql("SELECT pg_snapshot_xmax(pg_current_snapshot())").unwrap().parse::<u64>().unwrap();
    let before = next();

    assert_eq!(rig.answer(Session::Kept).await, ProbeOutcome::Ok);

    assert_eq!(next(), before + 1);
}

#[tokio::test]
async fn a_frozen_synchronous_standby_is_named_and_one_statement_waits_for_it() {
    // Each probe that is given up on would leave a backend behind that waits on.
    let cluster = cluster(Replication::Synchronous);
    let primary = cluster.primary();
    let rig = Rig::before(primary);
    assert_eq!(rig.answer(Session::Kept).await, ProbeOutcome::Ok);
    assert_eq!(rig.read.probe(Session::Kept).await, ProbeOutcome::Ok);
    let waiting =
        || primary.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").unwrap();

    cluster.standbys()[0].freeze().unwrap();
    assert_eq!(rig.probe(Session::Kept).await, ProbeOutcome::Timeout);
    let diagnosis = rig.diagnosis().await.unwrap();
    let pid = rig.write.pulse().outstanding().unwrap();
    // Longer than a statement may hang before it is looked at.
    let long = Instant::now() + Duration::from_secs(5);
    while Instant::now() < long {
        assert_eq!(rig.probe(Session::Fresh).await, ProbeOutcome::Timeout);
        assert_eq!(rig.read.probe(Session::Fresh).await, ProbeOutcome::Ok);
        assert_eq!(waiting(), "1");
    }
    assert_eq!(rig.write.pulse().outstanding(), Some(pid));
    let heal = Instant::now();
    cluster.standbys()[0].thaw().unwrap();

    assert_eq!(diagnosis.cause, Cause::SyncStandby);
    assert!(diagnosis.evidence.contains("s1"), "{diagnosis:?}");
    within(SOON, "the outstanding one ends", rig.write.probe(Session::Kept)).await;
    assert!(rig.write.pulse().last_good().unwrap().at >= heal);
    for session in [Session::Kept, Session::Fresh, Session::Kept] {
        assert_eq!(rig.answer(session).await, ProbeOutcome::Ok);
    }
}

#[tokio::test]
async fn a_synchronous_standby_that_is_gone_is_named_as_missing() {
    // The exact state after a failover that left the old name in synchronous_standby_names.
    let node = server();
    let rig = Rig::before(&node);
    assert_eq!(rig.answer(Session::Kept).await, ProbeOutcome::Ok);
    node.set("synchronous_standby_names", "FIRST 1 (p1, \"p 2\")").unwrap();

    assert_eq!(rig.probe(Session::Fresh).await, ProbeOutcome::Timeout);
    let diagnosis = rig.diagnosis().await.unwrap();
    node.set("synchronous_standby_names", "").unwrap();

    assert_eq!(diagnosis.cause, Cause::SyncStandby);
    assert!(diagnosis.evidence.ends_with("not connected: p1, p 2"), "{diagnosis:?}");
    assert!(rig.recovery().await < RECOVERED);
}

#[tokio::test]
async fn a_frozen_server_is_told_from_an_unreachable_one_and_found_healthy_at_once_after_it() {
    // Its kernel completes handshakes and acknowledges data: no TCP timer ever fires.
    let node = server();
    let rig = Rig::before(&node);
    assert_eq!(rig.answer(Session::Kept).await, ProbeOutcome::Ok);
    // Once with a diagnosis connection that exists, once without.
    assert_eq!(rig.cause().await, None);

    node.freeze().unwrap();
    for session in [Session::Kept, Session::Fresh, Session::Kept] {
        assert_eq!(rig.probe(session).await, ProbeOutcome::Timeout);
        assert_eq!(rig.cause().await, Some(Cause::Frozen));
    }
    wait_until(SOON, "the statement is given up", || rig.write.pulse().outstanding().is_none()).await;
    assert_eq!(rig.probe(Session::Kept).await, ProbeOutcome::Timeout);
    wait_until(SOON, "the silence is noticed", || rig.write.pulse().finding() == Some(Cause::Frozen)).await;
    node.thaw().unwrap();

    let recovery = rig.recovery().await;
    assert!(recovery < RECOVERED, "{recovery:?}");
    assert_eq!(rig.write.pulse().finding(), None);
}

#[tokio::test]
async fn a_frozen_postmaster_stops_fresh_probes_only() {
    // A kept session that works says nothing about accepting and authenticating.
    let node = server();
    let rig = Rig::before(&node);
    assert_eq!(rig.answer(Session::Kept).await, ProbeOutcome::Ok);

    node.freeze_postmaster().unwrap();
    let kept = rig.answer(Session::Kept).await;
    let fresh = rig.probe(Session::Fresh).await;
    node.thaw().unwrap();

    assert_eq!((kept, fresh), (ProbeOutcome::Ok, ProbeOutcome::Timeout));
    assert!(rig.recovery().await < RECOVERED);
}

#[tokio::test]
async fn a_closed_port_is_unreachable() {
    // Refused at once: nothing to wait for.
    let port = PortLease::take().unwrap();
    let rig = Rig::at(port.port(), Some(prober()));

    assert_eq!(rig.answer(Session::Kept).await, ProbeOutcome::Failed);
    assert_eq!(rig.write.pulse().finding(), Some(Cause::Unreachable));
    assert_eq!(rig.cause().await, Some(Cause::Unreachable));
}

/// A port that loses what is sent to it, until these are dropped and what waits there is accepted. A full backlog loses
/// packets as a firewall does, and needs no privileges.
fn hole() -> (TcpListener, Vec<TcpStream>) {
    let hole = nearly_a_hole();
    let fillers = fill(&hole);
    (hole, fillers)
}

/// A port that takes a single connection or two, and says nothing.
fn nearly_a_hole() -> TcpListener {
    let hole = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    hole.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    hole.listen(1).unwrap();
    TcpListener::from(hole)
}

fn fill(hole: &TcpListener) -> Vec<TcpStream> {
    let address = hole.local_addr().unwrap();
    let mut fillers = Vec::new();
    while let Ok(filler) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
        fillers.push(filler);
    }
    fillers
}

#[tokio::test]
async fn a_way_that_loses_packets_is_unreachable_and_found_healed_at_once() {
    // Without a look at the handshake alone it would be called frozen.
    let node = server();
    node.sql("CREATE ROLE prober LOGIN").unwrap();
    let (hole, fillers) = hole();
    let rig = Rig::at(hole.local_addr().unwrap().port(), Some(prober()));

    assert_ne!(rig.probe(Session::Kept).await, ProbeOutcome::Ok);
    wait_until(SOON, "the loss is noticed", || rig.write.pulse().finding() == Some(Cause::Unreachable)).await;
    assert_eq!(rig.cause().await, Some(Cause::Unreachable));
    drop(fillers);
    tokio::spawn(relay(hole, node.port()));

    let recovery = rig.recovery().await;
    assert!(recovery < RECOVERED, "{recovery:?}");
}

#[tokio::test]
async fn what_a_silence_means_is_found_out_although_most_who_ask_have_no_time_to() {
    // Those who look at stuck backends leave after 200 ms, each time again, and others stand in line behind them. And a
    // login from before the packets were lost must not have the server called frozen for long.
    let hole = nearly_a_hole();
    let rig = Rig::at(hole.local_addr().unwrap().port(), Some(prober()));
    assert_eq!(rig.cause().await, Some(Cause::Frozen));
    let fillers = fill(&hole);
    let start = Instant::now();
    let asking = async {
        loop {
            let _ = timeout(Duration::from_millis(200), rig.looks.refresh(&rig.control, &[1])).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let probing = async {
        loop {
            tokio::join!(rig.probe(Session::Fresh), rig.read.probe(Session::Kept));
        }
    };
    let knowing = async {
        while rig.cause().await != Some(Cause::Unreachable) {
            assert!(start.elapsed() < SOON, "not found out");
        }
        for _ in 0..5 {
            assert_eq!(rig.cause().await, Some(Cause::Unreachable));
        }
    };

    tokio::select! {
        () = knowing => {}
        () = asking => {}
        () = probing => {}
    }

    drop((hole, fillers));
}

#[tokio::test]
async fn a_probe_that_began_too_early_is_through_as_soon_as_the_way_is_there() {
    // Its packet is lost, and the kernel sends the next after a second: with it began all that recovery waits for.
    let node = server();
    node.sql("CREATE ROLE prober LOGIN").unwrap();
    let (hole, fillers) = hole();
    let rig = Rig::at(hole.local_addr().unwrap().port(), Some(prober()));
    let start = Instant::now();

    let healing = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(fillers);
        relay(hole, node.port()).await;
    });
    let outcome = rig.answer(Session::Fresh).await;

    assert_eq!(outcome, ProbeOutcome::Ok);
    let took = start.elapsed();
    assert!(took < Duration::from_millis(900), "{took:?}");
    healing.abort();
}

/// Accepts everything, and carries it to the server.
async fn relay(listener: TcpListener, port: u16) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((mut app, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            tokio::io::copy_bidirectional(&mut app, &mut server).await
        });
    }
}

#[tokio::test]
async fn a_server_that_answers_nothing_is_frozen() {
    // It is the kernel that accepts here.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::at(silent.local_addr().unwrap().port(), Some(prober()));

    assert_eq!(rig.cause().await, Some(Cause::Frozen));
}

/// Accepts connections and says nothing; how many there were.
fn silence(listener: TcpListener) -> Arc<Mutex<Vec<TcpStream>>> {
    let accepted = Arc::<Mutex<Vec<TcpStream>>>::default();
    let kept = Arc::clone(&accepted);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            kept.lock().unwrap().push(stream);
        }
    });
    accepted
}

#[tokio::test]
async fn a_silent_server_has_few_logins_of_ours_in_its_queue_however_often_it_is_asked() {
    // It forks for each when it goes on. Each question used to leave two: eight here and in a minute a full queue, which
    // looks like a way that loses packets.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::at(listener.local_addr().unwrap().port(), Some(prober()));
    let logins = silence(listener);
    let start = Instant::now();

    while start.elapsed() < Duration::from_millis(3500) {
        let (write, read, cause) =
            tokio::join!(rig.probe(Session::Fresh), rig.read.probe(Session::Fresh), rig.cause());
        assert_eq!((write, read, cause), (ProbeOutcome::Timeout, ProbeOutcome::Timeout, Some(Cause::Frozen)));
    }

    // Three before any was silent; then one is replaced after 2 s, and another after 4 s.
    let replaced = usize::try_from(start.elapsed().as_secs() / 2).unwrap();
    let logins = logins.lock().unwrap().len();
    assert!((1..=3 + replaced).contains(&logins), "{logins} in {:?}", start.elapsed());
}

#[tokio::test]
async fn a_login_that_was_lost_on_its_way_is_replaced() {
    // Behind a proxy the connection is to the proxy: it stays silent when what is behind changes.
    let node = server();
    node.sql("CREATE ROLE prober LOGIN").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::at(listener.local_addr().unwrap().port(), Some(prober()));
    let accepting = listener.try_clone().unwrap();
    let lost = std::thread::spawn(move || accepting.accept().unwrap());
    assert_eq!(rig.cause().await, Some(Cause::Frozen));
    let lost = lost.join().unwrap();
    let carried = tokio::spawn(relay(listener, node.port()));

    let recovery = rig.recovery().await;

    assert!(recovery < Duration::from_secs(4), "{recovery:?}");
    carried.abort();
    drop(lost);
}

#[tokio::test]
async fn a_read_only_primary_is_no_good_write() {
    // pg_logical_emit_message alone succeeds there.
    let node = server();
    let rig = Rig::before(&node);
    node.set("default_transaction_read_only", "on").unwrap();

    assert_eq!(rig.answer(Session::Kept).await, ProbeOutcome::Failed);
    assert_eq!(rig.write.pulse().finding(), Some(Cause::ReadOnly));
    assert_eq!(rig.cause().await, Some(Cause::ReadOnly));
    assert_eq!(rig.read.probe(Session::Kept).await, ProbeOutcome::Ok);
}

#[tokio::test]
async fn a_role_that_is_read_only_by_its_own_setting_tells_nothing() {
    // The writes of all others would be refused because a reporting role was seen last.
    let node = server();
    let rig = Rig::before(&node);
    node.sql("ALTER ROLE prober SET default_transaction_read_only = on").unwrap();

    assert_eq!(rig.answer(Session::Kept).await, ProbeOutcome::Inconclusive);
    assert_eq!(rig.write.pulse().finding(), None);
}

#[tokio::test]
async fn a_standby_is_in_recovery_and_identifies_itself_before_and_after_its_promotion() {
    // After a promotion the control file names the old timeline until the next checkpoint.
    let cluster = cluster(Replication::Asynchronous);
    let standby = &cluster.standbys()[0];
    let primary = Rig::before(cluster.primary());
    let role = "SELECT count(*) FROM pg_roles WHERE rolname = 'prober'";
    wait_until(SOON, "the role is replicated", || standby.sql(role).unwrap() == "1").await;
    let rig = Rig::at(standby.port(), Some(prober()));

    assert_eq!(rig.answer(Session::Kept).await, ProbeOutcome::Failed);
    assert_eq!(rig.write.pulse().finding(), Some(Cause::InRecovery));
    assert_eq!(rig.cause().await, Some(Cause::InRecovery));
    assert!(rig.identity().await.is_in_recovery());
    let written = primary.identity().await;
    let caught_up = wait_for(SOON, "the standby has replayed it", async || {
        let identity = rig.identity().await;
        (identity.lsn() >= written.lsn()).then_some(identity)
    })
    .await;
    standby.promote().unwrap();
    let promoted = rig.identity().await;

    let major = cluster.primary().programs().major();
    assert_eq!((written.timeline, written.major(), written.read_only), (TimelineId(1), major, false));
    assert!(matches!(written.standing, Standing::Primary { written: Lsn(1..) }), "{written:?}");
    assert_eq!((caught_up.system, caught_up.timeline), (written.system, TimelineId(1)));
    assert!(matches!(caught_up.standing, Standing::Standby { lag: Some(_), .. }), "{caught_up:?}");
    assert_eq!((promoted.timeline, promoted.is_in_recovery()), (TimelineId(2), false));
    assert!(promoted.lsn() >= caught_up.lsn());
    assert!(rig.recovery().await < RECOVERED);
}

#[tokio::test]
async fn a_lock_has_its_holder_named() {
    // And the probe is good all the time: locks of applications are not the server's trouble.
    let node = server();
    let rig = Rig::before(&node);
    node.sql("CREATE TABLE t (a int); GRANT ALL ON t TO prober").unwrap();
    let (holder, holder_pid) = app(&node).await;
    let (waiter, waiter_pid) = app(&node).await;
    holder.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
    let start = Instant::now();
    let waiting = tokio::spawn(async move { waiter.batch_execute("INSERT INTO t VALUES (1)").await });
    rig.stuck.lock().unwrap().push(waiter_pid);

    let look = wait_for(SOON, "the lock is seen", async || {
        rig.looks.refresh(&rig.control, &[waiter_pid]).await.unwrap();
        rig.looks.since(start, waiter_pid).filter(|look| look.wait == Wait::Lock)
    })
    .await;
    let diagnosis = rig.diagnosis().await.unwrap();
    let probed = rig.answer(Session::Kept).await;
    holder.batch_execute("ROLLBACK").await.unwrap();
    waiting.await.unwrap().unwrap();

    assert_eq!(look, Look { wait: Wait::Lock, has_written: false, blocked_by: vec![holder_pid] });
    assert_eq!(diagnosis.cause, Cause::Lock);
    let named = format!("blocked by pid {holder_pid} (idle in transaction for 0 s)");
    assert!(diagnosis.evidence.starts_with(named.trim_end_matches("0 s)")), "{diagnosis:?}");
    assert_eq!(probed, ProbeOutcome::Ok);
}

#[tokio::test]
async fn who_cannot_log_in_finds_nothing_out_about_writes() {
    // A wrong password in our configuration must not have every write refused.
    let options = NodeOptions::new(Programs::find().unwrap());
    let node = Node::start(&options.hba("host all all 127.0.0.1/32 scram-sha-256")).unwrap();
    node.create_user("prober", "right", SecretKind::Scram).unwrap();
    let with = |password: &str| {
        let credential = Credential::Password(Password::new(password.to_owned()));
        Rig::at(node.port(), Some(Login { credential, ..prober() }))
    };
    let (right, wrong, nobody) = (with("right"), with("wrong"), Rig::at(node.port(), None));

    let outcomes = [
        right.write.probe(Session::Kept).await,
        wrong.write.probe(Session::Kept).await,
        nobody.write.probe(Session::Kept).await,
    ];
    node.sql("ALTER ROLE prober CONNECTION LIMIT 0").unwrap();
    let full = with("right");
    let refused = full.write.probe(Session::Kept).await;

    let no_news = ProbeOutcome::Inconclusive;
    assert_eq!((outcomes, refused), ([ProbeOutcome::Ok, no_news, ProbeOutcome::Unasked], no_news));
    let findings = [&right, &wrong, &nobody, &full].map(|rig| rig.write.pulse().finding());
    assert_eq!(findings, [None, Some(Cause::Auth), None, Some(Cause::Overload)]);
    assert_eq!(full.cause().await, Some(Cause::Overload));
}

#[tokio::test]
async fn a_server_never_sees_more_than_three_control_connections() {
    // They come on top of the pool, in slots that applications may need.
    let node = server();
    let rig = Rig::before(&node);
    let (watcher, connection) = tokio_postgres::connect(&node.url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let most = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&most);
    let counting = tokio::spawn(async move {
        loop {
            let count: i64 = watcher.query_one(CONTROL_CONNECTIONS, &[]).await.unwrap().get(0);
            let mut most = seen.lock().unwrap();
            *most = count.max(*most);
        }
    });

    for _ in 0..20 {
        let (write, read, _, _, _) = tokio::join!(
            rig.write.probe(Session::Fresh),
            rig.read.probe(Session::Fresh),
            rig.diagnosis(),
            rig.identity(),
            rig.looks.refresh(&rig.control, &[1]),
        );
        assert_eq!((write, read), (ProbeOutcome::Ok, ProbeOutcome::Ok));
    }

    counting.abort();
    assert_eq!(*most.lock().unwrap(), 3);
}
