//! What single calls may be told: how long they may take, and what they do while a server is out.

use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::poll;
use hedgerow::{Cache, Client, Error, ErrorKind, OnOutage, Outage};

use crate::support::server::{Server, signal};
use crate::support::wait::{patient, until};

const MINUTE: Duration = Duration::from_secs(60);
const HURRY: Duration = Duration::from_millis(100);

/// A client that waits for long, connected to a server that is then frozen.
async fn frozen() -> (Server, Client, Resumed) {
    let server = Server::start_single().await;
    let client = patient(server.builder()).open().expect("a good URL");
    client.counter("views").add(0).await.expect("connected");
    let cache = client.cache("c");
    cache.set("k", &1, MINUTE).await.expect("stored");
    let pid = server.pid().await;
    signal(pid, "STOP");
    (server, client, Resumed(pid))
}

/// Lets the server go on, however the test ends.
struct Resumed(u32);

impl Drop for Resumed {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

async fn load() -> Result<i32, Infallible> {
    Ok(7)
}

/// Every verb, told to hurry.
async fn hurried(client: &Client) -> Vec<(&'static str, Error)> {
    let (counter, cache) = (client.counter("views"), client.cache("c"));
    let lock = client.lock("job").deadline(HURRY);
    let once = counter.add(1).once("event", MINUTE);
    let errors = [
        ("add", counter.add(1).deadline(HURRY).await.err()),
        ("once", once.deadline(HURRY).await.err()),
        ("read", counter.get().deadline(HURRY).await.err()),
        ("set", counter.set(1).deadline(HURRY).await.err()),
        ("take", counter.take().deadline(HURRY).await.err()),
        ("get", cache.get::<i32>("k").deadline(HURRY).await.err()),
        (
            "store",
            cache.set("k", &2, MINUTE).deadline(HURRY).await.err(),
        ),
        (
            "memoize",
            cache.memoize("k", MINUTE, load).deadline(HURRY).await.err(),
        ),
        ("remove", cache.remove("k").deadline(HURRY).await.err()),
        (
            "invalidate",
            cache.invalidate_tags(["t"]).deadline(HURRY).await.err(),
        ),
        ("clear", cache.clear().deadline(HURRY).await.err()),
        ("acquire", lock.acquire().await.err()),
        ("try_acquire", lock.try_acquire().await.err()),
        ("inspect", lock.inspect().await.err()),
        ("break", lock.break_lock().await.err()),
    ];
    let told = |(verb, error): (&'static str, Option<Error>)| {
        (
            verb,
            error.unwrap_or_else(|| panic!("{verb} is not answered")),
        )
    };
    errors.into_iter().map(told).collect()
}

#[tokio::test]
async fn each_call_gives_up_at_its_own_deadline() {
    let (_server, client, _resumed) = frozen().await;
    let began = Instant::now();
    for (verb, error) in hurried(&client).await {
        assert!(error.kind().is_outage(), "{verb}: {error}");
    }
    // The client would wait for 20 s, and so would each of fifteen calls.
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
}

/// Asks until the breaker is open.
async fn open_breaker(cache: &Cache) {
    until("the breaker opens", async || {
        let error = cache.get::<i32>("k").deadline(HURRY).await;
        error.expect_err("frozen").kind() == ErrorKind::CircuitOpen
    })
    .await;
}

/// Calls until the call is refused when it is first polled; some find out whether the server is
/// back.
macro_rules! refused_at_once {
    ($what:literal, $call:expr) => {
        until($what, async || {
            let mut call = pin!($call);
            match poll!(&mut call) {
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::CircuitOpen => true,
                Poll::Ready(outcome) => panic!("{}: {:?}", $what, outcome.err()),
                Poll::Pending => {
                    call.await.err().expect("frozen");
                    false
                }
            }
        })
        .await
    };
}

#[tokio::test]
async fn a_call_that_fails_fast_is_refused_at_once_while_the_breaker_is_open() {
    let (_server, client, _resumed) = frozen().await;
    let (counter, cache) = (client.counter("views"), client.cache("c"));
    open_breaker(&cache).await;
    refused_at_once!(
        "add",
        counter.add(1).fail_fast().deadline(HURRY).into_future()
    );
    refused_at_once!("read", counter.get().fail_fast().deadline(HURRY));
    refused_at_once!("set", counter.set(1).fail_fast().deadline(HURRY));
    refused_at_once!("take", counter.take().fail_fast().deadline(HURRY));
    let lock = client.lock("job").fail_fast().deadline(HURRY);
    refused_at_once!("acquire", lock.acquire());
    refused_at_once!("try_acquire", lock.try_acquire());
    refused_at_once!("inspect", lock.inspect());
    // The others go on trying.
    for _ in 0..3 {
        let error = counter.add(1).deadline(HURRY).await.expect_err("frozen");
        assert_ne!(error.kind(), ErrorKind::CircuitOpen, "{error}");
    }
}

#[tokio::test]
async fn what_takes_something_out_of_a_cache_keeps_trying_whatever_it_is_told() {
    let (_server, client, _resumed) = frozen().await;
    let cache = client.cache("c").outage(Outage::Bypass);
    let cache = cache.on_outage(OnOutage::FailFast);
    open_breaker(&client.cache("c")).await;
    for _ in 0..3 {
        for outcome in [
            cache.remove("k").fail_fast().deadline(HURRY).await,
            cache.clear().deadline(HURRY).await,
            cache.invalidate_tags(["t"]).deadline(HURRY).await,
        ] {
            let error = outcome.expect_err("frozen");
            assert_ne!(error.kind(), ErrorKind::CircuitOpen, "{error}");
        }
    }
}

#[tokio::test]
async fn a_client_has_its_own_defaults() {
    let (server, client, _resumed) = frozen().await;
    drop(client);
    let builder = server.builder().deadline(HURRY).cache_deadline(HURRY);
    let client = builder
        .on_outage(OnOutage::FailFast)
        .cache_on_outage(OnOutage::KeepTrying)
        .open()
        .expect("good settings");
    let (counter, cache) = (client.counter("views"), client.cache("c"));
    until("the counter is refused", async || {
        let error = counter.add(1).await.expect_err("frozen");
        error.kind() == ErrorKind::CircuitOpen
    })
    .await;
    for _ in 0..3 {
        let error = cache.get::<i32>("k").await.expect_err("frozen");
        assert_ne!(error.kind(), ErrorKind::CircuitOpen, "{error}");
    }
    // A call says otherwise, and so does a cache.
    let keeps = counter.add(1).on_outage(OnOutage::KeepTrying);
    let error = keeps.await.expect_err("frozen");
    assert_ne!(error.kind(), ErrorKind::CircuitOpen, "{error}");
    let hasty = cache.clone().on_outage(OnOutage::FailFast);
    refused_at_once!("get", hasty.get::<i32>("k"));
}
