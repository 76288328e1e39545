//! A store without users beside one that knows them, as in a deployment that brings them: what it
//! saves still belongs to its user.

use std::sync::Arc;

use hedgerow::session::{Conflict, SessionStore, Trouble};
use serde_json::json;
use tower_sessions_core::SessionStore as _;
use tower_sessions_core::session::{Expiry, Id};

use super::{created, data, is_there, loaded, request, store};
use crate::support::server::Server;
use crate::support::wait::patient;

/// A store of another process, which knows no users.
async fn without_users(server: &Server) -> SessionStore {
    let client = patient(server.builder()).open().expect("a good URL");
    SessionStore::new(client.cache("sessions"))
}

/// Saves the session in one of the ways there are. Returns its id from then on.
async fn saved(store: &SessionStore, id: Id, how: &str) -> Id {
    let session = request(store, id);
    session.load().await.expect("loaded");
    match how {
        "changed" => session.insert("a", 1).await.expect("loaded"),
        "moved" => session.set_expiry(Some(Expiry::OnInactivity(time::Duration::HOUR))),
        "prolonged" => session.set_expiry(Some(Expiry::OnInactivity(time::Duration::DAY))),
        "cleared" => session.clear().await,
        "renewed" => session.cycle_id().await.expect("an answer"),
        other => panic!("{other} is no way to save"),
    }
    session.save().await.expect("saved");
    session.id().expect("it was saved")
}

const WAYS: [&str; 5] = ["changed", "moved", "prolonged", "cleared", "renewed"];

#[tokio::test]
async fn a_session_that_a_store_without_users_saves_still_belongs_to_its_user() {
    let server = Server::start().await;
    let (knows, plain) = (store(&server).await, without_users(&server).await);
    for how in WAYS {
        let old = created(&knows, json!({"user": "7"})).await.id;
        let id = saved(&plain, old, how).await;
        assert_eq!(id == old, how != "renewed");
        // One that was cleared has a logout in its data, and only its tag is still there.
        let is_listed = how != "cleared";
        let listed = knows.sessions_of("7").await.expect("an answer");
        let digests: Vec<&str> = listed.iter().map(|it| &*it.digest).collect();
        let expected = is_listed.then(|| knows.digest(&id));
        assert_eq!(digests, Vec::from_iter(expected.as_deref()), "{how}");
        // Twice, since a save must not forget what an earlier one has kept.
        let id = saved(&plain, id, how).await;
        let revoked = knows.revoke("8", &knows.digest(&id)).await;
        assert!(!revoked.expect("an answer"), "{how}");
        let revoked = knows.revoke("7", &knows.digest(&id)).await;
        assert_eq!(revoked.expect("an answer"), is_listed, "{how}");
        assert_eq!(is_there(&plain, id).await, !is_listed, "{how}");
    }
}

#[tokio::test]
async fn a_logout_everywhere_ends_what_a_store_without_users_has_saved() {
    let server = Server::start().await;
    let (knows, plain) = (store(&server).await, without_users(&server).await);
    let mut ids = Vec::new();
    for how in WAYS {
        let old = created(&knows, json!({"user": "7"})).await.id;
        ids.push(saved(&plain, old, how).await);
    }
    let others = saved(
        &plain,
        created(&knows, json!({"user": "8"})).await.id,
        "renewed",
    )
    .await;
    let nobodys = saved(&plain, created(&plain, json!({})).await.id, "renewed").await;
    knows.log_out_everywhere("7").await.expect("logged out");
    for (id, how) in ids.into_iter().zip(WAYS) {
        assert!(!is_there(&plain, id).await, "{how}");
    }
    for id in [others, nobodys] {
        assert!(is_there(&plain, id).await);
    }
    // Their memory is free.
    assert_eq!(server.keys("hr:v:*").await.len(), 2);
}

#[tokio::test]
async fn no_request_of_a_store_without_users_goes_on_after_a_logout() {
    let server = Server::start().await;
    let (knows, plain) = (store(&server).await, without_users(&server).await);
    for everywhere in ["before", "between", "no"] {
        let id = created(&knows, json!({"user": "7"})).await.id;
        let late = request(&plain, id);
        late.load().await.expect("loaded");
        match everywhere {
            "before" => knows.log_out_everywhere("7").await.expect("logged out"),
            "no" => knows.delete(&id).await.expect("logged out"),
            _ => {}
        }
        late.cycle_id().await.expect("an answer");
        if everywhere == "between" {
            knows.log_out_everywhere("7").await.expect("logged out");
        }
        late.save().await.expect("an answer");
        let new = late.id().expect("it has an id");
        assert!(!is_there(&plain, new).await, "{everywhere}");
    }
    assert_eq!(plain.stats().dropped, 3);
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
}

/// The request has not seen the login, so it must not undo it.
#[tokio::test]
async fn a_stale_save_of_a_store_without_users_does_not_undo_a_login() {
    let server = Server::start().await;
    let (knows, plain) = (store(&server).await, without_users(&server).await);
    let id = created(&plain, json!({"basket": 1})).await.id;
    let stale = request(&plain, id);
    stale.insert("basket", 2).await.expect("loaded");
    let login = request(&knows, id);
    login.insert("user", "7").await.expect("loaded");
    login.save().await.expect("saved");
    stale.save().await.expect("an answer");
    let found = data(&loaded(&knows, id).await);
    assert_eq!(found, json!({"user": "7", "basket": 1}));
    assert_eq!((plain.stats().conflicts, plain.stats().dropped), (1, 1));
}

/// What another process has recorded is no knowledge of users.
#[tokio::test]
async fn a_store_without_users_still_lists_and_ends_none() {
    let server = Server::start().await;
    let (knows, plain) = (store(&server).await, without_users(&server).await);
    let id = created(&knows, json!({"user": "7"})).await.id;
    for refused in [
        plain.log_out_everywhere("7").await.map(drop),
        plain.sessions_of("7").await.map(drop),
        plain.revoke("7", &plain.digest(&id)).await.map(drop),
    ] {
        let error = refused.expect_err("no users");
        assert_eq!(Trouble::from(&error), Trouble::Other, "{error}");
    }
    assert!(is_there(&knows, id).await);
    let handler = tower_sessions_core::Session::new(Some(id), Arc::new(plain), None);
    handler.flush().await.expect("logged out");
    assert!(!is_there(&knows, id).await);
}

/// Until a store that knows users saves it, nobody knows whose it is.
#[tokio::test]
async fn who_logs_in_at_a_store_without_users_is_not_shown_to_whom_the_session_belonged() {
    let server = Server::start().await;
    let (knows, plain) = (store(&server).await, without_users(&server).await);
    for renews in ["yes", "no"] {
        let id = created(&knows, json!({"user": "7"})).await.id;
        let login = request(&plain, id);
        login.insert("user", "8").await.expect("loaded");
        if renews == "yes" {
            login.cycle_id().await.expect("an answer");
        }
        login.save().await.expect("saved");
        let id = login.id().expect("it was saved");
        for user in ["7", "8"] {
            let listed = knows.sessions_of(user).await.expect("an answer");
            assert!(listed.is_empty(), "{user}: {listed:?}");
            let revoked = knows.revoke(user, &knows.digest(&id)).await;
            assert!(!revoked.expect("an answer"), "{user}");
        }
        let seen = request(&knows, id);
        seen.load().await.expect("loaded");
        seen.save().await.expect("saved");
        let listed = knows.sessions_of("8").await.expect("an answer");
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert!(knows.sessions_of("7").await.expect("an answer").is_empty());
        knows.log_out_everywhere("8").await.expect("logged out");
        assert!(!is_there(&plain, id).await);
    }
}

/// The login was at a store without users, so the session has a user in its data only.
#[tokio::test]
async fn a_session_whose_login_was_not_noted_does_not_come_back_after_a_logout() {
    let server = Server::start().await;
    let (knows, plain) = (store(&server).await, without_users(&server).await);
    for noted_meanwhile in [false, true] {
        let id = created(&plain, json!({"user": "7"})).await.id;
        let (late, other) = (request(&knows, id), request(&knows, id));
        late.load().await.expect("loaded");
        other.load().await.expect("loaded");
        if noted_meanwhile {
            other.save().await.expect("saved");
        }
        other.flush().await.expect("logged out");
        late.cycle_id().await.expect("an answer");
        late.save().await.expect("an answer");
        let new = late.id().expect("it has an id");
        assert!(!is_there(&plain, new).await, "{noted_meanwhile}");
    }
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
}

/// What another request has noted is no change of whose session it is.
#[tokio::test]
async fn a_session_whose_login_was_not_noted_goes_on_under_another_id() {
    let server = Server::start().await;
    let (knows, plain) = (store(&server).await, without_users(&server).await);
    for noted_meanwhile in [false, true] {
        let id = created(&plain, json!({"user": "7"})).await.id;
        let session = request(&knows, id);
        session.load().await.expect("loaded");
        if noted_meanwhile {
            let other = request(&knows, id);
            other.load().await.expect("loaded");
            other.save().await.expect("saved");
        }
        session.cycle_id().await.expect("an answer");
        session.save().await.expect("saved");
        let new = session.id().expect("it was saved");
        assert_eq!(
            data(&loaded(&plain, new).await),
            json!({"user": "7"}),
            "{noted_meanwhile}"
        );
        let listed = knows.sessions_of("7").await.expect("an answer");
        assert_eq!(listed.len(), 1, "{noted_meanwhile}");
        knows.log_out_everywhere("7").await.expect("logged out");
        assert!(!is_there(&plain, new).await, "{noted_meanwhile}");
    }
}

/// The user is noted by the first save, which is no change of the data.
#[tokio::test]
async fn a_request_that_changed_nothing_keeps_what_others_have_saved_though_no_user_was_noted() {
    let server = Server::start().await;
    let (knows, plain) = (store(&server).await, without_users(&server).await);
    for store in [&knows, &knows.clone().conflict(Conflict::Refuse)] {
        let id = created(&plain, json!({"user": "7", "basket": 1})).await.id;
        let (idle, buys) = (request(store, id), request(store, id));
        idle.load().await.expect("loaded");
        buys.insert("basket", 2).await.expect("loaded");
        buys.save().await.expect("saved");
        idle.save().await.expect("nothing was changed");
        let found = data(&loaded(store, id).await);
        assert_eq!(found, json!({"user": "7", "basket": 2}));
    }
    assert_eq!(knows.stats().conflicts, 0);
}
