//! `CancelRequest`: on a connection of its own, read to its end, under a deadline.
//!
//! A cancel names a backend, not a statement. Whoever sends one holds a [`CancelInFlight`] for as long as it
//! may still hit; a backend with one in flight is never given to another session, nor is one for which a cancel was
//! sent that the server did not confirm.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::connect::encrypt;
use crate::directory::Directory;
use crate::io::{Buffer, Socket, Stream};
use crate::tls::ClientTls;
use crate::wire::startup;

/// Waiting for a place, connecting, TLS, sending and waiting for the end of the stream, together.
pub const CANCEL_DEADLINE: Duration = Duration::from_millis(500);

/// Cancels to one server at the same time. They must not need what the stuck traffic holds.
const AT_A_TIME: usize = 4;

/// The places for cancels at each server that has a backend. By server: those of a frozen one are taken for all of
/// [`CANCEL_DEADLINE`]. By its address, so that a reload does not double them.
static BULKHEADS: Mutex<BTreeMap<Peer, Weak<Semaphore>>> = Mutex::new(BTreeMap::new());

static TARGETS: Directory<CancelTarget> = Directory::new();

/// Where a backend is, for a second connection to the very same server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
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
    bulkhead: Arc<Semaphore>,
    in_flight: AtomicU32,
    landed: Notify,
    /// A cancel was given up on and may arrive at any time. Never taken back: that another one has landed says nothing
    /// about it.
    doomed: AtomicBool,
}

/// Why a cancel may not have arrived.
#[derive(Debug, Error)]
pub enum CancelError {
    /// Other cancels held all places at its server for [`CANCEL_DEADLINE`]. It was not sent.
    #[error("no room for one more cancel request to this server")]
    Crowded,
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
        let bulkhead = bulkhead(&peer);
        TARGETS.enter(|number| Self {
            number,
            bulkhead,
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
        CancelInFlight { target: Arc::clone(self), progress: Progress::Unsent }
    }
}

impl Drop for CancelTarget {
    fn drop(&mut self) {
        TARGETS.leave(self.number);
    }
}

/// A cancel that may still hit its backend. The threat ends when this is dropped, unless it was sent and the server has
/// not confirmed it: then the backend is doomed.
#[must_use]
#[derive(Debug)]
pub struct CancelInFlight {
    target: Arc<CancelTarget>,
    progress: Progress,
}

/// How far a cancel got.
#[derive(Debug, Clone, Copy)]
enum Progress {
    /// The server cannot have seen it.
    Unsent,
    /// Nobody knows whether the server has seen it.
    OnItsWay,
    /// The server is done with it.
    Landed,
}

impl Drop for CancelInFlight {
    fn drop(&mut self) {
        match self.progress {
            // Before it stops being in flight: there must be no moment without any sign of it.
            Progress::OnItsWay => self.target.doomed.store(true, Ordering::Release),
            Progress::Unsent | Progress::Landed => {}
        }
        self.target.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.target.landed.notify_waiters();
    }
}

impl CancelInFlight {
    /// Sends the cancel and waits until the server closes the connection, which it does after the signal is
    /// sent: `libpq` waits for the same reason (`fe-cancel.c`).
    ///
    /// # Errors
    /// It was not delivered, or may not have been.
    ///
    /// # Cancel safety
    /// Dropping it ends the wait. If it was sent by then, it may or may not arrive, and the backend is doomed.
    pub async fn send(mut self) -> Result<(), CancelError> {
        let deadline = Instant::now() + CANCEL_DEADLINE;
        let place = Arc::clone(&self.target.bulkhead).acquire_owned();
        let _place = match timeout_at(deadline, place).await {
            Ok(place) => place.map_err(io::Error::other)?,
            Err(_) => return Err(CancelError::Crowded),
        };
        match timeout_at(deadline, self.deliver()).await {
            Ok(delivered) => delivered,
            Err(_) => Err(CancelError::Timeout),
        }
    }

    async fn deliver(&mut self) -> Result<(), CancelError> {
        let mut stream = self.target.connect().await?;
        let request = startup::cancel_request(self.target.process_id, &self.target.secret);
        self.progress = Progress::OnItsWay;
        stream.write_all(&request).await?;
        read_to_end(&mut stream).await?;
        self.progress = Progress::Landed;
        Ok(())
    }
}

impl CancelTarget {
    /// A second connection to the server, up to the first packet.
    async fn connect(&self) -> Result<Stream, CancelError> {
        let mut socket = match &self.peer {
            Peer::Tcp(address) => Socket::Tcp(TcpStream::connect(address).await?),
            Peer::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
        };
        let Some((tls, host)) = &self.tls else { return Ok(Stream::Plain(socket)) };
        socket.write_all(&startup::ssl_request()).await?;
        if socket.read_u8().await? != b'S' {
            return Err(CancelError::Tls);
        }
        encrypt(socket, tls, host).await.map_err(|_| CancelError::Tls)
    }
}

/// The places for cancels at this server.
fn bulkhead(peer: &Peer) -> Arc<Semaphore> {
    let mut bulkheads = BULKHEADS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = bulkheads.get(peer).and_then(Weak::upgrade) {
        return known;
    }
    // Those of servers without a backend: there must not be more of them than servers at any time.
    bulkheads.retain(|_, bulkhead| bulkhead.strong_count() > 0);
    let bulkhead = Arc::new(Semaphore::new(AT_A_TIME));
    bulkheads.insert(peer.clone(), Arc::downgrade(&bulkhead));
    bulkhead
}

/// The server sends nothing and ends without a word of TLS. Any other error may come from somewhere in between, while
/// the cancel goes on to the server.
async fn read_to_end(stream: &mut Stream) -> io::Result<()> {
    let mut input = Buffer::lend();
    loop {
        match stream.fill(&mut input).await {
            Ok(0) => return Ok(()),
            Ok(_) => input.consume(input.unread().len()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    const SECRET: [u8; 4] = [1, 2, 3, 4];
    /// Length, code, process id and secret.
    const REQUEST_LEN: usize = 16;

    /// A server that does as the test says, and a backend there.
    async fn server() -> (TcpListener, Arc<CancelTarget>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = backend_of(&listener);
        (listener, target)
    }

    fn backend_of(server: &TcpListener) -> Arc<CancelTarget> {
        CancelTarget::new(Peer::Tcp(server.local_addr().unwrap()), None, 1, SECRET.to_vec())
    }

    fn send(target: &Arc<CancelTarget>) -> JoinHandle<Result<(), CancelError>> {
        tokio::spawn(target.announce().send())
    }

    /// Takes one cancel in. Its sender waits until this is dropped.
    async fn receive(server: &TcpListener) -> TcpStream {
        let (mut stream, _) = server.accept().await.unwrap();
        stream.read_exact(&mut [0; REQUEST_LEN]).await.unwrap();
        stream
    }

    async fn land(server: &TcpListener, target: &Arc<CancelTarget>) {
        let cancel = send(target);
        drop(receive(server).await);
        cancel.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_cancel_that_lands_leaves_no_threat() {
        // Each cancelled statement would cost a backend.
        let (server, target) = server().await;

        let cancel = send(&target);
        let received = receive(&server).await;
        assert!(target.is_threatened() && target.is_being_cancelled());
        drop(received);
        cancel.await.unwrap().unwrap();

        assert!(!target.is_threatened() && !target.is_being_cancelled());
    }

    #[tokio::test]
    async fn a_cancel_without_an_answer_dooms_its_backend_whatever_becomes_of_others() {
        // Another one that landed, before its time was over or after, would clear the backend for a session that the
        // first may still hit.
        let (server, target) = server().await;
        let unanswered = send(&target);
        let _received = receive(&server).await;

        land(&server, &target).await;
        assert!(target.is_being_cancelled());
        assert!(matches!(unanswered.await.unwrap(), Err(CancelError::Timeout)));

        assert!(target.is_doomed() && target.is_threatened() && !target.is_being_cancelled());
        land(&server, &target).await;
        assert!(target.is_doomed() && target.is_threatened());
    }

    #[tokio::test]
    async fn a_cancel_that_is_dropped_on_its_way_dooms_its_backend() {
        // The server may have it already, and act on it when the backend is another session's.
        let (server, target) = server().await;
        let cancel = send(&target);
        let _received = receive(&server).await;

        cancel.abort();
        assert!(cancel.await.unwrap_err().is_cancelled());

        assert!(target.is_doomed() && !target.is_being_cancelled());
    }

    #[tokio::test]
    async fn a_cancel_that_broke_before_the_server_closed_it_dooms_its_backend() {
        // A middlebox that resets the connection may have passed the cancel on.
        let (server, target) = server().await;
        let cancel = send(&target);

        let received = receive(&server).await;
        received.set_zero_linger().unwrap();
        drop(received);

        assert!(matches!(cancel.await.unwrap(), Err(CancelError::Io(_))));
        assert!(target.is_doomed());
    }

    #[tokio::test]
    async fn a_cancel_that_was_not_sent_dooms_nobody() {
        // It cannot arrive; closing backends is what a server in trouble needs least.
        let (server, target) = server().await;
        drop(target.announce());
        assert!(!target.is_threatened());
        drop(server);

        assert!(matches!(target.announce().send().await, Err(CancelError::Io(_))));

        assert!(!target.is_threatened());
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancel_that_finds_no_room_is_reported_and_dooms_nobody() {
        // As above; and whoever is told that it was delivered would wait for its effect.
        let target = CancelTarget::new(Peer::Unix("/nowhere/crowded".into()), None, 1, SECRET.to_vec());
        let taken = u32::try_from(AT_A_TIME).unwrap();
        let _places = target.bulkhead.acquire_many(taken).await.unwrap();

        assert!(matches!(target.announce().send().await, Err(CancelError::Crowded)));

        assert!(!target.is_threatened());
    }

    #[tokio::test]
    async fn cancels_at_a_frozen_server_take_no_room_from_others() {
        // In a common bulkhead the healthy server's cancel would find no room, though nothing is wrong there.
        let ((frozen, stuck), (healthy, target)) = (server().await, server().await);
        let _cancel = send(&stuck);
        let _received = receive(&frozen).await;
        let others = backend_of(&frozen).bulkhead.available_permits();
        assert_eq!(others, AT_A_TIME - 1, "backends of one server have their places in common");
        let _places = stuck.bulkhead.try_acquire_many(u32::try_from(others).unwrap()).unwrap();

        tokio::spawn(async move { drop(receive(&healthy).await) });
        target.announce().send().await.unwrap();
    }
}
