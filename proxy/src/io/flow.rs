//! One direction of a session: bytes read, looked at, and not yet written.
//!
//! In the common case nothing is changed, and what was read is written from the very buffer it was read
//! into. Only when something has to be inserted, replaced or left out does the flow fall back to a second
//! buffer. A flow never holds more than one lent buffer plus what one pass over it can produce.

use std::hint::cold_path;
use std::io;
use std::task::{Context, Poll, ready};

use super::{Buffer, Stream};

/// A pass stops rebuilding beyond this many bytes until they are written.
const REBUILT_LIMIT: usize = 64 * 1024;

/// Rebuilt bytes and verbatim bytes are joined to one write up to this many verbatim bytes.
const JOIN_LIMIT: usize = 8 * 1024;

/// Capacity that an idle session may keep.
const KEPT_CAPACITY: usize = 2 * 1024;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Flow {
    /// What was read: first `passed` bytes to write as they are, then bytes not looked at.
    pub input: Option<Buffer>,
    passed: usize,
    /// Bytes to write before the passed ones.
    rebuilt: Vec<u8>,
    written: usize,
    /// Unseen bytes that the next pass needs in one piece.
    wanted: usize,
    /// TLS has taken bytes that the socket has not.
    unflushed: bool,
    /// Bytes read so far; whoever keeps accounts takes them away.
    pub filled: u64,
}

impl Flow {
    /// Bytes that were read and not looked at.
    #[inline]
    pub fn unseen(&self) -> &[u8] {
        self.input.as_ref().and_then(|input| input.unread().get(self.passed..)).unwrap_or_default()
    }

    /// Makes room for `len` unseen bytes in one piece before the next fill. The caller bounds `len`.
    pub fn want(&mut self, len: usize) {
        self.wanted = len;
    }

    /// Reads more unseen bytes. Ready(0) is the end of the stream.
    #[inline]
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, from: &mut Stream) -> Poll<io::Result<usize>> {
        if self.wanted > 0 {
            cold_path();
            if let Some(input) = &mut self.input {
                input.reserve(self.passed + self.wanted);
            }
            self.wanted = 0;
        }
        let filled = from.poll_fill_lent(cx, &mut self.input);
        if let Poll::Ready(Ok(n)) = filled {
            self.filled += n as u64;
        }
        filled
    }

    /// Reads bytes that a clear stream has already, where nothing unseen is; `None` if there are none. For whoever was
    /// woken most likely because of them: costs less than [`Flow::poll_fill`] when it finds something, but asks for no
    /// wake-up and takes nothing of the task's share, so not more than once per wake-up.
    #[inline]
    pub fn fill_now(&mut self, from: &mut Stream) -> Option<io::Result<usize>> {
        if self.input.is_some() || !from.is_clear() {
            return None;
        }
        match from.fill_now(&mut self.input) {
            Poll::Ready(Ok(n)) => {
                self.filled += n as u64;
                Some(Ok(n))
            }
            Poll::Ready(Err(error)) => Some(Err(error)),
            Poll::Pending => None,
        }
    }

    /// Lets the next `n` unseen bytes through as they are.
    #[inline]
    pub fn pass(&mut self, n: usize) {
        self.passed += n;
    }

    /// Leaves the next `n` unseen bytes out.
    pub fn skip(&mut self, n: usize) {
        self.join();
        if let Some(input) = &mut self.input {
            input.consume(n);
        }
    }

    /// Inserts what `put` appends in front of the unseen bytes.
    pub fn insert(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        self.join();
        put(&mut self.rebuilt);
    }

    /// Inserts bytes made from the next `n` unseen bytes, which are left out themselves.
    pub fn replace(&mut self, n: usize, put: impl FnOnce(&mut Vec<u8>, &[u8])) {
        self.join();
        if let Some(input) = &mut self.input {
            put(&mut self.rebuilt, input.unread().get(..n).unwrap_or_default());
            input.consume(n);
        }
    }

    /// Turns passed bytes into rebuilt ones, so that what comes next stays behind them.
    #[inline]
    fn join(&mut self) {
        if self.passed > 0
            && let Some(input) = &mut self.input
        {
            self.rebuilt.extend_from_slice(input.unread().get(..self.passed).unwrap_or_default());
            input.consume(self.passed);
            self.passed = 0;
        }
    }

    /// Whether there are bytes to write.
    #[inline]
    pub fn is_pending(&self) -> bool {
        self.passed > 0 || self.written < self.rebuilt.len() || self.unflushed
    }

    /// Whether a pass should stop here until bytes are written.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.rebuilt.len() - self.written > REBUILT_LIMIT
    }

    /// Whether there is room for more unseen bytes without growing.
    pub fn has_room(&self) -> bool {
        self.unseen().len() < super::buffer::BUFFER_LEN / 2
    }

    /// Whether nothing is held at all.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.input.is_none() && !self.is_pending()
    }

    /// Writes what is to be written. Ready when nothing is left.
    #[inline]
    pub fn poll_write_to(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
        if self.written < self.rebuilt.len() {
            cold_path();
            ready!(self.poll_write_rebuilt(cx, to))?;
        }
        if let Some(input) = &mut self.input {
            while self.passed > 0 {
                let bytes = input.unread().get(..self.passed).unwrap_or_default();
                match ready!(to.poll_write(cx, bytes))? {
                    0 => {
                        cold_path();
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    n => {
                        input.consume(n);
                        self.passed -= n;
                    }
                }
            }
            if input.is_empty() {
                self.input = None;
            }
        }
        let flushed = to.poll_flush(cx);
        self.unflushed = flushed.is_pending();
        flushed
    }

    fn poll_write_rebuilt(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
        if self.passed <= JOIN_LIMIT {
            self.join();
        }
        while let Some(rest) = self.rebuilt.get(self.written..)
            && !rest.is_empty()
        {
            match ready!(to.poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        self.rebuilt.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Forgets what was not looked at.
    pub fn drop_unseen(&mut self) {
        if let Some(input) = &mut self.input {
            input.truncate(self.passed);
        }
        self.wanted = 0;
    }

    /// Forgets what was to be written; what was not looked at stays.
    pub fn drop_passed(&mut self) {
        self.rebuilt.clear();
        self.written = 0;
        if let Some(input) = &mut self.input {
            input.consume(self.passed);
        }
        self.passed = 0;
    }

    /// Forgets everything, whether written or not.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Gives memory back that a quiet session does not need.
    pub fn shrink(&mut self) {
        if self.rebuilt.is_empty() && self.rebuilt.capacity() > KEPT_CAPACITY {
            self.rebuilt = Vec::new();
        }
        if self.input.as_ref().is_some_and(Buffer::is_empty) {
            self.input = None;
        }
    }
}
