//! Step 6 of 6. Redis hangs. A hundred visitors get the page about Lyon all the same, from one
//! load, and soon nobody waits for Redis any more. An invalidation that cannot be made is told.
//!
//! ```text
//! cargo run --example 06_outage --features embedded
//! ```

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use hedgerow::embedded::Server;
use hedgerow::{Client, ErrorKind, Outage};

static LOADS: AtomicU32 = AtomicU32::new(0);

/// Stands for a query that takes its time.
async fn load_lyon() -> std::io::Result<String> {
    LOADS.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok("Lyon, 522250 people".to_owned())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A server of its own, whatever REDIS_URL says: it is about to be stopped.
    let server = Server::start().await?;
    let builder = Client::builder().url(server.url());
    let builder = builder.cache_deadline(Duration::from_millis(200));
    let client = builder.connect().await?;
    let cache = client.cache("steps").outage(Outage::Bypass);
    let visit = || async { cache.memoize("lyon", MINUTE, load_lyon).await };
    visit().await?;
    assert_eq!(LOADS.load(Ordering::Relaxed), 1);

    let pid = pid(server.url()).await?;
    signal(pid, "-STOP")?;
    let start = Instant::now();
    let pages = try_join_all((0..100).map(|_| visit())).await?;
    let (first, loads) = (start.elapsed(), LOADS.load(Ordering::Relaxed) - 1);
    println!(
        "Redis hangs; {} visitors, {loads} load, {first:.0?} for all",
        pages.len()
    );
    assert_eq!(loads, 1);

    // Who asks not to bypass is told, and tells us when the circuit breaker opens.
    let strict = client.cache("steps");
    loop {
        match strict.get::<String>("lyon").await {
            Err(error) if error.kind() == ErrorKind::CircuitOpen => break,
            Err(error) if error.kind().is_outage() => println!("still asking: {error}"),
            other => panic!("a server that hangs answered {other:?}"),
        }
    }
    let start = Instant::now();
    for _ in 0..100 {
        assert!(cache.get::<String>("lyon").await?.is_none());
    }
    let (reads, visit_start) = (start.elapsed() / 100, Instant::now());
    assert_eq!(*visit().await?, *pages[0]);
    println!(
        "the breaker is open; a read takes {reads:.0?}, and a visit {:.0?}, which is the query",
        visit_start.elapsed()
    );

    // What would leave a stale page behind never fails silently.
    let error = cache.remove("lyon").await.expect_err("Redis hangs");
    println!("remove says: {error}");
    println!("done without Redis: {:?}", cache.bypassed());

    signal(pid, "-CONT")?;
    // A call that is let through finds out that the server is back.
    while strict.get::<String>("lyon").await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let before = LOADS.load(Ordering::Relaxed);
    visit().await?;
    visit().await?;
    assert!(LOADS.load(Ordering::Relaxed) <= before + 1, "cached again");
    println!("Redis is back, and so is the cache");
    Ok(())
}

const MINUTE: Duration = Duration::from_secs(60);

async fn pid(url: &str) -> Result<u32, Box<dyn std::error::Error>> {
    let mut admin = redis::Client::open(url)?
        .get_multiplexed_async_connection()
        .await?;
    let info: String = redis::cmd("INFO").query_async(&mut admin).await?;
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("process_id:"));
    Ok(pid.ok_or("INFO names no process")?.trim().parse()?)
}

fn signal(pid: u32, name: &str) -> std::io::Result<()> {
    let status = Command::new("kill")
        .args([name, &pid.to_string()])
        .status()?;
    assert!(status.success(), "kill {name} {pid}");
    Ok(())
}
