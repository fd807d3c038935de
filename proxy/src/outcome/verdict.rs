//! What a server's answer proves about a transaction. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::Token;
use crate::upstream::Lsn;

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is durable as far as the server is configured to make it.
    Committed,
    /// It is durable on its server, which stopped before a synchronous standby had confirmed it.
    Unreplicated,
    /// It is not, and never will be.
    RolledBack,
    /// Nobody can tell in time.
    Unknown,
}

impl Verdict {
    /// The word in logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Unreplicated => "committed_unreplicated",
            Self::RolledBack => "rolled_back",
            Self::Unknown => "unknown",
        }
    }
}

/// What `txid_status` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its id is marked as committed.
    Committed,
    /// Its id is marked as aborted, or belongs to nobody who still runs.
    Aborted,
    /// It runs.
    InProgress,
    /// No such id was given out yet (SQLSTATE 22023).
    Future,
    /// Too long ago to know.
    Forgotten,
}

/// Which server was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// At the address where the transaction ran.
    Origin,
    /// Another, which takes the writes now.
    Successor,
}

/// One answer of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Which it is.
    pub asked: Asked,
    /// Before the question was sent.
    pub at: Instant,
    /// Whether it is in recovery: then it says nothing about ids.
    pub in_recovery: bool,
    /// Where the recovery ended that it began its life with (`pg_last_wal_replay_lsn` stands still there); `None` if
    /// it needed none.
    pub recovered: Option<Lsn>,
    /// For how long its postmaster has run.
    pub uptime: Duration,
    /// Whether commits wait for standbys.
    pub synchronous: bool,
    /// What it says of the id.
    pub status: Status,
}

/// What follows from an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// This is proven.
    Is(Verdict),
    /// It runs: it will be known when it has ended.
    Runs,
    /// The server cannot say yet.
    NotYet,
}

/// How the WAL of the server that answers relates to that of the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum History {
    /// It is the same, without a break: ids mean what they meant.
    Unbroken,
    /// The server recovered up to a position behind that of the token: the id is the transaction's.
    Inherited,
    /// The server recovered up to a position before it: the transaction never happened there.
    Lost,
    /// There is no telling.
    Unrelated,
}

/// See the module documentation.
///
/// Two recoveries between the token and the answer are taken for the last of them: that would need a crash, recovery,
/// new writes, and another crash and recovery, all within the time that a commit is looked for.
#[expect(clippy::match_same_arms, reason = "their order decides")]
pub fn judge(token: &Token, evidence: &Evidence) -> Judged {
    if evidence.in_recovery {
        return Judged::NotYet;
    }
    match (evidence.status, history(token, evidence)) {
        (Status::Forgotten, _) | (_, History::Unrelated) => Judged::Is(Verdict::Unknown),
        (_, History::Lost) => Judged::Is(Verdict::RolledBack),
        (Status::InProgress, _) => Judged::Runs,
        (Status::Aborted, _) | (Status::Future, History::Inherited) => Judged::Is(Verdict::RolledBack),
        // The id was given out in this very life of the server.
        (Status::Future, History::Unbroken) => Judged::NotYet,
        (Status::Committed, _) if left_standbys_waiting(token, evidence) => Judged::Is(Verdict::Unreplicated),
        (Status::Committed, History::Unbroken | History::Inherited) => Judged::Is(Verdict::Committed),
    }
}

fn history(token: &Token, evidence: &Evidence) -> History {
    match (evidence.recovered, evidence.asked) {
        // Recoveries end further and further on: each writes WAL before anybody may (`CreateEndOfRecoveryRecord` and
        // the checkpoint at the end of crash recovery, `src/backend/access/transam/xlog.c`).
        (recovered, Asked::Origin) if recovered == token.recovered => History::Unbroken,
        // It needed no recovery because it was shut down cleanly, with everything written.
        (None, Asked::Origin) => History::Unbroken,
        (None, Asked::Successor) => History::Unrelated,
        (Some(end), _) if token.lsn <= end => History::Inherited,
        (Some(_), _) => History::Lost,
    }
}

/// Whether the server that ran it ended, or crashed, and may have done so while the commit waited for a standby: it is
/// marked as committed then, too. A promoted standby is another matter: what it has is replicated.
fn left_standbys_waiting(token: &Token, evidence: &Evidence) -> bool {
    let restarted = evidence.uptime < evidence.at.saturating_duration_since(token.at);
    let broken = restarted || evidence.recovered != token.recovered;
    evidence.synchronous && evidence.asked == Asked::Origin && broken
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_hours(1);
    const SHORT: Duration = Duration::from_millis(100);

    fn token(recovered: Option<u64>) -> Token {
        Token { xid: 9, lsn: Lsn(100), recovered: recovered.map(Lsn), process_id: 1, at: Instant::now() }
    }

    fn evidence(token: &Token, status: Status) -> Evidence {
        Evidence {
            asked: Asked::Origin,
            at: token.at + Duration::from_secs(1),
            in_recovery: false,
            recovered: token.recovered,
            uptime: LONG,
            synchronous: false,
            status,
        }
    }

    #[test]
    fn a_server_that_went_on_is_believed() {
        // It is the ordinary case: only the connection broke.
        for recovered in [None, Some(50)] {
            let token = token(recovered);
            let of = |status| judge(&token, &evidence(&token, status));

            assert_eq!(of(Status::Committed), Judged::Is(Verdict::Committed));
            assert_eq!(of(Status::Aborted), Judged::Is(Verdict::RolledBack));
            assert_eq!(of(Status::InProgress), Judged::Runs);
            assert_eq!(of(Status::Future), Judged::NotYet);
            assert_eq!(of(Status::Forgotten), Judged::Is(Verdict::Unknown));
        }
    }

    #[test]
    fn an_id_that_was_given_out_again_is_not_taken_for_the_transaction() {
        // Without the position, three commits of others after a crash make a lost transaction "committed".
        let token = token(None);
        for (recovered, status, verdict) in [
            (99, Status::Committed, Verdict::RolledBack),
            (99, Status::Future, Verdict::RolledBack),
            (99, Status::InProgress, Verdict::RolledBack),
            (100, Status::Committed, Verdict::Committed),
            (101, Status::Committed, Verdict::Committed),
            (101, Status::Aborted, Verdict::RolledBack),
            (101, Status::Future, Verdict::RolledBack),
        ] {
            for asked in [Asked::Origin, Asked::Successor] {
                let answer = Evidence { asked, recovered: Some(Lsn(recovered)), ..evidence(&token, status) };

                assert_eq!(judge(&token, &answer), Judged::Is(verdict), "{recovered} {status:?} {asked:?}");
            }
        }
    }

    #[test]
    fn a_recovery_before_the_transaction_says_nothing_about_it() {
        // A server that was promoted last month writes behind that point for ever.
        let token = token(Some(50));

        assert_eq!(
            judge(&token, &evidence(&token, Status::Committed)),
            Judged::Is(Verdict::Committed),
            "50 is before 100, and is where its own life began"
        );
    }

    #[test]
    fn a_standby_is_not_believed() {
        // It answers "in the future" for every id that it has not seen yet.
        let token = token(None);
        let standby = Evidence { in_recovery: true, ..evidence(&token, Status::Future) };

        assert_eq!(judge(&token, &standby), Judged::NotYet);
    }

    #[test]
    fn another_server_without_a_recovery_cannot_have_inherited_anything() {
        // A restored copy of the cluster has the same ids for other transactions.
        let token = token(None);
        let other = Evidence { asked: Asked::Successor, ..evidence(&token, Status::Committed) };

        assert_eq!(judge(&token, &other), Judged::Is(Verdict::Unknown));
    }

    #[test]
    fn a_commit_that_was_waiting_for_a_standby_when_its_server_ended_is_not_a_plain_success() {
        // The server marks it as committed after the crash, and a failover would lose it.
        let token = token(None);
        let answer = |uptime, recovered: Option<u64>, asked| {
            let base = evidence(&token, Status::Committed);
            let recovered = recovered.map(Lsn);
            judge(&token, &Evidence { asked, uptime, recovered, synchronous: true, ..base })
        };

        assert_eq!(answer(LONG, None, Asked::Origin), Judged::Is(Verdict::Committed));
        assert_eq!(answer(SHORT, None, Asked::Origin), Judged::Is(Verdict::Unreplicated));
        assert_eq!(answer(LONG, Some(101), Asked::Origin), Judged::Is(Verdict::Unreplicated));
        assert_eq!(answer(LONG, Some(101), Asked::Successor), Judged::Is(Verdict::Committed));
        assert_eq!(answer(SHORT, Some(99), Asked::Origin), Judged::Is(Verdict::RolledBack));
    }
}
