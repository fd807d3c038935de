//! Runs one statement at a time on one connection, in a task that outlives whoever asked.
//!
//! A probe is dropped when its time is over, but a statement that waits for a synchronous standby cannot be
//! taken back: closing the connection leaves a backend behind that waits on. So there is never a second one.
//! Whoever asks while one is outstanding waits for that one; when it completes it is as good a proof as any.
//!
//! One that hangs is looked at after [`GIVE_UP`]. If its backend waits for a standby or for storage it is left
//! alone until it ends. If the server is silent, or the backend knows nothing of a statement, the connection is
//! reset, so that a new one can prove the recovery.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_layers::breaker::{ProbeOutcome, Session};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::control::{Connection, Control, ControlError};
use super::looks::{self, Wait};
use super::pulse::Pulse;
use crate::backend::connection::Row;
use crate::exchange::Cause;

/// When a statement or a login without an answer is doubted. Doubled with each that was given up on since the last good
/// answer.
const GIVE_UP: Duration = Duration::from_secs(2);

/// At most 8 s: by then keepalive has found a peer that is gone.
const DOUBLINGS_MAX: u32 = 2;

/// How long the look at a hanging statement may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    /// The statement, given how many were sent before it.
    pub(super) sql: fn(u64) -> String,
    /// What its rows say.
    pub(super) judge: fn(&[Row]) -> Verdict,
}

/// What came out of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) outcome: ProbeOutcome,
    pub(super) cause: Option<Cause>,
}

impl Verdict {
    pub(super) const GOOD: Self = Self { outcome: ProbeOutcome::Ok, cause: None };

    pub(super) const fn failed(cause: Cause) -> Self {
        Self { outcome: ProbeOutcome::Failed, cause: Some(cause) }
    }

    fn of(error: &ControlError) -> Self {
        // Without a connection nothing was found out about the role that asks.
        let unserved = matches!(error, ControlError::Busy).then_some(Cause::Unknown);
        Self { outcome: error.outcome(), cause: error.cause().or(unserved) }
    }
}

/// See the module documentation. Dropping it ends its task.
#[derive(Debug)]
pub(super) struct Runner(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    control: Arc<Control>,
    question: Question,
    state: Mutex<State>,
    pulse: Arc<Pulse>,
    asked: AtomicU64,
    /// Statements and logins given up on since the last good answer.
    given_up: AtomicU32,
}

#[derive(Debug)]
enum State {
    /// Nothing is under way.
    Resting { kept: Option<Connection> },
    /// A task has the connection, and will tell. `None` until then.
    Asking { answer: watch::Receiver<Option<ProbeOutcome>>, task: AbortHandle },
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl Runner {
    pub(super) fn new(control: Arc<Control>, question: Question) -> Self {
        Self(Arc::new(Inner {
            control,
            question,
            state: Mutex::new(State::Resting { kept: None }),
            pulse: Arc::default(),
            asked: AtomicU64::new(0),
            given_up: AtomicU32::new(0),
        }))
    }

    pub(super) fn pulse(&self) -> &Arc<Pulse> {
        &self.0.pulse
    }

    /// Closes the connection, and ends the task that may have it.
    pub(super) fn hang_up(&self) {
        let before = std::mem::replace(&mut *self.0.state(), State::Resting { kept: None });
        if let State::Asking { task, .. } = before {
            task.abort();
        }
    }

    /// Asks, or waits for what is asked already. Must be called within a runtime.
    ///
    /// # Cancel safety
    /// Cancel safe: the statement goes on.
    pub(super) async fn probe(&self, session: Session) -> ProbeOutcome {
        let mut answer = self.begin(session);
        let answer = answer.wait_for(Option::is_some).await;
        answer.ok().and_then(|outcome| *outcome).unwrap_or(ProbeOutcome::Inconclusive)
    }

    fn begin(&self, session: Session) -> watch::Receiver<Option<ProbeOutcome>> {
        let mut state = self.0.state();
        let kept = match &mut *state {
            State::Asking { answer, task } if !task.is_finished() => return answer.clone(),
            // It panicked, or its runtime is gone.
            State::Asking { .. } => None,
            State::Resting { kept } => kept.take(),
        };
        let (tell, answer) = watch::channel(None);
        let inner = Arc::clone(&self.0);
        let task = tokio::spawn(async move {
            let (kept, verdict) = inner.ask(kept, session).await;
            inner.pulse.found(verdict.cause);
            *inner.state() = State::Resting { kept };
            tell.send_replace(Some(verdict.outcome));
        });
        *state = State::Asking { answer: answer.clone(), task: task.abort_handle() };
        answer
    }
}

/// What became of a statement.
enum Ran {
    /// There is an answer, and the connection can be kept.
    Answered(Connection, Verdict),
    /// The connection broke.
    Broken(ControlError),
    /// No answer, and no reason to hope for one.
    GivenUp,
}

/// What to do about a statement that hangs.
enum Fate {
    Leave,
    GiveUp,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, kept: Option<Connection>, session: Session) -> (Option<Connection>, Verdict) {
        match (kept, session) {
            (Some(kept), Session::Kept) => match self.run(kept).await {
                // It may have been closed at any time since the last probe: no news.
                Ran::Broken(_) => self.ask_fresh().await,
                ran => self.settle(ran),
            },
            // Closed first: there is no place for both.
            (Some(kept), Session::Fresh) => {
                kept.close().await;
                self.ask_fresh().await
            }
            (None, _) => self.ask_fresh().await,
        }
    }

    async fn ask_fresh(&self) -> (Option<Connection>, Verdict) {
        let silent = || self.pulse.found(Some(Cause::Frozen));
        match self.control.open(self.patience(), silent).await {
            Ok(connection) => {
                self.pulse.let_in();
                self.settle(self.run(connection).await)
            }
            Err(error) => {
                if matches!(error, ControlError::Silent) {
                    self.given_up.fetch_add(1, Ordering::Relaxed);
                }
                (None, Verdict::of(&error))
            }
        }
    }

    fn settle(&self, ran: Ran) -> (Option<Connection>, Verdict) {
        match ran {
            Ran::Answered(connection, verdict) => {
                self.given_up.store(0, Ordering::Relaxed);
                (Some(connection), verdict)
            }
            Ran::Broken(error) => (None, Verdict::of(&error)),
            Ran::GivenUp => {
                self.given_up.fetch_add(1, Ordering::Relaxed);
                (None, Verdict { outcome: ProbeOutcome::Timeout, cause: None })
            }
        }
    }

    fn patience(&self) -> Duration {
        GIVE_UP * (1 << self.given_up.load(Ordering::Relaxed).min(DOUBLINGS_MAX))
    }

    async fn run(&self, mut connection: Connection) -> Ran {
        let sql = (self.question.sql)(self.asked.fetch_add(1, Ordering::Relaxed));
        let pid = connection.pid();
        let outstanding = self.pulse.sent(pid);
        let start = Instant::now();
        let answer = tokio::select! {
            answer = connection.query(sql.as_bytes()) => answer,
            () = self.despair(pid) => return Ran::GivenUp,
        };
        drop(outstanding);
        match answer {
            Ok(rows) => {
                let verdict = (self.question.judge)(&rows);
                if verdict.outcome == ProbeOutcome::Ok {
                    self.pulse.good(start.elapsed());
                }
                Ran::Answered(connection, verdict)
            }
            Err(error @ ControlError::Refused(_)) => Ran::Answered(connection, Verdict::of(&error)),
            Err(error) => Ran::Broken(error),
        }
    }

    /// Ends when nothing is to be hoped for from a statement on that backend.
    async fn despair(&self, pid: u32) {
        loop {
            sleep(self.patience()).await;
            if let Fate::GiveUp = self.fate(pid).await {
                return;
            }
        }
    }

    async fn fate(&self, pid: u32) -> Fate {
        match looks::look(&self.control, &[pid], Instant::now() + LOOK_TIMEOUT).await {
            Ok(seen) => match seen.get(&pid).map(|look| look.wait) {
                Some(Wait::SyncRep | Wait::Storage | Wait::DataFile | Wait::Hidden) => Fate::Leave,
                Some(Wait::Idle | Wait::Lock | Wait::Other) | None => Fate::GiveUp,
            },
            Err(ControlError::Unreachable | ControlError::Missing | ControlError::Silent) => Fate::GiveUp,
            // It is alive, and perhaps the statement is as well.
            Err(_) => Fate::Leave,
        }
    }
}
