//! `--upstream`: a connection URL in libpq's form, or plain `host:port`.
//!
//! See "Connection URIs" in PostgreSQL's documentation of libpq. No error repeats the URL: it may
//! hold a password.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use url::Url;

use super::address::{self, AddressError, POSTGRES_PORT};
use super::{Password, UpstreamAddress};

/// What one URL says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct UpstreamUrl {
    pub(super) address: Option<UpstreamAddress>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Password>,
    pub(super) database: Option<String>,
    pub(super) sslmode: Option<String>,
    pub(super) ca: Option<String>,
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
}

/// Why a URL is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UrlError {
    /// Its shape is wrong.
    #[error("this is no postgres://user:password@host:port/database URL and no host:port")]
    Shape,
    /// Percent-encoding that gives no UTF-8 text.
    #[error("a percent-encoded part is not UTF-8 text")]
    Encoding,
    /// Several hosts in one URL.
    #[error("one URL names one server; repeat --upstream for more")]
    SeveralHosts,
    /// The address in it is wrong.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A parameter that has no meaning here.
    #[error(
        "unknown parameter `{0}`; known are sslmode, sslrootcert, sslcert, sslkey, host, port, user, password, dbname"
    )]
    Parameter(String),
}

/// Parses one value of `--upstream`.
pub(super) fn parse(text: &str) -> Result<UpstreamUrl, UrlError> {
    if !text.contains("://") {
        let address = Some(address::upstream(text, Path::new(""))?);
        return Ok(UpstreamUrl { address, ..UpstreamUrl::default() });
    }
    let url = Url::parse(&with_host(text)).map_err(|_| UrlError::Shape)?;
    if !matches!(url.scheme(), "postgres" | "postgresql") || url.fragment().is_some() {
        return Err(UrlError::Shape);
    }
    let mut parts = Parts { port: url.port(), ..Parts::default() };
    let host = decode(url.host_str().unwrap_or_default())?;
    parts.host = (!host.is_empty()).then_some(host);
    parts.found.user = non_empty(decode(url.username())?);
    parts.found.password = url.password().map(decode).transpose()?.map(Password::new);
    parts.found.database = non_empty(decode(url.path().trim_start_matches('/'))?);
    for pair in url.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or(UrlError::Shape)?;
        parts.set(name, decode(value)?)?;
    }
    parts.finish()
}

/// libpq lets the host be left out before a port or a path; a URL of WHATWG's kind does not.
fn with_host(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (user, host) = authority.rsplit_once('@').map_or(("", authority), |(user, host)| (user, host));
    let at = if authority.contains('@') { "@" } else { "" };
    let missing = if host.is_empty() || host.starts_with(':') { "localhost" } else { "" };
    format!("{scheme}://{user}{at}{missing}{host}{tail}")
}

#[derive(Default)]
struct Parts {
    host: Option<String>,
    port: Option<u16>,
    found: UpstreamUrl,
}

impl Parts {
    fn set(&mut self, name: &str, value: String) -> Result<(), UrlError> {
        match name {
            "host" => self.host = Some(value),
            "port" => self.port = Some(value.parse().map_err(|_| AddressError::Port)?),
            "user" => self.found.user = Some(value),
            "password" => self.found.password = Some(Password::new(value)),
            "dbname" => self.found.database = Some(value),
            "sslmode" => self.found.sslmode = Some(value),
            "sslrootcert" => self.found.ca = Some(value),
            "sslcert" => self.found.cert = Some(value),
            "sslkey" => self.found.key = Some(value),
            _ => return Err(UrlError::Parameter(name.to_owned())),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<UpstreamUrl, UrlError> {
        let host = self.host.unwrap_or_else(|| "localhost".to_owned());
        let port = self.port.unwrap_or(POSTGRES_PORT);
        if host.contains(',') {
            return Err(UrlError::SeveralHosts);
        }
        self.found.address = Some(if host.starts_with('/') {
            UpstreamAddress::Unix(address::socket_path(&host, &PathBuf::new(), port)?)
        } else {
            address::host_and_port(host.trim_start_matches('[').trim_end_matches(']'), port)?
        });
        Ok(self.found)
    }
}

fn decode(text: &str) -> Result<String, UrlError> {
    percent_decode_str(text).decode_utf8().map(std::borrow::Cow::into_owned).map_err(|_| UrlError::Encoding)
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
