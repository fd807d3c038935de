"""asyncpg: pools, many tasks, cancellation, LISTEN and what belongs to a session."""

import asyncio
import random

import asyncpg

from asyncpg_support import SCHEMA, parameters, pool, session, sqlstate_of
from support import SESSIONS, advisory_key, check, expect_equal


@check
async def two_hundred_tasks_on_a_pool_of_fifty():
    """Tasks that share a pool, each in its own transactions with cached statements, all get their own rows."""
    async with session() as owner:
        await owner.execute(f"CREATE TABLE {SCHEMA}.tasks (task int, turn int)")

    async with pool(min(50, SESSIONS)) as shared:

        async def work(task):
            dice = random.Random(task)
            for turn in range(4):
                async with shared.acquire() as conn, conn.transaction():
                    number = dice.randrange(12)
                    expect_equal(await conn.fetchval(f"SELECT {number} + $1::int", task), number + task)
                    await conn.execute(f"INSERT INTO {SCHEMA}.tasks VALUES ($1, $2)", task, turn)

        await asyncio.gather(*(work(task) for task in range(200)))
        expect_equal(await shared.fetchval(f"SELECT count(DISTINCT (task, turn)) FROM {SCHEMA}.tasks"), 800)


@check
async def prepared_statements_over_many_sessions():
    """Every session holds explicit prepared statements of shared and of own texts; all give the right rows."""
    gate = asyncio.Semaphore(25)

    async def open_one():
        async with gate:
            return await asyncpg.connect(**parameters())

    conns = await asyncio.gather(*(open_one() for _ in range(SESSIONS)))
    try:

        async def work(number, conn):
            texts = [(f"SELECT {i} + $1::int", i) for i in range(4)] + [(f"SELECT {number * 10 + 5} + $1::int", number * 10 + 5)]
            statements = [(await conn.prepare(text), base) for text, base in texts]
            for statement, base in random.Random(number).choices(statements, k=15):
                expect_equal(await statement.fetchval(7), base + 7, f"session {number}")

        await asyncio.gather(*(work(number, conn) for number, conn in enumerate(conns)))
    finally:
        await asyncio.gather(*(conn.close() for conn in conns))


@check
async def cancelled_by_a_timeout():
    """asyncio.timeout cancels the statement in the database; the next one on the same session works."""
    async with session() as conn:
        pid = await conn.fetchval("SELECT pg_backend_pid()")
        for _ in range(3):
            try:
                await asyncio.wait_for(conn.fetchval("SELECT pg_sleep(30)"), 0.2)
            except (asyncio.TimeoutError, TimeoutError):
                pass
            else:
                raise AssertionError("pg_sleep(30) was over within 0.2 s")
            expect_equal(await asyncio.wait_for(conn.fetchval("SELECT 1"), 3), 1)
        running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(30)%' AND state = 'active' AND pid = $1"
        expect_equal(await conn.fetchval(running, pid), 0, "sleepers left running")


@check
async def command_timeout_in_a_transaction():
    """The driver's command timeout fails the transaction; after its end the session works."""
    async with session(command_timeout=0.3) as conn:
        try:
            async with conn.transaction():
                await conn.execute("SELECT pg_sleep(30)")
        except (asyncio.TimeoutError, TimeoutError):
            pass
        expect_equal(await conn.fetchval("SELECT 1"), 1)


@check
async def cancelled_tasks_disturb_nobody():
    """Tasks on a pool that are cancelled at random moments leave no wrong answer and no error to the others."""
    async with pool(min(20, SESSIONS)) as shared:

        async def patient(task):
            for turn in range(15):
                expect_equal(await shared.fetchval("SELECT $1::int FROM pg_sleep(0.005)", task * 100 + turn), task * 100 + turn)

        async def hasty(task):
            dice = random.Random(task)
            for _ in range(6):
                try:
                    await asyncio.wait_for(shared.fetchval("SELECT pg_sleep(0.05)"), dice.uniform(0.001, 0.06))
                except (asyncio.TimeoutError, TimeoutError):
                    pass

        await asyncio.gather(*(patient(task) for task in range(10)), *(hasty(task) for task in range(10)))


@check
async def listen_and_notify():
    """Notifications arrive at a listener that is idle, with channel and payload; none arrive after it stopped."""
    channel = f"{SCHEMA}_news"
    got = asyncio.Queue()
    async with session() as listener, session() as sender:

        def on_news(_, __, heard_on, payload):
            got.put_nowait((heard_on, payload))

        await listener.add_listener(channel, on_news)
        for turn in range(3):
            await sender.execute("SELECT pg_notify($1, $2)", channel, f"news {turn}")
            expect_equal(await asyncio.wait_for(got.get(), 3), (channel, f"news {turn}"))
        expect_equal(await listener.fetchval("SELECT 1"), 1)
        await listener.remove_listener(channel, on_news)
        await sender.execute("SELECT pg_notify($1, 'unheard')", channel)
        await asyncio.sleep(0.1)
        expect_equal(got.qsize(), 0, "notifications after UNLISTEN")


@check
async def reset_on_release():
    """What a session set is gone when the pool hands it out again: settings, LISTEN, advisory locks."""
    key = advisory_key()
    async with pool(1, server_settings={"application_name": "from the pool"}) as shared, session() as other:
        for _ in range(3):
            async with shared.acquire() as conn:
                expect_equal(await conn.fetchval("SHOW application_name"), "from the pool")
                expect_equal(await conn.fetchval("SELECT coalesce(current_setting('app.user_id', true), '')"), "")
                await conn.execute("SET application_name = 'changed'; SET app.user_id = 'me'; LISTEN nothing")
                await conn.fetchval("SELECT pg_advisory_lock($1::int8)", key)
                expect_equal(await other.fetchval("SELECT pg_try_advisory_lock($1::int8)", key), False)
            expect_equal(await other.fetchval("SELECT pg_try_advisory_lock($1::int8)", key), True, "lock free after release")
            expect_equal(await other.fetchval("SELECT pg_advisory_unlock($1::int8)", key), True)


@check
async def server_settings_at_startup():
    """Startup parameters hold in every transaction of their session and in no other session."""
    given = {"application_name": "async app", "statement_timeout": "12345ms", "search_path": f"{SCHEMA}, public", "app.user_id": "u 1", "TimeZone": "Asia/Tokyo"}
    async with session(server_settings=given) as conn, session() as other:
        for _ in range(5):
            expect_equal(await other.fetchval("SELECT coalesce(current_setting('app.user_id', true), '')"), "")
            for name, value in given.items():
                expect_equal(await conn.fetchval("SELECT current_setting($1)", name), value, name)
        expect_equal(conn.get_settings().TimeZone, "Asia/Tokyo")


@check
async def settings_of_many_sessions():
    """Sessions with their own settings, at work at the same time, see their own only."""

    async def work(number):
        async with session(server_settings={"application_name": f"app {number}", "app.user_id": f"user {number}"}) as conn:
            for turn in range(10):
                if turn == 5:
                    await conn.execute(f"SET app.user_id = 'user {number} changed'")
                expected = (f"app {number}", f"user {number}" + (" changed" if turn >= 5 else ""))
                row = await conn.fetchrow("SELECT current_setting('application_name'), current_setting('app.user_id')")
                expect_equal(tuple(row), expected)

    await asyncio.gather(*(work(number) for number in range(min(30, SESSIONS))))


@check
async def a_terminated_session_frees_its_transaction():
    """terminate() in mid-transaction drops the socket; its row lock is free within 5 s."""
    table = f"{SCHEMA}.locked"
    async with session() as owner:
        await owner.execute(f"CREATE TABLE {table} (a int); INSERT INTO {table} VALUES (1)")
        victim = await asyncpg.connect(**parameters())
        # asyncpg leaves a future behind that nobody awaits; asyncio would complain of it at the end.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        await victim.execute(f"BEGIN; UPDATE {table} SET a = 2")
        victim.terminate()
        for _ in range(100):
            if await sqlstate_of(owner.fetch(f"SELECT a FROM {table} FOR UPDATE NOWAIT")) == "no error":
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("not within 5 s: row lock free")
        expect_equal(await owner.fetchval(f"SELECT a FROM {table}"), 1)


@check
async def unknown_database_is_3d000():
    """A login to a database that does not exist is refused with 3D000."""
    expect_equal(await sqlstate_of(asyncpg.connect(**parameters(database="no_such_database"))), "3D000")
