//! The single verbs, what they do to loads under way, and what the cache does with keys that are
//! not as it left them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use hedgerow::{Cache, Client, Codec, Compression, Error, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::faults::Row;
use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::wait::until;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct City {
    name: String,
    people: u64,
    twins: Vec<String>,
    notes: BTreeMap<String, Option<f64>>,
}

fn lyon() -> City {
    City {
        name: "Lyon".to_owned(),
        people: 522_250,
        twins: vec!["Birmingham".to_owned(); 500],
        notes: BTreeMap::from([("area".to_owned(), Some(47.87)), ("mayor".to_owned(), None)]),
    }
}

async fn text(cache: &Cache, key: &str) -> Option<String> {
    let found = cache.get::<String>(key).await.expect("an answer");
    found.map(|text| text.as_ref().clone())
}

async fn set(cache: &Cache, key: &str, text: &str) {
    let text = text.to_owned();
    cache.set(key, &text, MINUTE).await.expect("stored");
}

/// A load that runs until the gate is opened; answers what it was told to load.
fn loading(
    cache: &Cache,
    gate: &Gate,
    text: &str,
) -> tokio::task::JoinHandle<hedgerow::Result<String>> {
    let (cache, gate, text) = (cache.clone(), gate.clone(), text.to_owned());
    tokio::spawn(async move {
        let call = cache.memoize("k", MINUTE, move || gate.load(text));
        call.tags(["t"]).await.map(|text| text.as_ref().clone())
    })
}

#[tokio::test]
async fn what_was_set_is_got_whatever_it_was_written_with() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    for codec in [Codec::Cbor, Codec::Json] {
        for compression in [Compression::None, Compression::Lz4] {
            let writer = cache.clone().codec(codec).compression(compression);
            writer.set("k", &lyon(), MINUTE).await.expect("stored");
            let found = cache.get::<City>("k").await.expect("an answer");
            assert_eq!(
                *found.expect("a value"),
                lyon(),
                "{codec:?} {compression:?}"
            );
        }
    }
    cache.remove("k").await.expect("removed");
    assert_eq!(cache.get::<City>("k").await.expect("an answer"), None);
}

#[tokio::test]
async fn that_there_is_nothing_is_cached_too() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let nothing = async || Ok::<_, Infallible>(None::<String>);
    assert_eq!(
        *cache.memoize("k", MINUTE, nothing).await.expect("loaded"),
        None
    );
    let something = async || Ok::<_, Infallible>(Some("too late".to_owned()));
    assert_eq!(
        *cache.memoize("k", MINUTE, something).await.expect("a hit"),
        None
    );
}

#[tokio::test]
async fn every_key_has_a_ttl_of_what_was_asked_for_give_or_take_a_tenth() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let gate = Gate::closed();
    let load = loading(&cache, &gate, "v");
    gate.begun(1).await;
    let keys = server.keys("*").await;
    assert_eq!(keys.len(), 3, "a lease and two tags: {keys:?}");
    gate.open();
    load.await.expect("no panic").expect("a value");
    for key in keys.iter().chain(&server.keys("*").await) {
        let left: i64 = server.run(&["PTTL", key]).await;
        assert!(left == -2 || left > 0, "{key} has {left} ms");
        if key.starts_with("hr:v:") {
            assert!((50_000..=66_000).contains(&left), "{key} has {left} ms");
        }
    }
}

#[tokio::test]
async fn a_load_that_began_before_remove_is_not_stored() {
    let server = Server::start().await;
    let (ours, theirs) = (
        server.client().await.cache("c"),
        server.client().await.cache("c"),
    );
    for remover in [&ours, &theirs] {
        let gate = Gate::closed();
        let load = loading(&ours, &gate, "old");
        gate.begun(1).await;
        remover.remove("k").await.expect("removed");
        gate.open();
        assert_eq!(load.await.expect("no panic").expect("its own load"), "old");
        assert_eq!(text(&ours, "k").await, None);
        assert!(server.keys("hr:l:*").await.is_empty());
    }
}

#[tokio::test]
async fn a_load_that_began_before_set_is_not_stored_over_it() {
    let server = Server::start().await;
    let (ours, theirs) = (
        server.client().await.cache("c"),
        server.client().await.cache("c"),
    );
    for setter in [&ours, &theirs] {
        let gate = Gate::closed();
        let load = loading(&ours, &gate, "old");
        gate.begun(1).await;
        set(setter, "k", "new").await;
        gate.open();
        assert_eq!(load.await.expect("no panic").expect("its own load"), "old");
        assert_eq!(text(&ours, "k").await.as_deref(), Some("new"));
        ours.remove("k").await.expect("removed");
    }
}

#[tokio::test]
async fn a_load_that_began_before_its_tag_was_invalidated_or_the_cache_cleared_is_no_hit() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    for by_tag in [true, false] {
        let gate = Gate::closed();
        let load = loading(&cache, &gate, "old");
        gate.begun(1).await;
        match by_tag {
            true => cache.invalidate_tags(["t"]).await.expect("invalidated"),
            false => cache.clear().await.expect("cleared"),
        }
        let later = loading(&cache, &gate, "new");
        gate.open();
        gate.open();
        assert_eq!(load.await.expect("no panic").expect("its own load"), "old");
        assert_eq!(later.await.expect("no panic").expect("a later load"), "new");
        assert_eq!(text(&cache, "k").await.as_deref(), Some("new"));
        cache.remove("k").await.expect("removed");
    }
}

#[tokio::test]
async fn what_is_damaged_is_a_miss_that_removes_itself() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let key = "hr:v:{c:k}";
    let garbage = "\u{2}".repeat(100);
    for garbage in ["", "\u{2}", garbage.as_str()] {
        let _: () = server.run(&["SET", key, garbage]).await;
        assert_eq!(text(&cache, "k").await, None);
        assert_eq!(server.keys(key).await.len(), 0, "{garbage:?}");
    }
    // A value with one byte left over.
    set(&cache, "k", "v").await;
    let _: () = server.run(&["APPEND", key, "!"]).await;
    assert_eq!(text(&cache, "k").await, None);
    assert_eq!(server.keys(key).await.len(), 0);
    // A value of another type.
    set(&cache, "k", "v").await;
    let call = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>(7u64));
    assert_eq!(*call.await.expect("loaded"), 7);
    assert_eq!(
        *cache
            .get::<u64>("k")
            .await
            .expect("an answer")
            .expect("stored"),
        7
    );
}

#[tokio::test]
async fn a_key_of_another_type_is_told_and_left_alone() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    set(&cache, "warm", "v").await;
    for (key, make) in [
        ("hr:v:{c:k}", vec!["RPUSH", "hr:v:{c:k}", "theirs"]),
        ("hr:l:{c:k}", vec!["SET", "hr:l:{c:k}", "theirs"]),
    ] {
        let _: () = server.run(&make).await;
        let before = server.digest().await;
        assert_eq!(text(&cache, "k").await, None);
        let load = async || Ok::<_, Infallible>("ours".to_owned());
        let refused = [
            cache.memoize("k", MINUTE, load).await.map(drop),
            cache.set("k", &"ours", MINUTE).await,
            cache.remove("k").await,
        ];
        for outcome in refused {
            let error = outcome.expect_err("another type");
            assert_eq!(error.kind(), ErrorKind::WrongType);
            assert_eq!(error.key(), Some("k"));
        }
        assert_eq!(server.digest().await, before);
        let _: () = server.run(&["DEL", key]).await;
    }
    Row::shown(
        30,
        "something else in our place",
        "load",
        "refused and kept",
        1,
        6,
    );
}

#[tokio::test]
async fn verbs_that_judge_before_they_write_tell_of_a_key_of_another_type() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    // A missing key is none.
    assert!(
        cache
            .take::<String>("k")
            .await
            .expect("an answer")
            .is_none()
    );
    assert!(!cache.persist("k").await.expect("an answer"));
    let _: () = server.run(&["RPUSH", "hr:v:{c:k}", "theirs"]).await;
    let moment = SystemTime::now() + MINUTE;
    let outcomes = [
        ("take", cache.take::<String>("k").await.map(drop)),
        ("entry", cache.entry::<String>("k").await.map(drop)),
        (
            "update_with",
            cache
                .update_with("k", |text: &String| text.clone())
                .await
                .map(drop),
        ),
        ("expire", cache.expire("k", MINUTE).await.map(drop)),
        ("expire_at", cache.expire_at("k", moment).await.map(drop)),
        ("touch", cache.touch("k", MINUTE).await.map(drop)),
        ("persist", cache.persist("k").await.map(drop)),
        ("add", cache.add("k", "v", MINUTE).await.map(drop)),
        (
            "if_present",
            cache.set("k", "v", MINUTE).if_present().await.map(drop),
        ),
        ("keep_ttl", cache.set("k", "v", MINUTE).keep_ttl().await),
        ("move_version", cache.move_version("k", 7).await.map(drop)),
    ];
    for (verb, outcome) in outcomes {
        let error = outcome.expect_err(verb);
        assert_eq!(error.kind(), ErrorKind::WrongType, "{verb}: {error}");
        assert_eq!(error.key(), Some("k"), "{verb}");
    }
    // Reads cannot tell it from a missing key.
    assert_eq!(text(&cache, "k").await, None);
    assert!(!cache.contains("k").await.expect("an answer"));
    assert_eq!(cache.ttl("k").await.expect("an answer"), None);
    let theirs: Vec<String> = server.run(&["LRANGE", "hr:v:{c:k}", "0", "-1"]).await;
    assert_eq!(theirs, ["theirs"]);
}

#[tokio::test]
async fn a_value_that_cannot_be_stored_for_want_of_memory_still_reaches_its_caller() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let gate = Gate::closed();
    let load = loading(&cache, &gate, "v");
    gate.begun(1).await;
    let _: () = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    gate.open();
    assert_eq!(load.await.expect("no panic").expect("its own load"), "v");
    assert!(
        server.keys("hr:l:*").await.is_empty(),
        "the lease is given up"
    );
    // Before the load it is an error; and invalidation always works.
    let call = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>(1u8));
    let error = call.await.expect_err("no room for a lease");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    cache.remove("k").await.expect("removed");
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    cache.clear().await.expect("cleared");
}

#[tokio::test]
async fn bad_names_and_durations_are_told_by_the_first_call() {
    let server = Server::start().await;
    let client = server.client().await;
    let good = client.cache("c");
    let load = async || Ok::<_, Infallible>(1u8);
    let refused: Vec<Result<(), Error>> = vec![
        client.cache("").get::<u8>("k").await.map(drop),
        client.cache("").clear().await,
        client.cache("").memoize("k", MINUTE, load).await.map(drop),
        client
            .cache("")
            .memoize("k", MINUTE, load)
            .tags(["t"])
            .await
            .map(drop),
        good.memoize("", MINUTE, load).await.map(drop),
        good.memoize("k", Duration::ZERO, load).await.map(drop),
        good.memoize("k", MINUTE, load).tags([""]).await.map(drop),
        good.clone()
            .max_load(Duration::ZERO)
            .memoize("k", MINUTE, load)
            .await
            .map(drop),
        good.clone()
            .takeover(Duration::ZERO)
            .memoize("k", MINUTE, load)
            .await
            .map(drop),
        good.set("", &1u8, MINUTE).await,
        good.set("k", &1u8, Duration::MAX).await,
        good.remove("").await,
        good.invalidate_tags(["t", ""]).await,
        good.memoize("k", MINUTE, load)
            .tags((0..300).map(|tag| tag.to_string()))
            .await
            .map(drop),
    ];
    for (place, outcome) in refused.into_iter().enumerate() {
        let error = outcome.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{place}: {error}");
    }
    assert!(server.keys("hr:[vl]:*").await.is_empty());
}

#[tokio::test]
async fn a_server_that_is_down_is_an_error_and_never_a_miss() {
    let client = Client::builder()
        .url("redis://127.0.0.1:1")
        .cache_deadline(Duration::from_millis(50))
        .open()
        .expect("no I/O yet");
    let cache = client.cache("c");
    let load = || async { panic!("must not run") as Result<u8, Infallible> };
    let errors = [
        cache.get::<u8>("k").await.map(drop),
        cache.memoize("k", MINUTE, load).await.map(drop),
        cache.set("k", &1u8, MINUTE).await,
        cache.remove("k").await,
        cache.invalidate_tags(["t"]).await,
    ];
    for outcome in errors {
        assert_eq!(outcome.expect_err("down").kind(), ErrorKind::Unreachable);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn script_flush_under_load_is_not_noticed() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..8u64 {
        let cache = cache.clone();
        callers.spawn(async move {
            for round in 0..200 {
                let key = format!("k{}", (caller + round) % 4);
                let load = async move || Ok::<_, Infallible>(round);
                cache.memoize(&key, MINUTE, load).tags(["t"]).await?;
                match round % 8 {
                    0 => cache.remove(&key).await?,
                    1 => cache.set(&key, &round, MINUTE).await?,
                    2 => cache.invalidate_tags(["t"]).await?,
                    _ => {}
                }
            }
            Ok::<_, Error>(())
        });
    }
    let flusher = async {
        loop {
            let _: () = server.run(&["SCRIPT", "FLUSH"]).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let outcomes = tokio::select! {
        outcomes = callers.join_all() => outcomes,
        () = flusher => unreachable!("it goes on for ever"),
    };
    for outcome in outcomes {
        outcome.expect("nothing is noticed");
    }
}

#[tokio::test]
async fn an_entry_that_lost_its_whole_cache_tag_is_no_hit() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let (one, other) = (client.cache("one"), client.cache("other"));
    set(&one, "k", "v").await;
    // An entry of one cache, put under a key of another, cannot be cleared there.
    let copied: i64 = server
        .run(&["COPY", "hr:v:{one:k}", "hr:v:{other:k}"])
        .await;
    assert_eq!(copied, 1);
    assert_eq!(text(&other, "k").await, None);
    assert_eq!(text(&one, "k").await.as_deref(), Some("v"));
    until("nothing waits", async || {
        server.keys("hr:l:*").await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_max_load_that_is_too_long_is_refused_by_every_call_and_one_of_a_day_is_not() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let day = Duration::from_secs(24 * 60 * 60);
    let load = async || Ok::<_, std::convert::Infallible>(1u8);
    for (max_load, fine) in [
        (day, true),
        (day * 365 * 100, false),
        (Duration::ZERO, false),
    ] {
        let cache = cache.clone().max_load(max_load);
        let outcomes = [
            cache.memoize("k", day, load).await.map(drop),
            cache.get::<u8>("k").await.map(drop),
            cache.set("k", &1u8, day).await,
            cache.invalidate_tags(["t"]).await,
            cache.clear().await,
            cache.remove("k").await,
        ];
        for outcome in outcomes {
            match outcome {
                Ok(()) => assert!(fine, "{max_load:?}"),
                Err(error) => {
                    assert!(!fine, "{error}");
                    assert_eq!(error.kind(), ErrorKind::InvalidInput);
                    assert!(error.to_string().contains("max_load"), "{error}");
                }
            }
        }
    }
}
