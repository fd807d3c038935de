//! Keys that were derived before, so that a login to a backend does not pay PBKDF2 each time.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use ring::hmac;
use zeroize::Zeroizing;

use super::{ScramError, ScramKeys, random};
use crate::config::Password;

/// A bounded map from (user, password, salt, iterations) to keys.
///
/// Full, it forgets the entry that came first: a server that changes its salt each time costs its own
/// logins a derivation, and no memory. Passwords are not kept: an entry is found by a keyed hash, so a
/// changed password finds nothing. Shared between threads; the lock is held for a look-up only.
pub struct KeyCache {
    hash: hmac::Key,
    capacity: usize,
    entries: Mutex<Entries>,
}

type Id = [u8; 32];

#[derive(Default)]
struct Entries {
    keys: HashMap<Id, Arc<ScramKeys>>,
    oldest_first: VecDeque<Id>,
}

impl KeyCache {
    /// A cache of this many entries, at about 200 bytes each.
    pub fn new(capacity: usize) -> Result<Self, ScramError> {
        let secret = Zeroizing::new(random::<32>()?);
        Ok(Self { hash: hmac::Key::new(hmac::HMAC_SHA256, &*secret), capacity, entries: Mutex::default() })
    }

    pub(super) fn get(
        &self,
        user: &str,
        password: &Password,
        salt: &[u8],
        iterations: u32,
    ) -> Option<Arc<ScramKeys>> {
        self.find(&self.id(user, password, salt, iterations))
    }

    pub(super) fn get_or_derive(
        &self,
        user: &str,
        password: &Password,
        salt: &[u8],
        iterations: u32,
    ) -> Arc<ScramKeys> {
        let id = self.id(user, password, salt, iterations);
        if let Some(keys) = self.find(&id) {
            return keys;
        }
        // Without the lock: two logins may derive the same keys, none waits for the other.
        let keys = Arc::new(ScramKeys::derive(password.reveal(), salt, iterations));
        self.insert(id, &keys);
        keys
    }

    fn find(&self, id: &Id) -> Option<Arc<ScramKeys>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).keys.get(id).cloned()
    }

    fn insert(&self, id: Id, keys: &Arc<ScramKeys>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if self.capacity == 0 || entries.keys.contains_key(&id) {
            return;
        }
        while entries.keys.len() >= self.capacity {
            let Some(oldest) = entries.oldest_first.pop_front() else { break };
            entries.keys.remove(&oldest);
        }
        entries.keys.insert(id, Arc::clone(keys));
        entries.oldest_first.push_back(id);
    }

    fn id(&self, user: &str, password: &Password, salt: &[u8], iterations: u32) -> Id {
        let mut context = hmac::Context::with_key(&self.hash);
        for part in [user.as_bytes(), password.reveal().as_bytes(), salt, &iterations.to_be_bytes()] {
            // With lengths: ("ab", "c") is not ("a", "bc").
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut id = Id::default();
        id.iter_mut().zip(context.sign().as_ref()).for_each(|(byte, from)| *byte = *from);
        id
    }
}

impl fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyCache").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_only_what_is_equal_in_every_part() {
        // An entry found with another password would send a proof for the wrong one.
        let cache = KeyCache::new(8).unwrap();
        let password = Password::new("pw".into());
        cache.get_or_derive("u", &password, b"salt", 1);

        assert!(cache.get("u", &password, b"salt", 1).is_some());
        assert!(cache.get("v", &password, b"salt", 1).is_none());
        assert!(cache.get("u", &Password::new("pW".into()), b"salt", 1).is_none());
        assert!(cache.get("up", &Password::new("w".into()), b"salt", 1).is_none());
        assert!(cache.get("u", &password, b"sal", 1).is_none());
        assert!(cache.get("u", &password, b"salt", 2).is_none());
    }

    #[test]
    fn forgets_the_oldest_entry_when_full() {
        // Without the bound a server with ever-changing salts would fill our memory.
        let cache = KeyCache::new(2).unwrap();
        let password = Password::new("pw".into());
        for salt in [b"1", b"2", b"3"] {
            cache.get_or_derive("u", &password, salt, 1);
        }

        assert!(cache.get("u", &password, b"1", 1).is_none());
        assert!(cache.get("u", &password, b"2", 1).is_some());
        assert!(cache.get("u", &password, b"3", 1).is_some());
        assert_eq!(cache.entries.lock().unwrap().oldest_first.len(), 2);
    }
}
