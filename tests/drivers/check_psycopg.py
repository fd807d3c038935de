#!/usr/bin/env python3
"""Checks with psycopg 3 (libpq underneath). Arguments: parts of the names of the checks to make, default all."""

import psycopg_queries  # noqa: F401  (each module registers its checks)
import psycopg_copy  # noqa: F401
import psycopg_cancel  # noqa: F401
import psycopg_state  # noqa: F401
import psycopg_sessions  # noqa: F401
from psycopg_support import create_schema, drop_schema
from support import run_checks

run_checks(before=create_schema, after=drop_schema)
