//! Cancelled calls leave no permits and no position behind.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Waker};

use futures::future::join_all;
use hedgerow::{Client, Permits, Semaphore};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::support::patience::Patience;
use crate::support::permits::{AGES, Kept, all_back, granted, key, queued, wait, warm};
use crate::support::server::Server;
use crate::support::wait::{bounded, figure, until};

const CANCELLATIONS: usize = 10_000;
const UNHEARD: usize = 500;
/// Calls must succeed, too.
const HEARD: usize = 1000;
const TASKS: usize = 16;
/// Semaphores of which some permits are held all the while.
const HELD: usize = 2;
const NAMES: usize = 30;

/// What the tasks of the storm count.
#[derive(Debug)]
struct Tally {
    enough: AtomicBool,
    cancelled: AtomicUsize,
    /// Grants that a call has returned.
    heard: AtomicUsize,
    /// The permits of each semaphore that are surely held at this moment.
    held: [AtomicU32; NAMES],
}

impl Tally {
    /// Permits count from when the call has returned until before they are given up.
    fn holds(&self, name: usize, permits: &Permits) {
        let held = self.held[name].fetch_add(permits.weight(), Ordering::SeqCst);
        let held = held + permits.weight();
        assert!(
            held <= limit(name),
            "{held} permits of {} are held",
            limit(name)
        );
        self.heard.fetch_add(1, Ordering::SeqCst);
    }

    fn gives_up(&self, name: usize, permits: &Permits) {
        self.held[name].fetch_sub(permits.weight(), Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_cancelled_calls_leave_no_permits_and_no_position() {
    let server = Server::start().await;
    let seed = std::env::var("HEDGEROW_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    println!("HEDGEROW_SEED={seed}");
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(warm(server.client().await).await);
    }
    let tally = Arc::new(Tally {
        enough: AtomicBool::new(false),
        cancelled: AtomicUsize::new(0),
        heard: AtomicUsize::new(0),
        held: [const { AtomicU32::new(0) }; NAMES],
    });
    // A call for more than one permit of these always has to wait, and holds up the others.
    let holder = warm(server.client().await).await;
    let mut held = Vec::new();
    for name in 0..HELD {
        let most = semaphore(&holder, name, limit(name) - 1).metadata("holder");
        held.push(most.acquire().await.expect("free"));
        tally.holds(name, &held[name]);
    }
    let grants_before = grants(&server).await;
    let heard_before = tally.heard.load(Ordering::SeqCst);

    let tasks = (0..TASKS).map(|task| {
        let rng = StdRng::seed_from_u64(seed * 1000 + task as u64);
        tokio::spawn(storm(clients.clone(), tally.clone(), rng))
    });
    let tasks: Vec<_> = tasks.collect();
    // A grant that no call has returned hit the time between a command and its reply.
    let unheard = async || {
        let heard = tally.heard.load(Ordering::SeqCst) - heard_before;
        (grants(&server).await - grants_before).saturating_sub(heard)
    };
    until(
        "enough was cancelled, also between command and reply",
        async || {
            let ended = tasks.iter().any(tokio::task::JoinHandle::is_finished);
            ended
                || tally.cancelled.load(Ordering::SeqCst) >= CANCELLATIONS
                    && tally.heard.load(Ordering::SeqCst) >= HEARD
                    && unheard().await >= UNHEARD + TASKS
        },
    )
    .await;
    tally.enough.store(true, Ordering::SeqCst);
    for task in bounded("the storm ends", join_all(tasks)).await {
        task.expect("no panic");
    }

    // Leases and waits last ten minutes: what goes was given up.
    until("only what is held all the while is left", async || {
        server.keys("hr:{*}:semaphore*").await.len() == HELD
    })
    .await;
    for (name, permits) in held.into_iter().enumerate() {
        let kept = Kept::of(&server, &name.to_string()).await;
        assert_eq!((kept.held_by(), kept.queue.len()), (vec!["holder"], 0));
        assert!(permits.is_held());
        permits.release().await.expect("held until now");
    }
    let expired = figure(&server, "stats", "expired_keys:").await;
    assert_eq!(expired, 0, "keys were left to the server to expire");

    let unheard = unheard().await;
    println!("{tally:?}, {unheard} unheard grants");
    assert!(unheard >= UNHEARD);
    assert!(tally.heard.load(Ordering::SeqCst) >= HEARD);
    let fresh = server.client().await;
    for name in 0..NAMES {
        let all = semaphore(&fresh, name, limit(name)).try_acquire().await;
        assert!(all.expect("an answer").is_some(), "all of {name} are free");
    }
}

/// Calls and cancels, until it is enough.
async fn storm(clients: Vec<Client>, tally: Arc<Tally>, mut rng: StdRng) {
    while !tally.enough.load(Ordering::SeqCst) {
        let client = &clients[rng.random_range(0..clients.len())];
        // Half of the calls crowd on a few names, the others mostly find theirs free.
        let among = if rng.random_bool(0.5) { 5 } else { NAMES };
        let name = rng.random_range(0..among);
        let semaphore = semaphore(client, name, rng.random_range(1..=limit(name)));
        let patience = Patience::random(&mut rng);
        let permits = match rng.random_range(0..10) {
            0..6 => patience.call(semaphore.acquire()).await,
            _ => match patience.call(semaphore.try_acquire()).await {
                Some(Ok(None)) => continue,
                other => other.and_then(Result::transpose),
            },
        };
        let Some(permits) = permits else {
            tally.cancelled.fetch_add(1, Ordering::SeqCst);
            continue;
        };
        let permits = permits.expect("nothing fails here");
        tally.holds(name, &permits);
        assert!(permits.is_held());
        if rng.random_bool(0.3) {
            tokio::task::yield_now().await;
        }
        tally.gives_up(name, &permits);
        end(permits, &tally, &mut rng).await;
    }
}

/// Gives permits up in one of the ways there are.
async fn end(permits: Permits, tally: &Tally, rng: &mut StdRng) {
    if rng.random_bool(0.3) {
        return;
    }
    let _share = rng.random_bool(0.3).then(|| permits.share());
    match Patience::random(rng).call(permits.release()).await {
        Some(released) => released.expect("held until now"),
        None => {
            tally.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[tokio::test]
async fn an_acquire_of_permits_that_nobody_polls_keeps_them_from_nobody() {
    // One poll sends the question only on a connection that is made.
    let server = Server::start_single().await;
    let (one, two) = (
        warm(server.client().await).await,
        warm(server.client().await).await,
    );
    let semaphore = |client: &Client| client.semaphore("a", 2).weight(2).lease(AGES).wait(AGES);
    let unpolled = semaphore(&one);
    let mut unpolled: Pin<Box<dyn Future<Output = _> + Send>> =
        Box::pin(async move { unpolled.acquire().await });
    let polled = unpolled
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "it has to wait for an answer");
    // The server grants it, and the answer lies there.
    let fence = key("a").replace(":semaphore:a", ":fence");
    until("it is granted", async || {
        server.run::<usize>(&["EXISTS", &fence]).await == 1
    })
    .await;
    // Another process, and another task of the same.
    for client in [&two, &one] {
        let permits = granted(wait(semaphore(client))).await;
        permits.release().await.expect("held until now");
    }
    // Once it is polled it goes on.
    let permits = bounded("it goes on", unpolled).await.expect("granted");
    assert!(permits.is_held());
    permits.release().await.expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn a_release_of_permits_that_nobody_polls_gives_them_back() {
    let server = Server::start().await;
    let (one, two) = (
        warm(server.client().await).await,
        warm(server.client().await).await,
    );
    for successor in [&one, &two] {
        let permits = one.semaphore("a", 2).weight(2).lease(AGES);
        let permits = permits.acquire().await.expect("free");
        let waiting = wait(successor.semaphore("a", 2).metadata("next"));
        queued(&server, "a", &["next"]).await;
        let mut unpolled = Box::pin(permits.release());
        let polled = unpolled
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending(), "it has to wait for an answer");
        granted(waiting)
            .await
            .release()
            .await
            .expect("held until now");
        bounded("it ends", unpolled).await.expect("held until now");
    }
    all_back(&server, "a").await;
}

/// A semaphore whose leases do not end by themselves while the test runs.
fn semaphore(client: &Client, name: usize, weight: u32) -> Semaphore {
    let semaphore = client.semaphore(&name.to_string(), limit(name));
    semaphore.weight(weight).lease(AGES).wait(AGES)
}

/// How many permits the semaphore with this number has.
fn limit(name: usize) -> u32 {
    2 + u32::try_from(name % 5).expect("small")
}

/// How many grants the server has made: each writes the fence counter.
async fn grants(server: &Server) -> usize {
    figure(server, "commandstats", "cmdstat_set:calls=").await
}
