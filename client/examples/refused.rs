//! A lane that is known not to work refuses at once: `DATABASE_URL=… cargo run --example refused`.

use std::time::Instant;

use tidegate_client::{Force, Lane, Pool};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::connect(&std::env::var("DATABASE_URL")?)?;
    // An order stands for an outage here; the breaker trips by itself when writes hang.
    pool.force(Lane::Write, Force::Open);
    while pool.refusal(Lane::Write).is_none() {
        tokio::task::yield_now().await;
    }

    let start = Instant::now();
    let error = pool.write().await.err().ok_or("the lane should be shut")?;
    println!("refused after {:?}: {error}", start.elapsed());
    println!("try again after {:?}", error.retry_after());

    pool.read().await?.query_one("SELECT 1", &[]).await?;
    println!("reads go on");
    Ok(())
}
