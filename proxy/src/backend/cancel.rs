//! `CancelRequest`: on a connection of its own, read to its end, under a deadline.
//!
//! A cancel names a backend, not a statement. Whoever sends one holds a [`CancelInFlight`] for as long as it
//! may still hit; a backend with one in flight is never given to another session.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, Semaphore};

use super::connect::encrypt;
use crate::directory::Directory;
use crate::io::{Socket, Stream};
use crate::tls::ClientTls;
use crate::wire::startup;

/// Connecting, TLS, sending and waiting for the end of the stream, together.
pub const CANCEL_DEADLINE: Duration = Duration::from_millis(500);

/// Cancels to all servers at the same time. They must not need what the stuck traffic holds.
static BULKHEAD: Semaphore = Semaphore::const_new(4);

static TARGETS: Directory<CancelTarget> = Directory::new();

/// Where a backend is, for a second connection to the very same server.
#[derive(Debug, Clone)]
pub enum Peer {
    /// The address that the first connection reached (names are not resolved again).
    Tcp(SocketAddr),
    /// Path of the unix socket.
    Unix(PathBuf),
}

/// What it takes to cancel what a backend runs.
#[derive(Debug)]
pub struct CancelTarget {
    /// Leads to it; see [`CancelTarget::numbered`].
    pub number: u64,
    /// The server.
    pub peer: Peer,
    /// TLS, when the backend's own connection has it, and the host name to verify.
    pub tls: Option<(Arc<ClientTls>, String)>,
    /// Process id at the server.
    pub process_id: u32,
    /// The secret that goes with it.
    pub secret: Vec<u8>,
    /// When the backend logged in; on the clock.
    pub opened_at_ms: u64,
    in_flight: AtomicU32,
    landed: Notify,
    /// A cancel was given up on and may arrive at any time.
    doomed: AtomicBool,
}

/// Why a cancel may not have arrived.
#[derive(Debug, Error)]
pub enum CancelError {
    /// It took longer than [`CANCEL_DEADLINE`].
    #[error("cancel request timed out")]
    Timeout,
    /// The connection failed.
    #[error("cancel request failed")]
    Io(#[from] io::Error),
    /// TLS failed.
    #[error("cancel request failed in TLS")]
    Tls,
}

impl CancelTarget {
    /// For a backend that has just logged in.
    pub fn new(
        peer: Peer,
        tls: Option<(Arc<ClientTls>, String)>,
        process_id: u32,
        secret: Vec<u8>,
    ) -> Arc<Self> {
        TARGETS.enter(|number| Self {
            number,
            peer,
            tls,
            process_id,
            secret,
            opened_at_ms: crate::clock::now_ms(),
            in_flight: AtomicU32::new(0),
            landed: Notify::new(),
            doomed: AtomicBool::new(false),
        })
    }

    /// The one with this number, while its backend is there.
    pub fn numbered(number: u64) -> Option<Arc<Self>> {
        TARGETS.get(number)
    }

    /// Whether a cancel may still hit this backend. To be asked after the session has said that it lets go of it
    /// (`Entry::serve`): in the one order of all `SeqCst` operations, either this sees the announcement, or whoever
    /// announces sees that the backend is not the session's any more.
    #[inline]
    pub fn is_threatened(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) > 0 || self.is_doomed()
    }

    /// Whether a cancel may hit this backend at any time for as long as it lives: nobody knows what became of
    /// one that got no answer.
    #[inline]
    pub fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::Acquire)
    }

    /// Whether a cancel is being sent.
    #[inline]
    pub fn is_being_cancelled(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) > 0
    }

    /// Waits until no cancel is in flight.
    pub async fn settled(&self) {
        loop {
            let landed = self.landed.notified();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                return;
            }
            landed.await;
        }
    }

    /// Announces a cancel. Before it is sent the backend must be seen to serve the session that asks, still or
    /// again.
    pub fn announce(self: &Arc<Self>) -> CancelInFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        CancelInFlight(Arc::clone(self))
    }
}

impl Drop for CancelTarget {
    fn drop(&mut self) {
        TARGETS.leave(self.number);
    }
}

/// A cancel that may still hit its backend; the threat ends when this is dropped.
#[must_use]
#[derive(Debug)]
pub struct CancelInFlight(Arc<CancelTarget>);

impl Drop for CancelInFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.0.landed.notify_waiters();
    }
}

impl CancelInFlight {
    /// Sends the cancel and waits until the server closes the connection, which it does after the signal is
    /// sent: `libpq` waits for the same reason (`fe-cancel.c`).
    ///
    /// # Cancel safety
    /// Dropping it ends the wait; the cancel may or may not arrive.
    pub async fn send(self) -> Result<(), CancelError> {
        // Until the server has said that it is done, whatever happens to this future.
        self.0.doomed.store(true, Ordering::Release);
        let sent = match tokio::time::timeout(CANCEL_DEADLINE, self.send_unbounded()).await {
            Ok(sent) => sent,
            Err(_) => Err(CancelError::Timeout),
        };
        if sent.is_ok() {
            self.0.doomed.store(false, Ordering::Release);
        }
        sent
    }

    async fn send_unbounded(&self) -> Result<(), CancelError> {
        let _place = BULKHEAD.acquire().await.map_err(io::Error::other)?;
        let target = &*self.0;
        let socket = match &target.peer {
            Peer::Tcp(address) => Socket::Tcp(TcpStream::connect(address).await?),
            Peer::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
        };
        let mut stream = match &target.tls {
            None => Stream::Plain(socket),
            Some((tls, host)) => {
                let mut socket = socket;
                socket.write_all(&startup::ssl_request()).await?;
                if socket.read_u8().await? != b'S' {
                    return Err(CancelError::Tls);
                }
                encrypt(socket, tls, host).await.map_err(|_| CancelError::Tls)?
            }
        };
        stream.write_all(&startup::cancel_request(target.process_id, &target.secret)).await?;
        let mut end = crate::io::Buffer::lend();
        // The server sends nothing; an error is an end as well.
        while matches!(stream.fill(&mut end).await, Ok(1..)) {
            end.consume(end.unread().len());
        }
        Ok(())
    }
}
