//! What a client believes of a cluster: whose word counts, and servers that are told without a
//! name.

use std::time::Duration;

use hedgerow::{Client, ErrorKind};

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::topology::{Cluster, Node, Port, Recipe, Sentinels};
use crate::support::wait::{patient, until};

const NAMES: usize = 60;

/// Adds one to each of many counters, in all parts of the slots.
async fn count(client: &Client) {
    for number in 0..NAMES {
        let counter = client.counter(&format!("views:{number}"));
        counter.add(1).await.expect("counted");
    }
}

/// How many keys a node has.
async fn keys(node: &Node) -> usize {
    node.run(&["DBSIZE"]).await
}

/// How many counters there are.
async fn all_counters(cluster: &Cluster) -> usize {
    let mut all = 0;
    for node in cluster.nodes() {
        let counters: Vec<String> = node.run(&["KEYS", "hr:c:*"]).await;
        all += counters.len();
    }
    all
}

/// A cluster that tells clients host names, which the first of its two primaries has, and the
/// second has not.
async fn half_named() -> Cluster {
    let cluster = Cluster::start(2, 0).await;
    let words = ["CONFIG", "SET", "cluster-announce-hostname", "localhost"];
    let _: String = cluster.nodes()[0].run(&words).await;
    for node in cluster.nodes() {
        let words = [
            "CONFIG",
            "SET",
            "cluster-preferred-endpoint-type",
            "hostname",
        ];
        let _: String = node.run(&words).await;
    }
    until("both know the name, and tell it", async || {
        for node in cluster.nodes() {
            let slots: redis::Value = node.run(&["CLUSTER", "SLOTS"]).await;
            let slots = format!("{slots:?}");
            if !slots.contains("localhost") || !slots.contains("'?'") && !slots.contains("\"?\"") {
                return false;
            }
        }
        true
    })
    .await;
    cluster
}

#[tokio::test]
async fn a_server_without_a_host_name_takes_nobody_along() {
    let cluster = half_named().await;
    let seeds = cluster.nodes().iter().map(Node::url);
    let client = Client::builder().cluster(seeds).open();
    count(&client.expect("good seeds")).await;
    for node in cluster.nodes() {
        assert!(keys(node).await > 0, "both serve their slots");
    }
}

#[tokio::test]
async fn a_redirect_to_a_server_without_a_host_name_is_looked_up() {
    let cluster = half_named().await;
    let seeds = cluster.nodes().iter().map(Node::url);
    let client = patient(Client::builder().cluster(seeds));
    let client = client.open().expect("good seeds");
    let (name, slot) = (0..)
        .map(|number| format!("views:{number}"))
        .map(|name| {
            (
                name.clone(),
                hedgerow::key::slot(format!("{{{name}}}").as_bytes()),
            )
        })
        .find(|(_, slot)| *slot < 8192)
        .expect("half of them are");
    let counter = client.counter(&name);
    counter.add(1).await.expect("counted where it is told");
    assert_eq!(cluster.owner_of(slot).await, 0);
    let migration = cluster.migrate(slot, 1).await;
    migration.carry_all().await;
    migration.finish().await;
    let words = ["GET", &format!("hr:c:{{{name}}}")];
    let moved = cluster.nodes()[0].try_run::<String>(&words).await;
    let moved = moved.expect_err("it has moved").to_string();
    assert!(moved.contains("?:"), "{moved}");
    assert_eq!(counter.add(1).await.expect("found").value, 2);
    assert_eq!(counter.get().await.expect("found"), 2);
}

/// A server that left a cluster long ago, cannot reach any of it, and takes itself for the primary
/// of these slots. What it knows of others is in `lines` of its configuration.
async fn stale(slots: &str, lines: &str) -> Node {
    let (port, bus) = (Port::free(), Port::free());
    let place = format!("127.0.0.1:{}@{}", port.number(), bus.number());
    let id = "0123456789".repeat(4);
    let conf = format!(
        "{id} {place} myself,master - 0 0 0 connected {slots}\n{lines}\
         vars currentEpoch 0 lastVoteEpoch 0\n"
    );
    let bus = bus.number().to_string();
    let node = Recipe::new()
        .on(port)
        .with(&["--cluster-enabled", "yes", "--cluster-port", &bus])
        .with(&["--cluster-announce-ip", "127.0.0.1"])
        .with(&["--cluster-node-timeout", "60000"])
        .file("nodes.conf", conf)
        .start()
        .await;
    until("it takes writes", async || {
        let info: String = node.run(&["CLUSTER", "INFO"]).await;
        info.contains("cluster_state:ok")
    })
    .await;
    node
}

#[tokio::test]
async fn the_first_answer_does_not_win_where_a_later_one_is_newer() {
    let cluster = Cluster::start(3, 0).await;
    let stale = stale("0-16383", "").await;
    let mut proxies = Vec::new();
    for node in &cluster.nodes()[..2] {
        let proxy = Proxy::before_node(node).await;
        let late = Act::Delay(Duration::from_millis(30));
        proxy.on_reply(Request::every().named("CLUSTER"), late);
        proxies.push(proxy);
    }
    let seeds = [stale.url()].into_iter();
    let seeds = seeds.chain(proxies.iter().map(|proxy| proxy.url().to_owned()));
    let client = patient(Client::builder().cluster(seeds));
    count(&client.open().expect("good seeds")).await;
    assert_eq!(keys(&stale).await, 0, "nobody asks the one that left");
    assert_eq!(all_counters(&cluster).await, NAMES);
}

#[tokio::test]
async fn the_primaries_that_a_lone_seed_names_are_asked_too() {
    let cluster = Cluster::start(3, 0).await;
    // It does not know that the first primary has taken its place.
    let mut lines = String::new();
    for (index, slots) in [(1, "5461-10921"), (2, "10922-16383")] {
        let (id, port, bus) = (
            cluster.id(index),
            cluster.nodes()[index].port(),
            Port::free(),
        );
        let place = format!("127.0.0.1:{port}@{}", bus.number());
        let epoch = index + 1;
        lines += &format!("{id} {place} master - 0 0 {epoch} connected {slots}\n");
    }
    let stale = stale("0-5460", &lines).await;
    let client = patient(Client::builder().cluster([stale.url()]));
    count(&client.open().expect("a good seed")).await;
    assert_eq!(keys(&stale).await, 0, "its place is taken");
    assert_eq!(all_counters(&cluster).await, NAMES);
}

#[tokio::test]
async fn servers_that_a_cluster_names_are_reached_where_the_address_map_says() {
    // Nobody listens where they say that they are.
    let (one, two) = (Port::free(), Port::free());
    let cluster = Cluster::start_announcing(&[one.number(), two.number()]).await;
    let told = [one.number(), two.number()].map(|port| format!("127.0.0.1:{port}"));
    let here: Vec<String> = cluster.nodes().iter().map(Node::address).collect();
    let table: Vec<_> = told.into_iter().zip(here).collect();
    let seeds = || cluster.nodes().iter().map(Node::url);
    let lost = Client::builder().cluster(seeds());
    let lost = lost.deadline(Duration::from_millis(300)).open();
    let error = lost.expect("good seeds").counter("views").get().await;
    assert!(error.is_err(), "that is nowhere");

    let client = patient(Client::builder().cluster(seeds())).address_map(table);
    let client = client.open().expect("a good table");
    count(&client).await;
    assert_eq!(all_counters(&cluster).await, NAMES);
    // A redirect names the same places.
    let counter = client.counter("views:0");
    let slot = hedgerow::key::slot(b"{views:0}");
    let migration = cluster
        .migrate(slot, 1 - cluster.owner_of(slot).await)
        .await;
    migration.carry_all().await;
    assert_eq!(counter.add(1).await.expect("follows ASK").value, 2);
    migration.finish().await;
    assert_eq!(counter.add(1).await.expect("follows MOVED").value, 3);
}

#[tokio::test]
async fn the_primary_that_sentinels_name_is_reached_where_the_address_map_says() {
    let sentinels = Sentinels::start().await;
    let mut ways = Vec::new();
    for node in sentinels.data().nodes() {
        let proxy = Proxy::before_node(node).await;
        let passing = Act::Delay(Duration::ZERO);
        let rule = proxy.on(Request::every().named("INCRBY"), passing);
        ways.push((node.port(), proxy, rule));
    }
    let port = |url: &str| url.rsplit(':').next().and_then(|port| port.parse().ok());
    let table: Vec<(u16, u16)> = ways
        .iter()
        .map(|(told, proxy, _)| (*told, port(proxy.url()).expect("a port")))
        .collect();
    let map = move |host: &str, port: u16| {
        let (_, here) = table.iter().find(|(told, _)| *told == port)?;
        Some((host.to_owned(), *here))
    };
    let urls = sentinels.sentinels().iter().map(Node::url);
    let client = patient(Client::builder().sentinels(urls, Sentinels::NAME));
    let client = client.address_map(map).open().expect("good settings");
    let counter = client.counter("views");
    counter.add(1).await.expect("counted");
    let passed = || ways.iter().filter(|(_, _, rule)| rule.hits() > 0).count();
    assert_eq!(passed(), 1, "by way of the primary's proxy");
    sentinels.failover().await;
    until("it goes on by way of another", async || {
        let _ = counter.add(1).await;
        passed() == 2
    })
    .await;
}

#[test]
fn an_address_map_is_for_servers_that_others_name() {
    let url = "redis://127.0.0.1:1";
    let table = [("10.0.0.1:1", "127.0.0.1:1")];
    let alone = Client::builder().url(url).address_map(table);
    let error = alone.open().expect_err("nobody names others");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let wrong = Client::builder().cluster([url]);
    let wrong = wrong.address_map([("10.0.0.1:1", "nowhere")]).open();
    let error = wrong.expect_err("no port");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("nowhere"), "{error}");
    let good = Client::builder().cluster([url]).address_map(table);
    good.open().expect("a good table");
}
