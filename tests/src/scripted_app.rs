//! A raw application: sends exact bytes, split as told, and reads message by message.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};

use crate::frames::Frames;
use crate::login::{Credentials, Greeting, log_in};
use crate::message::{Message, Problem, Reply};
use crate::scripted_server::BackendKey;
use crate::wait::{PATIENCE, within};
use crate::wire::{Received, Stream, Wire};

/// See the module.
pub struct ScriptedApp {
    wire: Wire,
}

impl ScriptedApp {
    /// Connects over TCP; nothing is sent yet.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = within(PATIENCE, "TCP connect", TcpStream::connect(address)).await;
        Self { wire: Wire::tcp(stream.expect("a TCP connection")) }
    }

    /// Connects over a unix socket.
    pub async fn connect_unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).await.expect("a connection to the unix socket");
        Self::over(stream)
    }

    /// Speaks over any stream, such as TLS that the test has set up.
    pub fn over(stream: impl Stream + 'static) -> Self {
        Self { wire: Wire::over(Box::new(stream)) }
    }

    /// Gives the stream away, for instance to a TLS handshake after [`ScriptedApp::ssl_request`].
    pub fn into_stream(self) -> Box<dyn Stream> {
        self.wire.into_stream()
    }

    /// Connects and logs in as this user, without a password.
    pub async fn session(address: SocketAddr, user: &str, database: &str) -> (Self, Greeting) {
        let mut app = Self::connect(address).await;
        let who = Credentials { user, password: "", database };
        let greeting = app.log_in(who).await.unwrap_or_else(|problem| panic!("login refused: {problem:?}"));
        (app, greeting)
    }

    /// Sends a `StartupMessage` and answers what is asked. The error is the server's.
    pub async fn log_in(&mut self, who: Credentials<'_>) -> Result<Greeting, Problem> {
        self.log_in_with(who, &[]).await
    }

    /// The same with more startup parameters.
    pub async fn log_in_with(
        &mut self,
        who: Credentials<'_>,
        parameters: &[(&str, &str)],
    ) -> Result<Greeting, Problem> {
        let mut all = vec![("user", who.user), ("database", who.database)];
        all.extend(parameters);
        self.send(Frames::new().startup(&all)).await;
        log_in(self, who).await
    }

    /// Answers what is asked after a `StartupMessage` that the test has sent itself.
    pub async fn finish_log_in(&mut self, who: Credentials<'_>) -> Result<Greeting, Problem> {
        log_in(self, who).await
    }

    /// Sends `SSLRequest` and gives the answering byte: 'S', 'N', or none.
    pub async fn ssl_request(&mut self) -> Option<u8> {
        self.send(Frames::new().ssl_request()).await;
        self.wire.receive_byte(PATIENCE).await
    }

    /// Sends `GSSENCRequest` and gives the answering byte: 'G', 'N', or none.
    pub async fn gss_enc_request(&mut self) -> Option<u8> {
        self.send(Frames::new().gss_enc_request()).await;
        self.wire.receive_byte(PATIENCE).await
    }

    /// Sends a `CancelRequest` on a connection of its own and waits for its end, as libpq does.
    pub async fn cancel(address: SocketAddr, key: &BackendKey) {
        let mut app = Self::connect(address).await;
        app.send(Frames::new().cancel_request(key.pid, &key.secret)).await;
        app.expect_end().await;
    }

    // ---- sending ----

    /// Sends bytes in one write.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the other end takes our bytes");
    }

    /// Sends bytes; the other end may be gone.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        within(PATIENCE, "sending", self.wire.send(bytes.as_ref())).await
    }

    /// Sends bytes in pieces that end at these offsets, each in a write of its own. The other tasks run in
    /// between, and the kernel does not join the pieces (`TCP_NODELAY`); the peer may still read several at once.
    pub async fn send_split(&mut self, bytes: impl AsRef<[u8]>, offsets: &[usize]) {
        let mut rest = bytes.as_ref();
        let mut sent = 0;
        for offset in offsets {
            let (piece, tail) = rest.split_at(offset - sent);
            self.send(piece).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            (rest, sent) = (tail, *offset);
        }
        self.send(rest).await;
    }

    // ---- receiving ----

    /// What comes next.
    pub async fn receive_within(&mut self, limit: Duration) -> Received {
        self.wire.receive(limit).await
    }

    /// The next message.
    pub async fn receive(&mut self) -> Message {
        match self.receive_within(PATIENCE).await {
            Received::Message(message) => message,
            other => panic!("instead of a message: {other:?}"),
        }
    }

    /// The next message, which must have this tag.
    pub async fn expect(&mut self, tag: u8) -> Message {
        let message = self.receive().await;
        let problem = message.problem();
        assert_eq!(char::from(message.tag), char::from(tag), "{problem:?}");
        message
    }

    /// All messages up to and with `ReadyForQuery`, within a limit.
    pub async fn reply_within(&mut self, limit: Duration) -> Reply {
        let mut reply = Reply::default();
        let read = async {
            while reply.status().is_none() {
                match self.receive_within(limit).await {
                    Received::Message(message) => reply.0.push(message),
                    other => panic!("after {:?} and before ReadyForQuery: {other:?}", reply.tags()),
                }
            }
        };
        within(limit, "ReadyForQuery", read).await;
        reply
    }

    /// All messages up to and with `ReadyForQuery`.
    pub async fn reply(&mut self) -> Reply {
        self.reply_within(PATIENCE).await
    }

    /// Runs SQL with the simple protocol.
    pub async fn query(&mut self, sql: &str) -> Reply {
        self.exchange(Frames::new().query(sql)).await
    }

    /// Sends frames that end in Query or Sync, and reads their reply.
    pub async fn exchange(&mut self, frames: Frames) -> Reply {
        self.send(frames).await;
        self.reply().await
    }

    /// Nothing may come within this time.
    pub async fn expect_silence(&mut self, span: Duration) {
        match self.receive_within(span).await {
            Received::Silence => {}
            other => panic!("instead of silence: {other:?}"),
        }
    }

    /// The other end must close or reset now; gives the messages that came before.
    pub async fn expect_end(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            match self.receive_within(PATIENCE).await {
                Received::Message(message) => messages.push(message),
                Received::Closed { .. } | Received::Reset(_) => return messages,
                Received::Silence => panic!("the connection is still open, after {messages:?}"),
            }
        }
    }

    // ---- leaving ----

    /// Sends Terminate and closes.
    pub async fn terminate(mut self) {
        // The other end may have been quicker.
        let _ = self.try_send(Frames::new().terminate()).await;
        let _ = self.wire.finish().await;
    }

    /// Closes our direction only: the server sees the end, we still read.
    pub async fn finish(&mut self) {
        self.wire.finish().await.expect("the connection can be half closed");
    }

    /// Closes with RST (TCP only). Dropping the app closes with FIN and without Terminate.
    pub fn reset(self) {
        self.wire.reset();
    }
}
