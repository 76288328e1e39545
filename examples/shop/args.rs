//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// A shop for postcards of cities: pages, sessions, limits, stock and orders on one Redis.
///
/// Without `--redis` it starts a private server and two instances of itself, and prints their
/// addresses. With `--redis` it is one instance.
#[derive(Debug, Clone, Parser)]
#[command(name = "shop")]
pub(crate) struct Args {
    /// The port of the first instance; the second one has the next. 0 stands for any that is free
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,

    /// Be one instance, on this Redis
    #[arg(long, requires = "database")]
    pub(crate) redis: Option<String>,

    /// The SQLite database of an instance; it is made if it is not there
    #[arg(long)]
    pub(crate) database: Option<PathBuf>,

    /// Where an instance listens
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,

    /// The name of an instance, which its pages show
    #[arg(long, default_value = "A")]
    pub(crate) name: String,

    /// Proxies whose `X-Forwarded-For` an instance believes, as addresses or networks
    #[arg(long)]
    pub(crate) trusted_proxy: Vec<String>,

    /// How many logins one address may try in a minute
    #[arg(long, default_value_t = 20)]
    pub(crate) logins_per_minute: u32,

    /// End an instance when its standard input is closed, which its parent holds
    #[arg(long, hide = true)]
    pub(crate) with_parent: bool,

    /// How many seconds a call of Redis may take. A person waits for it
    #[arg(long, default_value_t = 2)]
    pub(crate) patience: u64,

    /// After how many seconds an order that was not finished is given up
    #[arg(long, default_value_t = 60)]
    pub(crate) give_up_after: u64,
}
