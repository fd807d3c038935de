//! The protocol position of one session with regard to the backend that it holds.
//!
//! Two scans share it: `outbound` looks at what the application sends, `inbound` at what the server answers.

use std::sync::Arc;

use super::lanes::TransactionLane;
use super::names::Names;
use super::notes::{Notes, Pins};
use super::plain::Plain;
use super::relay::Hold;
use super::sorting::LastSent;
use super::terms::SessionTerms;
use super::tokens::Tokens;
use crate::backend::{Backend, Settings};
use crate::exchange::refusal::TimedOut;
use crate::exchange::{Facts, Ledger, Owed};
use crate::io::Flow;
use crate::wire::{Header, TransactionStatus};

/// See the module documentation. In the order of how often it is looked at, in memory, too: hundreds of sessions do not
/// fit into a cache, and what every exchange needs should be few lines of it.
#[derive(Debug)]
#[repr(C)]
pub struct Conversation {
    /// What is owed to the application.
    pub ledger: Ledger,
    /// As of the last `ReadyForQuery`.
    pub status: TransactionStatus,
    /// What the session holds a backend for, pins aside.
    mode: Hold,
    /// Why the backend must stay.
    pub pins: Pins,
    /// Everything until Sync is ignored by the server, or was refused.
    pub(super) skipping: Skipping,
    pub(super) copy_in: CopyIn,
    /// Messages of the extended protocol were sent and no Sync behind them: their transaction is open,
    /// whatever the last status says.
    pub(super) unsynced: bool,
    /// Messages that we answer were taken since the last Sync.
    pub(super) local_since_sync: bool,
    /// An exchange was sent whole, and nothing of the next one.
    pub(super) between_exchanges: bool,
    /// Whether the next exchange may be sent.
    pub(super) gate: Gate,
    /// Whether the server said that what the transaction wrote has changed anything.
    pub(super) has_changed: bool,
    /// Whether a Flush is what was sent last: there will be answers without a Sync.
    pub(super) is_flushed: bool,
    /// Bytes in front of what is sent next that were looked at when it was admitted.
    pub(super) looked_at: usize,
    /// Who answers the message at the front.
    pub(super) front: Whose,
    pub(super) barrier: Barrier,
    pub(super) check: Check,
    /// What the transaction did so far, as far as lanes go.
    pub(super) transaction: TransactionLane,
    /// What the server's errors say about its health, since that was asked last.
    pub(super) ailment: Ailment,
    /// What the server said of itself by the way.
    pub(super) in_hot_standby: Option<bool>,
    /// What the server's last words say of a commit that it did not answer.
    pub(super) last_words: LastWords,
    /// Whether the server said that it stopped waiting for a standby: what it commits is not replicated.
    pub(super) replication: Replicated,
    pub(super) outbound: Frame,
    pub(super) inbound: Frame,
    /// What is sent next, if it is plain.
    pub(super) plain: Option<Plain>,
    /// What was sent last, and its text.
    pub(super) last_sent: LastSent,
    pub(super) sent_text: Vec<u8>,
    /// The hash of its parameters.
    pub(super) sent_values: u64,
    /// The hash of the text that `sort` knows `ahead` of.
    pub(super) ahead_of: Option<u64>,
    /// Counts `ReadyForQuery`.
    pub(super) answers: u64,
    /// Counts errors of the server.
    pub(super) errors: u64,
    /// Settings that the session wants.
    pub wanted: Arc<Settings>,
    /// What it wanted before its transaction, if that has changed any.
    pub(super) wanted_before: Option<Arc<Settings>>,
    /// What runs was told to cancel, because of a deadline.
    pub(super) timing_out: Option<Box<TimingOut>>,
    /// A BEGIN that was answered and not sent yet, as a frame; empty when there is none.
    pub(super) begin: Vec<u8>,
    /// Bounds, priority and lane of the session's statements.
    pub terms: SessionTerms,
    /// What has to be looked after.
    pub notes: Notes,
    /// What is known of the transaction for the case that its COMMIT breaks.
    pub(super) tokens: Tokens,
    /// Prepared statements of the application.
    pub names: Names,
    /// What `sort` found out about the first text of what is sent next.
    pub(super) ahead: Facts,
    /// Settings of the session's startup packet: what RESET goes back to.
    pub startup: Arc<Settings>,
    /// Prepared statements that a backend may have.
    pub prepared_limit: usize,
    /// The server that is talked to, for DETAIL.
    pub upstream: Arc<str>,
}

/// Whether a statement that this session prepares, and that the backend has already, is being looked at: its
/// plan may be from before a change of its tables, and then only sessions that knew it deserve the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    No,
    /// The server was asked; the application's Parse waits.
    Asked,
    /// The server has answered.
    Done,
}

/// Who answers a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// It was not looked at.
    Unknown,
    /// The server: it is none of those that we answer.
    Servers,
}

/// Whether an exchange may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// It has to be admitted first.
    Shut,
    /// The one at the front was admitted.
    Open,
}

/// What an error of the server says about the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ailment {
    /// Nothing: it was about the statement.
    None,
    /// It refuses writes.
    ReadOnly,
    /// It shuts down, starts, or has no resources.
    Failing,
}

/// What is added to the server's answer when it cancels what took too long.
#[derive(Debug)]
pub(super) struct TimingOut {
    pub(super) detail: String,
    pub(super) timed_out: TimedOut,
}

/// Whether the server's last words tell what became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastWords {
    /// There were none, or they could come before a commit as well as behind it.
    LeaveItOpen,
    /// It was told to end, and has done so before the commit began.
    BeforeTheCommit,
}

/// Whether a commit of now is where it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replicated {
    /// As far as the server says.
    AsConfigured,
    /// On no synchronous standby (`SyncRepWaitForLSN` in `src/backend/replication/syncrep.c` gave up).
    No,
}

/// Whether the server takes COPY data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyIn {
    No,
    /// It sends some.
    Giving,
    /// It does, and ignores Sync and Flush.
    Taking,
    /// The application has sent the end of it; the server has not answered.
    Ended,
}

/// Whether the next exchange has to wait for the answer to this one: because it takes names and pins away, sets what has to
/// be read back, or prepares what the next one may use, unless the server skips it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Barrier {
    None,
    /// Behind the exchange that is being sent; what takes names and pins away also holds up the rest of its exchange.
    AtItsEnd,
    /// Here.
    Here,
}

/// Where a scan is in the current frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Frame {
    /// Bytes of it that are still to come.
    pub(super) left: usize,
    /// What happens to them.
    pub(super) fate: Fate,
}

/// What happens to the rest of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Fate {
    #[default]
    Pass,
    Skip,
}

/// Whether the server ignores what it is sent, after an error in a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Skipping {
    No,
    UntilSync,
    /// The Sync is ours to send.
    UntilOurSync,
}

/// Whether the backend's position is known well enough to talk to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Nothing is owed, no frame is half sent or half received.
    Quiet,
    /// Answers are owed, but frames are whole as far as we sent them.
    Owing,
    /// A frame is half sent.
    Torn,
}

impl Conversation {
    /// Of a session that has just logged in.
    pub fn new(
        session: u64,
        startup: Arc<Settings>,
        prepared_limit: usize,
        mode: Hold,
        upstream: Arc<str>,
        terms: SessionTerms,
    ) -> Self {
        Self {
            upstream,
            ledger: Ledger::default(),
            status: TransactionStatus::Idle,
            names: Names::of_session(session),
            notes: Notes::default(),
            pins: Pins::default(),
            wanted: Arc::clone(&startup),
            wanted_before: None,
            startup,
            terms,
            prepared_limit,
            mode,
            outbound: Frame::default(),
            inbound: Frame::default(),
            skipping: Skipping::No,
            copy_in: CopyIn::No,
            unsynced: false,
            between_exchanges: true,
            gate: Gate::Shut,
            has_changed: false,
            is_flushed: false,
            looked_at: 0,
            begin: Vec::new(),
            transaction: TransactionLane::default(),
            last_sent: LastSent::default(),
            sent_text: Vec::new(),
            sent_values: 0,
            plain: None,
            front: Whose::Unknown,
            ahead_of: None,
            ahead: Facts::PLAIN_SELECT,
            answers: 0,
            errors: 0,
            ailment: Ailment::None,
            in_hot_standby: None,
            timing_out: None,
            last_words: LastWords::LeaveItOpen,
            replication: Replicated::AsConfigured,
            local_since_sync: false,
            barrier: Barrier::None,
            check: Check::No,
            tokens: Tokens::default(),
        }
    }

    /// What the session holds its backend for.
    #[inline]
    pub fn keeps(&self) -> Hold {
        if self.pins.any() { Hold::Session } else { self.mode }
    }

    /// Whether what is sent next comes outside of a transaction, as far as that is known before all is answered.
    #[inline]
    pub(super) fn is_outside(&self) -> bool {
        self.status == TransactionStatus::Idle && !self.notes.begins
    }

    /// See [`Position`].
    #[inline]
    pub fn position(&self) -> Position {
        if self.outbound.left > 0 {
            Position::Torn
        } else if self.ledger.is_empty() && !self.owes_sync() && self.inbound.left == 0 {
            Position::Quiet
        } else {
            Position::Owing
        }
    }

    /// Whether the backend can go to another session now, as far as the protocol is concerned.
    #[inline]
    pub fn is_over(&self) -> bool {
        self.status == TransactionStatus::Idle && self.position() == Position::Quiet
    }

    /// Whether bytes of a message were given to the application and the rest was not.
    pub fn answer_is_torn(&self) -> bool {
        self.inbound.left > 0 && self.inbound.fate == Fate::Pass
    }

    /// Whether the server waits for COPY data.
    pub fn is_copying_in(&self) -> bool {
        self.copy_in == CopyIn::Taking
    }

    /// Whether COPY data moves, one way or the other.
    #[inline]
    pub fn is_copying(&self) -> bool {
        matches!(self.copy_in, CopyIn::Taking | CopyIn::Giving)
    }

    /// What the server's errors since the last call say about its health.
    #[inline]
    pub(super) fn take_ailment(&mut self) -> Ailment {
        std::mem::replace(&mut self.ailment, Ailment::None)
    }

    /// Bytes of the server's current frame that are still to come.
    pub fn inbound_left(&self) -> usize {
        self.inbound.left
    }

    /// Whether all that was sent is answered, and no part of an exchange was admitted that is not sent.
    #[inline]
    pub(super) fn is_answered(&self) -> bool {
        self.between_exchanges && self.ledger.is_empty() && !self.owes_sync()
    }

    /// Whether the server still waits for a Sync that the application owes.
    #[inline]
    pub fn owes_sync(&self) -> bool {
        self.skipping != Skipping::No || self.unsynced || self.check != Check::No
    }

    /// Whether a Sync of ours would commit what the application has not finished. A COPY is made to fail first.
    pub fn sync_would_commit(&self) -> bool {
        self.skipping == Skipping::No && self.unsynced && !self.is_copying_in()
    }

    /// What is owed will not happen: names that it gives or takes away are as before.
    pub(super) fn undo_names(&mut self) {
        for owed in self.ledger.backwards() {
            self.names.undo(owed);
        }
    }

    /// The backend is gone: nothing that was owed by it comes any more. What the application has not sent
    /// completely is dropped when it comes.
    pub fn forget_backend(&mut self) {
        self.ledger.clear();
        self.outbound.fate = Fate::Skip;
        self.inbound = Frame::default();
        self.skipping = Skipping::No;
        self.copy_in = CopyIn::No;
        self.unsynced = false;
        self.between_exchanges = true;
        self.gate = Gate::Shut;
        self.has_changed = false;
        self.is_flushed = false;
        self.looked_at = 0;
        self.transaction = TransactionLane::default();
        self.forget_ahead();
        self.plain = None;
        self.front = Whose::Unknown;
        self.ailment = Ailment::None;
        self.timing_out = None;
        self.last_words = LastWords::LeaveItOpen;
        self.replication = Replicated::AsConfigured;
        self.local_since_sync = false;
        self.barrier = Barrier::None;
        self.check = Check::No;
        self.tokens.forget();
        self.terms.roll_back();
        self.names.forget_pending();
        self.notes = Notes::default();
        self.pins = Pins::default();
        if let Some(before) = self.wanted_before.take() {
            self.wanted = before;
        }
    }

    /// Whether nobody can say, after a drain, what settings and statements the backend has: what is in the way of an
    /// answer may have been skipped, and the end of a transaction takes back what was reported within it.
    pub fn leaves_doubt(&self) -> bool {
        self.wanted_before.is_some() || self.ledger.iter().any(Owed::changes_statements)
    }

    /// `DISCARD ALL` succeeded: the session is as after login.
    pub(super) fn discarded_all(&mut self, backend: &mut Backend) {
        backend.prepared.clear();
        backend.unnamed = None;
        backend.applied = Settings::none();
        self.names.clear();
        self.pins = Pins::default();
        self.terms.reset_all();
        self.wanted = Arc::clone(&self.startup);
    }

    /// Leaves out what has come of a request whose backend is gone.
    pub fn drop_torn_request(&mut self, flow: &mut Flow) {
        let n = self.outbound.left.min(flow.unseen().len());
        if n > 0 {
            flow.skip(n);
            self.outbound.left -= n;
        }
    }

    /// Leaves a request out that no backend shall see, the part that is still to come included.
    pub fn drop_request(&mut self, header: Header, flow: &mut Flow) {
        self.outbound = Frame { left: header.frame_len, fate: Fate::Skip };
        self.drop_torn_request(flow);
    }

    /// Gives memory back that a quiet session does not need.
    pub fn shrink(&mut self) {
        self.ledger.shrink();
        self.names.shrink();
        self.shrink_sent();
        if self.begin.is_empty() {
            self.begin = Vec::new();
        }
    }
}
