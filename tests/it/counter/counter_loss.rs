//! Counters when replies are lost: nothing is counted twice, and nobody is told a guess.

use std::time::Duration;

use hedgerow::{Client, ErrorKind};

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, signal};

const HOUR: Duration = Duration::from_secs(3600);

/// A connected client whose replies can be lost.
async fn lossy(server: &Server) -> (Proxy, Client) {
    let proxy = Proxy::before(server);
    let client = proxy.builder().open().expect("a good URL");
    // The scripts are known from here on: the reply that is lost is that of a call which ran.
    let counter = client.counter("other");
    counter.set(1).await.expect("set");
    counter.take().await.expect("taken");
    counter.add(1).saturating().await.expect("added");
    counter.add(1).once("request", HOUR).await.expect("added");
    (proxy, client)
}

#[tokio::test]
async fn an_add_whose_reply_is_lost_is_told_as_indeterminate_and_counted_once() {
    let server = Server::start_single().await;
    let (proxy, client) = lossy(&server).await;
    let counter = client.counter("views");
    for (count, add) in [counter.add(1), counter.add(1).saturating()]
        .into_iter()
        .enumerate()
    {
        proxy.lose_next_reply();
        let error = add.await.expect_err("the reply is lost");
        assert_eq!(error.kind(), ErrorKind::Disconnected);
        assert!(error.is_indeterminate());
        assert!(!error.is_retryable(), "nobody knows that it did not run");
        assert_eq!(proxy.lost(), count + 1);
        let value = counter.get().await.expect("a new connection");
        assert_eq!(value, count as i64 + 1);
    }
}

#[tokio::test]
async fn an_add_with_an_id_is_sent_again_when_its_reply_is_lost_and_counted_once() {
    let server = Server::start_single().await;
    let (proxy, client) = lossy(&server).await;
    let counter = client.counter("views");
    counter.add(10).await.expect("added");
    proxy.lose_next_reply();
    let added = counter.add(3).once("request", HOUR).await.expect("retried");
    assert_eq!((added.value, added.applied), (13, 3));
    assert_eq!(proxy.lost(), 1);
    assert_eq!(counter.get().await.expect("read"), 13);
}

#[tokio::test]
async fn an_add_that_is_sent_again_after_its_window_is_counted_once() {
    let server = Server::start_single().await;
    let (proxy, client) = lossy(&server).await;
    let counter = client.counter("views");
    let reply = proxy.on_reply(Request::any().named("EVALSHA"), Act::Vanish);
    // The connection is given up some seconds later.
    let added = counter
        .add(3)
        .once("request", Duration::from_millis(50))
        .deadline(Duration::from_secs(30))
        .await
        .expect("sent again");
    assert_eq!(reply.hits(), 1);
    assert_eq!((added.value, added.repeated), (3, false));
    assert_eq!(counter.get().await.expect("read"), 3);
}

#[tokio::test]
async fn the_record_of_a_call_with_an_id_has_an_end_whatever_its_deadline() {
    let server = Server::start_single().await;
    let counter = server.client().await.counter("views");
    let add = counter.add(3).once("request", Duration::from_millis(50));
    add.deadline(Duration::MAX).await.expect("added");
    for key in server.keys("hr:a:*").await {
        let left: i64 = server.run(&["PTTL", &key]).await;
        assert!(left <= 3_601_000, "{key} stays for {left} ms");
    }
}

#[tokio::test]
async fn an_indeterminate_add_with_an_id_can_be_made_again_and_is_counted_once() {
    let server = Server::start_single().await;
    let hasty = server.builder().deadline(Duration::from_secs(1));
    let hasty = hasty.open().expect("a good URL");
    hasty.counter("other").add(1).await.expect("connected");
    let pid = server.pid().await;
    signal(pid, "STOP");
    let lost = hasty.counter("views").add(3).once("request", HOUR).await;
    signal(pid, "CONT");
    let error = lost.expect_err("nobody answers");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.is_indeterminate());
    let counter = server.client().await.counter("views");
    let added = counter.add(3).once("request", HOUR).await.expect("added");
    assert_eq!((added.value, added.applied), (3, 3));
    assert_eq!(counter.get().await.expect("read"), 3);
}

#[tokio::test]
async fn a_set_or_take_whose_reply_is_lost_is_told_as_indeterminate_and_not_sent_again() {
    let server = Server::start_single().await;
    let (proxy, client) = lossy(&server).await;
    let counter = client.counter("views");
    proxy.lose_next_reply();
    let error = counter.set(7).await.expect_err("the reply is lost");
    assert!(error.is_indeterminate());
    assert_eq!(counter.get().await.expect("read"), 7);
    proxy.lose_next_reply();
    let error = counter.take().await.expect_err("the reply is lost");
    assert!(error.is_indeterminate());
    assert_eq!(counter.get().await.expect("read"), 0);
    proxy.lose_next_reply();
    assert_eq!(counter.get().await.expect("reads are sent again"), 0);
    assert_eq!(proxy.lost(), 3);
}
