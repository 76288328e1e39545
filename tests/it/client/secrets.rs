//! Secrets are told nowhere, least of all when something goes wrong: not by `Debug`, not by an
//! error or what caused it, not by a span or an event.

use std::error::Error as _;
use std::time::Duration;

use hedgerow::{Client, Codec, ErrorKind, Result};
use redis::Value;

use crate::support::listener::Listener;
use crate::support::server::Server;
use crate::support::wait::{listened, queued};

/// In URLs: as it is written there, and as the server is told.
const PASSWORDS: [&str; 2] = ["canary%2F1c7e", "canary/1c7e"];

const VALUE: &str = "sesame-4f20";

const MINUTE: Duration = Duration::from_secs(60);

/// How long a client tries that is served by nobody.
const SOON: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_password_that_nobody_takes_is_told_nowhere() {
    let listener = Listener::start();
    let server = Server::start_single().await;
    let _: Value = server
        .run(&["CONFIG", "SET", "requirepass", "another"])
        .await;
    let socket = server.url();
    let mut seen = String::new();
    for url in [
        format!("{socket}?pass={}", PASSWORDS[0]),
        format!("{socket}?user=somebody&pass={}", PASSWORDS[0]),
        format!("redis://:{}@127.0.0.1:1", PASSWORDS[0]),
        format!("redis://somebody:{}@127.0.0.1:1/7", PASSWORDS[0]),
        format!("redis://{}@host:port", PASSWORDS[0]),
        format!("redis://:{}@[::1", PASSWORDS[0]),
        format!("rediss://:{}@127.0.0.1:1", PASSWORDS[0]),
        format!("ldap://:{}@127.0.0.1:1", PASSWORDS[0]),
    ] {
        let builder = Client::builder().url(&url);
        let builder = builder.deadline(SOON).cache_deadline(SOON);
        seen += &format!("{builder:?} {builder:#?}");
        match builder.open() {
            Ok(client) => seen += &misfortunes(&client).await,
            Err(error) => seen += &told(&error),
        }
    }
    assert!(listener.told().contains("script"), "it is listened to");
    seen += &listener.told();
    for wanted in ["WRONGPASS", "cannot connect", "not understood"] {
        assert!(seen.contains(wanted), "{wanted} was told: {seen}");
    }
    refuse(&seen, &PASSWORDS);
}

#[tokio::test]
async fn what_the_server_quotes_of_a_command_is_not_passed_on() {
    let listener = Listener::start();
    let mut arguments = Vec::new();
    for command in ["EVALSHA", "INCRBY", "GET"] {
        arguments.extend(["--rename-command", command, ""]);
    }
    let server = Server::start_with(&arguments).await;
    let quoted = server.try_run::<Value>(&["GET", VALUE]).await;
    let quoted = quoted.expect_err("no such command").to_string();
    assert!(quoted.contains(VALUE), "the server quotes: {quoted}");
    let client = server.builder().deadline(SOON).cache_deadline(SOON);
    let client = client.open().expect("a good URL");
    let seen = misfortunes(&client).await + &listener.told();
    assert!(seen.contains("unknown command"), "{seen}");
    refuse(&seen, &[VALUE, NUMBER]);
}

#[tokio::test]
async fn owners_are_told_nowhere_whatever_becomes_of_their_locks() {
    let listener = Listener::start();
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let lease = Duration::from_millis(150);
    let lock = one.lock("a").lease(lease).wait(MINUTE);
    let other = two.lock("a").wait(MINUTE);
    let mut seen = format!("{one:?} {lock:?} {lock:#?}");

    // Passed on in the process, then handed over to another.
    let guard = lock.acquire().await.expect("free");
    seen += &format!("{guard:?} {guard:#?}");
    let patient = lock.clone();
    let second = tokio::spawn(async move { patient.acquire().await });
    let elsewhere = other.clone();
    let third = tokio::spawn(async move { elsewhere.acquire().await });
    queued(&lock, 2).await;
    listened(&server, 2).await;
    guard.release().await.expect("held");
    let guard = tokio::select! { biased; guard = second => guard, guard = third => guard };
    let guard = guard.expect("no panic").expect("granted");
    seen += &format!("{guard:?} {:?}", lock.inspect().await.expect("an answer"));
    drop(guard);

    // Taken away, and gone from the server without a word.
    let lock = one.lock("b").lease(lease);
    let guard = lock.acquire().await.expect("free");
    two.lock("b").break_lock().await.expect("held");
    seen += &format!("{:?} {guard:?}", guard.lost().await);
    seen += &told(&guard.release().await.expect_err("lost"));
    let lock = one.lock("c").lease(lease);
    let guard = lock.acquire().await.expect("free");
    let _: Value = server.run(&["FLUSHALL"]).await;
    seen += &format!("{:?} {guard:?}", guard.lost().await);
    let body = async |_| server.run::<Value>(&["FLUSHALL"]).await;
    seen += &unserved(lock.with(body).await);

    // Somebody else's value in the lock's place.
    let _guard = two.lock("d").acquire().await.expect("free");
    let keys = server.keys("*:lock:d").await;
    let [key] = keys.as_slice() else {
        panic!("one lock: {keys:?}")
    };
    let holder: String = server.run(&["GET", key]).await;
    let owner = holder.split(' ').nth(2).expect("an id");
    assert!(hexadecimal(owner), "what is looked for looks so: {owner}");
    let _: Value = server.run(&["SET", key, &format!("{owner} spoilt")]).await;
    seen += &told(&one.lock("d").acquire().await.expect_err("spoilt"));

    seen += &listener.told();
    for wanted in ["acquired", "lost", "release", "uploading"] {
        assert!(seen.contains(wanted), "{wanted} was told: {seen}");
    }
    refuse(&seen, &[owner]);
}

#[tokio::test]
async fn values_that_cannot_be_read_are_told_nowhere() {
    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    enum Word {
        Open,
    }
    let listener = Listener::start();
    let server = Server::start().await;
    let client = server.client().await;
    let mut seen = String::new();
    for codec in [Codec::Cbor, Codec::Json, Codec::Raw] {
        let cache = client.cache("words").codec(codec);
        for _ in 0..2 {
            cache.set("word", &VALUE, MINUTE).await.expect("set");
            let number = cache.get::<u64>("word").await;
            assert!(number.expect("a miss").is_none());
            cache.set("word", &VALUE, MINUTE).await.expect("set");
            match cache.get::<Word>("word").await {
                Ok(word) => assert!(word.is_none()),
                Err(error) => seen += &told(&error),
            }
        }
        // Bytes left over, a header that is none, then a key of another type.
        cache.set("word", &VALUE, MINUTE).await.expect("set");
        let _: Value = server.run(&["APPEND", "hr:v:{words:word}", VALUE]).await;
        assert!(cache.get::<String>("word").await.expect("a miss").is_none());
        cache.set("word", &VALUE, MINUTE).await.expect("set");
        let _: Value = server
            .run(&["SETRANGE", "hr:v:{words:word}", "0", VALUE])
            .await;
        assert!(cache.get::<String>("word").await.expect("a miss").is_none());
        let _: Value = server.run(&["DEL", "hr:v:{words:word}"]).await;
        let _: Value = server.run(&["RPUSH", "hr:v:{words:word}", VALUE]).await;
        seen += &cache
            .set("word", &VALUE, MINUTE)
            .await
            .map_or_else(|error| told(&error), |()| panic!("a list is there"));
        let _: Value = server.run(&["DEL", "hr:v:{words:word}"]).await;
    }
    let error = client.counter("c").add(NUMBER.parse().expect("a number"));
    let error = error.within(0..=1).await.expect_err("too much");
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    seen += &format!("{} {:?}", told(&error), Word::Open);
    seen += &listener.told();
    for wanted in ["damaged", "foreign"] {
        assert!(seen.contains(wanted), "{wanted} was told: {seen}");
    }
    refuse(&seen, &[VALUE, NUMBER]);
}

/// A number that is nowhere by chance.
const NUMBER: &str = "987654321";

/// Makes every kind of call on a client that is served by nobody; returns what they tell.
pub async fn misfortunes(client: &Client) -> String {
    let number = NUMBER.parse().expect("a number");
    let (counter, lock) = (client.counter("c"), client.lock("l"));
    let cache = client.cache("k");
    let load = || async { Ok::<_, std::io::Error>(VALUE.to_owned()) };
    let errors = [
        unserved(client.ping().await),
        unserved(counter.add(number).await),
        unserved(counter.add(number).saturating().await),
        unserved(counter.add(1).once(VALUE, MINUTE).await),
        unserved(counter.set(number).await),
        unserved(counter.get().await),
        unserved(counter.take().await),
        unserved(lock.acquire().await),
        unserved(lock.try_acquire().await),
        unserved(lock.inspect().await),
        unserved(lock.break_lock().await),
        unserved(lock.with(async |_| ()).await),
        unserved(cache.get::<String>("v").await),
        unserved(cache.set("v", &VALUE, MINUTE).await),
        unserved(cache.memoize("v", MINUTE, load).tags(["t"]).await),
        unserved(cache.remove("v").await),
        unserved(cache.invalidate_tags(["t"]).await),
        unserved(cache.clear().await),
    ];
    format!(
        "{client:?} {client:#?} {counter:?} {lock:?} {cache:?} {}",
        errors.concat()
    )
}

/// What a call tells that failed.
fn unserved<T>(result: Result<T>) -> String {
    result.err().as_ref().map(told).unwrap_or_default()
}

/// All that an error tells anybody.
pub fn told(error: &hedgerow::Error) -> String {
    let mut text = format!("{error} {error:?} {error:#?}\n");
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!("{error} {error:?} {error:#?}\n");
        source = error.source();
    }
    text
}

/// Fails if one of the secrets was told, or anything that looks like 128 random bits.
pub fn refuse(seen: &str, secrets: &[&str]) {
    for secret in secrets {
        assert!(!seen.contains(secret), "{secret} was told: {seen}");
    }
    for word in seen.split(|c: char| !c.is_ascii_hexdigit()) {
        assert!(!hexadecimal(word), "{word} was told: {seen}");
    }
}

/// Whether a word looks as owners, tokens and the names of processes do.
fn hexadecimal(word: &str) -> bool {
    word.len() >= 32 && word.chars().all(|c| c.is_ascii_hexdigit())
}
