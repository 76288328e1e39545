//! The promise of the cache: no read that begins after an invalidation has returned is given a
//! value that was loaded before it.
//!
//! A world is one key (and one tag) whose truth is a version in memory. One writer raises it and
//! then invalidates, through one of several clients; readers ask all the time, through any of
//! them. Whatever a read answers must not be older than the last invalidation that had returned
//! when it began.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hedgerow::cache::Loading;
use hedgerow::{Cache, Client};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redis::aio::MultiplexedConnection;

use crate::support::server::{Server, connection};

/// What a load that fails says, before the version that it has seen.
const FAILED_AT: &str = "failed at version ";

/// Which version the load had seen that failed with `error`, here or in another process.
fn failed_at(error: &dyn std::error::Error) -> u64 {
    let text = error.to_string();
    let (_, version) = text.split_once(FAILED_AT).expect("the error of a load");
    let digits = version.split(|c: char| !c.is_ascii_digit()).next();
    digits
        .and_then(|digits| digits.parse().ok())
        .expect("a version")
}

/// One read of a history.
#[derive(Debug, Clone, Copy)]
struct Read {
    /// The version of the last invalidation that had returned when the read began.
    floor: u64,
    version: u64,
}

/// The reads that were given something too old.
fn stale(history: &[Read]) -> Vec<Read> {
    let too_old = |read: &&Read| read.version < read.floor;
    history.iter().filter(too_old).copied().collect()
}

/// What is held to the promise.
#[derive(Clone)]
enum Subject {
    /// Each world has a cache of its own, reached through all of these.
    Cache(Vec<Client>),
    /// The same, asked in all the ways in which a value can be loaded, with short TTLs and long
    /// stale windows.
    InAllWays(Vec<Client>),
    /// GET, load, SET; invalidated by DEL: what the promise is broken by.
    Naive(MultiplexedConnection),
}

#[derive(Debug, Clone, Copy)]
pub enum By {
    Key,
    Tag,
}

#[derive(Default)]
struct World {
    name: String,
    version: AtomicU64,
    floor: AtomicU64,
    loading: AtomicUsize,
    over: AtomicBool,
}

/// What happened in a world.
#[derive(Debug, Default)]
struct Story {
    history: Vec<Read>,
    writes: usize,
    /// Writes that found a load under way.
    interleaved: usize,
}

impl Story {
    fn and(mut self, other: Self) -> Self {
        self.history.extend(other.history);
        self.writes += other.writes;
        self.interleaved += other.interleaved;
        self
    }
}

impl World {
    /// The truth, as it was at some moment of the load.
    ///
    /// Now and then it fails, and the error says so: it must not be older than a value, either.
    async fn load(self: Arc<Self>, seed: u64) -> Result<u64, io::Error> {
        let mut random = StdRng::seed_from_u64(seed);
        self.loading.fetch_add(1, Ordering::SeqCst);
        for _ in 0..random.random_range(0..6) {
            dawdle(&mut random).await;
        }
        let version = self.version.load(Ordering::SeqCst);
        for _ in 0..random.random_range(0..6) {
            dawdle(&mut random).await;
        }
        self.loading.fetch_sub(1, Ordering::SeqCst);
        match random.random_range(0..4) {
            0 => Err(io::Error::other(format!("{FAILED_AT}{version}"))),
            _ => Ok(version),
        }
    }

    async fn read(self: &Arc<Self>, subject: &Subject, random: &mut StdRng) -> Option<u64> {
        let (world, seed) = (self.clone(), random.random());
        let load = move || world.load(seed);
        match subject {
            Subject::Cache(clients) => {
                let cache = clients[random.random_range(0..clients.len())].cache(&self.name);
                if random.random_range(0..4) == 0 {
                    let value = cache.get::<u64>(&self.name).await.expect("an answer");
                    return value.map(|version| *version);
                }
                let call = cache.memoize(&self.name, Duration::from_secs(60), load);
                let value = call.tags([&self.name]).await;
                Some(value.map_or_else(|error| failed_at(&error), |value| *value))
            }
            Subject::InAllWays(clients) => {
                let cache = clients[random.random_range(0..clients.len())].cache(&self.name);
                self.read_in_some_way(&cache, load, random).await
            }
            Subject::Naive(connection) => {
                let mut connection = connection.clone();
                let mut get = redis::cmd("GET");
                get.arg(&self.name);
                if let Some(version) = get.query_async(&mut connection).await.expect("an answer") {
                    return Some(version);
                }
                let version = match load().await {
                    Ok(version) => version,
                    Err(error) => return Some(failed_at(&error)),
                };
                let mut set = redis::cmd("SET");
                set.arg(&self.name).arg(version);
                let _: () = set.query_async(&mut connection).await.expect("an answer");
                Some(version)
            }
        }
    }

    /// Reads in one of all ways. Most values are stale by the time of the next read.
    async fn read_in_some_way<Fut>(
        self: &Arc<Self>,
        cache: &Cache,
        load: impl FnOnce() -> Fut + Send + 'static,
        random: &mut StdRng,
    ) -> Option<u64>
    where
        Fut: Future<Output = Result<u64, io::Error>> + Send + 'static,
    {
        let ttl = Duration::from_millis(random.random_range(1..4));
        let (name, hour) = (self.name.clone(), Duration::from_secs(3600));
        let value = match random.random_range(0..5) {
            0 => {
                let value = cache.get::<u64>(&self.name).await.expect("an answer");
                return value.map(|version| *version);
            }
            1 => {
                let call = cache.memoize(&self.name, ttl, load).tags([&self.name]);
                call.stale(hour).refresh_early().await
            }
            2 => {
                let call = cache.memoize(&self.name, ttl, load).tags([&self.name]);
                let call = call.stale_if_error(hour);
                call.soft_timeout(Duration::from_millis(2)).await
            }
            3 => {
                let informed = |loading: Loading<u64>| async move {
                    let old = loading.stale();
                    // It never fails: a loader that fails has named no tags, so no invalidation of
                    // them ends what is remembered of the failure.
                    let version = load().await.unwrap_or_else(|error| failed_at(&error));
                    loading.tag(&name);
                    Ok::<_, io::Error>(match old {
                        Some(old) if *old == version => loading.not_modified(&old),
                        _ => version,
                    })
                };
                let call = cache.memoize_with(&self.name, ttl, informed);
                call.stale_if_error(hour).await
            }
            _ => {
                let load = Mutex::new(Some(load));
                let many = move |keys: Vec<String>| {
                    let load = load.lock().expect("no panic").take();
                    async move {
                        let Some(load) = load else {
                            // A second call of the loader: a load of others came to nothing.
                            return Err(io::Error::other(format!("{FAILED_AT}{}", u64::MAX)));
                        };
                        let version = load().await?;
                        Ok(keys
                            .into_iter()
                            .map(|key| (key, version))
                            .collect::<HashMap<_, _>>())
                    }
                };
                let call = cache.memoize_many([&self.name], ttl, many);
                let found = call
                    .tags([&self.name])
                    .stale(hour)
                    .await
                    .expect("an answer");
                let [outcome] = &found[..] else {
                    panic!("one key");
                };
                outcome
                    .clone()
                    .map(|value| value.expect("the loader knows it"))
            }
        };
        Some(value.map_or_else(|error| failed_at(&error), |value| *value))
    }

    /// Makes everything loaded before now invalid.
    async fn invalidate(&self, subject: &Subject, by: By, version: u64, random: &mut StdRng) {
        match subject {
            Subject::Cache(clients) | Subject::InAllWays(clients) => {
                let cache = clients[random.random_range(0..clients.len())].cache(&self.name);
                let done = match (by, random.random_range(0..3)) {
                    (By::Key, 0) => {
                        let set = cache.set(&self.name, &version, Duration::from_secs(60));
                        set.tags([&self.name]).await
                    }
                    (By::Key, _) => cache.remove(&self.name).await,
                    (By::Tag, 0) => cache.clear().await,
                    (By::Tag, _) => cache.invalidate_tags([&self.name]).await,
                };
                done.expect("invalidated");
            }
            Subject::Naive(connection) => {
                let mut del = redis::cmd("DEL");
                del.arg(&self.name);
                let _: () = del
                    .query_async(&mut connection.clone())
                    .await
                    .expect("gone");
            }
        }
    }

    async fn reader(self: Arc<Self>, subject: Subject, seed: u64) -> Vec<Read> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut history = Vec::new();
        while !self.over.load(Ordering::SeqCst) {
            let floor = self.floor.load(Ordering::SeqCst);
            if let Some(version) = self.read(&subject, &mut random).await {
                history.push(Read { floor, version });
            }
            dawdle(&mut random).await;
        }
        history
    }

    /// Runs the world until `writes` invalidations have returned.
    async fn run(self: Arc<Self>, subject: Subject, by: By, writes: usize, seed: u64) -> Story {
        let mut random = StdRng::seed_from_u64(seed);
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..5 {
            readers.spawn(self.clone().reader(subject.clone(), random.random()));
        }
        let mut story = Story::default();
        for _ in 0..writes {
            for _ in 0..random.random_range(0..6) {
                dawdle(&mut random).await;
            }
            if random.random() {
                // Half of the writes lie in wait for a load, for a while.
                for _ in 0..200 {
                    if self.loading.load(Ordering::SeqCst) > 0 {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
            story.interleaved += usize::from(self.loading.load(Ordering::SeqCst) > 0);
            self.invalidate(&subject, by, version, &mut random).await;
            self.floor.store(version, Ordering::SeqCst);
        }
        self.over.store(true, Ordering::SeqCst);
        story.writes = writes;
        story.history = readers.join_all().await.concat();
        story
    }
}

/// Anything from nothing to a few milliseconds, mostly little.
async fn dawdle(random: &mut StdRng) {
    match random.random_range(0..8) {
        0..3 => {}
        3..7 => {
            for _ in 0..random.random_range(0..20) {
                tokio::task::yield_now().await;
            }
        }
        _ => tokio::time::sleep(Duration::from_micros(random.random_range(0..1500))).await,
    }
}

/// Ten thousand interleavings in eight worlds.
async fn ten_thousand(subject: Subject, by: By) -> Story {
    interleaved(subject, by, 10_000).await
}

/// That many interleavings in eight worlds.
async fn interleaved(subject: Subject, by: By, writes: usize) -> Story {
    let mut worlds = tokio::task::JoinSet::new();
    for number in 0..8u64 {
        let world = World {
            name: format!("world-{number}"),
            ..World::default()
        };
        worlds.spawn(Arc::new(world).run(subject.clone(), by, writes / 8, 0x5eed + number));
    }
    let stories = worlds.join_all().await;
    stories.into_iter().fold(Story::default(), Story::and)
}

/// How many stale reads two thousand interleavings of these clients' calls give. They are put to
/// the test.
pub async fn stale_reads(clients: Vec<Client>, by: By) -> usize {
    let story = interleaved(Subject::Cache(clients), by, 2000).await;
    let (reads, met) = (story.history.len(), story.interleaved);
    assert!(reads > 1_000, "only {reads} reads");
    assert!(met > 200, "only {met} invalidations met a load under way");
    stale(&story.history).len()
}

async fn three_clients(server: &Server) -> Subject {
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(server.client().await);
    }
    Subject::Cache(clients)
}

async fn holds(by: By) {
    let server = Server::start().await;
    let story = ten_thousand(three_clients(&server).await, by).await;
    let stale = stale(&story.history);
    assert!(stale.is_empty(), "{} stale: {:?}", stale.len(), &stale[..1]);
    // And it was put to the test.
    let (reads, met) = (story.history.len(), story.interleaved);
    assert_eq!(story.writes, 10_000);
    assert!(reads > 5_000, "only {reads} reads");
    assert!(met > 2_000, "only {met} invalidations met a load under way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_sees_what_was_loaded_before_its_key_was_removed_or_set() {
    holds(By::Key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_sees_what_was_loaded_before_its_tag_was_invalidated_or_the_cache_cleared() {
    holds(By::Tag).await;
}

/// The same with loads of all kinds: behind stale values, early, in batches, with late tags.
async fn holds_in_all_ways(by: By) {
    let server = Server::start().await;
    let Subject::Cache(clients) = three_clients(&server).await else {
        panic!("a cache");
    };
    let caches: Vec<Cache> = clients
        .iter()
        .map(|client| client.cache("world-0"))
        .collect();
    // A busy machine takes more rounds until stale values were served and refreshed, too.
    for _ in 0..20 {
        let subject = Subject::InAllWays(clients.clone());
        let story = interleaved(subject, by, 4000).await;
        let stale = stale(&story.history);
        assert!(stale.is_empty(), "{} stale: {:?}", stale.len(), &stale[..1]);
        // And it was put to the test.
        let (reads, met) = (story.history.len(), story.interleaved);
        assert!(reads > 2_000, "only {reads} reads");
        assert!(met > 500, "only {met} invalidations met a load under way");
        let stats: Vec<_> = caches.iter().map(Cache::stats).collect();
        let served: u64 = stats.iter().map(|stats| stats.stale_served).sum();
        let refreshes: u64 = stats.iter().map(|stats| stats.refreshes).sum();
        if served > 5 && refreshes > 5 {
            return;
        }
        let _: String = server.run(&["FLUSHALL"]).await;
    }
    panic!("too few stale values were served, or refreshed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_of_any_kind_sees_what_was_loaded_before_its_key_was_removed_or_set() {
    holds_in_all_ways(By::Key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_of_any_kind_sees_what_was_loaded_before_its_tag_was_invalidated() {
    holds_in_all_ways(By::Tag).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_worlds_catch_a_cache_that_stores_whatever_it_loaded() {
    let server = Server::start_single().await;
    let subject = Subject::Naive(connection(server.url()).await);
    let story = ten_thousand(subject, By::Key).await;
    assert!(!stale(&story.history).is_empty());
}

#[test]
fn the_checker_finds_the_one_stale_read_of_a_history() {
    let mut history: Vec<Read> = (0..100)
        .map(|version| Read {
            floor: version,
            version,
        })
        .collect();
    assert!(stale(&history).is_empty());
    history[42].version -= 1;
    let found = stale(&history);
    assert_eq!((found.len(), found[0].floor), (1, 42));
}
