//! A small city service, as several processes on one Redis: the crate's main job on real data.
//!
//! Readers ask for pages of cities and countries through `memoize`; the loader queries SQLite.
//! Writers rename places inside a fenced lock per country and then invalidate the country's tag.
//! Every read adds one to a view counter. All the while a referee looks for what must never
//! happen: a stale page, two holders of one lock, a view counted twice or not at all.
//!
//! ```text
//! cargo run --release --example atlas --features embedded -- --help
//! ```
//!
//! | file | idea |
//! |---|---|
//! | `pages.rs` | the service: what is cached, how it is loaded |
//! | `reader.rs`, `writer.rs` | its users: one reads and counts, one locks, renames, invalidates |
//! | `database.rs` | SQLite: the truth behind the pages, and the fence that it checks |
//! | `popularity.rs` | which page is asked for: a few are hot |
//! | `referee.rs`, `ledger.rs` | how a broken promise is seen, and why a kill hides nothing |
//! | `worker.rs`, `fleet.rs` | one process; and their parent, which starts, kills and settles |
//! | `report.rs`, `screen.rs`, `args.rs` | figures and checks; live display; command line |

mod args;
mod database;
mod fleet;
mod ledger;
mod pages;
mod popularity;
mod reader;
mod referee;
mod report;
mod screen;
mod worker;
mod writer;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::Args;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if args.worker {
        worker::run().await?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = tokio::select! {
        report = fleet::run(&args) => report?,
        // Dropping the fleet kills its workers and ends the server.
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted");
            return Ok(ExitCode::from(130));
        }
    };
    if args.json {
        println!("{}", serde_json::to_string(&report.figures)?);
    } else {
        println!("{report}");
    }
    Ok(report.verdict())
}
