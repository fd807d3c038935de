//! What the bytes of a connection prove.
//!
//! The driver does not say in which transaction status a connection is, nor whether it still owes an answer. So the
//! frame headers are read on their way through a [`Tap`]: each Query, Sync and `FunctionCall` that went out owes one
//! `ReadyForQuery`, and its one byte says idle, in transaction or failed (`PostgreSQL` documentation, "Message Flow").
//! A connection is *idle* when nothing is owed and the last word was `I`; nothing else counts as proof.
//!
//! The driver closes a prepared statement behind its user's back when the last handle is dropped. Such an exchange, of
//! Close and Sync alone, is not counted as owed: it does nothing, and what comes next is answered in order.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio_postgres::tls::{ChannelBinding, TlsStream};

/// Status before the login is over.
const NOT_YET: u8 = 0;

/// What is known of one connection; shared by its two ends.
#[derive(Debug, Default)]
pub(crate) struct WireState {
    owed: AtomicU32,
    status: AtomicU8,
    pid: AtomicI32,
    /// The server said that a commit is durable but not replicated.
    unreplicated: AtomicBool,
    settled: Notify,
}

impl WireState {
    /// Nothing is owed and no transaction is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_settled() && self.status.load(Ordering::Acquire) == b'I'
    }

    /// Nothing is owed, and a transaction is open that can still commit.
    pub(crate) fn is_in_transaction(&self) -> bool {
        self.is_settled() && self.status.load(Ordering::Acquire) == b'T'
    }

    /// Every exchange that was written has been answered.
    pub(crate) fn is_settled(&self) -> bool {
        self.owed.load(Ordering::Acquire) == 0
    }

    /// Waits until every exchange that was written has been answered.
    ///
    /// # Cancel safety
    /// Holds nothing.
    pub(crate) async fn settle(&self) {
        loop {
            let settled = self.settled.notified();
            if self.is_settled() {
                return;
            }
            settled.await;
        }
    }

    /// Process id of the backend, as it said at login; zero before.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// A notice with the routine `SyncRepWaitForLSN` came (`src/backend/replication/syncrep.c`): the commit that it
    /// belongs to is durable here and nowhere else.
    pub(crate) fn mark_unreplicated(&self) {
        self.unreplicated.store(true, Ordering::Release);
    }

    /// Whether it came since the last call.
    pub(crate) fn take_unreplicated(&self) -> bool {
        self.unreplicated.load(Ordering::Acquire) && self.unreplicated.swap(false, Ordering::AcqRel)
    }

    fn owe(&self) {
        self.owed.fetch_add(1, Ordering::AcqRel);
    }

    fn answered(&self) {
        if self.owed.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settled.notify_waiters();
        }
    }

    fn logged_in(&self) -> bool {
        self.status.load(Ordering::Acquire) != NOT_YET
    }
}

/// The header of a frame and the first bytes of its body.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Frame {
    tag: u8,
    prefix: [u8; 4],
}

/// Cuts a stream of bytes into frames, wherever it is split. Keeps eight bytes, copies no bodies.
#[derive(Debug, Default)]
struct Splitter {
    header: [u8; 5],
    header_len: usize,
    prefix: [u8; 4],
    prefix_len: usize,
    /// Bytes of the body that are still to come.
    left: usize,
}

impl Splitter {
    fn feed(&mut self, mut bytes: &[u8], mut found: impl FnMut(&Frame)) {
        while !bytes.is_empty() {
            if self.header_len == 0
                && let Some((frame, rest)) = whole(bytes)
            {
                found(&frame);
                bytes = rest;
                continue;
            }
            if self.header_len < 5 {
                bytes = self.take_header(bytes);
                if self.header_len < 5 {
                    return;
                }
            } else {
                bytes = self.take_body(bytes);
            }
            if self.left == 0 {
                found(&Frame { tag: self.header[0], prefix: self.prefix });
                *self = Self::default();
            }
        }
    }

    fn take_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (now, rest) = bytes.split_at(bytes.len().min(5 - self.header_len));
        self.header[self.header_len..self.header_len + now.len()].copy_from_slice(now);
        self.header_len += now.len();
        if self.header_len == 5 {
            self.left = body_len(self.header);
        }
        rest
    }

    fn take_body<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (now, rest) = bytes.split_at(bytes.len().min(self.left));
        let wanted = now.len().min(4 - self.prefix_len);
        self.prefix[self.prefix_len..self.prefix_len + wanted].copy_from_slice(&now[..wanted]);
        self.prefix_len += wanted;
        self.left -= now.len();
        rest
    }
}

/// The length counts itself. A shorter one is nonsense; the driver will say so.
fn body_len([_, a, b, c, d]: [u8; 5]) -> usize {
    (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(4)
}

/// A frame that is all there, and what comes behind it: nearly always so, and nothing is copied then.
fn whole(bytes: &[u8]) -> Option<(Frame, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<5>()?;
    let (body, rest) = rest.split_at_checked(body_len(*header))?;
    // Short bodies that anybody looks into have one byte.
    let prefix = body.first_chunk().copied().unwrap_or([body.first().copied().unwrap_or(0), 0, 0, 0]);
    Some((Frame { tag: header[0], prefix }, rest))
}

/// An exchange that was sent and not yet answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exchange {
    /// Ended by Query or `FunctionCall`.
    Simple,
    /// Ended by Sync.
    Extended,
    /// Close and Sync: it does nothing.
    Closing,
}

/// What is owed, in order; the part of the bookkeeping that only the connection's own task needs.
#[derive(Debug, Default)]
struct Ledger {
    exchanges: VecDeque<Exchange>,
    /// Whether the messages since the last Sync are Closes alone.
    closing: bool,
}

impl Ledger {
    fn sent(&mut self, tag: u8, state: &WireState) {
        let exchange = match tag {
            b'Q' | b'F' => Exchange::Simple,
            b'S' if std::mem::take(&mut self.closing) => Exchange::Closing,
            b'S' => Exchange::Extended,
            b'C' => {
                self.closing = true;
                return;
            }
            _ => {
                self.closing = false;
                return;
            }
        };
        if exchange != Exchange::Closing {
            state.owe();
        }
        self.exchanges.push_back(exchange);
    }

    fn received(&mut self, frame: Frame, state: &WireState) {
        match frame.tag {
            b'Z' => {
                state.status.store(frame.prefix[0], Ordering::Release);
                // The one that ends the login answers nothing.
                self.answer(state);
            }
            // In copy-in mode the server ignores the Sync that was sent behind the Execute.
            b'G' if self.exchanges.front() == Some(&Exchange::Extended) => self.answer(state),
            b'K' => state.pid.store(i32::from_be_bytes(frame.prefix), Ordering::Relaxed),
            _ => {}
        }
    }

    fn answer(&mut self, state: &WireState) {
        match self.exchanges.pop_front() {
            Some(Exchange::Simple | Exchange::Extended) => state.answered(),
            Some(Exchange::Closing) | None => {}
        }
    }
}

/// What a tap makes of the first byte that the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// Nothing has come yet.
    Unknown,
    /// Frames in the clear.
    Frames,
    /// TLS: another tap sits above it.
    Blind,
}

/// Passes bytes through and tells a [`WireState`] what they prove.
#[derive(Debug)]
pub(crate) struct Tap<S> {
    inner: S,
    state: Arc<WireState>,
    sight: Sight,
    inbound: Splitter,
    outbound: Splitter,
    ledger: Ledger,
}

impl<S> Tap<S> {
    /// Over a socket, where the server may answer an `SSLRequest` first.
    pub(crate) fn over_socket(inner: S, state: Arc<WireState>) -> Self {
        Self::new(inner, state, Sight::Unknown)
    }

    /// Over TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn over_tls(inner: S, state: Arc<WireState>) -> Self {
        Self::new(inner, state, Sight::Frames)
    }

    fn new(inner: S, state: Arc<WireState>, sight: Sight) -> Self {
        let (inbound, outbound) = (Splitter::default(), Splitter::default());
        Self { inner, state, sight, inbound, outbound, ledger: Ledger::default() }
    }

    fn see_inbound(&mut self, mut bytes: &[u8]) {
        /// First byte of a TLS record with a handshake (RFC 8446, section 5.1): TLS without `SSLRequest`.
        const TLS_HANDSHAKE: u8 = 0x16;
        if let (Sight::Unknown, Some(first)) = (self.sight, bytes.first()) {
            self.sight = match *first {
                b'S' | TLS_HANDSHAKE => Sight::Blind,
                // "No TLS here": one byte, no frame.
                b'N' => {
                    bytes = &bytes[1..];
                    Sight::Frames
                }
                _ => Sight::Frames,
            };
        }
        if self.sight == Sight::Frames {
            self.inbound.feed(bytes, |frame| self.ledger.received(*frame, &self.state));
        }
    }

    fn see_outbound(&mut self, bytes: &[u8]) {
        // Before the login is over there are packets without a tag, and nothing is owed.
        if self.sight == Sight::Frames && self.state.logged_in() {
            self.outbound.feed(bytes, |frame| self.ledger.sent(frame.tag, &self.state));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.see_inbound(&buf.filled()[before..]);
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = poll {
            self.see_outbound(&buf[..written]);
        }
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Tap<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag][..], &length, body].concat()
    }

    fn logged_in() -> Tap<()> {
        let mut tap = Tap::over_socket((), Arc::new(WireState::default()));
        tap.see_inbound(&[frame(b'R', &[0; 4]), frame(b'K', &[0, 0, 1, 2, 9, 9, 9, 9])].concat());
        tap.see_inbound(&frame(b'Z', b"I"));
        tap
    }

    #[test]
    fn a_login_ends_idle_and_says_which_backend_it_is() {
        // Counted like an answer, the first ReadyForQuery would leave the count below zero for ever.
        let tap = logged_in();

        assert!(tap.state.is_idle());
        assert_eq!(tap.state.pid(), 258);
    }

    #[test]
    fn a_connection_is_idle_only_when_all_is_answered_and_no_transaction_is_open() {
        // Each of the two alone is what makes a pool hand out a busy connection.
        let mut tap = logged_in();
        tap.see_outbound(&[frame(b'P', b"x"), frame(b'S', b""), frame(b'Q', b"y\0")].concat());
        assert!(!tap.state.is_idle());

        tap.see_inbound(&frame(b'Z', b"T"));
        assert!(!tap.state.is_settled());

        tap.see_inbound(&frame(b'Z', b"T"));
        assert!(tap.state.is_in_transaction() && !tap.state.is_idle());

        tap.see_outbound(&frame(b'Q', b"commit\0"));
        tap.see_inbound(&frame(b'Z', b"I"));
        assert!(tap.state.is_idle());
    }

    #[test]
    fn bytes_may_be_split_anywhere() {
        // A header that comes in two reads must not be taken for a body.
        let answer = [frame(b'D', &[b'Z'; 300]), frame(b'C', b"SELECT 1\0"), frame(b'Z', b"T")].concat();
        for at in 0..answer.len() {
            let mut tap = logged_in();
            tap.see_outbound(&frame(b'S', b""));

            tap.see_inbound(&answer[..at]);
            assert!(!tap.state.is_settled());
            tap.see_inbound(&answer[at..]);

            assert!(tap.state.is_in_transaction(), "split at {at}");
        }
    }

    #[test]
    fn a_sync_behind_copy_in_is_never_answered() {
        // Waiting for that answer would throw away every connection that has copied.
        let mut tap = logged_in();
        tap.see_outbound(&[frame(b'E', b"\0\0\0\0\0"), frame(b'S', b"")].concat());
        tap.see_inbound(&frame(b'G', b"\0\0\0"));
        tap.see_outbound(&[frame(b'd', b"1\n"), frame(b'c', b""), frame(b'S', b"")].concat());
        assert!(!tap.state.is_settled());

        tap.see_inbound(&[frame(b'C', b"COPY 1\0"), frame(b'Z', b"I")].concat());

        assert!(tap.state.is_idle());
    }

    #[test]
    fn a_statement_that_is_closed_behind_its_user_owes_nothing() {
        // Every query by text ends like this: counted, no connection would be idle when it is given back.
        let mut tap = logged_in();
        tap.see_outbound(&[frame(b'C', b"Ss1\0"), frame(b'S', b"")].concat());
        assert!(tap.state.is_idle());

        // What comes behind it is owed all the same, and its answer is not taken for the Close's.
        tap.see_outbound(&[frame(b'C', b"Ss2\0"), frame(b'P', b""), frame(b'S', b"")].concat());
        tap.see_inbound(&[frame(b'3', b""), frame(b'Z', b"I")].concat());
        assert!(!tap.state.is_settled());
        tap.see_inbound(&frame(b'Z', b"I"));
        assert!(tap.state.is_idle());
    }

    #[test]
    fn encrypted_bytes_prove_nothing() {
        // Ciphertext read as frames could look like any answer.
        let mut tap = Tap::over_socket((), Arc::new(WireState::default()));

        tap.see_inbound(b"S");
        tap.see_inbound(&frame(b'Z', b"I"));

        assert!(!tap.state.logged_in());
    }

    #[test]
    fn a_server_without_tls_is_read_after_its_refusal() {
        // The one byte `N` is not the start of a notice.
        let mut tap = Tap::over_socket((), Arc::new(WireState::default()));

        tap.see_inbound(b"N");
        tap.see_inbound(&frame(b'Z', b"I"));

        assert!(tap.state.is_idle());
    }
}
