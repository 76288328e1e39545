//! Herds of several processes: one load a key, whoever leaves, and whether batches or single calls
//! ask.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hedgerow::{Cache, Client};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use redis::RedisError;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;

use crate::support::process::Child;
use crate::support::server::{Server, connection};
use crate::support::wait::{bounded, until, waiting};

const MINUTE: Duration = Duration::from_secs(60);
const PROCESSES: usize = 8;
const CALLERS: usize = 1000;
const KEYS: usize = 60;

/// One process of a herd.
pub struct Herd {
    cache: Cache,
    database: MultiplexedConnection,
}

impl Herd {
    pub async fn of(url: &str) -> Self {
        let builder = Client::builder().url(url).cache_deadline(MINUTE);
        let client = builder.open().expect("a good URL");
        client.ping().await.expect("an answer");
        Self {
            cache: client.cache("pages").max_load(10 * MINUTE).takeover(MINUTE),
            database: connection(url).await,
        }
    }

    /// Hears what the test says, and answers what came of it.
    pub async fn hear(&self, command: &str, say: impl Fn(&str)) {
        match command.split(' ').collect::<Vec<_>>()[..] {
            ["all", key] => self.ask(key, None, say).await,
            ["half", key, seed] => {
                let seed = seed.parse().expect("a number");
                let random = StdRng::seed_from_u64(seed);
                self.ask(key, Some(random), say).await;
            }
            ["race", seed] => {
                self.race(seed.parse().expect("a number")).await;
                say("raced");
            }
            _ => panic!("not a command: {command}"),
        }
    }

    /// Asks for `key` a thousand times at once; with a source of chance, half of the callers leave
    /// after some time.
    ///
    /// Says `asked` when all have asked, then how many have got the value of the first load, and
    /// how many have left.
    async fn ask(&self, key: &str, mut leaving: Option<StdRng>, say: impl Fn(&str)) {
        let asked = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let leaves = leaving.as_mut().and_then(|random| {
                let after = Duration::from_micros(random.random_range(0..30_000));
                random.random::<bool>().then_some(after)
            });
            let (load, asked) = (self.load(key), asked.clone());
            let call = self.cache.memoize(key, MINUTE, || load);
            callers.spawn(async move {
                let mut call = call.into_future();
                let at_once = futures::poll!(&mut call);
                asked.fetch_add(1, Ordering::SeqCst);
                if at_once.is_ready() {
                    panic!("the load has not ended");
                }
                match leaves {
                    None => Some(call.await),
                    Some(leaves) => tokio::time::timeout(leaves, call).await.ok(),
                }
            });
        }
        until("all have asked", async || {
            asked.load(Ordering::SeqCst) == CALLERS
        })
        .await;
        say("asked");
        let (mut got, mut left) = (0, 0);
        while let Some(caller) = callers.join_next().await {
            match caller.expect("no panic") {
                None => left += 1,
                Some(value) => {
                    assert_eq!(*value.expect("loaded"), 1, "the value of the first load");
                    got += 1;
                }
            }
        }
        say(&format!("{got} {left}"));
    }

    /// Counts as a load of `key`, which ends when the test says so.
    fn load(&self, key: &str) -> impl Future<Output = Result<u64, RedisError>> + Send + 'static {
        let (mut database, key) = (self.database.clone(), key.to_owned());
        async move {
            let load = count(&mut database, &key).await?;
            loop {
                let is_open: bool = redis::cmd("EXISTS")
                    .arg("open")
                    .query_async(&mut database)
                    .await?;
                if is_open {
                    return Ok(load);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Asks for all keys by batches of many of them, in any order, and by single calls.
    async fn race(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut names: Vec<String> = (0..KEYS).map(|at| format!("k{at}")).collect();
        let mut calls = JoinSet::new();
        for _ in 0..4 {
            names.shuffle(&mut random);
            let some = names[..random.random_range(2..KEYS)].to_vec();
            let database = self.database.clone();
            let load = move |names: Vec<String>| {
                let mut database = database.clone();
                async move {
                    let mut loads = HashMap::new();
                    for name in names {
                        loads.insert(name.clone(), count(&mut database, &name).await?);
                    }
                    Ok::<_, RedisError>(loads)
                }
            };
            let call = self.cache.memoize_many(some, MINUTE, load);
            calls.spawn(async move {
                for outcome in call.await.expect("an answer") {
                    assert_eq!(outcome.expect("loaded").as_deref(), Some(&1));
                }
            });
        }
        names.shuffle(&mut random);
        for name in names {
            let mut database = self.database.clone();
            let own = name.clone();
            let load = move || async move { count(&mut database, &own).await };
            let call = self.cache.memoize(&name, MINUTE, load);
            calls.spawn(async move {
                assert_eq!(*call.await.expect("loaded"), 1);
            });
        }
        while let Some(call) = calls.join_next().await {
            call.expect("no panic");
        }
    }
}

/// Counts a load of `key`; returns which it is.
async fn count(database: &mut MultiplexedConnection, key: &str) -> Result<u64, RedisError> {
    let mut count = redis::cmd("HINCRBY");
    count.arg("loads").arg(key).arg(1);
    count.query_async(database).await
}

async fn herd(server: &Server) -> Vec<Child> {
    let mut herd: Vec<Child> = (0..PROCESSES)
        .map(|_| Child::start("herd", &[server.url()]))
        .collect();
    for child in &mut herd {
        assert_eq!(child.says().await, "ready");
    }
    herd
}

/// How often each key was loaded.
async fn loads(server: &Server) -> HashMap<String, usize> {
    server.run(&["HGETALL", "loads"]).await
}

#[tokio::test]
async fn eight_processes_with_a_thousand_callers_each_cost_one_load() {
    let server = Server::start_single().await;
    let mut herd = herd(&server).await;
    for child in &mut herd {
        child.tell("all home").await;
    }
    for child in &mut herd {
        assert_eq!(child.says().await, "asked");
    }
    waiting(&server, "hr:l:{pages:home}", PROCESSES - 1).await;
    let _: String = server.run(&["SET", "open", "1"]).await;
    for child in &mut herd {
        assert_eq!(child.says().await, format!("{CALLERS} 0"));
    }
    assert_eq!(loads(&server).await, HashMap::from([("home".into(), 1)]));
}

#[tokio::test]
async fn a_herd_of_which_half_leaves_at_random_costs_one_load_too() {
    let server = Server::start_single().await;
    let mut herd = herd(&server).await;
    for round in 0..5 {
        let _: usize = server.run(&["DEL", "open"]).await;
        let key = format!("k{round}");
        for (at, child) in herd.iter_mut().enumerate() {
            let seed = round * PROCESSES + at;
            child.tell(&format!("half {key} {seed}")).await;
        }
        for child in &mut herd {
            assert_eq!(child.says().await, "asked");
        }
        let lease = format!("hr:l:{{pages:{key}}}");
        waiting(&server, &lease, PROCESSES - 1).await;
        // All that are to leave have had the time.
        tokio::time::sleep(Duration::from_millis(40)).await;
        let _: String = server.run(&["SET", "open", "1"]).await;
        let mut left = 0;
        for child in &mut herd {
            let said = child.says().await;
            let (got, gone) = said.split_once(' ').expect("two numbers");
            let number = |word: &str| word.parse::<usize>().expect("a number");
            assert_eq!(number(got) + number(gone), CALLERS);
            left += number(gone);
        }
        let all = PROCESSES * CALLERS;
        assert!(left > all / 3 && left < all * 2 / 3, "{left} have left");
        assert_eq!(loads(&server).await[&key], 1);
    }
}

#[tokio::test]
async fn batches_and_single_calls_of_many_processes_load_each_key_once() {
    let server = Server::start_single().await;
    let mut herd = herd(&server).await;
    for round in 0..5 {
        let _: usize = server.run(&["DEL", "loads"]).await;
        let _: usize = server.run(&["EVAL", FORGET, "0"]).await;
        for (at, child) in herd.iter_mut().enumerate() {
            child
                .tell(&format!("race {}", round * PROCESSES + at))
                .await;
        }
        let ended = async {
            for child in &mut herd {
                assert_eq!(child.says().await, "raced");
            }
        };
        bounded("no call waits for one that waits for it", ended).await;
        let loads = loads(&server).await;
        assert_eq!(loads.len(), KEYS);
        assert!(loads.values().all(|loads| *loads == 1), "{loads:?}");
    }
}

/// Removes all values.
const FORGET: &str = r"
for _, key in ipairs(redis.call('KEYS', 'hr:v:*')) do redis.call('DEL', key) end
return 0";
