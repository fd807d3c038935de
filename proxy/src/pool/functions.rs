//! Which functions of a database are volatile: what decides the lane of a statement that calls functions that we do
//! not know by name.
//!
//! A name that is not known counts as volatile, and is looked up in `pg_proc` in the background, by a backend of the
//! pool; the next statement that calls it has the answer. In the steady state a look is one load and one hash per
//! name, without a lock or an allocation.
//!
//! An answer is good for [`FRESH`]; then it is still used while it is asked for again. DDL about functions
//! that passes through the sidecar makes all answers void at once ([`functions_changed`]).

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use hashbrown::HashMap;

use tidegate_layers::shed::Ask;

use super::{Pool, upstream};
use crate::backend::connection::Row;
use crate::clock;
use crate::exchange::facts::Callee;
use crate::sql::Lane;

/// How long an answer is good.
pub const FRESH: Duration = Duration::from_mins(5);
/// After a lookup that failed, the next one for the same name.
const RETRY: Duration = Duration::from_secs(5);
/// How long the server may take for the answer.
const DEADLINE: Duration = Duration::from_secs(1);
/// Names that are remembered per database; when there are more, the older half goes.
const NAMES_MAX: usize = 4096;
/// Names that wait for a lookup.
const WANTED_MAX: usize = 256;

/// Types are asked for as well, since `name (1)` may be one. Volatile, if any function of the name is: which overload a call means is not known from its text. What
/// `information_schema` and the like have is reached by a schema only.
const QUERY: &str = "\
SELECT n.nspname, p.proname, bool_or(p.provolatile = 'v') \
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
WHERE p.proname = ANY ($1::pg_catalog.name[]) GROUP BY 1, 2 \
UNION ALL \
SELECT n.nspname, t.typname, false \
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
WHERE t.typname = ANY ($1::pg_catalog.name[])";

static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Functions were created, altered or dropped, as far as we see that.
pub fn functions_changed() {
    GENERATION.fetch_add(1, Ordering::Release);
}

/// What is known of the functions of one database.
#[derive(Debug, Default)]
pub struct Functions {
    known: ArcSwap<Known>,
    wanted: Mutex<Wanted>,
}

#[derive(Debug, Default, Clone)]
struct Known {
    generation: u64,
    answers: HashMap<Callee, Answer, foldhash::fast::RandomState>,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    lane: Lane,
    /// When it is asked for again; on the clock.
    stale_at_ms: u64,
    since_ms: u64,
}

/// Names to look up, and whether somebody does.
#[derive(Debug, Default)]
struct Wanted {
    names: HashSet<Callee>,
    looking: Looking,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Looking {
    #[default]
    Nobody,
    Somebody,
}

impl Functions {
    /// The lane of a statement that is a read unless one of these functions is volatile. `pool` answers what is
    /// not known. Must be called inside a runtime.
    #[inline]
    pub fn lane(&self, callees: &[Callee], pool: &Arc<Pool>) -> Lane {
        let known = self.known.load();
        let current = known.generation == GENERATION.load(Ordering::Acquire);
        let mut lane = Lane::Read;
        let mut missing = false;
        for callee in callees {
            let answer = known.answers.get(callee).filter(|_| current);
            lane = lane.max(answer.map_or(Lane::Write, |answer| answer.lane));
            missing |= answer.is_none_or(|answer| clock::now_ms() >= answer.stale_at_ms);
        }
        if missing {
            self.want(callees, pool);
        }
        lane
    }

    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn want(&self, callees: &[Callee], pool: &Arc<Pool>) {
        let known = self.known.load();
        let current = known.generation == GENERATION.load(Ordering::Acquire);
        let is_fresh = |callee: &&Callee| {
            let answer = known.answers.get(*callee);
            current && answer.is_some_and(|answer| clock::now_ms() < answer.stale_at_ms)
        };
        let mut wanted = self.lock();
        for callee in callees.iter().filter(|callee| !is_fresh(callee)) {
            if wanted.names.len() < WANTED_MAX && callee.can_be_asked() && !wanted.names.contains(callee) {
                wanted.names.insert(callee.clone());
            }
        }
        if wanted.looking == Looking::Nobody && !wanted.names.is_empty() {
            wanted.looking = Looking::Somebody;
            tokio::spawn(look_up(Arc::clone(pool)));
        }
    }

    /// The names that wait, or the end of the lookups.
    fn take_wanted(&self) -> Option<Vec<Callee>> {
        let mut wanted = self.lock();
        if wanted.names.is_empty() {
            wanted.looking = Looking::Nobody;
            return None;
        }
        Some(wanted.names.iter().cloned().collect())
    }

    /// Answers for these names; `None`: the server could not be asked.
    fn learn(&self, generation: u64, callees: &[Callee], found: Option<&[Function]>) {
        let now = clock::now_ms();
        let good_for = if found.is_some() { FRESH } else { RETRY };
        let stale_at_ms = now + clock::millis(good_for);
        self.known.rcu(|known| {
            let mut known = if known.generation == generation {
                Known::clone(known)
            } else {
                Known { generation, ..Known::default() }
            };
            for callee in callees {
                // Without an answer it is what it was.
                let before = known.answers.get(callee).map_or(Lane::Write, |answer| answer.lane);
                let lane = found.map_or(before, |found| lane_of(callee, found));
                known.answers.insert(callee.clone(), Answer { lane, stale_at_ms, since_ms: now });
            }
            known.shrink();
            known
        });
        let mut wanted = self.lock();
        for callee in callees {
            wanted.names.remove(callee);
        }
    }
}

impl Known {
    /// Forgets the older half when there is too much.
    fn shrink(&mut self) {
        if self.answers.len() <= NAMES_MAX {
            return;
        }
        let mut ages: Vec<u64> = self.answers.values().map(|answer| answer.since_ms).collect();
        let middle = ages.len() / 2;
        let (_, median, _) = ages.select_nth_unstable(middle);
        let median = *median;
        let mut left = NAMES_MAX / 2;
        self.answers.retain(|_, answer| {
            let keep = answer.since_ms >= median && left > 0;
            left -= usize::from(keep);
            keep
        });
    }
}

/// What `pg_proc` has under one schema and name.
#[derive(Debug)]
struct Function {
    schema: Vec<u8>,
    name: Vec<u8>,
    lane: Lane,
}

impl Function {
    fn read(row: Row) -> Option<Self> {
        let mut columns = row.into_iter().flatten();
        let (schema, name, volatile) = (columns.next()?, columns.next()?, columns.next()?);
        let lane = if volatile == b"f" { Lane::Read } else { Lane::Write };
        Some(Self { schema, name, lane })
    }

    fn is(&self, callee: &Callee) -> bool {
        *self.name == *callee.name && callee.schema.as_deref().is_none_or(|schema| *schema == *self.schema)
    }
}

/// The strongest of all functions that a call may mean. A name that is neither function nor type may become one at
/// any time, past us: it stays a write.
fn lane_of(callee: &Callee, found: &[Function]) -> Lane {
    found
        .iter()
        .filter(|function| function.is(callee))
        .map(|function| function.lane)
        .max()
        .unwrap_or(Lane::Write)
}

/// Answers what is wanted until nothing is. One at a time per database.
async fn look_up(pool: Arc<Pool>) {
    let functions = Arc::clone(&pool.functions);
    while let Some(callees) = functions.take_wanted() {
        let generation = GENERATION.load(Ordering::Acquire);
        let found = ask(&pool, &callees).await;
        functions.learn(generation, &callees, found.as_deref());
    }
}

/// # Cancel safety
/// Dropping it closes the backend.
async fn ask(pool: &Arc<Pool>, callees: &[Callee]) -> Option<Vec<Function>> {
    let mut lease = pool.acquire(Lane::Read, Ask::default(), upstream::current_worker()).await.ok()?;
    let names = array_of(callees);
    let asked = tokio::time::timeout(DEADLINE, lease.query_with(QUERY, &[&names])).await;
    match asked {
        Ok(Ok(rows)) => {
            lease.give_back();
            Some(rows.into_iter().filter_map(Function::read).collect())
        }
        Ok(Err(crate::backend::BackendError::Server(error))) => {
            tracing::warn!(code = %error.code, "pg_proc cannot be read; unknown functions count as volatile");
            lease.give_back();
            None
        }
        // An unknown position: dropping the lease closes the connection.
        Ok(Err(_)) | Err(_) => None,
    }
}

/// An array in text form.
fn array_of(callees: &[Callee]) -> String {
    let mut array = String::from("{");
    for callee in callees {
        if array.len() > 1 {
            array.push(',');
        }
        array.push('"');
        for &byte in &callee.name {
            if matches!(byte, b'"' | b'\\') {
                array.push('\\');
            }
            array.push(char::from(byte));
        }
        array.push('"');
    }
    array.push('}');
    array
}

/// The functions of all databases of an upstream that are in use.
#[derive(Debug, Default)]
pub struct FunctionsByDatabase(Mutex<HashMap<Box<str>, Weak<Functions>, foldhash::fast::RandomState>>);

impl FunctionsByDatabase {
    /// Those of one database, shared by its pools.
    pub fn of(&self, database: &str) -> Arc<Functions> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(functions) = all.get(database).and_then(Weak::upgrade) {
            return functions;
        }
        all.retain(|_, functions| functions.strong_count() > 0);
        let functions = Arc::default();
        all.insert(database.into(), Arc::downgrade(&functions));
        functions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callee(schema: Option<&str>, name: &str) -> Callee {
        Callee { schema: schema.map(|schema| schema.as_bytes().into()), name: name.as_bytes().into() }
    }

    fn function(schema: &str, name: &str, lane: Lane) -> Function {
        Function { schema: schema.as_bytes().to_vec(), name: name.as_bytes().to_vec(), lane }
    }

    #[test]
    fn any_function_that_a_call_may_mean_counts() {
        // Which overload runs is not known: a wrong "read" is the dangerous one.
        let found = [
            function("a", "f", Lane::Read),
            function("b", "f", Lane::Write),
            function("pg_catalog", "g", Lane::Read),
            function("public", "my_type", Lane::Read),
        ];
        let rows = [
            (callee(None, "f"), Lane::Write),
            (callee(Some("a"), "f"), Lane::Read),
            (callee(Some("b"), "f"), Lane::Write),
            (callee(Some("c"), "f"), Lane::Write),
            (callee(None, "g"), Lane::Read),
            (callee(None, "my_type"), Lane::Read),
            (callee(None, "nobody_knows"), Lane::Write),
        ];
        for (callee, wanted) in rows {
            assert_eq!(lane_of(&callee, &found), wanted, "{callee:?}");
        }
    }

    #[test]
    fn answers_are_bounded() {
        // Texts that are made up by a program would grow the map without end.
        let functions = Functions::default();
        let names: Vec<Callee> = (0..NAMES_MAX).map(|number| callee(None, &format!("f{number}"))).collect();
        functions.learn(0, &names, Some(&[]));
        functions.learn(0, &[callee(None, "one_more")], Some(&[]));

        let known = functions.known.load();

        assert!(known.answers.len() <= NAMES_MAX / 2 + 1, "{}", known.answers.len());
    }

    #[test]
    fn names_are_quoted_in_the_array() {
        // A name with a quote would end the element, and another function would be looked up.
        let names = [callee(None, "f"), callee(Some("s"), "a\"b\\c,{}")];

        assert_eq!(array_of(&names), r#"{"f","a\"b\\c,{}"}"#);
    }
}
