//! Locks and pushes: what they save while they work, and that nothing hangs when they do not.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Client, Fence, lock::LossReason};

use crate::support::monitor::Monitor;
use crate::support::process::Child;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, connection};
use crate::support::topology::{Node, Recipe};
use crate::support::wait::{bounded, calls, patient, queued, until};

/// A place that only one may be in, and who was there, in order.
#[derive(Debug, Default)]
struct Room {
    occupied: AtomicBool,
    visits: Mutex<Vec<Fence>>,
}

impl Room {
    fn enter(&self, fence: Fence) {
        assert!(
            !self.occupied.swap(true, Ordering::SeqCst),
            "two are inside"
        );
        self.visits.lock().expect("no panic").push(fence);
    }

    fn leave(&self) {
        self.occupied.store(false, Ordering::SeqCst);
    }

    fn visits(&self) -> Vec<Fence> {
        self.visits.lock().expect("no panic").clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_waiters_all_get_the_lock_once_while_push_connections_are_killed() {
    let server = Arc::new(Server::start().await);
    let room = Arc::new(Room::default());
    let holder = server.client().await;
    let first = holder.lock("a").acquire().await.expect("free");
    let mut tasks = Vec::new();
    for _ in 0..5 {
        let client = server.client().await;
        for _ in 0..20 {
            tasks.push(tokio::spawn(visit(client.clone(), room.clone())));
        }
    }
    queued(&holder.lock("a"), 5).await;

    let killed = Arc::new(AtomicUsize::new(0));
    let killer = tokio::spawn({
        let (server, killed) = (server.clone(), killed.clone());
        async move {
            loop {
                let count = server.kill_connections("hedgerow-push").await;
                killed.fetch_add(count, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    until("connections are being killed", || async {
        killed.load(Ordering::SeqCst) >= 5
    })
    .await;
    first.release().await.expect("held until now");

    for visit in bounded("all of them get the lock", join_all(tasks)).await {
        visit.expect("no panic");
    }
    killer.abort();
    let visits = room.visits();
    assert_eq!(visits.len(), 100);
    assert!(visits.is_sorted_by(|one, next| one < next), "{visits:?}");
    let killed = killed.load(Ordering::SeqCst);
    assert!(
        killed >= 20,
        "only {killed} connections were killed meanwhile"
    );
}

async fn visit(client: Client, room: Arc<Room>) {
    let lock = client.lock("a").wait(Duration::from_secs(60));
    let guard = lock.acquire().await.expect("granted");
    room.enter(guard.fence());
    // What the lock is for takes a while, so that it is not all over between two kills.
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(guard.is_held());
    room.leave();
    guard.release().await.expect("held until now");
}

#[tokio::test]
async fn waiters_do_not_poll_while_pushes_work() {
    const WAITERS: usize = 20;
    let server = Server::start().await;
    let room = Arc::new(Room::default());
    let holder = server.client().await;
    let first = holder.lock("a").acquire().await.expect("free");
    let mut tasks = Vec::new();
    for _ in 0..WAITERS {
        tasks.push(tokio::spawn(visit(server.client().await, room.clone())));
    }
    queued(&holder.lock("a"), WAITERS).await;

    // A waiter keeps its place by one call in 0.8 s or more. The clock is the server's, which
    // also counts the calls; one that polled would have made 16 times as many.
    let started = calls_and_seconds(&server).await;
    until("the holder has held for a while", || async {
        calls_and_seconds(&server).await.1 - started.1 > 2.4
    })
    .await;
    let ended = calls_and_seconds(&server).await;
    let heartbeats = WAITERS as f64 * ((ended.1 - started.1) / 0.8 + 1.0);
    let calls = ended.0 - started.0;
    assert!(
        calls <= heartbeats,
        "{calls} calls, {heartbeats} heartbeats"
    );
    assert!(calls >= WAITERS as f64, "they did wait");

    first.release().await.expect("held until now");
    for visit in bounded("all of them get the lock", join_all(tasks)).await {
        visit.expect("no panic");
    }
    assert_eq!(room.visits().len(), WAITERS);
}

/// How many script calls the server has run, and its clock.
async fn calls_and_seconds(server: &Server) -> (f64, f64) {
    let stats: String = server.run(&["INFO", "commandstats"]).await;
    let calls = stats.lines().filter_map(|line| {
        let (name, figures) = line.split_once(':')?;
        let name = name.strip_prefix("cmdstat_")?;
        let calls = figures.strip_prefix("calls=")?.split(',').next()?;
        name.starts_with("eval")
            .then(|| calls.parse::<f64>().expect("a number"))
    });
    let calls = calls.sum();
    let (seconds, micros): (f64, f64) = server.run(&["TIME"]).await;
    (calls, seconds + micros / 1e6)
}

#[tokio::test]
async fn a_broken_lock_is_told_by_push_long_before_the_next_renewal() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let lock = one.lock("a").lease(Duration::from_secs(600));
    let guard = lock.acquire().await.expect("free");
    crate::support::wait::listened(&server, 1).await;
    assert!(two.lock("a").break_lock().await.expect("an answer"));
    let reason = bounded("the holder is told", guard.lost()).await;
    assert_eq!(reason, hedgerow::lock::LossReason::Broken);
    assert!(!guard.is_held());
    let error = guard.release().await.expect_err("lost");
    assert_eq!(error.kind(), hedgerow::ErrorKind::Lost);
}

#[tokio::test]
async fn a_forged_word_of_a_broken_lock_ends_no_guard() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    let lock = one.lock("a").lease(Duration::from_secs(600));
    let guard = lock.acquire().await.expect("free");
    crate::support::wait::listened(&server, 1).await;
    let key = &server.keys("hr:{*}:lock:a").await[0];
    let value: String = server.run(&["GET", key]).await;
    let id = value.split(' ').nth(2).expect("the holder's id");
    let wake: Vec<String> = server.run(&["PUBSUB", "SHARDCHANNELS"]).await;
    let forged = format!("broken {id}");
    let renewals = async || calls(&server, &["pexpire"]).await;
    for _ in 0..3 {
        let before = renewals().await;
        let heard: u64 = server.run(&["SPUBLISH", &wake[0], &forged]).await;
        assert_eq!(heard, 1);
        bounded("the server is asked", async {
            while renewals().await == before && guard.is_held() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(guard.is_held());
    }
    assert!(two.lock("a").break_lock().await.expect("an answer"));
    let reason = bounded("the holder is told", guard.lost()).await;
    assert_eq!(reason, hedgerow::lock::LossReason::Broken);
}

#[tokio::test]
async fn a_client_without_pushes_waits_by_timer() {
    let server = Server::start_single().await;
    let one = Client::from_connection(connection(server.url()).await);
    let two = Client::from_connection(connection(server.url()).await);
    let guard = one.lock("a").acquire().await.expect("free");
    let fence = guard.fence();
    let waiter =
        tokio::spawn(async move { two.lock("a").wait(Duration::from_secs(60)).acquire().await });
    asked_again_and_again(&server).await;
    guard.release().await.expect("held until now");
    let guard = waiter.await.expect("no panic").expect("granted");
    assert!(guard.fence() > fence);
    guard.release().await.expect("held until now");
}

#[tokio::test]
async fn a_client_without_pushes_gets_the_lock_in_its_turn() {
    let server = Server::start_single().await;
    let (holder, third) = (server.client().await, server.client().await);
    let second = Client::from_connection(connection(server.url()).await);
    let lock = holder.lock("a").lease(Duration::from_secs(600));
    let guard = lock.acquire().await.expect("free");
    let ages = Duration::from_secs(600);
    let second = second.lock("a").wait(ages).metadata("second");
    let second = tokio::spawn(async move { second.acquire().await });
    queued(&lock, 1).await;
    let third = third.lock("a").wait(ages);
    let third = tokio::spawn(async move {
        let guard = third.acquire().await.expect("granted");
        guard.fence()
    });
    queued(&lock, 2).await;
    crate::support::wait::listened(&server, 1).await;

    guard.release().await.expect("held until now");
    let guard = bounded("the second is granted", second).await;
    let guard = guard.expect("no panic").expect("granted");
    let fence = guard.fence();
    guard.release().await.expect("held until now");
    let later = bounded("the third is granted", third).await;
    assert!(later.expect("no panic") > fence, "one after the other");
}

#[tokio::test]
async fn a_waiter_whose_push_connection_is_refused_asks_by_timer_meanwhile() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let lock = one.lock("a").lease(Duration::from_secs(600));
    let guard = lock.acquire().await.expect("free");
    let fence = guard.fence();
    crate::support::wait::listened(&server, 1).await;
    two.ping().await.expect("an answer");
    // Room for what is connected: the administrator, the holder's two and the waiter's one.
    let _: () = server.run(&["CONFIG", "SET", "maxclients", "4"]).await;
    let waiter = tokio::spawn(async move {
        let lock = two.lock("a").wait(Duration::from_secs(60));
        lock.acquire().await
    });
    asked_again_and_again(&server).await;
    guard.release().await.expect("held until now");
    let guard = waiter.await.expect("no panic").expect("granted");
    assert!(guard.fence() > fence);
    guard.release().await.expect("held until now");
}

/// Waits for more script calls than one waiter makes in a minute that waits for its client's
/// deadline before each.
async fn asked_again_and_again(server: &Server) {
    let before = calls_and_seconds(server).await.0;
    until("the waiter asks again and again", || async {
        calls_and_seconds(server).await.0 > before + 15.0
    })
    .await;
}

/// Replicas pass on what a script publishes, and a waiter may still listen at one that was the
/// primary.
#[tokio::test]
async fn a_grant_is_told_only_when_it_is_made() {
    let server = Server::start_single().await;
    let holder = server.client().await;
    let guard = holder.lock("a").acquire().await.expect("free");
    let waiter = Child::start("hold", &[server.url(), "a", "60000"]);
    queued(&holder.lock("a"), 1).await;
    // It does nothing any more, and its place becomes that of a process that nobody listens for.
    waiter.signal("STOP");
    let mut admin = connection(server.url()).await;
    let key = &server.keys("hr:{*}:queue:a").await[0];
    let place: String = server.run(&["HGET", key, "1"]).await;
    let mut words: Vec<&str> = place.split(' ').collect();
    assert_eq!(words[4].len(), 33, "the place names a process: {place}");
    let nobody = format!("2{}", "f".repeat(32));
    words[4] = &nobody;
    let mut change = redis::cmd("HSET");
    change.arg(key).arg("1").arg(words.join(" "));
    let _: usize = change.query_async(&mut admin).await.expect("changed");

    let monitor = Monitor::start(&server).await;
    guard.release().await.expect("held until now");
    let seen = monitor.of_scripts(&server).await;
    assert!(seen.iter().any(|line| line.contains("there")), "{seen:?}");
    assert!(!seen.iter().any(|line| line.contains("grant ")), "{seen:?}");
    let free = holder.lock("a").try_acquire().await.expect("an answer");
    assert!(free.is_some(), "it was granted to nobody");
}

#[tokio::test]
async fn pushes_are_heard_where_an_address_leads_after_its_server_became_a_replica() {
    let (old, new) = (Recipe::new().start().await, Recipe::new().start().await);
    let way = old.directory().join("way");
    symlink(old.socket(), &way).expect("a link");
    let builder = || Client::builder().url(&format!("unix://{}", way.display()));
    let (one, two) = (
        patient(builder()).open().expect("a good URL"),
        patient(builder()).open().expect("a good URL"),
    );
    let hour = Duration::from_secs(3600);
    let listened = async |node: &Node| -> Vec<String> {
        node.run(&["PUBSUB", "SHARDCHANNELS", "hr:*:wake:*"]).await
    };
    let take_turns = async |told: &Node, channel: Option<String>| {
        let guard = one.lock("a").lease(hour).acquire().await.expect("free");
        let waiter = two.lock("a").wait(hour);
        let waiting = tokio::spawn(async move { waiter.acquire().await });
        until("the waiter listens there", async || {
            let heard = listened(told).await;
            channel
                .as_ref()
                .map_or(!heard.is_empty(), |it| heard.contains(it))
        })
        .await;
        let heard = listened(told).await.into_iter().next();
        guard.release().await.expect("released");
        let granted = bounded("the waiter is granted the lock", waiting).await;
        let granted = granted.expect("no panic").expect("granted");
        granted.release().await.expect("released");
        heard
    };
    let channel = take_turns(&old, None).await;

    old.run::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    std::fs::remove_file(&way).expect("it was there");
    symlink(new.socket(), &way).expect("a link");
    take_turns(&new, channel).await;
}

/// `break_lock` has reached nobody, and the next renewal is far.
#[tokio::test]
async fn a_holder_whose_push_connection_was_lost_is_told_of_what_it_has_missed() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let ages = Duration::from_secs(600);
    let guard = client.lock("a").lease(ages).acquire().await;
    let guard = guard.expect("free");
    until("the holder listens, and has asked since", async || {
        calls(&server, &["pexpire"]).await > 0
    })
    .await;
    let subscribing = proxy.on(Request::every().named("SSUBSCRIBE"), Act::Hold);
    assert!(server.kill_connections("hedgerow-push").await > 0);
    subscribing.hit().await;
    let other = server.client().await;
    assert!(other.lock("a").break_lock().await.expect("an answer"));
    assert!(guard.is_held(), "nobody has told");
    proxy.clear();
    subscribing.deliver();
    let reason = bounded("the holder asks", guard.lost()).await;
    assert_eq!(reason, LossReason::Taken);
}
