//! How a transaction ended: `DATABASE_URL=… cargo run --example outcome`.

use tidegate_client::{Error, Pool, Retry, TxOptions, TxOutcome};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::connect(&std::env::var("DATABASE_URL")?)?;
    let outcome: TxOutcome<u64, Error> = pool
        .transaction(TxOptions::write().retry(Retry::Safe), async |mut tx| {
            tx.batch_execute("CREATE TABLE IF NOT EXISTS outcome (id int)").await?;
            tx.execute("INSERT INTO outcome VALUES ($1)", &[&1_i32]).await
        })
        .await;
    match outcome {
        TxOutcome::Committed(rows) => println!("{rows} row is durable"),
        TxOutcome::RolledBack(error) => {
            println!("nothing has happened ({error}); safe to try again: {}", error.is_safe_to_retry());
        }
        TxOutcome::Unknown { error, .. } => println!("look before you try again ({error})"),
    }
    Ok(())
}
