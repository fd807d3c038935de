"""psycopg: very many sessions, sessions that leave badly, and logins that fail."""

import asyncio
import random
import threading
import time

import psycopg

from psycopg_support import SCHEMA, autocommit, connect, one, parameters, sever, sqlstate_of
from support import MODE, SESSIONS, Skip, check, expect_equal, wait_until

STATEMENTS_EACH = 24
SHARED_TEXTS = 8


async def _open_all(count, **more):
    gate = asyncio.Semaphore(25)

    async def open_one():
        async with gate:
            return await psycopg.AsyncConnection.connect(**parameters(**more))

    return await asyncio.gather(*(open_one() for _ in range(count)))


async def _close_all(conns):
    await asyncio.gather(*(conn.close() for conn in conns))


def _statements_of(number):
    """Shared texts and own texts mixed; psycopg numbers names, so the same name means another text in each session."""
    shared = [(f"SELECT {text} + %s::int", text) for text in range(SHARED_TEXTS)]
    own = [(f"SELECT {1000 * number + text} + %s::int", 1000 * number + text) for text in range(4)]
    dice = random.Random(number)
    return [dice.choice(shared + own) for _ in range(STATEMENTS_EACH)]


@check
async def named_prepared_statements_over_many_sessions():
    """All sessions run shared and own named prepared statements in random order: no error, no row of another's."""
    conns = await _open_all(SESSIONS, autocommit=True, prepare_threshold=0)
    try:

        async def work(number, conn):
            for query, base in _statements_of(number):
                cursor = await conn.execute(query, (7,), binary=number % 2 == 0)
                expect_equal((await cursor.fetchone())[0], base + 7, f"session {number}: {query}")

        await asyncio.gather(*(work(number, conn) for number, conn in enumerate(conns)))
    finally:
        await _close_all(conns)


@check
async def prepared_statements_in_transactions_over_many_sessions():
    """The same inside transactions and pipelines, with a cache so small that statements are closed all the time."""
    conns = await _open_all(SESSIONS, prepare_threshold=0)
    try:

        async def work(number, conn):
            conn.prepared_max = 3
            statements = _statements_of(number)
            for start in range(0, 12, 4):
                async with conn.transaction(force_rollback=start == 4), conn.pipeline():
                    cursors = [(await conn.execute(query, (7,)), base) for query, base in statements[start:start + 4]]
                    for cursor, base in cursors:
                        expect_equal((await cursor.fetchone())[0], base + 7, f"session {number}")

        await asyncio.gather(*(work(number, conn) for number, conn in enumerate(conns)))
    finally:
        await _close_all(conns)


@check
async def one_name_with_another_text_in_every_session():
    """`s` means something else in each session and always means that."""
    conns = await _open_all(min(SESSIONS, 50), autocommit=True)
    try:
        for number, conn in enumerate(conns):
            conn.pgconn.prepare(b"s", b"SELECT %d" % number)
        order = list(enumerate(conns)) * 3
        random.Random(3).shuffle(order)
        for number, conn in order:
            expect_equal(conn.pgconn.exec_prepared(b"s", []).get_value(0, 0), b"%d" % number)
    finally:
        await _close_all(conns)


@check
async def sessions_share_backends():
    """In transaction mode many sessions are served by fewer backends: else the checks above would show nothing."""
    if MODE != "transaction":
        raise Skip("only in transaction mode")
    conns = await _open_all(SESSIONS, autocommit=True)
    try:
        seen = set()
        for conn in conns:
            seen.add((await (await conn.execute("SELECT pg_backend_pid()")).fetchone())[0])
        expect_equal(len(seen) < SESSIONS / 2, True, f"{len(seen)} backends for {SESSIONS} sessions")
    finally:
        await _close_all(conns)


@check
async def concurrent_transactions_lose_nothing():
    """Increments of one counter by many sessions at once all count exactly once."""
    table = f"{SCHEMA}.counter"
    with autocommit() as owner:
        owner.execute(f"CREATE TABLE {table} (k int PRIMARY KEY, n int); INSERT INTO {table} SELECT i, 0 FROM generate_series(0, 9) i")
    conns = await _open_all(min(20, SESSIONS))
    try:

        async def work(number, conn):
            for turn in range(10):
                async with conn.transaction():
                    await conn.execute(f"UPDATE {table} SET n = n + 1 WHERE k = %s", ((number + turn) % 10,))

        await asyncio.gather(*(work(number, conn) for number, conn in enumerate(conns)))
    finally:
        await _close_all(conns)
    with autocommit() as owner:
        expect_equal(one(owner, f"SELECT sum(n) FROM {table}"), 10 * len(conns))


@check
def a_severed_session_frees_its_row_locks():
    """A session whose socket breaks in mid-transaction is rolled back: its row lock is free within 5 s."""
    table = f"{SCHEMA}.locked"
    with autocommit() as owner:
        owner.execute(f"CREATE TABLE {table} (a int); INSERT INTO {table} VALUES (1)")
        for _ in range(3):
            victim = connect()
            victim.execute(f"UPDATE {table} SET a = 2")
            expect_equal(sqlstate_of(lambda: owner.execute(f"SELECT * FROM {table} FOR UPDATE NOWAIT")), "55P03")
            sever(victim)
            wait_until(lambda: sqlstate_of(lambda: owner.execute(f"SELECT * FROM {table} FOR UPDATE NOWAIT")) == "no error", "row lock free")
            expect_equal(one(owner, f"SELECT a FROM {table}"), 1)


@check
def a_session_severed_in_mid_statement_frees_its_locks():
    """A session that breaks while its statement runs is cancelled and rolled back within 5 s."""
    table = f"{SCHEMA}.locked_running"
    with autocommit() as owner:
        owner.execute(f"CREATE TABLE {table} (a int); INSERT INTO {table} VALUES (1)")
        victim = connect()
        if MODE == "direct":
            # PostgreSQL alone looks for a lost client during a statement only when it is told to.
            try:
                victim.execute("SET client_connection_check_interval = '200ms'")
            except psycopg.Error:
                raise Skip("the server cannot watch its clients' sockets") from None
        victim.execute(f"UPDATE {table} SET a = 2")

        def run():
            try:
                victim.execute("SELECT pg_sleep(10)")
            except psycopg.Error:
                pass

        runner = threading.Thread(target=run, daemon=True)
        runner.start()
        time.sleep(0.3)
        sever(victim)
        wait_until(lambda: sqlstate_of(lambda: owner.execute(f"SELECT * FROM {table} FOR UPDATE NOWAIT")) == "no error", "row lock free")


@check
def sessions_that_break_leave_clean_backends():
    """After many sessions broke in transactions, pipelines and COPY, fresh ones find backends as new."""
    for turn in range(12):
        victim = connect()
        if turn % 3 == 0:
            victim.execute("SELECT 1 / 1")
        elif turn % 3 == 1:
            victim.pgconn.exec_(b"COPY (SELECT generate_series(1, 1000000)) TO STDOUT")
        else:
            victim.pgconn.enter_pipeline_mode()
            for _ in range(50):
                victim.pgconn.send_query_params(b"SELECT repeat('x', 10000)", [])
            victim.pgconn.flush()
        sever(victim)
    for turn in range(20):
        with autocommit() as fresh:
            expect_equal(one(fresh, "SELECT %s::int", (turn,)), turn)


@check
def a_terminated_backend_ends_properly():
    """A session whose backend is terminated gets a proper error, and new sessions work at once."""
    with connect() as victim, autocommit() as other:
        pid = one(victim, "SELECT pg_backend_pid()")
        expect_equal(one(other, "SELECT pg_terminate_backend(%s)", (pid,)), True)
        state = sqlstate_of(lambda: victim.execute("SELECT pg_sleep(1)"))
        expect_equal(state == "no error", False, "the statement on a terminated backend ended well")
        expect_equal(one(other, "SELECT 1"), 1)
    with autocommit() as fresh:
        expect_equal(one(fresh, "SELECT 1"), 1)


@check
def unknown_database_is_3d000():
    """A login to a database that does not exist is refused with FATAL 3D000 and its name."""
    try:
        connect(dbname="no_such_database")
    except psycopg.OperationalError as error:
        expect_equal('database "no_such_database" does not exist' in str(error), True, str(error))
        expect_equal("FATAL" in str(error), True, str(error))
        expect_equal(error.sqlstate in ("3D000", None), True, f"SQLSTATE {error.sqlstate}")
    else:
        raise AssertionError("the login was accepted")


@check
def a_bad_startup_option_is_refused():
    """An unknown setting in the startup packet is an error of that session (42704), and of no other."""
    try:
        with autocommit(options="-c no_such_setting=1") as conn:
            one(conn, "SELECT 1")
    except psycopg.Error as error:
        expect_equal("no_such_setting" in str(error), True, str(error))
    else:
        raise AssertionError("the option was accepted")
    with autocommit() as conn:
        expect_equal(one(conn, "SELECT 1"), 1)


@check
def reconnecting_over_and_over():
    """A hundred sessions one after the other, each with one transaction, all work."""
    for turn in range(100):
        with connect() as conn:
            expect_equal(one(conn, "SELECT %s::int", (turn,)), turn)
