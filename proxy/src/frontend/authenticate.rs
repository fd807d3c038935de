//! How an application proves who it is.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout;

use super::login::Conversation;
use crate::auth::scram::{Binding, Mechanism, ScramServer};
use crate::auth::{Credential, Look, ScramError, Secret, md5};
use crate::config::AuthMethod;
use crate::server::Shared;
use crate::wire::SqlState;
use crate::wire::backend::auth as code;
use crate::wire::frame::{put_cstr, split_cstr};

/// Why an application was not let in. What it is told never says whether the user exists.
#[derive(Debug, Error)]
pub enum AuthError {
    /// The connection ended.
    #[error("connection lost during authentication")]
    Lost(#[from] std::io::Error),
    /// The proof is wrong, or there is no such user.
    #[error("password authentication failed for user \"{0}\"")]
    Wrong(String),
    /// The application broke the protocol.
    #[error("{0}")]
    Protocol(String),
    /// SASL as such went wrong.
    #[error("SCRAM authentication failed: {0}")]
    Scram(ScramError),
    /// We are not able to check.
    #[error("authentication is not possible at the moment")]
    Unable,
}

impl AuthError {
    /// The SQLSTATE for the application.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Self::Wrong(_) | Self::Lost(_) => SqlState::INVALID_PASSWORD,
            Self::Protocol(_) | Self::Scram(ScramError::Malformed(_)) => SqlState::PROTOCOL_VIOLATION,
            Self::Scram(ScramError::Unsupported(_)) => SqlState::FEATURE_NOT_SUPPORTED,
            Self::Scram(_) => SqlState::INVALID_AUTHORIZATION,
            Self::Unable => SqlState::INSUFFICIENT_RESOURCES,
        }
    }
}

/// Runs the authentication that the configuration asks for. Yields what backends can be logged in with on
/// behalf of the user.
///
/// # Cancel safety
/// Not cancel safe; the connection is of no use when it is dropped midway.
pub async fn authenticate(
    talk: &mut Conversation,
    user: &str,
    method: AuthMethod,
    shared: &Arc<Shared>,
) -> Result<Credential, AuthError> {
    let secrets = shared.secrets.load_full();
    if method == AuthMethod::Trust {
        return Ok(secrets.credential(user));
    }
    let secret = match secrets.get(user) {
        Some(secret) => Some(secret),
        None => shared.query_secret(user, talk.worker).await.map_err(|()| AuthError::Unable)?,
    };
    let look = secrets.look(secret.as_ref());
    let proven = match (method, look) {
        (AuthMethod::Password, _) => {
            by_password(talk, user, secret.clone().unwrap_or_else(|| look.mock())).await?
        }
        (AuthMethod::Md5, Look::Md5) => by_md5(talk, user, secret.as_ref()).await?,
        (AuthMethod::Scram | AuthMethod::Md5 | AuthMethod::Trust, _) => {
            by_scram(talk, user, secret.clone(), shared).await?
        }
    };
    Ok(match (secret.map(|secret| secret.credential()), proven) {
        (Some(Credential::None) | None, proven) => proven,
        (Some(credential), _) => credential,
    })
}

/// How long who is trusted waits for a secret that is not its own to prove: one server may hang, the next may answer.
const TRUST_PATIENCE: Duration = Duration::from_secs(2);

/// What backends can be logged in with on behalf of a user who had to prove nothing, and of whom no file knows a secret.
/// Whoever asks waits for a place first, so all of it has a bound: a login that needs no secret must not fail for one.
///
/// # Cancel safety
/// As [`Shared::query_secret`].
pub async fn queried_credential(user: &str, shared: &Arc<Shared>, worker: usize) -> Credential {
    match timeout(TRUST_PATIENCE, shared.query_secret(user, worker)).await {
        Ok(Ok(Some(secret))) => secret.credential(),
        // PostgreSQL may trust this user as well.
        Ok(Ok(None) | Err(())) | Err(_) => Credential::None,
    }
}

async fn by_password(talk: &mut Conversation, user: &str, secret: Secret) -> Result<Credential, AuthError> {
    talk.authentication(code::CLEARTEXT, &[]).await?;
    let answer = talk.password_message().await?;
    let password = split_cstr(&answer)
        .filter(|(_, rest)| rest.is_empty())
        .and_then(|(password, _)| std::str::from_utf8(password).ok())
        .ok_or_else(|| AuthError::Protocol("malformed password message".to_owned()))?
        .to_owned();
    let name = user.to_owned();
    // Against a SCRAM secret this is milliseconds of hashing.
    let checked = tokio::task::spawn_blocking(move || {
        secret.check_password(&name, &password).map(|()| crate::config::Password::new(password))
    });
    match checked.await {
        Ok(Ok(password)) => Ok(Credential::Password(password)),
        Ok(Err(_)) => Err(AuthError::Wrong(user.to_owned())),
        Err(_) => Err(AuthError::Unable),
    }
}

async fn by_md5(
    talk: &mut Conversation,
    user: &str,
    secret: Option<&Secret>,
) -> Result<Credential, AuthError> {
    let salt: [u8; 4] = rand::random();
    talk.authentication(code::MD5, &salt).await?;
    let answer = talk.password_message().await?;
    let response = split_cstr(&answer)
        .filter(|(_, rest)| rest.is_empty())
        .ok_or_else(|| AuthError::Protocol("malformed password message".to_owned()))?
        .0;
    md5::check(secret, user, salt, response).map_err(|_| AuthError::Wrong(user.to_owned()))?;
    Ok(Credential::None)
}

async fn by_scram(
    talk: &mut Conversation,
    user: &str,
    secret: Option<Secret>,
    shared: &Arc<Shared>,
) -> Result<Credential, AuthError> {
    let verifier = shared.secrets.load_full().verifier(user, secret, &shared.salts).await;
    let binding = talk.binding(shared);
    let mut offer = Vec::new();
    for mechanism in binding.mechanisms() {
        put_cstr(&mut offer, mechanism.name().as_bytes());
    }
    offer.push(0);
    talk.authentication(code::SASL, &offer).await?;

    let initial = talk.password_message().await?;
    let (mechanism, first) = read_initial(&initial, &binding)?;
    let failed = |error| match error {
        ScramError::WrongProof => AuthError::Wrong(user.to_owned()),
        other => AuthError::Scram(other),
    };
    let server = ScramServer::new(verifier, binding.clone()).map_err(failed)?;
    let (challenge, awaiting) = server.first(mechanism, first).map_err(failed)?;
    talk.authentication(code::SASL_CONTINUE, &challenge).await?;

    let last = talk.password_message().await?;
    let proven = awaiting.last(&last).map_err(failed)?;
    talk.authentication(code::SASL_FINAL, &proven.server_final).await?;
    Ok(Credential::ScramKeys(Arc::new(proven.keys)))
}

/// `SASLInitialResponse`: the mechanism, and the client's first message.
fn read_initial<'a>(body: &'a [u8], binding: &Binding) -> Result<(Mechanism, &'a [u8]), AuthError> {
    let malformed = || AuthError::Protocol("malformed SASLInitialResponse".to_owned());
    let (name, rest) = split_cstr(body).ok_or_else(malformed)?;
    let (length, first) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
    if usize::try_from(u32::from_be_bytes(*length)) != Ok(first.len()) {
        return Err(malformed());
    }
    std::str::from_utf8(name)
        .ok()
        .and_then(Mechanism::from_name)
        .filter(|mechanism| binding.mechanisms().contains(mechanism))
        .map(|mechanism| (mechanism, first))
        .ok_or_else(|| {
            AuthError::Protocol("client selected an invalid SASL authentication mechanism".to_owned())
        })
}
