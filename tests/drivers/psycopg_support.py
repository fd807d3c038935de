"""How the psycopg checks connect."""

import contextlib
import logging
import socket

import psycopg

from support import DATABASE, HOST, PASSWORD, PORT, USER, schema_for

SCHEMA = schema_for("psycopg")

# psycopg warns of errors that the checks provoke on purpose.
logging.getLogger("psycopg").setLevel(logging.CRITICAL)


def parameters(**more):
    """Connection parameters of the target, with the given ones on top."""
    given = {"host": HOST, "port": PORT, "user": USER, "dbname": DATABASE, "connect_timeout": 10}
    if PASSWORD:
        given["password"] = PASSWORD
    return given | more


def connect(**more):
    """A session; psycopg's default is a transaction around everything (`autocommit=False`)."""
    return psycopg.connect(**parameters(**more))


def autocommit(**more):
    """A session in which every statement is its own transaction."""
    return connect(autocommit=True, **more)


@contextlib.contextmanager
def sessions(count, **more):
    """Several autocommit sessions, closed together."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(autocommit(**more)) for _ in range(count)]


def one(conn, query, args=None, **more):
    """The first column of the first row."""
    return conn.execute(query, args, **more).fetchone()[0]


def sqlstate_of(action):
    """Runs the action, which must fail in the database, and returns the SQLSTATE."""
    try:
        action()
    except psycopg.Error as error:
        return error.sqlstate
    return "no error"


def sever(conn):
    """Ends a session as a crashed application does: the socket goes, no Terminate is sent."""
    with socket.socket(fileno=conn.fileno()) as end:
        end.shutdown(socket.SHUT_RDWR)
        end.detach()


def create_schema():
    """Makes the schema of this run."""
    with autocommit() as conn:
        conn.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        conn.execute(f"CREATE SCHEMA {SCHEMA}")


def drop_schema():
    """Removes the schema of this run."""
    with autocommit() as conn:
        conn.execute("SET client_min_messages = warning")
        conn.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
