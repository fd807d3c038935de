//! One budget, whatever the database does: `DATABASE_URL=… cargo run --example deadline`.

use std::time::{Duration, Instant};

use tidegate_client::{Error, Pool, deadline};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::connect(&std::env::var("DATABASE_URL")?)?;
    let start = Instant::now();

    let result = deadline::within(Duration::from_millis(300), async {
        let mut connection = pool.read().await?;
        connection.query("SELECT pg_sleep(60)", &[]).await
    });

    let error: Error = result.await.err().ok_or("it should not have slept for a minute")?;
    println!("answered after {:?}: {error}", start.elapsed());
    println!("outcome {}, safe to try again: {}", error.outcome(), error.is_safe_to_retry());
    // The statement was cancelled on the server, and its connection serves the next.
    pool.read().await?.query_one("SELECT 1", &[]).await?;
    Ok(())
}
