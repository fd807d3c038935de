#!/usr/bin/env bash
# Compiles and runs the checks with pgjdbc. Arguments: parts of the names of the checks to make, default all.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/support.sh"
jar=${TIDEGATE_JDBC_JAR:-/usr/share/java/postgresql.jar}

if ! command -v javac > /dev/null || ! command -v java > /dev/null; then
    echo "skip jdbc: no JDK"
    exit 0
elif [ ! -f "$jar" ]; then
    echo "skip jdbc: no postgresql.jar (Debian: libpostgresql-jdbc-java)"
    exit 0
fi

# Two modes may be checked at once: each compiles for itself, and the result is moved into its place whole.
classes=$(drivers_dir)/jdbc
if [ ! -f "$classes/JdbcCheck.class" ] || [ "$here/JdbcCheck.java" -nt "$classes/JdbcCheck.class" ] || [ "$here/Checks.java" -nt "$classes/JdbcCheck.class" ]; then
    mkdir -p "$(drivers_dir)"
    fresh=$(mktemp -d "$(drivers_dir)/jdbc.XXXXXX")
    javac -Xlint:all -cp "$jar" -d "$fresh" "$here/Checks.java" "$here/JdbcCheck.java"
    mkdir -p "$classes"
    for class in "$fresh"/*.class; do mv -f "$class" "$classes/"; done
    rmdir "$fresh"
fi
exec java -cp "$classes:$jar" JdbcCheck "$@"
