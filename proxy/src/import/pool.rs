//! Sizes and times.

use std::time::Duration;

use super::Draft;
use super::databases::{Databases, Served};
use super::source::Taken;
use super::target::{duration, quoted};
use crate::config::Config;

/// PgBouncer's, and ours.
const SIZE: usize = 20;

/// `MAX_BACKENDS` of PostgreSQL.
const BACKENDS_MAX: usize = 262_143;

/// There is no "never" for these; nobody runs a backend for longer.
const NEVER: &str = "365days";

/// What every session has, as far as waits go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    /// For a backend.
    pub(super) queue: Duration,
    /// The shorter bound of reads and writes.
    pub(super) statement: Duration,
}

impl Draft {
    pub(super) fn pool(&mut self, databases: &Databases) {
        self.pool_mode(databases);
        let limit = self.source.pgbouncer.number("max_db_connections", &mut self.problems);
        let size = self.pool_size(databases, limit.as_ref());
        self.min_idle(databases, size);
        self.per_upstream(databases, size, limit.as_ref());
        self.backend_times();
        if let Some(statements) = self.source.pgbouncer.number("max_prepared_statements", &mut self.problems)
        {
            if statements.value == 0 {
                let why =
                    "prepared statements always work; pool.prepared_statements says how many a backend keeps";
                self.target.left(&statements.key, &statements.place, why);
            } else {
                let count = statements.value.min(1_000_000);
                self.target.set("pool.prepared_statements", count.to_string(), statements.from());
            }
        }
    }

    fn pool_mode(&mut self, databases: &Databases) {
        let general = self.source.pgbouncer.text("pool_mode");
        let modes: Vec<&Taken<String>> =
            databases.served.iter().filter_map(|one| one.pool_mode.as_ref()).chain(&general).collect();
        for mode in &modes {
            if !matches!(&*mode.value, "session" | "transaction" | "statement") {
                let reason = format!("PgBouncer knows no mode \"{}\"", mode.value);
                let advice = "choose session, transaction or statement";
                self.problems.push(mode.place.problem("pool_mode", reason, advice));
            }
        }
        let of = |served: &Served| {
            let word = served.pool_mode.as_ref().or(general.as_ref()).map_or("session", |mode| &*mode.value);
            if word == "session" { "session" } else { "transaction" }
        };
        let general_word = general.as_ref().map_or("session", |mode| &*mode.value);
        let general_word = if general_word == "session" { "session" } else { "transaction" };
        let words: std::collections::BTreeSet<&str> = databases.served.iter().map(of).collect();
        let word = match words.len() {
            0 => general_word,
            1 => words.first().copied().unwrap_or(general_word),
            // What works in transaction mode works in session mode, too.
            _ => "session",
        };
        let from = match modes.as_slice() {
            [] => "PgBouncer's default for pool_mode; look whether \"transaction\" will do".to_owned(),
            modes => modes.iter().map(|mode| mode.from()).collect::<Vec<_>>().join(", "),
        };
        if words.len() > 1 {
            let text = "pool_mode differs between databases; there is one pool.mode here, and session is the safe one. \
                        Transaction mode keeps more of a session's state here than there: try it.";
            self.target.attention(text);
        }
        if modes.iter().any(|mode| mode.value == "statement") {
            let text = "pool_mode = statement: transactions are allowed here, it is transaction mode.";
            self.target.attention(text);
        }
        self.target.set("pool.mode", quoted(word), from);
    }

    fn pool_size(&mut self, databases: &Databases, limit: Option<&Taken<usize>>) -> usize {
        let general = self.source.pgbouncer.number("default_pool_size", &mut self.problems);
        let default = general.as_ref().map_or(SIZE, |size| size.value);
        let of = |served: &Served| {
            let size = served.pool_size.as_ref().map_or(default, |size| size.value);
            let limit = served.max_connections.as_ref().or(limit).map_or(0, |limit| limit.value);
            if limit == 0 { size } else { size.min(limit) }
        };
        let sizes: Vec<usize> = databases.served.iter().map(of).collect();
        let size = sizes.iter().copied().max().unwrap_or(default).clamp(1, BACKENDS_MAX);
        let mut from: Vec<String> =
            databases.served.iter().filter_map(|served| served.pool_size.as_ref()).map(Taken::from).collect();
        from.extend(general.as_ref().map(Taken::from));
        if sizes.iter().any(|other| *other != size) {
            let named: Vec<String> = databases
                .served
                .iter()
                .zip(&sizes)
                .map(|(served, size)| format!("{} {size}", served.name))
                .collect();
            let list = named.join(", ");
            self.target.attention(format!(
                "Pools differ in size ({list}); pool.size is one for all, and the largest was taken."
            ));
        }
        if !from.is_empty() || size != SIZE {
            from.extend(limit.filter(|_| from.is_empty()).map(Taken::from));
            self.target.set("pool.size", size.to_string(), from.join(", "));
        }
        size
    }

    fn min_idle(&mut self, databases: &Databases, size: usize) {
        let general = self.source.pgbouncer.number("min_pool_size", &mut self.problems);
        let all = databases.served.iter().filter_map(|served| served.min_pool_size.as_ref()).chain(&general);
        let all: Vec<&Taken<usize>> = all.collect();
        let Some(most) = all.iter().map(|min| min.value).max() else { return };
        let from: Vec<String> = all.iter().map(|min| min.from()).collect();
        self.target.set("pool.min_idle", most.min(size).to_string(), from.join(", "));
    }

    /// Ours is for all databases of a server together.
    fn per_upstream(&mut self, databases: &Databases, size: usize, limit: Option<&Taken<usize>>) {
        let limits: Vec<Option<&Taken<usize>>> =
            databases.served.iter().map(|served| served.max_connections.as_ref().or(limit)).collect();
        let bounded = limits.iter().map(|limit| limit.map_or(0, |limit| limit.value)).collect::<Vec<_>>();
        let default = Config::defaults().pool.max_per_upstream;
        let mut from: Vec<String> = limits.iter().flatten().map(|limit| limit.from()).collect();
        from.dedup();
        if !bounded.is_empty() && bounded.iter().all(|limit| *limit > 0) {
            let sum = bounded.iter().sum::<usize>().clamp(size, BACKENDS_MAX);
            from.push("of all databases together".to_owned());
            return self.target.set("pool.max_per_upstream", sum.to_string(), from.join(", "));
        }
        let of_databases = databases.served.iter().filter_map(|served| served.max_connections.as_ref());
        for limit in of_databases.chain(limit) {
            let why = "there is no limit for a database; see pool.max_per_upstream, which always is one";
            self.target.left(&limit.key, &limit.place, why);
        }
        let wanted = size.saturating_mul(databases.served.len().max(1)).min(BACKENDS_MAX);
        if wanted > default {
            let from = "PgBouncer has no limit for a server; one full pool for each database";
            self.target.set("pool.max_per_upstream", wanted.to_string(), from);
        } else {
            self.target.attention(format!(
                "All pools together open at most {default} backends at a server (pool.max_per_upstream); PgBouncer has \
                 no such limit."
            ));
        }
    }

    fn backend_times(&mut self) {
        let lifetime = self.source.pgbouncer.seconds("server_lifetime", &mut self.problems);
        if let Some(lifetime) = lifetime {
            // Zero is "use it once" there.
            let bound = lifetime.value.max(Duration::from_millis(1));
            self.target.set("pool.max_lifetime", duration(bound), lifetime.from());
        }
        let idle = self.source.pgbouncer.seconds("server_idle_timeout", &mut self.problems);
        if let Some(idle) = idle {
            let bound = if idle.value.is_zero() { quoted(NEVER) } else { duration(idle.value) };
            self.target.set("pool.idle_timeout", bound, idle.from());
        }
    }

    pub(super) fn timeouts(&mut self) -> Waits {
        let ours = Config::defaults().timeouts;
        self.login(ours.login);
        let statement = self.statement();
        let shortest = statement.unwrap_or(ours.read.min(ours.write));
        if self.capped("server_connect_timeout", "timeouts.connect", ours.connect, shortest).is_none() {
            self.shorter("A connect to PostgreSQL", "timeouts.connect", ours.connect.min(shortest), "15s");
        }
        let queue = self.capped("query_wait_timeout", "timeouts.queue", ours.queue, shortest);
        if queue.is_none() {
            self.shorter("The wait for a backend", "timeouts.queue", ours.queue.min(shortest), "2m");
        }
        for (theirs, key) in [
            ("transaction_timeout", "timeouts.transaction"),
            ("idle_transaction_timeout", "timeouts.idle_in_transaction"),
            ("client_idle_timeout", "timeouts.idle_session"),
        ] {
            if let Some(bound) = self.source.pgbouncer.seconds(theirs, &mut self.problems) {
                self.target.set(key, duration(bound.value), bound.from());
            } else if theirs == "idle_transaction_timeout" {
                let bound = duration(ours.idle_in_transaction);
                let text = "Idle in a transaction is bounded by";
                self.target.attention(format!(
                    "{text} {bound} (timeouts.idle_in_transaction); PgBouncer waits for ever."
                ));
            }
        }
        Waits { queue: queue.unwrap_or(ours.queue.min(shortest)), statement: shortest }
    }

    /// A bound that the file does not have, and that is shorter here than there by default.
    fn shorter(&mut self, what: &str, key: &str, ours: Duration, theirs: &str) {
        let ours = duration(ours);
        self.target
            .attention(format!("{what} is bounded by {ours} ({key}); PgBouncer's default is \"{theirs}\"."));
    }

    fn login(&mut self, default: Duration) {
        let Some(login) = self.source.pgbouncer.seconds("client_login_timeout", &mut self.problems) else {
            return self.shorter("A login", "timeouts.login", default, "1m");
        };
        if login.value.is_zero() {
            let why = format!("a login has a bound here, {} by default", duration(default));
            return self.target.left(&login.key, &login.place, &why);
        }
        self.target.set("timeouts.login", duration(login.value), login.from());
    }

    /// The bound of all statements, if one is set.
    fn statement(&mut self) -> Option<Duration> {
        let bound = self.source.pgbouncer.seconds("query_timeout", &mut self.problems);
        let ours = Config::defaults().timeouts;
        if let Some(off) = bound.as_ref().filter(|bound| bound.value.is_zero()) {
            self.target.left(&off.key, &off.place, "a statement has a bound here; see above");
        }
        let Some(bound) = bound.filter(|bound| !bound.value.is_zero()) else {
            self.target.attention(format!(
                "Statements have bounds here (timeouts.read {}, timeouts.write {}, timeouts.commit {}): raise them for \
                 reports and batches, best by a [[rule]].",
                duration(ours.read),
                duration(ours.write),
                duration(ours.commit)
            ));
            return None;
        };
        for key in ["timeouts.read", "timeouts.write", "timeouts.commit"] {
            self.target.set(key, duration(bound.value), bound.from());
        }
        Some(bound.value)
    }

    /// A wait that is part of a statement's time here, and so cannot be longer. Gives what it is, if the file says so.
    fn capped(
        &mut self,
        theirs: &str,
        key: &'static str,
        default: Duration,
        most: Duration,
    ) -> Option<Duration> {
        let Some(wait) = self.source.pgbouncer.seconds(theirs, &mut self.problems) else {
            if default > most {
                self.target.set(key, duration(most), "at most the bound of a statement");
            }
            return None;
        };
        if wait.value.is_zero() || wait.value > most {
            let from = format!(
                "{}; here the wait counts as part of the statement, which has {}",
                wait.from(),
                duration(most)
            );
            self.target.set(key, duration(most), from);
            Some(most)
        } else {
            self.target.set(key, duration(wait.value), wait.from());
            Some(wait.value)
        }
    }
}
