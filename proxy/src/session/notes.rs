//! What a session did to a backend that has to be looked after before the backend goes to another session.

use crate::backend::prepared::schema_changed;
use crate::exchange::facts::Need;
use crate::exchange::{Change, Facts};
use crate::pool::functions::functions_changed;
use crate::sql::PinReason;
use crate::wire::TransactionStatus;

/// Why a backend belongs to a session beyond its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pins(u8);

/// All reasons, with the word for logs and metrics.
pub const PIN_REASONS: [(PinReason, &str); 7] = [
    (PinReason::Listen, "listen"),
    (PinReason::TempTable, "temp_table"),
    (PinReason::HoldCursor, "hold_cursor"),
    (PinReason::AdvisoryLock, "advisory_lock"),
    (PinReason::Prepare, "prepare"),
    (PinReason::Load, "load"),
    (PinReason::Untracked, "untracked"),
];

/// The word for logs and metrics.
pub fn pin_word(reason: PinReason) -> &'static str {
    PIN_REASONS.iter().find(|(r, _)| *r == reason).map_or("other", |(_, word)| word)
}

impl Pins {
    /// No reason.
    pub const NONE: Self = Self(0);

    fn bit(reason: PinReason) -> u8 {
        let index = PIN_REASONS.iter().position(|(r, _)| *r == reason).unwrap_or(PIN_REASONS.len());
        1_u8.checked_shl(u32::try_from(index).unwrap_or(7)).unwrap_or(0x80)
    }

    /// Adds a reason; whether it is new.
    pub fn insert(&mut self, reason: PinReason) -> bool {
        let before = self.0;
        self.0 |= Self::bit(reason);
        self.0 != before
    }

    /// Takes a reason away.
    pub fn remove(&mut self, reason: PinReason) {
        self.0 &= !Self::bit(reason);
    }

    /// Whether this is a reason.
    #[inline]
    pub fn has(self, reason: PinReason) -> bool {
        self.0 & Self::bit(reason) != 0
    }

    /// Whether there is any reason.
    pub fn any(self) -> bool {
        self.0 != 0
    }
}

/// See the module documentation. What every exchange looks at comes first: in memory, too.
#[derive(Debug)]
#[repr(C)]
pub struct Notes {
    /// The strongest need of what was sent since the last quiet moment.
    pub sent: Need,
    /// Whether anything among it begins a transaction.
    pub begins: bool,
    /// Whether a COMMIT was among it.
    pub commits: bool,
    /// Whether anything among it may commit and go on.
    pub commits_midway: bool,
    /// Whether anything among it ends a transaction.
    pub ends_transaction: bool,
    /// Whether the transaction was, in part or as a whole, rolled back.
    pub rolls_back: bool,
    /// Whether the transaction may change the schema.
    pub alters_schema: bool,
    /// Whether the transaction may change functions.
    pub alters_functions: bool,
    /// Whether command tags decide something.
    pub watching: bool,
    /// Whether something failed since the last quiet moment.
    pub failed: bool,
    /// All settings went back to their values at login.
    pub reset_all: bool,
    /// And ours with them, at once.
    pub resets_terms: bool,
    /// What few sessions have.
    changed: Option<Box<Changed>>,
}

/// What was changed, and may have to be looked after.
#[derive(Debug, Default)]
struct Changed {
    /// Settings whose values have to be read back.
    touched: Vec<Box<str>>,
    /// Settings that went back to their values at login.
    resets: Vec<Box<str>>,
    /// Pins that go if nothing failed.
    unpins: Vec<PinReason>,
    /// Those that go when the unnamed portal is executed.
    bound: Vec<PinReason>,
    /// Those that come back when a named portal is executed.
    named: Vec<PinReason>,
}

/// Which portal a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortalKind {
    /// The one that the next Bind of it replaces.
    Unnamed,
    /// Any other.
    Named,
}

impl PortalKind {
    /// That of a Bind or Execute with this body, as far as it is there.
    #[inline]
    pub fn of(body: Option<&[u8]>) -> Self {
        match body {
            Some([0, ..]) => Self::Unnamed,
            Some(_) | None => Self::Named,
        }
    }
}

/// Pins that go with these changes, in their order.
fn note_unpins(unpins: &mut Vec<PinReason>, changes: &[Change]) {
    for change in changes {
        if let Change::Unpin(reason) = change {
            unpins.push(*reason);
        } else if let Change::Pin(reason) = change {
            unpins.retain(|unpin| unpin != reason);
        }
    }
}

impl Default for Notes {
    fn default() -> Self {
        Self {
            changed: None,
            reset_all: false,
            resets_terms: false,
            watching: false,
            failed: false,
            sent: Need::Neutral,
            begins: false,
            commits: false,
            commits_midway: false,
            ends_transaction: false,
            rolls_back: false,
            alters_schema: false,
            alters_functions: false,
        }
    }
}

impl Notes {
    /// Notes that a statement with these facts goes to the backend. Returns the reasons to pin it.
    #[inline]
    pub fn sent(&mut self, facts: &Facts, pins: &mut Pins) -> NewPins {
        self.sent = self.sent.max(facts.lane);
        self.begins |= facts.begins;
        self.commits |= facts.commits;
        self.ends_transaction |= facts.ends_transaction;
        self.rolls_back |= facts.rolls_back;
        self.alters_schema |= facts.alters_schema;
        self.alters_functions |= facts.alters_functions;
        if facts.changes.is_empty() { NewPins::default() } else { self.changes(&facts.changes, pins) }
    }

    fn changes(&mut self, changes: &[Change], pins: &mut Pins) -> NewPins {
        let mut new = NewPins::default();
        let changed = self.changed.get_or_insert_default();
        for change in changes {
            match change {
                Change::Set(name) => note(&mut changed.touched, name),
                Change::Reset(name) => note(&mut changed.resets, name),
                Change::ResetAll => {
                    self.reset_all = true;
                    self.resets_terms = true;
                }
                Change::DiscardAll => {
                    self.watching = true;
                    self.reset_all = true;
                }
                Change::DeallocateAll => self.watching = true,
                // The end of a pin counts when it is executed.
                Change::Deallocate(_) | Change::Term(_) | Change::Unpin(_) => {}
                Change::Pin(reason) => {
                    changed.unpins.retain(|unpin| unpin != reason);
                    if pins.insert(*reason) {
                        new.0 = Some(*reason);
                    }
                }
            }
        }
        new
    }

    /// What was noted as sent is executed at once, as a simple query.
    pub fn runs(&mut self, facts: &Facts) {
        if let Some(changed) = &mut self.changed {
            note_unpins(&mut changed.unpins, &facts.changes);
        }
    }

    /// What was noted as sent is bound to a portal, with these changes.
    #[inline]
    pub fn binds(&mut self, portal: PortalKind, changes: &[Change]) {
        let Some(changed) = &mut self.changed else { return };
        match portal {
            PortalKind::Unnamed => {
                changed.bound.clear();
                note_unpins(&mut changed.bound, changes);
            }
            PortalKind::Named => {
                for change in changes {
                    if let Change::Pin(reason) = change
                        && !changed.named.contains(reason)
                    {
                        changed.named.push(*reason);
                    }
                }
            }
        }
    }

    /// A portal is executed. Which of the named ones it is, is not looked at: it may bring any pin, and takes none.
    #[inline]
    pub fn executes(&mut self, portal: PortalKind) {
        let Some(changed) = &mut self.changed else { return };
        match portal {
            PortalKind::Unnamed => changed.unpins.extend_from_slice(&changed.bound),
            PortalKind::Named => changed.unpins.retain(|unpin| !changed.named.contains(unpin)),
        }
    }

    /// Whether settings have to be looked after.
    #[inline]
    pub fn has_settings(&self) -> bool {
        self.reset_all
            || self
                .changed
                .as_ref()
                .is_some_and(|changed| !changed.touched.is_empty() || !changed.resets.is_empty())
    }

    /// Takes the settings that have to be looked after: those that have to be read back, and those that went back to
    /// their values at login.
    pub fn take_settings(&mut self) -> (Vec<Box<str>>, Vec<Box<str>>) {
        let taken = self
            .changed
            .as_mut()
            .map(|changed| (std::mem::take(&mut changed.touched), std::mem::take(&mut changed.resets)));
        taken.unwrap_or_default()
    }

    /// Nothing is owed any more: what was sent is history.
    #[inline]
    pub fn quiet(&mut self, status: TransactionStatus, pins: &mut Pins) {
        if self.alters_schema && status == TransactionStatus::Idle {
            self.alters_schema = false;
            schema_changed();
        }
        if self.alters_functions && status == TransactionStatus::Idle {
            self.alters_functions = false;
            functions_changed();
        }
        self.sent = Need::Neutral;
        self.begins = false;
        self.commits = false;
        self.commits_midway = false;
        self.ends_transaction = false;
        if status != TransactionStatus::Idle {
            return;
        }
        if let Some(changed) = &mut self.changed {
            changed.bound.clear();
            changed.named.clear();
            for reason in changed.unpins.drain(..) {
                // What was rolled back still is.
                if !self.failed && !self.rolls_back {
                    pins.remove(reason);
                }
            }
        }
        self.watching = false;
        self.failed = false;
        self.rolls_back = false;
    }
}

/// Each name once, however often an application sets it.
fn note(names: &mut Vec<Box<str>>, name: &str) {
    if !names.iter().any(|noted| **noted == *name) {
        names.push(name.into());
    }
}

/// A reason that pinned the backend just now, if any.
#[derive(Debug, Clone, Copy, Default)]
#[must_use]
pub struct NewPins(pub Option<PinReason>);

#[cfg(test)]
mod tests {
    use super::*;

    /// A session that listens, and does this in its next transaction.
    fn listens_after(act: impl FnOnce(&mut Notes, &mut Pins)) -> bool {
        let (mut notes, mut pins) = (Notes::default(), Pins::default());
        query(&mut notes, &mut pins, "LISTEN c");
        notes.quiet(TransactionStatus::Idle, &mut pins);
        act(&mut notes, &mut pins);
        notes.quiet(TransactionStatus::Idle, &mut pins);
        pins.any()
    }

    fn query(notes: &mut Notes, pins: &mut Pins, text: &str) {
        let facts = Facts::of(text.as_bytes());
        let _ = notes.sent(&facts, pins);
        notes.runs(&facts);
    }

    fn bind(notes: &mut Notes, pins: &mut Pins, portal: PortalKind, text: &str) {
        let facts = Facts::of(text.as_bytes());
        let _ = notes.sent(&facts, pins);
        notes.binds(portal, &facts.changes);
    }

    #[test]
    fn the_last_of_a_text_decides_whether_a_pin_goes() {
        // The other order leaves a backend to others that listens, or one to its session that does not.
        for (text, listens) in
            [("UNLISTEN *", false), ("UNLISTEN *; LISTEN c", true), ("LISTEN d; UNLISTEN *", false)]
        {
            assert_eq!(listens_after(|notes, pins| query(notes, pins, text)), listens, "{text}");
        }
    }

    #[test]
    fn what_is_bound_counts_when_its_portal_is_executed() {
        // Bound and not executed, or executed in another order than bound: the backend listens all the same.
        use PortalKind::{Named, Unnamed};
        type Steps = &'static [(PortalKind, Option<&'static str>)];
        let bound = |steps: Steps| {
            listens_after(|notes, pins| {
                for (portal, text) in steps {
                    match text {
                        Some(text) => bind(notes, pins, *portal, text),
                        None => notes.executes(*portal),
                    }
                }
            })
        };

        assert!(bound(&[(Unnamed, Some("UNLISTEN *"))]));
        assert!(!bound(&[(Unnamed, Some("UNLISTEN *")), (Unnamed, None)]));
        assert!(bound(&[(Unnamed, Some("UNLISTEN *")), (Unnamed, Some("SELECT 1")), (Unnamed, None)]));
        assert!(bound(&[(Named, Some("UNLISTEN *")), (Named, None)]), "a guess, on the safe side");
        assert!(!bound(&[(Unnamed, Some("UNLISTEN *")), (Unnamed, None), (Named, None)]));
        let reversed: Steps =
            &[(Named, Some("LISTEN d")), (Unnamed, Some("UNLISTEN *")), (Unnamed, None), (Named, None)];
        assert!(bound(reversed));
    }
}
