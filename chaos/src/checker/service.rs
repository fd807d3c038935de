//! A stuck database does not clog the HTTP layer.

use crate::history::{Lane, Operation, Via};
use crate::run::Record;

use super::Verdict;

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
    let status = |post: &&&Operation, wanted| post.failure().and_then(|why| why.status) == Some(wanted);
    let refused = posts.iter().filter(|post| status(post, 503)).count();
    let says_when = |post: &&&Operation| post.failure().is_some_and(|why| why.field("retry_after").is_some());
    let when = posts.iter().filter(|post| status(post, 503) && says_when(post)).count();
    let served = posts.iter().filter(|post| post.is_ok()).count();
    let figures = format!(
        "{} orders in the trouble: {served} accepted, {refused} answered 503, {when} with Retry-After, {} otherwise; queue at most {longest} (limit {limit})",
        posts.len(),
        posts.len() - served - refused
    );
    Verdict::when(longest <= limit && refused > 0 && when == refused, figures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Failure, Outcome};
    use crate::observe::QueueSample;
    use crate::run::fixture::{ms, record};

    fn run(queued: u64) -> Record {
        let detail = Some("retry_after=1".to_owned());
        let failure = Failure { status: Some(503), detail, ..Failure::local("try later") };
        let mut run =
            record().with(Lane::Write, 12_000, Some(3), Some(Outcome::Fail(failure))).via(Via::Http);
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
}
