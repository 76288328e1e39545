//! A service that shows what its cache does, as Prometheus scrapes it.
//!
//! ```text
//! cargo run --example metrics --features embedded,metrics
//! ```

use std::time::Duration;

use hedgerow::Client;
use metrics_exporter_prometheus::PrometheusBuilder;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Before the first call of a client. A service serves what `render` returns at `/metrics`, or
    // lets the exporter listen by itself.
    let prometheus = PrometheusBuilder::new().install_recorder()?;
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let (cache, minute) = (client.cache("metrics"), Duration::from_secs(60));
    cache.purge().await?;

    let load = || async { Ok::<_, std::io::Error>("Lyon, 522250 people".repeat(500)) };
    for _ in 0..10 {
        cache.memoize("city:42", minute, load).await?;
    }
    assert!(cache.get::<String>("city:43").await?.is_none());

    let page = prometheus.render();
    println!("{page}");
    for (metric, expected) in [
        ("hedgerow_cache_hits_total", 9.0),
        ("hedgerow_cache_misses_total", 2.0),
        ("hedgerow_cache_loads_total", 1.0),
        ("hedgerow_cache_encoded_bytes_total", 9503.0),
        ("hedgerow_cache_load_duration_seconds_count", 1.0),
        ("hedgerow_cache_store_duration_seconds_count", 1.0),
    ] {
        assert_eq!(value(&page, metric), Some(expected), "{metric}");
    }
    let compressed = value(&page, "hedgerow_cache_compressed_bytes_total");
    assert!(compressed.is_some_and(|bytes| bytes < 1000.0));
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads), (9, 2, 1));
    Ok(())
}

/// What the page says of the metric of this name.
fn value(page: &str, metric: &str) -> Option<f64> {
    let mut lines = page.lines();
    let line = lines.find(|line| line.split('{').next() == Some(metric))?;
    line.rsplit(' ').next()?.parse().ok()
}
