//! Credentials that expire where there are several servers: each connection is shown fresh ones in
//! time.
//!
//! Tokens are played as in [`reauth`](crate::net::reauth).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Client, ClientBuilder, client::Credentials};

use crate::support::topology::{Node, Sentinels, lease_cluster, lease_sentinels};
use crate::support::wait::{patient, until};

const HOUR: Duration = Duration::from_secs(3_600);

/// Long enough that a machine under load comes to show the next token before the end.
const SHORT: Duration = Duration::from_secs(6);

const SECRET: &str = "canary-7c02";

/// The number of the token that the provider answers, and how long that lasts.
type Next = Arc<Mutex<(usize, Duration)>>;

#[tokio::test]
async fn each_connection_to_a_cluster_is_shown_fresh_credentials_before_the_old_expire() {
    let cluster = lease_cluster().await;
    let nodes: Vec<&Node> = cluster.nodes().iter().collect();
    let (next, builder) = given_tokens(&nodes).await;
    let client = builder.cluster(nodes.iter().map(|node| node.url()));
    let client = client.open().expect("good seeds");
    until("a connection to each primary", async || {
        adds(&client).await;
        let open = connections(&nodes).await;
        open.keys()
            .map(|(node, _)| node)
            .collect::<std::collections::BTreeSet<_>>()
            .len()
            == nodes.len()
    })
    .await;
    are_shown_the_second(&nodes, &next, &client).await;
}

#[tokio::test]
async fn connections_to_the_primary_of_sentinels_are_shown_fresh_credentials_before_the_old_expire()
{
    let servers = lease_sentinels().await;
    let nodes: Vec<&Node> = servers.data().nodes().iter().collect();
    let (next, builder) = given_tokens(&nodes).await;
    let client = builder.sentinels(servers.sentinels().iter().map(Node::url), Sentinels::NAME);
    let client = client.open().expect("good URLs");
    are_shown_the_second(&nodes, &next, &client).await;
}

/// Issues two tokens; answers what the provider gives, the first, and a builder that asks it.
async fn given_tokens(nodes: &[&Node]) -> (Next, ClientBuilder) {
    let password = format!(">{SECRET}");
    for name in ["token-1", "token-2"] {
        let words = ["ACL", "SETUSER", name, "on", &password, "~*", "&*", "+@all"];
        all(nodes, &words).await;
    }
    let next: Next = Arc::new(Mutex::new((1, SHORT)));
    let given = next.clone();
    let builder = patient(Client::builder()).credentials_from(move || {
        let (token, time) = *given.lock().expect("no panic");
        async move { Ok(Credentials::user(format!("token-{token}"), SECRET).expires_in(time)) }
    });
    (next, builder)
}

/// From here on the provider answers the second token: no connection is closed, and all become its.
async fn are_shown_the_second(nodes: &[&Node], next: &Next, client: &Client) {
    adds(client).await;
    *next.lock().expect("no panic") = (2, HOUR);
    let before = connections(nodes).await;
    assert!(before.values().any(|user| user == "token-1"), "{before:?}");
    until("the servers were shown the fresh token", async || {
        let now = connections(nodes).await;
        let closed = before.keys().find(|id| !now.contains_key(*id));
        assert_eq!(closed, None, "{now:?}");
        now.values().all(|user| user == "token-2")
    })
    .await;
    // With this a server closes all that the first had opened.
    all(nodes, &["ACL", "DELUSER", "token-1"]).await;
    adds(client).await;
    let now = connections(nodes).await;
    assert!(before.keys().all(|id| now.contains_key(id)), "{now:?}");
}

/// Calls for keys of many slots.
async fn adds(client: &Client) {
    let adds = (0..32).map(async |number| {
        let counter = client.counter(&format!("views {number}"));
        counter.add(1).await.expect("added")
    });
    join_all(adds).await;
}

/// The connections that tokens have opened, by node and id, and whose they are now.
async fn connections(nodes: &[&Node]) -> BTreeMap<(usize, String), String> {
    let mut found = BTreeMap::new();
    for (place, node) in nodes.iter().enumerate() {
        let list: String = node.run(&["CLIENT", "LIST"]).await;
        for line in list.lines() {
            let field = |name: &str| {
                let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
                let found = fields.find(|(field, _)| *field == name);
                found.map(|(_, value)| value.to_owned()).unwrap_or_default()
            };
            let user = field("user");
            if user.starts_with("token-") {
                found.insert((place, field("id")), user);
            }
        }
    }
    found
}

/// Has each server do the same. Replicas have users of their own.
async fn all(nodes: &[&Node], words: &[&str]) {
    for node in nodes {
        let _: redis::Value = node.run(words).await;
    }
}
