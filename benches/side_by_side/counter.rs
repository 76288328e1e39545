//! A plain add against the driver's own INCR.

use std::time::Instant;

use hedgerow::Client;

use crate::slices::{Result, Runs, TASKS, compare, driver, spread};

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    if !runs.wants("counter_add/raw_incr") {
        return Ok(());
    }
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
    for tasks in TASKS {
        compare(
            &format!("counter_add/raw_incr@{tasks}"),
            tasks,
            ours,
            theirs,
        )
        .await;
    }
    Ok(())
}
