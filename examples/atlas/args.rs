//! The command line.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

/// A city service on hedgerow: several processes, one Redis, real data, and a referee.
///
/// Starts a private redis-server of its own, or uses the one that REDIS_URL names (in a namespace
/// of its own). Exits with 1 when a check fails.
#[derive(Debug, Parser)]
#[command(name = "atlas")]
pub(crate) struct Args {
    /// Worker processes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) workers: u32,

    /// How long to run
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,

    /// Readers in each worker
    #[arg(long, default_value_t = 16)]
    pub(crate) readers: usize,

    /// Writers in each worker
    #[arg(long, default_value_t = 2)]
    pub(crate) writers: usize,

    /// How long the loader thinks on top of its SQL, in milliseconds
    #[arg(long, default_value_t = 20)]
    pub(crate) think_ms: u64,

    /// Kill a worker (SIGKILL) in mid-load or mid-lock now and then, and start another
    #[arg(long)]
    pub(crate) kill: bool,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,

    /// Break one thing on purpose, to see that the checks notice
    #[arg(long, value_enum)]
    pub(crate) sabotage: Option<Sabotage>,

    /// Be a worker: the order comes on stdin
    #[arg(long, hide = true)]
    pub(crate) worker: bool,
}

/// What to break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Sabotage {
    /// Writers do not invalidate: readers must see stale pages
    Invalidation,
    /// Each writer locks a name of its own: critical sections must overlap
    Lock,
    /// Views are added without an id: those settled after a worker's end must count twice
    Counter,
}

impl Args {
    pub(crate) fn think(&self) -> Duration {
        Duration::from_millis(self.think_ms)
    }
}
