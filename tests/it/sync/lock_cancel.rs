//! Cancelled calls leave nothing behind.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Client, Guard, Lock};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::faults::Row;
use crate::support::patience::Patience;
use crate::support::server::Server;
use crate::support::wait::{bounded, figure, until};

const CANCELLATIONS: usize = 10_000;
const UNHEARD: usize = 500;
const TASKS: usize = 16;
const FREE: usize = 40;
const HELD: usize = 2;

/// What the tasks of the storm count.
#[derive(Debug, Default)]
struct Tally {
    enough: AtomicBool,
    cancelled: AtomicUsize,
    guards: AtomicUsize,
    bodies: AtomicUsize,
}

impl Tally {
    /// How many grants somebody was told of.
    fn heard(&self) -> usize {
        self.guards.load(Ordering::SeqCst) + self.bodies.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_cancelled_calls_leave_no_lease_and_no_place_in_a_queue() {
    let server = Server::start().await;
    let seed = std::env::var("HEDGEROW_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    println!("HEDGEROW_SEED={seed}");
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(server.client().await);
    }
    // These are held all the while: a call for one of them always has to wait.
    let holder = server.client().await;
    let mut held = Vec::new();
    for name in 0..HELD {
        held.push(
            long(&holder, &format!("held-{name}"))
                .acquire()
                .await
                .expect("free"),
        );
    }
    let grants_before = grants(&server).await;

    let tally = Arc::new(Tally::default());
    let tasks = (0..TASKS).map(|task| {
        let rng = StdRng::seed_from_u64(seed * 1000 + task as u64);
        tokio::spawn(storm(clients.clone(), tally.clone(), rng))
    });
    let tasks: Vec<_> = tasks.collect();
    // A grant that no call was told of hit the time between a command and its reply.
    let unheard =
        || async { (grants(&server).await - grants_before).saturating_sub(tally.heard()) };
    until(
        "enough was cancelled, also between command and reply",
        || async {
            tally.cancelled.load(Ordering::SeqCst) >= CANCELLATIONS
                && unheard().await >= UNHEARD + TASKS
        },
    )
    .await;
    tally.enough.store(true, Ordering::SeqCst);
    for task in bounded("the storm ends", join_all(tasks)).await {
        task.expect("no panic");
    }

    // Leases last ten minutes and the wait one: what goes was given up.
    let expected: BTreeSet<String> = (0..HELD).map(|name| format!("held-{name}")).collect();
    until("only the held locks are left", || async {
        let keys = server.keys("hr:*").await;
        let rest = keys
            .iter()
            .filter(|key| !key.ends_with("}:fence") && !key.starts_with("hr:f:"));
        let locks = rest.map(|key| key.split_once(":lock:").map(|(_, name)| name.to_owned()));
        locks.collect::<Option<BTreeSet<_>>>().as_ref() == Some(&expected)
    })
    .await;
    let expired = figure(&server, "stats", "expired_keys:").await;
    assert_eq!(expired, 0, "keys were left to the server to expire");

    let unheard = unheard().await;
    println!("{tally:?}, {unheard} unheard grants");
    assert!(unheard >= UNHEARD);
    assert!(tally.heard() >= 1000, "calls succeeded, too");
    Row::shown(
        11,
        "futures are dropped",
        "lock",
        "no lease is left",
        tally.heard(),
        unheard,
    );

    for guard in held {
        assert!(guard.is_held());
        guard.release().await.expect("held until now");
    }
    let fresh = server.client().await;
    for name in names() {
        let guard = long(&fresh, &name).try_acquire().await.expect("an answer");
        assert!(guard.is_some(), "{name} is free");
    }
}

/// Calls and cancels, until it is enough.
async fn storm(clients: Vec<Client>, tally: Arc<Tally>, mut rng: StdRng) {
    let names: Vec<String> = names().collect();
    while !tally.enough.load(Ordering::SeqCst) {
        let client = &clients[rng.random_range(0..clients.len())];
        // Half of the calls crowd on a few names, the others mostly find theirs free.
        let among = if rng.random_bool(0.5) { 5 } else { names.len() };
        let lock = long(client, &names[rng.random_range(0..among)]);
        let patience = Patience::random(&mut rng);
        let guard = match rng.random_range(0..10) {
            0..5 => patience.call(lock.acquire()).await,
            5..8 => match patience.call(lock.try_acquire()).await {
                Some(Ok(None)) => continue,
                other => other.and_then(Result::transpose),
            },
            _ => {
                let body = |_| async {
                    tally.bodies.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                };
                match patience.call(lock.with(body)).await {
                    Some(done) => {
                        done.expect("nothing fails here");
                        continue;
                    }
                    None => None,
                }
            }
        };
        let Some(guard) = guard else {
            tally.cancelled.fetch_add(1, Ordering::SeqCst);
            continue;
        };
        tally.guards.fetch_add(1, Ordering::SeqCst);
        end(guard.expect("nothing fails here"), &tally, &mut rng).await;
    }
}

/// Gives a guard up in one of the ways there are.
async fn end(guard: Guard, tally: &Tally, rng: &mut StdRng) {
    assert!(guard.is_held());
    if rng.random_bool(0.3) {
        return;
    }
    match Patience::random(rng).call(guard.release()).await {
        Some(released) => released.expect("held until now"),
        None => {
            tally.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn names() -> impl Iterator<Item = String> {
    let held = (0..HELD).map(|name| format!("held-{name}"));
    held.chain((0..FREE).map(|name| format!("free-{name}")))
}

/// A lock whose lease does not end by itself while the test runs.
fn long(client: &Client, name: &str) -> Lock {
    client
        .lock(name)
        .lease(Duration::from_secs(600))
        .wait(Duration::from_secs(60))
}

/// How many grants the server has made: each writes the fence counter and the lock.
async fn grants(server: &Server) -> usize {
    figure(server, "commandstats", "cmdstat_set:calls=").await / 2
}
