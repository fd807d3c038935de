//! Where applications connect, how they prove who they are, TLS on both sides, and who may use the console.

use std::net::IpAddr;

use super::Draft;
use super::databases::Databases;
use super::source::Taken;
use super::target::{quoted, quoted_list};

/// PgBouncer's.
const PORT: usize = 6432;

/// Our control plane's.
const ADMIN_PORT: usize = 6433;

/// What PgBouncer asks when only `auth_user` is set.
const AUTH_QUERY: &str = "SELECT usename, passwd FROM pg_shadow WHERE usename = $1";

/// What each `client_tls_sslmode` is here.
const CLIENT_MODES: [(&str, &str); 6] = [
    ("disable", "disable"),
    ("allow", "allow"),
    ("prefer", "allow"),
    ("require", "require"),
    ("verify-ca", "require"),
    ("verify-full", "require"),
];

/// The words are the same on this side.
const SERVER_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Where to listen, as it is being made.
struct Addresses {
    texts: Vec<String>,
    from: Vec<String>,
}

impl Draft {
    pub(super) fn listen(&mut self) {
        let port = self.source.pgbouncer.number("listen_port", &mut self.problems);
        if let Some(port) = port.as_ref().filter(|port| port.value == 0 || port.value > 65_535) {
            self.problems.push(port.place.problem("listen_port", "it is no port", "choose from 1 to 65535"));
        }
        if let Some(port) = port.as_ref().filter(|port| port.value == ADMIN_PORT) {
            let from = format!("its default is taken by {}", port.from());
            self.target.set("admin.address", quoted(&format!("127.0.0.1:{}", ADMIN_PORT + 1)), from);
        }
        let mut addresses = Addresses { texts: Vec::new(), from: Vec::new() };
        let number = port.as_ref().map_or(PORT, |port| port.value);
        let trusting = matches!(self.source.pgbouncer.peek("auth_type"), Some("trust" | "any"));
        if let Some(hosts) = self.source.pgbouncer.text("listen_addr") {
            self.tcp(&hosts, number, trusting, &mut addresses);
        }
        self.unix(number, &mut addresses);
        addresses.from.extend(port.map(|port| port.from()));
        if addresses.texts.is_empty() {
            let text = "No address of the file can be listened on: the default, loopback, is used.";
            self.target.attention(text);
            addresses.texts.push(format!("127.0.0.1:{number}"));
        }
        self.target.set("listen.address", quoted_list(&addresses.texts), addresses.from.join(", "));
        self.sessions();
        self.client_tls();
    }

    fn tcp(&mut self, hosts: &Taken<String>, port: usize, trusting: bool, addresses: &mut Addresses) {
        for host in hosts.value.split(',').map(str::trim).filter(|host| !host.is_empty()) {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let text = match (host, bare.parse::<IpAddr>()) {
                ("*", _) => format!("0.0.0.0:{port}"),
                ("localhost", _) | (_, Ok(IpAddr::V4(_))) => format!("{host}:{port}"),
                (_, Ok(IpAddr::V6(ip))) => format!("[{ip}]:{port}"),
                (_, Err(_)) => {
                    let why = format!("{host} is a name; write its IP address into listen.address");
                    self.target.left(&hosts.key, &hosts.place, &why);
                    continue;
                }
            };
            addresses.texts.push(text);
        }
        addresses.from.push(hosts.from());
        let local = |text: &String| {
            let host = text.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        };
        if trusting && !addresses.texts.iter().all(local) {
            addresses.texts = vec![format!("127.0.0.1:{port}")];
            let text = "auth_type lets everybody in without a proof. Here that is possible on loopback and unix \
                        sockets only, so it does not listen on other addresses: a sidecar stands beside its \
                        application. For others use listen.auth = \"scram\".";
            self.target.attention(format!("{}: {text}", hosts.from()));
        } else if hosts.value.contains('*') {
            self.target.attention(format!(
                "{}: all addresses of IPv4. A sidecar beside its application needs loopback only; for IPv6 write [::].",
                hosts.from()
            ));
        }
    }

    fn unix(&mut self, port: usize, addresses: &mut Addresses) {
        let Some(folder) = self.source.pgbouncer.any_text("unix_socket_dir") else {
            if addresses.texts.is_empty() {
                addresses.texts.push(format!("unix:/tmp:{port}"));
                addresses.from.push("PgBouncer's default for unix_socket_dir".to_owned());
            } else {
                let text = "PgBouncer also listens on a unix socket in /tmp by default; add \"unix:/tmp\" to \
                            listen.address if applications use it.";
                self.target.attention(text);
            }
            return;
        };
        if folder.value.starts_with('@') {
            let why = "there are no sockets in the abstract namespace; name a folder";
            self.target.left(&folder.key, &folder.place, why);
        } else if !folder.value.is_empty() {
            addresses.texts.push(format!("unix:{}:{port}", folder.value.trim_end_matches('/')));
            addresses.from.push(folder.from());
        }
    }

    fn sessions(&mut self) {
        if let Some(limit) = self.source.pgbouncer.number("max_client_conn", &mut self.problems) {
            self.target.set("listen.max_sessions", limit.value.clamp(1, 1_000_000).to_string(), limit.from());
        }
    }

    pub(super) fn authentication(&mut self, databases: &Databases) {
        let method = self.source.pgbouncer.text("auth_type");
        let place = method.as_ref().map(|method| method.place.clone()).or_else(|| databases.first_place());
        let Some(ours) = self.auth_method(method.as_ref()) else { return };
        let userlist = self.source.pgbouncer.text("auth_file");
        if let Some(file) = &userlist {
            let path = self.path(file);
            self.target.set("listen.userlist", quoted(&path), file.from());
        }
        let asked = self.auth_query(databases);
        if ours != "trust" && userlist.is_none() && !asked {
            let advice = "set auth_file, or auth_user with auth_query; nobody could log in";
            let reason = "nothing says which users there are";
            self.problems.extend(place.map(|place| place.problem("auth_type", reason, advice)));
        }
    }

    /// Our word for it, if it is one of PgBouncer's.
    fn auth_method(&mut self, method: Option<&Taken<String>>) -> Option<&'static str> {
        let word = method.map_or("md5", |method| &*method.value);
        let from = method.map_or("PgBouncer's default for auth_type".to_owned(), Taken::from);
        let ours = match word {
            "scram-sha-256" => "scram",
            "plain" | "password" => "password",
            "trust" => {
                let text = "users need not be in auth_file here: anybody on this machine is let in, as whoever they say.";
                self.target.attention(format!("{from} = trust: {text}"));
                "trust"
            }
            "any" => {
                let text = "users are not mapped onto one: applications log in as the user that PostgreSQL is to see.";
                self.target.attention(format!("{from} = any: {text}"));
                "trust"
            }
            // Of users with a SCRAM secret it asks for SCRAM.
            "md5" => "md5",
            "hba" | "cert" | "pam" | "ldap" | "gss" => {
                let text = "there is no such method here: passwords of auth_file and auth_query are asked for instead.";
                self.target.attention(format!("{from} = {word}: {text}"));
                "md5"
            }
            _ => {
                let reason = format!("PgBouncer knows no method \"{word}\"");
                let place = method.map(|method| &method.place);
                self.problems.extend(place.map(|place| place.problem("auth_type", reason, "correct it")));
                return None;
            }
        };
        self.target.set("listen.auth", quoted(ours), from);
        Some(ours)
    }

    /// Gives whether users are asked for in the database.
    fn auth_query(&mut self, databases: &Databases) -> bool {
        let query = self.source.pgbouncer.text("auth_query").or_else(|| databases.auth_query.clone());
        let database = self.source.pgbouncer.text("auth_dbname").or_else(|| databases.auth_dbname.clone());
        let user = self.source.pgbouncer.text("auth_user").or_else(|| databases.auth_user.clone());
        let Some(user) = user else {
            if let Some(query) = query {
                self.target.left(
                    &query.key,
                    &query.place,
                    "it has no effect without auth_user, there and here",
                );
            }
            if let Some(database) = database {
                self.target.left(&database.key, &database.place, "it has no effect without auth_user");
            }
            self.forced_user(databases);
            return false;
        };
        let usable = query.as_ref().is_none_or(|query| query.value.contains("$1"));
        match query {
            Some(query) if !usable => {
                let advice = "put $1 where the name goes";
                self.problems.push(query.place.problem("auth_query", "it does not ask for a user", advice));
            }
            Some(query) => self.target.set("listen.auth_query", quoted(&query.value), query.from()),
            None => {
                let from = "PgBouncer's default for auth_query, of the meaning";
                self.target.set("listen.auth_query", quoted(AUTH_QUERY), from);
            }
        }
        self.target.set("cluster.user", quoted(&user.value), user.from());
        if let Some((forced, _)) = &databases.forced {
            let why =
                "cluster.user is who asks for secrets; put this user and its password into the userlist";
            self.target.left("user, password", &forced.place, why);
        }
        self.target.attention(format!(
            "{}: its password is not taken from auth_file; set cluster.password, cluster.passfile or \
             TIDEGATE_CLUSTER_PASSWORD unless PostgreSQL trusts it.",
            user.from()
        ));
        let (name, from) = match (database, databases.first_name()) {
            (Some(database), _) => (database.value.clone(), database.from()),
            (None, Some(name)) => {
                (name, "auth_query runs in one database here; PgBouncer asks each".to_owned())
            }
            (None, None) => return true,
        };
        self.target.set("cluster.database", quoted(&name), from);
        true
    }

    /// The user of all connections to a database. Sessions of that user can use its password.
    fn forced_user(&mut self, databases: &Databases) {
        let Some((user, password)) = &databases.forced else { return };
        self.target.set("cluster.user", quoted(&user.value), user.from());
        if let Some(password) = password {
            self.target.set("cluster.password", quoted(&password.value), password.from());
        }
    }

    fn client_tls(&mut self) {
        let settings = &mut self.source.pgbouncer;
        let mode = settings.text("client_tls_sslmode");
        let [cert, key, ca] = ["client_tls_cert_file", "client_tls_key_file", "client_tls_ca_file"]
            .map(|key| settings.text(key));
        let word = mode.as_ref().map_or("disable", |mode| &*mode.value);
        let Some((_, ours)) = CLIENT_MODES.iter().find(|(theirs, _)| *theirs == word) else {
            self.unknown_mode(mode);
            return;
        };
        let verifies = word.starts_with("verify");
        if let Some(mode) = &mode {
            self.target.set("listen.tls", quoted(ours), mode.from());
        }
        for (ours, file, wanted) in [
            ("listen.tls_cert", cert, word != "disable"),
            ("listen.tls_key", key, word != "disable"),
            // Without verify- PgBouncer looks at no certificate of a client's.
            ("listen.tls_client_ca", ca, verifies),
        ] {
            self.tls_file(ours, file, wanted, "client_tls_sslmode makes no use of it");
        }
    }

    pub(super) fn server_tls(&mut self) {
        let settings = &mut self.source.pgbouncer;
        let mode = settings.text("server_tls_sslmode");
        let [cert, key, ca] = ["server_tls_cert_file", "server_tls_key_file", "server_tls_ca_file"]
            .map(|key| settings.text(key));
        let word = mode.as_ref().map_or("prefer", |mode| &*mode.value).to_owned();
        if !SERVER_MODES.contains(&&*word) {
            return self.unknown_mode(mode);
        }
        if let Some(mode) = &mode {
            self.target.set("cluster.tls", quoted(&mode.value), mode.from());
        }
        let paired = cert.is_some() == key.is_some();
        for (ours, file, wanted) in [
            ("cluster.tls_cert", cert, word != "disable" && paired),
            ("cluster.tls_key", key, word != "disable" && paired),
            // With `require` it would be verified here, as libpq does.
            ("cluster.tls_ca", ca, word.starts_with("verify")),
        ] {
            self.tls_file(ours, file, wanted, "server_tls_sslmode makes no use of it");
        }
    }

    fn tls_file(&mut self, ours: &'static str, file: Option<Taken<String>>, wanted: bool, why: &str) {
        let Some(file) = file else { return };
        if wanted {
            let path = self.path(&file);
            self.target.set(ours, quoted(&path), file.from());
        } else {
            self.target.left(&file.key, &file.place, why);
        }
    }

    fn unknown_mode(&mut self, mode: Option<Taken<String>>) {
        let Some(mode) = mode else { return };
        let reason = format!("PgBouncer knows no mode \"{}\"", mode.value);
        let advice = "choose disable, allow, prefer, require, verify-ca or verify-full";
        self.problems.push(mode.place.problem(&mode.key, reason, advice));
    }

    pub(super) fn admin(&mut self) {
        let settings = &mut self.source.pgbouncer;
        let lists = [settings.text("admin_users"), settings.text("stats_users")];
        let mut users: Vec<String> = Vec::new();
        for list in lists.iter().flatten() {
            for name in list.value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                if !users.iter().any(|user| user == name) {
                    users.push(name.to_owned());
                }
            }
        }
        if users.is_empty() {
            return;
        }
        if let [_, Some(stats)] = &lists {
            let text = "who may use the console may give orders; there is no role for looking only.";
            self.target.attention(format!("{}: {text}", stats.from()));
        }
        let from: Vec<String> = lists.iter().flatten().map(Taken::from).collect();
        self.target.set("admin.users", quoted_list(&users), from.join(", "));
    }
}
