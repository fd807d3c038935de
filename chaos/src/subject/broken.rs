//! Proxies that are broken on purpose, each in a way that has been seen in the wild: what they do must refute claims.
//!
//! A checker that has gone blind looks like a subject without faults. Each session has a backend of its own; an
//! exchange is read whole, dealt with, and its answer passed on whole.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// Of five inserts one is not made and acknowledged, one made and called failed, one made twice, one made a second
    /// after it was called unknown.
    Lying,
    /// An answer that takes long makes it slow for ever.
    Limping,
    /// An answer that takes long makes it refuse everything for ever.
    Sulking,
    /// Four exchanges at a time, and a queue without an end.
    Queueing,
    /// Takes whoever comes last in the list of servers for the primary.
    Straying,
}

/// An answer that takes longer changes a proxy that limps or sulks, before it has come.
const LONG: Duration = Duration::from_millis(500);

/// How slow one is that limps.
const LIMP: Duration = Duration::from_millis(400);

/// How late one is that lies.
const LATE: Duration = Duration::from_secs(1);

/// Exchanges at a time of one that queues.
const AT_A_TIME: usize = 4;

/// Longest message that is believed.
const LONGEST: usize = 1 << 20;

#[derive(Debug)]
struct Broken {
    way: Way,
    upstream: SocketAddr,
    hurt: AtomicBool,
    inserts: AtomicU64,
    turns: Semaphore,
}

/// Serves until the process ends. Servers: the primary first.
pub async fn serve(way: Way, listen: SocketAddr, upstreams: &[SocketAddr]) -> io::Result<()> {
    let chosen = if way == Way::Straying { upstreams.last() } else { upstreams.first() };
    let upstream = *chosen.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let (hurt, inserts) = (AtomicBool::new(false), AtomicU64::new(0));
    let broken = Arc::new(Broken { way, upstream, hurt, inserts, turns: Semaphore::new(AT_A_TIME) });
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (application, _) = listener.accept().await?;
        let broken = Arc::clone(&broken);
        // However it ends, both connections are closed.
        tokio::spawn(async move { broken.session(application).await });
    }
}

impl Broken {
    async fn session(&self, mut application: TcpStream) -> io::Result<()> {
        let mut server = TcpStream::connect(self.upstream).await?;
        application.set_nodelay(true)?;
        server.set_nodelay(true)?;
        server.write_all(&packet(&mut application, Vec::new()).await?).await?;
        application.write_all(&answer(&mut server).await?).await?;
        loop {
            let exchange = exchange(&mut application).await?;
            let told = self.deal(&exchange, &mut server).await?;
            application.write_all(&told.bytes).await?;
            if told.late {
                sleep(LATE).await;
                pass(&mut server, &exchange).await?;
            }
        }
    }

    async fn deal(&self, exchange: &[u8], server: &mut TcpStream) -> io::Result<Told> {
        let worry = async {
            sleep(LONG).await;
            self.hurt.store(true, Ordering::Relaxed);
            std::future::pending::<io::Result<Told>>().await
        };
        tokio::select! {
            told = self.answer_to(exchange, server) => told,
            told = worry => told,
        }
    }

    async fn answer_to(&self, exchange: &[u8], server: &mut TcpStream) -> io::Result<Told> {
        let _turn = match self.way {
            Way::Queueing => self.turns.acquire().await.ok(),
            Way::Lying | Way::Limping | Way::Sulking | Way::Straying => None,
        };
        match self.way {
            Way::Lying if is_insert(exchange) => self.lie(exchange, server).await,
            Way::Sulking if self.hurt.load(Ordering::Relaxed) => {
                let detail = "reason=breaker_open lane=write cause=unknown outcome=not_sent";
                Ok(Told::now(error("53000", detail)))
            }
            Way::Lying | Way::Limping | Way::Sulking | Way::Queueing | Way::Straying => {
                if self.way == Way::Limping && self.hurt.load(Ordering::Relaxed) {
                    sleep(LIMP).await;
                }
                pass(server, exchange).await.map(Told::now)
            }
        }
    }

    async fn lie(&self, exchange: &[u8], server: &mut TcpStream) -> io::Result<Told> {
        match self.inserts.fetch_add(1, Ordering::Relaxed) % 5 {
            0 => {
                pass(server, &query("BEGIN")).await?;
                let mut bytes = pass(server, exchange).await?;
                pass(server, &query("ROLLBACK")).await?;
                if let Some(status) = bytes.last_mut() {
                    *status = b'I';
                }
                Ok(Told::now(bytes))
            }
            1 => {
                pass(server, exchange).await?;
                Ok(Told::now(error("57014", "reason=write_timeout outcome=rolled_back")))
            }
            2 => {
                pass(server, exchange).await?;
                Ok(Told::now(pass(server, exchange).await?))
            }
            3 => {
                let bytes = error("08007", "reason=commit_unresolved outcome=unknown");
                Ok(Told { bytes, late: true })
            }
            _ => Ok(Told::now(pass(server, exchange).await?)),
        }
    }
}

/// What the application gets, and whether the exchange is still to be made.
struct Told {
    bytes: Vec<u8>,
    late: bool,
}

impl Told {
    fn now(bytes: Vec<u8>) -> Self {
        Self { bytes, late: false }
    }
}

fn is_insert(exchange: &[u8]) -> bool {
    const TEXT: &[u8] = b"INSERT INTO writes";
    exchange.windows(TEXT.len()).any(|window| window == TEXT)
}

async fn pass(server: &mut TcpStream, exchange: &[u8]) -> io::Result<Vec<u8>> {
    server.write_all(exchange).await?;
    answer(server).await
}

/// Everything up to `ReadyForQuery`.
async fn answer(server: &mut TcpStream) -> io::Result<Vec<u8>> {
    messages(server, |tag| tag == b'Z').await
}

/// Everything up to a message that is to be answered: Query or Sync. Terminate ends the session.
async fn exchange(application: &mut TcpStream) -> io::Result<Vec<u8>> {
    messages(application, |tag| matches!(tag, b'Q' | b'S')).await
}

async fn messages(stream: &mut TcpStream, is_last: impl Fn(u8) -> bool) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let tag = stream.read_u8().await?;
        bytes.push(tag);
        bytes = packet(stream, bytes).await?;
        if is_last(tag) {
            return Ok(bytes);
        }
    }
}

/// Appends a length and what it counts.
async fn packet(stream: &mut TcpStream, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    let rest = usize::try_from(length).ok().and_then(|length| length.checked_sub(4));
    let rest = rest.filter(|rest| *rest <= LONGEST);
    let rest = rest.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    bytes.extend(length.to_be_bytes());
    let start = bytes.len();
    bytes.resize(start + rest, 0);
    stream.read_exact(&mut bytes[start..]).await?;
    Ok(bytes)
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

/// `ErrorResponse` and `ReadyForQuery`.
fn error(sqlstate: &str, detail: &str) -> Vec<u8> {
    let fields = format!("SERROR\0VERROR\0C{sqlstate}\0Mbroken on purpose\0D{detail}\0\0");
    let mut bytes = message(b'E', fields.as_bytes());
    bytes.extend(message(b'Z', b"I"));
    bytes
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(4);
    let mut bytes = vec![tag];
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    bytes
}
