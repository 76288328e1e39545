//! Sessions under another id: no id from outside becomes that of a session, and no request goes on
//! under another id after a logout.

use std::sync::Arc;

use hedgerow::session::{Conflict, SessionStore};
use serde_json::{Value, json};
use tower_sessions_core::session::{Expiry, Id};
use tower_sessions_core::{Session, SessionStore as _};

use super::{HOUR, created, data, is_there, loaded, record, request, store, user};
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

/// The old id is gone, so what its request had loaded is stored under the new one.
#[tokio::test]
async fn a_new_id_that_loses_what_another_request_has_saved_is_counted() {
    let server = Server::start().await;
    let cache = server.client().await.cache("sessions");
    let refusing = store(&server).await.conflict(Conflict::Refuse);
    for store in [SessionStore::new(cache), store(&server).await, refusing] {
        for (at, content) in (1..).zip([json!({"a": 1}), json!({"user": "7", "a": 1})]) {
            let id = created(&store, content.clone()).await.id;
            let (renews, writes) = (request(&store, id), request(&store, id));
            renews.load().await.expect("loaded");
            writes.insert("a", 2).await.expect("loaded");
            writes.save().await.expect("saved");
            renews.cycle_id().await.expect("an answer");
            renews.save().await.expect("saved");
            let new = renews.id().expect("it was saved");
            assert_eq!(data(&loaded(&store, new).await), content);
            assert_eq!(store.stats().conflicts, at);
        }
    }
}

#[tokio::test]
async fn a_new_id_that_loses_nothing_is_no_conflict() {
    let server = Server::start().await;
    let store = store(&server).await;
    for content in [json!({"a": 1}), json!({"user": "7", "a": 1})] {
        // Others have only moved the end.
        let id = created(&store, content.clone()).await.id;
        let (renews, reads) = (request(&store, id), request(&store, id));
        renews.insert("a", 2).await.expect("loaded");
        reads.set_expiry(Some(Expiry::OnInactivity(HOUR * 5)));
        reads.save().await.expect("saved");
        renews.cycle_id().await.expect("an answer");
        renews.save().await.expect("saved");
        // This request has saved itself.
        let renews = request(&store, created(&store, content).await.id);
        for value in [2, 3] {
            renews.insert("a", value).await.expect("loaded");
            renews.save().await.expect("saved");
        }
        renews.cycle_id().await.expect("an answer");
        renews.save().await.expect("saved");
    }
    assert_eq!(store.stats().conflicts, 0);
}

#[tokio::test]
async fn no_user_comes_back_under_another_id_after_the_session_went_to_another_user() {
    let server = Server::start().await;
    let store = store(&server).await;
    let id = created(&store, json!({"user": "7"})).await.id;
    let (late, switches) = (request(&store, id), request(&store, id));
    assert_eq!(user(&late).await.as_deref(), Some("7"));
    switches.insert("user", "8").await.expect("loaded");
    switches.save().await.expect("saved");
    late.cycle_id().await.expect("an answer");
    store.log_out_everywhere("7").await.expect("logged out");
    late.save().await.expect("an answer");
    assert!(!is_there(&store, late.id().expect("it has an id")).await);
    assert_eq!(store.stats().dropped, 1);
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
}

#[tokio::test]
async fn no_request_goes_on_after_a_logout_by_calling_its_user_otherwise() {
    let server = Server::start().await;
    let (store, other) = (store(&server).await, store(&server).await);
    for ends_with in ["delete", "everywhere"] {
        let id = created(&store, json!({"user": "ada@a"})).await.id;
        let late = request(&store, id);
        late.insert("user", "ada@b").await.expect("loaded");
        match ends_with {
            "delete" => other.delete(&id).await.expect("logged out"),
            _ => other.log_out_everywhere("ada@a").await.expect("logged out"),
        }
        late.cycle_id().await.expect("an answer");
        late.save().await.expect("an answer");
        let new = late.id().expect("it has an id");
        assert!(!is_there(&store, new).await, "{ends_with}");
    }
    assert_eq!(store.stats().dropped, 2);
    // Without a logout, a session may change its user and its id at once.
    let id = created(&store, json!({"user": "ada@a"})).await.id;
    let changes = request(&store, id);
    changes.insert("user", "ada@b").await.expect("loaded");
    changes.cycle_id().await.expect("an answer");
    changes.save().await.expect("saved");
    assert!(is_there(&store, changes.id().expect("it was saved")).await);
}

/// As in a deployment that adds `user_key`, or takes it back.
#[tokio::test]
async fn a_store_without_users_gives_the_session_of_a_user_another_id() {
    let server = Server::start().await;
    let knows = store(&server).await;
    let without = SessionStore::new(server.client().await.cache("sessions"));
    let id = created(&knows, json!({"user": "7"})).await.id;
    let session = request(&without, id);
    session.load().await.expect("loaded");
    session.cycle_id().await.expect("an answer");
    session.save().await.expect("saved");
    let new = session.id().expect("it was saved");
    assert_eq!(data(&loaded(&knows, new).await), json!({"user": "7"}));
    assert!(!is_there(&knows, id).await);
    assert_eq!(without.stats().dropped, 0);
}

/// A request that loads `from`, and has saved `to` itself.
async fn changed(store: &SessionStore, from: &Value, to: &Value) -> Session {
    let id = created(store, json!({"user": from})).await.id;
    let session = request(store, id);
    session.insert("user", to).await.expect("loaded");
    session.save().await.expect("saved");
    session
}

#[tokio::test]
async fn a_request_that_has_saved_a_change_of_user_goes_on_under_another_id() {
    let server = Server::start().await;
    let store = store(&server).await;
    let (nobody, seven, eight) = (json!(null), json!("7"), json!("8"));
    for (from, to) in [(&seven, &eight), (&nobody, &seven), (&seven, &nobody)] {
        let session = changed(&store, from, to).await;
        session.cycle_id().await.expect("an answer");
        session.save().await.expect("saved");
        let new = session.id().expect("it was saved");
        assert!(is_there(&store, new).await, "{from} to {to}");
        assert_eq!(data(&loaded(&store, new).await), json!({ "user": to }));
    }
    assert_eq!((store.stats().dropped, store.stats().conflicts), (0, 0));
}

#[tokio::test]
async fn a_request_that_has_saved_a_change_of_user_ends_with_a_logout_of_either() {
    let server = Server::start().await;
    let (store, other) = (store(&server).await, store(&server).await);
    for user in ["7", "8"] {
        for is_first in ["the logout", "the delete"] {
            let session = changed(&store, &json!("7"), &json!("8")).await;
            if is_first == "the delete" {
                session.cycle_id().await.expect("an answer");
            }
            other.log_out_everywhere(user).await.expect("logged out");
            if is_first == "the logout" {
                session.cycle_id().await.expect("an answer");
            }
            session.save().await.expect("an answer");
            let new = session.id().expect("it has an id");
            assert!(!is_there(&store, new).await, "{user}: {is_first} is first");
        }
    }
    assert_eq!(store.stats().dropped, 4);
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
}
