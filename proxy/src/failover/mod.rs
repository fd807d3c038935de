//! From what discovery decides to what sessions do.
//!
//! Discovery runs on the control thread; what it decides is recorded, told, and put in force here, in this order:
//! a topology becomes that of the [`Routes`] only after the journal has the decisions behind it.
//!
//! About one upstream alone nothing is decided: there is nobody to fail over to, and its breakers see all that matters.

mod eyes;
mod herald;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use self::eyes::Eyes;
use self::herald::Herald;
use crate::alerts::Alerts;
use crate::config::{Config, Roles};
use crate::discovery::dns::SystemResolver;
use crate::discovery::patroni::Endpoint;
use crate::discovery::{Discovery, Record, RecordError, Rules, Settings};
use crate::guard::Logins;
use crate::journal::{Journal, Recorded};
use crate::pool::Routes;
use crate::pool::routes::roles_of;
use crate::upstream::membership::{Force, Refused};

/// How often time alone is looked at: for what lasts too long.
const ROUND: Duration = Duration::from_millis(500);

/// Running discovery, and what puts its decisions in force.
#[derive(Debug)]
pub struct Failover {
    discovery: Arc<Discovery>,
}

/// What a decision is told to.
#[derive(Debug, Clone)]
pub struct Told {
    /// Keeps it.
    pub journal: Arc<Journal>,
    /// Pages somebody.
    pub alerts: Alerts,
}

/// Records that are not on disk yet.
type Pending = Arc<Mutex<Vec<Recorded>>>;

fn rules(config: &Config) -> Rules {
    Rules { roles: roles_of(config), settle: config.cluster.settle }
}

fn patroni(config: &Config) -> Vec<Endpoint> {
    match roles_of(config) {
        Roles::Patroni if config.cluster.patroni.is_empty() => Endpoint::beside(&config.cluster.upstreams),
        Roles::Patroni => config.cluster.patroni.clone(),
        Roles::Probe | Roles::Static => Vec::new(),
    }
}

/// What discovery starts with.
///
/// # Errors
/// What an earlier process remembered cannot be read: going on without it could mean believing a stale primary.
pub fn settings(config: &Config) -> Result<Settings, RecordError> {
    let record = Record::new(&config.state_dir);
    let memory = match roles_of(config) {
        Roles::Static => None,
        Roles::Probe | Roles::Patroni => record.load(&config.cluster.upstreams)?,
    };
    Ok(Settings {
        rules: rules(config),
        upstreams: config.cluster.upstreams.clone(),
        connect: config.timeouts.connect,
        patroni: patroni(config),
        memory,
        record: Some(record),
    })
}

impl Failover {
    /// Starts discovery on the control runtime.
    pub fn start(
        settings: Settings,
        control: &Handle,
        routes: &Arc<Routes>,
        logins: Arc<Logins>,
        told: Told,
    ) -> Self {
        let _inside = control.enter();
        let pending = Pending::default();
        let herald = Herald::new(told.clone(), Arc::clone(&pending));
        let eyes = Arc::new(Eyes::new(Arc::clone(routes)));
        let discovery = Discovery::start(settings, eyes, Arc::new(SystemResolver), herald);
        let discovery = Arc::new(discovery);
        control.spawn(follow(Arc::clone(&discovery), Arc::clone(routes), pending, told.alerts));
        control.spawn(eyes::look_at_one_alone(Arc::clone(routes)));
        let routes = Arc::clone(routes);
        control.spawn(async move {
            loop {
                // Until now nobody could be asked.
                logins.first().await;
                for upstream in routes.upstreams() {
                    upstream.trouble();
                }
            }
        });
        Self { discovery }
    }

    /// Takes over a new list of servers and new rules, or says why not.
    ///
    /// # Errors
    /// The guard that it breaks; what was in force stays.
    pub async fn reload(&self, config: &Config) -> Result<(), Refused> {
        let force = Force::from(config.cluster.force);
        let upstreams = config.cluster.upstreams.clone();
        self.discovery.reload(upstreams, force, rules(config), patroni(config)).await
    }
}

/// Puts in force what was published, once the journal has what led to it.
async fn follow(discovery: Arc<Discovery>, routes: Arc<Routes>, pending: Pending, alerts: Alerts) {
    let mut changed = discovery.changed();
    let topology = discovery.topology();
    let mut vigil = herald::Vigil::new(Instant::now());
    loop {
        let now = topology.load_full();
        let records = std::mem::take(&mut *pending.lock().unwrap_or_else(PoisonError::into_inner));
        for record in records {
            // Bounded; a disk that is late does not hold up a failover.
            let _ = record.settled().await;
        }
        routes.publish(Arc::clone(&now));
        for view in now.upstreams() {
            if let Some(hints) = discovery.hints(view.id)
                && let Some(upstream) = routes.upstreams().iter().find(|upstream| upstream.name == view.name)
            {
                upstream.tell(hints);
            }
        }
        vigil.look(&now, &alerts, Instant::now());
        // Time alone may change what is to be told.
        if let Ok(Err(_)) = timeout(ROUND, changed.changed()).await {
            return;
        }
    }
}
