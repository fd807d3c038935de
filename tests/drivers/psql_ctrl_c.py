#!/usr/bin/env python3
"""Presses Ctrl-C in an interactive psql (on a terminal of its own) and checks what it says and does next.

Prints nothing and exits 0 when all is well; else exits 1 with the reason on standard error.
"""

import os
import pty
import select
import sys
import time

CANCELLED = "canceling statement due to user request"


def read_until(terminal, wanted, limit_s):
    """What psql printed up to the wanted text; exits when it does not come in time."""
    deadline = time.monotonic() + limit_s
    printed = ""
    while wanted not in printed:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([terminal], [], [], left)[0]:
            sys.exit(f"not within {limit_s} s: {wanted!r}; psql printed {printed[-300:]!r}")
        try:
            printed += os.read(terminal, 65536).decode(errors="replace")
        except OSError:
            sys.exit(f"psql ended; it printed {printed[-300:]!r}")
    return printed


def main():
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PAGER"] = ""
        os.execvp("psql", ["psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-readline"])
    os.write(terminal, b"SELECT 'psql is ' || 'ready';\n")
    read_until(terminal, "psql is ready", 10)
    for turn in range(2):
        os.write(terminal, b"SELECT pg_sleep(60);\n")
        time.sleep(0.4)
        os.write(terminal, b"\x03")
        read_until(terminal, CANCELLED, 2)
        os.write(terminal, b"SELECT 'next ' || %d;\n" % turn)
        read_until(terminal, f"next {turn}", 2)
    os.write(terminal, b"\\q\n")
    os.waitpid(child, 0)


main()
