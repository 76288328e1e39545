//! Step 5 of 6. Ann's lock is taken away while she edits. Her guard reports that, and she stops.
//! Without it, the page would refuse what she writes, because it has seen a newer fence.
//!
//! ```text
//! cargo run --example 05_lost_lock --features embedded
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hedgerow::{Client, Fence};
use tokio::time::{sleep, timeout};

/// Stands for `UPDATE page SET text = ?, fence = ? WHERE fence <= ?`: was the row changed?
fn write(newest: &AtomicU64, fence: Fence) -> bool {
    newest.fetch_max(fence.get(), Ordering::SeqCst) <= fence.get()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let (lock, page) = (client.lock("page:lyon"), AtomicU64::new(0));

    let ann = lock.acquire().await?;
    println!("Ann writes with fence {}", ann.fence());
    assert!(write(&page, ann.fence()));

    // She goes on editing until she is done, or until she no longer holds the lock.
    let editing = async {
        tokio::select! {
            () = sleep(Duration::from_secs(60)) => panic!("the loss was not reported"),
            reason = ann.lost() => reason,
        }
    };
    // Meanwhile an operator takes the lock away. Her guard hears of it by itself.
    let breaking = async { lock.break_lock().await };
    let both = async { tokio::join!(editing, breaking) };
    let (reason, broken) = timeout(Duration::from_secs(5), both).await?;
    println!("Ann has lost the lock: {reason:?}");
    assert!(broken? && !ann.is_held());

    let bob = lock.acquire().await?;
    println!("Bob writes with fence {}", bob.fence());
    assert!(write(&page, bob.fence()));

    // As if Ann had been asleep and had heard nothing.
    assert!(!write(&page, ann.fence()));
    println!("Ann's late write is refused");
    Ok(bob.release().await?)
}
