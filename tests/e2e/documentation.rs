//! What the documents say is what the code does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidegate::backend::ConnectError;
use tidegate::cli;
use tidegate::config::{Config, Sources};
use tidegate::exchange::Refusal;
use tidegate::exchange::refusal::Outcome;
use tidegate::telemetry::metrics::{COUNTERS, GAUGES};

const README: &str = include_str!("../../README.md");
const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");
const SAMPLE: &str = include_str!("../../proxy/src/config/sample.toml");

/// Documents whose links are followed, from the root.
const DOCUMENTS: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "benches/README.md", "tests/drivers/README.md"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The rows of the tables under a heading, cells trimmed, without the rows that name the columns.
fn rows(document: &str, heading: &str) -> Vec<Vec<String>> {
    let rows: Vec<Vec<String>> = document
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with('#'))
        .filter(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    let separators: Vec<usize> =
        (0..rows.len()).filter(|&at| rows[at].iter().all(|cell| cell.chars().all(|c| c == '-'))).collect();
    let kept = (0..rows.len()).filter(|at| !separators.contains(at) && !separators.contains(&(at + 1)));
    let kept: Vec<_> = kept.map(|at| rows[at].clone()).collect();
    assert!(!kept.is_empty(), "no table under {heading}");
    kept
}

/// The texts between backticks.
fn code(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The blocks of code of a kind.
fn blocks<'a>(document: &'a str, kind: &str) -> Vec<&'a str> {
    document.split("\n```").filter_map(|block| block.strip_prefix(kind)?.strip_prefix('\n')).collect()
}

/// A line of the sample that is a setting, whether commented out or not.
fn setting(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.split_once(" = ")?;
    key.chars().all(|c| c.is_ascii_lowercase() || c == '_').then_some((key, value))
}

/// Key to default, `None` where the sample has it as a comment.
fn sample_keys() -> BTreeMap<String, Option<String>> {
    let mut section = String::new();
    let mut keys = BTreeMap::new();
    for line in SAMPLE.lines() {
        let commented = line.strip_prefix("# ");
        let text = commented.unwrap_or(line);
        if let Some(name) = text.strip_prefix('[') {
            section = format!("{}.", name.trim_matches(['[', ']']));
        } else if let Some((key, value)) = setting(text) {
            keys.insert(format!("{section}{key}"), commented.is_none().then(|| value.to_owned()));
        }
    }
    keys
}

/// The keys that the code says have no effect, found by writing all of them.
fn keys_without_effect() -> BTreeSet<String> {
    let everything: String = SAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(text) if text.starts_with('[') || setting(text).is_some() => format!("{text}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tidegate.toml");
    fs::write(&path, everything).unwrap();
    let sources = Sources { file: Some(path), ..Sources::default() };
    // The files that the sample names do not exist; the warnings come all the same.
    let warnings = match Config::load(&sources) {
        Ok(config) => config.warnings,
        Err(errors) => errors.warnings,
    };
    let idle = warnings.iter().filter(|warning| warning.contains("effect in this version"));
    idle.map(|warning| warning.split(": ").nth(1).unwrap().split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn configuration_tables_have_every_key_with_its_default() {
    // A key or default that changes in the sample (which is held against the code) and not in README would differ.
    let mut documented = BTreeMap::new();
    for heading in ["### Keys in force", "### Keys without effect yet"] {
        for row in rows(README, heading) {
            let [key] = code(&row[0])[..] else { panic!("no key in {row:?}") };
            let default = code(&row[1]).first().map(|text| (*text).to_owned());
            assert_eq!(documented.insert(key.to_owned(), default), None, "{key} stands there twice");
        }
    }

    let mut sample = sample_keys();
    // An example, not a default.
    sample.insert("cluster.upstreams".to_owned(), None);

    assert_eq!(documented, sample);
}

#[test]
fn keys_are_said_to_have_no_effect_where_the_code_says_so() {
    // An operator who trusts a timeout that does nothing has none; a key that came to life must move up.
    let documented: BTreeSet<String> =
        rows(README, "### Keys without effect yet").iter().map(|row| code(&row[0])[0].to_owned()).collect();

    let mut expected = keys_without_effect();
    // The pools obey it, whatever is said of its section.
    expected.remove("shed.queue_max");
    // One key in the code, a table of its own in the file.
    if expected.remove("rule") {
        expected.extend(sample_keys().into_keys().filter(|key| key.starts_with("rule.")));
    }

    assert_eq!(documented, expected);
}

#[test]
fn the_example_configuration_is_accepted() {
    // The first thing that a reader copies must not be refused.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tidegate.toml");
    let [example] = blocks(README, "toml")[..] else { panic!("one example expected") };
    for name in ["userlist.txt", "ca.crt"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    fs::write(&path, format!("{example}\n")).unwrap();

    let config = Config::load(&Sources { file: Some(path), ..Sources::default() }).unwrap();

    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn metrics_table_is_what_is_exported() {
    // A metric that is renamed, added or dropped breaks alerts; the table is where operators look them up.
    let documented: Vec<_> = rows(README, "## Metrics")
        .into_iter()
        .map(|row| (code(&row[0])[0].to_owned(), row[1].clone(), row[3].clone()))
        .collect();

    let with = |kind: &'static str| {
        move |(name, meaning): (&str, &str)| (name.to_owned(), kind.to_owned(), meaning.to_owned())
    };
    let exported: Vec<_> =
        COUNTERS.into_iter().map(with("counter")).chain(GAUGES.into_iter().map(with("gauge"))).collect();
    assert_eq!(documented, exported);
}

/// One refusal of each kind, and of each reason.
fn refusals() -> Vec<Refusal> {
    let second = Duration::from_secs(1);
    let all = vec![
        Refusal::QueueFull { waiting: 1 },
        Refusal::QueueTimeout { waited: second },
        Refusal::NoUpstream { cause: Arc::new(ConnectError::Timeout), retry_after: second },
        Refusal::LoginRefused(Arc::new(ConnectError::NoCredential("a proof"))),
        Refusal::Cancelled,
        Refusal::BackendLost { outcome: Outcome::Unknown },
        Refusal::BackendLost { outcome: Outcome::RolledBack },
        Refusal::BackendLost { outcome: Outcome::NotSent },
        Refusal::TransactionLost,
        Refusal::IdleInTransaction,
        Refusal::IdleSession,
        Refusal::Drain,
        Refusal::Killed,
        Refusal::TooManySessions { limit: 1 },
        Refusal::Protocol("x".to_owned()),
    ];
    for refusal in &all {
        // A new variant does not compile here; it belongs into the list above, too.
        match refusal {
            Refusal::QueueFull { .. }
            | Refusal::QueueTimeout { .. }
            | Refusal::NoUpstream { .. }
            | Refusal::LoginRefused(_)
            | Refusal::Cancelled
            | Refusal::BackendLost { .. }
            | Refusal::TransactionLost
            | Refusal::IdleInTransaction
            | Refusal::IdleSession
            | Refusal::Drain
            | Refusal::Killed
            | Refusal::TooManySessions { .. }
            | Refusal::Protocol(_) => {}
        }
    }
    all
}

/// The fields of an `ErrorResponse` by their letter.
fn error_fields(refusal: &Refusal) -> BTreeMap<char, String> {
    let mut frame = Vec::new();
    refusal.put("db:5432", &mut frame);
    let fields = frame[5..].split(|&byte| byte == 0).filter(|field| !field.is_empty());
    fields.map(|field| (char::from(field[0]), String::from_utf8(field[1..].to_vec()).unwrap())).collect()
}

#[test]
fn errors_table_is_what_applications_get() {
    // Applications decide by SQLSTATE, reason and outcome whether to try again; a wrong row makes them lose or
    // repeat work.
    let table: BTreeMap<String, Vec<String>> =
        rows(README, "## Errors").into_iter().map(|row| (code(&row[0])[0].to_owned(), row)).collect();
    let mut produced = BTreeSet::new();

    for refusal in refusals() {
        let reason = refusal.reason();
        produced.insert(reason.to_owned());
        let row = table.get(reason).unwrap_or_else(|| panic!("no row for {reason}"));
        let fields = error_fields(&refusal);
        let detail: Vec<_> = fields[&'D'].split(' ').map(|pair| pair.split_once('=').unwrap()).collect();
        let keys: Vec<_> = detail.iter().map(|(key, _)| *key).collect();
        let outcome = detail.iter().find(|(key, _)| *key == "outcome").map(|(_, value)| *value);

        assert_eq!(detail[0], ("reason", reason));
        assert_eq!(code(&row[1])[0], fields[&'C'], "SQLSTATE of {reason}");
        assert_eq!(row[2], fields[&'V'], "severity of {reason}");
        assert_eq!(code(&row[4]), keys, "DETAIL of {reason}");
        match outcome {
            Some(outcome) => assert!(code(&row[5]).contains(&outcome), "{outcome} of {reason}"),
            None => assert_eq!(row[5], "–", "outcome of {reason}"),
        }
        assert!(fields[&'M'].starts_with("tidegate: "), "message of {reason}");
    }

    assert_eq!(table.into_keys().collect::<BTreeSet<_>>(), produced);
}

#[test]
fn command_lines_are_understood() {
    // A flag that is renamed would leave readers with an error.
    let lines: Vec<_> = blocks(README, "sh")
        .into_iter()
        .flat_map(str::lines)
        .filter(|line| line.starts_with("tidegate "))
        .collect();
    assert!(lines.len() >= 4, "{lines:?}");

    for line in lines {
        let parsed = cli::parse_from(line.split_whitespace());
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    }
}

#[test]
fn links_lead_somewhere() {
    // A file that moves, or a heading that is renamed, leaves a link behind.
    let mut broken = Vec::new();
    for document in DOCUMENTS {
        let path = root().join(document);
        let text = fs::read_to_string(&path).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let found = if let Some(anchor) = target.strip_prefix('#') {
                text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor)
            } else {
                target.starts_with("https://") || path.with_file_name(target).exists()
            };
            if !found {
                broken.push(format!("{document}: {target}"));
            }
        }
    }

    assert!(broken.is_empty(), "{broken:?}");
}

/// The anchor of a heading, as it is made for display.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    text.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

#[test]
fn the_code_map_has_every_file_of_the_sidecar() {
    // A map with blanks sends its readers searching.
    let mapped: BTreeSet<String> =
        rows(ARCHITECTURE, "### `proxy/src`").iter().map(|row| code(&row[0])[0].to_owned()).collect();
    let source = root().join("proxy/src");
    let mut files = Vec::new();
    let mut folders = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path.strip_prefix(&source).unwrap().to_str().unwrap().to_owned());
            }
        }
    }

    let missing: Vec<_> = files.iter().filter(|file| !mapped.contains(*file)).collect();

    assert!(missing.is_empty(), "{missing:?}");
}
