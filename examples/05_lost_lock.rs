//! Step 5 of 5. Ann's lock is taken away while she edits. She is told, stops, and could not have
//! done harm anyway: what she writes to has seen a newer fence.
//!
//! ```text
//! cargo run --example 05_lost_lock --features embedded
//! ```

use std::sync::Arc;
use std::time::Duration;

use hedgerow::{Client, Fence};
use tokio::sync::Mutex;

/// Stands for a database row: a text, and the newest fence that wrote it.
#[derive(Default)]
struct Page {
    text: &'static str,
    fence: u64,
}

/// `UPDATE page SET text = ?, fence = ? WHERE fence <= ?`; whether the row was changed.
async fn write(page: &Mutex<Page>, text: &'static str, fence: Fence) -> bool {
    let mut page = page.lock().await;
    if fence.get() < page.fence {
        return false;
    }
    *page = Page {
        text,
        fence: fence.get(),
    };
    true
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let (lock, page) = (
        client.lock("page:lyon"),
        Arc::new(Mutex::new(Page::default())),
    );

    let ann = lock.acquire().await?;
    assert!(write(&page, "Ann was here", ann.fence()).await);
    println!("Ann writes with fence {}", ann.fence());

    // An operator decides that she has held it long enough. Her guard hears of it by itself.
    lock.break_lock().await?;
    let why = tokio::time::timeout(Duration::from_secs(5), ann.lost()).await?;
    println!("Ann is told that her lock is lost: {why:?}");
    assert!(!ann.is_held());

    let bob = lock.acquire().await?;
    assert!(write(&page, "Bob was here", bob.fence()).await);
    println!("Bob writes with fence {}", bob.fence());

    // Had Ann been asleep and not listening, the fence would still have stopped her.
    assert!(!write(&page, "Ann again", ann.fence()).await);
    println!(
        "Ann's late write is refused; the page says: {}",
        page.lock().await.text
    );
    Ok(bob.release().await?)
}
