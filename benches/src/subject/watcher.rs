//! A Prometheus and a dashboard, as far as a sidecar can tell.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Fifteen times as often as Prometheus is usually told to.
const PERIOD: Duration = Duration::from_secs(1);

/// Scrapes `/metrics` and listens to `/events` until it is dropped.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches the control plane at this port.
    pub(super) fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || watch(port, &told));
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

fn watch(port: u16, stop: &AtomicBool) {
    let mut events = ask(port, "/events");
    let mut news = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let next = Instant::now() + PERIOD;
        if let Some(mut page) = ask(port, "/metrics") {
            let _ = page.read_to_end(&mut Vec::new());
        }
        while Instant::now() < next {
            // News come twice a second.
            let heard = events.as_mut().and_then(|events| events.read(&mut news).ok()).unwrap_or(0);
            if heard == 0 {
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        }
    }
}

/// A request; its answer is to be read.
fn ask(port: u16, path: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(PERIOD)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n").ok()?;
    Some(stream)
}
