//! The process as the kernel sees it (proc(5)), under the names that Prometheus' client libraries agreed on.

use std::fs;
use std::time::SystemTime;

use rustix::process::{Resource, getrlimit};

/// See the module documentation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessFigures {
    /// Processor time of all threads so far, in seconds.
    pub cpu_seconds: f64,
    /// Memory in use.
    pub resident_bytes: f64,
    /// Threads.
    pub threads: f64,
    /// Open file descriptors.
    pub open_fds: f64,
    /// How many there may be.
    pub max_fds: f64,
}

impl ProcessFigures {
    /// As of now; `None` where there is no /proc.
    pub fn read() -> Option<Self> {
        let stat = Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)?;
        let page = f64::from(u32::try_from(rustix::param::page_size()).ok()?);
        let ticks = as_f64(rustix::param::clock_ticks_per_second());
        Some(Self {
            cpu_seconds: as_f64(stat.cpu_ticks) / ticks,
            resident_bytes: as_f64(stat.resident_pages) * page,
            threads: as_f64(stat.threads),
            open_fds: as_f64(fs::read_dir("/proc/self/fd").ok()?.count() as u64),
            max_fds: getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, as_f64),
        })
    }
}

/// The moment of the start in seconds of the Unix epoch.
pub fn start_seconds(started_at: SystemTime) -> f64 {
    started_at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    resident_pages: u64,
}

impl Stat {
    /// Fields are counted from 1 in proc(5); the second may contain spaces and parentheses.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self { cpu_ticks: field(14)? + field(15)?, threads: field(20)?, resident_pages: field(24)? })
    }
}

#[expect(clippy::cast_precision_loss, reason = "good to one in 2^52")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_shifts_no_field() {
        // The second field is whatever the process calls itself.
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 5 0 100 1000000 250 18446744073709551615";

        let stat = Stat::parse(text);

        assert_eq!(stat, Some(Stat { cpu_ticks: 42, threads: 5, resident_pages: 250 }));
    }

    #[test]
    fn this_process_has_figures() {
        // A field counted wrongly gives zero threads or absurd memory.
        let figures = ProcessFigures::read().unwrap();

        assert!(figures.threads >= 1.0 && figures.open_fds >= 3.0, "{figures:?}");
        assert!((1e5..1e11).contains(&figures.resident_bytes), "{figures:?}");
    }
}
