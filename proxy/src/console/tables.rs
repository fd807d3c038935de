//! The rows of every table that SHOW knows.

use std::time::{Duration, SystemTime};

use super::averages::Averages;
use super::census::{Census, Connection, Tenancy, mode_word};
use super::columns::TOTAL_NAMES;
use super::command::Show;
use super::settings_table;
use super::source;
use super::table::{Cell, Row};
use crate::config::UpstreamAddress;
use crate::pool::databases::Figures;
use crate::server::Shared;

/// The rows of a table, as of now.
pub(super) fn rows(show: Show, shared: &Shared) -> Vec<Row> {
    match show {
        Show::Pools => pools(shared),
        Show::Clients => Census::take(shared).clients().into_iter().map(|row| connection("C", row)).collect(),
        Show::Servers => Census::take(shared).servers().into_iter().map(|row| connection("S", row)).collect(),
        Show::Stats => stats(shared, |totals, averages| [numbers(totals), averaged(averages)].concat()),
        Show::StatsTotals => stats(shared, |totals, _| numbers(totals)),
        Show::StatsAverages => stats(shared, |_, averages| averaged(averages)),
        Show::Totals => totals(shared),
        Show::Databases => databases(shared),
        Show::Users => users(shared),
        Show::Config => settings_table::rows(&shared.config.load()),
        Show::Version => vec![vec![super::version().into()]],
        Show::Lists => lists(shared),
        Show::Lanes => source::lanes(shared).into_iter().map(lane).collect(),
        Show::Breakers => source::breakers(shared).into_iter().map(breaker).collect(),
        Show::Upstreams => source::upstreams(shared).into_iter().map(upstream).collect(),
        Show::Events => source::events(shared).into_iter().map(event).collect(),
    }
}

fn pools(shared: &Shared) -> Vec<Row> {
    let mode = mode_word(shared.config.load().pool.mode);
    let row = |((database, user), row): ((Box<str>, Box<str>), Tenancy)| {
        vec![
            database.into_string().into(),
            user.into_string().into(),
            row.active_sessions.into(),
            row.waiting_sessions.into(),
            // A cancel is forwarded on a connection of its own that belongs to no pool.
            Cell::Null,
            Cell::Null,
            row.active_backends.into(),
            Cell::Null,
            Cell::Null,
            row.idle_backends.into(),
            // Backends are neither checked nor reset between two uses.
            0_usize.into(),
            0_usize.into(),
            row.opening_backends.into(),
            row.longest_wait.as_secs().into(),
            row.longest_wait.subsec_micros().into(),
            if row.console { "statement" } else { mode }.into(),
        ]
    };
    Census::take(shared).tenancies().into_iter().map(row).collect()
}

fn connection(kind: &str, row: Connection) -> Row {
    vec![
        kind.into(),
        row.user.into_string().into(),
        row.database.into_string().into(),
        row.state.into(),
        row.address.into(),
        row.port.into(),
        row.local.map(|local| local.ip().to_canonical().to_string()).into(),
        row.local.map(|local| local.port()).into(),
        time(row.since).into(),
        time(row.request).into(),
        row.wait.as_secs().into(),
        row.wait.subsec_micros().into(),
        0_usize.into(),
        format!("{:#x}", row.id).into(),
        row.link.map(|link| format!("{link:#x}")).unwrap_or_default().into(),
        row.process_id.unwrap_or_default().into(),
        row.tls.into_string().into(),
        row.application_name.into_string().into(),
    ]
}

fn numbers(totals: &Figures) -> [u64; 7] {
    let us = |ms: u64| ms.saturating_mul(1000);
    [
        totals.transactions,
        totals.exchanges,
        totals.received,
        totals.sent,
        us(totals.transaction_ms),
        us(totals.exchange_ms),
        us(totals.wait_ms),
    ]
}

fn averaged(averages: &Averages) -> [u64; 7] {
    [
        averages.transactions,
        averages.exchanges,
        averages.received,
        averages.sent,
        averages.transaction_us,
        averages.exchange_us,
        averages.wait_us,
    ]
}

/// A row of numbers for each database.
fn stats<N: IntoIterator<Item = u64>>(
    shared: &Shared,
    numbers: impl Fn(&Figures, &Averages) -> N,
) -> Vec<Row> {
    let databases = shared.databases.all();
    let row = |database: &std::sync::Arc<crate::pool::Database>| {
        let totals = database.traffic.figures();
        let averages = shared.ties.samples.averages(&database.name, &totals);
        let numbers = numbers(&totals, &averages).into_iter().map(Cell::from);
        std::iter::once(Cell::from(&*database.name)).chain(numbers).collect()
    };
    databases.iter().map(row).collect()
}

fn totals(shared: &Shared) -> Vec<Row> {
    let mut sums = [0_u64; TOTAL_NAMES.len()];
    for database in shared.databases.all() {
        let figures = database.traffic.figures();
        let averages = shared.ties.samples.averages(&database.name, &figures);
        let all = numbers(&figures).into_iter().chain(averaged(&averages));
        sums.iter_mut().zip(all).for_each(|(sum, number)| *sum = sum.saturating_add(number));
    }
    TOTAL_NAMES.iter().zip(sums).map(|(name, sum)| vec![(*name).into(), sum.into()]).collect()
}

fn databases(shared: &Shared) -> Vec<Row> {
    let census = Census::take(shared);
    let config = shared.config.load();
    let address = shared.routes.primary().connector().address.clone();
    let (host, port) = match &address {
        UpstreamAddress::Tcp { host, port } => (host.clone(), Some(*port)),
        UpstreamAddress::Unix(path) => (path.display().to_string(), None),
    };
    let row = |database: &std::sync::Arc<crate::pool::Database>| {
        vec![
            (&*database.name).into(),
            host.clone().into(),
            port.into(),
            (&*database.name).into(),
            Cell::Null,
            config.pool.size.into(),
            config.pool.min_idle.into(),
            0_usize.into(),
            mode_word(config.pool.mode).into(),
            config.pool.max_per_upstream.into(),
            census.backends_of(&database.name).into(),
            database.is_paused().into(),
            database.is_disabled().into(),
        ]
    };
    shared.databases.all().iter().map(row).collect()
}

fn users(shared: &Shared) -> Vec<Row> {
    let mut names = Census::take(shared).users();
    names.extend(shared.config.load().admin.users.iter().map(|user| user.as_str().into()));
    names.into_iter().map(|name| vec![name.into_string().into(), Cell::Null]).collect()
}

fn lists(shared: &Shared) -> Vec<Row> {
    let census = Census::take(shared);
    let (idle, used) = census.backends();
    let sessions = census.session_count();
    let free = shared.config.load().listen.max_sessions.saturating_sub(sessions + census.logins());
    [
        ("databases", shared.databases.all().len()),
        ("users", census.users().len()),
        ("pools", census.tenancies().len()),
        ("free_clients", free),
        ("used_clients", sessions),
        ("login_clients", census.logins()),
        ("free_servers", idle),
        ("used_servers", used),
        // Names are resolved by the system, at each connect.
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ]
    .into_iter()
    .map(|(list, items)| vec![list.into(), items.into()])
    .collect()
}

fn lane(row: source::LaneRow) -> Row {
    vec![
        row.upstream.into(),
        row.lane.into(),
        row.state.into(),
        row.cause.into(),
        row.since.map(time).into(),
        row.in_flight.into(),
        row.limit.into(),
        row.waiting.into(),
        row.oldest.map(micros).into(),
    ]
}

fn breaker(row: source::BreakerRow) -> Row {
    vec![
        row.upstream.into(),
        row.lane.into(),
        row.state.into(),
        row.cause.into(),
        row.since.map(time).into(),
        row.trips.into(),
        row.retry_after.map(micros).into(),
        row.probe.map(micros).into(),
    ]
}

fn upstream(row: source::UpstreamRow) -> Row {
    vec![
        row.upstream.into(),
        row.role.into(),
        row.state.into(),
        row.timeline.into(),
        row.lag.map(micros).into(),
        row.epoch.into(),
        row.backends.into(),
        row.backends_max.into(),
        row.waiting.into(),
    ]
}

fn event(row: source::EventRow) -> Row {
    vec![
        time(row.at).into(),
        row.event.into(),
        row.lane.into(),
        row.upstream.into(),
        row.cause.into(),
        row.before.into(),
        row.after.into(),
    ]
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// PgBouncer's form: `2026-01-02 03:04:05 UTC`.
fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string().replace('T', " ").replace('Z', " UTC")
}
