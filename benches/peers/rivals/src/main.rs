//! Hits, misses and herds against the Rust crates `cached` (its asynchronous Redis store) and
//! `hitbox` (with its Redis backend); pages against `axum-response-cache` and Django; refusals
//! against `tower_governor`; sessions against `tower-sessions-redis-store`. Both sides use one
//! server, in alternate slices.
//!
//! Each crate is set up as its own documentation does it. `cached` has no single flight on Redis,
//! and `hitbox` has one within a process.

mod django;
#[path = "../../../side_by_side/page.rs"]
mod page;
mod pages;
mod refusals;
#[allow(dead_code, reason = "the other benchmark uses the rest")]
#[path = "../../../side_by_side/report.rs"]
mod report;
mod sessions;
#[path = "../../../side_by_side/site.rs"]
mod site;
#[allow(dead_code, reason = "the other benchmark uses the rest")]
#[path = "../../../side_by_side/slices.rs"]
mod slices;
mod stores;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hedgerow::embedded::Server;
use slices::{Length, Result, Runs, quartiles, spread};
use stores::{Store, database};

const RIVALS: [&str; 2] = ["cached", "hitbox"];

fn main() -> Result<()> {
    let runs = Runs::from_args();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // By TCP, which all of them speak.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let _server = Server::start_with(&["--port", &port.to_string()]).await?;
        let url = format!("redis://127.0.0.1:{port}");
        let ours = Store::named("hedgerow", &url).await?;
        for rival in RIVALS {
            let theirs = Store::named(rival, &url).await?;
            hits(rival, &ours, &theirs, &runs).await?;
            misses(rival, &ours, &theirs, &runs).await?;
            herds(rival, &url, &runs).await?;
        }
        pages::run(&url, &runs).await?;
        refusals::run(&url, &runs).await?;
        sessions::run(&url, &runs).await?;
        runs.finish(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.."))
    })
}

async fn hits(rival: &str, ours: &Store, theirs: &Store, runs: &Runs) -> Result<()> {
    for tasks in [1, 50] {
        let row = format!("hit/{rival}@{tasks}");
        if runs.wants(&row) {
            for key in 0..KEYS {
                ours.load(&format!("hit:{key}")).await;
                theirs.load(&format!("hit:{key}")).await;
            }
            let side = |store: &Store| {
                let store = store.clone();
                async move |tasks, until| in_turn(&store, "hit", KEYS, tasks, until).await
            };
            runs.compare(&row, tasks, side(ours), side(theirs)).await;
        }
    }
    Ok(())
}

async fn misses(rival: &str, ours: &Store, theirs: &Store, runs: &Runs) -> Result<()> {
    for tasks in [1, 50] {
        let row = format!("miss/{rival}@{tasks}");
        if runs.wants(&row) {
            let side = |store: &Store| {
                let store = store.clone();
                async move |tasks, until| {
                    // No key comes twice.
                    let turn = TURN.fetch_add(1, Ordering::Relaxed);
                    let name = format!("miss:{turn}");
                    in_turn(&store, &name, usize::MAX, tasks, until).await
                }
            };
            runs.compare(&row, tasks, side(ours), side(theirs)).await;
        }
    }
    Ok(())
}

/// Each task asks for keys of its own, one after the other, and begins again after `keys` of them.
async fn in_turn(store: &Store, name: &str, keys: usize, tasks: usize, until: Instant) -> u64 {
    spread(tasks, |task| {
        let (store, name) = (store.clone(), name.to_owned());
        async move {
            let mut done = 0;
            while Instant::now() < until {
                let key = match keys {
                    usize::MAX => format!("{name}:{task}:{done}"),
                    keys => format!("{name}:{}", (task * 31 + done) % keys),
                };
                assert_eq!(store.load(&key).await.len(), 100);
                done += 1;
            }
            done as u64
        }
    })
    .await
}

/// Eight processes (stores of their own) with a hundred callers each ask for one cold key. The
/// loader asks a database with ten connections, which answers in 10 ms.
async fn herds(rival: &str, url: &str, runs: &Runs) -> Result<()> {
    let row = format!("herd/{rival}@800");
    if !runs.wants(&row) {
        return Ok(());
    }
    let rounds = match runs.length {
        Length::Full => 7,
        Length::Quick => 3,
    };
    let (mut ratios, mut loads) = (Vec::new(), (Vec::new(), Vec::new()));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        ours.push(Store::named("hedgerow", url).await?);
        theirs.push(Store::named(rival, url).await?);
    }
    for round in 0..=rounds {
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        let (our_time, our_loads) = herd(&ours, &format!("herd:{turn}")).await;
        let (their_time, their_loads) = herd(&theirs, &format!("herd:{turn}")).await;
        // The first round connects.
        if round > 0 {
            ratios.push(their_time.as_secs_f64() / our_time.as_secs_f64());
            loads.0.push(our_loads as f64);
            loads.1.push(their_loads as f64);
        }
    }
    runs.report.add_spread(&row, quartiles(&mut ratios));
    let counted = [("hedgerow", &mut loads.0), (rival, &mut loads.1)];
    for (name, loads) in counted {
        let row = format!("loads_of_a_herd_{name}_beside_{rival}");
        runs.report.add_spread(&row, quartiles(loads));
    }
    Ok(())
}

async fn herd(stores: &[Store], key: &str) -> (Duration, u64) {
    let before = database::QUERIES.load(Ordering::SeqCst);
    let start = Instant::now();
    spread(stores.len() * 100, |caller| {
        let (store, key) = (stores[caller / 100].clone(), key.to_owned());
        async move { store.load_slowly(&key).await.len() as u64 }
    })
    .await;
    let queries = database::QUERIES.load(Ordering::SeqCst) - before;
    (start.elapsed(), queries)
}

const KEYS: usize = 1000;

/// Numbers the names of keys that must be new.
static TURN: AtomicU64 = AtomicU64::new(0);
