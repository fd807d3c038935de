//! Where configuration comes from, and the one way from there to a [`Config`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeArray, DeValue};

use super::file::{self, File};
use super::layers::Layers;
use super::problem::{ConfigErrors, Problem};
use super::upstream_url::{self, UpstreamUrl};
use super::{AuthMethod, Config, Files, Password, check, tree};

/// Everything that an operator can say. Kept for the life of the process: a reload loads from it again.
#[derive(Clone, Default)]
pub struct Sources {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// The environment; what does not start with `TIDEGATE_` is ignored.
    pub environment: BTreeMap<String, OsString>,
    /// `--listen`, each an address.
    pub listen: Vec<String>,
    /// `--admin`.
    pub admin: Option<String>,
    /// `--upstream`, each a URL that may hold a password.
    pub upstreams: Vec<Password>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values of variables may be secrets.
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("environment", &self.environment.keys())
            .field("listen", &self.listen)
            .field("admin", &self.admin)
            .field("upstreams", &self.upstreams)
            .finish()
    }
}

impl Sources {
    /// The `TIDEGATE_*` variables of this process.
    pub fn process_environment() -> BTreeMap<String, OsString> {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with("TIDEGATE_"))
            .collect()
    }
}

impl Config {
    /// What every key is when nobody writes anything. Not a configuration to run with: it names no upstream.
    pub fn defaults() -> Self {
        let environment = BTreeMap::new();
        tree::build(&mut Layers::new(None, &environment), AuthMethod::Scram)
    }

    /// Loads, checks and returns a whole configuration: defaults, hidden by the file, hidden by `TIDEGATE_*`
    /// variables, hidden by flags.
    ///
    /// Reads the file and the files that it names; talks to no database.
    ///
    /// # Errors
    /// All problems that were found, each with its place and what to do. Nothing is half-loaded.
    pub fn load(sources: &Sources) -> Result<Self, ConfigErrors> {
        let text = sources.file.as_deref().map(file::read).transpose().map_err(only)?;
        Self::of(sources, text.as_deref())
    }

    /// As [`Config::load`], of a text that is not in a file yet, and nothing else. `path` is where it would be.
    ///
    /// # Errors
    /// As for `load`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigErrors> {
        Self::of(&Sources { file: Some(path.to_owned()), ..Sources::default() }, Some(text))
    }

    fn of(sources: &Sources, text: Option<&str>) -> Result<Self, ConfigErrors> {
        let file = match (&sources.file, text) {
            (Some(path), Some(text)) => Some(File::parse(path, text).map_err(only)?),
            _ => None,
        };
        let mut layers = Layers::new(file, &sources.environment);
        if text.is_some_and(|text| !text.ends_with('\n')) {
            layers
                .warnings
                .push("the last line of the file has no end: was the file written whole?".to_owned());
        }
        let config = load_layers(sources, &mut layers);
        let files = readable(config.files(), &layers);
        let Layers { problems, warnings, .. } = layers;
        if problems.is_empty() {
            Ok(Self { warnings, ..config })
        } else {
            Err(ConfigErrors { problems, warnings, files: Box::new(files) })
        }
    }
}

fn only(problem: Problem) -> ConfigErrors {
    ConfigErrors {
        problems: vec![problem],
        warnings: Vec::new(),
        files: Box::new(Config::defaults().files()),
    }
}

/// Those files of which nothing bad is known yet.
fn readable(mut files: Files, layers: &Layers<'_>) -> Files {
    for (key, path) in [
        ("listen.userlist", &mut files.userlist),
        ("listen.tls_cert", &mut files.listen_tls.cert),
        ("listen.tls_key", &mut files.listen_tls.key),
        ("listen.tls_client_ca", &mut files.listen_tls.client_ca),
        ("cluster.tls_ca", &mut files.upstream_tls.ca),
        ("cluster.tls_cert", &mut files.upstream_tls.cert),
        ("cluster.tls_key", &mut files.upstream_tls.key),
    ] {
        if layers.has_failed(key) {
            *path = None;
        }
    }
    files
}

/// Flags, then the tree, then the rules. What is wrong stays in the layers.
pub(super) fn load_layers<'a>(sources: &'a Sources, layers: &mut Layers<'a>) -> Config {
    set_flags(sources, layers);
    // With nothing but URLs on the command line there is no place for secrets, and we listen on loopback.
    let flags_only = !layers.has_file() && !sources.upstreams.is_empty();
    let unset_auth = if flags_only { AuthMethod::Trust } else { AuthMethod::Scram };
    let config = tree::build(layers, unset_auth);
    layers.refuse_unknown();
    check::check(&config, layers);
    config
}

fn set_flags<'a>(sources: &'a Sources, layers: &mut Layers<'a>) {
    if !sources.listen.is_empty() {
        layers.set_flag("listen.address", "--listen", list(&sources.listen));
    }
    if let Some(admin) = &sources.admin {
        layers.set_flag("admin.address", "--admin", DeValue::String(admin.as_str().into()));
    }
    if !sources.upstreams.is_empty() {
        set_upstreams(&sources.upstreams, layers);
    }
}

fn set_upstreams(urls: &[Password], layers: &mut Layers<'_>) {
    let mut parsed = Vec::new();
    for (index, url) in urls.iter().enumerate() {
        match upstream_url::parse(url.reveal()) {
            Ok(url) => parsed.push(url),
            Err(error) => refuse(layers, "cluster.upstreams", &format!("number {}: {error}", index + 1)),
        }
    }
    let addresses: Vec<_> =
        parsed.iter().filter_map(|url| url.address.as_ref()).map(ToString::to_string).collect();
    layers.set_flag("cluster.upstreams", "--upstream", list(&addresses));
    set_shared(layers, &parsed, "cluster.user", |url| url.user.as_deref());
    set_shared(layers, &parsed, "cluster.password", |url| url.password.as_ref().map(Password::reveal));
    set_shared(layers, &parsed, "cluster.database", |url| url.database.as_deref());
    set_shared(layers, &parsed, "cluster.tls", |url| url.sslmode.as_deref());
    set_shared(layers, &parsed, "cluster.tls_ca", |url| url.ca.as_deref());
    set_shared(layers, &parsed, "cluster.tls_cert", |url| url.cert.as_deref());
    set_shared(layers, &parsed, "cluster.tls_key", |url| url.key.as_deref());
}

/// One cluster has one user, one database and so on: URLs may repeat it or leave it out, not differ.
fn set_shared(
    layers: &mut Layers<'_>,
    urls: &[UpstreamUrl],
    key: &'static str,
    part: fn(&UpstreamUrl) -> Option<&str>,
) {
    let mut values = urls.iter().filter_map(part);
    let Some(first) = values.next() else { return };
    if values.any(|value| value != first) {
        refuse(layers, key, "the URLs differ in this, which a cluster has once");
    }
    layers.set_flag(key, "--upstream", DeValue::String(first.to_owned().into()));
}

fn refuse(layers: &mut Layers<'_>, key: &'static str, reason: &str) {
    layers.fail_flag(key, "--upstream", reason, "write postgres://user:password@host:port/database");
}

fn list<'a>(texts: &[String]) -> DeValue<'a> {
    let mut array = DeArray::new();
    for text in texts {
        array.push(Spanned::new(0..0, DeValue::String(text.clone().into())));
    }
    DeValue::Array(array)
}
