//! The phase of a breaker as others see it, and how phase and epoch share one atomic word.

/// What a breaker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Traffic flows.
    Closed,
    /// Traffic flows; something looks wrong and is being confirmed.
    Suspect,
    /// Everything is refused.
    Open,
    /// Everything is refused; probes are asked whether the service is back.
    HalfOpen,
    /// Traffic flows again, little at first; see [`ramp_limit`](Self::ramp_limit).
    Ramp {
        /// How often the limit has doubled.
        step: u8,
    },
    /// Open by order.
    ForcedOpen,
    /// Closed by order, whatever is seen.
    ForcedClosed,
}

/// After this many doublings of a tenth the ramp is over.
pub(super) const RAMP_STEPS: u8 = 4;

impl Phase {
    /// Whether calls are let through.
    pub const fn admits(self) -> bool {
        match self {
            Self::Closed | Self::Suspect | Self::Ramp { .. } | Self::ForcedClosed => true,
            Self::Open | Self::HalfOpen | Self::ForcedOpen => false,
        }
    }

    /// How many calls may be in flight, of `ceiling`, while ramping up: a tenth (at least two), doubled with each
    /// step. `None` in every other phase: no limit of the breaker's.
    ///
    /// The breaker does not count; give this to whatever limits concurrency. A tenth is where Envoy's slow start
    /// begins, too (`min_weight_percent`).
    pub fn ramp_limit(self, ceiling: usize) -> Option<usize> {
        let Self::Ramp { step } = self else { return None };
        let first = (ceiling / 10).max(2);
        Some(first.saturating_mul(1 << step.min(RAMP_STEPS)).min(ceiling))
    }

    /// The name as it is written in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Suspect => "suspect",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Ramp { .. } => "ramp",
            Self::ForcedOpen => "forced_open",
            Self::ForcedClosed => "forced_closed",
        }
    }
}

/// Phase in the low byte, epoch above it: an admission reads both in one load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) phase: Phase,
    pub(super) epoch: u64,
}

impl Word {
    pub(super) const fn pack(self) -> u64 {
        let phase = match self.phase {
            Phase::Closed => 0,
            Phase::Suspect => 1,
            Phase::Open => 2,
            Phase::HalfOpen => 3,
            Phase::ForcedOpen => 4,
            Phase::ForcedClosed => 5,
            Phase::Ramp { step } => 8 + if step > RAMP_STEPS { RAMP_STEPS } else { step } as u64,
        };
        self.epoch << 8 | phase
    }

    #[expect(clippy::cast_possible_truncation, reason = "masked to a byte")]
    pub(super) const fn unpack(word: u64) -> Self {
        let phase = match word as u8 {
            0 => Phase::Closed,
            1 => Phase::Suspect,
            2 => Phase::Open,
            3 => Phase::HalfOpen,
            4 => Phase::ForcedOpen,
            5 => Phase::ForcedClosed,
            step => Phase::Ramp { step: step.saturating_sub(8) },
        };
        Self { phase, epoch: word >> 8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phase_and_epoch_survive_the_word() {
        // A phase read as another would admit during an outage, or refuse without one.
        let phases = [
            Phase::Closed,
            Phase::Suspect,
            Phase::Open,
            Phase::HalfOpen,
            Phase::Ramp { step: 0 },
            Phase::Ramp { step: RAMP_STEPS },
            Phase::ForcedOpen,
            Phase::ForcedClosed,
        ];
        for phase in phases {
            for epoch in [0, 1, u64::MAX >> 8] {
                assert_eq!(Word::unpack(Word { phase, epoch }.pack()), Word { phase, epoch });
            }
        }
    }

    #[test]
    fn the_ramp_doubles_from_a_tenth_to_the_whole() {
        // The herd that waited out the outage must not come back in one step.
        let limits: Vec<_> =
            (0..=RAMP_STEPS).filter_map(|step| Phase::Ramp { step }.ramp_limit(50)).collect();

        assert_eq!(limits, [5, 10, 20, 40, 50]);
        assert_eq!(Phase::Ramp { step: 0 }.ramp_limit(4), Some(2));
        assert_eq!(Phase::Ramp { step: 0 }.ramp_limit(1), Some(1));
        assert_eq!(Phase::Closed.ramp_limit(50), None);
    }
}
