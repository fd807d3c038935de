# What all shell driver checks share: the target from the environment, `check`, and the report.
# Sourced, never run.

drivers_dir() {
    local root
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
    echo "${TIDEGATE_DRIVERS_DIR:-$root/target/drivers}"
}

# libpq reads these itself, so that psql, pg_dump and pgbench need no connection arguments.
export_libpq_target() {
    export PGHOST=${TIDEGATE_TEST_HOST:-127.0.0.1}
    export PGPORT=${TIDEGATE_TEST_PORT:?the port to test is not set}
    export PGUSER=${TIDEGATE_TEST_USER:-postgres}
    export PGDATABASE=${TIDEGATE_TEST_DATABASE:-postgres}
    export PGCONNECT_TIMEOUT=10 PSQLRC=/dev/null
    if [ -n "${TIDEGATE_TEST_PASSWORD:-}" ]; then export PGPASSWORD=$TIDEGATE_TEST_PASSWORD; fi
}

failed=0
only=("$@")

# Prints its arguments on standard error and fails: `... || because "two rows expected"`.
because() { echo "$*" >&2; return 1; }

# A check calls this (as `skip reason; return`) when it cannot be made here.
skip() { echo "$*" > "$scratch/skipped"; }

wanted() {
    local part
    [ ${#only[@]} -eq 0 ] && return 0
    for part in "${only[@]}"; do case $1 in *"$part"*) return 0 ;; esac; done
    return 1
}

# check FUNCTION: runs it in a subshell of its own with `set -e` and prints the line of the report.
check() {
    local name=$1 status=0
    wanted "$name" || return 0
    rm -f "$scratch/skipped"
    # The subshell must not stand in a condition: bash would ignore `set -e` in it.
    set +e
    (set -euo pipefail; "$name") > "$scratch/out" 2> "$scratch/err"
    status=$?
    if [ $status -ne 0 ]; then
        failed=1
        echo "FAIL $name: $(tail -n 3 "$scratch/err" | tr '\n' ' ')"
    elif [ -f "$scratch/skipped" ]; then
        echo "skip $name: $(cat "$scratch/skipped")"
    else
        echo "ok $name"
    fi
}
