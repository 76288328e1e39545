//! Refused keys are refused again without a command, and never for longer than the server has said.

use std::time::Duration;

use hedgerow::limit::{DecidedBy, Quota};

use crate::support::server::Server;
use crate::support::wait::{bounded, calls};

/// How many scripts the server has run.
async fn scripts(server: &Server) -> usize {
    calls(server, &["evalsha", "eval"]).await
}

#[tokio::test]
async fn a_refused_key_is_refused_again_without_a_command() {
    let server = Server::start_single().await;
    let limiter = server
        .client()
        .await
        .rate_limiter("api", Quota::per_hour(1));
    assert!(limiter.check("a").await.expect("answered").allowed);
    let first = limiter.check("a").await.expect("answered");
    assert_eq!(first.decided_by, DecidedBy::Server);
    let before = scripts(&server).await;
    for _ in 0..100 {
        let again = limiter.check("a").await.expect("answered");
        assert!(!again.allowed);
        assert_eq!(again.decided_by, DecidedBy::KnownRefusal);
        assert!(again.retry_after <= first.retry_after);
    }
    assert_eq!(scripts(&server).await, before);
    // Another key is asked about.
    assert!(limiter.check("b").await.expect("answered").allowed);
    assert_eq!(scripts(&server).await, before + 1);
}

#[tokio::test]
async fn a_key_is_let_through_as_soon_as_the_server_would() {
    let server = Server::start_single().await;
    let client = server.client().await;
    for quota in [
        Quota::new(1, Duration::from_millis(150)),
        Quota::new(1, Duration::from_millis(150)).sliding_window(),
    ] {
        let limiter = client.rate_limiter("api", quota);
        assert!(limiter.check("a").await.expect("answered").allowed);
        let let_through = async {
            loop {
                let decision = limiter.check("a").await.expect("answered");
                if decision.allowed {
                    break;
                }
                // Never longer than the server has said: so this always ends.
                tokio::time::sleep(decision.retry_after).await;
            }
        };
        bounded("the key is let through", let_through).await;
    }
}

#[tokio::test]
async fn what_this_process_gives_back_ends_a_known_refusal() {
    let server = Server::start_single().await;
    let limiter = server
        .client()
        .await
        .rate_limiter("api", Quota::per_hour(1));
    assert!(limiter.check("a").await.expect("answered").allowed);
    for _ in 0..2 {
        assert!(!limiter.check("a").await.expect("answered").allowed);
    }
    limiter.refund("a", 1).await.expect("given back");
    let decision = limiter.check("a").await.expect("answered");
    assert!(decision.allowed);
    assert_eq!(decision.decided_by, DecidedBy::Server);
}

#[tokio::test]
async fn a_larger_quota_is_not_refused_for_what_a_smaller_one_was() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let small = client.rate_limiter("api", Quota::per_hour(1));
    assert!(small.check("a").await.expect("answered").allowed);
    assert!(!small.check("a").await.expect("answered").allowed);
    let large = client.rate_limiter("api", Quota::per_hour(100));
    let decision = large.check("a").await.expect("answered");
    assert_eq!(decision.decided_by, DecidedBy::Server);
}
