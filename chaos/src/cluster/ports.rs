//! Port leases that hold across parallel test processes.
//!
//! A lease is an advisory lock on a file named after the port; the kernel drops it with the process. The
//! range lies below Linux's ephemeral ports (32768 and up, `net.ipv4.ip_local_port_range`), so no outgoing
//! connection can take a port while its server is stopped for a moment.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};

use super::error::{Doing, Error, Result};
use super::owner::Owner;

const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

/// The right to listen on a port of 127.0.0.1, until dropped.
#[must_use = "the port is free again as soon as the lease is dropped"]
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    _lock: File,
}

impl PortLease {
    /// Takes a port that nobody leases and nobody listens on.
    pub fn take() -> Result<Self> {
        let dir = Owner::caller().shared_dir("ports")?;
        // Processes start at different places, so that they rarely meet.
        let span = LAST - FIRST + 1;
        let start = u16::try_from(std::process::id().wrapping_mul(7919) % u32::from(span)).unwrap_or(0);
        for step in 0..span {
            let port = FIRST + (start + step) % span;
            let path = dir.join(port.to_string());
            let file = File::options().create(true).write(true).truncate(false).open(&path);
            let lock = file.doing_to("open", &path)?;
            if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(Self { port, _lock: lock });
            }
        }
        Err(Error::NoPort { first: FIRST, last: LAST })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leased_port_is_not_given_twice() {
        // Nobody listens on either port: only the lease keeps them apart.
        let first = PortLease::take().unwrap();
        let second = PortLease::take().unwrap();

        assert_ne!(first.port(), second.port());
    }
}
