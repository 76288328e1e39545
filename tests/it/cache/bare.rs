//! Bare values: what other programs read and write, and what holds for them all the same.

use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::io;
use std::time::Duration;

use futures::future::join_all;
use hedgerow::cache::BareCache;
use hedgerow::{Client, Codec, ErrorKind, Outage};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::support::gate::Gate;
use crate::support::monitor::Monitor;
use crate::support::server::Server;
use crate::support::wait::{bounded, until, waiting};

const MINUTE: Duration = Duration::from_secs(60);
const KEY: &str = "hr:b:{c:k}";
const LEASE: &str = "hr:bl:{c:k}";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct City {
    name: String,
    people: u64,
}

fn lyon() -> City {
    City {
        name: "Lyon".to_owned(),
        people: 522_250,
    }
}

fn raw(client: &Client) -> BareCache {
    client.cache("c").codec(Codec::Raw).bare()
}

async fn text(cache: &BareCache, key: &str) -> Option<String> {
    let found = cache.get::<String>(key).await.expect("an answer");
    found.map(|text| text.as_ref().clone())
}

/// What another program reads.
async fn stored(server: &Server) -> Option<String> {
    server.run(&["GET", KEY]).await
}

/// A load that runs until the gate is opened.
fn loading(cache: &BareCache, gate: &Gate, text: &str) -> JoinHandle<hedgerow::Result<String>> {
    let (cache, gate, text) = (cache.clone(), gate.clone(), text.to_owned());
    tokio::spawn(async move {
        let call = cache.memoize("k", MINUTE, move || gate.load(text));
        call.await.map(|text| text.as_ref().clone())
    })
}

#[tokio::test]
async fn another_program_reads_a_string_or_a_json_document() {
    let server = Server::start().await;
    let client = server.client().await;
    let motto = "fences, against the herd";
    raw(&client).set("k", motto, MINUTE).await.expect("stored");
    assert_eq!(stored(&server).await.as_deref(), Some(motto));
    let json = client.cache("c").codec(Codec::Json).bare();
    json.set("k", &lyon(), MINUTE).await.expect("stored");
    let document = r#"{"name":"Lyon","people":522250}"#;
    assert_eq!(stored(&server).await.as_deref(), Some(document));
    json.remove("k").await.expect("removed");
    let load = json.memoize("k", MINUTE, async || Ok::<_, Infallible>(lyon()));
    assert_eq!(*load.await.expect("loaded"), lyon());
    assert_eq!(stored(&server).await.as_deref(), Some(document));
}

#[tokio::test]
async fn what_another_program_has_set_is_read() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = raw(&client);
    let _: () = server.run(&["SET", KEY, "theirs"]).await;
    assert_eq!(text(&cache, "k").await.as_deref(), Some("theirs"));
    let left = cache.ttl("k").await.expect("an answer");
    assert_eq!(left, Some(hedgerow::FOREVER));
    let gate = Gate::closed();
    let hit = bounded("a hit", loading(&cache, &gate, "ours")).await;
    assert_eq!(hit.expect("no panic").expect("a hit"), "theirs");
    let document = r#" { "people": 522250, "name": "Lyon" } "#;
    let _: () = server.run(&["SET", KEY, document, "PX", "60000"]).await;
    let json = client.cache("c").codec(Codec::Json).bare();
    let found = json.get::<City>("k").await.expect("an answer");
    assert_eq!(*found.expect("it is read"), lyon());
    let left = json.ttl("k").await.expect("an answer").expect("it has one");
    assert!(left <= MINUTE, "{left:?}");
    let _: () = server.run(&["DEL", KEY]).await;
    assert_eq!(json.ttl("k").await.expect("an answer"), None);
}

#[tokio::test]
async fn every_codec_reads_what_it_has_written_also_what_is_large_or_empty() {
    let server = Server::start().await;
    let client = server.client().await;
    let codecs = [
        Codec::Cbor,
        Codec::Json,
        Codec::Raw,
        #[cfg(feature = "msgpack")]
        Codec::MessagePack,
        #[cfg(feature = "postcard")]
        Codec::Postcard,
    ];
    for codec in codecs {
        let cache = client.cache("c").codec(codec).bare();
        for length in [0, 1, 36, 70_000] {
            let value = "x".repeat(length);
            cache.set("k", &value, MINUTE).await.expect("stored");
            assert_eq!(text(&cache, "k").await, Some(value.clone()), "{codec:?}");
            cache.remove("k").await.expect("removed");
            let loaded = value.clone();
            let load = cache.memoize("k", MINUTE, || async { Ok::<_, Infallible>(loaded) });
            load.await.expect("loaded");
            assert_eq!(text(&cache, "k").await, Some(value.clone()), "{codec:?}");
            if codec == Codec::Raw {
                assert_eq!(stored(&server).await, Some(value), "nothing is added");
            }
            let left: i64 = server.run(&["PTTL", KEY]).await;
            assert!((1..=66_000).contains(&left), "{left} ms");
        }
    }
}

#[tokio::test]
async fn without_jitter_a_value_gets_the_ttl_that_was_asked_for() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c").codec(Codec::Raw).jitter(0.0).bare();
    // So long that the test itself takes no part of it that shows.
    let day = Duration::from_secs(86_400);
    cache.set("k", "v", day).await.expect("stored");
    let set: i64 = server.run(&["PTTL", KEY]).await;
    cache.remove("k").await.expect("removed");
    let load = cache.memoize("k", day, async || Ok::<_, Infallible>("v".to_owned()));
    load.await.expect("loaded");
    let loaded: i64 = server.run(&["PTTL", KEY]).await;
    for left in [set, loaded] {
        assert!((86_300_000..=86_400_000).contains(&left), "{left} ms");
    }
}

#[tokio::test]
async fn a_value_of_another_form_is_left_alone_by_get_and_replaced_by_memoize() {
    let server = Server::start().await;
    let client = server.client().await;
    let json = client.cache("c").codec(Codec::Json).bare();
    for theirs in ["not json", r#"{"name":"Lyon"}"#, ""] {
        let _: () = server.run(&["SET", KEY, theirs]).await;
        let before = client.cache("c").foreign();
        let found = json.get::<City>("k").await.expect("an answer");
        assert_eq!(found, None, "{theirs}");
        assert_eq!(client.cache("c").foreign(), before + 1, "{theirs}");
        assert_eq!(stored(&server).await.as_deref(), Some(theirs));
        let load = json.memoize("k", MINUTE, async || Ok::<_, Infallible>(lyon()));
        assert_eq!(*load.await.expect("loaded"), lyon());
        let found = json.get::<City>("k").await.expect("an answer");
        assert_eq!(*found.expect("stored over it"), lyon());
    }
}

#[tokio::test]
async fn a_load_that_began_before_a_removal_or_a_set_is_not_stored() {
    let server = Server::start().await;
    let (ours, theirs) = (server.client().await, server.client().await);
    let (ours, theirs) = (raw(&ours), raw(&theirs));
    for changer in [&ours, &theirs] {
        let gate = Gate::closed();
        let load = loading(&ours, &gate, "old");
        gate.begun(1).await;
        changer.remove("k").await.expect("removed");
        // It begins after the removal, so the load above is not for it.
        let later = loading(&ours, &gate, "later");
        gate.open();
        gate.open();
        assert_eq!(load.await.expect("no panic").expect("its own load"), "old");
        assert_eq!(later.await.expect("no panic").expect("loaded"), "later");
        assert_eq!(stored(&server).await.as_deref(), Some("later"));
        ours.remove("k").await.expect("removed");

        let gate = Gate::closed();
        let load = loading(&ours, &gate, "old");
        gate.begun(1).await;
        changer.set("k", "new", MINUTE).await.expect("stored");
        gate.open();
        assert_eq!(load.await.expect("no panic").expect("its own load"), "old");
        assert_eq!(stored(&server).await.as_deref(), Some("new"));
        ours.remove("k").await.expect("removed");
    }
    assert!(server.keys("hr:bl:*").await.is_empty());
}

#[tokio::test]
async fn a_program_that_deletes_value_and_lease_ends_the_load() {
    let server = Server::start().await;
    let cache = raw(&server.client().await);
    let gate = Gate::closed();
    let load = loading(&cache, &gate, "old");
    gate.begun(1).await;
    let gone: u32 = server.run(&["DEL", KEY, LEASE]).await;
    assert_eq!(gone, 1, "only the lease was there");
    gate.open();
    assert_eq!(load.await.expect("no panic").expect("its own load"), "old");
    assert_eq!(stored(&server).await, None);
}

#[tokio::test]
async fn one_load_serves_all_callers_of_all_clients() {
    let server = Server::start().await;
    let (one, other) = (server.client().await, server.client().await);
    let gate = Gate::closed();
    let calls = (0..40).map(|number| {
        let client = if number % 2 == 0 { &one } else { &other };
        loading(&raw(client), &gate, "v")
    });
    let calls: Vec<_> = calls.collect();
    gate.begun(1).await;
    waiting(&server, LEASE, 1).await;
    gate.open();
    for value in bounded("all have it", join_all(calls)).await {
        assert_eq!(value.expect("no panic").expect("a value"), "v");
    }
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn a_failed_load_is_shared_and_remembered_until_a_removal() {
    let server = Server::start().await;
    let (one, other) = (server.client().await, server.client().await);
    let of = |client: &Client| client.cache("c").codec(Codec::Raw).error_ttl(MINUTE).bare();
    let (one, other) = (of(&one), of(&other));
    let fails = async || Err::<String, _>(io::Error::other("no such row"));
    let error = one.memoize("k", MINUTE, fails).await.expect_err("it fails");
    assert_eq!(error.kind(), ErrorKind::Loader);
    let gate = Gate::closed();
    let told = bounded("it is remembered", loading(&other, &gate, "v")).await;
    let told = told.expect("no panic").expect_err("the same failure");
    assert!(told.to_string().contains("no such row"), "{told}");
    other.remove("k").await.expect("removed");
    gate.open();
    let loaded = bounded("it loads", loading(&one, &gate, "v")).await;
    assert_eq!(loaded.expect("no panic").expect("loaded"), "v");
}

#[tokio::test]
async fn none_is_returned_and_not_stored_and_cannot_be_set() {
    let server = Server::start().await;
    let client = server.client().await;
    for codec in [Codec::Json, Codec::Raw, Codec::Cbor] {
        let cache = client.cache("c").codec(codec).bare();
        let refused = cache.set("k", &None::<String>, MINUTE).await;
        let refused = refused.expect_err("nothing could say so");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{codec:?}");
        let nothing = async || Ok::<_, Infallible>(None::<String>);
        let loaded = cache.memoize("k", MINUTE, nothing).await;
        assert_eq!(*loaded.expect("loaded"), None, "{codec:?}");
        assert!(server.keys("hr:b*").await.is_empty(), "{codec:?}");
        let something = async || Ok::<_, Infallible>(Some("v".to_owned()));
        let loaded = cache.memoize("k", MINUTE, something).await;
        assert_eq!(loaded.expect("loaded").as_deref(), Some("v"), "{codec:?}");
        let found = cache.get::<Option<String>>("k").await.expect("an answer");
        assert_eq!(found.expect("stored").as_deref(), Some("v"), "{codec:?}");
        cache.remove("k").await.expect("removed");
    }
}

#[tokio::test]
async fn a_key_of_another_redis_type_is_told_by_the_calls_that_write() {
    let server = Server::start().await;
    let cache = raw(&server.client().await);
    let _: () = server.run(&["LPUSH", KEY, "theirs"]).await;
    assert_eq!(text(&cache, "k").await, None);
    let load = async || Ok::<_, Infallible>("v".to_owned());
    for error in [
        cache.set("k", "v", MINUTE).await.map(drop),
        cache.remove("k").await,
        cache.memoize("k", MINUTE, load).await.map(drop),
    ] {
        let error = error.expect_err("it is a list");
        assert_eq!(error.kind(), ErrorKind::WrongType, "{error}");
    }
    let theirs: Vec<String> = server.run(&["LRANGE", KEY, "0", "-1"]).await;
    assert_eq!(theirs, ["theirs"]);
}

#[tokio::test]
async fn values_in_envelopes_and_bare_ones_do_not_meet() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c");
    cache
        .set("k", "in an envelope", MINUTE)
        .await
        .expect("stored");
    let bare = raw(&client);
    assert_eq!(text(&bare, "k").await, None);
    bare.set("k", "bare", MINUTE).await.expect("stored");
    let second = client.cache("c").version(2).codec(Codec::Raw).bare();
    assert_eq!(text(&second, "k").await, None);
    second.set("k", "second", MINUTE).await.expect("stored");
    cache.clear().await.expect("cleared");
    assert_eq!(text(&bare, "k").await.as_deref(), Some("bare"));
    cache.set("k", "again", MINUTE).await.expect("stored");
    assert_eq!(cache.purge().await.expect("purged"), 1);
    assert_eq!(text(&bare, "k").await.as_deref(), Some("bare"));
    cache.set("k", "once more", MINUTE).await.expect("stored");
    let others = client.cache("another").codec(Codec::Raw).bare();
    others.set("k", "theirs", MINUTE).await.expect("stored");

    assert_eq!(bare.purge().await.expect("purged"), 2, "of both versions");
    assert!(server.keys("hr:b*:{c:*").await.is_empty());
    assert_eq!(text(&others, "k").await.as_deref(), Some("theirs"));
    let found = cache.get::<String>("k").await.expect("an answer");
    assert_eq!(found.expect("it stays").as_str(), "once more");
}

#[tokio::test]
async fn a_stale_window_of_the_cache_says_nothing_of_its_bare_values() {
    let server = Server::start_single().await;
    let monitor = Monitor::start(&server).await;
    let client = server.client().await;
    let cache = client.cache("c");
    let load = async || Ok::<_, Infallible>("windowed".to_owned());
    let stored = cache.memoize("k", MINUTE, load).stale(MINUTE).await;
    stored.expect("loaded");
    let read = cache.get::<String>("k").await.expect("an answer");
    assert_eq!(read.as_deref().map(String::as_str), Some("windowed"));
    let bare = raw(&client);
    bare.set("k", "v", MINUTE).await.expect("stored");
    assert_eq!(text(&bare, "k").await.as_deref(), Some("v"));
    let hit = bounded("a hit", loading(&bare, &Gate::closed(), "other")).await;
    assert_eq!(hit.expect("no panic").expect("a hit"), "v");
    let sent = monitor.commands(&server, KEY).await;
    let asks_for_time = |line: &&String| line.contains("\"PTTL\"");
    assert_eq!(sent.iter().filter(asks_for_time).count(), 0, "{sent:?}");
    assert!(bare.ttl("k").await.expect("an answer").is_some());
}

/// A load of `k` that has found what is there of no use, and goes on when the gate is opened. The
/// key is changed meanwhile.
async fn overtaken<V>(cache: &BareCache, gate: &Gate) -> JoinHandle<(V, bool)>
where
    V: Clone + Default + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let (other, busy) = (cache.clone(), gate.clone());
    tokio::spawn(async move {
        let load = other.memoize("busy", MINUTE, move || busy.load("v".to_owned()));
        load.await.map(drop)
    });
    gate.begun(1).await;
    let (cache, own) = (cache.clone(), cache.clone());
    let call = tokio::spawn(async move {
        let loads = Gate::closed();
        loads.open();
        let load = {
            let loads = loads.clone();
            own.memoize("k", MINUTE, move || loads.load(V::default()))
        };
        let value = load.await.expect("an answer").as_ref().clone();
        (value, loads.loads() > 0)
    });
    until("both are missed", async || cache.stats().misses >= 2).await;
    call
}

#[tokio::test]
async fn an_empty_value_that_another_process_has_stored_is_not_loaded_again() {
    let server = Server::start().await;
    let (ours, theirs) = (server.client().await, server.client().await);
    let ours = ours.cache("c").max_loads(1).codec(Codec::Raw).bare();
    let gate = Gate::closed();
    let call = overtaken::<String>(&ours, &gate).await;
    raw(&theirs).set("k", "", MINUTE).await.expect("stored");
    gate.open();
    let (value, loaded) = bounded("it has an answer", call).await.expect("no panic");
    assert_eq!((value.as_str(), loaded), ("", false));
}

#[tokio::test]
async fn a_document_that_begins_as_the_one_it_replaces_is_not_loaded_again() {
    let server = Server::start().await;
    let (ours, theirs) = (server.client().await, server.client().await);
    let ours = ours.cache("c").max_loads(1).codec(Codec::Json).bare();
    let theirs = theirs.cache("c").codec(Codec::Json).bare();
    let gate = Gate::closed();
    let name = "Saint-Remy-en-Bouzemont-Saint-Genest-et-Isson";
    // Of the same length, without the number.
    let old = format!(r#"{{"name":"{name}","folks":"521"}}"#);
    let _: () = server.run(&["SET", KEY, &old]).await;
    let call = overtaken::<City>(&ours, &gate).await;
    let new = City {
        name: name.to_owned(),
        people: 5210,
    };
    theirs.set("k", &new, MINUTE).await.expect("stored");
    let length: usize = server.run(&["STRLEN", KEY]).await;
    assert_eq!(length, old.len());
    gate.open();
    let (value, loaded) = bounded("it has an answer", call).await.expect("no panic");
    assert_eq!((value, loaded), (new, false));
}

#[tokio::test]
async fn a_purge_leaves_what_another_program_has_put_in_the_place_of_a_lease() {
    let server = Server::start().await;
    let cache = raw(&server.client().await);
    cache.set("k", "v", MINUTE).await.expect("stored");
    let _: () = server.run(&["SET", LEASE, "theirs"]).await;
    assert_eq!(cache.purge().await.expect("purged"), 1);
    let theirs: Option<String> = server.run(&["GET", LEASE]).await;
    assert_eq!(theirs.as_deref(), Some("theirs"));
}

#[tokio::test]
async fn a_purge_ends_the_loads_that_are_under_way() {
    let server = Server::start().await;
    let cache = raw(&server.client().await);
    let gate = Gate::closed();
    let load = loading(&cache, &gate, "old");
    gate.begun(1).await;
    assert_eq!(cache.purge().into_future().await.expect("purged"), 0);
    gate.open();
    assert_eq!(load.await.expect("no panic").expect("its own load"), "old");
    assert_eq!(stored(&server).await, None);
}

#[tokio::test]
async fn without_redis_it_does_what_its_policy_says() {
    let server = Server::start_single().await;
    let soon = Duration::from_millis(300);
    let client = server.builder().cache_deadline(soon).open();
    let client = client.expect("a good URL");
    server.kill().await;
    let cache = client.cache("c").codec(Codec::Raw);
    let (strict, lenient) = (cache.bare(), cache.clone().outage(Outage::Bypass).bare());
    let load = async || Ok::<_, Infallible>("v".to_owned());
    let value = lenient.memoize("k", MINUTE, load).await;
    assert_eq!(value.expect("loaded").as_str(), "v");
    lenient.set("k", "v", MINUTE).await.expect("dropped");
    assert_eq!(text(&lenient, "k").await, None);
    assert!(
        lenient.remove("k").await.is_err(),
        "it could be stale later"
    );
    let refused = strict.memoize("k", MINUTE, load).fail_fast().await;
    assert!(refused.expect_err("it fails").kind().is_outage());
    assert!(strict.set("k", "v", MINUTE).await.is_err());
}

#[cfg(feature = "encrypt")]
#[tokio::test]
async fn an_encrypted_cache_has_no_bare_values() {
    use hedgerow::Keyring;

    let server = Server::start().await;
    let client = server.client().await;
    let keyring = Keyring::new(1, &[7; 32]).expect("a good id");
    let bare = client.cache("c").encrypt(keyring).bare();
    let refused = bare.set("k", "v", MINUTE).await.expect_err("no place");
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    assert!(refused.to_string().contains("encrypted"), "{refused}");
    assert!(server.keys("*").await.is_empty());
}
