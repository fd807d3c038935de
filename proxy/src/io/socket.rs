//! A connected TCP or unix socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::Buffer;

/// A connected socket, registered with the runtime of the thread that polls it.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// Unix domain.
    Unix(UnixStream),
    /// On its way to another runtime (see [`Socket::rehome`]); all I/O fails.
    Detached,
}

/// How soon a dead peer is noticed.
#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    /// Silence before the first keepalive packet.
    pub idle: Duration,
    /// Between keepalive packets.
    pub interval: Duration,
    /// Unanswered packets until the connection is dead.
    pub count: u32,
    /// Longest time that sent data may stay unacknowledged.
    pub user_timeout: Duration,
}

impl Keepalive {
    /// Sets what every TCP socket of ours has: no Nagle delay, and keepalive. What a listening socket has is inherited
    /// by those that it accepts (`tcp_create_openreq_child` in Linux).
    pub fn set(&self, socket: &SockRef<'_>, loopback: bool) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        if loopback {
            // Nothing to congest between two processes of one machine; the simplest algorithm costs least.
            // Where it is not allowed the default stays.
            let _ = socket.set_tcp_congestion(b"reno");
        }
        let settings =
            TcpKeepalive::new().with_time(self.idle).with_interval(self.interval).with_retries(self.count);
        socket.set_tcp_keepalive(&settings)?;
        socket.set_tcp_user_timeout(Some(self.user_timeout))
    }
}

impl Socket {
    /// See [`Keepalive::set`]. Unix sockets need nothing of it.
    pub fn configure(&self, keepalive: &Keepalive) -> io::Result<()> {
        let Self::Tcp(stream) = self else { return Ok(()) };
        keepalive.set(&SockRef::from(stream), stream.peer_addr()?.ip().is_loopback())
    }

    /// Makes the coming close send RST and discard what is still queued: bytes that a peer has not
    /// received by then are never executed.
    pub fn reset_on_close(&self) {
        if let Self::Tcp(stream) = self {
            // Fails only on a socket that is already gone.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Moves the registration to the runtime of the calling thread.
    ///
    /// # Errors
    /// When the socket cannot be registered; it is closed then.
    pub fn rehome(&mut self) -> io::Result<()> {
        *self = match std::mem::replace(self, Self::Detached) {
            Self::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream.into_std()?)?),
            Self::Unix(stream) => Self::Unix(UnixStream::from_std(stream.into_std()?)?),
            Self::Detached => Self::Detached,
        };
        Ok(())
    }

    /// Reads into `space`, which must not be empty. Ready(0) is the end of the stream.
    ///
    /// As tokio's own read, with two differences that matter at a hundred thousand calls a second: the system
    /// call is made without libc's thread cancellation, and a pending socket costs nothing but a look.
    #[inline]
    pub fn poll_receive(&mut self, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            if let Some(received) = self.try_receive(space) {
                return Poll::Ready(received);
            }
        }
    }

    /// Reads into `space`, which must not be empty; `None` when there is nothing.
    #[inline]
    pub fn try_receive(&mut self, space: &mut [u8]) -> Option<io::Result<usize>> {
        let mut received = None;
        let attempt = match self {
            Self::Tcp(stream) => {
                stream.try_io(Interest::READABLE, || receive(&*stream, space, &mut received))
            }
            Self::Unix(stream) => {
                stream.try_io(Interest::READABLE, || receive(&*stream, space, &mut received))
            }
            Self::Detached => Err(detached()),
        };
        of_attempt(received, attempt)
    }

    /// Reads into a buffer that is lent when there is something to read; `None` when there is nothing.
    #[inline]
    pub fn fill_now(&self, buffer: &mut Option<Buffer>) -> Option<io::Result<usize>> {
        let mut received = None;
        let mut fill = |socket: BorrowedFd<'_>| {
            let mut lent = Buffer::lend();
            let emptied = receive(socket, lent.space(), &mut received);
            if let Some(n @ 1..) = received {
                lent.advance(n);
                *buffer = Some(lent);
            }
            emptied
        };
        let attempt = match self {
            Self::Tcp(stream) => stream.try_io(Interest::READABLE, || fill(stream.as_fd())),
            Self::Unix(stream) => stream.try_io(Interest::READABLE, || fill(stream.as_fd())),
            Self::Detached => Err(detached()),
        };
        of_attempt(received, attempt)
    }

    /// Whether nothing has come since the last read that found nothing. Takes no system call and asks for no wake-up.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        let look = match self {
            Self::Tcp(stream) => stream.try_io(Interest::READABLE, || Ok(())),
            Self::Unix(stream) => stream.try_io(Interest::READABLE, || Ok(())),
            Self::Detached => Ok(()),
        };
        look.is_err()
    }

    /// Whether a read would find something. Takes no system call.
    #[inline]
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
            Self::Detached => Poll::Ready(Err(detached())),
        }
    }

    /// Writes some of `bytes`. See [`Socket::poll_receive`].
    #[inline]
    pub fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            // First as if there were room, which there nearly always is: to ask for it costs more than to see.
            match self.try_send(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.poll_write_ready(cx))?,
                sent => return Poll::Ready(sent),
            }
        }
    }

    #[inline]
    fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_io(Interest::WRITABLE, || transmit(stream, bytes)),
            Self::Unix(stream) => stream.try_io(Interest::WRITABLE, || transmit(stream, bytes)),
            Self::Detached => Err(detached()),
        }
    }

    #[cold]
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
            Self::Detached => Poll::Ready(Err(detached())),
        }
    }
}

/// What an attempt to read has brought; `None` when there was nothing to read.
#[inline]
fn of_attempt(received: Option<usize>, attempt: io::Result<()>) -> Option<io::Result<usize>> {
    match (received, attempt) {
        (Some(n), _) => Some(Ok(n)),
        (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Some(Err(error)),
        (None, _) => None,
    }
}

/// Reads what is there. Less than there is space for means that the socket is drained: the readiness is
/// cleared then (by reporting `WouldBlock`), which saves the read that would only find nothing.
#[inline]
fn receive(socket: impl AsFd, space: &mut [u8], received: &mut Option<usize>) -> io::Result<()> {
    let len = space.len();
    let (_, n) = rustix::net::recv(socket, space, RecvFlags::empty())?;
    *received = Some(n);
    if n > 0 && n < len { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
}

#[inline]
fn transmit(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?)
}

fn detached() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "socket is between two runtimes")
}

impl AsyncRead for Socket {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Detached => Poll::Ready(Err(detached())),
        }
    }
}

impl AsyncWrite for Socket {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Detached => Poll::Ready(Err(detached())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Detached => Poll::Ready(Ok(())),
        }
    }
}
