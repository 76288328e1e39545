//! Distributed primitives over Redis and Valkey that hold under failure: fenced locks, weighted
//! semaphores, exact counters, cached loads that do not stampede, invalidation by tag.
//!
//! # The mental model
//!
//! **A [`Client`] is the way to the servers**: one, the primary that
//! [sentinels](ClientBuilder::sentinels) name, a [cluster](ClientBuilder::cluster), or independent
//! [shards](ClientBuilder::shards). It is cheap to clone, connects when it is first needed, and
//! reconnects when a connection is lost. [`Client::open`] makes one without I/O;
//! [`Client::connect`] also waits for the servers to answer. Everything else is a handle made from
//! it: [`Counter`], [`Lock`], [`Semaphore`], [`Cache`]. A handle costs nothing to make, and does
//! nothing until it is awaited.
//!
//! **Redis holds the truth, and Redis forgets.** Keys expire, are evicted, and are lost with the
//! server. So each primitive is built so that a missing key is safe: no generation, no hit; no
//! lease, no commit; no fence counter, the clock.
//! [`docs/guarantees.md`](https://github.com/hedgerow-rs/hedgerow/blob/main/docs/guarantees.md)
//! says what then still holds, and what does not.
//!
//! **A right ends by itself.** A lock, permits, and the right to load a value are *leases*: the
//! server ends them at a deadline. The holder renews its lease while it lives. Its own clock tells
//! it, without I/O, until when it surely has the lease.
//!
//! **A paused process cannot know that it is late.** Therefore each grant of a lock has a
//! [`Fence`], a number that rises. Pass it to the resource that the lock protects, and let the
//! resource refuse a fence smaller than one that it has seen.
//!
//! **Pushes are hints, timers are the rule.** A waiter is woken by a message, and has a timer in
//! case no message comes.
//!
//! **Waiting is shared.** In each process, a hundred tasks that wait for one lock, or for one load,
//! send one query to the server.
//!
//! # Counters
//!
//! ```no_run
//! # use std::time::Duration;
//! # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
//! let stock = client.counter("stock:42");
//! let left = stock.add(-1).within(0..=i64::MAX).once("order:981", Duration::from_secs(3600)).await?;
//! println!("{} left", left.value);
//! # Ok(())
//! # }
//! ```
//!
//! # Locks
//!
//! ```no_run
//! # use std::time::Duration;
//! # async fn charge(invoice: u32, fence: hedgerow::Fence) {}
//! # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
//! let lock = client.lock("invoice:7").wait(Duration::from_secs(2));
//! let guard = lock.acquire().await?;
//! tokio::select! {
//!     () = charge(7, guard.fence()) => guard.release().await?,
//!     reason = guard.lost() => println!("stopped half way: {reason:?}"),
//! }
//! // Shorter. A release that is left to the background is no error here:
//! client.lock("invoice:8").with(|fence| charge(8, fence)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Semaphores
//!
//! ```no_run
//! # async fn export() {}
//! # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
//! let permits = client.semaphore("exports", 20).acquire().await?; // at most 20 in the whole fleet
//! export().await;
//! permits.release().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Cached loads and tags
//!
//! ```no_run
//! # use std::{io, time::Duration};
//! # async fn load_city(id: u32) -> io::Result<String> { Ok(id.to_string()) }
//! # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
//! let cache = client.cache("catalogue");
//! let city = cache
//!     .memoize("city:42", Duration::from_secs(60), || load_city(42))
//!     .tags(["country:FR"])
//!     .await?;
//! println!("{city}");
//! cache.invalidate_tags(["country:FR"]).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The settings of a cache say what it does while Redis is unavailable ([`Outage`]: it fails, or
//! bypasses Redis), how values are written ([`Codec`]: CBOR, JSON, raw bytes, others by feature, or
//! a [`CustomCodec`]; [`Compression`]: LZ4, others by feature, or none), how much TTLs differ
//! ([`Cache::jitter`]), and how long a load may take ([`Cache::max_load`]). A value that must stay
//! until it is removed lives for [`FOREVER`].
//!
//! Loads of several keys ([`Cache::memoize_many`]), a cached function ([`Cache::memo`]), and
//! loaders that decide tags and TTL ([`Cache::memoize_with`]) are shared in the same way. Stale
//! values can be served while a value is loaded anew ([`Memoize::stale`](cache::Memoize::stale)).
//!
//! # Web services
//!
//! Three parts stand on these primitives, each behind a feature and with a page of the
//! [guide](https://github.com/hedgerow-rs/hedgerow/blob/main/docs/guide/README.md): rate limits
//! (`limit`), login sessions (`session`), and whole responses that are cached (`http`).
//!
//! # Errors
//!
//! There is one type, [`Error`]. Its [`kind`](Error::kind) gives the reason. Its text (one sentence
//! of at most 512 bytes) says what happened, at which server, and what to do. Two methods report
//! what became of the call:
//!
//! | fate | asked by | what to do |
//! |---|---|---|
//! | not executed, or only a read | [`is_retryable`](Error::is_retryable) | the same call may succeed later |
//! | refused | neither | change something first |
//! | executed, but not acknowledged by the replicas that [`durable`](cache::Invalidate::durable) asks for | neither | it holds, unless a failover undoes it |
//! | unknown | [`is_indeterminate`](Error::is_indeterminate) | it ran once or not at all: find out, or repeat it if it may be repeated |
//!
//! If a call may be sent again without harm, the crate sends it again itself, until the deadline.
//!
//! ```no_run
//! # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
//! match client.counter("views:42").add(1).await {
//!     Ok(added) => println!("{}", added.value),
//!     Err(error) if error.is_indeterminate() => println!("counted, or not: {error}"),
//!     Err(error) => return Err(error),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Deadlines
//!
//! A call ends by its deadline, retries and reconnecting included: [5 s](ClientBuilder::deadline),
//! for calls of a cache [1 s](ClientBuilder::cache_deadline). Nothing is sent after it. Some calls
//! wait for more than the server: [`Lock::acquire`] and [`Semaphore::acquire`] wait for holders, as
//! long as [`wait`](Lock::wait) says, and [`Cache::memoize`] waits for a loader, as long as
//! [`max_load`](Cache::max_load) says.
//!
//! # Cancel safety
//!
//! Any future may be dropped at any point. A dropped `acquire` leaves neither a lease nor a
//! position in a queue. A task of the client, the keeper, releases what was granted to the dropped
//! call, before or after the drop. A dropped `memoize` leaves its load to complete and be stored. A
//! dropped write was applied or not, as the documentation of each function says.
//!
//! # Tracing
//!
//! Spans and events go to the targets below. Names of keys, locks, semaphores and scripts appear in
//! them, unless [`ClientBuilder::hide_keys`] hides them. Values, passwords and tokens never do.
//! [`docs/observability.md`](https://github.com/hedgerow-rs/hedgerow/blob/main/docs/observability.md)
//! lists all of them with their fields.
//!
//! | target | spans | events worth an alert |
//! |---|---|---|
//! | `hedgerow::client` | | `the server is out; the breaker is open`, `the connection is silent; giving it up`, `connected` more often than servers restart |
//! | `hedgerow::script` | `script` | |
//! | `hedgerow::counter` | | |
//! | `hedgerow::lock` | `acquire`, `release` | |
//! | `hedgerow::semaphore` | `acquire` | |
//! | `hedgerow::sync` | | `lost`, of locks and permits |
//! | `hedgerow::limit` | `until_ready` | `limits do without Redis` |
//! | `hedgerow::cache` | `load` | `not stored`, `damaged`, `caches do without Redis`, `invalidations wait to be delivered` |
//! | `hedgerow::pages` | | `a page cannot be stored`, `not purged` |
//! | `hedgerow::session` | | |
//!
//! # Features
//!
//! None by default. `embedded` adds `Client::embedded` and the module `embedded`: a private server
//! process for examples, tests and development. `near` adds `Cache::near`: values that were read
//! are served without a command until the server tells of a change. `encrypt` adds `Cache::encrypt`
//! and `Keyring`. `msgpack` and `postcard` add codecs, `zstd` and `deflate` compressors. `metrics`
//! passes what caches count to the recorder of the `metrics` facade. `limit` adds
//! `Client::rate_limiter` and `Client::rate_limits`: rate limits over all processes. `http` adds
//! the module `http` with `PageCache`, a layer for axum and other tower services that keeps their
//! pages in Redis; with `limit`, `http::RateLimitLayer` puts limits in front of them. `session`
//! adds `SessionStore`, a store of tower-sessions. `tls` adds `rediss://` and `Tls`: TLS and mutual
//! TLS by rustls.
//!
//! # Guide
//!
//! [The guide](https://github.com/hedgerow-rs/hedgerow/blob/main/docs/guide/README.md) goes from a
//! first call to production: a cache step by step, every verb with its cost, outages, codecs, and
//! how to migrate from other caches.

mod background;
pub mod cache;
pub mod client;
mod codec;
pub mod counter;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod error;
mod hash;
#[cfg(feature = "http")]
pub mod http;
pub mod key;
#[cfg(feature = "limit")]
pub mod limit;
mod meters;
mod name;
mod net;
mod ops;
mod pulse;
mod script;
#[cfg(feature = "session")]
pub mod session;
mod sync;
mod tags;
mod time;
mod topology;
mod wire;

pub use cache::{Cache, Outage};
pub use client::{Client, ClientBuilder};
#[cfg(feature = "encrypt")]
pub use codec::Keyring;
#[doc(hidden)]
pub use codec::testing::{fuzzing, measuring};
pub use codec::{Codec, Compression, CompressionOptions, CustomCodec, ValueIn, ValueOut};
pub use counter::Counter;
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "limit")]
pub use limit::{RateLimiter, RateLimits};
pub use ops::preflight;
/// The driver, in the version whose connections [`ClientBuilder::connection`] takes.
pub use redis;
#[cfg(feature = "session")]
pub use session::SessionStore;
pub use sync::lock;
pub use sync::lock::{Fence, Guard, Lock};
pub use sync::semaphore;
pub use sync::semaphore::{Permits, Semaphore};
pub use time::{FOREVER, OnOutage};

// What users read outside of the crate's documentation: compiled with the tests, so that its
// examples keep up with the code.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../docs/guide/README.md")]
struct GuideIndex;

#[cfg(doctest)]
#[doc = include_str!("../docs/guide/which-primitive.md")]
struct GuideWhichPrimitive;

#[cfg(doctest)]
#[doc = include_str!("../docs/guide/first-steps.md")]
struct GuideFirstSteps;

#[cfg(doctest)]
#[doc = include_str!("../docs/guide/cache-step-by-step.md")]
struct GuideCacheStepByStep;

#[cfg(doctest)]
#[doc = include_str!("../docs/guide/cache-verbs.md")]
struct GuideCacheVerbs;

#[cfg(doctest)]
#[doc = include_str!("../docs/guide/outages.md")]
struct GuideOutages;

#[cfg(all(doctest, feature = "http"))]
#[doc = include_str!("../docs/guide/pages.md")]
struct GuidePages;

#[cfg(doctest)]
#[doc = include_str!("../docs/guide/codecs.md")]
struct GuideCodecs;

#[cfg(all(doctest, feature = "limit", feature = "http"))]
#[doc = include_str!("../docs/guide/limits.md")]
struct GuideLimits;

#[cfg(all(doctest, feature = "session"))]
#[doc = include_str!("../docs/guide/sessions.md")]
struct GuideSessions;

#[cfg(doctest)]
#[doc = include_str!("../docs/guide/migrating.md")]
struct GuideMigrating;

#[cfg(doctest)]
#[doc = include_str!("../docs/guide/production.md")]
struct GuideProduction;

#[cfg(doctest)]
#[doc = include_str!("../docs/guide/trouble.md")]
struct GuideTrouble;
