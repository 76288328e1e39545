//! Two ways to a client: `open` asks nobody, `connect` returns when the servers have answered.

use std::sync::LazyLock;
use std::time::Duration;

use hedgerow::{Client, ClientBuilder, ErrorKind};
use redis::Value;

use crate::support::server::{Server, connection};
use crate::support::topology::{Cluster, Port, Recipe};
use crate::support::wait::{bounded, until};

const HOUR: Duration = Duration::from_secs(3600);

/// How long a client tries that is served by nobody.
const SOON: Duration = Duration::from_millis(300);

/// Where nobody listens.
const NOBODY: &str = "redis://127.0.0.1:1";

#[test]
fn open_needs_neither_a_server_nor_a_runtime() {
    static CLIENT: LazyLock<Client> =
        LazyLock::new(|| Client::open(NOBODY).expect("the URL is well formed"));

    assert!(format!("{:?}", *CLIENT).contains("127.0.0.1:1"));
    let builder = Client::builder;
    for builder in [
        builder().url(NOBODY),
        builder().cluster([NOBODY]),
        builder().shards([("a", NOBODY, 1), ("b", "redis://127.0.0.1:2", 1)]),
        builder().replicas(NOBODY, [NOBODY]),
        builder().sentinels([NOBODY], "shop"),
    ] {
        let client = builder.deadline(SOON).open().expect("nobody is asked");
        // What is made of it asks nobody either.
        let _ = (client.cache("c"), client.lock("l"), client.counter("c"));
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let error = runtime.block_on(client.ping()).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    }
}

#[tokio::test]
async fn connect_fails_when_nobody_answers() {
    for builder in [
        Client::builder().url(NOBODY),
        Client::builder().cluster([NOBODY]),
        Client::builder().shards([("a", NOBODY, 1)]),
        Client::builder().sentinels([NOBODY], "shop"),
    ] {
        let of_sentinels = format!("{builder:?}").contains("Sentinels");
        let connecting = builder.deadline(SOON).connect();
        let error = bounded("it gives up", connecting).await;
        let error = error.expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        let named = error.to_string().contains("127.0.0.1:1");
        // Where no sentinel has named a primary there is none to tell of.
        assert!(named || of_sentinels, "{error}");
    }
}

#[tokio::test]
async fn connect_waits_for_a_server_that_comes_up_in_time() {
    let mut server = Server::start_single().await;
    let killed = server.kill().await;
    let url = server.url().to_owned();
    let connecting = tokio::spawn(Client::builder().url(&url).deadline(HOUR).connect());
    // It has been refused by then, or is about to be.
    tokio::task::yield_now().await;
    server.start_again(killed).await;
    let client = bounded("it connects", connecting).await;
    let client = client.expect("no panic").expect("the server answers");
    assert_eq!(
        client.counter("views").add(1).await.expect("added").value,
        1
    );
}

#[tokio::test]
async fn connect_fails_at_once_when_the_credentials_are_wrong() {
    let server = Server::start_single().await;
    let _: Value = server.run(&["CONFIG", "SET", "requirepass", "right"]).await;
    let with = |url: String| Client::builder().url(&url).deadline(HOUR);
    for (builder, word) in [
        (with(server.url().to_owned()), "NOAUTH"),
        (with(format!("{}?pass=wrong", server.url())), "WRONGPASS"),
    ] {
        let error = bounded("it is told at once", builder.connect()).await;
        let error = error.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    let right = with(format!("{}?pass=right", server.url()));
    bounded("it is let in", right.connect())
        .await
        .expect("right");
}

#[tokio::test]
async fn of_shards_each_must_answer() {
    let servers = [Server::start_single().await, Server::start_single().await];
    let build = || {
        let shards = [("a", servers[0].url(), 1), ("b", servers[1].url(), 1)];
        Client::builder()
            .shards(shards)
            .deadline(Duration::from_secs(2))
    };
    build().connect().await.expect("both are there");
    servers[1].kill().await;
    let error = build().connect().await.expect_err("one is not");
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("shard \"b\""), "{error}");
}

#[tokio::test]
async fn of_a_cluster_one_primary_is_enough() {
    let cluster = Cluster::start(3, 0).await;
    cluster.nodes()[0].kill().await;
    let seeds: Vec<String> = cluster.nodes().iter().map(|node| node.url()).collect();
    let builder = Client::builder().cluster(seeds).deadline(HOUR);
    bounded("one answers", builder.connect())
        .await
        .expect("two are left");
}

#[tokio::test]
async fn a_connection_that_is_brought_takes_settings_too() {
    let server = Server::start_single().await;
    let brought = connection(server.url()).await;
    let build = |builder: ClientBuilder| builder.connection(brought.clone()).namespace("shop");
    let client = build(Client::builder())
        .connect()
        .await
        .expect("it answers");
    client.counter("views").add(1).await.expect("added");
    let mut keys = server.keys("*").await;
    keys.sort();
    assert_eq!(keys, ["shop:c:{views}", "shop:f:{counter}"]);
    let error = build(Client::builder()).namespace("").open();
    assert_eq!(error.expect_err("refused").kind(), ErrorKind::InvalidInput);
    // The driver that it is made with is at hand.
    let _: hedgerow::redis::aio::MultiplexedConnection = brought;
}

#[tokio::test]
async fn what_a_url_says_is_heeded_or_refused() {
    let node = Recipe::new().on(Port::free()).start().await;
    let place = node.url();
    let client = Client::connect(&format!("{place}?db=3"))
        .await
        .expect("it answers");
    client.counter("views").add(1).await.expect("added");
    until("it is in that database", async || {
        let info: String = node.run(&["INFO", "keyspace"]).await;
        info.contains("db3:keys=2")
    })
    .await;

    let user = ["ACL", "SETUSER", "app", "on", ">app", "~*", "&*", "+@all"];
    let _: Value = node.run(&user).await;
    let host = place.trim_start_matches("redis://");
    for url in [
        format!("{place}?username=app&password=app"),
        format!("redis://app:app@{host}"),
    ] {
        let client = Client::connect(&url).await.expect("it answers");
        client.counter("views").add(1).await.expect("added");
        let clients: String = node.run(&["CLIENT", "LIST"]).await;
        assert!(clients.contains("user=app"), "{url}: {clients}");
        drop(client);
        until("it has left", async || {
            let clients: String = node.run(&["CLIENT", "LIST"]).await;
            !clients.contains("user=app")
        })
        .await;
    }
    for (url, word) in [
        (format!("redis://app@{host}"), "no password"),
        (format!("{place}?socket_timeout=3"), "`socket_timeout`"),
    ] {
        let error = Client::open(&url).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(word), "{error}");
    }
    #[cfg(feature = "tls")]
    for url in [format!("{place}?tls=required"), format!("{place}?ssl=true")] {
        let builder = Client::builder().url(&url).deadline(SOON);
        let error = builder.connect().await.expect_err("it speaks none");
        assert!(error.to_string().contains("TLS"), "{error}");
    }
}
