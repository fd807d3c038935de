//! The tasks around the rules.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::asker::Asker;
use super::decide::{Event, Memory, Rules, State};
use super::decision::{Decision, What};
use super::dns::{Resolve, watch_name};
use super::hints::Hints;
use super::observe::Observe;
use super::patroni;
use super::record::{Content, Record, Scribe};
use super::wish::Wish;
use crate::config::UpstreamAddress;
use crate::upstream::membership::{Force, Refused};
use crate::upstream::{Lsn, Topology, UpstreamId};

/// How often time alone is looked at: for the end of `settle`, and of belief in Patroni.
const TICK: Duration = Duration::from_millis(100);
/// News that wait for the decider. Each server's task sends one at a time.
const NEWS: usize = 256;

/// Who is told of each decision before it takes effect.
pub trait Announce: Send + 'static {
    /// Called in order. Must not block for longer than a write to a journal takes.
    fn announce(&mut self, decision: &Decision);
}

impl<F: FnMut(&Decision) + Send + 'static> Announce for F {
    fn announce(&mut self, decision: &Decision) {
        self(decision);
    }
}

/// What discovery is told at its start.
#[derive(Debug)]
pub struct Settings {
    /// The rules.
    pub rules: Rules,
    /// The servers.
    pub upstreams: Vec<UpstreamAddress>,
    /// How long a connect may take.
    pub connect: Duration,
    /// Patroni's REST APIs; empty unless roles are Patroni's.
    pub patroni: Vec<patroni::Endpoint>,
    /// What was remembered.
    pub memory: Option<Memory>,
    /// Where to remember; `None` to forget.
    pub record: Option<Record>,
}

enum News {
    Event(Event),
    Reload {
        upstreams: Vec<UpstreamAddress>,
        force: Force,
        rules: Rules,
        patroni: Vec<patroni::Endpoint>,
        answer: oneshot::Sender<Result<(), Refused>>,
    },
}

/// Running discovery. Dropping it ends all its tasks.
#[derive(Debug)]
pub struct Discovery {
    topology: Arc<ArcSwap<Topology>>,
    hints: Arc<RwLock<HashMap<UpstreamId, Hints>>>,
    news: mpsc::Sender<News>,
    changed: watch::Receiver<u64>,
    decider: JoinHandle<()>,
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.decider.abort();
    }
}

impl Discovery {
    /// Starts the tasks on the runtime of the caller.
    pub fn start<O: Observe, R: Resolve>(
        settings: Settings,
        observe: Arc<O>,
        resolve: Arc<R>,
        announce: impl Announce,
    ) -> Self {
        let (news, inbox) = mpsc::channel(NEWS);
        let (version, changed) = watch::channel(0);
        let state = State::new(settings.rules, &settings.upstreams, settings.memory, Instant::now());
        let topology = Arc::new(ArcSwap::from_pointee(state.topology()));
        let hints = Arc::new(RwLock::new(HashMap::new()));
        let mut decider = Decider {
            state,
            scribe: settings.record.map(Scribe::start),
            topology: Arc::clone(&topology),
            hints: Arc::clone(&hints),
            version,
            news: news.downgrade(),
            observe,
            resolve,
            connect: settings.connect,
            tasks: HashMap::new(),
            patroni: Vec::new(),
            asking_patroni: JoinSet::new(),
            announce,
        };
        decider.ask_patroni(settings.patroni);
        decider.publish();
        let decider = tokio::spawn(decider.run(inbox));
        Self { topology, hints, news, changed, decider }
    }

    /// The snapshot in force, to be kept and read anywhere.
    pub fn topology(&self) -> Arc<ArcSwap<Topology>> {
        Arc::clone(&self.topology)
    }

    /// Changes with each published snapshot that differs from the one before it.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Where sessions of a server say what they saw; `None` for one that is not configured.
    pub fn hints(&self, id: UpstreamId) -> Option<Hints> {
        self.hints.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// A session saw a write commit. Dropped when too much waits already: there will be others.
    pub fn write_committed(&self, upstream: UpstreamId, started: Instant, lsn: Lsn) {
        let event = Event::WriteCommitted { upstream, started, result: Ok(lsn) };
        drop(self.news.try_send(News::Event(event)));
    }

    /// Takes over a new list of servers, new rules and new addresses of Patroni, or says why not.
    ///
    /// # Errors
    /// The guard that it breaks; what was in force stays.
    ///
    /// # Cancel safety
    /// The list may be taken over though nobody hears of it.
    pub async fn reload(
        &self,
        upstreams: Vec<UpstreamAddress>,
        force: Force,
        rules: Rules,
        patroni: Vec<patroni::Endpoint>,
    ) -> Result<(), Refused> {
        let (answer, answered) = oneshot::channel();
        if self.news.send(News::Reload { upstreams, force, rules, patroni, answer }).await.is_err() {
            return Ok(());
        }
        answered.await.unwrap_or(Ok(()))
    }
}

struct Asking {
    wish: watch::Sender<Wish>,
    /// Ends the server's tasks when dropped.
    _tasks: JoinSet<()>,
}

struct Decider<O, R, A> {
    state: State,
    scribe: Option<Scribe>,
    topology: Arc<ArcSwap<Topology>>,
    hints: Arc<RwLock<HashMap<UpstreamId, Hints>>>,
    version: watch::Sender<u64>,
    news: mpsc::WeakSender<News>,
    observe: Arc<O>,
    resolve: Arc<R>,
    connect: Duration,
    tasks: HashMap<UpstreamId, Asking>,
    patroni: Vec<patroni::Endpoint>,
    /// Ends with whoever asks.
    asking_patroni: JoinSet<()>,
    announce: A,
}

impl<O: Observe, R: Resolve, A: Announce> Decider<O, R, A> {
    async fn run(mut self, mut inbox: mpsc::Receiver<News>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let news = tokio::select! {
                news = inbox.recv() => match news {
                    Some(news) => news,
                    None => return,
                },
                _ = tick.tick() => News::Event(Event::Tick),
            };
            match news {
                News::Event(event) => {
                    self.decide(event).await;
                }
                News::Reload { upstreams, force, rules, patroni, answer } => {
                    let decisions = self.decide(Event::Reloaded { upstreams, force, rules }).await;
                    let refused = decisions.iter().find_map(|decision| match &decision.what {
                        What::MembersRefused(refused) => Some(*refused),
                        _ => None,
                    });
                    if refused.is_none() {
                        self.ask_patroni(patroni);
                    }
                    // Whoever asked may be gone.
                    let _ = answer.send(refused.map_or(Ok(()), Err));
                }
            }
        }
    }

    /// Asks these from now on, and nobody else.
    fn ask_patroni(&mut self, endpoints: Vec<patroni::Endpoint>) {
        if self.patroni == endpoints {
            return;
        }
        self.asking_patroni.abort_all();
        if !endpoints.is_empty() {
            let poll = patroni::poll(endpoints.clone(), Arc::clone(&self.topology), self.teller());
            self.asking_patroni.spawn(poll);
        }
        self.patroni = endpoints;
    }

    /// Decides, announces, remembers, publishes: in this order.
    async fn decide(&mut self, event: Event) -> Vec<Decision> {
        let quiet = event == Event::Tick;
        let decisions = self.state.step(event, Instant::now());
        if quiet && decisions.is_empty() {
            self.publish_wishes();
            return decisions;
        }
        for decision in &decisions {
            self.announce.announce(decision);
        }
        self.remember().await;
        self.publish();
        decisions
    }

    async fn remember(&mut self) {
        if let (Some(memory), Some(scribe)) = (self.state.memory(), &self.scribe) {
            let upstreams = self.state.members.iter().map(|member| member.address.clone()).collect();
            scribe.remember(Content { memory, upstreams }).await;
        }
    }

    fn publish(&mut self) {
        let topology = self.state.topology();
        if **self.topology.load() != topology || self.tasks.len() != topology.upstreams().len() {
            self.topology.store(Arc::new(topology));
            self.follow_members();
            self.version.send_modify(|version| *version += 1);
        }
        self.publish_wishes();
    }

    fn publish_wishes(&self) {
        let now = Instant::now();
        for (id, asking) in &self.tasks {
            if let Some(wish) = self.state.wish(*id, now) {
                asking.wish.send_if_modified(|old| std::mem::replace(old, wish) != wish);
            }
        }
    }

    /// One task per server, and what each may be told.
    fn follow_members(&mut self) {
        let topology = self.topology.load_full();
        self.tasks.retain(|id, _| topology.get(*id).is_some());
        let mut hints = HashMap::new();
        for view in topology.upstreams() {
            let old = self.hints.read().unwrap_or_else(PoisonError::into_inner).get(&view.id).cloned();
            let hint = old.unwrap_or_default();
            hint.expect(self.state.expected(view.id));
            hints.insert(view.id, hint.clone());
            if !self.tasks.contains_key(&view.id) {
                let asking = self.ask(view.id, &view.address, hint);
                self.tasks.extend(asking.map(|asking| (view.id, asking)));
            }
        }
        *self.hints.write().unwrap_or_else(PoisonError::into_inner) = hints;
    }

    fn ask(&self, id: UpstreamId, address: &UpstreamAddress, hints: Hints) -> Option<Asking> {
        let (wish, wishes) = watch::channel(self.state.wish(id, Instant::now())?);
        let mut tasks = JoinSet::new();
        let asker = Asker {
            id,
            topology: Arc::clone(&self.topology),
            observe: Arc::clone(&self.observe),
            connect: self.connect,
            hints: hints.clone(),
            wishes: wishes.clone(),
            tell: self.teller(),
        };
        tasks.spawn(asker.run());
        if let UpstreamAddress::Tcp { host, port } = address
            && host.parse::<std::net::IpAddr>().is_err()
        {
            let names =
                watch_name(id, host.clone(), *port, Arc::clone(&self.resolve), wishes, hints, self.teller());
            tasks.spawn(names);
        }
        Some(Asking { wish, _tasks: tasks })
    }

    fn teller(&self) -> Teller {
        Teller(self.news.clone())
    }
}

/// A way to the decider that does not keep it alive.
#[derive(Debug, Clone)]
pub(super) struct Teller(mpsc::WeakSender<News>);

/// The decider is gone: so should the teller be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Over;

impl Teller {
    pub(super) async fn tell(&self, event: Event) -> Result<(), Over> {
        let news = self.0.upgrade().ok_or(Over)?;
        news.send(News::Event(event)).await.map_err(|_| Over)
    }
}
