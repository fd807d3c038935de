//! Pipelines, prepared statements, portals.

use std::time::Duration;

use tidegate_tests::{Bench, Frames, Message, Received, Reply, ScriptedApp, fresh_database, shared_postgres};

use super::{TIDEGATE, bench, both, oracle, some};

/// Bind, Execute and Sync of a prepared statement without parameters.
fn run(statement: &str) -> Frames {
    Frames::new().bind("", statement, &[]).execute("", 0).sync()
}

/// Parse and Sync.
fn prepare(statement: &str, sql: &str) -> Frames {
    Frames::new().parse(statement, sql, &[]).sync()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table")]
async fn answers_are_the_database_s_own() {
    // Whole replies are compared. Each row is one exchange of a fresh session.
    let benches = [bench("").await, bench("pool.mode = \"session\"").await];
    let rows = [
        ("only Sync", Frames::new().sync()),
        ("one statement", Frames::new().unnamed("SELECT $1::int + 1", &[Some("2")]).sync()),
        ("a NULL", Frames::new().unnamed("SELECT $1::text", &[None]).sync()),
        ("an empty statement", Frames::new().unnamed("", &[]).sync()),
        ("only a comment", Frames::new().unnamed("/* tide */", &[]).sync()),
        ("a syntax error", Frames::new().unnamed("SELEC", &[]).sync()),
        ("two statements in one Parse", Frames::new().unnamed("SELECT 1; SELECT 2", &[]).sync()),
        ("an error while binding", Frames::new().unnamed("SELECT $1::int", &[Some("x")]).sync()),
        ("an error while running", Frames::new().unnamed("SELECT 1/$1::int", &[Some("0")]).sync()),
        ("too few parameters", Frames::new().unnamed("SELECT $1::int", &[]).sync()),
        (
            "a type by number",
            Frames::new().parse("", "SELECT $1", &[23]).bind("", "", &[Some("7")]).execute("", 0).sync(),
        ),
        (
            "Describe of a statement",
            Frames::new().parse("s", "SELECT $1::int, 'x'::text AS y", &[]).describe_statement("s").sync(),
        ),
        (
            "Describe of one that gives no rows",
            Frames::new().parse("", "BEGIN", &[]).describe_statement("").sync(),
        ),
        (
            "Describe of a portal",
            Frames::new().parse("s", "SELECT 1 AS z", &[]).bind("p", "s", &[]).describe_portal("p").sync(),
        ),
        ("Describe of what does not exist", Frames::new().describe_statement("none").sync()),
        ("Describe of a portal that does not exist", Frames::new().describe_portal("none").sync()),
        ("Bind of what does not exist", Frames::new().bind("", "none", &[]).execute("", 0).sync()),
        ("Execute of what does not exist", Frames::new().execute("none", 0).sync()),
        ("Close of what does not exist", Frames::new().close_statement("none").close_portal("none").sync()),
        ("Execute twice", Frames::new().unnamed("SELECT 1", &[]).execute("", 0).sync()),
        (
            "a row limit",
            Frames::new()
                .parse("", "SELECT generate_series(1, 5)", &[])
                .bind("", "", &[])
                .execute("", 2)
                .execute("", 2)
                .execute("", 2)
                .sync(),
        ),
        (
            "two portals in turn",
            Frames::new()
                .parse("s", "SELECT g FROM generate_series($1::int, $1 + 3) g", &[])
                .bind("a", "s", &[Some("10")])
                .bind("b", "s", &[Some("20")])
                .execute("a", 1)
                .execute("b", 1)
                .execute("a", 1)
                .execute("b", 0)
                .close_portal("a")
                .sync(),
        ),
        (
            "a portal of the same name",
            Frames::new().parse("s", "SELECT 1", &[]).bind("p", "s", &[]).bind("p", "s", &[]).sync(),
        ),
        ("a notice", Frames::new().unnamed("DO $$ BEGIN RAISE NOTICE 'n'; END $$", &[]).sync()),
        (
            "an error in the middle",
            Frames::new()
                .unnamed("SELECT 1", &[])
                .unnamed("SELECT 1/0", &[])
                .unnamed("SELECT 2", &[])
                .parse("kept", "SELECT 3", &[])
                .sync(),
        ),
        (
            "a transaction",
            Frames::new().unnamed("BEGIN", &[]).unnamed("SELECT 1", &[]).unnamed("COMMIT", &[]).sync(),
        ),
        ("a transaction left open", Frames::new().unnamed("BEGIN", &[]).unnamed("SELECT 1", &[]).sync()),
        ("a transaction that failed", Frames::new().unnamed("BEGIN", &[]).unnamed("SELECT 1/0", &[]).sync()),
        ("the same name twice", Frames::new().parse("s", "SELECT 1", &[]).parse("s", "SELECT 2", &[]).sync()),
        (
            "a name that is free again",
            Frames::new()
                .parse("s", "SELECT 1", &[])
                .close_statement("s")
                .parse("s", "SELECT 2", &[])
                .bind("", "s", &[])
                .execute("", 0)
                .sync(),
        ),
        (
            "use after Close",
            Frames::new().parse("s", "SELECT 1", &[]).close_statement("s").bind("", "s", &[]).sync(),
        ),
        (
            "Flush on the way",
            Frames::new()
                .parse("", "SELECT 1", &[])
                .flush()
                .bind("", "", &[])
                .flush()
                .execute("", 0)
                .flush()
                .flush()
                .sync(),
        ),
        (
            "statements by SQL",
            Frames::new().unnamed("PREPARE q AS SELECT 9", &[]).unnamed("EXECUTE q", &[]).sync(),
        ),
    ];

    let mut differences = Vec::new();
    for (what, frames) in &rows {
        for bench in &benches {
            let (direct, through) = both(bench, "postgres", frames).await;
            if through != direct {
                differences.push(format!("{what}:\n  {through:?}\n  instead of\n  {direct:?}"));
            }
        }
    }

    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn pipelines_of_a_thousand_statements_keep_their_order() {
    // Answers are told apart by their place alone: one lost or doubled moves all that follow.
    let bench = Bench::start(TIDEGATE).await;
    let (mut app, _) = bench.app().await;
    let mut frames = Frames::new();
    for number in 0..1000 {
        frames = frames.unnamed("SELECT $1::int", &[Some(&number.to_string())]);
        if number % 100 == 99 {
            frames = frames.sync();
        }
    }

    app.send(frames).await;

    for block in 0..10 {
        let reply = app.reply().await;
        let values: Vec<_> = reply.rows().into_iter().map(|mut row| row.remove(0)).collect();
        let expected: Vec<_> =
            (block * 100..block * 100 + 100).map(|number| some(&number.to_string())).collect();
        assert_eq!(values, expected);
        assert_eq!(reply.tags(), format!("{}Z", "12TDC".repeat(100)));
    }
}

#[tokio::test]
async fn flush_delivers_what_is_done_without_sync() {
    // Answers held back until Sync would leave a driver that waits for them waiting for ever.
    let bench = Bench::start(TIDEGATE).await;
    let (mut app, _) = bench.app().await;

    for round in 0..3 {
        app.send(Frames::new().parse("", "SELECT $1::int", &[]).describe_statement("").flush()).await;
        app.expect(b'1').await;
        app.expect(b't').await;
        app.expect(b'T').await;
        app.send(Frames::new().bind("", "", &[Some("5")]).execute("", 0).flush()).await;
        app.expect(b'2').await;
        let row = app.expect(b'D').await;
        app.expect(b'C').await;
        let end = app.exchange(Frames::new().sync()).await;

        assert_eq!(row.columns(), Some(vec![some("5")]), "round {round}");
        assert_eq!(end.tags(), "Z");
    }
}

#[tokio::test]
async fn errors_come_with_flush_and_the_rest_is_skipped_until_sync() {
    // The error must not wait for Sync, and what was sent after it must not run.
    let bench = Bench::start(TIDEGATE).await;
    let (mut app, _) = bench.app().await;
    let table = fresh_database();
    app.query(&format!("CREATE TABLE {table} ()")).await;

    // Not a constant, or it would fail in Bind already.
    let failing = "SELECT 1/(g-1) FROM generate_series(1, 2) g";
    app.send(Frames::new().unnamed(failing, &[]).flush()).await;
    for tag in [b'1', b'2', b'T'] {
        app.expect(tag).await;
    }
    let problem = app.expect(b'E').await.problem().unwrap();
    app.send(Frames::new().unnamed(&format!("INSERT INTO {table} DEFAULT VALUES"), &[]).flush()).await;
    app.expect_silence(Duration::from_millis(200)).await;
    let end = app.exchange(Frames::new().sync()).await;
    let count = app.query(&format!("SELECT count(*) FROM {table}")).await;

    assert_eq!((problem.code(), end.tags().as_str()), ("22012", "Z"));
    assert_eq!(count.value(), some("0"));
}

#[tokio::test]
async fn portals_live_until_their_transaction_ends() {
    // Rows come in portions over several exchanges; on another backend the portal would be unknown (34000).
    let bench = bench("pool.size = 2").await;
    let (mut app, _) = bench.app().await;
    let (mut other, _) = bench.app().await;
    let open = Frames::new()
        .parse("", "SELECT generate_series(1, 7)", &[])
        .bind("rows", "", &[])
        .execute("rows", 3)
        .sync();
    let more = Frames::new().execute("rows", 3).sync();

    app.query("BEGIN").await;
    let first = app.exchange(open).await;
    other.query("SELECT 1").await;
    let second = app.exchange(more.clone()).await;
    other.query("SELECT 1").await;
    let third = app.exchange(more.clone()).await;
    app.query("COMMIT").await;
    let after = app.exchange(more).await;

    assert_eq!(first.tags(), "12DDDsZ");
    assert_eq!(second.tags(), "DDDsZ");
    assert_eq!(third.tags(), "DCZ");
    assert_eq!(after.error_code(), "34000");
}

#[tokio::test]
async fn sessions_that_share_a_backend_have_their_own_statements() {
    // One backend, one name, three texts: the last Parse must not win.
    let bench = bench("pool.size = 1").await;
    let mut apps = Vec::new();
    for name in ["a", "b", "a"] {
        let (mut app, _) = bench.app().await;
        let prepared = app.exchange(prepare("s", &format!("SELECT '{name}'"))).await;
        assert_eq!(prepared.tags(), "1Z");
        apps.push((name, app));
    }

    for _ in 0..5 {
        for (name, app) in &mut apps {
            let reply = app.exchange(run("s")).await;

            assert_eq!((reply.tags().as_str(), reply.value()), ("2DCZ", some(name)));
        }
    }
}

#[tokio::test]
async fn types_of_parameters_belong_to_the_statement() {
    // The same text with other types is another statement: 1/2 is 0 as int and 0.5 as float.
    let bench = bench("pool.size = 1").await;
    let (mut ints, _) = bench.app().await;
    let (mut floats, _) = bench.app().await;
    let (int4, float8) = (23, 701);
    let halve = Frames::new().bind("", "s", &[Some("1")]).execute("", 0).sync();
    ints.exchange(Frames::new().parse("s", "SELECT $1 / 2", &[int4]).sync()).await;
    floats.exchange(Frames::new().parse("s", "SELECT $1 / 2", &[float8]).sync()).await;

    assert_eq!(ints.exchange(halve.clone()).await.value(), some("0"));
    assert_eq!(floats.exchange(halve.clone()).await.value(), some("0.5"));
    assert_eq!(ints.exchange(halve).await.value(), some("0"));
}

#[tokio::test]
async fn names_are_free_after_close_and_taken_before() {
    // Over several exchanges with other sessions in between: the book is kept per session.
    let bench = bench("pool.size = 1").await;
    let (mut app, _) = bench.app().await;
    let (mut other, _) = bench.app().await;
    app.exchange(prepare("s", "SELECT 'first'")).await;
    other.exchange(prepare("s", "SELECT 'other'")).await;

    let duplicate = app.exchange(prepare("s", "SELECT 'second'")).await;
    let kept = app.exchange(run("s")).await;
    let closed = app.exchange(Frames::new().close_statement("s").sync()).await;
    let gone = app.exchange(run("s")).await;
    let described = app.exchange(Frames::new().describe_statement("s").sync()).await;
    let others = other.exchange(run("s")).await;
    let again = app.exchange(prepare("s", "SELECT 'third'")).await;

    assert_eq!(duplicate.error_code(), "42P05");
    assert_eq!(kept.value(), some("first"));
    assert_eq!(closed.tags(), "3Z");
    assert_eq!((gone.error_code().as_str(), described.error_code().as_str()), ("26000", "26000"));
    assert_eq!(others.value(), some("other"));
    assert_eq!(again.tags(), "1Z");
    assert_eq!(app.exchange(run("s")).await.value(), some("third"));
}

#[tokio::test]
async fn a_parse_that_failed_leaves_no_name() {
    // Noted before PostgreSQL agreed, the name would be taken for ever (42P05), or usable without a statement.
    let bench = bench("pool.size = 1").await;
    let (mut app, _) = bench.app().await;

    let failed = app.exchange(prepare("s", "SELEC")).await;
    let unusable = app.exchange(run("s")).await;
    let skipped =
        app.exchange(Frames::new().unnamed("SELECT 1/0", &[]).parse("s", "SELECT 1", &[]).sync()).await;
    let unusable_too = app.exchange(run("s")).await;
    let good = app.exchange(prepare("s", "SELECT 'good'")).await;

    assert_eq!((failed.error_code().as_str(), unusable.error_code().as_str()), ("42601", "26000"));
    assert_eq!((skipped.error_code().as_str(), unusable_too.error_code().as_str()), ("22012", "26000"));
    assert_eq!(good.tags(), "1Z");
    assert_eq!(app.exchange(run("s")).await.value(), some("good"));
}

#[tokio::test]
async fn statements_of_a_rolled_back_transaction_stay() {
    // In PostgreSQL prepared statements are not transactional.
    let bench = bench("pool.size = 1").await;
    let (mut app, _) = bench.app().await;
    let (mut other, _) = bench.app().await;

    app.query("BEGIN").await;
    app.exchange(prepare("s", "SELECT 'stays'")).await;
    app.query("ROLLBACK").await;
    other.query("SELECT 1").await;

    assert_eq!(app.exchange(run("s")).await.value(), some("stays"));
}

#[tokio::test]
async fn a_failed_transaction_refuses_statements_as_the_database_does() {
    // Re-preparing behind the scenes must not turn 25P02 into something else.
    let bench = bench("pool.size = 1").await;
    let (mut app, _) = bench.app().await;
    let (mut other, _) = bench.app().await;
    app.exchange(prepare("s", "SELECT 1")).await;
    other.exchange(prepare("t", "SELECT 2")).await;

    app.query("BEGIN").await;
    app.query("SELECT 1/0").await;
    let refused = app.exchange(run("s")).await;
    let parse_refused = app.exchange(prepare("u", "SELECT 3")).await;
    app.query("ROLLBACK").await;
    let after = app.exchange(run("s")).await;

    assert_eq!((refused.error_code().as_str(), refused.status()), ("25P02", Some('E')));
    assert_eq!(parse_refused.error_code(), "25P02");
    assert_eq!(after.value(), some("1"));
    assert_eq!(app.exchange(run("u")).await.error_code(), "26000");
}

#[tokio::test]
async fn the_unnamed_statement_survives_other_sessions() {
    // Drivers Parse and Sync, then Bind later. In between others overwrite the backend's unnamed statement.
    let bench = bench("pool.size = 1").await;
    let (mut app, _) = bench.app().await;
    let (mut other, _) = bench.app().await;
    let bind = |value: &'static str| Frames::new().bind("", "", &[Some(value)]).execute("", 0).sync();

    for round in 0..3 {
        let described = app
            .exchange(Frames::new().parse("", "SELECT $1::int + 1", &[]).describe_statement("").sync())
            .await;
        other.exchange(Frames::new().unnamed("SELECT 'other'", &[]).sync()).await;
        let first = app.exchange(bind("1")).await;
        other.exchange(Frames::new().parse("", "SELECT 'more'", &[]).sync()).await;
        let second = app.exchange(bind("2")).await;

        assert_eq!(described.tags(), "1tTZ", "round {round}");
        assert_eq!((first.value(), second.value()), (some("2"), some("3")), "round {round}");
    }
}

#[tokio::test]
async fn a_simple_query_ends_the_unnamed_statement() {
    // PostgreSQL: "an unnamed statement lasts only until the next … simple Query".
    let bench = bench("pool.size = 1").await;
    let mut direct = oracle("postgres").await;
    let (mut app, _) = bench.app().await;

    for (name, session) in [("PostgreSQL", &mut direct), ("the sidecar", &mut app)] {
        session.exchange(prepare("", "SELECT 'unnamed'")).await;
        session.query("SELECT 1").await;
        let gone = session.exchange(run("")).await;

        assert_eq!(gone.error_code(), "26000", "{name}");
    }
}

/// Numerical Recipes' linear congruential generator: the same order in every run.
struct Order(u32);

impl Order {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % bound
    }
}

/// Messages of one exchange, chosen at random: names that may exist or not, texts that may be wrong, a Sync
/// or a Query at the end.
fn random_exchange(order: &mut Order) -> Frames {
    const TEXTS: [&str; 8] = [
        "SELECT 1",
        "SELECT g, 'x' FROM generate_series(1, 4) g",
        "SELECT 1/(g-3) FROM generate_series(1, 4) g",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SELEC",
        "",
    ];
    // What most drivers send, right or wrong.
    const WHOLE: [&str; 4] = ["SELECT 1", "SELECT 'whole'", "SELECT none", "SELECT 1/0"];
    if order.below(4) == 0 {
        return Frames::new().unnamed(WHOLE[order.below(4) as usize], &[]).sync();
    }
    let mut frames = Frames::new();
    for _ in 0..=order.below(7) {
        let name = ["", "a", "b"][order.below(3) as usize];
        let portal = ["", "p", "q"][order.below(3) as usize];
        frames = match order.below(12) {
            0..3 => frames.parse(name, TEXTS[order.below(8) as usize], &[]),
            3..6 => frames.bind(portal, name, &[]),
            6..8 => frames.execute(portal, i32::try_from(order.below(3)).unwrap()),
            8 => frames.describe_statement(name),
            9 => frames.describe_portal(portal),
            10 => frames.close_statement(name).close_portal(portal),
            _ => frames.flush(),
        };
    }
    frames.sync()
}

/// Tags and bodies; of errors, severity and SQLSTATE. A Parse that is wrong in several ways (text, name taken,
/// transaction failed) may be refused for any of them.
fn essence(reply: &Reply) -> Vec<(char, String)> {
    const WRONG_PARSE: [&str; 3] = ["42601", "42P05", "25P02"];
    let of = |message: &Message| match message.problem() {
        Some(problem) if WRONG_PARSE.contains(&problem.code()) => "a wrong Parse".to_owned(),
        Some(problem) => format!("{} {}", problem.severity(), problem.code()),
        None => format!("{:?}", message.body),
    };
    reply.0.iter().map(|message| (char::from(message.tag), of(message))).collect()
}

#[tokio::test]
async fn a_close_that_was_skipped_closes_nothing() {
    // After an error PostgreSQL skips everything until Sync, Close included: the statement is still there.
    let bench = bench("pool.size = 1").await;
    let (mut app, _) = bench.app().await;
    app.exchange(prepare("s", "SELECT 'kept'")).await;

    let failed = app.exchange(Frames::new().describe_portal("none").close_statement("s").sync()).await;

    assert_eq!(failed.tags(), "EZ");
    let reply = app.exchange(run("s")).await;
    assert_eq!(reply.value(), some("kept"), "{:?}", reply.error());
    assert_eq!(app.exchange(prepare("s", "SELECT 'new'")).await.error_code(), "42P05");
}

#[tokio::test]
async fn the_unnamed_statement_of_another_session_is_unknown() {
    // It lies on the shared backend; whoever gets it runs, or reads the columns of, somebody else's statement.
    let bench = bench("pool.size = 1").await;
    let (mut other, _) = bench.app().await;
    let (mut app, _) = bench.app().await;
    other.exchange(Frames::new().unnamed("SELECT 'theirs'", &[]).sync()).await;

    for frames in [run(""), Frames::new().describe_statement("").sync()] {
        let reply = app.exchange(frames).await;
        assert_eq!(reply.error_code(), "26000", "{reply:?}");
        // Nor is there one after a Parse that failed.
        app.exchange(prepare("", "SELEC")).await;
        other.exchange(Frames::new().unnamed("SELECT 'theirs'", &[]).sync()).await;
    }
}

#[tokio::test]
async fn an_error_ahead_of_an_eviction_leaves_the_books_right() {
    // The backend is full, so the next statement evicts one in the same pipeline; but an error comes first and
    // the eviction is skipped. Noted as done, the statement is prepared again under a name that is taken.
    let bench = bench("pool.size = 1\npool.prepared_statements = 2").await;
    let (mut app, _) = bench.app().await;
    let (mut other, _) = bench.app().await;
    app.exchange(prepare("old", "SELECT 'old'")).await;
    other.exchange(prepare("theirs", "SELECT 'theirs'")).await;
    let skipped = Frames::new().execute("none", 0).parse("new", "SELECT 'new'", &[]).bind("", "old", &[]);

    let skipped = app.exchange(skipped.sync()).await;

    assert_eq!(skipped.error_code(), "34000");
    for (name, session) in [("old", &mut app), ("theirs", &mut other)] {
        let described = session.exchange(Frames::new().describe_statement(name).sync()).await;
        assert_eq!(described.tags(), "tTZ", "{name}: {:?}", described.error());
        let reply = session.exchange(run(name)).await;
        assert_eq!(reply.value(), some(name), "{:?}", reply.error());
    }
}

#[tokio::test]
async fn random_conversations_are_answered_as_by_the_database() {
    // Nobody thinks of every order of Parse, Bind, Close and errors; PostgreSQL's own answers are the measure.
    // Between transactions another session uses the only backend, with the same names.
    let benches = [bench("pool.size = 1").await, bench("pool.size = 1\npool.prepared_statements = 2").await];
    let disturb = Frames::new().parse("a", "SELECT 'theirs'", &[]).unnamed("SELECT 'theirs'", &[]).sync();
    // With room for all statements, and with evictions all the time.
    let mut others = [benches[0].app().await.0, benches[1].app().await.0];

    for (seed, kept) in (0..100).map(|seed| (seed, if seed % 2 == 0 { 200 } else { 2 })) {
        let bench = &benches[usize::from(kept == 2)];
        let other = &mut others[usize::from(kept == 2)];
        let mut order = Order(seed);
        let mut direct = oracle("postgres").await;
        let (mut through, _) = bench.app().await;
        for step in 0..20 {
            let frames = random_exchange(&mut order);
            let expected = direct.exchange(frames.clone()).await;
            let found = through.exchange(frames.clone()).await;

            let sent = String::from_utf8_lossy(frames.as_ref()).into_owned();
            assert_eq!(essence(&found), essence(&expected), "seed {seed}, step {step}: {sent:?}");
            if found.status() == Some('I') {
                other.exchange(Frames::new().close_statement("a").raw(disturb.as_ref())).await;
            }
        }
        direct.terminate().await;
        through.terminate().await;
    }
}

#[tokio::test]
async fn an_error_in_a_pipeline_costs_the_exchanges_behind_it_nothing() {
    // The server skips what one exchange prepares behind its error; the next one, sent in the same write, must neither miss
    // it (26000), nor meet it twice (42P05), nor run what another session has left there.
    let bench = bench("pool.size = 1\npool.prepared_statements = 1").await;
    let (mut other, _) = bench.app().await;
    let failing = || Frames::new().execute("none", 0);
    let unnamed = || prepare("", "SELECT 'new'");
    let (b, c) = ("SELECT 'b'", "SELECT 'c'");
    let whole = |sql| Frames::new().unnamed(sql, &[]).sync();
    let rows: [(&str, &[Frames], &str, Option<String>); 12] = [
        ("bound", &[failing().bind("", "a", &[]).sync(), run("a")], "", some("a")),
        ("described", &[failing().describe_statement("a").sync(), run("a")], "", some("a")),
        ("of the same text", &[failing().parse("b", "SELECT 'a'", &[]).sync(), run("a")], "", some("a")),
        ("evicted", &[run("a"), prepare("b", "SELEC"), run("a")], "", some("a")),
        ("the unnamed", &[failing().raw(unnamed().as_ref()), run("")], "26000", None),
        ("the unnamed before", &[unnamed(), failing().bind("", "", &[]).sync(), run("")], "", some("new")),
        ("the unnamed as a whole", &[whole("SELECT none"), run("")], "26000", None),
        ("one behind it", &[whole("SELECT none"), whole("SELECT 'new'"), run("")], "", some("new")),
        ("one that fails late", &[whole("SELECT 'new'"), whole("SELECT 1/0"), run("")], "22012", None),
        ("a name", &[failing().parse("b", b, &[]).sync(), prepare("b", c)], "", None),
        ("a bad name", &[prepare("b", "SELEC"), prepare("b", c)], "", None),
        ("a Close", &[failing().close_statement("a").sync(), prepare("a", c)], "42P05", None),
    ];

    for (what, exchanges, code, value) in rows {
        let (mut app, _) = bench.app().await;
        app.exchange(prepare("a", "SELECT 'a'")).await;
        // Now the backend has none of its statements, and somebody else's unnamed one.
        other.query("DEALLOCATE ALL").await;
        other.exchange(prepare("", "SELECT 'theirs'")).await;
        app.send(exchanges.iter().fold(Frames::new(), |all, exchange| all.raw(exchange.as_ref()))).await;
        let mut last = Reply::default();
        for _ in exchanges {
            last = app.reply().await;
        }

        assert_eq!((last.error_code(), last.value()), (code.to_owned(), value), "{what}: {last:?}");
    }
}

#[tokio::test]
async fn random_pipelines_are_answered_as_by_the_database() {
    // What an exchange gives and takes is noted when it is sent. The next is sent before it is known what the server skips.
    let benches = [bench("pool.size = 1").await, bench("pool.size = 1\npool.prepared_statements = 2").await];
    let disturb = Frames::new().parse("a", "SELECT 'theirs'", &[]).unnamed("SELECT 'theirs'", &[]).sync();
    let mut others = [benches[0].app().await.0, benches[1].app().await.0];

    for seed in 0..100 {
        let kept = usize::from(seed % 2 == 1);
        let mut order = Order(seed);
        let mut direct = oracle("postgres").await;
        let (mut through, _) = benches[kept].app().await;
        for step in 0..10 {
            let frames =
                (0..3).fold(Frames::new(), |frames, _| frames.raw(random_exchange(&mut order).as_ref()));
            direct.send(&frames).await;
            through.send(&frames).await;
            let mut found = Reply::default();
            for exchange in 0..3 {
                let expected = direct.reply().await;
                found = through.reply().await;

                let sent = String::from_utf8_lossy(frames.as_ref()).into_owned();
                let at = format!("seed {seed}, step {step}, exchange {exchange}: {sent:?}");
                assert_eq!(essence(&found), essence(&expected), "{at}");
            }
            if found.status() == Some('I') {
                others[kept].exchange(Frames::new().close_statement("a").raw(disturb.as_ref())).await;
            }
        }
        direct.terminate().await;
        through.terminate().await;
    }
}

#[tokio::test]
async fn a_backend_keeps_a_bounded_number_of_statements() {
    // 50 statements over 3 sessions on one backend that may hold 5: an eviction that only one side notices
    // gives 26000 or 42P05, and the backend's own count shows whether anything was evicted.
    let bench = bench("pool.size = 1\npool.prepared_statements = 5").await;
    let mut apps = Vec::new();
    for session in 0..3 {
        let (mut app, _) = bench.app().await;
        for number in 0..50 {
            // Two of the sessions have the same texts, under the same names.
            let text = format!("SELECT {number} + 1000 * {}", session / 2);
            let prepared = app.exchange(prepare(&format!("s{number}"), &text)).await;
            assert_eq!(prepared.tags(), "1Z");
        }
        apps.push(app);
    }
    let mut order = Order(7);

    for step in 0..300 {
        let (session, number) = (order.below(3), order.below(50));
        let reply = apps[session as usize].exchange(run(&format!("s{number}"))).await;
        assert_eq!(reply.value(), some(&(number + 1000 * (session / 2)).to_string()), "step {step}");
        let held = apps[0].query("SELECT count(*) FROM pg_prepared_statements").await.value();
        let held: u32 = held.unwrap().parse().unwrap();
        assert!(held <= 5, "the backend holds {held} at step {step}");
    }
}

#[tokio::test]
async fn one_exchange_may_use_more_statements_than_a_backend_keeps() {
    // An eviction must not take a statement that the same pipeline has yet to bind.
    let bench = bench("pool.size = 1\npool.prepared_statements = 3").await;
    let (mut app, _) = bench.app().await;
    let parse = (0..20).fold(Frames::new(), |frames, number| {
        frames.parse(&format!("s{number}"), &format!("SELECT {number}"), &[])
    });
    app.exchange(parse.sync()).await;

    for _ in 0..3 {
        let all = (0..20)
            .chain((0..20).rev())
            .fold(Frames::new(), |frames, number| frames.bind("", &format!("s{number}"), &[]).execute("", 0));
        let reply = app.exchange(all.sync()).await;

        let values: Vec<_> = reply.rows().into_iter().map(|mut row| row.remove(0)).collect();
        let expected: Vec<_> = (0..20).chain((0..20).rev()).map(|number| some(&number.to_string())).collect();
        assert_eq!(values, expected, "{:?}", reply.error());
    }
}

#[tokio::test]
async fn a_statement_prepared_after_a_change_of_its_table_sees_no_error() {
    // The backend still holds the plan of the same text from before; reused blindly it gives 0A000.
    let bench = bench("pool.size = 1").await;
    let table = fresh_database();
    let text = format!("SELECT * FROM {table}");
    let (mut before, _) = bench.app().await;
    before.query(&format!("CREATE TABLE {table} (a int); INSERT INTO {table} VALUES (1)")).await;
    before.exchange(prepare("s", &text)).await;
    before.exchange(run("s")).await;

    shared_postgres().sql(&format!("ALTER TABLE {table} ADD COLUMN b text DEFAULT 'new'")).unwrap();
    let (mut after, _) = bench.app().await;
    let frames =
        Frames::new().parse("s", &text, &[]).bind("", "s", &[]).describe_portal("").execute("", 0).sync();
    let reply = after.exchange(frames).await;

    assert_eq!(reply.tags(), "12TDCZ", "{:?}", reply.error());
    assert_eq!(reply.rows(), [[some("1"), some("new")]]);
}

#[tokio::test]
async fn a_statement_can_be_prepared_again_after_a_change_of_its_table() {
    // Drivers answer 0A000 by Close and Parse under the same name; that must reach PostgreSQL, not a cache.
    let bench = bench("pool.size = 1").await;
    let table = fresh_database();
    let text = format!("SELECT * FROM {table}");
    let (mut app, _) = bench.app().await;
    app.query(&format!("CREATE TABLE {table} (a int); INSERT INTO {table} VALUES (1)")).await;
    app.exchange(prepare("s", &text)).await;
    app.exchange(run("s")).await;

    shared_postgres().sql(&format!("ALTER TABLE {table} ADD COLUMN b text DEFAULT 'new'")).unwrap();
    let stale = app.exchange(run("s")).await;
    let again = app.exchange(Frames::new().close_statement("s").parse("s", &text, &[]).sync()).await;
    let fresh = app.exchange(run("s")).await;

    // PostgreSQL's own answer, unless the statement was prepared anew behind the scenes.
    assert!(["0A000", ""].contains(&stale.error_code().as_str()), "{stale:?}");
    assert_eq!(again.tags(), "31Z");
    assert_eq!(fresh.rows(), [[some("1"), some("new")]]);
}

#[tokio::test]
async fn a_parse_in_an_open_pipeline_commits_nothing_of_it() {
    // A Parse of what the backend has already waits for a question of ours, with a Sync behind it: in the middle of an
    // exchange that Sync would commit what the application has not finished.
    let bench = bench("pool.size = 1").await;
    let table = fresh_database();
    let failing = "SELECT 1/(g-1) FROM generate_series(1, 2) g";
    let (mut app, _) = bench.app().await;
    app.query(&format!("CREATE TABLE {table} (a int)")).await;
    app.exchange(prepare("before", failing)).await;

    app.send(Frames::new().unnamed(&format!("INSERT INTO {table} VALUES (1)"), &[]).flush()).await;
    for tag in [b'1', b'2', b'n', b'C'] {
        app.expect(tag).await;
    }
    let rest = Frames::new().parse("again", failing, &[]).bind("", "again", &[]).execute("", 0).sync();
    let failed = app.exchange(rest).await;

    assert_eq!(failed.error_code(), "22012");
    assert_eq!(app.query(&format!("SELECT count(*) FROM {table}")).await.value(), some("0"));
}

#[tokio::test]
async fn what_stands_behind_a_deallocate_all_in_its_exchange_is_not_deallocated() {
    // The session would have forgotten what the backend has: every later use gets 26000.
    let bench = bench("pool.size = 1").await;
    let (mut app, _) = bench.app().await;
    for forget in ["DEALLOCATE ALL", "DISCARD ALL"] {
        app.exchange(prepare("before", "SELECT 'same'")).await;

        let frames = Frames::new().unnamed(forget, &[]).parse("behind", "SELECT 'same'", &[]);
        let reply = app.exchange(frames.bind("", "behind", &[]).execute("", 0).sync()).await;

        assert_eq!((reply.error(), reply.tags().as_str()), (None, "12nC12DCZ"), "{forget}");
        assert_eq!(app.exchange(run("behind")).await.value(), some("same"), "{forget}");
        assert_eq!(app.exchange(run("before")).await.error_code(), "26000", "{forget}");
        app.exchange(Frames::new().close_statement("behind").sync()).await;
    }
}

#[tokio::test]
async fn deallocate_and_discard_forget_statements() {
    // Drivers and poolers send them at connection reset; what is gone on one's own connection must be gone here.
    let bench = bench("pool.size = 1").await;
    let (mut other, _) = bench.app().await;
    other.exchange(prepare("s", "SELECT 'other'")).await;

    for (sql, left) in [("DEALLOCATE s", "t"), ("DEALLOCATE ALL", ""), ("DISCARD ALL", "")] {
        let (mut app, _) = bench.app().await;
        app.exchange(prepare("s", "SELECT 1")).await;
        app.exchange(prepare("t", "SELECT 2")).await;

        let done = app.query(sql).await;
        let gone = app.exchange(run("s")).await;
        let kept = app.exchange(run("t")).await;
        let again = app.exchange(prepare("s", "SELECT 3")).await;

        assert_eq!(done.error(), None, "{sql}");
        assert_eq!(gone.error_code(), "26000", "{sql}");
        assert_eq!(kept.error_code() == "26000", left.is_empty(), "{sql}");
        assert_eq!(again.tags(), "1Z", "{sql}");
        assert_eq!(other.exchange(run("s")).await.value(), some("other"), "{sql}");
    }
}

#[tokio::test]
async fn a_session_that_has_nothing_to_discard_takes_nothing_from_others() {
    // Npgsql sends DISCARD ALL with each connection that goes back to its pool: every plan of the backend that it happened to
    // get was made anew.
    let bench = bench("pool.size = 1").await;
    let (mut app, _) = bench.app().await;
    app.exchange(prepare("s", "SELECT 'kept'")).await;
    assert_eq!(app.exchange(run("s")).await.value(), some("kept"));
    let (mut other, _) = bench.app().await;
    let count = "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT ''kept'''";

    for text in ["DISCARD ALL", "DEALLOCATE ALL", "UNLISTEN *; CLOSE ALL; RESET ALL"] {
        assert_eq!(other.query(text).await.error(), None, "{text}");
    }

    assert_eq!(app.query(count).await.value(), some("1"));
    // What the session has is cleared as before.
    other.query("SET work_mem = '7MB'").await;
    other.query("DISCARD ALL").await;
    assert_eq!(other.query("SHOW work_mem").await.value(), some("4MB"));
}

#[tokio::test]
async fn parameters_of_many_megabytes_pass() {
    // A Bind that must fit into a buffer would be refused, or cost memory for every session.
    let bench = Bench::start(TIDEGATE).await;
    let (mut app, _) = bench.app().await;
    let large = "x".repeat(5 * 1024 * 1024);

    for name in ["", "named"] {
        let bound = Frames::new().parse(name, "SELECT length($1::text), $2::text", &[]);
        let bound = bound.bind("", name, &[Some(&large), Some("end")]).execute("", 0).sync();
        let reply = app.exchange(bound).await;

        assert_eq!(reply.rows(), [[some("5242880"), some("end")]], "{:?}", reply.error());
    }
}

/// A whole conversation: login, both protocols, COPY, an error, a function call, goodbye. It changes nothing.
fn conversation(table: &str) -> Frames {
    Frames::new()
        .startup(&[("user", "postgres"), ("database", "postgres")])
        .query("BEGIN")
        .query(&format!("COPY {table} FROM STDIN"))
        .copy_data(b"7\n8\n")
        .copy_done()
        .parse("s", &format!("SELECT a FROM {table} WHERE a > $1"), &[23])
        .bind("p", "s", &[Some("6")])
        .describe_portal("p")
        .execute("p", 1)
        .flush()
        .execute("p", 0)
        .close_statement("s")
        .sync()
        .query("ROLLBACK")
        .unnamed("SELECT 1/0", &[])
        .sync()
        .query("SELECT 'end'")
        .terminate()
}

/// What does not differ from session to session.
fn comparable(messages: Vec<Message>) -> Vec<Message> {
    messages.into_iter().filter(|message| !matches!(message.tag, b'K' | b'S')).collect()
}

async fn answers(mut app: ScriptedApp, bytes: &Frames, offsets: &[usize]) -> Vec<Message> {
    app.send_split(bytes, offsets).await;
    comparable(app.expect_end().await)
}

#[tokio::test]
async fn a_conversation_split_at_any_byte_has_the_same_answers() {
    // A length torn in two, a tag alone, a startup packet in halves: each is some offset.
    let bench = bench("pool.size = 2").await;
    let table = fresh_database();
    shared_postgres().sql(&format!("CREATE TABLE {table} (a int)")).unwrap();
    let bytes = conversation(&table);
    let direct = ScriptedApp::connect(([127, 0, 0, 1], bench.postgres.port()).into()).await;
    let expected = answers(direct, &bytes, &[]).await;
    let tags = Reply(expected.clone()).tags();
    assert_eq!(tags.replace('N', ""), "RZCZGCZ12TDsDC3ZCZ1EZTDCZ");

    for offset in 0..bytes.as_ref().len() {
        let app = ScriptedApp::connect(bench.proxy.address()).await;
        let found = answers(app, &bytes, &[offset]).await;

        assert_eq!(found, expected, "split at byte {offset}");
    }
}

#[tokio::test]
async fn a_conversation_byte_by_byte_has_the_same_answers() {
    // Every read ends inside something.
    let bench = bench("pool.size = 2").await;
    let table = fresh_database();
    shared_postgres().sql(&format!("CREATE TABLE {table} (a int)")).unwrap();
    let bytes = conversation(&table);
    let direct = ScriptedApp::connect(([127, 0, 0, 1], bench.postgres.port()).into()).await;
    let expected = answers(direct, &bytes, &[]).await;
    let every: Vec<usize> = (1..bytes.as_ref().len()).collect();

    let app = ScriptedApp::connect(bench.proxy.address()).await;
    let found = answers(app, &bytes, &every).await;

    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_session_that_leaves_in_mid_pipeline_leaves_no_trace() {
    // Its backend has answers on the way; the next session must not read them.
    let bench = bench("pool.size = 1").await;

    for _ in 0..10 {
        let (mut leaver, _) = bench.app().await;
        let frames = (0..50).fold(Frames::new(), |frames, _| {
            frames.unnamed("SELECT g, repeat('x', 1000) FROM generate_series(1, 100) g", &[]).sync()
        });
        leaver.send(frames).await;
        let _ = leaver.receive_within(Duration::from_millis(20)).await;
        drop(leaver);
        let (mut next, _) = bench.app().await;
        let reply = next.query("SELECT 'mine'").await;

        assert_eq!((reply.tags().as_str(), reply.value()), ("TDCZ", some("mine")), "{:?}", reply.error());
        assert!(matches!(next.receive_within(Duration::from_millis(20)).await, Received::Silence));
    }
}
