//! A stuck database does not clog the HTTP layer.

use std::time::Duration;

use crate::history::{Failure, Lane, Operation, Via};
use crate::run::Record;

use super::{Verdict, breaker};

/// How soon somebody must be told to come later.
const SOON: Duration = Duration::from_secs(1);

/// How many orders of a hundred must be: now and then one is the write that looks whether the database is back.
const SHARE: usize = 95;

pub(super) fn check(record: &Record, limit: u64) -> Verdict {
    let Some(trouble) = record.trouble() else {
        return Verdict::Undecided("no fault was injected and healed".to_owned());
    };
    let posts: Vec<&Operation> =
        record.operations(Lane::Write, Via::Http).filter(|post| trouble.contains(&post.intended)).collect();
    if posts.is_empty() || record.queue.is_empty() {
        return Verdict::Undecided("there was no service behind a reverse proxy".to_owned());
    }
    let longest = record.queue.iter().map(|sample| sample.queued).max().unwrap_or_default();
    let shut = breaker::opened(record).unwrap_or(trouble.start);
    let due = posts.iter().filter(|post| post.intended >= shut).count();
    let refused = posts.iter().filter(|post| post.intended >= shut && is_refused(post)).count();
    let unanswered = posts.iter().filter(|post| post.ended.is_none()).count();
    let figures = format!(
        "{} orders in the trouble, {unanswered} never answered; of {due} while writes were refused {refused} were \
         answered 503 with Retry-After within {SOON:?}; queue at most {longest} (limit {limit})",
        posts.len()
    );
    let enough = refused > 0 && refused * 100 >= due * SHARE;
    Verdict::when(longest <= limit && unanswered == 0 && enough, figures)
}

fn is_refused(post: &Operation) -> bool {
    let told = |why: &Failure| why.status == Some(503) && why.field("retry_after").is_some();
    post.failure().is_some_and(told) && post.latency().is_some_and(|took| took <= SOON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Outcome;
    use crate::observe::QueueSample;
    use crate::run::fixture::{ms, record};

    fn answered(run: Record, at: u64, took: Option<u64>, status: u16) -> Record {
        let detail = Some("retry_after=1".to_owned());
        let failure = Failure { status: Some(status), detail, ..Failure::local("try later") };
        run.with(Lane::Write, at, took, took.map(|_| Outcome::Fail(failure))).via(Via::Http)
    }

    fn run(queued: u64) -> Record {
        let mut run = record().refused(11_000, 1, "reason=breaker_open");
        // One that got stuck before anybody knew.
        run = answered(run, 10_100, Some(5_000), 500);
        for number in 0..20 {
            run = answered(run, 12_000 + number * 100, Some(3), 503);
        }
        run.queue.push(QueueSample { at: ms(12_000), queued, sessions: queued + 32 });
        run
    }

    #[test]
    fn a_queue_that_grows_in_the_reverse_proxy_is_found() {
        // What took the site down: requests that wait for a database that says nothing.
        assert!(check(&run(32), 32).holds());
        assert!(matches!(check(&run(33), 32), Verdict::Refuted(_)));
        assert!(matches!(check(&record(), 32), Verdict::Undecided(_)));
    }

    #[test]
    fn a_service_that_refuses_few_late_or_not_at_all_is_found() {
        // A single 503 among requests that hang used to be enough.
        let refuted = |run: Record| matches!(check(&run, 32), Verdict::Refuted(_));
        assert!(check(&answered(run(0), 15_000, Some(5_000), 500), 32).holds());

        let hangs = |took| (0..2).fold(run(0), |run, _| answered(run, 15_000, took, 503));
        assert!(refuted(hangs(Some(1_001))));
        assert!(refuted(hangs(None)));
        let wrong = (0..2).fold(run(0), |run, _| answered(run, 15_000, Some(3), 500));
        assert!(refuted(wrong));
    }
}
