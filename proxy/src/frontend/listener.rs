//! Accepting connections and handing each to the least loaded worker, where it stays.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::login::{Accepted, Entered, log_in};
use crate::config::ListenAddress;
use crate::exchange::Refusal;
use crate::io::socket::Keepalive;
use crate::io::{Buffer, Socket, Stream};
use crate::server::Shared;
use crate::wire::startup::{StartupPacket, packet_len};

/// Pending connections that the kernel keeps for us.
const BACKLOG: i32 = 1024;

/// Pause after a failed accept: out of file descriptors does not get better by trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many that are too many are told so at the same time; beyond, connections are closed without a word.
const TURNED_AWAY: usize = 256;
static TURNING_AWAY: Semaphore = Semaphore::const_new(TURNED_AWAY);

/// Applications are on this machine or near it; a dead one is found within a minute.
const KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    count: 3,
    user_timeout: Duration::from_mins(1),
};

/// An open listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP, not yet registered with a runtime.
    Tcp(std::net::TcpListener),
    /// Unix domain, with the file that goes when we do.
    Unix(std::os::unix::net::UnixListener, SocketFile),
}

/// A socket's file; removed on drop.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Opens the socket.
    ///
    /// # Errors
    /// When the address is not ours, or taken.
    pub fn open(address: &ListenAddress) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => {
                let domain = socket2::Domain::for_address(*address);
                let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                KEEPALIVE.set(&SockRef::from(&socket), address.ip().is_loopback())?;
                socket.bind(&(*address).into())?;
                socket.listen(BACKLOG)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Tcp(socket.into()))
            }
            ListenAddress::Unix(path) => {
                remove_stale(path)?;
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                let file = SocketFile(path.clone());
                // As PostgreSQL's unix_socket_permissions: who may connect is decided by authentication.
                std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// The address, for people.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|e| e.to_string(), |a| a.to_string()),
            Self::Unix(_, file) => format!("unix:{}", file.0.display()),
        }
    }

    /// Accepts until the future is dropped. Runs on the first worker.
    pub async fn run(self, shared: Arc<Shared>) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    match listener.accept().await {
                        Ok((stream, peer)) => shared.admit(Socket::Tcp(stream), Some(peer)),
                        Err(error) => pause(&error).await,
                    }
                }
            }
            Self::Unix(listener, _file) => {
                let listener = UnixListener::from_std(listener)?;
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => shared.admit(Socket::Unix(stream), None),
                        Err(error) => pause(&error).await,
                    }
                }
            }
        }
    }
}

/// A socket file that nobody listens on is left from a process that died.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(_) => std::fs::remove_file(path),
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(error = error as &dyn std::error::Error, "cannot accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

impl Shared {
    /// Takes a connection in, on the least loaded worker.
    fn admit(self: &Arc<Self>, mut socket: Socket, peer: Option<SocketAddr>) {
        let max = self.config.load().listen.max_sessions;
        // Beyond the limit a few are looked at, since one of them may be an operator.
        let registration = self.registry.register(peer, max).or_else(|| self.registry.register_extra(peer));
        let Some(registration) = registration else {
            if let Ok(place) = TURNING_AWAY.try_acquire() {
                tokio::spawn(turn_away(socket, max, Arc::clone(self), place));
            }
            return;
        };
        let worker = self.least_loaded();
        let shared = Arc::clone(self);
        let load = worker.load();
        let index = worker.index;
        worker.handle.spawn(async move {
            let _load = load;
            if index != 0 && socket.rehome().is_err() {
                return;
            }
            let accepted = Accepted { socket, peer, registration, worker: index };
            // Boxed: what waits here for as long as a session lasts must be small.
            match Box::pin(log_in(accepted, shared)).await {
                Some(Entered::Session(session)) => session.run().await,
                Some(Entered::Console(console)) => console.start(),
                None => {}
            }
        });
    }
}

/// Says that there are too many sessions. A cancel is still served: it makes room.
async fn turn_away(socket: Socket, limit: usize, shared: Arc<Shared>, _place: SemaphorePermit<'static>) {
    let mut stream = Stream::Plain(socket);
    let conversation = async {
        if let Some(StartupPacket::Cancel { process_id, secret }) = unencrypted(&mut stream).await? {
            crate::telemetry::metrics::get().cancels.increment(1);
            shared.registry.cancel(process_id, &secret).await;
            return Ok(());
        }
        let mut out = Vec::new();
        let refusal = Refusal::TooManySessions { limit };
        crate::telemetry::lanes::refused(None, refusal.reason());
        refusal.put_fatal("-", &mut out);
        stream.write_all(&out).await?;
        stream.shutdown().await;
        io::Result::Ok(())
    };
    // A peer that says nothing is not waited for.
    let _ = tokio::time::timeout(Duration::from_secs(1), conversation).await;
}

/// What follows when encryption is declined: whoever asks for that shows no error to its user, but believes that it
/// comes from somebody in between. `None` is no packet.
async fn unencrypted(stream: &mut Stream) -> io::Result<Option<StartupPacket>> {
    let mut input = Buffer::lend();
    loop {
        let Ok(len) = packet_len(input.unread()) else { return Ok(None) };
        let Some(packet) = len.and_then(|len| input.unread().get(..len)) else {
            if stream.fill(&mut input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            continue;
        };
        let (len, packet) = (packet.len(), StartupPacket::read(packet));
        input.consume(len);
        match packet {
            Ok(StartupPacket::SslRequest | StartupPacket::GssEncRequest) => stream.write_all(b"N").await?,
            packet => return Ok(packet.ok()),
        }
    }
}
