//! A server that is slow to answer while a lease is at stake: another connection is tried, at the
//! expense of nobody's answer.

use std::time::Duration;

use futures::future::join_all;

use crate::support::server::Server;
use crate::support::wait::{bounded, patient, until};

#[tokio::test]
async fn calls_on_a_connection_that_is_replaced_for_a_lease_still_get_their_answers() {
    let server = Server::start_single().await;
    let client = patient(server.builder()).open().expect("a good URL");
    let lock = client.lock("a").lease(Duration::from_secs(1));
    let _guard = lock.acquire().await.expect("free");
    let connections = async || -> Vec<String> {
        let list: String = server.run(&["CLIENT", "LIST"]).await;
        let ours = list.lines().filter(|line| line.contains("name=hedgerow "));
        ours.map(str::to_owned).collect()
    };
    let first = connections().await.remove(0);
    let first = first.split(' ').next().expect("its id").to_owned();

    let _: () = server.run(&["CLIENT", "PAUSE", "60000", "WRITE"]).await;
    let adds = (0..20).map(|number| {
        let counter = client.counter(&format!("views {number}"));
        tokio::spawn(async move { counter.add(1).await })
    });
    let adds: Vec<_> = adds.collect();
    // The renewal waits, too. So another connection is made, and asked for the next.
    until("another connection is in use", async || {
        let others = connections().await.into_iter();
        let mut others = others.filter(|line| !line.starts_with(&format!("{first} ")));
        others.any(|line| line.contains("cmd=eval"))
    })
    .await;
    let _: () = server.run(&["CLIENT", "UNPAUSE"]).await;
    for added in bounded("they are answered", join_all(adds)).await {
        let added = added.expect("no panic").expect("answered");
        assert_eq!(added.value, 1);
    }
}
