//! Prepared statements: one backend name per distinct definition, however many sessions use it.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use hashbrown::{HashMap, HashTable};

use crate::exchange::Facts;

/// Names a prepared statement on a backend. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StatementId(u64);

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl StatementId {
    fn next() -> Self {
        Self(NEXT_ID.fetch_add(1, Ordering::Relaxed))
    }

    /// Appends the name on the backend, without a zero byte.
    pub fn put_name(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"tidegate_");
        let mut digits = [0_u8; 20];
        let mut at = digits.len();
        let mut rest = self.0;
        loop {
            at -= 1;
            if let (Some(digit), Ok(value)) = (digits.get_mut(at), u8::try_from(rest % 10)) {
                *digit = b'0' + value;
            }
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        out.extend_from_slice(digits.get(at..).unwrap_or_default());
    }
}

/// A statement's text and parameter types, shared by all sessions that prepared the same under the same
/// schema.
#[derive(Debug)]
pub struct Statement {
    /// Everything in a Parse after the name.
    definition: Box<[u8]>,
    /// What the text does, found out once.
    pub facts: Facts,
    /// See [`Facts::is_plain`].
    pub is_plain: bool,
    /// Identifies it on backends.
    pub id: StatementId,
    /// The name that it has on backends, with its zero byte.
    pub name: Box<[u8]>,
    schema: u64,
    /// Whether a server has accepted it.
    proven: AtomicBool,
}

/// Counts changes of the schema, as far as we see them. A statement that is prepared after a change is not
/// the one from before: a plan that is cached from before may have other result columns, and only the
/// session that knew those deserves the error.
static SCHEMA: AtomicU64 = AtomicU64::new(0);

/// The schema may have changed.
pub fn schema_changed() {
    SCHEMA.fetch_add(1, Ordering::Relaxed);
}

struct Interner {
    hasher: foldhash::fast::RandomState,
    statements: HashTable<Weak<Statement>>,
}

static INTERNED: LazyLock<Mutex<Interner>> = LazyLock::new(|| {
    Mutex::new(Interner { hasher: foldhash::fast::RandomState::default(), statements: HashTable::new() })
});

impl Statement {
    /// The shared statement for this definition; `facts` is asked only when it is new.
    pub fn intern(definition: &[u8], facts: impl FnOnce() -> Facts) -> Arc<Self> {
        let mut interner = INTERNED.lock().unwrap_or_else(PoisonError::into_inner);
        let Interner { hasher, statements } = &mut *interner;
        let hash = hasher.hash_one(definition);
        let schema = SCHEMA.load(Ordering::Relaxed);
        let same = |s: &Self| s.schema == schema && *s.definition == *definition;
        if let Some(found) =
            statements.find(hash, |weak| weak.upgrade().is_some_and(|s| same(&s))).and_then(Weak::upgrade)
        {
            return found;
        }
        if statements.len() == statements.capacity() {
            statements.retain(|weak| weak.strong_count() > 0);
        }
        let id = StatementId::next();
        let mut name = Vec::new();
        id.put_name(&mut name);
        name.push(0);
        let (definition, name, facts) = (definition.into(), name.into(), facts());
        let (is_plain, proven) = (facts.is_plain(), AtomicBool::new(false));
        let statement = Arc::new(Self { definition, facts, is_plain, id, name, schema, proven });
        statements.insert_unique(hash, Arc::downgrade(&statement), |weak| {
            weak.upgrade().map_or(0, |s| hasher.hash_one(&*s.definition))
        });
        statement
    }

    /// The shared statement for this definition, if a server has accepted it under the schema of now.
    pub fn proven(definition: &[u8]) -> Option<Arc<Self>> {
        let interner = INTERNED.lock().unwrap_or_else(PoisonError::into_inner);
        let schema = SCHEMA.load(Ordering::Relaxed);
        let hash = interner.hasher.hash_one(definition);
        let same = |s: &Self| s.schema == schema && *s.definition == *definition;
        let found = interner.statements.find(hash, |weak| weak.upgrade().is_some_and(|s| same(&s)));
        found.and_then(Weak::upgrade).filter(|statement| statement.proven.load(Ordering::Relaxed))
    }

    /// Its text.
    pub fn text(&self) -> &[u8] {
        self.definition.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// A server has accepted it.
    pub fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Appends a Parse that prepares it under a name of the application's.
    pub fn put_parse_as(&self, name: &[u8], out: &mut Vec<u8>) {
        crate::wire::frame::put_frame(out, crate::wire::frontend::PARSE, |out| {
            crate::wire::frame::put_cstr(out, name);
            out.extend_from_slice(&self.definition);
        });
    }

    /// Appends a Parse that prepares it under its backend name.
    pub fn put_parse(&self, out: &mut Vec<u8>) {
        crate::wire::frame::put_frame(out, crate::wire::frontend::PARSE, |out| {
            out.extend_from_slice(&self.name);
            out.extend_from_slice(&self.definition);
        });
    }
}

/// What one backend has prepared, least recently used first out.
#[derive(Debug, Default)]
pub struct Prepared {
    last_use: HashMap<StatementId, u64, foldhash::fast::RandomState>,
    clock: u64,
}

impl Prepared {
    /// Notes a use; false when the backend does not have the statement.
    #[inline]
    pub fn touch(&mut self, id: StatementId) -> bool {
        self.clock += 1;
        match self.last_use.get_mut(&id) {
            Some(last_use) => {
                *last_use = self.clock;
                true
            }
            None => false,
        }
    }

    /// Notes that the backend has it now. When that makes more than `limit`, names the one to close.
    pub fn insert(&mut self, id: StatementId, limit: usize) -> Option<StatementId> {
        self.clock += 1;
        self.last_use.insert(id, self.clock);
        if self.last_use.len() <= limit.max(1) {
            return None;
        }
        let (&oldest, _) = self.last_use.iter().min_by_key(|(_, last_use)| **last_use)?;
        self.last_use.remove(&oldest);
        Some(oldest)
    }

    /// Notes that the backend does not have it (any more).
    pub fn remove(&mut self, id: StatementId) {
        self.last_use.remove(&id);
    }

    /// Notes that the backend has none.
    pub fn clear(&mut self) {
        self.last_use.clear();
    }

    /// How many the backend has.
    pub fn len(&self) -> usize {
        self.last_use.len()
    }

    /// Whether the backend has none.
    pub fn is_empty(&self) -> bool {
        self.last_use.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_definition_is_one_statement_until_the_schema_changes() {
        // Two names for one text would double what every backend keeps; one name across a change of the
        // schema would give a new session the stale plan of an old one.
        let a = Statement::intern(b"select 11\0\0\0", Facts::default);
        let b = Statement::intern(b"select 11\0\0\0", Facts::default);
        schema_changed();
        let c = Statement::intern(b"select 11\0\0\0", Facts::default);

        assert_eq!(a.id, b.id);
        assert_ne!(a.id, c.id);
    }

    #[test]
    fn least_recently_used_statement_is_closed() {
        // Any other choice would evict what is in use.
        let ids: Vec<_> = (0..3).map(|_| StatementId::next()).collect();
        let mut prepared = Prepared::default();
        prepared.insert(ids[0], 2);
        prepared.insert(ids[1], 2);
        prepared.touch(ids[0]);

        assert_eq!(prepared.insert(ids[2], 2), Some(ids[1]));
        assert!(prepared.touch(ids[0]) && prepared.touch(ids[2]) && !prepared.touch(ids[1]));
    }

    #[test]
    fn names_are_decimal() {
        // A wrong digit would make two statements share a name.
        let mut out = Vec::new();
        StatementId(90_071).put_name(&mut out);

        assert_eq!(out, b"tidegate_90071");
    }
}
