//! From accept to the first `ReadyForQuery`.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::TlsAcceptor;

use super::authenticate::{AuthError, authenticate, queried_credential};
use super::startup_settings::{StartupError, StartupParameters};
use crate::auth::Credential;
use crate::auth::scram::Binding;
use crate::backend::Settings;
use crate::config::{AuthMethod, ListenTlsMode};
use crate::console::{self, Console};
use crate::exchange::Refusal;
use crate::exchange::facts::Reach;
use crate::io::{Buffer, Flow, Socket, Stream};
use crate::pool::{Pool, PoolKey, Welcome};
use crate::server::Shared;
use crate::session::local_frames::setting_code;
use crate::session::policy::Who;
use crate::session::registry::{Identity, Kind, Phase, Registration};
use crate::session::settle::{SettingsRefused, introduce, unsettled};
use crate::session::terms::SessionTerms;
use crate::session::{Beginning, Session};
use crate::sql::Lane;
use crate::sql::terms::SettingError;
use crate::tls::negotiated_postgresql;
use crate::wire::startup::{self, ProtocolVersion, StartupPacket, VERSION_3_2};
use crate::wire::{
    ErrorMessage, Header, Severity, SqlState, TransactionStatus, WireError, backend as reply, frontend,
};
use tidegate_layers::shed::Ask;

/// First byte of a TLS record that carries a handshake: direct TLS, without `SSLRequest`.
const TLS_HANDSHAKE: u8 = 0x16;

/// Longest answer to an authentication request (`PG_MAX_AUTH_TOKEN_LENGTH` in PostgreSQL).
const MAX_AUTH_MESSAGE_LEN: usize = 65_535;

/// How long a connection beyond the limit of sessions may take: others wait to be looked at.
const EXTRA_DEADLINE: Duration = Duration::from_secs(3);

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
            StartupError::Setting(error) => return error.into(),
        };
        Self::refused(code, error.to_string())
    }
}

impl From<SettingError> for LoginError {
    fn from(error: SettingError) -> Self {
        Self::refused(setting_code(&error), error.to_string())
    }
}

/// Logs an application in. `None` when there is no session to run.
///
/// # Cancel safety
/// Dropping it closes the connection.
pub async fn log_in(accepted: Accepted, shared: Arc<Shared>) -> Option<Entered> {
    let deadline = shared.config.load().timeouts.login;
    let Accepted { socket, peer, registration, worker } = accepted;
    let deadline = if registration.is_extra() { deadline.min(EXTRA_DEADLINE) } else { deadline };
    let mut talk = Conversation {
        stream: Stream::Plain(socket),
        flow: Flow::default(),
        out: Vec::new(),
        worker,
        local: peer.is_none(),
    };
    let login = tokio::time::timeout(deadline, talk.log_in(&shared, registration)).await;
    let error = match login {
        Ok(Ok(LoggedIn::ToPool(parts))) => {
            crate::telemetry::metrics::get().sessions_started.increment(1);
            return Some(Entered::Session(parts.begin(talk, &shared)));
        }
        Ok(Ok(LoggedIn::ToConsole(registration))) => {
            let console = Console::new(talk.stream, talk.flow, registration, shared);
            return Some(Entered::Console(Box::new(console)));
        }
        Ok(Err(LoginError::Left)) => return None,
        Ok(Err(error)) => error,
        Err(_) => LoginError::refused(SqlState::QUERY_CANCELED, "canceling authentication due to timeout"),
    };
    crate::telemetry::metrics::get().logins_failed.increment(1);
    talk.refuse(&error, &shared).await;
    None
}

/// Who has logged in.
#[derive(Debug)]
pub enum Entered {
    /// An application.
    Session(Box<Session>),
    /// An operator.
    Console(Box<Console>),
}

/// What a login yields.
enum LoggedIn {
    ToPool(Pooled),
    ToConsole(Registration),
}

/// What it takes to be a session.
struct Pooled {
    registration: Registration,
    pool: Arc<Pool>,
    startup: Arc<Settings>,
    terms: SessionTerms,
    reach: Reach,
}

impl Pooled {
    fn begin(self, talk: Conversation, shared: &Arc<Shared>) -> Box<Session> {
        Session::new(Beginning {
            app: talk.stream,
            early: talk.flow,
            registration: self.registration,
            pool: self.pool,
            stack: crate::stack::build(),
            worker: talk.worker,
            mode: shared.config.load().pool.mode,
            startup: self.startup,
            terms: self.terms,
            routes: Arc::clone(&shared.routes),
            reach: self.reach,
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
        mut registration: Registration,
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
        let to_console = console::is_console(&parameters.database);
        if if to_console { !registration.claim_console() } else { registration.is_extra() } {
            let limit = config.listen.max_sessions;
            return Err(LoginError::Refusal(Refusal::TooManySessions { limit }));
        }
        self.negotiate(version, &parameters);
        let credential = authenticate(self, &parameters.user, config.listen.auth, shared).await?;
        if config.listen.auth == AuthMethod::Trust && !shared.may_trust(self.local) {
            return Err(LoginError::refused(
                SqlState::INVALID_AUTHORIZATION,
                "trust is for local applications",
            ));
        }
        if to_console {
            return self.enter_console(shared, &parameters, registration, version).await;
        }
        if shared.databases.find(&parameters.database).is_some_and(|database| database.is_disabled()) {
            return Err(LoginError::refused(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                "tidegate: an operator has disabled this database",
            ));
        }
        let credential = match (config.listen.auth, credential) {
            (AuthMethod::Trust, Credential::None) => {
                queried_credential(&parameters.user, shared, self.worker).await
            }
            (_, credential) => credential,
        };
        let key = PoolKey {
            database: parameters.database.as_str().into(),
            user: parameters.user.as_str().into(),
            replication: parameters.replication.as_deref().map(Into::into),
        };
        let startup =
            if key.replication.is_some() { Settings::none() } else { Arc::clone(&parameters.settings) };
        let who = Who {
            user: parameters.user.as_str().into(),
            database: parameters.database.as_str().into(),
            application_name: parameters.application_name.as_str().into(),
        };
        let policies = Arc::clone(&shared.policies);
        let idle = Arc::clone(&registration.entry.idle);
        let terms = SessionTerms::new(policies, who, &parameters.terms, idle)?;
        // In a box: most logins in progress are not so far, and each of them has memory for all of this.
        let (pool, welcome) = Box::pin(self.find_welcome(shared, &key, &credential, &startup)).await?;
        self.identify(&registration, &parameters, Kind::Application);
        self.say_welcome(&welcome, &registration, version);
        registration.entry.enter(Phase::Idle);
        self.flush().await?;
        Ok(LoggedIn::ToPool(Pooled { registration, pool, startup, terms, reach: welcome.reach }))
    }

    /// An operator has proven who it is; may it in?
    async fn enter_console(
        &mut self,
        shared: &Arc<Shared>,
        parameters: &StartupParameters,
        registration: Registration,
        version: ProtocolVersion,
    ) -> Result<LoggedIn, LoginError> {
        let config = shared.config.load();
        if config.listen.auth != AuthMethod::Trust && !config.admin.users.contains(&parameters.user) {
            return Err(LoginError::refused(
                SqlState::INVALID_AUTHORIZATION,
                "tidegate: this user may not use the admin console (see admin.users)",
            ));
        }
        drop(config);
        self.identify(&registration, parameters, Kind::Console);
        self.say_welcome(&console::welcome(), &registration, version);
        registration.entry.enter(Phase::Idle);
        self.flush().await?;
        Ok(LoggedIn::ToConsole(registration))
    }

    fn identify(&self, registration: &Registration, parameters: &StartupParameters, kind: Kind) {
        let local = match self.stream.socket() {
            Socket::Tcp(socket) => socket.local_addr().ok(),
            Socket::Unix(_) | Socket::Detached => None,
        };
        let _ = registration.entry.identity.set(Identity {
            kind,
            user: parameters.user.as_str().into(),
            database: parameters.database.as_str().into(),
            application_name: parameters.application_name.as_str().into(),
            local,
            tls: self.encryption().into(),
        });
    }

    /// As in PgBouncer's SHOW CLIENTS: version and cipher suite.
    fn encryption(&self) -> String {
        let Stream::Tls(stream) = &self.stream else { return String::new() };
        let (_, connection) = stream.get_ref();
        let version = connection.protocol_version().and_then(|version| version.as_str());
        let suite = connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        let version = version.unwrap_or("TLS").replace('_', ".");
        format!("{version}/{}", suite.unwrap_or("unknown").replace("TLS13_", "TLS_"))
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

    /// From the primary, and while there is none from whoever lets the application in.
    async fn find_welcome(
        &self,
        shared: &Arc<Shared>,
        key: &PoolKey,
        credential: &Credential,
        startup: &Arc<Settings>,
    ) -> Result<(Arc<Pool>, Arc<Welcome>), LoginError> {
        let mut epoch = shared.routes.epoch();
        let mut upstreams = shared.routes.for_login().into_iter();
        loop {
            let Some(upstream) = upstreams.next() else { return Err(LoginError::Left) };
            let pool = upstream.pool(key.clone());
            pool.set_credential(credential.clone());
            match self.welcome(&pool, startup).await {
                Ok(welcome) => return Ok((pool, welcome)),
                Err(LoginError::Refusal(refusal))
                    if refusal.is_about_server() && upstreams.len() > 0 && key.replication.is_none() => {}
                // Sent away by a failover; the login's own deadline bounds how often that can be.
                Err(LoginError::Refusal(refusal))
                    if refusal.is_about_server() && shared.routes.epoch() != epoch =>
                {
                    epoch = shared.routes.epoch();
                    upstreams = shared.routes.for_login().into_iter();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What the pool tells at login: from memory, or from a backend that gets this session's settings.
    async fn welcome(&self, pool: &Arc<Pool>, startup: &Arc<Settings>) -> Result<Arc<Welcome>, LoginError> {
        if let Some(welcome) = pool.welcomes.get(startup) {
            return Ok(welcome);
        }
        let acquired = pool.acquire(Lane::Read, Ask::default(), self.worker).await;
        let mut lease = acquired.map_err(LoginError::Refusal)?;
        let asked = introduce(&mut lease, startup).await;
        match asked {
            Ok(welcome) => {
                lease.give_back();
                pool.welcomes.insert(Arc::clone(startup), Arc::clone(&welcome));
                Ok(welcome)
            }
            Err(SettingsRefused::Value(code, message)) => {
                lease.give_back();
                Err(LoginError::refused(code, message))
            }
            Err(SettingsRefused::Lost) => Err(LoginError::Refusal(unsettled(pool, Lane::Read))),
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
                if !matches!(refusal, Refusal::TooManySessions { .. }) {
                    tracing::info!(reason = refusal.reason(), "login refused");
                }
                crate::telemetry::lanes::refused(None, refusal.reason());
                refusal.put_fatal(&shared.routes.primary().name, &mut self.out);
            }
        }
        let farewell = async {
            if self.flush().await.is_ok() {
                self.stream.shutdown().await;
                self.hear_out().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
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
