//! Where logs go and how they look.
//!
//! Whoever logs only queues the line: one thread touches standard error, which may be a full pipe, a frozen disk or
//! a shipper that has died. What finds the queue full is lost, and counted; the next line that gets through says
//! how many there were.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal as _, Write};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::LogFormat;
use crate::timestamp::Timestamp;

/// Lines that wait for standard error.
const QUEUE: usize = 1024;

/// How long the process waits at its end for lines that are queued, and how often it looks.
const LAST_LINES: Duration = Duration::from_millis(200);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The counts of the process.
static COUNTS: Counts = Counts { lost: AtomicU64::new(0), waiting: AtomicUsize::new(0) };

/// Installs the subscriber: human on a terminal, JSON otherwise, unless told. `TIDEGATE_LOG` filters. Panics are
/// logged like everything else.
pub fn install(format: Option<LogFormat>) -> LastLines {
    let wanted = std::env::var("TIDEGATE_LOG").ok().filter(|text| !text.is_empty());
    // One that is wrong is refused with the configuration, and that is read next.
    let filter = wanted.and_then(|text| filter(&text).ok()).unwrap_or_else(|| EnvFilter::new("info"));
    let format =
        format.unwrap_or(if io::stderr().is_terminal() { LogFormat::Human } else { LogFormat::Json });
    if let Err(error) = start(filter, format) {
        eprintln!("tidegate: logging is not available: {error}");
    }
    LastLines
}

/// Reads what `TIDEGATE_LOG` says.
///
/// # Errors
/// What is wrong with it. A word alone must be a level: `inof` would quietly be a module that there is not.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    for part in text.split(',').map(str::trim) {
        if !part.contains(['=', '[']) && part.parse::<LevelFilter>().is_err() {
            return Err(format!("\"{part}\" is no level"));
        }
    }
    EnvFilter::try_new(text).map_err(|error| format!("\"{text}\" is no filter of logs: {error}"))
}

/// Lines that are lost so far.
pub fn lost() -> u64 {
    COUNTS.lost.load(Ordering::Relaxed)
}

fn start(filter: EnvFilter, format: LogFormat) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (queue, lines) = queue(&COUNTS);
    let write = move || lines.write_to(io::stderr(), format);
    std::thread::Builder::new().name("tidegate-log".to_owned()).spawn(write)?;
    // What cannot be logged has nowhere to be told; by default it would be a panic.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue).log_internal_errors(false);
    // Not said on a terminal: there NO_COLOR decides.
    let builder = if io::stderr().is_terminal() { builder } else { builder.with_ansi(false) };
    match format {
        LogFormat::Human => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// As the standard library's own hook, which would wait for standard error.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(backtrace));
    tracing::error!(thread = thread.name(), backtrace, "{panic}");
}

/// Waits on drop until what was logged is written, though not long.
#[derive(Debug)]
#[must_use = "what is dropped at once waits for nothing"]
pub struct LastLines;

impl Drop for LastLines {
    fn drop(&mut self) {
        let end = Instant::now() + LAST_LINES;
        while COUNTS.waiting.load(Ordering::Acquire) > 0 && Instant::now() < end {
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// What became of lines.
#[derive(Debug, Default)]
struct Counts {
    lost: AtomicU64,
    /// Queued, and not yet written.
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Line {
    text: Vec<u8>,
    /// How many were lost before this one.
    lost: u64,
}

/// Where lines go.
#[derive(Debug)]
struct Queue {
    lines: SyncSender<Line>,
    counts: &'static Counts,
}

/// Where they come out.
#[derive(Debug)]
struct Lines {
    lines: Receiver<Line>,
    counts: &'static Counts,
}

fn queue(counts: &'static Counts) -> (Queue, Lines) {
    let (sender, receiver) = sync_channel(QUEUE);
    (Queue { lines: sender, counts }, Lines { lines: receiver, counts })
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Each write is a line: the subscriber formats the whole before it writes.
impl Write for &Queue {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let line = Line { text: text.to_owned(), lost: self.counts.lost.load(Ordering::Relaxed) };
        self.counts.waiting.fetch_add(1, Ordering::AcqRel);
        if self.lines.try_send(line).is_err() {
            self.counts.waiting.fetch_sub(1, Ordering::AcqRel);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Writes them as they come, and waits for nobody else.
    fn write_to(self, mut out: impl Write, format: LogFormat) {
        let mut told = 0;
        for Line { mut text, lost } in self.lines {
            if lost > told {
                text.splice(..0, notice(format, lost - told).into_bytes());
            }
            match out.write_all(&text) {
                Ok(()) => told = lost.max(told),
                Err(_) => drop(self.counts.lost.fetch_add(1, Ordering::Relaxed)),
            }
            self.counts.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// A line that looks as those of the subscriber do.
fn notice(format: LogFormat, lost: u64) -> String {
    const MESSAGE: &str = "lines of the log were lost before this one: they were not taken in time";
    let at = Timestamp::now();
    let target = module_path!();
    match format {
        LogFormat::Human => format!("{at}  WARN {target}: {MESSAGE} lost={lost}\n"),
        LogFormat::Json => {
            let line = serde_json::json!({
                "timestamp": at, "level": "WARN", "message": MESSAGE, "lost": lost, "target": target
            });
            format!("{line}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Refuses what it is given first, and keeps the rest.
    #[derive(Clone, Default)]
    struct Out {
        refuses: usize,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Out {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            if let Some(left) = self.refuses.checked_sub(1) {
                self.refuses = left;
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.taken.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn fresh() -> (Queue, Lines, &'static Counts) {
        let counts: &'static Counts = Box::leak(Box::default());
        let (queue, lines) = queue(counts);
        (queue, lines, counts)
    }

    fn log(queue: &Queue, count: usize) {
        for number in 0..count {
            (&*queue).write_all(format!("{number}\n").as_bytes()).unwrap();
        }
    }

    /// What is written of the lines that are queued, when no more come.
    fn written(queue: Queue, lines: Lines, out: &Out, format: LogFormat) -> Vec<String> {
        drop(queue);
        lines.write_to(out.clone(), format);
        let text = String::from_utf8(out.taken.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn who_logs_waits_for_nobody_and_what_finds_no_room_is_counted_and_told() {
        // Nobody reads: a worker that waited here would serve no session, and a breaker would not open. And a log
        // with a hole that nobody sees misleads whoever reads it.
        let (queue, lines, counts) = fresh();
        log(&queue, QUEUE + 7);
        assert_eq!((counts.lost.load(Ordering::Relaxed), counts.waiting.load(Ordering::Relaxed)), (7, QUEUE));

        let taken: Vec<Line> = std::iter::from_fn(|| lines.lines.try_recv().ok()).collect();
        assert_eq!(taken.len(), QUEUE);
        log(&queue, 2);
        counts.waiting.store(2, Ordering::Relaxed);
        let seen = written(queue, lines, &Out::default(), LogFormat::Json);

        let told: serde_json::Value = serde_json::from_str(&seen[0]).unwrap();
        assert_eq!((&told["lost"], &told["level"]), (&7.into(), &"WARN".into()));
        assert_eq!(seen[1..], ["0", "1"]);
        assert_eq!(counts.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_standard_error_refuses_is_lost_and_told_and_the_next_line_is_written() {
        // A disk that was full works again: a thread that ended at its first error would log no more.
        let (queue, lines, counts) = fresh();
        log(&queue, 2);
        let out = Out { refuses: 1, ..Out::default() };
        let late = Queue { lines: queue.lines.clone(), counts };
        counts.lost.store(1, Ordering::Relaxed);
        log(&late, 1);
        drop(late);

        let seen = written(queue, lines, &out, LogFormat::Human);

        assert_eq!(seen.len(), 3, "{seen:?}");
        assert!(seen[1].ends_with("lost=1"), "{seen:?}");
        assert_eq!(counts.lost.load(Ordering::Relaxed), 2);
    }
}
