//! A plain add against the driver's own INCR and against distkit's strict counter, and beside large
//! values on the same client.

use std::time::{Duration, Instant};

use hedgerow::{Client, Codec, Compression};

use crate::rivals::Distkit;
use crate::slices::{Result, Runs, TASKS, driver, median, spread};

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    let driver = driver(url).await?;
    let client = Client::connect(url).await?;
    let ours = async |tasks: usize, until: Instant| {
        spread(tasks, |task| {
            let counter = client.counter(&format!("bench:{task}"));
            async move {
                let mut done = 0;
                while Instant::now() < until {
                    counter.add(1).await.expect("added");
                    done += 1;
                }
                done
            }
        })
        .await
    };
    let theirs = async |tasks: usize, until: Instant| {
        spread(tasks, |task| {
            let mut driver = driver.clone();
            async move {
                let key = format!("bare:{task}");
                let mut done = 0;
                while Instant::now() < until {
                    let _: i64 = redis::cmd("INCR")
                        .arg(&key)
                        .query_async(&mut driver)
                        .await
                        .expect("counted");
                    done += 1;
                }
                done
            }
        })
        .await
    };
    let distkit = Distkit::connect(url).await?;
    let rival = async |tasks: usize, until: Instant| distkit.adds(tasks, until).await;
    for tasks in TASKS {
        if runs.wants("counter_add/raw_incr") {
            let name = format!("counter_add/raw_incr@{tasks}");
            runs.compare(&name, tasks, ours, theirs).await;
        }
        if runs.wants("counter_add/distkit") {
            let name = format!("counter_add/distkit@{tasks}");
            runs.compare(&name, tasks, ours, rival).await;
        }
    }
    if runs.wants("counter_add_beside_large/alone") {
        beside_large(url, runs).await?;
    }
    Ok(())
}

/// The median time of an add while 400 readers of the same client read values of 1 MB, and of an
/// add without them.
async fn beside_large(url: &str, runs: &Runs) -> Result<()> {
    const READERS: usize = 400;
    /// Readers of one value share what is read at the same time.
    const VALUES: usize = 16;
    let client = Client::builder()
        .url(url)
        .deadline(Duration::from_secs(60))
        .cache_deadline(Duration::from_secs(60))
        .connect()
        .await?;
    // Compressed, it would be no large value on its way.
    let cache = client.cache("large").codec(Codec::Raw);
    let cache = cache.compression(Compression::None);
    for key in 0..VALUES {
        let value = "x".repeat(1 << 20);
        let key = format!("megabyte:{key}");
        cache.set(&key, &value, Duration::from_secs(600)).await?;
    }
    let counter = client.counter("beside:large");
    let add = async |until: Instant| -> Result<f64> {
        let mut times = Vec::new();
        while Instant::now() < until {
            let start = Instant::now();
            counter.add(1).await?;
            times.push(start.elapsed().as_secs_f64());
        }
        Ok(median(&mut times))
    };
    add(Instant::now() + Duration::from_millis(200)).await?;
    let alone = add(Instant::now() + Duration::from_secs(1)).await?;
    let stop = Instant::now() + Duration::from_secs(5);
    let readers = tokio::spawn(spread(READERS, move |reader| {
        let cache = cache.clone();
        let key = format!("megabyte:{}", reader % VALUES);
        async move {
            let mut done = 0;
            while Instant::now() < stop {
                let read = cache.get::<String>(&key).await.expect("read");
                assert_eq!(read.map_or(0, |text| text.len()), 1 << 20);
                done += 1;
            }
            done
        }
    }));
    // They have read for a while before it is measured.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let beside = add(Instant::now() + Duration::from_secs(3)).await?;
    let read = readers.await?;
    let name = format!("counter_add_beside_large/alone@{READERS}");
    runs.report.add(&name, beside / alone);
    let (beside, alone) = (beside * 1e6, alone * 1e6);
    eprintln!("    p50 {beside:.0} us beside {read} reads of 1 MB, {alone:.0} us alone");
    Ok(())
}
