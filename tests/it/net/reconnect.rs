//! Connections and servers that go and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Client, ErrorKind};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, connection};
use crate::support::wait::{bounded, figure, until};

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let server = Server::start().await;
    let client = server.client().await;
    client.ping().await.expect("an answer");
    let killed = server.kill_connections("hedgerow").await;
    assert_eq!(killed, server.sockets().len());
    client
        .ping()
        .await
        .expect("an answer over a new connection");
}

#[tokio::test]
async fn a_server_that_refuses_writes_is_not_connected_to_in_a_storm() {
    let server = Server::start_single().await;
    let builder = server.builder().deadline(Duration::from_secs(2));
    let client = builder.open().expect("a good URL");
    client.ping().await.expect("an answer");
    let _: redis::Value = server.run(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let before = connections(&server).await;
    let adders = (0..20).map(|_| async {
        let error = client.counter("views").add(1).await.expect_err("a replica");
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    });
    join_all(adders).await;
    let made = connections(&server).await - before;
    // Two seconds of pauses that double from 10 ms to 250 ms, none shorter than a quarter.
    assert!((2..=60).contains(&made), "{made} connections");
}

/// How many connections the server has taken.
async fn connections(server: &Server) -> usize {
    figure(server, "stats", "total_connections_received:").await
}

#[tokio::test]
async fn no_add_is_lost_or_counted_twice_while_connections_are_killed() {
    let server = Server::start().await;
    let client = server.client().await;
    let over = Arc::new(AtomicBool::new(false));
    let cut_short = Arc::new(AtomicBool::new(false));
    let adders: Vec<_> = (0..40)
        .map(|_| {
            let (counter, over) = (client.counter("views"), over.clone());
            let cut_short = cut_short.clone();
            tokio::spawn(async move {
                let (mut counted, mut unsure) = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    match counter.add(1).await {
                        Ok(_) => counted += 1,
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
                            assert!(error.is_indeterminate(), "{error}");
                            cut_short.store(true, Ordering::Relaxed);
                            unsure += 1;
                        }
                    }
                }
                (counted, unsure)
            })
        })
        .collect();
    bounded(
        "connections were killed, one of them while adds were under way",
        async {
            let mut kills = 0;
            while kills < 30 || !cut_short.load(Ordering::Relaxed) {
                kills += server.kill_connections("hedgerow").await;
            }
        },
    )
    .await;
    over.store(true, Ordering::Relaxed);
    let (mut counted, mut unsure) = (0, 0);
    for adder in adders {
        let one: (i64, i64) = adder.await.expect("no panic");
        (counted, unsure) = (counted + one.0, unsure + one.1);
    }
    let value = client.counter("views").get().await.expect("read");
    assert!(unsure > 0, "adds were under way");
    assert!(
        (counted..=counted + unsure).contains(&value),
        "{counted} {unsure} {value}"
    );
}

#[tokio::test]
async fn a_server_that_comes_back_serves_the_call_that_waited_and_is_told_the_scripts_again() {
    let mut server = Server::start_single().await;
    let minute = Duration::from_secs(60);
    let patient = server.builder().deadline(minute);
    let patient = patient.open().expect("a good URL");
    let counter = patient.counter("views");
    counter.add(5).once("before", minute).await.expect("added");
    let guard = patient.lock("invoice").acquire().await.expect("free");

    let killed = server.kill().await;
    let hasty = server.builder().deadline(Duration::from_millis(50));
    let hasty = hasty.open().expect("a good URL");
    let error = hasty.counter("views").add(1).await.expect_err("it is down");
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.is_retryable() && !error.is_indeterminate());

    let waiting = tokio::spawn(counter.add(1).once("during", minute).into_future());
    // A plain add is never sent twice, and here by a client that was never connected.
    let unconnected = server.builder().deadline(minute);
    let unconnected = unconnected.open().expect("a good URL");
    let plain = tokio::spawn(unconnected.counter("views").add(1).into_future());
    server.start_again(killed).await;
    let added = bounded("the server is found again", waiting).await;
    let value = added.expect("no panic").expect("added").value;
    assert!((1..=2).contains(&value), "{value}");
    let added = plain.await.expect("no panic").expect("added").value;
    assert!(
        (1..=2).contains(&added) && added != value,
        "{added} {value}"
    );
    assert_eq!(counter.get().await.expect("read"), 2);
    assert_eq!(
        guard.release().await.expect_err("gone").kind(),
        ErrorKind::Lost
    );
    let again = patient.lock("invoice").try_acquire().await;
    assert!(again.expect("an answer").is_some(), "free");
}

#[tokio::test]
async fn a_brought_connection_is_used_and_its_end_is_told() {
    let server = Server::start_single().await;
    for protocol in ["2", "3"] {
        let mut brought = connection(&format!("{}?protocol={protocol}", server.url())).await;
        let id: i64 = redis::cmd("CLIENT")
            .arg("ID")
            .query_async(&mut brought)
            .await
            .expect("an id");
        let client = Client::from_connection(brought);
        client.ping().await.expect("an answer");
        let counter = client.counter(protocol);
        assert_eq!(counter.add(2).await.expect("added").value, 2);
        let scripted = counter.add(1).saturating().await.expect("added");
        assert_eq!(scripted.value, 3);
        let guard = client.lock(protocol).acquire().await.expect("free");
        guard.release().await.expect("held");

        let killed: i64 = server.run(&["CLIENT", "KILL", "ID", &id.to_string()]).await;
        assert_eq!(killed, 1);
        let error = counter.add(1).await.expect_err("it is gone");
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
        for _ in 0..3 {
            let error = counter.add(1).await.expect_err("it stays gone");
            assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
            assert!(error.to_string().contains("bring a new one"), "{error}");
            assert!(!error.is_indeterminate() && !error.is_retryable());
        }
        let value: i64 = server.run(&["GET", &format!("hr:c:{{{protocol}}}")]).await;
        assert_eq!(value, 3);
    }
}

#[tokio::test]
async fn a_connection_that_has_fallen_silent_is_given_up_and_its_calls_end() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let ages = Duration::from_secs(3600);
    let client = proxy.builder().deadline(ages).open();
    let client = client.expect("a good URL");
    let counter = client.counter("views");
    assert_eq!(counter.add(1).await.expect("added").value, 1);

    let silence = proxy.on(Request::any().named("INCRBY"), Act::Vanish);
    // One goes by itself, the others together; none may be sent again.
    let adds = futures::future::join_all((0..5).map(|_| counter.add(1).into_future()));
    let asked = async { futures::join!(adds, counter.get()) };
    let (added, value) = bounded("the connection is given up", asked).await;
    for error in added.into_iter().map(|added| added.expect_err("unheard")) {
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
        assert!(error.is_indeterminate(), "{error}");
    }
    assert_eq!(value.expect("read over a new connection"), 1);
    assert_eq!(silence.hits(), 1);
}

#[tokio::test]
async fn callers_in_a_hurry_reach_a_server_that_is_slow_to_greet() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let slow = Act::Delay(Duration::from_millis(500));
    let greeting = proxy.on_reply(Request::every().named("HELLO"), slow);
    let hasty = proxy.builder().deadline(Duration::from_millis(50));
    let hasty = hasty.open().expect("a good URL");
    let error = hasty.ping().await.expect_err("it has not greeted yet");
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(
        error.to_string().contains("does not answer: timed out"),
        "{error}"
    );
    until("the greeting has come", async || hasty.ping().await.is_ok()).await;
    assert_eq!(greeting.hits(), 1, "one connection was made");

    // A caller that is dropped takes nothing with it either.
    let dropped = proxy.builder().open().expect("a good URL");
    let patience = Duration::from_millis(50);
    until("the greeting has come", async || {
        tokio::time::timeout(patience, dropped.ping()).await.is_ok()
    })
    .await;
    assert_eq!(greeting.hits(), 2, "one connection was made");
}

#[tokio::test]
async fn a_client_that_is_dropped_while_it_connects_leaves_no_socket() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = silent.local_addr().expect("it is bound").port();
    let hour = Duration::from_secs(3600);
    let url = format!("redis://127.0.0.1:{port}");
    let builder = Client::builder().url(&url).connect_timeout(hour);
    let client = builder.deadline(hour).open().expect("a good URL");
    let asks = tokio::spawn(async move { client.ping().await });
    let (mut socket, _) = bounded("it connects", silent.accept()).await.expect("open");
    let mut hello = [0; 5];
    socket.read_exact(&mut hello).await.expect("a greeting");
    asks.abort();
    let mut rest = Vec::new();
    let closed = bounded("its socket is closed", socket.read_to_end(&mut rest)).await;
    closed.expect("in good order");
}
