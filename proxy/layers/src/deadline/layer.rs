use tower_layer::Layer;

use super::EnforceDeadline;

/// Applies [`EnforceDeadline`] to a service.
#[derive(Debug, Clone, Copy, Default)]
pub struct EnforceDeadlineLayer;

impl<S> Layer<S> for EnforceDeadlineLayer {
    type Service = EnforceDeadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        EnforceDeadline::new(inner)
    }
}
