//! The relay against a real server, and its API against requests as Toxiproxy's clients send them.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request};
use serde_json::{Value, json};
use tidegate_chaos::cluster::{Node, NodeOptions, Programs};
use tidegate_chaos::relay::api::{Registry, accept};
use tidegate_chaos::relay::{Action, Cut, Kind, Message, Moment, Relay, Stream, Toxic};
use tidegate_chaos::workload::http;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::{Client, NoTls};

struct Bench {
    relay: Relay,
    node: Node,
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
impl Bench {
    async fn start() -> Self {
        let start = || Node::start(&NodeOptions::new(Programs::find().unwrap())).unwrap();
        let node = tokio::task::spawn_blocking(start).await.unwrap();
        let upstream = (Ipv4Addr::LOCALHOST, node.port()).into();
        let relay = Relay::start((Ipv4Addr::LOCALHOST, 0).into(), upstream).await.unwrap();
        Self { relay, node }
    }

    async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let port = self.relay.address().port();
        let url = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    fn cut(&self, stream: Stream, cut: Cut) {
        self.relay.add(Toxic::new("cut", stream, Kind::Cut(cut)));
    }

    fn count(&self) -> String {
        self.node.sql("SELECT count(*) FROM t").unwrap()
    }
}

fn cut(message: Message, statement: &str, when: Moment, action: Action) -> Cut {
    Cut { message, statement: Some(statement.to_owned()), when, action, chance: 1.0 }
}

#[tokio::test]
async fn a_reply_to_commit_can_be_lost_after_the_commit_took_place() {
    // Cutting by bytes or time would hit the insert, or nothing; here the row must be there and the client not know.
    let bench = Bench::start().await;
    let client = bench.connect().await.unwrap();
    client.batch_execute("CREATE TABLE t (id int)").await.unwrap();
    bench.cut(Stream::Downstream, cut(Message::CommandComplete, "COMMIT", Moment::Before, Action::Reset));

    client.batch_execute("BEGIN").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    let error = client.batch_execute("COMMIT").await.unwrap_err();

    assert!(error.as_db_error().is_none(), "{error:?}");
    assert_eq!(bench.count(), "1");
}

#[tokio::test]
async fn a_commit_can_be_lost_before_it_is_sent() {
    // The same for the client, and no row.
    let bench = Bench::start().await;
    let client = bench.connect().await.unwrap();
    client.batch_execute("CREATE TABLE t (id int)").await.unwrap();
    bench.cut(Stream::Upstream, cut(Message::Query, "COMMIT", Moment::Before, Action::Reset));

    client.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let error = client.batch_execute("COMMIT").await.unwrap_err();

    assert!(error.as_db_error().is_none(), "{error:?}");
    assert_eq!(bench.count(), "0");
}

#[tokio::test]
async fn a_half_open_connection_says_nothing() {
    // A close or a reset would end the wait.
    let bench = Bench::start().await;
    let client = bench.connect().await.unwrap();
    bench.cut(Stream::Upstream, cut(Message::Query, "SELECT", Moment::After, Action::HalfOpen));

    let waited = tokio::time::timeout(Duration::from_millis(500), client.batch_execute("SELECT 1")).await;

    assert!(waited.is_err(), "{waited:?}");
}

/// A server that has its answer ready before the question is read.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
async fn quick_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {
                    if stream.write_all(b"Z\0\0\0\x05I").await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn nothing_is_delivered_after_the_message_that_a_cut_waits_for() {
    // The answer used to win a race of a millisecond against the end of the connection, the more often the quicker
    // the server.
    let relay = Relay::start((Ipv4Addr::LOCALHOST, 0).into(), quick_server().await).await.unwrap();
    let silence = cut(Message::Query, "SELECT", Moment::After, Action::Silence);
    relay.add(Toxic::new("cut", Stream::Upstream, Kind::Cut(silence)));
    let mut streams = Vec::new();
    let mut buffer = [0; 64];
    for _ in 0..20 {
        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        stream.write_all(b"\0\0\0\x08\0\x03\0\0").await.unwrap();
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 6);
        stream.write_all(b"Q\0\0\0\x0dSELECT 1\0").await.unwrap();
        streams.push(stream);
    }

    tokio::time::sleep(Duration::from_millis(300)).await;
    let heard = streams.iter().filter(|stream| stream.try_read(&mut [0; 64]).is_ok()).count();

    assert_eq!(heard, 0);
}

#[tokio::test]
async fn a_connection_is_not_cut_before_the_last_message_has_arrived() {
    // On a slow link the end used to overtake the message after which it was to come.
    let bench = Bench::start().await;
    let client = bench.connect().await.unwrap();
    client.batch_execute("CREATE TABLE t (id int)").await.unwrap();
    bench.relay.add(Toxic::new("slow", Stream::Upstream, Kind::Latency { latency: 50, jitter: 0 }));
    bench.cut(Stream::Upstream, cut(Message::Query, "INSERT", Moment::After, Action::Close));

    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap_err();

    let deadline = Instant::now() + Duration::from_secs(10);
    while bench.count() != "1" {
        assert!(Instant::now() < deadline, "the statement never arrived");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_login_can_be_cut_in_the_middle() {
    // Half of the first answer arrives, then the end.
    let bench = Bench::start().await;
    bench.cut(
        Stream::Downstream,
        Cut {
            message: Message::Authentication,
            statement: None,
            when: Moment::Amid,
            action: Action::Close,
            chance: 1.0,
        },
    );

    assert!(bench.connect().await.is_err());

    bench.relay.remove("cut");
    assert!(bench.connect().await.is_ok());
}

#[tokio::test]
async fn a_stall_holds_data_back_and_then_delivers_it() {
    // What a healed network does: the statement runs late, and only then.
    let bench = Bench::start().await;
    let client = bench.connect().await.unwrap();
    client.batch_execute("CREATE TABLE t (id int)").await.unwrap();
    bench.relay.add(Toxic::new("stall", Stream::Upstream, Kind::Stall {}));

    let insert = tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES (1)").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.count(), "0");
    assert!(!insert.is_finished());
    bench.relay.remove("stall");

    insert.await.unwrap().unwrap();
    assert_eq!(bench.count(), "1");
}

#[tokio::test]
async fn a_stall_holds_back_the_end_of_a_connection() {
    // A server that dies behind a dead network says no goodbye. FIN, RST and refusals used to get through, and a
    // vanished server was as easy to notice as one that was stopped.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let relay = Relay::start((Ipv4Addr::LOCALHOST, 0).into(), listener.local_addr().unwrap()).await.unwrap();
    let mut applications = Vec::new();
    let mut servers = Vec::new();
    for _ in 0..2 {
        applications.push(TcpStream::connect(relay.address()).await.unwrap());
        servers.push(listener.accept().await.unwrap().0);
    }
    for stream in [Stream::Upstream, Stream::Downstream] {
        relay.add(Toxic::new(&format!("{stream:?}"), stream, Kind::Stall {}));
    }

    rustix::net::sockopt::set_socket_linger(&servers[0], Some(Duration::ZERO)).unwrap();
    drop((servers, listener));
    applications.push(TcpStream::connect(relay.address()).await.unwrap());
    tokio::time::sleep(Duration::from_millis(300)).await;
    for (number, application) in applications.iter().enumerate() {
        let heard = application.try_read(&mut [0; 64]);
        let silent = heard.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        assert!(silent, "connection {number}: {heard:?}");
    }
    relay.remove("Upstream");
    relay.remove("Downstream");

    let mut ends = Vec::new();
    for mut application in applications {
        let reading = tokio::time::timeout(Duration::from_secs(5), application.read_u8());
        ends.push(reading.await.unwrap().unwrap_err().kind());
    }
    assert_eq!(ends, [ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof, ErrorKind::UnexpectedEof]);
}

#[tokio::test]
async fn latency_applies_to_each_direction_that_has_it() {
    // One direction: at least 100 ms, and not twice that for a second toxic elsewhere.
    let bench = Bench::start().await;
    let client = bench.connect().await.unwrap();
    bench.relay.add(Toxic::new("slow", Stream::Downstream, Kind::Latency { latency: 100, jitter: 0 }));

    let start = Instant::now();
    client.batch_execute("SELECT 1").await.unwrap();

    assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_disabled_relay_refuses_and_an_enabled_one_serves_again() {
    // Toxiproxy's "down": old connections end, new ones are refused, and the port stays the same.
    let bench = Bench::start().await;
    let client = bench.connect().await.unwrap();

    bench.relay.enable(false);
    assert!(client.batch_execute("SELECT 1").await.is_err());
    let mut refused = bench.connect().await.is_err();
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        refused |= bench.connect().await.is_err();
    }
    assert!(refused);
    bench.relay.enable(true);

    let mut again = false;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        again |= bench.connect().await.is_ok();
    }
    assert!(again);
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
async fn ask(api: SocketAddr, method: Method, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    let request = Request::builder().method(method).uri(path).header("host", "toxiproxy");
    let answer = http::send(api, request.body(Full::from(body)).unwrap()).await.unwrap();
    (answer.status.as_u16(), serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn toxiproxys_clients_can_drive_it() {
    // The sequence that its libraries send: version, populate, add a toxic, change it, disable, reset.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let api = listener.local_addr().unwrap();
    tokio::spawn(accept(listener, Arc::new(Registry::default())));
    let proxies =
        json!([{"name": "db", "listen": "127.0.0.1:0", "upstream": "127.0.0.1:5432", "enabled": true}]);
    let toxic = json!({"type": "latency", "stream": "downstream", "attributes": {"latency": 50}});

    let (_, version) = ask(api, Method::GET, "/version", Value::Null).await;
    let (populated, _) = ask(api, Method::POST, "/populate", proxies).await;
    let (added, named) = ask(api, Method::POST, "/proxies/db/toxics", toxic.clone()).await;
    let (twice, _) = ask(api, Method::POST, "/proxies/db/toxics", toxic).await;
    let change = json!({"attributes": {"jitter": 7}});
    let (_, changed) = ask(api, Method::POST, "/proxies/db/toxics/latency_downstream", change).await;
    let (_, disabled) = ask(api, Method::POST, "/proxies/db", json!({"enabled": false})).await;
    let (reset, _) = ask(api, Method::POST, "/reset", Value::Null).await;
    let (_, after) = ask(api, Method::GET, "/proxies", Value::Null).await;
    let (missing, _) = ask(api, Method::GET, "/proxies/nobody", Value::Null).await;

    assert!(version["version"].is_string(), "{version}");
    assert_eq!((populated, added, twice, reset, missing), (201, 200, 409, 204, 404));
    assert_eq!(named["name"], "latency_downstream");
    assert_eq!(changed["attributes"], json!({"latency": 50, "jitter": 7}));
    assert_eq!(disabled["enabled"], false);
    assert_eq!((&after["db"]["enabled"], &after["db"]["toxics"]), (&json!(true), &json!([])));
}
