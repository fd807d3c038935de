//! Listening to the application. To ask for a wake-up costs a lock of the runtime's; one that was asked for holds until
//! something comes.

use std::io;
use std::task::{Context, Poll};

use tokio::task::coop;

use crate::io::{Flow, Stream};

/// Whether the task is woken when the application sends something. All reads from its stream go by here: only a read
/// can make a socket quiet again at which something had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ear {
    /// It has to ask for that first.
    Away,
    /// It is, as long as nothing has come.
    Attending,
}

impl Ear {
    /// Reads more into `flow`. Ready(0) is the end of the stream. To be polled by one task only.
    #[inline]
    pub(super) fn poll_listen(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut Stream,
        flow: &mut Flow,
    ) -> Poll<io::Result<usize>> {
        if *self == Self::Attending && app.is_quiet() {
            return Poll::Pending;
        }
        *self = Self::Away;
        let heard = flow.poll_fill(cx, app);
        // Whoever has used up its share of the worker is told to wait, too, and is woken for that alone.
        if heard.is_pending() && coop::has_budget_remaining() {
            *self = Self::Attending;
        }
        heard
    }

    /// Reads what is there already: see [`Flow::fill_now`].
    #[inline]
    pub(super) fn listen_now(&mut self, app: &mut Stream, flow: &mut Flow) -> Option<io::Result<usize>> {
        *self = Self::Away;
        flow.fill_now(app)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;

    use super::*;
    use crate::io::Socket;

    const SOON: Duration = Duration::from_secs(10);

    fn connected() -> (UnixStream, Stream) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        (theirs, Stream::Plain(Socket::Unix(ours)))
    }

    /// Takes all of the task's share.
    fn use_up(cx: &mut Context<'_>) {
        while coop::has_budget_remaining() {
            assert!(pin!(coop::consume_budget()).poll(cx).is_ready());
        }
    }

    #[tokio::test]
    async fn what_comes_is_heard_by_whoever_had_used_up_its_share_when_it_asked() {
        // It was not told when something comes, only to try again: taken for the former it would sleep for ever.
        let (mut app, mut stream) = connected();
        let (mut ear, mut flow) = (Ear::Away, Flow::default());
        let mut polls = 0;
        let listening = poll_fn(|cx| {
            polls += 1;
            if polls == 1 {
                use_up(cx);
            }
            ear.poll_listen(cx, &mut stream, &mut flow)
        });
        let speaking = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            app.write_all(b"hello").await.unwrap();
        };

        let (heard, ()) =
            tokio::time::timeout(SOON, async { tokio::join!(listening, speaking) }).await.unwrap();

        assert_eq!((heard.unwrap(), flow.unseen()), (5, &b"hello"[..]));
        assert!(polls > 1);
    }

    #[tokio::test]
    async fn what_came_unheeded_is_heard_later() {
        // The wake-up is spent then: a second one would not come.
        let (mut app, mut stream) = connected();
        let (mut ear, mut flow) = (Ear::Away, Flow::default());
        let first = poll_fn(|cx| Poll::Ready(ear.poll_listen(cx, &mut stream, &mut flow))).await;
        assert!(first.is_pending() && ear == Ear::Attending);
        app.write_all(b"hello").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;

        let heard = poll_fn(|cx| ear.poll_listen(cx, &mut stream, &mut flow));

        assert_eq!(tokio::time::timeout(SOON, heard).await.unwrap().unwrap(), 5);
    }

    #[tokio::test]
    async fn an_ear_that_attends_is_woken() {
        // What it does not ask for again must still hold, however often it is polled for other reasons.
        let (mut app, mut stream) = connected();
        let (mut ear, mut flow) = (Ear::Away, Flow::default());
        let listening = async {
            for round in 1..=3 {
                for _ in 0..3 {
                    let again = poll_fn(|cx| Poll::Ready(ear.poll_listen(cx, &mut stream, &mut flow)));
                    assert!(again.await.is_pending());
                }
                poll_fn(|cx| ear.poll_listen(cx, &mut stream, &mut flow)).await.unwrap();
                assert_eq!(flow.unseen().len(), round);
            }
        };
        let speaking = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                app.write_all(b".").await.unwrap();
            }
        };

        tokio::time::timeout(SOON, async { tokio::join!(listening, speaking) }).await.unwrap();
    }
}
