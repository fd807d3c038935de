//! Plans drawn from a seed, and the search for the smallest that still shows a failure.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::fault::{Fault, Link, Processes, SubjectFault};
use crate::relay::{Action, Cut, Message, Moment, Stream};

use super::{Scenario, Step};

/// Name of the scenario whose steps are drawn.
const NAME: &str = "random";

/// Gives `random` its steps; leaves every other scenario alone. The same seed gives the same steps.
#[must_use]
pub fn fill(mut scenario: Scenario, seed: u64) -> Scenario {
    if scenario.name == NAME && scenario.steps.is_empty() {
        scenario.steps = draw(seed);
    }
    scenario
}

/// Two to four faults, of which neighbours may overlap.
fn draw(seed: u64) -> Vec<Step> {
    let mut random = SmallRng::seed_from_u64(seed);
    let count = random.random_range(2..=4);
    let mut at = Duration::ZERO;
    let mut steps: Vec<Step> = Vec::new();
    for _ in 0..count {
        let lasts = Duration::from_millis(random.random_range(1_000..=8_000));
        let fault = fault(&mut random);
        steps.push(Step { at, lasts, fault });
        // Sometimes before the last one has healed.
        at += lasts.mul_f64(random.random_range(0.5..1.5));
    }
    without_collisions(steps)
}

/// Two faults that stop or start processes of the same server must not overlap: the second would wait for what
/// the first has stopped.
fn without_collisions(steps: Vec<Step>) -> Vec<Step> {
    let mut kept: Vec<Step> = Vec::new();
    for mut step in steps {
        if !is_gentle(&step.fault) {
            let free = kept.iter().filter(|other| !is_gentle(&other.fault)).map(Step::end).max();
            step.at = step.at.max(free.map_or(Duration::ZERO, |end| end + Duration::from_secs(1)));
        }
        kept.push(step);
    }
    kept
}

/// Leaves the servers themselves alone.
fn is_gentle(fault: &Fault) -> bool {
    matches!(fault, Fault::Link { .. } | Fault::Subject { .. } | Fault::Burst { .. })
}

fn fault(random: &mut SmallRng) -> Fault {
    let primary = || "primary".to_owned();
    let link = |link| Fault::Link { node: "primary".to_owned(), link };
    match random.random_range(0..16) {
        0 => Fault::Freeze { node: "s1".to_owned(), what: Processes::Titled("walreceiver".to_owned()) },
        1 => Fault::Freeze { node: primary(), what: Processes::All },
        2 => Fault::Freeze { node: primary(), what: Processes::Postmaster },
        3 => Fault::Freeze { node: "s1".to_owned(), what: Processes::All },
        4 => Fault::Kill { node: primary(), what: Processes::All },
        5 => Fault::Kill { node: "s1".to_owned(), what: Processes::All },
        6 => Fault::DeadStandbyName { node: primary() },
        7 => Fault::ReadOnly { node: primary() },
        8 => Fault::Restart { node: primary(), immediate: random.random_bool(0.5) },
        9 => Fault::LockStorm { node: primary(), table: false },
        10 => link(Link::Down),
        11 => link(Link::Stall {
            only: [None, Some(Stream::Upstream), Some(Stream::Downstream)][random.random_range(0..3)],
        }),
        12 => link(Link::Latency { ms: random.random_range(5..=100), jitter_ms: 5 }),
        13 => link(Link::Slice { bytes: random.random_range(1..=64) }),
        14 => link(Link::Cut(cut(random))),
        _ => Fault::Subject { what: SubjectFault::TornConfig },
    }
}

fn cut(random: &mut SmallRng) -> Cut {
    let messages = [Message::CommandComplete, Message::ReadyForQuery, Message::Sync, Message::Query];
    let moments = [Moment::Before, Moment::After, Moment::Amid];
    let actions = [Action::Reset, Action::Close, Action::HalfOpen, Action::Silence];
    Cut {
        message: messages[random.random_range(0..messages.len())],
        statement: [None, Some("COMMIT".to_owned()), Some("INSERT".to_owned())][random.random_range(0..3)]
            .clone(),
        when: moments[random.random_range(0..moments.len())],
        action: actions[random.random_range(0..actions.len())],
        chance: random.random_range(0.05..0.5),
    }
}

/// The scenarios with one step less, to be tried in this order (Zeller and Hildebrandt, *Simplifying and
/// Isolating Failure-Inducing Input*, at its finest granularity: plans are short).
pub fn smaller(scenario: &Scenario) -> Vec<Scenario> {
    if scenario.steps.len() < 2 {
        return Vec::new();
    }
    let without = |number: usize| {
        let mut less = scenario.clone();
        less.steps.remove(number);
        // The first fault need not wait for one that is gone.
        let first = less.steps.iter().map(|step| step.at).min().unwrap_or_default();
        less.steps.iter_mut().for_each(|step| step.at -= first);
        less
    };
    (0..scenario.steps.len()).rev().map(without).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        // A failure that cannot be replayed cannot be mended.
        assert_eq!(draw(11), draw(11));
        assert!((0..50).any(|seed| draw(seed) != draw(seed + 1)));
    }

    #[test]
    fn every_kind_of_fault_is_drawn_sooner_or_later() {
        // A range that is too small would leave the last kinds out for ever.
        let labels: std::collections::BTreeSet<String> = (0..400)
            .flat_map(draw)
            .filter_map(|step| {
                serde_json::to_value(&step.fault).ok()?.get("fault")?.as_str().map(str::to_owned)
            })
            .collect();

        assert!(labels.len() >= 8, "{labels:?}");
    }

    #[test]
    fn faults_of_servers_do_not_overlap() {
        // Killing a frozen server and thawing it afterwards is no plan.
        for seed in 0..200 {
            let mut harsh: Vec<Step> =
                draw(seed).into_iter().filter(|step| !is_gentle(&step.fault)).collect();
            harsh.sort_by_key(|step| step.at);
            assert!(harsh.windows(2).all(|pair| pair[0].end() <= pair[1].at), "seed {seed}: {harsh:?}");
        }
    }

    #[test]
    fn a_smaller_plan_has_one_step_less_and_starts_at_once() {
        // Shrinking ends because plans get shorter.
        let mut scenario = Scenario::load("random").unwrap();
        scenario.steps = draw(3);

        let all = smaller(&scenario);

        assert_eq!(all.len(), scenario.steps.len());
        for less in all {
            assert_eq!(less.steps.len() + 1, scenario.steps.len());
            assert!(less.steps.iter().any(|step| step.at.is_zero()));
        }
    }
}
