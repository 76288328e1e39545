//! Ratios of hedgerow to the bare driver and to its rival, measured side by side.
//!
//! Both sides of a ratio run alternately in short slices on one server in one process, and the
//! median of the slices' ratios is printed: `name ratio`. Higher is better, but for
//! `handoff_p99/round_trip`, which is in round trips, and `herd_commands_per_process`, a count.

mod cache;
mod counter;
mod lock;
mod slices;
mod topologies;

use hedgerow::embedded;
use slices::{Result, Runs};

fn main() -> Result<()> {
    let runs = Runs::from_args();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let server = embedded::Server::start().await?;
        cache::run(server.url(), &runs).await?;
        counter::run(server.url(), &runs).await?;
        lock::run(server.url(), &runs).await?;
        topologies::run(&runs).await
    })
}
