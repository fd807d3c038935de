//! When the server is asked for the [`Token`] of a transaction, and what is done with its answer.
//!
//! By the extended protocol the question stands in front of the application's Sync, in the same exchange: it costs no
//! round trip and no wake-up. Where that Sync commits by itself, a Flush brings the answer before the commit begins. By
//! the simple protocol it is an exchange of its own right behind the write, which costs the server one more answer to
//! send; a session whose transactions go on behind their first write (its [`Habit`]) has it in front of the next query
//! instead, where it costs no more than to run it. A write by itself, outside of a transaction, is not asked about:
//! there is nothing to put in between. A COMMIT whose transaction was never asked about, because its writes were a COPY
//! or many statements in one text, has the question in front of it.

use tokio::time::Instant;

use super::conversation::{Conversation, Skipping};
use super::inbound::Step;
use crate::backend::Backend;
use crate::exchange::facts::Need;
use crate::exchange::{Facts, Owed};
use crate::io::Flow;
use crate::outcome::Token;
use crate::outcome::token::{self, Answer, Portal};
use crate::sql::{Lane, StatementKind};
use crate::wire::frame::HEADER_LEN;
use crate::wire::frontend as message;
use crate::wire::{ErrorFields, Header, SqlState, TransactionStatus, WireError, backend as tag};

/// A whole Flush.
const FLUSH_FRAME: [u8; HEADER_LEN] = [message::FLUSH, 0, 0, 0, 4];
/// A whole Sync.
const SYNC_FRAME: [u8; HEADER_LEN] = [message::SYNC, 0, 0, 0, 4];

/// What an exchange is, as far as its outcome goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sent {
    worth: Worth,
    ending: Ending,
    executes: bool,
    /// Whether the COMMIT at its end is executed.
    ends: bool,
}

/// Whether a question fits behind what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Worth {
    /// It writes nothing.
    #[default]
    Nothing,
    /// It writes, and more may follow it in its transaction if that is explicit: some statements run only alone.
    InBlock,
    /// It writes.
    Write,
    /// The server would not understand it there, as in the middle of a COPY.
    Never,
}

/// How an exchange ends its transaction by its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Ending {
    #[default]
    No,
    /// It is a COMMIT and nothing else.
    Commit,
    /// A COMMIT is its last statement.
    CommitAtLast,
    /// Somehow, or more follows.
    Other,
}

/// Whether the transaction that is being sent was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Question {
    #[default]
    NotAsked,
    /// It has written, and is asked about in front of the next query.
    Deferred,
    Asked,
}

/// Transactions in a row that have to go on behind their first write for the next to be expected to. Where that
/// expectation is wrong, and the COMMIT is lost on its way to the server, it stays unknown what became of it; so it is
/// not held lightly.
const HABIT: u8 = 8;

/// What the transactions of a session do behind their first write, by the simple protocol.
#[derive(Debug, Clone, Copy, Default)]
struct Habit {
    /// How many in a row went on, up to [`HABIT`].
    went_on: u8,
    /// Whether the next query tells.
    tells: bool,
}

impl Habit {
    fn expects_more(self) -> bool {
        self.went_on == HABIT
    }

    fn learn(&mut self, next: Ending) {
        if std::mem::take(&mut self.tells) {
            self.went_on = match next {
                Ending::No => (self.went_on + 1).min(HABIT),
                Ending::Commit | Ending::CommitAtLast => 0,
                Ending::Other => self.went_on,
            };
        }
    }
}

/// See the module documentation. What every exchange looks at comes first: in memory, too.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Tokens {
    /// Whether questions are asked.
    pub(super) on: bool,
    /// What is being sent.
    exchange: Sent,
    /// What was sent last.
    last: Sent,
    question: Question,
    habit: Habit,
    /// Whether the simple query at the front has its `CommandComplete`.
    completed: bool,
    /// Questions without an answer.
    owed: usize,
    /// A question that failed has failed the transaction, and the application does not know: the server's error.
    failure: Option<Box<[u8]>>,
    /// Of the transaction that is being answered.
    pub(super) token: Option<Token>,
}

impl Tokens {
    /// A statement is sent.
    #[inline]
    pub(super) fn sent(&mut self, facts: &Facts) {
        if self.on && facts.lane != Need::Read {
            self.exchange.add(facts);
        }
    }

    /// An Execute is sent.
    #[inline]
    pub(super) fn executes(&mut self) {
        let exchange = &mut self.exchange;
        exchange.executes = true;
        if exchange.ending != Ending::No && std::mem::replace(&mut exchange.ends, true) {
            exchange.ending = Ending::Other;
        }
    }

    /// Nothing is known of what is sent.
    pub(super) fn sent_unknown(&mut self) {
        self.exchange.worth = Worth::Never;
        self.exchange.ending = Ending::Other;
    }

    /// The exchange is sent.
    #[inline]
    pub(super) fn exchange_ends(&mut self) {
        if self.exchange.ending != Ending::No {
            self.question = Question::NotAsked;
        }
        self.last = std::mem::take(&mut self.exchange);
    }

    /// An exchange is answered.
    #[inline]
    pub(super) fn answered(&mut self, status: TransactionStatus) {
        self.completed = false;
        let is_known = self.question != Question::NotAsked || self.token.is_some() || self.failure.is_some();
        if status == TransactionStatus::Idle && is_known {
            self.transaction_ends();
        }
    }

    #[cold]
    fn transaction_ends(&mut self) {
        self.token = None;
        self.failure = None;
        // What is still to be answered is about the next transaction.
        self.question = if self.owed > 0 { Question::Asked } else { Question::NotAsked };
    }

    /// The simple query at the front has ended, and may still have to commit.
    #[inline]
    pub(super) fn completed(&mut self) {
        self.completed = true;
    }

    /// Whether what was sent last is a COMMIT and nothing else.
    pub(super) fn commits(&self) -> bool {
        self.last.ending == Ending::Commit
    }

    /// Whether what was sent last has a COMMIT as its last statement.
    pub(super) fn commits_by_words(&self) -> bool {
        matches!(self.last.ending, Ending::Commit | Ending::CommitAtLast)
    }

    /// Whether what was sent last commits at its end, if at all.
    pub(super) fn is_single(&self) -> bool {
        self.commits_by_words() || self.last.worth == Worth::Write
    }

    /// The transaction that is known by its token, if what was sent last does nothing behind its COMMIT: what became of
    /// one is then what became of the other.
    pub(super) fn decisive(&self) -> Option<Token> {
        self.token.filter(|_| self.last.ending != Ending::Other)
    }

    /// Whether the simple query at the front has its `CommandComplete`.
    pub(super) fn is_completed(&self) -> bool {
        self.completed
    }

    /// The backend is gone.
    pub(super) fn forget(&mut self) {
        *self = Self { on: self.on, habit: self.habit, ..Self::default() };
    }
}

impl Sent {
    fn add(&mut self, facts: &Facts) {
        let ending = match (facts.first, facts.statements) {
            _ if !facts.ends_transaction => Ending::No,
            (StatementKind::Commit, 1) if !facts.chains && !self.executes => Ending::Commit,
            _ if facts.commits_last => Ending::CommitAtLast,
            _ => Ending::Other,
        };
        // The same COMMIT is seen at its Parse and its Bind.
        self.ending = self.ending.max(ending);
        self.worth = self.worth.max(Worth::of(facts));
    }
}

impl Worth {
    fn of(facts: &Facts) -> Self {
        if facts.ends_transaction || facts.statements > 1 {
            return Self::Never;
        }
        match facts.first {
            StatementKind::Insert
            | StatementKind::Update
            | StatementKind::Delete
            | StatementKind::Merge
            | StatementKind::Select
            | StatementKind::Execute => Self::Write,
            StatementKind::Ddl | StatementKind::Call | StatementKind::Do => Self::InBlock,
            StatementKind::CopyFrom | StatementKind::CopyTo | StatementKind::Other => Self::Never,
            _ => Self::Nothing,
        }
    }
}

impl Conversation {
    /// Whether the application waits for no answer.
    #[inline]
    pub(super) fn waits_for_nothing(&self) -> bool {
        self.ledger.is_empty() || (self.tokens.owed > 0 && !self.ledger.owes_the_application())
    }

    /// Whether what is being sent is part of a transaction that goes on behind it.
    fn is_in_block(&self) -> bool {
        let begun = self.notes.begins && !self.notes.ends_transaction;
        self.status == TransactionStatus::InTransaction || (self.status == TransactionStatus::Idle && begun)
    }

    fn is_worth_asking(&self) -> bool {
        let tokens = &self.tokens;
        let fits = match tokens.exchange.worth {
            Worth::Write => true,
            Worth::InBlock => self.is_in_block(),
            Worth::Nothing => tokens.question == Question::Deferred,
            Worth::Never => false,
        };
        fits && tokens.question != Question::Asked
            && self.transaction.lane() == Some(Lane::Write)
            && self.status != TransactionStatus::Failed
    }

    /// A Sync is sent next.
    #[inline]
    pub(super) fn ask_before_sync(&mut self, flow: &mut Flow, backend: &mut Backend) {
        if self.tokens.exchange.worth > Worth::Nothing || self.tokens.question == Question::Deferred {
            self.consider_sync(flow, backend);
        }
    }

    #[cold]
    fn consider_sync(&mut self, flow: &mut Flow, backend: &mut Backend) {
        let usual = self.skipping == Skipping::No && self.tokens.exchange.executes;
        if !usual || !self.is_worth_asking() {
            return;
        }
        let statement = token::statement();
        if !backend.prepared.touch(statement.id) {
            self.inject_parse(statement, flow, backend);
        }
        let commits = !self.is_in_block();
        flow.insert(|out| {
            token::put_question(Portal::Own, out);
            if commits {
                out.extend_from_slice(&FLUSH_FRAME);
            }
        });
        self.question_sent(Owed::Token);
    }

    /// A simple query is sent next.
    #[inline]
    pub(super) fn ask_before_query(&mut self, flow: &mut Flow, backend: &mut Backend) {
        let tokens = &self.tokens;
        if tokens.question == Question::Deferred
            || tokens.habit.tells
            || (tokens.exchange.ending == Ending::Commit && tokens.question == Question::NotAsked)
        {
            self.consider_query(flow, backend);
        }
    }

    #[cold]
    fn consider_query(&mut self, flow: &mut Flow, backend: &mut Backend) {
        let ending = self.tokens.exchange.ending;
        self.tokens.habit.learn(ending);
        let open = self.status == TransactionStatus::InTransaction && self.ledger.is_empty();
        if !open || self.transaction.lane() != Some(Lane::Write) {
            return;
        }
        match (ending, self.tokens.question) {
            (Ending::Commit, Question::NotAsked | Question::Deferred) => self.ask_apart(flow, backend),
            (Ending::No, Question::Deferred) => self.ask_first(flow, backend),
            _ => {}
        }
    }

    /// A simple query was sent.
    #[inline]
    pub(super) fn ask_behind_query(&mut self, flow: &mut Flow, backend: &mut Backend) {
        if self.tokens.exchange.worth > Worth::Nothing && self.is_worth_asking() && self.is_in_block() {
            self.tokens.habit.tells = true;
            if self.tokens.habit.expects_more() {
                self.tokens.question = Question::Deferred;
            } else {
                self.ask_apart(flow, backend);
            }
        }
    }

    /// Asks in front of a query, without a Sync: if the question fails, the server ignores the query.
    #[cold]
    fn ask_first(&mut self, flow: &mut Flow, backend: &mut Backend) {
        let statement = token::statement();
        if !backend.prepared.touch(statement.id) {
            self.inject_parse(statement, flow, backend);
        }
        flow.insert(|out| token::put_question(Portal::Unnamed, out));
        self.question_sent(Owed::TokenFirst);
    }

    #[cold]
    fn ask_apart(&mut self, flow: &mut Flow, backend: &mut Backend) {
        let statement = token::statement();
        if !backend.prepared.touch(statement.id) {
            flow.insert(|out| statement.put_parse(out));
            self.ledger.owe(Owed::TokenParse(statement.id));
            self.bar_next();
            self.has_now(statement.id, flow, backend);
        }
        flow.insert(|out| {
            token::put_question(Portal::Unnamed, out);
            out.extend_from_slice(&SYNC_FRAME);
        });
        self.question_sent(Owed::TokenApart);
        self.ledger.owe(Owed::TokenSync);
    }

    fn question_sent(&mut self, owed: Owed) {
        self.ledger.owe(owed);
        self.tokens.question = Question::Asked;
        self.tokens.owed += 1;
    }

    /// A frame that may belong to the answer to a question; `None` if it does not.
    #[inline]
    pub(super) fn token_frame(
        &mut self,
        header: Header,
        flow: &mut Flow,
        backend: &Backend,
    ) -> Option<Result<Step, WireError>> {
        if self.tokens.owed == 0 || !self.ledger.front().is_some_and(Owed::is_token) {
            return None;
        }
        self.answer_frame(header, flow, backend)
    }

    #[cold]
    fn answer_frame(
        &mut self,
        header: Header,
        flow: &mut Flow,
        backend: &Backend,
    ) -> Option<Result<Step, WireError>> {
        match (self.ledger.front()?, header.tag) {
            (Owed::TokenParse(_), tag::PARSE_COMPLETE) => drop(self.ledger.settle()),
            (Owed::Token | Owed::TokenFirst | Owed::TokenApart, tag::BIND_COMPLETE)
            | (Owed::Token, tag::COMMAND_COMPLETE) => {}
            (Owed::Token, tag::CLOSE_COMPLETE)
            | (Owed::TokenFirst | Owed::TokenApart, tag::COMMAND_COMPLETE) => {
                self.ledger.settle();
                self.tokens.owed -= 1;
            }
            (Owed::Token | Owed::TokenFirst | Owed::TokenApart, tag::DATA_ROW) => {
                let Some(frame) = flow.unseen().get(..header.frame_len) else {
                    return Some(Ok(super::inbound::wait_for(header, flow)));
                };
                let body = frame.get(HEADER_LEN..).unwrap_or_default();
                match token::read(body, backend.cancel_target.process_id, Instant::now()) {
                    Some(Answer::Token(token)) => self.tokens.token = Some(token),
                    // A write of the same transaction may follow.
                    Some(Answer::NothingWritten) => self.tokens.question = Question::NotAsked,
                    None => return Some(Err(WireError::BadBody(header.tag))),
                }
            }
            _ => return None,
        }
        Some(Ok(Step::Skip))
    }

    /// The answer to a question in an exchange of its own has ended. What the application believes of its transaction
    /// stays as it is.
    pub(super) fn token_ready(&mut self, status: TransactionStatus, backend: &mut Backend) -> Step {
        self.answers += 1;
        backend.status = status;
        if self.ledger.is_empty() {
            self.notes.quiet(self.status, &mut self.pins);
        }
        Step::Skip
    }

    /// A question in an exchange of its own failed, if this error is about one. In a failed transaction that is no
    /// news. Else the transaction has failed with it, as by a cancel that came late; whatever is sent next in it is
    /// answered with this error.
    pub(super) fn token_failed(
        &mut self,
        frame: &[u8],
        fields: &ErrorFields<'_>,
        backend: &mut Backend,
    ) -> bool {
        if !matches!(self.ledger.front(), Some(Owed::TokenParse(_) | Owed::TokenApart)) {
            return false;
        }
        if fields.sqlstate() != Some(SqlState::IN_FAILED_SQL_TRANSACTION) {
            self.tokens.failure = Some(frame.into());
        }
        self.failed(backend, fields);
        true
    }

    /// Whether the server ignores, because of an error that comes now, more than the one query that a question of ours
    /// stands in front of: what it answers next would be for nothing of that.
    pub(super) fn ignores_too_much(&self) -> bool {
        let is_before = |owed: &&Owed| matches!(owed, Owed::InjectedParse(_) | Owed::InjectedClose(_));
        let mut owed = self.ledger.iter().skip_while(is_before);
        match (owed.next(), owed.next(), owed.next()) {
            (Some(Owed::TokenFirst), Some(Owed::Query), None) => false,
            (first, _, _) => matches!(first, Some(Owed::TokenFirst)),
        }
    }

    /// Sends the Sync that the server waits for, and that the application does not owe.
    #[cold]
    pub(super) fn send_our_sync(&mut self, flow: &mut Flow) {
        flow.insert(|out| out.extend_from_slice(&SYNC_FRAME));
        self.ledger.owe(Owed::Sync);
        self.skipping = Skipping::No;
    }

    /// The server ignored a question.
    pub(super) fn token_ignored(&mut self) {
        self.tokens.owed -= 1;
        self.tokens.question = Question::NotAsked;
    }

    /// Why the server says that the transaction has failed, where that was a question of ours.
    #[inline]
    pub(super) fn take_failure(&mut self, fields: &ErrorFields<'_>) -> Option<Box<[u8]>> {
        if self.tokens.failure.is_none() || fields.sqlstate() != Some(SqlState::IN_FAILED_SQL_TRANSACTION) {
            return None;
        }
        self.tokens.failure.take()
    }

    /// Whether command tags decide something here.
    #[inline]
    pub(super) fn hides_a_failure(&self) -> bool {
        self.tokens.failure.is_some()
    }

    /// The server has ended a transaction with ROLLBACK that a question of ours had failed: a COMMIT gets the error.
    pub(super) fn rolled_back(&mut self) -> Option<Box<[u8]>> {
        let failure = self.tokens.failure.take();
        failure.filter(|_| self.tokens.commits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(texts: &[&str]) -> Sent {
        let mut tokens = Tokens { on: true, ..Tokens::default() };
        for text in texts {
            tokens.sent(&Facts::of(text.as_bytes()));
        }
        tokens.exchange
    }

    #[test]
    fn only_what_stays_as_it_is_with_a_question_behind_it_is_asked_about() {
        // A question in the middle of a COPY is taken for its data; behind VACUUM it makes that fail.
        for text in ["INSERT INTO t VALUES (1)", "UPDATE t SET a = 1", "SELECT nextval('s')", "EXECUTE p"] {
            assert_eq!(sent(&[text]).worth, Worth::Write, "{text}");
        }
        for text in ["CREATE INDEX CONCURRENTLY i ON t (a)", "CALL p()", "DO $$ BEGIN END $$"] {
            assert_eq!(sent(&[text]).worth, Worth::InBlock, "{text}");
        }
        for text in ["COPY t FROM STDIN", "INSERT INTO t VALUES (1); COMMIT", "COMMIT"] {
            assert_eq!(sent(&[text]).worth, Worth::Never, "{text}");
        }
        for text in ["SELECT 1", "BEGIN", "SET x = 1", "VACUUM t", "LISTEN c"] {
            assert_eq!(sent(&[text]).worth, Worth::Nothing, "{text}");
        }
        assert_eq!(sent(&["BEGIN", "INSERT INTO t VALUES (1)"]).worth, Worth::Write);
        assert_eq!(sent(&["INSERT INTO t VALUES (1)", "COPY t FROM STDIN"]).worth, Worth::Never);
    }

    #[test]
    fn a_habit_takes_long_to_form_and_one_exception_to_break() {
        // Who defers the question for a transaction that commits next may not find out what became of it.
        let mut habit = Habit::default();
        let mut next = |ending| {
            habit.tells = true;
            habit.learn(ending);
            habit.learn(ending);
            habit.expects_more()
        };

        assert!((1..HABIT).all(|_| !next(Ending::No)));
        assert!(!next(Ending::Other), "a ROLLBACK tells nothing");
        assert!(next(Ending::No) && next(Ending::No) && next(Ending::Other));
        assert!(!next(Ending::Commit) && !next(Ending::No));
    }

    #[test]
    fn a_commit_is_told_from_what_only_contains_one() {
        // "Committed" can be answered in the server's place only where the whole answer is known.
        assert_eq!(sent(&["COMMIT"]).ending, Ending::Commit);
        assert_eq!(sent(&["COMMIT", "COMMIT"]).ending, Ending::Commit, "Parse and Bind of the same");
        for text in ["COMMIT AND CHAIN", "INSERT INTO t VALUES (1); COMMIT"] {
            assert_eq!(sent(&[text]).ending, Ending::CommitAtLast, "{text}");
        }
        for text in ["COMMIT; INSERT INTO t VALUES (1)", "COMMIT; BEGIN; COMMIT", "PREPARE TRANSACTION 'x'"] {
            assert_eq!(sent(&[text]).ending, Ending::Other, "{text}");
        }
        assert_eq!(sent(&["INSERT INTO t VALUES (1)"]).ending, Ending::No);
    }

    #[test]
    fn what_is_executed_behind_a_commit_is_not_known_by_its_transaction() {
        // It would be told committed with a transaction that it is no part of.
        let executed = |texts: &[&str]| {
            let mut tokens = Tokens { on: true, ..Tokens::default() };
            for text in texts {
                let facts = Facts::of(text.as_bytes());
                // At its Parse and at its Bind.
                tokens.sent(&facts);
                tokens.sent(&facts);
                tokens.executes();
            }
            tokens.exchange.ending
        };
        let write = "INSERT INTO t VALUES (1)";

        assert_eq!(executed(&["COMMIT"]), Ending::Commit);
        assert_eq!(executed(&[write, "COMMIT"]), Ending::CommitAtLast);
        assert_eq!(executed(&["SELECT 1", "COMMIT"]), Ending::CommitAtLast);
        assert_eq!(executed(&["COMMIT", write]), Ending::Other);
        assert_eq!(executed(&["COMMIT", "SELECT 1"]), Ending::Other);
        assert_eq!(executed(&[write, "COMMIT", write]), Ending::Other);
    }
}
