//! Where messages begin and end in a stream of bytes; pure.
//!
//! Protocol version 3: a startup packet has a length and no tag, every later message a tag and a length
//! (`PostgreSQL` documentation, 55.7). The one-byte answers to `SSLRequest` and `GSSENCRequest` are recognised by
//! what was asked.

/// One message, or the part of it that came with these bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Its tag; zero for packets without one.
    pub(super) tag: u8,
    /// Where in the bytes it starts. `None`: it started earlier.
    pub(super) start: Option<usize>,
    /// Where it ends. `None`: later.
    pub(super) end: Option<usize>,
    /// The first bytes of its body.
    pub(super) head: Vec<u8>,
}

/// Bytes of a body that are kept to be looked at.
const HEAD: usize = 64;

/// Longest message that is believed; `PostgreSQL`'s own limit is 1 GiB.
const LONGEST: u32 = 1 << 30;

/// Longest packet without a tag (`MAX_STARTUP_PACKET_LENGTH` in `src/include/libpq/pqcomm.h`). The start of a TLS
/// handshake reads as a longer one.
const LONGEST_UNTAGGED: u32 = 10_000;

/// Follows one direction of one connection.
#[derive(Debug)]
pub(super) struct Tracker {
    state: State,
}

#[derive(Debug)]
enum State {
    /// Before a message whose first byte is a length (startup) or a tag.
    Header { untagged: bool, bytes: Vec<u8> },
    /// Inside a body.
    Body { tag: u8, left: usize, head: Vec<u8> },
    /// One byte that is no message: the answer to a request for encryption.
    Single,
    /// Encrypted, or not our protocol.
    Blind,
}

impl Tracker {
    /// From the application, starting with a startup packet.
    pub(super) fn of_frontend() -> Self {
        Self { state: State::Header { untagged: true, bytes: Vec::new() } }
    }

    /// From the server.
    pub(super) fn of_backend() -> Self {
        Self { state: State::Header { untagged: false, bytes: Vec::new() } }
    }

    /// The next byte is an answer to a request for encryption.
    pub(super) fn expect_single(&mut self) {
        self.state = State::Single;
    }

    /// Takes the next bytes; gives the messages that they touch, in order.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut start = Some(0);
        let mut at = 0;
        while at < bytes.len() {
            let state = std::mem::replace(&mut self.state, State::Blind);
            self.state = match state {
                State::Blind => return pieces,
                State::Single => {
                    let answer = bytes[at];
                    at += 1;
                    pieces.push(Piece { tag: answer, start: Some(at - 1), end: Some(at), head: Vec::new() });
                    start = Some(at);
                    // 'N': the startup packet follows in clear; its answer is tagged.
                    if answer == b'N' { Self::of_backend().state } else { State::Blind }
                }
                State::Header { untagged, bytes: mut header } => {
                    if header.is_empty() {
                        start = Some(at);
                    }
                    header.push(bytes[at]);
                    at += 1;
                    header_state(untagged, header)
                }
                State::Body { tag, left, mut head } => {
                    let here = left.min(bytes.len() - at);
                    let room = HEAD.saturating_sub(head.len()).min(here);
                    head.extend_from_slice(&bytes[at..at + room]);
                    at += here;
                    State::Body { tag, left: left - here, head }
                }
            };
            self.finish(&mut pieces, &mut start, at);
        }
        self.unfinished(&mut pieces, start);
        pieces
    }

    /// A body without anything left is a whole message.
    fn finish(&mut self, pieces: &mut Vec<Piece>, start: &mut Option<usize>, at: usize) {
        if let State::Body { tag, left: 0, head } = &mut self.state {
            let (tag, head) = (*tag, std::mem::take(head));
            // A request for encryption or cancellation is followed by another packet without a tag.
            let again = tag == 0 && request_code(&head).is_some_and(is_request);
            pieces.push(Piece { tag, start: *start, end: Some(at), head });
            *start = Some(at);
            self.state = State::Header { untagged: again, bytes: Vec::new() };
        }
    }

    fn unfinished(&self, pieces: &mut Vec<Piece>, start: Option<usize>) {
        if let State::Body { tag, head, .. } = &self.state {
            pieces.push(Piece { tag: *tag, start, end: None, head: head.clone() });
        }
    }
}

fn header_state(untagged: bool, header: Vec<u8>) -> State {
    let (tag, length) = match (untagged, header.as_slice()) {
        (true, &[a, b, c, d]) => (0, u32::from_be_bytes([a, b, c, d])),
        (false, &[tag, a, b, c, d]) => (tag, u32::from_be_bytes([a, b, c, d])),
        _ => return State::Header { untagged, bytes: header },
    };
    let longest = if untagged { LONGEST_UNTAGGED } else { LONGEST };
    if !(4..=longest).contains(&length) {
        return State::Blind;
    }
    State::Body { tag, left: usize::try_from(length - 4).unwrap_or(0), head: Vec::new() }
}

/// The code in a packet without a tag.
pub(super) fn request_code(body: &[u8]) -> Option<u32> {
    body.first_chunk().map(|code| u32::from_be_bytes(*code))
}

/// `SSLRequest` and `GSSENCRequest`.
pub(super) fn is_request(code: u32) -> bool {
    matches!(code, 80_877_103 | 80_877_104)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        let mut bytes = vec![tag];
        bytes.extend(length.to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn startup() -> Vec<u8> {
        let mut bytes = 12_u32.to_be_bytes().to_vec();
        bytes.extend(196_608_u32.to_be_bytes());
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn messages_are_found_wherever_the_stream_is_split() {
        // TCP keeps no boundaries: a cut that depends on them would strike at random.
        let mut stream = startup();
        stream.extend(message(b'Q', b"COMMIT\0"));
        stream.extend(message(b'X', b""));
        for split in 1..stream.len() {
            let mut tracker = Tracker::of_frontend();

            let mut pieces = tracker.feed(&stream[..split]);
            pieces.extend(tracker.feed(&stream[split..]));

            let ended: Vec<(u8, Vec<u8>)> = pieces
                .into_iter()
                .filter(|piece| piece.end.is_some())
                .map(|piece| (piece.tag, piece.head))
                .collect();
            assert_eq!(ended.len(), 3, "split at {split}");
            assert_eq!(ended[1], (b'Q', b"COMMIT\0".to_vec()), "split at {split}");
        }
    }

    #[test]
    fn a_refused_request_for_encryption_is_followed_by_tagged_messages() {
        // Taking 'N' for a tag would lose the whole connection.
        let mut tracker = Tracker::of_backend();
        tracker.expect_single();
        let mut bytes = b"N".to_vec();
        bytes.extend(message(b'R', &[0, 0, 0, 0]));

        let pieces = tracker.feed(&bytes);

        assert_eq!(pieces.iter().map(|piece| piece.tag).collect::<Vec<_>>(), [b'N', b'R']);
    }

    #[test]
    fn garbage_blinds_and_does_not_loop() {
        // A length below four can never end.
        let mut tracker = Tracker::of_backend();

        assert_eq!(tracker.feed(b"HTTP/1.1 400 Bad Request"), []);
        assert_eq!(tracker.feed(b"more"), []);
    }
}
