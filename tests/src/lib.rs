//! Fixtures of the end-to-end tests, by domain verbs.
//!
//! [`Proxy`] runs a tidegate binary and knows it only from outside: configuration, ports, signals, metrics.
//! [`Bench`] puts one in front of a real `PostgreSQL` that all tests of the process share. [`ScriptedServer`]
//! and [`ScriptedApp`] are the two ends of a connection with every byte under the test's control; they use
//! `postgres-protocol`, not tidegate's own codec, and so are an independent oracle.
//!
//! All waits have deadlines. A fixture that does not get what it needs panics: that is how a test fails.

#![expect(clippy::missing_panics_doc, reason = "fixtures panic whenever a test must fail")]
#![expect(clippy::expect_used, reason = "as above; the message says what was expected")]

mod bench;
mod file_limit;
mod frames;
mod http;
mod keepalive;
mod login;
mod message;
mod proxy_process;
mod receiver;
mod scripted_app;
mod scripted_server;
mod wait;
mod wire;

pub use bench::{Bench, fresh_database, shared_postgres};
pub use file_limit::raise_file_limit;
pub use frames::{Frames, Replies};
pub use http::{Answer, Metrics};
pub use keepalive::keepalive_of;
pub use login::{Credentials, Greeting};
pub use message::{Message, Problem, Reply};
pub use proxy_process::{Ended, Proxy, ProxyOptions};
pub use receiver::{Received as ReceivedRequest, WebReceiver};
pub use scripted_app::ScriptedApp;
pub use scripted_server::{BackendKey, Incoming, ScriptedBackend, ScriptedServer};
pub use tidegate_chaos::cluster::Signal;
pub use wait::{PATIENCE, wait_for, wait_until, within};
pub use wire::{Received, Stream};
