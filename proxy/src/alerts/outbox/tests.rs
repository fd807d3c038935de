//! Claims about who is told what, how often and in which order.

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::sql::Lane;

fn receiver(name: &str) -> Receiver {
    Receiver(name.into())
}

fn alert(name: &'static str) -> Alert {
    Alert { upstream: Some("db:5432".into()), lane: Some(Lane::Write), ..Alert::new(name, "writes hang") }
}

/// An outbox that has read an empty file, and a clock that the test moves.
struct Desk {
    outbox: Outbox,
    now: Instant,
    random: SmallRng,
    ids: u32,
}

impl Desk {
    fn new(receivers: &[&str]) -> Self {
        let mut outbox = Outbox::new(receivers.iter().map(|name| receiver(name)).collect());
        outbox.adopt(Saved::default(), Timestamp::now(), Instant::now());
        Self { outbox, now: Instant::now(), random: SmallRng::seed_from_u64(1), ids: 0 }
    }

    /// A process that starts with the file of this one.
    fn restart(&self) -> Self {
        let receivers = self.outbox.receivers.clone();
        let saved = serde_json::to_vec(&self.outbox.saved()).unwrap();
        let mut outbox = Outbox::new(receivers);
        outbox.adopt(serde_json::from_slice(&saved).unwrap(), Timestamp::now(), self.now);
        Self { outbox, now: self.now, random: self.random.clone(), ids: self.ids + 100 }
    }

    fn fire(&mut self, name: &'static str) {
        self.ids += 1;
        self.outbox.fire(alert(name), self.ids.to_string().into(), Timestamp::now(), self.now);
    }

    fn resolve(&mut self, name: &'static str) {
        self.outbox.resolve(&alert(name).key(), Timestamp::now(), self.now);
    }

    fn finish(&mut self, due: &Due, delivery: Delivery) {
        self.outbox.finish(due.number, delivery, self.now, &mut self.random);
    }

    /// Sends all that is due, and what becomes due by that, to receivers that accept everything.
    fn deliver(&mut self) -> Vec<String> {
        let mut got = Vec::new();
        loop {
            let due = self.outbox.take_due(self.now);
            if due.is_empty() {
                return got;
            }
            for due in due {
                let message = &due.message;
                got.push(format!("{} {} {}", message.to.0, message.alert.alert, message.status.word()));
                self.finish(&due, Delivery::Accepted);
            }
        }
    }
}

#[test]
fn an_incident_is_told_once_when_it_begins_and_once_when_it_ends() {
    // The condition is looked at many times a second; a page for each look would be switched off.
    let mut desk = Desk::new(&["a", "b"]);
    for _ in 0..3 {
        desk.fire("write_stalled");
    }
    assert_eq!(desk.deliver(), ["a write_stalled firing", "b write_stalled firing"]);

    for _ in 0..3 {
        desk.resolve("write_stalled");
    }
    assert_eq!(desk.deliver(), ["a write_stalled resolved", "b write_stalled resolved"]);
    assert_eq!(desk.outbox.pending(), 0);
}

#[test]
fn the_end_waits_until_the_beginning_was_accepted() {
    // A resolve that overtakes its page leaves the incident open at the receiver for good.
    let mut desk = Desk::new(&["a"]);
    desk.fire("x");
    let firing = desk.outbox.take_due(desk.now);
    desk.resolve("x");

    assert_eq!(firing.len(), 1);
    assert!(desk.outbox.take_due(desk.now).is_empty());
    desk.finish(&firing[0], Delivery::Failed);
    desk.now += Duration::from_mins(1);
    assert_eq!(desk.deliver(), ["a x firing", "a x resolved"]);
}

#[test]
fn a_receiver_that_is_down_delays_nobody_else() {
    // One dead chat service must not keep the page back.
    let mut desk = Desk::new(&["dead", "alive"]);
    for name in ["a", "b", "c", "d", "e", "f"] {
        desk.fire(name);
    }
    let due = desk.outbox.take_due(desk.now);
    let alive: Vec<_> = due.into_iter().filter(|due| due.message.to == receiver("alive")).collect();
    for due in &alive {
        desk.finish(due, Delivery::Accepted);
    }

    let more = desk.outbox.take_due(desk.now);

    assert_eq!(alive.len(), ATTEMPTS_MAX);
    assert_eq!(more.len(), 2, "the other two of the one that works");
}

#[test]
fn an_open_incident_survives_a_restart_without_a_second_page() {
    // The condition still holds, and the new process sees it as new.
    let mut desk = Desk::new(&["a"]);
    desk.fire("x");
    assert_eq!(desk.deliver(), ["a x firing"]);

    let mut desk = desk.restart();
    desk.fire("x");
    assert!(desk.deliver().is_empty());

    desk.resolve("x");
    assert_eq!(desk.deliver(), ["a x resolved"]);
}

#[test]
fn what_was_not_sent_before_a_restart_is_sent_after_it() {
    // A crash between decision and delivery would otherwise lose the page.
    let mut desk = Desk::new(&["a"]);
    desk.fire("x");
    let _lost = desk.outbox.take_due(desk.now);

    assert_eq!(desk.restart().deliver(), ["a x firing"]);
}

#[test]
fn what_happens_before_the_file_is_read_counts() {
    // A slow disk must not make an incident fire twice, nor stay open for good.
    let mut desk = Desk::new(&["a"]);
    desk.fire("holds");
    desk.fire("healed");
    desk.deliver();
    let saved = desk.outbox.saved();
    let mut later = Desk { outbox: Outbox::new(vec![receiver("a")]), ..desk.restart() };

    later.fire("holds");
    later.resolve("healed");
    later.outbox.adopt(saved, Timestamp::now(), later.now);

    assert_eq!(later.deliver(), ["a healed resolved"]);
    assert_eq!(later.outbox.open_count(), 1);
}

#[test]
fn both_of_two_announced_incidents_get_their_end() {
    // The file could be read only after the second page had left: a page without an end is never closed.
    let mut desk = Desk::new(&["a"]);
    desk.fire("x");
    desk.deliver();
    let saved = desk.outbox.saved();
    let mut later = Desk { outbox: Outbox::new(vec![receiver("a")]), ..desk.restart() };
    later.fire("x");
    assert_eq!(later.deliver(), ["a x firing"]);

    later.outbox.adopt(saved, Timestamp::now(), later.now);
    assert_eq!(later.deliver(), ["a x resolved"]);
    later.resolve("x");
    assert_eq!(later.deliver(), ["a x resolved"]);
}

#[test]
fn a_refusal_is_repeated_slowly_and_a_failure_soon() {
    // A wrong key is not mended in seconds; a receiver that restarts is.
    let mut desk = Desk::new(&["a"]);
    let mut mean = |delivery| {
        let mut sum = Duration::ZERO;
        for _ in 0..200 {
            desk.fire("x");
            let due = desk.outbox.take_due(desk.now);
            desk.finish(&due[0], delivery);
            sum += desk.outbox.next_due(desk.now).map_or(Duration::ZERO, |at| at - desk.now);
            desk = Desk { random: desk.random.clone(), ..Desk::new(&["a"]) };
        }
        sum / 200
    };

    assert!(mean(Delivery::Failed) < Duration::from_millis(250));
    assert!(mean(Delivery::Refused) > Duration::from_secs(5));
}

#[test]
fn the_outbox_is_bounded_and_gives_up_what_is_over_first() {
    // A receiver that is down for a weekend of flapping must not fill the memory, nor lose what still holds.
    let mut desk = Desk::new(&["a"]);
    desk.fire("holds");
    for _ in 0..MESSAGES_MAX {
        desk.fire("flaps");
        desk.resolve("flaps");
    }

    assert!(desk.outbox.pending() <= MESSAGES_MAX);
    assert!(desk.outbox.dropped > 0);
    let got = desk.deliver();
    assert_eq!(got[0], "a holds firing");
    assert_eq!(got.iter().filter(|line| line.ends_with("firing")).count() - 1, got.len() / 2);
}

#[test]
fn a_webhook_that_is_added_later_is_not_told_the_end_alone() {
    // An end without a beginning confuses people, and some receivers refuse it.
    let mut desk = Desk::new(&["a"]);
    desk.fire("x");
    desk.outbox.set_receivers(vec![receiver("a"), receiver("b")]);
    desk.resolve("x");

    assert_eq!(desk.deliver(), ["a x firing", "a x resolved"]);
}

#[test]
fn a_server_that_is_taken_out_has_no_incidents_and_gets_no_new_ones() {
    // To replace a dead server is the usual remedy; its page would stay open for ever, also across restarts.
    let mut desk = Desk::new(&["a"]);
    desk.fire("write_stalled");
    assert_eq!(desk.deliver(), ["a write_stalled firing"]);
    let mut next = desk.restart();
    let known = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect();

    desk.outbox.set_upstreams(known(&["db:5432", "other:5432"]), Timestamp::now(), desk.now);
    assert!(desk.deliver().is_empty());
    desk.outbox.set_upstreams(known(&["other:5432"]), Timestamp::now(), desk.now);
    assert_eq!(desk.deliver(), ["a write_stalled resolved"]);
    desk.fire("write_stalled");
    assert!(desk.deliver().is_empty());

    next.outbox.set_upstreams(known(&["other:5432"]), Timestamp::now(), next.now);
    assert_eq!(next.deliver(), ["a write_stalled resolved"]);
}

#[test]
fn an_incident_of_an_earlier_process_about_a_server_that_is_not_configured_is_over() {
    // The file may be read after the configuration.
    let mut desk = Desk::new(&["a"]);
    desk.fire("write_stalled");
    desk.deliver();
    let mut outbox = Outbox::new(vec![receiver("a")]);

    outbox.set_upstreams([Box::from("other:5432")].into(), Timestamp::now(), desk.now);
    outbox.adopt(desk.outbox.saved(), Timestamp::now(), desk.now);

    assert_eq!(outbox.open_count(), 0);
    assert_eq!(outbox.pending(), 1);
}
