use std::fmt;
use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::ask::Fared;
use super::error::Overloaded;
use super::handoff::{Found, Handoff, Lane, StartMove};

/// An item, and the right to use it. Dropping it gives both back.
///
/// It says nothing about how the request fared unless it is told: see [`fared_well`](Self::fared_well) and
/// [`fared_badly`](Self::fared_badly), which feed the adaptive limit of the lane.
#[must_use = "dropping a lease gives the item back"]
pub struct Lease<T> {
    /// `None` only once the item has been taken out.
    item: Option<T>,
    /// The lane that it waits for.
    moving: Option<Moving>,
    charge: Charge<T>,
}

#[derive(Debug, Clone, Copy)]
struct Moving {
    to: Lane,
    place: usize,
}

impl<T> Lease<T> {
    pub(super) const fn new(handoff: Handoff<T>, lane: Lane, item: T) -> Self {
        Self {
            item: Some(item),
            moving: None,
            charge: Charge { handoff: Some(handoff), lane, fared: Fared::Unknown },
        }
    }

    /// The lane it is charged to.
    pub const fn lane(&self) -> Lane {
        self.charge.lane
    }

    /// The request was served within its time. Counts when the lease is dropped, unless something was lost to overload.
    pub const fn fared_well(&mut self) {
        if matches!(self.charge.fared, Fared::Unknown) {
            self.charge.fared = Fared::Well;
        }
    }

    /// The request was lost to overload: the limit of its lane shrinks at once. Whatever ends well afterwards, such as
    /// what cleans up behind it, makes no success of the lease.
    pub fn fared_badly(&mut self, at: Instant) {
        if let Some(handoff) = &self.charge.handoff {
            handoff.lost(self.charge.lane, at);
        }
        self.charge.fared = Fared::Badly { at };
    }

    /// Charges the lease to another lane. At once if there is room; else before whoever waits there without an
    /// item, in order. A lease that is in that lane already is done at once.
    ///
    /// It is not shed: neither `CoDel` nor priorities, shares or the length of the queue are asked. Nothing bounds the
    /// wait but the caller ([`stay`](Self::stay)), [`Handoff::flush`] of that lane, and the leases that end there.
    pub fn poll_move(&mut self, lane: Lane, cx: &mut Context<'_>) -> Poll<Result<(), Overloaded>> {
        let from = self.charge.lane;
        let Some(handoff) = self.charge.handoff.as_ref().filter(|_| from != lane) else {
            return Poll::Ready(Ok(()));
        };
        let Some(place) = self.moving.filter(|moving| moving.to == lane).map(|moving| moving.place) else {
            return match handoff.start_move(from, lane, cx.waker()) {
                StartMove::Moved => self.moved(lane),
                StartMove::Refused(refusal) => Poll::Ready(Err(refusal)),
                StartMove::Waiting(place) => {
                    self.moving = Some(Moving { to: lane, place });
                    Poll::Pending
                }
            };
        };
        match handoff.find(place, cx.waker()) {
            Found::Moved => {
                handoff.end_move(from);
                self.moved(lane)
            }
            Found::Refused(refusal) => {
                self.moving = None;
                Poll::Ready(Err(refusal))
            }
            // Only a checkout is granted an item.
            Found::Granted(_) | Found::Nothing => Poll::Pending,
        }
    }

    /// How many leases go to the lane that it waits for before it does. `None` if it waits for none.
    pub fn moves_before(&self) -> Option<usize> {
        let Moving { to, place } = self.moving?;
        self.charge.handoff.as_ref().map(|handoff| handoff.moves_before(to, place))
    }

    fn moved(&mut self, lane: Lane) -> Poll<Result<(), Overloaded>> {
        self.moving = None;
        self.charge.lane = lane;
        Poll::Ready(Ok(()))
    }

    /// Stops waiting for another lane.
    pub fn stay(&mut self) {
        if let (Some(moving), Some(handoff)) = (self.moving.take(), &self.charge.handoff) {
            handoff.abandon_move(moving.to, moving.place);
        }
    }

    /// Takes the item away for good and frees its permit.
    pub fn discard(mut self) -> Option<T> {
        self.item.take()
    }

    /// Takes the item away, but keeps its permit charged until the [`Charge`] is dropped: for an item that is
    /// given up on but still weighs on the service, such as a connection whose far end may still be busy.
    pub fn detach(mut self) -> (Option<T>, Charge<T>) {
        self.stay();
        let item = self.item.take();
        let Charge { handoff, lane, fared } = &mut self.charge;
        let charge = Charge { handoff: handoff.take(), lane: *lane, fared: *fared };
        (item, charge)
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        self.stay();
        if let Some(item) = self.item.take() {
            self.charge.settle(Some(item));
        }
    }
}

impl<T> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.item.as_ref().unwrap_or_else(|| unreachable!("taking the item consumes the lease"))
    }
}

impl<T> DerefMut for Lease<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.item.as_mut().unwrap_or_else(|| unreachable!("taking the item consumes the lease"))
    }
}

impl<T: fmt::Debug> fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("item", &self.item)
            .field("lane", &self.charge.lane)
            .finish_non_exhaustive()
    }
}

/// A permit without its item, still counted against its lane. Dropping it frees the permit.
#[must_use = "dropping a charge frees its permit"]
pub struct Charge<T> {
    /// `None` once the permit has been given back or passed on.
    handoff: Option<Handoff<T>>,
    lane: Lane,
    fared: Fared,
}

impl<T> Charge<T> {
    fn settle(&mut self, item: Option<T>) {
        if let Some(handoff) = self.handoff.take() {
            let fared = match self.fared {
                // The limit has been told.
                Fared::Badly { .. } => Fared::Unknown,
                Fared::Well | Fared::Unknown => self.fared,
            };
            handoff.give_back(self.lane, item, fared);
        }
    }
}

impl<T> Drop for Charge<T> {
    fn drop(&mut self) {
        self.settle(None);
    }
}

impl<T> fmt::Debug for Charge<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Charge").field("lane", &self.lane).finish_non_exhaustive()
    }
}
