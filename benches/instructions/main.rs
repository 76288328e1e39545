//! One kind of operation, a fixed number of times, on one thread: for counting what it costs the
//! client in instructions (`scripts/instructions.sh` runs it under callgrind) and in allocations.
//!
//! `instructions OPERATION COUNT` runs it and prints nothing; `instructions allocations` prints the
//! allocations of one operation of each kind. Counts are repeatable, unlike times.

use std::sync::Arc;
use std::time::Duration;

use hedgerow::cache::NearCache;
use hedgerow::embedded::Server;
use hedgerow::{Cache, Client};
use moka::sync::Cache as Moka;
use redis::aio::MultiplexedConnection;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What is counted: ours, and what the bare driver does for the same end.
const OPERATIONS: [&str; 24] = [
    "lock_cycle",
    "two_evalsha",
    "counter_add",
    "raw_incr",
    "memoize_hit",
    "get",
    "hit_3tags",
    "get_3tags",
    "raw_get",
    "near_get",
    "near_get_3tags",
    "moka_get",
    "get_many_100",
    "raw_mget_100",
    "set_many_100",
    "raw_set_100",
    "lock_cycle@50",
    "two_evalsha@50",
    "counter_add@50",
    "raw_incr@50",
    "memoize_hit@50",
    "get@50",
    "hit_3tags@50",
    "raw_get@50",
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    match &args[..] {
        [] => {
            println!("run scripts/instructions.sh, or `instructions allocations`");
            Ok(())
        }
        [what] if what == "allocations" => {
            let server = runtime.block_on(Server::start())?;
            let work = Arc::new(runtime.block_on(Work::new(server.url()))?);
            for operation in OPERATIONS {
                println!("{operation} {}", costs(&runtime, &work, operation)?);
            }
            Ok(())
        }
        [url, operation, count] => {
            let work = Arc::new(runtime.block_on(Work::new(url))?);
            runtime.block_on(work.run(operation, count.parse()?))
        }
        _ => Err("usage: instructions URL OPERATION COUNT".into()),
    }
}

/// How many allocations one operation makes on this thread, which runs all tasks, and how many
/// tasks a thousand of them spawn.
fn costs(runtime: &Runtime, work: &Arc<Work>, operation: &str) -> Result<String> {
    const COUNT: u64 = 1000;
    runtime.block_on(work.run(operation, 100))?;
    let before = next_task(runtime)?;
    let mut outcome = Ok(());
    let counted = allocation_counter::measure(|| {
        outcome = runtime.block_on(work.run(operation, COUNT));
    });
    outcome?;
    let own = match operation.split_once('@') {
        Some((_, tasks)) => tasks.parse()?,
        None => 0,
    };
    let spawned = next_task(runtime)? - before - 1 - own;
    let each = counted.count_total / COUNT;
    Ok(format!("{each}, tasks of {COUNT}: {spawned}"))
}

/// The number of the next task of this process.
fn next_task(runtime: &Runtime) -> Result<u64> {
    let id = async { tokio::task::id().to_string() };
    let id = runtime.block_on(async { tokio::spawn(id).await })?;
    Ok(id.parse()?)
}

struct Work {
    client: Client,
    cache: Cache,
    tagged: Cache,
    near: Cache,
    near_tagged: Cache,
    /// What a near hit is measured by.
    moka: Moka<String, Arc<String>>,
    driver: MultiplexedConnection,
    acquire: String,
    release: String,
    keys: Vec<String>,
    value: String,
}

impl Work {
    /// Everything is connected, loaded and cached before it is counted.
    async fn new(url: &str) -> Result<Self> {
        // Under callgrind on a busy machine, a call may take longer than the default.
        let builder = Client::builder().url(url).deadline(PATIENT);
        let client = builder.cache_deadline(PATIENT).connect().await?;
        let mut driver = redis::Client::open(url)?
            .get_multiplexed_async_connection()
            .await?;
        let mut load = async |script: &str| -> redis::RedisResult<String> {
            let mut command = redis::cmd("SCRIPT");
            command
                .arg("LOAD")
                .arg(script)
                .query_async(&mut driver)
                .await
        };
        let (acquire, release) = (load(BARE_ACQUIRE).await?, load(BARE_RELEASE).await?);
        let work = Self {
            cache: client.cache("count"),
            tagged: client.cache("tagged"),
            near: client.cache("count").near(NearCache::new()),
            near_tagged: client.cache("tagged").near(NearCache::new()),
            moka: Moka::new(10_000),
            client,
            driver,
            acquire,
            release,
            keys: (0..KEYS).map(|key| format!("key:{key}")).collect(),
            value: "x".repeat(100),
        };
        for key in &work.keys {
            let value = &work.value;
            work.cache.set(key, value, HOUR).await?;
            work.tagged.set(key, value, HOUR).tags(TAGS).await?;
            work.moka.insert(key.clone(), Arc::new(value.clone()));
            let mut command = redis::cmd("SET");
            let mut driver = work.driver.clone();
            let _: () = command.arg(key).arg(value).query_async(&mut driver).await?;
        }
        for near in [&work.near, &work.near_tagged] {
            work.hold(near).await?;
        }
        for operation in OPERATIONS.iter().filter(|name| !name.contains('@')) {
            work.each(operation, 0, 10).await?;
        }
        Ok(work)
    }

    /// Reads until the near cache holds every key.
    async fn hold(&self, near: &Cache) -> Result<()> {
        loop {
            let before = near.stats().near_hits;
            for key in &self.keys {
                near.get::<String>(key).await?;
            }
            if near.stats().near_hits - before == KEYS as u64 {
                return Ok(());
            }
            // Passes cost instructions, too, so there should be few.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// `operation` `count` times: `name@50` is that of `name`, made by 50 tasks at once.
    async fn run(self: &Arc<Self>, operation: &str, count: u64) -> Result<()> {
        let (operation, tasks) = match operation.split_once('@') {
            Some((operation, tasks)) => (operation, tasks.parse()?),
            None => return self.each(operation, 0, count).await,
        };
        let mut running = JoinSet::new();
        for task in 0..tasks {
            let (work, operation) = (self.clone(), operation.to_owned());
            running.spawn(async move {
                let done = work.each(&operation, task * 31, count / tasks as u64).await;
                done.map_err(|error| error.to_string())
            });
        }
        while let Some(done) = running.join_next().await {
            done??;
        }
        Ok(())
    }

    /// One after the other, from the `first` key on.
    async fn each(&self, operation: &str, first: usize, count: u64) -> Result<()> {
        let name = format!("count:{first}");
        let (lock, counter) = (self.client.lock(&name), self.client.counter(&name));
        let bare = format!("bare:{name}");
        let keys = ["lock", "fence"].map(|part| format!("{{{bare}}}:{part}"));
        let mut driver = self.driver.clone();
        for at in 0..count as usize {
            let key = &self.keys[(first + at) % KEYS];
            match operation {
                "lock_cycle" => lock.acquire().await?.release().await?,
                "two_evalsha" => self.bare_cycle(&keys, &mut driver).await?,
                "counter_add" => drop(counter.add(1).await?),
                "raw_incr" => {
                    let mut command = redis::cmd("INCR");
                    let _: i64 = command.arg(&bare).query_async(&mut driver).await?;
                }
                "memoize_hit" => {
                    let load = || async { Ok::<_, std::io::Error>("x".repeat(100)) };
                    self.cache.memoize(key, HOUR, load).await?;
                }
                "hit_3tags" => {
                    let load = || async { Ok::<_, std::io::Error>("x".repeat(100)) };
                    self.tagged.memoize(key, HOUR, load).tags(TAGS).await?;
                }
                "get" => drop(self.cache.get::<String>(key).await?),
                "get_3tags" => drop(self.tagged.get::<String>(key).await?),
                "near_get" => drop(self.near.get::<String>(key).await?),
                "near_get_3tags" => drop(self.near_tagged.get::<String>(key).await?),
                "moka_get" => drop(self.moka.get(key).ok_or("it was inserted")?),
                "raw_get" => {
                    let mut command = redis::cmd("GET");
                    let _: Option<Vec<u8>> = command.arg(key).query_async(&mut driver).await?;
                }
                "get_many_100" => drop(self.cache.get_many::<String>(&self.keys[..100]).await?),
                "raw_mget_100" => {
                    let mut command = redis::cmd("MGET");
                    let command = command.arg(&self.keys[..100]);
                    let _: Vec<Option<String>> = command.query_async(&mut driver).await?;
                }
                "set_many_100" => {
                    let items = self.keys[..100].iter().map(|key| (key, &self.value));
                    for stored in self.cache.set_many(items, HOUR).await? {
                        stored?;
                    }
                }
                "raw_set_100" => {
                    let mut pipe = redis::pipe();
                    for key in &self.keys[..100] {
                        pipe.set_ex(key, &self.value, HOUR.as_secs()).ignore();
                    }
                    pipe.exec_async(&mut driver).await?;
                }
                _ => return Err(format!("no operation {operation:?}").into()),
            }
        }
        Ok(())
    }

    async fn bare_cycle(
        &self,
        [lock, fence]: &[String; 2],
        driver: &mut MultiplexedConnection,
    ) -> Result<()> {
        let owner = format!("{:032x}", rand::random::<u128>());
        let mut command = redis::cmd("EVALSHA");
        command
            .arg(&self.acquire)
            .arg(2)
            .arg(lock)
            .arg(fence)
            .arg(&owner)
            .arg(30_000);
        let _: i64 = command.query_async(driver).await?;
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.release).arg(1).arg(lock).arg(&owner);
        let _: i64 = command.query_async(driver).await?;
        Ok(())
    }
}

const KEYS: usize = 200;
const TAGS: [&str; 3] = ["country:AD", "region:02", "kind:city"];
const PATIENT: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What a careful engineer writes by hand: a fenced lock in two scripts.
const BARE_ACQUIRE: &str = "if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then \
    return redis.call('INCR', KEYS[2]) end return false";
const BARE_RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
