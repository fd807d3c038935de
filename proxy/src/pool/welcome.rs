//! What applications are told at login, remembered per pool so that a login needs no backend.

use std::sync::{Arc, Mutex, PoisonError};

use super::Lease;
use crate::backend::settings::{DEFAULT_ISOLATION, read_back};
use crate::backend::{BackendError, Settings};
use crate::exchange::facts::Reach;

/// Welcomes remembered per pool; each combination of startup settings has its own.
const KEPT: usize = 64;

/// Names and values for `ParameterStatus`.
#[derive(Debug, PartialEq, Eq)]
pub struct Welcome {
    /// In the order in which they are sent.
    pub parameters: Vec<(Box<str>, Box<[u8]>)>,
    /// Which servers may run what the session sends, by the isolation that its transactions have.
    pub reach: Reach,
}

impl Welcome {
    /// Asks a backend that was brought to the session's settings.
    ///
    /// # Cancel safety
    /// Not cancel safe: discard the lease when this is dropped midway.
    pub async fn ask(lease: &mut Lease) -> Result<Arc<Self>, BackendError> {
        if lease.pool().key.replication.is_some() {
            let parameters = lease.reported.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
            return Ok(Arc::new(Self { parameters, reach: Reach::Primary }));
        }
        let names: Vec<Box<str>> = lease.reported.keys().cloned().collect();
        // Roles and databases have defaults that no server reports.
        let asked = names.iter().map(|name| &**name).chain([DEFAULT_ISOLATION]);
        let rows = lease.query(&read_back(asked)).await?;
        let values = rows.into_iter().next().unwrap_or_default();
        let isolation = values.get(names.len()).and_then(Option::as_deref).unwrap_or_default();
        let reach = Reach::under(isolation);
        let parameters = names
            .into_iter()
            .zip(values)
            .filter_map(|(name, value)| value.map(|value| (name, value.into_boxed_slice())))
            .collect();
        Ok(Arc::new(Self { parameters, reach }))
    }
}

/// The remembered welcomes of one pool.
#[derive(Debug, Default)]
pub struct Welcomes(Mutex<Vec<(Arc<Settings>, Arc<Welcome>)>>);

impl Welcomes {
    /// The welcome for these settings.
    pub fn get(&self, settings: &Arc<Settings>) -> Option<Arc<Welcome>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(key, _)| Arc::ptr_eq(key, settings)).map(|(_, welcome)| Arc::clone(welcome))
    }

    /// Remembers a welcome; the oldest is forgotten.
    pub fn insert(&self, settings: Arc<Settings>, welcome: Arc<Welcome>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(key, _)| !Arc::ptr_eq(key, &settings));
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((settings, welcome));
    }

    /// Forgets all: the server is another one, or differently configured.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
