"""psycopg: cancelling statements, one's own and no one else's."""

import threading
import time

import psycopg

from psycopg_support import autocommit, connect, one, sqlstate_of
from support import advisory_key, check, expect_equal, wait_until


def _cancel_after(conn, delay_s, cancel=None):
    timer = threading.Timer(delay_s, cancel or conn.cancel)
    timer.start()
    return timer


@check
def cancel_from_another_thread():
    """Cancel ends the running statement with 57014 at once, and the next statement works."""
    with autocommit() as conn:
        for cancel in (conn.cancel, conn.cancel_safe):
            started = time.monotonic()
            timer = _cancel_after(conn, 0.2, cancel)
            expect_equal(sqlstate_of(lambda: conn.execute("SELECT pg_sleep(10)")), "57014")
            timer.join()
            expect_equal(time.monotonic() - started < 3, True, "cancelled within 3 s")
            expect_equal(one(conn, "SELECT 1"), 1)


@check
def cancel_within_a_transaction():
    """A cancelled statement fails its transaction; ROLLBACK makes the session usable."""
    with connect() as conn:
        one(conn, "SELECT 1")
        timer = _cancel_after(conn, 0.2)
        expect_equal(sqlstate_of(lambda: conn.execute("SELECT pg_sleep(%s)", (10,))), "57014")
        timer.join()
        expect_equal(sqlstate_of(lambda: conn.execute("SELECT 1")), "25P02")
        conn.rollback()
        expect_equal(one(conn, "SELECT 1"), 1)


@check
def cancel_of_a_pipeline():
    """A cancel in a pipeline ends the statement at work; after the Sync the session works."""
    with autocommit() as conn:
        timer = _cancel_after(conn, 0.2)
        try:
            with conn.pipeline():
                conn.execute("SELECT 1")
                conn.execute("SELECT pg_sleep(10)")
                conn.execute("SELECT 2")
        except (psycopg.errors.QueryCanceled, psycopg.errors.PipelineAborted):
            pass
        timer.join()
        expect_equal(one(conn, "SELECT 3"), 3)


@check
def cancel_of_an_idle_session_does_nothing():
    """Cancels of sessions that run nothing harm neither them nor the sessions that share their backends."""
    with autocommit() as idle, autocommit() as busy:
        stop = threading.Event()
        errors = []

        def work():
            try:
                while not stop.is_set():
                    busy.execute("SELECT pg_sleep(0.005)")
            except psycopg.Error as error:
                errors.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        one(idle, "SELECT 1")
        for _ in range(50):
            idle.cancel()
        stop.set()
        worker.join()
        expect_equal(errors, [])


@check
def a_cancel_hits_its_own_session_only():
    """While one session is cancelled over and over, the statements of eight others all end well."""
    stop = threading.Event()
    errors = []
    done = [0]

    def work(conn):
        try:
            while not stop.is_set():
                conn.execute("SELECT pg_sleep(0.01)")
                done[0] += 1
        except psycopg.Error as error:
            errors.append(error)

    def cancel(conn):
        while not stop.is_set():
            conn.cancel()
            time.sleep(0.004)

    others = [autocommit() for _ in range(8)]
    victim = autocommit()
    threads = [threading.Thread(target=work, args=(conn,)) for conn in others]
    threads.append(threading.Thread(target=cancel, args=(victim,)))
    for thread in threads:
        thread.start()
    cancelled = 0
    try:
        for _ in range(60):
            cancelled += sqlstate_of(lambda: victim.execute("SELECT pg_sleep(0.02)")) == "57014"
        wait_until(lambda: done[0] >= 100 or errors, "100 statements of the others")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for conn in [*others, victim]:
        conn.close()
    expect_equal(errors, [])
    expect_equal(cancelled > 10, True, f"cancels that hit their own session ({cancelled} of 60)")


@check
def a_cancel_of_a_statement_that_waits_for_a_lock():
    """A statement that waits for a lock can be cancelled, and the lock's holder does not notice."""
    key = advisory_key()
    with connect() as holder, connect() as waiter:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (key,))
        timer = _cancel_after(waiter, 0.3)
        expect_equal(sqlstate_of(lambda: waiter.execute("SELECT pg_advisory_xact_lock(%s)", (key,))), "57014")
        timer.join()
        waiter.rollback()
        expect_equal(one(holder, "SELECT 1"), 1)
        holder.commit()
        expect_equal(one(waiter, "SELECT pg_try_advisory_xact_lock(%s)", (key,)), True)
