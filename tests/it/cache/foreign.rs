//! Entries that cannot be read: those of another build or another type are left alone, damaged ones
//! go.

use std::convert::Infallible;
use std::time::Duration;

use hedgerow::{Cache, Codec};
use redis::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::support::listener::Listener;
use crate::support::server::{Server, connection};

const MINUTE: Duration = Duration::from_secs(60);
const KEY: &str = "hr:v:{c:k}";

async fn number(cache: &Cache) -> Option<u64> {
    let found = cache.get::<u64>("k").await.expect("an answer");
    found.map(|number| *number)
}

async fn text(cache: &Cache) -> Option<String> {
    let found = cache.get::<String>("k").await.expect("an answer");
    found.map(|text| text.as_ref().clone())
}

async fn set_text(cache: &Cache) {
    let text = "text".to_owned();
    cache.set("k", &text, MINUTE).await.expect("stored");
}

async fn stored(server: &Server) -> Vec<u8> {
    server.run(&["GET", KEY]).await
}

async fn store(server: &Server, entry: &[u8]) {
    let mut connection = connection(server.url()).await;
    let mut set = redis::cmd("SET");
    set.arg(KEY).arg(entry);
    let _: Value = set
        .query_async(&mut connection)
        .await
        .expect("a plain write");
}

/// An entry that a build wrote which knows more than this one, as its checksum says.
fn forged(entry: &[u8], at: usize, byte: u8) -> Vec<u8> {
    let mut entry = entry.to_vec();
    entry[at] = byte;
    let sum = xxh3_64(&[&entry[..4], &entry[20..]].concat()) as u32;
    entry[4..8].copy_from_slice(&sum.to_be_bytes());
    entry
}

#[tokio::test]
async fn a_read_of_another_type_leaves_the_entry_to_those_who_can_read_it() {
    let server = Server::start().await;
    let client = server.client().await;
    for codec in [Codec::Cbor, Codec::Json, Codec::Raw] {
        let (old, new) = (client.cache("c").codec(codec), client.cache("c"));
        set_text(&old).await;
        assert_eq!(number(&new).await, None, "{codec:?}");
        assert_eq!(text(&old).await.as_deref(), Some("text"), "{codec:?}");
    }
}

#[tokio::test]
async fn what_this_build_does_not_know_is_left_alone_by_reads_and_stored_over_by_loads() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    set_text(&cache).await;
    let entry = stored(&server).await;
    let (version, codec, compressor, outcome, key_id) = (0, 1, 1, 2, 35);
    for foreign in [
        forged(&entry, version, 3),
        forged(&entry, version, 1),
        forged(&entry, codec, 0xf0),
        forged(&entry, compressor, 0x0f),
        forged(&entry, outcome, 0x80),
        forged(&entry, outcome, 0x01),
        forged(&entry, key_id, 1),
        b"written by another program".to_vec(),
        b"x".to_vec(),
    ] {
        store(&server, &foreign).await;
        assert_eq!(text(&cache).await, None);
        assert_eq!(stored(&server).await, foreign, "a read left it alone");
        let load = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>("new".to_owned()));
        assert_eq!(*load.await.expect("loaded"), "new");
        assert_eq!(text(&cache).await.as_deref(), Some("new"));
        store(&server, &foreign).await;
        set_text(&cache).await;
        assert_eq!(text(&cache).await.as_deref(), Some("text"));
    }
}

#[tokio::test]
async fn damage_is_a_miss_that_removes_itself_and_is_told_apart_from_what_is_foreign() {
    let listener = Listener::start();
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    set_text(&cache).await;
    let entry = stored(&server).await;
    let mut flipped = entry.clone();
    flipped[40] ^= 1;
    for damaged in [b"", &entry[..20], &entry[..entry.len() - 1], &flipped] {
        store(&server, damaged).await;
        assert_eq!(text(&cache).await, None);
        assert_eq!(server.keys(KEY).await.len(), 0, "{damaged:02x?}");
    }
    let told = listener.told();
    assert_eq!(told.matches("damaged").count(), 2 * 4, "{told}");
    assert!(!told.contains("message=foreign"), "{told}");
    set_text(&cache).await;
    assert_eq!(number(&cache).await, None);
    let told = listener.told();
    assert_eq!(told.matches("message=foreign").count(), 1, "{told}");
}

#[tokio::test]
async fn versions_of_a_cache_see_their_own_values_and_are_invalidated_together() {
    let server = Server::start().await;
    let client = server.client().await;
    let (one, two) = (client.cache("c"), client.cache("c").version(2));
    set_text(&one).await;
    assert_eq!(text(&two).await, None);
    let set = async |cache: &Cache, number: u64| {
        let set = cache.set("k", &number, MINUTE).tags(["t"]);
        set.await.expect("stored");
    };
    set(&two, 2).await;
    assert_eq!(text(&one).await.as_deref(), Some("text"));
    assert_eq!(number(&two).await, Some(2));
    assert_eq!(number(&two.clone().version(2)).await, Some(2));
    assert_eq!(number(&two.clone().version(22)).await, None);
    assert_eq!(text(&two.clone().version(0)).await.as_deref(), Some("text"));

    one.remove("k").await.expect("removed");
    assert_eq!(number(&two).await, Some(2), "another version's");
    two.remove("k").await.expect("removed");
    assert_eq!(number(&two).await, None);

    set(&one, 1).await;
    set(&two, 2).await;
    one.invalidate_tags(["t"]).await.expect("invalidated");
    assert_eq!((number(&one).await, number(&two).await), (None, None));
    set(&one, 1).await;
    set(&two, 2).await;
    two.clear().await.expect("cleared");
    assert_eq!((number(&one).await, number(&two).await), (None, None));
}

#[tokio::test]
async fn foreign_entries_under_a_hot_key_are_counted_and_told_of_once_a_minute() {
    let listener = Listener::start();
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    set_text(&cache).await;
    for _ in 0..5 {
        assert_eq!(number(&cache).await, None);
    }
    let told = listener.told();
    assert_eq!(told.matches("message=foreign").count(), 1, "{told}");
    assert_eq!(cache.foreign(), 5);
}
