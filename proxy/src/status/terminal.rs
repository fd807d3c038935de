//! The document as text for a terminal.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use super::{Event, LaneState, LaneStatus, Level, Status, UpstreamStatus};

/// Events that are shown; the page and the journal have more.
const EVENTS: usize = 8;

/// Whether to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// ANSI colours.
    Colours,
    /// Text alone.
    Plain,
}

impl Paint {
    /// Colours for people who do not mind them (<https://no-color.org>: any text that is not empty is a no).
    pub fn for_terminal(is_terminal: bool, no_color: Option<&OsStr>) -> Self {
        let wanted = no_color.is_none_or(OsStr::is_empty);
        if is_terminal && wanted { Self::Colours } else { Self::Plain }
    }

    fn level(self, level: Level, text: &str) -> String {
        let code = match level {
            Level::Ok => "32",
            Level::Warning => "33",
            Level::Critical => "1;31",
        };
        self.code(code, text)
    }

    fn soft(self, text: &str) -> String {
        self.code("2", text)
    }

    fn code(self, code: &str, text: &str) -> String {
        match self {
            Self::Colours => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Plain => text.to_owned(),
        }
    }
}

const fn level_of(state: LaneState) -> Level {
    match state {
        LaneState::Serving => Level::Ok,
        LaneState::Suspect | LaneState::Recovering => Level::Warning,
        LaneState::Refusing => Level::Critical,
    }
}

/// Marks that can be told apart without colours.
const fn mark(level: Level) -> &'static str {
    match level {
        Level::Ok => "●",
        Level::Warning => "▲",
        Level::Critical => "■",
    }
}

/// The whole, with a line feed at its end.
pub fn render(status: &Status, paint: Paint) -> String {
    let mut text = String::new();
    let about = format!(
        "tidegate {} on {}, up {}, {} of {} sessions",
        status.version,
        printable(&status.host),
        span(status.uptime_ms),
        status.sessions.now,
        status.sessions.max
    );
    line(&mut text, &paint.soft(&about));
    let verdict = format!("{} {}", mark(status.verdict.level), printable(&status.verdict.sentence));
    line(&mut text, &paint.level(status.verdict.level, &verdict));
    if !status.verdict.next.is_empty() {
        line(&mut text, &format!("  next: {}", printable(&status.verdict.next)));
    }
    text.push('\n');
    for (name, lane) in [("READS", &status.lanes.read), ("WRITES", &status.lanes.write)] {
        put_lane(&mut text, name, lane, status.at_ms, paint);
    }
    text.push('\n');
    put_upstreams(&mut text, &status.upstreams, status.at_ms, paint);
    if !status.events.is_empty() {
        text.push('\n');
        status.events.iter().take(EVENTS).for_each(|event| put_event(&mut text, event, paint));
    }
    text
}

fn line(text: &mut String, content: &str) {
    text.push_str(content);
    text.push('\n');
}

fn put_lane(text: &mut String, name: &str, lane: &LaneStatus, now: u64, paint: Paint) {
    let state = paint.level(level_of(lane.state), &format!("{:<10}", lane.state.word()));
    let rates = lane.rates;
    let figures = format!(
        "{:>7}/s  p50 {:>7}  p99 {:>7}  in flight {:>3}  queue {:>3}  refused {:>5}/s",
        number(rates.throughput),
        took(rates.p50_ms),
        took(rates.p99_ms),
        count(lane.in_flight),
        count(lane.queued),
        number(rates.refusals)
    );
    line(text, &format!("{name:<7} {state} {figures}"));
    let since = lane.since_at_ms.map(|since| format!("for {}", span(now.saturating_sub(since))));
    let order = (lane.order != "auto" && !lane.order.is_empty()).then(|| format!("order: {}", lane.order));
    let cause = lane.cause.as_ref().map(|cause| format!("cause: {cause}"));
    let oldest = lane.oldest_in_flight_ms.filter(|ms| *ms >= 1000).map(|ms| format!("oldest {}", span(ms)));
    let notes: Vec<String> =
        [since, cause, lane.evidence.clone(), oldest, order].into_iter().flatten().collect();
    if !notes.is_empty() && (lane.state != LaneState::Serving || lane.cause.is_some() || lane.order == "open")
    {
        line(text, &format!("        {}", printable(&notes.join(", "))));
    }
}

fn put_upstreams(text: &mut String, upstreams: &[UpstreamStatus], now: u64, paint: Paint) {
    let width = upstreams.iter().map(|one| one.name.chars().count()).max().unwrap_or(0).max(8);
    let head = format!(
        "{:<width$}  {:<8} {:>8} {:>9}  {:>9}  {:<12}",
        "UPSTREAM", "ROLE", "TIMELINE", "LAG", "BACKENDS", "LAST WRITE"
    );
    line(text, &paint.soft(head.trim_end()));
    for one in upstreams {
        let last = one.last_write_at_ms.map(|at| format!("{} ago", span(now.saturating_sub(at))));
        let role = if one.fenced { "fenced" } else { &one.role };
        let row = format!(
            "{:<width$}  {role:<8} {:>8} {:>9}  {:>9}  {:<12}",
            printable(&one.name),
            one.timeline.map_or_else(|| "–".to_owned(), |timeline| timeline.to_string()),
            one.lag_ms.map_or_else(|| "–".to_owned(), span),
            format!("{}/{}", one.backends, one.backends_max),
            last.unwrap_or_else(|| "–".to_owned())
        );
        let bad = one.fenced || one.problem.is_some();
        let row = row.trim_end();
        line(text, &if bad { paint.level(Level::Critical, row) } else { row.to_owned() });
        if let Some(problem) = &one.problem {
            line(text, &format!("  {}", printable(problem)));
        }
    }
}

fn put_event(text: &mut String, event: &Event, paint: Paint) {
    let at = UNIX_EPOCH + Duration::from_millis(event.at_ms);
    let at = humantime::format_rfc3339_seconds(at).to_string();
    let details: Vec<&str> =
        [&event.upstream, &event.evidence].into_iter().flatten().map(String::as_str).collect();
    let details = if details.is_empty() { String::new() } else { format!(" ({})", details.join(", ")) };
    let mark = paint.level(event.level, mark(event.level));
    line(text, &format!("{} {mark} {}{}", paint.soft(&at), printable(&event.what), printable(&details)));
}

/// Without what could steer a terminal: names and evidence come from elsewhere.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn count(number: Option<u64>) -> String {
    number.map_or_else(|| "–".to_owned(), |number| number.to_string())
}

fn number(value: f64) -> String {
    if value > 0.0 && value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn took(ms: Option<f64>) -> String {
    let Some(ms) = ms else { return "–".to_owned() };
    let mut text = String::new();
    // A string takes everything.
    let _ = match ms {
        ms if ms < 10.0 => write!(text, "{ms:.1} ms"),
        ms if ms < 1000.0 => write!(text, "{ms:.0} ms"),
        ms => write!(text, "{:.1} s", ms / 1e3),
    };
    text
}

fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Lanes, Verdict};

    fn stalled() -> Status {
        let write = LaneStatus {
            state: LaneState::Refusing,
            cause: Some("sync_standby".to_owned()),
            since_at_ms: Some(1000),
            ..LaneStatus::default()
        };
        let verdict = Verdict {
            level: Level::Critical,
            sentence: "Writes are refused.".to_owned(),
            next: "Bring it back.".to_owned(),
        };
        let upstreams = vec![UpstreamStatus { name: "a\x1b[2Jb".to_owned(), ..UpstreamStatus::default() }];
        Status {
            at_ms: 134_000,
            verdict,
            lanes: Lanes { write, ..Lanes::default() },
            upstreams,
            ..Status::default()
        }
    }

    #[test]
    fn a_stall_is_told_with_cause_time_and_next_step() {
        // Whoever has only a shell must learn as much as from the page.
        let text = render(&stalled(), Paint::Plain);

        for wanted in
            ["■ Writes are refused.", "next: Bring it back.", "refusing", "for 2 min 13 s", "sync_standby"]
        {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
    }

    #[test]
    fn there_is_no_escape_sequence_without_colours_nor_one_of_others_with_them() {
        // A pipe or a log must get text; a name from elsewhere must not clear the screen.
        assert!(!render(&stalled(), Paint::Plain).contains('\x1b'));
        assert!(!render(&stalled(), Paint::Colours).contains("\x1b[2J"));
        assert!(render(&stalled(), Paint::Colours).contains("\x1b[1;31m"));
    }

    #[test]
    fn colours_are_for_terminals_of_those_who_want_them() {
        // no-color.org: set and not empty means no.
        let paint =
            |terminal, no_color: Option<&str>| Paint::for_terminal(terminal, no_color.map(OsStr::new));

        assert_eq!(paint(true, None), Paint::Colours);
        assert_eq!(paint(true, Some("")), Paint::Colours);
        assert_eq!(paint(true, Some("1")), Paint::Plain);
        assert_eq!(paint(false, None), Paint::Plain);
    }
}
