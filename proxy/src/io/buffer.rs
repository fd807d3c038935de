//! Read buffers, lent by the worker thread only while bytes are in them, so that an idle session owns none.

use std::cell::RefCell;

/// Capacity of a lent buffer. Large enough that a bulk transfer is few system calls, small enough that five
/// hundred busy sessions stay small; only touched pages count as resident memory.
pub const BUFFER_LEN: usize = 32 * 1024;

/// Buffers that a thread keeps for reuse; more are freed. Hundreds of sessions that wait for few backends all hold one,
/// and all give it back within a moment: what is not kept has to be cleared when it is wanted again, which costs more than
/// the query.
const KEPT: usize = 512;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A contiguous buffer with unread bytes at `start..end`.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// Borrows a buffer from this thread's store.
    pub fn lend() -> Self {
        let kept = FREE.with_borrow_mut(Vec::pop);
        let bytes = kept.unwrap_or_else(|| vec![0; BUFFER_LEN].into_boxed_slice());
        Self { bytes, start: 0, end: 0 }
    }

    /// The bytes that were read and not consumed.
    #[inline]
    pub fn unread(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Whether all bytes are consumed.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Marks `n` unread bytes as consumed.
    #[inline]
    pub fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.end - self.start, "consumed more than was read");
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Forgets all unread bytes but the first `n`.
    pub fn truncate(&mut self, n: usize) {
        self.end = (self.start + n).min(self.end);
    }

    /// The space behind the unread bytes. Moves them to the front when the space runs short.
    #[inline]
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 && self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Marks `n` bytes of [`Buffer::space`] as read.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        debug_assert!(n <= self.bytes.len() - self.end, "read more than the space");
        self.end = (self.end + n).min(self.bytes.len());
    }

    /// Makes room for `len` unread bytes in one piece. The caller bounds `len`.
    pub fn reserve(&mut self, len: usize) {
        if self.bytes.len() - self.start >= len {
            return;
        }
        if self.bytes.len() >= len {
            self.bytes.copy_within(self.start..self.end, 0);
        } else {
            let mut larger = vec![0; len].into_boxed_slice();
            let unread = self.unread();
            if let Some(front) = larger.get_mut(..unread.len()) {
                front.copy_from_slice(unread);
            }
            self.bytes = larger;
        }
        self.end -= self.start;
        self.start = 0;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.len() == BUFFER_LEN {
            let bytes = std::mem::take(&mut self.bytes);
            // While the thread ends its store may be gone already; then the bytes are simply freed.
            let _ = FREE.try_with(|free| {
                let mut free = free.borrow_mut();
                if free.len() < KEPT {
                    free.push(bytes);
                }
            });
        }
    }
}
