import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.UUID;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.PGStatement;
import org.postgresql.copy.CopyManager;

/** Checks with pgjdbc. Arguments: parts of the names of the checks to make, default all. */
public final class JdbcCheck {
    private static final String SCHEMA = Checks.SCHEMA;

    private JdbcCheck() { }

    public static void main(String[] wanted) throws Exception {
        Checks checks = new Checks(wanted);
        try (Connection owner = Checks.connect()) {
            Checks.run(owner, "CREATE SCHEMA " + SCHEMA);
        }
        checks.check("prepared_on_first_execution", () -> preparedStatements("prepareThreshold", "1"));
        checks.check("prepared_on_fifth_execution", () -> preparedStatements("prepareThreshold", "5"));
        checks.check("binary_transfer_always", () -> preparedStatements("prepareThreshold", "-1"));
        checks.check("never_prepared", () -> preparedStatements("prepareThreshold", "0"));
        checks.check("simple_query_mode", () -> preparedStatements("preferQueryMode", "simple"));
        checks.check("extended_for_prepared_mode", () -> preparedStatements("preferQueryMode", "extendedForPrepared"));
        checks.check("cache_everything_mode", () -> preparedStatements("preferQueryMode", "extendedCacheEverything"));
        checks.check("a_small_statement_cache", JdbcCheck::smallStatementCache);
        checks.check("types_round_trip", JdbcCheck::typesRoundTrip);
        checks.check("batches", () -> batches("false"));
        checks.check("rewritten_batches", () -> batches("true"));
        checks.check("a_batch_with_an_error", JdbcCheck::batchWithAnError);
        checks.check("fetch_size_cursors", JdbcCheck::fetchSizeCursors);
        checks.check("copy_manager", JdbcCheck::copyManager);
        checks.check("copy_cancelled", JdbcCheck::copyCancelled);
        checks.check("listen_and_notify", JdbcCheck::listenAndNotify);
        checks.check("generated_keys", JdbcCheck::generatedKeys);
        checks.check("query_timeout", JdbcCheck::queryTimeout);
        checks.check("cancel_from_another_thread", JdbcCheck::cancelFromAnotherThread);
        checks.check("transactions_and_savepoints", JdbcCheck::transactionsAndSavepoints);
        checks.check("autosave_always", JdbcCheck::autosaveAlways);
        checks.check("read_only_and_isolation", JdbcCheck::readOnlyAndIsolation);
        checks.check("ddl_changes_the_result_of_a_prepared_statement", JdbcCheck::ddlChangesTheResult);
        checks.check("prepared_statements_over_many_threads", JdbcCheck::preparedOverManyThreads);
        checks.check("application_name_and_settings", JdbcCheck::applicationNameAndSettings);
        checks.check("is_valid", JdbcCheck::isValid);
        checks.check("metadata_queries", JdbcCheck::metadataQueries);
        checks.check("large_values", JdbcCheck::largeValues);
        checks.check("errors_and_warnings", JdbcCheck::errorsAndWarnings);
        checks.check("an_aborted_connection_frees_its_locks", JdbcCheck::abortedConnection);
        checks.check("unknown_database_is_3d000", JdbcCheck::unknownDatabase);
        try (Connection owner = Checks.connect()) {
            Checks.run(owner, "DROP SCHEMA " + SCHEMA + " CASCADE");
        }
        System.out.flush();
        System.exit(checks.hasFailed() ? 1 : 0);
    }

    /** Statements executed often enough to be named on the server give their own rows, whatever the driver's mode. */
    private static void preparedStatements(String property, String value) throws Exception {
        try (Connection connection = Checks.connect(property, value);
                PreparedStatement plus = connection.prepareStatement("SELECT ? + 1");
                PreparedStatement text = connection.prepareStatement("SELECT ?::text || 'x'")) {
            for (int turn = 0; turn < 12; turn++) {
                plus.setInt(1, turn);
                text.setString(1, "t" + turn);
                Checks.expectEqual(Integer.toString(turn + 1), first(plus), "plus");
                Checks.expectEqual("t" + turn + "x", first(text), "text");
                Checks.expectEqual("7", Checks.one(connection, "SELECT 7"), "plain statement");
            }
        }
    }

    /** Statements that leave the driver's cache are closed and can be prepared again. */
    private static void smallStatementCache() throws Exception {
        try (Connection connection = Checks.connect("prepareThreshold", "1", "preparedStatementCacheQueries", "2")) {
            for (int turn = 0; turn < 60; turn++) {
                try (PreparedStatement statement = connection.prepareStatement("SELECT " + turn % 7 + " + ?")) {
                    statement.setInt(1, turn);
                    Checks.expectEqual(Integer.toString(turn % 7 + turn), first(statement), "sum");
                }
            }
        }
    }

    /** Values arrive as they were sent, in text (first executions) and in binary (later ones). */
    private static void typesRoundTrip() throws Exception {
        UUID uuid = new UUID(1, 2);
        try (Connection connection = Checks.connect("prepareThreshold", "3");
                PreparedStatement statement = connection.prepareStatement(
                        "SELECT ?::int8, ?::numeric, ?::bytea, ?::uuid, ?::float8, ?::bool, ?::text[], ?::timestamptz")) {
            for (int turn = 0; turn < 6; turn++) {
                statement.setLong(1, Long.MIN_VALUE);
                statement.setBigDecimal(2, new BigDecimal("12345.678"));
                statement.setBytes(3, new byte[] {0, -1});
                statement.setObject(4, uuid);
                statement.setDouble(5, 0.1);
                statement.setBoolean(6, true);
                statement.setArray(7, connection.createArrayOf("text", new String[] {"a", null, "ü"}));
                statement.setTimestamp(8, new java.sql.Timestamp(86_400_000L));
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    Checks.expectEqual(Long.MIN_VALUE, rows.getLong(1), "int8");
                    Checks.expectEqual(new BigDecimal("12345.678"), rows.getBigDecimal(2), "numeric");
                    Checks.expectEqual(-1, (int) rows.getBytes(3)[1], "bytea");
                    Checks.expectEqual(uuid, rows.getObject(4), "uuid");
                    Checks.expectEqual(0.1, rows.getDouble(5), "float8");
                    Checks.expectEqual("ü", ((String[]) rows.getArray(7).getArray())[2], "text[]");
                    Checks.expectEqual(86_400_000L, rows.getTimestamp(8).getTime(), "timestamptz");
                }
            }
        }
    }

    /** Batches, as one message each and rewritten to multi-row inserts, store every row. */
    private static void batches(String rewrite) throws Exception {
        String table = SCHEMA + ".batch_" + rewrite;
        try (Connection connection = Checks.connect("reWriteBatchedInserts", rewrite)) {
            Checks.run(connection, "CREATE TABLE " + table + " (a int, b text)");
            for (boolean autocommit : new boolean[] {true, false}) {
                connection.setAutoCommit(autocommit);
                try (PreparedStatement insert = connection.prepareStatement("INSERT INTO " + table + " VALUES (?, ?)")) {
                    for (int row = 0; row < 2000; row++) {
                        insert.setInt(1, row);
                        insert.setString(2, "row " + row);
                        insert.addBatch();
                    }
                    Checks.expectEqual(2000, insert.executeBatch().length, "results");
                }
                if (!autocommit) {
                    connection.commit();
                }
            }
            Checks.expectEqual("4000/3998000", Checks.one(connection, "SELECT count(*) || '/' || sum(a) FROM " + table), "rows");
        }
    }

    /** An error in a batch names its row's SQLSTATE; after ROLLBACK nothing is stored and the session works. */
    private static void batchWithAnError() throws Exception {
        String table = SCHEMA + ".batch_error";
        try (Connection connection = Checks.connect(); Statement batch = connection.createStatement()) {
            Checks.run(connection, "CREATE TABLE " + table + " (a int PRIMARY KEY)");
            connection.setAutoCommit(false);
            for (int row : new int[] {1, 2, 1, 3}) {
                batch.addBatch("INSERT INTO " + table + " VALUES (" + row + ")");
            }
            String state = "no error";
            try {
                batch.executeBatch();
            } catch (BatchUpdateException error) {
                state = error.getSQLState();
            }
            Checks.expectEqual("23505", state, "SQLSTATE");
            connection.rollback();
            Checks.expectEqual("0", Checks.one(connection, "SELECT count(*) FROM " + table), "rows");
        }
    }

    /** With a fetch size rows come in pieces from a portal, while other statements of the transaction run in between. */
    private static void fetchSizeCursors() throws Exception {
        try (Connection connection = Checks.connect(); Connection other = Checks.connect()) {
            connection.setAutoCommit(false);
            for (int turn = 0; turn < 7; turn++) {
                try (PreparedStatement statement = connection.prepareStatement("SELECT generate_series(1, ?)")) {
                    statement.setFetchSize(50);
                    statement.setInt(1, 500);
                    int seen = 0;
                    try (ResultSet rows = statement.executeQuery()) {
                        while (rows.next()) {
                            Checks.expectEqual(++seen, rows.getInt(1), "row");
                            if (seen % 120 == 0) {
                                Checks.one(connection, "SELECT 1");
                                Checks.one(other, "SELECT 1");
                            }
                        }
                    }
                    Checks.expectEqual(500, seen, "rows");
                }
                connection.commit();
            }
        }
    }

    /** COPY both ways through the driver's CopyManager. */
    private static void copyManager() throws Exception {
        String table = SCHEMA + ".copied";
        try (Connection connection = Checks.connect()) {
            Checks.run(connection, "CREATE TABLE " + table + " (a int, b text)");
            CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
            StringBuilder lines = new StringBuilder();
            for (int row = 0; row < 50_000; row++) {
                lines.append(row).append("\tline ").append(row).append('\n');
            }
            Checks.expectEqual(50_000L, copy.copyIn("COPY " + table + " FROM STDIN", new StringReader(lines.toString())), "rows in");
            StringWriter back = new StringWriter();
            Checks.expectEqual(50_000L, copy.copyOut("COPY " + table + " TO STDOUT", back), "rows out");
            Checks.expectEqual(lines.toString(), back.toString(), "lines");
        }
    }

    /** cancelCopy (CopyFail) and bad data store nothing and leave a usable session. */
    private static void copyCancelled() throws Exception {
        String table = SCHEMA + ".copy_cancelled";
        try (Connection connection = Checks.connect()) {
            Checks.run(connection, "CREATE TABLE " + table + " (a int)");
            CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
            var in = copy.copyIn("COPY " + table + " FROM STDIN");
            in.writeToCopy("1\n".getBytes(), 0, 2);
            in.cancelCopy();
            Checks.expectEqual("22P02", Checks.sqlstateOf(() -> copy.copyIn("COPY " + table + " FROM STDIN", new StringReader("1\nx\n"))), "bad data");
            Checks.expectEqual("0", Checks.one(connection, "SELECT count(*) FROM " + table), "rows");
        }
    }

    /** Notifications reach a listener that asks for them without running a statement. */
    private static void listenAndNotify() throws Exception {
        try (Connection listener = Checks.connect(); Connection sender = Checks.connect()) {
            Checks.run(listener, "LISTEN " + SCHEMA);
            Checks.run(sender, "NOTIFY " + SCHEMA + ", 'news'");
            PGNotification[] got = listener.unwrap(PGConnection.class).getNotifications(5000);
            Checks.expectEqual(1, got == null ? 0 : got.length, "notifications");
            Checks.expectEqual("news", got[0].getParameter(), "payload");
            Checks.run(listener, "UNLISTEN *");
        }
    }

    /** RETURN_GENERATED_KEYS gives the keys of single and of batched inserts. */
    private static void generatedKeys() throws Exception {
        String table = SCHEMA + ".keyed";
        try (Connection connection = Checks.connect()) {
            Checks.run(connection, "CREATE TABLE " + table + " (id serial PRIMARY KEY, a int)");
            try (PreparedStatement insert = connection.prepareStatement("INSERT INTO " + table + " (a) VALUES (?)", Statement.RETURN_GENERATED_KEYS)) {
                for (int row = 1; row <= 50; row++) {
                    insert.setInt(1, row);
                    insert.addBatch();
                }
                insert.executeBatch();
                int keys = 0;
                try (ResultSet rows = insert.getGeneratedKeys()) {
                    while (rows.next()) {
                        Checks.expectEqual(++keys, rows.getInt(1), "key");
                    }
                }
                Checks.expectEqual(50, keys, "keys");
            }
        }
    }

    /** setQueryTimeout cancels the statement (57014), and the session works on. */
    private static void queryTimeout() throws Exception {
        try (Connection connection = Checks.connect(); Statement statement = connection.createStatement()) {
            statement.setQueryTimeout(1);
            Checks.expectEqual("57014", Checks.sqlstateOf(() -> statement.execute("SELECT pg_sleep(20)")), "SQLSTATE");
            Checks.expectEqual("1", Checks.one(connection, "SELECT 1"), "next statement");
        }
    }

    /** Statement.cancel from another thread ends the statement with 57014. */
    private static void cancelFromAnotherThread() throws Exception {
        try (Connection connection = Checks.connect(); Statement statement = connection.createStatement()) {
            for (int turn = 0; turn < 3; turn++) {
                Thread canceller = new Thread(() -> {
                    try {
                        Thread.sleep(200);
                        statement.cancel();
                    } catch (InterruptedException | SQLException error) {
                        throw new IllegalStateException(error);
                    }
                });
                canceller.start();
                Checks.expectEqual("57014", Checks.sqlstateOf(() -> statement.execute("SELECT pg_sleep(20)")), "SQLSTATE");
                canceller.join();
                Checks.expectEqual("1", Checks.one(connection, "SELECT 1"), "next statement");
            }
        }
    }

    /** COMMIT keeps, ROLLBACK undoes, a savepoint undoes its part; after an error 25P02 until ROLLBACK. */
    private static void transactionsAndSavepoints() throws Exception {
        String table = SCHEMA + ".saved";
        try (Connection connection = Checks.connect("prepareThreshold", "1")) {
            Checks.run(connection, "CREATE TABLE " + table + " (a int PRIMARY KEY)");
            connection.setAutoCommit(false);
            Checks.run(connection, "INSERT INTO " + table + " VALUES (1)");
            Savepoint savepoint = connection.setSavepoint("s");
            Checks.expectEqual("23505", Checks.sqlstateOf(() -> Checks.run(connection, "INSERT INTO " + table + " VALUES (1)")), "duplicate");
            Checks.expectEqual("25P02", Checks.sqlstateOf(() -> Checks.run(connection, "SELECT 1")), "failed transaction");
            connection.rollback(savepoint);
            Checks.run(connection, "INSERT INTO " + table + " VALUES (2)");
            connection.commit();
            Checks.run(connection, "INSERT INTO " + table + " VALUES (3)");
            connection.rollback();
            connection.setAutoCommit(true);
            Checks.expectEqual("2/3", Checks.one(connection, "SELECT count(*) || '/' || sum(a) FROM " + table), "rows");
        }
    }

    /** autosave=always puts a savepoint before every statement: an error leaves the transaction usable. */
    private static void autosaveAlways() throws Exception {
        String table = SCHEMA + ".autosaved";
        try (Connection connection = Checks.connect("autosave", "always", "prepareThreshold", "1")) {
            Checks.run(connection, "CREATE TABLE " + table + " (a int PRIMARY KEY)");
            connection.setAutoCommit(false);
            for (int row = 1; row <= 8; row++) {
                int key = row;
                try (PreparedStatement insert = connection.prepareStatement("INSERT INTO " + table + " VALUES (?)")) {
                    insert.setInt(1, key);
                    insert.execute();
                    Checks.expectEqual("23505", Checks.sqlstateOf(insert::execute), "duplicate");
                }
            }
            connection.commit();
            Checks.expectEqual("8", Checks.one(connection, "SELECT count(*) FROM " + table), "rows");
            connection.commit();
        }
    }

    /** setReadOnly and setTransactionIsolation hold for their session, over transactions, and for no other. */
    private static void readOnlyAndIsolation() throws Exception {
        try (Connection connection = Checks.connect("readOnlyMode", "always"); Connection other = Checks.connect()) {
            connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            connection.setReadOnly(true);
            for (boolean autocommit : new boolean[] {false, true, false}) {
                connection.setAutoCommit(autocommit);
                Checks.expectEqual("read committed", Checks.one(other, "SHOW transaction_isolation"), "isolation elsewhere");
                Checks.expectEqual("serializable", Checks.one(connection, "SHOW transaction_isolation"), "isolation");
                Checks.expectEqual("on", Checks.one(connection, "SHOW transaction_read_only"), "read only");
                if (!autocommit) {
                    connection.commit();
                }
            }
            connection.setReadOnly(false);
            connection.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
            Checks.expectEqual("off", Checks.one(connection, "SHOW transaction_read_only"), "read only after all");
        }
    }

    /** After DDL the driver prepares anew by itself outside a transaction; within one, after ROLLBACK. */
    private static void ddlChangesTheResult() throws Exception {
        String table = SCHEMA + ".reshaped";
        try (Connection connection = Checks.connect("prepareThreshold", "1"); Connection owner = Checks.connect();
                Connection later = Checks.connect("prepareThreshold", "1")) {
            Checks.run(owner, "CREATE TABLE " + table + " (a int); INSERT INTO " + table + " VALUES (1)");
            try (PreparedStatement select = connection.prepareStatement("SELECT * FROM " + table)) {
                for (int columns = 1; columns < 4; columns++) {
                    first(select);
                    Checks.expectEqual(columns, columnsOf(select), "columns");
                    Checks.run(owner, "ALTER TABLE " + table + " ADD COLUMN c" + columns + " int");
                    Checks.expectEqual(columns + 1, columnsOf(select), "columns after DDL");
                }
                connection.setAutoCommit(false);
                Checks.run(owner, "ALTER TABLE " + table + " DROP COLUMN c1");
                String state = Checks.sqlstateOf(() -> columnsOf(select));
                Checks.expectEqual(true, state.equals("0A000") || state.equals("no error"), "SQLSTATE " + state);
                connection.rollback();
                Checks.expectEqual(3, columnsOf(select), "columns after ROLLBACK");
                connection.rollback();
            }
            try (PreparedStatement select = later.prepareStatement("SELECT * FROM " + table)) {
                Checks.expectEqual(3, columnsOf(select), "columns in a session that came later");
            }
        }
    }

    /** A hundred threads, each a session with shared and own named statements in random order: no error, no wrong row. */
    private static void preparedOverManyThreads() throws Exception {
        int count = Math.min(100, Checks.SESSIONS);
        ExecutorService threads = Executors.newFixedThreadPool(count);
        List<Future<?>> all = new ArrayList<>();
        for (int number = 0; number < count; number++) {
            int session = number;
            all.add(threads.submit(() -> {
                workWithPreparedStatements(session);
                return null;
            }));
        }
        threads.shutdown();
        for (Future<?> one : all) {
            one.get();
        }
    }

    private static void workWithPreparedStatements(int session) throws SQLException {
        Random dice = new Random(session);
        try (Connection connection = Checks.connect("prepareThreshold", "1")) {
            for (int turn = 0; turn < 20; turn++) {
                int pick = dice.nextInt(8);
                // Below 4 the text is shared; above it is the session's own, under the driver's same names S_1, S_2, …
                int base = pick < 4 ? pick : session * 10 + pick;
                connection.setAutoCommit(turn % 3 != 0);
                try (PreparedStatement statement = connection.prepareStatement("SELECT " + base + " + ?")) {
                    statement.unwrap(PGStatement.class).setPrepareThreshold(1);
                    statement.setInt(1, turn);
                    Checks.expectEqual(Integer.toString(base + turn), first(statement), "session " + session);
                }
                if (turn % 3 == 0) {
                    connection.commit();
                }
            }
        }
    }

    /** ApplicationName, currentSchema and options of the URL, and setClientInfo and setSchema later, follow the session. */
    private static void applicationNameAndSettings() throws Exception {
        try (Connection connection = Checks.connect("ApplicationName", "jdbc app", "currentSchema", SCHEMA, "options", "-c app.user_id=me");
                Connection other = Checks.connect("ApplicationName", "other app")) {
            for (int turn = 0; turn < 5; turn++) {
                Checks.expectEqual("other app", Checks.one(other, "SHOW application_name"), "application_name elsewhere");
                Checks.expectEqual(turn < 3 ? "jdbc app" : "renamed", Checks.one(connection, "SHOW application_name"), "application_name");
                Checks.expectEqual("me", Checks.one(connection, "SHOW app.user_id"), "app.user_id");
                Checks.expectEqual(turn < 3 ? SCHEMA : "public", connection.getSchema(), "schema");
                if (turn == 2) {
                    connection.setClientInfo("ApplicationName", "renamed");
                    connection.setSchema("public");
                }
            }
        }
    }

    /** isValid, which pools call before they hand a connection out, says yes while it lives and no after. */
    private static void isValid() throws Exception {
        Connection connection = Checks.connect();
        for (int turn = 0; turn < 5; turn++) {
            Checks.expectEqual(true, connection.isValid(2), "valid");
        }
        connection.setAutoCommit(false);
        Checks.sqlstateOf(() -> Checks.run(connection, "SELECT 1 / 0"));
        Checks.expectEqual(true, connection.isValid(2), "valid in a failed transaction");
        connection.close();
        Checks.expectEqual(false, connection.isValid(2), "valid after close");
    }

    /** The driver's catalog queries (tables, columns, keys) work. */
    private static void metadataQueries() throws Exception {
        try (Connection connection = Checks.connect()) {
            Checks.run(connection, "CREATE TABLE " + SCHEMA + ".described (id int PRIMARY KEY, name text)");
            int columns = 0;
            try (ResultSet rows = connection.getMetaData().getColumns(null, SCHEMA, "described", null)) {
                while (rows.next()) {
                    columns++;
                }
            }
            Checks.expectEqual(2, columns, "columns");
            try (ResultSet rows = connection.getMetaData().getPrimaryKeys(null, SCHEMA, "described")) {
                Checks.expectEqual(true, rows.next(), "a primary key");
            }
        }
    }

    /** A parameter and a row of 20 MB go through. */
    private static void largeValues() throws Exception {
        byte[] large = new byte[20_000_000];
        new Random(1).nextBytes(large);
        try (Connection connection = Checks.connect(); PreparedStatement statement = connection.prepareStatement("SELECT ?::bytea")) {
            statement.setBytes(1, large);
            try (ResultSet rows = statement.executeQuery()) {
                rows.next();
                Checks.expectEqual(true, java.util.Arrays.equals(large, rows.getBytes(1)), "20 MB unchanged");
            }
        }
    }

    /** SQLSTATEs are kept, warnings arrive, and the session is usable after each. */
    private static void errorsAndWarnings() throws Exception {
        String[][] states = {{"SELEC 1", "42601"}, {"SELECT * FROM nowhere", "42P01"}, {"SELECT 1 / 0", "22012"}};
        try (Connection connection = Checks.connect(); Statement statement = connection.createStatement()) {
            for (String[] pair : states) {
                Checks.expectEqual(pair[1], Checks.sqlstateOf(() -> Checks.run(connection, pair[0])), pair[0]);
            }
            statement.execute("DO $$ BEGIN RAISE WARNING 'careful'; END $$");
            Checks.expectEqual("careful", statement.getWarnings().getMessage(), "warning");
        }
    }

    /** Connection.abort in mid-transaction drops the socket: the row lock is free within 5 s. */
    private static void abortedConnection() throws Exception {
        String table = SCHEMA + ".locked";
        try (Connection owner = Checks.connect()) {
            Checks.run(owner, "CREATE TABLE " + table + " (a int); INSERT INTO " + table + " VALUES (1)");
            Connection victim = Checks.connect();
            victim.setAutoCommit(false);
            Checks.run(victim, "UPDATE " + table + " SET a = 2");
            victim.abort(Runnable::run);
            long deadline = System.nanoTime() + 5_000_000_000L;
            while (!Checks.sqlstateOf(() -> Checks.one(owner, "SELECT a FROM " + table + " FOR UPDATE NOWAIT")).equals("no error")) {
                Checks.expectEqual(true, System.nanoTime() < deadline, "row lock free within 5 s");
                Thread.sleep(20);
            }
            Checks.expectEqual("1", Checks.one(owner, "SELECT a FROM " + table), "value");
        }
    }

    /** A login to a database that does not exist is refused with 3D000. */
    private static void unknownDatabase() throws Exception {
        Checks.expectEqual("3D000", Checks.sqlstateOf(() -> Checks.connectTo("no_such_database").close()), "SQLSTATE");
    }

    private static String first(PreparedStatement statement) throws SQLException {
        try (ResultSet rows = statement.executeQuery()) {
            rows.next();
            return rows.getString(1);
        }
    }

    private static int columnsOf(PreparedStatement statement) throws SQLException {
        try (ResultSet rows = statement.executeQuery()) {
            return rows.getMetaData().getColumnCount();
        }
    }
}
