//! A web server that takes what is posted to it, and answers as it is told.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_chaos::cluster::PortLease;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::wait::{PATIENCE, wait_for};

/// One request, and what it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// `POST /path`.
    pub line: String,
    /// Header lines, names in lower case.
    pub head: String,
    /// The body.
    pub body: String,
    /// The status that it was answered with.
    pub answered: u16,
}

#[derive(Debug, Default)]
struct Book {
    answers: VecDeque<u16>,
    received: Vec<Received>,
}

/// A receiver at an address of its own. It is down until [`listen`](Self::listen) is called.
#[derive(Debug)]
pub struct WebReceiver {
    port: PortLease,
    book: Arc<Mutex<Book>>,
    task: Option<JoinHandle<()>>,
}

impl WebReceiver {
    /// A receiver that is down.
    pub fn down() -> Self {
        Self { port: PortLease::take().expect("a port"), book: Arc::default(), task: None }
    }

    /// A receiver that accepts everything.
    pub async fn start() -> Self {
        let mut receiver = Self::down();
        receiver.listen().await;
        receiver
    }

    /// Goes up.
    pub async fn listen(&mut self) {
        let listener = TcpListener::bind(self.address()).await.expect("a port of ours");
        let book = Arc::clone(&self.book);
        self.task = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Who breaks off is not worth a word.
                tokio::spawn(answer(stream, Arc::clone(&book)));
            }
        }));
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port.port()).into()
    }

    /// A URL of it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// The next requests are answered so, in this order; those after them with 200.
    pub fn answer_with(&self, statuses: &[u16]) {
        self.book().answers.extend(statuses);
    }

    /// Everything that came.
    pub fn received(&self) -> Vec<Received> {
        self.book().received.clone()
    }

    /// The bodies of what was answered with 200.
    pub fn accepted(&self) -> Vec<String> {
        let accepted = self.received().into_iter().filter(|request| request.answered == 200);
        accepted.map(|request| request.body).collect()
    }

    /// Waits until at least this many requests were answered with 200, and gives their bodies.
    pub async fn wait_accepted(&self, count: usize) -> Vec<String> {
        wait_for(PATIENCE, &format!("{count} accepted requests"), async || {
            let accepted = self.accepted();
            (accepted.len() >= count).then_some(accepted)
        })
        .await
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WebReceiver {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn answer(stream: TcpStream, book: Arc<Mutex<Book>>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut head = String::new();
    loop {
        let mut field = String::new();
        stream.read_line(&mut field).await?;
        if field.trim().is_empty() {
            break;
        }
        let (name, value) = field.split_once(':').unwrap_or((&field, ""));
        head.extend([name.to_lowercase().as_str(), ": ", value.trim(), "\n"]);
    }
    let length = head.lines().find_map(|field| field.strip_prefix("content-length: "));
    let mut body = vec![0; length.and_then(|length| length.parse().ok()).unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    let answered = {
        let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = book.answers.pop_front().unwrap_or(200);
        let line = line.trim().trim_end_matches(" HTTP/1.1").to_owned();
        let body = String::from_utf8_lossy(&body).into_owned();
        book.received.push(Received { line, head, body, answered });
        answered
    };
    let response = format!("HTTP/1.1 {answered} scripted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}
