//! What we know of users: the userlist, the user in `[cluster]`, and what `auth_query` finds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::scram::{SaltKey, Verifier};
use crate::auth::{Credential, Secret, Userlist, UserlistError};
use crate::config::Config;

/// Verifiers remembered beyond the userlist's.
const VERIFIERS_MAX: usize = 10_000;

/// Replaced as a whole on reload.
#[derive(Debug, Default)]
pub struct Secrets {
    userlist: Option<Userlist>,
    cluster: Option<(String, Secret)>,
    /// Made once per user, since making one from a password takes milliseconds.
    verifiers: Mutex<HashMap<String, (Secret, Verifier)>>,
}

impl Secrets {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// When the userlist cannot be read.
    pub fn load(config: &Config) -> Result<Self, UserlistError> {
        let userlist = config.listen.userlist.as_deref().map(Userlist::load).transpose()?;
        let cluster = match (&config.cluster.user, &config.cluster.password) {
            (Some(user), Some(password)) => Some((user.clone(), Secret::parse(password.reveal()))),
            _ => None,
        };
        Ok(Self { userlist, cluster, verifiers: Mutex::default() })
    }

    /// The secret of a user, as the files know it.
    pub fn get(&self, user: &str) -> Option<Secret> {
        self.userlist.as_ref().and_then(|list| list.get(user)).map(|secret| Secret::clone(secret))
    }

    /// What a backend can be logged in with on behalf of a user.
    pub fn credential(&self, user: &str) -> Credential {
        let listed = self.get(user).map_or(Credential::None, |secret| secret.credential());
        match (&listed, &self.cluster) {
            (Credential::None, Some((cluster, secret))) if cluster == user => secret.credential(),
            _ => listed,
        }
    }

    /// What a SCRAM proof of the user is checked against.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn verifier(&self, user: &str, secret: Option<Secret>, salts: &Arc<SaltKey>) -> Verifier {
        let Some(secret @ Secret::Plain(_)) = secret else {
            return Verifier::new(user, secret.as_ref(), salts);
        };
        let kept = self.lock().get(user).filter(|(of, _)| *of == secret).map(|(_, v)| v.clone());
        if let Some(verifier) = kept {
            return verifier;
        }
        let (name, of, key) = (user.to_owned(), secret.clone(), Arc::clone(salts));
        let made = tokio::task::spawn_blocking(move || Verifier::new(&name, Some(&of), &key)).await;
        // Only a runtime that shuts down does not finish it.
        let Ok(verifier) = made else { return Verifier::mock(user, salts) };
        let mut verifiers = self.lock();
        if verifiers.len() >= VERIFIERS_MAX {
            verifiers.clear();
        }
        verifiers.insert(user.to_owned(), (secret, verifier.clone()));
        verifier
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Secret, Verifier)>> {
        self.verifiers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
