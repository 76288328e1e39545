//! Sessions under another id: no id from outside becomes that of a session, and no request goes on
//! under another id after a logout.

use std::sync::Arc;

use serde_json::json;
use tower_sessions_core::session::Id;
use tower_sessions_core::{Session, SessionStore as _};

use super::{created, data, is_there, loaded, record, request, store, user};
use crate::support::server::Server;

#[tokio::test]
async fn no_id_from_outside_becomes_that_of_a_session() {
    let server = Server::start().await;
    let store = store(&server).await;
    let mut record = record(json!({"user": "7"}));
    let chosen = record.id;
    store.create(&mut record).await.expect("created");
    assert!(!is_there(&store, chosen).await);
    // The cookie names no session, and the handler empties it before a login.
    let chosen = Id::default();
    let session = request(&store, chosen);
    session.flush().await.expect("flushed");
    session.insert("user", "7").await.expect("an answer");
    session.save().await.expect("saved");
    assert!(!is_there(&store, chosen).await);
    assert!(is_there(&store, session.id().expect("it was saved")).await);
}

#[tokio::test]
async fn what_is_said_after_a_logout_is_said_under_another_id() {
    let server = Server::start().await;
    let store = store(&server).await;
    let old = created(&store, json!({"user": "7"})).await.id;
    let late = request(&store, old);
    late.insert("a", 1).await.expect("loaded");
    let leaves = request(&store, old);
    leaves.flush().await.expect("logged out");
    leaves.insert("flash", "goodbye").await.expect("an answer");
    leaves.save().await.expect("saved");
    late.save().await.expect("an answer");
    assert!(!is_there(&store, old).await);
    let new = leaves.id().expect("it was saved");
    assert_eq!(
        data(&loaded(&store, new).await),
        json!({"flash": "goodbye"})
    );
}

#[tokio::test]
async fn a_session_goes_on_under_another_id() {
    let server = Server::start().await;
    let store = store(&server).await;
    let old = created(&store, json!({"user": "7", "a": 1})).await.id;
    let session = request(&store, old);
    // Twice in one request, and with a save in between.
    session.cycle_id().await.expect("an answer");
    session.cycle_id().await.expect("an answer");
    session.save().await.expect("saved");
    let between = session.id().expect("it was saved");
    session.cycle_id().await.expect("an answer");
    session.insert("b", 2).await.expect("an answer");
    session.save().await.expect("saved");
    let new = session.id().expect("it was saved");
    for gone in [old, between] {
        assert!(!is_there(&store, gone).await);
    }
    let found = data(&loaded(&store, new).await);
    assert_eq!(found, json!({"user": "7", "a": 1, "b": 2}));
    // One that was empty stays a session.
    let old = created(&store, json!({})).await.id;
    let session = request(&store, old);
    session.cycle_id().await.expect("an answer");
    session.save().await.expect("saved");
    assert!(is_there(&store, session.id().expect("it was saved")).await);
}

#[tokio::test]
async fn no_request_goes_on_under_another_id_after_a_logout() {
    let server = Server::start().await;
    // The logout is seen by another process, or by the same.
    for other in [store(&server).await, store(&server).await] {
        let store = store(&server).await;
        for logs_out_with in [other.clone(), store.clone()] {
            let id = created(&store, json!({"user": "7"})).await.id;
            let late = request(&store, id);
            assert_eq!(user(&late).await.as_deref(), Some("7"));
            logs_out_with.delete(&id).await.expect("logged out");
            late.cycle_id().await.expect("an answer");
            late.save().await.expect("an answer");
            let new = late.id().expect("it has an id");
            assert!(!is_there(&store, new).await);
        }
        assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
        assert_eq!(store.stats().dropped, 2);
    }
}

#[tokio::test]
async fn no_request_goes_on_under_another_id_after_a_logout_everywhere() {
    let server = Server::start().await;
    let (store, other) = (store(&server).await, store(&server).await);
    let mut requests = Vec::new();
    for _ in 0..2 {
        let id = created(&store, json!({"user": "7"})).await.id;
        let request = request(&store, id);
        assert_eq!(user(&request).await.as_deref(), Some("7"));
        requests.push(request);
    }
    // The old id is given up before the logout, or after it.
    requests[0].cycle_id().await.expect("an answer");
    other.log_out_everywhere("7").await.expect("logged out");
    requests[1].cycle_id().await.expect("an answer");
    for request in requests {
        request.save().await.expect("an answer");
        assert!(!is_there(&store, request.id().expect("it has an id")).await);
    }
    assert_eq!(store.stats().dropped, 2);
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
}

/// Two clicks on the button: both logins succeed, whichever cookie the browser keeps.
#[tokio::test]
async fn two_logins_from_one_session_both_succeed() {
    let server = Server::start().await;
    let store = store(&server).await;
    let id = created(&store, json!({"basket": [1]})).await.id;
    let (one, two) = (request(&store, id), request(&store, id));
    for session in [&one, &two] {
        session.insert("user", "7").await.expect("loaded");
    }
    for session in [&one, &two] {
        session.cycle_id().await.expect("an answer");
    }
    for session in [&one, &two] {
        session.save().await.expect("saved");
        let found = loaded(&store, session.id().expect("it was saved")).await;
        assert_eq!(data(&found), json!({"user": "7", "basket": [1]}));
    }
}

#[tokio::test]
async fn a_login_without_a_session_gets_one() {
    let server = Server::start().await;
    let store = store(&server).await;
    let session = Session::new(None, Arc::new(store.clone()), None);
    session.cycle_id().await.expect("an answer");
    session.insert("user", "7").await.expect("an answer");
    session.save().await.expect("saved");
    let id = session.id().expect("it was saved");
    assert_eq!(data(&loaded(&store, id).await), json!({"user": "7"}));
}
