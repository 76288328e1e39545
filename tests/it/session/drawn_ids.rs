//! The ids that `create` draws: one that has a session already is never given away.

use hedgerow::session::{SessionStore, Trouble};
use serde_json::json;
use tower_sessions_core::SessionStore as _;

use super::{created, data, is_there, loaded, record};
use crate::support::proxy::{Act, Proxy, Request, Rule};
use crate::support::server::Server;
use crate::support::wait::patient;

/// A server, and a store behind a proxy that has sent all scripts of a `create`.
async fn behind_a_proxy() -> (Server, Proxy, SessionStore) {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let store = SessionStore::new(client.cache("sessions"));
    created(&store, json!({})).await;
    (server, proxy, store)
}

/// Gives the id that is about to be stored by the command of `held` a session, which is that of
/// `key`. Returns the key of that id.
async fn collides(server: &Server, held: &Rule, key: &str) -> String {
    held.hit().await;
    let words = held.words();
    let drawn = words.into_iter().find(|word| word.starts_with("hr:v:"));
    let drawn = drawn.expect("the command names the session");
    let copied: u8 = server.run(&["COPY", key, &drawn]).await;
    assert_eq!(copied, 1, "nothing was there");
    held.deliver();
    drawn
}

#[tokio::test]
async fn an_id_that_has_a_session_is_drawn_anew() {
    let (server, proxy, store) = behind_a_proxy().await;
    let theirs = created(&store, json!({"theirs": 1})).await.id;
    let key = format!("hr:v:{{sessions:{}}}", store.digest(&theirs));
    let before: Vec<u8> = server.run(&["GET", &key]).await;

    let held = proxy.on(Request::any().named("evalsha"), Act::Hold);
    let mut own = record(json!({"own": 1}));
    let (create, drawn) = tokio::join!(store.create(&mut own), collides(&server, &held, &key));
    create.expect("created");
    let stored = format!("hr:v:{{sessions:{}}}", store.digest(&own.id));
    assert_ne!(stored, drawn, "another id");
    assert_eq!(data(&loaded(&store, own.id).await), json!({"own": 1}));
    // The session that was there is as it was.
    let after: Vec<u8> = server.run(&["GET", &drawn]).await;
    assert_eq!(after, before);
    assert!(is_there(&store, theirs).await);
    assert_eq!(store.stats().created, 3);
}

#[tokio::test]
async fn a_store_whose_ids_all_have_sessions_gives_none_of_them_away() {
    let (server, proxy, store) = behind_a_proxy().await;
    let theirs = created(&store, json!({"theirs": 1})).await.id;
    let key = format!("hr:v:{{sessions:{}}}", store.digest(&theirs));
    let mut own = record(json!({"own": 1}));
    let given = own.id;
    let held = [1, 2, 3, 4].map(|n| proxy.on(Request::nth(n).named("evalsha"), Act::Hold));
    let collisions = async {
        for held in &held {
            collides(&server, held, &key).await;
        }
    };
    let (create, ()) = tokio::join!(store.create(&mut own), collisions);
    let error = create.expect_err("no id is left");
    assert_eq!(Trouble::from(&error), Trouble::Other, "{error}");
    assert!(error.to_string().contains("random numbers"), "{error}");
    // The record is as it was, and the same call may be made again.
    assert_eq!((own.id, data(&own)), (given, json!({"own": 1})));
    assert_eq!(store.stats().created, 2);
    store.create(&mut own).await.expect("created");
    assert_eq!(data(&loaded(&store, own.id).await), json!({"own": 1}));
}
