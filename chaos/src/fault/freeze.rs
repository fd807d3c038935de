//! SIGSTOP: a paused machine, or a part of one. Its kernel still accepts connections and acknowledges data.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::{Error, Node, Result};

use super::Guard;

/// Processes of a server: all of them, its postmaster, or those whose title starts with a word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Processes {
    /// The whole tree.
    #[default]
    All,
    /// The one that forks the others: sessions go on, new ones get no answer.
    Postmaster,
    /// For instance `walreceiver`.
    #[serde(untagged)]
    Titled(String),
}

impl std::fmt::Display for Processes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Postmaster => "postmaster",
            Self::Titled(title) => title,
        })
    }
}

pub(super) fn inject(node: &Arc<Node>, what: &Processes) -> Result<Guard> {
    match what {
        Processes::All => node.freeze()?,
        Processes::Postmaster => node.freeze_postmaster()?,
        Processes::Titled(title) => {
            if node.freeze_only(title)? == 0 {
                let what = format!("freezing {title} of {}", node.name());
                return Err(Error::Unsupported { what, why: "no such process".to_owned() });
            }
        }
    }
    let node = Arc::clone(node);
    Ok(Guard::new(move || node.thaw()))
}
