//! Sessions of tower-sessions: what the store promises, and what a browser sees of it.

mod conformance;
mod drawn_ids;
mod other_ids;
mod outage;
mod races;
mod refusals;
mod saves;
mod secrecy;
mod service;
mod users;
mod without_users;

use std::collections::HashMap;
use std::sync::Arc;

use hedgerow::session::{RESERVED_KEY, SessionStore};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tower_sessions_core::session::{Id, Record};
use tower_sessions_core::{Session, SessionStore as _};

use crate::support::server::Server;

const HOUR: Duration = Duration::HOUR;

/// A store of its own client, as another process has. It knows users.
async fn store(server: &Server) -> SessionStore {
    SessionStore::new(server.client().await.cache("sessions")).user_key("user")
}

/// A record that is not in any store.
fn record(data: Value) -> Record {
    let Value::Object(data) = data else {
        panic!("the data of a session is an object")
    };
    Record {
        id: Id::default(),
        data: data.into_iter().collect(),
        expiry_date: OffsetDateTime::now_utc() + HOUR,
    }
}

async fn created(store: &SessionStore, data: Value) -> Record {
    let mut record = record(data);
    store.create(&mut record).await.expect("created");
    record
}

async fn loaded(store: &SessionStore, id: Id) -> Record {
    let record = store.load(&id).await.expect("an answer");
    record.expect("the session is there")
}

async fn is_there(store: &SessionStore, id: Id) -> bool {
    store.load(&id).await.expect("an answer").is_some()
}

/// What the application sees of the data of a record.
fn data(record: &Record) -> Value {
    let own = record.data.iter().filter(|(key, _)| *key != RESERVED_KEY);
    let own: HashMap<&String, &Value> = own.collect();
    json!(own)
}

/// The session that a request with this cookie has.
fn request(store: &SessionStore, id: Id) -> Session {
    Session::new(Some(id), Arc::new(store.clone()), None)
}

/// Who is logged in, by what the session holds.
async fn user(session: &Session) -> Option<String> {
    session.get("user").await.expect("an answer")
}
