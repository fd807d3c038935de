//! Whoever has to know is told, once, whatever happens to the sidecar.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tidegate_tests::{PATIENCE, Proxy, ProxyOptions, Signal, WebReceiver, shared_postgres, wait_for, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::TIDEGATE;
use crate::rig::{SOON, holds_for};

/// The promise to operators, from the moment that a thread is stuck.
const FIVE_SECONDS: Duration = Duration::from_secs(5);

/// A sidecar that can be broken on purpose. Nobody logs in; a server that is not there at all would page.
fn breakable(settings: &str) -> ProxyOptions {
    let upstream = shared_postgres().port();
    let least = format!("listen.auth = \"trust\"\ncluster.upstreams = [\"127.0.0.1:{upstream}\"]\n");
    ProxyOptions::new(TIDEGATE).config(&format!("{least}{settings}\n")).environment("TIDEGATE_DEBUG", "1")
}

fn webhook(receiver: &WebReceiver) -> String {
    format!("alerts.webhooks = [{{ url = \"{}\" }}]\n", receiver.url("/hook"))
}

/// The control plane answers within this, whatever hangs beside it.
const ANSWER: Duration = Duration::from_millis(50);

/// How long an answer takes: of several, the middle one, so that a slice of the scheduler does not count.
async fn median_answer(proxy: &Proxy, page: &str) -> Duration {
    let mut took = Vec::new();
    for _ in 0..9 {
        let begin = Instant::now();
        assert_eq!(proxy.get(page).await.status, 200, "{page}");
        took.push(begin.elapsed());
    }
    took.sort_unstable();
    took[4]
}

async fn order(proxy: &Proxy, command: &str) {
    assert_eq!(proxy.post(&format!("/debug/{command}"), "").await.status, 202, "{command}");
}

/// Alert and status of each message.
fn said(bodies: &[String]) -> Vec<(String, String)> {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap().to_owned();
    let bodies = bodies.iter().map(|body| serde_json::from_str::<Value>(body).unwrap());
    bodies.map(|body| (text(&body, "alert"), text(&body, "status"))).collect()
}

fn message(alert: &str, status: &str) -> (String, String) {
    (alert.to_owned(), status.to_owned())
}

/// Waits until nothing is to be sent any more, so that a message too many would have come.
async fn wait_all_sent(proxy: &Proxy) {
    wait_for(SOON, "nothing to be sent", async || {
        let metrics = proxy.metrics().await;
        (metrics.get("tidegate_alerts_pending", &[]) == Some(0.0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_incident_is_one_message_and_its_end_another() {
    // The condition is seen again and again; each look that pages is a reason to switch the pager off.
    let receiver = WebReceiver::start().await;
    let proxy = breakable(&webhook(&receiver)).start().await;

    for command in ["fire", "fire", "fire", "resolve", "resolve"] {
        order(&proxy, &format!("{command}?alert=trouble")).await;
    }
    receiver.wait_accepted(2).await;
    wait_all_sent(&proxy).await;

    let accepted = receiver.accepted();
    assert_eq!(said(&accepted), [message("trouble", "firing"), message("trouble", "resolved")]);
    let ids: Vec<Value> =
        accepted.iter().map(|body| serde_json::from_str::<Value>(body).unwrap()["id"].clone()).collect();
    assert_eq!(ids[0], ids[1]);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.get("tidegate_alerts_sent_total", &[("kind", "json")]), Some(2.0));
    assert_eq!(metrics.get("tidegate_alerts_open", &[]), Some(0.0));
}

#[tokio::test]
async fn a_receiver_that_accepts_and_never_answers_delays_no_other_and_is_asked_again() {
    // Without a deadline one dead relay is the end of all paging.
    let deaf = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = deaf.local_addr().unwrap();
    let receiver = WebReceiver::start().await;
    let webhooks = format!(
        "alerts.webhooks = [{{ url = \"http://{address}/hook\" }}, {{ url = \"{}\" }}]\n",
        receiver.url("/hook")
    );
    let proxy = breakable(&webhooks).start().await;

    let start = Instant::now();
    order(&proxy, "fire?alert=trouble").await;
    order(&proxy, "resolve?alert=trouble").await;
    receiver.wait_accepted(2).await;
    let took = start.elapsed();

    assert!(took < Duration::from_secs(2), "{took:?}, which is one attempt at the other");
    let first = within(SOON, "an attempt", deaf.accept()).await.unwrap();
    let again = within(SOON, "another one, since that took too long", deaf.accept()).await.unwrap();
    drop((first, again));
    assert_eq!(proxy.metrics().await.get("tidegate_alerts_pending", &[]), Some(2.0));
}

#[tokio::test]
async fn a_kill_in_the_middle_of_an_incident_neither_repeats_nor_loses_a_message() {
    // A new process that knows nothing would page again for what still holds, and never resolve what does not.
    let receiver = WebReceiver::start().await;
    let mut proxy = breakable(&webhook(&receiver)).start().await;
    for alert in ["holds", "healed"] {
        order(&proxy, &format!("fire?alert={alert}")).await;
    }
    receiver.wait_accepted(2).await;
    wait_all_sent(&proxy).await;
    let outbox = proxy.dir().join("state/outbox.json");
    wait_for(SOON, "the file has no messages", async || {
        std::fs::read_to_string(&outbox).ok()?.contains("\"messages\":[]").then_some(())
    })
    .await;

    proxy.kill_and_restart().await;
    order(&proxy, "fire?alert=holds").await;
    order(&proxy, "resolve?alert=healed").await;
    receiver.wait_accepted(3).await;
    wait_all_sent(&proxy).await;
    order(&proxy, "resolve?alert=holds").await;
    receiver.wait_accepted(4).await;
    wait_all_sent(&proxy).await;

    let said = said(&receiver.accepted());
    for alert in ["holds", "healed"] {
        let about: Vec<_> = said.iter().filter(|(name, _)| name == alert).cloned().collect();
        assert_eq!(about, [message(alert, "firing"), message(alert, "resolved")]);
    }
}

#[tokio::test]
async fn a_message_that_could_not_be_sent_survives_a_kill() {
    // The network that kept the page back is often the same that made somebody restart the sidecar.
    let mut receiver = WebReceiver::down();
    let mut proxy = breakable(&webhook(&receiver)).start().await;
    order(&proxy, "fire?alert=trouble").await;
    proxy.wait_logged("alert not sent").await;

    proxy.kill_and_restart().await;
    order(&proxy, "resolve?alert=trouble").await;
    receiver.listen().await;
    receiver.wait_accepted(2).await;
    wait_all_sent(&proxy).await;

    let said = said(&receiver.accepted());
    assert_eq!(said, [message("trouble", "firing"), message("trouble", "resolved")]);
}

#[tokio::test]
async fn a_receiver_that_fails_gets_each_message_once_it_works_and_in_order() {
    // The end must not overtake the beginning while that is being repeated.
    let receiver = WebReceiver::start().await;
    receiver.answer_with(&[500, 503, 429, 500]);
    let proxy = breakable(&webhook(&receiver)).start().await;

    order(&proxy, "fire?alert=trouble").await;
    order(&proxy, "resolve?alert=trouble").await;
    receiver.wait_accepted(2).await;
    wait_all_sent(&proxy).await;

    let all: Vec<String> = receiver.received().into_iter().map(|request| request.body).collect();
    let statuses: Vec<String> = said(&all).into_iter().map(|(_, status)| status).collect();
    assert_eq!(statuses, ["firing", "firing", "firing", "firing", "firing", "resolved"]);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.get("tidegate_alerts_failed_total", &[]), Some(4.0));
}

#[tokio::test]
async fn without_a_place_on_disk_the_sidecar_serves_and_pages_and_says_so() {
    // An alert is most needed when the disk is the trouble.
    let receiver = WebReceiver::start().await;
    let settings = format!("state_dir = \"@DIR@/occupied/state\"\n{}", webhook(&receiver));
    let proxy = breakable(&settings).file("occupied", "a file where a folder should be").start().await;

    order(&proxy, "fire?alert=trouble").await;
    receiver.wait_accepted(1).await;

    proxy.wait_logged("the journal is kept in memory only").await;
    proxy.wait_logged("alerts to be sent are kept in memory only").await;
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.get("tidegate_journal_in_memory", &[]), Some(1.0));
    assert_eq!(metrics.get("tidegate_alerts_in_memory", &[]), Some(1.0));
}

#[tokio::test]
async fn a_frozen_disk_stops_neither_the_sidecar_nor_its_alerts() {
    // Opening a FIFO for writing hangs until somebody reads it: a disk that answers nothing. Whoever waited for it
    // without a limit would hang here.
    let receiver = WebReceiver::start().await;
    let folder = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("lock")).status().unwrap();
    assert!(made.success());
    let settings = format!("state_dir = \"{}\"\n{}", folder.path().display(), webhook(&receiver));
    let mut proxy = breakable(&settings).start().await;

    order(&proxy, "fire?alert=trouble").await;
    within(FIVE_SECONDS, "the alert", receiver.wait_accepted(1)).await;
    proxy.signal(Signal::HUP);
    proxy.wait_logged("configuration reloaded").await;
    assert_eq!(proxy.metrics().await.get("tidegate_journal_late_total", &[]), Some(1.0));
    proxy.signal(Signal::TERM);
    assert!(proxy.wait_exit(FIVE_SECONDS).await.success());
}

#[tokio::test]
async fn the_supervisor_hears_from_us_while_we_are_alive_and_only_then() {
    // systemd kills what stops sending WATCHDOG=1; a sidecar that sends it while its workers hang is never killed.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let heard = || {
        let datagrams = std::iter::from_fn(|| {
            let mut buffer = [0; 256];
            let length = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
        });
        datagrams.collect::<Vec<String>>()
    };
    let options = breakable("[watchdog]\nstall = \"500ms\"\n");
    let options = options.environment("NOTIFY_SOCKET", path.to_str().unwrap());
    let mut proxy = options.environment("WATCHDOG_USEC", "400000").start().await;

    let mut all = Vec::new();
    wait_for(SOON, "signs of life", async || {
        all.extend(heard());
        (all.iter().filter(|sign| *sign == "WATCHDOG=1").count() >= 2).then_some(())
    })
    .await;
    assert_eq!(all[0], "READY=1");

    order(&proxy, "block?target=workers&for=3s").await;
    wait_for(SOON, "not alive", async || (proxy.get("/livez").await.status == 503).then_some(())).await;
    heard();
    holds_for(Duration::from_secs(1), "silence", || heard().is_empty()).await;

    wait_for(SOON, "alive", async || (proxy.get("/livez").await.status == 200).then_some(())).await;
    wait_for(SOON, "signs of life", async || heard().iter().any(|sign| sign == "WATCHDOG=1").then_some(()))
        .await;
    proxy.signal(Signal::TERM);
    assert!(proxy.wait_exit(PATIENCE).await.success());
    assert!(heard().iter().any(|sign| sign == "STOPPING=1"));
}

/// A web server with this certificate that answers every connection with 200; counts them.
async fn https_server(made: &rcgen::CertifiedKey<rcgen::KeyPair>) -> (u16, Arc<AtomicUsize>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            count.fetch_add(1, Ordering::Relaxed);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    (port, served)
}

#[tokio::test]
async fn a_webhook_over_tls_must_prove_who_it_is() {
    // A token in a URL must not be told to whoever answers at that address.
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (port, served) = https_server(&made).await;
    let settings = format!("alerts.webhooks = [{{ url = \"https://localhost:{port}/T0KEN\" }}]\n");
    let stranger = breakable(&settings).start().await;
    let trusting = breakable(&settings).file("roots.pem", &made.cert.pem());
    let trusting = trusting.environment("SSL_CERT_FILE", "@DIR@/roots.pem").start().await;

    order(&stranger, "fire?alert=trouble").await;
    stranger.wait_logged("alert not sent").await;
    assert_eq!(served.load(Ordering::Relaxed), 0);
    order(&trusting, "fire?alert=trouble").await;
    trusting.wait_logged("alert sent").await;

    assert_eq!(served.load(Ordering::Relaxed), 1);
    for log in [stranger.log(), trusting.log()] {
        assert!(!log.contains("T0KEN"), "{log}");
    }
}

#[tokio::test]
async fn every_kind_of_receiver_gets_its_own_form_and_the_header_that_it_wants() {
    // A receiver that does not understand a message refuses it, and nobody is woken up.
    let receiver = WebReceiver::start().await;
    let url = |path: &str| receiver.url(path);
    let settings = format!(
        "[alerts]\nwebhooks = [\n{{ url = \"{}\", authorization = \"Bearer s3same\" }},\n\
         {{ url = \"{}\", kind = \"slack\" }},\n\
         {{ url = \"{}\", kind = \"pagerduty\", routing_key = \"R0UT1NG\" }},\n\
         {{ url = \"{}\", kind = \"alertmanager\" }}]\n",
        url("/json"),
        url("/slack"),
        url("/v2/enqueue"),
        url(""),
    );
    let proxy = breakable(&settings).start().await;

    order(&proxy, "fire?alert=trouble").await;
    receiver.wait_accepted(4).await;

    let mut requests = receiver.received();
    requests.sort_by(|a, b| a.line.cmp(&b.line));
    let lines: Vec<&str> = requests.iter().map(|request| request.line.as_str()).collect();
    assert_eq!(lines, ["POST /api/v2/alerts", "POST /json", "POST /slack", "POST /v2/enqueue"]);
    let bodies: Vec<Value> =
        requests.iter().map(|request| serde_json::from_str(&request.body).unwrap()).collect();
    assert_eq!(bodies[0][0]["labels"]["alertname"], "trouble");
    assert_eq!(bodies[1]["alert"], "trouble");
    assert!(bodies[2]["text"].as_str().unwrap().contains("trouble"));
    assert_eq!(bodies[3]["routing_key"], "R0UT1NG");
    assert!(requests[1].head.contains("authorization: Bearer s3same"), "{}", requests[1].head);
    for secret in ["R0UT1NG", "s3same", "/v2/enqueue"] {
        assert!(!proxy.log().contains(secret), "{secret} in the log");
    }
}

#[tokio::test]
async fn a_blocked_data_plane_is_not_alive_and_somebody_is_told() {
    // With every data worker stuck, the control plane must see it, say it and stay quick itself.
    let receiver = WebReceiver::start().await;
    let proxy = breakable(&webhook(&receiver)).start().await;
    assert_eq!(proxy.get("/livez").await.status, 200);

    order(&proxy, "block?target=workers&for=6s").await;
    let blocked = Instant::now();
    let answer = wait_for(FIVE_SECONDS, "/livez says so", async || {
        let answer = proxy.get("/livez").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    let alert = within(FIVE_SECONDS, "the alert", receiver.wait_accepted(1)).await;

    for page in ["/metrics", "/"] {
        let took = median_answer(&proxy, page).await;
        println!("{page} with all workers blocked: {took:?} (promise {ANSWER:?})");
        assert!(took < ANSWER, "{page} takes {took:?}");
    }
    assert!(answer.body.contains("worker-0 has made no progress for"), "{}", answer.body);
    assert_eq!(said(&alert), [message("worker_stalled", "firing")]);
    assert!(blocked.elapsed() < FIVE_SECONDS, "{:?}", blocked.elapsed());
    let stall = proxy.metrics().await.get("tidegate_watchdog_stall_seconds", &[("thread", "worker-0")]);
    assert!(stall.is_some_and(|seconds| seconds >= 2.0), "{stall:?}");

    let resolved = receiver.wait_accepted(2).await;
    assert_eq!(said(&resolved)[1], message("worker_stalled", "resolved"));
    assert_eq!(proxy.get("/livez").await.status, 200);
}

#[tokio::test]
async fn a_blocked_control_plane_is_noticed_from_outside_of_it() {
    // /livez itself is stuck then; the alert has to leave by another way.
    let receiver = WebReceiver::start().await;
    let proxy = breakable(&webhook(&receiver)).start().await;

    order(&proxy, "block?target=control&for=6s").await;
    let alert = within(FIVE_SECONDS, "the alert", receiver.wait_accepted(1)).await;

    assert_eq!(said(&alert), [message("control_stalled", "firing")]);
    proxy.wait_logged("no progress").await;
    wait_for(SOON, "the journal has it", async || {
        let journal = std::fs::read_to_string(proxy.dir().join("state/journal.jsonl")).ok()?;
        journal.lines().any(|line| line.contains("watchdog") && line.contains("control")).then_some(())
    })
    .await;
    let resolved = receiver.wait_accepted(2).await;
    assert_eq!(said(&resolved)[1], message("control_stalled", "resolved"));
}

#[tokio::test]
async fn a_process_that_is_stuck_for_too_long_ends_and_the_next_one_resolves_the_incident() {
    // Only a supervisor can help then, and it looks at the end of the process.
    let receiver = WebReceiver::start().await;
    let settings = format!("[watchdog]\nstall = \"500ms\"\nexit_after = \"1500ms\"\n[alerts]\n{}", {
        webhook(&receiver).replace("alerts.", "")
    });
    let mut proxy = breakable(&settings).start().await;

    order(&proxy, "block?target=workers&for=1m").await;
    let status = proxy.wait_exit(PATIENCE).await;
    assert_eq!(status.code(), Some(1));
    proxy.kill_and_restart().await;
    receiver.wait_accepted(2).await;
    wait_all_sent(&proxy).await;

    let said = said(&receiver.accepted());
    assert_eq!(said, [message("worker_stalled", "firing"), message("worker_stalled", "resolved")]);
}

#[tokio::test]
async fn a_pause_of_the_whole_process_is_no_stall() {
    // A machine that is suspended or migrated would page, or end the process, each time that it comes back.
    let receiver = WebReceiver::start().await;
    let settings = format!("[watchdog]\nstall = \"500ms\"\nexit_after = \"500ms\"\n[alerts]\n{}", {
        webhook(&receiver).replace("alerts.", "")
    });
    let mut proxy = breakable(&settings).start().await;

    proxy.freeze();
    // Four times what would be a stall.
    tokio::time::sleep(Duration::from_secs(2)).await;
    proxy.signal(Signal::CONT);
    wait_for(SOON, "alive again", async || (proxy.get("/livez").await.status == 200).then_some(())).await;

    assert!(proxy.is_running());
    assert!(receiver.received().is_empty());
}

#[tokio::test]
async fn the_heartbeat_needs_a_write_within_the_last_period() {
    // A switch that does not go off when writes hang is a green light on a dead machine.
    let receiver = WebReceiver::start().await;
    let url = receiver.url("/beat");
    let settings = format!("[alerts]\nheartbeat_url = \"{url}\"\nheartbeat_interval = \"1s\"\n");
    let proxy = breakable(&settings).start().await;
    let heartbeats = async |outcome: &str| {
        let metrics = proxy.metrics().await;
        metrics.get("tidegate_heartbeats_total", &[("outcome", outcome)]).unwrap_or(0.0)
    };

    wait_for(SOON, "one withheld", async || (heartbeats("withheld").await >= 1.0).then_some(())).await;
    assert!(receiver.received().is_empty());

    wait_for(SOON, "a heartbeat", async || {
        order(&proxy, "wrote").await;
        (!receiver.received().is_empty()).then_some(())
    })
    .await;
    assert_eq!(receiver.received()[0].line, "GET /beat");

    // Two periods after the last write it must be silent.
    let before = heartbeats("withheld").await;
    wait_for(Duration::from_secs(3), "silence", async || {
        (heartbeats("withheld").await > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_the_sidecar_does_is_in_the_journal_and_outlives_it() {
    // After an incident the file is what is left to learn from.
    let mut proxy = breakable("").start().await;
    proxy.signal(Signal::HUP);
    proxy.wait_logged("configuration reloaded").await;
    proxy.write_config("[torn");
    proxy.signal(Signal::HUP);
    proxy.wait_logged("configuration not reloaded").await;
    proxy.signal(Signal::TERM);
    assert!(proxy.wait_exit(PATIENCE).await.success());

    let text = std::fs::read_to_string(proxy.dir().join("state/journal.jsonl")).unwrap();
    let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<String> =
        entries.iter().map(|entry| format!("{} {} {}", entry["kind"], entry["from"], entry["to"])).collect();
    let steps: Vec<String> = steps.iter().map(|step| step.replace('"', "")).collect();
    assert_eq!(
        steps,
        [
            "process starting serving",
            "configuration old new",
            "configuration old old",
            "process serving draining",
            "process draining stopped",
        ]
    );
    assert!(entries.windows(2).all(|pair| pair[0]["id"].as_u64() < pair[1]["id"].as_u64()));
}

#[tokio::test]
async fn debug_commands_do_not_exist_unless_asked_for() {
    // Else anybody who reaches the admin page can stop the data plane.
    let config = "listen.auth = \"trust\"\ncluster.upstreams = [\"127.0.0.1:1\"]\n";
    let proxy = ProxyOptions::new(TIDEGATE).config(config).start().await;

    let answer = proxy.post("/debug/block?target=workers&for=1m", "").await;

    assert_ne!(answer.status, 202);
    assert_eq!(proxy.get("/livez").await.status, 200);
}
