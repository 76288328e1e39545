//! Eight processes on one limit: never more than it promises, and nearly all of it used.
//!
//! The server's clock judges. What the processes do before and after they are looked at is bounded
//! by its readings, so that a slow machine proves nothing wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hedgerow::limit::{LimitOutage, Quota};
use hedgerow::{Client, RateLimiter};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::support::process::Child;
use crate::support::server::Server;
use crate::support::wait::until;

const PROCESSES: usize = 8;
const TASKS: usize = 4;

/// A quota by its name.
fn quota(name: &str) -> Quota {
    match name {
        "gcra" => Quota::per_second(400).burst(40),
        "exact window" => Quota::new(60, Duration::from_millis(200)).sliding_window(),
        "window" => Quota::new(300, Duration::from_millis(600)).sliding_window(),
        // Nothing comes back while a test runs.
        "day" => Quota::per_day(2000),
        "window of a day" => Quota::per_day(2000).sliding_window(),
        unknown => panic!("no quota is called {unknown}"),
    }
}

/// One process: asks as often as it is let, until it hears anything. Says `going` after its first
/// decision, then how many were let through.
pub async fn ask(url: &str, name: &str, commands: &mut UnboundedReceiver<String>, say: fn(&str)) {
    let builder = Client::builder()
        .url(url)
        .cache_deadline(Duration::from_secs(60));
    let client = builder.open().expect("a good URL");
    let limiter = client
        .rate_limiter("api", quota(name))
        .outage(LimitOutage::Fail);
    client.ping().await.expect("an answer");
    say("ready");
    commands.recv().await;
    let ended = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| tokio::spawn(take(limiter.clone(), ended.clone())))
        .collect();
    say("going");
    commands.recv().await;
    ended.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("no panic");
    }
    say(&limiter.stats().allowed.to_string());
}

/// Asks until it is told to end. The last check is awaited: it may have taken one.
async fn take(limiter: RateLimiter, ended: Arc<AtomicBool>) {
    while !ended.load(Ordering::Relaxed) {
        let decision = limiter.check("a").await.expect("answered");
        if !decision.allowed {
            tokio::time::sleep(decision.retry_after.min(Duration::from_millis(5))).await;
        }
    }
}

/// The server's clock, in µs.
async fn now(server: &Server) -> u64 {
    let (seconds, micros): (u64, u64) = server.run(&["TIME"]).await;
    seconds * 1_000_000 + micros
}

/// Processes that are connected.
async fn ready(name: &str, server: &Server) -> Vec<Child> {
    let mut children: Vec<Child> = (0..PROCESSES)
        .map(|_| Child::start("limit", &[server.url(), name]))
        .collect();
    for child in &mut children {
        assert_eq!(child.says().await, "ready");
    }
    children
}

/// Runs the processes for a while. Returns how many requests were let through, and readings of the
/// clock: before the first, once all are going, before they are told to end, after the last.
async fn race(name: &str, server: &Server) -> (u64, [u64; 4]) {
    let mut children = ready(name, server).await;
    let before = now(server).await;
    for child in &mut children {
        assert_eq!(child.ask("go").await, "going");
    }
    let going = now(server).await;
    // This long they race.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let ending = now(server).await;
    let mut allowed = 0;
    for child in &mut children {
        allowed += child.ask("end").await.parse::<u64>().expect("a number");
    }
    (allowed, [before, going, ending, now(server).await])
}

#[tokio::test]
async fn eight_processes_use_a_gcra_limit_up_and_never_more() {
    let server = Server::start_single().await;
    let (allowed, [before, going, ending, after]) = race("gcra", &server).await;
    let (rate, burst) = (400, 40);
    let most = burst + (after - before) * rate / 1_000_000;
    assert!(allowed <= most, "{allowed} of {most}");
    let least = (ending - going) * rate / 1_000_000 * 98 / 100;
    assert!(allowed >= least, "{allowed} of {least}");
}

async fn eight_processes_use_a_window(name: &str) {
    let server = Server::start_single().await;
    let (allowed, [before, going, ending, after]) = race(name, &server).await;
    let quota = quota(name);
    let (limit, span) = (u64::from(quota.limit()), quota.window().as_micros() as u64);
    // Cut into windows, each of which has no more than the limit.
    let most = limit * (after - before).div_ceil(span);
    assert!(allowed <= most, "{allowed} of {most}");
    // What is used, at a constant load, of each whole window.
    let least = limit * ((ending - going) / span) * 98 / 100;
    assert!(allowed >= least, "{allowed} of {least}");
}

#[tokio::test]
async fn eight_processes_use_an_exact_window_up_and_never_more() {
    eight_processes_use_a_window("exact window").await;
}

#[tokio::test]
async fn eight_processes_use_a_window_of_slices_up_and_never_more() {
    eight_processes_use_a_window("window").await;
}

/// To the last one: what eight processes take of a limit of which nothing comes back.
async fn eight_processes_share_out(name: &str) {
    let server = Server::start_single().await;
    let limiter = server.client().await.rate_limiter("api", quota(name));
    let mut children = ready(name, &server).await;
    for child in &mut children {
        assert_eq!(child.ask("go").await, "going");
    }
    until("the limit is used up", async || {
        limiter.peek("a").await.expect("answered").remaining == 0
    })
    .await;
    let mut allowed = 0;
    for child in &mut children {
        allowed += child.ask("end").await.parse::<u32>().expect("a number");
    }
    assert_eq!(allowed, quota(name).limit());
}

#[tokio::test]
async fn eight_processes_share_a_gcra_limit_out_to_the_last_request() {
    eight_processes_share_out("day").await;
}

#[tokio::test]
async fn eight_processes_share_a_window_out_to_the_last_request() {
    eight_processes_share_out("window of a day").await;
}
