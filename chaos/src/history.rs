//! What was asked, when it was meant to be asked, and what became of it.
//!
//! The words are Jepsen's: an operation is *invoked* and ends as *ok* (acknowledged), *fail* (certainly not
//! applied) or *unknown* (may have been applied). Times are counted from the start of the run. Latency is
//! counted from the intended start, so that a stall is charged to every operation it delays ("coordinated
//! omission": Tene, *How NOT to Measure Latency*).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The class of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Statements that write nothing.
    Read,
    /// One insert of a key that nobody else inserts.
    Write,
    /// Questions about health.
    Monitor,
}

/// The way that an operation takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// `PostgreSQL`'s protocol, through the subject.
    Sql,
    /// `PostgreSQL`'s protocol, past the subject: what the server itself takes at that moment.
    Direct,
    /// HTTP, through a reverse proxy, a service and the subject.
    Http,
    /// HTTP, to the subject's own control plane.
    Admin,
    /// Through neither subject nor server: how fast the machine itself is at that moment.
    Machine,
}

/// Why an operation was not acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// SQLSTATE of the error, when a server sent one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqlstate: Option<String>,
    /// Status of the HTTP answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The message.
    pub message: String,
    /// DETAIL of the error: `key=value` pairs from tidegate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Failure {
    /// A failure that no server reported.
    pub fn local(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// The value of `key=value` in DETAIL.
    pub fn field(&self, key: &str) -> Option<&str> {
        let pairs = self.detail.as_deref().unwrap_or_default().split_whitespace();
        pairs.filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// Whether tidegate refused it with this reason.
    pub fn is_reason(&self, reason: &str) -> bool {
        self.field("reason") == Some(reason)
    }
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Outcome {
    /// Acknowledged.
    Ok,
    /// Certainly not applied, says the answer.
    Fail(Failure),
    /// Nobody can say.
    Unknown(Failure),
}

impl Outcome {
    /// The failure, unless it was acknowledged.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Ok => None,
            Self::Fail(failure) | Self::Unknown(failure) => Some(failure),
        }
    }
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Number within the run.
    pub id: u64,
    /// Its class.
    pub lane: Lane,
    /// Its way.
    pub via: Via,
    /// What is asked: a table or a path.
    pub what: String,
    /// The key that a write inserts.
    pub key: Option<i64>,
    /// When it was meant to start.
    #[serde(with = "milliseconds")]
    pub intended: Duration,
    /// When a session was free and it was sent.
    #[serde(with = "optional_milliseconds")]
    pub sent: Option<Duration>,
    /// When its answer came. `None`: never.
    #[serde(with = "optional_milliseconds")]
    pub ended: Option<Duration>,
    /// What the answer was.
    pub outcome: Option<Outcome>,
}

impl Operation {
    /// Whether it was acknowledged.
    pub fn is_ok(&self) -> bool {
        self.outcome == Some(Outcome::Ok)
    }

    /// From the intended start to the answer.
    pub fn latency(&self) -> Option<Duration> {
        self.ended.map(|ended| ended.saturating_sub(self.intended))
    }

    /// From sending to the answer: without the wait for a session of the application's own.
    pub fn service_time(&self) -> Option<Duration> {
        Some(self.ended?.saturating_sub(self.sent?))
    }

    /// The failure it ended with.
    pub fn failure(&self) -> Option<&Failure> {
        self.outcome.as_ref().and_then(Outcome::failure)
    }

    /// Whether it was refused for this reason.
    pub fn refused_for(&self, reason: &str) -> bool {
        self.failure().is_some_and(|failure| failure.is_reason(reason))
    }
}

/// Zero of a run's times, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct RunClock {
    start: Instant,
    started_at: SystemTime,
}

impl RunClock {
    /// Starts counting.
    pub fn start() -> Self {
        Self { start: Instant::now(), started_at: SystemTime::now() }
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The instant at this offset, for timers.
    pub fn instant(&self, offset: Duration) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.start + offset)
    }

    /// Microseconds of the UNIX epoch at the start.
    pub fn epoch_us(&self) -> i64 {
        let since = self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }
}

/// Keeps a history in memory, and as JSON lines in a file.
#[derive(Debug)]
pub struct Recorder {
    clock: RunClock,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    operations: Vec<Operation>,
    lines: Option<BufWriter<File>>,
    /// The first line that could not be written; told at the end.
    broken: Option<io::Error>,
}

/// One line of the file.
#[derive(Debug, Serialize)]
struct Line<'a> {
    at_ms: f64,
    id: u64,
    event: &'static str,
    #[serde(flatten)]
    body: Body<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Body<'a> {
    Invoke { lane: Lane, via: Via, what: &'a str, key: Option<i64>, intended_ms: f64 },
    Sent {},
    Ended { failure: Option<&'a Failure> },
}

impl Recorder {
    /// Writes lines to `file`, when there is one.
    pub fn create(clock: RunClock, file: Option<&Path>) -> io::Result<Self> {
        let lines = file.map(File::create).transpose()?.map(BufWriter::new);
        Ok(Self { clock, inner: Mutex::new(Inner { operations: Vec::new(), lines, broken: None }) })
    }

    /// The run's clock.
    pub fn clock(&self) -> RunClock {
        self.clock
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves whole operations.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an operation that is due; gives its number.
    pub fn invoke(&self, lane: Lane, via: Via, what: &str, key: Option<i64>, intended: Duration) -> u64 {
        let at = self.clock.now();
        let mut inner = self.inner();
        let id = inner.operations.len() as u64;
        inner.write(at, id, "invoke", Body::Invoke { lane, via, what, key, intended_ms: in_ms(intended) });
        let what = what.to_owned();
        inner.operations.push(Operation {
            id,
            lane,
            via,
            what,
            key,
            intended,
            sent: None,
            ended: None,
            outcome: None,
        });
        id
    }

    /// Notes that it goes out now.
    pub fn sent(&self, id: u64) {
        let at = self.clock.now();
        let mut inner = self.inner();
        inner.write(at, id, "sent", Body::Sent {});
        if let Some(operation) = inner.operation(id) {
            operation.sent = Some(at);
        }
    }

    /// Notes its answer.
    pub fn end(&self, id: u64, outcome: Outcome) {
        let at = self.clock.now();
        let mut inner = self.inner();
        let event = match &outcome {
            Outcome::Ok => "ok",
            Outcome::Fail(_) => "fail",
            Outcome::Unknown(_) => "unknown",
        };
        inner.write(at, id, event, Body::Ended { failure: outcome.failure() });
        if let Some(operation) = inner.operation(id) {
            operation.ended = Some(at);
            operation.outcome = Some(outcome);
        }
    }

    /// Operations so far, and those acknowledged or not within the last second: for a progress line.
    pub fn pulse(&self) -> Pulse {
        let now = self.clock.now();
        let since = now.saturating_sub(Duration::from_secs(1));
        let mut pulse = Pulse::default();
        for operation in &self.inner().operations {
            match (operation.lane, operation.ended, operation.is_ok()) {
                (Lane::Monitor, _, _) => {}
                (_, None, _) => pulse.waiting += 1,
                (_, Some(ended), _) if ended < since => {}
                (Lane::Read, Some(_), true) => pulse.reads += 1,
                (Lane::Write, Some(_), true) => pulse.writes += 1,
                (Lane::Read | Lane::Write, Some(_), false) => pulse.errors += 1,
            }
        }
        pulse
    }

    /// The history so far, the file flushed.
    pub fn take(&self) -> io::Result<Vec<Operation>> {
        let mut inner = self.inner();
        if let Some(error) = inner.broken.take() {
            return Err(error);
        }
        if let Some(lines) = &mut inner.lines {
            lines.flush()?;
        }
        Ok(inner.operations.clone())
    }
}

impl Inner {
    fn operation(&mut self, id: u64) -> Option<&mut Operation> {
        usize::try_from(id).ok().and_then(|index| self.operations.get_mut(index))
    }

    fn write(&mut self, at: Duration, id: u64, event: &'static str, body: Body<'_>) {
        let Some(lines) = &mut self.lines else { return };
        let line = Line { at_ms: in_ms(at), id, event, body };
        let written = serde_json::to_writer(&mut *lines, &line).map_err(io::Error::from);
        if let Err(error) = written.and_then(|()| lines.write_all(b"\n")) {
            self.broken.get_or_insert(error);
        }
    }
}

/// What the last second brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Reads acknowledged.
    pub reads: usize,
    /// Writes acknowledged.
    pub writes: usize,
    /// Operations that ended otherwise.
    pub errors: usize,
    /// Operations without an answer yet.
    pub waiting: usize,
}

/// Milliseconds, as reports show them.
pub fn in_ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Durations as milliseconds.
pub(crate) mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64((super::in_ms(*duration) * 1e3).round() / 1e3)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let ms = f64::deserialize(from)?;
        Duration::try_from_secs_f64(ms / 1e3).map_err(serde::de::Error::custom)
    }
}

/// The same, where there may be none.
pub(crate) mod optional_milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(crate) fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::milliseconds::serialize(duration, to),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let ms = Option::<f64>::deserialize(from)?;
        ms.map(|ms| Duration::try_from_secs_f64(ms / 1e3).map_err(serde::de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_counts_from_the_intended_start() {
        // An operation that waited 2 s for a session and then took 1 ms was late by 2 s, not by 1 ms.
        let recorder = Recorder::create(RunClock::start(), None).unwrap();
        let id = recorder.invoke(Lane::Read, Via::Sql, "items", None, Duration::ZERO);
        std::thread::sleep(Duration::from_millis(5));
        recorder.sent(id);

        recorder.end(id, Outcome::Ok);

        let operation = recorder.take().unwrap().remove(0);
        assert!(operation.latency().unwrap() >= Duration::from_millis(5), "{operation:?}");
        assert!(operation.service_time().unwrap() < operation.latency().unwrap());
    }

    #[test]
    fn the_file_has_one_json_line_per_event() {
        // A reader of the file must be able to follow it without the program.
        let file = tempfile::NamedTempFile::new().unwrap();
        let recorder = Recorder::create(RunClock::start(), Some(file.path())).unwrap();
        let id = recorder.invoke(Lane::Write, Via::Sql, "writes", Some(7), Duration::ZERO);
        recorder.end(id, Outcome::Unknown(Failure::local("cut")));

        recorder.take().unwrap();

        let text = std::fs::read_to_string(file.path()).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["event"], &lines[0]["key"]), (&"invoke".into(), &7.into()));
        assert_eq!((&lines[1]["event"], &lines[1]["failure"]["message"]), (&"unknown".into(), &"cut".into()));
    }

    #[test]
    fn fields_of_detail_are_found_by_their_whole_name() {
        // "lane" must not be found inside "plane".
        let failure = Failure { detail: Some("plane=x lane=write".to_owned()), ..Failure::default() };

        assert_eq!(failure.field("lane"), Some("write"));
    }
}
