//! The rows of a run: which workload, by which protocol, with how many clients.

use clap::ValueEnum;
use serde::Serialize;

use crate::args::Args;

/// Clients of the rows that reconnect for each transaction.
const RECONNECT_CLIENTS: u32 = 16;
/// Client counts when none are given.
const CLIENTS: [u32; 4] = [1, 16, 64, 500];

/// What each transaction does, and whether it has a connection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// pgbench `-S`: one SELECT by primary key.
    SelectOnly,
    /// pgbench `-S -C`: the same, with a new connection for each transaction; simple protocol, 16 clients.
    Reconnect,
    /// pgbench `-N`: a transaction of UPDATE, SELECT and INSERT.
    SimpleUpdate,
    /// `SELECT 1`: as little work for the server as possible.
    Select1,
}

/// pgbench `-M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Simple query.
    Simple,
    /// Parse, Bind, Execute each time, unnamed statement.
    Extended,
    /// Named prepared statements.
    Prepared,
}

/// One line of the tables, for each subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What a transaction does.
    pub workload: Workload,
    /// How it is said.
    pub protocol: Protocol,
    /// Sessions at the same time.
    pub clients: u32,
}

impl Workload {
    /// Name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::SelectOnly => "select-only",
            Self::Reconnect => "reconnect",
            Self::SimpleUpdate => "simple-update",
            Self::Select1 => "select1",
        }
    }

    /// Whether it is judged as part of the select-only table.
    pub fn is_select_only(self) -> bool {
        matches!(self, Self::SelectOnly | Self::Reconnect)
    }
}

impl Protocol {
    /// Name as pgbench's `-M` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        }
    }
}

impl Row {
    /// pgbench `-j`. More threads than one would compete with the subject and the server for the cores of a small machine. But to
    /// prepare a statement pgbench stops its thread until the answer is there, and does so within a transaction: where backends
    /// are shared, it would wait for one that is held by another client of the same thread.
    pub fn threads(self) -> u32 {
        match (self.workload, self.protocol) {
            (Workload::SimpleUpdate, Protocol::Prepared) => self.clients,
            _ => 1,
        }
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.workload.name(), self.protocol.name(), self.clients)
    }
}

/// The rows that `args` ask for, in the order in which they are run.
pub fn rows(args: &Args) -> Vec<Row> {
    let candidates = match (&args.rows[..], args.quick) {
        ([], true) => quick(),
        ([], false) => default(&clients(args)),
        (workloads, _) => workloads.iter().flat_map(|workload| all(*workload, &clients(args))).collect(),
    };
    candidates
        .into_iter()
        .filter(|row| args.clients.is_empty() || args.clients.contains(&row.clients))
        .filter(|row| args.protocols.is_empty() || args.protocols.contains(&row.protocol))
        .collect()
}

fn clients(args: &Args) -> Vec<u32> {
    if args.clients.is_empty() { CLIENTS.to_vec() } else { args.clients.clone() }
}

fn all(workload: Workload, clients: &[u32]) -> Vec<Row> {
    if workload == Workload::Reconnect {
        return vec![Row { workload, protocol: Protocol::Simple, clients: RECONNECT_CLIENTS }];
    }
    let protocols = [Protocol::Simple, Protocol::Extended, Protocol::Prepared];
    let row = |protocol| clients.iter().map(move |&clients| Row { workload, protocol, clients });
    protocols.into_iter().flat_map(row).collect()
}

/// All tables in full: about half an hour with five subjects.
fn default(clients: &[u32]) -> Vec<Row> {
    let workloads = [Workload::SelectOnly, Workload::Reconnect, Workload::SimpleUpdate, Workload::Select1];
    workloads.into_iter().flat_map(|workload| all(workload, clients)).collect()
}

fn quick() -> Vec<Row> {
    let row = |workload, protocol, clients| Row { workload, protocol, clients };
    vec![
        row(Workload::SelectOnly, Protocol::Simple, 16),
        row(Workload::SelectOnly, Protocol::Extended, 64),
        row(Workload::SelectOnly, Protocol::Prepared, 16),
        row(Workload::Reconnect, Protocol::Simple, RECONNECT_CLIENTS),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn the_default_plan_covers_every_table_in_full() {
        // A row left out would be a claim without evidence.
        let rows = rows(&Args::parse_from(["pgbench-table"]));

        for workload in [Workload::SelectOnly, Workload::SimpleUpdate, Workload::Select1] {
            for protocol in [Protocol::Simple, Protocol::Extended, Protocol::Prepared] {
                for clients in CLIENTS {
                    assert!(rows.contains(&Row { workload, protocol, clients }));
                }
            }
        }
        assert!(rows.iter().any(|row| row.workload == Workload::Reconnect));
    }

    #[test]
    fn client_counts_outside_the_usual_ones_are_rows_too() {
        // A filter over the usual counts would silently leave nothing to run.
        let args = ["pgbench-table", "--rows", "select1", "--clients", "7", "--protocols", "prepared"];

        let rows = rows(&Args::parse_from(args));

        assert_eq!(rows, [Row { workload: Workload::Select1, protocol: Protocol::Prepared, clients: 7 }]);
    }
}
