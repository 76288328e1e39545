//! Conditions that one server can be in, brought about while everything is in use, and undone.
//!
//! That each is told by name, and leaves the data as they were, is shown in `conditions` and
//! `passing`, call by call.

use std::time::Duration;

use hedgerow::Client;
use redis::Value;

use super::{Loss, Traffic};
use crate::support::server::Server;
use crate::support::wait::until;

const ONE: &str = "one server";

/// Traffic that flows, of a client that soon gives up.
async fn traffic(server: &Server, loss: Loss) -> Traffic {
    let traffic = Traffic::start(&hasty(server).await, 12, loss);
    traffic.flows(100).await;
    traffic
}

async fn hasty(server: &Server) -> Client {
    let soon = Duration::from_millis(500);
    let builder = server.builder().deadline(soon).cache_deadline(soon);
    builder.open().expect("a good URL")
}

async fn set(server: &Server, name: &str, value: &str) {
    let _: Value = server.run(&["CONFIG", "SET", name, value]).await;
}

/// A setting that has writes refused, and loads go on without Redis.
async fn setting(fault: u8, what: &str, name: &str, wrong: &str, right: &str) {
    let server = Server::start_single().await;
    let mut traffic = traffic(&server, Loss::None).await;
    traffic.strike().await;
    set(&server, name, wrong).await;
    traffic.counters.fail().await;
    traffic.locks.fail().await;
    traffic.loads_go_on(50).await;
    set(&server, name, right).await;
    traffic.flows(100).await;
    traffic
        .settle(fault, what, ONE, "refused, then recovers")
        .await;
}

#[tokio::test]
async fn fault_13_clients_are_paused() {
    let server = Server::start_single().await;
    let mut traffic = traffic(&server, Loss::None).await;
    traffic.strike().await;
    let _: Value = server.run(&["CLIENT", "PAUSE", "60000", "WRITE"]).await;
    traffic.counters.fail().await;
    traffic.loads_go_on(20).await;
    let _: Value = server.run(&["CLIENT", "UNPAUSE"]).await;
    traffic.flows(50).await;
    // This one holds back its own end, too.
    let _: Value = server.run(&["CLIENT", "PAUSE", "3000", "ALL"]).await;
    traffic.counters.fail().await;
    traffic.loads_go_on(20).await;
    traffic.flows(50).await;
    traffic
        .settle(13, "clients are paused", ONE, "unknown, then recovers")
        .await;
}

#[tokio::test]
async fn fault_14_the_server_takes_no_connections() {
    let server = Server::start_single().await;
    let mut traffic = traffic(&server, Loss::None).await;
    traffic.strike().await;
    set(&server, "maxclients", "1").await;
    let _: usize = server.run(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    traffic.counters.fail().await;
    traffic.loads_go_on(50).await;
    set(&server, "maxclients", "100").await;
    traffic.flows(100).await;
    traffic
        .settle(14, "maxclients is reached", ONE, "refused, then recovers")
        .await;
}

#[tokio::test]
async fn fault_15_the_server_is_full() {
    setting(15, "the server is full (OOM)", "maxmemory", "1", "0").await;
}

#[tokio::test]
async fn fault_16_the_server_evicts() {
    let server = Server::start_single().await;
    let mut traffic = traffic(&server, Loss::Data).await;
    traffic.strike().await;
    set(&server, "maxmemory-policy", "allkeys-lru").await;
    let evicted = async || crate::support::wait::figure(&server, "stats", "evicted_keys:").await;
    for _ in 0..20 {
        set(&server, "maxmemory", "1").await;
        set(&server, "maxmemory", "0").await;
        traffic.flows(5).await;
    }
    until("keys are evicted", async || {
        set(&server, "maxmemory", "1").await;
        set(&server, "maxmemory", "0").await;
        evicted().await > 0
    })
    .await;
    traffic.flows(100).await;
    traffic
        .settle(16, "keys are evicted", ONE, "misses, fences rise")
        .await;
}

#[tokio::test]
async fn fault_17_the_server_cannot_save() {
    let server = Server::start_with(&["--enable-protected-configs", "yes"]).await;
    let mut traffic = traffic(&server, Loss::None).await;
    traffic.strike().await;
    let gone = format!("{}.gone", server.url().trim_start_matches("unix://"));
    std::fs::create_dir(&gone).expect("in the server's own directory");
    set(&server, "dir", &gone).await;
    std::fs::remove_dir(&gone).expect("just made");
    set(&server, "save", "3600 1").await;
    let _: Value = server.run(&["BGSAVE"]).await;
    traffic.counters.fail().await;
    traffic.locks.fail().await;
    traffic.loads_go_on(50).await;
    set(&server, "save", "").await;
    traffic.flows(100).await;
    traffic
        .settle(17, "the server cannot save", ONE, "refused, then recovers")
        .await;
}

#[tokio::test]
async fn fault_18_too_few_replicas() {
    setting(18, "too few replicas", "min-replicas-to-write", "1", "0").await;
}

#[tokio::test]
async fn fault_21_the_server_loads() {
    let slowly = ["--loading-process-events-interval-bytes", "1024"];
    let server = Server::start_with(&slowly).await;
    let _: Value = server
        .run(&["DEBUG", "POPULATE", "2000", "x", "1024"])
        .await;
    let mut traffic = traffic(&server, Loss::None).await;
    traffic.strike().await;
    // Saved while calls go on: what is acknowledged meanwhile is saved, or the reload has not
    // begun.
    set(&server, "key-load-delay", "2000").await;
    let mut admin = crate::support::server::connection(server.url()).await;
    let reload = tokio::spawn(async move {
        let _: redis::RedisResult<Value> = redis::cmd("DEBUG")
            .arg("RELOAD")
            .query_async(&mut admin)
            .await;
    });
    traffic.counters.fail().await;
    traffic.loads_go_on(20).await;
    set(&server, "key-load-delay", "0").await;
    reload.await.expect("no panic");
    traffic.flows(100).await;
    traffic
        .settle(21, "the server loads", ONE, "waits or refused")
        .await;
}

#[tokio::test]
async fn fault_22_somebodys_script_does_not_end() {
    let server = Server::start_with(&["--busy-reply-threshold", "50"]).await;
    let mut traffic = traffic(&server, Loss::None).await;
    traffic.strike().await;
    let mut other = crate::support::server::connection(server.url()).await;
    let endless = tokio::spawn(async move {
        let mut script = redis::cmd("EVAL");
        script.arg("while true do end").arg(0);
        let _: redis::RedisResult<Value> = script.query_async(&mut other).await;
    });
    traffic.counters.fail().await;
    traffic.loads_go_on(20).await;
    let _: Value = server.run(&["SCRIPT", "KILL"]).await;
    endless.await.expect("no panic");
    traffic.flows(100).await;
    traffic
        .settle(22, "a script does not end", ONE, "waits or refused")
        .await;
}

#[tokio::test]
async fn fault_23_the_server_crashes_and_comes_back_empty() {
    let mut server = Server::start_single().await;
    let mut traffic = traffic(&server, Loss::Data).await;
    traffic.strike().await;
    let killed = server.kill().await;
    traffic.counters.fail().await;
    traffic.loads_go_on(50).await;
    server.start_again(killed).await;
    traffic.flows(100).await;
    traffic
        .settle(
            23,
            "crash and empty restart",
            ONE,
            "starts again, fences rise",
        )
        .await;
}

#[tokio::test]
async fn fault_29_rights_are_taken_away() {
    let server = Server::start_single().await;
    let user = "on >secret ~hr:* &hr:* +@all";
    let words: Vec<&str> = ["ACL", "SETUSER", "app"]
        .into_iter()
        .chain(user.split(' '))
        .collect();
    let _: Value = server.run(&words).await;
    let url = format!("{}?user=app&pass=secret", server.url());
    let soon = Duration::from_millis(500);
    let builder = Client::builder()
        .url(&url)
        .deadline(soon)
        .cache_deadline(soon);
    let client = builder.open().expect("a good URL");
    let mut traffic = Traffic::start(&client, 12, Loss::None);
    traffic.flows(100).await;
    traffic.strike().await;
    let _: Value = server
        .run(&["ACL", "SETUSER", "app", "-@scripting", "-incrby"])
        .await;
    traffic.counters.fail().await;
    traffic.locks.fail().await;
    // Hits need no script. A miss is refused, under every policy for outages.
    traffic.loads_end(50).await;
    let _: Value = server
        .run(&["ACL", "SETUSER", "app", "+@scripting", "+incrby"])
        .await;
    traffic.flows(100).await;
    traffic
        .settle(29, "rights are taken away", ONE, "refused, then recovers")
        .await;
}

#[tokio::test]
async fn fault_30_everything_is_flushed() {
    let server = Server::start_single().await;
    let mut traffic = traffic(&server, Loss::Data).await;
    traffic.strike().await;
    for _ in 0..20 {
        let _: Value = server.run(&["FLUSHALL"]).await;
        traffic.flows(5).await;
    }
    traffic.flows(100).await;
    traffic
        .settle(
            30,
            "everything is flushed",
            ONE,
            "starts again, fences rise",
        )
        .await;
}
