//! Ratios of hedgerow to the bare driver and to its rivals, measured side by side.
//!
//! Both sides of a ratio run alternately in short slices on one server in one process, and the
//! median of the slices' ratios is printed beside its target. Higher is better for ratios of
//! throughput; times, counts and CPU are better when they are lower, as their targets say.

mod batches;
mod cache;
mod counter;
mod handoff;
mod invalidations;
#[cfg(feature = "limit")]
mod limits;
mod lock;
mod misses;
#[cfg(feature = "near")]
mod near;
#[cfg(feature = "near")]
mod near_tags;
mod outage;
#[cfg(all(feature = "http", feature = "near"))]
mod page;
#[cfg(all(feature = "http", feature = "near"))]
mod pages;
mod renewals;
mod report;
mod rivals;
mod server_time;
#[cfg(all(feature = "http", feature = "near"))]
mod site;
mod slices;
mod topologies;

use hedgerow::embedded;
use slices::{Length, Result, Runs};

fn main() -> Result<()> {
    let runs = Runs::from_args();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let server = embedded::Server::start().await?;
        cache::run(server.url(), &runs).await?;
        batches::run(server.url(), &runs).await?;
        #[cfg(feature = "near")]
        {
            near::run(server.url(), &runs).await?;
            near_tags::run(&runs).await?;
        }
        misses::run(server.url(), &runs).await?;
        invalidations::run(&runs).await?;
        outage::run(&runs).await?;
        counter::run(server.url(), &runs).await?;
        #[cfg(feature = "limit")]
        limits::run(server.url(), &runs).await?;
        #[cfg(all(feature = "http", feature = "near"))]
        pages::run(server.url(), &runs).await?;
        lock::run(server.url(), &runs).await?;
        handoff::run(server.url(), &runs).await?;
        renewals::run(&runs).await?;
        server_time::run(&runs).await?;
        if runs.length == Length::Full {
            topologies::run(&runs).await?;
        }
        runs.finish(env!("CARGO_MANIFEST_DIR"))
    })
}
