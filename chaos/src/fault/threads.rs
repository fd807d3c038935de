//! Some threads of a program stop where they stand, and its others go on: a thread in a system call that does not
//! return, or in a loop.
//!
//! Signals stop whole processes; a debugger stops threads (`PTRACE_INTERRUPT`, ptrace(2)), and the kernel lets them
//! go when the debugger ends in any way. Nobody needs privileges to trace a child of their own.

use std::fs;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cluster::{Doing, Error, Result};
use crate::daemon::Daemon;

use super::Guard;

/// A thread stops within microseconds.
const STOPS_WITHIN: Duration = Duration::from_secs(5);

/// Stops every thread whose name contains a word.
pub(super) fn stop(daemon: &Daemon, word: &str) -> Result<Guard> {
    let what = || format!("stopping threads named {word}");
    let nobody = |why: &str| Error::Unsupported { what: what(), why: why.to_owned() };
    let pid = daemon.pid().ok_or_else(|| nobody("the subject does not run"))?;
    let threads = named(pid, word);
    if threads.is_empty() {
        return Err(nobody("the subject has none"));
    }
    // Only the thread that traces may let go.
    let (stopped, told) = mpsc::sync_channel(1);
    let (release, released) = mpsc::channel();
    let tracer = thread::spawn(move || trace(&threads, &stopped, &released));
    match told.recv_timeout(STOPS_WITHIN) {
        Ok(Ok(())) => Ok(Guard::new(move || let_go(release, tracer))),
        Ok(Err(error)) => Err(std::io::Error::from(error)).doing(what),
        Err(_) => Err(Error::Late { what: what(), limit: STOPS_WITHIN }),
    }
}

fn let_go(release: Sender<()>, tracer: JoinHandle<()>) -> Result<()> {
    drop(release);
    tracer.join().map_err(|_| Error::Unsupported {
        what: "letting threads go".to_owned(),
        why: "the tracer failed".to_owned(),
    })
}

fn trace(threads: &[Pid], stopped: &mpsc::SyncSender<nix::Result<()>>, released: &Receiver<()>) {
    let outcome = threads.iter().try_for_each(|thread| hold(*thread));
    let failed = outcome.is_err();
    // Nobody listens only if it took too long.
    let _ = stopped.send(outcome);
    if !failed {
        // Ends when the other side is dropped.
        let _ = released.recv();
    }
    for thread in threads {
        // One that is gone needs no letting go; at the latest it is free when this thread ends.
        let _ = ptrace::detach(*thread, None);
    }
}

fn hold(thread: Pid) -> nix::Result<()> {
    ptrace::seize(thread, ptrace::Options::empty())?;
    ptrace::interrupt(thread)?;
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..) => return Ok(()),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Err(nix::errno::Errno::ESRCH),
            WaitStatus::PtraceSyscall(_) | WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
        }
    }
}

fn named(pid: u32, word: &str) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let threads = entries
        .flatten()
        .filter(|entry| fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.contains(word)));
    threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw)).collect()
}
