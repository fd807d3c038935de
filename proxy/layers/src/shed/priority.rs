//! How much a request matters, and what that entitles it to when there is not enough for all.

/// How much a request matters. The four levels of "Handling Overload" (Site Reliability Engineering, chapter 21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// May be refused at any time: batch work that will be tried again.
    Sheddable,
    /// Partial loss is expected: work that can wait minutes.
    SheddablePlus,
    /// The default: someone is waiting for it.
    #[default]
    Critical,
    /// Losing it is worse than losing anything else. Never overtaken by later requests and exempt from `CoDel`.
    CriticalPlus,
}

impl Priority {
    /// All levels, the most important first.
    pub const ALL: [Self; Self::COUNT] =
        [Self::CriticalPlus, Self::Critical, Self::SheddablePlus, Self::Sheddable];

    /// Number of levels.
    pub const COUNT: usize = 4;

    /// Position in [`ALL`](Self::ALL): zero is the most important.
    pub(super) const fn rank(self) -> usize {
        match self {
            Self::CriticalPlus => 0,
            Self::Critical => 1,
            Self::SheddablePlus => 2,
            Self::Sheddable => 3,
        }
    }

    /// The name as it is written in configuration and errors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CriticalPlus => "critical_plus",
            Self::Critical => "critical",
            Self::SheddablePlus => "sheddable_plus",
            Self::Sheddable => "sheddable",
        }
    }
}

/// The part of permits and queue that each priority may fill under contention, in percent.
///
/// The shares nest: what is left by sheddable work is there for all above it. They bind only while someone more
/// important has had to wait, as in the partitioned limiter of Netflix' concurrency-limits, so a service whose
/// requests are all of one priority can always use all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// For [`Priority::CriticalPlus`].
    pub critical_plus: u8,
    /// For [`Priority::Critical`].
    pub critical: u8,
    /// For [`Priority::SheddablePlus`].
    pub sheddable_plus: u8,
    /// For [`Priority::Sheddable`].
    pub sheddable: u8,
}

impl Default for Shares {
    fn default() -> Self {
        Self { critical_plus: 100, critical: 95, sheddable_plus: 70, sheddable: 50 }
    }
}

impl Shares {
    /// How much of `whole` the priority may fill; at least one, so that no priority is locked out by rounding.
    pub(super) fn of(self, priority: Priority, whole: usize) -> usize {
        let percent = match priority {
            Priority::CriticalPlus => self.critical_plus,
            Priority::Critical => self.critical,
            Priority::SheddablePlus => self.sheddable_plus,
            Priority::Sheddable => self.sheddable,
        };
        (whole * usize::from(percent.min(100)) / 100).max(1).min(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_nest_and_never_round_to_nothing() {
        // A share of zero would lock a priority out of a small pool for as long as the contention lasts.
        for whole in 1..200 {
            let shares: Vec<_> = Priority::ALL.iter().map(|p| Shares::default().of(*p, whole)).collect();

            assert_eq!(shares[0], whole);
            assert!(shares.is_sorted_by(|more, less| more >= less) && shares[3] >= 1, "{shares:?}");
        }
    }
}
