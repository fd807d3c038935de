//! Memory is bounded whatever passes through: sizes of rows, amounts of data, slow readers, many sessions.

use std::time::{Duration, Instant};

use tidegate_tests::{Frames, Proxy, ScriptedApp, Stream, raise_file_limit, within};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::rig::{Rig, pool_of, run, sidecar, value};

const MIB: u64 = 1024 * 1024;
/// Resident memory of the sidecar at its highest, for a handful of sessions.
const ALLOWED: u64 = 64 * MIB;
const ROWS: usize = 200_000;
const WIDTH: usize = 1_000;
/// For a transfer of hundreds of megabytes in a debug build.
const TRANSFER: Duration = Duration::from_mins(2);

fn assert_small(proxy: &Proxy) {
    let most = proxy.rss_bytes_max();
    assert!(most < ALLOWED, "{} MiB resident at most", most / MIB);
}

fn line(number: usize) -> String {
    format!("{number:x>WIDTH$}\n")
}

#[tokio::test]
async fn two_hundred_megabytes_are_copied_out() {
    // Every line is compared: a buffer that is dropped or doubled to save memory shows.
    let rig = Rig::start(pool_of(1)).await;
    let mut app = rig.app().await;
    let select = format!("SELECT lpad(i::text, {WIDTH}, 'x') FROM generate_series(0, {}) i", ROWS - 1);
    app.send(Frames::new().query(&format!("COPY ({select}) TO STDOUT"))).await;
    app.expect(b'H').await;

    for number in 0..ROWS {
        let data = app.expect(b'd').await;
        assert!(data.body == line(number), "line {number}");
    }
    app.expect(b'c').await;
    let reply = app.reply().await;

    assert_eq!(reply.commands(), [format!("COPY {ROWS}")]);
    assert_small(rig.proxy());
}

#[tokio::test]
async fn two_hundred_megabytes_are_copied_in() {
    // The server compares every line with what it should be.
    let rig = Rig::start(pool_of(1)).await;
    let mut app = rig.app().await;
    run(&mut app, "CREATE UNLOGGED TABLE t (text text)").await;
    app.send(Frames::new().query("COPY t FROM STDIN")).await;
    app.expect(b'G').await;

    for chunk in 0..ROWS / 50 {
        let lines: String = (chunk * 50..(chunk + 1) * 50).map(line).collect();
        app.send(Frames::new().copy_data(lines.as_bytes())).await;
    }
    app.send(Frames::new().copy_done()).await;
    let reply = app.reply_within(TRANSFER).await;

    assert_eq!(reply.commands(), [format!("COPY {ROWS}")]);
    assert_small(rig.proxy());
    let wrong = format!(
        "SELECT count(*) FROM t FULL JOIN generate_series(0, {}) i ON text = lpad(i::text, {WIDTH}, 'x') \
         WHERE text IS NULL OR i IS NULL",
        ROWS - 1
    );
    assert_eq!(rig.sql(&wrong), "0");
}

async fn read_u32(stream: &mut dyn Stream) -> u64 {
    u64::from(stream.read_u32().await.unwrap())
}

/// Reads a message of the size that its header says, in pieces; the body must be this byte after `skip`.
async fn swallow(stream: &mut dyn Stream, tag: u8, skip: u64, filling: u8) -> u64 {
    assert_eq!(char::from(stream.read_u8().await.unwrap()), char::from(tag));
    let mut left = read_u32(stream).await - 4;
    let length = left;
    let mut piece = vec![0; 1 << 20];
    let head = usize::try_from(skip).unwrap();
    stream.read_exact(&mut piece[..head]).await.unwrap();
    left -= skip;
    while left > 0 {
        let wanted = usize::try_from(left.min(1 << 20)).unwrap();
        let read = stream.read(&mut piece[..wanted]).await.unwrap();
        assert!(read > 0, "the row ends {left} bytes early");
        assert!(piece[..read].iter().all(|byte| *byte == filling), "another byte in the row");
        left -= read as u64;
    }
    length
}

#[tokio::test]
async fn a_row_of_five_hundred_megabytes_streams_through() {
    // A sidecar that holds whole messages needs eight times what is allowed.
    const SIZE: u64 = 500 * MIB;
    let rig = Rig::start(pool_of(1)).await;
    let mut app = rig.app().await;
    // In text, a bytea of printable bytes takes one byte each this way and two the other.
    run(&mut app, "SET bytea_output = 'escape'").await;
    app.send(Frames::new().query(&format!("SELECT repeat('x', {SIZE})::bytea"))).await;
    let mut stream = app.into_stream();

    let row = async {
        assert_eq!(stream.read_u8().await.unwrap(), b'T');
        let rest = read_u32(&mut *stream).await - 4;
        let mut description = vec![0; usize::try_from(rest).unwrap()];
        stream.read_exact(&mut description).await.unwrap();
        // Column count and the value's length precede the value.
        swallow(&mut *stream, b'D', 6, b'x').await
    };
    let length = within(TRANSFER, "the row", row).await;

    assert_eq!(length, SIZE + 6);
    assert_eq!(stream.read_u8().await.unwrap(), b'C');
    assert_small(rig.proxy());
}

#[tokio::test]
async fn a_parameter_of_two_hundred_megabytes_streams_through() {
    // The other direction: one Bind message that nobody may collect.
    const SIZE: usize = 200 << 20;
    let rig = Rig::start(pool_of(1)).await;
    let mut app = rig.app().await;
    let value = "x".repeat(SIZE);
    let frames = Frames::new().unnamed("SELECT octet_length($1::text)", &[Some(&value)]).sync();

    for piece in frames.as_ref().chunks(1 << 20) {
        app.send(piece).await;
    }

    assert_eq!(app.reply_within(TRANSFER).await.value(), Some(SIZE.to_string()));
    assert_small(rig.proxy());
}

#[tokio::test]
async fn slow_readers_do_not_make_memory_grow() {
    // Ten results of 200 MB each, read at 1 MB/s: what is not read must stay in the server.
    let rig = Rig::start(pool_of(10)).await;
    let mut readers = JoinSet::new();
    for _ in 0..10 {
        let mut app = rig.app().await;
        let select = format!("SELECT repeat('x', 10000) FROM generate_series(1, {})", ROWS / 10);
        app.send(Frames::new().query(&format!("COPY ({select}) TO STDOUT"))).await;
        readers.spawn(read_slowly(app, Duration::from_secs(6)));
    }

    let read: Vec<usize> = readers.join_all().await;

    assert!(read.iter().all(|bytes| *bytes > 3_000_000), "{read:?}");
    assert_small(rig.proxy());
}

async fn read_slowly(app: ScriptedApp, span: Duration) -> usize {
    const STEP: usize = 20_000;
    let mut stream = app.into_stream();
    let (mut piece, mut total, start) = (vec![0; STEP], 0, Instant::now());
    while start.elapsed() < span {
        stream.read_exact(&mut piece).await.unwrap();
        total += STEP;
        let due = Duration::from_micros(total as u64);
        tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
    }
    total
}

#[tokio::test]
async fn a_slow_writer_does_not_make_memory_grow_either() {
    // The server is blocked on a lock, so COPY IN data has nowhere to go; the application must feel it.
    let rig = Rig::start(pool_of(3)).await;
    rig.sql("CREATE TABLE t (text text)");
    let mut holder = rig.app().await;
    run(&mut holder, "BEGIN").await;
    run(&mut holder, "LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await;
    let mut app = rig.app().await;
    app.send(Frames::new().query("COPY t FROM STDIN")).await;
    let chunk = Frames::new().copy_data(line(0).repeat(1000).as_bytes());

    // 300 MB, unless the sidecar stops reading, as it should.
    let mut sent = 0;
    for _ in 0..300 {
        let sending = tokio::time::timeout(Duration::from_millis(500), app.try_send(chunk.as_ref()));
        match sending.await {
            Ok(written) => written.unwrap(),
            Err(_) => break,
        }
        sent += 1;
    }

    assert!(sent < 100, "the sidecar took {sent} MB that nobody reads");
    assert_small(rig.proxy());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_idle_sessions_fit_into_a_hundred_megabytes() {
    // Twenty kilobytes for each; a buffer of eight in each direction is already too much.
    const SESSIONS: usize = 5_000;
    const AT_ONCE: usize = 50;
    raise_file_limit();
    let rig = Rig::start(sidecar("[timeouts]\nlogin = \"60s\"\nqueue = \"5s\"\n")).await;
    let (address, database) = (rig.proxy().address(), rig.database.clone());

    let mut apps = Vec::new();
    for _ in 0..SESSIONS / AT_ONCE {
        let mut logins = JoinSet::new();
        for _ in 0..AT_ONCE {
            let database = database.clone();
            logins.spawn(async move { ScriptedApp::session(address, "postgres", &database).await.0 });
        }
        apps.extend(logins.join_all().await);
    }
    // Each has worked once, so that what a session allocates for its first exchange counts.
    for app in &mut apps {
        assert_eq!(value(app, "SELECT 1").await, "1");
    }

    let resident = rig.proxy().rss_bytes();

    assert_eq!(apps.len(), SESSIONS);
    assert!(resident <= 100 * MIB, "{} MiB resident", resident / MIB);
}
