//! A way to a server that leads through a network namespace, like a cable that can be pulled.
//!
//! When its far end goes down nobody says so: what was sent is not acknowledged, and who connects learns after three
//! seconds that nobody answers ARP. Needs root and iproute2. The socket that listens in the namespace belongs to this
//! process: a socket stays where it was made.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::command;
use super::error::{Doing, Error, Result};
use super::ports::PortLease;

const LIMIT: Duration = Duration::from_secs(10);

/// What names of our namespaces begin with; the process id follows.
const PREFIX: &str = "tidegate-";

/// Where `ip netns` keeps namespaces.
const SPACES: &str = "/run/netns";

/// A namespace and the pair of interfaces that leads into it. Both go when dropped.
#[derive(Debug)]
pub struct Cable {
    space: String,
    far: String,
    /// A lease is a number that no other process has: the addresses are made of it.
    _number: PortLease,
}

impl Cable {
    /// Lays one, and listens at its far end. Blocks.
    pub fn lay() -> Result<(Self, TcpListener)> {
        let number = PortLease::take()?;
        let index = number.port();
        let space = format!("{PREFIX}{}-{index}", std::process::id());
        let (near, far) = (format!("tgn{index}"), format!("tgf{index}"));
        let [here, there] = addresses(index);
        ip(&["netns", "add", &space])?;
        let cable = Self { space, far, _number: number };
        let (space, far) = (cable.space.as_str(), cable.far.as_str());
        ip(&["link", "add", &near, "type", "veth", "peer", "name", far, "netns", space])?;
        ip(&["addr", "add", &format!("{here}/30"), "dev", &near])?;
        ip(&["link", "set", &near, "up"])?;
        ip(&["-n", space, "addr", "add", &format!("{there}/30"), "dev", far])?;
        cable.plug()?;
        let listener = listen(space, there)?;
        Ok((cable, listener))
    }

    /// Its far end goes down.
    pub(crate) fn pull(&self) -> Result<()> {
        ip(&["-n", &self.space, "link", "set", &self.far, "down"])
    }

    /// And up again.
    pub(crate) fn plug(&self) -> Result<()> {
        ip(&["-n", &self.space, "link", "set", &self.far, "up"])
    }

    /// Removes the namespaces of processes that are gone.
    pub(crate) fn sweep() {
        let Ok(entries) = std::fs::read_dir(SPACES) else { return };
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            if is_abandoned(&name) {
                // Somebody else's sweep may have been faster.
                let _ = ip(&["netns", "del", &name]);
            }
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // The interfaces go with it.
        let _ = ip(&["netns", "del", &self.space]);
    }
}

/// Both ends: a network of four addresses for each number.
fn addresses(index: u16) -> [Ipv4Addr; 2] {
    let [high, low] = (index & 0x3fff).to_be_bytes();
    let network = u32::from_be_bytes([10, 213, 0, 0]) + u32::from_be_bytes([0, 0, high, low]) * 4;
    [network + 1, network + 2].map(Ipv4Addr::from)
}

fn listen(space: &str, address: Ipv4Addr) -> Result<TcpListener> {
    let path = Path::new(SPACES).join(space);
    let file = File::open(&path).doing_to("open", &path)?;
    // Only this thread moves, and it ends.
    let moved = thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        TcpListener::bind(SocketAddr::from((address, 0)))
    });
    let failed = || Error::Unsupported { what: "a namespace".to_owned(), why: "a thread failed".to_owned() };
    moved.join().map_err(|_| failed())?.doing(|| format!("cannot listen on {address} in a namespace"))
}

fn is_abandoned(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid);
    let pid = pid.and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

fn ip(arguments: &[&str]) -> Result<()> {
    command::run(Command::new("ip").args(arguments), "", LIMIT).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_network_of_its_own() {
        // Two runs beside each other would otherwise route into each other's namespace.
        let networks: std::collections::BTreeSet<Ipv4Addr> =
            (20_000..32_000).map(|n| addresses(n)[0]).collect();

        assert_eq!(networks.len(), 12_000);
        assert!(networks.iter().all(|address| address.octets()[..2] == [10, 213]));
    }

    #[test]
    fn only_namespaces_of_dead_processes_are_swept() {
        // No process has an id above 2^22.
        assert!(is_abandoned("tidegate-99999999-20001"));
        assert!(!is_abandoned(&format!("tidegate-{}-20001", std::process::id())));
        assert!(!is_abandoned("somebody-else"));
    }
}
