//! The prepared statements of one session, under the names that the application gave them.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::local::Portals;
use crate::backend::Statement;
use crate::backend::connection::UnnamedOwner;
use crate::exchange::facts::Commands;
use crate::exchange::ledger::Parsed;
use crate::exchange::{Facts, Owed};
use crate::wire::frame::HEADER_LEN;
use crate::wire::frontend::Parse;

/// Named statements that one session may have. PostgreSQL has no limit but memory; ours is shared.
pub const NAMED_LIMIT: usize = 10_000;

/// Text of an unnamed statement that an idle session may keep without giving memory back.
const KEPT_UNNAMED: usize = 2 * 1024;

/// See the module documentation. What a simple query looks at comes first: in memory, too.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Names {
    session: u64,
    serials: u64,
    unnamed: Unnamed,
    spare: Spare,
    /// Who runs it.
    pub unnamed_kind: UnnamedKind,
    unnamed_age: Age,
    local: Local,
    named: HashMap<Box<[u8]>, Arc<Statement>, foldhash::fast::RandomState>,
    /// What the unnamed statement was before each Parse that is not answered yet, oldest first: a Parse that
    /// the server ignores changes nothing.
    before: VecDeque<Unnamed>,
    /// Names that the pinned backend knows as the application does.
    lent: HashSet<Box<[u8]>, foldhash::fast::RandomState>,
    /// Portals that we run.
    pub(super) portals: Portals,
}

/// Statements that we run ourselves.
#[derive(Debug, Default)]
enum Local {
    /// The session never had any.
    #[default]
    Never,
    /// There may be some under a name.
    Named,
    /// The unnamed statement is one.
    Unnamed(Commands),
}

/// Which exchange has parsed or closed the unnamed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Age {
    /// One that was sent before.
    #[default]
    Old,
    /// The one that is being sent.
    New,
}

/// An unnamed statement.
#[derive(Debug, Default)]
struct Unnamed {
    /// `None`: there is none, or it is too long to keep.
    definition: Option<Definition>,
    serial: u64,
}

/// What an unnamed statement is.
#[derive(Debug)]
struct Definition {
    /// Its Parse as a whole frame: it is prepared anew when another backend has to bind it.
    frame: Vec<u8>,
    does: Does,
}

/// What an unnamed statement does.
#[derive(Debug)]
enum Does {
    /// Next to nothing: see [`Facts::PLAIN_SELECT`].
    PlainSelect,
    Other(Box<Facts>),
}

impl Does {
    fn facts(&self) -> &Facts {
        static PLAIN: Facts = Facts::PLAIN_SELECT;
        match self {
            Self::PlainSelect => &PLAIN,
            Self::Other(facts) => facts,
        }
    }
}

/// Allocations to use again.
#[derive(Debug, Default)]
struct Spare {
    frame: Vec<u8>,
    facts: Option<Box<Facts>>,
}

impl Spare {
    fn frame(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut kept = std::mem::take(&mut self.frame);
        kept.clear();
        kept.extend_from_slice(frame);
        kept
    }

    fn facts(&mut self, facts: Facts) -> Box<Facts> {
        match self.facts.take() {
            Some(mut kept) => {
                *kept = facts;
                kept
            }
            None => Box::new(facts),
        }
    }

    /// Keeps the allocation, and nothing that it was for.
    fn keep(&mut self, does: Does) {
        if let Does::Other(mut facts) = does {
            *facts = Facts::PLAIN_SELECT;
            self.facts = Some(facts);
        }
    }
}

/// Who runs the unnamed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnnamedKind {
    /// The server.
    #[default]
    Forwarded,
    /// We do: it deallocates a statement that the server knows under another name.
    Deallocate,
}

impl Names {
    /// For the session with this number.
    pub fn of_session(session: u64) -> Self {
        Self { session, ..Self::default() }
    }

    /// Whose the unnamed statement is, for the backend that has it.
    #[inline]
    pub fn owner(&self) -> UnnamedOwner {
        UnnamedOwner { session: self.session, serial: self.unnamed.serial }
    }

    /// What the unnamed statement does.
    pub fn unnamed_facts(&self) -> Option<&Facts> {
        self.unnamed.definition.as_ref().map(|definition| definition.does.facts())
    }

    /// The statement of a name.
    #[inline]
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.get(name)
    }

    /// Gives a statement a name; false when there are too many.
    pub fn insert(&mut self, name: &[u8], statement: Arc<Statement>) -> bool {
        if self.named.len() >= NAMED_LIMIT {
            return false;
        }
        self.named.insert(name.into(), statement);
        true
    }

    /// Takes a name away.
    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        self.named.remove(name)
    }

    /// What this entry stands for does not happen: the name that it gives or takes away is as before. Of several the last
    /// comes first.
    pub fn undo(&mut self, owed: &Owed) {
        match owed {
            Owed::Parse(Parsed::Named(name, id) | Parsed::Again(name, id))
            | Owed::ParseKnown(Parsed::Named(name, id))
                if self.get(name).is_some_and(|statement| statement.id == *id) =>
            {
                self.named.remove(name);
            }
            Owed::CloseKnown(name, statement) => drop(self.insert(name, Arc::clone(statement))),
            _ => {}
        }
    }

    /// Notes that the backend gets a statement under the application's name; false if it has it already.
    pub fn lend(&mut self, name: &[u8]) -> bool {
        self.lent.insert(name.into())
    }

    /// Whether the backend has a statement under this name; from now on it has not.
    pub fn take_back(&mut self, name: &[u8]) -> bool {
        self.lent.remove(name)
    }

    /// Whether the session may have a statement or portal that we run.
    #[inline]
    pub fn has_local(&self) -> bool {
        !matches!(self.local, Local::Never)
    }

    /// From now on there may be statements that we run.
    pub fn expect_local(&mut self) {
        if !self.has_local() {
            self.local = Local::Named;
        }
    }

    /// The unnamed statement is one that we run.
    pub fn set_local_unnamed(&mut self, commands: Commands) {
        self.clear_unnamed();
        self.local = Local::Unnamed(commands);
    }

    /// What a statement does, if we run it.
    pub fn local(&self, name: &[u8]) -> Option<&Commands> {
        match &self.local {
            Local::Unnamed(commands) if name.is_empty() => Some(commands),
            Local::Never | Local::Named | Local::Unnamed(_) => {
                self.get(name)?.facts.commands.as_ref().filter(|commands| commands.len() == 1)
            }
        }
    }

    fn forget_local_unnamed(&mut self) {
        if matches!(self.local, Local::Unnamed(_)) {
            self.local = Local::Named;
        }
    }

    /// Takes all names away.
    pub fn clear(&mut self) {
        self.named = HashMap::default();
        self.lent = HashSet::default();
        self.clear_unnamed();
    }

    /// Notes a new unnamed statement, given as a whole Parse frame.
    pub fn set_unnamed(&mut self, frame: &[u8], facts: Facts) {
        let (frame, does) = (self.spare.frame(frame), Does::Other(self.spare.facts(facts)));
        self.replace_unnamed(Some(Definition { frame, does }));
    }

    /// As [`Names::set_unnamed`], for a plain SELECT while nothing is owed: the server cannot ignore its Parse, so nobody
    /// asks again for what was before.
    #[inline]
    pub fn set_unnamed_plain(&mut self, frame: &[u8]) {
        self.serials += 1;
        self.unnamed.serial = self.serials;
        match &mut self.unnamed.definition {
            Some(definition) => {
                definition.frame.clear();
                definition.frame.extend_from_slice(frame);
                self.spare.keep(std::mem::replace(&mut definition.does, Does::PlainSelect));
            }
            none => *none = Some(Definition { frame: self.spare.frame(frame), does: Does::PlainSelect }),
        }
    }

    /// Notes a new unnamed statement that is too long to keep: only the backend that has it can bind it.
    pub fn set_long_unnamed(&mut self) {
        self.replace_unnamed(None);
    }

    fn replace_unnamed(&mut self, definition: Option<Definition>) {
        self.serials += 1;
        self.forget_local_unnamed();
        self.unnamed_kind = UnnamedKind::Forwarded;
        self.unnamed_age = Age::New;
        let new = Unnamed { definition, serial: self.serials };
        self.before.push_back(std::mem::replace(&mut self.unnamed, new));
    }

    /// The exchange is sent.
    #[inline]
    pub fn exchange_ends(&mut self) {
        self.unnamed_age = Age::Old;
    }

    /// Whether an exchange before this one changes the unnamed statement, unless the server skips that.
    pub fn is_unnamed_in_doubt(&self) -> bool {
        self.unnamed_age == Age::Old && !self.before.is_empty()
    }

    /// The application closes its unnamed statement.
    pub fn close_unnamed(&mut self) {
        self.replace_unnamed(None);
    }

    /// The server has answered the oldest Parse or Close of the unnamed statement.
    pub fn unnamed_answered(&mut self) {
        if let Some(before) = self.before.pop_front() {
            self.keep(before);
        }
        if self.before.is_empty() {
            // The same memory each time, not all of it in turns.
            self.before.clear();
        }
    }

    /// The server ignored the oldest one: what follows it follows what was before it.
    pub fn unnamed_ignored(&mut self) {
        if self.before.len() > 1 {
            self.before.remove(1);
        } else if let Some(before) = self.before.pop_front() {
            self.unnamed = before;
        }
    }

    /// A Parse has failed, and has taken away what was before it.
    pub fn unnamed_failed(&mut self) {
        match self.before.front_mut() {
            Some(before) => before.definition = None,
            None => self.clear_unnamed(),
        }
    }

    /// Nothing that is not answered yet will be.
    pub fn forget_pending(&mut self) {
        self.before.clear();
        self.lent = HashSet::default();
    }

    /// The session has no unnamed statement any more.
    pub fn clear_unnamed(&mut self) {
        self.serials += 1;
        self.forget_local_unnamed();
        let none = Unnamed { definition: None, serial: self.serials };
        let before = std::mem::replace(&mut self.unnamed, none);
        self.keep(before);
        // Whatever the server ignores of what was sent before brings none back.
        self.before.iter_mut().for_each(|before| before.definition = None);
        self.unnamed_kind = UnnamedKind::Forwarded;
    }

    /// Keeps the allocation of an unnamed statement that is over, and nothing that it was.
    #[inline]
    fn keep(&mut self, over: Unnamed) {
        if let Some(definition) = over.definition {
            self.spare.frame = definition.frame;
            self.spare.keep(definition.does);
        }
    }

    /// The Parse frame of the unnamed statement; empty when there is none to send.
    pub fn unnamed(&self) -> &[u8] {
        self.unnamed.definition.as_ref().map(|definition| &*definition.frame).unwrap_or_default()
    }

    /// The text of the unnamed statement; empty when there is none that is kept.
    pub fn unnamed_text(&self) -> &[u8] {
        let body = self.unnamed().get(HEADER_LEN..).unwrap_or_default();
        Parse::read(body).map(|parse| parse.text).unwrap_or_default()
    }

    /// Gives memory back that a quiet session does not need.
    #[inline]
    pub fn shrink(&mut self) {
        let kept = self.unnamed.definition.as_mut().map(|definition| &mut definition.frame);
        for frame in kept.into_iter().chain([&mut self.spare.frame]) {
            if frame.capacity() > KEPT_UNNAMED {
                frame.shrink_to(KEPT_UNNAMED);
            }
        }
    }
}
