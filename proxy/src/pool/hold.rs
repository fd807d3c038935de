//! Writes that wait for a primary: few, for a short time, the oldest refused first.
//!
//! Only the end of a failover is waited for. Whoever waits has no backend and no place in a pool; when a primary takes
//! writes all go on at once, and what then limits them is the ramp of its write lane.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Something changed: look again.
    Look,
    /// Others came, and there is room for so many only.
    Displaced,
}

/// All that wait.
#[derive(Debug, Default)]
pub struct Hold(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: VecDeque<(u64, oneshot::Sender<Ended>)>,
}

/// One that waits. Dropping it leaves the queue.
#[derive(Debug)]
#[must_use]
pub struct Held<'a> {
    hold: &'a Hold,
    number: u64,
    ended: oneshot::Receiver<Ended>,
}

impl Hold {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits with at most `max - 1` others: the oldest gives way. `None` when nobody may wait.
    pub fn join(&self, max: usize) -> Option<Held<'_>> {
        if max == 0 {
            return None;
        }
        let (tell, ended) = oneshot::channel();
        let mut queue = self.lock();
        while queue.waiting.len() >= max {
            if let Some((_, oldest)) = queue.waiting.pop_front() {
                // It may have left just now.
                let _ = oldest.send(Ended::Displaced);
            }
        }
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back((number, tell));
        Some(Held { hold: self, number, ended })
    }

    /// Lets all look again, oldest first.
    pub fn release(&self) {
        for (_, waiting) in self.lock().waiting.drain(..) {
            let _ = waiting.send(Ended::Look);
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Future for Held<'_> {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        // The sender is dropped only after it was used, or with this.
        Pin::new(&mut self.ended).poll(cx).map(|ended| ended.unwrap_or(Ended::Look))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.hold.lock().waiting.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_gives_way_and_the_others_go_on_together() {
        // Refusing the newest would keep those who have waited in vain for the longest.
        let hold = Hold::default();
        let (first, second) = (hold.join(2).unwrap(), hold.join(2).unwrap());

        let third = hold.join(2).unwrap();
        assert_eq!(first.await, Ended::Displaced);

        hold.release();
        assert_eq!((second.await, third.await), (Ended::Look, Ended::Look));
        assert!(hold.is_empty());
    }

    #[test]
    fn whoever_leaves_makes_room() {
        // Else applications that gave up would displace those that wait.
        let hold = Hold::default();
        let kept = hold.join(2).unwrap();
        drop(hold.join(2));

        drop(hold.join(2));

        assert_eq!(hold.len(), 1);
        drop(kept);
        assert!(hold.is_empty() && hold.join(0).is_none());
    }
}
