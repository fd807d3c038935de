//! Stuck writes do not take the readers down: `DATABASE_URL=… cargo run --example lanes`.

use std::time::{Duration, Instant};

use tidegate_client::{Builder, deadline};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Ten connections, of which writes may hold seven.
    let pool = Builder::parse(&std::env::var("DATABASE_URL")?)?.size(10).write_share(0.7).build()?;

    // Writers take all they can get and do not come to an end.
    let mut stuck = Vec::new();
    while let Ok(connection) = deadline::within(Duration::from_millis(100), pool.write()).await {
        stuck.push(connection);
    }
    let error = deadline::within(Duration::from_millis(100), pool.write()).await.err();
    println!("{} writers are stuck, the next is refused: {error:?}", stuck.len());

    let start = Instant::now();
    pool.read().await?.query_one("SELECT 1", &[]).await?;
    println!("a read took {:?}", start.elapsed());
    Ok(())
}
