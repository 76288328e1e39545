//! Step 4 of 5. France changes its name. Every page that mentions it is out of date, at once.
//!
//! ```text
//! cargo run --example 04_tags --features embedded
//! ```

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hedgerow::{Cache, Client};

/// Stands for the database.
static RENAMED: AtomicBool = AtomicBool::new(false);

/// The page about a city; its load reads the database and then takes its time.
async fn page(cache: &Cache, city: &'static str) -> hedgerow::Result<Arc<String>> {
    let load = move || async move {
        let country = if RENAMED.load(Ordering::SeqCst) {
            "Gaul"
        } else {
            "France"
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok::<_, Infallible>(format!("{city}, {country}"))
    };
    cache
        .memoize(city, Duration::from_secs(60), load)
        .tags(["country:FR"])
        .await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let cache = client.cache("steps");
    cache.clear().await?;
    println!("{}", page(&cache, "Lyon").await?);

    // A load that has read the old name is still under way when the name changes.
    let early = tokio::spawn({
        let cache = cache.clone();
        async move { page(&cache, "Paris").await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;

    // First the database, then the tag: one command, however many pages carry it.
    RENAMED.store(true, Ordering::SeqCst);
    cache.invalidate_tags(["country:FR"]).await?;
    println!("France is renamed, and its tag invalidated");

    // Whoever asks from here on sees the new name, also of the page that was being loaded.
    for city in ["Lyon", "Paris"] {
        let page = page(&cache, city).await?;
        println!("{page}");
        assert_eq!(*page, format!("{city}, Gaul"));
    }
    println!("who had asked for Paris before that got: {}", early.await??);
    Ok(())
}
