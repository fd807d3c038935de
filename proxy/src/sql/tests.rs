//! Claims about whole texts.

use proptest::prelude::*;

use super::terms::{DurationSetting, LaneChoice};
use super::*;

fn analyzed(text: &str) -> Analysis<'_> {
    analyze(text.as_bytes(), PlainStrings::Standard)
}

/// `read`, `write`, `neutral`, or the functions it depends on.
fn lane(analysis: &Analysis<'_>) -> String {
    match &analysis.verdict {
        Verdict::Neutral => "neutral".to_owned(),
        Verdict::Read => "read".to_owned(),
        Verdict::Write => "write".to_owned(),
        Verdict::Depends(functions) => functions.iter().map(spelled).collect::<Vec<_>>().join(" "),
    }
}

fn spelled(function: &FunctionName<'_>) -> String {
    let schema = function.schema.as_ref().and_then(|schema| Some(format!("{}.", schema.to_str()?)));
    format!("{}{}()", schema.unwrap_or_default(), function.name.to_str().unwrap_or("?"))
}

/// Valid statements with their kind and lane; functions that are not built-ins are `f`, `g`, `s.f`.
const STATEMENTS: &[(&str, StatementKind, &str)] = {
    use StatementKind as Is;
    &[
        ("SELECT abalance FROM pgbench_accounts WHERE aid = 1", Is::Select, "read"),
        ("select 1;", Is::Select, "read"),
        ("SELECT", Is::Select, "read"),
        ("  -- x\n /* y */ sElEcT 1", Is::Select, "read"),
        ("/* /* */ INSERT */ SELECT 1", Is::Select, "read"),
        ("TABLE t", Is::Select, "read"),
        ("VALUES (1, 'a'), (2, 'b')", Is::Select, "read"),
        ("(SELECT 1) UNION (SELECT 2)", Is::Select, "read"),
        ("((SELECT 1))", Is::Select, "read"),
        ("SELECT 'INSERT INTO t; FOR UPDATE'", Is::Select, "read"),
        ("SELECT 'it''s; nextval('", Is::Select, "read"),
        (r"SELECT '\', nextval('s')", Is::Select, "write"),
        (r"SELECT E'\', nextval(''s'')'", Is::Select, "read"),
        (r"SELECT E'\\', nextval('s')", Is::Select, "write"),
        ("SELECT E'a'\n'\\', nextval(''s'')'", Is::Select, "read"),
        ("SELECT 'a' -- '\n 'b', nextval('s')", Is::Select, "write"),
        (r"SELECT U&'d\0061t', 1 FROM t", Is::Select, "read"),
        (r#"SELECT U&"d\0061t" FROM t"#, Is::Select, "read"),
        (r#"SELECT U&"f"(1)"#, Is::Select, "write"),
        ("SELECT B'0101', X'1F', N'x''y'", Is::Select, "read"),
        ("SELECT $$ ; INSERT INTO t $$", Is::Select, "read"),
        ("SELECT $a$ $b$ nextval('s') $a$", Is::Select, "read"),
        ("SELECT $_é1$ ' $_é1$, nextval('s')", Is::Select, "write"),
        ("SELECT a$b$ FROM t", Is::Select, "read"),
        ("SELECT \"for update\", \"a;b\"\"c\" FROM t", Is::Select, "read"),
        ("SELECT größe, 数 FROM tabelle", Is::Select, "read"),
        ("SELECT 1/2, 1-1, -1, 2*-1, 1.5e-3, .5, 1.", Is::Select, "read"),
        ("SELECT 1 -/* x */ 2", Is::Select, "read"),
        ("SELECT a <> b, a @> b, a#>>'{x}', a->'b', a ? 'k' FROM t", Is::Select, "read"),
        (
            "SELECT x::varchar(10), y::numeric(10,2), z::s.mytype(3), CAST(q AS mytype(4)) FROM t",
            Is::Select,
            "read",
        ),
        (
            "SELECT count(*), sum(x) FILTER (WHERE x > 0) OVER (PARTITION BY (a) ORDER BY (b)) FROM t",
            Is::Select,
            "read",
        ),
        ("SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY x) FROM t", Is::Select, "read"),
        ("SELECT a FROM t GROUP BY GROUPING SETS ((a), ()) HAVING (count(*) > 1)", Is::Select, "read"),
        (
            "SELECT coalesce(a, b), greatest(1, 2), nullif(a, b), extract(year FROM d) FROM t",
            Is::Select,
            "read",
        ),
        (
            "SELECT substring(a FROM 1 FOR 3), position('a' IN b), trim(BOTH ' ' FROM c) FROM t",
            Is::Select,
            "read",
        ),
        ("SELECT * FROM t WHERE a IN (1, 2) AND (b) OR NOT (c) AND EXISTS (SELECT 1)", Is::Select, "read"),
        (
            "SELECT * FROM t WHERE a = ANY (ARRAY[1,2]) AND b LIKE ('x') AND c BETWEEN (1) AND (2)",
            Is::Select,
            "read",
        ),
        ("SELECT * FROM a JOIN (SELECT 1 AS x) b USING (x) LEFT JOIN c ON (c.x = b.x)", Is::Select, "read"),
        (
            "SELECT * FROM unnest(ARRAY[1]) WITH ORDINALITY AS u(a, b), generate_series(1, 2) AS g",
            Is::Select,
            "read",
        ),
        ("SELECT * FROM json_to_record('{}') AS (a int, b text)", Is::Select, "read"),
        (
            "SELECT * FROM ROWS FROM (generate_series(1, 2), generate_series(1, 3)) AS x(a, b)",
            Is::Select,
            "read",
        ),
        ("SELECT CASE WHEN (a) THEN (b) ELSE (c) END FROM t", Is::Select, "read"),
        ("SELECT ROW(1, 2), (t).x, t.* FROM t", Is::Select, "read"),
        ("SELECT now(), random(), clock_timestamp(), pg_sleep(0), gen_random_uuid()", Is::Select, "read"),
        (
            "SELECT version(), current_setting('x'), pg_is_in_recovery(), pg_stat_get_numscans(1)",
            Is::Select,
            "read",
        ),
        ("SELECT CURRENT_TIMESTAMP(3), LOCALTIME, CURRENT_USER", Is::Select, "read"),
        ("SELECT pg_catalog.format_type(a.atttypid, 1) FROM pg_catalog.pg_attribute a", Is::Select, "read"),
        ("SELECT 1 WHERE 'a' OPERATOR(pg_catalog.~) '^(a)$' COLLATE pg_catalog.default", Is::Select, "read"),
        ("SELECT information_schema._pg_truetypid(a, t) FROM x", Is::Select, "read"),
        ("SELECT \"count\"(*) FROM t", Is::Select, "read"),
        ("SELECT \"Count\"(*) FROM t", Is::Select, "Count()"),
        ("SELECT f(1)", Is::Select, "f()"),
        ("SELECT F (1), f(2), /* x */ g /* y */ ()", Is::Select, "f() g()"),
        ("SELECT s.f(1), \"S\".\"F\"(2)", Is::Select, "s.f() S.F()"),
        ("SELECT d.s.f(1)", Is::Select, "s.f()"),
        ("SELECT public.count(1)", Is::Select, "public.count()"),
        ("SELECT pg_catalog.f(1)", Is::Select, "pg_catalog.f()"),
        ("SELECT DISTINCT ON (a) f(b) FROM t", Is::Select, "f()"),
        ("SELECT 1 OPERATOR(pg_catalog.+) f(2)", Is::Select, "f()"),
        ("SELECT \"values\"(1)", Is::Select, "values()"),
        ("SELECT filter(1), commit(1), begin(1)", Is::Select, "filter() commit() begin()"),
        ("SELECT * FROM (VALUES (1)) AS v(a)", Is::Select, "read"),
        ("SELECT * FROM unnest(a) WITH ORDINALITY u, f(b)", Is::Select, "f()"),
        (
            "WITH a(x) AS (SELECT 1), b(y) AS NOT MATERIALIZED (SELECT 2) SELECT * FROM a, b",
            Is::Select,
            "read",
        ),
        ("WITH RECURSIVE a(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM a) TABLE a", Is::Select, "read"),
        ("WITH a AS (SELECT 1) SELECT 1, f(2) FROM a", Is::Select, "f()"),
        ("WITH a AS (WITH b(x) AS (SELECT 1) TABLE b), c(y) AS (SELECT 2) (SELECT 1)", Is::Select, "read"),
        (
            "SELECT (SELECT delete FROM t), count(*) AS update FROM t WHERE (insert) IS NULL",
            Is::Select,
            "read",
        ),
        ("SELECT delete(h, 'k'), (delete(h, 'k')) FROM t", Is::Select, "delete()"),
        ("SELECT * FROM t FOR UPDATE", Is::Select, "write"),
        ("SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED", Is::Select, "write"),
        ("SELECT * FROM t for\nShare OF t NOWAIT", Is::Select, "write"),
        ("SELECT * FROM t FOR KEY SHARE", Is::Select, "write"),
        ("SELECT * FROM (SELECT * FROM t FOR UPDATE) x", Is::Select, "write"),
        ("SELECT * INTO x FROM t", Is::Select, "write"),
        ("SELECT nextval('s')", Is::Select, "write"),
        ("SELECT pg_catalog.SetVal('s', 1)", Is::Select, "write"),
        ("SELECT \"pg_catalog\".\"nextval\"('s')", Is::Select, "write"),
        ("SELECT f(nextval('s'))", Is::Select, "write"),
        ("SELECT lo_create(0), txid_current(), pg_current_xact_id()", Is::Select, "write"),
        ("SELECT pg_logical_emit_message(true, 'p', '')", Is::Select, "write"),
        ("SELECT pg_notify('a', 'b'), pg_advisory_xact_lock(1)", Is::Select, "read"),
        ("WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x", Is::Select, "write"),
        ("WITH x AS MATERIALIZED (DELETE FROM t RETURNING *) SELECT * FROM x", Is::Select, "write"),
        ("WITH x AS (UPDATE \"T\" SET a = 1 RETURNING *) SELECT 1", Is::Select, "write"),
        ("WITH x AS (WITH y AS (SELECT 1) UPDATE t SET a = 1 RETURNING *) SELECT 1", Is::Select, "write"),
        ("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", Is::Insert, "write"),
        ("WITH x AS (SELECT 1) UPDATE ONLY t SET a = 1", Is::Update, "write"),
        ("WITH x AS (SELECT 1) DELETE FROM t", Is::Delete, "write"),
        (
            "WITH x AS (SELECT 1 a) MERGE INTO t USING x ON (t.a = x.a) WHEN MATCHED THEN DELETE",
            Is::Merge,
            "write",
        ),
        (
            "WITH RECURSIVE x(i) AS (SELECT 1 UNION ALL SELECT i FROM x) CYCLE i SET c USING p UPDATE t SET a = 1 FROM x",
            Is::Update,
            "write",
        ),
        ("INSERT INTO t (a, b) VALUES (1, f(2)) ON CONFLICT (a) DO UPDATE SET b = 1", Is::Insert, "write"),
        ("UPDATE t SET a = 1", Is::Update, "write"),
        ("DELETE FROM t", Is::Delete, "write"),
        ("MERGE INTO t USING s ON t.a = s.a WHEN NOT MATCHED THEN INSERT (a) VALUES (1)", Is::Merge, "write"),
        ("TRUNCATE t", Is::Ddl, "write"),
        ("COPY t (a, b) FROM STDIN", Is::CopyFrom, "write"),
        ("COPY t TO STDOUT", Is::CopyTo, "read"),
        ("COPY (SELECT f(1)) TO STDOUT WITH (FORMAT csv)", Is::CopyTo, "f()"),
        ("COPY (DELETE FROM t RETURNING *) TO STDOUT", Is::CopyTo, "write"),
        ("COPY (TABLE t) TO STDOUT (DELIMITER ';'); DELETE FROM t", Is::CopyTo, "write"),
        ("EXPLAIN DELETE FROM t", Is::Explain, "read"),
        ("EXPLAIN VERBOSE SELECT f(1)", Is::Explain, "read"),
        ("EXPLAIN (COSTS off, FORMAT json) UPDATE t SET a = 1", Is::Explain, "read"),
        ("EXPLAIN (SELECT 1)", Is::Explain, "read"),
        ("EXPLAIN ANALYZE SELECT 1", Is::Explain, "read"),
        ("EXPLAIN ANALYZE VERBOSE DELETE FROM t", Is::Explain, "write"),
        ("EXPLAIN (ANALYZE) SELECT f(1)", Is::Explain, "f()"),
        ("EXPLAIN (VERBOSE, ANALYZE true, BUFFERS) INSERT INTO t VALUES (1)", Is::Explain, "write"),
        ("EXPLAIN (ANALYZE off) INSERT INTO t VALUES (1)", Is::Explain, "read"),
        ("EXPLAIN (ANALYZE 'false', FORMAT yaml) DELETE FROM t", Is::Explain, "read"),
        // An option in quotes, or spelled with escapes, is one all the same.
        ("EXPLAIN (\"analyze\") DELETE FROM t", Is::Explain, "write"),
        ("EXPLAIN (\"analyze\" off) DELETE FROM t", Is::Explain, "read"),
        ("EXPLAIN (U&\"\\0061nalyze\", verbose off) DELETE FROM t", Is::Explain, "write"),
        ("EXPLAIN (analyze, U&\"verbos\\0065\" off) DELETE FROM t", Is::Explain, "write"),
        ("EXPLAIN ANALYZE EXECUTE p", Is::Explain, "write"),
        ("EXPLAIN ANALYZE CREATE TABLE x AS SELECT 1", Is::Explain, "write"),
        ("EXPLAIN CREATE TEMP TABLE x AS SELECT 1", Is::Explain, "read"),
        ("EXPLAIN ANALYZE DECLARE c CURSOR FOR SELECT 1", Is::Explain, "read"),
        ("CREATE TABLE t (a int PRIMARY KEY, b text)", Is::Ddl, "write"),
        ("ALTER TABLE t ADD COLUMN c int", Is::Ddl, "write"),
        ("DROP TABLE t", Is::Ddl, "write"),
        ("COMMENT ON TABLE t IS 'x'", Is::Ddl, "write"),
        ("GRANT SELECT ON t TO PUBLIC", Is::Ddl, "write"),
        ("REVOKE SELECT ON t FROM PUBLIC", Is::Ddl, "write"),
        ("SECURITY LABEL ON TABLE t IS 'x'", Is::Ddl, "write"),
        ("IMPORT FOREIGN SCHEMA x FROM SERVER y INTO z", Is::Ddl, "write"),
        ("REFRESH MATERIALIZED VIEW v", Is::Ddl, "write"),
        ("REINDEX TABLE t", Is::Maintenance, "write"),
        ("VACUUM (ANALYZE) t", Is::Maintenance, "write"),
        ("ANALYZE", Is::Maintenance, "write"),
        ("CLUSTER", Is::Maintenance, "write"),
        ("CHECKPOINT", Is::Maintenance, "write"),
        ("CALL p(1)", Is::Call, "write"),
        ("DO $$ BEGIN PERFORM 1; END $$", Is::Do, "write"),
        ("EXECUTE p(1)", Is::Execute, "write"),
        ("PREPARE p (int, text) AS DELETE FROM t WHERE f($1)", Is::Prepare, "neutral"),
        ("PREPARE TRANSACTION 'x'", Is::PrepareTransaction, "write"),
        ("PREPARE TRANSACTION E'x'", Is::PrepareTransaction, "write"),
        ("PREPARE TRANSACTION $$x$$", Is::PrepareTransaction, "write"),
        ("PREPARE TRANSACTION U&'x'", Is::PrepareTransaction, "write"),
        ("PREPARE transaction AS SELECT 1", Is::Prepare, "neutral"),
        ("COMMIT PREPARED 'x'", Is::CommitPrepared, "write"),
        ("ROLLBACK PREPARED 'x'", Is::RollbackPrepared, "write"),
        ("LOCK TABLE t", Is::Lock, "write"),
        ("LOCK t IN ROW EXCLUSIVE MODE NOWAIT", Is::Lock, "write"),
        ("LOCK TABLE t, s.u IN ACCESS SHARE MODE", Is::Lock, "read"),
        ("LOCK TABLE t IN ACCESS EXCLUSIVE MODE", Is::Lock, "write"),
        ("DECLARE c CURSOR FOR SELECT f(1)", Is::Declare, "f()"),
        ("DECLARE c NO SCROLL CURSOR WITHOUT HOLD FOR SELECT 1", Is::Declare, "read"),
        ("DECLARE c CURSOR FOR SELECT * FROM t FOR UPDATE", Is::Declare, "write"),
        ("DECLARE c CURSOR FOR WITH x(a) AS (SELECT 1) TABLE x", Is::Declare, "read"),
        ("FETCH 10 FROM c", Is::Fetch, "neutral"),
        ("MOVE ALL IN c", Is::Fetch, "neutral"),
        ("CLOSE c", Is::Close, "neutral"),
        ("BEGIN", Is::Begin, "neutral"),
        ("START TRANSACTION ISOLATION LEVEL REPEATABLE READ", Is::Begin, "neutral"),
        ("COMMIT", Is::Commit, "neutral"),
        ("END", Is::Commit, "neutral"),
        ("ROLLBACK", Is::Rollback, "neutral"),
        ("ABORT WORK", Is::Rollback, "neutral"),
        ("SAVEPOINT a", Is::Savepoint, "neutral"),
        ("ROLLBACK TRANSACTION TO SAVEPOINT a", Is::RollbackTo, "neutral"),
        ("ROLLBACK TO a", Is::RollbackTo, "neutral"),
        ("RELEASE a", Is::Release, "neutral"),
        ("SET x.y = 1", Is::Set, "neutral"),
        ("SET TRANSACTION READ ONLY", Is::SetTransaction, "neutral"),
        ("SET CONSTRAINTS ALL DEFERRED", Is::SetConstraints, "neutral"),
        ("RESET ALL", Is::Reset, "neutral"),
        ("SHOW server_version", Is::Show, "neutral"),
        ("DISCARD ALL", Is::Discard, "neutral"),
        ("DEALLOCATE PREPARE p", Is::Deallocate, "neutral"),
        ("LISTEN c", Is::Listen, "read"),
        ("UNLISTEN *", Is::Unlisten, "read"),
        ("NOTIFY c, 'x'", Is::Notify, "read"),
        ("LOAD 'x'", Is::Load, "neutral"),
        ("SELECT 1; SELECT f(2); BEGIN", Is::Select, "f()"),
        ("BEGIN; UPDATE t SET a = 1; COMMIT", Is::Begin, "write"),
        ("SELECT ';'; ; DELETE FROM t", Is::Select, "write"),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
            Is::Ddl,
            "write",
        ),
        ("CREATE RULE r AS ON INSERT TO t DO (DELETE FROM t; DELETE FROM t)", Is::Ddl, "write"),
        ("", Is::Empty, "neutral"),
        (" ; /* x */ ; -- y", Is::Empty, "neutral"),
    ]
};

#[test]
fn each_statement_has_its_kind_and_lane() {
    // The table is the claim. Its statements were checked against PostgreSQL 15: none is a syntax error.
    for (text, kind, expected) in STATEMENTS {
        let analysis = analyzed(text);

        assert_eq!((analysis.first, lane(&analysis).as_str()), (*kind, *expected), "{text}");
    }
}

#[test]
fn what_is_no_valid_statement_is_a_write_or_nothing() {
    // An unknown statement might be one that a later release adds; it must not be taken for a read.
    for text in ["FROBNICATE t", "42", "'a'", "\"select\" 1", ")", "$1", "\\", "sélect 1", "SELECTED 1"] {
        assert_eq!(analyzed(text).verdict, Verdict::Write, "{text}");
    }
}

#[test]
fn older_grammars_that_glue_numbers_to_words_are_understood() {
    // PostgreSQL 14 reads `1FOR` as two tokens; reading it as one would hide the row lock.
    assert_eq!(analyzed("SELECT * FROM t LIMIT 1FOR UPDATE").verdict, Verdict::Write);
    assert_eq!(analyzed("SELECT 1INTO x").verdict, Verdict::Write);
}

#[test]
fn whatever_is_unterminated_ends_at_the_end() {
    // A lexer that ran past the end or went back would panic or hang here.
    for text in [
        "SELECT 'abc",
        "SELECT E'abc\\",
        "SELECT E'abc\\'",
        "SELECT \"abc",
        "SELECT $$abc",
        "SELECT $a$abc$a",
        "SELECT /* abc",
        "SELECT /* /* */",
        "SELECT /*",
        "SELECT /",
        "SELECT --",
        "SELECT U&'",
        "SELECT U&\"a",
        "SELECT $",
        "SELECT $a",
        "SELECT (((",
        "SELECT )))",
        "SELECT 1e",
        "SELECT 0x",
        "SELECT a.",
        "SELECT .",
        "SET",
        "SET x",
        "SET x TO",
        "SET x.",
        "SET LOCAL",
        "SET SESSION",
        "SET TIME ZONE",
        "RESET",
        "SHOW",
        "BEGIN READ",
        "PREPARE",
        "PREPARE TRANSACTION",
        "EXPLAIN",
        "EXPLAIN (",
        "EXPLAIN (ANALYZE",
        "COPY",
        "COPY (",
        "DECLARE",
        "DECLARE c CURSOR WITH",
        "CREATE",
        "CREATE TEMP",
        "LOCK",
        "LOCK IN",
        "DEALLOCATE",
        "DEALLOCATE PREPARE",
        "WITH",
        "SELECT set_config(",
        "SELECT set_config('a'",
        "SELECT set_config('a',",
        "SELECT f(",
        "'a'\n",
        "'a'\n'",
    ] {
        assert_eq!(analyzed(text).statements, 1, "{text}");
    }
}

#[test]
fn backslashes_escape_in_plain_strings_only_when_told() {
    // With the wrong rule the call is hidden in the string, or the other way round.
    let text = br"SELECT '\', nextval(''s'')'";

    assert_eq!(analyze(text, PlainStrings::Backslashes).verdict, Verdict::Read);
    let text = br"SELECT '\'', nextval('s')";
    assert_eq!(analyze(text, PlainStrings::Backslashes).verdict, Verdict::Write);
    assert_eq!(analyze(text, PlainStrings::Standard).verdict, Verdict::Read);
}

fn set<'a>(name: &'a str, value: &'a str) -> Effect<'a> {
    let name = Name::verbatim(name.as_bytes());
    Effect::SetParameter { name, scope: Scope::Session, value: Value::Text(Name::verbatim(value.as_bytes())) }
}

fn set_to<'a>(name: &'a str, scope: Scope, value: Value<'a>) -> Effect<'a> {
    Effect::SetParameter { name: Name::verbatim(name.as_bytes()), scope, value }
}

fn reset(name: &str) -> Effect<'_> {
    Effect::ResetParameter { name: Name::verbatim(name.as_bytes()) }
}

fn set_config<'a>(name: Option<&'a str>, value: Option<&'a str>, scope: Option<Scope>) -> Effect<'a> {
    let name_of = |text: &'a str| Name::verbatim(text.as_bytes());
    Effect::SetConfigCall { name: name.map(name_of), value: value.map(name_of), scope }
}

type EffectTable = Vec<(&'static str, Vec<Effect<'static>>)>;

fn effects_on_settings() -> EffectTable {
    let raw = |text: &'static str| Value::Raw(text.as_bytes());
    let session = Scope::Session;
    let local = Scope::Transaction;
    vec![
        ("SELECT 1", vec![]),
        ("SET DateStyle TO ISO", vec![set("datestyle", "iso")]),
        ("SET SESSION x.\"Y\" = 'It''s'", vec![set("x.y", "It's")]),
        (
            "SET LOCAL lock_timeout = 100",
            vec![set_to("lock_timeout", local, Value::Text(Name::verbatim(b"100")))],
        ),
        ("SET x.y TO DEFAULT", vec![set_to("x.y", session, Value::Default)]),
        ("SET x.y =-1", vec![set_to("x.y", session, raw("-1"))]),
        (r"SET x.y = E'a\n'", vec![set_to("x.y", session, raw(r"E'a\n'"))]),
        ("SET x.y = 'a'\n'b'", vec![set_to("x.y", session, raw("'a'\n'b'"))]),
        (
            "SET search_path = \"$user\", Public ;",
            vec![set_to("search_path", session, raw("\"$user\", Public"))],
        ),
        ("SET search_path TO \"My\"", vec![set("search_path", "My")]),
        ("SET local.x = 1", vec![set("local.x", "1")]),
        ("SET session.x TO on", vec![set("session.x", "on")]),
        ("SET x . /* c */ y = 1", vec![set("x.y", "1")]),
        ("SET TIME ZONE 'UTC'", vec![set("timezone", "UTC")]),
        ("SET LOCAL TIME ZONE LOCAL", vec![set_to("timezone", local, Value::Default)]),
        (
            "SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE",
            vec![set_to("timezone", session, raw("INTERVAL '-08:00' HOUR TO MINUTE"))],
        ),
        ("SET NAMES 'latin1'", vec![set("client_encoding", "latin1")]),
        ("SET NAMES", vec![set_to("client_encoding", session, Value::Default)]),
        ("SET SCHEMA 's'", vec![set("search_path", "s")]),
        ("SET ROLE Admin", vec![set("role", "admin")]),
        ("SET LOCAL ROLE NONE", vec![set_to("role", local, Value::Text(Name::verbatim(b"none")))]),
        ("SET role = 'r'", vec![set("role", "r")]),
        ("SET SESSION AUTHORIZATION 'u'", vec![set("session_authorization", "u")]),
        (
            "SET SESSION SESSION AUTHORIZATION DEFAULT",
            vec![set_to("session_authorization", session, Value::Default)],
        ),
        ("SET XML OPTION DOCUMENT", vec![set("xmloption", "document")]),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY, NOT DEFERRABLE",
            vec![
                set("default_transaction_isolation", "repeatable read"),
                set("default_transaction_read_only", "on"),
                set("default_transaction_deferrable", "off"),
            ],
        ),
        ("SET TRANSACTION READ WRITE", vec![]),
        ("SET transaction_isolation = 'serializable'", vec![]),
        ("SET CONSTRAINTS ALL IMMEDIATE", vec![]),
        ("RESET ALL", vec![Effect::ResetAll]),
        ("RESET x.Y", vec![reset("x.y")]),
        ("RESET TIME ZONE", vec![reset("timezone")]),
        ("RESET ROLE", vec![reset("role")]),
        ("RESET SESSION AUTHORIZATION", vec![reset("session_authorization")]),
        ("RESET TRANSACTION ISOLATION LEVEL", vec![]),
        ("SHOW TideGate.Lane", vec![Effect::Show { name: Name::verbatim(b"tidegate.lane") }]),
        ("SHOW lock_timeout", vec![]),
        ("SELECT set_config('A.b', 'v', true)", vec![set_config(Some("a.b"), Some("v"), Some(local))]),
        ("SELECT set_config('a'::text, $1, false)", vec![set_config(Some("a"), None, Some(session))]),
        ("SELECT pg_catalog.set_config($1, $2, $3)", vec![set_config(None, None, None)]),
        ("SELECT set_config('a', 'x' || f(1), true)", vec![set_config(Some("a"), None, None)]),
        ("SELECT set_config('a' || 'b', 'x', true)", vec![set_config(None, None, None)]),
        (
            "INSERT INTO t SELECT set_config('a', set_config('b', '1', true), false)",
            vec![set_config(Some("a"), None, None), set_config(Some("b"), Some("1"), Some(local))],
        ),
        ("SELECT 'set_config(' /* set_config( */", vec![]),
    ]
}

fn effects_on_the_rest() -> EffectTable {
    use Effect::{Pin, Unpin};
    use PinReason::{AdvisoryLock, HoldCursor, Listen, Load, Prepare, TempTable};
    vec![
        ("DISCARD ALL", vec![Effect::DiscardAll]),
        ("DISCARD PLANS", vec![Effect::DiscardOther]),
        ("DISCARD TEMP", vec![Effect::DiscardOther, Unpin(TempTable)]),
        ("DEALLOCATE ALL", vec![Effect::DeallocateAll, Unpin(Prepare)]),
        ("DEALLOCATE PREPARE ALL", vec![Effect::DeallocateAll, Unpin(Prepare)]),
        ("DEALLOCATE \"all\"", vec![Effect::Deallocate { name: Name::verbatim(b"all") }]),
        ("DEALLOCATE PREPARE S", vec![Effect::Deallocate { name: Name::verbatim(b"s") }]),
        ("LISTEN c", vec![Pin(Listen)]),
        ("UNLISTEN *", vec![Unpin(Listen)]),
        ("UNLISTEN c", vec![]),
        ("CREATE TEMP TABLE t (a int)", vec![Pin(TempTable)]),
        ("CREATE LOCAL TEMPORARY TABLE t AS SELECT 1", vec![Pin(TempTable)]),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1", vec![Pin(TempTable)]),
        ("CREATE TEMP SEQUENCE s", vec![Pin(TempTable)]),
        ("CREATE TABLE pg_temp.t (a int)", vec![Pin(TempTable)]),
        ("CREATE FUNCTION \"pg_temp\".f() RETURNS int LANGUAGE sql AS 'SELECT 1'", vec![Pin(TempTable)]),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DELETE ROWS", vec![Pin(TempTable)]),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DROP", vec![]),
        ("CREATE TABLE temp (temporary int)", vec![]),
        ("SELECT * INTO TEMP x FROM t", vec![Pin(TempTable)]),
        ("SELECT 1 INTO LOCAL TEMPORARY TABLE x", vec![Pin(TempTable)]),
        ("SELECT 1 INTO pg_temp.x", vec![Pin(TempTable)]),
        ("INSERT INTO temp VALUES (1)", vec![]),
        ("SELECT * FROM pg_temp.x", vec![]),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", vec![Pin(HoldCursor)]),
        ("DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1", vec![]),
        ("CLOSE ALL", vec![Unpin(HoldCursor)]),
        ("SELECT pg_advisory_lock(1)", vec![Pin(AdvisoryLock)]),
        ("SELECT * FROM t WHERE pg_catalog.pg_try_advisory_lock_shared(1, 2)", vec![Pin(AdvisoryLock)]),
        ("SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(2)", vec![]),
        ("SELECT s.pg_advisory_lock(1), pg_advisory_lock FROM t", vec![]),
        ("SELECT pg_advisory_unlock_all()", vec![Unpin(AdvisoryLock)]),
        ("PREPARE p AS SELECT pg_advisory_lock(1)", vec![Pin(Prepare)]),
        ("PREPARE TRANSACTION 'x'", vec![]),
        ("LOAD 'auto_explain'", vec![Pin(Load)]),
        ("EXPLAIN SELECT pg_advisory_lock(1)", vec![]),
        ("EXPLAIN ANALYZE SELECT pg_advisory_lock(1)", vec![Pin(AdvisoryLock)]),
        ("DO $$ BEGIN PERFORM pg_advisory_lock(1); END $$", vec![]),
        ("SELECT 1; SET x.y = 1; LISTEN c; SELECT 2", vec![set("x.y", "1"), Pin(Listen)]),
    ]
}

#[test]
fn each_statement_has_its_effects() {
    // A missed effect leaks one session's state into another; an invented one pins for nothing.
    for (text, expected) in effects_on_settings().into_iter().chain(effects_on_the_rest()) {
        assert_eq!(analyzed(text).effects, expected, "{text}");
    }
}

#[test]
fn plain_statements_own_no_memory() {
    // A list with capacity was allocated; nothing else in an analysis can be.
    for text in ["SELECT count(*) FROM t WHERE a = $1", "insert into t (a) values (1)", "BEGIN", "COMMIT"] {
        let analysis = analyzed(text);
        assert_eq!((analysis.effects.capacity(), analysis.hints.unknown.capacity()), (0, 0), "{text}");
        assert!(!matches!(analysis.verdict, Verdict::Depends(_)), "{text}");
    }
}

#[test]
fn more_effects_than_fit_pin_the_backend() {
    // Dropping the surplus silently would leak it.
    let text = "SET x.y = 1;".repeat(1000);

    let analysis = analyzed(&text);

    assert_eq!(analysis.effects.len(), 256);
    assert_eq!(analysis.effects.last(), Some(&Effect::Pin(PinReason::Untracked)));
}

#[test]
fn more_functions_than_fit_are_a_write() {
    // The list would otherwise grow with the text, or the surplus would go unchecked.
    let calls: Vec<_> = (0..33).map(|number| format!("f{number}()")).collect();

    assert_eq!(
        analyzed(&format!("SELECT {}", calls[..32].join(", "))).verdict,
        Verdict::Depends(
            (0..32)
                .map(|number| FunctionName {
                    schema: None,
                    name: Name::verbatim(format!("f{number}").as_bytes()).into_owned()
                })
                .collect()
        )
    );
    assert_eq!(analyzed(&format!("SELECT {}", calls.join(", "))).verdict, Verdict::Write);
}

#[test]
fn transaction_control_is_counted_and_options_are_those_left_open() {
    // A caller that takes a finished transaction's READ ONLY for the open one would send a write to a standby.
    let begin = analyzed("BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE;");
    assert!(begin.is_lone_begin() && begin.read_only_transaction());
    assert_eq!(begin.transaction.options.isolation, Some(Isolation::Serializable));
    assert_eq!(begin.transaction.options.deferral, Some(Deferral::Deferrable));

    let plain = analyzed("start transaction isolation level repeatable read");
    assert!(plain.is_lone_begin() && plain.transaction.options.access.is_none());
    assert_eq!(plain.transaction.options.isolation, Some(Isolation::RepeatableRead));

    assert!(analyzed("SET TRANSACTION READ ONLY").read_only_transaction());
    assert!(analyzed("SET LOCAL transaction_read_only = on").read_only_transaction());
    assert!(analyzed("BEGIN READ WRITE; SET TRANSACTION READ ONLY").read_only_transaction());
    assert!(!analyzed("BEGIN READ ONLY; COMMIT; BEGIN").read_only_transaction());
    assert!(analyzed("BEGIN READ ONLY; COMMIT AND CHAIN").read_only_transaction());
    assert!(!analyzed("BEGIN; SELECT 1").is_lone_begin());

    let many = analyzed(
        "BEGIN; COMMIT WORK AND CHAIN; ROLLBACK AND NO CHAIN; ROLLBACK TO a; PREPARE TRANSACTION 'x'",
    );
    let control = many.transaction;
    let counts = (control.begins, control.commits, control.rollbacks, control.chains, control.prepares);
    assert_eq!(counts, (1, 1, 1, 1, 1));
    assert_eq!((many.statements, many.last), (5, StatementKind::PrepareTransaction));
}

#[test]
fn what_a_standby_cannot_do_is_placed_on_the_primary() {
    // An advisory lock on a standby excludes nobody; NOTIFY fails there.
    for text in ["NOTIFY c", "LISTEN c", "SELECT pg_notify('c', '')", "SELECT pg_advisory_xact_lock(1)"] {
        assert_eq!(analyzed(text).placement, Placement::Primary, "{text}");
    }
    assert_eq!(analyzed("SELECT now(); EXPLAIN SELECT pg_notify('c', '')").placement, Placement::Any);
}

#[test]
fn what_acts_on_a_server_is_placed_on_the_primary() {
    // Each of them succeeds on a standby, to no effect where it was meant: the primary keeps its old configuration, its
    // hung session and its counters, a process of the standby with the same number dies, and the file is nowhere to be
    // found.
    for text in [
        "SELECT pg_reload_conf()",
        "SELECT pg_catalog.pg_rotate_logfile()",
        "SELECT pg_cancel_backend(1)",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity",
        "SELECT pg_log_backend_memory_contexts(1)",
        "SELECT pg_stat_reset(), pg_stat_get_numscans(1)",
        "SELECT pg_stat_reset_shared('wal')",
        "SELECT lo_export(1, '/tmp/x')",
        "SELECT pg_xact_status('7')",
        "COPY t TO '/tmp/x'",
        "COPY t (a, b) TO PROGRAM 'gzip' WITH (FORMAT csv)",
        "COPY (SELECT (1)) TO '/tmp/x'",
        "COPY ((TABLE t)) TO PROGRAM 'gzip'",
    ] {
        assert_eq!(analyzed(text).placement, Placement::Primary, "{text}");
    }
}

#[test]
fn what_tells_of_a_server_is_asked_of_the_primary_while_it_answers() {
    // A process found by a number of the standby's is another one on the primary; and prepared transactions would be
    // overlooked.
    for text in [
        "SELECT pg_stat_get_activity(NULL)",
        "SELECT * FROM pg_stat_activity",
        "SELECT pid FROM pg_catalog.PG_Locks WHERE NOT granted",
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()",
    ] {
        assert_eq!(analyzed(text).placement, Placement::PreferPrimary, "{text}");
    }
    for text in [
        "SELECT count(*) FROM pg_class, pg_stats",
        "SELECT current_setting('a.b'), inet_server_port(), pg_last_wal_replay_lsn()",
        "SELECT pg_is_in_recovery(), pg_backend_pid()",
        "SELECT 'pg_stat_activity'",
        "COPY t TO STDOUT",
        "COPY (SELECT a FROM t) TO stdout WITH (FORMAT csv)",
        "EXPLAIN SELECT pg_reload_conf() FROM pg_locks",
    ] {
        assert_eq!(analyzed(text).placement, Placement::Any, "{text}");
    }
}

#[test]
fn hints_set_bounds_for_their_statement() {
    // A bound that is not read leaves the statement with the usual one; one for the session would outlast it.
    let text = "SELECT /*tidegate:write_timeout=250ms,Deadline_MS = 100*/ 1 \
                /*tidegate:idle_in_transaction_timeout=1s, read_timeout=0, lane=auto*/";

    let hints = analyzed(text).hints;

    assert_eq!(hints.terms.duration(DurationSetting::Write), Some(250));
    assert_eq!(hints.terms.duration(DurationSetting::Deadline), Some(100));
    assert_eq!(hints.unknown, [&b"idle_in_transaction_timeout=1s"[..], b"read_timeout=0", b"lane=auto"]);
}

#[test]
fn hints_are_read_from_comments_and_nowhere_else() {
    // A hint in a string would let data choose its lane.
    let text = "/*tidegate:lane=write*/ SELECT 1 /* tidegate: Priority = Sheddable_Plus , lane=read, x=1, lane=up */";
    let hints = analyzed(text).hints;
    assert_eq!(hints.terms.lane, Some(LaneChoice::Fixed(Lane::Write)));
    assert_eq!(hints.terms.priority, Some(Priority::SheddablePlus));
    assert_eq!(hints.unknown, [&b"x=1"[..], b"lane=up"]);

    for text in [
        "SELECT '/*tidegate:lane=write*/'",
        "SELECT 1 --/*tidegate:lane=write*/",
        "/* /*tidegate:lane=read*/ */",
    ] {
        assert_eq!(analyzed(text).hints, Hints::default(), "{text}");
    }
}

#[test]
fn fingerprints_ignore_literals_and_layout_but_not_words() {
    // Too coarse, and one statement's lesson is applied to another; too fine, and nothing is ever learned.
    let key = FingerprintKey::new(1, 2);
    let print = |text: &str| fingerprint(text.as_bytes(), PlainStrings::Standard, &key);
    let same = print("SELECT a FROM t WHERE b = 1 AND c IN (1, 2, 3)");

    assert_eq!(same, print("select A /* x */\nfrom T where b='x' and c in ($1,$$y$$)"));
    assert_ne!(same, print("SELECT a FROM t WHERE b = 1 AND c IN (1, x, 3)"));
    assert_ne!(same, print("SELECT a FROM t WHERE b = 1 AND d IN (1)"));
    assert_ne!(print("SELECT \"A\""), print("SELECT \"a\""));
    assert_ne!(print("SELECT ab"), print("SELECT a b"));
    assert_ne!(print("SELECT 1, a"), print("SELECT 1 a"));
    assert_ne!(
        same,
        fingerprint(
            b"SELECT a FROM t WHERE b = 1 AND c IN (1)",
            PlainStrings::Standard,
            &FingerprintKey::new(2, 2)
        )
    );
    assert_ne!(print(&"a ".repeat(500)), print(&"a ".repeat(501)));
}

#[test]
fn deep_nesting_and_long_texts_end() {
    // Recursion would overflow the stack here, and a quadratic step would take minutes.
    for unit in [
        "(",
        "/*",
        "WITH a AS (",
        "SELECT f(",
        "EXPLAIN ",
        "$a",
        "'a'\n",
        "((SELECT ",
        "PREPARE a AS ",
        "CASE ",
    ] {
        let text = unit.repeat(200_000);
        let _ = analyzed(&text);
        let _ = fingerprint(text.as_bytes(), PlainStrings::Standard, &FingerprintKey::new(0, 0));
    }
}

/// Splits a valid statement where whitespace may stand: at spaces outside of quotes and comments.
fn pieces(text: &str) -> Option<Vec<&str>> {
    let plain = !text.contains(['\'', '"', '$', '-', '/', '\n']);
    plain.then(|| text.split(' ').collect())
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        // Slicing out of range or overflow would.
        let _ = analyze(&bytes, PlainStrings::Standard);
        let _ = analyze(&bytes, PlainStrings::Backslashes);
        let _ = fingerprint(&bytes, PlainStrings::Standard, &FingerprintKey::new(0, 0));
    }

    #[test]
    fn no_sequence_of_tokens_makes_it_panic(tokens in prop::collection::vec(prop::sample::select(vec![
        "select", "with", "as", "(", ")", "insert", "into", "update", "for", "set", "session", "local", "to", "=", ".",
        "explain", "analyze", "copy", "prepare", "declare", "cursor", "hold", "create", "temp", "begin", "atomic", "end",
        "set_config", "pg_temp", "f", ",", ";", "'", "''", "\"", "$$", "$a$", "/*", "*/", "--", "\n", "E'", "\\", "::",
        "1", "$1", "U&\"", "reset", "show", "deallocate", "transaction", "é", "\0",
    ]), 0..40), glue in prop::sample::select(vec!["", " "])) {
        // Tokens reach states that random bytes hardly ever do.
        let text = tokens.join(glue);
        let analysis = analyzed(&text);
        prop_assert!(analysis.effects.len() <= 256);
    }

    #[test]
    fn layout_does_not_change_the_answer(
        which in 0..STATEMENTS.len(),
        layout in prop::collection::vec(prop::sample::select(vec![
            " ", "\n", "\t \r\n", " /* INSERT INTO */ ", "/**/", "/*/**/;*/", " -- ; ' \n", "\x0c", "/* \" ' $$ */",
        ]), 40),
    ) {
        // Comments and whitespace mean nothing to PostgreSQL.
        let (text, kind, expected) = STATEMENTS[which];
        if let Some(pieces) = pieces(text) {
            let mut woven = layout[39].to_owned();
            for (piece, space) in pieces.iter().zip(layout.iter().cycle()) {
                woven.push_str(piece);
                woven.push_str(space);
            }
            let analysis = analyzed(&woven);
            prop_assert_eq!((analysis.first, lane(&analysis)), (kind, expected.to_owned()), "{}", woven);
            prop_assert_eq!(analysis.statements, analyzed(text).statements);
        }
    }
}
