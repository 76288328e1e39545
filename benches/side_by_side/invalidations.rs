//! A tag is invalidated: with one key under it, and with a million.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use hedgerow::Cache;
use hedgerow::embedded::Server;

use crate::slices::{Length, Result, Runs, patient, quartiles};

const TTL: Duration = Duration::from_secs(3600);

/// Each round invalidates tags that no round before it has, so that all keys are under them.
const ROUNDS: usize = 9;
const CALLS: usize = 100;

pub(crate) async fn run(runs: &Runs) -> Result<()> {
    let keys = match runs.length {
        Length::Full => 1_000_000,
        Length::Quick => 100_000,
    };
    let row = format!("invalidate_{keys}_keys/invalidate_1_key@1");
    if !runs.wants(&row) {
        return Ok(());
    }
    let server = Server::start().await?;
    let client = patient().url(server.url()).connect().await?;
    let cache = client.cache("tags");
    let tags = |side: &str| -> Vec<String> {
        let tag = |round| format!("{side}:{round}");
        (0..ROUNDS).map(tag).collect()
    };
    let (one, many) = (tags("one"), tags("many"));
    cache.set("alone", "x", TTL).tags(&one).await?;
    let start = Instant::now();
    filled(&cache, keys, &many).await?;
    eprintln!(
        "    {keys} keys with {ROUNDS} tags in {:.1?}",
        start.elapsed()
    );
    let (mut ratios, mut times) = (Vec::new(), (Vec::new(), Vec::new()));
    for (one, many) in one.iter().zip(&many) {
        let mut took = [Duration::ZERO; 2];
        for call in 0..CALLS {
            for side in [call % 2, (call + 1) % 2] {
                let start = Instant::now();
                cache.invalidate_tags([[one, many][side]]).await?;
                took[side] += start.elapsed();
            }
        }
        let [one, many] = took.map(|took| took.as_secs_f64() * 1e6 / CALLS as f64);
        ratios.push(many / one);
        times.0.push(one);
        times.1.push(many);
    }
    runs.report.add_spread(&row, quartiles(&mut ratios));
    let (one, many) = (quartiles(&mut times.0).1, quartiles(&mut times.1).1);
    eprintln!("    {many:.0} against {one:.0} µs a call");
    Ok(())
}

/// Stores entries with all of `tags`.
async fn filled(cache: &Cache, keys: usize, tags: &[String]) -> Result<()> {
    const PART: usize = 1000;
    let parts = (0..keys).step_by(PART).map(|start| async move {
        let names: Vec<String> = (start..start + PART).map(|key| key.to_string()).collect();
        let value = "x".to_owned();
        let items = names.iter().map(|name| (name, &value));
        for outcome in cache.set_many(items, TTL).tags(tags).await? {
            outcome?;
        }
        Ok::<_, hedgerow::Error>(())
    });
    let parts = stream::iter(parts).buffer_unordered(4);
    parts.try_collect::<()>().await?;
    Ok(())
}
