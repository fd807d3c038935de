//! What identifies a transaction beyond the life of its backend, and how the server is asked for it: one statement
//! that every backend prepares once, sent behind the first write of a transaction. The application waits for none of
//! it and sees none of it.

use std::sync::{Arc, LazyLock};

use tokio::time::Instant;

use crate::backend::Statement;
use crate::exchange::Facts;
use crate::upstream::Lsn;
use crate::wire::backend::data_row;
use crate::wire::frame::{put_cstr, put_frame};
use crate::wire::frontend as tag;

/// Open to every role, and known to servers from PostgreSQL 10 on ("Transaction ID and Snapshot Information Functions"
/// and "Recovery Information Functions" in its documentation). The first is NULL in a transaction that has not
/// written. The last is where the recovery ended that the server began its life with, if there was one.
const STATEMENT: &str = "SELECT pg_catalog.txid_current_if_assigned(), pg_catalog.pg_current_wal_insert_lsn(), \
    pg_catalog.pg_last_wal_replay_lsn() /* tidegate: outcome of COMMIT */";

/// The first major version that has these functions.
pub const SINCE_MAJOR: u32 = 10;

/// The portal of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Portal {
    /// The unnamed one, where a simple query has taken the application's away.
    Unnamed,
    /// One of ours, closed again: the application's own portals must survive the question.
    Own,
}

/// The name of [`Portal::Own`].
const PORTAL: &[u8] = b"tidegate_outcome";

/// Binary format for all columns of a result (`PQ_FORMAT_BINARY`): nothing to print, nothing to parse.
const ALL_BINARY: [u8; 4] = [0, 1, 0, 1];

static SHARED: LazyLock<Arc<Statement>> = LazyLock::new(|| {
    let definition = [STATEMENT.as_bytes(), &[0, 0, 0]].concat();
    Statement::intern(&definition, || Facts::of(STATEMENT.as_bytes()))
});

/// Identifies a transaction that has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Its id, with the epoch.
    pub xid: u64,
    /// A position of the WAL behind its first record and before that of its commit.
    pub lsn: Lsn,
    /// Where the recovery ended that its server began with; `None` if it needed none.
    pub recovered: Option<Lsn>,
    /// The server process that ran it.
    pub process_id: u32,
    /// When it was learned.
    pub at: Instant,
}

/// What the server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The transaction has written.
    Token(Token),
    /// It has not, so far.
    NothingWritten,
}

/// The statement, to be prepared on a backend under its own name.
pub fn statement() -> &'static Arc<Statement> {
    &SHARED
}

/// Appends the messages that run it, without the end of an exchange.
pub fn put_question(portal: Portal, out: &mut Vec<u8>) {
    let name = match portal {
        Portal::Unnamed => &b""[..],
        Portal::Own => PORTAL,
    };
    put_frame(out, tag::BIND, |out| {
        put_cstr(out, name);
        out.extend_from_slice(&SHARED.name);
        // Neither formats of parameters nor parameters.
        out.extend_from_slice(&[0, 0, 0, 0]);
        out.extend_from_slice(&ALL_BINARY);
    });
    put_frame(out, tag::EXECUTE, |out| {
        put_cstr(out, name);
        out.extend_from_slice(&[0; 4]);
    });
    if portal == Portal::Own {
        put_frame(out, tag::CLOSE, |out| {
            out.push(b'P');
            put_cstr(out, name);
        });
    }
}

/// Reads the body of the row that answers; `None` if it is no such row.
pub fn read(body: &[u8], process_id: u32, at: Instant) -> Option<Answer> {
    let columns = data_row(body)?;
    let [xid, lsn, recovered] = columns.as_slice() else { return None };
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).ok();
    let Some(xid) = xid else { return Some(Answer::NothingWritten) };
    let recovered = match recovered {
        Some(bytes) => Some(Lsn(number(bytes)?)),
        None => None,
    };
    Some(Answer::Token(Token { xid: number(xid)?, lsn: Lsn(number((*lsn)?)?), recovered, process_id, at }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::facts::Need;

    fn row(columns: &[Option<u64>]) -> Vec<u8> {
        let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for column in columns {
            match column {
                Some(number) => {
                    body.extend_from_slice(&8_u32.to_be_bytes());
                    body.extend_from_slice(&number.to_be_bytes());
                }
                None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
            }
        }
        body
    }

    #[test]
    fn a_row_is_a_token_or_says_that_nothing_was_written() {
        // An id taken from a wrong column would ask about somebody else's transaction.
        let at = Instant::now();
        let token = Token { xid: 1 << 33, lsn: Lsn(7), recovered: Some(Lsn(5)), process_id: 9, at };

        assert_eq!(read(&row(&[Some(1 << 33), Some(7), Some(5)]), 9, at), Some(Answer::Token(token)));
        let unrecovered = Token { recovered: None, ..token };
        assert_eq!(read(&row(&[Some(1 << 33), Some(7), None]), 9, at), Some(Answer::Token(unrecovered)));
        assert_eq!(read(&row(&[None, Some(7), None]), 9, at), Some(Answer::NothingWritten));
        for strange in [row(&[]), row(&[Some(1), Some(7)]), row(&[Some(1), None, None]), vec![0, 3, 0]] {
            assert_eq!(read(&strange, 9, at), None, "{strange:?}");
        }
    }

    #[test]
    fn the_question_itself_is_a_read_without_effects() {
        // If it counted as a write it would be asked about, too; as a pin it would keep every backend.
        let facts = &statement().facts;

        assert!(facts.changes.is_empty() && !facts.ends_transaction);
        assert_ne!(facts.lane, Need::Neutral);
    }
}
