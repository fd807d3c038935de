//! Settings of ours in the application's own words: `SET tidegate.write_timeout = '250ms'`.
//!
//! What there is to set, the values it can have, and how PostgreSQL would word what is wrong with one.

use thiserror::Error;

use super::hints::Priority;
use super::lane::Lane;

/// What the names of our settings start with.
pub const PREFIX: &str = "tidegate.";

/// The longest duration, as of PostgreSQL's own settings in milliseconds (`INT_MAX` in guc.c).
pub const MILLIS_MAX: u32 = i32::MAX.unsigned_abs();

/// A setting of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// `tidegate.priority`.
    Priority,
    /// `tidegate.lane`.
    Lane,
    /// A bound in milliseconds.
    Duration(DurationSetting),
}

/// The settings that are durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DurationSetting {
    /// `tidegate.deadline_ms`: each exchange from its first byte; zero is none.
    Deadline,
    /// `tidegate.queue_timeout`.
    Queue,
    /// `tidegate.read_timeout`.
    Read,
    /// `tidegate.write_timeout`.
    Write,
    /// `tidegate.commit_timeout`.
    Commit,
    /// `tidegate.transaction_timeout`; zero is off.
    Transaction,
    /// `tidegate.idle_in_transaction_timeout`; zero is off.
    IdleInTransaction,
}

/// How many durations there are.
const DURATIONS: usize = 7;

/// All settings with their names.
pub const SETTINGS: [(&str, Setting); 9] = [
    ("tidegate.deadline_ms", Setting::Duration(DurationSetting::Deadline)),
    ("tidegate.priority", Setting::Priority),
    ("tidegate.lane", Setting::Lane),
    ("tidegate.queue_timeout", Setting::Duration(DurationSetting::Queue)),
    ("tidegate.read_timeout", Setting::Duration(DurationSetting::Read)),
    ("tidegate.write_timeout", Setting::Duration(DurationSetting::Write)),
    ("tidegate.commit_timeout", Setting::Duration(DurationSetting::Commit)),
    ("tidegate.transaction_timeout", Setting::Duration(DurationSetting::Transaction)),
    ("tidegate.idle_in_transaction_timeout", Setting::Duration(DurationSetting::IdleInTransaction)),
];

impl Setting {
    /// The setting of this name, in any case.
    pub fn parse(name: &[u8]) -> Option<Self> {
        SETTINGS
            .iter()
            .find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()))
            .map(|&(_, setting)| setting)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        SETTINGS.iter().find(|(_, setting)| *setting == self).map_or("", |(name, _)| name)
    }

    /// Reads a value for it.
    ///
    /// # Errors
    /// The value does not fit.
    pub fn read(self, value: &[u8]) -> Result<Assignment, SettingError> {
        let bad = || SettingError::bad(self, value);
        match self {
            Self::Priority => Priority::parse(value).map(Assignment::Priority).ok_or_else(bad),
            Self::Lane => LaneChoice::parse(value).map(Assignment::Lane).ok_or_else(bad),
            Self::Duration(setting) => setting.read(value),
        }
    }
}

impl DurationSetting {
    /// All of them.
    pub const ALL: [Self; DURATIONS] = [
        Self::Deadline,
        Self::Queue,
        Self::Read,
        Self::Write,
        Self::Commit,
        Self::Transaction,
        Self::IdleInTransaction,
    ];

    /// Whether zero means that there is no bound.
    pub fn may_be_off(self) -> bool {
        matches!(self, Self::Deadline | Self::Transaction | Self::IdleInTransaction)
    }

    /// The smallest value, in milliseconds.
    pub fn min(self) -> u32 {
        u32::from(!self.may_be_off())
    }

    fn read(self, value: &[u8]) -> Result<Assignment, SettingError> {
        let setting = Setting::Duration(self);
        let millis = std::str::from_utf8(value).ok().and_then(read_millis);
        let millis = millis.ok_or_else(|| SettingError::bad(setting, value))?;
        let fits = u32::try_from(millis).ok().filter(|ms| (self.min()..=MILLIS_MAX).contains(ms));
        match fits {
            Some(millis) => Ok(Assignment::Duration(self, millis)),
            None => Err(SettingError::OutOfRange { setting, millis, max: MILLIS_MAX }),
        }
    }
}

/// The lane that an application asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneChoice {
    /// The one that the statement belongs to.
    Auto,
    /// This one, whatever the statement is.
    Fixed(Lane),
}

impl LaneChoice {
    /// Reads `auto`, `read` or `write`, in any case.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.eq_ignore_ascii_case(b"auto") { Some(Self::Auto) } else { Lane::parse(text).map(Self::Fixed) }
    }

    /// The lane, if it is fixed.
    pub fn lane(self) -> Option<Lane> {
        match self {
            Self::Auto => None,
            Self::Fixed(lane) => Some(lane),
        }
    }
}

/// A setting and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assignment {
    /// `tidegate.priority`.
    Priority(Priority),
    /// `tidegate.lane`.
    Lane(LaneChoice),
    /// A duration in milliseconds.
    Duration(DurationSetting, u32),
}

impl Assignment {
    /// Of which setting.
    pub fn setting(self) -> Setting {
        match self {
            Self::Priority(_) => Setting::Priority,
            Self::Lane(_) => Setting::Lane,
            Self::Duration(setting, _) => Setting::Duration(setting),
        }
    }
}

/// Values for some of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Overrides {
    /// `tidegate.priority`.
    pub priority: Option<Priority>,
    /// `tidegate.lane`.
    pub lane: Option<LaneChoice>,
    durations: [Option<u32>; DURATIONS],
}

impl Overrides {
    /// No values.
    pub const NONE: Self = Self { priority: None, lane: None, durations: [None; DURATIONS] };

    /// Gives a setting a value.
    pub fn set(&mut self, assignment: Assignment) {
        match assignment {
            Assignment::Priority(priority) => self.priority = Some(priority),
            Assignment::Lane(lane) => self.lane = Some(lane),
            Assignment::Duration(setting, millis) => *self.slot(setting) = Some(millis),
        }
    }

    /// Takes the value of a setting away.
    pub fn clear(&mut self, setting: Setting) {
        match setting {
            Setting::Priority => self.priority = None,
            Setting::Lane => self.lane = None,
            Setting::Duration(setting) => *self.slot(setting) = None,
        }
    }

    /// A duration in milliseconds.
    #[inline]
    pub fn duration(&self, setting: DurationSetting) -> Option<u32> {
        self.durations[setting as usize]
    }

    /// These values, hidden by those of `over`.
    #[must_use]
    pub fn under(&self, over: &Self) -> Self {
        let mut durations = over.durations;
        for (own, below) in durations.iter_mut().zip(self.durations) {
            *own = own.or(below);
        }
        Self { priority: over.priority.or(self.priority), lane: over.lane.or(self.lane), durations }
    }

    /// Whether there are no values.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.priority.is_none() && self.lane.is_none() && self.durations.iter().all(Option::is_none)
    }

    fn slot(&mut self, setting: DurationSetting) -> &mut Option<u32> {
        &mut self.durations[setting as usize]
    }
}

/// For how long a SET holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Until the session ends.
    Session,
    /// Until the transaction ends.
    Transaction,
}

/// A statement that we answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// SET.
    Set(Assignment, Span),
    /// RESET, and `SET … TO DEFAULT`; the tag says which.
    Reset(Setting, Span, ResetTag),
    /// SHOW.
    Show(Setting),
    /// One that is refused.
    Refuse(SettingError),
}

/// How a statement that resets is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTag {
    /// `RESET name`.
    Reset,
    /// `SET name TO DEFAULT`.
    Set,
}

/// A setting that does not exist, or a value that it cannot have. In PostgreSQL's words (guc.c).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SettingError {
    /// No such setting.
    #[error("unrecognized configuration parameter \"{0}\"")]
    Unknown(Box<str>),
    /// Not a value of its type.
    #[error("invalid value for parameter \"{}\": \"{value}\"", setting.name())]
    BadValue {
        /// Which.
        setting: Setting,
        /// As written.
        value: Box<str>,
    },
    /// Too small or too large.
    #[error(
        "{} is outside the valid range for parameter \"{}\" ({} .. {max} ms)",
        with_unit(*millis), setting.name(), smallest(*setting)
    )]
    OutOfRange {
        /// Which.
        setting: Setting,
        /// The value.
        millis: i64,
        /// The largest value for this session.
        max: u32,
    },
}

fn with_unit(millis: i64) -> String {
    format!("{millis} ms")
}

fn smallest(setting: Setting) -> String {
    match setting {
        Setting::Duration(setting) => format!("{} ms", setting.min()),
        Setting::Priority | Setting::Lane => String::new(),
    }
}

impl SettingError {
    fn bad(setting: Setting, value: &[u8]) -> Self {
        Self::BadValue { setting, value: String::from_utf8_lossy(value).into() }
    }

    /// What can be done.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::BadValue { setting: Setting::Priority, .. } => {
                "Available values: critical_plus, critical, sheddable_plus, sheddable."
            }
            Self::BadValue { setting: Setting::Lane, .. } => "Available values: auto, read, write.",
            Self::BadValue { setting: Setting::Duration(_), .. } => {
                "Valid units for this parameter are \"us\", \"ms\", \"s\", \"min\", \"h\", and \"d\"."
            }
            Self::Unknown(_) | Self::OutOfRange { .. } => "",
        }
    }
}

/// PostgreSQL's units of time, longest first, in microseconds (`time_unit_conversion_table` in guc.c).
const UNITS: [(&str, u32, f64); 6] = [
    ("d", 86_400_000, 86_400_000_000.0),
    ("h", 3_600_000, 3_600_000_000.0),
    ("min", 60_000, 60_000_000.0),
    ("s", 1000, 1_000_000.0),
    ("ms", 1, 1000.0),
    ("us", 0, 1.0),
];

/// Reads `250ms`, `0.5 s` or a bare number of milliseconds, as `parse_int` in guc.c does for a setting whose
/// base unit is the millisecond.
fn read_millis(text: &str) -> Option<i64> {
    let text = text.trim_ascii();
    let end = text.bytes().position(|b| !(b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-')));
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let unit = unit.trim_ascii();
    let micros = match UNITS.iter().find(|(name, ..)| *name == unit) {
        Some(&(_, _, micros)) => micros,
        None if unit.is_empty() => 1000.0,
        None => return None,
    };
    let millis = (number.parse::<f64>().ok()? * micros / 1000.0).round_ties_even();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a float that is too large becomes the largest integer"
    )]
    millis.is_finite().then_some(millis as i64)
}

/// As SHOW prints a duration: in the largest unit that fits (`convert_int_from_base_unit` in guc.c).
pub fn show_millis(millis: u32) -> String {
    if millis == 0 {
        return "0".to_owned();
    }
    let fits = UNITS.iter().find(|(_, unit, _)| *unit > 0 && millis.is_multiple_of(*unit));
    fits.map_or_else(String::new, |(name, unit, _)| format!("{}{name}", millis / unit))
}
