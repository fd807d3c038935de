//! `tidegate status`: asks a running sidecar and shows the answer in a terminal.

use std::io::{self, IsTerminal as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;

use super::terminal::{self, Paint};
use super::{LaneState, Status};
use crate::cli::{Options, StatusOptions};
use crate::config::Config;

/// How long a question may take. The control plane answers in milliseconds, or something is very wrong.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// More than any document has.
const BODY_MAX: usize = 16 * 1024 * 1024;
const DEFAULT: &str = "127.0.0.1:6433";

/// Exit code when a lane is not served.
const NOT_SERVED: u8 = 3;

/// Why a sidecar cannot be asked.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody is there.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// It does not answer in time.
    #[error("no answer within {TIMEOUT:?}")]
    Timeout,
    /// The connection broke, or what came is no HTTP.
    #[error("no answer")]
    Http(#[from] hyper::Error),
    /// The request cannot be made.
    #[error("this is no address for HTTP")]
    Address(#[from] hyper::http::Error),
    /// It answered something else.
    #[error("it answers with status {0}")]
    Refused(u16),
    /// The body is too long or torn.
    #[error("the answer is torn")]
    Torn(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The body is not the document.
    #[error("the answer is not the state of a sidecar")]
    Format(#[from] serde_json::Error),
}

/// 0: both lanes are served. 1: it cannot be asked. 2: the configuration that should name its address is refused.
/// 3: a lane is not served.
pub fn run(options: &Options, how: StatusOptions) -> ExitCode {
    let address = match address(options) {
        Ok(address) => address,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(show(&address, how))
}

async fn show(address: &str, how: StatusOptions) -> ExitCode {
    let paint = Paint::for_terminal(io::stdout().is_terminal(), std::env::var_os("NO_COLOR").as_deref());
    loop {
        let answer = ask(address).await;
        let mut text = String::new();
        if how.watch && !how.json && paint == Paint::Colours {
            // Home, and erase what was there.
            text.push_str("\x1b[H\x1b[2J");
        }
        let code = match &answer {
            Ok(status) => {
                if how.json {
                    text.push_str(&super::board::json(status));
                    text.push('\n');
                } else {
                    text.push_str(&terminal::render(status, paint));
                }
                exit_code(status)
            }
            Err(error) => {
                eprintln!("error: {address}: {}", crate::server::describe(error));
                ExitCode::FAILURE
            }
        };
        let mut out = io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() || !how.watch {
            return code;
        }
        drop(out);
        tokio::time::sleep(PERIOD).await;
    }
}

fn exit_code(status: &Status) -> ExitCode {
    let refuses = status.lanes.each().iter().any(|(_, lane)| lane.state == LaneState::Refusing);
    if refuses || status.paused || status.draining { ExitCode::from(NOT_SERVED) } else { ExitCode::SUCCESS }
}

/// Asks for the document.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(address: &str) -> Result<Status, AskError> {
    let body = tokio::time::timeout(TIMEOUT, get(address)).await.map_err(|_| AskError::Timeout)??;
    Ok(serde_json::from_slice(&body)?)
}

async fn get(address: &str) -> Result<Bytes, AskError> {
    let stream = TcpStream::connect(address).await.map_err(AskError::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::get("/status").header(HOST, address).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        return Err(AskError::Refused(response.status().as_u16()));
    }
    let body =
        Limited::new(response.into_body(), BODY_MAX).collect().await.map_err(AskError::Torn)?.to_bytes();
    connection.abort();
    Ok(body)
}

/// Where to ask: `--admin`, else what the configuration or the environment says, else the default.
fn address(options: &Options) -> Result<String, crate::config::ConfigErrors> {
    if let Some(admin) = &options.admin {
        return Ok(with_port(admin));
    }
    if options.config.is_some() {
        return Ok(reachable(Config::load(&options.sources())?.admin.address).to_string());
    }
    let variable = std::env::var("TIDEGATE_ADMIN_ADDRESS").ok().filter(|text| !text.is_empty());
    Ok(variable.map_or_else(|| DEFAULT.to_owned(), |text| with_port(&text)))
}

fn with_port(text: &str) -> String {
    let has_port = text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let address = if has_port { text.to_owned() } else { format!("{text}:6433") };
    address.parse().map_or(address, |socket| reachable(socket).to_string())
}

/// What listens on every address is asked on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_listened_on_can_be_asked() {
        // 0.0.0.0 is where one listens, not where one connects.
        assert_eq!(with_port("0.0.0.0:7000"), "127.0.0.1:7000");
        assert_eq!(with_port("[::]:7000"), "[::1]:7000");
        assert_eq!(with_port("127.0.0.1"), "127.0.0.1:6433");
        assert_eq!(with_port("db-proxy:6000"), "db-proxy:6000");
    }

    #[test]
    fn scripts_can_tell_a_refusing_lane_from_a_healthy_sidecar() {
        // A deploy script that waits for exit 0 must not go on into an outage.
        let mut status = Status::default();
        assert_eq!(exit_code(&status), ExitCode::SUCCESS);

        status.lanes.write.state = LaneState::Recovering;
        assert_eq!(exit_code(&status), ExitCode::SUCCESS);
        status.lanes.write.state = LaneState::Refusing;
        assert_eq!(exit_code(&status), ExitCode::from(NOT_SERVED));
    }
}
