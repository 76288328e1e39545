//! Checks, peeks and refunds through the public API, on every topology.

use std::time::{Duration, Instant};

use hedgerow::limit::{Algorithm, DecidedBy, Quota};
use hedgerow::{Client, ErrorKind, RateLimiter};

use crate::support::proxy::Proxy;
use crate::support::server::Server;
use crate::support::wait::until;

/// So long that nothing comes back while a test runs.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Gcra, Algorithm::SlidingWindow];

/// A quota of `limit` in a day.
fn daily(limit: u32, algorithm: Algorithm) -> Quota {
    match algorithm {
        Algorithm::SlidingWindow => Quota::per_day(limit).sliding_window(),
        _ => Quota::per_day(limit),
    }
}

/// Which of several requests were let through.
async fn checks(limiter: &RateLimiter, key: &str, costs: &[u32]) -> Vec<bool> {
    let mut allowed = Vec::new();
    for cost in costs {
        let decision = limiter.check(key).cost(*cost).await.expect("answered");
        allowed.push(decision.allowed);
    }
    allowed
}

/// The key of the one limit that the server has, and how much longer it lives.
async fn the_only_key(server: &Server) -> (String, Duration) {
    let mut lives = server.lives("hr:[rw]*").await;
    assert_eq!(lives.len(), 1, "{lives:?}");
    let (key, left) = lives.remove(0);
    let left = u64::try_from(left).expect("it has an end");
    (key, Duration::from_millis(left))
}

#[tokio::test]
async fn as_many_are_let_through_as_the_quota_says_and_each_key_has_its_own() {
    let server = Server::start().await;
    let client = server.client().await;
    for algorithm in ALGORITHMS {
        let limiter = client.rate_limiter("api", daily(3, algorithm));
        let allowed = checks(&limiter, "a", &[1, 1, 1, 1]).await;
        assert_eq!(allowed, [true, true, true, false], "{algorithm:?}");
        let other = limiter.check("b").cost(2).await.expect("answered");
        assert!(other.allowed);
        assert_eq!((other.limit, other.remaining), (3, 1));
        assert!(other.retry_after.is_zero());
        assert!(other.reset_after > DAY / 2 && other.reset_after <= DAY);
        // Another process.
        let elsewhere = server.client().await;
        let limiter = elsewhere.rate_limiter("api", daily(3, algorithm));
        let refused = limiter.check("a").await.expect("answered");
        assert!(!refused.allowed);
        assert_eq!(refused.decided_by, DecidedBy::Server);
        assert!(refused.retry_after > Duration::ZERO && refused.retry_after <= DAY);
    }
}

#[tokio::test]
async fn a_refused_request_takes_nothing_and_a_smaller_one_still_fits() {
    let server = Server::start().await;
    let client = server.client().await;
    for algorithm in ALGORITHMS {
        let limiter = client.rate_limiter("api", daily(5, algorithm));
        let allowed = checks(&limiter, "a", &[3, 3, 3, 2, 1]).await;
        assert_eq!(allowed, [true, false, false, true, false], "{algorithm:?}");
    }
}

#[tokio::test]
async fn a_peek_takes_nothing_and_says_whether_one_more_is_let_through() {
    let server = Server::start().await;
    let client = server.client().await;
    for algorithm in ALGORITHMS {
        let limiter = client.rate_limiter("api", daily(2, algorithm));
        for _ in 0..3 {
            let peeked = limiter.peek("a").await.expect("answered");
            assert_eq!((peeked.allowed, peeked.remaining), (true, 2));
            let nothing = limiter.check("a").cost(0).await.expect("answered");
            assert_eq!((nothing.allowed, nothing.remaining), (true, 2));
        }
        assert_eq!(checks(&limiter, "a", &[2]).await, [true]);
        let peeked = limiter.peek("a").await.expect("answered");
        assert_eq!((peeked.allowed, peeked.remaining), (false, 0));
        assert!(peeked.retry_after > Duration::ZERO);
    }
}

#[tokio::test]
async fn what_is_given_back_can_be_taken_again_and_never_makes_more_than_all() {
    let server = Server::start().await;
    let client = server.client().await;
    for algorithm in ALGORITHMS {
        let limiter = client.rate_limiter("api", daily(4, algorithm));
        assert_eq!(checks(&limiter, "a", &[4, 1]).await, [true, false]);
        limiter.refund("a", 3).await.expect("given back");
        assert_eq!(checks(&limiter, "a", &[3, 1]).await, [true, false]);
        for _ in 0..3 {
            limiter.refund("a", 4).await.expect("given back");
        }
        assert_eq!(checks(&limiter, "a", &[4, 1]).await, [true, false]);
    }
}

#[tokio::test]
async fn what_can_never_be_is_refused_before_anything_is_sent() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let good = client.rate_limiter("api", Quota::per_second(5));
    let invalid = async |limiter: &RateLimiter, key: &str, cost| {
        let error = limiter.check(key).cost(cost).await.expect_err("invalid");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    };
    invalid(&good, "a", 6).await;
    invalid(&good, "", 1).await;
    invalid(&client.rate_limiter("", Quota::per_second(5)), "a", 1).await;
    invalid(&client.rate_limiter("api", Quota::per_second(0)), "a", 1).await;
    let ready = good.until_ready("a").cost(6).await.expect_err("never");
    assert_eq!(ready.kind(), ErrorKind::InvalidInput);
    assert_eq!(server.keys("*").await, [""; 0]);
}

#[tokio::test]
async fn a_key_lives_no_longer_than_it_counts() {
    let server = Server::start_single().await;
    let client = server.client().await;
    for quota in [
        Quota::per_minute(60),
        Quota::per_minute(60).sliding_window(),
    ] {
        let limiter = client.rate_limiter("api", quota);
        let decision = limiter.check("a").cost(30).await.expect("answered");
        let (key, left) = the_only_key(&server).await;
        assert!(left <= Duration::from_millis(60_001), "{key}: {left:?}");
        let lasts = decision.reset_after + Duration::from_millis(1);
        assert!(left <= lasts, "{key}: {left:?} of {lasts:?}");
        limiter.refund("a", 30).await.expect("given back");
        assert_eq!(server.keys("hr:[rw]*").await, [""; 0], "{quota:?}");
    }
}

#[tokio::test]
async fn something_else_at_the_key_is_an_error_and_is_left_alone() {
    let server = Server::start_single().await;
    let client = server.client().await;
    client
        .rate_limiter("api", Quota::per_day(5))
        .until_ready("warm")
        .await
        .expect("the format key is set");
    for (key, quota) in [
        ("hr:r:{api:a}", Quota::per_second(5)),
        ("hr:w1000000:{api:a}", Quota::per_second(5).sliding_window()),
    ] {
        let limiter = client.rate_limiter("api", quota);
        for command in [["SET", key, "other"], ["SADD", key, "other"]] {
            server.run::<()>(&["DEL", key]).await;
            server.run::<()>(&command).await;
            // The format is known from here on.
            let other = limiter.peek("other").await.expect("answered");
            assert!(other.allowed);
            let before = server.digest().await;
            let errors = [
                limiter.check("a").await.map(drop),
                limiter.peek("a").await.map(drop),
                limiter.refund("a", 1).await,
                limiter.until_ready("a").await,
            ];
            for error in errors {
                let error = error.expect_err("not a limit");
                assert_eq!(error.kind(), ErrorKind::WrongType, "{error}");
                assert_eq!(error.key(), Some("a"));
            }
            assert_eq!(server.digest().await, before);
        }
    }
}

#[tokio::test]
async fn limits_of_another_format_are_left_alone() {
    let server = Server::start_single().await;
    server.run::<()>(&["SET", "hr:f:{limit}", "9"]).await;
    let limiter = server
        .client()
        .await
        .rate_limiter("api", Quota::per_second(5));
    let error = limiter.check("a").await.expect_err("another format");
    assert_eq!(error.kind(), ErrorKind::WrongType, "{error}");
    assert_eq!(server.keys("hr:r:*").await, [""; 0]);
}

#[tokio::test]
async fn a_check_whose_reply_is_lost_is_not_sent_again_and_says_so() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = proxy.builder().open().expect("a good URL");
    let limiter = client.rate_limiter("api", daily(10, Algorithm::Gcra));
    // The scripts are known from here on.
    assert_eq!(checks(&limiter, "a", &[2]).await, [true]);
    limiter.refund("a", 1).await.expect("given back");
    proxy.lose_next_reply();
    let error = limiter.check("a").await.expect_err("the reply is lost");
    assert!(error.is_indeterminate(), "{error}");
    let left = async || limiter.peek("a").await.expect("a new connection").remaining;
    assert_eq!(left().await, 8, "taken once");
    proxy.lose_next_reply();
    let error = limiter.refund("a", 1).await.expect_err("the reply is lost");
    assert!(error.is_indeterminate(), "{error}");
    assert_eq!(left().await, 9, "given back once");
    assert_eq!(proxy.lost(), 2);
}

#[tokio::test]
async fn each_decision_is_in_one_count_and_handles_of_a_name_share_them() {
    let server = Server::start().await;
    let client = server.client().await;
    let limiter = client.rate_limiter("api", daily(2, Algorithm::Gcra));
    let allowed = checks(&limiter, "a", &[1, 1, 1, 1, 1]).await;
    assert_eq!(allowed, [true, true, false, false, false]);
    let stats = client
        .rate_limiter("api", daily(2, Algorithm::Gcra))
        .stats();
    assert_eq!(
        (stats.allowed, stats.refused, stats.known_refusals),
        (2, 1, 2)
    );
    assert_eq!(
        client
            .rate_limiter("other", daily(2, Algorithm::Gcra))
            .stats()
            .allowed,
        0
    );
}

/// A shorter window drops what a longer one still counts. So they are apart.
#[tokio::test]
async fn windows_of_two_lengths_count_apart() {
    let server = Server::start().await;
    let (client, other) = (server.client().await, server.client().await);
    let quota = |window| Quota::new(5, window).sliding_window();
    let long = |client: &Client| client.rate_limiter("api", quota(Duration::from_secs(3600)));
    let short = client.rate_limiter("api", quota(Duration::from_millis(1)));
    assert_eq!(checks(&long(&client), "a", &[5]).await, [true]);
    until("the short window has room", async || {
        short.check("a").await.expect("answered").allowed
    })
    .await;
    // Another process, which knows of no refusal.
    assert_eq!(checks(&long(&other), "a", &[1]).await, [false]);
    let group = |client: &Client, window| client.rate_limits("g").limit("l", quota(window));
    let long = |client: &Client| group(client, Duration::from_secs(3600));
    assert!(
        long(&client)
            .check_all("a")
            .cost(5)
            .await
            .expect("answered")
            .allowed()
    );
    until("the short window has room", async || {
        let short = group(&client, Duration::from_millis(1))
            .check_all("a")
            .await;
        short.expect("answered").allowed()
    })
    .await;
    assert!(
        !long(&other)
            .check_all("a")
            .await
            .expect("answered")
            .allowed()
    );
}

/// What is taken counts for as long as the limit has said, whoever has written the key.
#[tokio::test]
async fn a_key_lives_as_long_as_it_counts() {
    let server = Server::start_single().await;
    let client = server.client().await;
    for quota in [
        Quota::per_minute(60),
        Quota::per_minute(60).sliding_window(),
    ] {
        let lives = async |when: Instant, counts: Duration| {
            let (key, left) = the_only_key(&server).await;
            let lasts = left + when.elapsed() + Duration::from_millis(2);
            assert!(lasts >= counts, "{key}: {left:?} of {counts:?}");
            let _: redis::Value = server.run(&["FLUSHALL"]).await;
        };
        let (limiter, when) = (client.rate_limiter("api", quota), Instant::now());
        let decision = limiter.check("a").cost(30).await.expect("answered");
        lives(when, decision.reset_after).await;
        let group = client.rate_limits("g").limit("l", quota);
        let when = Instant::now();
        let decisions = group.check_all("a").cost(30).await.expect("answered");
        let (_, decision) = decisions.iter().next().expect("one limit");
        lives(when, decision.reset_after).await;
        let _ = limiter.check("b").cost(30).await.expect("answered");
        limiter.refund("b", 10).await.expect("given back");
        let when = Instant::now();
        let decision = limiter.peek("b").await.expect("answered");
        lives(when, decision.reset_after).await;
        // A turn that is a second away.
        let _ = limiter.check("c").cost(60).await.expect("answered");
        if quota.algorithm() == Algorithm::Gcra {
            let when = Instant::now();
            limiter.until_ready("c").await.expect("its turn");
            lives(when, Duration::from_secs(60)).await;
        }
    }
}
