"""psycopg and asyncpg in the admin console: with and without autocommit, prepared, binary. Ends with an error unless
all of it works. The port is in TIDEGATE_TEST_PORT."""

import asyncio
import os

import asyncpg
import psycopg

TARGET = {"host": "127.0.0.1", "port": int(os.environ["TIDEGATE_TEST_PORT"]), "user": "postgres"}


def check_psycopg():
    """A driver that wraps everything in transactions, prepares what comes often, and asks for binary."""
    with psycopg.connect(**TARGET, dbname="pgbouncer") as connection:
        for _ in range(8):
            lists = dict(connection.execute("SHOW LISTS").fetchall())
            assert lists["used_clients"] == 1, lists
        connection.rollback()
        with connection.cursor(binary=True) as cursor:
            rows = cursor.execute("SHOW POOLS", prepare=True).fetchall()
            assert rows[0][0] == "pgbouncer" and rows[0][2] == 1, rows
            rows = cursor.execute("SHOW STATS_TOTALS", prepare=True).fetchall()
            assert all(row[1] >= 0 for row in rows), rows
        connection.commit()
    with psycopg.connect(**TARGET, dbname="tidegate", autocommit=True) as connection:
        try:
            connection.execute("SELECT 1")
            raise AssertionError("the console runs SQL")
        except psycopg.errors.SyntaxError as error:
            assert "SHOW HELP" in error.diag.message_hint, error
        notices = []
        connection.add_notice_handler(lambda notice: notices.append(notice.message_detail))
        connection.execute("SHOW HELP")
        assert "PAUSE" in notices[0], notices
        with connection.pipeline():
            first = connection.execute("SHOW VERSION")
            second = connection.execute("SHOW USERS")
        assert first.fetchone()[0].startswith("tidegate") and second.fetchall()


async def check_asyncpg():
    """A driver that prepares everything, and reads the server's version."""
    connection = await asyncpg.connect(**TARGET, database="pgbouncer")
    for table in ("POOLS", "CLIENTS", "SERVERS", "STATS", "DATABASES", "USERS", "LISTS", "CONFIG", "UPSTREAMS"):
        await connection.fetch(f"SHOW {table}")
    assert (await connection.execute("RELOAD")) == "RELOAD"
    rows = await connection.fetch("SHOW CLIENTS")
    assert rows[0]["port"] > 0 and rows[0]["connect_time"].endswith(" UTC"), rows
    await connection.close()


check_psycopg()
asyncio.run(check_asyncpg())
print("ok")
