//! tidegate with its defaults, its pool size and state folder apart.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use toml::{Table, Value};

use crate::cluster::{Doing, Owner, PortLease, Result, Workdir};
use crate::daemon::{Daemon, Recipe};

use super::{Kind, Subject, SubjectOptions, loopback, version_of};

/// Name of the configuration in the subject's folder; a fault tears it.
pub(crate) const CONFIG: &str = "tidegate.toml";

/// Name of the folder for journal and outbox; a fault fills it.
pub(crate) const STATE: &str = "state";

pub(super) fn start(program: &Path, options: &SubjectOptions) -> Result<Subject> {
    let program = fs::canonicalize(program).doing_to("find", program)?;
    let version = version_of(&program)?;
    let owner = Owner::caller();
    let workdir = Workdir::create("tidegate", &owner)?;
    let (listen, admin) = (PortLease::take()?, PortLease::take()?);
    let (address, admin_address) = (loopback(listen.port()), loopback(admin.port()));
    let state = workdir.path().join(STATE);
    fs::create_dir(&state).doing_to("create", &state)?;
    let mut config = base(options, &address.to_string(), &admin_address.to_string(), &state);
    merge(&mut config, &options.tidegate);
    let path = workdir.path().join(CONFIG);
    fs::write(&path, config.to_string()).doing_to("write", &path)?;
    let recipe = Recipe {
        program,
        arguments: vec!["run".to_owned(), "--config".to_owned(), path.to_string_lossy().into_owned()],
        environment: Vec::new(),
        listens: address,
    };
    let daemon = Some(Arc::new(Daemon::start(recipe, owner, workdir)?));
    let ports = vec![listen, admin];
    Ok(Subject { kind: Kind::Tidegate, version, address, admin: Some(admin_address), daemon, _ports: ports })
}

fn base(options: &SubjectOptions, listen: &str, admin: &str, state: &Path) -> Table {
    let upstreams: Vec<Value> =
        options.upstreams.iter().map(|address| Value::from(address.to_string())).collect();
    let pool = i64::try_from(options.pool).unwrap_or(i64::MAX);
    let mut alerts = Table::new();
    if let Some(url) = &options.webhook {
        let hook = table([("url", Value::from(url.as_str())), ("kind", Value::from("json"))]);
        alerts.insert("webhooks".to_owned(), Value::Array(vec![Value::Table(hook)]));
    }
    let sections = [
        ("listen", table([("address", Value::from(listen)), ("auth", Value::from("trust"))])),
        ("admin", table([("address", Value::from(admin))])),
        ("cluster", table([("upstreams", Value::Array(upstreams)), ("user", Value::from("tidegate"))])),
        ("pool", table([("size", Value::from(pool))])),
        ("alerts", alerts),
    ];
    let mut config = table([("state_dir", Value::from(state.to_string_lossy().into_owned()))]);
    config.extend(sections.map(|(name, section)| (name.to_owned(), Value::Table(section))));
    config
}

fn table<const N: usize>(pairs: [(&str, Value); N]) -> Table {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Puts `over` on top of `base`; tables are merged, everything else is replaced.
pub(crate) fn merge(base: &mut Table, over: &Table) {
    for (name, value) in over {
        match (base.get_mut(name), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            _ => {
                base.insert(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_changes_single_keys_of_a_section() {
        // Replacing the whole section would lose the pool's size.
        let mut base: Table = "[pool]\nsize = 20\n".parse().unwrap();

        merge(&mut base, &"[pool]\nmode = \"session\"\n".parse().unwrap());

        assert_eq!(base, "[pool]\nsize = 20\nmode = \"session\"\n".parse().unwrap());
    }
}
