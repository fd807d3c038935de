//! What backends of ours wait for, as PostgreSQL itself says.
//!
//! The data path reads the last looks when a deadline passes: to leave a backend alone that waits for a
//! synchronous standby, and to name who blocks it. Looking is the control plane's work.

use std::collections::HashMap;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::{Control, ControlError};
use crate::backend::connection::Row;

/// How long a refresh may take.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);

/// A look that is older is of no interest to anybody: statements are looked at again while they hang.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// Wait events of another role are hidden from roles without `pg_read_all_stats`; who blocks whom is not.
/// `pg_blocking_pids` takes every lock partition exclusively, so it is called only where somebody may block.
const STATEMENT: &str = "SELECT a.pid, a.state, a.wait_event_type, a.wait_event, \
    CASE WHEN a.wait_event_type = 'Lock' OR a.state IS NULL \
         THEN pg_catalog.array_to_string(pg_catalog.pg_blocking_pids(a.pid), ',') ELSE '' END, \
    a.backend_xid::pg_catalog.text \
    FROM pg_catalog.pg_stat_activity a WHERE a.pid = ANY ($1::pg_catalog.int4[])";

/// Ends those of the backends `$1` that are idle, where `$2` is for how many milliseconds the connection of each has been
/// closed. Not one that has the number of a process which is gone: it was logged in since.
pub(super) const END_IDLE: &str = "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a \
    JOIN ROWS FROM (pg_catalog.unnest($1::pg_catalog.int4[]), pg_catalog.unnest($2::pg_catalog.int8[])) \
        AS closed (pid, ms) ON closed.pid = a.pid \
    WHERE a.state LIKE 'idle%' \
    AND a.backend_start < pg_catalog.clock_timestamp() - closed.ms * '1 ms'::pg_catalog.interval";

/// What a backend waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// For nothing: it runs no statement.
    Idle,
    /// Its commit waits for synchronous standbys. It is committed locally.
    SyncRep,
    /// For WAL to be written. What commits may wait like that.
    Storage,
    /// For data to be written or read.
    DataFile,
    /// For a lock.
    Lock,
    /// For something else, or for nothing: it computes.
    Other,
    /// It belongs to another role, and ours may not see it.
    Hidden,
}

/// What was seen of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// What it waits for.
    pub wait: Wait,
    /// Whether its transaction has a number, which none has that only read. Not known of a process of another role.
    pub has_written: bool,
    /// Process ids of those that hold what it waits for, or stand before it. 0 is a prepared transaction.
    pub blocked_by: Vec<u32>,
}

impl Look {
    /// Whether only what writes waits like that. Who reads may wait for WAL, too: a page that it needs the place of goes to
    /// the disk behind its WAL.
    pub fn waits_as_a_write(&self) -> bool {
        let is_at_disk = matches!(self.wait, Wait::Storage | Wait::DataFile);
        self.wait == Wait::SyncRep || is_at_disk && self.has_written
    }
}

/// The last look at each backend of interest, replaced as a whole.
#[derive(Debug, Default)]
pub struct Looks(ArcSwap<HashMap<u32, Taken>>);

#[derive(Debug, Clone)]
struct Taken {
    at: Instant,
    look: Look,
    /// Where this look names nobody that is waited for: the last one that did, if only looks of this kind are between, or a
    /// few at a backend that was busy.
    named: Option<(Instant, Look)>,
    /// Looks in a row at which it was busy.
    busy: u8,
}

/// For so many looks at a backend that is busy what it waited for before says more of it: in a queue for one lock it comes
/// to its turn shortly before its time is over, and then it is late for having waited.
const BUSY_LOOKS_MAX: u8 = 3;

impl Taken {
    /// A backend may get its lock between being seen waiting and the question who holds it: whoever held it a moment
    /// ago is the better answer than nobody.
    fn new(at: Instant, look: &Look, old: Option<&Self>) -> Self {
        let busy = match look.wait {
            Wait::Other | Wait::Hidden => old.map_or(0, |old| old.busy).saturating_add(1),
            _ => 0,
        };
        let named = match look.wait {
            Wait::Lock | Wait::Other | Wait::Hidden
                if look.blocked_by.is_empty() && busy <= BUSY_LOOKS_MAX =>
            {
                old.and_then(Self::last_named)
            }
            _ => None,
        };
        Self { at, look: look.clone(), named, busy }
    }

    fn last_named(&self) -> Option<(Instant, Look)> {
        match (self.look.wait, self.look.blocked_by.is_empty()) {
            (Wait::Lock, false) => Some((self.at, self.look.clone())),
            (Wait::Lock | Wait::Other | Wait::Hidden, true) => self.named.clone(),
            _ => None,
        }
    }

    /// What it says of a statement that has run since `start`.
    fn of(&self, start: Instant) -> Option<Look> {
        let of_the_same = self.named.as_ref().filter(|(at, _)| *at >= start);
        let look = of_the_same.map_or(&self.look, |(_, look)| look);
        (self.at >= start).then(|| look.clone())
    }
}

impl Looks {
    /// What was seen of a backend since an instant, such as the start of its statement: what it waited for
    /// before says nothing. `None` when nobody has looked since, or it was gone.
    pub fn since(&self, start: Instant, pid: u32) -> Option<Look> {
        let looks = self.0.load();
        looks.get(&pid).and_then(|taken| taken.of(start))
    }

    /// Looks at these backends now. After an error the last looks stay.
    ///
    /// # Errors
    /// As [`Control::ask`]; within about a second.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn refresh(&self, control: &Control, pids: &[u32]) -> Result<(), ControlError> {
        self.take(control, pids, Instant::now() + REFRESH_TIMEOUT).await.map(drop)
    }

    /// As [`Looks::refresh`], and gives what was seen.
    pub(super) async fn take(
        &self,
        control: &Control,
        pids: &[u32],
        deadline: Instant,
    ) -> Result<HashMap<u32, Look>, ControlError> {
        // Before the question: an answer may be older than its arrival, and never older than this.
        let at = Instant::now();
        let seen = look(control, pids, deadline).await?;
        self.put(at, pids, &seen);
        Ok(seen)
    }

    /// Those that were not asked for stay: another lane may have asked for them.
    fn put(&self, at: Instant, asked: &[u32], seen: &HashMap<u32, Look>) {
        self.0.rcu(|old| {
            let stay = |pid: &u32, taken: &Taken| !asked.contains(pid) && at < taken.at + KEPT_FOR;
            let stay = old.iter().filter(|(pid, taken)| stay(pid, taken));
            let mut new: HashMap<u32, Taken> = stay.map(|(pid, taken)| (*pid, taken.clone())).collect();
            new.extend(seen.iter().map(|(pid, look)| (*pid, Taken::new(at, look, old.get(pid)))));
            new
        });
    }
}

/// Asks what these backends wait for, in one query; those that do not exist are left out.
///
/// # Errors
/// As [`Control::ask`].
///
/// # Cancel safety
/// Cancel safe.
pub async fn look(
    control: &Control,
    pids: &[u32],
    deadline: Instant,
) -> Result<HashMap<u32, Look>, ControlError> {
    let rows = control.ask(STATEMENT, &[&int_array(pids)], deadline).await?;
    rows.iter().map(read).collect::<Option<_>>().ok_or(ControlError::Protocol)
}

/// Ends those that are idle of backends whose connections have been closed for so long. PostgreSQL lets the role that they belong to do
/// that, and members of `pg_signal_backend`.
///
/// # Errors
/// As [`Control::ask`].
///
/// # Cancel safety
/// Cancel safe.
pub async fn end_idle(
    control: &Control,
    closed: &[(u32, Duration)],
    deadline: Instant,
) -> Result<(), ControlError> {
    let [pids, ages] = end_idle_parameters(closed);
    control.ask(END_IDLE, &[&pids, &ages], deadline).await.map(drop)
}

/// Those of [`END_IDLE`].
pub(super) fn end_idle_parameters(closed: &[(u32, Duration)]) -> [String; 2] {
    let array = |numbers: Vec<String>| format!("{{{}}}", numbers.join(","));
    let pids = closed.iter().map(|(pid, _)| pid.to_string()).collect();
    [array(pids), array(closed.iter().map(|(_, age)| age.as_millis().to_string()).collect())]
}

/// Text form of an array of integers.
pub(super) fn int_array(pids: &[u32]) -> String {
    let numbers: Vec<String> = pids.iter().map(u32::to_string).collect();
    format!("{{{}}}", numbers.join(","))
}

fn read(row: &Row) -> Option<(u32, Look)> {
    let [pid, state, class, event, blockers, xid] = row.as_slice() else { return None };
    let blockers = text(blockers)?;
    let blocked_by: Result<Vec<u32>, _> =
        blockers.split(',').filter(|pid| !pid.is_empty()).map(str::parse).collect();
    let mut blocked_by = blocked_by.ok()?;
    // A process shows once for each of its parallel workers.
    blocked_by.sort_unstable();
    blocked_by.dedup();
    let wait = match text(state) {
        None if blocked_by.is_empty() => Wait::Hidden,
        None => Wait::Lock,
        Some(state) if state.starts_with("idle") => Wait::Idle,
        Some(_) => classify(text(class).unwrap_or_default(), text(event).unwrap_or_default()),
    };
    Some((text(pid)?.parse().ok()?, Look { wait, has_written: xid.is_some(), blocked_by }))
}

/// The text of a column; `None` is NULL, or not text.
#[expect(clippy::ref_option, reason = "the columns of a row have this type")]
pub(crate) fn text(column: &Option<Vec<u8>>) -> Option<&str> {
    std::str::from_utf8(column.as_deref()?).ok()
}

/// Names as in `wait_event_names.txt`. Their case changed in PostgreSQL 17 (`WALSync`, `WalSync`); before 13 names
/// of `LWLock`s ended in `Lock`.
fn classify(class: &str, event: &str) -> Wait {
    let starts_with = |word: &str| event.get(..word.len()).is_some_and(|it| it.eq_ignore_ascii_case(word));
    match class {
        "IPC" if event == "SyncRep" => Wait::SyncRep,
        "LWLock" | "IO" if starts_with("WAL") => Wait::Storage,
        "IO" if starts_with("DataFile") => Wait::DataFile,
        "Lock" => Wait::Lock,
        _ => Wait::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: [Option<&str>; 6]) -> Row {
        columns.map(|column| column.map(|text| text.as_bytes().to_vec())).to_vec()
    }

    #[test]
    fn events_that_stop_commits_are_told_from_those_that_do_not() {
        // Who takes SyncRep for something else cancels it, and an unreplicated commit becomes visible.
        let expected = [
            ("IPC", "SyncRep", Wait::SyncRep),
            ("IPC", "MessageQueueReceive", Wait::Other),
            ("LWLock", "WALWrite", Wait::Storage),
            ("LWLock", "WALWriteLock", Wait::Storage),
            ("LWLock", "BufferContent", Wait::Other),
            ("IO", "WALSync", Wait::Storage),
            ("IO", "WalSync", Wait::Storage),
            ("IO", "DataFileExtend", Wait::DataFile),
            ("IO", "DataFileRead", Wait::DataFile),
            ("IO", "SLRURead", Wait::Other),
            ("Lock", "transactionid", Wait::Lock),
            ("Client", "ClientRead", Wait::Other),
            ("", "", Wait::Other),
        ];

        for (class, event, wait) in expected {
            assert_eq!(classify(class, event), wait, "{class}/{event}");
        }
    }

    #[test]
    fn the_blockers_of_a_hidden_backend_show_that_it_waits_for_a_lock() {
        // pg_blocking_pids speaks to everybody; without it another role's lock storm has no cause.
        let hidden = row([Some("7"), None, None, None, Some("9,9,0"), None]);
        let nothing = row([Some("7"), None, None, None, Some(""), None]);

        assert_eq!(
            read(&hidden),
            Some((7, Look { wait: Wait::Lock, has_written: false, blocked_by: vec![0, 9] }))
        );
        assert_eq!(
            read(&nothing),
            Some((7, Look { wait: Wait::Hidden, has_written: false, blocked_by: vec![] }))
        );
    }

    #[test]
    fn a_backend_without_a_statement_waits_for_nothing() {
        // ClientRead of a backend that is idle in a transaction is not a stuck statement.
        let idle =
            row([Some("7"), Some("idle in transaction"), Some("Client"), Some("ClientRead"), Some(""), None]);

        assert_eq!(read(&idle).map(|(_, look)| look.wait), Some(Wait::Idle));
    }

    #[test]
    fn looks_from_before_a_statement_do_not_count() {
        // A SyncRep wait of the last statement would have this one left alone for ever.
        let looks = Looks::default();
        let at = Instant::now();
        let look = Look { wait: Wait::SyncRep, has_written: false, blocked_by: vec![] };
        looks.put(at, &[7], &HashMap::from([(7, look.clone())]));

        assert_eq!(looks.since(at, 7), Some(look));
        assert_eq!(looks.since(at, 8), None);
        assert_eq!(looks.since(at + Duration::from_millis(1), 7), None);
    }

    #[test]
    fn who_held_a_lock_is_remembered_over_some_looks_in_between() {
        // In a storm the lock changes hands all the time; a statement that is late then would have waited for nobody. Seen: one
        // of thirty got it 200 ms before its time was over. Nor may one that got its lock be called blocked for ever.
        let looks = Looks::default();
        let at = Instant::now();
        let waiting = Look { wait: Wait::Lock, has_written: false, blocked_by: vec![9] };
        let busy = Look { wait: Wait::Other, has_written: false, blocked_by: vec![] };
        let nameless = Look { wait: Wait::Lock, has_written: false, blocked_by: vec![] };
        let put = |after_ms, look: &Look| {
            looks.put(at + Duration::from_millis(after_ms), &[7], &HashMap::from([(7, look.clone())]));
        };

        put(0, &waiting);
        // However long a busy server took over its answer.
        put(900, &nameless);
        put(1800, &busy);
        assert_eq!(looks.since(at, 7), Some(waiting.clone()));
        let next = at + Duration::from_millis(1);
        assert_eq!(looks.since(next, 7), Some(busy.clone()), "it was of the statement before");

        put(1900, &busy);
        // Of another role's only who blocks it is seen, and in the moment between two locks nobody does.
        put(2000, &Look { wait: Wait::Hidden, ..busy.clone() });
        assert_eq!(looks.since(at, 7), Some(waiting));
        put(2100, &busy);
        assert_eq!(looks.since(at, 7), Some(busy));
    }

    #[test]
    fn a_look_replaces_those_at_the_same_backends_only() {
        // Two lanes look at their own; a backend that is gone must go, since its pid comes back as another.
        let looks = Looks::default();
        let at = Instant::now();
        let look = Look { wait: Wait::Lock, has_written: false, blocked_by: vec![1] };
        looks.put(at, &[7, 8], &HashMap::from([(7, look.clone()), (8, look.clone())]));

        looks.put(at, &[8, 9], &HashMap::from([(9, look.clone())]));

        assert_eq!([7, 8, 9].map(|pid| looks.since(at, pid).is_some()), [true, false, true]);
        looks.put(at + KEPT_FOR, &[], &HashMap::new());
        assert_eq!(looks.since(at, 7), None);
    }
}
