//! Neither Redis nor an error nor an event has the id of a session.

use std::time::Duration;

use hedgerow::session::SessionStore;
use redis::Value;
use serde_json::json;
use tower_sessions_core::SessionStore as _;
use tower_sessions_core::session::Id;

use super::{created, record, request};
use crate::support::listener::Listener;
use crate::support::monitor::Monitor;
use crate::support::server::Server;

/// Everything by which the session of this id could be taken over.
fn forms(id: Id) -> Vec<String> {
    let bytes = [id.0.to_le_bytes(), id.0.to_be_bytes()];
    let hex = bytes.map(|bytes| format!("{:032x}", u128::from_be_bytes(bytes)));
    let mut forms = vec![id.to_string(), id.0.to_string(), (id.0 as u128).to_string()];
    for hex in hex {
        let groups = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex[range].to_owned());
        forms.extend([hex.to_uppercase(), groups.join("-"), hex]);
    }
    forms
}

/// Does with a session whatever can be done. Returns all that was told of it.
async fn all_verbs(store: &SessionStore, ids: &mut Vec<Id>) -> String {
    let mut told = format!("{store:?} {store:#?}");
    let mut new = record(json!({"user": "7"}));
    ids.push(new.id);
    told += &format!("{:?}", store.create(&mut new).await);
    ids.push(new.id);
    told += &format!("{:?}", store.load(&new.id).await.map(drop));
    new.data.insert("a".to_owned(), json!(1));
    told += &format!("{:?}", store.save(&new).await);
    told += &format!("{:?}", store.save(&new).await);
    let session = request(store, new.id);
    told += &format!("{:?}", session.cycle_id().await);
    told += &format!("{:?}", session.save().await);
    ids.extend(session.id());
    told += &format!("{:?}", store.sessions_of("7").await);
    told += &format!("{:?}", store.revoke("7", &store.digest(&new.id)).await);
    told += &format!("{:?}", store.explain(&new.id).await);
    told += &format!("{:?}", store.delete(&new.id).await);
    told += &format!("{:?}", store.log_out_everywhere("7").await);
    new.data.insert("a".to_owned(), json!("x".repeat(500_000)));
    told += &format!("{:?}", store.save(&new).await);
    told
}

#[tokio::test]
async fn no_id_is_in_redis_nor_in_an_error_nor_in_an_event() {
    let listener = Listener::start();
    let server = Server::start_single().await;
    let monitor = Monitor::start(&server).await;
    let (mut ids, mut told) = (Vec::new(), String::new());
    let client = server.client().await;
    let store = SessionStore::new(client.cache("sessions")).user_key("user");
    told += &all_verbs(&store, &mut ids).await;
    // A key of another type in the place of a session.
    let id = created(&store, json!({"user": "7"})).await.id;
    ids.push(id);
    let key = format!("hr:v:{{sessions:{}}}", store.digest(&id));
    let _: Value = server.run(&["DEL", &key]).await;
    let _: Value = server.run(&["RPUSH", &key, "a"]).await;
    told += &format!("{:?}", store.load(&id).await);
    told += &format!("{:?}", store.delete(&id).await);
    // Damaged, then refused.
    let id = created(&store, json!({"user": "7"})).await.id;
    ids.push(id);
    let key = format!("hr:v:{{sessions:{}}}", store.digest(&id));
    let _: Value = server.run(&["APPEND", &key, "a"]).await;
    told += &format!("{:?}", store.load(&id).await);
    let _: Value = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    told += &all_verbs(&store, &mut ids).await;
    let mut dumps = Vec::new();
    for key in server.keys("*").await {
        let dump: Vec<u8> = server.run(&["DUMP", &key]).await;
        dumps.extend_from_slice(&dump);
        told += &format!("{key} {}\n", String::from_utf8_lossy(&dump));
    }
    // What the server was sent, and what its reader sees.
    let seen = monitor.commands(&server, "sessions").await.join("\n");
    assert!(seen.contains(&store.digest(&ids[1])), "{seen}");
    let killed = server.kill().await;
    let soon = server.builder().cache_deadline(Duration::from_millis(100));
    let client = soon.open().expect("a good URL");
    let out = SessionStore::new(client.cache("sessions")).user_key("user");
    told += &all_verbs(&out, &mut ids).await;
    drop(killed);
    told += &seen;
    told += &listener.told();
    for wanted in ["maxmemory", "damaged", "unavailable", "too large"] {
        assert!(told.contains(wanted), "{wanted} was told: {told}");
    }
    assert!(ids.len() > 8, "{ids:?}");
    for raw in ids
        .iter()
        .flat_map(|id| [id.0.to_le_bytes(), id.0.to_be_bytes()])
    {
        assert!(!dumps.windows(raw.len()).any(|bytes| bytes == raw));
    }
    for form in ids.into_iter().flat_map(forms) {
        assert!(!told.contains(&form), "{form} was told");
        assert!(!told.contains(form.trim_start_matches('-')), "{form}");
    }
}
