"""psycopg: queries of every kind, prepared statements, pipelines, cursors, transactions and errors."""

import datetime
import decimal
import ipaddress
import uuid

import psycopg
from psycopg import pq
from psycopg.types.json import Jsonb
from psycopg.types.range import Range

from psycopg_support import SCHEMA, autocommit, connect, one, sqlstate_of
from support import Skip, check, expect_equal


@check
def simple_and_parameterised_queries():
    """The simple and the extended protocol give the same rows."""
    with autocommit() as conn:
        expect_equal(one(conn, "SELECT 40 + 2"), 42)
        expect_equal(one(conn, "SELECT %s::int + %s::int", (40, 2)), 42)
        expect_equal(psycopg.ClientCursor(conn).execute("SELECT %s || 'b'", ("a",)).fetchone()[0], "ab")
        expect_equal(len(conn.execute("SELECT generate_series(1, 5000)").fetchall()), 5000)


@check
def binary_and_text_results():
    """Result formats are what the application asked for, statement by statement."""
    with autocommit() as conn:
        for binary in (True, False, True):
            row = conn.execute("SELECT %s::int8, %s::bytea, now()", (7, b"\0\xff"), binary=binary).fetchone()
            expect_equal(row[:2], (7, b"\0\xff"))
            expect_equal(type(row[2]), datetime.datetime)


@check
def types_round_trip():
    """Values of many types arrive as they were sent, in both formats."""
    utc = datetime.timezone.utc
    values = {
        "int2": -5, "int8": 2**62, "numeric": decimal.Decimal("12345678901234567890.0001"), "float8": 0.1,
        "bool": True, "text": "snow ☃ \\ ' \" \n", "bytea": bytes(range(256)), "date": datetime.date(1999, 12, 31),
        "timestamptz": datetime.datetime(2024, 2, 29, 12, tzinfo=utc), "interval": datetime.timedelta(days=3, seconds=1),
        "uuid": uuid.UUID(int=7), "inet": ipaddress.ip_address("10.1.2.3"), "int4[]": [1, None, 3],
        "text[]": ["a", "", None, "ü"], "int4range": Range(1, 9),
    }
    with autocommit() as conn:
        for name, value in values.items():
            for binary in (True, False):
                cursor = conn.execute(f"SELECT %s::{name}, NULL::{name}", (value,), binary=binary)
                expect_equal(cursor.fetchone(), (value, None), name)
        expect_equal(one(conn, "SELECT %s::jsonb", (Jsonb({"a": [1, None]}),)), {"a": [1, None]})


@check
def named_prepared_statements():
    """Statements prepared at once (threshold 0) or at the second use (1) keep giving their own rows."""
    for threshold in (0, 1):
        with autocommit(prepare_threshold=threshold) as conn:
            for turn in range(30):
                kind = turn % 3
                row = conn.execute(f"SELECT {kind}, %s::int, %s::text", (turn, "x")).fetchone()
                expect_equal(row, (kind, turn, "x"))


@check
def evicted_prepared_statements():
    """Statements that the driver closes to make room can be prepared and run again."""
    with autocommit(prepare_threshold=0) as conn:
        conn.prepared_max = 3
        for turn in range(60):
            expect_equal(one(conn, f"SELECT {turn % 7} + %s::int", (turn,)), turn % 7 + turn)


@check
def prepared_statement_names_are_free_after_close():
    """The same name can be prepared with another text after Close and after DEALLOCATE, and not before."""
    with autocommit() as conn:
        raw = conn.pgconn
        for text, drop in ((b"SELECT 1", "close"), (b"SELECT 2", "deallocate"), (b"SELECT 3", "close")):
            expect_equal(raw.prepare(b"mine", text).status, pq.ExecStatus.COMMAND_OK)
            expect_equal(raw.exec_prepared(b"mine", []).get_value(0, 0), text[-1:])
            expect_equal(_state(raw.prepare(b"mine", b"SELECT 9")), "42P05", "second Parse of the same name")
            if drop == "close" and psycopg.capabilities.has_send_close_prepared():
                raw.send_close_prepared(b"mine")
                while raw.get_result():
                    pass
            else:
                raw.exec_(b"DEALLOCATE mine")
            expect_equal(_state(raw.exec_prepared(b"mine", [])), "26000", "Bind after Close")


@check
def unnamed_statement_outlives_its_exchange():
    """Parse in one exchange and Bind in the next work for the unnamed statement too, outside a transaction."""
    with autocommit() as conn, autocommit() as other:
        for turn in range(5):
            conn.pgconn.prepare(b"", b"SELECT 'unnamed %d'" % turn)
            expect_equal(one(other, "SELECT %s::text", ("between",)), "between")
            expect_equal(conn.pgconn.exec_prepared(b"", []).get_value(0, 0), b"unnamed %d" % turn)


@check
def describe_prepared_statement():
    """Describe names parameters and columns, in an exchange of its own."""
    with autocommit() as conn:
        conn.pgconn.prepare(b"told", b"SELECT $1::int8 AS a, $2::text AS b")
        told = conn.pgconn.describe_prepared(b"told")
        expect_equal([told.param_type(i) for i in range(told.nparams)], [20, 25])
        expect_equal([told.fname(i) for i in range(told.nfields)], [b"a", b"b"])


@check
def prepared_statement_in_failed_parse():
    """A name whose Parse failed stays free, and the session is usable."""
    with autocommit() as conn:
        expect_equal(_state(conn.pgconn.prepare(b"late", b"SELEC 1")), "42601")
        expect_equal(conn.pgconn.prepare(b"late", b"SELECT 5").status, pq.ExecStatus.COMMAND_OK)
        expect_equal(conn.pgconn.exec_prepared(b"late", []).get_value(0, 0), b"5")


@check
def sql_prepare_and_deallocate():
    """PREPARE, EXECUTE, DEALLOCATE and DEALLOCATE ALL in SQL work across transactions."""
    with autocommit() as conn, autocommit() as other:
        conn.execute("PREPARE plus AS SELECT $1::int + 1")
        conn.execute("PREPARE minus AS SELECT $1::int - 1")
        for turn in range(5):
            one(other, "SELECT 1")
            expect_equal((one(conn, f"EXECUTE plus({turn})"), one(conn, f"EXECUTE minus({turn})")), (turn + 1, turn - 1))
        expect_equal(sqlstate_of(lambda: other.execute("EXECUTE plus(1)")), "26000", "EXECUTE in another session")
        conn.execute("DEALLOCATE plus")
        expect_equal(sqlstate_of(lambda: conn.execute("EXECUTE plus(1)")), "26000")
        expect_equal(one(conn, "EXECUTE minus(1)"), 0)
        conn.execute("DEALLOCATE ALL")
        expect_equal(sqlstate_of(lambda: conn.execute("EXECUTE minus(1)")), "26000")


@check
def deallocate_all_drops_protocol_statements():
    """DEALLOCATE ALL and DISCARD ALL also drop what Parse made, and the name is free again."""
    with autocommit() as conn:
        for drop in ("DEALLOCATE ALL", "DISCARD ALL"):
            conn.pgconn.prepare(b"gone", b"SELECT 1")
            conn.execute(drop)
            expect_equal(_state(conn.pgconn.exec_prepared(b"gone", [])), "26000", drop)
            expect_equal(conn.pgconn.prepare(b"gone", b"SELECT 2").status, pq.ExecStatus.COMMAND_OK)
            conn.execute("DEALLOCATE gone")


@check
def protocol_statement_executed_by_sql():
    """What Parse prepared can be run by SQL EXECUTE under its own name."""
    with autocommit() as conn:
        conn.pgconn.prepare(b"both_ways", b"SELECT $1::int * 2")
        expect_equal(one(conn, "EXECUTE both_ways(21)"), 42)


@check
def ddl_changes_the_result_of_a_prepared_statement():
    """After DDL a session gets at most one error (0A000), and works again once it prepared anew."""
    table = f"{SCHEMA}.reshaped"
    query = f"SELECT * FROM {table} WHERE a = %s"
    with autocommit(prepare_threshold=0) as before, autocommit() as owner, autocommit(prepare_threshold=0) as after:
        owner.execute(f"CREATE TABLE {table} (a int); INSERT INTO {table} VALUES (1)")
        for columns in range(1, 4):
            for _ in range(3):
                expect_equal(len(before.execute(query, (1,)).fetchone()), columns)
            owner.execute(f"ALTER TABLE {table} ADD COLUMN c{columns} int")
            try:
                before.execute(query, (1,))
            except psycopg.errors.FeatureNotSupported:
                before.execute("DEALLOCATE ALL")
            expect_equal(len(before.execute(query, (1,)).fetchone()), columns + 1, "columns after preparing anew")
            expect_equal(one(before, "SELECT %s::int", (3,)), 3)
        # This session has never run the statement: whoever serves it now must not hand it a stale plan.
        expect_equal(len(after.execute(query, (1,)).fetchone()), 4, "columns in a session that came later")


@check
def ddl_inside_a_transaction():
    """0A000 within a transaction leaves a failed transaction; after ROLLBACK the session works."""
    table = f"{SCHEMA}.reshaped_within"
    with connect(prepare_threshold=0) as conn, autocommit() as owner:
        owner.execute(f"CREATE TABLE {table} (a int); INSERT INTO {table} VALUES (1)")
        conn.execute(f"SELECT * FROM {table}")
        conn.commit()
        owner.execute(f"ALTER TABLE {table} ALTER a TYPE text")
        try:
            value = one(conn, f"SELECT * FROM {table}")
        except psycopg.errors.FeatureNotSupported:
            conn.rollback()
            value = one(conn, f"SELECT * FROM {table}")
        expect_equal(value, "1")
        conn.rollback()


@check
def pipeline():
    """A hundred pipelined statements are answered in order, with prepared ones among them."""
    with autocommit(prepare_threshold=1) as conn, conn.pipeline():
        cursors = [conn.execute("SELECT %s::int", (turn,)) for turn in range(100)]
        expect_equal([cursor.fetchone()[0] for cursor in cursors], list(range(100)))


@check
def pipeline_with_an_error_in_the_middle():
    """An error skips the rest up to its Sync and nothing behind it; the session goes on."""
    with autocommit() as conn:
        raw = conn.pgconn
        raw.enter_pipeline_mode()
        for query in (b"SELECT 1", b"SELECT 1 / 0", b"SELECT 3", None, b"SELECT 4", None):
            raw.send_query_params(query, []) if query else raw.pipeline_sync()
        results = [result.status for result in _all_results(raw, 6)]
        ok, sync = pq.ExecStatus.TUPLES_OK, pq.ExecStatus.PIPELINE_SYNC
        expect_equal(results, [ok, pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_ABORTED, sync, ok, sync])
        raw.exit_pipeline_mode()
        with conn.pipeline():
            expect_equal(one(conn, "SELECT 5"), 5)


@check
def pipeline_of_several_transactions():
    """Several BEGIN … COMMIT in one pipeline all count, and a failed one does not take the others with it."""
    table = f"{SCHEMA}.piped"
    with autocommit() as conn:
        conn.execute(f"CREATE TABLE {table} (a int PRIMARY KEY)")
        with conn.pipeline() as pipeline:
            for key in (1, 2):
                with conn.transaction():
                    conn.execute(f"INSERT INTO {table} VALUES (%s)", (key,))
            pipeline.sync()
        try:
            with conn.pipeline(), conn.transaction():
                conn.execute(f"INSERT INTO {table} VALUES (3)")
                conn.execute(f"INSERT INTO {table} VALUES (1)")
        except psycopg.errors.UniqueViolation:
            pass
        expect_equal([row[0] for row in conn.execute(f"SELECT a FROM {table} ORDER BY a")], [1, 2])


@check
def executemany_is_pipelined():
    """executemany, which psycopg pipelines, stores every row."""
    with autocommit() as conn:
        conn.execute(f"CREATE TABLE {SCHEMA}.many (a int, b text)")
        conn.cursor().executemany(f"INSERT INTO {SCHEMA}.many VALUES (%s, %s)", [(i, str(i)) for i in range(2000)])
        expect_equal(one(conn, f"SELECT count(*) || '/' || sum(a) FROM {SCHEMA}.many"), "2000/1999000")


@check
def server_side_cursors():
    """A cursor is read in pieces within its transaction, forwards and backwards."""
    with connect() as conn, autocommit() as other:
        with conn.cursor("walk", scrollable=True) as cursor:
            cursor.execute("SELECT generate_series(1, 1000)")
            expect_equal([row[0] for row in cursor.fetchmany(3)], [1, 2, 3])
            one(other, "SELECT 1")
            cursor.scroll(-2)
            expect_equal(cursor.fetchone()[0], 2)
            expect_equal(len(cursor.fetchall()), 998)
        conn.rollback()
        expect_equal(sqlstate_of(lambda: conn.execute("FETCH 1 FROM walk")), "34000")


@check
def cursors_with_hold():
    """A WITH HOLD cursor lives on after COMMIT, while other sessions work, until it is closed."""
    with connect() as conn, autocommit() as other:
        cursor = conn.cursor("held", withhold=True)
        cursor.execute("SELECT generate_series(1, 100)")
        conn.commit()
        for first in range(1, 100, 20):
            one(other, "SELECT 1")
            expect_equal(cursor.fetchmany(20)[0][0], first)
            conn.commit()
        cursor.close()
        conn.commit()
        expect_equal(sqlstate_of(lambda: conn.execute("FETCH 1 FROM held")), "34000")


@check
def transactions_and_savepoints():
    """COMMIT keeps, ROLLBACK undoes, a savepoint undoes its part only."""
    table = f"{SCHEMA}.saved"
    with autocommit() as conn:
        conn.execute(f"CREATE TABLE {table} (a int PRIMARY KEY)")
        with conn.transaction():
            conn.execute(f"INSERT INTO {table} VALUES (1)")
            with conn.transaction(force_rollback=True):
                conn.execute(f"INSERT INTO {table} VALUES (2)")
            try:
                with conn.transaction():
                    conn.execute(f"INSERT INTO {table} VALUES (1)")
            except psycopg.errors.UniqueViolation:
                pass
            conn.execute(f"INSERT INTO {table} VALUES (3)")
        with conn.transaction(force_rollback=True):
            conn.execute(f"INSERT INTO {table} VALUES (4)")
        expect_equal([row[0] for row in conn.execute(f"SELECT a FROM {table} ORDER BY a")], [1, 3])


@check
def transaction_characteristics():
    """Isolation level, READ ONLY and DEFERRABLE hold for their transaction and no longer."""
    with connect() as conn:
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        conn.read_only = True
        conn.deferrable = True
        expect_equal(one(conn, "SHOW transaction_isolation"), "serializable")
        expect_equal(sqlstate_of(lambda: conn.execute(f"CREATE TABLE {SCHEMA}.never (a int)")), "25006")
        conn.rollback()
        conn.isolation_level = conn.read_only = conn.deferrable = None
        expect_equal(one(conn, "SHOW transaction_isolation"), "read committed")
        expect_equal(one(conn, "SHOW transaction_read_only"), "off")


@check
def a_snapshot_is_one_transaction():
    """All statements of a REPEATABLE READ transaction see one snapshot, whatever others commit meanwhile."""
    table = f"{SCHEMA}.frozen"
    with connect() as reader, autocommit() as writer:
        writer.execute(f"CREATE TABLE {table} (a int)")
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        for expected in (0, 1):
            expect_equal(one(reader, f"SELECT count(*) FROM {table}"), expected)
            writer.execute(f"INSERT INTO {table} VALUES (1)")
            expect_equal(one(reader, f"SELECT count(*) FROM {table}"), expected)
            reader.commit()


@check
def autocommit_on_and_off():
    """A session may change between autocommit and transactions at any time."""
    table = f"{SCHEMA}.switched"
    with connect() as conn:
        for turn in range(4):
            conn.autocommit = turn % 2 == 0
            conn.execute(f"CREATE TABLE IF NOT EXISTS {table} (a int)")
            conn.execute(f"INSERT INTO {table} VALUES (%s)", (turn,))
            expect_equal(conn.info.transaction_status, pq.TransactionStatus(0 if conn.autocommit else 2))
            conn.rollback()
        expect_equal([row[0] for row in conn.execute(f"SELECT a FROM {table} ORDER BY a")], [0, 2])


@check
def errors_keep_their_fields():
    """SQLSTATE, message, detail, position and constraint arrive as PostgreSQL sent them."""
    states = {
        "SELEC 1": "42601", "SELECT * FROM nowhere_at_all": "42P01", "SELECT 1 / 0": "22012",
        "SELECT 'x'::int": "22P02", "SELECT nothing()": "42883", "ROLLBACK TO SAVEPOINT s": "25P01",
        "SELECT repeat('x', -1)::date": "22007",
    }
    table = f"{SCHEMA}.strict"
    with autocommit() as conn:
        for query, expected in states.items():
            expect_equal(sqlstate_of(lambda: conn.execute(query)), expected, query)
            expect_equal(sqlstate_of(lambda: conn.execute(query, binary=True)), expected, f"extended {query}")
        conn.execute(f"CREATE TABLE {table} (a int CONSTRAINT only_positive CHECK (a > 0), b text UNIQUE)")
        conn.execute(f"INSERT INTO {table} VALUES (1, 'x')")
        try:
            conn.execute(f"INSERT INTO {table} VALUES (2, 'x')")
        except psycopg.errors.UniqueViolation as error:
            expect_equal(error.diag.message_detail, "Key (b)=(x) already exists.")
            expect_equal((error.diag.schema_name, error.diag.table_name), (SCHEMA, "strict"))
        try:
            conn.execute(f"INSERT INTO {table} VALUES (-1, 'y')")
        except psycopg.errors.CheckViolation as error:
            expect_equal(error.diag.constraint_name, "only_positive")


@check
def errors_leave_a_usable_session():
    """After an error in a transaction everything is 25P02 until ROLLBACK; then all is well."""
    with connect() as conn:
        for _ in range(3):
            expect_equal(sqlstate_of(lambda: conn.execute("SELECT 1 / 0")), "22012")
            expect_equal(sqlstate_of(lambda: conn.execute("SELECT 1")), "25P02")
            expect_equal(sqlstate_of(lambda: conn.execute("SELECT %s::int", (1,))), "25P02")
            conn.rollback()
            expect_equal(one(conn, "SELECT 1"), 1)
            conn.rollback()


@check
def commit_of_a_failed_transaction_is_a_rollback():
    """COMMIT after an error is answered with ROLLBACK, and nothing is stored."""
    table = f"{SCHEMA}.failed"
    with autocommit() as conn:
        conn.execute(f"CREATE TABLE {table} (a int)")
        conn.execute("BEGIN")
        conn.execute(f"INSERT INTO {table} VALUES (1)")
        sqlstate_of(lambda: conn.execute("SELECT 1 / 0"))
        expect_equal(conn.execute("COMMIT").statusmessage, "ROLLBACK")
        expect_equal(one(conn, f"SELECT count(*) FROM {table}"), 0)


@check
def multi_statement_and_empty_queries():
    """Several statements in one Query give several results in one transaction; an empty one gives none."""
    table = f"{SCHEMA}.multi"
    with autocommit() as conn:
        cursor = conn.execute(f"CREATE TABLE {table} (a int); INSERT INTO {table} VALUES (1), (2); SELECT sum(a) FROM {table}")
        expect_equal([result.statusmessage for result in cursor.results()], ["CREATE TABLE", "INSERT 0 2", "SELECT 1"])
        expect_equal(sqlstate_of(lambda: conn.execute(f"INSERT INTO {table} VALUES (3); SELECT 1 / 0")), "22012")
        expect_equal(one(conn, f"SELECT count(*) FROM {table}"), 2)
        conn.execute(f"BEGIN; INSERT INTO {table} VALUES (4); COMMIT; BEGIN; INSERT INTO {table} VALUES (5); ROLLBACK")
        expect_equal(one(conn, f"SELECT max(a) FROM {table}"), 4)
        for empty in ("", ";", " -- nothing", "/* nothing */ ;;"):
            expect_equal(conn.execute(empty).pgresult.status, pq.ExecStatus.EMPTY_QUERY)
            expect_equal(conn.execute(empty, binary=True).pgresult.status, pq.ExecStatus.EMPTY_QUERY)


@check
def notices_arrive():
    """RAISE NOTICE reaches the application in order, with its SQLSTATE, and breaks nothing."""
    seen = []
    with autocommit() as conn:
        conn.add_notice_handler(lambda notice: seen.append((notice.severity, notice.message_primary)))
        conn.execute("DO $$ BEGIN FOR i IN 1..3 LOOP RAISE NOTICE 'turn %', i; END LOOP; RAISE WARNING 'end'; END $$")
        expect_equal(seen, [("NOTICE", f"turn {i}") for i in (1, 2, 3)] + [("WARNING", "end")])
        conn.execute("COMMIT")
        expect_equal(seen[-1], ("WARNING", "there is no transaction in progress"))


@check
def rows_of_fifty_megabytes():
    """One value of 50 MB goes through both ways."""
    size = 50_000_000
    with autocommit() as conn:
        value = one(conn, "SELECT decode(repeat('ab', %s), 'hex')", (size,), binary=True)
        expect_equal((len(value), value[:2], value[-2:]), (size, b"\xab\xab", b"\xab\xab"))
        expect_equal(one(conn, "SELECT length(%b) || md5(%b)", (value, b"")), f"{size}d41d8cd98f00b204e9800998ecf8427e")


@check
def client_encoding_latin1():
    """A session's client_encoding is its own, whoever else uses the same backends."""
    with autocommit(client_encoding="latin1") as latin, autocommit(client_encoding="utf8") as utf8:
        if one(utf8, "SHOW server_encoding") != "UTF8":
            raise Skip("the database is not in UTF8")
        for _ in range(5):
            for conn, encoding in ((latin, "LATIN1"), (utf8, "UTF8")):
                expect_equal(conn.info.parameter_status("client_encoding").upper(), encoding)
                expect_equal(conn.execute("SELECT 'grün', octet_length(%s::text)", ("ü",)).fetchone(), ("grün", 2))
        expect_equal(sqlstate_of(lambda: latin.execute("SELECT U&'\\2603'")), "22P05")
        latin.execute("SET client_encoding = 'UTF8'")
        expect_equal(one(latin, "SELECT U&'\\2603'"), "☃")


@check
def protocol_version_is_negotiated():
    """A driver that asks for the newest protocol gets a session that works, cancel included."""
    if psycopg.pq.version() < 180000:
        raise Skip("needs libpq 18")
    with autocommit(max_protocol_version="latest") as conn:
        expect_equal(one(conn, "SELECT %s::int", (1,)), 1)
        conn.cancel()


def _state(result):
    state = result.error_field(pq.DiagnosticField.SQLSTATE)
    return state.decode() if state else "no error"


def _all_results(raw, count):
    results = []
    while len(results) < count:
        result = raw.get_result()
        if result is not None:
            results.append(result)
    return results
