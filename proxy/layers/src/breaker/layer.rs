use tower_layer::Layer;

use super::{Breaker, Handle};

/// Applies [`Breaker`] to services. All services made by one layer share one breaker.
#[derive(Debug, Clone)]
pub struct BreakerLayer<C, K> {
    handle: Handle<C>,
    classify: K,
}

impl<C, K> BreakerLayer<C, K> {
    /// A layer of the breaker behind `handle`.
    pub const fn new(handle: Handle<C>, classify: K) -> Self {
        Self { handle, classify }
    }
}

impl<S, C, K: Clone> Layer<S> for BreakerLayer<C, K> {
    type Service = Breaker<S, C, K>;

    fn layer(&self, inner: S) -> Self::Service {
        Breaker::new(inner, self.handle.clone(), self.classify.clone())
    }
}
