//! Settings of PgBouncer's without a counterpart, each with the reason.

/// Why a setting of `[pgbouncer]` is left out. `None`: it is not known here.
pub(super) fn reason(key: &str) -> Option<&'static str> {
    let reason = match key {
        "logfile" | "syslog" | "syslog_ident" | "syslog_facility" => {
            "logs go to standard error; a service manager keeps them"
        }
        "pidfile" => "it stays in the foreground; a service manager knows the process",
        "log_connections" | "log_disconnections" | "log_pooler_errors" | "verbose" => {
            "what is logged is chosen by the variable TIDEGATE_LOG"
        }
        "log_stats" | "stats_period" => {
            "figures are at /metrics, and averages of one to two minutes at SHOW STATS"
        }
        "user" => "start it as that user",
        "unix_socket_mode" | "unix_socket_group" => "who may connect is decided by the rights of the folder",
        "client_tls_protocols" | "server_tls_protocols" => "TLS 1.2 and 1.3 are spoken",
        "client_tls_ciphers"
        | "server_tls_ciphers"
        | "client_tls13_ciphers"
        | "server_tls13_ciphers"
        | "client_tls_ecdhcurve"
        | "client_tls_dheparams" => "the ciphers are those that rustls takes for safe",
        "auth_hba_file" | "auth_ident_file" => {
            "there are no rules by address; listen on loopback or a unix socket, and let PostgreSQL's pg_hba.conf decide"
        }
        "auth_ldap_options" => "there is no LDAP",
        "scram_iterations" => "secrets keep the iterations that they were made with",
        "server_reset_query" | "server_reset_query_always" => {
            "session mode cleans with DISCARD ALL; transaction mode gives each session its own settings instead"
        }
        "server_check_query" | "server_check_delay" => {
            "whether a backend is still there is seen without a query, and probes ask the server"
        }
        "server_fast_close" => {
            "RECONNECT replaces backends when their transaction, or in session mode their session, ends"
        }
        "server_round_robin" => "the backend used last goes first, so that surplus ones age out",
        "ignore_startup_parameters" | "track_extra_parameters" => {
            "all startup parameters reach PostgreSQL and follow the session"
        }
        "application_name_add_host" => "the name stays as the application gives it",
        "peer_id" | "so_reuseport" => {
            "one process uses several cores (`workers`) and knows all its cancel keys"
        }
        "reserve_pool_size" | "reserve_pool_timeout" => {
            "a pool has one size; who goes first in a crowd is decided by tidegate.priority"
        }
        "max_user_connections" | "max_db_client_connections" | "max_user_client_connections" => {
            "there are no limits per user or database; see listen.max_sessions, pool.size and pool.max_per_upstream"
        }
        "server_login_retry" => "the pause after a failed connect grows to 5 s by itself",
        "dns_max_ttl" | "dns_nxdomain_ttl" | "dns_zone_check_period" => {
            "names are looked up again by themselves"
        }
        "resolv_conf" => "names are looked up as the system does",
        "autodb_idle_timeout" | "pool_idle_timeout" => "a pool that nobody uses is forgotten",
        "suspend_timeout" => "there is no SUSPEND",
        "cancel_wait_timeout" => "a cancel request takes 500 ms at most",
        "query_wait_notify" | "login_notify_message" => "sessions get no notices of the sidecar's own",
        "pkt_buf" | "sbuf_loopcnt" | "listen_backlog" | "tcp_defer_accept" | "tcp_socket_buffer" => {
            "buffers and sockets are sized by the sidecar"
        }
        "tcp_keepalive" | "tcp_keepcnt" | "tcp_keepidle" | "tcp_keepintvl" | "tcp_user_timeout" => {
            "keepalive is always on, and finds a dead peer within seconds"
        }
        "max_packet_size" => "PostgreSQL's own limits hold",
        "disable_pqexec" => "the simple protocol cannot be switched off",
        "conffile" => "the file is named by --config or TIDEGATE_CONFIG",
        "service_name" | "job_name" => "it is for Windows",
        _ => return None,
    };
    Some(reason)
}

/// Why a parameter of a connect string in `[databases]` is left out.
pub(super) fn of_database(key: &str) -> Option<&'static str> {
    let reason = match key {
        "connect_query" => {
            "no query runs on a new backend; use ALTER ROLE or ALTER DATABASE ... SET in PostgreSQL"
        }
        "client_encoding" | "datestyle" | "timezone" | "application_name" => {
            "it is the session's own; for all sessions use ALTER DATABASE ... SET in PostgreSQL"
        }
        "reserve_pool" | "reserve_pool_size" | "max_db_client_connections" => {
            return self::reason(if key == "max_db_client_connections" { key } else { "reserve_pool_size" });
        }
        "load_balance_hosts" | "target_session_attrs" => {
            "servers are asked for their role; writes go to the primary, and read.from says where reads go"
        }
        "server_lifetime" => "pool.max_lifetime is for all databases",
        _ => return None,
    };
    Some(reason)
}

/// Why a setting of a user in `[users]` is left out.
pub(super) fn of_user(key: &str) -> Option<&'static str> {
    let reason = match key {
        "pool_mode" => "pool.mode is for all users; start a second sidecar for those that need another",
        "pool_size" => "pool.size is for all users",
        "reserve_pool_size" | "max_user_connections" | "max_user_client_connections" => {
            return self::reason(key);
        }
        _ => return None,
    };
    Some(reason)
}
