#!/usr/bin/env bash
# Checks with PostgreSQL's own programs: psql, pg_dump, pg_restore, pgbench. Arguments: parts of names, default all.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/support.sh"
export_libpq_target

if ! command -v psql > /dev/null; then
    echo "skip libpq: no psql"
    exit 0
fi

schema=drv_libpq_${TIDEGATE_TEST_MODE:-direct}_$$
scratch=$(mktemp -d)

sql() { psql --no-align --tuples-only --quiet -v ON_ERROR_STOP=1 "$@"; }

# expect WANTED ACTUAL WHAT
expect() { [ "$1" = "$2" ] || because "$3: expected '$1', got '$2'"; }

clean_up() {
    sql -c "SET client_min_messages = warning; DROP SCHEMA IF EXISTS $schema, ${schema}_copy CASCADE" > /dev/null 2>&1
    rm -rf "$scratch"
}
trap clean_up EXIT

set_up() {
    sql <<SQL
CREATE SCHEMA $schema;
CREATE TABLE $schema.people (id serial PRIMARY KEY, name text NOT NULL, born date DEFAULT '2000-01-01');
INSERT INTO $schema.people (name) SELECT 'person ' || i FROM generate_series(1, 1000) i;
CREATE VIEW $schema.names AS SELECT name FROM $schema.people;
CREATE FUNCTION $schema.twice(a int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT a * 2';
SQL
}

# psql's catalog queries work.
describe_commands() {
    local out
    out=$(psql -X -c "\\d $schema.people")
    case $out in *people_pkey*) ;; *) because "\\d: $out" ;; esac
    out=$(psql -X -c "\\d" -c "\\dt+ $schema.*" -c "\\df $schema.*" -c "\\dv $schema.*" -c "\\l" -c "\\du" -c "\\conninfo")
    case $out in *people*twice*names*) ;; *) because "\\dt, \\df, \\dv: $out" ;; esac
}

# \copy out and in again gives the same rows, also for 100,000 of them.
copy_both_ways() {
    sql -c "CREATE TABLE $schema.copied (a int, b text)"
    sql -c "\\copy (SELECT i, repeat('x', 50) FROM generate_series(1, 100000) i) TO '$scratch/rows.csv' CSV HEADER"
    expect 100001 "$(wc -l < "$scratch/rows.csv")" "lines"
    sql -c "\\copy $schema.copied FROM '$scratch/rows.csv' CSV HEADER"
    expect "100000|5000050000" "$(sql -c "SELECT count(*), sum(a) FROM $schema.copied")" "rows"
    printf '1\tone\nx\ttwo\n' > "$scratch/bad.txt"
    if sql -c "\\copy $schema.copied FROM '$scratch/bad.txt'" 2> /dev/null; then because "bad data was accepted"; fi
    expect 100000 "$(sql -c "SELECT count(*) FROM $schema.copied")" "rows after bad data"
}

# A script with transactions, temp tables, variables, \gexec and \gset runs as one session.
scripts() {
    cat > "$scratch/script.sql" <<SQL
SET application_name = 'the script';
CREATE TEMP TABLE steps (a int);
BEGIN;
INSERT INTO steps VALUES (1);
SAVEPOINT s;
INSERT INTO steps VALUES (2);
ROLLBACK TO s;
COMMIT;
SELECT count(*) AS n FROM steps \\gset
SELECT format('INSERT INTO steps VALUES (%s)', i) FROM generate_series(10, 12) i \\gexec
PREPARE later AS SELECT sum(a) + \$1 FROM steps;
EXECUTE later(100);
SELECT :n, current_setting('application_name');
SQL
    expect "134 1|the script" "$(sql -f "$scratch/script.sql" | tr '\n' ' ' | sed 's/ $//')" "output"
}

# psql -1 keeps everything or nothing.
single_transaction() {
    sql -c "CREATE TABLE $schema.once (a int)"
    if sql -1 -c "INSERT INTO $schema.once VALUES (1)" -c "SELECT 1 / 0" 2> /dev/null; then because "the error was lost"; fi
    expect 0 "$(sql -c "SELECT count(*) FROM $schema.once")" "rows after a failure"
    sql -1 -c "INSERT INTO $schema.once VALUES (1)" -c "INSERT INTO $schema.once VALUES (2)"
    expect 2 "$(sql -c "SELECT count(*) FROM $schema.once")" "rows"
}

# FETCH_COUNT makes psql read through a cursor.
fetch_count() {
    expect 10000 "$(sql -v FETCH_COUNT=100 -c 'SELECT generate_series(1, 10000)' | wc -l)" "rows"
}

# Ctrl-C ends the running statement within 2 s, and the same psql goes on.
ctrl_c() {
    if ! command -v python3 > /dev/null; then skip "no python3 to press the key"; return; fi
    python3 "$here/psql_ctrl_c.py"
}

# \bind of newer psqls uses the extended protocol.
bind_command() {
    if [ "$(psql --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')" -lt 16 ]; then skip "psql is older than 16"; return; fi
    expect 42 "$(printf 'SELECT $1::int + $2::int \\bind 40 2 \\g\n' | sql)" "sum"
}

dumps_are_possible() {
    if ! command -v pg_dump > /dev/null || ! command -v pg_restore > /dev/null; then skip "no pg_dump or pg_restore"; return 1; fi
    if [ "$(pg_dump --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')" -lt "$(($(sql -c 'SHOW server_version_num') / 10000))" ]; then
        skip "pg_dump is older than the server"
        return 1
    fi
}

# A plain dump of schema and data, loaded under another name, gives the same rows and objects.
dump_and_load() {
    dumps_are_possible || return 0
    pg_dump -n "$schema" -f "$scratch/plain.sql"
    sed "s/$schema/${schema}_copy/g" "$scratch/plain.sql" | sql -o /dev/null
    expect "$(sql -c "SELECT count(*), sum(id) FROM $schema.people")" "$(sql -c "SELECT count(*), sum(id) FROM ${schema}_copy.people")" "rows"
    expect 42 "$(sql -c "SELECT ${schema}_copy.twice(21)")" "function"
}

# A parallel dump (several sessions on one exported snapshot) and a parallel restore give the same rows.
parallel_dump_and_restore() {
    dumps_are_possible || return 0
    pg_dump -n "$schema" -Fd -j 2 -f "$scratch/dump"
    sql -c "SET client_min_messages = warning; DROP SCHEMA $schema CASCADE"
    pg_restore -d "$PGDATABASE" -j 2 "$scratch/dump"
    expect "1000|500500" "$(sql -c "SELECT count(*), sum(id) FROM $schema.people")" "rows"
}

# pgbench in all three query modes, read and write, loses no transaction.
pgbench_runs() {
    local mode out
    if ! command -v pgbench > /dev/null; then skip "no pgbench"; return; fi
    # pgbench knows its tables by their plain names; they go into this run's schema.
    export PGOPTIONS="-c search_path=$schema"
    pgbench -i -q -s 2 > "$scratch/init" 2>&1 || because "$(tail -n 1 "$scratch/init")"
    expect 200000 "$(sql -c "SELECT count(*) FROM $schema.pgbench_accounts")" "accounts"
    for mode in simple extended prepared; do
        out=$(pgbench -n -M "$mode" -c 20 -j 2 -T 2 -b tpcb-like@1 -b select-only@3 2>&1) || because "$mode: $(echo "$out" | tail -n 3)"
        case $out in *"aborted"*|*"ERROR"*) because "$mode: $out" ;; esac
        # PostgreSQL 15 and newer say how many transactions failed.
        case $out in *"number of failed transactions: 0 "*) ;; *"number of failed transactions"*) because "$mode: $out" ;; esac
    done
    expect "$(sql -c "SELECT sum(delta) FROM $schema.pgbench_history")" "$(sql -c "SELECT sum(abalance) FROM $schema.pgbench_accounts")" "sum of balances"
}

# pgbench's pipelines (\startpipeline) in prepared mode lose no transaction.
pgbench_pipeline() {
    if ! command -v pgbench > /dev/null; then skip "no pgbench"; return; fi
    printf '\\startpipeline\nBEGIN;\nSELECT 1;\nSELECT 2;\nCOMMIT;\nSELECT 3;\n\\endpipeline\n' > "$scratch/pipeline.sql"
    local mode out
    for mode in extended prepared; do
        out=$(pgbench -n -M "$mode" -c 10 -t 50 -f "$scratch/pipeline.sql" 2>&1) || because "$mode: $(echo "$out" | tail -n 3)"
        case $out in *"500/500"*) ;; *) because "$mode: $out" ;; esac
    done
}

# pgbench -C makes a session for every transaction.
pgbench_reconnecting() {
    if ! command -v pgbench > /dev/null; then skip "no pgbench"; return; fi
    export PGOPTIONS="-c search_path=$schema"
    echo "SELECT 1;" > "$scratch/one.sql"
    local out
    out=$(pgbench -n -C -c 10 -t 20 -f "$scratch/one.sql" 2>&1) || because "$(echo "$out" | tail -n 3)"
    case $out in *"200/200"*) ;; *) because "$out" ;; esac
}

# libpq's connection options reach the session.
connection_options() {
    local shown="SELECT current_setting('application_name'), current_setting('statement_timeout'), current_setting('app.user_id', true)"
    expect "from libpq|4321ms|me" "$(sql "application_name='from libpq' options='-c statement_timeout=4321 -c app.user_id=me'" -c "$shown")" "options"
    expect "LATIN1" "$(sql "client_encoding=LATIN1" -c "SHOW client_encoding")" "client_encoding"
    expect "UTF8" "$(PGCLIENTENCODING=UTF8 sql -c "SHOW client_encoding")" "PGCLIENTENCODING"
    expect "Asia/Tokyo" "$(PGTZ=Asia/Tokyo sql -c "SHOW TimeZone")" "PGTZ"
    expect "SQL, DMY" "$(PGDATESTYLE='SQL, DMY' sql -c "SHOW DateStyle")" "PGDATESTYLE"
    expect "psql" "$(sql -c "SHOW application_name")" "fallback_application_name"
}

# Target session attributes and every way to ask for GSS and TLS, refused or not, lead to a session.
connection_negotiation() {
    local option
    for option in target_session_attrs=read-write target_session_attrs=primary target_session_attrs=any \
        gssencmode=disable gssencmode=prefer sslmode=disable sslmode=allow sslmode=prefer keepalives=0 \
        "sslmode=prefer gssencmode=prefer"; do
        expect 1 "$(sql "$option" -c 'SELECT 1')" "$option"
    done
    expect 1 "$(sql "host=$PGHOST,$PGHOST port=1,$PGPORT target_session_attrs=read-write" -c 'SELECT 1')" "two hosts"
}

# A database that does not exist is refused by name.
unknown_database() {
    local out
    if out=$(PGDATABASE=no_such_database sql -c 'SELECT 1' 2>&1); then because "the login was accepted"; fi
    case $out in *'FATAL'*'"no_such_database" does not exist'*) ;; *) because "$out" ;; esac
}

(set -e; set_up) || { echo "FAIL set_up: no schema to work in"; exit 1; }
for name in describe_commands copy_both_ways scripts single_transaction fetch_count ctrl_c bind_command dump_and_load \
    parallel_dump_and_restore pgbench_runs pgbench_pipeline pgbench_reconnecting connection_options connection_negotiation \
    unknown_database; do
    check "$name"
done
exit $failed
