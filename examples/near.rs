//! What this process has read is served from its memory until another process changes it, and for a
//! while after the server is gone.
//!
//! ```text
//! cargo run --example near --features embedded,near
//! ```

use std::time::Duration;

use hedgerow::Client;
use hedgerow::cache::NearCache;
use hedgerow::embedded::Server;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::start().await?;
    let connect = || Client::builder().url(server.url()).connect();
    let (here, elsewhere) = (connect().await?, connect().await?); // as two processes would

    let near = NearCache::new().outage_grace(MINUTE);
    let prices = here.cache("prices").near(near); // one handle for all of the process
    let their_prices = elsewhere.cache("prices");
    their_prices.set("tea", "12.50", MINUTE).await?;

    // The first reads go to Redis. The near cache serves once the server tells of changes.
    let price = || async { prices.get::<String>("tea").await };
    while prices.stats().near_hits == 0 {
        price().await?;
    }
    for _ in 0..10_000 {
        assert_eq!(*price().await?.ok_or("it is there")?, "12.50");
    }
    println!("{} reads sent nothing", prices.stats().near_hits);
    assert!(prices.stats().near_hits > 1_000);

    // Another process changes the price. The server tells of it.
    their_prices.set("tea", "11.80", MINUTE).await?;
    let strict = prices.clone().strict().get::<String>("tea").await?;
    assert_eq!(*strict.ok_or("it is there")?, "11.80"); // never late
    while *price().await?.ok_or("it is there")? != "11.80" {} // late by about a round trip
    println!("the new price is served here, too");

    // The server is gone. What was valid until then is served, for a minute at most.
    let hits = prices.stats().near_hits;
    while prices.stats().near_hits == hits {
        price().await?;
    }
    drop(server);
    while prices.stats().near_grace == 0 {
        assert_eq!(*price().await?.ok_or("it is held")?, "11.80");
    }
    println!(
        "the server is gone, and the price is still {:?}",
        price().await?
    );
    Ok(())
}
