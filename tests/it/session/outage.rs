//! Without Redis nobody is logged out, and nobody is logged in.

use std::time::Duration;

use hedgerow::session::{SessionStore, Trouble};
use hedgerow::{Cache, Outage};
use serde_json::json;
use tower_sessions_core::SessionStore as _;
use tower_sessions_core::session::Id;
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
    let builder = server.builder().cache_deadline(Duration::from_secs(1));
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
    // Another user: the logout of the first may still be on its way.
    let session = created(&stores[1], json!({"user": "8"})).await;
    assert_eq!(
        data(&loaded(&stores[0], session.id).await),
        json!({"user": "8"})
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

/// A store behind the proxy that has run all scripts, and one beside it.
async fn both(server: &Server, proxy: &Proxy, deadline: Duration) -> (SessionStore, SessionStore) {
    let client = proxy.builder().cache_deadline(deadline).open();
    let cache = client.expect("a good URL").cache("sessions");
    let (store, direct) = (
        SessionStore::new(cache).user_key("user"),
        super::store(server).await,
    );
    for content in [json!({}), json!({"user": "7"})] {
        let warm = request(&store, created(&store, content).await.id);
        warm.save().await.expect("saved");
        warm.insert("a", 1).await.expect("loaded");
        warm.save().await.expect("saved");
        warm.cycle_id().await.expect("an answer");
        warm.save().await.expect("saved");
        warm.flush().await.expect("logged out");
    }
    (store, direct)
}

/// A text by which one command is told from the others, since no other is as long.
fn incompressible(store: &SessionStore) -> String {
    (0..200).map(|at| store.digest(&Id(at))).collect()
}

fn key(store: &SessionStore, id: Id) -> String {
    format!("hr:v:{{sessions:{}}}", store.digest(&id))
}

#[tokio::test]
async fn a_logout_whose_reply_is_lost_is_an_error_or_done() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let (store, direct) = both(&server, &proxy, Duration::from_secs(20)).await;
    for content in [json!({"user": "7"}), json!({})] {
        let id = created(&store, content.clone()).await.id;
        let late = request(&direct, id);
        late.insert("a", 1).await.expect("loaded");
        let script = Request::any().named("evalsha").with(&key(&store, id));
        let lost = proxy.on_reply(script, Act::Reset);
        match (store.delete(&id).await, content["user"].is_null()) {
            // The session of nobody is removed once more.
            (Ok(()), true) => {}
            (refused, false) => unavailable(refused),
            (other, true) => panic!("{other:?}"),
        }
        assert_eq!(lost.hits(), 1);
        assert!(!is_there(&direct, id).await);
        late.save().await.expect("an answer");
        assert!(!is_there(&direct, id).await);
    }
    // A server that does not answer is no missing session.
    let id = created(&direct, json!({"user": "7"})).await.id;
    let hung = proxy.builder().cache_deadline(Duration::from_secs(1));
    let hung = SessionStore::new(hung.open().expect("a good URL").cache("sessions"));
    assert!(is_there(&hung, id).await);
    proxy.on(Request::every(), Act::Vanish);
    unavailable(hung.load(&id).await);
}

/// What became of it is not known, so it is no logout.
#[tokio::test]
async fn a_new_id_whose_delete_has_failed_is_an_error_and_no_logout() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let (store, direct) = both(&server, &proxy, Duration::from_secs(2)).await;
    let id = created(&store, json!({"user": "7"})).await.id;
    let session = request(&store, id);
    session.load().await.expect("loaded");
    proxy.on(Request::every(), Act::Reset);
    let error = session.cycle_id().await.expect_err("out");
    assert_eq!(Trouble::from(&error), Trouble::Unavailable, "{error}");
    proxy.clear();
    until("it works again", async || store.load(&id).await.is_ok()).await;
    // The handler has not minded, and the layer saves.
    let error = session.save().await.expect_err("no session was made");
    assert_eq!(Trouble::from(&error), Trouble::Unavailable, "{error}");
    assert!(is_there(&direct, id).await);
    // The request is repeated.
    let again = request(&store, id);
    again.cycle_id().await.expect("an answer");
    again.save().await.expect("saved");
    assert!(is_there(&direct, again.id().expect("it was saved")).await);
    assert_eq!(store.stats().dropped, 0);
}

/// The old session is gone then, and the error does not say otherwise.
#[tokio::test]
async fn a_new_id_whose_delete_lost_its_reply_is_an_error_that_promises_no_session() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let (store, direct) = both(&server, &proxy, Duration::from_secs(20)).await;
    let id = created(&store, json!({"user": "7"})).await.id;
    let session = request(&store, id);
    session.load().await.expect("loaded");
    let script = Request::any().named("evalsha").with(&key(&store, id));
    let lost = proxy.on_reply(script, Act::Reset);
    session.cycle_id().await.expect_err("it has no answer");
    assert_eq!(lost.hits(), 1);
    let error = session.save().await.expect_err("no session was made");
    assert_eq!(Trouble::from(&error), Trouble::Unavailable, "{error}");
    let told = error.to_string();
    assert!(!told.contains("nothing was changed"), "{told}");
    assert!(told.contains("there or not"), "{told}");
    assert!(!is_there(&direct, id).await);
}

/// The session was stored, and whether its user was logged out meanwhile is asked in vain.
#[tokio::test]
async fn a_new_id_that_fails_halfway_can_be_saved_again() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let (store, direct) = both(&server, &proxy, Duration::from_secs(1)).await;
    let much = incompressible(&store);
    let id = created(&store, json!({"user": "7", "much": much})).await.id;
    let session = request(&store, id);
    session.cycle_id().await.expect("an answer");
    let held = proxy.on(Request::any().named("evalsha").above(3_000), Act::Hold);
    let saves = session.clone();
    let saves = tokio::spawn(async move { saves.save().await });
    held.hit().await;
    proxy.on(Request::every(), Act::Reset);
    held.deliver();
    let error = saves.await.expect("no panic").expect_err("out");
    assert_eq!(Trouble::from(&error), Trouble::Unavailable, "{error}");
    proxy.clear();
    until("it works again", async || store.load(&id).await.is_ok()).await;
    session.save().await.expect("saved");
    assert!(is_there(&direct, session.id().expect("it was saved")).await);
    assert_eq!(store.stats().dropped, 0);
}

/// Ends the session in one of the ways there are.
async fn logout(store: &SessionStore, id: Id, by: &str) {
    match by {
        "delete" => store.delete(&id).await.expect("logged out"),
        "revoke" => {
            let revoked = store.revoke("7", &store.digest(&id)).await;
            assert!(revoked.expect("an answer"));
        }
        _ => store.log_out_everywhere("7").await.expect("logged out"),
    }
}

/// The save has judged the session before the logout, and stores, or moves the end, after it.
#[tokio::test]
async fn a_save_that_was_judged_before_a_logout_changes_nothing_after_it() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let (store, direct) = both(&server, &proxy, Duration::from_secs(20)).await;
    let before = store.stats().dropped;
    for by in ["delete", "revoke", "everywhere"] {
        for changes in [0, 1] {
            let id = created(&direct, json!({"user": "7", "a": 0})).await.id;
            let late = request(&store, id);
            late.insert("a", changes).await.expect("loaded");
            let script = Request::any().named("evalsha").with(&key(&store, id));
            let held = proxy.on(script, Act::Hold);
            let saves = tokio::spawn(async move { late.save().await });
            held.hit().await;
            logout(&direct, id, by).await;
            held.deliver();
            saves.await.expect("no panic").expect("an answer");
            assert!(!is_there(&direct, id).await, "{by} {changes}");
        }
    }
    assert_eq!(store.stats().dropped, before + 6);
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_new_id_that_is_stored_after_a_logout_everywhere_has_ended() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let (store, direct) = both(&server, &proxy, Duration::from_secs(20)).await;
    let much = incompressible(&store);
    let id = created(&store, json!({"user": "7", "much": much})).await.id;
    let late = request(&store, id);
    late.cycle_id().await.expect("an answer");
    let held = proxy.on(Request::any().named("evalsha").above(3_000), Act::Hold);
    let saves = late.clone();
    let saves = tokio::spawn(async move { saves.save().await });
    held.hit().await;
    direct.log_out_everywhere("7").await.expect("logged out");
    held.deliver();
    saves.await.expect("no panic").expect("an answer");
    assert!(!is_there(&direct, late.id().expect("it has an id")).await);
    assert_eq!(store.stats().dropped, 1);
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_full_redis_refuses_what_stores_and_nothing_that_ends_a_session() {
    let server = Server::start_single().await;
    let store = super::store(&server).await;
    let mut ids = Vec::new();
    for content in [json!({"user": "7"}), json!({"user": "7"}), json!({})] {
        ids.push(created(&store, content).await.id);
    }
    // One of a user, and one of nobody, for which no index needs memory.
    let writes = [ids[0], ids[2]].map(|id| request(&store, id));
    for session in &writes {
        session.insert("a", 1).await.expect("loaded");
    }
    let before = server.digest().await;
    let _: redis::Value = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    for content in [json!({"user": "7"}), json!({})] {
        unavailable(store.create(&mut record(content)).await);
    }
    for session in writes {
        let error = session.save().await.expect_err("it is full");
        assert_eq!(Trouble::from(&error), Trouble::Unavailable, "{error}");
    }
    assert_eq!(server.digest().await, before, "nothing was stored");
    for (id, by) in ids.iter().zip(["revoke", "everywhere", "delete"]) {
        assert!(is_there(&store, *id).await, "{by}");
        logout(&store, *id, by).await;
        assert!(!is_there(&store, *id).await, "{by}");
    }
}

/// It does not know how long the tag of the user lives, and a logout is never put off for that.
#[tokio::test]
async fn a_full_redis_lets_a_client_that_has_just_begun_delete_the_session_of_a_user() {
    let server = Server::start_single().await;
    let store = super::store(&server).await;
    let (deleted, renewed) = (
        created(&store, json!({"user": "7"})).await.id,
        created(&store, json!({"user": "7"})).await.id,
    );
    let _: redis::Value = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let fresh = super::store(&server).await;
    fresh.delete(&deleted).await.expect("logged out");
    assert!(!is_there(&store, deleted).await);
    // A new id has no place.
    let session = request(&fresh, renewed);
    session.cycle_id().await.expect("an answer");
    let error = session.save().await.expect_err("it is full");
    assert_eq!(Trouble::from(&error), Trouble::Unavailable, "{error}");
}
