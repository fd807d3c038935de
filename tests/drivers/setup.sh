#!/usr/bin/env bash
# Installs the drivers under test into target/drivers: a Python environment with psycopg and asyncpg, and node-postgres.
# What is already there stays; what this machine cannot run is a `skip` line. Versions are pinned beside this file.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/support.sh"
drivers=$(drivers_dir)
mkdir -p "$drivers"

# Two test runs may start at once; the second waits and then finds everything done.
exec 9> "$drivers/setup.lock"
if command -v flock > /dev/null; then flock 9; fi

# up_to_date STAMP FILE...: whether STAMP was written for these very files.
up_to_date() { local stamp=$1; shift; [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(cat "$@" | cksum)" ]; }
remember() { local stamp=$1; shift; cat "$@" | cksum > "$stamp"; }

install_python_drivers() {
    local venv=$drivers/venv
    if up_to_date "$venv/stamp" "$here/requirements.txt" && "$venv/bin/python" -c 'import psycopg, asyncpg' 2> /dev/null; then
        echo "ok python-drivers: already there"
        return
    fi
    rm -rf "$venv"
    if ! command -v python3 > /dev/null || ! python3 -m venv "$venv" > "$drivers/venv.log" 2>&1; then
        rm -rf "$venv"
        echo "skip python-drivers: no python3 with venv"
        return
    fi
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    remember "$venv/stamp" "$here/requirements.txt"
    echo "ok python-drivers: installed"
}

install_node_drivers() {
    local node=$drivers/node
    if ! command -v node > /dev/null || ! command -v npm > /dev/null; then
        echo "skip node-drivers: no node or no npm"
        return
    fi
    if up_to_date "$node/stamp" "$here/package.json" "$here/package-lock.json" && [ -d "$node/node_modules/pg" ]; then
        echo "ok node-drivers: already there"
        return
    fi
    rm -rf "$node"
    mkdir -p "$node"
    cp "$here/package.json" "$here/package-lock.json" "$node/"
    (cd "$node" && npm ci --silent --no-audit --no-fund)
    remember "$node/stamp" "$here/package.json" "$here/package-lock.json"
    echo "ok node-drivers: installed"
}

say_whether_java_can_run() {
    if ! command -v javac > /dev/null || ! command -v java > /dev/null; then
        echo "skip java-driver: no JDK"
    elif [ ! -f "${TIDEGATE_JDBC_JAR:-/usr/share/java/postgresql.jar}" ]; then
        echo "skip java-driver: no postgresql.jar (Debian: libpostgresql-jdbc-java)"
    else
        echo "ok java-driver: installed by the system"
    fi
}

install_python_drivers
install_node_drivers
say_whether_java_can_run
