//! One direction of a connection: reads, delays, looks for messages, writes.

use std::collections::VecDeque;
use std::io;
use std::sync::PoisonError;
use std::time::Duration;

use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::connection::Common;
use super::cut::{Action, statement_in};
use super::frames::{Piece, Tracker, is_request, request_code};
use super::toxic::{Kind, Stream};

/// Chunks on their way. Beyond that the reader waits, as a network's buffers would make it.
const IN_FLIGHT: usize = 256;

const CHUNK: usize = 16 << 10;

/// The sockets of one direction.
#[derive(Debug)]
pub(super) struct Pump {
    pub(super) stream: Stream,
    pub(super) from: OwnedReadHalf,
    pub(super) to: OwnedWriteHalf,
}

/// What is on its way to the sink, in order.
#[derive(Debug)]
enum Item {
    /// Bytes, and when they are to be written.
    Bytes(Instant, Vec<u8>),
    /// The end of the connection, once all before it has been written.
    End(Action),
}

/// Relays until the source ends. Delay and reading go on at the same time: latency must not cost bandwidth.
pub(super) async fn pump(pump: &mut Pump, common: &Common) {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let Pump { stream, from, to } = pump;
    let reading = async {
        if read(*stream, from, &sender, common).await.is_err() {
            // The source was reset: what it had not sent by then is lost, as in its kernel's buffers.
            common.passage(*stream).await;
            common.end.send_replace(Some(Action::Reset));
            std::future::pending::<()>().await;
        }
        drop(sender);
    };
    // A sink that is gone ends its direction; the source learns it from the other one.
    let ((), _) = tokio::join!(reading, write(*stream, to, receiver, common));
}

async fn read(
    stream: Stream,
    from: &mut OwnedReadHalf,
    sender: &mpsc::Sender<Item>,
    common: &Common,
) -> io::Result<()> {
    let mut reader = Reader::new(stream, common);
    let mut settings = common.settings.clone();
    let mut buffer = vec![0; CHUNK];
    loop {
        settings.mark_unchanged();
        reader.clocks();
        let count = tokio::select! {
            count = from.read(&mut buffer) => count?,
            changed = settings.changed() => if changed.is_ok() { continue } else { return Ok(()) },
            () = reader.expired() => return Ok(()),
        };
        if common.is_struck() {
            if count == 0 {
                return std::future::pending().await;
            }
            continue;
        }
        if count == 0 {
            reader.slow_close().await;
            return Ok(());
        }
        let passed = reader.look(&buffer[..count]);
        if passed.cut.is_some() {
            common.strike();
        }
        if let Some(bytes) = passed.bytes
            && sender.send(Item::Bytes(Instant::now() + reader.delay(), bytes)).await.is_err()
        {
            return Ok(());
        }
        if let Some(action) = passed.cut {
            // Closing the channel would close the sink gracefully. A sink that is gone closes it from its end.
            let _ = sender.send(Item::End(action)).await;
            sender.closed().await;
            common.end.send_replace(Some(action));
            return Ok(());
        }
    }
}

/// What of some bytes goes on.
struct Passed {
    bytes: Option<Vec<u8>>,
    cut: Option<Action>,
}

struct Reader<'a> {
    stream: Stream,
    common: &'a Common,
    tracker: Tracker,
    passed: u64,
    /// When a toxic with a clock ends the connection.
    expires: Option<(Instant, Action)>,
}

impl<'a> Reader<'a> {
    fn new(stream: Stream, common: &'a Common) -> Self {
        let tracker = match stream {
            Stream::Upstream => Tracker::of_frontend(),
            Stream::Downstream => Tracker::of_backend(),
        };
        Self { stream, common, tracker, passed: 0, expires: None }
    }

    /// Starts or stops the clocks of `timeout` and `reset_peer`.
    fn clocks(&mut self) {
        let limit = self.common.kinds(self.stream).iter().find_map(|kind| match kind {
            Kind::Timeout { timeout: 1.. } | Kind::ResetPeer { .. } => Some(kind.clone()),
            _ => None,
        });
        let after = |timeout| Instant::now() + Duration::from_millis(timeout);
        self.expires = match (limit, self.expires) {
            (Some(_), Some(running)) => Some(running),
            (Some(Kind::ResetPeer { timeout }), None) => Some((after(timeout), Action::Reset)),
            (Some(Kind::Timeout { timeout }), None) => Some((after(timeout), Action::Close)),
            _ => None,
        };
    }

    async fn expired(&self) {
        match self.expires {
            Some((at, action)) => {
                sleep_until(at).await;
                self.common.end.send_replace(Some(action));
            }
            None => std::future::pending().await,
        }
    }

    async fn slow_close(&self) {
        for kind in self.common.kinds(self.stream) {
            if let Kind::SlowClose { delay } = kind {
                sleep(Duration::from_millis(delay)).await;
            }
        }
    }

    fn delay(&self) -> Duration {
        let mut delay = Duration::ZERO;
        for kind in self.common.kinds(self.stream) {
            if let Kind::Latency { latency, jitter } = kind {
                let low = latency.saturating_sub(jitter);
                delay += Duration::from_millis(rand::rng().random_range(low..=latency + jitter));
            }
        }
        delay
    }

    fn look(&mut self, bytes: &[u8]) -> Passed {
        let pieces = self.pieces(bytes);
        for piece in &pieces {
            self.note(piece);
            if let Some((offset, action)) = self.strikes(piece) {
                return Passed { bytes: Some(bytes[..offset].to_vec()), cut: Some(action) };
            }
        }
        let kinds = self.common.kinds(self.stream);
        if kinds.iter().any(|kind| matches!(kind, Kind::Timeout { .. })) {
            return Passed { bytes: None, cut: None };
        }
        let limit = kinds.iter().find_map(|kind| match kind {
            Kind::LimitData { bytes } => Some(*bytes),
            _ => None,
        });
        let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.passed));
        self.passed += bytes.len() as u64;
        if bytes.len() as u64 >= left {
            let left = usize::try_from(left).unwrap_or(bytes.len());
            return Passed { bytes: Some(bytes[..left].to_vec()), cut: Some(Action::Close) };
        }
        Passed { bytes: Some(bytes.to_vec()), cut: None }
    }

    fn pieces(&mut self, bytes: &[u8]) -> Vec<Piece> {
        if self.stream == Stream::Downstream {
            let mut asked = self.common.encryption_asked.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::take(&mut *asked) {
                self.tracker.expect_single();
            }
        }
        self.tracker.feed(bytes)
    }

    /// Remembers what the other direction needs to know.
    fn note(&self, piece: &Piece) {
        if self.stream == Stream::Downstream {
            return;
        }
        if let Some(statement) = statement_in(piece) {
            self.common.set_statement(statement);
        }
        if piece.tag == 0 && request_code(&piece.head).is_some_and(is_request) {
            *self.common.encryption_asked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
    }

    fn strikes(&self, piece: &Piece) -> Option<(usize, Action)> {
        let statement = self.common.statement();
        self.common.kinds(self.stream).into_iter().find_map(|kind| {
            let Kind::Cut(cut) = kind else { return None };
            let frontend = self.stream == Stream::Upstream;
            let struck = cut.message.is_frontend() == frontend
                && cut.matches(piece, &statement)
                && rand::rng().random_bool(cut.chance.clamp(0.0, 1.0));
            struck.then(|| cut.offset(piece)).flatten().map(|offset| (offset, cut.action))
        })
    }
}

async fn write(
    stream: Stream,
    to: &mut OwnedWriteHalf,
    mut receiver: mpsc::Receiver<Item>,
    common: &Common,
) -> io::Result<()> {
    while let Some(item) = receiver.recv().await {
        if let Item::Bytes(due, _) = item {
            sleep_until(due).await;
        }
        common.passage(stream).await;
        let bytes = match item {
            Item::Bytes(_, bytes) => bytes,
            Item::End(action) => {
                common.end.send_replace(Some(action));
                return std::future::pending().await;
            }
        };
        for (piece, pause) in slices(&bytes, &common.kinds(stream)) {
            to.write_all(piece).await?;
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
    }
    common.passage(stream).await;
    to.shutdown().await
}

/// Pieces to write, and how long to wait after each.
fn slices<'b>(bytes: &'b [u8], kinds: &[Kind]) -> VecDeque<(&'b [u8], Duration)> {
    let mut rest = bytes;
    let mut slices = VecDeque::new();
    while !rest.is_empty() {
        let (size, pause) = slice(rest.len(), kinds);
        let (piece, behind) = rest.split_at(size.min(rest.len()));
        rest = behind;
        slices.push_back((piece, pause));
    }
    slices
}

fn slice(length: usize, kinds: &[Kind]) -> (usize, Duration) {
    let mut size = length;
    let mut pause = Duration::ZERO;
    for kind in kinds {
        match *kind {
            Kind::Slicer { average_size, size_variation, delay } => {
                let low = average_size.saturating_sub(size_variation).max(1);
                let chosen = rand::rng().random_range(low..=(average_size + size_variation).max(low));
                size = size.min(usize::try_from(chosen).unwrap_or(length));
                pause += Duration::from_micros(delay);
            }
            Kind::Bandwidth { rate: rate @ 1.. } => {
                // In steps of a hundredth of a second.
                size = size.min(usize::try_from(rate * 10).unwrap_or(length).max(1));
                pause += Duration::from_micros(size as u64 * 1000 / rate);
            }
            _ => {}
        }
    }
    (size, pause)
}
