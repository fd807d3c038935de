//! Claims about the cost of a routing decision.

use std::time::Duration;

use allocation_counter::measure;
use tidegate::config::{AfterWrite, ReadFrom, UpstreamAddress};
use tidegate::sql::Lane;
use tidegate::upstream::{
    Epoch, Health, LastWrite, Lsn, Observation, ReadPolicy, Role, SessionView, SystemIdentifier, TimelineId,
    Topology, UpstreamId, UpstreamView, Writes, route,
};
use tokio::time::Instant;

fn topology(now: Instant) -> Topology {
    let view = |id: u32| UpstreamView {
        id: UpstreamId(id),
        address: UpstreamAddress::Tcp { host: format!("pg{id}"), port: 5432 },
        name: format!("pg{id}:5432").into(),
        role: Some(if id == 0 { Role::Primary } else { Role::Standby }),
        epoch: Epoch(1),
        health: Health::Up,
        cause: None,
        fenced: None,
        lag: Some(Duration::ZERO),
        observed: Some((
            Observation {
                system: SystemIdentifier(1),
                timeline: TimelineId(1),
                in_recovery: id > 0,
                lsn: Lsn(100),
                lag: None,
                version_num: 180_000,
                read_only: false,
            },
            now,
        )),
    };
    Topology::new(Epoch(1), (0..4).map(view).collect(), Some(UpstreamId(0)), Writes::Open)
}

#[test]
fn routing_allocates_nothing() {
    // It is done for each transaction: an allocation there would be one per transaction.
    let now = Instant::now();
    let topology = topology(now);

    let info = measure(|| {
        for (turn, from) in
            [ReadFrom::Primary, ReadFrom::PreferStandby, ReadFrom::Standby].into_iter().enumerate()
        {
            for after_write in [AfterWrite::Any, AfterWrite::Primary, AfterWrite::Lsn] {
                let policy = ReadPolicy {
                    from,
                    after_write,
                    max_lag: Duration::from_secs(1),
                    after_write_for: Duration::from_secs(1),
                };
                let last_write = Some(LastWrite { at: now, lsn: Some(Lsn(100)) });
                let session = SessionView { now, last_write, turn };
                for lane in [Lane::Read, Lane::Write] {
                    assert!(route(&topology, lane, &policy, &session, |id| id.0 as usize).is_ok());
                }
            }
        }
    });

    assert_eq!(info.count_total, 0);
}
