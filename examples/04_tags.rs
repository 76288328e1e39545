//! Step 4 of 6. France redraws its map. Every page that shows it is out of date, at once.
//!
//! ```text
//! cargo run --example 04_tags --features embedded
//! ```

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hedgerow::{Cache, Client};

/// Stands for the database.
static MAP: AtomicU32 = AtomicU32::new(1);

/// The page about a city; its load reads the database and then takes its time.
async fn page(cache: Cache, city: &'static str) -> hedgerow::Result<Arc<String>> {
    let load = move || async move {
        let map = MAP.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok::<_, Infallible>(format!("{city}, as on map {map}"))
    };
    let page = cache.memoize(city, Duration::from_secs(60), load);
    page.tags(["country:FR"]).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let cache = client.cache("steps");
    cache.clear().await?;
    println!("{}", page(cache.clone(), "Lyon").await?);

    // A load that has read the old map is still under way when the new one comes out.
    let early = tokio::spawn(page(cache.clone(), "Paris"));
    tokio::time::sleep(Duration::from_millis(50)).await;

    // First the database, then the tag: one command, however many pages carry it.
    MAP.store(2, Ordering::SeqCst);
    cache.invalidate_tags(["country:FR"]).await?;
    println!("map 2 is out, and the tag of France invalidated");

    // Calls that begin now see the new map, also on the page that was being loaded.
    for city in ["Lyon", "Paris"] {
        let page = page(cache.clone(), city).await?;
        println!("{page}");
        assert_eq!(*page, format!("{city}, as on map 2"));
    }
    println!("who had asked before that got: {}", early.await??);
    Ok(())
}
