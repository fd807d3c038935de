//! `[databases]` and `[users]`: which servers, and what some databases and users have of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ini::Place;
use super::pool::Waits;
use super::source::{Item, Taken};
use super::target::{duration, quoted, quoted_list};
use super::{Draft, left};

/// PostgreSQL's, as there.
const PORT: usize = 5432;

/// What the databases of one cluster have in common, and how they differ.
#[derive(Debug, Default)]
pub(super) struct Databases {
    /// Those that the sidecar serves.
    pub(super) served: Vec<Served>,
    pub(super) auth_user: Option<Taken<String>>,
    pub(super) auth_query: Option<Taken<String>>,
    pub(super) auth_dbname: Option<Taken<String>>,
    /// The user of all connections, and its password.
    pub(super) forced: Option<(Taken<String>, Option<Taken<String>>)>,
}

/// A database.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) pool_size: Option<Taken<usize>>,
    pub(super) min_pool_size: Option<Taken<usize>>,
    pub(super) pool_mode: Option<Taken<String>>,
    pub(super) max_connections: Option<Taken<usize>>,
    /// `query_wait_timeout`.
    wait: Option<Taken<Duration>>,
}

/// The database that stands for all others, as there.
const ALL_OTHERS: &str = "*";

impl Databases {
    /// The first that has a name.
    pub(super) fn first_name(&self) -> Option<String> {
        self.served.iter().map(|database| &database.name).find(|name| *name != ALL_OTHERS).cloned()
    }

    /// Where the first stands.
    pub(super) fn first_place(&self) -> Option<Place> {
        self.served.first().map(|database| database.place.clone())
    }
}

impl Draft {
    pub(super) fn databases(&mut self) -> Databases {
        let mut databases = Databases::default();
        let mut cluster: Option<(Vec<String>, Vec<String>)> = None;
        for mut item in std::mem::take(&mut self.source.databases) {
            let servers = self.servers(&mut item);
            let (ours, from) = cluster.get_or_insert_with(|| (servers.clone(), Vec::new()));
            if *ours != servers {
                self.elsewhere(&item, &servers);
                continue;
            }
            from.push(format!("{} ({})", item.name, item.place));
            self.database(item, &mut databases);
        }
        let (servers, from) = cluster.unwrap_or_else(|| self.no_database());
        self.target.set(
            "cluster.upstreams",
            quoted_list(&servers),
            format!("[databases]: {}", from.join(", ")),
        );
        if servers.len() > 1 {
            let text = "Several hosts: PgBouncer takes turns, a sidecar asks each for its role. They have to be one \
                        cluster, a primary and its standbys; read.from says who answers reads.";
            self.target.attention(text);
        }
        databases
    }

    fn no_database(&mut self) -> (Vec<String>, Vec<String>) {
        self.target.attention(
            "There is no database in the file, so no server: cluster.upstreams is a guess, correct it.",
        );
        (vec!["127.0.0.1:5432".to_owned()], vec!["none".to_owned()])
    }

    /// The servers of a database, as `cluster.upstreams` has them.
    fn servers(&mut self, item: &mut Item) -> Vec<String> {
        let port = item.settings.number("port", &mut self.problems);
        let number = port.as_ref().map_or(PORT, |port| port.value);
        if let Some(port) = port.filter(|port| !(1..=65_535).contains(&port.value)) {
            self.problems.push(port.place.problem("port", "it is no port", "choose from 1 to 65535"));
        }
        let Some(hosts) = item.settings.text("host") else {
            let folder = self.source.pgbouncer.peek("unix_socket_dir").filter(|folder| !folder.is_empty());
            let name = folder.unwrap_or("/tmp").trim_end_matches('/');
            return vec![format!("unix:{name}:{number}")];
        };
        let one = |host: &str| match host {
            _ if host.starts_with('/') => format!("unix:{}:{number}", host.trim_end_matches('/')),
            _ if host.matches(':').count() > 1 => format!("[{}]:{number}", host.trim_matches(['[', ']'])),
            _ => format!("{host}:{number}"),
        };
        if hosts.value.contains('@') {
            let reason = "there are no sockets in the abstract namespace here";
            self.problems.push(hosts.place.problem("host", reason, "let PostgreSQL listen in a folder"));
        }
        let mut servers: Vec<String> = hosts.value.split(',').map(|host| one(host.trim())).collect();
        let mut seen = std::collections::BTreeSet::new();
        servers.retain(|server| seen.insert(server.clone()));
        servers
    }

    /// A database of another server.
    fn elsewhere(&mut self, item: &Item, servers: &[String]) {
        let text = format!(
            "{} ({}) is at {}: one sidecar serves one cluster. If it is a standby of the servers in \
             cluster.upstreams, add it there and look at read.from; else start a second sidecar for it.",
            item.name,
            item.place,
            servers.join(", ")
        );
        self.target.attention(text);
        self.target.left(
            &format!("[databases] {}", item.name),
            &item.place,
            "it is on another server; see above",
        );
    }

    fn database(&mut self, mut item: Item, databases: &mut Databases) {
        let Item { name, place, settings } = &mut item;
        if let Some(dbname) = settings.text("dbname").filter(|dbname| dbname.value != *name) {
            let text = format!(
                "{name} ({place}): it is called {} in PostgreSQL. There are no other names here: applications have \
                 to connect to {}.",
                dbname.value, dbname.value
            );
            self.target.attention(text);
        }
        let served = Served {
            name: name.clone(),
            place: place.clone(),
            pool_size: settings.number("pool_size", &mut self.problems),
            min_pool_size: settings.number("min_pool_size", &mut self.problems),
            pool_mode: settings.text("pool_mode"),
            max_connections: settings.number("max_db_connections", &mut self.problems),
            wait: settings.seconds("query_wait_timeout", &mut self.problems).filter(|w| !w.value.is_zero()),
        };
        for (key, kept) in [
            ("auth_user", &mut databases.auth_user),
            ("auth_query", &mut databases.auth_query),
            ("auth_dbname", &mut databases.auth_dbname),
        ] {
            let Some(found) = settings.text(key) else { continue };
            let known = kept.get_or_insert_with(|| found.clone());
            if known.value != found.value {
                let why = format!("it is {} for all databases here", known.from());
                self.target.left(&format!("{name}: {key}"), place, &why);
            }
        }
        let password = settings.text("password");
        let user = settings.text("user");
        if let Some(user) = user {
            self.forced(name, user, password, databases);
        } else if password.is_some() {
            self.target.left(&format!("{name}: password"), place, "it has no effect without user=");
        }
        databases.served.push(served);
        for rest in item.settings.rest() {
            let why = left::of_database(&rest.key).unwrap_or("it is not known here; look it up");
            self.target.left(&format!("{}: {}", item.name, rest.key), &rest.place, why);
        }
    }

    fn forced(
        &mut self,
        name: &str,
        user: Taken<String>,
        password: Option<Taken<String>>,
        databases: &mut Databases,
    ) {
        self.target.attention(format!(
            "{name} ({}): PgBouncer logs in as {} for everybody. A sidecar logs in as the session's user: \
             applications have to log in as {}.",
            user.place, user.value, user.value
        ));
        match &databases.forced {
            None => databases.forced = Some((user, password)),
            Some((known, _)) if known.value == user.value => {}
            Some(_) => {
                let why = "cluster.user is one; put its password into the userlist";
                self.target.left(&format!("{name}: user, password"), &user.place, why);
            }
        }
    }

    /// The first rule that matches wins: users before databases, and those with a name before all others.
    pub(super) fn rules(&mut self, databases: &Databases, waits: Waits) {
        let users = self.users(waits);
        let of_databases: Vec<_> = databases.served.iter().filter(|one| one.wait.is_some()).collect();
        if !users.is_empty() && !of_databases.is_empty() {
            let names: Vec<_> = of_databases.iter().map(|one| &*one.name).collect();
            self.target.attention(format!(
                "Of rules only the first that matches counts: {} of [users] have nothing of query_wait_timeout of {} in \
                 [databases]. Give them queue in their own rules where they need it.",
                users.join(", "),
                names.join(", ")
            ));
        }
        let (others, named): (Vec<_>, Vec<_>) =
            databases.served.iter().partition(|served| served.name == ALL_OTHERS);
        let others_wait = others.iter().any(|one| one.wait.is_some());
        for served in named.into_iter().chain(others) {
            match &served.wait {
                Some(wait) => {
                    let timeouts = BTreeMap::from([("queue", wait.value)]);
                    self.rule(
                        "database",
                        &served.name,
                        timeouts,
                        waits,
                        format!("{}: {}", served.name, wait.from()),
                    );
                }
                None if others_wait => {
                    let timeouts = BTreeMap::from([("queue", waits.queue)]);
                    let from = format!("{} ({}): what is said of * is not for it", served.name, served.place);
                    self.rule("database", &served.name, timeouts, waits, from);
                }
                None => {}
            }
        }
    }

    /// Gives the names of those that have a rule.
    fn users(&mut self, waits: Waits) -> Vec<String> {
        let mut names = Vec::new();
        for mut item in std::mem::take(&mut self.source.users) {
            let mut timeouts = BTreeMap::new();
            let mut from = Vec::new();
            for (theirs, ours) in [
                ("query_timeout", &["read", "write", "commit"][..]),
                ("transaction_timeout", &["transaction"]),
                ("idle_transaction_timeout", &["idle_in_transaction"]),
                ("client_idle_timeout", &["idle_session"]),
                ("query_wait_timeout", &["queue"]),
            ] {
                let Some(bound) = item.settings.seconds(theirs, &mut self.problems) else { continue };
                // Some of ours may be off, the others must be there.
                if bound.value.is_zero() && matches!(ours[0], "read" | "queue") {
                    self.target.left(
                        &format!("{}: {theirs}", item.name),
                        &bound.place,
                        "this wait has a bound here",
                    );
                    continue;
                }
                timeouts.extend(ours.iter().map(|ours| (*ours, bound.value)));
                from.push(theirs);
            }
            if !timeouts.is_empty() {
                let from = format!("[users] {}: {} ({})", item.name, from.join(", "), item.place);
                self.rule("user", &item.name, timeouts, waits, from);
                names.push(item.name.clone());
            }
            for rest in item.settings.rest() {
                let why = left::of_user(&rest.key).unwrap_or("it is not known here; look it up");
                self.target.left(&format!("[users] {}: {}", item.name, rest.key), &rest.place, why);
            }
        }
        names
    }

    fn rule(
        &mut self,
        attribute: &str,
        pattern: &str,
        mut timeouts: BTreeMap<&str, Duration>,
        waits: Waits,
        mut from: String,
    ) {
        // Both or neither: `query_timeout` is the bound of reads and writes.
        let statement = timeouts.get("write").copied().unwrap_or(waits.statement);
        if timeouts.get("queue").copied().unwrap_or(waits.queue) > statement {
            timeouts.insert("queue", statement);
            from = format!(
                "{from}; here the wait counts as part of the statement, which has {}",
                duration(statement)
            );
        }
        let bounds: Vec<String> =
            timeouts.iter().map(|(key, bound)| format!("{key} = {}", duration(*bound))).collect();
        let body = format!(
            "match = {{ {attribute} = {} }}\ntimeouts = {{ {} }}",
            quoted(pattern),
            bounds.join(", ")
        );
        self.target.rule(body, from);
    }
}
