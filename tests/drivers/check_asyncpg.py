#!/usr/bin/env python3
"""Checks with asyncpg (a driver of its own, binary and pipelined). Arguments: parts of names, default all."""

import asyncpg_queries  # noqa: F401  (each module registers its checks)
import asyncpg_sessions  # noqa: F401
from asyncpg_support import create_schema, drop_schema
from support import run_checks

run_checks(before=create_schema, after=drop_schema)
