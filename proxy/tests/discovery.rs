//! Claims about the tasks around the rules: pace, bounds, order of announcement and publication.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tempfile::TempDir;
use tidegate::config::{Roles, UpstreamAddress};
use tidegate::discovery::dns::Resolve;
use tidegate::discovery::patroni::Endpoint;
use tidegate::discovery::{
    Connection, Decision, Discovery, Observe, ObserveError, Record, Rules, Settings, What, Why,
};
use tidegate::exchange::Cause;
use tidegate::upstream::membership::{Force, Refused};
use tidegate::upstream::{
    Lsn, Observation, SystemIdentifier, TimelineId, Topology, UpstreamId, UpstreamView, Writes,
};
use tidegate_tests::wait_until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

const MS: Duration = Duration::from_millis(1);
const RULES: Rules = Rules { roles: Roles::Probe, settle: Duration::from_secs(2) };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Primary(u32),
    Standby(u32),
    Dead,
    Missing,
    Frozen,
}

/// Servers that answer by script, and what they were asked.
#[derive(Debug, Default)]
struct Servers {
    states: Mutex<HashMap<String, Server>>,
    asked: Mutex<Vec<(String, Instant, Connection)>>,
    outstanding: AtomicUsize,
    outstanding_max: AtomicUsize,
}

impl Servers {
    fn set(&self, name: &str, server: Server) {
        self.states.lock().unwrap().insert(format!("{name}:5432"), server);
    }

    fn state(&self, view: &UpstreamView) -> Server {
        self.states.lock().unwrap().get(&*view.name).copied().unwrap_or(Server::Dead)
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|(asked, _, _)| *asked == format!("{name}:5432")).count()
    }
}

/// Counts a question for as long as it is outstanding, dropped ones too.
struct Outstanding<'a>(&'a AtomicUsize);

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Observe for Servers {
    async fn observe(
        &self,
        view: &UpstreamView,
        connection: Connection,
    ) -> Result<Observation, ObserveError> {
        let now = self.outstanding.fetch_add(1, Ordering::Relaxed) + 1;
        let _outstanding = Outstanding(&self.outstanding);
        self.outstanding_max.fetch_max(now, Ordering::Relaxed);
        self.asked.lock().unwrap().push((view.name.to_string(), Instant::now(), connection));
        sleep(MS).await;
        let (timeline, in_recovery) = match self.state(view) {
            Server::Primary(timeline) => (timeline, false),
            Server::Standby(timeline) => (timeline, true),
            Server::Dead => return Err(ObserveError::Unreachable),
            Server::Missing => return Err(ObserveError::Missing),
            Server::Frozen => pending().await,
        };
        Ok(Observation {
            system: SystemIdentifier(7),
            timeline: TimelineId(timeline),
            in_recovery,
            lsn: Lsn(1),
            lag: in_recovery.then_some(Duration::ZERO),
            version_num: 180_001,
            read_only: false,
        })
    }

    async fn commit(&self, view: &UpstreamView) -> Result<Lsn, Cause> {
        sleep(MS * 5).await;
        match self.state(view) {
            Server::Primary(_) => Ok(Lsn(2)),
            Server::Standby(_) | Server::Dead | Server::Missing | Server::Frozen => Err(Cause::InRecovery),
        }
    }
}

#[derive(Debug, Default)]
struct Names(Mutex<HashMap<String, Vec<SocketAddr>>>);

impl Names {
    fn set(&self, name: &str, last: &[u8]) {
        let addresses = last.iter().map(|last| SocketAddr::from(([10, 0, 0, *last], 5432))).collect();
        self.0.lock().unwrap().insert(name.to_owned(), addresses);
    }
}

impl Resolve for Names {
    async fn resolve(&self, host: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        self.0.lock().unwrap().get(host).cloned().ok_or(io::ErrorKind::NotFound.into())
    }
}

fn addresses(names: &[&str]) -> Vec<UpstreamAddress> {
    names.iter().map(|name| UpstreamAddress::Tcp { host: (*name).to_owned(), port: 5432 }).collect()
}

type Log = Arc<Mutex<Vec<(Instant, Decision)>>>;

struct Bench {
    servers: Arc<Servers>,
    names: Arc<Names>,
    discovery: Discovery,
    log: Log,
}

impl Bench {
    fn start(servers: &[(&str, Server)]) -> Self {
        Self::start_with(servers, None)
    }

    fn start_with(servers: &[(&str, Server)], state_dir: Option<&TempDir>) -> Self {
        let scripted = Arc::new(Servers::default());
        for (name, server) in servers {
            scripted.set(name, *server);
        }
        let upstreams = addresses(&servers.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        let record = state_dir.map(|folder| Record::new(folder.path()));
        let settings = Settings {
            rules: RULES,
            connect: Duration::from_secs(1),
            patroni: Vec::new(),
            memory: record.as_ref().and_then(|record| record.load(&upstreams).unwrap()),
            record,
            upstreams,
        };
        let (names, log) = (Arc::new(Names::default()), Log::default());
        let told = Arc::clone(&log);
        let announce = move |decision: &Decision| {
            told.lock().unwrap().push((Instant::now(), decision.clone()));
        };
        let discovery = Discovery::start(settings, Arc::clone(&scripted), Arc::clone(&names), announce);
        Self { servers: scripted, names, discovery, log }
    }

    fn topology(&self) -> Arc<Topology> {
        self.discovery.topology().load_full()
    }

    fn writes_to(&self) -> Option<String> {
        let topology = self.topology();
        topology.primary().filter(|_| topology.writes() == Writes::Open).map(|view| view.name.to_string())
    }

    /// How long until writes go to this server.
    async fn opens(&self, name: &str) -> Duration {
        let begun = Instant::now();
        let open = async {
            while self.writes_to() != Some(format!("{name}:5432")) {
                sleep(MS).await;
            }
        };
        let opened = timeout(Duration::from_secs(20), open).await;
        assert!(opened.is_ok(), "{:?} {:?}", self.topology(), self.log.lock().unwrap());
        begun.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_promotion_writes_open_within_half_a_second_without_any_hint() {
    // The pace in doubt is 200 ms, give or take a fifth; one question and one commit must be enough.
    let bench =
        Bench::start(&[("a", Server::Primary(1)), ("b", Server::Standby(1)), ("c", Server::Standby(1))]);
    bench.opens("a").await;
    sleep(Duration::from_secs(5)).await;

    bench.servers.set("a", Server::Dead);
    sleep(Duration::from_secs(1)).await;
    bench.servers.set("b", Server::Primary(2));

    let took = bench.opens("b").await;
    assert!(took < MS * 500, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_hint_of_a_session_makes_it_a_matter_of_milliseconds() {
    // Without hints a quiet cluster is asked once a second.
    let bench = Bench::start(&[("a", Server::Primary(1)), ("b", Server::Standby(1))]);
    bench.opens("a").await;
    sleep(Duration::from_secs(5)).await;

    bench.servers.set("a", Server::Standby(2));
    bench.servers.set("b", Server::Primary(2));
    bench.discovery.hints(UpstreamId(1)).unwrap().in_hot_standby(false);

    let took = bench.opens("b").await;
    assert!(took < MS * 100, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_hints_is_no_storm_of_questions() {
    // Each of a thousand sessions that lose their backend says so.
    let bench = Bench::start(&[("a", Server::Primary(1))]);
    bench.opens("a").await;
    let before = bench.servers.asked("a");

    let hints = bench.discovery.hints(UpstreamId(0)).unwrap();
    for _ in 0..1000 {
        hints.trouble();
        sleep(MS).await;
    }

    let asked = bench.servers.asked("a") - before;
    assert!((15..=25).contains(&asked), "{asked} questions in a second");
}

/// A REST API that names this leader, and its port.
async fn patroni_says(leader: &'static str) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = format!(
        "{{\"members\": [{{\"role\": \"leader\", \"host\": \"{leader}\", \"port\": 5432, \
         \"api_url\": \"http://127.0.0.1:{port}/patroni\"}}]}}"
    );
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = socket.read(&mut request).await;
            let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = socket.write_all(reply.as_bytes()).await;
        }
    });
    port
}

#[tokio::test]
async fn a_reload_that_names_patroni_asks_patroni() {
    // Seen: the roles were Patroni's from then on, but nobody asked it, because only a start began to; so after the
    // next failover no server would have been the primary.
    let port = patroni_says("10.0.0.2").await;
    let bench = Bench::start(&[("10.0.0.1", Server::Primary(2)), ("10.0.0.2", Server::Standby(2))]);
    let names = addresses(&["10.0.0.1", "10.0.0.2"]);
    let changed = async |wanted: &str| {
        while bench.writes_to().as_deref() != Some(wanted) {
            bench.discovery.changed().changed().await.unwrap();
        }
    };
    timeout(Duration::from_secs(10), changed("10.0.0.1:5432")).await.unwrap();

    let rules = Rules { roles: Roles::Patroni, ..RULES };
    let patroni = vec![Endpoint::new("127.0.0.1".to_owned(), port)];
    bench.discovery.reload(names, Force::No, rules, patroni).await.unwrap();
    bench.servers.set("10.0.0.1", Server::Standby(2));
    bench.servers.set("10.0.0.2", Server::Primary(3));
    timeout(Duration::from_secs(20), changed("10.0.0.2:5432")).await.unwrap();

    let whys: Vec<_> = bench.log.lock().unwrap().iter().map(|(_, decision)| decision.why).collect();
    assert!(whys.contains(&Why::PatroniLeader), "{whys:?}");
}

#[tokio::test]
async fn with_patroni_the_holder_of_the_lock_is_the_primary() {
    // The whole way, over a real socket: the answers of a member's REST API decide.
    let port = patroni_says("10.0.0.2").await;
    let servers = Arc::new(Servers::default());
    servers.set("10.0.0.1", Server::Standby(2));
    servers.set("10.0.0.2", Server::Primary(2));
    let settings = Settings {
        rules: Rules { roles: Roles::Patroni, ..RULES },
        connect: Duration::from_secs(1),
        patroni: vec![Endpoint::new("127.0.0.1".to_owned(), port)],
        memory: None,
        record: None,
        upstreams: addresses(&["10.0.0.1", "10.0.0.2"]),
    };
    let told = Log::default();
    let log = Arc::clone(&told);
    let announce = move |decision: &Decision| log.lock().unwrap().push((Instant::now(), decision.clone()));
    let discovery = Discovery::start(settings, servers, Arc::new(Names::default()), announce);

    let open = async {
        while discovery.topology().load().writes() != Writes::Open {
            discovery.changed().changed().await.unwrap();
        }
    };
    timeout(Duration::from_secs(10), open).await.unwrap();

    let whys: Vec<_> = told.lock().unwrap().iter().map(|(_, decision)| decision.why).collect();
    assert!(whys.contains(&Why::PatroniLeader), "{whys:?}");
}

#[tokio::test(start_paused = true)]
async fn a_frozen_server_has_one_question_outstanding_and_delays_no_other() {
    // A question per tick to a server that hangs would leave a zombie each; asking in turn would hang with it.
    let bench = Bench::start(&[("a", Server::Primary(1)), ("b", Server::Standby(1))]);
    bench.opens("a").await;
    bench.servers.outstanding_max.store(0, Ordering::Relaxed);

    bench.servers.set("b", Server::Frozen);
    sleep(Duration::from_secs(2)).await;
    let before = bench.servers.asked("a");
    sleep(Duration::from_secs(10)).await;

    assert!(bench.servers.outstanding_max.load(Ordering::Relaxed) <= 2);
    assert!(bench.servers.asked("a") - before >= 8);
    assert_eq!(bench.writes_to().as_deref(), Some("a:5432"));
}

#[tokio::test(start_paused = true)]
async fn a_primary_whose_packets_are_lost_keeps_its_role_for_a_second_and_not_for_three() {
    // That they are lost is known to whoever asks, once somebody has found it out: then three questions are no time at all.
    let bench = Bench::start(&[("a", Server::Primary(1)), ("b", Server::Standby(1))]);
    bench.opens("a").await;

    bench.servers.set("a", Server::Missing);
    for _ in 0..100 {
        bench.discovery.hints(UpstreamId(0)).unwrap().trouble();
        sleep(MS * 10).await;
    }
    assert_eq!(bench.writes_to().as_deref(), Some("a:5432"));
    bench.servers.set("a", Server::Primary(1));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(bench.writes_to().as_deref(), Some("a:5432"));

    bench.servers.set("a", Server::Missing);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(bench.writes_to(), None);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_cluster_is_asked_once_a_second() {
    // Each question is work for the database, times the size of the fleet.
    let bench = Bench::start(&[("a", Server::Primary(1)), ("b", Server::Standby(1))]);
    bench.opens("a").await;
    sleep(Duration::from_secs(1)).await;

    let before = bench.servers.asked("a") + bench.servers.asked("b");
    sleep(Duration::from_mins(1)).await;
    let asked = bench.servers.asked("a") + bench.servers.asked("b") - before;

    assert!((96..=150).contains(&asked), "{asked} questions to two servers in a minute");
}

#[tokio::test(start_paused = true)]
async fn decisions_are_announced_and_remembered_before_they_take_effect() {
    // Told afterwards, nobody learns of a decision that takes the sidecar down with it.
    static TOPOLOGY: OnceLock<Arc<ArcSwap<Topology>>> = OnceLock::new();
    let folder = tempfile::tempdir().unwrap();
    let servers = Arc::new(Servers::default());
    servers.set("a", Server::Primary(3));
    let upstreams = addresses(&["a"]);
    let settings = Settings {
        rules: RULES,
        connect: Duration::from_secs(1),
        patroni: Vec::new(),
        memory: None,
        record: Some(Record::new(folder.path())),
        upstreams: upstreams.clone(),
    };
    let early = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&early);
    let announce = move |decision: &Decision| {
        let none = TOPOLOGY.get().unwrap().load().primary().is_none();
        if decision.what == What::PrimaryElected && none {
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    let discovery = Discovery::start(settings, servers, Arc::new(Names::default()), announce);
    TOPOLOGY.set(discovery.topology()).unwrap();

    let path = folder.path().join("topology.json");
    while discovery.topology().load().primary().is_none() {
        sleep(MS).await;
    }

    assert_eq!(early.load(Ordering::Relaxed), 1);
    assert!(path.exists());
}

/// A disk that hangs: whoever opens the file waits for a reader.
struct HungDisk(PathBuf);

impl HungDisk {
    fn at(file: PathBuf) -> Self {
        let made = std::process::Command::new("mkfifo").arg(&file).status().unwrap();
        assert!(made.success());
        Self(file)
    }
}

impl Drop for HungDisk {
    fn drop(&mut self) {
        // All that wait are let go, and nobody waits from then on.
        let _reader = OpenOptions::new().read(true).write(true).open(&self.0);
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A thread that runs tasks one at a time, as the control thread does.
fn control_thread() -> Handle {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(pending::<()>()));
    handle
}

#[tokio::test]
async fn a_disk_that_hangs_holds_no_failover_up() {
    // Seen: a standby was promoted while the disk of state_dir hung. The decision waited for the disk before it was
    // published, and with it the control thread: sessions wrote to the old primary for as long as that took.
    let folder = tempfile::tempdir().unwrap();
    let servers = [("a", Server::Primary(1)), ("b", Server::Standby(1))];
    let bench = {
        let control = control_thread();
        let _inside = control.enter();
        Bench::start_with(&servers, Some(&folder))
    };
    bench.opens("a").await;
    let written = || folder.path().join("topology.json").exists();
    wait_until(Duration::from_secs(10), "the first timeline is remembered", written).await;
    let _disk = HungDisk::at(folder.path().join("topology.json.new"));

    bench.servers.set("b", Server::Primary(2));

    bench.opens("b").await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_sidecar_remembers_which_timeline_it_has_seen() {
    // The zombie is the only server that answers; without the file it would be the primary.
    let folder = tempfile::tempdir().unwrap();
    let before = Bench::start_with(&[("a", Server::Dead), ("b", Server::Primary(2))], Some(&folder));
    before.opens("b").await;
    drop(before);

    let after = Bench::start_with(&[("a", Server::Primary(1)), ("b", Server::Dead)], Some(&folder));
    sleep(Duration::from_secs(10)).await;

    let topology = after.topology();
    assert!(topology.primary().is_none());
    assert!(topology.upstreams()[0].fenced.is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_follows_the_list_of_servers() {
    // Servers replaced one by one leave none of the first ones, and the file would count for nothing.
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::start_with(&[("a", Server::Primary(1)), ("b", Server::Standby(1))], Some(&folder));
    bench.opens("a").await;

    bench.servers.set("c", Server::Standby(1));
    bench.discovery.reload(addresses(&["a", "b", "c"]), Force::No, RULES, Vec::new()).await.unwrap();
    sleep(Duration::from_secs(1)).await;

    let memory = Record::new(folder.path()).load(&addresses(&["c"])).unwrap();
    assert_eq!(memory.map(|memory| memory.newest), Some(TimelineId(1)));
}

#[tokio::test(start_paused = true)]
async fn a_reload_starts_asking_new_servers_and_stops_asking_removed_ones() {
    // A task that is left behind would keep a control connection to a server that is no business of ours.
    let bench =
        Bench::start(&[("a", Server::Primary(1)), ("b", Server::Standby(1)), ("c", Server::Standby(1))]);
    bench.opens("a").await;
    bench.servers.set("d", Server::Standby(1));

    bench.discovery.reload(addresses(&["a", "b", "d"]), Force::No, RULES, Vec::new()).await.unwrap();
    sleep(Duration::from_secs(2)).await;

    let asked = bench.servers.asked("c");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.servers.asked("c"), asked);
    assert!(bench.servers.asked("d") > 3);
    assert_eq!(bench.topology().standbys(Duration::from_secs(10)).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refused_reload_says_why_and_changes_nothing() {
    // The caller has to tell the operator; silence would look like success.
    let bench = Bench::start(&[("a", Server::Primary(1)), ("b", Server::Standby(1))]);
    bench.opens("a").await;

    let refused = bench.discovery.reload(Vec::new(), Force::Yes, RULES, Vec::new()).await;

    assert_eq!(refused, Err(Refused::Empty));
    assert_eq!(bench.writes_to().as_deref(), Some("a:5432"));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_leads_elsewhere_is_noticed_within_its_time() {
    // A control plane that moves the primary by DNS (RDS) tells nobody else.
    let bench = Bench::start(&[("a", Server::Primary(1))]);
    bench.names.set("a", &[1]);
    bench.opens("a").await;
    sleep(Duration::from_secs(35)).await;
    let epoch = bench.topology().upstreams()[0].epoch;

    bench.names.set("a", &[2]);
    bench.servers.set("a", Server::Primary(2));
    sleep(Duration::from_secs(31)).await;

    let moved = bench.log.lock().unwrap().iter().any(|(_, decision)| decision.what == What::AddressChanged);
    assert!(moved);
    assert!(bench.topology().upstreams()[0].epoch > epoch);
    assert_eq!(bench.writes_to().as_deref(), Some("a:5432"));
}

#[tokio::test(start_paused = true)]
async fn dropping_it_ends_every_task() {
    // A second start would leave two askers per server.
    let bench = Bench::start(&[("a", Server::Primary(1)), ("b", Server::Standby(1))]);
    bench.opens("a").await;
    let servers = Arc::clone(&bench.servers);
    drop(bench);
    sleep(MS * 100).await;

    let asked = servers.asked("a");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(servers.asked("a"), asked);
}

#[tokio::test(start_paused = true)]
async fn when_all_are_gone_the_first_that_returns_is_served_within_two_seconds() {
    // Total outage, then one good server: no restart, no waiting for the others.
    let bench = Bench::start(&[("a", Server::Primary(1)), ("b", Server::Standby(1))]);
    bench.opens("a").await;
    bench.servers.set("a", Server::Dead);
    bench.servers.set("b", Server::Dead);
    sleep(Duration::from_mins(10)).await;
    assert_eq!(bench.writes_to(), None);

    let before = bench.servers.asked.lock().unwrap().len();
    bench.servers.set("a", Server::Primary(1));
    let took = bench.opens("a").await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let asked = bench.servers.asked.lock().unwrap();
    // By their order: one may have been asked in the very millisecond in which it came back.
    let fresh = asked[before..]
        .iter()
        .any(|(name, _, connection)| name == "a:5432" && *connection == Connection::Fresh);
    assert!(fresh);
}
