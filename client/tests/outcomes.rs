//! What an application is told, for each way in which a server, a sidecar or a network can answer. A scripted server
//! gives the answers: none of them can be had from a real one on demand, and all of them must be told apart.

#![expect(clippy::unwrap_used, reason = "whatever is not as it should be fails the test")]

use std::time::Duration;

use tidegate_client::{
    Builder, Error, ErrorKind, Outcome, Pool, Retry, Sidecar, Timeouts, TxOptions, TxOutcome, deadline,
};
use tidegate_tests::{BackendKey, Incoming, Replies, ScriptedBackend, ScriptedServer};

/// How a statement is answered, and what is left of the session.
#[derive(Clone)]
struct Script(Replies, After);

#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Ready(char),
    Closed,
}

/// An ERROR with these fields; the session goes on in this status.
fn error(code: &str, detail: &str, status: char) -> Script {
    let fields = [('S', "ERROR"), ('V', "ERROR"), ('C', code), ('M', "no"), ('D', detail)];
    Script(Replies::new().problem(b'E', &fields), After::Ready(status))
}

/// A FATAL, behind which the connection is closed.
fn fatal(code: &str, detail: &str, routine: &str) -> Script {
    let fields = [('S', "FATAL"), ('V', "FATAL"), ('C', code), ('M', "no"), ('D', detail), ('R', routine)];
    Script(Replies::new().problem(b'E', &fields), After::Closed)
}

fn silence() -> Script {
    Script(Replies::new(), After::Closed)
}

fn done(command: &str) -> Script {
    Script(Replies::new().complete(command), After::Ready('I'))
}

/// The warning of a wait for a standby that was cancelled, and success.
fn unreplicated(command: &str) -> Script {
    let fields = [
        ('S', "WARNING"),
        ('V', "WARNING"),
        ('C', "01000"),
        ('M', "not replicated"),
        ('R', "SyncRepWaitForLSN"),
    ];
    Script(Replies::new().problem(b'N', &fields).complete(command), After::Ready('I'))
}

/// Answers BEGIN and ROLLBACK as they are, and this statement by this script.
async fn session(mut backend: ScriptedBackend, statement: &'static str, script: Script) {
    backend.welcome(&BackendKey { pid: 7, secret: vec![0; 4] }).await;
    let mut status = 'I';
    while let Some(message) = backend.next().await {
        let sql = message.strings().first().cloned().unwrap_or_default();
        match sql.as_str() {
            _ if message.tag != b'Q' => return,
            "BEGIN" => status = 'T',
            "ROLLBACK" => status = 'I',
            // The pool's probes: whoever answers them works.
            sql if sql.starts_with("/*tidegate") || sql.starts_with("SHOW tidegate") => {
                backend.send(Replies::new().one_value("1")).await;
                continue;
            }
            sql if sql == statement => {
                let Script(replies, after) = &script;
                match after {
                    After::Ready(left) => status = *left,
                    After::Closed => {
                        backend.send(replies).await;
                        return;
                    }
                }
                backend.send(replies.clone().ready(status)).await;
                continue;
            }
            _ => {}
        }
        backend.send(Replies::new().complete(&sql).ready(status)).await;
    }
}

/// A server that answers `statement` by the script, and a pool in front of it.
async fn scripted(statement: &'static str, script: Script) -> (ScriptedServer, Pool) {
    let mut server = ScriptedServer::start().await;
    server.serve(move |incoming| {
        let script = script.clone();
        async move {
            if let Incoming::Session(backend) = incoming {
                session(backend, statement, script).await;
            }
        }
    });
    let timeouts = Timeouts { write: Duration::from_secs(10), ..Timeouts::default() };
    let pool =
        Builder::parse(&server.url()).unwrap().timeouts(timeouts).sidecar(Sidecar::Yes).build().unwrap();
    (server, pool)
}

const WRITE: &str = "INSERT INTO t DEFAULT VALUES";

async fn transaction(pool: &Pool) -> TxOutcome<(), Error> {
    pool.transaction(TxOptions::write(), async |mut tx| tx.batch_execute(WRITE).await).await
}

/// What an application sees of a transaction.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Committed,
    RolledBack(ErrorKind, Outcome),
    Unknown(ErrorKind, Outcome),
}

fn seen(outcome: &TxOutcome<(), Error>) -> Seen {
    match outcome {
        TxOutcome::Committed(()) => Seen::Committed,
        TxOutcome::RolledBack(error) => Seen::RolledBack(error.kind(), error.outcome()),
        TxOutcome::Unknown { error, .. } => Seen::Unknown(error.kind(), error.outcome()),
    }
}

const LOST: &str = "reason=commit_unresolved lane=write outcome=unknown xid=742 lsn=0/16B3748 pid=4711";
const OPEN: &str = "reason=breaker_open lane=write upstream=10.0.0.1:5432 cause=sync_standby outcome=not_sent \
                    retry_after_ms=700";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_to_a_commit_is_told_as_what_it_means() {
    // "Rolled back" for a COMMIT that is durable does it twice; "unknown" for one that is not forbids a retry.
    use {ErrorKind as Kind, Outcome::*};
    for (script, expected) in [
        (done("COMMIT"), Seen::Committed),
        // The server's way to say that a statement had failed whose answer nobody took.
        (done("ROLLBACK"), Seen::RolledBack(Kind::RolledBack, RolledBack)),
        (done("SELECT 1"), Seen::Unknown(Kind::CommitUnknown, Unknown)),
        // The sidecar has found out.
        (
            error("40000", "reason=commit_rolled_back lane=write outcome=rolled_back xid=742", 'I'),
            Seen::RolledBack(Kind::RolledBack, RolledBack),
        ),
        (error("08007", "reason=commit_resolved outcome=committed", 'I'), Seen::Committed),
        // It has not.
        (error("08007", LOST, 'I'), Seen::Unknown(Kind::CommitUnknown, Unknown)),
        (
            error("08007", "reason=committed_unreplicated outcome=committed_unreplicated", 'I'),
            Seen::Unknown(Kind::CommitUnknown, CommittedUnreplicated),
        ),
        // PostgreSQL's own, without anybody's DETAIL.
        (error("08007", "", 'I'), Seen::Unknown(Kind::CommitUnknown, Unknown)),
        (unreplicated("COMMIT"), Seen::Unknown(Kind::CommitUnknown, CommittedUnreplicated)),
        // Refused before it was sent: the transaction is open still, and is rolled back.
        (error("53000", OPEN, 'T'), Seen::RolledBack(Kind::BreakerOpen, NotSent)),
        (
            error("53300", "reason=queue_timeout lane=write outcome=not_sent retry_after_ms=50", 'T'),
            Seen::RolledBack(Kind::Overloaded, NotSent),
        ),
        (error("40001", "", 'I'), Seen::RolledBack(Kind::Conflict, RolledBack)),
        (error("23505", "Key (id)=(1) already exists.", 'I'), Seen::RolledBack(Kind::Database, RolledBack)),
        // The end of the session: whether anything can be durable is the sidecar's to say, or PostgreSQL's routine.
        (
            fatal("57P01", "reason=drain outcome=rolled_back", ""),
            Seen::RolledBack(Kind::RolledBack, RolledBack),
        ),
        (fatal("57P01", "reason=drain outcome=unknown", ""), Seen::Unknown(Kind::CommitUnknown, Unknown)),
        (fatal("57P01", "", "ProcessInterrupts"), Seen::RolledBack(Kind::ConnectionLost, RolledBack)),
        (fatal("57P01", "", "quickdie"), Seen::Unknown(Kind::CommitUnknown, Unknown)),
        (silence(), Seen::Unknown(Kind::CommitUnknown, Unknown)),
    ] {
        let (_server, pool) = scripted("COMMIT", script).await;

        let outcome = transaction(&pool).await;

        assert_eq!(seen(&outcome), expected, "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_to_a_statement_of_a_transaction_leaves_nothing_behind() {
    // Before its COMMIT is sent nothing of a transaction is durable, however it breaks.
    use {ErrorKind as Kind, Outcome::*};
    for (script, expected, safe) in [
        (
            error("57014", "reason=write_timeout lane=write outcome=rolled_back", 'E'),
            (Kind::Timeout, RolledBack),
            true,
        ),
        (error("57014", "", 'E'), (Kind::Timeout, RolledBack), true),
        (error("55P03", "", 'E'), (Kind::Timeout, RolledBack), true),
        (error("25P02", "", 'E'), (Kind::RolledBack, RolledBack), true),
        (error("25006", "", 'E'), (Kind::ReadOnly, RolledBack), true),
        (error("40P01", "", 'E'), (Kind::Conflict, RolledBack), true),
        (error("53000", OPEN, 'T'), (Kind::BreakerOpen, NotSent), true),
        (
            error("53300", "reason=limit lane=write outcome=not_sent retry_after_ms=9", 'T'),
            (Kind::Overloaded, NotSent),
            true,
        ),
        // The same codes from PostgreSQL mean that it has no memory or disk.
        (error("53000", "", 'E'), (Kind::Database, RolledBack), false),
        (error("42601", "", 'E'), (Kind::Database, RolledBack), false),
        (fatal("57P01", "reason=drain outcome=rolled_back", ""), (Kind::ConnectionLost, RolledBack), true),
        (fatal("57P01", "", "ProcessInterrupts"), (Kind::ConnectionLost, RolledBack), true),
        (
            fatal("25P03", "reason=idle_in_transaction outcome=rolled_back", ""),
            (Kind::ConnectionLost, RolledBack),
            true,
        ),
        (
            fatal("57P05", "reason=idle_session outcome=rolled_back", ""),
            (Kind::ConnectionLost, RolledBack),
            true,
        ),
        (silence(), (Kind::ConnectionLost, RolledBack), true),
    ] {
        let (_server, pool) = scripted(WRITE, script).await;

        let TxOutcome::RolledBack(error) = transaction(&pool).await else { panic!("not rolled back") };

        assert_eq!((error.kind(), error.outcome()), expected, "{error:?}");
        assert_eq!(error.is_safe_to_retry(), safe, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_to_a_lone_write_is_that_to_its_commit() {
    // It is its own COMMIT: without an answer it may be durable.
    use {ErrorKind as Kind, Outcome::*};
    for (script, expected) in [
        (error("08007", LOST, 'I'), (Kind::CommitUnknown, Unknown)),
        (
            error("08007", "reason=committed_unreplicated outcome=committed_unreplicated", 'I'),
            (Kind::CommitUnknown, CommittedUnreplicated),
        ),
        (
            error("40000", "reason=commit_rolled_back outcome=rolled_back", 'I'),
            (Kind::RolledBack, RolledBack),
        ),
        (error("57014", "reason=write_timeout outcome=rolled_back", 'I'), (Kind::Timeout, RolledBack)),
        (error("25006", "", 'I'), (Kind::ReadOnly, RolledBack)),
        (unreplicated("INSERT 0 1"), (Kind::CommitUnknown, CommittedUnreplicated)),
        (fatal("57P01", "", "quickdie"), (Kind::ConnectionLost, Unknown)),
        (silence(), (Kind::ConnectionLost, Unknown)),
    ] {
        let (_server, pool) = scripted(WRITE, script).await;

        let error = async { pool.write().await?.batch_execute(WRITE).await }.await.unwrap_err();

        assert_eq!((error.kind(), error.outcome()), expected, "{error:?}");
        assert_eq!(error.is_safe_to_retry(), error.outcome() == RolledBack, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sidecar_says_reaches_the_application() {
    // Left in the DETAIL, it would have to be read there by each application for itself.
    let (_server, pool) = scripted(WRITE, error("53000", OPEN, 'I')).await;
    let refused = async { pool.write().await?.batch_execute(WRITE).await }.await.unwrap_err();
    assert_eq!(refused.retry_after(), Some(Duration::from_millis(700)));
    assert_eq!(refused.cause(), Some(tidegate_client::Cause::SyncStandby));
    assert_eq!((refused.reason(), refused.upstream()), (Some("breaker_open"), Some("10.0.0.1:5432")));
    assert_eq!(refused.sqlstate().unwrap().code(), "53000");
    assert!(refused.is_safe_to_retry());

    let (_server, pool) = scripted("COMMIT", error("08007", LOST, 'I')).await;
    let TxOutcome::Unknown { error, .. } = transaction(&pool).await else { panic!("not unknown") };
    // What to look for before it is done again.
    assert_eq!((error.detail("xid"), error.detail("pid")), (Some("742"), Some("4711")));
    assert_eq!(error.detail("lsn"), Some("0/16B3748"));
    let text = error.to_string();
    assert!(text.contains("committing") && text.contains("unknown"), "{text}");
}

/// How often the code of a transaction ran, and how long it took.
async fn attempts(statement: &'static str, script: Script, within: Duration) -> (usize, Duration) {
    let (_server, pool) = scripted(statement, script).await;
    let start = tokio::time::Instant::now();
    let mut attempts = 0;
    let outcome: TxOutcome<(), Error> = deadline::within(
        within,
        pool.transaction(TxOptions::write().retry(Retry::Safe), |mut tx| {
            attempts += 1;
            async move { tx.batch_execute(WRITE).await }
        }),
    )
    .await;
    assert!(!matches!(outcome, TxOutcome::Committed(())), "{outcome:?}");
    (attempts, start.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_waits_as_told_stays_within_the_deadline_and_never_repeats_a_doubt() {
    // A retry at once, in spite of what the sidecar asked for, keeps a lane busy that is shut; one behind the
    // deadline is for nobody; one of a COMMIT whose outcome is unknown does it twice.
    let patient = Duration::from_secs(5);
    // Not by its breaker, which would refuse the second attempt here already.
    let refused =
        || error("53300", "reason=queue_timeout lane=write outcome=not_sent retry_after_ms=700", 'T');

    let (twice, took) = attempts(WRITE, refused(), patient).await;
    assert_eq!(twice, 2);
    assert!(took >= Duration::from_millis(700), "{took:?}");

    let (once, took) = attempts(WRITE, refused(), Duration::from_millis(500)).await;
    assert_eq!(once, 1);
    assert!(took < Duration::from_millis(500), "{took:?}");

    assert_eq!(attempts("COMMIT", error("08007", LOST, 'I'), patient).await.0, 1);
    assert_eq!(attempts("COMMIT", silence(), patient).await.0, 1);
    assert_eq!(attempts(WRITE, error("23505", "", 'E'), patient).await.0, 1);
    assert_eq!(attempts(WRITE, error("40001", "", 'E'), patient).await.0, 2);
    assert_eq!(
        attempts("COMMIT", error("40000", "reason=commit_rolled_back outcome=rolled_back", 'I'), patient)
            .await
            .0,
        2
    );
}
