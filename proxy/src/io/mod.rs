//! Sockets, buffers and the movement of bytes between them. Knows nothing of PostgreSQL.

pub mod buffer;
pub mod flow;
pub mod socket;
pub mod stream;

pub use buffer::Buffer;
pub use flow::Flow;
pub use socket::Socket;
pub use stream::Stream;
