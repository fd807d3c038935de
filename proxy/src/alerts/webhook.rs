//! One receiver, and one attempt to reach it.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use thiserror::Error;

use super::format;
use super::incident::{Message, Receiver};
use super::outbox::Delivery;
use crate::config::{Password, Webhook, WebhookKind};
use crate::tls::{TlsError, web_client_config};

/// From the look-up of the name to the status line.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);

/// Speaks HTTP/1.1, with TLS for `https://`. No redirects, no kept connections: a message a quarter needs none,
/// and one that died unseen would cost an attempt.
#[derive(Debug, Clone)]
pub(super) struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

/// Why an attempt failed. Names no URL: they hold tokens.
#[derive(Debug, Error)]
pub(super) enum HttpError {
    /// No status line within the deadline.
    #[error("no answer within {DEADLINE:?}")]
    Timeout,
    /// No connection, or a broken one.
    #[error("the connection failed")]
    Connection(#[from] hyper_util::client::legacy::Error),
    /// Not 2xx.
    #[error("answered {0}")]
    Status(StatusCode),
    /// The request cannot be written.
    #[error("the request is not valid")]
    Request(#[from] hyper::http::Error),
}

impl Http {
    /// A client that trusts the system's authorities.
    pub(super) fn new() -> Result<Self, TlsError> {
        let tls = HttpsConnectorBuilder::new().with_tls_config(web_client_config()?);
        let connector = tls.https_or_http().enable_http1().build();
        Ok(Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector)))
    }

    /// A request, to be answered with 2xx within [`DEADLINE`].
    async fn call(&self, request: Request<Full<Bytes>>) -> Result<(), HttpError> {
        let answer = tokio::time::timeout(DEADLINE, self.0.request(request)).await;
        let status = answer.map_err(|_| HttpError::Timeout)??.status();
        if status.is_success() { Ok(()) } else { Err(HttpError::Status(status)) }
    }

    /// GET.
    pub(super) async fn get(&self, url: &Password) -> Result<(), HttpError> {
        let request = Request::get(url.reveal()).header(USER_AGENT, AGENT);
        self.call(request.body(Full::default())?).await
    }
}

const AGENT: &str = concat!("tidegate/", env!("CARGO_PKG_VERSION"));

/// A webhook, ready to be called.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// By what messages name it.
    pub(super) receiver: Receiver,
    kind: WebhookKind,
    url: Password,
    routing_key: Option<Password>,
    authorization: Option<Password>,
    /// The part of the URL that may be logged.
    host: String,
}

impl Endpoint {
    pub(super) fn new(webhook: &Webhook) -> Self {
        let host = webhook.url.reveal().parse::<Uri>().ok();
        let host = host.and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
        Self {
            receiver: receiver(webhook),
            kind: webhook.kind,
            url: target(webhook),
            routing_key: webhook.routing_key.clone(),
            authorization: webhook.authorization.clone(),
            host,
        }
    }

    /// The word for metrics.
    pub(super) fn kind(&self) -> &'static str {
        self.kind.word()
    }

    /// The part of the URL that may be logged.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// One attempt.
    pub(super) async fn deliver(
        &self,
        http: &Http,
        instance: &str,
        message: &Message,
    ) -> Result<(), HttpError> {
        let body = format::body(self.kind, self.routing_key.as_ref(), instance, message).to_string();
        let mut request = Request::builder().method(Method::POST).uri(self.url.reveal());
        request = request.header(CONTENT_TYPE, "application/json").header(USER_AGENT, AGENT);
        if let Some(authorization) = &self.authorization {
            let mut value =
                HeaderValue::try_from(authorization.reveal()).map_err(hyper::http::Error::from)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        http.call(request.body(Full::from(body))?).await
    }
}

impl HttpError {
    /// What the outbox has to know.
    pub(super) fn delivery(&self) -> Delivery {
        match self {
            Self::Status(StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) => Delivery::Failed,
            Self::Status(status) if status.is_client_error() || status.is_redirection() => Delivery::Refused,
            Self::Request(_) => Delivery::Refused,
            Self::Timeout | Self::Connection(_) | Self::Status(_) => Delivery::Failed,
        }
    }
}

/// Alertmanager is known by its root, the others by the URL that they give out.
fn target(webhook: &Webhook) -> Password {
    let url = webhook.url.reveal();
    let rooted = webhook.kind == WebhookKind::Alertmanager && !url.ends_with("/alerts");
    Password::new(if rooted {
        format!("{}/api/v2/alerts", url.trim_end_matches('/'))
    } else {
        url.to_owned()
    })
}

/// 16 hexadecimal digits of SHA-256: enough to tell a few webhooks apart, too few to find the URL.
fn receiver(webhook: &Webhook) -> Receiver {
    let routing_key = webhook.routing_key.as_ref().map_or("", Password::reveal);
    let text = format!("{}\0{}\0{routing_key}", webhook.kind.word(), webhook.url.reveal());
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let mut name = String::new();
    for byte in digest.as_ref().iter().take(8) {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    Receiver(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(url: &str, kind: WebhookKind) -> Webhook {
        Webhook { url: Password::new(url.to_owned()), kind, routing_key: None, authorization: None }
    }

    #[test]
    fn alertmanager_is_found_from_its_root() {
        // Operators know the address of its page; the API lies below.
        for (url, kind, to) in [
            ("http://am:9093", WebhookKind::Alertmanager, "http://am:9093/api/v2/alerts"),
            ("http://am/prefix/", WebhookKind::Alertmanager, "http://am/prefix/api/v2/alerts"),
            ("http://am/api/v2/alerts", WebhookKind::Alertmanager, "http://am/api/v2/alerts"),
            ("https://x/hook", WebhookKind::Json, "https://x/hook"),
        ] {
            assert_eq!(target(&webhook(url, kind)).reveal(), to);
        }
    }

    #[test]
    fn a_receiver_is_known_again_and_its_url_is_not_shown() {
        // The name stands in a file, and must be the same after a restart.
        let one = receiver(&webhook("https://hooks/T0KEN", WebhookKind::Slack));

        assert_eq!(one, receiver(&webhook("https://hooks/T0KEN", WebhookKind::Slack)));
        assert_ne!(one, receiver(&webhook("https://hooks/OTHER", WebhookKind::Slack)));
        let shown = format!("{:?}", Endpoint::new(&webhook("https://hooks/T0KEN", WebhookKind::Slack)));
        assert!(!shown.contains("T0KEN") && shown.contains("hooks"), "{shown}");
    }

    #[test]
    fn answers_that_nobody_but_a_human_can_change_are_refusals() {
        // 429 and 5xx pass by themselves; 401 and 404 do not.
        for (status, delivery) in [
            (500, Delivery::Failed),
            (429, Delivery::Failed),
            (408, Delivery::Failed),
            (401, Delivery::Refused),
            (301, Delivery::Refused),
        ] {
            assert_eq!(HttpError::Status(StatusCode::from_u16(status).unwrap()).delivery(), delivery);
        }
    }
}
