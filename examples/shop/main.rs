//! A whole web service on hedgerow: a shop for postcards, as two instances on one Redis.
//!
//! ```text
//! make shop
//! cargo run --all-features --example shop -- --help
//! ```
//!
//! Its pages are rendered from SQLite and work without JavaScript. SQLite has the truth: products,
//! customers, orders. Redis has what the instances share: pages, data under the pages, sessions,
//! limits, the stock that is free, and the locks of customers.
//!
//! | file | idea |
//! |---|---|
//! | `supervisor.rs` | a private Redis and two instances, which end together |
//! | `instance.rs` | one instance: its routes and layers, and its end |
//! | `state.rs` | what every handler uses |
//! | `catalogue.rs` | public pages: a page cache over cached data, and what makes them new |
//! | `account.rs` | logging in and out, and the sessions of a customer |
//! | `login_limits.rs` | how often anyone may try to log in |
//! | `checkout.rs`, `order.rs` | buying: the pages, and how an order is placed once |
//! | `unfinished.rs` | orders that nobody has finished: their stock comes back |
//! | `admin.rs` | prices change, and then the pages |
//! | `health.rs` | `/health` and `/metrics` |
//! | `store/` | SQL: products, customers, orders, and the fences that they check |
//! | `view.rs`, `problem.rs`, `templates/`, `style.css` | how pages look, errors included |
//! | `password.rs` | passwords are stored as digests |

mod account;
mod admin;
mod args;
mod catalogue;
mod checkout;
mod health;
mod instance;
mod login_limits;
mod order;
mod password;
mod problem;
mod state;
mod store;
mod supervisor;
mod unfinished;
mod view;

use anyhow::Result;
use clap::Parser;

use crate::args::Args;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    match args.redis.clone() {
        Some(redis) => instance::run(&args, &redis).await,
        None => supervisor::run(&args).await,
    }
}
