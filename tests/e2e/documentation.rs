//! What the documents say is what the code does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidegate::backend::ConnectError;
use tidegate::cli;
use tidegate::config::{Config, Sources};
use tidegate::exchange::refusal::{Deadline, Known, Outcome, TimedOut};
use tidegate::exchange::{Cause, Refusal};
use tidegate::sql::Lane;
use tidegate::sql::terms::SETTINGS;
use tidegate::status::LaneState;
use tidegate::telemetry::exposition::Kind;
use tidegate::telemetry::lanes::{OUTCOMES, REASONS};
use tidegate::telemetry::metrics::{COUNTERS, GAUGES, STATE};
use tidegate::upstream::{Lsn, WhyNot};
use tidegate_layers::shed::Reason;

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

#[test]
fn configuration_tables_have_every_key_with_its_default() {
    // A key or default that changes in the sample (which is held against the code) and not in README would differ.
    let mut documented = BTreeMap::new();
    for row in rows(README, "### Keys") {
        let [key] = code(&row[0])[..] else { panic!("no key in {row:?}") };
        let default = code(&row[1]).first().map(|text| (*text).to_owned());
        assert_eq!(documented.insert(key.to_owned(), default), None, "{key} stands there twice");
    }

    let mut sample = sample_keys();
    // An example, not a default.
    sample.insert("cluster.upstreams".to_owned(), None);

    assert_eq!(documented, sample);
}

#[test]
fn the_table_of_per_session_settings_is_complete() {
    // A setting that is misspelt there is an error for whoever copies it.
    let documented: Vec<String> =
        rows(README, "## Per-session settings").iter().map(|row| code(&row[0])[0].to_owned()).collect();

    let known: Vec<_> = SETTINGS.iter().map(|(name, _)| *name).collect();

    assert_eq!(documented, known);
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

    let as_it_happens =
        |kind: &'static str| move |&(name, meaning): &(&'static str, _)| (name, kind, meaning);
    let counters = COUNTERS.iter().map(as_it_happens("counter"));
    let gauges = GAUGES.iter().map(as_it_happens("gauge"));
    let state = STATE.iter().map(|family| (family.name, family.kind.word(), family.meaning));
    let owned =
        |(name, kind, meaning): (&str, &str, &str)| (name.to_owned(), kind.to_owned(), meaning.to_owned());
    let exported: Vec<_> = counters.chain(gauges).chain(state).map(owned).collect();
    assert_eq!(documented, exported);
}

/// One refusal of each kind, and of each reason.
fn refusals() -> Vec<Refusal> {
    let second = Duration::from_secs(1);
    let known = Known { xid: 771, lsn: Lsn(0x300_0148), process_id: 4711 };
    let mut all = vec![
        Refusal::BreakerOpen { lane: Lane::Write, cause: None, retry_after: second },
        Refusal::Paused { lane: Lane::Read, retry_after: second },
        Refusal::CommitUnresolved { cause: Cause::Storage, outcome: Outcome::Unknown, known: Some(known) },
        Refusal::CommitUnresolved { cause: Cause::Unknown, outcome: Outcome::Committed, known: None },
        Refusal::CommitRolledBack { known: Some(known) },
        Refusal::CommittedUnreplicated,
        Refusal::NoUpstream { lane: Lane::Read, cause: Arc::new(ConnectError::Timeout), retry_after: second },
        Refusal::LoginRefused(Arc::new(ConnectError::NoCredential("a proof"))),
        Refusal::NoServer {
            lane: Lane::Write,
            why: WhyNot::NoPrimary { cause: Cause::Unreachable },
            retry_after: second,
        },
        Refusal::Cancelled,
        Refusal::BackendLost { outcome: Outcome::Unknown },
        Refusal::BackendLost { outcome: Outcome::RolledBack },
        Refusal::SessionLost,
        Refusal::TransactionLost,
        Refusal::IdleInTransaction,
        Refusal::IdleSession,
        Refusal::Drain { outcome: Outcome::NotSent },
        Refusal::Drain { outcome: Outcome::RolledBack },
        Refusal::Drain { outcome: Outcome::Unknown },
        Refusal::Killed { outcome: Outcome::NotSent },
        Refusal::Killed { outcome: Outcome::RolledBack },
        Refusal::Killed { outcome: Outcome::Unknown },
        Refusal::TooManySessions { limit: 1 },
        Refusal::Protocol("x".to_owned()),
    ];
    let shed = [Reason::QueueFull, Reason::QueueTimeout, Reason::Limit, Reason::Priority, Reason::Deadline];
    all.extend(shed.map(|reason| Refusal::Shed { lane: Lane::Read, reason, retry_after: second }));
    let deadlines = [Deadline::Read, Deadline::Write, Deadline::Transaction];
    all.extend(deadlines.map(|deadline| {
        let blockers = Arc::from([17]);
        Refusal::TimedOut(TimedOut { deadline, lane: Lane::Write, cause: Cause::Lock, blockers })
    }));
    for refusal in &all {
        // A new variant does not compile here; it belongs into the list above, too.
        match refusal {
            Refusal::Shed { .. }
            | Refusal::BreakerOpen { .. }
            | Refusal::Paused { .. }
            | Refusal::TimedOut(_)
            | Refusal::CommitUnresolved { .. }
            | Refusal::CommitRolledBack { .. }
            | Refusal::CommittedUnreplicated
            | Refusal::NoUpstream { .. }
            | Refusal::NoServer { .. }
            | Refusal::LoginRefused(_)
            | Refusal::Cancelled
            | Refusal::BackendLost { .. }
            | Refusal::SessionLost
            | Refusal::TransactionLost
            | Refusal::IdleInTransaction
            | Refusal::IdleSession
            | Refusal::Drain { .. }
            | Refusal::Killed { .. }
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
        let optional = row[4].split("maybe ").nth(1).unwrap_or_default();
        let required = row[4].split("maybe ").next().unwrap_or_default();
        let missing = code(required).into_iter().find(|key| !keys.contains(key));
        assert_eq!(missing, None, "DETAIL of {reason}");
        let extra = keys.iter().find(|key| !code(required).contains(*key) && !code(optional).contains(*key));
        assert_eq!(extra, None, "DETAIL of {reason}");
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
        // What follows is the shell's.
        let command = line.split(" > ").next().unwrap();
        let parsed = cli::parse_from(command.split_whitespace());
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

/// Words that begin as our metrics do; `process_…` where a job of ours is named is one, too.
fn metric_names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("tidegate_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

/// Every name that a page of metrics can have.
fn exported_names() -> BTreeSet<String> {
    let counters = COUNTERS.iter().chain(GAUGES).map(|(name, _)| (*name).to_owned());
    let state = STATE.iter().flat_map(|family| match family.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"].map(|end| format!("{}{end}", family.name)).to_vec(),
        Kind::Counter | Kind::Gauge => vec![family.name.to_owned()],
    });
    counters.chain(state).collect()
}

#[test]
fn the_monitoring_kit_names_metrics_that_exist() {
    // A rule about a metric that nobody exports never fires, and nobody notices.
    let folder = root().join("proxy/monitoring");
    let exported = exported_names();
    for file in ["alerts.yaml", "grafana.json"] {
        let text = fs::read_to_string(folder.join(file)).unwrap();
        let named = metric_names(&text);
        let unknown: Vec<_> = named.difference(&exported).collect();

        assert!(named.len() > 10, "{file} names hardly anything");
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

#[test]
fn the_alert_rules_watch_the_watcher_and_use_words_that_exist() {
    // Without absent() a sidecar that is gone looks like one without trouble; a label misspelt never matches.
    let text = fs::read_to_string(root().join("proxy/monitoring/alerts.yaml")).unwrap();
    let alerts = text.lines().filter(|line| line.trim_start().starts_with("- alert: ")).count();
    let severities = text.lines().filter(|line| line.trim_start().starts_with("severity: ")).count();
    let summaries = text.lines().filter(|line| line.trim_start().starts_with("summary: ")).count();
    let of_label = |label: &str| -> BTreeSet<&str> {
        let values = [format!("{label}=\""), format!("{label}=~\"")].map(|begin| {
            text.split(&begin)
                .skip(1)
                .flat_map(|rest| rest.split('"').next().unwrap().split('|'))
                .collect::<Vec<_>>()
        });
        values.concat().into_iter().collect()
    };

    assert!(text.contains("absent(tidegate_build_info"));
    assert_eq!((alerts, alerts), (severities, summaries), "each alert has a severity and a summary");
    assert!(of_label("reason").iter().all(|reason| REASONS.contains(reason)), "{:?}", of_label("reason"));
    assert!(
        of_label("outcome").iter().all(|outcome| OUTCOMES.contains(outcome)),
        "{:?}",
        of_label("outcome")
    );
    let states = LaneState::ALL.map(LaneState::word);
    assert!(of_label("state").iter().all(|state| states.contains(state)), "{:?}", of_label("state"));
}

#[test]
fn the_grafana_dashboard_is_whole() {
    // Grafana refuses a file with an error of syntax; two panels of one number hide each other.
    let text = fs::read_to_string(root().join("proxy/monitoring/grafana.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();

    assert!(panels.len() > 10);
    assert_eq!(ids.len(), panels.len());
    for panel in panels {
        let targets = panel["targets"].as_array().unwrap();
        assert!(targets.iter().all(|target| !target["expr"].as_str().unwrap().is_empty()), "{panel}");
    }
}

/// Rules that hold every query of the dashboard, with Grafana's variables replaced.
fn queries_as_rules() -> String {
    let text = fs::read_to_string(root().join("proxy/monitoring/grafana.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    let mut rules = "groups:\n- name: panels\n  rules:\n".to_owned();
    for (number, query) in queries.enumerate() {
        let query = query.replace("$__rate_interval", "1m").replace("$instance", ".*");
        assert!(!query.contains('$'), "a variable that nobody sets: {query}");
        let query = serde_json::to_string(&query).unwrap();
        rules.extend([format!("  - record: q{number}\n"), format!("    expr: {query}\n")]);
    }
    rules
}

/// What should page, and what the page is made of.
const PAGES: &str = "
rule_files: [alerts.yaml]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series: []
    alert_rule_test:
      - eval_time: 2m
        alertname: TidegateAbsent
        exp_alerts:
          - exp_labels: {severity: page, job: tidegate}
            exp_annotations:
              summary: No tidegate sidecar is seen by Prometheus
              description: Either every sidecar is gone or the scrape job does not find them. No other rule of this group can fire.
  - interval: 15s
    input_series:
      - series: 'tidegate_build_info{job=\"tidegate\",instance=\"a\"}'
        values: '1x20'
      - series: 'tidegate_lane_state{job=\"tidegate\",instance=\"a\",lane=\"write\",state=\"refusing\"}'
        values: '0 0 0 0 1x16'
    alert_rule_test:
      - {eval_time: 45s, alertname: TidegateWritesRefused, exp_alerts: []}
      - {eval_time: 2m, alertname: TidegateAbsent, exp_alerts: []}
      - eval_time: 2m
        alertname: TidegateWritesRefused
        exp_alerts:
          - exp_labels: {severity: page, instance: a}
            exp_annotations:
              summary: a refuses writes
              description: 'The dashboard of the sidecar says why and what to do. Cause: tidegate_lane_cause.'
";

#[test]
fn prometheus_understands_every_rule_and_panel_and_pages_when_it_should() {
    // Seen: two panels with an expression that no Prometheus could parse, and so without data for ever.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(root().join("proxy/monitoring/alerts.yaml"), folder.path().join("alerts.yaml")).unwrap();
    fs::write(folder.path().join("panels.yaml"), queries_as_rules()).unwrap();
    fs::write(folder.path().join("pages.yaml"), PAGES).unwrap();
    for arguments in [
        &["check", "rules", "alerts.yaml"][..],
        &["check", "rules", "panels.yaml"],
        &["test", "rules", "pages.yaml"],
    ] {
        let run = std::process::Command::new("promtool").args(arguments).current_dir(folder.path()).output();
        let Ok(output) = run else {
            println!("skipped: there is no promtool");
            return;
        };

        let said =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
}

#[test]
fn the_unit_runs_commands_that_exist() {
    // A unit with a flag of yesterday fails on the day that the machine is rebuilt.
    let unit = fs::read_to_string(root().join("proxy/monitoring/tidegate.service")).unwrap();
    let commands: Vec<_> = unit.lines().filter_map(|line| line.split_once("=/usr/local/bin/")).collect();

    assert_eq!(commands.len(), 2);
    for (_, command) in commands {
        assert!(cli::parse_from(command.split_whitespace()).is_ok(), "{command}");
    }
    assert!(unit.contains("Restart=always") && unit.contains("LimitNOFILE="));
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    // A directive that is misspelt is ignored at boot, with a line in a log that nobody reads.
    let folder = tempfile::tempdir().unwrap();
    let unit = fs::read_to_string(root().join("proxy/monitoring/tidegate.service")).unwrap();
    // The program and the user are not installed here.
    let unit = unit.replace("/usr/local/bin/tidegate", crate::TIDEGATE).replace("=tidegate\n", "=daemon\n");
    let path = folder.path().join("tidegate.service");
    fs::write(&path, unit).unwrap();
    let verified = std::process::Command::new("systemd-analyze").arg("verify").arg(&path).output();
    let Ok(output) = verified else {
        println!("skipped: there is no systemd-analyze");
        return;
    };

    let said = String::from_utf8_lossy(&output.stderr);
    // It also looks at the units of the machine, which are none of ours.
    let about_ours: Vec<&str> = said.lines().filter(|line| line.contains("tidegate.service")).collect();
    assert!(about_ours.is_empty(), "{about_ours:?}");
}

#[test]
fn every_reason_of_a_refusal_has_a_place_in_the_metrics() {
    // One without would be counted as "other", where nobody looks.
    for refusal in refusals() {
        assert!(REASONS.contains(&refusal.reason()), "{}", refusal.reason());
    }
}
