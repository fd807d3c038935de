//! Patroni's REST API: who holds the leader lock.
//!
//! `GET /cluster` of any member names the leader, from the consensus store; `GET /primary` of the leader itself is 200
//! only while it holds the lock, and costs it no look at the store. So while all is well only the latter is asked, and
//! every answer that moves writes is the leader's own word. See "REST API" in Patroni's documentation.
//!
//! Plain HTTP only. Each request has a connection of its own and one deadline over all of it.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::decide::Event;
use super::leader::PatroniAnswer;
use super::runner::Teller;
use crate::config::UpstreamAddress;
use crate::upstream::topology::Writes;
use crate::upstream::{Topology, UpstreamId};

/// Patroni's port when none is configured.
pub const PORT: u16 = 8008;
/// One request, connect included.
const BOUND: Duration = Duration::from_secs(1);
/// Between two questions while all is well. A fleet of 500 sidecars is then 250 cheap requests a second.
const QUIET: Duration = Duration::from_secs(2);
/// Between two questions while there is no primary that takes writes.
const DOUBT: Duration = Duration::from_millis(500);
/// More than a description of any cluster has.
const BODY_MAX: usize = 1024 * 1024;

/// One member's REST API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// The API of the member that runs on this host.
    pub const fn new(host: String, port: u16) -> Self {
        Self { host, port }
    }

    /// Those that belong to these servers when none are configured: the same hosts, Patroni's usual port.
    pub fn beside(upstreams: &[UpstreamAddress]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for address in upstreams {
            let host = match address {
                UpstreamAddress::Tcp { host, .. } => host.clone(),
                UpstreamAddress::Unix(_) => "localhost".to_owned(),
            };
            let endpoint = Self::new(host, PORT);
            if !all.contains(&endpoint) {
                all.push(endpoint);
            }
        }
        all
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(f, "http://[{host}]:{port}")
        } else {
            write!(f, "http://{host}:{port}")
        }
    }
}

/// A text is no address of a REST API.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// It is no URL.
    #[error("it is no URL")]
    Url(#[from] url::ParseError),
    /// It does not begin with `http://`.
    #[error("only http:// is supported")]
    Scheme,
    /// It has no host.
    #[error("it has no host")]
    Host,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let url = url::Url::parse(text)?;
        if url.scheme() != "http" {
            return Err(EndpointError::Scheme);
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(EndpointError::Host)?;
        // Sockets take IPv6 addresses without their brackets.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        // A URL without a port means Patroni's here, not the web's; the parser hides `:80`.
        let port =
            if text.contains(":80/") || text.ends_with(":80") { 80 } else { url.port().unwrap_or(PORT) };
        Ok(Self { host, port })
    }
}

/// Who `/cluster` says is the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    host: String,
    port: u16,
    api: Option<Endpoint>,
}

#[derive(Deserialize)]
struct Cluster {
    #[serde(default)]
    members: Vec<Value>,
}

/// Reads `/cluster`: whatever is not needed may be absent or of another type. `Ok(None)` when nobody leads, which is
/// so in a standby cluster, too: its leader takes no writes.
fn parse(body: &[u8]) -> Result<Option<Named>, serde_json::Error> {
    let cluster: Cluster = serde_json::from_slice(body)?;
    Ok(cluster.members.iter().find_map(leader))
}

fn leader(member: &Value) -> Option<Named> {
    // `master` before Patroni 4, in some answers.
    let role = member.get("role")?.as_str()?;
    if !matches!(role, "leader" | "primary" | "master") {
        return None;
    }
    let port = match member.get("port") {
        Some(Value::Number(port)) => u16::try_from(port.as_u64()?).ok()?,
        Some(Value::String(port)) => port.parse().ok()?,
        _ => 5432,
    };
    let api = member.get("api_url").and_then(Value::as_str).and_then(|url| url.parse().ok());
    Some(Named { host: member.get("host")?.as_str()?.to_owned(), port, api })
}

/// The leader that confirmed itself last.
struct Known {
    id: UpstreamId,
    api: Endpoint,
}

/// Asks again and again, and tells what was answered.
pub(super) async fn poll(endpoints: Vec<Endpoint>, topology: Arc<ArcSwap<Topology>>, tell: Teller) {
    let mut known: Option<Known> = None;
    let mut turn = 0;
    loop {
        let asked = Instant::now();
        let now = topology.load_full();
        let answer = ask(&endpoints, &mut turn, &mut known, &now).await;
        if tell.tell(Event::Patroni(answer)).await.is_err() {
            return;
        }
        let pause = if now.writes() == Writes::Open { QUIET } else { DOUBT };
        let spread = rand::random_range(80..=120);
        sleep_until(asked + pause * spread / 100).await;
    }
}

async fn ask(
    endpoints: &[Endpoint],
    turn: &mut usize,
    known: &mut Option<Known>,
    topology: &Topology,
) -> PatroniAnswer {
    if let Some(Known { id, api }) = known
        && topology.get(*id).is_some()
        && confirms(api).await == Some(Confirmation::Yes)
    {
        return PatroniAnswer::Confirmed(*id);
    }
    *known = None;
    for _ in 0..endpoints.len() {
        let Some(endpoint) = endpoints.get(*turn % endpoints.len()) else { break };
        match get(endpoint, "/cluster").await.map(|(_, body)| parse(&body)) {
            Ok(Ok(named)) => return confirm(named, known, topology).await,
            // The next one is asked, now and the next time.
            Ok(Err(_)) | Err(_) => *turn = turn.wrapping_add(1),
        }
    }
    PatroniAnswer::Unreachable
}

async fn confirm(named: Option<Named>, known: &mut Option<Known>, topology: &Topology) -> PatroniAnswer {
    let Some(named) = named else { return PatroniAnswer::Nobody };
    let Some(id) = find(&named, topology).await else {
        tracing::warn!(host = %named.host, port = named.port, "Patroni's leader is no configured upstream");
        return PatroniAnswer::Nobody;
    };
    let api = named.api.unwrap_or_else(|| Endpoint::new(named.host, PORT));
    match confirms(&api).await {
        Some(Confirmation::Yes) => {
            *known = Some(Known { id, api });
            PatroniAnswer::Confirmed(id)
        }
        Some(Confirmation::No) => PatroniAnswer::Nobody,
        None => PatroniAnswer::Named(id),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Confirmation {
    Yes,
    No,
}

async fn confirms(api: &Endpoint) -> Option<Confirmation> {
    let (status, _) = get(api, "/primary").await.ok()?;
    Some(if status == StatusCode::OK { Confirmation::Yes } else { Confirmation::No })
}

/// The configured server that is meant: by the same text, or else by the same address.
async fn find(named: &Named, topology: &Topology) -> Option<UpstreamId> {
    let tcp = || {
        topology.upstreams().iter().filter_map(|view| match &view.address {
            UpstreamAddress::Tcp { host, port } if *port == named.port => Some((view.id, host)),
            UpstreamAddress::Tcp { .. } | UpstreamAddress::Unix(_) => None,
        })
    };
    if let Some((id, _)) = tcp().find(|(_, host)| host.eq_ignore_ascii_case(&named.host)) {
        return Some(id);
    }
    let wanted = addresses(&named.host).await;
    for (id, host) in tcp() {
        if addresses(host).await.iter().any(|address| wanted.contains(address)) {
            return Some(id);
        }
    }
    None
}

async fn addresses(host: &str) -> Vec<IpAddr> {
    match timeout(BOUND, lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

async fn get(endpoint: &Endpoint, path: &str) -> io::Result<(StatusCode, Bytes)> {
    timeout(BOUND, request(endpoint, path)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

async fn request(endpoint: &Endpoint, path: &str) -> io::Result<(StatusCode, Bytes)> {
    let socket = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(io::Error::other)?;
    // Ends with this function.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get(path)
        .header(HOST, format!("{}:{}", endpoint.host, endpoint.port))
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), BODY_MAX).collect().await.map_err(io::Error::other)?;
    Ok((status, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::upstream::topology::{Epoch, Health, UpstreamView};

    const CLUSTER: &str = r#"{"members": [
        {"name": "a", "role": "replica", "state": "streaming", "host": "10.0.0.1", "port": 5432, "lag": "unknown"},
        {"name": "b", "role": "leader", "state": "running", "api_url": "http://10.0.0.2:8008/patroni",
         "host": "10.0.0.2", "port": 5433, "timeline": 4}], "scope": "x"}"#;

    #[test]
    fn the_leader_is_read_out_of_what_patroni_answers() {
        // The answer is that of Patroni 3; a field that is not needed must not decide whether the rest is read.
        let named = parse(CLUSTER.as_bytes()).unwrap().unwrap();

        assert_eq!((named.host.as_str(), named.port), ("10.0.0.2", 5433));
        assert_eq!(named.api, Some(Endpoint::new("10.0.0.2".to_owned(), 8008)));
    }

    #[test]
    fn odd_answers_are_read_as_far_as_they_go() {
        // Versions differ in types and in what they leave out; a panic or an error here would be an outage.
        let one = |member: &str| parse(format!("{{\"members\": [{member}]}}").as_bytes()).unwrap();

        assert_eq!(one(r#"{"role": "leader", "host": "h", "port": "6000"}"#).unwrap().port, 6000);
        assert_eq!(one(r#"{"role": "master", "host": "h"}"#).unwrap().port, 5432);
        assert_eq!(one(r#"{"role": "leader", "host": "h", "api_url": 7}"#).unwrap().api, None);
        assert_eq!(one(r#"{"role": "leader"}"#), None);
        assert_eq!(one(r#"{"role": "leader", "host": "h", "port": 70000}"#), None);
        assert_eq!(one("7"), None);
        assert_eq!(parse(b"{}").unwrap(), None);
        assert!(parse(b"[").is_err());
    }

    #[test]
    fn the_leader_of_a_standby_cluster_takes_no_writes() {
        // Taken for the primary it would get writes and answer each with 25006.
        let body = CLUSTER.replace("leader", "standby_leader");

        assert_eq!(parse(body.as_bytes()).unwrap(), None);
    }

    #[test]
    fn endpoints_are_parsed_with_patronis_port_as_the_default() {
        // Port 80 is what a URL means; nobody's Patroni is there unless it is written out.
        for (text, host, port) in [
            ("http://10.0.0.1", "10.0.0.1", 8008),
            ("http://10.0.0.1:80/", "10.0.0.1", 80),
            ("http://[::1]:8009", "::1", 8009),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap(), Endpoint::new(host.to_owned(), port), "{text}");
        }
        assert!(matches!("https://h".parse::<Endpoint>(), Err(EndpointError::Scheme)));
        assert!("10.0.0.1:8008".parse::<Endpoint>().is_err());
    }

    /// Answers each request by its path, and notes it.
    async fn patroni(
        answer: impl Fn(&str) -> (u16, String) + Send + 'static,
    ) -> (Endpoint, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 4096];
                let n = socket.read(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
                let (status, body) = answer(&path);
                log.lock().unwrap().push(path);
                let reply = format!("HTTP/1.0 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                socket.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        (Endpoint::new("127.0.0.1".to_owned(), port), seen)
    }

    fn topology() -> Topology {
        let view = UpstreamView {
            id: UpstreamId(3),
            address: UpstreamAddress::Tcp { host: "10.0.0.2".to_owned(), port: 5433 },
            name: "10.0.0.2:5433".into(),
            role: None,
            epoch: Epoch(0),
            health: Health::Up,
            cause: None,
            fenced: None,
            lag: None,
            observed: None,
        };
        Topology::new(Epoch(0), vec![view], None, Writes::NoPrimary)
    }

    fn cluster_with_api(endpoint: u16) -> String {
        CLUSTER.replace("10.0.0.2:8008", &format!("127.0.0.1:{endpoint}"))
    }

    #[tokio::test]
    async fn a_leader_counts_when_it_confirms_itself_and_then_alone_is_asked() {
        // /cluster costs Patroni a look at its store for each sidecar; the leader's own word is enough and is fresher.
        let (leader, asked) = patroni(|_| (200, String::new())).await;
        let body = cluster_with_api(leader.port);
        let (member, asked_member) = patroni(move |_| (200, body.clone())).await;
        let dead = Endpoint::new("127.0.0.1".to_owned(), 1);
        let (mut turn, mut known) = (0, None);

        let endpoints = [dead, member];
        for _ in 0..3 {
            let answer = ask(&endpoints, &mut turn, &mut known, &topology()).await;
            assert_eq!(answer, PatroniAnswer::Confirmed(UpstreamId(3)));
        }

        assert_eq!(*asked_member.lock().unwrap(), ["/cluster"]);
        assert_eq!(*asked.lock().unwrap(), ["/primary", "/primary", "/primary"]);
    }

    #[tokio::test]
    async fn a_leader_that_denies_is_none_and_one_that_is_silent_is_only_named() {
        // A member cut off from the store still names the old leader; believing it would keep writes on a server that
        // demotes itself.
        let (denying, _) = patroni(|_| (503, String::new())).await;
        for (api, expected) in
            [(denying.port, PatroniAnswer::Nobody), (1, PatroniAnswer::Named(UpstreamId(3)))]
        {
            let body = cluster_with_api(api);
            let (member, _) = patroni(move |_| (200, body.clone())).await;

            assert_eq!(ask(&[member], &mut 0, &mut None, &topology()).await, expected);
        }
    }

    #[tokio::test]
    async fn without_any_answer_patroni_is_unreachable() {
        // Taken for "nobody leads" an outage of the API would end all writes.
        let (broken, _) = patroni(|_| (200, "<html>".to_owned())).await;
        let dead = Endpoint::new("127.0.0.1".to_owned(), 1);

        let answer = ask(&[dead, broken], &mut 0, &mut None, &topology()).await;

        assert_eq!(answer, PatroniAnswer::Unreachable);
    }
}
