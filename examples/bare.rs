//! Values that another program reads and writes, which knows nothing of hedgerow. It reads what
//! was loaded, as plain text. What it writes is read here. After it has removed a value and its
//! lease, the value is loaded anew.
//!
//! ```text
//! cargo run --example bare --features embedded
//! ```

use std::time::Duration;

use hedgerow::embedded::Server;
use hedgerow::{Client, Codec};

const MINUTE: Duration = Duration::from_secs(60);
/// The tea in the cache `prices`, as others see it.
const VALUE: &str = "hr:b:{prices:tea}";
const LEASE: &str = "hr:bl:{prices:tea}";

/// Stands for a query.
async fn ask_the_shop() -> std::io::Result<String> {
    Ok("12.50".to_owned())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::start().await?;
    let client = Client::builder().url(server.url()).connect().await?;
    let prices = client.cache("prices").codec(Codec::Raw).bare();
    let price = || async { prices.memoize("tea", MINUTE, ask_the_shop).await };

    println!("loaded: {}", price().await?);

    // It could as well be redis-cli, or a script in Python.
    let other = redis::Client::open(server.url())?;
    let mut other = other.get_multiplexed_async_connection().await?;
    let command = |words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command
    };
    let seen: String = command(&["GET", VALUE]).query_async(&mut other).await?;
    println!("the other program reads {seen:?}");
    assert_eq!(seen, "12.50");

    let set = command(&["SET", VALUE, "11.80", "EX", "60"]);
    set.exec_async(&mut other).await?;
    let present = price().await?;
    println!("it has written {present:?}, so nothing is loaded");
    assert_eq!(present.as_str(), "11.80");

    // Both keys: so that a load that is under way is not stored.
    command(&["DEL", VALUE, LEASE])
        .exec_async(&mut other)
        .await?;
    let loaded = price().await?;
    println!("it has removed that, so it is loaded: {loaded:?}");
    assert_eq!(loaded.as_str(), "12.50");
    Ok(())
}
