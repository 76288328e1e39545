//! Step 6 of 6. Redis hangs. A hundred visitors still get the page about Lyon, from one load, and
//! soon nobody waits for Redis any more. An invalidation that cannot be made reports an error.
//!
//! ```text
//! cargo run --example 06_outage --features embedded
//! ```

#[path = "servers/halting.rs"]
mod servers;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use hedgerow::{Client, ErrorKind, Outage};

const SOON: Duration = Duration::from_millis(200);
static LOADS: AtomicU32 = AtomicU32::new(0);

/// Stands for a query that takes its time.
async fn load_lyon() -> std::io::Result<String> {
    LOADS.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(SOON).await;
    Ok("Lyon, 522250 people".to_owned())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = servers::Halting::start().await?;
    let builder = Client::builder().url(server.url());
    let client = builder.cache_deadline(SOON).open()?;
    let cache = client.cache("steps").outage(Outage::Bypass);
    let visit = || async { cache.memoize("lyon", SOON * 300, load_lyon).await };
    visit().await?;

    server.halt()?;
    let pages = try_join_all((0..100).map(|_| visit())).await?;
    println!("Redis hangs: {} visitors, one load", pages.len());
    assert_eq!(LOADS.load(Ordering::Relaxed), 2);

    // A handle that does not bypass reports the outage. Soon the circuit breaker is open.
    let strict = client.cache("steps");
    let read = async || strict.get::<String>("lyon").await;
    let is_open = |error: &hedgerow::Error| error.kind() == ErrorKind::CircuitOpen;
    while !read().await.as_ref().is_err_and(is_open) {}
    let start = Instant::now();
    assert!(cache.get::<String>("lyon").await?.is_none());
    println!("now a read takes {:.0?}", start.elapsed());
    // What would leave a stale page behind never fails silently.
    let error = cache.remove("lyon").await.expect_err("Redis hangs");
    println!("remove: {error}");

    server.go_on()?;
    while read().await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("Redis is back: {}", visit().await?);
    Ok(())
}
