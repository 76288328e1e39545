//! What a cache takes as a value, how large it may be, and how long it lives.

use std::convert::Infallible;
use std::time::Duration;

use hedgerow::{Client, ErrorKind};

use crate::support::server::Server;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn what_has_no_size_can_be_stored() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    cache.set("text", "fences", HOUR).await.expect("stored");
    let text = cache.get::<String>("text").await.expect("read");
    assert_eq!(text.as_deref().map(String::as_str), Some("fences"));
    let numbers: &[u16] = &[1, 2, 3];
    cache.set("numbers", numbers, HOUR).await.expect("stored");
    let found = cache.get::<Vec<u16>>("numbers").await.expect("read");
    assert_eq!(found.as_deref().map(Vec::as_slice), Some(numbers));
}

#[tokio::test]
async fn without_jitter_nothing_outlives_its_ttl() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let exact = cache.clone().jitter(0.0);
    for number in 0..40 {
        let key = format!("set {number}");
        exact.set(&key, &number, HOUR).await.expect("stored");
        let load = move || async move { Ok::<_, Infallible>(number) };
        let key = format!("load {number}");
        exact.memoize(&key, HOUR, load).await.expect("loaded");
    }
    let hour = i64::try_from(HOUR.as_millis()).expect("a few");
    for (key, left) in server.lives("hr:v:*").await {
        // Nor is anything cut short: a tenth would be six minutes.
        assert!((hour - 60_000..=hour).contains(&left), "{key}: {left}");
    }
    for number in 0..40 {
        cache
            .set(&format!("usual {number}"), &number, HOUR)
            .await
            .expect("stored");
    }
    let usual = server.lives("hr:v:*usual*").await;
    assert!(usual.iter().any(|(_, left)| *left > hour), "{usual:?}");
    for wrong in [-0.1, 0.6, f64::NAN, f64::INFINITY] {
        let error = cache.clone().jitter(wrong).get::<u8>("k").await;
        let error = error.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("from 0 to 0.5"), "{error}");
    }
}

#[tokio::test]
async fn forever_is_a_ttl() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c").jitter(0.0);
    let stored = cache.set("k", "v", hedgerow::FOREVER).tags(["t"]);
    stored.await.expect("stored");
    let load = || async { Ok::<_, Infallible>(7u8) };
    let loaded = cache.memoize("m", hedgerow::FOREVER, load).tags(["t"]);
    assert_eq!(*loaded.await.expect("loaded"), 7);
    let years = Duration::from_secs(99 * 365 * 24 * 3600);
    let years = i64::try_from(years.as_millis()).expect("an i64");
    for pattern in ["hr:v:*", "hr:t:*"] {
        let lives = server.lives(pattern).await;
        assert!(!lives.is_empty());
        for (key, left) in lives {
            assert!(left > years, "{key}: {left}");
        }
    }
    assert!(cache.get::<String>("k").await.expect("read").is_some());
    let counter = client.counter("views").add(1).expire(hedgerow::FOREVER);
    counter.await.expect("added");
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    assert!(cache.get::<String>("k").await.expect("read").is_none());
    let longer = hedgerow::FOREVER + Duration::from_millis(1);
    let error = cache.set("k", "v", longer).await.expect_err("refused");
    assert!(error.to_string().contains("hedgerow::FOREVER"), "{error}");
}

#[tokio::test]
async fn the_largest_value_is_a_setting() {
    let server = Server::start().await;
    let wide = server.client().await.cache("c");
    let narrow = server.builder().max_value_size(1_000);
    let narrow = narrow.open().expect("good settings").cache("c");
    let (small, large) = ("v".repeat(500), "v".repeat(2_000));
    narrow.set("k", &small, HOUR).await.expect("stored");
    let error = narrow.set("k", &large, HOUR).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(
        error.to_string().contains("ClientBuilder::max_value_size"),
        "{error}"
    );
    wide.set("large", &large, HOUR).await.expect("stored");
    assert!(
        narrow
            .get::<String>("large")
            .await
            .expect("a miss")
            .is_none()
    );
    let none = Client::builder().url("redis://h").max_value_size(0).open();
    assert_eq!(none.expect_err("refused").kind(), ErrorKind::InvalidInput);
}
