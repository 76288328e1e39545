//! A city service whose database is away. Values that have become stale are served meanwhile, and
//! `explain` says what is in the cache.
//!
//! ```text
//! cargo run --example stale --features embedded
//! ```

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hedgerow::Client;

static IS_AWAY: AtomicBool = AtomicBool::new(false);
static QUERIES: AtomicU32 = AtomicU32::new(0);

/// The database: the names of some cities, by one query.
async fn query(keys: Vec<String>) -> io::Result<HashMap<String, String>> {
    let query = QUERIES.fetch_add(1, Ordering::SeqCst) + 1;
    if IS_AWAY.load(Ordering::SeqCst) {
        return Err(io::Error::other("the database is away"));
    }
    let named = |key: String| (key.clone(), format!("{key} by query {query}"));
    Ok(keys.into_iter().map(named).collect())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let (cache, minute) = (client.cache("stale"), Duration::from_secs(60));
    cache.purge().await?;
    let ask = || {
        let cities = cache.memoize_many(["city:1", "city:2"], minute, query);
        cities.tags(["cities"]).stale_if_error(minute * 60)
    };
    ask().await?;
    // Both values are out of date at once, and the database goes away.
    cache.invalidate_tags(["cities"]).soft().await?;
    IS_AWAY.store(true, Ordering::SeqCst);
    for city in ask().await? {
        let city = city?.ok_or("no such city")?;
        println!("served stale: {city}");
        assert!(city.ends_with("by query 1"));
    }
    println!("{}", cache.explain("city:1").await?);

    // It is back. What is remembered of the failure ends with the next invalidation.
    IS_AWAY.store(false, Ordering::SeqCst);
    cache.invalidate_tags(["cities"]).soft().await?;
    for city in ask().await? {
        println!("fresh: {}", city?.ok_or("no such city")?);
    }
    assert_eq!(cache.stats().stale_served, 2);
    Ok(())
}
