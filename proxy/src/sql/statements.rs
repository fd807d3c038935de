//! Statements with another statement in them, and those whose lane depends on their options.

use super::analysis::StatementKind;
use super::analyzer::Analyzer;
use super::body::{Before, Body};
use super::effects::{Effect, PinReason};
use super::lane::{Placement, Strength};
use super::token::TokenKind;

impl Analyzer<'_> {
    /// `EXPLAIN [ANALYZE] [VERBOSE] statement` or `EXPLAIN (option [value], ...) statement`
    pub(super) fn explain(&mut self) -> StatementKind {
        let mark = self.mark();
        let mut executes = false;
        let mut depth = 0;
        if self.current.kind == TokenKind::Open {
            self.bump();
            if self.current.kind == TokenKind::Open || self.at_query() {
                depth = 1;
            } else {
                executes = self.explain_options();
            }
        }
        loop {
            if self.accept(b"analyze") || self.accept(b"analyse") {
                executes = true;
            } else if !self.accept(b"verbose") {
                break;
            }
        }
        self.explained(depth);
        if !executes {
            self.rewind(mark);
        }
        self.lane.raise(Strength::Read);
        StatementKind::Explain
    }

    /// SELECT and the like are reserved, so they cannot be options.
    fn at_query(&self) -> bool {
        self.at(b"select") || self.at(b"with") || self.at(b"values") || self.at(b"table")
    }

    /// Whether the options, up to the closing parenthesis, ask for execution. The last ANALYZE counts.
    fn explain_options(&mut self) -> bool {
        let mut executes = false;
        while !self.at_end() {
            let option = self.bump();
            if option.kind == TokenKind::Close {
                break;
            }
            let name = self.name(option);
            if option.kind == TokenKind::UnicodeWord {
                // It may spell any option.
                executes = true;
            } else if name == "analyze" || name == "analyse" {
                let value = self.text(self.current);
                let value = value.strip_prefix(b"'").and_then(|v| v.strip_suffix(b"'")).unwrap_or(value);
                executes = ![&b"off"[..], b"false", b"0"].iter().any(|off| value.eq_ignore_ascii_case(off));
            }
        }
        executes
    }

    fn explained(&mut self, depth: u32) {
        if self.query(depth).is_some() {
            return;
        }
        if self.accept(b"declare") {
            self.declare();
        } else if self.accept(b"create") {
            self.create();
        } else {
            // EXECUTE, REFRESH.
            self.write(StatementKind::Other);
        }
    }

    /// `COPY (query) TO`, `COPY table [(columns)] { FROM | TO }`; where the query's goes to is for [`Body`] to see.
    pub(super) fn copy(&mut self) -> StatementKind {
        if self.current.kind == TokenKind::Open {
            self.bump();
            if self.query(1).is_none() {
                self.write(StatementKind::Other);
            }
            return StatementKind::CopyTo;
        }
        while !self.at_end() {
            if self.accept(b"to") {
                self.lane.raise(Strength::Read);
                self.copy_to();
                return self.neutral(StatementKind::CopyTo);
            }
            if self.accept(b"from") {
                break;
            }
            self.bump();
        }
        self.write(StatementKind::CopyFrom)
    }

    /// Behind the TO of a COPY: a file or a program is one of the server's machine.
    pub(super) fn copy_to(&mut self) {
        if !self.at(b"stdout") {
            self.needs(Placement::Primary);
        }
    }

    /// `DECLARE name ... CURSOR [WITH HOLD] FOR query`
    pub(super) fn declare(&mut self) -> StatementKind {
        if !self.at_end() {
            self.bump();
        }
        let mut hold = false;
        while !self.at_end() && !self.accept(b"for") {
            hold |= self.accept(b"with") && self.at(b"hold");
            if !self.at_end() {
                self.bump();
            }
        }
        if hold {
            self.effect(Effect::Pin(PinReason::HoldCursor));
        }
        self.select(Before::Start, 0);
        StatementKind::Declare
    }

    pub(super) fn create(&mut self) -> StatementKind {
        self.lane.raise(Strength::Write);
        let mut temporary = false;
        loop {
            if self.accept(b"temp") || self.accept(b"temporary") {
                temporary = true;
            } else if !["or", "replace", "local", "global"].iter().any(|word| self.accept(word.as_bytes())) {
                break;
            }
        }
        let mut body = Body::new(Before::Word, 0);
        if self.at(b"function") || self.at(b"procedure") {
            body = body.with_routine();
        }
        let found = body.walk(self);
        if (temporary || found.temporary_schema) && !found.on_commit_drop {
            self.effect(Effect::Pin(PinReason::TempTable));
        }
        StatementKind::Ddl
    }

    /// A write, but for `IN ACCESS SHARE MODE`; see the module `lane`.
    pub(super) fn lock(&mut self) -> StatementKind {
        let mut strength = Strength::Write;
        while !self.at_end() {
            if self.accept(b"in") && self.accept(b"access") && self.accept(b"share") {
                strength = Strength::Read;
            } else if !self.at_end() {
                self.bump();
            }
        }
        self.lane.raise(strength);
        StatementKind::Lock
    }
}
