//! The threads that carry traffic: each has a runtime of its own, and sessions stay where they were put.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;

use crate::pool::upstream::enter_worker;

/// Polls of sessions between two looks at the sockets while there is work. Each look is a system call; a batch
/// of events is over long before.
const EVENT_INTERVAL: u32 = 512;

/// A data worker.
#[derive(Debug)]
pub struct Worker {
    /// Its number; the first accepts.
    pub index: usize,
    /// Its runtime.
    pub handle: Handle,
    sessions: Arc<AtomicUsize>,
}

/// One session's share of a worker's load.
#[derive(Debug)]
pub struct Load(Arc<AtomicUsize>);

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be none.
    pub fn start(index: usize) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .event_interval(EVENT_INTERVAL)
            .global_queue_interval(EVENT_INTERVAL)
            .on_thread_unpark(crate::clock::begin_turn)
            .build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new().name(format!("tidegate-worker-{index}")).spawn(move || {
            enter_worker(index);
            runtime.block_on(std::future::pending::<()>());
        })?;
        Ok(Self { index, handle, sessions: Arc::default() })
    }

    /// Its sessions.
    pub fn loaded(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Counts a session in.
    pub fn load(&self) -> Load {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Load(Arc::clone(&self.sessions))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
