//! The prepared statements of one session, under the names that the application gave them.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::backend::Statement;
use crate::backend::connection::UnnamedOwner;
use crate::exchange::Facts;

/// Named statements that one session may have. PostgreSQL has no limit but memory; ours is shared.
pub const NAMED_LIMIT: usize = 10_000;

/// Text of an unnamed statement that an idle session may keep without giving memory back.
const KEPT_UNNAMED: usize = 2 * 1024;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Names {
    named: HashMap<Box<[u8]>, Arc<Statement>, foldhash::fast::RandomState>,
    /// The last unnamed Parse as a whole frame: it is prepared anew when another backend has to bind it.
    unnamed: Vec<u8>,
    /// Whose it is, for the backend that has it.
    pub owner: UnnamedOwner,
    /// What it does.
    pub unnamed_facts: Option<Facts>,
    /// Who runs it.
    pub unnamed_kind: UnnamedKind,
    /// Names that the pinned backend knows as the application does.
    lent: HashSet<Box<[u8]>, foldhash::fast::RandomState>,
}

/// Who runs the unnamed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnnamedKind {
    /// The server.
    #[default]
    Forwarded,
    /// We do: it deallocates a statement that the server knows under another name.
    Deallocate,
}

impl Names {
    /// For the session with this number.
    pub fn of_session(session: u64) -> Self {
        Self { owner: UnnamedOwner { session, serial: 0 }, ..Self::default() }
    }

    /// The statement of a name.
    #[inline]
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.get(name)
    }

    /// Gives a statement a name; false when there are too many.
    pub fn insert(&mut self, name: &[u8], statement: Arc<Statement>) -> bool {
        if self.named.len() >= NAMED_LIMIT {
            return false;
        }
        self.named.insert(name.into(), statement);
        true
    }

    /// Takes a name away.
    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        self.named.remove(name)
    }

    /// Notes that the backend gets a statement under the application's name; false if it has it already.
    pub fn lend(&mut self, name: &[u8]) -> bool {
        self.lent.insert(name.into())
    }

    /// Takes all names away.
    pub fn clear(&mut self) {
        self.named = HashMap::default();
        self.lent = HashSet::default();
        self.clear_unnamed();
    }

    /// Notes a new unnamed statement, given as a whole Parse frame.
    pub fn set_unnamed(&mut self, frame: &[u8], facts: Facts) {
        self.owner.serial += 1;
        self.unnamed_kind = UnnamedKind::Forwarded;
        self.unnamed.clear();
        self.unnamed.extend_from_slice(frame);
        self.unnamed_facts = Some(facts);
    }

    /// The session has no unnamed statement any more.
    pub fn clear_unnamed(&mut self) {
        self.owner.serial += 1;
        self.unnamed.clear();
        self.unnamed_facts = None;
        self.unnamed_kind = UnnamedKind::Forwarded;
    }

    /// The Parse frame of the unnamed statement; empty when there is none.
    pub fn unnamed(&self) -> &[u8] {
        &self.unnamed
    }

    /// Gives memory back that a quiet session does not need.
    pub fn shrink(&mut self) {
        if self.unnamed.capacity() > KEPT_UNNAMED {
            self.unnamed.shrink_to(KEPT_UNNAMED);
        }
    }
}
