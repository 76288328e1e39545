//! The sessions of one user: listed, revoked, and ended everywhere at once.

use std::collections::BTreeSet;
use std::time::SystemTime;

use hedgerow::session::SessionStore;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tower_sessions_core::SessionStore as _;
use tower_sessions_core::session::{Expiry, Id};

use super::{HOUR, created, data, is_there, loaded, record, request, store};
use crate::support::server::Server;

async fn listed(store: &SessionStore, user: &str) -> BTreeSet<String> {
    let sessions = store.sessions_of(user).await.expect("an answer");
    let digests: BTreeSet<String> = sessions.iter().map(|it| it.digest.clone()).collect();
    assert_eq!(digests.len(), sessions.len(), "each once");
    digests
}

fn digests(store: &SessionStore, ids: &[Id]) -> BTreeSet<String> {
    ids.iter().map(|id| store.digest(id)).collect()
}

#[tokio::test]
async fn a_user_is_logged_out_everywhere_at_once() {
    let server = Server::start().await;
    let (store, other) = (store(&server).await, store(&server).await);
    let mut theirs = Vec::new();
    for _ in 0..3 {
        theirs.push(created(&store, json!({"user": "7"})).await.id);
        theirs.push(created(&other, json!({"user": "7"})).await.id);
    }
    let others = [
        created(&store, json!({"user": "8"})).await.id,
        created(&store, json!({})).await.id,
    ];
    let late = request(&other, theirs[0]);
    late.insert("a", 1).await.expect("loaded");
    store.log_out_everywhere("7").await.expect("logged out");
    late.save().await.expect("an answer");
    for id in &theirs {
        assert!(!is_there(&store, *id).await && !is_there(&other, *id).await);
    }
    for id in others {
        assert!(is_there(&other, id).await);
    }
    assert_eq!(other.stats().dropped, 1);
    // Their memory is free, and they may come back.
    assert_eq!(server.keys("hr:v:*").await.len(), 2);
    let back = created(&other, json!({"user": "7"})).await.id;
    assert!(is_there(&store, back).await);
}

#[tokio::test]
async fn a_session_that_gets_a_user_is_logged_out_with_that_user() {
    let server = Server::start().await;
    let store = store(&server).await;
    let id = created(&store, json!({"basket": 1})).await.id;
    let login = request(&store, id);
    login.insert("user", "7").await.expect("loaded");
    login.save().await.expect("saved");
    assert_eq!(listed(&store, "7").await, digests(&store, &[id]));
    store.log_out_everywhere("7").await.expect("logged out");
    assert!(!is_there(&store, id).await);
}

#[tokio::test]
async fn a_session_that_changed_its_user_ends_with_either() {
    let server = Server::start().await;
    let store = store(&server).await;
    for ends_with in ["7", "8"] {
        let id = created(&store, json!({"user": "7"})).await.id;
        let changes = request(&store, id);
        changes.insert("user", "8").await.expect("loaded");
        changes.save().await.expect("saved");
        assert_eq!(listed(&store, "7").await, BTreeSet::new());
        assert_eq!(listed(&store, "8").await, digests(&store, &[id]));
        store
            .log_out_everywhere(ends_with)
            .await
            .expect("logged out");
        assert!(!is_there(&store, id).await);
    }
}

#[tokio::test]
async fn the_sessions_of_a_user_are_listed_without_their_ids() {
    let server = Server::start().await;
    let (store, other) = (store(&server).await, store(&server).await);
    let laptop = created(&store, json!({"user": "7", "device": "laptop"})).await;
    let phone = created(&other, json!({"user": "7", "device": "phone"})).await;
    created(&other, json!({"user": "8", "device": "other"})).await;
    created(&other, json!({"device": "none"})).await;
    let sessions = store.sessions_of("7").await.expect("an answer");
    let devices: BTreeSet<Option<String>> = sessions.iter().map(|it| it.get("device")).collect();
    let expected = ["laptop", "phone"].map(|it| Some(it.to_owned()));
    assert_eq!(devices, BTreeSet::from(expected));
    assert_eq!(sessions[0].get::<u8>("device"), None);
    assert_eq!(sessions[0].get::<String>("no such"), None);
    let expected = digests(&store, &[laptop.id, phone.id]);
    assert_eq!(listed(&store, "7").await, expected);
    for session in &sessions {
        let shown = format!("{session:?}");
        assert!(
            !shown.contains("phone") && !shown.contains("laptop"),
            "{shown}"
        );
        let (now, minute) = (OffsetDateTime::now_utc(), Duration::MINUTE);
        for (moment, about) in [
            (session.created, now),
            (session.last_seen, now),
            (session.expires, now + HOUR),
        ] {
            assert!((moment - about).abs() < minute, "{moment} is about {about}");
        }
    }
    store.delete(&phone.id).await.expect("logged out");
    assert_eq!(listed(&store, "7").await, digests(&store, &[laptop.id]));
    assert_eq!(listed(&store, "9").await, BTreeSet::new());
}

/// The end tells when a session was last seen, also where that is not written.
#[tokio::test]
async fn the_session_that_was_seen_last_is_listed_first() {
    let server = Server::start().await;
    let store = store(&server).await;
    let mut ids = Vec::new();
    for days in [1, 10, 100] {
        let mut record = record(json!({"user": "7"}));
        record.expiry_date = OffsetDateTime::now_utc() + Duration::days(days);
        store.create(&mut record).await.expect("created");
        ids.push(record.id);
    }
    for (last, days) in [(1, 10), (0, 1), (2, 100), (0, 1)] {
        let seen = request(&store, ids[last]);
        seen.set_expiry(Some(Expiry::OnInactivity(Duration::days(days))));
        // The clock of the server, by which they are compared, has gone on.
        let before: SystemTime = SystemTime::now();
        crate::support::wait::until("the clock goes on", async || {
            SystemTime::now() > before + std::time::Duration::from_millis(2)
        })
        .await;
        seen.save().await.expect("saved");
        let sessions = store.sessions_of("7").await.expect("an answer");
        assert_eq!(sessions[0].digest, store.digest(&ids[last]));
    }
    assert_eq!((store.stats().moved, store.stats().saved), (4, 0));
    // It lives for another time from now on: that is written.
    let seen = request(&store, ids[1]);
    seen.set_expiry(Some(Expiry::OnInactivity(Duration::days(1_000))));
    seen.save().await.expect("saved");
    let sessions = store.sessions_of("7").await.expect("an answer");
    assert_eq!(sessions[0].digest, store.digest(&ids[1]));
    assert!(sessions[0].last_seen < OffsetDateTime::now_utc() + Duration::MINUTE);
}

#[tokio::test]
async fn a_user_revokes_a_session_of_their_own_and_no_other() {
    let server = Server::start().await;
    let (store, other) = (store(&server).await, store(&server).await);
    let own = created(&store, json!({"user": "7"})).await.id;
    let foreign = created(&store, json!({"user": "8"})).await.id;
    let nobodys = created(&store, json!({})).await.id;
    let late = request(&other, own);
    late.insert("a", 1).await.expect("loaded");
    for id in [foreign, nobodys, Id::default()] {
        let digest = store.digest(&id);
        assert!(!store.revoke("7", &digest).await.expect("an answer"));
    }
    for nonsense in ["", "*", &own.to_string(), &"F".repeat(32)] {
        assert!(!store.revoke("7", nonsense).await.expect("an answer"));
    }
    for id in [own, foreign, nobodys] {
        assert!(is_there(&other, id).await);
    }
    let digest = store.digest(&own);
    assert!(store.revoke("7", &digest).await.expect("an answer"));
    assert!(!store.revoke("7", &digest).await.expect("an answer"));
    late.save().await.expect("an answer");
    assert!(!is_there(&other, own).await);
}

#[tokio::test]
async fn a_store_that_knows_no_users_says_so() {
    let server = Server::start().await;
    let store = SessionStore::new(server.client().await.cache("sessions"));
    created(&store, json!({"user": "7"})).await;
    let before = server.digest().await;
    for refused in [
        store.log_out_everywhere("7").await.map(drop),
        store.sessions_of("7").await.map(drop),
        store.revoke("7", &"a".repeat(32)).await.map(drop),
    ] {
        let told = refused.expect_err("no users").to_string();
        assert!(told.contains("user_key"), "{told}");
    }
    assert_eq!(server.digest().await, before);
}

#[tokio::test]
async fn a_user_is_whatever_stands_under_the_key_or_the_application_says() {
    let server = Server::start().await;
    let by_key = store(&server).await;
    let cache = server.client().await.cache("others");
    let by_path = SessionStore::new(cache)
        .user(|data| Some(data.get("login")?.get("id")?.as_u64()?.to_string()));
    let cases: [(&SessionStore, Value, Option<&str>); 7] = [
        (&by_key, json!({"user": "a"}), Some("a")),
        (&by_key, json!({"user": 7}), Some("7")),
        (&by_key, json!({"user": [1, "a"]}), Some("[1,\"a\"]")),
        (&by_key, json!({"user": null}), None),
        (&by_key, json!({"login": {"id": 5}}), None),
        (&by_path, json!({"login": {"id": 5}}), Some("5")),
        (&by_path, json!({"user": 5}), None),
    ];
    for (store, content, user) in cases {
        let id = created(store, content.clone()).await.id;
        for some in ["a", "7", "[1,\"a\"]", "5", "null", ""] {
            let expected = match user == Some(some) {
                true => digests(store, &[id]),
                false => BTreeSet::new(),
            };
            assert_eq!(listed(store, some).await, expected, "{content}: {some}");
        }
        store.delete(&id).await.expect("deleted");
    }
}

#[tokio::test]
async fn stores_of_two_caches_end_sessions_apart() {
    let server = Server::start().await;
    let client = server.client().await;
    let shop = SessionStore::new(client.cache("shop")).user_key("user");
    let office = SessionStore::new(client.cache("office")).user_key("user");
    let one = created(&shop, json!({"user": "7"})).await.id;
    let two = created(&office, json!({"user": "7"})).await.id;
    shop.log_out_everywhere("7").await.expect("logged out");
    assert!(!is_there(&shop, one).await);
    assert!(is_there(&office, two).await);
}

#[tokio::test]
async fn encrypted_sessions_do_all_that_others_do() {
    let server = Server::start().await;
    let keyring = || hedgerow::Keyring::new(1, &[7; 32]).expect("an id");
    let cache = server.client().await.cache("sessions");
    let store = SessionStore::new(cache.encrypt(keyring())).user_key("user");
    let session = created(&store, json!({"user": "canary-u", "a": "canary-v"})).await;
    for key in server.keys("*").await {
        let kind: String = server.run(&["TYPE", &key]).await;
        let dump: Vec<u8> = match kind.as_str() {
            "string" => server.run(&["GET", &key]).await,
            "zset" => server
                .run::<Vec<String>>(&["ZRANGE", &key, "0", "-1"])
                .await
                .concat()
                .into(),
            other => panic!("{key} is a {other}"),
        };
        let shown = String::from_utf8_lossy(&dump);
        assert!(
            !shown.contains("canary") && !key.contains("canary"),
            "{key}: {shown}"
        );
    }
    let plain = super::store(&server).await;
    assert!(!is_there(&plain, session.id).await);
    let writes = request(&store, session.id);
    writes.insert("a", 2).await.expect("loaded");
    writes.save().await.expect("saved");
    writes.cycle_id().await.expect("an answer");
    writes.save().await.expect("saved");
    let id = writes.id().expect("it was saved");
    assert_eq!(
        data(&loaded(&store, id).await),
        json!({"user": "canary-u", "a": 2})
    );
    assert_eq!(listed(&store, "canary-u").await, digests(&store, &[id]));
    store
        .log_out_everywhere("canary-u")
        .await
        .expect("logged out");
    assert!(!is_there(&store, id).await);
}

/// Otherwise the index of a user who logs in often would grow until the ends of the sessions.
#[tokio::test]
async fn a_session_that_is_ended_leaves_the_index_of_its_user() {
    let server = Server::start().await;
    let store = store(&server).await;
    let kept = created(&store, json!({"user": "8"})).await.id;
    for _ in 0..3 {
        let deleted = created(&store, json!({"user": "7"})).await.id;
        store.delete(&deleted).await.expect("logged out");
        let revoked = store.digest(&created(&store, json!({"user": "7"})).await.id);
        assert!(store.revoke("7", &revoked).await.expect("an answer"));
        let renewed = request(&store, created(&store, json!({"user": "7"})).await.id);
        renewed.cycle_id().await.expect("an answer");
    }
    // Nobody waits for that.
    crate::support::wait::until("the index is tidied", async || {
        let indexes = server.keys("hr:x:*").await;
        let [index] = &indexes[..] else {
            return false;
        };
        let noted: Vec<String> = server.run(&["ZRANGE", index, "0", "-1"]).await;
        noted == [store.digest(&kept)]
    })
    .await;
}
