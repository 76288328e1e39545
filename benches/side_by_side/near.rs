//! Hits of the near cache, against a bare `moka` and against the driver's own GET.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hedgerow::Cache;
use hedgerow::cache::NearCache;
use moka::sync::Cache as Moka;

use crate::slices::{Result, Runs, driver, patient, spread};

const KEYS: usize = 1000;
const TTL: Duration = Duration::from_secs(3600);
const TAGS: [&str; 3] = ["country:AD", "region:02", "kind:city"];

type Keys = Arc<Vec<String>>;

/// Each row is ours against theirs, with one task.
const ROWS: [&str; 4] = [
    "near_hit/moka_get@1",
    "near_hit_3tags/moka_get@1",
    "near_hit/raw_get@1",
    "near_hit_memoize/raw_get@1",
];

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    if !ROWS.iter().any(|row| runs.wants(row)) {
        return Ok(());
    }
    let driver = driver(url).await?;
    let client = patient().url(url).connect().await?;
    let keys: Keys = Arc::new((0..KEYS).map(|key| format!("near:{key}")).collect());
    let small = "x".repeat(100);
    let moka: Moka<String, Arc<String>> = Moka::new(10_000);
    let plain = client.cache("near").near(NearCache::new());
    let tagged = client.cache("near-tagged").near(NearCache::new());
    for key in keys.iter() {
        plain.set(key, &small, TTL).await?;
        tagged.set(key, &small, TTL).tags(TAGS).await?;
        moka.insert(key.clone(), Arc::new(small.clone()));
        let mut set = redis::cmd("SET");
        let set = set.arg(format!("bare:{key}")).arg(&small);
        set.exec_async(&mut driver.clone()).await?;
    }
    for cache in [&plain, &tagged] {
        hold(cache, &keys).await?;
    }
    let bare = async |tasks, until| in_moka(&moka, &keys, tasks, until).await;
    let ours = async |tasks, until| hits(&plain, &keys, tasks, until).await;
    let with_tags = async |tasks, until| hits(&tagged, &keys, tasks, until).await;
    let loads = async |tasks, until| memoized(&plain, &keys, tasks, until).await;
    let raw = async |tasks, until| {
        spread(tasks, |task| {
            let (mut driver, keys) = (driver.clone(), keys.clone());
            async move {
                let mut done = 0;
                while Instant::now() < until {
                    let key = format!("bare:{}", keys[(task + done) % KEYS]);
                    let mut get = redis::cmd("GET");
                    let value: String = get.arg(key).query_async(&mut driver).await.expect("there");
                    assert_eq!(value.len(), 100);
                    done += 1;
                }
                done as u64
            }
        })
        .await
    };
    for row in ROWS.iter().filter(|row| runs.wants(row)) {
        match *row {
            "near_hit/moka_get@1" => runs.compare(row, 1, ours, bare).await,
            "near_hit_3tags/moka_get@1" => runs.compare(row, 1, with_tags, bare).await,
            "near_hit_memoize/raw_get@1" => runs.compare(row, 1, loads, raw).await,
            _ => runs.compare(row, 1, ours, raw).await,
        }
    }
    Ok(())
}

/// Reads until the near cache holds every key.
pub(crate) async fn hold(cache: &Cache, keys: &[String]) -> Result<()> {
    loop {
        let before = cache.stats().near_hits;
        for key in keys {
            cache.get::<String>(key).await?;
        }
        if cache.stats().near_hits - before == keys.len() as u64 {
            return Ok(());
        }
    }
}

async fn hits(cache: &Cache, keys: &Keys, tasks: usize, until: Instant) -> u64 {
    spread(tasks, |task| {
        let (cache, keys) = (cache.clone(), keys.clone());
        async move {
            let mut done = 0;
            while Instant::now() < until {
                for _ in 0..AT_ONCE {
                    let key = &keys[(task + done) % KEYS];
                    let value = cache.get::<String>(key).await.expect("an answer");
                    assert_eq!(value.expect("a value").len(), 100);
                    done += 1;
                }
            }
            done as u64
        }
    })
    .await
}

async fn memoized(cache: &Cache, keys: &Keys, tasks: usize, until: Instant) -> u64 {
    spread(tasks, |task| {
        let (cache, keys) = (cache.clone(), keys.clone());
        async move {
            let mut done = 0;
            while Instant::now() < until {
                for _ in 0..AT_ONCE {
                    let key = &keys[(task + done) % KEYS];
                    let load = || async { Err::<String, _>("a hit loads nothing") };
                    let value = cache.memoize(key, TTL, load).await.expect("a hit");
                    assert_eq!(value.len(), 100);
                    done += 1;
                }
            }
            done as u64
        }
    })
    .await
}

async fn in_moka(
    moka: &Moka<String, Arc<String>>,
    keys: &Keys,
    tasks: usize,
    until: Instant,
) -> u64 {
    spread(tasks, |task| {
        let (moka, keys) = (moka.clone(), keys.clone());
        async move {
            let mut done = 0;
            while Instant::now() < until {
                for _ in 0..AT_ONCE {
                    let key = &keys[(task + done) % KEYS];
                    assert_eq!(moka.get(key).expect("a value").len(), 100);
                    done += 1;
                }
            }
            done as u64
        }
    })
    .await
}

/// How many hits are made between two looks at the clock, which would take a part of each.
const AT_ONCE: usize = 100;
