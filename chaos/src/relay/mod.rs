//! A TCP relay that knows `PostgreSQL`'s protocol and does harm on request.
//!
//! It needs no privileges. What Toxiproxy can do it does in Toxiproxy's words ([`Toxic`], [`api`]); what that
//! cannot say, because it does not know where one message ends, is a [`Cut`]: "after COMMIT was sent, before its
//! reply". Connections inside TLS pass, but no message is recognised in them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

pub mod api;
mod connection;
mod cut;
mod frames;
mod pump;
mod toxic;

use connection::Common;

pub use cut::{Action, Cut, Message, Moment};
pub use toxic::{Kind, Stream, Toxic};

/// Pause between attempts to listen again on a port that somebody took.
const AGAIN: Duration = Duration::from_millis(20);

/// What a relay does at the moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Off: nobody listens, and connections are closed.
    pub enabled: bool,
    /// Everything that is wrong.
    pub toxics: Vec<Toxic>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, toxics: Vec::new() }
    }
}

/// A listening relay; it ends when dropped, and its connections with it.
#[derive(Debug)]
pub struct Relay {
    listen: SocketAddr,
    upstream: SocketAddr,
    settings: watch::Sender<Arc<Settings>>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens. A port of zero is chosen by the system, and kept.
    pub async fn start(listen: SocketAddr, upstream: SocketAddr) -> io::Result<Self> {
        Self::on(TcpListener::bind(listen).await?, upstream)
    }

    /// Takes over a socket that listens already.
    pub fn over(listener: std::net::TcpListener, upstream: SocketAddr) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::on(TcpListener::from_std(listener)?, upstream)
    }

    fn on(listener: TcpListener, upstream: SocketAddr) -> io::Result<Self> {
        let listen = listener.local_addr()?;
        let (settings, seen) = watch::channel(Arc::new(Settings::default()));
        let task = tokio::spawn(serve(listener, upstream, seen));
        Ok(Self { listen, upstream, settings, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Where connections go.
    pub fn upstream(&self) -> SocketAddr {
        self.upstream
    }

    /// What it does now.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// Changes what it does, for connections that exist too.
    pub fn change(&self, change: impl FnOnce(&mut Settings)) {
        self.settings.send_modify(|settings| change(Arc::make_mut(settings)));
    }

    /// Puts a toxic in force, in place of one with the same name.
    pub fn add(&self, toxic: Toxic) {
        self.change(|settings| {
            settings.toxics.retain(|other| other.name != toxic.name);
            settings.toxics.push(toxic);
        });
    }

    /// Takes a toxic away; says whether there was one.
    pub fn remove(&self, name: &str) -> bool {
        let mut found = false;
        self.change(|settings| {
            let before = settings.toxics.len();
            settings.toxics.retain(|toxic| toxic.name != name);
            found = settings.toxics.len() < before;
        });
        found
    }

    /// Closes its connections and does not listen until enabled again.
    pub fn enable(&self, enabled: bool) {
        self.change(|settings| settings.enabled = enabled);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens while enabled. The connections live in this task's set and die with it.
async fn serve(listener: TcpListener, upstream: SocketAddr, mut settings: watch::Receiver<Arc<Settings>>) {
    let Ok(address) = listener.local_addr() else { return };
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let enabled = settings.borrow_and_update().enabled;
        match (enabled, listener.take()) {
            (true, Some(open)) => {
                let accepted = tokio::select! {
                    accepted = open.accept() => accepted.ok(),
                    changed = settings.changed() => if changed.is_ok() { None } else { return },
                };
                while connections.try_join_next().is_some() {}
                if let Some((application, _)) = accepted {
                    connections.spawn(connect(application, upstream, settings.clone()));
                }
                listener = Some(open);
            }
            // The port may have been taken meanwhile, and be given back.
            (true, None) => {
                listener = TcpListener::bind(address).await.ok();
                if listener.is_none() {
                    sleep(AGAIN).await;
                }
            }
            (false, open) => {
                drop(open);
                connections.abort_all();
                if settings.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn connect(application: TcpStream, upstream: SocketAddr, settings: watch::Receiver<Arc<Settings>>) {
    let common = Common::new(settings);
    let Ok(server) = TcpStream::connect(upstream).await else {
        // A server that is not there: the application sees its connection closed.
        common.passage(Stream::Downstream).await;
        return;
    };
    // Delay is to be caused by toxics alone.
    let _ = (application.set_nodelay(true), server.set_nodelay(true));
    connection::run(application, server, common).await;
}
