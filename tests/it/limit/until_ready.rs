//! Waiting for a turn: it is reserved with one command, slept for once, and given back when the
//! wait is dropped.

use std::future::IntoFuture as _;
use std::time::{Duration, Instant};

use hedgerow::limit::Quota;
use hedgerow::{ErrorKind, RateLimiter};

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{bounded, calls, until};

const MINUTE: Duration = Duration::from_secs(60);

/// So long that no turn comes while a test runs.
const HOUR: Duration = Duration::from_secs(3600);

/// One at once, and one each hour, by both algorithms.
fn slow() -> [Quota; 2] {
    [Quota::per_hour(1), Quota::per_hour(1).sliding_window()]
}

async fn remaining(limiter: &RateLimiter, key: &str) -> u32 {
    limiter.peek(key).await.expect("answered").remaining
}

#[tokio::test]
async fn turns_come_one_after_the_other_with_one_command_each() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let millis = Duration::from_millis;
    // Each with the least time that five turns take.
    for (quota, least) in [
        (Quota::new(10, millis(500)).burst(1), millis(4 * 50)),
        (Quota::new(3, millis(300)).sliding_window(), millis(300)),
    ] {
        let limiter = client.rate_limiter("api", quota);
        limiter.until_ready("warm").await.expect("a turn");
        let before = calls(&server, &["evalsha", "eval"]).await;
        let began = Instant::now();
        let turns = (0..5).map(|_| limiter.until_ready("a").wait(MINUTE).into_future());
        let turns = futures::future::join_all(turns);
        let turns = bounded("all have their turn", turns).await;
        assert!(began.elapsed() >= least, "{quota:?}");
        let came = turns.iter().filter(|turn| turn.is_ok()).count();
        assert!(came == 5, "{quota:?}: {turns:?}");
        assert_eq!(calls(&server, &["evalsha", "eval"]).await, before + 5);
    }
}

#[tokio::test]
async fn a_turn_that_is_too_far_away_is_told_at_once_and_takes_nothing() {
    let server = Server::start().await;
    let client = server.client().await;
    for quota in slow() {
        let limiter = client.rate_limiter("api", quota);
        limiter.until_ready("a").await.expect("the first turn");
        let error = limiter.until_ready("a").wait(HOUR / 2).await;
        let error = error.expect_err("an hour away");
        assert_eq!(error.kind(), ErrorKind::Contended, "{error}");
        assert!(!error.is_indeterminate());
        let again = limiter.until_ready("a").wait(HOUR / 2).await;
        assert_eq!(again.expect_err("as before").kind(), ErrorKind::Contended);
        let retry_after = limiter.peek("a").await.expect("answered").retry_after;
        assert!(retry_after <= HOUR, "nothing was reserved: {retry_after:?}");
    }
}

#[tokio::test]
async fn a_wait_that_is_dropped_while_it_sleeps_gives_its_turn_back() {
    let server = Server::start().await;
    let client = server.client().await;
    for quota in slow() {
        let limiter = client.rate_limiter("api", quota);
        limiter.until_ready("a").await.expect("the first turn");
        let before = limiter.peek("a").await.expect("answered").retry_after;
        assert!(before <= HOUR);
        let mut wait = limiter.until_ready("a").wait(HOUR).into_future();
        assert!(futures::poll!(&mut wait).is_pending());
        until("the turn is reserved", async || {
            limiter.peek("a").await.expect("answered").reset_after > HOUR
        })
        .await;
        drop(wait);
        until("the turn is given back", async || {
            limiter.peek("a").await.expect("answered").reset_after <= HOUR
        })
        .await;
    }
}

#[tokio::test]
async fn a_wait_that_is_dropped_before_its_answer_gives_its_turn_back() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = proxy.builder().open().expect("a good URL");
    let behind = server.client().await;
    for (key, quota) in ["a", "b"]
        .into_iter()
        .zip([Quota::per_hour(2), Quota::per_hour(2).sliding_window()])
    {
        let (limiter, seen) = (
            client.rate_limiter("api", quota),
            behind.rate_limiter("api", quota),
        );
        limiter.until_ready("warm").await.expect("a turn");
        let held = proxy.on_reply(Request::any().named("EVALSHA"), Act::Hold);
        let mut wait = limiter.until_ready(key).into_future();
        assert!(futures::poll!(&mut wait).is_pending());
        until("the turn is taken and not answered", async || {
            remaining(&seen, key).await == 1
        })
        .await;
        drop(wait);
        held.deliver();
        until("the turn is given back", async || {
            remaining(&seen, key).await == 2
        })
        .await;
    }
}

#[tokio::test]
async fn a_wait_whose_reply_is_lost_is_unknown_and_gives_nothing_back() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = proxy.builder().open().expect("a good URL");
    let limiter = client.rate_limiter("api", Quota::per_hour(3));
    limiter.until_ready("a").await.expect("a turn");
    proxy.lose_next_reply();
    let error = limiter
        .until_ready("a")
        .await
        .expect_err("the reply is lost");
    assert!(error.is_indeterminate(), "{error}");
    assert_eq!(remaining(&limiter, "a").await, 1, "it was taken once");
}

#[tokio::test]
async fn a_turn_that_was_used_is_not_given_back() {
    let server = Server::start().await;
    let client = server.client().await;
    for quota in slow() {
        let limiter = client.rate_limiter("api", quota);
        limiter.until_ready("a").await.expect("a turn");
        // Whatever the task of the wait does, it does before it ends; each look is one more turn.
        for _ in 0..20 {
            assert_eq!(remaining(&limiter, "a").await, 0);
        }
    }
}

#[tokio::test]
async fn checks_are_refused_while_turns_are_reserved() {
    let server = Server::start().await;
    let client = server.client().await;
    for quota in [
        Quota::per_hour(60).burst(1),
        Quota::per_hour(2).sliding_window(),
    ] {
        let limiter = client.rate_limiter("api", quota);
        let most = quota.limit().min(2);
        for _ in 0..most.min(limiter.peek("a").await.expect("answered").remaining) {
            limiter.until_ready("a").await.expect("a turn");
        }
        let mut wait = limiter.until_ready("a").wait(HOUR).into_future();
        assert!(futures::poll!(&mut wait).is_pending());
        until("a turn is reserved", async || {
            limiter.peek("a").await.expect("answered").remaining == 0
        })
        .await;
        assert!(!limiter.check("a").await.expect("answered").allowed);
    }
}
