//! Waiters in order of arrival, one list per priority, in one reusable store.
//!
//! Nodes are linked by index inside a slab, so waiting allocates only until the slab has grown to the longest
//! queue seen, and a waiter that gives up is unlinked at once wherever it stands.

use slab::Slab;
use tokio::time::Instant;

use super::error::Reason;
use super::priority::Priority;

/// Names a waiter. It stays unique after the waiter has left, so a stale one names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WaiterId {
    key: usize,
    ticket: u64,
}

/// What the queue knows of a waiter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub(super) priority: Priority,
    /// When it joined.
    pub(super) since: Instant,
    /// When it must be refused at the latest ...
    pub(super) expires: Instant,
    /// ... and with which reason.
    pub(super) expiry: Reason,
    /// How many may be in flight for it to be let in, where that is less than for all others.
    pub(super) ceiling: Option<usize>,
}

#[derive(Debug)]
struct Node<W> {
    waiter: W,
    wait: Wait,
    ticket: u64,
    older: Option<usize>,
    newer: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    oldest: Option<usize>,
    newest: Option<usize>,
}

#[derive(Debug)]
pub(super) struct WaitList<W> {
    nodes: Slab<Node<W>>,
    ends: [Ends; Priority::COUNT],
    tickets: u64,
}

impl<W> WaitList<W> {
    pub(super) const fn new() -> Self {
        const EMPTY: Ends = Ends { oldest: None, newest: None };
        Self { nodes: Slab::new(), ends: [EMPTY; Priority::COUNT], tickets: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Joins as the newest of its priority.
    pub(super) fn push(&mut self, waiter: W, wait: Wait) -> WaiterId {
        self.tickets += 1;
        let ticket = self.tickets;
        let ends = &mut self.ends[wait.priority.rank()];
        let older = ends.newest;
        let key = self.nodes.insert(Node { waiter, wait, ticket, older, newer: None });
        ends.newest = Some(key);
        ends.oldest.get_or_insert(key);
        if let Some(node) = older.and_then(|older| self.nodes.get_mut(older)) {
            node.newer = Some(key);
        }
        WaiterId { key, ticket }
    }

    /// Unlinks a waiter. `None` if it has left already.
    pub(super) fn remove(&mut self, id: WaiterId) -> Option<(W, Wait)> {
        self.nodes.get(id.key).filter(|node| node.ticket == id.ticket)?;
        let node = self.nodes.try_remove(id.key)?;
        let ends = &mut self.ends[node.wait.priority.rank()];
        match node.older {
            Some(older) => self.nodes[older].newer = node.newer,
            None => ends.oldest = node.newer,
        }
        match node.newer {
            Some(newer) => self.nodes[newer].older = node.older,
            None => ends.newest = node.older,
        }
        Some((node.waiter, node.wait))
    }

    /// Who of this priority has waited longest.
    pub(super) fn oldest(&self, priority: Priority) -> Option<(WaiterId, Wait)> {
        self.view(self.ends[priority.rank()].oldest)
    }

    /// Who of this priority came last.
    pub(super) fn newest(&self, priority: Priority) -> Option<(WaiterId, Wait)> {
        self.view(self.ends[priority.rank()].newest)
    }

    /// Whether nobody of this priority waits.
    pub(super) const fn none_of(&self, priority: Priority) -> bool {
        self.ends[priority.rank()].oldest.is_none()
    }

    /// Places to look at with [`at`](Self::at).
    pub(super) fn places(&self) -> std::ops::Range<usize> {
        0..self.nodes.capacity()
    }

    /// Who stands at this place of the store.
    pub(super) fn at(&self, place: usize) -> Option<(WaiterId, Wait)> {
        self.view(Some(place))
    }

    fn view(&self, key: Option<usize>) -> Option<(WaiterId, Wait)> {
        let key = key?;
        self.nodes.get(key).map(|node| (WaiterId { key, ticket: node.ticket }, node.wait))
    }
}
