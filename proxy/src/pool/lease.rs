//! The right to use one backend.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::Pool;
use crate::backend::Backend;

/// A backend on loan. Dropping the lease closes the backend with RST, because nobody vouches for its protocol
/// position; [`Lease::give_back`] returns it.
#[derive(Debug)]
#[must_use]
pub struct Lease {
    backend: Option<Box<Backend>>,
    pool: Arc<Pool>,
}

impl Lease {
    pub(super) fn new(backend: Box<Backend>, pool: Arc<Pool>) -> Self {
        Self { backend: Some(backend), pool }
    }

    /// Returns a backend that is idle, unpinned and that no cancel may hit any more.
    #[inline]
    pub fn give_back(mut self) {
        if let Some(backend) = self.backend.take() {
            self.pool.put_back(backend);
        }
    }

    /// The pool that it is from.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Closes the backend with a goodbye: it is idle, but not fit for others.
    pub async fn terminate(mut self) {
        if let Some(backend) = self.backend.take() {
            self.pool.lost();
            backend.terminate().await;
        }
    }
}

impl Deref for Lease {
    type Target = Backend;

    #[inline]
    fn deref(&self) -> &Backend {
        match &self.backend {
            Some(backend) => backend,
            None => unreachable!("the backend leaves only with the lease"),
        }
    }
}

impl DerefMut for Lease {
    #[inline]
    fn deref_mut(&mut self) -> &mut Backend {
        match &mut self.backend {
            Some(backend) => backend,
            None => unreachable!("the backend leaves only with the lease"),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(backend) = self.backend.take() {
            backend.reset();
            self.pool.lost();
        }
    }
}
