//! Where a run took place, and with which versions.

use serde::Serialize;

use crate::environment::Environment;
use crate::subject::Kind;

/// Figures of different machines cannot be compared; ratios can, with care.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Cores that we may use.
    pub cores: usize,
    /// Model name of the processor.
    pub processor: String,
    /// Kernel release.
    pub kernel: String,
    /// Version line of each subject that is installed.
    pub versions: Vec<Version>,
}

/// What one subject says of itself.
#[derive(Debug, Serialize)]
pub struct Version {
    /// Which one.
    pub subject: Kind,
    /// Its version line.
    pub version: String,
}

impl Machine {
    /// This machine and what is installed on it.
    pub fn describe(environment: &Environment, kinds: &[Kind]) -> Self {
        let version = |&subject: &Kind| Some(Version { subject, version: subject.version(environment)? });
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: processor().unwrap_or_else(|| "unknown processor".to_owned()),
            kernel: read_line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned()),
            versions: kinds.iter().filter_map(version).collect(),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} cores, {}, Linux {}", self.cores, self.processor, self.kernel)?;
        self.versions.iter().try_for_each(|subject| write!(f, "; {}", subject.version))
    }
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn read_line(file: &str) -> Option<String> {
    Some(std::fs::read_to_string(file).ok()?.trim().to_owned())
}
