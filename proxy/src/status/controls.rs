//! What an operator may order, whichever way the order came. Each order is in the journal before it takes effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tidegate_layers::breaker::Force;

use crate::journal::{Decision, Kind, Subject};
use crate::pool::databases::Unchanged;
use crate::pool::{Pool, Routes};
use crate::server::Shared;
use crate::sql::Lane;

/// An order to the breakers of a lane, in the vocabulary of breakers: open refuses, closed lets through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// Decide by what is seen.
    #[default]
    Auto = 0,
    /// Refuse everything.
    Open = 1,
    /// Let everything through, whatever is seen.
    Closed = 2,
}

impl Order {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Open, Self::Closed];

    /// The word that stands in documents.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }

    /// The same for a breaker.
    const fn force(self) -> Force {
        match self {
            Self::Auto => Force::Auto,
            Self::Open => Force::Open,
            Self::Closed => Force::Closed,
        }
    }

    /// What it means for applications, to follow the name of the lane.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Auto => "the breaker decides by what it sees",
            Self::Open => "the breaker is held open: everything is refused until the order is taken back",
            Self::Closed => {
                "the breaker is held closed: everything is let through, even into a stall, until the order is \
                 taken back"
            }
        }
    }
}

/// The orders in force. They do not survive a restart.
#[derive(Debug, Default)]
pub struct Orders {
    lanes: [AtomicU8; Lane::ALL.len()],
}

impl Orders {
    const fn slot(&self, lane: Lane) -> &AtomicU8 {
        let [read, write] = &self.lanes;
        match lane {
            Lane::Read => read,
            Lane::Write => write,
        }
    }

    /// The order for a lane.
    pub fn of(&self, lane: Lane) -> Order {
        match self.slot(lane).load(Ordering::Relaxed) {
            1 => Order::Open,
            2 => Order::Closed,
            _ => Order::Auto,
        }
    }

    fn set(&self, lane: Lane, order: Order) {
        self.slot(lane).store(order as u8, Ordering::Relaxed);
    }

    /// Gives them to the breakers of all upstreams, those that are new included.
    pub fn apply(&self, routes: &Routes) {
        for upstream in &routes.upstreams() {
            for lane in Lane::ALL {
                upstream.guard.force(lane, self.of(lane).force());
            }
        }
    }
}

/// Who gives an order, for the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// Somebody with the token, over HTTP.
    Http,
    /// A user of the admin console.
    Console(Box<str>),
    /// Nobody: what was ordered is undone.
    Undone,
}

impl By {
    fn words(&self) -> String {
        match self {
            Self::Http => "over HTTP".to_owned(),
            Self::Console(user) => format!("by {user} at the admin console"),
            Self::Undone => "undone, since it could not be completed".to_owned(),
        }
    }
}

fn decision(from: &'static str, to: &'static str, database: Option<&str>, by: &By) -> Decision {
    let of = database.map_or_else(String::new, |name| format!("database \"{name}\", "));
    Decision::new(Kind::Operator).change(from, to).evidence(&format!("{of}{}", by.words()))
}

/// Orders the breakers of a lane; the last order holds. Breakers obey within their next look at the lane.
///
/// # Cancel safety
/// A drop before the record is settled leaves the record without its effect.
pub async fn order(shared: &Shared, lane: Lane, order: Order, by: &By) {
    let orders = &shared.board.orders;
    let subject = Subject { upstream: None, lane: Some(lane) };
    let record = decision(orders.of(lane).word(), order.word(), None, by).about(subject);
    shared.journal.record(record).settled().await;
    orders.set(lane, order);
    orders.apply(&shared.routes);
}

/// No session of a database, or of any, gets a backend until it is resumed. What runs goes on; backends are closed
/// as they become idle.
///
/// # Errors
/// It is paused already.
///
/// # Cancel safety
/// As [`order`].
pub async fn pause(shared: &Arc<Shared>, database: Option<&str>, by: &By) -> Result<(), Unchanged> {
    let paused = match database {
        Some(_) => is_any_paused(shared, database),
        None => shared.databases.are_paused(),
    };
    if paused {
        return Err(Unchanged);
    }
    shared.journal.record(decision("running", "paused", database, by)).settled().await;
    shared.databases.pause(database)?;
    // At once, however busy the worker is that closes the backends.
    for pool in pools(shared, database) {
        pool.obey_all();
    }
    tell_pools(shared, database, Pool::close_backends);
    Ok(())
}

/// Ends a pause.
///
/// # Errors
/// It is not paused.
///
/// # Cancel safety
/// As [`order`].
pub async fn resume(shared: &Arc<Shared>, database: Option<&str>, by: &By) -> Result<(), Unchanged> {
    if !is_any_paused(shared, database) {
        return Err(Unchanged);
    }
    shared.journal.record(decision("paused", "running", database, by)).settled().await;
    shared.databases.resume(database)?;
    tell_pools(shared, database, Pool::resume);
    Ok(())
}

/// Ends a pause that could not be completed, if nobody else has ended it. Waits for nothing: who asked for it may be
/// gone.
pub fn undo_pause(shared: &Arc<Shared>, database: Option<&str>) {
    if shared.databases.resume(database).is_ok() {
        shared.journal.record(decision("paused", "running", database, &By::Undone)).forget();
        tell_pools(shared, database, Pool::resume);
    }
}

fn is_any_paused(shared: &Shared, database: Option<&str>) -> bool {
    let databases = &shared.databases;
    match database {
        Some(name) => databases.find(name).is_some_and(|database| database.is_paused()),
        None => databases.are_paused() || databases.all().iter().any(|database| database.is_paused()),
    }
}

/// Idle backends are replaced at once, others when their transaction ends.
///
/// # Cancel safety
/// As [`order`].
pub async fn reconnect(shared: &Arc<Shared>, database: Option<&str>, by: &By) {
    note(shared, "reconnecting", database, by).await;
    tell_pools(shared, database, Pool::close_backends);
}

/// Puts any other order into the journal, before it is carried out.
///
/// # Cancel safety
/// As [`order`].
pub async fn note(shared: &Shared, to: &'static str, database: Option<&str>, by: &By) {
    shared.journal.record(decision("", to, database, by)).settled().await;
}

/// The pools of a database, or all.
pub fn pools(shared: &Shared, database: Option<&str>) -> Vec<Arc<Pool>> {
    let all = shared.routes.tended();
    let pools = all.iter().flat_map(|upstream| upstream.pools());
    pools.filter(|pool| database.is_none_or(|database| &*pool.key.database == database)).collect()
}

/// Has a worker do something with these pools: their connections live there.
pub fn tell_pools(shared: &Arc<Shared>, database: Option<&str>, what: fn(&Arc<Pool>)) {
    let pools = pools(shared, database);
    shared.least_loaded().handle.spawn(async move { pools.iter().for_each(what) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_order_of_a_lane_holds_and_touches_no_other() {
        // Refusing reads because somebody closed the door for writes would make the outage total.
        let orders = Orders::default();

        for order in Order::ALL {
            orders.set(Lane::Write, order);

            assert_eq!(orders.of(Lane::Write), order);
            assert_eq!(orders.of(Lane::Read), Order::Auto);
        }
    }
}
