//! A cluster of three primaries and their replicas loses a primary while counters, locks and a
//! cache are in use. The calls stay the same; those that meet the crash wait for the replica.
//!
//! ```text
//! cargo run --example cluster --features embedded
//! ```

#[path = "servers/cluster.rs"]
mod servers;

use std::time::{Duration, Instant};

use hedgerow::Client;
use servers::Cluster;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut cluster = Cluster::start(3, true).await?;
    println!("three primaries with a replica each are up");
    // Any of its servers will do as a seed; two, in case one is down when the client starts.
    let client = Client::builder()
        .cluster(cluster.seeds().into_iter().take(2))
        .deadline(Duration::from_secs(20))
        .connect()
        .await?;

    for number in 0..30 {
        client.counter(&format!("views:{number}")).add(1).await?;
    }
    let cache = client.cache("catalogue");
    let load = || async { Ok::<_, std::io::Error>("Lyon".to_owned()) };
    let city = cache.memoize("city:42", Duration::from_secs(60), load);
    println!(
        "counted 30 views, cached {}",
        city.tags(["country:FR"]).await?
    );
    let guard = client.lock("invoice:7").acquire().await?;
    println!("a lock is held with fence {}", guard.fence());
    let fence = guard.fence();
    guard.release().await?;

    println!("the first primary is killed");
    cluster.kill(0);
    let (crashed, mut slowest, mut unknown) = (Instant::now(), Duration::ZERO, 0);
    for number in 0..30 {
        let started = Instant::now();
        // An addition that was sent and not answered is reported as unknown, never as counted.
        match client.counter(&format!("views:{number}")).add(1).await {
            Ok(_) => {}
            Err(error) if error.is_indeterminate() => unknown += 1,
            Err(error) => return Err(error.into()),
        }
        slowest = slowest.max(started.elapsed());
    }
    println!(
        "30 more views within {:.1?}, {unknown} unknown; the slowest call took {slowest:.1?}",
        crashed.elapsed()
    );
    let guard = client.lock("invoice:7").acquire().await?;
    assert!(guard.fence() > fence);
    println!(
        "the lock is granted with a greater fence, {}",
        guard.fence()
    );
    cache.invalidate_tags(["country:FR"]).await?;
    println!("and the tag is invalidated");
    Ok(guard.release().await?)
}
