//! Toxiproxy's HTTP API (its README, "HTTP API"), so that its clients can drive our relays.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Relay, Toxic};

/// The version whose API this is.
const VERSION: &str = "2.9.0";

/// A request is a few lines of JSON.
const BODY_LIMIT: usize = 1 << 20;

/// Relays by name.
#[derive(Debug, Default)]
pub struct Registry {
    relays: RwLock<BTreeMap<String, Arc<Relay>>>,
}

/// What clients send to create a relay.
#[derive(Debug, Clone, Deserialize, Serialize)]
struct Proxy {
    name: String,
    listen: String,
    upstream: String,
    #[serde(default = "yes")]
    enabled: bool,
}

fn yes() -> bool {
    true
}

/// An answer that is not a success.
#[derive(Debug)]
struct Refused(StatusCode, String);

type Answer = Result<(StatusCode, Value), Refused>;

/// Serves the API on this address, with no relays yet, until the process ends.
pub async fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    println!("Toxiproxy's API on http://{}", listener.local_addr()?);
    accept(listener, Arc::default()).await
}

/// Serves the API for these relays.
pub async fn accept(listener: TcpListener, registry: Arc<Registry>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let registry = Arc::clone(&registry);
        let service = service_fn(move |request| answer(request, Arc::clone(&registry)));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    request: Request<Incoming>,
    registry: Arc<Registry>,
) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_matches('/').to_owned();
    let outcome = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => registry.route(&parts.method, &path, &body.to_bytes()).await,
        Err(error) => Err(Refused(StatusCode::BAD_REQUEST, error.to_string())),
    };
    let (status, value) = outcome.unwrap_or_else(|Refused(status, why)| {
        (status, json!({"error": why, "title": why, "status": status.as_u16()}))
    });
    let body = if value.is_null() { String::new() } else { value.to_string() };
    Response::builder().status(status).header(CONTENT_TYPE, "application/json").body(Full::from(body))
}

impl Registry {
    /// Puts a relay under the API's control.
    pub fn add(&self, name: &str, relay: Arc<Relay>) {
        self.relays.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), relay);
    }

    fn all(&self) -> BTreeMap<String, Arc<Relay>> {
        self.relays.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn find(&self, name: &str) -> Result<Arc<Relay>, Refused> {
        let found = self.all().remove(name);
        found.ok_or_else(|| Refused(StatusCode::NOT_FOUND, "proxy not found".to_owned()))
    }

    async fn route(&self, method: &Method, path: &str, body: &[u8]) -> Answer {
        let parts: Vec<&str> = path.split('/').collect();
        let changes = *method == Method::POST || *method == Method::PATCH;
        match (method, parts.as_slice()) {
            (&Method::GET, ["version"]) => Ok((StatusCode::OK, json!({"version": VERSION}))),
            (&Method::GET, ["proxies"]) => {
                let all: BTreeMap<_, _> =
                    self.all().iter().map(|(name, relay)| (name.clone(), shown(name, relay))).collect();
                Ok((StatusCode::OK, json!(all)))
            }
            (&Method::POST, ["proxies"]) => {
                let created = self.create(parse(body)?, Existing::Refuse).await?;
                Ok((StatusCode::CREATED, created))
            }
            (&Method::POST, ["populate"]) => self.populate(parse(body)?).await,
            (&Method::POST, ["reset"]) => {
                for relay in self.all().values() {
                    relay.change(|settings| *settings = super::Settings::default());
                }
                Ok((StatusCode::NO_CONTENT, Value::Null))
            }
            (&Method::GET, ["proxies", name]) => Ok((StatusCode::OK, shown(name, self.find(name)?.as_ref()))),
            (_, ["proxies", name]) if changes => self.change(name, &parse(body)?).await,
            (&Method::DELETE, ["proxies", name]) => {
                self.find(name)?;
                self.relays.write().unwrap_or_else(PoisonError::into_inner).remove(*name);
                Ok((StatusCode::NO_CONTENT, Value::Null))
            }
            (_, ["proxies", name, "toxics", rest @ ..]) => {
                toxics(self.find(name)?.as_ref(), method, rest.first().copied(), body)
            }
            _ => Err(Refused(StatusCode::NOT_FOUND, "no such page".to_owned())),
        }
    }

    async fn create(&self, proxy: Proxy, existing: Existing) -> Result<Value, Refused> {
        if let Some(known) = self.all().get(&proxy.name) {
            let same = known.upstream() == resolve(&proxy.upstream)?;
            return match existing {
                Existing::Keep if same => Ok(shown(&proxy.name, known)),
                Existing::Keep | Existing::Refuse => {
                    Err(Refused(StatusCode::CONFLICT, "proxy already exists".to_owned()))
                }
            };
        }
        let (listen, upstream) = (resolve(&proxy.listen)?, resolve(&proxy.upstream)?);
        let relay = Relay::start(listen, upstream).await.map_err(internal)?;
        relay.enable(proxy.enabled);
        let relay = Arc::new(relay);
        let created = shown(&proxy.name, &relay);
        self.add(&proxy.name, relay);
        Ok(created)
    }

    async fn populate(&self, proxies: Vec<Proxy>) -> Answer {
        let mut all = Vec::new();
        for proxy in proxies {
            all.push(self.create(proxy, Existing::Keep).await?);
        }
        Ok((StatusCode::CREATED, json!({"proxies": all})))
    }

    /// A relay keeps its sockets unless an address really changes.
    async fn change(&self, name: &str, wanted: &Value) -> Answer {
        let relay = self.find(name)?;
        let text = |field: &str| wanted.get(field).and_then(Value::as_str).map(resolve).transpose();
        let listen = text("listen")?.unwrap_or(relay.address());
        let upstream = text("upstream")?.unwrap_or(relay.upstream());
        let enabled = wanted.get("enabled").and_then(Value::as_bool).unwrap_or(relay.settings().enabled);
        let relay = if (listen, upstream) == (relay.address(), relay.upstream()) {
            relay
        } else {
            let settings = relay.settings();
            self.relays.write().unwrap_or_else(PoisonError::into_inner).remove(name);
            // The old one must let go of its port first.
            relay.enable(false);
            drop(relay);
            tokio::task::yield_now().await;
            let moved = Arc::new(Relay::start(listen, upstream).await.map_err(internal)?);
            moved.change(|fresh| fresh.clone_from(&settings));
            self.add(name, Arc::clone(&moved));
            moved
        };
        relay.enable(enabled);
        Ok((StatusCode::OK, shown(name, &relay)))
    }
}

/// What to do about a relay that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    Keep,
    Refuse,
}

fn toxics(relay: &Relay, method: &Method, name: Option<&str>, body: &[u8]) -> Answer {
    let settings = relay.settings();
    let known = |name: &str| {
        let found = settings.toxics.iter().find(|toxic| toxic.name == name).cloned();
        found.ok_or_else(|| Refused(StatusCode::NOT_FOUND, "toxic not found".to_owned()))
    };
    match (method, name) {
        (&Method::GET, None) => Ok((StatusCode::OK, json!(settings.toxics))),
        (&Method::POST, None) => {
            let mut toxic: Toxic = parse(body)?;
            if toxic.name.is_empty() {
                toxic.name = toxic.default_name();
            }
            if settings.toxics.iter().any(|other| other.name == toxic.name) {
                return Err(Refused(StatusCode::CONFLICT, "toxic already exists".to_owned()));
            }
            relay.add(toxic.clone());
            Ok((StatusCode::OK, json!(toxic)))
        }
        (&Method::GET, Some(name)) => Ok((StatusCode::OK, json!(known(name)?))),
        (&Method::POST | &Method::PATCH, Some(name)) => {
            let mut wanted = json!(known(name)?);
            overlay(&mut wanted, parse(body)?);
            let toxic: Toxic = serde_json::from_value(wanted).map_err(|error| bad(&error))?;
            relay.add(toxic.clone());
            Ok((StatusCode::OK, json!(toxic)))
        }
        (&Method::DELETE, Some(name)) => {
            known(name)?;
            relay.remove(name);
            Ok((StatusCode::NO_CONTENT, Value::Null))
        }
        _ => Err(Refused(StatusCode::METHOD_NOT_ALLOWED, "no such operation".to_owned())),
    }
}

/// An update says only what changes: toxicity, and attributes.
fn overlay(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (name, value) in above {
                overlay(below.entry(name).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

fn shown(name: &str, relay: &Relay) -> Value {
    let settings = relay.settings();
    json!({
        "name": name,
        "listen": relay.address().to_string(),
        "upstream": relay.upstream().to_string(),
        "enabled": settings.enabled,
        "toxics": settings.toxics,
    })
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|error| bad(&error))
}

fn bad(error: &serde_json::Error) -> Refused {
    Refused(StatusCode::BAD_REQUEST, format!("bad request body: {error}"))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn internal(error: io::Error) -> Refused {
    Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// `host:port`; an empty host, as in `:26379`, is loopback.
fn resolve(address: &str) -> Result<SocketAddr, Refused> {
    let full = if address.starts_with(':') { format!("127.0.0.1{address}") } else { address.to_owned() };
    let found = full.to_socket_addrs().ok().and_then(|mut all| all.next());
    found.ok_or_else(|| Refused(StatusCode::BAD_REQUEST, format!("not an address: {address}")))
}
