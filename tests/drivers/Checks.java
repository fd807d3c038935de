import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Objects;
import java.util.Properties;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** What the Java driver checks share: the target from the environment, the report, and small helpers. */
final class Checks {
    /** A check that is not over by then has lost an answer; the next ones are made nevertheless. */
    private static final long LIMIT_S = 15;

    static final String MODE = environment("TIDEGATE_TEST_MODE", "direct");
    static final int SESSIONS = Integer.parseInt(environment("TIDEGATE_TEST_SESSIONS", "200"));
    static final String SCHEMA = "drv_jdbc_" + MODE + "_" + ProcessHandle.current().pid();

    private final String[] wanted;
    private boolean failed;

    /** @param wanted parts of the names of the checks to make; none means all */
    Checks(String[] wanted) {
        this.wanted = wanted;
    }

    /** The body of a check: it throws when its claim does not hold. */
    interface Body {
        void run() throws Exception;
    }

    /** Makes one check and prints its line. */
    void check(String name, Body body) {
        if (!isWanted(name)) {
            return;
        }
        FutureTask<Void> task = new FutureTask<>(() -> {
            body.run();
            return null;
        });
        Thread thread = new Thread(task, name);
        thread.setDaemon(true);
        thread.start();
        try {
            task.get(LIMIT_S, TimeUnit.SECONDS);
            System.out.println("ok " + name);
        } catch (ExecutionException broken) {
            fail(name, broken.getCause() + place(broken.getCause()));
        } catch (TimeoutException | InterruptedException late) {
            fail(name, "no answer within " + LIMIT_S + " s");
        }
    }

    boolean hasFailed() {
        return failed;
    }

    /** A session; {@code options} are pairs of driver properties. */
    static Connection connect(String... options) throws SQLException {
        return connectTo(environment("TIDEGATE_TEST_DATABASE", "postgres"), options);
    }

    static Connection connectTo(String database, String... options) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", environment("TIDEGATE_TEST_USER", "postgres"));
        properties.setProperty("password", environment("TIDEGATE_TEST_PASSWORD", ""));
        properties.setProperty("connectTimeout", "10");
        for (int i = 0; i < options.length; i += 2) {
            properties.setProperty(options[i], options[i + 1]);
        }
        String host = environment("TIDEGATE_TEST_HOST", "127.0.0.1");
        String port = environment("TIDEGATE_TEST_PORT", "5432");
        return DriverManager.getConnection("jdbc:postgresql://" + host + ":" + port + "/" + database, properties);
    }

    /** Runs one statement without parameters. */
    static void run(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    /** The first column of the first row, as text. */
    static String one(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getString(1);
        }
    }

    /** The SQLSTATE of what must fail in the database. */
    static String sqlstateOf(Body body) throws Exception {
        try {
            body.run();
        } catch (SQLException error) {
            return error.getSQLState();
        }
        return "no error";
    }

    static void expectEqual(Object expected, Object actual, String what) {
        if (!Objects.equals(expected, actual)) {
            throw new AssertionError(what + ": expected " + expected + ", got " + actual);
        }
    }

    private boolean isWanted(String name) {
        for (String part : wanted) {
            if (name.contains(part)) {
                return true;
            }
        }
        return wanted.length == 0;
    }

    private void fail(String name, String reason) {
        failed = true;
        System.out.println("FAIL " + name + ": " + reason.replaceAll("\\s+", " "));
    }

    private static String place(Throwable error) {
        for (StackTraceElement frame : error.getStackTrace()) {
            if ("JdbcCheck.java".equals(frame.getFileName())) {
                return " (JdbcCheck.java:" + frame.getLineNumber() + ")";
            }
        }
        return "";
    }

    private static String environment(String name, String otherwise) {
        String value = System.getenv(name);
        return value == null || value.isEmpty() ? otherwise : value;
    }
}
