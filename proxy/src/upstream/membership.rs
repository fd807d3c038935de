//! Guards over the list of servers: one change must not take everything out at once.
//!
//! A reloaded configuration is only a text. A torn or mistaken one that removed the servers in use would be an
//! outage made by ourselves, so such a change is refused unless it was ordered by `cluster.force`. Death that is
//! *observed* needs no leave: the server is gone whether we agree or not.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::topology::{Role, Topology};
use crate::config::UpstreamAddress;

/// Why a new list of servers is not taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It names none.
    Empty,
    /// It removes every server that has this role.
    WholeRole(Role),
    /// It removes more than half.
    TooMany {
        /// How many.
        removed: usize,
        /// Of how many.
        of: usize,
    },
    /// The change before it has not settled.
    Unsettled {
        /// How long to wait.
        wait: Duration,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the new list of upstreams is empty"),
            Self::WholeRole(Role::Primary) => f.write_str("it removes the primary; set cluster.force"),
            Self::WholeRole(Role::Standby) => f.write_str("it removes every standby; set cluster.force"),
            Self::TooMany { removed, of } => {
                write!(f, "it removes {removed} of {of} upstreams at once; set cluster.force")
            }
            Self::Unsettled { wait } => write!(
                f,
                "the upstreams changed within cluster.settle; try again in {} ms, or set cluster.force",
                wait.as_millis()
            ),
        }
    }
}

/// Whether the order stands in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// No: guards hold.
    No,
    /// Yes (`cluster.force`).
    Yes,
}

impl From<bool> for Force {
    fn from(ordered: bool) -> Self {
        if ordered { Self::Yes } else { Self::No }
    }
}

/// Judges a new list against what is in use. `settled_at` is when the change before it is over, if there was one.
///
/// # Errors
/// The first guard that it breaks. An empty list is refused even with force: there would be nothing to come back to.
pub fn judge(
    current: &Topology,
    new: &[UpstreamAddress],
    force: Force,
    settled_at: Option<Instant>,
    now: Instant,
) -> Result<(), Refused> {
    if new.is_empty() {
        return Err(Refused::Empty);
    }
    let removed = || current.upstreams().iter().filter(|view| !new.contains(&view.address));
    let added = new.iter().any(|address| current.upstreams().iter().all(|view| view.address != *address));
    if force == Force::Yes || (removed().next().is_none() && !added) {
        return Ok(());
    }
    if let Some(wait) =
        settled_at.and_then(|at| at.checked_duration_since(now)).filter(|wait| !wait.is_zero())
    {
        return Err(Refused::Unsettled { wait });
    }
    for role in [Role::Primary, Role::Standby] {
        let had = current.upstreams().iter().any(|view| view.role == Some(role));
        let keeps =
            current.upstreams().iter().any(|view| view.role == Some(role) && new.contains(&view.address));
        if had && !keeps {
            return Err(Refused::WholeRole(role));
        }
    }
    let (removed, of) = (removed().count(), current.upstreams().len());
    if removed * 2 > of { Err(Refused::TooMany { removed, of }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::UpstreamId;
    use crate::upstream::topology::{Epoch, Health, UpstreamView, Writes};

    fn address(port: u16) -> UpstreamAddress {
        UpstreamAddress::Tcp { host: "db".to_owned(), port }
    }

    fn cluster(roles: &[Option<Role>]) -> Topology {
        let view = |(index, role): (u16, &Option<Role>)| UpstreamView {
            id: UpstreamId(index.into()),
            address: address(index),
            name: "db".into(),
            role: *role,
            epoch: Epoch(1),
            health: Health::Up,
            cause: None,
            fenced: None,
            lag: None,
            observed: None,
        };
        Topology::new(Epoch(1), (0..).zip(roles).map(view).collect(), Some(UpstreamId(0)), Writes::Open)
    }

    fn judged(roles: &[Option<Role>], kept: &[u16], force: Force) -> Result<(), Refused> {
        let new: Vec<_> = kept.iter().copied().map(address).collect();
        judge(&cluster(roles), &new, force, None, Instant::now())
    }

    const PRIMARY: Option<Role> = Some(Role::Primary);
    const STANDBY: Option<Role> = Some(Role::Standby);

    #[test]
    fn removing_every_server_of_a_role_needs_force() {
        // A count alone would let one line of a torn file end all writes, or all reads from standbys.
        let roles = [PRIMARY, STANDBY, STANDBY];

        assert_eq!(judged(&roles, &[1, 2], Force::No), Err(Refused::WholeRole(Role::Primary)));
        assert_eq!(judged(&roles, &[0], Force::No), Err(Refused::WholeRole(Role::Standby)));
        assert_eq!(judged(&roles, &[0, 2], Force::No), Ok(()));
        assert_eq!(judged(&roles, &[1, 2], Force::Yes), Ok(()));
    }

    #[test]
    fn removing_more_than_half_at_once_needs_force_though_each_role_stays() {
        // With roles as the only guard three of five would go in one step.
        let roles = [PRIMARY, STANDBY, STANDBY, STANDBY, STANDBY];

        assert_eq!(judged(&roles, &[0, 1], Force::No), Err(Refused::TooMany { removed: 3, of: 5 }));
        assert_eq!(judged(&roles, &[0, 1, 2], Force::No), Ok(()));
        assert_eq!(judged(&roles, &[0, 1, 7, 8, 9], Force::No), Err(Refused::TooMany { removed: 3, of: 5 }));
    }

    #[test]
    fn half_is_counted_where_no_role_is_known() {
        // At start nothing has a role yet; the guard must not depend on what was observed.
        assert_eq!(judged(&[None, None], &[9], Force::No), Err(Refused::TooMany { removed: 2, of: 2 }));
        assert_eq!(judged(&[None, None], &[0], Force::No), Ok(()));
    }

    #[test]
    fn an_empty_list_is_refused_even_by_force() {
        // Nothing could be asked any more, and nothing could ever return.
        assert_eq!(judged(&[PRIMARY], &[], Force::Yes), Err(Refused::Empty));
    }

    #[test]
    fn a_second_change_waits_until_the_first_has_settled() {
        // Two halves in two quick steps are the whole; a reload that changes nothing is no change.
        let now = Instant::now();
        let wait = Duration::from_secs(1);
        let current = cluster(&[PRIMARY, STANDBY, STANDBY]);
        let judged = |new: &[UpstreamAddress], at| judge(&current, new, Force::No, Some(now + wait), at);

        assert_eq!(judged(&[address(0), address(1)], now), Err(Refused::Unsettled { wait }));
        assert_eq!(judged(&[address(0), address(1)], now + wait), Ok(()));
        assert_eq!(judged(&[address(2), address(1), address(0)], now), Ok(()));
    }
}
