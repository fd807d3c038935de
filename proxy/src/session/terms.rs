//! The terms of a session: which bounds, which priority and which lane its statements have.
//!
//! From lowest to highest precedence: `[timeouts]`, the first `[[rule]]` that matches, startup options,
//! `SET tidegate.…`, `SET LOCAL tidegate.…`, and the hints of a single statement. They are resolved when one of these
//! changes, so that reading them costs nothing.
//!
//! A rule is matched at login, again when `application_name` changes, and after a reload. What an application sets
//! follows its transaction as PostgreSQL's settings do: a rollback undoes it. Savepoints are not followed: the
//! end of the whole transaction decides. An application may widen its bounds up to `timeouts.max`, and always up to
//! what is configured for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::policy::{IdleLimits, Policies, Who};
use crate::clock::millis;
use crate::config::{Rule, Timeouts};
use crate::sql::terms::{
    Assignment, Command, DurationSetting, LaneChoice, MILLIS_MAX, Overrides, Setting, SettingError, Span,
    show_millis,
};
use crate::sql::{Lane, Priority};

/// What applies to the statements of a session now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Who goes first when there is not enough for all.
    pub priority: Priority,
    /// The lane that the application asks for, whatever its statements are.
    pub lane: Option<Lane>,
    /// The bounds.
    pub timeouts: TermTimeouts,
    /// Bound of each exchange from its first byte, within the others.
    pub deadline: Option<Duration>,
    /// The part of a pool, in percent, that writes may hold for one more to be let in.
    pub write_share: Option<u8>,
    /// `timeouts.max`; zero is no limit.
    max: Duration,
}

/// The bounds of a session; see [`Timeouts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TermTimeouts {
    /// Waiting for a backend.
    pub queue: Duration,
    /// One exchange in the read lane.
    pub read: Duration,
    /// One exchange in the write lane.
    pub write: Duration,
    /// A COMMIT.
    pub commit: Duration,
    /// A whole transaction; zero is off.
    pub transaction: Duration,
    /// Idle inside a transaction; zero is off.
    pub idle_in_transaction: Duration,
}

impl TermTimeouts {
    fn of(timeouts: &Timeouts, rule: Option<&Rule>) -> Self {
        let rule = rule.map(|rule| rule.timeouts).unwrap_or_default();
        Self {
            queue: rule.queue.unwrap_or(timeouts.queue),
            read: rule.read.unwrap_or(timeouts.read),
            write: rule.write.unwrap_or(timeouts.write),
            commit: rule.commit.unwrap_or(timeouts.commit),
            transaction: rule.transaction.unwrap_or(timeouts.transaction),
            idle_in_transaction: rule.idle_in_transaction.unwrap_or(timeouts.idle_in_transaction),
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share is in (0, 1]")]
fn percent(share: f64) -> u8 {
    (share * 100.0).round() as u8
}

impl Terms {
    /// What the configuration says.
    pub(super) fn of(timeouts: &Timeouts, rule: Option<&Rule>) -> Self {
        Self {
            priority: rule.and_then(|rule| rule.priority).unwrap_or(Priority::Critical),
            lane: None,
            timeouts: TermTimeouts::of(timeouts, rule),
            deadline: None,
            write_share: rule.and_then(|rule| rule.write_share).map(percent),
            max: timeouts.max,
        }
    }

    /// The terms of one statement with these hints. A hint beyond `timeouts.max` counts as far as that.
    #[inline]
    #[must_use]
    pub fn for_statement(&self, hints: &Overrides) -> Self {
        if hints.is_empty() { *self } else { self.with(hints) }
    }

    /// The bound of one exchange in this lane, counted from its first byte.
    #[inline]
    pub fn exchange(&self, lane: Lane) -> Duration {
        let bound = match lane {
            Lane::Read => self.timeouts.read,
            Lane::Write => self.timeouts.write,
        };
        self.deadline.map_or(bound, |deadline| bound.min(deadline))
    }

    fn with(&self, overrides: &Overrides) -> Self {
        let mut terms = *self;
        terms.priority = overrides.priority.unwrap_or(terms.priority);
        terms.lane = overrides.lane.map_or(terms.lane, LaneChoice::lane);
        for setting in DurationSetting::ALL {
            if let Some(wanted) = overrides.duration(setting) {
                terms.set_duration(setting, wanted.min(self.max_of(setting)));
            }
        }
        terms
    }

    fn duration(&self, setting: DurationSetting) -> Duration {
        match setting {
            DurationSetting::Deadline => self.deadline.unwrap_or_default(),
            DurationSetting::Queue => self.timeouts.queue,
            DurationSetting::Read => self.timeouts.read,
            DurationSetting::Write => self.timeouts.write,
            DurationSetting::Commit => self.timeouts.commit,
            DurationSetting::Transaction => self.timeouts.transaction,
            DurationSetting::IdleInTransaction => self.timeouts.idle_in_transaction,
        }
    }

    fn set_duration(&mut self, setting: DurationSetting, millis: u32) {
        let duration = Duration::from_millis(u64::from(millis));
        match setting {
            DurationSetting::Deadline => self.deadline = (millis > 0).then_some(duration),
            DurationSetting::Queue => self.timeouts.queue = duration,
            DurationSetting::Read => self.timeouts.read = duration,
            DurationSetting::Write => self.timeouts.write = duration,
            DurationSetting::Commit => self.timeouts.commit = duration,
            DurationSetting::Transaction => self.timeouts.transaction = duration,
            DurationSetting::IdleInTransaction => self.timeouts.idle_in_transaction = duration,
        }
    }

    /// The longest that an application may choose, in milliseconds. A deadline only tightens, so it needs no bound.
    fn max_of(&self, setting: DurationSetting) -> u32 {
        if self.max.is_zero() || setting == DurationSetting::Deadline {
            return MILLIS_MAX;
        }
        let configured = self.duration(setting);
        if configured.is_zero() { MILLIS_MAX } else { whole_millis(self.max.max(configured)) }
    }

    /// Whether an application may have this, these being the terms without any wish of its own.
    fn check(&self, assignment: Assignment) -> Result<(), SettingError> {
        let Assignment::Duration(setting, wanted) = assignment else { return Ok(()) };
        let max = self.max_of(setting);
        let endless = wanted == 0 && max < MILLIS_MAX;
        if wanted > max || endless {
            let setting = Setting::Duration(setting);
            return Err(SettingError::OutOfRange { setting, millis: i64::from(wanted), max });
        }
        Ok(())
    }

    fn show(&self, setting: Setting) -> String {
        match setting {
            Setting::Priority => self.priority.as_str().to_owned(),
            Setting::Lane => self.lane.map_or("auto", Lane::as_str).to_owned(),
            Setting::Duration(setting) => show_millis(whole_millis(self.duration(setting))),
        }
    }

    fn assignment(&self, setting: Setting) -> Assignment {
        match setting {
            Setting::Priority => Assignment::Priority(self.priority),
            Setting::Lane => Assignment::Lane(self.lane.map_or(LaneChoice::Auto, LaneChoice::Fixed)),
            Setting::Duration(setting) => Assignment::Duration(setting, whole_millis(self.duration(setting))),
        }
    }
}

fn whole_millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(MILLIS_MAX).min(MILLIS_MAX)
}

/// The terms of one session, and where they come from. What every exchange reads is small and lies together; the rest
/// is away from it.
#[derive(Debug)]
pub struct SessionTerms {
    /// Shared with all sessions that have the same.
    now: Arc<Terms>,
    hinted: Hinted,
    policies: Arc<Policies>,
    generation: u64,
    /// What the transaction has changed, and how to undo it.
    transaction: Touched,
    sources: Box<Sources>,
}

/// The terms of what is sent next.
#[derive(Debug)]
enum Hinted {
    /// Those of the session. An allocation to use again.
    No(Option<Box<Terms>>),
    /// It has hints.
    Yes(Box<Terms>),
}

/// Where the terms of a session come from, the configuration aside.
#[derive(Debug)]
struct Sources {
    who: Who,
    idle: Arc<IdleLimits>,
    /// By options of the startup packet: what RESET goes back to.
    startup: Overrides,
    /// By SET.
    session: Overrides,
    /// By SET LOCAL.
    local: Overrides,
}

/// What a transaction did to the terms.
#[derive(Debug)]
enum Touched {
    Nothing,
    Something(Box<Undo>),
}

/// How to undo what a transaction did to the terms.
#[derive(Debug)]
struct Undo {
    /// What SET had set before it.
    before: Overrides,
    /// How it ends as far as the server has said.
    fate: Fate,
}

impl Sources {
    /// All wishes of the application, the strongest of each.
    fn overrides(&self) -> Overrides {
        self.startup.under(&self.session).under(&self.local)
    }
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// What it set stays.
    Committed,
    /// What it set is undone.
    RolledBack,
}

impl SessionTerms {
    /// For a session that logs in with these options.
    ///
    /// # Errors
    /// An option is beyond what the session may have.
    pub fn new(
        policies: Arc<Policies>,
        who: Who,
        options: &[Assignment],
        idle: Arc<IdleLimits>,
    ) -> Result<Self, SettingError> {
        let generation = policies.generation.load(Ordering::Acquire);
        let base = policies.current.load().terms(&who).0;
        let mut startup = Overrides::default();
        for &option in options {
            base.check(option)?;
            startup.set(option);
        }
        let (session, local) = (Overrides::default(), Overrides::default());
        let mut terms = Self {
            now: base,
            hinted: Hinted::No(None),
            policies,
            generation,
            transaction: Touched::Nothing,
            sources: Box::new(Sources { who, idle, startup, session, local }),
        };
        terms.resolve();
        Ok(terms)
    }

    /// What applies now.
    #[inline]
    pub fn now(&self) -> &Terms {
        &self.now
    }

    /// What applies to what is sent next.
    #[inline]
    pub fn applied(&self) -> &Terms {
        match &self.hinted {
            Hinted::No(_) => &self.now,
            Hinted::Yes(terms) => terms,
        }
    }

    /// Something else is sent next.
    #[inline]
    pub fn forget_hints(&mut self) {
        if let Hinted::Yes(_) = self.hinted {
            self.hinted = Hinted::No(self.take_hinted());
        }
    }

    /// The allocation for terms of hints, if there was one.
    fn take_hinted(&mut self) -> Option<Box<Terms>> {
        match std::mem::replace(&mut self.hinted, Hinted::No(None)) {
            Hinted::No(kept) => kept,
            Hinted::Yes(kept) => Some(kept),
        }
    }

    /// What is sent next has these hints.
    #[inline]
    pub fn hint(&mut self, hints: &Overrides) {
        if !hints.is_empty() {
            self.apply(hints);
        }
    }

    fn apply(&mut self, hints: &Overrides) {
        let terms = self.applied().for_statement(hints);
        self.hinted = Hinted::Yes(match self.take_hinted() {
            Some(mut kept) => {
                *kept = terms;
                kept
            }
            None => Box::new(terms),
        });
    }

    /// Takes over a configuration that was reloaded. One load when there is none; to be called per transaction.
    #[inline]
    pub fn refresh(&mut self) {
        if self.policies.generation.load(Ordering::Acquire) != self.generation {
            self.reload();
        }
    }

    #[cold]
    fn reload(&mut self) {
        self.generation = self.policies.generation.load(Ordering::Acquire);
        self.resolve();
    }

    /// `application_name` has this value now: other rules may match.
    pub fn renamed(&mut self, application_name: &[u8]) {
        let name = String::from_utf8_lossy(application_name);
        if *name != *self.sources.who.application_name {
            self.sources.who.application_name = name.into();
            self.resolve();
        }
    }

    /// The terms without any wish of the application.
    fn base(&self) -> Arc<Terms> {
        self.policies.current.load().terms(&self.sources.who).0
    }

    fn resolve(&mut self) {
        let policy = self.policies.current.load();
        let (base, rule) = policy.terms(&self.sources.who);
        let overrides = self.sources.overrides();
        self.now = if overrides.is_empty() { base } else { Arc::new(base.with(&overrides)) };
        let own = |setting| overrides.duration(setting).map(|_| whole_millis(self.now.duration(setting)));
        let ruled = rule.map(|rule| rule.timeouts).unwrap_or_default();
        let in_transaction = own(DurationSetting::IdleInTransaction).map(u64::from);
        let in_transaction = in_transaction.or(ruled.idle_in_transaction.map(millis));
        self.sources.idle.set(in_transaction, ruled.idle_session.map(millis));
    }

    /// Why a statement cannot succeed, if that is known.
    pub fn refusal(&self, command: &Command) -> Option<SettingError> {
        match command {
            Command::Set(assignment, _) => self.base().check(*assignment).err(),
            Command::Refuse(error) => Some(error.clone()),
            Command::Reset(..) | Command::Show(_) => None,
        }
    }

    /// Runs a statement. What it changes is provisional until [`SessionTerms::end_transaction`].
    pub fn run(&mut self, command: &Command) -> Option<String> {
        match *command {
            Command::Set(assignment, span) => self.set(assignment, span),
            Command::Reset(setting, Span::Session, _) => {
                self.touch();
                self.sources.session.clear(setting);
                self.sources.local.clear(setting);
            }
            Command::Reset(setting, Span::Transaction, _) => {
                let value = self.base().with(&self.sources.startup).assignment(setting);
                self.set(value, Span::Transaction);
            }
            Command::Show(setting) => return Some(self.now.show(setting)),
            Command::Refuse(_) => return None,
        }
        self.resolve();
        None
    }

    fn set(&mut self, assignment: Assignment, span: Span) {
        self.touch();
        let sources = &mut self.sources;
        match span {
            Span::Session => {
                sources.session.set(assignment);
                // The newest SET wins, whichever it is.
                sources.local.clear(assignment.setting());
            }
            Span::Transaction => sources.local.set(assignment),
        }
    }

    /// `RESET ALL`, `DISCARD ALL`.
    pub fn reset_all(&mut self) {
        if self.sources.session.is_empty() && self.sources.local.is_empty() {
            return;
        }
        self.touch();
        self.sources.session = Overrides::default();
        self.sources.local = Overrides::default();
        self.resolve();
    }

    fn touch(&mut self) {
        if let Touched::Nothing = self.transaction {
            let undo = Undo { before: self.sources.session, fate: Fate::Committed };
            self.transaction = Touched::Something(Box::new(undo));
        }
    }

    /// Whether the end of the transaction matters.
    #[inline]
    pub fn is_provisional(&self) -> bool {
        matches!(self.transaction, Touched::Something(_))
    }

    /// What the server says of the transaction so far; its last word counts.
    pub fn transaction_is(&mut self, word: Fate) {
        if let Touched::Something(undo) = &mut self.transaction {
            undo.fate = word;
        }
    }

    /// The transaction is over, as the server has said.
    #[inline]
    pub fn end_transaction(&mut self) {
        if self.is_provisional() {
            self.ended();
        }
    }

    #[cold]
    fn ended(&mut self) {
        if let Touched::Something(undo) = std::mem::replace(&mut self.transaction, Touched::Nothing)
            && undo.fate == Fate::RolledBack
        {
            self.sources.session = undo.before;
        }
        self.sources.local = Overrides::default();
        self.resolve();
    }

    /// The transaction is committed.
    pub fn commit(&mut self) {
        self.transaction_is(Fate::Committed);
        self.end_transaction();
    }

    /// The transaction is over, and nothing of it stays.
    pub fn roll_back(&mut self) {
        self.transaction_is(Fate::RolledBack);
        self.end_transaction();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};
    use crate::sql::commands;

    fn config(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tidegate.toml");
        let text = format!("cluster.upstreams = [\"db\"]\nlisten.auth = \"trust\"\n{text}");
        std::fs::write(&path, text).unwrap();
        Config::load(&Sources { file: Some(path), ..Sources::default() }).unwrap()
    }

    fn who(application_name: &str) -> Who {
        Who { user: "u".into(), database: "d".into(), application_name: application_name.into() }
    }

    fn session(text: &str, application_name: &str) -> SessionTerms {
        let policies = Arc::new(Policies::new(&config(text)));
        SessionTerms::new(policies, who(application_name), &[], Arc::default()).unwrap()
    }

    fn run(terms: &mut SessionTerms, text: &str) -> Option<String> {
        let command = commands(text.as_bytes()).unwrap().remove(0);
        assert_eq!(terms.refusal(&command), None, "{text}");
        terms.run(&command)
    }

    fn show(terms: &mut SessionTerms, name: &str) -> String {
        run(terms, &format!("SHOW tidegate.{name}")).unwrap()
    }

    #[test]
    fn the_nearest_word_counts() {
        // Each layer hides the one before; a wrong order gives a session bounds that nobody chose.
        let rules = "[[rule]]\nmatch = { application_name = \"batch-*\" }\npriority = \"sheddable\"\n\
                     timeouts = { write = \"60s\", read = \"40s\" }\n";
        let policies = Arc::new(Policies::new(&config(rules)));
        let options = [Assignment::Duration(DurationSetting::Read, 3000)];
        let mut terms = SessionTerms::new(policies, who("batch-1"), &options, Arc::default()).unwrap();
        let all = |terms: &mut SessionTerms| {
            ["priority", "commit_timeout", "write_timeout", "read_timeout"].map(|name| show(terms, name))
        };

        assert_eq!(all(&mut terms), ["sheddable", "5s", "1min", "3s"]);
        run(&mut terms, "SET tidegate.read_timeout = '2s'");
        terms.end_transaction();
        run(&mut terms, "SET LOCAL tidegate.read_timeout = '1s'");
        assert_eq!(all(&mut terms), ["sheddable", "5s", "1min", "1s"]);
        terms.end_transaction();
        assert_eq!(all(&mut terms), ["sheddable", "5s", "1min", "2s"]);
        run(&mut terms, "RESET tidegate.read_timeout");
        assert_eq!(all(&mut terms), ["sheddable", "5s", "1min", "3s"]);
        terms.renamed(b"web");
        assert_eq!(all(&mut terms), ["critical", "5s", "5s", "3s"]);
    }

    #[test]
    fn hints_are_for_one_statement() {
        // What a hint asks for must not outlast its statement.
        let terms = session("", "");
        let mut hints = Overrides::default();
        hints.set(Assignment::Duration(DurationSetting::Write, 250));
        hints.set(Assignment::Priority(Priority::CriticalPlus));

        let one = terms.now().for_statement(&hints);

        assert_eq!(
            (one.priority, one.exchange(Lane::Write)),
            (Priority::CriticalPlus, Duration::from_millis(250))
        );
        assert_eq!(terms.now().exchange(Lane::Write), Duration::from_secs(5));
        assert_eq!(one.timeouts.read, terms.now().timeouts.read);
    }

    #[test]
    fn a_deadline_only_tightens() {
        // One that is longer than the lane's bound must not replace it.
        let mut terms = session("", "");

        run(&mut terms, "SET tidegate.deadline_ms = 10000");
        assert_eq!(terms.now().exchange(Lane::Write), Duration::from_secs(5));
        assert_eq!(terms.now().exchange(Lane::Read), Duration::from_secs(10));
        run(&mut terms, "SET tidegate.deadline_ms = 0");
        assert_eq!(terms.now().exchange(Lane::Read), Duration::from_secs(30));
    }

    #[test]
    fn what_is_rolled_back_is_undone() {
        // PostgreSQL's own settings go back too; drivers that set in a transaction rely on it.
        let mut terms = session("", "");
        run(&mut terms, "SET tidegate.lane = read");
        terms.end_transaction();

        run(&mut terms, "SET tidegate.lane = write");
        run(&mut terms, "SET LOCAL tidegate.priority = sheddable");
        terms.transaction_is(Fate::RolledBack);
        assert_eq!(show(&mut terms, "lane"), "write");
        terms.end_transaction();
        assert_eq!(
            (show(&mut terms, "lane"), show(&mut terms, "priority")),
            ("read".into(), "critical".into())
        );

        terms.reset_all();
        terms.roll_back();
        assert_eq!(show(&mut terms, "lane"), "read");
        terms.reset_all();
        terms.end_transaction();
        assert_eq!(show(&mut terms, "lane"), "auto");
    }

    #[test]
    fn nobody_widens_beyond_the_limit() {
        // The operator's cap would be a wish; what is configured for the session is always allowed.
        let mut terms = session("[timeouts]\nmax = \"20s\"\nidle_in_transaction = \"10s\"\n", "");
        let refused = |terms: &SessionTerms, text: &str| {
            let command = commands(text.as_bytes()).unwrap().remove(0);
            terms.refusal(&command).map(|error| error.to_string())
        };

        run(&mut terms, "SET tidegate.write_timeout = '20s'");
        run(&mut terms, "SET tidegate.read_timeout = '30s'");
        run(&mut terms, "SET tidegate.transaction_timeout = 0");
        assert_eq!(
            refused(&terms, "SET tidegate.write_timeout = 20001").as_deref(),
            Some(
                "20001 ms is outside the valid range for parameter \"tidegate.write_timeout\" (1 ms .. 20000 ms)"
            )
        );
        assert!(refused(&terms, "SET tidegate.idle_in_transaction_timeout = 0").is_some());

        let mut hints = Overrides::default();
        hints.set(Assignment::Duration(DurationSetting::Commit, 60_000));
        assert_eq!(terms.now().for_statement(&hints).timeouts.commit, Duration::from_secs(20));
    }

    #[test]
    fn the_sweep_sees_limits_of_rules_and_sessions() {
        // A session whose rule allows it to idle longer would be ended by the general bound.
        let rules = "[[rule]]\nmatch = { user = \"u\" }\ntimeouts = { idle_session = \"1h\" }\n";
        let mut terms = session(rules, "");
        let minute = Duration::from_mins(1);

        assert_eq!(terms.sources.idle.outside(minute), Duration::from_hours(1));
        assert_eq!(terms.sources.idle.in_transaction(minute), minute);
        run(&mut terms, "SET tidegate.idle_in_transaction_timeout = '5s'");
        assert_eq!(terms.sources.idle.in_transaction(minute), Duration::from_secs(5));
    }

    #[test]
    fn a_reload_reaches_sessions_that_are_there() {
        // Otherwise an operator who loosens a bound in an incident waits for every session to end.
        let policies = Arc::new(Policies::new(&config("")));
        let mut terms = SessionTerms::new(Arc::clone(&policies), who(""), &[], Arc::default()).unwrap();

        policies.replace(&config("timeouts.commit = \"7s\"\n"));
        terms.refresh();

        assert_eq!(terms.now().timeouts.commit, Duration::from_secs(7));
    }
}
