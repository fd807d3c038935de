//! Messages that measure the machine.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::history::{Failure, Outcome};
use crate::observe::machine::MESSAGE;

/// Sessions, as a lane of reads has them: one that is late must not hold up the next message.
const SESSIONS: usize = 10;

/// Connections to the mirror.
#[derive(Debug)]
pub(super) struct Mirrored {
    mirror: SocketAddr,
    streams: Vec<Mutex<Option<TcpStream>>>,
}

impl Mirrored {
    pub(super) fn new(mirror: SocketAddr) -> Self {
        Self { mirror, streams: (0..SESSIONS).map(|_| Mutex::default()).collect() }
    }

    /// Sends one message and waits for it to come back.
    pub(super) async fn exchange(&self, id: u64) -> Outcome {
        let chosen = usize::try_from(id).unwrap_or(0) % SESSIONS;
        let Some(slot) = self.streams.get(chosen) else { return Outcome::Fail(Failure::local("no session")) };
        let mut slot = slot.lock().await;
        let done = exchange(&mut slot, self.mirror).await;
        done.map_or_else(|error| Outcome::Fail(Failure::local(error.to_string())), |()| Outcome::Ok)
    }
}

async fn exchange(slot: &mut Option<TcpStream>, mirror: SocketAddr) -> std::io::Result<()> {
    if slot.is_none() {
        let stream = TcpStream::connect(mirror).await?;
        stream.set_nodelay(true)?;
        *slot = Some(stream);
    }
    let Some(stream) = slot else { return Ok(()) };
    let mut message = [0; MESSAGE];
    stream.write_all(&message).await?;
    stream.read_exact(&mut message).await.map(drop)
}
