//! Any future may be dropped: `DATABASE_URL=… cargo run --example dropped`.

use std::time::Duration;

use tidegate_client::{Error, Pool, TxOptions, TxOutcome};
use tokio::time::timeout;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::connect(&std::env::var("DATABASE_URL")?)?;
    pool.write().await?.batch_execute("CREATE TABLE IF NOT EXISTS dropped (id int)").await?;

    // A transaction that holds a lock is abandoned in the middle of a statement.
    let abandoned = pool.transaction(TxOptions::write(), async |mut tx| {
        tx.batch_execute("LOCK TABLE dropped").await?;
        tx.batch_execute("SELECT pg_sleep(60)").await
    });
    let late: Result<TxOutcome<(), Error>, _> = timeout(Duration::from_millis(200), abandoned).await;
    println!("abandoned: {}", late.is_err());

    // The statement is cancelled and the lock is free, long before the minute is over.
    let next: TxOutcome<(), Error> = pool
        .transaction(TxOptions::write(), async |mut tx| tx.batch_execute("LOCK TABLE dropped").await)
        .await;
    println!("next: {next:?}");
    Ok(())
}
