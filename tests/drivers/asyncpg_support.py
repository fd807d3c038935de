"""How the asyncpg checks connect."""

import contextlib

import asyncpg

from support import DATABASE, HOST, PASSWORD, PORT, USER, schema_for

SCHEMA = schema_for("asyncpg")


def parameters(**more):
    """Connection parameters of the target, with the given ones on top."""
    return {"host": HOST, "port": PORT, "user": USER, "password": PASSWORD, "database": DATABASE, "timeout": 10} | more


@contextlib.asynccontextmanager
async def session(**more):
    """One session, closed at the end."""
    conn = await asyncpg.connect(**parameters(**more))
    try:
        yield conn
    finally:
        await conn.close(timeout=5)


def pool(size, **more):
    """asyncpg's own pool."""
    return asyncpg.create_pool(min_size=min(size, 5), max_size=size, **parameters(**more))


async def sqlstate_of(awaitable):
    """Awaits what must fail in the database and returns the SQLSTATE."""
    try:
        await awaitable
    except asyncpg.PostgresError as error:
        return error.sqlstate
    return "no error"


async def create_schema():
    """Makes the schema of this run."""
    async with session() as conn:
        await conn.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}")


async def drop_schema():
    """Removes the schema of this run."""
    async with session() as conn:
        await conn.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
