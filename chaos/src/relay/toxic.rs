//! What a relay can do to bytes, in Toxiproxy's words and format (its README, "Toxics").

use serde::{Deserialize, Serialize};

use super::cut::Cut;

/// A direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// From the application to the server.
    Upstream,
    /// From the server to the application.
    #[default]
    Downstream,
}

/// Something wrong with one direction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Toxic {
    /// Unique within its relay.
    #[serde(default)]
    pub name: String,
    /// Direction.
    #[serde(default)]
    pub stream: Stream,
    /// Probability that it applies to a connection.
    #[serde(default = "certain")]
    pub toxicity: f64,
    /// What it does.
    #[serde(flatten)]
    pub kind: Kind,
}

fn certain() -> f64 {
    1.0
}

impl Toxic {
    /// A toxic that applies to every connection.
    pub fn new(name: &str, stream: Stream, kind: Kind) -> Self {
        Self { name: name.to_owned(), stream, toxicity: 1.0, kind }
    }

    /// `latency_downstream`, as Toxiproxy names those without a name.
    pub(super) fn default_name(&self) -> String {
        let stream = match self.stream {
            Stream::Upstream => "upstream",
            Stream::Downstream => "downstream",
        };
        format!("{}_{stream}", self.kind.name())
    }
}

/// Kinds of toxics. The last two are not Toxiproxy's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "attributes", rename_all = "snake_case")]
pub enum Kind {
    /// Data arrives later.
    Latency {
        /// Milliseconds.
        #[serde(default)]
        latency: u64,
        /// More or less by this.
        #[serde(default)]
        jitter: u64,
    },
    /// Data arrives slowly.
    Bandwidth {
        /// Kilobytes per second.
        #[serde(default)]
        rate: u64,
    },
    /// The end of the connection arrives later.
    SlowClose {
        /// Milliseconds.
        #[serde(default)]
        delay: u64,
    },
    /// Data is thrown away; the connection is closed after a while, or never for zero.
    Timeout {
        /// Milliseconds.
        #[serde(default)]
        timeout: u64,
    },
    /// The connection is reset (RST) after a while.
    ResetPeer {
        /// Milliseconds.
        #[serde(default)]
        timeout: u64,
    },
    /// Data arrives in small pieces.
    Slicer {
        /// Bytes.
        #[serde(default)]
        average_size: u64,
        /// More or less by this.
        #[serde(default)]
        size_variation: u64,
        /// Microseconds between pieces.
        #[serde(default)]
        delay: u64,
    },
    /// The connection is closed after this much data.
    LimitData {
        /// Bytes.
        #[serde(default)]
        bytes: u64,
    },
    /// Data is held back while this is in force, and the end of a connection with it, and then delivered: a network
    /// that heals.
    Stall {},
    /// Something happens at a certain message.
    Cut(Cut),
}

impl Kind {
    /// Toxiproxy's name of the type.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Latency { .. } => "latency",
            Self::Bandwidth { .. } => "bandwidth",
            Self::SlowClose { .. } => "slow_close",
            Self::Timeout { .. } => "timeout",
            Self::ResetPeer { .. } => "reset_peer",
            Self::Slicer { .. } => "slicer",
            Self::LimitData { .. } => "limit_data",
            Self::Stall {} => "stall",
            Self::Cut(_) => "cut",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toxiproxys_own_json_is_understood() {
        // From the examples of its README.
        let text = r#"{"name":"latency_downstream","type":"latency","stream":"downstream","toxicity":1.0,
                       "attributes":{"latency":1000,"jitter":0}}"#;

        let toxic: Toxic = serde_json::from_str(text).unwrap();

        assert_eq!(toxic.kind, Kind::Latency { latency: 1000, jitter: 0 });
        assert_eq!(toxic.default_name(), "latency_downstream");
    }

    #[test]
    fn missing_parts_have_toxiproxys_defaults() {
        // Its clients leave out what they do not change.
        let toxic: Toxic = serde_json::from_str(r#"{"type":"timeout","attributes":{"timeout":5}}"#).unwrap();

        assert_eq!((toxic.stream, toxic.kind), (Stream::Downstream, Kind::Timeout { timeout: 5 }));
        assert!((toxic.toxicity - 1.0).abs() < f64::EPSILON);
    }
}
