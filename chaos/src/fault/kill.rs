//! SIGKILL: a crash.

use std::sync::Arc;

use crate::cluster::{Node, Result, Signal};

use super::{Guard, Processes};

pub(super) fn inject(node: &Arc<Node>, what: &Processes) -> Result<Guard> {
    match what {
        Processes::All => node.kill()?,
        Processes::Postmaster => {
            // The others notice, and end by themselves (`PostmasterIsAlive`).
            node.signal(node.postmaster_pid()?, Signal::KILL)?;
        }
        Processes::Titled(title) => {
            // The postmaster starts it again, or, for a backend, everything.
            let victims = node.processes().into_iter().filter(|process| process.title.starts_with(title));
            for victim in victims {
                node.signal(victim.pid, Signal::KILL)?;
            }
            return Ok(Guard::new(|| Ok(())));
        }
    }
    let dead = *what == Processes::All;
    let node = Arc::clone(node);
    Ok(Guard::new(move || {
        if !dead {
            // Whatever is left of the tree.
            node.kill()?;
        }
        node.resume()
    }))
}
