//! Step 4 of 5. France changes its name. Every page that mentions it is out of date, at once.
//!
//! ```text
//! cargo run --example 04_tags --features embedded
//! ```

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hedgerow::{Cache, Client};

/// Stands for the database.
static COUNTRY: Mutex<&str> = Mutex::new("France");

/// The page about a city, loaded in `takes` if it is not in the cache.
async fn page(cache: &Cache, city: &'static str, takes: Duration) -> hedgerow::Result<Arc<String>> {
    let load = move || async move {
        let country = *COUNTRY.lock().unwrap_or_else(PoisonError::into_inner);
        tokio::time::sleep(takes).await;
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
    let cache = client.cache("atlas");
    cache.clear().await?;
    println!(
        "{} / {}",
        page(&cache, "Lyon", FAST).await?,
        page(&cache, "Nice", FAST).await?
    );

    // A slow load reads the old name, and is still under way when the name changes.
    let slow = tokio::spawn({
        let cache = cache.clone();
        async move { page(&cache, "Paris", SLOW).await }
    });
    tokio::time::sleep(SLOW / 2).await;

    // First the database, then the tag: one command, however many pages carry it.
    *COUNTRY.lock().unwrap_or_else(PoisonError::into_inner) = "Gaul";
    cache.invalidate_tags(["country:FR"]).await?;
    println!("the database says Gaul, and the tag is invalidated");

    // Whoever asks from here on sees the new name, also of the page that was being loaded.
    for city in ["Lyon", "Nice", "Paris"] {
        let page = page(&cache, city, FAST).await?;
        println!("{page}");
        assert_eq!(*page, format!("{city}, Gaul"));
    }
    println!(
        "the slow visitor had asked before the change and got: {}",
        slow.await??
    );
    Ok(())
}

const FAST: Duration = Duration::from_millis(5);
const SLOW: Duration = Duration::from_millis(200);
