//! What a subject's processes used: CPU time and resident memory, of the process and all its descendants.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// The process and everything that descends from it, as of now.
pub fn process_tree(root: Pid) -> Vec<Pid> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(children(pid));
        next += 1;
    }
    found
}

/// Children hang below the thread that created them (`proc(5)`, `/proc/pid/task/tid/children`).
fn children(pid: Pid) -> Vec<Pid> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .map(Pid::from_raw)
        .collect()
}

/// CPU time (user and system) that these processes have used, threads that ended included.
///
/// Read from each process's CPU clock (`clock_getcpuclockid(3)`): the same sum as utime + stime of
/// `/proc/pid/stat`, but in nanoseconds, where the latter counts ticks of 10 ms.
pub fn cpu_time(processes: &[Pid]) -> Result<Duration> {
    processes.iter().try_fold(Duration::ZERO, |sum, &pid| {
        let clock = clock_getcpuclockid(pid).with_context(|| format!("process {pid} has ended"))?;
        let used = clock_gettime(clock).with_context(|| format!("process {pid} has ended"))?;
        Ok(sum + Duration::from(used))
    })
}

/// Resident memory (`VmRSS`) of these processes in KiB.
pub fn resident_kib(processes: &[Pid]) -> Result<u64> {
    processes.iter().try_fold(0, |sum, pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("process {pid} has ended"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is no number")?;
        Ok(sum + kib)
    })
}

/// CPU time sampled over a run, to be asked afterwards for the part that counts.
#[derive(Debug, Default)]
pub struct CpuTimeline {
    samples: Vec<(Instant, Duration)>,
}

impl CpuTimeline {
    /// Adds a reading. Readings come in the order of time.
    pub fn push(&mut self, at: Instant, used: Duration) {
        self.samples.push((at, used));
    }

    /// CPU time used from `start` to the last reading, interpolated between the readings around `start`.
    pub fn used_since(&self, start: Instant) -> Option<Duration> {
        let (_, last) = self.samples.last()?;
        let after = self.samples.iter().position(|(at, _)| *at >= start)?;
        let (after_at, after_used) = self.samples[after];
        let Some((before_at, before_used)) = after.checked_sub(1).map(|before| self.samples[before]) else {
            return last.checked_sub(after_used);
        };
        let share = (start - before_at).as_secs_f64() / (after_at - before_at).as_secs_f64();
        let used_at_start = before_used + after_used.saturating_sub(before_used).mul_f64(share);
        last.checked_sub(used_at_start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_used_before_the_start_does_not_count() {
        // Half of the 10 ms used between the first two readings lies before the start, which is the login phase.
        let begin = Instant::now();
        let mut timeline = CpuTimeline::default();
        for (at_ms, used_ms) in [(0, 0), (20, 10), (40, 30)] {
            timeline.push(begin + Duration::from_millis(at_ms), Duration::from_millis(used_ms));
        }

        let used = timeline.used_since(begin + Duration::from_millis(10));

        assert_eq!(used, Some(Duration::from_millis(25)));
    }

    #[test]
    fn our_own_work_shows_up_in_our_cpu_time() {
        // A clock that stands still would make every subject look free.
        let ourselves = [nix::unistd::getpid()];
        let before = cpu_time(&ourselves).unwrap();

        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }

        assert!(cpu_time(&ourselves).unwrap() > before);
    }
}
