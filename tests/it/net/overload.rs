//! More calls than a server takes: what waits is bounded, the excess is refused at once, and what
//! must not be lost in a flood is not.

use std::future::IntoFuture as _;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::future::join_all;
use futures::poll;
use hedgerow::{Client, Compression, Counter, ErrorKind, counter::Add};
use redis::Value;

use crate::support::process::Child;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, signal};
use crate::support::wait::{bounded, patient, renewed, until};

const MINUTE: Duration = Duration::from_secs(60);

/// A client that lets `calls` wait, connected.
async fn client(server: &Server, calls: usize) -> Client {
    let builder = patient(server.builder()).max_waiting(calls);
    let client = builder.open().expect("good settings");
    client.counter("views").add(0).await.expect("a connection");
    client
}

type Pending = Pin<Box<<Add as IntoFuture>::IntoFuture>>;

/// Holds back all writes from now on and makes calls until as many wait as may.
async fn flooded(server: &Server, counter: &Counter) -> Vec<Pending> {
    let _: Value = server.run(&["CLIENT", "PAUSE", "600000", "WRITE"]).await;
    let mut waiting: Vec<Pending> = Vec::new();
    // The first ones are under way; carriers take what comes next until both are.
    loop {
        let mut call = Box::pin(counter.add(1).into_future());
        if let Poll::Ready(outcome) = poll!(&mut call) {
            let error = outcome.expect_err("nothing is answered");
            assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
            break;
        }
        waiting.push(call);
        assert!(waiting.len() < 10_000, "nothing is refused");
        tokio::task::yield_now().await;
    }
    waiting
}

async fn unpause(server: &Server) {
    let _: Value = server.run(&["CLIENT", "UNPAUSE"]).await;
}

#[tokio::test]
async fn calls_beyond_the_limit_are_refused_at_once_and_the_others_are_served() {
    let server = Server::start_single().await;
    let client = client(&server, 100).await;
    let counter = client.counter("views");
    let waiting = flooded(&server, &counter).await;
    assert!(waiting.len() >= 100, "{} calls wait", waiting.len());
    for _ in 0..1_000 {
        // Polled once: nothing is tried again inside.
        let mut call = pin!(counter.add(1).into_future());
        let Poll::Ready(Err(error)) = poll!(&mut call) else {
            panic!("it is refused at once");
        };
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
        assert!(error.is_retryable() && !error.is_indeterminate());
    }
    unpause(&server).await;
    let accepted = waiting.len() as i64;
    for added in bounded("the others are served", join_all(waiting)).await {
        added.expect("added");
    }
    assert_eq!(counter.get().await.expect("read"), accepted);
    // Nobody takes the server for out.
    let found = client.cache("c").get::<i64>("k").await;
    assert_eq!(found.expect("served"), None);
}

#[tokio::test]
async fn calls_beyond_the_limit_of_bytes_are_refused_at_once_and_the_others_are_served() {
    let server = Server::start_single().await;
    let builder = patient(server.builder()).max_waiting_bytes(10_000);
    let client = builder.open().expect("good settings");
    let counter = client.counter("views");
    counter.add(0).await.expect("a connection");
    let waiting = flooded(&server, &counter).await;
    let mut call = pin!(counter.add(1).into_future());
    let Poll::Ready(Err(error)) = poll!(&mut call) else {
        panic!("it is refused at once");
    };
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert!(error.to_string().contains("max_waiting_bytes"), "{error}");
    unpause(&server).await;
    let accepted = waiting.len() as i64;
    for added in bounded("the others are served", join_all(waiting)).await {
        added.expect("added");
    }
    assert_eq!(counter.get().await.expect("read"), accepted);
}

#[tokio::test]
async fn a_caller_that_leaves_makes_room_for_another() {
    let server = Server::start_single().await;
    let client = client(&server, 10).await;
    let counter = client.counter("views");
    let mut waiting = flooded(&server, &counter).await;
    for _ in 0..3 {
        drop(waiting.pop());
        let mut call = Box::pin(counter.add(1).into_future());
        assert!(poll!(&mut call).is_pending(), "there is room for it");
        waiting.push(call);
        let mut call = Box::pin(counter.add(1).into_future());
        assert!(poll!(&mut call).is_ready(), "and for no other");
    }
    unpause(&server).await;
    let accepted = waiting.len() as i64;
    bounded("the others are served", join_all(waiting)).await;
    assert_eq!(counter.get().await.expect("read"), accepted);
}

#[tokio::test]
async fn releases_and_invalidations_have_room_in_a_flood() {
    let server = Server::start_single().await;
    let client = client(&server, 80).await;
    let (cache, counter) = (client.cache("c"), client.counter("views"));
    cache.set("k", &1, MINUTE).await.expect("stored");
    let guard = client.lock("job").acquire().await.expect("free");
    let waiting = flooded(&server, &counter).await;
    let mut remove = Box::pin(cache.remove("k"));
    let mut invalidate = Box::pin(cache.invalidate_tags(["t"]).into_future());
    let mut release = Box::pin(guard.release());
    assert!(poll!(&mut remove).is_pending(), "it has a place");
    assert!(poll!(&mut invalidate).is_pending(), "it has a place");
    assert!(poll!(&mut release).is_pending(), "it has a place");
    let mut set = Box::pin(cache.set("k", &2, MINUTE).into_future());
    let Poll::Ready(Err(error)) = poll!(&mut set) else {
        panic!("it is refused at once");
    };
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    unpause(&server).await;
    bounded("the others are served", join_all(waiting)).await;
    remove.await.expect("removed");
    invalidate.await.expect("invalidated");
    release.await.expect("released");
    assert_eq!(cache.get::<i32>("k").await.expect("read"), None);
}

#[tokio::test]
async fn small_calls_have_room_however_many_large_values_wait() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).max_waiting(80).open();
    let client = client.expect("good settings");
    let cache = client.cache("c").compression(Compression::None);
    let (counter, large) = (client.counter("views"), vec![b'a'; 70 << 10]);
    cache.set("k", &large, MINUTE).await.expect("stored");
    counter.add(1).await.expect("added");
    let held = proxy.on(Request::every().above(64 << 10), Act::Hold);
    let (mut waiting, refused) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
    let flood = async {
        while refused.load(Ordering::SeqCst) < 20 {
            let (cache, large, refused) = (cache.clone(), large.clone(), refused.clone());
            waiting.push(tokio::spawn(async move {
                let Err(error) = cache.set("k", &large, MINUTE).await else {
                    return;
                };
                assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
                refused.fetch_add(1, Ordering::SeqCst);
            }));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    bounded("no more are taken", flood).await;
    assert!(waiting.len() > 40, "only {} are taken", waiting.len());
    // The sets send small commands, too. On a busy machine these may fill their own room for once.
    until("small calls are answered", async || {
        counter.get().await.is_ok()
    })
    .await;
    // The first goes at once, the others must wait.
    let adds = join_all((0..8).map(|_| counter.add(1).into_future()));
    for added in bounded("there is room", adds).await {
        added.expect("small calls do not wait for large ones");
    }
    held.deliver();
    for set in bounded("the others are served", join_all(waiting)).await {
        set.expect("no panic");
    }
}

#[tokio::test]
async fn a_lock_is_kept_through_a_flood() {
    let server = Server::start_single().await;
    let client = client(&server, 8).await;
    let lease = Duration::from_secs(2);
    let guard = client.lock("job").lease(lease).acquire().await;
    let guard = guard.expect("free");
    let held = server.keys("hr:{*}:lock:job").await;
    let flood: Vec<_> = (0..200)
        .map(|number| {
            let counter = client.counter(&format!("views {number}"));
            tokio::spawn(async move {
                let mut refused = 0;
                loop {
                    match counter.add(1).await {
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::Overloaded => refused += 1,
                        Err(error) => panic!("{error}"),
                    }
                    if refused > 1_000 {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    renewed(&server, &held[0], 3).await;
    assert!(guard.is_held(), "{:?}", guard.loss());
    for task in flood {
        task.abort();
    }
}

#[tokio::test]
async fn a_load_that_failed_since_its_process_calls_too_much_is_not_remembered_for_others() {
    let server = Server::start_single().await;
    let flooding = client(&server, 10).await.counter("views");
    let waiting = flooded(&server, &flooding).await;
    let refused = flooding.add(1).await.expect_err("too much waits");
    assert_eq!(refused.kind(), ErrorKind::Overloaded, "{refused}");
    unpause(&server).await;
    bounded("the others are served", join_all(waiting)).await;
    let cache = server.client().await.cache("c").error_ttl(MINUTE);
    let load = cache.memoize("k", MINUTE, async move || Err::<u8, _>(refused));
    let error = load.await.expect_err("the loader has failed");
    assert_eq!(error.kind(), ErrorKind::Loader, "{error}");
    let other = server.client().await.cache("c");
    let load = other.memoize("k", MINUTE, async || Ok::<_, hedgerow::Error>(1u8));
    assert_eq!(*load.await.expect("it may well succeed"), 1);
}

/// The figure: what 100,000 callers hold on a server that has stopped.
#[tokio::test]
async fn a_hundred_thousand_callers_of_a_stopped_server_hold_less_than_100_mb() {
    let server = Server::start_single().await;
    let mut crowd = Child::start("crowd", &[server.url(), "100000"]);
    assert_eq!(crowd.says().await, "ready");
    let pid = server.pid().await;
    signal(pid, "STOP");
    crowd.tell("go").await;
    let said = crowd.says().await;
    signal(pid, "CONT");
    let figures: Vec<u64> = said.split(' ').filter_map(|it| it.parse().ok()).collect();
    let [refused, kilobytes] = figures[..] else {
        panic!("{said}");
    };
    // The others wait, are under way, or have been told that the connection was given up.
    assert!(refused >= 75_000, "{said}");
    assert!(kilobytes < 100 << 10, "{said}");
}
