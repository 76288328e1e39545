//! Saves: over what they are stored, what they rewrite, and what becomes of two at once.

use std::sync::Arc;

use hedgerow::session::{Conflict, RESERVED_KEY, SessionStore, Trouble};
use serde_json::json;
use time::{Duration, OffsetDateTime};
use tower_sessions_core::session::{Error, Expiry};
use tower_sessions_core::session_store;
use tower_sessions_core::{Session, SessionStore as _};

use super::{HOUR, created, data, is_there, loaded, record, request, store};
use crate::support::server::Server;

async fn refusing(server: &Server) -> SessionStore {
    store(server).await.conflict(Conflict::Refuse)
}

#[tokio::test]
async fn a_save_after_a_logout_changes_nothing_and_is_counted() {
    let server = Server::start().await;
    let (store, other) = (store(&server).await, store(&server).await);
    let id = created(&store, json!({"user": "7"})).await.id;
    let (changes, reads) = (request(&store, id), request(&store, id));
    changes.insert("a", 1).await.expect("loaded");
    reads.load().await.expect("loaded");
    other.delete(&id).await.expect("logged out");
    changes.save().await.expect("an answer");
    reads.save().await.expect("an answer");
    assert!(!is_there(&store, id).await);
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
    assert_eq!((store.stats().dropped, store.stats().saved), (2, 0));
}

#[tokio::test]
async fn a_save_under_an_id_that_was_changed_meanwhile_changes_nothing() {
    let server = Server::start().await;
    let (store, other) = (store(&server).await, store(&server).await);
    let old = created(&store, json!({"user": "7"})).await.id;
    let late = request(&store, old);
    late.insert("late", 1).await.expect("loaded");
    let renewed = request(&other, old);
    renewed.cycle_id().await.expect("an answer");
    renewed.save().await.expect("saved");
    let new = renewed.id().expect("it was saved");
    assert_ne!(new, old);
    late.save().await.expect("an answer");
    assert!(!is_there(&store, old).await);
    assert_eq!(data(&loaded(&store, new).await), json!({"user": "7"}));
    assert_eq!(store.stats().dropped, 1);
}

#[tokio::test]
async fn the_last_of_two_saves_wins_and_is_counted() {
    let server = Server::start().await;
    let (store, other) = (store(&server).await, store(&server).await);
    let id = created(&store, json!({"a": 1})).await.id;
    let (one, two) = (request(&store, id), request(&other, id));
    one.insert("one", 1).await.expect("loaded");
    two.insert("two", 2).await.expect("loaded");
    one.save().await.expect("saved");
    assert_eq!(store.stats().conflicts, 0);
    two.save().await.expect("saved");
    assert_eq!(data(&loaded(&store, id).await), json!({"a": 1, "two": 2}));
    assert_eq!((other.stats().conflicts, other.stats().saved), (1, 1));
}

#[tokio::test]
async fn the_last_of_two_saves_is_refused_if_the_store_says_so() {
    let server = Server::start().await;
    let (store, other) = (refusing(&server).await, refusing(&server).await);
    let id = created(&store, json!({"a": 1})).await.id;
    let (one, two) = (request(&store, id), request(&other, id));
    one.insert("one", 1).await.expect("loaded");
    two.insert("two", 2).await.expect("loaded");
    one.save().await.expect("saved");
    let refused = two.save().await.expect_err("a conflict");
    assert_eq!(Trouble::from(&refused), Trouble::Conflict, "{refused}");
    assert_eq!(data(&loaded(&store, id).await), json!({"a": 1, "one": 1}));
    assert_eq!((other.stats().conflicts, other.stats().saved), (1, 0));
    // The request is repeated.
    let again = request(&other, id);
    again.insert("two", 2).await.expect("loaded");
    again.save().await.expect("saved");
    let both = json!({"a": 1, "one": 1, "two": 2});
    assert_eq!(data(&loaded(&store, id).await), both);
}

/// Both count up from the same number.
#[tokio::test]
async fn two_requests_that_make_the_same_change_are_in_conflict() {
    let server = Server::start().await;
    let store = refusing(&server).await;
    let id = created(&store, json!({"count": 1})).await.id;
    let (one, two) = (request(&store, id), request(&store, id));
    for session in [&one, &two] {
        session.insert("count", 2).await.expect("loaded");
    }
    one.save().await.expect("saved");
    let refused = two.save().await.expect_err("a conflict");
    assert_eq!(Trouble::from(&refused), Trouble::Conflict, "{refused}");
}

#[tokio::test]
async fn a_request_that_changed_nothing_keeps_what_others_have_saved() {
    let server = Server::start().await;
    let store = refusing(&server).await;
    let id = created(&store, json!({"a": 1})).await.id;
    let (reads, writes) = (request(&store, id), request(&store, id));
    reads.load().await.expect("loaded");
    writes.insert("a", 2).await.expect("loaded");
    writes.save().await.expect("saved");
    reads.set_expiry(Some(Expiry::OnInactivity(HOUR * 5)));
    reads.save().await.expect("saved");
    let found = loaded(&store, id).await;
    assert_eq!(data(&found), json!({"a": 2}));
    let left = found.expiry_date - OffsetDateTime::now_utc();
    assert!(left > HOUR * 4, "{left}");
    assert_eq!((store.stats().moved, store.stats().conflicts), (1, 0));
}

/// As tower-sessions does at the end of a request whose handler has saved.
#[tokio::test]
async fn a_save_that_only_repeats_that_of_its_request_overwrites_nothing() {
    let server = Server::start().await;
    let store = refusing(&server).await;
    let id = created(&store, json!({"a": 1})).await.id;
    let one = request(&store, id);
    one.insert("a", 2).await.expect("loaded");
    one.save().await.expect("saved");
    let two = request(&store, id);
    two.insert("a", 3).await.expect("loaded");
    two.save().await.expect("saved");
    one.save()
        .await
        .expect("no conflict: it has nothing to add");
    assert_eq!(data(&loaded(&store, id).await), json!({"a": 3}));
    assert_eq!(store.stats().conflicts, 0);
    // A change of its own is one again.
    one.insert("a", 4).await.expect("loaded");
    let refused = one.save().await.expect_err("a conflict");
    assert_eq!(Trouble::from(&refused), Trouble::Conflict, "{refused}");
}

/// The same for whose session it is.
#[tokio::test]
async fn a_save_that_only_repeats_a_change_of_user_overwrites_nothing() {
    let server = Server::start().await;
    for policy in [Conflict::LastWriteWins, Conflict::Refuse] {
        let store = store(&server).await.conflict(policy);
        for to in [json!(null), json!("8")] {
            let id = created(&store, json!({"user": "7"})).await.id;
            let one = request(&store, id);
            one.insert("user", &to).await.expect("loaded");
            one.save().await.expect("saved");
            let two = request(&store, id);
            two.insert("b", 1).await.expect("loaded");
            two.save().await.expect("saved");
            one.save().await.expect("it has nothing to add");
            let both = json!({"user": to, "b": 1});
            assert_eq!(data(&loaded(&store, id).await), both, "{policy:?}");
        }
        assert_eq!(store.stats().conflicts, 0);
    }
}

#[tokio::test]
async fn a_request_that_saves_twice_does_not_meet_itself() {
    let server = Server::start().await;
    let store = refusing(&server).await;
    let session = Session::new(None, Arc::new(store.clone()), None);
    for value in 0..4 {
        session.insert("a", value).await.expect("an answer");
        session.save().await.expect("saved");
    }
    let id = session.id().expect("it was saved");
    let again = request(&store, id);
    // The last of them is what was loaded: it is stored, and does not count as no change.
    for value in [5, 6, 3] {
        again.insert("a", value).await.expect("loaded");
        again.save().await.expect("saved");
        assert_eq!(data(&loaded(&store, id).await), json!({ "a": value }));
    }
    assert_eq!(store.stats().conflicts, 0);
}

#[tokio::test]
async fn a_request_that_saves_twice_is_met_by_those_that_loaded_in_between() {
    let server = Server::start().await;
    let store = refusing(&server).await;
    let id = created(&store, json!({"a": 1})).await.id;
    let twice = request(&store, id);
    twice.insert("a", 2).await.expect("loaded");
    twice.save().await.expect("saved");
    let between = request(&store, id);
    between.insert("b", 1).await.expect("loaded");
    twice.insert("a", 3).await.expect("loaded");
    twice.save().await.expect("saved");
    let refused = between.save().await.expect_err("a conflict");
    assert_eq!(Trouble::from(&refused), Trouble::Conflict);
    assert_eq!(data(&loaded(&store, id).await), json!({"a": 3}));
}

#[tokio::test]
async fn a_stale_save_never_changes_whose_session_it_is() {
    let server = Server::start().await;
    let store = store(&server).await;
    let id = created(&store, json!({"user": "7"})).await.id;
    let (leaves, late) = (request(&store, id), request(&store, id));
    late.insert("a", 1).await.expect("loaded");
    // A logout without a word to the store.
    let left: Option<String> = leaves.remove("user").await.expect("loaded");
    assert_eq!(left.as_deref(), Some("7"));
    leaves.save().await.expect("saved");
    late.save().await.expect("an answer");
    assert_eq!(data(&loaded(&store, id).await), json!({}));
    assert_eq!((store.stats().dropped, store.stats().conflicts), (1, 1));
}

#[tokio::test]
async fn a_session_that_was_cleared_overwrites_what_is_there() {
    let server = Server::start().await;
    let store = refusing(&server).await;
    let id = created(&store, json!({"a": 1})).await.id;
    let (clears, writes) = (request(&store, id), request(&store, id));
    writes.insert("b", 1).await.expect("loaded");
    clears.clear().await;
    clears.insert("c", 1).await.expect("cleared");
    writes.save().await.expect("saved");
    clears.save().await.expect("saved");
    clears.insert("c", 2).await.expect("cleared");
    clears.save().await.expect("saved");
    assert_eq!(data(&loaded(&store, id).await), json!({"c": 2}));
}

/// The first 20 bytes of an entry say how it is written and when it ends.
#[tokio::test]
async fn a_save_that_changes_no_data_moves_the_end_and_rewrites_nothing() {
    let server = Server::start().await;
    let store = store(&server).await;
    let day = Some(Expiry::OnInactivity(Duration::DAY));
    let session = Session::new(None, Arc::new(store.clone()), day);
    session.insert("user", "7").await.expect("an answer");
    session.save().await.expect("saved");
    let id = session.id().expect("it was saved");
    let key = format!("hr:v:{{sessions:{}}}", store.digest(&id));
    let _: bool = server.run(&["PEXPIRE", &key, "100000"]).await;
    let before: Vec<u8> = server.run(&["GET", &key]).await;
    let again = Session::new(Some(id), Arc::new(store.clone()), day);
    again.load().await.expect("loaded");
    again.save().await.expect("saved");
    let after: Vec<u8> = server.run(&["GET", &key]).await;
    assert_eq!(before[20..], after[20..]);
    let left: i64 = server.run(&["PTTL", &key]).await;
    assert!(left > 23 * 3_600_000, "{left}");
    assert_eq!((store.stats().saved, store.stats().moved), (0, 1));
    // Its tags live on, too.
    for (tag, left) in server.lives("hr:t:*").await {
        assert!(left > 23 * 3_600_000, "{tag}: {left}");
    }
}

#[tokio::test]
async fn a_session_that_is_too_large_is_refused_before_anything_is_written() {
    let server = Server::start().await;
    let store = store(&server).await.max_size(1_000);
    let kept = created(&store, json!({"user": "7", "a": 1})).await;
    let before = server.digest().await;
    let mut large = kept.clone();
    let text = "secret".repeat(200);
    large.data.insert("basket".to_owned(), json!(text));
    let mut new = record(json!({"basket": text}));
    for refused in [store.save(&large).await, store.create(&mut new).await] {
        let refused = refused.expect_err("it is too large");
        assert_eq!(Trouble::from(&refused), Trouble::TooLarge);
        let told = refused.to_string();
        assert!(
            told.contains("\"basket\"") && told.contains("1000"),
            "{told}"
        );
        assert!(!told.contains("secret"), "{told}");
        assert!(matches!(refused, session_store::Error::Encode(_)));
        let refused = Error::Store(refused);
        assert_eq!(Trouble::from(&refused), Trouble::TooLarge);
    }
    assert_eq!(server.digest().await, before);
    assert_eq!(data(&loaded(&store, kept.id).await), data(&kept));
    // What is read for the store itself is not counted.
    let exact = json!({"a": "x".repeat(1_000 - r#"{"a":""}"#.len())});
    let exact = created(&store, exact).await;
    store.save(&exact).await.expect("saved");
    assert!(exact.data.contains_key(RESERVED_KEY));
}

#[tokio::test]
async fn the_limit_is_256_kib_by_default() {
    let server = Server::start().await;
    let store = store(&server).await;
    let fits = json!({"a": "x".repeat(256 * 1024 - r#"{"a":""}"#.len())});
    created(&store, fits).await;
    let mut large = record(json!({"a": "x".repeat(256 * 1024)}));
    let refused = store.create(&mut large).await.expect_err("too large");
    assert_eq!(Trouble::from(&refused), Trouble::TooLarge);
}

/// A login without a new id, beside a request of nobody.
#[tokio::test]
async fn a_save_that_loses_against_a_change_of_user_is_a_conflict() {
    let server = Server::start().await;
    for policy in [Conflict::LastWriteWins, Conflict::Refuse] {
        let store = store(&server).await.conflict(policy);
        let id = created(&store, json!({})).await.id;
        let (login, late) = (request(&store, id), request(&store, id));
        login.insert("user", "7").await.expect("loaded");
        late.insert("basket", [1]).await.expect("loaded");
        login.save().await.expect("saved");
        match (policy, late.save().await) {
            (Conflict::LastWriteWins, Ok(())) => assert_eq!(store.stats().dropped, 1),
            (Conflict::Refuse, Err(refused)) => {
                assert_eq!(Trouble::from(&refused), Trouble::Conflict, "{refused}");
                assert_eq!(store.stats().dropped, 0);
            }
            (_, other) => panic!("{policy:?}: {other:?}"),
        }
        assert_eq!(store.stats().conflicts, 1);
        assert_eq!(data(&loaded(&store, id).await), json!({"user": "7"}));
    }
}
