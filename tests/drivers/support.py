"""What all Python driver checks share: the target from the environment, the list of checks, the report."""

import asyncio
import inspect
import itertools
import os
import re
import sys
import threading
import time

HOST = os.environ.get("TIDEGATE_TEST_HOST", "127.0.0.1")
PORT = int(os.environ["TIDEGATE_TEST_PORT"])
USER = os.environ.get("TIDEGATE_TEST_USER", "postgres")
PASSWORD = os.environ.get("TIDEGATE_TEST_PASSWORD") or None
DATABASE = os.environ.get("TIDEGATE_TEST_DATABASE", "postgres")
MODE = os.environ.get("TIDEGATE_TEST_MODE", "direct")
SESSIONS = int(os.environ.get("TIDEGATE_TEST_SESSIONS", "200"))

# A check that is not over by then has lost an answer; the next ones are made nevertheless.
CHECK_LIMIT_S = 15.0

_checks = []
_advisory_numbers = itertools.count()


class Skip(Exception):
    """Raised by a check that cannot be made here; its text is the reason."""


def check(function):
    """Registers a check. Its name is its function's, its claim the first line of its docstring."""
    _checks.append(function)
    return function


def schema_for(driver):
    """A schema of this run's own, so that several modes can be checked at once in one database."""
    return f"drv_{driver}_{MODE}_{os.getpid()}"


def advisory_key():
    """An advisory lock that no other run in this database and no other check of this run uses."""
    return os.getpid() * 1000 + next(_advisory_numbers)


def expect_equal(actual, expected, what="value"):
    """Fails unless the two are equal, naming both."""
    if actual != expected:
        raise AssertionError(f"{what}: expected {_short(expected)}, got {_short(actual)}")


def wait_until(condition, what, limit_s=5.0):
    """Polls until the condition holds; fails when it does not within the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s} s: {what}")
        time.sleep(0.02)


def run_checks(before=None, after=None):
    """Runs every registered check whose name contains one of the arguments; exits 1 when one failed."""
    wanted = sys.argv[1:]
    failed = _attempt("set_up", before) == "FAIL" if before else False
    for function in _checks:
        name = function.__name__
        if not wanted or any(part in name for part in wanted):
            failed |= _attempt(name, function) == "FAIL"
    if after:
        failed |= _attempt("clean_up", after) == "FAIL"
    sys.stdout.flush()
    # Threads of checks that hang must not keep the process alive.
    os._exit(1 if failed else 0)


def _attempt(name, function):
    started = time.monotonic()
    outcome = ["FAIL", f"no answer within {CHECK_LIMIT_S:.0f} s"]

    def body():
        try:
            if inspect.iscoroutinefunction(function):
                asyncio.run(asyncio.wait_for(function(), CHECK_LIMIT_S))
            else:
                function()
            outcome[:] = ["ok", ""]
        except Skip as reason:
            outcome[:] = ["skip", str(reason)]
        except BaseException as error:
            outcome[:] = ["FAIL", f"{type(error).__name__}: {error}{_place(error)}"]

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(CHECK_LIMIT_S + 1)
    verdict, reason = outcome
    if not (verdict == "ok" and name in ("set_up", "clean_up")):
        print(f"{verdict} {name}" + (f": {_short(reason, 400)}" if reason else ""), flush=True)
    if os.environ.get("TIDEGATE_TEST_TIMES"):
        print(f"   {time.monotonic() - started:.2f} s", flush=True)
    return verdict


def _place(error):
    trace, place = error.__traceback__, ""
    while trace:
        file = os.path.basename(trace.tb_frame.f_code.co_filename)
        if re.match(r"(check|psycopg|asyncpg)_\w+\.py$", file):
            place = f" ({file}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place


def _short(value, limit=160):
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + "…"
