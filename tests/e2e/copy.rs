//! COPY, in the simple and the extended protocol.
//!
//! "COPY Operations" in PostgreSQL's documentation of the protocol: Flush and Sync are ignored while data
//! comes in; after an error the backend throws data away until the next Sync (extended) or the end (simple).

use std::time::Duration;

use tidegate_tests::{
    Bench, Frames, Reply, ScriptedApp, fresh_database, shared_postgres, wait_for, wait_until,
};

use super::rig::SOON;
use super::{bench, both, some};

/// A pool of one backend: whatever COPY leaves behind hits the next session. And an empty table.
async fn narrow() -> (Bench, String) {
    let settings = "pool.size = 1\ntimeouts.write = \"150s\"\ntimeouts.read = \"150s\"\ntimeouts.queue = \"15s\"\n\
                    shed.codel_target = \"15s\"\nshed.codel_interval = \"15s\"";
    let bench = bench(settings).await;
    let table = fresh_database();
    shared_postgres().sql(&format!("CREATE TABLE {table} (a int PRIMARY KEY, b text)")).unwrap();
    (bench, table)
}

fn rows(range: std::ops::Range<u32>) -> Vec<u8> {
    range.flat_map(|number| format!("{number}\tline {number}\n").into_bytes()).collect()
}

fn copy_in(table: &str) -> String {
    format!("COPY {table} FROM STDIN")
}

/// Parse, Bind, Describe, Execute of a COPY, without Sync: what libpq's `PQexecParams` sends.
fn extended(sql: &str) -> Frames {
    Frames::new().unnamed(sql, &[])
}

/// The copied data of a reply, joined.
fn copied(reply: &Reply) -> Vec<u8> {
    reply.0.iter().filter(|message| message.tag == b'd').flat_map(|message| message.body.to_vec()).collect()
}

/// The session and, on the same backend, another one work, and the table has this many rows.
async fn all_is_well(bench: &Bench, app: &mut ScriptedApp, table: &str, count: u32) {
    assert_eq!(app.query("SELECT 'same'").await.value(), some("same"));
    let (mut other, _) = bench.app().await;
    let found = other.query(&format!("SELECT count(*) FROM {table}")).await;
    assert_eq!(found.value(), some(&count.to_string()), "{:?}", found.error());
}

#[tokio::test]
async fn data_goes_in_and_out_by_the_simple_protocol() {
    // In and out must be the same bytes.
    let (bench, table) = narrow().await;
    let (mut app, _) = bench.app().await;

    app.send(Frames::new().query(&copy_in(&table))).await;
    app.expect(b'G').await;
    let loaded = app.exchange(Frames::new().copy_data(&rows(0..1000)).copy_done()).await;
    let unloaded = app.query(&format!("COPY {table} TO STDOUT")).await;

    assert_eq!((loaded.tags().as_str(), loaded.commands()), ("CZ", vec!["COPY 1000".to_owned()]));
    assert_eq!(unloaded.tags(), format!("H{}cCZ", "d".repeat(1000)));
    assert_eq!(copied(&unloaded), rows(0..1000));
    all_is_well(&bench, &mut app, &table, 1000).await;
}

#[tokio::test]
async fn data_goes_in_and_out_as_libpq_sends_it() {
    // libpq sends Sync before the data, which PostgreSQL ignores, and another one after CopyDone: one
    // ReadyForQuery in all. Counting two would hang, or steal the answer of the next statement.
    let (bench, table) = narrow().await;
    let (mut app, _) = bench.app().await;

    app.send(extended(&copy_in(&table)).sync()).await;
    for tag in [b'1', b'2', b'n', b'G'] {
        app.expect(tag).await;
    }
    app.send(Frames::new().copy_data(&rows(0..500))).await;
    let loaded = app.exchange(Frames::new().copy_data(&rows(500..1000)).copy_done().sync()).await;
    app.expect_silence(Duration::from_millis(100)).await;
    let unloaded = app.exchange(extended(&format!("COPY {table} TO STDOUT")).sync()).await;

    assert_eq!(loaded.tags(), "CZ", "{:?}", loaded.error());
    assert_eq!(unloaded.tags(), format!("12nH{}cCZ", "d".repeat(1000)));
    assert_eq!(copied(&unloaded), rows(0..1000));
    all_is_well(&bench, &mut app, &table, 1000).await;
}

#[tokio::test]
async fn data_may_follow_the_statement_in_one_write() {
    // Nobody has to wait for CopyInResponse. Each row is compared with PostgreSQL's own answer.
    let (bench, table) = narrow().await;
    let copy = copy_in(&table);
    let query = |frames: Frames| frames.query("BEGIN").query(&copy);
    let rows_of_table: [(&str, Frames, usize); 5] = [
        ("simple", query(Frames::new()).copy_data(&rows(0..9)).copy_done().query("ROLLBACK"), 3),
        (
            "extended",
            extended("BEGIN")
                .parse("", &copy, &[])
                .bind("", "", &[])
                .execute("", 0)
                .copy_data(&rows(0..9))
                .copy_done()
                .sync()
                .query("ROLLBACK"),
            2,
        ),
        (
            "extended with an early Sync",
            Frames::new()
                .query("BEGIN")
                .parse("", &copy, &[])
                .bind("", "", &[])
                .execute("", 0)
                .sync()
                .copy_data(&rows(0..9))
                .flush()
                .sync()
                .copy_done()
                .sync()
                .query("ROLLBACK"),
            3,
        ),
        (
            "simple, failed by the app",
            query(Frames::new()).copy_data(&rows(0..9)).copy_fail("no more").query("ROLLBACK"),
            3,
        ),
        (
            "two statements in one Query",
            Frames::new()
                .query(&format!("BEGIN; {copy}; SELECT 'behind'; ROLLBACK"))
                .copy_data(&rows(0..3))
                .copy_done(),
            1,
        ),
    ];

    for (what, frames, replies) in rows_of_table {
        let mut found = Vec::new();
        for address in [([127, 0, 0, 1], bench.postgres.port()).into(), bench.proxy.address()] {
            let (mut app, _) = ScriptedApp::session(address, "postgres", "postgres").await;
            app.send(frames.clone()).await;
            let mut all = Vec::new();
            for _ in 0..replies {
                all.push(app.reply().await);
            }
            found.push(all);
        }

        assert_eq!(found[1], found[0], "{what}");
    }
}

#[tokio::test]
async fn data_is_not_held_up_by_what_its_statement_changes() {
    // Some answers are waited for before the next exchange is sent. The server does not answer a COPY before it has the data:
    // both would wait for ever.
    let (bench, table) = narrow().await;
    let (mut app, _) = bench.app().await;
    let (mut other, _) = bench.app().await;
    let sql = copy_in(&table);
    app.exchange(Frames::new().parse("copy", &sql, &[]).sync()).await;

    for (round, before) in (0..).zip(["DEALLOCATE ALL", "SET work_mem = '7MB'"]) {
        app.send(Frames::new().query(&format!("{before}; {sql}"))).await;
        app.expect(b'C').await;
        app.expect(b'G').await;
        let loaded = app.exchange(Frames::new().copy_data(&rows(round..round + 1)).copy_done()).await;
        assert_eq!((loaded.error(), loaded.tags().as_str()), (None, "CZ"), "{before}");
    }
    app.exchange(Frames::new().parse("copy", &sql, &[]).sync()).await;
    for round in 2..4 {
        // Prepared anew in the exchange of the COPY.
        other.query("DEALLOCATE ALL").await;
        app.send(Frames::new().bind("", "copy", &[]).execute("", 0).sync()).await;
        app.expect(b'2').await;
        app.expect(b'G').await;
        let data = Frames::new().copy_data(&rows(round..round + 1)).copy_done();
        let loaded = app.exchange(data.sync()).await;
        assert_eq!((loaded.error(), loaded.tags().as_str()), (None, "CZ"));
    }

    all_is_well(&bench, &mut app, &table, 4).await;
}

#[tokio::test]
async fn copy_fail_ends_the_copy_and_nothing_else() {
    // 57014, nothing loaded, and both protocols end as they do with PostgreSQL.
    let (bench, table) = narrow().await;
    let (mut app, _) = bench.app().await;

    app.send(Frames::new().query(&copy_in(&table))).await;
    app.expect(b'G').await;
    let simple = app.exchange(Frames::new().copy_data(&rows(0..9)).copy_fail("changed my mind")).await;
    app.send(extended(&copy_in(&table)).sync()).await;
    for tag in [b'1', b'2', b'n', b'G'] {
        app.expect(tag).await;
    }
    let extended = app.exchange(Frames::new().copy_data(&rows(0..9)).copy_fail("again").sync()).await;

    for reply in [simple, extended] {
        assert_eq!((reply.tags().as_str(), reply.error_code().as_str()), ("EZ", "57014"));
        assert!(reply.error().unwrap().message().contains("COPY from stdin failed"));
    }
    all_is_well(&bench, &mut app, &table, 0).await;
}

#[tokio::test]
async fn data_that_comes_after_an_error_is_thrown_away() {
    // A loader streams on while the error is under way. What is left over must reach no other session.
    let (bench, table) = narrow().await;
    let block = vec![b'x'; 256 * 1024];

    for protocol in ["simple", "extended"] {
        let (mut app, _) = bench.app().await;
        let (start, end) = match protocol {
            "simple" => (Frames::new().query(&copy_in(&table)), Frames::new().copy_done()),
            _ => (extended(&copy_in(&table)).flush(), Frames::new().copy_done().sync()),
        };
        app.send(start.copy_data(b"not a number\tx\n")).await;
        let mut reply = Vec::new();
        for _ in 0..40 {
            app.send(Frames::new().copy_data(&block)).await;
        }
        app.send(end).await;
        while reply.last().is_none_or(|tag| *tag != b'Z') {
            reply.push(app.receive().await.tag);
        }

        let tags: String = reply.into_iter().map(char::from).collect();
        assert_eq!(tags.trim_start_matches("12n"), "GEZ", "{protocol}");
        all_is_well(&bench, &mut app, &table, 0).await;
    }
}

#[tokio::test]
async fn an_error_at_the_end_is_told() {
    // The primary key is violated in the last row: the error comes after CopyDone.
    let (bench, table) = narrow().await;
    let data = [rows(0..2000), rows(1999..2000)].concat();
    let (mut app, _) = bench.app().await;

    let simple = app.exchange(Frames::new().query(&copy_in(&table)).copy_data(&data).copy_done()).await;
    let sent = extended(&copy_in(&table)).copy_data(&data).copy_done().sync();
    let extended = app.exchange(sent).await;

    assert_eq!((simple.tags().as_str(), simple.error_code().as_str()), ("GEZ", "23505"));
    assert_eq!((extended.tags().as_str(), extended.error_code().as_str()), ("12nGEZ", "23505"));
    all_is_well(&bench, &mut app, &table, 0).await;
}

#[tokio::test]
async fn a_statement_that_is_refused_starts_no_copy() {
    // No CopyInResponse: the data that was sent blindly is out of place, and ignored.
    let (bench, table) = narrow().await;
    let (mut app, _) = bench.app().await;
    let frames = extended("COPY atlantis FROM STDIN").copy_data(&rows(0..9)).copy_done().sync();

    let (direct, through) = both(&bench, "postgres", &frames).await;

    assert_eq!(through, direct);
    assert_eq!(through.error_code(), "42P01");
    all_is_well(&bench, &mut app, &table, 0).await;
}

#[tokio::test]
async fn data_frames_may_be_split_over_writes_and_rows_over_frames() {
    // Neither a frame nor a row is a unit of anything on the way.
    let (bench, table) = narrow().await;
    let (mut app, _) = bench.app().await;
    let data = rows(0..100);
    let pieces = data.chunks(7).fold(Frames::new(), Frames::copy_data).copy_done();
    let cuts: Vec<usize> = (1..pieces.as_ref().len() / 11).map(|number| number * 11).collect();

    app.send(Frames::new().query(&copy_in(&table))).await;
    app.expect(b'G').await;
    app.send_split(&pieces, &cuts).await;
    let reply = app.reply().await;

    assert_eq!(reply.commands(), ["COPY 100"]);
    all_is_well(&bench, &mut app, &table, 100).await;
}

#[tokio::test]
async fn large_copies_stream_both_ways_in_bounded_memory() {
    // 40 MB each way; a sidecar that collects them grows by that much.
    let (bench, table) = narrow().await;
    let (mut app, _) = bench.app().await;
    let line = format!("\t{}\n", "x".repeat(990));
    app.query("SELECT 1").await;
    let before = bench.proxy.rss_bytes();

    app.send(Frames::new().query(&copy_in(&table))).await;
    app.expect(b'G').await;
    for block in 0..40 {
        let lines: Vec<String> = (0..1000).map(|row| format!("{}{line}", block * 1000 + row)).collect();
        app.send(Frames::new().copy_data(lines.concat().as_bytes())).await;
    }
    let loaded = app.exchange(Frames::new().copy_done()).await;
    app.send(Frames::new().query(&format!("COPY {table} TO STDOUT"))).await;
    app.expect(b'H').await;
    let mut received = 0;
    let end = loop {
        let message = app.receive().await;
        if message.tag != b'd' {
            break message.tag;
        }
        received += message.body.len();
    };
    app.reply().await;

    let grown = bench.proxy.rss_bytes_max().saturating_sub(before);
    assert_eq!(loaded.commands(), ["COPY 40000"]);
    assert_eq!(end, b'c');
    assert!(received > 39_000_000, "{received}");
    assert!(grown < 16 * 1024 * 1024, "memory grew by {grown} bytes");
}

#[tokio::test]
async fn a_frame_of_many_megabytes_streams_through() {
    // One CopyData of 20 MB: the sidecar cannot wait for its end.
    let (bench, table) = narrow().await;
    let (mut app, _) = bench.app().await;
    let data = [b"1\t".to_vec(), vec![b'y'; 20 * 1024 * 1024], b"\n".to_vec()].concat();

    let loaded = app.exchange(Frames::new().query(&copy_in(&table)).copy_data(&data).copy_done()).await;
    let length = app.query(&format!("SELECT length(b) FROM {table}")).await;

    assert_eq!(loaded.commands(), ["COPY 1"], "{:?}", loaded.error());
    assert_eq!(length.value(), some("20971520"));
    all_is_well(&bench, &mut app, &table, 1).await;
}

#[tokio::test]
async fn an_app_that_leaves_in_mid_copy_loads_nothing_and_frees_its_backend() {
    // A backend that still waits for data, given to the next session, would take its Query for garbage.
    let (bench, table) = narrow().await;

    for way in ["close", "reset", "half a frame", "terminate"] {
        let (mut app, _) = bench.app().await;
        app.send(Frames::new().query(&copy_in(&table)).copy_data(&rows(0..9))).await;
        app.expect(b'G').await;
        match way {
            "close" => drop(app),
            "reset" => app.reset(),
            "terminate" => app.terminate().await,
            _ => {
                app.send(Frames::new().raw(b"d\0\0\x10\0half")).await;
                drop(app);
            }
        }

        let (mut next, _) = bench.app().await;
        let count = next.query(&format!("SELECT count(*) FROM {table}")).await;
        assert_eq!(count.value(), some("0"), "{way}: {:?}", count.error());
    }
}

/// A session that loads into the table by the extended protocol, with its Sync sent ahead as libpq does.
async fn loader(bench: &Bench, table: &str) -> ScriptedApp {
    let (mut app, _) = bench.app().await;
    load(&mut app, table).await;
    app
}

async fn load(app: &mut ScriptedApp, table: &str) {
    app.send(extended(&copy_in(table)).sync()).await;
    for tag in [b'1', b'2', b'n', b'G'] {
        app.expect(tag).await;
    }
    app.send(Frames::new().copy_data(&rows(0..9))).await;
}

/// A session that waits for the only backend, to count the rows of the table.
async fn counter(bench: &Bench, table: &str) -> ScriptedApp {
    let (mut next, _) = bench.app().await;
    next.send(Frames::new().query(&format!("SELECT count(*) FROM {table}"))).await;
    wait_for(SOON, "it waits", async || {
        let waiting = bench.proxy.metrics().await.get("tidegate_pool_waiting", &[]);
        (waiting == Some(1.0)).then_some(())
    })
    .await;
    next
}

#[tokio::test]
async fn an_extended_copy_whose_app_leaves_ends_before_the_next_session_has_its_backend() {
    // Seen: "COPY from stdin failed: session ended" told to the next session, and its query never answered. PostgreSQL
    // had ignored the Sync in front of the data, and waited for another one.
    let (bench, table) = narrow().await;

    for way in ["close", "reset", "terminate"] {
        let app = loader(&bench, &table).await;
        let mut next = counter(&bench, &table).await;
        match way {
            "close" => drop(app),
            "reset" => app.reset(),
            _ => app.terminate().await,
        }

        let count = next.reply().await;
        assert_eq!(count.value(), some("0"), "{way}: {:?}", count.error());
    }
}

#[tokio::test]
async fn a_copy_whose_app_leaves_before_its_last_sync_loads_nothing() {
    // Seen: all data had come, and its transaction was still open when the next session got the backend, whose first
    // statement committed it.
    let (bench, table) = narrow().await;

    for way in ["unanswered", "answered"] {
        let mut app = loader(&bench, &table).await;
        let mut next = counter(&bench, &table).await;
        app.send(Frames::new().copy_done()).await;
        if way == "answered" {
            app.send(Frames::new().flush()).await;
            app.expect(b'C').await;
        }
        drop(app);

        let count = next.reply().await;
        assert_eq!(count.value(), some("0"), "{way}: {:?}", count.error());
        assert_eq!(count.commands(), ["SELECT 1"], "{way}");
    }
}

#[tokio::test]
async fn an_app_that_leaves_in_mid_copy_out_frees_its_backend() {
    // PostgreSQL is blocked on sending; the rest must be drained or the backend closed.
    let (bench, _) = narrow().await;
    let (mut app, _) = bench.app().await;
    app.send(
        Frames::new().query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000000)) TO STDOUT"),
    )
    .await;
    app.expect(b'H').await;
    drop(app);

    let (mut next, _) = bench.app().await;
    assert_eq!(next.query("SELECT 'mine'").await.value(), some("mine"));
    let running =
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'COPY (SELECT repeat%'";
    wait_until(Duration::from_secs(20), "the COPY ends", || shared_postgres().sql(running).unwrap() == "0")
        .await;
}

#[tokio::test]
async fn copy_inside_a_transaction_keeps_the_backend_until_its_end() {
    // With one backend, the others wait; after COMMIT they see the rows.
    let (bench, table) = narrow().await;
    let (mut app, _) = bench.app().await;

    app.query("BEGIN").await;
    let loaded = app.exchange(Frames::new().query(&copy_in(&table)).copy_data(&rows(0..9)).copy_done()).await;
    let seen = app.query(&format!("SELECT count(*) FROM {table}")).await;
    app.query("COMMIT").await;

    assert_eq!(loaded.status(), Some('T'));
    assert_eq!(seen.value(), some("9"));
    all_is_well(&bench, &mut app, &table, 9).await;
}

/// A table, and a sidecar whose writes have a second.
async fn hurried() -> (Bench, String) {
    let bench = bench("timeouts.write = \"1s\"").await;
    let table = fresh_database();
    shared_postgres().sql(&format!("CREATE TABLE {table} (a int PRIMARY KEY, b text)")).unwrap();
    (bench, table)
}

#[tokio::test]
async fn a_copy_whose_data_flows_may_take_longer_than_a_write() {
    // Seen: every load of more than timeouts.write was cancelled, since only what the server says counted as progress.
    let (bench, table) = hurried().await;
    let (mut app, _) = bench.app().await;

    app.send(Frames::new().query(&copy_in(&table))).await;
    app.expect(b'G').await;
    for number in 0..12 {
        app.send(Frames::new().copy_data(&rows(number..number + 1))).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let loaded = app.exchange(Frames::new().copy_done()).await;

    assert_eq!((loaded.tags().as_str(), loaded.error()), ("CZ", None));
    all_is_well(&bench, &mut app, &table, 12).await;
}

#[tokio::test]
async fn a_copy_whose_application_falls_silent_is_known_to_be_undone() {
    // Seen: 08007 and outcome=unknown, though nothing commits before the end of the data.
    let (bench, table) = hurried().await;
    let (mut app, _) = bench.app().await;

    app.send(Frames::new().query(&copy_in(&table))).await;
    app.expect(b'G').await;
    app.send(Frames::new().copy_data(&rows(0..9))).await;
    let reply = app.reply().await;

    let problem = reply.error().unwrap();
    assert_eq!((problem.severity(), problem.code()), ("ERROR", "57014"), "{problem:?}");
    assert_eq!(problem.detail_of("reason"), Some("write_timeout"));
    assert_eq!(problem.detail_of("outcome"), Some("rolled_back"));
    assert_eq!(reply.status(), Some('I'));
    // What a driver sends before it has read the error is data of a COPY that is over.
    app.send(Frames::new().copy_data(&rows(9..10)).copy_done()).await;
    all_is_well(&bench, &mut app, &table, 0).await;
}

#[tokio::test]
async fn an_extended_copy_that_is_given_up_on_is_told_so() {
    // Seen: no error at all. The rest of the data was dropped, and its Sync answered as if nothing was amiss: whoever
    // loops over libpq's results took lost data for loaded.
    let (bench, table) = hurried().await;
    let mut app = loader(&bench, &table).await;

    let problem = app.expect(b'E').await.problem().unwrap();
    app.expect_silence(Duration::from_millis(100)).await;
    let end = app.exchange(Frames::new().copy_data(&rows(9..10)).copy_done().sync()).await;

    assert_eq!((problem.severity(), problem.code()), ("ERROR", "57014"), "{problem:?}");
    assert_eq!(problem.detail_of("reason"), Some("write_timeout"));
    assert_eq!(problem.detail_of("outcome"), Some("rolled_back"));
    assert_eq!((end.tags().as_str(), end.status()), ("Z", Some('I')));
    all_is_well(&bench, &mut app, &table, 0).await;
}

#[tokio::test]
async fn an_extended_copy_whose_backend_is_lost_is_told_so() {
    // As above: between the Sync that PostgreSQL ignored and the one at the end an error is owed as well.
    let (bench, table) = narrow().await;

    for status in ['I', 'E'] {
        let (mut app, _) = bench.app().await;
        if status == 'E' {
            app.query("BEGIN").await;
        }
        load(&mut app, &table).await;
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = '{}'",
            copy_in(&table)
        );
        assert_eq!(shared_postgres().sql(&end).unwrap(), "t");

        let problem = app.expect(b'E').await.problem().unwrap();
        app.expect_silence(Duration::from_millis(100)).await;
        let end = app.exchange(Frames::new().copy_data(&rows(9..10)).copy_done().sync()).await;

        assert_eq!(problem.severity(), "ERROR", "{problem:?}");
        assert_eq!((end.tags().as_str(), end.status()), ("Z", Some(status)));
        app.query("ROLLBACK").await;
        all_is_well(&bench, &mut app, &table, 0).await;
    }
}
