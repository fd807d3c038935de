//! Which upstream serves what: the topology in force, replaced as a whole and read at each checkout.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::Upstream;
use super::hold::Hold;
use super::opening::WritePace;
use crate::config::{self, AfterWrite, Config, ReadFrom, Roles};
use crate::exchange::Cause;
use crate::exchange::facts::Reach;
use crate::guard::Duty;
use crate::outcome::Resolver;
use crate::sql::Lane;
use crate::upstream::topology::{Health, Role, Topology, UpstreamView, Writes};
use crate::upstream::{LastWrite, ReadPolicy, SessionView, WhyNot, route};

/// What of the configuration decides where to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Where reads go.
    pub read: ReadPolicy,
    /// How long writes wait for a primary, and how many of them.
    pub hold: config::Hold,
}

impl Policy {
    /// From the configuration.
    pub fn of(config: &Config) -> Self {
        Self { read: ReadPolicy::from(&config.read), hold: config.hold.clone() }
    }
}

/// Who says what the upstreams are. One alone is the primary: there is nobody to fail over to.
pub fn roles_of(config: &Config) -> Roles {
    if config.cluster.upstreams.len() > 1 { config.cluster.roles } else { Roles::Static }
}

/// All that a checkout looks at.
#[derive(Debug)]
struct Map {
    upstreams: Vec<Arc<Upstream>>,
    topology: Arc<Topology>,
    /// The upstream of each view in the topology; `None` for one that is being added or removed.
    served_by: Vec<Option<Arc<Upstream>>>,
    policy: Policy,
    asked: Asked,
    /// Whether and how the primary was lost.
    lost: Option<Loss>,
}

/// How there came to be no primary.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// It was there, and then it was not, as in a failover.
    Sudden(Instant),
    /// Writes were refused for a stall before: whoever has been told that does not begin to wait.
    Stalled(Instant),
}

impl Loss {
    /// Of the primary that there was, if any.
    fn of(primary: Option<&Arc<Upstream>>) -> Self {
        let now = Instant::now();
        if primary.is_some_and(stalls) { Self::Stalled(now) } else { Self::Sudden(now) }
    }

    const fn at(self) -> Instant {
        match self {
            Self::Sudden(at) | Self::Stalled(at) => at,
        }
    }
}

/// Whether anything is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// One upstream that takes everything.
    Alone,
    /// Some upstream was not asked yet.
    NotAll,
    All,
}

impl Map {
    fn new(
        upstreams: Vec<Arc<Upstream>>,
        topology: Arc<Topology>,
        policy: Policy,
        before: Option<&Self>,
    ) -> Self {
        let by_name = |view: &UpstreamView| upstreams.iter().find(|upstream| upstream.name == view.name);
        let served_by: Vec<_> = topology.upstreams().iter().map(|view| by_name(view).cloned()).collect();
        let unasked = topology.upstreams().iter().any(|view| view.health == Health::Unknown);
        let asked = match upstreams.len() {
            1 => Asked::Alone,
            _ if unasked || topology.upstreams().is_empty() => Asked::NotAll,
            _ => Asked::All,
        };
        let known = before.and_then(|before| before.lost);
        let lose = || known.unwrap_or_else(|| Loss::of(before.and_then(Self::primary)));
        let lost = topology.primary().is_none().then(lose);
        Self { upstreams, topology, served_by, policy, asked, lost }
    }

    fn of(&self, view: &UpstreamView) -> Option<&Arc<Upstream>> {
        let index = self.topology.upstreams().iter().position(|other| other.id == view.id)?;
        self.served_by.get(index)?.as_ref()
    }

    fn view(&self, upstream: &Upstream) -> Option<&UpstreamView> {
        self.topology.upstreams().iter().find(|view| view.name == upstream.name)
    }

    fn primary(&self) -> Option<&Arc<Upstream>> {
        self.of(self.topology.primary()?)
    }

    fn is_primary(&self, upstream: &Arc<Upstream>) -> bool {
        self.primary().is_some_and(|primary| Arc::ptr_eq(primary, upstream))
    }

    /// Only the primary is to take writes; a standby is not ill for refusing them.
    fn brief_guards(&self) {
        let others = if self.primary().is_some() { Duty::Reads } else { Duty::Vacant };
        for upstream in &self.upstreams {
            let is_to_write = self.asked == Asked::Alone || self.is_primary(upstream);
            upstream.guard.assign(if is_to_write { Duty::Writes } else { others });
        }
    }

    /// The first that is not known to be unfit, while roles are not known.
    fn first(&self) -> Option<&Arc<Upstream>> {
        let fits = |upstream: &&Arc<Upstream>| {
            self.view(upstream).is_none_or(|view| view.fenced.is_none() && view.health != Health::Down)
        };
        self.upstreams.iter().find(fits).or(self.upstreams.first())
    }

    /// Another upstream for a read, where the breaker of the chosen one is open; the chosen one if there is none.
    #[cold]
    fn around<'a>(
        &'a self,
        chosen: &'a Arc<Upstream>,
        policy: &ReadPolicy,
        session: &SessionView,
    ) -> &'a Arc<Upstream> {
        let bound = policy.after_write != AfterWrite::Any
            && session.last_write.is_some_and(|write| {
                session.now.saturating_duration_since(write.at) < policy.after_write_for
            });
        let standbys = self.topology.standbys(policy.max_lag).filter(|_| !bound);
        let standby = standbys
            .filter_map(|view| self.of(view))
            .filter(|upstream| admits(upstream))
            .min_by_key(|upstream| upstream.leased());
        let primary = self.primary().filter(|primary| policy.from != ReadFrom::Standby && admits(primary));
        standby.or(primary).unwrap_or(chosen)
    }

    /// The primary, if its breaker refuses writes.
    fn refusing(&self) -> Option<&Arc<Upstream>> {
        self.primary().filter(|primary| is_refusing(primary))
    }

    /// A write whose position is not known is before what the primary said when it was asked later.
    fn located(&self, write: LastWrite) -> LastWrite {
        let said = self.topology.primary().and_then(|view| view.observed).filter(|(_, at)| *at > write.at);
        LastWrite { lsn: write.lsn.or(said.map(|(seen, _)| seen.lsn)), ..write }
    }

    fn route(&self, reach: Reach, session: &SessionView) -> Result<&Arc<Upstream>, WhyNot> {
        if self.asked == Asked::Alone {
            return self.upstreams.first().ok_or(NOT_YET);
        }
        let (lane, policy) = match reach {
            Reach::Primary => (Lane::Write, self.policy.read),
            Reach::PreferPrimary => (Lane::Read, ReadPolicy { from: ReadFrom::Primary, ..self.policy.read }),
            Reach::Anywhere => (Lane::Read, self.policy.read),
        };
        let outstanding = |id| {
            let views = self.topology.upstreams().iter().zip(&self.served_by);
            let upstream =
                views.filter(|(view, _)| view.id == id).find_map(|(_, upstream)| upstream.as_ref());
            upstream.map_or(usize::MAX, |upstream| upstream.leased())
        };
        let session =
            SessionView { last_write: session.last_write.map(|write| self.located(write)), ..*session };
        match route(&self.topology, lane, &policy, &session, outstanding) {
            Ok(id) => {
                let view = self.topology.get(id);
                let chosen = view.and_then(|view| self.of(view)).ok_or(NOT_YET)?;
                let stalls = lane == Lane::Read && !admits(chosen);
                Ok(if stalls { self.around(chosen, &policy, &session) } else { chosen })
            }
            // Its breaker knows more.
            Err(why @ WhyNot::Unproven { failed: Some(_) }) => self.refusing().ok_or(why),
            // Somebody has to be the first to log in.
            Err(why) if self.asked == Asked::NotAll && lane == Lane::Read => self.first().ok_or(why),
            Err(why) => Err(why),
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Routes {
    map: ArcSwap<Map>,
    /// Held by whoever makes a map from the one before: reloads and topologies come from different threads.
    changing: Mutex<()>,
    /// Upstreams that are configured no more and still have backends.
    retired: Mutex<Vec<Arc<Upstream>>>,
    epoch: AtomicU64,
    /// Changes from one checkout to the next.
    turn: AtomicUsize,
    /// Writes that wait for a primary.
    pub hold: Hold,
    /// Whether a primary took writes before.
    opened: AtomicBool,
    /// Finds out what became of commits that broke.
    pub resolver: Resolver,
}

impl Routes {
    /// Nothing is known of these yet.
    pub fn new(upstreams: Vec<Arc<Upstream>>, policy: Policy) -> Self {
        let map = Map::new(upstreams, Arc::new(Topology::empty()), policy, None);
        map.brief_guards();
        Self {
            map: ArcSwap::from_pointee(map),
            changing: Mutex::default(),
            retired: Mutex::default(),
            epoch: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
            hold: Hold::default(),
            opened: AtomicBool::new(false),
            resolver: Resolver::default(),
        }
    }

    /// Replaces all upstreams, and the policy; sessions change over at their next checkout.
    pub fn replace(&self, upstreams: Vec<Arc<Upstream>>, policy: Policy) {
        let _alone = self.lock_changing();
        let old = self.map.load_full();
        self.map.store(Arc::new(Map::new(upstreams, Arc::clone(&old.topology), policy, Some(&old))));
        self.changed();
        let current = self.map.load();
        current.brief_guards();
        let gone =
            old.upstreams.iter().filter(|old| !current.upstreams.iter().any(|new| Arc::ptr_eq(old, new)));
        self.lock_retired().extend(gone.inspect(|upstream| upstream.keep_nothing_ready()).map(Arc::clone));
    }

    /// Puts a topology in force. All sessions follow it from their next checkout on, whoever waits at once.
    pub fn publish(&self, topology: Arc<Topology>) {
        let _alone = self.lock_changing();
        let old = self.map.load_full();
        let new = Arc::new(Map::new(old.upstreams.clone(), topology, old.policy.clone(), Some(&old)));
        if !differs(&old.topology, &new.topology) {
            return self.map.store(new);
        }
        let known =
            || new.upstreams.iter().filter_map(|upstream| new.view(upstream).map(|view| (upstream, view)));
        for (upstream, view) in known() {
            upstream.enter_epoch(old.view(upstream), view);
        }
        self.map.store(Arc::clone(&new));
        self.changed();
        new.brief_guards();
        let opens = new.topology.writes() == Writes::Open && old.topology.writes() != Writes::Open;
        let anew = opens && self.opened.swap(true, Ordering::AcqRel);
        for (upstream, view) in known() {
            if anew && new.is_primary(upstream) {
                // What its lane met before was under another primary, or in this one's former life.
                upstream.begin_ramp();
            }
            let before = old.view(upstream);
            let was_gone = |before: &UpstreamView| {
                view.epoch > before.epoch && matches!(before.health, Health::Down | Health::Proving)
            };
            if before.is_some_and(was_gone) && view.health.is_usable() {
                // It has proven itself more than a breaker asks for.
                upstream.guard.breaker(Lane::Read).renew();
            }
            upstream.send_away(before, view);
        }
        if new.topology.writes() != old.topology.writes() {
            self.hold.release();
        }
    }

    fn changed(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    fn lock_changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_retired(&self) -> MutexGuard<'_, Vec<Arc<Upstream>>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Upstreams that still need looking after: all that are configured, and those that were.
    pub fn tended(&self) -> Vec<Arc<Upstream>> {
        let mut all = self.map.load().upstreams.clone();
        all.extend(self.lock_retired().iter().map(Arc::clone));
        all
    }

    /// Closes what retired upstreams have idle, and forgets those that have nothing.
    pub fn wind_down(&self) {
        self.lock_retired().retain(|upstream| {
            let pools = upstream.pools();
            for pool in &pools {
                pool.reconnect();
                pool.prepare_for(WritePace::Steady);
                pool.sweep_idle();
            }
            let needed = upstream.open() > 0 || pools.iter().any(|pool| pool.state().waiting > 0);
            if !needed {
                upstream.retire();
            }
            needed
        });
    }

    /// Counts changes of what serves.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether there is one upstream, which takes everything.
    pub fn has_one(&self) -> bool {
        self.map.load().asked == Asked::Alone
    }

    /// The upstream for an exchange of a session.
    ///
    /// # Errors
    /// There is none now.
    #[inline]
    pub fn route(
        &self,
        reach: Reach,
        last_write: Option<LastWrite>,
        now: Instant,
    ) -> Result<Arc<Upstream>, WhyNot> {
        let map = self.map.load();
        let turn = if map.asked == Asked::Alone { 0 } else { self.turn.fetch_add(1, Ordering::Relaxed) };
        map.route(reach, &SessionView { now, last_write, turn }).cloned()
    }

    /// Where an exchange of a session that just came would go first, for those who only look: it takes nobody's turn.
    ///
    /// # Errors
    /// There is no such upstream now.
    pub fn look(&self, reach: Reach) -> Result<Arc<Upstream>, WhyNot> {
        let session = SessionView { now: Instant::now(), last_write: None, turn: 0 };
        self.map.load().route(reach, &session).cloned()
    }

    /// Whether an exchange may be sent to this upstream, which has served the session until now.
    #[inline]
    pub fn may_stay(&self, upstream: &Arc<Upstream>, reach: Reach) -> bool {
        let map = self.map.load();
        map.asked == Asked::Alone
            || reach == Reach::Anywhere
            || map.primary().is_some_and(|primary| Arc::ptr_eq(primary, upstream))
    }

    /// Why nobody may write, not even where a transaction is open that has written: several servers take writes.
    pub fn no_writes(&self) -> Option<WhyNot> {
        let is_split = self.map.load().topology.writes() == Writes::SplitBrain;
        is_split.then_some(WhyNot::SplitBrain)
    }

    /// Until when a write that comes now may wait for a primary, and with how many others.
    ///
    /// Where there is none the time counts from its loss. Counted from each write it would be waited out again and
    /// again in an outage that lasts, by sessions that could be told at once. After a stall nobody waits.
    pub fn hold_policy(&self, now: Instant) -> (Instant, usize) {
        let map = self.map.load();
        let hold = &map.policy.hold;
        let until = match map.lost {
            None => now + hold.window,
            Some(Loss::Sudden(at)) => at + hold.window,
            Some(Loss::Stalled(_)) => now,
        };
        (until, hold.max)
    }

    /// Since when there has been no primary, while there is none.
    pub fn lost_since(&self) -> Option<SystemTime> {
        let lost = self.map.load().lost?;
        SystemTime::now().checked_sub(lost.at().elapsed())
    }

    /// The primary; where none is known, the first upstream that may be one.
    pub fn primary(&self) -> Arc<Upstream> {
        let map = self.map.load();
        let primary = map.primary().or_else(|| map.first());
        primary.map_or_else(|| unreachable!("there is at least one upstream"), Arc::clone)
    }

    /// The server that has, or has not, what was committed at `origin`: the primary. Where none is known it is `origin`
    /// itself, unless others have gone on without it.
    pub fn heir(&self, origin: &Arc<Upstream>) -> Option<Arc<Upstream>> {
        let map = self.map.load();
        let fenced = || map.view(origin).is_some_and(|view| view.fenced.is_some());
        map.primary().or_else(|| (!fenced()).then_some(origin)).map(Arc::clone)
    }

    /// Upstreams that may let an application in, best first.
    pub fn for_login(&self) -> Vec<Arc<Upstream>> {
        let map = self.map.load();
        let session = SessionView { now: Instant::now(), last_write: None, turn: 0 };
        let best = map.route(Reach::PreferPrimary, &session).ok().cloned();
        let mut all: Vec<_> = best.into_iter().collect();
        for upstream in &map.upstreams {
            let fenced = map.view(upstream).is_some_and(|view| view.fenced.is_some());
            if !fenced && !all.iter().any(|other| Arc::ptr_eq(other, upstream)) {
                all.push(Arc::clone(upstream));
            }
        }
        all
    }

    /// All upstreams, in the order of the configuration.
    pub fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.map.load().upstreams.clone()
    }

    /// The topology in force.
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.map.load().topology)
    }

    /// What is known of an upstream.
    pub fn view(&self, upstream: &Upstream) -> Option<UpstreamView> {
        self.map.load().view(upstream).cloned()
    }

    /// Its role in a word. One upstream alone is the primary.
    pub fn role(&self, upstream: &Upstream) -> Option<&'static str> {
        let map = self.map.load();
        match map.asked {
            Asked::Alone => Some(Role::Primary.word()),
            Asked::NotAll | Asked::All => map.view(upstream).and_then(|view| view.role).map(Role::word),
        }
    }
}

/// A server that is being added or removed at this moment.
const NOT_YET: WhyNot = WhyNot::NoPrimary { cause: Cause::Unknown };

/// Whether its breaker refuses writes.
fn is_refusing(upstream: &Arc<Upstream>) -> bool {
    !upstream.guard.phase(Lane::Write).admits()
}

/// Whether they are refused for something other than that it was told to take none: that is how a switchover begins.
fn stalls(upstream: &Arc<Upstream>) -> bool {
    let standing = upstream.guard.standing(Lane::Write);
    let cause = standing.cause.as_ref().map(|found| found.cause);
    is_refusing(upstream) && !matches!(cause, Some(Cause::ReadOnly | Cause::InRecovery))
}

/// Whether its breaker lets reads through.
#[inline]
fn admits(upstream: &Arc<Upstream>) -> bool {
    upstream.guard.phase(Lane::Read).admits()
}

/// Whether anything changed that decides where something goes.
fn differs(old: &Topology, new: &Topology) -> bool {
    let key = |view: &UpstreamView| (view.id, view.role, view.epoch, view.health, view.fenced);
    old.epoch() != new.epoch()
        || old.writes() != new.writes()
        || old.primary().map(|view| view.id) != new.primary().map(|view| view.id)
        || !old.upstreams().iter().map(key).eq(new.upstreams().iter().map(key))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_layers::breaker::Phase;
    use tidegate_layers::shed::Ask;
    use tidegate_tests::wait_until;
    use tokio::runtime::Handle;
    use tokio::time::sleep;

    use super::super::tests::{config, pool, pool_within, put};
    use super::super::{Lease, Pool};
    use super::*;
    use crate::config::{Password, Sources};
    use crate::exchange::Diagnosis;
    use crate::upstream::{Epoch, UpstreamId};

    const SOON: Duration = Duration::from_secs(10);

    fn policy() -> Policy {
        let upstreams = vec![Password::new("127.0.0.1:1".to_owned())];
        Policy::of(&Config::load(&Sources { upstreams, ..Sources::default() }).unwrap())
    }

    /// What is known of the only upstream.
    fn known(pool: &Pool, role: Option<Role>, epoch: u64, health: Health) -> Arc<Topology> {
        let view = UpstreamView {
            id: UpstreamId(0),
            address: pool.upstream.connector().address.clone(),
            name: Arc::clone(&pool.upstream.name),
            role,
            epoch: Epoch(epoch),
            health,
            cause: None,
            fenced: None,
            lag: None,
            observed: None,
        };
        let primary = (role == Some(Role::Primary)).then_some(view.id);
        Arc::new(Topology::new(view.epoch, vec![view], primary, Writes::Open))
    }

    /// How many of two idle backends outlive the second of these.
    fn outlive(before: (Option<Role>, Health), after: (Option<Role>, Health)) -> usize {
        let pool = pool();
        let _servers = [1, 2].map(|process_id| put(&pool, process_id));
        let routes = Routes::new(vec![Arc::clone(&pool.upstream)], policy());
        routes.publish(known(&pool, before.0, 0, before.1));
        assert_eq!(pool.state().idle, 2);
        routes.publish(known(&pool, after.0, 1, after.1));
        pool.state().idle
    }

    #[tokio::test]
    async fn backends_outlive_the_first_election_and_no_other_change() {
        // Seen: the first change of a standby was taken for the first election. When its name led to a new machine the
        // idle backends went on answering reads from the old one.
        const STANDBY: Option<Role> = Some(Role::Standby);

        assert_eq!(outlive((None, Health::Up), (Some(Role::Primary), Health::Up)), 2, "first election");
        assert_eq!(outlive((STANDBY, Health::Up), (None, Health::Unknown)), 0, "moved");
        assert_eq!(outlive((STANDBY, Health::Proving), (STANDBY, Health::Up)), 0, "admitted again");
        assert_eq!(outlive((STANDBY, Health::Up), (Some(Role::Primary), Health::Up)), 0, "promoted");
    }

    /// How long a write may wait for a primary that was lost just now, after its writes were refused for this.
    async fn held_after(found: Option<Cause>) -> Duration {
        let pool = pool();
        let guard = &pool.upstream.guard;
        let routes = Routes::new(vec![Arc::clone(&pool.upstream)], policy());
        pool.upstream.watch(&Handle::current(), &Handle::current());
        routes.publish(known(&pool, Some(Role::Primary), 1, Health::Up));
        if let Some(cause) = found {
            guard.breaker(Lane::Write).report(Arc::new(Diagnosis::of(cause)));
        }
        wait_until(SOON, "they are refused", || is_refusing(&pool.upstream) == found.is_some()).await;

        routes.publish(known(&pool, None, 2, Health::Down));

        assert_eq!(guard.duty(), Duty::Writes, "it is the only one that is configured");
        let now = Instant::now();
        let (until, _) = routes.hold_policy(now);
        routes.publish(known(&pool, None, 3, Health::Proving));
        assert_eq!(routes.hold_policy(now).0, until, "one outage, one wait");
        until - now
    }

    #[tokio::test]
    async fn writes_wait_for_the_end_of_a_failover_and_not_of_a_stall() {
        // Seen: a primary that could not be reached. For a second its writes were refused at once; then it was called lost,
        // and they hung for up to 1.5 s each.
        for switched in [None, Some(Cause::ReadOnly), Some(Cause::InRecovery)] {
            assert!(held_after(switched).await > Duration::from_secs(1), "{switched:?}");
        }
        for stalled in [Cause::Unreachable, Cause::Frozen, Cause::SyncStandby] {
            assert_eq!(held_after(Some(stalled)).await, Duration::ZERO, "{stalled:?}");
        }
    }

    #[tokio::test]
    async fn the_first_election_is_no_recovery_of_reads() {
        // Seen: at every other start the last server to answer had its reads let in by the ramp, two of twenty at first.
        let pool = pool();
        let routes = Routes::new(vec![Arc::clone(&pool.upstream)], policy());
        pool.upstream.watch(&Handle::current(), &Handle::current());
        let guard = &pool.upstream.guard;

        routes.publish(known(&pool, None, 0, Health::Unknown));
        routes.publish(known(&pool, Some(Role::Primary), 1, Health::Up));
        sleep(Duration::from_millis(300)).await;
        // Nobody is there; it may suspect that by now.
        assert!(matches!(guard.phase(Lane::Read), Phase::Closed | Phase::Suspect));

        // One that was gone is careful.
        routes.publish(known(&pool, None, 2, Health::Down));
        routes.publish(known(&pool, Some(Role::Primary), 3, Health::Up));
        let ramps = || matches!(guard.phase(Lane::Read), Phase::Ramp { .. });
        wait_until(SOON, "reads are let in by the ramp", ramps).await;
    }

    #[tokio::test]
    async fn those_who_waited_for_a_primary_meet_its_ramp() {
        // Seen in review: they were let go at once, and the breaker heard of the new primary a moment later. Up to 64 writes
        // met caches that were cold.
        let pool = pool_within(|limits| limits.size = 20);
        let routes = Routes::new(vec![Arc::clone(&pool.upstream)], policy());
        let admits = || {
            let _servers: Vec<_> = (1..=20).map(|process_id| put(&pool, process_id)).collect();
            let one = |_| pool.acquire_at_once(Lane::Write, &Ask::default(), Instant::now(), 0).ok();
            let leases: Vec<_> = (0..20).map_while(one).collect();
            let admitted = leases.len();
            leases.into_iter().for_each(Lease::give_back);
            admitted
        };
        routes.publish(known(&pool, Some(Role::Primary), 1, Health::Up));
        assert_eq!(admits(), 14, "seven tenths");
        routes.publish(Arc::new(Topology::new(Epoch(2), vec![], None, Writes::NoPrimary)));

        // Nobody watches the breaker in this test: it never hears of it.
        routes.publish(known(&pool, Some(Role::Primary), 3, Health::Up));

        assert_eq!(admits(), 2);
    }

    #[tokio::test]
    async fn writes_are_expected_of_the_primary_and_where_there_is_none_of_nobody() {
        // One that is not asked because another took over is of no concern; one that is not asked because nobody did has
        // not recovered.
        let pools = [pool(), pool()];
        let upstreams: Vec<_> = pools.iter().map(|pool| Arc::clone(&pool.upstream)).collect();
        let routes = Routes::new(upstreams.clone(), policy());
        let duties = || upstreams.iter().map(|upstream| upstream.guard.duty()).collect::<Vec<_>>();
        let topology = |primary| {
            let one = known(&pools[0], primary, 1, Health::Up);
            let other =
                UpstreamView { id: UpstreamId(1), name: Arc::from("another"), ..one.upstreams()[0].clone() };
            let primary = primary.map(|_| UpstreamId(0));
            Arc::new(Topology::new(Epoch(1), vec![one.upstreams()[0].clone(), other], primary, Writes::Open))
        };

        routes.publish(topology(Some(Role::Primary)));
        assert_eq!(duties(), [Duty::Writes, Duty::Reads]);

        routes.publish(topology(None));
        assert_eq!(duties(), [Duty::Vacant, Duty::Vacant]);
    }

    #[tokio::test]
    async fn what_watches_a_removed_upstream_ends_though_a_session_has_not_moved_on() {
        // Seen: a server that a reload had removed was probed for ever, in the end with writes; and what an idle
        // session held of it was never freed.
        let [removed, kept] = [pool(), pool()];
        let upstreams = [&removed, &kept].map(|pool| Arc::clone(&pool.upstream));
        let routes = Routes::new(upstreams.to_vec(), policy());
        removed.upstream.watch(&Handle::current(), &Handle::current());
        drop(upstreams);

        routes.replace(vec![Arc::clone(&kept.upstream)], policy());
        routes.wind_down();

        let ended = || Handle::current().metrics().num_alive_tasks() == 0;
        wait_until(SOON, "nobody watches it", ended).await;
        let upstream = Arc::downgrade(&removed.upstream);
        drop(removed);
        assert!(upstream.upgrade().is_none());
    }

    #[tokio::test]
    async fn a_reload_and_a_topology_at_the_same_time_are_both_in_force() {
        // Either was lost now and then: the old servers were back after a reload, or a lost primary after a failover.
        const TIMES: usize = 20_000;
        let [first, second] = [pool(), pool()];
        let routes = Routes::new(vec![Arc::clone(&first.upstream)], policy());
        let topologies = [Health::Up, Health::Unsure].map(|health| known(&first, None, 0, health));
        let policy = policy();

        std::thread::scope(|scope| {
            scope.spawn(|| {
                for topology in topologies.iter().cycle().take(TIMES) {
                    routes.publish(Arc::clone(topology));
                    assert!(Arc::ptr_eq(&routes.topology(), topology), "a topology was lost");
                }
            });
            for pool in [&first, &second].into_iter().cycle().take(TIMES) {
                routes.replace(vec![Arc::clone(&pool.upstream)], policy.clone());
                assert!(Arc::ptr_eq(&routes.upstreams()[0], &pool.upstream), "a reload was lost");
            }
        });
    }

    #[tokio::test]
    async fn nothing_is_kept_ready_at_a_server_that_is_configured_no_more() {
        // Whatever is closed there would be opened again four times a second, for as long as one session has a backend.
        let leaving = pool_within(|limits| limits.min_idle = 2);
        let routes = Routes::new(vec![Arc::clone(&leaving.upstream)], Policy::of(&config()));
        let _server = put(&leaving, 1);
        let _lease = leaving.acquire_at_once(Lane::Read, &Ask::default(), Instant::now(), 0).unwrap();
        assert_eq!(leaving.ready(&leaving.upstream.limits()), 2);

        routes.replace(vec![Arc::clone(&pool().upstream)], Policy::of(&config()));
        routes.wind_down();

        assert_eq!(leaving.state().opening, 0);
        assert_eq!(routes.tended().len(), 2, "it is looked after while it has a backend");
    }
}
