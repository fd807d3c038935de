//! What we know of users: the userlist, the user in `[cluster]`, and what `auth_query` finds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::scram::{ITERATIONS, SaltKey, Verifier};
use crate::auth::{Credential, Look, Secret, Userlist, UserlistError};
use crate::config::Config;

/// Verifiers remembered beyond the userlist's.
const VERIFIERS_MAX: usize = 10_000;

/// What secrets look like that PostgreSQL made by its defaults.
const POSTGRESQL: Look = Look::Scram { iterations: ITERATIONS };

/// Replaced as a whole on reload.
#[derive(Debug)]
pub struct Secrets {
    userlist: Option<Userlist>,
    cluster: Option<(String, Secret)>,
    /// What an unknown user shows, too.
    usual: Look,
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
        let usual = match &userlist {
            Some(list) if config.listen.auth_query.is_none() => usual(list),
            Some(_) | None => POSTGRESQL,
        };
        Ok(Self { userlist, cluster, usual, verifiers: Mutex::default() })
    }

    /// What the secret of a user looks like, or that of a user without any.
    pub fn look(&self, secret: Option<&Secret>) -> Look {
        secret.map_or(self.usual, Secret::look)
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
            return Verifier::new(user, secret.as_ref(), self.usual, salts);
        };
        let kept = self.lock().get(user).filter(|(of, _)| *of == secret).map(|(_, v)| v.clone());
        if let Some(verifier) = kept {
            return verifier;
        }
        let (name, of, usual, key) = (user.to_owned(), secret.clone(), self.usual, Arc::clone(salts));
        let made = tokio::task::spawn_blocking(move || Verifier::new(&name, Some(&of), usual, &key)).await;
        // Only a runtime that shuts down does not finish it.
        let Ok(verifier) = made else { return Verifier::mock(user, self.usual, salts) };
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

/// What most of the listed secrets look like.
fn usual(list: &Userlist) -> Look {
    let mut counts = HashMap::<Look, usize>::new();
    for (_, secret) in list.iter() {
        *counts.entry(secret.look()).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(look, count)| (*count, *look));
    most.map_or(POSTGRESQL, |(look, _)| look)
}
