//! Session settings (GUCs) that a session set, and how a backend is brought to them.
//!
//! A set of settings is immutable and interned: two sessions with the same settings share one value, so
//! "does this backend have what this session wants?" is a comparison of two pointers.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use hashbrown::HashTable;

use crate::exchange::facts::Reach;

/// Settings of a session.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Name in lower case to value in the form that `current_setting` gives.
    values: BTreeMap<Box<str>, Box<[u8]>>,
    /// What the isolation among them leaves of the servers.
    reach: Reach,
}

/// The isolation of transactions that do not say theirs. Standbys refuse the highest.
pub const DEFAULT_ISOLATION: &str = "default_transaction_isolation";

/// The role is set last and reset first: it may take away the right to change the others.
const ROLE: &str = "role";

struct Interner {
    hasher: foldhash::fast::RandomState,
    sets: HashTable<Weak<Settings>>,
}

static INTERNED: LazyLock<Mutex<Interner>> = LazyLock::new(|| {
    Mutex::new(Interner { hasher: foldhash::fast::RandomState::default(), sets: HashTable::new() })
});

static NONE: LazyLock<Arc<Settings>> = LazyLock::new(|| Settings::intern(BTreeMap::new()));

impl Settings {
    /// No settings: everything as the backend's login left it.
    pub fn none() -> Arc<Self> {
        Arc::clone(&NONE)
    }

    /// The one shared value for this map.
    pub fn intern(map: BTreeMap<Box<str>, Box<[u8]>>) -> Arc<Self> {
        let mut interner = INTERNED.lock().unwrap_or_else(PoisonError::into_inner);
        let Interner { hasher, sets } = &mut *interner;
        let hash = hash_of(hasher, &map);
        if let Some(found) = sets
            .find(hash, |weak| weak.upgrade().is_some_and(|set| set.values == map))
            .and_then(Weak::upgrade)
        {
            return found;
        }
        if sets.len() == sets.capacity() {
            sets.retain(|weak| weak.strong_count() > 0);
        }
        let reach =
            map.get(DEFAULT_ISOLATION).map_or_else(Reach::default, |isolation| Reach::under(isolation));
        let set = Arc::new(Self { values: map, reach });
        sets.insert_unique(hash, Arc::downgrade(&set), |weak| {
            weak.upgrade().map_or(0, |set| hash_of(hasher, &set.values))
        });
        set
    }

    /// This set with other values for some names; `None` takes a name out.
    pub fn with<'a>(
        self: &Arc<Self>,
        changes: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Arc<Self> {
        let mut map = self.values.clone();
        for (name, value) in changes {
            match value {
                Some(value) => drop(map.insert(name.into(), value.into())),
                None => drop(map.remove(name)),
            }
        }
        if map == self.values { Arc::clone(self) } else { Self::intern(map) }
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.values.get(name).map(AsRef::as_ref)
    }

    /// Which servers may run what a session with these settings sends.
    #[inline]
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// All names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.values.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The statements that bring a backend from `self` to `wanted`, or nothing when there is nothing to do.
    ///
    /// Values go through `set_config`, which takes exactly the form that `current_setting` gives, lists
    /// included. One simple query: either all settings change or none.
    pub fn path_to(&self, wanted: &Self) -> Vec<u8> {
        let mut sql = Vec::new();
        if self.get(ROLE).is_some() && self.get(ROLE) != wanted.get(ROLE) {
            sql.extend_from_slice(b"RESET ROLE;");
        }
        for (name, _) in self.iter().filter(|(name, _)| *name != ROLE && wanted.get(name).is_none()) {
            sql.extend_from_slice(b"RESET ");
            put_name(&mut sql, name);
            sql.push(b';');
        }
        let mut calls = Vec::new();
        let changed = |(name, value): &(&str, &[u8])| self.get(name) != Some(*value);
        for (name, value) in wanted.iter().filter(changed).filter(|(name, _)| *name != ROLE) {
            put_call(&mut calls, name, value);
        }
        if let Some(role) = wanted.get(ROLE).filter(|role| self.get(ROLE) != Some(role)) {
            put_call(&mut calls, ROLE, role);
        }
        if !calls.is_empty() {
            sql.extend_from_slice(b"SELECT ");
            sql.append(&mut calls);
        }
        sql
    }
}

fn hash_of(hasher: &foldhash::fast::RandomState, map: &BTreeMap<Box<str>, Box<[u8]>>) -> u64 {
    hasher.hash_one(map)
}

fn put_call(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    if !out.is_empty() {
        out.push(b',');
    }
    out.extend_from_slice(b"pg_catalog.set_config(");
    put_literal(out, name.as_bytes());
    out.push(b',');
    put_literal(out, value);
    out.extend_from_slice(b",false)");
}

/// Appends a dotted name, each part quoted.
fn put_name(out: &mut Vec<u8>, name: &str) {
    for (i, part) in name.split('.').enumerate() {
        if i > 0 {
            out.push(b'.');
        }
        out.push(b'"');
        part.bytes().for_each(|b| if b == b'"' { out.extend_from_slice(b"\"\"") } else { out.push(b) });
        out.push(b'"');
    }
}

/// Appends a string literal that means the same whatever `standard_conforming_strings` is.
pub fn put_literal(out: &mut Vec<u8>, value: &[u8]) {
    if value.contains(&b'\\') {
        out.extend_from_slice(b" E");
    }
    out.push(b'\'');
    for &b in value.iter().filter(|&&b| b != 0) {
        if matches!(b, b'\'' | b'\\') {
            out.push(b);
        }
        out.push(b);
    }
    out.push(b'\'');
}

/// The query that reads the values of `names` back from the server, one column each.
pub fn read_back<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut sql = b"SELECT ".to_vec();
    for (i, name) in names.into_iter().enumerate() {
        if i > 0 {
            sql.push(b',');
        }
        sql.extend_from_slice(b"pg_catalog.current_setting(");
        put_literal(&mut sql, name.as_bytes());
        sql.extend_from_slice(b",true)");
    }
    sql
}

/// The query that tells, one row per name and in their order: the value, and whether it is the one that RESET
/// gives. A custom setting that was reset is empty; a role and a session authorization have no row in
/// `pg_settings`.
pub fn read_back_with_resets<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut sql = b"SELECT v.value, CASE v.name WHEN 'role' THEN v.value = 'none' \
        WHEN 'session_authorization' THEN v.value = session_user ELSE coalesce(\
        (SELECT s.setting = s.reset_val FROM pg_catalog.pg_settings s WHERE lower(s.name) = v.name), \
        coalesce(v.value, '') = '') END FROM (VALUES "
        .to_vec();
    for (i, name) in names.into_iter().enumerate() {
        if i > 0 {
            sql.push(b',');
        }
        sql.push(b'(');
        sql.extend_from_slice(i.to_string().as_bytes());
        sql.push(b',');
        put_literal(&mut sql, name.as_bytes());
        sql.extend_from_slice(b",pg_catalog.current_setting(");
        put_literal(&mut sql, name.as_bytes());
        sql.extend_from_slice(b",true))");
    }
    sql.extend_from_slice(b") AS v(i, name, value) ORDER BY v.i");
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &str)]) -> Arc<Settings> {
        Settings::intern(pairs.iter().map(|(n, v)| ((*n).into(), v.as_bytes().into())).collect())
    }

    #[test]
    fn equal_settings_are_one_value() {
        // The cheap comparison of pointers would see a difference and replay settings for nothing.
        let a = set(&[("timezone", "UTC"), ("a.b", "1")]);
        let b = set(&[("a.b", "1")]).with([("timezone", Some(&b"UTC"[..]))]);

        assert!(Arc::ptr_eq(&a, &b));
        assert!(Arc::ptr_eq(&a.with([("a.b", None), ("timezone", None)]), &Settings::none()));
    }

    #[test]
    fn only_differences_are_replayed_and_values_cannot_break_out_of_their_quotes() {
        // An unquoted value would be run as SQL; an equal one would cost a round trip.
        let from = set(&[("search_path", "a, b"), ("work_mem", "4MB"), ("role", "x")]);
        let to = set(&[("search_path", "it's \\ here"), ("my.id", "7"), ("role", "y")]);

        let sql = String::from_utf8(from.path_to(&to)).unwrap();

        assert_eq!(
            sql,
            "RESET ROLE;RESET \"work_mem\";SELECT pg_catalog.set_config('my.id','7',false),\
             pg_catalog.set_config('search_path', E'it''s \\\\ here',false),\
             pg_catalog.set_config('role','y',false)"
        );
        assert!(to.path_to(&to).is_empty());
    }
}
