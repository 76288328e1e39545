//! A server that answers and refuses: one that is read-only, and one that forbids commands. Nobody
//! is logged out, and nobody is logged in.

use std::time::Duration;

use hedgerow::session::{SessionStore, Trouble};
use serde_json::json;
use tower_sessions_core::SessionStore as _;
use tower_sessions_core::session::Id;
use tower_sessions_core::session_store;

use super::{created, data, loaded, record, request};
use crate::support::server::Server;
use crate::support::wait::until;

/// A store that does not wait long for a server that refuses. A server that is read-only is asked
/// again until then.
async fn hasty(server: &Server) -> SessionStore {
    let client = server.builder().cache_deadline(Duration::from_secs(2));
    let client = client.open().expect("a good URL");
    SessionStore::new(client.cache("sessions")).user_key("user")
}

/// Whether a session can be loaded meanwhile.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Loads {
    Works,
    Refused,
}

fn refused<T>(what: &str, answer: session_store::Result<T>, word: &str) {
    let error = answer.map(drop).expect_err(what);
    assert_eq!(
        Trouble::from(&error),
        Trouble::Unavailable,
        "{what}: {error}"
    );
    assert!(error.to_string().contains(word), "{what}: {error}");
}

/// Every verb while `begins` refuses it with `word`, and the sessions after `ends`.
async fn every_verb_says_so(begins: &[&str], ends: &[&str], word: &str, loads: Loads) {
    let server = Server::start_single().await;
    let store = hasty(&server).await;
    let mut ids = Vec::new();
    for at in 0..4 {
        let content = json!({"user": "7", "at": at});
        ids.push(created(&store, content).await.id);
    }
    let of = |at: usize| request(&store, ids[at]);
    let (writes, slides, renews) = (of(0), of(1), of(2));
    writes.insert("a", 1).await.expect("loaded");
    slides.load().await.expect("loaded");
    renews.load().await.expect("loaded");
    let before = server.digest().await;
    let stats = store.stats();

    server.run::<redis::Value>(begins).await;
    let mut new = record(json!({"user": "8"}));
    let given = new.id;
    let digest = store.digest(&ids[3]);
    let (create, save, slide, delete, revoke, everywhere) = tokio::join!(
        store.create(&mut new),
        writes.save(),
        slides.save(),
        store.delete(&ids[3]),
        store.revoke("7", &digest),
        store.log_out_everywhere("9"),
    );
    refused("create", create, word);
    assert_eq!((new.id, data(&new)), (given, json!({"user": "8"})));
    refused("delete", delete, word);
    refused("revoke", revoke, word);
    refused("everywhere", everywhere, word);
    for (what, save) in [("save", save), ("slide", slide)] {
        let error = save.expect_err(what);
        assert_eq!(Trouble::from(&error), Trouble::Unavailable, "{error}");
        assert!(error.to_string().contains(word), "{what}: {error}");
    }
    match loads {
        Loads::Works => {
            let found = data(&loaded(&store, ids[3]).await);
            assert_eq!(found, json!({"user": "7", "at": 3}));
            let absent = store.load(&Id::default()).await;
            assert!(absent.expect("an answer").is_none());
        }
        Loads::Refused => refused("load", store.load(&ids[3]).await, word),
    }
    // Its delete has failed, so nothing is stored under another id.
    let error = renews.cycle_id().await.expect_err("refused");
    assert_eq!(Trouble::from(&error), Trouble::Unavailable, "{error}");
    let error = renews.save().await.expect_err("no session was made");
    assert_eq!(Trouble::from(&error), Trouble::Unavailable, "{error}");
    assert_eq!(store.stats(), stats, "nothing was done");
    assert_eq!(server.digest().await, before, "nobody is logged out or in");

    server.run::<redis::Value>(ends).await;
    until("the store works again", async || {
        store.load(&ids[0]).await.is_ok()
    })
    .await;
    // The requests are repeated.
    writes.save().await.expect("saved");
    let found = data(&loaded(&store, ids[0]).await);
    assert_eq!(found, json!({"user": "7", "at": 0, "a": 1}));
    let again = of(2);
    again.cycle_id().await.expect("an answer");
    again.save().await.expect("saved");
    let renewed = loaded(&store, again.id().expect("it was saved")).await;
    assert_eq!(data(&renewed), json!({"user": "7", "at": 2}));
    store.delete(&ids[3]).await.expect("logged out");
    assert!(store.load(&ids[3]).await.expect("an answer").is_none());
}

#[tokio::test]
async fn a_server_that_is_read_only_loads_sessions_and_changes_none() {
    let (begins, ends) = (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]);
    every_verb_says_so(&begins, &ends, "READONLY", Loads::Works).await;
}

#[tokio::test]
async fn a_server_that_forbids_scripts_loads_sessions_and_changes_none() {
    let (begins, ends) = (
        ["ACL", "SETUSER", "default", "-@scripting"],
        ["ACL", "SETUSER", "default", "+@all"],
    );
    every_verb_says_so(&begins, &ends, "NOPERM", Loads::Works).await;
}

#[tokio::test]
async fn a_server_that_forbids_the_keys_of_sessions_is_unavailable() {
    let (begins, ends) = (
        ["ACL", "SETUSER", "default", "resetkeys", "~other:*"],
        ["ACL", "SETUSER", "default", "resetkeys", "~*"],
    );
    every_verb_says_so(&begins, &ends, "NOPERM", Loads::Refused).await;
}
