//! What breaks the protocol ends that session with an error, and disturbs nobody else.

use std::time::Duration;

use tidegate_tests::{
    Bench, Credentials, Frames, Message, ProxyOptions, Received, ScriptedApp, fresh_database,
    raise_file_limit, shared_postgres, within,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::{TIDEGATE, bench, some};

const POSTGRES: Credentials<'static> = Credentials { user: "postgres", password: "", database: "postgres" };
const SOON: Duration = Duration::from_secs(5);

/// The process runs, has not panicked, and serves: the session that was there and a new one.
async fn nothing_else_is_disturbed(bench: &mut Bench, witness: &mut ScriptedApp, after: &str) {
    let seen = witness.exchange(Frames::new().query("SELECT 'witness'")).await;
    assert_eq!(seen.value(), some("witness"), "after {after}: {:?}", seen.error());
    let (mut fresh, _) = bench.app().await;
    let fresh = fresh.query("SELECT 'fresh'").await;
    assert_eq!(fresh.value(), some("fresh"), "after {after}: {:?}", fresh.error());
    assert!(bench.proxy.is_running(), "after {after}");
    let log = bench.proxy.log();
    assert!(!log.contains("panicked"), "after {after}:\n{log}");
}

/// A FATAL protocol violation, and nothing behind it.
fn assert_protocol_violation(messages: &[Message], what: &str) {
    let problem =
        messages.last().and_then(Message::problem).unwrap_or_else(|| panic!("{what}: {messages:?}"));
    assert_eq!((problem.severity(), problem.code()), ("FATAL", "08P01"), "{what}: {problem:?}");
}

#[tokio::test]
async fn broken_framing_ends_the_session_with_a_protocol_violation() {
    // From a wrong length on nobody knows where the next message starts: only the end is safe.
    // PostgreSQL bounds lengths per tag (`SocketBackend` in `src/backend/tcop/postgres.c`).
    let mut bench = bench("pool.size = 1").await;
    let (mut witness, _) = bench.app().await;
    let rows: [(&str, &[u8]); 10] = [
        ("a length of 3", b"Q\0\0\0\x03"),
        ("a length of 0", b"S\0\0\0\0"),
        ("a negative length", b"Q\xff\xff\xff\xff"),
        ("a length beyond any limit", b"Q\x7f\xff\xff\xffSELECT 1"),
        ("a Sync of a gigabyte", b"S\x3f\xff\xff\x00"),
        ("an unknown tag", b"z\0\0\0\x04"),
        ("a zero tag", b"\0\0\0\0\x04"),
        ("a tag of the server", b"T\0\0\0\x04"),
        ("a second startup packet", b"\0\0\0\x08\0\x03\0\0"),
        ("text", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ];

    for (what, bytes) in rows {
        for frames in [Frames::new().raw(bytes), Frames::new().query("SELECT 1").raw(bytes)] {
            let (mut app, _) = bench.app().await;
            app.send(frames).await;
            let messages = within(SOON, what, app.expect_end()).await;

            assert_protocol_violation(&messages, what);
        }
        nothing_else_is_disturbed(&mut bench, &mut witness, what).await;
    }
}

#[tokio::test]
async fn broken_framing_in_a_transaction_rolls_it_back() {
    // The backend was in the middle of something; given back as it is, the next session would be inside it.
    let mut bench = bench("pool.size = 1").await;
    let (mut witness, _) = bench.app().await;
    let table = fresh_database();
    witness.query(&format!("CREATE TABLE {table} ()")).await;
    let (mut app, _) = bench.app().await;
    app.query(&format!("BEGIN; INSERT INTO {table} DEFAULT VALUES")).await;

    app.send(b"z\0\0\0\x04").await;
    assert_protocol_violation(&app.expect_end().await, "an unknown tag");

    nothing_else_is_disturbed(&mut bench, &mut witness, "an unknown tag").await;
    let count = witness.query(&format!("SELECT count(*) FROM {table}")).await;
    assert_eq!((count.value(), count.status()), (some("0"), Some('I')));
}

#[tokio::test]
async fn broken_bodies_are_protocol_violations() {
    // The frame is whole, its content is not. PostgreSQL says ERROR 08P01 for most and goes on after Sync;
    // ending the session is as good. What must not happen: a crash, silence, or another session's error.
    let mut bench = bench("pool.size = 1").await;
    let (mut witness, _) = bench.app().await;
    let rows: [(&str, u8, &[u8]); 17] = [
        ("Query without its zero", b'Q', b"SELECT 1"),
        ("Query of nothing at all", b'Q', b""),
        ("Parse of nothing at all", b'P', b""),
        ("Parse without zeros", b'P', b"name and text"),
        ("Parse without types", b'P', b"s\0SELECT 1\0"),
        ("Parse that promises types", b'P', b"s\0SELECT 1\0\0\x09"),
        ("Bind of nothing at all", b'B', b""),
        ("Bind without a statement", b'B', b"portal\0"),
        ("Bind that promises parameters", b'B', b"\0\0\0\0\0\x07"),
        ("Bind with a parameter of a gigabyte", b'B', b"\0\0\0\0\0\x01\x3f\xff\xff\xff"),
        ("Describe of nothing at all", b'D', b""),
        ("Describe of an unknown kind", b'D', b"Xname\0"),
        ("Describe without its zero", b'D', b"Sname"),
        ("Close of an unknown kind", b'C', b"Xname\0"),
        ("Close of nothing at all", b'C', b""),
        ("Execute of nothing at all", b'E', b""),
        ("Execute without a row limit", b'E', b"portal\0"),
    ];

    for (what, tag, body) in rows {
        let (mut app, _) = bench.app().await;
        app.send(Frames::new().message(tag, body).sync()).await;
        let mut problem = None;
        loop {
            match app.receive_within(SOON).await {
                Received::Message(message) if message.tag == b'E' => problem = message.problem(),
                Received::Message(message) if message.tag == b'Z' => break,
                Received::Message(_) => {}
                Received::Closed { .. } | Received::Reset(_) => break,
                Received::Silence => panic!("{what}: no answer"),
            }
        }

        let problem = problem.unwrap_or_else(|| panic!("{what}: no error"));
        // Where a name is cut off PostgreSQL may find another one missing: 26000.
        assert!(["08P01", "26000"].contains(&problem.code()), "{what}: {problem:?}");
        drop(app);
        nothing_else_is_disturbed(&mut bench, &mut witness, what).await;
    }
}

#[tokio::test]
async fn garbage_before_login_is_refused() {
    // Scanners and wrong protocols: a clear error or a close, at once, and no memory for promised bytes.
    let mut bench = Bench::start(TIDEGATE).await;
    let (mut witness, _) = bench.app().await;
    let large = [&20_000_u32.to_be_bytes()[..], &[0, 3, 0, 0]].concat();
    let unterminated = b"\0\0\0\x15\0\x03\0\0user\0postgres";
    let rows: [(&str, &[u8]); 13] = [
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("a length of 0", b"\0\0\0\0\0\x03\0\0"),
        ("a length of 3", b"\0\0\0\x03"),
        ("a length of 4", b"\0\0\0\x04"),
        ("a length of 7", b"\0\0\0\x07\0\x03\0"),
        ("a negative length", b"\xff\xff\xff\xff\0\x03\0\0"),
        ("a length beyond PostgreSQL's 10,000 bytes", &large),
        ("no zero at the end", unterminated),
        ("a name without a value", b"\0\0\0\x0e\0\x03\0\0user\0\0"),
        ("a Query", b"Q\0\0\0\x0dSELECT 1\0"),
        ("a short CancelRequest", b"\0\0\0\x0c\x04\xd2\x16\x2e\0\0\0\x01"),
        ("a CancelRequest for nobody", b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02"),
        ("noise", b"\x9f\x1b\x00\xff\x80\x80\x00\x01\xfe\xfe\xfe\xfe"),
    ];

    for (what, bytes) in rows {
        let mut app = ScriptedApp::connect(bench.proxy.address()).await;
        app.send(bytes).await;
        let messages = within(SOON, what, app.expect_end()).await;

        for message in &messages {
            let problem = message.problem().unwrap_or_else(|| panic!("{what}: {message:?}"));
            assert_eq!(problem.severity(), "FATAL", "{what}");
            let code = problem.code();
            assert!(code == "08P01" || code.starts_with("28") || code == "0A000", "{what}: {problem:?}");
        }
        nothing_else_is_disturbed(&mut bench, &mut witness, what).await;
    }
}

#[tokio::test]
async fn encryption_is_not_asked_for_twice() {
    // An endless series of requests would keep a connection alive without ever logging in.
    let bench = Bench::start(TIDEGATE).await;
    let mut app = ScriptedApp::connect(bench.proxy.address()).await;
    let many = (0..50).fold(Frames::new(), |frames, _| frames.ssl_request().gss_enc_request());

    app.send(many).await;
    within(SOON, "the end", async {
        // Bytes 'N', then whatever; the connection must end.
        let mut stream = app.into_stream();
        let mut bytes = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut bytes).await;
    })
    .await;
}

#[tokio::test]
async fn wrong_messages_during_authentication_are_refused() {
    // Before the proof is there, anything but the proof is a violation, whatever it says about its length.
    let options = ProxyOptions::new(TIDEGATE)
        .config("listen.userlist = \"users\"")
        .file("users", "\"postgres\" \"secret\"\n");
    let mut bench = Bench::start_with(options).await;
    let startup = Frames::new().startup(&[("user", "postgres"), ("database", "postgres")]);
    let rows: [(&str, &[u8]); 9] = [
        ("a Query", b"Q\0\0\0\x0dSELECT 1\0"),
        ("an unknown tag", b"z\0\0\0\x04"),
        ("a password of a gigabyte", b"p\x3f\xff\xff\xff"),
        ("a length of 0", b"p\0\0\0\0"),
        ("an empty answer", b"p\0\0\0\x04"),
        ("an unknown mechanism", b"p\0\0\0\x0ePLAIN\0\0\0\0\0"),
        ("a mechanism without its zero", b"p\0\0\0\x09SCRAM"),
        ("an answer longer than the message", b"p\0\0\0\x1aSCRAM-SHA-256\0\x0f\xff\xff\xffabcd"),
        ("noise as a first message", b"p\0\0\0\x1aSCRAM-SHA-256\0\0\0\0\x04\xff\xff\xff\xff"),
    ];

    for (what, bytes) in rows {
        let mut app = ScriptedApp::connect(bench.proxy.address()).await;
        app.send(startup.clone()).await;
        app.expect(b'R').await;
        app.send(bytes).await;
        let messages = within(SOON, what, app.expect_end()).await;

        if let Some(problem) = messages.last().and_then(Message::problem) {
            let code = problem.code();
            assert_eq!(problem.severity(), "FATAL", "{what}");
            assert!(code == "08P01" || code.starts_with("28"), "{what}: {problem:?}");
        }
        assert!(messages.iter().all(|message| message.tag == b'E'), "{what}: {messages:?}");
    }
    assert!(bench.proxy.is_running());
    assert!(!bench.proxy.log().contains("panicked"), "{}", bench.proxy.log());
}

#[tokio::test]
async fn half_a_message_holds_no_backend() {
    // One slow or dead app would take a backend from all others, and with one backend everything stops.
    let mut bench = bench("pool.size = 1").await;
    let (mut witness, _) = bench.app().await;
    let rows = [
        ("a tag", Frames::new().query("SELECT 1"), 1),
        ("half a length", Frames::new().query("SELECT 1"), 3),
        ("half a Query", Frames::new().query("SELECT 1"), 9),
        ("half a large Query", Frames::new().query(&format!("SELECT '{}'", "x".repeat(6000))), 3000),
        ("half a Parse", Frames::new().parse("s", "SELECT 1", &[]), 8),
        ("half a Bind", Frames::new().parse("s", "SELECT 1", &[]).sync().bind("", "s", &[]), 30),
        ("half a Sync", Frames::new().sync(), 3),
    ];
    let mut halves = Vec::new();

    for (what, frames, length) in rows {
        let (mut app, _) = bench.app().await;
        app.send(&frames.as_ref()[..length]).await;
        // Long enough for the bytes to be read.
        let _ = app.receive_within(Duration::from_millis(50)).await;
        halves.push((app, frames, length));

        nothing_else_is_disturbed(&mut bench, &mut witness, what).await;
    }
    // And the other half is welcome, late as it is.
    let (mut app, frames, length) = halves.swap_remove(2);
    app.send(&frames.as_ref()[length..]).await;
    assert_eq!(app.reply().await.value(), some("1"));
}

#[tokio::test]
async fn what_follows_terminate_is_not_run() {
    // The app said goodbye: a statement behind it is garbage, not a request.
    let mut bench = bench("pool.size = 1").await;
    let (mut witness, _) = bench.app().await;
    let table = fresh_database();
    witness.query(&format!("CREATE TABLE {table} ()")).await;
    let insert = format!("INSERT INTO {table} DEFAULT VALUES");
    let rows = [
        ("a Query", Frames::new().terminate().query(&insert)),
        ("a pipeline", Frames::new().terminate().unnamed(&insert, &[]).sync()),
        ("noise", Frames::new().terminate().raw(b"\xff\xff\xff\xff\xff")),
        ("a Query, and one before", Frames::new().query("SELECT 1").terminate().query(&insert)),
    ];

    for (what, frames) in rows {
        let (mut app, _) = bench.app().await;
        app.send(frames).await;
        let messages = within(SOON, what, app.expect_end()).await;

        let errors = messages.iter().filter(|message| message.tag == b'E').count();
        assert_eq!(errors, 0, "{what}: {messages:?}");
        nothing_else_is_disturbed(&mut bench, &mut witness, what).await;
    }
    let count = shared_postgres().sql(&format!("SELECT count(*) FROM {table}")).unwrap();
    assert_eq!(count, "0");
}

#[tokio::test]
async fn copy_messages_outside_of_copy_are_ignored() {
    // A loader that was refused may still send its data: PostgreSQL ignores it, and so must we.
    let mut bench = bench("pool.size = 1").await;
    let (mut witness, _) = bench.app().await;
    let (mut app, _) = bench.app().await;
    let stray =
        Frames::new().copy_data(b"1\t2\n").copy_data(&vec![b'x'; 300_000]).copy_done().copy_fail("no");

    app.send(stray.clone()).await;
    app.expect_silence(Duration::from_millis(100)).await;
    nothing_else_is_disturbed(&mut bench, &mut witness, "stray COPY data").await;
    let simple = app.query("SELECT 1").await;
    let same_write = Frames::new().raw(stray.as_ref()).query("SELECT 2");
    let same_write = app.exchange(same_write).await;
    let extended =
        Frames::new().parse("", "SELECT 3", &[]).raw(stray.as_ref()).bind("", "", &[]).execute("", 0).sync();
    let extended = app.exchange(extended).await;

    assert_eq!((simple.tags().as_str(), simple.value()), ("TDCZ", some("1")));
    assert_eq!((same_write.tags().as_str(), same_write.value()), ("TDCZ", some("2")));
    assert_eq!((extended.tags().as_str(), extended.value()), ("12DCZ", some("3")));
}

#[tokio::test]
async fn a_message_that_claims_a_gigabyte_costs_no_memory() {
    // Memory by the length that an app announces is memory for everyone who asks.
    const CLAIM: &[u8] = b"\x3f\xf0\0\0";
    let mut bench = Bench::start(TIDEGATE).await;
    let (mut witness, _) = bench.app().await;
    witness.query("SELECT 1").await;
    let before = bench.proxy.rss_bytes();
    let mut apps = Vec::new();

    for tag in [b'Q', b'P', b'B', b'F', b'd'] {
        let (mut app, _) = bench.app().await;
        let bytes = [&[tag], CLAIM, b"\0\0", &vec![b'x'; 200_000]].concat();
        // Refusing it is as good as streaming it.
        let _ = app.try_send(bytes).await;
        let _ = app.receive_within(Duration::from_millis(50)).await;
        apps.push(app);
    }

    nothing_else_is_disturbed(&mut bench, &mut witness, "huge claims").await;
    let grown = bench.proxy.rss_bytes_max().saturating_sub(before);
    assert!(grown < 16 * 1024 * 1024, "memory grew by {grown} bytes");
}

#[tokio::test]
async fn thousands_of_half_open_logins_disturb_nobody() {
    // Each costs a socket and a few KiB until its deadline, and a session that is there goes on as before.
    const LOGINS: usize = 2000;
    raise_file_limit();
    let mut bench = bench("timeouts.login = \"10s\"").await;
    let (mut witness, _) = bench.app().await;
    witness.query("SELECT 1").await;
    let before = bench.proxy.rss_bytes();
    let startup = Frames::new().startup(&[("user", "postgres"), ("database", "postgres")]);
    let mut half_open = Vec::with_capacity(LOGINS);

    for number in 0..LOGINS {
        let mut app = ScriptedApp::connect(bench.proxy.address()).await;
        app.send(&startup.as_ref()[..number % 20]).await;
        half_open.push(app);
        if number % 100 == 0 {
            let seen = within(SOON, "an answer", witness.query("SELECT 'witness'")).await;
            assert_eq!(seen.value(), some("witness"), "with {number} half-open logins");
        }
    }

    let grown = bench.proxy.rss_bytes().saturating_sub(before);
    nothing_else_is_disturbed(&mut bench, &mut witness, "half-open logins").await;
    assert!(grown < LOGINS as u64 * 16 * 1024, "{} bytes for each", grown / LOGINS as u64);
    drop(half_open);
}

#[tokio::test]
async fn an_app_that_reads_nothing_disturbs_nobody() {
    // Its answers fill the sockets, not our memory, and its backend is its own until it reads.
    let mut bench = bench("pool.size = 2").await;
    let (mut witness, _) = bench.app().await;
    witness.query("SELECT 1").await;
    let before = bench.proxy.rss_bytes();
    let (mut app, _) = bench.app().await;

    app.send(Frames::new().query("SELECT repeat('x', 1000) FROM generate_series(1, 50000)")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    nothing_else_is_disturbed(&mut bench, &mut witness, "a deaf app").await;
    let grown = bench.proxy.rss_bytes_max().saturating_sub(before);
    let rows = app.reply().await;

    assert!(grown < 8 * 1024 * 1024, "memory grew by {grown} bytes");
    assert_eq!(rows.rows().len(), 50_000);
}

#[tokio::test]
async fn half_open_logins_count_as_sessions() {
    // Else they could take every socket of the process in spite of max_sessions.
    let bench = bench("listen.max_sessions = 3\ntimeouts.login = \"10s\"").await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(ScriptedApp::connect(bench.proxy.address()).await);
    }
    // They are accepted in order, so this one is the fourth.
    let mut fourth = ScriptedApp::connect(bench.proxy.address()).await;

    let problem = fourth.log_in(POSTGRES).await.unwrap_err();

    assert_eq!((problem.severity(), problem.code()), ("FATAL", "53300"));
}

#[tokio::test]
async fn a_flood_of_connections_beyond_the_limit_takes_a_bounded_number_of_files() {
    // Each that says nothing is waited for, up to a second: as many as come would leave no file for a backend.
    let bench = bench("listen.max_sessions = 1").await;
    let before = bench.proxy.open_files();
    let mut most = before;
    let mut flood = Vec::new();
    for _ in 0..400 {
        flood.push(TcpStream::connect(bench.proxy.address()).await.unwrap());
        most = most.max(bench.proxy.open_files());
    }

    let last = flood.last_mut().unwrap();
    let mut end = std::pin::pin!(within(SOON, "the last is sent away", last.read_u8()));
    while tokio::time::timeout(Duration::from_millis(5), &mut end).await.is_err() {
        most = most.max(bench.proxy.open_files());
    }

    let taken = most - before;
    assert!((200..300).contains(&taken), "{taken}");
}
