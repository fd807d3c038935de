//! The scenarios that come with the program.

/// Names in the order of `tidegate-chaos scenarios`.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|(name, _)| *name).collect()
}

/// The text of one of them.
pub(super) fn text(name: &str) -> Option<&'static str> {
    ALL.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

macro_rules! scenarios {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../scenarios/", $name, ".toml")))),*]
    };
}

const ALL: &[(&str, &str)] = scenarios![
    "write-stall",
    "write-stall-storage",
    "write-stall-frozen",
    "write-stall-unreachable",
    "write-stall-read-only",
    "unclean-leave",
    "unclean-leave-unreachable",
    "unclean-leave-unplugged",
    "bad-map",
    "late-answer",
    "torn-answer",
    "lost-alert",
    "empty-cluster",
    "zombie",
    "lock-storm",
    "commit-cut",
    "failover-ping-pong",
    "overload",
    "disk-full",
    "random",
];
