//! Step 3 of 6. The page about Lyon is slow to load. A hundred visitors cause one load.
//!
//! ```text
//! cargo run --example 03_memoize --features embedded
//! ```

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future::try_join_all;
use hedgerow::Client;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct City(String, u32);

static LOADS: AtomicU32 = AtomicU32::new(0);

/// Stands for a query that takes its time.
async fn load_lyon() -> std::io::Result<City> {
    LOADS.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(City("Lyon".to_owned(), 522_250))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let cache = client.cache("steps");
    cache.remove("lyon").await?;
    let minute = Duration::from_secs(60);

    // A hundred visitors ask for a page that is not there. One load serves them all, and it would
    // if they came to a hundred processes: the load is leased in Redis.
    let visit = || async { cache.memoize("lyon", minute, load_lyon).await };
    let pages = try_join_all((0..100).map(|_| visit())).await?;
    println!(
        "{} visitors, {} load",
        pages.len(),
        LOADS.load(Ordering::Relaxed)
    );
    assert_eq!(LOADS.load(Ordering::Relaxed), 1);

    // The next one finds it in Redis.
    let City(name, people) = &*visit().await?;
    println!(
        "{name} has {people} people; still {} load",
        LOADS.load(Ordering::Relaxed)
    );
    assert_eq!(LOADS.load(Ordering::Relaxed), 1);
    Ok(())
}
