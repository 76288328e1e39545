//! Values that the server may not take: they are sent by themselves, end nobody else's call, and
//! are told as too large only where they are the cause.

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::poll;
use hedgerow::{Cache, Client, Compression, ErrorKind};

use crate::support::proxy::{Act, Proxy, Request, Rule};
use crate::support::server::Server;
use crate::support::wait::{bounded, patient, until};

const MINUTE: Duration = Duration::from_secs(60);

/// What the proxy lets pass: it stands for a server with this `proto-max-bulk-len`, of which no
/// answer to a larger value is heard.
const LIMIT: usize = 3 << 20;

/// Ends the connection of each value above the limit.
fn limited(proxy: &Proxy) -> Rule {
    proxy.on(Request::every().above(LIMIT), Act::Reset)
}

#[tokio::test]
async fn a_value_above_the_limit_beside_steady_uploads_is_too_large_and_ends_no_other() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    limited(&proxy);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let cache = plain(&client);
    cache
        .set("k", &value(200 << 10), MINUTE)
        .await
        .expect("stored");
    let shared = connection(&server).await;
    let over = Arc::new(AtomicBool::new(false));
    let others = join_all((0..10).map(|number| {
        let (cache, counter, over) = (cache.clone(), client.counter("views"), over.clone());
        tokio::spawn(async move {
            let (name, other) = (format!("n{number}"), value(200 << 10));
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                cache.set(&name, &other, MINUTE).await?;
                counter.add(1).await?;
                rounds += 1;
            }
            Ok::<usize, hedgerow::Error>(rounds)
        })
    }));
    let others = tokio::spawn(others);
    // The smaller one is no less in doubt when it is lost, too.
    for size in [2 * LIMIT, LIMIT + 1, 2 * LIMIT] {
        let set = cache.set("huge", &value(size), MINUTE).await;
        let error = set.expect_err("it is above the limit");
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(!error.is_indeterminate(), "{error}");
        assert!(error.to_string().contains("proto-max-bulk-len"), "{error}");
    }
    over.store(true, Ordering::Relaxed);
    for rounds in bounded("all end", others).await.expect("no panic") {
        let rounds = rounds.expect("no panic").expect("the server takes it");
        assert!(rounds > 0);
    }
    assert_eq!(connection(&server).await, shared, "it is as it was");
}

#[tokio::test]
async fn a_value_that_was_lost_does_not_go_by_the_shared_connection() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let builder = proxy.builder().deadline(MINUTE);
    let client = builder.cache_deadline(Duration::from_secs(4)).open();
    let client = client.expect("a good URL");
    let cache = plain(&client);
    cache
        .set("k", &value(200 << 10), MINUTE)
        .await
        .expect("stored");
    let shared = connection(&server).await;
    let lost = limited(&proxy);
    proxy.on(Request::every().with("hedgerow-large"), Act::Reset);
    let set = cache.set("huge", &value(LIMIT + 1), MINUTE).await;
    let error = set.expect_err("there is no connection for it");
    assert_eq!(lost.hits(), 1, "it is sent once: {error}");
    assert_ne!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert!(!error.is_indeterminate(), "{error}");
    assert_eq!(connection(&server).await, shared, "it is as it was");
    // Others may go there.
    cache
        .set("k", &value(300 << 10), MINUTE)
        .await
        .expect("stored");
    proxy.clear();
    cache
        .set("huge", &value(LIMIT + 1), MINUTE)
        .await
        .expect("the server takes it");
    assert_eq!(connection(&server).await, shared, "it is as it was");
}

#[tokio::test]
async fn two_lost_connections_do_not_make_a_value_too_large() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let cache = plain(&client);
    cache
        .set("k", &value(200 << 10), MINUTE)
        .await
        .expect("stored");
    let lost = [1, 2].map(|nth| proxy.on(Request::nth(nth).above(LIMIT), Act::Reset));
    cache
        .set("huge", &value(LIMIT + 1), MINUTE)
        .await
        .expect("the server takes it");
    for rule in lost {
        assert_eq!(rule.hits(), 1);
    }
    let found: Option<Arc<Bytes>> = cache.get("huge").await.expect("read");
    assert_eq!(found.expect("it is there").len(), LIMIT + 1);
}

#[tokio::test]
async fn connections_that_were_given_up_as_silent_do_not_make_a_value_too_large() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let builder = proxy.builder().deadline(MINUTE).cache_deadline(MINUTE);
    let cache = plain(&builder.open().expect("a good URL"));
    cache
        .set("k", &value(200 << 10), MINUTE)
        .await
        .expect("stored");
    // As small as may be in doubt: how long a sign of life may take is measured by what is sent.
    let least = 1 << 20;
    let lost = [1, 2, 3].map(|nth| proxy.on(Request::nth(nth).above(least), Act::Vanish));
    let set = cache.set("huge", &value(least), MINUTE).await;
    set.expect("the server takes it");
    for rule in lost {
        assert_eq!(rule.hits(), 1);
    }
}

#[tokio::test]
async fn a_trial_that_is_kept_and_not_polled_stands_in_nobodys_way() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let cache = plain(&client);
    cache
        .set("k", &value(200 << 10), MINUTE)
        .await
        .expect("stored");
    let lost = proxy.on(Request::nth(1).above(LIMIT), Act::Reset);
    let (one, other) = (value(LIMIT + 1), value(LIMIT + 1));
    let mut kept = cache.set("kept", &one, MINUTE).into_future();
    bounded("it is lost", async {
        while lost.hits() == 0 {
            assert!(poll!(&mut kept).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let alone = proxy.on(Request::every().named("PING"), Act::Delay(Duration::ZERO));
    bounded("it is its turn", async {
        while alone.hits() == 0 {
            assert!(poll!(&mut kept).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let set = bounded("the next", cache.set("next", &other, MINUTE).into_future());
    set.await.expect("the server takes it");
    bounded("it goes on", kept)
        .await
        .expect("the server takes it");
}

#[tokio::test]
async fn values_that_are_refused_one_after_the_other_open_no_breaker() {
    let server = Server::start_single().await;
    // Else questions of where the connection leads would be answered in between.
    server
        .run::<()>(&["ACL", "SETUSER", "default", "-info"])
        .await;
    let proxy = Proxy::before(&server);
    let lost = limited(&proxy);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let cache = plain(&client);
    cache
        .set("k", &value(200 << 10), MINUTE)
        .await
        .expect("stored");
    // Each is smaller, so that it is sent beside others at first. The breaker looks at failures of
    // half a second.
    for size in (1..=4).rev() {
        let before = lost.hits();
        let huge = value(LIMIT + size);
        let error = cache.set("huge", &huge, MINUTE).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(lost.hits() > before, "it was sent");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut stored = Vec::new();
    for _ in 0..3 {
        stored.push(cache.set("k", &value(300 << 10), MINUTE).await);
    }
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    let list: String = server.run(&["CLIENT", "LIST"]).await;
    let mut large = list.lines().filter(|line| line.contains("-large "));
    assert!(
        large.any(|line| line.contains("cmd=set")),
        "not there:\n{list}"
    );
    until(
        "connections of values that were refused are closed",
        async || {
            let list: String = server.run(&["CLIENT", "LIST"]).await;
            list.lines().filter(|line| line.contains("-large ")).count() <= 1
        },
    )
    .await;
}

/// The id of the connection that everything but large values goes by.
async fn connection(server: &Server) -> String {
    let list: String = server.run(&["CLIENT", "LIST"]).await;
    let line = list.lines().find(|line| line.contains(" name=hedgerow "));
    let id = line.and_then(|line| line.split(' ').next());
    id.unwrap_or_else(|| panic!("none:\n{list}")).to_owned()
}

fn plain(client: &Client) -> Cache {
    client.cache("c").compression(Compression::None)
}

fn value(bytes: usize) -> Bytes {
    vec![b'a'; bytes].into()
}
