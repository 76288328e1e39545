//! How many scripts it takes to keep many locks.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use hedgerow::embedded::Server;
use hedgerow::{Client, Guard};

use crate::server_time::scripts;
use crate::slices::{Length, Result, Runs, driver};

pub(crate) async fn run(runs: &Runs) -> Result<()> {
    let many = "renewal_scripts_a_second@3000";
    if runs.wants(many) {
        let lease = Duration::from_secs(6);
        let (scripts, seconds) = kept(3000, lease, lease).await?;
        runs.report.add(many, scripts / seconds);
    }
    // A round takes 10 s.
    let most = "renewal_commands_a_round@10000";
    if runs.wants(most) && runs.length == Length::Full {
        let lease = Duration::from_secs(30);
        let (scripts, seconds) = kept(10_000, lease, lease / 3 * 2).await?;
        runs.report
            .add(most, scripts / (seconds / (lease / 3).as_secs_f64()));
    }
    Ok(())
}

/// Holds `count` locks for a time; answers how many scripts that took, and how many seconds.
async fn kept(count: usize, lease: Duration, time: Duration) -> Result<(f64, f64)> {
    let server = Server::start().await?;
    let client = Client::connect(server.url()).await?;
    let mut driver = driver(server.url()).await?;
    let mut guards: Vec<Guard> = Vec::with_capacity(count);
    for start in (0..count).step_by(100) {
        let some = (start..count.min(start + 100)).map(|name| {
            let lock = client.lock(&format!("kept:{name}")).lease(lease);
            async move { lock.acquire().await }
        });
        guards.extend(try_join_all(some).await?);
    }
    let (before, start) = (scripts(&mut driver).await?, Instant::now());
    tokio::time::sleep(time).await;
    let (after, took) = (scripts(&mut driver).await?, start.elapsed());
    assert!(guards.iter().all(Guard::is_held), "a lock was lost");
    eprintln!(
        "    {count} locks, {} scripts in {:.1} s",
        after.calls - before.calls,
        took.as_secs_f64()
    );
    Ok((after.calls - before.calls, took.as_secs_f64()))
}
