//! What tower-sessions expects of every store: create, save, load, delete.

use serde_json::json;
use time::{Duration, OffsetDateTime};
use tower_sessions_core::SessionStore as _;
use tower_sessions_core::session::Id;

use super::{HOUR, created, data, is_there, loaded, record, store};
use crate::support::server::Server;
use crate::support::wait::until;

#[tokio::test]
async fn a_created_session_is_loaded_with_its_data_and_its_end() {
    let server = Server::start().await;
    let store = store(&server).await;
    let all = json!({
        "user": "7", "none": null, "yes": true, "float": 0.1, "text": "ü \u{0} \"",
        "large": u64::MAX, "small": i64::MIN, "list": [1, "a", {}], "map": {"b": 1, "a": [2]},
    });
    let record = created(&store, all.clone()).await;
    assert_eq!(data(&record), all);
    let other = super::store(&server).await;
    let found = loaded(&other, record.id).await;
    assert_eq!((found.id, data(&found)), (record.id, all));
    // By the clocks of the server and of this process, which are one.
    let apart = (found.expiry_date - record.expiry_date).abs();
    assert!(apart < Duration::MINUTE, "{apart}");
}

#[tokio::test]
async fn a_session_that_was_never_created_is_neither_found_nor_saved() {
    let server = Server::start().await;
    let store = store(&server).await;
    let record = record(json!({"a": 1}));
    assert!(!is_there(&store, record.id).await);
    store.save(&record).await.expect("ignored");
    assert!(!is_there(&store, record.id).await);
    store.delete(&record.id).await.expect("nothing to delete");
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
}

#[tokio::test]
async fn two_sessions_that_are_created_with_one_id_are_two() {
    let server = Server::start().await;
    let store = store(&server).await;
    let first = created(&store, json!({"a": 1})).await;
    let mut second = record(json!({"a": 2}));
    second.id = first.id;
    store.create(&mut second).await.expect("created");
    assert_ne!(first.id, second.id);
    assert_eq!(data(&loaded(&store, first.id).await), json!({"a": 1}));
    assert_eq!(data(&loaded(&store, second.id).await), json!({"a": 2}));
}

#[tokio::test]
async fn what_is_saved_is_loaded() {
    let server = Server::start().await;
    let (store, other) = (store(&server).await, store(&server).await);
    let mut record = created(&store, json!({"a": 1, "b": 1})).await;
    record.data.remove("b");
    for value in [json!(2), json!([1, 2]), json!(null)] {
        record.data.insert("a".to_owned(), value.clone());
        record.expiry_date += HOUR;
        store.save(&record).await.expect("saved");
        let found = loaded(&other, record.id).await;
        assert_eq!(data(&found), json!({ "a": value }));
        let apart = (found.expiry_date - record.expiry_date).abs();
        assert!(apart < Duration::MINUTE, "{apart}");
    }
    assert_eq!(store.stats().saved, 3);
}

#[tokio::test]
async fn a_deleted_session_is_gone() {
    let server = Server::start().await;
    let (store, other) = (store(&server).await, store(&server).await);
    for content in [json!({"user": "7"}), json!({})] {
        let record = created(&store, content).await;
        assert!(is_there(&other, record.id).await);
        other.delete(&record.id).await.expect("deleted");
        assert!(!is_there(&store, record.id).await);
        other.delete(&record.id).await.expect("nothing to delete");
    }
}

#[tokio::test]
async fn a_session_ends_when_its_record_says() {
    let server = Server::start().await;
    let store = store(&server).await;
    let mut record = record(json!({"a": 1}));
    record.expiry_date = OffsetDateTime::now_utc() + Duration::milliseconds(300);
    store.create(&mut record).await.expect("created");
    until("the session ends", async || {
        !is_there(&store, record.id).await
    })
    .await;
    // One that has ended already is none, and a save that says so ends it.
    record.expiry_date = OffsetDateTime::now_utc() - HOUR;
    store.create(&mut record).await.expect("nothing to store");
    assert!(!is_there(&store, record.id).await);
    let mut record = created(&store, json!({"a": 1})).await;
    record.expiry_date = OffsetDateTime::UNIX_EPOCH;
    store.save(&record).await.expect("ended");
    assert!(!is_there(&store, record.id).await);
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
}

#[tokio::test]
async fn no_session_outlives_its_end_by_jitter() {
    let server = Server::start().await;
    let cache = server.client().await.cache("sessions").jitter(0.5);
    let store = hedgerow::session::SessionStore::new(cache);
    for _ in 0..20 {
        let mut record = created(&store, json!({"a": 1})).await;
        record.data.insert("a".to_owned(), json!(2));
        store.save(&record).await.expect("saved");
    }
    let lives = server.lives("hr:v:*").await;
    assert_eq!(lives.len(), 20);
    let hour = i64::try_from(HOUR.whole_milliseconds()).expect("it is small");
    for (key, left) in lives {
        assert!((hour - 60_000..=hour).contains(&left), "{key}: {left}");
    }
}

#[tokio::test]
async fn a_session_may_last_longer_than_any_ttl() {
    let server = Server::start().await;
    let store = store(&server).await;
    let mut record = record(json!({"a": 1}));
    record.expiry_date = OffsetDateTime::now_utc() + Duration::days(365 * 1000);
    store.create(&mut record).await.expect("created");
    record.data.insert("a".to_owned(), json!(2));
    store.save(&record).await.expect("saved");
    assert_eq!(data(&loaded(&store, record.id).await), json!({"a": 2}));
}

#[tokio::test]
async fn every_codec_of_the_cache_carries_sessions() {
    let server = Server::start().await;
    let client = server.client().await;
    let content = json!({"user": 7, "a": [1.5, null, {"b": "c"}]});
    for codec in [
        hedgerow::Codec::Cbor,
        hedgerow::Codec::Json,
        hedgerow::Codec::MessagePack,
        hedgerow::Codec::Postcard,
    ] {
        let cache = client.cache("sessions").codec(codec);
        let store = hedgerow::session::SessionStore::new(cache);
        let mut record = created(&store, content.clone()).await;
        assert_eq!(data(&loaded(&store, record.id).await), content, "{codec:?}");
        record.data.insert("a".to_owned(), json!(2));
        store.save(&record).await.expect("saved");
        let saved = data(&loaded(&store, record.id).await);
        assert_eq!(saved, json!({"user": 7, "a": 2}), "{codec:?}");
    }
}

#[tokio::test]
async fn a_session_is_explained_by_its_id() {
    let server = Server::start().await;
    let store = store(&server).await;
    let record = created(&store, json!({"user": "7"})).await;
    let found = store.explain(&record.id).await.expect("an answer");
    assert_eq!(found.verdict, hedgerow::cache::Verdict::Hit);
    assert_eq!(found.key, store.digest(&record.id));
    store.log_out_everywhere("7").await.expect("logged out");
    let found = store.explain(&record.id).await.expect("an answer");
    assert_eq!(found.verdict, hedgerow::cache::Verdict::Absent);
    let absent = store.explain(&Id::default()).await.expect("an answer");
    assert_eq!(absent.verdict, hedgerow::cache::Verdict::Absent);
}
