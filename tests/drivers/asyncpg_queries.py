"""asyncpg: queries, types, cursors, COPY and errors of one session."""

import datetime
import decimal
import io
import uuid

import asyncpg

from asyncpg_support import SCHEMA, session, sqlstate_of
from support import check, expect_equal


@check
async def simple_and_cached_statements():
    """Simple queries and statements from the driver's cache give the same rows."""
    async with session() as conn:
        expect_equal(await conn.execute("SELECT 1; SELECT 2"), "SELECT 1")
        for turn in range(20):
            expect_equal(await conn.fetchval("SELECT $1::int * 2", turn), turn * 2)
            expect_equal(await conn.fetchval(f"SELECT {turn % 4} + $1::int", turn), turn % 4 + turn)
        expect_equal(len(await conn.fetch("SELECT generate_series(1, 5000)")), 5000)


@check
async def without_a_statement_cache():
    """statement_cache_size=0 uses the unnamed statement, over exchanges and transactions."""
    async with session(statement_cache_size=0) as conn, session(statement_cache_size=0) as other:
        for turn in range(20):
            expect_equal(await conn.fetchval(f"SELECT {turn} + $1::int", turn), 2 * turn)
            expect_equal(await other.fetchval("SELECT $1::text", "other"), "other")


@check
async def a_small_statement_cache():
    """Statements pushed out of a small cache are closed and can be prepared again."""
    async with session(statement_cache_size=3) as conn:
        for turn in range(60):
            expect_equal(await conn.fetchval(f"SELECT {turn % 7} + $1::int", turn), turn % 7 + turn)


@check
async def explicit_prepared_statements():
    """prepare() gives types and rows, however many transactions lie between."""
    async with session() as conn, session() as other:
        statement = await conn.prepare("SELECT $1::int8 AS a, $2::text AS b")
        expect_equal([kind.name for kind in statement.get_parameters()], ["int8", "text"])
        expect_equal([column.name for column in statement.get_attributes()], ["a", "b"])
        for turn in range(10):
            await other.fetchval("SELECT 1")
            expect_equal(tuple(await statement.fetchrow(turn, "x")), (turn, "x"))
        expect_equal(await sqlstate_of(conn.prepare("SELEC 1")), "42601")
        expect_equal(tuple(await statement.fetchrow(1, "y")), (1, "y"))


@check
async def types_round_trip():
    """Values in binary format arrive as they were sent."""
    values = {
        "int2": -5, "int8": 2**62, "numeric": decimal.Decimal("1234567890.0001"), "float8": 0.1, "bool": False,
        "text": "snow ☃", "bytea": bytes(range(256)), "date": datetime.date(1999, 12, 31), "uuid": uuid.UUID(int=7),
        "timestamptz": datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc), "int4[]": [1, None, 3],
        "interval": datetime.timedelta(days=3, seconds=1), "jsonb": '{"a": 1}', "text[]": ["a", None, "ü"],
    }
    async with session() as conn:
        for name, value in values.items():
            expect_equal(tuple(await conn.fetchrow(f"SELECT $1::{name}, NULL::{name}", value)), (value, None), name)


@check
async def type_introspection():
    """Composite types, enums, domains and arrays of them are looked up by the driver and round trip."""
    async with session() as conn:
        await conn.execute(
            f"CREATE TYPE {SCHEMA}.mood AS ENUM ('sad', 'glad'); CREATE DOMAIN {SCHEMA}.small AS int CHECK (VALUE < 10);"
            f"CREATE TYPE {SCHEMA}.pair AS (a int, b {SCHEMA}.mood, c text[])"
        )
        value = (1, "glad", ["x", None])
        expect_equal(tuple(await conn.fetchval(f"SELECT $1::{SCHEMA}.pair", value)), value)
        expect_equal([tuple(item) for item in await conn.fetchval(f"SELECT $1::{SCHEMA}.pair[]", [value, value])], [value, value])
        expect_equal(await conn.fetchval(f"SELECT $1::{SCHEMA}.mood[]", ["sad", "glad"]), ["sad", "glad"])
        expect_equal(await conn.fetchval(f"SELECT $1::{SCHEMA}.small", 9), 9)


@check
async def executemany():
    """executemany pipelines its rows; one bad row undoes them all."""
    async with session() as conn:
        await conn.execute(f"CREATE TABLE {SCHEMA}.many (a int PRIMARY KEY, b text)")
        insert = f"INSERT INTO {SCHEMA}.many VALUES ($1, $2)"
        await conn.executemany(insert, [(i, "x" * 100) for i in range(3000)])
        expect_equal(await conn.fetchval(f"SELECT count(*) FROM {SCHEMA}.many"), 3000)
        rows = [(i, "y") for i in range(9000, 9200)] + [(5, "again")]
        expect_equal(await sqlstate_of(conn.executemany(insert, rows)), "23505")
        expect_equal(await conn.fetchval(f"SELECT count(*) FROM {SCHEMA}.many"), 3000)


@check
async def transactions_and_savepoints():
    """Nested transactions undo their own part; errors outside of a savepoint undo everything."""
    table = f"{SCHEMA}.saved"
    async with session() as conn:
        await conn.execute(f"CREATE TABLE {table} (a int PRIMARY KEY)")
        async with conn.transaction():
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            try:
                async with conn.transaction():
                    await conn.execute(f"INSERT INTO {table} VALUES ($1), ($1)", 2)
            except asyncpg.UniqueViolationError:
                pass
            await conn.execute(f"INSERT INTO {table} VALUES (3)")
        try:
            async with conn.transaction(isolation="serializable"):
                await conn.execute(f"INSERT INTO {table} VALUES (4)")
                await conn.execute("SELECT 1 / 0")
        except asyncpg.DivisionByZeroError:
            pass
        expect_equal([row["a"] for row in await conn.fetch(f"SELECT a FROM {table} ORDER BY a")], [1, 3])


@check
async def read_only_transactions():
    """readonly=True holds for its transaction and not for the next."""
    async with session() as conn:
        async with conn.transaction(readonly=True, isolation="repeatable_read"):
            expect_equal(await conn.fetchval("SHOW transaction_read_only"), "on")
        expect_equal(await conn.fetchval("SHOW transaction_read_only"), "off")


@check
async def portals_with_row_limits():
    """A cursor (a portal executed with a row limit, again and again) gives every row once and can skip."""
    async with session() as conn, session() as other:
        async with conn.transaction():
            got = []
            async for row in conn.cursor("SELECT generate_series(1, $1::int)", 500, prefetch=7):
                got.append(row[0])
                if len(got) % 100 == 0:
                    await other.fetchval("SELECT 1")
            expect_equal(got, list(range(1, 501)))
            cursor = await conn.cursor("SELECT generate_series(1, 100)")
            expect_equal([row[0] for row in await cursor.fetch(3)], [1, 2, 3])
            await cursor.forward(10)
            expect_equal((await cursor.fetchrow())[0], 14)
        expect_equal(await conn.fetchval("SELECT 1"), 1)


@check
async def two_portals_at_once():
    """Two cursors of one transaction are read in turns."""
    async with session() as conn, conn.transaction():
        left = await conn.cursor("SELECT generate_series(1, 100)")
        right = await conn.cursor("SELECT generate_series(1001, 1100)")
        for turn in range(1, 11):
            expect_equal(((await left.fetchrow())[0], (await right.fetchrow())[0]), (turn, 1000 + turn))


@check
async def copy_to_and_from():
    """COPY of records (binary) and of a file (text, CSV) both ways."""
    table = "copied"
    async with session() as conn:
        await conn.execute(f"CREATE TABLE {SCHEMA}.{table} (a int, b text)")
        records = [(i, None if i % 3 == 0 else f"row,{i}") for i in range(5000)]
        await conn.copy_records_to_table(table, schema_name=SCHEMA, records=records)
        target = io.BytesIO()
        expect_equal(await conn.copy_from_table(table, schema_name=SCHEMA, output=target, format="csv"), "COPY 5000")
        target.seek(0)
        expect_equal(await conn.copy_to_table(table, schema_name=SCHEMA, source=target, format="csv"), "COPY 5000")
        expect_equal(await conn.fetchval(f"SELECT count(*) || '/' || count(b) FROM {SCHEMA}.{table}"), "10000/6666")
        target = io.BytesIO()
        await conn.copy_from_query("SELECT repeat('x', $1) FROM generate_series(1, 2000)", 4999, output=target)
        expect_equal(target.tell(), 10_000_000)


@check
async def copy_broken_off():
    """A source that raises sends CopyFail: nothing is stored and the session goes on."""
    async with session() as conn:
        await conn.execute(f"CREATE TABLE {SCHEMA}.broken (a int)")

        async def source():
            yield b"1\n2\n"
            raise KeyError("of the application's own")

        for _ in range(2):
            try:
                await conn.copy_to_table("broken", schema_name=SCHEMA, source=source())
            except KeyError:
                pass
            expect_equal(await conn.fetchval(f"SELECT count(*) FROM {SCHEMA}.broken"), 0)
        expect_equal(await sqlstate_of(conn.copy_to_table("broken", schema_name=SCHEMA, source=io.BytesIO(b"1\nx\n"))), "22P02")
        expect_equal(await conn.fetchval("SELECT 1"), 1)


@check
async def prepared_statement_after_ddl():
    """After DDL the driver prepares anew by itself outside a transaction: no error reaches the application."""
    table = f"{SCHEMA}.reshaped"
    query = f"SELECT * FROM {table} WHERE a = $1"
    async with session() as conn, session() as owner:
        await owner.execute(f"CREATE TABLE {table} (a int); INSERT INTO {table} VALUES (1)")
        for columns in range(1, 5):
            for _ in range(3):
                expect_equal(len(await conn.fetchrow(query, 1)), columns)
            await owner.execute(f"ALTER TABLE {table} ADD COLUMN c{columns} int")
    async with session() as conn, session() as owner:
        expect_equal(len(await conn.fetchrow(query, 1)), 5)
        await owner.execute(f"ALTER TABLE {table} DROP COLUMN c1")
        try:
            async with conn.transaction():
                await conn.fetchrow(query, 1)
        except asyncpg.InvalidCachedStatementError:
            pass
        expect_equal(len(await conn.fetchrow(query, 1)), 4)


@check
async def errors_keep_their_fields():
    """Class, SQLSTATE, detail and constraint arrive as PostgreSQL sent them, and the session goes on."""
    async with session() as conn:
        await conn.execute(f"CREATE TABLE {SCHEMA}.strict (a int CONSTRAINT only_once UNIQUE)")
        await conn.execute(f"INSERT INTO {SCHEMA}.strict VALUES (1)")
        try:
            await conn.execute(f"INSERT INTO {SCHEMA}.strict VALUES ($1)", 1)
        except asyncpg.UniqueViolationError as error:
            expect_equal((error.constraint_name, error.detail), ("only_once", "Key (a)=(1) already exists."))
        else:
            raise AssertionError("a duplicate was accepted")
        for query, state in (("SELECT 1 / 0", "22012"), ("SELECT * FROM nowhere", "42P01"), ("SELECT 'x'::int", "22P02")):
            expect_equal(await sqlstate_of(conn.fetch(query)), state, query)
            expect_equal(await sqlstate_of(conn.execute(query)), state, query)


@check
async def notices_arrive():
    """RAISE NOTICE reaches the listener of its session."""
    seen = []
    async with session() as conn:
        conn.add_log_listener(lambda _, message: seen.append(message.message))
        await conn.execute("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$")
        await conn.fetchval("SELECT 1")
        expect_equal(seen, ["one", "two"])


@check
async def large_values():
    """A parameter and a row of 20 MB go through."""
    value = bytes(1000) * 20_000
    async with session() as conn:
        expect_equal(await conn.fetchval("SELECT $1::bytea", value) == value, True, "20 MB unchanged")
