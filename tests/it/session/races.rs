//! Logouts while requests are under way, on two clients, many times over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;
use hedgerow::session::{Conflict, SessionStore, Trouble};
use serde_json::json;
use tower_sessions_core::session::Id;
use tower_sessions_core::{Session, SessionStore as _};

use super::{created, data, is_there, loaded, request, store};
use crate::support::server::Server;

/// A request that uses the session, and may change its id.
async fn use_session(store: SessionStore, id: Id, turn: usize) -> Option<Id> {
    let session = request(&store, id);
    let count: u32 = session.get("count").await.expect("an answer")?;
    for _ in 0..rand::random_range(0..4) {
        tokio::task::yield_now().await;
    }
    match turn % 4 {
        0 => {}
        1 => session.insert("count", count + 1).await.expect("loaded"),
        2 => session
            .insert(&format!("{turn}"), turn)
            .await
            .expect("loaded"),
        _ => session.cycle_id().await.expect("an answer"),
    }
    session.save().await.expect("an answer");
    session.id()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_while_requests_are_under_way_is_final() {
    let server = Server::start().await;
    let stores = [store(&server).await, store(&server).await];
    let mut dropped = 0;
    for round in 0..150 {
        let id = created(&stores[0], json!({"user": "7", "count": 0}))
            .await
            .id;
        // None of them changes the id: that a logout comes behind such a change, and names the old
        // id, is another matter.
        let requests = (0..6).map(|turn| {
            let store = stores[turn % 2].clone();
            tokio::spawn(use_session(store, id, turn % 3))
        });
        let requests: Vec<_> = requests.collect();
        let logout = stores[round % 2].clone();
        let logout = tokio::spawn(async move { logout.delete(&id).await });
        logout.await.expect("no panic").expect("logged out");
        for store in &stores {
            assert!(!is_there(store, id).await, "in round {round}");
        }
        for request in join_all(requests).await {
            request.expect("no panic");
        }
        for store in &stores {
            assert!(!is_there(store, id).await, "in round {round}");
        }
    }
    for store in &stores {
        dropped += store.stats().dropped;
    }
    assert!(dropped > 0, "some were under way");
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_everywhere_among_saves_and_new_ids_is_final() {
    let server = Server::start().await;
    let stores = [store(&server).await, store(&server).await];
    for round in 0..60 {
        let mut ids = Vec::new();
        for store in &stores {
            for _ in 0..2 {
                ids.push(created(store, json!({"user": "7", "count": 0})).await.id);
            }
        }
        let requests = (0..12).map(|turn| {
            let store = stores[turn % 2].clone();
            tokio::spawn(use_session(store, ids[turn % ids.len()], turn))
        });
        let requests: Vec<_> = requests.collect();
        let everywhere = stores[round % 2].log_out_everywhere("7").await;
        everywhere.expect("logged out");
        for request in join_all(requests).await {
            ids.extend(request.expect("no panic"));
        }
        for id in ids {
            for store in &stores {
                assert!(!is_there(store, id).await, "in round {round}");
            }
        }
        let left = stores[0].sessions_of("7").await.expect("an answer");
        assert!(left.is_empty(), "{left:?}");
    }
    let dropped: u64 = stores.iter().map(|store| store.stats().dropped).sum();
    assert!(dropped > 0, "some were under way");
}

/// What a login has created when it returns is there until the next logout begins.
#[tokio::test(flavor = "multi_thread")]
async fn logins_beside_a_logout_everywhere_are_before_it_or_behind_it() {
    let server = Server::start().await;
    let stores = [store(&server).await, store(&server).await];
    for round in 0..60 {
        let is_over = Arc::new(AtomicBool::new(false));
        let logins = (0..4).map(|turn| {
            let (store, is_over) = (stores[turn % 2].clone(), is_over.clone());
            tokio::spawn(async move {
                loop {
                    let begins_behind = is_over.load(Ordering::SeqCst);
                    let session = Session::new(None, Arc::new(store.clone()), None);
                    session.insert("user", "7").await.expect("new");
                    session.save().await.expect("saved");
                    let id = session.id().expect("it was saved");
                    if begins_behind {
                        break id;
                    }
                }
            })
        });
        let logins: Vec<_> = logins.collect();
        let everywhere = stores[round % 2].log_out_everywhere("7").await;
        everywhere.expect("logged out");
        is_over.store(true, Ordering::SeqCst);
        for login in join_all(logins).await {
            let id = login.expect("no panic");
            assert!(is_there(&stores[0], id).await, "in round {round}");
        }
        stores[0].log_out_everywhere("7").await.expect("logged out");
        let left = stores[1].sessions_of("7").await.expect("an answer");
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_update_is_lost_where_conflicts_are_refused_and_repeated() {
    let server = Server::start().await;
    let stores = [store(&server).await, store(&server).await];
    let stores = stores.map(|store| store.conflict(Conflict::Refuse));
    let id = created(&stores[0], json!({"count": 0})).await.id;
    let tasks = (0..4).map(|turn| {
        let store = stores[turn % 2].clone();
        tokio::spawn(async move {
            let mut added = 0;
            while added < 10 {
                let session = request(&store, id);
                let count: Option<u32> = session.get("count").await.expect("an answer");
                let count = count.expect("it is there");
                session.insert("count", count + 1).await.expect("loaded");
                match session.save().await {
                    Ok(()) => added += 1,
                    Err(error) => assert_eq!(Trouble::from(&error), Trouble::Conflict),
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.expect("no panic");
    }
    assert_eq!(data(&loaded(&stores[0], id).await), json!({"count": 40}));
    let conflicts = stores.map(|store| store.stats().conflicts);
    assert!(conflicts[0] + conflicts[1] > 0, "there were some");
}
