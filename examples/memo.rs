//! A cached function, with its key, options and loaders in one place, and a loader that decides
//! whether its value is kept. The values are JSON, and encrypted.
//!
//! ```text
//! cargo run --example memo --features embedded,encrypt
//! ```

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hedgerow::{Client, Codec, Keyring};

const MINUTE: Duration = Duration::from_secs(60);
static QUERIES: AtomicU32 = AtomicU32::new(0);

/// Stands for a query, and counts it.
async fn load_city(id: u32) -> io::Result<String> {
    QUERIES.fetch_add(1, Ordering::SeqCst);
    Ok(format!("city {id}"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let keyring = Keyring::new(1, b"take 32 bytes that nobody knows!")?;
    let cache = client.cache("memo").codec(Codec::Json).encrypt(keyring);
    cache.purge().await?;
    let queries = || QUERIES.load(Ordering::SeqCst);
    let key = |id: &u32| format!("city:{id}");
    let cities = cache.memo(MINUTE, key, |id, _| load_city(id));

    println!("{}, {}", cities.get(&1).await?, cities.get(&1).await?);
    assert_eq!(queries(), 1);
    for city in cities.get_many(&[1, 2, 3]).await? {
        println!("{}", city?.ok_or("no such city")?);
    }
    assert_eq!(queries(), 3); // cities 2 and 3 were missing
    cities.invalidate(&1).await?;
    assert_eq!((cities.get(&1).await?.as_str(), queries()), ("city 1", 4));

    // A loader that says what becomes of its value: a draft is served, and not kept.
    for expected in [5, 6] {
        let draft = cache.memoize_with("draft", MINUTE, |load| async move {
            load.no_store();
            load_city(9).await
        });
        println!("a draft: {}", draft.await?);
        assert_eq!(queries(), expected);
    }

    // A handle without the key reads nothing, and leaves the entry alone.
    assert_eq!(client.cache("memo").get::<String>("city:1").await?, None);
    assert_eq!(client.cache("memo").foreign(), 1);
    Ok(())
}
