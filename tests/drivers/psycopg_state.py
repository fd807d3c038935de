"""psycopg: what belongs to a session and must follow it: settings, temp tables, locks, LISTEN."""

import contextlib
import random
import threading
import time

import psycopg
from psycopg import sql

from psycopg_support import SCHEMA, autocommit, connect, one, sessions, sever, sqlstate_of
from support import SESSIONS, Skip, advisory_key, check, expect_equal, wait_until

ZONES = ["Europe/Berlin", "Asia/Tokyo", "America/New_York", "Australia/Sydney", "UTC"]
SHOW_ALL_FIVE = (
    "SELECT current_setting('application_name'), current_setting('TimeZone'), current_setting('statement_timeout'),"
    " current_setting('search_path'), current_setting('app.user_id', true)"
)


def _own_settings(number):
    return {
        "application_name": f"app {number}",
        "TimeZone": ZONES[number % len(ZONES)],
        "statement_timeout": f"{20_001 + number}ms",
        "search_path": f'"schema {number % 7}", public',
        "app.user_id": f"user '{number}'; \\ ☃",
    }


def _set(conn, name, value, scope=""):
    if name == "search_path":
        conn.execute(f"SET {scope} search_path = {value}")
    else:
        conn.execute(sql.SQL("SET {} {} = {}").format(sql.SQL(scope), sql.SQL(name), value))


def _work_as_its_own_self(conn, number, rounds, errors):
    """One session's life: transactions that look at its settings, change them, and undo some of the changes."""
    mine = _own_settings(number)
    dice = random.Random(number)
    try:
        for name, value in mine.items():
            _set(conn, name, value)
        conn.commit()
        for _ in range(rounds):
            expect_equal(conn.execute(SHOW_ALL_FIVE).fetchone(), tuple(mine.values()), f"settings of session {number}")
            expect_equal(conn.info.parameter_status("TimeZone"), mine["TimeZone"], f"ParameterStatus of session {number}")
            expect_equal(conn.info.parameter_status("application_name"), mine["application_name"])
            fate = dice.choice(["look", "local", "undone", "kept", "failed"])
            if fate != "look":
                changed = f"user {number} {fate} {dice.random()}"
                _set(conn, "app.user_id", changed, scope="LOCAL" if fate == "local" else "")
                _set(conn, "TimeZone", dice.choice(ZONES), scope="LOCAL")
                expect_equal(one(conn, "SHOW app.user_id"), changed)
                if fate == "kept":
                    mine["app.user_id"] = changed
                elif fate == "failed":
                    sqlstate_of(lambda: conn.execute("SELECT 1 / 0"))
            conn.rollback() if fate in ("undone", "failed") else conn.commit()
    except (AssertionError, psycopg.Error) as error:
        errors.append(error)


@check
def thirty_sessions_keep_their_own_settings():
    """Thirty sessions with different settings, working at the same time, each always see their own and no other's."""
    errors = []
    with contextlib.ExitStack() as stack:
        conns = [stack.enter_context(connect()) for _ in range(min(30, SESSIONS))]
        workers = [
            threading.Thread(target=_work_as_its_own_self, args=(conn, number, 25, errors))
            for number, conn in enumerate(conns)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if errors:
        raise errors[0]


@check
def settings_in_shuffled_order():
    """One transaction here, one there: settings follow the session however the order of sessions is shuffled."""
    dice = random.Random(1)
    with sessions(min(30, SESSIONS)) as conns:
        for number, conn in enumerate(conns):
            for name, value in _own_settings(number).items():
                _set(conn, name, value)
        turns = list(enumerate(conns)) * 6
        dice.shuffle(turns)
        for number, conn in turns:
            expect_equal(conn.execute(SHOW_ALL_FIVE).fetchone(), tuple(_own_settings(number).values()))


@check
def set_config_follows_the_session():
    """set_config(…, false), with literals and with parameters, lasts as SET does; with true, as SET LOCAL does."""
    with connect() as conn, sessions(4) as others:
        for turn in range(4):
            conn.execute("SELECT set_config('app.literal', 'a', false), set_config('app.local', 'b', true)")
            conn.execute("SELECT set_config(%s, %s, false)", ("app.bound", f"c{turn}"))
            expect_equal(one(conn, "SELECT current_setting('app.local')"), "b")
            conn.commit()
            for other in others:
                expect_equal(one(other, "SELECT coalesce(current_setting('app.bound', true), '')"), "")
            row = conn.execute("SELECT current_setting('app.literal'), current_setting('app.bound'), current_setting('app.local')")
            expect_equal(row.fetchone(), ("a", f"c{turn}", ""))
            conn.commit()


@check
def reset_and_rollback_of_settings():
    """RESET, RESET ALL, SET … TO DEFAULT, ROLLBACK and ROLLBACK TO give back what was there before."""
    with connect(application_name="given at startup") as conn, autocommit() as other:

        def seen():
            one(other, "SELECT 1")
            return one(conn, "SHOW application_name")

        for undo in ("RESET application_name", "RESET ALL", "SET application_name TO DEFAULT"):
            conn.execute("SET application_name = 'changed'")
            conn.commit()
            expect_equal(seen(), "changed")
            conn.execute(undo)
            conn.commit()
            expect_equal(seen(), "given at startup", undo)
            conn.commit()
        conn.execute("SET application_name = 'outer'")
        conn.execute("SAVEPOINT s")
        conn.execute("SET application_name = 'inner'")
        conn.execute("ROLLBACK TO s")
        conn.commit()
        expect_equal(seen(), "outer")
        expect_equal(conn.info.parameter_status("application_name"), "outer")
        conn.execute("SET application_name = 'undone'")
        conn.rollback()
        expect_equal(seen(), "outer")
        expect_equal(conn.info.parameter_status("application_name"), "outer")


@check
def settings_in_other_spellings():
    """SET TIME ZONE, SET NAMES, SESSION CHARACTERISTICS and a multi-statement SET follow the session too."""
    with autocommit() as conn, sessions(4) as others:
        conn.execute("SET TIME ZONE 'Asia/Tokyo'; SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; /* c */ set -- c\n work_mem to '5MB'")
        conn.execute("SET NAMES 'UTF8'")
        for other in others:
            expect_equal(one(other, "SHOW default_transaction_read_only"), "off")
            expect_equal(conn.execute(
                "SELECT current_setting('TimeZone'), current_setting('transaction_read_only'), current_setting('work_mem')"
            ).fetchone(), ("Asia/Tokyo", "on", "5MB"))


@check
def a_refused_set_changes_nothing():
    """A SET that PostgreSQL refuses leaves the old value, for this session and for whoever comes next."""
    with autocommit() as conn, sessions(4) as others:
        conn.execute("SET TimeZone = 'Asia/Tokyo'")
        expect_equal(sqlstate_of(lambda: conn.execute("SET TimeZone = 'Nowhere/AtAll'")), "22023")
        expect_equal(sqlstate_of(lambda: conn.execute("SET no_such_setting = 1")), "42704")
        expect_equal(sqlstate_of(lambda: conn.execute("SET work_mem = '6MB'; SELECT 1 / 0")), "22012")
        for other in others:
            one(other, "SELECT 1")
            expect_equal(one(conn, "SHOW TimeZone"), "Asia/Tokyo")
            expect_equal(one(conn, "SHOW work_mem") == "6MB", False, "work_mem of a failed multi-statement")


@check
def set_role_never_leaks():
    """SET ROLE follows its session and is never seen by another, nor after it left."""
    with sessions(4) as others:
        user = one(others[0], "SELECT current_user")
        with autocommit() as conn:
            try:
                conn.execute("SET ROLE pg_monitor")
            except psycopg.errors.InsufficientPrivilege:
                raise Skip("the user may not SET ROLE pg_monitor") from None
            for other in others:
                expect_equal(one(other, "SELECT current_user"), user)
                expect_equal(one(conn, "SELECT current_user"), "pg_monitor")
        for _ in range(10):
            with autocommit() as fresh:
                expect_equal(one(fresh, "SELECT current_user"), user)


@check
def startup_options():
    """Settings given in the startup packet hold from the first to the last transaction of their session."""
    given = {
        "options": r"-c statement_timeout=12345ms -c app.user_id=me\ too --work_mem=7MB", "application_name": "at startup",
    }
    with autocommit(**given) as conn, sessions(4) as others:
        for other in others:
            expect_equal(one(other, "SELECT coalesce(current_setting('app.user_id', true), '')"), "")
            expect_equal(conn.execute(
                "SELECT current_setting('statement_timeout'), current_setting('app.user_id'), current_setting('work_mem'),"
                " current_setting('application_name')"
            ).fetchone(), ("12345ms", "me too", "7MB", "at startup"))
        conn.execute("SET statement_timeout = 0")
        conn.execute("RESET statement_timeout")
        expect_equal(one(conn, "SHOW statement_timeout"), "12345ms")


@check
def statement_timeout_of_one_session():
    """statement_timeout ends its own session's statements with 57014 and nobody else's."""
    with autocommit(options="-c statement_timeout=150") as hasty, autocommit() as patient:
        for _ in range(3):
            expect_equal(sqlstate_of(lambda: hasty.execute("SELECT pg_sleep(5)")), "57014")
            patient.execute("SELECT pg_sleep(0.3)")
            expect_equal(one(hasty, "SELECT 1"), 1)


@check
def settings_end_with_their_session():
    """Nothing of a session's settings is seen by sessions that start after it left, politely or not."""
    for leave in (lambda conn: conn.close(), sever):
        conn = autocommit()
        conn.execute("SET app.user_id = 'left behind'; SET TimeZone = 'Asia/Tokyo'; SET search_path = left_behind")
        leave(conn)
        for _ in range(8):
            with autocommit() as fresh:
                expect_equal(one(fresh, "SELECT coalesce(current_setting('app.user_id', true), '')"), "")
                expect_equal(one(fresh, "SHOW TimeZone") == "Asia/Tokyo", False, "TimeZone left behind")
                expect_equal(one(fresh, "SHOW search_path") == "left_behind", False, "search_path left behind")


@check
def discard_all_clears_the_session():
    """DISCARD ALL ends settings, temp tables, cursors, advisory locks and LISTEN of its session, and of no other."""
    key = advisory_key()
    with autocommit() as conn, autocommit() as other:
        other.execute("SET app.user_id = 'stays'")
        conn.execute("SET app.user_id = 'goes'; CREATE TEMP TABLE goes (a int); LISTEN goes")
        conn.execute("SELECT pg_advisory_lock(%s)", (key,))
        conn.execute("DISCARD ALL")
        expect_equal(one(conn, "SELECT coalesce(current_setting('app.user_id', true), '')"), "")
        expect_equal(sqlstate_of(lambda: conn.execute("SELECT * FROM goes")), "42P01")
        expect_equal(one(other, "SELECT pg_try_advisory_lock(%s)", (key,)), True)
        expect_equal(one(other, "SHOW app.user_id"), "stays")
        expect_equal(one(other, "SELECT pg_advisory_unlock(%s)", (key,)), True)
        expect_equal(sqlstate_of(lambda: conn.execute("BEGIN; DISCARD ALL")), "25001")


@check
def listen_and_notify_across_sessions():
    """Notifications reach every idle listener of the channel, in order, until UNLISTEN; a rolled back one is not sent."""
    with autocommit() as first, autocommit() as second, connect() as sender:
        channel = f"{SCHEMA}_news"
        for listener in (first, second):
            listener.execute(f"LISTEN {channel}")
        second.execute(f"UNLISTEN {channel}")
        sender.execute(f"NOTIFY {channel}, 'never sent'")
        sender.rollback()
        for turn in range(5):
            sender.execute("SELECT pg_notify(%s, %s)", (channel, f"news {turn}"))
            sender.commit()
        got = [notice.payload for notice in first.notifies(timeout=5, stop_after=5)]
        expect_equal(got, [f"news {turn}" for turn in range(5)])
        expect_equal(list(second.notifies(timeout=0.2)), [])
        one(first, "SELECT 1")
        sender.execute(f"NOTIFY {channel}, 'once more'")
        sender.commit()
        expect_equal([notice.payload for notice in first.notifies(timeout=5, stop_after=1)], ["once more"])


@check
def listening_ends_with_the_session():
    """A session that comes after a listener left gets none of its notifications."""
    channel = f"{SCHEMA}_gone"
    with autocommit() as listener:
        listener.execute(f"LISTEN {channel}")
    with sessions(4) as fresh:
        for conn in fresh:
            expect_equal(conn.execute("SELECT pg_listening_channels()").fetchall(), [])


@check
def temp_tables_across_transactions():
    """A temp table is there in every later transaction of its session, and only there."""
    with connect() as conn, autocommit() as other:
        conn.execute("CREATE TEMP TABLE mine (a int)")
        conn.execute("CREATE TEMP TABLE emptied (a int) ON COMMIT DELETE ROWS")
        conn.commit()
        for turn in range(5):
            expect_equal(sqlstate_of(lambda: other.execute("SELECT * FROM mine")), "42P01")
            conn.execute("INSERT INTO mine VALUES (%s)", (turn,))
            conn.execute("INSERT INTO emptied VALUES (1)")
            conn.commit()
            expect_equal(one(conn, "SELECT count(*) FROM mine"), turn + 1)
            expect_equal(one(conn, "SELECT count(*) FROM emptied"), 0)
            conn.commit()
    with sessions(4) as fresh:
        for conn in fresh:
            expect_equal(sqlstate_of(lambda: conn.execute("SELECT * FROM mine")), "42P01")


@check
def other_ways_to_make_temp_tables():
    """SELECT INTO TEMP, CREATE TEMP … AS and pg_temp.x make temp tables that stay with their session."""
    ways = ("SELECT 1 AS a INTO TEMP way", "CREATE LOCAL TEMPORARY TABLE way AS SELECT 1 AS a", "CREATE TABLE pg_temp.way AS SELECT 1 AS a")
    with autocommit() as conn, sessions(3) as others:
        for create in ways:
            conn.execute(create)
            for other in others:
                one(other, "SELECT 1")
                expect_equal(one(conn, "SELECT a FROM pg_temp.way"), 1, create)
            conn.execute("DROP TABLE pg_temp.way")


@check
def advisory_locks_across_transactions():
    """A session advisory lock is held across transactions, is released by unlock, and at disconnect however it comes."""
    key = advisory_key()
    with autocommit() as other:

        def free():
            taken = one(other, "SELECT pg_try_advisory_lock(%s)", (key,))
            return taken and one(other, "SELECT pg_advisory_unlock(%s)", (key,))

        for leave in ("unlock", "close", "sever"):
            conn = connect()
            conn.execute("SELECT pg_advisory_lock(%s)", (key,))
            conn.commit()
            for _ in range(3):
                expect_equal(free(), False, "lock free while held")
                one(conn, "SELECT 1")
                conn.commit()
            if leave == "unlock":
                expect_equal(one(conn, "SELECT pg_advisory_unlock(%s)", (key,)), True)
                conn.commit()
            sever(conn) if leave == "sever" else conn.close()
            wait_until(free, f"advisory lock released after {leave}")


@check
def sequences_remember_their_session():
    """currval and lastval are right within the transaction that called nextval."""
    with connect() as conn, sessions(3) as others:
        conn.execute(f"CREATE SEQUENCE {SCHEMA}.numbers")
        conn.commit()
        for _ in range(3):
            value = one(conn, f"SELECT nextval('{SCHEMA}.numbers')")
            for other in others:
                one(other, f"SELECT nextval('{SCHEMA}.numbers')")
            expect_equal(one(conn, f"SELECT currval('{SCHEMA}.numbers')"), value)
            expect_equal(one(conn, "SELECT lastval()"), value)
            conn.commit()


@check
def a_held_transaction_holds_nobody_up():
    """An open transaction keeps its place, and other sessions work meanwhile."""
    with connect() as holder, sessions(10) as others:
        started = time.monotonic()
        one(holder, "SELECT 1")
        for other in others:
            expect_equal(one(other, "SELECT 2"), 2)
        expect_equal(time.monotonic() - started < 3, True, "ten statements beside an open transaction within 3 s")
