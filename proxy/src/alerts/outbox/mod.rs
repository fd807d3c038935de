//! Which incidents are open, and which messages are still to be sent: [`Outbox`]. Pure: time is an argument.
//!
//! Promises, for each receiver: one message when an incident begins and one when it ends, in that order; nothing
//! about an incident that was open already. A message stays until its receiver accepted it. Receivers do not wait
//! for each other, nor incidents for each other.
//!
//! Bounded: at most [`MESSAGES_MAX`] messages wait. Beyond that the oldest incident that is over, and of which a
//! receiver knows nothing yet, is dropped for that receiver; if there is none, the oldest message.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use serde::{Deserialize, Serialize};
use tidegate_layers::Backoff;
use tokio::time::Instant;

use super::incident::{Alert, Incident, Key, Message, Receiver, Status};
use crate::timestamp::Timestamp;

/// Messages that wait at the same time.
pub(super) const MESSAGES_MAX: usize = 1000;
/// Incidents that are open at the same time; further ones are dropped.
const INCIDENTS_MAX: usize = 1000;
/// Attempts at one receiver at the same time.
const ATTEMPTS_MAX: usize = 4;
/// After a failure: 250 ms at first, 15 s at most, so that a page leaves soon after its receiver is back.
const RETRY: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(15));
/// After a refusal (4xx), which somebody has to look into.
const RETRY_REFUSED: Backoff = Backoff::new(Duration::from_secs(30), Duration::from_mins(10));

/// The state of all alerts.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    receivers: Vec<Receiver>,
    incidents: BTreeMap<Key, Incident>,
    /// The servers that there may be incidents about; any, before they are known.
    upstreams: Option<BTreeSet<Box<str>>>,
    waiting: VecDeque<Waiting>,
    /// Said to be healthy before the file was read.
    healthy: Option<BTreeSet<Key>>,
    next_number: u64,
    /// Changes with everything that a file should have.
    pub(super) version: u64,
    /// Messages and incidents that found no room.
    pub(super) dropped: u64,
}

/// A message and how it fares.
#[derive(Debug)]
struct Waiting {
    number: u64,
    message: Arc<Message>,
    state: State,
    retry: Backoff,
    retry_refused: Backoff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Due(Instant),
    /// An attempt is being made.
    Attempted,
}

/// A message to be sent now. Report back with [`Outbox::finish`].
#[derive(Debug, Clone)]
#[must_use]
pub(super) struct Due {
    pub(super) number: u64,
    pub(super) message: Arc<Message>,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// 2xx.
    Accepted,
    /// No answer in time, or one that may be better next time.
    Failed,
    /// An answer that says that the request is wrong.
    Refused,
    /// There is no such receiver any more.
    Gone,
}

/// What outlives the process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Saved {
    pub(super) incidents: Vec<Incident>,
    pub(super) messages: Vec<Arc<Message>>,
}

impl Outbox {
    /// An outbox for these receivers, which expects to [`adopt`](Self::adopt) what an earlier process left.
    pub(super) fn new(receivers: Vec<Receiver>) -> Self {
        Self { receivers, healthy: Some(BTreeSet::new()), ..Self::default() }
    }

    /// Replaces the receivers. What waits for one that is gone is dropped when its turn comes.
    pub(super) fn set_receivers(&mut self, receivers: Vec<Receiver>) {
        self.receivers = receivers;
    }

    /// These are the servers from now on. Incidents about others are over: nobody asks those any more, so nobody would
    /// learn that they are well again.
    pub(super) fn set_upstreams(&mut self, upstreams: BTreeSet<Box<str>>, at: Timestamp, now: Instant) {
        self.upstreams = Some(upstreams);
        let keys: Vec<Key> = self.incidents.keys().cloned().collect();
        for key in keys {
            if self.incidents.get(&key).is_some_and(|incident| self.is_about_a_stranger(&incident.alert)) {
                self.resolve(&key, at, now);
            }
        }
    }

    fn is_about_a_stranger(&self, alert: &Alert) -> bool {
        match (&self.upstreams, &alert.upstream) {
            (Some(known), Some(upstream)) => !known.contains(&**upstream),
            (None, _) | (_, None) => false,
        }
    }

    /// An incident begins, unless it is open. `id` names it if so.
    pub(super) fn fire(&mut self, alert: Alert, id: Arc<str>, at: Timestamp, now: Instant) {
        if self.is_about_a_stranger(&alert) {
            return;
        }
        let key = alert.key();
        if let Some(healthy) = &mut self.healthy {
            healthy.remove(&key);
        }
        if self.incidents.contains_key(&key) {
            return;
        }
        if self.incidents.len() >= INCIDENTS_MAX {
            self.dropped += 1;
            return;
        }
        let incident = Incident { id, at, alert, told: self.receivers.clone() };
        self.announce(&incident, Status::Firing, at, now);
        self.incidents.insert(key, incident);
    }

    /// An incident is over, if it was open.
    pub(super) fn resolve(&mut self, key: &Key, at: Timestamp, now: Instant) {
        if let Some(healthy) = self.healthy.as_mut().filter(|healthy| healthy.len() < INCIDENTS_MAX) {
            healthy.insert(key.clone());
        }
        if let Some(incident) = self.incidents.remove(key) {
            self.announce(&incident, Status::Resolved, at, now);
        }
    }

    fn announce(&mut self, incident: &Incident, status: Status, at: Timestamp, now: Instant) {
        self.version += 1;
        for to in &incident.told {
            let message = Message {
                to: to.clone(),
                status,
                at,
                since: incident.at,
                id: Arc::clone(&incident.id),
                alert: incident.alert.clone(),
            };
            self.push(Arc::new(message), now);
        }
    }

    fn push(&mut self, message: Arc<Message>, now: Instant) {
        if self.waiting.len() >= MESSAGES_MAX {
            self.make_room();
        }
        let number = self.next_number;
        self.next_number += 1;
        let state = State::Due(now);
        self.waiting.push_back(Waiting {
            number,
            message,
            state,
            retry: RETRY,
            retry_refused: RETRY_REFUSED,
        });
    }

    fn make_room(&mut self) {
        let untouched = |waiting: &&Waiting| matches!(waiting.state, State::Due(_));
        let about = |waiting: &Waiting| (waiting.message.to.clone(), Arc::clone(&waiting.message.id));
        let over: HashSet<_> =
            self.waiting.iter().filter(|w| w.message.status == Status::Resolved).map(about).collect();
        let firing = self.waiting.iter().filter(untouched).filter(|w| w.message.status == Status::Firing);
        let before = self.waiting.len();
        if let Some(pair) = firing.map(about).find(|pair| over.contains(pair)) {
            self.waiting.retain(|waiting| about(waiting) != pair);
        } else if let Some(at) = self.waiting.iter().position(|waiting| untouched(&waiting)) {
            self.waiting.remove(at);
        }
        self.dropped += u64::try_from(before - self.waiting.len()).unwrap_or(0);
    }

    /// The messages that can be sent now, the oldest of each receiver and incident only.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Due> {
        let mut attempts: BTreeMap<Receiver, usize> = BTreeMap::new();
        for waiting in self.waiting.iter().filter(|waiting| waiting.state == State::Attempted) {
            *attempts.entry(waiting.message.to.clone()).or_default() += 1;
        }
        let mut seen = HashSet::new();
        let mut due = Vec::new();
        for waiting in &mut self.waiting {
            let message = &waiting.message;
            let first = seen.insert((message.to.clone(), Arc::clone(&message.id)));
            let attempts = attempts.entry(message.to.clone()).or_default();
            let ready = matches!(waiting.state, State::Due(at) if at <= now);
            if first && ready && *attempts < ATTEMPTS_MAX {
                *attempts += 1;
                waiting.state = State::Attempted;
                due.push(Due { number: waiting.number, message: Arc::clone(message) });
            }
        }
        due
    }

    /// When to look again if nothing happens before.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let later = self.waiting.iter().filter_map(|waiting| match waiting.state {
            // What is due and was not taken waits for an attempt to end.
            State::Due(at) if at > now => Some(at),
            State::Due(_) | State::Attempted => None,
        });
        later.min()
    }

    /// What became of an attempt.
    pub(super) fn finish(
        &mut self,
        number: u64,
        delivery: Delivery,
        now: Instant,
        random: &mut (impl Rng + ?Sized),
    ) {
        let Some(at) = self.waiting.iter().position(|waiting| waiting.number == number) else { return };
        match delivery {
            Delivery::Accepted | Delivery::Gone => {
                self.waiting.remove(at);
                self.version += 1;
            }
            Delivery::Failed | Delivery::Refused => {
                let Some(waiting) = self.waiting.get_mut(at) else { return };
                let backoff = match delivery {
                    Delivery::Refused => &mut waiting.retry_refused,
                    Delivery::Accepted | Delivery::Failed | Delivery::Gone => &mut waiting.retry,
                };
                waiting.state = State::Due(now + backoff.next(random));
            }
        }
    }

    /// What a file should have now.
    pub(super) fn saved(&self) -> Saved {
        Saved {
            incidents: self.incidents.values().cloned().collect(),
            messages: self.waiting.iter().map(|waiting| Arc::clone(&waiting.message)).collect(),
        }
    }

    /// Takes over what an earlier process left. What was found healthy in the meantime is resolved; what was
    /// found wrong in the meantime is the same incident, and is not announced again.
    pub(super) fn adopt(&mut self, saved: Saved, at: Timestamp, now: Instant) {
        let healthy = self.healthy.take().unwrap_or_default();
        if saved != Saved::default() || !self.waiting.is_empty() || !self.incidents.is_empty() {
            self.version += 1;
        }
        let ours = std::mem::take(&mut self.waiting);
        saved.messages.into_iter().take(MESSAGES_MAX).for_each(|message| self.push(message, now));
        self.waiting.extend(ours);
        for earlier in saved.incidents.into_iter().take(INCIDENTS_MAX) {
            let key = earlier.alert.key();
            match self.incidents.remove(&key) {
                Some(ours) if self.withdraw(&ours) => drop(self.incidents.insert(key, earlier)),
                // Somebody was told already of the second one: each gets its own end.
                Some(ours) => {
                    self.announce(&earlier, Status::Resolved, at, now);
                    self.incidents.insert(key, ours);
                }
                None if healthy.contains(&key) || self.is_about_a_stranger(&earlier.alert) => {
                    self.announce(&earlier, Status::Resolved, at, now);
                }
                None => drop(self.incidents.insert(key, earlier)),
            }
        }
    }

    /// Takes back an announcement that nobody has got yet; says whether that was so.
    fn withdraw(&mut self, incident: &Incident) -> bool {
        let about = |waiting: &&Waiting| waiting.message.id == incident.id;
        let untold = self.waiting.iter().filter(about).all(|waiting| waiting.state != State::Attempted)
            && self.waiting.iter().filter(about).count() == incident.told.len();
        if untold {
            self.waiting.retain(|waiting| waiting.message.id != incident.id);
        }
        untold
    }

    /// Incidents that are open.
    pub(super) fn open(&self) -> Vec<Incident> {
        self.incidents.values().cloned().collect()
    }

    /// Incidents that are open, by number.
    pub(super) fn open_count(&self) -> usize {
        self.incidents.len()
    }

    /// Messages that wait.
    pub(super) fn pending(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests;
