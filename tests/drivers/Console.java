import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;

/** pgjdbc in the admin console, with its own protocol of choice; ends with an error unless all of it works. */
public final class Console {
    public static void main(String[] arguments) throws SQLException {
        String url = "jdbc:postgresql://127.0.0.1:" + System.getenv("TIDEGATE_TEST_PORT") + "/pgbouncer?user=postgres";
        for (String mode : new String[] {"extended", "simple"}) {
            try (Connection connection = DriverManager.getConnection(url + "&preferQueryMode=" + mode)) {
                show(connection, mode);
            }
        }
        System.out.println("ok");
    }

    private static void show(Connection connection, String mode) throws SQLException {
        // From the fifth run on the statement has a name, and its numbers are binary.
        try (PreparedStatement statement = connection.prepareStatement("SHOW POOLS")) {
            for (int run = 0; run < 8; run++) {
                try (ResultSet rows = statement.executeQuery()) {
                    require(rows.next() && rows.getInt("cl_active") == 1, "one session");
                }
            }
        }
        try (Statement statement = connection.createStatement()) {
            statement.setMaxRows(3);
            int count = 0;
            try (ResultSet rows = statement.executeQuery("SHOW CONFIG")) {
                while (rows.next()) {
                    count++;
                }
            }
            // In the simple protocol there is no such limit.
            require(count == 3 || mode.equals("simple"), "three rows, not " + count);
            try {
                statement.execute("SELECT 1");
                throw new IllegalStateException("the console runs SQL");
            } catch (SQLException error) {
                require(error.getSQLState().equals("42601"), error.getSQLState());
            }
        }
        connection.setAutoCommit(false);
        try (Statement statement = connection.createStatement()) {
            require(!statement.execute("RECONNECT"), "no rows");
        }
        connection.commit();
        require(connection.isValid(1), "still there");
    }

    private static void require(boolean holds, String what) {
        if (!holds) {
            throw new IllegalStateException(what);
        }
    }
}
