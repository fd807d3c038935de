//! From accept to the first `ReadyForQuery`.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;

use super::authenticate::{AuthError, authenticate};
use super::startup_settings::{StartupError, StartupParameters};
use crate::auth::scram::Binding;
use crate::backend::Settings;
use crate::config::{AuthMethod, ListenTlsMode};
use crate::exchange::Refusal;
use crate::io::{Buffer, Flow, Socket, Stream};
use crate::pool::{Pool, PoolKey, Waiter, Welcome};
use crate::server::Shared;
use crate::session::registry::{Identity, Phase, Registration};
use crate::session::{Beginning, Session};
use crate::tls::negotiated_postgresql;
use crate::wire::startup::{self, ProtocolVersion, StartupPacket, VERSION_3_2};
use crate::wire::{
    ErrorMessage, Header, Severity, SqlState, TransactionStatus, WireError, backend as reply, frontend,
};

/// First byte of a TLS record that carries a handshake: direct TLS, without `SSLRequest`.
const TLS_HANDSHAKE: u8 = 0x16;

/// Longest answer to an authentication request (`PG_MAX_AUTH_TOKEN_LENGTH` in PostgreSQL).
const MAX_AUTH_MESSAGE_LEN: usize = 65_535;

/// A connection that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The socket.
    pub socket: Socket,
    /// Where the application is; `None` for unix sockets.
    pub peer: Option<SocketAddr>,
    /// Its place in the registry.
    pub registration: Registration,
    /// The thread that it runs on.
    pub worker: usize,
}

/// Why a login came to nothing.
#[derive(Debug)]
enum LoginError {
    /// The application left, or asked for something that is no login (a cancel).
    Left,
    /// It is told why.
    Refused(Words),
    /// It is told why, in the words of the contract.
    Refusal(Refusal),
}

#[derive(Debug)]
struct Words {
    code: SqlState,
    message: String,
}

impl LoginError {
    fn refused(code: SqlState, message: impl Into<String>) -> Self {
        Self::Refused(Words { code, message: message.into() })
    }
}

impl From<io::Error> for LoginError {
    fn from(_: io::Error) -> Self {
        Self::Left
    }
}

impl From<WireError> for LoginError {
    fn from(error: WireError) -> Self {
        Self::refused(SqlState::PROTOCOL_VIOLATION, error.to_string())
    }
}

impl From<AuthError> for LoginError {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Lost(_) => Self::Left,
            other => Self::refused(other.sqlstate(), other.to_string()),
        }
    }
}

impl From<StartupError> for LoginError {
    fn from(error: StartupError) -> Self {
        let code = match error {
            StartupError::NoUser => SqlState::INVALID_AUTHORIZATION,
            StartupError::NotText(_) | StartupError::BadOptions | StartupError::TooMany => {
                SqlState::PROTOCOL_VIOLATION
            }
        };
        Self::refused(code, error.to_string())
    }
}

/// Logs an application in. `None` when there is no session to run.
///
/// # Cancel safety
/// Dropping it closes the connection.
pub async fn log_in(accepted: Accepted, shared: Arc<Shared>) -> Option<Session> {
    let deadline = shared.config.load().timeouts.login;
    let Accepted { socket, peer, registration, worker } = accepted;
    let mut talk = Conversation {
        stream: Stream::Plain(socket),
        flow: Flow::default(),
        out: Vec::new(),
        worker,
        local: peer.is_none(),
    };
    let login = tokio::time::timeout(deadline, talk.log_in(&shared, registration)).await;
    let error = match login {
        Ok(Ok(parts)) => {
            crate::telemetry::metrics::get().sessions_started.increment(1);
            return Some(parts.begin(talk, &shared));
        }
        Ok(Err(LoginError::Left)) => return None,
        Ok(Err(error)) => error,
        Err(_) => LoginError::refused(SqlState::QUERY_CANCELED, "canceling authentication due to timeout"),
    };
    crate::telemetry::metrics::get().logins_failed.increment(1);
    talk.refuse(&error, &shared).await;
    None
}

/// What a login yields.
struct LoggedIn {
    registration: Registration,
    pool: Arc<Pool>,
    startup: Arc<Settings>,
}

impl LoggedIn {
    fn begin(self, talk: Conversation, shared: &Arc<Shared>) -> Session {
        Session::new(Beginning {
            app: talk.stream,
            early: talk.flow,
            registration: self.registration,
            pool: self.pool,
            stack: crate::stack::build(),
            worker: talk.worker,
            mode: shared.config.load().pool.mode,
            startup: self.startup,
            routes: Arc::clone(&shared.routes),
        })
    }
}

/// A connection before it is a session.
pub struct Conversation {
    stream: Stream,
    flow: Flow,
    out: Vec<u8>,
    /// The thread that it runs on.
    pub worker: usize,
    local: bool,
}

impl Conversation {
    async fn log_in(
        &mut self,
        shared: &Arc<Shared>,
        registration: Registration,
    ) -> Result<LoggedIn, LoginError> {
        self.accept_direct_tls(shared).await?;
        let (version, parameters) = self.startup(shared).await?;
        if version.major != 3 {
            let message = format!(
                "unsupported frontend protocol {}.{}: server supports 3.0 to 3.2",
                version.major, version.minor
            );
            return Err(LoginError::refused(SqlState::FEATURE_NOT_SUPPORTED, message));
        }
        let config = shared.config.load_full();
        if config.listen.tls.mode == ListenTlsMode::Require
            && !self.local
            && matches!(self.stream, Stream::Plain(_))
        {
            return Err(LoginError::refused(
                SqlState::INVALID_AUTHORIZATION,
                "tidegate: TLS is required here",
            ));
        }
        let parameters = StartupParameters::read(&parameters)?;
        self.negotiate(version, &parameters);
        let credential = authenticate(self, &parameters.user, config.listen.auth, shared).await?;
        if config.listen.auth == AuthMethod::Trust && !shared.may_trust(self.local) {
            return Err(LoginError::refused(
                SqlState::INVALID_AUTHORIZATION,
                "trust is for local applications",
            ));
        }
        let key = PoolKey {
            database: parameters.database.as_str().into(),
            user: parameters.user.as_str().into(),
            replication: parameters.replication.as_deref().map(Into::into),
        };
        let pool = shared.routes.primary().pool(key);
        pool.set_credential(credential);
        let startup = if pool.key.replication.is_some() { Settings::none() } else { parameters.settings };
        let welcome = self.welcome(&pool, &startup).await?;
        let _ = registration.entry.identity.set(Identity {
            user: parameters.user.into(),
            database: parameters.database.into(),
            application_name: parameters.application_name.into(),
        });
        self.say_welcome(&welcome, &registration, version);
        registration.entry.enter(Phase::Idle);
        self.flush().await?;
        Ok(LoggedIn { registration, pool, startup })
    }

    /// TLS that starts with the very first byte, as libpq does with `sslnegotiation=direct`.
    async fn accept_direct_tls(&mut self, shared: &Arc<Shared>) -> Result<(), LoginError> {
        let Stream::Plain(Socket::Tcp(socket)) = &self.stream else { return Ok(()) };
        if shared.tls.load().is_none() {
            return Ok(());
        }
        // Looked at, not taken: the handshake needs the byte itself.
        let mut first = [0];
        if socket.peek(&mut first).await? == 0 {
            return Err(LoginError::Left);
        }
        if first != [TLS_HANDSHAKE] {
            return Ok(());
        }
        self.accept_tls(shared).await?;
        match &self.stream {
            Stream::Tls(stream) => match stream.as_ref() {
                tokio_rustls::TlsStream::Server(stream) if negotiated_postgresql(stream.get_ref().1) => {
                    Ok(())
                }
                _ => Err(LoginError::refused(
                    SqlState::PROTOCOL_VIOLATION,
                    "received direct TLS connection request without ALPN protocol negotiation extension",
                )),
            },
            Stream::Plain(_) => Err(LoginError::Left),
        }
    }

    /// Answers requests for encryption until the startup packet comes.
    async fn startup(
        &mut self,
        shared: &Arc<Shared>,
    ) -> Result<(ProtocolVersion, Vec<(Vec<u8>, Vec<u8>)>), LoginError> {
        // Each request may come once, then the startup packet.
        for _ in 0..3 {
            match self.packet().await? {
                StartupPacket::Startup { version, parameters } => return Ok((version, parameters)),
                StartupPacket::Cancel { process_id, secret } => {
                    crate::telemetry::metrics::get().cancels.increment(1);
                    shared.registry.cancel(process_id, &secret).await;
                    return Err(LoginError::Left);
                }
                StartupPacket::GssEncRequest => self.answer(b"N").await?,
                StartupPacket::SslRequest => {
                    let possible = matches!(self.stream, Stream::Plain(_)) && !self.local;
                    if !possible || shared.tls.load().is_none() {
                        self.answer(b"N").await?;
                        continue;
                    }
                    if !self.flow.unseen().is_empty() {
                        // CVE-2021-23222: bytes that a man in the middle slipped in before the handshake.
                        return Err(LoginError::refused(
                            SqlState::PROTOCOL_VIOLATION,
                            "received unencrypted data after SSL request",
                        ));
                    }
                    self.answer(b"S").await?;
                    self.accept_tls(shared).await?;
                }
            }
        }
        Err(WireError::BadStartup("too many requests for encryption").into())
    }

    async fn accept_tls(&mut self, shared: &Arc<Shared>) -> Result<(), LoginError> {
        let Some(tls) = shared.tls.load_full() else { return Err(LoginError::Left) };
        let stream = std::mem::replace(&mut self.stream, Stream::Plain(Socket::Detached));
        let Stream::Plain(socket) = stream else { return Err(LoginError::Left) };
        let stream = TlsAcceptor::from(Arc::clone(&tls.config)).accept(socket).await?;
        self.stream = Stream::Tls(Box::new(stream.into()));
        Ok(())
    }

    /// Channel binding to our own certificate, when the connection is over TLS.
    pub(super) fn binding(&self, shared: &Arc<Shared>) -> Binding {
        match (&self.stream, &*shared.tls.load()) {
            (Stream::Tls(_), Some(tls)) => tls.binding.clone(),
            _ => Binding::Unavailable,
        }
    }

    fn negotiate(&mut self, version: ProtocolVersion, parameters: &StartupParameters) {
        if version > VERSION_3_2 || !parameters.unknown_options.is_empty() {
            let unknown: Vec<&[u8]> = parameters.unknown_options.iter().map(Vec::as_slice).collect();
            startup::put_negotiate(&mut self.out, version.min(VERSION_3_2), &unknown);
        }
    }

    /// What the pool tells at login: from memory, or from a backend that gets this session's settings.
    async fn welcome(&self, pool: &Arc<Pool>, startup: &Arc<Settings>) -> Result<Arc<Welcome>, LoginError> {
        if let Some(welcome) = pool.welcomes.get(startup) {
            return Ok(welcome);
        }
        let waiter = Arc::new(Waiter::default());
        let acquired = pool.acquire(&waiter, self.worker).await;
        let mut lease = acquired.map_err(LoginError::Refusal)?;
        let asked = crate::session::settle::introduce(&mut lease, startup).await;
        match asked {
            Ok(welcome) => {
                lease.give_back();
                pool.welcomes.insert(Arc::clone(startup), Arc::clone(&welcome));
                Ok(welcome)
            }
            Err(refused) => {
                let (code, message) = refused.words();
                if refused.is_about_values() {
                    lease.give_back();
                }
                Err(LoginError::refused(code, message))
            }
        }
    }

    fn say_welcome(&mut self, welcome: &Welcome, registration: &Registration, version: ProtocolVersion) {
        let out = &mut self.out;
        reply::put_authentication(out, reply::auth::OK, &[]);
        for (name, value) in &welcome.parameters {
            reply::put_parameter_status(out, name.as_bytes(), value);
        }
        reply::put_key(out, registration.entry.process_id, registration.entry.give_secret(version));
        reply::put_ready(out, TransactionStatus::Idle);
    }

    async fn refuse(&mut self, error: &LoginError, shared: &Arc<Shared>) {
        match error {
            LoginError::Left => return,
            LoginError::Refused(words) => {
                tracing::info!(code = %words.code, reason = %words.message, "login refused");
                ErrorMessage {
                    severity: Severity::Fatal,
                    code: words.code,
                    message: &words.message,
                    detail: "",
                    hint: "",
                }
                .put(&mut self.out);
            }
            LoginError::Refusal(refusal) => {
                tracing::info!(reason = refusal.reason(), "login refused");
                crate::telemetry::metrics::refused(refusal.reason());
                refusal.put_fatal(&shared.routes.primary().name, &mut self.out);
            }
        }
        let farewell = async {
            if self.flush().await.is_ok() {
                self.stream.shutdown().await;
                self.hear_out().await;
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), farewell).await;
    }

    /// Reads until the peer closes: closing over unread bytes would send RST, and with it our last word may
    /// get lost.
    async fn hear_out(&mut self) {
        let mut input = Buffer::lend();
        while matches!(self.stream.fill(&mut input).await, Ok(1..)) {
            input.consume(input.unread().len());
        }
    }

    /// Sends an authentication request, after whatever waits to be sent.
    pub(super) async fn authentication(&mut self, code: u32, body: &[u8]) -> io::Result<()> {
        reply::put_authentication(&mut self.out, code, body);
        self.flush().await
    }

    /// The body of the next message, which must be an answer to an authentication request.
    pub(super) async fn password_message(&mut self) -> Result<Vec<u8>, AuthError> {
        let expected = |what: String| AuthError::Protocol(what);
        loop {
            let unseen = self.flow.unseen();
            if let Some(&tag) = unseen.first()
                && tag != frontend::PASSWORD
            {
                return Err(expected(format!("expected password response, got message type 0x{tag:02x}")));
            }
            let header = Header::read(unseen).map_err(|error| expected(error.to_string()))?;
            if let Some(header) = header {
                if header.frame_len > MAX_AUTH_MESSAGE_LEN {
                    return Err(expected("authentication message too long".to_owned()));
                }
                if let Some(body) = unseen.get(crate::wire::frame::HEADER_LEN..header.frame_len) {
                    let body = body.to_vec();
                    self.flow.skip(header.frame_len);
                    return Ok(body);
                }
                self.flow.want(header.frame_len);
            }
            self.more().await?;
        }
    }

    async fn packet(&mut self) -> Result<StartupPacket, LoginError> {
        loop {
            if let Some(len) = startup::packet_len(self.flow.unseen())?
                && let Some(packet) = self.flow.unseen().get(..len)
            {
                let packet = StartupPacket::read(packet);
                self.flow.skip(len);
                return Ok(packet?);
            }
            self.more().await?;
        }
    }

    /// Reads more bytes; the end of the stream is an error.
    async fn more(&mut self) -> io::Result<()> {
        match poll_fn(|cx| self.flow.poll_fill(cx, &mut self.stream)).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn answer(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        let out = std::mem::take(&mut self.out);
        self.stream.write_all(&out).await
    }
}
