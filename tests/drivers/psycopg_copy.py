"""psycopg: COPY both ways, whole, broken off and refused."""

from psycopg_support import SCHEMA, autocommit, connect, one, sqlstate_of
from support import check, expect_equal


@check
def copy_in_text_and_binary():
    """COPY FROM STDIN stores the rows in both formats."""
    with autocommit() as conn:
        conn.execute(f"CREATE TABLE {SCHEMA}.copied (a int8, b text)")
        for options in ("", "(FORMAT BINARY)"):
            with conn.cursor().copy(f"COPY {SCHEMA}.copied FROM STDIN {options}") as copy:
                copy.set_types(["int8", "text"])
                for turn in range(500):
                    copy.write_row((turn, None if turn % 5 == 0 else f"tab\t{turn}\\"))
        expect_equal(one(conn, f"SELECT count(*) || '/' || count(b) || '/' || sum(a) FROM {SCHEMA}.copied"), "1000/800/249500")


@check
def copy_out_text_and_binary():
    """COPY TO STDOUT gives the rows in both formats."""
    with autocommit() as conn:
        for options in ("", "WITH (FORMAT BINARY)"):
            with conn.cursor().copy(f"COPY (SELECT i::int8, 'r' || i FROM generate_series(1, 500) i) TO STDOUT {options}") as copy:
                copy.set_types(["int8", "text"])
                rows = list(copy.rows())
            expect_equal((len(rows), rows[499]), (500, (500, "r500")))


@check
def copy_of_twenty_megabytes():
    """20 MB go in and come out unchanged."""
    line = b"x" * 99 + b"\n"
    with autocommit() as conn:
        conn.execute(f"CREATE UNLOGGED TABLE {SCHEMA}.big (a text)")
        with conn.cursor().copy(f"COPY {SCHEMA}.big FROM STDIN") as copy:
            for _ in range(200):
                copy.write(line * 1000)
        expect_equal(one(conn, f"SELECT count(*) || '/' || sum(length(a)) FROM {SCHEMA}.big"), "200000/19800000")
        with conn.cursor().copy(f"COPY {SCHEMA}.big TO STDOUT") as copy:
            expect_equal(sum(len(piece) for piece in copy), 20_000_000)


@check
def copy_aborted_by_the_application():
    """An exception in the application sends CopyFail: nothing is stored and the session goes on."""
    table = f"{SCHEMA}.aborted"
    with autocommit() as conn:
        conn.execute(f"CREATE TABLE {table} (a int)")
        for _ in range(3):
            try:
                with conn.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                    copy.write("1\n2\n")
                    raise KeyError("of the application's own")
            except KeyError:
                pass
            expect_equal(one(conn, f"SELECT count(*) FROM {table}"), 0)


@check
def copy_refused_by_the_database():
    """Bad data in the middle of a large COPY is 22P02, and the session goes on."""
    table = f"{SCHEMA}.refused"

    def copy_garbage(conn):
        with conn.cursor().copy(f"COPY {table} FROM STDIN") as copy:
            copy.write("1\nnot a number\n")
            for _ in range(100):
                copy.write("2\n" * 10_000)

    with connect() as conn:
        conn.execute(f"CREATE TABLE {table} (a int)")
        conn.commit()
        for _ in range(2):
            expect_equal(sqlstate_of(lambda: copy_garbage(conn)), "22P02")
            conn.rollback()
            expect_equal(one(conn, f"SELECT count(*) FROM {table}"), 0)


@check
def copy_out_left_early():
    """An application that gives up a COPY TO (psycopg cancels it and reads on to its end) keeps a usable session."""
    with autocommit() as conn:
        for _ in range(3):
            try:
                with conn.cursor().copy("COPY (SELECT generate_series(1, 2000000)) TO STDOUT") as copy:
                    copy.read()
                    raise KeyError("of the application's own")
            except KeyError:
                pass
            expect_equal(one(conn, "SELECT 5"), 5)


@check
def copy_out_that_fails_midway():
    """An error after the first CopyData ends the COPY with its SQLSTATE, and the session goes on."""

    def copy(conn):
        with conn.cursor().copy("COPY (SELECT 1 / (9000 - i) FROM generate_series(1, 9999) i) TO STDOUT") as rows:
            for _ in rows:
                pass

    with autocommit() as conn:
        expect_equal(sqlstate_of(lambda: copy(conn)), "22012")
        expect_equal(one(conn, "SELECT 6"), 6)


@check
def copy_within_a_transaction():
    """COPY takes part in its transaction: ROLLBACK undoes it, COMMIT keeps it."""
    table = f"{SCHEMA}.copied_within"
    with connect() as conn:
        conn.execute(f"CREATE TABLE {table} (a int)")
        conn.commit()
        for finish in (conn.rollback, conn.commit):
            with conn.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                copy.write("7\n")
            expect_equal(one(conn, f"SELECT count(*) FROM {table}"), 1)
            finish()
        expect_equal(one(conn, f"SELECT count(*) FROM {table}"), 1)
