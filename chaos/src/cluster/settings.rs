//! `postgresql.conf` and `pg_hba.conf` of throwaway servers, as data.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::programs::Programs;
use super::template::Identity;
use super::wal::WalStorage;

/// How a server is set up. Everything has a default but the programs.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    pub(crate) programs: Programs,
    pub(crate) name: String,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) hba: Vec<String>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) identity: Identity,
    pub(crate) durability: Durability,
    pub(crate) wal: WalStorage,
}

/// Certificates of a server; copied into its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain (PEM).
    pub cert: PathBuf,
    /// Private key (PEM).
    pub key: PathBuf,
    /// Authorities of client certificates (PEM).
    pub client_ca: Option<PathBuf>,
}

/// Whether commits reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// `fsync = off`: survives SIGKILL of every process, not of the machine.
    #[default]
    ProcessCrash,
    /// As in production.
    Full,
}

impl NodeOptions {
    /// A server of this installation that trusts everybody on loopback.
    pub fn new(programs: Programs) -> Self {
        Self {
            programs,
            name: "primary".to_owned(),
            settings: BTreeMap::new(),
            hba: Vec::new(),
            tls: None,
            identity: Identity::default(),
            durability: Durability::default(),
            wal: WalStorage::default(),
        }
    }

    /// Names the server: in its folder's name, in messages, and as `application_name` of a standby.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Sets a server parameter. The value is quoted here.
    #[must_use]
    pub fn set(mut self, parameter: &str, value: &str) -> Self {
        self.settings.insert(parameter.to_owned(), value.to_owned());
        self
    }

    /// Adds a line of `pg_hba.conf`. With the first one, TCP connections are no longer trusted by default.
    #[must_use]
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }

    /// Turns TLS on.
    #[must_use]
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    /// Runs `initdb`, so that the server has a `system_identifier` of its own.
    #[must_use]
    pub fn own_identity(mut self) -> Self {
        self.identity = Identity::Own;
        self
    }

    /// Chooses where `pg_wal` lies.
    #[must_use]
    pub fn wal(mut self, storage: WalStorage) -> Self {
        self.wal = storage;
        self
    }

    /// Makes commits durable for real.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durability = Durability::Full;
        self
    }
}

/// What every server here starts from.
pub(crate) fn base(port: u16, socket_dir: &str, durability: Durability) -> BTreeMap<String, String> {
    let fsync = match durability {
        Durability::ProcessCrash => "off",
        Durability::Full => "on",
    };
    let port = port.to_string();
    let pairs = [
        ("listen_addresses", "127.0.0.1"),
        ("port", port.as_str()),
        ("unix_socket_directories", socket_dir),
        ("fsync", fsync),
        // Small and quick to start: dozens of servers may run beside each other.
        ("shared_buffers", "16MB"),
        ("max_wal_size", "256MB"),
        // For standbys, and for those that fall behind while a test holds them.
        ("wal_level", "replica"),
        ("max_wal_senders", "10"),
        ("max_replication_slots", "10"),
        ("wal_keep_size", "256MB"),
        ("hot_standby", "on"),
        // A standby asks again soon after its primary came back (default 5 s).
        ("wal_retrieve_retry_interval", "200ms"),
        // Orphaned PREPARE TRANSACTION is one of the faults.
        ("max_prepared_transactions", "10"),
        ("log_line_prefix", "%m [%p] %q%u@%d "),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Text of the configuration file.
pub(crate) fn render(settings: &BTreeMap<String, String>) -> String {
    settings.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
        text
    })
}

/// Text of `pg_hba.conf`: the harness's own way in over the unix socket, replication, then the test's lines.
pub(crate) fn render_hba(lines: &[String]) -> String {
    let own = [
        "local all postgres trust",
        "local replication postgres trust",
        "host replication postgres 127.0.0.1/32 trust",
    ];
    let open = ["local all all trust", "host all all 127.0.0.1/32 trust", "host all all ::1/128 trust"];
    let mut all: Vec<&str> = own.to_vec();
    if lines.is_empty() {
        all.extend(open);
    } else {
        all.extend(lines.iter().map(String::as_str));
    }
    all.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_in_values_cannot_end_the_value() {
        // synchronous_standby_names needs quotes inside; unescaped, the server would not start.
        let settings = BTreeMap::from([("a".to_owned(), "it's".to_owned())]);

        assert_eq!(render(&settings), "a = 'it''s'\n");
    }

    #[test]
    fn lines_of_a_test_replace_trust_on_tcp() {
        // A trust line left in front would let every wrong password in.
        let text = render_hba(&["host all all 127.0.0.1/32 scram-sha-256".to_owned()]);

        assert!(!text.contains("host all all 127.0.0.1/32 trust"), "{text}");
        assert!(text.starts_with("local all postgres trust\n"), "{text}");
    }
}
