//! Opening a backend: address, TCP, TLS, startup and authentication.
//!
//! The caller bounds all of it with one deadline: a server that accepts and then says nothing must not hold
//! a place for longer than that.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::cancel::Peer;
use super::{Backend, CancelTarget, Prepared, ServerError, Settings};
use crate::auth::scram::{Binding, ClientCredential, Cost, KeyCache, ScramClient, ServerProof};
use crate::auth::{Credential, Md5Digest, ScramError};
use crate::clock;
use crate::config::{SslMode, UpstreamAddress};
use crate::io::socket::Keepalive;
use crate::io::{Buffer, Socket, Stream};
use crate::outcome::token;
use crate::tls::{ClientTls, TlsError, upstream_binding};
use crate::wire::backend::auth as code;
use crate::wire::frame::{put_cstr, put_frame};
use crate::wire::{Header, SqlState, TransactionStatus, WireError, backend as tag, frontend, startup};

/// Dead servers are found in seconds: 5 s of silence, then three probes 2 s apart; unacknowledged data for
/// 5 s. The kernel's defaults are two hours and a quarter of an hour.
pub const KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(5),
    interval: Duration::from_secs(2),
    count: 3,
    user_timeout: Duration::from_secs(5),
};

/// Makes the server notice as soon that *we* are gone, so that no lock outlives a lost sidecar for long.
const OPTIONS: &str = "-c tcp_keepalives_idle=2 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=3 \
                       -c tcp_user_timeout=5000 -c client_connection_check_interval=1s";

/// The same for servers before PostgreSQL 14, which do not know the last one.
const OPTIONS_BEFORE_14: &str = "-c tcp_keepalives_idle=2 -c tcp_keepalives_interval=1 \
                                 -c tcp_keepalives_count=3 -c tcp_user_timeout=5000";

/// Linux takes a SYN for lost after a second, and the next one after three: whoever connects while a way comes back would
/// be late by that.
const DIAL_AGAIN: Duration = Duration::from_millis(250);

/// Messages of a server during login that we take, at most this long.
const MAX_LOGIN_MESSAGE_LEN: usize = 64 * 1024;

/// Opens connections to one server.
#[derive(Debug)]
pub struct Connector {
    /// Where it is.
    pub address: UpstreamAddress,
    /// Whether to ask for TLS.
    pub ssl_mode: SslMode,
    /// How; `None` when `ssl_mode` is `Disable`.
    pub tls: Option<Arc<ClientTls>>,
    /// Keys derived from passwords, so that only the first login pays for the derivation.
    pub keys: Arc<KeyCache>,
}

/// Who logs in.
#[derive(Debug, Clone)]
pub struct Login {
    /// User.
    pub user: String,
    /// Database.
    pub database: String,
    /// Value of the startup parameter `replication`, for a walsender connection.
    pub replication: Option<String>,
    /// Whose connection it is, for operators who look at `pg_stat_activity`.
    pub application_name: Option<&'static str>,
    /// What we can prove.
    pub credential: Credential,
}

/// Why a connection could not be opened.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The host name has no address.
    #[error("cannot resolve the host name")]
    Resolve(#[source] io::Error),
    /// No address answered.
    #[error("cannot connect")]
    Unreachable(#[source] io::Error),
    /// The connection broke during login.
    #[error("connection lost during login")]
    Lost(#[from] io::Error),
    /// All of it took longer than `timeouts.connect`.
    #[error("no complete login within the connect timeout")]
    Timeout,
    /// TLS is demanded and the server has none.
    #[error("the server does not support TLS, and cluster.tls demands it")]
    TlsUnsupported,
    /// TLS could not be set up.
    #[error("TLS could not be set up")]
    Tls(#[source] TlsError),
    /// The TLS handshake failed.
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The server refused the login.
    #[error("the server refused the login: {0}")]
    Server(ServerError),
    /// The server asks for a proof that we do not have.
    #[error("the server asks for {0}, and no suitable secret of the user is known")]
    NoCredential(&'static str),
    /// SCRAM failed on our side.
    #[error("SCRAM authentication failed")]
    Scram(#[from] ScramError),
    /// The server broke the protocol.
    #[error("the server broke the protocol")]
    Protocol(#[from] WireError),
    /// The connection was there, and broke or fell silent before it was as the session needs it.
    #[error("it broke or fell silent while the settings of the session were sent to it")]
    Unsettled,
}

impl ConnectError {
    /// What failed, and why, in one line.
    pub fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }

    /// Whether trying again would end the same way until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Server(error) => matches!(&error.code.class(), b"28" | b"3D" | b"42"),
            Self::NoCredential(_) | Self::Scram(_) | Self::TlsUnsupported | Self::Tls(_) => true,
            // What rustls refuses (a wrong name, an unknown authority) it refuses again.
            Self::Handshake(error) => error.kind() == io::ErrorKind::InvalidData,
            Self::Resolve(_)
            | Self::Unreachable(_)
            | Self::Lost(_)
            | Self::Timeout
            | Self::Protocol(_)
            | Self::Unsettled => false,
        }
    }
}

/// Whether a connection starts with TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encryption {
    None,
    IfOffered,
    Demanded,
}

impl Connector {
    /// Opens a connection and logs in. `lifetime` is until [`Backend::retire_at_ms`]; `reached` is called when the
    /// handshake of TCP is done.
    ///
    /// # Errors
    /// See [`ConnectError`].
    ///
    /// # Cancel safety
    /// Dropping it closes the socket; the server may have seen a login that came to nothing.
    pub async fn connect(
        &self,
        login: &Login,
        worker: usize,
        lifetime: Duration,
        reached: &(dyn Fn() + Sync),
    ) -> Result<Backend, ConnectError> {
        let mut encryption = match self.ssl_mode {
            SslMode::Disable | SslMode::Allow => Encryption::None,
            SslMode::Prefer => Encryption::IfOffered,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Encryption::Demanded,
        };
        let mut options = OPTIONS;
        loop {
            let error = match self.attempt(login, encryption, options, reached).await {
                Ok(handshake) => return Ok(handshake.into_backend(worker, lifetime)),
                Err(error) => error,
            };
            match (self.other_way(encryption, &error), &error) {
                (Some(other), _) => {
                    tracing::debug!(address = %self.address, error = error.in_full(), "trying the other way, TLS or plain");
                    encryption = other;
                }
                (None, ConnectError::Server(refused))
                    if refused.code == SqlState::UNDEFINED_OBJECT && options == OPTIONS =>
                {
                    options = OPTIONS_BEFORE_14;
                }
                (None, _) => return Err(error),
            }
        }
    }

    /// What else to try when an attempt with this encryption failed, as libpq does. There is no way back.
    fn other_way(&self, encryption: Encryption, error: &ConnectError) -> Option<Encryption> {
        // A server that has TLS may have a rule for plain connections only, or the reverse.
        let is_denied =
            matches!(error, ConnectError::Server(refused) if refused.code == SqlState::INVALID_AUTHORIZATION);
        match (self.ssl_mode, encryption) {
            (SslMode::Allow, Encryption::None) if is_denied && self.tls.is_some() => {
                Some(Encryption::Demanded)
            }
            (SslMode::Prefer, Encryption::IfOffered)
                if is_denied || matches!(error, ConnectError::Handshake(_)) =>
            {
                Some(Encryption::None)
            }
            _ => None,
        }
    }

    /// Whether `PostgreSQL` is there and answers. It forks a process for that, as for a login.
    ///
    /// Calls `reached` as [`Connector::connect`] does, asks whether it speaks GSSAPI encryption and leaves, whatever the
    /// answer: unlike a login, a request for TLS or a cancel that comes to nothing, the server writes no line about that
    /// (`ProcessStartupPacket` in `src/backend/tcop/backend_startup.c`).
    ///
    /// # Errors
    /// See [`ConnectError`]; nothing is refused.
    ///
    /// # Cancel safety
    /// Dropping it closes the socket.
    pub async fn knock(&self, reached: &(dyn Fn() + Sync)) -> Result<(), ConnectError> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut socket, _) = self.dial().await?;
        reached();
        socket.configure(&KEEPALIVE)?;
        socket.write_all(&startup::gss_enc_request()).await?;
        // A postmaster that takes no connections now says so, which is an answer, too.
        socket.read_u8().await?;
        Ok(())
    }

    async fn attempt(
        &self,
        login: &Login,
        encryption: Encryption,
        options: &str,
        reached: &(dyn Fn() + Sync),
    ) -> Result<Handshake, ConnectError> {
        let (mut socket, peer) = self.dial().await?;
        reached();
        socket.configure(&KEEPALIVE)?;
        let tls = match (&self.tls, &self.address, encryption) {
            (Some(tls), UpstreamAddress::Tcp { host, .. }, Encryption::IfOffered | Encryption::Demanded) => {
                Some((Arc::clone(tls), host.clone()))
            }
            _ => None,
        };
        let (stream, tls) = match tls {
            None => (Stream::Plain(socket), None),
            Some((tls, host)) => match (request_tls(&mut socket).await?, encryption) {
                (TlsAnswer::Yes, _) => (encrypt(socket, &tls, &host).await?, Some((tls, host))),
                (TlsAnswer::No, Encryption::Demanded) => return Err(ConnectError::TlsUnsupported),
                (TlsAnswer::No, _) => (Stream::Plain(socket), None),
            },
        };
        let mut handshake = Handshake { stream, peer, tls, reported: BTreeMap::new(), key: None };
        handshake.start(login, options).await?;
        handshake.log_in(login, &self.keys).await?;
        Ok(handshake)
    }

    async fn dial(&self) -> Result<(Socket, Peer), ConnectError> {
        let (host, port) = match &self.address {
            UpstreamAddress::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(ConnectError::Unreachable)?;
                return Ok((Socket::Unix(stream), Peer::Unix(path.clone())));
            }
            UpstreamAddress::Tcp { host, port } => (host.as_str(), *port),
        };
        let addresses = lookup_host((host, port)).await.map_err(ConnectError::Resolve)?;
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match dial_tcp(address).await {
                Ok(stream) => return Ok((Socket::Tcp(stream), Peer::Tcp(address))),
                Err(error) => last = error,
            }
        }
        Err(ConnectError::Unreachable(last))
    }
}

/// Connects. As long as there is no answer, other attempts are made beside the first, which has its time: the way may
/// be long.
///
/// # Cancel safety
/// Dropping it closes the sockets.
async fn dial_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let mut first = pin!(TcpStream::connect(address));
    if let Ok(connected) = timeout(DIAL_AGAIN, first.as_mut()).await {
        return connected;
    }
    loop {
        tokio::select! {
            connected = first.as_mut() => return connected,
            again = timeout(DIAL_AGAIN, TcpStream::connect(address)) => {
                if let Ok(connected) = again {
                    return connected;
                }
            }
        }
    }
}

/// What a server said to an `SSLRequest`.
enum TlsAnswer {
    Yes,
    No,
}

async fn request_tls(socket: &mut Socket) -> Result<TlsAnswer, ConnectError> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    socket.write_all(&startup::ssl_request()).await?;
    match socket.read_u8().await? {
        b'S' => Ok(TlsAnswer::Yes),
        b'N' => Ok(TlsAnswer::No),
        other => Err(WireError::UnexpectedTag(other).into()),
    }
}

/// Runs the TLS handshake on a socket that was answered `S`.
pub(super) async fn encrypt(socket: Socket, tls: &ClientTls, host: &str) -> Result<Stream, ConnectError> {
    let (config, name) = tls.connect_to(host).map_err(ConnectError::Tls)?;
    let stream = TlsConnector::from(config).connect(name, socket).await.map_err(ConnectError::Handshake)?;
    Ok(Stream::Tls(Box::new(stream.into())))
}

/// A connection on its way through login.
struct Handshake {
    stream: Stream,
    peer: Peer,
    tls: Option<(Arc<ClientTls>, String)>,
    reported: BTreeMap<Box<str>, Box<[u8]>>,
    key: Option<(u32, Vec<u8>)>,
}

/// A message of the server during login.
struct Message {
    tag: u8,
    body: Vec<u8>,
}

/// The number in front of the text: 15 of `15.4 (Debian 15.4-1)`.
fn major_version(text: &[u8]) -> u32 {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number: u32, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')))
}

impl Handshake {
    fn into_backend(self, worker: usize, lifetime: Duration) -> Backend {
        let (process_id, secret) = self.key.unwrap_or_default();
        let version = self.reported.get("server_version").map(|text| major_version(text));
        Backend {
            knows_tokens: version.is_some_and(|major| major >= token::SINCE_MAJOR),
            stream: self.stream,
            worker,
            cancel_target: CancelTarget::new(self.peer, self.tls, process_id, secret),
            prepared: Prepared::default(),
            unnamed: None,
            applied: Settings::none(),
            reported: self.reported,
            status: TransactionStatus::Idle,
            retire_at_ms: clock::now_ms() + clock::millis(lifetime),
            idle_since_ms: clock::now_ms(),
            generation: 0,
            slot: None,
        }
    }

    async fn start(&mut self, login: &Login, options: &str) -> Result<(), ConnectError> {
        let mut parameters = vec![("user", login.user.as_str()), ("database", login.database.as_str())];
        match &login.replication {
            // A walsender knows the same settings, but a physical one has no database.
            Some(replication) => parameters.push(("replication", replication.as_str())),
            None => parameters.push(("options", options)),
        }
        parameters.extend(login.application_name.map(|name| ("application_name", name)));
        let packet = startup::startup_message(startup::VERSION_3_0, parameters);
        Ok(self.stream.write_all(&packet).await?)
    }

    /// From the first answer to the first `ReadyForQuery`.
    async fn log_in(&mut self, login: &Login, keys: &Arc<KeyCache>) -> Result<(), ConnectError> {
        let mut input = Buffer::lend();
        let mut proof = None;
        loop {
            let message = self.receive(&mut input).await?;
            match message.tag {
                tag::AUTHENTICATION => {
                    self.authenticate(&message.body, login, keys, &mut proof, &mut input).await?;
                }
                tag::PARAMETER_STATUS => self.note_parameter(&message.body),
                tag::BACKEND_KEY_DATA => self.note_key(&message.body)?,
                tag::NOTICE_RESPONSE | tag::NEGOTIATE_PROTOCOL_VERSION => {}
                tag::READY_FOR_QUERY if input.is_empty() => return Ok(()),
                other => return Err(WireError::UnexpectedTag(other).into()),
            }
        }
    }

    async fn authenticate(
        &mut self,
        body: &[u8],
        login: &Login,
        keys: &Arc<KeyCache>,
        proof: &mut Option<ServerProof>,
        input: &mut Buffer,
    ) -> Result<(), ConnectError> {
        let (request, rest) = body.split_first_chunk::<4>().ok_or(WireError::BadBody(tag::AUTHENTICATION))?;
        match u32::from_be_bytes(*request) {
            // A server that skips its own proof may be anybody.
            code::OK if proof.is_none() => Ok(()),
            code::CLEARTEXT => {
                let Credential::Password(password) = &login.credential else {
                    return Err(ConnectError::NoCredential("a clear-text password"));
                };
                self.send_password(password.reveal().as_bytes()).await
            }
            code::MD5 => {
                let salt = rest.try_into().map_err(|_| WireError::BadBody(tag::AUTHENTICATION))?;
                let digest = match &login.credential {
                    Credential::Password(password) => Md5Digest::of_password(&login.user, password.reveal()),
                    Credential::Md5Digest(digest) => digest.clone(),
                    Credential::None | Credential::ScramKeys(_) => {
                        return Err(ConnectError::NoCredential("an md5 proof"));
                    }
                };
                self.send_password(&digest.response(salt)).await
            }
            code::SASL => {
                *proof = Some(self.scram(rest, login, keys, input).await?);
                Ok(())
            }
            code::SASL_FINAL => match proof.take() {
                Some(proof) => Ok(proof.check(rest)?),
                None => Err(WireError::BadBody(tag::AUTHENTICATION).into()),
            },
            _ => Err(ConnectError::NoCredential("a method that is not supported")),
        }
    }

    /// The SCRAM exchange up to our proof.
    async fn scram(
        &mut self,
        offered: &[u8],
        login: &Login,
        keys: &Arc<KeyCache>,
        input: &mut Buffer,
    ) -> Result<ServerProof, ConnectError> {
        let credential = match &login.credential {
            Credential::Password(password) => {
                ClientCredential::Password { user: login.user.clone(), password: password.clone() }
            }
            Credential::ScramKeys(keys) => ClientCredential::Keys(Arc::clone(keys)),
            Credential::None | Credential::Md5Digest(_) => {
                return Err(ConnectError::NoCredential("a SCRAM proof"));
            }
        };
        let names = offered.split(|&b| b == 0).filter_map(|name| std::str::from_utf8(name).ok());
        let client = ScramClient::new(credential, self.binding(), names)?;
        let mut initial = Vec::new();
        put_cstr(&mut initial, client.mechanism().name().as_bytes());
        initial.extend_from_slice(&u32::try_from(client.first().len()).unwrap_or(u32::MAX).to_be_bytes());
        initial.extend_from_slice(client.first());
        self.send_response(&initial).await?;

        let message = self.receive(input).await?;
        let server_first = match (message.tag, message.body.split_first_chunk::<4>()) {
            (tag::AUTHENTICATION, Some((request, rest)))
                if u32::from_be_bytes(*request) == code::SASL_CONTINUE =>
            {
                rest
            }
            (other, _) => return Err(WireError::UnexpectedTag(other).into()),
        };
        let challenge = client.challenge(server_first)?;
        let (response, proof) = match challenge.cost(keys) {
            Cost::Cheap => challenge.answer(keys),
            // Milliseconds of hashing would stop every session of this worker.
            Cost::Derivation { .. } => {
                let keys = Arc::clone(keys);
                tokio::task::spawn_blocking(move || challenge.answer(&keys))
                    .await
                    .map_err(io::Error::other)?
            }
        };
        self.send_response(&response).await?;
        Ok(proof)
    }

    fn binding(&self) -> Binding {
        match &self.stream {
            Stream::Tls(stream) => match stream.as_ref() {
                tokio_rustls::TlsStream::Client(stream) => upstream_binding(stream.get_ref().1),
                tokio_rustls::TlsStream::Server(_) => Binding::Unavailable,
            },
            Stream::Plain(_) => Binding::Unavailable,
        }
    }

    async fn send_password(&mut self, password: &[u8]) -> Result<(), ConnectError> {
        let mut body = Vec::new();
        put_cstr(&mut body, password);
        self.send_response(&body).await
    }

    async fn send_response(&mut self, body: &[u8]) -> Result<(), ConnectError> {
        let mut frame = Vec::new();
        put_frame(&mut frame, frontend::PASSWORD, |out| out.extend_from_slice(body));
        Ok(self.stream.write_all(&frame).await?)
    }

    fn note_parameter(&mut self, body: &[u8]) {
        if let Some((name, value)) = tag::parameter_status(body) {
            self.reported.insert(String::from_utf8_lossy(name).into(), value.into());
        }
    }

    fn note_key(&mut self, body: &[u8]) -> Result<(), WireError> {
        let (process_id, secret) =
            body.split_first_chunk::<4>().ok_or(WireError::BadBody(tag::BACKEND_KEY_DATA))?;
        self.key = Some((u32::from_be_bytes(*process_id), secret.to_vec()));
        Ok(())
    }

    /// The next message. An `ErrorResponse` becomes [`ConnectError::Server`].
    async fn receive(&mut self, input: &mut Buffer) -> Result<Message, ConnectError> {
        loop {
            if let Some(header) = Header::read(input.unread())? {
                if header.frame_len > MAX_LOGIN_MESSAGE_LEN {
                    let length = u32::try_from(header.frame_len).unwrap_or(u32::MAX);
                    return Err(WireError::BadLength { tag: header.tag, length }.into());
                }
                input.reserve(header.frame_len);
                if let Some(body) = input.unread().get(crate::wire::frame::HEADER_LEN..header.frame_len) {
                    let message = Message { tag: header.tag, body: body.to_vec() };
                    input.consume(header.frame_len);
                    if message.tag == tag::ERROR_RESPONSE {
                        return Err(ConnectError::Server(ServerError::read(&message.body)));
                    }
                    return Ok(message);
                }
            }
            if self.stream.fill(input).await? == 0 {
                return Err(ConnectError::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}
