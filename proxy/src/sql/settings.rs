//! SET, RESET, SHOW and the options of a transaction.

use super::analysis::StatementKind;
use super::analyzer::{Analyzer, WordBuffer};
use super::effects::{Effect, Scope, Value};
use super::name::Name;
use super::token::{Token, TokenKind};
use super::transaction::{Access, Deferral, Isolation, TransactionOptions};

impl<'a> Analyzer<'a> {
    /// `SET [SESSION | LOCAL] ...`
    pub(super) fn set(&mut self) -> StatementKind {
        let kind = self.set_statement();
        self.skip();
        kind
    }

    /// Passes the rest of the statement.
    fn skip(&mut self) {
        while !self.at_end() {
            self.bump();
        }
    }

    fn set_statement(&mut self) -> StatementKind {
        let mut scope = Scope::Session;
        let local = self.at(b"local");
        if self.at_end() || !(local || self.at(b"session")) {
            return self.set_what(scope);
        }
        let word = self.bump();
        if self.at_assignment() {
            // A parameter such as `local.x`.
            return self.set_parameter(word, scope);
        }
        if !local && (self.at(b"authorization") || self.at(b"characteristics")) {
            return self.set_session(scope);
        }
        if local {
            scope = Scope::Transaction;
        }
        self.set_what(scope)
    }

    /// Whether the token before was the name of a parameter, or a part of it.
    fn at_assignment(&self) -> bool {
        self.current.kind == TokenKind::Dot || self.at(b"to") || self.text(self.current) == b"="
    }

    /// What stands behind SET, SESSION or LOCAL.
    fn set_what(&mut self, scope: Scope) -> StatementKind {
        if self.at_end() {
            return StatementKind::Set;
        }
        let word = self.bump();
        if word.kind != TokenKind::Word || self.at_assignment() {
            return self.set_parameter(word, scope);
        }
        let mut buffer = WordBuffer::default();
        match self.lower(word, &mut buffer) {
            b"session" if self.at(b"authorization") || self.at(b"characteristics") => self.set_session(scope),
            b"transaction" => {
                let options = self.transaction_options();
                self.transaction.set(options);
                StatementKind::SetTransaction
            }
            b"constraints" => StatementKind::SetConstraints,
            b"time" if self.accept(b"zone") => self.set_special("timezone", scope),
            b"names" => self.set_special("client_encoding", scope),
            b"schema" => self.set_special("search_path", scope),
            b"role" => self.set_special("role", scope),
            b"xml" if self.accept(b"option") => self.set_special("xmloption", scope),
            _ => self.set_parameter(word, scope),
        }
    }

    /// `SESSION AUTHORIZATION name`, `SESSION CHARACTERISTICS AS TRANSACTION modes`
    fn set_session(&mut self, scope: Scope) -> StatementKind {
        if self.accept(b"authorization") {
            return self.set_special("session_authorization", scope);
        }
        let options = self.transaction_options();
        let settings = [
            ("default_transaction_isolation", options.isolation.map(Isolation::as_str)),
            ("default_transaction_read_only", options.access.map(|a| on_off(a == Access::ReadOnly))),
            ("default_transaction_deferrable", options.deferral.map(|d| on_off(d == Deferral::Deferrable))),
        ];
        for (name, value) in settings {
            if let Some(value) = value {
                let name = Name::verbatim(name.as_bytes());
                let value = Value::Text(Name::verbatim(value.as_bytes()));
                self.effect(Effect::SetParameter { name, scope: Scope::Session, value });
            }
        }
        StatementKind::Set
    }

    /// A form that names no parameter and has no TO.
    fn set_special(&mut self, name: &'static str, scope: Scope) -> StatementKind {
        let value = match self.value() {
            Value::Text(text) if name == "timezone" && text == "local" => Value::Default,
            value => value,
        };
        self.effect(Effect::SetParameter { name: Name::verbatim(name.as_bytes()), scope, value });
        StatementKind::Set
    }

    /// `name { TO | = } value`
    fn set_parameter(&mut self, first: Token, scope: Scope) -> StatementKind {
        let name = self.parameter(first);
        if !self.accept(b"to") && self.text(self.current) == b"=" {
            self.bump();
        }
        let value = self.value();
        if name == "transaction_read_only" {
            self.transaction
                .set(TransactionOptions { access: Some(access(&value)), ..TransactionOptions::default() });
            return StatementKind::SetTransaction;
        }
        if name == "transaction_isolation" || name == "transaction_deferrable" {
            return StatementKind::SetTransaction;
        }
        self.effect(Effect::SetParameter { name, scope, value });
        StatementKind::Set
    }

    /// The name of a parameter, in parts or not. Case never matters in it, not even in quotes
    /// (`guc_name_compare` in guc.c).
    fn parameter(&mut self, first: Token) -> Name<'a> {
        if self.current.kind != TokenKind::Dot {
            let name = self.name(first);
            return match first.kind {
                TokenKind::Word => name,
                _ => Name::owned(name.as_bytes().to_ascii_lowercase()),
            };
        }
        let mut plain = first.kind == TokenKind::Word;
        let mut parts = self.name(first).as_bytes().to_ascii_lowercase();
        while self.current.kind == TokenKind::Dot {
            plain &= self.previous_end == self.current.start;
            self.bump();
            if self.at_end() {
                break;
            }
            plain &= self.previous_end == self.current.start && self.current.kind == TokenKind::Word;
            let part = self.bump();
            parts.push(b'.');
            parts.extend(self.name(part).as_bytes().iter().map(u8::to_ascii_lowercase));
        }
        if plain { Name::folded(self.slice(first.start, self.previous_end)) } else { Name::owned(parts) }
    }

    /// Everything up to the end of the statement.
    fn value(&mut self) -> Value<'a> {
        let first = self.current;
        let mut tokens = 0_u32;
        while !self.at_end() {
            self.bump();
            tokens = tokens.saturating_add(1);
        }
        let raw = self.slice(first.start, self.previous_end);
        match (tokens, first.kind) {
            (0, _) => Value::Default,
            (1, TokenKind::Word) if raw.eq_ignore_ascii_case(b"default") => Value::Default,
            (1, TokenKind::Word | TokenKind::QuotedWord | TokenKind::Number) => Value::Text(self.name(first)),
            (1, TokenKind::PlainString) => self.literal(first).map_or(Value::Raw(raw), Value::Text),
            _ => Value::Raw(raw),
        }
    }

    /// `RESET name`
    pub(super) fn reset(&mut self) -> StatementKind {
        if !self.at_end() {
            let word = self.bump();
            let all = word.kind == TokenKind::Word && self.text(word).eq_ignore_ascii_case(b"all");
            if all && self.at_end() {
                self.effect(Effect::ResetAll);
            } else if let Some(name) = self.reset_name(word) {
                self.effect(Effect::ResetParameter { name });
            }
        }
        self.skip();
        StatementKind::Reset
    }

    /// `None` for what only lasts as long as the transaction.
    fn reset_name(&mut self, word: Token) -> Option<Name<'a>> {
        let text = self.text(word);
        if text.eq_ignore_ascii_case(b"time") && self.accept(b"zone") {
            return Some(Name::verbatim(b"timezone"));
        }
        if text.eq_ignore_ascii_case(b"session") && self.accept(b"authorization") {
            return Some(Name::verbatim(b"session_authorization"));
        }
        if text.eq_ignore_ascii_case(b"transaction") && self.at(b"isolation") {
            return None;
        }
        let name = self.parameter(word);
        (!name.as_bytes().starts_with(b"transaction_")).then_some(name)
    }

    /// `SHOW name`
    pub(super) fn show(&mut self) -> StatementKind {
        if !self.at_end() {
            let word = self.bump();
            let name = self.parameter(word);
            if name.as_bytes().starts_with(b"tidegate.") {
                self.effect(Effect::Show { name });
            }
        }
        self.skip();
        StatementKind::Show
    }

    /// The modes of a transaction, from wherever they start to the end of the statement.
    pub(super) fn transaction_options(&mut self) -> TransactionOptions {
        let mut options = TransactionOptions::default();
        while !self.at_end() {
            if self.accept(b"isolation") {
                let _ = self.accept(b"level");
                options.isolation = self.isolation().or(options.isolation);
            } else if self.accept(b"read") {
                options.access =
                    if self.at(b"only") { Some(Access::ReadOnly) } else { Some(Access::ReadWrite) };
            } else if self.accept(b"not") {
                options.deferral = Some(Deferral::NotDeferrable);
                let _ = self.accept(b"deferrable");
            } else if self.accept(b"deferrable") {
                options.deferral = Some(Deferral::Deferrable);
            } else {
                self.bump();
            }
        }
        options
    }

    fn isolation(&mut self) -> Option<Isolation> {
        if self.accept(b"serializable") {
            Some(Isolation::Serializable)
        } else if self.accept(b"repeatable") {
            // Its READ must not be taken for the access mode.
            let _ = self.accept(b"read");
            Some(Isolation::RepeatableRead)
        } else if self.accept(b"read") {
            Some(if self.at(b"uncommitted") { Isolation::ReadUncommitted } else { Isolation::ReadCommitted })
        } else {
            None
        }
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// The access mode in `SET transaction_read_only`; what we cannot read may be READ WRITE.
fn access(value: &Value<'_>) -> Access {
    let Value::Text(text) = value else { return Access::ReadWrite };
    let on = [&b"on"[..], b"true", b"yes", b"1"].iter().any(|on| text.as_bytes().eq_ignore_ascii_case(on));
    if on { Access::ReadOnly } else { Access::ReadWrite }
}
