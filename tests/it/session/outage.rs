//! Without Redis nobody is logged out, and nobody is logged in.

use std::time::Duration;

use hedgerow::session::{SessionStore, Trouble};
use hedgerow::{Cache, Outage};
use serde_json::json;
use tower_sessions_core::SessionStore as _;
use tower_sessions_core::session_store;

use super::{created, data, is_there, loaded, record, request};
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{patient, until};

fn unavailable<T>(answer: session_store::Result<T>) {
    let error = answer.map(drop).expect_err("Redis is out");
    assert_eq!(Trouble::from(&error), Trouble::Unavailable, "{error}");
    assert!(matches!(error, session_store::Error::Backend(_)), "{error}");
}

/// The cache of one who reads near, bypasses outages and spreads TTLs.
fn bypassing(cache: Cache) -> Cache {
    let near = hedgerow::cache::NearCache::new().max_staleness(Duration::from_secs(3600));
    cache.outage(Outage::Bypass).near(near).jitter(0.5)
}

#[tokio::test]
async fn an_outage_is_an_error_of_every_verb_whatever_the_cache_is_told() {
    let mut server = Server::start_single().await;
    let builder = server.builder().cache_deadline(Duration::from_millis(300));
    let client = builder.open().expect("a good URL");
    let plain = client.cache("sessions");
    let stores = [plain.clone(), bypassing(plain)];
    let stores = stores.map(|cache| SessionStore::new(cache).user_key("user"));
    let session = created(&stores[0], json!({"user": "7"})).await;
    for store in &stores {
        assert!(is_there(store, session.id).await);
    }
    let killed = server.kill().await;
    for store in &stores {
        unavailable(store.load(&session.id).await);
        unavailable(store.save(&session).await);
        unavailable(store.create(&mut record(json!({"user": "7"}))).await);
        unavailable(store.delete(&session.id).await);
        unavailable(store.sessions_of("7").await);
        unavailable(store.revoke("7", &store.digest(&session.id)).await);
        unavailable(store.log_out_everywhere("7").await);
        let handler = request(store, session.id);
        let error = handler.get::<String>("user").await.expect_err("out");
        assert_eq!(Trouble::from(&error), Trouble::Unavailable);
    }
    server.start_again(killed).await;
    for store in &stores {
        until("the store works again", async || {
            store.load(&session.id).await.is_ok()
        })
        .await;
    }
    // It has lost its data: only then the session is gone.
    assert!(!is_there(&stores[0], session.id).await);
    let session = created(&stores[1], json!({"user": "7"})).await;
    assert_eq!(
        data(&loaded(&stores[0], session.id).await),
        json!({"user": "7"})
    );
}

/// What a near cache holds is never a session, also while it does not hear of a change.
#[tokio::test]
async fn a_logout_is_seen_at_once_by_a_store_with_a_near_cache() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let cache = bypassing(client.cache("sessions"));
    let near = SessionStore::new(cache.clone());
    let other = SessionStore::new(server.client().await.cache("sessions"));
    let minute = Duration::from_secs(60);
    cache.set("a", &1u8, minute).await.expect("stored");
    until("the near cache serves", async || {
        let _ = cache.get::<u8>("a").await.expect("an answer");
        cache.stats().near_hits > 0
    })
    .await;
    let id = created(&other, json!({"a": 1})).await.id;
    for _ in 0..3 {
        assert!(is_there(&near, id).await);
    }
    let held = proxy.on_push(Request::every(), Act::Hold);
    other.delete(&id).await.expect("deleted");
    held.hit().await;
    assert!(!is_there(&near, id).await);
}

#[tokio::test]
async fn a_logout_whose_reply_is_lost_is_an_error_or_done() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let builder = proxy.builder().cache_deadline(Duration::from_secs(20));
    let client = builder.open().expect("a good URL");
    let store = SessionStore::new(client.cache("sessions")).user_key("user");
    let direct = super::store(&server).await;
    for _ in 0..5 {
        let id = created(&store, json!({"user": "7"})).await.id;
        let late = request(&direct, id);
        late.insert("a", 1).await.expect("loaded");
        proxy.lose_next_reply();
        if store.delete(&id).await.is_ok() {
            assert!(!is_there(&direct, id).await);
            late.save().await.expect("an answer");
            assert!(!is_there(&direct, id).await);
        }
    }
    // A server that does not answer is no missing session.
    let id = created(&direct, json!({"user": "7"})).await.id;
    let hung = proxy.builder().cache_deadline(Duration::from_millis(200));
    let hung = SessionStore::new(hung.open().expect("a good URL").cache("sessions"));
    assert!(is_there(&hung, id).await);
    proxy.on(Request::every(), Act::Vanish);
    unavailable(hung.load(&id).await);
}
