//! Encrypted caches: what Redis sees, and what it takes to be read.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::time::Duration;

use hedgerow::{Cache, Compression, ErrorKind, Keyring};
use redis::Value;

use crate::support::monitor::Monitor;
use crate::support::server::{Server, connection};

const MINUTE: Duration = Duration::from_secs(60);

fn keyring(id: u32, byte: u8) -> Keyring {
    Keyring::new(id, &[byte; 32]).expect("an id")
}

async fn text(cache: &Cache, key: &str) -> Option<String> {
    let found = cache.get::<String>(key).await.expect("an answer");
    found.map(|text| text.as_ref().clone())
}

async fn set(cache: &Cache, key: &str, text: &str) {
    let text = text.to_owned();
    cache.set(key, &text, MINUTE).await.expect("stored");
}

async fn stored(server: &Server, key: &str) -> Vec<u8> {
    server.run(&["GET", key]).await
}

async fn store(server: &Server, key: &str, entry: &[u8]) {
    let mut connection = connection(server.url()).await;
    let mut set = redis::cmd("SET");
    set.arg(key).arg(entry);
    let _: Value = set.query_async(&mut connection).await.expect("stored");
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|it| it == text.as_bytes())
}

#[tokio::test]
async fn values_are_read_by_whoever_has_the_key_and_seen_by_nobody_else() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c").encrypt(keyring(7, 1));
    for value in ["canary".to_owned(), "canary ".repeat(20_000)] {
        let loaded = value.clone();
        let load = cache.memoize("k", MINUTE, async move || Ok::<_, Infallible>(loaded));
        assert_eq!(*load.await.expect("loaded"), value);
        let other = server.client().await.cache("c").encrypt(keyring(7, 1));
        assert_eq!(text(&other, "k").await.as_ref(), Some(&value));
        let entry = stored(&server, "hr:v:{c:k}").await;
        assert!(!holds(&entry, "canary"));
        for without in [
            client.cache("c"),
            client.cache("c").encrypt(keyring(8, 1)),
            client.cache("c").encrypt(keyring(7, 2)),
        ] {
            assert_eq!(text(&without, "k").await, None);
            assert_eq!(stored(&server, "hr:v:{c:k}").await, entry, "left alone");
        }
        cache.remove("k").await.expect("removed");
    }
}

#[tokio::test]
async fn a_key_is_changed_without_a_miss() {
    let server = Server::start().await;
    let client = server.client().await;
    let old = client.cache("c").encrypt(keyring(1, 1));
    let both = keyring(1, 1).reading(2, &[2; 32]).expect("another id");
    let prepared = client.cache("c").encrypt(both);
    let both = keyring(2, 2).reading(1, &[1; 32]).expect("another id");
    let changed = client.cache("c").encrypt(both);
    let new = client.cache("c").encrypt(keyring(2, 2));
    set(&old, "k", "old").await;
    for cache in [&prepared, &changed] {
        assert_eq!(text(cache, "k").await.as_deref(), Some("old"));
    }
    set(&changed, "k", "new").await;
    for cache in [&prepared, &changed, &new] {
        assert_eq!(text(cache, "k").await.as_deref(), Some("new"));
    }
}

#[tokio::test]
async fn a_value_is_no_hit_at_another_key_or_unencrypted() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let cache = client.cache("c").encrypt(keyring(7, 1));
    set(&cache, "mine", "canary").await;
    set(&cache, "yours", "yours").await;
    let mine = stored(&server, "hr:v:{c:mine}").await;
    store(&server, "hr:v:{c:yours}", &mine).await;
    assert_eq!(text(&cache, "yours").await, None);
    assert_eq!(text(&cache, "mine").await.as_deref(), Some("canary"));
    set(&client.cache("c"), "yours", "made up").await;
    assert_eq!(text(&cache, "yours").await, None);
    set(&cache, "yours", "yours").await;
    assert_eq!(text(&cache, "yours").await.as_deref(), Some("yours"));
}

#[tokio::test]
async fn verbs_that_change_an_entry_work_on_encrypted_ones() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").encrypt(keyring(7, 1));
    let added = cache.set("k", &1_u64, MINUTE).if_absent().await;
    assert!(added.expect("stored"));
    let entry = cache.entry::<u64>("k").await.expect("an answer");
    let entry = entry.expect("a hit");
    let new = *entry + 1;
    assert!(cache.update(&entry, &new).await.expect("updated"));
    let found = cache.get_many::<u64>(["k", "none"]).await;
    let found = found.expect("an answer");
    assert_eq!(found[0].as_deref(), Some(&2));
    assert!(cache.contains("k").await.expect("an answer"));
    let taken = cache.take::<u64>("k").await.expect("an answer");
    assert_eq!(taken.as_deref(), Some(&2));
}

#[tokio::test]
async fn an_entry_that_was_read_with_a_key_is_not_updated_without_it() {
    let server = Server::start().await;
    let plain = server.client().await.cache("c");
    let cache = plain.clone().encrypt(keyring(1, 1));
    set(&cache, "k", "secret").await;
    let entry = cache.entry::<String>("k").await.expect("an answer");
    let (entry, new) = (entry.expect("an entry"), "open".to_owned());
    for other in [plain.clone(), plain.encrypt(keyring(2, 2))] {
        let error = other.update(&entry, &new).await.expect_err("no key");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert_eq!(text(&cache, "k").await.as_deref(), Some("secret"));
    let clone = cache.clone();
    assert!(clone.update(&entry, &new).await.expect("an answer"));
    assert_eq!(text(&cache, "k").await.as_deref(), Some("open"));
}

#[tokio::test]
async fn no_verb_believes_an_entry_that_was_made_without_the_key() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let cache = client.cache("c").encrypt(keyring(7, 1));
    set(&client.cache("c"), "plain", "made up").await;
    set(&cache, "other", "canary").await;
    let copied = stored(&server, "hr:v:{c:other}").await;
    for key in ["plain", "copied"] {
        let place = format!("hr:v:{{c:{key}}}");
        if key == "copied" {
            store(&server, &place, &copied).await;
        }
        let forged = stored(&server, &place).await;
        let found = cache.get_many::<String>([key]).await.expect("an answer");
        assert_eq!(found[0], None, "get_many of {key}");
        let entry = cache.entry::<String>(key).await.expect("an answer");
        assert!(entry.is_none(), "entry of {key}");
        let taken = cache.take::<String>(key).await.expect("an answer");
        assert_eq!(taken, None, "take of {key}");
        let change = |_: &String| "changed".to_owned();
        let updated = cache.update_with(key, change).await.expect("an answer");
        assert_eq!(updated, None, "update_with of {key}");
        assert_eq!(stored(&server, &place).await, forged, "{key} is left alone");
        let load = async |_: Vec<String>| {
            let loaded = HashMap::from([(key.to_owned(), "loaded".to_owned())]);
            Ok::<_, Infallible>(loaded)
        };
        let loaded = cache.memoize_many([key], MINUTE, load).await;
        let loaded = loaded.expect("an answer").remove(0).expect("loaded");
        assert_eq!(*loaded.expect("a value"), "loaded", "memoize_many of {key}");
    }
}

#[tokio::test]
async fn no_command_carries_what_is_encrypted() {
    let server = Server::start_single().await;
    let monitor = Monitor::start(&server).await;
    let client = server.client().await;
    let cache = client.cache("c").encrypt(keyring(7, 1));
    let cache = cache.compression(Compression::None);
    let large = "canary ".repeat(400_000);
    set(&cache, "large", &large).await;
    set(&cache, "large", &large).await;
    let values = ["canary one".to_owned(), "canary two".to_owned()];
    let pairs = ["one", "two"].into_iter().zip(&values);
    for outcome in cache.set_many(pairs, MINUTE).await.expect("an answer") {
        outcome.expect("stored");
    }
    let entry = cache.entry::<String>("one").await.expect("an answer");
    let entry = entry.expect("a hit");
    let updated = cache.update(&entry, &"canary three".to_owned()).await;
    assert!(updated.expect("updated"));
    let load = async || Ok::<_, Infallible>("canary four".to_owned());
    cache.memoize("four", MINUTE, load).await.expect("loaded");
    let fails = async || Err::<String, _>(io::Error::other("canary five"));
    let failed = cache.error_ttl(MINUTE).memoize("five", MINUTE, fails).await;
    failed.expect_err("failed");
    assert_eq!(monitor.commands(&server, "canary").await, [""; 0]);
    assert!(!monitor.commands(&server, "{c:one}").await.is_empty());
}

#[tokio::test]
async fn the_record_of_a_failed_load_is_encrypted_and_reaches_whoever_has_the_key() {
    let server = Server::start_single().await;
    let cache = async || {
        let cache = server.client().await.cache("c").encrypt(keyring(7, 1));
        cache.error_ttl(MINUTE)
    };
    let fails = async || Err::<String, _>(io::Error::other("canary"));
    let error = cache().await.memoize("k", MINUTE, fails).await;
    assert_eq!(error.expect_err("failed").kind(), ErrorKind::Loader);
    let record: Vec<u8> = server.run(&["HGET", "hr:l:{c:k}", "failed"]).await;
    assert!(record.len() > 36 && !holds(&record, "canary"));
    let loads = async || Ok::<_, io::Error>("loaded".to_owned());
    let error = cache().await.memoize("k", MINUTE, loads).await;
    let error = error.expect_err("the record of another process");
    assert_eq!(error.kind(), ErrorKind::Loader);
    assert!(error.to_string().contains("canary"), "{error}");
}

#[cfg(feature = "near")]
#[tokio::test]
async fn a_near_cache_of_values_that_are_not_encrypted_is_not_read_by_a_handle_with_a_keyring() {
    let server = Server::start().await;
    let plain = server.client().await.cache("c");
    let plain = plain.near(hedgerow::cache::NearCache::new());
    set(&plain, "k", "made up").await;
    crate::support::wait::until("it is held near", async || {
        text(&plain, "k").await;
        plain.stats().near_hits > 0
    })
    .await;
    let sealed = plain.clone().encrypt(keyring(7, 1));
    assert_eq!(text(&sealed, "k").await, None);
}
