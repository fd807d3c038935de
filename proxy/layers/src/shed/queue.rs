//! The policy of admission.

use std::time::Duration;

use tokio::time::Instant;

use super::ask::{Admission, Ask, Fared, Joined, QueueConfig};
use super::codel::Codel;
use super::error::{Overloaded, Reason};
use super::limit::Limit;
use super::list::{Wait, WaitList, WaiterId};
use super::priority::Priority;

/// Who may go on, who waits, who is refused: the policy, without locks, wakers or a clock.
///
/// An [`AdmitQueue`] counts permits in flight against a [`Limit`] and keeps waiters of any type `W`. Whoever owns
/// it decides what a waiter is and how it is told; [`Handoff`](super::Handoff) is one such owner.
///
/// Every operation is O(1) in the number of waiters but [`sweep`](Self::sweep) and [`flush`](Self::flush), which are
/// O(n), and [`next`](Self::next), which refuses on its way those whom it does not let in.
#[derive(Debug)]
pub struct AdmitQueue<W> {
    config: QueueConfig,
    limit: Limit,
    in_flight: usize,
    waiters: WaitList<W>,
    /// One per priority: important requests stay in order while unimportant ones pile up.
    codels: [Codel; Priority::COUNT],
    /// Until when the share of a priority binds.
    capped_until: [Option<Instant>; Priority::COUNT],
    /// Nobody expires before this. `None`: unknown.
    quiet_until: Option<Instant>,
}

impl<W> AdmitQueue<W> {
    /// An empty queue before `ceiling` permits.
    pub fn new(ceiling: usize, config: QueueConfig) -> Self {
        Self {
            limit: Limit::new(ceiling, config.limit),
            config,
            in_flight: 0,
            waiters: WaitList::new(),
            codels: [Codel::default(); Priority::COUNT],
            capped_until: [None; Priority::COUNT],
            quiet_until: None,
        }
    }

    /// Replaces the configuration; who waits already keeps the bound it joined with.
    pub const fn set_config(&mut self, config: QueueConfig) {
        self.config = config;
        self.limit.set_config(config.limit);
    }

    /// Takes a permit if one is free for this request and nobody comes first.
    pub fn try_admit(&mut self, ask: &Ask, now: Instant) -> Admission {
        let admission = self.decide(ask, now);
        if admission == Admission::Admitted {
            self.admit();
        }
        admission
    }

    /// Counts a permit as given, after [`decide`](Self::decide) said [`Admission::Admitted`].
    pub const fn admit(&mut self) {
        self.in_flight += 1;
    }

    /// What [`try_admit`](Self::try_admit) would say. Takes nothing.
    pub fn decide(&self, ask: &Ask, now: Instant) -> Admission {
        if let Some(deadline) = ask.deadline
            && deadline <= now + self.config.headroom
        {
            return Admission::Refused(self.refusal(Reason::Deadline));
        }
        if let Err(reason) = self.below(ask.ceiling) {
            return Admission::Refused(self.refusal(reason));
        }
        let limit = self.limit.current();
        let capped = self.capped(ask.priority, now);
        let room = if capped { self.config.shares.of(ask.priority, limit) } else { limit };
        if self.in_flight < room && self.first_in_line(ask.priority) {
            return Admission::Admitted;
        }
        if capped && self.in_flight >= room && room < limit {
            return Admission::Refused(self.refusal(Reason::Priority));
        }
        self.place_for(ask.priority)
    }

    /// Joins the queue, or is given back with the reason why not. Call it when [`try_admit`](Self::try_admit)
    /// said [`Admission::MustWait`]; it never admits.
    ///
    /// # Errors
    /// The waiter itself, and why it may not wait.
    pub fn enqueue(&mut self, waiter: W, ask: &Ask, now: Instant) -> Result<Joined<W>, (W, Overloaded)> {
        if let Admission::Refused(refusal) = self.place_for(ask.priority) {
            return Err((waiter, refusal));
        }
        let evicted = self.make_place();
        let wait = self.wait(ask, now);
        self.quiet_until = self.quiet_until.map(|quiet| quiet.min(wait.expires));
        let id = self.waiters.push(waiter, wait);
        Ok(Joined { id, evicted })
    }

    /// A permit has come back. Say how the request fared, then call [`next`](Self::next).
    pub fn release(&mut self, fared: Fared) {
        debug_assert!(self.in_flight > 0, "a permit came back that was never given");
        match fared {
            Fared::Well => self.limit.succeeded(self.in_flight),
            Fared::Badly { at } => self.limit.lost(at),
            Fared::Unknown => {}
        }
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Gives a free permit to the waiter whose turn it is. Call it until it returns `None`.
    ///
    /// The most important come first; among equals the longest waiting, or the newest while overloaded: under
    /// overload the old ones are about to give up anyway. Those found to have waited too long, or above a ceiling of
    /// their own, go to `refuse`.
    pub fn next(&mut self, now: Instant, refuse: &mut impl FnMut(W, Overloaded)) -> Option<W> {
        for priority in Priority::ALL {
            self.sample(priority, now);
            while let Some((id, wait)) = self.candidate(priority) {
                if self.in_flight >= self.room(priority, now) {
                    // Shares nest and the limit is one for all: nobody less important may go either.
                    return None;
                }
                // Left at its place until it fits in, it would hold up those that may use the rest.
                let verdict = self.verdict(&wait, now).and_then(|()| self.below(wait.ceiling));
                let (waiter, _) = self.waiters.remove(id)?;
                match verdict {
                    Ok(()) => {
                        self.note_wait(&wait, now);
                        self.in_flight += 1;
                        return Some(waiter);
                    }
                    Err(reason) => self.refuse(waiter, &wait, reason, now, refuse),
                }
            }
        }
        None
    }

    /// Since when the waiter has waited whom [`next`](Self::next) would look at first. `None` if nobody waits, or
    /// nobody may go on.
    pub fn turn(&self, now: Instant) -> Option<Instant> {
        let first = Priority::ALL.into_iter().find(|priority| !self.waiters.none_of(*priority))?;
        let (_, wait) = self.candidate(first)?;
        (self.in_flight < self.room(first, now)).then_some(wait.since)
    }

    /// A waiter gives up. `None` if it has been admitted or refused already.
    pub fn remove(&mut self, id: WaiterId) -> Option<W> {
        self.waiters.remove(id).map(|(waiter, _)| waiter)
    }

    /// Refuses whoever has waited too long. Call it every 10 ms or so; no waiter outstays its bound by more than
    /// the time between two calls. Costs a comparison per priority while nobody can have expired.
    pub fn sweep(&mut self, now: Instant, refuse: &mut impl FnMut(W, Overloaded)) {
        for priority in Priority::ALL {
            self.sample(priority, now);
            while let Some((id, wait)) = self.waiters.oldest(priority) {
                let Err(reason) = self.verdict(&wait, now) else { break };
                let Some((waiter, _)) = self.waiters.remove(id) else { break };
                self.refuse(waiter, &wait, reason, now, refuse);
            }
        }
        if self.quiet_until.is_none_or(|quiet| quiet <= now) {
            self.sweep_all(now, refuse);
        }
    }

    /// Refuses everybody who waits: what they wait for will not come.
    pub fn flush(&mut self, refuse: &mut impl FnMut(W, Overloaded)) {
        let refusal = self.refusal(Reason::Flushed);
        for priority in Priority::ALL {
            while let Some((id, _)) = self.waiters.oldest(priority) {
                let Some((waiter, _)) = self.waiters.remove(id) else { break };
                refuse(waiter, refusal);
            }
        }
    }

    /// Whether the limit leaves room for one that is in flight in another lane.
    pub fn has_room_within(&self) -> bool {
        self.in_flight < self.limit.current_within()
    }

    /// Permits given and not yet back.
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// How many waiters the limit leaves room for.
    pub fn admissible(&self) -> usize {
        self.waiting().min(self.limit.current().saturating_sub(self.in_flight))
    }

    /// Since when the longest waiting has waited.
    pub fn waiting_since(&self) -> Option<Instant> {
        if self.waiters.len() == 0 {
            return None;
        }
        let oldest = |priority| self.waiters.oldest(priority).map(|(_, wait)| wait.since);
        Priority::ALL.into_iter().filter_map(oldest).min()
    }

    /// Whether the queue of this priority has stood for longer than `CoDel` accepts.
    pub const fn overloaded_for(&self, priority: Priority) -> bool {
        self.codels[priority.rank()].overloaded()
    }

    /// The limit.
    pub const fn limit(&self) -> &Limit {
        &self.limit
    }

    /// The limit, to change ceiling or ramp. Call [`next`](Self::next) afterwards: it may have grown.
    pub const fn limit_mut(&mut self) -> &mut Limit {
        &mut self.limit
    }

    pub(super) fn refusal(&self, reason: Reason) -> Overloaded {
        let standing = self.codels.iter().any(Codel::overloaded);
        let retry_after = if standing { self.config.codel.interval } else { self.config.codel.target };
        Overloaded { reason, retry_after }
    }

    /// Whether fewer are in flight than may be for a request with a ceiling of its own.
    fn below(&self, ceiling: Option<usize>) -> Result<(), Reason> {
        if ceiling.is_some_and(|ceiling| self.in_flight >= ceiling) { Err(Reason::Priority) } else { Ok(()) }
    }

    /// Whether nobody as important, or more so, waits.
    fn first_in_line(&self, priority: Priority) -> bool {
        Priority::ALL[..=priority.rank()].iter().all(|above| self.waiters.none_of(*above))
    }

    fn capped(&self, priority: Priority, now: Instant) -> bool {
        self.capped_until[priority.rank()].is_some_and(|until| now < until)
    }

    /// How many may be in flight for this priority to get a permit.
    fn room(&self, priority: Priority, now: Instant) -> usize {
        let limit = self.limit.current();
        if self.capped(priority, now) { self.config.shares.of(priority, limit) } else { limit }
    }

    fn place_for(&self, priority: Priority) -> Admission {
        let queue_max = self.config.queue_max;
        if queue_max == 0 {
            return Admission::Refused(self.refusal(Reason::Limit));
        }
        // Work that may wait leaves room; nobody holds up what somebody waits for.
        let places = if priority >= Priority::Critical {
            queue_max
        } else {
            self.config.shares.of(priority, queue_max)
        };
        if self.waiters.len() < places {
            return Admission::MustWait;
        }
        let less_important = &Priority::ALL[priority.rank() + 1..];
        if less_important.iter().any(|less| !self.waiters.none_of(*less)) {
            return Admission::MustWait;
        }
        Admission::Refused(self.refusal(Reason::QueueFull))
    }

    /// Evicts, from a full queue, the least important waiter: of those, the one that would go last.
    fn make_place(&mut self) -> Option<(W, Overloaded)> {
        if self.waiters.len() < self.config.queue_max {
            return None;
        }
        let lowest = Priority::ALL.into_iter().rev().find(|priority| !self.waiters.none_of(*priority))?;
        let last =
            if self.newest_first(lowest) { self.waiters.oldest(lowest) } else { self.waiters.newest(lowest) };
        let (waiter, _) = self.waiters.remove(last?.0)?;
        Some((waiter, self.refusal(Reason::Priority)))
    }

    /// When a request that starts to wait now is refused at the latest, its own deadline aside.
    pub(super) fn wait_bound(&self, now: Instant) -> Instant {
        now + self.config.wait_max
    }

    fn wait(&self, ask: &Ask, now: Instant) -> Wait {
        let bound = ask.wait_max.map_or_else(|| self.wait_bound(now), |wait_max| now + wait_max);
        let (expires, expiry) = match ask.deadline {
            Some(deadline) if deadline < bound => (deadline, Reason::Deadline),
            _ => (bound, Reason::QueueTimeout),
        };
        Wait { priority: ask.priority, since: now, expires, expiry, ceiling: ask.ceiling }
    }

    fn newest_first(&self, priority: Priority) -> bool {
        priority != Priority::CriticalPlus && self.overloaded_for(priority)
    }

    fn candidate(&self, priority: Priority) -> Option<(WaiterId, Wait)> {
        if self.newest_first(priority) {
            self.waiters.newest(priority)
        } else {
            self.waiters.oldest(priority)
        }
    }

    /// Whether a waiter may still be served, or why not.
    fn verdict(&self, wait: &Wait, now: Instant) -> Result<(), Reason> {
        if wait.expires <= now {
            return Err(wait.expiry);
        }
        let too_old = now.duration_since(wait.since) > self.config.codel.slough();
        if too_old && self.newest_first(wait.priority) { Err(Reason::QueueTimeout) } else { Ok(()) }
    }

    fn refuse(
        &mut self,
        waiter: W,
        wait: &Wait,
        reason: Reason,
        now: Instant,
        refuse: &mut impl FnMut(W, Overloaded),
    ) {
        self.note_wait(wait, now);
        refuse(waiter, self.refusal(reason));
    }

    /// Someone who had to wait longer than is acceptable binds those below to their shares for a while.
    fn note_wait(&mut self, wait: &Wait, now: Instant) {
        if now.duration_since(wait.since) > self.config.codel.target {
            let until = Some(now + self.config.codel.interval);
            self.capped_until[wait.priority.rank() + 1..].fill(until);
        }
    }

    fn sample(&mut self, priority: Priority, now: Instant) {
        let age =
            self.waiters.oldest(priority).map_or(Duration::ZERO, |(_, wait)| now.duration_since(wait.since));
        self.codels[priority.rank()].sample(age, &self.config.codel, now);
    }

    /// Deadlines do not come in order of arrival: look at everybody.
    fn sweep_all(&mut self, now: Instant, refuse: &mut impl FnMut(W, Overloaded)) {
        // Whoever joins later lowers this again.
        let mut quiet_until = now + self.config.wait_max;
        for place in self.waiters.places() {
            let Some((id, wait)) = self.waiters.at(place) else { continue };
            if wait.expires > now {
                quiet_until = quiet_until.min(wait.expires);
            } else if let Some((waiter, _)) = self.waiters.remove(id) {
                self.refuse(waiter, &wait, wait.expiry, now, refuse);
            }
        }
        self.quiet_until = Some(quiet_until);
    }
}
