use tower_layer::Layer;

use super::handoff::{Handoff, LaneConfig};
use super::{Permits, Shed};

/// Applies [`Shed`] to services. All services made by one layer share its permits and its queue.
#[derive(Debug, Clone)]
pub struct ShedLayer {
    permits: Permits,
}

impl ShedLayer {
    /// A layer with its own permits, as many as the ceiling says.
    pub fn new(config: LaneConfig) -> Self {
        let permits = Handoff::new([config]);
        // Units: they take no memory, however many there are.
        for () in std::iter::repeat_n((), config.ceiling) {
            permits.put(());
        }
        Self { permits }
    }

    /// The permits, to sweep, flush, watch, or change their limit.
    pub const fn permits(&self) -> &Permits {
        &self.permits
    }
}

impl<S> Layer<S> for ShedLayer {
    type Service = Shed<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Shed::new(inner, self.permits.clone())
    }
}
