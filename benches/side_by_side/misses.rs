//! A thousand missing keys: loaded by one `memoize_many`, and by a thousand `memoize`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use hedgerow::Cache;

use crate::slices::{Length, Result, Runs, patient, quartiles};

const TTL: Duration = Duration::from_secs(3600);
const KEYS: usize = 1000;

/// One after the other and all at once, with loaders that cost nothing; one after the other, with
/// loaders that take as long as a query over a network.
const ROWS: [(&str, Duration); 3] = [
    ("memoize_many_1000/memoize_1000@1", Duration::ZERO),
    ("memoize_many_1000/memoize_1000@1000", Duration::ZERO),
    ("memoize_many_1000_query/memoize_1000_query@1", QUERY),
];

const QUERY: Duration = Duration::from_millis(1);

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    let cache = patient().url(url).connect().await?.cache("misses");
    let rounds = match runs.length {
        Length::Full => 11,
        Length::Quick => 5,
    };
    for (row, query) in ROWS.iter().filter(|(row, _)| runs.wants(row)) {
        let mut ratios = Vec::new();
        let mut seen = (Duration::ZERO, Duration::ZERO);
        // The first round connects and loads the scripts.
        for round in 0..=rounds {
            let name = |side: &str| -> Vec<String> {
                let key = |key| format!("{row}:{side}:{round}:{key}");
                (0..KEYS).map(key).collect()
            };
            let (ours, theirs) = (name("batch"), name("single"));
            let start = Instant::now();
            batch(&cache, &ours, *query).await?;
            let took = start.elapsed();
            let start = Instant::now();
            match row.ends_with("@1") {
                true => {
                    for key in &theirs {
                        single(&cache, key, *query).await?;
                    }
                }
                false => {
                    try_join_all(theirs.iter().map(|key| single(&cache, key, *query))).await?;
                }
            }
            seen = (took, start.elapsed());
            if round > 0 {
                ratios.push(seen.1.as_secs_f64() / seen.0.as_secs_f64());
            }
        }
        runs.report.add_spread(row, quartiles(&mut ratios));
        eprintln!("    {KEYS} keys: {:.1?} against {:.1?}", seen.0, seen.1);
    }
    Ok(())
}

async fn batch(cache: &Cache, keys: &[String], query: Duration) -> Result<()> {
    let load = move |keys: Vec<String>| async move {
        takes(query).await;
        let values = keys.into_iter().map(|key| (key, "x".repeat(100)));
        Ok::<_, Infallible>(values.collect::<HashMap<_, _>>())
    };
    for value in cache.memoize_many(keys, TTL, load).await? {
        assert_eq!(value?.expect("loaded").len(), 100);
    }
    Ok(())
}

async fn single(cache: &Cache, key: &str, query: Duration) -> Result<()> {
    let load = move || async move {
        takes(query).await;
        Ok::<_, Infallible>("x".repeat(100))
    };
    assert_eq!(cache.memoize(key, TTL, load).await?.len(), 100);
    Ok(())
}

/// What the source of the data takes for one query.
async fn takes(query: Duration) {
    if !query.is_zero() {
        tokio::time::sleep(query).await;
    }
}
