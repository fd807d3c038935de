//! The door of a server: who logs in through it, and when.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidegate_chaos::cluster::Node;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The end of a connection is seen by another task than the next one's beginning, on a machine that does many things.
const LATE: Duration = Duration::from_millis(50);

/// Code of a `CancelRequest`, in place of a version.
const CANCEL: [u8; 4] = 80_877_102_u32.to_be_bytes();
/// What the sidecar calls itself where it asks questions of its own.
const CONTROL: &[u8] = b"tidegate control";

/// Who logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// A backend of a pool, as far as is known.
    Backend,
    /// A control connection, or a cancel: these have bounds of their own.
    Other,
}

/// From accept to the first `ReadyForQuery`, or to the end of the connection.
#[derive(Debug)]
struct Login {
    who: Who,
    began: Instant,
    over: Option<Instant>,
}

/// A relay in front of a server. Its connections end with it.
pub(super) struct Door {
    address: SocketAddr,
    logins: Arc<Mutex<Vec<Login>>>,
    task: JoinHandle<()>,
}

impl Door {
    pub(super) async fn of(node: &Node) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = (Ipv4Addr::LOCALHOST, node.port()).into();
        let logins = Arc::default();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(serve(listener, server, Arc::clone(&logins)));
        Self { address, logins, task }
    }

    /// How to come in. In clear, so that the end of a login can be seen.
    pub(super) fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres?sslmode=disable", self.address)
    }

    /// How many backends logged in, and how many of them at the same time at most.
    pub(super) fn logins(&self) -> (usize, usize) {
        let logins = self.logins.lock().unwrap();
        let backends: Vec<&Login> = logins.iter().filter(|login| login.who == Who::Backend).collect();
        let during = |login: &Login, now| login.began <= now && login.over.is_none_or(|over| now < over);
        let at_a_time = |now| backends.iter().filter(|login| during(login, now)).count();
        (backends.len(), backends.iter().map(|login| at_a_time(login.began)).max().unwrap_or(0))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, server: SocketAddr, logins: Arc<Mutex<Vec<Login>>>) {
    let mut connections = JoinSet::new();
    while let Ok((app, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let mut all = logins.lock().unwrap();
        all.push(Login { who: Who::Backend, began: Instant::now(), over: None });
        let seen = Seen { logins: Arc::clone(&logins), index: all.len() - 1 };
        drop(all);
        connections.spawn(connect(app, server, seen));
    }
}

/// The record of one login.
struct Seen {
    logins: Arc<Mutex<Vec<Login>>>,
    index: usize,
}

impl Seen {
    fn change(&self, change: impl FnOnce(&mut Login)) {
        change(&mut self.logins.lock().unwrap()[self.index]);
    }

    /// Its connection ended, if nothing did before.
    fn ended(&self) {
        self.change(|login| {
            let began = login.began;
            login.over.get_or_insert_with(|| began + began.elapsed().saturating_sub(LATE));
        });
    }
}

async fn connect(mut app: TcpStream, server: SocketAddr, seen: Seen) {
    let relayed = async {
        let startup = startup(&mut app).await?;
        let is_other = startup[4..8] == CANCEL || startup.windows(CONTROL.len()).any(|part| part == CONTROL);
        seen.change(|login| login.who = if is_other { Who::Other } else { Who::Backend });
        let mut server = TcpStream::connect(server).await?;
        server.set_nodelay(true)?;
        server.write_all(&startup).await?;
        let relayed = relay(&mut app, &mut server, &seen).await;
        if relayed.is_err() {
            // Whoever resets a connection does not want what it sent to be read.
            let _ = socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO));
        }
        relayed
    };
    let _: io::Result<()> = relayed.await;
    seen.ended();
}

async fn startup(app: &mut TcpStream) -> io::Result<Vec<u8>> {
    app.set_nodelay(true)?;
    let len = app.read_u32().await?;
    let mut packet = len.to_be_bytes().to_vec();
    packet.resize(len as usize, 0);
    app.read_exact(&mut packet[4..]).await?;
    Ok(packet)
}

async fn relay(app: &mut TcpStream, server: &mut TcpStream, seen: &Seen) -> io::Result<()> {
    let (mut from_app, mut to_app) = app.split();
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        copy(&mut from_app, &mut to_server).await?;
        seen.ended();
        to_server.shutdown().await
    };
    let down = async {
        log_in(&mut from_server, &mut to_app, seen).await?;
        copy(&mut from_server, &mut to_app).await?;
        to_app.shutdown().await
    };
    tokio::try_join!(up, down).map(drop)
}

/// Passes messages on until the server is ready for queries, or says no more.
async fn log_in(
    server: &mut (impl AsyncRead + Unpin),
    app: &mut (impl AsyncWrite + Unpin),
    seen: &Seen,
) -> io::Result<()> {
    let mut tag = 0;
    while tag != b'Z' {
        tag = match server.read_u8().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            tag => tag?,
        };
        let len = server.read_u32().await?;
        let mut message = vec![tag];
        message.extend(len.to_be_bytes());
        message.resize(1 + len as usize, 0);
        server.read_exact(&mut message[5..]).await?;
        if tag == b'Z' {
            // Before it is said: who hears it may begin the next at once.
            seen.change(|login| login.over = Some(Instant::now()));
        }
        app.write_all(&message).await?;
    }
    Ok(())
}
