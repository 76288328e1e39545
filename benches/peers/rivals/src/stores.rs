//! `Store`: one of the crates, with a value of 100 bytes for each key.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use cached::{AsyncRedisCache, ConcurrentCachedAsync as _};
use hedgerow::Client;
use hitbox::concurrency::BroadcastConcurrencyManager;
use hitbox::policy::{ConcurrencyLimit, PolicyConfig};
use hitbox_fn::Cache as HitboxCache;
use hitbox_fn::cached as hitbox_cached;
use hitbox_redis::{ConnectionMode, RedisBackend};

use crate::slices::Result;

const TTL: Duration = Duration::from_secs(3600);

#[derive(Clone)]
pub(crate) enum Store {
    Hedgerow(hedgerow::Cache),
    Cached(Arc<AsyncRedisCache<String, String>>),
    Hitbox(Arc<HitboxCache<RedisBackend, BroadcastConcurrencyManager<String>>>),
}

impl Store {
    pub(crate) async fn named(name: &str, url: &str) -> Result<Self> {
        Ok(match name {
            "hedgerow" => Self::Hedgerow(Client::connect(url).await?.cache("rivals")),
            "cached" => {
                let builder = AsyncRedisCache::builder("rivals").ttl(TTL);
                let cache = builder.connection_string(url).build().await?;
                Self::Cached(Arc::new(cache))
            }
            _ => {
                let connection = ConnectionMode::single(url);
                let backend = RedisBackend::builder().connection(connection).build()?;
                let policy = PolicyConfig::builder().ttl(TTL);
                let one = ConcurrencyLimit::new(1).ok_or("one is a limit")?;
                let cache = HitboxCache::builder()
                    .backend(backend)
                    .policy(policy.concurrency(one).build())
                    .concurrency_manager(BroadcastConcurrencyManager::new())
                    .build();
                Self::Hitbox(Arc::new(cache))
            }
        })
    }

    /// Returns the value of `key`, which is made on the spot if it is missing.
    pub(crate) async fn load(&self, key: &str) -> Arc<String> {
        match self {
            Self::Hedgerow(cache) => {
                let load = || async { Ok::<_, Infallible>(made()) };
                cache.memoize(key, TTL, load).await.expect("loaded")
            }
            // What its macro `concurrent_cached` does.
            Self::Cached(cache) => {
                let key = key.to_owned();
                if let Some(value) = cache.async_cache_get(&key).await.expect("an answer") {
                    return Arc::new(value);
                }
                let value = made();
                let set = cache.async_cache_set(key, value.clone()).await;
                set.expect("stored");
                Arc::new(value)
            }
            Self::Hitbox(cache) => Arc::new(quick(key.to_owned()).cache(cache).await),
        }
    }

    /// As [`load`](Self::load), from the [`database`].
    pub(crate) async fn load_slowly(&self, key: &str) -> Arc<String> {
        match self {
            Self::Hedgerow(cache) => {
                let load = || async { Ok::<_, Infallible>(database::query().await) };
                cache.memoize(key, TTL, load).await.expect("loaded")
            }
            Self::Cached(cache) => {
                let key = key.to_owned();
                if let Some(value) = cache.async_cache_get(&key).await.expect("an answer") {
                    return Arc::new(value);
                }
                let value = database::query().await;
                let set = cache.async_cache_set(key, value.clone()).await;
                set.expect("stored");
                Arc::new(value)
            }
            Self::Hitbox(cache) => Arc::new(slow(key.to_owned()).cache(cache).await),
        }
    }
}

#[hitbox_cached(prefix = "quick")]
async fn quick(_key: String) -> String {
    made()
}

#[hitbox_cached(prefix = "slow")]
async fn slow(_key: String) -> String {
    database::query().await
}

fn made() -> String {
    "x".repeat(100)
}

/// What a herd must not overrun.
pub(crate) mod database {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use tokio::sync::Semaphore;

    pub(crate) static QUERIES: AtomicU64 = AtomicU64::new(0);

    static CONNECTIONS: Semaphore = Semaphore::const_new(10);

    /// Takes 10 ms, and one of the ten connections.
    pub(crate) async fn query() -> String {
        QUERIES.fetch_add(1, Ordering::SeqCst);
        let _connection = CONNECTIONS.acquire().await.expect("never closed");
        tokio::time::sleep(Duration::from_millis(10)).await;
        super::made()
    }
}
