//! Step 1 of 6. A page about Lyon counts its views: exactly, also when a reply gets lost.
//!
//! ```text
//! cargo run --example 01_counter --features embedded
//! ```

use std::time::Duration;

use futures::future::try_join_all;
use hedgerow::Client;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A private redis-server for this process; with REDIS_URL set, that one.
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let views = client.counter("views:lyon");
    views.set(0).await?;

    let added = views.add(1).await?;
    println!("one visitor: {} view", added.value);
    assert_eq!(added.value, 1);

    // A hundred visitors at once, on one connection.
    try_join_all((0..100).map(|_| async { views.add(1).await })).await?;
    println!("a hundred more at once: {} views", views.get().await?);
    assert_eq!(views.get().await?, 101);

    // When a reply is lost, nobody knows whether the view was counted. With an id it may be sent
    // again: within a minute it counts once, and each answer is that of the first. (The id is a
    // fresh one, so that this example can be run twice.)
    let request = format!("request:{:016x}", rand::random::<u64>());
    let first = views.add(1).once(&request, Duration::from_secs(60)).await?;
    let again = views.add(1).once(&request, Duration::from_secs(60)).await?;
    println!(
        "sent twice with one id: {} and {} views",
        first.value, again.value
    );
    assert_eq!((first.value, again.value), (102, 102));

    println!("the page was seen {} times", views.get().await?);
    assert_eq!(views.get().await?, 102);
    Ok(())
}
