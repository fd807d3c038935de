//! What pools of drivers send before they lend a connection to somebody else. It takes away what a session may have left
//! behind. Where that is nothing that a server has it is answered by us: no backend is reset for it, whose prepared
//! statements others use; and no driver gets an error for it in a stall, gives its connection up, and comes back with all
//! of them as a storm of logins.

use std::sync::Arc;

use super::Session;
use super::local_frames::{VOID, put_column, put_row};
use super::relay::Hold;
use crate::wire::frame::HEADER_LEN;
use crate::wire::frontend::query_text;
use crate::wire::{Header, TransactionStatus, backend as reply};

/// A text that is longer is not looked at.
const TEXT_MAX: usize = 256;

/// A statement that clears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clear {
    /// `CLOSE ALL`
    Cursors,
    /// `UNLISTEN *`
    Channels,
    /// `SELECT pg_advisory_unlock_all()`
    Locks,
    /// `DEALLOCATE ALL`
    Prepared,
    /// `RESET ALL`
    Settings,
    /// `DISCARD ALL`
    All,
}

impl Clear {
    /// As drivers write it: one space, any case.
    fn of(statement: &[u8]) -> Option<Self> {
        let is = |text: &str| statement.eq_ignore_ascii_case(text.as_bytes());
        let known = [
            ("CLOSE ALL", Self::Cursors),
            ("UNLISTEN *", Self::Channels),
            ("SELECT pg_advisory_unlock_all()", Self::Locks),
            ("DEALLOCATE ALL", Self::Prepared),
            ("RESET ALL", Self::Settings),
            ("DISCARD ALL", Self::All),
        ];
        known.into_iter().find_map(|(text, clear)| is(text).then_some(clear))
    }

    const fn command_tag(self) -> &'static [u8] {
        match self {
            Self::Cursors => b"CLOSE CURSOR ALL",
            Self::Channels => b"UNLISTEN",
            Self::Locks => b"SELECT 1",
            Self::Prepared => b"DEALLOCATE ALL",
            Self::Settings => b"RESET",
            Self::All => b"DISCARD ALL",
        }
    }

    /// PostgreSQL's answer.
    fn put(self, out: &mut Vec<u8>) {
        if self == Self::Locks {
            put_column(out, b"pg_advisory_unlock_all", VOID, 0);
            put_row(out, "");
        }
        reply::put_command_complete(out, self.command_tag());
    }
}

/// The statements of a text that does nothing else. `DISCARD ALL` must stand alone: PostgreSQL refuses it in a
/// transaction, and so behind others.
fn clears(text: &[u8]) -> Option<impl Iterator<Item = Clear>> {
    let statements = text.split(|&byte| byte == b';').map(<[u8]>::trim_ascii).filter(|one| !one.is_empty());
    let clears = statements.clone().filter_map(Clear::of);
    let (known, all) = (clears.clone().count(), statements.count());
    let fits = known == 1 || known > 1 && clears.clone().all(|clear| clear != Clear::All);
    (text.len() <= TEXT_MAX && known == all && fits).then_some(clears)
}

/// Looks at the first letters only.
fn may_clear(text: &[u8]) -> bool {
    match text {
        [b'D' | b'd', b'I' | b'i', ..]
        | [b'D' | b'd', b'E' | b'e', b'A' | b'a', ..]
        | [b'R' | b'r', b'E' | b'e', b'S' | b's', ..]
        | [b'U' | b'u', b'N' | b'n', ..]
        | [b'C' | b'c', b'L' | b'l', ..] => true,
        [b'S' | b's', ..] => text.get(7..).is_some_and(|rest| rest.starts_with(b"pg_advisory_unlock_all")),
        _ => false,
    }
}

impl Session {
    /// Answers a simple query that does nothing but clear what no server has of this session; whether it was one.
    pub(super) fn answer_clearing(&mut self, header: Header) -> bool {
        let Some(body) = self.to_db.unseen().get(HEADER_LEN..header.frame_len) else { return false };
        may_clear(body) && self.clears_nothing(header)
    }

    #[cold]
    fn clears_nothing(&mut self, header: Header) -> bool {
        let body = self.to_db.unseen().get(HEADER_LEN..header.frame_len).unwrap_or_default();
        let Some(clears) = query_text(body).ok().and_then(clears) else { return false };
        let talk = &mut self.talk;
        let has_nothing = talk.status == TransactionStatus::Idle
            && talk.keeps() == Hold::Transaction
            && Arc::ptr_eq(&talk.wanted, &talk.startup);
        if !has_nothing {
            return false;
        }
        // As any simple query.
        talk.names.clear_unnamed();
        for clear in clears {
            match clear {
                Clear::Cursors | Clear::Channels | Clear::Locks => {}
                Clear::Prepared => talk.names.clear(),
                Clear::Settings => talk.terms.reset_all(),
                Clear::All => {
                    talk.names.clear();
                    talk.terms.reset_all();
                }
            }
            self.to_app.insert(|out| clear.put(out));
        }
        // Nothing that comes later takes it back.
        talk.terms.end_transaction();
        self.say_ready();
        self.talk.drop_request(header, &mut self.to_db);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_texts_that_clear_and_do_nothing_else_are_taken() {
        // Whatever else stands in them would be called done, and was never sent.
        use Clear::{All, Channels, Cursors, Locks, Prepared, Settings};
        let asyncpg: &[u8] = b"SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;";
        let all_of = |text: &[u8]| clears(text).map(Vec::from_iter);
        assert_eq!(all_of(asyncpg), Some(vec![Locks, Cursors, Channels, Settings]));
        assert_eq!(all_of(b"deallocate all"), Some(vec![Prepared]));
        assert_eq!(all_of(b" DISCARD ALL ; "), Some(vec![All]));

        for text in [asyncpg, b"deallocate all", b"close all;", b"Reset All", b"unlisten *", b"DISCARD ALL"] {
            assert!(may_clear(text) && clears(text).is_some(), "{text:?}");
        }
        for text in [
            "",
            ";",
            "DISCARD ALL; DEALLOCATE ALL",
            "RESET ALL; SELECT 1",
            "DEALLOCATE ALL -- ; INSERT",
            "CLOSE ALL /* x */",
            "RESET work_mem",
            "SELECT pg_advisory_unlock_all(), f()",
        ] {
            assert_eq!(all_of(text.as_bytes()), None, "{text}");
        }
    }
}
