//! A socket, with or without TLS on it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::TlsStream;

use super::{Buffer, Socket};

/// One end of a connection. Methods poll, so that one task can drive two streams without a second task.
#[derive(Debug)]
pub enum Stream {
    /// Clear.
    Plain(Socket),
    /// Encrypted; boxed, since TLS state is large and most sessions have none.
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    /// Whether it is without TLS.
    #[inline]
    pub fn is_clear(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Whether it is certain that a read would find nothing. Asks for no wake-up.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_quiet(),
            // It may have read more than it has given.
            Self::Tls(_) => false,
        }
    }

    /// Reads into `buffer`. Ready(0) is the end of the stream.
    #[inline]
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<usize>> {
        let space = buffer.space();
        if space.is_empty() {
            // Reading nothing would look like the end of the stream.
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        let n = match self {
            Self::Plain(socket) => ready!(socket.poll_receive(cx, space))?,
            Self::Tls(stream) => {
                let mut space = ReadBuf::new(space);
                ready!(Pin::new(stream.as_mut()).poll_read(cx, &mut space))?;
                space.filled().len()
            }
        };
        buffer.advance(n);
        Poll::Ready(Ok(n))
    }

    /// As [`Stream::poll_fill`] into a buffer that is lent only when there are bytes.
    #[inline]
    pub fn poll_fill_lent(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Option<Buffer>,
    ) -> Poll<io::Result<usize>> {
        if let Some(buffer) = buffer {
            return self.poll_fill(cx, buffer);
        }
        if let Self::Plain(socket) = self {
            loop {
                ready!(socket.poll_read_ready(cx))?;
                if let Some(received) = socket.fill_now(buffer) {
                    return Poll::Ready(received);
                }
            }
        }
        let mut lent = Buffer::lend();
        let polled = self.poll_fill(cx, &mut lent);
        if matches!(polled, Poll::Ready(Ok(1..))) {
            *buffer = Some(lent);
        }
        polled
    }

    /// Whether bytes, an error or the end of the stream are there already. Takes no system call when
    /// nothing happened on the socket.
    #[inline]
    pub fn fill_now(&mut self, buffer: &mut Option<Buffer>) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.fill_now(buffer).map_or(Poll::Pending, Poll::Ready),
            Self::Tls(_) => self.poll_fill_lent(&mut Context::from_waker(Waker::noop()), buffer),
        }
    }

    /// Writes some of `bytes`.
    #[inline]
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_send(cx, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    /// Pushes out what TLS holds back.
    #[inline]
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    /// Writes all of `bytes`.
    ///
    /// # Cancel safety
    /// Not cancel safe: how much was written is lost. Close the stream when it is dropped midway.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    /// Reads into `buffer`; 0 is the end of the stream. Cancel safe.
    pub async fn fill(&mut self, buffer: &mut Buffer) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_fill(cx, buffer)).await
    }

    /// The socket underneath.
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// The socket underneath.
    pub fn socket_mut(&mut self) -> &mut Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_mut().0,
        }
    }

    /// Says goodbye to the peer (TLS `close_notify`, FIN); ignores failures, as the stream is over anyway.
    pub async fn shutdown(&mut self) {
        let _ = match self {
            Self::Plain(socket) => socket.shutdown().await,
            Self::Tls(stream) => stream.shutdown().await,
        };
    }
}
