//! A primary with two replicas, watched by three sentinels, is killed while a counter, a lock and a
//! cache are in use. The client asks the sentinels, and goes on with the replica that they promote.
//!
//! ```text
//! cargo run --example sentinel --features embedded
//! ```

#[path = "servers/sentinels.rs"]
mod servers;

use std::time::{Duration, Instant};

use hedgerow::{Client, cache::ReadFrom};
use servers::{SERVICE, Sentinels};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut servers = Sentinels::start(2).await?;
    let primary = servers.primary().await?;
    println!("the primary is at port {primary}, say three sentinels");
    let client = Client::builder()
        .sentinels(servers.urls(), SERVICE)
        .deadline(Duration::from_secs(20))
        .cache_deadline(Duration::from_secs(20))
        .connect()
        .await?;

    let counter = client.counter("views");
    let cache = client.cache("catalogue").read_from(ReadFrom::PreferReplica);
    cache
        .set("city:42", &"Lyon", Duration::from_secs(60))
        .await?;
    let guard = client.lock("invoice:7").acquire().await?;
    let fence = guard.fence();
    println!("a lock is held with fence {fence}");
    guard.release().await?;
    for _ in 0..100 {
        counter.add(1).await?;
    }
    println!("counted to {}", counter.get().await?);

    println!("the primary is killed");
    servers.kill(primary);
    let crashed = Instant::now();
    let (mut counted, mut unknown, mut slowest) = (100, 0, Duration::ZERO);
    while counted < 200 {
        let started = Instant::now();
        // An addition that was sent and not answered is reported as unknown, never as counted.
        match counter.add(1).await {
            Ok(_) => counted += 1,
            Err(error) if error.is_indeterminate() => unknown += 1,
            Err(error) => return Err(error.into()),
        }
        slowest = slowest.max(started.elapsed());
    }
    println!(
        "100 more within {:.1?}, {unknown} unknown; the slowest call took {slowest:.1?}",
        crashed.elapsed()
    );
    let promoted = servers.promoted_after(primary).await?;
    println!("the primary is at port {promoted} now");

    // What the old primary had acknowledged and not passed on is lost; nothing is counted twice.
    let value = counter.get().await?;
    println!("the counter stands at {value}");
    assert!(value <= counted + unknown);
    let guard = client.lock("invoice:7").acquire().await?;
    assert!(guard.fence() > fence);
    println!(
        "the lock is granted with a greater fence, {}",
        guard.fence()
    );
    guard.release().await?;
    let load = || async { Ok::<_, std::io::Error>("Lyon".to_owned()) };
    let city = cache
        .memoize("city:42", Duration::from_secs(60), load)
        .await?;
    println!("cached: {city}");
    Ok(())
}
