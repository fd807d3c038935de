//! One relayed connection: two pumps, and an end that both share.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::cut::Action;
use super::pump::{Pump, pump};
use super::toxic::Stream;
use super::{Kind, Settings};

/// Behind a silent network a server learns of its peer's end by keepalive. Here our own kernel answers in the peer's
/// place, so we let go after what tidegate asks of servers: 2 s idle and three probes, one a second.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// What both directions of a connection know.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    /// Which toxics apply to this connection: a die in [0, 1) that toxicity is compared with.
    pub(super) die: f64,
    /// How it ends, once all that may still pass has passed.
    pub(super) end: watch::Sender<Option<Action>>,
    /// A cut has struck: nothing more is taken from either side. Else the answer to the last message that passes
    /// might outrun the end.
    struck: AtomicBool,
    /// The start of the statement that was sent last.
    statement: Mutex<String>,
    /// Whether the server's next byte answers a request for encryption.
    pub(super) encryption_asked: Mutex<bool>,
}

impl Common {
    pub(super) fn new(settings: watch::Receiver<Arc<Settings>>) -> Self {
        Self {
            settings,
            die: rand::rng().random_range(0.0..1.0),
            end: watch::Sender::new(None),
            struck: AtomicBool::new(false),
            statement: Mutex::new(String::new()),
            encryption_asked: Mutex::new(false),
        }
    }

    /// Waits until this direction is not stalled: until then no word of an end passes either.
    pub(super) async fn passage(&self, stream: Stream) {
        let mut settings = self.settings.clone();
        while self.kinds(stream).contains(&Kind::Stall {}) {
            if settings.changed().await.is_err() {
                return;
            }
        }
    }

    /// The kinds in force on one direction of this connection.
    pub(super) fn kinds(&self, stream: Stream) -> Vec<Kind> {
        let settings = Arc::clone(&self.settings.borrow());
        if settings.toxics.is_empty() {
            return Vec::new();
        }
        let applies = settings.toxics.iter().filter(|toxic| toxic.toxicity > self.die);
        applies.filter(|toxic| toxic.stream == stream).map(|toxic| toxic.kind.clone()).collect()
    }

    pub(super) fn is_struck(&self) -> bool {
        self.struck.load(Ordering::Relaxed)
    }

    pub(super) fn strike(&self) {
        self.struck.store(true, Ordering::Relaxed);
    }

    pub(super) fn statement(&self) -> String {
        self.statement.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_statement(&self, statement: String) {
        *self.statement.lock().unwrap_or_else(PoisonError::into_inner) = statement;
    }
}

/// Relays until both directions have ended, or a toxic ends the connection.
pub(super) async fn run(application: TcpStream, server: TcpStream, common: Common) {
    let mut ended = common.end.subscribe();
    let action = {
        let (from_application, to_application) = application.into_split();
        let (from_server, to_server) = server.into_split();
        let up = Pump { stream: Stream::Upstream, from: from_application, to: to_server };
        let down = Pump { stream: Stream::Downstream, from: from_server, to: to_application };
        let (mut up, mut down) = (up, down);
        let action = tokio::select! {
            _ = async { tokio::join!(pump(&mut up, &common), pump(&mut down, &common)) } => None,
            action = ended.wait_for(Option::is_some) => action.ok().and_then(|action| *action),
        };
        let reunited = (up.from.reunite(down.to), down.from.reunite(up.to));
        let (Ok(application), Ok(server)) = reunited else { return };
        (action, application, server)
    };
    finish(action).await;
}

async fn finish((action, application, server): (Option<Action>, TcpStream, TcpStream)) {
    match action {
        None | Some(Action::Close) => {}
        Some(Action::Reset) => {
            for stream in [&application, &server] {
                // Discards what is unsent, and closes with RST. Fails only for a socket that is gone.
                let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
            }
        }
        Some(Action::HalfOpen) => {
            drop(server);
            hold(application).await;
        }
        Some(Action::Silence) => {
            let (mut application, mut server) = (pin!(hold(application)), pin!(hold(server)));
            tokio::select! {
                () = &mut application => drop(timeout(KEEPALIVE, server).await),
                () = &mut server => application.await,
            }
        }
    }
}

/// Keeps a socket open until its peer ends the connection. What it sends is lost.
async fn hold(stream: TcpStream) {
    let mut buffer = vec![0; 4096];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
