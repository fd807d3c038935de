//! Health, state and orders over HTTP: what each path answers, to whom, and that nobody can clog it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tidegate_chaos::cluster::{Cluster, ClusterOptions, NodeOptions, Programs, Replication};
use tidegate_tests::{
    Frames, PATIENCE, Proxy, ScriptedApp, ScriptedServer, Signal, WebReceiver, shared_postgres, wait_for,
    within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::browser::Browser;
use crate::dashboard::{DESK, look};
use crate::rig::{PATIENT, Rig, SOON, sidecar};

pub(crate) const TOKEN: &str = "0123456789abcdef";

/// A sidecar that takes orders, before a server that nobody calls.
async fn idle() -> Proxy {
    let admin = format!("[admin]\ntoken = \"{TOKEN}\"\n");
    let upstream = shared_postgres().port();
    let settings = format!("[cluster]\nupstreams = [\"127.0.0.1:{upstream}\"]\n{admin}");
    sidecar(&settings).start().await
}

/// An answer, taken apart.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn has(&self, header: &str) -> bool {
        self.head.lines().any(|line| line.eq_ignore_ascii_case(header))
    }
}

/// Sends these bytes and reads to the end.
async fn raw(address: SocketAddr, bytes: &[u8]) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // A server may answer and close before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    };
    let text = within(PATIENCE, "an answer", exchange).await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// A request with these headers, besides Host.
async fn ask(proxy: &Proxy, method: &str, path: &str, headers: &[&str]) -> Answer {
    let address = proxy.admin_address();
    let mut lines = vec![format!("{method} {path} HTTP/1.1")];
    if !headers.iter().any(|header| header.starts_with("Host:")) {
        lines.push(format!("Host: {address}"));
    }
    lines.extend(headers.iter().map(|header| (*header).to_owned()));
    let request = lines.join("\r\n") + "\r\n\r\n";
    raw(address, request.as_bytes()).await
}

fn bearer() -> String {
    format!("Authorization: Bearer {TOKEN}")
}

/// Gives an order that must be obeyed.
pub(crate) async fn order(proxy: &Proxy, path: &str) -> Value {
    let answer = ask(proxy, "POST", path, &[&bearer()]).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    answer.json()
}

/// Whether the timeline has this.
fn happened(shown: &Value, kind: &str, what: &str) -> bool {
    shown["events"].as_array().unwrap().iter().any(|event| event["kind"] == kind && event["what"] == what)
}

#[tokio::test]
async fn every_page_answers_with_its_type_and_is_kept_nowhere() {
    // A cached "ready" is a lie; a guessed type is a script.
    let proxy = idle().await;
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/livez", "application/json"),
        ("/readyz", "application/json"),
        ("/readyz/write", "application/json"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/status", "application/json"),
    ] {
        let got = ask(&proxy, "GET", path, &[]).await;
        let head = ask(&proxy, "HEAD", path, &[]).await;

        assert_eq!(got.status, 200, "{path}");
        assert!(got.has(&format!("content-type: {kind}")), "{path}: {}", got.head);
        assert!(got.has("cache-control: no-store") && got.has("x-content-type-options: nosniff"), "{path}");
        assert_eq!((head.status, head.body.as_str()), (200, ""), "HEAD {path}");
        assert!(head.has(&format!("content-type: {kind}")), "HEAD {path}");
    }
}

#[tokio::test]
async fn wrong_methods_and_paths_are_told_what_is_right() {
    // 404 for a wrong method, or 200 for a wrong path, sends people searching in the wrong place.
    let proxy = idle().await;

    let method = ask(&proxy, "DELETE", "/status", &[]).await;
    let get_order = ask(&proxy, "GET", "/pause", &[&bearer()]).await;
    let path = ask(&proxy, "GET", "/healthz", &[]).await;

    assert_eq!((method.status, get_order.status, path.status), (405, 405, 404));
    assert!(method.has("allow: GET, HEAD") && get_order.has("allow: POST"));
    assert!(path.has("content-type: application/problem+json"), "{}", path.head);
    assert!(path.json()["hint"].as_str().unwrap().contains("/readyz/write"));
}

#[tokio::test]
async fn orders_are_taken_from_those_with_the_token_and_from_no_web_page() {
    // Any page in a browser on this machine can send a POST here.
    let proxy = idle().await;
    let bearer = bearer();
    for (headers, status) in [
        (&[][..], 401),
        (&["Authorization: Bearer wrong"][..], 401),
        (&[&bearer, "Sec-Fetch-Site: cross-site"], 403),
        (&[&bearer, "Origin: http://evil.example"], 403),
        (&[&bearer, "Host: evil.example"], 421),
    ] {
        assert_eq!(ask(&proxy, "POST", "/pause", headers).await.status, status, "{headers:?}");
    }

    assert_eq!(ask(&proxy, "GET", "/readyz", &[]).await.status, 200, "nothing was paused");
    assert_eq!(ask(&proxy, "GET", "/status", &["Host: evil.example"]).await.status, 421);
    proxy.wait_logged("an order without the right token was refused").await;
    assert!(!proxy.log().contains(TOKEN));
}

#[tokio::test]
async fn without_a_token_no_order_is_taken() {
    // An operator who configured nothing has opened nothing.
    let server = ScriptedServer::start().await;
    let settings = format!("[cluster]\nupstreams = [\"{}\"]\n", server.address());
    let proxy = sidecar(&settings).start().await;

    let answer = ask(&proxy, "POST", "/lanes/write/open", &["Authorization: Bearer "]).await;

    assert_eq!(answer.status, 403);
    assert!(answer.json()["hint"].as_str().unwrap().contains("admin.token"));
}

#[tokio::test]
async fn an_order_to_a_lane_is_answered_in_words_and_shown() {
    // "open" means the opposite for doors and for breakers; the answer says which.
    let proxy = idle().await;

    let open = order(&proxy, "/lanes/write/open").await;
    let shown = ask(&proxy, "GET", "/status", &[]).await.json();
    let ready = ask(&proxy, "GET", "/readyz/write", &[]).await;
    let auto = order(&proxy, "/lanes/write/auto").await;

    assert_eq!(open["lane"]["order"], "open");
    assert!(open["meaning"].as_str().unwrap().contains("everything is refused"), "{open}");
    assert_eq!(shown["lanes"]["write"]["order"], "open");
    assert_eq!(shown["lanes"]["read"]["order"], "auto");
    assert_eq!(shown["lanes"]["write"]["phase"], "forced_open");
    assert!(happened(&shown, "operator", "An operator had writes refused."), "{}", shown["events"]);
    assert!(happened(&shown, "breaker", "Writes are refused by order."), "{}", shown["events"]);
    assert_eq!((ready.status, &ready.json()["cause"]), (503, &Value::from("forced")));
    assert_eq!(auto["lane"]["order"], "auto");
}

#[tokio::test]
async fn an_application_is_told_that_an_order_keeps_it_out() {
    // Seen: `cause=unknown`, and a hint to wait for probes, while /readyz/write said `forced`: no probe ends an order.
    let options = sidecar(&format!("[admin]\ntoken = \"{TOKEN}\"\n"));
    let rig = Rig::start(options).await;
    let mut app = rig.app().await;
    crate::rig::run(&mut app, "SELECT 1").await;

    order(rig.proxy(), "/lanes/write/open").await;
    let reply = app.query("CREATE TABLE t ()").await;

    let problem = reply.error().unwrap();
    assert_eq!((problem.severity(), problem.code()), ("ERROR", "53000"), "{problem:?}");
    assert_eq!(problem.detail_of("reason"), Some("breaker_open"));
    assert_eq!(problem.detail_of("cause"), Some("forced"));
    assert!(problem.hint().contains("An operator has ordered this"), "{problem:?}");
    crate::rig::run(&mut app, "SELECT 1").await;
}

#[tokio::test]
async fn a_goodbye_behind_a_refused_read_is_a_goodbye() {
    // What was known of the read would be sent in the place of the goodbye: a panic, or a session that waits for the
    // answer to nothing, and its backend with it.
    let options = sidecar(&format!("[pool]\nmode = \"session\"\nsize = 2\n[admin]\ntoken = \"{TOKEN}\"\n"));
    let rig = Rig::start(options).await;
    let (mut one, mut other) = (rig.app().await, rig.app().await);
    for app in [&mut one, &mut other] {
        crate::rig::run(app, "SELECT 1").await;
    }
    order(rig.proxy(), "/lanes/read/open").await;
    let refused = one.query("SELECT 2").await;
    assert_eq!(refused.error().unwrap().detail_of("reason"), Some("breaker_open"));

    one.send(Frames::new().terminate()).await;
    other.send(Frames::new().query("SELECT 2").terminate()).await;

    one.expect_end().await;
    other.expect_end().await;
    assert!(!rig.proxy().log().contains("panicked"), "{}", rig.proxy().log());
    let abandoned = rig.proxy().metrics().await.get("tidegate_sessions_abandoned_total", &[]);
    assert_eq!(abandoned, Some(0.0));
}

#[tokio::test]
async fn a_pause_holds_statements_back_and_its_end_lets_them_go() {
    // Those who wait must get the backends that idled meanwhile, though none comes back to be handed on.
    let options =
        sidecar(&format!("[admin]\ntoken = \"{TOKEN}\"\n[pool]\nsize = 1\nwrite_share = 1.0\n{PATIENT}"));
    let rig = Rig::start(options).await;
    let mut app = rig.app().await;
    crate::rig::run(&mut app, "SELECT 1").await;
    order(rig.proxy(), "/pause").await;
    let ready = ask(rig.proxy(), "GET", "/readyz", &[]).await;
    assert_eq!((ready.status, &ready.json()["cause"]), (503, &Value::from("paused")));

    let waiting = tokio::spawn(async move { app.query("SELECT 2").await });
    wait_for(SOON, "somebody waits", async || {
        let waiting = rig.proxy().metrics().await.get("tidegate_pool_waiting", &[]);
        (waiting == Some(1.0)).then_some(())
    })
    .await;
    order(rig.proxy(), "/resume").await;

    let reply = within(SOON, "the statement", waiting).await.unwrap();
    assert_eq!(reply.error(), None);
    assert_eq!(ask(rig.proxy(), "GET", "/readyz", &[]).await.status, 200);
}

#[tokio::test]
async fn a_pool_that_is_made_during_a_pause_waits_too() {
    // A user who logs in only now must not slip past the pause.
    let rig = Rig::start(sidecar(&format!("[admin]\ntoken = \"{TOKEN}\"\n{PATIENT}"))).await;
    order(rig.proxy(), "/pause").await;

    let address = rig.proxy().address();
    let database = rig.database.clone();
    let session = tokio::spawn(async move {
        let (mut app, _) = ScriptedApp::session(address, "postgres", &database).await;
        app.query("SELECT 1").await
    });
    wait_for(SOON, "the session waits", async || {
        let waiting = rig.proxy().metrics().await.get("tidegate_pool_waiting", &[]);
        (waiting == Some(1.0)).then_some(())
    })
    .await;
    order(rig.proxy(), "/resume").await;

    assert_eq!(within(SOON, "the statement", session).await.unwrap().error(), None);
}

#[tokio::test]
async fn reconnect_replaces_idle_backends() {
    // After a change on the server's side old connections must not live on.
    let rig = Rig::start(sidecar(&format!("[admin]\ntoken = \"{TOKEN}\"\n{PATIENT}"))).await;
    let mut app = rig.app().await;
    let before = crate::rig::backend_pid(&mut app).await;

    order(rig.proxy(), "/reconnect").await;

    wait_for(SOON, "another backend", async || {
        (crate::rig::backend_pid(&mut app).await != before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_reload_is_all_or_nothing_and_says_why() {
    // An operator at a terminal sees the reason at once, and what was in force stays.
    let proxy = idle().await;
    order(&proxy, "/reload").await;
    proxy.write_config("listen.auth = \"trust\"\n[pool]\nsize = 0\n");

    let refused = ask(&proxy, "POST", "/reload", &[&bearer()]).await;

    assert_eq!(refused.status, 409, "{}", refused.body);
    assert!(refused.json()["detail"].as_str().unwrap().contains("pool.size"), "{}", refused.body);
    let shown = ask(&proxy, "GET", "/status", &[]).await.json();
    assert_eq!(shown["upstreams"][0]["name"], format!("127.0.0.1:{}", shared_postgres().port()));
    assert_eq!(shown["events"][0]["kind"], "configuration");
}

#[tokio::test]
async fn large_requests_are_refused_and_slow_ones_cut_off() {
    // Memory and places are for those who ask something.
    let proxy = idle().await;
    let address = proxy.admin_address();
    let long = "x".repeat(9000);

    let header = ask(&proxy, "GET", "/livez", &[&format!("X-Long: {long}")]).await;
    let length = ask(&proxy, "POST", "/pause", &[&bearer(), "Content-Length: 5000"]).await;
    let chunks = format!(
        "POST /pause HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n{}\r\n0\r\n\r\n",
        &long[..5000]
    );
    let chunked = raw(address, chunks.as_bytes()).await;
    let nonsense = raw(address, b"what is this\r\n\r\n").await;

    assert_eq!((header.status, length.status, chunked.status, nonsense.status), (431, 413, 413, 400));
    assert_eq!(ask(&proxy, "GET", "/readyz", &[]).await.status, 200, "nothing was paused");
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /livez HT").await.unwrap();
    let mut rest = Vec::new();
    within(Duration::from_secs(20), "the end of a slow request", slow.read_to_end(&mut rest)).await.unwrap();
}

#[tokio::test]
async fn clients_that_say_nothing_keep_nobody_out() {
    // 64 places, 80 silent clients: a health check that waits until they are cut off has failed, and the process is killed.
    let proxy = idle().await;
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(TcpStream::connect(proxy.admin_address()).await.unwrap());
    }

    let answer = ask(&proxy, "GET", "/readyz", &[]);

    assert_eq!(within(Duration::from_secs(3), "an answer", answer).await.status, 200);
}

/// A listener of `/events`.
struct Listener {
    stream: TcpStream,
    text: String,
}

impl Listener {
    async fn open(proxy: &Proxy) -> Self {
        let mut stream = TcpStream::connect(proxy.admin_address()).await.unwrap();
        let request = format!("GET /events HTTP/1.0\r\nHost: {}\r\n\r\n", proxy.admin_address());
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { stream, text: String::new() }
    }

    /// Reads until the text is there.
    async fn hear(&mut self, wanted: &str) {
        let heard = async {
            while !self.text.contains(wanted) {
                let mut bytes = [0; 4096];
                let length = self.stream.read(&mut bytes).await.unwrap();
                assert!(length > 0, "ended before {wanted}: {}", self.text);
                self.text.push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        };
        within(SOON, wanted, heard).await;
    }

    /// What was told under this name, the latest.
    fn latest(&self, event: &str) -> Value {
        let (_, rest) = self.text.rsplit_once(&format!("event: {event}\ndata: ")).unwrap();
        serde_json::from_str(rest.split_once("\n\n").unwrap().0).unwrap()
    }
}

#[tokio::test]
async fn listeners_get_the_history_at_once_and_then_every_second() {
    // Whoever opens the page in an incident must see how it began.
    let proxy = idle().await;
    let mut listener = Listener::open(&proxy).await;
    for _ in 0..2 {
        listener.hear("event: sample").await;
        listener.text.clear();
    }

    listener = Listener::open(&proxy).await;
    listener.hear("event: sample").await;
    listener.hear("\n\nevent: status").await;

    assert!(listener.text.contains("text/event-stream"), "{}", listener.text);
    let history = listener.latest("history");
    assert!(history["samples"].as_array().unwrap().len() >= 2, "{history}");
    listener.text.clear();
    listener.hear("event: sample").await;
    listener.hear("\n\nevent: status").await;
    listener.hear("}\n\n").await;
    assert_eq!(listener.latest("sample")["write"]["state"], "serving");
}

#[tokio::test]
async fn listeners_are_bounded_and_their_places_come_back() {
    // Dashboards that were forgotten in browsers must not keep health checks out.
    let proxy = idle().await;
    let mut listeners = Vec::new();
    for _ in 0..16 {
        let mut listener = Listener::open(&proxy).await;
        listener.hear("event: status").await;
        listeners.push(listener);
    }

    let refused = ask(&proxy, "GET", "/events", &[]).await;
    assert_eq!(refused.status, 503);
    assert!(refused.has("retry-after: 10"));
    assert_eq!(ask(&proxy, "GET", "/livez", &[]).await.status, 200);
    listeners.clear();

    wait_for(SOON, "a place", async || {
        let mut listener = Listener::open(&proxy).await;
        let mut bytes = [0; 12];
        listener.stream.read_exact(&mut bytes).await.unwrap();
        bytes.ends_with(b"200").then_some(())
    })
    .await;
}

#[tokio::test]
async fn readiness_turns_while_draining_and_liveness_does_not() {
    // An orchestrator that kills a draining sidecar cuts its transactions short.
    let rig = Rig::start(sidecar(PATIENT)).await;
    let mut app = rig.app().await;
    crate::rig::run(&mut app, "BEGIN").await;
    crate::rig::run(&mut app, "SELECT 1").await;

    rig.proxy().signal(Signal::TERM);

    wait_for(SOON, "not ready", async || {
        let answer = ask(rig.proxy(), "GET", "/readyz/write", &[]).await;
        (answer.status == 503 && answer.json()["cause"] == "draining").then_some(())
    })
    .await;
    assert_eq!(ask(rig.proxy(), "GET", "/livez", &[]).await.status, 200);
}

#[tokio::test]
async fn metrics_follow_the_format_and_pools_that_are_gone_leave_nothing() {
    // Prometheus drops a whole page for one malformed line, and alerts on series that are dead.
    let rig = Rig::start(sidecar("[pool]\nidle_timeout = \"1ms\"\n")).await;
    let mut app = rig.app().await;
    crate::rig::run(&mut app, "SELECT 1").await;
    let labels = [("database", rig.database.as_str())];
    assert!(rig.proxy().metrics().await.get("tidegate_pool_exchanges", &labels).is_some());
    drop(app);

    let page = rig.proxy().get("/metrics").await.body;
    let mut families = std::collections::BTreeMap::new();
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(families.insert(name.to_owned(), kind.to_owned()), None, "{name} twice");
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let base =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(families.contains_key(name) || families.contains_key(base), "{line} has no type");
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
    assert_eq!(families["tidegate_service_seconds"], "histogram");
    wait_for(SOON, "the pool is forgotten", async || {
        rig.proxy().metrics().await.get("tidegate_pool_exchanges", &labels).is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_terminal_shows_what_the_page_shows_and_tells_by_its_exit_code() {
    // Scripts and people with nothing but a shell.
    let proxy = idle().await;
    let run = async |arguments: &[&str]| {
        let address = proxy.admin_address().to_string();
        let output = tokio::process::Command::new(crate::TIDEGATE)
            .args(["status", "--admin", &address])
            .args(arguments)
            .output();
        let output = within(SOON, "tidegate status", output).await.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };

    let (code, text) = run(&[]).await;
    let (_, json) = run(&["--json"]).await;
    order(&proxy, "/pause").await;
    let (paused, _) = run(&[]).await;

    watched(&proxy).await;
    assert_eq!((code, paused), (Some(0), Some(3)));
    assert!(text.contains("● All is well: reads and writes are served.") && !text.contains('\x1b'), "{text}");
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["lanes"]["write"]["state"], "serving");
    proxy.signal(Signal::KILL);
    wait_for(SOON, "nobody answers", async || (run(&[]).await.0 == Some(1)).then_some(())).await;
}

/// `--watch` shows the state again and again, until it is interrupted.
async fn watched(proxy: &Proxy) {
    let address = proxy.admin_address().to_string();
    let mut command = tokio::process::Command::new(crate::TIDEGATE);
    command.args(["status", "--watch", "--admin", &address]).stdout(std::process::Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut text = String::new();
    let seen = async {
        while text.matches("An operator paused all traffic").count() < 2 {
            let mut bytes = [0; 4096];
            let length = output.read(&mut bytes).await.unwrap();
            assert!(length > 0, "ended: {text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
    };
    within(SOON, "two pictures", seen).await;
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
    within(SOON, "the end of tidegate status", child.wait()).await.unwrap();
}

/// A primary whose commits wait for one standby.
fn synchronous_cluster() -> Cluster {
    let node = NodeOptions::new(Programs::find().unwrap());
    Cluster::start(&ClusterOptions { node, standbys: 1, replication: Replication::Synchronous }).unwrap()
}

/// A session that runs a statement again and again; what goes wrong is counted by the sidecar.
async fn keep_running(address: SocketAddr, sql: &'static str) {
    let (mut app, _) = ScriptedApp::session(address, "postgres", "postgres").await;
    loop {
        app.query(sql).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The alert and status of each message that was accepted.
fn pages(receiver: &WebReceiver) -> Vec<(String, String)> {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap().to_owned();
    let bodies = receiver.accepted();
    let bodies = bodies.iter().map(|body| serde_json::from_str::<Value>(body).unwrap());
    bodies.map(|body| (text(&body, "alert"), text(&body, "status"))).collect()
}

#[tokio::test]
async fn status_shows_a_stall_with_its_cause() {
    // A frozen standby stops every commit and nothing else. Reads that are turned away, a cause that is not named, a
    // page that comes late or twice: each costs the engineer on call more than the stall does.
    let cluster = synchronous_cluster();
    cluster.primary().sql("CREATE TABLE visits (at timestamptz)").unwrap();
    let receiver = WebReceiver::start().await;
    let hook = receiver.url("/hook");
    let upstream = format!("127.0.0.1:{}", cluster.primary().port());
    let settings =
        format!("[cluster]\nupstreams = [\"{upstream}\"]\n[alerts]\nwebhooks = [{{ url = \"{hook}\" }}]\n");
    let proxy = sidecar(&settings).start().await;
    let mut traffic = tokio::task::JoinSet::new();
    for sql in ["INSERT INTO visits VALUES (now())"; 4].into_iter().chain(["SELECT count(*) FROM visits"; 2])
    {
        traffic.spawn(keep_running(proxy.address(), sql));
    }
    let value =
        async |name: &str, labels: &[(&str, &str)]| proxy.metrics().await.get(name, labels).unwrap_or(0.0);
    let served = async |lane: &str| value("tidegate_service_seconds_count", &[("lane", lane)]).await;
    wait_for(SOON, "writes", async || (served("write").await > 10.0).then_some(())).await;
    let mut listener = Listener::open(&proxy).await;
    listener.hear("event: status").await;

    cluster.standbys()[0].freeze().unwrap();
    let frozen = tokio::time::Instant::now();
    receiver.wait_accepted(1).await;
    let paged = frozen.elapsed();

    // 5 s are promised; the rest is what a busy machine adds.
    assert!(paged < Duration::from_secs(8), "{paged:?}");
    listener.hear("Writes are refused from now on").await;
    let write = ask(&proxy, "GET", "/readyz/write", &[]).await;
    assert_eq!((write.status, &write.json()["cause"]), (503, &Value::from("sync_standby")), "{}", write.body);
    assert!(write.json()["since"].as_str().unwrap().ends_with('Z'), "{}", write.body);
    assert_eq!(ask(&proxy, "GET", "/readyz", &[]).await.status, 200);
    let shown = ask(&proxy, "GET", "/status", &[]).await.json();
    let lane = &shown["lanes"]["write"];
    assert_eq!((&lane["state"], &lane["cause"]), (&"refusing".into(), &"sync_standby".into()), "{lane}");
    assert!(lane["evidence"].as_str().unwrap().contains("s1"), "{lane}");
    assert_eq!(shown["lanes"]["read"]["state"], "serving");
    assert_eq!(shown["verdict"]["level"], "critical");
    assert_eq!(shown["alerts"]["open"].as_array().unwrap().len(), 1, "{}", shown["alerts"]);
    assert!(shown["upstreams"][0]["breakers"][1]["trips"].as_u64().unwrap() >= 1, "{}", shown["upstreams"]);
    assert!(value("tidegate_lane_cause", &[("lane", "write"), ("cause", "sync_standby")]).await > 0.0);
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
    let refused = within(SOON, "a refusal", app.query("INSERT INTO visits VALUES (now())")).await;
    assert_eq!(refused.error_code(), "53000");
    assert!(value("tidegate_refusals_total", &[("lane", "write"), ("reason", "breaker_open")]).await > 0.0);
    assert!(value("tidegate_exchanges_total", &[("lane", "write"), ("outcome", "not_sent")]).await > 0.0);
    let reads = served("read").await;
    wait_for(SOON, "reads go on", async || (served("read").await > reads + 10.0).then_some(())).await;
    if let Some(mut browser) = Browser::start().await {
        let url = format!("http://{}/", proxy.admin_address());
        let text = look(&mut browser, &url, DESK, "live", "real-stall.png").await;
        assert!(text.contains("Writes are refused at once, because commits wait"), "{text}");
    }

    cluster.standbys()[0].thaw().unwrap();
    receiver.wait_accepted(2).await;

    wait_for(SOON, "writes are served", async || {
        (ask(&proxy, "GET", "/readyz/write", &[]).await.status == 200).then_some(())
    })
    .await;
    wait_for(SOON, "nothing to be sent", async || {
        (proxy.metrics().await.get("tidegate_alerts_pending", &[]) == Some(0.0)).then_some(())
    })
    .await;
    let page = |status: &str| ("write_stalled".to_owned(), status.to_owned());
    assert_eq!(pages(&receiver), [page("firing"), page("resolved")]);
}
