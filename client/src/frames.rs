//! Cuts the bytes of a connection into frames.

/// The first letters of a command's tag.
pub(crate) type Command = [u8; 4];

/// What is kept of a body that comes in pieces. The driver's names of statements have at most 21 letters.
const START_MAX: usize = 32;

/// A frame, and what is known of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) tag: u8,
    /// All of it, or at least its first [`START_MAX`] bytes.
    pub(crate) start: &'a [u8],
}

impl Frame<'_> {
    pub(crate) fn command(&self) -> Command {
        self.start.first_chunk().copied().unwrap_or_default()
    }
}

/// Cuts a stream of bytes into frames, wherever it is split. Keeps the start of a frame, copies no bodies.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    header: [u8; 5],
    header_len: usize,
    start: [u8; START_MAX],
    start_len: usize,
    /// Bytes of the body that are still to come.
    left: usize,
}

impl Splitter {
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut found: impl FnMut(&Frame<'_>)) {
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
                found(&Frame { tag: self.header[0], start: &self.start[..self.start_len] });
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
        let wanted = now.len().min(START_MAX - self.start_len);
        self.start[self.start_len..self.start_len + wanted].copy_from_slice(&now[..wanted]);
        self.start_len += wanted;
        self.left -= now.len();
        rest
    }
}

/// The length counts itself. A shorter one is nonsense; the driver will say so.
fn body_len([_, a, b, c, d]: [u8; 5]) -> usize {
    (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(4)
}

/// A frame that is all there, and what comes behind it: nearly always so, and nothing is copied then.
fn whole(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<5>()?;
    let (start, rest) = rest.split_at_checked(body_len(*header))?;
    Some((Frame { tag: header[0], start }, rest))
}
