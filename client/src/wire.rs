//! What the bytes of a connection prove.
//!
//! The driver does not say in which transaction status a connection is, nor whether it still owes an answer. So the
//! frame headers are read on their way through a [`Tap`]: each Query, Sync and `FunctionCall` that went out owes one
//! `ReadyForQuery`, and its one byte says idle, in transaction or failed (`PostgreSQL` documentation, "Message Flow").
//! A connection is *idle* when nothing is owed and the last word was `I`; nothing else counts as proof.
//!
//! The driver closes a prepared statement behind its user's back when the last handle is dropped. Such an exchange, of
//! Close and Sync alone, is not counted as owed: it does nothing, and what comes next is answered in order.
//!
//! The same frames show what the driver does not tell: as what a COMMIT was answered, whether something was committed
//! before an error, and whether an exchange failed when its command was already complete ([`Mark`]).

use std::collections::{HashSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use crate::frames::{Command, Frame, Splitter};

/// Status before the login is over.
const NOT_YET: u8 = 0;

/// What came since the last [`forget`](WireState::forget), besides the answers themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mark {
    /// A notice with the routine `SyncRepWaitForLSN` (`src/backend/replication/syncrep.c`): a commit is durable here and
    /// nowhere else.
    Unreplicated = 1,
    /// A COMMIT was done, or a PREPARE TRANSACTION: what comes later undoes nothing of it.
    Committed = 2,
    /// A command was sent that may commit midway: CALL or DO.
    MayCommit = 4,
    /// An exchange with a command that was done ended outside of a transaction: it has committed.
    Ended = 8,
    /// An exchange failed when its command was complete: its commit did.
    FailedLate = 16,
}

/// What is known of one connection; shared by its two ends.
#[derive(Debug, Default)]
pub(crate) struct WireState {
    owed: AtomicU32,
    status: AtomicU8,
    pid: AtomicI32,
    /// Bits of [`Mark`].
    marks: AtomicU8,
    /// The [`Command`] that was completed last; zero: none.
    command: AtomicU32,
    /// Errors that came; wraps around.
    errors: AtomicU32,
    /// How often bytes moved, either way; wraps around.
    moves: AtomicU32,
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

    /// What was seen until now belongs to somebody else.
    pub(crate) fn forget(&self) {
        self.marks.store(0, Ordering::Release);
        self.command.store(0, Ordering::Release);
    }

    pub(crate) fn mark(&self, mark: Mark) {
        self.marks.fetch_or(mark as u8, Ordering::AcqRel);
    }

    pub(crate) fn has(&self, mark: Mark) -> bool {
        self.marks.load(Ordering::Acquire) & mark as u8 != 0
    }

    /// The command that was completed last.
    pub(crate) fn command(&self) -> Command {
        self.command.load(Ordering::Acquire).to_be_bytes()
    }

    /// How many errors have come, for comparing.
    pub(crate) fn errors(&self) -> u32 {
        self.errors.load(Ordering::Acquire)
    }

    /// How often bytes have moved, for comparing.
    pub(crate) fn moves(&self) -> u32 {
        self.moves.load(Ordering::Relaxed)
    }

    fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
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

/// Whether a text is a command that may commit midway. In a text of several commands none may.
///
/// Of a text that is not known far enough nobody can tell, so it may.
fn may_commit(mut text: &[u8]) -> bool {
    loop {
        text = text.trim_ascii_start();
        let end = match text {
            [b'-', b'-', ..] => text.iter().position(|byte| *byte == b'\n').map(|at| at + 1),
            // A comment within a comment is for those who like riddles: its end counts as that of both.
            [b'/', b'*', ..] => text[2..].windows(2).position(|end| end == b"*/").map(|at| at + 4),
            _ => break,
        };
        match end {
            Some(end) => text = &text[end..],
            None => return true,
        }
    }
    // Cut off: each body has a zero behind its text.
    if text.len() <= b"CALL".len() && !text.contains(&0) {
        return true;
    }
    let is = |word: &[u8]| {
        let (start, rest) = text.split_at(text.len().min(word.len()));
        let ends = rest.first().is_none_or(|next| !next.is_ascii_alphanumeric() && *next != b'_');
        start.eq_ignore_ascii_case(word) && ends
    };
    is(b"CALL") || is(b"DO")
}

/// The name in front, and what is behind it.
fn name(start: &[u8]) -> (&[u8], &[u8]) {
    let end = start.iter().position(|byte| *byte == 0).unwrap_or(start.len());
    (&start[..end], start.get(end + 1..).unwrap_or_default())
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
    /// Whether the server takes data of a COPY: it ignores the Sync that was sent behind the Execute, and the next one
    /// ends the same exchange.
    copying: bool,
    /// Whether the exchange that is being answered has done something, and not undone it.
    done: bool,
    /// Statements that may commit midway, by name.
    committing: HashSet<Box<[u8]>>,
}

impl Ledger {
    fn sent(&mut self, frame: &Frame<'_>, state: &WireState) {
        self.look_into(frame, state);
        let exchange = match frame.tag {
            b'Q' | b'F' => Exchange::Simple,
            b'S' if std::mem::take(&mut self.copying) => return,
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

    /// Finds what may commit midway.
    fn look_into(&mut self, frame: &Frame<'_>, state: &WireState) {
        match frame.tag {
            b'Q' if may_commit(frame.start) => state.mark(Mark::MayCommit),
            b'P' => {
                let (name, text) = name(frame.start);
                if may_commit(text) {
                    self.committing.insert(name.into());
                } else if !self.committing.is_empty() {
                    self.committing.remove(name);
                }
            }
            b'B' if !self.committing.is_empty() => {
                let (_portal, rest) = name(frame.start);
                if self.committing.contains(name(rest).0) {
                    state.mark(Mark::MayCommit);
                }
            }
            b'C' if !self.committing.is_empty() => {
                if let Some((b'S', rest)) = frame.start.split_first() {
                    self.committing.remove(name(rest).0);
                }
            }
            _ => {}
        }
    }

    fn received(&mut self, frame: &Frame<'_>, state: &WireState) {
        match frame.tag {
            b'C' => self.completed(frame.command(), state),
            b'E' => {
                state.errors.fetch_add(1, Ordering::AcqRel);
                if std::mem::take(&mut self.done) && self.exchanges.front() == Some(&Exchange::Extended) {
                    state.mark(Mark::FailedLate);
                }
            }
            b'Z' => {
                let status = frame.start.first().copied().unwrap_or(NOT_YET);
                if std::mem::take(&mut self.done) && status == b'I' {
                    state.mark(Mark::Ended);
                }
                state.status.store(status, Ordering::Release);
                // Of an error that came before the data: the next Sync is answered.
                self.copying = false;
                // The one that ends the login answers nothing.
                self.answer(state);
            }
            b'G' => self.copying = self.exchanges.front() == Some(&Exchange::Extended),
            b'K' => {
                let pid = frame.start.first_chunk().map_or(0, |pid| i32::from_be_bytes(*pid));
                state.pid.store(pid, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn completed(&mut self, command: Command, state: &WireState) {
        state.command.store(u32::from_be_bytes(command), Ordering::Release);
        match &command {
            b"ROLL" => self.done = false,
            // As good as nothing.
            b"SET\0" | b"RESE" | b"BEGI" | b"STAR" => {}
            b"COMM" | b"PREP" => {
                state.mark(Mark::Committed);
                self.done = true;
            }
            _ => self.done = true,
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
            self.inbound.feed(bytes, |frame| self.ledger.received(frame, &self.state));
        }
    }

    fn see_outbound(&mut self, bytes: &[u8]) {
        // Before the login is over there are packets without a tag, and nothing is owed.
        if self.sight == Sight::Frames && self.state.logged_in() {
            self.outbound.feed(bytes, |frame| self.ledger.sent(frame, &self.state));
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
            self.state.moved();
            self.see_inbound(&buf.filled()[before..]);
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = poll {
            self.state.moved();
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
        // Nor is a connection idle that takes data.
        assert!(!tap.state.is_settled());
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
    fn a_copy_that_fails_before_its_data_has_a_sync_of_its_own_for_its_end() {
        // Taken for the second Sync of a COPY, the one behind the failure would leave its answer to the next exchange.
        let mut tap = logged_in();
        tap.see_outbound(&[frame(b'E', b"\0\0\0\0\0"), frame(b'S', b"")].concat());
        tap.see_inbound(&[frame(b'G', b"\0\0\0"), frame(b'E', b"\0"), frame(b'Z', b"I")].concat());
        assert!(tap.state.is_idle());

        tap.see_outbound(&[frame(b'f', b"\0"), frame(b'S', b"")].concat());

        assert!(!tap.state.is_settled());
    }

    /// What is marked when these commands were sent and answered.
    fn marks(sent: &[u8], received: &[&[u8]]) -> Vec<Mark> {
        let mut tap = logged_in();
        tap.state.forget();
        tap.see_outbound(sent);
        for bytes in received {
            tap.see_inbound(bytes);
        }
        let all = [Mark::Committed, Mark::MayCommit, Mark::Ended, Mark::FailedLate];
        all.into_iter().filter(|mark| tap.state.has(*mark)).collect()
    }

    #[test]
    fn what_was_committed_before_an_error_is_marked() {
        // Unmarked, a call of which a part is durable would be called rolled back, and done twice.
        let (query, sync) = (frame(b'Q', b"x\0"), frame(b'S', b""));
        let done = |tag: &str| frame(b'C', format!("{tag}\0").as_bytes());
        let (error, idle, open) = (frame(b'E', b"\0"), frame(b'Z', b"I"), frame(b'Z', b"T"));
        let seen = |sent: &[u8], received: &[&[u8]]| marks(sent, received);

        // Statements of one text are one transaction, unless there is a COMMIT among them.
        assert_eq!(seen(&query, &[&done("INSERT 0 1"), &error, &idle]), []);
        assert_eq!(seen(&query, &[&done("COMMIT"), &done("INSERT 0 1"), &error, &idle]), [Mark::Committed]);
        assert_eq!(seen(&query, &[&done("ROLLBACK"), &error, &idle]), []);
        // Exchanges that have ended.
        assert_eq!(seen(&query, &[&done("INSERT 0 1"), &idle]), [Mark::Ended]);
        assert_eq!(seen(&query, &[&done("INSERT 0 1"), &open]), []);
        assert_eq!(seen(&query, &[&done("SET"), &idle]), []);
        assert_eq!(seen(&query, &[&frame(b'I', b""), &idle]), []);
        // The commit is made at the Sync, behind the end of the command.
        assert_eq!(seen(&sync, &[&done("COPY 1"), &error, &idle]), [Mark::FailedLate]);
        assert_eq!(seen(&sync, &[&error, &idle]), []);
    }

    #[test]
    fn commands_that_may_commit_midway_are_known_however_they_are_sent() {
        // An error of theirs may come after a commit of theirs, of which the answer says nothing.
        for text in
            ["CALL p()", "call p()", " \n-- why\nCall p()", "/* tidegate:lane=write */DO $$ $$", "do'x'"]
        {
            assert!(may_commit(format!("{text}\0").as_bytes()), "{text}");
        }
        for text in ["SELECT 1", "", "callous()", "DOMAIN", "/* CALL */ SELECT 1", "-- DO\nSELECT 1"] {
            assert!(!may_commit(format!("{text}\0").as_bytes()), "{text}");
        }
        // Cut off before anybody can tell.
        assert!(may_commit(b"/* and so on") && may_commit(b" CAL") && !may_commit(b"INSERT"));

        let parse = frame(b'P', b"s1\0CALL p()\0\0\0");
        let bind = frame(b'B', b"\0s1\0\0\0\0\0\0\0");
        assert_eq!(marks(&parse, &[]), []);
        assert_eq!(marks(&[parse.clone(), bind.clone()].concat(), &[]), [Mark::MayCommit]);
        let other = frame(b'P', b"s1\0SELECT 1\0\0\0");
        assert_eq!(marks(&[parse.clone(), other, bind.clone()].concat(), &[]), []);
        assert_eq!(marks(&[parse, frame(b'C', b"Ss1\0"), bind].concat(), &[]), []);
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
