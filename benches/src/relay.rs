//! A bare TCP relay: one thread, epoll, two sockets per connection, no look at the bytes.
//!
//! It is the physical limit of anything that stands between an application and `PostgreSQL`: what it costs is the
//! kernel's price for two reads, two writes and two wake-ups per exchange. It gives up both sockets when
//! either end closes, which is all that `PostgreSQL`'s protocol needs.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Token of the listening socket; connections use `slot * 2 + side`.
const LISTENER: u64 = u64::MAX;
/// One read; larger answers take several turns.
const BUFFER_LEN: usize = 64 * 1024;
const EVENTS_LEN: usize = 256;

/// Relays until the process is ended.
pub fn run(listen: SocketAddr, to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut relay = Relay { epoll, to, pairs: Vec::new(), free: Vec::new(), buffer: vec![0; BUFFER_LEN] };
    let mut events = [EpollEvent::empty(); EVENTS_LEN];
    loop {
        let ready = match relay.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("epoll_wait"),
        };
        relay.turn(&events[..ready], &listener);
    }
}

struct Relay {
    epoll: Epoll,
    to: SocketAddr,
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
}

/// The application's socket, then the server's.
type Pair = [Side; 2];

struct Side {
    stream: TcpStream,
    /// Bytes that this side did not take yet. While there are any, the other side is not read.
    pending: Vec<u8>,
}

impl Relay {
    fn turn(&mut self, events: &[EpollEvent], listener: &TcpListener) {
        let mut closed = Vec::new();
        for event in events {
            if event.data() == LISTENER {
                self.accept(listener);
                continue;
            }
            let Ok(token) = usize::try_from(event.data()) else { continue };
            let (slot, side) = (token / 2, token % 2);
            if self.serve(slot, side, event.events()).is_err() && self.pairs[slot].take().is_some() {
                closed.push(slot);
            }
        }
        // Only now: a later event of the same turn may still name a slot that was closed in it.
        self.free.append(&mut closed);
    }

    fn accept(&mut self, listener: &TcpListener) {
        // An application that has gone, or a server that refuses, costs that connection only.
        while let Ok((application, _)) = listener.accept() {
            let _ = self.open(application);
        }
    }

    fn open(&mut self, application: TcpStream) -> io::Result<()> {
        // Blocking: over loopback this takes microseconds, and it keeps the relay simple.
        let server = TcpStream::connect(self.to)?;
        let slot = self.free.last().copied().unwrap_or(self.pairs.len());
        for (side, stream) in [&application, &server].into_iter().enumerate() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            self.epoll.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, token(slot, side)))?;
        }
        let pair = [application, server].map(|stream| Side { stream, pending: Vec::new() });
        match self.free.pop() {
            Some(slot) => self.pairs[slot] = Some(pair),
            None => self.pairs.push(Some(pair)),
        }
        Ok(())
    }

    /// An error means that the pair is to be closed.
    fn serve(&mut self, slot: usize, side: usize, ready: EpollFlags) -> io::Result<()> {
        let Some(pair) = self.pairs.get_mut(slot).and_then(Option::as_mut) else { return Ok(()) };
        if ready.contains(EpollFlags::EPOLLOUT) {
            flush(&mut pair[side])?;
            if pair[side].pending.is_empty() {
                watch(&self.epoll, pair, slot)?;
            }
        }
        let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        if ready.intersects(readable) && pair[1 - side].pending.is_empty() {
            copy(&mut self.buffer, pair, side)?;
            if !pair[1 - side].pending.is_empty() {
                watch(&self.epoll, pair, slot)?;
            }
        }
        Ok(())
    }
}

fn token(slot: usize, side: usize) -> u64 {
    (slot * 2 + side) as u64
}

/// One read from `side`, written to the other; what does not fit becomes pending there.
fn copy(buffer: &mut [u8], pair: &mut Pair, side: usize) -> io::Result<()> {
    let read = match pair[side].stream.read(buffer) {
        Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
        Ok(read) => read,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(error),
    };
    let other = &mut pair[1 - side];
    let written = write(&mut other.stream, &buffer[..read])?;
    other.pending.extend_from_slice(&buffer[written..read]);
    Ok(())
}

fn flush(side: &mut Side) -> io::Result<()> {
    let written = write(&mut side.stream, &side.pending)?;
    side.pending.drain(..written);
    Ok(())
}

fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match stream.write(bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

/// Watches each side for what it can do now: be read unless the other is stuffed, be written while bytes wait.
fn watch(epoll: &Epoll, pair: &Pair, slot: usize) -> io::Result<()> {
    for side in 0..2 {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, pair[1 - side].pending.is_empty());
        flags.set(EpollFlags::EPOLLOUT, !pair[side].pending.is_empty());
        epoll.modify(&pair[side].stream, &mut EpollEvent::new(flags, token(slot, side)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_larger_than_every_buffer_arrives_whole_and_in_order() {
        // More than the sockets hold: the relay must stop reading, keep what is pending and go on later; a lost,
        // doubled or swapped piece changes the bytes.
        const LEN: usize = 8 * 1024 * 1024;
        let sent: Vec<u8> = (0..LEN).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = server.local_addr().unwrap();
        let listen = SocketAddr::from(([127, 0, 0, 1], crate::process::free_port().unwrap()));
        std::thread::spawn(move || run(listen, to));
        let mut application = loop {
            match TcpStream::connect(listen) {
                Ok(stream) => break stream,
                Err(_) => std::thread::yield_now(),
            }
        };
        let (mut far_end, _) = server.accept().unwrap();

        let mut writer = application.try_clone().unwrap();
        let bytes = sent.clone();
        let writing = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
        let mut received = vec![0; LEN];
        far_end.read_exact(&mut received).unwrap();
        writing.join().unwrap();
        drop(far_end);

        assert!(received == sent);
        assert_eq!(application.read(&mut [0; 1]).unwrap(), 0, "the end of one side must end the other");
    }
}
