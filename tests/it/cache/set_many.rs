//! `set_many`: an outcome for each value.

use std::time::Duration;

use hedgerow::ErrorKind;

use crate::support::gate::Gate;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{calls, patient, until, waiting};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn each_value_is_stored_and_has_its_own_outcome() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let items: Vec<(String, u64)> = (0..250)
        .map(|number| (format!("k{number}"), number))
        .collect();
    let _: usize = server.run(&["RPUSH", "hr:v:{c:k7}", "x"]).await;
    let borrowed = items.iter().map(|(key, value)| (key, value));
    let outcomes = cache
        .set_many(borrowed, MINUTE)
        .tags(["t"])
        .await
        .expect("outcomes");
    assert_eq!(outcomes.len(), items.len());
    for ((key, value), outcome) in items.iter().zip(outcomes) {
        let found = cache.get::<u64>(key).await.expect("an answer");
        if key == "k7" {
            let error = outcome.expect_err("a list is there");
            assert_eq!(
                (error.kind(), error.key()),
                (ErrorKind::WrongType, Some("k7"))
            );
            assert_eq!(found, None);
        } else {
            outcome.expect("stored");
            assert_eq!(found.as_deref(), Some(value));
        }
    }
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    assert_eq!(cache.get::<u64>("k1").await.expect("an answer"), None);
}

#[tokio::test]
async fn bad_input_is_refused_before_anything_is_sent() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    let before = calls(&server, &["mget", "get", "evalsha"]).await;
    for (key, ttl, tag) in [
        ("", MINUTE, "t"),
        ("b", Duration::ZERO, "t"),
        ("b", MINUTE, ""),
    ] {
        let error = cache
            .set_many([("a", &1), (key, &2)], ttl)
            .tags([tag])
            .await;
        assert_eq!(error.expect_err("refused").kind(), ErrorKind::InvalidInput);
    }
    let none: [(&str, &u8); 0] = [];
    assert!(
        cache
            .set_many(none, MINUTE)
            .await
            .expect("nothing to do")
            .is_empty()
    );
    assert_eq!(calls(&server, &["mget", "get", "evalsha"]).await, before);
}

#[tokio::test]
async fn the_generations_are_read_once_for_all() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    let items: Vec<(String, u64)> = (0..100)
        .map(|number| (number.to_string(), number))
        .collect();
    let items = || items.iter().map(|(key, value)| (key, value));
    cache
        .set_many(items(), MINUTE)
        .tags(["t"])
        .await
        .expect("outcomes");
    let before = calls(&server, &["mget", "get"]).await;
    for outcome in cache
        .set_many(items(), MINUTE)
        .tags(["t"])
        .await
        .expect("outcomes")
    {
        outcome.expect("stored");
    }
    assert_eq!(calls(&server, &["mget", "get"]).await, before + 1);
}

#[tokio::test]
async fn a_value_that_cannot_be_encoded_keeps_no_other_from_being_stored() {
    let server = Server::start().await;
    let cache = server
        .client()
        .await
        .cache("c")
        .codec(hedgerow::Codec::Json);
    let good = std::collections::BTreeMap::from([((1, 1), 1)]);
    let empty = std::collections::BTreeMap::new();
    let outcomes = cache.set_many([("a", &good), ("b", &empty)], MINUTE).await;
    let outcomes = outcomes.expect("outcomes");
    let error = outcomes[0].as_ref().expect_err("keys of JSON are text");
    assert_eq!((error.kind(), error.key()), (ErrorKind::Encode, Some("a")));
    assert!(outcomes[1].is_ok());
    assert!(cache.contains("b").await.expect("an answer"));
}

#[tokio::test]
async fn one_command_stores_a_hundred_values_of_a_server() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    let items: Vec<(String, u64)> = (0..250)
        .map(|number| (number.to_string(), number))
        .collect();
    let store = async || {
        let items = items.iter().map(|(key, value)| (key, value));
        let outcomes = cache.set_many(items, MINUTE).await.expect("outcomes");
        assert!(outcomes.into_iter().all(|outcome| outcome.is_ok()));
    };
    // Makes the generation known, and the script.
    store().await;
    let before = calls(&server, &["evalsha"]).await;
    store().await;
    assert_eq!(calls(&server, &["evalsha"]).await, before + 3);
    let before = cache.stats().stores;
    store().await;
    assert_eq!(cache.stats().stores, before + 250);
}

#[tokio::test]
async fn large_values_are_stored_among_small_ones() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let items: Vec<(String, String)> = (0..20)
        .map(|number| {
            // Text that cannot be compressed.
            let length = if number % 7 == 3 { 200_000 } else { 20_000 };
            let text: String = (0..length)
                .map(|_| char::from(rand::random_range(b' '..b'~')))
                .collect();
            (number.to_string(), text)
        })
        .collect();
    let borrowed = items.iter().map(|(key, value)| (key, value));
    let outcomes = cache.set_many(borrowed, MINUTE).await.expect("outcomes");
    for ((key, value), outcome) in items.iter().zip(outcomes) {
        outcome.expect("stored");
        let found = cache.get::<String>(key).await.expect("an answer");
        assert_eq!(found.as_deref(), Some(value), "{key}");
    }
}

#[tokio::test]
async fn loads_of_them_are_not_stored_and_those_that_wait_get_the_values() {
    let server = Server::start().await;
    let (one, two) = (
        server.client().await.cache("c"),
        server.client().await.cache("c"),
    );
    let gate = Gate::closed();
    let load = |cache: &hedgerow::Cache, value: &str| {
        let (gate, value) = (gate.clone(), value.to_owned());
        let load = cache.memoize("a", MINUTE, move || gate.load(value));
        tokio::spawn(load.into_future())
    };
    let first = load(&one, "old");
    until("it loads", async || gate.loads() == 1).await;
    let second = load(&two, "unused");
    waiting(&server, "hr:l:{c:a}", 1).await;
    let outcomes = two.set_many([("a", &"set"), ("b", &"set")], MINUTE).await;
    assert!(outcomes.expect("outcomes").iter().all(Result::is_ok));
    // By push: the takeover is ten seconds away.
    let second = second.await.expect("no panic").expect("a value");
    assert_eq!(second.as_str(), "set");
    gate.open();
    let first = first.await.expect("no panic").expect("loaded");
    assert_eq!(first.as_str(), "old");
    let kept = two.get::<String>("a").await.expect("an answer");
    assert_eq!(kept.as_deref().map(String::as_str), Some("set"));
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn something_else_at_the_lease_is_the_outcome_of_its_value_only() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let _: usize = server.run(&["RPUSH", "hr:l:{c:b}", "x"]).await;
    let items = [("a", &1), ("b", &2), ("c", &3)];
    let outcomes = cache.set_many(items, MINUTE).await.expect("outcomes");
    let kinds: Vec<Option<ErrorKind>> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().err().map(hedgerow::Error::kind))
        .collect();
    assert_eq!(kinds, [None, Some(ErrorKind::WrongType), None]);
    assert!(!cache.contains("b").await.expect("an answer"));
    assert!(cache.contains("c").await.expect("an answer"));
}

#[tokio::test]
async fn a_reply_that_is_lost_leaves_the_values_of_its_command_in_doubt_and_no_others() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let cache = client.cache("c");
    // Makes the generation and the script known.
    let warm = cache.set_many([("warm", &0)], MINUTE).await;
    assert!(warm.expect("outcomes")[0].is_ok());
    let items: Vec<(String, u64)> = (0..150)
        .map(|number| (number.to_string(), number))
        .collect();
    let borrowed = items.iter().map(|(key, value)| (key, value));
    let _lost = proxy.on_reply(Request::nth(1).with("hr:v:{c:149}"), Act::Hold);
    let storing = cache
        .set_many(borrowed, MINUTE)
        .deadline(Duration::from_secs(2));
    let outcomes = storing.await.expect("outcomes");
    for (at, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(()) => assert!(at < 100, "{at} has no answer"),
            Err(error) => {
                assert!(at >= 100 && error.is_indeterminate(), "{at}: {error}");
                assert_eq!(error.key(), Some(items[at].0.as_str()));
            }
        }
    }
}
