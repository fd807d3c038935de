//! Plays a scenario's faults at their times.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep_until;

use crate::fault::Guard;
use crate::history::RunClock;
use crate::scenario::{Scenario, Step};

use super::{FaultWindow, Rig};

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Inject(usize),
    Heal(usize),
}

/// In the order of their times; of those at the same time heals come first.
fn timeline(steps: &[Step]) -> Vec<(Duration, Event)> {
    let mut events: Vec<(Duration, Event)> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        events.push((step.at, Event::Inject(number)));
        events.push((step.end(), Event::Heal(number)));
    }
    // Stable: a step that lasts no time is injected before it heals.
    let before = |number: usize, at: Duration| steps[number].at < at;
    events.sort_by_key(|(at, event)| match event {
        Event::Heal(number) if before(*number, *at) => (*at, 0),
        Event::Inject(_) | Event::Heal(_) => (*at, 1),
    });
    events
}

/// Injects and heals until the last fault is healed. Faults that cannot be injected are told, not fatal: the
/// claims will be undecided.
///
/// # Cancel safety
///
/// When dropped, the faults in force are healed.
pub(super) async fn play(
    rig: &Arc<Rig>,
    scenario: &Scenario,
    clock: RunClock,
    zero: Duration,
) -> (Vec<FaultWindow>, Vec<String>) {
    let mut windows: Vec<FaultWindow> = Vec::new();
    let mut troubles = Vec::new();
    let mut guards: Vec<Option<(Guard, usize)>> = scenario.steps.iter().map(|_| None).collect();
    for (at, event) in timeline(&scenario.steps) {
        sleep_until(clock.instant(zero + at)).await;
        match event {
            Event::Inject(number) => {
                let from = clock.now();
                let fault = scenario.steps[number].fault.clone();
                let (label, frozen) = (fault.to_string(), fault.pauses_a_primary(rig));
                let rig = Arc::clone(rig);
                match spawn_blocking(move || fault.inject(&rig)).await {
                    Ok(Ok(guard)) => {
                        guards[number] = Some((guard, windows.len()));
                        windows.push(FaultWindow { label, frozen, from, until: None });
                    }
                    Ok(Err(error)) => troubles.push(format!("{label}: {error}")),
                    Err(error) => troubles.push(format!("{label}: {error}")),
                }
            }
            Event::Heal(number) => {
                let Some((guard, window)) = guards[number].take() else { continue };
                match spawn_blocking(move || guard.heal()).await {
                    Ok(Ok(())) => windows[window].until = Some(clock.now()),
                    Ok(Err(error)) => troubles.push(not_healed(&windows[window], &error)),
                    Err(error) => troubles.push(not_healed(&windows[window], &error)),
                }
            }
        }
    }
    (windows, troubles)
}

fn not_healed(window: &FaultWindow, error: &dyn std::error::Error) -> String {
    format!("{}: not healed: {error}", window.label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;

    fn step(at: u64, lasts: u64) -> Step {
        let fault = Fault::ReadOnly { node: "primary".to_owned() };
        Step { at: Duration::from_secs(at), lasts: Duration::from_secs(lasts), fault }
    }

    #[test]
    fn a_fault_heals_before_the_next_one_at_the_same_time() {
        // Promoting a server that is still frozen would wait for ever.
        let order: Vec<Event> =
            timeline(&[step(2, 0), step(0, 2)]).into_iter().map(|(_, event)| event).collect();

        assert_eq!(order, [Event::Inject(1), Event::Heal(1), Event::Inject(0), Event::Heal(0)]);
    }
}
