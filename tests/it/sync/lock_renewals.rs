//! How many commands renewals take: leases that are due at about the same time travel together.

use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Guard, client::Credentials, lock::LossReason};

use crate::support::monitor::Monitor;
use crate::support::server::Server;
use crate::support::wait::{calls, patient, renewed, until};
use crate::topology::shards;

/// How many locks are held.
const LOCKS: usize = 1000;

/// A third of it is the round in which each lease is renewed once.
const LEASE: Duration = Duration::from_secs(6);

#[tokio::test]
async fn a_thousand_leases_are_renewed_by_a_few_scripts() {
    let server = Server::start_single().await;
    let guards = held(&server).await;
    let (renewals, scripts) = a_few_rounds(&server).await;
    // Full scripts of a hundred, and one in each round that is not. A lease may go along with
    // others that are due, but not before half of its time.
    assert!(
        renewals >= 2 * LOCKS,
        "{renewals} renewals of {LOCKS} leases"
    );
    assert!(
        scripts * 80 <= renewals,
        "{scripts} scripts for {renewals} renewals"
    );
    let rounds = renewals.div_ceil(LOCKS);
    assert!(
        scripts <= 12 * (rounds + 1),
        "{scripts} scripts in {rounds} rounds"
    );
    assert!(guards.iter().all(Guard::is_held));
}

#[tokio::test]
async fn leases_of_a_cluster_are_renewed_bucket_by_bucket() {
    let server = Server::start_on("cluster").await;
    let guards = held(&server).await;
    let (renewals, scripts) = a_few_rounds(&server).await;
    assert!(
        renewals >= 2 * LOCKS,
        "{renewals} renewals of {LOCKS} leases"
    );
    // About four locks in each of 256 buckets.
    let rounds = renewals.div_ceil(LOCKS);
    assert!(
        scripts <= 280 * (rounds + 1),
        "{scripts} scripts in {rounds} rounds"
    );
    assert!(guards.iter().all(Guard::is_held));
}

#[tokio::test]
async fn a_short_lease_is_renewed_in_time_among_long_ones() {
    let server = Server::start().await;
    let client = server.client().await;
    let long = (0..200).map(|number| {
        let lock = client.lock(&format!("long:{number}"));
        async move { lock.acquire().await.expect("free") }
    });
    let long = join_all(long).await;
    let short = client.lock("short").lease(Duration::from_millis(900));
    let short = short.acquire().await.expect("free");
    let key = &server.keys("hr:{*}:lock:short").await[0];
    renewed(&server, key, 10).await;
    assert!(short.is_held());
    assert!(long.iter().all(Guard::is_held));
}

#[tokio::test]
async fn a_lease_that_this_user_may_not_renew_any_more_costs_no_other_its_lease() {
    let server = Server::start_single().await;
    let rule = async |keys: &[&str]| {
        let mut rule = vec!["ACL", "SETUSER", "app", "reset", "on", ">pw", "+@all", "&*"];
        rule.extend(keys);
        let _: String = server.run(&rule).await;
    };
    rule(&["~*"]).await;
    let credentials = Credentials::user("app", "pw");
    let client = patient(server.builder()).credentials(credentials).open();
    let client = client.expect("a good URL");
    let lock = |name: &str| client.lock(name).lease(Duration::from_millis(900));
    let names = ["a", "b", "c", "forbidden"];
    let guards = join_all(names.map(async |name| lock(name).acquire().await.expect("free"))).await;
    rule(&["~hr:{*}:lock:?", "~hr:{*}:fence", "~hr:{*}:queue:*"]).await;
    assert_eq!(guards[3].lost().await, LossReason::Expired);
    for (name, guard) in names.iter().zip(&guards[..3]) {
        let key = server
            .keys(&format!("hr:{{*}}:lock:{name}"))
            .await
            .remove(0);
        renewed(&server, &key, 3).await;
        assert!(guard.is_held());
    }
}

/// A lease that is short for the way to its server has no time for the answer that a script is not
/// known.
#[tokio::test]
async fn the_first_renewal_at_each_server_brings_the_script_along() {
    let servers = shards::start(2).await;
    let monitors = [
        Monitor::start(&servers[0]).await,
        Monitor::start(&servers[1]).await,
    ];
    let client = shards::client(&servers).await;
    let mut seen = [false; 2];
    let mut guards = Vec::new();
    for number in 0.. {
        let name = format!("a{number}");
        let lock = client.lock(&name).lease(LEASE);
        let guard = lock.acquire().await.expect("free");
        let pattern = format!("hr:{{*}}:lock:{name}");
        let home = usize::from(servers[0].keys(&pattern).await.is_empty());
        if std::mem::replace(&mut seen[home], true) {
            guard.release().await.expect("held until now");
            continue;
        }
        guards.push(guard);
        let word = format!(":lock:{name}\" \"");
        let first = async || {
            let lines = monitors[home].commands(&servers[home], &word).await;
            lines
                .into_iter()
                .find(|line| line.contains(" \"1\" \"hr:{"))
        };
        until("it is renewed", async || first().await.is_some()).await;
        let first = first().await.expect("it was there");
        assert!(first.contains("] \"EVAL\" "), "{first}");
        if seen == [true; 2] {
            break;
        }
    }
}

/// Takes all locks, by and by.
async fn held(server: &Server) -> Vec<Guard> {
    let client = server.client().await;
    let mut guards = Vec::new();
    for tens in 0..LOCKS / 10 {
        let some = (0..10).map(|number| {
            let lock = client
                .lock(&format!("k{}", tens * 10 + number))
                .lease(LEASE);
            async move { lock.acquire().await.expect("free") }
        });
        guards.extend(join_all(some).await);
    }
    guards
}

/// How often leases were renewed in a while that is long enough for each to be renewed twice, and
/// how many scripts that took.
async fn a_few_rounds(server: &Server) -> (usize, usize) {
    let renewals = async || calls(server, &["pexpire"]).await;
    let scripts = async || calls(server, &["evalsha", "eval"]).await;
    // What the acquisitions leave behind is over: each may be renewed once more when it is heard.
    until("each lease was renewed", async || {
        renewals().await >= 2 * LOCKS
    })
    .await;
    let (first, asked) = (renewals().await, scripts().await);
    until("each lease was renewed twice more", async || {
        renewals().await >= first + 2 * LOCKS
    })
    .await;
    // In this order: scripts that run meanwhile count as too many, not as too few.
    let renewed = renewals().await - first;
    (renewed, scripts().await - asked)
}
