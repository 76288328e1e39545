//! A session that is loaded, changed and saved: by the store of hedgerow, and by
//! `tower-sessions-redis-store`, set up as its documentation does it: with six connections.
//!
//! Each task has a session of its own, with the same data on both sides.

use std::collections::HashMap;
use std::time::Instant;

use hedgerow::session::SessionStore as OurStore;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tower_sessions_core::SessionStore as _;
use tower_sessions_core::session::{Id, Record};
use tower_sessions_core_of_rival::SessionStore as _;
use tower_sessions_core_of_rival::session::{Id as TheirId, Record as TheirRecord};
use tower_sessions_redis_store::RedisStore;
use tower_sessions_redis_store::fred::prelude::{ClientLike as _, Config, Pool};

use crate::slices::{Result, Runs, patient, spread};

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    for tasks in [1, 50] {
        let row = format!("session_load_save/tower_sessions_redis_store@{tasks}");
        if !runs.wants(&row) {
            continue;
        }
        let client = patient().url(url).connect().await?;
        let ours = OurStore::new(client.cache("sessions"));
        let pool = Pool::new(Config::from_url(url)?, None, None, None, 6)?;
        let connected = pool.connect();
        pool.wait_for_connect().await?;
        let theirs = RedisStore::new(pool.clone());
        let (mut our_ids, mut their_ids) = (Vec::new(), Vec::new());
        for _ in 0..tasks {
            let (data, expiry_date) = (data(), OffsetDateTime::now_utc() + DAY);
            let mut record = Record {
                id: Id::default(),
                data: data.clone(),
                expiry_date,
            };
            ours.create(&mut record).await?;
            our_ids.push(record.id);
            let mut record = TheirRecord {
                id: TheirId::default(),
                data,
                expiry_date,
            };
            theirs.create(&mut record).await?;
            their_ids.push(record.id);
        }
        let our_turn = async |tasks: usize, until: Instant| {
            spread(tasks, |task| {
                let (store, id) = (ours.clone(), our_ids[task]);
                async move {
                    let mut done = 0;
                    while Instant::now() < until {
                        let record = store.load(&id).await.expect("loaded");
                        let mut record = record.expect("a session");
                        visit(&mut record.data);
                        store.save(&record).await.expect("saved");
                        done += 1;
                    }
                    done
                }
            })
            .await
        };
        let their_turn = async |tasks: usize, until: Instant| {
            spread(tasks, |task| {
                let (store, id) = (theirs.clone(), their_ids[task]);
                async move {
                    let mut done = 0;
                    while Instant::now() < until {
                        let record = store.load(&id).await.expect("loaded");
                        let mut record = record.expect("a session");
                        visit(&mut record.data);
                        store.save(&record).await.expect("saved");
                        done += 1;
                    }
                    done
                }
            })
            .await
        };
        runs.compare(&row, tasks, our_turn, their_turn).await;
        assert_eq!(ours.stats().dropped, 0);
        pool.quit().await?;
        connected.await??;
    }
    Ok(())
}

/// About 400 bytes as JSON: a user, a token for forms, and a cart.
fn data() -> HashMap<String, Value> {
    let cart: Vec<Value> = (1..=5)
        .map(|number| json!({ "product": 1000 + number, "count": number, "price": "19.90" }))
        .collect();
    HashMap::from([
        ("user_id".to_owned(), json!("4711")),
        ("csrf".to_owned(), json!("b6f1c0d2a8e94f7d8c3e5a1b7f902d46")),
        ("language".to_owned(), json!("en")),
        ("cart".to_owned(), Value::Array(cart)),
        (VISITS.to_owned(), json!(0)),
    ])
}

/// Changes the session, so that it has to be written.
fn visit(data: &mut HashMap<String, Value>) {
    let visits = data[VISITS].as_u64().expect("a count");
    data.insert(VISITS.to_owned(), json!(visits + 1));
}

const VISITS: &str = "visits";
const DAY: Duration = Duration::DAY;
