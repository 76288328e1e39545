//! What a call costs while its server hangs and the circuit breaker is open.

use std::convert::Infallible;
use std::process::Command;
use std::time::{Duration, Instant};

use hedgerow::embedded::Server;
use hedgerow::{Client, ErrorKind, Outage};

use crate::slices::{Length, Result, Runs, driver, p99, quartiles};

/// A failed read, a read that bypasses Redis, and a load that does.
const ROWS: [&str; 3] = [
    "open_breaker_get_us",
    "open_breaker_get_bypass_us",
    "open_breaker_memoize_bypass_us",
];

pub(crate) async fn run(runs: &Runs) -> Result<()> {
    if !ROWS.iter().any(|row| runs.wants(row)) {
        return Ok(());
    }
    let server = Server::start().await?;
    let builder = Client::builder().url(server.url());
    let builder = builder.cache_deadline(Duration::from_millis(100));
    let client = builder.connect().await?;
    let strict = client.cache("outage");
    strict.get::<String>("key").await?;
    let pid = pid(server.url()).await?;
    signal(pid, "-STOP")?;
    let calls = match runs.length {
        Length::Full => 20_000,
        Length::Quick => 5_000,
    };
    let bypass = strict.clone().outage(Outage::Bypass);
    for row in ROWS.iter().filter(|row| runs.wants(row)) {
        until_open(&strict).await;
        let mut times = Vec::with_capacity(calls);
        for call in 0..calls {
            let start = Instant::now();
            match *row {
                "open_breaker_get_us" => {
                    // Now and then a call is let through to find out whether the server is back.
                    strict.get::<String>("key").await.expect_err("it hangs");
                }
                "open_breaker_get_bypass_us" => {
                    assert!(bypass.get::<String>("key").await?.is_none());
                }
                _ => {
                    let load = move || async move { Ok::<_, Infallible>(call) };
                    let loaded = bypass.memoize("key", Duration::from_secs(60), load);
                    assert_eq!(*loaded.await?, call);
                }
            }
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        runs.report.add_spread(row, quartiles(&mut times));
        let worst = p99(&mut times);
        let p99 = row.replace("_us", "_p99_us");
        runs.report.add(&p99, worst);
    }
    signal(pid, "-CONT")?;
    Ok(())
}

/// Asks until the breaker is open.
async fn until_open(cache: &hedgerow::Cache) {
    loop {
        let error = cache.get::<String>("key").await.expect_err("it hangs");
        if error.kind() == ErrorKind::CircuitOpen {
            return;
        }
    }
}

pub(crate) async fn pid(url: &str) -> Result<u32> {
    let info = redis::cmd("INFO");
    let info: String = info.query_async(&mut driver(url).await?).await?;
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("process_id:"));
    Ok(id.ok_or("INFO names no process")?.trim().parse()?)
}

pub(crate) fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("kill")
        .args([name, &pid.to_string()])
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("kill {name} {pid}").into()),
    }
}
