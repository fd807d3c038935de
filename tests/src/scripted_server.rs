//! A fake `PostgreSQL`: the test decides every byte of its answers, and when to fall silent.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::frames::Replies;
use crate::message::Message;
use crate::wait::{PATIENCE, within};
use crate::wire::{Received, Wire};

/// What a `CancelRequest` must show.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackendKey {
    /// Process id.
    pub pid: u32,
    /// Secret; 4 bytes in protocol 3.0.
    pub secret: Vec<u8>,
}

impl BackendKey {
    pub(crate) fn of_body(body: &[u8]) -> Self {
        let (pid, secret) = body.split_first_chunk::<4>().expect("a process id");
        Self { pid: u32::from_be_bytes(*pid), secret: secret.to_vec() }
    }
}

/// A listening fake. Dropping it closes the listener and ends what [`ScriptedServer::serve`] started.
pub struct ScriptedServer {
    listener: Arc<TcpListener>,
    address: SocketAddr,
    tasks: JoinSet<()>,
}

/// What a connection turned out to be.
pub enum Incoming {
    /// A session that waits for its authentication.
    Session(ScriptedBackend),
    /// A `CancelRequest`. The connection closes when this is dropped.
    Cancel {
        /// Which session it is for.
        key: BackendKey,
        /// The connection, to be held open or closed.
        connection: ScriptedBackend,
    },
}

impl ScriptedServer {
    /// Listens on a free port of 127.0.0.1. It accepts only when told to.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        Self { listener: Arc::new(listener), address, tasks: JoinSet::new() }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connection URL, without a password.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }

    /// The next connection, with its startup packet read. `SSLRequest` and `GSSENCRequest` are refused on the way.
    pub async fn accept(&self) -> Incoming {
        accept(&self.listener, PATIENCE).await
    }

    /// The next session. A `CancelRequest` panics here.
    pub async fn accept_session(&self) -> ScriptedBackend {
        match self.accept().await {
            Incoming::Session(session) => session,
            Incoming::Cancel { key, .. } => panic!("a CancelRequest for {key:?}"),
        }
    }

    /// The next connection as it is, before any of its bytes are read.
    pub async fn accept_raw(&self) -> TcpStream {
        within(PATIENCE, "a connection", self.listener.accept()).await.expect("a connection").0
    }

    /// Handles every further connection in a task of its own.
    pub fn serve<F, H>(&mut self, handler: H)
    where
        H: Fn(Incoming) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = Arc::clone(&self.listener);
        self.tasks.spawn(async move {
            let mut sessions = JoinSet::new();
            let handler = Arc::new(handler);
            while let Ok((stream, _)) = listener.accept().await {
                let handler = Arc::clone(&handler);
                sessions.spawn(async move {
                    // A peer that leaves during its startup is no session.
                    if let Some(incoming) = start_up(stream, PATIENCE).await {
                        handler(incoming).await;
                    }
                });
            }
        });
    }
}

async fn accept(listener: &TcpListener, limit: Duration) -> Incoming {
    let (stream, _) = within(limit, "a connection", listener.accept()).await.expect("a connection");
    start_up(stream, limit).await.expect("a startup packet")
}

async fn start_up(stream: TcpStream, limit: Duration) -> Option<Incoming> {
    let mut wire = Wire::tcp(stream);
    loop {
        let Received::Message(packet) = wire.receive_untagged(limit).await else { return None };
        let (code, body) = packet.body.split_first_chunk::<4>()?;
        let code = u32::from_be_bytes(*code);
        match (code >> 16, code & 0xffff) {
            (1234, 5679 | 5680) => wire.send(b"N").await.ok()?,
            (1234, 5678) => {
                let connection = ScriptedBackend { wire, parameters: Vec::new() };
                return Some(Incoming::Cancel { key: BackendKey::of_body(body), connection });
            }
            _ => return Some(Incoming::Session(ScriptedBackend { wire, parameters: parameters(body) })),
        }
    }
}

fn parameters(body: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(body);
    let mut strings = text.split('\0').map(str::to_owned);
    let mut pairs = Vec::new();
    while let (Some(name), Some(value)) = (strings.next().filter(|name| !name.is_empty()), strings.next()) {
        pairs.push((name, value));
    }
    pairs
}

/// One connection to the fake. Dropping it closes with FIN.
pub struct ScriptedBackend {
    wire: Wire,
    parameters: Vec<(String, String)>,
}

impl ScriptedBackend {
    /// A parameter of the `StartupMessage`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Lets the session in: authentication ok, the parameters that drivers look at, key, ready.
    pub async fn welcome(&mut self, key: &BackendKey) {
        let replies = Replies::new()
            .authentication_ok()
            .parameter("server_version", "15.0")
            .parameter("server_encoding", "UTF8")
            .parameter("client_encoding", "UTF8")
            .parameter("standard_conforming_strings", "on")
            .parameter("integer_datetimes", "on")
            .parameter("in_hot_standby", "off")
            .parameter("default_transaction_read_only", "off")
            .key(key.pid, &key.secret)
            .ready('I');
        self.send(replies).await;
    }

    /// Sends bytes in one write.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = within(PATIENCE, "sending", self.wire.send(bytes.as_ref())).await;
        sent.expect("the other end takes our bytes");
    }

    /// What comes next.
    pub async fn receive_within(&mut self, limit: Duration) -> Received {
        self.wire.receive(limit).await
    }

    /// The next message; none when the other end has left.
    pub async fn next(&mut self) -> Option<Message> {
        match self.wire.receive(PATIENCE).await {
            Received::Message(message) => Some(message),
            Received::Closed { .. } | Received::Reset(_) => None,
            Received::Silence => panic!("nothing came"),
        }
    }

    /// The next message, which must have this tag.
    pub async fn expect(&mut self, tag: u8) -> Message {
        let message = self.next().await.expect("a message instead of the end");
        assert_eq!(char::from(message.tag), char::from(tag), "{:?}", message.body);
        message
    }

    /// The next message must be this Query.
    pub async fn expect_query(&mut self, sql: &str) {
        let message = self.expect(b'Q').await;
        assert_eq!(message.strings(), [sql]);
    }

    /// Answers every Query with the same bytes until the other end leaves.
    pub async fn answer_all(&mut self, replies: &Replies) {
        while let Some(message) = self.next().await {
            if message.tag == b'Q' {
                self.send(replies).await;
            }
        }
    }

    /// The other end must close or reset now; gives the messages that came before.
    pub async fn expect_end(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await {
            messages.push(message);
        }
        messages
    }

    /// Keeps the connection open, reads nothing, says nothing: a frozen server. Never ends; spawn or race it.
    pub async fn go_silent(self) {
        std::future::pending::<()>().await;
    }

    /// Closes with RST.
    pub fn reset(self) {
        self.wire.reset();
    }
}
