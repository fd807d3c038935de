//! The login of a raw application: every method that `PostgreSQL` has a password for.

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};

use crate::frames::Frames;
use crate::message::{Message, Problem};
use crate::scripted_app::ScriptedApp;
use crate::scripted_server::BackendKey;
use crate::wait::PATIENCE;
use crate::wire::Received;

/// Who logs in.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    /// Role.
    pub user: &'a str,
    /// Its password, where one is asked for.
    pub password: &'a str,
    /// Database.
    pub database: &'a str,
}

/// What the server said up to its first `ReadyForQuery`.
#[derive(Debug, Clone, Default)]
pub struct Greeting {
    /// `ParameterStatus`, in order.
    pub parameters: Vec<(String, String)>,
    /// What a `CancelRequest` must show.
    pub key: BackendKey,
    /// Notices.
    pub notices: Vec<Problem>,
}

impl Greeting {
    /// A parameter's value.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        // The last one counts.
        let mut found = self.parameters.iter().rev();
        found.find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Answers what the server asks until it is ready; the startup packet has been sent.
pub(crate) async fn log_in(app: &mut ScriptedApp, who: Credentials<'_>) -> Result<Greeting, Problem> {
    let mut greeting = Greeting::default();
    let mut scram = ScramSha256::new(who.password.as_bytes(), ChannelBinding::unsupported());
    loop {
        let message = match app.receive_within(PATIENCE).await {
            Received::Message(message) => message,
            other => panic!("during login: {other:?}"),
        };
        match message.tag {
            b'R' => answer(app, who, &mut scram, &message.body).await,
            b'S' => greeting.parameters.push(pair(&message)),
            b'K' => greeting.key = BackendKey::of_body(&message.body),
            b'N' => greeting.notices.extend(message.problem()),
            b'E' => return Err(message.problem().unwrap_or_default()),
            b'Z' => return Ok(greeting),
            // NegotiateProtocolVersion.
            b'v' => {}
            other => panic!("tag {:?} during login", char::from(other)),
        }
    }
}

fn pair(message: &Message) -> (String, String) {
    let mut strings = message.strings().into_iter();
    (strings.next().unwrap_or_default(), strings.next().unwrap_or_default())
}

/// Numbers as in `src/include/libpq/protocol.h` (`AUTH_REQ`_*).
async fn answer(app: &mut ScriptedApp, who: Credentials<'_>, scram: &mut ScramSha256, body: &[u8]) {
    let (kind, data) = body.split_first_chunk::<4>().expect("an authentication request");
    let reply = match u32::from_be_bytes(*kind) {
        0 => return,
        3 => zero_terminated(who.password),
        5 => {
            let salt = data.try_into().expect("a salt of four bytes");
            zero_terminated(&md5_hash(who.user.as_bytes(), who.password.as_bytes(), salt))
        }
        10 => {
            let first = scram.message();
            let mut reply = zero_terminated(SCRAM_SHA_256);
            reply.extend(u32::try_from(first.len()).expect("a short message").to_be_bytes());
            reply.extend(first);
            reply
        }
        11 => {
            scram.update(data).expect("a SCRAM challenge for us");
            scram.message().to_vec()
        }
        12 => return scram.finish(data).expect("the server knows our secret"),
        other => panic!("authentication request {other}"),
    };
    app.send(Frames::new().password(&reply)).await;
}

fn zero_terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
