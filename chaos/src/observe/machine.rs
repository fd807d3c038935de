//! How fast the machine is at the moment: a message through two other threads and back, which is as many turns as a
//! read takes through a proxy and a server. Nothing in it belongs to the subject or to a server.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Bytes of a message; about those of an index lookup.
pub(crate) const MESSAGE: usize = 256;

/// Listens until dropped.
#[derive(Debug)]
pub struct Mirror {
    address: SocketAddr,
    inner: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Mirror {
    /// Starts the two threads.
    pub fn start() -> io::Result<Self> {
        let (near, far) =
            (TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
        let (address, inner) = (near.local_addr()?, far.local_addr()?);
        let over = Arc::new(AtomicBool::new(false));
        listen(far, Arc::clone(&over), |stream| reflect(stream, None));
        listen(near, Arc::clone(&over), move |stream| {
            let next = TcpStream::connect(inner)?;
            next.set_nodelay(true)?;
            reflect(stream, Some(next))
        });
        Ok(Self { address, inner, over })
    }

    /// Where to send messages.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Whoever accepts looks up once more.
        let _ = (TcpStream::connect(self.address), TcpStream::connect(self.inner));
    }
}

/// Each connection has a thread, which ends with it.
fn listen(
    listener: TcpListener,
    over: Arc<AtomicBool>,
    serve: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if over.load(Ordering::Relaxed) {
                return;
            }
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
}

fn reflect(mut stream: TcpStream, mut next: Option<TcpStream>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        stream.read_exact(&mut message)?;
        if let Some(next) = &mut next {
            next.write_all(&message)?;
            next.read_exact(&mut message)?;
        }
        stream.write_all(&message)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_comes_back_by_way_of_both() {
        // A mirror that answers without the second thread would be quicker than any proxy.
        let mirror = Mirror::start().unwrap();
        let mut stream = TcpStream::connect(mirror.address()).unwrap();
        let sent = [7; MESSAGE];

        stream.write_all(&sent).unwrap();
        let mut received = [0; MESSAGE];
        stream.read_exact(&mut received).unwrap();

        assert_eq!(received, sent);
    }
}
