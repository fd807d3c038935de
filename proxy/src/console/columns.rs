//! The columns of every table that SHOW knows. Names, types and order of PgBouncer's own tables are those of its console
//! (`src/admin.c` and `src/stats.c` of version 1.18; later versions mostly add columns).

use super::command::Show;
use super::table::Column;
use super::table::Kind::{Int4, Numeric, Text};

const POOLS: &[Column] = &[
    ("database", Text),
    ("user", Text),
    ("cl_active", Int4),
    ("cl_waiting", Int4),
    ("cl_active_cancel_req", Int4),
    ("cl_waiting_cancel_req", Int4),
    ("sv_active", Int4),
    ("sv_active_cancel", Int4),
    ("sv_being_canceled", Int4),
    ("sv_idle", Int4),
    ("sv_used", Int4),
    ("sv_tested", Int4),
    ("sv_login", Int4),
    ("maxwait", Int4),
    ("maxwait_us", Int4),
    ("pool_mode", Text),
];

const CONNECTIONS: &[Column] = &[
    ("type", Text),
    ("user", Text),
    ("database", Text),
    ("state", Text),
    ("addr", Text),
    ("port", Int4),
    ("local_addr", Text),
    ("local_port", Int4),
    ("connect_time", Text),
    ("request_time", Text),
    ("wait", Int4),
    ("wait_us", Int4),
    ("close_needed", Int4),
    ("ptr", Text),
    ("link", Text),
    ("remote_pid", Int4),
    ("tls", Text),
    ("application_name", Text),
];

const STATS: &[Column] = &[
    ("database", Text),
    ("total_xact_count", Numeric),
    ("total_query_count", Numeric),
    ("total_received", Numeric),
    ("total_sent", Numeric),
    ("total_xact_time", Numeric),
    ("total_query_time", Numeric),
    ("total_wait_time", Numeric),
    ("avg_xact_count", Numeric),
    ("avg_query_count", Numeric),
    ("avg_recv", Numeric),
    ("avg_sent", Numeric),
    ("avg_xact_time", Numeric),
    ("avg_query_time", Numeric),
    ("avg_wait_time", Numeric),
];

/// Of both halves of `STATS`.
const STATS_HALF: &[Column] = &[
    ("database", Text),
    ("xact_count", Numeric),
    ("query_count", Numeric),
    ("bytes_received", Numeric),
    ("bytes_sent", Numeric),
    ("xact_time", Numeric),
    ("query_time", Numeric),
    ("wait_time", Numeric),
];

const TOTALS: &[Column] = &[("name", Text), ("value", Numeric)];

/// The rows of `TOTALS`, in the order of the numbers of `STATS`.
pub(super) const TOTAL_NAMES: [&str; 14] = [
    "total_xact_count",
    "total_query_count",
    "total_client_bytes",
    "total_server_bytes",
    "total_xact_time",
    "total_query_time",
    "total_wait_time",
    "avg_xact_count",
    "avg_query_count",
    "avg_client_bytes",
    "avg_server_bytes",
    "avg_xact_time",
    "avg_query_time",
    "avg_wait_time",
];

const DATABASES: &[Column] = &[
    ("name", Text),
    ("host", Text),
    ("port", Int4),
    ("database", Text),
    ("force_user", Text),
    ("pool_size", Int4),
    ("min_pool_size", Int4),
    ("reserve_pool", Int4),
    ("pool_mode", Text),
    ("max_connections", Int4),
    ("current_connections", Int4),
    ("paused", Int4),
    ("disabled", Int4),
];

const USERS: &[Column] = &[("name", Text), ("pool_mode", Text)];
const CONFIG: &[Column] = &[("key", Text), ("value", Text), ("default", Text), ("changeable", Text)];
const VERSION: &[Column] = &[("version", Text)];
const LISTS: &[Column] = &[("list", Text), ("items", Int4)];

const LANES: &[Column] = &[
    ("upstream", Text),
    ("lane", Text),
    ("state", Text),
    ("cause", Text),
    ("since", Text),
    ("in_flight", Int4),
    ("limit", Int4),
    ("waiting", Int4),
    ("oldest_us", Numeric),
];

const BREAKERS: &[Column] = &[
    ("upstream", Text),
    ("lane", Text),
    ("state", Text),
    ("cause", Text),
    ("since", Text),
    ("trips", Numeric),
    ("retry_after_us", Numeric),
    ("probe_us", Numeric),
];

const UPSTREAMS: &[Column] = &[
    ("upstream", Text),
    ("role", Text),
    ("state", Text),
    ("timeline", Numeric),
    ("lag_us", Numeric),
    ("epoch", Numeric),
    ("backends", Int4),
    ("backends_max", Int4),
    ("waiting", Int4),
];

const EVENTS: &[Column] = &[
    ("at", Text),
    ("event", Text),
    ("lane", Text),
    ("upstream", Text),
    ("cause", Text),
    ("before", Text),
    ("after", Text),
];

/// The columns of a table.
pub(super) fn of(show: Show) -> &'static [Column] {
    match show {
        Show::Pools => POOLS,
        Show::Clients | Show::Servers => CONNECTIONS,
        Show::Stats => STATS,
        Show::StatsTotals | Show::StatsAverages => STATS_HALF,
        Show::Totals => TOTALS,
        Show::Databases => DATABASES,
        Show::Users => USERS,
        Show::Config => CONFIG,
        Show::Version => VERSION,
        Show::Lists => LISTS,
        Show::Lanes => LANES,
        Show::Breakers => BREAKERS,
        Show::Upstreams => UPSTREAMS,
        Show::Events => EVENTS,
    }
}
