//! TLS towards the server.

#![expect(clippy::unwrap_used, reason = "whatever is not as it should be fails the test")]

mod support;
#[path = "support/tls.rs"]
mod tls;

use support::{brief, is_quiet, wait_until};
use tidegate_client::{Builder, ErrorKind};
use tls::{server, trusting};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_over_tls_are_proven_idle_and_cancelled_like_others() {
    // The frames must be read above TLS: ciphertext proves nothing, and every connection would be thrown away.
    const ATTEMPTS: usize = 10;
    let server = server();
    let url = format!("postgres://postgres@localhost:{}/postgres?sslmode=require", server.node.port());
    let pool =
        Builder::parse(&url).unwrap().timeouts(brief()).tls(trusting(&[server.certificate])).build().unwrap();
    let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert!(pool.read().await.unwrap().query_one(ssl, &[]).await.unwrap().get::<_, bool>(0));
    for _ in 0..ATTEMPTS {
        let mut connection = pool.write().await.unwrap();
        let pid = connection.backend_pid();

        let cancelled = connection.query("SELECT pg_sleep(10)", &[]).await.unwrap_err();
        drop(connection);

        assert_eq!(cancelled.kind(), ErrorKind::Timeout);
        if let Some(code) = cancelled.sqlstate() {
            assert_eq!(code.code(), "57014");
            // The error may come before the end of its exchange.
            wait_until("the permit is back", || is_quiet(&pool)).await;
            assert_eq!(pool.write().await.unwrap().backend_pid(), pid);
            return;
        }
        // A machine so busy that a handshake and a cancel take a tenth of a second.
        wait_until("the permit is back", || is_quiet(&pool)).await;
    }
    panic!("no cancel was in time in {ATTEMPTS} attempts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_trusted_is_refused() {
    // Encryption towards whoever answers protects nothing.
    let server = server();
    let url = format!("postgres://postgres@localhost:{}/postgres?sslmode=require", server.node.port());

    let strangers = Builder::parse(&url).unwrap().timeouts(brief()).tls(trusting(&[])).build().unwrap();
    let without = Builder::parse(&url).unwrap().timeouts(brief()).build().unwrap();

    assert_eq!(strangers.read().await.unwrap_err().kind(), ErrorKind::Connect);
    assert_eq!(without.read().await.unwrap_err().kind(), ErrorKind::Connect);
}
