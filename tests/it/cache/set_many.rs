//! `set_many`: an outcome for each value.

use std::time::Duration;

use hedgerow::ErrorKind;

use crate::support::server::Server;
use crate::support::wait::calls;

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
