//! Both roles against the RFC, each other and an independent client.

use postgres_protocol::authentication::sasl::{self, ScramSha256};
use proptest::prelude::*;

use super::*;
use crate::auth::{Look, ScramSecret, Secret};
use crate::config::Password;

const USUAL: Look = Look::Scram { iterations: 4096 };
const PLAIN: [&str; 1] = ["SCRAM-SHA-256"];
const BOTH: [&str; 2] = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"];

fn password(text: &str) -> ClientCredential {
    ClientCredential::Password { user: "user".into(), password: Password::new(text.into()) }
}

fn verifier(secret: &str) -> Verifier {
    Verifier::new("user", Some(&Secret::parse(secret)), USUAL, &SaltKey::new().unwrap())
}

fn end_point(hash: &[u8]) -> Binding {
    Binding::TlsServerEndPoint(hash.into())
}

fn offer(binding: &Binding) -> Vec<&'static str> {
    binding.mechanisms().iter().map(|mechanism| mechanism.name()).collect()
}

/// Our client against our server, up to the keys that the server learned.
fn exchange(client: ScramClient, server: ScramServer) -> Result<ScramKeys, ScramError> {
    let (server_first, server) = server.first(client.mechanism(), client.first())?;
    let challenge = client.challenge(&server_first)?;
    let (client_final, proof) = challenge.answer(&KeyCache::new(1)?);
    let proven = server.last(&client_final)?;
    proof.check(&proven.server_final)?;
    Ok(proven.keys)
}

fn rfc_secret() -> Secret {
    let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let keys = ScramKeys::derive("pencil", &salt, 4096);
    let (stored_key, server_key) = (keys.stored_key.clone(), keys.server_key.clone());
    Secret::Scram(ScramSecret { iterations: 4096, salt, stored_key, server_key })
}

#[test]
fn both_roles_speak_the_exchange_of_rfc_7677() {
    // Section 3 of the RFC, byte for byte: any slip in keys, order or encoding shows here.
    let first = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    let challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    let outcome = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
    let nonce = "rOprNGfwEbeRWgbNEkqO".to_owned();
    let client =
        ScramClient::with_nonce(password("pencil"), Binding::Unavailable, PLAIN, "user", nonce).unwrap();
    let verifier = Verifier::new("user", Some(&rfc_secret()), USUAL, &SaltKey::new().unwrap());
    let server = ScramServer::with_nonce(verifier, Binding::Unavailable, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0");

    assert_eq!(client.first(), first);
    let (server_first, server) = server.first(Mechanism::ScramSha256, first).unwrap();
    assert_eq!(server_first, challenge);
    let (client_final, proof) = client.challenge(challenge).unwrap().answer(&KeyCache::new(1).unwrap());
    assert_eq!(client_final, last);
    assert_eq!(server.last(last).unwrap().server_final, outcome);
    assert_eq!(proof.check(outcome), Ok(()));
}

#[test]
fn an_independent_client_logs_in_with_and_without_channel_binding() {
    // Our own client could share a mistake with our server; this one was written by others.
    let scram = postgres_protocol::password::scram_sha_256("pässword".as_bytes());
    for secret in ["pässword", scram.as_str()] {
        for (binding, theirs, mechanism) in [
            (Binding::Unavailable, sasl::ChannelBinding::unsupported(), Mechanism::ScramSha256),
            (Binding::Unavailable, sasl::ChannelBinding::unrequested(), Mechanism::ScramSha256),
            (
                end_point(b"hash"),
                sasl::ChannelBinding::tls_server_end_point(b"hash".to_vec()),
                Mechanism::ScramSha256Plus,
            ),
        ] {
            let mut client = ScramSha256::new("pässword".as_bytes(), theirs);
            let server = ScramServer::new(verifier(secret), binding).unwrap();

            let (server_first, server) = server.first(mechanism, client.message()).unwrap();
            client.update(&server_first).unwrap();
            let proven = server.last(client.message()).unwrap();

            client.finish(&proven.server_final).unwrap();
        }
    }
}

#[test]
fn the_right_password_passes_and_a_wrong_one_does_not() {
    // The server must not let in everybody whose messages are well formed.
    for binding in [Binding::Unavailable, end_point(b"hash")] {
        for (given, expected) in [("pencil", Ok(())), ("pencil ", Err(ScramError::WrongProof))] {
            let client = ScramClient::new(password(given), binding.clone(), offer(&binding)).unwrap();
            let server = ScramServer::new(verifier("pencil"), binding.clone()).unwrap();

            assert_eq!(exchange(client, server).map(|_| ()), expected);
        }
    }
}

#[test]
fn keys_from_a_proof_log_in_to_a_server_with_the_same_secret() {
    // The application proves a password that we never see; its keys must satisfy the database.
    let secret = postgres_protocol::password::scram_sha_256(b"pencil");
    let front = ScramServer::new(verifier(&secret), Binding::Unavailable).unwrap();
    let application = ScramClient::new(password("pencil"), Binding::Unavailable, PLAIN).unwrap();
    let keys = Arc::new(exchange(application, front).unwrap());

    let ours = || ScramClient::new(ClientCredential::Keys(keys.clone()), end_point(b"h"), BOTH).unwrap();
    let same_secret = ScramServer::new(verifier(&secret), end_point(b"h")).unwrap();
    let other = verifier(&postgres_protocol::password::scram_sha_256(b"pencil"));
    let other_salt = ScramServer::new(other, end_point(b"h")).unwrap();

    assert_eq!(exchange(ours(), same_secret), Ok((*keys).clone()));
    assert_eq!(exchange(ours(), other_salt), Err(ScramError::WrongProof));
}

#[test]
fn an_unknown_user_looks_like_a_wrong_password() {
    // Sizes, iterations and the error are all that an application sees: a difference would tell who exists.
    let salts = SaltKey::new().unwrap();
    let md5 = Secret::parse(&postgres_protocol::password::md5(b"pencil", "user"));
    let shape = |secret: Option<&Secret>| {
        let client = ScramClient::new(password("wrong"), Binding::Unavailable, PLAIN).unwrap();
        let verifier = Verifier::new("user", secret, USUAL, &salts);
        let server = ScramServer::new(verifier, Binding::Unavailable).unwrap();
        let (server_first, server) = server.first(client.mechanism(), client.first()).unwrap();
        let challenge = client.challenge(&server_first).unwrap();
        let salt_and_iterations = server_first[server_first.len() - 33..].to_vec();
        let (client_final, _proof) = challenge.answer(&KeyCache::new(1).unwrap());
        (server_first.len(), salt_and_iterations, server.last(&client_final).unwrap_err())
    };

    let known = shape(Some(&Secret::parse("pencil")));

    assert_eq!(known.2, ScramError::WrongProof);
    for unknown in [None, Some(&md5), Some(&Secret::parse(""))] {
        assert_eq!(shape(unknown), known);
    }
    assert_ne!(salts.salt_of("user"), salts.salt_of("other"));
}

#[test]
fn a_mock_refuses_even_a_proof_that_fits_its_keys() {
    // Its keys are known to everybody (zeros): only its doom keeps an attacker out.
    let mock = Verifier::mock("user", USUAL, &SaltKey::new().unwrap());
    let server = ScramServer::new(mock, Binding::Unavailable).unwrap();
    let zeros =
        ScramKeys { client_key: Key::default(), stored_key: Key::default(), server_key: Key::default() };
    let client = ScramClient::new(ClientCredential::Keys(zeros.into()), Binding::Unavailable, PLAIN).unwrap();

    assert_eq!(exchange(client, server), Err(ScramError::WrongProof));
}

#[test]
fn channel_binding_rules_are_those_of_postgresql() {
    // Each line is a downgrade or a mix-up; accepting it would let somebody sit in the middle.
    use Mechanism::{ScramSha256, ScramSha256Plus};
    let bound = end_point(b"hash");
    let plain = Binding::Unavailable;
    for (binding, mechanism, header, accepted) in [
        (&plain, ScramSha256, "n,,", true),
        (&plain, ScramSha256, "y,,", true),
        (&plain, ScramSha256, "p=tls-server-end-point,,", false),
        (&plain, ScramSha256Plus, "p=tls-server-end-point,,", false),
        (&plain, ScramSha256, "n,a=admin,", false),
        (&plain, ScramSha256, "x,,", false),
        (&bound, ScramSha256, "n,,", true),
        (&bound, ScramSha256, "y,,", false),
        (&bound, ScramSha256, "p=tls-server-end-point,,", false),
        (&bound, ScramSha256Plus, "n,,", false),
        (&bound, ScramSha256Plus, "y,,", false),
        (&bound, ScramSha256Plus, "p=tls-unique,,", false),
        (&bound, ScramSha256Plus, "p=tls-server-end-point,,", true),
    ] {
        let server = ScramServer::new(verifier("pencil"), binding.clone()).unwrap();

        let answer = server.first(mechanism, format!("{header}n=,r=abc").as_bytes());

        assert_eq!(answer.is_ok(), accepted, "{mechanism:?} {header}: {answer:?}");
    }
}

#[test]
fn another_certificate_breaks_the_channel_binding() {
    // This is what the binding is for: TLS ended at somebody else's certificate.
    let client = ScramClient::new(password("pencil"), end_point(b"theirs"), BOTH).unwrap();
    let server = ScramServer::new(verifier("pencil"), end_point(b"ours")).unwrap();

    assert_eq!(exchange(client, server), Err(ScramError::ChannelBinding("check failed")));
}

#[test]
fn a_binding_taken_out_of_the_offer_is_noticed() {
    // The client says "y", and the server knows that it did offer more.
    let client = ScramClient::new(password("pencil"), end_point(b"h"), PLAIN).unwrap();
    let server = ScramServer::new(verifier("pencil"), end_point(b"h")).unwrap();

    assert_eq!(client.first()[..3], *b"y,,");
    assert!(matches!(exchange(client, server), Err(ScramError::ChannelBinding(_))));
    assert_eq!(
        ScramClient::new(password("pencil"), Binding::Unavailable, ["GS2-KRB5"]).unwrap_err(),
        ScramError::NoMechanism
    );
}

#[test]
fn a_server_that_does_not_know_the_password_is_refused() {
    // It could accept any proof, and read everything that follows.
    let challenge = || {
        let client = ScramClient::new(password("pencil"), Binding::Unavailable, PLAIN).unwrap();
        let first = format!("r={}x,s=c2FsdA==,i=1", client.nonce_for_test());
        client.challenge(first.as_bytes()).unwrap().answer(&KeyCache::new(0).unwrap()).1
    };
    let forged = format!("v={}", BASE64_STANDARD.encode([0; 32]));

    assert_eq!(challenge().check(forged.as_bytes()), Err(ScramError::ServerUnproven));
    assert_eq!(challenge().check(b"e=invalid-proof"), Err(ScramError::Refused));
    assert!(matches!(challenge().check(b""), Err(ScramError::Malformed(_))));
    assert!(matches!(challenge().check(b"v=AAAA"), Err(ScramError::Malformed(_))));
}

#[test]
fn a_client_refuses_bad_challenges() {
    // A nonce without the server's share allows replays; a huge count burns our processor.
    for (challenge, expected) in [
        ("r=NONCE,s=c2FsdA==,i=4096", ScramError::Malformed("the nonce does not extend ours")),
        ("r=xNONCE,s=c2FsdA==,i=4096", ScramError::Malformed("the nonce does not extend ours")),
        ("r=NONCEx,s=?,i=4096", ScramError::Malformed("the salt is not base64")),
        ("r=NONCEx,s=c2FsdA==,i=0", ScramError::Malformed("iterations are not a positive number")),
        ("r=NONCEx,s=c2FsdA==,i=+1", ScramError::Malformed("iterations are not a positive number")),
        ("r=NONCEx,s=c2FsdA==,i=1000001", ScramError::TooManyIterations),
        ("r=NONCEx,s=c2FsdA==,i=99999999999999999999", ScramError::TooManyIterations),
        ("r=NONCEx,s=c2FsdA==,i=1,x=y", ScramError::Malformed("text after the end")),
        ("m=ext,r=NONCEx,s=c2FsdA==,i=1", ScramError::Unsupported("a mandatory extension")),
        ("", ScramError::Malformed("the message is empty")),
    ] {
        let client = ScramClient::new(password("pencil"), Binding::Unavailable, PLAIN).unwrap();
        let challenge = challenge.replace("NONCE", client.nonce_for_test());

        assert_eq!(client.challenge(challenge.as_bytes()).unwrap_err(), expected, "{challenge}");
    }
}

#[test]
fn a_known_challenge_is_cheap_the_second_time() {
    // Otherwise every login to a backend would hold up the event loop for PBKDF2.
    let cache = KeyCache::new(4).unwrap();
    let challenge = || {
        let client = ScramClient::new(password("pencil"), Binding::Unavailable, PLAIN).unwrap();
        let first = format!("r={}x,s=c2FsdA==,i=10", client.nonce_for_test());
        client.challenge(first.as_bytes()).unwrap()
    };

    assert_eq!(challenge().cost(&cache), Cost::Derivation { iterations: 10 });
    let _ = challenge().answer(&cache);
    assert_eq!(challenge().cost(&cache), Cost::Cheap);
}

#[test]
fn debug_reveals_nothing() {
    // States are logged when something goes wrong; keys must not be among what is printed.
    let secret = Secret::parse(&postgres_protocol::password::scram_sha_256(b"hunter2"));
    let Secret::Scram(stored) = &secret else { panic!("SCRAM expected") };
    let server = ScramServer::new(
        Verifier::new("user", Some(&secret), USUAL, &SaltKey::new().unwrap()),
        Binding::Unavailable,
    );
    let keys = ScramKeys::derive("hunter2", b"salt", 1);

    let text = format!("{server:?} {keys:?} {:?}", password("hunter2"));

    assert!(!text.contains("hunter2"), "{text}");
    assert!(!text.contains(&format!("{:?}", *stored.stored_key)), "{text}");
    assert!(!text.contains(&format!("{:?}", *keys.client_key)), "{text}");
}

proptest! {
    #[test]
    fn malformed_messages_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..80),
        text in "[nyp]?(=tls-server-end-point)?,{0,3}([a-z]=[a-zA-Z0-9+/=%,é]{0,20}){0,5}",
        plus in any::<bool>(),
    ) {
        // Peers send what they like before they have proven anything.
        let binding = if plus { end_point(b"h") } else { Binding::Unavailable };
        let mechanism = binding.mechanisms()[0];
        for input in [bytes.as_slice(), text.as_bytes()] {
            let mock = || Verifier::mock("user", USUAL, &SaltKey::new().unwrap());
            let _ = ScramServer::new(mock(), binding.clone()).unwrap().first(mechanism, input);
            let server = ScramServer::new(mock(), Binding::Unavailable).unwrap();
            let (_, awaiting) = server.first(Mechanism::ScramSha256, b"n,,n=,r=x").unwrap();
            let known = [b"c=biws,r=", awaiting.nonce_for_test().as_bytes(), b",", input].concat();
            prop_assert!(awaiting.last(&known).is_err());
            let client = ScramClient::new(password("p"), binding.clone(), BOTH).unwrap();
            prop_assert!(client.challenge(input).is_err());
        }
    }
}
