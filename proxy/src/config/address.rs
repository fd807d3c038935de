//! Addresses as operators write them: `host:port`, `[::1]:port`, `unix:/folder:port`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::{ListenAddress, UpstreamAddress};

/// What applications connect to unless told otherwise; `PgBouncer`'s port.
pub(super) const LISTEN_PORT: u16 = 6432;
/// The control plane's port.
pub(super) const ADMIN_PORT: u16 = 6433;
/// PostgreSQL's port, as registered with IANA.
pub(super) const POSTGRES_PORT: u16 = 5432;
/// Bytes of a socket path: `sun_path` of unix(7) has 108 with the closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The start of a socket's name (PostgreSQL, `UNIXSOCK_PATH` in `src/include/libpq/pqcomm.h`).
const SOCKET_NAME: &str = ".s.PGSQL.";

/// Why a text is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressError {
    /// Nothing is there.
    #[error("the address is empty")]
    Empty,
    /// The port is no number from 0 (from 1 for an upstream) to 65535.
    #[error("the port must be a number up to 65535")]
    Port,
    /// A name where only an IP address will do.
    #[error("we listen on an IP address or `localhost`, not on a name")]
    Name,
    /// An IPv6 address that cannot be told from its port.
    #[error("an IPv6 address needs brackets, as in [::1]:5432")]
    Brackets,
    /// A URL.
    #[error("a URL stands only in --upstream; here it is host:port")]
    Url,
    /// Characters that no host name has.
    #[error("this is no host name")]
    Host,
    /// A path that the kernel would refuse.
    #[error("the path of a unix socket has at most 107 bytes")]
    PathTooLong,
}

/// Parses all listen addresses. A unix folder takes the port of the first TCP address for its socket's name.
pub(super) fn listen(texts: &[String], base: &Path) -> Result<Vec<ListenAddress>, (String, AddressError)> {
    let first_port = texts
        .iter()
        .filter(|text| !text.starts_with("unix:"))
        .find_map(|text| bind(text, LISTEN_PORT).ok())
        .map_or(LISTEN_PORT, |address| address.port());
    let port = if first_port == 0 { LISTEN_PORT } else { first_port };
    let one = |text: &String| match text.strip_prefix("unix:") {
        Some(path) => socket_path(path, base, port).map(ListenAddress::Unix),
        None => bind(text, LISTEN_PORT).map(ListenAddress::Tcp),
    };
    texts.iter().map(|text| one(text).map_err(|error| (text.clone(), error))).collect()
}

/// Parses an address to bind to. Looks up no names: a sidecar that binds what DNS says is a surprise.
pub(super) fn bind(text: &str, default_port: u16) -> Result<SocketAddr, AddressError> {
    let (host, port) = split(text, default_port)?;
    let ip = match host {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        "" => return Err(AddressError::Empty),
        _ => host.parse().map_err(|_| AddressError::Name)?,
    };
    Ok(SocketAddr::new(ip, port))
}

/// Parses the address of a server.
pub(super) fn upstream(text: &str, base: &Path) -> Result<UpstreamAddress, AddressError> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path, base, POSTGRES_PORT).map(UpstreamAddress::Unix);
    }
    if text.contains("://") {
        return Err(AddressError::Url);
    }
    let (host, port) = split(text, POSTGRES_PORT)?;
    host_and_port(host, port)
}

/// Checks the two parts of the address of a server.
pub(super) fn host_and_port(host: &str, port: u16) -> Result<UpstreamAddress, AddressError> {
    if host.is_empty() {
        return Err(AddressError::Empty);
    }
    if port == 0 {
        return Err(AddressError::Port);
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if host.parse::<IpAddr>().is_err() && !host.bytes().all(plain) && !is_scoped(host) {
        return Err(AddressError::Host);
    }
    Ok(UpstreamAddress::Tcp { host: host.to_owned(), port })
}

/// An IPv6 address with a zone (RFC 4007), `fe80::1%eth0`.
fn is_scoped(host: &str) -> bool {
    host.split_once('%')
        .is_some_and(|(ip, zone)| ip.parse::<std::net::Ipv6Addr>().is_ok() && !zone.is_empty())
}

fn split(text: &str, default_port: u16) -> Result<(&str, u16), AddressError> {
    if text.is_empty() {
        return Err(AddressError::Empty);
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        rest.split_once(']').ok_or(AddressError::Brackets)?
    } else {
        if text.matches(':').count() > 1 {
            return Err(AddressError::Brackets);
        }
        text.split_at(text.find(':').unwrap_or(text.len()))
    };
    match port.strip_prefix(':') {
        Some(number) => Ok((host, parse_port(number)?)),
        None if port.is_empty() => Ok((host, default_port)),
        None => Err(AddressError::Port),
    }
}

fn parse_port(text: &str) -> Result<u16, AddressError> {
    // `u16::from_str` would take "+5432".
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AddressError::Port);
    }
    text.parse().map_err(|_| AddressError::Port)
}

/// The whole path of a socket, given a folder with or without a port, or the whole path already.
pub(super) fn socket_path(text: &str, base: &Path, default_port: u16) -> Result<PathBuf, AddressError> {
    if text.is_empty() {
        return Err(AddressError::Empty);
    }
    let named = |path: &Path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(SOCKET_NAME))
    };
    let path = if named(Path::new(text)) {
        base.join(text)
    } else {
        let (folder, port) = match text.rsplit_once(':') {
            Some((folder, number)) => (folder, parse_port(number)?),
            None => (text, default_port),
        };
        base.join(folder).join(format!("{SOCKET_NAME}{port}"))
    };
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(AddressError::PathTooLong);
    }
    Ok(path)
}
