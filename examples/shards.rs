//! A cache over two independent servers gets a third one, and is not emptied by it.
//!
//! ```text
//! cargo run --example shards --features embedded
//! ```

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hedgerow::embedded::Server;
use hedgerow::{Cache, Client, ClientBuilder, Result};

/// Short, since the last step waits until what was stored before has expired.
const TTL: Duration = Duration::from_secs(5);
const CITIES: usize = 1000;

#[tokio::main]
async fn main() -> Result<()> {
    let servers = [
        Server::start().await?,
        Server::start().await?,
        Server::start().await?,
    ];
    let (old, new) = (over(&servers[..2]), over(&servers));

    let before = catalogue(Client::builder().shards(old.clone())).await?;
    pass("two shards, empty", &before).await?;
    pass("two shards", &before).await?;

    // Each step goes to every process before the next one begins; two may run side by side.
    let first = Client::builder()
        .shards(old.clone())
        .migrate_to(new.clone());
    let first = catalogue(first).await?;
    pass("step 1, as before", &first).await?;

    let second = Client::builder()
        .shards(new.clone())
        .migrate_from(old.clone());
    let second = catalogue(second).await?;
    let begun = Instant::now();
    let hits = pass("step 2, three shards", &second).await?;
    assert!(hits > 0.95, "the cache was emptied");

    // What one of them removes, the other does not find.
    first.remove("city:1").await?;
    assert!(second.get::<usize>("city:1").await?.is_none());
    second.remove("city:2").await?;
    assert!(first.get::<usize>("city:2").await?.is_none());

    println!(
        "the last process of step 1 ends; what it stored expires, and is loaded where it belongs"
    );
    drop(first);
    while begun.elapsed() < TTL.mul_f64(1.1) {
        serve(&second).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let after = catalogue(Client::builder().shards(new.clone())).await?;
    pass("step 3, three shards", &after).await?;

    // The same in one step, for comparison.
    let jump = |shards| Client::builder().namespace("jump").shards(shards);
    serve(&catalogue(jump(old)).await?).await?;
    let hits = pass("without the steps", &catalogue(jump(new)).await?).await?;
    assert!(hits < 0.95, "nothing was to be gained");
    Ok(())
}

/// Name, URL and weight of each; the name is what a shard is.
fn over(servers: &[Server]) -> Vec<(&'static str, String, u32)> {
    let names = ["a", "b", "c"].into_iter().zip(servers);
    names
        .map(|(name, server)| (name, server.url().to_owned(), 1))
        .collect()
}

async fn catalogue(builder: ClientBuilder) -> Result<Cache> {
    Ok(builder.connect().await?.cache("catalogue"))
}

/// Asks for every city; prints how many of them were there.
async fn pass(what: &str, cache: &Cache) -> Result<f64> {
    let hits = serve(cache).await?;
    println!("{what:<22} {:5.1} % hits", hits * 100.0);
    Ok(hits)
}

async fn serve(cache: &Cache) -> Result<f64> {
    let loads = Arc::new(AtomicUsize::new(0));
    for city in 0..CITIES {
        let loads = loads.clone();
        let load = move || async move {
            loads.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(city)
        };
        let call = cache.memoize(&format!("city:{city}"), TTL, load);
        assert_eq!(*call.tags([format!("country:{}", city % 20)]).await?, city);
    }
    Ok(1.0 - loads.load(Ordering::Relaxed) as f64 / CITIES as f64)
}
