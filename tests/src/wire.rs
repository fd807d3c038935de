//! A connection that is read message by message, by either end.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::message::Message;

/// What a connection runs over: TCP, a unix socket, TLS.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What came from the other end.
#[derive(Debug)]
pub enum Received {
    /// A message.
    Message(Message),
    /// The other end closed, at a message boundary or not.
    Closed {
        /// Bytes of a message that was never finished.
        rest: Bytes,
    },
    /// The connection was reset.
    Reset(io::Error),
    /// Nothing, or not enough, within the limit. What came is kept for the next read.
    Silence,
}

pub(crate) struct Wire {
    carrier: Carrier,
    buffer: BytesMut,
}

/// TCP is known as such, because it can be reset.
enum Carrier {
    Tcp(TcpStream),
    Other(Box<dyn Stream>),
}

impl Carrier {
    fn stream(&mut self) -> &mut dyn Stream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Other(stream) => stream,
        }
    }
}

/// Whether a packet begins with a tag.
#[derive(Clone, Copy)]
enum Shape {
    Tagged,
    Untagged,
}

impl Wire {
    pub(crate) fn tcp(stream: TcpStream) -> Self {
        // Bytes leave as the test splits them.
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Self { carrier: Carrier::Tcp(stream), buffer: BytesMut::new() }
    }

    pub(crate) fn over(stream: Box<dyn Stream>) -> Self {
        Self { carrier: Carrier::Other(stream), buffer: BytesMut::new() }
    }

    pub(crate) fn into_stream(self) -> Box<dyn Stream> {
        assert!(self.buffer.is_empty(), "bytes that came early would be lost");
        match self.carrier {
            Carrier::Tcp(stream) => Box::new(stream),
            Carrier::Other(stream) => stream,
        }
    }

    /// Closes with RST instead of FIN.
    pub(crate) fn reset(self) {
        let Carrier::Tcp(stream) = &self.carrier else { panic!("only TCP connections can be reset") };
        SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }

    /// Ends our direction; the other stays open.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        self.carrier.stream().shutdown().await
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = self.carrier.stream();
        stream.write_all(bytes).await?;
        stream.flush().await
    }

    pub(crate) async fn receive(&mut self, limit: Duration) -> Received {
        self.packet(Shape::Tagged, limit).await
    }

    /// A packet of the startup phase, whose tag is given as 0.
    pub(crate) async fn receive_untagged(&mut self, limit: Duration) -> Received {
        self.packet(Shape::Untagged, limit).await
    }

    pub(crate) async fn receive_byte(&mut self, limit: Duration) -> Option<u8> {
        let deadline = Instant::now() + limit;
        while self.buffer.is_empty() {
            if !matches!(
                timeout_at(deadline, self.carrier.stream().read_buf(&mut self.buffer)).await,
                Ok(Ok(1..))
            ) {
                return None;
            }
        }
        Some(self.buffer.get_u8())
    }

    /// Cancel safe: what has been read stays in the buffer.
    async fn packet(&mut self, shape: Shape, limit: Duration) -> Received {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(message) = self.take(shape) {
                return Received::Message(message);
            }
            match timeout_at(deadline, self.carrier.stream().read_buf(&mut self.buffer)).await {
                Err(_) => return Received::Silence,
                Ok(Ok(0)) => return Received::Closed { rest: self.buffer.split().freeze() },
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Received::Reset(error),
            }
        }
    }

    fn take(&mut self, shape: Shape) -> Option<Message> {
        let head = match shape {
            Shape::Tagged => 1,
            Shape::Untagged => 0,
        };
        let length = self.buffer.get(head..head + 4)?;
        let length = u32::from_be_bytes(length.try_into().ok()?);
        let length = usize::try_from(length).ok().filter(|length| *length >= 4).expect("a valid length");
        if self.buffer.len() < head + length {
            return None;
        }
        let mut packet = self.buffer.split_to(head + length).freeze();
        let tag = if head == 1 { packet[0] } else { 0 };
        packet.advance(head + 4);
        Some(Message { tag, body: packet })
    }
}
