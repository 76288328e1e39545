//! `hide_keys`: the names that callers give to locks, counters, keys and tags are told nowhere, and
//! eight digits stand in their place. Every primitive meets every kind of failure here, with a
//! canary for each name.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hedgerow::{Cache, Client, ClientBuilder, ErrorKind, Outage, Result, client::HideKeys};
use redis::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use crate::client::secrets;
use crate::support::listener::Listener;
use crate::support::server::{Server, signal};
use crate::support::wait::{bounded, listened, queued};

/// What every name here contains, and nothing else. What is escaped in keys is in the names, too.
const CANARY: &str = "canary";

const LOCK: &str = "canary-lock:{7}";
const COUNTER: &str = "canary-counter%7";
const ONCE: &str = "canary-once 7";
const KEY: &str = "canary-key:{7}\n";
const TAG: &str = "canary-tag:7";

const NAMES: [&str; 5] = [LOCK, COUNTER, ONCE, KEY, TAG];

const MINUTE: Duration = Duration::from_secs(60);

/// How long a client tries that is served by nobody.
const SOON: Duration = Duration::from_millis(100);

/// What was told in one test, by what it was told about.
struct Told {
    listener: Listener,
    texts: Vec<(String, String)>,
}

impl Told {
    fn start() -> Self {
        Self {
            listener: Listener::start(),
            texts: Vec::new(),
        }
    }

    /// The outcome of a call: all that its error tells, or its value.
    fn call<T: std::fmt::Debug>(&mut self, what: &str, outcome: Result<T>) {
        let text = match outcome {
            Ok(value) => format!("{value:?} {value:#?}"),
            Err(error) => format!("{:?} {}", error.key(), secrets::told(&error)),
        };
        self.texts.push((what.to_owned(), text));
    }

    fn shown(&mut self, what: &str, value: &dyn std::fmt::Debug) {
        self.texts
            .push((what.to_owned(), format!("{value:?} {value:#?}")));
    }

    /// Everything, also what went through `tracing`.
    fn all(&self) -> String {
        let texts: Vec<&str> = self.texts.iter().map(|(_, text)| text.as_str()).collect();
        texts.concat() + &self.listener.told()
    }

    /// Fails, with all places, if a name was told anywhere, or if none of `wanted` was.
    fn refuse(self, wanted: &[&str]) {
        let told = self.listener.told();
        let events = told.lines().map(|line| ("tracing", line));
        let texts = self.texts.iter();
        let texts = texts.flat_map(|(what, text)| text.lines().map(|line| (what.as_str(), line)));
        let leaks: Vec<_> = texts
            .chain(events)
            .filter(|(_, line)| line.contains(CANARY))
            .collect();
        assert!(leaks.is_empty(), "names were told: {leaks:#?}");
        let all = self.all();
        for wanted in wanted {
            assert!(all.contains(wanted), "{wanted} was told: {all}");
        }
        secrets::refuse(&all, &[]);
    }
}

/// The digits of a name, as the documentation tells operators to calculate them.
fn digits(name: &str) -> String {
    let digest = Sha256::digest(name);
    digest[..4].iter().map(|b| format!("{b:02x}")).collect()
}

fn hiding(builder: ClientBuilder) -> Client {
    let builder = builder.deadline(SOON).cache_deadline(SOON);
    let builder = builder.hide_keys(HideKeys::digest());
    builder.open().expect("a good URL")
}

/// One that gives up late enough for calls to be served, on a slow machine too.
fn patient(server: &Server) -> Client {
    let builder = server.builder().hide_keys(HideKeys::digest());
    builder.cache_deadline(MINUTE).open().expect("a good URL")
}

async fn load() -> io::Result<String> {
    Ok("loaded".to_owned())
}

/// Makes every kind of call, and shows everything that has `Debug`.
async fn every_call(told: &mut Told, client: &Client) {
    told.shown("client", client);
    let counter = client.counter(COUNTER);
    told.shown("counter", &counter);
    told.shown("counter request", &counter.get());
    told.shown("add", &counter.add(1).once(ONCE, MINUTE));
    told.call("add", counter.add(1).await);
    told.call("add within", counter.add(1).within(0..=0).await);
    told.call("add once", counter.add(1).once(ONCE, MINUTE).await);
    told.call("add at the end", counter.add(i64::MAX).await);
    told.call("counter set", counter.set(1).await);
    told.call("counter get", counter.get().await);
    told.call("counter take", counter.take().await);

    let lock = client.lock(LOCK);
    told.shown("lock", &lock);
    match lock.acquire().await {
        Ok(guard) => {
            told.shown("guard", &guard);
            told.call("try while held", lock.try_acquire().await);
            told.call("inspect", lock.inspect().await);
            let busy = lock.clone().wait(SOON).acquire().await;
            told.call("acquire while held", busy);
            told.call("release", guard.release().await);
        }
        Err(error) => told.call::<()>("acquire", Err(error)),
    }
    told.call("try", lock.try_acquire().await);
    told.call("inspect", lock.inspect().await);
    told.call("break", lock.break_lock().await);
    told.call("with", lock.with(async |_| ()).await);

    let cache = client.cache("k");
    every_cache_call(told, &cache).await;
    told.call("clear", cache.clear().await);
}

async fn every_cache_call(told: &mut Told, cache: &Cache) {
    told.shown("cache", cache);
    told.shown("set", &cache.set(KEY, "v", MINUTE).tags([TAG]));
    let memoize = cache.memoize(KEY, MINUTE, load).tags([TAG]);
    told.shown("memoize", &memoize);
    told.shown("cache request", &cache.remove(KEY));
    told.call("get", cache.get::<String>(KEY).await);
    told.call("memoize", memoize.await);
    let again = cache.memoize(KEY, MINUTE, load).tags([TAG]).await;
    told.call("memoize again", again);
    told.call("set", cache.set(KEY, "v", MINUTE).tags([TAG]).await);
    told.call("get", cache.get::<String>(KEY).await);
    told.call("invalidate", cache.invalidate_tags([TAG, "other"]).await);
    told.call("get after it", cache.get::<String>(KEY).await);
    told.call("remove", cache.remove(KEY).await);
}

#[tokio::test]
async fn hidden_names_are_told_nowhere_by_a_client_that_nobody_serves() {
    let mut told = Told::start();
    let nobody = Client::builder().url("redis://127.0.0.1:1");
    told.shown("builder", &Client::builder().hide_keys(HideKeys::digest()));
    let client = hiding(nobody);
    every_call(&mut told, &client).await;
    // Some calls find the breaker open, others are its probes: which, hangs on the time between
    // them.
    bounded("a call meets the open breaker", async {
        loop {
            let error = client.cache("k").get::<String>(KEY).await;
            let error = error.expect_err("nobody answers");
            let is_open = error.kind() == ErrorKind::CircuitOpen;
            told.call::<()>("get", Err(error));
            if is_open {
                break;
            }
        }
    })
    .await;
    let cache = client.cache("k").outage(Outage::Bypass);
    every_cache_call(&mut told, &cache).await;
    let digits = NAMES.map(digits);
    let mut wanted: Vec<&str> = digits.iter().map(String::as_str).collect();
    wanted.extend(["cannot connect", "circuit breaker", "loading without Redis"]);
    wanted.extend(["bypassed a set", "caches do without Redis"]);
    told.refuse(&wanted);
}

#[tokio::test]
async fn hidden_names_are_told_nowhere_when_all_goes_well() {
    let mut told = Told::start();
    let server = Server::start().await;
    let client = patient(&server);
    every_call(&mut told, &client).await;
    // An invalidated entry, then a damaged, then one of another type.
    let cache = client.cache("k");
    cache
        .set(KEY, "v", MINUTE)
        .tags([TAG])
        .await
        .expect("stored");
    cache.invalidate_tags([TAG]).await.expect("invalidated");
    told.call("get", cache.get::<String>(KEY).await);
    cache.set(KEY, "v", MINUTE).await.expect("stored");
    told.call("get", cache.get::<u64>(KEY).await);
    let keys = server.keys("hr:v:*").await;
    let _: Value = server.run(&["APPEND", &keys[0], "more"]).await;
    told.call("get", cache.get::<String>(KEY).await);
    assert_eq!(keys.len(), 1, "one value: {keys:?}");
    let digits = NAMES.map(digits);
    let shown = format!("hr:v:{{k:{}}}", digits[3]);
    let mut wanted: Vec<&str> = digits.iter().map(String::as_str).collect();
    wanted.extend(["acquired", "given up", "answered", "hit", "miss", "lead"]);
    wanted.extend(["stored", "invalidated", "foreign", "damaged", &shown]);
    told.refuse(&wanted);
}

#[tokio::test]
async fn hidden_names_are_told_nowhere_by_locks_that_others_have_or_take_away() {
    let mut told = Told::start();
    let server = Server::start().await;
    let (one, two) = (patient(&server), patient(&server));
    let lock = one.lock(LOCK).lease(Duration::from_millis(1500));
    let other = two.lock(LOCK).wait(MINUTE);

    // Handed over in the process, and to another.
    let guard = lock.acquire().await.expect("free");
    let patient = lock.clone().wait(MINUTE);
    let second = tokio::spawn(async move { patient.acquire().await });
    let elsewhere = other.clone();
    let third = tokio::spawn(async move { elsewhere.acquire().await });
    queued(&lock, 2).await;
    listened(&server, 2).await;
    let busy = two.lock(LOCK).wait(SOON).acquire().await;
    told.call("acquire while held", busy);
    guard.release().await.expect("held");
    for waiting in [second, third] {
        let guard = bounded("it is granted", waiting).await.expect("no panic");
        let guard = guard.expect("granted");
        told.shown("guard", &guard);
        guard.release().await.expect("held");
    }

    // Broken, held for too long, and gone from the server without a word.
    let guard = lock.acquire().await.expect("free");
    other.break_lock().await.expect("held");
    guard.lost().await;
    told.shown("lost guard", &guard);
    told.call("release", guard.release().await);
    let short = lock.clone().max_hold(Duration::from_millis(50));
    let guard = short.acquire().await.expect("free");
    guard.lost().await;
    told.call("release", guard.release().await);
    let body = async |_| -> Value {
        let gone: Value = server.run(&["FLUSHALL"]).await;
        std::future::pending::<()>().await;
        gone
    };
    told.call("with", lock.with(body).await);
    told.refuse(&[&digits(LOCK), "lost", "acquired", "Contended"]);
}

#[tokio::test]
async fn hidden_names_are_told_nowhere_by_a_server_that_quotes_them() {
    let mut told = Told::start();
    // Commands with subcommands quote what they take for one: here the key.
    let mut arguments = Vec::new();
    // (Not `GET`: a client that cannot ask for the format of counters sends nothing about one.)
    for (command, quoting) in [
        ("INCRBY", "OBJECT"),
        ("MGET", "XINFO"),
        ("TYPE", "LATENCY"),
        ("DEL", "SLOWLOG"),
        ("SET", "XGROUP"),
    ] {
        arguments.extend(["--rename-command", command, ""]);
        arguments.extend(["--rename-command", quoting, command]);
    }
    let server = Server::start_with(&arguments).await;
    let shows = server.builder().open().expect("a good URL");
    let added = shows.counter(COUNTER).add(1).await;
    let found = shows.cache("k").get::<String>(KEY).await;
    for text in [added.map(drop), found.map(drop)] {
        let text = text.expect_err("quoting").to_string();
        let quotes = text.matches(CANARY).count() == 2;
        assert!(quotes, "it is named by the server and by us: {text}");
    }
    told.listener = Listener::start();
    let client = patient(&server);
    every_call(&mut told, &client).await;
    let hidden = client.cache("k").outage(Outage::Bypass);
    every_cache_call(&mut told, &hidden).await;
    told.refuse(&["ERR (the rest is hidden)", &digits(KEY)]);
}

#[tokio::test]
async fn hidden_names_are_told_nowhere_by_a_server_that_refuses() {
    let mut told = Told::start();
    let server = Server::start_single().await;
    every_call(&mut told, &patient(&server)).await;
    for rule in ["~* &* +@all -@write", "~other:* &other:* +@all"] {
        let line = format!("ACL SETUSER somebody reset on nopass {rule}");
        let words: Vec<&str> = line.split(' ').collect();
        let _: Value = server.run(&words).await;
        let url = format!("{}?user=somebody&pass=any", server.url());
        let builder = Client::builder().url(&url).hide_keys(HideKeys::digest());
        let client = builder.open().expect("a good URL");
        every_call(&mut told, &client).await;
    }
    // Something else is in the place of everything.
    let client = patient(&server);
    let guard = client.lock(LOCK).acquire().await.expect("free");
    client.counter(COUNTER).set(1).await.expect("set");
    let cache = client.cache("k");
    cache
        .set(KEY, "v", MINUTE)
        .tags([TAG])
        .await
        .expect("stored");
    for key in server.keys("hr:*").await {
        let _: Value = server.run(&["DEL", &key]).await;
        let _: Value = server.run(&["RPUSH", &key, "v"]).await;
    }
    drop(guard);
    every_call(&mut told, &client).await;
    let _: Value = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    every_call(&mut told, &client).await;
    told.refuse(&["NOPERM", "WrongType", "OOM", &digits(COUNTER)]);
}

#[tokio::test]
async fn hidden_names_are_told_nowhere_when_the_server_falls_silent() {
    let mut told = Told::start();
    let server = Server::start_single().await;
    let client = hiding(server.builder());
    client.ping().await.expect("an answer");
    let pid = server.pid().await;
    signal(pid, "STOP");
    every_call(&mut told, &client).await;
    signal(pid, "CONT");
    told.refuse(&["did not answer before the deadline", &digits(COUNTER)]);
}

#[tokio::test]
async fn hidden_names_are_told_nowhere_by_what_is_refused_unsent() {
    let mut told = Told::start();
    let client = hiding(Client::builder().url("redis://127.0.0.1:1"));
    let long = CANARY.repeat(200);
    let (counter, lock, cache) = (client.counter(&long), client.lock(&long), client.cache("k"));
    told.shown("counter", &counter);
    told.shown("lock", &lock);
    told.call("add", counter.add(1).await);
    told.call(
        "once",
        client.counter(COUNTER).add(1).once(&long, MINUTE).await,
    );
    told.call("acquire", lock.acquire().await);
    told.call("get", cache.get::<String>(&long).await);
    told.call("remove", cache.remove(&long).await);
    told.call("set", cache.set(&long, "v", MINUTE).await);
    told.call("memoize", cache.memoize(&long, MINUTE, load).await);
    let set = cache.set(KEY, "v", MINUTE).tags([&long]);
    told.shown("set", &set);
    told.call("tags", set.await);
    told.call("invalidate", cache.invalidate_tags([&long]).await);
    let many: Vec<String> = (0..300).map(|number| format!("{TAG}{number}")).collect();
    told.call("many", cache.set(KEY, "v", MINUTE).tags(&many).await);
    told.call("ttl", cache.set(KEY, "v", Duration::ZERO).await);
    let lock = client.lock(LOCK);
    told.call("lease", lock.clone().lease(Duration::ZERO).acquire().await);
    let said = "x".repeat(2000);
    told.call("metadata", lock.clone().metadata(&said).acquire().await);
    let (low, high) = (2, 1);
    let empty = client.counter(COUNTER).add(1).within(low..=high);
    told.call("range", empty.await);
    told.refuse(&[&digits(&long), "longer than 1024 bytes"]);
}

#[tokio::test]
async fn hidden_names_are_told_nowhere_by_loads_that_fail() {
    let mut told = Told::start();
    let server = Server::start().await;
    let client = patient(&server);
    let cache = client.cache("k").error_ttl(Duration::ZERO);
    let failed = || async { Err::<String, _>(io::Error::other("the loader's own words")) };
    told.call("fails", cache.memoize(KEY, MINUTE, failed).await);
    let recorded = client.cache("k");
    told.call("fails", recorded.memoize(KEY, MINUTE, failed).await);
    told.call("recorded", recorded.memoize(KEY, MINUTE, failed).await);
    recorded.remove(KEY).await.expect("removed");
    let panics = || async { panic!("on purpose") };
    let panicked = cache.memoize::<String, io::Error, _, _>(KEY, MINUTE, panics);
    told.call("panics", panicked.await);
    let hasty = cache.clone().max_load(SOON);
    let slow = || std::future::pending::<io::Result<String>>();
    told.call("is slow", hasty.memoize(KEY, MINUTE, slow).await);
    let inner = cache.clone();
    let reenters = || async move {
        let value = inner.memoize(KEY, MINUTE, load).await?;
        Ok::<_, hedgerow::Error>(value.as_str().to_owned())
    };
    told.call("reenters", cache.memoize(KEY, MINUTE, reenters).await);
    let wanted = ["Loader", "LoaderPanicked", "LoaderTimeout", "Reentrant"];
    assert!(wanted.iter().all(|kind| told.all().contains(kind)));
    told.refuse(&[&digits(KEY), "the loader's own words"]);
}

#[tokio::test]
async fn digits_tell_names_apart_and_depend_on_the_secret() {
    let nobody = Client::builder().url("redis://127.0.0.1:1");
    let client = hiding(nobody);
    let mut keys = Vec::new();
    for name in ["canary-1", "canary-2"] {
        let error = client.counter(name).get().await.expect_err("nobody");
        let key = error.key().expect("a name").to_owned();
        assert_eq!(key, digits(name));
        assert!(error.to_string().ends_with(&format!("(key \"{key}\")")));
        keys.push(key);
    }
    for secret in ["a secret of 32 bytes", "another secret"] {
        let hide = HideKeys::keyed(secret);
        assert!(!format!("{hide:?} {hide:#?}").contains(secret));
        let builder = Client::builder().url("redis://127.0.0.1:1");
        let builder = builder.deadline(SOON).hide_keys(hide);
        assert!(!format!("{builder:?}").contains(secret));
        let client = builder.open().expect("a good URL");
        let error = client.counter("canary-1").get().await.expect_err("nobody");
        keys.push(error.key().expect("a name").to_owned());
    }
    for (at, key) in keys.iter().enumerate() {
        assert!(key.len() == 8 && key.chars().all(|c| c.is_ascii_hexdigit()));
        assert!(!keys[..at].contains(key), "{keys:?}");
    }
}

#[tokio::test]
async fn one_cache_of_a_client_hides_names_and_shares_loads_with_another_that_shows_them() {
    let server = Server::start().await;
    let client = server.client().await;
    let shows = client.cache("k");
    let hides = client.cache("k").hide_keys(HideKeys::digest());
    let (loading, fail) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (began, may_fail) = (loading.clone(), fail.clone());
    let fails = move || async move {
        began.notify_one();
        may_fail.notified().await;
        Err::<String, _>(io::Error::other("no such city"))
    };
    let leader = tokio::spawn(shows.memoize(KEY, MINUTE, fails).into_future());
    bounded("the loader begins", loading.notified()).await;
    let mut follower = Box::pin(hides.memoize(KEY, MINUTE, load).into_future());
    assert!(futures::poll!(&mut follower).is_pending(), "it joins");
    fail.notify_one();
    let follower = follower.await.expect_err("the load fails");
    let leader = leader.await.expect("no panic").expect_err("it fails");
    assert_eq!(leader.key(), Some(KEY));
    assert_eq!(follower.key(), Some(digits(KEY).as_str()));
    assert_eq!(follower.kind(), ErrorKind::Loader);
    let text = secrets::told(&follower);
    assert!(!text.contains(CANARY) && text.contains("no such city"));
    // A cache may show what its client hides.
    let client = hiding(Client::builder().url("redis://127.0.0.1:1"));
    let shows = client.cache("k").hide_keys(HideKeys::off());
    let error = shows.get::<String>(KEY).await.expect_err("nobody");
    assert_eq!(error.key(), Some(KEY));
}

#[tokio::test]
async fn a_tag_whose_name_is_hidden_shows_digits_in_redis_and_is_the_same_tag() {
    let server = Server::start().await;
    let (shows, hides) = (server.client().await, patient(&server));
    let (shows, hides) = (shows.cache("k"), hides.cache("k"));
    let tag = async || {
        for key in server.keys("hr:t:*").await {
            let value: Vec<u8> = server.run(&["GET", &key]).await;
            let text = String::from_utf8_lossy(&value).into_owned();
            if !text.contains("(all of k)") {
                return text;
            }
        }
        String::new()
    };
    let stored = hides.set(KEY, "v", MINUTE).tags([TAG]);
    stored.await.expect("stored");
    let text = tag().await;
    assert!(text.ends_with(&digits(TAG)), "{text}");
    assert!(!text.contains(CANARY), "{text}");
    shows.invalidate_tags([TAG]).await.expect("invalidated");
    assert!(tag().await.ends_with(TAG), "who writes it last names it");
    let found = hides.get::<String>(KEY).await.expect("an answer");
    assert_eq!(found, None, "it was invalidated");
}
