//! Something that happens at a certain message.

use serde::{Deserialize, Serialize};

use super::frames::Piece;

/// Messages that a cut can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// The application's startup packet.
    Startup,
    /// The application's password, or a step of SASL.
    Password,
    /// Query.
    Query,
    /// Parse.
    Parse,
    /// Execute.
    Execute,
    /// Sync.
    Sync,
    /// The server's authentication request.
    Authentication,
    /// `DataRow`.
    DataRow,
    /// `CommandComplete`.
    CommandComplete,
    /// `ReadyForQuery`.
    ReadyForQuery,
    /// `ErrorResponse`.
    Error,
}

impl Message {
    fn tag(self) -> u8 {
        match self {
            Self::Startup => 0,
            Self::Password => b'p',
            Self::Query => b'Q',
            Self::Parse => b'P',
            // One tag, two meanings: the direction tells them apart.
            Self::Execute | Self::Error => b'E',
            Self::Sync => b'S',
            Self::Authentication => b'R',
            Self::DataRow => b'D',
            Self::CommandComplete => b'C',
            Self::ReadyForQuery => b'Z',
        }
    }

    /// Whether applications send it.
    pub fn is_frontend(self) -> bool {
        match self {
            Self::Startup | Self::Password | Self::Query | Self::Parse | Self::Execute | Self::Sync => true,
            Self::Authentication
            | Self::DataRow
            | Self::CommandComplete
            | Self::ReadyForQuery
            | Self::Error => false,
        }
    }
}

/// When, relative to the message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// The message is not delivered.
    Before,
    /// It is the last that is delivered.
    #[default]
    After,
    /// Half of it is delivered.
    Amid,
}

/// What happens then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Both ends are reset (RST).
    #[default]
    Reset,
    /// Both ends are closed (FIN).
    Close,
    /// The server's end is closed, the application hears nothing: half open.
    HalfOpen,
    /// Neither hears anything any more.
    Silence,
}

/// Ends a connection at a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cut {
    /// Which message.
    pub message: Message,
    /// Only in an exchange whose statement starts with this, in any case.
    #[serde(default)]
    pub statement: Option<String>,
    /// Before, after or amid it.
    #[serde(default)]
    pub when: Moment,
    /// What happens.
    #[serde(default)]
    pub action: Action,
    /// Probability that it strikes at such a message.
    #[serde(default = "always")]
    pub chance: f64,
}

fn always() -> f64 {
    1.0
}

impl Cut {
    /// Whether this piece is the message, in an exchange with this statement.
    pub(super) fn matches(&self, piece: &Piece, statement: &str) -> bool {
        let known = self.statement.as_deref().is_none_or(|wanted| starts_with(statement, wanted));
        piece.tag == self.message.tag() && known
    }

    /// How many of the bytes that this piece came with may still pass.
    pub(super) fn offset(&self, piece: &Piece) -> Option<usize> {
        let start = piece.start.unwrap_or(0);
        match self.when {
            Moment::Before => Some(start),
            Moment::After => piece.end,
            Moment::Amid => Some(piece.end.map_or(start, |end| start + (end - start) / 2)),
        }
    }
}

fn starts_with(statement: &str, wanted: &str) -> bool {
    statement.trim_start().get(..wanted.len()).is_some_and(|start| start.eq_ignore_ascii_case(wanted))
}

/// The start of the statement in the body of Query or Parse, where it is one of them.
pub(super) fn statement_in(piece: &Piece) -> Option<String> {
    let text = match piece.tag {
        b'Q' => piece.head.as_slice(),
        // Behind the statement's name.
        b'P' => piece.head.splitn(2, |byte| *byte == 0).nth(1)?,
        _ => return None,
    };
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(tag: u8, head: &[u8]) -> Piece {
        Piece { tag, start: Some(10), end: Some(30), head: head.to_vec() }
    }

    #[test]
    fn the_statement_of_parse_stands_behind_its_name() {
        // Reading the name as the statement would never match an unnamed one.
        assert_eq!(statement_in(&piece(b'P', b"s0\0commit\0\0\0")).as_deref(), Some("commit"));
        assert_eq!(statement_in(&piece(b'Q', b"COMMIT\0")).as_deref(), Some("COMMIT"));
        assert_eq!(statement_in(&piece(b'B', b"\0\0")), None);
    }

    #[test]
    fn a_cut_strikes_where_it_says() {
        // One byte too many would deliver the reply that was to be lost.
        let cut = |when| Cut {
            message: Message::CommandComplete,
            statement: Some("COMMIT".to_owned()),
            when,
            action: Action::Reset,
            chance: 1.0,
        };
        let reply = piece(b'C', b"COMMIT\0");

        assert!(cut(Moment::Before).matches(&reply, " commit"));
        assert!(!cut(Moment::Before).matches(&reply, "SELECT 1"));
        assert_eq!(cut(Moment::Before).offset(&reply), Some(10));
        assert_eq!(cut(Moment::Amid).offset(&reply), Some(20));
        assert_eq!(cut(Moment::After).offset(&reply), Some(30));
    }
}
