//! Step 2 of 6. Two editors want to change the page about Lyon: one at a time, and fenced.
//!
//! ```text
//! cargo run --example 02_lock --features embedded
//! ```

use std::time::Duration;

use hedgerow::Client;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };

    // Ann has the page. The guard renews itself for as long as she keeps it, and if her process
    // dies, the lock is free 10 s later at most.
    let page = client.lock("page:lyon").lease(Duration::from_secs(10));
    let ann = page.acquire().await?;
    println!("Ann edits, with fence {}", ann.fence());

    // Bob looks whether it is free. It is not, and that is an answer, not an error.
    assert!(page.try_acquire().await?.is_none());
    println!("Bob finds it taken");

    // Bob waits. Ann's release hands the lock over to him, without any polling.
    let waiting = tokio::spawn({
        let page = page.clone();
        async move { page.wait(Duration::from_secs(5)).acquire().await }
    });
    let ann_fence = ann.fence();
    ann.release().await?;
    let bob = waiting.await??;
    println!("Ann is done; Bob edits, with fence {}", bob.fence());

    // Each grant has a larger fence than the one before. Whatever the editors write to remembers
    // the largest and refuses smaller ones: UPDATE .. WHERE fence <= ?
    assert!(bob.fence() > ann_fence);
    bob.release().await?;

    // The short form: acquire, run, release; cancelled if the lock is lost on the way.
    let length = page
        .with(|fence| async move { format!("edited under {fence}").len() })
        .await?;
    println!("and a quick edit of {length} letters");
    Ok(())
}
